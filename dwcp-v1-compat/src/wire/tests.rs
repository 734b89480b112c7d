//! Readers against slow, obvious twins, cut anywhere; and what they refuse.

use proptest::prelude::*;

use super::blocks::{BlockError, BlockHeader, BlockReader, BlocksSeen, Part};
use super::delta::{self, DeltaError};
use super::*;

const MOST: u64 = 1 << 20;

fn bytes(length: usize, step: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * step + at / 256) % 251).unwrap()).collect()
}

fn packet(delta: bool, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Packer::new().unwrap().pack(Tier::Local, delta, content, &mut out).unwrap();
    out
}

/// Feeds a packet in pieces of `cut` bytes, and applies what comes of it to `base`.
fn unpack(packet: &[u8], cut: usize, most: u64, expected: Expected, base: &[u8]) -> Result<Vec<u8>, ContentError> {
    let mut decoder = ContentDecoder::new(most)?;
    decoder.begin(u64::try_from(packet.len()).unwrap(), expected)?;
    let mut made = Vec::new();
    for mut piece in packet.chunks(cut) {
        while let Some(piece) = decoder.next(&mut piece)? {
            match piece {
                Piece::Bytes(bytes) => made.extend_from_slice(bytes),
                Piece::Copy { at, bytes } => {
                    let at = usize::try_from(at).unwrap();
                    made.extend_from_slice(&base[at..at + usize::try_from(bytes).unwrap()]);
                }
            }
        }
        assert!(piece.is_empty(), "all of a piece is taken");
    }
    let told = decoder.finish()?;
    assert_eq!(told, u64::try_from(made.len()).unwrap());
    Ok(made)
}

fn plain(packet: &[u8], most: u64) -> Result<Vec<u8>, ContentError> {
    unpack(packet, packet.len().max(1), most, Expected::default(), &[])
}

/// What an op list makes, by index and without any check.
fn apply_slowly(ops: &[u8], base: &[u8]) -> Vec<u8> {
    let number = |at: usize, width: usize| {
        ops[at..at + width].iter().fold(0_usize, |number, byte| number * 256 + usize::from(*byte))
    };
    let mut at = ops.iter().position(|byte| *byte == 0).unwrap() + 1;
    let count = number(at, 4);
    at += 4;
    let mut made = Vec::new();
    for _ in 0..count {
        let (kind, offset, length) = (ops[at], number(at + 1, 8), number(at + 9, 8));
        at += 17;
        made.resize(offset, 0xee);
        if kind == 0 {
            made.extend_from_slice(&base[offset..offset + length]);
        } else {
            let data = number(at, 4);
            made.extend_from_slice(&ops[at + 4..at + 4 + data]);
            at += 4 + data;
        }
    }
    assert_eq!(at, ops.len());
    made
}

