//! What is being moved: the one trait that an embedder implements.

#[cfg(feature = "net")]
mod image;
#[cfg(feature = "net")]
mod mapped;
mod memory;
mod old_pages;
mod root;

#[cfg(feature = "net")]
pub use self::image::{ImageFolder, ImageSource, ImageStaging, Parked, Rounds, Swept};
#[cfg(feature = "net")]
pub use self::mapped::MappedRegion;
pub use self::memory::Memory;
pub use self::old_pages::{HeldPages, OldPages};
pub use self::root::root_of;

use std::fmt;
use std::sync::atomic::AtomicU64;

use crate::extent::{FlatPage, Layout, PAGE_BYTES, RegionId};
use crate::wire::{Digest, Name};

/// The thing being moved: a virtual machine, an image, anything made of pages that change.
///
/// One trait serves both ends. A source needs [`read`](Guest::read) and, if it is alive,
/// [`harvest`](Guest::harvest), [`pause`](Guest::pause), [`resume`](Guest::resume) and
/// [`save_devices`](Guest::save_devices). A sink needs `read`, [`write`](Guest::write),
/// [`load_devices`](Guest::load_devices), [`stage`](Guest::stage), `resume` (which makes what was
/// moved visible) and [`discard`](Guest::discard). Everything has a default that suits an image at
/// rest.
///
/// All methods are called from threads that may block. `read` and `write` are called from several
/// at once, never for the same page at once.
///
/// # Contract
/// - **A sink's guest starts out as zeros**: pages that are zero at the source never travel.
/// - **`harvest` clears a page's dirty bit before the page is read** (spec: D-2). A write after that shows in
///   the next harvest. Clearing after the read loses writes (`dwcp demo --break late-clear`).
/// - `read` may return a torn page while the guest runs; whoever tore it has set its dirty bit.
/// - After `pause` returns, nothing changes a page until `resume`; one last `harvest` follows.
pub trait Guest: Send + Sync + 'static {
    /// Its regions; constant from the offer on.
    fn layout(&self) -> &Layout;

    /// Copies pages of one region from page `first` on. `into` is a multiple of
    /// [`PAGE_BYTES`]; bytes past the end of a region are set to zero.
    ///
    /// # Errors
    /// The memory or file cannot be read.
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError>;

    /// Overwrites pages of one region from page `first` on; bytes past the end of a region are
    /// dropped.
    ///
    /// # Errors
    /// The memory or file cannot be written; by default it never can.
    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let _ = (region, first, from);
        Err(GuestError::Unsupported { operation: "write" })
    }

    /// Its own memory of `count` pages of one region from page `first` on, for whoever moves their bytes without a copy, in
    /// place of [`read`](Guest::read) at a source whose guest is paused, or of [`write`](Guest::write) at a sink. The bytes of
    /// the words are those of the pages, as they lie in memory. `None`, which is the default: it has no such memory, or must be
    /// told of what is read and written. A region is lent whole or not at all.
    fn lend(&self, _region: RegionId, _first: u32, _count: u32) -> Option<&[AtomicU64]> {
        None
    }

    /// Moves the set of pages written since the last harvest into `dirty`, clearing it here.
    /// Returns whether more rounds are certain to come, so that no switch-over is tried yet.
    ///
    /// # Errors
    /// The dirty log cannot be read.
    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        let _ = dirty;
        Ok(Pending::Unknown)
    }

    /// Stops the guest. At the source only.
    ///
    /// # Errors
    /// It cannot be stopped; the transfer ends and the guest keeps running.
    fn pause(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// At the source: the guest runs again after a pause (the transfer failed or is retried).
    /// At the sink: the guest runs here from now on; an image becomes visible under its name. Called
    /// again after a crash, it must succeed when it had succeeded before.
    ///
    /// # Errors
    /// It cannot run.
    fn resume(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// State of the devices (registers, clocks, queues), taken while paused: at most 64 MiB.
    ///
    /// # Errors
    /// It cannot be saved.
    fn save_devices(&self) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }

    /// Restores the state of the devices; its digest has been verified.
    ///
    /// # Errors
    /// It cannot be loaded; the transfer ends and the guest runs on at the source.
    fn load_devices(&self, state: &[u8]) -> Result<(), GuestError> {
        if state.is_empty() { Ok(()) } else { Err(GuestError::Unsupported { operation: "load_devices" }) }
    }

    /// Makes everything written so far durable, where it is a disk. At the sink, before READY.
    ///
    /// # Errors
    /// It cannot be made durable; the transfer ends.
    fn stage(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// The leaf of a page, if it is known without reading it. At the source, before anything is read, and only of pages
    /// that the sink holds: those with the same leaf are not read.
    fn recall(&self, _region: RegionId, _page: u32) -> Option<Digest> {
        None
    }

    /// Pages have been read, and have these leaves. At the source, after each [`read`](Guest::read).
    fn hashed(&self, _region: RegionId, _first: u32, _leaves: &[Digest]) {}

    /// Throws away what was written. At the sink, when the transfer ended before RUN.
    fn discard(&self) {}

    /// Throws away what was written and is zeros again, as at the start. At the sink, when what version 3 applied is
    /// not to be trusted and the transfer begins again. By default every page is overwritten with zeros. spec: V-5
    ///
    /// # Errors
    /// It cannot be written.
    fn clear(&self) -> Result<(), GuestError> {
        let zeros = vec![0; 256 * PAGE_BYTES];
        for (id, region) in self.layout().regions() {
            let mut first = 0;
            while first < region.pages {
                let pages = (region.pages - first).min(256);
                let bytes = usize::try_from(pages).unwrap_or(0) * PAGE_BYTES;
                self.write(id, first, zeros.get(..bytes).unwrap_or_default())?;
                first += pages;
            }
        }
        Ok(())
    }

    /// Keeps what was written for a later transfer of the same. At the sink, when the transfer ended before RUN
    /// without anything wrong with its pages. Throws it away, unless a guest can tell later what it holds.
    fn park(&self) {
        self.discard();
    }

    /// Tells the pages that this guest holds from a transfer before, and their leaves. At the sink, before anything
    /// is written. Other pages are zeros. What is told must be durable, and from the peer that sends now. spec: R-1
    fn held(&self, _tell: &mut dyn FnMut(RegionId, u32, Digest)) {}

    /// Pages that would be there after a crash, those that were zeros from the start not counted. At the sink; asked
    /// after each write, so it must be cheap. spec: A-3
    fn durable(&self) -> u64 {
        0
    }

    /// Pages have been written, verified, and have these leaves. At the sink, after each [`write`](Guest::write).
    fn written(&self, _region: RegionId, _first: u32, _leaves: &[Digest]) {}
}

/// Whether a guest knows of writes still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A live guest: nobody knows.
    Unknown,
    /// At least one more harvest will bring pages (successive snapshots of one guest).
    More,
}

