//! Packs: the pages of baselines, compressed and sealed in chunks.

use std::sync::Arc;

use dwcp_hde::{Bases, Decoder, Effort, Encoder};

use super::error::{BaselineError, Damage};
use super::key::{FileKey, Salt, StoreKey, TAG};
use super::manifest::Chunk;
use super::names;
use super::sealed::{self, HEAD, Kind, length};
use crate::extent::PAGE_BYTES;
use crate::storage::{File, Folder};

/// Pages of one chunk: 256 KiB plain. Reading one page costs a whole chunk, and smaller ones compress worse.
pub(super) const CHUNK_PAGES: usize = 64;
/// A baseline is written once and read often.
const EFFORT: Effort = Effort::Thorough(3);

/// A pack that this process is making. Dropped before [`keep`](Self::keep), it is removed: what a crash leaves of it belongs
/// to no manifest.
pub(super) struct PackWriter {
    folder: Arc<dyn Folder>,
    file: Arc<dyn File>,
    key: FileKey,
    name: String,
    at: u64,
    encoder: Encoder,
    piece: Vec<u8>,
    kept: bool,
}

impl PackWriter {
    pub(super) fn create(folder: &Arc<dyn Folder>, key: &StoreKey, salt: &Salt) -> Result<Self, BaselineError> {
        let name = names::pack(salt);
        let key = key.of_file(salt)?;
        let file = folder.create(&name).map_err(|error| BaselineError::io(format!("making the file {name}"), error))?;
        let mut pack = Self {
            folder: Arc::clone(folder),
            file,
            key,
            name,
            at: 0,
            encoder: Encoder::new(),
            piece: Vec::new(),
            kept: false,
        };
        pack.write(&sealed::head(Kind::Pack, salt))?;
        Ok(pack)
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.at
    }

    /// Packs pages, at most [`CHUNK_PAGES`]. `None`: the pack would have more than `room` bytes, and does not take them.
    pub(super) fn append(&mut self, pages: &[u8], room: u64) -> Result<Option<Chunk>, BaselineError> {
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        if self.encoder.encode(pages, &Bases::none(), EFFORT, &mut piece)?.raw_tail {
            piece.extend_from_slice(pages);
        }
        let at = self.at;
        self.key.seal(at, false, &mut piece)?;
        let fits = at + length(piece.len()) <= room;
        if fits {
            self.write(&piece)?;
        }
        let bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        self.piece = piece;
        let pages = u16::try_from(pages.len() / PAGE_BYTES).unwrap_or(u16::MAX);
        Ok(fits.then_some(Chunk { pack: 0, at, bytes, pages }))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BaselineError> {
        let written = self.file.write_at(self.at, bytes);
        written.map_err(|error| BaselineError::io(format!("writing {}", self.name), error))?;
        self.at += length(bytes.len());
        Ok(())
    }

    /// Makes all bytes durable. The name is not, yet.
    pub(super) fn sync(&self) -> Result<(), BaselineError> {
        self.file.sync().map_err(|error| BaselineError::io(format!("making {} durable", self.name), error))
    }

    /// A manifest that refers to it has its name: it stays, whatever happens.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is removed by the next collection.
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// A pack that is read.
#[derive(Debug)]
pub(super) struct Pack {
    file: Arc<dyn File>,
    key: FileKey,
    name: String,
}

/// What reading chunks needs again and again.
#[derive(Debug, Default)]
pub(super) struct Unpacker {
    decoder: Decoder,
    sealed: Vec<u8>,
}

impl Pack {
    /// Opens a pack that must reach to byte `end`.
    pub(super) fn open(folder: &dyn Folder, key: &StoreKey, salt: &Salt, end: u64) -> Result<Self, BaselineError> {
        let name = names::pack(salt);
        let file = sealed::open(folder, &name)?;
        let found = sealed::read_head(Kind::Pack, &*file, &name)?;
        let stat = file.stat().map_err(|error| BaselineError::io(format!("cannot look at {name}"), error))?;
        if found != *salt {
            return Err(BaselineError::damaged(&name, Damage::Magic));
        }
        if stat.bytes < end {
            return Err(BaselineError::damaged(&name, Damage::Truncated { at: end }));
        }
        Ok(Self { file, key: key.of_file(salt)?, name })
    }

    /// The pages of a chunk, in place of what was in `pages`.
    pub(super) fn read(&self, chunk: Chunk, with: &mut Unpacker, pages: &mut Vec<u8>) -> Result<(), BaselineError> {
        let count = usize::from(chunk.pages);
        let Unpacker { decoder, sealed } = with;
        sealed.resize(usize::try_from(chunk.bytes).unwrap_or(TAG), 0);
        sealed::read_at(&*self.file, chunk.at, sealed, &self.name)?;
        let damaged = |_| BaselineError::damaged(&self.name, Damage::Piece { at: chunk.at });
        let block = self.key.open(chunk.at, false, sealed).ok_or(()).map_err(damaged)?;
        pages.clear();
        let plain = decoder.decode(block, count, &mut Bases::none(), pages);
        plain.map(|_| ()).map_err(|_| damaged(()))?;
        if pages.is_empty() {
            // Pages that could not be compressed stand at the end of the block itself.
            let raw = block.len().checked_sub(count * PAGE_BYTES).and_then(|at| block.get(at..));
            pages.extend_from_slice(raw.unwrap_or_default());
        }
        Ok(())
    }

    /// Bytes before its first chunk.
    pub(super) fn first() -> u64 {
        length(HEAD)
    }
}
