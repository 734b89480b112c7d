//! `dwcp flag`: looks at the document that says which nodes speak version 3, and changes it.
//!
//! ```text
//!  show   document ──decide(node)──> on or off, and why
//!  set    lock the folder, document ──edit──> next version ──> file beside, fsync, rename, fsync the folder
//! ```

mod args;
mod edit;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_core::flag::{
    Exact, FORCE_V1, Flag, FlagDocument, FlagRule, FlagVersion, MAX_STALE, NodeName, Reason, Remembered, Roster, Why,
    Word, bucket, is_forced_v1, remembered,
};
use serde::Serialize;

pub(crate) use self::args::{FlagArgs, FlagCommand};
use self::args::{SetArgs, ShowArgs};
use self::edit::Change;
use self::store::{Found, Store};
use crate::exit::{Exit, Failure};
use crate::place::Place;
use crate::report::Report;

/// `dwcp flag`.
pub(crate) fn run(args: FlagArgs, report: &Report) -> Result<Exit, Failure> {
    match args.command {
        FlagCommand::Show(args) => show(&args, report),
        FlagCommand::Set(args) => set(&args, report),
    }
}

// --- show

/// A flag at a node.
#[derive(Serialize)]
struct Shown<'a> {
    flag: &'a str,
    node: &'a str,
    on: bool,
    why: &'a str,
    bucket: u32,
    threshold: u32,
    percentage: String,
    enabled: bool,
    kill: bool,
    reason: &'a str,
    updated_by: &'a str,
    /// Of the roster, if there is one.
    nodes_on: Option<usize>,
}

#[derive(Serialize)]
struct ShownSummary<'a> {
    verdict: &'a str,
    file: String,
    node: &'a str,
    version: u64,
    /// What the node speaks by this document and what it obeyed before, and `DWCP_FORCE_V1` as it is here.
    runs: &'a str,
    compression: bool,
    forced_v1: bool,
    written_s_ago: Option<u64>,
    nodes: Option<usize>,
    /// The highest version that the node obeyed before, by --dir or --state-dir.
    obeyed: Option<u64>,
    /// The node refuses the document, because it obeyed a later one.
    older: bool,
}

fn show(args: &ShowArgs, report: &Report) -> Result<Exit, Failure> {
    let node = args.node.clone().map_or_else(this_host, Ok)?;
    let roster = args.roster.as_deref().map(read_roster).transpose()?;
    let (found, age) = store::read(&args.file)?;
    let shown = args.file.display();
    let document = match found {
        Found::Document(document) => *document,
        Found::Nothing => {
            let advice =
                "Check --file. Nodes that were given this path run v1, or will when what they know is too old.";
            return Err(Failure::new(Exit::Failed, format!("there is no {shown}")).advise(advice));
        }
        Found::Damaged(why) => return Err(damaged(&args.file, &why)),
    };
    for flag in Flag::ALL {
        show_flag(flag, &document, &node, roster.as_ref(), report);
    }
    let written = age.map_or_else(|| "in the future, by this clock".to_owned(), |age| format!("{} ago", ago(age)));
    report.say(&format!("{shown}: version {}, written {written}", document.version));
    let obeyed = obeyed_before(args.dir.as_deref(), args.state_dir.as_ref())?;
    let older = obeyed.as_ref().is_some_and(|obeyed| obeyed.version > document.version);
    if let Some(obeyed) = obeyed.as_ref().filter(|_| older) {
        report.warn(&format!(
            "warning: this node obeyed version {} before, and refuses version {} as older: while it runs it keeps what it \
             knows for {} minutes, then runs v1; started anew it runs v1. `dwcp flag set` writes a version that it obeys",
            obeyed.version,
            document.version,
            MAX_STALE.as_secs() / 60
        ));
    }
    let forced = is_forced_v1();
    if forced {
        report
            .warn(&format!("note: {FORCE_V1} is set here; a node started from this shell runs v1 whatever is written"));
    }
    let on = |flag| document.decide(flag, &node).on;
    let summary = ShownSummary {
        verdict: Exit::Ok.word(),
        file: shown.to_string(),
        node: node.as_str(),
        version: document.version.value(),
        runs: if on(Flag::V3) && !forced && !older { "v3" } else { "v1" },
        compression: on(Flag::Compression),
        forced_v1: forced,
        written_s_ago: age.map(|age| age.as_secs()),
        nodes: roster.map(|roster| roster.nodes().len()),
        obeyed: obeyed.map(|obeyed| obeyed.version.value()),
        older,
    };
    report.event("summary", &summary);
    Ok(Exit::Ok)
}

