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

use operator::{Lines, Place, Receiver, dwcp, figure, noise, run, whole};

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

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The image of before becomes the baseline of a node.
    fn add(&self, node: &str) {
        let mut command = dwcp();
        command.args(["baseline", "add", "--make-key", "--tenant", "web", "--name", "golden", "--store"]);
        command.arg(self.path(node)).arg("--key-file").arg(self.path("key")).arg(self.path("before.mem"));
        let said = run(&mut command);
        assert_eq!(said.code, 0, "{}", said.err);
    }

    fn with_baseline(&self, mut command: Command, node: &str) -> Command {
        command.args(["--baseline", "golden", "--baseline-store"]).arg(self.path(node));
        command.arg("--baseline-key").arg(self.path("key"));
        command
    }

    /// A word of every twentieth page is another one, eight pages are moved, and there are four new ones.
    fn after(&self) -> PathBuf {
        let mut bytes = self.before.clone();
        for page in (0..PAGES).step_by(20) {
            bytes[page * PAGE + 100..][..8].copy_from_slice(b"changed!");
        }
        bytes.copy_within(51 * PAGE..59 * PAGE, 71 * PAGE);
        bytes.extend_from_slice(&noise(5 * PAGE)[PAGE..]);
        let path = self.path("after.mem");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn send(&self, to: &str, image: &Path) -> Command {
        let mut command = self.place.send(to, "vm1");
        command.arg("--json").arg(image);
        command
    }

    fn arrived(&self, receiver: Receiver, image: &Path) {
        receiver.stop();
        assert!(fs::read(image).unwrap() == fs::read(self.place.stored("vm1")).unwrap());
    }
}

#[test]
fn of_an_image_that_both_nodes_had_only_what_changed_travels() {
    let warm = Warm::new();
    ["a", "b"].iter().for_each(|node| warm.add(node));
    let image = warm.after();
    let mut receiver = Receiver::start(&mut warm.with_baseline(warm.place.receive(), "b"));
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    let laid = receiver.lines.until("baseline");
    assert_eq!((figure(&laid, "pages"), figure(&laid, "damaged")), (2000, 0));
    let summary = sending.until("summary");
    whole(&summary);
    // 100 changed words, 8 pages from elsewhere and 4 new ones, which are noise.
    let wire = figure(&summary, "bytes_wire");
    assert!((12 * 4096..12 * 4096 + 100 * 60).contains(&wire), "{wire} bytes");
    warm.arrived(receiver, &image);
}

#[test]
fn a_baseline_at_the_receiver_alone_spares_what_did_not_change() {
    let warm = Warm::new();
    warm.add("b");
    let image = warm.after();
    let receiver = Receiver::start(&mut warm.with_baseline(warm.place.receive(), "b"));
    let mut sending = Lines::start(&mut warm.send(&receiver.address, &image));
    let summary = sending.until("summary");
    whole(&summary);
    let wire = figure(&summary, "bytes_wire");
    assert!((112 * 4096..120 * 4096).contains(&wire), "{wire} bytes");
    warm.arrived(receiver, &image);
}

#[test]
fn a_baseline_at_the_sender_alone_changes_nothing() {
    let warm = Warm::new();
    warm.add("a");
    let image = warm.after();
    let receiver = warm.place.listen();
    let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
    let summary = sending.until("summary");
    whole(&summary);
    assert!(figure(&summary, "bytes_wire") > 2000 * 4096);
    warm.arrived(receiver, &image);
}

#[test]
fn a_store_that_is_damaged_at_either_end_costs_bytes_and_nothing_else() {
    for (damaged, least) in [("a", 112), ("b", 112)] {
        let warm = Warm::new();
        ["a", "b"].iter().for_each(|node| warm.add(node));
        let pack = fs::read_dir(warm.path(damaged)).unwrap().map(|entry| entry.unwrap().path());
        let pack = pack.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let mut bytes = fs::read(&pack).unwrap();
        let step = bytes.len() / 50;
        bytes.iter_mut().skip(1000).step_by(step).for_each(|byte| *byte ^= 1);
        fs::write(&pack, bytes).unwrap();
        let image = warm.after();
        let receiver = Receiver::start(&mut warm.with_baseline(warm.place.receive(), "b"));
        let mut sending = Lines::start(&mut warm.with_baseline(warm.send(&receiver.address, &image), "a"));
        let summary = sending.until("summary");
        whole(&summary);
        assert!(figure(&summary, "bytes_wire") >= least * 4096, "{damaged}: {summary}");
        warm.arrived(receiver, &image);
    }
}

#[test]
fn a_baseline_that_is_not_there_is_told_before_anything_begins() {
    let warm = Warm::new();
    warm.add("a");
    let mut command = warm.send("127.0.0.1:1", &warm.path("before.mem"));
    command.args(["--baseline", "silver", "--baseline-store"]).arg(warm.path("a"));
    command.arg("--baseline-key").arg(warm.path("key"));
    run(&mut command).failed(1, &["there is no baseline silver in", "dwcp baseline list"]);
    let mut command = warm.place.receive();
    command.args(["--baseline", "golden"]);
    run(&mut command).failed(2, &["--baseline-store", "--baseline-key"]);
}

#[test]
fn a_receiver_that_is_killed_goes_on_with_the_baseline_that_it_laid_down() {
    let warm = Warm::new();
    ["a", "b"].iter().for_each(|node| warm.add(node));
    let image = warm.after();
    let mut receiver = Receiver::start(&mut warm.with_baseline(warm.place.receive(), "b"));
    let address = receiver.address.clone();
    let mut slow = warm.with_baseline(warm.send(&address, &image), "a");
    let mut sending = Lines::start(slow.args(["--bandwidth", "20kB"]));
    receiver.lines.until("baseline");
    sending.until("progress");
    receiver.lines.kill();
    let receiver = Receiver::start(&mut warm.with_baseline(warm.place.receive_at(&address), "b"));
    let summary = sending.until("summary");
    whole(&summary);
    assert!(figure(&summary, "bytes_wire") < 150 * 4096, "{summary}");
    warm.arrived(receiver, &image);
}
