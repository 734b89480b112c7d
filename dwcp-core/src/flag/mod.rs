//! The runtime flag: whether this node may speak version 3 now, and why.
//!
//! ```text
//!  file, read 40 times a second ──┐
//!  control plane (InProcess) ─────┼──> Keeper ──FlagSnapshot──> Publication ──> sessions: snapshot(), watch()
//!  nothing configured (Constant) ─┘    last good document,       lock-free to read,
//!  DWCP_FORCE_V1=1 ───────────────┘    staleness, counters       wakes who waits
//! ```
//!
//! `docs/flags.md` says what a document means. The decision is pure ([`FlagRule::decide`]), so is what is kept of a
//! source that fails ([`Keeper`], told the time); only the file's watcher has threads and a clock (feature `net`).
//! Whatever is in doubt is decided for version 1, which every peer speaks.

mod decision;
mod document;
mod environment;
#[cfg(feature = "net")]
mod file;
#[cfg(feature = "net")]
mod floor;
mod in_process;
mod keeper;
mod node;
mod percentage;
mod publication;
mod reason;
mod roster;
mod snapshot;

use std::fmt;
use std::sync::Arc;

pub use self::decision::{BUCKETS, Decision, Why, bucket};
pub use self::document::{DocumentError, FlagDocument, FlagRule, FlagVersion, Flags, HashName, MAX_DOCUMENT_BYTES};
pub use self::environment::{FORCE_V1, forced_distrust, forced_v1, is_forced_v1};
#[cfg(feature = "net")]
pub use self::file::{FileOptions, FileSource, configured};
#[cfg(feature = "net")]
pub use self::floor::{Remembered, remembered};
pub use self::in_process::{Constant, InProcess};
pub use self::keeper::{FlagStats, Keeper, MAX_STALE, Refusal, RefusalKind};
pub use self::node::{NodeName, NodeNameError, Word, WordError};
pub use self::percentage::{Percentage, PercentageError, Threshold, ThresholdError};
pub use self::publication::{FlagWatch, Publication};
pub use self::reason::{Reason, ReasonError};
pub use self::roster::{Exact, Roster, RosterError};
pub use self::snapshot::{FlagSnapshot, Origin, Standing};

/// A flag of the rollout documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// Whether this node speaks version 3 at all. Off: version 1.
    V3,
    /// Whether version 3 compresses. Off: pages travel as they are, all else stays.
    Compression,
}

impl Flag {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V3, Self::Compression];

    /// Its name in documents, in metrics, and in the hash.
    pub fn key(self) -> &'static str {
        match self {
            Self::V3 => "dwcp_v3_hde",
            Self::Compression => "dwcp_v3_compression",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// Where a node learns its flags. Keep it for as long as sessions look at it: a file that nobody holds is not watched.
///
/// ```
/// use dwcp_core::flag::{Constant, FlagSource};
///
/// let source = Constant::v3();
/// let mut watch = source.watch();
/// assert!(source.snapshot().v3() && source.snapshot().compression());
/// assert!(!watch.has_changed(), "a constant never does; other sources wake `watch.changed().await`");
/// ```
pub trait FlagSource: Send + Sync + fmt::Debug {
    /// What is decided now. Lock-free, a few nanoseconds: may be asked for each extent.
    fn snapshot(&self) -> Arc<FlagSnapshot>;

    /// Tells of each snapshot after the present one.
    fn watch(&self) -> FlagWatch;

    /// What was loaded and refused so far.
    fn stats(&self) -> FlagStats;
}

#[cfg(test)]
mod tests;
