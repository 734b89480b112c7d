//! A new baseline: what is known already is referred to, what is new goes into a pack of its own.
//!
//! ```text
//!  page ── zeros? ── seen in this image? ── in a baseline of the tenant, at its place or by content? ── new: to the pack
//!                                             and are its bytes still whole?
//!
//!  pack written, synced ── manifest.new written, synced ── names synced ── renamed ── names synced
//! ```
//!
//! The baseline is there from the rename on, and all that it refers to has been durable before. Bytes of other baselines are
//! compared before they are referred to, so what is damaged in the store is stored anew: adding an image again heals it.

use std::collections::HashMap;

use super::content::ContentTable;
use super::error::BaselineError;
use super::key::{ManifestDigest, Salt};
use super::likeness::{Sketch, Sketches};
use super::manifest::{About, Chunk, MAX_PACKS, Manifest, Parts, Place, Places};
use super::names::{ManifestName, UNFINISHED};
use super::opened::Baseline;
use super::pack::{CHUNK_PAGES, PackWriter};
use super::sealed;
use super::store::{BaselineStore, Survey};
use crate::extent::{FlatPage, Layout, MAX_EXTENT_PAGES, PAGE_BYTES, Region, RegionId};
use crate::guest::Guest;
use crate::session::Leaves;
use crate::session::leaves::zero_leaf;
use crate::session::page_hash::hash_pages;
use crate::wire::{Digest, Name};

/// Pages of other baselines that an image is compared with: 64 bytes of memory each while it is added. With a tenant of
/// more pages the newest baselines are taken.
const KNOWN_PAGES: u64 = 1 << 24;
/// Baselines that an image is compared with: each costs a look into its table for every page that is new.
const KNOWN_BASELINES: usize = 8;

/// What [`BaselineStore::add`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Added {
    /// By which nodes agree on it.
    pub digest: ManifestDigest,
    /// Pages of the image.
    pub pages: u64,
    /// Pages that are zeros.
    pub zero: u64,
    /// Pages that stood in another baseline of the tenant.
    pub known: u64,
    /// Pages that had to be stored.
    pub stored: u64,
    /// Bytes that the store has taken for it.
    pub bytes: u64,
}

