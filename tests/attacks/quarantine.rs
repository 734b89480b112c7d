//! Who is quarantined, for how long it is remembered, and who is not.

use std::collections::BTreeMap;

use dwcp_core::net::{Endpoint, Identity, Incoming, Offence, Quarantine, Trust, TurnedAway};
use dwcp_core::wire::*;

use crate::attacker::{Raw, offer};
use crate::connections::with_descriptors;
use crate::operator::{Place, dwcp, run};

/// A node with its state in a folder, and a peer that it trusts.
async fn with_state(folder: &std::path::Path, own: &Identity, peer: &Identity) -> (Endpoint, dwcp_core::net::Listener) {
    let node = Endpoint::new(own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
    let node = node.with_quarantine(folder).unwrap();
    let listener = node.listen("127.0.0.1:0").await.unwrap();
    (node, listener)
}

async fn connect(listener: &dwcp_core::net::Listener, peer: &Identity) -> Raw {
    Raw::connect(listener.local_addr(), Some(peer), b"dwcp/3").await.unwrap()
}

// spec: H-11
#[tokio::test]
async fn a_restart_frees_nobody_and_an_operator_does() {
    let folder = tempfile::tempdir().unwrap();
    let (own, peer) = (Identity::generate("node").unwrap(), Identity::generate("peer").unwrap());
    let (node, listener) = with_state(folder.path(), &own, &peer).await;
    let mut raw = connect(&listener, &peer).await;
    raw.say(&Frame::Ping(Ping { id: 0 })).await;
    assert_eq!(raw.hear_error().await.code, ErrorCode::Unexpected);
    assert_eq!(node.offences().charged, BTreeMap::from([(Offence::OutOfPlace, 1)]));
    let told = Quarantine::list(folder.path()).unwrap().peers;
    assert_eq!(told, node.quarantined());
    assert_eq!((told[0].peer, told[0].offence, told[0].times), (peer.fingerprint(), Offence::OutOfPlace, 1));
    assert_eq!(told[0].until - told[0].since, 30);
    drop((node, listener));

    let (node, mut listener) = with_state(folder.path(), &own, &peer).await;
    let refusal = connect(&listener, &peer).await.hear_error().await;
    assert_eq!(refusal.text, "refused here for now; ask its operator");
    assert_eq!(node.offences().turned_away, BTreeMap::from([(TurnedAway::Quarantined, 1)]));
    assert!(Quarantine::clear(folder.path(), peer.fingerprint()).unwrap());
    let mut raw = connect(&listener, &peer).await;
    let (ack, hello) = raw.hello(|_| {}).await;
    raw.bind(&hello, &ack).await;
    raw.say(&Frame::Offer(offer())).await;
    assert!(matches!(listener.accept().await, Some(Incoming::Offer(_))));
}

/// An address can be forged, and shared: nobody is charged before it is known who it is.
#[tokio::test]
async fn strangers_are_counted_and_never_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let [own, peer, stranger] = ["node", "peer", "stranger"].map(|name| Identity::generate(name).unwrap());
    let (node, listener) = with_state(folder.path(), &own, &peer).await;
    for _ in 0..10 {
        if let Ok(mut raw) = Raw::connect(listener.local_addr(), Some(&stranger), b"dwcp/3").await {
            assert!(raw.hear().await.is_err());
        }
    }
    let found = node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::NotAuthenticated, 10)])));
    assert!(node.quarantined().is_empty());
    assert!(Quarantine::list(folder.path()).unwrap().peers.is_empty());
}

// spec: H-11
#[test]
fn offers_that_wait_are_bounded_by_identity() {
    with_descriptors(512, "quarantine::offers_of_a_process_with_512_descriptors");
}

#[ignore = "counts on the descriptors of its process: started by the test above"]
#[tokio::test]
async fn offers_of_a_process_with_512_descriptors() {
    let [own, peer, other] = ["node", "peer", "other"].map(|name| Identity::generate(name).unwrap());
    let trust = Trust::fingerprints([peer.fingerprint(), other.fingerprint()]);
    let node = Endpoint::new(&own, &trust).unwrap();
    let listener = node.listen("127.0.0.1:0").await.unwrap();
    let offered = async |identity: &Identity, id: u16| {
        let mut raw = connect(&listener, identity).await;
        let (ack, hello) = raw.hello(|_| {}).await;
        raw.bind(&hello, &ack).await;
        let mut transfer = [0; 16];
        transfer[..2].copy_from_slice(&id.to_le_bytes());
        raw.say(&Frame::Offer(Offer { transfer: TransferId(transfer), ..offer() })).await;
        raw
    };
    let mut waiting = Vec::new();
    // An eighth of the process's descriptors.
    for id in 0..64 {
        waiting.push(offered(&peer, id).await);
    }
    let mut one_more = offered(&peer, 64).await;
    let Frame::Abort(abort) = one_more.hear().await.unwrap() else { panic!() };
    assert!(abort.text.contains("try again later"), "{}", abort.text);
    let found = node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::OverPeerLimit, 1)])));
    assert!(!node.quarantined().iter().any(|quarantined| quarantined.peer == peer.fingerprint()));
    // It fills its own places only.
    let others = offered(&other, 1000).await;
    drop((others, waiting));
}

#[test]
fn an_operator_lists_and_clears_while_the_receiver_runs() {
    let place = Place::new();
    let quarantine = |words: &[&str]| run(dwcp().arg("quarantine").args(words).arg("--dir").arg(place.path("in")));
    quarantine(&["list"]).failed(1, &["no `dwcp receive` ever stored images", "--dir"]);
    let receiver = place.listen();
    assert!(quarantine(&["list"]).out.contains("nobody is in quarantine"));
    quarantine(&["clear"]).failed(2, &["FINGERPRINT", "--all"]);
    quarantine(&["clear", &place.sender]).failed(1, &["is not in quarantine", "dwcp quarantine list"]);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let identity = Identity::from_pem(&std::fs::read_to_string(place.path("a.id")).unwrap()).unwrap();
        let to = receiver.address.parse().unwrap();
        let mut raw = Raw::connect(to, Some(&identity), b"dwcp/3").await.unwrap();
        raw.say(&Frame::Ping(Ping { id: 0 })).await;
        assert_eq!(raw.hear_error().await.code, ErrorCode::Unexpected);
    });
    let list = quarantine(&["list"]).out;
    assert!(list.contains(&place.sender) && list.contains("out-of-place, time 1"), "{list}");
    let said = quarantine(&["list", "--json"]);
    assert_eq!(said.summary()["peers"], 1);
    let first: serde_json::Value = serde_json::from_str(said.out.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["peer"]), (&"quarantined".into(), &place.sender.clone().into()));

    let image = place.sparse("vm.mem");
    run(place.send(&receiver.address, "vm1").arg(&image)).failed(1, &["refused here for now; ask its operator"]);
    let said = quarantine(&["clear", "--all", "--json"]);
    assert_eq!((said.code, &said.summary()["cleared"]), (0, &1.into()));
    let said = run(place.send(&receiver.address, "vm1").arg(&image));
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    receiver.stop();
}
