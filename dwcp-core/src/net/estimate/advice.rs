//! What would make a transfer converge that does not: found by trying, because no formula knows the cores, the effort that
//! follows the link, and what is written while a round takes as long as it takes.
//!
//! ```text
//!   a transfer that does not converge ──> budget, link or writes changed alone ──> run again over what pages took ──> the least
//! ```
//!
//! Nothing is encoded for that but a few pages at efforts to which the transfer itself did not come.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::super::clock::Clock;
use super::experience::Experience;
use super::run::Run;
use super::{Estimate, EstimateConfig, scaled};
use crate::guest::Guest;
use crate::session::{SourceConfig, Time};

/// The search ends when enough is so little more than too little, in parts of it.
const CLOSE: u64 = 10;
/// It halves what is between, or goes on by so many times.
const STEP: u64 = 4;
/// Plenty for any range.
const MOST_RUNS: u32 = 40;
/// Steps from what is enough to what is told, until that is enough as well: else the former is told.
const MOST_STEPS: u32 = 3;
/// Trying takes no longer: each run goes over all pages of the guest, and of a large one they take seconds.
const MOST_TIME: Duration = Duration::from_secs(5);
/// No guest is stopped for longer.
const MOST_BUDGET: Duration = Duration::from_secs(3600);
/// A link that takes more than so many times what the present one does, and more than 800 Gbit/s, is no advice.
const MOST_FASTER: u64 = 1000;
const MOST_LINK: u64 = 100_000_000_000;

/// What would make a transfer converge, and fit its budget: each alone, tried, with a third of the budget to spare and a fifth more
/// than the least that was found to do (where that does as well), because cores are never as fast twice. `None`: that alone would not, or could not be found out within some 5 s (of a guest of many GiB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Advice {
    /// A downtime budget. One above [`SourceConfig::pause_limit`] needs that to be as long.
    pub budget: Option<Duration>,
    /// A link of so many bytes a second, counted as [`EstimateConfig::link`].
    pub link: Option<NonZeroU64>,
    /// A guest that writes so many pages a second, 1 at least.
    pub written_pages: Option<u64>,
}

/// Advice for a transfer that came out as `estimate`, with what its pages took.
pub(super) fn advise(
    guest: Arc<dyn Guest>,
    config: &EstimateConfig,
    estimate: &Estimate,
    experience: Experience,
) -> Advice {
    let clock = Clock::start();
    advise_by(guest, config, estimate, experience, &|| clock.now().since(Time::default()))
}

/// `spent`: how long it has been trying.
fn advise_by(
    guest: Arc<dyn Guest>,
    config: &EstimateConfig,
    estimate: &Estimate,
    experience: Experience,
    spent: &dyn Fn() -> Duration,
) -> Advice {
    if fits(estimate, config) {
        return Advice::default();
    }
    if config.written_pages == 0 {
        // Nothing is left for the pause, which is as long as it is: no other link of this round trip makes it shorter.
        let downtime = estimate.progress.downtime.and_then(|downtime| u64::try_from(downtime.as_millis()).ok());
        return Advice { budget: downtime.map(above).map(Duration::from_millis), ..Advice::default() };
    }
    let mut trials = Trials { guest, experience, spent };
    let link = config.link.get();
    let most_link = link.saturating_mul(MOST_FASTER).min(MOST_LINK.max(link));
    let budget = u64::try_from(config.source.downtime_budget.as_millis()).unwrap_or(u64::MAX);
    let most_budget = u64::try_from(MOST_BUDGET.as_millis()).unwrap_or(u64::MAX);
    Advice {
        budget: trials.least(budget, most_budget, |value| with_budget(config, value)).map(Duration::from_millis),
        link: trials.least(link, most_link, |value| with_link(config, value)).and_then(NonZeroU64::new),
        written_pages: trials.least(config.written_pages, 1, |value| with_writes(config, value)),
    }
}

