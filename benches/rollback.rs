//! Two hundred live transfers at once, taken off version 3 and put back again and again.
//!
//! ```text
//! cargo bench --bench rollback
//! options: --transfers 200  --rollbacks 100  --size 8m  --distrust 10  --json
//! ```
//!
//! Two nodes in one process on loopback, TLS between them. Every guest is written to all the while by threads that log
//! what they wrote; at the end all are switched over, and what arrived is compared with the logs. One roll-back of
//! `--distrust` has the reason integrity and begins again from zeros. The clock of `settled` starts when the flag is set
//! and stops when the session says that it goes on as version 1; that of `last v3` starts when the session hears of it.
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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_core::flag::{FlagDocument, FlagRule, FlagVersion, Flags, InProcess, NodeName, Percentage, Reason};
use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Session, Transfer, Trust};
use dwcp_core::session::{OnStall, Owner, Progress, SinkConfig, SourceConfig};
use dwcp_core::wire::{Framing, GuestKind, Name};
use dwcp_core::{DirtyMap, Guest, GuestError, Layout, Pending, RegionId};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::wire::Tier;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Writes a second to all guests together.
const WRITES: u64 = 20_000;
const REGION: RegionId = RegionId(0);

struct Options {
    transfers: u64,
    rollbacks: u64,
    size: u64,
    distrust: u64,
    json: bool,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { transfers: 200, rollbacks: 100, size: 8 << 20, distrust: 10, json: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--transfers" => options.transfers = value().parse().expect("a number"),
                "--rollbacks" => options.rollbacks = value().parse().expect("a number"),
                "--size" => options.size = value().trim_end_matches('m').parse::<u64>().expect("MiB") << 20,
                "--distrust" => options.distrust = value().parse().expect("a number"),
                "--json" => options.json = true,
                _ => {}
            }
        }
        options
    }
}

/// A guest that is written to, and what was written: the last word of each place.
struct Arena {
    memory: Memory,
    /// Held for a write, and for a pause: after that nothing is written.
    log: Mutex<Vec<(u64, u64)>>,
    /// Harvests say that more is certain to come, so that nothing is switched over yet.
    goes_on: AtomicBool,
}

impl Arena {
    fn new(bytes: u64, seed: u64) -> Self {
        let memory = Memory::new(Layout::new(&[bytes]).unwrap());
        let mut state = seed | 1;
        for at in (0..bytes).step_by(8) {
            state = step(state);
            // Half of it compresses.
            memory.poke(REGION, at, if at & 8 == 0 { state } else { at });
        }
        memory.start();
        Self { memory, log: Mutex::default(), goes_on: AtomicBool::new(true) }
    }

    fn write(&self, state: u64) {
        let mut log = self.log.lock().unwrap();
        if self.memory.is_running() {
            let at = state % (self.memory.layout().bytes() / 8) * 8;
            self.memory.poke(REGION, at, state);
            log.push((at, state));
        }
    }
}

fn step(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

impl Guest for Arena {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.memory.read(region, first, into)
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        self.memory.harvest(dirty)?;
        Ok(if self.goes_on.load(Ordering::Relaxed) { Pending::More } else { Pending::Unknown })
    }

    fn pause(&self) -> Result<(), GuestError> {
        let _log = self.log.lock().unwrap();
        self.memory.pause()
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.memory.resume()
    }
}

struct Moving {
    arena: Arc<Arena>,
    sending: Session,
    progress: watch::Receiver<Progress>,
}

/// What was measured of one roll-back of one transfer.
#[derive(Clone, Copy)]
struct Leg {
    last_v3: Duration,
    settled: Duration,
    distrusted: bool,
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(&options));
}

