use super::error::{Fault, Malformed};
use super::fields::Reader;
use super::limits::{MAX_CONTROL_BYTES, MAX_EXTENT_BYTES, MAX_HANDSHAKE_BYTES};

/// Bytes before every body.
pub const FRAME_HEADER_BYTES: usize = 8;

/// A frame's type. Bit 7 marks frames that a receiver may skip when it does not know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameType {
    /// First frame of a control connection, from the source.
    Hello,
    /// The sink's answer.
    HelloAck,
    /// The source's proof that it saw the same two.
    Bind,
    /// First frame of a bulk lane, from the source.
    Join,
    /// The sink's answer.
    Joined,
    /// What is to be moved.
    Offer,
    /// The sink holds these pages from before.
    Have,
    /// The sink takes it.
    Accept,
    /// Pages.
    Extent,
    /// What the sink has applied.
    Ack,
    /// How many bytes a lane may carry in all.
    Credit,
    /// A lane is dead: stop its worker.
    Bury,
    /// It is stopped, and this is what it applied.
    Buried,
    /// The guest is paused; this is the root of all pages.
    Pause,
    /// A part of the state of the guest's devices.
    DeviceState,
    /// The sink holds everything, staged.
    Ready,
    /// The source has given up; run.
    Run,
    /// The guest runs at the sink.
    Running,
    /// The sender ends the transfer.
    Abort,
    /// The sender found a fault.
    Error,
    /// A question.
    Ping,
    /// Its answer.
    Pong,
    /// The sink wants another framing.
    Prefer,
    /// Lanes end here, and go on as others.
    Fence,
    /// They have ended, and this is what the sink holds.
    Handover,
    /// What a lane of messages carries next.
    Message,
}

impl FrameType {
    /// All types, in the order of their bytes.
    pub const ALL: [Self; 26] = [
        Self::Hello,
        Self::HelloAck,
        Self::Bind,
        Self::Join,
        Self::Joined,
        Self::Offer,
        Self::Accept,
        Self::Have,
        Self::Extent,
        Self::Ack,
        Self::Credit,
        Self::Bury,
        Self::Buried,
        Self::Pause,
        Self::DeviceState,
        Self::Ready,
        Self::Run,
        Self::Running,
        Self::Abort,
        Self::Error,
        Self::Ping,
        Self::Pong,
        Self::Prefer,
        Self::Fence,
        Self::Handover,
        Self::Message,
    ];

    /// Its byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Hello => 0x01,
            Self::HelloAck => 0x02,
            Self::Bind => 0x03,
            Self::Join => 0x04,
            Self::Joined => 0x05,
            Self::Offer => 0x10,
            Self::Accept => 0x11,
            Self::Have => 0x12,
            Self::Extent => 0x20,
            Self::Ack => 0x21,
            Self::Credit => 0x22,
            Self::Bury => 0x23,
            Self::Buried => 0x24,
            Self::Pause => 0x30,
            Self::DeviceState => 0x31,
            Self::Ready => 0x32,
            Self::Run => 0x33,
            Self::Running => 0x34,
            Self::Abort => 0x40,
            Self::Error => 0x41,
            Self::Ping => 0x42,
            Self::Pong => 0x43,
            Self::Prefer => 0x50,
            Self::Fence => 0x51,
            Self::Handover => 0x52,
            Self::Message => 0x53,
        }
    }

    /// The type with this byte, if this version knows it.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.byte() == byte)
    }

    /// Bytes that its body may have. spec: W-2
    pub fn limit(self) -> usize {
        match self {
            Self::Hello | Self::HelloAck | Self::Bind | Self::Join | Self::Joined => MAX_HANDSHAKE_BYTES,
            Self::Extent => MAX_EXTENT_BYTES,
            _ => MAX_CONTROL_BYTES,
        }
    }
}

/// The eight bytes before every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub length: u32,
    /// Type byte, known or not.
    pub frame: u8,
}

impl FrameHeader {
    /// The header of a body of `length` bytes.
    pub fn new(frame: FrameType, length: u32) -> Self {
        Self { length, frame: frame.byte() }
    }

    /// Its bytes.
    pub fn encode(self) -> [u8; FRAME_HEADER_BYTES] {
        let [a, b, c, d] = self.length.to_le_bytes();
        [a, b, c, d, self.frame, 0, 0, 0]
    }

    /// Reads a header; `limit` is what the receiver is willing to hold now, checked before a byte
    /// of the body is waited for or a byte of memory is reserved. spec: W-1, W-2, W-4, W-6
    ///
    /// # Errors
    /// A reserved byte that is not zero, a body above the limit of its type or of the receiver, an
    /// unknown type without the optional bit.
    pub fn decode(bytes: [u8; FRAME_HEADER_BYTES], limit: usize) -> Result<Self, Fault> {
        let mut reader = Reader::new(&bytes);
        let length = reader.u32()?;
        let frame = reader.u8()?;
        if reader.u8()? != 0 || reader.u16()? != 0 {
            return Err(Fault { at: 5, what: Malformed::Reserved });
        }
        let known = FrameType::from_byte(frame);
        if known.is_none() && frame & OPTIONAL == 0 {
            return Err(Fault { at: 4, what: Malformed::UnknownCritical { frame } });
        }
        let limit = known.map_or(MAX_CONTROL_BYTES, FrameType::limit).min(limit);
        if usize::try_from(length).is_ok_and(|length| length <= limit) {
            return Ok(Self { length, frame });
        }
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        Err(Fault { at: 0, what: Malformed::TooLong { length: u64::from(length), limit } })
    }

    /// Body bytes as a size in memory. Bounded by [`FrameHeader::decode`].
    pub fn body_bytes(self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

/// Types with this bit may be skipped by who does not know them. spec: W-7
const OPTIONAL: u8 = 0x80;
