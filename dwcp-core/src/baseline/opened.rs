//! A baseline that is open: immutable, and checked again wherever its bytes are used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::content::ContentTable;
use super::error::{BaselineError, Damage};
use super::key::{ManifestDigest, StoreKey};
use super::likeness::{LikenessTable, Sketch};
use super::manifest::{About, Manifest, Place};
use super::names::ManifestName;
use super::pack::{Pack, Unpacker};
use crate::extent::{FlatPage, Layout, MAX_EXTENT_PAGES, PAGE_BYTES, Region, RegionId};
use crate::guest::{GuestError, OldPages};
use crate::session::Leaves;
use crate::session::page_hash::hash_pages;
use crate::storage::{File, Folder};
use crate::wire::Digest;

/// Unpacked chunks that are kept: 16 MiB for one baseline. Another guest's pages lie elsewhere in it, and with a quarter of that
/// three times as many chunks are unpacked again.
const KEPT_CHUNKS: usize = 64;

/// A baseline that is open, for any number of threads at once. While it lives no collection removes it, of this process or
/// another.
///
/// Memory: 56 bytes for each page that is not zeros, 8 more once something was looked for by content, 32 to 64 more once by
/// likeness, and 16 MiB of unpacked pages.
#[derive(Debug)]
pub struct Baseline {
    name: ManifestName,
    manifest: Manifest,
    packs: Vec<Pack>,
    content: OnceLock<ContentTable>,
    likeness: OnceLock<LikenessTable>,
    /// A page could not be read.
    is_rotten: AtomicBool,
    unpacked: Mutex<Unpacked>,
    /// The manifest's file, locked for as long as this lives.
    _pin: Arc<dyn File>,
}

#[derive(Debug, Default)]
struct Unpacked {
    /// The one that was used last stands last.
    chunks: Vec<(u32, Arc<Vec<u8>>)>,
    idle: Vec<Unpacker>,
}

