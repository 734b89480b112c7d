//! Images arrive, or are refused, as an operator is told.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::operator::{Lines, Place, Receiver, dwcp, figure, noise, run, slow};

fn blocks(path: &Path) -> u64 {
    path.metadata().unwrap().blocks()
}

#[test]
fn a_sparse_image_arrives_byte_for_byte_and_sparse() {
    let place = Place::new();
    let receiver = Receiver::start(place.receive().arg("--once"));
    let image = place.sparse("vm.mem");
    let said = run(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap(), "the bytes differ");
    assert!(blocks(&place.stored("vm1")) <= blocks(&image) + 64, "the image is not sparse");
    assert_eq!(place.stored("vm1").metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let summary = said.send_summary();
    assert_eq!(summary["verdict"], "ok");
    assert_eq!(summary["root_source"], summary["root_sink"]);
    assert_eq!(summary["root_source"].as_str().unwrap().len(), 64);
    assert_eq!((&summary["rounds"], &summary["resent_pages"]), (&1.into(), &0.into()));
    assert_eq!(summary["bytes_guest"], 20_000_123);
    let wire = summary["bytes_wire"].as_u64().unwrap();
    assert!((300_000..400_000).contains(&wire), "{wire} bytes on the wire");
    for field in ["saved_pct", "mb_s", "downtime_ms"] {
        assert!(summary[field].is_number(), "{field}: {summary}");
    }
    let (code, err) = receiver.lines.end();
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!((place.visible(), place.parked()), (vec!["vm1".to_owned()], 0));
}

#[test]
fn without_json_people_get_sentences_and_no_bars() {
    let place = Place::new();
    let receiver = place.listen();
    let said = run(place.send(&receiver.address, "vm1").arg(place.sparse("vm.mem")));
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.contains("verified") && said.out.contains("20.0 MB"), "{}", said.out);
    assert!(!said.out.contains('\u{1b}'), "no escape sequences");
    receiver.stop();
}

#[test]
fn a_sender_opens_no_more_lanes_than_the_receiver_takes() {
    let place = Place::new();
    let receiver = Receiver::start(place.receive().args(["--lanes", "2"]));
    let image = place.sparse("vm.mem");
    // An image stands still anyway: no downtime is too little for it.
    let said = run(place.send(&receiver.address, "vm1").args(["--lanes", "8", "--downtime", "1ms"]).arg(&image));
    assert_eq!((said.code, said.err.as_str()), (0, ""), "nobody complains of lanes");
    receiver.stop();
}

#[test]
fn snapshots_travel_as_rounds() {
    let place = Place::new();
    let paths = ["t0.mem", "t1.mem", "t2.mem"].map(|name| place.path(name));
    let mut image = noise(4_000_001);
    fs::write(&paths[0], &image).unwrap();
    image[1_000_000..1_100_000].fill(1);
    fs::write(&paths[1], &image).unwrap();
    image[2_000_000..2_050_000].fill(0);
    fs::write(&paths[2], &image).unwrap();
    let receiver = place.listen();
    let mut command = place.send(&receiver.address, "vm1");
    let said = run(command.arg("--json").args(paths.iter().flat_map(|path| [Path::new("--round"), path])));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(image == fs::read(place.stored("vm1")).unwrap(), "the last snapshot is there");
    let summary = said.summary();
    assert_eq!(summary["rounds"], 3);
    assert!(summary["resent_pages"].as_u64().unwrap() >= 36, "{summary}");

    fs::write(&paths[1], &image[1..]).unwrap();
    let mut command = place.send(&receiver.address, "vm2");
    run(command.args(paths.iter().flat_map(|path| [Path::new("--round"), path]))).failed(1, &["one size"]);
    receiver.stop();
}

