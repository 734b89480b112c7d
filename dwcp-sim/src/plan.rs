//! What a seed decides: the guest, the link, the configuration, and what goes wrong when.

use std::num::NonZeroU64;
use std::time::Duration;

use dwcp_core::session::handover::Wish;
use dwcp_core::session::{Bug, EffortPolicy, OnStall, ShadowFill, SinkConfig, SourceConfig};
use dwcp_core::wire::{FrameType, Framing, PeerLimits};

use crate::rng::Rng;

/// A millisecond and a second of virtual time, which counts nanoseconds.
pub const MS: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1000 * MS;

/// A bug that the simulator is asked to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// One inside a machine.
    Core(Bug),
    /// The guest's dirty bits are cleared after the pages were read.
    LateClear,
    /// The source's leaves come from memory read again, later than the copy that was sent.
    Reread,
    /// A page of the baseline is laid over a newer one.
    LaidOver,
}

impl Planted {
    /// All, with their names on the command line.
    pub const ALL: [(Self, &'static str); 17] = [
        (Self::LateClear, "late-clear"),
        (Self::Core(Bug::ExtentNotPinned), "extent-not-pinned"),
        (Self::Core(Bug::ShadowValidBeforeAck), "shadow-before-ack"),
        (Self::Core(Bug::UnburiedLane), "unburied-lane"),
        (Self::Core(Bug::CreditLeak), "credit-leak"),
        (Self::Core(Bug::DoubleCommit), "double-commit"),
        (Self::Core(Bug::StaleJoin), "stale-join"),
        (Self::Reread, "root-from-reread"),
        (Self::LaidOver, "laid-over"),
        (Self::Core(Bug::RunLost), "run-lost"),
        (Self::Core(Bug::RunDuplicated), "run-duplicated"),
        (Self::Core(Bug::SinkDeadAfterRun), "sink-dead-after-run"),
        (Self::Core(Bug::HandoverBeforeFence), "handover-before-fence"),
        (Self::Core(Bug::LanesOutliveFence), "lanes-outlive-fence"),
        (Self::Core(Bug::ShadowOutlivesHandover), "shadow-outlives-handover"),
        (Self::Core(Bug::RestartKeepsPages), "restart-keeps-pages"),
        (Self::Core(Bug::RunUnretracted), "run-unretracted"),
    ];

    /// The bug with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(bug, _)| *bug)
    }

    pub(crate) fn core(self) -> Option<Bug> {
        if let Self::Core(bug) = self { Some(bug) } else { None }
    }
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that has the guest.
    Source,
    /// The one that gets it.
    Sink,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One bulk lane dies.
    CutLane,
    /// The control connection dies.
    CutControl,
    /// Everything dies and cannot be re-made for so long.
    Outage(u64),
    /// A lane brings nothing for so long.
    StallLane(u64),
    /// The control connection brings nothing to this side for so long.
    StallControl(Side, u64),
    /// The next extent arrives changed.
    Corrupt,
    /// A node's process dies and comes back after so long.
    Crash(Side, u64),
    /// Somebody cancels at this side.
    Cancel(Side),
    /// A new bandwidth limit.
    Bandwidth(Option<NonZeroU64>),
    /// Lanes become this fast (bytes per second).
    LaneRate(u64),
    /// The next record cannot be made durable.
    PersistFails(Side),
    /// The next record, or epoch, takes this long.
    PersistSlow(Side, u64),
    /// The next operation of the guest fails.
    GuestFails(Side),
    /// The next lane that is dialled gives up before its join arrives.
    LateJoin,
    /// A side wants another framing.
    Prefer(Side, Wish),
}

/// Where the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Four of five writes go to one spot, evenly.
    Spot,
    /// The nth page of the guest's liking gets 1/n of the writes that the first one gets, by powers of two, and they lie
    /// scattered: a store with keys that are more and less popular.
    Zipf,
}

