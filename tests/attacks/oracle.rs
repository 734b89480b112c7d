//! The field of an attack, and what must hold after it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Listener, Offence, Session, Transfer, Trust};
use dwcp_core::session::binding::{self, Key};
use dwcp_core::session::{Outcome, Owner, SessionError, SinkConfig, SourceConfig};
use dwcp_core::wire::*;
use dwcp_core::{Layout, RegionId};
use dwcp_hde::{Bases, Effort};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::wire::Tier;
use tokio::sync::mpsc;

use crate::attacker::{PAGES, Raw, block_of, digest_of, extent_with, offer};
use crate::seeds::{Chance, seeds};

/// A node, an attacker that it trusts, and an honest source whose transfer is under way.
pub(crate) struct Field {
    pub(crate) node: Endpoint,
    pub(crate) attacker: Identity,
    pub(crate) address: std::net::SocketAddr,
    /// That the attacker says it has.
    features: u64,
    honest: Honest,
    /// Sessions of the attacker, with the guest that they write to.
    sessions: mpsc::Receiver<(Arc<Memory>, Session)>,
}

/// The transfer that no attack may disturb.
struct Honest {
    guest: Arc<Memory>,
    session: Session,
    arrived: mpsc::Receiver<(Arc<Memory>, Outcome)>,
    _source: Endpoint,
}

/// An attacker with an accepted offer and a lane that has carried what an honest one would.
pub(crate) struct Inside {
    pub(crate) control: Raw,
    pub(crate) lane: Raw,
    pub(crate) lane_id: LaneId,
    /// Number of the lane's next extent.
    pub(crate) seq: u64,
    pub(crate) credit: u64,
    pub(crate) chance: Chance,
    /// Lanes that joined before it.
    _others: Vec<Raw>,
    pub(crate) session: SessionId,
    pub(crate) key: Key,
    pub(crate) guest: Arc<Memory>,
    at_node: Session,
}

const HONEST_PAGES: u64 = 300;

impl Field {
    pub(crate) async fn new() -> Self {
        Self::with(SinkConfig::default()).await
    }

