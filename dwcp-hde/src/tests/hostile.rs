//! Blocks that no honest encoder makes: each is refused with its reason and its place, and leaves nothing behind.

use super::dictionary::held;
use super::mixture::{build, kinds};
use super::{EFFORTS, all, wire, wire_with};
use crate::{Bases, DecodeError, Decoder, Effort, Encoder, FrameFault, Method, PAGE_BYTES};
use proptest::prelude::*;

/// Decodes a block that must fail.
fn refuse(block: &[u8], pages: usize) -> DecodeError {
    let mut scratch = vec![7; 100];
    let error = Decoder::new().decode(block, pages, &mut Bases::none(), &mut scratch).unwrap_err();
    assert!(scratch.is_empty(), "bytes left behind by {error}");
    error
}

/// A block of `pages` pages, all of `method`, with one group of `bytes`.
fn one_group(method: u8, pages: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
    [&[1, pages, 0, method, pages - 1, method, pages - 1], length.as_slice(), bytes].concat()
}

/// A zstd frame with the given header after the magic, holding one block of 4096 equal bytes.
fn frame(header: &[u8]) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd], header, &[0x03, 0x80, 0x00, b'x']].concat()
}

const ZSTD: u8 = 5;
/// Single segment, content size 4096.
const HEADER: [u8; 3] = [0x60, 0x00, 0x0f];
/// Where the bytes of the only group of `one_group` start.
const AT: usize = 11;

#[test]
fn an_honest_frame_passes_so_the_others_fail_for_their_fault() {
    let mut scratch = Vec::new();
    for header in [HEADER.as_slice(), &[0x40, 0x50, 0x00, 0x0f], &[0x80, 0x50, 0x00, 0x10, 0, 0]] {
        let block = one_group(ZSTD, 1, &frame(header));
        let plain = Decoder::new().decode(&block, 1, &mut Bases::none(), &mut scratch).unwrap();
        assert_eq!(plain, [b'x'; PAGE_BYTES]);
    }
}

// spec: K-5
#[test]
fn frames_with_a_wrong_header_never_reach_zstd() {
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let legacy = [&[0x27, 0xb5, 0x2f, 0xfd], HEADER.as_slice()].concat();
    let two = [frame(&HEADER), frame(&HEADER)].concat();
    let empty_behind = [frame(&HEADER), vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0]].concat();
    for (bytes, reason) in [
        (skippable.to_vec(), FrameFault::Magic),
        (legacy, FrameFault::Magic),
        (frame(&HEADER)[4..].to_vec(), FrameFault::Magic), // magicless
        (frame(&[]), FrameFault::ContentSize),             // the block's bytes read as a header: no content size
        (frame(&[0x00, 0x50]), FrameFault::ContentSize),   // no content size
        (frame(&[0x60, 0x00, 0x1f]), FrameFault::ContentSize),
        (frame(&[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80]), FrameFault::ContentSize),
        (frame(&[0x40, 0x51, 0x00, 0x0f]), FrameFault::Window), // 1 MiB and an eighth
        (frame(&[0x40, 0xff, 0x00, 0x0f]), FrameFault::Window),
        (frame(&[0x61, 0x07, 0x00, 0x0f]), FrameFault::Features), // dictionary id
        (frame(&[0x64, 0x00, 0x0f]), FrameFault::Features),       // checksum
        (frame(&[0x68, 0x00, 0x0f]), FrameFault::Features),       // reserved bit
        (two, FrameFault::NotOneFrame),
        (empty_behind, FrameFault::NotOneFrame),
        ([frame(&HEADER), vec![0]].concat(), FrameFault::NotOneFrame),
        (vec![0x28, 0xb5], FrameFault::Short),
        (vec![0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00], FrameFault::Short),
    ] {
        let error = refuse(&one_group(ZSTD, 1, &bytes), 1);
        match error {
            DecodeError::Frame { at: AT, reason: found } if found == reason => {}
            DecodeError::Frame { at: AT, reason: FrameFault::Features } if bytes == frame(&[]) => {}
            other => panic!("{bytes:02x?}: {other}, not {reason}"),
        }
    }
}

