//! The end that gets the guest, after `dwcp_core`'s `session/sink`.

use dwcp_core::session::handover::{Fencing, FencingAction, FencingEvent, Wish};
use dwcp_core::wire::{Fence, FenceEpoch, Framing, LaneId};

use super::lane::AtSink;
use super::link::Frame;
use super::source::{Promise, epoch};
use super::{Action, Flaw, PAGES, Pages, Side, State, Turn, Variant, left};

/// Where a sink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SinkPhase {
    /// It takes pages.
    Receiving,
    /// All is there; READY is being made durable.
    Recording,
    /// READY is said.
    Ready,
    /// The guest runs; that is being made durable.
    RecordingRan,
    /// That is durable.
    Running,
    /// Its process has died; there is what the record says.
    Gone,
}

/// A PAUSE.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pausing {
    /// Which.
    pub attempt: u8,
    /// What must be held.
    pub root: Pages,
    /// How far each lane goes.
    pub finals: Vec<(LaneId, u8)>,
    /// It was there, once.
    pub checked: bool,
}

/// The sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sink {
    /// Where it is.
    pub phase: SinkPhase,
    /// Lane 0 is up, as far as it knows.
    pub control: bool,
    /// What is applied.
    pub holds: Pages,
    /// The guest runs here.
    pub running: bool,
    /// The step under test.
    pub fencing: Fencing,
    /// The transfer's epoch: of lanes that join, and of what is promised.
    pub epoch: u8,
    /// The epoch of the pair, durable.
    pub fence: u8,
    /// Epochs below this have had their fence.
    pub sealed_below: u8,
    /// An epoch is being made durable.
    pub raising: Option<u8>,
    /// What was applied is being thrown away.
    pub clearing: bool,
    /// It was, once.
    pub cleared: bool,
    /// Lanes that have reached their ends, and their heirs.
    pub kept: Vec<(LaneId, LaneId)>,
    /// What this node wants.
    pub wish: Wish,
    /// The pause that goes on.
    pub pause: Option<Pausing>,
    /// What READY promises, and whether that is void already.
    pub promise: Option<(Promise, bool)>,
    /// The promise that is durable.
    pub record: Option<Promise>,
}

impl Sink {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            phase: SinkPhase::Receiving,
            control: true,
            holds: [0; PAGES],
            running: false,
            fencing: Fencing::new(FenceEpoch(1), framing),
            epoch: 1,
            fence: 1,
            sealed_below: 0,
            raising: None,
            clearing: false,
            cleared: false,
            kept: Vec::new(),
            wish: Wish::default(),
            pause: None,
            promise: None,
            record: None,
        }
    }

    /// A record is being written.
    pub(super) fn writing(&self) -> bool {
        matches!(self.phase, SinkPhase::Recording | SinkPhase::RecordingRan)
    }

    fn ran(&self) -> bool {
        matches!(self.phase, SinkPhase::RecordingRan | SinkPhase::Running)
    }

    fn receives(&self) -> bool {
        matches!(self.phase, SinkPhase::Receiving | SinkPhase::Recording | SinkPhase::Ready)
    }

    pub(super) fn takes_lanes(&self) -> bool {
        !self.ran() && self.phase != SinkPhase::Gone
    }

    pub(super) fn takes_messages(&self) -> bool {
        self.fencing.framing() == Framing::Messages
    }
}

impl State {
    pub(super) fn sink_actions(&self, actions: &mut Vec<Action>) {
        let sink = &self.sink;
        if sink.control && !self.link.alive {
            actions.push(Action::Notice(Side::Sink));
        }
        if sink.control && !self.link.to_sink.is_empty() {
            actions.push(Action::Deliver(Side::Sink));
        }
        if sink.raising.is_some() {
            actions.push(Action::Raised(Side::Sink));
        }
        if sink.clearing {
            actions.push(Action::Cleared);
        }
        if sink.writing() {
            actions.push(Action::Recorded(Side::Sink));
        }
    }
}

impl Turn {
    /// spec: V-1
    pub(super) fn sink_prefers(&mut self, wish: Wish) {
        self.s.sink.wish = wish;
        self.say_wish();
    }

