//! Where a sender remembers transfers that it gave up and was not told the end of.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dwcp_core::net::{Damaged, Listing, Records};
use dwcp_core::session::{Record, Standing};
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::place::is_folder;
use crate::report::Report;

/// The folder that was named, or the user's own.
pub(crate) fn folder(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    given
        .or_else(|| absolute("XDG_STATE_HOME").map(|home| home.join("dwcp")))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state/dwcp")))
        .ok_or_else(|| {
            Failure::new(Exit::Usage, "neither XDG_STATE_HOME nor HOME names a folder for the state of transfers")
                .advise("Name one with --state-dir.")
        })
}

/// Nothing but folders stands where one is, or is to be made.
pub(crate) fn may_be_made(path: &Path) -> Result<(), Failure> {
    match path.ancestors().find(|part| part.symlink_metadata().is_ok()) {
        Some(part) if !is_folder(part)? => {
            let what = format!("{} is no directory, so no folder can be made there", part.display());
            Err(Failure::new(Exit::Failed, what).advise("Name another folder."))
        }
        _ => Ok(()),
    }
}

/// Makes a folder that only its owner can look into.
pub(crate) fn make(path: &Path) -> Result<(), Failure> {
    may_be_made(path)?;
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot make the folder {}: {error}", path.display()))
            .advise("Give this user the right to it, or name another folder.")
    })
}

/// Records with this standing, by name. What cannot be read is told in the log: it may be one of them.
pub(crate) fn standing(records: &Records, standing: Standing) -> Result<Vec<Record>, Failure> {
    let listing = look(records, standing)?;
    for damaged in &listing.damaged {
        tracing::warn!("a record cannot be read: {}", damaged.error);
    }
    Ok(listing.records)
}

/// Records with this standing, by name, and files that are no record.
pub(crate) fn look(records: &Records, standing: Standing) -> Result<Listing, Failure> {
    let mut listing = records.list()?;
    listing.records.retain(|record| record.standing == standing);
    listing.records.sort_by(|a, b| (&a.name, a.transfer).cmp(&(&b.name, b.transfer)));
    Ok(listing)
}

/// A file that is no record, for people and in a JSON line.
pub(crate) fn tell_damaged(damaged: &Damaged, report: &Report) {
    let error = damaged.error.to_string();
    report.warn(&format!("warning: a record cannot be read: {error}"));
    let transfer = damaged.transfer.map(|transfer| transfer.to_string());
    report.event("warning", &Warning { transfer, error });
}

/// Something that went on, but that an operator must look at.
#[derive(Debug, Serialize)]
pub(crate) struct Warning {
    pub(crate) transfer: Option<String>,
    pub(crate) error: String,
}

/// A transfer in a JSON line.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    transfer: String,
    name: String,
    standing: &'static str,
    peer: String,
    root: String,
}

impl From<&Record> for Shown {
    fn from(record: &Record) -> Self {
        Self {
            transfer: record.transfer.to_string(),
            name: record.name.to_string(),
            standing: record.standing.as_str(),
            peer: record.peer.to_string(),
            root: record.root.to_string(),
        }
    }
}

/// Takes a receiver's directory for this process alone; `None` while another has it.
pub(crate) fn claim(records: &Path) -> io::Result<Option<File>> {
    let lock = File::create(records.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}
