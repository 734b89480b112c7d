//! The bytes of every frame, as files: a changed byte is a changed file. `tests/vectors/v3/README.md` says how to read
//! them, `vectors.txt` what each of them is.
//!
//! `DWCP_BLESS=1 cargo test -p dwcp-core --test vectors` writes files that are missing, and never changes one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail by panicking, in its helpers too"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dwcp_core::session::Leaves;
use dwcp_core::session::binding::{Key, Speaker, join_mac, offers_mac, resume_mac};
use dwcp_core::session::leaves::{Tree, extent_digest, leaf, zero_leaf};
use dwcp_core::wire::{
    Abort, AbortReason, Accept, Ack, Bind, Buried, Bury, Credit, DeviceState, Digest, ErrorCode, ErrorFrame,
    ExtentHead, FRAME_HEADER_BYTES, Fence, FenceEpoch, FencedLane, Frame, FrameHeader, FrameType, Framing, GuestKind,
    HandedLane, Handover, Have, Hello, HelloAck, Join, Joined, LaneId, Message, Name, Offer, Pause, PeerLimits, Ping,
    Prefer, Ready, ResumeClaim, Role, Run, Running, SessionId, TransferId,
};
use dwcp_core::{Extent, Layout, PAGE_BYTES, RegionId};
use dwcp_hde::{BaseMissing, BaseSource, Bases, Decoder, Effort, Encoder};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/v3")
}

/// The bytes of a golden file; a missing one is written first when blessing.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = folder().join(name);
    if !path.exists() && std::env::var_os("DWCP_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}; DWCP_BLESS=1 writes missing files"))
}

/// 32 bytes that count up from `first`.
fn count<const N: usize>(first: u8) -> [u8; N] {
    let mut next = first;
    std::array::from_fn(|_| {
        next = next.wrapping_add(1);
        next.wrapping_sub(1)
    })
}

fn digest(first: u8) -> Digest {
    Digest(count(first))
}

const TRANSFER: TransferId = TransferId([0xa1; 16]);
const SESSION: SessionId = SessionId([0xb2; 16]);
const EPOCH: FenceEpoch = FenceEpoch(3);
const LANE: LaneId = LaneId(0x0201);

fn hello(resume: Option<ResumeClaim>) -> Hello {
    Hello {
        version_min: 3,
        version_max: 3,
        role: Role::Source,
        features: 0,
        required: 0,
        limits: PeerLimits { extent_pages: 256, lanes: 64 },
        nonce: count(0x10),
        resume,
    }
}

fn hello_ack() -> HelloAck {
    HelloAck {
        version: 3,
        version_min: 1,
        version_max: 3,
        features: 0,
        limits: PeerLimits { extent_pages: 128, lanes: 16 },
        session: SESSION,
        resumed: false,
        nonce: count(0x40),
        mac: digest(0x60),
    }
}

fn offer() -> Offer {
    let layout = Layout::new(&[0x1_0000, 5000]).unwrap();
    Offer {
        transfer: TRANSFER,
        epoch: EPOCH,
        kind: GuestKind::Live,
        name: Name::new("vm-1.disk").unwrap(),
        dictionaries: vec![Digest([0xd1; 32])],
        baselines: vec![Digest([0xba; 32])],
        layout,
    }
}

fn handshake_frames() -> Vec<(&'static str, Frame)> {
    let claim = ResumeClaim { session: SESSION, attempt: 7, mac: digest(0x80) };
    vec![
        ("hello", Frame::Hello(hello(None))),
        ("hello-resume", Frame::Hello(hello(Some(claim)))),
        ("hello-ack", Frame::HelloAck(hello_ack())),
        ("bind", Frame::Bind(Bind { mac: digest(0xa0) })),
        ("join", Frame::Join(Join { session: SESSION, lane: LANE, mac: digest(0xc0) })),
        ("joined", Frame::Joined(Joined { lane: LANE, credit: 0x80_0000 })),
        ("offer", Frame::Offer(offer())),
        ("accept", Frame::Accept(Accept { transfer: TRANSFER, dictionaries: 0, baseline: Some(0) })),
        ("have", Frame::Have(Have { region: RegionId(1), first: 258, leaves: vec![digest(0x40), digest(0x60)] })),
    ]
}

