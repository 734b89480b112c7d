//! Which pages of a staging file were written. Many sessions write to it, none waits.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words that come into being together: one bit for each of 65,536 pages. So an offer alone costs 24 bytes for 256 MiB.
const WORDS: u32 = 1024;

/// One bit for each page.
#[derive(Debug)]
pub(super) struct Written {
    words: u32,
    blocks: Box<[OnceLock<Box<[AtomicU64]>>]>,
    /// What is true of pages of which nothing was said.
    others: bool,
}

impl Written {
    /// None, or all, of so many pages.
    pub(super) fn new(pages: u32, others: bool) -> Self {
        let words = pages.div_ceil(64);
        Self { words, blocks: (0..words.div_ceil(WORDS)).map(|_| OnceLock::new()).collect(), others }
    }

    pub(super) fn get(&self, page: u32) -> bool {
        let (Some(cell), word) = self.place(page) else { return true };
        let Some(word) = cell.get().and_then(|words| words.get(word)) else { return self.others };
        word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1
    }

    /// Whether a page was written before; marks it as written or as a hole.
    pub(super) fn exchange(&self, page: u32, written: bool) -> bool {
        let (Some(cell), word) = self.place(page) else { return true };
        if cell.get().is_none() && written == self.others {
            return self.others;
        }
        let begin = || {
            let value = if self.others { u64::MAX } else { 0 };
            let words = self.words.saturating_sub(page / 64 / WORDS * WORDS).min(WORDS);
            (0..words).map(|_| AtomicU64::new(value)).collect()
        };
        let Some(word) = cell.get_or_init(begin).get(word) else { return true };
        let bit = 1 << (page % 64);
        let before =
            if written { word.fetch_or(bit, Ordering::Relaxed) } else { word.fetch_and(!bit, Ordering::Relaxed) };
        before & bit != 0
    }

    fn place(&self, page: u32) -> (Option<&OnceLock<Box<[AtomicU64]>>>, usize) {
        let of = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let word = page / 64;
        let block = self.blocks.get(of(word / WORDS)).filter(|_| word < self.words);
        (block, of(word % WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_was_last_said_of_them_and_cost_nothing_before() {
        for others in [false, true] {
            let pages = 64 * (1024 + 3);
            let written = Written::new(pages, others);
            let blocks = || written.blocks.iter().filter(|block| block.get().is_some()).count();
            for page in [0, 65_535, 65_536, pages - 1] {
                assert_eq!((written.get(page), written.exchange(page, others)), (others, others));
            }
            assert_eq!(blocks(), 0, "nothing new was said");
            assert!(written.get(pages) && written.exchange(pages, false), "outside nothing is known");
            for page in [65_536, pages - 1] {
                assert_eq!((written.exchange(page, !others), written.exchange(page, !others)), (others, !others));
                assert_eq!((written.get(page), written.get(page - 1)), (!others, others));
            }
            assert_eq!(blocks(), 1);
            assert_eq!((written.exchange(65_536, others), written.get(65_536)), (!others, others));
        }
    }
}
