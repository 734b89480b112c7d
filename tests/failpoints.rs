//! A process dies at each named point of a transfer, as by a power cut, and is started again with the same words: the
//! image arrives, byte by byte, and has one owner. What is durable at a power cut is another matter: the disk of this
//! machine goes on.
//!
//! ```text
//!   DWCP_FAILPOINT=sink.sends.READY ──> dwcp receive     dies, is started again without
//!                                       dwcp send        lives, or ends and is started again
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dwcp_core::failpoint::NAMES;
use operator::{LIMIT, Lines, Place, Receiver, noise, run};
use tokio::time::Instant;

/// One lane carries more than half its window, so that credit is granted on the way.
const BYTES: usize = 5_000_123;
/// Cells that run at a time: they wait for timers and disks more than they compute.
const AT_A_TIME: usize = 6;
/// A name may be held for a moment by the session of a sender that died.
const TRIES: usize = 30;

/// Points that nothing reaches unless something else went wrong before: there the other end dies first.
const PRELUDES: [(&str, &str); 14] = [
    ("sink.sends.HAVE", "source.lane.written:9"),
    ("sink.sent.HAVE", "source.lane.written:9"),
    ("source.received.HAVE", "sink.lane.written:9"),
    ("source.chore.recall.before", "sink.lane.written:9"),
    ("source.chore.recall.after", "sink.lane.written:9"),
    ("source.performs.redial", "sink.lane.written:3"),
    ("source.chore.resume.before", "sink.received.PAUSE"),
    ("source.chore.resume.after", "sink.received.PAUSE"),
    ("sink.chore.park.before", "source.lane.written:9"),
    ("sink.chore.park.after", "source.lane.written:9"),
    ("sink.retracts", "sink.sends.READY"),
    ("sink.retracted", "sink.sends.READY"),
    // Nor may what was promised be lost, or be had twice, when both ends die.
    ("source.sent.RUN", "sink.sent.READY"),
    ("sink.chore.run.after", "source.sent.RUN"),
];

/// What is left of a point: it comes again with every extent, and another one may be the worst.
const AGAIN: [&str; 6] = [
    "source.lane.written:9",
    "source.received.ACK:3",
    "source.performs.send:9",
    "sink.lane.written:9",
    "sink.lane.applied:9",
    "sink.sends.ACK:3",
];

/// One death, or two.
#[derive(Clone, Copy, Debug)]
struct Cell {
    point: &'static str,
    before: Option<&'static str>,
}

fn cells() -> Vec<Cell> {
    let alone = NAMES.iter().chain(&AGAIN).filter(|point| !needs_prelude(point));
    let alone = alone.map(|&point| Cell { point, before: None });
    alone.chain(PRELUDES.map(|(point, before)| Cell { point, before: Some(before) })).collect()
}

fn needs_prelude(point: &str) -> bool {
    PRELUDES.iter().take(12).any(|(name, _)| *name == point)
}

/// Where a failpoint is, by its first word.
fn at_source(point: &str) -> bool {
    point.starts_with("source.")
}

/// The source is not the owner any more once it was told RUNNING, whatever its disk says.
fn told(point: &str) -> bool {
    ["received.RUNNING", "performs.finished", "chore.forget.before", "chore.forget.after", "wound-up"]
        .iter()
        .any(|end| point.ends_with(end))
}

/// Both ends of one cell.
struct Stage<'a> {
    cell: Cell,
    place: Place,
    image: &'a Path,
    address: String,
    receiver: Lines,
    sender: Lines,
    /// Points that the next processes of each end die at: source, sink.
    due: [Vec<&'static str>; 2],
    deaths: usize,
    doubts: usize,
}

impl<'a> Stage<'a> {
    fn set(cell: Cell, image: &'a Path) -> Self {
        let place = Place::new();
        let points = || cell.before.into_iter().chain([cell.point]).rev();
        let due = [true, false].map(|source| points().filter(|point| at_source(point) == source).collect::<Vec<_>>());
        let [source, sink] = &due;
        let mut receive = place.receive();
        let Receiver { lines: receiver, address } = Receiver::start(arm(receive.arg("--replace"), sink));
        let sender = Lines::start(arm(&mut send(&place, cell, &address, image), source));
        Self { cell, place, image, address, receiver, sender, due, deaths: 0, doubts: 0 }
    }