fn session_frames() -> Vec<(&'static str, Frame)> {
    let pause = Pause {
        attempt: 2,
        root: digest(1),
        device_bytes: 7,
        device_digest: digest(0x21),
        finals: vec![(LaneId(1), 100), (LaneId(2), 0x1_0000_0000)],
    };
    let (transfer, epoch, attempt, root) = (TRANSFER, EPOCH, 2, digest(1));
    let error = ErrorFrame { code: ErrorCode::ExtentDigest, lane: LANE, position: 41, text: "page 7 differs".into() };
    let abort = Abort { reason: AbortReason::NotConverging, text: "zu schnell: 9 MB/s ≥ 5".into() };
    vec![
        (
            "ack",
            Frame::Ack(Ack {
                durable: 0x0A0B_0C0D,
                lanes: vec![(LaneId(1), 5), (LaneId(0x0300), 0x0102_0304_0506_0708)],
            }),
        ),
        ("credit", Frame::Credit(Credit { lane: LANE, total: 0x0102_0304_0506_0708 })),
        ("bury", Frame::Bury(Bury { lane: LANE })),
        ("buried", Frame::Buried(Buried { lane: LANE, applied: 12 })),
        ("pause", Frame::Pause(pause)),
        ("device-state", Frame::DeviceState(DeviceState { attempt, offset: 0, bytes: Bytes::from_static(b"devices") })),
        ("ready", Frame::Ready(Ready { transfer, epoch, attempt, root, device_digest: digest(0x21) })),
        ("run", Frame::Run(Run { transfer, epoch, attempt, root })),
        ("running", Frame::Running(Running { transfer, epoch })),
        ("abort", Frame::Abort(abort)),
        ("error", Frame::Error(error)),
        ("ping", Frame::Ping(Ping { id: 0x0807_0605_0403_0201 })),
        ("pong", Frame::Pong(Ping { id: 0x0807_0605_0403_0201 })),
        ("prefer", Frame::Prefer(Prefer { framing: Framing::Messages, restart: true })),
        ("fence", Frame::Fence(fence())),
        ("handover", Frame::Handover(handover())),
        ("message", Frame::Message(message())),
    ]
}

fn fence() -> Fence {
    let lanes = vec![FencedLane { lane: LANE, end: 0x0102_0304_0506_0708, next: LaneId(0x0202) }];
    Fence { transfer: TRANSFER, epoch: EPOCH, framing: Framing::Messages, restart: false, lanes }
}

fn handover() -> Handover {
    let lanes = vec![HandedLane { lane: LANE, applied: 9, credit: 0x80_0000 }];
    Handover { transfer: TRANSFER, epoch: EPOCH, lanes, nodes: vec![digest(3), digest(0x23)] }
}

fn message() -> Message {
    Message { lane: LANE, first: 9, extents: 2, pages: 300, bytes: 0x0004_0302, digest: digest(0x43) }
}

/// What the sink holds in every page, for methods that need an old page.
fn base_page() -> Vec<u8> {
    random(1).map(|byte| b"etaoin shrdlu.\n\t"[usize::from(byte % 16)]).take(PAGE_BYTES).collect()
}

fn random(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    let step = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    };
    std::iter::repeat_with(step)
}

/// The base page with every byte at a multiple of `step` changed.
fn changed(step: usize) -> Vec<u8> {
    let mut page = base_page();
    page.iter_mut().step_by(step).for_each(|byte| *byte ^= 0x5a);
    page
}

fn verse() -> Vec<u8> {
    b"All happy families are alike; ".iter().copied().cycle().take(PAGE_BYTES).collect()
}

fn words() -> Vec<u8> {
    (0_u64..512).flat_map(|word| (0xffff_8880_0000_0000 + word * word * 64).to_le_bytes()).collect()
}

fn counters() -> Vec<u8> {
    (0_u32..1024).flat_map(|word| (0x0a00_0000 + word * word * 7).to_le_bytes()).collect()
}

/// An extent frame to be made.
struct Sample {
    name: &'static str,
    pages: Vec<Vec<u8>>,
    /// The encoder knows that the sink holds the base page everywhere.
    based: bool,
    /// It knows that the first page is this one of a baseline.
    of_baseline: Option<u32>,
    /// That this one of it is the first page's base.
    like_baseline: Option<u32>,
    effort: Effort,
    /// The block never depends on the version of a compressor.
    fixed: bool,
}