    /// With a configuration for the attacker's sessions.
    pub(crate) async fn with(config: SinkConfig) -> Self {
        let [own, attacker, honest] = ["node", "attacker", "honest"].map(|name| Identity::generate(name).unwrap());
        let trust = Trust::fingerprints([attacker.fingerprint(), honest.fingerprint()]);
        let mut node = Endpoint::new(&own, &trust).unwrap();
        if config.messages {
            node = node.with_messages(Arc::new(Amst16 { tier: Tier::Local }));
        }
        let features = if config.messages { binding::MESSAGES } else { 0 };
        let listener = node.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let (sessions_to, sessions) = mpsc::channel(16);
        let (arrived_to, arrived) = mpsc::channel(1);
        tokio::spawn(serve(listener, honest.fingerprint(), config, sessions_to, arrived_to));
        let source = Endpoint::new(&honest, &Trust::fingerprints([own.fingerprint()])).unwrap();
        let guest = Arc::new(Memory::new(Layout::new(&[HONEST_PAGES * 4096]).unwrap()));
        let mut random = 1_u64;
        for word in 0..HONEST_PAGES * 512 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            guest.poke(RegionId(0), word * 8, random);
        }
        let transfer = Transfer::new(Name::new("honest").unwrap(), GuestKind::Image);
        // So slow that it is under way whatever the attack takes.
        let config = SourceConfig { bandwidth: NonZeroU64::new(16 * 1024), ..SourceConfig::default() };
        let session = source.send(&address.to_string(), transfer, Arc::clone(&guest) as _, config).await.unwrap();
        Self {
            node,
            attacker,
            address,
            features,
            honest: Honest { guest, session, arrived, _source: source },
            sessions,
        }
    }

    pub(crate) async fn connect(&self) -> Raw {
        Raw::connect(self.address, Some(&self.attacker), b"dwcp/3").await.unwrap()
    }

    /// A control connection with an accepted offer, and a lane, not always the first one.
    pub(crate) async fn inside(&mut self, mut chance: Chance) -> Inside {
        let mut control = self.connect().await;
        let (ack, hello) = control.hello(|hello| hello.features = self.features).await;
        control.bind(&hello, &ack).await;
        control.say(&Frame::Offer(offer())).await;
        let (guest, at_node) = self.accepted().await;
        assert!(matches!(control.hear().await.unwrap(), Frame::Accept(_)));
        let key = control.key(binding::SESSION_LABEL);
        let (mut id, mut lanes) = (0, Vec::new());
        for _ in 0..chance.between(1, 3) {
            id += u16::try_from(chance.between(1, 1000)).unwrap();
            let mut lane = self.connect().await;
            let Frame::Joined(joined) = join(&mut lane, &key, ack.session, LaneId(id)).await else { panic!() };
            lanes.push((lane, joined.credit));
        }
        let (lane, credit) = lanes.pop().unwrap();
        let others = lanes.into_iter().map(|(lane, _)| lane).collect();
        let (session, lane_id) = (ack.session, LaneId(id));
        let mut inside =
            Inside { control, lane, lane_id, seq: 0, credit, chance, _others: others, session, key, guest, at_node };
        inside.begins_honestly().await;
        inside
    }

    /// The attacker's next session at the node.
    pub(crate) async fn accepted(&mut self) -> (Arc<Memory>, Session) {
        self.sessions.recv().await.unwrap()
    }

    /// Offences counted so far.
    pub(crate) fn charged(&self) -> BTreeMap<Offence, u64> {
        self.node.offences().charged
    }

    pub(crate) fn quarantined(&self) -> bool {
        self.node.quarantined().iter().any(|quarantined| quarantined.peer == self.attacker.fingerprint())
    }

    /// The honest transfer goes on at full speed, and comes through whole.
    pub(crate) async fn honest_comes_through(mut self) {
        self.honest.session.set_bandwidth(None);
        let outcome = self.honest.session.outcome().await;
        assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "the honest transfer: {outcome:?}");
        let (guest, outcome) = self.honest.arrived.recv().await.unwrap();
        assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "at the node: {outcome:?}");
        for word in 0..HONEST_PAGES * 512 {
            let both = [&guest, &self.honest.guest].map(|guest| guest.peek(RegionId(0), word * 8));
            assert_eq!(both[0], both[1], "word {word}");
        }
    }
}

impl Inside {
    /// Some of what an honest source says; the guest is zeros afterwards, too.
    async fn begins_honestly(&mut self) {
        for _ in 0..self.chance.below(5) {
            match self.chance.below(3) {
                0 => self.control.say(&Frame::Ping(Ping { id: self.chance.word() })).await,
                1 => {
                    // Optional frames of a later version: charged, and skipped.
                    let body = u16::try_from(self.chance.below(300)).unwrap();
                    let [low, high] = body.to_le_bytes();
                    let mut frame = vec![low, high, 0, 0, 0x99, 0, 0, 0];
                    frame.resize(8 + usize::from(body), 7);
                    self.lane.bytes(&frame).await;
                }
                _ => {
                    let zeros = vec![0; 4096 * usize::from(self.chance.percent(80))];
                    let page = self.chance.place(1, PAGES);
                    let block = block_of(&zeros, Effort::Fast, &Bases::none());
                    self.extent(page, zeros.len() / 4096, digest_of(1, page, &zeros), &block).await;
                }
            }
        }
    }

    /// Sends an extent of this transfer, with the number that is due.
    pub(crate) async fn extent(&mut self, page: u32, pages: usize, digest: Digest, block: &[u8]) {
        self.lane.bytes(&extent_with(self.seq, 1, page, pages, digest, block)).await;
        self.seq += 1;
    }

