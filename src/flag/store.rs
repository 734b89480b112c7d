use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use dwcp_core::flag::{FlagDocument, FlagVersion, MAX_DOCUMENT_BYTES};

use crate::exit::{Exit, Failure};

/// What stands in the place of a flag document.
#[derive(Debug)]
pub(super) enum Found {
    Document(Box<FlagDocument>),
    Nothing,
    /// Something else, and why it is no document.
    Damaged(String),
}

/// The version of a document that is written now: milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "versions are numbered by the wall clock")]
pub(super) fn now() -> FlagVersion {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.ok().and_then(|since| u64::try_from(since.as_millis()).ok());
    millis.and_then(FlagVersion::new).unwrap_or(FlagVersion::FIRST)
}

/// Reads a flag document, and says how long ago it was written.
pub(super) fn read(path: &Path) -> Result<(Found, Option<Duration>), Failure> {
    // Looked at before it is opened: the open of a pipe would wait for somebody to write to it.
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Found::Nothing, None)),
        found => found.map_err(|error| failed(path, "cannot be looked at", &error))?,
    };
    if !metadata.is_file() {
        return Err(Failure::new(Exit::Failed, format!("{} is no file", path.display())).advise("Check --file."));
    }
    let file = File::open(path).map_err(|error| failed(path, "cannot be opened", &error))?;
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    let limit = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(path, "cannot be read", &error))?;
    let found = FlagDocument::parse(&bytes)
        .map_or_else(|error| Found::Damaged(error.to_string()), |document| Found::Document(Box::new(document)));
    Ok((found, age))
}

/// A flag document that nobody else changes for as long as this lives.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    folder: File,
}

/// How long another command may take to change a document of the same folder: it syncs two files.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// A kill switch must not fail because somebody else turns one just now.
#[expect(clippy::disallowed_methods, reason = "a command that waits for another; nothing else runs in it")]
fn lock(handle: &File, folder: &Path) -> Result<(), Failure> {
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                let (shown, waited) = (folder.display(), LOCK_LIMIT.as_secs());
                let what = format!("somebody has locked {shown} for {waited} s and more, so nothing was changed");
                return Err(Failure::new(Exit::Failed, what).advise(format!(
                    "See who with `lsof {shown}`; a node can be taken to version 1 without the document by \
                     DWCP_FORCE_V1=1 and a restart."
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(folder, "cannot be locked", &error)),
        }
    }
}

impl Store {
    /// Keeps others from changing it. Where the path is a link, what it leads to is changed.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let path = match fs::canonicalize(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
                let what = format!("{} is a link that leads nowhere", path.display());
                return Err(Failure::new(Exit::Failed, what).advise("Name what it is to lead to, or remove the link."));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => std::path::absolute(path),
            resolved => resolved,
        };
        let path = path.map_err(|error| Failure::new(Exit::Failed, format!("--file cannot be found: {error}")))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let handle = File::open(folder).map_err(|error| failed(folder, "cannot be opened", &error))?;
        lock(&handle, folder)?;
        Ok(Self { path, folder: handle })
    }

    /// See [`read`].
    pub(super) fn read(&self) -> Result<Found, Failure> {
        read(&self.path).map(|(found, _)| found)
    }

    /// Puts a document in its place, whole and durable, or leaves the old one.
    pub(super) fn replace(&self, document: &FlagDocument) -> Result<(), Failure> {
        let failure = |error: io::Error| failed(&self.path, "cannot be replaced and is as it was", &error);
        let text = document.render().map_err(|error| {
            let what = format!("{} is as it was: the new document would be too long: {error}", self.path.display());
            Failure::new(Exit::Failed, what).advise("Take names off its lists.")
        })?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        // Below the lock, so one name will do; what a crash left is overwritten.
        let beside = self.path.with_file_name(format!(".{name}.dwcp-new"));
        let replaced = self.write_beside(&beside, &text).and_then(|()| fs::rename(&beside, &self.path));
        if let Err(error) = replaced {
            // It may not even be there.
            let _ = fs::remove_file(&beside);
            return Err(failure(error));
        }
        self.folder.sync_all().map_err(|error| {
            let what = format!("{} is replaced, but a power cut may undo that: {error}", self.path.display());
            Failure::new(Exit::Failed, what).advise("Look at the disk; then see `dwcp flag show`.")
        })
    }

    /// With the rights and the owner of the old one: nodes that may read that may read this.
    fn write_beside(&self, beside: &Path, text: &str) -> io::Result<()> {
        match fs::remove_file(beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        file.write_all(text.as_bytes())?;
        match fs::metadata(&self.path) {
            Ok(old) => {
                let new = file.metadata()?;
                if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                    fchown(&file, Some(old.uid()), Some(old.gid()))?;
                }
                file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                file.set_permissions(Permissions::from_mode(0o644))?;
            }
            Err(error) => return Err(error),
        }
        file.sync_all()
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("{} {what}: {error}", path.display()));
    match error.kind() {
        ErrorKind::NotFound => failure.advise("Check the path."),
        ErrorKind::PermissionDenied => failure.advise("Run it as the user who owns that, or with sudo."),
        ErrorKind::StorageFull => failure.advise("Make room on that disk."),
        _ => failure,
    }
}
