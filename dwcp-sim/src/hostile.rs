//! The bodies of the fuzz targets: arbitrary bytes of a peer against everything that reads them.
//! `cargo test` replays the corpora through the same functions.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dwcp_core::extent::{FlatPage, PAGE_BYTES};
use dwcp_core::session::binding::{self, Key, Speaker};
use dwcp_core::session::handover::Wish;
use dwcp_core::session::{
    Applied, Encoded, Input, Leaves, Machine, Output, Phase, Sink, SinkConfig, Source, SourceConfig, Time, leaves,
};
use dwcp_core::wire::limits::{MAX_HANDOVER_NODES, MAX_HANDSHAKE_BYTES};
use dwcp_core::wire::{
    Abort, AbortReason, Accept, Ack, Buried, Bury, Credit, DeviceState, Digest, ErrorCode, ErrorFrame, ExtentHead,
    FRAME_HEADER_BYTES, Fence, FenceEpoch, FencedLane, Frame, FrameHeader, FrameType, Framing, GuestKind, HandedLane,
    Handover, Have, LaneId, Message, Name, Offer, Pause, PeerLimits, Ping, Prefer, Ready, Run, Running, TransferId,
};
use dwcp_core::{DirtyMap, Layout, Pending, RegionId};
use dwcp_hde::{BaseMissing, BaseSource, Bases};

use crate::PEER;
use crate::specimens::dictionaries;

/// Bytes as one frame on any lane: it is refused, or it is a frame that can be written and read again.
pub fn check_frame(data: &[u8]) {
    let Some((head, body)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() else { return };
    let Ok(header) = FrameHeader::decode(*head, body.len()) else { return };
    let Some(body) = body.get(..header.body_bytes()) else { return };
    if header.frame == FrameType::Extent.byte() {
        return check_extent(head, body);
    }
    let Ok(Some(frame)) = Frame::decode(header.frame, body) else { return };
    let mut again = Vec::new();
    frame.encode(&mut again);
    let decoded = Frame::decode(header.frame, &again[FRAME_HEADER_BYTES..]);
    assert!(matches!(decoded, Ok(Some(_))), "what was read cannot be written: {frame:?}");
    // A text loses its control characters; everything else has one form only.
    if !matches!(frame, Frame::Abort(_) | Frame::Error(_)) {
        assert_eq!(&again[FRAME_HEADER_BYTES..], body, "{frame:?} has two forms");
    }
}

fn check_extent(head: &[u8], body: &[u8]) {
    let Ok((extent, block)) = ExtentHead::decode(body) else { return };
    let mut again = Vec::new();
    extent.encode(block.len(), &mut again).unwrap();
    let (first, rest) = again.split_at(FRAME_HEADER_BYTES);
    assert_eq!(first[..5], head[..5], "the header has two forms");
    assert_eq!(rest, &body[..body.len() - block.len()], "the head has two forms");
}

/// Bytes as the first frames of a connection: refused, or chosen from without widening anything.
pub fn check_hello(data: &[u8]) {
    check_frame(data);
    let own = PeerLimits { extent_pages: 100, lanes: 4 };
    if let Some((head, body)) = data.split_first_chunk::<FRAME_HEADER_BYTES>()
        && let Ok(header) = FrameHeader::decode(*head, MAX_HANDSHAKE_BYTES)
    {
        assert!(header.body_bytes() <= MAX_HANDSHAKE_BYTES);
        if let Some(body) = body.get(..header.body_bytes()) {
            let _ = Frame::decode(header.frame, body);
        }
    }
    let hello = Frame::decode(FrameType::Hello.byte(), data);
    let ack = Frame::decode(FrameType::HelloAck.byte(), data);
    for frame in [FrameType::Bind, FrameType::Join, FrameType::Joined] {
        let _ = Frame::decode(frame.byte(), data);
    }
    if let Ok(Some(Frame::Hello(hello))) = hello {
        let narrow = binding::narrow(own, hello.limits);
        assert!(narrow.extent_pages <= own.extent_pages && narrow.lanes <= own.lanes && narrow.lanes > 0);
        let sink = binding::Speaks::new(true, Framing::Extents).unwrap();
        if let Ok(chosen) = binding::choose(&hello, &sink, 0) {
            assert!((hello.version_min..=hello.version_max).contains(&chosen.framing.version()));
            assert_eq!(chosen.features & !hello.features, 0, "a feature that was not offered");
        }
    }
    if let Ok(Some(Frame::HelloAck(ack))) = ack {
        let hello = dwcp_core::wire::Hello {
            version_min: 3,
            version_max: 3,
            role: dwcp_core::wire::Role::Source,
            features: 0,
            required: 0,
            limits: own,
            nonce: [1; 32],
            resume: None,
        };
        let _ = binding::offers_mac(&Key::new([2; 32]), Speaker::Sink, &hello, &ack);
    }
}

/// Bytes as a block of `1 + data[0]` pages: refused, or exactly so many pages.
pub fn check_block(data: &[u8]) {
    let Some((&count, block)) = data.split_first() else { return };
    let pages = usize::from(count) + 1;
    let _ = dwcp_hde::needs_bases(block, pages);
    DECODER.with_borrow_mut(|(decoder, scratch)| {
        let mut held = Held(Bases::new([u64::MAX; 4], &OLD));
        for bases in [&mut Bases::none() as &mut dyn BaseSource, &mut held] {
            let decoded = decoder.decode_with(block, pages, bases, &dictionaries(), scratch);
            if let Ok(plain) = decoded {
                assert_eq!(plain.len(), pages * PAGE_BYTES);
            }
        }
    });
}

/// Old pages, and a baseline of half as many pages as there are numbers.
struct Held<'a>(Bases<'a>);

