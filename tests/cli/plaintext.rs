//! Version 1 on the command line, against a peer that shares no line with the product.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::legacy;
use crate::operator::{Lines, Place, Receiver, dwcp, noise, run};

const BYTES: usize = 3 * 65_536 + 777;

/// A receiver that takes version 1 of so many bytes from this host, too.
fn receive(place: &Place, more: &[&str]) -> Receiver {
    let mut command = place.receive();
    command.args(["--allow-plaintext-v1", "127.0.0.1", "--v1-as", "old", "--v1-size", &BYTES.to_string()]);
    Receiver::start(command.args(more))
}

fn address(receiver: &Receiver) -> SocketAddr {
    receiver.address.parse().unwrap()
}

/// Words of the receiver, what each connection carries, and what can be known of it.
type Case<'a> = (&'a [&'a str], Vec<Vec<u8>>, &'a str);

#[test]
fn what_comes_over_version_1_is_stored_and_its_line_says_how_little_is_known() {
    let data = noise(BYTES);
    let (packet, list) = (legacy::packet(0, 0, &data), legacy::block_list(&data, 65_536));
    let amst16 = |bytes: &[u8]| legacy::amst16_streams(bytes, 16_384, 8);
    let cases: [Case<'_>; 4] = [
        (&["--v1", "amst16"], amst16(&packet), "unverified but for zstd checksums"),
        (
            &["--v1", "amst16", "--v1-form", "disk", "--v1-block", "64KiB"],
            amst16(&list),
            "unverified but for zstd checksums",
        ),
        (&["--v1", "amst16", "--v1-form", "plain"], amst16(&data), "unverified"),
        (&["--v1", "mst8", "--v1-chunk", "16KiB"], legacy::mst8_streams(&data, 16_384, 3), "length unverified"),
    ];
    for (words, streams, assurance) in cases {
        let place = Place::new();
        let mut receiver = receive(&place, &[words, &["--once"]].concat());
        let writer = legacy::dial_and_write(address(&receiver), streams);
        let ended = receiver.lines.until("transfer");
        assert_eq!((&ended["verdict"], &ended["assurance"]), (&"ok".into(), &assurance.into()), "{ended}");
        assert_eq!((&ended["version"], &ended["peer"]), (&1.into(), &"127.0.0.1".into()));
        let counts = receiver.lines.until("v1-port");
        assert_eq!((&counts["started"], &counts["clear_text"]), (&1.into(), &0.into()), "{counts}");
        let summary = receiver.lines.until("summary");
        assert_eq!((&summary["verdict"], &summary["received"]), (&"ok".into(), &1.into()));
        assert_eq!(receiver.lines.end(), (0, String::new()));
        assert!(fs::read(place.stored("old")).unwrap() == data, "{words:?}");
        assert_eq!(place.parked(), 0);
        writer.join().unwrap();
    }
}

#[test]
fn one_receiver_takes_both_versions_until_the_old_one_would_be_a_downgrade() {
    let (place, data) = (Place::new(), noise(BYTES));
    let mut receiver = receive(&place, &["--v1", "amst16", "--replace"]);
    let to = address(&receiver);
    let streams = || legacy::amst16_streams(&legacy::packet(0, 0, &data), 16_384, 8);
    let writer = legacy::dial_and_write(to, streams());
    assert_eq!(receiver.lines.until("transfer")["assurance"], "unverified but for zstd checksums");
    writer.join().unwrap();
    let said = run(place.send(&receiver.address, "new").arg(place.sparse("vm.mem")));
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(fs::read(place.path("vm.mem")).unwrap() == fs::read(place.stored("new")).unwrap());
    assert_eq!(place.visible(), ["new", "old"]);
    // This host can do better from here on, and the next receiver knows that, too.
    for _ in 0..2 {
        let mut refused = TcpStream::connect(address(&receiver)).unwrap();
        refused.write_all(&legacy::amst16_chunk(&data, 16_384, 0)[..16]).unwrap();
        assert!(refused.read(&mut [0]).map_or(true, |read| read == 0), "hung up on");
        receiver.lines.interrupt();
        let counts = receiver.lines.until("v1-port");
        assert_eq!((&counts["downgrade_refused"], &counts["clear_text"]), (&1.into(), &0.into()), "{counts}");
        assert_eq!(receiver.lines.end().0, 0);
        receiver = receive(&place, &["--v1", "amst16", "--replace"]);
    }
    receiver.stop();
    let mut receiver = receive(&place, &["--v1", "amst16", "--replace", "--allow-downgrade-v1"]);
    let writer = legacy::dial_and_write(address(&receiver), streams());
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    writer.join().unwrap();
    receiver.stop();
}

