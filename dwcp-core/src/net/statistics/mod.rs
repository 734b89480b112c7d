//! What an exporter reads of a node, in one look: sessions, hand-overs, who declined version 3, flags, offences.
//!
//! ```text
//!  driver of a session ── Ledger ──┐  when it begins, changes version, ends; its bytes every 50 ms
//!  handshakes of both ends ────────┼──> Counters (one short lock) ── Endpoint::statistics() ──> Statistics
//!  flags, offences ────────────────┘       what others count already is read when somebody looks
//! ```
//!
//! Counters only grow, and begin with the endpoint; `live` is a gauge. A map has no entry for what never happened: an
//! exporter that wants zeros asks for each of [`Ending::ALL`] and its like. No name, address or fingerprint is in here.

mod ledger;
mod methods;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwcp_hde::Stats;
use tokio::time::Instant;

pub(super) use self::ledger::Ledger;
pub(super) use self::methods::MethodCounters;
pub use self::traffic::Traffic;
pub(super) use self::traffic::TrafficMeter;
use super::error::EndpointError;
use super::offence::{Offences, TurnedAway};
use crate::flag::{Flag, FlagSnapshot, FlagSource, FlagStats, Reason, Why};
use crate::session::binding::NegotiationError;
use crate::session::{Histogram, Outcome, Owner, SessionError};
use crate::wire::{AbortReason, ErrorCode, Framing};

/// All that is counted at an [`Endpoint`](super::Endpoint) since it was made; a copy, which nothing changes any more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Statistics {
    /// Of sessions that send.
    pub source: EndStatistics,
    /// Of sessions that receive.
    pub sink: EndStatistics,
    /// Handshakes for a session that agreed on version 1, by who declined version 3 and why.
    pub declined: BTreeMap<Declined, u64>,
    /// Connections that came to nothing because of versions, by why. None of it fell back to something weaker.
    pub refused: BTreeMap<VersionRefusal, u64>,
    /// What this node decides, and how fresh that is.
    pub flag: FlagStatistics,
    /// What peers did that they must not, and who was turned away.
    pub offences: Offences,
    /// What its connections carried.
    pub traffic: Traffic,
}

/// Sessions of one end. `begun` of all versions together is `live` and `ended` of all together; a hand-over takes a session
/// from one version to the other.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EndStatistics {
    /// While lanes carried version 1's messages, inside TLS.
    pub v1: SessionStatistics,
    /// While they carried extents.
    pub v3: SessionStatistics,
    /// Changes of version in mid-transfer, and beginnings from zeros.
    pub handovers: BTreeMap<(Framing, HandoverReason), HandoverStatistics>,
    /// Source: pages that it believed to be at the sink, where the sink's tree differed at a hand-over. Zero is good.
    pub pages_disputed: u64,
    /// Source: hand-overs with such pages.
    pub handovers_disputed: u64,
}

/// Sessions that speak one version.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SessionStatistics {
    /// Began with it.
    pub begun: u64,
    /// Speak it now.
    pub live: u64,
    /// Ended with it.
    pub ended: BTreeMap<Ending, u64>,
    /// Bytes of the guest that were acknowledged (source) or applied (sink), in whole pages; zeros included at a source.
    pub guest_bytes: u64,
    /// Bytes on bulk lanes for them.
    pub wire_bytes: u64,
    /// Source, version 3: what each method of the codec did to the pages that were read, those that an acknowledgement is
    /// still due for included. Its `saved()` and `saved_without_zero()` are the compression ratio.
    pub methods: Stats,
    /// Source: from the reading of an extent to its acknowledgement.
    pub extent_latency: Histogram,
}

/// Hand-overs to one version for one reason. `begun` is `done`, `struck`, and those under way.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct HandoverStatistics {
    /// A source told its lanes to end; FENCE came to a sink.
    pub begun: u64,
    /// The sink's fence is up, and the other version carries what is left.
    pub done: u64,
    /// The session ended in the middle. The guest stays at its source.
    pub struck: u64,
    /// Source, from version 3: from the flag seen (or PREFER heard) until the head of the last extent was handed to its
    /// connection. Zero if none was after that.
    pub last_extent: Histogram,
    /// Source, to version 1: from the same moment until the first byte of version 1 was given to its lane. Not counted if
    /// nothing was left to be sent.
    pub first_message: Histogram,
    /// Source: from the same moment until the sink's answer.
    pub settled: Histogram,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// The guest runs at the sink, the image is visible there.
    SwitchedOver,
    /// Somebody ended it: cancelled, shut down, superseded by a newer session.
    Withdrawn,
    /// It failed; the guest stays at its source.
    Failed,
    /// Bytes arrived other than they were sent; nothing of it became visible.
    Integrity,
    /// The source gave up, and does not know whether the sink runs.
    InDoubt,
    /// Its task was dropped with its runtime.
    Dropped,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::SwitchedOver, Self::Withdrawn, Self::Failed, Self::Integrity, Self::InDoubt, Self::Dropped];

    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::SwitchedOver => "switched-over",
            Self::Withdrawn => "withdrawn",
            Self::Failed => "failed",
            Self::Integrity => "integrity",
            Self::InDoubt => "in-doubt",
            Self::Dropped => "dropped",
        }
    }

    fn of(outcome: &Outcome) -> Self {
        match (outcome.owner, &outcome.error) {
            (Owner::Sink, _) => Self::SwitchedOver,
            (Owner::InDoubt, _) => Self::InDoubt,
            (Owner::Source, Some(error)) => Self::of_error(error),
            (Owner::Source, None) => Self::Failed,
        }
    }

    fn of_error(error: &SessionError) -> Self {
        match error {
            SessionError::Integrity { .. } => Self::Integrity,
            SessionError::PeerReports(frame) if frame.code.is_integrity() => Self::Integrity,
            SessionError::Cancelled | SessionError::ShuttingDown | SessionError::Superseded => Self::Withdrawn,
            SessionError::PeerAborted { reason: AbortReason::Cancelled | AbortReason::Shutdown, .. } => Self::Withdrawn,
            _ => Self::Failed,
        }
    }
}

