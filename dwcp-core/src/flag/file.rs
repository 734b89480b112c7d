use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::time::Instant;

use super::floor::{Remembered, Scribe, remembered};
use super::in_process::Constant;
use super::keeper::{FlagStats, Keeper, MAX_STALE, Refusal};
use super::node::NodeName;
use super::publication::{FlagWatch, Publication};
use super::snapshot::{FlagSnapshot, Origin};
use super::{FORCE_V1, FlagSource, FlagVersion, MAX_DOCUMENT_BYTES, Reason, forced_distrust, is_forced_v1};
use crate::session::Time;
use crate::storage::Folder;

/// How often the file is looked at: one `stat` unless it changed, some 2 ms of a core each second. Looking
/// sees a rename, a link that was turned elsewhere and a write in place alike, on every file system.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// At every so many looks the keeper hears that nothing changed.
const LOOKS_A_BEAT: u32 = 10;
/// Who has not looked for so long is stuck in a file system that does not answer.
const SILENCE: Duration = Duration::from_secs(1);

/// What is obeyed: version 1 if `DWCP_FORCE_V1` is set, else the file if there is one, else version 3.
///
/// ```
/// use std::path::Path;
///
/// use dwcp_core::flag::{FileOptions, NodeName, configured};
///
/// async fn until_rolled_back(file: &Path, node: NodeName) -> std::io::Result<bool> {
///     let flags = configured(Some(file), node, FileOptions::default())?;
///     let mut watch = flags.watch();
///     let mut now = watch.latest();
///     while now.v3() {
///         now = watch.changed().await;
///         println!("{now}");
///     }
///     Ok(now.reason().discards_applied())
/// }
/// ```
///
/// # Errors
/// As [`FileSource::open`].
pub fn configured(file: Option<&Path>, node: NodeName, options: FileOptions) -> io::Result<Arc<dyn FlagSource>> {
    if is_forced_v1() {
        // It must start, whatever is wrong with its folder.
        let before = options.remember.and_then(|folder| remembered(folder.as_ref()).ok()?);
        let said = forced_distrust(std::env::var_os(FORCE_V1).as_deref());
        let reason = said.or_else(|| before?.distrust).unwrap_or(Reason::Operator);
        return Ok(Arc::new(Constant::forced_v1_because(reason)));
    }
    match file {
        Some(path) => Ok(Arc::new(FileSource::open(path, node, options)?)),
        None => Ok(Arc::new(Constant::v3())),
    }
}

/// How a file is obeyed.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// For how long the last good document holds while the file is missing, garbage or older.
    pub max_stale: Duration,
    /// A version that this node has seen before it was started: none below it is taken.
    pub floor: Option<FlagVersion>,
    /// Where the highest version that was obeyed is kept for the next start, in a file `flag-version`: none below it is
    /// taken then, and until there is a good document a reason to distrust what version 3 applied still holds. Written on a thread of its own, some milliseconds after it is obeyed, and tried again every 250 ms if
    /// that fails. `None`: a restart forgets.
    pub remember: Option<Arc<dyn Folder>>,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { max_stale: MAX_STALE, floor: None, remember: None }
    }
}

/// A flag document in a file, watched by two threads of its own: one that reads, which a dead file system may hold up,
/// and one that minds the time, which nothing holds up. A change is seen within about 25 ms.
#[derive(Debug)]
pub struct FileSource {
    publication: Publication,
    /// The threads end when these are dropped.
    _stop: mpsc::Sender<()>,
    _alive: Arc<()>,
}

impl FileSource {
    /// Reads the file and watches it. Blocks for as long as the first read takes, a second at most. A file that is
    /// missing or no document is no error: this node runs version 1 until there is a good one.
    ///
    /// # Errors
    /// A thread cannot be started; or what is remembered of earlier lives cannot be read: a replay could go unnoticed, so
    /// that is not passed over.
    pub fn open(path: impl Into<PathBuf>, node: NodeName, options: FileOptions) -> io::Result<Self> {
        let path = path.into();
        let scribe = options.remember.map(Scribe::open).transpose()?;
        let before = scribe.as_ref().and_then(Scribe::before).cloned();
        let floor = options.floor.max(before.as_ref().map(|before| before.version));
        let (stop, stopped) = mpsc::channel();
        let (readings, heard) = mpsc::sync_channel(1);
        let again = Arc::new(AtomicBool::new(false));
        let looker = Looker { path: path.clone(), known: None, again: Arc::clone(&again) };
        spawn("dwcp-flag-read", move || looker.run(&readings, &stopped))?;
        let keeper = Keeper::new(node, Origin::File(path), options.max_stale, floor);
        let keeper = keeper.distrusting(before.and_then(|before| before.distrust));
        let (epoch, last) = (Instant::now(), Time::default());
        Self::over(Minder { keeper, heard, again, epoch, last, silence: SILENCE, scribe }, stop)
    }

