//! Peers that break the protocol, over real connections: each is told what it did, nothing of it is
//! applied, and the honest side ends with a typed error.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::net::{
    Endpoint, EndpointError, Fingerprint, Identity, Incoming, Listener, Records, Transfer, Trust, VersionRefusal,
};
use dwcp_core::session::binding;
use dwcp_core::session::leaves::{Leaves, Tree};
use dwcp_core::session::{Outcome, Owner, Record, SessionError, SinkConfig, SourceConfig, Standing};
use dwcp_core::wire::*;
use dwcp_core::{Guest, Layout, RegionId};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::wire::Tier;
use tokio::io::AsyncWriteExt;

mod attacker;

use attacker::{PAGES, Raw, extent, hello, offer};

struct Honest {
    endpoint: Endpoint,
    listener: Listener,
    attacker: Identity,
}

impl Honest {
    async fn sink() -> Self {
        let (own, attacker) = (Identity::generate("sink").unwrap(), Identity::generate("attacker").unwrap());
        let endpoint = Endpoint::new(&own, &Trust::fingerprints([attacker.fingerprint()])).unwrap();
        Self::at(endpoint, attacker).await
    }

    /// A sink that speaks both versions.
    async fn dual() -> Self {
        let Self { endpoint, attacker, .. } = Self::sink().await;
        Self::at(endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local })), attacker).await
    }

    async fn at(endpoint: Endpoint, attacker: Identity) -> Self {
        Self { listener: endpoint.listen("127.0.0.1:0").await.unwrap(), attacker, endpoint }
    }

    /// What came to nothing because of versions.
    fn refused(&self) -> Vec<(VersionRefusal, u64)> {
        self.endpoint.statistics().refused.into_iter().collect()
    }

    async fn attack(&self) -> Raw {
        Raw::connect(self.listener.local_addr(), Some(&self.attacker), b"dwcp/3").await.unwrap()
    }
}

/// An attacker with an accepted offer and one joined lane.
struct Inside {
    control: Raw,
    lane: Raw,
    credit: u64,
    guest: Arc<Memory>,
    sink: tokio::task::JoinHandle<Outcome>,
    session: SessionId,
    honest: Honest,
}

