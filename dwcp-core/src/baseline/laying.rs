//! A guest at a sink that has a baseline's pages from the start, while they are still on their way into it.
//!
//! ```text
//!              claimed   laid
//!   unlaid        -        -     read from the baseline; whoever claims it first writes it
//!   being laid    x        -     read from the baseline; who would replace it waits for a moment
//!   the guest's   x        x     laid down, replaced, held from before, or zeros in the baseline
//! ```
//!
//! So a page is laid down at most once, and never over a newer one.

mod front;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use self::front::Front;
use super::error::BaselineError;
use super::opened::Baseline;
use crate::extent::{FlatPage, Layout, PAGE_BYTES, RegionId};
use crate::guest::{DirtyMap, Guest, GuestError, HeldPages, Pending};
use crate::session::Leaves;
use crate::session::leaves::zero_leaf;
use crate::wire::Digest;

/// Pages of one word of the bitmaps: what is laid down at a time. A chunk of the store has as many.
const GROUP: u32 = 64;

/// A sink's guest over which a baseline is laid: each page that it does not hold otherwise is the baseline's from the
/// start, and in its place before [`stage`](Guest::stage) returns, which lays what is still missing. spec: O-9
///
/// A page that is replaced before it was laid is never laid. What an extent needs as a base is read from the baseline.
/// Pages are laid through [`Guest::write`] and [`Guest::written`] like those of extents, so a journal has them as they
/// become durable.
///
/// Memory: two bits a page, and 256 KiB while it lays.
pub struct Laying {
    shared: Arc<Shared>,
    background: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    guest: Arc<dyn Guest>,
    baseline: Arc<Baseline>,
    /// What the guest has of the baseline.
    leaves: Arc<Leaves>,
    /// Somebody writes this page, or has.
    claimed: Box<[AtomicU64]>,
    /// What the guest has there counts.
    laid: Box<[AtomicU64]>,
    /// The group that is looked at next.
    next: AtomicUsize,
    front: Front,
    pages: u64,
    stop: AtomicBool,
    failed: OnceLock<Failed>,
    /// Told when pages were laid, and when that failed.
    moved: Condvar,
    waiting: Mutex<()>,
}

/// Why laying ended before its time.
enum Failed {
    /// The store has not what its manifest says.
    Page { region: RegionId, page: u32, why: String },
    /// The guest cannot be written.
    Guest(String),
    /// Nor can it for now.
    NoSpace(String),
}

impl From<GuestError> for Failed {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::NoSpace { what } => Self::NoSpace(what),
            other => Self::Guest(other.to_string()),
        }
    }
}

impl Laying {
    /// Lays a baseline over a guest that holds what [`Guest::held`] tells, and zeros elsewhere. Nothing is laid before
    /// [`begin`](Self::begin) or [`stage`](Guest::stage).
    pub fn over(guest: Arc<dyn Guest>, baseline: Arc<Baseline>) -> Self {
        Self::over_behind(Front::default(), guest, baseline)
    }

