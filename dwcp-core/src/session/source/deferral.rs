//! Hot pages are left for the pause: what the guest writes all the time would only be sent again there.
//!
//! ```text
//!   harvest ──> HotPages: dirty in each of the last harvests? ──> held ──> let go when the guest is paused,
//!                                                                   │     or when they would take too long then
//!                                                                   └──── not found dirty again: sent in the next round
//! ```

use std::time::Duration;

use super::super::converge::duration_at;
use super::super::hot::Window;
use super::super::{Encoded, Time};
use super::{Source, State};
use crate::guest::DirtyMap;
use crate::wire::GuestKind;

/// In a long round the guest is asked so often what it writes: often enough to know its hot pages before the first round is
/// over, and seldom enough that write-protecting its memory again costs it nothing to speak of.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// What is deferred may take one part in so many of the downtime budget. The rest is for what is written in the last round,
/// and for pages that pack worse in the pause than before.
const BUDGET_PARTS: u32 = 2;

/// What pages took on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Packed {
    pages: u64,
    wire_bytes: u64,
}

impl Packed {
    fn add(&mut self, pages: u16, wire_bytes: u64) {
        self.pages += u64::from(pages);
        self.wire_bytes += wire_bytes;
    }

    /// What is older counts half.
    fn age(&mut self) {
        self.pages /= 2;
        self.wire_bytes /= 2;
    }

    /// Bytes of so many pages; 0 when nothing is known.
    fn wire_of(self, pages: u64) -> u64 {
        scaled(pages, self.wire_bytes, self.pages)
    }
}

/// What pages take on the wire that are sent again.
///
/// The first round says little of that: half a guest's memory are zeros and text that nobody writes. And what is sent beside
/// deferred pages says little of them.
#[derive(Debug, Default)]
pub(super) struct Ratio {
    /// Pages that the first round carried. Those that the sink had were zeros.
    first: Packed,
    /// Later rounds that sent all.
    again: Packed,
    /// Later rounds that deferred some.
    beside: Packed,
}

impl Ratio {
    /// Wire bytes to be expected of so many dirty pages.
    pub(super) fn wire_of(&self, pages: u64) -> u64 {
        let known = if self.again.pages > 0 { self.again } else { self.first };
        let most = known.wire_of(pages).max(self.beside.wire_of(pages));
        if most == 0 { pages.saturating_mul(4096) } else { most }
    }

    pub(super) fn round_ended(&mut self, deferred: u64) {
        if deferred > 0 { self.beside.age() } else { self.again.age() }
    }
}

impl Source {
    /// Whether pages may be left for the pause. An image at rest has none, and one whose rounds are the guest's own has no
    /// pause that could be shorter.
    fn may_defer(&self) -> bool {
        self.config.defer_hot && self.offer.kind == GuestKind::Live && !self.round.more_certain
    }

    pub(super) fn note_packed(&mut self, encoded: &Encoded) {
        let Encoded { carried, same, wire_bytes, .. } = *encoded;
        match (self.round.number, self.round.deferred) {
            (0, _) => self.ratio.first.add(carried, wire_bytes),
            (_, 0) => self.ratio.again.add(carried + same, wire_bytes),
            _ => self.ratio.beside.add(carried + same, wire_bytes),
        }
    }

    /// How long so many dirty pages take: the link with what they are packed to, or the cores, whichever is slower.
    pub(super) fn time_of(&self, pages: u64) -> Duration {
        let (plain_rate, wire_rate) = self.rates();
        let cores = duration_at(pages.saturating_mul(4096), plain_rate);
        let link = duration_at(self.ratio.wire_of(pages), wire_rate);
        // With as many pages in the last round, and none left out, there is nothing to guess.
        let alike = self.round.last.filter(|last| last.pages >= pages && last.deferred == 0);
        cores.max(link).min(alike.map_or(Duration::MAX, |last| last.duration))
    }

    /// Pages that may be deferred, with what is measured now.
    pub(super) fn deferrable(&self) -> u64 {
        let (plain_rate, wire_rate) = self.rates();
        let time = (self.config.downtime_budget / BUDGET_PARTS).saturating_sub(self.fixed_downtime());
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bytes = |rate| scaled(nanos, rate, 1_000_000_000);
        let cores = bytes(plain_rate) / 4096;
        let link = scaled(bytes(wire_rate), 1 << 20, self.ratio.wire_of(1 << 20));
        cores.min(link)
    }

    /// When to ask the guest in mid-round what it writes.
    pub(super) fn sample_at(&self) -> Option<Time> {
        let round = self.state == State::Copying && self.leave.is_active() && self.dirty.sendable() > 0;
        // While no lane moves a page the guest need not be asked.
        let round = round && self.lanes.open_count() > 0;
        let free = self.round.log_cleared && !self.round.recalling && !self.round.harvesting;
        (round && free && self.may_defer()).then(|| self.round.harvested_at + SAMPLE_EVERY)
    }

    pub(super) fn sample(&mut self, now: Time) {
        if self.sample_at().is_some_and(|at| at <= now) {
            self.round.sampling = true;
            self.harvest();
        }
    }

    /// What a harvest in mid-round brought: history, and pages that go in the next round.
    pub(super) fn sampled(&mut self, now: Time, dirty: &DirtyMap) {
        self.hot.record(dirty, Window::New);
        self.dirty.hold_written(dirty);
        self.round.harvested_at = now;
        self.round.sampled = true;
    }

    /// Takes down what the harvest at the end of a round says, and holds what is hot of all that is dirty. spec: D-5
    pub(super) fn hold_hot(&mut self, now: Time, dirty: &DirtyMap) {
        let soon = self.round.sampled && now.since(self.round.harvested_at) < SAMPLE_EVERY / 2;
        self.hot.record(dirty, if soon { Window::Same } else { Window::New });
        self.round.harvested_at = now;
        self.round.sampled = false;
        if self.may_defer() {
            let (hot, sent) = (&self.hot, &self.sent);
            self.dirty.hold(|index| hot.sent_word(index, sent));
        }
    }

    /// Once everything else is on its way, hot pages follow that would take too long in the pause. A round that would have
    /// nothing else to send defers nothing: it is there because the pause shall be shorter.
    pub(super) fn let_excess_go(&mut self, begin: bool) {
        // While the guest is asked the round is over: what went now would be in flight when the next one begins.
        let ends = self.round.harvesting || self.state != State::Copying;
        if self.round.deferred == 0 || self.dirty.sendable() > 0 || ends {
            return;
        }
        let excess = self.round.deferred.saturating_sub(self.deferrable());
        let pages = if begin && excess == 0 { u64::MAX } else { excess };
        if pages > 0 {
            self.round.deferred = self.round.deferred.saturating_sub(self.dirty.let_go(pages));
        }
    }

    /// All that is dirty is to be sent.
    pub(super) fn defer_nothing(&mut self) {
        self.dirty.let_go(u64::MAX);
        self.round.deferred = 0;
    }
}

/// `count * part / of`, rounded down; 0 of nothing.
fn scaled(count: u64, part: u64, of: u64) -> u64 {
    if of == 0 {
        return 0;
    }
    u64::try_from(u128::from(count) * u128::from(part) / u128::from(of)).unwrap_or(u64::MAX)
}
