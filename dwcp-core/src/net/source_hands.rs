//! What only a source's driver does: dial, and keep workers that send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsStream;

use super::conduct::FROM_A_SINK;
use super::dial::{Resume, session_unknown};
use super::driver::{Event, Hands, Stream};
use super::lane_source::{SourceLanes, Terms, run};
use super::message_source::Orders;
use super::threads::Threads;
use crate::session::allowance::Rate;
use crate::session::{Dispatch, Input, Output};
use crate::wire::limits::MAX_MESSAGE_EXTENTS;
use crate::wire::{FenceEpoch, Framing, LaneId};

/// Extents that may wait for a worker: the machine hands out two at a time, or a message.
const WORK: usize = 8;
const _: () = assert!(MAX_MESSAGE_EXTENTS <= 8, "a message's extents wait together");

pub(super) struct SourceHands {
    pub(super) shared: Arc<SourceLanes>,
    pub(super) threads: Threads,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) workers: JoinSet<()>,
    pub(super) lanes: BTreeMap<LaneId, Worker>,
    /// What lanes are opened with.
    pub(super) terms: (FenceEpoch, Framing),
    /// Lanes that are to be on connections of others, and the connections that wait for it.
    pub(super) nexts: BTreeSet<LaneId>,
    pub(super) kept: BTreeMap<LaneId, Stream>,
    /// Counts the connections of this session.
    pub(super) attempt: u32,
    /// The last one that was begun.
    pub(super) dial: Option<AbortHandle>,
}

pub(super) struct Worker {
    work: mpsc::Sender<Dispatch>,
    ship: mpsc::Sender<()>,
    leave: Option<oneshot::Sender<LaneId>>,
    stop: oneshot::Sender<()>,
}

impl Hands for SourceHands {
    #[cfg(feature = "planted-bugs")]
    const END: &'static str = "source";
    const HEARS: Rate = FROM_A_SINK;

    fn perform(&mut self, output: Output) -> Option<Output> {
        match output {
            Output::OpenLane(lane) => self.open(lane, None),
            Output::AdoptLane(lane) => {
                self.nexts.remove(&lane);
                match self.kept.remove(&lane) {
                    Some(stream) => self.open(lane, Some(stream)),
                    None => self.report_down(lane),
                }
            }
            Output::LeaveLane { lane, next } => {
                self.nexts.insert(next);
                // A worker that is gone has reported so.
                if let Some(leave) = self.lanes.get_mut(&lane).and_then(|worker| worker.leave.take()) {
                    let _ = leave.send(next);
                }
            }
            Output::CloseLane(lane) => {
                if let Some(worker) = self.lanes.remove(&lane) {
                    // The worker may have ended by itself; then it has reported so.
                    let _ = worker.stop.send(());
                } else if self.nexts.remove(&lane) {
                    self.kept.remove(&lane);
                    self.report_down(lane);
                }
            }
            Output::Engage { epoch, framing } => self.terms = (epoch, framing),
            Output::Ship(lane) => {
                if let Some(worker) = self.lanes.get(&lane) {
                    let _ = worker.ship.try_send(());
                }
            }
            Output::Send(dispatch) => {
                // A worker that is gone has reported, or will report, its end: the machine buries it.
                if let Some(worker) = self.lanes.get(&dispatch.lane) {
                    let _ = worker.work.try_send(dispatch);
                }
            }
            Output::Redial { fresh } => self.redial(fresh),
            other => return Some(other),
        }
        None
    }

    fn dials(&self, attempt: u32) -> bool {
        attempt == self.attempt
    }

    fn hold_lane(&mut self, _: LaneId, _: Stream) -> bool {
        false
    }

    fn keep(&mut self, lane: LaneId, stream: Stream) {
        if self.nexts.contains(&lane) {
            self.kept.insert(lane, stream);
        }
    }

    async fn stop(&mut self) {
        // Queues close: workers write what they have in hand, and end.
        self.lanes.clear();
        self.kept.clear();
        self.workers.shutdown().await;
    }
}

impl SourceHands {
    fn report_down(&self, lane: LaneId) {
        let events = self.events.clone();
        tokio::spawn(async move { events.send(Event::Input(Input::LaneDown { lane })).await });
    }

    fn open(&mut self, lane: LaneId, kept: Option<Stream>) {
        let (work, queue) = mpsc::channel(WORK);
        let (ship, shipped) = mpsc::channel(1);
        let (leave, left) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (epoch, framing) = self.terms;
        let terms = Terms { lane, epoch, framing };
        let orders = Orders { work: queue, ship: shipped, leave: left };
        let worker = run(Arc::clone(&self.shared), terms, kept, orders, self.events.clone(), stopped);
        self.workers.spawn_on(worker, self.threads.lanes());
        self.lanes.insert(lane, Worker { work, ship, leave: Some(leave), stop });
        while self.workers.try_join_next().is_some() {}
    }

    fn redial(&mut self, fresh: bool) {
        self.attempt += 1;
        let resume = (!fresh).then(|| Resume {
            session: self.shared.session,
            key: self.shared.key.clone(),
            attempt: self.attempt,
        });
        let dialer = self.shared.dialer.clone();
        let (events, attempt) = (self.events.clone(), self.attempt);
        let dial = tokio::spawn(async move {
            let event = match dialer.control(&dialer.capable, resume.as_ref()).await {
                Ok(made) => Event::ControlMade { stream: Box::new(TlsStream::Client(made.stream)), first: None },
                Err(error) => {
                    tracing::info!(%error, "the connection cannot be re-made yet");
                    Event::RedialFailed { session_unknown: session_unknown(&error) }
                }
            };
            let _ = events.send(Event::Redialled { attempt, event: Box::new(event) }).await;
        });
        // One at a time: the sink takes a later attempt for the end of an earlier one. spec: H-6
        if let Some(earlier) = self.dial.replace(dial.abort_handle()) {
            earlier.abort();
        }
    }
}
