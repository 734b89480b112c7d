use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use super::node::NodeName;
use super::{Decision, Flag, FlagDocument, FlagVersion, Reason, Why};

/// What a node decided from its flags at one moment. It never changes; the next decision is another snapshot.
#[derive(Clone, Debug)]
pub struct FlagSnapshot {
    pub(super) v3: Decision,
    pub(super) compression: Decision,
    pub(super) reason: Reason,
    pub(super) version: Option<FlagVersion>,
    pub(super) origin: Origin,
    pub(super) standing: Standing,
    pub(super) trouble: Option<String>,
    pub(super) seen: Option<Instant>,
    /// How many snapshots its source published before it.
    pub(super) generation: u64,
}

/// Where flags come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nothing is configured.
    Constant,
    /// `DWCP_FORCE_V1`.
    Environment,
    /// A file.
    File(PathBuf),
    /// Another part of this process.
    InProcess,
}

/// How fresh a decision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It cannot grow old.
    Fixed,
    /// The source has this document.
    Current,
    /// The source fails. The last good document is obeyed.
    Failing,
    /// It failed for too long. The last good document is no more obeyed.
    Expired,
    /// There never was a good document.
    Never,
}

impl Standing {
    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Current => "current",
            Self::Failing => "failing",
            Self::Expired => "expired",
            Self::Never => "never",
        }
    }
}

impl FlagSnapshot {
    /// The same for every flag, without a document.
    pub(super) fn fixed(on: bool, why: Why, origin: Origin) -> Self {
        let decision = Decision { on, why };
        let (version, trouble, seen, generation) = (None, None, None, 0);
        let (reason, standing) = (Reason::Operator, Standing::Fixed);
        Self { v3: decision, compression: decision, reason, version, origin, standing, trouble, seen, generation }
    }

    /// By a document.
    pub(super) fn of(document: &FlagDocument, node: &NodeName, origin: Origin) -> Self {
        Self {
            v3: document.decide(Flag::V3, node),
            compression: document.decide(Flag::Compression, node),
            reason: document.flags.v3.reason.clone(),
            version: Some(document.version),
            origin,
            standing: Standing::Current,
            trouble: None,
            seen: None,
            generation: 0,
        }
    }

    /// Whether this node speaks version 3. False: version 1, for new transfers and those under way.
    pub fn v3(&self) -> bool {
        self.v3.on
    }

    /// Whether version 3 compresses.
    pub fn compression(&self) -> bool {
        self.compression.on
    }

    /// Why the flag for version 3 was changed last; `no-document` or `stale` where its source decided by failing. A
    /// roll-back with a reason that [discards what was applied](Reason::discards_applied) begins from zero.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// What is decided of a flag, and why.
    pub fn decision(&self, flag: Flag) -> Decision {
        match flag {
            Flag::V3 => self.v3,
            Flag::Compression => self.compression,
        }
    }

    /// Of the document that is obeyed, or was until it expired.
    pub fn version(&self) -> Option<FlagVersion> {
        self.version
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How fresh it is.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// What is wrong with the source, if anything.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// When this node saw it: from here a roll-back is timed. `None` for what was there at the start, and without the
    /// feature `net`, which has the clock.
    pub fn seen(&self) -> Option<Instant> {
        self.seen
    }

    /// Whether nothing but the time differs.
    pub(super) fn says_as(&self, other: &Self) -> bool {
        let one = (self.v3, self.compression, &self.reason, self.version, self.standing);
        let two = (other.v3, other.compression, &other.reason, other.version, other.standing);
        one == two && self.origin == other.origin && self.trouble == other.trouble
    }
}

/// A sentence for the operator.
impl fmt::Display for FlagSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaks = if self.v3() { "v3" } else { "v1" };
        write!(f, "this node runs {speaks}, because {}", self.v3.why)?;
        if let Some(version) = self.version {
            write!(f, " (version {version} of {}", self.origin)?;
            if !self.v3() {
                write!(f, ", reason {}", self.reason)?;
            }
            f.write_str(")")?;
        }
        if !self.compression() && self.v3() {
            write!(f, "; without compression, because {}", self.compression.why)?;
        }
        self.trouble.as_ref().map_or(Ok(()), |trouble| write!(f, "; {}: {trouble}", self.origin))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("the default"),
            Self::Environment => f.write_str("the environment"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::InProcess => f.write_str("the control plane"),
        }
    }
}
