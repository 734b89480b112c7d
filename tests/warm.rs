//! A transfer between two nodes that hold an earlier state of the image: only what changed travels.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use operator::{LIMIT, Lines, Place, Receiver, dwcp, figure, noise, run, whole};

const PAGE: usize = 4096;
const PAGES: usize = 2000;

/// Two nodes with a store each, of the same key.
struct Warm {
    place: Place,
    before: Vec<u8>,
}

impl Warm {
    fn new() -> Self {
        let warm = Self { place: Place::new(), before: noise(PAGES * PAGE) };
        fs::write(warm.path("before.mem"), &warm.before).unwrap();
        warm
    }

    /// With the baseline in both stores.
    fn at_both() -> Self {
        let warm = Self::new();
        ["a", "b"].iter().for_each(|node| warm.add(node));
        warm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The image of before becomes the baseline of a node.
    fn add(&self, node: &str) {
        self.add_with(node, "key");
    }

    fn add_with(&self, node: &str, key: &str) {
        let mut command = dwcp();
        command.args(["baseline", "add", "--make-key", "--tenant", "web", "--name", "golden", "--store"]);
        command.arg(self.path(node)).arg("--key-file").arg(self.path(key)).arg(self.path("before.mem"));
        let said = run(&mut command);
        assert_eq!(said.code, 0, "{}", said.err);
    }

    /// A receiver takes what its sender names.
    fn with_store(&self, mut command: Command, node: &str) -> Command {
        command.arg("--baseline-store").arg(self.path(node)).arg("--baseline-key").arg(self.path("key"));
        command
    }

    fn with_baseline(&self, command: Command, node: &str) -> Command {
        let mut command = self.with_store(command, node);
        command.args(["--baseline", "golden"]);
        command
    }

    fn keeping(&self, command: Command, node: &str) -> Command {
        let mut command = self.with_store(command, node);
        command.args(["--baseline-tenant", "web", "--keep-baseline", "vm1-kept"]);
        command
    }

    /// A word of every twentieth page is another one, eight pages are moved, and there are four new ones.
    fn after(&self) -> PathBuf {
        self.after_with(4)
    }

    fn after_with(&self, new_pages: usize) -> PathBuf {
        let mut bytes = self.before.clone();
        for page in (0..PAGES).step_by(20) {
            bytes[page * PAGE + 100..][..8].copy_from_slice(b"changed!");
        }
        bytes.copy_within(51 * PAGE..59 * PAGE, 71 * PAGE);
        // Nothing that was in it before.
        bytes.extend(noise(new_pages * PAGE).iter().map(|byte| !byte));
        let path = self.path("after.mem");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The same pages, all elsewhere: as of another guest of the same system.
    fn moved(&self) -> PathBuf {
        let (path, moved) = (self.path("moved.mem"), self.before.chunks(PAGE).rev());
        fs::write(&path, moved.flatten().copied().collect::<Vec<u8>>()).unwrap();
        path
    }

    /// The same, and of each page a tenth is new.
    fn moved_and_changed(&self) -> PathBuf {
        let path = self.moved();
        let mut bytes = fs::read(&path).unwrap();
        let changed = bytes.chunks_mut(PAGE).flat_map(|page| &mut page[1000..1400]);
        changed.for_each(|byte| *byte = byte.wrapping_mul(7).rotate_left(3) ^ 0x5a);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn send(&self, to: &str, image: &Path) -> Command {
        let mut command = self.place.send(to, "vm1");
        command.arg("--json").arg(image);
        command
    }

    /// Sends an image slowly to a receiver that is killed on the way, and started again with these words. Returns the
    /// sender's summary, and what it said before of baselines.
    fn through_a_kill(&self, again: impl FnOnce(&str) -> Command) -> (serde_json::Value, Vec<serde_json::Value>) {
        // What is new takes 3 s, and what was not laid down before the kill as much as 8.
        let image = self.after_with(750);
        let mut receiver = Receiver::start(&mut self.with_store(self.place.receive(), "b"));
        let address = receiver.address.clone();
        let mut slow = self.with_baseline(self.send(&address, &image), "a");
        let sending = Lines::start(slow.args(["--bandwidth", "1MB"]));
        receiver.lines.until("baseline");
        receiver.lines.until("progress");
        receiver.lines.kill();
        let receiver = Receiver::start(&mut again(&address));
        let mut told = Vec::new();
        let summary = loop {
            let mut line = sending.lines.recv_timeout(LIMIT).unwrap();
            match line["event"].as_str() {
                Some("summary") => break line,
                Some("baseline") => told.push(line["baseline"].take()),
                _ => {}
            }
        };
        whole(&summary);
        self.arrived(receiver, &image);
        (summary, told)
    }

    fn arrived(&self, receiver: Receiver, image: &Path) {
        receiver.stop();
        assert!(fs::read(image).unwrap() == fs::read(self.place.stored("vm1")).unwrap());
    }
}

/// The only pack of a node's store.
fn pack_of(node: &Path) -> PathBuf {
    let mut files = fs::read_dir(node).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|end| end == "pack")).unwrap()
}

/// Flips bits all over the pages of a node's store.
fn rot(node: &Path) {
    let pack = pack_of(node);
    let mut bytes = fs::read(&pack).unwrap();
    let step = bytes.len() / 50;
    bytes.iter_mut().skip(1000).step_by(step).for_each(|byte| *byte ^= 1);
    fs::write(&pack, bytes).unwrap();
}

#[test]
fn of_an_image_that_both_nodes_had_only_what_changed_travels() {
    let warm = Warm::at_both();
    let image = warm.after();
    let mut receiver = Receiver::start(&mut warm.with_store(warm.place.receive(), "b"));
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    let here = receiver.lines.until("baseline");
    assert_eq!((figure(&here, "pages"), &here["baseline"]), (2000, &"golden".into()));
    assert_eq!(sending.until("baseline")["baseline"], "golden");
    let statistics = sending.until("statistics");
    let summary = sending.until("summary");
    whole(&summary);
    // 100 changed words, the numbers of 8 pages from elsewhere, and 4 new ones, which are noise.
    let wire = figure(&summary, "bytes_wire");
    assert!((4 * 4096..4 * 4096 + 100 * 60).contains(&wire), "{wire} bytes");
    // What the receiver holds is one byte of an ACCEPT.
    assert!(figure(&statistics, "bytes_received") < 8 * 1024, "{statistics}");
    warm.arrived(receiver, &image);
}

#[test]
fn pages_that_moved_travel_as_their_numbers() {
    let warm = Warm::at_both();
    let (image, receiver) = (warm.moved(), Receiver::start(&mut warm.with_store(warm.place.receive(), "b")));
    let summary = run(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a")).summary();
    whole(&summary);
    let methods = summary["codec"]["methods"].as_array().unwrap();
    let by_number = methods.iter().find(|of| of["method"] == "of-baseline").unwrap();
    assert_eq!(figure(by_number, "pages"), u64::try_from(PAGES).unwrap());
    assert!(figure(&summary, "bytes_wire") < 12_000, "{summary}");
    warm.arrived(receiver, &image);
}

#[test]
fn pages_that_moved_and_changed_travel_as_a_number_and_what_changed() {
    let warm = Warm::at_both();
    let (image, receiver) =
        (warm.moved_and_changed(), Receiver::start(&mut warm.with_store(warm.place.receive(), "b")));
    let summary = run(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a")).summary();
    whole(&summary);
    let methods = summary["codec"]["methods"].as_array().unwrap();
    let alike = figure(methods.iter().find(|of| of["method"] == "like-baseline").unwrap(), "pages");
    let pages = u64::try_from(PAGES).unwrap();
    // Of a few pages the four least hashes are all of lines that changed.
    assert!((pages - pages / 100..=pages).contains(&alike), "{summary}");
    let (wire, all) = (figure(&summary, "bytes_wire"), pages * 4096);
    assert!(wire < all / 5, "{wire} of {all} bytes, where a tenth is new");
    warm.arrived(receiver, &image);
}

#[test]
fn a_page_that_was_named_and_is_damaged_at_the_receiver_ends_the_transfer_by_name() {
    let warm = Warm::at_both();
    let (image, receiver) = (warm.moved(), Receiver::start(&mut warm.with_store(warm.place.receive(), "b")));
    rot(&warm.path("b"));
    let send = || run(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    // What to do stands before what is too long for a frame.
    send().failed(
        4,
        &["of baseline golden cannot be used", "send it again, without --baseline if", "names all such pages ("],
    );
    whole(&send().summary());
    warm.arrived(receiver, &image);
}

#[test]
fn an_image_that_is_the_baseline_does_not_travel() {
    let warm = Warm::at_both();
    let image = warm.path("before.mem");
    let receiver = Receiver::start(&mut warm.with_store(warm.place.receive(), "b"));
    // By that it is known which baselines were not used for long; who only looks leaves it as it is.
    let is_used =
        || fs::read_dir(warm.path("a")).unwrap().any(|file| file.unwrap().path().extension() == Some("used".as_ref()));
    let mut estimate = dwcp();
    estimate.args(["estimate", "--link", "1gbit"]).arg(&image);
    assert_eq!((run(&mut warm.with_baseline(estimate, "a")).code, is_used()), (0, false));
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    let summary = sending.until("summary");
    whole(&summary);
    assert!(is_used());
    assert!(figure(&summary, "bytes_wire") < 16 * 1024, "{summary}");
    warm.arrived(receiver, &image);
}

/// Each end says that there is nothing in common, and all pages travel.
#[test]
fn where_nothing_is_in_common_all_pages_travel_and_both_ends_say_so() {
    for (sender, receiver_has, said) in [
        (Some("a"), None, "has no store"),
        (None, Some("b"), "names no baseline"),
        (Some("a"), Some("other-key"), "none of the baselines"),
        (Some("a"), Some("only-silver"), "none of the baselines"),
    ] {
        let warm = Warm::new();
        warm.add("a");
        let mut receive = warm.place.receive();
        match receiver_has {
            Some("other-key") => {
                warm.add_with("b", "key2");
                receive.arg("--baseline-store").arg(warm.path("b")).arg("--baseline-key").arg(warm.path("key2"));
            }
            Some("only-silver") => {
                warm.add("b");
                let mut silver = dwcp();
                silver.args(["baseline", "add", "--tenant", "web", "--name", "silver", "--store"]).arg(warm.path("b"));
                silver.arg("--key-file").arg(warm.path("key")).arg(warm.after());
                assert_eq!(run(&mut silver).code, 0);
                receive = warm.with_store(receive, "b");
                receive.args(["--baseline", "silver"]);
            }
            Some(_) => {
                warm.add("b");
                receive = warm.with_store(receive, "b");
            }
            None => {}
        }
        let mut receiver = Receiver::start(&mut receive);
        let image = warm.after();
        let mut send = warm.send(&receiver.address, &image);
        if let Some(node) = sender {
            send = warm.with_baseline(send, node);
        }
        let mut sending = Lines::start(&mut send);
        if sender.is_some() {
            assert!(sending.until("baseline")["baseline"].is_null(), "{said}");
        }
        let summary = sending.until("summary");
        whole(&summary);
        assert!(figure(&summary, "bytes_wire") > 2000 * 4096, "{said}: {summary}");
        let told = receiver.lines.until("baseline");
        assert!(told["baseline"].is_null() && told["name"] == "vm1", "{told}");
        assert!(told["why"].as_str().unwrap().contains(said), "{said}: {told}");
        warm.arrived(receiver, &image);
    }
}

#[test]
fn a_store_that_is_damaged_at_the_sender_costs_bytes_and_nothing_else() {
    let warm = Warm::at_both();
    rot(&warm.path("a"));
    let image = warm.after();
    let receiver = Receiver::start(&mut warm.with_store(warm.place.receive(), "b"));
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    let summary = sending.until("summary");
    whole(&summary);
    let wire = figure(&summary, "bytes_wire");
    // Numbers of pages need no reading.
    assert!((104 * 4096..112 * 4096).contains(&wire), "{wire} bytes");
    warm.arrived(receiver, &image);
    let (_, errors) = sending.end();
    for said in ["cannot be read here", "could not be read here in all"] {
        assert_eq!(errors.matches(said).count(), 1, "{errors}");
    }
}

#[test]
fn a_store_that_is_damaged_at_the_receiver_is_named_once_and_not_used_again() {
    let warm = Warm::at_both();
    rot(&warm.path("b"));
    let image = warm.after();
    let mut receiver = Receiver::start(&mut warm.with_store(warm.place.receive(), "b"));
    let first = run(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    first.failed(4, &["of baseline golden cannot be used", "The source is intact", "the disk of its baselines"]);
    assert_eq!(receiver.lines.until("transfer")["verdict"], "integrity");
    assert!(!warm.place.stored("vm1").exists());
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    assert!(sending.until("baseline")["baseline"].is_null());
    let summary = sending.until("summary");
    whole(&summary);
    assert!(figure(&summary, "bytes_wire") > 2000 * 4096, "{summary}");
    assert!(fs::read(&image).unwrap() == fs::read(warm.place.stored("vm1")).unwrap());
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    // What was laid down is thrown away, and nothing else is said of it.
    assert!(code == 0 && err.contains("Nothing of it became visible here") && !err.contains("are kept"), "{err}");
}

/// What happens to a pack, and what is said of it.
type Spoiled<'a> = (&'a dyn Fn(&Path), &'a str);

/// It is told, and nothing is promised of it: the transfer goes on without.
#[test]
fn a_receiver_whose_pack_is_gone_or_cut_off_or_cannot_be_opened_goes_on_without_it() {
    let gone = |pack: &Path| fs::remove_file(pack).unwrap();
    let cut_off = |pack: &Path| fs::File::options().write(true).open(pack).unwrap().set_len(5000).unwrap();
    let not_opened = |pack: &Path| {
        fs::remove_file(pack).unwrap();
        fs::create_dir(pack).unwrap();
    };
    let cases: [Spoiled<'_>; 3] =
        [(&gone, "it is missing"), (&cut_off, "it ends before byte"), (&not_opened, "directory")];
    let why = "none of the baselines that the sender of vm1 names can be used";
    for (spoil, said) in cases {
        let warm = Warm::at_both();
        let (image, pack) = (warm.after(), pack_of(&warm.path("b")));
        let mut receiver = Receiver::start(&mut warm.with_store(warm.place.receive(), "b"));
        spoil(&pack);
        let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
        assert!(sending.until("baseline")["baseline"].is_null());
        let told = receiver.lines.until("baseline");
        assert!(told["baseline"].is_null() && told["why"].as_str().unwrap().contains(why), "{told}");
        let summary = sending.until("summary");
        whole(&summary);
        assert!(figure(&summary, "bytes_wire") > 2000 * 4096, "{summary}");
        assert!(fs::read(&image).unwrap() == fs::read(warm.place.stored("vm1")).unwrap());
        receiver.lines.interrupt();
        let (code, err) = receiver.lines.end();
        assert!(
            code == 0 && err.contains(said) && err.contains(&pack.file_name().unwrap().display().to_string()),
            "{err}"
        );
    }
}

#[test]
fn what_both_ends_keep_makes_the_way_back_warm() {
    let warm = Warm::new();
    warm.add("a");
    let image = warm.path("before.mem");
    // The receiver has a key and no store yet.
    let mut receiver = Receiver::start(&mut warm.keeping(warm.place.receive(), "b"));
    let mut sending = Lines::start(&mut warm.keeping(warm.send(&receiver.address, &image), "a"));
    let sent = sending.until("baseline-kept");
    whole(&sending.until("summary"));
    let arrived = receiver.lines.until("baseline-kept");
    assert_eq!((&sent["digest"], &sent["error"]), (&arrived["digest"], &serde_json::Value::Null));
    // It was known there before: not a page of it was stored again.
    assert_eq!((figure(&sent, "stored_pages"), figure(&arrived, "stored_pages")), (0, 2000));
    warm.arrived(receiver, &image);

    // The guest ran there and wrote a little; now it goes back.
    let back = warm.after();
    let receiver = Receiver::start(warm.with_store(warm.place.receive(), "a").arg("--replace"));
    let mut send = warm.with_store(warm.send(&receiver.address, &back), "b");
    let mut sending = Lines::start(send.args(["--baseline", "vm1-kept"]));
    let summary = sending.until("summary");
    whole(&summary);
    assert!(figure(&summary, "bytes_wire") < 12 * 4096 + 100 * 60, "{summary}");
    warm.arrived(receiver, &back);
}

/// A receiver that keeps what arrives, and its store, which somebody else is at until the lock is dropped.
fn with_busy_store(warm: &Warm, words: &[&str]) -> (Receiver, fs::File) {
    let receiver = Receiver::start(warm.keeping(warm.place.receive(), "b").args(words));
    let lock = fs::File::open(warm.path("b").join("store")).unwrap();
    lock.lock().unwrap();
    (receiver, lock)
}

#[test]
fn the_same_name_may_be_sent_again_while_its_image_is_being_kept() {
    let warm = Warm::new();
    warm.add("b");
    let (mut receiver, lock) = with_busy_store(&warm, &["--replace"]);
    let again = warm.after();
    for image in [warm.path("before.mem"), again.clone()] {
        let mut sending = Lines::start(&mut warm.send(&receiver.address, &image));
        whole(&sending.until("summary"));
    }
    drop(lock);
    // The first may have been replaced before it was read.
    receiver.lines.until("baseline-kept");
    let kept = receiver.lines.until("baseline-kept");
    assert!(kept["digest"].is_string() && figure(&kept, "stored_pages") < 200, "{kept}");
    warm.arrived(receiver, &again);
}

#[test]
fn a_receiver_that_is_stopped_waits_for_what_it_keeps_within_its_grace() {
    for (grace, is_kept) in [("1s", false), ("60s", true)] {
        let warm = Warm::new();
        warm.add("b");
        let (mut receiver, lock) = with_busy_store(&warm, &["--grace", grace]);
        let image = warm.after();
        let mut sending = Lines::start(&mut warm.send(&receiver.address, &image));
        whole(&sending.until("summary"));
        receiver.lines.until("transfer");
        receiver.lines.signal("TERM");
        let lock = Some(lock).filter(|_| !is_kept);
        let kept = receiver.lines.until("baseline-kept");
        assert_eq!((kept["digest"].is_string(), kept["error"].is_null()), (is_kept, is_kept), "{kept}");
        drop(lock);
        let summary = receiver.lines.until("summary");
        assert_eq!((&summary["verdict"], &summary["received"]), (&"ok".into(), &1.into()), "{summary}");
        assert_eq!(receiver.lines.end().0, 0);
    }
}

#[test]
fn a_receiver_of_one_image_ends_when_that_is_kept() {
    let warm = Warm::new();
    warm.add("b");
    let (mut receiver, lock) = with_busy_store(&warm, &["--once"]);
    let mut sending = Lines::start(&mut warm.send(&receiver.address, &warm.path("before.mem")));
    whole(&sending.until("summary"));
    drop(lock);
    assert!(receiver.lines.until("baseline-kept")["digest"].is_string());
    assert_eq!((&receiver.lines.until("summary")["verdict"], receiver.lines.end().0), (&"ok".into(), 0));
}

#[test]
fn a_sender_that_is_stopped_says_what_it_keeps_and_leaves_when_it_is_stopped_again() {
    for is_stopped_again in [false, true] {
        let warm = Warm::new();
        warm.add("a");
        let lock = fs::File::open(warm.path("a").join("store")).unwrap();
        lock.lock().unwrap();
        let image = warm.after();
        let receiver = Receiver::start(&mut warm.place.receive());
        let mut sending = Lines::start(&mut warm.keeping(warm.send(&receiver.address, &image), "a"));
        // From then on it waits for its store.
        sending.until("statistics");
        sending.interrupt();
        let lock = Some(lock).filter(|_| is_stopped_again);
        if is_stopped_again {
            sending.signal("TERM");
        }
        let kept = sending.until("baseline-kept");
        assert_eq!(
            (kept["digest"].is_null(), kept["error"].is_string()),
            (is_stopped_again, is_stopped_again),
            "{kept}"
        );
        whole(&sending.until("summary"));
        let (code, errors) = sending.end();
        drop(lock);
        assert!(
            code == 0 && errors.contains("the image is at the receiver; keeping it as baseline vm1-kept"),
            "{errors}"
        );
        assert_eq!(errors.contains("was not kept as baseline vm1-kept: this sender was stopped"), is_stopped_again);
        warm.arrived(receiver, &image);
    }
}

#[test]
fn an_image_that_cannot_be_kept_has_arrived_all_the_same() {
    let warm = Warm::at_both();
    let image = warm.after();
    let receiver = Receiver::start(&mut warm.place.receive());
    let mut send = warm.keeping(warm.send(&receiver.address, &image), "a");
    // Its store goes away while it sends.
    let mut sending = Lines::start(send.args(["--bandwidth", "2MB"]));
    sending.until("progress");
    fs::remove_dir_all(warm.path("a")).unwrap();
    let kept = sending.until("baseline-kept");
    assert!(kept["digest"].is_null() && kept["error"].is_string(), "{kept}");
    whole(&sending.until("summary"));
    warm.arrived(receiver, &image);
}

#[test]
fn what_is_asked_for_and_not_there_is_told_before_anything_begins() {
    let warm = Warm::new();
    warm.add("a");
    for mut command in [warm.send("127.0.0.1:1", &warm.path("before.mem")), warm.place.receive()] {
        command.args(["--baseline", "silver", "--baseline-store"]).arg(warm.path("a"));
        command.arg("--baseline-key").arg(warm.path("key"));
        run(&mut command).failed(1, &["there is no baseline silver in", "dwcp baseline list"]);
    }
    let mut command = warm.place.receive();
    command.args(["--baseline", "golden"]);
    run(&mut command).failed(2, &["--baseline-store"]);
    let mut command = warm.with_store(warm.place.receive(), "a");
    command.args(["--keep-baseline", "vm1"]);
    run(&mut command).failed(2, &["--baseline-tenant"]);
}

#[test]
fn a_receiver_that_is_killed_goes_on_with_the_baseline_that_it_laid_down() {
    let warm = Warm::at_both();
    let again = |address: &str| warm.with_store(warm.place.receive_at(address), "b");
    let (summary, told) = warm.through_a_kill(again);
    // 750 new pages, and again what was on its way to a disk when it was killed; not 2,000 of the baseline.
    assert!(figure(&summary, "bytes_wire") < 1500 * 4096, "{summary}");
    assert_eq!(told, ["golden"]);
}

/// What was laid down is a receiver's own by then, whatever it is named.
#[test]
fn a_receiver_that_was_killed_goes_on_without_its_store() {
    let warm = Warm::at_both();
    let (_, told) = warm.through_a_kill(|address| warm.place.receive_at(address));
    assert_eq!(told, ["golden".into(), serde_json::Value::Null], "and its sender says so");
}

/// A tenant that is misspelt has no baselines, and the store may be full of them.
#[test]
fn a_tenant_of_whom_nothing_is_there_is_told_with_those_of_whom_something_is() {
    let warm = Warm::at_both();
    let image = warm.after();
    let mut misspelt = warm.with_store(warm.place.receive(), "b");
    let receiver = Receiver::start(misspelt.args(["--baseline-tenant", "wbe"]));
    let mut send = warm.with_baseline(warm.send(&receiver.address, &image), "a");
    run(send.args(["--baseline-tenant", "wbe"])).failed(1, &["no baseline of tenant wbe in", "it has some of: web"]);
    let mut send = warm.with_store(warm.send(&receiver.address, &image), "a");
    let kept = run(send.args(["--baseline-tenant", "wbe", "--keep-baseline", "vm1"]));
    assert!(kept.code == 0 && kept.err.contains("no baseline of tenant wbe in"), "{}", kept.err);
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    assert!(code == 0 && err.contains("no baseline of tenant wbe in") && err.contains("it has some of: web"), "{err}");
    let mut named = warm.with_store(warm.place.receive(), "b");
    run(named.args(["--baseline-tenant", "wbe", "--baseline", "golden"])).failed(1, &["it has some of: web"]);
}

/// Of whatever command: what is damaged is told with the code of damage, and not taken for whole.
#[test]
fn a_store_whose_packs_are_gone_is_damaged_wherever_it_is_named() {
    let warm = Warm::at_both();
    let image = warm.after();
    let packs = || fs::read_dir(warm.path("a")).unwrap().map(|entry| entry.unwrap().path());
    packs()
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .for_each(|path| fs::remove_file(path).unwrap());
    let of_store = |words: &[&str]| {
        let mut command = dwcp();
        command.arg("baseline").args(words).arg("--json").arg("--store").arg(warm.path("a"));
        command.arg("--key-file").arg(warm.path("key"));
        run(&mut command)
    };
    for words in [&["list"][..], &["show", "golden"], &["verify"]] {
        let said = of_store(words);
        said.failed(4, &["it is missing", "dd its image again"]);
        assert_eq!(said.summary()["verdict"], "integrity", "{words:?}");
    }
    assert!(of_store(&["show", "golden"]).summary()["damage"].as_str().unwrap().contains("missing"));
    // Nobody listens there: what is named is looked at first.
    run(&mut warm.with_baseline(warm.send("127.0.0.1:9", &image), "a")).failed(4, &["it is missing"]);
    let mut estimate = dwcp();
    estimate.args(["estimate", "--link", "1gbit"]).arg(&image);
    run(&mut warm.with_baseline(estimate, "a")).failed(4, &["it is missing"]);
    // The header of a store is a part of it.
    let header = warm.path("a").join("store");
    let mut bytes = fs::read(&header).unwrap();
    bytes[20] ^= 1;
    fs::write(&header, bytes).unwrap();
    for words in [&["list"][..], &["show", "golden"], &["verify"], &["gc"]] {
        of_store(words).failed(4, &["damaged", "Bring the file back"]);
    }
    run(&mut warm.with_store(warm.place.receive(), "a")).failed(4, &["damaged", "Bring the file back"]);
}
