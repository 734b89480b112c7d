//! How what comes over version 1 ends: stopped, in the way of others, or the one transfer of `--once`. The peer hears nothing of
//! it, so the receiver's word must be true.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use crate::held::Pipe;
use crate::legacy;
use crate::operator::{Lines, Place, Receiver, noise, run};

const BYTES: usize = 3 * 65_536;
const CHUNK: usize = 65_536;

fn receive(place: &Place, more: &[&str]) -> Command {
    let mut command = place.receive();
    command.args(["--v1", "amst16", "--allow-plaintext-v1", "127.0.0.1", "--v1-as", "old"]);
    command.args(["--v1-size", &BYTES.to_string()]).args(more);
    command
}

/// All of an image.
fn send(receiver: &Receiver, data: &[u8]) {
    let streams = legacy::amst16_streams(data, CHUNK, 4);
    legacy::dial_and_write(receiver.address.parse().unwrap(), streams).join().unwrap();
}

/// A part of an image, of which the receiver has heard.
fn begin(receiver: &mut Receiver, data: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&receiver.address).unwrap();
    stream.write_all(&legacy::amst16_chunk(data, CHUNK, 0)).unwrap();
    receiver.lines.until("started");
    stream
}

/// The rest of it.
fn finish(mut stream: TcpStream, data: &[u8]) {
    for id in 1..data.len().div_ceil(CHUNK) {
        stream.write_all(&legacy::amst16_chunk(data, CHUNK, id)).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn what_has_come_whole_when_a_receiver_is_stopped_becomes_visible_and_is_said_to_be() {
    for (form, point) in [("plain", "sink.image.named"), ("plain", "sink.image.syncs"), ("memory", "sink.image.syncs")]
    {
        let (place, data) = (Place::new(), noise(BYTES));
        let pipe = Pipe::new(&place);
        let mut receiver = pipe.hold(point, &mut receive(&place, &["--v1-form", form]));
        send(&receiver, &if form == "plain" { data.clone() } else { legacy::packet(0, 0, &data) });
        let held = pipe.is_there();
        receiver.lines.signal("TERM");
        let (mut err, mut said) = (BufReader::new(receiver.lines.child.stderr.take().unwrap()), String::new());
        err.read_line(&mut said).unwrap();
        assert!(said.contains("finishing what has come whole"), "{form}, {point}: {said}");
        drop(held);
        assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
        assert_eq!(receiver.lines.until("summary")["received"], 1);
        assert_eq!((receiver.lines.end().0, place.parked()), (0, 0));
        assert!(fs::read(place.stored("old")).unwrap() == data, "{form}, {point}");
    }
}

#[test]
fn what_is_not_done_within_grace_is_said_to_be_unknown_once_it_may_have_its_name() {
    let cases = [
        ("sink.image.named", "failed", "It may be visible here"),
        ("sink.image.syncs", "interrupted", "Nothing of it"),
    ];
    for (point, verdict, told) in cases {
        let place = Place::new();
        let pipe = Pipe::new(&place);
        let mut receiver = pipe.hold(point, &mut receive(&place, &["--v1-form", "plain", "--grace", "1ms"]));
        send(&receiver, &noise(BYTES));
        let held = pipe.is_there();
        receiver.lines.signal("TERM");
        assert_eq!(receiver.lines.until("transfer")["verdict"], verdict);
        let (code, err) = receiver.lines.end();
        assert_eq!((code, place.visible().len()), (0, usize::from(verdict == "failed")), "{err}");
        assert!(err.contains(told), "{err}");
        drop(held);
    }
}

/// It is not waited for, whatever `--grace` is.
#[test]
fn what_has_not_come_whole_when_a_receiver_is_stopped_is_thrown_away() {
    let (place, data) = (Place::new(), noise(BYTES));
    let mut receiver = Receiver::start(&mut receive(&place, &["--v1-form", "plain", "--once", "--grace", "1h"]));
    let stream = begin(&mut receiver, &data);
    receiver.lines.signal("TERM");
    assert_eq!(receiver.lines.until("transfer")["verdict"], "interrupted");
    let (code, err) = receiver.lines.end();
    assert!(err.contains("Nothing of it became visible here."), "{err}");
    assert_eq!((code, place.visible().len(), place.parked()), (7, 0, 0));
    drop(stream);
}

#[test]
fn an_image_whose_name_was_taken_meanwhile_is_in_nobodys_way() {
    for words in [&["--v1-form", "plain"][..], &["--v1-form", "plain", "--replace"]] {
        let (place, data) = (Place::new(), noise(BYTES));
        let mut receiver = Receiver::start(&mut receive(&place, words));
        let stream = begin(&mut receiver, &data);
        let there = place.stored("old");
        if words.len() > 2 {
            fs::create_dir(&there).unwrap();
        } else {
            fs::write(&there, "another").unwrap();
        }
        finish(stream, &data);
        assert_eq!(receiver.lines.until("transfer")["verdict"], "failed");
        assert_eq!(place.parked(), 0);
        if words.len() > 2 {
            fs::remove_dir(&there).unwrap();
        } else {
            fs::remove_file(&there).unwrap();
        }
        send(&receiver, &data);
        assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
        receiver.lines.interrupt();
        let (code, err) = receiver.lines.end();
        assert_eq!(code, 0);
        assert!(err.contains("Nothing of it became visible here."), "{err}");
        assert!(fs::read(&there).unwrap() == data);
    }
}

#[test]
fn an_image_that_comes_while_the_one_before_is_stored_is_refused_with_words() {
    let (place, data) = (Place::new(), noise(BYTES));
    let pipe = Pipe::new(&place);
    let mut receiver = pipe.hold("sink.image.syncs", &mut receive(&place, &["--v1-form", "plain", "--replace"]));
    send(&receiver, &data);
    let held = pipe.is_there();
    send(&receiver, &vec![7; BYTES]);
    let refused = receiver.lines.until("refused");
    assert!(refused["error"].as_str().unwrap().contains("another version 1 transfer"), "{refused}");
    drop(held);
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    receiver.lines.interrupt();
    let counts = receiver.lines.until("v1-port");
    assert!(counts["unclaimed"].as_u64().unwrap() > 0, "{counts}");
    assert_eq!(receiver.lines.until("summary")["refused"], 1, "once, not for each of its connections");
    assert_eq!(receiver.lines.end().0, 0);
    assert!(fs::read(place.stored("old")).unwrap() == data);
}

#[test]
fn the_one_transfer_of_once_is_whichever_came_first() {
    // The clear text comes from where version 3 was spoken.
    let once = ["--v1-form", "plain", "--once", "--allow-downgrade-v1"];
    let (place, data) = (Place::new(), noise(BYTES));
    let image = place.sparse("vm.mem");
    let pipe = Pipe::new(&place);
    let mut receiver = pipe.hold("sink.image.stages", &mut receive(&place, &once));
    let mut sending = Lines::start(place.send(&receiver.address, "new").arg("--json").arg(&image));
    let held = pipe.is_there();
    send(&receiver, &data);
    let refused = receiver.lines.until("refused");
    assert!(refused["error"].as_str().unwrap().contains("one transfer (--once)"), "{refused}");
    drop(held);
    assert_eq!((&sending.until("summary")["verdict"], sending.end().0), (&"ok".into(), 0));
    let summary = receiver.lines.until("summary");
    assert_eq!((&summary["received"], &summary["refused"], receiver.lines.end().0), (&1.into(), &1.into(), 0));
    assert_eq!(place.visible(), ["new"]);

    let place = Place::new();
    let image = place.sparse("vm.mem");
    let mut receiver = Receiver::start(&mut receive(&place, &once));
    let stream = begin(&mut receiver, &data);
    run(place.send(&receiver.address, "new").arg(&image)).failed(1, &["one transfer (--once)"]);
    finish(stream, &data);
    let summary = receiver.lines.until("summary");
    assert_eq!((&summary["received"], &summary["refused"], receiver.lines.end().0), (&1.into(), &1.into(), 0));
    assert_eq!(place.visible(), ["old"]);
}

#[test]
fn a_bad_header_is_the_one_transfer_of_once_and_what_is_no_header_is_none() {
    let place = Place::new();
    let mut receiver = Receiver::start(&mut receive(&place, &["--v1-form", "plain", "--once"]));
    for nothing in [b"".as_slice(), b"GET / HTTP/1.1\r\n\r\n"] {
        TcpStream::connect(&receiver.address).unwrap().write_all(nothing).unwrap();
    }
    let other = vec![7; BYTES + 4096];
    TcpStream::connect(&receiver.address).unwrap().write_all(&legacy::amst16_chunk(&other, CHUNK, 0)[..16]).unwrap();
    assert_eq!(receiver.lines.until("transfer")["verdict"], "integrity");
    assert_eq!(receiver.lines.until("v1-port")["started"], 1);
    assert_eq!(receiver.lines.end().0, 4);
}