impl BaseSource for Held<'_> {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        self.0.base(page, into)
    }

    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        into.fill(if number < 1 << 31 { 0x5a } else { return Err(BaseMissing) });
        Ok(())
    }
}

/// The old content of every page of a block.
static OLD: [u8; dwcp_hde::MAX_PAGES * PAGE_BYTES] = [0xa5; dwcp_hde::MAX_PAGES * PAGE_BYTES];

thread_local! {
    /// Kept from one block to the next, as a lane's worker keeps its own: a new one costs more than most blocks.
    static DECODER: RefCell<(dwcp_hde::Decoder, Vec<u8>)> = const { RefCell::new((dwcp_hde::Decoder::new(), Vec::new())) };
}

/// Outputs that one input may give: an extent per few pages and a frame per lane are far below.
const MOST_OUTPUTS: usize = 5000;
/// Inputs taken from one string of bytes.
const MOST_OPERATIONS: usize = 3000;

/// Bytes as a list of whatever a peer, a link and an operator can do to a source and to a sink, in any
/// order: no panic, bounded outputs, and an end that says who owns the guest. The drivers are honest
/// (they report what they did and nothing else), the peers are not.
pub fn run_operations(data: &[u8]) {
    let _ = reach(data);
}

/// How far the source and the sink came.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// Their last phases before the end.
    pub phases: [Phase; 2],
    /// Their hand-overs.
    pub handovers: [u64; 2],
}

