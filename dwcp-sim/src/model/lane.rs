//! Bulk lanes: what their workers do at both ends, and what lies between them.

use dwcp_core::session::handover::LeavingEvent;
use dwcp_core::wire::{FencedLane, LaneId};

use super::link::Frame;
use super::{Action, Flaw, Side, State, Turn, Variant};

/// Where a lane stands at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtSource {
    /// Dialled, or to go on with another's connection.
    Opening,
    /// Carries extents.
    Open,
    /// Its worker was told to stop.
    Closing,
    /// Its worker has stopped; the sink has not said what it applied.
    Dead,
    /// It is buried.
    Forgotten,
}

/// Where it stands at the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtSink {
    /// It has not joined.
    Never,
    /// It joined.
    Open,
    /// Its worker was told to stop, and the source asked for the burial if `bury`.
    Closing {
        /// BURIED is owed.
        bury: bool,
    },
    /// Its worker has stopped.
    Down,
    /// The source was told.
    Buried,
}

/// One page on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Of this epoch.
    pub epoch: u8,
    /// Which page.
    pub page: u8,
    /// What it holds.
    pub version: u8,
}

/// A bulk lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    /// Which.
    pub id: LaneId,
    /// At the source.
    pub at_source: AtSource,
    /// At the sink.
    pub at_sink: AtSink,
    /// The source's worker holds the connection, or dials.
    pub worker: bool,
    /// The sink's worker holds it.
    pub applier: bool,
    /// Its join is on the way.
    pub dialling: bool,
    /// The connection is good.
    pub alive: bool,
    /// Of what the source writes.
    pub epoch: u8,
    /// Of what the sink takes.
    pub admitted: u8,
    /// As which lane its connection goes on.
    pub next: Option<LaneId>,
    /// Pages that the source handed to it and that are not acknowledged.
    pub flight: Vec<u8>,
    /// The sequence number of the first of them.
    pub acked: u8,
    /// The sequence number of the first of them that is not written.
    pub written: u8,
    /// Written, and not applied.
    pub wire: Vec<Extent>,
    /// Sequence number that the sink applies next.
    pub applied: u8,
    /// Where it ends, as the sink was told.
    pub ends: Option<u8>,
    /// A message was announced.
    pub expects: bool,
}

impl Lane {
    fn dialled(id: LaneId, epoch: u8) -> Self {
        Self {
            id,
            at_source: AtSource::Opening,
            at_sink: AtSink::Never,
            worker: true,
            applier: false,
            dialling: true,
            alive: true,
            epoch,
            admitted: 0,
            next: None,
            flight: Vec::new(),
            acked: 0,
            written: 0,
            wire: Vec::new(),
            applied: 0,
            ends: None,
            expects: false,
        }
    }

    /// The sequence number that the next page would have.
    pub(super) fn next_seq(&self) -> u8 {
        self.acked + self.flight.len() as u8
    }

    /// Its worker has another page to write.
    fn may_send(&self, messages: bool) -> bool {
        let told = self.at_source == AtSource::Open || self.at_source == AtSource::Closing && self.next.is_some();
        // A message waits for the acknowledgement of the one before.
        let turn = !messages || self.acked == self.written;
        self.worker && told && turn && self.written < self.next_seq()
    }

    /// What lies on the connection of a lane that is not buried.
    pub(super) fn unapplied(&self) -> usize {
        self.wire.len()
    }

    /// Nobody can tell any more whether it ever was: ids that are missing were used.
    pub(super) fn is_forgotten(&self) -> bool {
        let source = self.at_source == AtSource::Forgotten && !self.worker;
        let sink = self.at_sink == AtSink::Buried && !self.applier;
        source && sink && !self.dialling
    }

    pub(super) fn may_be_cut(&self) -> bool {
        self.alive && (self.worker || self.applier) && !self.dialling
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.at_sink, AtSink::Open | AtSink::Closing { .. })
    }
}

