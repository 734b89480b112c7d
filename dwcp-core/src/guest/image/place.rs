//! The directory of an image on its way: its names there, and what may be done with them.

use std::io;
use std::sync::Arc;

use super::folder::ImageFolder;
use super::journal::{About, Journal, Old};
use crate::guest::GuestError;
use crate::session::Leaves;
use crate::storage::{File, Kind};
use crate::wire::{Name, TransferId};

/// Where an image goes, and under which names on its way.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: ImageFolder,
    pub(super) transfer: TransferId,
    pub(super) staging: String,
    pub(super) name: Name,
}

/// What an earlier transfer left.
pub(super) struct Found {
    pub(super) left: TransferId,
    /// More of the same image: perhaps other names of the same file, which a crash left.
    pub(super) others: Vec<TransferId>,
    pub(super) file: Arc<dyn File>,
    /// Nobody else has it, for certain.
    pub(super) alone: bool,
    pub(super) journal: Old,
}

/// What a name in the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Ours,
    Other,
    None,
}

impl Place {
    pub(super) fn new(folder: &ImageFolder, name: &Name, transfer: TransferId) -> Self {
        Self { folder: folder.clone(), transfer, staging: staging_name(transfer), name: name.clone() }
    }

    pub(super) fn refuse_existing(&self) -> Result<(), GuestError> {
        match self.folder.names.stat(self.name.as_str()) {
            Ok(None) => Ok(()),
            Ok(Some(stat)) if stat.kind == Kind::Folder => Err(GuestError::Other(format!(
                "{} is a directory and cannot be replaced; send it under another name",
                self.folder.shown(self.name.as_str())
            ))),
            Ok(Some(_)) if self.folder.replace => Ok(()),
            Ok(Some(_)) => Err(self.exists()),
            Err(error) => Err(self.folder.failed("cannot look into", error)),
        }
    }

    /// Whether a name is this very file.
    pub(super) fn presence(&self, name: &str, file: &dyn File) -> Result<Presence, GuestError> {
        let failed = |error| self.folder.failed("cannot look into", error);
        let ours = file.stat().map_err(failed)?;
        Ok(match self.folder.names.stat(name).map_err(failed)? {
            Some(stat) if stat.id == ours.id => Presence::Ours,
            Some(_) => Presence::Other,
            None => Presence::None,
        })
    }