#[test]
fn nothing_is_overwritten_without_replace() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    fs::write(place.stored("vm1"), "old").unwrap();
    let mut receiver = place.listen();
    let said = run(place.send(&receiver.address, "vm1").arg(&image));
    said.failed(1, &["exists already", "--replace", "The source is intact"]);
    assert_eq!(receiver.lines.until("refused")["name"], "vm1");
    assert_eq!(fs::read(place.stored("vm1")).unwrap(), b"old");
    receiver.stop();
    let receiver = Receiver::start(place.receive().arg("--replace"));
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(&image)).code, 0);
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
    assert_eq!(place.visible(), ["vm1"]);
    receiver.stop();
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_noticed() {
    let place = Place::new();
    let mut receiver = place.listen();
    let (image, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    File::options().write(true).open(&image).unwrap().write_all_at(b"changed", 15_000_000).unwrap();
    let summary = sending.until("summary");
    let (code, err) = sending.end();
    assert_eq!((code, &summary["verdict"]), (1, &"failed".into()), "{err}");
    assert!(err.contains("slow.mem changed while it was being read"), "{err}");
    // An interrupt before the receiver is done with it would be an interrupted transfer.
    receiver.lines.until("transfer");
    receiver.stop();
    assert!(place.visible().is_empty(), "{:?}", place.visible());
}

/// Whether this system lets its users mount a small file system in a name space of their own.
fn may_mount(place: &Place) -> bool {
    let mut mount = in_a_name_space("mount -t tmpfs -o size=1m tmpfs \"$0\"", &place.path("in"));
    let can = mount.output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: this system gives no mount name space to its users (unshare -Urm)");
    }
    can
}

/// A script whose first word is a folder to mount something on, where nobody else sees it.
fn in_a_name_space(script: &str, folder: &std::path::Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script]).arg(folder);
    command
}

/// A disk that is really full, without being root.
#[test]
fn a_full_disk_at_the_receiver_is_named_and_leaves_the_source_as_it_was() {
    let place = Place::new();
    if !may_mount(&place) {
        return;
    }
    let image = place.path("vm.mem");
    fs::write(&image, noise(8_000_000)).unwrap();
    let small = |more: &[&str]| {
        let mut small = in_a_name_space("mount -t tmpfs -o size=2m tmpfs \"$0\" && exec \"$@\"", &place.path("in"));
        let receive = place.receive();
        Receiver::start(small.arg(receive.get_program()).args(receive.get_args()).args(more))
    };
    // Before a byte of it travels.
    let receiver = small(&[]);
    let said = run(place.send(&receiver.address, "vm1").arg(&image));
    said.failed(1, &["no space left", "8000000 bytes", "--sparse"]);
    receiver.stop();
    // On the way, when the space is only taken as pages come.
    let receiver = small(&["--once", "--sparse"]);
    let said = run(place.send(&receiver.address, "vm1").arg("--json").arg(&image));
    said.failed(1, &["no space left", "send it again", "The source is intact"]);
    assert_eq!(said.send_summary()["verdict"], "failed");
    let (code, err) = receiver.lines.end();
    assert_eq!(code, 1);
    assert!(err.contains("no space left") && err.contains("Nothing of it became visible"), "{err}");
    assert!(!err.contains("ERROR"), "what happened is told once: {err}");
    assert!(fs::read(&image).unwrap() == noise(8_000_000), "the source is as it was");
    // Where there is room it is taken, whatever went before.
    let receiver = place.listen();
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(&image)).code, 0);
    receiver.stop();
}

/// What was durable when the disk became full does not travel again.
#[test]
fn an_image_that_filled_a_disk_goes_on_when_there_is_room() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(16_000_000)).unwrap();
    let mount = "mount -t tmpfs -o size=8m tmpfs \"$0\"";
    if !may_mount(&place) {
        return;
    }
    let script = format!("{mount}; \"$@\" --once; mount -o remount,size=64m \"$0\" && exec \"$@\"");
    let receive = place.receive();
    let mut small = in_a_name_space(&script, &place.path("in"));
    small.arg(receive.get_program()).args(receive.get_args());
    let mut receiver = Receiver::start(small.arg("--sparse"));
    let send = |to: &str, rate| run(place.send(to, "vm1").args(["--json", "--bandwidth", rate]).arg(&image));
    let said = send(&receiver.address, "16MB");
    said.failed(1, &["no space left", "what is durable stays for a day"]);
    let next = receiver.lines.until("listening")["address"].as_str().unwrap().to_owned();
    let said = send(&next, "1GB");
    assert_eq!(said.code, 0, "{}", said.err);
    let wire = said.send_summary()["bytes_wire"].as_u64().unwrap();
    assert!(wire < 14_000_000, "{wire} bytes travelled again");
    receiver.stop();
}

