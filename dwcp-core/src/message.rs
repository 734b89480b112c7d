//! Lanes that carry messages instead of extents: how version 1's bytes are made and read, as an argument.
//!
//! The wire of version 1 is none of this crate's business: an [`Endpoint`](crate::net::Endpoint) that can carry it is
//! given a [`MessageCodec`]. What is announced, verified, acknowledged and switched over is the same for both framings.

use std::fmt;

use crate::extent::FlatPage;
use crate::wire::{Digest, FenceEpoch, LaneId};

/// Makes and reads the bytes of a message. One for all lanes of an endpoint.
pub trait MessageCodec: fmt::Debug + Send + Sync + 'static {
    /// Appends a block: whole pages in a row, at most 256 of them.
    ///
    /// # Errors
    /// They cannot be encoded.
    fn block(&self, first: FlatPage, pages: &[u8], blocks: &mut Vec<u8>) -> Result<(), MessageError>;

    /// Appends what goes on the connection for these blocks.
    ///
    /// # Errors
    /// There are too many.
    fn wrap(&self, blocks: &[u8], wire: &mut Vec<u8>) -> Result<(), MessageError>;

    /// Reads what came on the connection, and hands out its blocks in order. It never hands out more than 256 pages
    /// at a time, nor reserves memory by a length that it has not checked.
    ///
    /// # Errors
    /// The bytes are no message, or `take` refuses a block.
    fn read(&self, wire: &[u8], take: &mut TakeBlock<'_>) -> Result<(), MessageError>;
}

/// Takes a block of a message: its first page, and its plain bytes.
pub type TakeBlock<'a> = dyn FnMut(FlatPage, &[u8]) -> Result<(), MessageError> + 'a;

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (at byte {at} of the message)")]
pub struct MessageError {
    /// In words.
    pub what: String,
    /// Where.
    pub at: usize,
}

const MESSAGE_KEY: [u8; 32] = *b"dwcp/1 message, place + leaves\0\0";

/// What MESSAGE announces: over epoch, lane, place and leaves of all its pages, in order. spec: V-6
pub fn message_digest<'a>(
    epoch: FenceEpoch,
    lane: LaneId,
    first: u64,
    pages: impl Iterator<Item = (FlatPage, &'a Digest)>,
) -> Digest {
    let mut hasher = blake3::Hasher::new_keyed(&MESSAGE_KEY);
    hasher.update(&epoch.0.to_le_bytes());
    hasher.update(&lane.0.to_le_bytes());
    hasher.update(&first.to_le_bytes());
    for (page, leaf) in pages {
        hasher.update(&page.0.to_le_bytes());
        hasher.update(&leaf.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: V-6
    #[test]
    fn the_digest_of_a_message_covers_when_where_and_what() {
        let leaf = |byte| Digest([byte; 32]);
        let digest = |epoch, lane, first, pages: &[(u32, Digest)]| {
            let pages = pages.iter().map(|(page, leaf)| (FlatPage(*page), leaf));
            message_digest(FenceEpoch(epoch), LaneId(lane), first, pages)
        };
        let all = [
            digest(1, 1, 0, &[(3, leaf(1)), (4, leaf(2))]),
            digest(2, 1, 0, &[(3, leaf(1)), (4, leaf(2))]),
            digest(1, 2, 0, &[(3, leaf(1)), (4, leaf(2))]),
            digest(1, 1, 8, &[(3, leaf(1)), (4, leaf(2))]),
            digest(1, 1, 0, &[(4, leaf(1)), (3, leaf(2))]),
            digest(1, 1, 0, &[(3, leaf(1)), (4, leaf(3))]),
            digest(1, 1, 0, &[(3, leaf(1))]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one), "{index}");
        }
    }
}
