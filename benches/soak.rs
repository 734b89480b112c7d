//! Transfers without end, and whether anything grows.
//!
//! ```text
//! cargo bench --bench soak                      30 minutes
//! options: --minutes 30  --at-a-time 8  --lanes 8  --rate 4m
//! ```
//!
//! Two nodes in one process move guests and images (every fourth goes to disk, with a journal) over loopback, with twice
//! the usual lanes, each limited to `--rate` MB a second. Every 10 s it notes memory, tasks and descriptors; after a sixth
//! of the time has passed for warming up, a line is laid through each.
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

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dwcp_core::guest::{ImageFolder, ImageSource, Memory};
use dwcp_core::net::{Endpoint, Identity, Incoming, Listener, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{Guest, Layout, RegionId};

const BYTES: u64 = 16 << 20;
const EVERY: Duration = Duration::from_secs(10);

struct Options {
    minutes: u64,
    at_a_time: u64,
    lanes: u16,
    rate: u64,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { minutes: 30, at_a_time: 8, lanes: 8, rate: 4_000_000 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--minutes" => options.minutes = value().parse().expect("a number"),
                "--at-a-time" => options.at_a_time = value().parse().expect("a number"),
                "--lanes" => options.lanes = value().parse().expect("a number"),
                "--rate" => options.rate = value().trim_end_matches('m').parse::<u64>().expect("MB") * 1_000_000,
                _ => {}
            }
        }
        options
    }
}

/// What there is of one kind at a moment.
struct Sample {
    hours: f64,
    kib: f64,
    tasks: f64,
    descriptors: f64,
}

impl Sample {
    fn take(started: Instant) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        Self {
            hours: started.elapsed().as_secs_f64() / 3600.0,
            kib: line.split_whitespace().nth(1).unwrap().parse().unwrap(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64,
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count() as f64,
        }
    }
}

/// The mean, and the slope in percent of it an hour with its 95 % bound.
fn line(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> (f64, f64, f64) {
    let count = samples.len() as f64;
    let (mean_x, mean_y) =
        (samples.iter().map(|s| s.hours).sum::<f64>() / count, samples.iter().map(&of).sum::<f64>() / count);
    let spread: f64 = samples.iter().map(|s| (s.hours - mean_x).powi(2)).sum();
    let slope = samples.iter().map(|s| (s.hours - mean_x) * (of(s) - mean_y)).sum::<f64>() / spread;
    let left: f64 = samples.iter().map(|s| (of(s) - mean_y - slope * (s.hours - mean_x)).powi(2)).sum();
    let error = (left / (count - 2.0) / spread).sqrt();
    (mean_y, slope / mean_y * 100.0, (slope + 1.96 * error) / mean_y * 100.0)
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(soak(&options));
}

async fn soak(options: &Options) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, content()).unwrap();
    let [a, b] = ["a", "b"].map(|name| Identity::generate(name).unwrap());
    let source = Endpoint::new(&a, &Trust::fingerprints([b.fingerprint()])).unwrap();
    let source = source.with_records(folder.path().join("state")).unwrap();
    let sink = Endpoint::new(&b, &Trust::fingerprints([a.fingerprint()])).unwrap();
    let sink = sink.with_records(folder.path().join("records")).unwrap().with_lanes(options.lanes);
    let listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    tokio::spawn(receive(listener, store.clone(), Arc::new(sink)));
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (started, mut samples) = (Instant::now(), Vec::new());
    let end = started + Duration::from_secs(options.minutes * 60);
    for worker in 0..options.at_a_time {
        let from = From { source: source.clone(), to: to.clone(), image: image.clone() };
        let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
        let bandwidth = NonZeroU64::new(options.rate);
        let config = SourceConfig { lanes: options.lanes, bandwidth, ..SourceConfig::default() };
        tokio::spawn(async move {
            for number in 0.. {
                if Instant::now() >= end {
                    return;
                }
                let good = from.send(worker, number, config.clone()).await;
                done.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(u64::from(!good), Ordering::Relaxed);
            }
        });
    }
    while Instant::now() < end {
        tokio::time::sleep(EVERY).await;
        samples.push(Sample::take(started));
        if samples.len() % 30 == 0 {
            let last = &samples[samples.len() - 1];
            println!(
                "{:.0} min: {} transfers, {} failed, {:.0} KiB, {:.0} tasks, {:.0} descriptors",
                last.hours * 60.0,
                done.load(Ordering::Relaxed),
                failed.load(Ordering::Relaxed),
                last.kib,
                last.tasks,
                last.descriptors
            );
        }
    }
    let warm = &samples[samples.len() / 6..];
    println!("{} transfers, {} failed", done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    for (what, of) in [
        ("memory (KiB)", (|s: &Sample| s.kib) as fn(&Sample) -> f64),
        ("tasks", |s| s.tasks),
        ("descriptors", |s| s.descriptors),
    ] {
        let (mean, slope, bound) = line(warm, of);
        println!("{what:13} mean {mean:.0}, slope {slope:+.2} %/h, 95 % bound {bound:+.2} %/h");
    }
}

/// Half of each page is noise.
fn content() -> Vec<u8> {
    let mut state = 1_u64;
    let word = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        if state.is_multiple_of(2) { *state } else { 0 }
    };
    (0..BYTES / 8).flat_map(|_| word(&mut state).to_le_bytes()).collect()
}

struct From {
    source: Endpoint,
    to: String,
    image: PathBuf,
}

impl From {
    async fn send(&self, worker: u64, number: u64, config: SourceConfig) -> bool {
        let disk = number.is_multiple_of(4);
        let guest: Arc<dyn Guest> = if disk {
            Arc::new(ImageSource::open(&self.image).unwrap())
        } else {
            let guest = Memory::new(Layout::new(&[BYTES]).unwrap());
            guest.write(RegionId(0), 0, &content()).unwrap();
            Arc::new(guest)
        };
        let (kind, word) = if disk { (GuestKind::Image, "image") } else { (GuestKind::Live, "live") };
        let transfer = Transfer::new(Name::new(&format!("{word}-{worker}")).unwrap(), kind);
        let outcome = match self.source.send(&self.to, transfer, guest, config).await {
            Ok(mut session) => session.outcome().await,
            Err(error) => {
                println!("{error}");
                return false;
            }
        };
        let good = outcome.owner == Owner::Sink && outcome.error.is_none();
        if !good {
            println!("{outcome:?}");
        }
        good
    }
}

async fn receive(mut listener: Listener, store: std::path::PathBuf, _sink: Arc<Endpoint>) {
    let folder = ImageFolder::open(store).unwrap().replacing(true);
    let config = SinkConfig { lanes: 64, ..SinkConfig::default() };
    while let Some(incoming) = listener.accept().await {
        let Incoming::Offer(offer) = incoming else { continue };
        let guest: Arc<dyn Guest> = match offer.offer().kind {
            GuestKind::Image => Arc::new(folder.go_on(offer.offer(), offer.peer(), |_| false).unwrap()),
            _ => Arc::new(Memory::new(offer.offer().layout.clone())),
        };
        let mut session = offer.accept(guest, config.clone());
        tokio::spawn(async move { session.outcome().await });
    }
}
