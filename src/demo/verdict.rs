//! What the demo found, for people and for programs.

use std::time::Duration;

use dwcp_core::flag::{FORCE_V1, is_forced_v1};
use serde::Serialize;

use super::DemoArgs;
use super::crash::Crash;
use super::downgrade::{Downgrade, Leg};
use super::message::{Figures, Owner, Verified};
use super::run::Ending;
use crate::exit::{Exit, Failure};
use crate::report::Report;

/// How the demo ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The guest moved while it was written to, and nothing is lost.
    Ok,
    /// An acknowledged write is gone.
    Lost,
    /// Too few rounds, or no page sent again: it proved nothing.
    NotExercised,
    /// The guest did not move; nothing is lost.
    Failed,
    /// The guest is written to faster than it can be moved; nothing is lost.
    NotConverged,
    /// Neither node may run the guest.
    InDoubt,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Lost => "lost",
            Self::NotExercised => "not-exercised",
            Self::Failed => "failed",
            Self::NotConverged => "not-converged",
            Self::InDoubt => "in-doubt",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Ok => Exit::Ok,
            Self::Lost | Self::Failed => Exit::Failed,
            Self::NotExercised => Exit::NotExercised,
            Self::NotConverged => Exit::NotConverged,
            Self::InDoubt => Exit::InDoubt,
        }
    }
}

/// All that is known at the end.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) ending: Ending,
    pub(super) sink: Option<Figures>,
    pub(super) verified: Option<Verified>,
    pub(super) crash: Option<Crash>,
    pub(super) downgrade: Option<Downgrade>,
}

/// Rounds below which a migration shows nothing that a copy of a stopped guest would not.
const MIN_ROUNDS: usize = 3;

impl Findings {
    fn verdict(&self, args: &DemoArgs) -> Verdict {
        // A crash after GIVE_UP leaves one word to be said: whoever says it has moved no pages.
        let asked = self.crash.as_ref().is_some_and(|crash| crash.flowing.is_none());
        let back_and_forth = self.downgrade.as_ref().is_some_and(|downgrade| downgrade.forward.is_some());
        let missed = args.crash.is_some() && self.crash.is_none() || args.downgrade_at.is_some() && !back_and_forth;
        // What a crash has to prove is proved by it.
        let least = if self.crash.is_some() { 1 } else { MIN_ROUNDS };
        let Ending { owner, converged, figures, .. } = &self.ending;
        let lost = self.verified.as_ref().is_some_and(|verified| verified.lost_writes > 0 || !verified.counters_kept);
        // A node that died has not told its root; that is no difference.
        let told = self.sink.as_ref().and_then(|sink| sink.root.as_ref()).zip(figures.root.as_ref());
        let roots_differ = told.is_some_and(|(sink, source)| sink != source);
        match owner {
            _ if lost => Verdict::Lost,
            Owner::InDoubt => Verdict::InDoubt,
            Owner::Source if !converged => Verdict::NotConverged,
            Owner::Source => Verdict::Failed,
            Owner::Sink if roots_differ => Verdict::Failed,
            Owner::Sink if missed => Verdict::NotExercised,
            Owner::Sink if asked => Verdict::Ok,
            Owner::Sink if figures.rounds.len() < least || figures.pages_resent == 0 => Verdict::NotExercised,
            Owner::Sink => Verdict::Ok,
        }
    }

    /// Plain bytes that were moved per second, over all rounds.
    fn speed(&self) -> f64 {
        let micros: u64 = self.ending.figures.rounds.iter().map(|round| round.micros).sum();
        share(self.ending.figures.bytes_read, micros)
    }
}

