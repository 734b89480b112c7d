use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::folder::no_space;
use super::journal::{About, Journal};
use super::place::{Place, Presence};
use super::runs::Runs;
use crate::extent::{Layout, MAX_EXTENT_PAGES, PAGE_BYTES, RegionId};
use crate::guest::{Guest, GuestError};
use crate::session::Leaves;
use crate::session::leaves::{Tree, zero_leaf};
use crate::session::page_hash::hash_pages;
use crate::storage::File;
use crate::wire::Digest;

const PAGE: u64 = 4096;
/// The smallest hole that is made of space that was reserved.
const HOLE_PAGES: usize = 16;

/// An image on its way in: a staging file of mode 0600, which gets its final name on RUN. An
/// [`ImageFolder`](super::ImageFolder) makes it.
///
/// ```text
///  create, go_on     DIR/.dwcp-<transfer>.part
///  write, stage      the same, durable
///  resume            DIR/<name>                    old or whole new image, never a part of one
///  discard           nothing
///  park              as it was, for `go_on` within a day
/// ```
///
/// The regions of a layout lie one after the other in the file, each with its size in bytes, without
/// padding.
#[derive(Debug)]
pub struct ImageStaging {
    file: Arc<dyn File>,
    place: Place,
    layout: Layout,
    /// Where each region starts in the file.
    starts: Vec<u64>,
    /// Pages that were written: only those must be overwritten when they become zero.
    written: Box<[AtomicU64]>,
    /// It was found under its final name, and must have this root to be believed.
    doubted: Option<Digest>,
    journal: Option<Journal>,
    /// What the journal held when it was opened, without what was written since.
    held: Option<Leaves>,
}

impl ImageStaging {
    pub(super) fn over(file: Arc<dyn File>, place: Place, layout: Layout) -> Self {
        let starts = layout.regions().scan(0, |next, (_, region)| {
            let start = *next;
            *next += region.bytes;
            Some(start)
        });
        Self {
            starts: starts.collect(),
            written: (0..layout.flat_pages() / 64).map(|_| AtomicU64::new(0)).collect(),
            doubted: None,
            journal: None,
            held: None,
            file,
            place,
            layout,
        }
    }

    pub(super) fn file(&self) -> &dyn File {
        self.file.as_ref()
    }

    /// Tells other processes that it is under way, for as long as the file is open. Nobody is refused for it here: who
    /// had the same file before may not have closed it yet.
    pub(super) fn mark(&self) {
        if !matches!(self.file.lock(), Ok(true)) {
            tracing::debug!(staging = self.place.staging, "cannot be marked as under way");
        }
    }

    /// An operator may have removed it before it was marked: nothing is promised that has no name.
    fn still_named(&self) -> Result<(), GuestError> {
        if self.place.presence(&self.place.staging, self.file.as_ref())? == Presence::Ours {
            return Ok(());
        }
        Err(GuestError::Other(format!(
            "{} in {} was removed by somebody else while it was received; send it again",
            self.place.staging,
            self.place.folder.place()
        )))
    }

    pub(super) fn with_journal(self, about: &About) -> Result<Self, GuestError> {
        let held = Leaves::new(&self.layout);
        match self.place.begin(about, &self.file, &held) {
            Ok(journal) => Ok(Self { journal: Some(journal), ..self }),
            Err(error) => {
                self.discard();
                Err(self.place.folder.failed("cannot make a journal in", error))
            }
        }
    }

    /// It was found again after a restart, and must have this root if it is doubted.
    pub(super) fn found(self, doubted: Option<Digest>) -> Self {
        // What a run before wrote is not known, so every page counts as written.
        self.written.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        Self { doubted, ..self }
    }

    /// With a journal, which says what is held.
    pub(super) fn holding(self, journal: Journal, held: Leaves) -> Self {
        for (id, first, leaves) in Runs::of(&self.layout, &held) {
            for (page, _) in (first..).zip(&leaves) {
                self.exchange_written(id, page, true);
            }
        }
        Self { journal: Some(journal), held: Some(held), ..self }
    }

