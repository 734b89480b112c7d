use bytes::Bytes;
use proptest::prelude::*;

use super::limits::{
    DEVICE_STATE_CHUNK, MAX_CONTROL_BYTES, MAX_DEVICE_STATE, MAX_HANDOVER_NODES, MAX_HANDSHAKE_BYTES, MAX_HAVE_LEAVES,
    MAX_MESSAGE_BYTES, MAX_MESSAGE_EXTENTS, MAX_TEXT_BYTES,
};
use super::*;
use crate::extent::{Extent, ExtentError, Layout, RegionId, Run as PageRun};

fn round_trip(frame: &Frame) -> Frame {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let (header, body) = bytes.split_first_chunk().unwrap();
    let header = FrameHeader::decode(*header, usize::MAX).unwrap();
    assert_eq!(header.body_bytes(), body.len());
    Frame::decode(header.frame, body).unwrap().unwrap()
}

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ -~é]{0,100}").unwrap()
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn transfer() -> impl Strategy<Value = TransferId> {
    any::<[u8; 16]>().prop_map(TransferId)
}

fn lane() -> impl Strategy<Value = LaneId> {
    (1_u16..).prop_map(LaneId)
}

fn limits() -> impl Strategy<Value = PeerLimits> {
    (1_u16.., 1_u16..).prop_map(|(extent_pages, lanes)| PeerLimits { extent_pages, lanes })
}

fn handshake() -> impl Strategy<Value = Frame> {
    let resume = proptest::option::of(
        (any::<[u8; 16]>(), any::<u32>(), digest()).prop_map(|(session, attempt, mac)| ResumeClaim {
            session: SessionId(session),
            attempt,
            mac,
        }),
    );
    prop_oneof![
        (any::<(u8, u8, u64, u64, [u8; 32])>(), limits(), resume).prop_map(|(fields, limits, resume)| {
            let (a, b, features, required, nonce) = fields;
            Frame::Hello(Hello {
                version_min: a.min(b),
                version_max: a.max(b),
                role: Role::Source,
                features,
                required: required & features,
                limits,
                nonce,
                resume,
            })
        }),
        (any::<(u8, u8, u64, [u8; 16], bool, [u8; 32])>(), limits(), digest()).prop_map(|(fields, limits, mac)| {
            let (a, b, features, session, resumed, nonce) = fields;
            let (version, version_min, version_max) = (a, a.min(b), a.max(b));
            let session = SessionId(session);
            Frame::HelloAck(HelloAck {
                version,
                version_min,
                version_max,
                features,
                limits,
                session,
                resumed,
                nonce,
                mac,
            })
        }),
        digest().prop_map(|mac| Frame::Bind(Bind { mac })),
        (any::<[u8; 16]>(), lane(), digest()).prop_map(|(session, lane, mac)| Frame::Join(Join {
            session: SessionId(session),
            lane,
            mac
        })),
        (lane(), any::<u64>()).prop_map(|(lane, credit)| Frame::Joined(Joined { lane, credit })),
    ]
}

