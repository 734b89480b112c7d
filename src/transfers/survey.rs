use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use dwcp_core::guest::{ImageFolder, Parked};
use dwcp_core::net::{Damaged, Records};
use dwcp_core::session::{Record, Standing};
use dwcp_core::wire::TransferId;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::place::Place;
use crate::receive::{self, RAN_KEPT};
use crate::send::{self, cut_off::CUT_OFF_KEPT};
use crate::units;
use crate::words::Words;

/// How a transfer stands at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// A `dwcp send` of this node is at it.
    Sending,
    /// A sender that ended before it gave the image up.
    CutOff,
    /// A session of this receiver has it.
    Receiving,
    /// Cut off here, with what had arrived.
    Parked,
    /// All is at the receiver, and a process of this node is about to end it.
    HandingOver,
    /// Given up by the sender, or promised by the receiver, and no process of this node is at it.
    InDoubt,
    /// It has its name at the receiver, which was killed before it could note that, or tell its sender.
    Visible,
    /// It is the receiver's, and both ends know it.
    HandedOver,
}

impl State {
    /// As in a JSON line.
    fn word(self) -> &'static str {
        match self {
            Self::Sending => "sending",
            Self::CutOff => "cut-off",
            Self::Receiving => "receiving",
            Self::Parked => "parked",
            Self::HandingOver => "handing-over",
            Self::InDoubt => "in-doubt",
            Self::Visible => "visible",
            Self::HandedOver => "handed-over",
        }
    }
}

/// At which end we look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    Source,
    Sink,
}

/// All that a node knows of one transfer. In a JSON line null is what it does not know.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub(super) id: TransferId,
    transfer: String,
    pub(super) name: String,
    pub(super) at: End,
    pub(super) state: State,
    /// Fingerprint of the other end.
    peer: Option<String>,
    /// Where the sender dials.
    to: Option<String>,
    bytes: Option<u64>,
    /// Bytes that are durable at this receiver.
    bytes_held: Option<u64>,
    /// Seconds until this node forgets it; null: not by itself.
    kept_s: Option<u64>,
    /// Seconds since something of it was last written here, while it is received.
    quiet_s: Option<u64>,
    root: Option<String>,
    /// What was typed at the sender, and in which folder.
    command: Option<String>,
    folder: Option<String>,
    /// What can be done, the best first.
    pub(super) next: Vec<String>,
}

/// All transfers of a node.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) entries: Vec<Entry>,
    /// Files that are no record, and may be about any.
    pub(super) damaged: Vec<Damaged>,
}

impl Survey {
    pub(super) fn of(place: &Place) -> Result<Self, Failure> {
        let records = place.records()?;
        let mut survey = match place {
            Place::Source(_) => at_source(&records)?,
            Place::Sink(dir) => at_sink(dir, &records)?,
        };
        survey.entries.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        for entry in &mut survey.entries {
            entry.next = entry.what_next(place);
        }
        Ok(survey)
    }

    /// One of them.
    pub(super) fn one(place: &Place, transfer: TransferId) -> Result<Entry, Failure> {
        let survey = Self::of(place)?;
        if let Some(damaged) = survey.damaged.iter().find(|damaged| damaged.transfer == Some(transfer)) {
            return Err(Failure::new(Exit::Failed, format!("a record cannot be read: {}", damaged.error)).advise(
                "It may be in doubt, so nothing of it is promised or thrown away. Look at the other end; when you know \
                 who has the guest, move that file away.",
            ));
        }
        survey.entries.into_iter().find(|entry| entry.id == transfer).ok_or_else(|| {
            let folder = place.records_folder();
            Failure::new(Exit::Failed, format!("no transfer {transfer} is known in {}", folder.display())).advise(
                "See `dwcp transfers list`, with --state-dir or --dir as the transfer was begun; what has ended may be \
                 forgotten, and version 1 in clear text (--v1) leaves no record.",
            )
        })
    }
}

fn at_source(records: &Records) -> Result<Survey, Failure> {
    // Before the records: what is given up meanwhile has one.
    let mut offers: HashMap<_, _> = records.offers()?.into_iter().map(|offered| (offered.transfer, offered)).collect();
    let listing = records.list()?;
    let damaged = |transfer| listing.damaged.iter().any(|damaged| damaged.transfer == Some(transfer));
    let mut entries = Vec::new();
    for record in listing.records.iter().filter(|record| record.standing == Standing::GaveUp) {
        let offer = offers.remove(&record.transfer);
        let state = if offer.as_ref().is_some_and(|offer| offer.busy) { State::HandingOver } else { State::InDoubt };
        let entry = Entry::of_record(record, End::Source, state).remembering(records);
        let to = offer.and_then(|offer| send::of_offer_key(&offer.key)).map(|(_, to)| to);
        entries.push(Entry { to: to.or(entry.to), ..entry });
    }
    for (transfer, offer) in offers.into_iter().filter(|(transfer, _)| !damaged(*transfer)) {
        let state = if offer.busy { State::Sending } else { State::CutOff };
        let kept_s = (!offer.busy && !offer.promised).then(|| until(offer.begun + CUT_OFF_KEPT));
        // A power cut while it was written leaves anything: it was not offered yet.
        let (name, to) = send::of_offer_key(&offer.key).unzip();
        let name = name.map_or_else(|| "?".to_owned(), |name| name.to_string());
        entries.push(Entry { to, kept_s, ..Entry::new(transfer, &name, End::Source, state) }.remembering(records));
    }
    Ok(Survey { entries, damaged: listing.damaged })
}

