//! The end that has the guest, after `dwcp_core`'s `session/source`.

use dwcp_core::session::handover::{Leaving, LeavingAction, LeavingEvent, Wish};
use dwcp_core::wire::{FenceEpoch, Framing, LaneId};

use super::lane::AtSource;
use super::link::Frame;
use super::{Action, Flaw, Model, PAGES, Pages, Side, State, TRANSFER, Turn, Variant, left};

/// What a changed mind may want.
const WISHES: [Wish; 3] = [
    Wish { framing: Framing::Extents, restart: false },
    Wish { framing: Framing::Messages, restart: false },
    Wish { framing: Framing::Messages, restart: true },
];

/// Where a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourcePhase {
    /// The guest runs and is copied.
    Copying,
    /// It is paused; the rest is sent.
    Draining,
    /// PAUSE is said.
    Sealed,
    /// GIVE_UP is being written.
    GivingUp,
    /// GIVE_UP is durable.
    GaveUp,
    /// The sink runs; the source has let the guest go.
    Released,
    /// It ended, and the guest is here.
    Kept,
    /// It ended after GIVE_UP without knowing.
    InDoubt,
}

/// What RUN says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    /// Of this epoch.
    pub epoch: u8,
    /// Of this pause.
    pub attempt: u8,
    /// What is held.
    pub root: Pages,
}

/// The source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Where it is.
    pub phase: SourcePhase,
    /// Lane 0 is up, as far as it knows.
    pub control: bool,
    /// The guest runs.
    pub running: bool,
    /// What the guest holds.
    pub holds: Pages,
    /// Pages that it wrote since the last harvest.
    pub logged: u8,
    /// Pages to be sent.
    pub dirty: u8,
    /// Pages whose content at the sink is known: `leaves`.
    pub known: u8,
    /// What was sent last of each page.
    pub leaves: Pages,
    /// Pauses so far.
    pub attempt: u8,
    /// What was promised.
    pub promise: Option<Promise>,
    /// The record says GIVE_UP, and is durable.
    pub recorded: bool,
    /// An epoch is being made durable.
    pub raising: Option<u8>,
    /// The step under test.
    pub leave: Leaving,
    /// Lane ids used.
    pub last_lane: u16,
    /// What this node wants.
    pub wish: Wish,
    /// Used by [`Variant::EarlyMessages`] only: what FENCE said.
    pub early: Option<(u8, Framing)>,
}

impl Source {
    pub(super) fn new(pages: u8, framing: Framing) -> Self {
        let mut holds = [0; PAGES];
        holds[..usize::from(pages)].fill(1);
        let mut leave = Leaving::new(TRANSFER, FenceEpoch(1), framing);
        if framing == Framing::Messages {
            // It was this end that declined version 3.
            leave.step(LeavingEvent::Wants(WISHES[1]));
            leave.step(LeavingEvent::PeerWants(WISHES[0]));
        }
        let all = (1 << pages) - 1;
        Self {
            phase: SourcePhase::Copying,
            control: true,
            running: true,
            holds,
            logged: 0,
            dirty: all,
            known: all,
            leaves: [0; PAGES],
            attempt: 0,
            promise: None,
            recorded: false,
            raising: None,
            leave,
            last_lane: 0,
            wish: WISHES[usize::from(framing == Framing::Messages)],
            early: None,
        }
    }

    /// GIVE_UP may have become durable.
    pub fn gave_up(&self) -> bool {
        matches!(self.phase, SourcePhase::GivingUp | SourcePhase::GaveUp)
    }

    /// The session has ended here.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, SourcePhase::Released | SourcePhase::Kept | SourcePhase::InDoubt)
    }

    fn moving(&self) -> bool {
        matches!(self.phase, SourcePhase::Copying | SourcePhase::Draining | SourcePhase::Sealed)
    }

    fn sends(&self) -> bool {
        self.control && self.moving() && (self.leave.is_active() || self.early.is_some())
    }

    pub(super) fn sends_messages(&self) -> bool {
        self.engaged().1 == Framing::Messages
    }

    fn engaged(&self) -> (u8, Framing) {
        self.early.unwrap_or((epoch(self.leave.epoch()), self.leave.framing()))
    }

    pub(super) fn pause(&mut self) {
        self.running = false;
        self.phase = SourcePhase::Draining;
    }

    fn take_back(&mut self) {
        self.running = true;
        self.phase = SourcePhase::Copying;
    }
}

