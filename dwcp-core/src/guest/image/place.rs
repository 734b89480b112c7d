//! The directory of an image on its way: its names there, and what may be done with them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::journal::{About, Journal};
use crate::guest::GuestError;
use crate::session::Leaves;
use crate::wire::{Name, TransferId};

/// Where an image goes, and under which names on its way.
#[derive(Debug)]
pub(super) struct Place {
    /// All names are looked up below this handle, wherever the directory is moved meanwhile.
    pub(super) dir: OwnedFd,
    /// For messages.
    pub(super) path: PathBuf,
    pub(super) staging: String,
    pub(super) name: Name,
    pub(super) replace: bool,
}

/// What a name in the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Ours,
    Other,
    None,
}

impl Place {
    pub(super) fn open(path: &Path, name: &Name, transfer: TransferId, replace: bool) -> Result<Self, GuestError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| GuestError::io(format!("cannot open the directory {}", path.display()), error.into()))?;
        Ok(Self { dir, path: path.to_owned(), staging: staging_name(transfer), name: name.clone(), replace })
    }

    pub(super) fn refuse_existing(&self) -> Result<(), GuestError> {
        match rustix::fs::statat(&self.dir, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => Err(GuestError::Other(format!(
                "{} is a directory and cannot be replaced; send it under another name",
                self.path.join(self.name.as_str()).display()
            ))),
            Ok(_) if self.replace => Ok(()),
            Ok(_) => Err(self.exists()),
            Err(error) => Err(self.failed("cannot look into", error)),
        }
    }

    /// Whether a name is this very file.
    pub(super) fn presence(&self, name: &str, file: &File) -> Result<Presence, GuestError> {
        let failed = |error| self.failed("cannot look into", error);
        let ours = rustix::fs::fstat(file).map_err(failed)?;
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (ours.st_dev, ours.st_ino) => Ok(Presence::Ours),
            Ok(_) => Ok(Presence::Other),
            Err(Errno::NOENT) => Ok(Presence::None),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn rename(&self) -> Result<(), GuestError> {
        let (dir, from, to) = (&self.dir, self.staging.as_str(), self.name.as_str());
        let renamed = if self.replace {
            rustix::fs::renameat(dir, from, dir, to)
        } else {
            match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
                // A file system without NOREPLACE: a hard link refuses an existing name as well.
                Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())
                    .and_then(|()| rustix::fs::unlinkat(dir, from, AtFlags::empty())),
                other => other,
            }
        };
        renamed.map_err(|error| match error {
            Errno::EXIST => self.exists(),
            error => GuestError::io(format!("cannot rename {from} to {to} in {}", self.path.display()), error.into()),
        })
    }

    /// A new file of mode 0600.
    pub(super) fn make(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)?)
    }

    pub(super) fn find(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(&self.dir, name, flags, Mode::empty()).map(File::from)?)
    }

    /// Earlier transfers of the same image that have a journal.
    pub(super) fn left(
        &self,
        about: &About,
        taken: impl Fn(TransferId) -> bool,
    ) -> Result<Vec<TransferId>, GuestError> {
        let unreadable = |error| GuestError::io(format!("cannot list {}", self.path.display()), error);
        let mut left = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let Ok(name) = entry.map_err(unreadable)?.file_name().into_string() else { continue };
            let Some(transfer) = transfer_of(&name, JOURNAL).filter(|&transfer| !taken(transfer)) else { continue };
            if self.find(&name).is_ok_and(|file| Journal::about(&file).as_ref() == Some(about)) {
                left.push(transfer);
            }
        }
        Ok(left)
    }

    /// The files of an earlier transfer, if they fit together.
    pub(super) fn adopt(&self, about: &About, left: TransferId) -> io::Result<Option<(File, Journal, Leaves)>> {
        let (file, journal) = (self.find(&staging_name(left))?, self.find(&journal_name(left))?);
        if file.metadata()?.len() != about.layout.bytes() {
            return Ok(None);
        }
        let opened = Journal::go_on(journal, about, file.try_clone()?)?;
        Ok(opened.map(|(journal, held)| (file, journal, held)))
    }

    pub(super) fn remove(&self, left: TransferId) {
        for name in [staging_name(left), journal_name(left)] {
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
    }

    /// Gives the files of an earlier transfer the names of this one. The journal goes first: without one a staging
    /// file is swept away.
    pub(super) fn take_over(&self, left: TransferId) -> io::Result<()> {
        let journal = self.staging.replace(STAGING, JOURNAL);
        rustix::fs::renameat(&self.dir, journal_name(left), &self.dir, journal)?;
        rustix::fs::renameat(&self.dir, staging_name(left), &self.dir, &self.staging)?;
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    pub(super) fn unlink_journal(&self) {
        let _ = rustix::fs::unlinkat(&self.dir, self.staging.replace(STAGING, JOURNAL), AtFlags::empty());
    }

    pub(super) fn unlink_staging(&self) -> Result<(), GuestError> {
        rustix::fs::unlinkat(&self.dir, &self.staging, AtFlags::empty())
            .map_err(|error| self.failed("cannot remove the staging name in", error))
    }

    pub(super) fn sync(&self) -> Result<(), GuestError> {
        rustix::fs::fsync(&self.dir).map_err(|error| self.failed("cannot make durable", error))
    }

    pub(super) fn not_staged(&self, name: &str) -> GuestError {
        GuestError::NotStaged { what: self.path.join(name).display().to_string() }
    }

    pub(super) fn exists(&self) -> GuestError {
        GuestError::Exists { what: self.path.join(self.name.as_str()).display().to_string() }
    }

    pub(super) fn failed(&self, what: &str, error: Errno) -> GuestError {
        GuestError::io(format!("{what} {}", self.path.display()), error.into())
    }
}

/// Hidden, so that listings and globs of images leave it out.
pub(super) fn staging_name(transfer: TransferId) -> String {
    format!(".dwcp-{transfer}{STAGING}")
}

pub(super) fn journal_name(transfer: TransferId) -> String {
    format!(".dwcp-{transfer}{JOURNAL}")
}

pub(super) const STAGING: &str = ".part";
pub(super) const JOURNAL: &str = ".wal";

pub(super) fn transfer_of(name: &str, ending: &str) -> Option<TransferId> {
    name.strip_prefix(".dwcp-")?.strip_suffix(ending)?.parse().ok()
}
