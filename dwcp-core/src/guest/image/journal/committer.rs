//! The threads that make groups durable: a few for all images of a process, for a thread each would be a thousand
//! threads for a thousand transfers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Keeper;

/// How long the first page of a group waits.
const GROUP_WAIT: Duration = Duration::from_millis(50);
/// Each is nearly always in a sync, and what waits for the disk together goes to it together.
const THREADS: usize = 4;

/// The queue of groups that wait to become durable.
#[derive(Debug, Default)]
pub(in crate::guest::image) struct Committer {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Full groups.
    full: VecDeque<Weak<Keeper>>,
    /// Others, with the time at which they have waited enough: rising, for all wait as long.
    waiting: VecDeque<(Instant, Weak<Keeper>)>,
}

impl Committer {
    /// The one of this process; its threads live as long.
    pub(in crate::guest::image) fn of_process() -> Arc<Self> {
        static COMMITTER: OnceLock<Arc<Committer>> = OnceLock::new();
        Arc::clone(COMMITTER.get_or_init(|| {
            let committer = Arc::new(Self::default());
            for _ in 0..THREADS {
                let committer = Arc::clone(&committer);
                let thread = std::thread::Builder::new().name("dwcp-journal".into());
                if let Err(error) = thread.spawn(move || committer.serve()) {
                    // Groups are made durable by those who need them, only later.
                    tracing::warn!(%error, "a thread for journals cannot be started");
                }
            }
            committer
        }))
    }

    /// A group has begun, or is full.
    #[expect(clippy::disallowed_methods, reason = "a group waits by the clock of its disk, not by a protocol's")]
    pub(super) fn ask(&self, keeper: &Arc<Keeper>, full: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if full {
            queue.full.push_back(Arc::downgrade(keeper));
        } else {
            queue.waiting.push_back((Instant::now() + GROUP_WAIT, Arc::downgrade(keeper)));
        }
        self.changed.notify_one();
    }

    fn serve(&self) {
        loop {
            if let Some(keeper) = self.next().upgrade() {
                // Whoever waits for the group is told; here is nobody to tell.
                let _ = keeper.commit();
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a group waits by the clock of its disk, not by a protocol's")]
    fn next(&self) -> Weak<Keeper> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(keeper) = queue.full.pop_front() {
                return keeper;
            }
            queue = match queue.waiting.front() {
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some((at, _)) => match at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    Some(left) => self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
                    None => match queue.waiting.pop_front() {
                        Some((_, keeper)) => return keeper,
                        None => queue,
                    },
                },
            };
        }
    }
}