/// As [`run_operations`]; says how far they came.
pub fn reach(data: &[u8]) -> Reached {
    let layout = Layout::new(&[70 * 4096, 5 * 4096 - 1]).unwrap();
    let offer = Offer {
        transfer: TransferId([1; 16]),
        epoch: FenceEpoch(1),
        kind: GuestKind::Live,
        name: Name::new("fuzz").unwrap(),
        dictionaries: vec![Digest([7; 32])],
        baselines: vec![Digest([8; 32])],
        layout: layout.clone(),
    };
    let mut bytes = Script { data };
    let source =
        SourceConfig { shadow_bytes: 8 * 4096, limits: bytes.limits(), messages: true, ..SourceConfig::default() };
    let source = Source::new(source, offer.clone(), Arc::new(Leaves::new(&layout)), PEER);
    let baseline = Arc::new(Leaves::new(&layout));
    (3..40).for_each(|page| baseline.set(FlatPage(page), Digest([9; 32])));
    let source = source.with_baselines(vec![baseline]);
    let sink =
        Sink::new(SinkConfig { messages: true, ..SinkConfig::default() }, offer, Arc::new(Leaves::new(&layout)), PEER);
    let mut source = Driven::new(source, &layout);
    let mut sink = Driven::new(sink, &layout);
    source.feed(Input::Start);
    sink.feed(Input::Start);
    let mut phases = [Phase::Offered; 2];
    for _ in 0..MOST_OPERATIONS {
        let Some(operation) = bytes.byte() else { break };
        if operation & 0x80 == 0 {
            let input = source.input(operation, &mut bytes);
            source.feed(input);
        } else {
            let input = sink.input(operation, &mut bytes);
            sink.feed(input);
        }
        for (reached, progress) in phases.iter_mut().zip([source.machine.progress(), sink.machine.progress()]) {
            if progress.phase != Phase::Ended {
                *reached = progress.phase;
            }
        }
    }
    source.feed(Input::Cancel);
    assert!(source.finished, "a cancelled source has not ended");
    sink.feed(Input::Cancel);
    Reached { phases, handovers: [source.machine.progress().handovers, sink.machine.progress().handovers] }
}