fn samples() -> Vec<Sample> {
    let (zero, noise) = (vec![0; PAGE_BYTES], random(2).take(PAGE_BYTES).collect::<Vec<_>>());
    let unnamed = |name, pages, based, effort, fixed| {
        let (of_baseline, like_baseline) = (None, None);
        Sample { name, pages, based, of_baseline, like_baseline, effort, fixed }
    };
    let plain = |name, pages| unnamed(name, pages, false, Effort::Balanced, true);
    let packed = |name, pages, based, effort| unnamed(name, pages, based, effort, false);
    let (fast, balanced) = (Effort::Fast, Effort::Balanced);
    vec![
        plain("extent-empty", vec![]),
        plain("extent-zero", vec![zero.clone(), zero.clone()]),
        Sample { based: true, ..plain("extent-same", vec![base_page()]) },
        plain("extent-copy-of", vec![noise.clone(), zero.clone(), noise.clone()]),
        plain("extent-raw", vec![noise.clone()]),
        Sample { of_baseline: Some(0x0403_0201), ..plain("extent-of-baseline", vec![base_page(), zero.clone()]) },
        Sample {
            like_baseline: Some(0x0403_0201),
            ..packed("extent-like-baseline", vec![changed(32), zero.clone()], true, balanced)
        },
        packed("extent-lz4", vec![verse()], false, fast),
        packed("extent-zstd", vec![changed(2)], false, balanced),
        packed("extent-xor-lz4", vec![changed(512)], true, fast),
        packed("extent-xor-zstd", vec![changed(512)], true, balanced),
        packed("extent-prefix", vec![changed(32), changed(40)], true, balanced),
        packed("extent-planes", vec![words()], false, balanced),
        packed("extent-narrow-planes", vec![counters()], false, Effort::Thorough(12)),
        packed("extent-mixed", vec![zero, words(), noise, base_page(), changed(512)], true, balanced),
    ]
}

fn runs_of(pages: usize) -> Extent {
    let last = u16::try_from(pages.saturating_sub(1)).unwrap();
    let runs = [(2, u16::from(pages > 0)), (300, last)].into_iter().filter(|run| run.1 > 0);
    Extent::new(RegionId(1), runs.map(|(start, count)| dwcp_core::Run { start, count }).collect()).unwrap()
}

fn encode_extent(Sample { pages, based, of_baseline, like_baseline, effort, .. }: &Sample) -> Vec<u8> {
    let (plain, bases) = (pages.concat(), base_page().repeat(pages.len()));
    // The mask may name pages beyond the extent; only those within it are looked at.
    let bases = if *based { Bases::new([0b11111, 0, 0, 0], &bases) } else { Bases::none() };
    let (equal, like) = ([*of_baseline], [*like_baseline]);
    let bases = bases.with_pages_of_baseline(&equal).with_pages_like_baseline(&like);
    let mut block = Vec::new();
    if Encoder::new().encode(&plain, &bases, *effort, &mut block).unwrap().raw_tail {
        block.extend_from_slice(&plain);
    }
    let extent = runs_of(pages.len());
    let leaves: Vec<Digest> = pages.iter().map(|page| leaf(page)).collect();
    let head = ExtentHead { seq: 5, epoch: EPOCH, digest: extent_digest(EPOCH, &extent, &leaves), extent };
    let mut bytes = Vec::new();
    head.encode(block.len(), &mut bytes).unwrap();
    bytes.extend_from_slice(&block);
    bytes
}

/// A frame of this type with this body, whatever it is.
fn framed(frame: FrameType, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader::new(frame, u32::try_from(body.len()).unwrap()).encode();
    [&header, body].concat()
}

/// The bytes of a frame with one byte of its body changed.
fn altered(frame: &Frame, at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = encoded(frame);
    bytes[FRAME_HEADER_BYTES + at] = byte;
    bytes
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn malformed_headers() -> Vec<(&'static str, Vec<u8>)> {
    let ping = encoded(&Frame::Ping(Ping { id: 1 }));
    let mut reserved = ping.clone();
    reserved[6] = 1;
    let mut unknown = ping.clone();
    unknown[4] = 0x5f;
    let mut optional = ping;
    optional[4] = 0xd0;
    let mut long = framed(FrameType::Bind, &[]);
    long[..4].copy_from_slice(&513_u32.to_le_bytes());
    let mut extent = framed(FrameType::Extent, &[]);
    extent[..4].copy_from_slice(&1_052_469_u32.to_le_bytes());
    vec![
        ("malformed-header-reserved", reserved),
        ("malformed-header-critical", unknown),
        ("malformed-header-long-bind", long),
        ("malformed-header-long-extent", extent),
        ("optional-skipped", optional),
    ]
}

fn malformed_handshakes() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Frame::Hello(hello(None));
    let mut cut = encoded(&hello);
    cut.truncate(FRAME_HEADER_BYTES + 40);
    cut[0] = 40;
    let ping = [&1_u64.to_le_bytes()[..], &[0]].concat();
    vec![
        ("malformed-hello-cut", cut),
        ("malformed-ping-trailing", framed(FrameType::Ping, &ping)),
        ("malformed-hello-magic", altered(&hello, 0, 0x16)),
        ("malformed-hello-versions", altered(&hello, 9, 2)),
        ("malformed-hello-role", altered(&hello, 10, 2)),
        ("malformed-hello-resume", altered(&hello, 11, 2)),
        ("malformed-hello-required", altered(&hello, 20, 1)),
        ("malformed-hello-no-lanes", altered(&hello, 30, 0)),
        ("malformed-join-lane-0", {
            let join = Frame::Join(Join { session: SESSION, lane: LaneId(1), mac: digest(0) });
            altered(&join, 16, 0)
        }),
    ]
}