    /// What the lane carried, as a PAUSE tells it.
    pub(crate) fn finals(&self) -> Vec<(LaneId, u64)> {
        if self.seq == 0 { Vec::new() } else { vec![(self.lane_id, self.seq)] }
    }
}

async fn serve(
    mut listener: Listener,
    honest: dwcp_core::net::Fingerprint,
    config: SinkConfig,
    sessions: mpsc::Sender<(Arc<Memory>, Session)>,
    arrived: mpsc::Sender<(Arc<Memory>, Outcome)>,
) {
    while let Some(Incoming::Offer(incoming)) = listener.accept().await {
        let guest = Arc::new(Memory::new(incoming.offer().layout.clone()));
        if incoming.peer() == honest {
            let mut session = incoming.accept(Arc::clone(&guest) as _, SinkConfig::default());
            let arrived = arrived.clone();
            tokio::spawn(async move { arrived.send((guest, session.outcome().await)).await });
        } else {
            let session = incoming.accept(Arc::clone(&guest) as _, config.clone());
            let _ = sessions.send((guest, session)).await;
        }
    }
}

/// Asks to be a lane.
pub(crate) async fn join(lane: &mut Raw, key: &Key, session: SessionId, id: LaneId) -> Frame {
    let mac = binding::join_mac(key, &lane.key(binding::CONNECTION_LABEL), session, id);
    lane.say(&Frame::Join(Join { session, lane: id, mac })).await;
    lane.hear().await.unwrap()
}

/// Offences that a broken memory can explain are let pass twice.
fn times_until_quarantine(offence: Offence) -> u64 {
    let ambiguous =
        [Offence::Malformed, Offence::BadBlock, Offence::ExtentDigest, Offence::RootMismatch, Offence::DeviceDigest];
    if ambiguous.contains(&offence) { 3 } else { 1 }
}

/// Attacks from inside a session with each seed, as often as it takes to be quarantined, and holds each time against
/// what must be.
pub(crate) async fn oracle(config: SinkConfig, expected: Offence, attack: impl AsyncFn(&mut Inside)) {
    for chance in seeds() {
        attacked(config.clone(), expected, &attack, chance).await;
    }
}

async fn attacked(config: SinkConfig, expected: Offence, attack: &impl AsyncFn(&mut Inside), mut chance: Chance) {
    let mut field = Field::with(config).await;
    let times = times_until_quarantine(expected);
    for time in 1..=times {
        assert!(!field.quarantined(), "after {} times", time - 1);
        let mut inside = field.inside(chance).await;
        attack(&mut inside).await;
        let told = inside.control.hear_error().await;
        let outcome = inside.at_node.outcome().await;
        assert_eq!(outcome.owner, Owner::Source);
        let code = match outcome.error {
            Some(SessionError::PeerViolation { code, .. } | SessionError::Integrity { code, .. }) => code,
            other => panic!("no typed error against the peer: {other:?}"),
        };
        assert_eq!(told.code, code, "what the peer is told is what is known here");
        assert_eq!(field.charged(), BTreeMap::from([(expected, time)]), "exactly one more: {}", told.text);
        untouched(&inside.guest);
        chance = inside.chance;
    }
    assert!(field.quarantined());
    refused_for_now(&field).await;
    assert_eq!(field.charged(), BTreeMap::from([(expected, times)]), "who is refused is not charged again");
    field.honest_comes_through().await;
}

/// Nothing of the attack is in the guest, and it does not run.
pub(crate) fn untouched(guest: &Memory) {
    for word in 0..PAGES * 512 {
        assert_eq!(guest.peek(RegionId(0), word * 8), Some(0), "word {word}");
    }
    assert!(!guest.is_running());
}

/// A quarantined peer is told nothing but that.
pub(crate) async fn refused_for_now(field: &Field) {
    let error = field.connect().await.hear_error().await;
    assert_eq!((error.code, &*error.text), (ErrorCode::Local, "refused here for now; ask its operator"));
}
