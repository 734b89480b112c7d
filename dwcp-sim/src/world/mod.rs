//! The event loop: a virtual clock, one source, one sink, and everything between them.
//!
//! ```text
//!   SourceNode ── control frames as bytes ──> Conn ──> SinkNode         net.rs
//!    │  machine, shadow slots, record                   machine, record │
//!    └─ workers: copy, encode ──> Lane ══ Parcel ══> workers: verify, write
//! ```

mod control;
mod faults;
mod handover;
mod lanes;
mod nodes;
mod warm;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::Layout;
use dwcp_core::extent::FlatPage;
use dwcp_core::guest::GuestError;
use dwcp_core::session::{Input, Leaves, Machine, Record, Sink, SlotId, Source, Time};
use dwcp_core::wire::{FenceEpoch, Framing, GuestKind, LaneId, Name, Offer, TransferId};

use self::warm::Warm;
use crate::PEER;
use crate::deferral::Cost;
use crate::guest::{Content, SimGuest, leaf};
use crate::net::{Conn, Lane, Parcel};
use crate::plan::{Fault, Plan, Planted, SECOND, Side, When};
use crate::props::{Ending, Property, Report, Violation};
use crate::rng::Rng;

/// Events of one run at most: no plan needs a tenth of it.
const MAX_EVENTS: u64 = 3_000_000;
/// Events in one virtual second at most.
const MAX_EVENTS_PER_SECOND: u64 = 150_000;
/// A run may take this long once nothing goes wrong any more.
const CALM_LIMIT: u64 = 900 * SECOND;
/// After everything seems over, late things may happen for so long.
const GRACE: u64 = 2 * SECOND;
/// Ticks in a row that may leave a deadline in the past.
const MAX_SPINS: u32 = 2;
/// Lines of a trace that are kept.
const TRACE_LINES: usize = 120;

/// Something that happens at a time.
#[derive(Debug)]
enum Event {
    Tick(Side, u64),
    Feed(Side, u32, Input),
    Frame { conn: u64, to: Side, bytes: Vec<u8> },
    ConnDown { conn: u64, at: Side, clean: bool },
    DialAtSink { conn: u64, fresh: bool },
    Dialled { conn: u64, answer: Dial },
    Operation(Side, u32),
    Durable(Side, u32, u64),
    PersistDone(Side, u32, u64),
    Forgotten(Side, u32),
    Retracted(u32),
    Join(LaneId),
    LaneUp(LaneId, u64),
    Copy(LaneId),
    Encode(LaneId),
    Written(LaneId),
    Parcel(LaneId, Box<Parcel>),
    Apply(LaneId),
    Report(LaneId),
    LaneGone(Side, LaneId),
    Leave(LaneId),
    LateClear(Vec<FlatPage>),
    Fault(Fault),
    Restart(Side),
}

/// How a dial of the control connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    Up,
    Lost,
    Failed,
}

/// An operation on a guest; they are done one after the other.
#[derive(Debug)]
enum Operation {
    Harvest,
    Recall(Arc<Leaves>, Option<Arc<Leaves>>),
    Pause,
    Resume,
    SaveDevices,
    Stage(bytes::Bytes),
    Run,
    Discard,
    Clear,
    Raise(FenceEpoch),
}

/// What becomes of a record that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    /// The disk says that it failed, and has it all the same.
    KeptInSecret,
    Lost,
}

/// What a node's disk holds of the transfer.
#[derive(Debug, Default)]
struct Disk {
    durable: Option<String>,
    /// Counts the writes, so that a newer one makes an older event void.
    writing: u64,
    pending: Option<(u64, String, Fate)>,
    done_at: u64,
}

impl Disk {
    fn record(&self) -> Option<Record> {
        self.durable.as_deref().map(|text| Record::decode(text).unwrap())
    }
}

/// What source and sink have in common: a process, a guest, a disk.
#[derive(Debug)]
struct Node {
    up: bool,
    /// Counts the lives of the process.
    life: u32,
    /// When a frame last came.
    heard_at: u64,
    conn: Option<u64>,
    session: Option<u64>,
    disk: Disk,
    guest: SimGuest,
    operations: std::collections::VecDeque<Operation>,
    operating: bool,
    tick: u64,
    spins: u32,
    fail_persist: bool,
    slow_persist: u64,
    fail_operation: bool,
    /// The epoch of the pair, durable.
    fence: FenceEpoch,
    /// What lanes are opened with.
    engaged: (FenceEpoch, Framing),
}

