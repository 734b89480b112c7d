//! Which parts of an image are read, and what is taken for the rest.

use std::ops::Range;

use dwcp_hde::{Effort, Method, MethodStats, Stats};

use super::{scaled, scaled_stats};
use crate::extent::{Extent, FlatPage, Layout, PAGE_BYTES};
use crate::guest::{DirtyMap, Guest, GuestError};

/// Pages that are read side by side: 1 MiB, the largest extent. Neighbours are alike, so many small parts tell more than a few
/// large ones.
const CHUNK_PAGES: u32 = 256;

/// Which pages are read.
#[derive(Debug)]
pub(super) struct Sample {
    /// By chunk; empty: all.
    chunks: Vec<bool>,
    zeros: Option<DirtyMap>,
    /// The part of the image in which a chunk lies, by chunk; each has one that is read.
    parts: Vec<u32>,
    /// What was found in it, by part.
    found: Vec<Found>,
}

/// Of the chunk of a part that is read: pages that were not known to be zeros, and those that were none.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    solid: u64,
    full: u64,
}

impl Sample {
    /// Chunks of `bytes` in all, evenly spread over what is not known to be zeros.
    pub(super) fn new(layout: &Layout, bytes: Option<u64>, zeros: Option<DirtyMap>) -> Self {
        let mut sample = Self { chunks: Vec::new(), zeros, parts: Vec::new(), found: Vec::new() };
        let Some(bytes) = bytes else { return sample };
        let count = usize::try_from(layout.flat_pages().div_ceil(CHUNK_PAGES)).unwrap_or(0);
        let mut with_data = vec![false; count];
        for (_, region) in layout.regions() {
            for page in (region.first..region.first + region.pages).map(FlatPage) {
                if !sample.is_zero(page)
                    && let Some(chunk) = with_data.get_mut(chunk_of(page))
                {
                    *chunk = true;
                }
            }
        }
        let data = u64::try_from(with_data.iter().filter(|data| **data).count()).unwrap_or(u64::MAX);
        let wanted = (bytes / (4096 * u64::from(CHUNK_PAGES))).max(1);
        if wanted >= data {
            return sample;
        }
        let mut picks = (0..wanted).map(|part| pick(part, part * data / wanted..(part + 1) * data / wanted)).peekable();
        sample.parts = vec![0; count];
        let chunks = with_data.iter_mut().zip(&mut sample.parts).filter(|(data, _)| **data);
        for (place, (chunk, part)) in (0..).zip(chunks) {
            *chunk = picks.next_if_eq(&place).is_some();
            // Part n begins at place n * data / wanted.
            *part = u32::try_from(((place + 1) * wanted - 1) / data).unwrap_or(u32::MAX);
        }
        sample.chunks = with_data;
        sample.found = vec![Found::default(); usize::try_from(wanted).unwrap_or(0)];
        sample
    }

