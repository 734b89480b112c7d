pub(crate) mod cut_off;
pub(crate) mod doubt;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::Guest;
use dwcp_core::guest::{ImageSource, OldPages, Rounds};
use dwcp_core::net::{Endpoint, Offering, Records, Session, Transfer};
use dwcp_core::session::{Outcome, Owner, Phase, Progress, SessionError, ShadowFill, SourceConfig};
use dwcp_core::wire::{AbortReason, GuestKind, Name, TransferId};
use serde::Serialize;
use tokio::time::Instant;

use self::cut_off::{Promise, forget_old};
use crate::bars::Bars;
use crate::baseline::Keeper;
use crate::cli::SendArgs;
use crate::dual::{Handovers, dual};
use crate::exit::{Exit, Failure};
use crate::identity;
use crate::interrupt::Interrupts;
use crate::legacy;
use crate::pace::Pace;
use crate::receive::now;
use crate::report::{Figures, Report};
use crate::state;
use crate::statistics;
use crate::units;
use crate::words::Words;

/// An image at rest loses nothing while the receiver's disk stores it, so a slow disk is no reason
/// to end the transfer.
pub(crate) const STORE_LIMIT: Duration = Duration::from_secs(3600);

/// Bytes of a page.
const PAGE: u64 = 4096;

/// `dwcp send`.
pub(crate) async fn run(args: SendArgs, words: Option<Words>, report: &Report) -> Exit {
    let started = Instant::now();
    match doubt::settle(&args, report).await {
        Ok(None) => {}
        Ok(Some(exit)) => return exit,
        Err(failure) => {
            report.trouble(&failure);
            return summarise(&args, report, None, &Figures::default(), Some(&failure));
        }
    }
    let begun = match begin(&args, words.as_ref(), report).await {
        Ok(begun) => begun,
        Err(failure) => {
            report.trouble(&failure);
            return summarise(&args, report, None, &Figures::default(), Some(&failure));
        }
    };
    let Begun { endpoint, transfer, fresh, offering, image, mut session, mut interrupts, warm, keeper } = begun;
    let mut watch = Watch {
        report,
        name: args.name.to_string(),
        transfer: session.transfer().to_string(),
        limit: args.reconnect_limit,
        warm,
        promise: Promise::of(endpoint.records(), transfer.id),
    };
    let mut outcome = watch.until_over(&mut session, &mut interrupts).await;
    let mut restarts = Restarts::default();
    let mut earlier = Progress::default();
    while let Some(words) = comes_back(&outcome) {
        report.warn(words);
        let again = match restarts.count(session.progress().borrow().pages_held) {
            Ok(wait) => dial_again(&args, &image, &endpoint, &transfer, &mut interrupts, wait).await,
            Err(failure) => Err(failure),
        };
        earlier = together(&earlier, &session.progress().borrow());
        session = match again {
            Ok(session) => session,
            Err(failure) => {
                report.trouble(&failure);
                let figures = Figures::of(&earlier, started.elapsed());
                return summarise(&args, report, Some(&watch.transfer), &figures, Some(&failure));
            }
        };
        outcome = watch.until_over(&mut session, &mut interrupts).await;
    }
    let progress = together(&earlier, &session.progress().borrow());
    let exit = Exit::of(&outcome);
    if outcome.owner == Owner::Sink {
        image.forget();
        watch.promise.kept();
    }
    // Nothing of it was ever looked at: the receiver did not take it.
    let unwanted = outcome.owner == Owner::Source && progress.pages_read == 0 && progress.pages_held == 0;
    forget_unwanted(&endpoint, transfer.id, fresh && unwanted, offering, report);
    let figures = Figures::of(&progress, started.elapsed()).with_dictionary(args.dictionaries.used(&progress));
    let durable = progress.pages_durable.max(progress.pages_held) * PAGE;
    let failure = failure(&args, &watch.transfer, exit, &outcome, durable);
    match &failure {
        Some(failure) => report.trouble(failure),
        None => report.say(&format!("{} is at {}, verified\n{}", args.name, args.to, figures.lines())),
    }
    statistics::tell(&endpoint, statistics::End::Source, report);
    if let (Some(keeper), Owner::Sink) = (keeper, outcome.owner) {
        keeper.keep_unless(&watch.transfer, args.last_image(), progress.root, report, &mut interrupts).await;
    }
    summarise(&args, report, Some(&watch.transfer), &figures, failure.as_ref())
}