    fn say_wish(&mut self) {
        if !self.s.sink.ran() {
            self.say_to_source(Frame::Prefer(self.s.sink.wish));
        }
    }

    pub(super) fn sink_control_down(&mut self) {
        if self.s.sink.control {
            self.s.sink.control = false;
            self.s.link.to_sink.clear();
            self.close_sink_lanes();
            self.s.sink.kept.clear();
        }
    }

    pub(super) fn sink_control_up(&mut self) {
        self.s.sink.control = true;
        self.say_wish();
        if self.on.variant != Variant::AnswersUnasked {
            self.fencing_step(FencingEvent::Back);
        }
    }

    fn close_sink_lanes(&mut self) {
        for lane in self.s.lanes.iter_mut().filter(|lane| lane.at_sink == AtSink::Open) {
            lane.at_sink = AtSink::Closing { bury: false };
        }
    }

    /// spec: B-1
    pub(super) fn bury(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else {
            // Buried before, and forgotten by its source.
            return;
        };
        match lane.at_sink {
            AtSink::Open | AtSink::Closing { .. } => lane.at_sink = AtSink::Closing { bury: true },
            AtSink::Never | AtSink::Down | AtSink::Buried => self.buried(id),
        }
    }

    /// spec: B-2
    fn buried(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        lane.at_sink = AtSink::Buried;
        let applied = lane.applied;
        self.say_to_source(Frame::Buried { lane: id, applied });
    }

    pub(super) fn sink_lane_down(&mut self, id: LaneId) {
        let control = self.s.sink.control;
        let Some(lane) = self.s.lane_mut(id) else { return };
        let asked = lane.at_sink == AtSink::Closing { bury: true };
        if lane.at_sink != AtSink::Buried {
            lane.at_sink = AtSink::Down;
        }
        if asked && control {
            self.buried(id);
        }
        self.fencing_step(FencingEvent::Gone(id));
    }

    /// spec: A-1, S-9
    pub(super) fn sink_applied(&mut self, lane: LaneId, applied: u8) {
        self.void_promise();
        if let Some(pausing) = &mut self.s.sink.pause {
            // Sent after it: the source took it back.
            pausing.checked |= !pausing.finals.iter().any(|&(id, end)| id == lane && applied <= end);
        }
        if self.s.lane(lane).is_some_and(|lane| lane.at_sink != AtSink::Buried) {
            self.say_to_source(Frame::Ack { lane, applied });
        }
        self.check_complete();
    }

    fn void_promise(&mut self) {
        let sink = &mut self.s.sink;
        if let Some((_, void)) = &mut sink.promise {
            *void = true;
        }
        if sink.phase == SinkPhase::Ready {
            sink.phase = SinkPhase::Receiving;
            sink.promise = None;
        }
    }

    /// spec: V-3
    pub(super) fn fenced(&mut self, fence: Fence) {
        if !self.s.sink.receives() {
            return self.accuse();
        }
        let sound = |fenced: &dwcp_core::wire::FencedLane| {
            self.s.sink_knows(fenced.lane) && !self.s.lane(fenced.next).is_none_or(|next| next.at_sink != AtSink::Never)
        };
        if !fence.lanes.iter().all(sound) {
            return self.accuse();
        }
        let mut running: Vec<_> = self.s.lanes.iter().filter(|lane| lane.is_running()).map(|lane| lane.id).collect();
        if matches!(self.on.variant, Variant::NoFence) {
            running.clear();
        }
        self.fencing_step(FencingEvent::Fence(fence, running));
    }

    fn fencing_step(&mut self, event: FencingEvent) {
        for action in self.s.sink.fencing.step(event) {
            match action {
                FencingAction::End(lanes) => self.end_lanes(&lanes),
                FencingAction::Clear => self.s.sink.clearing = true,
                FencingAction::Raise(least) => self.raise(epoch(least)),
                FencingAction::GoOn(fence) => self.hand_over(&fence),
                FencingAction::Repeat => self.say_handover(Vec::new()),
                FencingAction::Violation => self.accuse(),
            }
        }
        // Whoever clears or raises has seen the last of the epochs before.
        if let Some(raising) = self.s.sink.raising {
            self.s.sink.sealed_below = raising;
        }
    }

