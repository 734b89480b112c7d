//! The built binary, as an operator meets it: real processes, loopback, port 0.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use dwcp_core::extent::FlatPage;
use dwcp_core::guest::ImageFolder;
use dwcp_core::net::Records;
use dwcp_core::session::leaves::{Tree, leaf};
use dwcp_core::session::{Leaves, Record, Standing};
use dwcp_core::wire::{FenceEpoch, Name, TransferId};
use dwcp_core::{Guest, Layout, RegionId};
use operator::{LIMIT, Lines, Place, Receiver, Said, WithoutRun, dwcp, noise, run, slow, whole};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
fn strangers_are_turned_away_on_either_side() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    let receiver = place.listen();
    // The sender trusts somebody else.
    let mut command = dwcp();
    command.args(["send", "--to", &receiver.address, "--as", "vm1", "--trust", &place.sender, "--json"]);
    command.arg("--identity").arg(place.path("a.id")).arg("--state-dir").arg(place.path("state"));
    let said = run(command.arg(&image));
    said.failed(5, &["not trusted", &place.receiver, "--trust"]);
    assert_eq!(said.send_summary()["verdict"], "unauthorised");
    assert!(said.summary()["error"].is_string());
    // The receiver trusts somebody else.
    fs::rename(place.path("a.id"), place.path("c.id")).unwrap();
    fs::rename(place.path("b.id"), place.path("a.id")).unwrap();
    run(place.send(&receiver.address, "vm1").arg(&image)).failed(5, &["refuses our identity", "--trust"]);
    assert!(place.visible().is_empty());
    receiver.stop();
}

#[test]
fn nobody_there_is_unreachable() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let said = run(place.send(&address, "vm1").arg("--json").arg(&image));
    said.failed(6, &["cannot connect", &address, "dwcp receive"]);
    assert_eq!(said.send_summary()["verdict"], "unreachable");
    assert!(said.summary()["rounds"].is_null());
    run(place.send("no-such-host.invalid:1", "vm1").arg(&image)).failed(6, &["cannot resolve"]);
}

#[test]
fn a_port_in_use_and_a_directory_that_is_none_are_named() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let receive = |listen: &str, dir: &Path| {
        let mut command = dwcp();
        command.args(["receive", "--listen", listen, "--trust", &place.sender]);
        run(command.arg("--identity").arg(place.path("b.id")).arg("--dir").arg(dir))
    };
    receive(&address, &place.path("in")).failed(1, &["cannot listen on", &address, "Choose another port"]);
    // An address for documents, which no host has.
    let place_in = place.path("in");
    let said = receive("192.0.2.1:7070", &place_in);
    said.failed(1, &["cannot listen on", "192.0.2.1:7070", "no address of this host"]);
    receive("no-such-host.invalid:7070", &place_in).failed(1, &["cannot listen on", "Check the address in --listen"]);
    for listen in ["foo", "127.0.0.1:99999", ":7070", "::1:7070"] {
        receive(listen, &place_in).failed(2, &["--listen", listen, "ADDR:PORT"]);
    }
    let file = place.sparse("file");
    receive("127.0.0.1:0", &file).failed(1, &["cannot store images in", "--dir"]);
    receive("127.0.0.1:0", &place.path("missing")).failed(1, &["cannot store images in", "missing"]);
    // /proc can be written by nobody, not even by root.
    receive("127.0.0.1:0", Path::new("/proc")).failed(1, &["/proc"]);
    // Two receivers would sweep away each other's work.
    let receiver = place.listen();
    receive("127.0.0.1:0", &place.path("in")).failed(1, &["another `dwcp receive`"]);
    receiver.stop();
}

#[test]
fn sources_that_cannot_be_sent_are_named_before_anybody_is_asked() {
    let place = Place::new();
    let empty = place.path("empty");
    File::create(&empty).unwrap();
    for (path, words) in [
        (place.path("missing.mem"), ["missing.mem", "No such file"]),
        (place.path("in"), ["in is a directory", "image file"]),
        (empty, ["empty", "0 bytes"]),
    ] {
        // Nobody listens at port 1: the file is looked at first.
        let said = run(place.send("127.0.0.1:1", "vm1").arg("--json").arg(path));
        said.failed(1, &words);
        assert_eq!(said.send_summary()["verdict"], "failed");
    }
}

