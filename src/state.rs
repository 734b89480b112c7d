//! Where a sender remembers transfers that it gave up and was not told the end of.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dwcp_core::net::Records;
use dwcp_core::session::{Record, Standing};
use serde::Serialize;

use crate::exit::{Exit, Failure};

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

/// Makes a folder that only its owner can look into.
pub(crate) fn make(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot make the folder {}: {error}", path.display()))
            .advise("Give this user the right to it, or name another folder.")
    })
}

/// Records with this standing, oldest name first.
pub(crate) fn standing(records: &Records, standing: Standing) -> Result<Vec<Record>, Failure> {
    let mut found: Vec<Record> = records.list()?.into_iter().filter(|record| record.standing == standing).collect();
    found.sort_by(|a, b| (&a.name, a.transfer).cmp(&(&b.name, b.transfer)));
    Ok(found)
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
