//! Ctrl-C, SIGTERM, a terminal that goes away, kill -9.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

use dwcp_core::net::Records;

use crate::operator::{LIMIT, Lines, Place, Receiver, WithoutRun, dwcp, noise, run, slow, whole};
use crate::promises::resolve;

#[test]
fn an_interrupt_leaves_both_ends_as_they_were_and_a_name_is_taken_once() {
    let place = Place::new();
    let mut receiver = place.listen();
    let (image, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    run(place.send(&receiver.address, "vm1").arg(&image)).failed(1, &["another `dwcp send`", "vm1", "transfers show"]);
    // Another name goes on beside it.
    assert_eq!(run(place.send(&receiver.address, "vm2").arg(&image)).code, 0);

    sending.interrupt();
    let summary = sending.until("summary");
    let (code, err) = sending.end();
    assert_eq!((code, &summary["verdict"]), (7, &"interrupted".into()), "{err}");
    whole(&summary);
    assert!(err.contains("The source is intact"), "{err}");
    // The name is free again once the receiver has said so.
    while receiver.lines.until("transfer")["name"] != "vm1" {}
    assert_eq!(place.visible(), ["vm2"]);
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(&image)).code, 0);
    receiver.stop();
    assert_eq!(place.visible(), ["vm1", "vm2"]);
}

#[test]
fn a_killed_sender_has_its_name_back_at_once_and_nobody_else() {
    let place = Place::new();
    let mut receiver = Receiver::start(place.receive().args(["--trust", &place.receiver]));
    let (image, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    sending.child.kill().unwrap();
    sending.child.wait().unwrap();
    // Another peer has no business with it.
    let mut other = dwcp();
    other.args(["send", "--to", &receiver.address, "--as", "vm1", "--trust", &place.receiver]);
    other.arg("--identity").arg(place.path("b.id")).arg("--state-dir").arg(place.path("other")).arg(&image);
    run(&mut other).failed(1, &["the name vm1 is taken"]);
    // The kernel may tell of the kill a moment later than of the next sender.
    let mut tries = std::iter::repeat_with(|| run(place.send(&receiver.address, "vm1").arg(&image))).take(20);
    assert!(tries.any(|said| said.code == 0), "the name stayed taken");
    let lost = receiver.lines.until("transfer");
    assert_eq!(lost["verdict"], "interrupted");
    assert!(lost["error"].as_str().unwrap().contains("superseded by a newer session"), "{lost}");
    assert_eq!(receiver.lines.until("transfer")["verdict"], "ok");
    receiver.stop();
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap());
    assert_eq!(place.visible(), ["vm1"]);
}

#[test]
fn a_terminal_that_goes_away_interrupts_unless_nohup_says_otherwise() {
    let place = Place::new();
    let mut receiver = place.listen();
    let (_, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    sending.signal("HUP");
    assert_eq!(sending.until("summary")["verdict"], "interrupted");
    assert_eq!(sending.end().0, 7);
    receiver.lines.until("transfer");
    receiver.lines.signal("HUP");
    assert_eq!(receiver.lines.end().0, 0);

    let receive = place.receive();
    let mut nohup = Command::new("nohup");
    let receiver = Receiver::start(nohup.arg(receive.get_program()).args(receive.get_args()));
    receiver.lines.signal("HUP");
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(place.sparse("vm.mem"))).code, 0);
    receiver.lines.interrupt();
    assert_eq!(receiver.lines.end().0, 0);
}

