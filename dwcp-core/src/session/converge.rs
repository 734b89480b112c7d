use std::time::Duration;

use super::Time;

/// What to do when a guest is dirtied faster than it can be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStall {
    /// End the transfer; the guest keeps running at the source.
    #[default]
    Abort,
    /// Pause all the same, however long it takes, and report the downtime.
    Force,
}

/// The transfer will not converge, with the numbers that say so and what would make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "will not converge: after {rounds} rounds {dirty_pages} pages are still dirty, which take {} ms at {} MB/s, \
     and the downtime budget is {} ms; it would converge with a budget above that, a faster link, or a guest that \
     writes below {} MB/s (it writes {} MB/s)",
    .estimate.as_millis(), .goodput / 1_000_000, .budget.as_millis(), .goodput / 2_000_000, .dirty_rate / 1_000_000
)]
pub struct Verdict {
    /// Rounds done.
    pub rounds: u32,
    /// Pages dirty at the end of the last one.
    pub dirty_pages: u64,
    /// How long they would take with the guest paused.
    pub estimate: Duration,
    /// What was allowed.
    pub budget: Duration,
    /// Plain bytes per second that were acknowledged.
    pub goodput: u64,
    /// Plain bytes per second that the guest dirtied.
    pub dirty_rate: u64,
}

/// What to do at the end of a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Send what is dirty while the guest runs.
    AnotherRound,
    /// Pause the guest: the rest fits the budget.
    Pause,
    /// Give the transfer up.
    Stop(Verdict),
}

/// What is known at the end of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundEnd {
    pub(super) now: Time,
    /// Pages dirty now.
    pub(super) dirty_pages: u64,
    /// How long they would take with the guest paused, handshakes included.
    pub(super) estimate: Duration,
    /// Acknowledged plain bytes per second.
    pub(super) goodput: u64,
    /// How long the round took.
    pub(super) took: Duration,
}

/// Decides between another round, the pause, and giving up.
///
/// The guest is paused once the rest fits the budget *and* one more round would not make it much
/// smaller: while rounds still shrink by more than a third each, another one buys downtime for
/// nothing but bytes.
#[derive(Debug)]
pub(super) struct Converge {
    budget: Duration,
    on_stall: OnStall,
    patience: Duration,
    rounds: u32,
    last_dirty: u64,
    least_dirty: u64,
    /// When `least_dirty` last fell.
    progress_at: Time,
}

/// So few pages are sent faster than a round is begun.
const FLOOR_PAGES: u64 = 32;
/// Rounds that are a trend: on a slow link each takes a minute, and nobody should wait for more.
const STALL_ROUNDS: u32 = 2;

impl Converge {
    pub(super) fn new(budget: Duration, on_stall: OnStall, patience: Duration) -> Self {
        Self {
            budget,
            on_stall,
            patience,
            rounds: 0,
            last_dirty: u64::MAX,
            least_dirty: u64::MAX,
            progress_at: Time::default(),
        }
    }

    pub(super) fn round_ended(&mut self, end: RoundEnd) -> Decision {
        self.rounds += 1;
        let shrinking = end.dirty_pages.saturating_mul(3) < self.last_dirty.saturating_mul(2);
        self.last_dirty = end.dirty_pages;
        let record = end.dirty_pages.saturating_mul(10) < self.least_dirty.saturating_mul(9);
        self.least_dirty = self.least_dirty.min(end.dirty_pages);
        if record || self.rounds == 1 {
            self.progress_at = end.now;
        }
        // With nothing dirty no round makes the pause shorter, whatever was hoped for; an image at rest is always here.
        if end.dirty_pages == 0 || end.estimate <= self.budget && (!shrinking || end.dirty_pages <= FLOOR_PAGES) {
            return Decision::Pause;
        }
        let stalled = self.rounds > STALL_ROUNDS && end.now.since(self.progress_at) > self.patience;
        if !stalled || shrinking {
            return Decision::AnotherRound;
        }
        match self.on_stall {
            OnStall::Force => Decision::Pause,
            OnStall::Abort => Decision::Stop(Verdict {
                rounds: self.rounds,
                dirty_pages: end.dirty_pages,
                estimate: end.estimate,
                budget: self.budget,
                goodput: end.goodput,
                dirty_rate: rate(end.dirty_pages.saturating_mul(4096), end.took),
            }),
        }
    }

    /// A pause was taken back (the link was lost): what the guest wrote meanwhile is no stall.
    pub(super) fn restart(&mut self, now: Time) {
        self.last_dirty = u64::MAX;
        self.least_dirty = u64::MAX;
        self.rounds = 0;
        self.progress_at = now;
    }
}

/// Bytes per second.
pub(super) fn rate(bytes: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// How long bytes take at a rate in bytes per second.
pub(super) fn duration_at(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(100);

    fn end(second: u64, dirty_pages: u64, goodput: u64) -> RoundEnd {
        RoundEnd {
            now: Time::after_epoch(Duration::from_secs(second)),
            dirty_pages,
            estimate: duration_at(dirty_pages * 4096, goodput),
            goodput,
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn rounds_go_on_while_they_shrink_and_then_the_guest_is_paused() {
        let mut converge = Converge::new(BUDGET, OnStall::Abort, Duration::from_secs(5));
        let pages = [4000, 1000, 250, 200];
        let decisions: Vec<_> =
            (1..).zip(pages).map(|(second, pages)| converge.round_ended(end(second, pages, 1 << 30))).collect();
        assert_eq!(decisions[..3], [Decision::AnotherRound, Decision::AnotherRound, Decision::AnotherRound]);
        assert_eq!(decisions[3], Decision::Pause);
    }

    #[test]
    fn an_idle_guest_is_paused_at_once() {
        let mut converge = Converge::new(BUDGET, OnStall::Abort, Duration::from_secs(5));
        assert_eq!(converge.round_ended(end(1, 3, 1 << 30)), Decision::Pause);
    }

    #[test]
    fn with_nothing_dirty_no_budget_is_too_small() {
        let mut converge = Converge::new(Duration::ZERO, OnStall::Abort, Duration::from_secs(5));
        let idle = RoundEnd { estimate: Duration::from_millis(15), ..end(1, 0, 1 << 30) };
        assert_eq!(converge.round_ended(idle), Decision::Pause);
    }

    #[test]
    fn a_stall_is_told_with_its_numbers_or_forced() {
        for (on_stall, forced) in [(OnStall::Abort, false), (OnStall::Force, true)] {
            let mut converge = Converge::new(BUDGET, on_stall, Duration::from_secs(5));
            let last = (1..60).map(|second| converge.round_ended(end(second, 50_000, 100_000_000)));
            let last = last.into_iter().find(|decision| *decision != Decision::AnotherRound).unwrap();
            match last {
                Decision::Stop(verdict) if !forced => {
                    assert_eq!(verdict.dirty_rate, 50_000 * 4096);
                    assert!(verdict.estimate > BUDGET);
                    assert!(verdict.to_string().contains("will not converge"), "{verdict}");
                }
                Decision::Pause if forced => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
