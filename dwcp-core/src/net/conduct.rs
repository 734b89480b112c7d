//! How the peers of a node behave: what is counted, who waits, who is turned away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Clock;
use super::offence::{Offence, Offences, TurnedAway};
use super::quarantine::Quarantine;
use crate::session::allowance::{Allowance, Rate};
use crate::session::{Fingerprint, Outcome, SessionError};

/// Handshakes of one identity: a thousand transfers of up to eight connections may begin together. An identity that does
/// nothing else keeps a quarter of a core busy from then on.
const HANDSHAKES: Rate = Rate { burst: 8192, per_second: 256 };
/// Identities whose handshakes are counted at a time. With more than these, those that came least lately are new again.
const PEERS: usize = 4096;

/// Strangers that are told by name: one that tries again and again is no reason to fill a disk with its name.
const STRANGERS: Rate = Rate { burst: 8, per_second: 1 };

/// What a node remembers of its peers' conduct; shared by all clones of its endpoint.
#[derive(Debug)]
pub(super) struct Conduct {
    pub(super) quarantine: Quarantine,
    offences: Mutex<Offences>,
    handshakes: Mutex<HashMap<Fingerprint, Allowance>>,
    strangers: Mutex<Allowance>,
    clock: Clock,
}

impl Conduct {
    pub(super) fn new(quarantine: Quarantine) -> Self {
        let clock = Clock::start();
        let strangers = Mutex::new(Allowance::new(STRANGERS, clock.now()));
        Self { quarantine, offences: Mutex::default(), handshakes: Mutex::default(), strangers, clock }
    }

    /// An authenticated peer did this. Once for each attempt.
    pub(super) fn charge(&self, peer: Fingerprint, offence: Offence) {
        *self.counts().charged.entry(offence).or_default() += 1;
        self.quarantine.charge(peer, offence);
    }

    /// A connection was turned away, and nobody is to blame.
    pub(super) fn turned_away(&self, why: TurnedAway) {
        *self.counts().turned_away.entry(why).or_default() += 1;
    }

    /// Whether one more peer that is not trusted is told of. All are counted.
    pub(super) fn tells_of_stranger(&self) -> bool {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.take(self.clock.now())
    }

    pub(super) fn offences(&self) -> Offences {
        self.counts().clone()
    }

    /// How long this identity waits before its next handshake goes on; `None` when that is above `most`.
    pub(super) fn turn(&self, peer: Fingerprint, most: Duration) -> Option<Duration> {
        let now = self.clock.now();
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if handshakes.len() >= PEERS && !handshakes.contains_key(&peer) {
            handshakes.retain(|_, allowance| !allowance.full(now));
            if handshakes.len() >= PEERS {
                handshakes.clear();
            }
        }
        handshakes.entry(peer).or_insert_with(|| Allowance::new(HANDSHAKES, now)).reserve(now, most)
    }

    fn counts(&self) -> MutexGuard<'_, Offences> {
        self.offences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's way to charge its peer.
#[derive(Clone, Debug)]
pub(super) struct Accuser {
    pub(super) conduct: Arc<Conduct>,
    pub(super) peer: Fingerprint,
}

impl Accuser {
    /// What ended a session is charged once, when it ends: whatever else the peer did in it followed from that.
    pub(super) fn judge(&self, outcome: &Outcome) {
        if let Some(offence) = outcome.error.as_ref().and_then(Offence::of) {
            self.conduct.charge(self.peer, offence);
        }
    }

    pub(super) fn charge(&self, offence: Offence) {
        self.conduct.charge(self.peer, offence);
    }
}

/// A control connection carries so many frames. A source says little: burials, of all 4096 lanes at once after a
/// reconnect, the switch-over, 256 frames of device state.
pub(super) const FROM_A_SOURCE: Rate = Rate { burst: 8192, per_second: 512 };
/// A sink answers every fourth extent, and there are 65,536 extents a second only if nearly all of them are empty.
pub(super) const FROM_A_SINK: Rate = Rate { burst: 131_072, per_second: 65_536 };
/// Extents of a lane that carry no page. An honest source has hashed up to 256 pages for each.
pub(super) const EMPTY_EXTENTS: Rate = Rate { burst: 32_768, per_second: 16_384 };

/// A violation of one of the rates above.
pub(super) fn flood(lane: crate::wire::LaneId, position: u64, what: &str) -> SessionError {
    SessionError::PeerViolation { code: crate::wire::ErrorCode::Flood, lane, position, what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: H-11
    #[test]
    fn who_connects_without_an_end_waits_for_nobody_but_itself() {
        let conduct = Conduct::new(Quarantine::default());
        let [churns, honest] = [1, 2].map(|byte| Fingerprint([byte; 32]));
        let most = Duration::from_millis(2500);
        let waits: Vec<_> = (0..20_000).filter_map(|_| conduct.turn(churns, most)).collect();
        // The burst, what may wait for its turn, and what was earned while this test ran.
        let (least, earned) = (8192 + 640, 256 * 60);
        assert!((least..least + earned).contains(&waits.len()), "{} let in", waits.len());
        assert!(waits.iter().all(|wait| *wait <= most));
        assert_eq!(conduct.turn(honest, most), Some(Duration::ZERO));
        assert!(conduct.offences().charged.is_empty(), "a bad link does the same");
    }
}