    pub(super) fn rename(&self) -> Result<(), GuestError> {
        let (from, to) = (self.staging.as_str(), self.name.as_str());
        let names = &self.folder.names;
        let renamed = if self.folder.replace { names.replace(from, to) } else { names.rename(from, to) };
        renamed.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists(),
            _ => self.folder.failed(&format!("cannot rename {from} to {to} in"), error),
        })
    }

    /// Earlier transfers of the same image that have a journal.
    pub(super) fn left(
        &self,
        about: &About,
        taken: impl Fn(TransferId) -> bool,
    ) -> Result<Vec<TransferId>, GuestError> {
        let mut left = Vec::new();
        for name in self.folder.list()? {
            let Some(transfer) = transfer_of(&name, JOURNAL).filter(|&transfer| !taken(transfer)) else { continue };
            let whose = self.folder.names.open(&name).and_then(|file| Journal::about(file.as_ref()));
            match known(whose) {
                Ok(whose) if whose.as_ref() == Some(about) => left.push(transfer),
                Ok(_) => {}
                Err(error) if is_exhausted(&error) => return Err(self.unread(transfer, error)),
                // Perhaps another's: it keeps nobody else from anything, and stays as it is.
                Err(error) => tracing::warn!(%error, %transfer, "what is left of a transfer cannot be read"),
            }
        }
        // What is taken first must not depend on the order of a directory.
        left.sort_unstable();
        Ok(left)
    }

    /// What an earlier transfer left, if its files fit together. It is locked before it is read: nobody adds to it any more.
    ///
    /// # Errors
    /// It cannot be read just now, or somebody has it. What is durable is not thrown away for that.
    pub(super) fn look(&self, about: &About, left: TransferId) -> Result<Option<Found>, GuestError> {
        let names = &self.folder.names;
        let unread = |error| self.unread(left, error);
        let file = known(names.open(&staging_name(left)).map(Some)).map_err(unread)?;
        let Some(file) = file else { return Ok(None) };
        let alone = match file.lock() {
            Ok(false) => return Err(self.busy(left)),
            // Where files cannot be locked nobody can be noticed.
            locked => locked.is_ok(),
        };
        if file.stat().map_err(unread)?.bytes != about.layout.bytes() {
            return Ok(None);
        }
        let journal = names.open(&journal_name(left)).and_then(Journal::read);
        let journal = known(journal).map_err(unread)?.filter(|journal| journal.about() == about);
        Ok(journal.map(|journal| Found { left, others: Vec::new(), file, alone, journal }))
    }

    /// Whether the staging file of a transfer is this one.
    pub(super) fn is_also(&self, left: TransferId, found: &Found) -> Result<bool, GuestError> {
        Ok(self.presence(&staging_name(left), found.file.as_ref())? == Presence::Ours)
    }

    fn busy(&self, left: TransferId) -> GuestError {
        let what = format!(
            "{} in {} is still being written to by a session that ended, or by another process; wait until that has ended, \
             and send it again",
            staging_name(left),
            self.folder.place()
        );
        GuestError::Busy { what }
    }

    fn unread(&self, left: TransferId, error: io::Error) -> GuestError {
        let what = format!(
            "cannot read what is left of transfer {left} (mend that and send it again, or throw it away with `dwcp transfers \
             abort {left}`) in"
        );
        self.folder.failed(&what, error)
    }

    /// Removes what a crash left under the names of this very transfer and cannot be gone on with: a journal that was
    /// being made, a staging file without one.
    pub(super) fn clear(&self, about: &About) -> Result<(), GuestError> {
        let left = self.folder.names.open(&journal_name(self.transfer)).and_then(|file| Journal::about(file.as_ref()));
        let left = known(left).map_err(|error| self.unread(self.transfer, error))?;
        // Its own sender may send another image under the id, such as the same one grown.
        if left.is_some_and(|left| left.peer != about.peer) {
            return Err(GuestError::Other(format!(
                "transfer {} is another peer's here, which was cut off; begin a new transfer (`dwcp transfers abort`, \
                 then send again)",
                self.transfer
            )));
        }
        self.folder.remove(self.transfer);
        // Lest a crash bring a journal back beside a new staging file.
        self.sync()
    }

    /// A new journal for this transfer that says what is held.
    pub(super) fn begin(&self, about: &About, file: &Arc<dyn File>, held: &Leaves) -> io::Result<Journal> {
        let committer = self.folder.committer.clone();
        let names = Arc::clone(&self.folder.names);
        Journal::begin(names, self.transfer, about, Arc::clone(file), held, committer)
    }

    /// Makes this transfer's what an earlier one left. From its return on no crash brings back the old names, nor
    /// the old journal, whose last entries may never have reached the disk.
    pub(super) fn take_over(&self, about: &About, found: &Found) -> io::Result<Journal> {
        let names = &self.folder.names;
        let renamed = found.left != self.transfer;
        let journal = match self.go_on(found)? {
            Some(journal) => journal,
            None => self.begin(about, &found.file, found.journal.held())?,
        };
        if renamed {
            self.also_called(&staging_name(found.left), &self.staging)?;
        }
        names.sync()?;
        let gone = found.others.iter().copied().chain(renamed.then_some(found.left));
        let gone: Vec<TransferId> = gone.filter(|&gone| gone != self.transfer).collect();
        if !gone.is_empty() {
            gone.into_iter().for_each(|gone| self.folder.remove(gone));
            names.sync()?;
        }
        Ok(journal)
    }

    /// Goes on with the journal as it is, unless that is too long, or somebody may still append to it.
    fn go_on(&self, found: &Found) -> io::Result<Option<Journal>> {
        // Whoever appends to a journal has its staging file locked.
        if !found.alone {
            return Ok(None);
        }
        let (names, committer) = (Arc::clone(&self.folder.names), self.folder.committer.clone());
        let data = Arc::clone(&found.file);
        let journal = Journal::go_on(Arc::clone(&names), self.transfer, &found.journal, data, committer)?;
        if journal.is_some() {
            // One that was being written anew when its process died.
            let _ = names.remove(&beside_name(self.transfer));
            if found.left != self.transfer {
                self.also_called(&journal_name(found.left), &journal_name(self.transfer))?;
            }
        }
        Ok(journal)
    }

    /// Gives a file a second name, or only that, where files have one name only: there a crash before the names are synced
    /// costs what was held.
    fn also_called(&self, old: &str, new: &str) -> io::Result<()> {
        let names = &self.folder.names;
        // A second name that a crash left.
        let _ = names.remove(new);
        match names.link(old, new) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                names.replace(old, new)
            }
            linked => linked,
        }
    }

    pub(super) fn unlink_journal(&self) {
        let _ = self.folder.names.remove(&journal_name(self.transfer));
        let _ = self.folder.names.remove(&beside_name(self.transfer));
    }

    pub(super) fn unlink_staging(&self) -> Result<(), GuestError> {
        let removed = self.folder.names.remove(&self.staging);
        removed.map_err(|error| self.folder.failed("cannot remove the staging name in", error))
    }

    pub(super) fn sync(&self) -> Result<(), GuestError> {
        self.folder.names.sync().map_err(|error| self.folder.failed("cannot make durable", error))
    }

    pub(super) fn not_staged(&self, name: &str) -> GuestError {
        GuestError::NotStaged { what: self.folder.shown(name) }
    }

    fn exists(&self) -> GuestError {
        GuestError::Exists { what: self.folder.shown(self.name.as_str()) }
    }
}

/// What was found, if anything that could be ours: a disk or a process that fails just now says nothing about what is there.
fn known<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        found => found,
    }
}

/// Whether it says something about this process and its system only: no more files, or no memory.
fn is_exhausted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Hidden, so that listings and globs of images leave it out.
pub(super) fn staging_name(transfer: TransferId) -> String {
    format!(".dwcp-{transfer}{STAGING}")
}

pub(super) fn journal_name(transfer: TransferId) -> String {
    format!(".dwcp-{transfer}{JOURNAL}")
}

/// Where a journal is written before it takes the place of another.
pub(super) fn beside_name(transfer: TransferId) -> String {
    format!(".dwcp-{transfer}{BESIDE}")
}

pub(super) const STAGING: &str = ".part";
pub(super) const JOURNAL: &str = ".wal";
/// A journal that is being written.
pub(super) const BESIDE: &str = ".new";

pub(super) fn transfer_of(name: &str, ending: &str) -> Option<TransferId> {
    name.strip_prefix(".dwcp-")?.strip_suffix(ending)?.parse().ok()
}
