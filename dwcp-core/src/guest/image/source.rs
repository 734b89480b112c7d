use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, SeekFrom};

use super::ledger::Ledger;
use crate::extent::{Layout, PAGE_BYTES, RegionId};
use crate::guest::{DirtyMap, Guest, GuestError, Pending};
use crate::wire::Digest;

const PAGE: u64 = 4096;
// `f_type` of statfs(2), from linux/magic.h.
const EXT4: i128 = 0xEF53;
const XFS: i128 = 0x5846_5342;
const BTRFS: i128 = 0x9123_683E;
const F2FS: i128 = 0xF2F5_2010;

/// A file that is sent as it is: one region of the file's size. Holes cost no read.
///
/// Somebody who writes to the file meanwhile is noticed by its times, size and identity, which are
/// compared after every read, at the pause and at the last harvest; the transfer then ends with
/// [`GuestError::Changed`]. What the kernel does not tell is not noticed: a store through a shared mapping leaves no
/// time behind when its page is dirty already, and none ever on tmpfs. Such a file is a live guest, not an image.
#[derive(Debug)]
pub struct ImageSource {
    image: ImageFile,
    layout: Layout,
    ledger: Option<Arc<Ledger>>,
}

impl ImageSource {
    /// Opens a file for sending.
    ///
    /// # Errors
    /// It is missing, unreadable, no regular file, or empty.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, GuestError> {
        let image = ImageFile::open(path.into())?;
        let layout = image.layout()?;
        Ok(Self { image, layout, ledger: None })
    }

    /// Keeps what the pages hash to in a folder: a sender that is killed and started again need not read again what
    /// the sink holds, if the file is still the same by device, inode, size and times. Another sender of the same
    /// file at the same time does without, and so does a file that is not on ext4, xfs, btrfs or f2fs: elsewhere a
    /// write through a shared mapping may leave no time behind. What nobody came back for goes after 24 hours.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn with_ledger(self, folder: impl AsRef<Path>) -> Result<Self, GuestError> {
        let folder = folder.as_ref();
        let Stamp { file: (device, inode), changed, .. } = self.image.stamp;
        let name = format!("{device:x}-{inode:x}");
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(u64::try_from(changed.0).unwrap_or(0), u32::try_from(changed.1).unwrap_or(0));
        let ledger = Ledger::open(folder, &name, self.image.stamp.digest(), changed, &self.layout)
            .map_err(|error| GuestError::io(format!("cannot keep a ledger in {}", folder.display()), error))?;
        let ledger = ledger.filter(|_| self.image.shows_every_write()).map(Arc::new);
        if let Some(ledger) = ledger.clone().filter(|ledger| !ledger.is_trusted()) {
            self.image.when_written_back(move || ledger.trust());
        }
        Ok(Self { ledger, ..self })
    }

    /// Pages that lie in holes of the file, and so are zeros.
    pub fn holes(&self) -> DirtyMap {
        let mut holes = DirtyMap::new(&self.layout);
        holes.mark_words(RegionId(0), 0, self.image.data_words().iter().map(|data| !data));
        holes
    }

    /// Removes the ledger, once the image is somebody else's.
    pub fn forget_ledger(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.remove();
        }
    }
}

impl Guest for ImageSource {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        if region != RegionId(0) {
            return Err(GuestError::Outside { region, first });
        }
        self.image.read(first, into)
    }

    fn harvest(&self, _: &mut DirtyMap) -> Result<Pending, GuestError> {
        self.image.verify()?;
        Ok(Pending::Unknown)
    }

    fn recall(&self, region: RegionId, page: u32) -> Option<Digest> {
        self.ledger.as_ref()?.recall(region, page)
    }

    fn hashed(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        if let Some(ledger) = &self.ledger {
            ledger.note(region, first, leaves);
        }
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.image.verify()
    }
}

/// An open file that must not change, and which of its pages are no hole.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    path: PathBuf,
    stamp: Stamp,
    data: PageMap,
}

