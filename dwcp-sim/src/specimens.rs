//! One sound frame of every kind, and extents by every method: what damage is done to.

use std::sync::LazyLock;

use dwcp_core::session::leaves::{extent_digest, leaf};
use dwcp_core::wire::{
    Abort, AbortReason, Accept, Ack, Bind, Buried, Bury, Credit, DeviceState, Digest, ErrorCode, ErrorFrame,
    ExtentHead, FenceEpoch, Frame, GuestKind, Have, Hello, HelloAck, Join, Joined, LaneId, Name, Offer, Pause,
    PeerLimits, Ping, Ready, ResumeClaim, Role, Run, Running, SessionId, TransferId,
};
use dwcp_core::{Extent, Layout, PAGE_BYTES, RegionId, Run as PageRun};
use dwcp_hde::{Bases, Dictionaries, Dictionary, Effort, Encoder, Request};

/// Of every transfer here.
pub const EPOCH: FenceEpoch = FenceEpoch(1);
/// That carries every extent here.
pub const LANE: LaneId = LaneId(1);
const TRANSFER: TransferId = TransferId([1; 16]);
const SESSION: SessionId = SessionId([2; 16]);
const MAC: Digest = Digest([3; 32]);

/// What is offered.
pub fn offer() -> Offer {
    let layout = Layout::new(&[4096 * 70, 4097]).unwrap();
    Offer {
        transfer: TRANSFER,
        epoch: EPOCH,
        kind: GuestKind::Live,
        name: Name::new("vm1").unwrap(),
        dictionaries: vec![Digest([7; 32])],
        baselines: vec![Digest([8; 32])],
        layout,
    }
}

/// Frames of lane 0 and of handshakes, by name.
pub fn frames() -> Vec<(&'static str, Frame)> {
    let text = || "a sentence".to_owned();
    let limits = PeerLimits { extent_pages: 256, lanes: 16 };
    let (role, nonce) = (Role::Source, [4; 32]);
    let hello =
        || Hello { version_min: 3, version_max: 3, role, features: 0, required: 0, limits, nonce, resume: None };
    let claim = Hello { resume: Some(ResumeClaim { session: SESSION, attempt: 1, mac: MAC }), ..hello() };
    let ack = HelloAck {
        version: 3,
        version_min: 1,
        version_max: 3,
        features: 0,
        limits,
        session: SESSION,
        resumed: false,
        nonce,
        mac: MAC,
    };
    let finals = vec![(LANE, 9), (LaneId(2), 0)];
    let pause = Pause { attempt: 1, root: MAC, device_bytes: 5, device_digest: MAC, finals };
    vec![
        ("hello", Frame::Hello(hello())),
        ("claim", Frame::Hello(claim)),
        ("hello-ack", Frame::HelloAck(ack)),
        ("bind", Frame::Bind(Bind { mac: MAC })),
        ("join", Frame::Join(Join { session: SESSION, lane: LANE, mac: MAC })),
        ("joined", Frame::Joined(Joined { lane: LANE, credit: 1 << 23 })),
        ("offer", Frame::Offer(offer())),
        ("have", Frame::Have(Have { region: RegionId(0), first: 3, leaves: vec![MAC; 3] })),
        ("accept", Frame::Accept(Accept { transfer: TRANSFER, dictionaries: 0, baseline: None })),
        ("ack", Frame::Ack(Ack { durable: 3, lanes: vec![(LANE, 7), (LaneId(2), 1 << 40)] })),
        ("credit", Frame::Credit(Credit { lane: LANE, total: 1 << 33 })),
        ("bury", Frame::Bury(Bury { lane: LANE })),
        ("buried", Frame::Buried(Buried { lane: LANE, applied: 9 })),
        ("pause", Frame::Pause(pause)),
        ("device-state", Frame::DeviceState(DeviceState { attempt: 1, offset: 0, bytes: vec![6; 5].into() })),
        ("ready", Frame::Ready(Ready { transfer: TRANSFER, epoch: EPOCH, attempt: 1, root: MAC, device_digest: MAC })),
        ("run", Frame::Run(Run { transfer: TRANSFER, epoch: EPOCH, attempt: 1, root: MAC })),
        ("running", Frame::Running(Running { transfer: TRANSFER, epoch: EPOCH })),
        ("abort", Frame::Abort(Abort { reason: AbortReason::Cancelled, text: text() })),
        ("error", Frame::Error(ErrorFrame { code: ErrorCode::ExtentDigest, lane: LANE, position: 9, text: text() })),
        ("ping", Frame::Ping(Ping { id: 1 })),
        ("pong", Frame::Pong(Ping { id: 1 })),
    ]
}

