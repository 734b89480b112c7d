//! The course of a run: start, fill, move, settle, verify.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::DemoArgs;
use super::child::{Child, Said, Who};
use super::clock::now;
use super::crash::{self, Victim};
use super::downgrade;
use super::message::{Event, Figures, Order, Owner, Verified};
use super::phases::Phases;
use super::scene::Scene;
use super::verdict::{self, Findings};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::report::Report;

/// To start a process takes milliseconds.
const START_LIMIT: Duration = Duration::from_secs(10);
/// To fill or read a store takes some 3 us a key; a debug build ten times that.
const STORE_LIMIT: Duration = Duration::from_secs(120);
/// On loopback a transfer takes a second or two; a guest that cannot be moved in this time will not
/// be moved.
const MOVE_LIMIT: Duration = Duration::from_secs(15);
/// A cancelled transfer, or the node of one that is over, answers within this.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The client goes on at the destination for so long before everything is read.
const SETTLE: Duration = Duration::from_secs(1);
/// Waiting messages of all processes; more make the processes wait.
const SAID_LIMIT: usize = 64;

pub(super) async fn run(args: &DemoArgs, report: &Report) -> anyhow::Result<Exit> {
    let (say, said) = mpsc::channel(SAID_LIMIT);
    let scene = Scene::set(args)?;
    let mut watch = Watch::new(said, report)?;
    let mut cast = Cast::start(args, &scene, &mut watch, &say).await?;
    let course = course((args, &scene), &mut watch, &mut cast, &say).await;
    watch.phases.end();
    cast.end().await;
    match course {
        Ok(findings) => Ok(verdict::tell(args, report, &findings)),
        Err(_) if watch.interrupted => Ok(verdict::interrupted(report)),
        Err(error) => Err(error),
    }
}

async fn course(
    (args, scene): (&DemoArgs, &Scene),
    watch: &mut Watch,
    cast: &mut Cast,
    say: &mpsc::Sender<Said>,
) -> anyhow::Result<Findings> {
    let filled = watch.until(STORE_LIMIT, |seen| seen.filled).await?;
    if !filled {
        bail!("the client has not filled the store in {} s", STORE_LIMIT.as_secs());
    }
    // A node that cannot be told anything is dead; that is heard next.
    let _ = cast.node_a.order(Order::Go).await;
    let at_rate = args.bandwidth.map_or(0, |rate| args.size / rate.0 * 3);
    let limit = MOVE_LIMIT + Duration::from_secs(at_rate);
    let crash = crash::pull((args, scene), watch, cast, say, limit).await?;
    let downgrade = downgrade::play((args, scene), watch, cast, limit).await?;
    let mut ending = transfer(scene, watch, cast, limit).await?;
    if let Some(crash) = crash.as_ref().filter(|_| ending.figures.rounds.is_empty()) {
        // A node that only asks has moved nothing: what its predecessor told still holds.
        ending.figures = crash.before.clone();
    }
    let verified = if ending.owner == Owner::InDoubt { None } else { Some(verify(watch, cast).await?) };
    let sink = watch.seen.sink.take().map(|over| over.figures);
    Ok(Findings { ending, sink, verified, crash, downgrade })
}

/// How the transfer ended, as its source says or, when that is dead, as its record does.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) owner: Owner,
    pub(super) error: Option<String>,
    pub(super) converged: bool,
    pub(super) figures: Figures,
}

async fn transfer(scene: &Scene, watch: &mut Watch, cast: &mut Cast, limit: Duration) -> anyhow::Result<Ending> {
    let over = |seen: &Seen| seen.source.is_some() || seen.gone.contains(&Who::NodeA);
    let in_time = watch.until(limit, over).await?;
    if !in_time {
        let _ = cast.node_a.order(Order::Cancel).await;
        watch.until(ANSWER_LIMIT, over).await?;
    }
    let mut ending = match watch.seen.source.take() {
        Some(ending) => ending,
        None => orphaned(scene, watch, cast).await?,
    };
    if ending.owner == Owner::Sink {
        // The root of the sink is what the sink says.
        let runs = |seen: &Seen| seen.sink.as_ref().is_some_and(|over| over.owner == Owner::Sink);
        watch.until(ANSWER_LIMIT, |seen| runs(seen) || seen.gone.contains(&Who::NodeB)).await?;
    } else if watch.seen.gone.contains(&Who::NodeB) {
        // What node A says of it, a refused connection or silence, is only what follows from it.
        let then = ending.error.map_or(String::new(), |error| format!("; {error}"));
        ending.error = Some(format!("{} died{then}", Who::NodeB));
    } else if !in_time && ending.owner == Owner::Source && !watch.seen.gone.contains(&Who::NodeA) {
        // Cancelled by us, for no reason but this.
        ending.converged = false;
        let rounds = ending.figures.rounds.len();
        ending.error = Some(format!("not moved within {} s, in {rounds} rounds", limit.as_secs()));
    }
    Ok(ending)
}