/// Why a session changed its version: the reason of our own flag document, or that the peer wished it, whose reason does not
/// travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HandoverReason {
    /// As the document says; begins from zeros.
    Integrity,
    /// As the document says; begins from zeros.
    Security,
    /// As the document says.
    Performance,
    /// As the document says, or it says nothing.
    Operator,
    /// No good document since the start.
    NoDocument,
    /// The last good document grew too old.
    Stale,
    /// In the document's own words, which are no label: there may be any number of them.
    Other,
    /// The other end wished it.
    Peer,
    /// The other end wished it, from zeros.
    PeerDistrust,
}

impl HandoverReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Integrity,
        Self::Security,
        Self::Performance,
        Self::Operator,
        Self::NoDocument,
        Self::Stale,
        Self::Other,
        Self::Peer,
        Self::PeerDistrust,
    ];

    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Integrity => "integrity",
            Self::Security => "security",
            Self::Performance => "performance",
            Self::Operator => "operator",
            Self::NoDocument => "no-document",
            Self::Stale => "stale",
            Self::Other => "other",
            Self::Peer => "peer",
            Self::PeerDistrust => "peer-distrust",
        }
    }

    fn of(reason: &Reason) -> Self {
        Self::ALL.into_iter().take(6).find(|known| known.word() == reason.as_str()).unwrap_or(Self::Other)
    }
}

/// Who declined version 3 in a handshake that agreed on version 1, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Declined {
    /// We: the flag is killed.
    Killed,
    /// We: the flag is not enabled.
    Disabled,
    /// We: this node is in the list of those without.
    Excluded,
    /// We: this node's bucket is not below the threshold.
    Bucket,
    /// We: `DWCP_FORCE_V1` is set.
    Forced,
    /// We: no good document since the start.
    NoDocument,
    /// We: the last good document grew too old.
    Expired,
    /// The other end. It does not say why.
    Peer,
}

impl Declined {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Killed,
        Self::Disabled,
        Self::Excluded,
        Self::Bucket,
        Self::Forced,
        Self::NoDocument,
        Self::Expired,
        Self::Peer,
    ];

    /// For metrics and JSON; as [`Why::word`].
    pub fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Disabled => "disabled",
            Self::Excluded => "excluded",
            Self::Bucket => "bucket",
            Self::Forced => "forced",
            Self::NoDocument => "no-document",
            Self::Expired => "expired",
            Self::Peer => "peer",
        }
    }

    /// Why this node declines. `None`: it does not.
    pub(super) fn of(flags: &FlagSnapshot) -> Option<Self> {
        if flags.v3() {
            return None;
        }
        Some(match flags.decision(Flag::V3).why {
            Why::Killed => Self::Killed,
            Why::Excluded => Self::Excluded,
            Why::Bucket { .. } => Self::Bucket,
            Why::Forced => Self::Forced,
            Why::NoDocument => Self::NoDocument,
            Why::Expired => Self::Expired,
            Why::Disabled | Why::Included | Why::Absent | Why::Fixed => Self::Disabled,
        })
    }
}

/// Why a connection, or a session, came to nothing because of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum VersionRefusal {
    /// Version 3 is switched off here, and nothing else can be spoken.
    NothingSpoken,
    /// No version in common.
    NoVersion,
    /// A feature that one end cannot do without.
    MissingFeature,
    /// Both offers do not lead to what was chosen: somebody stripped version 3 from one. An attack, or a broken peer.
    DowngradeDetected,
    /// The other end refused our offer.
    RefusedByPeer,
    /// Clear-text version 1 from an address that nobody named.
    ClearText,
    /// Clear-text version 1 from an address that spoke version 3.
    SpokeV3,
    /// In mid-transfer a flag wanted what the other end cannot carry. The guest stays at its source.
    NoFramingLeft,
}

