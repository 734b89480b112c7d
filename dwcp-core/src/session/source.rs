//! The end that has the guest.
//!
//! ```text
//!             Accept          harvested, rest fits       Paused        all sent
//!   Offered ─────────> Copying ─────────────────> Pausing ───────> Draining ───────> Sealed
//!                         ^                          │                │                │ READY, roots equal
//!                         └────── link lost: the guest runs again ────┴────────────────┤
//!                                                                                      v
//!   Ended <────────── RUNNING ────────── GaveUp <────────── Persisted ────────── GivingUp
//!     ^                                    │  point of no return: never runs the guest again
//!     └── cancelled, failed, not converging: the guest runs at the source
//! ```

mod accepted;
mod control;
mod leave;
mod pace;
mod switch_over;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use self::control::Control;
pub(super) use self::control::SILENCE_LIMIT;
use self::leave::LeaveClock;
use self::pace::{Backoff, Pace};
use self::switch_over::SwitchOver;
use super::allowance::Allowance;
use super::budget::{Budget, Cost, EffortPolicy};
use super::converge::{Converge, Decision, OnStall, RoundEnd};
use super::dirty::{DirtySet, PageBits, flat_pages};
use super::fingerprint::Fingerprint;
use super::handover::{BEGUN, Leaving, LeavingEvent};
use super::lanes::{BadAck, Flight, Lanes};
use super::leaves::{Leaves, Tree};
use super::planted::{Bug, Planted};
use super::record::Record;
use super::shadow::{Shadow, ShadowFill};
use super::stats::{Phase, Progress, RoundStats};
use super::{Dispatch, Encoded, Input, Machine, Outcome, Output, Owner, SessionError, Time};
use crate::extent::{Extent, Layout, PageMask};
use crate::guest::{DirtyMap, Pending};
use crate::wire::limits::MAX_LANE_IDS;
use crate::wire::{Buried, Bury, ErrorCode, ErrorFrame, Frame, Framing, LaneId, Offer, PeerLimits, Run};

/// What a source is told at the start.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Bulk lanes to keep open. The peer may want fewer.
    pub lanes: u16,
    /// What the sink takes, as agreed in the handshake.
    pub limits: PeerLimits,
    /// The guest may stand still for this long.
    pub downtime_budget: Duration,
    /// What to do when it would stand still longer.
    pub on_stall: OnStall,
    /// How long rounds may fail to shrink before that is decided.
    pub stall_patience: Duration,
    /// Once paused, the guest runs again at the source if the sink is not ready within this.
    pub pause_limit: Duration,
    /// Without a connection for so long the transfer ends, if the source has not given up.
    pub reconnect_limit: Duration,
    /// How hard to compress.
    pub effort: EffortPolicy,
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
            on_stall: OnStall::Abort,
            stall_patience: Duration::from_secs(30),
            pause_limit: Duration::from_secs(10),
            reconnect_limit: Duration::from_secs(30),
            effort: EffortPolicy::Auto,
            shadow_bytes: 0,
            shadow_fill: ShadowFill::Hot,
            bandwidth: None,
            framing: Framing::Extents,
            messages: false,
        }
    }
}

/// Wait after a harvest that brought nothing.
const IDLE_HARVEST: Duration = Duration::from_millis(5);
/// The same for a guest that knows of writes still to come, and has none.
const MORE_HARVEST: Duration = Duration::from_millis(50);
/// Limits are broken when they are exceeded, so a deadline is just after its limit.
const JUST_AFTER: Duration = Duration::from_micros(1);
/// Pages that an extent should have at most: 256 KiB in plain, so that it, its bases and its ciphertext
/// stay in a core's second-level cache on their way from the guest through hash, encoder and cipher. More
/// compress to 0.4 % of the guest less, at six sevenths of the speed.
const CACHED_PAGES: usize = 64;
/// Rounds that are kept for the report; a transfer that needs more is not converging.
const MAX_ROUNDS_KEPT: usize = 1000;

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
    GaveUp,
    Ended,
}

