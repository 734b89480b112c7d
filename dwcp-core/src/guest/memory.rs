use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{DirtyMap, Guest, GuestError, Pending};
use crate::extent::{Layout, PAGE_BYTES, Region, RegionId};

const WORDS: usize = PAGE_BYTES / 8;

/// A guest in this process's own memory, with a dirty log. For embedders whose state is ordinary
/// memory, for tests and for benchmarks.
///
/// Reading while somebody writes gives torn pages, never undefined behaviour: every word is atomic.
#[derive(Debug)]
pub struct Memory {
    layout: Layout,
    words: Box<[AtomicU64]>,
    dirty: Box<[AtomicU64]>,
    running: AtomicBool,
}

impl Memory {
    /// A stopped guest of zeros.
    pub fn new(layout: Layout) -> Self {
        let pages = usize::try_from(layout.flat_pages()).unwrap_or(usize::MAX);
        let words = pages.saturating_mul(WORDS);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            dirty: (0..pages / 64).map(|_| AtomicU64::new(0)).collect(),
            layout,
            running: AtomicBool::new(false),
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Starts it, as its owner does before a migration.
    pub fn start(&self) {
        self.running.store(true, Ordering::SeqCst);
    }

    /// What the guest itself does: stores a word at a byte offset within a region (rounded down to
    /// 8) and then sets the page's dirty bit. Does nothing outside the region.
    pub fn poke(&self, region: RegionId, offset: u64, value: u64) {
        let Some(bounds) = self.layout.region(region).filter(|bounds| offset < bounds.bytes) else { return };
        let page = u32::try_from(offset / 4096).unwrap_or(u32::MAX);
        let in_page = usize::try_from(offset % 4096 / 8).unwrap_or(0);
        if let Some(word) = self.page(bounds, page, 1).and_then(|words| words.get(in_page)) {
            word.store(value, Ordering::Relaxed);
        }
        let flat = bounds.first + page;
        if let Some(bits) = usize::try_from(flat / 64).ok().and_then(|word| self.dirty.get(word)) {
            bits.fetch_or(1 << (flat % 64), Ordering::Release);
        }
    }

    /// The word at a byte offset within a region (rounded down to 8), if there is one.
    pub fn peek(&self, region: RegionId, offset: u64) -> Option<u64> {
        let bounds = self.layout.region(region)?;
        let page = u32::try_from(offset / 4096).ok()?;
        let words = self.page(bounds, page, 1)?;
        Some(words.get(usize::try_from(offset % 4096 / 8).ok()?)?.load(Ordering::Relaxed))
    }

    fn page(&self, bounds: Region, first: u32, count: usize) -> Option<&[AtomicU64]> {
        let end = u64::from(first) + u64::try_from(count).ok()?;
        if end > u64::from(bounds.pages) {
            return None;
        }
        let start = usize::try_from(bounds.first + first).ok()? * WORDS;
        self.words.get(start..start + count * WORDS)
    }

    fn span(&self, region: RegionId, first: u32, bytes: usize) -> Result<&[AtomicU64], GuestError> {
        let outside = GuestError::Outside { region, first };
        let Some(bounds) = self.layout.region(region) else { return Err(outside) };
        self.page(bounds, first, bytes / PAGE_BYTES).ok_or(outside)
    }
}

impl Guest for Memory {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let words = self.span(region, first, into.len())?;
        for (bytes, word) in into.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Ok(())
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let words = self.span(region, first, from.len())?;
        for (bytes, word) in from.chunks_exact(8).zip(words) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        Ok(())
    }

    /// A word is kept as the number that its bytes are, least significant first: only some hosts have them in this order.
    fn lend(&self, region: RegionId, first: u32, count: u32) -> Option<&[AtomicU64]> {
        let bounds = self.layout.region(region).filter(|_| cfg!(target_endian = "little"))?;
        self.page(bounds, first, usize::try_from(count).ok()?)
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        for (id, region) in self.layout.regions() {
            let first = usize::try_from(region.first / 64).unwrap_or(usize::MAX);
            let words = self.dirty.iter().skip(first).map(|word| match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::AcqRel),
            });
            let own = usize::try_from(region.pages.div_ceil(64)).unwrap_or(usize::MAX);
            dirty.mark_words(id, 0, words.take(own));
        }
        Ok(Pending::Unknown)
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.running.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poke_is_harvested_once_and_read_back() {
        let guest = Memory::new(Layout::new(&[4096 * 3, 4096 * 65]).unwrap());
        guest.poke(RegionId(1), 4096 * 64 + 16, 7);
        guest.poke(RegionId(1), 4096 * 65, 7);
        let mut dirty = DirtyMap::new(guest.layout());
        guest.harvest(&mut dirty).unwrap();
        assert_eq!(dirty.pages().map(|page| page.0).collect::<Vec<_>>(), [64 + 64]);
        let mut again = DirtyMap::new(guest.layout());
        guest.harvest(&mut again).unwrap();
        assert_eq!(again.count(), 0);
        let mut page = vec![1; PAGE_BYTES];
        guest.read(RegionId(1), 64, &mut page).unwrap();
        assert_eq!(page[16], 7);
        assert_eq!(page.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 7);
        assert!(guest.read(RegionId(1), 65, &mut page).is_err());
    }

    #[test]
    fn what_is_lent_are_the_words_of_the_pages() {
        let guest = Memory::new(Layout::new(&[4096 * 3, 4096 * 2]).unwrap());
        guest.poke(RegionId(1), 4096 + 8, 7);
        let lent = guest.lend(RegionId(1), 1, 1).unwrap();
        assert_eq!((lent.len(), lent[1].load(Ordering::Relaxed)), (WORDS, 7));
        assert!(guest.lend(RegionId(1), 1, 2).is_none() && guest.lend(RegionId(2), 0, 1).is_none());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let guest = Memory::new(Layout::new(&[4096 * 4]).unwrap());
        let pages: Vec<u8> = (0..2 * PAGE_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
        guest.write(RegionId(0), 1, &pages).unwrap();
        let mut read = vec![0; 2 * PAGE_BYTES];
        guest.read(RegionId(0), 1, &mut read).unwrap();
        assert_eq!(read, pages);
        assert!(guest.write(RegionId(0), 3, &pages).is_err());
    }
}
