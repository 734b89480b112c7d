//! What a peer can be charged with, and how bad it is.

use std::collections::BTreeMap;
use std::fmt;

use crate::session::SessionError;
use crate::wire::ErrorCode;

/// What an authenticated peer did that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Offence {
    /// Bytes that are no frame.
    Malformed,
    /// A frame that the state does not allow.
    OutOfPlace,
    /// An extent outside the layout, out of sequence, of another epoch, or whose block claims too much.
    BadExtent,
    /// More bytes than were granted.
    OverCredit,
    /// A proof that does not match: of a lane, of a session, or over both hellos; or a lane id used twice.
    BadProof,
    /// More frames that move nothing than any honest peer has use for.
    Flood,
    /// A block that cannot be decoded.
    BadBlock,
    /// An extent whose digest does not match its bytes.
    ExtentDigest,
    /// A root that does not match.
    RootMismatch,
    /// A device state whose digest does not match.
    DeviceDigest,
}

/// How bad an offence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// No honest peer does it, whatever breaks: quarantined at once.
    Deliberate,
    /// A fault of memory or of a disk can do it: quarantined when it happens again and again.
    Ambiguous,
}

use Severity::{Ambiguous, Deliberate};

/// All of it in one place: what the peer is told, what it is charged with, under which name, how bad it is.
const TABLE: [(ErrorCode, Offence, &str, Severity); 10] = [
    (ErrorCode::Malformed, Offence::Malformed, "malformed", Ambiguous),
    (ErrorCode::Unexpected, Offence::OutOfPlace, "out-of-place", Deliberate),
    (ErrorCode::BadExtent, Offence::BadExtent, "bad-extent", Deliberate),
    (ErrorCode::CreditExceeded, Offence::OverCredit, "over-credit", Deliberate),
    (ErrorCode::JoinRejected, Offence::BadProof, "bad-proof", Deliberate),
    (ErrorCode::Flood, Offence::Flood, "flood", Deliberate),
    (ErrorCode::BadBlock, Offence::BadBlock, "bad-block", Ambiguous),
    (ErrorCode::ExtentDigest, Offence::ExtentDigest, "extent-digest", Ambiguous),
    (ErrorCode::RootMismatch, Offence::RootMismatch, "root-mismatch", Ambiguous),
    (ErrorCode::DeviceDigest, Offence::DeviceDigest, "device-digest", Ambiguous),
];

impl Offence {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.1)
    }

    /// What ended a session, if that is the peer's fault. A peer that reports a fault of ours, goes away, or gives up
    /// has done nothing wrong.
    pub(super) fn of(error: &SessionError) -> Option<Self> {
        match error {
            SessionError::PeerViolation { code, .. } | SessionError::Integrity { code, .. } => Self::told_as(*code),
            _ => None,
        }
    }

    /// What a peer is charged with that is told this.
    pub(super) fn told_as(code: ErrorCode) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == code).map(|row| row.1)
    }

    pub(super) fn severity(self) -> Severity {
        TABLE.iter().find(|row| row.1 == self).map_or(Deliberate, |row| row.3)
    }

    /// Its name in logs, metrics and files.
    pub fn as_str(self) -> &'static str {
        TABLE.iter().find(|row| row.1 == self).map_or("", |row| row.2)
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.1)
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a connection was turned away that is nobody's offence: who it was is not known, or it did nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TurnedAway {
    /// Its address has as many half-open connections as it may.
    OverAddressLimit,
    /// It was the oldest half-open connection when there were too many.
    MadeRoom,
    /// It did not finish its handshake in time.
    TimedOut,
    /// Its TLS was refused: not trusted, another protocol, or garbage.
    NotAuthenticated,
    /// The process has no descriptor left for it.
    NoDescriptor,
    /// Its identity is in quarantine.
    Quarantined,
    /// Its identity has as many handshakes, sessions or waiting offers as it may.
    OverPeerLimit,
    /// Version 3 is switched off here, and this node can speak nothing else.
    NothingSpoken,
    /// It speaks version 1 in clear text, and its address may not.
    ClearText,
    /// It speaks version 1 in clear text, from an address where version 3 was spoken.
    DowngradeRefused,
}

impl TurnedAway {
    /// A word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OverAddressLimit => "over-address-limit",
            Self::MadeRoom => "made-room",
            Self::TimedOut => "timed-out",
            Self::NotAuthenticated => "not-authenticated",
            Self::NoDescriptor => "no-descriptor",
            Self::Quarantined => "quarantined",
            Self::OverPeerLimit => "over-peer-limit",
            Self::NothingSpoken => "nothing-spoken",
            Self::ClearText => "clear-text",
            Self::DowngradeRefused => "downgrade-refused",
        }
    }
}

impl fmt::Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was counted since an endpoint was made. What never happened is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offences {
    /// Offences of authenticated peers: each attempt counts once.
    pub charged: BTreeMap<Offence, u64>,
    /// Connections that were turned away otherwise.
    pub turned_away: BTreeMap<TurnedAway, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_peer_is_an_offence_with_a_name_of_its_own() {
        for code in ErrorCode::ALL {
            // These may happen to the best: no version in common, a session that is over, a failure of its own.
            let innocent = matches!(code, ErrorCode::Negotiation | ErrorCode::Unknown | ErrorCode::Local);
            assert_eq!(Offence::told_as(code).is_none(), innocent, "{code:?}");
        }
        for offence in Offence::all() {
            assert_eq!(Offence::named(offence.as_str()), Some(offence));
        }
        let names: std::collections::BTreeSet<_> = Offence::all().map(Offence::as_str).collect();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn what_a_broken_memory_can_do_is_not_taken_for_malice() {
        for (code, offence, ..) in TABLE {
            let fault = code.is_integrity() || code == ErrorCode::Malformed;
            assert_eq!(offence.severity() == Ambiguous, fault, "{code:?}");
        }
    }
}