    /// What is not held becomes zeros: a crash may have left anything there.
    pub(super) fn clear_others(&self) -> io::Result<()> {
        self.unwritten(&mut |region, pages| self.clear(region, &pages))
    }

    /// Gives back the space that was reserved for pages that stayed zeros, unless a hole would cost more than it saves.
    fn give_back(&self) -> io::Result<()> {
        if self.place.folder.sparse {
            return Ok(());
        }
        self.unwritten(&mut |region, pages| if pages.len() < HOLE_PAGES { Ok(()) } else { self.clear(region, &pages) })
    }

    /// Tells runs of pages that were never written.
    fn unwritten(&self, tell: &mut dyn FnMut(RegionId, Range<u32>) -> io::Result<()>) -> io::Result<()> {
        for (id, region) in self.layout.regions() {
            let mut first = 0;
            while first < region.pages {
                let written = self.is_written(region.first + first);
                let end = (first..region.pages).find(|page| self.is_written(region.first + page) != written);
                let end = end.unwrap_or(region.pages);
                if !written {
                    tell(id, first..end)?;
                }
                first = end;
            }
        }
        Ok(())
    }

    fn clear(&self, region: RegionId, pages: &Range<u32>) -> io::Result<()> {
        let (Some(bounds), Some(start)) = (self.layout.region(region), self.starts.get(usize::from(region.0))) else {
            return Ok(());
        };
        let from = u64::from(pages.start) * PAGE;
        let bytes = (u64::from(pages.end) * PAGE).min(bounds.bytes).saturating_sub(from);
        self.zero(start + from, bytes)
    }

    /// Makes zeros of a range: a hole, where the file system has holes.
    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        match self.file.punch(at, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let zeros = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
                let mut done = 0;
                while done < bytes {
                    let part = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(zeros.len());
                    self.file.write_at(at + done, zeros.get(..part).unwrap_or_default())?;
                    done += u64::try_from(part).unwrap_or(u64::MAX);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Reads what is held from an earlier transfer, before anything is promised: a crash may have been more than a
    /// crash.
    fn check_held(&self) -> Result<(), GuestError> {
        let Some(held) = &self.held else { return Ok(()) };
        let mut bytes = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
        let mut leaves = Vec::with_capacity(MAX_EXTENT_PAGES);
        for (region, first, expected) in Runs::of(&self.layout, held) {
            let pages = bytes.get_mut(..expected.len() * PAGE_BYTES).unwrap_or_default();
            leaves.clear();
            if self.read(region, first, pages).is_ok() {
                hash_pages(pages, &mut leaves);
            }
            if leaves != expected {
                let same = leaves.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
                let page = u64::from(first) + u64::try_from(same).unwrap_or(0);
                return Err(GuestError::Other(format!(
                    "{} in {} lost what was durable before a restart ({region}, page {page}); check that disk, then \
                     send it again: it begins anew",
                    self.place.staging,
                    self.place.folder.place()
                )));
            }
        }
        Ok(())
    }

    /// Bytes of what is held from an earlier transfer.
    pub fn held_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| Self::pages(&self.layout, held)) * PAGE
    }

    pub(super) fn pages(layout: &Layout, held: &Leaves) -> u64 {
        Runs::of(layout, held).map(|(_, _, leaves)| u64::try_from(leaves.len()).unwrap_or(0)).sum()
    }