/// One bit for each page of a layout.
#[derive(Clone, PartialEq, Eq)]
pub struct DirtyMap {
    words: Vec<u64>,
    layout: Layout,
}

impl DirtyMap {
    /// No page is marked.
    pub fn new(layout: &Layout) -> Self {
        let words = usize::try_from(layout.flat_pages() / 64).unwrap_or(usize::MAX);
        Self { words: vec![0; words], layout: layout.clone() }
    }

    /// Every page is marked.
    pub fn all(layout: &Layout) -> Self {
        let mut map = Self::new(layout);
        for (id, region) in layout.regions() {
            map.mark(id, 0, region.pages);
        }
        map
    }

    /// Marks `count` pages from `first` on; pages outside the region are ignored.
    pub fn mark(&mut self, region: RegionId, first: u32, count: u32) {
        let Some(bounds) = self.layout.region(region) else { return };
        let end = first.saturating_add(count).min(bounds.pages);
        let mut page = first;
        while page < end {
            let flat = bounds.first + page;
            let bit = flat % 64;
            let here = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - here)) << bit;
            self.or(flat / 64, mask);
            page += here;
        }
    }

    /// Marks pages by the words of a bitmap that starts at page 0 of the region, lowest page in the
    /// lowest bit: the form in which KVM and shared memory keep dirty logs.
    pub fn mark_words(&mut self, region: RegionId, first_word: u32, words: impl IntoIterator<Item = u64>) {
        let Some(bounds) = self.layout.region(region) else { return };
        let last = bounds.pages.div_ceil(64);
        for (word, bits) in (first_word..last).zip(words) {
            let left = bounds.pages - word * 64;
            let valid = if left >= 64 { u64::MAX } else { u64::MAX >> (64 - left) };
            self.or(bounds.first / 64 + word, bits & valid);
        }
    }

    /// Number of pages marked.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether a page is marked.
    pub fn contains(&self, page: FlatPage) -> bool {
        let word = usize::try_from(page.0 / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// The marked pages, rising.
    pub fn pages(&self) -> impl Iterator<Item = FlatPage> + '_ {
        self.words.iter().zip(0_u32..).flat_map(|(&word, index)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    FlatPage(index * 64 + bit)
                })
            })
        })
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    fn or(&mut self, word: u32, mask: u64) {
        if let Some(word) = usize::try_from(word).ok().and_then(|index| self.words.get_mut(index)) {
            *word |= mask;
        }
    }
}