/// When it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(u64),
    /// So long after a frame of this type was sent for the nth time.
    Sent(FrameType, u32, u64),
    /// So long after this side began to persist for the nth time.
    Persisting(Side, u32, u64),
    /// So long after the nth dispatch.
    Dispatched(u32, u64),
    /// So long after the sink was asked to run.
    Run(u64),
    /// So long after the guest was paused for the nth time.
    Paused(u32, u64),
}

/// All that a seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Bytes of the regions.
    pub regions: Vec<u64>,
    /// Guest writes per second.
    pub writes: u64,
    /// Where.
    pub writer: Writes,
    /// Harvests that announce more.
    pub more: u32,
    /// Percent of the pages that the sink holds from a transfer before, some of them stale.
    pub held: u64,
    /// Percent of the pages that stand in a baseline that both ends hold, some of them stale. 0: none is agreed on.
    pub baseline: u64,
    /// Bytes of device state.
    pub device_bytes: usize,
    /// One-way delay, ns.
    pub latency: u64,
    /// Added at random, ns.
    pub jitter: u64,
    /// Bytes per second of each lane.
    pub lane_rate: u64,
    /// Wire bytes of a page that travels whole.
    pub page_bytes: u64,
    /// Time to copy and to encode an extent, at most, ns.
    pub encode: u64,
    /// Time to verify and apply one, at most, ns.
    pub apply: u64,
    /// Time of a guest operation, at most, ns.
    pub operation: u64,
    /// Time of a record write, at most, ns.
    pub disk: u64,
    /// Ticks come late by at most this, ns.
    pub late_tick: u64,
    /// For the source.
    pub source: SourceConfig,
    /// For the sink.
    pub sink: SinkConfig,
    /// What goes wrong.
    pub faults: Vec<(When, Fault)>,
    /// Nothing goes wrong after this, and what was cut can be re-made.
    pub calm_at: u64,
    /// The last outage never ends.
    pub cut_forever: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let r = &mut rng;
        let regions = regions(r);
        let latency = r.magnitude(50_000, 100 * MS);
        let mut plan = Self {
            seed,
            regions,
            writes: if r.percent(15) { 0 } else { r.magnitude(10, 20_000) },
            // By a generator of its own: seeds that are known by number stay what they are.
            writer: Rng::new(seed ^ 0x21bf).pick(&[Writes::Spot, Writes::Zipf]),
            more: if r.percent(10) { r.below(4) as u32 } else { 0 },
            held: Rng::new(seed ^ 0x4e1d).pick(&[0, 0, 0, 10, 60, 100]),
            baseline: Rng::new(seed ^ 0xba5e_0000).pick(&[0, 0, 0, 100, 100, 60]),
            device_bytes: match r.below(12) {
                0 => 0,
                1 => r.between(256 * 1024 - 2, 1024 * 1024) as usize,
                _ => r.magnitude(1, 4096) as usize,
            },
            latency,
            jitter: r.below(latency * 2),
            lane_rate: r.magnitude(2_000_000, 1_000_000_000),
            page_bytes: r.pick(&[60, 1000, 2500, 4096]),
            encode: r.magnitude(1000, 5 * MS),
            apply: r.magnitude(1000, 5 * MS),
            operation: r.magnitude(1000, 20 * MS),
            disk: r.magnitude(10_000, 50 * MS),
            late_tick: if r.percent(50) { 0 } else { r.below(3 * MS) },
            source: source_config(r),
            sink: sink_config(r),
            faults: Vec::new(),
            calm_at: 0,
            cut_forever: false,
        };
        plan.sink.lanes = plan.source.limits.lanes;
        if !r.percent(12) {
            plan.plan_faults(r);
        }
        plan.plan_wishes(&mut Rng::new(seed ^ 0xf1a6));
        plan
    }

    fn plan_faults(&mut self, r: &mut Rng) {
        // How long a quiet run of this plan takes is not known: faults by time fall early or late.
        let span = r.magnitude(10 * MS, 10 * SECOND);
        let count = r.between(1, 4);
        let mut last = 0;
        for _ in 0..count {
            let fault = self.fault(r);
            let delay = if r.percent(50) { r.below(self.latency * 3) } else { r.below(self.disk * 2) };
            let when = when(r, span, delay);
            let lasts = match fault {
                Fault::Outage(time) | Fault::StallLane(time) | Fault::StallControl(_, time) | Fault::Crash(_, time) => {
                    time
                }
                _ => 0,
            };
            last = last.max(lasts);
            self.faults.push((when, fault));
        }
        self.calm_at = 20 * SECOND + last;
        self.cut_forever = self.faults.iter().any(|(_, fault)| *fault == Fault::Outage(u64::MAX / 4));
        if self.cut_forever {
            self.calm_at = 20 * SECOND;
        }
    }

    /// Two plans of three may change their framing; by a generator of its own, like `held`.
    fn plan_wishes(&mut self, r: &mut Rng) {
        if r.percent(34) {
            return;
        }
        let framing = if r.percent(20) { Framing::Messages } else { Framing::Extents };
        (self.source.framing, self.source.messages) = (framing, true);
        (self.sink.framing, self.sink.messages) = (framing, true);
        let span = r.magnitude(10 * MS, 10 * SECOND);
        for _ in 0..r.between(0, 4) {
            let side = if r.percent(50) { Side::Source } else { Side::Sink };
            let framing = if r.percent(65) { Framing::Messages } else { Framing::Extents };
            let wish = Wish { framing, restart: framing == Framing::Messages && r.percent(30) };
            let delay = r.below(self.latency * 3);
            self.faults.push((when(r, span, delay), Fault::Prefer(side, wish)));
        }
        self.calm_at = self.calm_at.max(20 * SECOND);
        self.plan_struck_handover(&mut Rng::new(self.seed ^ 0xfe4c));
    }

    /// Every other plan that changes its framing is struck in the middle of that; by a generator of its own again.
    fn plan_struck_handover(&mut self, r: &mut Rng) {
        if r.percent(50) {
            return;
        }
        for _ in 0..r.between(1, 3) {
            let time = r.magnitude(MS, 8 * SECOND);
            let fault = strike(r, time);
            let nth = if r.percent(70) { 1 } else { r.between(1, 4) as u32 };
            let delay = if r.percent(50) { r.below(self.latency * 3) } else { r.below(self.operation * 2) };
            self.faults.push((When::Sent(r.pick(&HANDOVER_FRAMES), nth, delay), fault));
            self.calm_at += time;
        }
    }

    fn fault(&self, r: &mut Rng) -> Fault {
        let side = if r.percent(50) { Side::Source } else { Side::Sink };
        match r.below(26) {
            0..=4 => Fault::CutLane,
            5..=8 => Fault::CutControl,
            9 | 10 => Fault::Outage(r.magnitude(10 * MS, 40 * SECOND)),
            11 => {
                if r.percent(25) {
                    Fault::Outage(u64::MAX / 4)
                } else {
                    Fault::Outage(r.magnitude(SECOND, 90 * SECOND))
                }
            }
            12 | 13 => Fault::StallLane(r.magnitude(10 * MS, 20 * SECOND)),
            14 | 15 => Fault::StallControl(side, r.magnitude(10 * MS, 30 * SECOND)),
            16 => Fault::Corrupt,
            17..=19 => Fault::Crash(side, r.magnitude(10 * MS, 30 * SECOND)),
            20 => Fault::Cancel(side),
            21 => Fault::Bandwidth(NonZeroU64::new(if r.percent(30) { 0 } else { r.magnitude(1_000_000, 1 << 30) })),
            22 => Fault::LaneRate(r.magnitude(1_000_000, 1 << 30)),
            23 => {
                if r.percent(50) {
                    Fault::PersistFails(side)
                } else {
                    Fault::PersistSlow(side, r.magnitude(MS, 8 * SECOND))
                }
            }
            24 => Fault::GuestFails(side),
            _ => Fault::LateJoin,
        }
    }
}

