//! `--downgrade-at`: switches version 3 off for both nodes while pages flow, and on again, and watches the transfer
//! follow by itself.
//!
//! The command does nothing else for it than an operator would: it writes the flag document.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dwcp_core::flag::{FlagDocument, FlagRule, FlagVersion, Flags, Percentage, Reason};
use serde_json::json;

use super::DemoArgs;
use super::clock::now;
use super::crash::{millis, share};
use super::message::{Figures, Handed, Order};
use super::run::{ANSWER_LIMIT, Cast, Seen, Watch};
use super::scene::Scene;

/// Pages that must flow as version 1 before it goes forward again: a twentieth of the guest.
const SOME: u64 = 20;

/// A roll-back and the way forward again, and what they cost.
#[derive(Debug)]
pub(super) struct Downgrade {
    /// Share of the first round that had been sent, in percent.
    pub(super) at: u64,
    pub(super) back: Leg,
    /// None if the guest had moved before.
    pub(super) forward: Option<Leg>,
    /// Writes that the guest acknowledged from the first change of the document to the end of the last hand-over.
    pub(super) writes: u64,
    /// The longest wait for an acknowledgement meanwhile.
    pub(super) gap_ms: u64,
    pub(super) pages_disputed: u64,
}

/// One change of the document.
#[derive(Debug)]
pub(super) struct Leg {
    /// From the change of the file until this command heard that the transfer had followed.
    pub(super) heard: Duration,
    /// What the source measured from the moment at which it saw the flag.
    pub(super) handed: Handed,
}

/// Writes the document as `dwcp flag set` does: whole, and in one step.
pub(super) fn write(path: &Path, version: u64, on: bool, reason: &Reason) -> anyhow::Result<()> {
    let percentage = Percentage::ALL;
    let v3 = FlagRule { enabled: on, percentage, reason: reason.clone(), ..FlagRule::off() };
    let version = FlagVersion::new(version).context("no version of a document")?;
    let document = FlagDocument { version, flags: Flags { v3, compression: None } };
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(document.render()?.as_bytes())?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Goes back and forth when it is time. `None`: the transfer was over before, whatever way.
pub(super) async fn play(
    (args, scene): (&DemoArgs, &Scene),
    watch: &mut Watch,
    cast: &mut Cast,
    limit: Duration,
) -> anyhow::Result<Option<Downgrade>> {
    let (Some(when), Some(flags)) = (args.downgrade_at, &scene.flags) else { return Ok(None) };
    let sent = |seen: &Seen| seen.last.as_ref().and_then(|figures| share(figures, args.size));
    let reached = |seen: &Seen| sent(seen) >= Some(u64::from(when.number()));
    watch.until(limit, |seen| reached(seen) || over(seen)).await?;
    if over(&watch.seen) {
        return Ok(None);
    }
    if watch.seen.last.as_ref().is_some_and(Figures::never_v3) {
        watch.report.say("the transfer speaks version 1 already, so the flag is left alone");
        let _ = cast.node_a.order(Order::Hurry).await;
        return Ok(None);
    }
    let at = sent(&watch.seen).unwrap_or_default();
    cast.client.order(Order::Mark).await?;
    let Some(back) = turn(args, flags, watch, 2, false, limit).await? else { return Ok(None) };
    let before = watch.seen.last.as_ref().map_or(0, |figures| figures.pages_settled);
    let some = args.size / 4096 / SOME;
    let flowed = |seen: &Seen| seen.last.as_ref().is_some_and(|figures| figures.pages_settled >= before + some);
    watch.until(limit, |seen| flowed(seen) || over(seen)).await?;
    let forward = if over(&watch.seen) { None } else { turn(args, flags, watch, 3, true, limit).await? };
    cast.client.order(Order::Mark).await?;
    watch.until(ANSWER_LIMIT, |seen| seen.marked.len() == 2).await?;
    let (writes, gap_ms) = watch.seen.marked.last().copied().unwrap_or_default();
    let _ = cast.node_a.order(Order::Hurry).await;
    let pages_disputed = watch.seen.last.as_ref().map_or(0, |figures| figures.pages_disputed);
    Ok(Some(Downgrade { at, back, forward, writes, gap_ms, pages_disputed }))
}

/// One change of the document, and the hand-over that follows from it.
async fn turn(
    args: &DemoArgs,
    flags: &Path,
    watch: &mut Watch,
    version: u64,
    on: bool,
    limit: Duration,
) -> anyhow::Result<Option<Leg>> {
    let done = |figures: &Figures| figures.handed.len();
    let before = watch.seen.last.as_ref().map_or(0, done);
    let written: Instant = now();
    write(flags, version, on, &args.reason)?;
    let word = if on { "on" } else { "off" };
    watch.report.say(&format!("version 3 is switched {word} for both nodes"));
    watch.report.event("flag", &json!({"version": version, "v3": on, "reason": args.reason.as_str()}));
    let followed = |seen: &Seen| seen.last.as_ref().map_or(0, done) > before;
    watch.until(limit, |seen| followed(seen) || over(seen)).await?;
    let last = watch.seen.last.as_ref().filter(|_| followed(&watch.seen));
    let Some(handed) = last.and_then(|figures| figures.handed.last().cloned()) else { return Ok(None) };
    let heard = written.elapsed();
    let (to, zeros) = (&handed.to, if handed.restart { " from zeros" } else { "" });
    let settled = handed.settled_us / 1000;
    watch.report.say(&format!("the transfer goes on as {to}{zeros}, {settled} ms after its source saw the flag"));
    let line = json!({"to": to, "restart": handed.restart, "settled_ms": settled, "heard_ms": millis(heard)});
    watch.report.event("handed-over", &line);
    Ok(Some(Leg { heard, handed }))
}

fn over(seen: &Seen) -> bool {
    seen.source.is_some() || !seen.gone.is_empty()
}
