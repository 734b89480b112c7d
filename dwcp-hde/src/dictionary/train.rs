//! A dictionary out of pages: the segments whose 8-byte words, at any place, stand in the most other pages.
//!
//! Words are counted once a page, so that a page which repeats itself says no more than another. Then the pages are cut into as
//! many stretches as segments are wanted, and of each stretch the best segment is taken; what it holds counts for nothing from
//! then on. This is the method of COVER (as in zstd's own trainer), with counts a page and fixed parameters: the same pages in
//! the same order give the same dictionary, on every machine.

use std::collections::HashSet;

use thiserror::Error;

use super::{Dictionary, DictionaryError, MAX_DICTIONARY_BYTES, MIN_DICTIONARY_BYTES};
use crate::choose::{SPREAD, probe};
use crate::{PAGE_BYTES, is_zero};

/// Bytes of a segment. 64 and 1024 were measured too: within 0.1 points of each other.
pub(super) const SEGMENT: usize = 256;
/// Bytes between the places where a segment may begin.
const STEP: usize = 64;
/// Bytes of the words that are counted: what zstd's matches begin with, and a few more.
const WORD: usize = 8;
/// A segment must be worth more than this: a quarter of its words in two pages. Less is chance, and words that share a slot.
const LEAST_SCORE: u64 = 128;
/// Slots of the count, as a power of two: 16 MiB each of two tables. Two words in a slot count for one.
const SLOT_BITS: u32 = 22;

/// Pages of one training: 64 MiB. More are no better, and cost time and memory.
pub const MAX_TRAINING_PAGES: usize = 16 * 1024;

/// What came of a training.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The dictionary; of fewer bytes than wanted where the pages had no more in common.
    pub dictionary: Dictionary,
    /// Pages that it was made of: zero pages, pages that look random and pages seen before are left out.
    pub pages: usize,
}

/// Why no dictionary could be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive] // later trainings have later needs
pub enum TrainError {
    /// Not whole pages.
    #[error("{bytes} bytes are not a whole number of pages")]
    PartialPage {
        /// How many.
        bytes: usize,
    },
    /// More than [`MAX_TRAINING_PAGES`].
    #[error("{pages} pages to train from, at most {MAX_TRAINING_PAGES} are taken")]
    TooManyPages {
        /// How many.
        pages: usize,
    },
    /// The size asked for is none that a dictionary may have.
    #[error("a dictionary has {MIN_DICTIONARY_BYTES} to {MAX_DICTIONARY_BYTES} bytes, {bytes} were asked for")]
    Size {
        /// How many were asked for.
        bytes: usize,
    },
    /// Nothing stands in two pages.
    #[error("the {pages} pages that are neither zero nor random have nothing in common")]
    NothingInCommon {
        /// Pages that were looked at.
        pages: usize,
    },
    /// What was found is no dictionary.
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
}

/// Makes a dictionary of at most `bytes` bytes out of `pages`, packed one after the other. Takes about 100 microseconds a
/// page, and 32 MiB.
///
/// # Errors
/// The caller's mistakes, and pages without anything in common: see [`TrainError`].
pub fn train(pages: &[u8], bytes: usize) -> Result<Trained, TrainError> {
    if !pages.len().is_multiple_of(PAGE_BYTES) {
        return Err(TrainError::PartialPage { bytes: pages.len() });
    }
    let count = pages.len() / PAGE_BYTES;
    if count > MAX_TRAINING_PAGES {
        return Err(TrainError::TooManyPages { pages: count });
    }
    if !(MIN_DICTIONARY_BYTES..=MAX_DICTIONARY_BYTES).contains(&bytes) {
        return Err(TrainError::Size { bytes });
    }
    let (mut seen, mut useful) = (HashSet::new(), Vec::new());
    for page in pages.chunks_exact(PAGE_BYTES) {
        if !is_zero(page) && !probe(page).random && seen.insert(page) {
            useful.push(page);
        }
    }
    let mut segments = choose(&useful, bytes / SEGMENT);
    // The nearer to the pages, the fewer bits name a place: what stands in most pages comes last.
    segments.sort_by_key(|(score, _)| *score);
    let content: Vec<u8> = segments.into_iter().flat_map(|(_, segment)| segment).copied().collect();
    if content.is_empty() {
        return Err(TrainError::NothingInCommon { pages: useful.len() });
    }
    Ok(Trained { dictionary: Dictionary::new(content)?, pages: useful.len() })
}

/// Up to `wanted` segments and what each was worth, in the order in which they were found.
fn choose<'a>(pages: &[&'a [u8]], wanted: usize) -> Vec<(u64, &'a [u8])> {
    let mut words = Words::count(pages);
    let stretch = pages.len().div_ceil(wanted).max(1);
    let mut chosen = Vec::new();
    loop {
        let before = chosen.len();
        for stretch in pages.chunks(stretch).take(wanted - before) {
            if let Some((score, segment)) = words.best(stretch) {
                words.cover(segment);
                chosen.push((score, segment));
            }
        }
        if chosen.len() == before || chosen.len() >= wanted {
            return chosen;
        }
    }
}