/// What a node of this host remembers, if one is named.
fn obeyed_before(dir: Option<&Path>, state_dir: Option<&PathBuf>) -> Result<Option<Remembered>, Failure> {
    if dir.is_none() && state_dir.is_none() {
        return Ok(None);
    }
    let place = Place::named(dir, state_dir.cloned())?;
    let Some(folder) = place.records()?.folder() else { return Ok(None) };
    remembered(folder.as_ref()).map_err(|error| {
        Failure::new(Exit::Failed, format!("{}: {error}", place.records_folder().display()))
            .advise("No node starts with it; look at that file.")
    })
}

fn show_flag(flag: Flag, document: &FlagDocument, node: &NodeName, roster: Option<&Roster>, report: &Report) {
    let decision = document.decide(flag, node);
    let rule = edit::rule_of(document, flag);
    let nodes_on = roster.map(|roster| roster.nodes().filter(|node| document.decide(flag, node).on).count());
    let on = if decision.on { "on " } else { "off" };
    report.say(&format!("{:<20} {on}  at {node}, because {}", flag.key(), decision.why));
    let bucket = bucket(flag.key(), rule.salt.as_str(), node);
    if decision.why != Why::Absent {
        let by = if rule.updated_by.as_str().is_empty() { "nobody said who" } else { rule.updated_by.as_str() };
        report.say(&format!(
            "{:<20}      {} % (threshold {}, this node is in bucket {bucket}); changed by {by}, reason {}",
            "",
            rule.percentage,
            rule.effective_threshold(),
            rule.reason
        ));
    }
    if let (Some(on), Some(roster)) = (nodes_on, roster) {
        report.say(&format!("{:<20}      on for {on} of the {} nodes of the roster", "", roster.nodes().len()));
    }
    let shown = Shown {
        flag: flag.key(),
        node: node.as_str(),
        on: decision.on,
        why: decision.why.word(),
        bucket,
        threshold: rule.effective_threshold().value(),
        percentage: rule.percentage.to_string(),
        enabled: rule.enabled,
        kill: rule.kill,
        reason: rule.reason.as_str(),
        updated_by: rule.updated_by.as_str(),
        nodes_on,
    };
    report.event("flag", &shown);
}

/// Roughly, for people.
fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn damaged(path: &Path, why: &str) -> Failure {
    let minutes = MAX_STALE.as_secs() / 60;
    Failure::new(Exit::Failed, format!("{}: {why}", path.display())).advise(format!(
        "Nodes keep what they know for {minutes} minutes, then run v1; those started since run v1. Write it anew: \
         `dwcp flag set --create ...`, naming the lists and the share again. Its version is the clock's; where a clock was \
         ahead once, or a larger one was chosen, add --dir of a receiver here, or --at-version."
    ))
}

pub(crate) fn this_host() -> Result<NodeName, Failure> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").map_err(|error| error.to_string());
    let name = name.and_then(|name| NodeName::new(name.trim()).map_err(|error| error.to_string()));
    name.map_err(|why| {
        Failure::new(Exit::Failed, format!("the name of this host is not known: {why}"))
            .advise("Name a node with --node.")
    })
}

fn read_roster(path: &Path) -> Result<Roster, Failure> {
    let failed = |why: String| {
        let what = format!("the roster {} cannot be used: {why}", path.display());
        Failure::new(Exit::Failed, what).advise("A roster has one name a line, each node once; # begins a remark.")
    };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    Roster::parse(&text).map_err(|error| failed(error.to_string()))
}

// --- set

#[derive(Serialize)]
struct SetSummary<'a> {
    verdict: &'a str,
    file: String,
    flag: &'a str,
    version_before: Option<u64>,
    version: u64,
    /// False: it was a dry run.
    written: bool,
    changes: &'a [Change],
    reason: &'a str,
    updated_by: &'a str,
    roster: Option<Moves>,
}

/// Which nodes of a roster come and go.
#[derive(Serialize)]
struct Moves {
    nodes: usize,
    on: usize,
    joins: Vec<String>,
    leaves: Vec<String>,
}

