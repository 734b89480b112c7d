//! What of an image is durable already, so that a receiver that is started again goes on from there.
//!
//! ```text
//!  page written ──> noted ──┬─ 16 MiB or 50 ms ─> data synced ─> journal appended ─> journal synced: held
//!  page to be overwritten that is noted or held ─> the same at once, and "unknown" after it ─> then it is written
//! ```
//!
//! The order never changes, so at each moment of a crash the pages that the journal holds have those bytes on disk.

mod committer;
mod log;
mod recorder;

use std::io::{self, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use self::committer::Committer;
pub(super) use self::log::About;
use self::log::{End, Entry, Replay};
pub(super) use self::recorder::Recorder;
use super::place::{beside_name, journal_name};
use super::runs::Runs;
use crate::extent::{Layout, PAGE_BYTES, RegionId};
use crate::session::Leaves;
use crate::session::leaves::zero_leaf;
use crate::storage::{File, Folder, Reader};
use crate::wire::{Digest, TransferId};

/// Pages that become durable together: one sync costs some milliseconds however much it writes.
const GROUP_PAGES: usize = 16 * 1024 * 1024 / PAGE_BYTES;
/// Bytes of a journal that are read or written at a time.
const READ_BYTES: usize = 1 << 20;
/// What a journal may grow by, however short it was.
const SLACK_BYTES: u64 = 64 << 20;
/// Bytes of a journal that one sync makes durable, and that who goes on with it writes again: nobody knows whether the
/// last sync before a crash came to its end, or failed.
const TAIL_BYTES: u64 = 1 << 20;

/// Bytes of a journal for a page: its leaf, and a share of the 27 bytes around the leaves of a run of four.
const PAGE_SHARE: u64 = 32 + 8;

/// Space that the journal of an image takes when each of its pages comes once, in bytes.
pub(super) fn room(layout: &Layout) -> u64 {
    layout.regions().map(|(_, region)| u64::from(region.pages) * PAGE_SHARE).sum()
}

/// A journal that somebody left, and what it says.
#[derive(Debug)]
pub(super) struct Old {
    file: Arc<dyn File>,
    replay: Replay,
}

impl Old {
    pub(super) fn about(&self) -> &About {
        &self.replay.about
    }

    /// Which pages it holds.
    pub(super) fn held(&self) -> &Leaves {
        &self.replay.held
    }

    pub(super) fn into_parts(self) -> (About, Leaves) {
        (self.replay.about, self.replay.held)
    }
}

/// The journal of one staging file.
#[derive(Debug)]
pub(super) struct Journal {
    keeper: Arc<Keeper>,
    layout: Layout,
}

impl Journal {
    /// A new journal for the staging file `data`, in place of another one of the transfer. Its name is not durable
    /// yet. Without a committer, groups become durable when they are full or somebody needs them.
    pub(super) fn begin(
        names: Arc<dyn Folder>,
        transfer: TransferId,
        about: &About,
        data: Arc<dyn File>,
        held: &Leaves,
        committer: Option<Arc<Committer>>,
    ) -> io::Result<Self> {
        let paper = Paper { names, transfer };
        let (file, end) = paper.write(about, held)?;
        let log = Log { paper, file, end, data, limit: limit(end.bytes), room: 0 };
        let (noted, pages) = Noted::of(&about.layout, held);
        Ok(Self::keep(log, &about.layout, noted, pages, committer))
    }

    /// Goes on with a journal where it stands, and makes durable what it says. Nobody else may have it open. `None`: what
    /// it says is so much shorter than how it says so that it is to be written anew.
    pub(super) fn go_on(
        names: Arc<dyn Folder>,
        transfer: TransferId,
        old: &Old,
        data: Arc<dyn File>,
        committer: Option<Arc<Committer>>,
    ) -> io::Result<Option<Self>> {
        let Replay { about, held, end } = &old.replay;
        let (noted, pages) = Noted::of(&about.layout, held);
        let limit = limit(pages * PAGE_SHARE);
        if end.bytes > limit / 2 {
            return Ok(None);
        }
        log::mend(old.file.as_ref(), *end, TAIL_BYTES)?;
        let log =
            Log { paper: Paper { names, transfer }, file: Arc::clone(&old.file), end: *end, data, limit, room: 0 };
        Ok(Some(Self::keep(log, &about.layout, noted, pages, committer)))
    }

    /// Takes the disk's space for this many bytes of it.
    pub(super) fn reserve(&self, room: u64) -> io::Result<()> {
        let mut log = self.keeper.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.file.reserve(room)?;
        log.room = room;
        Ok(())
    }

    /// Whose journal a file is. `None`: it is none, or its beginning is torn.
    pub(super) fn about(file: &dyn File) -> io::Result<Option<About>> {
        log::about(BufReader::new(Reader::of(file)?))
    }

    /// What a file says as a journal. `None`: it is none, or its beginning is torn.
    pub(super) fn read(file: Arc<dyn File>) -> io::Result<Option<Old>> {
        let input = BufReader::with_capacity(READ_BYTES, Reader::of(file.as_ref())?);
        Ok(log::replay(input)?.map(|replay| Old { file, replay }))
    }

    fn keep(log: Log, layout: &Layout, noted: Noted, pages: u64, committer: Option<Arc<Committer>>) -> Self {
        let keeper =
            Keeper { noted: Mutex::new(noted), log: Mutex::new(log), committer, durable: AtomicU64::new(pages) };
        Self { keeper: Arc::new(keeper), layout: layout.clone() }
    }

    /// Pages have been written, and have these leaves.
    pub(super) fn note(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        let mut noted = self.keeper.noted();
        for (page, leaf) in (first..).map_while(|page| self.layout.flat(region, page)).zip(leaves) {
            noted.claim(page.0, *leaf != zero_leaf());
        }
        let (begins, was_full) = (noted.entries.is_empty(), noted.pages >= GROUP_PAGES);
        noted.pages += leaves.len();
        noted.entries.push(Entry::Holds { region, first, leaves: leaves.to_vec() });
        let fills = noted.pages >= GROUP_PAGES && !was_full;
        drop(noted);
        match &self.keeper.committer {
            Some(committer) if fills || begins => committer.ask(&self.keeper, fills),
            None if fills => {
                // The failure is kept, and told to whoever needs it durable.
                let _ = self.keeper.commit();
            }
            _ => {}
        }
    }

    /// Pages are about to be overwritten: waits until no journal says what they are.
    pub(super) fn forget(&self, region: RegionId, first: u32, count: u32) -> io::Result<()> {
        let mut noted = self.keeper.noted();
        let pages = (first..).map_while(|page| self.layout.flat(region, page));
        let mut none = true;
        for (page, flat) in (first..).zip(pages).take(usize::try_from(count).unwrap_or(usize::MAX)) {
            if noted.claimed(flat.0) {
                none = false;
                noted.claim(flat.0, false);
                noted.forget(region, page);
            }
        }
        if none {
            return noted.failed.map_or(Ok(()), |failed| Err(failed.into()));
        }
        drop(noted);
        self.keeper.commit()
    }

    /// Makes everything durable that was noted.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.keeper.commit()
    }

    /// Pages that would be there after a crash; those that were zero from the start do not count.
    pub(super) fn durable(&self) -> u64 {
        self.keeper.durable.load(Ordering::Relaxed)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Who needs it durable has waited for it. What failed is what a crash would have lost.
        let _ = self.keeper.commit();
    }
}

