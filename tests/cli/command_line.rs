//! Words that make sense, and words that do not; addresses where nobody is.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::operator::{Place, dwcp, run};

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
    let demo = ["demo", "--downgrade-at", "40%", "--reason", "disk-full"];
    run(dwcp().args(demo)).failed(2, &["--reason", "disk-full", "integrity, security, performance, operator"]);
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
    let commands: [&[&str]; 30] = [
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
        &["baseline"],
        &["baseline", "add"],
        &["baseline", "list"],
        &["baseline", "show"],
        &["baseline", "verify"],
        &["baseline", "gc"],
        &["transfers"],
        &["transfers", "list"],
        &["transfers", "show"],
        &["transfers", "resume"],
        &["transfers", "abort"],
        &["flag"],
        &["flag", "show"],
        &["flag", "set"],
        &["dictionary"],
        &["dictionary", "train"],
        &["dictionary", "list"],
        &["dictionary", "show"],
        &["estimate"],
        &["demo"],
    ];
    for command in commands {
        let said = run(dwcp().args(command).arg("--help"));
        assert_eq!(said.code, 0, "{command:?}");
        let examples = said.out.split_once("\nExamples:\n").map_or("", |(_, examples)| examples);
        let first = examples.lines().find(|line| !line.starts_with("  # "));
        assert!(first.is_some_and(|line| line.starts_with("  dwcp ")), "{command:?} has no example:\n{}", said.out);
    }
    for (command, codes, never) in [
        ("identity", "012", "3456789"),
        ("receive", "01234678", "59"),
        ("send", "012345678", "9"),
        ("resolve", "0124568", "379"),
        ("quarantine", "012", "3456789"),
        ("baseline", "0124", "356789"),
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
