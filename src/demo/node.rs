//! A node of the demo: what a migration service is, made of `dwcp_core::net` alone.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::guest::Guest;
use dwcp_core::net::{Endpoint, Fingerprint, Identity, Incoming, Session, Transfer, Trust};
use dwcp_core::session::{self, Outcome, Record, SessionError, SinkConfig, SourceConfig, Standing};
use dwcp_core::wire::limits::MAX_LANES;
use dwcp_core::wire::{AbortReason, GuestKind, Name};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::live::LiveGuest;
use super::message::{Event, Figures, NodeStart, Order, Owner, SinkStart, SourceStart, orders, report};
use crate::dual::{FlagOptions, dual};

/// The name under which the guest travels.
const NAME: &str = "demo";
/// A peer of the same machine that is gone this long was killed.
const RECONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The same, when it is to be started again.
const RESTART_LIMIT: Duration = Duration::from_secs(10);
/// The sink may hear of the crash of this node's predecessor a moment later than of this node.
const REFUSED_RETRY: Duration = Duration::from_millis(50);
/// Rounds that do not shrink for so long never will.
const STALL_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn source() -> anyhow::Result<()> {
    let (start, orders) = orders::<SourceStart>()?;
    let mut orders = relay(orders)?;
    let guest = LiveGuest::attach(&start.node.place)?;
    #[cfg(feature = "sim")]
    let guest = guest.with_fault(start.fault);
    let guest = Arc::new(guest);
    let endpoint = endpoint(&start.node)?;
    report(&Event::Ready { address: None });
    while orders.recv().await != Some(Order::Go) {}
    let told = match given_up(&endpoint)? {
        Some(record) => {
            let session = endpoint.ask(&start.to, &record, config(&start, None)).await?;
            follow(session, &guest, &mut orders, None).await
        }
        None => migrate(&start, &endpoint, &guest, &mut orders).await?,
    };
    let moved = told.outcome.owner == session::Owner::Sink;
    told.report();
    if moved {
        guest.leave()?;
    }
    idle(orders).await;
    Ok(())
}

/// What this node gave up before a crash: its guest may run elsewhere, so all it may do is ask.
fn given_up(endpoint: &Endpoint) -> anyhow::Result<Option<Record>> {
    let records = endpoint.records().list()?.records;
    Ok(records.into_iter().find(|record| record.standing == Standing::GaveUp))
}

/// Moves the guest, from the first page again as often as either node is started again: the memory of
/// a running guest is in no journal.
async fn migrate(
    start: &SourceStart,
    endpoint: &Endpoint,
    guest: &Arc<LiveGuest>,
    orders: &mut mpsc::Receiver<Order>,
) -> anyhow::Result<Told> {
    if start.node.again {
        // The node before this one may have paused it, and had not given it up.
        guest.resume()?;
    }
    let mut transfer = Transfer::new(Name::new(NAME)?, GuestKind::Live);
    // Under the id of before, so that the sink ends what its lost session holds. spec: O-6
    let (id, _offering) = endpoint.records().offering(NAME, transfer.id)?;
    transfer.id = id;
    let deadline = Instant::now() + RESTART_LIMIT;
    let mut limit = start.until_crash;
    loop {
        let moved: Arc<dyn Guest> = Arc::<LiveGuest>::clone(guest);
        let session = endpoint.send(&start.to, transfer.clone(), moved, config(start, limit)).await?;
        let told = follow(session, guest, orders, start.bandwidth.and_then(NonZeroU64::new)).await;
        match &told.outcome.error {
            Some(SessionError::PeerRestarted) if start.crash => {
                limit = None;
                report(&Event::Again);
            }
            Some(SessionError::PeerAborted { reason: AbortReason::Refused, .. })
                if start.node.again && Instant::now() < deadline =>
            {
                tokio::time::sleep(REFUSED_RETRY).await;
            }
            _ => return Ok(told),
        }
    }
}

/// How to move it; `limit`: until the crash that is to come.
fn config(start: &SourceStart, limit: Option<u64>) -> SourceConfig {
    SourceConfig {
        lanes: start.lanes,
        downtime_budget: Duration::from_millis(start.downtime_ms),
        stall_patience: STALL_PATIENCE,
        reconnect_limit: if start.crash { RESTART_LIMIT } else { RECONNECT_LIMIT },
        bandwidth: limit.or(start.bandwidth).and_then(NonZeroU64::new),
        // A quarter of the guest, as a service would afford.
        shadow_bytes: start.node.place.arena_bytes / 4,
        ..SourceConfig::default()
    }
}

