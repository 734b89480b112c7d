//! The dictionaries of a node, and which of them both ends of a transfer hold.

use std::sync::Arc;

use dwcp_hde::{Dictionaries, Dictionary, DictionaryId, MAX_DICTIONARIES};

use crate::wire::Digest;
use crate::wire::limits::MAX_OFFERED_DICTIONARIES;

const _: () = assert!(MAX_OFFERED_DICTIONARIES == MAX_DICTIONARIES, "a block can name all that are offered");

/// What an endpoint was given, best first.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<[Dictionary]>);

impl Held {
    pub(super) fn new(dictionaries: impl IntoIterator<Item = Dictionary>) -> Self {
        Self(dictionaries.into_iter().collect())
    }

    /// Those that a source offers.
    pub(super) fn offered(&self) -> &[Dictionary] {
        self.0.get(..MAX_DICTIONARIES).unwrap_or(&self.0)
    }

    pub(super) fn ids(&self) -> Vec<Digest> {
        self.offered().iter().map(|dictionary| Digest(dictionary.id().0)).collect()
    }

    /// Which of the offered ones are here, a bit each, and they themselves under the numbers of the offer. spec: O-8
    pub(super) fn of(&self, offered: &[Digest]) -> (u8, Dictionaries) {
        let (mut mask, mut found) = (0, Dictionaries::none());
        for (number, id) in (0_u8..).zip(offered.iter().take(MAX_DICTIONARIES)) {
            if let Some(dictionary) = self.0.iter().find(|dictionary| dictionary.id() == DictionaryId(id.0)) {
                mask |= 1 << number;
                found = found.with(number, dictionary);
            }
        }
        (mask, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dictionary(byte: u8) -> Dictionary {
        Dictionary::new(vec![byte; 256]).unwrap()
    }

    // spec: O-8
    #[test]
    fn what_both_have_keeps_the_number_of_the_offer() {
        let held = Held::new([dictionary(1), dictionary(2), dictionary(3)]);
        let offered = [dictionary(9), dictionary(3), dictionary(8), dictionary(1)].map(|one| Digest(one.id().0));
        let (mask, found) = held.of(&offered);
        assert_eq!(mask, 0b1010);
        let numbers = [0, 1, 2, 3].map(|number| found.get(number).cloned());
        assert_eq!(numbers, [None, Some(dictionary(3)), None, Some(dictionary(1))]);
        assert_eq!(Held::default().of(&offered).0, 0);
    }

    #[test]
    fn a_source_offers_its_first_four() {
        let held = Held::new((0..6).map(dictionary));
        let first: Vec<_> = (0..4).map(|byte| Digest(dictionary(byte).id().0)).collect();
        assert_eq!(held.ids(), first);
        assert_eq!(Held::new([dictionary(7)]).ids().len(), 1);
    }
}
