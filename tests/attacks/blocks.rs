//! Blocks that decode to too much, to something else, or not at all.

use dwcp_core::PAGE_BYTES;
use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_hde::{Bases, DecodeError, Decoder, Dictionaries, Dictionary, Effort, Encoder, FrameFault, Method, Request};

use crate::attacker::{PAGES, block_of, digest_of};
use crate::oracle::{Inside, oracle};
use crate::seeds::Chance;

/// Text-like pages, no two the same: every effort packs them.
fn plain(pages: usize, chance: &mut Chance) -> Vec<u8> {
    let first = chance.below(256) as usize;
    (0..pages * PAGE_BYTES).map(|i| (first + i / 64 % 7 * 9 + i % 5 + i / PAGE_BYTES) as u8).collect()
}

/// A block with one byte changed so that it is refused for this reason.
fn spoilt(block: &[u8], pages: usize, chance: &mut Chance, wanted: impl Fn(&DecodeError) -> bool) -> Vec<u8> {
    let mut decoder = Decoder::new();
    let first = chance.bytes::<1>()[0];
    for at in 0..block.len() {
        for value in 0..=u8::MAX {
            let mut spoilt = block.to_vec();
            spoilt[at] = value.wrapping_add(first);
            let mut scratch = Vec::new();
            let found = decoder.decode(&spoilt, pages, &mut Bases::none(), &mut scratch);
            if found.is_err_and(|error| wanted(&error)) {
                return spoilt;
            }
        }
    }
    panic!("no byte of {} does that", block.len());
}

/// Sends the block and its plain pages that this makes, at any place.
async fn refused(expected: Offence, make: impl Fn(&mut Chance) -> (Vec<u8>, Vec<u8>)) {
    oracle(SinkConfig::default(), expected, async |inside: &mut Inside| {
        let (block, plain) = make(&mut inside.chance);
        let pages = plain.len() / PAGE_BYTES;
        let at = inside.chance.place(pages, PAGES);
        inside.extent(at, pages, digest_of(1, at, &plain), &block).await;
    })
    .await;
}

/// As [`refused`], with four pages or more, packed like this.
async fn refused_when_packed(effort: Effort, expected: Offence, spoil: impl Fn(&mut Chance, &[u8], &mut Vec<u8>)) {
    refused(expected, |chance| {
        let pages = chance.between(4, 12) as usize;
        let plain = plain(pages, chance);
        let mut block = block_of(&plain, effort, &Bases::none());
        spoil(chance, &plain, &mut block);
        (block, plain)
    })
    .await;
}

/// Replaces bytes after the magic number of the block's only zstd frame.
fn zstd_header(block: &mut [u8], header: &[u8]) {
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let at = block.windows(4).position(|bytes| bytes == magic).expect("a zstd frame") + 4;
    block[at..at + header.len()].copy_from_slice(header);
}

#[tokio::test]
async fn b07_zstd_that_claims_a_gibibyte() {
    refused_when_packed(Effort::Balanced, Offence::BadExtent, |chance, plain, block| {
        // One segment, content size of 4 bytes: 2^30, or any other number.
        let other = plain.len() as u32 + 1;
        let claimed = if chance.percent(30) { 1 << 30 } else { chance.between(other.into(), u32::MAX.into()) as u32 };
        zstd_header(block, &[&[0xa0], claimed.to_le_bytes().as_slice()].concat());
    })
    .await;
}

#[tokio::test]
async fn b07_zstd_windows_of_128_mib_and_more() {
    refused_when_packed(Effort::Balanced, Offence::BadExtent, |chance, plain, block| {
        // Not one segment: a window of 2^(10 + exponent) and some eighths of it, and the right content size.
        let exponent = chance.pick(&[10, 11, 17, 21, 31]);
        let eighths = u8::try_from(chance.between(u64::from(exponent == 10), 7)).unwrap();
        let mut header = vec![0x40, exponent << 3 | eighths];
        header.extend(u16::try_from(plain.len() - 256).unwrap().to_le_bytes());
        zstd_header(block, &header);
    })
    .await;
}

#[tokio::test]
async fn b07_zstd_without_a_content_size() {
    refused_when_packed(Effort::Balanced, Offence::BadExtent, |chance, _, block| {
        let window = chance.pick(&[0x00, 0x38, 0x50]);
        zstd_header(block, &[0x00, window]);
    })
    .await;
}