    /// Makes sure that an image which was found under its final name is the one that was staged.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn verify(&self) -> Result<(), GuestError> {
        let Some(expected) = self.doubted else { return Ok(()) };
        let leaves = Leaves::new(&self.layout);
        let (mut pages, mut found) = (vec![0; MAX_EXTENT_PAGES * PAGE_BYTES], Vec::with_capacity(MAX_EXTENT_PAGES));
        for (id, region) in self.layout.regions() {
            for first in (0..region.pages).step_by(MAX_EXTENT_PAGES) {
                let count = usize::try_from(region.pages - first).unwrap_or(MAX_EXTENT_PAGES).min(MAX_EXTENT_PAGES);
                let part = pages.get_mut(..count * PAGE_BYTES).unwrap_or_default();
                self.read(id, first, part)?;
                found.clear();
                hash_pages(part, &mut found);
                let numbers = (first..).map_while(|page| self.layout.flat(id, page));
                numbers.zip(&found).for_each(|(flat, leaf)| leaves.set(flat, *leaf));
            }
        }
        if Tree::new(&self.layout).root(&leaves) == expected {
            return Ok(());
        }
        Err(self.place.not_staged(self.place.name.as_str()))
    }

    /// Whether the image has its final name: RUN was obeyed, here or before a crash.
    ///
    /// # Errors
    /// The directory cannot be looked into.
    pub fn is_visible(&self) -> Result<bool, GuestError> {
        Ok(self.place.presence(self.place.name.as_str(), self.file.as_ref())? == Presence::Ours)
    }

    /// Where pages lie in the file, and how many of their bytes lie within the region.
    fn locate(&self, region: RegionId, first: u32, bytes: usize) -> Result<(u64, usize), GuestError> {
        let outside = GuestError::Outside { region, first };
        let bounds = self.layout.region(region).zip(self.starts.get(usize::from(region.0)));
        let Some((bounds, start)) = bounds else { return Err(outside) };
        let offset = u64::from(first) * PAGE;
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        if offset + length > u64::from(bounds.pages) * PAGE {
            return Err(outside);
        }
        let inside = usize::try_from(bounds.bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes);
        Ok((start + offset, inside))
    }

    fn is_written(&self, flat: u32) -> bool {
        let word = usize::try_from(flat / 64).ok().and_then(|word| self.written.get(word));
        word.is_none_or(|word| word.load(Ordering::Relaxed) >> (flat % 64) & 1 == 1)
    }

    /// Whether a page was written before; marks it as written or as a hole.
    fn exchange_written(&self, region: RegionId, page: u32, written: bool) -> bool {
        let Some(flat) = self.layout.flat(region, page) else { return true };
        let Some(word) = usize::try_from(flat.0 / 64).ok().and_then(|word| self.written.get(word)) else { return true };
        let bit = 1 << (flat.0 % 64);
        let before =
            if written { word.fetch_or(bit, Ordering::Relaxed) } else { word.fetch_and(!bit, Ordering::Relaxed) };
        before & bit != 0
    }

    /// Bytes of the disk that it takes for certain: space that was reserved may yet have been refused.
    fn used(&self) -> u64 {
        if self.place.folder.sparse { self.file.stat().map_or(0, |stat| stat.used) } else { 0 }
    }

    fn no_write(&self, error: &io::Error, at: u64) -> GuestError {
        let (place, name) = (self.place.folder.place(), &self.place.name);
        if no_space(error) {
            let more = self.layout.bytes().saturating_sub(self.used());
            return GuestError::Other(format!(
                "no space left in {place}: free {more} bytes, or as many as {name} needs of them, and send it again"
            ));
        }
        let what = format!("cannot write {} in {place} at byte {at}", self.place.staging);
        GuestError::io(what, io::Error::from(error.kind()))
    }
}

