//! `--keep-baseline`: what arrived becomes a baseline, behind the back of its transfer, which is over by then.

use std::collections::HashMap;
use std::path::PathBuf;

use dwcp_core::wire::Digest;
use tokio::task::{self, JoinSet};

use crate::baseline::Keeper;
use crate::report::Report;

/// An image that arrived.
pub(super) struct Image {
    pub(super) transfer: String,
    pub(super) path: PathBuf,
    pub(super) root: Option<Digest>,
}

/// Images that are being kept.
pub(super) struct Keeping {
    keeper: Option<Keeper>,
    report: Report,
    tasks: JoinSet<()>,
    /// Of which transfer each task is.
    transfers: HashMap<task::Id, String>,
    given_up: bool,
}

impl Keeping {
    pub(super) fn new(keeper: Option<Keeper>, report: &Report) -> Self {
        Self { keeper, report: report.clone(), tasks: JoinSet::new(), transfers: HashMap::new(), given_up: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Begins to keep an image, if any are to be kept.
    pub(super) fn begin(&mut self, image: Image) {
        let Some(keeper) = &self.keeper else { return };
        let Image { transfer, path, root } = image;
        if self.given_up {
            keeper.stopped(&transfer, &self.report);
            return;
        }
        let (keeper, report, of) = (keeper.clone(), self.report.clone(), transfer.clone());
        let task = self.tasks.spawn(async move { keeper.keep(&of, path, root, &report).await });
        self.transfers.insert(task.id(), transfer);
    }

    /// Waits until one more is kept, or told that it is not. `None`: there is none. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<()> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.transfers.remove(&id);
        Some(())
    }

    /// Nobody waits for those that are not kept by now. What is written of one when the process ends is garbage that
    /// `dwcp baseline gc` removes.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.tasks.abort_all();
        self.tasks.detach_all();
        for (_, transfer) in self.transfers.drain() {
            if let Some(keeper) = &self.keeper {
                keeper.stopped(&transfer, &self.report);
            }
        }
    }
}