async fn inside(config: SinkConfig) -> Inside {
    let mut honest = Honest::sink().await;
    let mut control = honest.attack().await;
    let (ack, hello) = control.hello(|_| {}).await;
    control.bind(&hello, &ack).await;
    control.say(&Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = honest.listener.accept().await else { panic!() };
    let guest = Arc::new(Memory::new(incoming.offer().layout.clone()));
    let mut session = incoming.accept(Arc::clone(&guest) as Arc<dyn Guest>, config);
    assert!(matches!(control.hear().await.unwrap(), Frame::Accept(_)));
    let session_key = control.key(binding::SESSION_LABEL);
    let mut lane = honest.attack().await;
    let mac = binding::join_mac(&session_key, &lane.key(binding::CONNECTION_LABEL), ack.session, LaneId(1));
    lane.say(&Frame::Join(Join { session: ack.session, lane: LaneId(1), mac })).await;
    let Frame::Joined(joined) = lane.hear().await.unwrap() else { panic!() };
    let sink = tokio::spawn(async move { session.outcome().await });
    Inside { control, lane, credit: joined.credit, guest, sink, session: ack.session, honest }
}

async fn refused(mut inside: Inside, frame: &[u8], code: ErrorCode) {
    inside.lane.bytes(frame).await;
    let error = inside.control.hear_error().await;
    assert_eq!(error.code, code, "{error:?}");
    assert_eq!(error.lane, LaneId(1));
    let outcome = inside.sink.await.unwrap();
    assert_eq!(outcome.owner, Owner::Source);
    match (code.is_integrity(), outcome.error) {
        (true, Some(SessionError::Integrity { code: found, .. })) => assert_eq!(found, code),
        (false, Some(SessionError::PeerViolation { code: found, .. })) => assert_eq!(found, code),
        other => panic!("{other:?}"),
    }
    for page in 0..PAGES {
        assert_eq!(inside.guest.peek(RegionId(0), page * 4096), Some(0), "page {page} was touched");
    }
    assert!(!inside.guest.is_running());
}

#[tokio::test]
async fn a_sound_extent_is_applied_so_that_the_others_prove_something() {
    let mut inside = inside(SinkConfig::default()).await;
    inside.lane.bytes(&extent(0, 1, 3, false)).await;
    let Frame::Ack(ack) = inside.control.hear().await.unwrap() else { panic!() };
    assert_eq!(ack.lanes, [(LaneId(1), 1)]);
    assert_eq!(inside.guest.peek(RegionId(0), 3 * 4096), Some(0xa5a5_a5a5_a5a5_a5a5));
}

// spec: E-1
#[tokio::test]
async fn an_extent_out_of_sequence() {
    refused(inside(SinkConfig::default()).await, &extent(1, 1, 0, false), ErrorCode::BadExtent).await;
}

// spec: E-2
#[tokio::test]
async fn an_extent_of_another_epoch() {
    refused(inside(SinkConfig::default()).await, &extent(0, 2, 0, false), ErrorCode::BadExtent).await;
}

// spec: E-4
#[tokio::test]
async fn an_extent_outside_the_layout() {
    let page = u32::try_from(PAGES).unwrap();
    refused(inside(SinkConfig::default()).await, &extent(0, 1, page, false), ErrorCode::BadExtent).await;
}

// spec: E-5
#[tokio::test]
async fn an_extent_whose_digest_is_wrong() {
    refused(inside(SinkConfig::default()).await, &extent(0, 1, 0, true), ErrorCode::ExtentDigest).await;
}

#[tokio::test]
async fn an_extent_whose_block_is_garbage() {
    let mut frame = extent(0, 1, 0, false);
    // Header, head, one run of two bytes: the block begins here, with its version.
    frame[FRAME_HEADER_BYTES + EXTENT_HEAD_MAX + 2] ^= 0xff;
    refused(inside(SinkConfig::default()).await, &frame, ErrorCode::BadBlock).await;
}

// spec: C-1
#[tokio::test]
async fn more_bytes_than_were_granted() {
    let mut inside = inside(SinkConfig { lane_window: 1, ..SinkConfig::default() }).await;
    // Frames that are charged but never applied: optional frames of a later version.
    let body = u32::try_from(limits::MAX_CONTROL_BYTES).unwrap();
    let [a, b, c, d] = body.to_le_bytes();
    let mut frame = vec![a, b, c, d, 0x99, 0, 0, 0];
    frame.resize(8 + limits::MAX_CONTROL_BYTES, 0);
    let needed = inside.credit / frame.len() as u64 + 1;
    for _ in 0..needed {
        if inside.lane.stream.write_all(&frame).await.is_err() {
            break;
        }
    }
    let _ = inside.lane.stream.flush().await;
    assert_eq!(inside.control.hear_error().await.code, ErrorCode::CreditExceeded);
    assert!(matches!(inside.sink.await.unwrap().error, Some(SessionError::PeerViolation { .. })));
}

#[tokio::test]
async fn a_control_frame_on_a_bulk_lane() {
    let mut frame = Vec::new();
    Frame::Ping(Ping { id: 1 }).encode(&mut frame);
    refused(inside(SinkConfig::default()).await, &frame, ErrorCode::Unexpected).await;
}

#[tokio::test]
async fn an_oversized_frame_on_a_bulk_lane() {
    let length = u32::try_from(limits::MAX_EXTENT_BYTES + 1).unwrap();
    let header = FrameHeader::new(FrameType::Extent, length).encode();
    refused(inside(SinkConfig::default()).await, &header, ErrorCode::Malformed).await;
}

#[tokio::test]
async fn run_unasked_for() {
    let mut inside = inside(SinkConfig::default()).await;
    let Offer { transfer, epoch, .. } = offer();
    inside.control.say(&Frame::Run(Run { transfer, epoch, attempt: 1, root: Digest([0; 32]) })).await;
    assert_eq!(inside.control.hear_error().await.code, ErrorCode::Unexpected);
    assert_eq!(inside.sink.await.unwrap().owner, Owner::Source);
    assert!(!inside.guest.is_running());
}

// spec: W-6
#[tokio::test]
async fn an_unknown_critical_frame_on_lane_0() {
    let mut inside = inside(SinkConfig::default()).await;
    inside.control.bytes(&[0, 0, 0, 0, 0x7e, 0, 0, 0]).await;
    assert_eq!(inside.control.hear_error().await.code, ErrorCode::Malformed);
    assert!(matches!(inside.sink.await.unwrap().error, Some(SessionError::PeerViolation { .. })));
}

// spec: L-2
#[tokio::test]
async fn a_lane_id_joins_once() {
    let mut inside = inside(SinkConfig::default()).await;
    let session_key = inside.control.key(binding::SESSION_LABEL);
    drop(inside.lane);
    inside.control.say(&Frame::Bury(Bury { lane: LaneId(1) })).await;
    let Frame::Buried(buried) = inside.control.hear().await.unwrap() else { panic!() };
    assert_eq!((buried.lane, buried.applied), (LaneId(1), 0));
    let mut fresh = inside.honest.attack().await;
    let mac = binding::join_mac(&session_key, &fresh.key(binding::CONNECTION_LABEL), inside.session, LaneId(2));
    fresh.say(&Frame::Join(Join { session: inside.session, lane: LaneId(2), mac })).await;
    assert!(matches!(fresh.hear().await.unwrap(), Frame::Joined(_)), "a lane that was never used may join");
    let mut again = inside.honest.attack().await;
    let mac = binding::join_mac(&session_key, &again.key(binding::CONNECTION_LABEL), inside.session, LaneId(1));
    again.say(&Frame::Join(Join { session: inside.session, lane: LaneId(1), mac })).await;
    assert_eq!(again.hear_error().await.code, ErrorCode::JoinRejected);
}

/// A sink with records that trusts two peers, and says nothing to what it is offered.
struct Remembering {
    listener: Listener,
    records: Records,
    folder: tempfile::TempDir,
    peers: [Identity; 2],
}

impl Remembering {
    async fn sink() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [own, a, b] = ["sink", "a", "b"].map(|name| Identity::generate(name).unwrap());
        let endpoint = Endpoint::new(&own, &Trust::fingerprints([a.fingerprint(), b.fingerprint()])).unwrap();
        let endpoint = endpoint.with_records(folder.path()).unwrap();
        let listener = endpoint.listen("127.0.0.1:0").await.unwrap();
        Self { listener, records: endpoint.records().clone(), folder, peers: [a, b] }
    }

    /// A new session of one of the peers that begins with this frame.
    async fn begin(&self, peer: usize, first: &Frame) -> Raw {
        let mut raw = Raw::connect(self.listener.local_addr(), Some(&self.peers[peer]), b"dwcp/3").await.unwrap();
        let (ack, hello) = raw.hello(|_| {}).await;
        raw.bind(&hello, &ack).await;
        raw.say(first).await;
        raw
    }

    fn remember(&self, standing: Standing) {
        let record = Record::of(&offer(), 1, Digest([4; 32]), self.peers[0].fingerprint(), standing);
        self.records.store(&record).unwrap();
    }

    fn forgot(&self) -> bool {
        self.records.load(offer().transfer).unwrap().is_none()
    }

    fn damage(&self) {
        std::fs::write(self.folder.path().join(format!("{}.record", offer().transfer)), "torn").unwrap();
    }
}