#[tokio::test]
async fn b07_frames_that_are_skipped_or_of_another_kind() {
    let is_magic = |error: &DecodeError| matches!(error, DecodeError::Frame { reason: FrameFault::Magic, .. });
    refused_when_packed(Effort::Balanced, Offence::BadExtent, |chance, plain, block| {
        *block = spoilt(block, plain.len() / PAGE_BYTES, chance, is_magic);
    })
    .await;
}

#[tokio::test]
async fn b07_two_frames_in_one_group() {
    let two = |error: &DecodeError| matches!(error, DecodeError::Frame { reason: FrameFault::NotOneFrame, .. });
    refused_when_packed(Effort::Balanced, Offence::BadExtent, |chance, plain, block| {
        *block = spoilt(block, plain.len() / PAGE_BYTES, chance, two);
    })
    .await;
}

/// Blocks that decode to nearly nothing and make zstd build its tables each time: 200 ms for an extent, if it were taken.
#[tokio::test]
async fn b07_a_frame_of_hundreds_of_blocks() {
    refused(Offence::BadExtent, |chance| {
        // One segment of 4096 bytes: a run, and 3 bytes of each dear block.
        let blocks = chance.between(2, 250) as usize;
        let dear = [0x6c, 0, 0, 0, 1, 0xa8, 0xe4, 0xff, 0xe3, 0x7f, 0xe4, 0xff, 0, 0, 0, 4];
        let run = u32::try_from(PAGE_BYTES - 3 * blocks).unwrap() << 3 | 1 << 1;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];
        frame.extend(&run.to_le_bytes()[..3]);
        frame.push(b'x');
        (0..blocks).for_each(|_| frame.extend(dear));
        let last = frame.len() - dear.len();
        frame[last] |= 1;
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let block = [&[1, 1, 0, 5, 0, 5, 0], length.as_slice(), &frame].concat();
        (block, vec![b'x'; PAGE_BYTES])
    })
    .await;
}

#[tokio::test]
async fn b08_lz4_that_refers_to_bytes_before_its_begin() {
    let corrupt = |error: &DecodeError| matches!(error, DecodeError::Corrupt { .. });
    refused_when_packed(Effort::Fast, Offence::BadBlock, |chance, plain, block| {
        *block = spoilt(block, plain.len() / PAGE_BYTES, chance, corrupt);
    })
    .await;
}

#[tokio::test]
async fn b09_a_copy_of_a_later_page() {
    let forward = |error: &DecodeError| matches!(error, DecodeError::CopyForward { .. });
    refused(Offence::BadExtent, |chance| {
        // Pages of which some are copies of others.
        let copies = chance.between(2, 6) as usize;
        let pages = plain(1, chance).repeat(copies);
        let block = block_of(&pages, Effort::Fast, &Bases::none());
        (spoilt(&block, copies, chance, forward), pages)
    })
    .await;
}

#[tokio::test]
async fn b10_a_delta_against_what_the_node_does_not_hold() {
    refused(Offence::ExtentDigest, |chance| {
        // The node holds zeros; the source pretends that it holds nearly the same page.
        let old: [u8; PAGE_BYTES] = chance.bytes();
        let mut new = old.to_vec();
        for _ in 0..chance.between(1, 4) {
            new[chance.below(PAGE_BYTES as u64) as usize] ^= 1;
        }
        let block = block_of(&new, Effort::Fast, &Bases::new([1, 0, 0, 0], &old));
        assert!(block.len() < 200, "a delta: {} bytes", block.len());
        (block, new)
    })
    .await;
}

/// A frame made with a dictionary that the node does not hold, under a number that was never agreed on.
#[tokio::test]
async fn b12_a_block_of_a_dictionary_of_its_own() {
    refused(Offence::BadBlock, |chance| {
        let plain = plain(chance.between(1, 4) as usize, chance);
        let own = Dictionary::new(plain.clone()).unwrap();
        let number = u8::try_from(chance.below(4)).unwrap();
        let dictionaries = Dictionaries::none().with(number, &own).for_groups_of(4);
        let mut block = Vec::new();
        let none = Bases::none();
        let request = Request { dictionaries: &dictionaries, ..Request::new(&none, Effort::Balanced) };
        let done = Encoder::new().encode_with(&plain, &request, &mut block).unwrap();
        assert!(done.stats.of(Method::Dictionary).pages > 0);
        (block, plain)
    })
    .await;
}

#[tokio::test]
async fn b12_a_dictionary_that_nobody_has() {
    let unknown = |error: &DecodeError| matches!(error, DecodeError::DictionaryUnknown { .. });
    refused_when_packed(Effort::Balanced, Offence::BadBlock, |chance, plain, block| {
        *block = spoilt(block, plain.len() / PAGE_BYTES, chance, unknown);
    })
    .await;
}
