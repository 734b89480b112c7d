use std::fmt;

use super::{FrameType, LaneId};
use crate::extent::{ExtentError, LayoutError};

/// Bytes of a peer that are not a valid frame, with their place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{lane}: {frame} frame, byte {at}: {what}")]
pub struct WireError {
    /// The lane they came on.
    pub lane: LaneId,
    /// The frame they stand in.
    pub frame: FrameName,
    /// Offset from the start of the frame's body.
    pub at: usize,
    /// What is wrong.
    pub what: Malformed,
}

/// A frame's type for messages, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameName(pub u8);

impl fmt::Display for FrameName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FrameType::from_byte(self.0) {
            Some(known) => write!(f, "{known:?}"),
            None => write!(f, "unknown {:#04x}", self.0),
        }
    }
}

/// Where in a body something is wrong; the lane and frame are added by who knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset from the start of the body.
    pub at: usize,
    /// What is wrong.
    pub what: Malformed,
}

impl Fault {
    /// Names the frame and the lane.
    pub fn on(self, lane: LaneId, frame: u8) -> WireError {
        WireError { lane, frame: FrameName(frame), at: self.at, what: self.what }
    }
}

/// What can be wrong with bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The body ends inside a field.
    #[error("ends too early, {missing} more bytes are needed")]
    Truncated {
        /// How many bytes are missing.
        missing: usize,
    },
    /// Bytes after the last field.
    #[error("{extra} bytes too many")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The length field is above the frame's limit.
    #[error("{length} bytes are more than the {limit} allowed here")]
    TooLong {
        /// The length claimed.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// A reserved byte or bit is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// A frame type that this version does not know and may not skip. spec: W-6
    #[error("unknown critical frame type {frame:#04x}")]
    UnknownCritical {
        /// The type.
        frame: u8,
    },
    /// A known frame where it has no business, such as an extent on the control lane.
    #[error("this frame is not allowed here")]
    Misplaced,
    /// A varint longer than its shortest form, or past 32 bits.
    #[error("a varint is not in its shortest form or exceeds 32 bits")]
    Varint,
    /// An enumeration's value that does not exist.
    #[error("value {value} is not defined for {field}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Text,
    /// A name outside `[a-z0-9._-]{1,64}`.
    #[error(transparent)]
    Name(#[from] super::NameError),
    /// An id that is not 32 hexadecimal digits.
    #[error("an id is 32 hexadecimal digits")]
    Id,
    /// Wrong magic: the peer does not speak DWCP v3.
    #[error("the peer does not speak DWCP v3 (wrong magic)")]
    Magic,
    /// Runs that make no extent.
    #[error(transparent)]
    Extent(#[from] ExtentError),
    /// Regions that make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}
