use super::dirty::PageBits;
use crate::guest::DirtyMap;

/// Harvests in a row in which a page must have been found dirty to be hot. Two are met by a page that is written at twice the
/// length of a round, which the next, shorter round could well send for good; four wait for a round that seldom comes.
const WINDOWS: usize = 3;

/// Which pages the guest writes all the time: those that were dirty in each of the last harvests.
///
/// To send such a page before the pause is of no use, for it must be sent in the pause again. What is kept is a history of
/// three bits a page, sliced by harvest, so that a word of 64 pages is brought up to date, and asked, with a few
/// instructions. A count for each group of pages would take as much memory for groups of eight, and there one hot page
/// would hold back seven that are sent once and for all.
#[derive(Debug)]
pub(super) struct HotPages {
    /// For each word of the dirty bitmap the harvests, the latest first.
    words: Vec<[u64; WINDOWS]>,
    /// Bit w of word g: word 64 g + w has a bit in some window.
    summary: Vec<u64>,
}

/// Whether a harvest begins a window of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// It does.
    New,
    /// It came so soon after the one before that it is counted with it: a page that is written less often is no less hot.
    Same,
}

impl HotPages {
    /// Nothing is known yet of so many pages, a multiple of 64.
    pub(super) fn new(pages: u32) -> Self {
        let words = usize::try_from(pages / 64).unwrap_or(usize::MAX);
        Self { words: vec![[0; WINDOWS]; words], summary: vec![0; words.div_ceil(64)] }
    }

    /// Takes a harvest down.
    pub(super) fn record(&mut self, harvest: &DirtyMap, window: Window) {
        let groups = self.words.chunks_mut(64).zip(harvest.words().chunks(64)).zip(&mut self.summary);
        for ((words, bits), summary) in groups {
            if *summary == 0 && bits.iter().all(|&bits| bits == 0) {
                continue;
            }
            for ((word, &bits), place) in words.iter_mut().zip(bits).zip(0..64) {
                if window == Window::New {
                    word.rotate_right(1);
                    word[0] = 0;
                }
                word[0] |= bits;
                let any = word.iter().any(|&bits| bits != 0);
                *summary = *summary & !(1 << place) | u64::from(any) << place;
            }
        }
    }

    /// The hot pages of one word of the dirty bitmap.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| word.iter().fold(u64::MAX, |hot, bits| hot & bits))
    }

    /// The hot pages of one word that were sent before: what nobody has sent yet is not left out on a guess.
    pub(super) fn sent_word(&self, index: usize, sent: &PageBits) -> u64 {
        self.word(index) & sent.word(index)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.words.fill([0; WINDOWS]);
        self.summary.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Layout, RegionId};

    fn harvest(layout: &Layout, pages: &[u32]) -> DirtyMap {
        let mut map = DirtyMap::new(layout);
        pages.iter().for_each(|&page| map.mark(RegionId(0), page, 1));
        map
    }

    fn hot(hot: &HotPages) -> Vec<u32> {
        let words = (0..4).flat_map(|word| (0..64).map(move |bit| (word, bit)));
        words.zip(0..).filter(|((word, bit), _)| hot.word(*word) >> bit & 1 == 1).map(|(_, page)| page).collect()
    }

    #[test]
    fn a_page_is_hot_while_every_harvest_finds_it() {
        let layout = Layout::new(&[4096 * 200]).unwrap();
        let mut pages = HotPages::new(layout.flat_pages());
        let harvests: [&[u32]; 6] = [&[1, 70, 199], &[1, 70, 199], &[1, 2, 199], &[1, 2, 199], &[2], &[]];
        let expected: [&[u32]; 6] = [&[], &[], &[1, 199], &[1, 199], &[2], &[]];
        for (found, expected) in harvests.iter().zip(expected) {
            pages.record(&harvest(&layout, found), Window::New);
            assert_eq!(hot(&pages), expected, "after {found:?}");
        }
    }

    #[test]
    fn a_harvest_right_after_another_does_not_cool_a_page() {
        let layout = Layout::new(&[4096 * 200]).unwrap();
        let mut pages = HotPages::new(layout.flat_pages());
        for _ in 0..WINDOWS {
            pages.record(&harvest(&layout, &[7]), Window::New);
        }
        pages.record(&harvest(&layout, &[]), Window::Same);
        assert_eq!(hot(&pages), [7]);
        pages.record(&harvest(&layout, &[]), Window::New);
        assert_eq!(hot(&pages), [0; 0]);
        pages.record(&harvest(&layout, &[7]), Window::Same);
        assert_eq!(hot(&pages), [7], "the window was not over");
        pages.clear();
        assert_eq!(hot(&pages), [0; 0]);
    }
}
