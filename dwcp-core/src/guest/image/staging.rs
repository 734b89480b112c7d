use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::folder::no_space;
use super::journal::{About, Journal, room};
use super::place::{Place, Presence};
use super::runs::Runs;
use super::written::Written;
use crate::extent::{Layout, MAX_EXTENT_PAGES, PAGE_BYTES, RegionId};
use crate::guest::{Guest, GuestError, root_of};
use crate::session::Leaves;
use crate::session::leaves::zero_leaf;
use crate::session::page_hash::hash_pages;
use crate::storage::File;
use crate::wire::{Digest, Name};

const PAGE: u64 = 4096;
/// The smallest hole that is made of space that was reserved.
const HOLE_PAGES: usize = 16;

/// An image on its way in: a staging file of mode 0600, which gets its final name on RUN. An
/// [`ImageFolder`](super::ImageFolder) makes it.
///
/// ```text
///  create, go_on     DIR/.dwcp-<transfer>.part
///  write, stage      the same, durable
///  resume            DIR/<name>                    old or whole new image, never a part of one
///  discard           nothing
///  park              as it was, for `go_on` within a day
/// ```
///
/// The regions of a layout lie one after the other in the file, each with its size in bytes, without
/// padding.
#[derive(Debug)]
pub struct ImageStaging {
    file: Arc<dyn File>,
    place: Place,
    layout: Layout,
    /// Where each region starts in the file.
    starts: Vec<u64>,
    /// Pages that were written: only those must be overwritten when they become zero.
    written: Written,
    /// It was found under its final name, and must have this root to be believed.
    doubted: Option<Digest>,
    journal: Option<Journal>,
    /// What the journal held when it was opened, without what was written since.
    held: Option<Leaves>,
}

impl ImageStaging {
    pub(super) fn over(file: Arc<dyn File>, place: Place, layout: Layout) -> Self {
        let starts = layout.regions().scan(0, |next, (_, region)| {
            let start = *next;
            *next += region.bytes;
            Some(start)
        });
        Self {
            starts: starts.collect(),
            written: Written::new(layout.flat_pages(), false),
            doubted: None,
            journal: None,
            held: None,
            file,
            place,
            layout,
        }
    }

    pub(super) fn file(&self) -> &dyn File {
        self.file.as_ref()
    }

    /// What it will be called.
    pub(super) fn name(&self) -> &Name {
        &self.place.name
    }

    /// Tells others that a new file is under way, for as long as it is open.
    pub(super) fn mark(&self) {
        if !matches!(self.file.lock(), Ok(true)) {
            tracing::debug!(staging = self.place.staging, "cannot be marked as under way");
        }
    }

    /// An operator may have removed it before it was marked: nothing is promised that has no name.
    fn still_named(&self) -> Result<(), GuestError> {
        if self.place.presence(&self.place.staging, self.file.as_ref())? == Presence::Ours {
            return Ok(());
        }
        Err(GuestError::Other(format!(
            "{} in {} was removed by somebody else while it was received; send it again",
            self.place.staging,
            self.place.folder.place()
        )))
    }

