use std::collections::VecDeque;
use std::time::Duration;

use dwcp_hde::Effort;

use super::converge::{duration_at, rate};
use super::shadow::SlotId;
use super::{Encoded, Time};
use crate::extent::{Extent, MAX_EXTENT_PAGES, PAGE_BYTES};
use crate::wire::limits::{EXTENT_OVERHEAD, MAX_LANE_IDS, MAX_MESSAGE_EXTENTS};
use crate::wire::{Framing, LaneId, Message};

/// Extents handed to a worker that it has not yet encoded: one in its hands, one waiting, so that it
/// never idles for a decision.
const DEPTH: usize = 2;
/// An extent should take at most this much of its lane's time, so that what is in flight is small
/// when the guest is paused or a lane dies.
const EXTENT_TIME: Duration = Duration::from_millis(20);
/// Pages of an extent before anything is known about the lane.
const FIRST_PAGES: usize = 64;
/// Pages of an extent of a message at most. A sink need not grant more than one extent of the largest size (C-3), and what a
/// message has at worst for more pages than this would wait for ever.
const MESSAGE_PAGES: usize = 239;
/// Smaller extents cost more in heads and in compression than they gain.
const LEAST_PAGES: usize = 16;
/// A lane is measured over stretches of at least this long.
const MEASURE: Duration = Duration::from_millis(10);
/// A lane that acknowledged nothing for this long, and for `PATIENCE` times the delivery that it was
/// chosen for, is taken for dead. spec: L-3
const STALL: Duration = Duration::from_secs(5);
const PATIENCE: u32 = 16;
/// What all lanes of a link worth having deliver together, bytes per second: 128 kbit/s, half of the thinnest link that is
/// served. While none has delivered anything, each is given the time that all that is under way would take.
const LEAST_RATE: u64 = 16 << 10;

/// The source's view of its bulk lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Next id; ids are never used twice. spec: L-1
    next_id: u16,
    framing: Framing,
    /// The planted bug "credit leak".
    pub(super) leaks_credit: bool,
}

#[derive(Debug)]
struct Lane {
    id: LaneId,
    state: LaneState,
    credit: u64,
    /// Wire bytes charged: the worst case when handed out, the truth once encoded.
    charged: u64,
    next_seq: u64,
    /// Consecutive sequence numbers.
    flight: VecDeque<Flight>,
    /// Sum of their charges.
    flight_bytes: u64,
    unencoded: usize,
    /// The lane that its connection goes on as, if it ends as it was told to.
    next: Option<LaneId>,
    /// A message that waits for the acknowledgement of the one before.
    prepared: Option<Message>,
    meter: Meter,
}

/// Where a lane stands at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneState {
    /// Being dialled.
    Opening,
    /// Carries extents.
    Open,
    /// Its worker was told to stop.
    Closing,
    /// Its worker has stopped; the sink has not yet said what it applied.
    Dead,
}

/// What is handed to a lane.
#[derive(Debug)]
pub(super) struct Cargo {
    pub(super) extent: Extent,
    /// Where the source keeps its copies of these pages.
    pub(super) slots: Vec<Option<SlotId>>,
    pub(super) effort: Effort,
}

/// An extent that was handed to a lane and is not acknowledged.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) seq: u64,
    pub(super) extent: Extent,
    pub(super) slots: Vec<Option<SlotId>>,
    pub(super) effort: Effort,
    pub(super) sent_at: Time,
    /// Bytes on the wire: the worst case until it is encoded.
    pub(super) charge: u64,
    pub(super) encoded: bool,
}

impl Lanes {
    /// No lane yet; those to come have this framing.
    pub(super) fn carrying(framing: Framing) -> Self {
        Self { framing, ..Self::default() }
    }

