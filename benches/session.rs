//! What the source's brain costs: `cargo bench --bench session`.
//!
//! `idle` is a machine with 1,000,000 pages and every one of them in flight, that is asked whether
//! there is anything to do. `decide` is a machine whose every extent is encoded and acknowledged at
//! once, so that nothing but its decisions is measured; elements are extents.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench stops at its own bugs")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use dwcp_core::guest::{DirtyMap, Pending};
use dwcp_core::session::{Dispatch, Encoded, Fingerprint, Input, Leaves, Machine, Output, Source, SourceConfig, Time};
use dwcp_core::wire::{Accept, Ack, FenceEpoch, Frame, GuestKind, LaneId, Name, Offer, PeerLimits, Ping, TransferId};
use dwcp_core::{Layout, RegionId};

const PAGES: u32 = 1_000_000;
const LANES: u16 = 4;
/// As `dwcp_core`'s sink acknowledges: so many extents at a time.
const ACK_EXTENTS: usize = 4;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    idle(&mut criterion);
    let every_16th = |map: &mut DirtyMap| (0..PAGES / 16).for_each(|page| map.mark(RegionId(0), page * 16, 1));
    let dense = |map: &mut DirtyMap| map.mark(RegionId(0), 0, PAGES / 4);
    decide(&mut criterion, "scattered pages, 16 an extent", 16, 0, every_16th);
    decide(&mut criterion, "scattered pages, 16 an extent, shadow", 16, 1 << 30, every_16th);
    decide(&mut criterion, "scattered pages, 256 an extent", 256, 0, every_16th);
    decide(&mut criterion, "dense pages, 16 an extent", 16, 0, dense);
    decide(&mut criterion, "dense pages, 256 an extent", 256, 0, dense);
    criterion.final_summary();
}

fn idle(criterion: &mut Criterion) {
    let mut bench = Bench::new(16, 0);
    bench.fly();
    let mut group = criterion.benchmark_group("session/idle, 1,000,000 pages in flight");
    group.bench_function("poll and deadline", |timer| {
        timer.iter(|| {
            let nothing = black_box(&mut bench.source).poll().is_none();
            (nothing, bench.source.deadline())
        });
    });
    group.bench_function("tick, poll and deadline", |timer| {
        timer.iter(|| {
            bench.source.handle(bench.now, Input::Tick);
            (bench.source.poll().is_none(), bench.source.deadline())
        });
    });
    group.finish();
}

