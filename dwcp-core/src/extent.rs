//! What is moved: the regions both sides agreed on, and the units in which their pages travel.
//!
//! ```text
//!  Layout   region 0 ████████████████  region 1 ██████   (bytes; pages of 4096)
//!  Extent   region 0   ██  █ ███                          runs in rising order, <= 256 pages
//! ```

use std::fmt;

/// Bytes of a page. Version 3 knows one page size: every x86 and most ARM guests use it, and a
/// larger guest page is a run of these.
pub const PAGE_BYTES: usize = 4096;

/// Pages that one extent carries at most: 1 MiB of plain bytes, which zstd packs within two points
/// of an endless stream, and which bounds both the buffer of a lane and the loss of a burial.
pub const MAX_EXTENT_PAGES: usize = 256;

/// Regions of a layout at most: real machines have tens (RAM below and above 4 GiB, video memory,
/// firmware), and each costs an entry in the offer.
pub const MAX_REGIONS: usize = 1024;

/// Pages of a layout at most: 2^30 pages = 4 TiB, the largest guests that are migrated today, and
/// far from overflow in every sum over pages.
pub const MAX_PAGES: u64 = 1 << 30;

/// Index of a region in the agreed [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u16);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}", self.0)
    }
}

/// Number of a page in the flat order of a [`Layout`]: all regions one after the other, each
/// starting at a multiple of 64, so that no word of a bitmap spans two regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlatPage(pub u32);

/// The regions that both sides agreed on; immutable for the life of a transfer. Every extent is
/// checked against it before a byte of it is used.
#[derive(Clone, PartialEq, Eq)]
pub struct Layout {
    regions: Vec<Region>,
    flat_pages: u32,
}

impl Layout {
    /// A layout of regions of the given sizes in bytes. A size need not be a multiple of
    /// [`PAGE_BYTES`]: the last page of such a region is padded with zeros while it travels.
    ///
    /// # Errors
    /// No region, more than [`MAX_REGIONS`], a region of zero bytes, more than [`MAX_PAGES`]. spec: O-1
    pub fn new(region_bytes: &[u64]) -> Result<Self, LayoutError> {
        if region_bytes.is_empty() {
            return Err(LayoutError::NoRegion);
        }
        if region_bytes.len() > MAX_REGIONS {
            return Err(LayoutError::TooManyRegions { regions: region_bytes.len() });
        }
        let mut regions = Vec::with_capacity(region_bytes.len());
        let mut flat: u64 = 0;
        for (index, &bytes) in region_bytes.iter().enumerate() {
            if bytes == 0 {
                return Err(LayoutError::EmptyRegion { index });
            }
            let pages = bytes.div_ceil(PAGE_U64);
            let first = flat;
            flat = pages
                .checked_next_multiple_of(64)
                .and_then(|padded| padded.checked_add(flat))
                .filter(|&flat| flat <= MAX_PAGES)
                .ok_or(LayoutError::TooLarge)?;
            let (Ok(first), Ok(pages)) = (u32::try_from(first), u32::try_from(pages)) else {
                return Err(LayoutError::TooLarge);
            };
            regions.push(Region { bytes, pages, first });
        }
        let flat_pages = u32::try_from(flat).map_err(|_| LayoutError::TooLarge)?;
        Ok(Self { regions, flat_pages })
    }

    /// The regions with their ids, in order.
    pub fn regions(&self) -> impl Iterator<Item = (RegionId, Region)> + '_ {
        self.regions.iter().zip(0_u16..).map(|(&region, id)| (RegionId(id), region))
    }

    /// The region with this id, if the layout has it.
    pub fn region(&self, id: RegionId) -> Option<Region> {
        self.regions.get(usize::from(id.0)).copied()
    }

    /// Sum of all regions' bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Number of pages of all regions.
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| u64::from(region.pages)).sum()
    }

    /// One past the largest [`FlatPage`]: the length of a bitmap over this layout.
    pub fn flat_pages(&self) -> u32 {
        self.flat_pages
    }

    /// The flat number of a page, or `None` when it lies outside.
    pub fn flat(&self, id: RegionId, page: u32) -> Option<FlatPage> {
        let region = self.region(id)?;
        (page < region.pages).then(|| FlatPage(region.first + page))
    }

    /// Which region a flat number lies in, and its page there; `None` for padding between regions.
    pub fn locate(&self, flat: FlatPage) -> Option<(RegionId, u32)> {
        let index = self.regions.partition_point(|region| region.first <= flat.0).checked_sub(1)?;
        let region = self.regions.get(index)?;
        let page = flat.0 - region.first;
        let id = u16::try_from(index).ok()?;
        (page < region.pages).then_some((RegionId(id), page))
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({} regions, {} bytes)", self.regions.len(), self.bytes())
    }
}

const PAGE_U64: u64 = 4096;

