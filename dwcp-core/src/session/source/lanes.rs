//! What becomes of extents that were handed to lanes, and of lanes: acknowledged, lost, buried, dialled again.

use super::super::handover::LeavingEvent;
use super::super::lanes::{BadAck, Flight};
use super::super::planted::Bug;
use super::super::{Output, SessionError, Time};
use super::{Source, State};
use crate::extent::Extent;
use crate::wire::limits::MAX_LANE_IDS;
use crate::wire::{Bury, ErrorCode, Frame, Framing, LaneId};

impl Source {
    pub(super) fn acked(&mut self, now: Time, lane: LaneId, applied: u64) -> Result<(), SessionError> {
        let settled = self.lanes.acknowledged(lane, applied, now).map_err(|BadAck| bad_ack(lane, applied))?;
        for flight in settled {
            self.progress.extent_latency.record(now.since(flight.sent_at));
            if self.leave.framing() == Framing::Extents {
                self.budget.delivered(now, flight.charge, flight.effort);
            }
            self.settle(&flight);
        }
        if let Some(message) = self.lanes.due_message(lane) {
            self.ship(message);
        }
        Ok(())
    }

    /// An extent is applied: its pages are clean, or dirty again if they changed meanwhile.
    pub(super) fn settle(&mut self, flight: &Flight) {
        self.dirty.release(&flight.extent);
        self.known.assign(&self.layout, &flight.extent, true);
        self.shadow.settle(&self.layout, &flight.extent, &flight.slots, true);
        self.progress.pages_settled += pages(&flight.extent);
    }

    /// An extent is lost: nobody knows what the sink holds there, so everything of it is dirty.
    pub(super) fn lose(&mut self, flight: &Flight) {
        self.dirty.requeue(&flight.extent);
        self.shadow.settle(&self.layout, &flight.extent, &flight.slots, false);
        if self.state == State::Sealed {
            // What was sealed is not all there: send it again and seal anew.
            self.state = State::Draining;
            self.switch.sealed = None;
        }
    }

    pub(super) fn lane_down(&mut self, now: Time, lane: LaneId) {
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
    pub(super) fn bury_lane(&mut self, now: Time, lane: LaneId, applied: u64) -> Result<(), SessionError> {
        let (settled, lost) = self.lanes.bury(lane, applied).map_err(|BadAck| bad_ack(lane, applied))?;
        settled.iter().chain(&lost).filter(|flight| flight.encoded).for_each(|_| self.budget.gone());
        for flight in settled {
            self.progress.extent_latency.record(now.since(flight.sent_at));
            self.settle(&flight);
        }
        for flight in lost {
            self.lose(&flight);
        }
        Ok(())
    }

    pub(super) fn close_lane(&mut self, lane: LaneId) {
        if self.lanes.closing(lane) {
            self.outputs.push_back(Output::CloseLane(lane));
        }
    }

    pub(super) fn tend_lanes(&mut self, now: Time) -> Result<(), SessionError> {
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