/// The bytes that are left.
struct Script<'a> {
    data: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.data.split_first()?;
        self.data = rest;
        Some(first)
    }

    /// A number: mostly small, sometimes at an edge.
    fn number(&mut self) -> u64 {
        match self.byte().unwrap_or(0) {
            0xff => u64::MAX,
            0xfe => u64::MAX - 1,
            0xfd => 1 << 40,
            small => u64::from(small & 0x1f),
        }
    }

    fn lane(&mut self) -> LaneId {
        LaneId(u16::from(self.byte().unwrap_or(0) & 7).max(1))
    }

    fn digest(&mut self) -> Digest {
        Digest([self.byte().unwrap_or(0); 32])
    }

    fn limits(&mut self) -> PeerLimits {
        let extent_pages = u16::from(self.byte().unwrap_or(15)).max(1);
        PeerLimits { extent_pages, lanes: u16::from(self.byte().unwrap_or(3) & 3) + 1 }
    }

    fn wish(&mut self) -> Wish {
        let byte = self.byte().unwrap_or(0);
        let framing = if byte & 1 == 0 { Framing::Messages } else { Framing::Extents };
        Wish { framing, restart: byte & 2 != 0 }
    }

    /// The epoch that is due, or another.
    fn epoch(&mut self, due: FenceEpoch) -> FenceEpoch {
        if self.rarely() { FenceEpoch(self.number()) } else { due }
    }

    fn transfer(&mut self) -> TransferId {
        TransferId([if self.byte() == Some(0) { 2 } else { 1 }; 16])
    }

    /// A frame of either direction, by chance.
    fn any_frame(&mut self, hint: &mut Hint) -> Frame {
        match self.byte().unwrap_or(0) & 0x1f {
            0 | 1 => Frame::Abort(Abort { reason: AbortReason::Cancelled, text: "fuzz".into() }),
            2 | 3 => Frame::Error(ErrorFrame {
                code: ErrorCode::ALL[usize::from(self.byte().unwrap_or(0)) % ErrorCode::ALL.len()],
                lane: self.lane(),
                position: self.number(),
                text: "fuzz".into(),
            }),
            4 => Frame::Accept(Accept { transfer: self.transfer(), dictionaries: 0, baseline: None }),
            even if even % 2 == 0 => self.sink_says(even, hint),
            odd => self.source_says(odd, hint),
        }
    }

    /// A frame that a sink would send.
    fn sink_says(&mut self, kind: u8, hint: &mut Hint) -> Frame {
        let epoch = hint.epoch;
        match kind & 0x1f {
            0 => Frame::Have(Have {
                region: RegionId(u16::from(self.byte().unwrap_or(0)) & 3),
                first: u32::try_from(self.number()).unwrap_or(u32::MAX),
                leaves: vec![Digest([self.byte().unwrap_or(0); 32]); 3],
            }),
            1..=2 => {
                let baseline = (kind & 0x1f == 2).then_some(0);
                Frame::Accept(Accept { transfer: TransferId([1; 16]), dictionaries: 0, baseline })
            }
            3..=12 if self.rarely() => {
                Frame::Ack(Ack { durable: self.number(), lanes: vec![(self.lane(), self.number())] })
            }
            3..=12 if !hint.encoded.is_empty() => {
                Frame::Ack(Ack { durable: 0, lanes: hint.encoded.iter().map(|(&lane, &next)| (lane, next)).collect() })
            }
            13 if self.rarely() => {
                let Wish { framing, restart } = self.wish();
                Frame::Prefer(Prefer { framing, restart })
            }
            14 if self.rarely() || hint.fence.is_some() => self.handover(hint),
            13..=15 => Frame::Credit(Credit { lane: self.lane(), total: self.number() << 20 }),
            16..=19 if self.rarely() || !hint.buries.is_empty() => {
                let lane = hint.buries.pop_front().unwrap_or_else(|| self.lane());
                let most = hint.encoded.get(&lane).copied().unwrap_or(0);
                let applied = if self.rarely() { self.number() } else { self.number().min(most) };
                Frame::Buried(Buried { lane, applied })
            }
            20..=25 if self.rarely() || hint.attempt > 0 && !hint.run => Frame::Ready(Ready {
                transfer: if self.rarely() { self.transfer() } else { TransferId([1; 16]) },
                epoch,
                attempt: if self.rarely() { self.number() as u32 } else { hint.attempt },
                root: if self.rarely() { self.digest() } else { hint.root },
                device_digest: Digest(*blake3::hash(b"").as_bytes()),
            }),
            26..=28 if self.rarely() || hint.run => Frame::Running(Running { transfer: self.transfer(), epoch }),
            29 | 30 => Frame::Ping(Ping { id: self.number() }),
            _ => Frame::Pong(Ping { id: self.number() }),
        }
    }

    /// The answer to the FENCE that was said last, or nearly so.
    fn handover(&mut self, hint: &Hint) -> Frame {
        let fence = hint.fence.as_ref();
        let fenced = fence.map(|fence| fence.lanes.clone()).unwrap_or_default();
        let mut lanes: Vec<HandedLane> = Vec::new();
        for FencedLane { lane, end, .. } in fenced {
            let applied = if self.rarely() { self.number() } else { end };
            lanes.push(HandedLane { lane, applied, credit: self.number() << 20 });
        }
        let mut nodes = hint.nodes.clone();
        if self.rarely() {
            nodes.truncate(usize::from(self.byte().unwrap_or(0)));
        } else if self.rarely() {
            nodes.iter_mut().for_each(|node| *node = self.digest());
        }
        let due = fence.map_or(hint.epoch, |fence| fence.epoch);
        Frame::Handover(Handover { transfer: self.transfer(), epoch: self.epoch(due), lanes, nodes })
    }

    /// A FENCE that fits, or nearly so.
    fn fence(&mut self, hint: &Hint) -> Frame {
        let mut lanes = Vec::new();
        for _ in 0..self.number().min(2) {
            let (lane, next) = (self.lane(), LaneId(self.lane().0 + 8));
            lanes.push(FencedLane { lane, end: self.number(), next });
        }
        let (transfer, epoch) = (self.transfer(), self.epoch(FenceEpoch(hint.epoch.0.saturating_add(1))));
        let Wish { framing, restart } = self.wish();
        Frame::Fence(Fence { transfer, epoch, framing, restart, lanes })
    }

    /// A MESSAGE that comes in its turn, or nearly so.
    fn message(&mut self, hint: &Hint) -> Frame {
        let lane = self.lane();
        let first = if self.rarely() { self.number() } else { hint.applied.get(&lane).copied().unwrap_or(0) };
        let bytes = if self.rarely() { u32::MAX } else { 4200 };
        Frame::Message(Message { lane, first, extents: 1, pages: 1, bytes, digest: self.digest() })
    }

    /// A frame that a source would send.
    fn source_says(&mut self, kind: u8, hint: &Hint) -> Frame {
        let epoch = hint.epoch;
        match kind & 0x1f {
            0..=2 => Frame::Bury(Bury { lane: self.lane() }),
            3 | 4 => self.fence(hint),
            5 => self.message(hint),
            6..=14 if self.rarely() || !hint.run => Frame::Pause(Pause {
                attempt: if self.rarely() { self.number() as u32 } else { hint.attempt.wrapping_add(1) },
                root: if self.rarely() { self.digest() } else { hint.root },
                device_bytes: if self.rarely() { self.number().min(64 << 20) } else { 0 },
                device_digest: Digest(*blake3::hash(b"").as_bytes()),
                finals: if self.rarely() { vec![(self.lane(), self.number())] } else { Vec::new() },
            }),
            15..=17 if self.rarely() => Frame::DeviceState(DeviceState {
                attempt: hint.attempt,
                offset: if self.rarely() { self.number() } else { 0 },
                bytes: Bytes::from(vec![0; self.number().clamp(1, 64) as usize]),
            }),
            18..=28 if self.rarely() || hint.ready => Frame::Run(Run {
                transfer: if self.rarely() { self.transfer() } else { TransferId([1; 16]) },
                epoch,
                attempt: if self.rarely() { self.number() as u32 } else { hint.attempt },
                root: if self.rarely() { self.digest() } else { hint.root },
            }),
            29 | 30 => Frame::Ping(Ping { id: self.number() }),
            _ => Frame::Pong(Ping { id: self.number() }),
        }
    }

    fn rarely(&mut self) -> bool {
        self.byte().unwrap_or(1) & 0x1f == 0
    }
}

