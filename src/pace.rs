//! How fast guest bytes come across, as a clock on the wall shows it.

use std::time::Duration;

use tokio::time::Instant;

/// Between two progress lines.
const EVERY: Duration = Duration::from_millis(500);

/// What was told last of a transfer's speed.
///
/// [`Progress::plain_rate`](dwcp_core::session::Progress) is another figure: what lanes deliver while they have something to
/// deliver, which says when to pause the guest, and stays high when a limit, or the other end, lets nothing through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    at: Instant,
    pages: u64,
    rate: u64,
}

impl Pace {
    pub(crate) fn since(at: Instant) -> Self {
        Self { at, pages: 0, rate: 0 }
    }

    /// Whether it is time for another line: with the plain bytes a second since the last one, for pages counted from the
    /// beginning.
    pub(crate) fn due(&mut self, now: Instant, pages: u64) -> Option<u64> {
        let took = now.duration_since(self.at);
        if took < EVERY {
            return None;
        }
        let bytes = u128::from(pages.saturating_sub(self.pages)) * 4096;
        let rate = u64::try_from(bytes * 1_000_000 / took.as_micros().max(1)).unwrap_or(u64::MAX);
        *self = Self { at: now, pages, rate };
        Some(rate)
    }

    /// The same as it was told last.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_across_since_the_last_line() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::since(start);
        assert_eq!(pace.due(at(499), 500_000), None);
        assert_eq!(pace.due(at(1000), 1000), Some(4_096_000));
        assert_eq!((pace.due(at(1400), 2000), pace.rate()), (None, 4_096_000));
        // A link that carried nothing for ten seconds had no speed, whatever lanes can do.
        assert_eq!(pace.due(at(11_000), 1000), Some(0));
        assert_eq!(pace.due(at(13_000), 2000), Some(2_048_000));
    }
}