/// Two sessions of one transfer as if they were one: all that both looked at and sent, over the time of both.
fn together(earlier: &Progress, later: &Progress) -> Progress {
    let mut methods = earlier.methods;
    methods += later.methods;
    Progress {
        methods,
        pages_read: earlier.pages_read + later.pages_read,
        pages_resent: earlier.pages_resent + later.pages_resent,
        wire_bytes: earlier.wire_bytes + later.wire_bytes,
        rounds: [earlier.rounds.as_slice(), &later.rounds].concat(),
        ..later.clone()
    }
}

struct Begun {
    endpoint: Endpoint,
    transfer: Transfer,
    /// It was never offered before.
    fresh: bool,
    /// Until the end: there is no other sender of this name to this receiver.
    offering: Offering,
    image: Image,
    session: Session,
    interrupts: Interrupts,
    warm: Warm,
    /// Makes a baseline of what was sent.
    keeper: Option<Keeper>,
}

/// What was never taken need not be sent again with the same words: they would fail again.
fn forget_unwanted(endpoint: &Endpoint, id: TransferId, fresh: bool, offering: Offering, report: &Report) {
    drop(offering);
    if fresh && let Err(error) = endpoint.records().withdraw(id) {
        report.warn(&format!("warning: {error}; `dwcp transfers abort {id}` removes what is remembered of it"));
    }
}

/// What is sent, in as many sessions as it takes.
enum Image {
    File(Arc<ImageSource>),
    /// The first session begins with the first, all others send the last alone.
    Rounds(Vec<PathBuf>),
}

impl Image {
    fn open(args: &SendArgs, state_dir: &Path, report: &Report) -> Result<Self, Failure> {
        let Some(path) = &args.file else { return Ok(Self::Rounds(args.rounds.clone())) };
        let ledgers = state_dir.join("ledgers");
        let image = match ImageSource::open(path)?.with_ledger(&ledgers) {
            Ok(image) => image,
            Err(error) => {
                report.warn(&format!("warning: {error}; if this sender is killed, the next one reads all of it again"));
                ImageSource::open(path)?
            }
        };
        Ok(Self::File(Arc::new(image)))
    }

    /// What a session sends; `again` if it was not the first of its transfer.
    fn guest(&self, again: bool) -> Result<Arc<dyn Guest>, Failure> {
        Ok(match self {
            Self::File(image) => Arc::<ImageSource>::clone(image),
            Self::Rounds(paths) if again => Arc::new(Rounds::open(paths)?.from_the_last()),
            Self::Rounds(paths) => Arc::new(Rounds::open(paths)?),
        })
    }

    /// It is the receiver's.
    fn forget(&self) {
        if let Self::File(image) = self {
            image.forget_ledger();
        }
    }
}

async fn begin(args: &SendArgs, words: Option<&Words>, report: &Report) -> Result<Begun, Failure> {
    // What is wrong with the image is told before anything is made.
    check(args)?;
    let state_dir = state::folder(args.state_dir.clone())?;
    state::make(&state_dir)?;
    let mut endpoint = dual(identity::endpoint(&args.credentials)?.with_records(&state_dir)?, &args.flag)?;
    endpoint = args.dictionaries.of(endpoint)?;
    let keeper = Keeper::open(&args.keep, &args.baseline, report)?;
    let baselines = args.baseline.open()?;
    let warm = Warm { named: baselines.iter().map(|baseline| baseline.about().name.clone()).collect(), told: None };
    endpoint = endpoint.with_baselines(baselines.into_iter().map(|baseline| -> Arc<dyn OldPages> { baseline }));
    let mut transfer = Transfer::new(args.name.clone(), GuestKind::Image);
    let first = transfer.id;
    let key = offer_key(args)?;
    let (id, offering) = endpoint.records().offering(&key, transfer.id)?;
    let Some(offering) = offering else { return Err(under_way(args, &key, endpoint.records(), &state_dir)) };
    transfer.id = id;
    // Behind this one, which may be as old.
    forget_old(endpoint.records(), now(), report);
    if let Some(words) = words
        && let Err(failure) = words.remember(endpoint.records(), id)
    {
        report.warn(&format!("warning: {}; `dwcp transfers resume` will not know how to send it again", failure.what));
    }
    let mut interrupts = Interrupts::watch()?;
    let image = Image::open(args, &state_dir, report)?;
    let fresh = id == first;
    if !fresh && args.rounds.len() > 1 {
        report.say("this transfer was begun before: the last --round is sent, and none of those before it");
    }
    match dial(args, &image, !fresh, &endpoint, &transfer, &mut interrupts).await {
        Ok(session) => {
            legacy::spoke_v3(&args.to, &state_dir).await;
            Ok(Begun { endpoint, transfer, fresh, offering, image, session, interrupts, warm, keeper })
        }
        Err(failure) => {
            forget_unwanted(&endpoint, id, fresh, offering, report);
            Err(failure)
        }
    }
}

