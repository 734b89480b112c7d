use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::keeper::FlagStats;
use super::{FlagSnapshot, FlagVersion, Reason};
use crate::storage::{Folder, read_all};

/// In the folder of records.
const NAME: &str = "flag-version";
const BESIDE: &str = "flag-version.tmp";
/// Who holds it may raise the version: several processes may have one folder.
const LOCK: &str = "flag-version.lock";
const TITLE: &str = "dwcp flag version 1\nobeyed ";
/// A second line, where the reason is one to remember.
const DISTRUST: &str = "distrust ";
/// No version is longer.
const MOST_BYTES: u64 = 256;
/// What could not be written is tried again so often: as often as the file of the document tells that it lives.
const AGAIN: Duration = Duration::from_millis(250);

/// What a node that is started again knows of the document that it obeyed before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remembered {
    /// The highest version: nothing older is taken.
    pub version: FlagVersion,
    /// Why that took this node off version 3, if what version 3 had applied is not to be trusted.
    pub distrust: Option<Reason>,
}

impl Remembered {
    /// What is obeyed now.
    pub(super) fn of(obeyed: &FlagSnapshot) -> Option<Self> {
        let distrust = Some(obeyed.reason().clone()).filter(|reason| !obeyed.v3() && reason.discards_applied());
        Some(Self { version: obeyed.version()?, distrust })
    }
}

/// What the node that keeps its records in this folder remembers. `None`: it never obeyed a document.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn remembered(folder: &dyn Folder) -> io::Result<Option<Remembered>> {
    read(folder)
}

/// The highest version of a document that was obeyed, durable: a node that is started again takes nothing older.
#[derive(Debug)]
struct Floor {
    folder: Arc<dyn Folder>,
    obeyed: Option<Remembered>,
    /// The last write failed: what can be read may not be durable.
    doubtful: bool,
}

impl Floor {
    fn open(folder: Arc<dyn Folder>) -> io::Result<Self> {
        let obeyed = read(folder.as_ref())?;
        Ok(Self { folder, obeyed, doubtful: false })
    }

    fn version(&self) -> Option<FlagVersion> {
        self.obeyed.as_ref().map(|obeyed| obeyed.version)
    }

    /// It never falls, whoever raises it at the same time.
    fn raise(&mut self, least: &Remembered) -> io::Result<()> {
        if self.version() >= Some(least.version) {
            return Ok(());
        }
        let folder = self.folder.as_ref();
        let lock = folder.create(LOCK).or_else(|_| folder.open(LOCK))?;
        lock.wait_lock()?;
        let present = read(folder)?;
        let newer = present.as_ref().filter(|present| present.version >= least.version);
        let obeyed = newer.unwrap_or(least).clone();
        if present.as_ref() != Some(&obeyed) || self.doubtful {
            self.doubtful = true;
            write(folder, &obeyed)?;
            self.doubtful = false;
        }
        self.obeyed = Some(obeyed);
        Ok(())
    }
}

fn read(folder: &dyn Folder) -> io::Result<Option<Remembered>> {
    let bytes = match folder.open(NAME).and_then(|file| read_all(file.as_ref(), MOST_BYTES)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| io::Error::new(error.kind(), format!("{NAME} cannot be read: {error}")))?,
    };
    let none = || {
        let what = format!("{NAME} in the folder of records is damaged; remove it to forget which version was obeyed");
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    std::str::from_utf8(&bytes).ok().and_then(parse).map(Some).ok_or_else(none)
}

fn parse(text: &str) -> Option<Remembered> {
    let (version, rest) = text.strip_prefix(TITLE)?.split_once('\n')?;
    let distrust = match rest {
        "" => None,
        rest => {
            let reason: Reason = rest.strip_prefix(DISTRUST)?.strip_suffix('\n')?.parse().ok()?;
            Some(Some(reason).filter(Reason::discards_applied)?)
        }
    };
    Some(Remembered { version: FlagVersion::new(version.parse().ok()?)?, distrust })
}