pub(super) fn epoch(epoch: FenceEpoch) -> u8 {
    epoch.0 as u8
}

impl State {
    fn in_flight(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.flight.is_empty() && lane.at_source != AtSource::Forgotten)
    }

    fn flying(&self) -> u8 {
        let live = self.lanes.iter().filter(|lane| lane.at_source != AtSource::Forgotten);
        live.flat_map(|lane| &lane.flight).fold(0, |flying, page| flying | 1 << page)
    }

    /// The open lane that has room.
    fn free_lane(&self, on: &Model) -> Option<LaneId> {
        let most = usize::from(on.bounds.window);
        let room = |flight: usize| flight < most || on.variant == Variant::CreditLeak && flight < 2 * most;
        let free = |lane: &&super::Lane| lane.at_source == AtSource::Open && room(lane.flight.len());
        self.lanes.iter().find(free).map(|lane| lane.id)
    }

    fn sendable(&self) -> Option<u8> {
        let pages = self.source.dirty & !self.flying();
        (0..PAGES as u8).find(|page| pages & 1 << page != 0)
    }

    pub(super) fn source_actions(&self, on: &Model, actions: &mut Vec<Action>) {
        let source = &self.source;
        if source.control && !self.link.alive {
            actions.push(Action::Notice(Side::Source));
        }
        if source.control && !self.link.to_source.is_empty() {
            actions.push(Action::Deliver(Side::Source));
        }
        if source.running && self.left[left::WRITES] > 0 {
            let unwritten = (0..on.bounds.pages).filter(|&page| source.holds[usize::from(page)] == 1);
            actions.extend(unwritten.map(Action::Write));
        }
        if self.left[left::WISHES] > 0 && !source.gave_up() {
            let own = WISHES.into_iter().filter(|&wish| wish != self.source.wish);
            actions.extend(own.map(|wish| Action::Prefer(Side::Source, wish)));
            let others = WISHES.into_iter().filter(|&wish| wish != self.sink.wish);
            actions.extend(others.map(|wish| Action::Prefer(Side::Sink, wish)));
        }
        if source.raising.is_some() {
            actions.push(Action::Raised(Side::Source));
        }
        if source.phase == SourcePhase::GivingUp {
            actions.push(Action::Recorded(Side::Source));
        }
        if source.phase == SourcePhase::GaveUp {
            actions.push(Action::Cancel);
        }
        if source.sends() && self.round_ended() {
            actions.push(Action::Pause);
            actions.extend((source.logged != 0).then_some(Action::Harvest));
        }
    }

    /// A round ends when all of it is at the sink.
    fn round_ended(&self) -> bool {
        self.source.phase == SourcePhase::Copying && !self.in_flight() && self.source.dirty == 0
    }
}

impl Turn {
    pub(super) fn write(&mut self, page: u8) {
        self.s.left[left::WRITES] -= 1;
        self.s.source.holds[usize::from(page)] = 2;
        self.s.source.logged |= 1 << page;
    }

    pub(super) fn harvest(&mut self) {
        self.s.source.dirty |= std::mem::take(&mut self.s.source.logged);
        self.advance();
    }

    pub(super) fn source_prefers(&mut self, wish: Wish) {
        self.s.source.wish = wish;
        self.leaving(LeavingEvent::Wants(wish));
        self.advance();
    }