/// Another `dwcp send` of this node is at the same.
fn under_way(args: &SendArgs, key: &str, records: &Records, state_dir: &Path) -> Failure {
    let offers = records.offers().unwrap_or_default();
    let theirs = offers.iter().find(|offered| offered.busy && offered.key == key).map(|offered| offered.transfer);
    let (name, to) = (&args.name, &args.to);
    let which = theirs.map_or(String::new(), |transfer| format!(", as transfer {transfer}"));
    let show = theirs.map_or("list".to_owned(), |transfer| format!("show {transfer}"));
    Failure::new(Exit::Failed, format!("another `dwcp send` of this node is sending {name} to {to} just now{which}"))
        .advise(format!(
            "Wait for that one, or end it with Ctrl-C where it runs; see `dwcp transfers {show} --state-dir {}`.",
            state_dir.display()
        ))
}

/// A session that sends the image from its beginning; what the receiver holds of it does not travel.
async fn dial(
    args: &SendArgs,
    image: &Image,
    again: bool,
    endpoint: &Endpoint,
    transfer: &Transfer,
    interrupts: &mut Interrupts,
) -> Result<Session, Failure> {
    let guest = image.guest(again)?;
    let config = config(args, guest.layout().bytes());
    tokio::select! {
        session = endpoint.send(&args.to, transfer.clone(), guest, config) => Ok(session?),
        () = interrupts.next() => Err(interrupted()),
    }
}

/// What to say when the receiver was restarted, or says that it is about to be.
fn comes_back(outcome: &Outcome) -> Option<&'static str> {
    match &outcome.error {
        Some(SessionError::PeerRestarted) => Some("the receiver was started again; going on with what it still holds"),
        // spec: R-3
        Some(SessionError::PeerAborted { reason: AbortReason::Shutdown, .. }) if outcome.owner == Owner::Source => {
            Some("the receiver was stopped; waiting for it to be started again")
        }
        _ => None,
    }
}

/// Restarts of a receiver that brought nothing: one that dies of this very transfer would do so for ever.
#[derive(Debug, Default)]
struct Restarts {
    fruitless: u32,
    /// Pages that it held at most when it was begun anew.
    held: u64,
}

/// Restarts without another page that is durable at the receiver.
const MOST_RESTARTS: u32 = 10;
/// Wait before the receiver is dialled again, times the restarts that brought nothing.
const RESTART_WAIT: Duration = Duration::from_millis(100);
/// Between two tries to reach a receiver that is not there.
const DIAL_WAIT: Duration = Duration::from_millis(250);

impl Restarts {
    /// Counts one. How long to wait, or that it is enough.
    fn count(&mut self, held: u64) -> Result<Duration, Failure> {
        self.fruitless = if held > self.held { 0 } else { self.fruitless + 1 };
        self.held = self.held.max(held);
        if self.fruitless <= MOST_RESTARTS {
            return Ok(RESTART_WAIT * self.fruitless);
        }
        let what = format!("the receiver was restarted {MOST_RESTARTS} times, and stored not one more page");
        Err(Failure::new(Exit::Failed, what).advise(
            "The source is intact. Look in the receiver's log why it ends, mend that, and send again: what it holds \
             does not travel again.",
        ))
    }
}