impl BaselineStore {
    /// Makes a baseline of a guest that does not change meanwhile: a file, a paused guest, an image that has arrived. A
    /// baseline of the same tenant and name is replaced. Waits until nobody else adds or collects. `tell` hears how many
    /// pages have been read.
    ///
    /// Memory: 64 bytes for each page of the image that is not zeros, and as many for those of the tenant's baselines with
    /// which it is compared (at most 16 million pages).
    ///
    /// # Errors
    /// It would not fit the limits; the disk is full; the guest cannot be read. Then the store is as it was before.
    pub fn add(
        &self,
        tenant: &Name,
        name: &Name,
        guest: &dyn Guest,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Added, BaselineError> {
        self.add_rooted(tenant, name, guest, None, tell)
    }

    /// As [`add`](Self::add), of what a transfer ended with: both ends that keep it have a baseline of the same digest.
    ///
    /// # Errors
    /// As [`add`](Self::add); the guest has another root than the transfer ended with.
    pub fn keep(
        &self,
        tenant: &Name,
        name: &Name,
        guest: &dyn Guest,
        root: Digest,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Added, BaselineError> {
        self.add_rooted(tenant, name, guest, Some(root), tell)
    }

    fn add_rooted(
        &self,
        tenant: &Name,
        name: &Name,
        guest: &dyn Guest,
        root: Option<Digest>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Added, BaselineError> {
        let layout = guest.layout();
        if u64::from(layout.flat_pages()) > self.limits.pages {
            return Err(BaselineError::TooLarge { pages: layout.pages(), most: self.limits.pages });
        }
        let _writing = self.write_lock()?;
        let survey = self.survey()?;
        let generation = survey.indexed.iter().map(|one| one.summary.about.generation).max().unwrap_or(0) + 1;
        let known = self.known(tenant, &survey)?;
        let mut addition = Addition::new(self, layout, &known)?;
        addition.read(guest, tell)?;
        let added = addition.finish(tenant, name, generation, root)?;
        drop(known);
        if survey.indexed.iter().any(|one| one.summary.about.tenant == *tenant && one.summary.about.name == *name) {
            self.supersede(tenant, name, generation);
        }
        Ok(added)
    }

    /// The tenant's baselines, the newest first, as many as an image is compared with. What is damaged or
    /// cannot be read is none: its pages are stored anew.
    fn known(&self, tenant: &Name, survey: &Survey) -> Result<Vec<Baseline>, BaselineError> {
        let mut theirs: Vec<_> = survey.indexed.iter().map(|indexed| &indexed.summary).collect();
        theirs.retain(|summary| summary.about.tenant == *tenant);
        theirs.sort_by_key(|summary| std::cmp::Reverse(summary.about.generation));
        let mut known = Vec::new();
        let mut pages = 0;
        for summary in theirs.into_iter().take(KNOWN_BASELINES) {
            pages += summary.about.pages;
            if pages > KNOWN_PAGES {
                break;
            }
            match self.pinned(&summary.name) {
                Ok(baseline) => known.extend(baseline),
                Err(error) if error.is_damage() || error.is_unreadable() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    /// Removes what the new baseline replaces, unless it is in use, and all that only that has used. What cannot be removed
    /// now goes with the next collection.
    fn supersede(&self, tenant: &Name, name: &Name, generation: u64) {
        let old = |about: &About| about.tenant == *tenant && about.name == *name && about.generation < generation;
        let _ = self.survey().and_then(|mut survey| {
            survey.spare_unreadable();
            self.sweep(survey, &mut |summary| old(&summary.about), None)
        });
    }
}

/// A baseline that is being made.
struct Addition<'a> {
    store: &'a BaselineStore,
    layout: &'a Layout,
    known: &'a [Baseline],
    leaves: Leaves,
    places: Places,
    sketches: Sketches,
    content: ContentTable,
    chunks: Vec<Chunk>,
    packs: Vec<Salt>,
    /// What is new, from the first page that is.
    own: Option<Own>,
    /// Which of our chunks is which chunk of a known baseline. `None`: one of too many packs.
    borrowed: HashMap<(usize, u32), Option<u32>>,
    /// Bytes of the store before.
    used: u64,
    counted: Counted,
}

/// The pack of a baseline that is being made.
struct Own {
    writer: PackWriter,
    /// Its number among the packs.
    pack: u16,
    /// Pages of the next chunk, and the number that this will have.
    waiting: Vec<u8>,
    chunk: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    pages: u64,
    distinct: u64,
    known: u64,
    stored: u64,
}

impl<'a> Addition<'a> {
    fn new(store: &'a BaselineStore, layout: &'a Layout, known: &'a [Baseline]) -> Result<Self, BaselineError> {
        let used = store.bytes()?;
        Ok(Self {
            store,
            layout,
            known,
            leaves: Leaves::new(layout),
            places: Places::new(layout),
            sketches: Sketches::new(layout),
            content: ContentTable::with_room(0),
            chunks: Vec::new(),
            packs: Vec::new(),
            own: None,
            borrowed: HashMap::new(),
            used,
            counted: Counted::default(),
        })
    }

    fn read(&mut self, guest: &dyn Guest, tell: &mut dyn FnMut(u64)) -> Result<(), BaselineError> {
        let mut bytes = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
        let (mut leaves, mut read) = (Vec::new(), 0);
        for (id, Region { pages, first: start, .. }) in self.layout.regions() {
            let mut first = 0;
            while first < pages {
                let count = usize::try_from(pages - first).unwrap_or(usize::MAX).min(MAX_EXTENT_PAGES);
                let into = bytes.get_mut(..count * PAGE_BYTES).unwrap_or_default();
                guest.read(id, first, into)?;
                leaves.clear();
                hash_pages(into, &mut leaves);
                for ((page, leaf), bytes) in (first..).zip(&leaves).zip(into.chunks_exact(PAGE_BYTES)) {
                    self.take((id, page), FlatPage(start + page), *leaf, bytes)?;
                }
                first += u32::try_from(count).unwrap_or(u32::MAX);
                read += u64::try_from(count).unwrap_or(0);
                tell(read);
            }
        }
        Ok(())
    }

    fn take(&mut self, at: (RegionId, u32), flat: FlatPage, leaf: Digest, bytes: &[u8]) -> Result<(), BaselineError> {
        if leaf == zero_leaf() {
            return Ok(());
        }
        self.leaves.set(flat, leaf);
        self.sketches.set(flat, Sketch::of(bytes));
        self.counted.pages += 1;
        let place = match self.content.find(leaf, &self.leaves).and_then(|same| self.places.get(same)) {
            Some(place) => place,
            None => {
                self.counted.distinct += 1;
                self.content.insert(flat, &self.leaves);
                match self.borrow(at, leaf, bytes) {
                    Some(place) => place,
                    None => self.store(bytes)?,
                }
            }
        };
        self.places.set(flat, place);
        Ok(())
    }

    /// The place of the same bytes in a baseline that is there already.
    fn borrow(&mut self, (region, page): (RegionId, u32), leaf: Digest, bytes: &[u8]) -> Option<Place> {
        for (index, baseline) in self.known.iter().enumerate() {
            let near = baseline.layout().flat(region, page).filter(|flat| baseline.leaves().get(*flat) == leaf);
            let Some(found) = near.or_else(|| baseline.find_content(leaf)) else { continue };
            let Some(place) = baseline.has(found, bytes) else { continue };
            if let Some(chunk) = self.borrow_chunk(index, baseline, place.chunk) {
                self.counted.known += 1;
                return Some(Place { chunk, slot: place.slot });
            }
        }
        None
    }

    fn borrow_chunk(&mut self, index: usize, baseline: &Baseline, chunk: u32) -> Option<u32> {
        if let Some(ours) = self.borrowed.get(&(index, chunk)) {
            return *ours;
        }
        let theirs = *baseline.manifest().chunks().get(usize::try_from(chunk).ok()?)?;
        let salt = baseline.manifest().packs().get(usize::from(theirs.pack))?;
        let pack = self.packs.iter().position(|known| known == salt).or_else(|| {
            // One is left for our own.
            (self.packs.len() + 1 < MAX_PACKS).then(|| {
                self.packs.push(*salt);
                self.packs.len() - 1
            })
        });
        let ours = pack.and_then(|pack| u16::try_from(pack).ok()).map(|pack| Chunk { pack, ..theirs });
        let ours = ours.and_then(|ours| {
            self.chunks.push(ours);
            u32::try_from(self.chunks.len() - 1).ok()
        });
        self.borrowed.insert((index, chunk), ours);
        ours
    }

    fn store(&mut self, bytes: &[u8]) -> Result<Place, BaselineError> {
        let mut own = match self.own.take() {
            Some(own) => own,
            None => self.begin_pack()?,
        };
        if own.waiting.len() >= CHUNK_PAGES * PAGE_BYTES {
            self.flush(&mut own)?;
        }
        if own.waiting.is_empty() {
            // Pages refer to it from now on; where it stands is known when it is full.
            own.chunk = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
            self.chunks.push(Chunk { pack: own.pack, at: 0, bytes: 0, pages: 0 });
        }
        let slot = u8::try_from(own.waiting.len() / PAGE_BYTES).unwrap_or(u8::MAX);
        own.waiting.extend_from_slice(bytes);
        self.counted.stored += 1;
        let place = Place { chunk: own.chunk, slot };
        self.own = Some(own);
        Ok(place)
    }

    fn begin_pack(&mut self) -> Result<Own, BaselineError> {
        let salt = self.store.salt()?;
        let writer = PackWriter::create(&self.store.folder, &self.store.key, &salt)?;
        self.packs.push(salt);
        let pack = u16::try_from(self.packs.len() - 1).unwrap_or(u16::MAX);
        Ok(Own { writer, pack, waiting: Vec::with_capacity(CHUNK_PAGES * PAGE_BYTES), chunk: 0 })
    }

    /// Bytes that the store may have yet, beside what it had before.
    fn room(&self) -> u64 {
        self.store.limits.bytes.saturating_sub(self.used)
    }

    fn over_limit(&self, taken: u64, more: u64) -> BaselineError {
        BaselineError::OverLimit { used: self.used + taken, limit: self.store.limits.bytes, more }
    }

    fn flush(&mut self, own: &mut Own) -> Result<(), BaselineError> {
        let Some(chunk) = own.writer.append(&own.waiting, self.room())? else {
            return Err(self.over_limit(own.writer.bytes(), sealed::length(own.waiting.len())));
        };
        if let Some(place) = usize::try_from(own.chunk).ok().and_then(|number| self.chunks.get_mut(number)) {
            *place = Chunk { pack: own.pack, ..chunk };
        }
        own.waiting.clear();
        Ok(())
    }

    /// From here on nothing is read any more: what was written becomes durable, then visible.
    fn finish(
        mut self,
        tenant: &Name,
        name: &Name,
        generation: u64,
        root: Option<Digest>,
    ) -> Result<Added, BaselineError> {
        let mut own = self.own.take();
        if let Some(own) = &mut own {
            self.flush(own)?;
        }
        let mut taken = own.as_ref().map_or(0, |own| own.writer.bytes());
        let manifest = MANIFEST_HEAD + self.counted.pages * MANIFEST_PAGE;
        if taken + manifest > self.room() {
            return Err(self.over_limit(taken, manifest));
        }
        if let Some(own) = &own {
            own.writer.sync()?;
        }
        let (store, pages, counted) = (self.store, self.layout.pages(), self.counted);
        let manifest = Manifest::new(Parts {
            tenant: tenant.clone(),
            name: name.clone(),
            generation,
            layout: self.layout.clone(),
            distinct: counted.distinct,
            packs: self.packs,
            chunks: self.chunks,
            leaves: self.leaves,
            places: self.places,
            sketches: self.sketches,
        });
        if root.is_some_and(|root| manifest.about().root != root) {
            return Err(BaselineError::OtherRoot);
        }
        let digest = store.key.digest(tenant, manifest.about().root);
        taken += store.publish(&manifest, digest, own.as_mut().map(|own| &mut own.writer))?;
        let Counted { pages: filled, known, stored, .. } = counted;
        Ok(Added { digest, pages, zero: pages - filled, known, stored, bytes: taken })
    }
}

/// Of a manifest with the most regions and packs.
const MANIFEST_HEAD: u64 = 16 << 10;
/// Of a manifest, for each page that is not zeros, with its share of the chunks and of the runs.
const MANIFEST_PAGE: u64 = 64;

impl BaselineStore {
    /// Writes a manifest, makes it and the name of its pack durable, and gives it its name. Returns its bytes.
    fn publish(
        &self,
        manifest: &Manifest,
        digest: ManifestDigest,
        pack: Option<&mut PackWriter>,
    ) -> Result<u64, BaselineError> {
        let salt = self.salt()?;
        let name = ManifestName::new(digest, &salt).file();
        let unfinished = format!("{name}{UNFINISHED}");
        let writing = |error| BaselineError::io(format!("writing {unfinished}"), error);
        let write = || -> Result<u64, BaselineError> {
            let file = self.folder.create(&unfinished).map_err(writing)?;
            let bytes = sealed::write_manifest(&*file, &unfinished, &self.key, &salt, manifest)?;
            // The pack has its name before a manifest can be found that refers to it.
            self.sync_names()?;
            self.folder.rename(&unfinished, &name).map_err(writing)?;
            Ok(bytes)
        };
        let bytes = write().inspect_err(|_| {
            // What cannot be removed is removed by the next collection.
            let _ = self.folder.remove(&unfinished);
        })?;
        if let Some(pack) = pack {
            pack.keep();
        }
        self.sync_names().inspect_err(|_| {
            // Whether the name is on the disk is not known. Its pack is, so it is whole if it comes back.
            let _ = self.folder.remove(&name);
        })?;
        Ok(bytes)
    }
}
