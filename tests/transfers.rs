//! `dwcp transfers`: each state of a transfer, as real processes leave it, and what may be done about it.

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
use std::sync::atomic::Ordering;

use dwcp_core::net::Records;
use dwcp_core::wire::TransferId;
use operator::{LIMIT, Lines, Place, Receiver, Said, WithoutRun, dwcp, noise, run, slow};
use serde_json::Value;

/// `dwcp transfers` at the sender.
fn source(place: &Place, words: &[&str]) -> Said {
    run(dwcp().arg("transfers").args(words).arg("--state-dir").arg(place.path("state")))
}

/// `dwcp transfers` at the receiver.
fn sink(place: &Place, words: &[&str]) -> Said {
    run(dwcp().arg("transfers").args(words).arg("--dir").arg(place.path("in")))
}

/// At either end.
type Look = fn(&Place, &[&str]) -> Said;

/// The one transfer in a list, which stands so.
#[track_caller]
fn only(said: &Said, state: &str) -> Value {
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(said.summary()["transfers"], 1, "{}", said.out);
    let entry: Value = serde_json::from_str(said.out.lines().next().unwrap()).unwrap();
    assert_eq!((&entry["event"], &entry["state"]), (&"transfer".into(), &state.into()), "{entry}");
    entry
}

#[track_caller]
fn at_source(place: &Place, state: &str) -> Value {
    only(&source(place, &["list", "--json"]), state)
}

#[track_caller]
fn at_sink(place: &Place, state: &str) -> Value {
    only(&sink(place, &["list", "--json"]), state)
}

/// Waits until a sender was told that something of its image is durable.
fn until_durable(sending: &mut Lines) {
    while sending.until("progress")["bytes_durable"].as_u64().unwrap() == 0 {}
}

/// A sender of the folder's `slow.mem` that names it, and all else, as seen from there.
fn relative(place: &Place, to: &str, rate: &str) -> Command {
    let mut command = dwcp();
    command.current_dir(place.folder.path()).args(["send", "--to", to, "--as", "vm1", "--trust", &place.receiver]);
    command.args(["--identity", "a.id", "--state-dir", "state", "--json", "--bandwidth", rate, "slow.mem"]);
    command
}

/// Both ends killed in the middle of an image; where the receiver was.
fn cut_off(place: &Place) -> (PathBuf, String) {
    let image = place.path("slow.mem");
    fs::write(&image, noise(16_000_000)).unwrap();
    let mut receiver = place.listen();
    let mut sending = Lines::start(&mut relative(place, &receiver.address, "4MB"));
    until_durable(&mut sending);
    sending.kill();
    receiver.lines.kill();
    (image, receiver.address.clone())
}

#[test]
fn what_is_under_way_is_told_at_both_ends_and_nobody_takes_it_away() {
    let place = Place::new();
    let mut receiver = place.listen();
    let (_, mut sending) = slow(&place, &receiver.address, "vm1");
    until_durable(&mut sending);
    let entry = at_source(&place, "sending");
    let id = entry["transfer"].as_str().unwrap();
    assert_eq!((&entry["name"], &entry["to"]), (&"vm1".into(), &(*receiver.address).into()));
    assert!(entry["command"].as_str().unwrap().contains("--as vm1"), "{entry}");
    let entry = at_sink(&place, "receiving");
    assert!(entry["quiet_s"].as_u64().unwrap() < 60, "{entry}");
    assert_eq!((entry["transfer"].as_str(), &entry["peer"]), (Some(id), &(*place.sender).into()));
    let held = entry["bytes_held"].as_u64().unwrap();
    assert!(held > 0 && held < 16_000_000 && entry["bytes"] == 16_000_000, "{entry}");

    source(&place, &["abort", id]).failed(1, &["is being sent", "Ctrl-C"]);
    source(&place, &["resume", id]).failed(1, &["is under way"]);
    sink(&place, &["abort", id]).failed(1, &["is being received", "Ctrl-C"]);
    sink(&place, &["resume", id]).failed(1, &["by its sender", "dwcp transfers resume"]);
    // Its session holds it for a while longer.
    sending.kill();
    at_source(&place, "cut-off");
    sink(&place, &["abort", id]).failed(1, &["is being received"]);
    assert_eq!(place.parked(), 2);
    receiver.lines.kill();
    at_sink(&place, "parked");
}