fn control() -> impl Strategy<Value = Frame> {
    let ids = || proptest::collection::vec(digest(), 0..=4);
    let offer = (transfer(), any::<u64>(), any::<bool>(), "[a-z0-9_][a-z0-9._-]{0,63}", 1_usize..20, (ids(), ids()))
        .prop_map(|(transfer, epoch, live, name, regions, (dictionaries, baselines))| {
            Frame::Offer(Offer {
                transfer,
                epoch: FenceEpoch(epoch),
                kind: if live { GuestKind::Live } else { GuestKind::Image },
                name: Name::new(&name).unwrap(),
                dictionaries,
                baselines,
                layout: Layout::new(&vec![12345; regions]).unwrap(),
            })
        });
    prop_oneof![
        offer,
        (transfer(), any::<u8>(), proptest::option::of(0_u8..4)).prop_map(|(transfer, dictionaries, baseline)| {
            Frame::Accept(Accept { transfer, dictionaries, baseline })
        }),
        (any::<u16>(), any::<u32>(), proptest::collection::vec(digest(), 1..100))
            .prop_map(|(region, first, leaves)| { Frame::Have(Have { region: RegionId(region), first, leaves }) }),
        (any::<u64>(), proptest::collection::vec((lane(), any::<u64>()), 1..64))
            .prop_map(|(durable, lanes)| Frame::Ack(Ack { durable, lanes })),
        (lane(), any::<u64>()).prop_map(|(lane, total)| Frame::Credit(Credit { lane, total })),
        lane().prop_map(|lane| Frame::Bury(Bury { lane })),
        (lane(), any::<u64>()).prop_map(|(lane, applied)| Frame::Buried(Buried { lane, applied })),
        (any::<u64>(), text()).prop_map(|(position, text)| {
            Frame::Error(ErrorFrame { code: ErrorCode::ExtentDigest, lane: LaneId(3), position, text })
        }),
        (0_usize..6, text()).prop_map(|(reason, text)| Frame::Abort(Abort { reason: AbortReason::ALL[reason], text })),
        any::<u64>().prop_map(|id| Frame::Ping(Ping { id })),
        any::<u64>().prop_map(|id| Frame::Pong(Ping { id })),
    ]
}

fn switch_over() -> impl Strategy<Value = Frame> {
    let finals = proptest::collection::vec((lane(), any::<u64>()), 0..64);
    prop_oneof![
        (any::<u32>(), digest(), 0..=MAX_DEVICE_STATE, digest(), finals).prop_map(
            |(attempt, root, device_bytes, device_digest, finals)| {
                Frame::Pause(Pause { attempt, root, device_bytes, device_digest, finals })
            }
        ),
        (any::<u32>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 1..2000)).prop_map(
            |(attempt, offset, bytes)| Frame::DeviceState(DeviceState { attempt, offset, bytes: Bytes::from(bytes) })
        ),
        (transfer(), any::<u64>(), any::<u32>(), digest(), digest()).prop_map(
            |(transfer, epoch, attempt, root, device_digest)| {
                Frame::Ready(Ready { transfer, epoch: FenceEpoch(epoch), attempt, root, device_digest })
            }
        ),
        (transfer(), any::<u64>(), any::<u32>(), digest()).prop_map(|(transfer, epoch, attempt, root)| Frame::Run(
            Run { transfer, epoch: FenceEpoch(epoch), attempt, root }
        )),
        (transfer(), any::<u64>())
            .prop_map(|(transfer, epoch)| Frame::Running(Running { transfer, epoch: FenceEpoch(epoch) })),
    ]
}

