//! Campaigns: `cargo run --release -p dwcp-sim -- --seeds 0..200000 [--bug NAME]`, or `-- --malformed 1000000`.
#![allow(clippy::as_conversions, reason = "a ratio for humans")]

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::process::ExitCode;

use dwcp_sim::deferral::{Cost, Pair, pair};
use dwcp_sim::disk::{Broken, Lie, Tried, run_seed as run_disk_seed, run_store_seed};
use dwcp_sim::{Planted, run_seed};

const USAGE: &str = "usage: dwcp-sim [--seeds FROM..TO] [--bug NAME] [--keep-going]
       dwcp-sim --crash-states COUNT [--from SEED]
       dwcp-sim --store-crash-states COUNT [--from SEED]
       dwcp-sim --deferral SEEDS
       dwcp-sim --malformed INPUTS [SEED]";

struct Campaign {
    seeds: Range<u64>,
    planted: Option<Planted>,
    keep_going: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((run_seed, count, from)) = disk_campaign(&words) {
        return crash_states(run_seed, count, from);
    }
    if let [first, count] = words.as_slice()
        && first == "--deferral"
        && let Ok(count) = count.parse()
    {
        return deferral(count);
    }
    if let [first, numbers @ ..] = words.as_slice()
        && first == "--malformed"
    {
        let numbers: Vec<u64> = numbers.iter().map_while(|word| word.parse().ok()).collect();
        return damaged(numbers.first().copied().unwrap_or(1_000_000), numbers.get(1).copied().unwrap_or(1));
    }
    let Some(campaign) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        for (_, name) in Planted::ALL {
            eprintln!("  --bug {name}");
        }
        return ExitCode::from(2);
    };
    if run(&campaign) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed of nodes over a disk.
type DiskSeed = fn(u64, Option<Lie>, &mut HashSet<u64>) -> Result<Tried, Box<Broken>>;

fn disk_campaign(words: &[String]) -> Option<(DiskSeed, u64, u64)> {
    let (flag, numbers) = words.split_first()?;
    let seed: DiskSeed = match flag.as_str() {
        "--crash-states" => run_disk_seed,
        "--store-crash-states" => run_store_seed,
        _ => return None,
    };
    match numbers {
        [count] => Some((seed, count.parse().ok()?, 0)),
        [count, from, first] if from == "--from" => Some((seed, count.parse().ok()?, first.parse().ok()?)),
        _ => None,
    }
}