    fn over_behind(front: Front, guest: Arc<dyn Guest>, baseline: Arc<Baseline>) -> Self {
        let layout = guest.layout().clone();
        let leaves = baseline.leaves_of(&layout);
        // Nothing is laid from there on, however large the guest that is offered.
        let groups = usize::try_from(leaves.end().div_ceil(GROUP)).unwrap_or(usize::MAX);
        let claimed: Box<[AtomicU64]> = (0..groups).map(|_| AtomicU64::new(u64::MAX)).collect();
        let set = |page: FlatPage, value: bool| {
            let word = usize::try_from(page.0 / GROUP).ok().and_then(|word| claimed.get(word));
            let bit = 1 << (page.0 % GROUP);
            match word {
                Some(word) if value => drop(word.fetch_or(bit, Ordering::Relaxed)),
                Some(word) => drop(word.fetch_and(!bit, Ordering::Relaxed)),
                None => {}
            }
        };
        for (_, region) in layout.regions() {
            let mut left = region.first..region.first + region.pages;
            while let Some((first, run)) = leaves.run_within(left.clone(), crate::extent::MAX_EXTENT_PAGES) {
                let end = first.0 + u32::try_from(run.len()).unwrap_or(u32::MAX);
                (first.0..end).for_each(|page| set(FlatPage(page), false));
                left.start = end;
            }
        }
        // Zeros that are held are not told (O-9): they are laid over.
        guest.held(&mut |region, page, leaf| {
            if let Some(page) = layout.flat(region, page).filter(|_| leaf != zero_leaf()) {
                set(page, true);
            }
        });
        let laid = claimed.iter().map(|word| AtomicU64::new(word.load(Ordering::Relaxed))).collect();
        let pages = claimed.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_zeros())).sum();
        let shared = Shared {
            guest,
            baseline,
            leaves,
            claimed,
            laid,
            next: AtomicUsize::new(0),
            front,
            pages,
            stop: AtomicBool::new(false),
            failed: OnceLock::new(),
            moved: Condvar::new(),
            waiting: Mutex::new(()),
        };
        Self { shared: Arc::new(shared), background: Mutex::new(None) }
    }

    /// Lays the pages down on a thread of its own, from now until all are laid or this is dropped: those behind the last page
    /// that an extent brought, and all of them once nothing came for a tenth of a second.
    ///
    /// # Errors
    /// There is no thread left; then `stage` lays them all.
    pub fn begin(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let lay = move || {
            let _ending = Ending(&shared);
            // Whoever stages is told the failure.
            let _ = shared.lay_behind();
        };
        let thread = std::thread::Builder::new().name("dwcp-laying".into()).spawn(lay)?;
        *self.background() = Some(thread);
        Ok(())
    }

    /// Lays the next pages down, at most 64; `false`: all are laid, or being laid.
    ///
    /// # Errors
    /// A page of the baseline is damaged or cannot be read; the guest cannot be written.
    pub fn step(&self) -> Result<bool, GuestError> {
        let laid = self.shared.lay_next(&mut Vec::new());
        self.shared.healthy().and(laid.map_err(|Stopped| GuestError::Other("laying was stopped".into())))
    }

    /// What the guest has of the baseline, which has this number in the offer: for
    /// [`IncomingOffer::accept_with_baseline`](crate::net::IncomingOffer::accept_with_baseline).
    pub fn held(&self, number: u8) -> HeldPages {
        let Shared { leaves, baseline, .. } = &*self.shared;
        HeldPages { number, leaves: Arc::clone(leaves), pages: Arc::<Baseline>::clone(baseline) }
    }

    /// Pages that were to be laid at the start.
    pub fn pages(&self) -> u64 {
        self.shared.pages
    }

    fn background(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.background.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From its return on nothing is laid any more.
    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.tell();
        let thread = self.background().take();
        if let Some(thread) = thread {
            // A panic has been told by then.
            let _ = thread.join();
        }
    }
}

impl Drop for Laying {
    fn drop(&mut self) {
        // It ends within a group; nobody waits for that here.
        self.shared.stop.store(true, Ordering::Release);
        self.shared.tell();
    }
}

impl fmt::Debug for Laying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Laying").field("baseline", &self.shared.baseline.digest()).finish_non_exhaustive()
    }
}

/// It failed, or was told to stop.
struct Stopped;

/// Who waits must not wait for a thread that is gone.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failed::Guest("the thread that lays down a baseline panicked".into()));
        }
    }
}

impl Shared {
    fn lay_all(&self) -> Result<(), Stopped> {
        let mut bytes = Vec::new();
        while self.lay_next(&mut bytes)? {}
        Ok(())
    }

    /// Lays what lies behind the extents that come, and all there is when none come.
    fn lay_behind(&self) -> Result<(), Stopped> {
        let (mut bytes, mut quiet_at) = (Vec::new(), None);
        loop {
            let (seen, group) = (self.front.extents(), self.next.load(Ordering::Relaxed));
            let end = u32::try_from(group).unwrap_or(u32::MAX).saturating_add(1).saturating_mul(GROUP);
            let is_past = || self.front.is_past(end);
            // Whoever stages may have laid the rest.
            if group >= self.claimed.len() || is_past() || quiet_at == Some(seen) {
                if !self.lay_next(&mut bytes)? {
                    return Ok(());
                }
                continue;
            }
            let ahead = |_: &mut ()| !is_past() && !self.stop.load(Ordering::Acquire) && self.failed.get().is_none();
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.moved.wait_timeout_while(waiting, self.front.quiet(), ahead);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if self.front.extents() == seen {
                quiet_at = Some(seen);
            }
        }
    }

