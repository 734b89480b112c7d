//! What differs from one run of an attack to the next: which bytes, which lane, where, how much, and after what.

use std::ops::{Deref, DerefMut};

use dwcp_sim::rng::Rng;

/// The seeds of this run: `DWCP_ATTACK_SEEDS=0..50`, or three of them.
pub(crate) fn seeds() -> impl Iterator<Item = Chance> {
    let told = std::env::var("DWCP_ATTACK_SEEDS").unwrap_or_else(|_| "0..3".to_owned());
    let range = told.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    let range: std::ops::Range<u64> =
        range.unwrap_or_else(|| panic!("DWCP_ATTACK_SEEDS={told} is no range like 0..50"));
    assert!(!range.is_empty(), "DWCP_ATTACK_SEEDS={told} has no seed");
    range.map(Chance::new)
}

/// The generator of one seed, which is told when the test fails.
pub(crate) struct Chance {
    seed: u64,
    rng: Rng,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rng: Rng::new(seed) }
    }

    /// Some number of 32 bits.
    pub(crate) fn number(&mut self) -> u32 {
        u32::try_from(self.word() >> 32).unwrap()
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.word().to_le_bytes()[3])
    }

    /// Places of something so large within something larger, both in the same unit.
    pub(crate) fn place(&mut self, size: usize, within: u64) -> u32 {
        u32::try_from(self.below(within - size as u64 + 1)).unwrap()
    }
}

impl Deref for Chance {
    type Target = Rng;

    fn deref(&self) -> &Rng {
        &self.rng
    }
}

impl DerefMut for Chance {
    fn deref_mut(&mut self) -> &mut Rng {
        &mut self.rng
    }
}

impl Drop for Chance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.seed;
            eprintln!("with the seed {seed}; again: DWCP_ATTACK_SEEDS={seed}..{} and the name of the test", seed + 1);
        }
    }
}