fn with_budget(config: &EstimateConfig, millis: u64) -> EstimateConfig {
    let downtime_budget = Duration::from_millis(millis);
    let pause_limit = config.source.pause_limit.max(downtime_budget);
    EstimateConfig { source: SourceConfig { downtime_budget, pause_limit, ..config.source.clone() }, ..config.clone() }
}

fn with_link(config: &EstimateConfig, link: u64) -> EstimateConfig {
    EstimateConfig { link: NonZeroU64::new(link).unwrap_or(config.link), ..config.clone() }
}

fn with_writes(config: &EstimateConfig, written_pages: u64) -> EstimateConfig {
    EstimateConfig { written_pages, ..config.clone() }
}

fn fits(estimate: &Estimate, config: &EstimateConfig) -> bool {
    let budget = config.source.downtime_budget;
    estimate.not_converging.is_none() && estimate.progress.downtime.is_some_and(|downtime| downtime <= budget)
}

/// Transfers that are run over what is known of the pages.
struct Trials<'a> {
    guest: Arc<dyn Guest>,
    experience: Experience,
    spent: &'a dyn Fn() -> Duration,
}

impl Trials<'_> {
    /// Whether it helps, with a third of the budget to spare, so that it helps again where a round takes a little longer. A
    /// transfer that comes to nothing at all is none that helps.
    fn helps_well(&mut self, config: &EstimateConfig) -> bool {
        let budget = config.source.downtime_budget;
        let fits_well = |estimate: &Estimate| {
            fits(estimate, config) && estimate.progress.downtime.is_some_and(|downtime| downtime * 3 <= budget * 2)
        };
        self.run(config).as_ref().is_some_and(fits_well)
    }

    fn run(&mut self, config: &EstimateConfig) -> Option<Estimate> {
        let run = Run::new(Arc::clone(&self.guest), config).ok()?;
        let (estimate, experience) = run.over(self.experience.clone()).finish().ok()?;
        self.experience = experience;
        Some(estimate)
    }

    fn least(&mut self, fails: u64, most: u64, config: impl Fn(u64) -> EstimateConfig) -> Option<u64> {
        least(fails, most, &mut |value| {
            let is_late = (self.spent)() > MOST_TIME;
            (!is_late).then(|| self.helps_well(&config(value)))
        })
    }
}

/// The value nearest to `fails` that helps, moved on towards `most` for safety and to a round number if that helps as well. Both
/// directions are searched: `most` may be the smaller one. What is told was tried and `helps`; where that is `None`, there is
/// no time to try more.
fn least(fails: u64, most: u64, helps: &mut dyn FnMut(u64) -> Option<bool>) -> Option<u64> {
    if fails == most || !helps(most)? {
        return None;
    }
    let (mut fails, mut enough) = (fails.max(1), most);
    for _ in 0..MOST_RUNS {
        if fails.abs_diff(enough) <= fails.min(enough) / CLOSE {
            break;
        }
        let middle = u64::try_from((u128::from(fails) * u128::from(enough)).isqrt()).unwrap_or(enough);
        // Near what fails first: where some between do not help either, the others are still found.
        let middle = middle.clamp(fails / STEP, fails.saturating_mul(STEP));
        if middle == fails || middle == enough {
            break;
        }
        // Far from what is needed is no advice: without the time to come near there is none.
        if helps(middle)? { enough = middle } else { fails = middle }
    }
    let mut told = enough;
    for _ in 0..MOST_STEPS {
        told = if most > fails { above(told).min(most) } else { below(told).max(most) };
        match helps(told) {
            Some(true) => return Some(told),
            Some(false) => {}
            None => break,
        }
    }
    Some(enough)
}

/// A quarter more, rounded up to two digits.
fn above(value: u64) -> u64 {
    let more = scaled(value, 5, 4).max(value.saturating_add(1));
    let unit = unit_of(more);
    more.div_ceil(unit).saturating_mul(unit)
}

/// A fifth less, rounded down to two digits.
fn below(value: u64) -> u64 {
    let less = scaled(value, 4, 5);
    let unit = unit_of(less);
    less / unit * unit
}

