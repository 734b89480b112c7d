//! A thousand transfers and a thousand idle sessions between two nodes.
//!
//! ```text
//! cargo bench --bench many
//! options: --active 1000  --idle 1000  --size 16m  --slow 10  --json
//! ```
//!
//! Two processes on loopback. The guests are made of numbers and have no memory of their own, so what a node takes is
//! what the library takes. `--slow` of the transfers are limited to 256 KiB a second and must slow no other. Control
//! latency is that of the pings on lane 0 of all sessions, the idle ones included, while all but the slow are under way.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks and stops at its own bugs"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dwcp_core::net::{Endpoint, Identity, Incoming, Session, Transfer, Trust};
use dwcp_core::session::{Histogram, Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{Guest, GuestError, Layout, RegionId};
use tokio::task::JoinSet;

const IDENTITY: &str = "DWCP_MANY_IDENTITY";

/// Pages that can be told from their numbers, and are forgotten when they arrive.
struct Numbers {
    layout: Layout,
    seed: u64,
    written: AtomicU64,
}

impl Numbers {
    fn new(bytes: u64, seed: u64) -> Self {
        Self { layout: Layout::new(&[bytes]).unwrap(), seed, written: AtomicU64::new(0) }
    }
}

impl Guest for Numbers {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, _: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        for (page, bytes) in (first..).zip(into.chunks_exact_mut(4096)) {
            let mut state = (self.seed << 32) | (u64::from(page) + 1);
            for word in bytes.chunks_exact_mut(16) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word[..8].copy_from_slice(&state.to_le_bytes());
                word[8..].fill(0);
            }
        }
        Ok(())
    }

    fn write(&self, _: RegionId, _: u32, from: &[u8]) -> Result<(), GuestError> {
        self.written.fetch_add(from.len() as u64 / 4096, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Options {
    active: u64,
    idle: u64,
    slow: u64,
    size: u64,
    json: bool,
    role: Option<String>,
    to: String,
}

impl Options {
    fn parse() -> Self {
        let mut options =
            Self { active: 1000, idle: 1000, slow: 10, size: 16 << 20, json: false, role: None, to: String::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--active" => options.active = value().parse().expect("a number"),
                "--idle" => options.idle = value().parse().expect("a number"),
                "--slow" => options.slow = value().parse().expect("a number"),
                "--size" => options.size = value().trim_end_matches('m').parse::<u64>().expect("MiB") << 20,
                "--role" => options.role = Some(value()),
                "--to" => options.to = value(),
                "--json" => options.json = true,
                _ => {}
            }
        }
        options
    }

    fn words(&self) -> Vec<String> {
        let size = format!("{}m", self.size >> 20);
        [("--active", self.active.to_string()), ("--idle", self.idle.to_string()), ("--slow", self.slow.to_string())]
            .into_iter()
            .chain([("--size", size), ("--to", self.to.clone())])
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}

fn main() {
    let options = Options::parse();
    match options.role.as_deref() {
        Some("sink") => runtime().block_on(sink(&options)),
        Some("source") => runtime().block_on(source(&options)),
        Some(other) => panic!("unknown role {other}"),
        None => compare(&options),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn endpoint() -> Endpoint {
    let identity = Identity::from_pem(&std::env::var(IDENTITY).unwrap()).unwrap();
    let trusted = identity.fingerprint();
    Endpoint::new(&identity, &Trust::fingerprints([trusted])).unwrap().with_congestion("cubic")
}

/// Megabytes that this process has at most taken, and takes now.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    (line("VmHWM"), line("VmRSS"))
}

/// What a node says at the end, one number a word.
fn report(failed: u64, seconds: f64, control: Option<Duration>) {
    let (peak, now) = memory();
    let control = control.map_or(0.0, |control| control.as_secs_f64() * 1e3);
    println!("done {failed} {seconds:.3} {peak} {now} {control:.3}");
}

fn is_idle(name: &Name) -> bool {
    name.as_str().starts_with("idle")
}

async fn sink(options: &Options) {
    let mut listener = endpoint().listen("127.0.0.1:0").await.unwrap();
    println!("listening {}", listener.local_addr());
    let (mut running, mut idle) = (JoinSet::new(), Vec::new());
    let (mut ended, mut failed) = (0, 0);
    let started = Instant::now();
    while ended < options.active {
        tokio::select! {
            incoming = listener.accept() => {
                let Some(Incoming::Offer(offer)) = incoming else { panic!("no offer") };
                let still = is_idle(&offer.offer().name);
                let guest = Arc::new(Numbers::new(offer.offer().layout.bytes(), 0));
                let session = offer.accept(guest, SinkConfig::default());
                if still { idle.push(session) } else { running.spawn(outcome(session)); }
            }
            Some(done) = running.join_next() => {
                ended += 1;
                failed += u64::from(!done.unwrap().0);
            }
        }
    }
    report(failed, started.elapsed().as_secs_f64(), None);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

async fn outcome(mut session: Session) -> (bool, Histogram) {
    let outcome = session.outcome().await;
    if outcome.owner != Owner::Sink || outcome.error.is_some() {
        eprintln!("{outcome:?}");
    }
    let control = session.progress().borrow().control_latency.clone();
    (outcome.owner == Owner::Sink && outcome.error.is_none(), control)
}

async fn source(options: &Options) {
    let endpoint = endpoint();
    let mut idle = Vec::new();
    let begin = |name: String, seed, rate: Option<u64>| {
        let (endpoint, to, size) = (endpoint.clone(), options.to.clone(), options.size);
        async move {
            let transfer = Transfer::new(Name::new(&name).unwrap(), GuestKind::Live);
            let bandwidth = rate.and_then(NonZeroU64::new);
            let config = SourceConfig { lanes: 1, shadow_bytes: 0, bandwidth, ..SourceConfig::default() };
            endpoint.send(&to, transfer, Arc::new(Numbers::new(size, seed)), config).await
        }
    };
    for number in 0..options.idle {
        // So slow that nothing is done but to be there.
        idle.push(begin(format!("idle{number}"), number, Some(1)).await.unwrap());
    }
    println!("idle {}", memory().1);
    let started = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..options.active {
        let slow = number < options.slow;
        let session = begin(format!("vm{number}"), number, slow.then_some(256 << 10));
        running.spawn(async move {
            let session = match session.await {
                Ok(session) => session,
                Err(error) => {
                    eprintln!("{error}");
                    return (false, slow, Histogram::default());
                }
            };
            let (good, control) = outcome(session).await;
            (good, slow, control)
        });
    }
    let (mut failed, mut seconds, mut fast) = (0, 0.0, options.active - options.slow);
    // Pings of the time in which all was busy: a second later the idle ones would have it too good.
    let mut pings = Pings::default();
    idle.iter().for_each(|session| pings.count(&session.progress().borrow().control_latency, -1));
    while let Some(done) = running.join_next().await {
        let (good, slow, control) = done.unwrap();
        failed += u64::from(!good);
        if slow {
            continue;
        }
        pings.count(&control, 1);
        fast -= 1;
        if fast == 0 {
            seconds = started.elapsed().as_secs_f64();
            idle.iter().for_each(|session| pings.count(&session.progress().borrow().control_latency, 1));
        }
    }
    failed += idle.iter().filter(|session| session.progress().borrow().lanes == 0).count() as u64;
    report(failed, seconds, pings.quantile(0.95));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Pings of many sessions, by the bounds of their buckets.
#[derive(Default)]
struct Pings(BTreeMap<Duration, i64>);

impl Pings {
    fn count(&mut self, histogram: &Histogram, times: i64) {
        let mut before = 0;
        for (bound, below) in histogram.cumulative() {
            *self.0.entry(bound.unwrap_or(Duration::MAX)).or_default() += (below as i64 - before) * times;
            before = below as i64;
        }
    }

    fn quantile(&self, share: f64) -> Option<Duration> {
        let all: i64 = self.0.values().sum();
        let mut below = 0;
        self.0.iter().find_map(|(bound, count)| {
            below += count;
            (below as f64 >= all as f64 * share).then_some(*bound)
        })
    }
}

struct Node {
    child: Child,
    lines: BufReader<ChildStdout>,
    _stdin: ChildStdin,
}

impl Node {
    fn start(role: &str, options: &Options, identity: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", role])
            .args(options.words())
            .env(IDENTITY, identity)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, stdin) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        Self { child, lines, _stdin: stdin }
    }

    fn line(&mut self, word: &str) -> Vec<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some(word), "{line:?}");
        words.collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compare(options: &Options) {
    let identity = Identity::generate("many").unwrap().to_pem();
    let mut sink = Node::start("sink", options, &identity);
    let options = Options { to: sink.line("listening").remove(0), ..options.clone() };
    let mut source = Node::start("source", &options, &identity);
    let idle = source.line("idle").remove(0);
    let (at_source, at_sink) = (source.line("done"), sink.line("done"));
    let number = |words: &[String], index: usize| words[index].parse::<f64>().unwrap();
    let gigabytes = ((options.active - options.slow) * options.size) as f64 / 1e9;
    let seconds = number(&at_source, 1);
    let failed = number(&at_source, 0) + number(&at_sink, 0);
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(
            out,
            "{{\"active\":{},\"idle\":{},\"failed\":{failed},\"seconds\":{seconds},\"gb_s\":{:.3},\
             \"source_mib\":{},\"sink_mib\":{},\"control_p95_ms\":{}}}",
            options.active,
            options.idle,
            gigabytes / seconds,
            at_source[2],
            at_sink[2],
            at_source[4]
        )
        .unwrap();
        return;
    }
    let Options { active, slow, idle: sessions, .. } = options;
    writeln!(
        out,
        "{active} transfers of {} MiB ({slow} of them slow) and {sessions} idle sessions:",
        options.size >> 20
    )
    .unwrap();
    writeln!(out, "  failed             {failed}").unwrap();
    writeln!(out, "  all but the slow   {seconds:.1} s, {:.0} MB/s", gigabytes * 1e3 / seconds).unwrap();
    writeln!(out, "  memory, source     {} MiB at most ({idle} MiB with the idle ones alone)", at_source[2]).unwrap();
    writeln!(out, "  memory, sink       {} MiB at most", at_sink[2]).unwrap();
    writeln!(out, "  control p95        {} ms at most, of all pings while it was busy", at_source[4]).unwrap();
}
