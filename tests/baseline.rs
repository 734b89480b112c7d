//! `dwcp baseline`, as an operator meets it, and what happens to a store below it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_core::baseline::{BaselineError, BaselineStore, Limits, StoreKey};
use dwcp_core::guest::{Guest, Memory};
use dwcp_core::storage::{Disk, File as StoredFile, Folder, Stat};
use dwcp_core::wire::Name;
use dwcp_core::{Layout, PAGE_BYTES, RegionId};
use operator::{Said, dwcp, figure, run};

/// A folder with a store, a key and images.
struct Store {
    folder: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = dwcp();
        command.args(["baseline", verb, "--json", "--store"]).arg(self.path("store"));
        command.arg("--key-file").arg(self.path("key"));
        command
    }

    fn add(&self, name: &str, image: &Path) -> Said {
        run(self.command("add").args(["--make-key", "--tenant", "web", "--name", name]).arg(image))
    }

    /// An image of so many pages, each with its number, and zeros after them.
    fn image(&self, name: &str, pages: std::ops::Range<u32>) -> PathBuf {
        let path = self.path(name);
        let mut file = File::create(&path).unwrap();
        for page in pages {
            let mut bytes = [0; PAGE_BYTES];
            blake3::Hasher::new().update(&page.to_le_bytes()).finalize_xof().fill(&mut bytes[..1500]);
            file.write_all(&bytes).unwrap();
        }
        file.write_all(&[0; 10 * PAGE_BYTES]).unwrap();
        path
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.path("store")).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
    }
}

