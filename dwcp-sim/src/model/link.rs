//! Lane 0: what is said on it, how it is lost and re-made.

use dwcp_core::session::handover::{LeavingEvent, Wish};
use dwcp_core::wire::{Fence, LaneId};

use super::{Action, Flaw, Pages, Side, SinkPhase, SourcePhase, State, Turn, left};

/// What is said, as far as a hand-over is concerned. OFFER and ACCEPT were before; pings tell nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields of the frames of the same names")]
pub enum Frame {
    /// A lane is to be buried.
    Bury(LaneId),
    /// The guest is paused and all is sent.
    Pause { attempt: u8, root: Pages, finals: Vec<(LaneId, u8)> },
    /// The point of no return is behind the source.
    Run { epoch: u8, attempt: u8, root: Pages },
    /// The lanes have ended.
    Fence(Fence),
    /// A message comes on this lane.
    Message { lane: LaneId, first: u8 },
    /// So much of a lane is applied.
    Ack { lane: LaneId, applied: u8 },
    /// A lane is buried.
    Buried { lane: LaneId, applied: u8 },
    /// What the sink wants.
    Prefer(Wish),
    /// The fence is durable: for each lane what is applied, and whether it goes on; and what is held.
    Handover { epoch: u8, lanes: Vec<(LaneId, u8, bool)>, holds: Pages },
    /// All is here, and durable.
    Ready { epoch: u8, attempt: u8, root: Pages },
    /// The guest runs at the sink.
    Running { epoch: u8 },
}

/// The control connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Whether anything that is said now will arrive.
    pub alive: bool,
    /// On the way, the oldest first.
    pub to_sink: Vec<Frame>,
    /// Likewise.
    pub to_source: Vec<Frame>,
}

impl Default for Link {
    fn default() -> Self {
        Self { alive: true, to_sink: Vec::new(), to_source: Vec::new() }
    }
}

impl State {
    pub(super) fn faults(&self, actions: &mut Vec<Action>) {
        if self.link.alive && self.left[left::CUTS] > 0 {
            actions.push(Action::Cut);
        }
        if self.left[left::LANE_CUTS] > 0 {
            let whole = self.lanes.iter().filter(|lane| lane.may_be_cut());
            actions.extend(whole.map(|lane| Action::CutLane(lane.id)));
        }
        if self.left[left::SOURCE_CRASHES] > 0 {
            let writing = self.source.phase == SourcePhase::GivingUp;
            actions.push(Action::Crash(Side::Source, false));
            actions.extend(writing.then_some(Action::Crash(Side::Source, true)));
        }
        if self.left[left::SINK_CRASHES] > 0 && self.sink.phase != SinkPhase::Gone {
            actions.push(Action::Crash(Side::Sink, false));
            actions.extend(self.sink.writing().then_some(Action::Crash(Side::Sink, true)));
        }
        if !self.source.control {
            actions.push(Action::Reconnect(true));
            actions.extend(self.sink.control.then_some(Action::Reconnect(false)));
        }
    }
}

impl Turn {
    pub(super) fn say_to_sink(&mut self, frame: Frame) {
        if self.s.source.control && self.s.link.alive {
            self.s.link.to_sink.push(frame);
        }
    }

    pub(super) fn say_to_source(&mut self, frame: Frame) {
        if !self.s.sink.control || !self.s.link.alive {
            return;
        }
        let queue = &mut self.s.link.to_source;
        // An acknowledgement waits for the next one for a while.
        if let (Some(Frame::Ack { lane, applied }), Frame::Ack { lane: again, applied: more }) =
            (queue.last_mut(), &frame)
            && *lane == *again
        {
            *applied = *more;
            return;
        }
        queue.push(frame);
    }

    pub(super) fn deliver_to_source(&mut self) {
        let frame = self.s.link.to_source.remove(0);
        if self.s.source.is_over() {
            return;
        }
        match frame {
            Frame::Ack { lane, applied } => self.acked(lane, applied),
            Frame::Buried { lane, applied } => self.bury_lane(lane, applied),
            Frame::Prefer(wish) => self.leaving(LeavingEvent::PeerWants(wish)),
            Frame::Handover { epoch, lanes, holds } => self.handed_over(epoch, &lanes, holds),
            Frame::Ready { epoch, attempt, root } => self.ready(epoch, attempt, root),
            Frame::Running { epoch } => self.sink_runs(epoch),
            _ => self.accuse(),
        }
        self.advance();
    }

    pub(super) fn deliver_to_sink(&mut self) {
        let frame = self.s.link.to_sink.remove(0);
        match frame {
            Frame::Bury(lane) => self.bury(lane),
            Frame::Pause { attempt, root, finals } => self.sink_paused(attempt, root, finals),
            Frame::Run { epoch, attempt, root } => self.run(epoch, attempt, root),
            Frame::Fence(fence) => self.fenced(fence),
            Frame::Message { lane, first } => self.message(lane, first),
            _ => self.accuse(),
        }
    }

    /// A new connection; what was on its way on the old one is gone.
    pub(super) fn reconnect(&mut self, noticed: bool) {
        let late = std::mem::take(&mut self.s.link);
        if self.s.sink.phase == SinkPhase::Gone && !self.s.source.gave_up() {
            // The session is not known any more: a restarted sink holds nothing.
            return self.stay();
        }
        if noticed {
            self.sink_control_down();
        }
        if self.on.variant == super::Variant::LateFrames {
            (self.s.link.to_sink, self.s.link.to_source) = (late.to_sink, late.to_source);
        }
        if self.s.sink.phase == SinkPhase::Gone {
            self.recover_sink();
        }
        if self.s.sink.phase == SinkPhase::Gone {
            // GIVE_UP was durable, and the sink knows of no promise.
            self.flaw(Flaw::NotDurable);
            self.s.source.phase = SourcePhase::InDoubt;
            return;
        }
        self.sink_control_up();
        self.source_control_up();
        self.advance();
    }
}
