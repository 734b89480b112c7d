//! Whole transfers over real TLS connections on loopback, by the public API only.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::panic,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::sync::Arc;
use std::time::Duration;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, EndpointError, Fingerprint, Identity, Incoming, Listener, Transfer, Trust};
use dwcp_core::session::{Outcome, Owner, Record, SessionError, ShadowFill, SinkConfig, SourceConfig, Standing};
use dwcp_core::wire::{Digest, FenceEpoch, GuestKind, Name, TransferId};
use dwcp_core::{Guest, Layout, PAGE_BYTES, RegionId};
use dwcp_hde::{Method, Stats};

fn pair() -> (Endpoint, Endpoint) {
    let (source, sink, ..) = pair_with_keys();
    (source, sink)
}

fn pair_with_keys() -> (Endpoint, Endpoint, Fingerprint, Fingerprint) {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let source = Endpoint::new(&a, &Trust::fingerprints([b.fingerprint()])).unwrap();
    let sink = Endpoint::new(&b, &Trust::fingerprints([a.fingerprint()])).unwrap();
    (source, sink, a.fingerprint(), b.fingerprint())
}

fn transfer() -> Transfer {
    Transfer::new(Name::new("vm1").unwrap(), GuestKind::Live)
}

/// Takes the next offer into a guest of its layout.
async fn take(listener: &mut Listener, config: SinkConfig) -> (Arc<Memory>, Outcome) {
    let Some(Incoming::Offer(incoming)) = listener.accept().await else { panic!("no offer") };
    let guest = Arc::new(Memory::new(incoming.offer().layout.clone()));
    let outcome = incoming.accept(Arc::clone(&guest) as Arc<dyn Guest>, config).outcome().await;
    (guest, outcome)
}

fn fill(guest: &Memory, seed: u64) {
    let mut state = seed;
    for (id, region) in guest.layout().regions() {
        for page in 0..region.pages {
            // A third zero, a third compressible, a third random.
            for word in 0..PAGE_BYTES / 8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let value = match page % 3 {
                    0 => break,
                    1 => state >> 60,
                    _ => state,
                };
                guest.poke(id, u64::from(page) * 4096 + word as u64 * 8, value);
            }
        }
    }
}

