use std::time::Duration;

use dwcp_hde::Effort;

use crate::extent::MAX_EXTENT_PAGES;

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EffortPolicy {
    /// As hard as the link is slow: more while the writes wait for it, less while it waits for us.
    #[default]
    Auto,
    /// Always the same.
    Fixed(Effort),
}

/// Chooses the effort from what the last extents cost: time spent encoding against time spent
/// blocked on the write.
///
/// A step up needs writes to take `UP` times as long as encoding, a step down that they take less
/// than `DOWN` of it; the gap between is the hysteresis, and `SAMPLES` extents pass between steps.
#[derive(Debug)]
pub(super) struct Budget {
    policy: EffortPolicy,
    step: usize,
    samples: u32,
    encode: Duration,
    write: Duration,
    /// Wire bytes since the start, up to `UNHEARD`.
    swallowed: u64,
    /// The last extents travelled at nearly their plain size.
    incompressible: bool,
}

const STEPS: [Effort; 3] = [Effort::Raw, Effort::Fast, Effort::Balanced];
/// Raw pages over TLS on loopback: a write takes 1 to 2 times as long as copy and hash. At 1 Gbit/s
/// it takes 15 times as long.
const UP: u32 = 3;
/// At the balanced effort over 1 Gbit/s a write takes a third of the time and up, on two busy cores; on
/// loopback a tenth.
const DOWN_PERCENT: u32 = 25;
/// The kernel's send buffers swallow the first megabytes without a wait, on any link: what the first
/// writes cost says nothing. At worst this is 8 MiB of random pages sent with an eye on compression.
const UNHEARD: u64 = 8 << 20;
/// 256 KiB: plain pages and ciphertext fit a second-level cache of 1 MiB.
const CACHED_PAGES: usize = 64;
/// Extents between steps: 4 MiB, so that a changed link is followed in a fraction of a second.
const SAMPLES: u32 = 4;

impl Budget {
    pub(super) fn new(policy: EffortPolicy) -> Self {
        Self {
            policy,
            step: STEPS.len() - 1,
            samples: 0,
            encode: Duration::ZERO,
            write: Duration::ZERO,
            swallowed: 0,
            incompressible: false,
        }
    }

    pub(super) fn effort(&self) -> Effort {
        match self.policy {
            EffortPolicy::Fixed(effort) => effort,
            EffortPolicy::Auto => STEPS.get(self.step).copied().unwrap_or(Effort::Balanced),
        }
    }

    /// Pages that an extent should have at most. Compression gains from many packed together;
    /// pages that do not compress gain from staying in the core's second-level cache on their way
    /// from the guest through hash and cipher.
    pub(super) fn extent_pages(&self) -> usize {
        if self.incompressible { CACHED_PAGES } else { MAX_EXTENT_PAGES }
    }

    /// One extent was encoded to so many bytes, and the one before it on that lane written.
    pub(super) fn sample(&mut self, encode: Duration, write: Duration, carried: u16, wire_bytes: u64) {
        // An extent of a few pages says nothing about rates.
        if carried < 16 || write.is_zero() {
            return;
        }
        self.incompressible = wire_bytes * 20 > u64::from(carried) * 4096 * 19;
        if self.swallowed < UNHEARD {
            self.swallowed = self.swallowed.saturating_add(wire_bytes);
            return;
        }
        self.encode += encode;
        self.write += write;
        self.samples += 1;
        if self.samples < SAMPLES {
            return;
        }
        if self.write > self.encode * UP {
            self.step = (self.step + 1).min(STEPS.len() - 1);
        } else if self.write * 100 < self.encode * DOWN_PERCENT {
            self.step = self.step.saturating_sub(1);
        }
        self.samples = 0;
        self.encode = Duration::ZERO;
        self.write = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_fast_link_turns_compression_down_and_a_slow_one_up_again() {
        let mut budget = Budget::new(EffortPolicy::Auto);
        assert_eq!(budget.effort(), Effort::Balanced);
        for _ in 0..8 {
            budget.sample(2 * MS, MS / 100, 256, 1 << 20);
        }
        assert_eq!(budget.effort(), Effort::Balanced, "buffers swallow the first writes");
        for _ in 0..2 * SAMPLES {
            budget.sample(2 * MS, MS / 4, 256, 1000);
        }
        assert_eq!(budget.effort(), Effort::Raw);
        for _ in 0..4 * SAMPLES {
            budget.sample(MS, MS, 256, 1000);
        }
        assert_eq!(budget.effort(), Effort::Raw, "neither side waits");
        for _ in 0..2 * SAMPLES {
            budget.sample(MS / 2, 8 * MS, 256, 1000);
        }
        assert_eq!(budget.effort(), Effort::Balanced);
    }

    #[test]
    fn small_extents_decide_nothing() {
        let mut budget = Budget::new(EffortPolicy::Auto);
        for _ in 0..100 {
            budget.sample(2 * MS, MS / 100, 3, 1000);
        }
        assert_eq!(budget.effort(), Effort::Balanced);
    }

    #[test]
    fn extents_that_do_not_compress_are_kept_small() {
        let mut budget = Budget::new(EffortPolicy::Auto);
        assert_eq!(budget.extent_pages(), MAX_EXTENT_PAGES);
        budget.sample(MS, MS, 256, 256 * 4096 + 60);
        assert_eq!(budget.extent_pages(), CACHED_PAGES);
        budget.sample(MS, MS, 64, 64 * 2048);
        assert_eq!(budget.extent_pages(), MAX_EXTENT_PAGES);
    }
}