fn set(args: &SetArgs, report: &Report) -> Result<Exit, Failure> {
    let flag = Flag::from(args.flag);
    args.check()?;
    let roster = args.roster.as_deref().map(read_roster).transpose()?;
    let store = Store::open(&args.file)?;
    let found = store.read()?;
    let fresh = !matches!(found, Found::Document(_));
    let least = above_obeyed(args, report)?;
    let (mut document, before) = begin(found, args, least)?;
    let old = edit::rule_of(&document, flag);
    let by = args.by.clone().unwrap_or_else(user);
    let (rule, exact) = edit::edited(&old, args, roster.as_ref(), by);
    let changes = edit::changes(&old, &rule);
    let moves = roster.as_ref().map(|roster| Moves::of(roster, flag, &old, &rule));
    remark(args, &changes, &rule, exact, report);
    match flag {
        Flag::V3 => document.flags.v3 = rule.clone(),
        Flag::Compression => document.flags.compression = Some(rule.clone()),
    }
    if fresh && flag != Flag::V3 {
        report.warn(&format!("note: a new document has {} off: every node that looks at it runs v1", Flag::V3));
    }
    let version = next(&document, before, least, &args.file)?;
    document.version = version;
    if !args.dry_run {
        store.replace(&document)?;
    }
    tell(args, &changes, &rule, moves.as_ref(), report);
    report.say(&outcome(args, fresh || !changes.is_empty(), version));
    let summary = SetSummary {
        verdict: Exit::Ok.word(),
        file: args.file.display().to_string(),
        flag: flag.key(),
        version_before: before.map(FlagVersion::value),
        version: version.value(),
        written: !args.dry_run,
        changes: &changes,
        reason: rule.reason.as_str(),
        updated_by: rule.updated_by.as_str(),
        roster: moves,
    };
    report.event("summary", &summary);
    Ok(Exit::Ok)
}

/// What became of the document. One that said so already may have been put back, or edited without a new version: nodes obey
/// what is written now.
fn outcome(args: &SetArgs, changed: bool, version: FlagVersion) -> String {
    let file = args.file.display();
    match (args.dry_run, changed) {
        (false, true) => format!("{file}: version {version} is written"),
        (false, false) => {
            format!("{file}: it said so already; version {version} is written, so that every node obeys it")
        }
        (true, true) => format!("{file}: would become version {version}; nothing is written"),
        (true, false) => format!("{file}: it says so already, and would become version {version}; nothing is written"),
    }
}

/// The least version of what is written: the clock's, and above what a node that is named obeyed.
fn above_obeyed(args: &SetArgs, report: &Report) -> Result<FlagVersion, Failure> {
    let obeyed = match obeyed_before(args.dir.as_deref(), args.state_dir.as_ref()) {
        Ok(Some(obeyed)) => obeyed.version,
        Ok(None) => return Ok(store::now()),
        // A kill switch must not fail because a node cannot tell.
        Err(failure) => {
            report.warn(&format!(
                "warning: what this node obeyed is not known, so the version is the clock's: {}",
                failure.what
            ));
            return Ok(store::now());
        }
    };
    let above = obeyed
        .next()
        .ok_or_else(|| at_the_end(format!("this node obeyed version {obeyed}, after which there is none")))?;
    Ok(store::now().max(above))
}

fn at_the_end(what: String) -> Failure {
    Failure::new(Exit::Failed, what).advise(format!(
        "{FORCE_V1}=1 and a restart take a node to version 1 at once. To count anew: stop the nodes that look at the document, \
         remove `flag-version` beside the records of each (`.dwcp` in --dir, or --state-dir), remove the document, write it \
         with --create, and start them again."
    ))
}