/// As [`dial`], for as long as a lost connection may stay lost.
async fn dial_again(
    args: &SendArgs,
    image: &Image,
    endpoint: &Endpoint,
    transfer: &Transfer,
    interrupts: &mut Interrupts,
    mut wait: Duration,
) -> Result<Session, Failure> {
    let deadline = Instant::now() + args.reconnect_limit;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = interrupts.next() => return Err(interrupted()),
        }
        match dial(args, image, true, endpoint, transfer, interrupts).await {
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < deadline => wait = DIAL_WAIT,
            dialled => return dialled,
        }
    }
}

/// What the records call an image on its way to a receiver. Under another identity it is another's.
fn offer_key(args: &SendArgs) -> Result<String, Failure> {
    Ok(format!("{} {} {}", args.name, args.to, identity::fingerprint(&args.credentials)?))
}

/// The name and the receiver in an [`offer_key`]. `None`: it is none.
pub(crate) fn of_offer_key(key: &str) -> Option<(Name, String)> {
    let mut words = key.split(' ');
    let (name, to) = (words.next()?, words.next()?);
    Some((Name::new(name).ok()?, units::host_port(to).ok()?))
}

fn check(args: &SendArgs) -> Result<(), Failure> {
    match &args.file {
        Some(path) => drop(ImageSource::open(path)?),
        None => drop(Rounds::open(&args.rounds)?),
    }
    Ok(())
}

fn config(args: &SendArgs, guest_bytes: u64) -> SourceConfig {
    SourceConfig {
        lanes: args.lanes.get(),
        downtime_budget: args.downtime,
        pause_limit: STORE_LIMIT,
        reconnect_limit: args.reconnect_limit,
        effort: args.effort.policy(),
        // One image is sent once: nothing could be a base.
        shadow_bytes: if args.rounds.len() > 1 { args.shadow.of(guest_bytes) } else { 0 },
        shadow_fill: ShadowFill::First,
        bandwidth: args.bandwidth.map(|rate| rate.0),
        ..SourceConfig::default()
    }
}

fn interrupted() -> Failure {
    Failure::new(Exit::Interrupted, "interrupted while no connection was there")
        .advise("The source is intact; start it again.")
}

/// The baselines that are offered, by name, and which of them it was told that both ends have.
struct Warm {
    named: Vec<Name>,
    told: Option<Option<u8>>,
}

#[derive(Serialize)]
struct FromBaseline<'a> {
    transfer: &'a str,
    name: &'a str,
    /// Null: the receiver has none of them.
    baseline: Option<&'a str>,
}

/// What is told while a transfer runs.
struct Watch<'a> {
    report: &'a Report,
    warm: Warm,
    promise: Promise,
    /// How long to wait for the last word.
    limit: Duration,
    name: String,
    transfer: String,
}

#[derive(Serialize)]
struct Started<'a> {
    transfer: &'a str,
    name: &'a str,
    bytes: u64,
}

/// A progress line.
#[derive(Serialize)]
pub(crate) struct Step<'a> {
    transfer: &'a str,
    phase: String,
    /// Only a source counts rounds, and what is left of one.
    round: Option<usize>,
    pages_left: Option<u64>,
    bytes_wire: u64,
    /// Bytes that the receiver has on its disk, whatever happens to it.
    bytes_durable: u64,
    /// Of the guest, since the last line: at the source acknowledged ones, zeros and what the sink had included; at the sink
    /// those that arrived.
    mb_s: u64,
    lanes: u16,
    reconnects: u64,
    /// What is spoken now: v3 or v1.
    version: String,
    handovers: u64,
}

impl<'a> Step<'a> {
    /// At so many guest bytes a second.
    pub(crate) fn of(transfer: &'a str, progress: &Progress, rate: u64) -> Self {
        Self {
            transfer,
            phase: format!("{:?}", progress.phase).to_lowercase(),
            round: Some(progress.rounds.len() + 1),
            pages_left: Some(progress.pages_left),
            bytes_wire: progress.wire_bytes,
            bytes_durable: progress.pages_durable * 4096,
            mb_s: rate / 1_000_000,
            lanes: progress.lanes,
            reconnects: progress.reconnects,
            version: progress.framing.to_string(),
            handovers: progress.handovers,
        }
    }
}

