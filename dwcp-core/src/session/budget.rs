use std::time::Duration;

use dwcp_hde::Effort;

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EffortPolicy {
    /// As hard as the link is slow: more while the writes wait for it, less while it waits for us.
    #[default]
    Auto,
    /// Always the same.
    Fixed(Effort),
}

/// Chooses the effort so that neither the link nor the cores wait for the other.
///
/// The sign is whether the write of an extent had to wait: then the kernel's queue was full, so the link (or the
/// sink) is the slower part and a harder look at the next extents is free. Waits push a lean up, writes without one
/// let it sink, and at its ends the effort moves a step. So between two steps it settles into the mixture of both
/// that just keeps the queue from running dry.
///
/// The last steps are different: each saves a few per cent more and takes several times as long.
/// They are taken only where the link would need that time anyway, and left when a write finds room again.
///
/// To send pages raw is a bet that the link outruns every encoder, which nothing short of trying tells: a link of
/// 1 Gbit/s that an encoder nearly fills looks as idle as loopback. A lost bet costs 4 MiB on that link, and is
/// repeated less and less often. LZ4 is no step: where the cores are the limit it saves hardly more time than
/// [`Effort::Light`], where the link is it carries a third more bytes.
#[derive(Debug)]
pub(super) struct Budget {
    policy: EffortPolicy,
    /// Compression is switched on.
    allowed: bool,
    step: usize,
    lean: u32,
    /// Wire bytes since the start, up to `UNHEARD`.
    swallowed: u64,
    /// Extents, encoding and write while raw.
    raw: Cost,
    /// Of the last extents at this step, sixteen of them or so.
    encoding: Duration,
    writing: Duration,
    /// Bets on raw to let pass before the next is taken, and how many that was the last time.
    pass: u32,
    passed: u32,
}

const STEPS: [Effort; 6] =
    [Effort::Raw, Effort::Light, Effort::Balanced, Effort::Thorough(1), Effort::Thorough(6), Effort::Thorough(12)];
/// From here on a step saves a few per cent and takes many times as long: only time to spare buys it.
const THRIFTY: usize = 3;
/// What such a step takes at most, in times of the one before it.
const DEARER: u32 = 4;
const RAW: usize = 0;
/// Where it starts: little is lost when it was wrong in either direction.
const START: usize = 1;
/// Where the lean stands after a step, and twice where it tips: 4 MiB of guest without a wait.
const LEVEL: u32 = 16;
/// What a wait weighs, against a write without one: queues of some megabytes hide most waits.
const WAIT: u32 = 4;
/// Raw pages over TLS on loopback: a write takes 1 to 2 times as long as copy and hash. At 1 Gbit/s
/// it takes 15 times as long.
const SLOW_WRITE: u32 = 3;
/// The kernel's send buffers swallow the first megabytes without a wait, on any link: that those did not wait says
/// nothing.
const UNHEARD: u64 = 8 << 20;
/// Raw extents between looks at their times: 4 MiB.
const SAMPLES: u16 = 16;
/// Chances of a bet that are let pass at first: an encoder that nearly fills a link goes without a wait for some
/// megabytes, one on a fast link for ever.
const FIRST_PASSED: u32 = 15;
/// Chances that are let pass at most: some minutes.
const MOST_PASSED: u32 = 4095;

/// What one extent cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Time to copy, hash and encode it.
    pub(super) encode: Duration,
    /// Time to write the extent before it on that lane, encryption included.
    pub(super) write: Duration,
    /// Whether that write had to wait.
    pub(super) waited: bool,
    /// Pages carried.
    pub(super) carried: u16,
    pub(super) wire_bytes: u64,
}

impl Budget {
    pub(super) fn new(policy: EffortPolicy) -> Self {
        Self {
            policy,
            allowed: true,
            step: START,
            lean: LEVEL,
            swallowed: 0,
            raw: Cost::default(),
            encoding: Duration::ZERO,
            writing: Duration::ZERO,
            pass: FIRST_PASSED,
            passed: FIRST_PASSED,
        }
    }

    pub(super) fn allow(&mut self, on: bool) {
        self.allowed = on;
    }

    pub(super) fn effort(&self) -> Effort {
        if !self.allowed {
            return Effort::Raw;
        }
        match self.policy {
            EffortPolicy::Fixed(effort) => effort,
            EffortPolicy::Auto => STEPS.get(self.step).copied().unwrap_or(Effort::Balanced),
        }
    }

