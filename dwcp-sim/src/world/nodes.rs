//! What the drivers do: outputs, guest operations, records, crashes.

use std::sync::Arc;

use dwcp_core::extent::FlatPage;
use dwcp_core::session::{Input, Leaves, Machine as _, Outcome, Output, Owner, Record, SessionError, Source, Standing};
use dwcp_core::wire::{ErrorCode, Frame, Offer};
use dwcp_core::{DirtyMap, Layout};

use super::{Disk, Event, Fate, Operation, World, failed_guest};
use crate::guest::leaf;
use crate::plan::{MS, Planted, Side, When};
use crate::props::Property;

impl World {
    pub(super) fn source_output(&mut self, output: Output) {
        match output {
            Output::Control(frame) => self.say(Side::Source, &frame),
            Output::Redial { fresh } => self.dial(fresh, 0),
            Output::OpenLane(lane) => self.open_lane(lane),
            Output::CloseLane(lane) => self.close_lane(Side::Source, lane),
            Output::LeaveLane { lane, next } => self.leave_lane(lane, next),
            Output::AdoptLane(lane) => self.adopt_at_source(lane),
            Output::Ship(lane) => self.ship(lane),
            Output::Engage { epoch, framing } => {
                self.handing_over = None;
                self.source.engaged = (epoch, framing);
            }
            Output::RaiseFence { least, .. } => {
                self.handovers_begun += 1;
                self.handing_over = Some(false);
                self.queue(Side::Source, Operation::Raise(least));
            }
            Output::Send(dispatch) => self.dispatch(dispatch),
            Output::Harvest => self.queue(Side::Source, Operation::Harvest),
            Output::Recall { held, baseline } => self.queue(Side::Source, Operation::Recall(held, baseline)),
            Output::Pause => self.queue(Side::Source, Operation::Pause),
            Output::Resume => {
                if self.run_sent || self.source.disk.durable.is_some() {
                    self.violate(Property::OneOwner, "the source resumes its guest after GIVE_UP");
                }
                self.queue(Side::Source, Operation::Resume);
            }
            Output::SaveDevices => self.queue(Side::Source, Operation::SaveDevices),
            Output::Persist(record) => self.persist(Side::Source, &record),
            Output::Forget(_) => self.forget(Side::Source),
            Output::Retract(_) => {
                let wait = self.rng.below(self.plan.disk);
                let life = self.source.life;
                self.after(wait, Event::Retracted(life));
            }
            Output::Finished(outcome) => self.finished(Side::Source, &outcome),
            other => self.violate(Property::NoFalseAccusation, format!("a source asks for {other:?}")),
        }
    }

    pub(super) fn sink_output(&mut self, output: Output) {
        match output {
            Output::Control(frame) => self.say(Side::Sink, &frame),
            Output::CloseLane(lane) => self.close_lane(Side::Sink, lane),
            Output::EndLane(fenced) => self.end_lane(fenced),
            Output::Expect(message) => self.expect(message),
            Output::Engage { epoch, framing } => self.sink_engages(epoch, framing),
            Output::Clear => self.queue(Side::Sink, Operation::Clear),
            Output::RaiseFence { least, .. } => self.queue(Side::Sink, Operation::Raise(least)),
            Output::AdmitLane { lane, credit } => self.admit(lane, credit),
            Output::RefuseLane { lane } => {
                let latency = self.latency();
                self.after(latency, Event::LaneGone(Side::Source, lane));
            }
            Output::Grant { lane, total } => {
                if let Some(lane) = self.lanes.get_mut(&lane) {
                    lane.granted = lane.granted.max(total);
                }
            }
            Output::Stage { devices } => self.queue(Side::Sink, Operation::Stage(devices)),
            Output::Run => {
                self.moment(|when| if let When::Run(delay) = *when { Some(delay) } else { None });
                self.queue(Side::Sink, Operation::Run);
            }
            Output::Discard | Output::Park => self.queue(Side::Sink, Operation::Discard),
            Output::Adrift => {}
            Output::Persist(record) => self.persist(Side::Sink, &record),
            Output::Forget(_) => self.forget(Side::Sink),
            Output::Finished(outcome) => self.finished(Side::Sink, &outcome),
            other => self.violate(Property::NoFalseAccusation, format!("a sink asks for {other:?}")),
        }
    }

