//! Which method a page deserves: a look at a few bytes of it, never a trial compression of the page.
//!
//! The probe decides per page, so that one random page does not cost its extent the compression, nor one text page the line
//! rate. It reads 64 bytes of the page; pages of random or encrypted bytes leave it after some tens of nanoseconds. The others
//! are looked at once more, at a fifth of their bytes, for the form in which they pack best.

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
/// Bytes of half a word.
const HALF: usize = 4;
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
/// A page of whose 1024 words more changed has nothing in common with its old one but zeros, and packs better without: a prefix
/// of other pages costs it its byte planes and the company of pages of its kind. Measured 896, 1000 and none (512 words of the
/// others equal): at level 12 compile takes 2 % fewer bytes, another guest's pages 4 %; redis and pgbench do not notice.
const RELATED_WORDS: u32 = 896;
/// For LZ4, XOR pays as long as half of the page stands still.
const HALF_WORDS: u32 = 512;

/// Bytes of a line: what one look at a page reads together.
const LINE: usize = 64;
/// Bytes of a line that are compared with later ones: 624 of a page.
const COMPARED: usize = 48;
/// Odd, so that no record of a power-of-two size hides from the look: 13 of a page's 64 lines.
const LINE_STEP: usize = 5;
/// Words of a line whose halves are asked whether they came before: 52 halves of a page.
const ASKED_WORDS: [usize; 2] = [0, 3];
/// Slots that recognise repeated halves; collisions only make a half look new.
const HALF_SLOTS: usize = 256;
/// Leaves the top 8 bits of a spread word: a slot of [`HALF_SLOTS`].
const HALF_SHIFT: u32 = 56;
/// Multiplier that spreads words over a table by their top bits (2^64 / golden ratio).
pub(crate) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// With at most this many repeats among the 52 halves, a page has nothing for zstd to match; planes pay if more than
/// [`SOME_ALIKE`] of its bytes equal the one 8 after. Its words are halves, unless next to no byte equals the one 4 after.
const NO_REPEATS: u32 = 1;
const SOME_ALIKE: u32 = 66;
const HARDLY_ALIKE: u32 = 15;
/// Records: more than two thirds of the bytes equal the one 16 after. Planes pay unless more halves than [`FEW_REPEATS`] came
/// before, which zstd matches as they are.
const RECORDS: u32 = 420;
const FEW_REPEATS: u32 = 28;
/// Small numbers of 4 bytes: more bytes equal the one 4 after, and no more halves than [`SOME_REPEATS`] came before.
const NUMBERS: u32 = 384;
const SOME_REPEATS: u32 = 30;

/// What the probe saw of a page.
pub(crate) struct Sample {
    /// A fingerprint of the sampled bytes: equal pages have equal keys.
    pub(crate) key: u64,
    /// The sampled bytes look random.
    pub(crate) random: bool,
}

/// Whether an old page has so much in common with a page that it is used as its base.
pub fn is_related(page: &[u8], base: &[u8]) -> bool {
    delta::changed_words(page, base) <= RELATED_WORDS
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
        Effort::Light | Effort::Balanced | Effort::Thorough(_) if changed <= RELATED_WORDS => Some(Method::Prefix),
        Effort::Light | Effort::Balanced | Effort::Thorough(_) => None,
    }
}

/// In which form the page packs best by a look at a fifth of it: plain, or in planes of one width or the other.
///
/// zstd matches what came before byte for byte; planes help where only some bytes of a word did, those in the same places:
/// pointers, page tables, tuples, counters. So repeats of halves of words are counted, and bytes that equal the one 4, 8 and 16
/// after. Fitted on 41,089 real pages of three guests to the bytes that each form packs to, alone: the rule takes 1.6 / 1.1 /
/// 2.2 points of the 2.0 / 1.3 / 2.5 which trying all three on every page would gain, and of a guest on which it was not
/// fitted 1.5 / 1.1 / 2.0.
pub(crate) fn form(page: &[u8]) -> Method {
    let seen = Look::at(page);
    if seen.repeats <= NO_REPEATS && seen.alike_8 > SOME_ALIKE {
        if seen.alike_4 <= HARDLY_ALIKE { Method::Planes } else { Method::NarrowPlanes }
    } else if seen.alike_16 > RECORDS {
        if seen.repeats <= FEW_REPEATS { Method::Planes } else { Method::Zstd }
    } else if seen.alike_4 > NUMBERS && seen.repeats <= SOME_REPEATS {
        Method::NarrowPlanes
    } else {
        Method::Zstd
    }
}

/// What some lines of a page hold.
#[derive(Default)]
struct Look {
    /// Halves of words that came before.
    repeats: u32,
    /// Bytes that equal the one so many after, in their line.
    alike_4: u32,
    alike_8: u32,
    alike_16: u32,
}

impl Look {
    fn at(page: &[u8]) -> Self {
        let (lines, _) = page.as_chunks::<LINE>();
        let mut slots = [0_u32; HALF_SLOTS];
        let mut look = Self::default();
        for line in lines.iter().step_by(LINE_STEP) {
            look.alike_4 += alike::<4>(line);
            look.alike_8 += alike::<8>(line);
            look.alike_16 += alike::<16>(line);
            let (words, _) = line.as_chunks::<WORD>();
            for word in ASKED_WORDS.iter().filter_map(|place| words.get(*place)) {
                let (halves, _) = word.as_chunks::<HALF>();
                for half in halves.iter().map(|half| u32::from_le_bytes(*half)) {
                    let hash = usize::try_from(u64::from(half).wrapping_mul(SPREAD) >> HALF_SHIFT).unwrap_or_default();
                    if let Some(slot) = slots.get_mut(hash) {
                        look.repeats += u32::from(*slot == half);
                        *slot = half;
                    }
                }
            }
        }
        look
    }
}

/// How many of the first 48 bytes of the line equal the one `LAG` after, which is at most 16. Their sum fits a byte and needs no
/// remainder, so that it compiles to a handful of vector operations.
fn alike<const LAG: usize>(line: &[u8; LINE]) -> u32 {
    let pairs = line.first_chunk::<COMPARED>().zip(line.get(LAG..).and_then(|later| later.first_chunk::<COMPARED>()));
    pairs.map_or(0, |(bytes, later)| {
        u32::from(bytes.iter().zip(later).fold(0_u8, |sum, (byte, later)| sum.wrapping_add(u8::from(byte == later))))
    })
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
    fn each_kind_of_page_gets_its_form() {
        let numbers: Vec<u8> = (0..1024_u32).flat_map(|place| (place * place % 65_521).to_le_bytes()).collect();
        let kinds = [
            ("pointers", words(|place| 0xffff_8880_1234_0000 + place * 192), Method::Planes),
            ("pointers that repeat", words(|place| 0xffff_8880_1234_0000 + place % 8 * 192), Method::Zstd),
            ("numbers of 4 bytes", numbers, Method::NarrowPlanes),
            ("random", random(9), Method::Zstd),
            ("nothing", vec![0; PAGE_BYTES], Method::Zstd),
        ];
        for (kind, page, expected) in kinds {
            assert_eq!(form(&page), expected, "{kind}");
        }
    }

    #[test]
    fn alike_bytes_are_counted_exactly() {
        let mut line = std::array::from_fn(|place| u8::try_from(place % 8).unwrap());
        assert_eq!((alike::<4>(&line), alike::<8>(&line), alike::<16>(&line)), (0, 48, 48));
        line[20] = 0xff;
        assert_eq!((alike::<8>(&line), alike::<16>(&line)), (46, 46));
        assert_eq!(alike::<4>(&[7; LINE]), 48);
    }
}