/// One region of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Size in bytes, not rounded.
    pub bytes: u64,
    /// Size in pages, the last one possibly partial.
    pub pages: u32,
    /// [`FlatPage`] of its page 0.
    pub first: u32,
}

/// Why sizes do not make a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A guest has at least one region.
    #[error("the layout has no region")]
    NoRegion,
    /// More regions than [`MAX_REGIONS`].
    #[error("the layout has {regions} regions, at most {MAX_REGIONS} are allowed")]
    TooManyRegions {
        /// How many were given.
        regions: usize,
    },
    /// A region without a byte.
    #[error("region {index} of the layout is empty")]
    EmptyRegion {
        /// Its place in the list.
        index: usize,
    },
    /// More pages than [`MAX_PAGES`].
    #[error("the layout has more than {MAX_PAGES} pages (4 TiB)")]
    TooLarge,
}

/// `count` adjacent pages of one region from `start` on. `count` is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First page within the region.
    pub start: u32,
    /// Number of pages, 1..=256.
    pub count: u16,
}

impl Run {
    /// One past the last page.
    pub fn end(self) -> u32 {
        self.start.saturating_add(u32::from(self.count))
    }

    /// Bytes of its pages.
    pub fn bytes(self) -> usize {
        usize::from(self.count) * PAGE_BYTES
    }
}

/// A list of page runs of one region in rising order, together at most [`MAX_EXTENT_PAGES`]: the
/// unit that is read, encoded, sent, applied and acknowledged. It may be empty: then every page
/// that the source meant to send was already at the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    region: RegionId,
    runs: Vec<Run>,
    pages: u16,
}

impl Extent {
    /// An extent of these runs.
    ///
    /// # Errors
    /// Runs that are empty, fall, touch or overlap, or hold more than [`MAX_EXTENT_PAGES`]. Runs
    /// that touch are refused so that an extent has one form only.
    pub fn new(region: RegionId, runs: Vec<Run>) -> Result<Self, ExtentError> {
        let mut pages: u16 = 0;
        let mut free_from: u32 = 0;
        for (index, run) in runs.iter().enumerate() {
            if run.count == 0 {
                return Err(ExtentError::EmptyRun { index });
            }
            if index > 0 && run.start <= free_from || run.start < free_from {
                return Err(ExtentError::NotRising { index });
            }
            free_from = run.start.checked_add(u32::from(run.count)).ok_or(ExtentError::PageOverflow { index })?;
            pages = pages
                .checked_add(run.count)
                .filter(|&pages| usize::from(pages) <= MAX_EXTENT_PAGES)
                .ok_or(ExtentError::TooManyPages { index })?;
        }
        Ok(Self { region, runs, pages })
    }

    /// The region of all its pages.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Its runs, rising.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Number of pages, 0..=256.
    pub fn pages(&self) -> usize {
        usize::from(self.pages)
    }

    /// Bytes of its pages.
    pub fn bytes(&self) -> usize {
        self.pages() * PAGE_BYTES
    }

    /// Its page numbers within the region, rising.
    pub fn page_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|run| run.start..run.end())
    }

    /// Whether every page lies within the layout. spec: E-4
    ///
    /// # Errors
    /// The region is unknown or a run ends past it.
    pub fn check(&self, layout: &Layout) -> Result<Region, ExtentError> {
        let region = layout.region(self.region).ok_or(ExtentError::UnknownRegion { region: self.region })?;
        match self.runs.last() {
            Some(run) if run.end() > region.pages => {
                Err(ExtentError::OutsideRegion { region: self.region, end: run.end(), pages: region.pages })
            }
            _ => Ok(region),
        }
    }

    /// The extent without the pages whose bit is set, by their order in this extent.
    #[must_use]
    pub fn without(&self, dropped: &PageMask) -> Self {
        let mut runs: Vec<Run> = Vec::with_capacity(self.runs.len());
        let mut pages = 0;
        for (index, page) in self.page_numbers().enumerate() {
            if dropped.get(index) {
                continue;
            }
            pages += 1;
            match runs.last_mut() {
                Some(run) if run.end() == page => run.count += 1,
                _ => runs.push(Run { start: page, count: 1 }),
            }
        }
        Self { region: self.region, runs, pages }
    }
}

/// Why runs do not make an [`Extent`], or why one does not fit the layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentError {
    /// A run of zero pages.
    #[error("run {index} is empty")]
    EmptyRun {
        /// Which run.
        index: usize,
    },
    /// A run that starts before, in, or right after the run before it.
    #[error("run {index} does not rise above the run before it")]
    NotRising {
        /// Which run.
        index: usize,
    },
    /// `start + count` does not fit 32 bits.
    #[error("run {index} overflows the page numbers")]
    PageOverflow {
        /// Which run.
        index: usize,
    },
    /// More than [`MAX_EXTENT_PAGES`] pages.
    #[error("run {index} takes the extent past {MAX_EXTENT_PAGES} pages")]
    TooManyPages {
        /// The run that does.
        index: usize,
    },
    /// The layout has no such region.
    #[error("{region} is not in the layout")]
    UnknownRegion {
        /// The region named.
        region: RegionId,
    },
    /// Pages past the end of the region.
    #[error("pages up to {end} lie outside {region}, which has {pages}")]
    OutsideRegion {
        /// The region named.
        region: RegionId,
        /// One past the last page named.
        end: u32,
        /// Pages that the region has.
        pages: u32,
    },
}

