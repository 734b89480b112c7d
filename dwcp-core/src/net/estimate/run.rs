//! One transfer in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::advice::Advice;
use super::experience::{Cost, Experience};
use super::link::Link;
use super::sample::Sample;
use super::{Estimate, EstimateConfig, share};
use crate::extent::{FlatPage, Layout, PageMask, RegionId};
use crate::guest::{DirtyMap, Guest, GuestError};
use crate::net::clock::Stopwatch;
use crate::net::dial::NOTSENT_LOWAT;
use crate::net::dictionaries::Held;
use crate::net::lane_source::{Press, ShadowBytes, Sheet, SourcePages, Unread};
use crate::session::{
    Applied, Dispatch, Encoded, Fingerprint, Input, Leaves, Machine, Outcome, Output, Progress, SessionError, Sink,
    SinkConfig, Source, SourceConfig, Time, Verdict,
};
use crate::wire::{Digest, FenceEpoch, Frame, GuestKind, LaneId, Name, Offer, TransferId};

/// Bytes of all lanes together that are on their way, beside those that wait unsent in each lane's socket, before a write
/// waits: what a switch holds, but of a slow link no longer than [`QUEUED`].
const QUEUE: u64 = 1 << 20;
/// Longer ones are cut short by those who shape slow links.
const QUEUED: Duration = Duration::from_millis(250);
/// Bytes a second that one core encrypts, where it has AES in hardware.
const ENCRYPTED: u64 = 2_500_000_000;
/// To make a record durable, or what was staged. The source's own estimate takes 15 ms for all of them together.
const SYNC: Duration = Duration::from_millis(5);
/// Round trips before the first frame of lane 0 leaves: TCP, TLS, HELLO.
const DIAL_TRIPS: u32 = 3;
/// Half round trips until JOIN is at the sink: TCP, TLS, and its way.
const JOIN_HALVES: u32 = 5;
/// Control frames up to this size find room between extents.
const SMALL: u64 = 1024;
/// So far apart are pages that are written one after the other: a prime, so that all have their turn.
const STRIDE: u64 = 0x9e37_79b1;
/// Pages of an extent that stands for others: as sources cut them.
const LEAST_PAGES: usize = 16;
const MOST_PAGES: usize = 256;
const EPOCH: FenceEpoch = FenceEpoch(1);
const SOMEBODY: Fingerprint = Fingerprint([0; 32]);

/// Something that will happen.
enum Event {
    AtSource(Input),
    AtSink(Input),
    /// A lane's worker has encoded an extent.
    Encoded(LaneId, Box<Made>),
    /// It can take the next one.
    Written(LaneId),
}

/// An extent that was made, or is taken to be.
struct Made {
    dispatch: Dispatch,
    encoded: Encoded,
    pieces: [u64; 2],
}

/// The worker of a lane.
#[derive(Default)]
struct Worker {
    work: VecDeque<Dispatch>,
    busy: bool,
}

/// What the guest writes, at so many pages a second.
struct Writer {
    rate: u64,
    /// Pages that were written in all, and to where that was harvested: more than 64 bits count, of a guest that is absurd.
    harvested: u128,
    began: Option<Time>,
    stopped: Option<Time>,
}

pub(super) struct Run<'a> {
    config: &'a EstimateConfig,
    layout: Layout,
    now: Time,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    source: Source,
    sink: Sink,
    sink_leaves: Arc<Leaves>,
    pages: SourcePages,
    press: Press,
    workers: BTreeMap<LaneId, Worker>,
    /// When each core is free.
    cores: Vec<Time>,
    encoding: Duration,
    forth: Link,
    back: Link,
    control_bytes: u64,
    answer_bytes: u64,
    sample: Sample,
    experience: Experience,
    /// Nothing is encoded of which enough is known.
    over: bool,
    writer: Writer,
    harvests: u64,
    first_round: Option<Duration>,
    outcome: Option<Outcome>,
}