    /// One extent was encoded, and the one before it on that lane written.
    pub(super) fn sample(&mut self, cost: Cost) {
        // An extent of a few pages says nothing about rates.
        if cost.carried < 16 || cost.write.is_zero() {
            return;
        }
        if cost.waited {
            self.swallowed = UNHEARD;
        } else if self.swallowed < UNHEARD {
            self.swallowed = self.swallowed.saturating_add(cost.wire_bytes);
            return;
        }
        if self.step == RAW { self.weigh_raw(cost) } else { self.lean(cost) }
    }

    fn lean(&mut self, cost: Cost) {
        self.lean = if cost.waited { self.lean + WAIT } else { self.lean - 1 };
        self.encoding = self.encoding * 15 / 16 + cost.encode;
        self.writing = self.writing * 15 / 16 + cost.write;
        let tipped = if self.lean >= 2 * LEVEL {
            if self.has_time() { (self.step + 1).min(STEPS.len() - 1) } else { self.step }
        } else if self.lean > 0 {
            return;
        } else if self.step == RAW + 1 && !self.bets() {
            self.step
        } else {
            self.step - 1
        };
        if tipped != self.step {
            (self.encoding, self.writing) = (Duration::ZERO, Duration::ZERO);
        }
        (self.step, self.lean) = (tipped, LEVEL);
    }

    /// Whether the next step up would still be done before the link is.
    fn has_time(&self) -> bool {
        self.step < THRIFTY || self.encoding * DEARER < self.encoding + self.writing
    }

    fn bets(&mut self) -> bool {
        let due = self.pass == 0;
        self.pass = self.pass.saturating_sub(1);
        due
    }