    /// Properties that show in what is said.
    pub(super) fn look_at_frame(&mut self, from: Side, frame: &Frame) {
        match frame {
            Frame::Run(_) => {
                let standing = self.source.disk.record().map(|record| record.standing);
                if standing != Some(Standing::GaveUp) || self.source.guest.is_running() {
                    self.violate(Property::OneOwner, "RUN is said before GIVE_UP is durable");
                }
                self.run_sent = true;
            }
            Frame::Ready(ready) => {
                let attempt = self.sink.disk.record().map(|record| record.attempt);
                if attempt != Some(ready.attempt) {
                    self.violate(Property::OneOwner, "READY is said before it is durable");
                }
            }
            Frame::Running(_) => {
                let standing = self.sink.disk.record().map(|record| record.standing);
                let recorded = standing == Some(Standing::Ran) || self.excuses.disk;
                if !self.sink.guest.is_running() || !recorded {
                    self.violate(Property::TrueOutcome, "RUNNING is said before the guest runs and that is durable");
                }
            }
            Frame::Fence(fence) => self.restarting = fence.restart,
            Frame::Buried(buried) => {
                if let Some(lane) = self.lanes.get_mut(&buried.lane) {
                    lane.buried = true;
                    let (claimed, applied) = (buried.applied, lane.next_seq);
                    let running = matches!(lane.sink, crate::net::End::Open | crate::net::End::Stopping);
                    if running || claimed != applied && !self.excuses.corrupt {
                        let what = format!("BURIED says {claimed}, {applied} are applied, or the worker still runs");
                        self.violate(Property::Buried, what);
                    }
                }
            }
            _ => {}
        }
        let frame_type = frame.frame_type();
        let _ = from;
        let count = self.said_frames.entry(frame_type.byte()).or_default();
        *count += 1;
        let count = *count;
        self.moment(|when| match *when {
            When::Sent(wanted, nth, delay) if wanted == frame_type && nth == count => Some(delay),
            _ => None,
        });
    }

    /// Starts the faults that wait for this moment.
    pub(super) fn moment(&mut self, matches: impl Fn(&When) -> Option<u64>) {
        if self.now > self.plan.calm_at {
            return;
        }
        for index in 0..self.triggers.len() {
            let (when, fault, used) = &mut self.triggers[index];
            if *used > 0 {
                continue;
            }
            if let Some(delay) = matches(when) {
                *used += 1;
                let fault = *fault;
                self.after(delay, Event::Fault(fault));
            }
        }
    }

    fn queue(&mut self, side: Side, operation: Operation) {
        let node = self.node(side);
        node.operations.push_back(operation);
        if !node.operating {
            node.operating = true;
            self.operate_later(side);
        }
    }

    fn operate_later(&mut self, side: Side) {
        let wait = self.rng.below(self.plan.operation) + 1;
        let life = self.node(side).life;
        self.after(wait, Event::Operation(side, life));
    }

    /// One operation of a guest, done.
    pub(super) fn operate(&mut self, side: Side, life: u32) {
        if self.node(side).life != life {
            return;
        }
        let Some(operation) = self.node(side).operations.pop_front() else { return };
        let slow = if matches!(operation, Operation::Raise(_)) { self.node(side).slow_persist } else { 0 };
        if slow > 0 {
            let node = self.node(side);
            node.slow_persist = 0;
            node.operations.push_front(operation);
            return self.after(slow, Event::Operation(side, life));
        }
        self.node(side).operating = !self.node(side).operations.is_empty();
        if self.node(side).operating {
            self.operate_later(side);
        }
        // What had succeeded before a crash succeeds again: the contract of `Guest::resume`.
        let again = matches!(operation, Operation::Run) && self.sink.guest.is_running();
        let never = matches!(operation, Operation::Resume | Operation::Discard | Operation::Raise(_));
        let can_fail = !again && !never;
        if can_fail && std::mem::take(&mut self.node(side).fail_operation) {
            self.excuses.guest = true;
            return self.feed(side, Input::GuestFailed(failed_guest()));
        }
        if let Some(input) = self.perform(side, operation) {
            self.feed(side, input);
        }
    }

