//! Kill -9 of either end of the built binary in the middle of an image: it goes on with what is durable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::as_conversions,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs;
use std::path::Path;

use operator::{Lines, Place, Receiver, dwcp, noise, run};

/// Slow enough to be killed in the middle, fast enough for a test: 2 s.
const RATE: &str = "8MB";
const BYTES: usize = 16_000_000;

/// Waits until the receiver's journal tells of this much of an image.
fn until_durable(place: &Place, bytes: usize) {
    let leaves = u64::try_from(bytes / 4096 * 32).unwrap();
    let journal = || {
        let mut names = place.names().filter(|name| name.ends_with(".wal"));
        names.next().and_then(|name| place.stored(&name).metadata().ok()).map_or(0, |metadata| metadata.len())
    };
    while journal() < leaves {
        std::thread::yield_now();
    }
}

/// A receiver in the place of one that ended, and how much it holds of the image that was under way.
fn goes_on(place: &Place, address: &str) -> (Receiver, u64) {
    let mut receiver = Receiver::start(&mut place.receive_at(address));
    let held = receiver.lines.until("going-on")["bytes_held"].as_u64().unwrap();
    assert!(held >= u64::try_from(BYTES / 5).unwrap(), "{held}");
    (receiver, held)
}

/// The image, and nothing else.
fn arrived(place: &Place, receiver: Receiver, image: &Path) {
    receiver.stop();
    assert!(fs::read(image).unwrap() == fs::read(place.stored("vm1")).unwrap());
    assert_eq!((place.visible(), place.parked()), (vec!["vm1".to_owned()], 0));
}

#[test]
fn a_killed_receiver_goes_on_with_what_is_durable() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let mut receiver = place.listen();
    let address = receiver.address.clone();
    let mut sending = Lines::start(place.send(&address, "vm1").args(["--json", "--bandwidth", RATE]).arg(&image));
    until_durable(&place, BYTES / 4);
    receiver.lines.kill();

    let (receiver, held) = goes_on(&place, &address);
    let summary = sending.until("summary");
    assert_eq!((&summary["verdict"], sending.end().0), (&"ok".into(), 0));
    let total = u64::try_from(BYTES).unwrap();
    // Before and after the kill: what was held did not travel twice.
    let wire = summary["bytes_wire"].as_u64().unwrap();
    assert!(wire >= total && wire < total + held / 2, "{held} bytes were held, {wire} travelled for {total}");
    // Of both sessions over the time of both, and noise saves nothing.
    let figure = |name: &str| summary[name].as_f64().unwrap();
    let (moved, saved) = (figure("mb_s") * figure("seconds"), figure("saved_pct"));
    let looked_at = wire as f64 / 1e6;
    assert!((moved - looked_at).abs() < looked_at / 20.0 && saved < 5.0, "{summary}");
    arrived(&place, receiver, &image);
}

/// What a service manager does for a new version: stop, start. Nobody who sends need notice.
#[test]
fn a_stopped_receiver_parks_and_the_next_one_goes_on() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let mut receiver = place.listen();
    let address = receiver.address.clone();
    let mut sending = Lines::start(place.send(&address, "vm1").args(["--json", "--bandwidth", RATE]).arg(&image));
    until_durable(&place, BYTES / 4);
    receiver.lines.signal("TERM");
    receiver.lines.until("parked");
    let (code, err) = receiver.lines.end();
    assert_eq!(code, 0, "{err}");
    assert!(place.visible().is_empty() && place.parked() > 0);

    let (receiver, _) = goes_on(&place, &address);
    assert_eq!((&sending.until("summary")["verdict"], sending.end().0), (&"ok".into(), 0));
    arrived(&place, receiver, &image);
}

/// Two nodes that obey one flag document.
struct Flagged {
    place: Place,
    image: std::path::PathBuf,
}

