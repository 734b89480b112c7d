use crate::extent::{FlatPage, Layout, MAX_EXTENT_PAGES, RegionId};
use crate::session::Leaves;
use crate::wire::Digest;

/// Runs of pages that are not zeros, at most an extent long.
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