/// What a peer that means to come far would say.
#[derive(Debug)]
struct Hint {
    /// The pause that is going on.
    attempt: u32,
    root: Digest,
    /// For each lane how many extents the source encoded.
    encoded: BTreeMap<LaneId, u64>,
    /// Lanes whose burial was asked for.
    buries: VecDeque<LaneId>,
    /// RUN was said by the source; READY was said by the sink.
    run: bool,
    ready: bool,
    /// The epoch and the framing of the machine's lanes.
    epoch: FenceEpoch,
    framing: Framing,
    /// The FENCE that was said last.
    fence: Option<Fence>,
    /// What HANDOVER says of a sink that holds zeros.
    nodes: Vec<Digest>,
    /// For each lane how many extents the sink applied.
    applied: BTreeMap<LaneId, u64>,
}

/// A machine with an honest driver.
struct Driven<M> {
    machine: M,
    now: Duration,
    finished: bool,
    /// Dispatches that are not yet encoded.
    dispatched: VecDeque<(LaneId, u64, u64)>,
    /// Next sequence number that each admitted lane may apply.
    admitted: BTreeMap<LaneId, u64>,
    /// Messages that admitted lanes wait for.
    expected: BTreeMap<LaneId, Message>,
    /// Answers that are owed.
    owed: VecDeque<Input>,
    hint: Hint,
    layout: Layout,
}

impl<M: Machine> Driven<M> {
    fn new(machine: M, layout: &Layout) -> Self {
        // Hashing a guest of zeros costs more than most scripts.
        static ZEROS: OnceLock<(Digest, Vec<Digest>)> = OnceLock::new();
        let (root, nodes) = ZEROS
            .get_or_init(|| {
                let (mut tree, zeros) = (leaves::Tree::new(layout), Leaves::new(layout));
                let root = tree.root(&zeros);
                (root, tree.nodes(&zeros, MAX_HANDOVER_NODES).into_iter().map(|(_, digest)| digest).collect())
            })
            .clone();
        Self {
            hint: Hint {
                attempt: 0,
                root,
                encoded: BTreeMap::new(),
                buries: VecDeque::new(),
                run: false,
                ready: false,
                epoch: FenceEpoch(1),
                framing: Framing::Extents,
                fence: None,
                nodes,
                applied: BTreeMap::new(),
            },
            layout: layout.clone(),
            machine,
            now: Duration::ZERO,
            finished: false,
            dispatched: VecDeque::new(),
            admitted: BTreeMap::new(),
            expected: BTreeMap::new(),
            owed: VecDeque::new(),
        }
    }

