//! Proofs that tie a connection to its peer's offers and to its session, and the choice of version
//! and features. Pure: the TLS exporter's output comes as an argument.
//!
//! ```text
//!  connection key  = TLS exporter of *this* connection, label EXPORTER-dwcp-connection
//!  session key     = TLS exporter of the session's first connection, label EXPORTER-dwcp-session
//!
//!  hello ack, bind = keyed(connection key, direction | hello frame | ack frame with a mac of zeros)
//!  join            = keyed(session key, "join"   | session | lane    | connection key)
//!  resume          = keyed(session key, "resume" | session | attempt | connection key)
//! ```

use std::ops::RangeInclusive;

use crate::wire::{Digest, Frame, Framing, Hello, HelloAck, LaneId, PeerLimits, SessionId};

/// TLS exporter label of the key that binds one connection.
pub const CONNECTION_LABEL: &[u8] = b"EXPORTER-dwcp-connection";
/// TLS exporter label of the key that binds a session's connections to one another.
pub const SESSION_LABEL: &[u8] = b"EXPORTER-dwcp-session";

/// The feature "lanes can carry version 1's messages": with it a session can change its framing in mid-transfer.
pub const MESSAGES: u64 = 1;

/// What this end would speak with a peer now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaks {
    /// Version 1 means that lanes carry messages, version 3 that they carry extents.
    pub versions: RangeInclusive<u8>,
    /// One bit each.
    pub features: u64,
}

impl Speaks {
    /// An end that carries messages or not, and prefers this framing. `None`: it wants what it cannot carry.
    pub fn new(messages: bool, wanted: Framing) -> Option<Self> {
        let versions = match (messages, wanted) {
            (false, Framing::Extents) => 3..=3,
            (true, Framing::Extents) => 1..=3,
            (true, Framing::Messages) => 1..=1,
            (false, Framing::Messages) => return None,
        };
        Some(Self { versions, features: if messages { MESSAGES } else { 0 } })
    }
}

/// 32 bytes of keying material from a TLS exporter. Not printable.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Wraps exported keying material.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, parts: &[&[u8]]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Who speaks: a proof of one side is never a proof of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The source, in its bind.
    Source,
    /// The sink, in its hello ack.
    Sink,
}

/// The proof over both offers. spec: H-3
pub fn offers_mac(connection: &Key, speaker: Speaker, hello: &Hello, ack: &HelloAck) -> Digest {
    let direction: &[u8] = match speaker {
        Speaker::Source => b"dwcp/3 source saw",
        Speaker::Sink => b"dwcp/3 sink saw",
    };
    let mut bytes = Vec::new();
    Frame::Hello(hello.clone()).encode(&mut bytes);
    Frame::HelloAck(HelloAck { mac: Digest([0; 32]), ..ack.clone() }).encode(&mut bytes);
    connection.mac(&[direction, &bytes])
}

/// The proof of a bulk lane. spec: H-5
pub fn join_mac(session: &Key, connection: &Key, id: SessionId, lane: LaneId) -> Digest {
    session.mac(&[b"dwcp/3 join", &id.0, &lane.0.to_le_bytes(), &connection.0])
}

/// The proof of a re-made control connection. spec: H-6
pub fn resume_mac(session: &Key, connection: &Key, id: SessionId, attempt: u32) -> Digest {
    session.mac(&[b"dwcp/3 resume", &id.0, &attempt.to_le_bytes(), &connection.0])
}

/// Compares two proofs in constant time. spec: H-3
pub fn same(one: Digest, other: Digest) -> bool {
    blake3::Hash::from_bytes(one.0) == blake3::Hash::from_bytes(other.0)
}

/// What both sides use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What lanes carry at first; its version is the one that is spoken.
    pub framing: Framing,
    /// Features.
    pub features: u64,
}

/// The sink's choice, which the source makes again to check it: the highest common version and all
/// common features. spec: H-2, H-4
///
/// # Errors
/// No version in common, or a required feature that the other side lacks.
pub fn choose(hello: &Hello, sink: &Speaks, required: u64) -> Result<Chosen, NegotiationError> {
    let version = hello.version_max.min(*sink.versions.end());
    let common = version >= hello.version_min && version >= *sink.versions.start();
    let Some(framing) = Framing::of_version(version).filter(|_| common) else {
        let (min, max) = (hello.version_min, hello.version_max);
        let (own_min, own_max) = (*sink.versions.start(), *sink.versions.end());
        return Err(NegotiationError::NoVersion { min, max, own_min, own_max });
    };
    let features = hello.features & sink.features;
    let missing = (hello.required | required) & !features;
    if missing != 0 {
        return Err(NegotiationError::MissingFeature { bits: missing });
    }
    Ok(Chosen { framing, features })
}

