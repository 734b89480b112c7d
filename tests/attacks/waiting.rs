//! What comes for a session that nobody has accepted yet.

use std::collections::BTreeMap;

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