fn malformed_controls() -> Vec<(&'static str, Vec<u8>)> {
    let offer = Frame::Offer(offer());
    let accept = Frame::Accept(Accept { transfer: TRANSFER, dictionaries: 0, baseline: None });
    let no_region = encoded(&offer)[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 101].to_vec();
    let huge = [&no_region[..], &[1, 0], &u64::MAX.to_le_bytes()].concat();
    let empty = [&no_region[..], &[1, 0], &[0; 8]].concat();
    let pause = [&[0; 36][..], &(64 * 1024 * 1024 + 1_u64).to_le_bytes(), &[0; 34]].concat();
    let abort = |text: &[u8]| framed(FrameType::Abort, &[&[1], text].concat());
    vec![
        ("malformed-offer-kind", altered(&offer, 24, 3)),
        ("malformed-offer-name", altered(&offer, 27, b'/')),
        ("malformed-offer-dictionaries", altered(&offer, 35, 5)),
        ("malformed-offer-baselines", altered(&offer, 68, 5)),
        ("malformed-accept-baseline", altered(&accept, 17, 5)),
        ("malformed-offer-no-region", framed(FrameType::Offer, &[&no_region[..], &[0, 0]].concat())),
        ("malformed-offer-empty-region", framed(FrameType::Offer, &empty)),
        ("malformed-offer-too-large", framed(FrameType::Offer, &huge)),
        ("malformed-ack-empty", framed(FrameType::Ack, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("malformed-ack-65", framed(FrameType::Ack, &[0, 0, 0, 0, 0, 0, 0, 0, 65, 0])),
        ("malformed-pause-devices", framed(FrameType::Pause, &pause)),
        ("malformed-device-state-empty", framed(FrameType::DeviceState, &[0; 12])),
        ("malformed-abort-reason", framed(FrameType::Abort, &[0])),
        ("malformed-abort-utf8", abort(&[0xff])),
        ("malformed-abort-long", abort(&[b'x'; 257])),
        ("malformed-error-code", framed(FrameType::Error, &[0; 12])),
    ]
}

fn malformed_extents() -> Vec<(&'static str, Vec<u8>)> {
    let runs = |count: u8, list: &[u8]| framed(FrameType::Extent, &[&[0; 50], &[count, 0][..], list].concat());
    vec![
        ("malformed-runs-touch", runs(2, &[3, 1, 0, 1])),
        ("malformed-runs-empty", runs(1, &[3, 0])),
        ("malformed-runs-257", runs(1, &[0, 0x81, 0x02])),
        ("malformed-runs-overflow", runs(1, &[0xff, 0xff, 0xff, 0xff, 0x0f, 1])),
        ("malformed-runs-varint", runs(1, &[0x83, 0x00, 1])),
        ("malformed-runs-cut", runs(1, &[3])),
    ]
}

/// Extents of one page (but for those that need more) whose block is broken.
fn malformed_blocks() -> Vec<(&'static str, Vec<u8>)> {
    let of = |pages: u8, block: &[u8]| framed(FrameType::Extent, &[&[0; 50], &[1, 0][..], &[0, pages], block].concat());
    let group = |method: u8, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        of(1, &[&[1, 1, 0, method, 0, method, 0], &length[..], bytes].concat())
    };
    let zstd = |header: &[u8]| {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        group(5, &[&magic, header, &[0x03, 0x80, 0x00, b'x']].concat())
    };
    let endless = [&[0x1f, b'x', 1, 0], [0xff; 40].as_slice(), &[0]].concat();
    vec![
        ("malformed-block-version", of(1, &[2, 1, 0, 0, 0])),
        ("malformed-block-pages", of(1, &[1, 2, 0, 0, 1])),
        ("malformed-block-table", of(1, &[1, 1, 0, 0, 1])),
        ("malformed-block-group-missing", of(1, &[1, 1, 0, 3, 0])),
        ("malformed-block-trailing", of(1, &[1, 1, 0, 0, 0, 9])),
        ("malformed-block-group-length", group(3, &[0; 9])),
        ("malformed-block-zstd-size", zstd(&[0x60, 0x00, 0x1f])),
        ("malformed-block-zstd-window", zstd(&[0x40, 0x51, 0x00, 0x0f])),
        ("malformed-block-zstd-checksum", zstd(&[0x64, 0x00, 0x0f])),
        ("malformed-block-lz4-bomb", group(4, &endless)),
        ("malformed-block-copy-forward", of(2, &[1, 2, 0, 2, 0, 0, 0, 2, 0, 1, 0, 0, 0, 1])),
        ("malformed-block-method", of(1, &[1, 1, 0, 0x0e, 0])),
        ("malformed-block-dictionary", group(10, &[1, 0, 0, 0, 0])),
        ("malformed-block-no-baseline", group(12, &[3, 0, 0, 0])),
        ("malformed-block-baseline-length", group(12, &[3, 0, 0, 0, 0])),
        ("malformed-block-like-no-baseline", group(13, &[3, 0, 0, 0, 0])),
        ("malformed-block-like-length", group(13, &[3, 0, 0, 0])),
        ("malformed-block-no-base", of(1, &[1, 1, 0, 1, 0])),
    ]
}

fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let lists =
        [malformed_headers(), malformed_handshakes(), malformed_controls(), malformed_extents(), malformed_blocks()];
    lists.concat()
}