fn over_base(content: usize, base: usize) -> Expected {
    let number = |length| u64::try_from(length).unwrap();
    Expected { bytes: Some(number(content)), baseline: Some(("vm1_memory".into(), number(base))) }
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(id: u32, offset: u32, length: u32, total: u32, amst: bool) {
        let span = amst.then_some(Span { offset, total });
        let header = ChunkHeader { id, length, span };
        let mut out = Vec::new();
        header.encode(&mut out);
        prop_assert_eq!(out.len(), header.framing().header_bytes());
        prop_assert_eq!(ChunkHeader::decode(header.framing(), &out), Some(header));
        prop_assert_eq!(ChunkHeader::decode(header.framing(), &out[..out.len() - 1]), None);
    }

    #[test]
    fn a_packet_gives_its_content_however_it_is_cut(
        content in proptest::collection::vec(0_u8..4, 0..9000),
        cut in 1_usize..3000,
        delta: bool,
    ) {
        let expected = Expected { bytes: Some(u64::try_from(content.len()).unwrap()), baseline: None };
        prop_assert_eq!(unpack(&packet(delta, &content), cut, MOST, expected, &[]).unwrap(), content);
    }

    #[test]
    fn an_op_list_makes_what_the_slow_twin_makes(
        base in proptest::collection::vec(any::<u8>(), 0..20_000),
        keep in 0_usize..24_000,
        changes in proptest::collection::vec((0_usize..24_000, any::<u8>()), 0..4),
        cut in 1_usize..9000,
    ) {
        let mut next = base.clone();
        next.resize(keep, 7);
        for (at, byte) in changes {
            if let Some(changed) = next.get_mut(at) {
                *changed = byte;
            }
        }
        let mut ops = Vec::new();
        delta::encode("vm1_memory", &base, &next, &mut ops).unwrap();
        prop_assert_eq!(&apply_slowly(&ops, &base), &next);
        let expected = over_base(next.len(), base.len());
        let made = unpack(&packet(true, &ops), cut, MOST, expected, &base);
        if ops.len() == next.len() {
            // It might as well be the content itself.
            prop_assert_eq!(made, Err(ContentError::Ambiguous { bytes: u64::try_from(ops.len()).unwrap() }));
        } else {
            prop_assert_eq!(made.unwrap(), next);
        }
    }

    #[test]
    fn damaged_bytes_end_in_an_error_or_in_bytes_within_the_limit(
        mut packet in prop_oneof![
            Just(packet(false, &bytes(9000, 3))),
            Just({
                let mut ops = Vec::new();
                delta::encode("vm1_memory", &bytes(9000, 3), &bytes(9000, 5), &mut ops).unwrap();
                packet(true, &ops)
            }),
        ],
        damage in proptest::collection::vec((0_usize..10_000, any::<u8>()), 1..6),
        end in 0_usize..10_000,
        cut in 1_usize..4000,
    ) {
        for (at, byte) in damage {
            let length = packet.len();
            packet[at % length] = byte;
        }
        packet.truncate(end.max(1));
        let expected = Expected { bytes: None, ..over_base(0, 9000) };
        if let Ok(made) = unpack(&packet, cut, 10_000, expected, &bytes(9000, 3)) {
            prop_assert!(made.len() <= 10_000);
        }
    }

    #[test]
    fn a_block_list_is_taken_apart_however_it_is_cut(
        blocks in proptest::collection::vec((0_u32..100, proptest::collection::vec(any::<u8>(), 1..300)), 0..9),
        cut in 1_usize..500,
    ) {
        let mut list = Vec::new();
        for (id, packet) in &blocks {
            BlockHeader { id: *id, packet_bytes: u32::try_from(packet.len()).unwrap() }.encode(&mut list);
            list.extend_from_slice(packet);
        }
        let mut reader = BlockReader::new(100, 300);
        let mut found: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut ended = 0;
        for mut piece in list.chunks(cut) {
            loop {
                match reader.next(&mut piece).unwrap() {
                    Some(Part::Begin(header)) => found.push((header.id, Vec::new())),
                    Some(Part::Packet(bytes)) => found.last_mut().unwrap().1.extend_from_slice(bytes),
                    Some(Part::End) => ended += 1,
                    None => break,
                }
            }
        }
        reader.finish().unwrap();
        prop_assert_eq!(ended, blocks.len());
        prop_assert_eq!(found, blocks);
    }
}

#[test]
fn the_largest_expansion_goes_through_the_fixed_buffer() {
    let content = vec![0; 32 << 20];
    let packet = packet(false, &content);
    assert!(packet.len() < 8192, "{}", packet.len());
    assert!(unpack(&packet, 7, 32 << 20, Expected::default(), &[]).unwrap() == content);
    let limit = u64::try_from(content.len() - 1).unwrap();
    let refused = plain(&packet, limit).unwrap_err();
    assert_eq!(refused, ContentError::Packet(PacketError::Content { content: limit + 1, limit }));
}

#[test]
fn a_decoder_that_is_asked_in_vain_goes_on() {
    let content = bytes(700_000, 7);
    let packet = packet(false, &content);
    let mut decoder = ContentDecoder::new(MOST).unwrap();
    decoder.begin(u64::try_from(packet.len()).unwrap(), Expected::default()).unwrap();
    let mut made = Vec::new();
    for piece in packet.chunks(100) {
        let asked = std::iter::once(piece).chain([[].as_slice(); 40]);
        for mut bytes in asked {
            while let Some(Piece::Bytes(bytes)) = decoder.next(&mut bytes).unwrap() {
                made.extend_from_slice(bytes);
            }
        }
    }
    decoder.finish().unwrap();
    assert!(made == content);
}

#[test]
fn frames_that_a_header_of_18_bytes_holds_whole_do_not_stall() {
    // Three blocks of 128 KiB, each one repeated byte, in 12 bytes: more than the buffer takes at a time.
    let block = |last: bool| {
        let head = (131_072_u32 << 3) | (1 << 1) | u32::from(last);
        let [a, b, c, _] = head.to_le_bytes();
        [a, b, c, 9]
    };
    // Magic, content size and checksum, a window of 128 KiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x84, 0x38];
    frame.extend_from_slice(&393_216_u32.to_le_bytes());
    for last in [false, false, true] {
        frame.extend_from_slice(&block(last));
    }
    // Not their checksum: whoever says so has decoded all of them.
    frame.extend_from_slice(&[0; 4]);
    let mut packet = Vec::new();
    let frame_bytes = u64::try_from(frame.len()).unwrap();
    PacketHeader { delta: false, tier: Tier::Local, frame_bytes }.encode(&mut packet);
    packet.extend_from_slice(&frame);
    assert!(matches!(plain(&packet, MOST), Err(ContentError::Packet(PacketError::Corrupt { .. }))));
}

