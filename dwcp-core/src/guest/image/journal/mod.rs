//! What of an image is durable already, so that a receiver that is started again goes on from there.
//!
//! ```text
//!  page written ──> noted ──┬─ 16 MiB or 50 ms ─> data synced ─> journal appended ─> journal synced: held
//!  page to be overwritten that is noted or held ─> the same at once, and "unknown" after it ─> then it is written
//! ```
//!
//! The order never changes, so at each moment of a crash the pages that the journal holds have those bytes on disk.

mod log;

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) use self::log::About;
use self::log::{End, Entry};
use crate::extent::{Layout, PAGE_BYTES, RegionId};
use crate::session::Leaves;
use crate::session::leaves::zero_leaf;
use crate::wire::Digest;

/// Pages that become durable together: one sync costs some milliseconds however much it writes.
const GROUP_PAGES: usize = 16 * 1024 * 1024 / PAGE_BYTES;
/// How long the first page of a group waits.
const GROUP_WAIT: Duration = Duration::from_millis(50);

/// The journal of one staging file, and the thread that keeps it.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    layout: Layout,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// In the order in which it happened.
    noted: Vec<Entry>,
    pages: usize,
    /// A group is being made durable.
    busy: bool,
    /// Somebody waits for what is noted.
    hurry: bool,
    closed: bool,
    failed: Option<Failed>,
    /// One bit for each page that is noted or held.
    claimed: Vec<u64>,
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

impl Journal {
    /// A new journal in an empty file, for the staging file `data`.
    pub(super) fn create(mut file: File, about: &About, data: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let end = about.encode(&mut bytes);
        io::Write::write_all(&mut file, &bytes)?;
        file.sync_all()?;
        Self::keep(file, end, data, &about.layout, &Leaves::new(&about.layout))
    }

    /// Goes on with a journal. `None` when it is not the one of this image. Returns what is held, too.
    pub(super) fn go_on(mut file: File, about: &About, data: File) -> io::Result<Option<(Self, Leaves)>> {
        let Some(replay) = log::replay(BufReader::new(&file))?.filter(|replay| replay.about == *about) else {
            return Ok(None);
        };
        file.set_len(replay.end.bytes)?;
        file.seek(SeekFrom::Start(replay.end.bytes))?;
        let journal = Self::keep(file, replay.end, data, &about.layout, &replay.held)?;
        Ok(Some((journal, replay.held)))
    }

    /// Whose journal a file is.
    pub(super) fn about(file: &File) -> Option<About> {
        log::about(BufReader::new(file)).ok().flatten()
    }

    fn keep(file: File, end: End, data: File, layout: &Layout, held: &Leaves) -> io::Result<Self> {
        let words = usize::try_from(layout.flat_pages().div_ceil(64)).unwrap_or(usize::MAX);
        let mut state = State {
            noted: Vec::new(),
            pages: 0,
            busy: false,
            hurry: false,
            closed: false,
            failed: None,
            claimed: vec![0; words],
        };
        for (_, region) in layout.regions() {
            let mut left = region.first..region.first + region.pages;
            while let Some((first, leaves)) = held.run_within(left.clone(), GROUP_PAGES) {
                let end = first.0 + u32::try_from(leaves.len()).unwrap_or(u32::MAX);
                (first.0..end).for_each(|page| state.claim(page, true));
                left.start = end;
            }
        }
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let keeper = Keeper { shared: Arc::clone(&shared), file, end, data };
        let thread = std::thread::Builder::new().name("dwcp-journal".into()).spawn(move || keeper.run())?;
        Ok(Self { shared, layout: layout.clone(), thread: Some(thread) })
    }

    /// Pages have been written, and have these leaves.
    pub(super) fn note(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        let mut state = self.shared.lock();
        for (page, leaf) in (first..).map_while(|page| self.layout.flat(region, page)).zip(leaves) {
            state.claim(page.0, *leaf != zero_leaf());
        }
        state.pages += leaves.len();
        state.noted.push(Entry::Holds { region, first, leaves: leaves.to_vec() });
        self.shared.changed.notify_all();
    }

    /// Pages are about to be overwritten: waits until no journal says what they are.
    pub(super) fn forget(&self, region: RegionId, first: u32, count: u32) -> io::Result<()> {
        let mut state = self.shared.lock();
        let pages = (first..).map_while(|page| self.layout.flat(region, page));
        let claimed: Vec<u32> = pages
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .map(|page| page.0)
            .filter(|&page| state.claimed(page))
            .collect();
        if claimed.is_empty() {
            return state.failed.map_or(Ok(()), |failed| Err(failed.into()));
        }
        claimed.into_iter().for_each(|page| state.claim(page, false));
        state.noted.push(Entry::Unknown { region, first, count });
        self.shared.settle(state)
    }

    /// Waits until everything that was noted is durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.shared.settle(self.shared.lock())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) -> io::Result<()> {
        while state.failed.is_none() && (state.busy || !state.noted.is_empty()) {
            state.hurry = true;
            self.changed.notify_all();
            state = self.wait(state);
        }
        state.failed.map_or(Ok(()), |failed| Err(failed.into()))
    }
}

impl State {
    fn claimed(&self, page: u32) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|word| self.claimed.get(word));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    fn claim(&mut self, page: u32, claimed: bool) {
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|word| self.claimed.get_mut(word)) {
            let bit = 1 << (page % 64);
            *word = if claimed { *word | bit } else { *word & !bit };
        }
    }

    fn full(&self) -> bool {
        self.pages >= GROUP_PAGES || self.hurry || self.closed
    }
}

/// What the thread owns.
struct Keeper {
    shared: Arc<Shared>,
    file: File,
    end: End,
    data: File,
}

impl Keeper {
    fn run(mut self) {
        while let Some(group) = self.group() {
            let done = self.commit(&group);
            let mut state = self.shared.lock();
            state.busy = false;
            if let Err(error) = done {
                tracing::error!(%error, "the journal of an image cannot be kept");
                state.failed = Some(error.into());
            }
            self.shared.changed.notify_all();
            if state.failed.is_some() {
                return;
            }
        }
    }

    /// The next group, when it is due. `None` once all is done and nothing more comes.
    fn group(&self) -> Option<Vec<Entry>> {
        let mut state = self.shared.lock();
        while state.noted.is_empty() {
            state.hurry = false;
            if state.closed {
                return None;
            }
            state = self.shared.wait(state);
        }
        let waited = self.shared.changed.wait_timeout_while(state, GROUP_WAIT, |state| !state.full());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.busy = true;
        state.pages = 0;
        Some(std::mem::take(&mut state.noted))
    }

    fn commit(&mut self, group: &[Entry]) -> io::Result<()> {
        self.data.sync_data()?;
        self.end = log::append(&self.file, group, self.end)?;
        self.file.sync_data()
    }
}
