//! Where images, journals and records are kept: the seam at which the simulator puts a disk that crashes.
//!
//! ```text
//!  ImageFolder, Records ──> Folder, File ──┬── Disk: a directory of this machine
//!                                          └── a model whose crashes are enumerated (dwcp-sim)
//! ```
//!
//! What a crash may leave is the contract of these traits, and no more is assumed of a disk:
//!
//! - Bytes are durable once [`File::sync`] has returned after they were written. Of those that were not, any sector may
//!   be old or new, whatever the order in which they were written.
//! - A name is durable once [`Folder::sync`] has returned after it was given. A rename happens or does not.
//! - After a sync that failed nothing is known, and it is not tried again. Whoever opens the file next is not told of it, and
//!   reads from the kernel's cache what the disk may not have: what is to be relied upon is written again, and synced.
//! - A length or a hole is not lost in secret: a file system that cannot write its own log takes nothing more.

mod disk;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

pub use self::disk::Disk;

/// A directory: files by name, none of them a path. All calls may block.
///
/// Names are looked up below an open handle, wherever the directory is moved meanwhile, and links are not followed.
pub trait Folder: Send + Sync + fmt::Debug + 'static {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As the system says; `NotFound` when there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens a file that is only read, and locked for others to share at most: where it can be, on a disk or for a user who may
    /// not write. What is provided opens it for both.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn open_to_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.open(name)
    }

    /// Makes an empty file that only its owner may read.
    ///
    /// # Errors
    /// As the system says; `AlreadyExists` when the name is taken.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// What has this name. `None`: nothing.
    ///
    /// # Errors
    /// As the system says.
    fn stat(&self, name: &str) -> io::Result<Option<Stat>>;

    /// All names, in no order.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, in place of what has that.
    ///
    /// # Errors
    /// As the system says.
    fn replace(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a name that nothing has. After a crash it may have both.
    ///
    /// # Errors
    /// As the system says; `AlreadyExists` when the name is taken.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a second name, which nothing has.
    ///
    /// # Errors
    /// As the system says; `Unsupported` or `PermissionDenied` where files have one name only.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;

    /// Takes a name away.
    ///
    /// # Errors
    /// As the system says; `NotFound` when there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names durable.
    ///
    /// # Errors
    /// As the system says; then nothing is known.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. All calls may block, and may come from several threads.
pub trait File: Send + Sync + fmt::Debug + 'static {
    /// Fills `into` from byte `at` on.
    ///
    /// # Errors
    /// As the system says; `UnexpectedEof` when the file ends before.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `from` from byte `at` on.
    ///
    /// # Errors
    /// As the system says; some of it may be written.
    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()>;

    /// Makes zeros of a range within the file, and gives its space back where the file system can.
    ///
    /// # Errors
    /// As the system says; `Unsupported` where the file system has no holes.
    fn punch(&self, at: u64, bytes: u64) -> io::Result<()>;

    /// Makes zeros of a range and keeps its space, if it has any.
    ///
    /// # Errors
    /// As the system says; `Unsupported` where the file system cannot, which is the default.
    fn blank(&self, _at: u64, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The first bytes within a range of the file that may be other than zeros; all before them are zeros for certain.
    /// `None`: all of it is zeros. Who cannot tell says that all may be something, which is what is provided.
    ///
    /// # Errors
    /// As the system says.
    fn data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(Some(within).filter(|within| !within.is_empty()))
    }

    /// Takes the space for so many bytes from the start, without changing any.
    ///
    /// # Errors
    /// As the system says; `StorageFull` when there is none, `Unsupported` where the file system cannot.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// Cuts the file off, or makes it longer by zeros.
    ///
    /// # Errors
    /// As the system says.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// What is known of it.
    ///
    /// # Errors
    /// As the system says.
    fn stat(&self) -> io::Result<Stat>;

    /// Makes all bytes, and the length, durable.
    ///
    /// # Errors
    /// As the system says; then nothing is known, and the file is not to be trusted any more.
    fn sync(&self) -> io::Result<()>;

    /// Keeps others from locking it for as long as this handle lives. False: somebody has done so.
    ///
    /// # Errors
    /// As the system says.
    fn lock(&self) -> io::Result<bool>;

    /// The same, and waits for whoever has it now.
    ///
    /// # Errors
    /// As the system says.
    fn wait_lock(&self) -> io::Result<()>;

    /// Keeps others from locking it for as long as this handle lives, but not from sharing it. False: somebody has locked
    /// it.
    ///
    /// # Errors
    /// As the system says.
    fn share(&self) -> io::Result<bool>;
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// The same for two names, or handles, of the same file.
    pub id: (u64, u64),
    /// What it is.
    pub kind: Kind,
    /// Its length in bytes.
    pub bytes: u64,
    /// The bytes that it takes of the disk.
    pub used: u64,
    /// When it was written to.
    pub modified: SystemTime,
}

impl Stat {
    /// A regular file.
    pub fn regular(id: (u64, u64), bytes: u64, used: u64, modified: SystemTime) -> Self {
        Self { id, kind: Kind::Regular, bytes, used, modified }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Regular,
    /// A directory.
    Folder,
    /// A link, a pipe, a device.
    Other,
}

/// All bytes of a file.
///
/// # Errors
/// It cannot be read, or is longer than `limit` bytes.
#[cfg(feature = "net")]
pub(crate) fn read_all(file: &dyn File, limit: u64) -> io::Result<Vec<u8>> {
    let bytes = file.stat()?.bytes;
    let length = usize::try_from(bytes).ok().filter(|_| bytes <= limit).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut all = vec![0; length];
    file.read_at(0, &mut all)?;
    Ok(all)
}

/// A file from a byte on, as a stream.
#[cfg(feature = "net")]
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    file: &'a dyn File,
    at: u64,
    end: u64,
}

#[cfg(feature = "net")]
impl<'a> Reader<'a> {
    /// All of a file as it is now.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn of(file: &'a dyn File) -> io::Result<Self> {
        Ok(Self { file, at: 0, end: file.stat()?.bytes })
    }
}

#[cfg(feature = "net")]
impl io::Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(into.len());
        self.file.read_at(self.at, into.get_mut(..left).unwrap_or_default())?;
        self.at += u64::try_from(left).unwrap_or(0);
        Ok(left)
    }
}
