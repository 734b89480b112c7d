//! The cells of the matrix that an operator can type, as processes. `DWCP_FORCE_V1=1` is a node whose flag is off.

use std::fs;
use std::process::Command;

use dwcp_v1_compat::wire::delta;
use serde_json::Value;

use crate::legacy;
use crate::operator::{Lines, Place, Receiver, dwcp, noise, run};

const BYTES: usize = 3 * 65_536 + 777;
const FLAGS: [bool; 2] = [false, true];

fn flagged(command: &mut Command, on: bool) -> &mut Command {
    if on { command.env_remove("DWCP_FORCE_V1") } else { command.env("DWCP_FORCE_V1", "1") }
}

fn send_v1(place: &Place, to: &str, words: &[&str]) -> Command {
    let mut command = dwcp();
    command.args(["send", "--json", "--as", "vm1", "--to", to, "--allow-plaintext-v1", "127.0.0.1"]);
    command.args(["--v1-connections", "4", "--v1-block", "64KiB"]).args(words);
    command.arg("--state-dir").arg(place.path("state")).arg(place.path("vm.mem"));
    command
}

fn receive_v1(place: &Place, words: &[&str]) -> Command {
    let mut command = place.receive();
    command.args(["--once", "--allow-plaintext-v1", "127.0.0.1", "--v1-as", "old"]);
    command.args(["--v1-size", &BYTES.to_string(), "--v1-block", "64KiB"]).args(words);
    command
}

fn image(place: &Place) -> Vec<u8> {
    let data = noise(BYTES);
    fs::write(place.path("vm.mem"), &data).unwrap();
    data
}

#[test]
fn dual_to_legacy_over_amst16_and_mst8_whatever_the_flag_says() {
    let place = Place::new();
    let data = image(&place);
    for on in FLAGS {
        for form in ["memory", "disk", "plain"] {
            let (to, reader) = legacy::amst16_listen_and_read(4);
            let words = ["--v1", "amst16", "--v1-form", form];
            let said = run(flagged(&mut send_v1(&place, &to.to_string(), &words), on));
            assert_eq!(said.code, 0, "{}", said.err);
            let message = reader.join().unwrap();
            let came = match form {
                "memory" => legacy::unpack(&message),
                "disk" => legacy::read_block_list(&message, 65_536),
                _ => message,
            };
            assert!(came == data, "{form}");
        }
        // An mst8 peer dials to receive, too: the port that the system chose is told.
        let words = ["--v1", "mst8", "--v1-listen", "127.0.0.1:0"];
        let mut sending = Lines::start(flagged(&mut send_v1(&place, "127.0.0.1:1", &words), on));
        let address = sending.until("listening")["address"].as_str().unwrap().parse().unwrap();
        let reader = legacy::mst8_dial_and_read(address, 4);
        let summary = sending.until("summary");
        assert_eq!((&summary["verdict"], &summary["framing"]), (&"ok".into(), &"mst8".into()), "{summary}");
        assert_eq!((&summary["acknowledged"], &summary["bytes_wire"]), (&false.into(), &BYTES.into()));
        assert_eq!(sending.end().0, 0);
        assert!(reader.join().unwrap() == data);
    }
}

#[test]
fn legacy_to_dual_over_amst16_and_mst8_whatever_the_flag_says() {
    let data = noise(BYTES);
    for on in FLAGS {
        let (packet, list) = (legacy::packet(0, 0, &data), legacy::block_list(&data, 65_536));
        for (words, streams) in [
            (["--v1", "amst16", "--v1-form", "memory"], legacy::amst16_streams(&packet, 16_384, 8)),
            (["--v1", "amst16", "--v1-form", "disk"], legacy::amst16_streams(&list, 16_384, 8)),
            (["--v1", "mst8", "--v1-chunk", "16KiB"], legacy::mst8_streams(&data, 16_384, 3)),
        ] {
            let place = Place::new();
            let mut receiver = Receiver::start(flagged(&mut receive_v1(&place, &words), on));
            let writer = legacy::dial_and_write(receiver.address.parse().unwrap(), streams);
            let counts = receiver.lines.until("v1-port");
            assert_eq!(
                (&counts["started"], &counts["ended"]),
                (&1.into(), &serde_json::json!({"done": 1})),
                "{counts}"
            );
            let statistics = receiver.lines.until("statistics");
            assert_eq!(statistics["flag"]["runs"], if on { "v3" } else { "v1" });
            assert_eq!(statistics["v3"]["begun"], 0, "it is no session: {statistics}");
            assert_eq!(receiver.lines.until("summary")["verdict"], "ok");
            assert_eq!(receiver.lines.end(), (0, String::new()));
            assert!(fs::read(place.stored("old")).unwrap() == data, "{words:?}");
            writer.join().unwrap();
        }
    }
}

/// The line in which a command tells what it counted.
fn statistics(lines: &str) -> Value {
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.into_iter().find(|line| line["event"] == "statistics").unwrap()
}