pub(super) async fn sink() -> anyhow::Result<()> {
    let (start, orders) = orders::<SinkStart>()?;
    let mut orders = relay(orders)?;
    let guest = LiveGuest::attach(&start.node.place)?;
    let guest = Arc::new(if start.hold { guest.held() } else { guest });
    let endpoint = endpoint(&start.node)?;
    let records = endpoint.records().list()?.records;
    let mut runs = records.iter().any(|record| record.standing == Standing::Ran);
    let mut clean = !start.node.again;
    let mut listener = endpoint.listen(&start.at).await?;
    report(&Event::Ready { address: Some(listener.local_addr().to_string()) });
    while let Some(incoming) = listener.accept().await {
        let moved: Arc<dyn Guest> = Arc::<LiveGuest>::clone(&guest);
        let session = match incoming {
            Incoming::Offer(offer) if runs => {
                offer.refuse("the guest of this node runs");
                continue;
            }
            Incoming::Offer(offer) => {
                if !clean {
                    tokio::task::block_in_place(|| guest.wipe())?;
                }
                clean = false;
                offer.accept(moved, SinkConfig::default())
            }
            // Its pages have outlived the crash of this node in the guest's own memory.
            Incoming::Ask(ask) => ask.accept(moved, SinkConfig::default()),
            _ => continue,
        };
        let told = follow(session, &guest, &mut orders, None).await;
        runs |= told.outcome.owner != session::Owner::Source;
        told.report();
    }
    idle(orders).await;
    Ok(())
}

fn endpoint(start: &NodeStart) -> anyhow::Result<Endpoint> {
    let identity = Identity::from_pem(&start.identity)?;
    let trusted: Fingerprint = start.trust.parse()?;
    let endpoint = Endpoint::new(&identity, &Trust::fingerprints([trusted]))?;
    let endpoint = endpoint.with_records(&start.records)?.with_lanes(MAX_LANES);
    dual(endpoint, &FlagOptions { flags: start.flags.clone(), node: None })
        .map_err(|failure| anyhow::anyhow!(failure.what))
}

/// How a session ended, and its last figures.
struct Told {
    outcome: Outcome,
    figures: Figures,
}

impl Told {
    fn report(self) {
        let owner = match self.outcome.owner {
            session::Owner::Source => Owner::Source,
            session::Owner::Sink => Owner::Sink,
            session::Owner::InDoubt => Owner::InDoubt,
        };
        let converged = !matches!(self.outcome.error, Some(SessionError::NotConverging(_)));
        let error = self.outcome.error.as_ref().map(ToString::to_string);
        report(&Event::Over { owner, error, converged, figures: Box::new(self.figures) });
    }
}

/// Tells how a session goes, until it is over.
async fn follow(
    mut session: Session,
    guest: &LiveGuest,
    orders: &mut mpsc::Receiver<Order>,
    full: Option<NonZeroU64>,
) -> Told {
    let mut progress = session.progress();
    let outcome = loop {
        tokio::select! {
            outcome = session.outcome() => break outcome,
            Ok(()) = progress.changed() => {
                let figures = Box::new(Figures::of(&progress.borrow_and_update()));
                report(&Event::Moving { figures });
            }
            Some(order) = orders.recv() => match order {
                Order::Cancel => session.cancel(),
                Order::Hurry => session.set_bandwidth(full),
                Order::Go => guest.let_go(),
                _ => {}
            },
        }
    };
    let figures = Figures::of(&progress.borrow_and_update());
    Told { outcome, figures }
}

/// The command closes our input when it has read the outcome; that ends the process.
async fn idle(mut orders: mpsc::Receiver<Order>) {
    while orders.recv().await.is_some() {}
}

fn relay(orders: std::sync::mpsc::Receiver<Order>) -> anyhow::Result<mpsc::Receiver<Order>> {
    let (tell, told) = mpsc::channel(4);
    std::thread::Builder::new().name("relay".into()).spawn(move || {
        while let Ok(order) = orders.recv() {
            if tell.blocking_send(order).is_err() {
                break;
            }
        }
    })?;
    Ok(told)
}
