//! The end that has the guest.
//!
//! ```text
//!             Accept          harvested, rest fits       Paused        all sent
//!   Offered ─────────> Copying ─────────────────> Pausing ───────> Draining ───────> Sealed
//!                         ^                          │                │                │ READY, roots equal
//!                         └────── link lost: the guest runs again ────┴────────────────┤
//!                                                                                      v
//!   Ended <────────── RUNNING ────────── GaveUp <────────── Persisted ────────── GivingUp
//!     ^                                    │  point of no return:                   │ PersistFailed
//!     │                                       never runs the guest again             v
//!     ├─────────────────── Retracted: the guest runs at the source ──────────── Retracting
//!     └── cancelled, failed, not converging: the guest runs at the source
//! ```

mod accepted;
mod control;
mod deferral;
mod lanes;
mod leave;
mod pace;
mod rounds;
mod send;
mod switch_over;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use self::control::Control;
pub(super) use self::control::SILENCE_LIMIT;
use self::deferral::Ratio;
use self::leave::LeaveClock;
use self::pace::{Backoff, Pace};
use self::rounds::Round;
use self::switch_over::SwitchOver;
use super::allowance::Allowance;
use super::budget::{Budget, EffortPolicy};
use super::converge::{Converge, OnStall};
use super::dirty::{DirtySet, PageBits};
use super::fingerprint::Fingerprint;
use super::handover::{BEGUN, Leaving, LeavingEvent};
use super::hot::HotPages;
use super::lanes::Lanes;
use super::leaves::{Leaves, Tree};
#[cfg(feature = "planted-bugs")]
use super::planted::Bug;
use super::planted::Planted;
use super::record::Record;
use super::shadow::{Shadow, ShadowFill};
use super::stats::{Phase, Progress};
use super::{Input, Machine, Outcome, Output, Owner, SessionError, Time};
use crate::extent::Layout;
use crate::wire::{Buried, ErrorFrame, Frame, Framing, Offer, PeerLimits, Run};

/// What a source is told at the start.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Bulk lanes to keep open. The peer may want fewer.
    pub lanes: u16,
    /// What the sink takes, as agreed in the handshake.
    pub limits: PeerLimits,
    /// The guest may stand still for this long.
    pub downtime_budget: Duration,
    /// Pages that a live guest writes all the time are left for the pause, as far as half the downtime budget goes; without
    /// that all that is dirty is sent in each round, which takes more bytes and may make the pause shorter.
    pub defer_hot: bool,
    /// What to do when it would stand still longer.
    pub on_stall: OnStall,
    /// How long rounds may fail to shrink before that is decided.
    pub stall_patience: Duration,
    /// Once paused, the guest runs again at the source if the sink is not ready within this: longer than `downtime_budget`,
    /// which may be exceeded by a little.
    pub pause_limit: Duration,
    /// Without a connection for so long the transfer ends, if the source has not given up.
    pub reconnect_limit: Duration,
    /// How hard to compress.
    pub effort: EffortPolicy,
    /// Extents that are encoded at a time at most, by as many threads; an endpoint puts in how many it has.
    pub encoders: u16,
    /// Bytes of the source's copy of acknowledged pages, for deltas. 0: no deltas.
    pub shadow_bytes: u64,
    /// Which pages it holds.
    pub shadow_fill: ShadowFill,
    /// Bytes per second on all lanes together, or no limit.
    pub bandwidth: Option<NonZeroU64>,
    /// What lanes carry at first, as agreed in the handshake.
    pub framing: Framing,
    /// Both ends can carry messages, so that lanes can change their framing. As agreed in the handshake.
    pub messages: bool,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            lanes: 4,
            limits: PeerLimits { extent_pages: 256, lanes: 64 },
            downtime_budget: Duration::from_millis(300),
            defer_hot: true,
            on_stall: OnStall::Abort,
            stall_patience: Duration::from_secs(30),
            pause_limit: Duration::from_secs(10),
            reconnect_limit: Duration::from_secs(30),
            effort: EffortPolicy::Auto,
            encoders: 2,
            shadow_bytes: 0,
            shadow_fill: ShadowFill::Hot,
            bandwidth: None,
            framing: Framing::Extents,
            messages: false,
        }
    }
}

/// Limits are broken when they are exceeded, so a deadline is just after its limit.
const JUST_AFTER: Duration = Duration::from_micros(1);

