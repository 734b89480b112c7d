//! The key-value store: an open-addressing table of [`Entry`]s in the arena. Nothing of it lives
//! anywhere else, so that moving the arena moves the store.
//!
//! ```text
//!   page 0: magic, slots          page 1 ..: slots of 256 bytes, 16 a page
//! ```

use anyhow::{Context as _, ensure};

use super::arena::Arena;
use super::entry::{ENTRY_BYTES, Entry, mix};

/// "dwcpdemo" as a little-endian word.
const MAGIC: u64 = 0x6f6d_6564_7063_7764;
const TABLE: u64 = 4096;
const ENTRY_U64: u64 = 256;
const MAGIC_AT: u64 = 0;
const SLOTS_AT: u64 = 8;

/// The store in one guest's arena. Written by one thread at a time: whoever holds the gate.
#[derive(Debug)]
pub(super) struct Store {
    arena: Arena,
    slots: u64,
}

impl Store {
    /// An empty store: what a guest that starts from nothing does.
    pub(super) fn create(arena: Arena) -> anyhow::Result<Self> {
        let slots = slots(arena.bytes());
        ensure!(slots >= 16, "an arena of {} bytes holds no table", arena.bytes());
        arena.store_word(MAGIC_AT, MAGIC)?;
        arena.store_word(SLOTS_AT, slots)?;
        arena.mark_dirty(0);
        Ok(Self { arena, slots })
    }

    /// The store that has arrived with the arena.
    pub(super) fn open(arena: Arena) -> anyhow::Result<Self> {
        let expected = slots(arena.bytes());
        let (magic, slots) = (arena.load_word(MAGIC_AT)?, arena.load_word(SLOTS_AT)?);
        ensure!(magic == MAGIC && slots == expected, "the arena holds no table of {expected} slots");
        Ok(Self { arena, slots })
    }

    /// Writes an entry, then marks its page dirty, and only then may it be acknowledged. An older
    /// number than the one that is there changes nothing, so that a client may ask again.
    pub(super) fn put(&self, entry: &Entry) -> anyhow::Result<()> {
        let (at, found) = self.find(entry.key)?.context("the store is full")?;
        if found && self.arena.load_word(at + 8)? >= entry.sequence {
            return Ok(());
        }
        self.arena.write(at, &entry.to_bytes())?;
        self.arena.mark_dirty(at);
        Ok(())
    }

    /// The bytes under a key as they stand in memory; zeros when there are none.
    pub(super) fn get(&self, key: u64) -> anyhow::Result<[u8; ENTRY_BYTES]> {
        let mut bytes = [0; ENTRY_BYTES];
        if let Some((at, true)) = self.find(key)? {
            self.arena.read(at, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Where a key is, or where it would go (`false`); nowhere when the table is full.
    fn find(&self, key: u64) -> anyhow::Result<Option<(u64, bool)>> {
        let first = mix(key) % self.slots;
        for step in 0..self.slots {
            let at = TABLE + (first + step) % self.slots * ENTRY_U64;
            match self.arena.load_word(at)? {
                0 => return Ok(Some((at, false))),
                found if found == key => return Ok(Some((at, true))),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn slots(arena_bytes: u64) -> u64 {
    arena_bytes.saturating_sub(TABLE) / ENTRY_U64
}

/// Keys that a client may use in an arena of this size: 13 of 16 slots, so that nearly every page
/// holds something and probing stays short.
pub(super) fn keys(arena_bytes: u64) -> u64 {
    slots(arena_bytes) / 16 * 13
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_number_wins_whatever_comes_late() {
        let store = Store::create(Arena::anonymous(1 << 20).unwrap()).unwrap();
        for key in 1..=keys(1 << 20) {
            store.put(&Entry::new(key, key)).unwrap();
        }
        store.put(&Entry::new(5, 10_000)).unwrap();
        store.put(&Entry::new(5, 9_999)).unwrap();
        assert_eq!(store.get(5).unwrap(), Entry::new(5, 10_000).to_bytes());
        assert_eq!(store.get(6).unwrap(), Entry::new(6, 6).to_bytes());
        assert_eq!(store.get(1 << 40).unwrap(), [0; ENTRY_BYTES]);
    }

    #[test]
    fn a_write_marks_its_page() {
        let arena = Arena::anonymous(1 << 20).unwrap();
        let store = Store::create(arena.clone()).unwrap();
        arena.take_dirty().for_each(drop);
        store.put(&Entry::new(5, 1)).unwrap();
        assert_eq!(arena.take_dirty().map(u64::count_ones).sum::<u32>(), 1);
    }
}