fn ask(transfer: TransferId) -> Frame {
    Frame::Run(Run { transfer, epoch: offer().epoch, attempt: 1, root: Digest([4; 32]) })
}

// spec: P-3
#[tokio::test]
async fn a_trusted_peer_learns_nothing_of_anothers_transfer() {
    let mut sink = Remembering::sink().await;
    for standing in [Standing::Ready, Standing::Ran] {
        sink.remember(standing);
        let other = sink.begin(1, &ask(offer().transfer)).await.hear_error().await;
        let never_was = sink.begin(1, &ask(TransferId([9; 16]))).await.hear_error().await;
        assert_eq!(other.code, ErrorCode::Unknown);
        assert_eq!(other, never_was);
        let _asking = sink.begin(0, &ask(offer().transfer)).await;
        let Some(Incoming::Ask(asked)) = sink.listener.accept().await else { panic!() };
        assert_eq!((asked.peer(), asked.record().standing), (sink.peers[0].fingerprint(), standing));
        // While one of its sessions waits for an answer, too.
        assert_eq!(sink.begin(1, &ask(offer().transfer)).await.hear_error().await, never_was);
    }
}

// spec: S-10
#[tokio::test]
async fn a_session_yields_its_place_only_when_lost_and_never_after_ready() {
    let mut sink = Remembering::sink().await;
    let control = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    let guest = Arc::new(Memory::new(offer().layout));
    let mut session = incoming.accept(Arc::clone(&guest) as Arc<dyn Guest>, SinkConfig::default());
    assert!(!session.supersede().await, "its source is there");
    drop(control);
    while !session.supersede().await {}
    assert_eq!(session.outcome().await.owner, Owner::Source);

    let mut control = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    let session = incoming.accept(guest, SinkConfig::default());
    assert!(matches!(control.hear().await.unwrap(), Frame::Accept(_)));
    let layout = offer().layout;
    let root = Tree::new(&layout).root(&Leaves::new(&layout));
    let device_digest = Digest(*blake3::hash(&[]).as_bytes());
    control.say(&Frame::Pause(Pause { attempt: 1, root, device_bytes: 0, device_digest, finals: vec![] })).await;
    assert!(matches!(control.hear().await.unwrap(), Frame::Ready(_)));
    drop(control);
    // The loss is seen after some of these questions; none may be answered with yes.
    for _ in 0..5000 {
        assert!(!session.supersede().await, "READY was promised");
    }
}