#[test]
fn a_receiver_that_is_interrupted_parks_and_shows_nothing() {
    let place = Place::new();
    let mut receiver = place.listen();
    let (_, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    receiver.lines.interrupt();
    receiver.lines.until("parked");
    let summary = receiver.lines.until("summary");
    assert_eq!((&summary["verdict"], &summary["parked"], &summary["failed"]), (&"ok".into(), &1.into(), &0.into()));
    let (code, err) = receiver.lines.end();
    assert_eq!(code, 0, "{err}");
    assert!(place.visible().is_empty());
    // Its sender waits for the next one, and may be told not to.
    sending.interrupt();
    let summary = sending.until("summary");
    assert_eq!((&summary["verdict"], sending.end().0), (&"interrupted".into(), 7));
    whole(&summary);

    // Who wanted one transfer has not got it.
    let mut receiver = Receiver::start(place.receive().arg("--once"));
    let (_, mut sending) = slow(&place, &receiver.address, "vm1");
    sending.until("progress");
    receiver.lines.signal("TERM");
    assert_eq!(receiver.lines.until("summary")["verdict"], "interrupted");
    assert_eq!(receiver.lines.end().0, 7);
}

#[test]
fn a_stopped_receiver_is_waited_for_as_long_as_a_lost_connection_may_be_lost() {
    let place = Place::new();
    let receiver = place.listen();
    let image = place.path("vm.mem");
    fs::write(&image, noise(16_000_000)).unwrap();
    let mut send = place.send(&receiver.address, "vm1");
    let mut sending = Lines::start(send.args(["--json", "--bandwidth", "1MB", "--reconnect-limit", "1s"]).arg(&image));
    sending.until("progress");
    receiver.lines.signal("TERM");
    assert_eq!(receiver.lines.end().0, 0);
    let summary = sending.until("summary");
    let (code, err) = sending.end();
    assert_eq!((code, &summary["verdict"]), (6, &"unreachable".into()), "{err}");
    assert!(err.contains("the receiver was stopped; waiting"), "{err}");
}

/// Whether all may pass, once somebody has said so or never will.
fn wait_for(gone: &std::sync::Mutex<(mpsc::Receiver<()>, bool)>) -> bool {
    let (gone, open) = &mut *gone.lock().unwrap();
    *open = *open || gone.recv_timeout(LIMIT).is_ok();
    *open
}

/// Holds what a sender says from the moment when its record says that it gave up, until somebody says that RUN may pass.
fn late_run(receiver: &str, state: PathBuf) -> (String, mpsc::Receiver<()>, mpsc::SyncSender<()>) {
    let (go, gone) = mpsc::sync_channel(1);
    let gone = std::sync::Arc::new(std::sync::Mutex::new((gone, false)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, receiver) = (listener.local_addr().unwrap().to_string(), receiver.to_owned());
    let (tell, gave_up) = mpsc::channel();
    std::thread::spawn(move || {
        for mut sender in listener.incoming().map_while(Result::ok) {
            let Ok(mut sink) = TcpStream::connect(&receiver) else { continue };
            let (mut back, mut from_sink) = (sender.try_clone().unwrap(), sink.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_sink, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let (state, tell, gone) = (state.clone(), tell.clone(), gone.clone());
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(count @ 1..) = sender.read(&mut bytes) {
                    let gave_up = Records::open(&state).unwrap().list().is_ok_and(|records| !records.is_empty());
                    let stops = gave_up && {
                        let _ = tell.send(());
                        !wait_for(&gone)
                    };
                    if !stops && sink.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
                let _ = sink.shutdown(Shutdown::Write);
            });
        }
    });
    (address, gave_up, go)
}

// spec: R-3
#[test]
fn a_stopped_receiver_finishes_what_has_come_whole_or_leaves_a_doubt_that_the_next_one_ends() {
    for in_time in [true, false] {
        let place = Place::new();
        let mut receiver = Receiver::start(place.receive().args(["--grace", if in_time { "60s" } else { "50ms" }]));
        let (address, gave_up, go) = late_run(&receiver.address, place.path("state"));
        let image = place.sparse("vm.mem");
        let mut sending = Lines::start(place.send(&address, "vm1").arg("--json").arg(&image));
        gave_up.recv_timeout(LIMIT).unwrap();
        receiver.lines.signal("TERM");
        if in_time {
            go.send(()).unwrap();
        }
        let (summary, code) = (receiver.lines.until("summary"), if in_time { 0 } else { 8 });
        assert_eq!(summary["received"], u64::from(in_time), "{summary}");
        assert_eq!(receiver.lines.end().0, code);
        if !in_time {
            let address = receiver.address.clone();
            receiver = Receiver::start(&mut place.receive_at(&address));
            // RUN, lost on its way before, is said again on each new connection.
            go.send(()).unwrap();
            sending.child.wait().unwrap();
            receiver.stop();
        }
        assert_eq!(sending.until("summary")["verdict"], "ok");
        assert_eq!(sending.end().0, 0);
        assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap(), "the bytes differ");
    }
}

#[test]
fn a_sender_that_nobody_answers_after_it_gave_up_does_not_wait_for_ever() {
    let place = Place::new();
    let mut receiver = place.listen();
    let between = WithoutRun::start(&receiver.address, place.path("state"));
    let image = place.sparse("vm.mem");
    let said = run(place.send(&between.address, "vm1").args(["--json", "--reconnect-limit", "300ms"]).arg(&image));
    said.failed(8, &["no longer waiting", "is in doubt", "Ask again with: dwcp resolve"]);
    assert_eq!(said.send_summary()["verdict"], "in-doubt");
    receiver.lines.kill();
}

#[test]
fn an_interrupt_after_the_source_gave_up_ends_in_doubt_and_says_how_to_end_that() {
    let place = Place::new();
    let mut receiver = place.listen();
    let between = WithoutRun::start(&receiver.address, place.path("state"));
    let address = between.address;
    let image = place.sparse("vm.mem");
    let mut sending = Lines::start(place.send(&address, "vm1").arg("--json").arg(&image));
    between.gave_up.recv_timeout(LIMIT).unwrap();
    receiver.lines.kill();
    sending.interrupt();
    let summary = sending.until("summary");
    whole(&summary);
    let (code, err) = sending.end();
    assert_eq!((code, &summary["verdict"]), (8, &"in-doubt".into()), "{err}");
    let id = summary["transfer"].as_str().unwrap();
    let state = place.path("state").display().to_string();
    for words in ["Do not use it here", &format!("dwcp resolve {id} --state-dir {state} --to {address}")] {
        assert!(err.contains(words) && summary["advice"].as_str().unwrap().contains(words), "{err}");
    }

    // The receiver is started again, and asked: it has what it promised.
    assert!(!place.visible().contains(&"vm1".to_owned()));
    let receiver = place.listen();
    let identity = place.path("a.id").display().to_string();
    let said = resolve(&place, &[id, "--to", &receiver.address, "--identity", &identity, "--trust", &place.receiver]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap(), "the bytes differ");
    receiver.stop();
}
