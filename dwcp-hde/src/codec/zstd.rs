//! Single zstd frames through the C library: one frame per group, content size always present, never a window above 1 MiB.

use crate::{FrameFault, Method, PAGE_BYTES};
use zstd_safe::{CCtx, CParameter, DCtx, DDict, ResetDirective, SafeResult, Strategy};

/// Windows up to 1 MiB: no group is larger, so a larger window could only cost memory.
const WINDOW_LOG_MAX: u32 = 20;
/// The same in bytes.
const WINDOW_MAX: u64 = 1 << WINDOW_LOG_MAX;
/// The first bytes of every zstd frame; skippable and legacy frames have others.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// zstd's levels for a frame with a prefix, which it takes by level only. From 3: the double-fast search saves 0.1 to 0.6 points
/// more than level 1 on changed pages, at the same speed. To 9: 12 saves 0.1 points more at a tenth of the speed.
const LEAST_PREFIX_LEVEL: i32 = 3;
const MOST_PREFIX_LEVEL: i32 = 9;

/// How hard a packer searches for matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// For one page, of which only the length is of interest.
    Trial,
    /// Fast, and literals are left as they are.
    Light,
    /// Fast.
    Balanced,
    /// The same for byte planes.
    BalancedPlanes,
    /// 1 to 12.
    Level(i32),
}

impl Search {
    /// The search for a group of `method`.
    pub(crate) const fn of(self, method: Method) -> Self {
        match (self, method) {
            (Self::Balanced, Method::Planes | Method::NarrowPlanes) => Self::BalancedPlanes,
            _ => self,
        }
    }
}

/// A zstd encoder that keeps its tables.
pub(crate) struct Packer {
    /// Made at the first use, so that an encoder which never needs zstd stays small.
    frames: Option<CCtx<'static>>,
    /// The search which `frames` is set to.
    search: Option<Search>,
}

impl Packer {
    pub(crate) const fn new() -> Self {
        Self { frames: None, search: None }
    }

    /// Writes the frame of `plain` to the front of `into` and tells its length; `None` when it is longer than `into` (or zstd
    /// fails: plain bytes are always an answer). `into` may hold anything then.
    pub(crate) fn pack(&mut self, plain: &[u8], search: Search, into: &mut [u8]) -> Option<usize> {
        self.prepare(search)?;
        let done = self.frames.as_mut()?.compress2(into, plain);
        self.finish(done)
    }

    /// As [`pack`](Self::pack), with `prefix` as if it stood before `plain`.
    pub(crate) fn pack_after(&mut self, prefix: &[u8], plain: &[u8], search: Search, into: &mut [u8]) -> Option<usize> {
        self.prepare(search)?;
        let level = match search {
            Search::Level(level) => level.clamp(LEAST_PREFIX_LEVEL, MOST_PREFIX_LEVEL),
            Search::Trial | Search::Light | Search::Balanced | Search::BalancedPlanes => LEAST_PREFIX_LEVEL,
        };
        let done = self.frames.as_mut()?.compress_using_dict(into, plain, prefix, level);
        self.finish(done)
    }

    fn prepare(&mut self, search: Search) -> Option<()> {
        if self.frames.is_none() {
            self.frames = CCtx::try_create();
        }
        if self.search != Some(search) {
            self.search = None;
            let frames = self.frames.as_mut()?;
            frames.reset(ResetDirective::SessionAndParameters).ok()?;
            for parameter in parameters(search) {
                frames.set_parameter(parameter).ok()?;
            }
            self.search = Some(search);
        }
        Some(())
    }

    /// A failed context refuses further work until it is reset; failing is normal here (there was too little room).
    fn finish(&mut self, done: SafeResult) -> Option<usize> {
        if done.is_err() && self.frames.as_mut()?.reset(ResetDirective::SessionOnly).is_err() {
            self.frames = None;
            self.search = None;
        }
        done.ok()
    }
}