// spec: O-6
#[tokio::test]
async fn a_source_that_lost_a_ready_session_offers_again_and_only_then() {
    let mut sink = Remembering::sink().await;
    let mut control = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    let mut session = incoming.accept(Arc::new(Memory::new(offer().layout)), SinkConfig::default());
    assert!(matches!(control.hear().await.unwrap(), Frame::Accept(_)));
    let layout = offer().layout;
    let root = Tree::new(&layout).root(&Leaves::new(&layout));
    let device_digest = Digest(*blake3::hash(&[]).as_bytes());
    control.say(&Frame::Pause(Pause { attempt: 1, root, device_bytes: 0, device_digest, finals: vec![] })).await;
    assert!(matches!(control.hear().await.unwrap(), Frame::Ready(_)));
    for peer in [0, 1] {
        let text = turned_away(&mut sink.begin(peer, &Frame::Offer(offer())).await).await;
        assert!(text.contains("another session"), "its source is there: {text}");
    }
    assert!(!sink.forgot());
    drop(control);
    // The loss may be seen a moment later than the next offer comes.
    let again = loop {
        let mut again = sink.begin(0, &Frame::Offer(offer())).await;
        tokio::select! {
            Some(Incoming::Offer(incoming)) = sink.listener.accept() => break (incoming, again),
            text = turned_away(&mut again) => assert!(text.contains("another session"), "{text}"),
        }
    };
    assert_eq!(session.outcome().await.owner, Owner::Source);
    assert!(sink.forgot(), "nothing is promised any more");
    drop(again);
}

/// What an offer is turned away with.
async fn turned_away(raw: &mut Raw) -> String {
    match raw.hear().await.unwrap() {
        Frame::Abort(Abort { reason: AbortReason::Refused, text }) => text,
        other => panic!("{other:?}"),
    }
}

// spec: O-5
#[tokio::test]
async fn a_transfer_is_offered_in_one_session_and_once() {
    let mut sink = Remembering::sink().await;
    let first = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    for peer in [0, 1] {
        let text = turned_away(&mut sink.begin(peer, &Frame::Offer(offer())).await).await;
        assert!(text.contains("another session"), "{text}");
    }
    // Nobody wants it: it may be offered again.
    drop((incoming, first));
    let _again = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    drop(incoming);
    for standing in [Standing::GaveUp, Standing::Ran] {
        sink.remember(standing);
        let text = turned_away(&mut sink.begin(0, &Frame::Offer(offer())).await).await;
        assert!(text.contains("was here before"), "{text}");
    }
}

// spec: O-6
#[tokio::test]
async fn an_offer_takes_back_what_was_promised_to_its_peer_and_nobody_else() {
    let mut sink = Remembering::sink().await;
    sink.remember(Standing::Ready);
    let other = Offer { name: Name::new("other").unwrap(), ..offer() };
    for (peer, offer) in [(1, offer()), (0, other)] {
        let text = turned_away(&mut sink.begin(peer, &Frame::Offer(offer)).await).await;
        assert!(text.contains("was here before"), "{text}");
    }
    let _control = sink.begin(0, &Frame::Offer(offer())).await;
    let Some(Incoming::Offer(_incoming)) = sink.listener.accept().await else { panic!() };
    assert!(sink.forgot(), "the promise is gone before anybody accepts");
}