    /// Looks which pages of the sample are zeros: they lie together, so what is read of a guest's dense parts says nothing of
    /// the others.
    pub(super) fn look(&mut self, guest: &dyn Guest) -> Result<(), GuestError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; PAGE_BYTES];
        for (id, region) in guest.layout().regions() {
            for page in 0..region.pages {
                let flat = FlatPage(region.first + page);
                if !self.has(flat) || self.is_zero(flat) {
                    continue;
                }
                guest.read(id, page, &mut bytes)?;
                if let Some(found) = self.part_of(flat).and_then(|part| self.found.get_mut(part)) {
                    found.solid += 1;
                    found.full += u64::from(!dwcp_hde::is_zero(&bytes));
                }
            }
        }
        Ok(())
    }

    fn part_of(&self, page: FlatPage) -> Option<usize> {
        self.parts.get(chunk_of(page)).and_then(|part| usize::try_from(*part).ok())
    }

    /// How many of `solid` pages from this one on are taken to be no zeros.
    pub(super) fn full(&self, page: FlatPage, solid: u64) -> u64 {
        let found = self.part_of(page).and_then(|part| self.found.get(part)).copied().unwrap_or_default();
        if found.solid == 0 { solid } else { scaled(solid, found.full, found.solid) }
    }

    /// Whether pages from this one on are read.
    pub(super) fn has(&self, page: FlatPage) -> bool {
        self.chunks.is_empty() || self.chunks.get(chunk_of(page)).copied().unwrap_or(false)
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

/// One of the chunks of a part of the image: scattered, lest a pattern of the image be met at the same place each time, and
/// the same ones every time.
fn pick(part: u64, chunks: Range<u64>) -> u64 {
    let mixed = (part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
    chunks.start + mixed % (chunks.end - chunks.start).max(1)
}

fn chunk_of(page: FlatPage) -> usize {
    usize::try_from(page.0 / CHUNK_PAGES).unwrap_or(usize::MAX)
}

/// What an extent took that was made, or would take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Pages that are not known to be zeros.
    pub(super) solid: u64,
    /// Of them, those that are none.
    pub(super) full: u64,
    pub(super) carried: u64,
    pub(super) head_bytes: u64,
    pub(super) body_bytes: u64,
    pub(super) nanos: u64,
    pub(super) methods: Stats,
}

impl Cost {
    fn add(&mut self, other: &Self) {
        self.solid += other.solid;
        self.full += other.full;
        self.carried += other.carried;
        self.head_bytes += other.head_bytes;
        self.body_bytes += other.body_bytes;
        self.nanos += other.nanos;
        self.methods += other.methods;
    }
}

/// What extents of one effort took.
#[derive(Debug)]
struct Known {
    effort: Effort,
    seen: Cost,
    /// Pages that are no zeros and were taken to be alike, and pages that were written again.
    alike: u64,
    again: u64,
    /// Bytes that they were taken to need, by what was known at the time.
    told: u64,
}

/// What was learnt from the extents that were made.
#[derive(Debug, Default)]
pub(super) struct Experience {
    efforts: Vec<Known>,
    /// Of pages that are known to be zeros: all of them were met, so nothing is like them.
    zeros: Stats,
}

/// Pages that are no zeros after which extents of an effort need not be made: before, an average says little.
const ENOUGH: u64 = 2048;

impl Experience {
    /// An extent of so many pages was made.
    pub(super) fn learn(&mut self, effort: Effort, pages: u64, cost: &Cost) {
        if cost.solid == 0 {
            self.zeros += cost.methods;
            return;
        }
        let zeros = Stats::default().with(Method::Zero, MethodStats::left_out(pages - cost.solid));
        self.zeros += zeros;
        let cost = &Cost { methods: cost.methods.since(&zeros), ..*cost };
        match self.efforts.iter_mut().find(|known| known.effort == effort) {
            Some(known) => known.seen.add(cost),
            None => self.efforts.push(Known { effort, seen: *cost, alike: 0, again: 0, told: 0 }),
        }
    }

    /// What an extent of so many pages, `full` of them no zeros, would take. `None`: too little is known.
    pub(super) fn alike(&mut self, effort: Effort, pages: u64, full: u64) -> Option<Cost> {
        let known = self.efforts.iter_mut().find(|known| known.effort == effort && known.seen.full >= ENOUGH)?;
        known.alike += full;
        self.zeros.add(Method::Zero, MethodStats::left_out(pages - full));
        let cost = Cost { full, ..like(&known.seen, full, known.seen.full) };
        known.told += cost.head_bytes + cost.body_bytes;
        Some(cost)
    }

    /// The same for pages that the guest has written again: none of them is what the sink holds.
    pub(super) fn again(&mut self, effort: Effort, pages: u64) -> Option<Cost> {
        let most = self.efforts.iter().max_by_key(|known| known.seen.carried).map(|known| known.effort);
        let effort = if self.efforts.iter().any(|known| known.effort == effort && known.seen.carried > 0) {
            effort
        } else {
            most?
        };
        let known = self.efforts.iter_mut().find(|known| known.effort == effort && known.seen.carried > 0)?;
        known.again += pages;
        let cost = Cost { carried: pages, ..like(&known.seen, pages, known.seen.carried) };
        known.told += cost.head_bytes + cost.body_bytes;
        Some(cost)
    }

    /// What each method would have done to the whole image: together as many bytes as all extents were taken to need.
    pub(super) fn methods(&self) -> Stats {
        let mut sum = self.zeros;
        for Known { seen, alike, again, told, .. } in &self.efforts {
            sum += seen.methods;
            let zeros = Stats::default().with(Method::Zero, seen.methods.of(Method::Zero));
            let mut taken = scaled_stats(&seen.methods.since(&zeros), *alike, seen.full);
            let mut written = Stats::default();
            (written.head_bytes, written.look_nanos) = (seen.methods.head_bytes, seen.methods.look_nanos);
            for (method, share) in seen.methods.used().filter(|(_, share)| share.bytes_out > 0) {
                written.add(method, share);
            }
            taken += scaled_stats(&written, *again, seen.carried);
            sum += fitted(&taken, *told);
        }
        sum
    }

    /// Solid pages that were read, and nanoseconds for them.
    pub(super) fn read(&self) -> (u64, u64) {
        self.efforts.iter().fold((0, 0), |(pages, nanos), known| (pages + known.seen.solid, nanos + known.seen.nanos))
    }
}

/// The same pages with so many bytes in all: what is known at the end is not what was known at each extent.
fn fitted(stats: &Stats, bytes: u64) -> Stats {
    let known = stats.used().fold(stats.head_bytes, |sum, (_, share)| sum + share.bytes_out);
    let mut fitted = Stats::default();
    (fitted.look_nanos, fitted.head_bytes) = (stats.look_nanos, bytes);
    for (method, share) in stats.used() {
        let bytes_out = scaled(share.bytes_out, bytes, known);
        fitted.head_bytes -= bytes_out;
        fitted.add(method, MethodStats { bytes_out, ..share });
    }
    fitted
}

fn like(seen: &Cost, pages: u64, of: u64) -> Cost {
    Cost {
        solid: pages,
        full: 0,
        carried: scaled(seen.carried, pages, of).min(pages),
        head_bytes: scaled(seen.head_bytes, pages, of),
        body_bytes: scaled(seen.body_bytes, pages, of),
        nanos: scaled(seen.nanos, pages, of),
        methods: Stats::default(),
    }
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
        let chosen = |sample: &Sample| -> Vec<u32> {
            (0..100).filter(|chunk| sample.has(FlatPage(chunk * CHUNK_PAGES))).collect()
        };
        let ten = chosen(&sample(10 << 20));
        assert_eq!(ten, chosen(&sample(10 << 20)));
        for (part, chunk) in (0..10).zip(&ten) {
            assert!((50 + part * 5..55 + part * 5).contains(chunk), "one of each tenth: {ten:?}");
        }
        assert_eq!(ten.len(), 10);
        assert_eq!(chosen(&sample(50 << 20)).len(), 100, "all of it is within the limit");
        assert_eq!(chosen(&sample(1)).len(), 1);
    }

    #[test]
    fn what_is_alike_costs_its_share_and_the_methods_add_up_to_the_bytes() {
        let effort = Effort::Balanced;
        let zstd = MethodStats { pages: 3000, bytes_in: 3000 * 4096, bytes_out: 3_000_000, nanos: 9_000_000 };
        let mut methods = Stats::default().with(Method::Zstd, zstd).with(Method::Zero, MethodStats::left_out(1000));
        methods.head_bytes = 8000;
        let seen = Cost {
            solid: 4000,
            full: 3000,
            carried: 3000,
            head_bytes: 8000,
            body_bytes: 3_000_000,
            nanos: 20_000_000,
            methods,
        };
        let mut experience = Experience::default();
        assert!(experience.alike(effort, 64, 64).is_none(), "nothing is known");
        let zeros = Stats::default().with(Method::Zero, MethodStats::left_out(100));
        experience.learn(effort, 100, &Cost { methods: zeros, ..Cost::default() });
        let methods = methods.with(Method::Zero, MethodStats::left_out(500));
        experience.learn(effort, 4500, &Cost { methods, ..seen });
        let alike = experience.alike(effort, 500, 300).unwrap();
        assert_eq!((alike.carried, alike.body_bytes, alike.head_bytes, alike.nanos), (300, 300_000, 800, 2_000_000));
        let again = experience.again(effort, 300).unwrap();
        assert_eq!((again.carried, again.body_bytes), (300, 300_000));
        let sum = experience.methods();
        assert_eq!((sum.of(Method::Zstd).pages, sum.of(Method::Zstd).bytes_out), (3600, 3_600_000));
        assert_eq!(sum.of(Method::Zero).pages, 1000 + 100 + 200 + 500, "read, alike, and those that are known");
        assert_eq!(experience.read(), (4000, 20_000_000));
        let bytes = |stats: &Stats| stats.used().fold(stats.head_bytes, |sum, (_, share)| sum + share.bytes_out);
        let told = [&seen, &alike, &again].map(|cost| cost.head_bytes + cost.body_bytes);
        assert_eq!(bytes(&sum), told.iter().sum::<u64>());
        // What is read later packs otherwise, and does not change what was told.
        let zstd = MethodStats { bytes_out: 9_000_000, ..zstd };
        experience.learn(
            effort,
            4000,
            &Cost { body_bytes: 9_000_000, methods: methods.with(Method::Zstd, zstd), ..seen },
        );
        assert_eq!(bytes(&experience.methods()), bytes(&experience.efforts[0].seen.methods) + told[1] + told[2]);
    }
}
