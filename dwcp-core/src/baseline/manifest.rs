//! What a manifest says: whose baseline it is, the leaf of each page, and where in the packs its bytes stand.
//!
//! ```text
//!  segment 0   0 | generation u64 | root [32] | pages u64, distinct u64, chunks u32 | tenant, name: u8 length, text
//!                | regions u16, bytes u64 each | packs u16, salt [32] each
//!  then        1 | chunk: pack u16, offset u64, sealed bytes u32, pages u16     repeated
//!  then        2 | run: region u16, first page u32, count u16 | leaf [32], chunk u32, slot u8, sketch u32 x 4 for each page
//!                     repeated
//! ```
//!
//! Little-endian. Pages that no run names are zeros. Segments are sealed one by one (`sealed.rs`); a record never spans two,
//! so that a manifest of any size is read and written through one buffer. This module is pure: bytes in, bytes out.

use std::sync::Arc;

use super::error::Damage;
use super::key::{Salt, TAG};
use super::likeness::{Sketch, Sketches};
use crate::extent::{FlatPage, Layout, MAX_EXTENT_PAGES, MAX_REGIONS, RegionId};
use crate::session::Leaves;
use crate::session::leaves::{Tree, zero_leaf};
use crate::wire::{Digest, Name};

/// Of all files of a store.
pub const FORMAT: u16 = 2;
/// Packs that one baseline may use: each costs a descriptor while it is open.
pub(super) const MAX_PACKS: usize = 64;
/// Pages or chunks of one segment: some 850 KiB, and less than 1 MiB where each page is a run of its own.
const SEGMENT_RECORDS: usize = 16_384;
/// Bytes of a plain segment at most, so that a damaged length reserves no more.
pub(super) const MAX_SEGMENT: usize = 1 << 20;
/// Bytes of a sealed chunk at most.
pub(super) const MAX_CHUNK: u32 = 2 << 20;

const ABOUT: u8 = 0;
const CHUNKS: u8 = 1;
const PAGES: u8 = 2;

/// What a manifest says before it comes to pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Whose it is.
    pub tenant: Name,
    /// What the tenant calls it.
    pub name: Name,
    /// Of two with the same name the higher one counts.
    pub generation: u64,
    /// Its regions.
    pub layout: Layout,
    /// Over the layout and all leaves. spec: I-3
    pub root: Digest,
    /// Pages that are not zeros.
    pub pages: u64,
    /// Pages that are not zeros, those with the same bytes counted once.
    pub distinct: u64,
    chunks: u32,
    packs: Vec<Salt>,
}

/// Pages that were sealed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) pack: u16,
    pub(super) at: u64,
    pub(super) bytes: u32,
    pub(super) pages: u16,
}

/// Where a page's bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: u32,
    pub(super) slot: u8,
}

/// The place of every page that is not zeros: 8 bytes each, in groups of 64.
#[derive(Debug)]
pub(super) struct Places(Vec<Option<Box<[u64; 64]>>>);

impl Places {
    pub(super) fn new(layout: &Layout) -> Self {
        let groups = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        Self((0..groups).map(|_| None).collect())
    }

    pub(super) fn get(&self, page: FlatPage) -> Option<Place> {
        let index = usize::try_from(page.0).ok()?;
        let word = self.0.get(index / 64)?.as_ref()?.get(index % 64)?.checked_sub(1)?;
        Some(Place { chunk: u32::try_from(word >> 8).ok()?, slot: word.to_le_bytes()[0] })
    }

    pub(super) fn set(&mut self, page: FlatPage, place: Place) {
        let index = usize::try_from(page.0).unwrap_or(usize::MAX);
        let Some(group) = self.0.get_mut(index / 64) else { return };
        if let Some(word) = group.get_or_insert_with(|| Box::new([0; 64])).get_mut(index % 64) {
            *word = (u64::from(place.chunk) << 8 | u64::from(place.slot)) + 1;
        }
    }
}

/// All that a manifest says.
#[derive(Debug)]
pub struct Manifest {
    about: About,
    chunks: Vec<Chunk>,
    leaves: Arc<Leaves>,
    places: Places,
    sketches: Sketches,
}

/// What becomes a manifest.
pub(super) struct Parts {
    pub(super) tenant: Name,
    pub(super) name: Name,
    pub(super) generation: u64,
    pub(super) layout: Layout,
    pub(super) distinct: u64,
    pub(super) packs: Vec<Salt>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) leaves: Leaves,
    pub(super) places: Places,
    pub(super) sketches: Sketches,
}