    fn lay_next(&self, bytes: &mut Vec<u8>) -> Result<bool, Stopped> {
        if self.stop.load(Ordering::Acquire) || self.failed.get().is_some() {
            return Err(Stopped);
        }
        let group = self.next.fetch_add(1, Ordering::Relaxed);
        let (Some(claimed), Some(laid)) = (self.claimed.get(group), self.laid.get(group)) else { return Ok(false) };
        let mine = !claimed.fetch_or(u64::MAX, Ordering::AcqRel);
        if mine == 0 {
            return Ok(true);
        }
        let first = u32::try_from(group).unwrap_or(u32::MAX).saturating_mul(GROUP);
        for run in runs_of(mine) {
            if let Err(failed) = self.lay(first + run.start..first + run.end, bytes) {
                self.fail(failed);
                return Err(Stopped);
            }
        }
        // Release pairs with the loads of who reads or replaces these pages.
        laid.fetch_or(mine, Ordering::Release);
        self.tell();
        Ok(true)
    }

    fn lay(&self, pages: Range<u32>, bytes: &mut Vec<u8>) -> Result<(), Failed> {
        let Some((region, first)) = self.guest.layout().locate(FlatPage(pages.start)) else { return Ok(()) };
        let leaves: Vec<Digest> = pages.map(|page| self.leaves.get(FlatPage(page))).collect();
        bytes.resize(leaves.len() * PAGE_BYTES, 0);
        self.fetch(region, first, bytes)?;
        self.guest.write(region, first, bytes).map_err(Failed::from)?;
        self.guest.written(region, first, &leaves);
        Ok(())
    }

    /// Reads from the baseline; the error names the first page that is wrong.
    fn fetch(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), Failed> {
        let Err(error) = self.baseline.read(region, first, into) else { return Ok(()) };
        let single = (first..).zip(into.chunks_exact_mut(PAGE_BYTES));
        let wrong =
            single.into_iter().find_map(|(page, into)| Some((page, self.baseline.read(region, page, into).err()?)));
        // One that is gone when it is looked at again is believed no more for that.
        let (page, error): (u32, BaselineError) = wrong.unwrap_or((first, error));
        Err(Failed::Page { region, page, why: error.to_string() })
    }

    fn fail(&self, failed: Failed) -> GuestError {
        let _ = self.failed.set(failed);
        self.tell();
        self.healthy().err().unwrap_or_else(|| GuestError::Other("a baseline cannot be laid down".into()))
    }

    fn healthy(&self) -> Result<(), GuestError> {
        match self.failed.get() {
            None => Ok(()),
            Some(Failed::Guest(what)) => Err(GuestError::Other(what.clone())),
            Some(Failed::NoSpace(what)) => Err(GuestError::NoSpace { what: what.clone() }),
            Some(Failed::Page { region, page, why }) => Err(GuestError::Baseline {
                digest: Digest(self.baseline.digest().0),
                name: self.baseline.about().name.clone(),
                region: *region,
                page: *page,
                why: why.clone(),
            }),
        }
    }

