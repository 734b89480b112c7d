//! How far a source's first sweep has come, as far as its extents tell.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A source goes through memory once, from front to end. A page that is laid before its extent comes is written twice, and
/// taken back in a journal: with the baseline of another guest that is nearly each.
#[derive(Debug)]
pub(super) struct Front {
    margin: u32,
    quiet: Duration,
    before_first: Duration,
    /// One past the last page that came.
    end: AtomicU32,
    extents: AtomicU64,
}

impl Default for Front {
    fn default() -> Self {
        Self {
            // Lanes bring extents in turns: sixteen of the largest.
            margin: 16 * 256,
            quiet: Duration::from_millis(100),
            // ACCEPT has a way to go, and lanes are dialled then.
            before_first: Duration::from_secs(1),
            end: AtomicU32::default(),
            extents: AtomicU64::default(),
        }
    }
}

impl Front {
    /// Nothing is waited for.
    #[cfg(test)]
    pub(super) fn at_once() -> Self {
        Self { margin: 0, quiet: Duration::ZERO, before_first: Duration::ZERO, ..Self::default() }
    }

    /// Pages up to this one came.
    pub(super) fn came(&self, end: u32) {
        self.end.fetch_max(end, Ordering::Relaxed);
        self.extents.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs of pages that came so far.
    pub(super) fn extents(&self) -> u64 {
        self.extents.load(Ordering::Relaxed)
    }

    /// When nothing came for so long, the source looks at pages that are the same, or waits: whatever is laid then is of use.
    pub(super) fn quiet(&self) -> Duration {
        if self.extents() == 0 { self.before_first } else { self.quiet }
    }

    /// Whether no page before this one is likely to come any more.
    pub(super) fn is_past(&self, end: u32) -> bool {
        end.saturating_add(self.margin) <= self.end.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_lanes_may_still_bring_is_not_past() {
        let front = Front::default();
        assert!(!front.is_past(0) && front.quiet() > Duration::from_millis(500));
        front.came(4096);
        assert!(front.is_past(0) && !front.is_past(1));
        front.came(100);
        front.came(10_000);
        assert!(front.is_past(10_000 - 4096) && !front.is_past(10_001 - 4096));
        assert_eq!(front.extents(), 3);
        assert!(front.quiet() < Duration::from_millis(500) && !front.is_past(u32::MAX));
    }
}