impl Node {
    fn new(guest: SimGuest, framing: Framing) -> Self {
        Self {
            up: true,
            life: 0,
            heard_at: 0,
            conn: None,
            session: None,
            disk: Disk::default(),
            guest,
            operations: std::collections::VecDeque::new(),
            operating: false,
            tick: 0,
            spins: 0,
            fail_persist: false,
            slow_persist: 0,
            fail_operation: false,
            fence: FenceEpoch(1),
            engaged: (FenceEpoch(1), framing),
        }
    }
}

/// What may excuse a run that does not end well.
#[derive(Clone, Copy, Debug, Default)]
struct Excuses {
    crash: bool,
    cancel: bool,
    disk: bool,
    guest: bool,
    corrupt: bool,
    /// The link is gone for good.
    forever: bool,
}

/// One simulated transfer.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    planted: Option<Planted>,
    rng: Rng,
    now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    events: u64,
    second: (u64, u64),
    offer: Offer,
    layout: Layout,
    source: Node,
    sink: Node,
    source_machine: Option<Source>,
    sink_machine: Option<Sink>,
    /// The recovered source dials before its machine is started.
    source_waits: bool,
    source_leaves: Arc<Leaves>,
    sink_leaves: Arc<Leaves>,
    /// A baseline that both ends hold.
    warm: Option<Warm>,
    slots: std::collections::HashMap<SlotId, Content>,
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    no_link_until: u64,
    lanes: BTreeMap<LaneId, Lane>,
    /// Extents of which the source does not know what became of them.
    flights: BTreeMap<(LaneId, u64), dwcp_core::Extent>,
    in_flight: Vec<u8>,
    triggers: Vec<(When, Fault, u32)>,
    corrupt_next: bool,
    late_join: bool,
    excuses: Excuses,
    run_sent: bool,
    /// The sink's machines so far, and which of them ran the guest last.
    sink_machines: u32,
    ran_in: Option<u32>,
    source_gone: bool,
    /// The sink's memory is no longer what the source knows.
    sink_lost: bool,
    dialling: Option<(u64, bool)>,
    lane_rate: u64,
    sends: u32,
    pauses: u32,
    persists: [u32; 2],
    /// Hand-overs that came to their end at the sink.
    handovers: u64,
    handovers_begun: u64,
    handovers_struck: u64,
    /// One is under way at the source, and was struck already.
    handing_over: Option<bool>,
    /// The fence that is under way began from zeros.
    restarting: bool,
    said_frames: BTreeMap<u8, u32>,
    discarded: bool,
    devices: Option<bytes::Bytes>,
    staged: Option<bytes::Bytes>,
    said: [Option<dwcp_core::session::Owner>; 2],
    extents: u64,
    cost: Option<Cost>,
    over_at: Option<u64>,
    failed: Option<Violation>,
    trace: Option<std::collections::VecDeque<String>>,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// What the sink still has of a transfer that was cut off: some pages as they are now, some as they were.
fn held(plan: &Plan, source: &SimGuest) -> (SimGuest, Leaves) {
    let layout = Layout::new(&plan.regions).unwrap();
    let (mut held, leaves) = (SimGuest::empty(&layout), Leaves::new(&layout));
    let mut rng = Rng::new(plan.seed ^ 0x4e1d);
    for page in (0..layout.flat_pages()).map(FlatPage).filter(|&page| layout.locate(page).is_some()) {
        if rng.percent(plan.held) {
            let content = if rng.percent(70) { source.read(page) } else { u64::MAX - u64::from(page.0) };
            held.overwrite(page, content);
            leaves.set(page, leaf(content));
        }
    }
    (held, leaves)
}

fn offer(layout: &Layout, warm: Option<&Warm>) -> Offer {
    Offer {
        transfer: TransferId([7; 16]),
        epoch: FenceEpoch(1),
        kind: GuestKind::Live,
        name: Name::new("sim").unwrap(),
        dictionaries: Vec::new(),
        baselines: Warm::digests(warm),
        layout: layout.clone(),
    }
}