impl Guest for ImageStaging {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let (at, inside) = self.locate(region, first, into.len())?;
        let (bytes, tail) = into.split_at_mut(inside);
        self.file.read_at(at, bytes).map_err(|error| {
            let place = self.place.folder.place();
            GuestError::io(format!("cannot read {} in {place} at byte {at}", self.place.staging), error)
        })?;
        tail.fill(0);
        Ok(())
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let (at, inside) = self.locate(region, first, from.len())?;
        if let Some(journal) = &self.journal {
            let count = u32::try_from(from.len() / PAGE_BYTES).unwrap_or(u32::MAX);
            journal.forget(region, first, count).map_err(|error| self.no_write(&error, at))?;
            if let Some(held) = &self.held {
                let pages = (first..first + count).map_while(|page| self.layout.flat(region, page));
                pages.for_each(|page| held.set(page, zero_leaf()));
            }
        }
        let mut rest = from.get(..inside).unwrap_or(from);
        let (mut page, mut at) = (first, at);
        while !rest.is_empty() {
            // A run of pages that are zero, or of pages that are not.
            let mut zeros = rest.chunks(PAGE_BYTES).map(dwcp_hde::is_zero);
            let zero = zeros.next().unwrap_or(true);
            let pages = 1 + zeros.take_while(|&next| next == zero).count();
            let Some((now, later)) = rest.split_at_checked((pages * PAGE_BYTES).min(rest.len())) else { break };
            let numbers = (page..).take(pages);
            if zero {
                // A page that never was anything else stays a hole.
                for ((number, at), bytes) in numbers.zip((at..).step_by(PAGE_BYTES)).zip(now.chunks(PAGE_BYTES)) {
                    if self.exchange_written(region, number, false) {
                        let length = u64::try_from(bytes.len()).unwrap_or(0);
                        self.zero(at, length).map_err(|error| self.no_write(&error, at))?;
                    }
                }
            } else {
                numbers.for_each(|number| {
                    self.exchange_written(region, number, true);
                });
                self.file.write_at(at, now).map_err(|error| self.no_write(&error, at))?;
            }
            page += u32::try_from(pages).unwrap_or(u32::MAX);
            at += u64::try_from(now.len()).unwrap_or(u64::MAX);
            rest = later;
        }
        Ok(())
    }

    fn stage(&self) -> Result<(), GuestError> {
        if let Some(journal) = &self.journal {
            self.mark();
            self.still_named()?;
            journal.flush().map_err(|error| self.no_write(&error, 0))?;
        }
        self.check_held()?;
        self.give_back().and_then(|()| self.file.sync()).map_err(|error| self.no_write(&error, 0))?;
        self.place.sync()
    }

    fn resume(&self) -> Result<(), GuestError> {
        let at = |name: &str| self.place.presence(name, self.file.as_ref());
        match (at(&self.place.staging)?, at(self.place.name.as_str())?) {
            // A crash between the link and the unlink: rename would leave both names.
            (Presence::Ours, Presence::Ours) => self.place.unlink_staging()?,
            (Presence::Ours, _) => self.place.rename()?,
            // Done before, and perhaps not durable.
            (_, Presence::Ours) => self.verify()?,
            (Presence::Other | Presence::None, Presence::Other | Presence::None) => {
                return Err(GuestError::Other(format!(
                    "{} in {} was removed or exchanged by somebody else; the image cannot be made visible",
                    self.place.staging,
                    self.place.folder.place()
                )));
            }
        }
        failpoint!("sink.image.named");
        self.place.sync()?;
        failpoint!("sink.image.durable");
        self.place.unlink_journal();
        Ok(())
    }

    fn discard(&self) {
        // Never a file of the same name that is not ours; and nothing is left to report to.
        if matches!(self.place.presence(&self.place.staging, self.file.as_ref()), Ok(Presence::Ours)) {
            let _ = self.place.unlink_staging();
        }
        self.place.unlink_journal();
    }

    fn park(&self) {
        // Without a journal nobody could tell later what it holds.
        let parked = self.journal.as_ref().is_some_and(|journal| journal.flush().is_ok());
        if !parked {
            self.discard();
        }
    }

    fn held(&self, tell: &mut dyn FnMut(RegionId, u32, Digest)) {
        let Some(held) = &self.held else { return };
        for (region, first, leaves) in Runs::of(&self.layout, held) {
            (first..).zip(leaves).for_each(|(page, leaf)| tell(region, page, leaf));
        }
    }

    fn durable(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::durable)
    }

    fn written(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        if let Some(journal) = &self.journal {
            journal.note(region, first, leaves);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use dwcp_hde::is_zero;

    use super::super::folder::{ImageFolder, PARKED_KEPT, Swept};
    use super::super::place::{journal_name, staging_name};
    use super::*;
    use crate::session::leaves::leaf;
    use crate::session::{Fingerprint, Record, Standing};
    use crate::wire::{FenceEpoch, GuestKind, Name, Offer, TransferId};

    const ID: TransferId = TransferId([7; 16]);
    const BYTES: u64 = 70 * PAGE + 5;

    fn name() -> Name {
        Name::new("vm1").unwrap()
    }

    fn folder(dir: &Path) -> ImageFolder {
        ImageFolder::open(dir).unwrap()
    }

    fn on_disk(dir: &Path) -> std::fs::Metadata {
        dir.join(staging_name(ID)).metadata().unwrap()
    }

    fn create(dir: &Path, replace: bool) -> Result<ImageStaging, GuestError> {
        folder(dir).replacing(replace).create(&name(), ID, Layout::new(&[BYTES]).unwrap())
    }

    /// The promise about what was staged.
    fn promise(staging: &ImageStaging, name: Name) -> Record {
        let (layout, leaves) = (staging.layout.clone(), Leaves::new(&staging.layout));
        for (id, region) in layout.regions() {
            for page in 0..region.pages {
                let mut bytes = vec![0; PAGE_BYTES];
                staging.read(id, page, &mut bytes).unwrap();
                leaves.set(layout.flat(id, page).unwrap(), leaf(&bytes));
            }
        }
        let root = Tree::new(&layout).root(&leaves);
        let offer = Offer { transfer: ID, epoch: FenceEpoch(1), kind: GuestKind::Image, name, layout };
        Record::of(&offer, 1, root, Fingerprint([0; 32]), Standing::Ready)
    }

    fn ones() -> Vec<u8> {
        vec![1; PAGE_BYTES]
    }

    #[test]
    fn an_image_becomes_visible_only_by_resume_and_once_more_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let staging = create(dir.path(), false).unwrap();
        let part = dir.path().join(staging_name(ID));
        assert_eq!(part.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // The last page is partial: its tail is dropped.
        staging.write(RegionId(0), 70, &ones()).unwrap();
        staging.write(RegionId(0), 3, &ones()).unwrap();
        staging.stage().unwrap();
        assert!(!dir.path().join("vm1").exists());
        assert!(!staging.is_visible().unwrap());
        staging.resume().unwrap();
        staging.resume().unwrap();
        assert!(staging.is_visible().unwrap());
        assert!(!part.exists());
        let again = folder(dir.path()).reopen(&promise(&staging, name())).unwrap();
        again.resume().unwrap();
        again.discard();

        let bytes = std::fs::read(dir.path().join("vm1")).unwrap();
        assert_eq!(u64::try_from(bytes.len()).unwrap(), BYTES);
        assert_eq!(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>(), PAGE + 5);
        assert_eq!(bytes[3 * PAGE_BYTES], 1);
    }

    #[test]
    fn a_restart_before_run_finds_the_staging_file() {
        let dir = tempfile::tempdir().unwrap();
        let staging = create(dir.path(), false).unwrap();
        staging.write(RegionId(0), 0, &ones()).unwrap();
        staging.stage().unwrap();
        let record = promise(&staging, name());
        drop(staging);
        folder(dir.path()).reopen(&record).unwrap().resume().unwrap();
        assert_eq!(std::fs::read(dir.path().join("vm1")).unwrap()[..PAGE_BYTES], ones());
        let other = folder(dir.path()).reopen(&Record { name: Name::new("vm2").unwrap(), ..record });
        assert!(other.unwrap_err().to_string().contains("vm2"));
    }

    #[test]
    fn after_a_crash_a_file_of_the_final_name_must_be_the_one_that_was_staged() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&[BYTES, 3 * PAGE]).unwrap();
        let staging = folder(dir.path()).create(&name(), ID, layout).unwrap();
        staging.write(RegionId(0), 70, &ones()).unwrap();
        staging.write(RegionId(1), 1, &ones()).unwrap();
        let record = promise(&staging, name());
        staging.resume().unwrap();
        let visible = dir.path().join("vm1");
        let reopen = || folder(dir.path()).reopen(&record);
        reopen().unwrap().resume().unwrap();

        // Somebody's own image of the same size; one byte is enough.
        let bytes = std::fs::read(&visible).unwrap();
        for at in [0, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            std::fs::write(&visible, &other).unwrap();
            let found = reopen().unwrap();
            assert!(matches!(found.verify(), Err(GuestError::NotStaged { .. })));
            assert!(matches!(found.resume(), Err(GuestError::NotStaged { .. })));
            found.discard();
            assert_eq!(std::fs::read(&visible).unwrap(), other, "it is not ours to touch");
        }
        std::fs::write(&visible, &bytes[1..]).unwrap();
        assert!(matches!(reopen(), Err(GuestError::NotStaged { what }) if what.contains("vm1")));
    }

    #[test]
    fn zero_pages_stay_holes_and_become_zero_again() {
        let dir = tempfile::tempdir().unwrap();
        let staging = create(dir.path(), false).unwrap();
        let mut three = vec![0; 3 * PAGE_BYTES];
        three[PAGE_BYTES] = 5;
        staging.write(RegionId(0), 10, &three).unwrap();
        let mut read = vec![1; 3 * PAGE_BYTES];
        staging.read(RegionId(0), 10, &mut read).unwrap();
        assert!(read == three);
        assert_eq!(on_disk(dir.path()).blocks() * 512, BYTES.next_multiple_of(PAGE), "its space is reserved");
        staging.stage().unwrap();
        let blocks = on_disk(dir.path()).blocks();
        assert!(blocks * 512 <= 16 * PAGE, "{blocks} blocks: the image is not sparse");
        staging.write(RegionId(0), 10, &vec![0; 3 * PAGE_BYTES]).unwrap();
        staging.read(RegionId(0), 10, &mut read).unwrap();
        assert!(is_zero(&read));
    }

    #[test]
    fn nothing_is_overwritten_without_replace() {
        let dir = tempfile::tempdir().unwrap();
        let existing = dir.path().join("vm1");
        std::fs::write(&existing, "old").unwrap();
        assert!(matches!(create(dir.path(), false), Err(GuestError::Exists { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no staging file is left");

        let staging = create(dir.path(), true).unwrap();
        staging.resume().unwrap();
        assert_eq!(existing.metadata().unwrap().len(), BYTES);

        // The name appears while the image is on its way.
        std::fs::remove_file(&existing).unwrap();
        let staging = create(dir.path(), false).unwrap();
        std::fs::write(&existing, "new").unwrap();
        assert!(matches!(staging.resume(), Err(GuestError::Exists { .. })));
        assert_eq!(std::fs::read(&existing).unwrap(), b"new");
        staging.discard();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn regions_lie_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&[PAGE + 1, 2 * PAGE]).unwrap();
        let staging = folder(dir.path()).create(&name(), ID, layout).unwrap();
        staging.write(RegionId(1), 0, &ones()).unwrap();
        staging.write(RegionId(0), 1, &vec![2; PAGE_BYTES]).unwrap();
        assert!(matches!(staging.write(RegionId(0), 2, &ones()), Err(GuestError::Outside { .. })));
        assert!(matches!(staging.write(RegionId(2), 0, &ones()), Err(GuestError::Outside { .. })));
        staging.resume().unwrap();
        let bytes = std::fs::read(dir.path().join("vm1")).unwrap();
        assert_eq!(bytes.len(), 3 * PAGE_BYTES + 1);
        assert_eq!(bytes[PAGE_BYTES - 1..PAGE_BYTES + 2], [0, 2, 1]);
        assert_eq!(bytes[2 * PAGE_BYTES..2 * PAGE_BYTES + 2], [1, 0]);
    }

    #[test]
    fn a_full_disk_says_how_much_to_free() {
        let dir = tempfile::tempdir().unwrap();
        let staging = create(dir.path(), false).unwrap();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let text = staging.no_write(&full, 0).to_string();
        assert!(text.contains("no space left in") && text.contains(&BYTES.to_string()), "{text}");
    }

    #[test]
    fn a_directory_that_is_none_or_an_exchanged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let open = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
        assert!(open(&file).contains("Not a directory"));
        assert!(open(&dir.path().join("none")).contains("No such file"));
        std::fs::create_dir(dir.path().join("vm1")).unwrap();
        assert!(create(dir.path(), true).unwrap_err().to_string().contains("is a directory"));
        std::fs::remove_dir(dir.path().join("vm1")).unwrap();

        let staging = create(dir.path(), false).unwrap();
        let part = dir.path().join(staging_name(ID));
        std::fs::remove_file(&part).unwrap();
        std::fs::write(&part, "not ours").unwrap();
        assert!(staging.resume().unwrap_err().to_string().contains("somebody else"));
        staging.discard();
        assert!(part.exists(), "what is not ours is not removed");
    }

    const PEER: Fingerprint = Fingerprint([3; 32]);

    fn offer(transfer: u8) -> Offer {
        let layout = Layout::new(&[BYTES, 10 * PAGE]).unwrap();
        let transfer = TransferId([transfer; 16]);
        Offer { transfer, epoch: FenceEpoch(1), kind: GuestKind::Image, name: name(), layout }
    }

    fn go_on(dir: &Path, offer: &Offer) -> ImageStaging {
        folder(dir).go_on(offer, PEER, |_| false).unwrap()
    }

    /// Writes a page as a lane does.
    fn receive(staging: &ImageStaging, region: u16, page: u32, byte: u8) {
        let bytes = vec![byte; PAGE_BYTES];
        staging.write(RegionId(region), page, &bytes).unwrap();
        staging.written(RegionId(region), page, &[leaf(&bytes)]);
    }

    fn held(staging: &ImageStaging) -> Vec<(u16, u32, Digest)> {
        let mut held = Vec::new();
        staging.held(&mut |region, page, leaf| held.push((region.0, page, leaf)));
        held
    }

    fn byte(staging: &ImageStaging, region: u16, page: u32) -> u8 {
        let mut bytes = vec![0; PAGE_BYTES];
        staging.read(RegionId(region), page, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_was_durable_is_gone_on_with_and_all_else_is_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let first = go_on(dir.path(), &offer(1));
        for (region, page, byte) in [(0, 5, 1), (0, 6, 2), (1, 9, 3), (0, 5, 4)] {
            receive(&first, region, page, byte);
        }
        // Written, but the lane died before it could say so.
        first.write(RegionId(0), 20, &vec![7; PAGE_BYTES]).unwrap();
        // A page that was durable is being overwritten.
        first.write(RegionId(0), 6, &vec![8; PAGE_BYTES]).unwrap();
        drop(first);

        let second = go_on(dir.path(), &offer(2));
        let leaf = |byte| leaf(&[byte; PAGE_BYTES]);
        assert_eq!(held(&second), [(0, 5, leaf(4)), (1, 9, leaf(3))]);
        assert_eq!(second.held_bytes(), 2 * PAGE);
        let found = [(0, 5), (0, 6), (0, 20), (1, 9)].map(|(region, page)| byte(&second, region, page));
        assert_eq!(found, [4, 0, 0, 3]);
        receive(&second, 0, 6, 9);
        second.stage().unwrap();
        second.resume().unwrap();
        drop(second);
        assert_eq!(files(dir.path()), 1, "nothing but the image");
    }

    #[test]
    fn a_disk_that_lost_what_was_durable_is_noticed_before_anything_is_promised() {
        let dir = tempfile::tempdir().unwrap();
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        receive(&staging, 0, 6, 2);
        drop(staging);
        let staging = go_on(dir.path(), &offer(2));
        staging.file.write_at(5 * PAGE, &[9]).unwrap();
        let error = staging.stage().unwrap_err().to_string();
        assert!(error.contains("lost what was durable") && error.contains("page 5"), "{error}");
        // What is written anew is not what is held.
        receive(&staging, 0, 5, 3);
        staging.stage().unwrap();
    }

    #[test]
    fn only_the_same_image_of_the_same_peer_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let left = || {
            let staging = go_on(dir.path(), &offer(1));
            receive(&staging, 0, 5, 1);
            staging.park();
        };
        left();
        let layout = Layout::new(&[BYTES]).unwrap();
        let held_by = |offer: &Offer, peer, taken: bool| {
            let staging = folder(dir.path()).go_on(offer, peer, |_| taken).unwrap();
            let count = held(&staging).len();
            staging.discard();
            count
        };
        assert_eq!(held_by(&Offer { name: Name::new("vm2").unwrap(), ..offer(2) }, PEER, false), 0);
        assert_eq!(held_by(&Offer { layout, ..offer(2) }, PEER, false), 0);
        assert_eq!(held_by(&offer(2), Fingerprint([4; 32]), false), 0);
        assert_eq!(held_by(&offer(2), PEER, true), 0, "it is under way");
        assert_eq!(held_by(&offer(2), PEER, false), 1);
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn another_image_under_the_id_of_one_that_was_cut_off_is_its_own_peers_only() {
        let dir = tempfile::tempdir().unwrap();
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        drop(staging);
        let grown = Offer { layout: Layout::new(&[BYTES + PAGE]).unwrap(), ..offer(1) };
        let theirs = folder(dir.path()).go_on(&grown, Fingerprint([4; 32]), |_| false);
        assert!(theirs.unwrap_err().to_string().contains("another peer's"), "it is not theirs to throw away");
        assert!(held(&go_on(dir.path(), &grown)).is_empty());
        assert_eq!(files(dir.path()), 2, "what was there first is gone");
    }

    #[test]
    fn a_damaged_journal_is_nothing_to_go_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        drop(staging);
        let journal = dir.path().join(journal_name(TransferId([1; 16])));
        let mut bytes = std::fs::read(&journal).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&journal, bytes).unwrap();
        assert!(held(&go_on(dir.path(), &offer(2))).is_empty());
        assert_eq!(files(dir.path()), 4, "a header that cannot be read may be anybody's: it is swept away in time");
    }

    #[test]
    fn what_is_under_way_is_marked_and_only_what_was_cut_off_is_aborted() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, id) = (folder(dir.path()), TransferId([1; 16]));
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        let busy = || folder.parked().unwrap().iter().map(|parked| (parked.transfer, parked.busy)).collect::<Vec<_>>();
        assert_eq!(busy(), [(id, true)]);
        assert!(!folder.abort(id).unwrap());
        drop(staging);
        let parked = folder.parked().unwrap();
        assert_eq!((busy(), parked[0].held_bytes), (vec![(id, false)], PAGE));
        assert_eq!(parked[0].kept_until(), parked[0].written + PARKED_KEPT);
        // Taken up again: by whatever name it is the same file.
        let staging = go_on(dir.path(), &offer(2));
        assert_eq!(busy(), [(TransferId([2; 16]), true)]);
        drop(staging);
        assert!(folder.abort(TransferId([2; 16])).unwrap() && folder.abort(id).unwrap());
        assert_eq!((busy(), files(dir.path())), (vec![], 0));
    }

    #[test]
    fn nothing_is_promised_of_a_staging_file_that_was_removed_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        std::fs::remove_file(dir.path().join(staging_name(TransferId([1; 16])))).unwrap();
        let error = staging.stage().unwrap_err().to_string();
        assert!(error.contains("was removed by somebody else"), "{error}");
    }

    #[test]
    fn parked_transfers_are_swept_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        drop(go_on(dir.path(), &offer(1)));
        let written =
            std::fs::metadata(dir.path().join(journal_name(TransferId([1; 16])))).unwrap().modified().unwrap();
        let sweep = |after| folder(dir.path()).sweep(written + after, |_| false).unwrap();
        assert_eq!(sweep(Duration::from_secs(3600)), Swept { removed: vec![], parked: vec![TransferId([1; 16])] });
        assert_eq!(sweep(PARKED_KEPT + Duration::from_secs(1)).removed.len(), 2);
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn leftovers_are_swept_unless_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let layout = || Layout::new(&[BYTES]).unwrap();
        let wanted = TransferId([8; 16]);
        create(dir.path(), false).unwrap();
        folder(dir.path()).create(&Name::new("vm2").unwrap(), wanted, layout()).unwrap();
        std::fs::write(dir.path().join(".dwcp-mine.part"), "x").unwrap();
        let removed = folder(dir.path()).sweep(SystemTime::UNIX_EPOCH, |transfer| transfer == wanted).unwrap();
        assert_eq!(removed, Swept { removed: vec![staging_name(ID)], parked: vec![] });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
