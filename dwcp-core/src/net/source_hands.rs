//! What only a source's driver does: dial, and keep workers that send.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsStream;

use super::allowance::Rate;
use super::conduct::FROM_A_SINK;
use super::dial::{Resume, session_unknown};
use super::driver::{Event, Hands, Stream};
use super::endpoint::LaneThreads;
use super::lane_source::{SourceLanes, run};
use crate::session::{Dispatch, Output};
use crate::wire::LaneId;

/// Extents that may wait for a worker; the machine hands out two at a time.
const WORK: usize = 4;

pub(super) struct SourceHands {
    pub(super) shared: Arc<SourceLanes>,
    pub(super) threads: LaneThreads,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) workers: JoinSet<()>,
    pub(super) lanes: BTreeMap<LaneId, Worker>,
    /// Counts the connections of this session.
    pub(super) attempt: u32,
}

pub(super) struct Worker {
    work: mpsc::Sender<Dispatch>,
    stop: oneshot::Sender<()>,
}

impl Hands for SourceHands {
    #[cfg(feature = "planted-bugs")]
    const END: &'static str = "source";
    const HEARS: Rate = FROM_A_SINK;

    fn perform(&mut self, output: Output) -> Option<Output> {
        match output {
            Output::OpenLane(lane) => self.open(lane),
            Output::CloseLane(lane) => {
                if let Some(worker) = self.lanes.remove(&lane) {
                    // The worker may have ended by itself; then it has reported so.
                    let _ = worker.stop.send(());
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

    fn hold_lane(&mut self, _: LaneId, _: Stream) -> bool {
        false
    }

    async fn stop(&mut self) {
        // Queues close: workers write what they have in hand, and end.
        self.lanes.clear();
        self.workers.shutdown().await;
    }
}

impl SourceHands {
    fn open(&mut self, lane: LaneId) {
        let (work, queue) = mpsc::channel(WORK);
        let (stop, stopped) = oneshot::channel();
        let worker = run(Arc::clone(&self.shared), lane, queue, self.events.clone(), stopped);
        self.workers.spawn_on(worker, self.threads.handle());
        self.lanes.insert(lane, Worker { work, stop });
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
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = match dialer.control(resume.as_ref()).await {
                Ok(made) => Event::ControlMade { stream: Box::new(TlsStream::Client(made.stream)), first: None },
                Err(error) => {
                    tracing::info!(%error, "the connection cannot be re-made yet");
                    Event::RedialFailed { session_unknown: session_unknown(&error) }
                }
            };
            let _ = events.send(event).await;
        });
    }
}