fn at_sink(dir: &Path, records: &Records) -> Result<Survey, Failure> {
    // Before the records: what is promised or handed over meanwhile has one.
    let folder = ImageFolder::open(dir)?;
    let parked = folder.parked()?;
    let mut parked: HashMap<_, _> = parked.into_iter().map(|parked| (parked.transfer, parked)).collect();
    let listing = records.list()?;
    let damaged = |transfer| listing.damaged.iter().any(|damaged| damaged.transfer == Some(transfer));
    let mut entries = Vec::new();
    for record in &listing.records {
        let busy = parked.remove(&record.transfer).is_some_and(|parked| parked.busy);
        let state = match record.standing {
            Standing::Ready if busy => State::HandingOver,
            Standing::Ready if is_visible(&folder, record) => State::Visible,
            Standing::Ready => State::InDoubt,
            Standing::Ran => State::HandedOver,
            // Of a sender that was given this folder.
            Standing::GaveUp => continue,
        };
        let entry = Entry::of_record(record, End::Sink, state);
        let kept_s = (state == State::HandedOver).then(|| ran_kept(records, record.transfer)).flatten();
        entries.push(Entry { bytes_held: entry.bytes, kept_s, ..entry });
    }
    entries.extend(parked.values().filter(|parked| !damaged(parked.transfer)).map(Entry::of_parked));
    Ok(Survey { entries, damaged: listing.damaged })
}

/// Whether what was promised has its name already: its sender had given it up.
pub(crate) fn is_visible(folder: &ImageFolder, record: &Record) -> bool {
    folder.reopen(record).and_then(|image| image.is_visible()).unwrap_or(false)
}

/// Seconds from now until then.
fn until(then: SystemTime) -> u64 {
    then.duration_since(receive::now()).map_or(0, |left| left.as_secs())
}

fn ran_kept(records: &Records, transfer: TransferId) -> Option<u64> {
    let written = records.path(transfer)?.metadata().ok()?.modified().ok()?;
    Some(until(written + RAN_KEPT))
}

impl Entry {
    fn new(id: TransferId, name: &str, at: End, state: State) -> Self {
        Self {
            id,
            transfer: id.to_string(),
            name: name.to_owned(),
            at,
            state,
            peer: None,
            to: None,
            bytes: None,
            bytes_held: None,
            kept_s: None,
            quiet_s: None,
            root: None,
            command: None,
            folder: None,
            next: Vec::new(),
        }
    }

    fn of_record(record: &Record, at: End, state: State) -> Self {
        Self {
            peer: Some(record.peer.to_string()),
            bytes: Some(record.layout.bytes()),
            root: Some(record.root.to_string()),
            ..Self::new(record.transfer, record.name.as_str(), at, state)
        }
    }

    fn of_parked(parked: &Parked) -> Self {
        let state = if parked.busy { State::Receiving } else { State::Parked };
        Self {
            peer: Some(parked.peer.to_string()),
            bytes: Some(parked.bytes),
            bytes_held: Some(parked.held_bytes.min(parked.bytes)),
            kept_s: (!parked.busy).then(|| until(parked.kept_until())),
            quiet_s: parked
                .busy
                .then(|| receive::now().duration_since(parked.written).map_or(0, |quiet| quiet.as_secs())),
            ..Self::new(parked.transfer, parked.name.as_str(), End::Sink, state)
        }
    }

    /// With the words of the `dwcp send` that began it.
    fn remembering(self, records: &Records) -> Self {
        let Some(words) = Words::of(records, self.id) else { return self };
        let to = self.to.clone().or_else(|| words.parse().ok().map(|args| args.to));
        Self { to, command: Some(words.line()), folder: Some(words.folder().display().to_string()), ..self }
    }

    /// Its state in a word, as `--help`, the README and `--json` have it, and in a sentence.
    pub(super) fn standing(&self) -> String {
        format!("{}: {}", self.state.word(), self.sentence())
    }