/// The end that has the guest.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    offer: Offer,
    /// To whom, for the record.
    peer: Fingerprint,
    layout: Layout,
    leaves: Arc<Leaves>,
    tree: Tree,
    state: State,
    control: Control,
    dirty: DirtySet,
    /// Pages whose leaf is what the sink holds. At the start all are: zeros. spec: D-4
    known: PageBits,
    /// Pages that have been handed to a lane before.
    sent: PageBits,
    hot: HotPages,
    ratio: Ratio,
    shadow: Shadow,
    lanes: Lanes,
    redial_lanes: Backoff,
    budget: Budget,
    converge: Converge,
    pace: Pace,
    round: Round,
    switch: SwitchOver,
    leave: Leaving,
    leave_clock: LeaveClock,
    /// How often lanes may change what they carry. spec: V-2
    leave_turns: Allowance,
    progress: Progress,
    outputs: VecDeque<Output>,
    /// Those offered that the sink holds, a bit each.
    dictionaries: u8,
    /// What a guest of this layout has of each baseline that is offered. spec: O-9
    baselines: Vec<Arc<Leaves>>,
    planted: Planted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Offered,
    Copying,
    Pausing,
    Draining,
    Sealed,
    GivingUp,
    /// GIVE_UP could not be made durable; what was written of it has to go before anything else is said or done.
    Retracting,
    GaveUp,
    Ended,
}

impl Source {
    /// A source of this offer to `peer`. `leaves` is shared with the workers of its lanes.
    pub fn new(config: SourceConfig, offer: Offer, leaves: Arc<Leaves>, peer: Fingerprint) -> Self {
        let layout = offer.layout.clone();
        let progress = Progress {
            guest_bytes: layout.bytes(),
            downtime_budget: config.downtime_budget,
            framing: config.framing,
            epoch: offer.epoch,
            ..Progress::default()
        };
        Self {
            tree: Tree::new(&layout),
            dirty: DirtySet::all(&layout),
            known: PageBits::new(&layout, true),
            sent: PageBits::new(&layout, false),
            hot: HotPages::new(layout.flat_pages()),
            ratio: Ratio::default(),
            shadow: Shadow::new(&layout, config.shadow_bytes, config.shadow_fill),
            lanes: Lanes::carrying(config.framing),
            redial_lanes: Backoff::default(),
            budget: Budget::new(config.effort, config.encoders.min(config.lanes).min(config.limits.lanes)),
            converge: Converge::new(config.downtime_budget, config.on_stall, config.stall_patience),
            pace: Pace { rate: config.bandwidth, tokens: 0, filled_at: Time::default() },
            round: Round::default(),
            switch: SwitchOver::default(),
            leave: Leaving::new(offer.transfer, offer.epoch, config.framing),
            leave_clock: LeaveClock::default(),
            leave_turns: Allowance::new(BEGUN, Time::default()),
            state: State::Idle,
            control: Control::default(),
            outputs: VecDeque::new(),
            dictionaries: 0,
            baselines: Vec::new(),
            planted: Planted::default(),
            config,
            offer,
            peer,
            layout,
            leaves,
            progress,
        }
    }

    /// A source that gave up before a crash and only asks whether the sink runs. spec: S-8
    pub fn recover(config: SourceConfig, offer: Offer, record: &Record) -> Self {
        let leaves = Arc::new(Leaves::new(&offer.layout));
        let mut source = Self::new(config, offer, leaves, record.peer);
        source.state = State::GaveUp;
        source.progress.phase = Phase::Handing;
        let Record { transfer, epoch, attempt, root, .. } = *record;
        source.switch.run = Some(Run { transfer, epoch, attempt, root });
        // The session before the crash is gone with its keys.
        source.control.fresh = true;
        source
    }

