//! A disk in memory that keeps apart what is in its cache and what is durable.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use dwcp_core::storage::{File, Folder, Stat};

/// What a disk writes as a whole.
pub(super) const SECTOR: usize = 512;

type Sector = Arc<[u8; SECTOR]>;
/// Which folder, and the name in it.
pub(super) type Place = (&'static str, String);

/// Whose syncs do nothing: the same to what runs on it as a program that forgot them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Of staging files.
    Staging,
    /// Of journals.
    Journal,
    /// Of records.
    Record,
    /// Of names.
    Names,
    /// Of packs of baselines.
    Pack,
    /// Of manifests of baselines.
    Manifest,
}

impl Lie {
    /// Those that break a promise of a transfer.
    pub const ALL: [Self; 4] = [Self::Staging, Self::Journal, Self::Record, Self::Names];
    /// Those that break a promise of a store of baselines.
    pub const OF_STORE: [Self; 3] = [Self::Pack, Self::Manifest, Self::Names];

    fn is_about(self, name: &str) -> bool {
        match self {
            Self::Staging => name.ends_with(".part"),
            Self::Journal => name.ends_with(".wal") || name.ends_with(".new"),
            Self::Record => name.ends_with(".tmp"),
            Self::Pack => name.ends_with(".pack"),
            Self::Manifest => name.ends_with(".baseline.new"),
            Self::Names => false,
        }
    }
}

/// The bytes of a file: `None` is a sector of zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) sectors: BTreeMap<u64, Sector>,
    pub(super) bytes: u64,
}

impl Content {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = usize::try_from(at).unwrap() % SECTOR;
            let (now, later) = rest.split_at((SECTOR - within).min(rest.len()));
            let sector = self.sectors.entry(at / SECTOR as u64).or_insert_with(|| Arc::new([0; SECTOR]));
            Arc::make_mut(sector)[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        self.bytes = self.bytes.max(at);
    }

    /// Sectors as a whole become holes, the ends of the range zeros.
    fn punch(&mut self, at: u64, bytes: u64) {
        let end = at + bytes;
        for sector in sectors(at, bytes) {
            let first = sector * SECTOR as u64;
            if at <= first && first + SECTOR as u64 <= end {
                self.sectors.remove(&sector);
            } else if let Some(bytes) = self.sectors.get_mut(&sector) {
                let within = at.saturating_sub(first) as usize..(end - first).min(SECTOR as u64) as usize;
                Arc::make_mut(bytes)[within].fill(0);
            }
        }
    }

    /// Sectors that were written and not made holes again.
    fn data(&self, within: Range<u64>) -> Option<Range<u64>> {
        if within.is_empty() {
            return None;
        }
        let mut here = self.sectors.range(sectors(within.start, within.end.saturating_sub(within.start)));
        let first = *here.next()?.0;
        let count = 1 + here.zip(first + 1..).take_while(|((sector, _), next)| *sector == next).count() as u64;
        let (start, end) = (first * SECTOR as u64, (first + count) * SECTOR as u64);
        Some(start.max(within.start)..end.min(within.end))
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        if at + into.len() as u64 > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let within = usize::try_from(at).unwrap() % SECTOR;
            let length = (SECTOR - within).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            match self.sectors.get(&(at / SECTOR as u64)) {
                Some(sector) => now.copy_from_slice(&sector[within..within + length]),
                None => now.fill(0),
            }
            at += length as u64;
            rest = later;
        }
        Ok(())
    }

    fn set_len(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.sectors.retain(|sector, _| sector * (SECTOR as u64) < bytes);
            let within = usize::try_from(bytes).unwrap() % SECTOR;
            if let Some(last) = self.sectors.get_mut(&(bytes / SECTOR as u64)) {
                Arc::make_mut(last)[within..].fill(0);
            }
        }
        self.bytes = bytes;
    }
}

/// A change of a file that is not durable: one sector, or the length.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Sector(u64, Option<Sector>),
    Length(u64),
}

impl Change {
    /// Whether both change the same.
    fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sector(one, _), Self::Sector(other, _)) => one == other,
            (Self::Length(_), Self::Length(_)) => true,
            _ => false,
        }
    }

    fn is_data(&self) -> bool {
        matches!(self, Self::Sector(_, Some(_)))
    }

    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Self::Sector(sector, Some(bytes)) => {
                content.sectors.insert(*sector, Arc::clone(bytes));
            }
            Self::Sector(sector, None) => {
                content.sectors.remove(sector);
            }
            Self::Length(bytes) => content.set_len(*bytes),
        }
    }
}

/// A change of a name that is not durable.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    Made(Place, usize),
    Moved(Place, Place, usize),
    Gone(Place),
}

