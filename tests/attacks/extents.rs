//! Extents that say something else than they carry, or belong somewhere else.

use dwcp_core::PAGE_BYTES;
use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::wire::*;
use dwcp_hde::{Bases, Effort};

use crate::attacker::{PAGES, block_of, digest_of, extent, extent_with};
use crate::oracle::oracle;

async fn sent(frame: Vec<u8>, expected: Offence) {
    oracle(SinkConfig::default(), expected, async |inside| inside.lane.bytes(&frame).await).await;
}

#[tokio::test]
async fn b01_a_bit_flipped_after_the_digest_was_made() {
    let mut plain = vec![0xa5; PAGE_BYTES];
    let digest = digest_of(1, 0, &plain);
    plain[1000] ^= 0x10;
    let block = block_of(&plain, Effort::Fast, &Bases::none());
    sent(extent_with(0, 1, 0, 1, digest, &block), Offence::ExtentDigest).await;
}

#[tokio::test]
async fn b02_a_sound_block_for_another_page() {
    let plain = vec![0xa5; PAGE_BYTES];
    let block = block_of(&plain, Effort::Fast, &Bases::none());
    sent(extent_with(0, 1, 7, 1, digest_of(1, 8, &plain), &block), Offence::ExtentDigest).await;
}

#[tokio::test]
async fn b02_a_sound_block_for_more_pages() {
    let plain = vec![0xa5; PAGE_BYTES];
    let block = block_of(&plain, Effort::Fast, &Bases::none());
    sent(extent_with(0, 1, 7, 2, digest_of(1, 7, &plain), &block), Offence::BadExtent).await;
}

#[tokio::test]
async fn b03_beyond_the_guest() {
    sent(extent(0, 1, u32::try_from(PAGES).unwrap(), false), Offence::BadExtent).await;
    sent(extent(0, 1, u32::MAX - 1, false), Offence::BadExtent).await;
}

#[tokio::test]
async fn b03_page_numbers_that_overflow() {
    let mut frame = extent(0, 1, 0, false);
    // The gap of the only run, one byte of zero, becomes 2^32 - 1, and its one page would be 2^32 - 1 + 1.
    let at = FRAME_HEADER_BYTES + EXTENT_HEAD_MAX;
    frame.splice(at..=at + 1, [0xff, 0xff, 0xff, 0xff, 0x0f, 2]);
    let length = u32::try_from(frame.len() - FRAME_HEADER_BYTES).unwrap();
    frame[..4].copy_from_slice(&length.to_le_bytes());
    sent(frame, Offence::Malformed).await;
}

/// A page has one version in flight and an extent one place in its lane: a second content for the same place is a
/// sequence number that was used.
#[tokio::test]
async fn b04_two_contents_for_one_place() {
    oracle(SinkConfig::default(), Offence::BadExtent, async |inside| {
        let empty = extent_with(0, 1, 0, 0, digest_of(1, 0, &[]), &block_of(&[], Effort::Fast, &Bases::none()));
        inside.lane.bytes(&empty).await;
        inside.lane.bytes(&extent(0, 1, 0, false)).await;
    })
    .await;
}

#[tokio::test]
async fn b20_an_extent_of_another_epoch() {
    sent(extent(0, 0, 0, false), Offence::BadExtent).await;
    sent(extent(0, 2, 0, false), Offence::BadExtent).await;
}

// spec: F-2
#[tokio::test]
async fn b29_extents_that_carry_nothing() {
    let config = SinkConfig { lane_window: 1 << 40, ..SinkConfig::default() };
    oracle(config, Offence::Flood, async |inside| {
        let block = block_of(&[], Effort::Fast, &Bases::none());
        let digest = digest_of(1, 0, &[]);
        for batch in 0..1000_u64 {
            let frames: Vec<u8> =
                (0..1000).flat_map(|i| extent_with(batch * 1000 + i, 1, 0, 0, digest, &block)).collect();
            use tokio::io::AsyncWriteExt;
            if inside.lane.stream.write_all(&frames).await.is_err() {
                return;
            }
        }
    })
    .await;
}
