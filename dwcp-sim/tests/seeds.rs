//! Without a planted bug every seed is clean.

use std::collections::BTreeMap;

use dwcp_sim::{Ending, Plan, run_seed};

const SEEDS: u64 = 2000;

#[test]
fn two_thousand_seeds_are_clean() {
    let mut endings = BTreeMap::new();
    for seed in 0..SEEDS {
        match run_seed(seed, None) {
            Ok(report) => *endings.entry(report.ending).or_insert(0_u64) += 1,
            Err(violation) => panic!("{violation}\nagain: cargo run --release -p dwcp-sim -- --seeds {seed}"),
        }
    }
    println!("{endings:?}");
    // The plans are worth something only as long as all three endings are common.
    for ending in [Ending::SwitchedOver, Ending::AtSource, Ending::InDoubt] {
        assert!(endings.get(&ending).is_some_and(|&count| count >= SEEDS / 400), "{endings:?}");
    }
}

#[test]
fn a_seed_is_a_whole_run() {
    for seed in 0..50 {
        let reports = [run_seed(seed, None), run_seed(seed, None)].map(|report| format!("{report:?}"));
        assert_eq!(reports[0], reports[1], "seed {seed} is not deterministic");
        assert_eq!(format!("{:?}", Plan::new(seed)), format!("{:?}", Plan::new(seed)));
    }
}