    /// Starts again who died, and the sender until it is done.
    fn play(&mut self) {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            assert!(began.elapsed() < LIMIT, "it takes for ever: {}", self.errors());
            self.tend_receiver();
            let Some(status) = self.sender.child.try_wait().unwrap() else {
                std::thread::park_timeout(Duration::from_millis(2));
                continue;
            };
            let died = killed(status);
            if died {
                self.deaths += 1;
                self.due[0].pop();
                self.owners_after_death();
            } else if status.code() == Some(0) {
                return;
            }
            tries += 1;
            assert!(tries < TRIES, "the sender ends with {status}: {}", self.errors());
            if self.ended_by_asking() {
                return;
            }
            let mut send = send(&self.place, self.cell, &self.address, self.image);
            self.sender = Lines::start(arm(&mut send, &self.due[0]));
        }
    }

    fn tend_receiver(&mut self) {
        if let Some(status) = self.receiver.child.try_wait().unwrap() {
            assert!(killed(status), "the receiver ends with {status}: {}", self.errors());
            self.deaths += 1;
            self.due[1].pop();
            let mut receive = self.place.receive_at(&self.address);
            self.receiver = Receiver::start(arm(receive.arg("--replace"), &self.due[1])).lines;
        }
    }

    /// A source that has not given up runs its guest: then nobody else may have it. spec: S-5
    fn owners_after_death(&self) {
        let gave_up = fs::read_dir(self.place.path("state"))
            .map(|names| names.filter_map(Result::ok).any(|name| name.path().extension() == Some("record".as_ref())));
        let visible = self.place.stored("vm1").exists();
        let points = [Some(self.cell.point), self.cell.before];
        let told = points.into_iter().flatten().any(|point| at_source(point) && told(point));
        assert!(!visible || gave_up.unwrap_or(false) || told, "two owners");
    }

    /// A sender that died after GIVE_UP is in doubt: it asks, and has sent the image if the sink says so. spec: S-8
    fn ended_by_asking(&mut self) -> bool {
        let mut ended = false;
        for transfer in self.in_doubt() {
            self.doubts += 1;
            let mut command = operator::dwcp();
            command.args(["resolve", &transfer, "--to", &self.address, "--trust", &self.place.receiver]);
            command.arg("--identity").arg(self.place.path("a.id")).arg("--state-dir").arg(self.place.path("state"));
            // It may take a receiver that is dying with it.
            let asking = Lines::start(command.arg("--json"));
            ended |= self.until_ended(asking);
        }
        ended
    }

    fn until_ended(&mut self, mut asking: Lines) -> bool {
        loop {
            self.tend_receiver();
            if let Some(status) = asking.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn in_doubt(&self) -> Vec<String> {
        let mut command = operator::dwcp();
        if !self.place.path("state").exists() {
            return Vec::new();
        }
        let said = run(command.args(["resolve", "--json", "--state-dir"]).arg(self.place.path("state")));
        let lines = said.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line["transfer"].as_str().map(str::to_owned)).collect()
    }

    /// All died that should, nothing is lost, nothing is left.
    fn end(mut self) -> usize {
        let (due, began) = (1 + usize::from(self.cell.before.is_some()), Instant::now());
        // The last of the sink's points come after the source has ended.
        while self.deaths < due && began.elapsed() < LIMIT / 4 {
            self.tend_receiver();
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let deaths = self.deaths;
        assert!(deaths == due, "a point was not reached, {deaths} deaths: {}", self.errors());
        assert_eq!(self.in_doubt(), Vec::<String>::new(), "a doubt is left");
        let Self { place, image, receiver, doubts, .. } = self;
        Receiver { lines: receiver, address: String::new() }.stop();
        let said = run(operator::dwcp().args(["resolve", "--json", "--dir"]).arg(place.path("in")));
        assert_eq!((said.code, &said.summary()["transfers"]), (0, &0.into()), "a promise is left: {}", said.out);
        assert!(fs::read(image).unwrap() == fs::read(place.stored("vm1")).unwrap(), "the image is another");
        assert_eq!((place.visible(), place.parked()), (vec!["vm1".to_owned()], 0), "something is left over");
        doubts
    }

    fn errors(&mut self) -> String {
        let _ = self.sender.child.kill();
        let _ = self.receiver.child.kill();
        format!("sender: {} receiver: {}", self.sender.errors(), self.receiver.errors())
    }
}

/// The next process of this end dies at its next point, if there is one left.
fn arm<'c>(command: &'c mut Command, due: &[&'static str]) -> &'c mut Command {
    command.envs(due.last().map(|point| ("DWCP_FAILPOINT", point)))
}

fn send(place: &Place, cell: Cell, to: &str, image: &Path) -> Command {
    let mut command = place.send(to, "vm1");
    command.args(["--json", "--lanes", "1"]).arg(image);
    // Slow enough for the journal of the sink to know pages when it is cut off.
    if cell.point.ends_with("HAVE") || cell.point.contains("recall") {
        command.args(["--bandwidth", "6MB"]);
    }
    command
}

/// Of a failpoint: by SIGABRT.
fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(6)
}

/// Runs cells side by side; returns how many doubts had to be ended, and which cells failed.
fn play(cells: &[Cell], image: &Path) -> (usize, Vec<String>) {
    let (next, doubts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(&cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let played = std::panic::catch_unwind(|| {
                        let mut stage = Stage::set(cell, image);
                        stage.play();
                        stage.end()
                    });
                    match played {
                        Ok(count) => drop(doubts.fetch_add(count, Ordering::Relaxed)),
                        Err(_) => failed.lock().unwrap().push(format!("{cell:?}")),
                    }
                }
            });
        }
    });
    (doubts.into_inner(), failed.into_inner().unwrap())
}

