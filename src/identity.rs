use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use dwcp_core::net::{Endpoint, Fingerprint, Identity, Trust};
use serde::Serialize;

use crate::cli::{Credentials, IdentityArgs, IdentityCommand};
use crate::exit::{Exit, Failure};
use crate::report::Report;

/// An identity file is a few kilobytes; something larger is something else.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `dwcp identity`.
pub(crate) fn run(args: IdentityArgs, report: &Report) -> Result<Exit, Failure> {
    let (file, identity) = match args.command {
        IdentityCommand::New { out, renew, subject } => {
            let identity = match renew {
                Some(old) => load(&old)?.renewed(&subject)?,
                None => Identity::generate(&subject)?,
            };
            write_new(&out, &identity.to_pem())?;
            (out, identity)
        }
        IdentityCommand::Show { file } => {
            let identity = load(&file)?;
            (file, identity)
        }
    };
    let (fingerprint, file) = (identity.fingerprint().to_string(), file.display().to_string());
    report.say(&fingerprint);
    report.event("summary", &Summary { verdict: Exit::Ok.word(), fingerprint, file });
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    fingerprint: String,
    file: String,
}

/// A node as the command line describes it.
pub(crate) fn endpoint(credentials: &Credentials) -> Result<Endpoint, Failure> {
    let identity = load(credentials.identity())?;
    let trust = match &credentials.trust_ca {
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|error| failed(format!("cannot read the authorities in {}: {error}", path.display())))?;
            Trust::authorities_pem(&text).map_err(|error| failed(format!("{}: {error}", path.display())))?
        }
        None => Trust::fingerprints(credentials.trust.iter().copied()),
    };
    Ok(Endpoint::new(&identity, &trust)?)
}

/// Who we are.
pub(crate) fn fingerprint(credentials: &Credentials) -> Result<Fingerprint, Failure> {
    Ok(load(credentials.identity())?.fingerprint())
}

/// Reads an identity that nobody else can read.
fn load(path: &Path) -> Result<Identity, Failure> {
    if path.as_os_str().is_empty() {
        let failure = Failure::new(Exit::Usage, "no identity is named, and version 3 needs one");
        return Err(failure.advise("Name it with --identity, and the peers with --trust or --trust-ca."));
    }
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let failure = failed(format!("cannot read the identity {shown}: {error}"));
        if error.kind() == io::ErrorKind::NotFound {
            return failure.advise(format!("Make one with: dwcp identity new --out {shown}"));
        }
        failure
    };
    let none = |why: &str| failed(format!("{shown} is no identity: {why}"));
    // Before it is opened: a pipe would let us wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(none("it is no regular file").advise("Name the file that `dwcp identity new --out` wrote."));
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| none("it is no text"))?;
    let identity = Identity::from_pem(&text).map_err(|error| none(&error.to_string()))?;
    // Only of an identity: nobody shall be told to change the mode of some other file.
    if mode & 0o077 != 0 {
        let what = format!("others can read the secret key in {shown} (mode {:04o})", mode & 0o7777);
        return Err(failed(what).advise(format!(
            "Run: chmod 600 {shown} - and if it may have been read, make a new identity and tell the peers."
        )));
    }
    Ok(identity)
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| {
        let failure = failed(format!("cannot write the identity {}: {error}", path.display()));
        if error.kind() == io::ErrorKind::AlreadyExists {
            return failure.advise("An identity is never overwritten: move the old one away, or choose another name.");
        }
        failure
    })
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
