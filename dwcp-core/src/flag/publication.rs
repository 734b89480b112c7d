use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::keeper::FlagStats;
use super::snapshot::FlagSnapshot;

/// Where a source puts its snapshots, and sessions find them: read without a lock, waited for with or without a runtime.
#[derive(Clone, Debug)]
pub struct Publication(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Replaced with `waiting` locked: who finds it unchanged under that lock will be woken.
    current: ArcSwap<FlagSnapshot>,
    waiting: Mutex<Waiting>,
    raised: Condvar,
    stats: Mutex<FlagStats>,
}

#[derive(Debug, Default)]
struct Waiting {
    watches: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Publication {
    /// Begins with this one.
    pub fn new(first: FlagSnapshot) -> Self {
        Self(Arc::new(Shared {
            current: ArcSwap::from_pointee(first),
            waiting: Mutex::default(),
            raised: Condvar::new(),
            stats: Mutex::default(),
        }))
    }

    /// Puts a snapshot in the place of the present one, and wakes all who wait, unless it says the same.
    pub fn publish(&self, next: FlagSnapshot) {
        let mut waiting = lock(&self.0.waiting);
        let current = self.0.current.load();
        if current.says_as(&next) {
            return;
        }
        let generation = current.generation + 1;
        self.0.current.store(Arc::new(FlagSnapshot { seen: moment(), generation, ..next }));
        let wakers = std::mem::take(&mut waiting.wakers);
        drop(waiting);
        self.0.raised.notify_all();
        wakers.into_values().for_each(Waker::wake);
    }

    /// Puts the counters in the place of the present ones.
    pub fn count(&self, stats: FlagStats) {
        *lock(&self.0.stats) = stats;
    }

    /// See [`super::FlagSource::snapshot`].
    pub fn snapshot(&self) -> Arc<FlagSnapshot> {
        self.0.current.load_full()
    }

    /// See [`super::FlagSource::watch`].
    pub fn watch(&self) -> FlagWatch {
        let mut waiting = lock(&self.0.waiting);
        waiting.watches += 1;
        let (id, seen) = (waiting.watches, self.0.current.load().generation);
        drop(waiting);
        FlagWatch { shared: Arc::clone(&self.0), id, seen }
    }

    /// See [`super::FlagSource::stats`].
    pub fn stats(&self) -> FlagStats {
        lock(&self.0.stats).clone()
    }
}

/// Without the drivers there is no clock.
#[cfg(feature = "net")]
fn moment() -> Option<Instant> {
    Some(tokio::time::Instant::now().into_std())
}

#[cfg(not(feature = "net"))]
fn moment() -> Option<Instant> {
    None
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells one waiter of changes. What changes several times before anybody looks is one change.
#[derive(Debug)]
pub struct FlagWatch {
    shared: Arc<Shared>,
    id: u64,
    seen: u64,
}

impl FlagWatch {
    /// Whether there is a snapshot that was neither [taken](Self::latest) nor told of by [`changed`](Self::changed).
    /// Lock-free.
    pub fn has_changed(&self) -> bool {
        self.shared.current.load().generation != self.seen
    }

    /// The present snapshot, which from then on is no change any more.
    pub fn latest(&mut self) -> Arc<FlagSnapshot> {
        let latest = self.shared.current.load_full();
        self.seen = latest.generation;
        latest
    }

    /// Waits for a snapshot that is not known yet, in any async runtime. Waits for ever when there will be none.
    ///
    /// Cancel safe: a change that was not told of yet is told of by the next call.
    pub async fn changed(&mut self) -> Arc<FlagSnapshot> {
        poll_fn(|context| self.poll(context)).await;
        self.latest()
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.has_changed() {
            return Poll::Ready(());
        }
        let mut waiting = lock(&self.shared.waiting);
        if self.has_changed() {
            return Poll::Ready(());
        }
        waiting.wakers.insert(self.id, context.waker().clone());
        Poll::Pending
    }

    /// The same for a thread that may block, for as long as `limit`. `None`: nothing changed.
    pub fn wait(&mut self, limit: Duration) -> Option<Arc<FlagSnapshot>> {
        let waiting = lock(&self.shared.waiting);
        let waited = self.shared.raised.wait_timeout_while(waiting, limit, |_| !self.has_changed());
        drop(waited);
        self.has_changed().then(|| self.latest())
    }
}

impl Drop for FlagWatch {
    fn drop(&mut self) {
        lock(&self.shared.waiting).wakers.remove(&self.id);
    }
}