fn render(obeyed: &Remembered) -> String {
    let distrust = obeyed.distrust.as_ref().map_or(String::new(), |reason| format!("{DISTRUST}{reason}\n"));
    format!("{TITLE}{}\n{distrust}", obeyed.version.value())
}

/// Beside its place and renamed: after a crash there is the old one or the new one.
fn write(folder: &dyn Folder, obeyed: &Remembered) -> io::Result<()> {
    match folder.remove(BESIDE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = folder.create(BESIDE)?;
    file.write_at(0, render(obeyed).as_bytes())?;
    file.sync()?;
    folder.replace(BESIDE, NAME)?;
    folder.sync()
}

/// Writes versions down on a thread of its own: a disk that hangs must not keep a node from obeying. What could not be
/// written is tried again every [`AGAIN`] for as long as this lives.
#[derive(Debug)]
pub(super) struct Scribe {
    /// The thread ends when it is dropped.
    tell: mpsc::Sender<Remembered>,
    told: Option<FlagVersion>,
    /// What was written in an earlier life.
    before: Option<Remembered>,
    written: Arc<Written>,
}

#[derive(Debug, Default)]
struct Written {
    version: Mutex<Option<FlagVersion>>,
    failed: AtomicU64,
}

impl Scribe {
    /// With what was written in an earlier life.
    pub(super) fn open(folder: Arc<dyn Folder>) -> io::Result<Self> {
        let floor = Floor::open(folder)?;
        let (tell, hear) = mpsc::channel();
        let (told, before) = (floor.version(), floor.obeyed.clone());
        let written = Arc::new(Written { version: Mutex::new(told), failed: AtomicU64::new(0) });
        let theirs = Arc::clone(&written);
        thread::Builder::new().name("dwcp-flag-floor".into()).spawn(move || theirs.keep(floor, &hear))?;
        Ok(Self { tell, told, before, written })
    }

    /// What was durable when it was opened.
    pub(super) fn before(&self) -> Option<&Remembered> {
        self.before.as_ref()
    }

    /// This is obeyed. Does not wait.
    pub(super) fn obeyed(&mut self, obeyed: Option<Remembered>) {
        let Some(obeyed) = obeyed.filter(|obeyed| Some(obeyed.version) > self.told) else { return };
        self.told = Some(obeyed.version);
        // The thread lives as long as this does.
        let _ = self.tell.send(obeyed);
    }

    pub(super) fn count(&self, stats: &mut FlagStats) {
        stats.remembered = self.written.version();
        stats.unremembered = self.written.failed.load(Ordering::Relaxed);
    }
}

impl Written {
    fn version(&self) -> Option<FlagVersion> {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, mut floor: Floor, hear: &Receiver<Remembered>) {
        let (mut due, mut warned) = (None::<Remembered>, None);
        loop {
            let heard = match due {
                None => hear.recv().map_err(RecvTimeoutError::from),
                Some(_) => hear.recv_timeout(AGAIN),
            };
            let obeyed = match heard {
                Ok(first) => Some(hear.try_iter().last().unwrap_or(first)),
                Err(RecvTimeoutError::Timeout) => due.take(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(obeyed) = obeyed else { continue };
            due = self.write(&mut floor, &obeyed).err().map(|error| {
                if warned.replace(obeyed.version) != Some(obeyed.version) {
                    warn(obeyed.version, &error);
                }
                obeyed
            });
        }
    }

    fn write(&self, floor: &mut Floor, obeyed: &Remembered) -> io::Result<()> {
        let raised = floor.raise(obeyed);
        match raised {
            Ok(()) => *self.version.lock().unwrap_or_else(PoisonError::into_inner) = floor.version(),
            Err(_) => _ = self.failed.fetch_add(1, Ordering::Relaxed),
        }
        raised
    }
}

fn warn(version: FlagVersion, error: &io::Error) {
    let (version, often) = (version.value(), AGAIN.as_millis());
    tracing::warn!(
        "flag version {version} is obeyed, and cannot be written down: {error}; it is tried again every {often} ms, and a \
         restart before that may take an older one"
    );
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::storage::{Disk, File, Stat};

    /// A directory of this machine that tells of each sync, and by the end of its channel that nobody has it any more.
    #[derive(Debug)]
    pub(crate) struct Shelf {
        disk: Disk,
        synced: mpsc::Sender<()>,
        /// So many syncs fail, the first ones.
        failing: AtomicU64,
    }

    impl Shelf {
        pub(crate) fn open(path: &Path, failing: u64) -> (Arc<Self>, Receiver<()>) {
            let (synced, told) = mpsc::channel();
            let disk = Disk::open(path).unwrap();
            (Arc::new(Self { disk, synced, failing: AtomicU64::new(failing) }), told)
        }
    }

    impl Folder for Shelf {
        fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
            self.disk.open(name)
        }

        fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
            self.disk.create(name)
        }

        fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
            self.disk.stat(name)
        }

        fn list(&self) -> io::Result<Vec<String>> {
            self.disk.list()
        }

        fn replace(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.replace(from, to)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.rename(from, to)
        }

        fn link(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.link(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.disk.remove(name)
        }

        fn sync(&self) -> io::Result<()> {
            if self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                return Err(io::Error::other("a disk that fails"));
            }
            self.disk.sync()?;
            let _ = self.synced.send(());
            Ok(())
        }
    }

    fn version(number: u64) -> FlagVersion {
        FlagVersion::new(number).unwrap()
    }

    fn obeyed(number: u64) -> Remembered {
        Remembered { version: version(number), distrust: None }
    }

    #[test]
    fn what_could_not_be_written_is_tried_again_and_never_taken_for_durable() {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, synced) = Shelf::open(folder.path(), 2);
        let mut scribe = Scribe::open(shelf).unwrap();
        let written = Arc::clone(&scribe.written);
        // No other version follows.
        scribe.obeyed(Some(obeyed(7)));
        synced.recv_timeout(Duration::from_secs(60)).unwrap();
        drop(scribe);
        assert_eq!(synced.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
        assert_eq!((written.version(), written.failed.load(Ordering::Relaxed)), (Some(version(7)), 2));
    }

    #[test]
    fn it_never_falls_and_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Floor::open(Arc::new(Disk::open(folder.path()).unwrap()));
        let (mut one, mut other) = (open().unwrap(), open().unwrap());
        assert_eq!(one.version(), None);
        one.raise(&obeyed(7)).unwrap();
        // It does not know of the 7 yet.
        other.raise(&obeyed(5)).unwrap();
        assert_eq!((other.version(), open().unwrap().version()), (Some(version(7)), Some(version(7))));
        other.raise(&obeyed(9)).unwrap();
        assert_eq!(open().unwrap().version(), Some(version(9)));
        let beside = folder.path().join(BESIDE);
        assert!(!beside.exists());
        // A crash in the middle left half of one.
        fs::write(&beside, "dwcp fl").unwrap();
        other.raise(&obeyed(10)).unwrap();
        assert_eq!(open().unwrap().version(), Some(version(10)));
        // Of the highest version it is remembered why nothing may be trusted, and of the next one that all is well.
        let distrusted = Remembered { distrust: Some(Reason::Integrity), ..obeyed(11) };
        other.raise(&distrusted).unwrap();
        one.raise(&obeyed(10)).unwrap();
        assert_eq!((open().unwrap().obeyed, one.obeyed.clone()), (Some(distrusted.clone()), Some(distrusted)));
        one.raise(&obeyed(12)).unwrap();
        assert_eq!(open().unwrap().obeyed, Some(obeyed(12)));
    }

    #[test]
    fn a_damaged_one_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let half = "dwcp flag version 1\nobeyed 7\ndistrust integ\n";
        for text in
            ["", "7", "dwcp flag version 1\nobeyed 7", "dwcp flag version 1\nobeyed 0\n", half, &"7".repeat(300)]
        {
            fs::write(folder.path().join(NAME), text).unwrap();
            let error = Floor::open(Arc::new(Disk::open(folder.path()).unwrap())).unwrap_err();
            assert!(error.to_string().contains(NAME), "{text}: {error}");
        }
    }
}