async fn run(options: &Options) {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let flags = Arc::new(InProcess::new(NodeName::new("node-1").unwrap(), Duration::from_secs(600)));
    let mut version = 0;
    let mut tell = |on: bool, reason: &Reason| {
        version += 1;
        let (percentage, reason) = (Percentage::ALL, reason.clone());
        let v3 = FlagRule { enabled: on, percentage, reason, ..FlagRule::off() };
        let version = FlagVersion::new(version).unwrap();
        flags.set(FlagDocument { version, flags: Flags { v3, compression: None } }).unwrap();
    };
    tell(true, &Reason::Operator);
    let records = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let node = |own: &Identity, other: &Identity, records: &tempfile::TempDir| {
        let endpoint = Endpoint::new(own, &Trust::fingerprints([other.fingerprint()])).unwrap();
        let endpoint = endpoint.with_records(records.path()).unwrap().with_congestion("cubic");
        endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local })).with_flags(Arc::<InProcess>::clone(&flags))
    };
    let (from, to) = (node(&a, &b, &records[0]), node(&b, &a, &records[1]));
    let (mut moving, receiving, _listener) = begin(options, &from, &to).await;
    let over = Arc::new(AtomicBool::new(false));
    let writers = write(&moving, &over);

    let mut legs = Vec::new();
    for number in 1..=options.rollbacks {
        let distrusted = options.distrust > 0 && number % options.distrust == 0;
        let reason = if distrusted { Reason::Integrity } else { Reason::Performance };
        let before = Instant::now();
        tell(false, &reason);
        legs.extend(all(&mut moving, number * 2 - 1, Framing::Messages, before, distrusted).await);
        let before = Instant::now();
        tell(true, &Reason::Operator);
        all(&mut moving, number * 2, Framing::Extents, before, false).await;
        if !options.json {
            let worst = legs.iter().rev().take(moving.len()).map(|leg| leg.settled).max().unwrap_or_default();
            eprintln!("roll-back {number}: all settled within {:.0} ms", millis(worst));
        }
    }
    moving.iter().for_each(|moving| moving.arena.goes_on.store(false, Ordering::Relaxed));
    let (lost, roots_equal) = finish(moving, receiving).await;
    over.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    tell_all(options, &legs, lost, roots_equal);
}

type Receiving = JoinSet<(String, Session, Arc<Memory>)>;

/// All transfers, under way.
async fn begin(
    options: &Options,
    from: &Endpoint,
    to: &Endpoint,
) -> (Vec<Moving>, Receiving, Arc<tokio::sync::Mutex<dwcp_core::net::Listener>>) {
    let listener = to.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();
    let listener = Arc::new(tokio::sync::Mutex::new(listener));
    let (mut moving, mut receiving) = (Vec::new(), JoinSet::new());
    for number in 0..options.transfers {
        let arena = Arc::new(Arena::new(options.size, number + 1));
        let transfer = Transfer::new(Name::new(&format!("vm{number}")).unwrap(), GuestKind::Live);
        let config = SourceConfig { lanes: 2, on_stall: OnStall::Force, ..SourceConfig::default() };
        let sending = from.send(&address, transfer, Arc::<Arena>::clone(&arena), config);
        let accept = async {
            let Some(Incoming::Offer(offer)) = listener.lock().await.accept().await else { panic!("no offer") };
            let name = offer.offer().name.to_string();
            let copy = Arc::new(Memory::new(offer.offer().layout.clone()));
            (name, offer.accept(Arc::<Memory>::clone(&copy), SinkConfig::default()), copy)
        };
        let (sending, accepted) = tokio::join!(sending, accept);
        let sending = sending.unwrap();
        receiving.spawn(async move { accepted });
        moving.push(Moving { arena, progress: sending.progress(), sending });
    }
    (moving, receiving, listener)
}

