//! The HDE packet: 16 bytes and one zstd frame.
//!
//! ```text
//! | delta flag u8 | tier u8 | zero * 6 | length of the rest u64 | zstd frame ... |
//! ```

use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::fields::{Fields, Partial, put_u64};
use super::limits::{MAX_PACKET_CONTENT, MAX_WINDOW_LOG};

/// Bytes before the frame.
pub const PACKET_HEADER_BYTES: usize = 16;
/// The same, as a length.
const HEADER: u64 = 16;
/// A frame header at its longest (RFC 8878, section 3.1.1.1).
const FRAME_HEADER_BYTES: usize = 18;
/// The shortest frame with checksum and content size: 6 bytes of header, an empty block, the checksum.
const LEAST_FRAME: u64 = 6 + 3 + 4;
/// Plain bytes that one step gives: a block of zstd, which is what its decoder makes at a time.
const STEP: usize = 128 * 1024;

/// How far away the sender takes its peer to be: it selects the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Level 0 of v1, which is its fastest.
    Local,
    /// Level 3.
    Regional,
    /// Level 9.
    Global,
}

impl Tier {
    const fn number(self) -> u8 {
        match self {
            Self::Local => 0,
            Self::Regional => 1,
            Self::Global => 2,
        }
    }

    /// The C library's level. It reads 0 as "the default", which is 3; v1's encoder means its fastest, which is 1 here.
    const fn level(self) -> i32 {
        match self {
            Self::Local => 1,
            Self::Regional => 3,
            Self::Global => 9,
        }
    }
}

/// What stands before a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// The frame holds an op list, or plain bytes all the same: v1 sets it for both.
    pub delta: bool,
    /// Says nothing about the bytes.
    pub tier: Tier,
    /// Bytes of the frame.
    pub frame_bytes: u64,
}

impl PacketHeader {
    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[u8::from(self.delta), self.tier.number(), 0, 0, 0, 0, 0, 0]);
        put_u64(out, self.frame_bytes);
    }

    /// Reads a header. All 16 bytes are checked, though v1 ignores the last eight.
    ///
    /// # Errors
    /// Another flag than 0 or 1, an unknown tier, bytes that must be zero and are not, fewer than 16 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        let cut = |at| PacketError::Short { at, missing: HEADER - at };
        let (head, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| cut(len(bytes)))?;
        let frame_bytes = Fields(rest).u64().ok_or_else(|| cut(len(bytes)))?;
        let [flag, tier, reserved @ ..] = *head;
        let delta = match flag {
            0 => false,
            1 => true,
            flag => return Err(PacketError::Flag { flag }),
        };
        let tier = match tier {
            0 => Tier::Local,
            1 => Tier::Regional,
            2 => Tier::Global,
            tier => return Err(PacketError::Tier { tier }),
        };
        if reserved != [0; 6] {
            return Err(PacketError::Reserved);
        }
        Ok(Self { delta, tier, frame_bytes })
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Makes packets; keeps zstd's tables.
///
/// [`begin`](Self::begin), [`push`](Self::push) as often as needed, [`finish`](Self::finish); or [`pack`](Self::pack).
pub struct Packer {
    frames: CCtx<'static>,
    /// Plain bytes that were promised and have not come.
    missing: u64,
    packed: u64,
    step: Box<[u8]>,
}

impl Packer {
    /// With no tables yet.
    ///
    /// # Errors
    /// [`PackError::OutOfMemory`].
    pub fn new() -> Result<Self, PackError> {
        Ok(Self {
            frames: CCtx::try_create().ok_or(PackError::OutOfMemory)?,
            missing: 0,
            packed: 0,
            step: vec![0; STEP].into(),
        })
    }

