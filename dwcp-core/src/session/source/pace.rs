//! When to go on: the bandwidth limit, and the waits before a connection is dialled again.

use std::num::NonZeroU64;
use std::time::Duration;

use super::super::Time;
use super::super::converge::duration_at;

/// First wait before a lost connection is dialled again; it doubles up to `REDIAL_MOST`.
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_MOST: Duration = Duration::from_secs(2);

/// Bytes per second, as a bucket that holds a tenth of a second.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) rate: Option<NonZeroU64>,
    /// Bytes that may go now; negative while an extent is paid off.
    pub(super) tokens: i64,
    pub(super) filled_at: Time,
}

impl Pace {
    pub(super) fn set(&mut self, now: Time, rate: Option<NonZeroU64>) {
        self.fill(now);
        self.rate = rate;
        self.tokens = self.tokens.min(self.burst());
    }

    pub(super) fn burst(&self) -> i64 {
        self.rate.map_or(0, |rate| i64::try_from(rate.get() / 10).unwrap_or(i64::MAX).max(1))
    }

    pub(super) fn fill(&mut self, now: Time) {
        let Some(rate) = self.rate else { return };
        let earned = u128::from(rate.get()) * now.since(self.filled_at).as_nanos() / 1_000_000_000;
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.burst());
            self.filled_at = now;
        }
    }

    pub(super) fn open(&self) -> bool {
        self.rate.is_none() || self.tokens > 0
    }

    /// Charges the worst case; the truth is known once the extent is encoded.
    pub(super) fn spend(&mut self, bytes: usize) {
        if self.rate.is_some() {
            self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn refund(&mut self, charged: usize, wire_bytes: u64) {
        if self.rate.is_some() {
            let charged = i64::try_from(charged).unwrap_or(0);
            let wire = i64::try_from(wire_bytes).unwrap_or(0);
            self.tokens = self.tokens.saturating_add(charged - wire).min(self.burst());
        }
    }

    /// What is left of a plain and a wire rate under the limit.
    pub(super) fn within(&self, plain: u64, wire: u64) -> (u64, u64) {
        let Some(limit) = self.rate.map(NonZeroU64::get).filter(|&limit| limit < wire) else { return (plain, wire) };
        let plain = u128::from(plain) * u128::from(limit) / u128::from(wire);
        (u64::try_from(plain).unwrap_or(u64::MAX), limit)
    }

    pub(super) fn open_at(&self) -> Option<Time> {
        let rate = self.rate.filter(|_| !self.open())?;
        let missing = self.tokens.unsigned_abs() + 1;
        Some(self.filled_at + duration_at(missing, rate.get()) + Duration::from_micros(100))
    }
}

/// When to try again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pub(super) at: Option<Time>,
    pub(super) wait: Duration,
}

impl Backoff {
    pub(super) fn schedule(&mut self, now: Time) {
        self.wait = (self.wait * 2).clamp(REDIAL_FIRST, REDIAL_MOST);
        self.at = Some(now + self.wait);
    }

    pub(super) fn due(&mut self, now: Time) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.at = None;
        }
        due
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rate_is_expected_above_the_limit() {
        let pace = |rate| Pace { rate: NonZeroU64::new(rate), tokens: 0, filled_at: Time::default() };
        assert_eq!(pace(0).within(900, 300), (900, 300));
        assert_eq!(pace(300).within(900, 300), (900, 300));
        assert_eq!(pace(100).within(900, 300), (300, 100), "pages are as compressible as before");
        assert_eq!(pace(1).within(0, 0), (0, 0));
        assert_eq!(pace(u64::MAX - 1).within(u64::MAX, u64::MAX), (u64::MAX - 1, u64::MAX - 1));
    }
}
