//! Replays the committed fuzz corpora (`fuzz/corpus`) as plain tests, through the bodies of the fuzz
//! targets. `DWCP_BLESS=1 cargo test --test corpus` writes the seeds again, after the wire changed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests outside a #[test] function")]

use std::fs;
use std::path::PathBuf;

use dwcp_core::session::Phase;
use dwcp_core::wire::{
    Abort, AbortReason, Accept, Ack, Bind, Buried, Bury, Credit, DeviceState, Digest, ErrorCode, ErrorFrame,
    ExtentHead, FRAME_HEADER_BYTES, FenceEpoch, Frame, GuestKind, Hello, HelloAck, Join, Joined, LaneId, Name, Offer,
    Pause, PeerLimits, Ping, Ready, ResumeClaim, Role, Run, Running, SessionId, TransferId,
};
use dwcp_core::{Extent, Layout, PAGE_BYTES, RegionId, Run as PageRun};
use dwcp_hde::{Bases, Effort, Encoder};
use dwcp_v1_compat::wire::blocks::BlockHeader;
use dwcp_v1_compat::wire::{ChunkHeader, Span};

type Seeds = Vec<(&'static str, Vec<u8>)>;

#[test]
fn hello() {
    replay("hello", dwcp_sim::check_hello, hello_seeds);
}

#[test]
fn frame() {
    replay("frame", dwcp_sim::check_frame, frame_seeds);
}

#[test]
fn extent_block() {
    replay("extent_block", dwcp_sim::check_block, block_seeds);
}

#[test]
fn session_ops() {
    replay("session_ops", dwcp_sim::run_operations, operation_seeds);
}

#[test]
fn flag_document() {
    replay("flag_document", dwcp_sim::check_flag_document, flag_seeds);
}

#[test]
fn baseline_store() {
    replay("baseline_store", dwcp_sim::check_baseline, dwcp_sim::baselines::baseline_seeds);
}

/// Seeds that come nowhere teach a fuzzer nothing.
#[test]
fn the_seeds_of_operations_come_far() {
    for (name, script) in operation_seeds() {
        let [source, sink] = dwcp_sim::reach(&script).phases;
        match name {
            "source-moves" => assert_eq!(source, Phase::Handing),
            "sink-takes" | "sink-is-paused-twice" => assert_eq!(sink, Phase::Handing),
            _ if name.ends_with("when-ready") => assert_eq!(sink, Phase::Handing, "{name}"),
            _ if name.starts_with("source") => assert_ne!(source, Phase::Offered, "{name}"),
            _ => assert_eq!(sink, Phase::Copying, "{name}"),
        }
    }
}

#[test]
fn v1_open() {
    replay("v1_open", dwcp_sim::check_v1_open, v1_open_seeds);
}

#[test]
fn v1_chunks() {
    replay("v1_chunks", dwcp_sim::check_v1_chunks, v1_chunk_seeds);
}

#[test]
fn v1_packet() {
    replay("v1_packet", dwcp_sim::check_v1_packet, v1_packet_seeds);
}

fn replay(target: &str, body: fn(&[u8]), seeds: fn() -> Seeds) {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).join(target);
    if std::env::var_os("DWCP_BLESS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds() {
            fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= seeds().len(), "{} has lost its seeds", folder.display());
    for file in files {
        // Printed only when the body panics: then the last line names the input.
        println!("{}", file.display());
        body(&fs::read(&file).unwrap());
    }
}

const TRANSFER: TransferId = TransferId([1; 16]);
const SESSION: SessionId = SessionId([2; 16]);
const MAC: Digest = Digest([3; 32]);
const EPOCH: FenceEpoch = FenceEpoch(1);
const LANE: LaneId = LaneId(1);