#[test]
fn a_baseline_is_added_listed_shown_verified_and_collected() {
    let store = Store::new();
    let added = store.add("golden", &store.image("golden.mem", 1..201));
    assert_eq!(added.code, 0, "{}", added.err);
    let summary = added.summary();
    assert_eq!(
        (figure(&summary, "pages"), figure(&summary, "zero_pages"), figure(&summary, "stored_pages")),
        (210, 10, 200)
    );
    assert_eq!(store.path("key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.path("store").metadata().unwrap().permissions().mode() & 0o777, 0o700);

    let later = store.add("vm1", &store.image("vm1.mem", 100..301)).summary();
    assert_eq!((figure(&later, "known_pages"), figure(&later, "stored_pages")), (101, 100));

    let listed = run(&mut store.command("list"));
    assert_eq!((listed.code, figure(&listed.summary(), "baselines")), (0, 2));
    let shown = run(store.command("show").arg("golden")).summary();
    assert_eq!((&shown["digest"], &shown["tenant"]), (&summary["digest"], &"web".into()));
    assert_eq!(figure(&shown, "unique_pages"), 200);
    assert!(figure(&shown, "bytes_own") < figure(&shown, "bytes_disk"), "half of it is shared");
    run(store.command("show").arg("none")).failed(1, &["no baseline none", "baseline list"]);
    assert_eq!(run(&mut store.command("verify")).code, 0);

    run(store.command("gc").args(["--remove", "golden", "--tenant", "other"]))
        .failed(1, &["no baseline of tenant other", "it has some of: web", "nothing was removed"]);
    for verb in ["list", "verify"] {
        run(store.command(verb).args(["--tenant", "other"]))
            .failed(1, &["no baseline of tenant other", "some of: web"]);
    }
    run(store.command("show").args(["none", "--tenant", "web"])).failed(1, &["tenant web has no baseline none"]);
    let swept = run(store.command("gc").args(["--remove", "golden", "--tenant", "web"])).summary();
    assert_eq!(figure(&swept, "removed"), 1);
    assert!(figure(&swept, "bytes_disk") < figure(&swept, "bytes_before"));
    assert_eq!(run(store.command("verify").arg("vm1")).code, 0, "what it shares is still there");
    // Somebody who means 20 GiB must not lose all that is there.
    run(store.command("gc").args(["--limit", "20"])).failed(2, &["`20` is no size", "4GiB"]);
    let swept = run(store.command("gc").args(["--limit", "1B"])).summary();
    assert_eq!((figure(&swept, "removed"), store.files("").len()), (1, 1));
}

#[test]
fn a_file_is_no_store_and_the_message_says_so() {
    let store = Store::new();
    let image = store.image("vm1.mem", 1..3);
    store.add("vm1", &image);
    let key = store.path("key");
    for (words, option) in [
        (&["baseline", "list", "--store"][..], "--key-file"),
        (&["estimate", "--link", "1gbit", "--baseline", "vm1", "--baseline-store"], "--baseline-key"),
    ] {
        let mut command = dwcp();
        command.args(words).arg(&image).arg(option).arg(&key);
        if words.contains(&"estimate") {
            command.arg(&image);
        }
        run(&mut command).failed(1, &["vm1.mem is no directory", "dwcp baseline add"]);
    }
    let mut add = dwcp();
    add.args(["baseline", "add", "--tenant", "web", "--name", "vm1", "--store"]).arg(image.join("store"));
    run(add.arg("--key-file").arg(&key).arg(&image)).failed(1, &["vm1.mem is no directory", "another folder"]);
}

#[test]
fn regions_are_kept_apart() {
    let store = Store::new();
    let (low, high) = (store.image("low.mem", 1..20), store.image("high.mem", 30..70));
    let said = run(store.command("add").args(["--make-key", "--tenant", "web", "--name", "vm1"]).args([&low, &high]));
    assert_eq!(said.code, 0, "{}", said.err);
    let shown = run(store.command("show").arg("vm1")).summary();
    assert_eq!(shown["regions"], serde_json::json!([29 * 4096, 50 * 4096]));
}

#[test]
fn a_key_that_others_can_read_is_refused_and_so_is_another_key() {
    let store = Store::new();
    let image = store.image("a.mem", 1..5);
    let without = |key: &str| {
        let mut command = dwcp();
        command.args(["baseline", "list", "--store"]).arg(store.path("store")).arg("--key-file").arg(store.path(key));
        run(&mut command)
    };
    run(store.command("add").args(["--tenant", "web", "--name", "a"]).arg(&image)).failed(1, &["--make-key"]);
    assert!(!store.path("store").exists(), "nothing is made without a key");
    assert_eq!(store.add("a", &image).code, 0);
    let key = fs::read(store.path("key")).unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(store.add("a", &image).code, 0, "--make-key leaves a key alone");
    assert_eq!(fs::read(store.path("key")).unwrap(), key);
    for mode in [0o640, 0o604, 0o622] {
        fs::set_permissions(store.path("key"), fs::Permissions::from_mode(mode)).unwrap();
        run(&mut store.command("list")).failed(1, &["others can read the key", "chmod 600"]);
        store.add("b", &image).failed(1, &["chmod 600"]);
    }
    for (name, bytes, word) in
        [("other", &[1; 32][..], "another key"), ("short", &[1; 31], "31 bytes"), ("empty", &[], "0 bytes")]
    {
        fs::write(store.path(name), bytes).unwrap();
        fs::set_permissions(store.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        without(name).failed(1, &[word]);
    }
    without("missing").failed(1, &["missing", "--make-key"]);
    let nowhere = run(dwcp()
        .args(["baseline", "list", "--key-file"])
        .arg(store.path("short"))
        .arg("--store")
        .arg(store.path("nowhere")));
    nowhere.failed(1, &["nowhere", "--store"]);
}

#[test]
fn a_store_without_its_header_is_not_made_anew_with_another_key() {
    let store = Store::new();
    let image = store.image("a.mem", 1..5);
    assert_eq!(store.add("a", &image).code, 0);
    fs::remove_file(store.path("store/store")).unwrap();
    run(&mut store.command("list")).failed(4, &["`store`", "is missing", "baseline add", "own key"]);
    let mut wrong = dwcp();
    wrong
        .args(["baseline", "add", "--make-key", "--tenant", "web", "--name", "b", "--key-file"])
        .arg(store.path("wrong"));
    wrong.arg("--store").arg(store.path("store")).arg(&image);
    run(&mut wrong).failed(1, &["no file `store`", "this key opens none", "Nothing was changed", "Name the key"]);
    assert!(!store.path("store/store").exists());
    assert_eq!(store.add("a", &image).summary()["known_pages"], 4);
    assert_eq!(run(&mut store.command("list")).summary()["baselines"], 1);
}

#[test]
fn a_key_that_does_not_fit_the_disk_is_not_left_there_in_part() {
    let store = Store::new();
    let image = store.image("a.mem", 1..5);
    let mut full = Command::new("sh");
    // A write fails, as on a full disk, and does not end the process.
    full.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]).arg(dwcp().get_program());
    full.args(["baseline", "add", "--json", "--make-key", "--tenant", "web", "--name", "a", "--store"]);
    let said = run(full.arg(store.path("store")).arg("--key-file").arg(store.path("key")).arg(&image));
    said.failed(1, &["cannot write the key"]);
    let names: Vec<_> = fs::read_dir(store.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a.mem"]);
    assert_eq!(store.add("a", &image).code, 0);
}

#[test]
fn nothing_of_an_image_stands_in_the_store() {
    let store = Store::new();
    let image = store.image("a.mem", 1..100);
    let marker = b"PLANTED-PLAINTEXT-MARKER";
    File::options().write(true).open(&image).unwrap().write_at(4096 * 7, &marker.repeat(100)).unwrap();
    assert_eq!(store.add("secret-name", &image).code, 0);
    let key = fs::read(store.path("key")).unwrap();
    for path in store.files("") {
        let bytes = fs::read(&path).unwrap();
        for planted in [&marker[..], b"secret-name", &key] {
            assert!(!bytes.windows(planted.len()).any(|window| window == planted), "{}", path.display());
        }
    }
}

#[test]
fn damage_is_told_by_name_and_repaired_by_adding_again() {
    let store = Store::new();
    let image = store.image("a.mem", 1..201);
    assert_eq!(store.add("a", &image).code, 0);
    let pack = store.files(".pack").remove(0);
    let file = File::options().read(true).write(true).open(&pack).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 1]).unwrap();
    let said = run(&mut store.command("verify"));
    said.failed(
        4,
        &["a of tenant web", "64 of 200 pages are damaged", "region 0", "not what was sealed", "Add its image again"],
    );
    assert_eq!((&said.summary()["verdict"], &said.summary()["damaged"]), (&"integrity".into(), &1.into()));
    let healed = store.add("a", &image).summary();
    assert_eq!((&healed["known_pages"], &healed["stored_pages"]), (&136.into(), &64.into()));
    assert_eq!(run(&mut store.command("verify")).code, 0);

    for pack in store.files(".pack") {
        fs::remove_file(pack).unwrap();
    }
    run(store.command("verify").arg("a")).failed(4, &["it is missing", "Add its image again"]);
    assert_eq!(store.add("a", &image).code, 0);
    for manifest in store.files(".baseline") {
        File::options().write(true).open(manifest).unwrap().set_len(70).unwrap();
    }
    run(&mut store.command("verify")).failed(4, &["it ends before byte", "baseline gc"]);
    assert_eq!(run(&mut store.command("gc")).summary()["damaged"], 1);
    assert_eq!(store.files("").len(), 1, "the header is left");
}

