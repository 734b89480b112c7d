//! Which page of a baseline has much in common with another page, by a few of its lines.
//!
//! The sketch of a page is the four least hashes of its lines of 64 bytes. Two pages that share half of their lines share half of
//! their sketches, or so, whatever the lines' places; two that share none hardly ever do. On guests of one image it finds as
//! much as eight hashes do, or hashes at places that the bytes decide (`docs/performance.md`).

use crate::extent::{FlatPage, Layout, PAGE_BYTES};

/// Bytes of a line: slabs and records of a kernel begin at multiples of it.
const LINE: usize = 64;
const FEATURES: usize = 4;
/// Slots that are looked at for one hash.
const PROBES: usize = 8;
/// No page.
const FREE: u32 = u32::MAX;

/// The least hashes of a page's lines, rising, each once; [`u32::MAX`] where there are fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sketch(pub(super) [u32; FEATURES]);

impl Sketch {
    pub(super) const NONE: Self = Self([u32::MAX; FEATURES]);

    /// Of a page. Lines that repeat one word tell nothing: there are too many of them.
    pub(super) fn of(page: &[u8]) -> Self {
        let mut least = [u32::MAX; FEATURES];
        for line in page.as_chunks::<LINE>().0 {
            let words = line.as_chunks::<8>().0;
            if words.iter().any(|word| Some(word) != words.first()) {
                keep(&mut least, hash(words));
            }
        }
        Self(least)
    }

    fn features(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().filter(|feature| *feature != u32::MAX)
    }
}

fn keep(least: &mut [u32; FEATURES], hash: u32) {
    let [.., last] = least;
    if hash < *last {
        *last = hash;
        least.sort_unstable();
        // One that was there before gives its place up again.
        if least.windows(2).any(|pair| pair.first() == pair.last()) {
            let mut kept = least.to_vec();
            kept.dedup();
            kept.resize(FEATURES, u32::MAX);
            least.copy_from_slice(&kept);
        }
    }
}

fn hash(words: &[[u8; 8]]) -> u32 {
    let mixed = words.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, word| {
        let next = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        next ^ next >> 29
    });
    u32::try_from(mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32).unwrap_or(0)
}

/// The sketch of every page that is not zeros: 16 bytes each, in groups of 64.
#[derive(Debug)]
pub(super) struct Sketches(Vec<Option<Box<[Sketch; 64]>>>);

impl Sketches {
    pub(super) fn new(layout: &Layout) -> Self {
        let groups = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        Self((0..groups).map(|_| None).collect())
    }

    pub(super) fn get(&self, page: FlatPage) -> Sketch {
        let found = usize::try_from(page.0).ok().and_then(|at| self.0.get(at / 64)?.as_ref()?.get(at % 64).copied());
        found.unwrap_or(Sketch::NONE)
    }

    pub(super) fn set(&mut self, page: FlatPage, sketch: Sketch) {
        let at = usize::try_from(page.0).unwrap_or(usize::MAX);
        let Some(group) = self.0.get_mut(at / 64) else { return };
        if let Some(place) = group.get_or_insert_with(|| Box::new([Sketch::NONE; 64])).get_mut(at % 64) {
            *place = sketch;
        }
    }
}

/// A page for each hash of a sketch: 4 bytes a slot, at least half of them free. Sketches are kept elsewhere.
#[derive(Debug)]
pub(super) struct LikenessTable {
    slots: Box<[u32]>,
}

impl LikenessTable {
    /// Of these pages, of which there are at most so many. Of those with the same hash the first is found.
    pub(super) fn new(most: u64, pages: impl Iterator<Item = FlatPage>, sketches: &Sketches) -> Self {
        let slots = usize::try_from(most).unwrap_or(usize::MAX >> 6).saturating_mul(2 * FEATURES).next_power_of_two();
        let mut table = Self { slots: vec![FREE; slots.max(64)].into() };
        for page in pages {
            for feature in sketches.get(page).features() {
                table.insert(page, feature, sketches);
            }
        }
        table
    }

    fn insert(&mut self, page: FlatPage, feature: u32, sketches: &Sketches) {
        for slot in self.probes(feature) {
            match self.slots.get_mut(slot) {
                Some(known) if *known == FREE => return *known = page.0,
                Some(known) if sketches.get(FlatPage(*known)).0.contains(&feature) => return,
                _ => {}
            }
        }
    }