/// In how many pages each word stands.
struct Words {
    pages: Vec<u32>,
    /// The last page or segment in which a word was seen.
    last: Vec<u32>,
    turn: u32,
}

impl Words {
    fn count(pages: &[&[u8]]) -> Self {
        let mut words = Self { pages: vec![0; 1 << SLOT_BITS], last: vec![0; 1 << SLOT_BITS], turn: 0 };
        for page in pages {
            words.turn += 1;
            for slot in slots(page) {
                if words.is_new(slot)
                    && let Some(count) = words.pages.get_mut(slot)
                {
                    *count += 1;
                }
            }
        }
        // A word of one page alone helps nobody.
        words.pages.iter_mut().filter(|count| **count < 2).for_each(|count| *count = 0);
        words
    }

    /// Whether the slot is seen for the first time in this turn.
    fn is_new(&mut self, slot: usize) -> bool {
        self.last.get_mut(slot).is_some_and(|last| std::mem::replace(last, self.turn) != self.turn)
    }

    /// The segment of these pages with the most words of most pages; the first of several. `None`: none has any.
    fn best<'a>(&mut self, pages: &[&'a [u8]]) -> Option<(u64, &'a [u8])> {
        let mut best: Option<(u64, &[u8])> = None;
        let windows = pages.iter().flat_map(|page| page.windows(SEGMENT).step_by(STEP));
        for segment in windows {
            self.turn = self.turn.wrapping_add(1);
            let mut score = 0;
            for slot in slots(segment) {
                if self.is_new(slot) {
                    score += u64::from(self.pages.get(slot).copied().unwrap_or_default());
                }
            }
            if score > best.map_or(LEAST_SCORE, |(score, _)| score) {
                best = Some((score, segment));
            }
        }
        best
    }

    fn cover(&mut self, segment: &[u8]) {
        for slot in slots(segment) {
            if let Some(count) = self.pages.get_mut(slot) {
                *count = 0;
            }
        }
    }
}

/// The slot of the word at each place.
fn slots(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.windows(WORD).map(|word| {
        let word = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        usize::try_from(word.wrapping_mul(SPREAD) >> (u64::BITS - SLOT_BITS)).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::random as noise;

    /// Pages of noise, each with the same sentence at another place.
    fn pages(count: u64) -> (Vec<u8>, Vec<u8>) {
        let sentence: Vec<u8> = noise(7).take(SEGMENT).collect();
        let mut pages = Vec::new();
        for seed in 1..=count {
            // Half noise, so that no page looks random.
            let mut page: Vec<u8> = noise(seed * 31).take(2048).chain(std::iter::repeat_n(0x20, 2048)).collect();
            let at = usize::try_from(seed).unwrap() * STEP % 1024;
            page[at..at + SEGMENT].copy_from_slice(&sentence);
            pages.extend(page);
        }
        (sentence, pages)
    }

    #[test]
    fn what_stands_in_all_pages_is_found_and_comes_last() {
        let (sentence, pages) = pages(40);
        let trained = train(&pages, 4096).unwrap();
        assert_eq!(trained.pages, 40);
        assert!(trained.dictionary.bytes().ends_with(&sentence), "{:?}", trained.dictionary);
        assert!(trained.dictionary.bytes().len() < 1024, "noise is worth nothing");
        assert_eq!(train(&pages, 4096).unwrap().dictionary, trained.dictionary, "the same pages, the same dictionary");
    }

    #[test]
    fn zeros_noise_and_copies_teach_nothing() {
        let page = pages(1).1;
        let random: Vec<u8> = noise(99).take(PAGE_BYTES).collect();
        let same = [page.clone(), vec![0; PAGE_BYTES], random, page].concat();
        assert_eq!(train(&same, 1024).unwrap_err(), TrainError::NothingInCommon { pages: 1 });
        assert_eq!(train(&[], 1024).unwrap_err(), TrainError::NothingInCommon { pages: 0 });
    }

    #[test]
    fn misuse_is_refused() {
        let many = vec![0; (MAX_TRAINING_PAGES + 1) * PAGE_BYTES];
        assert_eq!(train(&[1; 4095], 1024).unwrap_err(), TrainError::PartialPage { bytes: 4095 });
        let pages = MAX_TRAINING_PAGES + 1;
        assert_eq!(train(&many, 1024).unwrap_err(), TrainError::TooManyPages { pages });
        for bytes in [0, MIN_DICTIONARY_BYTES - 1, MAX_DICTIONARY_BYTES + 1] {
            assert_eq!(train(&[], bytes).unwrap_err(), TrainError::Size { bytes });
        }
    }
}