impl<'a> Run<'a> {
    pub(super) fn new(guest: Arc<dyn Guest>, config: &'a EstimateConfig) -> Result<Self, GuestError> {
        let layout = guest.layout().clone();
        let [leaves, sink_leaves] = [(); 2].map(|()| Arc::new(Leaves::new(&layout)));
        let offer = Offer {
            dictionaries: Vec::new(),
            baselines: config.baseline.iter().map(|baseline| baseline.digest()).collect(),
            transfer: TransferId([0; 16]),
            epoch: EPOCH,
            kind: GuestKind::Image,
            name: Name::new("estimate").map_err(|error| GuestError::Other(error.to_string()))?,
            layout: layout.clone(),
        };
        let source = Source::new(
            SourceConfig { encoders: config.cores.get(), ..config.source.clone() },
            offer.clone(),
            Arc::clone(&leaves),
            SOMEBODY,
        );
        let sink = Sink::new(SinkConfig::default(), offer, Arc::clone(&sink_leaves), SOMEBODY);
        let agreed = config.baseline.as_ref().map(|baseline| {
            // The first search by content prepares all others. A transfer pays that once, and so must no piece that stands for many.
            baseline.find(Digest([0; 32]), (RegionId(0), 0));
            baseline.leaves_of(&layout)
        });
        Ok(Self {
            sample: Sample::new(&layout, config.sample, config.zeros.clone()),
            source: source.with_baselines(agreed.iter().cloned().collect()),
            sink: match agreed {
                Some(leaves) => sink.with_baseline(0, leaves),
                None => sink,
            },
            pages: SourcePages {
                guest,
                leaves,
                shadow: ShadowBytes::default(),
                baselines: config.baseline.iter().cloned().collect(),
                dictionaries: Held::default(),
                unread: Unread::default(),
            },
            press: Press::new(),
            now: Time::default(),
            events: BTreeMap::new(),
            next_event: 0,
            workers: BTreeMap::new(),
            cores: vec![Time::default(); usize::from(config.cores.get())],
            encoding: Duration::ZERO,
            forth: Link::new(config.link, queue(config)),
            back: Link::new(config.link, u64::MAX),
            control_bytes: 0,
            answer_bytes: 0,
            experience: Experience::default(),
            over: false,
            writer: Writer { rate: config.written_pages, harvested: 0, began: None, stopped: None },
            harvests: 0,
            first_round: None,
            outcome: None,
            sink_leaves,
            config,
            layout,
        })
    }

    /// The same transfer over what another one has learnt of the pages, which need not be encoded again.
    pub(super) fn over(self, experience: Experience) -> Self {
        Self { experience, over: true, ..self }
    }