impl VersionRefusal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NothingSpoken,
        Self::NoVersion,
        Self::MissingFeature,
        Self::DowngradeDetected,
        Self::RefusedByPeer,
        Self::ClearText,
        Self::SpokeV3,
        Self::NoFramingLeft,
    ];

    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::NothingSpoken => "nothing-spoken",
            Self::NoVersion => "no-version",
            Self::MissingFeature => "missing-feature",
            Self::DowngradeDetected => "downgrade-detected",
            Self::RefusedByPeer => "refused-by-peer",
            Self::ClearText => "clear-text",
            Self::SpokeV3 => "spoke-v3",
            Self::NoFramingLeft => "no-framing-left",
        }
    }

    /// Why a source's connection failed, if because of versions.
    pub(super) fn of(error: &EndpointError) -> Option<Self> {
        match error {
            EndpointError::NothingSpoken => Some(Self::NothingSpoken),
            EndpointError::NothingInCommon { .. } => Some(Self::NoVersion),
            EndpointError::Negotiation { source, .. } => Some((*source).into()),
            EndpointError::Refused { frame, .. } if frame.code == ErrorCode::Negotiation => Some(Self::RefusedByPeer),
            _ => None,
        }
    }
}

impl From<NegotiationError> for VersionRefusal {
    fn from(error: NegotiationError) -> Self {
        match error {
            NegotiationError::NoVersion { .. } => Self::NoVersion,
            NegotiationError::MissingFeature { .. } => Self::MissingFeature,
            NegotiationError::DowngradeDetected => Self::DowngradeDetected,
        }
    }
}

macro_rules! shown_as_its_word {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    )*};
}

shown_as_its_word!(Ending, HandoverReason, Declined, VersionRefusal);

/// The runtime flag of a node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlagStatistics {
    /// What is decided: version, standing, and why.
    pub snapshot: Arc<FlagSnapshot>,
    /// How long ago it was decided so. `None`: at the start.
    pub decided_ago: Option<Duration>,
    /// Documents taken and refused, and for how long the source has failed ([`FlagStats::stale`]).
    pub stats: FlagStats,
}

impl FlagStatistics {
    pub(super) fn of(source: &dyn FlagSource) -> Self {
        let (snapshot, stats) = (source.snapshot(), source.stats());
        let decided_ago = snapshot.seen().map(|seen| Instant::now().into_std().saturating_duration_since(seen));
        Self { snapshot, decided_ago, stats }
    }
}

impl EndStatistics {
    /// Sessions that speak this.
    pub fn sessions(&self, framing: Framing) -> &SessionStatistics {
        match framing {
            Framing::Messages => &self.v1,
            Framing::Extents => &self.v3,
        }
    }

    fn of_mut(&mut self, framing: Framing) -> &mut SessionStatistics {
        match framing {
            Framing::Messages => &mut self.v1,
            Framing::Extents => &mut self.v3,
        }
    }
}

impl SessionStatistics {
    /// The share of its guest's bytes that did not travel, 0..1. `None`: there were none yet.
    pub fn saved(&self) -> Option<f64> {
        #[expect(clippy::as_conversions, reason = "a share for humans; 53 bits are plenty")]
        let share = |part: u64, whole: u64| part as f64 / whole as f64;
        (self.guest_bytes > 0).then(|| (1.0 - share(self.wire_bytes, self.guest_bytes)).max(0.0))
    }
}

/// Which end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Sink,
}

/// What is counted here and nowhere else. Its lock is held for some additions, and by nobody who moves a page.
#[derive(Debug, Default)]
pub(super) struct Counters {
    counted: Mutex<Counted>,
    pub(super) traffic: TrafficMeter,
}

#[derive(Clone, Debug, Default)]
struct Counted {
    source: EndStatistics,
    sink: EndStatistics,
    declined: BTreeMap<Declined, u64>,
    refused: BTreeMap<VersionRefusal, u64>,
}

impl Counters {
    /// A handshake agreed on version 1.
    pub(super) fn declined(&self, by: Declined) {
        *self.lock().declined.entry(by).or_default() += 1;
    }

    /// A connection, or a session, came to nothing because of versions.
    pub(super) fn refused(&self, why: VersionRefusal) {
        *self.lock().refused.entry(why).or_default() += 1;
    }

    /// With what others count.
    pub(super) fn statistics(&self, flags: &dyn FlagSource, offences: Offences) -> Statistics {
        let Counted { source, sink, declined, mut refused } = self.lock().clone();
        let traffic = self.traffic.read();
        let ours = [
            (TurnedAway::NothingSpoken, VersionRefusal::NothingSpoken),
            (TurnedAway::ClearText, VersionRefusal::ClearText),
            (TurnedAway::DowngradeRefused, VersionRefusal::SpokeV3),
        ];
        for (turned_away, why) in ours {
            if let Some(count) = offences.turned_away.get(&turned_away) {
                *refused.entry(why).or_default() += count;
            }
        }
        Statistics { source, sink, declined, refused, flag: FlagStatistics::of(flags), offences, traffic }
    }

    fn at(&self, end: End, change: impl FnOnce(&mut EndStatistics)) {
        let mut counted = self.lock();
        change(match end {
            End::Source => &mut counted.source,
            End::Sink => &mut counted.sink,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