/// Node A is dead. Before GIVE_UP any doubt resolves to the source: then its guest runs there, and
/// if the node had paused it, somebody must let it go on. After GIVE_UP only the sink may run it.
async fn orphaned(scene: &Scene, watch: &mut Watch, cast: &mut Cast) -> anyhow::Result<Ending> {
    let failed = watch.seen.failed.take();
    let error = Some(failed.unwrap_or_else(|| format!("{} died", Who::NodeA)));
    let figures = watch.seen.last.clone().unwrap_or_default();
    let owner = if !scene.source_gave_up()? {
        cast.guest_a.order(Order::Run).await?;
        Owner::Source
    } else {
        watch.until(ANSWER_LIMIT, |seen| seen.sink.is_some()).await?;
        let runs = watch.seen.sink.as_ref().is_some_and(|over| over.owner == Owner::Sink);
        if runs { Owner::Sink } else { Owner::InDoubt }
    };
    Ok(Ending { owner, error, converged: true, figures })
}

async fn verify(watch: &mut Watch, cast: &mut Cast) -> anyhow::Result<Verified> {
    watch.until(SETTLE, |_| false).await?;
    cast.client.order(Order::Verify).await?;
    watch.until(STORE_LIMIT, |seen| seen.verified.is_some()).await?;
    watch.seen.verified.take().context("the client has not read the store in time")
}

/// All processes of a run.
#[derive(Debug)]
pub(super) struct Cast {
    guest_a: Child,
    guest_b: Child,
    pub(super) node_a: Child,
    pub(super) node_b: Child,
    pub(super) client: Child,
}

impl Cast {
    async fn start(
        args: &DemoArgs,
        scene: &Scene,
        watch: &mut Watch,
        say: &mpsc::Sender<Said>,
    ) -> anyhow::Result<Self> {
        let guest_a = scene.guest(Who::GuestAtSource, say).await?;
        let guest_b = scene.guest(Who::GuestAtSink, say).await?;
        watch.until_ready(&[Who::GuestAtSource, Who::GuestAtSink]).await?;
        let node_b = scene.node_b(args, None, say).await?;
        watch.until_ready(&[Who::NodeB]).await?;
        let address = watch.seen.address.clone().context("node B does not say where it listens")?;
        let node_a = scene.node_a(args, address, false, say).await?;
        let client = scene.client(args, say).await?;
        watch.until_ready(&[Who::NodeA, Who::Client]).await?;
        watch.report.event(
            "started",
            &json!({
                "pid_node_a": node_a.pid, "pid_node_b": node_b.pid, "pid_guest": guest_a.pid,
                "pid_guest_b": guest_b.pid, "pid_client": client.pid,
            }),
        );
        Ok(Self { guest_a, guest_b, node_a, node_b, client })
    }

    pub(super) fn node(&mut self, victim: Victim) -> &mut Child {
        match victim {
            Victim::Source => &mut self.node_a,
            Victim::Sink => &mut self.node_b,
        }
    }

    async fn end(self) {
        for child in [self.client, self.node_a, self.node_b, self.guest_a, self.guest_b] {
            child.end().await;
        }
    }
}

/// What has been heard so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    ready: Vec<Who>,
    pub(super) gone: Vec<Who>,
    pub(super) address: Option<String>,
    filled: bool,
    phase: String,
    rounds: usize,
    pub(super) last: Option<Figures>,
    /// Node B waits with RUN.
    pub(super) held: bool,
    /// Node A has begun again.
    pub(super) again: bool,
    pub(super) marked: Vec<(u64, u64)>,
    pub(super) source: Option<Ending>,
    sink: Option<Ending>,
    verified: Option<Verified>,
    failed: Option<String>,
}

impl Seen {
    /// A process that is gone will be started again.
    pub(super) fn forget(&mut self, who: Who) {
        self.gone.retain(|gone| *gone != who);
        self.ready.retain(|ready| *ready != who);
        self.failed = None;
        if who == Who::NodeA {
            self.last = None;
        }
    }
}

