//! Which names are taken, by which transfers, and who waits for them.

use std::collections::HashMap;

use dwcp_core::net::Fingerprint;
use dwcp_core::session::{Phase, Progress};
use dwcp_core::wire::{Name, TransferId};
use tokio::sync::watch;

use super::supersede::Way;

/// One time that a transfer is here: from its offer, or question, to the end of the session that came of it. The next one may begin
/// before all of the last one's news is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stay(u64);

/// Whose an offer is that is being taken, or a session that is followed.
pub(super) struct Held {
    stay: Stay,
    pub(super) peer: Fingerprint,
    pub(super) session: Option<Way>,
    /// Of its session.
    progress: Option<watch::Receiver<Progress>>,
}

impl Held {
    pub(super) fn stay(&self) -> Stay {
        self.stay
    }

    /// All of it is here, and promised to its sender.
    pub(super) fn is_promised(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.borrow().phase == Phase::Handing)
    }
}

/// No name has two transfers, and whoever waits is heard of again. Only the stay that holds a transfer gives anything back.
pub(super) struct Places<O> {
    /// Names that are taken: by a transfer that runs, or by one that was promised.
    names: HashMap<TransferId, Name>,
    /// Offers that are taken, and sessions that are followed.
    held: HashMap<TransferId, Held>,
    /// Offers for the end of the session that holds their name, or for its begin, to ask it: one for the name at most, and one of
    /// the same transfer.
    waiting: HashMap<TransferId, Vec<O>>,
    /// The last one.
    stay: u64,
}

impl<O> Places<O> {
    /// With names that are taken from before.
    pub(super) fn new(names: HashMap<TransferId, Name>) -> Self {
        Self { names, held: HashMap::new(), waiting: HashMap::new(), stay: 0 }
    }

    /// All transfers that have a name.
    pub(super) fn named(&self) -> impl Iterator<Item = TransferId> {
        self.names.keys().copied()
    }

    /// The other transfer that has this name.
    pub(super) fn holder(&self, name: &Name, transfer: TransferId) -> Option<TransferId> {
        self.names.iter().find(|&(&other, taken)| other != transfer && taken == name).map(|(&other, _)| other)
    }

    pub(super) fn held(&self, transfer: TransferId) -> Option<&Held> {
        self.held.get(&transfer)
    }

    /// Whether that is the stay that holds it.
    pub(super) fn is_held_by(&self, transfer: TransferId, stay: Stay) -> bool {
        self.held.get(&transfer).is_some_and(|held| held.stay == stay)
    }

    /// A stay begins, whatever is left of the one before. Its name, if it needs one, is its own from now on.
    pub(super) fn begin(&mut self, transfer: TransferId, peer: Fingerprint, name: Option<Name>) -> Stay {
        self.stay += 1;
        let stay = Stay(self.stay);
        self.names.extend(name.map(|name| (transfer, name)));
        self.held.insert(transfer, Held { stay, peer, session: None, progress: None });
        stay
    }

    /// It has a session.
    pub(super) fn follow(&mut self, transfer: TransferId, stay: Stay, way: Way, progress: watch::Receiver<Progress>) {
        if let Some(held) = self.held.get_mut(&transfer).filter(|held| held.stay == stay) {
            (held.session, held.progress) = (Some(way), Some(progress));
        }
    }

    /// A stay is over. One that was followed by another leaves what that has now.
    pub(super) fn end(&mut self, transfer: TransferId, stay: Stay, keeps_name: bool) -> Vec<O> {
        if !self.is_held_by(transfer, stay) {
            return Vec::new();
        }
        self.held.remove(&transfer);
        if !keeps_name {
            self.names.remove(&transfer);
        }
        self.waiting(transfer)
    }

    pub(super) fn wait(&mut self, transfer: TransferId, offer: O) {
        self.waiting.entry(transfer).or_default().push(offer);
    }

    pub(super) fn is_waited_for(&self, transfer: TransferId) -> bool {
        self.waiting.contains_key(&transfer)
    }

    /// Those who waited for news of it, in their order.
    pub(super) fn waiting(&mut self, transfer: TransferId) -> Vec<O> {
        self.waiting.remove(&transfer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TransferId = TransferId([1; 16]);
    const TWO: TransferId = TransferId([2; 16]);
    const PEER: Fingerprint = Fingerprint([3; 32]);

    fn places() -> (Places<&'static str>, Name) {
        (Places::new(HashMap::new()), Name::new("vm").unwrap())
    }

    /// The image arrived, but that could not be written down: its source asks before the end of the first session is heard of.
    #[test]
    fn a_session_whose_end_is_heard_of_late_takes_nothing_from_the_next() {
        let (mut places, name) = places();
        let first = places.begin(ONE, PEER, Some(name.clone()));
        let second = places.begin(ONE, PEER, Some(name.clone()));
        places.wait(ONE, "for the second");
        assert!(places.end(ONE, first, false).is_empty());
        assert!(places.is_held_by(ONE, second) && !places.is_held_by(ONE, first));
        assert_eq!(places.holder(&name, TWO), Some(ONE), "the name is not another's");
        assert_eq!(places.end(ONE, second, false), ["for the second"]);
        assert_eq!((places.holder(&name, TWO), places.named().count()), (None, 0));
    }

    #[test]
    fn all_who_wait_are_heard_of_again() {
        let (mut places, name) = places();
        let stay = places.begin(ONE, PEER, Some(name));
        places.wait(ONE, "another transfer of its sender");
        places.wait(ONE, "its own, which comes back");
        assert!(places.is_waited_for(ONE) && !places.is_waited_for(TWO));
        assert_eq!(places.end(ONE, stay, false), ["another transfer of its sender", "its own, which comes back"]);
        assert!(!places.is_waited_for(ONE) && places.held(ONE).is_none());
    }

    #[test]
    fn a_doubt_keeps_its_name_and_a_question_about_what_ran_takes_none() {
        let (mut places, name) = places();
        let stay = places.begin(ONE, PEER, Some(name.clone()));
        places.end(ONE, stay, true);
        let asks = places.begin(TWO, PEER, None);
        assert_eq!((places.holder(&name, TWO), places.holder(&name, ONE)), (Some(ONE), None));
        places.end(TWO, asks, false);
        assert_eq!(places.named().collect::<Vec<_>>(), [ONE]);
    }
}