/// What is noted, and the file where it goes.
#[derive(Debug)]
pub(super) struct Keeper {
    noted: Mutex<Noted>,
    /// Held while a group is made durable: groups follow one another. Taken before `noted`.
    log: Mutex<Log>,
    committer: Option<Arc<Committer>>,
    durable: AtomicU64,
}

impl Keeper {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is noted durable, or waits until whoever does so has done it.
    fn commit(&self) -> io::Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let group = {
            let mut noted = self.noted();
            if let Some(failed) = noted.failed {
                return Err(failed.into());
            }
            noted.pages = 0;
            std::mem::take(&mut noted.entries)
        };
        if group.is_empty() {
            return Ok(());
        }
        if let Err(error) = log.append(&group) {
            // Whoever stages the image fails of it, and tells why.
            tracing::info!(%error, "the journal of an image cannot be kept");
            let failed = Failed::from(error);
            self.noted().failed = Some(failed);
            return Err(failed.into());
        }
        let durable = group.iter().fold(self.durable.load(Ordering::Relaxed), |durable, entry| entry.count(durable));
        self.durable.store(durable, Ordering::Relaxed);
        Ok(())
    }
}

/// What is not durable yet.
#[derive(Debug)]
struct Noted {
    /// In the order in which it happened.
    entries: Vec<Entry>,
    pages: usize,
    failed: Option<Failed>,
    /// One bit for each page that is noted or held.
    claimed: Vec<u64>,
}