    /// The answer, and what was learnt of the pages.
    pub(super) fn finish(mut self) -> Result<(Estimate, Experience), GuestError> {
        self.after(self.config.rtt * DIAL_TRIPS, Event::AtSource(Input::Start));
        while self.outcome.is_none() {
            let next = self.events.first_key_value().map(|((at, _), _)| *at);
            let deadline = [self.source.deadline(), self.sink.deadline()].into_iter().flatten().min();
            let ticks = deadline.filter(|at| next.is_none_or(|next| *at < next));
            if let Some(at) = ticks {
                self.now = self.now.max(at);
                self.tick()?;
            } else if let Some(((at, _), event)) = self.events.pop_first() {
                self.now = self.now.max(at);
                self.happens(event)?;
            } else {
                return Err(GuestError::Other(
                    "the estimate has come to a stand; report it with the command line".into(),
                ));
            }
        }
        self.told()
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn at(&mut self, at: Time, event: Event) {
        self.next_event += 1;
        self.events.insert((at, self.next_event), event);
    }

    fn tick(&mut self) -> Result<(), GuestError> {
        if self.source.deadline().is_some_and(|at| at <= self.now) {
            self.feed_source(Input::Tick)?;
        }
        if self.sink.deadline().is_some_and(|at| at <= self.now) {
            self.feed_sink(Input::Tick);
        }
        Ok(())
    }

    fn happens(&mut self, event: Event) -> Result<(), GuestError> {
        match event {
            Event::AtSource(input) => self.feed_source(input),
            Event::AtSink(input) => {
                self.feed_sink(input);
                Ok(())
            }
            Event::Encoded(lane, made) => self.encoded(lane, *made),
            Event::Written(lane) => {
                if let Some(worker) = self.workers.get_mut(&lane) {
                    worker.busy = false;
                }
                self.work(lane)
            }
        }
    }

    fn feed_source(&mut self, input: Input) -> Result<(), GuestError> {
        self.source.handle(self.now, input);
        while let Some(output) = self.source.poll() {
            self.source_asks(output)?;
        }
        if self.first_round.is_none() && !self.source.progress().rounds.is_empty() {
            self.first_round = Some(self.now.since_epoch());
        }
        Ok(())
    }

    fn feed_sink(&mut self, input: Input) {
        self.sink.handle(self.now, input);
        while let Some(output) = self.sink.poll() {
            self.sink_asks(output);
        }
    }

    fn source_asks(&mut self, output: Output) -> Result<(), GuestError> {
        match output {
            Output::Control(frame) => self.say(frame),
            Output::OpenLane(lane) => {
                self.workers.insert(lane, Worker::default());
                self.after(self.config.rtt * JOIN_HALVES / 2, Event::AtSink(Input::LaneJoin { lane }));
            }
            Output::CloseLane(lane) => {
                self.workers.remove(&lane);
                self.after(Duration::ZERO, Event::AtSource(Input::LaneDown { lane }));
            }
            Output::Send(dispatch) => {
                let lane = dispatch.lane;
                if let Some(worker) = self.workers.get_mut(&lane) {
                    worker.work.push_back(dispatch);
                }
                self.work(lane)?;
            }
            Output::Harvest => {
                let harvested = self.harvest()?;
                self.after(Duration::ZERO, Event::AtSource(harvested));
            }
            Output::Recall { held, baseline } => {
                if let Some(baseline) = baseline {
                    held.assume(&baseline);
                }
                let same = DirtyMap::new(&self.layout);
                self.after(Duration::ZERO, Event::AtSource(Input::Recalled { same }));
            }
            Output::Pause => {
                self.pages.guest.pause()?;
                self.writer.stopped = Some(self.now);
                self.after(Duration::ZERO, Event::AtSource(Input::Paused));
            }
            Output::SaveDevices => {
                let state = Bytes::from(vec![0; self.config.device_state]);
                self.after(Duration::ZERO, Event::AtSource(Input::Devices(state)));
            }
            Output::Persist(_) => self.after(SYNC, Event::AtSource(Input::Persisted)),
            Output::Finished(outcome) => self.outcome = Some(outcome),
            _ => {}
        }
        Ok(())
    }

    fn sink_asks(&mut self, output: Output) {
        match output {
            Output::Control(frame) => {
                let bytes = length(&frame);
                self.answer_bytes += bytes;
                let left = self.back.send(self.now, [bytes, 0]).left;
                self.at(left + self.config.rtt / 2, Event::AtSource(Input::Frame(frame)));
            }
            Output::AdmitLane { lane, credit } => {
                self.after(self.config.rtt / 2, Event::AtSource(Input::LaneUp { lane, credit }));
            }
            Output::CloseLane(lane) => self.after(Duration::ZERO, Event::AtSink(Input::LaneDown { lane })),
            Output::Stage { .. } => self.after(SYNC, Event::AtSink(Input::Staged)),
            Output::Run => self.after(Duration::ZERO, Event::AtSink(Input::Running)),
            Output::Persist(_) => self.after(SYNC, Event::AtSink(Input::Persisted)),
            _ => {}
        }
    }

    /// A frame of lane 0 to the sink, whose first is the offer, which its embedder takes.
    fn say(&mut self, frame: Frame) {
        let bytes = length(&frame);
        self.control_bytes += bytes;
        let left = if bytes > SMALL { self.forth.send(self.now, [bytes, 0]).left } else { self.now };
        let input = if matches!(frame, Frame::Offer(_)) { Input::Start } else { Input::Frame(frame) };
        self.at(left + self.config.rtt / 2, Event::AtSink(input));
    }

    /// The worker of a lane begins with its next extent, on the core that is free first.
    fn work(&mut self, lane: LaneId) -> Result<(), GuestError> {
        let Some(worker) = self.workers.get_mut(&lane).filter(|worker| !worker.busy) else { return Ok(()) };
        let Some(dispatch) = worker.work.pop_front() else { return Ok(()) };
        worker.busy = true;
        let cost = self.make(&dispatch)?;
        let wire_bytes = cost.head_bytes + cost.body_bytes;
        let encode = Duration::from_nanos(cost.nanos);
        let encrypt = Duration::from_nanos(super::scaled(wire_bytes, 1_000_000_000, ENCRYPTED));
        let begun = match self.cores.iter_mut().min() {
            Some(core) => {
                let begun = (*core).max(self.now);
                *core = begun + encode + encrypt;
                begun
            }
            None => self.now,
        };
        self.encoding += encode + encrypt;
        let count = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        let pages = u64::try_from(dispatch.extent.pages()).unwrap_or(0);
        let encoded = Encoded {
            lane,
            seq: dispatch.seq,
            wire_bytes,
            carried: count(cost.carried),
            same: count(pages - cost.carried.min(pages)),
            encode,
        };
        let made = Made { dispatch, encoded, pieces: [cost.head_bytes, cost.body_bytes] };
        self.at(begun + encode, Event::Encoded(lane, Box::new(made)));
        Ok(())
    }

    fn encoded(&mut self, lane: LaneId, made: Made) -> Result<(), GuestError> {
        let Made { dispatch, encoded, pieces } = made;
        self.feed_source(Input::Encoded(encoded))?;
        let written = self.forth.send(self.now, pieces);
        let encrypt = Duration::from_nanos(super::scaled(encoded.wire_bytes, 1_000_000_000, ENCRYPTED));
        let returns = written.at.max(self.now + encrypt);
        self.at(returns, Event::Written(lane));
        let applied =
            Applied { lane, seq: encoded.seq, wire_bytes: encoded.wire_bytes, pages: encoded.carried, durable: 0 };
        // What the sink stores has the leaves that the source hashed.
        let first = self.layout.region(dispatch.extent.region()).map_or(0, |region| region.first);
        for page in dispatch.extent.page_numbers().map(|page| FlatPage(first + page)) {
            self.sink_leaves.set(page, self.pages.leaves.get(page));
        }
        self.at(written.left + self.config.rtt / 2, Event::AtSink(Input::Applied(applied)));
        Ok(())
    }

    /// Makes an extent, or tells what it would take.
    fn make(&mut self, dispatch: &Dispatch) -> Result<Cost, GuestError> {
        let pages = u64::try_from(dispatch.extent.pages()).unwrap_or(0);
        if self.writer.rate > 0
            && self.harvests > 1
            && let Some(cost) = self.experience.again(dispatch.effort, pages)
        {
            return Ok(cost);
        }
        let solid = self.sample.solid(&self.layout, &dispatch.extent);
        if self.over
            && let Some(cost) = self.experience.average(dispatch.effort, solid)
        {
            return Ok(cost);
        }
        let first = self.layout.region(dispatch.extent.region()).map_or(0, |region| region.first);
        let start = dispatch.extent.runs().first().map_or(0, |run| run.start);
        if solid > 0
            && let Some(part) = self.sample.part_of(FlatPage(first + start))
        {
            let effort = dispatch.effort;
            if let Some(cost) = self.experience.alike(effort, part, pages, solid) {
                return Ok(cost);
            }
            let cost = self.make_chunk(part, dispatch)?;
            self.experience.learn_part(effort, part, cost);
            return Ok(self.experience.alike(effort, part, pages, solid).unwrap_or_default());
        }
        let cost = Cost { solid, ..self.print(dispatch)? };
        self.experience.learn(dispatch.effort, &cost);
        Ok(cost)
    }

    /// Makes what stands for a part of the image, in extents like this one. Whether it comes to be sent itself, and how
    /// often it is made, makes no difference to the sink.
    fn make_chunk(&mut self, part: u32, like: &Dispatch) -> Result<Cost, GuestError> {
        let pages = like.extent.pages().next_power_of_two().clamp(LEAST_PAGES, MOST_PAGES);
        let mut sum = Cost::default();
        for extent in self.sample.extents(&self.layout, part, u32::try_from(pages).unwrap_or(u32::MAX)) {
            let first = self.layout.region(extent.region()).map_or(0, |region| region.first);
            let numbers: Vec<FlatPage> = extent.page_numbers().map(|page| FlatPage(first + page)).collect();
            let leaves: Vec<_> = numbers.iter().map(|page| self.pages.leaves.get(*page)).collect();
            let mut known = PageMask::EMPTY;
            if !like.known.is_empty() {
                (0..numbers.len()).for_each(|page| known.set(page));
            }
            let solid = u64::try_from(numbers.len()).unwrap_or(0);
            let dispatch = Dispatch { extent, known, slots: Vec::new(), based: PageMask::EMPTY, ..*like };
            sum.add(&Cost { solid, ..self.print(&dispatch)? });
            for (page, leaf) in numbers.into_iter().zip(leaves) {
                self.pages.leaves.set(page, leaf);
            }
        }
        Ok(sum)
    }

    /// Makes an extent, and takes the time of it.
    fn print(&mut self, dispatch: &Dispatch) -> Result<Cost, GuestError> {
        let watch = Stopwatch::start();
        let sheet = self.press.print(&self.pages, EPOCH, dispatch, Sheet::default())?;
        let nanos = watch.nanos();
        let bytes = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Cost {
            solid: 0,
            carried: u64::from(sheet.carried),
            head_bytes: bytes(&sheet.head),
            body_bytes: bytes(sheet.body()),
            nanos,
            methods: sheet.methods,
        })
    }

