//! Tests of whole blocks; small parts are tested beside their code.

mod guest;
mod hostile;
mod mixture;

use crate::{Bases, Decoder, Effort, Encoded, Encoder, PAGE_BYTES, max_block_bytes, reference};

/// Every effort worth a test.
const EFFORTS: [Effort; 7] = [
    Effort::Raw,
    Effort::Fast,
    Effort::Light,
    Effort::Balanced,
    Effort::Thorough(1),
    Effort::Thorough(5),
    Effort::Thorough(12),
];

/// The bitmask of the first `pages` pages.
fn all(pages: usize) -> [u64; 4] {
    let mut mask = [0; 4];
    for page in 0..pages {
        mask[page / 64] |= 1 << (page % 64);
    }
    mask
}

/// The whole block as it stands on the wire.
fn wire(encoder: &mut Encoder, pages: &[u8], bases: &Bases<'_>, effort: Effort) -> (Vec<u8>, Encoded) {
    let mut block = Vec::new();
    let done = encoder.encode(pages, bases, effort, &mut block).unwrap();
    if done.raw_tail {
        block.extend_from_slice(pages);
    }
    (block, done)
}

/// Encodes, decodes with both decoders, and checks every promise on the way.
fn round_trip(
    encoder: &mut Encoder,
    decoder: &mut Decoder,
    pages: &[u8],
    bases: &Bases<'_>,
    effort: Effort,
) -> Encoded {
    let (block, done) = wire(encoder, pages, bases, effort);
    let count = pages.len() / PAGE_BYTES;
    assert!(block.len() <= max_block_bytes(count));
    assert_eq!(done.stats.bytes_out(), u64::try_from(block.len()).unwrap());
    assert_eq!(done.stats.bytes_in(), u64::try_from(pages.len()).unwrap());
    assert_eq!(done.stats.pages(), u64::try_from(count).unwrap());

    let needed = crate::needs_bases(&block, count).unwrap();
    let mut sink = |page: usize, into: &mut [u8]| {
        assert_eq!(needed[page / 64] >> (page % 64) & 1, 1, "page {page} was asked for without need");
        into.copy_from_slice(bases.get(page).unwrap());
        Ok(())
    };
    let mut scratch = Vec::new();
    let plain = decoder.decode(&block, count, &mut sink, &mut scratch).unwrap();
    assert!(plain == pages, "the real decoder differs");
    let oracle = reference::decode(&block, &|page| bases.get(page).unwrap().to_vec());
    assert!(oracle.concat() == pages, "the reference decoder differs");
    done
}