/// One page in so many blocks, each of 16 bytes that ask for three tables of 256 and 512 entries to decode 3 bytes.
fn one_page_of_blocks(blocks: usize) -> Vec<u8> {
    let last_of = |count: usize, last: bool| u32::try_from(count << 3).unwrap() | u32::from(last);
    let header = |header: u32| header.to_le_bytes()[..3].to_vec();
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd], HEADER.as_slice()].concat();
    // The plain bytes that no dear block makes, as one run.
    frame.extend(header(last_of(PAGE_BYTES - 3 * (blocks - 1), blocks == 1) | 1 << 1));
    frame.push(b'x');
    for block in 2..=blocks {
        // No literals, one sequence, three tables with one rare symbol each, states of zero and the end mark.
        let dear = [0, 1, 0xa8, 0xe4, 0xff, 0xe3, 0x7f, 0xe4, 0xff, 0, 0, 0, 4];
        frame.extend(header(last_of(dear.len(), block == blocks) | 2 << 1));
        frame.extend(dear);
    }
    frame
}

// spec: K-5
#[test]
fn a_frame_has_a_block_a_page_and_one_more() {
    let mut scratch = Vec::new();
    for blocks in [1, 2] {
        let block = one_group(ZSTD, 1, &one_page_of_blocks(blocks));
        let plain = Decoder::new().decode(&block, 1, &mut Bases::none(), &mut scratch).unwrap();
        assert_eq!(plain, [b'x'; PAGE_BYTES]);
    }
    for blocks in [3, 4, 250] {
        let error = refuse(&one_group(ZSTD, 1, &one_page_of_blocks(blocks)), 1);
        assert_eq!(error, DecodeError::Frame { at: AT, reason: FrameFault::Blocks });
        assert!(error.is_excess());
    }
}

// spec: K-5
#[test]
fn honest_frames_stay_far_below_a_block_a_page() {
    // Two kinds of content in turn, 8 KiB each: what makes zstd begin a new block where it can.
    let text = |i: usize| b"in the beginning was the page table "[(i + i / 997 % 3) % 36];
    let noise = |i: usize| u8::try_from(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 0x3f).unwrap();
    let plain: Vec<u8> =
        (0..crate::MAX_PAGES * PAGE_BYTES).map(|i| if i >> 13 & 1 == 0 { text(i) } else { noise(i) }).collect();
    for level in 1..=12 {
        for pages in [1, 2, 4, 16, 64, 256] {
            let plain = &plain[..pages * PAGE_BYTES];
            let mut frame = vec![0; zstd_safe::compress_bound(plain.len())];
            let bytes = zstd_safe::compress(frame.as_mut_slice(), plain, level).unwrap();
            let blocks = blocks_of(&frame[..bytes]);
            assert!(blocks <= pages.div_ceil(2), "level {level}: {blocks} blocks of {pages} pages");
        }
    }
}

/// Blocks of a frame that zstd wrote, and whose end it finds at the same place.
fn blocks_of(frame: &[u8]) -> usize {
    let single = frame[4] & 0x20 != 0;
    let size = [usize::from(single), 2, 4, 8][usize::from(frame[4] >> 6)];
    let (mut at, mut blocks) = (5 + usize::from(!single) + size, 0);
    loop {
        let header = u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], 0]);
        at += 3 + if header >> 1 & 3 == 1 { 1 } else { usize::try_from(header >> 3).unwrap() };
        blocks += 1;
        if header & 1 == 1 {
            assert_eq!(zstd_safe::find_frame_compressed_size(frame), Ok(at));
            return blocks;
        }
    }
}

// spec: K-4, K-6
#[test]
fn bombs_stop_at_the_extent() {
    // One page claimed, a block of 128 KiB inside.
    let bomb = [&[0x28, 0xb5, 0x2f, 0xfd], HEADER.as_slice(), &[0x03, 0x00, 0x10, b'x']].concat();
    assert_eq!(refuse(&one_group(ZSTD, 1, &bomb), 1), DecodeError::Corrupt { at: AT, method: Method::Zstd });
    // 255 pages claimed by the table and the frame, one there.
    let small = [0xa0, 0x00, 0xf0, 0x0f, 0x00];
    let error = refuse(&one_group(ZSTD, 255, &frame(&small)), 255);
    assert_eq!(error, DecodeError::Corrupt { at: AT, method: Method::Zstd });
    // LZ4 that expands without end, and LZ4 that gives too little.
    for bytes in [[&[0x1f, b'x', 1, 0], [0xff; 40].as_slice(), &[0]].concat(), vec![0x10, b'x']] {
        let error = refuse(&one_group(4, 1, &bytes), 1);
        assert_eq!(error, DecodeError::Corrupt { at: AT, method: Method::Lz4 });
    }
    // A group that claims 4 GiB.
    let mut block = one_group(ZSTD, 1, &frame(&HEADER));
    block[7..11].fill(0xff);
    assert!(matches!(refuse(&block, 1), DecodeError::GroupLength { at: 5, .. }));
}

