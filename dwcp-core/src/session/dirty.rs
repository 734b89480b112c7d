use crate::extent::{Extent, FlatPage, Layout, RegionId, Run};
use crate::guest::DirtyMap;

/// Which pages must still be sent, and which are in flight.
///
/// Invariant: **a page has at most one version in flight.** A page that is dirtied again while in
/// flight stays dirty and is passed over until its extent is acknowledged or buried. spec: D-1
///
/// A dirty page may be *held*: it is to be sent, but not before it is let go. No page is held and in `dirty` at once.
#[derive(Debug)]
pub struct DirtySet {
    layout: Layout,
    dirty: Vec<u64>,
    flight: Vec<u64>,
    /// Bit w of word g: word 64 g + w of `dirty` may be other than zero.
    summary: Vec<u64>,
    dirty_pages: u64,
    /// Pages that are both dirty and in flight.
    blocked_pages: u64,
    /// Where the next extent is looked for: a round is one sweep over memory.
    cursor: usize,
    held: Vec<u64>,
    held_pages: u64,
    /// No word below has held pages.
    held_from: usize,
}

impl DirtySet {
    /// Every page is dirty, as at the start of a transfer.
    pub fn all(layout: &Layout) -> Self {
        let words = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        let mut set = Self {
            layout: layout.clone(),
            dirty: vec![0; words],
            flight: vec![0; words],
            summary: vec![0; words.div_ceil(64)],
            dirty_pages: 0,
            blocked_pages: 0,
            cursor: 0,
            held: vec![0; words],
            held_pages: 0,
            held_from: words,
        };
        set.mark(&DirtyMap::all(layout));
        set
    }

    /// Adds the pages of a harvest.
    pub fn mark(&mut self, map: &DirtyMap) {
        for (index, &bits) in map.words().iter().enumerate() {
            if bits != 0 {
                self.mark_word(index, bits);
            }
        }
    }

    /// Takes pages out that need not be sent, before anything is in flight. Returns how many.
    pub(super) fn clear(&mut self, map: &DirtyMap) -> u64 {
        let mut cleared = 0;
        for (dirty, bits) in self.dirty.iter_mut().zip(map.words()) {
            cleared += u64::from((*dirty & bits).count_ones());
            *dirty &= !bits;
        }
        self.dirty_pages -= cleared;
        cleared
    }

    /// Number of pages to be sent, those in flight with an older version and those that are held included.
    pub fn pages(&self) -> u64 {
        self.dirty_pages + self.held_pages
    }

    /// Number of pages that are held.
    pub(super) fn held(&self) -> u64 {
        self.held_pages
    }

    /// Holds those dirty pages that `which` names for each word of the bitmap, and that are not in flight.
    pub(super) fn hold(&mut self, which: impl Fn(usize) -> u64) {
        for group in 0..self.summary.len() {
            let mut places = self.summary.get(group).copied().unwrap_or(0);
            while places != 0 {
                let index = group * 64 + usize::try_from(places.trailing_zeros()).unwrap_or(0);
                places &= places - 1;
                self.hold_word(index, which(index));
            }
        }
    }

    fn hold_word(&mut self, index: usize, bits: u64) {
        let (Some(dirty), Some(flight)) = (self.dirty.get_mut(index), self.flight.get(index)) else { return };
        let moved = *dirty & !flight & bits;
        *dirty &= !moved;
        self.dirty_pages -= u64::from(moved.count_ones());
        self.add_held(index, moved);
    }

    /// Holds the pages of a harvest in mid-round that this round will not come to any more. Those that are still to be sent
    /// are read after the harvest, so that nothing of it is lost.
    pub(super) fn hold_written(&mut self, map: &DirtyMap) {
        for (index, &bits) in map.words().iter().enumerate() {
            if bits != 0 {
                let dirty = self.dirty.get(index).copied().unwrap_or(u64::MAX);
                self.add_held(index, bits & !dirty);
            }
        }
    }

    fn add_held(&mut self, index: usize, bits: u64) {
        let Some(held) = self.held.get_mut(index).filter(|_| bits != 0) else { return };
        self.held_pages += u64::from((bits & !*held).count_ones());
        *held |= bits;
        self.held_from = self.held_from.min(index);
    }