#[test]
fn what_was_cut_off_is_told_and_resumed_with_the_words_that_began_it() {
    let place = Place::new();
    let (image, address) = cut_off(&place);
    let entry = at_sink(&place, "parked");
    let (id, held) = (entry["transfer"].as_str().unwrap().to_owned(), entry["bytes_held"].as_u64().unwrap());
    let kept = entry["kept_s"].as_u64().unwrap();
    assert!(held > 0 && (80_000..=86_400).contains(&kept), "{entry}");
    let people = sink(&place, &["show", &id]).out;
    for words in
        [&*id, "vm1", &place.sender, "16000000 bytes", "within 23 hours", "transfers resume", "transfers abort"]
    {
        assert!(people.contains(words), "no `{words}`: {people}");
    }
    assert_eq!(at_source(&place, "cut-off")["transfer"], *id);
    let shown = source(&place, &["show", &id, "--json"]);
    assert_eq!((shown.out.lines().count(), &shown.summary()["state"]), (1, &"cut-off".into()));
    assert!(shown.summary()["next"][0].as_str().unwrap().contains("dwcp transfers resume"), "{}", shown.out);

    // From anywhere: the words were typed elsewhere.
    let receiver = Receiver::start(&mut place.receive_at(&address));
    let mut resume = dwcp();
    resume.current_dir("/").args(["transfers", "resume", &id, "--json", "--state-dir"]).arg(place.path("state"));
    let said = run(&mut resume);
    assert_eq!(said.code, 0, "{}", said.err);
    let summary = said.send_summary();
    assert_eq!((&summary["verdict"], &summary["transfer"]), (&"ok".into(), &(*id).into()));
    let wire = summary["bytes_wire"].as_u64().unwrap();
    assert!(wire < 16_000_000 - held + 800_000, "{held} were held, {wire} travelled");
    receiver.stop();
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());

    // The sender forgets it, the receiver remembers that it has it.
    assert!(source(&place, &["list"]).out.contains("no transfer is known in"));
    let entry = at_sink(&place, "handed-over");
    assert!(entry["transfer"] == *id && (600_000..=604_800).contains(&entry["kept_s"].as_u64().unwrap()), "{entry}");
    sink(&place, &["abort", &id]).failed(1, &["is this receiver's"]);
    sink(&place, &["resume", &id]).failed(1, &["the image is here"]);
    source(&place, &["resume", &id]).failed(1, &["no transfer", &id, "transfers list"]);
    assert!(!fs::read_dir(place.path("state")).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().contains(&*id)
    }));
}

/// As if the last `dwcp send` of it had begun so long ago.
fn aged(place: &Place, id: &str, days: u64) {
    let path = place.path("state").join(format!("{id}.offered"));
    let file = fs::File::options().write(true).open(path).unwrap();
    let since = std::time::Duration::from_secs(86_400 * days);
    file.set_modified(file.metadata().unwrap().modified().unwrap() - since).unwrap();
}

#[test]
fn what_was_cut_off_is_forgotten_by_another_send_after_30_days() {
    let place = Place::new();
    let receiver = place.listen();
    let state = Records::open(place.path("state")).unwrap();
    for (byte, days) in [(1, 31), (2, 29)] {
        let (id, key) = (TransferId([byte; 16]), format!("vm{byte} host:1 {}", place.sender));
        drop(state.offering(&key, id).unwrap());
        aged(&place, &id.to_string(), days);
    }
    let listed = source(&place, &["list"]).out;
    assert!(listed.contains("30 days ago") && listed.contains("same words within 23 hours"), "{listed}");
    let mut sending = Lines::start(place.send(&receiver.address, "vm3").arg("--json").arg(place.sparse("vm.mem")));
    let told = sending.until("forgotten");
    let of_first = (&TransferId([1; 16]).to_string().into(), &"vm1".into(), &"host:1".into());
    assert_eq!((&told["transfer"], &told["name"], &told["to"]), of_first, "{told}");
    assert_eq!(sending.until("summary")["verdict"], "ok");
    let left = at_source(&place, "cut-off");
    assert_eq!(left["name"], "vm2");
    assert!((80_000..=86_400).contains(&left["kept_s"].as_u64().unwrap()), "{left}");
    receiver.stop();
}

