//! Files that the system does not read: of one of them it says nothing of the others.

use std::io;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::*;
use crate::storage::{Disk, File, Folder, Stat};

/// A disk that fails to read, with this error, files whose names contain this, from a byte on.
#[derive(Debug)]
struct Bad {
    disk: Disk,
    fails: Arc<Mutex<Option<(String, u64, Errno)>>>,
    /// Nothing can be opened to be written.
    is_read_only: bool,
}

impl Bad {
    fn failing(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        let fails = self.fails.lock().unwrap().clone();
        let fails = fails.filter(|(part, ..)| name.contains(part)).map(|(_, from, error)| (from, error));
        Arc::new(BadFile(file, fails))
    }
}

#[derive(Debug)]
struct BadFile(Arc<dyn File>, Option<(u64, Errno)>);

impl Folder for Bad {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if self.is_read_only {
            return Err(Errno::ROFS.into());
        }
        Ok(self.failing(name, self.disk.open(name)?))
    }
    fn open_to_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.failing(name, self.disk.open_to_read(name)?))
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
        self.disk.sync()
    }
}

impl File for BadFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        match self.1 {
            Some((from, error)) if at + sealed::length(into.len()) > from => Err(error.into()),
            _ => self.0.read_at(at, into),
        }
    }
    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.0.write_at(at, from)
    }
    fn punch(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.0.punch(at, bytes)
    }
    fn data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.0.data(within)
    }
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.0.reserve(bytes)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
    fn stat(&self) -> io::Result<Stat> {
        self.0.stat()
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }
    fn wait_lock(&self) -> io::Result<()> {
        self.0.wait_lock()
    }
    fn share(&self) -> io::Result<bool> {
        self.0.share()
    }
}

/// A store with baselines `one` (pages 1 to 70) and `other` (101 to 170), on a disk that can be told to fail.
struct Scene {
    dir: tempfile::TempDir,
    store: BaselineStore,
    fails: Arc<Mutex<Option<(String, u64, Errno)>>>,
    one: Added,
    other: Added,
    packs: [String; 2],
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fails = Arc::default();
        let bad = Bad { disk: Disk::open(dir.path()).unwrap(), fails: Arc::clone(&fails), is_read_only: false };
        let store = BaselineStore::make_over(Arc::new(bad), key(), Limits::default()).unwrap();
        let one = add(&store, "one", (1..=70).collect());
        let first = Self::names(dir.path(), ".pack").remove(0);
        let other = add(&store, "other", (101..=170).collect());
        let second = Self::names(dir.path(), ".pack").into_iter().find(|name| *name != first).unwrap();
        Self { dir, store, fails, one, other, packs: [first, second] }
    }

    fn names(dir: &Path, ending: &str) -> Vec<String> {
        files(dir, ending).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    fn manifest_of_one(&self) -> std::path::PathBuf {
        let all = files(self.dir.path(), ".baseline");
        all.into_iter().find(|path| path.to_str().unwrap().contains(&self.one.digest.to_string())).unwrap()
    }

    fn fail(&self, part: &str, from: u64, error: Errno) {
        *self.fails.lock().unwrap() = Some((part.to_owned(), from, error));
    }

    fn collect(&self) -> Collected {
        self.store.collect(&mut |_| false, None).unwrap()
    }

    fn other_is_whole(&self) {
        let offered = [self.one.digest, self.other.digest];
        let (number, other) = self.store.first_of(&offered, &|_| true).unwrap().expect("the other one");
        assert_eq!((number, other.verify(&mut |_| {}).unwrap()), (1, 70));
        assert!(self.store.baseline(&name("t"), self.other.digest).is_ok());
    }
}

// spec: O-9
#[test]
fn a_manifest_that_the_disk_does_not_read_is_listed_and_collected_as_damaged() {
    let scene = Scene::new();
    scene.fail(&scene.one.digest.to_string(), 0, Errno::IO);
    let listing = scene.store.list().unwrap();
    assert_eq!((listing.baselines.len(), listing.damaged.len()), (1, 1));
    assert!(listing.damaged[0].1.is_damage(), "{:?}", listing.damaged);
    scene.other_is_whole();
    // Who adds is not told of it, and so does not remove it.
    add(&scene.store, "other", (101..=175).collect());
    assert!(scene.manifest_of_one().exists() && scene.dir.path().join(&scene.packs[0]).exists());
    let collected = scene.collect();
    assert_eq!((collected.damaged.len(), collected.left.len()), (1, 0), "{collected:?}");
    assert!(!scene.dir.path().join(&scene.packs[0]).exists(), "nobody needs it");
    assert!(scene.store.list().unwrap().damaged.is_empty());
}