    /// What the guest knows, and what it is said to write.
    fn harvest(&mut self) -> Result<Input, GuestError> {
        let mut dirty = DirtyMap::new(&self.layout);
        let pending = self.pages.guest.harvest(&mut dirty)?;
        self.harvests += 1;
        let until = self.writer.stopped.unwrap_or(self.now);
        let since = *self.writer.began.get_or_insert(until);
        if self.writer.rate > 0 {
            let written = until.since(since).as_nanos().saturating_mul(u128::from(self.writer.rate)) / 1_000_000_000;
            self.write(written, &mut dirty);
        }
        Ok(Input::Harvested { dirty, pending })
    }

    /// Marks what was written up to a count of pages since the start. Pages of zeros stay zeros.
    fn write(&mut self, written: u128, dirty: &mut DirtyMap) {
        let pages = u128::from(self.layout.pages());
        let more = (written - self.writer.harvested.min(written)).min(pages);
        let mut place = self.writer.harvested % pages.max(1);
        for _ in 0..more {
            place = (place + 1) % pages.max(1);
            let mut left = place * u128::from(STRIDE) % pages.max(1);
            for (id, region) in self.layout.regions() {
                match u32::try_from(left) {
                    Ok(page) if page < region.pages => {
                        if !self.sample.is_zero(FlatPage(region.first + page)) {
                            dirty.mark(id, page, 1);
                        }
                        break;
                    }
                    _ => left -= u128::from(region.pages),
                }
            }
        }
        self.writer.harvested = written;
    }