    /// Plants a bug, for the proof that the simulator finds it.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_bug(mut self, bug: Option<Bug>) -> Self {
        self.planted = Planted::new(bug);
        self.lanes.leaks_credit = bug == Some(Bug::CreditLeak);
        self
    }

    /// Whether GIVE_UP may have become durable: this end will never run the guest by itself again.
    pub fn gave_up(&self) -> bool {
        matches!(self.state, State::GivingUp | State::Retracting | State::GaveUp)
    }

    /// Whether extents may be sent.
    fn moving(&self) -> bool {
        matches!(self.state, State::Copying | State::Pausing | State::Draining | State::Sealed)
    }

    /// Plain and wire bytes per second to be expected: what the lanes deliver while they are busy, within
    /// the limit. A limit makes lanes idle, and that does not show in what they measure.
    fn rates(&self) -> (u64, u64) {
        let (plain, wire) = self.lanes.rates();
        self.pace.within(plain, wire)
    }

    /// Slots that the shadow uses, 4096 bytes each.
    pub fn shadow_slots(&self) -> usize {
        self.shadow.slots()
    }

    fn start(&mut self, now: Time) {
        self.control.up = true;
        self.control.fresh = false;
        self.control.heard_at = now;
        self.control.ping_at = now;
        match self.state {
            State::Idle => {
                self.state = State::Offered;
                self.round.started = now;
                self.round.pages = self.dirty.pages();
                self.say(Frame::Offer(self.offer.clone()));
                // Clears what the guest has logged so far: everything is dirty anyway.
                self.harvest();
            }
            State::GaveUp => self.ask_to_run(),
            _ => {}
        }
    }

    fn frame(&mut self, now: Time, frame: Frame) -> Result<(), SessionError> {
        self.control.heard_at = now;
        match frame {
            Frame::Have(have) => self.held(&have),
            Frame::Accept(accept) => self.accepted(now, &accept),
            Frame::Ack(ack) => {
                self.progress.pages_durable = ack.durable;
                ack.lanes.into_iter().try_for_each(|(lane, applied)| self.acked(now, lane, applied))
            }
            Frame::Credit(credit) => {
                self.lanes.grant(credit.lane, credit.total);
                Ok(())
            }
            Frame::Buried(Buried { lane, applied }) => self.bury_lane(now, lane, applied),
            Frame::Ready(ready) => self.ready(&ready),
            Frame::Prefer(prefer) => {
                self.wish(now, LeavingEvent::PeerWants(prefer.into()));
                Ok(())
            }
            Frame::Handover(handover) => self.handed_over(now, &handover),
            Frame::Running(running) => self.running(now, &running),
            Frame::Abort(abort) => Err(SessionError::PeerAborted { reason: abort.reason, text: abort.text }),
            Frame::Error(error) => Err(self.peer_error(error)),
            Frame::Ping(ping) => {
                self.say(Frame::Pong(ping));
                Ok(())
            }
            Frame::Pong(pong) => {
                self.pong(now, pong);
                Ok(())
            }
            other => Err(SessionError::unexpected(format!("a source never receives {:?}", other.frame_type()))),
        }
    }

    /// An integrity error that the sink found is an integrity error here too.
    fn peer_error(&self, error: ErrorFrame) -> SessionError {
        let ErrorFrame { code, lane, position, text } = error;
        if code.is_integrity() {
            SessionError::Integrity { code, lane, position, what: format!("the sink reports: {text}") }
        } else {
            SessionError::PeerReports(ErrorFrame { code, lane, position, text })
        }
    }

    /// Ends the session before or after the point of no return. spec: S-6
    fn fail(&mut self, now: Time, error: SessionError) {
        // It ends in a moment, and what it owns then is not known before.
        if matches!(self.state, State::Ended | State::Retracting) {
            return;
        }
        if self.gave_up() {
            // Nothing is said: the sink may run already, and an ABORT after RUN would be wrong.
            return self.finish(Owner::InDoubt, Some(error));
        }
        if self.control.up
            && let Some(frame) = error.frame()
        {
            self.say(frame);
        }
        if matches!(self.state, State::Pausing | State::Draining | State::Sealed) {
            self.outputs.push_back(Output::Resume);
            self.end_downtime(now);
        }
        self.finish(Owner::Source, Some(error));
    }

    fn finish(&mut self, owner: Owner, error: Option<SessionError>) {
        for lane in self.lanes.alive() {
            self.close_lane(lane);
        }
        self.state = State::Ended;
        self.progress.phase = Phase::Ended;
        self.outputs.push_back(Output::Finished(Outcome { owner, error }));
    }

    fn say(&mut self, frame: Frame) {
        self.outputs.push_back(Output::Control(frame));
    }

    /// Does whatever has become possible.
    fn advance(&mut self, now: Time) -> Result<(), SessionError> {
        if self.state == State::Ended {
            return Ok(());
        }
        self.tend_control(now)?;
        if !self.control.up || self.state == State::Ended {
            return Ok(());
        }
        self.tend_leaving(now)?;
        self.tend_lanes(now)?;
        if self.moving() {
            if self.round.log_cleared && !self.round.recalling && self.leave.is_active() {
                self.send_extents(now);
                self.sample(now);
                self.after_sending(now);
            }
            self.check_pause(now)?;
        }
        Ok(())
    }

    fn cancel(&mut self, now: Time) {
        // After GIVE_UP a cancel only stops the waiting: the guest is not ours to run.
        self.fail(now, SessionError::Cancelled);
    }

    fn step(&mut self, now: Time, input: Input) -> Result<(), SessionError> {
        match input {
            Input::Start => self.start(now),
            Input::Frame(frame) => self.frame(now, frame)?,
            Input::ControlDown { .. } => self.control_down(now),
            Input::ControlUp => self.control_up(now),
            Input::SessionLost => return self.session_lost(now),
            Input::LaneUp { lane, credit } => {
                self.redial_lanes.reset();
                self.lanes.joined(lane, credit);
            }
            Input::LaneDown { lane } => self.lane_down(now, lane),
            Input::Encoded(encoded) => {
                self.note_extent(now);
                self.encoded(&encoded);
            }
            Input::LaneEnded(fenced) => self.lane_ended(now, fenced),
            Input::Prepared(message) => self.prepared(message),
            Input::Raised(epoch) => self.leaving(now, LeavingEvent::Durable(epoch)),
            Input::Compression(on) => self.budget.allow(on),
            Input::Prefer(wish) if self.may_leave() => self.wish(now, LeavingEvent::Wants(wish)),
            Input::Recalled { same } => self.recalled(&same),
            Input::Harvested { dirty, pending } => self.harvested(now, &dirty, pending)?,
            Input::Paused => self.paused(now),
            Input::Devices(state) => self.devices(state)?,
            Input::LaneFault { fault, .. } => return Err(fault),
            Input::GuestFailed(error) => return Err(error.into()),
            Input::Persisted => self.persisted(),
            Input::PersistFailed { text } if !self.leave.is_active() => return Err(SessionError::Record { text }),
            Input::PersistFailed { text } => self.persist_failed(now, text),
            Input::Retracted => self.retracted(now),
            Input::RetractFailed { text } => self.retract_failed(text),
            Input::Cancel => self.cancel(now),
            Input::Retire if self.gave_up() => {}
            Input::Retire => return Err(SessionError::ShuttingDown),
            Input::Bandwidth(rate) => {
                self.pace.set(now, rate);
                self.budget.begin_anew();
            }
            Input::Tick
            | Input::LaneJoin { .. }
            | Input::Applied(_)
            | Input::Staged
            | Input::Running
            | Input::Cleared
            | Input::Prefer(_)
            | Input::Superseded { .. } => {}
        }
        Ok(())
    }

    /// A restarted sink holds nothing of a live transfer, and cannot have run before RUN.
    fn session_lost(&mut self, now: Time) -> Result<(), SessionError> {
        if self.control.up {
            return Ok(());
        }
        if self.gave_up() {
            // The new process may still know the transfer by its record. spec: S-8
            self.control.fresh = true;
            self.control.redial.schedule(now);
            return Ok(());
        }
        Err(SessionError::PeerRestarted)
    }
}

