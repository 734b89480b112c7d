//! What a node has promised: transfers in doubt, how they end, and what a receiver remembers.

use std::fs::{self, File};

use dwcp_core::extent::FlatPage;
use dwcp_core::guest::ImageFolder;
use dwcp_core::net::Records;
use dwcp_core::session::leaves::{Tree, leaf};
use dwcp_core::session::{Leaves, Record, Standing};
use dwcp_core::wire::{FenceEpoch, Name, TransferId};
use dwcp_core::{Guest, Layout, RegionId};

use crate::operator::{Place, Receiver, Said, dwcp, noise, run};

pub(crate) const ID: TransferId = TransferId([0xab; 16]);

fn record(standing: Standing, peer: &str) -> Record {
    let (name, layout, peer) = (Name::new("vm1").unwrap(), Layout::new(&[5000]).unwrap(), peer.parse().unwrap());
    let (leaves, mut plain) = (Leaves::new(&layout), vec![0; 8192]);
    plain[..5000].fill(1);
    for (page, flat) in plain.chunks(4096).zip(0..) {
        leaves.set(FlatPage(flat), leaf(page));
    }
    let (epoch, root) = (FenceEpoch(1), Tree::new(&layout).root(&leaves));
    Record { transfer: ID, epoch, attempt: 1, root, name, layout, peer, standing }
}

/// Both ends as a crash between GIVE_UP and RUN leaves them.
pub(crate) fn in_doubt(place: &Place) {
    Records::open(place.path("state")).unwrap().store(&record(Standing::GaveUp, &place.receiver)).unwrap();
    Records::open(place.path("in/.dwcp")).unwrap().store(&record(Standing::Ready, &place.sender)).unwrap();
    let layout = Layout::new(&[5000]).unwrap();
    let staging = ImageFolder::open(place.path("in")).unwrap().create(&Name::new("vm1").unwrap(), ID, layout).unwrap();
    staging.write(RegionId(0), 0, &vec![1; 8192]).unwrap();
    staging.stage().unwrap();
}

pub(crate) fn resolve(place: &Place, args: &[&str]) -> Said {
    let mut command = dwcp();
    run(command.args(["resolve", "--state-dir"]).arg(place.path("state")).args(args))
}

fn resolve_sink(place: &Place, args: &[&str]) -> Said {
    let mut command = dwcp();
    run(command.args(["resolve", "--dir"]).arg(place.path("in")).args(args))
}

#[test]
fn a_mistyped_path_hides_no_doubt() {
    let place = Place::new();
    in_doubt(&place);
    let look = |words: &[&str]| run(dwcp().current_dir(place.folder.path()).arg("resolve").args(words));
    let was = |words: &[&str], told: &[&str]| {
        look(words).failed(1, told);
        let said = look(&[words, &["--json"]].concat());
        said.failed(1, told);
        assert_eq!(said.summary()["verdict"], "failed");
    };
    was(&["--dir", "nonexist"], &["no directory nonexist", "dwcp receive --dir"]);
    was(&["--dir", "a.id"], &["a.id is no directory"]);
    was(&["--dir", "state"], &["no `dwcp receive` ever stored images in state", ".dwcp"]);
    was(&["--state-dir", "nonexist"], &["no directory nonexist", "--state-dir"]);
    was(&["--state-dir", "a.id"], &["a.id is no directory"]);
    was(&[&*ID.to_string(), "--dir", "nonexist", "--owner", "sink", "--fenced"], &["no directory nonexist"]);
    assert!(look(&["--dir", "in"]).out.contains(&ID.to_string()));
    // The user's own folder is there from the first `dwcp send` on.
    let said = run(dwcp().env("XDG_STATE_HOME", place.path("never-used")).arg("resolve"));
    assert!(said.code == 0 && said.out.contains("nothing is in doubt"), "{}{}", said.out, said.err);
}