    fn raise(&mut self, least: u8) {
        self.s.sink.raising = Some(least);
        if self.on.variant == Variant::HandoverBeforeSync {
            self.s.sink.sealed_below = least;
            self.fencing_step(FencingEvent::Durable(FenceEpoch(least.into())));
        }
    }

    /// Lanes go on to their ends, others end now; what READY promised is taken back.
    fn end_lanes(&mut self, fenced: &[dwcp_core::wire::FencedLane]) {
        self.void_promise();
        self.s.sink.pause = None;
        self.s.sink.kept.clear();
        if self.on.variant == Variant::NoFence {
            return;
        }
        for ends in fenced {
            let open = self.s.lane_mut(ends.lane).filter(|lane| lane.at_sink == AtSink::Open);
            if let Some(lane) = open {
                lane.at_sink = AtSink::Closing { bury: false };
                lane.ends = Some(ends.end as u8);
            }
        }
        self.close_sink_lanes();
    }

    pub(super) fn cleared(&mut self) {
        self.s.sink.clearing = false;
        self.s.sink.cleared = true;
        if self.on.variant != Variant::RestartKeepsPages {
            self.s.sink.holds = [0; PAGES];
        }
        self.fencing_step(FencingEvent::Cleared);
    }

    pub(super) fn sink_raised(&mut self) {
        if let Some(raised) = self.s.sink.raising.take() {
            self.s.sink.fence = self.s.sink.fence.max(raised);
            self.fencing_step(FencingEvent::Durable(FenceEpoch(self.s.sink.fence.into())));
        }
    }

    /// From here on nothing of before can be applied. spec: V-4
    fn hand_over(&mut self, fence: &Fence) {
        let epoch = epoch(fence.epoch);
        self.s.sink.epoch = epoch;
        if fence.restart && self.s.sink.holds != [0; PAGES] {
            self.flaw(Flaw::Tainted);
        }
        let kept = std::mem::take(&mut self.s.sink.kept);
        let mut handed = Vec::new();
        for fenced in &fence.lanes {
            let reached = kept.iter().any(|&(lane, _)| lane == fenced.lane);
            let survives = self.s.sink.control && reached && !self.s.sink_knows(fenced.next);
            let Some(old) = self.s.lane_mut(fenced.lane) else { continue };
            old.at_sink = AtSink::Buried;
            handed.push((fenced.lane, old.applied, survives));
            self.adopt(fenced.next, survives, epoch);
        }
        self.say_handover(handed);
    }

    fn adopt(&mut self, next: LaneId, survives: bool, epoch: u8) {
        let Some(lane) = self.s.lane_mut(next) else { return };
        if survives {
            (lane.at_sink, lane.applier, lane.admitted) = (AtSink::Open, true, epoch);
        } else {
            lane.alive = false;
        }
    }

    fn say_handover(&mut self, lanes: Vec<(LaneId, u8, bool)>) {
        let (epoch, holds) = (self.s.sink.epoch, self.s.sink.holds);
        if epoch > self.s.sink.fence {
            self.flaw(Flaw::Unfenced);
        }
        if !self.s.sink.fencing.is_asked() {
            return;
        }
        self.say_to_source(Frame::Handover { epoch, lanes, holds });
    }

    /// spec: V-6
    pub(super) fn message(&mut self, id: LaneId, first: u8) {
        if !self.s.sink.takes_messages() {
            return self.accuse();
        }
        let Some(lane) = self.s.lane_mut(id).filter(|lane| lane.at_sink != AtSink::Never) else {
            return self.accuse();
        };
        if lane.at_sink != AtSink::Open {
            return;
        }
        let early = first != lane.applied || lane.expects;
        lane.expects = true;
        if early {
            self.accuse();
        }
    }

    /// spec: S-1
    pub(super) fn sink_paused(&mut self, attempt: u8, root: Pages, finals: Vec<(LaneId, u8)>) {
        let again = self.s.sink.pause.as_ref().is_some_and(|old| attempt <= old.attempt);
        if !self.s.sink.receives() || !self.s.sink.fencing.is_active() || again {
            return self.accuse();
        }
        self.void_promise();
        self.s.sink.pause = Some(Pausing { attempt, root, finals, checked: false });
        self.check_complete();
    }

