//! What only a sink's driver does: take lanes in, and keep workers that receive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::conduct::{Accuser, FROM_A_SOURCE};
use super::driver::{Event, Hands, Stream};
use super::handshake::{turn_away, write_frame};
use super::lane_sink::{Joining, SinkLanes, run};
use super::lane_source::Terms;
use super::message_sink::Orders;
use super::offence::Offence;
use super::threads::Threads;
use crate::session::allowance::Rate;
use crate::session::{Input, Output};
use crate::wire::{ErrorCode, FenceEpoch, FencedLane, Frame, Framing, Joined, LaneId, Message, TransferId};

pub(super) struct SinkHands {
    pub(super) transfer: TransferId,
    pub(super) accuser: Accuser,
    /// Lane ids that were used; the machine admits 4096 at most.
    pub(super) joined: BTreeSet<LaneId>,
    pub(super) shared: Arc<SinkLanes>,
    pub(super) threads: Threads,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) workers: JoinSet<()>,
    pub(super) lanes: BTreeMap<LaneId, Worker>,
    /// What lanes are admitted with.
    pub(super) terms: (FenceEpoch, Framing),
    /// Connections of lanes that have ended, for the lanes that they are to be.
    pub(super) kept: BTreeMap<LaneId, Stream>,
    /// Connections that wait for the machine's word, which comes at once.
    pub(super) waiting: BTreeMap<LaneId, Stream>,
}

pub(super) struct Worker {
    granted: Arc<AtomicU64>,
    expect: mpsc::Sender<Message>,
    end: Option<oneshot::Sender<FencedLane>>,
    stop: oneshot::Sender<()>,
}

impl Hands for SinkHands {
    #[cfg(feature = "planted-bugs")]
    const END: &'static str = "sink";
    const HEARS: Rate = FROM_A_SOURCE;

    fn perform(&mut self, output: Output) -> Option<Output> {
        match output {
            Output::AdmitLane { lane, credit } => self.admit(lane, credit),
            Output::Engage { epoch, framing } => self.terms = (epoch, framing),
            Output::EndLane(fenced) => {
                // A worker that is gone has reported so.
                if let Some(end) = self.lanes.get_mut(&fenced.lane).and_then(|worker| worker.end.take()) {
                    let _ = end.send(fenced);
                }
            }
            Output::Expect(message) => {
                if let Some(worker) = self.lanes.get(&message.lane) {
                    let _ = worker.expect.try_send(message);
                }
            }
            Output::RefuseLane { lane } => {
                if self.kept.remove(&lane).is_some() {
                    return None;
                }
                // A lane that was only buried may be late by chance; one that was open may not come again. spec: L-2
                if self.joined.contains(&lane) {
                    self.accuser.charge(Offence::BadProof);
                }
                if let Some(mut stream) = self.waiting.remove(&lane) {
                    tokio::spawn(async move {
                        turn_away(&mut stream, ErrorCode::JoinRejected, "this lane may not join").await;
                    });
                }
            }
            Output::Grant { lane, total } => {
                if let Some(worker) = self.lanes.get(&lane) {
                    // Release pairs with the worker's load: the credit frame goes out after this.
                    worker.granted.store(total, Ordering::Release);
                }
            }
            Output::CloseLane(lane) => match self.lanes.remove(&lane) {
                Some(worker) => {
                    let _ = worker.stop.send(());
                }
                None => {
                    let events = self.events.clone();
                    tokio::spawn(async move { events.send(Event::Input(Input::LaneDown { lane })).await });
                }
            },
            Output::Adrift => tracing::warn!(
                transfer = %self.transfer, peer = %self.accuser.peer,
                "the connection to the sender was lost after all of the transfer had come; it is kept, unused, until \
                 the sender asks again, or somebody ends it with `dwcp resolve`"
            ),
            other => return Some(other),
        }
        None
    }

    fn hold_lane(&mut self, lane: LaneId, stream: Stream) -> bool {
        self.waiting.insert(lane, stream);
        true
    }

    fn keep(&mut self, lane: LaneId, stream: Stream) {
        self.kept.insert(lane, stream);
    }

    async fn stop(&mut self) {
        self.lanes.clear();
        self.kept.clear();
        self.waiting.clear();
        self.workers.shutdown().await;
    }
}

impl SinkHands {
    fn admit(&mut self, lane: LaneId, credit: u64) {
        // Who goes on with a connection is told by HANDOVER.
        let kept = self.kept.remove(&lane);
        let joins = kept.is_none();
        let Some(mut stream) = kept.or_else(|| self.waiting.remove(&lane)) else { return };
        self.joined.insert(lane);
        let granted = Arc::new(AtomicU64::new(credit));
        let (stop, stopped) = oneshot::channel();
        let (expect, expected) = mpsc::channel(1);
        let (end, ends) = oneshot::channel();
        let orders = Orders { expect: expected, end: ends };
        let (epoch, framing) = self.terms;
        let (shared, events) = (Arc::clone(&self.shared), self.events.clone());
        let gate = Arc::clone(&granted);
        let worker = async move {
            if joins && let Err(error) = write_frame(&mut stream, &Frame::Joined(Joined { lane, credit })).await {
                tracing::debug!(%lane, %error, "a lane was lost while it joined");
            }
            let terms = Terms { lane, epoch, framing };
            let joining = Joining { terms, stream, granted: gate, orders };
            run(shared, joining, events, stopped).await;
        };
        self.workers.spawn_on(worker, self.threads.lanes());
        self.lanes.insert(lane, Worker { granted, expect, end: Some(end), stop });
        while self.workers.try_join_next().is_some() {}
    }
}