/// The round in progress.
#[derive(Debug, Default)]
struct Round {
    harvesting: bool,
    /// The harvest at the start has come back. No page is read before that: its bits are of no use.
    /// spec: D-2
    log_cleared: bool,
    /// What the guest knows of the pages that the sink holds is being asked.
    recalling: bool,
    /// An empty harvest is not repeated at once.
    harvest_at: Time,
    started: Time,
    pages: u64,
    wire_bytes: u64,
    more_certain: bool,
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
            shadow: Shadow::new(&layout, config.shadow_bytes, config.shadow_fill),
            lanes: Lanes::carrying(config.framing),
            redial_lanes: Backoff::default(),
            budget: Budget::new(config.effort),
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
        matches!(self.state, State::GivingUp | State::GaveUp)
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

    fn acked(&mut self, now: Time, lane: LaneId, applied: u64) -> Result<(), SessionError> {
        let settled = self.lanes.acknowledged(lane, applied, now).map_err(|BadAck| bad_ack(lane, applied))?;
        for flight in settled {
            self.progress.extent_latency.record(now.since(flight.sent_at));
            self.settle(&flight);
        }
        if let Some(message) = self.lanes.due_message(lane) {
            self.ship(message);
        }
        Ok(())
    }

    /// An extent is applied: its pages are clean, or dirty again if they changed meanwhile.
    fn settle(&mut self, flight: &Flight) {
        self.dirty.release(&flight.extent);
        self.known.assign(&self.layout, &flight.extent, true);
        self.shadow.settle(&self.layout, &flight.extent, &flight.slots, true);
        self.progress.pages_settled += pages(&flight.extent);
    }

    /// An extent is lost: nobody knows what the sink holds there, so everything of it is dirty.
    fn lose(&mut self, flight: &Flight) {
        self.dirty.requeue(&flight.extent);
        self.shadow.settle(&self.layout, &flight.extent, &flight.slots, false);
        if self.state == State::Sealed {
            // What was sealed is not all there: send it again and seal anew.
            self.state = State::Draining;
            self.switch.sealed = None;
        }
    }

    fn lane_down(&mut self, now: Time, lane: LaneId) {
        if !self.lanes.died(lane) {
            return;
        }
        if self.leave.has_ended(lane) {
            return self.leaving(now, LeavingEvent::Gone(lane));
        }
        if let Some(ended) = self.leave.ended_into(lane).filter(|_| self.control.up) {
            // Nobody will answer for it by its next any more.
            self.say(Frame::Bury(Bury { lane: ended }));
        }
        self.leaving(now, LeavingEvent::Dropped(lane));
        if let Some(next) = self.lanes.next_of(lane) {
            self.close_lane(next);
        }
        self.progress.lanes_lost += 1;
        self.redial_lanes.schedule(now);
        if self.planted.has(Bug::UnburiedLane) {
            let buried = self.lanes.bury(lane, 0);
            for flight in buried.into_iter().flat_map(|(applied, lost)| applied.into_iter().chain(lost)) {
                self.lose(&flight);
            }
        } else if self.control.up {
            self.say(Frame::Bury(Bury { lane }));
        }
        self.leaving(now, LeavingEvent::Gone(lane));
    }

    /// spec: B-3
    fn bury_lane(&mut self, now: Time, lane: LaneId, applied: u64) -> Result<(), SessionError> {
        let (settled, lost) = self.lanes.bury(lane, applied).map_err(|BadAck| bad_ack(lane, applied))?;
        for flight in settled {
            self.progress.extent_latency.record(now.since(flight.sent_at));
            self.settle(&flight);
        }
        for flight in lost {
            self.lose(&flight);
        }
        Ok(())
    }

    fn close_lane(&mut self, lane: LaneId) {
        if self.lanes.closing(lane) {
            self.outputs.push_back(Output::CloseLane(lane));
        }
    }

    fn harvest(&mut self) {
        if !self.round.harvesting {
            self.round.harvesting = true;
            self.outputs.push_back(Output::Harvest);
        }
    }

