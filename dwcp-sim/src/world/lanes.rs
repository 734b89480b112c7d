//! Bulk lanes: the workers at both ends, and what lies between them.

use std::sync::Arc;

use dwcp_core::Extent;
use dwcp_core::extent::FlatPage;
use dwcp_core::extent::PageMask;
use dwcp_core::session::{Applied, Dispatch, Encoded, Input, SessionError, leaves};
use dwcp_core::wire::limits::MAX_MESSAGE_EXTENTS;
use dwcp_core::wire::{Digest, ErrorCode, Framing, LaneId};

use super::{Event, World};
use crate::guest::leaf;
use crate::net::{Carried, Copied, End, Lane, Parcel};
use crate::plan::{MS, Planted, SECOND, Side, When};
use crate::props::Property;

impl World {
    pub(super) fn lane(&mut self, id: LaneId) -> &mut Lane {
        self.lanes.get_mut(&id).unwrap()
    }

    pub(super) fn open_lane(&mut self, id: LaneId) {
        if self.lanes.insert(id, Lane::dialled(id, self.source.engaged)).is_some() {
            return self.violate(Property::Buried, format!("the source dials {id} twice"));
        }
        let trips = self.latency() + self.latency();
        if self.now < self.no_link_until {
            let wait = self.rng.between(MS, SECOND);
            return self.after(wait, Event::LaneGone(Side::Source, id));
        }
        if std::mem::take(&mut self.late_join) {
            let late = trips + self.rng.below(200 * MS) + self.plan.latency * 6;
            self.after(late, Event::Join(id));
            return self.after(trips, Event::LaneGone(Side::Source, id));
        }
        self.after(trips, Event::Join(id));
    }

    /// The join is at the sink, however late.
    pub(super) fn join(&mut self, id: LaneId) {
        let latency = self.latency();
        let known = self.sink.up && self.sink.session.is_some() && self.sink.session == self.source.session;
        if !known || self.sink_machine.is_none() || self.now < self.no_link_until {
            return self.after(latency, Event::LaneGone(Side::Source, id));
        }
        self.feed(Side::Sink, Input::LaneJoin { lane: id });
    }

    pub(super) fn admit(&mut self, id: LaneId, credit: u64) {
        let latency = self.latency();
        let engaged = self.sink.engaged;
        let adopted = self.lanes.values().any(|lane| lane.leaving == Some(id));
        let lane = self.lane(id);
        if lane.buried || lane.sink != End::Joining {
            return self.violate(Property::Buried, format!("{id} joins although it was buried or had joined"));
        }
        lane.sink = End::Open;
        lane.granted = credit;
        (lane.epoch, lane.framing) = engaged;
        if adopted {
            // The source hears of it in HANDOVER.
            if !lane.stream.alive {
                self.after(latency, Event::LaneGone(Side::Sink, id));
            }
        } else if lane.source == End::Gone {
            self.after(latency, Event::LaneGone(Side::Sink, id));
        } else {
            self.after(latency, Event::LaneUp(id, credit));
        }
    }

    pub(super) fn lane_up(&mut self, id: LaneId, credit: u64) {
        let lane = self.lane(id);
        if lane.source == End::Joining && lane.stream.alive {
            lane.source = End::Open;
            self.feed(Side::Source, Input::LaneUp { lane: id, credit });
        }
    }

    pub(super) fn close_lane(&mut self, side: Side, id: LaneId) {
        let wait = self.rng.below(self.plan.apply + self.plan.encode);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let end = match side {
            Side::Source => &mut lane.source,
            Side::Sink => &mut lane.sink,
        };
        if *end == End::Gone {
            let life = self.node(side).life;
            return self.after(wait, Event::Feed(side, life, Input::LaneDown { lane: id }));
        }
        *end = End::Stopping;
        self.after(wait, Event::LaneGone(side, id));
    }

