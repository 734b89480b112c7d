use std::fmt;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Verdict {
    /// Rounds done.
    pub rounds: u32,
    /// Pages dirty at the end of the last one, those that were left for the pause included.
    pub dirty_pages: u64,
    /// Bytes that they are expected to take on the wire, by what such pages took in the last rounds.
    pub wire_bytes: u64,
    /// How long they would take with the guest paused, handshakes included: the downtime of stopping now.
    pub estimate: Duration,
    /// What was allowed.
    pub budget: Duration,
    /// What of the estimate no link makes shorter: round trips and records.
    pub fixed: Duration,
    /// The guest was paused, and stood still for longer than this: `estimate` is how long. `None`: it was not paused.
    pub pause_limit: Option<Duration>,
    /// Plain bytes per second that were acknowledged.
    pub goodput: u64,
    /// Bytes per second on the wire that were acknowledged.
    pub wire_goodput: u64,
    /// Plain bytes per second that the guest dirtied, in the last round in which it ran. A page counts once each time that the
    /// guest was asked, so this is too low for one that writes the same pages many times a second.
    pub dirty_rate: u64,
}

impl Verdict {
    /// Goodput in bytes per second on the wire with which it would converge: what is left fits the budget, or rounds halve. As
    /// little as the dirty rate is known: a guest may write more when rounds are shorter.
    pub fn link_needed(&self) -> u64 {
        let halves = self.packed(self.dirty_rate).saturating_mul(2);
        let time = self.budget.saturating_sub(self.fixed);
        if time.is_zero() { halves } else { halves.min(rate(self.wire_bytes, time)) }
    }

    /// Plain bytes per second that the guest may dirty so that rounds halve.
    pub fn dirty_rate_allowed(&self) -> u64 {
        self.goodput / 2
    }

    /// What plain bytes take on the wire, by the ratio of those that are left.
    fn packed(&self, plain: u64) -> u64 {
        let left = u128::from(self.dirty_pages.max(1)) * 4096;
        u64::try_from(u128::from(plain) * u128::from(self.wire_bytes) / left).unwrap_or(u64::MAX)
    }

    /// Whether the downtime budget is too small for any guest that writes, over any link: round trips and records alone take
    /// as long.
    pub fn is_over_budget(&self) -> bool {
        self.pause_limit.is_none() && self.fixed >= self.budget
    }

    /// A downtime budget for what is left now, with a quarter to spare: what pages pack to, and the link, are never the same
    /// twice.
    pub fn budget_needed(&self) -> Duration {
        self.estimate.max(self.fixed).saturating_mul(5) / 4
    }

    /// What was found, without what to do about it: for who knows better than [`Verdict`] can.
    pub fn finding(&self) -> impl fmt::Display + '_ {
        Finding(self)
    }
}

/// See [`Verdict::finding`].
struct Finding<'a>(&'a Verdict);

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { rounds, dirty_pages, estimate, budget, fixed, dirty_rate, wire_goodput, pause_limit, .. } =
            *self.0;
        if let Some(limit) = pause_limit {
            return write!(
                f,
                "the pause took too long and was taken back: the guest stood still for {} ms, and the pause limit is {} ms; \
                 {dirty_pages} pages were left, and the link takes {}",
                estimate.as_millis(),
                limit.as_millis(),
                Rate(wire_goodput),
            );
        }
        if self.0.is_over_budget() {
            return write!(
                f,
                "over budget: round trips and records alone keep the guest standing still for {} ms, whatever the link \
                 takes, and the downtime budget is {} ms; after {rounds} rounds {dirty_pages} pages are dirty",
                fixed.as_millis(),
                budget.as_millis(),
            );
        }
        write!(
            f,
            "will not converge: after {rounds} rounds {dirty_pages} pages are dirty; the guest writes {} or more, which \
             packs to {} %, and the link takes {}; stopped now it would stand still for {} ms, and the downtime budget is {} ms",
            Rate(dirty_rate),
            self.0.packed(100),
            Rate(wire_goodput),
            estimate.as_millis(),
            budget.as_millis(),
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; ", self.finding())?;
        if self.pause_limit.is_some() {
            return f.write_str("look at the link, which takes less than before the pause, or allow longer pauses");
        }
        let budget = self.budget_needed().as_millis() + 1;
        if self.is_over_budget() {
            return write!(f, "it would converge with a budget of about {budget} ms, or a peer that is nearer");
        }
        write!(
            f,
            "it would converge with a budget of about {budget} ms, with a link that takes {} or more (if the cores of both \
             hosts keep up), or with a guest that writes less than {}",
            Rate(self.link_needed()),
            Rate(self.dirty_rate_allowed()),
        )
    }
}