/// What is said in a hand-over; the first two are its middle.
const HANDOVER_FRAMES: [FrameType; 6] = [
    FrameType::Fence,
    FrameType::Handover,
    FrameType::Fence,
    FrameType::Handover,
    FrameType::Message,
    FrameType::Prefer,
];

/// What goes wrong in the middle of a hand-over.
fn strike(r: &mut Rng, time: u64) -> Fault {
    let side = if r.percent(50) { Side::Source } else { Side::Sink };
    match r.below(14) {
        0..=3 => Fault::CutControl,
        4 | 5 => Fault::CutLane,
        6 | 7 => Fault::Outage(time),
        8 => Fault::StallControl(side, time),
        9 => Fault::StallLane(time),
        10 | 11 => Fault::PersistSlow(side, time),
        _ => Fault::Crash(side, time),
    }
}

fn regions(r: &mut Rng) -> Vec<u64> {
    let count = r.pick(&[1, 1, 2, 3]);
    let pages = if r.percent(20) { r.between(200, 800) } else { r.between(16, 160) };
    (0..count).map(|_| (pages / count).max(1) * 4096 - r.pick(&[0, 0, 1, 4095])).collect()
}

fn when(r: &mut Rng, span: u64, delay: u64) -> When {
    let side = if r.percent(50) { Side::Source } else { Side::Sink };
    let frames = [
        FrameType::Offer,
        FrameType::Accept,
        FrameType::Ack,
        FrameType::Bury,
        FrameType::Buried,
        FrameType::Pause,
        FrameType::Ready,
        FrameType::Ready,
        FrameType::Run,
        FrameType::Run,
        FrameType::Running,
    ];
    match r.below(10) {
        0..=3 => When::At(r.below(span)),
        4..=6 => When::Sent(r.pick(&frames), if r.percent(80) { 1 } else { r.between(1, 4) as u32 }, delay),
        7 => When::Persisting(side, r.between(1, 2) as u32, delay),
        8 => When::Dispatched(r.magnitude(1, 100) as u32, delay),
        _ => {
            if r.percent(50) {
                When::Run(delay)
            } else {
                When::Paused(r.between(1, 2) as u32, delay)
            }
        }
    }
}