    /// Lets at least so many held pages go, or all, in rising order. Returns how many.
    pub(super) fn let_go(&mut self, pages: u64) -> u64 {
        let before = self.held_pages;
        while self.held_pages > 0 && before - self.held_pages < pages {
            let Some(held) = self.held.get_mut(self.held_from) else { break };
            let bits = std::mem::take(held);
            if bits != 0 {
                self.held_pages -= u64::from(bits.count_ones());
                self.mark_word(self.held_from, bits);
            }
            self.held_from += 1;
        }
        before - self.held_pages
    }

    /// Number of pages that may be sent now.
    pub fn sendable(&self) -> u64 {
        self.dirty_pages - self.blocked_pages
    }

    /// Takes up to `max_pages` dirty pages that are not in flight, of one region and in rising
    /// order, clears their dirty bits and puts them in flight, pinned. Scattered pages are packed
    /// together. `None` when there are none.
    pub fn next_extent(&mut self, max_pages: usize) -> Option<Extent> {
        if self.sendable() == 0 || max_pages == 0 {
            return None;
        }
        let start = self.next_word(self.cursor).or_else(|| self.next_word(0))?;
        let (region, _) = self.layout.locate(FlatPage(word_page(start)))?;
        let bounds = self.layout.region(region)?;
        let end = usize::try_from(bounds.first + bounds.pages).ok()?.div_ceil(64);
        let mut runs: Vec<Run> = Vec::new();
        let mut left = u32::try_from(max_pages).unwrap_or(u32::MAX);
        let mut word = start;
        while left > 0 {
            left = self.take_word(word, bounds.first, left, &mut runs);
            if left == 0 {
                break;
            }
            match self.next_word(word + 1).filter(|&next| next < end) {
                Some(next) => word = next,
                None => {
                    word = end;
                    break;
                }
            }
        }
        self.cursor = word;
        Extent::new(region, runs).ok()
    }

    /// An extent was acknowledged: its pages are no longer in flight.
    pub fn release(&mut self, extent: &Extent) {
        self.each_word(extent, |set, index, bits| {
            let (Some(flight), Some(&dirty)) = (set.flight.get_mut(index), set.dirty.get(index)) else { return };
            set.blocked_pages -= u64::from((*flight & dirty & bits).count_ones());
            *flight &= !bits;
        });
    }

    /// An extent was buried: its pages are no longer in flight, and dirty.
    pub fn requeue(&mut self, extent: &Extent) {
        self.release(extent);
        self.each_word(extent, |set, index, bits| set.mark_word(index, bits));
    }

    /// Whether a page is in flight.
    pub fn in_flight(&self, page: FlatPage) -> bool {
        let word = usize::try_from(page.0 / 64).ok().and_then(|index| self.flight.get(index));
        word.is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// The planted bug "extent not pinned": forget that an extent is in flight.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn unpin(&mut self, extent: &Extent) {
        self.release(extent);
    }

    fn mark_word(&mut self, index: usize, bits: u64) {
        let (Some(dirty), Some(flight)) = (self.dirty.get_mut(index), self.flight.get(index)) else { return };
        let bits = bits & !self.held.get(index).copied().unwrap_or(0);
        let new = bits & !*dirty;
        *dirty |= bits;
        self.dirty_pages += u64::from(new.count_ones());
        self.blocked_pages += u64::from((new & flight).count_ones());
        if let Some(summary) = self.summary.get_mut(index / 64) {
            *summary |= 1 << (index % 64);
        }
    }

    /// Moves up to `left` sendable pages of one word into `runs`; returns how many may still follow.
    fn take_word(&mut self, index: usize, first: u32, mut left: u32, runs: &mut Vec<Run>) -> u32 {
        let (Some(dirty), Some(flight)) = (self.dirty.get_mut(index), self.flight.get_mut(index)) else { return left };
        let mut rest = *dirty & !*flight;
        let base = word_page(index) - first;
        while rest != 0 && left > 0 {
            let bit = rest.trailing_zeros();
            let count = (rest >> bit).trailing_ones().min(left);
            let mask = (u64::MAX >> (64 - count)) << bit;
            rest &= !mask;
            *dirty &= !mask;
            *flight |= mask;
            left -= count;
            self.dirty_pages -= u64::from(count);
            let start = base + bit;
            let count = u16::try_from(count).unwrap_or(64);
            match runs.last_mut() {
                Some(run) if run.end() == start => run.count += count,
                _ => runs.push(Run { start, count }),
            }
        }
        if *dirty == 0
            && let Some(summary) = self.summary.get_mut(index / 64)
        {
            *summary &= !(1 << (index % 64));
        }
        left
    }

