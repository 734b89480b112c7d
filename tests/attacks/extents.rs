//! Extents that say something else than they carry, or belong somewhere else.

use dwcp_core::PAGE_BYTES;
use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::wire::*;
use dwcp_hde::{Bases, Effort};

use crate::attacker::{PAGES, block_of, digest_of, extent, extent_with};
use crate::oracle::{Inside, oracle};
use crate::seeds::Chance;

const EFFORTS: [Effort; 4] = [Effort::Raw, Effort::Fast, Effort::Light, Effort::Balanced];

/// One to eight pages, each of one byte or of noise.
fn pages(chance: &mut Chance) -> Vec<u8> {
    let mut plain = Vec::new();
    for _ in 0..chance.between(1, 8) {
        let (noisy, byte) = (chance.percent(50), chance.bytes::<1>()[0] | 1);
        plain.extend((0..PAGE_BYTES).map(|_| if noisy { chance.bytes::<1>()[0] } else { byte }));
    }
    plain
}

/// Sends what this makes of pages, and of a place and an effort for them.
async fn sent(expected: Offence, spoil: impl Fn(&mut Chance, &mut Vec<u8>, &mut u32, &mut usize, &mut Digest)) {
    oracle(SinkConfig::default(), expected, async |inside: &mut Inside| {
        let chance = &mut inside.chance;
        let mut plain = pages(chance);
        let mut count = plain.len() / PAGE_BYTES;
        let mut at = chance.place(count, PAGES);
        let mut digest = digest_of(1, at, &plain);
        spoil(chance, &mut plain, &mut at, &mut count, &mut digest);
        let block = block_of(&plain, chance.pick(&EFFORTS), &Bases::none());
        inside.extent(at, count, digest, &block).await;
    })
    .await;
}

#[tokio::test]
async fn b01_a_bit_flipped_after_the_digest_was_made() {
    sent(Offence::ExtentDigest, |chance, plain, _, _, _| {
        let bit = chance.below(plain.len() as u64 * 8) as usize;
        plain[bit / 8] ^= 1 << (bit % 8);
    })
    .await;
}

#[tokio::test]
async fn b02_a_sound_block_for_another_page() {
    sent(Offence::ExtentDigest, |chance, _, at, count, _| {
        let places = PAGES - *count as u64 + 1;
        *at = u32::try_from((u64::from(*at) + chance.between(1, places - 1)) % places).unwrap();
    })
    .await;
}

#[tokio::test]
async fn b02_a_sound_block_for_more_pages() {
    sent(Offence::BadExtent, |chance, _, at, count, _| {
        *count += chance.between(1, 8) as usize;
        *at = (*at).min(u32::try_from(PAGES).unwrap() - 16);
    })
    .await;
}

#[tokio::test]
async fn b03_beyond_the_guest() {
    sent(Offence::BadExtent, |chance, plain, at, count, digest| {
        // From its last page on, to the last page that a number can name.
        let first = PAGES - *count as u64 + 1;
        *at = u32::try_from(chance.magnitude(first, u64::from(u32::MAX) - *count as u64)).unwrap();
        *digest = digest_of(1, *at, plain);
    })
    .await;
}

#[tokio::test]
async fn b03_page_numbers_that_overflow() {
    oracle(SinkConfig::default(), Offence::Malformed, async |inside: &mut Inside| {
        let mut frame = extent(inside.seq, 1, 0, false);
        // The gap of the only run, one byte of zero, becomes 2^32 - 1, and its pages would be 2^32 - 1 + 1 and more.
        let at = FRAME_HEADER_BYTES + EXTENT_HEAD_MAX;
        let count = u8::try_from(inside.chance.between(2, 127)).unwrap();
        frame.splice(at..=at + 1, [0xff, 0xff, 0xff, 0xff, 0x0f, count]);
        let length = u32::try_from(frame.len() - FRAME_HEADER_BYTES).unwrap();
        frame[..4].copy_from_slice(&length.to_le_bytes());
        inside.lane.bytes(&frame).await;
    })
    .await;
}

/// A page has one version in flight and an extent one place in its lane: a second content for the same place is a
/// sequence number that was used.
#[tokio::test]
async fn b04_two_contents_for_one_place() {
    oracle(SinkConfig::default(), Offence::BadExtent, async |inside: &mut Inside| {
        inside.extent(0, 0, digest_of(1, 0, &[]), &block_of(&[], Effort::Fast, &Bases::none())).await;
        let (again, page) = (inside.chance.below(inside.seq), inside.chance.place(1, PAGES));
        inside.lane.bytes(&extent(again, 1, page, false)).await;
    })
    .await;
}

#[tokio::test]
async fn b20_an_extent_of_another_epoch() {
    for later in [false, true] {
        oracle(SinkConfig::default(), Offence::BadExtent, async |inside: &mut Inside| {
            let epoch = if later { inside.chance.magnitude(2, u64::MAX / 4) } else { 0 };
            let page = inside.chance.place(1, PAGES);
            inside.lane.bytes(&extent(inside.seq, epoch, page, false)).await;
        })
        .await;
    }
}

// spec: F-2
#[tokio::test]
async fn b29_extents_that_carry_nothing() {
    let config = SinkConfig { lane_window: 1 << 40, ..SinkConfig::default() };
    oracle(config, Offence::Flood, async |inside: &mut Inside| {
        let block = block_of(&[], Effort::Fast, &Bases::none());
        let digest = digest_of(1, 0, &[]);
        let many = inside.chance.between(1, 2000);
        for batch in 0..1_000_000 / many {
            let first = inside.seq + batch * many;
            let frames: Vec<u8> =
                (first..first + many).flat_map(|seq| extent_with(seq, 1, 0, 0, digest, &block)).collect();
            use tokio::io::AsyncWriteExt;
            if inside.lane.stream.write_all(&frames).await.is_err() {
                return;
            }
        }
    })
    .await;
}
