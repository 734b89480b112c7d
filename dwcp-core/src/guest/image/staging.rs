use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::journal::{About, Journal};
use super::place::{JOURNAL, Place, Presence, STAGING, journal_name, staging_name, transfer_of};
use crate::extent::{Layout, MAX_EXTENT_PAGES, PAGE_BYTES, RegionId};
use crate::guest::{Guest, GuestError};
use crate::session::leaves::{Leaves, Tree, leaf, zero_leaf};
use crate::session::{Fingerprint, Record};
use crate::wire::{Digest, Name, Offer, TransferId};

const PAGE: u64 = 4096;

/// An image on its way in: a staging file of mode 0600, which gets its final name on RUN.
///
/// ```text
///  create            DIR/.dwcp-<transfer>.part     sparse, no space reserved
///  write, stage      the same, durable
///  resume            DIR/<name>                    old or whole new image, never a part of one
///  discard           nothing
/// ```
///
/// The regions of a layout lie one after the other in the file, each with its size in bytes, without
/// padding. The name is checked by its type and used below an open handle of the directory, so no
/// peer chooses a path.
#[derive(Debug)]
pub struct ImageStaging {
    file: File,
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
    /// Makes the staging file of a transfer.
    ///
    /// # Errors
    /// The directory is missing, none, or cannot be written; the name exists there and `replace` is
    /// not set; the transfer is being staged already.
    pub fn create(
        dir: impl AsRef<Path>,
        name: &Name,
        transfer: TransferId,
        layout: Layout,
        replace: bool,
    ) -> Result<Self, GuestError> {
        let place = Place::open(dir.as_ref(), name, transfer, replace)?;
        place.refuse_existing()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.dir, &place.staging, flags, Mode::RUSR | Mode::WUSR).map(File::from);
        let file = file.map_err(|error| place.failed("cannot create a staging file in", error))?;
        // A sparse file: it takes space as pages come.
        if let Err(error) = file.set_len(layout.bytes()) {
            let _ = rustix::fs::unlinkat(&place.dir, &place.staging, AtFlags::empty());
            let what = format!("cannot make a file of {} bytes in {}", layout.bytes(), place.path.display());
            return Err(GuestError::io(what, error));
        }
        Ok(Self::over(file, place, layout))
    }

    /// As [`create`](Self::create) for what is offered, with a journal beside the staging file of what of it is
    /// durable. Goes on with what is left of an earlier transfer, if that was of the same name and layout from the
    /// same peer and `taken` does not say that its transfer is under way or promised.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn go_on(
        dir: impl AsRef<Path>,
        offer: &Offer,
        peer: Fingerprint,
        replace: bool,
        taken: impl Fn(TransferId) -> bool,
    ) -> Result<Self, GuestError> {
        let place = Place::open(dir.as_ref(), &offer.name, offer.transfer, replace)?;
        place.refuse_existing()?;
        let about = About { peer, name: offer.name.clone(), layout: offer.layout.clone() };
        let mut found = None;
        for left in place.left(&about, taken)? {
            match place.adopt(&about, left) {
                Ok(Some(parts)) if found.is_none() => found = Some((left, parts)),
                Ok(_) => place.remove(left),
                Err(error) => {
                    tracing::warn!(%error, transfer = %left, "what is left of a transfer cannot be read");
                    place.remove(left);
                }
            }
        }
        if let Some((left, (file, journal, held))) = found {
            let staging = Self::over(file, place, offer.layout.clone());
            match staging.clear_all_but(&held).and_then(|()| staging.place.take_over(left)) {
                Ok(()) => return Ok(Self { journal: Some(journal), held: Some(held), ..staging }),
                Err(error) => tracing::warn!(%error, transfer = %left, "cannot go on with what is left of a transfer"),
            }
            staging.place.remove(left);
        }
        let mut staging = Self::create(dir, &offer.name, offer.transfer, offer.layout.clone(), replace)?;
        let journal = staging.place.make(&journal_name(offer.transfer));
        let journal = journal.and_then(|file| Journal::create(file, &about, staging.file.try_clone()?));
        staging.journal = Some(journal.map_err(|error| {
            staging.discard();
            GuestError::io(format!("cannot make a journal in {}", staging.place.path.display()), error)
        })?);
        staging.place.sync()?;
        Ok(staging)
    }

    /// What is not held becomes zeros: a crash may have left anything there.
    fn clear_all_but(&self, held: &Leaves) -> io::Result<()> {
        for (id, region) in self.layout.regions() {
            let (mut at, end) = (region.first, region.first + region.pages);
            while at < end {
                let run = held.run_within(at..end, MAX_EXTENT_PAGES);
                let (first, next) = run.map_or((end, end), |(first, leaves)| {
                    (first.0, first.0 + u32::try_from(leaves.len()).unwrap_or(u32::MAX))
                });
                self.clear(id, at - region.first, first - region.first)?;
                (first..next).for_each(|page| {
                    self.exchange_written(id, page - region.first, true);
                });
                at = next;
            }
        }
        Ok(())
    }

    fn clear(&self, region: RegionId, first: u32, end: u32) -> io::Result<()> {
        let (Some(bounds), Some(start)) = (self.layout.region(region), self.starts.get(usize::from(region.0))) else {
            return Ok(());
        };
        let from = u64::from(first) * PAGE;
        let bytes = (u64::from(end) * PAGE).min(bounds.bytes).saturating_sub(from);
        if bytes == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, punch, start + from, bytes)?)
    }

    /// Reads what is held from an earlier transfer, before anything is promised: a crash may have been more than a crash.
    fn check_held(&self) -> Result<(), GuestError> {
        let mut bad = None;
        let mut bytes = vec![0; PAGE_BYTES];
        self.held(&mut |region, page, expected| {
            let same = self.read(region, page, &mut bytes).is_ok() && leaf(&bytes) == expected;
            if !same {
                bad.get_or_insert((region, page));
            }
        });
        let Some((region, page)) = bad else { return Ok(()) };
        Err(GuestError::Other(format!(
            "{} in {} lost what was durable before a restart ({region}, page {page}); check that disk, then send it \
             again: it begins anew",
            self.place.staging,
            self.place.path.display()
        )))
    }

    /// Bytes of what is held from an earlier transfer.
    pub fn held_bytes(&self) -> u64 {
        let mut pages = 0;
        self.held(&mut |_, _, _| pages += 1);
        pages * PAGE
    }

    /// Finds the staging file of a transfer again, after a restart, or the image under its name when
    /// the crash came after RUN was obeyed. The latter is believed only when its bytes have the
    /// record's root, which [`verify`](Self::verify) and [`resume`](Guest::resume) find out by reading
    /// all of it: anybody may have put a file of that name there.
    ///
    /// # Errors
    /// Neither exists, or what exists has another size.
    pub fn reopen(dir: impl AsRef<Path>, record: &Record, replace: bool) -> Result<Self, GuestError> {
        let name = &record.name;
        let place = Place::open(dir.as_ref(), name, record.transfer, replace)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = |name: &str| rustix::fs::openat(&place.dir, name, flags, Mode::empty()).map(File::from);
        let (file, doubted) = match open(&place.staging) {
            Err(Errno::NOENT) => (open(name.as_str()), Some(record.root)),
            other => (other, None),
        };
        let lost = || format!("cannot find {} or {name} in {}", place.staging, place.path.display());
        let file = file.map_err(|error| GuestError::io(lost(), error.into()))?;
        let metadata = file.metadata().map_err(|error| GuestError::io(lost(), error))?;
        if !metadata.is_file() || metadata.len() != record.layout.bytes() {
            return Err(place.not_staged(doubted.map_or(&place.staging, |_| name.as_str())));
        }
        let this = Self { doubted, ..Self::over(file, place, record.layout.clone()) };
        // What a run before wrote is not known, so every page counts as written.
        this.written.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        Ok(this)
    }

    /// Makes sure that an image which was found under its final name is the one that was staged.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn verify(&self) -> Result<(), GuestError> {
        let Some(expected) = self.doubted else { return Ok(()) };
        let leaves = Leaves::new(&self.layout);
        let mut pages = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
        for (id, region) in self.layout.regions() {
            for first in (0..region.pages).step_by(MAX_EXTENT_PAGES) {
                let count = usize::try_from(region.pages - first).unwrap_or(MAX_EXTENT_PAGES).min(MAX_EXTENT_PAGES);
                let part = pages.get_mut(..count * PAGE_BYTES).unwrap_or_default();
                self.read(id, first, part)?;
                let numbers = (first..).map_while(|page| self.layout.flat(id, page));
                for (flat, page) in numbers.zip(part.chunks(PAGE_BYTES)).filter(|(_, page)| !is_zero(page)) {
                    leaves.set(flat, leaf(page));
                }
            }
        }
        if Tree::new(&self.layout).root(&leaves) == expected {
            return Ok(());
        }
        Err(self.place.not_staged(self.place.name.as_str()))
    }

    /// Removes the staging files in a directory whose transfer `keep` does not want: what an earlier process left that
    /// was killed before its transfers were READY. Those with a journal stay for 24 hours, for
    /// [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// The directory cannot be read, or a file in it not be removed.
    pub fn sweep(
        dir: impl AsRef<Path>,
        now: SystemTime,
        keep: impl Fn(TransferId) -> bool,
    ) -> Result<Swept, GuestError> {
        let dir_path = dir.as_ref();
        let unreadable = |error| GuestError::io(format!("cannot list {}", dir_path.display()), error);
        let mut swept = Swept::default();
        for entry in std::fs::read_dir(dir_path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let transfer = transfer_of(&name, STAGING).or_else(|| transfer_of(&name, JOURNAL));
            let Some(transfer) = transfer.filter(|&transfer| !keep(transfer)) else { continue };
            if parked(dir_path, transfer, now) {
                if name.ends_with(JOURNAL) {
                    swept.parked.push(transfer);
                }
                continue;
            }
            std::fs::remove_file(entry.path())
                .map_err(|error| GuestError::io(format!("cannot remove {name} of {transfer}"), error))?;
            swept.removed.push(name);
        }
        Ok(swept)
    }

    /// Whether the image has its final name: RUN was obeyed, here or before a crash.
    ///
    /// # Errors
    /// The directory cannot be looked into.
    pub fn is_visible(&self) -> Result<bool, GuestError> {
        Ok(self.place.presence(self.place.name.as_str(), &self.file)? == Presence::Ours)
    }

    fn over(file: File, place: Place, layout: Layout) -> Self {
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

    /// Whether a page was written before; marks it as written or as a hole.
    fn exchange_written(&self, region: RegionId, page: u32, written: bool) -> bool {
        let Some(flat) = self.layout.flat(region, page) else { return true };
        let Some(word) = usize::try_from(flat.0 / 64).ok().and_then(|word| self.written.get(word)) else { return true };
        let bit = 1 << (flat.0 % 64);
        let before =
            if written { word.fetch_or(bit, Ordering::Relaxed) } else { word.fetch_and(!bit, Ordering::Relaxed) };
        before & bit != 0
    }

    fn write_all(&self, at: u64, from: &[u8]) -> Result<(), GuestError> {
        self.file.write_all_at(from, at).map_err(|error| self.no_write(&error, at))
    }

    /// Makes a page a hole again, or zeros where holes cannot be punched.
    fn write_zeros(&self, at: u64, zeros: &[u8]) -> Result<(), GuestError> {
        let length = u64::try_from(zeros.len()).unwrap_or(0);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, at, length) {
            Ok(()) => Ok(()),
            Err(_) => self.write_all(at, zeros),
        }
    }

    fn no_write(&self, error: &io::Error, at: u64) -> GuestError {
        let full = [Errno::NOSPC, Errno::DQUOT].iter().any(|full| error.raw_os_error() == Some(full.raw_os_error()));
        if full {
            let used = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
            let more = self.layout.bytes().saturating_sub(used);
            return GuestError::Other(format!(
                "no space left in {}: free {more} bytes, or as many as {} needs of them, and send it again",
                self.place.path.display(),
                self.place.name
            ));
        }
        let what = format!("cannot write {} in {} at byte {at}", self.place.staging, self.place.path.display());
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
        self.file.read_exact_at(bytes, at).map_err(|error| {
            GuestError::io(
                format!("cannot read {} in {} at byte {at}", self.place.staging, self.place.path.display()),
                error,
            )
        })?;
        tail.fill(0);
        Ok(())
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let (at, inside) = self.locate(region, first, from.len())?;
        if let Some(journal) = &self.journal {
            let count = u32::try_from(from.len() / PAGE_BYTES).unwrap_or(u32::MAX);
            journal.forget(region, first, count).map_err(|error| self.no_write(&error, at))?;
        }
        let mut rest = from.get(..inside).unwrap_or(from);
        let (mut page, mut at) = (first, at);
        while !rest.is_empty() {
            // A run of pages that are zero, or of pages that are not.
            let mut zeros = rest.chunks(PAGE_BYTES).map(is_zero);
            let zero = zeros.next().unwrap_or(true);
            let pages = 1 + zeros.take_while(|&next| next == zero).count();
            let Some((now, later)) = rest.split_at_checked((pages * PAGE_BYTES).min(rest.len())) else { break };
            let numbers = (page..).take(pages);
            if zero {
                // A page that never was anything else stays a hole.
                for ((number, at), bytes) in numbers.zip((at..).step_by(PAGE_BYTES)).zip(now.chunks(PAGE_BYTES)) {
                    if self.exchange_written(region, number, false) {
                        self.write_zeros(at, bytes)?;
                    }
                }
            } else {
                numbers.for_each(|number| {
                    self.exchange_written(region, number, true);
                });
                self.write_all(at, now)?;
            }
            page += u32::try_from(pages).unwrap_or(u32::MAX);
            at += u64::try_from(now.len()).unwrap_or(u64::MAX);
            rest = later;
        }
        Ok(())
    }

    fn stage(&self) -> Result<(), GuestError> {
        if let Some(journal) = &self.journal {
            journal.flush().map_err(|error| self.no_write(&error, 0))?;
        }
        self.check_held()?;
        self.file.sync_all().map_err(|error| self.no_write(&error, 0))?;
        self.place.sync()
    }

    fn resume(&self) -> Result<(), GuestError> {
        let at = |name: &str| self.place.presence(name, &self.file);
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
                    self.place.path.display()
                )));
            }
        }
        self.place.sync()?;
        self.place.unlink_journal();
        Ok(())
    }

    fn discard(&self) {
        // Never a file of the same name that is not ours; and nothing is left to report to.
        if matches!(self.place.presence(&self.place.staging, &self.file), Ok(Presence::Ours)) {
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
        for (id, region) in self.layout.regions() {
            let mut left = region.first..region.first + region.pages;
            while let Some((first, leaves)) = held.run_within(left.clone(), MAX_EXTENT_PAGES) {
                let pages = (first.0 - region.first..).zip(leaves);
                left.start = first.0;
                for (page, leaf) in pages {
                    tell(id, page, leaf);
                    left.start += 1;
                }
            }
        }
    }

    fn written(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        let Some(journal) = &self.journal else { return };
        journal.note(region, first, leaves);
        let pages = (first..).map_while(|page| self.layout.flat(region, page)).take(leaves.len());
        if let Some(held) = &self.held {
            pages.for_each(|page| held.set(page, zero_leaf()));
        }
    }
}