    /// Two pages of three that the sink holds as they are now.
    fn recall(&self, held: &Leaves) -> DirtyMap {
        let guest = &self.source.guest;
        let layout = Layout::new(&self.plan.regions).unwrap();
        let mut same = DirtyMap::new(&layout);
        for page in (0..layout.flat_pages()).map(FlatPage).filter(|page| page.0 % 3 > 0) {
            if let Some((region, number)) = layout.locate(page)
                && held.get(page) == leaf(guest.read(page))
            {
                same.mark(region, number, 1);
            }
        }
        same
    }

    fn perform(&mut self, side: Side, operation: Operation) -> Option<Input> {
        let now = self.now;
        match operation {
            Operation::Clear => {
                self.wipe_sink();
                Some(Input::Cleared)
            }
            Operation::Raise(least) => {
                let node = self.node(side);
                node.fence = node.fence.max(least);
                Some(Input::Raised(node.fence))
            }
            Operation::Harvest => {
                self.source.guest.advance(now);
                let late = self.planted == Some(Planted::LateClear);
                let (dirty, pending) = self.source.guest.harvest(late);
                if late {
                    let wait = self.rng.below(20 * MS);
                    self.after(wait, Event::LateClear(dirty.pages().collect()));
                }
                Some(Input::Harvested { dirty, pending })
            }
            Operation::Recall(held, baseline) => {
                if let Some(baseline) = baseline {
                    held.assume(&baseline);
                }
                Some(Input::Recalled { same: self.recall(&held) })
            }
            Operation::Pause => {
                self.source.guest.pause(now);
                self.pauses += 1;
                let pauses = self.pauses;
                self.moment(|when| match *when {
                    When::Paused(nth, delay) if nth == pauses => Some(delay),
                    _ => None,
                });
                Some(Input::Paused)
            }
            Operation::Resume => {
                self.source.guest.resume(now);
                if self.sink.guest.is_running() {
                    self.violate(Property::OneOwner, "the guest runs again at the source while it runs at the sink");
                }
                None
            }
            Operation::SaveDevices => {
                let devices = self.source.guest.devices(self.plan.device_bytes);
                self.devices = Some(devices.clone());
                Some(Input::Devices(devices))
            }
            Operation::Stage(devices) => {
                self.lay_rest();
                self.staged = Some(devices);
                Some(Input::Staged)
            }
            Operation::Run => {
                self.run_guest();
                Some(Input::Running)
            }
            Operation::Discard => {
                self.wipe_sink();
                self.sink_lost = true;
                self.discarded = true;
                None
            }
        }
    }

    /// The moment that matters: the guest runs at the sink.
    fn run_guest(&mut self) {
        if self.ran_in == Some(self.sink_machines) {
            return self.violate(Property::RunsOnce, "the sink runs its guest twice");
        }
        let again = self.ran_in.replace(self.sink_machines).is_some();
        let standing = self.sink.disk.record().map(|record| record.standing);
        if standing != Some(Standing::Ready) {
            self.violate(Property::RunsOnce, format!("the guest is run by a record that says {standing:?}"));
        }
        if self.source.guest.is_running() {
            self.violate(Property::OneOwner, "the guest is run at the sink while it runs at the source");
        }
        if again {
            return;
        }
        if self.discarded {
            self.violate(Property::Verified, "what was thrown away is run");
        }
        if let Some(page) = self.source.guest.differs(&self.sink.guest) {
            let (there, here) = (self.source.guest.read(page), self.sink.guest.read(page));
            let what = format!("page {}: the source has {there}, the sink runs with {here}", page.0);
            self.violate(Property::SameState, what);
        }
        if self.staged != self.devices {
            self.violate(Property::SameState, "the sink runs with devices of another pause");
        }
        let now = self.now;
        self.sink.guest.resume(now);
    }

