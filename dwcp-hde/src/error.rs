//! What can go wrong, by blame: [`EncodeError`] is the caller's, [`DecodeError`] is the block's (and so the peer's).

use crate::Method;
use thiserror::Error;

/// The caller asked for something that no block can hold. `out` is untouched then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive] // a new kind of input brings a new way to misuse it
pub enum EncodeError {
    /// The input is not a whole number of pages.
    #[error("{bytes} bytes are not a whole number of pages")]
    PartialPage {
        /// Length of the input in bytes.
        bytes: usize,
    },
    /// The input is larger than one extent.
    #[error("{pages} pages do not fit one block")]
    TooManyPages {
        /// Pages in the input.
        pages: usize,
    },
    /// A page is marked as having a base, but the base bytes end before it.
    #[error("bases hold {bytes} bytes, page {page} lies beyond them")]
    BaseBeyondEnd {
        /// The page's index in the extent.
        page: usize,
        /// Length of the base bytes.
        bytes: usize,
    },
    /// [`Effort::Thorough`](crate::Effort::Thorough) takes levels 1 to 12.
    #[error("zstd level {level} is outside 1..=12")]
    Level {
        /// The level asked for.
        level: i32,
    },
}

/// The block is not one that an honest encoder makes, or it needs something that is not here.
///
/// `at` is always a byte position in the block. After an error the scratch buffer is empty: no half-decoded byte escapes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive] // later versions of the format bring later reasons
pub enum DecodeError {
    /// The block ends inside a field.
    #[error("byte {at}: block ends here, {need} more bytes expected")]
    Truncated {
        /// Where the missing field starts.
        at: usize,
        /// How many bytes it lacks.
        need: usize,
    },
    /// Another format version.
    #[error("byte {at}: block version {version} is not known")]
    Version {
        /// Position of the version.
        at: usize,
        /// The version found.
        version: u8,
    },
    /// The caller's own page count is above [`MAX_PAGES`](crate::MAX_PAGES): the extent header was not checked.
    #[error("{pages} pages asked for, a block holds at most 256")]
    TooManyPages {
        /// Pages asked for.
        pages: usize,
    },
    /// The block claims another number of pages than the extent header.
    #[error("byte {at}: block claims {claimed} pages, the extent has {expected}")]
    PageCount {
        /// Position of the count.
        at: usize,
        /// Pages the block claims.
        claimed: usize,
        /// Pages of the extent.
        expected: usize,
    },
    /// A method number this version does not know.
    #[error("byte {at}: method {number} is not known")]
    UnknownMethod {
        /// Position of the number.
        at: usize,
        /// The number found.
        number: u8,
    },
    /// A group refers to a dictionary that was not agreed on.
    #[error("byte {at}: dictionary {number} was not agreed on")]
    DictionaryUnknown {
        /// Position of the number.
        at: usize,
        /// The dictionary's number.
        number: u8,
    },
    /// A run of the page table goes beyond the last page.
    #[error("byte {at}: run of {run} pages, {left} left")]
    RunBeyondEnd {
        /// Position of the run.
        at: usize,
        /// Pages of the run.
        run: usize,
        /// Pages not yet covered.
        left: usize,
    },
    /// A group of a method that never has one.
    #[error("byte {at}: method {} has no group", method.name())]
    GroupWithoutBytes {
        /// Position of the group.
        at: usize,
        /// Its method.
        method: Method,
    },
    /// A group carries more pages than the page table gives its method.
    #[error("byte {at}: group of {pages} {} pages, {left} left in the table", method.name())]
    GroupBeyondTable {
        /// Position of the group.
        at: usize,
        /// Its method.
        method: Method,
        /// Pages of the group.
        pages: usize,
        /// Pages of the method which no group has carried yet.
        left: usize,
    },
    /// The group's length is impossible for its method and pages.
    #[error("byte {at}: {length} bytes cannot be {pages} {} pages", method.name())]
    GroupLength {
        /// Position of the group.
        at: usize,
        /// Its method.
        method: Method,
        /// Pages of the group.
        pages: usize,
        /// Bytes the group claims.
        length: usize,
    },
    /// The page table names pages which no group carries.
    #[error("byte {at}: {pages} {} pages have no group", method.name())]
    GroupMissing {
        /// End of the block.
        at: usize,
        /// The method of the pages.
        method: Method,
        /// How many pages are missing.
        pages: usize,
    },
    /// Bytes after the last group.
    #[error("byte {at}: {bytes} bytes after the last group")]
    Trailing {
        /// Where they start.
        at: usize,
        /// How many.
        bytes: usize,
    },
    /// A page claims to be a copy of itself or of a later page.
    #[error("byte {at}: page {page} claims to be a copy of page {of}")]
    CopyForward {
        /// Position of the index.
        at: usize,
        /// The page.
        page: usize,
        /// The page it names.
        of: usize,
    },
    /// The zstd frame is not the one plain frame that a group holds.
    #[error("byte {at}: {reason}")]
    Frame {
        /// Position of the frame.
        at: usize,
        /// What is wrong with it.
        reason: FrameFault,
    },
    /// The compressed bytes of a group are broken, or do not give exactly the group's pages.
    #[error("byte {at}: broken {} bytes", method.name())]
    Corrupt {
        /// Position of the compressed bytes.
        at: usize,
        /// The group's method.
        method: Method,
    },
    /// The page needs the receiver's old content, and there is none.
    #[error("byte {at}: method {} of page {page} needs a base, there is none", method.name())]
    BaseMissing {
        /// Position of the group, or of the page table for [`Method::Same`].
        at: usize,
        /// The page.
        page: usize,
        /// Its method.
        method: Method,
    },
    /// The zstd decoder could not be made: no memory for it. Not the block's fault.
    #[error("no memory for a zstd decoder")]
    OutOfMemory,
}