// spec: O-7
#[tokio::test]
async fn an_offer_of_an_epoch_that_is_over_is_refused_and_a_later_one_is_remembered() {
    let mut sink = Remembering::sink().await;
    let [peer, other] = sink.peers.each_ref().map(Identity::fingerprint);
    let of = |epoch| Frame::Offer(Offer { epoch: FenceEpoch(epoch), ..offer() });
    sink.records.raise_fence(peer, FenceEpoch(5)).unwrap();
    for epoch in [1, 4, 6 + (1 << 20), u64::MAX] {
        let text = turned_away(&mut sink.begin(0, &of(epoch)).await).await;
        assert!(text.contains("where epoch 5 is due"), "{text}");
    }
    assert_eq!(sink.records.fence(peer).unwrap(), FenceEpoch(5));
    let _control = sink.begin(0, &of(7)).await;
    let Some(Incoming::Offer(incoming)) = sink.listener.accept().await else { panic!() };
    drop(incoming);
    assert_eq!(sink.records.fence(peer).unwrap(), FenceEpoch(7), "before anybody accepts");
    assert_eq!(sink.records.fence(other).unwrap(), FenceEpoch(1), "others have their own");
}

// spec: P-1, O-5
#[tokio::test]
async fn a_damaged_record_is_not_no_record() {
    let sink = Remembering::sink().await;
    sink.damage();
    for first in [Frame::Offer(offer()), ask(offer().transfer)] {
        let error = sink.begin(0, &first).await.hear_error().await;
        assert_eq!(error.code, ErrorCode::Local, "{error:?}");
    }
}

// spec: H-5
#[tokio::test]
async fn a_lane_without_proof() {
    let honest = Honest::sink().await;
    for session in [SessionId([0; 16]), SessionId([1; 16])] {
        let mut lane = honest.attack().await;
        lane.say(&Frame::Join(Join { session, lane: LaneId(1), mac: Digest([0; 32]) })).await;
        assert_eq!(lane.hear_error().await.code, ErrorCode::JoinRejected);
    }
}

// spec: H-3
#[tokio::test]
async fn offers_changed_on_the_way() {
    let honest = Honest::sink().await;
    let mut control = honest.attack().await;
    let (ack, mut hello) = control.hello(|_| {}).await;
    hello.nonce = [8; 32];
    control.bind(&hello, &ack).await;
    let error = control.hear_error().await;
    assert_eq!(error.code, ErrorCode::Negotiation);
    assert!(error.text.contains("downgrade"), "{error:?}");
    assert_eq!(honest.refused(), [(VersionRefusal::DowngradeDetected, 1)]);
}

// spec: H-1, H-3
#[tokio::test]
async fn version_3_stripped_from_one_of_both_offers() {
    let both = Hello { version_min: 1, version_max: 3, features: 1, ..hello() };
    for (alpn, hello) in [
        // TLS agreed on version 3, and the hello no longer offers it; and the other way round.
        (b"dwcp/3", Hello { version_max: 1, ..both.clone() }),
        (b"dwcp/1", both),
    ] {
        let honest = Honest::dual().await;
        let mut control = Raw::connect(honest.listener.local_addr(), Some(&honest.attacker), alpn).await.unwrap();
        control.say(&Frame::Hello(hello)).await;
        let error = control.hear_error().await;
        assert!(error.code == ErrorCode::Negotiation && error.text.contains("downgrade"), "{error:?}");
        assert_eq!(honest.refused(), [(VersionRefusal::DowngradeDetected, 1)]);
        let statistics = honest.endpoint.statistics();
        assert!(statistics.declined.is_empty() && statistics.sink.v1.begun == 0, "nothing weaker was spoken");
    }
}

// spec: H-2
#[tokio::test]
async fn no_common_version() {
    let honest = Honest::sink().await;
    let mut control = honest.attack().await;
    control.say(&Frame::Hello(Hello { version_min: 4, version_max: 9, ..hello() })).await;
    assert_eq!(control.hear_error().await.code, ErrorCode::Negotiation);
    assert_eq!(honest.refused(), [(VersionRefusal::NoVersion, 1)]);
}

// spec: H-2, H-4
#[tokio::test]
async fn a_feature_that_nobody_has() {
    let honest = Honest::sink().await;
    let mut control = honest.attack().await;
    control.say(&Frame::Hello(Hello { features: 1 << 40, required: 1 << 40, ..hello() })).await;
    assert_eq!(control.hear_error().await.code, ErrorCode::Negotiation);
    assert_eq!(honest.refused(), [(VersionRefusal::MissingFeature, 1)]);
}

