//! Moves memory while a thread writes to it: `cargo run --example live_guest`.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{DirtyMap, Guest, GuestError, Layout, Pending, RegionId};

const BYTES: u64 = 64 << 20;
const HOT_PAGES: u64 = 512;

/// Memory whose writer obeys the pause.
struct Written {
    memory: Memory,
    /// Held while one write is made, so that `pause` can wait for it.
    writes: Mutex<u64>,
    stop: AtomicBool,
}

impl Written {
    fn writes(&self) -> MutexGuard<'_, u64> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One numbered write after the other, until the guest is stopped for good.
    fn work(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut writes = self.writes();
            if self.memory.is_running() {
                *writes += 1;
                self.memory.poke(RegionId(0), place(*writes), *writes);
            }
            drop(writes);
            std::thread::yield_now();
        }
    }
}

/// Where a write goes: a few hundred hot pages, spread over the memory.
fn place(write: u64) -> u64 {
    write % HOT_PAGES * (BYTES / HOT_PAGES)
}

impl Guest for Written {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.memory.read(region, first, into)
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        self.memory.harvest(dirty)
    }

    fn pause(&self) -> Result<(), GuestError> {
        // No write is under way once the lock is ours, and none begins after.
        let _writes = self.writes();
        self.memory.pause()
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.memory.resume()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = (Identity::generate("a")?, Identity::generate("b")?);
    let source = Endpoint::new(&ours, &Trust::fingerprints([theirs.fingerprint()]))?;
    let sink = Endpoint::new(&theirs, &Trust::fingerprints([ours.fingerprint()]))?;

    let memory = Memory::new(Layout::new(&[BYTES])?);
    memory.start();
    let guest = Arc::new(Written { memory, writes: Mutex::new(0), stop: AtomicBool::new(false) });
    let writer = std::thread::spawn({
        let guest = Arc::clone(&guest);
        move || guest.work()
    });

    let mut listener = sink.listen("127.0.0.1:0").await?;
    let address = listener.local_addr().to_string();
    let receiving = tokio::spawn(async move {
        let Some(Incoming::Offer(incoming)) = listener.accept().await else { return None };
        let there = Arc::new(Memory::new(incoming.offer().layout.clone()));
        let outcome = incoming.accept(there.clone(), SinkConfig::default()).outcome().await;
        Some((there, outcome))
    });

    // A quarter of the guest for the copies of hot pages, from which deltas are made.
    let config = SourceConfig { shadow_bytes: BYTES / 4, ..SourceConfig::default() };
    let transfer = Transfer::new(Name::new("live")?, GuestKind::Live);
    let mut session = source.send(&address, transfer, guest.clone(), config).await?;
    let outcome = session.outcome().await;
    let progress = session.progress().borrow().clone();
    drop(session);
    guest.stop.store(true, Ordering::Release);
    writer.join().map_err(|_| "the writer died")?;
    let (there, received) = receiving.await?.ok_or("no offer came")?;

    assert_eq!((outcome.owner, received.owner), (Owner::Sink, Owner::Sink), "{:?}", outcome.error);
    assert!(there.is_running() && !guest.memory.is_running(), "it runs there, and there only");
    let last = *guest.writes();
    assert_eq!(there.peek(RegionId(0), place(last)), Some(last), "the last write is there");
    println!(
        "{} writes in {} rounds, {} pages sent again, {} ms of downtime; nothing is lost",
        last,
        progress.rounds.len(),
        progress.pages_resent,
        progress.downtime.unwrap_or_default().as_millis()
    );
    Ok(())
}