#[test]
fn words_that_make_no_sense_are_usage_errors() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    for name in ["../etc", "VM1", "", ".hidden", &"x".repeat(65)] {
        run(place.send("127.0.0.1:1", name).arg(&image)).failed(2, &["--as"]);
    }
    for (flag, value) in [("--bandwidth", "100"), ("--downtime", "1"), ("--shadow", "101%"), ("--lanes", "0")] {
        run(place.send("127.0.0.1:1", "vm1").args([flag, value]).arg(&image)).failed(2, &[flag]);
    }
    for to in ["nocolon", "127.0.0.1:99999", "127.0.0.1:0", "::1:7070"] {
        run(place.send(to, "vm1").arg(&image)).failed(2, &["--to", to, "HOST:PORT"]);
    }
    for lanes in ["0", "65", "1000"] {
        run(place.send("127.0.0.1:1", "vm1").args(["--lanes", lanes]).arg(&image)).failed(2, &["1 to 64"]);
        run(place.receive().args(["--lanes", lanes])).failed(2, &["1 to 64"]);
    }
    run(&mut place.send("127.0.0.1:1", "vm1")).failed(2, &["--round"]);
    run(dwcp().args(["send", "--trust", "sha256:12"])).failed(2, &["64 hexadecimal digits"]);
}

#[test]
fn a_wrong_command_line_ends_in_a_summary_for_who_wants_json() {
    let cases: [(&[&str], &str); 5] = [
        (&["send", "--trust", "zz", "--json"], "--trust"),
        (&["demo", "--json", "--nonsense"], "--nonsense"),
        (&["receive", "--json"], "--listen"),
        (&["identity", "--json"], "subcommand"),
        (&["--json"], "--json"),
    ];
    for (words, named) in cases {
        let said = run(dwcp().args(words));
        assert_eq!(said.code, 2, "{words:?}: {}", said.err);
        let summary = said.summary();
        assert_eq!((said.out.lines().count(), &summary["verdict"]), (1, &"usage".into()), "{words:?}");
        let error = summary["error"].as_str().unwrap();
        assert!(error.contains(named) && !error.contains("Usage:") && !error.starts_with("error"), "{error}");
        assert!(!said.err.is_empty(), "people are told too");
    }
    assert_eq!(run(dwcp().args(["send", "--trust", "zz"])).out, "");
    assert_eq!(run(dwcp().args(["send", "--trust", "zz", "--", "--json"])).out, "");
    let help = run(dwcp().args(["send", "--json", "--help"]));
    assert!(help.code == 0 && !help.out.contains("schema"), "{}", help.out);
}

#[test]
fn every_command_explains_itself() {
    let commands: [&[&str]; 16] = [
        &[],
        &["identity"],
        &["identity", "new"],
        &["identity", "show"],
        &["receive"],
        &["send"],
        &["resolve"],
        &["quarantine"],
        &["quarantine", "list"],
        &["quarantine", "clear"],
        &["transfers"],
        &["transfers", "list"],
        &["transfers", "show"],
        &["transfers", "resume"],
        &["transfers", "abort"],
        &["demo"],
    ];
    for command in commands {
        let said = run(dwcp().args(command).arg("--help"));
        assert_eq!(said.code, 0, "{command:?}");
        assert!(said.out.contains("Examples:\n  dwcp"), "{command:?} has no example:\n{}", said.out);
    }
    for (command, codes, never) in [
        ("identity", "012", "3456789"),
        ("receive", "01234678", "59"),
        ("send", "012345678", "9"),
        ("resolve", "0124568", "379"),
        ("quarantine", "012", "3456789"),
        ("transfers", "012345678", "9"),
    ] {
        let help = run(dwcp().args([command, "--help"])).out;
        let table = help.split_once("Exit codes:\n").unwrap().1;
        let has = |code| table.lines().any(|line| line.trim_start().starts_with(code));
        assert!(codes.chars().all(has) && !never.chars().any(has), "{command}: {table}");
    }
    let top = run(dwcp().arg("--help")).out;
    for code in ["0  ok", "5  unauthorised", "8  in-doubt", "9  not-exercised"] {
        assert!(top.contains(code), "{top}");
    }
    assert!(!top.contains("demo-part"), "internal commands are hidden");
}