fn whole(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn body(frame: &Frame) -> Vec<u8> {
    whole(frame).split_off(FRAME_HEADER_BYTES)
}

fn handshake() -> [Frame; 6] {
    let limits = PeerLimits { extent_pages: 256, lanes: 16 };
    let hello = Hello {
        version_min: 3,
        version_max: 3,
        role: Role::Source,
        features: 0,
        required: 0,
        limits,
        nonce: [4; 32],
        resume: None,
    };
    let resume = Hello { resume: Some(ResumeClaim { session: SESSION, attempt: 1, mac: MAC }), ..hello };
    let ack = HelloAck {
        version: 3,
        version_min: 1,
        version_max: 3,
        features: 0,
        limits,
        session: SESSION,
        resumed: false,
        nonce: [5; 32],
        mac: MAC,
    };
    [
        Frame::Hello(hello),
        Frame::Hello(resume),
        Frame::HelloAck(ack),
        Frame::Bind(Bind { mac: MAC }),
        Frame::Join(Join { session: SESSION, lane: LANE, mac: MAC }),
        Frame::Joined(Joined { lane: LANE, credit: 1 << 23 }),
    ]
}

fn hello_seeds() -> Seeds {
    let [hello, resume, ack, bind, join, joined] = handshake();
    vec![
        ("hello", body(&hello)),
        ("hello-frame", whole(&hello)),
        ("resume", body(&resume)),
        ("ack", body(&ack)),
        ("bind", body(&bind)),
        ("join", body(&join)),
        ("joined", body(&joined)),
    ]
}

fn frame_seeds() -> Seeds {
    let text = || "a sentence".to_owned();
    let layout = Layout::new(&[4096 * 70, 4097]).unwrap();
    let name = Name::new("vm1").unwrap();
    let frames = vec![
        (
            "offer",
            Frame::Offer(Offer {
                transfer: TRANSFER,
                epoch: EPOCH,
                kind: GuestKind::Live,
                name,
                dictionaries: vec![Digest([7; 32])],
                baselines: vec![Digest([8; 32])],
                layout,
            }),
        ),
        ("accept", Frame::Accept(Accept { transfer: TRANSFER, dictionaries: 0, baseline: None })),
        ("ack", Frame::Ack(Ack { durable: 3, lanes: vec![(LANE, 7), (LaneId(2), 1 << 40)] })),
        ("credit", Frame::Credit(Credit { lane: LANE, total: 1 << 33 })),
        ("bury", Frame::Bury(Bury { lane: LANE })),
        ("buried", Frame::Buried(Buried { lane: LANE, applied: 9 })),
        (
            "pause",
            Frame::Pause(Pause {
                attempt: 1,
                root: MAC,
                device_bytes: 5,
                device_digest: MAC,
                finals: vec![(LANE, 9), (LaneId(2), 0)],
            }),
        ),
        ("device-state", Frame::DeviceState(DeviceState { attempt: 1, offset: 0, bytes: vec![6; 5].into() })),
        ("ready", Frame::Ready(Ready { transfer: TRANSFER, epoch: EPOCH, attempt: 1, root: MAC, device_digest: MAC })),
        ("run", Frame::Run(Run { transfer: TRANSFER, epoch: EPOCH, attempt: 1, root: MAC })),
        ("running", Frame::Running(Running { transfer: TRANSFER, epoch: EPOCH })),
        ("abort", Frame::Abort(Abort { reason: AbortReason::Cancelled, text: text() })),
        ("error", Frame::Error(ErrorFrame { code: ErrorCode::ExtentDigest, lane: LANE, position: 9, text: text() })),
        ("ping", Frame::Ping(Ping { id: 1 })),
        ("pong", Frame::Pong(Ping { id: 1 })),
    ];
    let mut seeds: Seeds = frames.iter().map(|(name, frame)| (*name, whole(frame))).collect();
    let names = ["hello", "resume", "hello-ack", "bind", "join", "joined"];
    seeds.extend(names.into_iter().zip(handshake().iter().map(whole)));
    seeds.push(("extent", extent()));
    // An optional frame of a later version: skipped.
    seeds.push(("optional", vec![2, 0, 0, 0, 0xf0, 0, 0, 0, 1, 2]));
    seeds
}

fn extent() -> Vec<u8> {
    let runs = [(0, 2), (9, 1), (500, 3)].map(|(start, count)| PageRun { start, count }).to_vec();
    let extent = Extent::new(RegionId(1), runs).unwrap();
    let block = block(&plain(&extent), &Bases::none(), Effort::Balanced);
    let mut bytes = Vec::new();
    ExtentHead { seq: 3, epoch: EPOCH, digest: MAC, extent }.encode(block.len(), &mut bytes).unwrap();
    bytes.extend_from_slice(&block);
    bytes
}

fn plain(extent: &Extent) -> Vec<u8> {
    pages(extent.pages(), |page, at| u8::try_from((page * 7 + at / 16) % 251).unwrap())
}

fn pages(count: usize, byte: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    (0..count * PAGE_BYTES).map(|at| byte(at / PAGE_BYTES, at % PAGE_BYTES)).collect()
}

fn block(plain: &[u8], bases: &Bases<'_>, effort: Effort) -> Vec<u8> {
    let mut block = Vec::new();
    let done = Encoder::new().encode(plain, bases, effort, &mut block).unwrap();
    if done.raw_tail {
        block.extend_from_slice(plain);
    }
    block
}

/// As [`dwcp_sim::check_block`] reads them: the number of pages less one, then a block. Its old pages
/// are full of 0xa5.
fn block_seeds() -> Seeds {
    let seed = |plain: &[u8], bases: &Bases<'_>, effort| {
        let count = u8::try_from(plain.len() / PAGE_BYTES - 1).unwrap();
        [&[count], block(plain, bases, effort).as_slice()].concat()
    };
    let none = Bases::none();
    let old = vec![0xa5; 4 * PAGE_BYTES];
    let based = Bases::new([0b1111, 0, 0, 0], &old);
    let zero = pages(3, |_, _| 0);
    let text = pages(3, |page, at| b"All happy families are alike; "[(at + page) % 30]);
    let words = pages(2, |page, at| match at % 8 {
        0 => u8::try_from(at / 8 % 256).unwrap(),
        1 => u8::try_from(at / 2048 + page * 3).unwrap(),
        2..=5 => 0x88,
        _ => 0xff,
    });
    let counters: Vec<u8> = (0..1024_u32).flat_map(|word| (0x0a00_0000 + word * word * 7).to_le_bytes()).collect();
    // One page unchanged, one with a changed word, one half changed, one new.
    let changed = pages(4, |page, at| match page {
        0 => 0xa5,
        1 if at / 8 != 100 => 0xa5,
        2 if at > 2048 => 0xa5,
        _ => u8::try_from(at / 16 % 251).unwrap(),
    });
    let mixed = [zero.clone(), text.clone(), text.clone(), words.clone()].concat();
    vec![
        ("zero", seed(&zero, &none, Effort::Balanced)),
        ("raw", seed(&text[..PAGE_BYTES], &none, Effort::Raw)),
        ("lz4", seed(&text, &none, Effort::Fast)),
        ("zstd", seed(&text, &none, Effort::Balanced)),
        ("planes", seed(&words, &none, Effort::Balanced)),
        ("narrow-planes", seed(&counters, &none, Effort::Thorough(12))),
        ("copies", seed(&mixed, &none, Effort::Balanced)),
        ("xor-lz4", seed(&changed, &based, Effort::Fast)),
        ("prefix-and-xor-zstd", seed(&changed, &based, Effort::Balanced)),
    ]
}

