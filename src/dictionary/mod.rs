//! `dwcp dictionary`: what pages have in common, for both ends of a transfer to refer to.

mod args;
mod pages;
mod told;

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dwcp_core::dictionary::{DictionaryStore, StoreError, Stored};
use dwcp_core::net::Endpoint;
use dwcp_core::session::Progress;
use dwcp_hde::TrainError;

pub(crate) use self::args::{DictionaryArgs, DictionaryCommand, UseOfDictionaries};
use self::args::{ShowArgs, StoreArgs, TrainArgs};
pub(crate) use self::told::Used;
use self::told::{Listed, Shown, ShownSummary};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::place::must_be_folder;
use crate::receive;
use crate::report::Report;
use crate::state;

/// `dwcp dictionary`.
pub(crate) fn run(args: DictionaryArgs, report: &Report) -> Result<Exit, Failure> {
    match args.command {
        DictionaryCommand::Train(args) => train(args, report),
        DictionaryCommand::List(args) => list(&args, report),
        DictionaryCommand::Show(args) => show(&args, report),
    }
}

impl UseOfDictionaries {
    /// The endpoint, with the dictionaries of the store if one was named.
    pub(crate) fn of(&self, endpoint: Endpoint) -> Result<Endpoint, Failure> {
        let Some(path) = &self.dictionary_store else { return Ok(endpoint) };
        let dictionaries = open(path)?.dictionaries().map_err(failure(path))?;
        if let [first, more @ ..] = open_to_others(path).as_slice() {
            let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
            tracing::warn!("{first}{more}: {SECRET}");
        }
        Ok(endpoint.with_dictionaries(dictionaries))
    }

    /// What a transfer that is over did with a dictionary. `None`: none was to be used.
    pub(crate) fn used(&self, progress: &Progress) -> Option<Used> {
        let path = self.dictionary_store.as_deref()?;
        Some(Used::of(progress, |id| {
            let (whole, _) = DictionaryStore::open(path).ok()?.list().ok()?;
            whole.into_iter().find(|stored| stored.dictionary.id() == id).map(|stored| stored.name)
        }))
    }
}

/// A store that must be there: a mistyped path is no empty store.
fn open(path: &Path) -> Result<DictionaryStore, Failure> {
    must_be_folder(path, "Name the one given to `dwcp dictionary train --store`.")?;
    DictionaryStore::open(path).map_err(failure(path))
}

fn train(args: TrainArgs, report: &Report) -> Result<Exit, Failure> {
    let path = args.store.store;
    // Training takes seconds.
    state::may_be_made(&path)?;
    // The images first: nothing is made for one that is not there.
    let pages = pages::collect(args.files)?;
    let trained = dwcp_hde::train(&pages, args.size).map_err(|error| untrained(&error))?;
    state::make(&path)?;
    let store = open(&path)?;
    // What takes milliseconds is not left half done.
    let _unless_killed = Interrupts::watch()?;
    store.add(&args.name, &trained, receive::now()).map_err(failure(&path))?;
    let shown = Shown::of(&store.load(&args.name).map_err(failure(&path))?);
    report.say(&format!("{}\nIt holds pieces of the guests' memory: keep it as secret as them.", shown.line()));
    report.event("summary", &ShownSummary::of(&shown));
    Ok(Exit::Ok)
}

fn untrained(error: &TrainError) -> Failure {
    Failure::new(Exit::Failed, format!("no dictionary was made: {error}"))
        .advise("Give images of guests that ran for a while, of the kind that will be sent.")
}

fn list(args: &StoreArgs, report: &Report) -> Result<Exit, Failure> {
    let path = &args.store;
    let (whole, damaged) = open(path)?.list().map_err(failure(path))?;
    for error in &damaged {
        let denied = matches!(error, StoreError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied);
        let advice = if denied { "run as the user whose store it is" } else { REPAIR };
        report.warn(&format!("warning: {}: {error}; {advice}", path.display()));
    }
    for open in open_to_others(path) {
        report.warn(&format!("warning: {open}: {SECRET}"));
    }
    if whole.is_empty() {
        let which = if damaged.is_empty() { "no dictionary" } else { "no dictionary that can be used" };
        report.say(&format!("there is {which} in {}", path.display()));
    }
    for shown in whole.iter().map(Shown::of) {
        report.say(&shown.line());
        report.event("dictionary", &shown);
    }
    let exit = if damaged.is_empty() { Exit::Ok } else { Exit::Integrity };
    let (verdict, dictionaries, damaged) = (exit.word(), whole.len(), damaged.len());
    report.event("summary", &Listed { verdict, dictionaries, damaged });
    Ok(exit)
}

fn show(args: &ShowArgs, report: &Report) -> Result<Exit, Failure> {
    let path = &args.store.store;
    let stored: Stored = open(path)?.load(&args.name).map_err(failure(path))?;
    let shown = Shown::of(&stored);
    for (what, value) in shown.lines() {
        report.say(&format!("{what:8} {value}"));
    }
    report.event("summary", &ShownSummary::of(&shown));
    Ok(Exit::Ok)
}

/// What is wrong with a file that [`open_to_others`] tells.
const SECRET: &str = "others than its owner can use it, and it holds pieces of guests' memory in clear; run chmod 600";

/// Dictionaries that are as secret as their directory, no more. What cannot be looked at is told where it is read.
fn open_to_others(path: &Path) -> Vec<String> {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let open = files.filter_map(|file| {
        let name = file.file_name().into_string().ok().filter(|name| name.ends_with(".dictionary"))?;
        let mode = file.metadata().ok().filter(std::fs::Metadata::is_file)?.permissions().mode();
        (mode & 0o077 != 0).then(|| format!("{} (mode {:04o})", path.join(name).display(), mode & 0o7777))
    });
    let mut open: Vec<_> = open.collect();
    open.sort();
    open
}

const REPAIR: &str = "remove it, and train it again or bring it from a node that has it whole";

/// What happened in a store, and what to do.
fn failure(path: &Path) -> impl Fn(StoreError) -> Failure {
    move |error| {
        let failure = Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
        match error {
            StoreError::Unknown { .. } => failure.advise("See `dwcp dictionary list`."),
            StoreError::Damaged { file, .. } => failure.advise(format!(
                "Remove {}, and train it again or bring it from a node that has it whole.",
                path.join(file).display()
            )),
            StoreError::TooMany { .. } => {
                failure.advise("Remove files of dictionaries that no node uses any more: until then none is used.")
            }
            StoreError::Busy { .. } => failure.advise("Wait for it, or give another --name."),
            StoreError::Io { ref source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                failure.advise("Run as the user whose store it is.")
            }
            _ => failure,
        }
    }
}