/// The receiver keeps what it promised for ever; so does its sender what takes that back.
#[test]
fn what_may_be_promised_to_a_killed_sender_is_never_forgotten() {
    let place = Place::new();
    let (image, pipe) = (place.sparse("vm.mem"), place.path("pipe"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let held = format!("sink.chore.stage.before@{}", pipe.display());
    let receiver = Receiver::start(place.receive().env("DWCP_HOLD", held));
    let mut sending = Lines::start(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    let pipe = fs::File::options().write(true).open(&pipe).unwrap();
    let id = at_source(&place, "sending")["transfer"].as_str().unwrap().to_owned();
    let promised = place.path("state").join(format!("{id}.promised"));
    while !promised.exists() {
        std::thread::yield_now();
    }
    sending.kill();
    aged(&place, &id, 400);
    let other = |name: &str| run(place.send("127.0.0.1:1", name).arg(&image));
    other("vm2").failed(6, &[]);
    let entry = at_source(&place, "cut-off");
    assert!(entry["transfer"] == *id && entry["kept_s"].is_null(), "{entry}");
    let people = source(&place, &["list"]).out;
    assert!(people.contains("may have all of it and wait"), "{people}");
    drop(pipe);
    let said = run(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    assert_eq!((said.code, &said.summary()["transfer"]), (0, &id.into()), "{}{}", said.out, said.err);
    assert!(!promised.exists());
    receiver.stop();
}

#[test]
fn what_was_cut_off_is_given_up_at_each_end_for_itself() {
    let place = Place::new();
    let (image, address) = cut_off(&place);
    let id = at_sink(&place, "parked")["transfer"].as_str().unwrap().to_owned();
    // A receiver that runs has no session of it.
    let receiver = Receiver::start(&mut place.receive_at(&address));
    at_sink(&place, "parked");
    let said = sink(&place, &["abort", &id, "--json"]);
    assert_eq!((said.code, &said.summary()["transfer"]), (0, &(*id).into()), "{}", said.err);
    assert_eq!((place.parked(), place.visible()), (0, vec![]));
    sink(&place, &["abort", &id]).failed(1, &["no transfer"]);
    assert_eq!(source(&place, &["abort", &id]).code, 0);
    assert_eq!(source(&place, &["list", "--json"]).summary()["transfers"], 0);
    assert!(!place.path("state").join(format!("{id}.words")).exists());

    // The same words begin another transfer.
    let said = run(&mut relative(&place, &address, "1GB"));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_ne!(said.send_summary()["transfer"], *id);
    receiver.stop();
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
}

#[test]
fn words_that_are_lost_or_lead_nowhere_cost_only_the_resume() {
    let place = Place::new();
    let (_, address) = cut_off(&place);
    let id = at_source(&place, "cut-off")["transfer"].as_str().unwrap().to_owned();
    let words = place.path("state").join(format!("{id}.words"));
    let typed = fs::read_to_string(&words).unwrap();
    fs::write(&words, typed.replace("\"send\"", "\"receive\"")).unwrap();
    source(&place, &["resume", &id]).failed(1, &["cannot be run again"]);
    let mut gone: Value = serde_json::from_str(&typed).unwrap();
    gone["folder"] = place.path("gone").to_str().unwrap().into();
    fs::write(&words, gone.to_string()).unwrap();
    source(&place, &["resume", &id]).failed(1, &["gone", "cannot be entered"]);
    fs::write(&words, [0xff]).unwrap();
    assert!(at_source(&place, "cut-off")["command"].is_null());
    let again = format!("dwcp send --to {address} --as vm1");
    source(&place, &["resume", &id]).failed(1, &["not remembered", &again]);
    // What a power cut made of an offer hides no other, and can be given up.
    let torn = "5".repeat(32);
    fs::write(place.path("state").join(format!("{torn}.offered")), [0, 0xff]).unwrap();
    let said = source(&place, &["list", "--json"]);
    assert!(said.out.contains(&id) && said.out.contains(&torn), "{}{}", said.out, said.err);
    assert_eq!(source(&place, &["list"]).out.find('\0'), None);
    for id in [&id, &torn] {
        assert_eq!(source(&place, &["abort", id]).code, 0);
    }
    assert_eq!(source(&place, &["list", "--json"]).summary()["transfers"], 0);
}

#[test]
fn a_doubt_is_told_at_both_ends_and_resumed_by_asking() {
    let place = Place::new();
    let mut receiver = place.listen();
    let at = receiver.address.clone();
    let between = WithoutRun::start(&at, place.path("state"));
    let image = place.sparse("vm.mem");
    let mut sending = Lines::start(place.send(&between.address, "vm1").arg("--json").arg(&image));
    between.gave_up.recv_timeout(LIMIT).unwrap();
    // Both ends are at it: RUN may come yet.
    let entry = at_source(&place, "handing-over");
    let id = entry["transfer"].as_str().unwrap();
    assert_eq!((&entry["to"], &entry["bytes"]), (&(*between.address).into(), &20_000_123.into()));
    assert_eq!(at_sink(&place, "handing-over")["root"], entry["root"]);
    for said in [source(&place, &["abort", id]), sink(&place, &["abort", id])] {
        said.failed(1, &["is being handed over"]);
    }
    source(&place, &["resume", id]).failed(1, &["is under way"]);
    // Nor is it this operator's word what becomes of it, while the process that gave it up may still hear.
    let mut resolve = dwcp();
    resolve.args(["resolve", id, "--owner", "source", "--fenced", "--state-dir"]).arg(place.path("state"));
    run(&mut resolve).failed(1, &["is handing vm1 over just now", "Stop it first"]);
    at_source(&place, "handing-over");

    sending.kill();
    at_source(&place, "in-doubt");
    // Its session waits for that sender, for as long as it takes: nobody is told that the name will be free by itself.
    let mut other = dwcp();
    other
        .args(["send", "--to", &at, "--as", "vm1", "--trust", &place.receiver])
        .arg("--identity")
        .arg(place.path("a.id"));
    let said = run(other.arg("--state-dir").arg(place.path("elsewhere")).arg(&image));
    said.failed(1, &["the name vm1 is taken here", "waits for its sender's word"]);
    receiver.lines.kill();
    at_sink(&place, "in-doubt");
    let people = sink(&place, &["list"]).out;
    assert!(people.contains("in-doubt: stored here") && people.contains(&place.sender), "{people}");
    for said in [source(&place, &["abort", id]), sink(&place, &["abort", id])] {
        said.failed(1, &["is in doubt", "dwcp resolve"]);
    }
    sink(&place, &["resume", id]).failed(1, &["by its sender"]);
    let next = sink(&place, &["show", id, "--json"]).summary()["next"].to_string();
    assert!(next.contains("dwcp resolve") && next.contains("--fenced"), "{next}");

    // The receiver is away, and the doubt stays.
    assert_ne!(source(&place, &["resume", id]).code, 0);
    at_source(&place, "in-doubt");
    between.open.store(true, Ordering::Relaxed);
    let receiver = Receiver::start(&mut place.receive_at(&at));
    let said = source(&place, &["resume", id, "--json"]);
    assert_eq!((said.code, &said.summary()["owner"]), (0, &"sink".into()), "{}", said.err);
    receiver.stop();
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
    assert_eq!(source(&place, &["list", "--json"]).summary()["transfers"], 0);
    at_sink(&place, "handed-over");
}

/// Killed between the rename and the record: who says that it is in doubt invites an operator to give it back.
#[test]
fn an_image_that_is_visible_is_never_called_in_doubt() {
    let place = Place::new();
    let mut receive = place.receive();
    let mut receiver = Receiver::start(receive.env("DWCP_FAILPOINT", "sink.image.durable"));
    let at = receiver.address.clone();
    let image = place.sparse("vm.mem");
    let mut sending = Lines::start(place.send(&at, "vm1").arg("--json").arg(&image));
    assert!(!receiver.lines.child.wait().unwrap().success());
    sending.kill();
    let entry = at_sink(&place, "visible");
    let id = entry["transfer"].as_str().unwrap();
    assert_eq!(place.visible(), ["vm1"]);
    let next = entry["next"].to_string();
    assert!(next.contains("--owner sink --fenced") && !next.contains("source"), "{next}");
    let people = run(dwcp().arg("resolve").arg("--dir").arg(place.path("in"))).out;
    assert!(people.contains("here under its name already"), "{people}");
    sink(&place, &["abort", id]).failed(1, &["is this receiver's"]);
    at_source(&place, "in-doubt");

    let receiver = Receiver::start(&mut place.receive_at(&at));
    let said = source(&place, &["resume", id, "--json"]);
    assert_eq!((said.code, &said.summary()["owner"]), (0, &"sink".into()), "{}", said.err);
    receiver.stop();
    at_sink(&place, "handed-over");
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
}

#[test]
fn what_was_refused_is_not_something_to_send_again() {
    let place = Place::new();
    let receiver = place.listen();
    let image = place.path("vm.mem");
    fs::write(&image, noise(100_000)).unwrap();
    fs::write(place.stored("vm1"), "taken").unwrap();
    run(place.send(&receiver.address, "vm1").arg(&image)).failed(1, &["exists already"]);
    receiver.stop();
    run(place.send("127.0.0.1:1", "vm2").arg(&image)).failed(6, &["cannot connect"]);
    assert_eq!(source(&place, &["list", "--json"]).summary()["transfers"], 0, "nothing is on its way");
}

#[test]
fn another_identity_is_another_sender() {
    let place = Place::new();
    let (image, address) = cut_off(&place);
    let id = at_source(&place, "cut-off")["transfer"].as_str().unwrap().to_owned();
    let other = place.path("c.id");
    assert_eq!(run(dwcp().args(["identity", "new", "--out"]).arg(&other)).code, 0);
    let mut command = dwcp();
    command.args(["send", "--to", &address, "--as", "vm1", "--trust", &place.receiver, "--state-dir"]);
    let said = run(command.arg(place.path("state")).arg("--identity").arg(&other).arg(&image));
    said.failed(6, &["cannot connect"]);
    let shown = source(&place, &["show", &id]);
    assert!(shown.out.contains("a.id") && !shown.out.contains("c.id"), "{}", shown.out);
}

#[test]
fn a_damaged_record_is_told_and_never_thrown_away() {
    let place = Place::new();
    cut_off(&place);
    let id = at_sink(&place, "parked")["transfer"].as_str().unwrap().to_owned();
    let ends: [(&str, Look); 2] = [("in/.dwcp", sink), ("state", source)];
    for (folder, look) in ends {
        fs::write(place.path(folder).join(format!("{id}.record")), "torn").unwrap();
        let said = look(&place, &["list", "--json"]);
        assert!(said.code == 0 && said.err.contains(&*id), "{}", said.err);
        assert_eq!((&said.summary()["transfers"], &said.summary()["damaged"]), (&0.into(), &1.into()));
        for words in ["show", "resume", "abort"] {
            look(&place, &[words, &id]).failed(1, &["a record cannot be read", &id, "the other end"]);
        }
    }
    assert_eq!(place.parked(), 2);
}

#[test]
fn wrong_ids_and_mistyped_folders_are_errors() {
    let place = Place::new();
    let look = |words: &[&str]| run(dwcp().current_dir(place.folder.path()).arg("transfers").args(words));
    let id = "5".repeat(32);
    for (words, told) in [
        (&["list", "--dir", "nonexist"][..], "no directory nonexist"),
        (&["list", "--dir", "in"], "no `dwcp receive` ever stored images in in"),
        (&["list", "--state-dir", "nonexist"], "no directory nonexist"),
        (&["show", &id, "--state-dir", "in"], "no transfer 5555"),
    ] {
        look(words).failed(1, &[told]);
        let said = look(&[words, &["--json"]].concat());
        assert_eq!((said.code, &said.summary()["verdict"]), (1, &"failed".into()));
    }
    look(&["show", "xyz"]).failed(2, &["xyz"]);
    look(&["show"]).failed(2, &["TRANSFER"]);
    look(&["list", "--dir", "in", "--state-dir", "in"]).failed(2, &["--dir"]);
    let never = run(dwcp().env("XDG_STATE_HOME", place.path("never-used")).args(["transfers", "list"]));
    assert!(never.code == 0 && never.out.contains("no transfer is known in"), "{}{}", never.out, never.err);
    assert!(!Path::new(&place.path("never-used")).exists(), "a look makes nothing");
}
