//! The file with a store's key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use dwcp_core::baseline::{KEY_BYTES, StoreKey};

use crate::exit::{Exit, Failure};

/// Reads a key that nobody else can read.
pub(super) fn load(path: &Path) -> Result<StoreKey, Failure> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let failure = failed(format!("cannot read the key {shown}: {error}"));
        match error.kind() {
            io::ErrorKind::NotFound => failure.advise(
                "Name the key that the store was made with, or bring it from a node that shares its baselines; for a new \
                 store let `dwcp baseline add --make-key` make one.",
            ),
            io::ErrorKind::PermissionDenied => failure.advise("Run as the user whose key it is."),
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

/// Makes a key, unless there is one.
pub(super) fn make(path: &Path) -> Result<bool, Failure> {
    let shown = path.display();
    let bytes = StoreKey::generate().map_err(|error| failed(format!("cannot make a key: {error}")))?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    match write() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(format!("cannot write the key {shown}: {error}"))
            .advise("Name a file in a directory that exists and that this user may write.")),
        Ok(()) => Ok(true),
    }
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