/// What a search means: parameters of our own over a window of the whole group, so that a frame is always a single segment.
/// zstd's levels are made for files: their tables and least matches grow with the input. The table of `docs/performance.md`,
/// "Codec", has what each choice saves and costs.
///
/// - `Light`: one 2^14 table, and a target length that makes zstd leave literals as they are.
/// - `Balanced`: one 2^13 table (32 KiB, it stays in the first-level cache), matches from 5 bytes; of byte planes from 7, for
///   what repeats there is long, and the rest packs better as literals than zstd's offsets do. A window of 256 KiB, not for its
///   size, but because zstd's fast search takes no unpredictable branches below 2^19.
/// - 1: two 2^15 tables (256 KiB, they stay in the second-level cache): 0.8 to 1 point more at three quarters of the speed.
/// - 6 to 12: the lazy search in rows with matches from 4 bytes, where zstd's levels 9 to 12 have 5; twice as fast as zstd's 12
///   on our groups, and better.
pub(super) fn parameters(search: Search) -> impl Iterator<Item = CParameter> {
    let (level, ours): (i32, &[CParameter]) = match search {
        Search::Trial => (TRIAL_LEVEL, &[]),
        Search::Light => (-1, LIGHT),
        Search::Balanced => (1, BALANCED),
        Search::BalancedPlanes => (1, BALANCED_PLANES),
        Search::Level(level @ ..=1) => (level, DOUBLE),
        Search::Level(level @ 2..=5) => (level, &[]),
        Search::Level(level @ 6..=8) => (level, SHALLOW),
        Search::Level(level @ 9..=11) => (level, MIDDLE),
        Search::Level(level) => (level, DEEP),
    };
    let first = [CParameter::CompressionLevel(level), CParameter::WindowLog(WINDOW_LOG_MAX)];
    first.into_iter().chain(ours.iter().copied())
}

/// The fastest of zstd's levels that still ranks forms as a slow one does.
const TRIAL_LEVEL: i32 = -5;
const LIGHT: &[CParameter] = &[
    CParameter::Strategy(Strategy::ZSTD_fast),
    CParameter::HashLog(14),
    CParameter::MinMatch(5),
    CParameter::TargetLength(1),
];
const BALANCED: &[CParameter] = &fast(5);
const BALANCED_PLANES: &[CParameter] = &fast(7);
const DOUBLE: &[CParameter] = &[
    CParameter::Strategy(Strategy::ZSTD_dfast),
    CParameter::HashLog(15),
    CParameter::ChainLog(15),
    CParameter::MinMatch(5),
];
const SHALLOW: &[CParameter] = &lazy(3);
const MIDDLE: &[CParameter] = &lazy(4);
const DEEP: &[CParameter] = &lazy(5);

/// A fast search for matches of `least` bytes.
const fn fast(least: u32) -> [CParameter; 4] {
    [
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::HashLog(13),
        CParameter::MinMatch(least),
        CParameter::WindowLog(18),
    ]
}

/// A lazy search that looks at up to 2^`search_log` places.
const fn lazy(search_log: u32) -> [CParameter; 5] {
    [
        CParameter::Strategy(Strategy::ZSTD_lazy2),
        CParameter::HashLog(19),
        CParameter::ChainLog(18),
        CParameter::SearchLog(search_log),
        CParameter::MinMatch(4),
    ]
}

/// A zstd decoder that keeps its tables.
pub(crate) struct Unpacker {
    frames: Option<DCtx<'static>>,
}

/// What a frame may refer to beside its own pages.
#[derive(Clone, Copy)]
pub(crate) enum Before<'a> {
    Nothing,
    Prefix(&'a [u8]),
    Dictionary(&'a DDict<'static>),
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

    /// Decompresses the one frame `frame`, with `before` as if it stood before it, into exactly `plain`. spec: K-6
    /// `plain` may hold anything after an error: the caller throws it away.
    pub(crate) fn unpack(&mut self, frame: &[u8], before: Before<'_>, plain: &mut [u8]) -> Result<(), Fault> {
        check_frame(frame, plain.len()).map_err(Fault::Frame)?;
        if self.frames.is_none() {
            self.frames = DCtx::try_create();
        }
        let frames = self.frames.as_mut().ok_or(Fault::OutOfMemory)?;
        let done = match before {
            Before::Nothing => frames.decompress(plain, frame),
            Before::Prefix(prefix) => frames.decompress_using_dict(plain, frame, prefix),
            Before::Dictionary(dictionary) => frames.decompress_using_ddict(plain, frame, dictionary),
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
