//! Which parts of an image are read.

use std::ops::Range;

use crate::extent::{Extent, FlatPage, Layout, Run};
use crate::guest::DirtyMap;

/// Pages that are read side by side: 1 MiB, the largest extent. Neighbours are alike, so many small chunks tell more than a few
/// large ones.
const CHUNK_PAGES: u32 = 256;
/// Fewer chunks say nothing.
const LEAST: u64 = 8;

/// Which pages are read: what is no hole is cut into parts of as many chunks each, and one chunk of each part stands for it.
#[derive(Debug)]
pub(super) struct Sample {
    zeros: Option<DirtyMap>,
    /// The part in which a chunk lies, by chunk; empty: all pages are read.
    parts: Vec<u32>,
    /// The chunk that is read, by part.
    chunks: Vec<u32>,
}

impl Sample {
    /// Chunks of `bytes` in all, evenly spread over what is not known to be zeros.
    pub(super) fn new(layout: &Layout, bytes: Option<u64>, zeros: Option<DirtyMap>) -> Self {
        let mut sample = Self { zeros, parts: Vec::new(), chunks: Vec::new() };
        let Some(bytes) = bytes else { return sample };
        let with_data: Vec<bool> =
            (0..layout.flat_pages().div_ceil(CHUNK_PAGES)).map(|chunk| sample.has_data(layout, chunk)).collect();
        let data = u64::try_from(with_data.iter().filter(|data| **data).count()).unwrap_or(u64::MAX);
        let wanted = (bytes / (4096 * u64::from(CHUNK_PAGES))).max(LEAST);
        if wanted >= data {
            return sample;
        }
        let mut picks = (0..wanted).map(|part| pick(part, part * data / wanted..(part + 1) * data / wanted)).peekable();
        let mut place = 0;
        for (chunk, has_data) in (0..).zip(with_data) {
            // Part n begins at place n * data / wanted.
            sample.parts.push(u32::try_from(((place + 1) * wanted - 1) / data).unwrap_or(u32::MAX));
            if has_data {
                if picks.next_if_eq(&place).is_some() {
                    sample.chunks.push(chunk);
                }
                place += 1;
            }
        }
        sample
    }

    fn has_data(&self, layout: &Layout, chunk: u32) -> bool {
        layout.regions().any(|(_, region)| {
            let mut pages = within(chunk, region.first, region.pages);
            pages.any(|page| !self.is_zero(FlatPage(page)))
        })
    }

    /// The part in which a page lies. `None`: all pages are read.
    pub(super) fn part_of(&self, page: FlatPage) -> Option<u32> {
        self.parts.get(usize::try_from(page.0 / CHUNK_PAGES).ok()?).copied()
    }

    /// What is read of a part, without what is known to be zeros, in extents of so many pages at most.
    pub(super) fn extents(&self, layout: &Layout, part: u32, most: u32) -> Vec<Extent> {
        let chunk = usize::try_from(part).ok().and_then(|part| self.chunks.get(part));
        let Some(&chunk) = chunk else { return Vec::new() };
        let mut extents = Vec::new();
        for (id, region) in layout.regions() {
            let (mut runs, mut pages): (Vec<Run>, u32) = (Vec::new(), 0);
            let mut end = |runs: &mut Vec<Run>| extents.extend(Extent::new(id, std::mem::take(runs)).ok());
            for page in within(chunk, region.first, region.pages).filter(|page| !self.is_zero(FlatPage(*page))) {
                let page = page - region.first;
                match runs.last_mut().filter(|run| run.start + u32::from(run.count) == page) {
                    Some(run) => run.count += 1,
                    None => runs.push(Run { start: page, count: 1 }),
                }
                pages += 1;
                if pages.is_multiple_of(most) {
                    end(&mut runs);
                }
            }
            if !runs.is_empty() {
                end(&mut runs);
            }
        }
        extents
    }

    /// Pages of an extent that are not known to be zeros.
    pub(super) fn solid(&self, layout: &Layout, extent: &Extent) -> u64 {
        let first = layout.region(extent.region()).map_or(0, |region| region.first);
        let solid = extent.page_numbers().filter(|page| !self.is_zero(FlatPage(first + page))).count();
        u64::try_from(solid).unwrap_or(0)
    }

    pub(super) fn is_zero(&self, page: FlatPage) -> bool {
        self.zeros.as_ref().is_some_and(|zeros| zeros.contains(page))
    }
}

/// Pages of a chunk that belong to a region.
fn within(chunk: u32, first: u32, pages: u32) -> Range<u32> {
    first.max(chunk * CHUNK_PAGES)..(first + pages).min((chunk + 1) * CHUNK_PAGES)
}

/// One of the chunks of a part of the image: scattered, lest a pattern of the image be met at the same place each time, and
/// the same ones every time.
fn pick(part: u64, chunks: Range<u64>) -> u64 {
    let mixed = (part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
    chunks.start + mixed % (chunks.end - chunks.start).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::RegionId;

    #[test]
    fn a_sample_is_spread_over_what_is_no_hole_and_the_same_each_time() {
        let layout = Layout::new(&[4096 * 25_600]).unwrap();
        let mut zeros = DirtyMap::new(&layout);
        zeros.mark(RegionId(0), 0, 12_800);
        let sample = |bytes| Sample::new(&layout, Some(bytes), Some(zeros.clone()));
        let ten = sample(10 << 20);
        assert_eq!(ten.chunks, sample(10 << 20).chunks);
        for (part, chunk) in (0..10).zip(&ten.chunks) {
            assert!((50 + part * 5..55 + part * 5).contains(chunk), "one of each tenth: {ten:?}");
            let tenth = (50 + part * 5) * CHUNK_PAGES..(55 + part * 5) * CHUNK_PAGES;
            assert!(
                [tenth.start, chunk * CHUNK_PAGES, tenth.end - 1]
                    .iter()
                    .all(|page| ten.part_of(FlatPage(*page)) == Some(part))
            );
        }
        assert_eq!(ten.chunks.len(), 10);
        assert_eq!(sample(50 << 20).part_of(FlatPage(12_800)), None, "all of it is within the limit");
        assert_eq!(sample(1).chunks.len(), 8);
    }

    #[test]
    fn what_is_read_of_a_part_is_one_chunk_without_its_holes() {
        let layout = Layout::new(&[4096 * 100, 4096 * 10_000]).unwrap();
        let mut zeros = DirtyMap::new(&layout);
        zeros.mark(RegionId(0), 10, 20);
        let sample = Sample { zeros: Some(zeros), parts: vec![0], chunks: vec![0] };
        let second = CHUNK_PAGES - layout.region(RegionId(1)).unwrap().first;
        let extents = sample.extents(&layout, 0, 64);
        let pages = |extent: &Extent| (extent.region().0, extent.page_numbers().collect::<Vec<_>>());
        let told: Vec<_> = extents.iter().map(pages).collect();
        let first: Vec<u32> = (0..10).chain(30..100).collect();
        assert_eq!(told[..2], [(0, first[..64].to_vec()), (0, first[64..].to_vec())]);
        assert_eq!(
            told[2..].iter().flat_map(|(_, pages)| pages.clone()).collect::<Vec<_>>(),
            (0..second).collect::<Vec<_>>()
        );
        assert!(sample.extents(&layout, 1, 64).is_empty());
    }
}