/// The last line of `--json`. Every field stands in every summary; null is what nobody knows.
#[derive(Debug, Default, Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    owner: Option<&'a str>,
    error: Option<&'a str>,
    advice: Option<&'a str>,
    lost_writes: Option<u64>,
    root_source: Option<&'a str>,
    root_sink: Option<&'a str>,
    rounds: Option<usize>,
    resent_pages: Option<u64>,
    bytes_guest: Option<u64>,
    bytes_read: Option<u64>,
    bytes_wire: Option<u64>,
    saved_pct: Option<f64>,
    mb_s: Option<f64>,
    downtime_ms: Option<f64>,
    over_budget: Option<bool>,
    client_gap_ms: Option<u64>,
    writes: Option<u64>,
    write_rate: Option<u64>,
    keys: Option<u64>,
    crash: Option<&'a str>,
    crash_at_pct: Option<u64>,
    restart_ms: Option<f64>,
    pages_again_ms: Option<f64>,
    away_writes: Option<u64>,
    away_gap_ms: Option<u64>,
    downgrade_at_pct: Option<u64>,
    reason: Option<&'a str>,
    last_v3_ms: Option<f64>,
    v1_settled_ms: Option<f64>,
    v3_settled_ms: Option<f64>,
    pages_disputed: Option<u64>,
}

/// Tells what was found and what to think of it.
pub(super) fn tell(args: &DemoArgs, report: &Report, findings: &Findings) -> Exit {
    let verdict = findings.verdict(args);
    report.event("summary", &summary(args, findings, verdict));
    report.say(&text(args, findings, verdict));
    verdict.exit()
}

/// Tells that somebody wanted it to end.
pub(super) fn interrupted(report: &Report) -> Exit {
    let exit = Exit::Interrupted;
    report.event("summary", &Summary { verdict: exit.word(), error: Some("interrupted"), ..Summary::default() });
    report.say("interrupted: all processes of the demo are gone, and so is its folder");
    exit
}

/// Tells why there is nothing to judge.
pub(super) fn unknown(report: &Report, failure: &Failure) -> Exit {
    report.trouble(failure);
    let (error, advice) = (Some(failure.what.as_str()), failure.advice.as_deref());
    report.event("summary", &Summary { verdict: failure.exit.word(), error, advice, ..Summary::default() });
    failure.exit
}

fn summary<'a>(args: &'a DemoArgs, findings: &'a Findings, verdict: Verdict) -> Summary<'a> {
    let Findings { ending, sink, verified, crash, downgrade } = findings;
    let (crash, downgrade) = (crash.as_ref(), downgrade.as_ref());
    let settled = |leg: &Leg| millis(leg.handed.settled_us);
    let figures = &ending.figures;
    let verified = verified.as_ref();
    Summary {
        verdict: verdict.as_str(),
        owner: Some(owner(ending.owner)),
        error: ending.error.as_deref(),
        advice: None,
        lost_writes: verified.map(|verified| verified.lost_writes),
        root_source: figures.root.as_deref(),
        root_sink: sink.as_ref().and_then(|sink| sink.root.as_deref()),
        rounds: Some(figures.rounds.len()),
        resent_pages: Some(figures.pages_resent),
        bytes_guest: Some(args.size),
        bytes_read: Some(figures.bytes_read),
        bytes_wire: Some(figures.bytes_wire),
        saved_pct: Some(rounded(figures.saved * 100.0)),
        mb_s: Some(rounded(findings.speed())),
        downtime_ms: figures.downtime_us.map(millis),
        over_budget: Some(over_budget(args, figures)),
        client_gap_ms: verified.map(|verified| verified.gap_ms),
        writes: verified.map(|verified| verified.writes),
        write_rate: verified.map(|verified| verified.rate),
        keys: verified.map(|verified| verified.keys),
        crash: crash.map(|crash| crash.victim.as_str()),
        crash_at_pct: crash.and_then(|crash| crash.at),
        restart_ms: crash.map(|crash| precise(crash.restart)),
        pages_again_ms: crash.and_then(|crash| crash.flowing).map(precise),
        away_writes: crash.and_then(|crash| crash.writes).or(downgrade.map(|downgrade| downgrade.writes)),
        away_gap_ms: crash.map(|crash| crash.gap_ms).or(downgrade.map(|downgrade| downgrade.gap_ms)),
        downgrade_at_pct: downgrade.map(|downgrade| downgrade.at),
        reason: downgrade.map(|_| args.reason.as_str()),
        last_v3_ms: downgrade.map(|downgrade| millis(downgrade.back.handed.last_extent_us)),
        v1_settled_ms: downgrade.map(|downgrade| settled(&downgrade.back)),
        v3_settled_ms: downgrade.and_then(|downgrade| downgrade.forward.as_ref()).map(settled),
        pages_disputed: downgrade.map(|downgrade| downgrade.pages_disputed),
    }
}