/// What the second digit of a number counts.
fn unit_of(value: u64) -> u64 {
    let mut unit = 1;
    while value / unit >= 100 {
        unit *= 10;
    }
    unit
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::num::NonZeroU16;

    use super::*;
    use crate::extent::{Layout, RegionId};
    use crate::guest::Memory;
    use crate::session::EffortPolicy;

    /// What a guest is told that writes four times what its link takes, when the time is up after so many looks at the clock.
    fn told_after(looks: u32) -> Advice {
        let memory = Memory::new(Layout::new(&[2 << 20]).unwrap());
        let mut bytes = vec![0; 2 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        memory.write(RegionId(0), 0, &bytes).unwrap();
        let guest: Arc<dyn Guest> = Arc::new(memory);
        let source = SourceConfig {
            effort: EffortPolicy::Fixed(dwcp_hde::Effort::Raw),
            downtime_budget: Duration::from_millis(300),
            ..SourceConfig::default()
        };
        let config = EstimateConfig {
            source,
            link: NonZeroU64::new(1_000_000).unwrap(),
            rtt: Duration::from_millis(1),
            cores: NonZeroU16::new(1).unwrap(),
            written_pages: 1000,
            device_state: 0,
            sample: None,
            zeros: None,
            baseline: None,
        };
        let (estimate, experience) = Run::new(Arc::clone(&guest), &config).unwrap().finish().unwrap();
        assert!(!fits(&estimate, &config));
        let looked = Cell::new(0);
        let spent = || {
            looked.set(looked.get() + 1);
            if looked.get() <= looks { MOST_TIME } else { MOST_TIME + Duration::from_nanos(1) }
        };
        advise_by(guest, &config, &estimate, experience, &spent)
    }

    /// Without the time to come near what is needed there is no advice.
    #[test]
    fn trying_ends_with_its_time() {
        assert_eq!(told_after(0), Advice::default());
        assert_eq!(told_after(1), Advice::default());
        let Advice { budget, link, written_pages } = told_after(u32::MAX);
        assert!(
            budget.is_some() && link.is_some() && written_pages.is_some(),
            "{budget:?}, {link:?}, {written_pages:?}"
        );
    }

    /// What is told of values of which some help, which is asked for at most so often; and what was tried.
    fn told(fails: u64, most: u64, trials: usize, helps: impl Fn(u64) -> bool) -> (Option<u64>, Vec<u64>) {
        let mut tried = Vec::new();
        let told = least(fails, most, &mut |value| {
            tried.push(value);
            (tried.len() <= trials).then(|| helps(value))
        });
        (told, tried)
    }

    #[test]
    fn only_what_was_tried_and_helps_is_told() {
        let (link, most) = (1_000_000, 1_000_000_000);
        let (told_link, tried) = told(link, most, 100, |value| value >= 7_000_000);
        assert!((7_000_000..=12_000_000).contains(&told_link.unwrap()) && tried.contains(&told_link.unwrap()));
        // By chance a little more than enough does not help: what was found is told, not a thousand times the link.
        let erratic = |value: u64| value == 16_000_000 || value > 900_000_000;
        let (told_link, tried) = told(link, most, 100, erratic);
        assert!(told_link == Some(16_000_000) && tried.contains(&16_000_000), "{told_link:?}");
        assert_eq!(told(link, most, 100, |_| false).0, None);
        assert_eq!(told(link, most, 4, |value| value >= 7_000_000).0, None, "no time to come near");
        // Downwards.
        let (writes, tried) = told(50_000, 1, 100, |value| value <= 900);
        assert!((600..=900).contains(&writes.unwrap()) && tried.contains(&writes.unwrap()), "{writes:?}");
    }

    #[test]
    fn what_is_told_has_two_digits_and_something_to_spare() {
        assert_eq!((above(1), above(80), above(1234), above(12_500_000)), (2, 100, 1600, 16_000_000));
        assert_eq!((below(1), below(100), below(1234), below(999)), (0, 80, 980, 790));
        assert!(above(u64::MAX) > u64::MAX / 2);
    }
}
