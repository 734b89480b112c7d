//! Crash states of a disk; `just crash-states` runs more of them.

use std::collections::HashSet;

use dwcp_sim::disk::{Lie, run_seed, run_store_seed};

/// Seeds in the gate.
const SEEDS: u64 = 24;
/// Of stores, whose lives are shorter.
const STORE_SEEDS: u64 = 60;

#[test]
fn every_crash_leaves_the_old_or_the_new_and_all_that_was_promised() {
    let mut seen = HashSet::new();
    let mut states = 0;
    for seed in 0..SEEDS {
        match run_seed(seed, None, &mut seen) {
            Ok(tried) => states += tried.states,
            Err(broken) => panic!("{broken}\n{}", broken.trace.join("\n")),
        }
    }
    assert!(states > 2_000, "only {states} states were tried");
}

#[test]
fn each_sync_that_is_forgotten_breaks_a_promise() {
    for lie in Lie::ALL {
        let found = (0..200).find(|&seed| run_seed(seed, Some(lie), &mut HashSet::new()).is_err());
        assert!(found.is_some(), "nobody noticed that syncs of {lie:?} do nothing");
    }
}

#[test]
fn a_crash_leaves_each_baseline_whole_or_not_there_and_garbage_that_is_collected() {
    let mut seen = HashSet::new();
    let mut states = 0;
    for seed in 0..STORE_SEEDS {
        match run_store_seed(seed, None, &mut seen) {
            Ok(tried) => states += tried.states,
            Err(broken) => panic!("{broken}\n{}", broken.trace.join("\n")),
        }
    }
    assert!(states > 2_000, "only {states} states were tried");
}

#[test]
fn each_sync_of_a_store_that_is_forgotten_breaks_a_promise() {
    for lie in Lie::OF_STORE {
        let found = (0..200).find(|&seed| run_store_seed(seed, Some(lie), &mut HashSet::new()).is_err());
        assert!(found.is_some(), "nobody noticed that syncs of {lie:?} do nothing");
    }
}