fn source_config(r: &mut Rng) -> SourceConfig {
    let lanes = r.between(1, 4) as u16;
    SourceConfig {
        encoders: SourceConfig::default().encoders,
        lanes,
        limits: PeerLimits { extent_pages: r.pick(&[3, 16, 64, 256, 256]), lanes: r.between(1, 4) as u16 },
        downtime_budget: Duration::from_millis(r.magnitude(50, 1000)),
        defer_hot: true,
        on_stall: if r.percent(60) { OnStall::Force } else { OnStall::Abort },
        stall_patience: Duration::from_millis(r.magnitude(100, 1500)),
        pause_limit: Duration::from_millis(r.magnitude(500, 10_000)),
        reconnect_limit: Duration::from_millis(r.magnitude(1000, 30_000)),
        effort: EffortPolicy::Auto,
        shadow_bytes: r.pick(&[0, 4, 32, 1000]) * 4096,
        shadow_fill: if r.percent(50) { ShadowFill::Hot } else { ShadowFill::First },
        bandwidth: if r.percent(15) { NonZeroU64::new(r.magnitude(2_000_000, 1 << 30)) } else { None },
        framing: Framing::Extents,
        messages: false,
    }
}

fn sink_config(r: &mut Rng) -> SinkConfig {
    SinkConfig {
        dictionaries: 0,
        lanes: 4,
        lane_window: r.pick(&[0, 0, 1_200_000, 2_000_000, 8 << 20]),
        orphan_limit: Duration::from_millis(r.magnitude(2000, 60_000)),
        linger: Duration::from_millis(r.magnitude(1000, 30_000)),
        framing: Framing::Extents,
        messages: false,
    }
}