/// Seeds until so many different states of a disk were tried.
fn crash_states(run_seed: DiskSeed, count: u64, from: u64) -> ExitCode {
    let (mut seen, mut tried, mut seed) = (HashSet::new(), Tried::default(), from);
    while tried.states < count {
        match run_seed(seed, None, &mut seen) {
            Ok(more) => {
                tried.states += more.states;
                tried.lives += more.lives;
                tried.steps += more.steps;
            }
            Err(broken) => {
                println!("{broken}");
                broken.trace.iter().for_each(|line| println!("  {line}"));
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
    }
    let Tried { states, lives, steps } = tried;
    println!(
        "seeds {from}..{seed}: {states} different crash states of {steps} steps in {lives} lives: 0 promises broken"
    );
    ExitCode::SUCCESS
}

/// One of the two runs of a pair.
type Way = fn(&Pair) -> Option<Cost>;

/// What it saves to leave hot pages for the pause.
fn deferral(seeds: u64) -> ExitCode {
    let mut pairs = Vec::new();
    for seed in 0..seeds {
        match pair(seed) {
            Ok(pair) => pairs.push(pair),
            Err(violation) => {
                println!("{violation}");
                return ExitCode::FAILURE;
            }
        }
    }
    let both: Vec<&Pair> = pairs.iter().filter(|pair| pair.with.is_some() && pair.without.is_some()).collect();
    println!("{seeds} guests with a hot spot behind a slow link, means of {} that came to the sink twice", both.len());
    println!("hot pages      switched over  in budget  MB on the wire   rounds  deferred  downtime ms");
    let ways: [(&str, Way); 2] = [("sent", |pair| pair.without), ("deferred", |pair| pair.with)];
    for (name, way) in ways {
        let ended = pairs.iter().filter(|pair| way(pair).is_some()).count();
        let fits = |pair: &&Pair| way(pair).is_some_and(|cost| cost.downtime <= pair.budget + pair.unknown);
        let mean = |figure: fn(Cost) -> u64| {
            both.iter().filter_map(|pair| way(pair)).map(figure).sum::<u64>() as f64 / both.len().max(1) as f64
        };
        println!(
            "{name:<14} {ended:>13}  {:>9}  {:>14.2}  {:>7.1}  {:>8.0}  {:>11.0}",
            pairs.iter().filter(fits).count(),
            mean(|cost| cost.wire_bytes) / 1e6,
            mean(|cost| cost.rounds),
            mean(|cost| cost.deferred),
            mean(|cost| cost.downtime.as_micros() as u64) / 1e3
        );
    }
    ExitCode::SUCCESS
}

/// A violation is a panic, and ends the process.
fn damaged(inputs: u64, seed: u64) -> ExitCode {
    let tally = dwcp_sim::malformed::malformed(inputs, seed);
    for (class, count) in &tally.refused {
        println!("{count:>9}  {class}");
    }
    println!(
        "{} malformed inputs of {} classes from seed {seed}: all refused by typed errors, 0 panics, 0 applied ({} more \
         inputs were sound or only a begin)",
        tally.inputs(),
        tally.refused.len(),
        tally.sound
    );
    let flips = dwcp_sim::malformed::bit_flips(inputs, seed);
    println!(
        "{inputs} bit flips inside the channel: {} refused, {} left the lane waiting, {} changed no page, 0 applied",
        flips.refused, flips.waits, flips.same
    );
    ExitCode::SUCCESS
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Campaign> {
    let mut campaign = Campaign { seeds: 0..2000, planted: None, keep_going: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let text = words.next()?;
                let (from, to) = text.split_once("..").unwrap_or((&text, ""));
                let from = from.parse().ok()?;
                let to = if to.is_empty() { from + 1 } else { to.parse().ok()? };
                campaign.seeds = from..to;
            }
            "--bug" => campaign.planted = Some(Planted::named(&words.next()?)?),
            "--keep-going" => campaign.keep_going = true,
            _ => return None,
        }
    }
    Some(campaign)
}

/// True when every property held.
fn run(campaign: &Campaign) -> bool {
    std::panic::set_hook(Box::new(|_| {}));
    #[expect(clippy::disallowed_methods, reason = "a campaign reports its own speed")]
    let started = std::time::Instant::now();
    let mut endings = BTreeMap::new();
    let mut failures: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut events, mut extents, mut done, mut longest) = (0, 0, 0_u64, (0, 0));
    let mut handovers = [0; 3];
    for seed in campaign.seeds.clone() {
        done += 1;
        match run_seed(seed, campaign.planted) {
            Ok(report) => {
                *endings.entry((report.ending, report.quiet)).or_insert(0_u64) += 1;
                events += report.events;
                extents += report.extents;
                let more = [report.handovers_begun, report.handovers, report.handovers_struck];
                handovers.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                longest = longest.max((report.events, seed));
            }
            Err(violation) => {
                let first = failures.is_empty();
                let kind: String = violation.what.chars().filter(|c| !c.is_ascii_digit()).take(150).collect();
                failures.entry(format!("{:?}: {kind}", violation.property)).or_insert((seed, 0)).1 += 1;
                if first && !campaign.keep_going {
                    println!("{violation}");
                }
                if !campaign.keep_going {
                    break;
                }
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    println!(
        "{done} seeds in {seconds:.1} s: {:.0} seeds/s, {events} events, {extents} extents applied",
        done as f64 / seconds
    );
    let [begun, ended, struck] = handovers;
    println!(
        "{begun} hand-overs begun, {ended} ended at the sink, {struck} struck in the middle by a cut, a stall or a crash"
    );
    println!("most events: {} (seed {})", longest.0, longest.1);
    for ((ending, quiet), count) in endings {
        println!("  {ending:?}{}: {count}", if quiet { " (nothing went wrong)" } else { "" });
    }
    for (property, (seed, count)) in &failures {
        println!("  VIOLATED {property}: {count}, first by seed {seed}");
    }
    failures.is_empty()
}