#[test]
fn a_process_that_dies_anywhere_costs_time_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let only = std::env::var("DWCP_CELL").ok();
    let cells: Vec<_> =
        cells().into_iter().filter(|cell| only.as_ref().is_none_or(|only| cell.point == only)).collect();
    let began = Instant::now();
    let (doubts, failed) = play(&cells, &image);
    println!("{} cells in {:.0} s, {doubts} doubts ended by asking", cells.len(), began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A receiver that dies of this very image, whenever it is started again, is not helped by sending it for ever.
#[test]
fn a_receiver_that_dies_of_its_transfer_every_time_is_given_up() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(BYTES)).unwrap();
    let dies = |command: &mut Command| Receiver::start(command.env("DWCP_FAILPOINT", "sink.sends.ACCEPT"));
    let mut receiver = dies(&mut place.receive());
    let address = receiver.address.clone();
    let mut sending = Lines::start(place.send(&address, "vm1").arg("--json").arg(&image));
    let mut deaths = 0;
    while sending.child.try_wait().unwrap().is_none() {
        if let Some(status) = receiver.lines.child.try_wait().unwrap() {
            assert!(killed(status), "the receiver ends with {status}");
            deaths += 1;
            receiver = dies(&mut place.receive_at(&address));
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    let summary = sending.until("summary");
    let (code, err) = sending.end();
    assert_eq!((code, &summary["verdict"]), (1, &"failed".into()), "{err}");
    assert!(summary["error"].as_str().unwrap().contains("restarted 10 times"), "{summary}");
    assert!(summary["advice"].as_str().unwrap().contains("The source is intact"), "{summary}");
    assert_eq!(deaths, 11, "{err}");
    receiver.stop();
}

#[test]
fn every_point_of_the_code_is_in_the_list_and_both_ends_have_many() {
    let mut faults = Vec::new();
    for path in tree::rust_files(&["dwcp-core/src"]).iter().filter(|path| !path.ends_with("failpoint.rs")) {
        for (line, number) in tree::text_of(path).lines().zip(1..) {
            let names = line.split("failpoint!(\"").skip(1).filter_map(|rest| rest.split('"').next());
            faults.extend(
                names
                    .filter(|name| !NAMES.contains(name))
                    .map(|name| format!("{path}:{number}: {name} is not in NAMES")),
            );
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let all: BTreeSet<_> = NAMES.iter().collect();
    assert_eq!(all.len(), NAMES.len(), "a name stands twice");
    let source = NAMES.iter().filter(|name| at_source(name)).count();
    assert!(source >= 30 && NAMES.len() - source >= 30, "{source} at the source, {} in all", NAMES.len());
}
