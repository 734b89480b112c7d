use super::dirty::PageBits;
use crate::extent::{Extent, FlatPage, Layout, MAX_EXTENT_PAGES, PageMask};

/// A place for one page in the source's copy of what the sink acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// Which pages get a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowFill {
    /// Pages that are sent a second time: a live guest, whose hot pages come again and again, while
    /// the first round pays nothing.
    Hot,
    /// Pages as they are first sent, while there is room: successive snapshots, of which each page
    /// comes seldom but surely.
    First,
}

/// Which page has which slot, and whether the slot holds what the sink holds. The bytes are the
/// workers'.
///
/// A slot is written when its page is encoded and valid only once that is acknowledged; a burial
/// makes it invalid. No slot means no delta, never an error. spec: D-3
#[derive(Debug)]
pub(super) struct Shadow {
    fill: ShadowFill,
    /// Slots that may exist.
    limit: usize,
    slots: Vec<Slot>,
    of_page: SlotMap,
    /// Pages acknowledged at least once.
    seen: PageBits,
    /// The clock hand that looks for a slot to take away.
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    page: FlatPage,
    valid: bool,
    /// Used since the hand last came by.
    recent: bool,
    in_flight: bool,
}

/// Slots that are looked at for one that can be taken away, per page: bounds the work of a decision.
const HAND_STEPS: usize = 8;

impl Shadow {
    pub(super) fn new(layout: &Layout, bytes: u64, fill: ShadowFill) -> Self {
        let limit = usize::try_from(bytes / 4096).unwrap_or(usize::MAX).min(1 << 28);
        Self {
            fill,
            limit,
            slots: Vec::new(),
            of_page: SlotMap::new(layout),
            seen: PageBits::new(layout, false),
            hand: 0,
        }
    }

    /// Slots in use.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slots of an extent that is about to be sent, and which of them hold what the sink holds.
    /// From now on they hold something that nobody has acknowledged.
    pub(super) fn lend(&mut self, layout: &Layout, extent: &Extent) -> (Vec<Option<SlotId>>, PageMask) {
        let mut based = PageMask::EMPTY;
        let mut slots = Vec::new();
        if self.limit == 0 {
            return (slots, based);
        }
        for (index, page) in super::dirty::flat_pages(layout, extent).enumerate() {
            let wanted = self.fill == ShadowFill::First || self.seen.get(page);
            let Some(id) = self.of_page.get(page).or_else(|| wanted.then(|| self.assign(page)).flatten()) else {
                continue;
            };
            if slots.is_empty() {
                slots = vec![None; extent.pages().min(MAX_EXTENT_PAGES)];
            }
            let Some(slot) = self.slot_mut(id) else { continue };
            if slot.valid {
                based.set(index);
            }
            slot.valid = false;
            slot.recent = true;
            slot.in_flight = true;
            if let Some(place) = slots.get_mut(index) {
                *place = Some(id);
            }
        }
        (slots, based)
    }

    /// The extent came back: acknowledged, or buried.
    pub(super) fn settle(&mut self, layout: &Layout, extent: &Extent, slots: &[Option<SlotId>], acknowledged: bool) {
        for &id in slots.iter().flatten() {
            if let Some(slot) = self.slot_mut(id) {
                // Buried: it stays as `lend` left it, invalid.
                slot.valid |= acknowledged;
                slot.in_flight = false;
            }
        }
        if acknowledged && self.limit > 0 {
            self.seen.assign(layout, extent, true);
        }
    }

    /// No slot is what the sink holds.
    pub(super) fn distrust(&mut self) {
        for slot in &mut self.slots {
            slot.valid = false;
        }
    }

    /// The planted bug "shadow valid before ack".
    #[cfg(feature = "planted-bugs")]
    pub(super) fn trust(&mut self, slots: &[Option<SlotId>]) {
        for &id in slots.iter().flatten() {
            if let Some(slot) = self.slot_mut(id) {
                slot.valid = true;
            }
        }
    }

