//! The one driver loop: feeds a machine, does what it asks for.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_rustls::TlsStream;

use super::clock::Clock;
use super::conduct::Accuser;
use super::control::ControlLink;
use super::records::Records;
use super::socket::Socket;
use super::statistics::Ledger;
use crate::extent::MAX_EXTENT_PAGES;
use crate::flag::{FlagSnapshot, FlagSource, FlagWatch};
use crate::guest::{DirtyMap, Guest, GuestError};
use crate::session::allowance::Rate;
use crate::session::handover::Wish;
use crate::session::{
    Fingerprint, Input, Leaves, Machine, Outcome, Output, Owner, Progress, Record, SessionError, Time,
};
use crate::wire::{FenceEpoch, Frame, LaneId, TransferId};

/// A TLS connection of either side.
pub(super) type Stream = TlsStream<Socket>;

/// Everything that can happen to a session, in the order in which it happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A frame on the control connection with this number.
    Frame { generation: u64, frame: Frame },
    /// That connection is over, perhaps because of what came on it.
    ControlLost { generation: u64, clean: bool, fault: Option<SessionError> },
    /// The control connection is re-made; with a first frame if it was a question about the transfer.
    ControlMade { stream: Box<Stream>, first: Option<Frame> },
    /// It could not be re-made.
    RedialFailed { session_unknown: bool },
    /// What became of the dial of this number; of one that another has taken the place of nothing is believed.
    Redialled { attempt: u32, event: Box<Event> },
    /// Sink: a connection with a valid proof wants to be a lane.
    Join { lane: LaneId, stream: Box<Stream> },
    /// A connection whose lane has ended, kept for another.
    Kept { lane: LaneId, stream: Box<Stream> },
    /// Sink: somebody else wants its place; ends it if its source is lost. Answers whether it ends. `again`: it is its
    /// own source, with a new session.
    Supersede { again: bool, ends: oneshot::Sender<bool> },
    /// From a worker, a guest or the embedder: passed on as it is.
    Input(Input),
}

/// Asks a session for its place, and returns whether it ends for that, or has ended.
pub(super) async fn supersede(session: &mpsc::Sender<Event>, again: bool) -> bool {
    let (ends, answer) = oneshot::channel();
    // A session that is over drops the question, or hands it back: kept here, it would wait for itself.
    drop(session.send(Event::Supersede { again, ends }).await);
    answer.await.unwrap_or(true)
}

/// Events of a session that may wait; workers wait when the driver is behind.
pub(super) const EVENTS: usize = 256;

/// What only one of the two ends does.
pub(super) trait Hands: Send + 'static {
    /// Its name, for failpoints.
    #[cfg(feature = "planted-bugs")]
    const END: &'static str;
    /// Control frames that the other end has use for.
    const HEARS: Rate;

    /// Does what the machine asks for, or gives it back when it is common to both ends.
    fn perform(&mut self, output: Output) -> Option<Output>;

    /// A connection wants to be a lane. False when this end takes none.
    fn hold_lane(&mut self, lane: LaneId, stream: Stream) -> bool;

    /// Whether the dial of this number is the one that counts.
    fn dials(&self, attempt: u32) -> bool {
        let _ = attempt;
        false
    }

    /// A connection whose lane has ended waits to be this one.
    fn keep(&mut self, lane: LaneId, stream: Stream);

    /// Stops all workers; returns when they have ended.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;
}

/// One session's driver.
pub(super) struct Driver<M, H> {
    pub(super) machine: M,
    pub(super) hands: H,
    pub(super) control: Option<ControlLink>,
    pub(super) generation: u64,
    pub(super) accuser: Accuser,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) queue: mpsc::Receiver<Event>,
    pub(super) chores: Chores,
    pub(super) clock: Clock,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) published: Time,
    pub(super) flags: Flagged,
    pub(super) ledger: Ledger,
}

/// What this node may do now, and news of it.
pub(super) struct Flagged {
    /// A source that nobody holds tells nothing.
    _source: Arc<dyn FlagSource>,
    watch: FlagWatch,
}

impl Flagged {
    pub(super) fn by(source: &Arc<dyn FlagSource>) -> Self {
        Self { watch: source.watch(), _source: Arc::clone(source) }
    }
}

/// How often watchers are told, at most.
const PUBLISH: Duration = Duration::from_millis(50);
/// How long the last chores and workers may take before the session is reported without them.
const WIND_UP: Duration = Duration::from_secs(30);