impl<'a> Step<'a> {
    /// What a sink sees of it.
    pub(crate) fn at_sink(transfer: &'a str, progress: &Progress, rate: u64) -> Self {
        Self { round: None, pages_left: None, ..Self::of(transfer, progress, rate) }
    }
}

impl Watch<'_> {
    /// Which baseline both ends have: once, and again when a receiver that was started anew has another one, or none.
    fn tell_baseline(&mut self, progress: &Progress) {
        let told = self.warm.told.replace(progress.baseline);
        let looked = progress.pages_read + progress.pages_same > 0;
        // An offer that came to nothing says nothing of baselines.
        let unknown = progress.phase == Phase::Offered || progress.phase == Phase::Ended && !looked;
        if told == Some(progress.baseline) || self.warm.named.is_empty() || unknown {
            self.warm.told = told;
            return;
        }
        let name = |number: u8| self.warm.named.get(usize::from(number)).map(Name::as_str);
        let baseline = progress.baseline.and_then(name);
        match (baseline, told.flatten().and_then(name)) {
            (Some(baseline), _) => {
                self.report.say(&format!("{}: only what changed since baseline {baseline} travels", self.name));
            }
            (None, None) => {
                self.report.say("note: the receiver uses none of the baselines that are named here; all pages travel");
            }
            (None, Some(lost)) => {
                self.report
                    .say(&format!("note: the receiver has baseline {lost} no more; what it laid down of it counts"));
            }
        }
        self.report.event("baseline", &FromBaseline { transfer: &self.transfer, name: &self.name, baseline });
    }

    async fn until_over(&mut self, session: &mut Session, interrupts: &mut Interrupts) -> Outcome {
        let mut progress = session.progress();
        let mut bars = Bars::new(&self.report.bars, self.name.as_str());
        let bytes = progress.borrow().guest_bytes;
        self.report.event("started", &Started { transfer: &self.transfer, name: &self.name, bytes });
        let mut pace = Pace::since(Instant::now());
        let mut handovers = Handovers::default();
        let mut interrupted = false;
        // Since when the receiver has the last word, and was not heard to say it.
        let mut handing = None;
        loop {
            tokio::select! {
                outcome = session.outcome() => {
                    bars.end();
                    let now = progress.borrow().clone();
                    self.tell_baseline(&now);
                    return outcome;
                }
                Ok(()) = progress.changed() => {
                    let now = progress.borrow_and_update().clone();
                    self.promise.note(now.phase);
                    let due = pace.due(Instant::now(), now.pages_settled);
                    bars.source(&now, pace.rate());
                    self.tell_baseline(&now);
                    handovers.tell(self.report, &self.transfer, &now);
                    handing = handing.or_else(|| (now.phase == Phase::Handing).then(Instant::now));
                    if let Some(rate) = due {
                        self.report.event("progress", &Step::of(&self.transfer, &now, rate));
                    }
                }
                () = tokio::time::sleep_until(handing.unwrap_or_else(Instant::now) + self.limit), if handing.is_some() && !interrupted => {
                    interrupted = true;
                    let (name, limit) = (&self.name, self.limit.as_secs());
                    self.report.warn(&format!("the receiver has not said for {limit} s that it has {name}; no longer waiting"));
                    session.cancel();
                }
                () = interrupts.next() => {
                    if interrupted {
                        bars.end();
                        return left(&progress.borrow());
                    }
                    interrupted = true;
                    self.report.warn("cancelling; once more to leave at once");
                    session.cancel();
                }
            }
        }
    }
}

/// Leaving without waiting for anybody. The record on disk says the same.
fn left(progress: &Progress) -> Outcome {
    let owner = if progress.phase == Phase::Handing { Owner::InDoubt } else { Owner::Source };
    Outcome { owner, error: Some(SessionError::Cancelled) }
}

/// The last line of `--json`. Every field stands in every summary; null is what nobody knows.
#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    transfer: Option<&'a str>,
    name: &'a str,
    #[serde(flatten)]
    figures: &'a Figures,
    error: Option<&'a str>,
    advice: Option<&'a str>,
}