    /// The page that shares most of this sketch.
    pub(super) fn find(&self, sketch: Sketch, sketches: &Sketches) -> Option<FlatPage> {
        let shared = |page: FlatPage| {
            let theirs = sketches.get(page);
            sketch.features().filter(|feature| theirs.0.contains(feature)).count()
        };
        let found = sketch.features().filter_map(|feature| self.with(feature, sketches));
        // Of those that share as much the first one.
        found.min_by_key(|page| (std::cmp::Reverse(shared(*page)), page.0))
    }

    fn with(&self, feature: u32, sketches: &Sketches) -> Option<FlatPage> {
        let known =
            self.probes(feature).filter_map(|slot| self.slots.get(slot).copied()).take_while(|page| *page != FREE);
        known.map(FlatPage).find(|page| sketches.get(*page).0.contains(&feature))
    }

    fn probes(&self, feature: u32) -> impl Iterator<Item = usize> + use<> {
        let slots = self.slots.len();
        // Hashes of a sketch are small: they are spread again.
        let start = usize::try_from(u64::from(feature).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24).unwrap_or(0);
        (0..PROBES).map(move |step| start.wrapping_add(step) & (slots - 1))
    }
}

/// Whole pages have a sketch; a cut-off one is filled up with zeros before.
const _: () = assert!(PAGE_BYTES.is_multiple_of(LINE));

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a page, told by a number each.
    fn page(lines: impl Iterator<Item = u64>) -> Vec<u8> {
        lines.take(64).flat_map(|line| (0..8).flat_map(move |word: u64| (line * 8 + word).to_le_bytes())).collect()
    }

    #[test]
    fn a_page_is_found_by_the_lines_that_it_shares_wherever_they_stand() {
        let layout = Layout::new(&[4096 * 640]).unwrap();
        let mut sketches = Sketches::new(&layout);
        for number in 0..640 {
            let first = u64::from(number) * 1000;
            sketches.set(FlatPage(number), Sketch::of(&page(first..)));
        }
        let table = LikenessTable::new(640, (0..640).map(FlatPage), &sketches);
        let mut found = 0;
        for number in 0..640_u32 {
            let first = u64::from(number) * 1000;
            // Three quarters of the lines, backwards.
            let shifted = page((first + 16..first + 80).rev());
            if let Some(page) = table.find(Sketch::of(&shifted), &sketches) {
                assert_eq!(page.0, number);
                found += 1;
            }
            let other = page(first + 500..);
            assert_eq!(table.find(Sketch::of(&other), &sketches), None, "page {number}");
        }
        assert!(found > 620, "{found} of 640");
    }

    #[test]
    fn lines_that_repeat_a_word_and_lines_that_come_twice_count_for_nothing() {
        assert_eq!(Sketch::of(&[7; 4096]), Sketch::NONE);
        let twice = Sketch::of(&page([5, 5, 6, 6].into_iter().cycle()));
        assert_eq!(twice.features().count(), 2);
        assert!(twice.0[0] < twice.0[1]);
        let sketches = Sketches::new(&Layout::new(&[4096]).unwrap());
        let table = LikenessTable::new(1, [FlatPage(0)].into_iter(), &sketches);
        assert_eq!(table.find(Sketch::NONE, &sketches), None);
        assert_eq!(table.find(twice, &sketches), None);
    }

    #[test]
    fn the_page_that_shares_most_is_the_one() {
        let mut sketches = Sketches::new(&Layout::new(&[4096 * 64]).unwrap());
        sketches.set(FlatPage(3), Sketch([1, 2, 3, 4]));
        sketches.set(FlatPage(5), Sketch([4, 5, 6, 7]));
        let table = LikenessTable::new(2, [FlatPage(3), FlatPage(5)].into_iter(), &sketches);
        assert_eq!(table.find(Sketch([2, 5, 6, 9]), &sketches), Some(FlatPage(5)));
        assert_eq!(
            table.find(Sketch([1, 3, 5, 6]), &sketches),
            Some(FlatPage(3)),
            "of two that share as much the first"
        );
        assert_eq!(table.find(Sketch([4, 8, 9, 10]), &sketches), Some(FlatPage(3)));
    }
}
