//! `dwcp transfers`: the truth about each transfer that a node knows, and what can be done about it.
//!
//! ```text
//!  at a sender     .offered locked    sending          .record gave-up + locked    handing over
//!                  .offered           cut off          .record gave-up             in doubt
//!  at a receiver   .part locked       receiving        .record ready + locked      handing over
//!                  .part and .wal     parked           .record ready               in doubt
//!                                                      .record ready, final name   visible
//!                                                      .record ran                 handed over
//! ```

pub(crate) mod survey;

use std::path::{Path, PathBuf};

use dwcp_core::guest::ImageFolder;
use dwcp_core::wire::TransferId;
use serde::Serialize;

use self::survey::{End, Entry, State, Survey};
use crate::cli::{NodeArgs, OneArgs, SendArgs, TransfersCommand};
use crate::exit::{Exit, Failure};
use crate::place::Place;
use crate::report::Report;
use crate::resolve;
use crate::send;
use crate::state;
use crate::words::Words;

/// `dwcp transfers`.
pub(crate) async fn run(command: TransfersCommand, report: &Report) -> Result<Exit, Failure> {
    match command {
        TransfersCommand::List(node) => list(&place(node)?, report),
        TransfersCommand::Show(OneArgs { transfer, node }) => show(&place(node)?, transfer, report),
        TransfersCommand::Resume(OneArgs { transfer, node }) => resume(place(node)?, transfer, report).await,
        TransfersCommand::Abort(OneArgs { transfer, node }) => abort(&place(node)?, transfer, report),
    }
}

fn place(node: NodeArgs) -> Result<Place, Failure> {
    Place::named(node.dir.as_deref(), node.state_dir)
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    transfers: usize,
    damaged: usize,
    /// What this node may have moved and does not remember.
    not_recorded: [&'a str; 1],
}

/// Nothing of it can be gone on with, asked about or taken back, so nothing of it is kept.
pub(crate) const CLEAR_TEXT: &str = "transfers over version 1 in clear text (--v1) are never listed: they leave no record, \
                                     and only the command that made one tells how it ended; those over version 1 inside \
                                     TLS are listed like any other";

fn list(place: &Place, report: &Report) -> Result<Exit, Failure> {
    let Survey { entries, damaged } = Survey::of(place)?;
    for damaged in &damaged {
        state::tell_damaged(damaged, report);
    }
    if entries.is_empty() && damaged.is_empty() {
        report.say(&format!("no transfer is known in {}", place.records_folder().display()));
    }
    for entry in &entries {
        report.say(&format!("{}  {}  {}", entry.id, entry.name, entry.standing()));
        report.event("transfer", entry);
    }
    report.say(&format!("note: {CLEAR_TEXT}"));
    let (transfers, damaged) = (entries.len(), damaged.len());
    report.event("summary", &Summary { verdict: Exit::Ok.word(), transfers, damaged, not_recorded: ["v1-clear-text"] });
    Ok(Exit::Ok)
}

/// One transfer in a last line.
#[derive(Serialize)]
struct Shown<'a> {
    verdict: &'a str,
    #[serde(flatten)]
    entry: &'a Entry,
}

fn show(place: &Place, transfer: TransferId, report: &Report) -> Result<Exit, Failure> {
    let entry = Survey::one(place, transfer)?;
    for (what, value) in entry.lines() {
        report.say(&format!("{what:<9} {value}"));
    }
    report.event("summary", &Shown { verdict: Exit::Ok.word(), entry: &entry });
    Ok(Exit::Ok)
}

