//! The memory of the guest, which its process and the node share.
//!
//! ```text
//!   | dirty bits, one a page, padded to a page | arena ...                      |
//!     bit of page p: word p / 64, bit p % 64     page p at 4096 * p
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use dwcp_core::PAGE_BYTES;
use dwcp_core::guest::MappedRegion;

use super::message::{GuestPlace, open_shared};

/// A mapping of one guest's memory. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Arena {
    memory: Arc<MappedRegion>,
    /// Where page 0 is: the bytes that the dirty bits take.
    start: usize,
    bytes: usize,
}

impl Arena {
    /// Memory for an arena of so many bytes, a multiple of the page, all zeros.
    pub(super) fn create(name: &str, arena_bytes: u64) -> anyhow::Result<OwnedFd> {
        let bytes = usize::try_from(arena_bytes)?;
        let all = u64::try_from(bitmap_bytes(bytes) + bytes)?;
        MappedRegion::create_memfd(name, all).with_context(|| format!("cannot make {all} bytes of shared memory"))
    }

    /// Maps what another process made.
    pub(super) fn open(place: &GuestPlace) -> anyhow::Result<Self> {
        let bytes = usize::try_from(place.arena_bytes)?;
        let file = open_shared(&place.arena)?;
        let start = bitmap_bytes(bytes);
        let memory = MappedRegion::map(file.as_fd(), 0, start + bytes).context("cannot map the guest's memory")?;
        Ok(Self { memory: Arc::new(memory), start, bytes })
    }

    #[cfg(test)]
    pub(super) fn anonymous(bytes: usize) -> anyhow::Result<Self> {
        let start = bitmap_bytes(bytes);
        let (memory, _) = MappedRegion::anonymous("dwcp-demo-test", start + bytes)?;
        Ok(Self { memory: Arc::new(memory), start, bytes })
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(self.offset(at), into)
    }

    pub(super) fn write(&self, at: u64, from: &[u8]) -> std::io::Result<()> {
        self.memory.write(self.offset(at), from)
    }

    pub(super) fn load_word(&self, at: u64) -> anyhow::Result<u64> {
        Ok(self.word(at)?.load(Ordering::Relaxed))
    }

    pub(super) fn store_word(&self, at: u64, value: u64) -> anyhow::Result<()> {
        self.word(at)?.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Says that the page at this byte has been written. After the write: a page that is copied
    /// between the two is copied again.
    pub(super) fn mark_dirty(&self, at: u64) {
        let page = self.offset(at).saturating_sub(self.start) / PAGE_BYTES;
        if let Some(word) = self.dirty_words().get(page / 64) {
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }

    /// The dirty bits, each word cleared as it is read.
    pub(super) fn take_dirty(&self) -> impl Iterator<Item = u64> + '_ {
        self.dirty_words().iter().map(|word| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::AcqRel),
        })
    }

    pub(super) fn dirty_words(&self) -> &[AtomicU64] {
        self.memory.atomics(0, self.bytes.div_ceil(PAGE_BYTES * 64)).unwrap_or_default()
    }

    fn word(&self, at: u64) -> anyhow::Result<&AtomicU64> {
        self.memory.atomic_u64(self.offset(at)).with_context(|| format!("no word at byte {at} of the arena"))
    }

    /// A byte of the arena in the mapping; an address beyond every mapping when it cannot be one.
    fn offset(&self, at: u64) -> usize {
        usize::try_from(at).map_or(usize::MAX, |at| at.saturating_add(self.start))
    }
}

fn bitmap_bytes(arena_bytes: usize) -> usize {
    arena_bytes.div_ceil(PAGE_BYTES * 8).next_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_bit_is_taken_once_and_is_not_in_the_arena() {
        let arena = Arena::anonymous(100 * PAGE_BYTES).unwrap();
        arena.write(70 * 4096 + 5, b"abc").unwrap();
        arena.mark_dirty(70 * 4096 + 5);
        assert_eq!(arena.take_dirty().collect::<Vec<_>>(), [0, 1 << 6]);
        assert_eq!(arena.take_dirty().collect::<Vec<_>>(), [0, 0]);
        assert_eq!(arena.load_word(0).unwrap(), 0);
        assert!(arena.write(100 * 4096 - 1, b"ab").is_err());
        assert!(arena.load_word(100 * 4096).is_err());
        assert!(arena.load_word(u64::MAX).is_err());
    }
}