/// Its state tells what must not run twice: nothing is sent that could not be remembered, and nothing is left lying about.
#[test]
fn a_sender_whose_state_cannot_be_kept_says_where_and_leaves_nothing() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(100_000)).unwrap();
    fs::create_dir_all(place.path("state")).unwrap();
    let full = "mount -t tmpfs -o size=16k tmpfs \"$0\" && head -c 16k /dev/zero > \"$0/fill\"";
    let script = format!("{full}; \"$@\"; code=$?; ls -A \"$0\"; exit $code");
    if !may_mount(&place) {
        return;
    }
    let send = place.send("127.0.0.1:1", "vm1");
    let mut small = in_a_name_space(&script, &place.path("state"));
    let said = run(small.arg(send.get_program()).args(send.get_args()).arg(&image));
    said.failed(1, &["cannot be kept in", "No space left", "Free some space"]);
    // A lock is empty, and is there for all who send.
    assert_eq!(said.out, "fill\noffers.lock\n", "{}", said.err);
}

#[test]
fn a_directory_that_is_exchanged_under_a_receiver_gets_nothing() {
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(100_000)).unwrap();
    let receiver = place.listen();
    fs::rename(place.path("in"), place.path("moved")).unwrap();
    let send = || run(place.send(&receiver.address, "vm1").arg(&image));
    send().failed(1, &["was removed or exchanged", "started again"]);
    fs::create_dir(place.path("in")).unwrap();
    send().failed(1, &["was removed or exchanged", "started again"]);
    assert!(!place.path("moved").join("vm1").exists() && place.visible().is_empty());
    fs::remove_dir(place.path("in")).unwrap();
    fs::rename(place.path("moved"), place.path("in")).unwrap();
    assert_eq!(send().code, 0);
    receiver.stop();
}

/// Nobody has to stop a receiver, and all that it receives, for a name that will be free by itself.
#[test]
fn a_name_that_is_taken_is_said_to_be_free_when_the_other_transfer_ends() {
    let place = Place::new();
    let receiver = place.listen();
    let (image, mut slow) = slow(&place, &receiver.address, "vm1");
    slow.until("progress");
    let mut second = dwcp();
    second.args(["send", "--to", &receiver.address, "--as", "vm1", "--trust", &place.receiver, "--identity"]);
    let said = run(second.arg(place.path("a.id")).arg("--state-dir").arg(place.path("elsewhere")).arg(&image));
    said.failed(1, &["the name vm1 is taken here by another transfer that is under way", "wait until it has ended"]);
    slow.kill();
    receiver.lines.interrupt();
    let (_, err) = receiver.lines.end();
    let refused = err.lines().find(|line| line.starts_with("refused vm1: transfer")).unwrap();
    assert!(refused.contains("is under way here, from sha256:") && refused.contains("nothing to do"), "{refused}");
    assert!(!refused.contains("stop this receiver"), "{refused}");
}

/// Lanes find zeros quickly, and that says nothing of what the link lets through afterwards.
#[test]
fn the_speed_that_is_told_is_that_of_the_wall_clock() {
    let place = Place::new();
    let mut receiver = place.listen();
    let image = place.path("vm.mem");
    fs::write(&image, [vec![0; 100 << 20], noise(8 << 20)].concat()).unwrap();
    let mut sending =
        Lines::start(place.send(&receiver.address, "vm1").args(["--json", "--bandwidth", "2MB"]).arg(&image));
    // Once the zeros are behind them, lines tell of noise at two million bytes a second.
    let noise_pages = 8 << 8;
    while sending.until("progress")["pages_left"].as_u64().unwrap() > noise_pages {}
    for lines in [&mut sending, &mut receiver.lines] {
        // That line may tell of zeros yet, and so may the receiver's of that time.
        (0..2).for_each(|_| drop(lines.until("progress")));
        let speeds: Vec<_> = (0..2).map(|_| figure(&lines.until("progress"), "mb_s")).collect();
        assert!(speeds.iter().all(|speed| *speed <= 20), "{speeds:?}");
    }
    assert_eq!(sending.until("summary")["verdict"], "ok");
    receiver.stop();
}