impl<M: Machine + Send, H: Hands> Driver<M, H> {
    /// Runs the session to its end. Its place is free when nothing of it is at work any more, which may be later.
    pub(super) async fn run<P: Send + 'static>(mut self, first: Vec<Input>, place: P) -> Outcome {
        let mut outcome = None;
        let flags = self.flags.watch.latest();
        outcome = outcome.or(self.obey(&flags));
        for input in std::iter::once(Input::Start).chain(first) {
            outcome = outcome.or_else(|| self.feed(input));
        }
        let outcome = loop {
            if let Some(outcome) = outcome {
                break outcome;
            }
            outcome = self.next().await;
        };
        self.accuser.judge(&outcome);
        self.ledger.close(&outcome, self.machine.progress());
        self.wind_up(place).await;
        failpoint!(wound_up, H::END);
        outcome
    }

    /// Waits for an event or the machine's deadline.
    async fn next(&mut self) -> Option<Outcome> {
        let deadline = self.machine.deadline().map(|at| self.clock.instant(at));
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = self.queue.recv() => match event {
                Some(event) => self.react(event),
                // Never: this driver holds a sender itself.
                None => Some(Outcome { owner: Owner::Source, error: Some(SessionError::Cancelled) }),
            },
            () = timer => self.feed(Input::Tick),
            flags = self.flags.watch.changed() => self.obey(&flags),
        }
    }

    fn obey(&mut self, flags: &FlagSnapshot) -> Option<Outcome> {
        self.ledger.flags(flags.seen().map_or_else(|| self.clock.now(), |seen| self.clock.time(seen)), flags);
        self.feed(Input::Compression(flags.compression())).or_else(|| self.feed(Input::Prefer(Wish::of(flags))))
    }

    fn react(&mut self, event: Event) -> Option<Outcome> {
        let current = self.control.as_ref().map(|control| control.generation);
        match event {
            Event::Frame { generation, frame } if current == Some(generation) => self.feed(Input::Frame(frame)),
            Event::ControlLost { generation, clean, fault } if current == Some(generation) => {
                if let Some(fault) = fault {
                    return self.feed(Input::LaneFault { lane: LaneId::CONTROL, fault });
                }
                self.control = None;
                self.feed(Input::ControlDown { clean })
            }
            Event::Frame { .. } | Event::ControlLost { .. } => None,
            Event::ControlMade { stream, first } => self.control_made(*stream, first),
            Event::Redialled { attempt, event } if self.hands.dials(attempt) => self.react(*event),
            Event::Redialled { .. } => None,
            Event::RedialFailed { session_unknown: true } => self.feed(Input::SessionLost),
            Event::RedialFailed { session_unknown: false } => self.feed(Input::ControlDown { clean: false }),
            Event::Join { lane, stream } => {
                if self.hands.hold_lane(lane, *stream) {
                    self.feed(Input::LaneJoin { lane })
                } else {
                    None
                }
            }
            Event::Kept { lane, stream } => {
                self.hands.keep(lane, *stream);
                None
            }
            Event::Supersede { again, ends } => {
                let outcome = self.feed(Input::Superseded { again });
                let _ = ends.send(outcome.is_some());
                outcome
            }
            Event::Input(input) => self.feed(input),
        }
    }

    fn control_made(&mut self, stream: Stream, first: Option<Frame>) -> Option<Outcome> {
        // The peer has given the old connection up even if we have not noticed yet.
        let outcome = if self.control.take().is_some() { self.feed(Input::ControlDown { clean: false }) } else { None };
        if outcome.is_some() {
            return outcome;
        }
        self.generation += 1;
        self.control = Some(ControlLink::start(stream, self.generation, H::HEARS, self.events.clone()));
        self.feed(Input::ControlUp).or_else(|| first.and_then(|frame| self.feed(Input::Frame(frame))))
    }

    /// One input, and all that follows from it.
    fn feed(&mut self, input: Input) -> Option<Outcome> {
        let now = self.clock.now();
        self.ledger.hears(now, &input, self.machine.progress());
        self.machine.handle(now, input);
        self.ledger.observe(now, self.machine.progress());
        let outcome = self.drain(now);
        // Who waits for a hand-over, or for a promise, waits for nothing else.
        let told = |progress: &Progress| (progress.handovers, progress.phase);
        let news = told(self.machine.progress()) != told(&self.progress.borrow());
        if outcome.is_some() || news || now.since(self.published) >= PUBLISH {
            self.published = now;
            self.ledger.tell(self.machine.progress());
            self.progress.send_replace(self.ledger.complete(self.machine.progress()));
        }
        outcome
    }

    fn drain(&mut self, now: Time) -> Option<Outcome> {
        let mut finished = None;
        let mut mute = false;
        let mut refused = None;
        while let Some(output) = self.machine.poll() {
            failpoint!(performs, &output, H::END);
            if matches!(output, Output::Redial { .. }) {
                // The machine has given it up, silent as it may be: what it ends with later is no news.
                self.control = None;
            }
            self.ledger.performs(now, &output);
            match self.hands.perform(output) {
                Some(Output::Control(frame)) => {
                    mute |= self.control.as_ref().is_some_and(|control| !control.send(frame));
                }
                Some(Output::Finished(outcome)) => finished = Some(outcome),
                Some(chore) => {
                    let refusal = self.chores.queue(chore);
                    refused = refused.or(refusal);
                }
                None => {}
            }
        }
        if let Some(refusal) = refused.filter(|_| finished.is_none()) {
            // What was asked for will never be answered: the session cannot go on.
            return self.feed(refusal);
        }
        if mute && finished.is_none() {
            self.control = None;
            return self.feed(Input::ControlDown { clean: false });
        }
        finished
    }

    /// Lets the last frames, the guest's last chores and the workers come to their ends.
    async fn wind_up<P: Send + 'static>(self, place: P) {
        let Self { mut hands, control, chores, queue, .. } = self;
        // Workers that report to a closed queue end by themselves.
        drop(queue);
        let mut ending = Box::pin(async move {
            if let Some(control) = control {
                control.close().await;
            }
            hands.stop().await;
            chores.finish().await;
            drop(place);
        });
        if tokio::time::timeout(WIND_UP, &mut ending).await.is_err() {
            tracing::warn!("the session's workers did not end in time; its transfer has its place until they have");
            // What they do to an image on its way must not be done to what another session made of it. spec: O-5
            tokio::spawn(ending);
        }
    }
}