impl Flagged {
    fn new() -> Self {
        let flagged = Self { image: std::path::PathBuf::new(), place: Place::new() };
        let flagged = Self { image: flagged.place.path("vm.mem"), ..flagged };
        fs::write(&flagged.image, noise(BYTES)).unwrap();
        flagged.set(&["--create", "--enable", "--percentage", "100"]);
        flagged
    }

    fn set(&self, words: &[&str]) {
        let mut command = operator::dwcp();
        command.args(["flag", "set", "dwcp_v3_hde", "--file"]).arg(self.place.path("flags.json")).args(words);
        let said = operator::run(&mut command);
        assert_eq!(said.code, 0, "{}", said.err);
    }

    fn obeying(&self, mut command: std::process::Command, node: &str) -> std::process::Command {
        command.args(["--node", node]).arg("--flags").arg(self.place.path("flags.json"));
        command
    }

    /// A receiver that was killed when a quarter was durable; where it was, and its sender.
    fn cut_off(&self) -> (String, Lines) {
        let mut receiver = Receiver::start(&mut self.obeying(self.place.receive(), "node-b"));
        let mut send = self.obeying(self.place.send(&receiver.address, "vm1"), "node-a");
        let sending = Lines::start(send.args(["--json", "--bandwidth", RATE]).arg(&self.image));
        until_durable(&self.place, BYTES / 4);
        receiver.lines.kill();
        (receiver.address, sending)
    }

    fn goes_on(&self, address: &str) -> (Receiver, u64) {
        let mut receiver = Receiver::start(&mut self.obeying(self.place.receive_at(address), "node-b"));
        let held = receiver.lines.until("going-on")["bytes_held"].as_u64().unwrap();
        (receiver, held)
    }
}

/// Roll-back while an image is resumed: what is durable is held by either version.
#[test]
fn an_image_that_goes_on_leaves_version_3_and_what_was_held_stays_held() {
    let flagged = Flagged::new();
    let (address, mut sending) = flagged.cut_off();
    let (receiver, held) = flagged.goes_on(&address);
    flagged.set(&["--disable", "--reason", "performance"]);
    assert_eq!(sending.until("handed-over")["to"], "v1");
    let summary = sending.until("summary");
    assert_eq!((&summary["verdict"], sending.end().0), (&"ok".into(), 0));
    let (wire, total) = (summary["bytes_wire"].as_u64().unwrap(), u64::try_from(BYTES).unwrap());
    assert!(wire >= total && wire < total + held / 2, "{held} bytes were held, {wire} travelled for {total}");
    arrived(&flagged.place, receiver, &flagged.image);
}

// spec: V-5
#[test]
fn what_was_held_of_an_image_is_thrown_away_when_it_is_not_to_be_trusted() {
    let flagged = Flagged::new();
    let (address, mut sending) = flagged.cut_off();
    flagged.set(&["--kill", "--reason", "integrity"]);
    let (receiver, held) = flagged.goes_on(&address);
    assert_eq!(sending.until("handed-over")["restart"], true);
    let summary = sending.until("summary");
    assert_eq!((&summary["verdict"], sending.end().0), (&"ok".into(), 0));
    let (wire, total) = (summary["bytes_wire"].as_u64().unwrap(), u64::try_from(BYTES).unwrap());
    assert!(held > 0 && wire >= total + held, "{held} bytes were held, {wire} travelled for {total}");
    arrived(&flagged.place, receiver, &flagged.image);
}

#[test]
fn a_killed_sender_goes_on_with_what_is_durable() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let mut receiver = place.listen();
    let send =
        |rate| Lines::start(place.send(&receiver.address, "vm1").args(["--json", "--bandwidth", rate]).arg(&image));
    let mut sending = send(RATE);
    until_durable(&place, BYTES / 4);
    sending.kill();
    // The kernel may tell of the kill a moment later than of the next sender.
    let summary = std::iter::repeat_with(|| send("1GB").until("summary")).find(|summary| summary["verdict"] == "ok");
    let (wire, total) = (summary.unwrap()["bytes_wire"].as_u64().unwrap(), u64::try_from(BYTES).unwrap());
    assert!(wire < total - total / 5, "{wire} of {total} travelled again");
    receiver.lines.until("going-on");
    receiver.lines.until("transfer");
    arrived(&place, receiver, &image);
}

