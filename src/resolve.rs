use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dwcp_core::guest::ImageFolder;
use dwcp_core::net::Records;
use dwcp_core::session::{Owner, Record, SourceConfig, Standing};
use dwcp_core::wire::TransferId;
use dwcp_core::{Guest, GuestError};
use serde::Serialize;

use crate::cli::{Credentials, OwnerArg, ResolveArgs};
use crate::exit::{Exit, Failure};
use crate::identity;
use crate::interrupt::Interrupts;
use crate::place::Place;
use crate::receive;
use crate::report::Report;
use crate::send::doubt;
use crate::state::{self, Shown};
use crate::transfers::survey::is_visible;

/// How long a receiver is asked before it is told that the doubt stays.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// `dwcp resolve`.
pub(crate) async fn run(args: ResolveArgs, report: &Report) -> Result<Exit, Failure> {
    let place = Place::named(args.dir.as_deref(), args.state_dir.clone())?;
    let Some(transfer) = args.transfer else { return list(&place, report) };
    if let (Some(to), Some(identity)) = (args.to, args.identity) {
        let credentials = Credentials { identity: Some(identity), trust: args.trust, trust_ca: args.trust_ca };
        return ask(&place, transfer, &to, &credentials, report).await;
    }
    match args.owner {
        Some(owner) => end(&place, transfer, owner, args.replace, report),
        None => Err(Failure::new(Exit::Usage, "say how to end the doubt")
            .advise("Ask the receiver again with --to, --identity and --trust, or decide with --owner and --fenced.")),
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    transfers: usize,
    damaged: usize,
}

fn list(place: &Place, report: &Report) -> Result<Exit, Failure> {
    let listing = state::look(&place.records()?, place.standing())?;
    for damaged in &listing.damaged {
        state::tell_damaged(damaged, report);
    }
    if listing.is_empty() {
        report.say(&format!("nothing is in doubt in {}", place.records_folder().display()));
    }
    for record in &listing.records {
        let peer = record.peer;
        let state = match place {
            Place::Source(_) => format!("given up here to {peer}; ask it: dwcp resolve TRANSFER --to HOST:PORT ..."),
            Place::Sink(dir) if ImageFolder::open(dir).is_ok_and(|folder| is_visible(&folder, record)) => {
                format!(
                    "here under its name already; its sender {peer} asks when it is resumed, or: --owner sink --fenced"
                )
            }
            Place::Sink(_) => format!("stored here; waits for its sender {peer} to say that it may be used"),
        };
        report.say(&format!("{}  {}  {state}", record.transfer, record.name));
        report.event("in-doubt", &Shown::from(record));
    }
    let (transfers, damaged) = (listing.records.len(), listing.damaged.len());
    report.event("summary", &Summary { verdict: Exit::Ok.word(), transfers, damaged });
    Ok(Exit::Ok)
}

/// The safe way out: the receiver says whether it has the guest.
pub(crate) async fn ask(
    place: &Place,
    transfer: TransferId,
    to: &str,
    credentials: &Credentials,
    report: &Report,
) -> Result<Exit, Failure> {
    let record = hear(place, transfer, to, credentials).await?;
    Ok(tell_there(&record, to, report))
}

/// The receiver has it.
pub(crate) fn tell_there(record: &Record, to: &str, report: &Report) -> Exit {
    report.say(&format!("{} is at {to} and visible there; the copy here is no longer needed", record.name));
    report.event("summary", &Ended { verdict: Exit::Ok.word(), owner: "sink", shown: record.into() });
    Exit::Ok
}

/// Asks a receiver until it says that it has the guest.
///
/// # Errors
/// It does not: the doubt stays.
pub(crate) async fn hear(
    place: &Place,
    transfer: TransferId,
    to: &str,
    credentials: &Credentials,
) -> Result<Record, Failure> {
    let folder = place.records_folder();
    let record = place.record(&place.records()?, transfer)?;
    let endpoint = identity::endpoint(credentials)?.with_records(&folder)?;
    let mut interrupts = Interrupts::watch()?;
    let mut session = tokio::select! {
        session = endpoint.ask(to, &record, SourceConfig::default()) => session.map_err(|error| {
            let failure = Failure::from(error);
            // Whoever cannot be reached may have it.
            if failure.exit == Exit::Unreachable { doubt_stays(&record, &failure.what) } else { failure }
        })?,
        () = interrupts.next() => return Err(doubt_stays(&record, "interrupted")),
    };
    let outcome = tokio::select! {
        outcome = session.outcome() => outcome,
        () = interrupts.next() => return Err(doubt_stays(&record, "interrupted")),
        () = tokio::time::sleep(ASK_LIMIT) => return Err(doubt_stays(&record, "the receiver did not answer in time")),
    };
    if outcome.owner == Owner::Sink {
        return Ok(record);
    }
    let why = outcome.error.map_or_else(|| "no reason given".to_owned(), |error| error.to_string());
    Err(doubt_stays(&record, &why))
}

fn doubt_stays(record: &Record, why: &str) -> Failure {
    Failure::new(Exit::InDoubt, format!("transfer {} ({}) stays in doubt: {why}", record.transfer, record.name)).advise(
        "Ask again when the receiver runs; if it never will, make sure of that and use --owner source --fenced.",
    )
}

#[derive(Serialize)]
struct Ended<'a> {
    verdict: &'a str,
    owner: &'a str,
    #[serde(flatten)]
    shown: Shown,
}