/// The same page everywhere, and in a baseline under each number; or nothing.
struct Old<'a>(Option<&'a [u8]>);

impl BaseSource for Old<'_> {
    fn base(&mut self, _: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        into.copy_from_slice(self.0.ok_or(BaseMissing)?);
        Ok(())
    }

    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        assert!(self.0.is_none() || number == 0x0403_0201, "little-endian");
        self.base(0, into)
    }
}

/// What a receiver makes of a file: the frame's type, `skipped`, or the error with its place.
fn verdict(bytes: &[u8], old: Option<&[u8]>) -> String {
    let (header, body) = bytes.split_first_chunk().unwrap();
    let header = match FrameHeader::decode(*header, usize::MAX) {
        Ok(header) => header,
        Err(fault) => return format!("header at {}: {}", fault.at, fault.what),
    };
    assert_eq!(header.body_bytes(), body.len(), "the file is one frame");
    if header.frame != FrameType::Extent.byte() {
        return match Frame::decode(header.frame, body) {
            Ok(Some(frame)) => format!("{:?}", frame.frame_type()),
            Ok(None) => "skipped".into(),
            Err(fault) => format!("body at {}: {}", fault.at, fault.what),
        };
    }
    let (head, block) = match ExtentHead::decode(body) {
        Ok(decoded) => decoded,
        Err(fault) => return format!("body at {}: {}", fault.at, fault.what),
    };
    let mut bases = Old(old);
    let mut scratch = Vec::new();
    match Decoder::new().decode(block, head.extent.pages(), &mut bases, &mut scratch) {
        Err(error) => format!("block {error}"),
        Ok(plain) => {
            let leaves: Vec<Digest> = plain.chunks(PAGE_BYTES).map(leaf).collect();
            assert_eq!(extent_digest(head.epoch, &head.extent, &leaves), head.digest, "the digest does not match");
            "Extent".into()
        }
    }
}

// spec: W-1
#[test]
fn every_frame_has_its_bytes() {
    let frames = [handshake_frames(), session_frames()].concat();
    let types: BTreeSet<u8> = frames.iter().map(|(_, frame)| frame.frame_type().byte()).collect();
    assert_eq!(types.len() + 1, FrameType::ALL.len(), "a type without a vector (extents have their own)");
    for (name, frame) in frames {
        let bytes = golden(&format!("{name}.bin"), &encoded(&frame));
        assert_eq!(encoded(&frame), bytes, "{name}");
        let (header, body) = bytes.split_first_chunk().unwrap();
        let header = FrameHeader::decode(*header, usize::MAX).unwrap();
        assert_eq!(Frame::decode(header.frame, body).unwrap().unwrap(), frame, "{name}");
    }
}