impl ImageFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, GuestError> {
        // Without NONBLOCK the open of a pipe would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(&path, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| GuestError::io(format!("cannot open {}", path.display()), error.into()))?;
        let metadata = metadata(&file, &path)?;
        let refuse = |why: &str| Err(GuestError::Other(format!("{} {why}", path.display())));
        if metadata.is_dir() {
            return refuse("is a directory; name an image file");
        }
        if !metadata.is_file() {
            return refuse("is not a regular file; name an image file");
        }
        if metadata.len() == 0 {
            return refuse("is empty (0 bytes): it has not one page");
        }
        let data = PageMap::scan(&file, metadata.len());
        Ok(Self { stamp: Stamp::of(&metadata), data, file, path })
    }

    /// Whether every write to a clean page, also one through a shared mapping, changes the file's times.
    fn shows_every_write(&self) -> bool {
        let kind = rustix::fs::fstatfs(&self.file).map(|stat| i128::from(stat.f_type));
        kind.is_ok_and(|kind| [EXT4, XFS, BTRFS, F2FS].contains(&kind))
    }

    /// Writes the dirty pages of the file back, on a thread of its own, and calls `done` if the file is still the same
    /// then: a page that was dirty could have been written to without a trace, and from then on none can.
    fn when_written_back(&self, done: impl FnOnce() + Send + 'static) {
        let (file, stamp) = (self.file.try_clone(), self.stamp);
        let same = move |file: &File| file.metadata().is_ok_and(|metadata| Stamp::of(&metadata) == stamp);
        let write_back = move || {
            if let Ok(file) = file
                && same(&file)
                && file.sync_data().is_ok()
                && same(&file)
            {
                done();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("dwcp-writeback".into()).spawn(write_back) {
            tracing::debug!(%error, "what the image hashes to is not kept");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Words of the bitmap of pages that are no hole.
    pub(super) fn data_words(&self) -> &[u64] {
        &self.data.0
    }

    pub(super) fn layout(&self) -> Result<Layout, GuestError> {
        Layout::new(&[self.bytes()]).map_err(|error| GuestError::Other(format!("{}: {error}", self.path.display())))
    }

    /// Copies pages, zeros past the end.
    pub(super) fn read(&self, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let pages = u32::try_from(into.len() / PAGE_BYTES).unwrap_or(u32::MAX);
        let outside = GuestError::Outside { region: RegionId(0), first };
        let Some(end) = first.checked_add(pages).filter(|&end| u64::from(end) <= self.bytes().div_ceil(PAGE)) else {
            return Err(outside);
        };
        let (mut page, mut rest) = (first, into);
        while page < end {
            let (holds_data, next) = self.data.run(page, end);
            let bytes = usize::try_from(next - page).unwrap_or(0) * PAGE_BYTES;
            let Some((now, later)) = rest.split_at_mut_checked(bytes) else { return Err(outside) };
            if holds_data {
                self.fill(u64::from(page) * PAGE, now)?;
            } else {
                now.fill(0);
            }
            (page, rest) = (next, later);
        }
        self.verify()
    }

    fn fill(&self, offset: u64, into: &mut [u8]) -> Result<(), GuestError> {
        let inside = usize::try_from(self.bytes().saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let (mut rest, tail) = into.split_at_mut(inside);
        let mut at = offset;
        while !rest.is_empty() {
            match self.file.read_at(rest, at) {
                // Shorter than it was: somebody truncated it.
                Ok(0) => return Err(self.changed()),
                Ok(count) => {
                    at += u64::try_from(count).unwrap_or(u64::MAX);
                    rest = rest.get_mut(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = format!("cannot read {} at byte {at}", self.path.display());
                    return Err(GuestError::io(what, error));
                }
            }
        }
        tail.fill(0);
        Ok(())
    }

    /// Fails when the file is no longer what was opened. The kernel updates a file's times before
    /// its bytes, so a check *after* a read covers that read.
    pub(super) fn verify(&self) -> Result<(), GuestError> {
        let now = Stamp::of(&metadata(&self.file, &self.path)?);
        if now == self.stamp { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> GuestError {
        GuestError::Changed { what: self.path.display().to_string() }
    }
}

fn metadata(file: &File, path: &Path) -> Result<Metadata, GuestError> {
    file.metadata().map_err(|error| GuestError::io(format!("cannot look at {}", path.display()), error))
}

/// By what a change of a file is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    /// Cannot be set by the owner, as `modified` can.
    changed: (i64, i64),
}

impl Stamp {
    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for number in [self.file.0, self.file.1, self.bytes] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [self.modified.0, self.modified.1, self.changed.0, self.changed.1] {
            hasher.update(&number.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// One bit for each page of a file: set when it is no hole. A bitmap, because a list of extents of
/// a fragmented file has no useful bound, and this one is 32 MiB per TiB.
#[derive(Debug)]
struct PageMap(Vec<u64>);

impl PageMap {
    /// Asks the file system. One that cannot tell reports everything as data.
    fn scan(file: &File, bytes: u64) -> Self {
        let pages = bytes.div_ceil(PAGE);
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        let mut map = Self(vec![0; words]);
        let mut at = 0;
        while at < bytes {
            let (data, hole) = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) if data < bytes => (data, rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(bytes)),
                // Nothing but a hole up to the end.
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(_) => (at, bytes),
            };
            // A file that grows while we look must not make us go backwards or for ever.
            let end = hole.clamp(data + 1, bytes);
            map.mark(data / PAGE, end.div_ceil(PAGE));
            at = end;
        }
        map
    }

    fn mark(&mut self, first: u64, end: u64) {
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let count = (64 - bit).min(end - page);
            if let Some(word) = usize::try_from(page / 64).ok().and_then(|word| self.0.get_mut(word)) {
                *word |= (u64::MAX >> (64 - count)) << bit;
            }
            page += count;
        }
    }

    fn get(&self, page: u32) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether `page` is data, and one past the last page up to `end` of which the same is true.
    fn run(&self, page: u32, end: u32) -> (bool, u32) {
        let data = self.get(page);
        (data, (page + 1..end).find(|&next| self.get(next) != data).unwrap_or(end))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn sparse(path: &Path) -> Vec<u8> {
        let bytes = 70 * PAGE_BYTES + 123;
        let mut expected = vec![0; bytes];
        expected[20 * PAGE_BYTES..21 * PAGE_BYTES].fill(7);
        expected[bytes - 3..].fill(9);
        let mut file = File::create(path).unwrap();
        file.set_len(u64::try_from(bytes).unwrap()).unwrap();
        for (at, len) in [(20 * PAGE_BYTES, PAGE_BYTES), (bytes - 3, 3)] {
            file.seek(io::SeekFrom::Start(u64::try_from(at).unwrap())).unwrap();
            file.write_all(&expected[at..at + len]).unwrap();
        }
        expected
    }

    #[test]
    fn a_sparse_file_reads_as_its_bytes_and_zeros_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let mut expected = sparse(&path);
        let guest = ImageSource::open(&path).unwrap();
        assert_eq!(guest.layout().bytes(), 70 * PAGE + 123);
        expected.resize(71 * PAGE_BYTES, 0);
        for (first, count) in [(0, 71), (19, 3), (70, 1)] {
            let mut read = vec![1; count * PAGE_BYTES];
            guest.read(RegionId(0), u32::try_from(first).unwrap(), &mut read).unwrap();
            assert!(read == expected[first * PAGE_BYTES..(first + count) * PAGE_BYTES], "pages {first}+{count}");
        }
        let mut page = vec![0; PAGE_BYTES];
        assert!(matches!(guest.read(RegionId(0), 71, &mut page), Err(GuestError::Outside { .. })));
        assert!(matches!(guest.read(RegionId(1), 0, &mut page), Err(GuestError::Outside { .. })));
    }

    #[test]
    fn a_store_through_an_old_mapping_shows_once_the_image_was_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::write(&path, vec![1; 4 * PAGE_BYTES]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mapping = crate::guest::MappedRegion::map(file.as_fd(), 0, 4 * PAGE_BYTES).unwrap();
        // The page is dirty from now on, and the file's time is another than the next store's.
        mapping.write(5, &[2]).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let image = ImageSource::open(&path).unwrap().with_ledger(dir.path().join("ledgers")).unwrap();
        let Some(ledger) = &image.ledger else {
            eprintln!("skipped: this file system keeps no ledgers");
            return;
        };
        while !ledger.is_trusted() {
            std::thread::yield_now();
        }
        image.image.verify().unwrap();
        mapping.write(5, &[3]).unwrap();
        assert!(matches!(image.image.verify(), Err(GuestError::Changed { .. })), "a store without a trace");
    }

    #[test]
    fn holes_are_known_where_the_file_system_tells() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        sparse(&path);
        let image = ImageFile::open(path).unwrap();
        assert!(image.data.get(20) && image.data.get(70));
        let told = rustix::fs::seek(&image.file, SeekFrom::Hole(0)) == Ok(0);
        assert_eq!(image.data.get(0), !told, "page 0 is a hole");
    }

    #[test]
    fn a_change_is_noticed_by_the_next_read_the_harvest_and_the_pause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::write(&path, vec![1; 3 * PAGE_BYTES]).unwrap();
        // Times have the grain of a timer tick on older kernels: let the change be well apart.
        let before = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
        let guest = ImageSource::open(&path).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        guest.read(RegionId(0), 0, &mut page).unwrap();
        std::fs::write(&path, vec![2; 3 * PAGE_BYTES]).unwrap();
        let mut dirty = DirtyMap::new(guest.layout());
        for result in [guest.read(RegionId(0), 2, &mut page), guest.pause(), guest.harvest(&mut dirty).map(|_| ())] {
            let error = result.unwrap_err();
            assert!(matches!(error, GuestError::Changed { .. }), "{error}");
            assert!(error.to_string().contains("a.img"), "{error}");
        }
    }

    #[test]
    fn a_truncated_file_is_a_changed_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::write(&path, vec![1; 3 * PAGE_BYTES]).unwrap();
        let guest = ImageSource::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(PAGE).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        assert!(matches!(guest.read(RegionId(0), 2, &mut page), Err(GuestError::Changed { .. })));
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.img");
        File::create(&empty).unwrap();
        for (path, word) in [
            (dir.path().to_owned(), "is a directory"),
            (empty, "0 bytes"),
            (dir.path().join("missing.img"), "No such file"),
            (PathBuf::from("/dev/null"), "not a regular file"),
        ] {
            let text = ImageSource::open(&path).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains(&*path.to_string_lossy()), "{text}");
        }
    }
}
