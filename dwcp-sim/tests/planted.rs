//! Each planted bug is found, and the seed that found it finds it again.

use dwcp_sim::{Planted, run_seed};

const SEEDS: u64 = 10_000;

#[test]
fn every_planted_bug_is_found_and_its_seed_reproduces_it() {
    for (bug, name) in Planted::ALL {
        let found = (0..SEEDS).find_map(|seed| run_seed(seed, Some(bug)).err());
        let Some(found) = found else { panic!("{name} is not found by {SEEDS} seeds") };
        println!("{name}: seed {} ({:?})", found.seed, found.property);
        let again = run_seed(found.seed, Some(bug)).expect_err("the seed reproduces it");
        assert_eq!((again.property, again.at), (found.property, found.at), "{name}: seed {}", found.seed);
        assert!(!found.trace.is_empty(), "{name}: the report has a trace");
        if let Err(violation) = run_seed(found.seed, None) {
            panic!("without {name} the seed is clean, but: {violation}");
        }
    }
}
