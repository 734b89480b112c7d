//! `--crash`: kills a node on the way, starts it again, and watches the migration go on by itself.
//!
//! The command does nothing else for it: the new node finds its records, the other node finds the new one.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;

use super::DemoArgs;
use super::child::{Said, Who};
use super::clock::now;
use super::message::{Figures, Order};
use super::run::{ANSWER_LIMIT, Cast, Seen, Watch};
use super::scene::Scene;
use crate::units::Percent;

/// Which node is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Victim {
    /// Node A, which has the guest
    Source,
    /// Node B, which gets it
    Sink,
}

impl Victim {
    fn who(self) -> Who {
        match self {
            Self::Source => Who::NodeA,
            Self::Sink => Who::NodeB,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// When the plug is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So much of the guest has been sent once.
    Share(Percent),
    /// The source has given up, the sink was told to run the guest and has not done so: the one moment
    /// at which only the records know who has it.
    SwitchOver,
}

impl FromStr for Moment {
    type Err = String;

    /// `60%`, `60`, or `switch-over`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "switch-over" {
            return Ok(Self::SwitchOver);
        }
        let share = format!("{}%", text.strip_suffix('%').unwrap_or(text)).parse();
        share.map(Self::Share).map_err(|_| format!("`{text}` is no moment; write 0% to 100%, or switch-over"))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => share.fmt(f),
            Self::SwitchOver => f.write_str("the switch-over"),
        }
    }
}

/// A crash, and what became of it.
#[derive(Debug)]
pub(super) struct Crash {
    pub(super) victim: Victim,
    /// Share of the first round that had been sent, in percent; none at the switch-over.
    pub(super) at: Option<u64>,
    /// What the source had told of the transfer.
    pub(super) before: Figures,
    /// From the kill until the new process was there.
    pub(super) restart: Duration,
    /// From the kill until the sink had pages again; none when the guest was given up already, and only a word was
    /// missing.
    pub(super) flowing: Option<Duration>,
    /// Writes that the guest acknowledged between kill and pages; none at the switch-over, where it stands still.
    pub(super) writes: Option<u64>,
    /// The longest wait for an acknowledgement meanwhile.
    pub(super) gap_ms: u64,
}

/// Bytes per second until a crash in the first round: fast enough for a demo, slow enough to be hit in its
/// middle.
pub(super) fn limit(args: &DemoArgs) -> Option<u64> {
    if args.at == Moment::SwitchOver && args.downgrade_at.is_none() {
        return None;
    }
    let half = args.size / 2;
    Some(args.bandwidth.map_or(half, |rate| rate.0.get().min(half)))
}

/// Pulls the plug when it is time. `None`: the transfer was over before, whatever way.
pub(super) async fn pull(
    (args, scene): (&DemoArgs, &Scene),
    watch: &mut Watch,
    cast: &mut Cast,
    say: &mpsc::Sender<Said>,
    limit: Duration,
) -> anyhow::Result<Option<Crash>> {
    let Some(victim) = args.crash else { return Ok(None) };
    let who = victim.who();
    let sent = |seen: &Seen| seen.last.as_ref().and_then(|figures| share(figures, args.size));
    let reached = |seen: &Seen| match args.at {
        Moment::Share(share) => sent(seen) >= Some(u64::from(share.number())),
        Moment::SwitchOver => seen.held,
    };
    if args.at == Moment::SwitchOver {
        // Now: a client whose guest stands still hears nothing.
        cast.client.order(Order::Mark).await?;
    }
    // A node may also die before by itself: then that is the crash.
    watch.until(limit, |seen| reached(seen) || seen.source.is_some() || !seen.gone.is_empty()).await?;
    if watch.seen.source.is_some() || !(reached(&watch.seen) || watch.seen.gone.contains(&who)) {
        return Ok(None);
    }
    let at = if watch.seen.held { None } else { sent(&watch.seen) };
    let before = watch.seen.last.clone().unwrap_or_default();
    if args.at != Moment::SwitchOver {
        cast.client.order(Order::Mark).await?;
    }
    let killed = now();
    cast.node(victim).kill().await;
    watch.until(ANSWER_LIMIT, |seen| seen.gone.contains(&who)).await?;
    let moment = at.map_or("the switch-over".to_owned(), |at| format!("{at} % of the first round"));
    tell(watch, &format!("{who} was killed at {moment}"), "crash", json!({"at_pct": at}), victim);
    watch.seen.forget(who);
    if watch.seen.held && victim == Victim::Source {
        // The guest may run at the sink, and who gave it up learns so by asking.
        cast.node_b.order(Order::Go).await?;
    }
    start(args, scene, watch, cast, say).await?;
    let restart = killed.elapsed();
    let (pid, ms) = (cast.node(victim).pid, millis(restart));
    tell(watch, &format!("{who} is there again"), "restarted", json!({"pid": pid, "ms": ms}), victim);
    let flowing = flowing(watch, victim, limit, killed).await?;
    let (writes, gap_ms) = mark(watch, cast).await?;
    let writes = at.map(|_| writes);
    Ok(Some(Crash { victim, at, before, restart, flowing, writes, gap_ms }))
}

