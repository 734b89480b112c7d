//! The guest that is moved: a page is one number instead of 4096 bytes.

use bytes::Bytes;
use dwcp_core::extent::FlatPage;
use dwcp_core::session::leaves;
use dwcp_core::wire::Digest;
use dwcp_core::{DirtyMap, Layout, Pending};

use crate::plan::Writes;
use crate::rng::Rng;

/// The content of a page: 0 is a page of zeros, any other number stands for itself.
pub type Content = u64;

/// See `Writes::Zipf`.
const SCATTER: u64 = 1_000_003;

/// The digest of a content.
pub fn leaf(content: Content) -> Digest {
    if content == 0 { leaves::zero_leaf() } else { leaves::leaf(&content.to_le_bytes()) }
}

/// A machine in a process of its own: it survives a crash of the node that moves it.
#[derive(Debug)]
pub struct SimGuest {
    layout: Layout,
    valid: Vec<u32>,
    pages: Vec<Content>,
    dirty: Vec<bool>,
    running: bool,
    /// Up to when its writes have been made.
    written_to: u64,
    writes_per_second: u64,
    /// Pages that get most of the writes.
    hot: u64,
    writer: Writes,
    version: u64,
    rng: Rng,
    /// Harvests that will answer [`Pending::More`].
    more: u32,
    /// Writes made.
    pub writes: u64,
}

impl SimGuest {
    /// A guest of zeros that does not run.
    pub fn empty(layout: &Layout) -> Self {
        let count = layout.flat_pages();
        let valid = (0..count).filter(|&page| layout.locate(FlatPage(page)).is_some()).collect();
        Self {
            layout: layout.clone(),
            valid,
            pages: vec![0; count as usize],
            dirty: vec![false; count as usize],
            running: false,
            written_to: 0,
            writes_per_second: 0,
            hot: 1,
            writer: Writes::Spot,
            version: 1,
            rng: Rng::new(0),
            more: 0,
            writes: 0,
        }
    }

    /// A running guest with content, that writes.
    pub fn alive(layout: &Layout, seed: u64, writes_per_second: u64, writer: Writes, more: u32) -> Self {
        let mut guest =
            Self { writes_per_second, writer, more, rng: Rng::new(seed), running: true, ..Self::empty(layout) };
        guest.hot = guest.rng.between(1, guest.valid.len() as u64);
        for index in 0..guest.valid.len() {
            if guest.rng.percent(70) {
                guest.version += 1;
                // Some pages are alike.
                let content = if guest.rng.percent(10) { 7 } else { guest.version };
                guest.pages[guest.valid[index] as usize] = content;
            }
        }
        guest
    }

    /// Makes the writes that were due until now.
    pub fn advance(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.written_to);
        if !self.running || self.writes_per_second == 0 {
            self.written_to = now;
            return;
        }
        let due = u128::from(elapsed) * u128::from(self.writes_per_second) / 1_000_000_000;
        if due == 0 {
            return;
        }
        self.written_to = now;
        // Past four writes a page nothing new can be seen.
        let due = due.min(self.valid.len() as u128 * 4) as u64;
        for _ in 0..due {
            self.write();
        }
    }

    fn write(&mut self) {
        self.writes += 1;
        let count = self.valid.len() as u64;
        let index = match self.writer {
            Writes::Spot if self.rng.percent(80) => self.rng.below(self.hot),
            Writes::Spot => self.rng.below(count),
            // A prime that no guest here is as large as: popular pages do not lie side by side.
            Writes::Zipf => (self.rng.magnitude(1, count) - 1) * SCATTER % count,
        };
        let page = self.valid[index as usize] as usize;
        match self.rng.below(20) {
            0 => self.pages[page] = 0,
            // Written, but the same as before.
            1..=3 => {}
            _ => {
                self.version += 1;
                self.pages[page] = self.version;
            }
        }
        self.dirty[page] = true;
    }

    /// The content of a page now.
    pub fn read(&self, page: FlatPage) -> Content {
        self.pages[page.0 as usize]
    }

    /// Overwrites a page, as a sink does.
    pub fn overwrite(&mut self, page: FlatPage, content: Content) {
        self.pages[page.0 as usize] = content;
    }

    /// The dirty log, cleared here unless `keep` (the planted bug "dirty cleared after read").
    pub fn harvest(&mut self, keep: bool) -> (DirtyMap, Pending) {
        let mut map = DirtyMap::new(&self.layout);
        for &page in &self.valid {
            if self.dirty[page as usize] {
                if let Some((region, index)) = self.layout.locate(FlatPage(page)) {
                    map.mark(region, index, 1);
                }
                self.dirty[page as usize] = keep;
            }
        }
        let pending = if self.more > 0 { Pending::More } else { Pending::Unknown };
        self.more = self.more.saturating_sub(1);
        (map, pending)
    }

    /// The planted bug "dirty cleared after read": clears what was harvested a while ago.
    pub fn clear(&mut self, pages: &[FlatPage]) {
        for page in pages {
            self.dirty[page.0 as usize] = false;
        }
    }

    /// Starts or goes on.
    pub fn resume(&mut self, now: u64) {
        if !self.running {
            self.running = true;
            self.written_to = now;
        }
    }

    /// Stops.
    pub fn pause(&mut self, now: u64) {
        self.advance(now);
        self.running = false;
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Everything is zero again, and it does not run.
    pub fn wipe(&mut self) {
        self.pages.fill(0);
        self.dirty.fill(false);
        self.running = false;
    }

    /// The first page that is not zeros.
    pub fn first_used(&self) -> Option<FlatPage> {
        self.valid.iter().find(|&&page| self.pages[page as usize] != 0).map(|&page| FlatPage(page))
    }

    /// The first page whose content differs from the other guest's.
    pub fn differs(&self, other: &Self) -> Option<FlatPage> {
        self.valid
            .iter()
            .find(|&&page| self.pages[page as usize] != other.pages[page as usize])
            .map(|&page| FlatPage(page))
    }

    /// State of its devices: other at each pause.
    pub fn devices(&mut self, bytes: usize) -> Bytes {
        let mut rng = Rng::new(self.rng.word());
        let mut state = vec![0; bytes];
        for word in state.chunks_mut(64) {
            word[0] = rng.word() as u8;
        }
        Bytes::from(state)
    }
}