    pub(super) fn leaving(&mut self, event: LeavingEvent) {
        for action in self.s.source.leave.step(event) {
            match action {
                LeavingAction::Raise(least) => self.s.source.raising = Some(epoch(least)),
                LeavingAction::Say(fence) => {
                    if self.s.source.gave_up() {
                        self.flaw(Flaw::AfterGiveUp);
                    }
                    if self.on.variant == Variant::EarlyMessages {
                        self.s.source.early = Some((epoch(fence.epoch), fence.framing));
                    }
                    self.say_to_sink(Frame::Fence(fence));
                }
                // Only `handed_over` asks for these, which looks at what `step` returns itself.
                LeavingAction::GoOn(_) | LeavingAction::Violation => self.accuse(),
            }
        }
    }

    /// Does what has become possible at once: begins a hand-over that is due, dials. spec: V-2
    pub(super) fn advance(&mut self) {
        let source = &self.s.source;
        if source.is_over() || !source.control {
            return;
        }
        if source.leave.due().is_some() {
            let late = self.on.variant == Variant::LateHandover && source.gave_up();
            match source.phase {
                SourcePhase::Copying => self.begin_leaving(),
                SourcePhase::Draining | SourcePhase::Sealed => {
                    self.s.source.take_back();
                    self.begin_leaving();
                }
                _ if late => self.begin_leaving(),
                _ => {}
            }
        }
        let wanted = |lane: &super::Lane| matches!(lane.at_source, AtSource::Opening | AtSource::Open);
        if self.s.source.sends() && !self.s.lanes.iter().any(wanted) {
            let (epoch, _) = self.s.source.engaged();
            self.open_lane(epoch);
        }
        if self.s.source.sends() {
            self.dispatch();
            self.seal();
        }
    }

    fn begin_leaving(&mut self) {
        let alive = |lane: &&super::Lane| !matches!(lane.at_source, AtSource::Dead | AtSource::Forgotten);
        let ending: Vec<_> = self.s.lanes.iter().filter(alive).map(|lane| (lane.id, lane.at_source)).collect();
        for &(id, at_source) in &ending {
            match at_source {
                AtSource::Open => self.leave_lane(id),
                _ => self.close_lane(id),
            }
        }
        self.leaving(LeavingEvent::Begin(ending.into_iter().map(|(id, _)| id).collect()));
    }

    /// Hands out what may be handed out, in rising order.
    fn dispatch(&mut self) {
        while let Some(lane) = self.s.free_lane(&self.on)
            && let Some(page) = self.s.sendable()
        {
            self.s.source.dirty &= !(1 << page);
            self.s.source.known &= !(1 << page);
            let lane = self.s.lane_mut(lane);
            lane.into_iter().for_each(|lane| lane.flight.push(page));
        }
    }

    /// Once all is written, and nothing is on a lane of which nobody knows what it delivered. spec: S-1
    fn seal(&mut self) {
        let of_source = |lane: &&super::Lane| lane.at_source != AtSource::Forgotten;
        let mut lanes = self.s.lanes.iter().filter(of_source);
        let sent = |lane: &super::Lane| match lane.at_source {
            AtSource::Open => lane.written == lane.next_seq(),
            _ => lane.flight.is_empty(),
        };
        if self.s.source.phase != SourcePhase::Draining || self.s.source.dirty != 0 || !lanes.all(sent) {
            return;
        }
        let source = &mut self.s.source;
        source.attempt += 1;
        source.phase = SourcePhase::Sealed;
        let (attempt, root) = (source.attempt, source.leaves);
        let open = self.s.lanes.iter().filter(|lane| lane.at_source == AtSource::Open);
        let finals = open.map(|lane| (lane.id, lane.next_seq())).collect();
        self.say_to_sink(Frame::Pause { attempt, root, finals });
    }

    /// spec: S-4
    pub(super) fn ready(&mut self, epoch: u8, attempt: u8, root: Pages) {
        let source = &self.s.source;
        if source.phase != SourcePhase::Sealed || attempt != source.attempt {
            let never_was = attempt == 0 || attempt > source.attempt;
            if never_was || attempt == source.attempt && source.gave_up() {
                self.accuse();
            }
            return;
        }
        if epoch != self::epoch(source.leave.epoch()) || self.s.in_flight() {
            self.accuse();
        }
        if root != self.s.source.leaves && self.on.variant != Variant::TrustSize {
            self.accuse();
        }
        let root = self.s.source.leaves;
        self.s.source.promise = Some(Promise { epoch, attempt, root });
        self.s.source.phase = SourcePhase::GivingUp;
        if self.on.variant == Variant::ReleaseOnReceived {
            self.s.source.phase = SourcePhase::Released;
        }
    }