    /// Begins a frame of `content` plain bytes.
    ///
    /// # Errors
    /// More than 256 MiB: the decoder of a v1 peer would refuse it.
    pub fn begin(&mut self, tier: Tier, content: u64) -> Result<(), PackError> {
        if content > MAX_PACKET_CONTENT {
            return Err(PackError::TooLarge { content });
        }
        let frames = &mut self.frames;
        let set = frames
            .reset(ResetDirective::SessionAndParameters)
            .and_then(|_| frames.set_parameter(CParameter::CompressionLevel(tier.level())))
            .and_then(|_| frames.set_parameter(CParameter::ChecksumFlag(true)))
            .and_then(|_| frames.set_parameter(CParameter::ContentSizeFlag(true)))
            .and_then(|_| frames.set_pledged_src_size(Some(content)));
        set.map_err(|_| PackError::Codec)?;
        (self.missing, self.packed) = (content, 0);
        Ok(())
    }

    /// Compresses the next plain bytes; appends what comes of it, at most little more than they are.
    ///
    /// # Errors
    /// More bytes than promised.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), PackError> {
        self.missing = self.missing.checked_sub(len(plain)).ok_or(PackError::Length)?;
        let mut input = InBuffer::around(plain);
        while input.pos() < plain.len() {
            let mut output = OutBuffer::around(&mut *self.step);
            self.frames.compress_stream(&mut output, &mut input).map_err(|_| PackError::Codec)?;
            let made = output.pos();
            self.take(made, out);
        }
        Ok(())
    }

    /// Ends the frame: appends the rest of it, and tells the header that stands before it.
    ///
    /// # Errors
    /// Fewer bytes came than promised.
    pub fn finish(&mut self, tier: Tier, delta: bool, out: &mut Vec<u8>) -> Result<PacketHeader, PackError> {
        if self.missing != 0 {
            return Err(PackError::Length);
        }
        loop {
            let mut output = OutBuffer::around(&mut *self.step);
            let left = self.frames.end_stream(&mut output).map_err(|_| PackError::Codec)?;
            let made = output.pos();
            self.take(made, out);
            if left == 0 {
                return Ok(PacketHeader { delta, tier, frame_bytes: self.packed });
            }
        }
    }

    fn take(&mut self, made: usize, out: &mut Vec<u8>) {
        let made = self.step.get(..made).unwrap_or_default();
        out.extend_from_slice(made);
        self.packed += len(made);
    }

    /// Appends the whole packet of `content`.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); `out` may hold a part then.
    pub fn pack(&mut self, tier: Tier, delta: bool, content: &[u8], out: &mut Vec<u8>) -> Result<(), PackError> {
        self.begin(tier, len(content))?;
        let mut frame = Vec::new();
        self.push(content, &mut frame)?;
        self.finish(tier, delta, &mut frame)?.encode(out);
        out.extend_from_slice(&frame);
        Ok(())
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("missing", &self.missing).field("packed", &self.packed).finish_non_exhaustive()
    }
}

/// A packet that cannot be made: the caller's doing, or this machine's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The peer would refuse it.
    #[error("{content} bytes do not go into one packet: a v1 peer decodes at most 256 MiB; use v3, or blocks")]
    TooLarge {
        /// Plain bytes.
        content: u64,
    },
    /// Not as many plain bytes came as were promised.
    #[error("the content of a packet has another length than was said")]
    Length,
    /// zstd refused; no input makes it do so.
    #[error("zstd failed to compress")]
    Codec,
    /// No memory for zstd.
    #[error("no memory for a zstd encoder")]
    OutOfMemory,
}

/// Where a decoder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    FrameHeader,
    Body,
    Done,
}

