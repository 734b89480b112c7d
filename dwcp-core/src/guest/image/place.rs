//! The directory of an image on its way: its names there, and what may be done with them.

use std::io;
use std::sync::Arc;

use super::folder::ImageFolder;
use super::journal::{About, Journal};
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
    pub(super) file: Arc<dyn File>,
    pub(super) journal: Journal,
    pub(super) held: Leaves,
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
            let file = self.folder.names.open(&name);
            if file.is_ok_and(|file| Journal::about(file.as_ref()).as_ref() == Some(about)) {
                left.push(transfer);
            }
        }
        // What is taken first must not depend on the order of a directory.
        left.sort_unstable();
        Ok(left)
    }

    /// The files of an earlier transfer, if they fit together.
    pub(super) fn adopt(&self, about: &About, left: TransferId) -> io::Result<Option<Found>> {
        let names = &self.folder.names;
        let (file, journal) = (names.open(&staging_name(left))?, names.open(&journal_name(left))?);
        if file.stat()?.bytes != about.layout.bytes() {
            return Ok(None);
        }
        let opened = Journal::go_on(journal, about, Arc::clone(&file), self.folder.committer.clone())?;
        Ok(opened.map(|(journal, held)| Found { file, journal, held }))
    }

    /// Gives the files of an earlier transfer the names of this one. The journal goes first: without one a staging
    /// file is swept away.
    pub(super) fn take_over(&self, left: TransferId) -> io::Result<()> {
        if left != self.transfer {
            self.folder.names.replace(&journal_name(left), &journal_name(self.transfer))?;
            self.folder.names.replace(&staging_name(left), &self.staging)?;
        }
        self.folder.names.sync()
    }

    pub(super) fn unlink_journal(&self) {
        let _ = self.folder.names.remove(&journal_name(self.transfer));
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