fn handover() -> impl Strategy<Value = Frame> {
    let framing = || any::<bool>().prop_map(|v3| if v3 { Framing::Extents } else { Framing::Messages });
    let fenced = (lane(), any::<u64>(), lane()).prop_map(|(lane, end, next)| FencedLane { lane, end, next });
    let handed = (lane(), any::<u64>(), any::<u64>());
    let handed = handed.prop_map(|(lane, applied, credit)| HandedLane { lane, applied, credit });
    prop_oneof![
        (framing(), any::<bool>()).prop_map(|(framing, restart)| Frame::Prefer(Prefer { framing, restart })),
        (transfer(), any::<u64>(), framing(), any::<bool>(), proptest::collection::vec(fenced, 0..64)).prop_map(
            |(transfer, epoch, framing, restart, lanes)| {
                Frame::Fence(Fence { transfer, epoch: FenceEpoch(epoch), framing, restart, lanes })
            }
        ),
        (
            transfer(),
            any::<u64>(),
            proptest::collection::vec(handed, 0..64),
            proptest::collection::vec(digest(), 0..100)
        )
            .prop_map(|(transfer, epoch, lanes, nodes)| {
                Frame::Handover(Handover { transfer, epoch: FenceEpoch(epoch), lanes, nodes })
            }),
        (lane(), any::<u64>(), 1..=MAX_MESSAGE_EXTENTS, 0_u32..=256, 0..=MAX_MESSAGE_BYTES, digest()).prop_map(
            |(lane, first, extents, pages, bytes, digest)| {
                Frame::Message(Message { lane, first, extents, pages, bytes, digest })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives_a_round_trip(frame in prop_oneof![handshake(), control(), switch_over(), handover()]) {
        prop_assert_eq!(round_trip(&frame), frame);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(frame in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(Some(decoded)) = Frame::decode(frame, &body) {
            // What decodes has one encoding, unless replaced control characters changed its text.
            if !matches!(decoded, Frame::Abort(_) | Frame::Error(_)) {
                let mut bytes = Vec::new();
                decoded.encode(&mut bytes);
                prop_assert_eq!(&bytes[FRAME_HEADER_BYTES..], &body[..]);
            }
        }
        let _ = ExtentHead::decode(&body);
    }

    // spec: W-3
    #[test]
    fn every_cut_and_every_extra_byte_is_an_error(
        frame in prop_oneof![handshake(), switch_over()],
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let body = &bytes[FRAME_HEADER_BYTES..];
        let cut = cut.index(body.len());
        let shorter = Frame::decode(frame.frame_type().byte(), &body[..cut]);
        if !matches!(frame, Frame::DeviceState(_)) {
            prop_assert!(shorter.is_err(), "cut at {} of {}", cut, body.len());
            let mut longer = body.to_vec();
            longer.push(0);
            let longer = Frame::decode(frame.frame_type().byte(), &longer);
            let trailing = matches!(longer, Err(Fault { what: Malformed::Trailing { extra: 1 }, .. }));
            prop_assert!(trailing, "{:?}", longer);
        }
    }

    #[test]
    fn extent_heads_survive_a_round_trip(
        seq in any::<u64>(), epoch in any::<u64>(), digest in digest(), region in any::<u16>(),
        gaps in proptest::collection::vec((1_u32..70_000, 1_u16..8), 0..30),
    ) {
        let mut start = 0;
        let runs = gaps.iter().map(|&(gap, count)| {
            let run = PageRun { start: start + gap, count };
            start = run.end();
            run
        }).collect();
        let head = ExtentHead { seq, epoch: FenceEpoch(epoch), digest, extent: Extent::new(RegionId(region), runs).unwrap() };
        let mut bytes = Vec::new();
        head.encode(5, &mut bytes).unwrap();
        bytes.extend_from_slice(b"block");
        let header = FrameHeader::decode(*bytes.first_chunk().unwrap(), usize::MAX).unwrap();
        prop_assert_eq!(header.body_bytes(), bytes.len() - FRAME_HEADER_BYTES);
        let (decoded, block) = ExtentHead::decode(&bytes[FRAME_HEADER_BYTES..]).unwrap();
        prop_assert_eq!(decoded, head);
        prop_assert_eq!(block, b"block");
    }
}

fn header(length: u32, frame: u8) -> [u8; 8] {
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, frame, 0, 0, 0]
}

// spec: W-2
#[test]
fn lengths_are_checked_before_anything_is_reserved() {
    for frame in FrameType::ALL {
        let limit = u32::try_from(frame.limit()).unwrap();
        assert!(FrameHeader::decode(header(limit, frame.byte()), usize::MAX).is_ok(), "{frame:?}");
        let over = FrameHeader::decode(header(limit + 1, frame.byte()), usize::MAX);
        assert!(matches!(over, Err(Fault { at: 0, what: Malformed::TooLong { .. } })), "{frame:?}");
    }
    let narrow = FrameHeader::decode(header(200, FrameType::Offer.byte()), 100);
    assert!(narrow.is_err(), "the receiver's own limit holds too");
    assert!(FrameHeader::decode(header(u32::MAX, 0xff), usize::MAX).is_err(), "unknown optional frames are bounded");
}

// spec: W-4
#[test]
fn reserved_bytes_of_the_header_are_zero() {
    for at in 5..8 {
        let mut bytes = header(8, FrameType::Ping.byte());
        bytes[at] = 1;
        let fault = FrameHeader::decode(bytes, usize::MAX).unwrap_err();
        assert_eq!(fault, Fault { at: 5, what: Malformed::Reserved });
    }
}

// spec: W-6
#[test]
fn an_unknown_critical_frame_is_an_error() {
    let fault = FrameHeader::decode(header(0, 0x7f), usize::MAX).unwrap_err();
    assert_eq!(fault.what, Malformed::UnknownCritical { frame: 0x7f });
}

// spec: W-7
#[test]
fn an_unknown_optional_frame_is_skipped() {
    let known = FrameHeader::decode(header(3, 0x99), usize::MAX).unwrap();
    assert_eq!(Frame::decode(known.frame, &[1, 2, 3]), Ok(None));
}

// spec: W-5
#[test]
fn varints_have_one_form() {
    let decode = |bytes: &[u8]| fields::Reader::new(bytes).varint();
    assert_eq!(decode(&[0]), Ok(0));
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
    assert_eq!(decode(&[0x80, 0]).unwrap_err().what, Malformed::Varint, "0 in two bytes");
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x1f]).unwrap_err().what, Malformed::Varint, "33 bits");
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).unwrap_err().what, Malformed::Varint, "6 bytes");
    assert_eq!(decode(&[0x80]).unwrap_err().what, Malformed::Truncated { missing: 1 });
}

