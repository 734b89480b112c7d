//! `dwcp estimate` beside what `dwcp send` really sends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use operator::{Lines, Place, Receiver, dwcp, figure, noise, run};
use serde_json::Value;

const PAGE: usize = 4096;

/// Pages of real guests, of three of them 640 each.
fn guest_pages() -> Vec<u8> {
    let frame = include_bytes!("data/guest-pages.zst");
    let mut pages = vec![0; 1920 * PAGE];
    assert_eq!(zstd_safe::decompress(pages.as_mut_slice(), frame), Ok(1920 * PAGE));
    pages
}

/// Real pages, and a hole behind them.
fn image(place: &Place) -> PathBuf {
    let path = place.path("vm.mem");
    fs::write(&path, guest_pages()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(3000 * 4096).unwrap();
    path
}

fn estimate(files: &[&Path], link: &str) -> Command {
    let mut command = dwcp();
    command.args(["estimate", "--json", "--link", link]).args(files);
    command
}

#[track_caller]
fn estimated(command: &mut Command) -> Value {
    let said = run(command);
    assert_eq!(said.code, 0, "{}", said.err);
    said.summary()
}

fn sent(receiver: &Receiver, mut command: Command) -> Value {
    let summary = Lines::start(command.args(["--json", "--bandwidth", "50mbit"])).until("summary");
    assert_eq!(summary["verdict"], "ok", "{summary} {}", receiver.address);
    summary
}

/// Within so many per thousand.
#[track_caller]
fn close(estimated: u64, real: u64, per_mille: u64) {
    assert!(estimated.abs_diff(real) * 1000 <= real * per_mille, "estimated {estimated}, but it is {real}");
}

#[test]
fn what_is_estimated_is_what_is_sent() {
    let place = Place::new();
    let image = image(&place);
    for effort in ["light", "balanced", "raw"] {
        let receiver = place.listen();
        let mut send = place.send(&receiver.address, "vm1");
        let real = sent(&receiver, {
            send.args(["--effort", effort]).arg(&image);
            send
        });
        let told = estimated(estimate(&[&image], "50mbit").args(["--effort", effort]));
        close(figure(&told, "bytes_wire"), figure(&real, "bytes_wire"), 20);
        // What each method took and made adds up, in both.
        for summary in [&told, &real] {
            let methods = summary["codec"]["methods"].as_array().unwrap();
            let sum = |name: &str| methods.iter().map(|method| figure(method, name)).sum::<u64>();
            assert_eq!(sum("bytes_out") + figure(&summary["codec"], "bytes_heads"), figure(summary, "bytes_wire"));
            assert_eq!(sum("pages"), 3000, "{summary}");
        }
        assert_eq!((figure(&told, "bytes_guest"), figure(&told, "bytes_read")), (3000 * 4096, 1920 * 4096));
        let heads = figure(&told, "bytes_tls") + figure(&told, "bytes_packets");
        close(heads, figure(&told, "bytes_wire") * 47 / 1000, 150);
        receiver.stop();
        fs::remove_file(place.stored("vm1")).unwrap();
    }
}

#[test]
fn snapshots_are_estimated_as_the_rounds_that_they_are() {
    let place = Place::new();
    let pages = guest_pages();
    let (before, after) = (place.path("t0.mem"), place.path("t1.mem"));
    // 160 pages of each guest, as they were and as they are a second later.
    let (old, new): (Vec<_>, Vec<_>) =
        pages.chunks(640 * PAGE).map(|guest| (&guest[..480 * PAGE], &guest[480 * PAGE..])).unzip();
    fs::write(&before, old.concat()).unwrap();
    let later = old.iter().zip(&new).map(|(old, new)| [&old[..320 * PAGE], new].concat());
    fs::write(&after, later.collect::<Vec<_>>().concat()).unwrap();
    let receiver = place.listen();
    let mut send = place.send(&receiver.address, "vm1");
    send.args(["--effort", "balanced", "--shadow", "100%"]).arg("--round").arg(&before).arg("--round").arg(&after);
    let real = sent(&receiver, send);
    let told = estimated(estimate(&[&before, &after], "50mbit").args(["--effort", "balanced", "--shadow", "100%"]));
    close(figure(&told, "bytes_wire"), figure(&real, "bytes_wire"), 20);
    assert_eq!((figure(&told, "rounds"), figure(&told, "pages_resent")), (2, 480));
    assert_eq!((&told["rounds"], &told["pages_resent"]), (&real["rounds"], &real["resent_pages"]));
    receiver.stop();
}

#[test]
fn of_a_baseline_only_what_changed_is_estimated() {
    let place = Place::new();
    let (store, key, before) = (place.path("store"), place.path("key"), place.path("before.mem"));
    let pages = guest_pages();
    fs::write(&before, &pages).unwrap();
    let mut add = dwcp();
    add.args(["baseline", "add", "--make-key", "--tenant", "web", "--name", "golden", "--store"]).arg(&store);
    assert_eq!(run(add.arg("--key-file").arg(&key).arg(&before)).code, 0);
    let mut changed = pages;
    changed.iter_mut().step_by(20 * PAGE).for_each(|byte| *byte ^= 0x55);
    changed[PAGE..101 * PAGE].copy_from_slice(&noise(100 * PAGE));
    let image = place.path("after.mem");
    fs::write(&image, changed).unwrap();
    let with = |command: &mut Command| {
        command.args(["--baseline", "golden", "--baseline-store"]).arg(&store).arg("--baseline-key").arg(&key);
    };
    let mut receive = place.receive();
    with(&mut receive);
    let receiver = Receiver::start(&mut receive);
    let mut send = place.send(&receiver.address, "vm1");
    with(&mut send);
    let real = sent(&receiver, {
        send.args(["--effort", "balanced"]).arg(&image);
        send
    });
    let mut warm = estimate(&[&image], "50mbit");
    with(&mut warm);
    let told = estimated(warm.args(["--effort", "balanced"]));
    close(figure(&told, "bytes_wire"), figure(&real, "bytes_wire"), 20);
    assert!(figure(&told, "bytes_wire") < 110 * 4096, "{told}");
    // One digest says what the receiver holds.
    assert!(figure(&told, "pages_held") > 1000 && figure(&told, "bytes_answers") < 20_000, "{told}");
    receiver.stop();
    let mut wrong = estimate(&[&image], "50mbit");
    wrong.args(["--baseline", "silver", "--baseline-store"]).arg(&store).arg("--baseline-key").arg(&key);
    run(&mut wrong).failed(1, &["there is no baseline silver in", "dwcp baseline list"]);
}

#[test]
fn of_a_large_image_a_part_tells_the_whole() {
    let place = Place::new();
    let path = place.path("large.mem");
    let file = File::create(&path).unwrap();
    let pages = guest_pages();
    // 120 MB, in which the guests take turns and no page is that of another turn; then a hole.
    for turn in 0..16_u64 {
        let mut copy = pages.clone();
        copy.chunks_mut(PAGE)
            .filter(|page| page.iter().any(|&byte| byte != 0))
            .for_each(|page| page[0] ^= 1 << (turn % 8));
        file.write_all_at(&copy, turn * 1920 * 4096).unwrap();
    }
    file.set_len(1 << 30).unwrap();
    let whole = estimated(estimate(&[&path], "1gbit").args(["--effort", "light", "--whole"]));
    let part = estimated(estimate(&[&path], "1gbit").args(["--effort", "light", "--sample", "48MiB"]));
    assert_eq!(figure(&whole, "bytes_read"), 16 * 1920 * 4096);
    assert!((48 << 20..64 << 20).contains(&figure(&part, "bytes_read")), "{part}");
    close(figure(&part, "bytes_wire"), figure(&whole, "bytes_wire"), 100);
    let methods = part["codec"]["methods"].as_array().unwrap();
    let sum = methods.iter().map(|method| figure(method, "bytes_out")).sum::<u64>();
    assert_eq!(sum + figure(&part["codec"], "bytes_heads"), figure(&part, "bytes_wire"), "{part}");
    let zeros = |summary: &Value| {
        let methods = summary["codec"]["methods"].as_array().unwrap();
        figure(methods.iter().find(|method| method["method"] == "zero").unwrap(), "pages")
    };
    close(zeros(&part), zeros(&whole), 10);
    assert_eq!(figure(&part, "bytes_guest"), 1 << 30);
}

#[test]
fn a_guest_that_writes_converges_or_the_answer_says_what_would_help() {
    let place = Place::new();
    let image = image(&place);
    let writes = |rate: &str, link: &str| {
        let mut command = estimate(&[&image], link);
        command.args(["--effort", "balanced", "--downtime", "100ms", "--dirty-rate", rate]);
        command
    };
    let told = run(&mut writes("200", "100mbit")).summary();
    assert!(figure(&told, "rounds") >= 2 && figure(&told, "pages_resent") > 0, "{told}");
    let downtime = told["downtime_ms"].as_f64().unwrap();
    assert!(told["converges"] == true && downtime <= 110.0, "{told}");
    assert_eq!(told["verdict"], if downtime > 100.0 { "over-budget" } else { "ok" });
    let said = run(&mut writes("20MiB/s", "10mbit"));
    assert_eq!(said.code, 3, "{}", said.err);
    let summary = said.summary();
    assert_eq!((&summary["verdict"], &summary["converges"]), (&"not-converged".into(), &false.into()));
    let error = summary["error"].as_str().unwrap();
    assert!(error.contains("will not converge") && error.contains("packs to"), "{error}");
    // Two round trips are the least that a switch-over takes.
    let far = estimated(estimate(&[&image], "100mbit").args(["--rtt", "250ms"]));
    let downtime = far["downtime_ms"].as_f64().unwrap();
    assert!((500.0..560.0).contains(&downtime), "{far}");
    // Nobody minded; who names a budget does.
    let over = run(estimate(&[&image], "100mbit").args(["--rtt", "250ms", "--downtime", "300ms"]));
    assert_eq!(
        (over.code, &over.summary()["verdict"], &over.summary()["converges"]),
        (10, &"over-budget".into(), &true.into())
    );
    let words = run(dwcp().args(["estimate", "--link", "0.1gbit", "--rtt", "250ms", "--downtime", "0.3s"]).arg(&image));
    assert!(words.code == 10 && words.out.contains("--downtime 300 ms: THE BUDGET IS EXCEEDED"), "{}", words.out);
    assert!(words.out.contains("advice       it would fit with --downtime 650ms"), "{}", words.out);
}

/// Whatever is advised is an option of the same command, and with it the answer is that the transfer fits.
#[test]
fn what_is_advised_to_a_guest_that_writes_too_much_does_help() {
    let place = Place::new();
    let image = image(&place);
    // The guest, the link, the budget, the round trip; and which advice there must be.
    let shapes = [
        ("20MiB/s", "10mbit", "100ms", "1ms", 3, [true, true, true]),
        // All of the image is written in each round, many times.
        ("500MiB/s", "100mbit", "100ms", "1ms", 3, [true, true, true]),
        ("5000", "30mbit", "90ms", "10ms", 3, [true, true, true]),
        // Round trips and records alone take more than two thirds of the budget: no link leaves the other third to spare.
        ("3000", "30mbit", "50ms", "10ms", 3, [true, false, false]),
        // Longer than the ten seconds that a pause may take if nobody says otherwise.
        ("20MiB/s", "1mbit", "12s", "40ms", 3, [true, true, true]),
        // Two round trips are longer than the budget: neither a link nor a slower guest helps.
        ("200", "1gbit", "100ms", "60ms", 10, [true, false, false]),
        ("50MiB/s", "20mbit", "300ms", "250ms", 10, [true, false, false]),
    ];
    for (writes, link, budget, rtt, code, expected) in shapes {
        let asked = |change: Option<(&str, String)>| {
            let mut options = vec![("--link", link), ("--dirty-rate", writes), ("--downtime", budget), ("--rtt", rtt)];
            if let Some((name, value)) = &change {
                options.retain(|(option, _)| option != name);
                options.push((name, value));
            }
            let mut command = dwcp();
            // The link decides, however busy this machine is.
            command.args(["estimate", "--effort", "light", "--cores", "64"]).arg(&image);
            options.into_iter().fold(&mut command, |command, (name, value)| command.args([name, value]));
            command
        };
        let told = run(asked(None).arg("--json"));
        let (summary, shape) = (told.summary(), format!("{writes} over {link}, {budget}, {rtt}"));
        // A guest that writes as much as the link takes may be stopped in time by chance, and then for too long.
        assert!(told.code == code || code == 3 && told.code == 10, "{shape}: {summary}");
        assert!(told.code == 10 || summary["converges"] == false, "{shape}: {summary}");
        let line = run(&mut asked(None)).out;
        let line = line.lines().find(|line| line.contains("  advice")).unwrap_or_else(|| panic!("{shape}: {summary}"));
        let words: Vec<_> = line.split([' ', ',', ';']).collect();
        for (option, expected) in ["--downtime", "--link", "--dirty-rate"].into_iter().zip(expected) {
            let at = words.iter().position(|word| *word == option);
            assert_eq!(at.is_some(), expected, "{shape}: {line}");
            let Some(at) = at else { continue };
            let value = words[at + 1].to_owned();
            let with = run(asked(Some((option, value))).arg("--json"));
            assert_eq!((with.code, &with.summary()["converges"]), (0, &true.into()), "{shape}: {line}: {}", with.out);
        }
        if code == 10 {
            let error = summary["error"].as_str().unwrap();
            assert!(summary["verdict"] == "over-budget" && error.contains("round trips and records alone"), "{error}");
        }
    }
}

#[test]
fn nothing_is_written_and_what_is_wrong_is_said() {
    let place = Place::new();
    let image = image(&place);
    let home = place.path("home");
    fs::create_dir(&home).unwrap();
    let told = run(dwcp().env("HOME", &home).args(["estimate", "--link", "100mbit", "--rtt", "40ms"]).arg(&image));
    assert_eq!(told.code, 0, "{}", told.err);
    for words in ["nothing was sent", "on the wire", "without zero pages", "downtime", "zstd", "zero"] {
        assert!(told.out.contains(words), "{words}: {}", told.out);
    }
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
    run(&mut estimate(&[&image], "100")).failed(2, &["--link", "`100` is no bandwidth", "100mbit"]);
    run(estimate(&[&image], "1gbit").args(["--rtt", "40"])).failed(2, &["--rtt", "`40` is no round trip", "40ms"]);
    run(estimate(&[&image], "1gbit").args(["--dirty-rate", "20M"]))
        .failed(2, &["`20M` is no rate of writes", "20MiB/s"]);
    run(estimate(&[&image], "1gbit").args(["--baseline", "golden"])).failed(2, &["--baseline-store"]);
    run(estimate(&[&image, &image], "1gbit").args(["--dirty-rate", "5"])).failed(2, &["--dirty-rate", "Leave it out"]);
    let empty = place.path("empty.mem");
    File::create(&empty).unwrap();
    run(&mut estimate(&[&empty], "1gbit")).failed(1, &["empty.mem", "0 bytes"]);
    run(&mut estimate(&[&place.path("in")], "1gbit")).failed(1, &["is a directory; name an image file"]);
    run(&mut estimate(&[&place.path("none.mem")], "1gbit")).failed(1, &["none.mem", "Check the path"]);
    run(&mut estimate(&[&image, &empty], "1gbit")).failed(1, &["empty.mem"]);
}