    /// Lanes have this framing from now on: those of before have all ended.
    pub(super) fn carry(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// How many extents a lane may have unencoded, and in flight.
    fn depth(&self) -> (usize, usize) {
        let message = usize::from(MAX_MESSAGE_EXTENTS);
        match self.framing {
            Framing::Extents => (DEPTH, usize::MAX),
            // One message on the lane, one being made.
            Framing::Messages => (message, 2 * message),
        }
    }

    /// A new lane, being dialled.
    pub(super) fn open(&mut self) -> LaneId {
        self.next_id += 1;
        let id = LaneId(self.next_id);
        self.lanes.push(Lane {
            id,
            state: LaneState::Opening,
            credit: 0,
            charged: 0,
            next_seq: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
            unencoded: 0,
            next: None,
            prepared: None,
            meter: Meter::default(),
        });
        id
    }

    /// Ids used up.
    pub(super) fn ids_used(&self) -> u16 {
        self.next_id
    }

    /// The lane has joined. False when nobody dialled it.
    pub(super) fn joined(&mut self, id: LaneId, credit: u64) -> bool {
        match self.get_mut(id) {
            Some(lane) if lane.state == LaneState::Opening => {
                lane.state = LaneState::Open;
                lane.credit = credit;
                true
            }
            _ => false,
        }
    }

    /// Raises a lane's credit; credit never falls. spec: C-1
    pub(super) fn grant(&mut self, id: LaneId, total: u64) {
        if let Some(lane) = self.get_mut(id) {
            lane.credit = lane.credit.max(total);
        }
    }

    /// The open lane that would deliver the next extent first, and how many pages it should have; its
    /// worst case must fit the credit. spec: C-2
    pub(super) fn choose(&self, page_limit: usize) -> Option<(LaneId, usize)> {
        let (depth, window) = self.depth();
        let most = if self.framing == Framing::Messages { MESSAGE_PAGES } else { MAX_EXTENT_PAGES };
        let has_room = |lane: &&Lane| lane.unencoded < depth && lane.flight.len() < window;
        let free = self.lanes.iter().filter(|lane| lane.state == LaneState::Open).filter(has_room);
        free.filter_map(|lane| {
            let pages = lane.extent_pages().min(page_limit).min(most);
            let room = self.leaks_credit || lane.charged + self.worst_case(pages) <= lane.credit;
            room.then(|| (lane.delivery(pages), lane.id, pages))
        })
        .min_by_key(|&(delivery, id, _)| (delivery, id))
        .map(|(_, id, pages)| (id, pages))
    }

    /// Hands an extent to a lane; returns its sequence number there.
    pub(super) fn hand(&mut self, id: LaneId, cargo: Cargo, now: Time) -> Option<u64> {
        let Cargo { extent, slots, effort } = cargo;
        let charge = if self.leaks_credit { 0 } else { self.worst_case(extent.pages()) };
        let lane = self.get_mut(id)?;
        let seq = lane.next_seq;
        lane.next_seq += 1;
        lane.charged += charge;
        lane.flight_bytes += charge;
        lane.unencoded += 1;
        if lane.flight.is_empty() {
            lane.meter.busy_from(now);
        }
        lane.flight.push_back(Flight { seq, extent, slots, effort, sent_at: now, charge, encoded: false });
        Some(seq)
    }

    /// An extent's true size is known. Returns how it was to be encoded; `None` when the lane does not carry it.
    pub(super) fn encoded(&mut self, encoded: &Encoded) -> Option<Effort> {
        let leaks = self.leaks_credit;
        let lane = self.get_mut(encoded.lane)?;
        let place = lane.flight.front().and_then(|oldest| encoded.seq.checked_sub(oldest.seq));
        let place = place.and_then(|place| usize::try_from(place).ok());
        let flight = place.and_then(|place| lane.flight.get_mut(place))?;
        let charge = if leaks { 0 } else { encoded.wire_bytes };
        lane.charged = lane.charged - flight.charge + charge;
        lane.flight_bytes = lane.flight_bytes - flight.charge + encoded.wire_bytes;
        flight.charge = encoded.wire_bytes;
        flight.encoded = true;
        lane.unencoded = lane.unencoded.saturating_sub(1);
        Some(flight.effort)
    }

    /// Everything below `applied` on a lane is applied. Returns those extents, oldest first.
    ///
    /// # Errors
    /// The sink acknowledges what was never encoded for the lane. spec: A-2
    pub(super) fn acknowledged(&mut self, id: LaneId, applied: u64, now: Time) -> Result<Vec<Flight>, BadAck> {
        let Some(lane) = self.get_mut(id) else {
            return if id.0 <= self.next_id { Ok(Vec::new()) } else { Err(BadAck) };
        };
        let count = lane.flight.partition_point(|flight| flight.seq < applied);
        if lane.flight.iter().take(count).any(|flight| !flight.encoded) || applied > lane.next_seq {
            return Err(BadAck);
        }
        let settled: Vec<Flight> = lane.flight.drain(..count).collect();
        let (plain, wire) = settled.iter().fold((0, 0), |(plain, wire), flight| {
            (plain + u64::try_from(flight.extent.bytes()).unwrap_or(0), wire + flight.charge)
        });
        lane.flight_bytes -= wire;
        lane.meter.delivered(plain, wire, now, lane.flight.is_empty());
        Ok(settled)
    }

    /// A lane's worker ended. True when there was such a lane and it was not known to be dead.
    pub(super) fn died(&mut self, id: LaneId) -> bool {
        match self.get_mut(id) {
            Some(lane) if lane.state != LaneState::Dead => {
                lane.state = LaneState::Dead;
                lane.unencoded = 0;
                true
            }
            _ => false,
        }
    }

    /// Marks a lane whose worker is to be stopped. True when it was alive.
    pub(super) fn closing(&mut self, id: LaneId) -> bool {
        match self.get_mut(id) {
            Some(lane) if matches!(lane.state, LaneState::Open | LaneState::Opening) => {
                lane.state = LaneState::Closing;
                true
            }
            _ => false,
        }
    }

    /// Takes a buried lane away: the extents that were applied, and those that were not.
    ///
    /// # Errors
    /// The lane is not dead, or the sink claims more than it was sent.
    pub(super) fn bury(&mut self, id: LaneId, applied: u64) -> Result<(Vec<Flight>, Vec<Flight>), BadAck> {
        let Some(at) = self.lanes.iter().position(|lane| lane.id == id) else {
            return if id.0 <= self.next_id { Ok((Vec::new(), Vec::new())) } else { Err(BadAck) };
        };
        let lane = self.lanes.get(at).ok_or(BadAck)?;
        let unencoded = lane.flight.iter().any(|flight| flight.seq < applied && !flight.encoded);
        if lane.state != LaneState::Dead || applied > lane.next_seq || unencoded {
            return Err(BadAck);
        }
        let mut lane = self.lanes.remove(at);
        let count = lane.flight.partition_point(|flight| flight.seq < applied);
        let lost = lane.flight.split_off(count);
        Ok((lane.flight.into(), lost.into()))
    }

    /// Lanes whose oldest extent is so late that they are taken for dead. spec: L-3
    pub(super) fn stalled(&self, now: Time) -> Vec<LaneId> {
        // A lane that delivered nothing yet may wait behind all that is under way on the others. One that is cut off is found
        // by its socket, however slow the link.
        let all = match self.rates() {
            (_, 0) => duration_at(self.flight_bytes(), LEAST_RATE),
            (_, wire) => duration_at(self.flight_bytes(), wire) * PATIENCE,
        };
        let late = |lane: &&Lane| {
            let Some(oldest) = lane.flight.front() else { return false };
            let since = now.since(oldest.sent_at.max(lane.meter.last_delivery));
            let expected = if lane.meter.wire_rate == 0 { all } else { lane.delivery(0) * PATIENCE };
            lane.state == LaneState::Open && since > STALL.max(expected)
        };
        self.lanes.iter().filter(late).map(|lane| lane.id).collect()
    }

    /// Ids of all lanes that are dead but not buried.
    pub(super) fn dead(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.lanes.iter().filter(|lane| lane.state == LaneState::Dead).map(|lane| lane.id)
    }

    /// Ids of all lanes that are not dead.
    pub(super) fn alive(&self) -> Vec<LaneId> {
        self.lanes.iter().filter(|lane| lane.state != LaneState::Dead).map(|lane| lane.id).collect()
    }

    /// Number of lanes that carry extents.
    pub(super) fn open_count(&self) -> u16 {
        u16::try_from(self.lanes.iter().filter(|lane| lane.state == LaneState::Open).count()).unwrap_or(u16::MAX)
    }

    /// Number of lanes that do or soon will carry extents.
    pub(super) fn wanted_count(&self) -> u16 {
        let wanted = |lane: &&Lane| matches!(lane.state, LaneState::Open | LaneState::Opening);
        u16::try_from(self.lanes.iter().filter(wanted).count()).unwrap_or(u16::MAX)
    }

    /// Extents handed to workers that they have not yet read.
    pub(super) fn unencoded(&self) -> usize {
        self.lanes.iter().map(|lane| lane.unencoded).sum()
    }

    /// Whether any extent is unacknowledged.
    pub(super) fn in_flight(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.flight.is_empty())
    }