    /// Takes the space that its journal will need.
    pub(super) fn reserve_journal(&self) -> io::Result<()> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.reserve(room(&self.layout)))
    }

    pub(super) fn with_journal(self, about: &About) -> Result<Self, GuestError> {
        let held = Leaves::new(&self.layout);
        match self.place.begin(about, &self.file, &held) {
            Ok(journal) => Ok(Self { journal: Some(journal), ..self }),
            Err(error) => {
                self.discard();
                Err(self.place.folder.failed("cannot make a journal in", error))
            }
        }
    }

    /// It was found again after a restart, and must have this root if it is doubted.
    pub(super) fn found(self, doubted: Option<Digest>) -> Self {
        // What a run before wrote is not known, so every page counts as written.
        let written = Written::new(self.layout.flat_pages(), true);
        Self { doubted, written, ..self }
    }

    /// With a journal, which says what is held.
    pub(super) fn holding(self, journal: Journal, held: Leaves) -> Self {
        for (id, pages) in Runs::places(&self.layout, &held) {
            pages.for_each(|page| {
                self.exchange_written(id, page, true);
            });
        }
        Self { journal: Some(journal), held: Some(held), ..self }
    }

    /// What is not held becomes zeros: a crash may have left anything there. What is a hole already is not touched, for a
    /// peer chooses how many of them there are. True: space was given back.
    pub(super) fn clear_others(&self) -> io::Result<bool> {
        let mut given_back = false;
        self.unwritten(&mut |region, pages| {
            let (mut at, end) = self.bytes_of(region, &pages);
            while at < end {
                let Some(found) = self.file.data(at..end)? else { break };
                given_back |= self.blank(found.start, found.end.saturating_sub(found.start))?;
                at = found.end;
            }
            Ok(())
        })?;
        Ok(given_back)
    }

    /// Makes zeros of what may be none, as [`write_zeros`](Self::write_zeros) does. True: by a hole.
    fn blank(&self, at: u64, bytes: u64) -> io::Result<bool> {
        let few = bytes.div_ceil(PAGE) < u64::try_from(HOLE_PAGES).unwrap_or(u64::MAX);
        if few && !self.place.folder.sparse {
            return self.overwrite(at, bytes).map(|()| false);
        }
        self.zero(at, bytes).map(|()| true)
    }

    /// Bytes that it is longer than what of the disk is its.
    pub(super) fn lacks(&self) -> u64 {
        self.layout.bytes().saturating_sub(self.used())
    }

    /// Gives back the space that was reserved for pages that stayed zeros, unless a hole would cost more than it saves.
    fn give_back(&self) -> io::Result<()> {
        if self.place.folder.sparse {
            return Ok(());
        }
        self.unwritten(&mut |region, pages| {
            if pages.len() < HOLE_PAGES {
                return Ok(());
            }
            let (at, end) = self.bytes_of(region, &pages);
            self.zero(at, end.saturating_sub(at))
        })
    }

    /// Tells runs of pages that were never written.
    fn unwritten(&self, tell: &mut dyn FnMut(RegionId, Range<u32>) -> io::Result<()>) -> io::Result<()> {
        for (id, region) in self.layout.regions() {
            let mut first = 0;
            while first < region.pages {
                let written = self.written.get(region.first + first);
                let end = (first..region.pages).find(|page| self.written.get(region.first + page) != written);
                let end = end.unwrap_or(region.pages);
                if !written {
                    tell(id, first..end)?;
                }
                first = end;
            }
        }
        Ok(())
    }

    /// Where pages of a region begin and end in the file.
    fn bytes_of(&self, region: RegionId, pages: &Range<u32>) -> (u64, u64) {
        let (Some(bounds), Some(start)) = (self.layout.region(region), self.starts.get(usize::from(region.0))) else {
            return (0, 0);
        };
        let end = (u64::from(pages.end) * PAGE).min(bounds.bytes);
        (start + u64::from(pages.start) * PAGE, start + end)
    }

    /// Makes zeros of a range: a hole, where the file system has holes.
    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        match self.file.punch(at, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.overwrite(at, bytes),
            other => other,
        }
    }

    /// Makes zeros of a range whose space was taken with that of the image: it is not given to somebody else meanwhile.
    fn blank_in_place(&self, at: u64, bytes: u64) -> io::Result<()> {
        if self.place.folder.sparse {
            return self.zero(at, bytes);
        }
        match self.file.blank(at, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => return other,
        }
        self.zero(at, bytes)?;
        match self.file.reserve(self.layout.bytes()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn overwrite(&self, at: u64, bytes: u64) -> io::Result<()> {
        let most = MAX_EXTENT_PAGES * PAGE_BYTES;
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(most).min(most)];
        let mut done = 0;
        while done < bytes {
            let part = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_at(at + done, zeros.get(..part).unwrap_or_default())?;
            done += u64::try_from(part).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Makes zeros of pages from this one on, whose bytes these are. A page that never was anything else stays a hole, and a few
    /// that were are written, unless all space is to be saved: a hole in the middle of a file takes as long as a hundred pages.
    fn write_zeros(&self, region: RegionId, first: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let was_written: Vec<bool> = (first..)
            .zip(bytes.chunks(PAGE_BYTES))
            .map(|(page, _)| self.exchange_written(region, page, false))
            .collect();
        let (mut at, mut rest) = (at, bytes);
        for run in was_written.chunk_by(|left, right| left == right) {
            let Some((zeros, later)) = rest.split_at_checked((run.len() * PAGE_BYTES).min(rest.len())) else { break };
            let length = u64::try_from(zeros.len()).unwrap_or(u64::MAX);
            match run.first() {
                Some(true) if run.len() < HOLE_PAGES && !self.place.folder.sparse => self.file.write_at(at, zeros)?,
                Some(true) => self.zero(at, length)?,
                _ => {}
            }
            at += length;
            rest = later;
        }
        Ok(())
    }

    /// Reads what is held from an earlier transfer, before anything is promised: a crash may have been more than a
    /// crash.
    fn check_held(&self) -> Result<(), GuestError> {
        let Some(held) = &self.held else { return Ok(()) };
        let mut bytes = vec![0; MAX_EXTENT_PAGES * PAGE_BYTES];
        let mut leaves = Vec::with_capacity(MAX_EXTENT_PAGES);
        for (region, first, expected) in Runs::of(&self.layout, held) {
            let pages = bytes.get_mut(..expected.len() * PAGE_BYTES).unwrap_or_default();
            leaves.clear();
            if self.read(region, first, pages).is_ok() {
                hash_pages(pages, &mut leaves);
            }
            if leaves != expected {
                let same = leaves.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
                let page = u64::from(first) + u64::try_from(same).unwrap_or(0);
                return Err(GuestError::Other(format!(
                    "{} in {} lost what was durable before a restart ({region}, page {page}); check that disk, then \
                     send it again: it begins anew",
                    self.place.staging,
                    self.place.folder.place()
                )));
            }
        }
        Ok(())
    }

    /// Bytes of what is held from an earlier transfer.
    pub fn held_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| Self::pages(&self.layout, held)) * PAGE
    }

    pub(super) fn pages(layout: &Layout, held: &Leaves) -> u64 {
        Runs::places(layout, held).map(|(_, pages)| u64::from(pages.end - pages.start)).sum()
    }

    /// Makes sure that an image which was found under its final name is the one that was staged.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn verify(&self) -> Result<(), GuestError> {
        let Some(expected) = self.doubted else { return Ok(()) };
        if root_of(self)? == expected {
            return Ok(());
        }
        Err(self.place.not_staged(self.place.name.as_str()))
    }

    /// Whether the image has its final name: RUN was obeyed, here or before a crash.
    ///
    /// # Errors
    /// The directory cannot be looked into.
    pub fn is_visible(&self) -> Result<bool, GuestError> {
        Ok(self.place.presence(self.place.name.as_str(), self.file.as_ref())? == Presence::Ours)
    }

    /// Where pages lie in the file, and how many of their bytes lie within the region.
    fn locate(&self, region: RegionId, first: u32, bytes: usize) -> Result<(u64, usize), GuestError> {
        let outside = GuestError::Outside { region, first };
        let bounds = self.layout.region(region).zip(self.starts.get(usize::from(region.0)));
        let Some((bounds, start)) = bounds else { return Err(outside) };
        let offset = u64::from(first) * PAGE;
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        if offset + length > u64::from(bounds.pages) * PAGE {
            return Err(outside);
        }
        let inside = usize::try_from(bounds.bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes);
        Ok((start + offset, inside))
    }

    /// Whether a page was written before; marks it as written or as a hole.
    fn exchange_written(&self, region: RegionId, page: u32, written: bool) -> bool {
        self.layout.flat(region, page).is_none_or(|flat| self.written.exchange(flat.0, written))
    }

    /// Bytes of the disk that it takes.
    fn used(&self) -> u64 {
        self.file.stat().map_or(0, |stat| stat.used)
    }

    fn no_write(&self, error: &io::Error, at: u64) -> GuestError {
        let (place, name) = (self.place.folder.place(), &self.place.name);
        if no_space(error) {
            let again = "and send it again: what is durable stays for a day, or until `dwcp transfers abort` here";
            let what = if self.place.folder.sparse {
                let more = self.layout.bytes().saturating_sub(self.used());
                format!("no space left in {place}: free {more} bytes, or as many as {name} needs, {again}")
            } else {
                // What was reserved may be refused by a file system that copies what it writes.
                let room = room(&self.layout);
                format!("no space left in {place} beside what {name} has reserved: free {room} bytes, {again}")
            };
            return GuestError::NoSpace { what };
        }
        let what = format!("cannot write {} in {place} at byte {at}", self.place.staging);
        GuestError::io(what, io::Error::from(error.kind()))
    }
}

