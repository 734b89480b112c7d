//! Digests of pages, and the root over all of them.
//!
//! ```text
//!   root     keyed(ROOT_KEY, region 0: id, bytes, top | region 1: id, bytes, top | ...)
//!   top      the last node of a region's tree
//!   node     keyed(NODE_KEY, up to 64 digests of the level below)
//!   leaf     BLAKE3(page)                                  32 bytes a page, at both ends
//! ```
//!
//! The root is kept up as pages change: [`Tree::root`] hashes only the nodes above leaves that were
//! set since the last call, so that comparing roots at switch-over costs milliseconds. spec: I-3

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::extent::{Extent, FlatPage, Layout, PAGE_BYTES};
use crate::wire::{Digest, FenceEpoch};

const FAN_OUT: usize = 64;
const FAN_OUT_U32: u32 = 64;
const LEAF_WORDS: usize = 4;
/// What is looked at, and hashed, ahead of time at once: 2^20 pages, and 64 groups of 64 or a few more.
const AHEAD_WORDS: usize = 256;
const AHEAD_GROUPS: usize = 64;

/// Domain of inner nodes: a node can never be taken for a leaf or a root.
const NODE_KEY: [u8; 32] = *b"dwcp/3 tree node, 64 digests\0\0\0\0";
/// Domain of the root.
const ROOT_KEY: [u8; 32] = *b"dwcp/3 root over all regions\0\0\0\0";
/// Domain of an extent's digest.
const EXTENT_KEY: [u8; 32] = *b"dwcp/3 extent, place + leaves\0\0\0";

/// Digest of one page's plain bytes. spec: I-1
pub fn leaf(page: &[u8]) -> Digest {
    Digest(*blake3::hash(page).as_bytes())
}

/// The leaf of a page of zeros, which the sink holds everywhere at the start.
pub fn zero_leaf() -> Digest {
    static ZERO: OnceLock<Digest> = OnceLock::new();
    *ZERO.get_or_init(|| leaf(&[0; PAGE_BYTES]))
}

/// Digest of an extent: where it belongs and what its pages are, never how they were encoded.
/// spec: I-2
pub fn extent_digest(epoch: FenceEpoch, extent: &Extent, leaves: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new_keyed(&EXTENT_KEY);
    let mut place = Vec::with_capacity(10 + extent.runs().len() * 6 + leaves.len() * 32);
    place.extend_from_slice(&epoch.0.to_le_bytes());
    place.extend_from_slice(&extent.region().0.to_le_bytes());
    for run in extent.runs() {
        place.extend_from_slice(&run.start.to_le_bytes());
        place.extend_from_slice(&run.count.to_le_bytes());
    }
    for leaf in leaves {
        place.extend_from_slice(&leaf.0);
    }
    hasher.update(&place);
    Digest(*hasher.finalize().as_bytes())
}

/// The leaf of every page of a layout. Shared by the workers of all lanes: a page has at most one
/// version in flight, so no two of them touch the same leaf.
///
/// Memory: 32 bytes for each page, in groups of 64 that come into being with the first page of the
/// group that is not zero, and 40 bytes for each 65,536 pages that a peer has only offered.
#[derive(Debug)]
pub struct Leaves {
    groups: usize,
    stretches: Box<[OnceLock<Stretch>]>,
}

/// Groups of 65,536 pages, or of what is left at the end.
#[derive(Debug)]
struct Stretch {
    groups: Box<[OnceLock<Box<Group>>]>,
    /// One bit for each group set since the last root.
    touched: Box<[AtomicU64]>,
}

const STRETCH_GROUPS: usize = 1024;
const STRETCH_WORDS: usize = STRETCH_GROUPS / 64;
const STRETCH_PAGES: u32 = 65_536;

type Group = [AtomicU64; FAN_OUT * LEAF_WORDS];