#[test]
fn a_manifest_that_is_no_file_takes_no_other_baseline_away() {
    let store = Store::new();
    assert_eq!(store.add("a", &store.image("a.mem", 1..5)).code, 0);
    let manifest = store.files(".baseline").remove(0);
    assert_eq!(store.add("b", &store.image("b.mem", 5..9)).code, 0);
    fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink("nowhere", &manifest).unwrap();
    run(&mut store.command("list")).failed(4, &["cannot be read", "baseline gc"]);
    run(&mut store.command("verify")).failed(4, &["cannot be read"]);
    let said = run(store.command("gc").args(["--tenant", "web", "--remove", "a"]));
    said.failed(1, &["tenant web has no baseline a", "cannot be read has no name"]);
    assert_eq!(run(store.command("gc").args(["--tenant", "web", "--remove", "b"])).summary()["removed"], 1);
    assert_eq!(run(&mut store.command("list")).summary()["baselines"], 0);
}

#[test]
fn what_does_not_fit_the_limit_is_refused_with_what_to_do() {
    let store = Store::new();
    let image = store.image("a.mem", 1..401);
    let said = run(store
        .command("add")
        .args(["--make-key", "--tenant", "web", "--name", "a", "--limit", "300KiB"])
        .arg(&image));
    said.failed(1, &["may have 307200", "Nothing was added", "baseline gc", "--limit"]);
    assert_eq!(store.files("").len(), 1);
    assert_eq!(run(&mut store.command("list")).summary()["baselines"], 0);
}

