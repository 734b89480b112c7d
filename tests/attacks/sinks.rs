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

/// A sink that takes an offer and then says `lie`, which may name the transfer.
async fn told(lie: impl FnOnce(&Offer) -> Vec<Frame> + Send + 'static, expected: Offence) {
    let (own, liar) = (Identity::generate("source").unwrap(), Identity::generate("liar").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let source = Endpoint::new(&own, &Trust::fingerprints([liar.fingerprint()])).unwrap();
    let sink = tokio::spawn(async move {
        let mut control = Raw::accept(listener.accept().await.unwrap().0, &liar).await.unwrap();
        control.greet().await;
        let Frame::Offer(offer) = control.hear().await.unwrap() else { panic!("no OFFER") };
        for frame in lie(&offer) {
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
    Frame::Accept(Accept { transfer: offer.transfer })
}

#[tokio::test]
async fn b18_acknowledges_what_it_was_never_sent() {
    let ack = Frame::Ack(Ack { durable: 0, lanes: vec![(LaneId(1), 1_000_000)] });
    told(|offer| vec![accepted(offer), ack], Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b19_ready_before_it_has_anything() {
    let ready = |offer: &Offer| {
        let Offer { transfer, epoch, .. } = *offer;
        let (root, device_digest) = (Digest([1; 32]), Digest([2; 32]));
        vec![accepted(offer), Frame::Ready(Ready { transfer, epoch, attempt: 1, root, device_digest })]
    };
    told(ready, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b20_running_of_another_transfer() {
    let running = |offer: &Offer| {
        vec![accepted(offer), Frame::Running(Running { transfer: TransferId([9; 16]), epoch: offer.epoch })]
    };
    told(running, Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b06_accept_of_another_transfer() {
    told(|_| vec![Frame::Accept(Accept { transfer: TransferId([9; 16]) })], Offence::OutOfPlace).await;
}

#[tokio::test]
async fn b03_have_of_pages_beyond_the_guest() {
    let have = Frame::Have(Have { region: RegionId(0), first: 1 << 30, leaves: vec![Digest([0; 32]); 4] });
    told(|_| vec![have], Offence::OutOfPlace).await;
}
