//! DWCP's two ends.

use std::sync::Arc;
use std::time::Instant;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Fingerprint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{EffortPolicy, Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name, PeerLimits};
use dwcp_core::{Guest, Layout, RegionId};

use crate::corpus;
use crate::measure::Figures;
use crate::options::{Case, Role};
use crate::usage;

/// One identity for both ends keeps the harness small; they still authenticate each other.
fn endpoint(role: &Role) -> Endpoint {
    let identity = Identity::from_pem(&std::fs::read_to_string(&role.identity).expect("identity")).expect("identity");
    let trusted: Fingerprint = identity.fingerprint();
    let endpoint = Endpoint::new(&identity, &Trust::fingerprints([trusted])).expect("endpoint");
    endpoint.with_congestion("cubic")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Fills guest memory with what the case says.
pub fn guest(case: &Case) -> Memory {
    match case {
        Case::Random { bytes } => {
            let guest = Memory::new(Layout::new(&[*bytes]).expect("layout"));
            let mut page = vec![0; 1 << 20];
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            for first in (0..bytes / 4096).step_by(256) {
                randomise(&mut page, &mut state);
                guest.write(RegionId(0), first as u32, &page).expect("a write");
            }
            guest
        }
        Case::Corpus { folder, name, times } => {
            let bytes = corpus::first_snapshot(folder, name).repeat(*times);
            let guest = Memory::new(Layout::new(&[bytes.len() as u64]).expect("layout"));
            guest.write(RegionId(0), 0, &bytes).expect("a write");
            guest
        }
    }
}

pub fn randomise(page: &mut [u8], state: &mut u64) {
    for word in page.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn effort(word: &str) -> EffortPolicy {
    match word {
        "auto" => EffortPolicy::Auto,
        "raw" => EffortPolicy::Fixed(dwcp_hde::Effort::Raw),
        "fast" => EffortPolicy::Fixed(dwcp_hde::Effort::Fast),
        "light" => EffortPolicy::Fixed(dwcp_hde::Effort::Light),
        "balanced" => EffortPolicy::Fixed(dwcp_hde::Effort::Balanced),
        level => EffortPolicy::Fixed(dwcp_hde::Effort::Thorough(level.parse().expect("an effort"))),
    }
}

pub fn sink(role: &Role, ready: impl FnOnce(String)) -> Figures {
    runtime().block_on(async {
        let mut listener = endpoint(role).listen(&role.address).await.expect("listen");
        let bytes = match &role.case {
            Case::Random { bytes } => *bytes,
            Case::Corpus { folder, name, times } => (corpus::first_snapshot(folder, name).len() * times) as u64,
        };
        let guest = Arc::new(Memory::new(Layout::new(&[bytes]).expect("layout")));
        // Touched before the clock starts, like the memory of the peers' sinks.
        for page in 0..bytes.div_ceil(4096) {
            guest.poke(RegionId(0), page * 4096, 1);
            guest.poke(RegionId(0), page * 4096, 0);
        }
        ready(listener.local_addr().to_string());
        let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!("no offer") };
        let cpu = usage::cpu_seconds();
        let mut session = offer.accept(guest, SinkConfig::default());
        let outcome = session.outcome().await;
        assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
        Figures::since(cpu, bytes, 0.0, 0)
    })
}

pub fn source(role: &Role, go: impl FnOnce()) -> Figures {
    let guest = Arc::new(guest(&role.case));
    let bytes = guest.layout().bytes();
    runtime().block_on(async {
        let endpoint = endpoint(role);
        go();
        let cpu = usage::cpu_seconds();
        let start = Instant::now();
        let transfer = Transfer::new(Name::new("bench").expect("a name"), GuestKind::Live);
        let limits = PeerLimits { extent_pages: role.extent_pages, lanes: 64 };
        let config =
            SourceConfig { lanes: role.lanes, limits, effort: effort(&role.effort), ..SourceConfig::default() };
        let mut session = endpoint.send(&role.address, transfer, guest, config).await.expect("send");
        let outcome = session.outcome().await;
        let seconds = start.elapsed().as_secs_f64();
        assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
        let wire = session.progress().borrow().wire_bytes;
        Figures::since(cpu, bytes, seconds, wire)
    })
}
