use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::{File, Folder, Kind, Stat};

/// A directory of this machine.
#[derive(Debug)]
pub struct Disk(OwnedFd);

impl Disk {
    /// Opens a directory.
    ///
    /// # Errors
    /// It is missing, or none.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path.as_ref(), flags, Mode::empty())?))
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<Arc<dyn File>> {
        // Without NONBLOCK the open of a pipe would wait for somebody to write to it.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Arc::new(fs::File::from(file)))
    }
}

impl Folder for Disk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.file(name, OFlags::RDWR)
    }

    fn open_to_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.file(name, OFlags::RDONLY)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        let stat = match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Folder,
            _ => Kind::Other,
        };
        Ok(Some(Stat {
            id: (stat.st_dev, stat.st_ino),
            kind,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            used: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            modified: moment(stat.st_mtime, stat.st_mtime_nsec),
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            // A name that is no text is none of ours.
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let renamed = match rustix::fs::renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
            // A file system without NOREPLACE: a hard link refuses an existing name as well.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(&self.0, from, AtFlags::empty())),
            other => other,
        };
        Ok(renamed?)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

/// Before 1970 is 1970: it is only asked for how old a file is.
fn moment(seconds: i64, nanos: impl TryInto<u32>) -> SystemTime {
    let since = Duration::new(u64::try_from(seconds).unwrap_or(0), nanos.try_into().unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}

impl File for fs::File {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, at)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.write_all_at(from, at)
    }

    fn punch(&self, at: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if bytes == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(self, flags, at, bytes)?)
    }

    fn blank(&self, at: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if bytes == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(self, flags, at, bytes)?)
    }

    fn data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if within.is_empty() {
            return Ok(None);
        }
        // Nobody reads or writes here by the position that this moves.
        let start = match rustix::fs::seek(self, SeekFrom::Data(within.start)) {
            Err(Errno::NXIO) => return Ok(None),
            // A file system that does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(within)),
            start => start?,
        };
        if start >= within.end {
            return Ok(None);
        }
        let end = rustix::fs::seek(self, SeekFrom::Hole(start))?;
        Ok(Some(start..end.clamp(start + 1, within.end)))
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, 0, bytes)?)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        fs::File::set_len(self, bytes)
    }

    fn stat(&self) -> io::Result<Stat> {
        let metadata = self.metadata()?;
        let kind = match () {
            () if metadata.is_file() => Kind::Regular,
            () if metadata.is_dir() => Kind::Folder,
            () => Kind::Other,
        };
        Ok(Stat {
            id: (metadata.dev(), metadata.ino()),
            kind,
            bytes: metadata.len(),
            used: metadata.blocks() * 512,
            modified: metadata.modified()?,
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn lock(&self) -> io::Result<bool> {
        match self.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn wait_lock(&self) -> io::Result<()> {
        fs::File::lock(self)
    }

    fn share(&self) -> io::Result<bool> {
        match self.try_lock_shared() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}