impl World {
    /// The world of a plan, before anything happened.
    pub fn new(plan: Plan, planted: Option<Planted>, traced: bool) -> Self {
        let layout = Layout::new(&plan.regions).unwrap();
        let guest = SimGuest::alive(&layout, plan.seed, plan.writes, plan.writer, plan.more);
        let warm = Warm::of(&plan, &guest);
        let offer = offer(&layout, warm.as_ref());
        let source_leaves = Arc::new(Leaves::new(&layout));
        let (held, sink_leaves) = held(&plan, &guest);
        let machine = Source::new(plan.source.clone(), offer.clone(), Arc::clone(&source_leaves), PEER);
        let machine = machine.with_baselines(Warm::offered(warm.as_ref(), &layout));
        let machine = machine.with_bug(planted.and_then(Planted::core));
        Self {
            rng: Rng::new(plan.seed ^ 0x5eed),
            now: 0,
            queue: BinaryHeap::new(),
            serial: 0,
            events: 0,
            second: (0, 0),
            source: Node::new(guest, plan.source.framing),
            sink: Node::new(held, plan.source.framing),
            source_machine: Some(machine),
            sink_machine: None,
            source_waits: false,
            source_leaves,
            sink_leaves: Arc::new(sink_leaves),
            warm,
            slots: std::collections::HashMap::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            no_link_until: 0,
            lanes: BTreeMap::new(),
            flights: BTreeMap::new(),
            in_flight: vec![0; layout.flat_pages() as usize],
            triggers: plan.faults.iter().map(|&(when, fault)| (when, fault, 0)).collect(),
            corrupt_next: false,
            late_join: false,
            excuses: Excuses::default(),
            run_sent: false,
            sink_machines: 0,
            ran_in: None,
            source_gone: false,
            sink_lost: false,
            dialling: None,
            lane_rate: plan.lane_rate,
            sends: 0,
            pauses: 0,
            persists: [0, 0],
            handovers: 0,
            handovers_begun: 0,
            handovers_struck: 0,
            handing_over: None,
            restarting: false,
            said_frames: BTreeMap::new(),
            discarded: false,
            devices: None,
            staged: None,
            said: [None, None],
            extents: 0,
            cost: None,
            over_at: None,
            failed: None,
            trace: traced.then(std::collections::VecDeque::new),
            offer,
            layout,
            plan,
            planted,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first property that did not hold.
    pub fn run(mut self) -> Result<Report, Violation> {
        for index in 0..self.triggers.len() {
            if let (When::At(at), fault, _) = self.triggers[index] {
                self.at(at, Event::Fault(fault));
            }
        }
        let conn = self.connect();
        (self.source.conn, self.sink.conn) = (Some(conn), Some(conn));
        (self.source.session, self.sink.session) = (Some(conn), Some(conn));
        self.feed(Side::Source, Input::Start);
        while self.failed.is_none() {
            if self.is_over() {
                return self.conclude();
            }
            let Some(Reverse(entry)) = self.queue.pop() else { return self.conclude() };
            self.count(entry.at);
            self.now = entry.at;
            self.happen(entry.event);
        }
        Err(self.broken())
    }

    fn broken(&mut self) -> Violation {
        let mut violation = self.failed.take().unwrap();
        violation.trace = self.trace.take().unwrap_or_default().into();
        violation
    }

    /// Guards against a world that spins.
    fn count(&mut self, at: u64) {
        self.events += 1;
        let second = at / SECOND;
        self.second = if self.second.0 == second { (second, self.second.1 + 1) } else { (second, 1) };
        if self.second.1 > MAX_EVENTS_PER_SECOND || self.events > MAX_EVENTS {
            self.violate(Property::NoBusyLoop, "too many events");
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(side, tick) => self.tick(side, tick),
            Event::Feed(side, life, input) => {
                if self.node(side).life == life {
                    self.feed(side, input);
                }
            }
            Event::Frame { conn, to, bytes } => self.frame_arrives(conn, to, &bytes),
            Event::ConnDown { conn, at, clean } => self.conn_down(conn, at, clean),
            Event::DialAtSink { conn, fresh } => self.dial_at_sink(conn, fresh),
            Event::Dialled { conn, answer } => self.dialled(conn, answer),
            Event::Operation(side, life) => self.operate(side, life),
            Event::Durable(side, life, writing) => self.durable(side, life, writing),
            Event::PersistDone(side, life, writing) => self.persist_done(side, life, writing),
            Event::Forgotten(side, life) => self.forgotten(side, life),
            Event::Retracted(life) => self.retracted(life),
            Event::Join(lane) => self.join(lane),
            Event::LaneUp(lane, credit) => self.lane_up(lane, credit),
            Event::Copy(lane) => self.copy(lane),
            Event::Encode(lane) => self.encode(lane),
            Event::Written(lane) => self.written(lane),
            Event::Parcel(lane, parcel) => self.parcel_arrives(lane, *parcel),
            Event::Apply(lane) => self.apply(lane),
            Event::Report(lane) => self.report(lane),
            Event::LaneGone(side, lane) => self.lane_gone(side, lane),
            Event::Leave(lane) => self.leave_if_idle(lane),
            Event::LateClear(pages) => {
                self.source.guest.advance(self.now);
                self.source.guest.clear(&pages);
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Restart(side) => self.restart(side),
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), serial: self.serial, event }));
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now.saturating_add(delay), event);
    }

    fn time(&self) -> Time {
        Time::after_epoch(Duration::from_nanos(self.now))
    }

    fn latency(&mut self) -> u64 {
        self.plan.latency + self.rng.below(self.plan.jitter + 1)
    }

    fn node(&mut self, side: Side) -> &mut Node {
        match side {
            Side::Source => &mut self.source,
            Side::Sink => &mut self.sink,
        }
    }

    fn machine(&mut self, side: Side) -> Option<&mut dyn Machine> {
        match side {
            Side::Source => self.source_machine.as_mut().map(|machine| machine as &mut dyn Machine),
            Side::Sink => self.sink_machine.as_mut().map(|machine| machine as &mut dyn Machine),
        }
    }

    /// Feeds a machine, does what it asks for, and looks at its deadline.
    fn feed(&mut self, side: Side, input: Input) {
        let time = self.time();
        if self.trace.is_some() && !matches!(input, Input::Tick) {
            let text = shorten(format!("{input:?}"));
            self.note(|| format!("{side:?} <- {text}"));
        }
        let ticked = matches!(input, Input::Tick);
        let Some(machine) = self.machine(side) else { return };
        machine.handle(time, input);
        let mut outputs = Vec::new();
        while let Some(output) = machine.poll() {
            outputs.push(output);
        }
        if outputs.len() > 20_000 {
            self.violate(Property::NoBusyLoop, "more than 20000 outputs for one input");
        }
        for output in outputs {
            if self.trace.is_some() {
                let text = shorten(format!("{output:?}"));
                self.note(|| format!("{side:?} -> {text}"));
            }
            match side {
                Side::Source => self.source_output(output),
                Side::Sink => self.sink_output(output),
            }
        }
        self.watch_deadline(side, ticked);
    }

    fn watch_deadline(&mut self, side: Side, ticked: bool) {
        let deadline = self.machine(side).and_then(|machine| machine.deadline());
        let (now, late) = (self.now, self.plan.late_tick);
        let late = if late == 0 { 0 } else { self.rng.below(late) };
        let node = self.node(side);
        node.tick += 1;
        let tick = node.tick;
        let Some(deadline) = deadline else { return };
        let due = u64::try_from(deadline.since_epoch().as_nanos()).unwrap_or(u64::MAX);
        if ticked && due <= now {
            node.spins += 1;
            if node.spins > MAX_SPINS {
                self.violate(Property::NoBusyLoop, format!("{side:?}: its deadline stays in the past after ticks"));
            }
        } else if ticked {
            node.spins = 0;
        }
        self.at(due.max(now).saturating_add(late), Event::Tick(side, tick));
    }

    fn tick(&mut self, side: Side, tick: u64) {
        if self.node(side).tick == tick {
            self.feed(side, Input::Tick);
        }
    }

    fn violate(&mut self, property: Property, what: impl Into<String>) {
        if self.failed.is_none() {
            let (seed, at) = (self.plan.seed, self.now);
            self.failed = Some(Violation { property, seed, at, what: what.into(), trace: Vec::new() });
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            let line = line();
            // A question a second would push everything else out.
            if line.contains("(Ping(") || line.contains("(Pong(") {
                return;
            }
            if trace.len() >= TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>6}.{:03} ms  {}", now / 1_000_000, now / 1000 % 1000, line));
        }
    }

    /// Both machines have ended, or the sink waits for a source that is no more.
    fn is_over(&mut self) -> bool {
        if self.now > self.plan.calm_at + CALM_LIMIT {
            return true;
        }
        let source_over = self.source.up && self.source_machine.is_none();
        let sink_over = self.sink.up
            && !self.sink.operating
            && self.sink.disk.pending.is_none()
            && self.sink_machine.as_ref().is_none_or(|machine| machine.deadline().is_none());
        if !source_over || !sink_over || self.source.operating {
            self.over_at = None;
            return false;
        }
        let over_at = *self.over_at.get_or_insert(self.now);
        self.now >= over_at + GRACE
    }

    fn conclude(mut self) -> Result<Report, Violation> {
        let asking = self.source_machine.as_ref().map(Source::gave_up);
        let forever = self.excuses.forever;
        let lost = forever && asking == Some(true);
        if (asking.is_some() || !self.source.up) && !lost {
            self.violate(Property::Ends, "the source did not end after faults had stopped");
        }
        let ending = match (self.source.guest.is_running(), self.sink.guest.is_running()) {
            (true, true) => {
                self.violate(Property::OneOwner, "both guests run at the end");
                Ending::InDoubt
            }
            (true, false) => Ending::AtSource,
            (false, true) => Ending::SwitchedOver,
            (false, false) => Ending::InDoubt,
        };
        let Excuses { crash, cancel, disk, guest, .. } = self.excuses;
        if ending == Ending::InDoubt && !(crash || cancel || disk || guest || forever) {
            self.violate(Property::Ends, "in doubt without a crash, a cancel or a cut for good");
        }
        self.check_words(ending);
        if self.failed.is_some() {
            return Err(self.broken());
        }
        let quiet = self.plan.faults.is_empty();
        Ok(Report {
            ending,
            events: self.events,
            virtual_time: self.now,
            extents: self.extents,
            cost: self.cost,
            handovers_begun: self.handovers_begun,
            handovers: self.handovers,
            handovers_struck: self.handovers_struck,
            quiet,
        })
    }

    /// What the machines said of the owner is what is.
    fn check_words(&mut self, ending: Ending) {
        use dwcp_core::session::Owner;
        let Excuses { crash, cancel, guest, forever, .. } = self.excuses;
        let wrong = match (self.said[0], ending) {
            (Some(Owner::Source), Ending::AtSource) | (Some(Owner::Sink), Ending::SwitchedOver) | (None, _) => false,
            (Some(Owner::InDoubt), Ending::AtSource) => true,
            (Some(Owner::InDoubt), Ending::SwitchedOver) => !(crash || cancel || guest || forever),
            (Some(Owner::InDoubt), Ending::InDoubt) => false,
            _ => true,
        };
        if wrong {
            self.violate(Property::TrueOutcome, format!("the source says {:?}, the end is {ending:?}", self.said[0]));
        }
        let wrong = match (self.said[1], ending) {
            (Some(Owner::Source), Ending::SwitchedOver) => true,
            (Some(Owner::Sink), ending) => ending != Ending::SwitchedOver,
            (Some(Owner::InDoubt), Ending::SwitchedOver) => !self.excuses.crash,
            _ => false,
        };
        if wrong {
            self.violate(Property::TrueOutcome, format!("the sink says {:?}, the end is {ending:?}", self.said[1]));
        }
    }
}

fn shorten(mut text: String) -> String {
    const MOST: usize = 220;
    if text.len() > MOST {
        let cut = (0..=MOST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

fn failed_guest() -> GuestError {
    GuestError::Other("planned".into())
}