/// What may block: the guest's own methods, and records. Done one after the other, in the order in
/// which they were asked for, on a thread that may wait; a session that asks for nothing has none.
#[derive(Debug)]
pub(super) struct Chores {
    list: Arc<List>,
    /// Found no place, and must be done all the same before the session is over: a guest that nobody
    /// resumes stands still for ever. A session that lost a chore is at its end, so these are few.
    late: Vec<Output>,
}

/// Chores that may wait. A machine asks for three at a time at most.
const CHORES: usize = 64;

/// What is to be done, and for whom.
struct List {
    guest: Arc<dyn Guest>,
    records: Records,
    events: mpsc::Sender<Event>,
    waiting: Mutex<Waiting>,
    /// Told when nobody is busy any more.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    chores: VecDeque<Output>,
    /// A thread is doing them.
    busy: bool,
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.waiting().fmt(f)
    }
}

impl Chores {
    pub(super) fn start(guest: Arc<dyn Guest>, records: Records, events: mpsc::Sender<Event>) -> Self {
        let list = List { guest, records, events, waiting: Mutex::default(), idle: Notify::new() };
        Self { list: Arc::new(list), late: Vec::new() }
    }

    /// Asks for a chore. When too many wait already, how the machine is told that it will not be done.
    fn queue(&mut self, chore: Output) -> Option<Input> {
        let chore = self.list.push(chore, CHORES)?;
        let stuck = GuestError::Stuck { waiting: CHORES };
        match chore {
            // Not done for certain, which the source must know: it has not given up.
            Output::Persist(_) | Output::RaiseFence { .. } => {
                return Some(Input::PersistFailed { text: stuck.to_string() });
            }
            Output::Retract(_) => return Some(Input::RetractFailed { text: stuck.to_string() }),
            Output::Resume | Output::Discard | Output::Park | Output::Forget(_) => self.late.push(chore),
            _ => {}
        }
        Some(Input::GuestFailed(stuck))
    }

    /// Returns when all is done.
    async fn finish(self) {
        for chore in self.late {
            let _ = self.list.push(chore, usize::MAX);
        }
        loop {
            let idle = self.list.idle.notified();
            if !self.list.waiting().busy {
                return;
            }
            idle.await;
        }
    }
}