impl Machine for Source {
    fn handle(&mut self, now: Time, input: Input) {
        if self.state == State::Ended {
            return;
        }
        if let Err(error) = self.step(now, input).and_then(|()| self.advance(now)) {
            self.fail(now, error);
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        if self.state == State::Ended {
            return None;
        }
        if !self.control.up {
            // Once given up nothing is limited: it asks until it knows.
            let limit = self.control.down_since + self.config.reconnect_limit + JUST_AFTER;
            return [self.control.redial.at, Some(limit).filter(|_| !self.gave_up())].into_iter().flatten().min();
        }
        let control = Some(self.control.ping_at);
        let lanes = self.redial_lanes.at;
        let sending = self.moving() && self.round.log_cleared && !self.round.recalling && self.leave.is_active();
        let pause = self.switch.paused_at.filter(|_| self.moving()).map(|at| at + self.config.pause_limit + JUST_AFTER);
        let idle = self.state == State::Copying && self.dirty.pages() == 0 && !self.lanes.in_flight();
        let harvest = Some(self.round.harvest_at).filter(|_| idle && sending && !self.round.harvesting);
        let leave = self.leave_clock.deadline();
        let pace = self.pace.open_at().filter(|_| sending && self.dirty.sendable() > 0);
        let sample = self.sample_at();
        [control, lanes, harvest, sample, pause, pace, leave].into_iter().flatten().min()
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