// spec: K-1, K-2
#[test]
fn the_head_must_be_the_extents() {
    let zero = [1, 2, 0, 0, 1];
    assert_eq!(refuse(&zero, 3), DecodeError::PageCount { at: 1, claimed: 2, expected: 3 });
    assert_eq!(refuse(&zero, 257), DecodeError::TooManyPages { pages: 257 });
    assert_eq!(refuse(&[2, 0, 0], 0), DecodeError::Version { at: 0, version: 2 });
    assert_eq!(refuse(&[1, 2, 0, 0, 255], 2), DecodeError::RunBeyondEnd { at: 3, run: 256, left: 2 });
    assert_eq!(refuse(&[1, 2, 0, 0x0e, 1], 2), DecodeError::UnknownMethod { at: 3, number: 0x0e });
    assert_eq!(refuse(&[1, 2, 0, 0, 1, 9], 2), DecodeError::Trailing { at: 5, bytes: 1 });
    assert_eq!(refuse(&[1, 0, 0, 3, 0, 0, 16, 0, 0], 0), DecodeError::Trailing { at: 3, bytes: 6 });
}

// spec: K-3, K-4, K-8
#[test]
fn groups_must_carry_exactly_the_pages_of_the_table() {
    let missing = [1, 3, 0, 3, 2];
    assert_eq!(refuse(&missing, 3), DecodeError::GroupMissing { at: 5, method: Method::Raw, pages: 3 });
    let mut more = one_group(2, 2, &[0, 0]);
    more[6] = 2; // three copies in the group, two in the table
    more.insert(11, 0);
    more[7] = 3;
    let error = refuse(&more, 2);
    assert_eq!(error, DecodeError::GroupBeyondTable { at: 5, method: Method::CopyOf, pages: 3, left: 2 });
    let error = refuse(&[1, 2, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0], 2);
    assert_eq!(error, DecodeError::GroupWithoutBytes { at: 7, method: Method::Same });
    let error = refuse(&one_group(3, 1, &[0; 4095]), 1);
    assert_eq!(error, DecodeError::GroupLength { at: 5, method: Method::Raw, pages: 1, length: 4095 });
    let error = refuse(&[1, 1, 0, 5, 0, 0x77, 0], 1);
    assert_eq!(error, DecodeError::UnknownMethod { at: 5, number: 0x77 });
}

// spec: K-4, K-12
#[test]
fn a_page_of_a_baseline_that_nobody_agreed_on_is_refused() {
    let error = refuse(&one_group(0x0c, 2, &[0; 8]), 2);
    assert_eq!(error, DecodeError::BaseMissing { at: AT, page: 0, method: Method::OfBaseline });
    for length in [4, 7, 9, 12] {
        let error = refuse(&one_group(0x0c, 2, &[0; 12][..length]), 2);
        assert_eq!(error, DecodeError::GroupLength { at: 5, method: Method::OfBaseline, pages: 2, length });
    }
}

// spec: K-4, K-13
#[test]
fn a_page_like_one_of_a_baseline_that_nobody_agreed_on_is_refused() {
    let error = refuse(&one_group(0x0d, 2, &[0; 9]), 2);
    assert_eq!(error, DecodeError::BaseMissing { at: AT, page: 0, method: Method::LikeBaseline });
    for length in [4, 8, 2 * PAGE_BYTES + 1] {
        let error = refuse(&one_group(0x0d, 2, &vec![0; length]), 2);
        assert_eq!(error, DecodeError::GroupLength { at: 5, method: Method::LikeBaseline, pages: 2, length });
    }
}

// spec: K-7
#[test]
fn copies_look_back_only() {
    for of in [1, 2, 255] {
        let block = [&[1, 3, 0, 0, 0, 2, 0, 0, 0][..], &[2, 0, 1, 0, 0, 0, of]].concat();
        let error = refuse(&block, 3);
        assert_eq!(error, DecodeError::CopyForward { at: 15, page: 1, of: usize::from(of) });
    }
}