#[test]
fn each_field_of_a_packet_is_checked() {
    let good = packet(false, &bytes(300, 3));
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        match plain(&bad, MOST) {
            Err(ContentError::Packet(error)) => error,
            other => panic!("byte {at}: {other:?}"),
        }
    };
    let length = u64::try_from(good.len()).unwrap();
    let frame = |fault| PacketError::Frame { at: 16, fault };
    assert_eq!(with(0, 2), PacketError::Flag { flag: 2 });
    assert_eq!(with(1, 3), PacketError::Tier { tier: 3 });
    assert_eq!(with(5, 1), PacketError::Reserved);
    assert_eq!(with(15, 0), PacketError::Length { claimed: (length - 16) & !0xff, carried: length - 16 });
    assert_eq!(with(16, 0), frame(FrameFault::Magic));
    let descriptor = good[20];
    assert_eq!(with(20, descriptor & !0x04), frame(FrameFault::Checksum));
    assert_eq!(with(20, descriptor | 0x08), frame(FrameFault::Reserved));
    assert_eq!(with(20, descriptor | 0x01), frame(FrameFault::Dictionary));
    // Not a single segment, and no field for the size.
    assert_eq!(with(20, 0x04), frame(FrameFault::ContentSize));
    let last = good.len() - 1;
    assert!(matches!(with(last, !good[last]), PacketError::Corrupt { .. }), "the checksum is verified");
    assert!(matches!(with(40, !good[40]), PacketError::Corrupt { .. }));
}

#[test]
fn a_window_above_32_mib_is_refused_before_it_is_reserved() {
    // 64 MiB, by its window field.
    let mut packet = Vec::new();
    PacketHeader { delta: false, tier: Tier::Global, frame_bytes: 40 }.encode(&mut packet);
    packet.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0x84, 16 << 3, 0, 0, 0, 4]);
    packet.resize(56, 0);
    let refused = plain(&packet, MAX).unwrap_err();
    assert_eq!(refused, ContentError::Packet(PacketError::Frame { at: 16, fault: FrameFault::Window }));
    const MAX: u64 = limits::MAX_PACKET_CONTENT;
}

#[test]
fn what_follows_a_frame_or_is_missing_of_it_is_told() {
    let good = packet(false, &bytes(300, 3));
    let mut longer = good.clone();
    longer.push(0);
    // The header knows the length, so it is the first to notice.
    assert!(matches!(plain(&longer, MOST), Err(ContentError::Packet(PacketError::Length { .. }))));
    longer[15] += 1;
    assert!(matches!(plain(&longer, MOST), Err(ContentError::Packet(PacketError::Trailing { .. }))));
    for end in 0..good.len() {
        let mut decoder = ContentDecoder::new(MOST).unwrap();
        decoder.begin(u64::try_from(good.len()).unwrap(), Expected::default()).unwrap();
        let mut part = &good[..end];
        while decoder.next(&mut part).unwrap().is_some() {}
        let at = u64::try_from(end).unwrap();
        let missing = u64::try_from(good.len()).unwrap() - at;
        let cut = decoder.finish().unwrap_err();
        assert_eq!(cut, ContentError::Packet(PacketError::Short { at, missing }), "cut at {end}");
    }
}

#[test]
fn delta_flag_1_is_told_apart_by_baseline_and_length_or_refused() {
    let (base, next) = (bytes(9000, 3), bytes(9000, 5));
    let mut ops = Vec::new();
    delta::encode("vm1_memory", &base, &next, &mut ops).unwrap();
    let take = |packet: &[u8], expected: Expected| unpack(packet, 1000, MOST, expected, &base);
    let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap();

    assert_eq!(take(&packet(true, &ops), over_base(9000, 9000)).unwrap(), next, "an op list");
    assert_eq!(take(&packet(true, &next), over_base(9000, 9000)).unwrap(), next, "full data");
    let unnamed = Expected { bytes: Some(9000), baseline: None };
    assert_eq!(take(&packet(true, &next), unnamed.clone()).unwrap(), next, "full data, no baseline");
    let other = ContentError::OtherBaseline { bytes: length(&ops) };
    assert_eq!(take(&packet(true, &ops), unnamed), Err(other.clone()), "over a baseline that is not here");
    assert_eq!(take(&packet(true, &ops), Expected::default()), Err(other));
    let ambiguous = Expected { bytes: Some(length(&ops)), ..over_base(0, 9000) };
    assert_eq!(take(&packet(true, &ops), ambiguous), Err(ContentError::Ambiguous { bytes: length(&ops) }));
    let short = take(&packet(true, &ops), over_base(9001, 9000));
    assert_eq!(short, Err(ContentError::Length { made: 9000, expected: 9001 }));
    let full = take(&packet(false, &next), over_base(8999, 9000));
    assert_eq!(full, Err(ContentError::Length { made: 9000, expected: 8999 }));
}

