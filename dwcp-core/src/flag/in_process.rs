use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::keeper::{FlagStats, Keeper, Refusal};
use super::node::NodeName;
use super::publication::{FlagWatch, Publication};
use super::snapshot::{FlagSnapshot, Origin};
use super::{FlagDocument, FlagSource, Reason, Why};
use crate::session::Time;

/// A source that never changes.
#[derive(Clone, Debug)]
pub struct Constant(Publication);

impl Constant {
    /// Version 3: what a node does where no source is configured.
    pub fn v3() -> Self {
        Self(Publication::new(FlagSnapshot::fixed(true, Why::Fixed, Origin::Constant)))
    }

    /// Version 1, whatever a document says: what `DWCP_FORCE_V1=1` asks for.
    pub fn forced_v1() -> Self {
        Self::forced_v1_because(Reason::Operator)
    }

    /// The same for a reason: one that [discards what was applied](Reason::discards_applied) does so here, too.
    pub fn forced_v1_because(reason: Reason) -> Self {
        let forced = FlagSnapshot::fixed(false, Why::Forced, Origin::Environment);
        Self(Publication::new(FlagSnapshot { reason, ..forced }))
    }
}

impl FlagSource for Constant {
    fn snapshot(&self) -> Arc<FlagSnapshot> {
        self.0.snapshot()
    }

    fn watch(&self) -> FlagWatch {
        self.0.watch()
    }

    fn stats(&self) -> FlagStats {
        self.0.stats()
    }
}

/// A source that another part of this process feeds, such as a control plane. Before the first document: version 1.
#[derive(Debug)]
pub struct InProcess {
    keeper: Mutex<Keeper>,
    publication: Publication,
}

impl InProcess {
    /// For this node. `max_stale` is for how long the last document is obeyed after [`lost`](Self::lost).
    pub fn new(node: NodeName, max_stale: Duration) -> Self {
        let keeper = Keeper::new(node, Origin::InProcess, max_stale, None);
        let publication = Publication::new(keeper.snapshot());
        Self { keeper: Mutex::new(keeper), publication }
    }

    /// The document that holds from now on. When this returns every session that looks sees it.
    ///
    /// # Errors
    /// It is older than the present one, or another of the same version.
    pub fn set(&self, document: FlagDocument) -> Result<(), Refusal> {
        let mut keeper = self.lock();
        let taken = keeper.take(document);
        self.publish(&keeper);
        taken
    }

    /// Whoever feeds this source cannot learn whether there is a newer document, because of `why`.
    pub fn lost(&self, now: Time, why: &str) {
        let mut keeper = self.lock();
        keeper.fail(now, &Refusal::Unreadable(why.to_owned()));
        self.publish(&keeper);
    }

    /// Time has passed. After [`lost`](Self::lost) somebody must say so at [`deadline`](Self::deadline) at least.
    pub fn tick(&self, now: Time) {
        let mut keeper = self.lock();
        keeper.tick(now);
        self.publish(&keeper);
    }

    /// When time alone changes the decision.
    pub fn deadline(&self) -> Option<Time> {
        self.lock().deadline()
    }

    /// In the order in which the keeper was told: the lock is held.
    fn publish(&self, keeper: &MutexGuard<'_, Keeper>) {
        self.publication.count(keeper.stats());
        self.publication.publish(keeper.snapshot());
    }

    fn lock(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlagSource for InProcess {
    fn snapshot(&self) -> Arc<FlagSnapshot> {
        self.publication.snapshot()
    }

    fn watch(&self) -> FlagWatch {
        self.publication.watch()
    }

    fn stats(&self) -> FlagStats {
        self.publication.stats()
    }
}