impl Noted {
    /// Nothing yet but what is held, and how many pages that is.
    fn of(layout: &Layout, held: &Leaves) -> (Self, u64) {
        let words = usize::try_from(layout.flat_pages().div_ceil(64)).unwrap_or(usize::MAX);
        let mut noted = Self { entries: Vec::new(), pages: 0, failed: None, claimed: vec![0; words] };
        let mut pages = 0;
        for (region, run) in Runs::places(layout, held) {
            pages += u64::from(run.end - run.start);
            let flat = run.map_while(|page| layout.flat(region, page));
            flat.for_each(|page| noted.claim(page.0, true));
        }
        (noted, pages)
    }

    fn claimed(&self, page: u32) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|word| self.claimed.get(word));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    fn forget(&mut self, region: RegionId, page: u32) {
        if let Some(Entry::Unknown { region: same, first, count }) = self.entries.last_mut()
            && *same == region
            && first.checked_add(*count) == Some(page)
        {
            *count += 1;
        } else {
            self.entries.push(Entry::Unknown { region, first: page, count: 1 });
        }
    }

    fn claim(&mut self, page: u32, claimed: bool) {
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|word| self.claimed.get_mut(word)) {
            let bit = 1 << (page % 64);
            *word = if claimed { *word | bit } else { *word & !bit };
        }
    }
}

/// Why nothing is made durable any more. A failed sync may have dropped what it was to write: it is not tried again.
#[derive(Clone, Copy, Debug)]
struct Failed {
    kind: io::ErrorKind,
    code: Option<i32>,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), code: error.raw_os_error() }
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        failed.code.map_or_else(|| failed.kind.into(), Self::from_raw_os_error)
    }
}

/// The journal's file and the file that it speaks of.
#[derive(Debug)]
struct Log {
    paper: Paper,
    file: Arc<dyn File>,
    end: End,
    data: Arc<dyn File>,
    /// It is written anew when it is longer than this.
    limit: u64,
    /// Bytes whose space is taken.
    room: u64,
}

impl Log {
    fn append(&mut self, group: &[Entry]) -> io::Result<()> {
        self.data.sync()?;
        failpoint!("sink.journal.data-synced");
        let mut rest = group;
        while !rest.is_empty() {
            let (bytes, end, more) = log::encode(rest, self.end, TAIL_BYTES);
            self.file.write_at(self.end.bytes, &bytes)?;
            failpoint!("sink.journal.written");
            self.file.sync()?;
            failpoint!("sink.journal.synced");
            (self.end, rest) = (end, more);
        }
        if self.end.bytes > self.limit { self.shorten() } else { Ok(()) }
    }

    /// Pages that are written again and again must not fill the disk with what they were before.
    fn shorten(&mut self) -> io::Result<()> {
        let Some(old) = Journal::read(Arc::clone(&self.file))? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the journal was changed by somebody else"));
        };
        (self.file, self.end) = self.paper.write(old.about(), old.held())?;
        self.limit = limit(self.end.bytes);
        if self.room > 0 {
            // It had been refused where the old one stood, or will be told when it is needed.
            let _ = self.file.reserve(self.room);
        }
        self.paper.names.sync()
    }
}

/// How long a journal may become that needs so many bytes.
fn limit(needed: u64) -> u64 {
    needed.saturating_mul(4).saturating_add(SLACK_BYTES)
}

/// Where journals of a transfer are written.
#[derive(Debug)]
struct Paper {
    names: Arc<dyn Folder>,
    transfer: TransferId,
}

impl Paper {
    /// A journal of what is held and nothing else, durable but for its name.
    fn write(&self, about: &About, held: &Leaves) -> io::Result<(Arc<dyn File>, End)> {
        let beside = beside_name(self.transfer);
        // What a crash left of another try.
        let _ = self.names.remove(&beside);
        let file = self.names.create(&beside)?;
        let mut bytes = Vec::new();
        let (mut end, mut written) = (about.encode(&mut bytes), 0);
        for (region, first, leaves) in Runs::of(&about.layout, held) {
            end = Entry::Holds { region, first, leaves }.encode(&mut bytes, end);
            if bytes.len() >= READ_BYTES {
                file.write_at(written, &bytes)?;
                written = end.bytes;
                bytes.clear();
            }
        }
        file.write_at(written, &bytes)?;
        file.sync()?;
        self.names.replace(&beside, &journal_name(self.transfer))?;
        Ok((file, end))
    }
}

#[cfg(test)]
mod tests;