    fn sentence(&self) -> String {
        let (peer, to) = (self.peer.as_deref().unwrap_or("-"), self.to.as_deref().unwrap_or("its receiver"));
        let held = || format!("{} of {}", bytes(self.bytes_held), bytes(self.bytes));
        match (self.state, self.at) {
            (State::Sending, _) => format!("to {to}"),
            (State::CutOff, _) => self.cut_off(to),
            (State::Receiving, _) => format!("from {peer}, {} are durable here{}", held(), self.quiet()),
            (State::Parked, _) => {
                format!("{} are here; goes on when its sender {peer} comes back within {}", held(), self.kept())
            }
            (State::HandingOver, End::Source) => format!("given up here to {to}, which is told so just now"),
            (State::HandingOver, End::Sink) => format!("stored here; its sender {peer} is about to hand it over"),
            (State::InDoubt, End::Source) => format!("given up here to {peer}; ask it again"),
            (State::InDoubt, End::Sink) => {
                format!("stored here; waits for its sender {peer} to say that it may be used")
            }
            (State::Visible, _) => format!(
                "here under its name, unless somebody else put that file there; its sender {peer} was not heard to know it"
            ),
            (State::HandedOver, _) => format!("by {peer}; remembered for {}", self.kept()),
        }
    }

    fn cut_off(&self, to: &str) -> String {
        match self.kept_s {
            None => format!("on its way to {to}, which may have all of it and wait; send it again with the same words"),
            Some(0) => format!(
                "on its way to {to}, 30 days ago; send it again with the same words, or any other `dwcp send` forgets it"
            ),
            Some(_) => format!("on its way to {to}; send it again with the same words within {}", self.kept()),
        }
    }

    /// A sender that was lost is one that says nothing, until its session is given up.
    fn quiet(&self) -> String {
        match self.quiet_s {
            Some(seconds @ QUIET..) => format!(", nothing came for {seconds} s: its sender may be gone"),
            _ => String::new(),
        }
    }

    fn kept(&self) -> String {
        let minutes = self.kept_s.unwrap_or(0) / 60;
        match minutes / 60 {
            0 => format!("{minutes} minutes"),
            hours @ 1..48 => format!("{hours} hours"),
            hours => format!("{} days", hours / 24),
        }
    }

    /// All that is known, a line each, with its meaning first.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let known = [
            ("transfer", Some(self.transfer.clone())),
            ("name", Some(self.name.clone())),
            ("state", Some(self.standing())),
            ("peer", self.peer.clone()),
            ("receiver", self.to.clone()),
            ("size", self.bytes.map(|count| format!("{count} bytes"))),
            ("durable", self.bytes_held.map(|count| format!("{count} bytes"))),
            ("root", self.root.clone()),
            ("command", self.command.clone()),
            ("folder", self.folder.clone()),
        ];
        let next = self.next.iter().map(|next| ("next", next.clone()));
        known.into_iter().filter_map(|(what, value)| Some((what, value?))).chain(next).collect()
    }

    fn what_next(&self, place: &Place) -> Vec<String> {
        let (id, words) = (&self.transfer, place.words());
        let resume = format!("dwcp transfers resume {id} {words}");
        let abort = format!("dwcp transfers abort {id} {words}");
        let known = self.command.is_some();
        match (self.state, self.at) {
            (State::Sending, _) => vec!["Ctrl-C where `dwcp send` runs: the image stays as it is".to_owned()],
            (State::CutOff, _) if known => vec![resume, abort],
            (State::CutOff, _) => {
                let again = self.to.as_ref().map(|to| format!("dwcp send --to {to} --as {} {words} ...", self.name));
                again.into_iter().chain([abort]).collect()
            }
            (State::Receiving, _) if self.quiet_s >= Some(QUIET) => vec![
                format!("at its sender, if that has ended: dwcp transfers resume {id}"),
                "or wait: a sender that is gone is given up after a minute, and its transfer is parked".to_owned(),
            ],
            (State::Receiving, _) => vec!["Ctrl-C at its sender, or at this receiver".to_owned()],
            (State::Parked, _) => vec![format!("at its sender: dwcp transfers resume {id}"), abort],
            (State::HandingOver, _) => vec!["wait: it takes a moment while both ends run".to_owned()],
            (State::InDoubt, End::Source) => {
                let ask = format!("dwcp resolve {id} {words} --to HOST:PORT --identity FILE --trust FINGERPRINT");
                vec![if known { resume } else { ask }, fenced(id, &words)]
            }
            (State::InDoubt, End::Sink) => {
                let ask = format!("while `dwcp receive` runs here, at its sender: dwcp transfers resume {id}");
                vec![ask, fenced(id, &words)]
            }
            (State::Visible, _) => vec![
                format!("while `dwcp receive` runs here, at its sender: dwcp transfers resume {id}"),
                format!("if that never comes back: dwcp resolve {id} {words} --owner sink --fenced"),
            ],
            (State::HandedOver, _) => vec!["nothing: the image is its owner's".to_owned()],
        }
    }
}

/// Seconds without a write after which a sender that runs is no longer taken for granted. Its connection is found dead
/// after 10 s of silence, and an honest one stores groups of pages several times a second.
const QUIET: u64 = 10;

/// By the operator's word.
fn fenced(id: &str, words: &str) -> String {
    format!("if the other end never comes back: dwcp resolve {id} {words} --owner source|sink --fenced")
}

fn bytes(count: Option<u64>) -> String {
    units::bytes(count.unwrap_or(0))
}
