//! A receiver that is held at its disk, as by one that takes long or never answers: nobody else waits for that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use dwcp_core::net::Records;
use dwcp_core::wire::TransferId;

use crate::legacy;
use crate::operator::{Lines, Place, Receiver, dwcp, noise, run};
use crate::promises::{ID, in_doubt};

/// Where a receiver is held.
pub(crate) struct Pipe(PathBuf);

impl Pipe {
    pub(crate) fn new(place: &Place) -> Self {
        let pipe = place.path("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        Self(pipe)
    }

    /// Starts a receiver that is held when it comes there first.
    pub(crate) fn hold(&self, point: &str, receive: &mut Command) -> Receiver {
        Receiver::start(receive.env("DWCP_HOLD", format!("{point}@{}", self.0.display())))
    }

    /// Waits until it is. Dropped, it goes on.
    pub(crate) fn is_there(&self) -> File {
        File::options().write(true).open(&self.0).unwrap()
    }
}

fn image(place: &Place) -> PathBuf {
    let image = place.path("vm.mem");
    fs::write(&image, noise(1_000_000)).unwrap();
    image
}

fn sent(place: &Place, receiver: &Receiver, name: &str, image: &Path) {
    let said = run(place.send(&receiver.address, name).arg(image));
    assert_eq!(said.code, 0, "{}", said.err);
}

#[test]
fn a_question_whose_image_takes_long_to_find_holds_up_nobody_else() {
    let (place, id) = (Place::new(), ID.to_string());
    in_doubt(&place);
    let pipe = Pipe::new(&place);
    let receiver = pipe.hold("sink.image.reopens", &mut place.receive());
    let mut resolve = dwcp();
    resolve.args(["resolve", &id, "--json", "--to", &receiver.address, "--trust", &place.receiver, "--identity"]);
    let mut asking = Lines::start(resolve.arg(place.path("a.id")).arg("--state-dir").arg(place.path("state")));
    let held = pipe.is_there();
    let other = image(&place);
    sent(&place, &receiver, "vm2", &other);
    assert_eq!(place.visible(), ["vm2"]);
    drop(held);
    assert_eq!((&asking.until("summary")["verdict"], asking.end().0), (&"ok".into(), 0));
    receiver.stop();
    assert_eq!(place.visible(), ["vm1", "vm2"]);
}

/// What a transfer that is known to its sender left at the receiver, too long ago.
const OLD: TransferId = TransferId([0x55; 16]);

/// A receiver that is held while it removes that, after a first image has come.
fn sweeps(place: &Place, image: &Path, pipe: &Pipe, words: &[&str]) -> (Receiver, File) {
    let mut receiver = pipe.hold("sink.image.sweeps", place.receive().args(words));
    for ending in ["part", "wal"] {
        let path = place.stored(&format!(".dwcp-{OLD}.{ending}"));
        fs::write(&path, "").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    sent(place, &receiver, "vm0", image);
    receiver.lines.until("transfer");
    (receiver, pipe.is_there())
}

/// Old files go while nothing is staged, and what is staged then waits for them: it may have their names.
#[test]
fn a_sweep_that_takes_long_holds_up_no_word_and_takes_nothing_from_who_comes_meanwhile() {
    let place = Place::new();
    in_doubt(&place);
    let (pipe, image) = (Pipe::new(&place), image(&place));
    let (receiver, held) = sweeps(&place, &image, &pipe, &[]);
    let key = format!("vm2 {} {}", receiver.address, place.sender);
    assert!(Records::open(place.path("state")).unwrap().offering(&key, OLD).unwrap().1.is_some());
    // For a second, so that it would be under way when its names are taken.
    let mut send = place.send(&receiver.address, "vm2");
    let mut sending = Lines::start(send.args(["--json", "--bandwidth", "1MB"]).arg(&image));
    // The loop answers: this name was promised to another transfer.
    let mut other = dwcp();
    other.args(["send", "--to", &receiver.address, "--as", "vm1", "--trust", &place.receiver, "--identity"]);
    let said = run(other.arg(place.path("a.id")).arg("--state-dir").arg(place.path("elsewhere")).arg(&image));
    said.failed(1, &["the name vm1 is taken here", "waits for its sender's word"]);
    drop(held);
    let summary = sending.until("summary");
    assert_eq!((&summary["verdict"], &summary["transfer"]), (&"ok".into(), &OLD.to_string().into()), "{summary}");
    receiver.lines.interrupt();
    assert_eq!(receiver.lines.end().0, 8, "vm1 stays in doubt");
    assert_eq!(place.visible(), ["vm0", "vm2"]);
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm2")).unwrap());
    assert_eq!(place.names().filter(|name| name.contains(&OLD.to_string())).count(), 0);
}

#[test]
fn a_receiver_that_is_stopped_while_it_sweeps_does_not_wait_for_that_for_ever() {
    let place = Place::new();
    let (pipe, image) = (Pipe::new(&place), image(&place));
    let (mut receiver, held) = sweeps(&place, &image, &pipe, &["--grace", "1s"]);
    receiver.lines.signal("TERM");
    assert_eq!(receiver.lines.until("summary")["verdict"], "ok");
    assert_eq!(receiver.lines.end().0, 0);
    drop(held);
}

#[test]
fn what_comes_over_version_1_is_staged_beside_everything_else() {
    let place = Place::new();
    let (pipe, data, other) = (Pipe::new(&place), noise(200_000), image(&place));
    let mut receive = place.receive();
    receive.args(["--v1", "amst16", "--v1-form", "plain", "--v1-as", "old", "--v1-size", "200000"]);
    let mut receiver = pipe.hold("sink.image.creates", receive.args(["--allow-plaintext-v1", "127.0.0.1"]));
    let writer = legacy::dial_and_write(receiver.address.parse().unwrap(), legacy::amst16_streams(&data, 16_384, 8));
    let held = pipe.is_there();
    sent(&place, &receiver, "vm2", &other);
    assert_eq!((receiver.lines.until("transfer")["name"].as_str(), place.visible()), (Some("vm2"), vec!["vm2".into()]));
    drop(held);
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    writer.join().unwrap();
    receiver.stop();
    assert!(fs::read(place.stored("old")).unwrap() == data);
}
