use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::TransferError;
use super::payload::Payload;

/// A message that is made before it is sent, because each amst16 header names its length: an unnamed file that only we may
/// read, and that is gone with this value or this process.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    bytes: u64,
    most: u64,
}

impl Spool {
    /// For at most `most` bytes.
    pub(super) fn new(folder: &Path, most: u64) -> Result<Self, TransferError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".dwcp-v1-{}-{number}.spool", std::process::id()));
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| TransferError::io(format!("cannot make {}", path.display()), error))?;
        let unnamed = std::fs::remove_file(&path);
        unnamed.map_err(|error| TransferError::io(format!("cannot unlink {}", path.display()), error))?;
        Ok(Self { file, bytes: 0, most })
    }

    /// Appends, if there is room for it.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        let at = self.bytes;
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.bytes > self.most {
            return Err(crate::message::Refusal::TooLarge { total: self.bytes }.into());
        }
        self.overwrite(at, bytes)
    }

    /// Writes what was appended once more.
    pub(super) fn overwrite(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|error| TransferError::io("cannot write the spool of a v1 message", error))
    }
}

impl Payload for Spool {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), TransferError> {
        let read = self.file.read_exact_at(into, at);
        read.map_err(|error| TransferError::io("cannot read the spool of a v1 message", error))
    }
}