/// Reads packets that arrive in pieces of any size, into a buffer of fixed size.
///
/// [`begin`](Self::begin), then [`fill`](Self::fill), [`plain`](Self::plain) and [`consume`](Self::consume) until the
/// bytes are used up, then [`finish`](Self::finish). Beside zstd's window, which a frame may make 32 MiB at most, it holds
/// 256 KiB.
pub struct Unpacker {
    frames: DCtx<'static>,
    stage: Stage,
    head: Partial<FRAME_HEADER_BYTES>,
    /// Bytes of `head` that zstd has had.
    fed: usize,
    header: Option<PacketHeader>,
    content: Option<u64>,
    most: u64,
    /// Bytes of the packet that have come, and all of them.
    at: u64,
    packet_bytes: u64,
    plain: Box<[u8]>,
    ready: std::ops::Range<usize>,
    /// zstd had no room for all that it could make.
    more: bool,
}

impl Unpacker {
    /// For packets of up to `most` plain bytes.
    ///
    /// # Errors
    /// [`PacketError::OutOfMemory`].
    pub fn new(most: u64) -> Result<Self, PacketError> {
        let mut frames = DCtx::try_create().ok_or(PacketError::OutOfMemory)?;
        frames.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(|_| PacketError::OutOfMemory)?;
        Ok(Self {
            frames,
            stage: Stage::Done,
            head: Partial::new(),
            fed: 0,
            header: None,
            content: None,
            most,
            at: 0,
            packet_bytes: 0,
            plain: vec![0; 2 * STEP].into_boxed_slice(),
            ready: 0..0,
            more: false,
        })
    }

    /// Begins a packet, of which what carries it says that it has so many bytes.
    ///
    /// # Errors
    /// Fewer than the shortest packet, or more than `most` plain bytes can become.
    pub fn begin(&mut self, packet_bytes: u64) -> Result<(), PacketError> {
        let least = HEADER + LEAST_FRAME;
        if packet_bytes < least {
            return Err(PacketError::Short { at: packet_bytes, missing: least - packet_bytes });
        }
        let limit = most_packet_bytes(self.most);
        if packet_bytes > limit {
            return Err(PacketError::TooLong { bytes: packet_bytes, limit });
        }
        self.frames.reset(ResetDirective::SessionOnly).map_err(|_| PacketError::OutOfMemory)?;
        self.stage = Stage::Header;
        self.head.clear();
        (self.header, self.content) = (None, None);
        (self.at, self.packet_bytes, self.ready) = (0, packet_bytes, 0..0);
        self.more = false;
        Ok(())
    }

    /// The header, once it has come.
    pub fn header(&self) -> Option<PacketHeader> {
        self.header
    }

    /// What the frame says of its plain bytes, once it has.
    pub fn content_bytes(&self) -> Option<u64> {
        self.content
    }

    /// Plain bytes that are ready.
    pub fn plain(&self) -> &[u8] {
        self.plain.get(self.ready.clone()).unwrap_or_default()
    }

    /// So many of [`plain`](Self::plain) were taken.
    pub fn consume(&mut self, bytes: usize) {
        self.ready.start = self.ready.start.saturating_add(bytes).min(self.ready.end);
    }

    /// Takes from the front of `packed` and makes more plain bytes, if it can. False: it needs more of the packet, or
    /// [`consume`](Self::consume) to make room.
    ///
    /// # Errors
    /// The bytes are no packet, or claim more than they may.
    pub fn fill(&mut self, packed: &mut &[u8]) -> Result<bool, PacketError> {
        let before = self.ready.len();
        if self.stage == Stage::Header {
            self.fill_header(packed)?;
        }
        if self.stage == Stage::FrameHeader {
            self.fill_frame_header(packed)?;
        }
        match self.stage {
            Stage::Body => self.fill_body(packed)?,
            Stage::Done if !packed.is_empty() => return Err(PacketError::Trailing { at: self.at }),
            _ => {}
        }
        Ok(self.ready.len() > before)
    }

    fn fill_header(&mut self, packed: &mut &[u8]) -> Result<(), PacketError> {
        let Some(bytes) = self.head.fill(PACKET_HEADER_BYTES, packed) else { return Ok(()) };
        let header = PacketHeader::decode(bytes)?;
        let carried = self.packet_bytes - HEADER;
        if header.frame_bytes != carried {
            return Err(PacketError::Length { claimed: header.frame_bytes, carried });
        }
        self.header = Some(header);
        self.at = HEADER;
        self.head.clear();
        self.stage = Stage::FrameHeader;
        Ok(())
    }