    /// Whether extents went out on lanes of which nobody knows yet what they delivered.
    pub(super) fn flight_unburied(&self) -> bool {
        self.lanes.iter().any(|lane| lane.state != LaneState::Open && !lane.flight.is_empty())
    }

    /// Wire bytes not yet acknowledged.
    pub(super) fn flight_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.flight_bytes).sum()
    }

    /// For each open lane, the sequence number that its next extent would have.
    pub(super) fn finals(&self) -> Vec<(LaneId, u64)> {
        let open = self.lanes.iter().filter(|lane| lane.state == LaneState::Open);
        open.map(|lane| (lane.id, lane.next_seq)).collect()
    }

    /// Acknowledged plain and wire bytes per second of all lanes together.
    pub(super) fn rates(&self) -> (u64, u64) {
        let open = self.lanes.iter().filter(|lane| lane.state == LaneState::Open);
        open.fold((0, 0), |(plain, wire), lane| (plain + lane.meter.plain_rate, wire + lane.meter.wire_rate))
    }

    /// Whether this lane is still to come.
    pub(super) fn is_opening(&self, id: LaneId) -> bool {
        self.lanes.iter().any(|lane| lane.id == id && lane.state == LaneState::Opening)
    }

    /// Bytes of a frame of so many pages at most. In a message each run has a head of its own, and each chunk.
    fn worst_case(&self, pages: usize) -> u64 {
        let plain = u64::try_from(pages * PAGE_BYTES).unwrap_or(u64::MAX);
        match self.framing {
            Framing::Extents => worst_case(pages),
            Framing::Messages => plain + plain / 16 + 65_536 / u64::from(MAX_MESSAGE_EXTENTS),
        }
    }

    /// Lanes that carry extents.
    pub(super) fn open_ids(&self) -> Vec<LaneId> {
        self.ids(LaneState::Open)
    }

    /// Ends a lane whose connection goes on as another, under a new id. `None` when it is not open, or no id is left.
    pub(super) fn leave(&mut self, id: LaneId) -> Option<LaneId> {
        if self.next_id >= MAX_LANE_IDS || !self.closing(id) {
            return None;
        }
        let next = self.open();
        self.get_mut(id)?.next = Some(next);
        Some(next)
    }

    /// The lane that this one's connection was kept for.
    pub(super) fn next_of(&self, id: LaneId) -> Option<LaneId> {
        self.lanes.iter().find(|lane| lane.id == id)?.next
    }

    /// Lanes whose workers were told to stop.
    pub(super) fn closing_ids(&self) -> Vec<LaneId> {
        self.ids(LaneState::Closing)
    }

    fn ids(&self, state: LaneState) -> Vec<LaneId> {
        self.lanes.iter().filter(|lane| lane.state == state).map(|lane| lane.id).collect()
    }

    /// A message is made. Returns it when it may go at once: one at a time. spec: V-6
    pub(super) fn prepared(&mut self, message: Message) -> Option<Message> {
        let lane = self.get_mut(message.lane)?;
        lane.prepared = Some(message);
        self.due_message(message.lane)
    }

    /// The message that waits on a lane, if all before it is acknowledged.
    pub(super) fn due_message(&mut self, id: LaneId) -> Option<Message> {
        let lane = self.get_mut(id)?;
        let next = lane.flight.front().map(|oldest| oldest.seq);
        // A lane that ends still carries what was made: its worker waits for the word.
        let lives = matches!(lane.state, LaneState::Open | LaneState::Closing);
        lane.prepared.take_if(|message| lives && next == Some(message.first))
    }

    fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }
}