    fn persist(&mut self, side: Side, record: &Record) {
        let count = match side {
            Side::Source => &mut self.persists[0],
            Side::Sink => &mut self.persists[1],
        };
        *count += 1;
        let count = *count;
        self.moment(|when| match *when {
            When::Persisting(at, nth, delay) if at == side && nth == count => Some(delay),
            _ => None,
        });
        let (first, second) = (self.rng.below(self.plan.disk), self.rng.below(self.plan.disk));
        let now = self.now;
        let stays = self.rng.below(2) == 0;
        let node = self.node(side);
        let fate = match std::mem::take(&mut node.fail_persist) {
            false => Fate::Kept,
            true if stays => Fate::KeptInSecret,
            true => Fate::Lost,
        };
        let slow = std::mem::take(&mut node.slow_persist);
        node.disk.writing += 1;
        node.disk.pending = Some((node.disk.writing, record.encode(), fate));
        let start = node.disk.done_at.max(now);
        let (durable_at, done_at) = (start + first + slow / 2, start + first + second + slow);
        node.disk.done_at = done_at;
        let (life, writing) = (node.life, node.disk.writing);
        self.at(durable_at, Event::Durable(side, life, writing));
        self.at(done_at, Event::PersistDone(side, life, writing));
    }

    pub(super) fn durable(&mut self, side: Side, life: u32, writing: u64) {
        let node = self.node(side);
        if node.life == life
            && let Some((_, text, Fate::Kept | Fate::KeptInSecret)) =
                node.disk.pending.as_ref().filter(|pending| pending.0 == writing)
        {
            node.disk.durable = Some(text.clone());
            if side == Side::Source && node.guest.is_running() {
                self.violate(Property::OneOwner, "GIVE_UP becomes durable while the guest runs");
            }
        }
    }

    pub(super) fn persist_done(&mut self, side: Side, life: u32, writing: u64) {
        let node = self.node(side);
        if node.life != life || node.disk.pending.as_ref().is_none_or(|pending| pending.0 != writing) {
            return;
        }
        let failed = node.disk.pending.take().is_some_and(|(_, _, fate)| fate != Fate::Kept);
        self.excuses.disk |= failed;
        self.feed(side, if failed { Input::PersistFailed { text: "planned".into() } } else { Input::Persisted });
    }

    fn forget(&mut self, side: Side) {
        let wait = self.rng.below(self.plan.disk);
        let node = self.node(side);
        node.disk.writing += 1;
        node.disk.pending = None;
        let life = node.life;
        self.after(wait, Event::Forgotten(side, life));
    }

    /// A disk that has just failed may fail again.
    pub(super) fn retracted(&mut self, life: u32) {
        if self.source.life != life {
            return;
        }
        if self.rng.below(3) == 0 {
            return self.feed(Side::Source, Input::RetractFailed { text: "planned".into() });
        }
        self.source.disk.durable = None;
        self.feed(Side::Source, Input::Retracted);
    }

    pub(super) fn forgotten(&mut self, side: Side, life: u32) {
        if self.node(side).life == life {
            self.node(side).disk.durable = None;
        }
    }

    fn finished(&mut self, side: Side, outcome: &Outcome) {
        match side {
            Side::Source => {
                self.cost = self.source_machine.take().map(|machine| crate::deferral::Cost::of(machine.progress()));
                self.handing_over = None;
                self.source.tick += 1;
                self.said[0] = Some(outcome.owner);
                if outcome.owner == Owner::Sink {
                    if !self.sink.guest.is_running() {
                        self.violate(Property::TrueOutcome, "the source says that the sink runs");
                    }
                    self.source.guest.wipe();
                    self.source_gone = true;
                }
            }
            Side::Sink => {
                self.sink_machine = None;
                self.sink.session = None;
                self.said[1] = Some(outcome.owner);
            }
        }
        self.check_error(side, outcome.error.as_ref());
        self.hang_up(side);
    }

