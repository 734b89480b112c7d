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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::tests::{Desk, desk_of};
    use super::super::{GROUP_PAGES, Journal};
    use super::*;
    use crate::extent::RegionId;
    use crate::session::leaves::leaf;

    fn desk(committer: &Arc<Committer>) -> Desk {
        desk_of(&[2 * 4096 * 4096], &[], Some(Arc::clone(committer)))
    }

    fn note(journal: &Journal, pages: usize) {
        journal.note(RegionId(0), 0, &vec![leaf(&[1; 4096]); pages]);
    }

    fn is_of(keeper: &Weak<Keeper>, journal: &Journal) -> bool {
        std::ptr::eq(keeper.as_ptr(), Arc::as_ptr(&journal.keeper))
    }

    /// What a thread that serves would take, who waits for ever when there is nothing.
    fn next(committer: &Arc<Committer>) -> Weak<Keeper> {
        let (tell, told) = mpsc::channel();
        let committer = Arc::clone(committer);
        std::thread::spawn(move || tell.send(committer.next()));
        told.recv_timeout(Duration::from_secs(60)).expect("a group")
    }

    #[test]
    fn full_groups_go_first_and_others_when_they_have_waited_in_the_order_in_which_they_began() {
        let committer = Arc::new(Committer::default());
        let desks = [(); 4].map(|()| desk(&committer));
        #[expect(clippy::disallowed_methods, reason = "what is tested waits by this clock")]
        let now = Instant::now;
        let began = now();
        for (desk, pages) in desks.iter().zip([1, 2, GROUP_PAGES, GROUP_PAGES]) {
            note(&desk.journal, pages);
        }
        // The group has been asked for.
        note(&desks[1].journal, 1);
        for number in [2, 3, 0, 1] {
            assert!(is_of(&next(&committer), &desks[number].journal), "{number}");
            assert!(number > 1 || now() - began >= GROUP_WAIT);
        }
        let queue = committer.queue.lock().unwrap();
        assert!(queue.full.is_empty() && queue.waiting.is_empty());
    }

    #[test]
    fn a_thread_without_work_is_woken_by_the_next_group() {
        let committer = Arc::new(Committer::default());
        let desk = desk(&committer);
        let (tell, told) = mpsc::channel();
        let thread = Arc::clone(&committer);
        std::thread::spawn(move || {
            for _ in 0..2 {
                let _ = tell.send(thread.next());
            }
        });
        for pages in [1, GROUP_PAGES] {
            note(&desk.journal, pages);
            assert!(is_of(&told.recv_timeout(Duration::from_secs(60)).unwrap(), &desk.journal));
            desk.journal.flush().unwrap();
        }
    }

    #[test]
    fn a_group_that_waits_keeps_no_journal_alive() {
        let committer = Arc::new(Committer::default());
        let desk = desk(&committer);
        note(&desk.journal, 1);
        drop(desk);
        assert!(next(&committer).upgrade().is_none());
    }
}