/// Scripts in the language of [`dwcp_sim::run_operations`]: two bytes of limits, then operations.
fn operation_seeds() -> Seeds {
    const LIMITS: [u8; 2] = [15, 3];
    /// Set where the sink is meant.
    const SINK: u8 = 0x80;
    const FRAME: u8 = 0;
    const OWED: u8 = 7;
    const ENCODE: u8 = 13;
    const APPLY: u8 = 18;
    const LANE_UP: u8 = 20;
    const LANE_JOIN: u8 = 22;
    const LANE_DOWN: u8 = 24;
    const HARVESTED: u8 = 25;
    const TROUBLE: u8 = 26;
    const CONTROL_UP: u8 = 27;
    const TICK: u8 = 31;
    // Kinds of trouble.
    const RETIRE: u8 = 4;
    const SUPERSEDED: u8 = 5;
    const CUT: u8 = 8;
    let acked = [[ENCODE].repeat(12).as_slice(), &[FRAME, 3, 1], &[OWED; 3], &[TICK, 9]].concat();
    let begin = [LIMITS.as_slice(), &[FRAME, 2, LANE_UP, 1, 0x1f], &[OWED; 3], &acked].concat();
    let round = [[HARVESTED, 3, 9].as_slice(), &acked, &acked].concat();
    let ready = [[FRAME, 20, 1, 1, 1, 1].as_slice(), &[OWED; 3]].concat();
    let death = [LANE_DOWN, 1, FRAME, 16, 1, 4, LANE_UP, 2, 0x1f, ENCODE];
    let cut = [TROUBLE, CUT, TICK, 9, CONTROL_UP, OWED, OWED];
    let received = [LIMITS.as_slice(), &[SINK | LANE_JOIN, 1], &[SINK | APPLY, 1].repeat(6)].concat();
    let paused = [[SINK | FRAME, 6, 1, 1, 1, 1, 1].as_slice(), &[SINK | OWED; 3]].concat();
    let ran = [[SINK | FRAME, 18, 1, 1, 1, 1].as_slice(), &[SINK | OWED; 3], &[SINK | TROUBLE, CUT]].concat();
    let retired = [SINK | TROUBLE, RETIRE, SINK | OWED];
    let superseded = [SINK | TROUBLE, CUT, SINK | TROUBLE, SUPERSEDED];
    vec![
        ("source-moves", [begin.as_slice(), &round, &ready, &[FRAME, 26, 1, 1]].concat()),
        ("source-loses-a-lane", [begin.as_slice(), &death, &round].concat()),
        ("source-loses-control", [begin.as_slice(), &round, &cut].concat()),
        ("source-retires", [begin.as_slice(), &[TROUBLE, RETIRE]].concat()),
        ("sink-takes", [received.as_slice(), &paused, &ran].concat()),
        ("sink-is-paused-twice", [received.as_slice(), &paused, &paused].concat()),
        ("sink-retires", [received.as_slice(), &retired].concat()),
        ("sink-retires-when-ready", [received.as_slice(), &paused, &retired].concat()),
        ("sink-is-superseded", [received.as_slice(), &superseded].concat()),
        ("sink-is-superseded-when-ready", [received.as_slice(), &paused, &superseded].concat()),
    ]
}