// spec: W-8
#[test]
fn control_characters_do_not_pass() {
    let text = "\u{1b}[31mred\u{7}".to_owned();
    let Frame::Abort(abort) = round_trip(&Frame::Abort(Abort { reason: AbortReason::Cancelled, text })) else {
        panic!()
    };
    assert_eq!(abort.text, "\u{fffd}[31mred\u{fffd}");
    let long = "é".repeat(MAX_TEXT_BYTES);
    let Frame::Abort(abort) = round_trip(&Frame::Abort(Abort { reason: AbortReason::Cancelled, text: long })) else {
        panic!()
    };
    assert_eq!(abort.text.len(), MAX_TEXT_BYTES, "cut at a character");
    assert!(abort.text.ends_with("é ..."));
}

#[test]
fn a_sentence_that_is_too_long_ends_at_a_word_and_says_so() {
    let told = |text: String| match round_trip(&Frame::Abort(Abort { reason: AbortReason::Refused, text })) {
        Frame::Abort(abort) => abort.text,
        other => panic!("{other:?}"),
    };
    let words = |count: usize| "receiver, ".repeat(count);
    let cut = told(words(40));
    assert!(cut.len() <= MAX_TEXT_BYTES && cut.ends_with("receiver ..."), "{cut}");
    assert!(words(40).starts_with(cut.trim_end_matches(" ...")), "{cut}");
    let fits = "x".repeat(MAX_TEXT_BYTES - 9) + " receiver";
    assert_eq!(told(fits.clone()), fits);
    let whole_word = "x".repeat(MAX_TEXT_BYTES - 4) + " more";
    assert_eq!(told(whole_word), "x".repeat(MAX_TEXT_BYTES - 4) + " ...");
}

