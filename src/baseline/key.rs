//! The file with a store's key.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dwcp_core::baseline::{KEY_BYTES, StoreKey};
use dwcp_core::storage::{Disk, Folder};

use crate::exit::{Exit, Failure};

/// Reads a key that nobody else can read.
pub(super) fn load(path: &Path) -> Result<StoreKey, Failure> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let failure = failed(format!("cannot read the key {shown}: {error}"));
        match error.kind() {
            ErrorKind::NotFound => failure.advise(
                "Name the key that the store was made with, or bring it from a node that shares its baselines; for a new \
                 store let `dwcp baseline add --make-key` make one.",
            ),
            ErrorKind::PermissionDenied => failure.advise("Run as the user whose key it is."),
            _ => failure,
        }
    };
    // Before it is opened: a pipe would let us wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(failed(format!("{shown} is no key: it is no regular file")));
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.len() != 32 {
        let what = format!("{shown} is no key: it has {} bytes, and a key has {KEY_BYTES}", metadata.len());
        return Err(failed(what).advise("Name the file that `dwcp baseline add --make-key` made."));
    }
    let mut bytes = [0; KEY_BYTES];
    (&file).read_exact(&mut bytes).map_err(unreadable)?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        let what = format!("others can read the key {shown} (mode {:04o})", mode & 0o7777);
        return Err(failed(what).advise(format!(
            "Run: chmod 600 {shown} - and if it may have been read, make a new key and a new store: what is sealed with \
             the old one is open to whoever has it."
        )));
    }
    Ok(StoreKey::new(&bytes))
}

/// Makes a key, unless there is one: under its name it is whole, or not there.
pub(super) fn make(path: &Path) -> Result<bool, Failure> {
    let shown = path.display();
    let bytes = StoreKey::generate().map_err(|error| failed(format!("cannot make a key: {error}")))?;
    write(path, &bytes).map_err(|error| {
        let failure = failed(format!("cannot write the key {shown}: {error}"));
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                failure.advise("Nothing was left there. Make room on that disk, or name a file on another one.")
            }
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem => {
                failure.advise("Name a file in a directory that exists and that this user may write.")
            }
            _ => failure,
        }
    })
}

/// Whether there was none before.
fn write(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or(ErrorKind::InvalidFilename)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = Disk::open(parent)?;
    if folder.stat(name)?.is_some() {
        return Ok(false);
    }
    let unfinished = format!("{name}.{}.new", std::process::id());
    let written = folder.create(&unfinished).and_then(|file| {
        file.write_at(0, bytes)?;
        file.sync()?;
        folder.rename(&unfinished, name)
    });
    if let Err(error) = written {
        // A disk that is full shall not stay so for our sake.
        let _ = folder.remove(&unfinished);
        return if error.kind() == ErrorKind::AlreadyExists { Ok(false) } else { Err(error) };
    }
    folder.sync()?;
    Ok(true)
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