fn summarise(
    args: &SendArgs,
    report: &Report,
    transfer: Option<&str>,
    figures: &Figures,
    failure: Option<&Failure>,
) -> Exit {
    let exit = failure.map_or(Exit::Ok, |failure| failure.exit);
    let summary = Summary {
        verdict: exit.word(),
        transfer,
        name: args.name.as_str(),
        figures,
        error: failure.map(|failure| failure.what.as_str()),
        advice: failure.and_then(|failure| failure.advice.as_deref()),
    };
    report.event("summary", &summary);
    exit
}

/// What to say of an end that is none of success, of so many bytes that the receiver said are on its disk.
fn failure(args: &SendArgs, transfer: &str, exit: Exit, outcome: &Outcome, durable: u64) -> Option<Failure> {
    let error = outcome.error.as_ref().map(ToString::to_string);
    Some(match exit {
        Exit::Ok => return None,
        Exit::InDoubt => {
            let why = error.unwrap_or_else(|| "no answer".into());
            let state_dir = state::folder(args.state_dir.clone()).unwrap_or_default();
            Failure::new(
                exit,
                format!("{} is in doubt: it was given up here, and nobody said that it is there ({why})", args.name),
            )
            .advise(format!(
                "Do not use it here before you know. Ask again with: {} --to {} --identity {} --trust ...",
                resolve_command(transfer, &state_dir),
                args.to,
                args.credentials.identity().display()
            ))
        }
        _ => {
            let failure = Failure::new(exit, error.unwrap_or_else(|| "the transfer ended without a reason".into()));
            match exit {
                Exit::Interrupted | Exit::Unreachable if durable > 0 => {
                    failure.advise(kept(&args.to, transfer, durable, &args.state_dir))
                }
                Exit::Interrupted => {
                    failure.advise("The source is intact, and nothing became visible at the receiver.")
                }
                Exit::NotConverged => failure.advise("The source is intact. Allow more --downtime or --bandwidth."),
                Exit::Unreachable => {
                    failure.advise("The source is intact. Check the link and the receiver, and send it again.")
                }
                // What to do is said with the page; nothing is wrong with what travelled.
                Exit::Integrity if is_of_baseline(outcome) => failure.advise(
                    "The source is intact, and nothing became visible at the receiver. Check the disk of its baselines.",
                ),
                Exit::Integrity => failure
                    .advise("The source is intact. Check memory and disks of both hosts before you send it again."),
                _ => failure.advise("The source is intact, and nothing became visible at the receiver."),
            }
        }
    })
}

fn is_of_baseline(outcome: &Outcome) -> bool {
    matches!(outcome.error, Some(SessionError::PeerAborted { reason: AbortReason::Baseline, .. }))
}

/// What of it stays at the receiver, and how it goes on, or away.
fn kept(to: &str, transfer: &str, durable: u64, state_dir: &Option<PathBuf>) -> String {
    let state_dir = state::folder(state_dir.clone()).unwrap_or_default();
    format!(
        "The source is intact, and nothing became visible at the receiver. {to} keeps {} for a day, which do not travel again: \
         send it with the same words, or run: dwcp transfers resume {transfer} --state-dir {dir} (to give it up: abort \
         instead of resume, here and at the receiver)",
        units::bytes(durable),
        dir = state_dir.display()
    )
}

fn resolve_command(transfer: &str, state_dir: &Path) -> String {
    let space = if transfer.is_empty() { "" } else { " " };
    format!("dwcp resolve{space}{transfer} --state-dir {}", state_dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_a_restart_counts() {
        let first = Progress { pages_read: 600, wire_bytes: 4096 * 300, pages_resent: 1, ..Progress::default() };
        let second = Progress { pages_held: 500, pages_read: 500, wire_bytes: 4096 * 250, ..Progress::default() };
        assert_eq!(together(&Progress::default(), &first), first);
        let both = together(&first, &second);
        assert_eq!((both.pages_read, both.wire_bytes, both.pages_resent, both.pages_held), (1100, 4096 * 550, 1, 500));
        assert!((both.saved() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn restarts_that_bring_pages_are_not_counted() {
        let mut restarts = Restarts::default();
        for held in 1..100 {
            assert!(restarts.count(held).is_ok());
        }
        let fruitless = (0..20).take_while(|_| restarts.count(99).is_ok()).count();
        assert_eq!(fruitless, 10);
        assert!(restarts.count(98).is_err(), "fewer than before is nothing new");
    }
}
