//! An offer that names baselines: which of them is here, and its pages on their way into the image.

use std::sync::Arc;

use dwcp_core::Guest;
use dwcp_core::baseline::{Baseline, BaselineError, Laying};
use dwcp_core::net::{IncomingOffer, Session};
use dwcp_core::session::SinkConfig;
use serde::Serialize;

use super::Peer;
use crate::baseline::Shelf;
use crate::report::Report;
use crate::units;

/// What this receiver has of the baselines that its sender names.
pub(super) enum Found {
    /// This one; so many of its pages are laid down from now on.
    Here {
        baseline: Arc<Baseline>,
        pages: u64,
    },
    None,
    Failed(BaselineError),
}

/// Null: no baseline is used, and `why` says so.
#[derive(Serialize)]
struct FromBaseline<'a> {
    transfer: String,
    name: &'a str,
    baseline: Option<&'a str>,
    tenant: Option<&'a str>,
    digest: Option<String>,
    /// Those that are not here from before.
    pages: u64,
    why: Option<&'a str>,
}

/// Says that all pages travel, and why.
pub(super) fn tell_none(peer: &Peer, why: &str, report: &Report) {
    report.say(&format!("note: {why}; all pages travel"));
    event_none(peer, why, report);
}

fn event_none(peer: &Peer, why: &str, report: &Report) {
    let Peer { transfer, name, .. } = peer;
    let (transfer, name) = (transfer.to_string(), name.as_str());
    let none = FromBaseline { transfer, name, baseline: None, tenant: None, digest: None, pages: 0, why: Some(why) };
    report.event("baseline", &none);
}

/// Takes an offer, over a baseline that both ends have, if there is one. May block.
pub(super) fn take(
    shelf: &Shelf,
    guest: Arc<dyn Guest>,
    incoming: IncomingOffer,
    config: SinkConfig,
) -> (Session, Found) {
    let (number, baseline) = match shelf.find(&incoming.offer().baselines) {
        Ok(Some(found)) => found,
        Ok(None) => return (incoming.accept(guest, config), Found::None),
        Err(error) => return (incoming.accept(guest, config), Found::Failed(error)),
    };
    let laying = Arc::new(Laying::over(guest, Arc::clone(&baseline)));
    if let Err(error) = laying.begin() {
        tracing::warn!(%error, "there is no thread to lay a baseline down; it is laid at the end");
    }
    let (held, pages) = (laying.held(number), laying.pages());
    let session = incoming.accept_with_baseline(laying, held, config);
    (session, Found::Here { baseline, pages })
}

impl Found {
    /// Says which baseline it is, or that there is none.
    pub(super) fn tell(&self, peer: &Peer, shelf: &Shelf, report: &Report) {
        let Peer { transfer, name, .. } = peer;
        match self {
            Found::Here { baseline, pages } => {
                let about = baseline.about();
                report.say(&format!(
                    "{name} goes on from baseline {}: {} are laid down meanwhile",
                    about.name,
                    units::bytes(pages * 4096)
                ));
                report.event(
                    "baseline",
                    &FromBaseline {
                        transfer: transfer.to_string(),
                        name: name.as_str(),
                        baseline: Some(about.name.as_str()),
                        tenant: Some(about.tenant.as_str()),
                        digest: Some(baseline.digest().to_string()),
                        pages: *pages,
                        why: None,
                    },
                );
            }
            Found::None => {
                let path = shelf.path().display();
                let why = format!("none of the baselines that the sender of {name} names can be used from {path}");
                tell_none(peer, &why, report);
            }
            Found::Failed(error) => {
                let why = format!("no baseline of {} can be used for {name}: {error}", shelf.path().display());
                report.warn(&format!("warning: {why}; all pages travel"));
                event_none(peer, &why, report);
            }
        }
    }
}
