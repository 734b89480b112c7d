//! DWCP v3: moves live, changing state between hosts.
//!
//! ```text
//!  Guest ──harvest──> Source ──Dispatch──> lane worker ══ TLS 1.3 ══> lane worker ──> Sink ──run──> Guest
//!            dirty             read, hash,                            verify, write
//!            pages             encode, write                          acknowledge
//! ```
//!
//! - [`wire`]: byte layouts, nothing else.
//! - [`session`]: the pure machines [`session::Source`] and [`session::Sink`].
//! - [`message`]: lanes that carry version 1's messages, whose bytes another crate knows.
//! - [`flag`]: whether this node may speak version 3 now: documents, decisions, sources.
//! - [`guest`]: the trait an embedder implements, and guests for files and memory.
//! - [`net`]: lanes over TLS 1.3, the one driver loop, [`net::Endpoint`].
//! - [`baseline`]: earlier states of guests, of which a transfer sends only what has changed since.
//! - [`dictionary`]: what pages have in common, kept for both ends of a transfer to refer to.
//! - [`storage`]: where files are kept, as a seam for the simulator.
//! - [`blocking`]: the same for programs without an async runtime.
//!
//! Imports go one way: `wire <- session <- net`. Without the feature `net` nothing here links tokio,
//! rustls or a socket, and without `baseline` and `net` no file and no cipher.

#[cfg(all(feature = "net", not(feature = "planted-bugs")))]
#[macro_use]
mod failpoint;
#[cfg(all(feature = "net", feature = "planted-bugs"))]
#[macro_use]
pub mod failpoint;

#[cfg(feature = "baseline")]
pub mod baseline;
#[cfg(feature = "net")]
pub mod blocking;
#[cfg(feature = "net")]
pub mod dictionary;
pub mod extent;
pub mod flag;
pub mod guest;
pub mod message;
#[cfg(feature = "net")]
pub mod net;
pub mod session;
#[cfg(any(feature = "net", feature = "baseline"))]
pub mod storage;
pub mod wire;

pub use crate::extent::{Extent, Layout, MAX_EXTENT_PAGES, PAGE_BYTES, PageMask, RegionId, Run};
pub use crate::guest::{DirtyMap, Guest, GuestError, Pending};