// spec: K-5, K-10
#[test]
fn a_dictionary_makes_no_frame_better() {
    let held = held(1, 1);
    let decode = |bytes: &[u8]| {
        let mut scratch = vec![7; 100];
        let block = one_group(10, 1, bytes);
        let decoded = Decoder::new().decode_with(&block, 1, &mut Bases::none(), &held, &mut scratch);
        let decoded = decoded.map(<[u8]>::to_vec);
        assert!(decoded.is_ok() || scratch.is_empty());
        decoded
    };
    let frames = |header: &[u8]| [&[1], frame(header).as_slice()].concat();
    assert_eq!(decode(&frames(&HEADER)).unwrap(), [b'x'; PAGE_BYTES], "an honest one");
    for (header, reason) in [
        ([0x61, 0x07, 0x00, 0x0f].as_slice(), FrameFault::Features), // zstd's own dictionary id
        (&[0x60, 0x00, 0x1f], FrameFault::ContentSize),
        (&[0x40, 0x51, 0x00, 0x0f], FrameFault::Window),
    ] {
        assert_eq!(decode(&frames(header)).unwrap_err(), DecodeError::Frame { at: AT, reason });
    }
    let two = [frames(&HEADER), frame(&HEADER)].concat();
    assert_eq!(decode(&two).unwrap_err(), DecodeError::Frame { at: AT, reason: FrameFault::NotOneFrame });
    assert_eq!(decode(&[1]).unwrap_err(), DecodeError::Frame { at: AT, reason: FrameFault::Short });
    for number in [0, 2, 3, 4, 255] {
        let unknown = [&[number], frame(&HEADER).as_slice()].concat();
        assert_eq!(decode(&unknown).unwrap_err(), DecodeError::DictionaryUnknown { at: AT, number });
    }
    let error = refuse(&one_group(10, 1, &frames(&HEADER)), 1);
    assert_eq!(error, DecodeError::DictionaryUnknown { at: AT, number: 1 }, "none was agreed on");
    assert!(!error.is_excess());
}

// spec: K-10
#[test]
fn an_unknown_dictionary_is_found_before_any_work() {
    // A raw page first, whose base nobody must be asked for, then a page of a dictionary that is not there.
    let head = [1, 2, 0, 1, 0, 10, 0];
    let block = [head.as_slice(), &[10, 0, 2, 0, 0, 0, 9, 0]].concat();
    let mut asked = |_: usize, _: &mut [u8]| panic!("work before the check");
    let mut scratch = Vec::new();
    let error = Decoder::new().decode(&block, 2, &mut asked, &mut scratch).unwrap_err();
    assert_eq!(error, DecodeError::DictionaryUnknown { at: 13, number: 9 });
}

#[test]
fn a_block_cut_or_extended_anywhere_is_refused() {
    let pages = build(&[
        super::mixture::Kind::Zero,
        super::mixture::Kind::Text(4),
        super::mixture::Kind::Near(1, 0),
        super::mixture::Kind::Words(9),
        super::mixture::Kind::Half(3),
    ]);
    let (whole, _) = wire(&mut Encoder::new(), &pages, &Bases::none(), Effort::Balanced);
    for cut in 0..whole.len() {
        refuse(&whole[..cut], 5);
    }
    for more in 1..9 {
        refuse(&[whole.as_slice(), &vec![0; more]].concat(), 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    // spec: K-6, K-9
    #[test]
    fn any_bytes_decode_exactly_or_not_at_all(block in prop::collection::vec(any::<u8>(), 0..400), pages in 0_usize..300) {
        let mut scratch = Vec::new();
        match Decoder::new().decode(&block, pages, &mut Bases::none(), &mut scratch) {
            Ok(plain) => prop_assert_eq!(plain.len(), pages * PAGE_BYTES),
            Err(_) => prop_assert!(scratch.is_empty()),
        }
    }

    #[test]
    fn damaged_blocks_decode_exactly_or_not_at_all(
        kinds in prop::collection::vec(kinds(), 1..20),
        effort in 1_usize..EFFORTS.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        near_head in any::<bool>(),
    ) {
        let pages = build(&kinds);
        let old: Vec<u8> = pages.iter().enumerate().map(|(place, byte)| byte ^ u8::from(place % 700 == 0)).collect();
        let mut bases = Bases::new(all(kinds.len() / 2), &old);
        let held = held(2, 256);
        let (mut block, _) = wire_with(&mut Encoder::new(), &pages, &bases, EFFORTS[effort], &held);
        for (place, byte) in damage {
            let reach = if near_head { block.len().min(48) } else { block.len() };
            block[place.index(reach)] = byte;
        }
        let mut scratch = Vec::new();
        match Decoder::new().decode_with(&block, kinds.len(), &mut bases, &held, &mut scratch) {
            Ok(plain) => prop_assert_eq!(plain.len(), pages.len()),
            Err(_) => prop_assert!(scratch.is_empty()),
        }
    }
}