fn text(args: &DemoArgs, findings: &Findings, verdict: Verdict) -> String {
    let Findings { ending, sink, verified, crash, downgrade } = findings;
    let figures = &ending.figures;
    let mut lines = Vec::new();
    if !figures.rounds.is_empty() {
        lines.push("round      pages    on the wire         ms".to_owned());
    }
    for (number, round) in (1..).zip(&figures.rounds) {
        let wire = mib(round.wire_bytes);
        lines.push(format!("{number:>5} {:>10} {wire:>10.1} MiB {:>10.1}", round.pages, millis(round.micros)));
    }
    lines.push(String::new());
    lines.push(format!("guest          {:.0} MiB; client writes {}/s", mib(args.size), args.write_rate));
    lines.push(format!(
        "moved          {:.1} MiB read, {:.1} MiB on the wire, {:.1} % saved; {} pages sent again; {:.0} MB/s",
        mib(figures.bytes_read),
        mib(figures.bytes_wire),
        figures.saved * 100.0,
        figures.pages_resent,
        findings.speed(),
    ));
    lines.extend(crash.iter().flat_map(of_crash));
    lines.extend(downgrade.iter().flat_map(|downgrade| of_downgrade(args, downgrade)));
    if let Some(micros) = figures.downtime_us {
        let budget = args.downtime.as_millis();
        let limit = if over_budget(args, figures) { "ABOVE the budget of" } else { "budget" };
        let gap = verified.as_ref().map_or(0, |verified| verified.gap_ms);
        lines
            .push(format!("downtime       {:.1} ms ({limit} {budget} ms); the client waited {gap} ms", millis(micros)));
    }
    let none = "none".to_owned();
    lines.push(format!("root, source   {}", figures.root.as_ref().unwrap_or(&none)));
    lines.push(format!("root, sink     {}", sink.as_ref().and_then(|sink| sink.root.as_ref()).unwrap_or(&none)));
    if let Some(Verified { keys, writes, rate, .. }) = verified {
        lines.push(format!("client         {writes} writes acknowledged ({rate}/s), all {keys} keys read back"));
    }
    lines.push(String::new());
    lines.push(sentence(args, findings, verdict));
    lines.join("\n")
}

/// What the crash cost.
fn of_crash(crash: &Crash) -> [String; 2] {
    let Crash { victim, at, restart, flowing, writes, gap_ms, .. } = crash;
    let guest = writes.map_or("stood still until that was answered".to_owned(), |writes| {
        format!("ran on: {writes} writes acknowledged")
    });
    let at = at.map_or("the switch-over".to_owned(), |at| format!("{at} %"));
    let flowing = flowing.map_or_else(
        || "the guest was given up already, and one question was left".to_owned(),
        |after| format!("pages flowed again after {:.1} ms", precise(after)),
    );
    let node = victim.as_str();
    [
        format!(
            "crash          the {node}'s node was killed (-9) at {at}; there again after {:.1} ms; {flowing}",
            precise(*restart)
        ),
        format!("meanwhile      the guest {guest}; the client waited {gap_ms} ms at most"),
    ]
}