    fn over(mut minder: Minder, stop: mpsc::Sender<()>) -> io::Result<Self> {
        let alive = Arc::new(());
        let _ = minder.hear();
        let publication = Publication::new(minder.keeper.snapshot());
        publication.count(minder.stats());
        let (theirs, living) = (publication.clone(), Arc::downgrade(&alive));
        spawn("dwcp-flag", move || minder.run(&theirs, &living))?;
        Ok(Self { publication, _stop: stop, _alive: alive })
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

impl FlagSource for FileSource {
    fn snapshot(&self) -> Arc<FlagSnapshot> {
        self.publication.snapshot()
    }

    fn watch(&self) -> FlagWatch {
        self.publication.watch()
    }

    fn stats(&self) -> FlagStats {
        self.publication.stats()
    }
}

/// The thread that minds the time.
#[derive(Debug)]
struct Minder {
    keeper: Keeper,
    heard: Receiver<Reading>,
    /// Asks for the file anew, changed or not.
    again: Arc<AtomicBool>,
    epoch: Instant,
    /// When something was heard last, or silence was told of.
    last: Time,
    silence: Duration,
    scribe: Option<Scribe>,
}

impl Minder {
    fn run(mut self, publication: &Publication, living: &Weak<()>) {
        while self.hear() && living.strong_count() > 0 {
            publication.count(self.stats());
            publication.publish(self.keeper.snapshot());
        }
    }

    /// Obeyed first, written down then.
    fn stats(&mut self) -> FlagStats {
        let mut stats = self.keeper.stats();
        if let Some(scribe) = &mut self.scribe {
            scribe.obeyed(Remembered::of(&self.keeper.snapshot()));
            scribe.count(&mut stats);
        }
        stats
    }

    fn now(&self) -> Time {
        Time::after_epoch(self.epoch.elapsed())
    }

    /// Waits for a reading, for the age at which a document expires, or for silence. False: nobody reads any more.
    fn hear(&mut self) -> bool {
        let now = self.now();
        let limit = (self.last + self.silence).since(now);
        let limit = self.keeper.deadline().map_or(limit, |deadline| limit.min(deadline.since(now)));
        let reading = self.heard.recv_timeout(limit);
        let now = self.now();
        if reading.is_ok() {
            self.last = now;
        }
        match reading {
            Ok(Reading::Same) => self.keeper.tick(now),
            Ok(Reading::Bytes(bytes)) => match self.keeper.load(now, &bytes) {
                Ok(()) => tracing::info!("{}", self.keeper.snapshot()),
                Err(_) => tracing::warn!("a flag document is refused: {}", self.keeper.snapshot()),
            },
            Ok(Reading::Failed(refusal)) => self.fail(now, &refusal),
            Err(RecvTimeoutError::Timeout) if now.since(self.last) >= self.silence => {
                self.last = now;
                // Told of once. Whatever is read after it is news.
                if !self.again.swap(true, Ordering::Relaxed) {
                    self.fail(now, &Refusal::Silent);
                }
                self.keeper.tick(now);
            }
            Err(RecvTimeoutError::Timeout) => self.keeper.tick(now),
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn fail(&mut self, now: Time, refusal: &Refusal) {
        self.keeper.fail(now, refusal);
        tracing::warn!("flags cannot be read: {}", self.keeper.snapshot());
    }
}

/// What a look at the file found.
#[derive(Debug)]
enum Reading {
    Same,
    Bytes(Vec<u8>),
    Failed(Refusal),
}

/// The thread that reads.
#[derive(Debug)]
struct Looker {
    path: PathBuf,
    known: Option<Known>,
    again: Arc<AtomicBool>,
}

/// What the last look found.
#[derive(Debug)]
enum Known {
    /// `settled`: it was read again one look after its stamp changed. A file that is written twice within a tick of the
    /// kernel's clock has the same stamp twice, but not for as long as 25 ms.
    Bytes {
        stamp: Stamp,
        bytes: Vec<u8>,
        settled: bool,
    },
    Failure(String),
}

impl Looker {
    fn run(mut self, readings: &SyncSender<Reading>, stopped: &Receiver<()>) {
        let mut beats = (0..LOOKS_A_BEAT).cycle();
        loop {
            let reading = self.look();
            let beat = beats.next() == Some(0);
            if (beat || !matches!(reading, Reading::Same)) && readings.send(reading).is_err() {
                return;
            }
            if stopped.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self) -> Reading {
        if self.again.swap(false, Ordering::Relaxed) {
            self.known = None;
        }
        let found = self.unless_same();
        let reading = match (found, &self.known) {
            (Ok(None), _) => return Reading::Same,
            (Ok(Some((stamp, bytes))), known) => {
                let (same, settled) = match known {
                    Some(Known::Bytes { stamp: old, bytes: known, .. }) => (*known == bytes, *old == stamp),
                    _ => (false, false),
                };
                let reading = if same { Reading::Same } else { Reading::Bytes(bytes.clone()) };
                (reading, Known::Bytes { stamp, bytes, settled })
            }
            (Err(why), Some(Known::Failure(known))) if why == *known => return Reading::Same,
            (Err(why), _) => (Reading::Failed(Refusal::Unreadable(why.clone())), Known::Failure(why)),
        };
        self.known = Some(reading.1);
        reading.0
    }

    /// The file, unless nothing about it changed.
    fn unless_same(&self) -> Result<Option<(Stamp, Vec<u8>)>, String> {
        let stamp = Stamp::of(&fs::metadata(&self.path).map_err(|error| error.to_string())?);
        match &self.known {
            Some(Known::Bytes { stamp: known, settled: true, .. }) if *known == stamp => Ok(None),
            _ => read(&self.path).map(Some).map_err(|error| error.to_string()),
        }
    }
}

/// A regular file, and no more of it than shows that it is too long.
fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    // Without NONBLOCK the open of a pipe would wait for somebody to write to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let limit = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    // The stamp is older than the bytes: what is written meanwhile differs from it at the next look.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((Stamp::of(&metadata), bytes))
}

/// What changes when a file is replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::flag::floor::tests::Shelf;
    use crate::flag::{RefusalKind, Standing, Why};
    use crate::storage::Disk;

    /// Nothing here takes a second on an idle machine.
    const LIMIT: Duration = Duration::from_secs(60);

    fn document(version: u64, enabled: bool) -> String {
        format!(r#"{{"version": {version}, "flags": {{"dwcp_v3_hde": {{"enabled": {enabled}, "percentage": 100}}}}}}"#)
    }

    fn node() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    fn open(path: &Path) -> FileSource {
        FileSource::open(path, node(), FileOptions::default()).unwrap()
    }

    /// The first snapshot that is so.
    #[track_caller]
    fn until(watch: &mut FlagWatch, is: impl Fn(&FlagSnapshot) -> bool) -> Arc<FlagSnapshot> {
        let mut snapshot = watch.latest();
        while !is(&snapshot) {
            snapshot = watch.wait(LIMIT).unwrap_or_else(|| panic!("it stayed so: {snapshot}"));
        }
        snapshot
    }

    fn replace(path: &Path, text: &str) {
        let beside = path.with_extension("tmp");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, path).unwrap();
    }

    #[test]
    fn a_replaced_file_is_seen_and_timed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        fs::write(&path, document(1, true)).unwrap();
        let source = open(&path);
        assert!(source.snapshot().v3(), "what is there at the start holds at once");
        assert_eq!(source.snapshot().seen(), None);
        let mut watch = source.watch();
        replace(&path, &document(2, false));
        let off = until(&mut watch, |snapshot| !snapshot.v3());
        assert_eq!(
            (off.version().map(FlagVersion::value), off.decision(crate::flag::Flag::V3).why),
            (Some(2), Why::Disabled)
        );
        assert!(off.seen().is_some());
        // In place, and of the same length.
        fs::write(&path, document(3, true) + " ").unwrap();
        until(&mut watch, FlagSnapshot::v3);
        assert_eq!(source.stats().loads, 3);
    }

    #[test]
    fn a_link_that_is_turned_elsewhere_is_seen() {
        // As the kubelet does it: file -> ..data/file, ..data -> a folder; ..data is replaced.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, enabled, version) in [("..1", true, 1), ("..2", false, 2)] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("flags.json"), document(version, enabled)).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/flags.json", at("flags.json")).unwrap();
        let source = open(&at("flags.json"));
        assert!(source.snapshot().v3());
        let mut watch = source.watch();
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        until(&mut watch, |snapshot| !snapshot.v3());
    }

    #[test]
    fn garbage_half_a_file_and_none_leave_what_was_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        fs::write(&path, document(5, true)).unwrap();
        let source = open(&path);
        let mut watch = source.watch();
        let text = document(6, false);
        let cases = [
            (&text[..text.len() / 2], RefusalKind::Garbage),
            ("", RefusalKind::Garbage),
            (r#"{"version": 6, "flag": {}}"#, RefusalKind::Invalid),
            (&document(4, false), RefusalKind::Older),
            (&document(5, false), RefusalKind::Conflict),
            (&" ".repeat(MAX_DOCUMENT_BYTES + 1), RefusalKind::TooLarge),
        ];
        let mut trouble = None;
        for (text, kind) in cases {
            let before = source.stats().refused(kind);
            replace(&path, text);
            let failing =
                until(&mut watch, |snapshot| snapshot.trouble().is_some() && snapshot.trouble() != trouble.as_deref());
            assert!(failing.v3(), "{failing}");
            assert_eq!(failing.standing(), Standing::Failing);
            assert_eq!(source.stats().refused(kind), before + 1, "{kind:?}");
            trouble = failing.trouble().map(str::to_owned);
        }
        fs::remove_file(&path).unwrap();
        until(&mut watch, |snapshot| snapshot.trouble().is_some_and(|trouble| trouble.contains("No such file")));
        replace(&path, &document(5, true));
        let good = until(&mut watch, |snapshot| snapshot.trouble().is_none());
        assert!(good.v3() && good.standing() == Standing::Current);
        let stats = source.stats();
        assert_eq!((stats.loads, stats.expiries, stats.stale), (1, 0, Duration::ZERO));
        replace(&path, &text);
        until(&mut watch, |snapshot| !snapshot.v3());
    }

    #[test]
    fn what_is_gone_for_too_long_is_obeyed_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        fs::write(&path, document(1, true)).unwrap();
        let options = FileOptions { max_stale: Duration::from_millis(40), ..FileOptions::default() };
        let source = FileSource::open(&path, node(), options.clone()).unwrap();
        let mut watch = source.watch();
        fs::remove_file(&path).unwrap();
        let expired = until(&mut watch, |snapshot| !snapshot.v3());
        assert_eq!((expired.standing(), expired.reason().as_str()), (Standing::Expired, "stale"));
        assert_eq!(source.stats().expiries, 1);
        assert!(source.stats().stale >= options.max_stale);
        replace(&path, &document(1, true));
        until(&mut watch, FlagSnapshot::v3);
    }

    #[test]
    fn without_a_good_document_since_the_start_it_is_version_1() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        let source = open(&path);
        assert!(!source.snapshot().v3() && !source.snapshot().compression());
        assert_eq!(
            (source.snapshot().standing(), source.snapshot().reason().as_str()),
            (Standing::Never, "no-document")
        );
        let mut watch = source.watch();
        // A pipe: its open must not wait for a writer.
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        until(&mut watch, |snapshot| snapshot.trouble().is_some_and(|trouble| trouble.contains("no regular file")));
        replace(&path, &document(1, true));
        until(&mut watch, FlagSnapshot::v3);
        let floor = FlagVersion::new(9);
        let reborn = FileSource::open(&path, node(), FileOptions { floor, ..FileOptions::default() }).unwrap();
        assert!(!reborn.snapshot().v3(), "an older one was seen in an earlier life");
        assert_eq!(reborn.stats().refused(RefusalKind::Older), 1);
    }

