//! How much of something a peer may have in a time: a token bucket that is told the time.

use std::time::Duration;

use super::Time;

/// So many at once, and so many more with every second. What a peer says cannot change either.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// At once, after a time of quiet.
    pub(crate) burst: u32,
    /// From then on.
    pub(crate) per_second: u32,
}

/// What is left of a [`Rate`]. It may be overdrawn by those who wait for their turn.
#[derive(Debug)]
pub(crate) struct Allowance {
    rate: Rate,
    /// Tokens, in millionths.
    left: i64,
    filled_at: Time,
}

const TOKEN: i64 = 1_000_000;

impl Allowance {
    pub(crate) fn new(rate: Rate, now: Time) -> Self {
        Self { rate, left: i64::from(rate.burst) * TOKEN, filled_at: now }
    }

    /// Takes one now, or says that there is none.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        self.fill(now);
        let enough = self.left >= TOKEN;
        if enough {
            self.left -= TOKEN;
        }
        enough
    }

    /// Takes one, whether there is one or not.
    pub(crate) fn overdraw(&mut self, now: Time) {
        self.fill(now);
        self.left = self.left.saturating_sub(TOKEN);
    }

    /// Takes one and says how long to wait for it; `None`, and nothing taken, when that is above `most`.
    #[cfg(any(feature = "net", test))]
    pub(crate) fn reserve(&mut self, now: Time, most: Duration) -> Option<Duration> {
        self.fill(now);
        let missing = u64::try_from((TOKEN - self.left).max(0)).unwrap_or(0);
        let wait = Duration::from_micros(missing / u64::from(self.rate.per_second.max(1)));
        if wait > most {
            return None;
        }
        self.left -= TOKEN;
        Some(wait)
    }

    /// When there is one to take.
    pub(crate) fn ready_at(&self) -> Time {
        let missing = u64::try_from((TOKEN - self.left).max(0)).unwrap_or(0);
        self.filled_at + Duration::from_micros(missing.div_ceil(u64::from(self.rate.per_second.max(1))))
    }

    /// Whether nothing of it is in use.
    #[cfg(any(feature = "net", test))]
    pub(crate) fn full(&mut self, now: Time) -> bool {
        self.fill(now);
        self.left >= i64::from(self.rate.burst) * TOKEN
    }

    fn fill(&mut self, now: Time) {
        let passed = i64::try_from(now.since(self.filled_at).as_micros()).unwrap_or(i64::MAX);
        let more = passed.saturating_mul(i64::from(self.rate.per_second));
        self.left = self.left.saturating_add(more).min(i64::from(self.rate.burst) * TOKEN);
        self.filled_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::after_epoch(Duration::from_millis(ms))
    }

    #[test]
    fn a_burst_then_so_many_a_second_and_never_more_than_the_burst() {
        let mut allowance = Allowance::new(Rate { burst: 3, per_second: 10 }, at(0));
        assert_eq!((0..5).filter(|_| allowance.take(at(0))).count(), 3);
        assert_eq!(allowance.ready_at(), at(100));
        assert!(!allowance.take(at(99)));
        assert!(allowance.take(at(100)));
        assert!(!allowance.full(at(300)));
        assert!(allowance.full(at(60_000)));
        assert_eq!((0..5).filter(|_| allowance.take(at(60_000))).count(), 3);
    }

    #[test]
    fn who_comes_too_early_waits_in_turn_and_not_for_ever() {
        let mut allowance = Allowance::new(Rate { burst: 1, per_second: 10 }, at(0));
        let most = Duration::from_millis(250);
        let waits: Vec<_> = (0..5).map(|_| allowance.reserve(at(0), most).map(|wait| wait.as_millis())).collect();
        assert_eq!(waits, [Some(0), Some(100), Some(200), None, None]);
        assert_eq!(allowance.reserve(at(100), most), Some(Duration::from_millis(200)), "who was refused took nothing");
    }
}
