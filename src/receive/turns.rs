//! Turns at what waits for the receiver's disk: so many at a time, and no peer has them all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_core::net::Fingerprint;
use tokio::sync::oneshot;

/// Offers that are staged at a time, each on a thread of those on which sessions do their chores; more wait.
const AT_A_TIME: usize = 16;

/// Whose turn it is. Nobody has more turns than stay free: one peer has half of them at most, the next one half of the rest, so
/// that it takes five who work together to have all. Of those who wait, who has fewest is next, and of these who came first.
///
/// Those who wait are bounded where they come from: the offers of an identity that nobody has accepted. spec: H-11
#[derive(Debug)]
pub(super) struct Turns(Mutex<Table>);

#[derive(Debug)]
struct Table {
    free: usize,
    /// Turns that each has.
    had: HashMap<Fingerprint, usize>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    peer: Fingerprint,
    turn: oneshot::Sender<Turn>,
}

/// A turn, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    /// None: all of them, and nobody's.
    peer: Option<Fingerprint>,
}

impl Turns {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Table { free: AT_A_TIME, had: HashMap::new(), waiting: VecDeque::new() })))
    }

    /// Waits for a turn of this peer. Cancel safe: dropped, it waits no more, and a turn that was just given is another's.
    pub(super) async fn take(self: &Arc<Self>, peer: Fingerprint) -> Option<Turn> {
        let (turn, given) = oneshot::channel();
        self.table().waiting.push_back(Waiting { peer, turn });
        self.give();
        // Who waits is never forgotten.
        given.await.ok()
    }

    /// All turns, if nobody has one, nor waits for one. Whoever comes then waits until this is dropped.
    pub(super) fn all(self: &Arc<Self>) -> Option<Turn> {
        let mut table = self.table();
        table.forget_gone();
        if table.free < AT_A_TIME || !table.waiting.is_empty() {
            return None;
        }
        table.free = 0;
        Some(Turn { turns: Arc::clone(self), peer: None })
    }

    /// Somebody waits.
    pub(super) fn are_wanted(&self) -> bool {
        self.table().waiting.iter().any(|waiting| !waiting.turn.is_closed())
    }

    /// Gives turns to those who wait and may have one.
    fn give(self: &Arc<Self>) {
        loop {
            // Not while the table is locked: a turn that nobody takes any more comes back here.
            let next = self.table().next();
            let Some(Waiting { peer, turn }) = next else { return };
            let _ = turn.send(Turn { turns: Arc::clone(self), peer: Some(peer) });
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget_gone(&mut self) {
        self.waiting.retain(|waiting| !waiting.turn.is_closed());
    }

    fn had_by(&self, peer: Fingerprint) -> usize {
        self.had.get(&peer).copied().unwrap_or(0)
    }

    /// Who has a turn from now on.
    fn next(&mut self) -> Option<Waiting> {
        self.forget_gone();
        let may = |waiting: &Waiting| self.had_by(waiting.peer) < self.free;
        let those = self.waiting.iter().enumerate().filter(|(_, waiting)| may(waiting));
        let (first, _) = those.min_by_key(|(_, waiting)| self.had_by(waiting.peer))?;
        let next = self.waiting.remove(first)?;
        self.free -= 1;
        *self.had.entry(next.peer).or_default() += 1;
        Some(next)
    }

    fn back(&mut self, peer: Option<Fingerprint>) {
        let Some(peer) = peer else {
            self.free = AT_A_TIME;
            return;
        };
        self.free += 1;
        let left = self.had_by(peer).saturating_sub(1);
        if left == 0 {
            self.had.remove(&peer);
        } else {
            self.had.insert(peer, left);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.table().back(self.peer);
        self.turns.give();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asking = Pin<Box<dyn Future<Output = Option<Turn>>>>;

    fn asks(turns: &Arc<Turns>, peer: u8) -> Asking {
        let turns = Arc::clone(turns);
        Box::pin(async move { turns.take(Fingerprint([peer; 32])).await })
    }

    /// Its turn, if it has come.
    fn has(asking: &mut Asking) -> Option<Turn> {
        match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    /// As many as one peer is given of as many as it likes, and those that wait.
    fn greedy(turns: &Arc<Turns>, peer: u8) -> (Vec<Turn>, Vec<Asking>) {
        let mut asking: Vec<_> = (0..100).map(|_| asks(turns, peer)).collect();
        let given = asking.iter_mut().map_while(has).collect::<Vec<_>>();
        let waiting = asking.split_off(given.len());
        (given, waiting)
    }

    // spec: H-11
    #[test]
    fn no_peer_has_more_turns_than_stay_free() {
        let turns = Turns::new();
        let peers: Vec<_> = (0..6).map(|peer| greedy(&turns, peer)).collect();
        let given: Vec<_> = peers.iter().map(|(given, _)| given.len()).collect();
        assert_eq!(given, [8, 4, 2, 1, 1, 0]);
    }

    #[test]
    fn who_has_fewest_turns_is_next_and_then_who_came_first() {
        let turns = Turns::new();
        let (mut first, mut waiting) = greedy(&turns, 0);
        let mut others: Vec<_> = (1..=5).flat_map(|peer| greedy(&turns, peer).0).collect();
        let (mut late, mut later) = (asks(&turns, 6), asks(&turns, 7));
        assert!(has(&mut late).is_none() && has(&mut later).is_none());
        // The peer with seven left has waited for longest.
        drop(first.pop());
        let late_turn = has(&mut late);
        assert!(late_turn.is_some() && has(&mut later).is_none() && has(&mut waiting[0]).is_none());
        drop(others.pop());
        assert!(has(&mut later).is_some());
        // All come back, and nobody waits for ever.
        drop((first, others, late_turn));
        assert_eq!(waiting.iter_mut().map_while(has).collect::<Vec<_>>().len(), 8);
    }

    #[test]
    fn all_turns_are_had_only_while_nobody_has_one_or_waits_for_one() {
        let turns = Turns::new();
        let one = has(&mut asks(&turns, 1));
        assert!(one.is_some() && turns.all().is_none());
        drop(one);
        let all = turns.all();
        assert!(all.is_some() && turns.all().is_none() && !turns.are_wanted());
        let mut asking = asks(&turns, 1);
        assert!(has(&mut asking).is_none() && turns.are_wanted());
        drop(all);
        let one = has(&mut asking);
        assert!(one.is_some() && !turns.are_wanted() && turns.all().is_none());
        drop(one);
        assert!(turns.all().is_some());
    }

    #[test]
    fn who_waits_no_more_leaves_no_turn_behind() {
        let turns = Turns::new();
        let all = turns.all();
        let mut asking = [asks(&turns, 1), asks(&turns, 2)];
        assert!(asking.iter_mut().all(|asking| has(asking).is_none()));
        let [gone, given] = asking;
        drop(gone);
        assert!(turns.are_wanted());
        // It has its turn, and never hears of it.
        drop(all);
        drop(given);
        assert!(!turns.are_wanted() && turns.all().is_some());
    }
}
