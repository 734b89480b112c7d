//! Which page of a baseline has certain bytes: a table of page numbers by their leaves.

use crate::extent::FlatPage;
use crate::session::Leaves;
use crate::wire::Digest;

/// Slots that are looked at for one leaf. Who chooses the bytes of pages can make leaves meet in one place, and shall not
/// make a search long: what is not found within is not known.
const PROBES: usize = 32;
/// No page.
const FREE: u32 = u32::MAX;

/// 4 bytes a slot, at least half of them free. Leaves are kept elsewhere.
#[derive(Debug)]
pub(super) struct ContentTable {
    slots: Vec<u32>,
    used: usize,
}

impl ContentTable {
    /// An empty table that need not grow for so many pages.
    pub(super) fn with_room(pages: u64) -> Self {
        let slots = usize::try_from(pages).unwrap_or(usize::MAX >> 4).saturating_mul(2).next_power_of_two();
        Self { slots: vec![FREE; slots.max(64)], used: 0 }
    }

    /// A page with this leaf.
    pub(super) fn find(&self, leaf: Digest, leaves: &Leaves) -> Option<FlatPage> {
        let known = self.probes(leaf).filter_map(|slot| self.slots.get(slot).copied()).take_while(|page| *page != FREE);
        known.map(FlatPage).find(|page| leaves.get(*page) == leaf)
    }

    /// Remembers a page, whose leaf has been set, unless one with the same leaf is known. Returns whether it is the first.
    pub(super) fn insert(&mut self, page: FlatPage, leaves: &Leaves) -> bool {
        let leaf = leaves.get(page);
        if self.used * 2 >= self.slots.len() {
            self.grow(leaves);
        }
        for slot in self.probes(leaf) {
            match self.slots.get_mut(slot) {
                Some(known) if *known == FREE => {
                    *known = page.0;
                    self.used += 1;
                    return true;
                }
                Some(known) if leaves.get(FlatPage(*known)) == leaf => return false,
                _ => {}
            }
        }
        true
    }

    fn grow(&mut self, leaves: &Leaves) {
        let larger = Self { slots: vec![FREE; self.slots.len() * 2], used: 0 };
        let smaller = std::mem::replace(self, larger);
        for page in smaller.slots.into_iter().filter(|page| *page != FREE) {
            self.insert(FlatPage(page), leaves);
        }
    }

    fn probes(&self, leaf: Digest) -> impl Iterator<Item = usize> + use<> {
        let slots = self.slots.len();
        let start = leaf.0.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let start = usize::try_from(start & u64::from(u32::MAX)).unwrap_or(0);
        (0..PROBES).map(move |step| (start + step) & (slots - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Layout;
    use crate::session::leaves::leaf;

    #[test]
    fn a_page_is_found_by_its_bytes_and_nothing_else_is() {
        let layout = Layout::new(&[4096 * 1000]).unwrap();
        let leaves = Leaves::new(&layout);
        let mut table = ContentTable::with_room(0);
        let of = |page: u32| leaf(&(page % 600).to_le_bytes());
        for page in 0..1000 {
            leaves.set(FlatPage(page), of(page));
            assert_eq!(table.insert(FlatPage(page), &leaves), page < 600, "page {page}");
        }
        for page in 0..1000 {
            assert_eq!(table.find(of(page), &leaves), Some(FlatPage(page % 600)));
        }
        assert_eq!(table.find(leaf(b"something else"), &leaves), None);
    }

    #[test]
    fn leaves_that_meet_in_one_slot_are_given_up() {
        let layout = Layout::new(&[4096 * 100]).unwrap();
        let leaves = Leaves::new(&layout);
        let mut table = ContentTable::with_room(1000);
        for page in 0..100_u32 {
            let mut meeting = [0; 32];
            meeting[31] = u8::try_from(page).unwrap() + 1;
            leaves.set(FlatPage(page), Digest(meeting));
            table.insert(FlatPage(page), &leaves);
        }
        let found = (0..100).filter(|page| table.find(leaves.get(FlatPage(*page)), &leaves).is_some()).count();
        assert_eq!(found, PROBES);
    }
}