    /// The frame's header is judged before zstd sees a byte of it.
    fn fill_frame_header(&mut self, packed: &mut &[u8]) -> Result<(), PacketError> {
        let need = usize::try_from(self.packet_bytes - HEADER).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES);
        let Some(bytes) = self.head.fill(need, packed) else { return Ok(()) };
        let content = check_frame(bytes).map_err(|fault| PacketError::Frame { at: HEADER, fault })?;
        if content > self.most {
            return Err(PacketError::Content { content, limit: self.most });
        }
        self.content = Some(content);
        self.fed = 0;
        self.stage = Stage::Body;
        Ok(())
    }

    fn fill_body(&mut self, packed: &mut &[u8]) -> Result<(), PacketError> {
        let head = self.head;
        let mut begun = head.bytes().get(self.fed..).unwrap_or_default();
        if !begun.is_empty() {
            self.step(&mut begun)?;
            self.fed = head.have() - begun.len();
            if !begun.is_empty() {
                return Ok(());
            }
        }
        if self.stage == Stage::Body {
            self.step(packed)?;
        }
        Ok(())
    }

    /// One call of the decoder, unless it could do nothing: after 16 such calls zstd takes us for stuck.
    fn step(&mut self, packed: &mut &[u8]) -> Result<(), PacketError> {
        let full = self.ready.len() == self.plain.len();
        if full || (packed.is_empty() && !self.more) {
            return Ok(());
        }
        if self.ready.start > 0 {
            self.plain.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
        }
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around_pos(&mut *self.plain, self.ready.end);
        let done = self.frames.decompress_stream(&mut output, &mut input);
        self.ready.end = output.pos();
        self.more = self.ready.end == self.plain.len();
        let used = input.pos();
        *packed = packed.get(used..).unwrap_or_default();
        let left = done.map_err(|_| PacketError::Corrupt { at: self.at })?;
        self.at += u64::try_from(used).unwrap_or(u64::MAX);
        if left == 0 {
            self.stage = Stage::Done;
            if self.at != self.packet_bytes {
                return Err(PacketError::Trailing { at: self.at });
            }
        }
        Ok(())
    }

    /// Whether all plain bytes of the packet have been made (and maybe not yet consumed).
    pub fn is_whole(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The packet must be over, and all of it consumed.
    ///
    /// # Errors
    /// It is cut short.
    pub fn finish(&self) -> Result<(), PacketError> {
        if self.is_whole() && self.ready.is_empty() {
            return Ok(());
        }
        let at = self.at + if self.stage == Stage::Body { 0 } else { len(self.head.bytes()) };
        Err(PacketError::Short { at, missing: self.packet_bytes.saturating_sub(at) })
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("stage", &self.stage).field("at", &self.at).finish_non_exhaustive()
    }
}

/// The longest packet of `content` plain bytes: what zstd adds to bytes that it cannot compress, three bytes for each
/// 128 KiB, and twice that for other encoders.
pub(crate) fn most_packet_bytes(content: u64) -> u64 {
    HEADER + content.saturating_add(content >> 14).saturating_add(1024)
}

