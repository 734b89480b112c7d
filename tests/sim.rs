//! Simulated transfers: links that lose, nodes that crash, and the properties that hold all the same.
//! Campaigns: `cargo run --release -p dwcp-sim -- --seeds 0..200000`.

use dwcp_sim::{Ending, run_seed};

/// Far from the seeds of `dwcp-sim`'s own tests.
const FIRST: u64 = 1_000_000;
const SEEDS: u64 = 500;

#[test]
fn every_transfer_ends_with_one_owner_and_no_lost_write() {
    let mut switched_over = 0;
    for seed in FIRST..FIRST + SEEDS {
        match run_seed(seed, None) {
            Ok(report) => switched_over += u64::from(report.ending == Ending::SwitchedOver),
            Err(violation) => panic!("{violation}\nagain: cargo run --release -p dwcp-sim -- --seeds {seed}"),
        }
    }
    assert!(switched_over > SEEDS / 2, "only {switched_over} of {SEEDS} reached the sink");
}