// spec: I-2, K-6
#[test]
fn every_method_of_a_block_has_its_bytes() {
    let base = golden("base-page.bin", &base_page());
    assert_eq!(base, base_page());
    let mut methods = BTreeSet::new();
    for sample in samples() {
        let ours = encode_extent(&sample);
        let Sample { name, pages, fixed, .. } = sample;
        let bytes = golden(&format!("{name}.bin"), &ours);
        if fixed {
            assert_eq!(ours, bytes, "{name}");
        }
        assert_eq!(verdict(&bytes, Some(&base)), "Extent", "{name}");
        let (head, block) = ExtentHead::decode(&bytes[FRAME_HEADER_BYTES..]).unwrap();
        assert_eq!((head.seq, head.epoch, head.extent), (5, EPOCH, runs_of(pages.len())), "{name}");
        let mut left = pages.len();
        for entry in block[3..].chunks(2) {
            if left > 0 {
                methods.insert(entry[0]);
                left -= usize::from(entry[1]) + 1;
            }
        }
    }
    // 0x0a takes a dictionary, and these files have none.
    assert_eq!(methods, (0..=9).chain(0x0b..=0x0d).collect(), "a method without a vector");
}

// spec: W-2, W-3, W-4, W-5, W-6, W-7, W-8, W-9, O-1, O-2, E-3, H-4, H-7, S-2
#[test]
fn hostile_frames_are_refused_for_their_fault() {
    for (name, bytes) in hostile() {
        assert_eq!(golden(&format!("{name}.bin"), &bytes), bytes, "{name}");
    }
}

// spec: K-1, K-2, K-3, K-4, K-5, K-6, K-7, K-8, K-9, K-10, K-12, O-8
#[test]
fn the_table_says_what_every_file_is() {
    let table = std::fs::read_to_string(folder().join("vectors.txt")).unwrap();
    let base = base_page();
    let verdict_of = |file: &str| {
        let old = Some(&base[..]).filter(|_| !file.contains("no-base"));
        verdict(&std::fs::read(folder().join(file)).unwrap(), old)
    };
    let mut listed = BTreeSet::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [file, _, expected] = line.split(" | ").map(str::trim).collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(verdict_of(file), expected, "{file}");
        listed.insert(file.to_owned());
    }
    let there = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let unlisted = there.filter(|file| file.ends_with(".bin") && file != "base-page.bin" && !listed.contains(file));
    let rows: Vec<String> = unlisted.map(|file| format!("{file} | ? | {}", verdict_of(&file))).collect();
    assert!(rows.is_empty(), "not in vectors.txt:\n{}", rows.join("\n"));
}

// spec: I-1, I-2, I-3, H-3, H-5, H-6
#[test]
fn digests_and_proofs_have_their_bytes() {
    let root = |sizes: &[u64], page: Option<u32>| {
        let layout = Layout::new(sizes).unwrap();
        let leaves = Leaves::new(&layout);
        if let Some(page) = page {
            leaves.set(layout.flat(RegionId(0), page).unwrap(), leaf(&base_page()));
        }
        Tree::new(&layout).root(&leaves)
    };
    let (session, connection) = (Key::new(count(1)), Key::new(count(0x81)));
    let lines = [
        ("leaf of a page of zeros", zero_leaf()),
        ("leaf of base-page.bin", leaf(&base_page())),
        ("root of one region of 4096 zero bytes", root(&[4096], None)),
        ("root of regions of 5000 and 300000 zero bytes", root(&[5000, 300_000], None)),
        ("root of one region of 20000000 zero bytes", root(&[20_000_000], None)),
        ("root of one region of 20000000 bytes, page 4500 is base-page.bin", root(&[20_000_000], Some(4500))),
        ("mac of hello-ack.bin after hello.bin", offers_mac(&connection, Speaker::Sink, &hello(None), &hello_ack())),
        ("mac of bind after both", offers_mac(&connection, Speaker::Source, &hello(None), &hello_ack())),
        ("mac of join, session b2.., lane 513", join_mac(&session, &connection, SESSION, LANE)),
        ("mac of a claim, session b2.., attempt 7", resume_mac(&session, &connection, SESSION, 7)),
    ];
    let text: String = lines.iter().map(|(what, digest)| format!("{digest}  {what}\n")).collect();
    assert_eq!(String::from_utf8(golden("digests.txt", text.as_bytes())).unwrap(), text);
}