// spec: O-2
#[test]
fn names_are_never_paths() {
    for good in ["vm1", "a", "web-01.disk_2", &"x".repeat(64)] {
        assert!(Name::new(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "../x", "A", "a b", "a\0", "é", &"x".repeat(65)] {
        assert!(Name::new(bad).is_err(), "{bad}");
    }
}

// spec: E-3
#[test]
fn hostile_run_lists_are_refused() {
    let head = |count: u16, runs: &[u8]| {
        let mut body = vec![0; 50];
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(runs);
        ExtentHead::decode(&body).map(|(head, _)| head).map_err(|fault| fault.what)
    };
    assert!(head(1, &[3, 1]).is_ok());
    assert_eq!(head(2, &[3, 1, 0, 1]), Err(ExtentError::NotRising { index: 1 }.into()), "runs that touch");
    assert_eq!(head(1, &[3, 0]), Err(ExtentError::EmptyRun { index: 0 }.into()));
    assert_eq!(head(1, &[0, 0x81, 0x02]), Err(ExtentError::TooManyPages { index: 0 }.into()), "257 pages");
    let overflow = [0xff, 0xff, 0xff, 0xff, 0x0f, 1];
    assert_eq!(head(1, &overflow), Err(ExtentError::PageOverflow { index: 0 }.into()));
    assert_eq!(head(257, &[]), Err(Malformed::TooLong { length: 257, limit: 256 }));
    assert_eq!(head(1, &[3]), Err(Malformed::Truncated { missing: 1 }));
}

// spec: H-7
#[test]
fn zero_never_means_unlimited() {
    let ack = Frame::HelloAck(HelloAck {
        version: 3,
        version_min: 1,
        version_max: 3,
        features: 0,
        limits: PeerLimits { extent_pages: 0, lanes: 4 },
        session: SessionId([0; 16]),
        resumed: false,
        nonce: [0; 32],
        mac: Digest([0; 32]),
    });
    let mut bytes = Vec::new();
    ack.encode(&mut bytes);
    assert!(Frame::decode(FrameType::HelloAck.byte(), &bytes[8..]).is_err());
}

// spec: S-2
#[test]
fn device_state_is_bounded() {
    let mut body = vec![0; 12];
    assert!(Frame::decode(FrameType::DeviceState.byte(), &body).is_err(), "empty part");
    body.resize(12 + DEVICE_STATE_CHUNK + 1, 0);
    assert!(Frame::decode(FrameType::DeviceState.byte(), &body).is_err(), "part too long");
    let pause = Pause {
        attempt: 1,
        root: Digest([0; 32]),
        device_bytes: MAX_DEVICE_STATE + 1,
        device_digest: Digest([0; 32]),
        finals: vec![],
    };
    let mut bytes = Vec::new();
    Frame::Pause(pause).encode(&mut bytes);
    assert!(Frame::decode(FrameType::Pause.byte(), &bytes[8..]).is_err(), "too much in all");
}

/// What becomes of a frame on its way.
fn arrives(frame: &Frame) -> bool {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let (header, body) = bytes.split_first_chunk().unwrap();
    let header = FrameHeader::decode(*header, usize::MAX).unwrap();
    matches!(Frame::decode(header.frame, body), Ok(Some(decoded)) if decoded == *frame)
}

#[test]
fn lists_may_be_as_long_as_their_limit_and_not_longer() {
    let have = |count| Frame::Have(Have { region: RegionId(0), first: 0, leaves: vec![Digest([1; 32]); count] });
    let handover = |count| {
        let (transfer, epoch) = (TransferId([1; 16]), FenceEpoch(2));
        Frame::Handover(Handover { transfer, epoch, lanes: Vec::new(), nodes: vec![Digest([1; 32]); count] })
    };
    for frame in [have(1), have(MAX_HAVE_LEAVES), handover(0), handover(MAX_HANDOVER_NODES)] {
        assert!(arrives(&frame), "{:?}", frame.frame_type());
    }
    for frame in [have(0), have(MAX_HAVE_LEAVES + 1), handover(MAX_HANDOVER_NODES + 1)] {
        assert!(!arrives(&frame), "{:?}", frame.frame_type());
    }
    assert_eq!((MAX_CONTROL_BYTES, MAX_HANDSHAKE_BYTES), (DEVICE_STATE_CHUNK + 64, 512));
}

#[test]
fn names_for_people_say_what_is_meant() {
    assert_eq!(LaneId(7).to_string(), "lane 7");
    assert_eq!([Framing::Messages, Framing::Extents].map(|framing| framing.to_string()), ["v1", "v3"]);
}

#[test]
fn only_what_arrived_other_than_it_was_sent_is_an_integrity_error() {
    use ErrorCode::*;
    let integrity = [ExtentDigest, RootMismatch, DeviceDigest, BadBlock];
    let all: Vec<_> = ErrorCode::ALL.into_iter().filter(|code| code.is_integrity()).collect();
    assert!(all.len() == integrity.len() && integrity.iter().all(|code| all.contains(code)), "{all:?}");
}