impl State {
    pub(super) fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.id == id)
    }

    pub(super) fn lane_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    /// The sink knows this id: it joined, or was buried.
    pub(super) fn sink_knows(&self, id: LaneId) -> bool {
        match self.lane(id) {
            Some(lane) => lane.at_sink != AtSink::Never,
            None => id.0 <= self.source.last_lane,
        }
    }

    pub(super) fn lane_actions(&self, actions: &mut Vec<Action>) {
        for lane in &self.lanes {
            // A dial into a connection that only the sink knows to be lost would be repeated until the source knows it.
            if lane.dialling && (self.sink.control || !self.source.control) {
                actions.push(Action::Join(lane.id));
            }
            if lane.may_send(self.source.sends_messages()) {
                actions.push(Action::Send(lane.id));
            }
            // A worker that was told its end looks no further.
            let due = lane.ends.is_none_or(|end| lane.applied < end);
            if lane.applier && due && !lane.wire.is_empty() && (lane.expects || !self.sink.takes_messages()) {
                actions.push(Action::Apply(lane.id));
            }
            if self.source_worker_may_end(lane) {
                actions.push(Action::WorkerEnds(Side::Source, lane.id));
            }
            if self.sink_worker_may_end(lane) {
                actions.push(Action::WorkerEnds(Side::Sink, lane.id));
            }
        }
    }

    fn source_worker_may_end(&self, lane: &Lane) -> bool {
        lane.worker && (lane.at_source == AtSource::Closing || !lane.alive || self.is_hung_up(lane))
    }

    fn sink_worker_may_end(&self, lane: &Lane) -> bool {
        let told = matches!(lane.at_sink, AtSink::Closing { .. });
        let reached = lane.ends.is_some_and(|end| lane.applied >= end);
        let hung_up = !lane.worker && lane.next.is_none();
        let waits = lane.ends.is_some() && lane.alive && !reached;
        lane.applier && !waits && (told || !lane.alive || hung_up)
    }

    /// A worker that nothing is expected of any more.
    fn idle_worker(&self) -> Option<(Side, LaneId)> {
        let idle = |lane: &Lane| {
            let unwritten = lane.written < lane.next_seq() && lane.alive;
            if self.source_worker_may_end(lane) && (lane.next.is_none() || !lane.alive || !unwritten) {
                return Some((Side::Source, lane.id));
            }
            (self.sink_worker_may_end(lane) && lane.wire.is_empty()).then_some((Side::Sink, lane.id))
        };
        self.lanes.iter().find_map(idle)
    }

    /// The sink's worker has ended, and its connection with it.
    fn is_hung_up(&self, lane: &Lane) -> bool {
        lane.at_sink != AtSink::Never && !lane.applier
    }
}

impl Turn {
    /// What they wait for makes no difference to what they leave behind.
    pub(super) fn end_idle_workers(&mut self) {
        while let Some((side, id)) = self.s.idle_worker() {
            match side {
                Side::Source => self.source_worker_ends(id),
                Side::Sink => self.sink_worker_ends(id),
            }
        }
        for lane in &mut self.s.lanes {
            lane.dialling &= lane.worker;
        }
    }

    /// Dials a lane.
    pub(super) fn open_lane(&mut self, epoch: u8) {
        let id = self.new_lane();
        self.s.lanes.push(Lane::dialled(id, epoch));
    }

    fn new_lane(&mut self) -> LaneId {
        self.s.source.last_lane += 1;
        LaneId(self.s.source.last_lane)
    }

    /// The source's worker of an open lane is told to end, and to keep its connection for another.
    pub(super) fn leave_lane(&mut self, id: LaneId) {
        let next = self.new_lane();
        if let Some(lane) = self.s.lane_mut(id) {
            lane.at_source = AtSource::Closing;
            lane.next = Some(next);
        }
        // Its worker has nothing in its hands yet.
        let heir = Lane { worker: false, dialling: false, ..Lane::dialled(next, 0) };
        self.s.lanes.push(heir);
    }

    /// The connection of a lane, by whatever name it goes at either end.
    pub(super) fn cut_lane(&mut self, id: LaneId) {
        let heir = self.s.lane(id).and_then(|lane| lane.next);
        let heir = heir.filter(|_| self.s.lane(id).is_some_and(|lane| !lane.worker));
        let before = self.s.lanes.iter().find(|lane| lane.next == Some(id) && !lane.worker).map(|lane| lane.id);
        for id in [Some(id), heir, before].into_iter().flatten() {
            if let Some(lane) = self.s.lane_mut(id) {
                lane.alive = false;
            }
        }
    }

