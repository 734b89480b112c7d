//! The end that gets the guest.
//!
//! ```text
//!               PAUSE complete, roots equal     Staged          Persisted: READY
//!   Receiving ──────────────────────────> Staging ──> Recording ──────────────> Ready
//!       ^                                                                          │
//!       └───────── an extent or a new PAUSE: the source took the pause back ───────┤
//!                                                                                  │ RUN
//!   Ended <── control closed ── Running <──── Persisted ──── Starting <────────────┘
//! ```

mod fencing;
mod lanes;
mod telling;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use self::lanes::Lane;
use self::telling::Telling;
#[cfg(feature = "net")]
pub(crate) use self::telling::{HAVE_BATCH, LEAST_WEIGHT, weight};
use super::allowance::Allowance;
use super::fingerprint::Fingerprint;
use super::handover::{Fencing, FencingEvent, TAKEN, Wish};
use super::leaves::{Leaves, Tree};
use super::planted::{Bug, Planted};
use super::record::{Record, Standing};
use super::source::SILENCE_LIMIT;
use super::stats::{Phase, Progress};
use super::{Applied, Input, Machine, Outcome, Output, Owner, SessionError, Time};
use crate::wire::limits::MAX_EXTENT_BYTES;
use crate::wire::{
    DeviceState, Digest, ErrorCode, FRAME_HEADER_BYTES, FencedLane, Frame, Framing, LaneId, Offer, Pause, Ready, Run,
    Running,
};

/// What a sink is told at the start.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Bulk lanes open at a time.
    pub lanes: u16,
    /// Bytes of extent frames that a lane may carry ahead of what is applied. At least one extent.
    pub lane_window: u64,
    /// Without a connection for so long before READY, what was received is thrown away.
    pub orphan_limit: Duration,
    /// After RUN, how long repeated questions are answered before the session is forgotten.
    pub linger: Duration,
    /// What lanes carry at first, as agreed in the handshake.
    pub framing: Framing,
    /// Both ends can carry messages, so that lanes can change their framing. As agreed in the handshake.
    pub messages: bool,
    /// Which of the offered dictionaries are held here: bit n for the n-th.
    pub dictionaries: u8,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            lanes: 16,
            lane_window: 8 * 1024 * 1024,
            orphan_limit: Duration::from_secs(60),
            linger: Duration::from_secs(30),
            framing: Framing::Extents,
            messages: false,
            dictionaries: 0,
        }
    }
}

/// Extents that are acknowledged together at most, and how long the first of them waits: an ack of
/// its own for each small extent would cost as much as the extent.
const ACK_EXTENTS: u32 = 4;
const ACK_DELAY: Duration = Duration::from_millis(2);

/// The end that gets the guest.
#[derive(Debug)]
pub struct Sink {
    config: SinkConfig,
    offer: Offer,
    /// Who offered, for the record.
    peer: Fingerprint,
    leaves: Arc<Leaves>,
    tree: Tree,
    state: State,
    lanes: BTreeMap<LaneId, Lane>,
    pause: Option<Pausing>,
    /// What READY promised, or will.
    promise: Option<Promise>,
    /// Which of the offered baselines its guest has the pages of, and their leaves.
    baseline: Option<(u8, Arc<Leaves>)>,
    telling: Telling,
    /// This node shuts down.
    retiring: bool,
    /// What this node wants lanes to carry.
    wish: Wish,
    fencing: Fencing,
    /// How often lanes may change what they carry. spec: V-3
    fence_turns: Allowance,
    /// Lanes that have reached their ends, with good connections.
    kept: Vec<FencedLane>,
    drain_until: Option<Time>,
    control_up: bool,
    control_since: Time,
    heard_at: Time,
    ack_at: Option<Time>,
    progress: Progress,
    outputs: VecDeque<Output>,
    planted: Planted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Receiving,
    Staging,
    Recording,
    Ready,
    Starting,
    RecordingRan,
    Running,
    Ended,
}