/// What an operator may not expect of an edit: a share that the roster does not allow, a reason and a threshold that stay.
fn remark(args: &SetArgs, changes: &[Change], rule: &FlagRule, exact: Option<Exact>, report: &Report) {
    if let Some(exact) = exact.filter(|exact| exact.nodes != exact.wanted) {
        report.warn(&format!(
            "warning: {} of the roster's nodes would have been that share, {} have it: by the lists, or for nodes in one \
             bucket (another --salt parts them)",
            exact.wanted, exact.nodes
        ));
    }
    if Flag::from(args.flag) == Flag::Compression && args.reason.as_ref().is_some_and(Reason::discards_applied) {
        report.warn(&format!(
            "note: this reason makes no transfer begin from zero: {} stays as it is; to distrust version 3, kill that",
            Flag::V3
        ));
    } else if rule.reason.discards_applied() && args.reason.is_none() && !changes.is_empty() {
        report.warn(&format!(
            "note: the reason stays {}: transfers that leave version 3 begin from zero; --reason operator takes that back",
            rule.reason
        ));
    }
    if rule.threshold.is_some() && args.percentage.is_some() && !args.exact {
        report.warn(
            "note: the threshold that --exact chose for another share stays, so that no node comes or goes against your word; \
             for exactly this share use --exact --roster FILE",
        );
    }
}

/// The document to change, and the version that it has. A new one has none yet: nodes may have obeyed one that was lost, and
/// refuse what is older, so it is numbered by the clock.
fn begin(found: Found, args: &SetArgs, now: FlagVersion) -> Result<(FlagDocument, Option<FlagVersion>), Failure> {
    let shown = args.file.display();
    match found {
        Found::Document(_) if args.at_version.is_some() => {
            let advice = "Leave --at-version out: the next version is taken.";
            Err(Failure::new(Exit::Failed, format!("{shown} is a good document already")).advise(advice))
        }
        Found::Document(document) => {
            let version = document.version;
            Ok((*document, Some(version)))
        }
        Found::Nothing | Found::Damaged(_) if args.create => Ok((edit::blank(args.at_version.unwrap_or(now)), None)),
        Found::Nothing => {
            let what = format!("there is no {shown}, so no node looks at it");
            Err(Failure::new(Exit::Failed, what).advise("Check --file, or make a new document with --create."))
        }
        Found::Damaged(why) => Err(damaged(&args.file, &why)),
    }
}

/// The version of what is written: at least `least`, which is the clock's and above what a named node obeyed, whatever old
/// document was put back meanwhile; and above the one before, whatever the clock says.
fn next(
    document: &FlagDocument,
    before: Option<FlagVersion>,
    least: FlagVersion,
    path: &Path,
) -> Result<FlagVersion, Failure> {
    if before.is_none() {
        return Ok(document.version);
    }
    document.version.next().map(|next| next.max(least)).ok_or_else(|| {
        at_the_end(format!("{} has version {}, after which there is none", path.display(), document.version))
    })
}

fn tell(args: &SetArgs, changes: &[Change], rule: &FlagRule, moves: Option<&Moves>, report: &Report) {
    let flag = Flag::from(args.flag);
    for change in changes {
        report.say(&format!("{flag}: {}", change.sentence()));
    }
    let wants_on = args.enable
        || args.revive
        || !args.include.is_empty()
        || args.percentage.is_some_and(|percentage| percentage.thousandths() > 0);
    if let Some(why) = edit::nobody(rule).filter(|_| wants_on) {
        report.warn(&format!("note: no node has {flag}: {why}"));
    }
    if let Some(Moves { nodes, on, joins, leaves }) = moves {
        report.say(&format!("on for {on} of the {nodes} nodes of the roster"));
        for (what, names) in [("joins", joins), ("leaves", leaves)] {
            if !names.is_empty() {
                report.say(&format!("  {what}: {}", names.join(" ")));
            }
        }
    }
}

impl Moves {
    fn of(roster: &Roster, flag: Flag, old: &FlagRule, new: &FlagRule) -> Self {
        let (mut on, mut joins, mut leaves) = (0, Vec::new(), Vec::new());
        for node in roster.nodes() {
            let (was, is) = (old.decide(flag, node).on, new.decide(flag, node).on);
            on += usize::from(is);
            match (was, is) {
                (false, true) => joins.push(node.to_string()),
                (true, false) => leaves.push(node.to_string()),
                _ => {}
            }
        }
        Self { nodes: roster.nodes().len(), on, joins, leaves }
    }
}

/// Who is at the keyboard, also behind `sudo`. It is a remark for people, no proof.
fn user() -> Word {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let mut words = names.filter(|name| !name.is_empty()).filter_map(|name| Word::new(&name).ok());
    words.next().or_else(|| Word::new("unknown").ok()).unwrap_or_default()
}