// spec: H-6
#[tokio::test]
async fn a_session_is_not_resumed_without_its_key() {
    let honest = Honest::sink().await;
    let mut control = honest.attack().await;
    let claim = ResumeClaim { session: SessionId([3; 16]), attempt: 1, mac: Digest([0; 32]) };
    control.say(&Frame::Hello(Hello { resume: Some(claim), ..hello() })).await;
    assert_eq!(control.hear_error().await.code, ErrorCode::Unknown);
}

#[tokio::test]
async fn a_connection_that_begins_with_something_else() {
    let honest = Honest::sink().await;
    let mut control = honest.attack().await;
    control.say(&Frame::Ping(Ping { id: 0 })).await;
    assert_eq!(control.hear_error().await.code, ErrorCode::Unexpected);
    // It is in quarantine now.
    let honest = Honest::sink().await;
    let mut garbage = honest.attack().await;
    garbage.bytes(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(garbage.hear_error().await.code, ErrorCode::Malformed);
}

// spec: H-1, H-8
#[tokio::test]
async fn strangers_get_no_further_than_tls() {
    let honest = Honest::sink().await;
    let at = honest.listener.local_addr();
    let stranger = Identity::generate("stranger").unwrap();
    let attempts: [(Option<&Identity>, &[u8]); 4] = [
        (Some(&stranger), b"dwcp/3"),
        (None, b"dwcp/3"),
        (Some(&honest.attacker), b"http/1.1"),
        (Some(&honest.attacker), b""),
    ];
    for (identity, alpn) in attempts {
        // With TLS 1.3 a client learns that its certificate is refused when it first reads.
        let Ok(mut raw) = Raw::connect(at, identity, alpn).await else { continue };
        let mut hello = Vec::new();
        Frame::Ping(Ping { id: 0 }).encode(&mut hello);
        let _ = raw.stream.write_all(&hello).await;
        let _ = raw.stream.flush().await;
        let answer = raw.hear().await;
        assert!(answer.is_err(), "{answer:?}");
    }
}

#[tokio::test]
async fn an_untrusted_peer_is_named_at_both_ends() {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let other = Fingerprint([0; 32]);
    let send = async |trusts: Fingerprint, trusted: Fingerprint| {
        let sink = Endpoint::new(&b, &Trust::fingerprints([trusted])).unwrap();
        let listener = sink.listen("127.0.0.1:0").await.unwrap();
        let source = Endpoint::new(&a, &Trust::fingerprints([trusts])).unwrap();
        let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
        let guest = Arc::new(Memory::new(Layout::new(&[4096]).unwrap()));
        let to = listener.local_addr().to_string();
        source.send(&to, transfer, guest, SourceConfig::default()).await.map(|_| ())
    };
    let wrong_sink = send(other, a.fingerprint()).await.unwrap_err();
    assert!(
        matches!(&wrong_sink, EndpointError::Unauthorised { what, .. } if what.contains(&b.fingerprint().to_string()))
    );
    let unknown_source = send(b.fingerprint(), other).await.unwrap_err();
    assert!(
        matches!(&unknown_source, EndpointError::Unauthorised { what, .. } if what.contains("--trust")),
        "{unknown_source}"
    );
}

#[tokio::test]
async fn nobody_there_and_a_port_in_use() {
    let identity = Identity::generate("a").unwrap();
    let endpoint = Endpoint::new(&identity, &Trust::fingerprints([identity.fingerprint()])).unwrap();
    let listener = endpoint.listen("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().to_string();
    assert!(matches!(endpoint.listen(&at).await, Err(EndpointError::Listen { .. })));
    drop(listener);
    let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
    let guest = Arc::new(Memory::new(Layout::new(&[4096]).unwrap()));
    let nobody =
        endpoint.send(&at, transfer.clone(), Arc::clone(&guest) as Arc<dyn Guest>, SourceConfig::default()).await;
    assert!(nobody.unwrap_err().is_unreachable());
    let nowhere = endpoint.send("no-such-host.invalid:1", transfer, guest, SourceConfig::default()).await;
    assert!(matches!(nowhere, Err(EndpointError::Resolve { .. })));
}
