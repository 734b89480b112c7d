//! Real memory of three lab guests: see `tests/data/README.md`.

use super::{EFFORTS, all, round_trip};
use crate::{Bases, Decoder, Effort, Encoder, PAGE_BYTES, Stats};

const WORKLOADS: [&str; 3] = ["redis", "compile", "pgbench"];
const FIRST: usize = 320;
const CHANGED: usize = 160;

/// The decoded test data, by workload: first round, changed pages before, changed pages after.
fn guests() -> Vec<[Vec<u8>; 3]> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/guest-pages.zst");
    let frame = std::fs::read(path).unwrap();
    let mut plain = vec![0; WORKLOADS.len() * (FIRST + 2 * CHANGED) * PAGE_BYTES];
    assert_eq!(zstd_safe::decompress(plain.as_mut_slice(), &frame), Ok(plain.len()));
    let split = |guest: &[u8]| {
        let (first, rest) = guest.split_at(FIRST * PAGE_BYTES);
        let (old, new) = rest.split_at(CHANGED * PAGE_BYTES);
        [first.to_vec(), old.to_vec(), new.to_vec()]
    };
    plain.chunks(plain.len() / WORKLOADS.len()).map(split).collect()
}

/// Hundredths of a percent saved.
fn saved(stats: &Stats) -> u64 {
    10_000 - stats.bytes_out() * 10_000 / stats.bytes_in()
}

#[test]
fn first_round_of_real_guests() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for ([first, _, _], name) in guests().iter().zip(WORKLOADS) {
        let mut savings = Vec::new();
        for effort in EFFORTS {
            let mut stats = Stats::default();
            for extent in first.chunks(256 * PAGE_BYTES) {
                stats += round_trip(&mut encoder, &mut decoder, extent, &Bases::none(), effort).stats;
            }
            savings.push(saved(&stats));
        }
        assert!(savings[1] > 4500, "{name}: lz4 saves {savings:?}");
        assert!(savings[3] > 6000, "{name}: zstd saves {savings:?}");
        let (lz4, light, balanced, thorough) = (savings[1], savings[2], savings[3], savings[5]);
        assert!(lz4 < light && light < balanced && balanced <= thorough, "{name}: more effort saves more, {savings:?}");
    }
}

#[test]
fn changed_pages_of_real_guests() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for ([_, old, new], name) in guests().iter().zip(WORKLOADS) {
        for effort in EFFORTS {
            let bases = Bases::new(all(CHANGED), old);
            let stats = round_trip(&mut encoder, &mut decoder, new, &bases, effort).stats;
            let least = match effort {
                Effort::Raw => 0,
                Effort::Fast => 7000,
                Effort::Light => 7500,
                Effort::Balanced | Effort::Thorough(_) => 8000,
            };
            assert!(saved(&stats) >= least, "{name} {effort:?}: {}", saved(&stats));
        }
    }
}