    /// The first word from `from` on that has a sendable page.
    fn next_word(&self, from: usize) -> Option<usize> {
        let mut group = from / 64;
        let mut mask = u64::MAX << (from % 64);
        while let Some(&summary) = self.summary.get(group) {
            let mut bits = summary & mask;
            while bits != 0 {
                let index = group * 64 + usize::try_from(bits.trailing_zeros()).unwrap_or(0);
                if self.dirty.get(index)? & !self.flight.get(index)? != 0 {
                    return Some(index);
                }
                bits &= bits - 1;
            }
            group += 1;
            mask = u64::MAX;
        }
        None
    }

    /// Calls `visit` with each word of the bitmaps that an extent touches, and its bits there.
    fn each_word(&mut self, extent: &Extent, mut visit: impl FnMut(&mut Self, usize, u64)) {
        let first = region_first(&self.layout, extent.region());
        each_word(first, extent, |index, bits| visit(self, index, bits));
    }
}

/// Calls `visit` with each word of a bitmap that an extent touches, and its bits there: the pages of a
/// word in one step.
fn each_word(first: u32, extent: &Extent, mut visit: impl FnMut(usize, u64)) {
    for run in extent.runs() {
        let mut page = first + run.start;
        let end = first + run.end();
        while page < end {
            let bit = page % 64;
            let here = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - here)) << bit;
            if let Ok(index) = usize::try_from(page / 64) {
                visit(index, mask);
            }
            page += here;
        }
    }
}

/// One bit for each page of a layout, set and read by extents.
#[derive(Debug)]
pub(super) struct PageBits {
    words: Vec<u64>,
}

impl PageBits {
    pub(super) fn new(layout: &Layout, value: bool) -> Self {
        let words = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        Self { words: vec![if value { u64::MAX } else { 0 }; words] }
    }

    pub(super) fn get(&self, page: FlatPage) -> bool {
        let word = usize::try_from(page.0 / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// The bits of one word.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Sets or clears the bit of one page.
    pub(super) fn set(&mut self, page: FlatPage, value: bool) {
        let word = usize::try_from(page.0 / 64).ok().and_then(|index| self.words.get_mut(index));
        if let Some(word) = word {
            let bit = 1 << (page.0 % 64);
            *word = if value { *word | bit } else { *word & !bit };
        }
    }

    /// Sets or clears all bits.
    pub(super) fn fill(&mut self, value: bool) {
        self.words.fill(if value { u64::MAX } else { 0 });
    }

    /// Sets or clears the bits of all pages of an extent; returns how many were set before.
    pub(super) fn assign(&mut self, layout: &Layout, extent: &Extent, value: bool) -> u64 {
        let mut before = 0;
        each_word(region_first(layout, extent.region()), extent, |index, bits| {
            if let Some(word) = self.words.get_mut(index) {
                before += u64::from((*word & bits).count_ones());
                *word = if value { *word | bits } else { *word & !bits };
            }
        });
        before
    }
}

/// The flat numbers of an extent's pages, in its order.
pub(super) fn flat_pages<'a>(layout: &Layout, extent: &'a Extent) -> impl Iterator<Item = FlatPage> + use<'a> {
    let first = region_first(layout, extent.region());
    extent.page_numbers().map(move |page| FlatPage(first + page))
}

fn region_first(layout: &Layout, region: RegionId) -> u32 {
    layout.region(region).map_or(0, |bounds| bounds.first)
}