impl fmt::Debug for DirtyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyMap({} pages)", self.count())
    }
}

/// The guest, its memory or its file failed: ours, never the peer's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// This guest does not have the operation.
    #[error("this guest does not support {operation}")]
    Unsupported {
        /// Which method.
        operation: &'static str,
    },
    /// Pages outside the layout were asked for: a bug of the caller.
    #[error("pages {first}.. lie outside {region}")]
    Outside {
        /// The region.
        region: RegionId,
        /// The first page.
        first: u32,
    },
    /// The source changed although it must not.
    #[error(
        "{what} changed while it was being read; nothing was switched over or stored, do it again when nobody writes to it"
    )]
    Changed {
        /// What changed.
        what: String,
    },
    /// The destination exists already.
    #[error("{what} exists already; `dwcp receive --replace` overwrites it")]
    Exists {
        /// What exists.
        what: String,
    },
    /// The file under the final name is not what was staged.
    #[error(
        "{what} is not the image that was received: another file, or changed since; nothing was done with it - look \
         at it before you decide who has the guest"
    )]
    NotStaged {
        /// Which file.
        what: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is left of an image is being written to, looked at or thrown away by somebody else, perhaps for a moment only.
    #[error("{what}")]
    Busy {
        /// Which, and what to do.
        what: String,
    },
    /// A disk is full. What is durable of an image on its way stays as it is, to be gone on with.
    #[error("{what}")]
    NoSpace {
        /// Where, and how much to free.
        what: String,
    },
    /// The guest answers nothing, and so many requests to it wait already.
    #[error(
        "the guest is stuck: {waiting} requests to it wait, and one more was not made; look why it does not answer"
    )]
    Stuck {
        /// Requests that wait.
        waiting: usize,
    },
    /// A page that was promised of a baseline is not what it was when that was made.
    #[error(
        "{region}, page {page} of baseline {name} cannot be used; send it again, without --baseline if the receiver was \
         restarted; `dwcp baseline verify` there names all such pages ({why})"
    )]
    Baseline {
        /// Of which baseline: by this two nodes agreed on it.
        digest: Digest,
        /// What it is called here.
        name: Name,
        /// The region.
        region: RegionId,
        /// The page in it.
        page: u32,
        /// What is wrong.
        why: String,
    },
    /// Anything that a guest outside this crate reports.
    #[error("{0}")]
    Other(String),
}

impl GuestError {
    /// An [`GuestError::Io`] while doing `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_clipped_to_the_region() {
        let layout = Layout::new(&[4096 * 70, 4096 * 3]).unwrap();
        let mut map = DirtyMap::new(&layout);
        map.mark(RegionId(0), 60, 100);
        assert_eq!(map.count(), 10);
        map.mark_words(RegionId(1), 0, [u64::MAX, u64::MAX]);
        assert_eq!(map.count(), 13);
        let pages: Vec<u32> = map.pages().map(|page| page.0).collect();
        assert_eq!(pages, (60..70).chain(128..131).collect::<Vec<_>>());
        assert_eq!(DirtyMap::all(&layout).count(), 73);
        assert!(map.contains(FlatPage(69)) && !map.contains(FlatPage(70)));
    }
}