    /// spec: S-5
    pub(super) fn gave_up(&mut self) {
        self.s.source.recorded = true;
        self.s.source.phase = SourcePhase::GaveUp;
        self.ask_to_run();
    }

    fn ask_to_run(&mut self) {
        if let Some(Promise { epoch, attempt, root }) = self.s.source.promise {
            self.say_to_sink(Frame::Run { epoch, attempt, root });
        }
    }

    /// spec: S-7
    pub(super) fn sink_runs(&mut self, epoch: u8) {
        if self.s.source.phase != SourcePhase::GaveUp || self.s.source.promise.map(|run| run.epoch) != Some(epoch) {
            return self.accuse();
        }
        self.s.source.phase = SourcePhase::Released;
    }

    /// The guest stays here.
    pub(super) fn stay(&mut self) {
        self.s.source.phase = SourcePhase::Kept;
        self.s.source.running = true;
    }

    pub(super) fn source_crashes(&mut self, durable: bool) {
        self.s.left[left::SOURCE_CRASHES] -= 1;
        self.s.source.recorded |= durable;
        self.s.link.alive = false;
        if !self.s.source.recorded {
            return self.stay();
        }
        // It only asks; its lanes died with it.
        let source = &mut self.s.source;
        source.phase = SourcePhase::GaveUp;
        source.control = false;
        source.raising = None;
        source.leave = Leaving::new(TRANSFER, source.leave.epoch(), source.leave.framing());
        for lane in &mut self.s.lanes {
            (lane.worker, lane.dialling, lane.alive) = (false, false, false);
            lane.at_source = AtSource::Forgotten;
        }
    }

    pub(super) fn source_control_down(&mut self) {
        if !self.s.source.control {
            return;
        }
        self.s.source.control = false;
        self.s.link.to_source.clear();
        let alive: Vec<_> = self.s.lanes.iter().map(|lane| lane.id).collect();
        alive.into_iter().for_each(|id| self.close_lane(id));
        self.leaving(LeavingEvent::Lost);
        if matches!(self.s.source.phase, SourcePhase::Draining | SourcePhase::Sealed) {
            self.s.source.take_back();
        }
    }

    /// spec: B-4
    pub(super) fn source_control_up(&mut self) {
        self.s.source.control = true;
        if self.s.source.phase == SourcePhase::GaveUp {
            return self.ask_to_run();
        }
        if !self.s.source.gave_up() {
            let dead = self.s.lanes.iter().filter(|lane| lane.at_source == AtSource::Dead);
            let dead: Vec<_> = dead.map(|lane| lane.id).collect();
            dead.into_iter().for_each(|id| self.say_to_sink(Frame::Bury(id)));
            if self.on.variant != Variant::FenceLost {
                self.leaving(LeavingEvent::Back);
            }
        }
    }

    fn close_lane(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        if !matches!(lane.at_source, AtSource::Open | AtSource::Opening) {
            return;
        }
        lane.at_source = AtSource::Closing;
        // An heir without a connection has nothing to close, and says so.
        lane.worker = true;
    }

    pub(super) fn source_lane_down(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        if matches!(lane.at_source, AtSource::Dead | AtSource::Forgotten) {
            return;
        }
        lane.at_source = AtSource::Dead;
        let next = lane.next;
        if self.s.source.leave.has_ended(id) {
            return self.leaving(LeavingEvent::Gone(id));
        }
        if let Some(ended) = self.s.source.leave.ended_into(id) {
            self.say_to_sink(Frame::Bury(ended));
        }
        self.leaving(LeavingEvent::Dropped(id));
        if let Some(next) = next {
            self.close_lane(next);
        }
        if self.on.variant == Variant::SkipVersionCheck {
            self.lose_all(id);
        } else {
            self.say_to_sink(Frame::Bury(id));
        }
        self.leaving(LeavingEvent::Gone(id));
    }