impl Stretch {
    fn new(groups: usize) -> Self {
        Self {
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
            touched: (0..groups.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn touch(&self, group: usize) {
        if let Some(touched) = self.touched.get(group / 64) {
            // Release pairs with the swap in `take_word`: who sees the bit sees the leaf.
            touched.fetch_or(1 << (group % 64), Ordering::Release);
        }
    }
}

impl Leaves {
    /// All pages are zero.
    pub fn new(layout: &Layout) -> Self {
        let groups = usize::try_from(layout.flat_pages() / FAN_OUT_U32).unwrap_or(usize::MAX);
        let stretches = (0..groups.div_ceil(STRETCH_GROUPS)).map(|_| OnceLock::new()).collect();
        Self { groups, stretches }
    }

    fn group(&self, index: usize) -> Option<&Group> {
        let stretch = self.stretches.get(index / STRETCH_GROUPS)?.get()?;
        stretch.groups.get(index % STRETCH_GROUPS)?.get().map(AsRef::as_ref)
    }

    /// A stretch that is about to be needed.
    fn stretch(&self, index: usize) -> Option<&Stretch> {
        let here = || self.groups.saturating_sub(index * STRETCH_GROUPS).min(STRETCH_GROUPS);
        Some(self.stretches.get(index)?.get_or_init(|| Stretch::new(here())))
    }

    /// Those that came into being, with their numbers.
    fn stretches(&self) -> impl Iterator<Item = (usize, &Stretch)> {
        self.stretches.iter().enumerate().filter_map(|(index, stretch)| Some((index, stretch.get()?)))
    }

    /// The first page of the next group: of the next stretch where there is none.
    fn after(&self, page: u32) -> u32 {
        let (group, _) = place(FlatPage(page));
        let none = self.stretches.get(group / STRETCH_GROUPS).is_none_or(|stretch| stretch.get().is_none());
        let pages = if none { STRETCH_PAGES } else { FAN_OUT_U32 };
        (page / pages + 1) * pages
    }

    /// From which page on all are known to be zeros, rounded up to a group.
    #[cfg(feature = "baseline")]
    pub(crate) fn end(&self) -> u32 {
        let last = self.stretches().last().and_then(|(index, stretch)| {
            let group = stretch.groups.iter().rposition(|group| group.get().is_some())?;
            u32::try_from(index * STRETCH_GROUPS + group + 1).ok()
        });
        last.map_or(0, |groups| groups * FAN_OUT_U32)
    }

    /// The leaf of a page.
    pub fn get(&self, page: FlatPage) -> Digest {
        let (group, place) = place(page);
        let Some(words) = self.group(group) else { return zero_leaf() };
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(8).zip(words.iter().skip(place)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Digest(digest)
    }

    /// Sets the leaf of a page.
    pub fn set(&self, page: FlatPage, leaf: Digest) {
        let (group, place) = place(page);
        if self.group(group).is_none() && leaf == zero_leaf() {
            return;
        }
        let Some(stretch) = self.stretch(group / STRETCH_GROUPS) else { return };
        let Some(cell) = stretch.groups.get(group % STRETCH_GROUPS) else { return };
        let words = cell.get_or_init(zero_group);
        for (bytes, word) in leaf.0.chunks_exact(8).zip(words.iter().skip(place)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        stretch.touch(group % STRETCH_GROUPS);
    }

    /// All pages are zero again. Nothing else may set a leaf meanwhile.
    pub fn clear(&self) {
        let zero = zero_group();
        for (_, stretch) in self.stretches() {
            for (index, group) in stretch.groups.iter().enumerate() {
                let Some(words) = group.get() else { continue };
                for (word, zero) in words.iter().zip(zero.iter()) {
                    word.store(zero.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                stretch.touch(index);
            }
        }
    }

    /// The first run of pages in a range that are not known to be zeros, at most so many.
    pub fn known_within(&self, pages: Range<u32>, most: u32) -> Option<Range<u32>> {
        let mut at = pages.start;
        while at < pages.end {
            let (group, _) = place(FlatPage(at));
            if self.group(group).is_some() {
                let end = pages.end.min(at.saturating_add(most));
                let known = (at..end).take_while(|page| self.get(FlatPage(*page)) != zero_leaf());
                if let Some(last) = known.last() {
                    return Some(at..last + 1);
                }
                at += 1;
            } else {
                at = self.after(at);
            }
        }
        None
    }

    /// As [`known_within`](Self::known_within), with their leaves.
    pub fn run_within(&self, pages: Range<u32>, most: usize) -> Option<(FlatPage, Vec<Digest>)> {
        let known = self.known_within(pages, u32::try_from(most).unwrap_or(u32::MAX))?;
        Some((FlatPage(known.start), known.map(|page| self.get(FlatPage(page))).collect()))
    }

    /// Pages that are not known to be anything but zeros are those of a baseline from now on. Nothing else may set a leaf
    /// meanwhile. A page takes about 5 ns. spec: O-9
    pub fn assume(&self, baseline: &Self) {
        let zero = zero_group();
        for (index, theirs) in baseline.stretches() {
            let Some(stretch) = self.stretch(index) else { continue };
            for (index, (cell, theirs)) in stretch.groups.iter().zip(&theirs.groups).enumerate() {
                let Some(theirs) = theirs.get() else { continue };
                let words = cell.get_or_init(zero_group);
                let pages = words.chunks_exact(LEAF_WORDS).zip(zero.chunks_exact(LEAF_WORDS));
                for ((page, zero), theirs) in pages.zip(theirs.chunks_exact(LEAF_WORDS)) {
                    if equal(page, zero) {
                        for (word, value) in page.iter().zip(theirs) {
                            word.store(value.load(Ordering::Relaxed), Ordering::Relaxed);
                        }
                    }
                }
                stretch.touch(index);
            }
        }
    }

    /// The first run of pages in a range that are worth telling, and their leaves, at most so many: pages that are neither
    /// zeros nor what a baseline has there. Up to `gap` others may lie between two of them; their leaf is that of zeros,
    /// which tells nothing. spec: R-1, O-9
    pub fn run_to_tell(
        &self,
        baseline: Option<&Self>,
        pages: Range<u32>,
        most: usize,
        gap: usize,
    ) -> Option<(FlatPage, Vec<Digest>)> {
        let news = |page| {
            let leaf = self.get(FlatPage(page));
            let known = leaf == zero_leaf() || baseline.is_some_and(|baseline| baseline.get(FlatPage(page)) == leaf);
            Some(leaf).filter(|_| !known)
        };
        let mut first = pages.start;
        while first < pages.end && news(first).is_none() {
            let (group, _) = place(FlatPage(first));
            let theirs = baseline.and_then(|baseline| baseline.group(group));
            first = match self.group(group) {
                Some(ours) if theirs.is_none_or(|theirs| !equal(&ours[..], &theirs[..])) => first + 1,
                _ => self.after(first),
            };
        }
        let (mut leaves, mut told) = (Vec::new(), 0);
        for page in (first..pages.end).take(most) {
            let leaf = news(page);
            if leaf.is_none() && leaves.len() - told == gap {
                break;
            }
            leaves.push(leaf.unwrap_or_else(zero_leaf));
            told = if leaf.is_some() { leaves.len() } else { told };
        }
        leaves.truncate(told);
        Some((FlatPage(first), leaves)).filter(|(_, leaves)| !leaves.is_empty())
    }

    /// Groups set since the last call, rising.
    fn take_touched(&self) -> Vec<usize> {
        let mut groups = Vec::new();
        for (index, stretch) in self.stretches() {
            (0..stretch.touched.len()).for_each(|word| self.take_word(index * STRETCH_WORDS + word, &mut groups));
        }
        groups
    }

    /// Some of them, rising: those of the next words of 64 groups from `from` on, until there are a few or the end is reached.
    /// Where to go on.
    fn take_some_touched(&self, from: usize, groups: &mut Vec<usize>) -> usize {
        let words = self.stretches.len() * STRETCH_WORDS;
        let end = words.min(from + AHEAD_WORDS);
        for word in from..end {
            self.take_word(word, groups);
            if groups.len() >= AHEAD_GROUPS {
                return word + 1;
            }
        }
        if end == words { 0 } else { end }
    }

    fn take_word(&self, index: usize, groups: &mut Vec<usize>) {
        let stretch = self.stretches.get(index / STRETCH_WORDS).and_then(OnceLock::get);
        let word = stretch.and_then(|stretch| stretch.touched.get(index % STRETCH_WORDS));
        let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) != 0) else { return };
        let mut bits = word.swap(0, Ordering::Acquire);
        while bits != 0 {
            groups.push(index * 64 + usize::try_from(bits.trailing_zeros()).unwrap_or(0));
            bits &= bits - 1;
        }
    }
}

fn equal(ours: &[AtomicU64], theirs: &[AtomicU64]) -> bool {
    let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
    ours.iter().map(word).eq(theirs.iter().map(word))
}

fn place(page: FlatPage) -> (usize, usize) {
    let page = usize::try_from(page.0).unwrap_or(usize::MAX);
    (page / FAN_OUT, page % FAN_OUT * LEAF_WORDS)
}

fn zero_group() -> Box<Group> {
    let zero = zero_leaf();
    let mut words = [0; LEAF_WORDS];
    for (word, bytes) in words.iter_mut().zip(zero.0.chunks_exact(8)) {
        let mut value = [0; 8];
        value.copy_from_slice(bytes);
        *word = u64::from_le_bytes(value);
    }
    let mut place = words.iter().cycle();
    Box::new(std::array::from_fn(|_| AtomicU64::new(place.next().copied().unwrap_or(0))))
}

/// The inner nodes above [`Leaves`], owned by whoever asks for roots.
#[derive(Debug)]
pub struct Tree {
    layout: Layout,
    regions: Vec<RegionTree>,
    /// Where [`keep_up`](Self::keep_up) goes on.
    ahead: usize,
}

#[derive(Debug)]
struct RegionTree {
    first_group: usize,
    pages: u32,
    /// From the nodes over leaves up to the single top. The memory is 32 bytes for 64 pages, where a page was set.
    levels: Vec<Level>,
}

/// The nodes of one height, in parts that come into being when a node of theirs is set.
#[derive(Debug)]
struct Level {
    width: usize,
    /// A node over zeros only, and the last one, which may have fewer below it.
    full: Digest,
    last: Digest,
    parts: Vec<Option<Box<[Digest]>>>,
}

/// Nodes of a part: 32 KiB.
const PART: usize = 1024;

impl Level {
    fn zero(width: usize, full: Digest, last: Digest) -> Self {
        Self { width, full, last, parts: vec![None; width.div_ceil(PART)] }
    }

    fn get(&self, index: usize) -> Digest {
        let part = self.parts.get(index / PART).and_then(Option::as_deref);
        let set = part.and_then(|part| part.get(index % PART)).copied();
        set.unwrap_or(if index + 1 == self.width { self.last } else { self.full })
    }

    fn set(&mut self, index: usize, node: Digest) {
        let from = index / PART * PART;
        let here = from..self.width.min(from + PART);
        if !here.contains(&index) {
            return;
        }
        let zero = |index| if index + 1 == self.width { self.last } else { self.full };
        let Some(part) = self.parts.get_mut(index / PART) else { return };
        let part = part.get_or_insert_with(|| here.map(zero).collect());
        if let Some(place) = part.get_mut(index % PART) {
            *place = node;
        }
    }

    /// The nodes below one of the next level, of which one was set.
    fn below(&self, parent: usize) -> Option<&[Digest]> {
        let first = parent * FAN_OUT;
        self.parts.get(first / PART)?.as_deref()?.chunks(FAN_OUT).nth(first % PART / FAN_OUT)
    }

    fn nodes(&self) -> impl Iterator<Item = Digest> {
        (0..self.width).map(|index| self.get(index))
    }
}

impl Tree {
    /// The tree of all zeros.
    pub fn new(layout: &Layout) -> Self {
        let regions = layout.regions().map(|(_, region)| RegionTree::zero(region.first, region.pages)).collect();
        Self { layout: layout.clone(), regions, ahead: 0 }
    }

    /// Hashes some of what was set, so that [`root`](Self::root) has little left to do: some tens of microseconds at most. What is
    /// set meanwhile is hashed again.
    pub fn keep_up(&mut self, leaves: &Leaves) {
        let mut touched = Vec::new();
        self.ahead = leaves.take_some_touched(self.ahead, &mut touched);
        self.rehash(leaves, &touched);
    }

    /// The root over all leaves as they are now. No leaf may be set meanwhile.
    pub fn root(&mut self, leaves: &Leaves) -> Digest {
        self.update(leaves);
        let mut bytes = Vec::new();
        for ((id, region), tree) in self.layout.regions().zip(&self.regions) {
            bytes.extend_from_slice(&id.0.to_le_bytes());
            bytes.extend_from_slice(&region.bytes.to_le_bytes());
            bytes.extend_from_slice(&tree.top().0);
        }
        Digest(*blake3::keyed_hash(&ROOT_KEY, &bytes).as_bytes())
    }

    /// The lowest level of the tree that has at most so many nodes, or its top, region by region: each node's digest,
    /// and the pages below it. spec: V-4
    pub fn nodes(&mut self, leaves: &Leaves, most: usize) -> Vec<(Range<u32>, Digest)> {
        self.update(leaves);
        let levels = self.regions.iter().map(|region| region.levels.len()).max().unwrap_or(0);
        let width = |level| {
            self.regions.iter().map(|region| region.level(level).1.map_or(0, |level| level.width)).sum::<usize>()
        };
        let level = (0..levels).find(|&level| width(level) <= most).unwrap_or(levels);
        let mut nodes = Vec::new();
        for ((_, region), tree) in self.layout.regions().zip(&self.regions) {
            let (height, level) = tree.level(level);
            let span = u32::try_from(height).ok().and_then(|height| FAN_OUT_U32.checked_pow(height + 1));
            let span = span.unwrap_or(u32::MAX);
            let mut from = 0_u32;
            for digest in level.into_iter().flat_map(Level::nodes) {
                let to = from.saturating_add(span).min(region.pages);
                nodes.push((region.first + from..region.first + to, digest));
                from = to;
            }
        }
        nodes
    }

    fn update(&mut self, leaves: &Leaves) {
        self.rehash(leaves, &leaves.take_touched());
    }

    fn rehash(&mut self, leaves: &Leaves, touched: &[usize]) {
        for region in &mut self.regions {
            let end = region.first_group + region.levels.first().map_or(0, |level| level.width);
            let from = touched.partition_point(|&group| group < region.first_group);
            let to = touched.partition_point(|&group| group < end);
            region.update(leaves, touched.get(from..to).unwrap_or_default());
        }
    }
}

impl RegionTree {
    fn zero(first: u32, pages: u32) -> Self {
        let mut levels = Vec::new();
        let mut full = zero_leaf();
        let mut last = zero_leaf();
        let mut width = usize::try_from(pages).unwrap_or(usize::MAX);
        loop {
            let above = width.div_ceil(FAN_OUT);
            let in_last = width - (above - 1) * FAN_OUT;
            let mut children = vec![full; in_last - 1];
            children.push(last);
            last = node(&children);
            full = node(&vec![full; FAN_OUT]);
            levels.push(Level::zero(above, full, last));
            width = above;
            if width == 1 {
                break;
            }
        }
        let first_group = usize::try_from(first / FAN_OUT_U32).unwrap_or(usize::MAX);
        Self { first_group, pages, levels }
    }

    fn update(&mut self, leaves: &Leaves, touched: &[usize]) {
        let mut changed: Vec<usize> = Vec::with_capacity(touched.len());
        for &group in touched {
            let index = group - self.first_group;
            let digest = self.over_leaves(leaves, index);
            if let Some(level) = self.levels.first_mut() {
                level.set(index, digest);
            }
            changed.push(index);
        }
        for below in 0..self.levels.len().saturating_sub(1) {
            for index in &mut changed {
                *index /= FAN_OUT;
            }
            changed.dedup();
            for &index in &changed {
                let children = self.levels.get(below).and_then(|level| level.below(index));
                let Some(digest) = children.map(node) else { continue };
                if let Some(level) = self.levels.get_mut(below + 1) {
                    level.set(index, digest);
                }
            }
        }
    }

    fn over_leaves(&self, leaves: &Leaves, index: usize) -> Digest {
        let from = index * FAN_OUT;
        let to = (from + FAN_OUT).min(usize::try_from(self.pages).unwrap_or(usize::MAX));
        let base = self.first_group * FAN_OUT;
        let children: Vec<Digest> =
            (from..to).map(|page| leaves.get(FlatPage(u32::try_from(base + page).unwrap_or(u32::MAX)))).collect();
        node(&children)
    }

    /// A level, or the top of a tree that is lower, and how high it is.
    fn level(&self, level: usize) -> (usize, Option<&Level>) {
        let height = level.min(self.levels.len().saturating_sub(1));
        (height, self.levels.get(height))
    }

    fn top(&self) -> Digest {
        self.levels.last().map_or_else(zero_leaf, |level| level.get(0))
    }
}

fn node(children: &[Digest]) -> Digest {
    let mut bytes = [0; FAN_OUT * 32];
    for (place, child) in bytes.chunks_exact_mut(32).zip(children) {
        place.copy_from_slice(&child.0);
    }
    let used = bytes.get(..children.len() * 32).unwrap_or(&bytes);
    Digest(*blake3::keyed_hash(&NODE_KEY, used).as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::extent::RegionId;

    /// The definition, written down without any state.
    fn slow_root(layout: &Layout, leaves: &Leaves) -> Digest {
        let mut bytes = Vec::new();
        for (id, region) in layout.regions() {
            let mut level: Vec<Digest> =
                (0..region.pages).map(|page| leaves.get(FlatPage(region.first + page))).collect();
            loop {
                level = level.chunks(FAN_OUT).map(node).collect();
                if level.len() == 1 {
                    break;
                }
            }
            bytes.extend_from_slice(&id.0.to_le_bytes());
            bytes.extend_from_slice(&region.bytes.to_le_bytes());
            bytes.extend_from_slice(&level[0].0);
        }
        Digest(*blake3::keyed_hash(&ROOT_KEY, &bytes).as_bytes())
    }

    // spec: I-3
    #[test]
    fn what_was_hashed_ahead_is_not_hashed_again_unless_it_was_set_again() {
        // More words of groups than are looked at at once, and a second region.
        let layout = Layout::new(&[4096 * ((1 << 20) + 70_000), 4096 * 3000]).unwrap();
        let (leaves, mut tree) = (Leaves::new(&layout), Tree::new(&layout));
        let second = (1 << 20) + 70_016;
        let mut state = 7_u64;
        let mut page = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = u32::try_from(state >> 44).unwrap();
            if at.is_multiple_of(5) { second + at % 3000 } else { at }
        };
        for round in 0..300_u32 {
            for _ in 0..4 {
                let page = page();
                leaves.set(FlatPage(page), leaf(&(page ^ round).to_le_bytes()));
            }
            tree.keep_up(&leaves);
        }
        let behind = leaves.take_touched();
        assert!(behind.len() < 16, "{} groups of 1,200 pages are left", behind.len());
        tree.rehash(&leaves, &behind);
        assert_eq!(tree.root(&leaves), slow_root(&layout, &leaves));
    }

    // spec: O-9
    #[test]
    fn what_is_not_held_is_the_baselines_and_only_what_is_held_otherwise_is_told() {
        let layout = Layout::new(&[4096 * 200]).unwrap();
        let (held, baseline) = (Leaves::new(&layout), Leaves::new(&layout));
        let of = |byte: u8| leaf(&[byte; 8]);
        (3..150).for_each(|page| baseline.set(FlatPage(page), of(1)));
        // Zeros are no news, the same is no news, another page is, and so is one that the baseline has not.
        for (page, leaf) in [(4, zero_leaf()), (5, of(1)), (6, of(2)), (7, of(2)), (70, of(3)), (180, of(4))] {
            held.set(FlatPage(page), leaf);
        }
        let mut tree = Tree::new(&layout);
        let _ = tree.root(&held);
        held.assume(&baseline);
        let expected = |page| match page {
            6 | 7 => of(2),
            70 => of(3),
            180 => of(4),
            3..150 => of(1),
            _ => zero_leaf(),
        };
        (0..200).for_each(|page| assert_eq!(held.get(FlatPage(page)), expected(page), "{page}"));
        assert_eq!(tree.root(&held), slow_root(&layout, &held), "the tree follows");
        let told = |from| held.run_to_tell(Some(&baseline), from..200, 9, 0);
        assert_eq!(told(0), Some((FlatPage(6), vec![of(2); 2])));
        assert_eq!(held.run_to_tell(Some(&baseline), 0..200, 1, 0), Some((FlatPage(6), vec![of(2)])));
        assert_eq!(told(8), Some((FlatPage(70), vec![of(3)])));
        assert_eq!(told(71), Some((FlatPage(180), vec![of(4)])));
        assert_eq!(told(181), None);
        assert_eq!(baseline.run_to_tell(Some(&baseline), 0..200, 9, 64), None);
        assert_eq!(Leaves::new(&layout).run_to_tell(Some(&baseline), 0..200, 9, 64), None, "zeros are never told");
    }

    // spec: R-1
    #[test]
    fn short_gaps_between_what_is_told_are_told_as_zeros() {
        let layout = Layout::new(&[4096 * 300]).unwrap();
        let (held, baseline) = (Leaves::new(&layout), Leaves::new(&layout));
        let [ours, theirs] = [1, 2].map(|byte| leaf(&[byte; 8]));
        for page in [10, 13, 14, 19, 200, 299] {
            held.set(FlatPage(page), ours);
        }
        (11..13).for_each(|page| baseline.set(FlatPage(page), theirs));
        held.assume(&baseline);
        let zero = zero_leaf();
        let told = |from, most, gap| held.run_to_tell(Some(&baseline), from..300, most, gap);
        assert_eq!(told(0, 64, 3), Some((FlatPage(10), vec![ours, zero, zero, ours, ours])), "four is too far");
        assert_eq!(told(15, 64, 4), Some((FlatPage(19), vec![ours])), "none at the ends");
        assert_eq!(told(0, 4, 64), Some((FlatPage(10), vec![ours, zero, zero, ours])));
        assert_eq!(told(0, 3, 64), Some((FlatPage(10), vec![ours])), "nor where it is cut");
        assert_eq!(told(0, 2048, 2047).map(|(first, leaves)| (first, leaves.len())), Some((FlatPage(10), 290)));
    }

    proptest! {
        // spec: I-3
        #[test]
        fn the_kept_root_is_the_root_from_scratch(
            sizes in proptest::collection::vec(1_u64..40_000_000, 1..4),
            writes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..60),
        ) {
            let layout = Layout::new(&sizes).unwrap();
            let leaves = Leaves::new(&layout);
            let mut tree = Tree::new(&layout);
            prop_assert_eq!(tree.root(&leaves), slow_root(&layout, &leaves));
            for (index, (at, byte)) in writes.iter().enumerate() {
                let flat = FlatPage(u32::try_from(at.index(usize::try_from(layout.flat_pages()).unwrap())).unwrap());
                if layout.locate(flat).is_some() {
                    let page = if *byte == 0 { zero_leaf() } else { leaf(&[*byte; 8]) };
                    leaves.set(flat, page);
                    prop_assert_eq!(leaves.get(flat), page);
                }
                if index % 7 == 0 {
                    prop_assert_eq!(tree.root(&leaves), slow_root(&layout, &leaves));
                }
            }
            prop_assert_eq!(tree.root(&leaves), slow_root(&layout, &leaves));
        }
    }

    // spec: H-11
    #[test]
    fn what_is_only_offered_takes_no_memory() {
        let pages = u32::try_from(crate::extent::MAX_PAGES).unwrap() - 128;
        let layout = Layout::new(&[4096 * u64::from(pages), 4096 * 65]).unwrap();
        let (leaves, mut tree) = (Leaves::new(&layout), Tree::new(&layout));
        let parts = |tree: &Tree| {
            let levels = tree.regions.iter().flat_map(|region| &region.levels);
            levels.flat_map(|level| &level.parts).filter(|part| part.is_some()).count()
        };
        let empty = tree.root(&leaves);
        let all = 0..pages;
        leaves.set(FlatPage(pages - 1), zero_leaf());
        assert_eq!(leaves.run_within(all.clone(), 9), None);
        assert_eq!(leaves.run_to_tell(Some(&leaves), all.clone(), 9, 9), None);
        assert_eq!((leaves.stretches().count(), parts(&tree)), (0, 0));
        leaves.set(FlatPage(pages - 1), leaf(&[1; 8]));
        assert_ne!(tree.root(&leaves), empty);
        assert_eq!(leaves.run_within(all, 9), Some((FlatPage(pages - 1), vec![leaf(&[1; 8])])));
        // One part of each of its five levels, of 32 KiB or of what there is.
        assert_eq!((leaves.stretches().count(), parts(&tree)), (1, 5));
        leaves.clear();
        assert_eq!(tree.root(&leaves), empty);
    }

    // spec: V-4
    #[test]
    fn nodes_cover_each_page_once_and_tell_where_a_leaf_differs() {
        let layout = Layout::new(&[4096 * 64 * 70, 4096, 4096 * 200]).unwrap();
        for most in [10_000, 75, 74, 3, 1] {
            let (mut one, mut other) = (Tree::new(&layout), Tree::new(&layout));
            let (leaves, same) = (Leaves::new(&layout), Leaves::new(&layout));
            let differs = FlatPage(64 * 33 + 5);
            leaves.set(differs, leaf(&[1; 8]));
            let (nodes, others) = (one.nodes(&leaves, most), other.nodes(&same, most));
            let expected = match most {
                75.. => 75,
                4..75 => 4,
                _ => 3,
            };
            assert_eq!(nodes.len(), expected, "at most {most}, or the tops");
            let pages: usize = nodes.iter().map(|(pages, _)| pages.len()).sum();
            assert_eq!(pages, 64 * 70 + 1 + 200);
            for (node, other) in nodes.iter().zip(&others) {
                assert_eq!(node.0, other.0);
                assert_eq!(node.1 != other.1, node.0.contains(&differs.0), "{:?}", node.0);
            }
            leaves.clear();
            assert_eq!(one.root(&leaves), Tree::new(&layout).root(&same), "cleared");
        }
    }

    #[test]
    fn the_root_tells_layouts_apart() {
        let root = |sizes: &[u64]| {
            let layout = Layout::new(sizes).unwrap();
            Tree::new(&layout).root(&Leaves::new(&layout))
        };
        assert_ne!(root(&[8192]), root(&[4096, 4096]));
        assert_ne!(root(&[4096]), root(&[4095]));
    }

    // spec: I-2
    #[test]
    fn an_extents_digest_covers_its_place() {
        let run = |start, count| crate::extent::Run { start, count };
        let digest = |epoch, region, runs: Vec<crate::extent::Run>| {
            let extent = Extent::new(RegionId(region), runs).unwrap();
            extent_digest(FenceEpoch(epoch), &extent, &[zero_leaf(); 2])
        };
        let all = [
            digest(1, 0, vec![run(0, 2)]),
            digest(2, 0, vec![run(0, 2)]),
            digest(1, 1, vec![run(0, 2)]),
            digest(1, 0, vec![run(1, 2)]),
            digest(1, 0, vec![run(0, 1), run(2, 1)]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one));
        }
    }
}