    /// Obeys the documents of these versions, one after the other, and lives until the last is durable.
    fn lives_through(records: &Path, path: &Path, versions: &[u64]) -> FlagStats {
        let (shelf, synced) = Shelf::open(records, 0);
        let options = FileOptions { remember: Some(shelf), ..FileOptions::default() };
        let source = FileSource::open(path, node(), options).unwrap();
        let mut watch = source.watch();
        for &version in versions {
            replace(path, &document(version, version % 2 == 1));
            until(&mut watch, |snapshot| snapshot.version().map(FlagVersion::value) == Some(version));
            synced.recv_timeout(LIMIT).unwrap();
        }
        source.stats()
    }

    #[test]
    fn a_restart_without_a_document_still_distrusts_what_the_last_one_did() {
        let folder = tempfile::tempdir().unwrap();
        let (records, path) = (folder.path().join("records"), folder.path().join("flags.json"));
        fs::create_dir(&records).unwrap();
        let options = || {
            let remember: Arc<dyn Folder> = Arc::new(Disk::open(&records).unwrap());
            FileOptions { remember: Some(remember), ..FileOptions::default() }
        };
        let killed = r#"{"version": 7, "flags": {"dwcp_v3_hde": {"enabled": true, "percentage": 100, "kill": true, "reason": "integrity"}}}"#;
        replace(&path, killed);
        let (shelf, synced) = Shelf::open(&records, 0);
        let source =
            FileSource::open(&path, node(), FileOptions { remember: Some(shelf), ..FileOptions::default() }).unwrap();
        assert!(source.snapshot().reason().discards_applied());
        synced.recv_timeout(LIMIT).unwrap();
        drop(source);
        replace(&path, "half");
        let reborn = FileSource::open(&path, node(), options()).unwrap();
        assert_eq!((reborn.snapshot().v3(), reborn.snapshot().reason()), (false, &Reason::Integrity));
        replace(&path, &document(8, true));
        let mut watch = reborn.watch();
        until(&mut watch, FlagSnapshot::v3);
    }

