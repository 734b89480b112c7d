//! Every connection is cut, again and again, at moments that a seed chooses; the transfer goes on.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::panic,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{Guest, Layout, PAGE_BYTES, RegionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections and cuts all of them whenever so many bytes have gone through.
struct Relay {
    address: SocketAddr,
    cuts: watch::Receiver<u64>,
}

impl Relay {
    async fn start(target: SocketAddr, seed: u64, cuts_wanted: u64, every_most: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0_u64);
        let cut = Arc::new(cut);
        let left = Arc::new(AtomicU64::new(next(seed, 0, every_most)));
        tokio::spawn(async move {
            while let Ok((inward, _)) = listener.accept().await {
                let Ok(outward) = TcpStream::connect(target).await else { continue };
                let (cut, left) = (Arc::clone(&cut), Arc::clone(&left));
                tokio::spawn(async move {
                    let mut seen = cut.subscribe();
                    seen.mark_unchanged();
                    let ((a, b), (c, d)) = (inward.into_split(), outward.into_split());
                    let count = |bytes: u64| {
                        let before = left.fetch_sub(bytes, Ordering::SeqCst);
                        let times = *cut.borrow();
                        if before < bytes && times < cuts_wanted {
                            left.store(next(seed, times + 1, every_most), Ordering::SeqCst);
                            cut.send_modify(|times| *times += 1);
                        }
                    };
                    tokio::select! {
                        _ = seen.changed() => {}
                        () = pump(a, d, &count) => {}
                        () = pump(c, b, &count) => {}
                    }
                });
            }
        });
        Self { address, cuts }
    }
}

async fn pump(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, count: &impl Fn(u64)) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(bytes) = from.read(&mut buffer).await {
        if bytes == 0 || to.write_all(&buffer[..bytes]).await.is_err() {
            break;
        }
        count(bytes as u64);
    }
    let _ = to.shutdown().await;
}

fn next(seed: u64, round: u64, most: u64) -> u64 {
    let mut state = (seed << 32 | round).wrapping_add(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        state ^= state >> 31;
        state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    state % most
}

fn write_pages(guest: &Memory, pages: u64, salt: u64) {
    for page in 0..pages {
        for word in 0..512 {
            guest.poke(RegionId(0), page * 4096 + word * 8, next(salt, page * 512 + word, u64::MAX));
        }
    }
}

async fn survives(seed: u64) {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let source = Endpoint::new(&a, &Trust::fingerprints([b.fingerprint()])).unwrap();
    let sink = Endpoint::new(&b, &Trust::fingerprints([a.fingerprint()])).unwrap();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(listener.local_addr(), seed, 6, 3_000_000).await;
    let guest = Arc::new(Memory::new(Layout::new(&[4096 * 2500]).unwrap()));
    write_pages(&guest, 2500, seed);
    guest.start();
    let config = SourceConfig { lanes: 3, shadow_bytes: 1 << 21, ..SourceConfig::default() };
    let receiver = tokio::spawn(async move {
        let Some(Incoming::Offer(incoming)) = listener.accept().await else { panic!("no offer") };
        let arrived = Arc::new(Memory::new(incoming.offer().layout.clone()));
        let mut session = incoming.accept(Arc::clone(&arrived) as Arc<dyn Guest>, SinkConfig::default());
        let outcome = session.outcome().await;
        drop(listener);
        (arrived, outcome)
    });
    let to = relay.address.to_string();
    let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
    // The first handshake may be cut as well; nothing has begun then, and the operator tries again.
    let mut session = loop {
        let again = Transfer { id: transfer.id, name: transfer.name.clone(), kind: transfer.kind };
        let began = source.send(&to, again, Arc::clone(&guest) as Arc<dyn Guest>, config.clone()).await;
        match began {
            Ok(session) => break session,
            Err(error) => assert!(error.is_unreachable(), "seed {seed}: {error}"),
        }
    };
    let writer = std::thread::spawn({
        let guest = Arc::clone(&guest);
        move || {
            let mut round = 0;
            while guest.is_running() {
                round += 1;
                guest.poke(RegionId(0), next(seed, round, 300) * 4096 + round % 512 * 8, round);
                std::thread::park_timeout(Duration::from_micros(100));
            }
        }
    });
    let outcome = session.outcome().await;
    assert!(outcome.owner == Owner::Sink, "seed {seed}: {outcome:?}");
    writer.join().unwrap();
    let (arrived, outcome) = receiver.await.unwrap();
    assert!(outcome.owner == Owner::Sink, "seed {seed}: {outcome:?}");
    let (mut here, mut there) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    for page in 0..2500 {
        guest.read(RegionId(0), page, &mut here).unwrap();
        arrived.read(RegionId(0), page, &mut there).unwrap();
        assert!(here == there, "seed {seed}: page {page} differs");
    }
    let progress = session.progress().borrow().clone();
    assert!(*relay.cuts.borrow() >= 2, "seed {seed}: the relay cut {} times", *relay.cuts.borrow());
    assert!(progress.reconnects + progress.lanes_lost > 0, "seed {seed}: nothing was re-made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_survives_cuts_of_every_connection() {
    for seed in 0..6 {
        survives(seed).await;
    }
}

/// Cut after 100 bytes, then after some hundreds more: within the first handshakes.
#[tokio::test]
async fn a_first_connection_that_is_cut_is_made_again() {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let source = Endpoint::new(&a, &Trust::fingerprints([b.fingerprint()])).unwrap();
    let sink = Endpoint::new(&b, &Trust::fingerprints([a.fingerprint()])).unwrap();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(listener.local_addr(), 1, 2, 600).await;
    let guest = || Arc::new(Memory::new(Layout::new(&[4096 * 10]).unwrap()));
    let receiving = tokio::spawn(async move {
        let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!("no offer") };
        offer.accept(guest(), SinkConfig::default()).outcome().await.owner
    });
    let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
    let session = source.send(&relay.address.to_string(), transfer, guest(), SourceConfig::default()).await;
    assert_eq!(*relay.cuts.borrow(), 2, "nothing was cut");
    assert_eq!(session.unwrap().outcome().await.owner, Owner::Sink);
    assert_eq!(receiving.await.unwrap(), Owner::Sink);
}