fn decide(criterion: &mut Criterion, name: &str, extent_pages: u16, shadow_bytes: u64, mark: impl Fn(&mut DirtyMap)) {
    let mut bench = Bench::new(extent_pages, shadow_bytes);
    let mut dirty = DirtyMap::new(&bench.layout);
    mark(&mut dirty);
    bench.round(None);
    let extents = bench.round(Some(dirty.clone()));
    let mut group = criterion.benchmark_group(format!("session/decide, {name}"));
    group.throughput(Throughput::Elements(extents));
    group.bench_function("a round", |timer| {
        timer.iter_batched(
            || Some(dirty.clone()),
            // The lanes' measured rates move the ends of a few extents.
            |dirty| assert!(bench.round(dirty).abs_diff(extents) <= extents / 100, "every round is alike"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A source, and a peer that answers at once.
struct Bench {
    source: Source,
    layout: Layout,
    now: Time,
    inputs: VecDeque<Input>,
    /// For each lane the extents encoded and not acknowledged, and the next sequence number.
    unacked: Vec<(usize, u64)>,
    harvest_wanted: bool,
}

impl Bench {
    fn new(extent_pages: u16, shadow_bytes: u64) -> Self {
        let layout = Layout::new(&[u64::from(PAGES) * 4096]).expect("a layout");
        let transfer = TransferId([1; 16]);
        let name = Name::new("bench").expect("a name");
        let offer = Offer {
            transfer,
            epoch: FenceEpoch(1),
            kind: GuestKind::Live,
            name,
            dictionaries: Vec::new(),
            baselines: Vec::new(),
            layout: layout.clone(),
        };
        let limits = PeerLimits { extent_pages, lanes: LANES };
        let config = SourceConfig { lanes: LANES, limits, shadow_bytes, ..SourceConfig::default() };
        let mut bench = Self {
            source: Source::new(config, offer, Arc::new(Leaves::new(&layout)), Fingerprint([0; 32])),
            layout,
            now: Time::default(),
            inputs: VecDeque::new(),
            unacked: vec![(0, 0); usize::from(LANES) + 1],
            harvest_wanted: false,
        };
        bench.feed(Input::Start);
        bench.feed(Input::Frame(Frame::Accept(Accept { transfer, dictionaries: 0, baseline: None })));
        bench
    }

    /// One input, and all that follows from it.
    fn feed(&mut self, input: Input) -> u64 {
        self.now = self.now + Duration::from_micros(1);
        self.source.handle(self.now, input);
        let mut sent = 0;
        while let Some(output) = self.source.poll() {
            match output {
                Output::Send(dispatch) => {
                    sent += 1;
                    self.inputs.push_back(Input::Encoded(encoded(&dispatch)));
                }
                Output::OpenLane(lane) => self.inputs.push_back(Input::LaneUp { lane, credit: u64::MAX / 2 }),
                Output::Harvest => self.harvest_wanted = true,
                Output::Control(Frame::Ping(Ping { id })) => {
                    self.inputs.push_back(Input::Frame(Frame::Pong(Ping { id })));
                }
                Output::Control(_) => {}
                other => panic!("not part of a round: {other:?}"),
            }
        }
        sent
    }

    /// From a harvest to the next one; the first round has none but that of the start.
    fn round(&mut self, dirty: Option<DirtyMap>) -> u64 {
        self.harvest_wanted = false;
        let dirty = dirty.unwrap_or_else(|| DirtyMap::new(&self.layout));
        let mut sent = self.feed(Input::Harvested { dirty, pending: Pending::More });
        while !self.harvest_wanted {
            let input = self.inputs.pop_front().or_else(|| self.ack(1)).expect("the round goes on");
            let lane = if let Input::Encoded(encoded) = &input { Some(usize::from(encoded.lane.0)) } else { None };
            sent += self.feed(input);
            if let Some(unacked) = lane.and_then(|lane| self.unacked.get_mut(lane)) {
                unacked.0 += 1;
                unacked.1 += 1;
            }
            if let Some(ack) = self.ack(ACK_EXTENTS) {
                sent += self.feed(ack);
            }
        }
        sent
    }

    /// An acknowledgement of all lanes, once one of them has so many extents to acknowledge.
    fn ack(&mut self, least: usize) -> Option<Input> {
        if self.unacked.iter().all(|&(extents, _)| extents < least) {
            return None;
        }
        let mut lanes = Vec::new();
        for ((extents, next), lane) in self.unacked.iter_mut().zip(0..) {
            if std::mem::take(extents) > 0 {
                lanes.push((LaneId(lane), *next));
            }
        }
        Some(Input::Frame(Frame::Ack(Ack { durable: 0, lanes })))
    }

    /// Puts every page in flight and acknowledges nothing.
    fn fly(&mut self) {
        let dirty = DirtyMap::new(&self.layout);
        self.feed(Input::Harvested { dirty, pending: Pending::More });
        while let Some(input) = self.inputs.pop_front() {
            self.feed(input);
        }
    }
}

fn encoded(dispatch: &Dispatch) -> Encoded {
    let carried = u16::try_from(dispatch.extent.pages()).unwrap_or(u16::MAX);
    Encoded {
        lane: dispatch.lane,
        seq: dispatch.seq,
        wire_bytes: u64::from(carried) * 1024 + 100,
        carried,
        same: 0,
        encode: Duration::from_micros(50),
    }
}
