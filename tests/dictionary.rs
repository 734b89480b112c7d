//! `dwcp dictionary`, and transfers between nodes that hold the same dictionary, or do not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use operator::{Lines, Place, Receiver, Said, dwcp, figure, run, whole};
use serde_json::Value;

const PAGE: usize = 4096;

/// A page of sentences out of 500, no two pages in the same order: what one page cannot learn of itself.
fn page(number: usize) -> Vec<u8> {
    let sentence = |sentence: usize| {
        let mut letters = vec![0; 60 + sentence % 9];
        blake3::Hasher::new().update(sentence.to_string().as_bytes()).finalize_xof().fill(&mut letters);
        letters.into_iter().map(|byte| b"etaoin shrdlucmfw"[usize::from(byte % 17)])
    };
    (0..80).flat_map(|place| sentence((number * 7919 + place * (2 * number + 1)) % 500)).take(PAGE).collect()
}

/// Two nodes, images, and a store each.
struct Nodes {
    place: Place,
}

impl Nodes {
    fn new() -> Self {
        Self { place: Place::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Pages that lie apart, one in each 64: extents that carry one page of the 64 that they look at.
    fn scattered(&self, name: &str, first: usize, pages: usize) -> PathBuf {
        let mut bytes = vec![0; pages * 64 * PAGE];
        for number in 0..pages {
            bytes[number * 64 * PAGE..][..PAGE].copy_from_slice(&page(first + number));
        }
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn train(&self, node: &str, name: &str, image: &Path) -> Said {
        let mut command = dwcp();
        command.args(["dictionary", "train", "--json", "--size", "64KiB", "--name", name, "--store"]);
        run(command.arg(self.path(node)).arg(image))
    }

    fn receive(&self, node: Option<&str>) -> Receiver {
        Receiver::start(&mut self.using(self.place.receive(), node))
    }

    fn using(&self, mut command: Command, node: Option<&str>) -> Command {
        if let Some(node) = node {
            command.arg("--dictionary-store").arg(self.path(node));
        }
        command
    }

    /// The summary of a transfer, whose image arrives as it is.
    fn sent(&self, image: &Path, [source, sink]: [Option<&str>; 2]) -> Value {
        let receiver = self.receive(sink);
        let mut command = self.place.send(&receiver.address, "vm1");
        command.args(["--json", "--effort", "balanced"]).arg(image);
        let summary = Lines::start(&mut self.using(command, source)).until("summary");
        whole(&summary);
        receiver.stop();
        let stored = self.place.stored("vm1");
        assert!(fs::read(image).unwrap() == fs::read(&stored).unwrap(), "byte for byte");
        fs::remove_file(stored).unwrap();
        summary
    }
}

#[test]
fn scattered_pages_become_smaller_where_both_ends_hold_the_dictionary() {
    let nodes = Nodes::new();
    let learnt = nodes.scattered("golden.mem", 1000, 200);
    for node in ["a", "b"] {
        assert_eq!(nodes.train(node, "golden", &learnt).code, 0);
    }
    // Another one, which is newer and of no use to the other end: numbers are those of the offer.
    assert_eq!(nodes.train("a", "other", &nodes.scattered("other.mem", 5000, 60)).code, 0);
    let image = nodes.scattered("vm1.mem", 0, 60);
    let bytes = |summary: &Value| figure(summary, "bytes_wire");
    let without = nodes.sent(&image, [None, None]);
    let with = nodes.sent(&image, [Some("a"), Some("b")]);
    let (least, most) = (bytes(&with), bytes(&without));
    assert!(least * 4 < most * 3, "{least} bytes with the dictionary, {most} without");
    for one in [[Some("a"), None], [None, Some("b")]] {
        assert_eq!(bytes(&nodes.sent(&image, one)), most, "one end alone: {one:?}");
    }
    // What it was used for is told, and so is that it could not be.
    let used = &with["dictionary"];
    assert_eq!((&used["name"], figure(used, "pages")), (&"golden".into(), 60), "{with}");
    assert_eq!(
        used["id"],
        run(dwcp().args(["dictionary", "show", "golden", "--json", "--store"]).arg(nodes.path("b"))).summary()["id"]
    );
    assert!(without["dictionary"].is_null(), "{without}");
    let receiver = nodes.receive(None);
    let said = run(nodes.using(nodes.place.send(&receiver.address, "vm1"), Some("a")).arg(&image));
    assert!(said.out.contains("dictionary   none: the receiver holds none of ours"), "{}", said.out);
    receiver.stop();
}

#[test]
fn the_same_images_make_the_same_dictionary_and_it_is_listed_and_shown() {
    let nodes = Nodes::new();
    let image = nodes.scattered("golden.mem", 0, 100);
    let [first, again] = ["a", "b"].map(|node| nodes.train(node, "golden", &image).summary());
    assert_eq!((&first["id"], &first["pages"]), (&again["id"], &serde_json::json!(100)));
    let bytes = first["bytes"].as_u64().unwrap();
    assert!((1024..=64 * 1024).contains(&bytes), "{bytes}");
    let ask =
        |words: &[&str]| run(dwcp().arg("dictionary").args(words).arg("--json").arg("--store").arg(nodes.path("a")));
    let shown = ask(&["show", "golden"]).summary();
    assert_eq!((&shown["id"], &shown["verdict"]), (&first["id"], &serde_json::json!("ok")));
    let told = run(dwcp().args(["dictionary", "show", "golden", "--store"]).arg(nodes.path("a"))).out;
    assert!(told.lines().any(|line| line.starts_with("made") && line.ends_with("just now")), "{told}");
    let listed = ask(&["list"]).summary();
    assert_eq!((&listed["dictionaries"], &listed["damaged"]), (&serde_json::json!(1), &serde_json::json!(0)));
    ask(&["show", "none"]).failed(1, &["there is no dictionary none"]);
}

#[test]
fn what_no_dictionary_can_be_made_of_is_told() {
    let nodes = Nodes::new();
    fs::write(nodes.path("zeros.mem"), vec![0; 100 * PAGE]).unwrap();
    nodes.train("a", "zeros", &nodes.path("zeros.mem")).failed(1, &["nothing in common", "ran for a while"]);
    nodes.train("a", "none", &nodes.path("none.mem")).failed(1, &["none.mem"]);
    fs::write(nodes.path("empty.mem"), "").unwrap();
    nodes
        .train("a", "empty", &nodes.path("empty.mem"))
        .failed(1, &["empty.mem is empty (0 bytes): it has not one page"]);
    // Before anything is read: the image is not even there.
    for file in ["zeros.mem", "zeros.mem/below"] {
        nodes.train(file, "none", &nodes.path("none.mem")).failed(1, &["zeros.mem is no directory", "another folder"]);
    }
    for size in ["255B", "255", "1025KiB"] {
        let mut train = dwcp();
        train.args(["dictionary", "train", "--name", "x", "--size", size, "--store"]).arg(nodes.path("a"));
        run(train.arg(nodes.path("zeros.mem"))).failed(2, &[size, "--size"]);
    }
    assert!(!nodes.path("a").exists(), "nothing was made for it");
    let mut list = dwcp();
    run(list.args(["dictionary", "list", "--store"]).arg(nodes.path("a"))).failed(1, &["there is no directory"]);
}

#[test]
fn a_poisoned_dictionary_is_refused_by_name_at_either_end() {
    let nodes = Nodes::new();
    let image = nodes.scattered("golden.mem", 0, 100);
    assert_eq!(nodes.train("a", "golden", &image).code, 0);
    let file = nodes.path("a").join("golden.dictionary");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let words = ["golden.dictionary is damaged", "Remove"];
    let mut send = nodes.using(nodes.place.send("127.0.0.1:9", "vm1"), Some("a"));
    run(send.arg(&image)).failed(1, &words);
    run(&mut nodes.using(nodes.place.receive(), Some("a"))).failed(1, &words);
    let mut list = dwcp();
    let listed = run(list.args(["dictionary", "list", "--json", "--store"]).arg(nodes.path("a")));
    listed.failed(4, &["golden.dictionary is damaged", "train it again"]);
    assert_eq!(listed.summary()["damaged"], 1);
}

#[test]
fn a_dictionary_that_others_can_read_is_told_wherever_it_is_used() {
    let nodes = Nodes::new();
    let image = nodes.scattered("golden.mem", 0, 100);
    assert_eq!(nodes.train("a", "golden", &image).code, 0);
    let file = nodes.path("a").join("golden.dictionary");
    let list = || run(dwcp().args(["dictionary", "list", "--json", "--store"]).arg(nodes.path("a")));
    let said = "golden.dictionary (mode 0644): others than its owner can use it";
    for (mode, is_told) in [(0o600, false), (0o644, true)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let listed = list();
        assert_eq!((listed.code, listed.err.contains(said)), (0, is_told), "{}", listed.err);
        let mut send = nodes.using(nodes.place.send("127.0.0.1:9", "vm1"), Some("a"));
        let sent = run(send.arg(&image));
        assert_eq!(sent.err.matches(said).count(), usize::from(is_told), "{}", sent.err);
    }
}
