//! Sinks that lie to an honest source: it keeps its guest.

use std::collections::BTreeMap;
use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Offence, Transfer, Trust};
use dwcp_core::session::{Owner, SessionError, SourceConfig};
use dwcp_core::wire::*;
use dwcp_core::{Layout, RegionId};
use tokio::net::TcpListener;

use crate::attacker::Raw;
use crate::seeds::{Chance, seeds};

type Lie = fn(&Offer, &mut Chance) -> Vec<Frame>;

/// A sink that takes an offer and then says `lie`, which may name the transfer; with each seed.
async fn told(lie: Lie, expected: Offence) {
    for chance in seeds() {
        told_once(lie, expected, chance).await;
    }
}

async fn told_once(lie: Lie, expected: Offence, mut chance: Chance) {
    let (own, liar) = (Identity::generate("source").unwrap(), Identity::generate("liar").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let source = Endpoint::new(&own, &Trust::fingerprints([liar.fingerprint()])).unwrap();
    let sink = tokio::spawn(async move {
        let mut control = Raw::accept(listener.accept().await.unwrap().0, &liar).await.unwrap();
        control.greet().await;
        let Frame::Offer(offer) = control.hear().await.unwrap() else { panic!("no OFFER") };
        for frame in lie(&offer, &mut chance) {
            control.say(&frame).await;
        }
        (control.hear_error().await, liar)
    });
    let guest = Arc::new(Memory::new(Layout::new(&[1 << 20]).unwrap()));
    guest.start();
    guest.poke(RegionId(0), 0, 42);
    let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
    let mut session = source.send(&to, transfer, Arc::clone(&guest) as _, SourceConfig::default()).await.unwrap();
    let outcome = session.outcome().await;
    let (error, liar) = sink.await.unwrap();
    assert_eq!(outcome.owner, Owner::Source);
    let Some(SessionError::PeerViolation { code, .. }) = outcome.error else { panic!("{:?}", outcome.error) };
    assert_eq!(error.code, code);
    assert_eq!(source.offences().charged, BTreeMap::from([(expected, 1)]));
    assert_eq!(source.quarantined()[0].peer, liar.fingerprint());
    assert!(guest.is_running(), "the guest never stood still for it");
}

fn accepted(offer: &Offer) -> Frame {
    Frame::Accept(Accept { transfer: offer.transfer, dictionaries: 0, baseline: None })
}

#[tokio::test]
async fn b18_acknowledges_what_it_was_never_sent() {
    let ack = |offer: &Offer, chance: &mut Chance| {
        let lane = LaneId(u16::try_from(chance.between(1, 4)).unwrap());
        let lanes = vec![(lane, chance.magnitude(1_000_000, u64::MAX / 4))];
        vec![accepted(offer), Frame::Ack(Ack { durable: chance.below(2), lanes })]
    };
    told(ack, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b19_ready_before_it_has_anything() {
    let ready = |offer: &Offer, chance: &mut Chance| {
        let Offer { transfer, epoch, .. } = *offer;
        let (root, device_digest, attempt) = (Digest(chance.bytes()), Digest(chance.bytes()), chance.number());
        vec![accepted(offer), Frame::Ready(Ready { transfer, epoch, attempt, root, device_digest })]
    };
    told(ready, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b20_running_of_another_transfer() {
    let running = |offer: &Offer, chance: &mut Chance| {
        vec![accepted(offer), Frame::Running(Running { transfer: TransferId(chance.bytes()), epoch: offer.epoch })]
    };
    told(running, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b06_accept_of_another_transfer() {
    let accept = |_: &Offer, chance: &mut Chance| {
        vec![Frame::Accept(Accept { transfer: TransferId(chance.bytes()), dictionaries: 0, baseline: None })]
    };
    told(accept, Offence::OutOfPlace).await;
}

// spec: O-8
#[tokio::test]
async fn b12_accept_of_a_dictionary_that_was_not_offered() {
    let accept = |offer: &Offer, chance: &mut Chance| {
        let dictionaries = u8::try_from(chance.between(1, 255)).unwrap();
        vec![Frame::Accept(Accept { transfer: offer.transfer, dictionaries, baseline: None })]
    };
    told(accept, Offence::OutOfPlace).await;
}

// spec: O-9
#[tokio::test]
async fn b12_accept_of_a_baseline_that_was_not_offered() {
    let accept = |offer: &Offer, chance: &mut Chance| {
        let baseline = u8::try_from(chance.between(0, 3)).ok();
        vec![Frame::Accept(Accept { transfer: offer.transfer, dictionaries: 0, baseline })]
    };
    told(accept, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b03_have_of_pages_beyond_the_guest() {
    let have = |_: &Offer, chance: &mut Chance| {
        // The guest has 256 pages in one region.
        let leaves = vec![Digest(chance.bytes()); chance.between(1, 8) as usize];
        let first = u32::try_from(chance.magnitude(257 - leaves.len() as u64, u64::from(u32::MAX) - 8)).unwrap();
        let other = Frame::Have(Have { region: RegionId(1), first: 0, leaves: leaves.clone() });
        vec![if chance.percent(20) { other } else { Frame::Have(Have { region: RegionId(0), first, leaves }) }]
    };
    told(have, Offence::OutOfPlace).await;
}