    /// A worker ends; the other end sees the connection close.
    pub(super) fn lane_gone(&mut self, side: Side, id: LaneId) {
        while side == Side::Sink && !self.lane(id).reports.is_empty() {
            self.report(id);
        }
        let (latency, now) = (self.latency(), self.now);
        let graceful = self.rng.percent(50);
        let lane = self.lane(id);
        match side {
            Side::Source if lane.source != End::Gone => {
                lane.source = End::Gone;
                lane.todo.clear();
                lane.copied.clear();
                lane.made.clear();
                let at = if graceful { lane.stream.arrival(now + latency) } else { now + latency };
                lane.stream.alive &= graceful;
                if lane.sink != End::Joining {
                    self.at(at, Event::LaneGone(Side::Sink, id));
                }
            }
            Side::Sink if matches!(lane.sink, End::Open | End::Stopping) => {
                lane.sink = End::Gone;
                lane.inbox.clear();
                lane.stream.alive = false;
                self.after(latency, Event::LaneGone(Side::Source, id));
            }
            _ => return,
        }
        self.feed(side, Input::LaneDown { lane: id });
    }

    /// The source's machine hands an extent to a worker.
    pub(super) fn dispatch(&mut self, dispatch: Dispatch) {
        for page in flat_pages(self, &dispatch.extent) {
            let count = &mut self.in_flight[page.0 as usize];
            *count += 1;
            if *count > 1 {
                self.violate(Property::OneVersion, format!("page {} is sent while in flight", page.0));
            }
        }
        let id = dispatch.lane;
        self.flights.insert((id, dispatch.seq), dispatch.extent.clone());
        self.sends += 1;
        let sends = self.sends;
        self.moment(|when| match *when {
            When::Dispatched(nth, delay) if nth == sends => Some(delay),
            _ => None,
        });
        let lane = self.lane(id);
        if lane.source == End::Gone || lane.leaving.is_some() {
            return;
        }
        lane.todo.push_back(dispatch);
        self.work(id);
    }

    fn work(&mut self, id: LaneId) {
        let wait = self.rng.below(self.plan.encode);
        let lane = self.lane(id);
        if !lane.source_busy && lane.made.is_empty() && !lane.todo.is_empty() {
            lane.source_busy = true;
            self.after(wait, Event::Copy(id));
        }
    }

    /// The worker copies the pages into its own buffer.
    pub(super) fn copy(&mut self, id: LaneId) {
        let wait = self.rng.below(self.plan.encode);
        let now = self.now;
        self.source.guest.advance(now);
        let most = if self.lane(id).framing == Framing::Messages { MAX_MESSAGE_EXTENTS } else { 1 };
        for _ in 0..most {
            let Some(dispatch) = self.lane(id).todo.pop_front() else { break };
            let pages = flat_pages(self, &dispatch.extent).map(|page| self.source.guest.read(page)).collect();
            self.lane(id).copied.push(Copied { dispatch, pages, at: now });
        }
        self.after(wait, Event::Encode(id));
    }

    /// The worker hashes, drops what the sink has, reports, and writes.
    pub(super) fn encode(&mut self, id: LaneId) {
        if self.lane(id).framing == Framing::Messages {
            return self.make_message(id);
        }
        let Some(copied) = self.lane(id).copied.pop() else { return self.leave_if_idle(id) };
        let (parcel, same) = self.pack(&copied);
        let (latency, now) = (self.latency(), self.now);
        let rate = self.lane_rate;
        let lane = self.lane(id);
        let write = parcel.wire_bytes * SECOND / rate + 1;
        let encoded = Encoded {
            lane: id,
            seq: parcel.seq,
            wire_bytes: parcel.wire_bytes,
            carried: parcel.extent.pages() as u16,
            same,
            encode: std::time::Duration::from_nanos(now - copied.at),
        };
        lane.written += 1;
        let at = lane.stream.arrival(now + write + latency);
        let alive = lane.stream.alive;
        self.feed(Side::Source, Input::Encoded(encoded));
        if alive {
            self.at(at, Event::Parcel(id, Box::new(parcel)));
        }
        // The worker is blocked in its write for that long.
        let lane = self.lane(id);
        lane.source_busy = !lane.todo.is_empty();
        if lane.source_busy {
            self.after(write, Event::Copy(id));
        } else {
            lane.source_busy = true;
            self.after(write, Event::Written(id));
        }
    }

