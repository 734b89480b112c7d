//! The sink's view of its bulk lanes: who may join, what is applied, what may be carried, and what is buried.

use super::super::handover::FencingEvent;
use super::super::planted::Bug;
use super::super::{Applied, Output, SessionError, Time};
use super::{ACK_DELAY, ACK_EXTENTS, Sink, State, largest_frame};
use crate::wire::limits::MAX_LANE_IDS;
use crate::wire::{Ack, Buried, Credit, ErrorCode, Frame, Framing, LaneId};

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) state: LaneState,
    /// Next sequence number to be applied.
    pub(super) applied: u64,
    pub(super) acked: u64,
    pub(super) granted: u64,
    pub(super) consumed: u64,
    /// A message was announced and is not applied.
    pub(super) expects: bool,
}

impl Lane {
    pub(super) fn open(granted: u64) -> Self {
        Self { state: LaneState::Open, granted, ..Self::never() }
    }

    /// One that never joined.
    pub(super) fn never() -> Self {
        Self { state: LaneState::Down, applied: 0, acked: 0, granted: 0, consumed: 0, expects: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneState {
    Open,
    /// Its worker was told to stop; the source asked for the burial if `bury`.
    Closing {
        bury: bool,
    },
    /// Its worker has stopped.
    Down,
    /// The source has been told.
    Buried,
}

impl Sink {
    /// spec: L-2
    pub(super) fn lane_join(&mut self, lane: LaneId) {
        let open = self.lanes.values().filter(|lane| lane.state == LaneState::Open).count();
        let full = open >= usize::from(self.config.lanes) || self.lanes.len() >= usize::from(MAX_LANE_IDS);
        let used = self.lanes.contains_key(&lane) && !self.planted.has(Bug::StaleJoin);
        let closed = !self.control_up || self.state == State::Ended || self.ran() || !self.fencing.is_active();
        if closed || full || used || lane == LaneId::CONTROL {
            self.outputs.push_back(Output::RefuseLane { lane });
            return;
        }
        let granted = self.window();
        self.lanes.insert(lane, Lane::open(granted));
        self.progress.lanes = u16::try_from(open + 1).unwrap_or(u16::MAX);
        self.outputs.push_back(Output::AdmitLane { lane, credit: granted });
    }

    pub(super) fn window(&self) -> u64 {
        self.config.lane_window.max(largest_frame())
    }

    pub(super) fn applied(&mut self, now: Time, applied: &Applied) -> Result<(), SessionError> {
        let window = self.window();
        let Some(lane) = self.lanes.get_mut(&applied.lane) else { return Ok(()) };
        lane.applied = applied.seq + 1;
        lane.expects = false;
        lane.consumed += applied.wire_bytes;
        self.progress.wire_bytes += applied.wire_bytes;
        self.progress.pages_settled += u64::from(applied.pages);
        self.progress.pages_carried += u64::from(applied.pages);
        self.progress.pages_durable = applied.durable;
        // Half a window at a time: fewer frames, and the source never runs dry. Never less than an
        // extent at its worst, or a source with a large one to send would wait for ever. spec: C-3
        let least = (window / 2).max(largest_frame());
        if lane.state == LaneState::Open && lane.granted - lane.consumed.min(lane.granted) < least {
            lane.granted = lane.consumed + window;
            let (id, total) = (applied.lane, lane.granted);
            self.outputs.push_back(Output::Grant { lane: id, total });
            self.say(Frame::Credit(Credit { lane: id, total }));
        }
        if let Some(promise) = &mut self.promise {
            promise.void = true;
        }
        if self.state == State::Ready {
            self.state = State::Receiving;
            self.promise = None;
        }
        if let Some(pausing) = self.pause.as_mut().filter(|pausing| pausing.is_past(applied)) {
            // The source took it back: it says PAUSE anew.
            pausing.checked = true;
        }
        let waiting: u64 = self.lanes.values().map(|lane| lane.applied - lane.acked).sum();
        // The next message waits for it.
        let message = self.fencing.framing() == Framing::Messages;
        if self.pause.is_some() || message || waiting >= u64::from(ACK_EXTENTS) {
            self.acknowledge();
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + ACK_DELAY);
        }
        self.check_complete(now)
    }

    /// spec: A-1
    pub(super) fn acknowledge(&mut self) {
        self.ack_at = None;
        let mut lanes = Vec::new();
        for (&id, lane) in &mut self.lanes {
            if lane.applied > lane.acked && lane.state != LaneState::Buried {
                lane.acked = lane.applied;
                lanes.push((id, lane.applied));
            }
        }
        for part in lanes.chunks(crate::wire::limits::MAX_ACK_LANES) {
            // spec: A-3
            self.say(Frame::Ack(Ack { durable: self.progress.pages_durable, lanes: part.to_vec() }));
        }
    }

    /// spec: B-1
    pub(super) fn bury(&mut self, id: LaneId) {
        if self.lanes.len() >= usize::from(MAX_LANE_IDS) && !self.lanes.contains_key(&id) {
            return self.fail(SessionError::PeerViolation {
                code: ErrorCode::Unexpected,
                lane: id,
                position: 0,
                what: "too many lane ids in one session".into(),
            });
        }
        // A lane that never joined is buried all the same, so that it cannot join late.
        let lane = self.lanes.entry(id).or_insert(Lane::never());
        match lane.state {
            LaneState::Open => {
                lane.state = LaneState::Closing { bury: true };
                self.outputs.push_back(Output::CloseLane(id));
            }
            LaneState::Closing { .. } => lane.state = LaneState::Closing { bury: true },
            LaneState::Down | LaneState::Buried => self.buried(id),
        }
    }

    /// spec: B-2
    pub(super) fn buried(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.state = LaneState::Buried;
        // BURIED acknowledges, too.
        lane.acked = lane.applied;
        let applied = lane.applied;
        self.say(Frame::Buried(Buried { lane: id, applied }));
    }

    pub(super) fn lane_down(&mut self, now: Time, id: LaneId) -> Result<(), SessionError> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(()) };
        let asked = lane.state == LaneState::Closing { bury: true };
        if lane.state != LaneState::Buried {
            lane.state = LaneState::Down;
        }
        self.progress.lanes_lost += 1;
        if asked && self.control_up {
            self.buried(id);
        }
        self.fencing_step(now, FencingEvent::Gone(id))
    }

    pub(super) fn close_lanes(&mut self) {
        for (&id, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.state == LaneState::Open) {
            lane.state = LaneState::Closing { bury: false };
            self.outputs.push_back(Output::CloseLane(id));
        }
    }
}
