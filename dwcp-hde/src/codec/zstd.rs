//! Single zstd frames through the C library: one frame per group, content size always present, never a window above 1 MiB.

use crate::{FrameFault, PAGE_BYTES};
use zstd_safe::{CCtx, CParameter, DCtx, ResetDirective, SafeResult, Strategy};

/// Windows up to 1 MiB: no group is larger, so a larger window could only cost memory.
const WINDOW_LOG_MAX: u32 = 20;
/// The same in bytes.
const WINDOW_MAX: u64 = 1 << WINDOW_LOG_MAX;
/// The first bytes of every zstd frame; skippable and legacy frames have others.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The least level of a frame with a prefix: the double-fast search saves 0.1 to 0.6 points more than level 1 on changed
/// pages, at the same speed.
const PREFIX_LEVEL: i32 = 3;

/// A zstd encoder that keeps its tables.
pub(crate) struct Packer {
    /// Made at the first use, so that an encoder which never needs zstd stays small.
    frames: Option<CCtx<'static>>,
    /// The level which `frames` is set to.
    level: Option<i32>,
    squeezed: Vec<u8>,
}

impl Packer {
    pub(crate) const fn new() -> Self {
        Self { frames: None, level: None, squeezed: Vec::new() }
    }

    /// The frame of `plain`, or `None` when it is longer than `limit` (or zstd fails: plain bytes are always an answer).
    pub(crate) fn pack(&mut self, plain: &[u8], level: i32, limit: usize) -> Option<&[u8]> {
        self.prepare(level, limit)?;
        let frames = self.frames.as_mut()?;
        let done = frames.compress2(self.squeezed.get_mut(..limit)?, plain);
        self.finish(done)
    }

    /// As [`pack`](Self::pack), with `prefix` as if it stood before `plain`.
    pub(crate) fn pack_after(&mut self, prefix: &[u8], plain: &[u8], level: i32, limit: usize) -> Option<&[u8]> {
        self.prepare(level, limit)?;
        let frames = self.frames.as_mut()?;
        let level = level.max(PREFIX_LEVEL);
        let done = frames.compress_using_dict(self.squeezed.get_mut(..limit)?, plain, prefix, level);
        self.finish(done)
    }

    fn prepare(&mut self, level: i32, limit: usize) -> Option<()> {
        if self.squeezed.len() < limit {
            self.squeezed.resize(limit, 0);
        }
        if self.frames.is_none() {
            self.frames = CCtx::try_create();
        }
        if self.level != Some(level) {
            self.level = None;
            let frames = self.frames.as_mut()?;
            frames.reset(ResetDirective::SessionAndParameters).ok()?;
            frames.set_parameter(CParameter::CompressionLevel(level)).ok()?;
            for parameter in parameters(level) {
                frames.set_parameter(*parameter).ok()?;
            }
            self.level = Some(level);
        }
        Some(())
    }

    /// A failed context refuses further work until it is reset; failing is normal here (`limit` was too small).
    fn finish(&mut self, done: SafeResult) -> Option<&[u8]> {
        match done {
            Ok(length) => self.squeezed.get(..length),
            Err(_) => {
                if self.frames.as_mut()?.reset(ResetDirective::SessionOnly).is_err() {
                    self.frames = None;
                    self.level = None;
                }
                None
            }
        }
    }
}

/// What a level means here: zstd's own tables for it over a window of the whole group, so that a frame is always a single
/// segment. Level 1 is ours: the double-fast search with two 2^15 tables (256 KiB, they stay in the second-level cache) and
/// matches from 5 bytes. On real first rounds it saves 1.7 to 2.1 points more than zstd's level 1 at three quarters of its
/// speed, and 0.1 points less than level 3 with half of its tables. Level -1 is ours too: the fast search with one 2^14 table,
/// matches from 5 bytes, and a target length that makes zstd leave literals as they are. It saves 3 points less than level 1
/// at 1.4 times its speed, both ways.
fn parameters(level: i32) -> &'static [CParameter] {
    const OURS: &[CParameter] = &[
        CParameter::WindowLog(WINDOW_LOG_MAX),
        CParameter::Strategy(Strategy::ZSTD_dfast),
        CParameter::HashLog(15),
        CParameter::ChainLog(15),
        CParameter::MinMatch(5),
    ];
    const LIGHT: &[CParameter] = &[
        CParameter::WindowLog(WINDOW_LOG_MAX),
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::HashLog(14),
        CParameter::MinMatch(5),
        CParameter::TargetLength(1),
    ];
    const ZSTDS: &[CParameter] = &[CParameter::WindowLog(WINDOW_LOG_MAX)];
    match level {
        ..=0 => LIGHT,
        1 => OURS,
        _ => ZSTDS,
    }
}