impl Manifest {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { tenant, name, generation, layout, distinct, packs, chunks, leaves, places, sketches } = parts;
        let root = Tree::new(&layout).root(&leaves);
        let pages = runs(&layout, &leaves).map(|(_, _, leaves)| number(leaves.len())).sum();
        let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let about = About { tenant, name, generation, layout, root, pages, distinct, chunks: count, packs };
        Self { about, chunks, leaves: Arc::new(leaves), places, sketches }
    }

    /// What it says before it comes to pages.
    pub fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub(super) fn packs(&self) -> &[Salt] {
        &self.about.packs
    }

    pub(super) fn leaves(&self) -> &Arc<Leaves> {
        &self.leaves
    }

    pub(super) fn place(&self, page: FlatPage) -> Option<Place> {
        self.places.get(page)
    }

    pub(super) fn sketches(&self) -> &Sketches {
        &self.sketches
    }

    /// Runs of pages that are not zeros, with their leaves, at most so many pages each.
    pub(super) fn runs(&self) -> impl Iterator<Item = (RegionId, u32, Vec<Digest>)> + '_ {
        runs(&self.about.layout, &self.leaves)
    }

    /// Hands its plain segments to `put`, in order, with whether each is the last.
    ///
    /// # Errors
    /// What `put` says.
    pub fn encode<E>(&self, put: &mut dyn FnMut(Vec<u8>, bool) -> Result<(), E>) -> Result<(), E> {
        let mut waiting = self.about.encode();
        for chunks in self.chunks.chunks(SEGMENT_RECORDS) {
            let mut segment = vec![CHUNKS];
            chunks.iter().for_each(|chunk| chunk.encode(&mut segment));
            put(std::mem::replace(&mut waiting, segment), false)?;
        }
        let mut pages = vec![PAGES];
        let mut left = SEGMENT_RECORDS;
        for (region, first, leaves) in self.runs() {
            if leaves.len() > left {
                let segment = std::mem::replace(&mut pages, vec![PAGES]);
                put(std::mem::replace(&mut waiting, segment), false)?;
                left = SEGMENT_RECORDS;
            }
            left -= leaves.len();
            self.encode_run(region, first, &leaves, &mut pages);
        }
        if pages.len() > 1 {
            put(std::mem::replace(&mut waiting, pages), false)?;
        }
        put(waiting, true)
    }

    fn encode_run(&self, region: RegionId, first: u32, leaves: &[Digest], out: &mut Vec<u8>) {
        out.extend_from_slice(&region.0.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&u16::try_from(leaves.len()).unwrap_or(u16::MAX).to_le_bytes());
        for (leaf, page) in leaves.iter().zip(first..) {
            let flat = self.about.layout.flat(region, page);
            let place = flat.and_then(|flat| self.places.get(flat));
            let Place { chunk, slot } = place.unwrap_or(Place { chunk: u32::MAX, slot: 0 });
            let sketch = flat.map_or(Sketch::NONE, |flat| self.sketches.get(flat));
            out.extend_from_slice(&leaf.0);
            out.extend_from_slice(&chunk.to_le_bytes());
            out.push(slot);
            sketch.0.iter().for_each(|feature| out.extend_from_slice(&feature.to_le_bytes()));
        }
    }
}

fn runs<'a>(layout: &'a Layout, leaves: &'a Leaves) -> impl Iterator<Item = (RegionId, u32, Vec<Digest>)> + 'a {
    layout.regions().flat_map(move |(id, region)| {
        let (mut at, end) = (region.first, region.first + region.pages);
        std::iter::from_fn(move || {
            let (flat, found) = leaves.run_within(at..end, MAX_EXTENT_PAGES)?;
            at = flat.0 + u32::try_from(found.len()).unwrap_or(u32::MAX);
            Some((id, flat.0 - region.first, found))
        })
    })
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl About {
    /// The packs that its pages stand in.
    pub(super) fn packs(&self) -> &[Salt] {
        &self.packs
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![ABOUT];
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.root.0);
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&self.distinct.to_le_bytes());
        out.extend_from_slice(&self.chunks.to_le_bytes());
        for name in [&self.tenant, &self.name] {
            out.push(u8::try_from(name.as_str().len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name.as_str().as_bytes());
        }
        let regions: Vec<u64> = self.layout.regions().map(|(_, region)| region.bytes).collect();
        out.extend_from_slice(&u16::try_from(regions.len()).unwrap_or(u16::MAX).to_le_bytes());
        regions.iter().for_each(|bytes| out.extend_from_slice(&bytes.to_le_bytes()));
        out.extend_from_slice(&u16::try_from(self.packs.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.packs.iter().for_each(|salt| out.extend_from_slice(salt));
        out
    }

    fn decode(segment: &[u8], most_pages: u64) -> Option<Self> {
        let mut fields = Fields(segment);
        if fields.u8()? != ABOUT {
            return None;
        }
        let (generation, root) = (fields.u64()?, Digest(fields.array()?));
        let (pages, distinct, chunks) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let (tenant, name) = (fields.name()?, fields.name()?);
        let regions = usize::from(fields.u16()?);
        if regions > MAX_REGIONS {
            return None;
        }
        let regions: Vec<u64> = (0..regions).map(|_| fields.u64()).collect::<Option<_>>()?;
        let layout = Layout::new(&regions).ok()?;
        let packs = usize::from(fields.u16()?);
        if packs > MAX_PACKS || u64::from(layout.flat_pages()) > most_pages || u64::from(chunks) > pages {
            return None;
        }
        let packs: Vec<Salt> = (0..packs).map(|_| fields.array()).collect::<Option<_>>()?;
        let plausible = pages <= layout.pages() && distinct <= pages && fields.0.is_empty();
        plausible.then_some(Self { tenant, name, generation, layout, root, pages, distinct, chunks, packs })
    }
}

impl Chunk {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.pack.to_le_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.pages.to_le_bytes());
    }

    fn decode(fields: &mut Fields<'_>, packs: usize) -> Option<Self> {
        let chunk = Self { pack: fields.u16()?, at: fields.u64()?, bytes: fields.u32()?, pages: fields.u16()? };
        let sealed = u32::try_from(TAG).unwrap_or(0) + 1..=MAX_CHUNK;
        let plausible = usize::from(chunk.pack) < packs
            && sealed.contains(&chunk.bytes)
            && (1..=MAX_EXTENT_PAGES).contains(&usize::from(chunk.pages))
            && chunk.end().is_some();
        plausible.then_some(chunk)
    }

    /// One past its last byte.
    pub(super) fn end(&self) -> Option<u64> {
        self.at.checked_add(u64::from(self.bytes))
    }
}

