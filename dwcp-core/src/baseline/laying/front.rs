//! How far a source's first sweep has come, as far as its extents tell.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What is laid stays so far behind the last page that came: lanes bring extents in turns, sixteen of the largest.
const MARGIN: u32 = 16 * 256;
/// When nothing came for so long, the source looks at pages that are the same, or waits: whatever is laid then is of use.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// A source goes through memory once, from front to end. A page that is laid before its extent comes is written twice, and
/// taken back in a journal: with the baseline of another guest that is nearly each.
#[derive(Debug, Default)]
pub(super) struct Front {
    /// One past the last page that came.
    end: AtomicU32,
    extents: AtomicU64,
}

impl Front {
    /// Pages up to this one came.
    pub(super) fn came(&self, end: u32) {
        self.end.fetch_max(end, Ordering::Relaxed);
        self.extents.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs of pages that came so far.
    pub(super) fn extents(&self) -> u64 {
        self.extents.load(Ordering::Relaxed)
    }

    /// Whether no page before this one is likely to come any more.
    pub(super) fn is_past(&self, end: u32) -> bool {
        end.saturating_add(MARGIN) <= self.end.load(Ordering::Relaxed)
    }
}