impl Baseline {
    pub(super) fn new(
        folder: &dyn Folder,
        key: &StoreKey,
        name: ManifestName,
        manifest: Manifest,
        pin: Arc<dyn File>,
    ) -> Result<Self, BaselineError> {
        if key.digest(&manifest.about().tenant, manifest.about().root) != name.digest {
            return Err(BaselineError::damaged(&name.file(), Damage::Contents { what: "it is another baseline's" }));
        }
        let mut ends = vec![Pack::first(); manifest.packs().len()];
        for chunk in manifest.chunks() {
            if let Some(end) = ends.get_mut(usize::from(chunk.pack)) {
                *end = chunk.end().unwrap_or(u64::MAX).max(*end);
            }
        }
        let packs = manifest.packs().iter().zip(ends).map(|(salt, end)| Pack::open(folder, key, salt, end));
        let packs = packs.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            name,
            manifest,
            packs,
            content: OnceLock::new(),
            likeness: OnceLock::new(),
            is_rotten: AtomicBool::new(false),
            unpacked: Mutex::new(Unpacked::default()),
            _pin: pin,
        })
    }

    /// By which two nodes know that they hold the same.
    pub fn digest(&self) -> ManifestDigest {
        self.name.digest
    }

    /// Whose it is, what it is called, its root and its layout.
    pub fn about(&self) -> &About {
        self.manifest.about()
    }

    /// Its regions.
    pub fn layout(&self) -> &Layout {
        &self.about().layout
    }

    /// The leaves of all its pages. Not to be set.
    pub fn leaves(&self) -> &Arc<Leaves> {
        self.manifest.leaves()
    }

    /// The leaf of a page. `None`: the baseline has no such page.
    pub fn leaf(&self, region: RegionId, page: u32) -> Option<Digest> {
        Some(self.leaves().get(self.layout().flat(region, page)?))
    }

    /// Runs of pages that are not zeros, with their leaves: at most 256 pages each, in rising order.
    pub fn runs(&self) -> impl Iterator<Item = (RegionId, u32, Vec<Digest>)> + '_ {
        self.manifest.runs()
    }

    /// A page with this leaf: the one at `near`, if that is it, or any other. The first search by content takes some 30 ns
    /// for each page of the baseline; pages of zeros are not found.
    pub fn find(&self, leaf: Digest, near: Option<(RegionId, u32)>) -> Option<(RegionId, u32)> {
        let here = |(region, page)| self.leaf(region, page) == Some(leaf);
        near.filter(|near| here(*near)).or_else(|| self.layout().locate(self.find_content(leaf)?))
    }

    pub(super) fn find_content(&self, leaf: Digest) -> Option<FlatPage> {
        let table = self.content.get_or_init(|| {
            let mut table = ContentTable::with_room(self.about().pages);
            for (region, first, leaves) in self.runs() {
                let flats = (first..).map_while(|page| self.layout().flat(region, page)).take(leaves.len());
                flats.for_each(|flat| {
                    table.insert(flat, self.leaves());
                });
            }
            table
        });
        table.find(leaf, self.leaves())
    }

    /// A page that has lines of 64 bytes in common with this one, if there is one: that with most of them among a few. The first
    /// search takes some 200 ns for each page of the baseline. Nothing is found any more once a page could not be read: what is
    /// only like others shall not be told of, and looked for, page by page.
    pub fn find_like(&self, page: &[u8]) -> Option<(RegionId, u32)> {
        let sketch = Sketch::of(page);
        if sketch == Sketch::NONE || self.is_rotten.load(Ordering::Relaxed) {
            return None;
        }
        let sketches = self.manifest.sketches();
        let table = self.likeness.get_or_init(|| {
            let flats = self.runs().flat_map(|(region, first, leaves)| {
                (first..).map_while(move |page| self.layout().flat(region, page)).take(leaves.len())
            });
            LikenessTable::new(self.about().distinct, flats, sketches)
        });
        self.layout().locate(table.find(sketch, sketches)?)
    }

    /// Copies pages of a region from page `first` on, and makes sure of each by its leaf. `into` is a multiple of
    /// [`PAGE_BYTES`]. May block.
    ///
    /// # Errors
    /// The pages lie outside; the store is damaged there, or cannot be read. `into` then holds anything.
    pub fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), BaselineError> {
        let outside = BaselineError::Outside { digest: self.digest(), region, page: first };
        let pages = u32::try_from(into.len() / PAGE_BYTES).unwrap_or(u32::MAX);
        let Some(Region { first: start, .. }) = self.region_of(region, first, pages) else { return Err(outside) };
        let mut kept: Option<(u32, Arc<Vec<u8>>)> = None;
        for (page, into) in (start + first..).zip(into.chunks_exact_mut(PAGE_BYTES)) {
            let Some(Place { chunk, slot }) = self.manifest.place(FlatPage(page)) else {
                into.fill(0);
                continue;
            };
            let pages = match kept.take().filter(|(index, _)| *index == chunk) {
                Some((_, pages)) => pages,
                None => self.chunk(chunk)?,
            };
            into.copy_from_slice(page_of(&pages, slot));
            kept = Some((chunk, pages));
        }
        let mut leaves = Vec::with_capacity(into.len() / PAGE_BYTES);
        hash_pages(into, &mut leaves);
        let wrong = (start + first..).zip(&leaves).find(|(page, leaf)| self.leaves().get(FlatPage(*page)) != **leaf);
        match wrong {
            None => Ok(()),
            Some((flat, _)) => {
                let damage = Damage::Page { region, page: flat - start };
                Err(BaselineError::damaged(&self.name.file(), damage))
            }
        }
    }

    fn region_of(&self, region: RegionId, first: u32, pages: u32) -> Option<Region> {
        let found = self.layout().region(region)?;
        (first.checked_add(pages)? <= found.pages).then_some(found)
    }

    /// Whether the bytes at a page are these; what cannot be read is not.
    pub(super) fn has(&self, page: FlatPage, bytes: &[u8]) -> Option<Place> {
        let place = self.manifest.place(page)?;
        let pages = self.chunk(place.chunk).ok()?;
        (page_of(&pages, place.slot) == bytes).then_some(place)
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The pages of a chunk. Two threads that want the same may unpack it both.
    fn chunk(&self, index: u32) -> Result<Arc<Vec<u8>>, BaselineError> {
        let (mut unpacker, mut pages) = {
            let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = unpacked.chunks.iter().position(|(known, _)| *known == index) {
                let known = unpacked.chunks.remove(at);
                let pages = Arc::clone(&known.1);
                unpacked.chunks.push(known);
                return Ok(pages);
            }
            let full = unpacked.chunks.len() >= KEPT_CHUNKS;
            let oldest = full.then(|| unpacked.chunks.remove(0).1);
            let buffer = oldest.and_then(|oldest| Arc::try_unwrap(oldest).ok()).unwrap_or_default();
            (unpacked.idle.pop().unwrap_or_default(), buffer)
        };
        let damage = || BaselineError::damaged(&self.name.file(), Damage::Contents { what: "it names no such chunk" });
        let chunk =
            usize::try_from(index).ok().and_then(|index| self.manifest.chunks().get(index)).ok_or_else(damage)?;
        let pack = self.packs.get(usize::from(chunk.pack)).ok_or_else(damage)?;
        let read = pack.read(*chunk, &mut unpacker, &mut pages);
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        unpacked.idle.push(unpacker);
        read?;
        let pages = Arc::new(pages);
        unpacked.chunks.push((index, Arc::clone(&pages)));
        Ok(pages)
    }

    /// Reads every page, and tells those that are damaged or cannot be read, run by run, with the first error of each. Returns
    /// how many pages are whole.
    ///
    /// # Errors
    /// Anything else.
    pub fn verify(&self, tell: &mut dyn FnMut(Progress<'_>)) -> Result<u64, BaselineError> {
        let (mut whole, mut seen) = (0, 0);
        let mut bytes = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
        for (region, first, leaves) in self.runs() {
            let into = bytes.get_mut(..leaves.len() * PAGE_BYTES).unwrap_or_default();
            let count = u64::try_from(leaves.len()).unwrap_or(0);
            match self.read(region, first, into) {
                Ok(()) => whole += count,
                Err(error) if is_of_pages(&error) => whole += self.verify_each(region, first, into, tell)?,
                Err(error) => return Err(error),
            }
            seen += count;
            tell(Progress::Read { pages: seen });
        }
        Ok(whole)
    }

    fn verify_each(
        &self,
        region: RegionId,
        first: u32,
        into: &mut [u8],
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<u64, BaselineError> {
        let mut whole = 0;
        for (page, into) in (first..).zip(into.chunks_exact_mut(PAGE_BYTES)) {
            match self.read(region, page, into) {
                Ok(()) => whole += 1,
                Err(error) if is_of_pages(&error) => tell(Progress::Damaged { region, page, error: &error }),
                Err(error) => return Err(error),
            }
        }
        Ok(whole)
    }

    /// What a guest of this layout has of the baseline: the leaves of pages that both have at the same place, and zeros.
    /// Costs nothing if the layouts are the same, else 32 bytes a page and some time. spec: O-9
    pub fn leaves_of(&self, layout: &Layout) -> Arc<Leaves> {
        if layout == self.layout() {
            return Arc::clone(self.leaves());
        }
        let held = Leaves::new(layout);
        for (region, first, leaves) in self.runs() {
            let shared = self.shared(layout, region, first);
            for (page, leaf) in (first..).zip(leaves.iter().take(shared)) {
                if let Some(flat) = layout.flat(region, page) {
                    held.set(flat, *leaf);
                }
            }
        }
        Arc::new(held)
    }

    /// Pages from `first` on that a region of another layout has as well. Where the regions end at different bytes, the last
    /// page of the shorter one is cut off there, and is not the same.
    fn shared(&self, layout: &Layout, region: RegionId, first: u32) -> usize {
        let (Some(ours), Some(theirs)) = (self.layout().region(region), layout.region(region)) else { return 0 };
        let pages = if ours.bytes == theirs.bytes { ours.pages } else { whole_pages(ours).min(whole_pages(theirs)) };
        usize::try_from(pages.saturating_sub(first)).unwrap_or(0)
    }
}

impl OldPages for Baseline {
    fn digest(&self) -> Digest {
        Digest(self.digest().0)
    }

    fn leaves_of(&self, layout: &Layout) -> Arc<Leaves> {
        self.leaves_of(layout)
    }

    fn find(&self, leaf: Digest, near: (RegionId, u32)) -> Option<(RegionId, u32)> {
        self.find(leaf, Some(near))
    }

    fn find_like(&self, page: &[u8]) -> Option<(RegionId, u32)> {
        self.find_like(page)
    }

    fn layout(&self) -> &Layout {
        self.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.read(region, first, into).map_err(|error| {
            self.is_rotten.store(true, Ordering::Relaxed);
            GuestError::Baseline {
                digest: Digest(self.digest().0),
                name: self.about().name.clone(),
                region,
                page: first,
                why: error.to_string(),
            }
        })
    }
}

/// Whether other pages may be whole all the same.
fn is_of_pages(error: &BaselineError) -> bool {
    error.is_damage() || error.is_unreadable()
}

/// Pages of a region that are no cut-off page.
fn whole_pages(region: Region) -> u32 {
    u32::try_from(region.bytes / 4096).unwrap_or(u32::MAX)
}

fn page_of(pages: &[u8], slot: u8) -> &[u8] {
    pages.chunks_exact(PAGE_BYTES).nth(usize::from(slot)).unwrap_or(&[0; PAGE_BYTES])
}

/// What [`Baseline::verify`] tells as it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// So many pages have been looked at.
    Read {
        /// Of those that are not zeros.
        pages: u64,
    },
    /// A page is not what it should be.
    Damaged {
        /// Its region.
        region: RegionId,
        /// Its number there.
        page: u32,
        /// How.
        error: &'a BaselineError,
    },
}
