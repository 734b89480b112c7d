use std::time::Duration;

use super::node::NodeName;
use super::snapshot::{FlagSnapshot, Origin, Standing};
use super::{Decision, DocumentError, FlagDocument, FlagVersion, Reason, Why};
use crate::session::Time;

/// How long the last good document is obeyed while its source fails, by default.
pub const MAX_STALE: Duration = Duration::from_secs(300);

/// What is kept of a source: the last good document, since when it fails, and the counters. Pure: it is told the time,
/// which must not go back; what is not later than before has not passed.
///
/// Nothing but a document of a higher version takes the place of a good one. Without one it decides for version 1.
#[derive(Clone, Debug)]
pub struct Keeper {
    node: NodeName,
    origin: Origin,
    max_stale: Duration,
    /// Below it no version is taken, even at the start.
    floor: Option<FlagVersion>,
    /// Why an earlier life left version 3, if what that applied is not to be trusted.
    distrust: Option<Reason>,
    good: Option<FlagDocument>,
    failing: Option<Failing>,
    expired: bool,
    stats: FlagStats,
}

#[derive(Clone, Debug)]
struct Failing {
    since: Time,
    why: String,
}

/// Why a source's word was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A read of it does not come back.
    #[error("it does not answer; is its file system gone?")]
    Silent,
    /// It is no document.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// An older document: replayed, or from a backup.
    #[error("its version {version} is older than {known}, which this node has seen; raise it to be obeyed")]
    Older {
        /// Of what was refused.
        version: FlagVersion,
        /// The lowest that would be taken, but for an equal document.
        known: FlagVersion,
    },
    /// Another document of the same version.
    #[error("it was changed and has version {version} still; raise it to be obeyed, or use `dwcp flag set`")]
    Conflict {
        /// Of both.
        version: FlagVersion,
    },
}

/// Refusals, for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalKind {
    /// Missing, not allowed, no regular file, a broken disk.
    Unreadable,
    /// A read does not come back.
    Silent,
    /// Too long.
    TooLarge,
    /// No JSON, or half of it.
    Garbage,
    /// An unknown key, or a value that does not fit.
    Invalid,
    /// A version below one that was seen.
    Older,
    /// The same version with another content.
    Conflict,
}

impl RefusalKind {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 7] =
        [Self::Unreadable, Self::Silent, Self::TooLarge, Self::Garbage, Self::Invalid, Self::Older, Self::Conflict];

    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Silent => "silent",
            Self::TooLarge => "too-large",
            Self::Garbage => "garbage",
            Self::Invalid => "invalid",
            Self::Older => "older",
            Self::Conflict => "conflict",
        }
    }
}

impl Refusal {
    /// For counters.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Unreadable(_) => RefusalKind::Unreadable,
            Self::Silent => RefusalKind::Silent,
            Self::Document(DocumentError::TooLarge { .. }) => RefusalKind::TooLarge,
            Self::Document(DocumentError::Garbage(_)) => RefusalKind::Garbage,
            Self::Document(DocumentError::Invalid(_)) => RefusalKind::Invalid,
            Self::Older { .. } => RefusalKind::Older,
            Self::Conflict { .. } => RefusalKind::Conflict,
        }
    }
}

/// What a source gave so far, for an exporter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlagStats {
    /// Documents that were taken.
    pub loads: u64,
    /// How often the last good document was given up for its age.
    pub expiries: u64,
    /// For how long the source has failed, when last looked at. Zero: it does not.
    pub stale: Duration,
    /// Of the last good document.
    pub version: Option<FlagVersion>,
    /// The highest version that a restart will know of. `None`: nothing is remembered.
    pub remembered: Option<FlagVersion>,
    /// How often a version could not be written down: a restart may then take an older one.
    pub unremembered: u64,
    refused: [u64; RefusalKind::ALL.len()],
}

impl FlagStats {
    /// How often something was refused so. What stays the same is counted once.
    pub fn refused(&self, kind: RefusalKind) -> u64 {
        RefusalKind::ALL.into_iter().zip(self.refused).find(|(known, _)| *known == kind).map_or(0, |(_, count)| count)
    }

    fn refuse(&mut self, kind: RefusalKind) {
        for (known, count) in RefusalKind::ALL.into_iter().zip(&mut self.refused) {
            *count += u64::from(known == kind);
        }
    }
}