/// Listens to all processes, shows what they say, and remembers what matters.
#[derive(Debug)]
pub(super) struct Watch {
    said: mpsc::Receiver<Said>,
    interrupts: Interrupts,
    interrupted: bool,
    pub(super) seen: Seen,
    phases: Phases,
    pub(super) report: Report,
}

impl Watch {
    fn new(said: mpsc::Receiver<Said>, report: &Report) -> anyhow::Result<Self> {
        let interrupts = Interrupts::watch().map_err(|failure| anyhow!(failure.what))?;
        Ok(Self {
            said,
            interrupts,
            interrupted: false,
            seen: Seen::default(),
            phases: Phases::new(report),
            report: report.clone(),
        })
    }

    pub(super) async fn until_ready(&mut self, all: &[Who]) -> anyhow::Result<()> {
        let ready = |seen: &Seen| all.iter().all(|who| seen.ready.contains(who));
        let started =
            self.until(START_LIMIT, |seen| ready(seen) || all.iter().any(|who| seen.gone.contains(who))).await?;
        if let Some(who) = all.iter().find(|who| self.seen.gone.contains(who) && !self.seen.ready.contains(who)) {
            bail!("{}", self.seen.failed.take().unwrap_or_else(|| format!("{who} died at its start")));
        }
        if !started {
            bail!("not all processes of the demo have started in {} s", START_LIMIT.as_secs());
        }
        Ok(())
    }

    /// Listens until something holds (`true`) or the time is over.
    pub(super) async fn until(&mut self, limit: Duration, holds: impl Fn(&Seen) -> bool) -> anyhow::Result<bool> {
        let deadline = Instant::from_std(now() + limit);
        while !holds(&self.seen) {
            let said = tokio::select! {
                said = timeout_at(deadline, self.said.recv()) => said,
                () = self.interrupts.next() => {
                    self.interrupted = true;
                    bail!("interrupted");
                }
            };
            match said {
                Ok(Some((who, Some(event)))) => self.heard(who, event)?,
                Ok(Some((who, None))) => self.lost(who)?,
                Ok(None) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn heard(&mut self, who: Who, event: Event) -> anyhow::Result<()> {
        self.phases.show(&event);
        let seen = &mut self.seen;
        match event {
            Event::Ready { address } => {
                seen.ready.push(who);
                seen.address = seen.address.take().or(address);
            }
            Event::Filling { done, of } => seen.filled = done == of,
            Event::Moving { figures } if who == Who::NodeA => self.moved(*figures),
            Event::Over { owner, error, converged, figures } => {
                let ending = Ending { owner, error, converged, figures: *figures };
                if who == Who::NodeA {
                    self.moved(ending.figures.clone());
                    self.seen.source = Some(ending);
                } else {
                    seen.sink = Some(ending);
                }
            }
            Event::Marked { writes, gap_ms } => seen.marked.push((writes, gap_ms)),
            Event::Held => seen.held = true,
            Event::Again => {
                seen.again = true;
                seen.last = None;
            }
            Event::Verified(verified) => seen.verified = Some(verified),
            Event::Failed { text } if matches!(who, Who::NodeA | Who::NodeB) => {
                seen.failed.get_or_insert(format!("{who}: {text}"));
            }
            Event::Failed { text } => bail!("{who}: {text}"),
            Event::Moving { .. } | Event::Verifying { .. } | Event::Writing { .. } => {}
        }
        Ok(())
    }

    /// Tells what is new in the statistics of the source.
    fn moved(&mut self, figures: Figures) {
        let seen = &mut self.seen;
        if seen.phase != figures.phase {
            seen.phase.clone_from(&figures.phase);
            self.report.event("phase", &json!({"phase": seen.phase}));
        }
        for (number, round) in figures.rounds.iter().enumerate().skip(seen.rounds) {
            let (number, ms) = (number + 1, verdict::millis(round.micros));
            let line = json!({"round": number, "pages": round.pages, "bytes_wire": round.wire_bytes, "ms": ms});
            self.report.event("round", &line);
        }
        seen.rounds = figures.rounds.len();
        seen.last = Some(figures);
    }

    /// A process has ended. Nodes may: that is what the demo is about. So may the guest that moved
    /// away.
    fn lost(&mut self, who: Who) -> anyhow::Result<()> {
        self.seen.gone.push(who);
        let moved = self.seen.phase == "handing" || self.seen.phase == "ended";
        match who {
            Who::NodeA | Who::NodeB => Ok(()),
            Who::GuestAtSource if moved => Ok(()),
            Who::GuestAtSource | Who::GuestAtSink | Who::Client => bail!("{who} died"),
        }
    }
}