impl Naming {
    pub(super) fn apply(&self, names: &mut BTreeMap<Place, usize>) {
        match self {
            Self::Made(place, inode) => {
                names.insert(place.clone(), *inode);
            }
            Self::Moved(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            Self::Gone(place) => {
                names.remove(place);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// What programs see.
    pub(super) live: Content,
    pub(super) durable: Content,
    /// In order, since the last sync.
    pub(super) pending: Vec<Change>,
    /// Written before a sync that failed: may be on the disk or not, and no later sync makes sure of it.
    pub(super) lost: Vec<Change>,
}

/// Everything that a disk holds, and what its users were told about it.
#[derive(Clone, Debug, Default)]
pub(super) struct State<T> {
    pub(super) inodes: Vec<Inode>,
    pub(super) names: BTreeMap<Place, usize>,
    pub(super) durable_names: BTreeMap<Place, usize>,
    pub(super) pending_names: Vec<Naming>,
    /// What was promised to others, as far as things have gone.
    pub(super) told: T,
    /// What was done, when somebody wants to know.
    pub(super) trace: Option<Vec<String>>,
}

impl<T> State<T> {
    /// Whether a sync has failed, and nobody has written anew what it was to make durable.
    pub(super) fn has_lost(&self) -> bool {
        self.names.values().any(|inode| !self.inodes[*inode].lost.is_empty())
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }
}

/// A disk whose every step is kept, as a place to crash at.
#[derive(Debug)]
pub(super) struct Disk<T> {
    inner: Arc<Mutex<Inner<T>>>,
}

#[derive(Debug)]
struct Inner<T> {
    state: State<T>,
    steps: Option<Vec<State<T>>>,
    lie: Option<Lie>,
    /// Syncs until one fails.
    fault: Option<u32>,
    failed: bool,
}

impl<T> Clone for Disk<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T: Clone + Default + Send + std::fmt::Debug + 'static> Disk<T> {
    /// A disk on which a program starts in this state. The sync after `fault` others fails. Steps are kept if they
    /// are wanted.
    pub(super) fn start(state: State<T>, lie: Option<Lie>, fault: Option<u32>, kept: bool) -> Self {
        let inner = Inner { state, steps: kept.then(Vec::new), lie, fault, failed: false };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of its folders.
    pub(super) fn folder(&self, name: &'static str) -> Arc<dyn Folder> {
        Arc::new(FolderOf { disk: self.clone(), folder: name })
    }

    /// Changes what was promised, as a step of its own.
    pub(super) fn tell(&self, change: impl FnOnce(&mut T)) {
        let mut inner = self.lock();
        change(&mut inner.state.told);
        let told = format!("told {:?}", inner.state.told);
        inner.state.note(|| told);
        inner.keep();
    }

    pub(super) fn told(&self) -> T {
        self.lock().state.told.clone()
    }

    /// Whether the sync that was to fail has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// The state now.
    pub(super) fn state(&self) -> State<T> {
        self.lock().state.clone()
    }

    /// The state after every step so far.
    pub(super) fn take_steps(&self) -> Vec<State<T>> {
        self.lock().steps.take().unwrap_or_default()
    }

    /// Changes the state, and keeps what came out of it.
    fn step<R>(&self, change: impl FnOnce(&mut Inner<T>) -> io::Result<R>) -> io::Result<R> {
        let mut inner = self.lock();
        let result = change(&mut inner);
        if result.is_err() {
            inner.state.note(|| "  failed".into());
        }
        let result = result?;
        inner.keep();
        Ok(result)
    }
}

#[derive(Debug)]
struct FolderOf<T> {
    disk: Disk<T>,
    folder: &'static str,
}

impl<T: Clone + Default + Send + std::fmt::Debug + 'static> FolderOf<T> {
    fn place(&self, name: &str) -> Place {
        (self.folder, name.to_owned())
    }

    fn handle(&self, inode: usize, name: &str) -> Arc<dyn File> {
        Arc::new(FileOf { disk: self.disk.clone(), inode, name: name.to_owned() })
    }
}

fn stat<T>(inner: &Inner<T>, inode: usize) -> Stat {
    let live = &inner.state.inodes[inode].live;
    let used = live.sectors.len() as u64 * SECTOR as u64;
    Stat::regular((0, inode as u64), live.bytes, used, SystemTime::UNIX_EPOCH)
}

impl<T: Clone + Default + Send + std::fmt::Debug + 'static> Folder for FolderOf<T> {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inode = self.disk.lock().state.names.get(&self.place(name)).copied();
        Ok(self.handle(inode.ok_or(io::ErrorKind::NotFound)?, name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let place = self.place(name);
        let inode = self.disk.step(|inner| {
            let state = &mut inner.state;
            if state.names.contains_key(&place) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.names.insert(place.clone(), inode);
            state.note(|| format!("create {place:?} as {inode}"));
            state.pending_names.push(Naming::Made(place, inode));
            Ok(inode)
        })?;
        Ok(self.handle(inode, name))
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        let inner = self.disk.lock();
        Ok(inner.state.names.get(&self.place(name)).map(|inode| stat(&inner, *inode)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.disk.lock();
        let here = inner.state.names.keys().filter(|(folder, _)| *folder == self.folder);
        Ok(here.map(|(_, name)| name.clone()).collect())
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.place(from), self.place(to));
        self.disk.step(|inner| {
            let inode = inner.state.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
            inner.state.names.insert(to.clone(), inode);
            inner.state.note(|| format!("rename {from:?} to {to:?}"));
            inner.state.pending_names.push(Naming::Moved(from, to, inode));
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.disk.lock().state.names.contains_key(&self.place(to)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.replace(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.place(from), self.place(to));
        self.disk.step(|inner| {
            let inode = *inner.state.names.get(&from).ok_or(io::ErrorKind::NotFound)?;
            if inner.state.names.insert(to.clone(), inode).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            inner.state.note(|| format!("link {from:?} as {to:?}"));
            inner.state.pending_names.push(Naming::Made(to, inode));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let place = self.place(name);
        self.disk.step(|inner| {
            inner.state.names.remove(&place).ok_or(io::ErrorKind::NotFound)?;
            inner.state.note(|| format!("remove {place:?}"));
            inner.state.pending_names.push(Naming::Gone(place));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(|inner| {
            inner.state.note(|| format!("sync {}", self.folder));
            inner.fails()?;
            if inner.lie != Some(Lie::Names) {
                let state = &mut inner.state;
                let (here, others) = std::mem::take(&mut state.pending_names)
                    .into_iter()
                    .partition::<Vec<_>, _>(|naming| naming.folder() == self.folder);
                here.iter().for_each(|naming| naming.apply(&mut state.durable_names));
                state.pending_names = others;
            }
            Ok(())
        })
    }
}

impl Naming {
    fn folder(&self) -> &'static str {
        match self {
            Self::Made((folder, _), _) | Self::Moved((folder, _), ..) | Self::Gone((folder, _)) => folder,
        }
    }
}

impl<T: Clone> Inner<T> {
    fn keep(&mut self) {
        if let Some(steps) = &mut self.steps {
            steps.push(self.state.clone());
        }
    }

    /// Counts a sync; an error when it is the one that fails.
    fn fails(&mut self) -> io::Result<()> {
        match self.fault.as_mut() {
            Some(0) => {
                (self.fault, self.failed) = (None, true);
                Err(io::Error::other("the disk failed"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct FileOf<T> {
    disk: Disk<T>,
    inode: usize,
    name: String,
}

impl<T: Clone + Default + Send + std::fmt::Debug + 'static> FileOf<T> {
    fn change(&self, change: impl FnOnce(&mut Content) -> Range<u64>) -> io::Result<()> {
        self.disk.step(|inner| {
            let inode = &mut inner.state.inodes[self.inode];
            let before = inode.live.bytes;
            let touched = change(&mut inode.live);
            let shown =
                format!("change {} ({}): sectors {touched:?}, length {}", self.inode, self.name, inode.live.bytes);
            if inode.live.bytes != before {
                inode.pending.push(Change::Length(inode.live.bytes));
            }
            for sector in touched {
                inode.pending.push(Change::Sector(sector, inode.live.sectors.get(&sector).cloned()));
            }
            inner.state.note(|| shown);
            Ok(())
        })
    }
}

/// Sectors that a range of bytes touches.
fn sectors(at: u64, bytes: u64) -> Range<u64> {
    at / SECTOR as u64..(at + bytes).div_ceil(SECTOR as u64)
}

impl<T: Clone + Default + Send + std::fmt::Debug + 'static> File for FileOf<T> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.lock().state.inodes[self.inode].live.read(at, into)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.change(|content| {
            content.write(at, from);
            sectors(at, from.len() as u64)
        })
    }

    fn punch(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.change(|content| {
            let length = bytes.min(content.bytes - at);
            content.punch(at, length);
            sectors(at, length)
        })
    }

    fn data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(self.disk.lock().state.inodes[self.inode].live.data(within))
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(|content| {
            content.set_len(bytes);
            0..0
        })
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(stat(&self.disk.lock(), self.inode))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(|inner| {
            inner.state.note(|| format!("sync {} ({})", self.inode, self.name));
            let (lie, failed) = (inner.lie, inner.fails());
            let inode = &mut inner.state.inodes[self.inode];
            if let Err(error) = failed {
                // Lengths and holes are in the file system's own log: when that cannot be written it takes nothing more.
                let pending = std::mem::take(&mut inode.pending);
                let (lost, kept) = pending.into_iter().partition::<Vec<_>, _>(Change::is_data);
                inode.lost.extend(lost);
                inode.pending = kept;
                // Killed before it can do anything about it: whoever is next finds in the kernel's cache what is lost.
                inner.keep();
                return Err(error);
            }
            if !lie.is_some_and(|lie| lie.is_about(&self.name)) {
                for change in std::mem::take(&mut inode.pending) {
                    change.apply(&mut inode.durable);
                    // What was written again since is written.
                    inode.lost.retain(|lost| !lost.is_of(&change));
                }
            }
            Ok(())
        })
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn wait_lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn share(&self) -> io::Result<bool> {
        Ok(true)
    }
}
