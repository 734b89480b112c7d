//! What comes for a session that nobody has accepted yet.

use std::collections::BTreeMap;

use dwcp_core::Layout;
use dwcp_core::net::{Endpoint, Identity, Incoming, Listener, Offence, Trust, TurnedAway};
use dwcp_core::session::binding;
use dwcp_core::wire::*;

use crate::attacker::{Raw, hello, offer};
use crate::oracle::join;

/// A node that is slow to accept, and a peer that has offered it something.
struct Waiting {
    node: Endpoint,
    listener: Listener,
    peer: Identity,
    control: Raw,
    session: SessionId,
}

async fn offered() -> Waiting {
    let [own, peer] = ["node", "peer"].map(|name| Identity::generate(name).unwrap());
    let node = Endpoint::new(&own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
    let mut listener = node.listen("127.0.0.1:0").await.unwrap();
    let mut control = Raw::connect(listener.local_addr(), Some(&peer), b"dwcp/3").await.unwrap();
    let (ack, hello) = control.hello(|_| {}).await;
    control.bind(&hello, &ack).await;
    control.say(&Frame::Offer(offer())).await;
    // It has its place, and waits for as long as it is held here.
    let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!() };
    std::mem::forget(offer);
    Waiting { node, listener, peer, control, session: ack.session }
}

impl Waiting {
    async fn connect(&self) -> Raw {
        Raw::connect(self.listener.local_addr(), Some(&self.peer), b"dwcp/3").await.unwrap()
    }
}

// spec: O-4
#[tokio::test]
async fn b14_a_lane_of_a_session_that_was_not_accepted() {
    let waiting = offered().await;
    let key = waiting.control.key(binding::SESSION_LABEL);
    let Frame::Error(error) = join(&mut waiting.connect().await, &key, waiting.session, LaneId(1)).await else {
        panic!()
    };
    assert_eq!(error.code, ErrorCode::Unexpected, "{}", error.text);
    assert_eq!(waiting.node.offences().charged, BTreeMap::from([(Offence::OutOfPlace, 1)]));
    assert_eq!(waiting.node.quarantined().len(), 1);
}

/// Each would wait, with its connection, until somebody accepts.
// spec: H-11
#[tokio::test]
async fn b14_a_session_that_was_not_accepted_comes_back_again_and_again() {
    let waiting = offered().await;
    let key = waiting.control.key(binding::SESSION_LABEL);
    let mut held = Vec::new();
    for attempt in 1..=10 {
        let mut control = waiting.connect().await;
        let session = waiting.session;
        let mac = binding::resume_mac(&key, &control.key(binding::CONNECTION_LABEL), session, attempt);
        let claim = ResumeClaim { session, attempt, mac };
        control.say(&Frame::Hello(Hello { resume: Some(claim), ..hello() })).await;
        match control.hear().await.unwrap() {
            Frame::HelloAck(_) => held.push(control),
            Frame::Error(error) => assert_eq!(error.code, ErrorCode::Local, "{}", error.text),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), 8);
    let found = waiting.node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::OverPeerLimit, 2)])));
}

/// Each would cost what is kept for each part of its guest.
// spec: H-11
#[tokio::test]
async fn b14_more_is_offered_than_a_node_keeps_room_for() {
    let [own, peer, other] = ["node", "peer", "other"].map(|name| Identity::generate(name).unwrap());
    let trust = Trust::fingerprints([peer.fingerprint(), other.fingerprint()]);
    let node = Endpoint::new(&own, &trust).unwrap();
    let mut listener = node.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let largest = Layout::new(&[1 << 42]).unwrap();
    let offered = async |identity: &Identity, id: u8, layout: &Layout| {
        let mut raw = Raw::connect(address, Some(identity), b"dwcp/3").await.unwrap();
        let (ack, hello) = raw.hello(|_| {}).await;
        raw.bind(&hello, &ack).await;
        raw.say(&Frame::Offer(Offer { transfer: TransferId([id; 16]), layout: layout.clone(), ..offer() })).await;
        raw
    };
    let mut waiting = Vec::new();
    for id in 0..16 {
        waiting.push((offered(&peer, id, &largest).await, listener.accept().await));
    }
    let mut refused = 0;
    for layout in [&largest, &offer().layout] {
        let mut one_more = offered(&peer, 16, layout).await;
        let Frame::Abort(abort) = one_more.hear().await.unwrap() else { panic!() };
        assert!(abort.reason == AbortReason::Refused && abort.text.contains("try again later"), "{}", abort.text);
        refused += 1;
    }
    let _others = offered(&other, 17, &largest).await;
    assert!(matches!(listener.accept().await, Some(Incoming::Offer(offer)) if offer.peer() == other.fingerprint()));
    let found = node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::OverPeerLimit, refused)])));
    assert!(node.quarantined().is_empty());
}