#[test]
fn a_manifest_that_cannot_be_read_just_now_stays_with_its_pack() {
    let scene = Scene::new();
    scene.fail(&scene.one.digest.to_string(), 0, Errno::ACCESS);
    assert_eq!(scene.store.list().unwrap().damaged.len(), 1);
    scene.other_is_whole();
    let collected = scene.collect();
    assert_eq!((collected.damaged.len(), collected.left.len()), (0, 1), "{collected:?}");
    *scene.fails.lock().unwrap() = None;
    assert_eq!(scene.store.baseline(&name("t"), scene.one.digest).unwrap().verify(&mut |_| {}).unwrap(), 70);
}

#[test]
fn what_is_no_file_in_place_of_a_manifest_stops_nothing() {
    for place in ["link", "nowhere", "directory"] {
        let scene = Scene::new();
        let manifest = scene.manifest_of_one();
        let aside = scene.dir.path().join("aside");
        fs::rename(&manifest, &aside).unwrap();
        match place {
            "link" => symlink(&aside, &manifest).unwrap(),
            "nowhere" => symlink("nowhere", &manifest).unwrap(),
            _ => fs::create_dir(&manifest).unwrap(),
        }
        assert_eq!(scene.store.list().unwrap().damaged.len(), 1, "{place}");
        scene.other_is_whole();
        let collected = scene.collect();
        let is_directory = place == "directory";
        assert_eq!(
            (collected.damaged.len(), collected.left.len()),
            if is_directory { (0, 1) } else { (1, 0) },
            "{place}"
        );
        assert_eq!(fs::symlink_metadata(&manifest).is_ok(), is_directory, "{place}");
        scene.other_is_whole();
    }
}

#[test]
fn a_directory_that_looks_like_a_leftover_stops_no_collection() {
    let scene = Scene::new();
    let leftover = format!("store-{}.new", "0a".repeat(32));
    for directory in [&leftover, &format!("{}.pack", "0b".repeat(32)), "store-x.new"] {
        fs::create_dir(scene.dir.path().join(directory)).unwrap();
    }
    let collected = scene.collect();
    assert_eq!(collected.left.len(), 2, "{collected:?}");
    assert!(scene.dir.path().join(leftover).exists());
}

#[test]
fn a_pack_that_cannot_be_read_is_stored_anew_when_its_image_is_added() {
    for from in [0, 5000] {
        let scene = Scene::new();
        scene.fail(&scene.packs[0], from, Errno::IO);
        scene.collect();
        let again = add(&scene.store, "one", (1..=70).collect());
        assert_eq!(again.digest, scene.one.digest);
        assert!(again.stored > 0, "{again:?}");
        assert!(holds(&scene.store.baseline(&name("t"), again.digest).unwrap(), &guest(&[(1..=70).collect()])));
    }
}

#[test]
fn pages_that_cannot_be_read_are_told_like_damaged_ones() {
    let scene = Scene::new();
    scene.fail(&scene.packs[0], 5000, Errno::IO);
    let baseline = scene.store.baseline(&name("t"), scene.one.digest).unwrap();
    let mut told = 0;
    let whole = baseline.verify(&mut |progress| told += u64::from(matches!(progress, Progress::Damaged { .. })));
    assert_eq!(whole.unwrap() + told, 70);
    assert!(told >= 64, "{told}");
}

#[test]
fn a_store_that_may_only_be_read_is_listed_and_used() {
    let Scene { dir, one, store, .. } = Scene::new();
    drop(store);
    let bad = Bad { disk: Disk::open(dir.path()).unwrap(), fails: Arc::default(), is_read_only: true };
    let store = BaselineStore::over(Arc::new(bad), key(), Limits::default()).unwrap();
    let listing = store.list().unwrap();
    assert_eq!((listing.baselines.len(), listing.damaged.len()), (2, 0));
    let baseline = store.baseline(&name("t"), one.digest).unwrap();
    assert_eq!(baseline.verify(&mut |_| {}).unwrap(), 70);
    // Who may write does not remove what is read here.
    let writer = store_at(dir.path()).unwrap();
    assert_eq!(writer.collect(&mut |_| true, None).unwrap().in_use.len(), 1);
    assert!(store.collect(&mut |_| true, None).is_err());
}
