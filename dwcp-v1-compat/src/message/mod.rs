//! One message over N connections: pure machines, told the time, that hold no payload.
//!
//! ```text
//!  Outgoing ── which chunk next, on this connection ──>  connections  ──>  Incoming ── where these bytes belong
//! ```
//!
//! A v1 message ends when every connection is closed. Nobody acknowledges it, so what [`Outgoing`] has sent is *sent*, no
//! more, and what [`Incoming`] took is as good as its [`Assurance`].

mod defect;
mod incoming;
mod outgoing;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::defect::{Defect, DefectCounts, DefectKind};
pub use self::incoming::{Deadlines, Incoming, IncomingConfig, Piece, Received, Shape, Status, Taken};
pub use self::outgoing::{Chunk, Outgoing, Refusal};

/// One connection of a message, by a number that its driver chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1 connection {}", self.0)
    }
}

/// What is known of bytes that came over v1. None of it is a digest, and none of it stops somebody on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Assurance {
    /// As many bytes came as were expected here; the peer named neither a length nor a checksum.
    LengthUnverified,
    /// As many bytes came as the peer said; their content is not checked by anything.
    Unverified,
    /// As many bytes came as the peer said, and the zstd checksum of each packet agreed: no accident on the way, but
    /// nothing is proved of who made them.
    Checksums,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LengthUnverified => "length unverified",
            Self::Unverified => "unverified",
            Self::Checksums => "unverified but for zstd checksums",
        })
    }
}