#[test]
fn a_process_that_dies_while_it_adds_leaves_what_was_there_and_garbage() {
    let store = Store::new();
    assert_eq!(store.add("a", &store.image("a.mem", 1..50)).code, 0);
    // A pipe that opens as an image would be refused, so it reads a large one and is killed once its pack is there.
    let large = store.path("large.mem");
    File::create(&large).unwrap().set_len(8 << 30).unwrap();
    let pages: Vec<u8> = (0..4096 * 512_u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for at in 0..24 {
        File::options().write(true).open(&large).unwrap().write_at(at * (64 << 20), &pages).unwrap();
    }
    let mut adding = store.command("add");
    adding.args(["--tenant", "web", "--name", "large"]).arg(&large).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = adding.spawn().unwrap();
    while store.files(".pack").len() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let listed = run(&mut store.command("list"));
    assert_eq!((listed.code, &listed.summary()["damaged"]), (0, &0.into()));
    assert_eq!(run(store.command("verify").arg("a")).code, 0);
    assert_eq!(run(&mut store.command("gc")).code, 0);
    let manifests = store.files(".baseline").len();
    assert_eq!(store.files(".pack").len(), manifests, "what the dead one left is gone");
}

/// A disk with so many bytes of room, counted by what is written.
#[derive(Debug)]
struct Small {
    disk: Disk,
    room: Arc<AtomicU64>,
}

#[derive(Debug)]
struct SmallFile(Arc<dyn StoredFile>, Arc<AtomicU64>);

impl Folder for Small {
    fn open(&self, name: &str) -> std::io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(SmallFile(self.disk.open(name)?, Arc::clone(&self.room))))
    }
    fn create(&self, name: &str) -> std::io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(SmallFile(self.disk.create(name)?, Arc::clone(&self.room))))
    }
    fn stat(&self, name: &str) -> std::io::Result<Option<Stat>> {
        self.disk.stat(name)
    }
    fn list(&self) -> std::io::Result<Vec<String>> {
        self.disk.list()
    }
    fn replace(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.replace(from, to)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.link(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.disk.remove(name)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.disk.sync()
    }
}

impl StoredFile for SmallFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(at, into)
    }
    fn write_at(&self, at: u64, from: &[u8]) -> std::io::Result<()> {
        let bytes = u64::try_from(from.len()).unwrap();
        let taken = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(bytes));
        taken.map_err(|_| std::io::ErrorKind::StorageFull)?;
        self.0.write_at(at, from)
    }
    fn punch(&self, at: u64, bytes: u64) -> std::io::Result<()> {
        self.0.punch(at, bytes)
    }
    fn reserve(&self, bytes: u64) -> std::io::Result<()> {
        self.0.reserve(bytes)
    }
    fn set_len(&self, bytes: u64) -> std::io::Result<()> {
        self.0.set_len(bytes)
    }
    fn stat(&self) -> std::io::Result<Stat> {
        self.0.stat()
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }
    fn lock(&self) -> std::io::Result<bool> {
        self.0.lock()
    }
    fn wait_lock(&self) -> std::io::Result<()> {
        self.0.wait_lock()
    }
    fn share(&self) -> std::io::Result<bool> {
        self.0.share()
    }
}

#[test]
fn a_disk_that_fills_up_at_any_write_leaves_the_store_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(AtomicU64::new(u64::MAX));
    let small = Small { disk: Disk::open(folder.path()).unwrap(), room: Arc::clone(&room) };
    let store = BaselineStore::make_over(Arc::new(small), StoreKey::new(&[1; 32]), Limits::default()).unwrap();
    let guest = |from: u64| {
        let memory = Memory::new(Layout::new(&[200 * 4096]).unwrap());
        for page in 0..200 {
            memory.write(RegionId(0), page, &(from + u64::from(page)).to_le_bytes().repeat(512)).unwrap();
        }
        memory
    };
    let name = |text| Name::new(text).unwrap();
    let first = store.add(&name("t"), &name("a"), &guest(1), &mut |_| {}).unwrap();
    // Opening one leaves a file that tells when.
    store.baseline(&name("t"), first.digest).unwrap();
    let names = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let before = names(folder.path());
    let (mut refused, mut bytes) = (0, 0);
    loop {
        room.store(bytes, Ordering::SeqCst);
        match store.add(&name("t"), &name("a"), &guest(5000), &mut |_| {}) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, BaselineError::DiskFull { .. }), "{error}"),
        }
        assert_eq!(names(folder.path()), before, "room for {bytes} bytes");
        let old = store.baseline(&name("t"), first.digest).unwrap();
        assert_eq!(old.verify(&mut |_| {}).unwrap(), 200);
        refused += 1;
        bytes += 61;
    }
    assert!(refused > 20, "{refused}");
}
