//! Byte layouts: the only place where the protocol's integers and bytes meet.
//!
//! ```text
//!  0        4      5      6        8
//!  +--------+------+------+--------+----------------------
//!  | length | type | 0x00 | 0x0000 | body (`length` bytes)       all integers little-endian
//!  +--------+------+------+--------+----------------------
//! ```
//!
//! A lane carries nothing but frames. [`Frame`] is every frame but the extent, whose payload never
//! leaves the lane's own buffer: see [`ExtentHead`]. `docs/protocol.md` is the specification; the
//! `spec:` ids in this module are its requirements.

mod error;
mod extent;
mod fields;
mod frame;
mod handover;
mod handshake;
mod header;
pub mod limits;
mod offer;

pub use self::error::{Fault, Malformed, WireError};
pub use self::extent::{EXTENT_HEAD_MAX, ExtentHead};
pub use self::fields::Reader;
pub use self::frame::{
    Abort, AbortReason, Ack, Buried, Bury, Credit, DeviceState, ErrorCode, ErrorFrame, Frame, Have, Name, NameError,
    Pause, Ping, Ready, Run, Running,
};
pub use self::handover::{Fence, FencedLane, Framing, HandedLane, Handover, Message, Prefer};
pub use self::handshake::{Bind, Hello, HelloAck, Join, Joined, PeerLimits, ResumeClaim, Role};
pub use self::header::{FRAME_HEADER_BYTES, FrameHeader, FrameType};
pub use self::offer::{Accept, GuestKind, Offer};

use std::fmt;

/// One ordered, reliable byte stream to the peer. Lane 0 carries control only; every other lane carries the guest from
/// source to sink, in extents or in version 1's messages ([`Framing`]). An id is never used twice in a session. spec: L-1
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u16);

impl LaneId {
    /// The control lane.
    pub const CONTROL: Self = Self(0);
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {}", self.0)
    }
}

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl std::str::FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                let mut id = [0; 16];
                if text.len() != 32 || !text.is_ascii() {
                    return Err(Malformed::Id);
                }
                for (byte, index) in id.iter_mut().zip((0..32).step_by(2)) {
                    let digits = text.get(index..index + 2).ok_or(Malformed::Id)?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| Malformed::Id)?;
                }
                Ok(Self(id))
            }
        }
    };
}

opaque_id!(
    /// Names one transfer for its whole life, across sessions and restarts. Chosen at random by the
    /// source.
    TransferId
);
opaque_id!(
    /// Names one session: the token by which lanes join and a lost connection is re-made. Chosen at
    /// random by the sink.
    SessionId
);

/// A 32-byte BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..")
    }
}

/// Orders ownership: which incarnation of a transfer an extent or a switch-over belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FenceEpoch(pub u64);

impl fmt::Display for FenceEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

#[cfg(test)]
mod tests;