    fn assign(&mut self, page: FlatPage) -> Option<SlotId> {
        let fresh = Slot { page, valid: false, recent: true, in_flight: false };
        if self.slots.len() < self.limit {
            let id = SlotId(u32::try_from(self.slots.len()).ok()?);
            self.slots.push(fresh);
            self.of_page.set(page, Some(id));
            return Some(id);
        }
        if self.fill == ShadowFill::First {
            return None;
        }
        for _ in 0..HAND_STEPS {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            let slot = self.slots.get_mut(at)?;
            if slot.in_flight {
                continue;
            }
            if slot.recent {
                slot.recent = false;
                continue;
            }
            self.of_page.set(slot.page, None);
            *slot = fresh;
            let id = SlotId(u32::try_from(at).ok()?);
            self.of_page.set(page, Some(id));
            return Some(id);
        }
        None
    }

    fn slot_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(id.0).ok()?)
    }
}

/// Which slot a page has: a table of groups of 64 pages, which come into being with their first slot.
/// At most 260 bytes a slot beside its 4096, and nothing is hashed.
#[derive(Debug)]
struct SlotMap {
    groups: Vec<Option<Box<[u32; 64]>>>,
}

/// No slot: there are at most 2^28.
const NO_SLOT: u32 = u32::MAX;

impl SlotMap {
    fn new(layout: &Layout) -> Self {
        let groups = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        Self { groups: vec![None; groups] }
    }

    fn get(&self, page: FlatPage) -> Option<SlotId> {
        let (group, place) = split(page);
        let slot = self.groups.get(group)?.as_ref()?.get(place).copied()?;
        (slot != NO_SLOT).then_some(SlotId(slot))
    }

    fn set(&mut self, page: FlatPage, slot: Option<SlotId>) {
        let (group, place) = split(page);
        let Some(group) = self.groups.get_mut(group) else { return };
        let slots = group.get_or_insert_with(|| Box::new([NO_SLOT; 64]));
        if let Some(entry) = slots.get_mut(place) {
            *entry = slot.map_or(NO_SLOT, |slot| slot.0);
        }
    }
}

fn split(page: FlatPage) -> (usize, usize) {
    let page = usize::try_from(page.0).unwrap_or(usize::MAX);
    (page / 64, page % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{RegionId, Run};

    fn one(page: u32) -> Extent {
        Extent::new(RegionId(0), vec![Run { start: page, count: 1 }]).unwrap()
    }

    // spec: D-3
    #[test]
    fn a_slot_is_a_base_only_after_the_ack() {
        let layout = Layout::new(&[4096 * 64]).unwrap();
        let mut shadow = Shadow::new(&layout, 4096 * 8, ShadowFill::First);
        let (slots, based) = shadow.lend(&layout, &one(5));
        assert!(based.is_empty(), "nothing is there yet");
        shadow.settle(&layout, &one(5), &slots, false);
        let (slots, based) = shadow.lend(&layout, &one(5));
        assert!(based.is_empty(), "buried");
        shadow.settle(&layout, &one(5), &slots, true);
        let (_, based) = shadow.lend(&layout, &one(5));
        assert!(based.get(0), "acknowledged");
        let (_, based) = shadow.lend(&layout, &one(5));
        assert!(based.is_empty(), "in flight again");
    }

    #[test]
    fn hot_pages_take_the_slots_of_cold_ones() {
        let layout = Layout::new(&[4096 * 64]).unwrap();
        let mut shadow = Shadow::new(&layout, 4096 * 2, ShadowFill::Hot);
        let mut send = |page| {
            let (slots, based) = shadow.lend(&layout, &one(page));
            shadow.settle(&layout, &one(page), &slots, true);
            (slots.len(), based.get(0))
        };
        assert_eq!(send(1), (0, false), "the first round gets no slot");
        assert_eq!(send(1), (1, false));
        assert_eq!(send(1), (1, true));
        for page in 2..10 {
            send(page);
            send(page);
        }
        let hits = (0..3).map(|_| send(9)).filter(|&(_, based)| based).count();
        assert!(hits >= 2, "a hot page keeps its slot");
    }
}