/// What [`ImageStaging::sweep`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files that are gone.
    pub removed: Vec<String>,
    /// Transfers that can be gone on with.
    pub parked: Vec<TransferId>,
}

/// How long a transfer that was cut off may be gone on with.
const PARKED_KEPT: Duration = Duration::from_secs(86_400);

/// Whether a transfer has staging file and journal, and was written to lately.
fn parked(dir: &Path, transfer: TransferId, now: SystemTime) -> bool {
    let modified = |name: String| dir.join(name).symlink_metadata().and_then(|metadata| metadata.modified());
    let young = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < PARKED_KEPT) || at > now;
    modified(staging_name(transfer)).is_ok() && modified(journal_name(transfer)).is_ok_and(young)
}

/// Sixteen bytes at a time: as fast as memory without unsafe code, and done at the first other byte.
fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::session::{Fingerprint, Standing};
    use crate::wire::{FenceEpoch, GuestKind, Offer};

    const ID: TransferId = TransferId([7; 16]);
    const BYTES: u64 = 70 * PAGE + 5;

    fn name() -> Name {
        Name::new("vm1").unwrap()
    }

    fn create(dir: &Path, replace: bool) -> Result<ImageStaging, GuestError> {
        ImageStaging::create(dir, &name(), ID, Layout::new(&[BYTES]).unwrap(), replace)
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
        let again = ImageStaging::reopen(dir.path(), &promise(&staging, name()), false).unwrap();
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
        ImageStaging::reopen(dir.path(), &record, false).unwrap().resume().unwrap();
        assert_eq!(std::fs::read(dir.path().join("vm1")).unwrap()[..PAGE_BYTES], ones());
        let other = ImageStaging::reopen(dir.path(), &Record { name: Name::new("vm2").unwrap(), ..record }, false);
        assert!(other.unwrap_err().to_string().contains("vm2"));
    }

    #[test]
    fn after_a_crash_a_file_of_the_final_name_must_be_the_one_that_was_staged() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&[BYTES, 3 * PAGE]).unwrap();
        let staging = ImageStaging::create(dir.path(), &name(), ID, layout, false).unwrap();
        staging.write(RegionId(0), 70, &ones()).unwrap();
        staging.write(RegionId(1), 1, &ones()).unwrap();
        let record = promise(&staging, name());
        staging.resume().unwrap();
        let visible = dir.path().join("vm1");
        let reopen = || ImageStaging::reopen(dir.path(), &record, false);
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
        let blocks = staging.file.metadata().unwrap().blocks();
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
        let staging = ImageStaging::create(dir.path(), &name(), ID, layout, false).unwrap();
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
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let text = staging.no_write(&full, 0).to_string();
        assert!(text.contains("no space left in") && text.contains(&BYTES.to_string()), "{text}");
    }

    #[test]
    fn a_directory_that_is_none_or_an_exchanged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(create(&file, false).unwrap_err().to_string().contains("Not a directory"));
        assert!(create(&dir.path().join("none"), false).unwrap_err().to_string().contains("No such file"));
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
        ImageStaging::go_on(dir, offer, PEER, false, |_| false).unwrap()
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
        staging.file.write_all_at(&[9], 5 * PAGE).unwrap();
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
            let staging = ImageStaging::go_on(dir.path(), offer, peer, false, |_| taken).unwrap();
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
    fn parked_transfers_are_swept_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        drop(go_on(dir.path(), &offer(1)));
        let written =
            std::fs::metadata(dir.path().join(journal_name(TransferId([1; 16])))).unwrap().modified().unwrap();
        let sweep = |after| ImageStaging::sweep(dir.path(), written + after, |_| false).unwrap();
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
        ImageStaging::create(dir.path(), &Name::new("vm2").unwrap(), wanted, layout(), false).unwrap();
        std::fs::write(dir.path().join(".dwcp-mine.part"), "x").unwrap();
        let removed = ImageStaging::sweep(dir.path(), SystemTime::UNIX_EPOCH, |transfer| transfer == wanted).unwrap();
        assert_eq!(removed, Swept { removed: vec![staging_name(ID)], parked: vec![] });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
