//! A monitor without an async runtime: its own threads send a guest and receive it.
//! `cargo run --example vmm_sync`.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dwcp_core::blocking::{Endpoint, Incoming};
use dwcp_core::guest::Memory;
use dwcp_core::net::{Identity, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{Guest, Layout, RegionId};

const BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = (Identity::generate("a")?, Identity::generate("b")?);
    let source = Endpoint::new(&ours, &Trust::fingerprints([theirs.fingerprint()]))?;
    let sink = Endpoint::new(&theirs, &Trust::fingerprints([ours.fingerprint()]))?;

    let layout = Layout::new(&[BYTES])?;
    let (here, there) = (Arc::new(Memory::new(layout.clone())), Arc::new(Memory::new(layout)));
    // What the guest holds. How one that writes meanwhile waits at the pause is shown by `live_guest`.
    (0..BYTES / 4096).for_each(|page| here.poke(RegionId(0), page * 4096, page));
    here.start();

    // The node that receives, a thread of the monitor there.
    let mut listener = sink.listen("127.0.0.1:0")?;
    let address = listener.local_addr().to_string();
    let arriving = Arc::clone(&there);
    let receiving = thread::spawn(move || -> Result<Owner, String> {
        let incoming = listener.accept().map_err(|error| error.to_string())?;
        let Some(Incoming::Offer(offer)) = incoming else { return Err("no offer came".into()) };
        if offer.offer().layout != *arriving.layout() {
            offer.refuse("this node has 64 MiB for a guest");
            return Err("an offer of another size".into());
        }
        let mut session = offer.accept(arriving, SinkConfig::default());
        session.outcome().map(|outcome| outcome.owner).map_err(|error| error.to_string())
    });

    let transfer = Transfer::new(Name::new("guest")?, GuestKind::Live);
    let mut session = source.send(&address, transfer, here, SourceConfig::default())?;
    // The monitor goes on with what it does, and looks now and then.
    let outcome = loop {
        if let Some(outcome) = session.outcome_within(Duration::from_millis(100))? {
            break outcome;
        }
        let progress = session.progress();
        println!("{} rounds, {} pages left", progress.rounds.len(), progress.pages_left);
    };
    let progress = session.progress();
    drop(session);
    let received = receiving.join().map_err(|_| "the receiving thread died")??;

    assert_eq!((outcome.owner, received), (Owner::Sink, Owner::Sink), "{:?}", outcome.error);
    println!("it runs there, after {} rounds and {:?} of downtime", progress.rounds.len(), progress.downtime);
    Ok(())
}
