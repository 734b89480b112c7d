use std::ops::Range;

use crate::extent::{FlatPage, Layout, MAX_EXTENT_PAGES, RegionId};
use crate::session::Leaves;
use crate::wire::Digest;

/// Runs of pages that are not zeros, at most an extent long, with their leaves.
pub(super) struct Runs<'a> {
    layout: &'a Layout,
    leaves: &'a Leaves,
    region: u16,
    next: u32,
}

impl<'a> Runs<'a> {
    pub(super) fn of(layout: &'a Layout, leaves: &'a Leaves) -> Self {
        Self { layout, leaves, region: 0, next: 0 }
    }

    /// The same runs, however long, without leaves.
    pub(super) fn places(layout: &'a Layout, leaves: &'a Leaves) -> impl Iterator<Item = (RegionId, Range<u32>)> + 'a {
        layout.regions().flat_map(move |(id, region)| {
            let (first, end) = (region.first, region.first + region.pages);
            let runs = std::iter::successors(leaves.known_within(first..end, u32::MAX), move |run| {
                leaves.known_within(run.end..end, u32::MAX)
            });
            runs.map(move |run| (id, run.start - first..run.end - first))
        })
    }
}

impl Iterator for Runs<'_> {
    type Item = (RegionId, u32, Vec<Digest>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let region = self.layout.region(RegionId(self.region))?;
            let left = region.first + self.next..region.first + region.pages;
            let Some((FlatPage(first), leaves)) = self.leaves.run_within(left, MAX_EXTENT_PAGES) else {
                (self.region, self.next) = (self.region.checked_add(1)?, 0);
                continue;
            };
            let first = first - region.first;
            self.next = first + u32::try_from(leaves.len()).unwrap_or(u32::MAX);
            return Some((RegionId(self.region), first, leaves));
        }
    }
}
