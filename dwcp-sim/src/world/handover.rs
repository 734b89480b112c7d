//! Lanes that change their framing, and lanes of messages: what their workers do.

use dwcp_core::session::{Applied, Encoded, Input};
use dwcp_core::wire::{Digest, FenceEpoch, FencedLane, Framing, LaneId, Message};

use super::{Event, World};
use crate::net::{End, Lane};
use crate::plan::{SECOND, Side};
use crate::props::Property;

impl World {
    /// The source's worker is told to end after what is in its hands.
    pub(super) fn leave_lane(&mut self, id: LaneId, next: LaneId) {
        let wait = self.rng.below(self.plan.encode);
        let engaged = self.source.engaged;
        let lane = self.lane(id);
        if lane.source != End::Open {
            return;
        }
        lane.leaving = Some(next);
        lane.todo.clear();
        self.lanes.insert(next, Lane::dialled(next, engaged));
        self.after(wait, Event::Leave(id));
    }

    /// The worker has nothing in its hands any more: its connection is another lane's now.
    pub(super) fn leave_if_idle(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(next) = lane.leaving else { return };
        if lane.source_busy && lane.copied.is_empty() && lane.made.is_empty() && lane.todo.is_empty() {
            // A step of nothing was scheduled before it was told.
            lane.source_busy = false;
        }
        let idle = !lane.source_busy && lane.made.is_empty() && lane.copied.is_empty();
        if lane.source != End::Open || !idle {
            return;
        }
        let (end, stream) = (lane.written, lane.stream);
        if !stream.alive {
            // It finds out when it reads or writes.
            let delay = self.detection();
            return self.after(delay, Event::LaneGone(Side::Source, id));
        }
        lane.source = End::Gone;
        self.lane(next).stream = stream;
        self.feed(Side::Source, Input::LaneEnded(FencedLane { lane: id, end, next }));
        self.feed(Side::Source, Input::LaneDown { lane: id });
    }

    pub(super) fn adopt_at_source(&mut self, id: LaneId) {
        let (engaged, latency) = (self.source.engaged, self.latency());
        let lane = self.lane(id);
        (lane.epoch, lane.framing) = engaged;
        lane.source = End::Open;
        if !lane.stream.alive {
            self.after(latency, Event::LaneGone(Side::Source, id));
        }
    }

    /// The sink's worker is told where to end.
    pub(super) fn end_lane(&mut self, fenced: FencedLane) {
        self.lane(fenced.lane).ends = Some(fenced);
        self.end_if_due(fenced.lane);
    }

    pub(super) fn end_if_due(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(fenced) = lane.ends else { return };
        let working = matches!(lane.sink, End::Open | End::Stopping) && lane.stream.alive;
        let due = lane.next_seq >= fenced.end && lane.reports.is_empty() && !lane.sink_busy;
        if !working || !due {
            return;
        }
        lane.sink = End::Gone;
        self.feed(Side::Sink, Input::LaneEnded(fenced));
        self.feed(Side::Sink, Input::LaneDown { lane: id });
    }

    pub(super) fn sink_engages(&mut self, epoch: FenceEpoch, framing: Framing) {
        self.sink.engaged = (epoch, framing);
        self.handovers += 1;
        if self.restarting
            && let Some(page) = self.sink.guest.first_used()
        {
            self.violate(Property::Fenced, format!("page {} is left of what was not to be trusted", page.0));
        }
        if self.sink.fence < epoch {
            self.violate(Property::Fenced, "the sink goes on before its fence is durable");
        }
    }

    /// A message is made of what was copied.
    pub(super) fn make_message(&mut self, id: LaneId) {
        let copied = std::mem::take(&mut self.lane(id).copied);
        let Some(first) = copied.first().map(|copied| copied.dispatch.seq) else {
            self.lane(id).source_busy = false;
            return self.leave_if_idle(id);
        };
        let mut message = Message { lane: id, first, extents: 0, pages: 0, bytes: 0, digest: Digest([0; 32]) };
        for copied in &copied {
            let (parcel, same) = self.pack(copied);
            let carried = parcel.extent.pages();
            message.extents += 1;
            message.pages += carried as u32;
            message.bytes += parcel.wire_bytes as u32;
            let (seq, wire_bytes) = (parcel.seq, parcel.wire_bytes);
            let encoded = Encoded { lane: id, seq, wire_bytes, carried: carried as u16, same, ..Encoded::default() };
            self.lane(id).made.push(parcel);
            self.feed(Side::Source, Input::Encoded(encoded));
            if self.lane(id).source == End::Gone {
                return;
            }
        }
        self.lane(id).source_busy = false;
        self.feed(Side::Source, Input::Prepared(message));
    }

    /// The message goes.
    pub(super) fn ship(&mut self, id: LaneId) {
        let (latency, now, rate) = (self.latency(), self.now, self.lane_rate);
        let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.source != End::Gone) else { return };
        let parcels = std::mem::take(&mut lane.made);
        let bytes: u64 = parcels.iter().map(|parcel| parcel.wire_bytes).sum();
        let write = bytes * SECOND / rate + 1;
        let at = lane.stream.arrival(now + write + latency);
        lane.written += parcels.len() as u64;
        lane.source_busy = true;
        if lane.stream.alive {
            for parcel in parcels {
                self.at(at, Event::Parcel(id, Box::new(parcel)));
            }
        }
        self.after(write, Event::Written(id));
    }

    pub(super) fn expect(&mut self, message: Message) {
        self.lane(message.lane).expected = Some(message);
        self.verify(message.lane);
    }

    /// All of a message, or nothing.
    pub(super) fn apply_message(&mut self, id: LaneId) {
        let lane = self.lane(id);
        let Some(message) = lane.expected.take() else { return };
        let parcels: Vec<_> = lane.inbox.drain(..usize::from(message.extents)).collect();
        let bytes: u64 = parcels.iter().map(|parcel| parcel.wire_bytes).sum();
        if parcels.first().map(|parcel| parcel.seq) != Some(message.first) || bytes != u64::from(message.bytes) {
            return self.violate(Property::Verified, format!("{message:?} does not announce what came"));
        }
        let (mut pages, mut seq) = (0, 0);
        for parcel in &parcels {
            if !self.apply_parcel(id, parcel) {
                return;
            }
            pages += parcel.extent.pages() as u16;
            seq = parcel.seq;
        }
        self.reports(id, Applied { lane: id, seq, wire_bytes: bytes, pages, durable: 0 });
    }
}
