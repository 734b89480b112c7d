use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dwcp_core::Guest;

use super::error::TransferError;
use super::lent::Lent;
use super::pages::{lend_flat, read_flat};

/// The bytes of a message that is sent. They must not change meanwhile: v1 would not notice.
pub trait Payload: Send {
    /// How many; constant.
    fn bytes(&self) -> u64;

    /// Fills `into` from byte `at` on, which is within.
    ///
    /// # Errors
    /// They cannot be read.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), TransferError>;

    /// Up to `bytes` bytes from `at` on, where they lie. `None`: they must be read.
    fn lend(&self, at: u64, bytes: usize) -> Option<Lent<'_>> {
        let _ = (at, bytes);
        None
    }
}

/// All of a file.
#[derive(Debug)]
pub struct FilePayload {
    file: File,
    bytes: u64,
}

impl FilePayload {
    /// As long as it is now.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(file: File) -> Result<Self, TransferError> {
        let meta = file.metadata().map_err(|error| TransferError::io("cannot look at the file to be sent", error))?;
        Ok(Self { file, bytes: meta.len() })
    }
}

impl Payload for FilePayload {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), TransferError> {
        let read = self.file.read_exact_at(into, at);
        read.map_err(|error| TransferError::io(format!("cannot read byte {at} of the file to be sent"), error))
    }
}

impl Payload for Vec<u8> {
    fn bytes(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), TransferError> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let part = self.get(start..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(part.ok_or(TransferError::Config("bytes beyond the message were asked for"))?);
        Ok(())
    }
}

/// A guest at rest, its regions one after the other.
#[derive(Clone)]
pub struct GuestPayload(pub Arc<dyn Guest>);

impl Payload for GuestPayload {
    fn bytes(&self) -> u64 {
        self.0.layout().bytes()
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), TransferError> {
        read_flat(self.0.as_ref(), at, into)
    }

    fn lend(&self, at: u64, bytes: usize) -> Option<Lent<'_>> {
        lend_flat(self.0.as_ref(), at, bytes)
    }
}

impl std::fmt::Debug for GuestPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GuestPayload").field(self.0.layout()).finish()
    }
}