#[test]
fn dual_to_dual_speaks_version_3_only_if_both_flags_let_it_and_says_who_declined() {
    for (source, sink, by) in [
        (true, true, [Value::Null, Value::Null]),
        (true, false, ["peer".into(), "forced".into()]),
        (false, true, ["forced".into(), "peer".into()]),
        (false, false, ["forced".into(), "forced".into()]),
    ] {
        let place = Place::new();
        let data = image(&place);
        let mut receiver = Receiver::start(flagged(place.receive().arg("--once"), sink));
        let mut send = place.send(&receiver.address, "vm1");
        let said = run(flagged(send.arg("--json").arg(place.path("vm.mem")), source));
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        let version = if source && sink { "v3" } else { "v1" };
        for (counted, by) in [statistics(&said.out), receiver.lines.until("statistics")].iter().zip(by) {
            assert_eq!(
                (&counted[version]["begun"], &counted[version]["ended"]["switched-over"]),
                (&1.into(), &1.into())
            );
            let declined = counted["declined"].as_object().unwrap();
            let expected = by.as_str().map_or(0, |by| declined[by].as_u64().unwrap());
            assert_eq!((expected, declined.len()), (u64::from(version == "v1"), usize::from(version == "v1")));
            assert!(counted["refused"].as_object().unwrap().is_empty(), "{counted}");
        }
        assert_eq!(receiver.lines.end().0, 0);
        assert!(fs::read(place.stored("vm1")).unwrap() == data);
    }
    // People are told in a line, where there is something to tell.
    let place = Place::new();
    image(&place);
    let receiver = Receiver::start(place.receive().arg("--once"));
    let said = run(flagged(place.send(&receiver.address, "vm1").arg(place.path("vm.mem")), false));
    assert!(said.out.contains("1 over v1 inside TLS (v3 was declined: forced 1)"), "{}", said.out);
    assert_eq!(receiver.lines.end().0, 0);
}

#[test]
fn changes_of_a_baseline_that_is_held_are_taken_and_others_refused() {
    let base = noise(BYTES);
    let mut next = base.clone();
    next[70_000] ^= 0xff;
    next[BYTES - 1] ^= 0xff;
    let change = |id: &str, base: &[u8], next: &[u8]| {
        let mut ops = Vec::new();
        delta::encode(id, base, next, &mut ops).unwrap();
        assert!(ops.len() < next.len() / 2 || next.len() < 8192);
        legacy::packet(1, 0, &ops)
    };
    let blocks = base.chunks(65_536).zip(next.chunks(65_536)).enumerate().flat_map(|(id, (base, next))| {
        let packet = change(&format!("vm7_disk_{id}"), base, next);
        [u32::try_from(id).unwrap(), u32::try_from(packet.len()).unwrap()]
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .chain(packet)
            .collect::<Vec<_>>()
    });
    let (memory, disk) = (change("vm7_memory", &base, &next), blocks.collect::<Vec<_>>());
    for (form, message, of, exit) in [
        ("memory", &memory, "vm7", 0),
        ("disk", &disk, "vm7", 0),
        // Another guest's: wrong bytes without an error is what v1 would make of it.
        ("memory", &memory, "vm8", 4),
    ] {
        let place = Place::new();
        fs::write(place.path("base"), &base).unwrap();
        let mut command = receive_v1(&place, &["--v1", "amst16", "--v1-form", form, "--v1-baseline-of", of]);
        let mut receiver = Receiver::start(command.arg("--v1-baseline").arg(place.path("base")));
        let streams = legacy::amst16_streams(message, 4096, 4);
        let writer = legacy::dial_and_write(receiver.address.parse().unwrap(), streams);
        let ended = receiver.lines.until("v1-port")["ended"].clone();
        let (code, err) = receiver.lines.end();
        assert_eq!((code, ended), (exit, serde_json::json!({if exit == 0 { "done" } else { "content" }: 1})), "{err}");
        if exit == 0 {
            assert!(fs::read(place.stored("old")).unwrap() == next, "{form}");
        } else {
            assert!(err.contains("baseline") && place.visible().is_empty(), "{err}");
        }
        writer.join().unwrap();
    }
    let place = Place::new();
    fs::write(place.path("base"), &base).unwrap();
    let mut command = receive_v1(&place, &["--v1", "mst8"]);
    run(command.arg("--v1-baseline").arg(place.path("base"))).failed(2, &["has no baseline", "amst16"]);
}

#[test]
fn transfers_says_that_it_knows_nothing_of_clear_text() {
    let place = Place::new();
    image(&place);
    let (to, reader) = legacy::amst16_listen_and_read(4);
    assert_eq!(run(&mut send_v1(&place, &to.to_string(), &["--v1", "amst16"])).code, 0);
    reader.join().unwrap();
    let list =
        |more: &[&str]| run(dwcp().args(["transfers", "list"]).args(more).arg("--state-dir").arg(place.path("state")));
    let said = list(&[]);
    assert!(said.out.contains("no transfer is known") && said.out.contains("leave no record"), "{}", said.out);
    let summary = list(&["--json"]).summary();
    assert_eq!((&summary["transfers"], &summary["not_recorded"]), (&0.into(), &serde_json::json!(["v1-clear-text"])));
    // What goes as version 1 inside TLS is a transfer like any other.
    let mut receiver = place.listen();
    let said = run(flagged(place.send(&receiver.address, "vm1").arg(place.path("vm.mem")), false));
    assert_eq!(said.code, 0, "{}", said.err);
    receiver.lines.until("transfer");
    let said = run(dwcp().args(["transfers", "list", "--dir"]).arg(place.path("in")));
    assert!(said.out.contains("vm1  handed-over"), "{}", said.out);
    receiver.stop();
}
