//! Hot pages that are left for the pause cost nothing that matters: neither bytes nor the downtime budget.

use dwcp_sim::deferral::pair;

const SEEDS: u64 = 60;

#[test]
fn deferral_saves_bytes_and_keeps_the_budget() {
    let (mut with, mut without, mut deferred) = (0, 0, 0);
    for seed in 0..SEEDS {
        let pair = pair(seed).unwrap_or_else(|violation| panic!("{violation}"));
        let Some(all) = pair.without else { continue };
        let held = pair.with.unwrap_or_else(|| panic!("seed {seed}: converges without deferral, and not with it"));
        let allowed = pair.budget.max(all.downtime) + pair.unknown;
        assert!(held.downtime <= allowed, "seed {seed}: {held:?}, and without deferral {all:?}, of {:?}", pair.budget);
        with += held.wire_bytes;
        without += all.wire_bytes;
        deferred += u64::from(held.deferred > 0);
    }
    assert!(deferred > SEEDS / 4, "only {deferred} of {SEEDS} deferred anything");
    assert!(with < without, "{with} bytes with deferral, {without} without");
}