    pub(super) fn written(&mut self, id: LaneId) {
        self.lane(id).source_busy = false;
        self.work(id);
        self.leave_if_idle(id);
    }

    pub(super) fn pack(&mut self, copied: &Copied) -> (Parcel, u16) {
        let dispatch = &copied.dispatch;
        let table = Arc::clone(&self.source_leaves);
        let (mut dropped, mut pages, mut digests) = (PageMask::EMPTY, Vec::new(), Vec::new());
        let mut wire_bytes = 60 + 3 * dispatch.extent.runs().len() as u64;
        let flats: Vec<FlatPage> = flat_pages(self, &dispatch.extent).collect();
        self.source.guest.advance(self.now);
        for (index, (&page, &content)) in flats.iter().zip(&copied.pages).enumerate() {
            let digest = leaf(content);
            let reread = self.planted == Some(Planted::Reread);
            let entry = if reread { leaf(self.source.guest.read(page)) } else { digest };
            let same = dispatch.known.get(index) && entry == table.get(page);
            let base = match dispatch.slots.get(index).copied().flatten() {
                Some(slot) => self.slots.insert(slot, content).filter(|_| dispatch.based.get(index)),
                None => None,
            };
            if same {
                dropped.set(index);
                self.check_known(page, content);
                continue;
            }
            table.set(page, entry);
            wire_bytes += match (content, base) {
                (0, _) => 2,
                (_, Some(_)) => self.plan.page_bytes.min(200),
                (_, None) => self.plan.page_bytes,
            };
            digests.push(digest);
            pages.push(Carried { content, base });
        }
        let extent = dispatch.extent.without(&dropped);
        let epoch = self.lane(dispatch.lane).epoch;
        let digest = leaves::extent_digest(epoch, &extent, &digests);
        (Parcel { seq: dispatch.seq, epoch, digest, extent, pages, wire_bytes }, dropped.count() as u16)
    }

    /// A page that is not carried, because the sink has it, is there.
    fn check_known(&mut self, page: FlatPage, content: u64) {
        if !self.sink_lost && self.planted != Some(Planted::Reread) && self.at_sink(page) != content {
            self.violate(Property::KnownAtSink, format!("page {} is not carried and not at the sink", page.0));
        }
    }

    pub(super) fn parcel_arrives(&mut self, id: LaneId, mut parcel: Parcel) {
        let corrupt = self.corrupt_next && !parcel.pages.is_empty();
        let lane = self.lane(id);
        if !lane.stream.alive || !matches!(lane.sink, End::Open | End::Stopping) {
            return;
        }
        lane.arrived += parcel.wire_bytes;
        if lane.arrived > lane.granted {
            let (arrived, granted) = (lane.arrived, lane.granted);
            return self.violate(Property::Credit, format!("{id} carried {arrived} bytes, {granted} were granted"));
        }
        if corrupt {
            self.corrupt_next = false;
            self.excuses.corrupt = true;
            parcel.pages[0].content ^= 1 << 40;
        }
        self.lane(id).inbox.push_back(parcel);
        self.verify(id);
    }

    pub(super) fn verify(&mut self, id: LaneId) {
        let wait = self.rng.below(self.plan.apply);
        let lane = self.lane(id);
        let needed = match lane.framing {
            Framing::Extents => 1,
            Framing::Messages => lane.expected.map_or(usize::MAX, |message| usize::from(message.extents)),
        };
        if !lane.sink_busy && lane.inbox.len() >= needed {
            lane.sink_busy = true;
            self.after(wait, Event::Apply(id));
        }
    }