/// Judges the header of a frame (RFC 8878, section 3.1.1.1): what v1 writes always has a content size and a checksum and
/// names no dictionary. Tells the content size.
fn check_frame(frame: &[u8]) -> Result<u64, FrameFault> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let (magic, rest) = frame.split_first_chunk::<4>().ok_or(FrameFault::Magic)?;
    if *magic != MAGIC {
        return Err(FrameFault::Magic);
    }
    let (&descriptor, rest) = rest.split_first().ok_or(FrameFault::Short)?;
    if descriptor & 0x08 != 0 {
        return Err(FrameFault::Reserved);
    }
    if descriptor & 0x03 != 0 {
        return Err(FrameFault::Dictionary);
    }
    if descriptor & 0x04 == 0 {
        return Err(FrameFault::Checksum);
    }
    let single_segment = descriptor & 0x20 != 0;
    let (window, rest) = if single_segment {
        (None, rest)
    } else {
        let (&window, rest) = rest.split_first().ok_or(FrameFault::Short)?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        (Some(base + base / 8 * u64::from(window & 7)), rest)
    };
    let content = match (descriptor >> 6, single_segment) {
        (0, true) => rest.first().map(|byte| u64::from(*byte)),
        (0, false) => return Err(FrameFault::ContentSize),
        (1, _) => rest.first_chunk().map(|bytes| u64::from(u16::from_le_bytes(*bytes)) + 256),
        (2, _) => rest.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
        _ => rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
    };
    let content = content.ok_or(FrameFault::Short)?;
    if window.unwrap_or(content) > 1 << MAX_WINDOW_LOG {
        return Err(FrameFault::Window);
    }
    Ok(content)
}

/// Bytes that are no packet. `at` counts from the packet's first byte. The peer is to blame, but for the last one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// It ends too early.
    #[error("packet, byte {at}: it ends here, {missing} more bytes were expected")]
    Short {
        /// Where it ends.
        at: u64,
        /// How many are missing.
        missing: u64,
    },
    /// Longer than any packet may be.
    #[error("packet of {bytes} bytes, at most {limit} are taken")]
    TooLong {
        /// What carries it says so.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The first byte is neither 0 nor 1.
    #[error("packet, byte 0: delta flag {flag} is neither 0 nor 1")]
    Flag {
        /// The byte found.
        flag: u8,
    },
    /// No such tier.
    #[error("packet, byte 1: tier {tier} is not known")]
    Tier {
        /// The byte found.
        tier: u8,
    },
    /// Bytes that v1 leaves zero.
    #[error("packet, bytes 2 to 7 are not zero")]
    Reserved,
    /// It says another length than it has.
    #[error("packet, byte 8: it claims {claimed} bytes after its header, {carried} were sent")]
    Length {
        /// What its header says.
        claimed: u64,
        /// What carries it says.
        carried: u64,
    },
    /// Not the frame that v1 writes.
    #[error("packet, byte {at}: {fault}")]
    Frame {
        /// Where the frame starts.
        at: u64,
        /// What is wrong with it.
        fault: FrameFault,
    },
    /// Decodes to too much.
    #[error("packet decodes to {content} bytes, at most {limit} are taken")]
    Content {
        /// What the frame says.
        content: u64,
        /// The limit.
        limit: u64,
    },
    /// Broken compressed bytes, or another checksum.
    #[error("packet, byte {at}: broken zstd frame")]
    Corrupt {
        /// Near which byte.
        at: u64,
    },
    /// Bytes after the frame.
    #[error("packet, byte {at}: bytes after the frame")]
    Trailing {
        /// Where they start.
        at: u64,
    },
    /// No memory for zstd: not the peer's fault.
    #[error("no memory for a zstd decoder")]
    OutOfMemory,
}

/// What is wrong with a zstd frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// Another magic number.
    #[error("not a zstd frame")]
    Magic,
    /// Cut short.
    #[error("zstd frame header cut short")]
    Short,
    /// The reserved bit is set.
    #[error("zstd frame header with a reserved bit set")]
    Reserved,
    /// Wants a dictionary.
    #[error("zstd frame wants a dictionary, v1 has none")]
    Dictionary,
    /// Has no checksum.
    #[error("zstd frame without the checksum that v1 writes")]
    Checksum,
    /// Has no content size.
    #[error("zstd frame without a content size")]
    ContentSize,
    /// Wants too large a window.
    #[error("zstd frame wants a window above 32 MiB")]
    Window,
}