#[test]
fn an_image_goes_to_a_peer_that_was_never_updated() {
    let (place, data) = (Place::new(), noise(BYTES));
    let image = place.path("vm.mem");
    fs::write(&image, &data).unwrap();
    let send = |to: &str, more: &[&str]| {
        let mut command = dwcp();
        command.args(["send", "--json", "--as", "vm1", "--to", to, "--allow-plaintext-v1", "127.0.0.1"]);
        command.args(more).arg("--state-dir").arg(place.path("state")).arg(&image);
        run(&mut command)
    };
    for form in ["memory", "disk", "plain"] {
        let (to, reader) = legacy::amst16_listen_and_read(4);
        let words = ["--v1", "amst16", "--v1-connections", "4", "--v1-form", form, "--v1-block", "64KiB"];
        let said = send(&to.to_string(), &words);
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.err.contains("acknowledges nothing"), "{}", said.err);
        let summary = said.summary();
        assert_eq!((&summary["verdict"], &summary["acknowledged"]), (&"ok".into(), &false.into()));
        assert_eq!((&summary["bytes_guest"], &summary["closed"]), (&BYTES.into(), &true.into()));
        let message = reader.join().unwrap();
        let came = match form {
            "memory" => legacy::unpack(&message),
            "disk" => legacy::read_block_list(&message, 65_536),
            _ => message,
        };
        assert!(came == data, "{form}");
    }
}

#[test]
fn clear_text_needs_the_operators_word() {
    let place = Place::new();
    let small = place.path("small");
    fs::write(&small, noise(10_000)).unwrap();
    let send = |words: &[&str]| {
        let mut command = dwcp();
        command.args(["send", "--as", "vm1", "--to", "127.0.0.1:1"]).args(words);
        run(command.arg("--state-dir").arg(place.path("state")).arg(&small))
    };
    send(&["--v1", "amst16"]).failed(2, &["clear text", "--allow-plaintext-v1 ADDRESS"]);
    send(&["--v1", "amst16", "--allow-plaintext-v1", "10.0.0.7"])
        .failed(5, &["nobody allowed that for 127.0.0.1", "--allow-plaintext-v1 127.0.0.1"]);
    send(&["--allow-plaintext-v1", "10.0.0.7"]).failed(2, &["--v1"]);
    send(&[]).failed(2, &["--identity"]);
    send(&["--v1", "mst8", "--allow-plaintext-v1", "127.0.0.1"]).failed(2, &["mst8 peer dials", "--v1-listen"]);
    send(&["--v1", "mst8", "--allow-plaintext-v1", "127.0.0.1", "--v1-form", "disk"]).failed(2, &["amst16"]);
    send(&["--v1", "amst16", "--allow-plaintext-v1", "127.0.0.1"]).failed(6, &["127.0.0.1:1", "Nothing was sent"]);
    let mut command = place.receive();
    run(command.args(["--v1", "amst16"])).failed(2, &["--v1-as", "--v1-size"]);
    let mut command = place.receive();
    let words = ["--v1", "amst16", "--v1-as", "old", "--v1-size", "1GiB"];
    run(command.args(words)).failed(2, &["clear text", "--allow-plaintext-v1"]);
}

#[test]
fn a_chunk_that_cannot_be_taken_is_refused_before_anybody_sends() {
    let place = Place::new();
    let mut command = place.receive();
    command.args(["--v1", "mst8", "--v1-chunk", "1KiB", "--v1-as", "old", "--v1-size", "8192"]);
    run(command.args(["--allow-plaintext-v1", "127.0.0.1"])).failed(2, &["--v1-chunk 1024", "4096"]);
}

