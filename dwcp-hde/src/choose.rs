//! Which method a page deserves: a look at a few bytes of it, never a trial compression of the page.
//!
//! The probe decides per page, so that one random page does not cost its extent the compression, nor one text page the line
//! rate. It reads 64 bytes of the page; pages of random or encrypted bytes leave it after some tens of nanoseconds.

use crate::{Method, delta};

/// How much CPU a byte saved may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Never compress; only zero pages are left out. For links that outrun every compressor.
    Raw,
    /// LZ4, and XOR against the base. For 5 to 10 Gbit/s.
    Fast,
    /// zstd's matches without an entropy coder for the rest, XOR or prefix against the base: a quarter fewer bytes than
    /// LZ4 at nearly its speed. For 1 to 5 Gbit/s.
    Light,
    /// zstd with a fast search, byte planes, XOR or prefix against the base. For 1 Gbit/s and one core.
    Balanced,
    /// As balanced, with a level of 1 to 12: 1 has a double-fast search, 6 and more try every form of a page. 12 packs some
    /// 60 MB/s and is for 100 Mbit/s.
    Thorough(i32),
}

/// Bytes of one sampled word.
const WORD: usize = 8;
/// Sampled words per page.
const SAMPLES: usize = 8;
/// Distance between samples: 8 words over 4 KiB, each at another place of its cache line and of any power-of-two record.
const STRIDE: usize = 576;
/// Among 64 random bytes 56.7 +- 2.3 values differ, so a random page looks otherwise once in several thousand. Of 42,723
/// real pages 1,634 reach 49; zstd saves 5 % of them on average, and more than 10 % of only 78.
const RANDOM_VALUES: u8 = 49;
/// A page with at most this many of its 1024 4-byte words changed goes as XOR: the runs of zeros pack as well as a prefix
/// does, faster. Measured 0, 16, 64, 128, 1024: with 64 redis loses 0.4 points, with all XOR compile loses 16.
const SPARSE_WORDS: u32 = 16;
/// For LZ4, XOR pays as long as half of the page stands still.
const HALF_WORDS: u32 = 512;

/// Odd, so that no record of a power-of-two size hides from the look: 57 of a page's 512 words.
const WORD_STEP: usize = 9;
/// Slots that recognise repeated words; collisions only make a word look new.
const WORD_SLOTS: usize = 256;
/// Leaves the top 8 bits of a spread word: a slot of [`WORD_SLOTS`].
const WORD_SHIFT: u32 = 56;
/// Multiplier that spreads words over a table by their top bits (2^64 / golden ratio).
pub(crate) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Of the 57 words this many must be new.
const DISTINCT_WORDS: u32 = 47;
/// Of the 448 bytes this many must equal the byte in the same place of the word before.
const EQUAL_BYTES: u32 = 110;

/// What the probe saw of a page.
pub(crate) struct Sample {
    /// A fingerprint of the sampled bytes: equal pages have equal keys.
    pub(crate) key: u64,
    /// The sampled bytes look random.
    pub(crate) random: bool,
}

/// The method for a page which is neither zero nor random-looking nor a copy, by its base and the effort.
/// `None`: the base does not help.
pub(crate) fn against_base(page: &[u8], base: &[u8], effort: Effort) -> Option<Method> {
    let changed = delta::changed_words(page, base);
    match effort {
        Effort::Raw => None,
        _ if changed == 0 => Some(Method::Same),
        Effort::Fast if changed <= HALF_WORDS => Some(Method::XorLz4),
        Effort::Fast => None,
        Effort::Light | Effort::Balanced | Effort::Thorough(_) if changed <= SPARSE_WORDS => Some(Method::XorZstd),
        Effort::Light | Effort::Balanced | Effort::Thorough(_) => Some(Method::Prefix),
    }
}

