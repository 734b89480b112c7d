//! What goes wrong.

use dwcp_core::session::Input;
use dwcp_core::wire::LaneId;

use super::{Event, World};
use crate::net::End;
use crate::plan::{Fault, Side};

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        self.note(|| format!("FAULT {fault:?}"));
        self.count_struck(fault);
        match fault {
            Fault::CutLane => {
                if let Some(lane) = self.any_lane() {
                    self.cut_lane(lane);
                }
            }
            Fault::CutControl => self.cut_control(),
            Fault::Outage(time) => self.outage(time),
            Fault::StallLane(time) => {
                let until = self.now + time;
                if let Some(lane) = self.any_lane().and_then(|id| self.lanes.get_mut(&id)) {
                    lane.stream.arrival(until);
                }
            }
            Fault::StallControl(side, time) => {
                let until = self.now + time;
                if let Some(conn) = self.source.conn.and_then(|id| self.conns.get_mut(&id)) {
                    conn.towards(side).arrival(until);
                }
            }
            Fault::Corrupt => self.corrupt_next = true,
            Fault::Crash(side, time) => self.crash(side, time),
            Fault::Cancel(side) => {
                self.excuses.cancel = true;
                self.feed(side, Input::Cancel);
            }
            Fault::Bandwidth(rate) => self.feed(Side::Source, Input::Bandwidth(rate)),
            Fault::LaneRate(rate) => self.lane_rate = rate,
            Fault::PersistFails(side) => self.node(side).fail_persist = true,
            Fault::PersistSlow(side, time) => self.node(side).slow_persist = time,
            Fault::GuestFails(side) => self.node(side).fail_operation = true,
            Fault::LateJoin => self.late_join = true,
            Fault::Prefer(side, wish) => self.feed(side, Input::Prefer(wish)),
        }
    }

    fn count_struck(&mut self, fault: Fault) {
        let strikes = matches!(
            fault,
            Fault::CutLane
                | Fault::CutControl
                | Fault::Outage(_)
                | Fault::StallLane(_)
                | Fault::StallControl(..)
                | Fault::Crash(..)
        );
        if strikes && self.handing_over == Some(false) {
            self.handing_over = Some(true);
            self.handovers_struck += 1;
        }
    }

    fn any_lane(&mut self) -> Option<LaneId> {
        let alive: Vec<LaneId> =
            self.lanes.values().filter(|lane| lane.source != End::Gone).map(|lane| lane.id).collect();
        if alive.is_empty() { None } else { Some(self.rng.pick(&alive)) }
    }

    fn cut_lane(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.stream.alive = false;
        let dialling = lane.source == End::Joining;
        for side in [Side::Source, Side::Sink] {
            // Some ends never notice by themselves; a dial ends by its own clock.
            let delay = self.detection();
            if !self.rng.percent(10) || dialling && side == Side::Source {
                self.after(delay, Event::LaneGone(side, id));
            }
        }
    }

    fn cut_control(&mut self) {
        if let Some(conn) = self.source.conn.or(self.sink.conn) {
            self.cut(conn);
        }
    }

    fn outage(&mut self, time: u64) {
        self.no_link_until = self.no_link_until.max(self.now.saturating_add(time));
        self.excuses.forever |= time > u64::MAX / 8;
        self.cut_control();
        let ids: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in ids {
            self.cut_lane(id);
        }
    }
}