/// What the sink holds under every page before an extent comes.
pub fn old_page() -> Vec<u8> {
    (0..PAGE_BYTES).map(|at| (at / 3 % 251) as u8).collect()
}

/// A baseline that both ends hold: every page of it is [`old_page`], and it has so many.
pub const PAGES_OF_BASELINE: u32 = 1000;

/// What both ends hold from before: a dictionary, under the number 2.
pub fn dictionaries() -> Dictionaries {
    static HELD: LazyLock<Dictionaries> = LazyLock::new(|| {
        let content = (0..4 * PAGE_BYTES).map(|at| b"All happy families are alike; "[at % 30] ^ (at / 90 % 5) as u8);
        Dictionaries::none().with(2, &Dictionary::new(content.collect()).unwrap())
    });
    HELD.clone()
}

/// A sound extent.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// How its block is made.
    pub name: &'static str,
    /// Its plain pages.
    pub plain: Vec<u8>,
    block: Vec<u8>,
    extent: Extent,
}

impl Parcel {
    fn new(name: &'static str, plain: Vec<u8>, effort: Effort, bases: &Bases<'_>) -> Self {
        let mut block = Vec::new();
        let held = if name == "dictionary" { dictionaries() } else { Dictionaries::none() };
        let request = Request { dictionaries: &held, ..Request::new(bases, effort) };
        if Encoder::new().encode_with(&plain, &request, &mut block).unwrap().raw_tail {
            block.extend_from_slice(&plain);
        }
        let count = (plain.len() / PAGE_BYTES) as u16;
        let runs = if count == 0 { vec![] } else { vec![PageRun { start: 5, count }] };
        Self { name, plain, block, extent: Extent::new(RegionId(0), runs).unwrap() }
    }

    /// Its frame, at this place of its lane.
    pub fn frame(&self, seq: u64) -> Vec<u8> {
        let leaves: Vec<Digest> = self.plain.chunks(PAGE_BYTES).map(leaf).collect();
        let digest = extent_digest(EPOCH, &self.extent, &leaves);
        let mut frame = Vec::new();
        ExtentHead { seq, epoch: EPOCH, digest, extent: self.extent.clone() }
            .encode(self.block.len(), &mut frame)
            .unwrap();
        frame.extend_from_slice(&self.block);
        frame
    }
}

/// An extent by every method that a block has.
pub fn parcels() -> Vec<Parcel> {
    let pages = |count: usize, byte: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
        (0..count * PAGE_BYTES).map(|at| byte(at / PAGE_BYTES, at % PAGE_BYTES) as u8).collect()
    };
    let text = pages(3, &|page, at| usize::from(b"All happy families are alike; "[(at + page) % 30]) + at / 1000);
    let words = pages(2, &|page, at| match at % 8 {
        0 => at / 8,
        1 => at / 2048 + page * 3,
        2..=5 => 0x88,
        _ => 0xff,
    });
    let noise = |salt: u64| {
        let mut rng = crate::rng::Rng::new(salt);
        pages(2, &|_, _| 0).iter().map(|_| rng.word() as u8).collect::<Vec<u8>>()
    };
    let copies = [text[..PAGE_BYTES].to_vec(), text[..PAGE_BYTES].to_vec()].concat();
    let old = [old_page(), old_page()].concat();
    let mut changed = old.clone();
    changed[100] ^= 1;
    changed[PAGE_BYTES + 3000] = 0;
    let based = Bases::new([0b11, 0, 0, 0], &old);
    let none = Bases::none();
    let named = none.with_pages_of_baseline(&[Some(0), Some(PAGES_OF_BASELINE - 1)]);
    let like = based.with_pages_like_baseline(&[Some(PAGES_OF_BASELINE - 1), Some(0)]);
    vec![
        Parcel::new("nothing", Vec::new(), Effort::Fast, &none),
        Parcel::new("zero", pages(2, &|_, _| 0), Effort::Fast, &none),
        Parcel::new("raw", noise(1), Effort::Raw, &none),
        Parcel::new("copy", copies, Effort::Fast, &none),
        Parcel::new("lz4", text.clone(), Effort::Fast, &none),
        Parcel::new("zstd", text.clone(), Effort::Balanced, &none),
        Parcel::new("dictionary", text, Effort::Balanced, &none),
        Parcel::new("planes", words, Effort::Balanced, &none),
        Parcel::new("of-baseline", [old.clone(), noise(2)].concat(), Effort::Balanced, &named),
        Parcel::new("like-baseline", changed.clone(), Effort::Balanced, &like),
        Parcel::new("delta", changed.clone(), Effort::Fast, &based),
        Parcel::new("delta-hard", changed, Effort::Balanced, &based),
    ]
}