impl Lane {
    /// Estimated time until an extent of `pages` handed over now is delivered.
    fn delivery(&self, pages: usize) -> Duration {
        let pages = u64::try_from(pages * PAGE_BYTES).unwrap_or(u64::MAX);
        let bytes = self.flight_bytes.saturating_add(pages);
        // Nothing known yet: as good as a fast lane, so that it gets its turn and is measured.
        let rate = if self.meter.wire_rate == 0 { 1 << 30 } else { self.meter.wire_rate };
        duration_at(bytes, rate)
    }

    fn extent_pages(&self) -> usize {
        if self.meter.plain_rate == 0 {
            return FIRST_PAGES;
        }
        let micros = u64::try_from(EXTENT_TIME.as_micros()).unwrap_or(u64::MAX);
        let bytes = self.meter.plain_rate.saturating_mul(micros) / 1_000_000;
        usize::try_from(bytes / 4096).unwrap_or(MAX_EXTENT_PAGES).clamp(LEAST_PAGES, MAX_EXTENT_PAGES)
    }
}

/// Wire bytes that an extent of so many pages may take.
fn worst_case(pages: usize) -> u64 {
    u64::try_from(pages * PAGE_BYTES + EXTENT_OVERHEAD).unwrap_or(u64::MAX)
}