    fn lose_all(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        let acked = lane.acked;
        self.bury_lane(id, acked);
    }

    pub(super) fn source_raised(&mut self) {
        if let Some(epoch) = self.s.source.raising.take() {
            self.leaving(LeavingEvent::Durable(FenceEpoch(epoch.into())));
        }
        self.advance();
    }

    fn settle(&mut self, pages: &[u8]) {
        for page in pages {
            self.s.source.known |= 1 << page;
        }
    }

    /// spec: A-2
    pub(super) fn acked(&mut self, id: LaneId, applied: u8) {
        let Some(lane) = self.s.lane_mut(id).filter(|lane| lane.at_source != AtSource::Forgotten) else { return };
        if applied > lane.written {
            return self.accuse();
        }
        let count = usize::from(applied.saturating_sub(lane.acked));
        lane.acked = lane.acked.max(applied);
        let settled: Vec<_> = lane.flight.drain(..count).collect();
        self.settle(&settled);
    }

    /// spec: B-3
    pub(super) fn bury_lane(&mut self, id: LaneId, applied: u8) {
        let Some(lane) = self.s.lane_mut(id).filter(|lane| lane.at_source != AtSource::Forgotten) else { return };
        if lane.at_source != AtSource::Dead || applied > lane.written {
            return self.accuse();
        }
        let count = usize::from(applied.saturating_sub(lane.acked));
        let mut settled = std::mem::take(&mut lane.flight);
        let lost = settled.split_off(count);
        lane.at_source = AtSource::Forgotten;
        self.settle(&settled);
        for page in &lost {
            self.s.source.dirty |= 1 << page;
        }
        if !lost.is_empty() && self.s.source.phase == SourcePhase::Sealed {
            self.s.source.phase = SourcePhase::Draining;
        }
    }

    /// spec: V-4
    pub(super) fn handed_over(&mut self, answered: u8, handed: &[(LaneId, u8, bool)], holds: Pages) {
        let answer = self.s.source.leave.step(LeavingEvent::Answered(FenceEpoch(answered.into())));
        let fence = match answer.into_iter().next_back() {
            Some(LeavingAction::GoOn(fence)) => fence,
            None => return,
            Some(_) => return self.accuse(),
        };
        self.s.source.early = None;
        for &(lane, applied, _) in handed {
            self.bury_lane(lane, applied);
        }
        if self.s.in_flight() {
            self.accuse();
        }
        for fenced in &fence.lanes {
            let goes_on = handed.iter().any(|&(lane, _, credit)| lane == fenced.lane && credit);
            let heir = self.s.lane_mut(fenced.next).filter(|lane| lane.at_source == AtSource::Opening);
            match heir {
                Some(lane) if goes_on => (lane.at_source, lane.epoch) = (AtSource::Open, answered),
                _ => self.close_lane(fenced.next),
            }
        }
        if self.on.variant == Variant::TrustSize {
            return;
        }
        if fence.restart {
            self.begin_again();
        } else {
            self.verify(holds);
        }
    }

    /// The sink has zeros again. spec: V-5
    fn begin_again(&mut self) {
        let all = (1 << self.on.bounds.pages) - 1;
        let source = &mut self.s.source;
        source.leaves = [0; PAGES];
        (source.known, source.dirty) = (all, all);
    }

    fn verify(&mut self, holds: Pages) {
        for (page, &held) in holds.iter().enumerate() {
            let bit = 1 << page;
            if self.s.source.leaves[page] == held {
                continue;
            }
            if self.s.source.known & bit != 0 {
                self.flaw(Flaw::Disputed);
            }
            self.s.source.known &= !bit;
            self.s.source.dirty |= bit;
        }
    }
}