    /// spec: S-3
    fn check_complete(&mut self) {
        if self.s.sink.phase != SinkPhase::Receiving {
            return;
        }
        let Some(pausing) = self.s.sink.pause.clone().filter(|pausing| !pausing.checked) else { return };
        let arrived = |&(id, end): &(LaneId, u8)| {
            end == 0 || self.s.lane(id).is_some_and(|lane| lane.at_sink != AtSink::Never && lane.applied >= end)
        };
        if !pausing.finals.iter().all(arrived) {
            return;
        }
        if pausing.root != self.s.sink.holds && self.on.variant != Variant::TrustSize {
            return self.accuse();
        }
        let epoch = self.s.sink.epoch;
        let promise = Promise { epoch, attempt: pausing.attempt, root: pausing.root };
        self.s.sink.pause = Some(Pausing { checked: true, ..pausing });
        self.s.sink.promise = Some((promise, false));
        self.s.sink.phase = SinkPhase::Recording;
        if self.on.variant == Variant::ReadyBeforeSync {
            self.s.sink.phase = SinkPhase::Ready;
            self.say_ready(promise);
        }
    }

    pub(super) fn sink_recorded(&mut self) {
        if self.s.sink.phase == SinkPhase::RecordingRan {
            self.s.sink.phase = SinkPhase::Running;
            return self.say_running();
        }
        let Some((promise, void)) = self.s.sink.promise else { return };
        self.s.sink.record = Some(promise);
        if void {
            self.s.sink.promise = None;
            self.s.sink.phase = SinkPhase::Receiving;
            return self.check_complete();
        }
        self.s.sink.phase = SinkPhase::Ready;
        if self.on.variant == Variant::RenameBeforeIntent {
            self.s.sink.running = true;
        }
        self.say_ready(promise);
    }

    fn say_ready(&mut self, Promise { epoch, attempt, root }: Promise) {
        if self.s.sink.record != Some(Promise { epoch, attempt, root }) {
            self.flaw(Flaw::NotDurable);
        }
        self.say_to_source(Frame::Ready { epoch, attempt, root });
    }

    /// spec: S-5
    pub(super) fn run(&mut self, epoch: u8, attempt: u8, root: Pages) {
        let asked = Promise { epoch, attempt, root };
        if self.s.sink.promise != Some((asked, false)) {
            return self.accuse();
        }
        match self.s.sink.phase {
            SinkPhase::Ready => {
                self.s.sink.phase = SinkPhase::RecordingRan;
                self.s.sink.running = true;
                self.close_sink_lanes();
            }
            SinkPhase::Running => self.say_running(),
            SinkPhase::RecordingRan => {}
            _ => self.accuse(),
        }
    }

    fn say_running(&mut self) {
        let epoch = self.s.sink.epoch;
        self.say_to_source(Frame::Running { epoch });
    }

    /// What is being written is durable, or not. The guest has a process of its own; what is only staged has none.
    pub(super) fn sink_crashes(&mut self, durable: bool) {
        self.s.left[left::SINK_CRASHES] -= 1;
        self.s.link.alive = false;
        let sink = &mut self.s.sink;
        if durable && sink.phase == SinkPhase::Recording {
            sink.record = sink.promise.map(|(promise, _)| promise);
        }
        sink.phase = SinkPhase::Gone;
        (sink.control, sink.raising, sink.clearing) = (false, None, false);
        (sink.pause, sink.promise) = (None, None);
        sink.kept.clear();
        if sink.record.is_none() {
            sink.holds = [0; PAGES];
        }
        for lane in &mut self.s.lanes {
            (lane.applier, lane.alive) = (false, false);
            lane.wire.clear();
        }
        self.s.link.to_sink.clear();
    }

    /// A new session asks about the transfer: the record knows. spec: S-8
    pub(super) fn recover_sink(&mut self) {
        let framing = self.s.sink.fencing.framing();
        let sink = &mut self.s.sink;
        let Some(promise) = sink.record else { return };
        sink.promise = Some((promise, false));
        sink.epoch = promise.epoch;
        sink.fencing = Fencing::new(FenceEpoch(promise.epoch.into()), framing);
        sink.phase = if sink.running { SinkPhase::Running } else { SinkPhase::Ready };
    }
}