/// The operator's word, who made sure that the other side never runs it.
fn end(place: &Place, transfer: TransferId, owner: OwnerArg, replace: bool, report: &Report) -> Result<Exit, Failure> {
    let records = place.records()?;
    let record = place.record(&records, transfer)?;
    let word = if owner == OwnerArg::Source { "source" } else { "sink" };
    let decision = |done| note(&place.records_folder(), &record, word, done);
    let text = match place {
        Place::Source(_) => {
            if doubt::is_at_work(&records, &record)? {
                let what = format!("a `dwcp send` of this node is handing {} over just now", record.name);
                return Err(Failure::new(Exit::Failed, what).advise("Stop it first (Ctrl-C), then resolve."));
            }
            decision(false)?;
            records.forget(transfer)?;
            at_source(&record, owner)
        }
        Place::Sink(dir) => {
            let unusable = |error| Failure::new(Exit::Failed, format!("{}: {error}", dir.display()));
            let claimed = state::claim(&place.records_folder()).map_err(unusable)?;
            // It knows the transfer too, and would be told its end by nobody.
            let _claim = claimed.ok_or_else(|| {
                Failure::new(Exit::Failed, format!("`dwcp receive` runs on {}", dir.display()))
                    .advise("Stop it first (Ctrl-C), then resolve, then start it again.")
            })?;
            decision(false)?;
            at_sink(dir, &records, &record, owner, replace)?
        }
    };
    report.say(&text);
    if let Err(failure) = decision(true) {
        report.warn(&format!("warning: it was done, but {}", failure.what));
    }
    report.event("summary", &Ended { verdict: Exit::Ok.word(), owner: word, shown: (&record).into() });
    Ok(Exit::Ok)
}

/// Decisions of operators, a JSON line before each is carried out and one after it: when both ends were given a guest, or none,
/// they tell why.
const DECISIONS: &str = "resolved.jsonl";

#[derive(Serialize)]
struct Decision<'a> {
    /// Seconds since 1970.
    at: u64,
    owner: &'a str,
    done: bool,
    #[serde(flatten)]
    shown: Shown,
}

fn note(records: &Path, record: &Record, owner: &str, done: bool) -> Result<(), Failure> {
    let at = receive::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let path = records.join(DECISIONS);
    let written = || -> std::io::Result<()> {
        let mut line = serde_json::to_string(&Decision { at, owner, done, shown: record.into() })?;
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        file.write_all(line.as_bytes())?;
        file.sync_data()?;
        File::open(records)?.sync_all()
    };
    written().map_err(|error| {
        Failure::new(Exit::Failed, format!("the decision cannot be noted in {}: {error}", path.display()))
            .advise("Nothing is done that leaves no trace: make room there, or give this user the right to it.")
    })
}

fn at_source(record: &Record, owner: OwnerArg) -> String {
    let name = &record.name;
    match owner {
        OwnerArg::Source => format!(
            "{name} is this side's again and may be used or sent here; at the receiver run: dwcp resolve {} --dir DIR \
             --owner source --fenced",
            record.transfer
        ),
        OwnerArg::Sink => format!("{name} is the receiver's; do not use the copy here any more"),
    }
}

fn at_sink(dir: &Path, records: &Records, record: &Record, owner: OwnerArg, replace: bool) -> Result<String, Failure> {
    let staging = match ImageFolder::open(dir)?.replacing(replace).reopen(record) {
        // Gone already, when it is the sender's, is what was wanted.
        Err(GuestError::Io { source, .. }) if owner == OwnerArg::Source && source.kind() == ErrorKind::NotFound => None,
        staging => Some(staging.map_err(|error| look_first(error, record, records))?),
    };
    let path = dir.join(record.name.as_str());
    match (owner, staging) {
        (OwnerArg::Sink, Some(staging)) => {
            staging.resume().map_err(|error| look_first(error, record, records))?;
            records.store(&Record { standing: Standing::Ran, ..record.clone() })?;
            Ok(format!("{} is visible and may be used", path.display()))
        }
        (_, staging) => {
            if let Some(staging) = staging {
                if staging.is_visible()? {
                    staging.verify().map_err(|error| look_first(error, record, records))?;
                    return Err(already_visible(&path, record));
                }
                staging.discard();
            }
            records.forget(record.transfer)?;
            Ok(format!("what was stored of {} is removed; it is the sender's", record.name))
        }
    }
}

/// A file of its name that may be the guest, used since, or anything else: no program can tell.
fn look_first(error: GuestError, record: &Record, records: &Records) -> Failure {
    let foreign = matches!(error, GuestError::NotStaged { .. });
    let failure = Failure::from(error);
    let Some(path) = records.path(record.transfer).filter(|_| foreign) else { return failure };
    failure.advise(format!(
        "If it is this guest, in use since the crash, the receiver has it: remove {path} here and use --owner sink at \
         the sender. If it is another file and the guest is lost here, move that file away and use --owner source at \
         both ends.",
        path = path.display()
    ))
}

/// RUN had been obeyed before the crash, so the source did give it up: its word cannot be taken back.
fn already_visible(path: &Path, record: &Record) -> Failure {
    let what =
        format!("{} is visible already: the sender gave {} up and this receiver has it", path.display(), record.name);
    Failure::new(Exit::Failed, what).advise("Use --owner sink at both ends, or remove the image by hand if it must go.")
}