/// A manifest that is being read, segment by segment. Nothing of a segment is believed before it is checked, and no memory
/// is taken for what a segment only claims, but for the layout: 32 bytes for each 64 pages of it.
#[derive(Debug)]
pub struct Draft {
    about: About,
    chunks: Vec<Chunk>,
    leaves: Leaves,
    places: Places,
    sketches: Sketches,
    pages: u64,
    /// One past the last page so far.
    free_from: u32,
}

impl Draft {
    /// Begins with the first segment, of a layout with at most so many pages.
    ///
    /// # Errors
    /// It is none.
    pub fn begin(segment: &[u8], most_pages: u64) -> Result<Self, Damage> {
        let about = About::decode(segment, most_pages)
            .ok_or(Damage::Contents { what: "its head names no layout, tenant and packs that fit together" })?;
        let (leaves, places) = (Leaves::new(&about.layout), Places::new(&about.layout));
        let sketches = Sketches::new(&about.layout);
        Ok(Self { about, chunks: Vec::new(), leaves, places, sketches, pages: 0, free_from: 0 })
    }

    /// Whether the next segment may have chunks.
    pub(super) fn wants_chunks(&self) -> bool {
        number(self.chunks.len()) < u64::from(self.about.chunks)
    }

    /// Goes on with the next segment.
    ///
    /// # Errors
    /// It does not follow from what came before.
    pub fn take(&mut self, segment: &[u8]) -> Result<(), Damage> {
        let mut fields = Fields(segment);
        let kind = fields.u8();
        let wants_chunks = self.wants_chunks();
        while !fields.0.is_empty() {
            let taken = match kind {
                Some(CHUNKS) if wants_chunks => self.take_chunk(&mut fields),
                Some(PAGES) if !wants_chunks => self.take_run(&mut fields),
                _ => None,
            };
            taken.ok_or(Damage::Contents { what: "its pages do not fit its layout and its chunks" })?;
        }
        Ok(())
    }

    fn take_chunk(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        let chunk = Chunk::decode(fields, self.about.packs.len())?;
        self.wants_chunks().then(|| self.chunks.push(chunk))
    }

    fn take_run(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        let (region, first, count) = (RegionId(fields.u16()?), fields.u32()?, fields.u16()?);
        for page in first..first.checked_add(u32::from(count))? {
            let (leaf, chunk, slot) = (Digest(fields.array()?), fields.u32()?, fields.u8()?);
            let sketch = Sketch([fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?]);
            let flat = self.about.layout.flat(region, page).filter(|flat| flat.0 >= self.free_from)?;
            let pages = self.chunks.get(usize::try_from(chunk).ok()?)?.pages;
            if u16::from(slot) >= pages || leaf == zero_leaf() {
                return None;
            }
            self.leaves.set(flat, leaf);
            self.places.set(flat, Place { chunk, slot });
            self.sketches.set(flat, sketch);
            self.free_from = flat.0 + 1;
            self.pages += 1;
        }
        Some(())
    }

    /// What was read, when nothing is missing and the root is that of the pages.
    ///
    /// # Errors
    /// Pages or chunks are missing, or the root is another one.
    pub fn finish(self) -> Result<Manifest, Damage> {
        let Self { about, chunks, leaves, places, sketches, pages, .. } = self;
        if pages != about.pages || number(chunks.len()) != u64::from(about.chunks) {
            return Err(Damage::Contents { what: "it names fewer pages than it should" });
        }
        if Tree::new(&about.layout).root(&leaves) != about.root {
            return Err(Damage::Contents { what: "its root is not that of its pages" });
        }
        Ok(Manifest { about, chunks, leaves: Arc::new(leaves), places, sketches })
    }

    /// What was read before it came to pages.
    pub(super) fn into_index(self) -> (About, Vec<Chunk>) {
        (self.about, self.chunks)
    }
}

/// Fields from front to back.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Option<Name> {
        let length = usize::from(self.u8()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Name::new(std::str::from_utf8(text).ok()?).ok()
    }
}