#[test]
fn each_field_of_an_op_list_is_checked() {
    let (base, next) = (bytes(8192, 3), [bytes(4096, 3), bytes(4096, 5)].concat());
    let mut ops = Vec::new();
    delta::encode("vm1_memory", &base, &next, &mut ops).unwrap();
    // After the id: count at 11, copy at 15, modify at 32, its data length at 49.
    let with = |at: usize, byte: u8| {
        let mut bad = ops.clone();
        bad[at] = byte;
        match unpack(&packet(true, &bad), 100, MOST, over_base(8192, 8192), &base) {
            Err(ContentError::Delta(error)) => error,
            other => panic!("byte {at}: {:?}", other.map(|made| made.len())),
        }
    };
    assert_eq!(with(11, 1), DeltaError::OpCount { claimed: (1 << 24) + 2 });
    assert_eq!(with(14, 1), DeltaError::Trailing { at: 4096 });
    assert_eq!(with(14, 3), DeltaError::Short { at: 8192 });
    assert_eq!(with(15, 3), DeltaError::Kind { at: 0, kind: 3 });
    assert_eq!(with(16, 0x80), DeltaError::Offset { at: 0, claimed: i64::MIN });
    assert_eq!(with(23, 1), DeltaError::Offset { at: 0, claimed: 1 });
    assert_eq!(with(24, 0x80), DeltaError::Length { at: 0 });
    assert_eq!(with(47, 0), DeltaError::Length { at: 4096 }, "no op makes nothing");
    assert_eq!(with(47, 0x20), DeltaError::Length { at: 4096 }, "beyond the content");
    assert_eq!(with(52, 1), DeltaError::DataLength { at: 4096, claimed: 4096, data: 4097 });
    let beyond = unpack(&packet(true, &ops), 100, MOST, over_base(8192, 4095), &base);
    let error = DeltaError::BeyondBaseline { at: 0, bytes: 4096, baseline: 4095 };
    assert_eq!(beyond, Err(ContentError::Delta(error)));
    let mut out = Vec::new();
    for id in ["", "a\0b", "x".repeat(257).as_str()] {
        assert_eq!(delta::encode(id, &base, &next, &mut out), Err(DeltaError::BaselineId));
    }
    assert!(out.is_empty());
}

#[test]
fn blocks_beyond_the_disk_and_impossible_lengths_are_refused() {
    let read = |id: u32, packet_bytes: u32| {
        let mut list = Vec::new();
        BlockHeader { id, packet_bytes }.encode(&mut list);
        BlockReader::new(8, 300).next(&mut list.as_slice()).map(|part| part.is_some())
    };
    assert_eq!(read(7, 300), Ok(true));
    assert_eq!(read(8, 300), Err(BlockError::Id { at: 0, id: 8, blocks: 8 }));
    assert_eq!(read(7, 0), Err(BlockError::Length { at: 0, id: 7, bytes: 0, limit: 300 }));
    assert_eq!(read(7, 3 << 30), Err(BlockError::Length { at: 0, id: 7, bytes: 3 << 30, limit: 300 }));
    let mut reader = BlockReader::new(8, 300);
    let mut cut: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 9, 1, 2];
    while reader.next(&mut cut).unwrap().is_some() {}
    assert_eq!(reader.finish(), Err(BlockError::Short { at: 10 }));
    let mut seen = BlocksSeen::new(70);
    assert!(seen.insert(69) && !seen.insert(69) && !seen.insert(200));
    assert!(seen.contains(69) && !seen.contains(68) && seen.count() == 1);
}

#[test]
fn nothing_is_packed_that_a_v1_peer_would_refuse() {
    let mut packer = Packer::new().unwrap();
    let content = limits::MAX_PACKET_CONTENT + 1;
    assert_eq!(packer.begin(Tier::Local, content), Err(PackError::TooLarge { content }));
    packer.begin(Tier::Local, 10).unwrap();
    let mut out = Vec::new();
    assert_eq!(packer.push(&[0; 11], &mut out), Err(PackError::Length));
    packer.begin(Tier::Local, 10).unwrap();
    packer.push(&[0; 9], &mut out).unwrap();
    assert_eq!(packer.finish(Tier::Local, false, &mut out), Err(PackError::Length));
}

/// One that a property test came by once in some thousand runs.
#[test]
fn an_op_list_as_long_as_what_it_makes_is_not_guessed_at() {
    let (base, mut ops) = (bytes(4096, 3), Vec::new());
    delta::encode("vm1_memory", &base, &base[..32], &mut ops).unwrap();
    assert_eq!(ops.len(), 32);
    let made = unpack(&packet(true, &ops), 7, MOST, over_base(32, base.len()), &base);
    assert_eq!(made, Err(ContentError::Ambiguous { bytes: 32 }));
}