    /// What is sent is what the page holds now.
    pub(super) fn send(&mut self, id: LaneId) {
        let (holds, messages) = (self.s.source.holds, self.s.source.sends_messages());
        let Some(lane) = self.s.lane_mut(id) else { return };
        let first = lane.written;
        let page = lane.flight[usize::from(first - lane.acked)];
        let version = holds[usize::from(page)];
        lane.written += 1;
        if lane.alive {
            lane.wire.push(Extent { epoch: lane.epoch, page, version });
        }
        self.s.source.leaves[usize::from(page)] = version;
        if messages {
            self.say_to_sink(Frame::Message { lane: id, first });
        }
        self.advance();
    }

    pub(super) fn join(&mut self, id: LaneId) {
        let admits = self.admits(id);
        let epoch = self.s.sink.epoch;
        let Some(lane) = self.s.lane_mut(id) else { return };
        lane.dialling = false;
        if !admits {
            lane.alive = false;
            return;
        }
        lane.at_sink = AtSink::Open;
        lane.applier = true;
        lane.admitted = epoch;
        if lane.at_source == AtSource::Opening {
            lane.at_source = AtSource::Open;
        } else {
            lane.alive &= lane.worker;
        }
        self.advance();
    }

    /// spec: L-2
    fn admits(&self, id: LaneId) -> bool {
        let early = self.on.variant == Variant::EarlyMessages;
        let open = self.s.sink.control && self.s.sink.takes_lanes() && (self.s.sink.fencing.is_active() || early);
        open && !self.s.sink_knows(id)
    }

    pub(super) fn apply(&mut self, id: LaneId) {
        let variant = self.on.variant;
        let (fence, sealed) = (self.s.sink.fence, self.s.sink.sealed_below);
        let Some(lane) = self.s.lane_mut(id) else { return };
        let extent = lane.wire.remove(0);
        lane.applied += 1;
        lane.expects = false;
        let (applied, admitted) = (lane.applied, lane.admitted);
        let careless = matches!(variant, Variant::NoFence | Variant::ApplyOldEpoch | Variant::EarlyMessages);
        if extent.epoch != admitted && !careless {
            self.accuse();
        }
        if extent.epoch < sealed {
            self.flaw(Flaw::OldEpoch);
        }
        if extent.epoch > fence {
            self.flaw(Flaw::Unfenced);
        }
        let held = &mut self.s.sink.holds[usize::from(extent.page)];
        let older = extent.version < *held;
        *held = extent.version;
        if older {
            self.flaw(Flaw::WentBack);
        }
        if self.s.sink.running {
            self.flaw(Flaw::Visible);
        }
        self.sink_applied(id, applied);
    }

    /// It has written what was in its hands, and hands its connection on; or the connection is lost.
    pub(super) fn source_worker_ends(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        lane.worker = false;
        let (mut end, alive) = (lane.written, lane.alive);
        if self.on.variant == Variant::ApplyOldEpoch && self.s.lane(id).is_some_and(|lane| !lane.wire.is_empty()) {
            end -= 1;
        }
        let next = self.s.lane(id).and_then(|lane| lane.next);
        // The sink may have closed it, which this worker finds out when it reads.
        let kept = next.filter(|_| alive && !self.s.lane(id).is_some_and(|lane| self.s.is_hung_up(lane)));
        let waits = |heir: &&mut Lane| heir.at_source == AtSource::Opening;
        if let Some(heir) = kept.and_then(|next| self.s.lane_mut(next)).filter(waits) {
            heir.worker = true;
            let next = heir.id;
            self.leaving(LeavingEvent::Ended(FencedLane { lane: id, end: end.into(), next }));
        } else {
            self.cut_lane(id);
        }
        self.source_lane_down(id);
        self.advance();
    }

    /// It has reached its end, or was stopped, or the connection is lost: nothing more of it is applied.
    pub(super) fn sink_worker_ends(&mut self, id: LaneId) {
        let Some(lane) = self.s.lane_mut(id) else { return };
        lane.applier = false;
        let reached = lane.ends.is_some_and(|end| lane.applied >= end) && lane.alive;
        let (rest, next) = (std::mem::take(&mut lane.wire), lane.next);
        if let Some(next) = next.filter(|_| reached) {
            // What comes behind the end is the next lane's.
            let heir = self.s.lane_mut(next);
            heir.into_iter().for_each(|heir| heir.wire.splice(0..0, rest.iter().copied()).for_each(drop));
            self.s.sink.kept.push((id, next));
        } else {
            self.cut_lane(id);
        }
        self.sink_lane_down(id);
    }
}