/// The source's check of the sink's choice: made again from both offers, it is the same. spec: H-3
///
/// # Errors
/// [`NegotiationError::DowngradeDetected`] when it is not, or as [`choose`].
pub fn check(hello: &Hello, ack: &HelloAck) -> Result<Chosen, NegotiationError> {
    let sink = Speaks { versions: ack.version_min..=ack.version_max, features: ack.features };
    let chosen = choose(hello, &sink, 0)?;
    if chosen.framing.version() == ack.version { Ok(chosen) } else { Err(NegotiationError::DowngradeDetected) }
}

/// The smaller of our own limits and the peer's. spec: H-7
#[must_use]
pub fn narrow(own: PeerLimits, peer: PeerLimits) -> PeerLimits {
    PeerLimits { extent_pages: own.extent_pages.min(peer.extent_pages), lanes: own.lanes.min(peer.lanes) }
}

/// Why two sides cannot talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// No version in common.
    #[error(
        "the sender speaks versions {min} to {max} now, the receiver {own_min} to {own_max}: update the older one, or \
         look at `dwcp flag show` of both"
    )]
    NoVersion {
        /// The source's lowest.
        min: u8,
        /// The source's highest.
        max: u8,
        /// The sink's lowest.
        own_min: u8,
        /// The sink's highest.
        own_max: u8,
    },
    /// A feature that one side cannot do without.
    #[error("feature bits {bits:#x} are required by one side and unknown to the other")]
    MissingFeature {
        /// Which.
        bits: u64,
    },
    /// The proof over both offers does not match: somebody changed them on the way.
    #[error("the proof over both offers does not match: they were changed on the way (downgrade detected)")]
    DowngradeDetected,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Role;

    fn hello() -> Hello {
        Hello {
            version_min: 3,
            version_max: 3,
            role: Role::Source,
            features: 0,
            required: 0,
            limits: PeerLimits { extent_pages: 256, lanes: 4 },
            nonce: [1; 32],
            resume: None,
        }
    }

    fn ack() -> HelloAck {
        HelloAck {
            version: 3,
            version_min: 1,
            version_max: 3,
            features: 0,
            limits: PeerLimits { extent_pages: 256, lanes: 4 },
            session: SessionId([2; 16]),
            resumed: false,
            nonce: [3; 32],
            mac: Digest([0; 32]),
        }
    }

    // spec: H-3
    #[test]
    fn the_proof_covers_every_field_of_both_offers_the_key_and_the_direction() {
        let key = Key::new([9; 32]);
        let sound = offers_mac(&key, Speaker::Sink, &hello(), &ack());
        let changed_hellos = [
            Hello { version_max: 4, ..hello() },
            Hello { features: 1, ..hello() },
            Hello { limits: PeerLimits { extent_pages: 255, lanes: 4 }, ..hello() },
            Hello { nonce: [4; 32], ..hello() },
        ];
        for changed in changed_hellos {
            assert!(!same(sound, offers_mac(&key, Speaker::Sink, &changed, &ack())));
        }
        let changed_acks = [
            HelloAck { features: 1, ..ack() },
            HelloAck { version_max: 4, ..ack() },
            HelloAck { version: 1, ..ack() },
            HelloAck { resumed: true, ..ack() },
            HelloAck { session: SessionId([0; 16]), ..ack() },
        ];
        for changed in changed_acks {
            assert!(!same(sound, offers_mac(&key, Speaker::Sink, &hello(), &changed)));
        }
        assert!(!same(sound, offers_mac(&key, Speaker::Source, &hello(), &ack())));
        assert!(!same(sound, offers_mac(&Key::new([8; 32]), Speaker::Sink, &hello(), &ack())));
    }

    // spec: H-5
    #[test]
    fn a_join_belongs_to_one_session_lane_and_connection() {
        let (session, connection) = (Key::new([1; 32]), Key::new([2; 32]));
        let sound = join_mac(&session, &connection, SessionId([3; 16]), LaneId(1));
        assert!(same(sound, join_mac(&session, &connection, SessionId([3; 16]), LaneId(1))));
        assert!(!same(sound, join_mac(&session, &connection, SessionId([3; 16]), LaneId(2))));
        assert!(!same(sound, join_mac(&session, &connection, SessionId([4; 16]), LaneId(1))));
        assert!(!same(sound, join_mac(&session, &Key::new([5; 32]), SessionId([3; 16]), LaneId(1))));
        assert!(!same(sound, join_mac(&connection, &session, SessionId([3; 16]), LaneId(1))));
    }

    // spec: H-6
    #[test]
    fn a_resume_belongs_to_one_attempt_and_is_no_join() {
        let (session, connection) = (Key::new([1; 32]), Key::new([2; 32]));
        let sound = resume_mac(&session, &connection, SessionId([3; 16]), 1);
        assert!(!same(sound, resume_mac(&session, &connection, SessionId([3; 16]), 2)));
        assert!(!same(sound, resume_mac(&session, &Key::new([0; 32]), SessionId([3; 16]), 1)));
    }

    // spec: H-2
    #[test]
    fn the_highest_common_version_is_chosen() {
        let sink = |messages, wanted| Speaks::new(messages, wanted).unwrap();
        let extents = Chosen { framing: Framing::Extents, features: 0 };
        assert_eq!(choose(&hello(), &sink(false, Framing::Extents), 0), Ok(extents));
        let newer = Hello { version_max: 9, features: u64::MAX, ..hello() };
        assert_eq!(choose(&newer, &sink(false, Framing::Extents), 0), Ok(extents));
        let both = Hello { version_min: 1, features: MESSAGES, ..hello() };
        let features = MESSAGES;
        assert_eq!(choose(&both, &sink(true, Framing::Extents), 0), Ok(Chosen { framing: Framing::Extents, features }));
        let declined = choose(&both, &sink(true, Framing::Messages), 0);
        assert_eq!(declined, Ok(Chosen { framing: Framing::Messages, features }));
        let only_newer = Hello { version_min: 4, version_max: 9, ..hello() };
        let (min, max, own_min, own_max) = (4, 9, 3, 3);
        let refused = Err(NegotiationError::NoVersion { min, max, own_min, own_max });
        assert_eq!(choose(&only_newer, &sink(false, Framing::Extents), 0), refused);
        let two = Hello { version_min: 2, version_max: 2, ..hello() };
        assert!(choose(&two, &sink(true, Framing::Extents), 0).is_err(), "there is no version 2");
        assert_eq!(Speaks::new(false, Framing::Messages), None);
    }

    // spec: H-3
    #[test]
    fn a_choice_that_the_offers_do_not_lead_to_is_a_downgrade() {
        let both = Hello { version_min: 1, features: MESSAGES, ..hello() };
        let framing = |ack: &HelloAck| check(&both, ack).map(|chosen| chosen.framing);
        assert_eq!(framing(&ack()), Ok(Framing::Extents));
        let stripped = HelloAck { version: 1, ..ack() };
        assert_eq!(framing(&stripped), Err(NegotiationError::DowngradeDetected));
        assert_eq!(framing(&HelloAck { version: 1, version_max: 1, ..ack() }), Ok(Framing::Messages), "declined");
    }

    // spec: H-4
    #[test]
    fn a_required_feature_is_not_ignored() {
        let needy = Hello { features: 2, required: 2, ..hello() };
        let sink = Speaks::new(false, Framing::Extents).unwrap();
        assert_eq!(choose(&needy, &sink, 0), Err(NegotiationError::MissingFeature { bits: 2 }));
        assert_eq!(choose(&hello(), &sink, 4), Err(NegotiationError::MissingFeature { bits: 4 }));
    }

    // spec: H-7
    #[test]
    fn a_peer_may_narrow_but_never_widen() {
        let own = PeerLimits { extent_pages: 100, lanes: 4 };
        let peer = PeerLimits { extent_pages: u16::MAX, lanes: 2 };
        assert_eq!(narrow(own, peer), PeerLimits { extent_pages: 100, lanes: 2 });
    }
}
