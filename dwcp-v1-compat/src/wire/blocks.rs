//! A disk image on the wire: blocks in any order, each with a packet of its own, in one message.
//!
//! ```text
//! | block id u32 | length u32 | packet ... | block id u32 | length u32 | packet ... |
//! ```
//!
//! A block starts at its id times the size of a block, which both ends know from their configuration.

use super::fields::{Fields, Partial, put_u32};

/// Bytes before each packet.
pub const BLOCK_HEADER_BYTES: usize = 8;

/// What stands before each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Which block of the disk.
    pub id: u32,
    /// Bytes of the packet that follows.
    pub packet_bytes: u32,
}

impl BlockHeader {
    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.id);
        put_u32(out, self.packet_bytes);
    }
}

/// What comes next of a block list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A block begins.
    Begin(BlockHeader),
    /// Bytes of its packet.
    Packet(&'a [u8]),
    /// Its packet is over.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Packet { left: u32 },
}

/// Reads a block list in pieces of any size; holds one header. It keeps blocks apart and bounds them; which ids there may
/// be is for its caller to say.
#[derive(Debug)]
pub struct BlockReader {
    stage: Stage,
    head: Partial<BLOCK_HEADER_BYTES>,
    /// Of the message.
    at: u64,
    most: u32,
    blocks: u32,
}

impl BlockReader {
    /// Of a disk that has `blocks` blocks, whose packets have `most` bytes at most.
    pub fn new(blocks: u32, most: u32) -> Self {
        Self { stage: Stage::Header, head: Partial::new(), at: 0, most, blocks }
    }

    /// Takes from the front of `bytes`. `None`: more are needed, or the list is over.
    ///
    /// # Errors
    /// A block beyond the disk, or an impossible length.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Part<'a>>, BlockError> {
        match self.stage {
            Stage::Header => {
                let at = self.at;
                let Some(field) = self.head.fill(BLOCK_HEADER_BYTES, bytes) else { return Ok(None) };
                let mut fields = Fields(field);
                let (Some(id), Some(packet_bytes)) = (fields.u32(), fields.u32()) else { return Ok(None) };
                if id >= self.blocks {
                    return Err(BlockError::Id { at, id, blocks: self.blocks });
                }
                if packet_bytes == 0 || packet_bytes > self.most {
                    return Err(BlockError::Length { at, id, bytes: packet_bytes, limit: self.most });
                }
                self.at += 8;
                self.head.clear();
                self.stage = Stage::Packet { left: packet_bytes };
                Ok(Some(Part::Begin(BlockHeader { id, packet_bytes })))
            }
            Stage::Packet { left: 0 } => {
                self.stage = Stage::Header;
                Ok(Some(Part::End))
            }
            Stage::Packet { left } => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                if here == 0 {
                    return Ok(None);
                }
                let (packet, rest) = bytes.split_at_checked(here).unwrap_or((bytes, &[]));
                *bytes = rest;
                let here = u32::try_from(here).unwrap_or(left);
                self.at += u64::from(here);
                self.stage = Stage::Packet { left: left - here };
                Ok(Some(Part::Packet(packet)))
            }
        }
    }

    /// The list must be over.
    ///
    /// # Errors
    /// It is cut short within a block.
    pub fn finish(&self) -> Result<(), BlockError> {
        if self.stage == Stage::Header && self.head.have() == 0 {
            return Ok(());
        }
        Err(BlockError::Short { at: self.at })
    }
}

/// A block list that is none. `at` is the offset in the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// No such block.
    #[error("block list, byte {at}: block {id}, the disk has {blocks}")]
    Id {
        /// Of its header.
        at: u64,
        /// The id found.
        id: u32,
        /// Blocks of the disk.
        blocks: u32,
    },
    /// No packet has this length.
    #[error("block list, byte {at}: packet of block {id} with {bytes} bytes, at most {limit} and at least 1 are taken")]
    Length {
        /// Of its header.
        at: u64,
        /// The block.
        id: u32,
        /// The length found.
        bytes: u32,
        /// The limit.
        limit: u32,
    },
    /// The same block twice.
    #[error("block list, byte {at}: block {id} came already")]
    Again {
        /// Of its second header.
        at: u64,
        /// The block.
        id: u32,
    },
    /// Cut short.
    #[error("block list, byte {at}: it ends here, within a block")]
    Short {
        /// Where.
        at: u64,
    },
}

/// Which blocks of a disk have come.
#[derive(Debug)]
pub struct BlocksSeen {
    words: Vec<u64>,
    seen: u32,
}

impl BlocksSeen {
    /// Of so many blocks; a bit each.
    pub fn new(blocks: u32) -> Self {
        Self { words: vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX)], seen: 0 }
    }

    /// Marks a block. False: it had come, or there is none of this id.
    pub fn insert(&mut self, id: u32) -> bool {
        let word = usize::try_from(id / 64).ok().and_then(|at| self.words.get_mut(at));
        let bit = 1_u64 << (id % 64);
        match word {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.seen += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether a block has come.
    pub fn contains(&self, id: u32) -> bool {
        let word = usize::try_from(id / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// How many have come.
    pub fn count(&self) -> u32 {
        self.seen
    }
}
