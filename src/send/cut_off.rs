//! What is remembered of a transfer in case that its `dwcp send` is killed, and for how long.

use std::time::{Duration, SystemTime};

use dwcp_core::net::Records;
use dwcp_core::session::Phase;
use dwcp_core::wire::TransferId;
use serde::Serialize;

use super::of_offer_key;
use crate::report::Report;

/// How long after its last begin a transfer that was cut off may go on under its id. Its receiver keeps what had arrived for a
/// day; so this is only for whoever looks for it, unless the receiver may have promised it: that never expires.
pub(crate) const CUT_OFF_KEPT: Duration = Duration::from_secs(30 * 86_400);

#[derive(Serialize)]
struct Forgotten {
    transfer: String,
    name: Option<String>,
    to: Option<String>,
}

/// Forgets what was cut off long ago. Nobody else ever would: a sender is no service.
pub(super) fn forget_old(records: &Records, now: SystemTime, report: &Report) {
    let expired = match records.expire(now, CUT_OFF_KEPT) {
        Ok(expired) => expired,
        // It costs some disk, no more.
        Err(error) => return tracing::warn!(%error, "what was cut off long ago cannot be forgotten"),
    };
    for offered in expired {
        let (transfer, known) = (offered.transfer.to_string(), of_offer_key(&offered.key));
        let what = known.as_ref().map_or_else(String::new, |(name, to)| format!(" ({name} to {to})"));
        report.say(&format!(
            "note: transfer {transfer}{what} was cut off, and not begun again for 30 days: it is forgotten, and its image is \
             as it was"
        ));
        let (name, to) = known.map(|(name, to)| (name.to_string(), to)).unzip();
        report.event("forgotten", &Forgotten { transfer, name, to });
    }
}

/// What is remembered of whether the receiver may have promised a transfer.
pub(super) struct Promise {
    records: Records,
    transfer: TransferId,
    /// None: what a process before this one wrote.
    noted: Option<bool>,
}

impl Promise {
    pub(super) fn of(records: &Records, transfer: TransferId) -> Self {
        Self { records: records.clone(), transfer, noted: None }
    }

    /// A receiver may promise what is paused, and has taken a promise back when pages are sent.
    pub(super) fn note(&mut self, phase: Phase) {
        let may = match phase {
            Phase::Copying => false,
            Phase::Pausing | Phase::Committing | Phase::Handing => true,
            _ => return,
        };
        if self.noted.replace(may) != Some(may) {
            self.remember(may);
        }
    }

    /// It has all of it, and everybody knows. What was last heard of it may be older than that.
    pub(super) fn kept(&self) {
        self.remember(false);
    }

    fn remember(&self, may: bool) {
        if let Err(error) = self.records.may_be_promised(self.transfer, may) {
            tracing::warn!(%error, "whether the receiver may have promised it cannot be remembered");
        }
    }
}