    fn harvested(&mut self, now: Time, dirty: &DirtyMap, pending: Pending) -> Result<(), SessionError> {
        self.round.harvesting = false;
        self.dirty.mark(dirty);
        self.round.more_certain = pending == Pending::More;
        if !self.round.log_cleared {
            // The harvest at the start: nothing has been read yet, and everything is dirty.
            self.round.log_cleared = true;
            return Ok(());
        }
        match self.state {
            State::Copying if self.leave.is_active() => self.round_ended(now),
            State::Draining => {
                self.switch.harvested = true;
                self.begin_round(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn round_ended(&mut self, now: Time) -> Result<(), SessionError> {
        let took = now.since(self.round.started);
        let (goodput, _) = self.rates();
        let end = RoundEnd { now, dirty_pages: self.dirty.pages(), estimate: self.downtime_estimate(), goodput, took };
        self.begin_round(now);
        if self.round.more_certain {
            if self.dirty.pages() == 0 {
                self.round.harvest_at = now + MORE_HARVEST;
            }
            return Ok(());
        }
        match self.converge.round_ended(end) {
            Decision::AnotherRound => {
                if self.dirty.pages() == 0 {
                    self.round.harvest_at = now + IDLE_HARVEST;
                }
                Ok(())
            }
            Decision::Pause => {
                // Most of the tree is hashed while the guest still runs.
                let _ = self.tree.root(&self.leaves);
                self.state = State::Pausing;
                self.progress.phase = Phase::Pausing;
                self.outputs.push_back(Output::Pause);
                Ok(())
            }
            Decision::Stop(verdict) => Err(verdict.into()),
        }
    }

    fn begin_round(&mut self, now: Time) {
        let idle = self.round.pages == 0 && self.round.wire_bytes == 0;
        if !idle && self.progress.rounds.len() < MAX_ROUNDS_KEPT {
            self.progress.rounds.push(RoundStats {
                pages: self.round.pages,
                wire_bytes: self.round.wire_bytes,
                duration: now.since(self.round.started),
            });
        }
        self.round.started = now;
        self.round.pages = self.dirty.pages();
        self.round.wire_bytes = 0;
    }

    /// Ends the session before or after the point of no return. spec: S-6
    fn fail(&mut self, now: Time, error: SessionError) {
        if self.state == State::Ended {
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
                self.after_sending(now);
            }
            self.check_pause(now)?;
        }
        Ok(())
    }

    fn tend_lanes(&mut self, now: Time) -> Result<(), SessionError> {
        for lane in self.lanes.stalled(now) {
            self.close_lane(lane);
        }
        let waits = self.redial_lanes.at.is_some() && !self.redial_lanes.due(now);
        if waits || !self.moving() || !self.leave.is_active() {
            return Ok(());
        }
        let wanted = self.config.lanes.min(self.config.limits.lanes).max(1);
        while self.lanes.wanted_count() < wanted && self.lanes.ids_used() < MAX_LANE_IDS {
            let lane = self.lanes.open();
            self.outputs.push_back(Output::OpenLane(lane));
        }
        self.progress.lanes = self.lanes.open_count();
        if self.lanes.wanted_count() == 0 && self.dirty.sendable() > 0 {
            return Err(SessionError::LanesUsedUp { lanes: self.lanes.ids_used() });
        }
        Ok(())
    }

    fn send_extents(&mut self, now: Time) {
        self.pace.fill(now);
        // Where there is time for a thorough search, the cache is not what counts.
        let thorough = matches!(self.budget.effort(), dwcp_hde::Effort::Thorough(_));
        let most = usize::from(self.config.limits.extent_pages);
        let limit = if thorough { most } else { most.min(CACHED_PAGES) };
        while self.dirty.sendable() > 0 && self.pace.open() {
            let Some((lane, pages)) = self.lanes.choose(limit) else { break };
            let Some(extent) = self.dirty.next_extent(pages) else { break };
            self.send(now, lane, extent);
        }
        self.progress.pages_left = self.dirty.pages();
    }

    fn send(&mut self, now: Time, lane: LaneId, extent: Extent) {
        let mut known = PageMask::EMPTY;
        for (index, page) in flat_pages(&self.layout, &extent).enumerate() {
            if self.known.get(page) {
                known.set(index);
            }
        }
        self.known.assign(&self.layout, &extent, false);
        self.progress.pages_resent += self.sent.assign(&self.layout, &extent, true);
        // Messages carry no deltas, and leave no copy of what they carry.
        let (slots, based) = match self.leave.framing() {
            Framing::Extents => self.shadow.lend(&self.layout, &extent),
            Framing::Messages => (Vec::new(), PageMask::EMPTY),
        };
        self.plant(&extent, &slots);
        self.pace.spend(extent.bytes());
        let Some(seq) = self.lanes.hand(lane, extent.clone(), slots.clone(), now) else { return };
        let effort = self.budget.effort();
        let dictionaries = self.dictionaries;
        self.outputs.push_back(Output::Send(Dispatch { lane, seq, extent, known, slots, based, effort, dictionaries }));
    }

    #[cfg(feature = "planted-bugs")]
    fn plant(&mut self, extent: &Extent, slots: &[Option<super::SlotId>]) {
        if self.planted.has(Bug::ExtentNotPinned) {
            self.dirty.unpin(extent);
        }
        if self.planted.has(Bug::ShadowValidBeforeAck) {
            self.shadow.trust(slots);
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, clippy::needless_pass_by_ref_mut, reason = "the same call in both builds")]
    fn plant(&mut self, _: &Extent, _: &[Option<super::SlotId>]) {}

    fn encoded(&mut self, encoded: &Encoded) {
        if !self.lanes.encoded(encoded) {
            return;
        }
        self.pace.refund(usize::from(encoded.carried + encoded.same) * 4096, encoded.wire_bytes);
        let Encoded { encode, last_write: write, carried, wire_bytes, .. } = *encoded;
        // A limit is a slow link, though no write has to wait for it.
        let waited = encoded.waited || !self.pace.open();
        self.budget.sample(Cost { encode, write, waited, carried, wire_bytes });
        self.round.wire_bytes += encoded.wire_bytes;
        self.progress.wire_bytes += encoded.wire_bytes;
        self.progress.pages_carried += u64::from(encoded.carried);
        self.progress.pages_same += u64::from(encoded.same);
        self.progress.pages_read += u64::from(encoded.carried) + u64::from(encoded.same);
    }

    /// What follows when nothing can be sent: the next harvest, or the seal.
    fn after_sending(&mut self, now: Time) {
        (self.progress.plain_rate, self.progress.wire_rate) = self.rates();
        if self.dirty.sendable() > 0 || self.lanes.unencoded() > 0 || self.round.harvesting {
            return;
        }
        match self.state {
            // A round ends when all of it is at the sink: then every page has a base there.
            State::Copying if !self.lanes.in_flight() && now >= self.round.harvest_at => self.harvest(),
            // An extent on a lane that is not buried may or may not be at the sink. spec: S-1
            State::Draining if self.lanes.flight_unburied() => {}
            State::Draining if self.dirty.pages() == 0 && self.switch.harvested && self.switch.devices.is_some() => {
                self.seal(now);
            }
            _ => {}
        }
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
            Input::Cancel => self.cancel(now),
            Input::Retire if self.gave_up() => {}
            Input::Retire => return Err(SessionError::ShuttingDown),
            Input::Bandwidth(rate) => self.pace.set(now, rate),
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
        [control, lanes, harvest, pause, pace, leave].into_iter().flatten().min()
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

fn pages(extent: &Extent) -> u64 {
    u64::try_from(extent.pages()).unwrap_or(0)
}

fn bad_ack(lane: LaneId, applied: u64) -> SessionError {
    SessionError::PeerViolation {
        code: ErrorCode::Unexpected,
        lane,
        position: applied,
        what: "the sink acknowledges what it was never sent".into(),
    }
}
