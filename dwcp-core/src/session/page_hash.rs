//! Leaves of many pages at once.
//!
//! BLAKE3 of one 4 KiB page is four chunks: too few to fill a SIMD unit that takes sixteen. Sixteen
//! pages side by side fill it, chunk by chunk:
//!
//! ```text
//!            chunk 0   chunk 1   chunk 2   chunk 3
//!  page 0       |         |         |         |      one call of `hash_many` for each column,
//!  ...          |         |         |         |      then one for each pair of columns,
//!  page 15      v         v         v         v      then one for the sixteen roots
//! ```
//!
//! The digests are those of `blake3::hash`, bit for bit; only the order of work differs.

use blake3::IncrementCounter;
use blake3::platform::Platform;

use super::leaves::{leaf, zero_leaf};
use crate::extent::PAGE_BYTES;
use crate::wire::Digest;

const BATCH: usize = 16;
const CHUNK: usize = 1024;
const DIGEST: usize = 32;

// Constants of BLAKE3 (its specification, table 1 and 3).
const KEY: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;

/// Appends the leaf of each page of `pages` (a multiple of [`PAGE_BYTES`]) to `leaves`. Pages of
/// zeros cost only the look at them.
pub fn hash_pages(pages: &[u8], leaves: &mut Vec<Digest>) {
    let platform = Platform::detect();
    let mut waiting: Vec<(usize, &[u8; PAGE_BYTES])> = Vec::with_capacity(BATCH);
    for page in pages.chunks_exact(PAGE_BYTES) {
        let place = leaves.len();
        leaves.push(zero_leaf());
        if dwcp_hde::is_zero(page) {
            continue;
        }
        if let Ok(page) = page.try_into() {
            waiting.push((place, page));
        }
        if waiting.len() == BATCH {
            hash_batch(platform, &waiting, leaves);
            waiting.clear();
        }
    }
    if waiting.len() > 4 {
        hash_batch(platform, &waiting, leaves);
    } else {
        for (place, page) in waiting {
            if let Some(digest) = leaves.get_mut(place) {
                *digest = leaf(page);
            }
        }
    }
}

/// Hashes up to sixteen pages side by side.
fn hash_batch(platform: Platform, batch: &[(usize, &[u8; PAGE_BYTES])], leaves: &mut [Digest]) {
    let count = batch.len();
    // Digests of chunk c of page p at 32 * (4 p + c): a page's four stand side by side.
    let mut chunks = [0; BATCH * 4 * DIGEST];
    for chunk in 0..4 {
        let inputs: Vec<&[u8; CHUNK]> = batch.iter().filter_map(|(_, page)| page.as_chunks().0.get(chunk)).collect();
        let counter = u64::try_from(chunk).unwrap_or(0);
        let mut column = [0; BATCH * DIGEST];
        platform.hash_many(&inputs, &KEY, counter, IncrementCounter::No, 0, CHUNK_START, CHUNK_END, &mut column);
        for (page, digest) in column.chunks_exact(DIGEST).take(count).enumerate() {
            let at = (page * 4 + chunk) * DIGEST;
            if let Some(place) = chunks.get_mut(at..at + DIGEST) {
                place.copy_from_slice(digest);
            }
        }
    }
    let mut parents = [0; BATCH * 2 * DIGEST];
    merge(platform, chunks.get(..count * 4 * DIGEST).unwrap_or_default(), PARENT, &mut parents);
    let mut roots = [0; BATCH * DIGEST];
    merge(platform, parents.get(..count * 2 * DIGEST).unwrap_or_default(), PARENT | ROOT, &mut roots);
    for ((place, _), root) in batch.iter().zip(roots.as_chunks::<DIGEST>().0) {
        if let Some(digest) = leaves.get_mut(*place) {
            *digest = Digest(*root);
        }
    }
}

/// Hashes each pair of neighbouring digests.
fn merge(platform: Platform, digests: &[u8], flags: u8, out: &mut [u8]) {
    let pairs: Vec<&[u8; 2 * DIGEST]> = digests.as_chunks().0.iter().collect();
    platform.hash_many(&pairs, &KEY, 0, IncrementCounter::No, flags, 0, 0, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        // spec: I-1
        #[test]
        fn leaves_are_blake3_of_each_page(kinds in proptest::collection::vec(0_u8..4, 0..70), seed in any::<u64>()) {
            let mut state = seed | 1;
            let mut pages = Vec::new();
            for kind in &kinds {
                let mut page = vec![0; PAGE_BYTES];
                match kind {
                    0 => {}
                    1 => page[PAGE_BYTES - 1] = 1,
                    _ => page.fill_with(|| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        state.to_le_bytes()[7]
                    }),
                }
                pages.extend_from_slice(&page);
            }
            let mut leaves = Vec::new();
            hash_pages(&pages, &mut leaves);
            let expected: Vec<Digest> =
                pages.chunks_exact(PAGE_BYTES).map(|page| Digest(*blake3::hash(page).as_bytes())).collect();
            prop_assert_eq!(leaves, expected);
        }
    }
}