    fn feed(&mut self, input: Input) {
        self.machine.handle(Time::after_epoch(self.now), input);
        let mut outputs = 0;
        while let Some(output) = self.machine.poll() {
            outputs += 1;
            assert!(outputs <= MOST_OUTPUTS, "more than {MOST_OUTPUTS} outputs for one input");
            assert!(!self.finished, "{output:?} after the end");
            self.obey(output);
        }
        let deadline = self.machine.deadline();
        assert!(!self.finished || deadline.is_none(), "a deadline after the end");
    }

    fn obey(&mut self, output: Output) {
        match output {
            Output::Control(frame) => {
                match &frame {
                    Frame::Pause(pause) => (self.hint.attempt, self.hint.root) = (pause.attempt, pause.root),
                    Frame::Bury(bury) => self.hint.buries.push_back(bury.lane),
                    Frame::Run(_) => self.hint.run = true,
                    Frame::Ready(_) => self.hint.ready = true,
                    Frame::Fence(fence) => self.hint.fence = Some(fence.clone()),
                    _ => {}
                }
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                let decoded = Frame::decode(frame.frame_type().byte(), &bytes[FRAME_HEADER_BYTES..]);
                assert!(matches!(decoded, Ok(Some(_))), "our own frame is refused: {frame:?}");
            }
            Output::Send(dispatch) => {
                self.dispatched.push_back((dispatch.lane, dispatch.seq, dispatch.extent.pages() as u64));
            }
            Output::AdmitLane { lane, .. } => {
                self.admitted.insert(lane, 0);
            }
            Output::CloseLane(lane) => {
                self.admitted.remove(&lane);
                self.dispatched.retain(|&(id, ..)| id != lane);
                self.owed.push_back(Input::LaneDown { lane });
            }
            Output::LeaveLane { lane, next } => {
                self.end_lane(FencedLane { lane, end: self.hint.encoded.get(&lane).copied().unwrap_or(0), next });
            }
            Output::EndLane(fenced) => self.end_lane(fenced),
            Output::Expect(message) => {
                self.expected.insert(message.lane, message);
            }
            Output::Engage { epoch, framing } => (self.hint.epoch, self.hint.framing) = (epoch, framing),
            Output::RaiseFence { least, .. } => self.owed.push_back(Input::Raised(least)),
            Output::Clear => self.owed.push_back(Input::Cleared),
            Output::Harvest => {
                let dirty = DirtyMap::new(&self.layout);
                self.owed.push_back(Input::Harvested { dirty, pending: Pending::Unknown });
            }
            Output::Recall { held, baseline } => {
                if let Some(baseline) = baseline {
                    held.assume(&baseline);
                }
                self.owed.push_back(Input::Recalled { same: DirtyMap::new(&self.layout) });
            }
            Output::Pause => self.owed.push_back(Input::Paused),
            Output::SaveDevices => self.owed.push_back(Input::Devices(Bytes::new())),
            Output::Stage { .. } => self.owed.push_back(Input::Staged),
            Output::Run => self.owed.push_back(Input::Running),
            Output::Persist(_) => self.owed.push_back(Input::Persisted),
            Output::Finished(_) => self.finished = true,
            _ => {}
        }
    }

    fn end_lane(&mut self, fenced: FencedLane) {
        self.admitted.remove(&fenced.lane);
        self.dispatched.retain(|&(id, ..)| id != fenced.lane);
        self.owed.push_back(Input::LaneEnded(fenced));
        self.owed.push_back(Input::LaneDown { lane: fenced.lane });
    }