impl DecodeError {
    /// Whether the block claims more than its extent may hold: more pages, bytes, memory or work. It is found before any of
    /// that is spent. Everything else is a block that cannot be decoded.
    pub fn is_excess(&self) -> bool {
        let frame = |reason: &FrameFault| {
            use FrameFault::{Blocks, ContentSize, Magic, NotOneFrame, Window};
            matches!(reason, Blocks | ContentSize | Magic | NotOneFrame | Window)
        };
        match self {
            Self::PageCount { .. }
            | Self::RunBeyondEnd { .. }
            | Self::GroupBeyondTable { .. }
            | Self::GroupLength { .. }
            | Self::TooManyPages { .. }
            | Self::CopyForward { .. } => true,
            Self::Frame { reason, .. } => frame(reason),
            _ => false,
        }
    }
}

/// What is wrong with a zstd frame header. All of these are found before zstd itself sees a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive] // the list follows the checks
pub enum FrameFault {
    /// Not the magic number of a zstd frame (skippable, legacy and magicless frames are refused).
    #[error("not a zstd frame")]
    Magic,
    /// The frame header is cut short.
    #[error("zstd frame header cut short")]
    Short,
    /// The reserved bit is set, or a dictionary or checksum that no encoder of ours writes.
    #[error("zstd frame header uses features which a group never uses")]
    Features,
    /// No content size, or another one than the group's pages.
    #[error("zstd frame does not claim exactly the bytes of its pages")]
    ContentSize,
    /// A window above 1 MiB.
    #[error("zstd frame asks for a window above 1 MiB")]
    Window,
    /// The group holds more or less than one frame.
    #[error("group is not exactly one zstd frame")]
    NotOneFrame,
    /// More blocks than one a page and one more: each can cost the time of thousands of plain bytes.
    #[error("zstd frame has more than one block a page and one more")]
    Blocks,
}

/// The receiver holds no old content of the page that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no base for this page")]
pub struct BaseMissing;
