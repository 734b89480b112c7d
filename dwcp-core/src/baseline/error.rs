use std::io;

use super::key::ManifestDigest;
use crate::extent::RegionId;
use crate::guest::GuestError;
use crate::wire::Name;

/// Why a store could not do what it was asked. Never a peer's fault; a transfer goes on without the baseline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// The folder holds no store.
    #[error("there is no baseline store here: it has no file `{header}`", header = super::names::HEADER)]
    NoStore,
    /// The header of the store is not whole.
    #[error("the file `{header}` of this baseline store is damaged", header = super::names::HEADER)]
    DamagedHeader,
    /// The header of the store is gone. The key opens what is there, so it can be made again with it.
    #[error("the file `{header}` of this baseline store is missing", header = super::names::HEADER)]
    NoHeader,
    /// The header of the store is gone, and the key opens no baseline that is there: it is not made again with this one.
    #[error("this baseline store has no file `{header}`, and this key opens none of its baselines", header = super::names::HEADER)]
    NoneOpened,
    /// The store was made with another key.
    #[error("this baseline store was made with another key")]
    WrongKey,
    /// A newer version made it, or one that is older than any that is read.
    #[error("{file} has the format {found}, and this version knows only {known}", known = super::manifest::FORMAT)]
    Format {
        /// Which file.
        file: String,
        /// What it says.
        found: u16,
    },
    /// There is no such baseline, or it has been collected.
    #[error("tenant {tenant} has no baseline {what}")]
    Unknown {
        /// Whose.
        tenant: Name,
        /// Its name or digest, as it was asked for.
        what: String,
    },
    /// Bytes of the store are not what was written.
    #[error("{file} is damaged: {damage}")]
    Damaged {
        /// Which file.
        file: String,
        /// How.
        damage: Damage,
    },
    /// The store would become larger than it may.
    #[error("the store has {used} bytes and may have {limit}: another {more} do not fit")]
    OverLimit {
        /// Bytes that it has, with what this baseline has taken so far.
        used: u64,
        /// Bytes that it may have.
        limit: u64,
        /// Bytes that were to be added.
        more: u64,
    },
    /// The disk is full.
    #[error("the disk is full while {what}")]
    DiskFull {
        /// What was being done.
        what: String,
    },
    /// The image has more pages than this store takes.
    #[error("the image has {pages} pages, and this store takes at most {most} in one baseline")]
    TooLarge {
        /// Pages of the image.
        pages: u64,
        /// Pages that are taken.
        most: u64,
    },
    /// A page outside the baseline was asked for: a bug of the caller.
    #[error("page {page} lies outside {region} of baseline {digest}")]
    Outside {
        /// Which baseline.
        digest: ManifestDigest,
        /// The region.
        region: RegionId,
        /// The first page.
        page: u32,
    },
    /// What was to be kept is not what it was to be: somebody wrote to it.
    #[error("the image has another root than the transfer ended with: it was written to since, or has several regions")]
    OtherRoot,
    /// What becomes a baseline cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Pages that cannot be packed: a bug of this crate.
    #[error("pages cannot be packed: {0}")]
    Pack(#[from] dwcp_hde::EncodeError),
    /// The cipher refused its work.
    #[error("AES-256-GCM failed in this process")]
    Cipher,
}

impl BaselineError {
    /// An operating system's error while doing `what`.
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { what },
            _ => Self::Io { what, source },
        }
    }

    pub(super) fn damaged(file: &str, damage: Damage) -> Self {
        Self::Damaged { file: file.to_owned(), damage }
    }

    /// Whether the system could not read what is there. Of one file that says nothing of the others.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// Whether bytes of the store are not what was written, so that another try is of no use.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedHeader | Self::NoHeader)
    }
}

/// How a file of a store is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It is missing.
    #[error("it is missing")]
    Missing,
    /// It is no file. No collection removes it.
    #[error("it is a directory")]
    Directory,
    /// The system cannot read it.
    #[error("it cannot be read: {why}")]
    Unreadable {
        /// What the system said.
        why: String,
    },
    /// It does not begin as a file of its kind does.
    #[error("it is no such file")]
    Magic,
    /// It ends before it should.
    #[error("it ends before byte {at}")]
    Truncated {
        /// Where bytes were expected.
        at: u64,
    },
    /// A sealed piece is not what was sealed there.
    #[error("the piece at byte {at} is not what was sealed")]
    Piece {
        /// Where the piece begins.
        at: u64,
    },
    /// The pieces were sealed, but make no sense together.
    #[error("{what}")]
    Contents {
        /// What makes no sense.
        what: &'static str,
    },
    /// Pages are not those that the manifest names.
    #[error("page {page} of {region} is not what the manifest says")]
    Page {
        /// Its region.
        region: RegionId,
        /// Its number there.
        page: u32,
    },
}
