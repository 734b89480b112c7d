//! The byte layouts of v1, and nothing else. Everything is big-endian and in clear text.
//!
//! ```text
//! connection   chunk chunk chunk FIN            chunk.rs     mst8 or amst16, ids in no order
//! message      packet                           packet.rs    a memory image
//!              block block block                blocks.rs    a disk image, each block with a packet
//! packet       16 bytes, one zstd frame         packet.rs
//! frame        the plain bytes, or an op list   content.rs, delta.rs
//! ```
//!
//! Readers are fed in pieces of any size and hold no more than a fixed buffer; each length is checked against
//! [`limits`] before anything is reserved.

pub mod blocks;
mod chunk;
mod content;
pub mod delta;
mod fields;
pub mod limits;
mod packet;
#[cfg(test)]
mod tests;

pub use self::chunk::{ChunkHeader, Framing, Span};
pub use self::content::{ContentDecoder, ContentError, Expected, Piece};
pub(crate) use self::fields::Partial;
#[cfg(feature = "net")]
pub(crate) use self::packet::most_packet_bytes;
pub use self::packet::{FrameFault, PACKET_HEADER_BYTES, PackError, Packer, PacketError, PacketHeader, Tier, Unpacker};