fn word_page(index: usize) -> u32 {
    u32::try_from(index * 64).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Next(usize),
        Mark(u32, u32),
        Ack(usize),
        Bury(usize),
        Hold(u64),
        Written(u32, u32),
        LetGo(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1_usize..=256).prop_map(Step::Next),
            1 => (0_u32..700, 1_u32..90).prop_map(|(first, count)| Step::Mark(first, count)),
            2 => any::<usize>().prop_map(Step::Ack),
            1 => any::<usize>().prop_map(Step::Bury),
            1 => any::<u64>().prop_map(Step::Hold),
            1 => (0_u32..700, 1_u32..90).prop_map(|(first, count)| Step::Written(first, count)),
            1 => (0_u64..100).prop_map(Step::LetGo),
        ]
    }

    proptest! {
        // spec: D-1
        #[test]
        fn a_page_is_in_flight_once_and_never_lost(steps in proptest::collection::vec(step(), 0..80)) {
            let layout = Layout::new(&[4096 * 300, 4096 * 70]).unwrap();
            let mut set = DirtySet::all(&layout);
            let mut dirty: std::collections::BTreeSet<u32> = DirtyMap::all(&layout).pages().map(|page| page.0).collect();
            let mut held: std::collections::BTreeSet<u32> = std::collections::BTreeSet::new();
            let mut flying: Vec<Extent> = Vec::new();
            for step in steps {
                match step {
                    Step::Next(max) => match set.next_extent(max) {
                        Some(extent) => {
                            prop_assert!(extent.pages() <= max && extent.check(&layout).is_ok());
                            for page in flat_pages(&layout, &extent) {
                                prop_assert!(dirty.remove(&page.0), "sent a clean page");
                                prop_assert!(!held.contains(&page.0), "sent a page that is held");
                                let twice = flying.iter().any(|other| flat_pages(&layout, other).any(|p| p == page));
                                prop_assert!(!twice, "two versions in flight");
                            }
                            flying.push(extent);
                        }
                        None => {
                            let free = dirty.difference(&held).any(|&page| !set.in_flight(FlatPage(page)));
                            prop_assert!(!free, "a sendable page was passed over");
                        }
                    },
                    Step::Mark(first, count) => {
                        let mut map = DirtyMap::new(&layout);
                        map.mark(RegionId(0), first, count);
                        dirty.extend(map.pages().map(|page| page.0));
                        set.mark(&map);
                    }
                    Step::Ack(which) if !flying.is_empty() => set.release(&flying.remove(which % flying.len())),
                    Step::Bury(which) if !flying.is_empty() => {
                        let extent = flying.remove(which % flying.len());
                        dirty.extend(flat_pages(&layout, &extent).map(|page| page.0));
                        set.requeue(&extent);
                    }
                    Step::Ack(_) | Step::Bury(_) => {}
                    Step::Hold(which) => {
                        set.hold(|_| which);
                        let free = |page: &&u32| which >> (**page % 64) & 1 == 1 && !set.in_flight(FlatPage(**page));
                        held.extend(dirty.iter().filter(free));
                    }
                    Step::Written(first, count) => {
                        let mut map = DirtyMap::new(&layout);
                        map.mark(RegionId(0), first, count);
                        held.extend(map.pages().map(|page| page.0).filter(|page| !dirty.contains(page)));
                        dirty.extend(map.pages().map(|page| page.0));
                        set.hold_written(&map);
                    }
                    Step::LetGo(count) => {
                        let gone = set.let_go(count);
                        let gone = usize::try_from(gone).unwrap();
                        prop_assert!(gone == held.len() || u64::try_from(gone).unwrap() >= count);
                        held = held.into_iter().skip(gone).collect();
                    }
                }
                prop_assert_eq!(set.held(), u64::try_from(held.len()).unwrap());
                prop_assert_eq!(set.pages(), u64::try_from(dirty.len()).unwrap());
                let free = dirty.difference(&held).filter(|&&page| !set.in_flight(FlatPage(page))).count();
                prop_assert_eq!(set.sendable(), u64::try_from(free).unwrap());
            }
        }
    }

    #[test]
    fn scattered_pages_are_packed_in_rising_order() {
        let layout = Layout::new(&[4096 * 1000]).unwrap();
        let mut set = DirtySet::all(&layout);
        while set.next_extent(256).is_some_and(|extent| {
            set.release(&extent);
            true
        }) {}
        let mut map = DirtyMap::new(&layout);
        for page in [3, 4, 70, 500, 999] {
            map.mark(RegionId(0), page, 1);
        }
        set.mark(&map);
        let extent = set.next_extent(256).unwrap();
        assert_eq!(extent.page_numbers().collect::<Vec<_>>(), [3, 4, 70, 500, 999]);
        assert_eq!(extent.runs().len(), 4);
        assert!(set.next_extent(256).is_none());
    }
}