    fn tell(&self) {
        // Held for a moment, lest somebody who has just looked sleep through it.
        drop(self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_all();
    }

    /// Waits until so many pages of a group that others lay are laid.
    fn wait(&self, laid: &AtomicU64, pages: u64) -> Result<(), GuestError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while laid.load(Ordering::Acquire) & pages != pages {
            self.healthy()?;
            waiting = self.moved.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// The groups of a range of pages, and which of each.
    fn groups(&self, region: RegionId, first: u32, pages: usize) -> impl Iterator<Item = (usize, u64)> + use<> {
        let start = self.guest.layout().region(region).map_or(0, |bounds| bounds.first).saturating_add(first);
        let end = start.saturating_add(u32::try_from(pages).unwrap_or(u32::MAX));
        (start / GROUP..end.div_ceil(GROUP)).map(move |group| {
            let (from, to) = (start.max(group * GROUP) - group * GROUP, end.min((group + 1) * GROUP) - group * GROUP);
            (usize::try_from(group).unwrap_or(usize::MAX), mask(from..to))
        })
    }

    /// Makes pages their writer's, once nobody lays them any more.
    fn claim(&self, region: RegionId, first: u32, pages: usize) -> Result<(), GuestError> {
        for (group, pages) in self.groups(region, first, pages) {
            let (Some(claimed), Some(laid)) = (self.claimed.get(group), self.laid.get(group)) else { continue };
            let theirs = claimed.fetch_or(pages, Ordering::AcqRel) & pages;
            if laid.load(Ordering::Acquire) & theirs != theirs {
                self.wait(laid, theirs)?;
            }
        }
        Ok(())
    }

    /// What the guest has there counts from now on.
    fn own(&self, region: RegionId, first: u32, pages: usize) {
        for (group, pages) in self.groups(region, first, pages) {
            if let Some(laid) = self.laid.get(group) {
                laid.fetch_or(pages, Ordering::Release);
            }
        }
    }

    /// An extent brought pages.
    fn came(&self, region: RegionId, first: u32, pages: usize) {
        let start = self.guest.layout().region(region).map_or(0, |bounds| bounds.first).saturating_add(first);
        self.front.came(start.saturating_add(u32::try_from(pages).unwrap_or(u32::MAX)));
    }

    fn is_laid(&self, page: FlatPage) -> bool {
        let word = usize::try_from(page.0 / GROUP).ok().and_then(|word| self.laid.get(word));
        word.is_none_or(|word| word.load(Ordering::Acquire) >> (page.0 % GROUP) & 1 == 1)
    }

    /// Reads pages where each of them is now.
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let start = self.guest.layout().region(region).map_or(0, |bounds| bounds.first);
        let laid = |page: u32| self.is_laid(FlatPage(start.saturating_add(page)));
        let (mut page, mut rest) = (first, into);
        while !rest.is_empty() {
            let here = laid(page);
            let pages = rest.len() / PAGE_BYTES;
            // At least one: it may be laid between two looks.
            let run = 1 + (page + 1..).take(pages.saturating_sub(1)).take_while(|&next| laid(next) == here).count();
            let Some((now, later)) = rest.split_at_mut_checked((run * PAGE_BYTES).min(rest.len())) else { break };
            if here {
                self.guest.read(region, page, now)?;
            } else {
                self.fetch(region, page, now).map_err(|failed| self.fail(failed))?;
            }
            page = page.saturating_add(u32::try_from(run).unwrap_or(u32::MAX));
            rest = later;
        }
        Ok(())
    }
}

fn mask(bits: Range<u32>) -> u64 {
    let count = bits.end.saturating_sub(bits.start);
    if count == 0 { 0 } else { u64::MAX >> (GROUP - count.min(GROUP)) << bits.start }
}

/// Runs of set bits.
fn runs_of(mut bits: u64) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        let start = bits.trailing_zeros();
        let length = bits.checked_shr(start)?.trailing_ones();
        bits &= !mask(start..start + length);
        Some(start..start + length)
    })
}

impl Guest for Laying {
    fn layout(&self) -> &Layout {
        self.shared.guest.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.shared.read(region, first, into)
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        // What cannot become whole need not go on.
        self.shared.healthy()?;
        let pages = from.len() / PAGE_BYTES;
        self.shared.claim(region, first, pages)?;
        // Who waits for these pages must not wait for ever.
        let written = self.shared.guest.write(region, first, from);
        written.inspect_err(|error| drop(self.shared.fail(Failed::Guest(error.to_string()))))?;
        self.shared.own(region, first, pages);
        self.shared.came(region, first, pages);
        Ok(())
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        self.shared.guest.harvest(dirty)
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.shared.guest.pause()
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.shared.guest.resume()
    }

    fn save_devices(&self) -> Result<Vec<u8>, GuestError> {
        self.shared.guest.save_devices()
    }

    fn load_devices(&self, state: &[u8]) -> Result<(), GuestError> {
        self.shared.guest.load_devices(state)
    }

    /// spec: S-3, O-9
    fn stage(&self) -> Result<(), GuestError> {
        let laid = self.shared.lay_all();
        self.shared.healthy()?;
        if let Err(Stopped) = laid {
            return Err(GuestError::Other("what was received has been thrown away".into()));
        }
        for laid in &self.shared.laid {
            self.shared.wait(laid, u64::MAX)?;
        }
        self.shared.guest.stage()
    }

    fn recall(&self, region: RegionId, page: u32) -> Option<Digest> {
        self.shared.guest.recall(region, page)
    }

    fn hashed(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        self.shared.guest.hashed(region, first, leaves);
    }

    fn discard(&self) {
        self.stop();
        self.shared.guest.discard();
    }

    /// Nothing of the baseline is in it any more. spec: V-5
    fn clear(&self) -> Result<(), GuestError> {
        self.stop();
        self.shared.healthy()?;
        for words in [&self.shared.claimed, &self.shared.laid] {
            words.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
        }
        self.shared.stop.store(false, Ordering::Release);
        self.shared.guest.clear()
    }

    fn park(&self) {
        self.stop();
        self.shared.guest.park();
    }

    fn held(&self, tell: &mut dyn FnMut(RegionId, u32, Digest)) {
        self.shared.guest.held(tell);
    }

    fn durable(&self) -> u64 {
        self.shared.guest.durable()
    }

    fn written(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        self.shared.guest.written(region, first, leaves);
    }
}

#[cfg(test)]
mod tests;