impl Guest for ImageStaging {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let (at, inside) = self.locate(region, first, into.len())?;
        let (bytes, tail) = into.split_at_mut(inside);
        self.file.read_at(at, bytes).map_err(|error| {
            let place = self.place.folder.place();
            GuestError::io(format!("cannot read {} in {place} at byte {at}", self.place.staging), error)
        })?;
        tail.fill(0);
        Ok(())
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let (at, inside) = self.locate(region, first, from.len())?;
        if let Some(journal) = &self.journal {
            let count = u32::try_from(from.len() / PAGE_BYTES).unwrap_or(u32::MAX);
            journal.forget(region, first, count).map_err(|error| self.no_write(&error, at))?;
            if let Some(held) = &self.held {
                let pages = (first..first + count).map_while(|page| self.layout.flat(region, page));
                pages.for_each(|page| held.set(page, zero_leaf()));
            }
        }
        let mut rest = from.get(..inside).unwrap_or(from);
        let (mut page, mut at) = (first, at);
        while !rest.is_empty() {
            // A run of pages that are zero, or of pages that are not.
            let mut zeros = rest.chunks(PAGE_BYTES).map(dwcp_hde::is_zero);
            let zero = zeros.next().unwrap_or(true);
            let pages = 1 + zeros.take_while(|&next| next == zero).count();
            let Some((now, later)) = rest.split_at_checked((pages * PAGE_BYTES).min(rest.len())) else { break };
            if zero {
                self.write_zeros(region, page, at, now).map_err(|error| self.no_write(&error, at))?;
            } else {
                (page..).take(pages).for_each(|number| {
                    self.exchange_written(region, number, true);
                });
                self.file.write_at(at, now).map_err(|error| self.no_write(&error, at))?;
            }
            page += u32::try_from(pages).unwrap_or(u32::MAX);
            at += u64::try_from(now.len()).unwrap_or(u64::MAX);
            rest = later;
        }
        Ok(())
    }

    /// One hole instead of a write for each page. spec: V-5
    fn clear(&self) -> Result<(), GuestError> {
        for (id, region) in self.layout.regions() {
            let inside = usize::try_from(region.pages).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES);
            let (at, inside) = self.locate(id, 0, inside)?;
            if let Some(journal) = &self.journal {
                journal.forget(id, 0, region.pages).map_err(|error| self.no_write(&error, at))?;
            }
            let bytes = u64::try_from(inside).unwrap_or(u64::MAX);
            self.blank_in_place(at, bytes).map_err(|error| self.no_write(&error, at))?;
            for page in 0..region.pages {
                self.exchange_written(id, page, false);
            }
        }
        if let Some(held) = &self.held {
            held.clear();
        }
        Ok(())
    }

    fn stage(&self) -> Result<(), GuestError> {
        failpoint!(waits, "sink.image.syncs");
        if let Some(journal) = &self.journal {
            self.still_named()?;
            journal.flush().map_err(|error| self.no_write(&error, 0))?;
        }
        self.check_held()?;
        self.give_back().and_then(|()| self.file.sync()).map_err(|error| self.no_write(&error, 0))?;
        self.place.sync()
    }

    fn resume(&self) -> Result<(), GuestError> {
        let at = |name: &str| self.place.presence(name, self.file.as_ref());
        match (at(&self.place.staging)?, at(self.place.name.as_str())?) {
            // A crash between the link and the unlink: rename would leave both names.
            (Presence::Ours, Presence::Ours) => self.place.unlink_staging()?,
            (Presence::Ours, _) => self.place.rename()?,
            // Done before, and perhaps not durable.
            (_, Presence::Ours) => self.verify()?,
            (Presence::Other | Presence::None, Presence::Other | Presence::None) => {
                return Err(GuestError::Other(format!(
                    "{} in {} was removed or exchanged by somebody else; the image cannot be made visible",
                    self.place.staging,
                    self.place.folder.place()
                )));
            }
        }
        failpoint!("sink.image.named");
        self.place.sync()?;
        failpoint!("sink.image.durable");
        self.place.unlink_journal();
        Ok(())
    }

    fn discard(&self) {
        // Never a file of the same name that is not ours, nor its journal; and nothing is left to report to.
        match self.place.presence(&self.place.staging, self.file.as_ref()) {
            Ok(Presence::Ours) => {
                let _ = self.place.unlink_staging();
                self.place.unlink_journal();
            }
            Ok(Presence::None) => self.place.unlink_journal(),
            _ => {}
        }
    }

    fn park(&self) {
        // Without a journal nobody could tell later what it holds. One that was torn by a full disk tells what it held
        // before, and none of that was overwritten since.
        let tells = |journal: &Journal| journal.flush().map_or_else(|error| no_space(&error), |()| true);
        if !self.journal.as_ref().is_some_and(tells) {
            self.discard();
        }
    }

    fn held(&self, tell: &mut dyn FnMut(RegionId, u32, Digest)) {
        let Some(held) = &self.held else { return };
        for (region, first, leaves) in Runs::of(&self.layout, held) {
            (first..).zip(leaves).for_each(|(page, leaf)| tell(region, page, leaf));
        }
    }

    fn durable(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::durable)
    }

    fn written(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        if let Some(journal) = &self.journal {
            journal.note(region, first, leaves);
        }
    }
}

#[cfg(test)]
mod tests;