impl List {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a chore at the end; gives it back when so many wait already.
    fn push(self: &Arc<Self>, chore: Output, most: usize) -> Option<Output> {
        let mut waiting = self.waiting();
        if waiting.chores.len() >= most {
            return Some(chore);
        }
        waiting.chores.push_back(chore);
        if !waiting.busy {
            waiting.busy = true;
            let list = Arc::clone(self);
            tokio::task::spawn_blocking(move || list.work());
        }
        None
    }

    fn work(&self) {
        while let Some(chore) = self.next() {
            failpoint!(chore_begins, &chore);
            let done = catch_unwind(AssertUnwindSafe(|| perform(self.guest.as_ref(), &self.records, chore)));
            failpoint!(chore_ended);
            let panicked = |_| Some(Input::GuestFailed(GuestError::Other("the guest panicked".into())));
            if let Some(input) = done.unwrap_or_else(panicked) {
                // A session that is over does not want to know.
                let _ = self.events.blocking_send(Event::Input(input));
            }
        }
    }

    fn next(&self) -> Option<Output> {
        let mut waiting = self.waiting();
        let next = waiting.chores.pop_front();
        if next.is_none() {
            waiting.busy = false;
            self.idle.notify_waiters();
        }
        next
    }
}

fn perform(guest: &dyn Guest, records: &Records, chore: Output) -> Option<Input> {
    let answer = match chore {
        Output::Harvest => {
            let mut dirty = DirtyMap::new(guest.layout());
            guest.harvest(&mut dirty).map(|pending| Input::Harvested { dirty, pending })
        }
        Output::Recall { held, baseline } => {
            if let Some(baseline) = baseline {
                held.assume(&baseline);
            }
            Ok(Input::Recalled { same: recall(guest, &held) })
        }
        Output::Pause => guest.pause().map(|()| Input::Paused),
        Output::SaveDevices => guest.save_devices().map(|state| Input::Devices(state.into())),
        Output::Stage { devices } => guest.load_devices(&devices).and_then(|()| guest.stage()).map(|()| Input::Staged),
        Output::Run => guest.resume().map(|()| Input::Running),
        Output::Resume => {
            if let Err(error) = guest.resume() {
                tracing::error!(%error, "the guest cannot be resumed at the source");
            }
            return None;
        }
        Output::Discard => {
            guest.discard();
            return None;
        }
        Output::Park => {
            guest.park();
            return None;
        }
        Output::Clear => guest.clear().map(|()| Input::Cleared),
        Output::RaiseFence { peer, least } => return Some(raise(records, peer, least)),
        Output::Persist(record) => return Some(persist(records, &record)),
        Output::Retract(transfer) => return Some(retract(records, transfer)),
        Output::Forget(transfer) => {
            forget(records, transfer);
            return None;
        }
        _ => return None,
    };
    Some(answer.unwrap_or_else(Input::GuestFailed))
}

/// The pages that a guest knows to have the leaves that the sink holds.
fn recall(guest: &dyn Guest, held: &Leaves) -> DirtyMap {
    let layout = guest.layout();
    let mut same = DirtyMap::new(layout);
    for (id, region) in layout.regions() {
        let mut left = region.first..region.first + region.pages;
        while let Some((first, leaves)) = held.run_within(left.clone(), MAX_EXTENT_PAGES) {
            for (page, leaf) in (first.0 - region.first..).zip(&leaves) {
                if guest.recall(id, page).as_ref() == Some(leaf) {
                    same.mark(id, page, 1);
                }
            }
            left.start = first.0 + u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        }
    }
    same
}

fn raise(records: &Records, peer: Fingerprint, least: FenceEpoch) -> Input {
    match records.raise_fence(peer, least) {
        Ok(epoch) => Input::Raised(epoch),
        Err(error) => Input::PersistFailed { text: error.to_string() },
    }
}

fn persist(records: &Records, record: &Record) -> Input {
    match records.store(record) {
        Ok(()) => Input::Persisted,
        Err(error) => Input::PersistFailed { text: error.to_string() },
    }
}

fn retract(records: &Records, transfer: TransferId) -> Input {
    match records.retract(transfer) {
        Ok(()) => Input::Retracted,
        Err(error) => Input::RetractFailed { text: error.to_string() },
    }
}

fn forget(records: &Records, transfer: TransferId) {
    if let Err(error) = records.forget(transfer) {
        tracing::warn!(%error, "a record that is no longer needed cannot be removed");
    }
}
