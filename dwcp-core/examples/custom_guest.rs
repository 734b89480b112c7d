//! A guest of one's own: a table of counters, kept behind a lock, with state besides its pages.
//! `cargo run --example custom_guest`.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{DirtyMap, Guest, GuestError, Layout, PAGE_BYTES, Pending, RegionId};

const PAGES: u32 = 1000;

/// What is moved.
struct Table {
    layout: Layout,
    state: Mutex<State>,
}

struct State {
    pages: Vec<[u8; PAGE_BYTES]>,
    /// Pages written since the last harvest.
    dirty: Vec<u32>,
    running: bool,
    /// State that is in no page: it travels with the pause, as registers of a machine do.
    total: u64,
}

impl Table {
    fn new() -> Result<Self, Box<dyn Error>> {
        let pages = vec![[0; PAGE_BYTES]; usize::try_from(PAGES)?];
        let state = State { pages, dirty: Vec::new(), running: false, total: 0 };
        Ok(Self { layout: Layout::new(&[u64::from(PAGES) * 4096])?, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, if it runs here: the page is written and its dirty bit set under one lock.
    fn count(&self, page: u32) -> bool {
        let mut state = self.state();
        if !state.running {
            return false;
        }
        state.total += 1;
        state.dirty.push(page);
        let byte = usize::try_from(page).ok().and_then(|index| state.pages.get_mut(index)?.first_mut());
        byte.is_some_and(|byte| {
            *byte = byte.wrapping_add(1);
            true
        })
    }
}

impl Guest for Table {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let state = self.state();
        let pages = usize::try_from(first).ok().and_then(|first| state.pages.get(first..));
        let pages = pages.ok_or(GuestError::Outside { region, first })?;
        for (into, page) in into.chunks_exact_mut(PAGE_BYTES).zip(pages) {
            into.copy_from_slice(page);
        }
        Ok(())
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let mut state = self.state();
        let pages = usize::try_from(first).ok().and_then(|first| state.pages.get_mut(first..));
        let pages = pages.ok_or(GuestError::Outside { region, first })?;
        for (from, page) in from.chunks_exact(PAGE_BYTES).zip(pages) {
            page.copy_from_slice(from);
        }
        Ok(())
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        // The list is taken before any of its pages is read: a later write shows in the next one.
        for page in std::mem::take(&mut self.state().dirty) {
            dirty.mark(RegionId(0), page, 1);
        }
        Ok(Pending::Unknown)
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.state().running = false;
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.state().running = true;
        Ok(())
    }

    fn save_devices(&self) -> Result<Vec<u8>, GuestError> {
        Ok(self.state().total.to_le_bytes().to_vec())
    }

    fn load_devices(&self, state: &[u8]) -> Result<(), GuestError> {
        let total = state.try_into().map_err(|_| GuestError::Other("the total has 8 bytes".into()))?;
        self.state().total = u64::from_le_bytes(total);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = (Identity::generate("a")?, Identity::generate("b")?);
    let source = Endpoint::new(&ours, &Trust::fingerprints([theirs.fingerprint()]))?;
    let sink = Endpoint::new(&theirs, &Trust::fingerprints([ours.fingerprint()]))?;

    let (here, there) = (Arc::new(Table::new()?), Arc::new(Table::new()?));
    here.resume()?;
    let mut listener = sink.listen("127.0.0.1:0").await?;
    let address = listener.local_addr().to_string();
    let arriving = Arc::clone(&there);
    let receiving = tokio::spawn(async move {
        let Some(Incoming::Offer(incoming)) = listener.accept().await else { return None };
        // A peer's layout is data: take only what this guest has.
        if incoming.offer().layout != *arriving.layout() {
            incoming.refuse("this node takes tables of 1000 pages");
            return None;
        }
        Some(incoming.accept(arriving, SinkConfig::default()).outcome().await)
    });
    // Somebody counts until the table no longer runs here.
    let counting = std::thread::spawn({
        let here = Arc::clone(&here);
        move || (0..PAGES).cycle().take_while(|&page| here.count(page)).count()
    });

    let transfer = Transfer::new(Name::new("table")?, GuestKind::Live);
    let mut session = source.send(&address, transfer, here.clone(), SourceConfig::default()).await?;
    let outcome = session.outcome().await;
    drop(session);
    let counted = u64::try_from(counting.join().map_err(|_| "the counting thread died")?)?;
    let received = receiving.await?.ok_or("no offer came")?;

    assert_eq!((outcome.owner, received.owner), (Owner::Sink, Owner::Sink), "{:?}", outcome.error);
    assert_eq!(there.state().total, counted, "the state besides the pages is there");
    assert!(there.count(0), "it runs there");
    println!("counted {counted} times here; it goes on there with {}", there.state().total);
    Ok(())
}