/// What a lane delivers per second while it has something to deliver.
#[derive(Debug, Default)]
struct Meter {
    since: Time,
    plain: u64,
    wire: u64,
    plain_rate: u64,
    wire_rate: u64,
    last_delivery: Time,
}

impl Meter {
    fn busy_from(&mut self, now: Time) {
        self.since = now;
        self.plain = 0;
        self.wire = 0;
    }

    fn delivered(&mut self, plain: u64, wire: u64, now: Time, idle: bool) {
        self.last_delivery = now;
        self.plain += plain;
        self.wire += wire;
        let took = now.since(self.since);
        if took >= MEASURE || (idle && self.plain_rate == 0 && !took.is_zero()) {
            self.plain_rate = blend(self.plain_rate, rate(self.plain, took));
            self.wire_rate = blend(self.wire_rate, rate(self.wire, took));
            self.busy_from(now);
        }
    }
}

/// A moving average that forgets half in about two measurements.
fn blend(old: u64, new: u64) -> u64 {
    if old == 0 { new.max(1) } else { (old / 10 * 7).saturating_add(new / 10 * 3).max(1) }
}

/// The sink acknowledges what it was never sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadAck;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{RegionId, Run};
    use crate::wire::Digest;

    fn extent(pages: u16) -> Extent {
        Extent::new(RegionId(0), vec![Run { start: 0, count: pages }]).unwrap()
    }

    fn cargo(pages: u16) -> Cargo {
        Cargo { extent: extent(pages), slots: Vec::new(), effort: Effort::Light }
    }

    fn at(ms: u64) -> Time {
        Time::after_epoch(Duration::from_millis(ms))
    }

    fn open(lanes: &mut Lanes, credit: u64) -> LaneId {
        let id = lanes.open();
        assert!(lanes.joined(id, credit));
        id
    }

    fn send(lanes: &mut Lanes, id: LaneId, wire_bytes: u64, now: Time) -> u64 {
        let seq = lanes.hand(id, cargo(64), now).unwrap();
        assert_eq!(lanes.encoded(&Encoded { lane: id, seq, wire_bytes, ..Encoded::default() }), Some(Effort::Light));
        seq
    }

    // spec: C-2
    #[test]
    fn a_lane_without_credit_is_not_chosen() {
        let mut lanes = Lanes::default();
        let id = open(&mut lanes, worst_case(64) + 1000);
        assert_eq!(lanes.choose(256), Some((id, 64)));
        send(&mut lanes, id, 2000, at(0));
        assert_eq!(lanes.choose(256), None, "the worst case no longer fits");
        lanes.grant(id, worst_case(64) + 2000);
        assert_eq!(lanes.choose(256), Some((id, 64)));
        lanes.grant(id, 5);
        assert_eq!(lanes.choose(256), Some((id, 64)), "credit never falls");
    }

    #[test]
    fn the_lane_that_delivers_first_is_chosen() {
        let mut lanes = Lanes::default();
        let (slow, fast) = (open(&mut lanes, 1 << 40), open(&mut lanes, 1 << 40));
        for (lane, ms) in [(slow, 100), (fast, 10)] {
            let seq = send(&mut lanes, lane, 100_000, at(0));
            assert_eq!(lanes.acknowledged(lane, seq + 1, at(ms)).unwrap().len(), 1);
        }
        let (chosen, pages) = lanes.choose(256).unwrap();
        assert_eq!((chosen, pages), (fast, 128), "20 ms of 26 MB/s");
        for _ in 0..8 {
            send(&mut lanes, fast, 100_000, at(200));
        }
        assert_eq!(lanes.choose(256).unwrap().0, slow, "the fast one has a queue now");
    }

    // spec: A-2
    #[test]
    fn an_ack_of_what_was_never_sent_is_refused() {
        let mut lanes = Lanes::default();
        let id = open(&mut lanes, 1 << 40);
        lanes.hand(id, cargo(1), at(0)).unwrap();
        assert_eq!(lanes.acknowledged(id, 1, at(1)).err(), Some(BadAck), "not even encoded");
        assert_eq!(lanes.acknowledged(id, 2, at(1)).err(), Some(BadAck));
        assert_eq!(lanes.acknowledged(LaneId(9), 0, at(1)).err(), Some(BadAck), "no such lane");
    }

    // spec: B-3
    #[test]
    fn a_burial_splits_what_was_applied_from_what_was_lost() {
        let mut lanes = Lanes::default();
        let id = open(&mut lanes, 1 << 40);
        for _ in 0..4 {
            send(&mut lanes, id, 10, at(0));
        }
        assert!(lanes.bury(id, 2).is_err(), "not dead");
        assert!(lanes.died(id));
        let (applied, lost) = lanes.bury(id, 3).unwrap();
        assert_eq!(applied.iter().map(|flight| flight.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(lost.iter().map(|flight| flight.seq).collect::<Vec<_>>(), [3]);
        assert_eq!(lanes.acknowledged(id, 4, at(1)).unwrap().len(), 0, "late acks of a buried lane are harmless");
    }

    // spec: V-6
    #[test]
    fn a_lane_of_messages_carries_one_and_makes_one() {
        let mut lanes = Lanes::carrying(Framing::Messages);
        let id = open(&mut lanes, 1 << 40);
        let message = |first| Message { lane: id, first, extents: 8, pages: 8, bytes: 9, digest: Digest([0; 32]) };
        for round in 0..2 {
            for _ in 0..8 {
                assert!(lanes.choose(256).is_some(), "round {round}");
                send(&mut lanes, id, 10, at(0));
            }
        }
        assert_eq!(lanes.choose(256), None, "two messages are in hand");
        assert_eq!(lanes.prepared(message(0)), Some(message(0)));
        assert_eq!(lanes.prepared(message(8)), None, "the first is not acknowledged");
        assert_eq!(lanes.acknowledged(id, 8, at(1)).unwrap().len(), 8);
        assert_eq!(lanes.due_message(id), Some(message(8)));
        assert_eq!(lanes.due_message(id), None, "once");
        assert!(lanes.choose(256).is_some());
    }

    // spec: C-2, C-3
    #[test]
    fn what_the_least_credit_allows_is_enough_for_a_message() {
        let mut lanes = Lanes::carrying(Framing::Messages);
        let id = open(&mut lanes, worst_case(MAX_EXTENT_PAGES));
        lanes.get_mut(id).unwrap().meter.plain_rate = 1 << 40;
        assert_eq!(lanes.choose(MAX_EXTENT_PAGES), Some((id, MESSAGE_PAGES)));
        assert!(lanes.worst_case(MESSAGE_PAGES + 1) > worst_case(MAX_EXTENT_PAGES), "one more would not fit");
    }

    #[test]
    fn a_silent_lane_is_noticed() {
        let mut lanes = Lanes::default();
        let id = open(&mut lanes, 1 << 40);
        send(&mut lanes, id, 10, at(0));
        assert!(lanes.stalled(at(4000)).is_empty());
        assert_eq!(lanes.stalled(at(6000)), [id]);
    }

    // spec: L-3
    #[test]
    fn a_lane_that_delivered_nothing_yet_has_the_time_of_a_slow_link() {
        let mut lanes = Lanes::default();
        let [one, other] = [(); 2].map(|()| open(&mut lanes, 1 << 40));
        for _ in 0..4 {
            send(&mut lanes, one, LEAST_RATE, at(0));
            send(&mut lanes, other, LEAST_RATE, at(0));
        }
        assert!(lanes.stalled(at(7900)).is_empty(), "eight seconds of such a link are under way");
        assert_eq!(lanes.stalled(at(8100)), [one, other]);
        // The link is half as fast, and the first lane comes last.
        assert_eq!(lanes.acknowledged(other, 4, at(8000)).unwrap().len(), 4);
        assert!(lanes.stalled(at(40_000)).is_empty(), "{:?}", lanes.rates());
    }

    #[test]
    fn a_lane_that_delivers_nothing_beside_fast_ones_is_stalled() {
        let mut lanes = Lanes::default();
        let [dead, fast] = [(); 2].map(|()| open(&mut lanes, 1 << 40));
        send(&mut lanes, dead, 100_000, at(0));
        send(&mut lanes, fast, 100_000, at(0));
        assert_eq!(lanes.acknowledged(fast, 1, at(20)).unwrap().len(), 1);
        assert!(lanes.stalled(at(5000)).is_empty());
        assert_eq!(lanes.stalled(at(5001)), [dead]);
    }
}