/// What was there from before is no merit of the codec, and both ends tell the same of it.
#[test]
fn a_transfer_that_goes_on_tells_what_it_sent_and_what_was_there() {
    let place = Place::new();
    let mut receiver = place.listen();
    let image = place.path("vm.mem");
    // Half of each page is noise.
    fs::write(&image, noise(4 << 20).chunks(2048).flat_map(|half| [half, &[0; 2048]].concat()).collect::<Vec<_>>())
        .unwrap();
    let mut first =
        Lines::start(place.send(&receiver.address, "vm1").args(["--json", "--bandwidth", "1MB"]).arg(&image));
    while figure(&first.until("progress"), "bytes_durable") == 0 {}
    first.kill();
    let said = run(place.send(&receiver.address, "vm1").args(["--json", "--effort", "light"]).arg(&image));
    let (sent, went_on) = (said.send_summary(), receiver.lines.until("going-on"));
    let received = loop {
        let transfer = receiver.lines.until("transfer");
        if transfer["verdict"] == "ok" {
            break transfer;
        }
    };
    let held = figure(&went_on, "bytes_held");
    assert!(
        held > 0 && held == figure(&sent, "bytes_held") && held == figure(&received, "bytes_held"),
        "{sent} {received}"
    );
    assert_eq!(sent["bytes_wire"], received["bytes_wire"]);
    for saved in [&sent["saved_pct"], &sent["codec"]["saved_pct"], &sent["codec"]["saved_pct_without_zero"]] {
        assert!((45.0..55.0).contains(&saved.as_f64().unwrap()), "{sent}");
    }
    receiver.stop();
}

/// Who reads the lines by a program finds each of their fields explained.
#[test]
fn every_field_of_a_transfers_lines_stands_in_their_document() {
    const DOCUMENT: &str = include_str!("../../docs/json.md");
    let place = Place::new();
    let mut receiver = place.listen();
    let (_, mut sending) = slow(&place, &receiver.address, "vm1");
    let first = [sending.until("progress"), receiver.lines.until("progress")];
    sending.interrupt();
    let ended = [sending.until("statistics"), receiver.lines.until("transfer")];
    receiver.lines.interrupt();
    let lines = first.into_iter().chain(ended).chain(sending.lines.iter()).chain(receiver.lines.lines.iter());
    let mut seen = std::collections::BTreeSet::new();
    for line in lines {
        seen.insert(line["event"].as_str().unwrap().to_owned());
        for field in line.as_object().unwrap().keys() {
            assert!(DOCUMENT.contains(&format!("`{field}`")), "{field} of {line}");
        }
    }
    for event in ["progress", "statistics", "summary", "transfer"] {
        assert!(seen.contains(event), "{event}: {seen:?}");
    }
}

/// The library counts them, and so an operator is told.
#[test]
fn who_was_turned_away_is_counted_in_the_statistics_line() {
    let place = Place::new();
    let mut receive = dwcp();
    receive.args(["receive", "--listen", "127.0.0.1:0", "--json", "--trust", &place.receiver, "--identity"]);
    let mut receiver = Receiver::start(receive.arg(place.path("b.id")).arg("--dir").arg(place.path("in")));
    let said = run(place.send(&receiver.address, "vm1").arg(place.sparse("vm.mem")));
    assert_eq!(said.code, 5, "{}", said.err);
    receiver.lines.interrupt();
    let statistics = receiver.lines.until("statistics");
    assert_eq!(figure(&statistics["turned_away"], "not-authenticated"), 1, "{statistics}");
    assert_eq!(statistics["offences"], serde_json::json!({}), "it is nobody's offence");
}