/// A PAUSE and the device state that has come.
#[derive(Debug)]
struct Pausing {
    pause: Pause,
    devices: BytesMut,
    /// The roots have been compared for this pause, or will not be.
    checked: bool,
}

impl Pausing {
    /// Whether this was sent after the PAUSE, whatever came first: nothing of it is counted in there. spec: S-9
    fn is_past(&self, applied: &Applied) -> bool {
        !self.pause.finals.iter().any(|&(lane, end)| lane == applied.lane && applied.seq < end)
    }
}

#[derive(Clone, Debug)]
struct Promise {
    attempt: u32,
    root: Digest,
    device_digest: Digest,
    /// An extent or a pause came after it was made: it no longer holds. spec: S-9
    void: bool,
}

impl Sink {
    /// A sink that takes this offer of `peer`. `leaves` is shared with the workers of its lanes.
    pub fn new(config: SinkConfig, offer: Offer, leaves: Arc<Leaves>, peer: Fingerprint) -> Self {
        let progress = Progress {
            guest_bytes: offer.layout.bytes(),
            framing: config.framing,
            epoch: offer.epoch,
            ..Progress::default()
        };
        Self {
            tree: Tree::new(&offer.layout),
            wish: Wish::default(),
            fencing: Fencing::new(offer.epoch, config.framing),
            fence_turns: Allowance::new(TAKEN, Time::default()),
            kept: Vec::new(),
            drain_until: None,
            config,
            offer,
            peer,
            leaves,
            state: State::Idle,
            lanes: BTreeMap::new(),
            pause: None,
            promise: None,
            baseline: None,
            telling: Telling::default(),
            retiring: false,
            control_up: true,
            control_since: Time::default(),
            heard_at: Time::default(),
            ack_at: None,
            progress,
            outputs: VecDeque::new(),
            planted: Planted::default(),
        }
    }

    /// Of the offered baselines its guest has the pages of this one, counted from 0: each page that is not held otherwise
    /// has the leaf that it has there, and the bytes before READY. To be said before the machine starts. spec: O-9
    #[must_use]
    pub fn with_baseline(mut self, number: u8, leaves: Arc<Leaves>) -> Self {
        self.leaves.assume(&leaves);
        self.progress.baseline = Some(number);
        self.baseline = Some((number, leaves));
        self
    }

    /// A sink that was READY, or ran, before a crash, and now answers RUN by its record. spec: S-8
    ///
    /// The offer gives name and layout; the root is the record's.
    pub fn recover(config: SinkConfig, offer: Offer, record: &Record) -> Self {
        let leaves = Arc::new(Leaves::new(&offer.layout));
        let mut sink = Self::new(config, offer, leaves, record.peer);
        sink.state = if record.standing == Standing::Ran { State::Running } else { State::Ready };
        sink.progress.phase = Phase::Handing;
        sink.progress.root = Some(record.root);
        sink.promise =
            Some(Promise { attempt: record.attempt, root: record.root, device_digest: Digest([0; 32]), void: false });
        sink
    }