/// Threads that write to all guests.
fn write(moving: &[Moving], over: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<()>> {
    let arenas: Vec<_> = moving.iter().map(|moving| Arc::clone(&moving.arena)).collect();
    let over = Arc::clone(over);
    let written = AtomicU64::new(0);
    vec![std::thread::spawn(move || {
        let (mut state, began) = (7, Instant::now());
        while !over.load(Ordering::Relaxed) {
            state = step(state);
            arenas[(state >> 40) as usize % arenas.len()].write(state >> 3);
            let done = written.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_micros(done * 1_000_000 / WRITES);
            if let Some(wait) = due.checked_sub(began.elapsed()) {
                std::thread::sleep(wait);
            }
        }
    })]
}

/// What one that is late went through.
fn tell_late(settled: Duration, progress: &Progress) {
    if settled > Duration::from_secs(1) {
        let Progress { lanes_lost, reconnects, phase, .. } = *progress;
        let by_itself = progress.handover_log.last().unwrap().settled;
        eprintln!(
            "late: {:.0} ms, {:.0} by its own clock; {phase:?}, lanes lost {lanes_lost}, reconnects {reconnects}",
            millis(settled),
            millis(by_itself)
        );
    }
}

/// Waits until all have made so many hand-overs.
async fn all(moving: &mut [Moving], handovers: u64, to: Framing, before: Instant, distrusted: bool) -> Vec<Leg> {
    let waits = moving.iter_mut().map(|moving| async {
        let progress = moving.progress.wait_for(|progress| progress.handovers >= handovers);
        let progress = tokio::time::timeout(Duration::from_secs(60), progress).await;
        let settled = before.elapsed();
        let last_v3 = match progress.expect("a hand-over takes more than a minute") {
            Ok(progress) => {
                assert_eq!(progress.framing, to);
                tell_late(settled, &progress);
                progress.handover_log.last().unwrap().last_extent
            }
            Err(_) => panic!("a transfer ended: {:?}", moving.sending.outcome().await),
        };
        Leg { last_v3, settled, distrusted }
    });
    let mut legs = Vec::new();
    // Waited for together: each is measured when it comes.
    let mut waits: Vec<_> = waits.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waits.retain_mut(|wait| match wait.as_mut().poll(context) {
            std::task::Poll::Ready(leg) => {
                legs.push(leg);
                false
            }
            std::task::Poll::Pending => true,
        });
        if waits.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    legs
}

/// Switches all over. Bytes that are not those of the logs, and whether all roots were the same.
async fn finish(moving: Vec<Moving>, receiving: Receiving) -> (u64, bool) {
    let mut arrived = std::collections::HashMap::new();
    for (name, session, copy) in receiving.join_all().await {
        arrived.insert(name, (session, copy));
    }
    let (mut lost, mut equal) = (0, true);
    for (number, mut moving) in moving.into_iter().enumerate() {
        let (mut session, copy) = arrived.remove(&format!("vm{number}")).unwrap();
        let (sent, received) = tokio::join!(moving.sending.outcome(), session.outcome());
        assert_eq!((sent.owner, received.owner), (Owner::Sink, Owner::Sink), "{:?} {:?}", sent.error, received.error);
        let progress = moving.progress.borrow().clone();
        equal &= progress.root.is_some() && progress.root == progress.peer_root;
        let log = std::mem::take(&mut *moving.arena.log.lock().unwrap());
        let last: std::collections::HashMap<u64, u64> = log.into_iter().collect();
        lost += 8 * last.iter().filter(|(at, value)| copy.peek(REGION, **at) != Some(**value)).count() as u64;
        let same = |at: &u64| moving.arena.memory.peek(REGION, *at) == copy.peek(REGION, *at);
        lost += 8 * (0..moving.arena.layout().bytes()).step_by(8).filter(|at| !same(at)).count() as u64;
    }
    (lost, equal)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort();
    let index = (values.len() as f64 * share).ceil() as usize;
    values.get(index.saturating_sub(1)).copied().unwrap_or_default()
}

fn tell_all(options: &Options, legs: &[Leg], lost: u64, roots_equal: bool) {
    let of = |distrusted: Option<bool>, value: fn(&Leg) -> Duration| -> Vec<Duration> {
        legs.iter().filter(|leg| distrusted.is_none_or(|wanted| leg.distrusted == wanted)).map(value).collect()
    };
    let (settled, last_v3) = (|leg: &Leg| leg.settled, |leg: &Leg| leg.last_v3);
    let line = |distrusted| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| millis(quantile(of(distrusted, settled), share)));
        let last = [0.99, 1.0].map(|share| millis(quantile(of(distrusted, last_v3), share)));
        (last, p50, p99, max)
    };
    let (([last, latest], p50, p99, max), benign, distrusted) = (line(None), line(Some(false)), line(Some(true)));
    if options.json {
        let by = |([last, latest], p50, p99, max): ([f64; 2], f64, f64, f64)| {
            format!(
                r#"{{"last_v3_ms_p99":{last:.1},"last_v3_ms_max":{latest:.1},"settled_ms_p50":{p50:.1},"settled_ms_p99":{p99:.1},"settled_ms_max":{max:.1}}}"#
            )
        };
        println!(
            r#"{{"summary":{{"transfers":{},"rollbacks":{},"handovers":{},"last_v3_ms_p99":{last:.1},"last_v3_ms_max":{latest:.1},"settled_ms_p50":{p50:.1},"settled_ms_p99":{p99:.1},"settled_ms_max":{max:.1},"lost_bytes":{lost},"roots_equal":{roots_equal},"by_reason":{{"performance":{},"integrity":{}}}}}}}"#,
            options.transfers,
            options.rollbacks,
            legs.len(),
            by(benign),
            by(distrusted)
        );
    } else {
        println!(
            "{} transfers, {} roll-backs, {} hand-overs to version 1",
            options.transfers,
            options.rollbacks,
            legs.len()
        );
        for (name, ([last, latest], p50, p99, max)) in [("performance", benign), ("integrity", distrusted)] {
            println!(
                "{name:12} last v3 extent p99 {last:.1} max {latest:.1} ms; settled p50 {p50:.1} p99 {p99:.1} max {max:.1} ms"
            );
        }
        println!("{lost} bytes lost; all roots equal: {roots_equal}");
    }
    assert!(lost == 0 && roots_equal, "something was lost");
}