/// What a later snapshot made durable is not overwritten by an earlier one, to travel a second time.
#[test]
fn a_killed_sender_of_snapshots_goes_on_with_the_last() {
    let place = Place::new();
    let snapshots = ["t0.mem", "t1.mem"].map(|name| place.path(name));
    let first = noise(BYTES);
    fs::write(&snapshots[0], &first).unwrap();
    fs::write(&snapshots[1], first.iter().map(|byte| byte ^ 0x5a).collect::<Vec<_>>()).unwrap();
    let receiver = place.listen();
    let send = |rate| {
        let mut command = place.send(&receiver.address, "vm1");
        command.args(["--json", "--effort", "raw", "--bandwidth", rate]);
        Lines::start(command.arg("--round").arg(&snapshots[0]).arg("--round").arg(&snapshots[1]))
    };
    let mut sending = send("16MB");
    let total = u64::try_from(BYTES).unwrap();
    while sending.until("progress")["bytes_wire"].as_u64().unwrap() < total * 3 / 2 {}
    sending.kill();
    let summary = std::iter::repeat_with(|| send("1GB").until("summary")).find(|summary| summary["verdict"] == "ok");
    let wire = summary.unwrap()["bytes_wire"].as_u64().unwrap();
    assert!(wire < total * 3 / 4, "{wire} of {total} travelled again");
    arrived(&place, receiver, &snapshots[1]);
}

#[test]
fn what_was_cut_off_long_ago_goes_while_the_receiver_runs() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    let mut receiver = place.listen();
    // A day-old journal and its staging file, of some transfer that nobody knows.
    for ending in ["part", "wal"] {
        let path = place.stored(&format!(".dwcp-{}.{ending}", "5".repeat(32)));
        fs::write(&path, "").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let mut sending = Lines::start(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    assert_eq!(sending.until("summary")["verdict"], "ok");
    receiver.lines.until("transfer");
    receiver.stop();
    assert_eq!((place.visible(), place.parked()), (vec!["vm1".to_owned()], 0));
}

/// Whoever reads what a receiver says need not know that there is a journal, but that nothing is lost.
#[test]
fn a_receiver_says_what_it_keeps_of_a_transfer_that_its_sender_ended() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let mut receiver = place.listen();
    let send = || {
        let mut command = place.send(&receiver.address, "vm1");
        Lines::start(command.args(["--json", "--bandwidth", RATE]).arg(&image))
    };
    let mut sending = send();
    until_durable(&place, BYTES / 4);
    sending.interrupt();
    assert_eq!(sending.until("summary")["verdict"], "interrupted");
    let transfer = receiver.lines.until("transfer");
    assert_eq!(transfer["verdict"], "interrupted");
    let (transfer, dir) = (transfer["transfer"].as_str().unwrap(), place.stored(""));
    let mut command = dwcp();
    command.args(["transfers", "list", "--json", "--dir"]).arg(&dir);
    let listed = run(&mut command);
    let line = listed.out.lines().find(|line| line.contains(transfer)).unwrap();
    let held = serde_json::from_str::<serde_json::Value>(line).unwrap()["bytes_held"].as_u64().unwrap();
    assert!(held >= u64::try_from(BYTES / 5).unwrap(), "{line}");
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    let kept = err.split_once(" are kept for a day").unwrap_or_else(|| panic!("{err}")).0;
    assert!(
        code == 0 && kept.ends_with("MB") && err.contains(&format!("dwcp transfers abort {transfer} --dir")),
        "{err}"
    );
}