/// Bytes per second for people, with three digits or so.
struct Rate(u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..10_000 => write!(f, "{} bytes/s", self.0),
            10_000..1_000_000 => write!(f, "{} kB/s", self.0 / 1000),
            1_000_000..100_000_000 => write!(f, "{}.{} MB/s", self.0 / 1_000_000, self.0 / 100_000 % 10),
            _ => write!(f, "{} MB/s", self.0 / 1_000_000),
        }
    }
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
    /// Bytes that the next round would have on the wire: of what is dirty, all that cannot be left for the pause.
    pub(super) lasting_wire: u64,
    /// How long the round took.
    pub(super) took: Duration,
    /// What is to be said if this is the end: the present figures.
    pub(super) figures: Verdict,
}

impl RoundEnd {
    /// The guest wrote about as much as the link took, or more: rounds like this never end.
    fn outrun(&self) -> bool {
        rate(self.lasting_wire, self.took) / 10 >= self.figures.wire_goodput / 10 / 10 * 9
    }
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
    /// Rounds in a row in which the guest outran the link, and when the first of them ended.
    outrun: (u32, Time),
}

/// So few pages are sent faster than a round is begun.
const FLOOR_PAGES: u64 = 32;
/// Rounds that are a trend: on a slow link each takes a minute, and nobody should wait for more.
const STALL_ROUNDS: u32 = 2;
/// So many rounds in a row in which the guest outran the link need not be waited for with all the patience there is: a part
/// of it tells them from a burst of writes.
const OUTRUN_ROUNDS: u32 = 3;
const OUTRUN_PART: u32 = 4;

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
            outrun: (0, Time::default()),
        }
    }

    /// Rounds since the measures began.
    pub(super) fn rounds(&self) -> u32 {
        self.rounds
    }

    pub(super) fn round_ended(&mut self, end: RoundEnd) -> Decision {
        self.rounds += 1;
        let Verdict { dirty_pages, estimate, .. } = end.figures;
        let shrinking = dirty_pages.saturating_mul(3) < self.last_dirty.saturating_mul(2);
        self.last_dirty = dirty_pages;
        let record = dirty_pages.saturating_mul(10) < self.least_dirty.saturating_mul(9);
        self.least_dirty = self.least_dirty.min(dirty_pages);
        if record || self.rounds == 1 {
            self.progress_at = end.now;
        }
        // With nothing dirty no round makes the pause shorter, whatever was hoped for; an image at rest is always here.
        if dirty_pages == 0 || estimate <= self.budget && (!shrinking || dirty_pages <= FLOOR_PAGES) {
            return Decision::Pause;
        }
        let stalled = self.rounds > STALL_ROUNDS && end.now.since(self.progress_at) > self.patience;
        // Not `outrun || stalled`: each round is counted.
        if !(self.is_outrun(&end, shrinking) | stalled) || shrinking {
            return Decision::AnotherRound;
        }
        match self.on_stall {
            OnStall::Force => Decision::Pause,
            OnStall::Abort => Decision::Stop(end.figures),
        }
    }

    /// The figures show that more rounds are of no use: not the first round's, in which half a guest are zeros.
    fn is_outrun(&mut self, end: &RoundEnd, shrinking: bool) -> bool {
        let (rounds, since) = self.outrun;
        let counts = self.rounds > 1 && !shrinking && end.outrun();
        self.outrun = match rounds {
            _ if !counts => (0, end.now),
            0 => (1, end.now),
            _ => (rounds + 1, since),
        };
        self.outrun.0 >= OUTRUN_ROUNDS && end.now.since(self.outrun.1) > self.patience / OUTRUN_PART
    }

    /// A pause was taken back (the link was lost): what the guest wrote meanwhile is no stall.
    pub(super) fn restart(&mut self, now: Time) {
        self.last_dirty = u64::MAX;
        self.least_dirty = u64::MAX;
        self.rounds = 0;
        self.progress_at = now;
        self.outrun = (0, now);
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
            lasting_wire: 0,
            took: Duration::from_secs(1),
            figures: Verdict {
                dirty_pages,
                wire_bytes: dirty_pages * 1024,
                estimate: duration_at(dirty_pages * 4096, goodput),
                budget: BUDGET,
                goodput,
                wire_goodput: goodput / 4,
                dirty_rate: dirty_pages * 4096,
                ..Verdict::default()
            },
        }
    }

    /// The second at which rounds of that kind come to a decision.
    fn decided(patience: u64, round: impl Fn(u64) -> RoundEnd) -> (u64, Decision) {
        let mut converge = Converge::new(BUDGET, OnStall::Abort, Duration::from_secs(patience));
        let decision = |second| Some(converge.round_ended(round(second))).filter(|d| *d != Decision::AnotherRound);
        (1..100)
            .find_map({
                let mut decision = decision;
                move |second| decision(second).map(|decision| (second, decision))
            })
            .unwrap()
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
        let mut idle = end(1, 0, 1 << 30);
        idle.figures.estimate = Duration::from_millis(15);
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

    #[test]
    fn a_guest_that_outruns_the_link_is_told_early_and_one_whose_rounds_shrink_is_not() {
        let outrun = |second| RoundEnd { lasting_wire: 25_000_000, ..end(second, 24_400, 100_000_000) };
        let slower = |second| RoundEnd { lasting_wire: 20_000_000, ..end(second, 24_400, 100_000_000) };
        // The first round does not count; ten seconds from the second on are a quarter of the patience.
        assert!(matches!(decided(40, outrun), (13, Decision::Stop(_))));
        assert!(matches!(decided(40, slower), (42, Decision::Stop(_))), "all that patience");
        let burst = |second| if second % 5 == 0 { slower(second) } else { outrun(second) };
        assert!(matches!(decided(40, burst), (42, Decision::Stop(_))), "not in a row");
        let shrinks = |second| RoundEnd { lasting_wire: 1 << 40, ..end(second, 1 << (30 - second), 1 << 30) };
        assert!(matches!(decided(4, shrinks), (_, Decision::Pause)));
    }

    #[test]
    fn what_would_make_it_converge_does() {
        // 40 MB dirty that pack to 10 MB, at 5 MB/s on the wire: 2 s. The guest writes 40 MB/s.
        let verdict = Verdict {
            rounds: 9,
            dirty_pages: 10_000,
            wire_bytes: 10_240_000,
            estimate: Duration::from_millis(2063),
            budget: Duration::from_millis(315),
            fixed: Duration::from_millis(15),
            pause_limit: None,
            goodput: 20_000_000,
            wire_goodput: 5_000_000,
            dirty_rate: 40_000_000,
        };
        assert_eq!(verdict.link_needed(), 20_000_000, "twice what is written, packed, is less than 34 MB/s for 300 ms");
        let wide = Verdict { budget: Duration::from_secs(1), ..verdict };
        assert_eq!(wide.link_needed(), 10_395_939, "what is left in 985 ms");
        let none = Verdict { budget: Duration::from_millis(10), ..verdict };
        assert_eq!(none.link_needed(), 20_000_000, "no link makes round trips shorter");
        assert_eq!(verdict.dirty_rate_allowed(), 10_000_000);
        assert_eq!(
            verdict.to_string(),
            "will not converge: after 9 rounds 10000 pages are dirty; the guest writes 40.0 MB/s or more, which packs to 25 %, \
             and the link takes 5.0 MB/s; stopped now it would stand still for 2063 ms, and the downtime budget is 315 ms; it would \
             converge with a budget of about 2579 ms, with a link that takes 20.0 MB/s or more (if the cores of both hosts keep \
             up), or with a guest that writes less than 10.0 MB/s"
        );
        assert_eq!(
            none.to_string(),
            "over budget: round trips and records alone keep the guest standing still for 15 ms, whatever the link takes, and \
             the downtime budget is 10 ms; after 9 rounds 10000 pages are dirty; it would converge with a budget of about \
             2579 ms, or a peer that is nearer"
        );
        let paused = Verdict { pause_limit: Some(Duration::from_secs(2)), ..none };
        assert_eq!(
            paused.to_string(),
            "the pause took too long and was taken back: the guest stood still for 2063 ms, and the pause limit is 2000 ms; \
             10000 pages were left, and the link takes 5.0 MB/s; look at the link, which takes less than before the pause, or \
             allow longer pauses"
        );
        let slow = Verdict { dirty_rate: 400_000, wire_goodput: 9999, ..verdict };
        assert!(
            slow.to_string().contains("writes 400 kB/s or more, which packs to 25 %, and the link takes 9999 bytes/s"),
            "{slow}"
        );
    }
}
