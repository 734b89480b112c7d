use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dwcp_core::{Guest, PAGE_BYTES, RegionId};

use super::error::TransferError;
use super::pages::{PageWriter, is_aligned, read_flat};
use crate::wire::ContentError;

const PAGE: u64 = 4096;

/// Where a message arrives.
pub trait Landing: Send {
    /// How far ahead of the first missing byte bytes are taken. `None`: they may come in any order.
    fn window(&self) -> Option<u64> {
        None
    }

    /// The length of the message is known. Called once, before the first [`put`](Self::put).
    ///
    /// # Errors
    /// It does not fit.
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError>;

    /// Puts bytes in their place. Those of one chunk come in order, those of several chunks in turns.
    ///
    /// # Errors
    /// They cannot be written.
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError>;

    /// The guest whose plain bytes the message is, if it [lends](Guest::lend) its memory. Then a message over sockets is not
    /// put here: each connection is read by a task of its own, straight into the guest.
    fn lender(&self) -> Option<Arc<dyn Guest>> {
        None
    }

    /// Whether these bytes, all of which were put before, are still the same. Not asked where there is a
    /// [`window`](Self::window).
    ///
    /// # Errors
    /// They cannot be read.
    fn same(&mut self, at: u64, bytes: &[u8]) -> Result<bool, TransferError>;

    /// All bytes before `front` are there. Returns up to where they have been used, where there is a
    /// [`window`](Self::window).
    ///
    /// # Errors
    /// They are not what they should be.
    fn advance(&mut self, front: u64) -> Result<u64, TransferError> {
        Ok(front)
    }
}

/// A file, which has some length already or gets the message's.
#[derive(Debug)]
pub struct FileLanding {
    file: File,
    compared: Vec<u8>,
}

impl FileLanding {
    /// Over a file that can be read and written.
    pub fn new(file: File) -> Self {
        Self { file, compared: Vec::new() }
    }
}

impl Landing for FileLanding {
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError> {
        self.file.set_len(bytes).map_err(|error| TransferError::io("cannot give the received file its length", error))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let put = self.file.write_all_at(bytes, at);
        put.map_err(|error| TransferError::io(format!("cannot write byte {at} of the received file"), error))
    }

    fn same(&mut self, at: u64, bytes: &[u8]) -> Result<bool, TransferError> {
        self.compared.resize(bytes.len(), 0);
        let read = self.file.read_exact_at(&mut self.compared, at);
        read.map_err(|error| TransferError::io(format!("cannot read byte {at} of the received file"), error))?;
        Ok(self.compared == bytes)
    }
}

/// Memory of this process, for small messages.
#[derive(Debug)]
pub struct BytesLanding {
    bytes: Vec<u8>,
    most: u64,
}

impl BytesLanding {
    /// For at most `most` bytes.
    pub fn new(most: u64) -> Self {
        Self { bytes: Vec::new(), most }
    }

    /// What came.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn part(&mut self, at: u64, length: usize) -> Result<&mut [u8], TransferError> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let part = self.bytes.get_mut(start..).and_then(|rest| rest.get_mut(..length));
        part.ok_or(TransferError::Config("bytes beyond the message were put"))
    }
}

impl Landing for BytesLanding {
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError> {
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= self.most);
        self.bytes = vec![0; length.ok_or(TransferError::Config("the message is larger than its place"))?];
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        self.part(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn same(&mut self, at: u64, bytes: &[u8]) -> Result<bool, TransferError> {
        Ok(self.part(at, bytes.len())? == bytes)
    }
}

/// A guest whose plain bytes are the message, such as the staging file of an image. Its regions but for the last one, and
/// the chunks, must be whole pages.
#[derive(Debug)]
pub struct GuestLanding {
    pages: PageWriter,
    total: u64,
    /// Bytes of a page that has not come whole, by where the next one belongs: one a connection at most.
    begun: BTreeMap<u64, Vec<u8>>,
    compared: Vec<u8>,
}

impl GuestLanding {
    /// Over a guest that is all zeros.
    ///
    /// # Errors
    /// A region before the last one ends within a page.
    pub fn new(guest: Arc<dyn Guest>) -> Result<Self, TransferError> {
        let layout = guest.layout();
        let total = layout.bytes();
        if !is_aligned(layout) {
            return Err(TransferError::Config("only the last region of a guest may end within a page here"));
        }
        Ok(Self { pages: PageWriter::new(guest), total, begun: BTreeMap::new(), compared: Vec::new() })
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        self.pages.start(at);
        self.pages.append(bytes)?;
        self.pages.flush()
    }
}

impl Landing for GuestLanding {
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError> {
        if bytes == self.total {
            Ok(())
        } else {
            Err(ContentError::Length { made: bytes, expected: self.total }.into())
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let (mut at, mut rest) = (at, bytes);
        let mut held = self.begun.remove(&at).unwrap_or_default();
        if at % PAGE != 0 && held.is_empty() {
            return Err(TransferError::Config("chunks must be whole pages here: take a multiple of 4096 bytes"));
        }
        let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if !held.is_empty() {
            let (now, later) = rest.split_at_checked(PAGE_BYTES - held.len()).unwrap_or((rest, &[]));
            held.extend_from_slice(now);
            (at, rest) = (at + length(now), later);
            if held.len() < PAGE_BYTES && at < self.total {
                self.begun.insert(at, held);
                return Ok(());
            }
            self.write(at - length(&held), &held)?;
        }
        let end = at + length(rest);
        let whole = if end == self.total { rest.len() } else { rest.len() / PAGE_BYTES * PAGE_BYTES };
        let (whole, tail) = rest.split_at_checked(whole).unwrap_or((rest, &[]));
        if !whole.is_empty() {
            self.write(at, whole)?;
        }
        if !tail.is_empty() {
            self.begun.insert(end, tail.to_vec());
        }
        Ok(())
    }

    fn lender(&self) -> Option<Arc<dyn Guest>> {
        let guest = self.pages.shared();
        guest.lend(RegionId(0), 0, 1).is_some().then(|| Arc::clone(guest))
    }

    fn same(&mut self, at: u64, bytes: &[u8]) -> Result<bool, TransferError> {
        self.compared.resize(bytes.len(), 0);
        read_flat(self.pages.guest(), at, &mut self.compared)?;
        Ok(self.compared == bytes)
    }
}