async fn resume(place: Place, transfer: TransferId, report: &Report) -> Result<Exit, Failure> {
    let entry = Survey::one(&place, transfer)?;
    let folder = match (place, entry.at) {
        (Place::Source(folder), End::Source) => folder,
        _ => return Err(not_here(&entry)),
    };
    if !matches!(entry.state, State::CutOff | State::InDoubt) {
        return Err(refused(&entry, "is under way", "There is nothing to resume; see how it goes where it runs."));
    }
    // The words may lead to another folder.
    let folder = std::path::absolute(&folder)
        .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", folder.display())))?;
    let place = Place::Source(folder.clone());
    let Some(words) = Words::of(&place.records()?, transfer) else {
        let advice = format!("Type it yourself: {}", entry.next.first().map_or("", String::as_str));
        return Err(refused(&entry, "was begun with words that are not remembered here", &advice));
    };
    let args = words.parse()?;
    enter(words.folder(), &entry)?;
    report.say(&format!("in {}: {}", words.folder().display(), words.line()));
    if entry.state == State::InDoubt {
        return resolve::ask(&place, transfer, &args.to, &args.credentials, report).await;
    }
    Ok(send::run(send_from(args, folder), Some(words), report).await)
}

/// The same transfer is remembered where we found it, wherever its words looked.
fn send_from(args: SendArgs, folder: PathBuf) -> SendArgs {
    SendArgs { state_dir: Some(folder), ..args }
}

fn enter(folder: &Path, entry: &Entry) -> Result<(), Failure> {
    std::env::set_current_dir(folder).map_err(|error| {
        let what = format!("transfer {} was begun in {}, which cannot be entered: {error}", entry.id, folder.display());
        Failure::new(Exit::Failed, what)
            .advise("Send it again from where its files are now, with the same --as and --to.")
    })
}

/// Who has the image decides when it travels.
fn not_here(entry: &Entry) -> Failure {
    let advice = match entry.state {
        State::HandedOver => "There is nothing to resume: the image is here.".to_owned(),
        State::Visible => format!("The image is here; its sender asks with: dwcp transfers resume {}", entry.id),
        _ => format!("At its sender run: dwcp transfers resume {} - or the same `dwcp send` again.", entry.id),
    };
    refused(entry, "is resumed by its sender, not by its receiver", &advice)
}

fn refused(entry: &Entry, why: &str, advice: &str) -> Failure {
    Failure::new(Exit::Failed, format!("transfer {} ({}) {why}", entry.id, entry.name)).advise(advice)
}

#[derive(Serialize)]
struct Aborted<'a> {
    verdict: &'a str,
    transfer: String,
    name: &'a str,
    at: End,
}

fn abort(place: &Place, transfer: TransferId, report: &Report) -> Result<Exit, Failure> {
    let entry = Survey::one(place, transfer)?;
    let (name, id) = (&entry.name, entry.id);
    let busy = || match entry.at {
        End::Source => refused(&entry, "is being sent", "Stop that `dwcp send` first (Ctrl-C), then abort."),
        End::Sink => refused(
            &entry,
            "is being received, or its sender was lost less than a minute ago",
            "Stop it at its sender (Ctrl-C), or stop this receiver (Ctrl-C), then abort.",
        ),
    };
    let done = match (entry.state, place) {
        (State::CutOff, Place::Source(_)) => place.records()?.withdraw(transfer)?,
        (State::Parked, Place::Sink(dir)) => ImageFolder::open(dir)?.abort(transfer)?,
        (State::Sending | State::Receiving, _) => false,
        (State::HandedOver | State::Visible, _) => {
            let advice = "The image is its owner's. Remove it like any other file, if it must go.";
            return Err(refused(&entry, "is this receiver's: nothing is left to abort", advice));
        }
        (State::HandingOver, _) => {
            let advice = "Wait until it is; should it stay in doubt, see `dwcp resolve`.";
            return Err(refused(&entry, "is being handed over", advice));
        }
        _ => {
            let advice = format!("Only you can end a doubt: see `dwcp resolve {}`, and --help of it.", place.words());
            return Err(refused(&entry, "is in doubt, and is not thrown away", &advice));
        }
    };
    if !done {
        return Err(busy());
    }
    report.say(&match entry.at {
        End::Source => format!(
            "{name} will not be gone on with; the image is as it was. If its receiver has it in doubt, run there: \
             dwcp resolve {id} --dir DIR --owner source --fenced"
        ),
        End::Sink => format!("what had arrived of {name} is removed; its sender begins anew"),
    });
    report.event("summary", &Aborted { verdict: Exit::Ok.word(), transfer: id.to_string(), name, at: entry.at });
    Ok(Exit::Ok)
}
