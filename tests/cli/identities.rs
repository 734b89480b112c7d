//! Keys, certificates, and who trusts whom.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::operator::{Place, Receiver, dwcp, run};

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
    receiver.lines.interrupt();
    let (code, err) = receiver.lines.end();
    assert!(code == 0 && err.contains(&format!("its key {} is not trusted here", place.receiver)), "{err}");
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