    /// Plants a bug, for the proof that the simulator finds it.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_bug(mut self, bug: Option<Bug>) -> Self {
        self.planted = Planted::new(bug);
        self
    }

    fn start(&mut self, now: Time) {
        self.heard_at = now;
        if self.state == State::Idle {
            self.state = State::Receiving;
            self.progress.phase = Phase::Copying;
            self.telling.begin(now);
        }
    }

    fn frame(&mut self, now: Time, frame: Frame) -> Result<(), SessionError> {
        if !self.control_up {
            // It was silent for too long and taken for dead, but it lives.
            self.control_up(now);
        }
        self.heard_at = now;
        match frame {
            Frame::Offer(offer) => self.offered_again(now, &offer),
            Frame::Bury(bury) => {
                self.bury(bury.lane);
                Ok(())
            }
            Frame::Pause(pause) => self.paused(now, pause),
            Frame::DeviceState(part) => self.device_state(now, &part),
            Frame::Run(run) => self.run(&run),
            Frame::Fence(fence) => self.fenced(now, fence),
            Frame::Message(message) => self.message(message),
            // The source has given up (S-6): whatever it says now, the guest runs here. A doubt would be
            // ours alone, and no fault of the guest that is being started.
            Frame::Abort(_) | Frame::Error(_) if self.ran() => Ok(()),
            Frame::Abort(abort) => Err(SessionError::PeerAborted { reason: abort.reason, text: abort.text }),
            Frame::Error(error) => Err(SessionError::PeerReports(error)),
            Frame::Ping(ping) => {
                self.say(Frame::Pong(ping));
                Ok(())
            }
            Frame::Pong(_) => {
                self.telling.answered(now);
                Ok(())
            }
            other => Err(SessionError::unexpected(format!("a sink never receives {:?}", other.frame_type()))),
        }
    }

    /// The ACCEPT was lost with its connection. spec: O-3
    fn offered_again(&mut self, now: Time, offer: &Offer) -> Result<(), SessionError> {
        if *offer != self.offer || self.progress.pages_settled > 0 {
            return Err(SessionError::unexpected("a second OFFER that differs, or comes after extents"));
        }
        self.telling.begin(now);
        Ok(())
    }

    /// spec: S-1
    fn paused(&mut self, now: Time, pause: Pause) -> Result<(), SessionError> {
        let receiving = matches!(self.state, State::Receiving | State::Staging | State::Recording | State::Ready);
        if !receiving || !self.fencing.is_active() {
            return Err(SessionError::unexpected("PAUSE after RUN, or between FENCE and HANDOVER"));
        }
        if self.pause.as_ref().is_some_and(|old| pause.attempt <= old.pause.attempt) {
            return Err(SessionError::unexpected("PAUSE of an attempt that is over"));
        }
        if let Some(promise) = &mut self.promise {
            promise.void = true;
        }
        if self.state == State::Ready {
            self.state = State::Receiving;
            self.promise = None;
        }
        self.progress.phase = Phase::Committing;
        self.progress.peer_root = Some(pause.root);
        self.pause = Some(Pausing { pause, devices: BytesMut::new(), checked: false });
        self.acknowledge();
        self.check_complete(now)
    }

    /// spec: S-2
    fn device_state(&mut self, now: Time, part: &DeviceState) -> Result<(), SessionError> {
        let Some(pausing) = self.pause.as_mut().filter(|pausing| pausing.pause.attempt == part.attempt) else {
            return Err(SessionError::unexpected("DEVICE_STATE without its PAUSE"));
        };
        let have = u64::try_from(pausing.devices.len()).unwrap_or(u64::MAX);
        let more = u64::try_from(part.bytes.len()).unwrap_or(u64::MAX);
        if part.offset != have || have + more > pausing.pause.device_bytes {
            return Err(SessionError::unexpected("DEVICE_STATE out of order or beyond its length"));
        }
        pausing.devices.extend_from_slice(&part.bytes);
        self.check_complete(now)
    }

    /// Once every extent and all device state are here: compare the roots, then stage. spec: S-3
    fn check_complete(&mut self, _: Time) -> Result<(), SessionError> {
        if self.state != State::Receiving {
            return Ok(());
        }
        let Some(pausing) = self.pause.as_mut().filter(|pausing| !pausing.checked) else { return Ok(()) };
        let lanes = &self.lanes;
        let arrived = |&(id, end): &(LaneId, u64)| lanes.get(&id).is_some_and(|lane| lane.applied >= end);
        let have = u64::try_from(pausing.devices.len()).unwrap_or(u64::MAX);
        if have < pausing.pause.device_bytes || !pausing.pause.finals.iter().all(|end| end.1 == 0 || arrived(end)) {
            return Ok(());
        }
        pausing.checked = true;
        let root = self.tree.root(&self.leaves);
        self.progress.root = Some(root);
        let device_digest = Digest(*blake3::hash(&pausing.devices).as_bytes());
        let (code, what) = if root != pausing.pause.root {
            (ErrorCode::RootMismatch, "the roots of source and sink differ")
        } else if device_digest != pausing.pause.device_digest {
            (ErrorCode::DeviceDigest, "the digest of the device state does not match")
        } else {
            let devices = Bytes::copy_from_slice(&pausing.devices);
            self.promise = Some(Promise { attempt: pausing.pause.attempt, root, device_digest, void: false });
            self.state = State::Staging;
            self.outputs.push_back(Output::Stage { devices });
            return Ok(());
        };
        Err(SessionError::Integrity { code, lane: LaneId::CONTROL, position: 0, what: what.into() })
    }

    /// The promise holds, or the source took its pause back meanwhile. spec: S-9
    fn promise_holds(&mut self, now: Time) -> Result<bool, SessionError> {
        if self.promise.as_ref().is_some_and(|promise| !promise.void) {
            return Ok(true);
        }
        self.promise = None;
        self.state = State::Receiving;
        self.check_complete(now)?;
        Ok(false)
    }

    fn staged(&mut self, now: Time) -> Result<(), SessionError> {
        if self.state == State::Staging && self.promise_holds(now)? {
            self.state = State::Recording;
            self.persist(Standing::Ready);
        }
        Ok(())
    }

    fn persist(&mut self, standing: Standing) {
        let Some(promise) = &self.promise else { return };
        let Promise { attempt, root, .. } = *promise;
        self.outputs.push_back(Output::Persist(Record::of(&self.offer, attempt, root, self.peer, standing)));
    }

    fn persisted(&mut self, now: Time) -> Result<(), SessionError> {
        match self.state {
            State::Recording => return self.recorded(now),
            State::RecordingRan => {
                self.state = State::Running;
                self.say_running();
            }
            _ => {}
        }
        Ok(())
    }

    /// READY is durable: it may be said, if it still holds.
    fn recorded(&mut self, now: Time) -> Result<(), SessionError> {
        if self.promise_holds(now)? {
            self.state = State::Ready;
            self.progress.phase = Phase::Handing;
            self.acknowledge();
            self.say_ready();
        }
        Ok(())
    }

    /// spec: S-3
    fn say_ready(&mut self) {
        let Some(Promise { attempt, root, device_digest, .. }) = self.promise.clone().filter(|_| self.control_up)
        else {
            return;
        };
        let Offer { transfer, epoch, .. } = self.offer;
        self.say(Frame::Ready(Ready { transfer, epoch, attempt, root, device_digest }));
    }

    /// spec: S-5, S-7
    fn run(&mut self, run: &Run) -> Result<(), SessionError> {
        let Offer { transfer, epoch, .. } = self.offer;
        let promised = self
            .promise
            .as_ref()
            .is_some_and(|promise| !promise.void && promise.attempt == run.attempt && promise.root == run.root);
        if run.transfer != transfer || run.epoch != epoch || !promised {
            return Err(SessionError::unexpected("RUN without READY, or of another transfer, epoch or root"));
        }
        match self.state {
            State::Ready => self.start_guest(),
            State::Starting | State::RecordingRan | State::Running if self.planted.has(Bug::DoubleCommit) => {
                self.start_guest();
            }
            State::Starting | State::RecordingRan | State::Running if self.planted.has(Bug::RunDuplicated) => {
                return Err(SessionError::unexpected("RUN twice"));
            }
            State::Running => self.say_running(),
            State::Starting | State::RecordingRan => {}
            _ => return Err(SessionError::unexpected("RUN before READY")),
        }
        Ok(())
    }

    fn start_guest(&mut self) {
        self.state = State::Starting;
        self.close_lanes();
        self.outputs.push_back(Output::Run);
    }

    fn started(&mut self) {
        if self.state == State::Starting {
            self.state = State::RecordingRan;
            self.persist(Standing::Ran);
        }
    }

    fn say_running(&mut self) {
        if self.control_up {
            let Offer { transfer, epoch, .. } = self.offer;
            self.say(Frame::Running(Running { transfer, epoch }));
        }
    }

    fn control_down(&mut self, now: Time, clean: bool) {
        if !self.control_up {
            return;
        }
        self.control_up = false;
        self.control_since = now;
        if clean && self.state == State::Running {
            return self.finish(Owner::Sink, None);
        }
        if self.promised() {
            self.outputs.push_back(Output::Adrift);
        }
        self.close_lanes();
        // The source closes those connections, too.
        self.kept.clear();
    }

    /// What has come whole is handed over if it can be; the rest is kept for the next process. spec: R-3
    fn retire(&mut self) {
        self.retiring = true;
        if self.state == State::Running && !self.control_up {
            // Who asks later is answered by the record.
            self.finish(Owner::Sink, None);
        }
    }

    /// A pause that the source takes back is none to wait for: it says the next one to the next process. spec: R-3
    fn retired(&self) -> Result<(), SessionError> {
        let paused = self.pause.as_ref().is_some_and(|pausing| !pausing.checked);
        if self.retiring && matches!(self.state, State::Idle | State::Receiving) && !paused {
            return Err(SessionError::ShuttingDown);
        }
        Ok(())
    }

    /// A lane 0 that fell silent is lost, too (T-2), whatever the kernel says. spec: S-10, O-6
    fn superseded(&mut self, again: bool) -> Result<(), SessionError> {
        if self.control_up {
            return Ok(());
        }
        match self.state {
            State::Ready if !again => Ok(()),
            State::Starting | State::RecordingRan | State::Ended => Ok(()),
            // Who asks later is answered by the record.
            State::Running => {
                self.finish(Owner::Sink, None);
                Ok(())
            }
            _ => Err(SessionError::Superseded),
        }
    }

    fn control_up(&mut self, now: Time) {
        self.control_up = true;
        self.say_wish();
        self.control_since = now;
        self.heard_at = now;
        self.progress.reconnects += 1;
    }

    /// Whether RUN has been obeyed, or is being.
    fn ran(&self) -> bool {
        matches!(self.state, State::Starting | State::RecordingRan | State::Running)
    }

    /// Whether READY may have been sent: only the source, or an operator, may end it now. spec: S-10
    fn promised(&self) -> bool {
        self.state == State::Ready
    }

    fn fail(&mut self, error: SessionError) {
        if self.state == State::Ended {
            return;
        }
        // A source that was told READY finds the promise again at the next process: nothing is taken back.
        let kept = self.promised() && matches!(error, SessionError::ShuttingDown);
        if self.control_up
            && !kept
            && let Some(frame) = error.frame()
        {
            self.say(frame);
        }
        let by_source = matches!(error, SessionError::PeerAborted { .. } | SessionError::Superseded);
        match self.state {
            State::Running | State::RecordingRan => self.finish(Owner::Sink, Some(error)),
            State::Starting => self.finish(Owner::InDoubt, Some(error)),
            _ if self.promised() && !by_source => self.finish(Owner::InDoubt, Some(error)),
            _ => {
                // The workers stop before what they wrote is thrown away.
                self.close_lanes();
                // The record goes first: a crash must not leave a promise of what is thrown away.
                self.outputs.push_back(Output::Forget(self.offer.transfer));
                self.outputs.push_back(if error.spares_pages() { Output::Park } else { Output::Discard });
                self.finish(Owner::Source, Some(error));
            }
        }
    }

    fn finish(&mut self, owner: Owner, error: Option<SessionError>) {
        self.close_lanes();
        self.state = State::Ended;
        self.progress.phase = Phase::Ended;
        self.outputs.push_back(Output::Finished(Outcome { owner, error }));
    }

    fn say(&mut self, frame: Frame) {
        self.outputs.push_back(Output::Control(frame));
    }

    fn tick(&mut self, now: Time) -> Result<(), SessionError> {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.acknowledge();
        }
        self.end_drain(now);
        if self.control_up {
            if now.since(self.heard_at) > SILENCE_LIMIT {
                self.control_down(now, false);
            } else if self.telling.is_due(now) {
                self.tell_held(now);
            }
            return Ok(());
        }
        let silence = now.since(self.control_since);
        match self.state {
            State::Running if silence > self.config.linger => {
                self.finish(Owner::Sink, None);
                Ok(())
            }
            // READY was promised: wait for the source, or for an operator.
            State::Ready | State::Starting | State::RecordingRan | State::Running | State::Ended => Ok(()),
            _ if silence > self.config.orphan_limit => Err(SessionError::Unreachable { silence }),
            _ => Ok(()),
        }
    }

    fn step(&mut self, now: Time, input: Input) -> Result<(), SessionError> {
        match input {
            Input::Start => self.start(now),
            Input::Frame(frame) => self.frame(now, frame)?,
            Input::ControlDown { clean } => self.control_down(now, clean || self.retiring),
            Input::ControlUp => {
                self.control_up(now);
                self.fencing_step(now, FencingEvent::Back)?;
            }
            Input::LaneJoin { lane } => self.lane_join(lane),
            Input::LaneDown { lane } => self.lane_down(now, lane)?,
            Input::LaneEnded(ended) => self.lane_ended(ended),
            Input::Cleared => self.cleared(now)?,
            Input::Raised(epoch) => self.fencing_step(now, FencingEvent::Durable(epoch))?,
            Input::Prefer(wish) => self.prefer(wish)?,
            Input::Applied(applied) => {
                // In the pause there is no time to hash a whole guest's tree.
                self.tree.keep_up(&self.leaves);
                self.applied(now, &applied)?;
            }
            Input::LaneFault { fault, .. } => return Err(fault),
            Input::Staged => self.staged(now)?,
            Input::Running => self.started(),
            Input::Persisted => self.persisted(now)?,
            // The guest runs all the same, and the record says READY: asked again after a crash, it is
            // run again, which succeeds. spec: S-8
            Input::PersistFailed { text } if self.state == State::RecordingRan => {
                self.say_running();
                self.finish(Owner::Sink, Some(SessionError::Record { text }));
                return Ok(());
            }
            Input::PersistFailed { text } => return Err(SessionError::Record { text }),
            Input::GuestFailed(error) => return Err(error.into()),
            // After RUN it is too late.
            Input::Cancel if self.state == State::Running && self.retiring => self.finish(Owner::Sink, None),
            Input::Cancel if self.ran() => {}
            Input::Cancel if self.retiring => return Err(SessionError::ShuttingDown),
            Input::Cancel => return Err(SessionError::Cancelled),
            Input::Retire => self.retire(),
            Input::Superseded { again } => self.superseded(again)?,
            Input::Tick
            | Input::SessionLost
            | Input::LaneUp { .. }
            | Input::Encoded(_)
            | Input::Harvested { .. }
            | Input::Recalled { .. }
            | Input::Paused
            | Input::Devices(_)
            | Input::Retracted
            | Input::RetractFailed { .. }
            | Input::Prepared(_)
            | Input::Compression(_)
            | Input::Bandwidth(_) => {}
        }
        self.retired()?;
        self.tick(now)
    }
}

/// Bytes of the largest extent frame, header included.
fn largest_frame() -> u64 {
    u64::try_from(MAX_EXTENT_BYTES + FRAME_HEADER_BYTES).unwrap_or(u64::MAX)
}

impl Machine for Sink {
    fn handle(&mut self, now: Time, input: Input) {
        if self.state == State::Ended {
            return;
        }
        if let Err(error) = self.step(now, input) {
            self.fail(error);
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        if self.state == State::Ended {
            return None;
        }
        let control = if self.control_up {
            [Some(self.heard_at + SILENCE_LIMIT), self.telling.due_at()].into_iter().flatten().min()
        } else {
            match self.state {
                State::Running => Some(self.control_since + self.config.linger),
                State::Ready | State::Starting | State::RecordingRan => None,
                _ => Some(self.control_since + self.config.orphan_limit),
            }
        };
        [control, self.ack_at, self.drain_deadline()]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at + Duration::from_micros(1))
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