#[test]
fn a_doubt_is_told_and_ended_by_asking() {
    let place = Place::new();
    in_doubt(&place);
    let id = ID.to_string();
    let list = resolve(&place, &[]);
    assert!(list.code == 0 && list.out.contains(&id) && list.out.contains("vm1"), "{}{}", list.out, list.err);
    assert!(list.out.contains(&place.receiver), "{}", list.out);
    let list = resolve_sink(&place, &[]).out;
    assert!(list.contains(&id) && list.contains(&place.sender), "{list}");

    let mut receiver = place.listen();
    // A running receiver holds the transfer: nobody ends it behind its back.
    resolve_sink(&place, &[&id, "--owner", "source", "--fenced"]).failed(1, &["runs on", "Stop it first"]);
    // Neither end is stopped by a doubt, and both tell it.
    let other = place.sparse("other.mem");
    let said = run(place.send(&receiver.address, "vm1").arg(&other));
    said.failed(8, &["in doubt", &id, "might run twice", "dwcp resolve"]);

    let identity = place.path("a.id").display().to_string();
    let ask = ["--to", &receiver.address, "--identity", &identity, "--trust", &place.receiver];
    let said = resolve(&place, &[&[&*id][..], &ask].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(fs::read(place.stored("vm1")).unwrap(), vec![1; 5000]);
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    assert!(resolve(&place, &[]).out.contains("nothing is in doubt"));
    resolve(&place, &[&[&*id][..], &ask].concat()).failed(1, &["is not in doubt"]);
    receiver.stop();
    assert_eq!(place.visible(), ["vm1"]);
}

/// Of what was handed over before nothing travels again, and nothing is verified again.
#[test]
fn a_question_about_what_was_handed_over_is_told_as_a_question() {
    let place = Place::new();
    Records::open(place.path("state")).unwrap().store(&record(Standing::GaveUp, &place.receiver)).unwrap();
    Records::open(place.path("in/.dwcp")).unwrap().store(&record(Standing::Ran, &place.sender)).unwrap();
    let mut receiver = place.listen();
    let identity = place.path("a.id").display().to_string();
    let ask = ["--to", &receiver.address, "--identity", &identity, "--trust", &place.receiver];
    let said = resolve(&place, &[&[&*ID.to_string()][..], &ask].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let told = receiver.lines.until("transfer");
    assert_eq!((&told["asked"], &told["verdict"]), (&true.into(), &"ok".into()), "{told}");
    assert_eq!((&told["bytes_guest"], &told["bytes_wire"]), (&5000.into(), &0.into()), "{told}");
    receiver.stop();
}

/// As a sender that was killed between giving its image up and hearing that it is there leaves it.
#[test]
fn the_same_words_ask_what_became_of_what_was_given_up_and_send_it_nowhere_else() {
    let place = Place::new();
    in_doubt(&place);
    let id = &*ID.to_string();
    let image = place.path("vm.mem");
    fs::write(&image, vec![1; 5000]).unwrap();
    let mut receiver = place.listen();
    let key = format!("vm1 {} {}", receiver.address, place.sender);
    assert!(Records::open(place.path("state")).unwrap().offering(&key, ID).unwrap().1.is_some());
    let send = |to: &str, name: &str| run(place.send(to, name).arg("--reconnect-limit").arg("1s").arg(&image));

    send("127.0.0.1:1", "vm1").failed(8, &[id, "gave it up to", &receiver.address, "dwcp transfers resume"]);
    let other = send(&receiver.address, "vm2");
    assert!(other.code == 0 && other.err.contains("(vm1) is in doubt"), "another name is another guest: {}", other.err);
    receiver.lines.until("transfer");
    let said = send(&receiver.address, "vm1");
    assert!(said.code == 0 && said.out.contains("visible there"), "{}{}", said.out, said.err);
    assert!(said.err.contains("asking") && !said.out.contains("verified"), "{}", said.err);
    assert_eq!(fs::read(place.stored("vm1")).unwrap(), vec![1; 5000]);
    assert!(resolve(&place, &[]).out.contains("nothing is in doubt"));
    receiver.lines.until("transfer");
    receiver.stop();
    assert_eq!(place.visible(), ["vm1", "vm2"]);
}

/// What was given up then is there; who sends something else now must not be told that this is.
#[test]
fn another_image_under_the_name_of_a_doubt_is_sent_once_that_is_ended() {
    let place = Place::new();
    in_doubt(&place);
    let receiver = Receiver::start(place.receive().arg("--replace"));
    let key = format!("vm1 {} {}", receiver.address, place.sender);
    assert!(Records::open(place.path("state")).unwrap().offering(&key, ID).unwrap().1.is_some());
    let image = place.sparse("new.mem");
    let said = run(place.send(&receiver.address, "vm1").arg(&image));
    assert!(said.code == 0 && said.err.contains("another one, and is sent now"), "{}{}", said.out, said.err);
    assert!(said.out.contains("verified"), "{}", said.out);
    receiver.stop();
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
}

#[test]
fn a_doubt_whose_receiver_is_not_there_stays_one() {
    let place = Place::new();
    in_doubt(&place);
    let records = Records::open(place.path("state")).unwrap();
    assert!(records.offering(&format!("vm1 127.0.0.1:1 {}", place.sender), ID).unwrap().1.is_some());
    let said = run(place.send("127.0.0.1:1", "vm1").arg("--json").arg(place.sparse("vm.mem")));
    said.failed(8, &["stays in doubt", &ID.to_string()]);
    assert_eq!(said.summary()["verdict"], "in-doubt");
}

#[test]
fn a_doubt_is_ended_by_the_operator_who_fences() {
    let id = &*ID.to_string();
    let place = Place::new();
    in_doubt(&place);
    resolve(&place, &[id, "--owner", "sink"]).failed(2, &["--fenced"]);
    resolve(&place, &[id]).failed(2, &["--owner", "--to"]);
    for said in [resolve(&place, &["--json"]), resolve_sink(&place, &["--json"])] {
        assert!(said.out.contains("\"in-doubt\"") && said.summary()["transfers"] == 1, "{}", said.out);
    }
    let said = resolve(&place, &[id, "--owner", "sink", "--fenced"]);
    assert!(said.code == 0 && said.out.contains("do not use the copy here"), "{}{}", said.out, said.err);
    let said = resolve_sink(&place, &[id, "--owner", "sink", "--fenced", "--json"]);
    assert_eq!((said.code, &said.summary()["owner"]), (0, &"sink".into()), "{}", said.err);
    assert_eq!(place.visible(), ["vm1"]);

    let place = Place::new();
    in_doubt(&place);
    let said = resolve(&place, &[id, "--owner", "source", "--fenced"]);
    assert!(said.code == 0 && said.out.contains("may be used"), "{}{}", said.out, said.err);
    assert_eq!(resolve_sink(&place, &[id, "--owner", "source", "--fenced"]).code, 0);
    assert!(place.visible().is_empty());
    resolve_sink(&place, &[id, "--owner", "source", "--fenced"]).failed(1, &["is not in doubt"]);
    for folder in ["state", "in/.dwcp"] {
        let words = fs::read_to_string(place.path(folder).join("resolved.jsonl")).unwrap();
        let words: Vec<serde_json::Value> = words.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told =
            |word: &serde_json::Value| word["owner"] == "source" && word["transfer"] == *id && word["at"].is_u64();
        assert!(words.len() >= 2 && words.iter().rev().take(2).all(told), "{words:?}");
        assert_eq!(words.iter().rev().take(2).map(|word| word["done"] == true).collect::<Vec<_>>(), [true, false]);
    }
}

#[test]
fn a_file_of_the_promised_name_is_not_taken_for_the_image() {
    let place = Place::new();
    in_doubt(&place);
    let id = &*ID.to_string();
    // The crash came between the rename and its record, or somebody put a file there.
    fs::remove_file(place.stored(&format!(".dwcp-{ID}.part"))).unwrap();
    fs::write(place.stored("vm1"), noise(5000)).unwrap();
    for owner in ["sink", "source"] {
        let said = resolve_sink(&place, &[id, "--owner", owner, "--fenced"]);
        said.failed(1, &["in/vm1 is not the image that was received", ".record", "move that file away"]);
    }
    let mut receiver = place.listen();
    let identity = place.path("a.id").display().to_string();
    let ask = ["--to", &receiver.address, "--identity", &identity, "--trust", &place.receiver];
    resolve(&place, &[&[id][..], &ask].concat()).failed(8, &["is not the image that was received"]);
    assert_eq!(receiver.lines.until("transfer")["verdict"], "in-doubt");
    assert!(fs::read(place.stored("vm1")).unwrap() == noise(5000));
    receiver.lines.interrupt();
    assert_eq!(receiver.lines.end().0, 8);

    fs::rename(place.stored("vm1"), place.path("away")).unwrap();
    assert_eq!(resolve_sink(&place, &[id, "--owner", "source", "--fenced"]).code, 0);
}

#[test]
fn a_damaged_record_is_told_and_stops_nothing_else() {
    let place = Place::new();
    in_doubt(&place);
    let torn = TransferId([1; 16]);
    let name = format!("{torn}.record");
    fs::write(place.path("in/.dwcp").join(&name), "dwcp record 2\n").unwrap();
    let layout = Layout::new(&[5000]).unwrap();
    ImageFolder::open(place.path("in")).unwrap().create(&Name::new("vm2").unwrap(), torn, layout).unwrap();

    let list = resolve_sink(&place, &["--json"]);
    assert!(list.code == 0 && list.err.contains(&name) && list.out.contains(&ID.to_string()), "{}", list.err);
    assert_eq!((&list.summary()["transfers"], &list.summary()["damaged"]), (&1.into(), &1.into()));
    let receiver = place.listen();
    assert_eq!(run(place.send(&receiver.address, "vm3").arg(place.sparse("vm.mem"))).code, 0);
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    assert!(code == 8 && err.contains(&name) && err.contains("dwcp resolve"), "{err}");
    assert!(err.contains(&format!("{ID} (vm1) stays in doubt here")), "{err}");
    assert!(place.names().any(|name| name == format!(".dwcp-{torn}.part")), "it may have been promised");
}

#[test]
fn an_image_whose_end_cannot_be_recorded_is_there_with_a_warning() {
    let place = Place::new();
    in_doubt(&place);
    let id = &*ID.to_string();
    let mut receiver = place.listen();
    // Where the next record would be written first.
    fs::create_dir(place.path(&format!("in/.dwcp/{ID}.record.tmp"))).unwrap();
    let identity = place.path("a.id").display().to_string();
    let ask = ["--to", &receiver.address, "--identity", &identity, "--trust", &place.receiver];
    assert_eq!(resolve(&place, &[&[id][..], &ask].concat()).code, 0);
    let warning = receiver.lines.until("warning");
    assert!(warning["transfer"] == id && warning["error"].as_str().unwrap().contains("record"), "{warning}");
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    assert!(code == 8 && err.contains("went wrong") && err.contains("--owner sink"), "{err}");
    fs::remove_dir(place.path(&format!("in/.dwcp/{ID}.record.tmp"))).unwrap();
    assert_eq!(resolve_sink(&place, &[id, "--owner", "sink", "--fenced"]).code, 0);
    assert!(resolve_sink(&place, &[]).out.contains("nothing is in doubt"));
}

// spec: P-4
#[test]
fn what_was_handed_over_long_ago_is_forgotten() {
    let place = Place::new();
    let records = Records::open(place.path("in/.dwcp")).unwrap();
    let path = records.path(ID).unwrap();
    let hand_over_long_ago = || {
        records.store(&record(Standing::Ran, &place.sender)).unwrap();
        File::open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    hand_over_long_ago();
    let mut receiver = place.listen();
    assert!(!path.exists(), "at the start");
    hand_over_long_ago();
    assert_eq!(run(place.send(&receiver.address, "vm2").arg(place.sparse("vm.mem"))).code, 0);
    receiver.lines.until("transfer");
    receiver.stop();
    assert!(!path.exists(), "when another has arrived");
    assert_eq!(records.list().unwrap().records.len(), 1, "the new one stays");
}

#[test]
fn what_a_killed_receiver_left_is_swept_and_what_it_promised_is_kept() {
    let place = Place::new();
    in_doubt(&place);
    let layout = Layout::new(&[5000]).unwrap();
    let other = TransferId([1; 16]);
    ImageFolder::open(place.path("in")).unwrap().create(&Name::new("vm2").unwrap(), other, layout).unwrap();
    assert_eq!(place.parked(), 2);
    let receiver = place.listen();
    receiver.lines.interrupt();
    assert_eq!(receiver.lines.end().0, 8, "what it promised waits for a word");
    assert_eq!(place.parked(), 1);
    assert!(place.names().any(|name| name == format!(".dwcp-{ID}.part")));
}
