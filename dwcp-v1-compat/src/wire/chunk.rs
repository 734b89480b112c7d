//! The header before each chunk of a message.
//!
//! ```text
//! mst8    | chunk id u32 | length u32 |                              data ...
//! amst16  | chunk id u32 | offset u32 | length u32 | total size u32 |  data ...
//! ```

use std::fmt;

use super::fields::{Fields, put_u32};

/// Which of the two transports a peer speaks. Their bytes cannot be told apart: it is configured for each peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Bulk transport: the receiver knows total and chunk size beforehand.
    Mst8,
    /// Migration transport: each header names offset and total, modulo 2^32.
    Amst16,
}

impl Framing {
    /// Bytes of a header.
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::Mst8 => 8,
            Self::Amst16 => 16,
        }
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mst8 => "mst8",
            Self::Amst16 => "amst16",
        })
    }
}

/// What stands before a chunk's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Counts from 0 in each message.
    pub id: u32,
    /// Bytes of data that follow.
    pub length: u32,
    /// What only amst16 says.
    pub span: Option<Span>,
}

/// Where a chunk of an amst16 message claims to lie. Both wrap above 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Of its first byte in the message.
    pub offset: u32,
    /// Bytes of the message.
    pub total: u32,
}

impl ChunkHeader {
    /// The framing that has this header.
    pub const fn framing(&self) -> Framing {
        if self.span.is_some() { Framing::Amst16 } else { Framing::Mst8 }
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.id);
        if let Some(span) = self.span {
            put_u32(out, span.offset);
        }
        put_u32(out, self.length);
        if let Some(span) = self.span {
            put_u32(out, span.total);
        }
    }

    /// Reads a header from the front of `bytes`. `None`: they end before it does. Any bytes are some header; whether it
    /// makes sense is decided by [`Incoming`](crate::message::Incoming).
    pub fn decode(framing: Framing, bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let id = fields.u32()?;
        match framing {
            Framing::Mst8 => Some(Self { id, length: fields.u32()?, span: None }),
            Framing::Amst16 => {
                let offset = fields.u32()?;
                let length = fields.u32()?;
                let total = fields.u32()?;
                Some(Self { id, length, span: Some(Span { offset, total }) })
            }
        }
    }
}
