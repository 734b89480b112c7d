//! What the sink holds from before, as it tells the source in HAVE, and then ACCEPT.

use super::Sink;
use crate::extent::FlatPage;
use crate::session::Time;
use crate::session::allowance::{Allowance, Rate};
use crate::wire::limits::MAX_HAVE_LEAVES;
use crate::wire::{Accept, Frame, Have, Ping};

/// What is said before the source is asked whether it has taken it, in leaves: 4 MiB.
pub(crate) const HAVE_BATCH: usize = 64 * MAX_HAVE_LEAVES;
/// The least that a frame counts as: a batch is 4096 frames at most.
pub(crate) const LEAST_WEIGHT: usize = 32;
/// Half of what a source takes (F-1), so that the longest batch over the quickest link is no flood.
const TURNS: Rate = Rate { burst: 65_536, per_second: 32_768 };
/// Pages that are not held, between two that are, for which there is no frame of their own: 512 bytes, which cost less than to
/// hear one frame more.
const GAP_PAGES: usize = 16;
/// After so many frames the gap doubles: bytes are wasted, but whatever is held of 4 TiB is told within a minute.
const WIDER_AFTER: u32 = 131_072;

/// What a frame counts as, in leaves, where frames are bounded that wait.
pub(crate) fn weight(have: &Have) -> usize {
    have.leaves.len().max(LEAST_WEIGHT)
}

/// How far the source has been told.
#[derive(Debug)]
pub(super) struct Telling {
    /// From which page on it has still to be told. `None`: nothing yet, or ACCEPT was said.
    from: Option<FlatPage>,
    /// When the next batch may go. `None`: once the one before is answered.
    due: Option<Time>,
    frames: u32,
    turns: Allowance,
}

impl Default for Telling {
    fn default() -> Self {
        Self { from: None, due: None, frames: 0, turns: Allowance::new(TURNS, Time::default()) }
    }
}

impl Telling {
    /// From the first page on, whatever was said before.
    pub(super) fn begin(&mut self, now: Time) {
        (self.from, self.frames) = (Some(FlatPage(0)), 0);
        self.answered(now);
    }

    /// All that was said has been heard.
    pub(super) fn answered(&mut self, now: Time) {
        if self.from.is_some() {
            self.due = Some(self.turns.ready_at().max(now));
        }
    }

    /// Whether ACCEPT has still to be said.
    pub(super) fn is_under_way(&self) -> bool {
        self.from.is_some()
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    pub(super) fn due_at(&self) -> Option<Time> {
        self.due
    }

    fn gap(&self) -> usize {
        let gap = GAP_PAGES.saturating_mul(2_usize.saturating_pow(self.frames / WIDER_AFTER));
        gap.min(MAX_HAVE_LEAVES)
    }
}

impl Sink {
    /// Says what is held from before, a batch at a time, and then ACCEPT. spec: R-1, F-1
    pub(super) fn tell_held(&mut self, now: Time) {
        self.telling.due = None;
        let mut said = 0;
        while said < HAVE_BATCH {
            let Some(have) = self.next_have() else {
                self.telling.from = None;
                let (transfer, dictionaries) = (self.offer.transfer, self.config.dictionaries);
                let baseline = self.baseline.as_ref().map(|(number, _)| *number);
                self.say(Frame::Accept(Accept { transfer, dictionaries, baseline }));
                return self.say_wish();
            };
            said += weight(&have);
            self.telling.frames = self.telling.frames.saturating_add(1);
            self.telling.turns.overdraw(now);
            self.say(Frame::Have(have));
        }
        // The answer says that the source has taken all of them: nothing piles up.
        self.say(Frame::Ping(Ping { id: 0 }));
    }

    fn next_have(&mut self) -> Option<Have> {
        let (from, gap) = (self.telling.from?, self.telling.gap());
        let baseline = self.baseline.as_ref().map(|(_, leaves)| leaves.as_ref());
        let left = self.offer.layout.regions().filter(|(_, region)| region.first + region.pages > from.0);
        let (region, first, leaves) = left.into_iter().find_map(|(id, region)| {
            let pages = region.first.max(from.0)..region.first + region.pages;
            let (first, leaves) = self.leaves.run_to_tell(baseline, pages, MAX_HAVE_LEAVES, gap)?;
            Some((id, first.0 - region.first, leaves))
        })?;
        let flat = self.offer.layout.flat(region, first)?;
        self.telling.from = Some(FlatPage(flat.0 + u32::try_from(leaves.len()).unwrap_or(u32::MAX)));
        Some(Have { region, first, leaves })
    }
}