fn assert_equal(one: &Memory, other: &Memory) {
    for (id, region) in one.layout().regions() {
        let (mut a, mut b) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
        for page in 0..region.pages {
            one.read(id, page, &mut a).unwrap();
            other.read(id, page, &mut b).unwrap();
            assert!(a == b, "{id} page {page} differs");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_arrives_as_it_was() {
    let (source, sink) = pair();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let guest = Arc::new(Memory::new(Layout::new(&[4096 * 2000, 4096 * 33]).unwrap()));
    fill(&guest, 1);
    guest.start();
    let config = SourceConfig { lanes: 2, ..SourceConfig::default() };
    let send = source.send(&to, transfer(), Arc::clone(&guest) as Arc<dyn Guest>, config);
    let (mut session, arrived) =
        tokio::join!(async { send.await.unwrap() }, take(&mut listener, SinkConfig::default()));
    let outcome = session.outcome().await;
    assert!(outcome.error.is_none(), "{outcome:?}");
    assert_eq!(outcome.owner, Owner::Sink);
    assert_eq!(arrived.1.owner, Owner::Sink);
    assert!(arrived.0.is_running() && !guest.is_running());
    assert_equal(&guest, &arrived.0);
    let progress = session.progress().borrow().clone();
    assert_eq!(progress.root, progress.peer_root);
    assert!(progress.root.is_some());
    assert!(progress.saved() > 0.4, "zeros and compressible pages: {}", progress.saved());
    let methods = progress.methods;
    assert_eq!((methods.pages(), methods.bytes_out()), (progress.pages_read, progress.wire_bytes));
    assert_eq!(methods.of(Method::Zero).pages, progress.pages_same, "a third is zeros, which the sink has");
    assert_eq!(methods.of(Method::Zero).bytes_out, 0);
    assert!(methods.used().filter(|(method, _)| *method != Method::Zero).all(|(_, share)| share.nanos > 0));
    assert!(methods.saved_without_zero().unwrap() < methods.saved().unwrap());
    // The node's own sum, as an exporter reads it.
    let counted = source.statistics().source.v3;
    assert_eq!((counted.methods, counted.wire_bytes), (methods, progress.wire_bytes));
    assert_eq!(sink.statistics().sink.v3.methods, Stats::default(), "a sink encodes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_all_the_while_arrives_whole() {
    let (source, sink) = pair();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let guest = Arc::new(Memory::new(Layout::new(&[4096 * 4000]).unwrap()));
    fill(&guest, 2);
    guest.start();
    let writer = std::thread::spawn({
        let guest = Arc::clone(&guest);
        move || {
            let mut written = 0_u64;
            while guest.is_running() {
                for _ in 0..20 {
                    let page = written.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 200;
                    guest.poke(RegionId(0), page * 4096 + written % 512 * 8, written);
                    written += 1;
                }
                std::thread::park_timeout(Duration::from_micros(200));
            }
            written
        }
    });
    let config =
        SourceConfig { lanes: 3, shadow_bytes: 1 << 22, shadow_fill: ShadowFill::Hot, ..SourceConfig::default() };
    let send = source.send(&to, transfer(), Arc::clone(&guest) as Arc<dyn Guest>, config);
    let (mut session, arrived) =
        tokio::join!(async { send.await.unwrap() }, take(&mut listener, SinkConfig::default()));
    let outcome = session.outcome().await;
    assert!(outcome.error.is_none(), "{outcome:?}");
    assert!(writer.join().unwrap() > 0);
    assert_equal(&guest, &arrived.0);
    let progress = session.progress().borrow().clone();
    assert!(progress.pages_resent > 0 && progress.rounds.len() >= 2, "{progress:?}");
}

/// The same promise, as either end remembers it.
fn record(standing: Standing, peer: Fingerprint) -> Record {
    Record {
        transfer: TransferId([9; 16]),
        epoch: FenceEpoch(1),
        attempt: 1,
        root: Digest([7; 32]),
        name: Name::new("vm1").unwrap(),
        layout: Layout::new(&[4096]).unwrap(),
        peer,
        standing,
    }
}

// spec: S-8
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_ran_says_so_by_its_record_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, sink, a, b) = pair_with_keys();
    let sink = sink.with_records(folder.path()).unwrap();
    sink.records().store(&record(Standing::Ran, a)).unwrap();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let guest = Arc::new(Memory::new(Layout::new(&[4096]).unwrap()));
    let answer = tokio::spawn({
        let guest = Arc::clone(&guest);
        async move {
            let Some(Incoming::Ask(ask)) = listener.accept().await else { panic!("no question") };
            assert_eq!(ask.record().standing, Standing::Ran);
            ask.accept(guest, SinkConfig::default()).outcome().await
        }
    });
    let mut session = source.ask(&to, &record(Standing::GaveUp, b), SourceConfig::default()).await.unwrap();
    let outcome = session.outcome().await;
    assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
    assert_eq!(answer.await.unwrap().owner, Owner::Sink);
    assert!(!guest.is_running(), "it was started when it was handed over, not now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_turned_away_leaves_the_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let (source, sink, a, b) = pair_with_keys();
    let sink = sink.with_records(folder.path()).unwrap();
    sink.records().store(&record(Standing::Ready, a)).unwrap();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let answer = tokio::spawn(async move {
        let Some(Incoming::Ask(ask)) = listener.accept().await else { panic!("no question") };
        ask.refuse("cannot be found here");
        listener
    });
    let mut session = source.ask(&to, &record(Standing::GaveUp, b), SourceConfig::default()).await.unwrap();
    let outcome = session.outcome().await;
    assert_eq!(outcome.owner, Owner::InDoubt);
    let told =
        matches!(&outcome.error, Some(SessionError::PeerReports(frame)) if frame.text.contains("cannot be found"));
    assert!(told, "{outcome:?}");
    drop(answer.await.unwrap());
}

// spec: P-3
#[tokio::test(flavor = "multi_thread")]
async fn a_source_asks_nobody_but_the_peer_that_it_gave_the_guest_to() {
    let (source, sink, _, b) = pair_with_keys();
    let listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let other = Fingerprint([1; 32]);
    let error = source.ask(&to, &record(Standing::GaveUp, other), SourceConfig::default()).await.unwrap_err();
    let named = matches!(&error, EndpointError::Unauthorised { what, .. }
        if what.contains(&b.to_string()) && what.contains(&other.to_string()));
    assert!(named, "{error}");
}