    #[test]
    fn a_restart_refuses_what_is_older_than_what_was_obeyed() {
        let folder = tempfile::tempdir().unwrap();
        let (records, path) = (folder.path().join("records"), folder.path().join("flags.json"));
        fs::create_dir(&records).unwrap();
        let stats = lives_through(&records, &path, &[5, 7, 8]);
        assert_eq!((stats.loads, stats.unremembered), (3, 0));
        // Somebody puts an old document back, which lets version 3 in again, and starts the node anew.
        replace(&path, &document(7, true));
        let remember: Arc<dyn Folder> = Arc::new(Disk::open(&records).unwrap());
        let options = FileOptions { remember: Some(remember), ..FileOptions::default() };
        let reborn = FileSource::open(&path, node(), options.clone()).unwrap();
        assert!(!reborn.snapshot().v3());
        assert_eq!((reborn.stats().refused(RefusalKind::Older), reborn.stats().loads), (1, 0));
        assert_eq!(reborn.stats().remembered, FlagVersion::new(8));
        let trouble = reborn.snapshot().trouble().unwrap().to_owned();
        assert!(trouble.contains("7 is older than 8") && trouble.contains("raise it"), "{trouble}");
        drop(reborn);
        // A higher version is obeyed: that is how an operator goes back on purpose.
        let stats = lives_through(&records, &path, &[9]);
        assert_eq!((stats.refused(RefusalKind::Older), stats.loads), (1, 1));
        // Without a folder a restart forgets.
        replace(&path, &document(1, true));
        assert!(open(&path).snapshot().v3());
        // What is damaged is not passed over.
        fs::write(records.join("flag-version"), "9").unwrap();
        let error = FileSource::open(&path, node(), options).unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
    }