    fn check_error(&mut self, side: Side, error: Option<&SessionError>) {
        let corrupt = self.excuses.corrupt;
        let unfounded = match error {
            Some(SessionError::PeerViolation { .. }) => true,
            Some(SessionError::Integrity { .. }) => !corrupt,
            Some(SessionError::PeerReports(report)) => match report.code {
                ErrorCode::Unknown => !self.excuses.crash && !self.excuses.cancel && !self.excuses.disk,
                code => !(code.is_integrity() && corrupt),
            },
            Some(SessionError::NotConverging(_)) | None => false,
            Some(SessionError::PeerAborted { .. }) => false,
            Some(_) => self.plan.faults.is_empty(),
        };
        if let Some(SessionError::Unreachable { silence }) = error {
            let heard = self.now - self.node(side).heard_at;
            // A frame of a connection that is being replaced may still have come.
            if heard + 2 * crate::plan::SECOND < silence.as_nanos() as u64 {
                self.violate(Property::TrueOutcome, format!("{side:?} says {silence:?} of silence, it was {heard} ns"));
            }
        }
        if let Some(error) = error {
            self.note(|| format!("{side:?} ends: {error}"));
            if unfounded {
                self.violate(Property::NoFalseAccusation, format!("{side:?} ends with: {error}"));
            }
        }
    }

    /// A process dies: only what is durable remains, and the guest, which has a process of its own.
    pub(super) fn crash(&mut self, side: Side, outage: u64) {
        if !self.node(side).up {
            return;
        }
        self.excuses.crash = true;
        if let Some(conn) = self.node(side).conn {
            self.cut(conn);
        }
        let node = self.node(side);
        node.up = false;
        node.life += 1;
        node.tick += 1;
        node.conn = None;
        node.session = None;
        node.operations.clear();
        node.operating = false;
        node.disk = Disk { durable: node.disk.durable.take(), ..Disk::default() };
        let ids: Vec<_> = self.lanes.keys().copied().collect();
        for id in ids {
            let delay = self.detection();
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.stream.alive = false;
            if side == Side::Source {
                lane.source = crate::net::End::Gone;
                lane.todo.clear();
                lane.copied.clear();
                lane.made.clear();
            } else if lane.sink != crate::net::End::Joining {
                lane.sink = crate::net::End::Gone;
                lane.inbox.clear();
                lane.reports.clear();
            }
            self.after(delay, Event::LaneGone(side.other(), id));
        }
        match side {
            Side::Source => {
                self.source_machine = None;
                self.source_waits = false;
                self.dialling = None;
                self.flights.clear();
                self.in_flight.fill(0);
            }
            Side::Sink => self.forget_sink(),
        }
        self.after(outage, Event::Restart(side));
    }

    fn forget_sink(&mut self) {
        self.sink_machine = None;
        self.sink_leaves = Arc::new(Leaves::new(&self.layout));
        self.sink_lost = true;
        if self.sink.disk.durable.is_none() {
            self.wipe_sink();
        }
    }

    pub(super) fn restart(&mut self, side: Side) {
        self.node(side).up = true;
        let record = self.node(side).disk.record();
        if side == Side::Sink {
            return;
        }
        let now = self.now;
        self.said[0] = None;
        match record {
            Some(record) => {
                let offer = Offer { epoch: record.epoch, ..self.offer.clone() };
                let source = Source::recover(self.plan.source.clone(), offer, &record);
                self.source_machine = Some(source.with_bug(self.planted.and_then(Planted::core)));
                self.source_waits = true;
                self.dial(true, 0);
            }
            None if !self.source_gone => self.source.guest.resume(now),
            None => {}
        }
    }
}
