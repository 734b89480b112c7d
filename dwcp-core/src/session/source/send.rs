//! Extents on their way out: which pages next, and what they cost once they are encoded.

use dwcp_hde::Effort;

use super::super::budget::Sample;
use super::super::dirty::flat_pages;
use super::super::lanes::Cargo;
#[cfg(feature = "planted-bugs")]
use super::super::planted::Bug;
use super::super::{Dispatch, Encoded, Output, SlotId, Time};
use super::Source;
use crate::extent::{Extent, PageMask};
use crate::wire::{Framing, LaneId};

/// Pages that an extent should have at most: 256 KiB in plain, so that it, its bases and its ciphertext
/// stay in a core's second-level cache on their way from the guest through hash, encoder and cipher. More
/// compress to 0.4 % of the guest less, at six sevenths of the speed.
const CACHED_PAGES: usize = 64;

impl Source {
    pub(super) fn send_extents(&mut self, now: Time) {
        self.pace.fill(now);
        loop {
            self.let_excess_go(false);
            if self.dirty.sendable() == 0 {
                self.budget.pause();
                break;
            }
            if !self.pace.open() {
                break;
            }
            let effort = self.budget.effort();
            let Some((lane, pages)) = self.lanes.choose(self.extent_limit(effort)) else { break };
            let Some(extent) = self.dirty.next_extent(pages) else { break };
            self.budget.handed(extent.pages(), self.dirty.sendable());
            self.send(now, lane, extent, effort);
        }
        self.progress.pages_deferred = self.dirty.held();
        self.progress.pages_left = self.dirty.pages() - self.dirty.held();
    }

    /// Where there is time for a thorough search, the cache is not what counts.
    fn extent_limit(&self, effort: Effort) -> usize {
        let most = usize::from(self.config.limits.extent_pages);
        if matches!(effort, Effort::Thorough(_)) { most } else { most.min(CACHED_PAGES) }
    }

    fn send(&mut self, now: Time, lane: LaneId, extent: Extent, effort: Effort) {
        let mut known = PageMask::EMPTY;
        for (index, page) in flat_pages(&self.layout, &extent).enumerate() {
            if self.known.get(page) {
                known.set(index);
            }
        }
        self.known.assign(&self.layout, &extent, false);
        self.progress.pages_resent += self.sent.assign(&self.layout, &extent, true);
        // Messages carry no deltas, and leave no copy of what they carry.
        let ((slots, based), baseline) = match self.leave.framing() {
            Framing::Extents => (self.shadow.lend(&self.layout, &extent), self.progress.baseline),
            Framing::Messages => ((Vec::new(), PageMask::EMPTY), None),
        };
        self.plant(&extent, &slots);
        self.pace.spend(extent.bytes());
        let cargo = Cargo { extent: extent.clone(), slots: slots.clone(), effort };
        let Some(seq) = self.lanes.hand(lane, cargo, now) else { return };
        let dictionaries = self.dictionaries;
        let dispatch = Dispatch { lane, seq, extent, known, slots, based, effort, dictionaries, baseline };
        self.outputs.push_back(Output::Send(dispatch));
    }

    #[cfg(feature = "planted-bugs")]
    fn plant(&mut self, extent: &Extent, slots: &[Option<SlotId>]) {
        if self.planted.has(Bug::ExtentNotPinned) {
            self.dirty.unpin(extent);
        }
        if self.planted.has(Bug::ShadowValidBeforeAck) {
            self.shadow.trust(slots);
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, clippy::needless_pass_by_ref_mut, reason = "the same call in both builds")]
    fn plant(&mut self, _: &Extent, _: &[Option<SlotId>]) {}

    pub(super) fn encoded(&mut self, encoded: &Encoded) {
        let Some(effort) = self.lanes.encoded(encoded) else { return };
        self.pace.refund(usize::from(encoded.carried + encoded.same) * 4096, encoded.wire_bytes);
        self.note_packed(encoded);
        let Encoded { encode, carried, same, wire_bytes, .. } = *encoded;
        if self.leave.framing() == Framing::Extents {
            self.budget.encoded(Sample { effort, encode, carried, same, wire_bytes });
        }
        self.round.wire_bytes += encoded.wire_bytes;
        self.progress.wire_bytes += encoded.wire_bytes;
        self.progress.pages_carried += u64::from(encoded.carried);
        self.progress.pages_same += u64::from(encoded.same);
        self.progress.pages_read += u64::from(encoded.carried) + u64::from(encoded.same);
    }
}
