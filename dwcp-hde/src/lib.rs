//! Hierarchical delta encoding of memory pages: one *extent* (up to 256 pages of 4 KiB, packed one after the other) to one
//! self-describing *block*, and back.
//!
//! Pure compression: bytes in, bytes out. No I/O, no async, no clock, no randomness, no `unsafe`, and no panic on any input.
//! Which pages form an extent, when it is sent, and whether its plain bytes are the right ones (the digest) is decided
//! elsewhere.
//!
//! # The tour
//! 1. [`Encoder::encode`] gives each page a [`Method`] by a look at it (`choose.rs`): [`is_zero`], the [`Bases`] which the
//!    receiver holds, and 64 sampled bytes. Pages of random bytes cost about 40 ns here and go on as they are.
//! 2. Pages of one method are packed side by side and compressed as one *group* (`codec/`): that saves 2 to 3 points more
//!    than page by page, and is 1.5 times as fast. A group that does not save 1/32 becomes raw. A group of few pages
//!    has little of its own to refer to: where both ends hold a [`Dictionary`], it refers to that.
//! 3. The head names the method of every page, then the groups follow (`block.rs` has the bytes).
//! 4. [`Decoder::decode`] checks everything that the block claims before any work, unpacks into the caller's scratch buffer
//!    and asks a [`BaseSource`] for old pages only where a method needs them.
//!
//! ```text
//! block  +---------+-------+------------------------+---------------------------------------+
//!        | version | pages | (method, run - 1) ...  | (method, pages - 1, length, bytes) ... |
//!        |   u8    |  u16  |  u8       u8           |  u8      u8         u32               |
//!        +---------+-------+------------------------+---------------------------------------+
//!          head              page table               groups
//! ```
//!
//! # Limits
//! A block holds at most [`MAX_PAGES`] pages and [`max_block_bytes`] bytes. Decoding one needs at most 3 MiB of buffers
//! (scratch, one group, its old pages) beside zstd's own fixed tables, whatever the block says. A dictionary has at most
//! [`MAX_DICTIONARY_BYTES`] bytes, and a block can name only one that was handed to the decoder.
//!
//! # Example
//! ```
//! use dwcp_hde::{Bases, Decoder, Effort, Encoder, Method, PAGE_BYTES};
//!
//! let mut pages = vec![0; 3 * PAGE_BYTES];
//! pages[PAGE_BYTES..2 * PAGE_BYTES].fill(b'a');
//! pages[2 * PAGE_BYTES..].fill(b'a');
//!
//! let mut block = Vec::new();
//! let done = Encoder::new().encode(&pages, &Bases::none(), Effort::Balanced, &mut block)?;
//! assert!(!done.raw_tail);
//! assert_eq!(done.stats.of(Method::Zero).pages, 1);
//! assert_eq!(done.stats.of(Method::CopyOf).pages, 1);
//! assert!(block.len() < 64);
//!
//! let mut scratch = Vec::new();
//! let plain = Decoder::new().decode(&block, 3, &mut Bases::none(), &mut scratch)?;
//! assert_eq!(plain, pages);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bases;
mod block;
mod choose;
mod codec;
mod decode;
mod delta;
mod dictionary;
mod encode;
mod error;
mod forms;
mod method;
mod planes;
mod stats;
mod zero;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use bases::{BaseSource, Bases};
pub use block::{MAX_BLOCK_BYTES, max_block_bytes};
pub use choose::{Effort, is_related};
pub use decode::{Decoder, needs_bases};
pub use dictionary::{
    Dictionaries, Dictionary, DictionaryError, DictionaryId, MAX_DICTIONARIES, MAX_DICTIONARY_BYTES,
    MAX_TRAINING_PAGES, MIN_DICTIONARY_BYTES, TrainError, Trained, train,
};
pub use encode::{Encoded, Encoder, Request};
pub use error::{BaseMissing, DecodeError, EncodeError, FrameFault};
pub use method::Method;
pub use stats::{MethodStats, Stats};
pub use zero::is_zero;

/// Bytes of a page: the granule at which guests report dirty memory.
pub const PAGE_BYTES: usize = 4096;

/// Pages of the largest block: 1 MiB plain. Larger blocks gain little (zstd over 64 KiB is within 1-2 points of one
/// endless stream) and would hold a lane for too long.
pub const MAX_PAGES: usize = 256;