/// Whether the page looks like an array of distinct 64-bit words with equal bytes in equal places: pointers, page tables,
/// counters, tuples. Splitting it into byte planes pays then; where words repeat, zstd's own matches pay more.
///
/// Looks at every ninth word. Found by splitting 42,723 real pages by 22 features on the bytes that planes saved: these two
/// features alone take 1.13 of the 1.60 points which trying both ways on every page would gain.
pub(crate) fn wordlike(page: &[u8]) -> bool {
    let (words, _) = page.as_chunks::<WORD>();
    let mut slots = [0_u64; WORD_SLOTS];
    let (mut distinct, mut equal_bytes, mut before) = (0_u32, 0_u32, None);
    for word in words.iter().step_by(WORD_STEP).map(|word| u64::from_le_bytes(*word)) {
        let hash = usize::try_from(word.wrapping_mul(SPREAD) >> WORD_SHIFT).unwrap_or_default();
        if let Some(slot) = slots.get_mut(hash) {
            distinct += u32::from(*slot != word);
            *slot = word;
        }
        equal_bytes += before.map_or(0, |before: u64| zero_bytes(before ^ word));
        before = Some(word);
    }
    distinct >= DISTINCT_WORDS && equal_bytes >= EQUAL_BYTES
}

/// How many of the eight bytes are zero.
fn zero_bytes(word: u64) -> u32 {
    let low = 0x7f7f_7f7f_7f7f_7f7f;
    (!(((word & low) + low) | word | low)).count_ones()
}

/// Samples a page.
pub(crate) fn probe(page: &[u8]) -> Sample {
    let mut seen = [0_u8; 256];
    let mut key = 0_u64;
    for place in 0..SAMPLES {
        let word = page.get(place * STRIDE..).and_then(|rest| rest.first_chunk::<WORD>()).copied().unwrap_or_default();
        key = key.rotate_left(9) ^ u64::from_le_bytes(word);
        for byte in word {
            if let Some(flag) = seen.get_mut(usize::from(byte)) {
                *flag = 1;
            }
        }
    }
    // 64 bytes have at most 64 values: a sum of bytes cannot wrap, and compiles to a handful of vector adds.
    let values = seen.iter().fold(0_u8, |sum, flag| sum.wrapping_add(*flag));
    Sample { key, random: values >= RANDOM_VALUES }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_BYTES;

    fn random(mut state: u64) -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        std::iter::repeat_with(next).take(PAGE_BYTES / WORD).flatten().collect()
    }

    fn words(word: impl Fn(u64) -> u64) -> Vec<u8> {
        (0..512).flat_map(|place| word(place).to_le_bytes()).collect()
    }

    #[test]
    fn random_pages_look_random_and_others_do_not() {
        let missed = (1..=4096_u64).filter(|seed| !probe(&random(seed.wrapping_mul(SPREAD))).random).count();
        assert!(missed <= 8, "{missed} of 4096 random pages would be compressed");
        let text: Vec<u8> = b"All happy families are alike; ".iter().copied().cycle().take(PAGE_BYTES).collect();
        let mut half = random(1);
        half[..PAGE_BYTES / 2].fill(0);
        for page in [text, half, vec![1; PAGE_BYTES], words(|place| 0xffff_8880_0000_0000 + place * 64)] {
            assert!(!probe(&page).random);
        }
    }

    #[test]
    fn equal_pages_have_equal_keys() {
        assert_eq!(probe(&random(3)).key, probe(&random(3)).key);
        assert_ne!(probe(&random(3)).key, probe(&random(4)).key);
    }

    #[test]
    fn pointers_are_wordlike_and_repeats_are_not() {
        assert!(wordlike(&words(|place| 0xffff_8880_1234_0000 + place * 192)));
        assert!(!wordlike(&words(|place| 0xffff_8880_1234_0000 + place % 8 * 192)), "matches pay more");
        assert!(!wordlike(&random(9)));
        assert!(!wordlike(&[0; PAGE_BYTES]));
    }

    #[test]
    fn zero_bytes_are_counted_exactly() {
        for (word, count) in [(0, 8), (u64::MAX, 0), (0x0100_0000_0000_0080, 6), (0x8000_7f01_00ff_0000, 4)] {
            assert_eq!(zero_bytes(word), count, "{word:016x}");
        }
    }
}