impl Keeper {
    /// Of a source that has said nothing yet. A `floor` is a version that this node has seen in an earlier life.
    pub fn new(node: NodeName, origin: Origin, max_stale: Duration, floor: Option<FlagVersion>) -> Self {
        let stats = FlagStats::default();
        let (distrust, good, failing) = (None, None, None);
        Self { node, origin, max_stale, floor, distrust, good, failing, expired: false, stats }
    }

    /// An earlier life of this node was taken off version 3 for this reason, which holds until there is a good document.
    #[must_use]
    pub fn distrusting(self, distrust: Option<Reason>) -> Self {
        Self { distrust, ..self }
    }

    /// The source has these bytes now.
    ///
    /// # Errors
    /// They are not taken. The last good document stays, and grows old from now on.
    pub fn load(&mut self, now: Time, bytes: &[u8]) -> Result<(), Refusal> {
        let taken = FlagDocument::parse(bytes).map_err(Refusal::from).and_then(|document| self.accept(document));
        taken.inspect_err(|refusal| self.fail(now, refusal))
    }

    /// The source has this document now.
    ///
    /// # Errors
    /// It is not taken, because of its version. That is counted and changes nothing else: whoever gave it knows.
    pub fn take(&mut self, document: FlagDocument) -> Result<(), Refusal> {
        self.accept(document).inspect_err(|refusal| self.stats.refuse(refusal.kind()))
    }

    fn accept(&mut self, document: FlagDocument) -> Result<(), Refusal> {
        let version = document.version;
        let known = self.good.as_ref().map(|good| good.version).max(self.floor);
        match &self.good {
            Some(good) if *good == document => {}
            Some(good) if good.version == version => return Err(Refusal::Conflict { version }),
            _ => {
                if let Some(known) = known.filter(|&known| version < known) {
                    return Err(Refusal::Older { version, known });
                }
                self.stats.loads += 1;
                self.stats.version = Some(version);
                self.good = Some(document);
            }
        }
        self.failing = None;
        self.expired = false;
        self.stats.stale = Duration::ZERO;
        Ok(())
    }

    /// The source gives nothing that can be taken.
    pub fn fail(&mut self, now: Time, refusal: &Refusal) {
        self.stats.refuse(refusal.kind());
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { since, why: refusal.to_string() });
        self.tick(now);
    }

    /// Time has passed, and the source is as it was.
    pub fn tick(&mut self, now: Time) {
        let Some(failing) = &self.failing else { return };
        self.stats.stale = self.stats.stale.max(now.since(failing.since));
        if !self.expired && self.good.is_some() && self.stats.stale >= self.max_stale {
            self.expired = true;
            self.stats.expiries += 1;
        }
    }

    /// When [`tick`](Self::tick) would change the decision.
    pub fn deadline(&self) -> Option<Time> {
        let failing = self.failing.as_ref().filter(|_| !self.expired && self.good.is_some())?;
        Some(failing.since + self.max_stale)
    }

    /// What this node decides.
    pub fn snapshot(&self) -> FlagSnapshot {
        let trouble = self.failing.as_ref().map(|failing| failing.why.clone());
        let Some(good) = &self.good else {
            let none = FlagSnapshot::fixed(false, Why::NoDocument, self.origin.clone());
            let reason = self.distrust.clone().unwrap_or_else(|| Reason::ours("no-document"));
            return FlagSnapshot { standing: Standing::Never, trouble, reason, ..none };
        };
        let obeyed = FlagSnapshot { trouble, ..FlagSnapshot::of(good, &self.node, self.origin.clone()) };
        match (&self.failing, self.expired) {
            (None, _) => obeyed,
            (Some(_), false) => FlagSnapshot { standing: Standing::Failing, ..obeyed },
            // A node that was on version 1 keeps the reason why: it may say that nothing is to be trusted.
            (Some(_), true) if !obeyed.v3() => FlagSnapshot { standing: Standing::Expired, ..obeyed },
            (Some(_), true) => {
                let v3 = Decision { on: false, why: Why::Expired };
                FlagSnapshot { v3, standing: Standing::Expired, reason: Reason::ours("stale"), ..obeyed }
            }
        }
    }

    /// The counters.
    pub fn stats(&self) -> FlagStats {
        self.stats.clone()
    }
}