    #[test]
    fn a_file_system_that_does_not_answer_is_noticed_and_recovers() {
        let (readings, heard) = mpsc::sync_channel(1);
        let (stop, _stopped) = mpsc::channel();
        let again = Arc::new(AtomicBool::new(false));
        let options = FileOptions { max_stale: Duration::from_millis(60), ..FileOptions::default() };
        let keeper = Keeper::new(node(), Origin::File("f".into()), options.max_stale, None);
        let silence = Duration::from_millis(20);
        let epoch = Instant::now();
        readings.send(Reading::Bytes(document(1, true).into_bytes())).unwrap();
        let last = Time::default();
        let minder = Minder { keeper, heard, again: Arc::clone(&again), epoch, last, silence, scribe: None };
        let source = FileSource::over(minder, stop).unwrap();
        let mut watch = source.watch();
        until(&mut watch, |snapshot| snapshot.trouble().is_some_and(|trouble| trouble.contains("does not answer")));
        assert!(again.load(Ordering::Relaxed), "it is to be read anew");
        let expired = until(&mut watch, |snapshot| !snapshot.v3());
        assert_eq!(expired.standing(), Standing::Expired);
        assert_eq!(source.stats().refused(RefusalKind::Silent), 1, "once, however long it lasts");
        again.store(false, Ordering::Relaxed);
        readings.send(Reading::Bytes(document(1, true).into_bytes())).unwrap();
        until(&mut watch, FlagSnapshot::v3);
        // Nobody reads any more: the thread ends, and what was known stays.
        drop(readings);
    }
}