/// One bit for each page of an extent, in the extent's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageMask([u64; 4]);

impl PageMask {
    /// No bit set.
    pub const EMPTY: Self = Self([0; 4]);

    /// Whether the bit of the extent's `index`-th page is set; false from 256 on.
    pub fn get(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Sets the bit of the extent's `index`-th page; nothing from 256 on.
    pub fn set(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Takes the bit of the extent's `index`-th page back.
    pub fn unset(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Number of bits set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones()).sum::<u32>().try_into().unwrap_or(MAX_EXTENT_PAGES)
    }

    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Its words, lowest page first.
    pub fn words(&self) -> &[u64; 4] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(list: &[(u32, u16)]) -> Vec<Run> {
        list.iter().map(|&(start, count)| Run { start, count }).collect()
    }

    #[test]
    fn regions_start_at_multiples_of_64() {
        let layout = Layout::new(&[4097, 4096 * 64, 1]).unwrap();
        let firsts: Vec<u32> = layout.regions().map(|(_, region)| region.first).collect();
        assert_eq!(firsts, [0, 64, 128]);
        assert_eq!(layout.flat_pages(), 192);
        assert_eq!(layout.pages(), 2 + 64 + 1);
        assert_eq!(layout.locate(FlatPage(1)), Some((RegionId(0), 1)));
        assert_eq!(layout.locate(FlatPage(2)), None, "padding is no page");
        assert_eq!(layout.locate(FlatPage(128)), Some((RegionId(2), 0)));
        assert_eq!(layout.flat(RegionId(0), 2), None);
    }

    // spec: O-1
    #[test]
    fn a_layout_is_bounded() {
        assert_eq!(Layout::new(&[]), Err(LayoutError::NoRegion));
        assert_eq!(Layout::new(&[1, 0]), Err(LayoutError::EmptyRegion { index: 1 }));
        assert_eq!(Layout::new(&[u64::MAX]), Err(LayoutError::TooLarge));
        assert_eq!(Layout::new(&[1 << 42, 1]), Err(LayoutError::TooLarge));
        assert!(Layout::new(&vec![1; MAX_REGIONS + 1]).is_err());
    }

    // spec: E-3
    #[test]
    fn runs_rise_and_never_touch() {
        let extent = |list: &[(u32, u16)]| Extent::new(RegionId(0), runs(list));
        assert!(extent(&[(0, 1), (2, 3)]).is_ok());
        assert_eq!(extent(&[(0, 1), (1, 1)]), Err(ExtentError::NotRising { index: 1 }));
        assert_eq!(extent(&[(5, 2), (6, 1)]), Err(ExtentError::NotRising { index: 1 }));
        assert_eq!(extent(&[(5, 2), (1, 1)]), Err(ExtentError::NotRising { index: 1 }));
        assert_eq!(extent(&[(5, 0)]), Err(ExtentError::EmptyRun { index: 0 }));
        assert_eq!(extent(&[(u32::MAX, 1)]), Err(ExtentError::PageOverflow { index: 0 }));
        assert_eq!(extent(&[(0, 257)]), Err(ExtentError::TooManyPages { index: 0 }));
        assert_eq!(extent(&[(0, 200), (300, 57)]), Err(ExtentError::TooManyPages { index: 1 }));
    }

    // spec: E-4
    #[test]
    fn an_extent_is_checked_against_the_layout() {
        let layout = Layout::new(&[4096 * 10]).unwrap();
        let inside = Extent::new(RegionId(0), runs(&[(0, 2), (8, 2)])).unwrap();
        assert!(inside.check(&layout).is_ok());
        let outside = Extent::new(RegionId(0), runs(&[(0, 2), (8, 3)])).unwrap();
        assert!(matches!(outside.check(&layout), Err(ExtentError::OutsideRegion { end: 11, pages: 10, .. })));
        let nowhere = Extent::new(RegionId(1), vec![]).unwrap();
        assert!(matches!(nowhere.check(&layout), Err(ExtentError::UnknownRegion { .. })));
    }

    #[test]
    fn dropping_pages_splits_runs() {
        let extent = Extent::new(RegionId(0), runs(&[(0, 4), (9, 1)])).unwrap();
        let mut dropped = PageMask::EMPTY;
        dropped.set(1);
        dropped.set(4);
        let rest = extent.without(&dropped);
        assert_eq!(rest.runs(), runs(&[(0, 1), (2, 2)]));
        assert_eq!(rest.pages(), 3);
    }
}