    fn input(&mut self, operation: u8, bytes: &mut Script<'_>) -> Input {
        match operation & 0x1f {
            0..=6 => {
                let kind = bytes.byte().unwrap_or(0);
                let frame = match (kind & 0xe0, operation & 0x80) {
                    (0, _) if kind < 2 => bytes.any_frame(&mut self.hint),
                    (_, 0) => bytes.sink_says(kind, &mut self.hint),
                    _ => bytes.source_says(kind, &self.hint),
                };
                match &frame {
                    Frame::Pause(pause) => {
                        self.hint.attempt = self.hint.attempt.max(pause.attempt);
                        self.hint.ready = false;
                    }
                    Frame::Run(_) => self.hint.run = true,
                    _ => {}
                }
                Input::Frame(frame)
            }
            7..=12 => self.owed.pop_front().unwrap_or(Input::Tick),
            13..=17 => self.encode_next(),
            18 | 19 => self.apply_next(bytes.lane()),
            20 | 21 => Input::LaneUp { lane: bytes.lane(), credit: bytes.number() << 20 },
            22 | 23 => Input::LaneJoin { lane: bytes.lane() },
            24 => {
                let lane = bytes.lane();
                self.admitted.remove(&lane);
                self.dispatched.retain(|&(id, ..)| id != lane);
                Input::LaneDown { lane }
            }
            25 => {
                let mut dirty = DirtyMap::new(&self.layout);
                dirty.mark(RegionId(0), bytes.number() as u32, bytes.number() as u32);
                Input::Harvested { dirty, pending: Pending::Unknown }
            }
            26 => Self::trouble(bytes),
            27 => Input::ControlUp,
            28 => Input::Bandwidth(std::num::NonZeroU64::new(bytes.number())),
            _ => {
                let units = bytes.number().min(1 << 20);
                self.now = self.now.saturating_add(Duration::from_millis(units));
                Input::Tick
            }
        }
    }

    fn trouble(bytes: &mut Script<'_>) -> Input {
        match bytes.byte().unwrap_or(0) & 0x3f {
            0 => Input::SessionLost,
            1 => Input::PersistFailed { text: "fuzz".into() },
            2 => Input::Cancel,
            3 => Input::GuestFailed(dwcp_core::GuestError::Other("fuzz".into())),
            4 => Input::Retire,
            again @ 5..=6 => Input::Superseded { again: again == 5 },
            7..=12 => Input::Prefer(bytes.wish()),
            13 => Input::Retracted,
            14 => Input::RetractFailed { text: "fuzz".into() },
            24 => Input::Compression(bytes.rarely()),
            odd => Input::ControlDown { clean: odd % 8 == 7 },
        }
    }

    fn encode_next(&mut self) -> Input {
        let Some((lane, seq, pages)) = self.dispatched.pop_front() else { return Input::Tick };
        let carried = pages as u16;
        self.hint.encoded.insert(lane, seq + 1);
        if self.hint.framing == Framing::Messages {
            let (digest, bytes) = (Digest([0; 32]), 100 + pages as u32 * 4096);
            let message = Message { lane, first: seq, extents: 1, pages: pages as u32, bytes, digest };
            self.owed.push_back(Input::Prepared(message));
        }
        Input::Encoded(Encoded { lane, seq, wire_bytes: 100 + pages * 4096, carried, ..Encoded::default() })
    }

    fn apply_next(&mut self, lane: LaneId) -> Input {
        let messages = self.hint.framing == Framing::Messages;
        let Some(seq) = self.admitted.get_mut(&lane) else { return Input::Tick };
        if messages && self.expected.remove(&lane).is_none() {
            return Input::Tick;
        }
        *seq += 1;
        self.hint.applied.insert(lane, *seq);
        Input::Applied(Applied { lane, seq: *seq - 1, wire_bytes: 4200, pages: 1, durable: 0 })
    }
}
