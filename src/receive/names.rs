//! Names that an offer cannot have, and what both operators are told of that.

use dwcp_core::GuestError;
use dwcp_core::wire::{Name, TransferId};

use super::Desk;
use super::places::Held;

impl Desk<'_> {
    /// Why a name cannot be had, and for this operator who has it: a peer has no business with another's transfer.
    pub(super) fn name_taken(&self, other: TransferId, name: &Name) -> GuestError {
        let dir = self.args.dir.display();
        let held = self.places.held(other);
        // One whose sender was lost waits for it in its session, for as long as it takes. What has no session was promised
        // before.
        let promised = held.is_none_or(Held::is_promised);
        let (who, what) = if self.names_legacy(other) {
            ("is what comes over version 1 (--v1)".to_owned(), "for another sender; send under another name".to_owned())
        } else if promised {
            (
                format!(
                    "is all here and waits for its sender's word, which comes in a moment if that still runs: else have it send \
                     it again with the same words; only if it will not come back, stop this receiver and run: dwcp resolve \
                     {other} --dir {dir}"
                ),
                "by another transfer, which is all here and waits for its sender's word; send under another name, or ask \
                 the operator of the receiver"
                    .to_owned(),
            )
        } else {
            let from = held.map_or(String::new(), |held| format!(", from {}", held.peer));
            (
                format!("is under way here{from}: nothing to do, the name is free when that has ended"),
                format!(
                    "by another transfer that is under way, or whose sender was lost less than {} s ago; wait until it has \
                     ended, or send under another name",
                    self.config().orphan_limit.as_secs()
                ),
            )
        };
        self.report.warn(&format!("refused {name}: transfer {other} holds that name; it {who}"));
        GuestError::Other(format!("the name {name} is taken here {what}"))
    }

    /// Whether a name is kept for what comes over version 1.
    fn names_legacy(&self, transfer: TransferId) -> bool {
        self.legacy.as_ref().is_some_and(|port| port.name().0 == transfer)
    }
}