/// A zstd decoder that keeps its tables.
pub(crate) struct Unpacker {
    frames: Option<DCtx<'static>>,
}

/// Why a frame gave no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Frame(FrameFault),
    Corrupt,
    OutOfMemory,
}

impl Unpacker {
    pub(crate) const fn new() -> Self {
        Self { frames: None }
    }

    /// Decompresses the one frame `frame`, with `prefix` before it, into exactly `plain`. spec: K-6
    /// `plain` may hold anything after an error: the caller throws it away.
    pub(crate) fn unpack(&mut self, frame: &[u8], prefix: &[u8], plain: &mut [u8]) -> Result<(), Fault> {
        check_frame(frame, plain.len()).map_err(Fault::Frame)?;
        if self.frames.is_none() {
            self.frames = DCtx::try_create();
        }
        let frames = self.frames.as_mut().ok_or(Fault::OutOfMemory)?;
        let done = if prefix.is_empty() {
            frames.decompress(plain, frame)
        } else {
            frames.decompress_using_dict(plain, frame, prefix)
        };
        match done {
            Ok(length) if length == plain.len() => Ok(()),
            _ => {
                self.frames = None; // a failed context may refuse further work; failing is rare, a new one is cheap enough
                Err(Fault::Corrupt)
            }
        }
    }
}

/// Checks the header of a frame (RFC 8878, section 3.1.1.1) against what our groups hold, before zstd sees it.
/// spec: K-5
fn check_frame(frame: &[u8], plain: usize) -> Result<(), FrameFault> {
    let (magic, rest) = frame.split_first_chunk::<4>().ok_or(FrameFault::Short)?;
    if *magic != MAGIC {
        return Err(FrameFault::Magic);
    }
    let (&descriptor, rest) = rest.split_first().ok_or(FrameFault::Short)?;
    let single_segment = descriptor & 0x20 != 0;
    if descriptor & 0x1f != 0 {
        return Err(FrameFault::Features); // unused bit, reserved bit, checksum, dictionary id
    }
    let rest = if single_segment {
        rest
    } else {
        let (&window, rest) = rest.split_first().ok_or(FrameFault::Short)?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        if base + base / 8 * u64::from(window & 7) > WINDOW_MAX {
            return Err(FrameFault::Window);
        }
        rest
    };
    let (content, blocks) = content_size(descriptor >> 6, single_segment, rest)?;
    if u64::try_from(plain) != Ok(content) {
        return Err(FrameFault::ContentSize);
    }
    check_blocks(blocks, plain / PAGE_BYTES + 1)
}

/// The content size field, whose width the descriptor's top bits tell, and what follows it.
fn content_size(width: u8, single_segment: bool, field: &[u8]) -> Result<(u64, &[u8]), FrameFault> {
    match width {
        0 if single_segment => field.split_first().map(|(byte, rest)| (u64::from(*byte), rest)),
        0 => return Err(FrameFault::ContentSize),
        1 => field.split_first_chunk().map(|(bytes, rest)| (u64::from(u16::from_le_bytes(*bytes)) + 256, rest)),
        2 => field.split_first_chunk().map(|(bytes, rest)| (u64::from(u32::from_le_bytes(*bytes)), rest)),
        _ => field.split_first_chunk().map(|(bytes, rest)| (u64::from_le_bytes(*bytes), rest)),
    }
    .ok_or(FrameFault::Short)
}

/// Walks over the blocks of a frame (RFC 8878, section 3.1.1.2): no more than `most`, and nothing behind the last. A block
/// can ask for four tables of up to 2048 entries in some 20 bytes, so that their number is what decoding costs.
fn check_blocks(mut blocks: &[u8], most: usize) -> Result<(), FrameFault> {
    for _ in 0..most {
        let (&[low, middle, high], rest) = blocks.split_first_chunk().ok_or(FrameFault::NotOneFrame)?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let size = usize::try_from(header >> 3).unwrap_or(usize::MAX);
        let stored = match header >> 1 & 3 {
            RUN_BLOCK => 1,
            RESERVED_BLOCK => return Err(FrameFault::NotOneFrame),
            _ => size,
        };
        blocks = rest.get(stored..).ok_or(FrameFault::NotOneFrame)?;
        if header & 1 == 1 {
            return if blocks.is_empty() { Ok(()) } else { Err(FrameFault::NotOneFrame) };
        }
    }
    Err(FrameFault::Blocks)
}

/// Types of a block: one byte that is repeated, and one that does not exist.
const RUN_BLOCK: u32 = 1;
const RESERVED_BLOCK: u32 = 3;