    fn told(self) -> Result<(Estimate, Experience), GuestError> {
        let error = self.outcome.and_then(|outcome| outcome.error);
        let not_converging: Option<Verdict> = match error {
            None => None,
            Some(SessionError::NotConverging(verdict)) => Some(verdict),
            Some(SessionError::Guest(error)) => return Err(error),
            Some(other) => return Err(GuestError::Other(format!("the transfer would fail: {other}"))),
        };
        let elapsed = self.now.since_epoch();
        let (encoded, nanos) = self.experience.encoded();
        let progress = Progress { methods: self.experience.methods(), ..self.source.progress().clone() };
        let cores = u128::from(self.config.cores.get());
        let to_look_at = self.config.zeros.as_ref().map_or(0, DirtyMap::count);
        let estimate = Estimate {
            first_round: self.first_round.unwrap_or(elapsed),
            tls_bytes: self.forth.tls_bytes,
            packet_bytes: self.forth.packet_bytes,
            control_bytes: self.control_bytes,
            answer_bytes: self.answer_bytes,
            link_busy: share(self.forth.busy.as_nanos(), elapsed.as_nanos()),
            cores_busy: share(self.encoding.as_nanos(), elapsed.as_nanos() * cores),
            encode_rate: super::scaled(encoded * 4096, 1_000_000_000, nanos),
            looked_at: self.experience.read() * 4096,
            to_look_at: (self.layout.pages() - to_look_at) * 4096,
            not_converging,
            advice: Advice::default(),
            progress,
            elapsed,
        };
        Ok((estimate, self.experience))
    }
}

/// Bytes that are written before a write waits.
fn queue(config: &EstimateConfig) -> u64 {
    let millis = u64::try_from(QUEUED.as_millis()).unwrap_or(u64::MAX);
    let switch = QUEUE.min(super::scaled(config.link.get(), millis, 1000));
    switch + u64::from(config.source.lanes) * u64::from(NOTSENT_LOWAT)
}

/// Bytes of a control frame.
fn length(frame: &Frame) -> u64 {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