    fn weigh_raw(&mut self, cost: Cost) {
        self.raw.encode += cost.encode;
        self.raw.write += cost.write;
        self.raw.carried += 1;
        if self.raw.carried < SAMPLES {
            return;
        }
        if self.raw.write > self.raw.encode * SLOW_WRITE {
            self.step = RAW + 1;
            self.passed = (self.passed * 2 + 1).min(MOST_PASSED);
            self.pass = self.passed;
        }
        self.raw = Cost::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn cost(encode: Duration, write: Duration, waited: bool) -> Cost {
        Cost { encode, write, waited, carried: 64, wire_bytes: 256 << 10 }
    }

    fn repeat(budget: &mut Budget, times: u32, cost: Cost) {
        for _ in 0..times {
            budget.sample(cost);
        }
    }

    /// Past the bytes that buffers swallow.
    fn budget() -> Budget {
        let mut budget = Budget::new(EffortPolicy::Auto);
        repeat(&mut budget, 32, cost(2 * MS, MS / 100, false));
        assert_eq!((budget.effort(), budget.lean), (Effort::Light, LEVEL), "buffers swallow the first writes");
        budget
    }

    #[test]
    fn a_fast_link_turns_compression_off() {
        let mut budget = budget();
        repeat(&mut budget, (FIRST_PASSED + 1) * LEVEL, cost(2 * MS, MS / 4, false));
        assert_eq!(budget.effort(), Effort::Raw);
        repeat(&mut budget, 100, cost(MS, 2 * MS, true));
        assert_eq!(budget.effort(), Effort::Raw, "a sink that is a little slower is no slow link");
    }

    #[test]
    fn a_link_that_turns_slow_turns_it_on_again() {
        let mut budget = budget();
        repeat(&mut budget, (FIRST_PASSED + 1) * LEVEL, cost(2 * MS, MS / 4, false));
        repeat(&mut budget, u32::from(SAMPLES) + LEVEL / WAIT, cost(MS / 2, 8 * MS, true));
        assert_eq!(budget.effort(), Effort::Balanced);
    }

    #[test]
    fn lost_bets_on_raw_become_rare() {
        let mut budget = budget();
        let (mut raw, mut rounds) = (0, [0; 2]);
        for half in &mut rounds {
            for _ in 0..50_000 {
                let bets = budget.effort() == Effort::Raw;
                raw += u32::from(bets);
                *half += u32::from(bets);
                budget.sample(cost(MS, if bets { 9 * MS } else { MS / 4 }, bets));
            }
        }
        assert!(raw > 0 && rounds[1] * 2 < rounds[0], "{rounds:?}");
    }

    #[test]
    fn between_two_steps_both_are_mixed() {
        let mut budget = budget();
        let mut balanced = 0;
        for _ in 0..1000 {
            let hard = budget.effort() == Effort::Balanced;
            assert!(hard || budget.effort() == Effort::Light);
            balanced += u32::from(hard);
            budget.sample(cost(MS, MS, !hard));
        }
        assert!((200..950).contains(&balanced), "{balanced}");
    }

    #[test]
    fn small_extents_decide_nothing() {
        let mut budget = budget();
        repeat(&mut budget, 100, Cost { carried: 3, ..cost(2 * MS, MS / 100, false) });
        assert_eq!(budget.effort(), Effort::Light);
    }

    /// What an effort costs and saves on one core: MB of guest a second, copy and hash included, and plain bytes for
    /// each on the wire. Measured on three guests' first rounds (`docs/performance.md`, the codec).
    fn measured(effort: Effort) -> (f64, f64) {
        match effort {
            Effort::Raw => (2500.0, 1.0),
            Effort::Fast => (620.0, 2.6),
            Effort::Light => (640.0, 3.2),
            Effort::Balanced => (460.0, 3.7),
            Effort::Thorough(1) => (400.0, 3.9),
            Effort::Thorough(level) if level <= 6 => (110.0, 4.1),
            Effort::Thorough(_) => (48.0, 4.3),
        }
    }

    /// A lane over a link whose rate changes, as MB a second for so many seconds: MB of guest that went through in a
    /// second of each phase. The kernel takes `queue` MB before a write waits.
    fn replay(policy: EffortPolicy, queue: f64, phases: &[(f64, f64)]) -> Vec<f64> {
        const PLAIN: f64 = 0.262_144;
        let mut budget = Budget::new(policy);
        let (mut queued, mut written) = (0.0_f64, Cost::default());
        let through = |&(link, seconds): &(f64, f64)| {
            let (mut clock, mut moved) = (0.0, 0.0);
            while clock < seconds {
                let (rate, ratio) = measured(budget.effort());
                let (encode, wire) = (PLAIN / rate, PLAIN / ratio);
                queued = (queued - encode * link).max(0.0);
                let over = (queued + wire - queue).max(0.0);
                let write = wire / 3000.0 + over / link;
                queued = (queued + wire - write * link).max(0.0);
                clock += encode + write;
                moved += PLAIN;
                budget.sample(Cost { encode: Duration::from_secs_f64(encode), ..written });
                let wire_bytes = (wire * 1e6).round().to_string().parse().unwrap();
                written = Cost {
                    write: Duration::from_secs_f64(write),
                    waited: over > 0.0,
                    carried: 64,
                    wire_bytes,
                    ..written
                };
            }
            moved / clock
        };
        phases.iter().map(through).collect()
    }

    #[test]
    fn it_keeps_up_with_the_best_fixed_effort_on_a_link_that_changes() {
        let links = [50.0, 500.0, 5000.0, 500.0, 50.0, 5000.0].map(|megabits| megabits / 8.0);
        // A second to find out.
        let phases = links.map(|link| [(link, 1.0), (link, 19.0)]).concat();
        let efforts = [Effort::Raw, Effort::Fast, Effort::Light, Effort::Balanced].into_iter();
        let efforts: Vec<_> = efforts.chain([1, 6, 12].map(Effort::Thorough)).collect();
        for queue in [0.5, 1.0, 2.0, 4.0] {
            let fixed = efforts.iter().map(|&effort| replay(EffortPolicy::Fixed(effort), queue, &phases));
            let fixed: Vec<_> = fixed.collect();
            let auto = replay(EffortPolicy::Auto, queue, &phases);
            for (phase, got) in auto.iter().enumerate().skip(1).step_by(2) {
                let best = fixed.iter().map(|rates| rates[phase]).fold(0.0, f64::max);
                assert!(*got >= 0.95 * best, "{got} where the best fixed effort has {best}, queue {queue}");
            }
        }
    }

    #[test]
    fn a_fixed_effort_stays() {
        let mut budget = Budget::new(EffortPolicy::Fixed(Effort::Thorough(6)));
        repeat(&mut budget, 100, cost(MS, MS / 100, false));
        assert_eq!(budget.effort(), Effort::Thorough(6));
    }
}