    /// The sink's worker verifies an extent, writes it, reports it.
    pub(super) fn apply(&mut self, id: LaneId) {
        let lane = self.lane(id);
        lane.sink_busy = false;
        if lane.sink == End::Gone || self.discarded {
            return;
        }
        if self.lane(id).framing == Framing::Messages {
            return self.apply_message(id);
        }
        let lane = self.lane(id);
        let Some(parcel) = lane.inbox.pop_front() else { return };
        if !self.apply_parcel(id, &parcel) {
            return;
        }
        let pages = parcel.extent.pages() as u16;
        self.reports(id, Applied { lane: id, seq: parcel.seq, wire_bytes: parcel.wire_bytes, pages, durable: 0 });
    }

    /// The report goes through a queue of the driver.
    pub(super) fn reports(&mut self, id: LaneId, applied: Applied) {
        self.lane(id).reports.push_back(applied);
        let wait = if self.rng.percent(70) { 0 } else { self.rng.below(self.plan.apply) };
        self.after(wait, Event::Report(id));
        self.verify(id);
    }

    /// Whether it was sound and is written.
    pub(super) fn apply_parcel(&mut self, id: LaneId, parcel: &Parcel) -> bool {
        let engaged = self.sink.engaged;
        let lane = self.lane(id);
        let (expected, buried) = (lane.next_seq, lane.buried);
        lane.next_seq += 1;
        if parcel.seq != expected {
            self.violate(Property::Buried, format!("{id} brings {} instead of {expected}", parcel.seq));
            return false;
        }
        if buried {
            self.violate(Property::Buried, format!("{id} applies {expected} after BURIED"));
            return false;
        }
        if parcel.epoch != engaged.0 {
            self.violate(Property::Fenced, format!("{id} applies {} in {}", parcel.epoch, engaged.0));
            return false;
        }
        if let Err(error) = parcel.extent.check(&self.layout) {
            self.violate(Property::NoFalseAccusation, format!("an honest extent is refused: {error}"));
            return false;
        }
        let digests: Vec<Digest> = parcel.pages.iter().map(|page| leaf(page.content)).collect();
        if leaves::extent_digest(parcel.epoch, &parcel.extent, &digests) != parcel.digest {
            self.lane_fault(id, parcel.seq);
            return false;
        }
        self.write(parcel, &digests);
        self.extents += 1;
        true
    }

    pub(super) fn report(&mut self, id: LaneId) {
        if let Some(applied) = self.lane(id).reports.pop_front() {
            self.feed(Side::Sink, Input::Applied(applied));
        }
        self.end_if_due(id);
    }

    fn lane_fault(&mut self, lane: LaneId, seq: u64) {
        self.lane(lane).sink = End::Gone;
        let what = "the digest of the extent does not match".to_owned();
        let fault = SessionError::Integrity { code: ErrorCode::ExtentDigest, lane, position: seq, what };
        self.feed(Side::Sink, Input::LaneFault { lane, fault });
    }

    fn write(&mut self, parcel: &Parcel, digests: &[Digest]) {
        let flats: Vec<FlatPage> = flat_pages(self, &parcel.extent).collect();
        if self.sink.guest.is_running() {
            return self.violate(Property::Verified, "an extent is written to the running guest");
        }
        for ((page, carried), &digest) in flats.into_iter().zip(&parcel.pages).zip(digests) {
            let held = self.at_sink(page);
            if let Some(base) = carried.base.filter(|&base| base != held) {
                let what = format!("page {}: a delta against {base}, the sink holds {held}", page.0);
                return self.violate(Property::KnownAtSink, what);
            }
            self.replace(page, carried.content);
            self.sink_leaves.set(page, digest);
        }
    }
}

fn flat_pages<'a>(world: &World, extent: &'a Extent) -> impl Iterator<Item = FlatPage> + use<'a> {
    let first = world.layout.region(extent.region()).map_or(0, |region| region.first);
    extent.page_numbers().map(move |page| FlatPage(first + page))
}