/// Texts in the language of [`dwcp_sim::check_flag_document`]: documents, parted by 0xff.
fn flag_seeds() -> Seeds {
    let document =
        |version: u32, flag: &str| format!(r#"{{"version": {version}, "flags": {{"dwcp_v3_hde": {flag}}}}}"#);
    let on = document(7, r#"{"enabled": true, "percentage": 100}"#);
    let killed = document(8, r#"{"enabled": true, "percentage": 100, "kill": true, "reason": "integrity"}"#);
    let lists = r#""exclude": ["node-1"], "include": ["node-7"], "updated_by": "alice""#;
    let full = document(
        9,
        &format!(
            r#"{{"enabled": true, "percentage": 12.345, "hash": "sha256", "salt": "s", "threshold": 12345, {lists}}}"#
        ),
    );
    let both = on.replace("}}}", r#"}, "dwcp_v3_compression": {"enabled": false, "percentage": 0}}}"#);
    let looks = |texts: &[&str]| texts.iter().map(|text| text.as_bytes()).collect::<Vec<_>>().join(&0xff);
    vec![
        ("on", looks(&[&on])),
        ("full", looks(&[&full])),
        ("both", looks(&[&both])),
        ("rolled-back-and-replayed", looks(&[&on, &killed, &on, &full])),
        ("half-written", looks(&[&on, &killed[..30], &killed])),
        ("expires", looks(&[&on, "", "{", "null", "[]", "{}", &on])),
        ("unknown-key", looks(&[&on.replace("enabled", "enable"), &on])),
    ]
}

/// What an unmodified peer of version 1 wrote.
fn v1_vector(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/dwcp-v1-compat/tests/vectors");
    fs::read(PathBuf::from(folder).join(format!("{name}.bin"))).unwrap()
}

fn v1_open_seeds() -> Seeds {
    let start = |name: &str| v1_vector(name)[..24].to_vec();
    vec![
        ("mst8", start("mst8-1stream-order-0-2-1")),
        ("amst16", start("amst16-1stream")),
        ("tls", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]),
        ("http", b"GET / HTTP/1.1".to_vec()),
    ]
}

/// As [`dwcp_sim::check_v1_chunks`] reads them: options, then a connection, a length, and so many bytes; no bytes are its end.
fn v1_chunk_seeds() -> Seeds {
    const CHUNK: usize = 1024;
    let number = |value: usize| u32::try_from(value).unwrap();
    let message = |options: u8, connections: usize| {
        let mut script = vec![options];
        for id in 0..10_000_usize.div_ceil(CHUNK) {
            let (at, length) = (id * CHUNK, CHUNK.min(10_000 - id * CHUNK));
            let span = Span { offset: number(at), total: 10_000 };
            let mut bytes = Vec::new();
            let span = (options & 1 != 0).then_some(span);
            ChunkHeader { id: number(id), length: number(length), span }.encode(&mut bytes);
            bytes.resize(bytes.len() + length, 7);
            let connection = u8::try_from(id % connections).unwrap();
            // A piece ends with the header, as a driver reads it.
            let (head, data) = bytes.split_at(if options & 1 == 0 { 8 } else { 16 });
            for piece in std::iter::once(head).chain(data.chunks(200)) {
                script.extend_from_slice(&[connection, u8::try_from(piece.len()).unwrap()]);
                script.extend_from_slice(piece);
            }
        }
        script.extend((0..4_u8).flat_map(|connection| [connection, 0]));
        script
    };
    vec![("mst8", message(0, 4)), ("amst16", message(1, 3)), ("amst16-window", message(3, 2))]
}

/// As [`dwcp_sim::check_v1_packet`] reads them: options, then a packet or a list of blocks.
fn v1_packet_seeds() -> Seeds {
    let with = |options: u8, bytes: &[u8]| [&[options], bytes].concat();
    let block = v1_vector("hde16-disk-block7-tier1");
    let mut list = Vec::new();
    for id in [7, 3] {
        BlockHeader { id, packet_bytes: u32::try_from(block.len()).unwrap() }.encode(&mut list);
        list.extend_from_slice(&block);
    }
    vec![
        ("full-tier0", with(0, &v1_vector("hde16-full-tier0"))),
        ("full-tier2", with(0xf9, &v1_vector("hde16-full-tier2"))),
        ("delta-tier1", with(0xfb, &v1_vector("hde16-delta-tier1"))),
        ("blocks", with(0xfc, &list)),
    ]
}
