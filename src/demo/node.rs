//! A node of the demo: what a migration service is, made of `dwcp_core::net` alone.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::guest::Guest;
use dwcp_core::net::{Endpoint, Fingerprint, Identity, Incoming, Session, Transfer, Trust};
use dwcp_core::session::{self, Outcome, SessionError, SinkConfig, SourceConfig};
use dwcp_core::wire::limits::MAX_LANES;
use dwcp_core::wire::{GuestKind, Name};
use tokio::sync::mpsc;

use super::live::LiveGuest;
use super::message::{Event, Figures, NodeStart, Order, Owner, SourceStart, orders, report};

/// The name under which the guest travels.
const NAME: &str = "demo";
/// A peer of the same machine that is gone this long was killed.
const RECONNECT_LIMIT: Duration = Duration::from_secs(3);
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
    let transfer = Transfer::new(Name::new(NAME)?, GuestKind::Live);
    let moved: Arc<dyn Guest> = Arc::<LiveGuest>::clone(&guest);
    let session = endpoint.send(&start.to, transfer, moved, config(&start)).await?;
    let outcome = follow(session, &mut orders).await;
    if outcome.owner == session::Owner::Sink {
        guest.leave()?;
    }
    idle(orders).await;
    Ok(())
}

fn config(start: &SourceStart) -> SourceConfig {
    SourceConfig {
        lanes: start.lanes,
        downtime_budget: Duration::from_millis(start.downtime_ms),
        stall_patience: STALL_PATIENCE,
        reconnect_limit: RECONNECT_LIMIT,
        bandwidth: start.bandwidth.and_then(NonZeroU64::new),
        // A quarter of the guest, as a service would afford.
        shadow_bytes: start.node.place.arena_bytes / 4,
        ..SourceConfig::default()
    }
}

pub(super) async fn sink() -> anyhow::Result<()> {
    let (start, orders) = orders::<NodeStart>()?;
    let mut orders = relay(orders)?;
    let guest: Arc<dyn Guest> = Arc::new(LiveGuest::attach(&start.place)?);
    let mut listener = endpoint(&start)?.listen("127.0.0.1:0").await?;
    report(&Event::Ready { address: Some(listener.local_addr().to_string()) });
    while let Some(incoming) = listener.accept().await {
        if let Incoming::Offer(offer) = incoming {
            let session = offer.accept(Arc::clone(&guest), SinkConfig::default());
            follow(session, &mut orders).await;
        }
    }
    idle(orders).await;
    Ok(())
}

fn endpoint(start: &NodeStart) -> anyhow::Result<Endpoint> {
    let identity = Identity::from_pem(&start.identity)?;
    let trusted: Fingerprint = start.trust.parse()?;
    Ok(Endpoint::new(&identity, &Trust::fingerprints([trusted]))?.with_records(&start.records)?.with_lanes(MAX_LANES))
}

/// Tells how a session goes, until it is over.
async fn follow(mut session: Session, orders: &mut mpsc::Receiver<Order>) -> Outcome {
    let mut progress = session.progress();
    let outcome = loop {
        tokio::select! {
            outcome = session.outcome() => break outcome,
            Ok(()) = progress.changed() => {
                let figures = Box::new(Figures::of(&progress.borrow_and_update()));
                report(&Event::Moving { figures });
            }
            Some(Order::Cancel) = orders.recv() => session.cancel(),
        }
    };
    let owner = match outcome.owner {
        session::Owner::Source => Owner::Source,
        session::Owner::Sink => Owner::Sink,
        session::Owner::InDoubt => Owner::InDoubt,
    };
    let converged = !matches!(outcome.error, Some(SessionError::NotConverging(_)));
    let error = outcome.error.as_ref().map(ToString::to_string);
    let figures = Box::new(Figures::of(&progress.borrow_and_update()));
    report(&Event::Over { owner, error, converged, figures });
    outcome
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