/// What going back and forward cost.
fn of_downgrade(args: &DemoArgs, downgrade: &Downgrade) -> Vec<String> {
    let Downgrade { at, back, forward, writes, gap_ms, .. } = downgrade;
    let zeros = if back.handed.restart { ", which threw away what version 3 had applied" } else { "" };
    let leg = |leg: &Leg| {
        format!(
            "{:.1} ms after the source saw the flag ({:.1} ms after it was written)",
            millis(leg.handed.settled_us),
            precise(leg.heard)
        )
    };
    let mut lines = vec![format!(
        "to version 1   at {at} %, reason {}: {}{zeros}; last extent of version 3 after {:.1} ms",
        args.reason.as_str(),
        leg(back),
        millis(back.handed.last_extent_us)
    )];
    lines.extend(forward.as_ref().map(|forward| format!("to version 3   {}", leg(forward))));
    lines.push(format!(
        "meanwhile      the guest ran on: {writes} writes acknowledged; the client waited {gap_ms} ms at most"
    ));
    lines
}

/// The verdict in one line.
fn sentence(args: &DemoArgs, findings: &Findings, verdict: Verdict) -> String {
    let error = findings.ending.error.as_deref().unwrap_or("the transfer ended");
    let place = owner(findings.ending.owner);
    let lost = findings.verified.as_ref().map_or(0, |verified| verified.lost_writes);
    let example = findings.verified.as_ref().and_then(|verified| verified.example.as_deref());
    match verdict {
        Verdict::Ok => "OK: the guest runs at the sink; nothing was lost".to_owned(),
        Verdict::Lost if lost == 0 => format!("LOST: the guest runs at the {place} without its counters"),
        Verdict::Lost => format!(
            "LOST: the guest runs at the {place}, and {lost} acknowledged writes are gone; {}",
            example.unwrap_or_default()
        ),
        Verdict::NotExercised if args.crash.is_some() && findings.crash.is_none() => {
            format!("NOT EXERCISED: nothing was lost, but the guest had moved before {}; lower --at", args.at)
        }
        Verdict::NotExercised if args.downgrade_at.is_some() && findings.ending.figures.never_v3() => {
            let why = if is_forced_v1() {
                format!("{FORCE_V1} is set here and its nodes obey it; unset it")
            } else {
                "its nodes did not agree on version 3".to_owned()
            };
            format!("NOT EXERCISED: nothing was lost, but the transfer never spoke version 3, so it could not go back: {why}")
        }
        Verdict::NotExercised if args.downgrade_at.is_some() && findings.downgrade.as_ref().is_none_or(|downgrade| downgrade.forward.is_none()) => {
            "NOT EXERCISED: nothing was lost, but the guest had moved before it went back and forth; lower --downgrade-at".to_owned()
        }
        Verdict::NotExercised => format!(
            "NOT EXERCISED: nothing was lost, but {} rounds with {} pages sent again prove little; raise --write-rate \
             or --size",
            findings.ending.figures.rounds.len(),
            findings.ending.figures.pages_resent,
        ),
        Verdict::Failed if findings.ending.owner == Owner::Source => {
            format!("FAILED: {error}; the guest runs at the source; nothing was lost")
        }
        Verdict::NotConverged => format!("NOT CONVERGED: {error}; the guest runs at the source; nothing was lost"),
        Verdict::InDoubt => format!("IN DOUBT: {error}; the guest stands still at both ends; its memory is intact"),
        Verdict::Failed => "FAILED: the roots of source and sink differ".to_owned(),
    }
}

fn owner(owner: Owner) -> &'static str {
    match owner {
        Owner::Source => "source",
        Owner::Sink => "sink",
        Owner::InDoubt => "in-doubt",
    }
}

fn over_budget(args: &DemoArgs, figures: &Figures) -> bool {
    figures.downtime_us.is_some_and(|micros| u128::from(micros) > args.downtime.as_micros())
}

/// Milliseconds to a tenth.
pub(super) fn millis(micros: u64) -> f64 {
    share(micros / 100, 10)
}

fn precise(duration: Duration) -> f64 {
    millis(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn mib(bytes: u64) -> f64 {
    share(bytes, 1 << 20)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[expect(clippy::as_conversions, reason = "a figure for people; 53 bits are plenty")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