#[test]
fn what_spoke_version_3_is_not_sent_clear_text() {
    let place = Place::new();
    let receiver = place.listen();
    let image = place.sparse("vm.mem");
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(&image)).code, 0);
    let words = ["--v1", "amst16", "--allow-plaintext-v1", "127.0.0.1", "--v1-connections", "4"];
    run(place.send(&receiver.address, "vm1").args(words).arg(&image))
        .failed(5, &["spoke version 3", "downgrade", "--allow-downgrade-v1"]);
    receiver.stop();
    let (to, reader) = legacy::amst16_listen_and_read(4);
    let said = run(place.send(&to.to_string(), "vm1").args(words).arg("--allow-downgrade-v1").arg(&image));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(legacy::unpack(&reader.join().unwrap()) == fs::read(&image).unwrap());
}

#[test]
fn what_version_1_cannot_carry_is_refused_with_a_sentence() {
    let place = Place::new();
    let image = place.path("large.mem");
    let send = |form: &str, bytes: u64, chunk: &str| {
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = place.send(&peer.local_addr().unwrap().to_string(), "vm1");
        command.args(["--v1", "amst16", "--allow-plaintext-v1", "127.0.0.1", "--v1-form", form, "--v1-chunk", chunk]);
        let said = run(command.arg(&image));
        peer.set_nonblocking(true).unwrap();
        assert!(peer.accept().is_err(), "nobody was dialled");
        said
    };
    send("memory", (256 << 20) + 1, "64KiB").failed(1, &["256 MiB", "Nothing was sent"]);
    send("plain", 1 << 32, "64KiB").failed(1, &["4 GiB", "--v1-form disk", "Nothing was sent"]);
    send("plain", 1 << 31, "1KiB").failed(1, &["take larger ones", "--v1-chunk", "Nothing was sent"]);
}

/// What is sent was put down before the peer was dialled, so nobody reads the file any more.
#[test]
fn an_image_that_is_written_to_while_it_is_sent_is_not_said_to_be_there() {
    for form in ["memory", "disk", "plain"] {
        let place = Place::new();
        let image = place.path("vm.mem");
        fs::write(&image, noise(BYTES)).unwrap();
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = dwcp();
        command.args(["send", "--json", "--as", "vm1", "--allow-plaintext-v1", "127.0.0.1", "--v1", "amst16", "--to"]);
        command.arg(peer.local_addr().unwrap().to_string()).args(["--v1-connections", "4", "--v1-form", form]);
        let mut sending = Lines::start(command.arg("--state-dir").arg(place.path("state")).arg(&image));
        let streams: Vec<_> = (0..4).map(|_| peer.accept().unwrap().0).collect();
        fs::write(&image, noise(BYTES - 1)).unwrap();
        for mut stream in streams {
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
        let summary = sending.until("summary");
        assert_eq!(summary["verdict"], "failed", "{form}: {summary}");
        assert!(summary["error"].as_str().unwrap().contains("changed while it was being read"), "{summary}");
        assert_eq!(sending.end().0, 1);
    }
}

#[test]
fn a_torn_message_leaves_nothing_and_says_where() {
    let (place, data) = (Place::new(), noise(BYTES));
    let mut receiver = receive(&place, &["--v1", "amst16", "--once"]);
    let mut streams = legacy::amst16_streams(&legacy::packet(0, 0, &data), 16_384, 4);
    streams[0].pop();
    let writer = legacy::dial_and_write(address(&receiver), streams);
    let ended = receiver.lines.until("transfer");
    assert_eq!((&ended["verdict"], &ended["assurance"]), (&"integrity".into(), &serde_json::Value::Null), "{ended}");
    assert_eq!(receiver.lines.until("v1-port")["defects"], 1);
    let (code, err) = receiver.lines.end();
    assert_eq!(code, 4);
    assert!(err.contains("Nothing of it became visible"), "{err}");
    assert!(place.visible().is_empty());
    assert_eq!(place.parked(), 0);
    writer.join().unwrap();
}
