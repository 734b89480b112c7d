//! What a child process does, and says on stdout:
//!
//! ```text
//! sink      listening ADDRESS    held PAGES (from before)    done
//! source    durable PAGES ...    first (a page travels)    rehash GB/S    done PAGES (that travelled)
//! ```

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_core::Guest;
use dwcp_core::guest::{ImageFolder, ImageSource};
use dwcp_core::net::{Endpoint, Identity, Incoming, Session, Transfer, Trust};
use dwcp_core::session::{EffortPolicy, Owner, Progress, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_hde::Effort;

use crate::options::{Role, Run};

/// What the image is called where it arrives.
pub const NAME: &str = "image";

pub fn child(role: &Role) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        match role {
            Role::Sink { folder, identity } => sink(folder, identity).await,
            Role::Source { .. } => source(role).await,
        }
    });
}

fn endpoint(identity: &Path, records: &Path) -> Endpoint {
    let identity = Identity::from_pem(&std::fs::read_to_string(identity).expect("identity")).expect("identity");
    let endpoint = Endpoint::new(&identity, &Trust::fingerprints([identity.fingerprint()])).expect("endpoint");
    endpoint.with_records(records).expect("records")
}

async fn sink(folder: &Path, identity: &Path) {
    let endpoint = endpoint(identity, &folder.join(".dwcp"));
    let folder = ImageFolder::open(folder).expect("a folder");
    let mut listener = endpoint.listen("127.0.0.1:0").await.expect("listen");
    println!("listening {}", listener.local_addr());
    let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!("no offer") };
    let staging = folder.go_on(offer.offer(), offer.peer(), |_| false).expect("a staging file");
    println!("held {}", staging.held_bytes() / 4096);
    let outcome = offer.accept(Arc::new(staging), SinkConfig::default()).outcome().await;
    assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
    println!("done");
}

async fn source(role: &Role) {
    let Role::Source { image, state, identity, address, lanes, ledger, run } = role else { panic!("a source") };
    let endpoint = endpoint(identity, state);
    let mut image = ImageSource::open(image).expect("the image");
    if *ledger {
        image = image.with_ledger(state.join("ledgers")).expect("a ledger");
    }
    let bytes = image.layout().bytes();
    let mut transfer = Transfer::new(Name::new(NAME).expect("a name"), GuestKind::Image);
    // Under the id of the run that was killed.
    let (id, _offering) = endpoint.records().offering(NAME, transfer.id).expect("an offer");
    transfer.id = id;
    let config = SourceConfig {
        lanes: *lanes,
        effort: EffortPolicy::Fixed(Effort::Raw),
        // A slow disk is no reason to end it.
        pause_limit: Duration::from_secs(3600),
        shadow_bytes: 0,
        ..SourceConfig::default()
    };
    let mut session = endpoint.send(address, transfer, Arc::new(image), config).await.expect("send");
    let mut told =
        Told { begun: Instant::now(), run: *run, bytes, durable: 0, first: false, rehash: false, slow: false };
    let mut progress = session.progress();
    let outcome = loop {
        tokio::select! {
            outcome = session.outcome() => break outcome,
            Ok(()) = progress.changed() => {
                let now = progress.borrow_and_update().clone();
                told.step(&now, &session);
            }
        }
    };
    assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
    let now = progress.borrow().clone();
    told.step(&now, &session);
    println!("done {}", now.pages_carried);
}

/// What was told so far.
struct Told {
    begun: Instant,
    run: Run,
    bytes: u64,
    durable: u64,
    first: bool,
    rehash: bool,
    slow: bool,
}

impl Told {
    fn step(&mut self, now: &Progress, session: &Session) {
        if self.run == Run::First && now.pages_durable > self.durable {
            self.durable = now.pages_durable;
            println!("durable {}", self.durable);
            // Fast until shortly before it is killed, and then slow enough to be.
            if !self.slow && self.durable * 4096 > self.bytes / 100 * 85 {
                self.slow = true;
                session.set_bandwidth(NonZeroU64::new(self.bytes / 40));
            }
        }
        let Run::Again { durable } = self.run else { return };
        if !self.first && now.pages_carried > 0 {
            self.first = true;
            println!("first");
        }
        // Nearly all of what is held was found to be the same.
        if !self.rehash && now.pages_same >= durable / 20 * 19 {
            self.rehash = true;
            println!("rehash {:.3}", now.pages_same as f64 * 4096.0 / 1e9 / self.begun.elapsed().as_secs_f64());
        }
    }
}