/// Starts the killed node again, with what it had on disk, and nothing else.
async fn start(
    args: &DemoArgs,
    scene: &Scene,
    watch: &mut Watch,
    cast: &mut Cast,
    say: &mpsc::Sender<Said>,
) -> anyhow::Result<()> {
    let address = watch.seen.address.clone().unwrap_or_default();
    match args.crash {
        Some(Victim::Source) => {
            cast.node_a = scene.node_a(args, address, true, say).await?;
            watch.until_ready(&[Who::NodeA]).await?;
            cast.node_a.order(Order::Go).await
        }
        _ => {
            cast.node_b = scene.node_b(args, Some(address), say).await?;
            watch.until_ready(&[Who::NodeB]).await
        }
    }
}

/// Waits until pages are at the sink again, or the transfer is over.
async fn flowing(
    watch: &mut Watch,
    victim: Victim,
    limit: Duration,
    killed: Instant,
) -> anyhow::Result<Option<Duration>> {
    let anew = |seen: &Seen| victim == Victim::Source || seen.again;
    let flows = |seen: &Seen| anew(seen) && seen.last.as_ref().is_some_and(|figures| figures.pages_settled > 0);
    watch.until(limit, |seen| flows(seen) || seen.source.is_some() || !seen.gone.is_empty()).await?;
    if !flows(&watch.seen) {
        return Ok(None);
    }
    let after = killed.elapsed();
    tell(watch, "pages flow again", "flowing", json!({"ms": millis(after)}), victim);
    Ok(Some(after))
}

/// What the client wrote since the mark before the crash.
async fn mark(watch: &mut Watch, cast: &mut Cast) -> anyhow::Result<(u64, u64)> {
    cast.client.order(Order::Mark).await?;
    watch.until(ANSWER_LIMIT, |seen| seen.marked.len() == 2).await?;
    Ok(watch.seen.marked.last().copied().unwrap_or_default())
}

fn tell(watch: &Watch, text: &str, event: &str, mut fields: serde_json::Value, victim: Victim) {
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("node".into(), victim.as_str().into());
    }
    watch.report.say(text);
    watch.report.event(event, &fields);
}

/// How much of the first round the sink has, in percent, once it has begun.
pub(super) fn share(figures: &Figures, bytes: u64) -> Option<u64> {
    let first = figures.rounds.is_empty();
    match figures.phase.as_str() {
        "offered" => None,
        "copying" if first => Some((figures.pages_settled.saturating_mul(4096 * 100) / bytes.max(1)).min(99)),
        _ => Some(100),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_share_or_the_switch_over() {
        let share = |text: &str| match text.parse() {
            Ok(Moment::Share(share)) => Some(share.number()),
            _ => None,
        };
        assert_eq!((share("60"), share("100%"), share("0%")), (Some(60), Some(100), Some(0)));
        assert_eq!("switch-over".parse(), Ok(Moment::SwitchOver));
        for bad in ["", "%", "101", "-1%", "60%%", "half"] {
            assert!(bad.parse::<Moment>().unwrap_err().contains("switch-over"), "{bad}");
        }
    }
}