#[test]
fn an_image_that_changed_meanwhile_arrives_as_it_is_now() {
    let place = Place::new();
    let image = place.path("vm.mem");
    let mut bytes = noise(BYTES);
    fs::write(&image, &bytes).unwrap();
    let receiver = place.listen();
    let mut sending =
        Lines::start(place.send(&receiver.address, "vm1").args(["--json", "--bandwidth", RATE]).arg(&image));
    until_durable(&place, BYTES / 4);
    sending.interrupt();
    let summary = sending.until("summary");
    assert_eq!(summary["verdict"], "interrupted");
    let advice = summary["advice"].as_str().unwrap();
    assert!(
        advice.contains("keeps") && advice.contains("for a day") && advice.contains("transfers resume"),
        "{advice}"
    );
    drop(sending);
    // Pages that were durable: one is zeros now, one is another.
    bytes[..4096].fill(0);
    bytes[40_960..45_056].fill(7);
    fs::write(&image, &bytes).unwrap();
    let mut sending = Lines::start(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    assert_eq!(sending.until("summary")["verdict"], "ok");
    drop(sending);
    receiver.stop();
    assert!(bytes == fs::read(place.stored("vm1")).unwrap());
}

/// A receiver that is held in the middle of its first offer, as by a disk that takes long over it.
struct Held {
    place: Place,
    image: std::path::PathBuf,
    receiver: Receiver,
    sending: Lines,
    /// Dropped, it goes on.
    pipe: Option<fs::File>,
}

impl Held {
    fn new(words: &[&str]) -> Self {
        let place = Place::new();
        let (image, pipe) = (place.path("vm.mem"), place.path("pipe"));
        fs::write(&image, noise(1_000_000)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut receive = place.receive();
        receive.args(words).env("DWCP_HOLD", format!("sink.image.stages@{}", pipe.display()));
        let receiver = Receiver::start(&mut receive);
        let sending = Lines::start(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
        // Opens only when the receiver waits at the other end.
        let pipe = Some(fs::File::options().write(true).open(&pipe).unwrap());
        Self { place, image, receiver, sending, pipe }
    }

    /// As another sender of the same identity, which knows nothing of the first.
    fn send(&self, name: &str) -> Lines {
        let Place { receiver, .. } = &self.place;
        let mut send = dwcp();
        send.args(["send", "--json", "--to", &self.receiver.address, "--as", name, "--trust", receiver, "--identity"]);
        Lines::start(
            send.arg(self.place.path("a.id")).arg("--state-dir").arg(self.place.path("other")).arg(&self.image),
        )
    }
}

#[test]
fn an_offer_that_takes_long_to_stage_holds_up_nobody_else() {
    let mut held = Held::new(&[]);
    let mut innocent = held.send("vm2");
    assert_eq!(innocent.until("summary")["verdict"], "ok");
    assert_eq!(held.place.visible(), ["vm2"]);
    held.pipe = None;
    assert_eq!(held.sending.until("summary")["verdict"], "ok");
    held.receiver.stop();
    assert_eq!(held.place.visible(), ["vm1", "vm2"]);
}

#[test]
fn a_sender_that_is_killed_while_its_offer_is_staged_may_come_back() {
    let mut held = Held::new(&[]);
    held.sending.kill();
    let mut again = held.send("vm1");
    held.pipe = None;
    assert_eq!(again.until("summary")["verdict"], "ok");
    arrived(&held.place, held.receiver, &held.image);
}

#[test]
fn a_receiver_that_is_stopped_while_it_stages_does_not_wait_for_that_for_ever() {
    let mut held = Held::new(&["--grace", "1s"]);
    held.receiver.lines.signal("TERM");
    let summary = held.receiver.lines.until("summary");
    assert_eq!((&summary["verdict"], held.receiver.lines.end().0), (&"ok".into(), 0));
    assert!(held.place.visible().is_empty());
}