#[test]
fn identities_are_secret_and_survive_renewal() {
    let place = Place::new();
    let (a, renewed) = (place.path("a.id"), place.path("a2.id"));
    assert_eq!(a.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let new = |out: &Path| run(dwcp().args(["identity", "new", "--out"]).arg(out));
    let before = fs::read(&a).unwrap();
    new(&a).failed(1, &["a.id", "never overwritten"]);
    assert_eq!(fs::read(&a).unwrap(), before);

    let said = run(dwcp().args(["identity", "new", "--out"]).arg(&renewed).arg("--renew").arg(&a));
    assert_eq!((said.code, said.out.trim()), (0, &*place.sender));
    assert_ne!(fs::read(&renewed).unwrap(), before);
    let show = |file: &Path| run(dwcp().args(["identity", "show"]).arg(file));
    assert_eq!(show(&renewed).out.trim(), place.sender);
    // As the help says: moved to the place of the old one, it is what the peer trusts.
    fs::rename(&renewed, &a).unwrap();
    let receiver = place.listen();
    assert_eq!(run(place.send(&receiver.address, "vm1").arg(place.sparse("vm.mem"))).code, 0);
    receiver.stop();

    fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
    show(&a).failed(1, &["mode 0640", "chmod 600"]);
    show(&place.path("none.id")).failed(1, &["none.id", "dwcp identity new"]);
    fs::write(place.path("bad.id"), "nonsense").unwrap();
    fs::set_permissions(place.path("bad.id"), fs::Permissions::from_mode(0o600)).unwrap();
    show(&place.path("bad.id")).failed(1, &["bad.id", "private key"]);
}

#[test]
fn nobody_is_told_to_change_the_mode_of_what_is_no_identity() {
    let place = Place::new();
    let open = place.path("open.txt");
    fs::write(&open, "nonsense").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let binary = place.path("binary");
    fs::write(&binary, [0xff; 100]).unwrap();
    let pipe = place.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (file, why) in [
        (Path::new("/"), "no regular file"),
        (Path::new("/dev/null"), "no regular file"),
        (&pipe, "no regular file"),
        (&open, "private key"),
        (&binary, "no text"),
    ] {
        let said = run(dwcp().args(["identity", "show"]).arg(file));
        said.failed(1, &["is no identity", why, &file.display().to_string()]);
        assert!(!said.err.contains("chmod"), "{}", said.err);
    }
}

#[test]
fn identities_are_told_in_json_too() {
    let place = Place::new();
    let a = place.path("a.id");
    let shown = |words: &[&str], file: &Path| run(dwcp().args(words).arg(file)).summary();
    let summary = shown(&["identity", "show", "--json"], &a);
    assert_eq!((&summary["verdict"], &summary["fingerprint"]), (&"ok".into(), &(*place.sender).into()));
    assert_eq!(summary["file"], a.display().to_string());
    let new = shown(&["identity", "--json", "new", "--out"], &place.path("c.id"));
    let again = shown(&["identity", "show", "--json"], &place.path("c.id"));
    assert_eq!(new, again);
    let missing = shown(&["identity", "show", "--json"], &place.path("none.id"));
    assert_eq!(missing["verdict"], "failed");
    assert!(missing["error"].as_str().unwrap().contains("none.id"), "{missing}");
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
    assert!(err.contains("slow.mem changed while it was being sent"), "{err}");
    // An interrupt before the receiver is done with it would be an interrupted transfer.
    receiver.lines.until("transfer");
    receiver.stop();
    assert!(place.visible().is_empty(), "{:?}", place.visible());
}

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

/// A web server, say.
fn another_server(place: &Place) -> String {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let pem = fs::read_to_string(place.path("b.id")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut server = rustls::ServerConnection::new(config.into()).unwrap();
        assert!(server.complete_io(&mut stream).is_err());
        // The alert goes out, and is read before the connection is reset.
        let _ = server.write_tls(&mut stream);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    address
}

#[test]
fn a_server_of_something_else_is_told_as_such() {
    let place = Place::new();
    let address = another_server(&place);
    let said = run(place.send(&address, "vm1").arg("--json").arg(place.sparse("vm.mem")));
    said.failed(1, &[&address, "no dwcp receiver", "check the host and the port"]);
    assert!(!said.err.contains("identity"), "{}", said.err);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let said = run(place.send(&address, "vm1").arg(place.sparse("vm.mem")));
    said.failed(1, &[&address, "does not speak TLS", "no dwcp receiver"]);
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

const ID: TransferId = TransferId([0xab; 16]);

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
fn in_doubt(place: &Place) {
    Records::open(place.path("state")).unwrap().store(&record(Standing::GaveUp, &place.receiver)).unwrap();
    Records::open(place.path("in/.dwcp")).unwrap().store(&record(Standing::Ready, &place.sender)).unwrap();
    let layout = Layout::new(&[5000]).unwrap();
    let staging = ImageFolder::open(place.path("in")).unwrap().create(&Name::new("vm1").unwrap(), ID, layout).unwrap();
    staging.write(RegionId(0), 0, &vec![1; 8192]).unwrap();
    staging.stage().unwrap();
}

fn resolve(place: &Place, args: &[&str]) -> Said {
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
    was(&["--dir", "a.id"], &["no directory a.id"]);
    was(&["--dir", "state"], &["no `dwcp receive` ever stored images in state", ".dwcp"]);
    was(&["--state-dir", "nonexist"], &["no folder nonexist", "--state-dir"]);
    was(&["--state-dir", "a.id"], &["no folder a.id"]);
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
    said.failed(1, &["in doubt", &id, "dwcp resolve", "is taken"]);

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

#[test]
fn a_doubt_is_ended_by_the_operator_who_fences() {
    let id = &*ID.to_string();
    let place = Place::new();
    in_doubt(&place);
    resolve(&place, &[id, "--owner", "sink"]).failed(2, &["--fenced"]);
    resolve(&place, &[id]).failed(2, &["--owner", "--to"]);
    let said = resolve(&place, &[id, "--owner", "sink", "--fenced"]);
    assert!(said.code == 0 && said.out.contains("do not use the copy here"), "{}{}", said.out, said.err);
    let said = resolve_sink(&place, &[id, "--owner", "sink", "--fenced"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(place.visible(), ["vm1"]);

    let place = Place::new();
    in_doubt(&place);
    let said = resolve(&place, &[id, "--owner", "source", "--fenced"]);
    assert!(said.code == 0 && said.out.contains("may be used"), "{}{}", said.out, said.err);
    assert_eq!(resolve_sink(&place, &[id, "--owner", "source", "--fenced"]).code, 0);
    assert!(place.visible().is_empty());
    resolve_sink(&place, &[id, "--owner", "source", "--fenced"]).failed(1, &["is not in doubt"]);
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
    assert!(code == 0 && err.contains(&name) && err.contains("dwcp resolve"), "{err}");
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
    assert!(code == 0 && err.contains("went wrong") && err.contains("--owner sink"), "{err}");
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
    place.listen().stop();
    assert_eq!(place.parked(), 1);
    assert!(place.names().any(|name| name == format!(".dwcp-{ID}.part")));
}

/// An authority, and what it issues.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    fn issue(&self, host: &str, to: &Path) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(to, key.serialize_pem() + &certificate.pem()).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

// spec: H-8
#[test]
fn peers_of_one_authority_trust_each_other_and_nobody_else() {
    let place = Place::new();
    let image = place.sparse("vm.mem");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    fs::write(place.path("ours.pem"), &ours.pem).unwrap();
    fs::write(place.path("theirs.pem"), &theirs.pem).unwrap();
    ours.issue("127.0.0.1", &place.path("b.id"));
    ours.issue("elsewhere.invalid", &place.path("elsewhere.id"));
    ours.issue("a.invalid", &place.path("a.id"));
    theirs.issue("a.invalid", &place.path("stranger.id"));

    let listen = |identity: &str| {
        let mut command = dwcp();
        command.args(["receive", "--listen", "127.0.0.1:0", "--json", "--trust-ca"]).arg(place.path("ours.pem"));
        Receiver::start(command.arg("--identity").arg(place.path(identity)).arg("--dir").arg(place.path("in")))
    };
    let send = |to: &Receiver, identity: &str, authority: &str| {
        let mut command = dwcp();
        command.args(["send", "--to", &to.address, "--as", "vm1", "--trust-ca"]).arg(place.path(authority));
        command.arg("--identity").arg(place.path(identity)).arg("--state-dir").arg(place.path("state"));
        run(command.arg(&image))
    };
    let receiver = listen("b.id");
    send(&receiver, "stranger.id", "ours.pem").failed(5, &["refuses our identity", "UnknownCA", "--trust-ca"]);
    send(&receiver, "a.id", "theirs.pem").failed(5, &["UnknownIssuer", "--trust-ca"]);
    assert!(place.visible().is_empty());
    let said = send(&receiver, "a.id", "ours.pem");
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(fs::read(&image).unwrap() == fs::read(place.stored("vm1")).unwrap(), "the bytes differ");
    receiver.stop();
    // A certificate is good for the host that it names.
    let receiver = listen("elsewhere.id");
    send(&receiver, "a.id", "ours.pem").failed(5, &["elsewhere.invalid", "the name that is dialled"]);
    receiver.stop();
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

/// A disk that is really full, without being root: a small file system in a name space of our own.
#[test]
fn a_full_disk_at_the_receiver_is_named_and_leaves_the_source_as_it_was() {
    let can = Command::new("unshare").args(["-Urm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system gives no mount name space to its users (unshare -Urm)");
        return;
    }
    let place = Place::new();
    let image = place.path("vm.mem");
    fs::write(&image, noise(8_000_000)).unwrap();
    let small = |more: &[&str]| {
        let mut small = Command::new("unshare");
        small.args(["-Urm", "sh", "-c", "mount -t tmpfs -o size=2m tmpfs \"$0\" && exec \"$@\""]).arg(place.path("in"));
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
