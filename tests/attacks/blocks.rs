//! Blocks that decode to too much, to something else, or not at all.

use dwcp_core::PAGE_BYTES;
use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_hde::{Bases, DecodeError, Decoder, Effort, FrameFault};

use crate::attacker::{block_of, digest_of, extent_with};
use crate::oracle::oracle;

/// Text-like pages, no two the same: every effort packs them.
fn plain(pages: usize) -> Vec<u8> {
    (0..pages * PAGE_BYTES).map(|i| (i / 64 % 7 * 9 + i % 5 + i / PAGE_BYTES) as u8).collect()
}

/// A block with one byte changed so that it is refused for this reason.
fn spoilt(block: &[u8], pages: usize, wanted: impl Fn(&DecodeError) -> bool) -> Vec<u8> {
    let mut decoder = Decoder::new();
    for at in 0..block.len() {
        for value in 0..=u8::MAX {
            let mut spoilt = block.to_vec();
            spoilt[at] = value;
            let mut scratch = Vec::new();
            let found = decoder.decode(&spoilt, pages, &mut Bases::none(), &mut scratch);
            if found.is_err_and(|error| wanted(&error)) {
                return spoilt;
            }
        }
    }
    panic!("no byte of {} does that", block.len());
}

async fn refused(block: &[u8], plain: &[u8], expected: Offence) {
    let frame = extent_with(0, 1, 3, plain.len() / PAGE_BYTES, digest_of(1, 3, plain), block);
    oracle(SinkConfig::default(), expected, async |inside| inside.lane.bytes(&frame).await).await;
}

/// Replaces bytes after the magic number of the block's only zstd frame.
fn zstd_header(block: &[u8], header: &[u8]) -> Vec<u8> {
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let at = block.windows(4).position(|bytes| bytes == magic).expect("a zstd frame") + 4;
    let mut spoilt = block.to_vec();
    spoilt[at..at + header.len()].copy_from_slice(header);
    spoilt
}

#[tokio::test]
async fn b07_zstd_that_claims_a_gibibyte() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Balanced, &Bases::none());
    // One segment, content size of 4 bytes: 2^30.
    refused(&zstd_header(&block, &[0xa0, 0, 0, 0, 0x40]), &plain, Offence::BadExtent).await;
}

#[tokio::test]
async fn b07_zstd_windows_of_128_mib_and_more() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Balanced, &Bases::none());
    for exponent in [17, 21] {
        // Not one segment: a window of 2^(10 + exponent), and the right content size.
        let mut header = vec![0x40, exponent << 3];
        header.extend(u16::try_from(plain.len() - 256).unwrap().to_le_bytes());
        refused(&zstd_header(&block, &header), &plain, Offence::BadExtent).await;
    }
}

#[tokio::test]
async fn b07_zstd_without_a_content_size_and_skippable_frames() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Balanced, &Bases::none());
    refused(&zstd_header(&block, &[0x00, 0x38]), &plain, Offence::BadExtent).await;
    let is_magic = |error: &DecodeError| matches!(error, DecodeError::Frame { reason: FrameFault::Magic, .. });
    refused(&spoilt(&block, 4, is_magic), &plain, Offence::BadExtent).await;
}

#[tokio::test]
async fn b07_two_frames_in_one_group() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Balanced, &Bases::none());
    let two = |error: &DecodeError| matches!(error, DecodeError::Frame { reason: FrameFault::NotOneFrame, .. });
    refused(&spoilt(&block, 4, two), &plain, Offence::BadExtent).await;
}

/// Blocks that decode to nearly nothing and make zstd build its tables each time: 200 ms for an extent, if it were taken.
#[tokio::test]
async fn b07_a_frame_of_hundreds_of_blocks() {
    // One segment of 4096 bytes: 3 bytes of each dear block, the rest as a run.
    let dear = [0x6c, 0, 0, 0, 1, 0xa8, 0xe4, 0xff, 0xe3, 0x7f, 0xe4, 0xff, 0, 0, 0, 4];
    let run = u32::try_from(PAGE_BYTES - 3 * 250).unwrap() << 3 | 1 << 1;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];
    frame.extend(&run.to_le_bytes()[..3]);
    frame.push(b'x');
    (0..250).for_each(|_| frame.extend(dear));
    let last = frame.len() - dear.len();
    frame[last] |= 1;
    let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
    let block = [&[1, 1, 0, 5, 0, 5, 0], length.as_slice(), &frame].concat();
    refused(&block, &[b'x'; PAGE_BYTES], Offence::BadExtent).await;
}

#[tokio::test]
async fn b08_lz4_that_refers_to_bytes_before_its_begin() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Fast, &Bases::none());
    let corrupt = |error: &DecodeError| matches!(error, DecodeError::Corrupt { .. });
    refused(&spoilt(&block, 4, corrupt), &plain, Offence::BadBlock).await;
}

#[tokio::test]
async fn b09_a_copy_of_a_later_page() {
    // Pages of which one is a copy of another.
    let page = plain(1);
    let pages = [page.clone(), page].concat();
    let block = block_of(&pages, Effort::Fast, &Bases::none());
    let forward = |error: &DecodeError| matches!(error, DecodeError::CopyForward { .. });
    refused(&spoilt(&block, 2, forward), &pages, Offence::BadExtent).await;
}

#[tokio::test]
async fn b10_a_delta_against_what_the_node_does_not_hold() {
    // The node holds zeros; the source pretends that it holds nearly the same page.
    let mut random = 7_u64;
    let old: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 56) as u8
    })
    .take(PAGE_BYTES)
    .collect();
    let mut new = old.clone();
    new[17] ^= 1;
    let block = block_of(&new, Effort::Fast, &Bases::new([1, 0, 0, 0], &old));
    assert!(block.len() < 200, "a delta: {} bytes", block.len());
    refused(&block, &new, Offence::ExtentDigest).await;
}

#[tokio::test]
async fn b12_a_dictionary_that_nobody_has() {
    let plain = plain(4);
    let block = block_of(&plain, Effort::Balanced, &Bases::none());
    let reserved = |error: &DecodeError| matches!(error, DecodeError::Unsupported { .. });
    refused(&spoilt(&block, 4, reserved), &plain, Offence::BadBlock).await;
}
