//! Attacks on a node over real TLS, by a peer that it trusts, while an honest transfer goes on at the same node.
//!
//! The ids are those of the table in `docs/reliability.md`. Every attack is held against one oracle, [`oracle`]: the
//! honest end ends with a typed error, counts exactly one offence of the expected kind, applies nothing, quarantines by
//! how bad it was, and the honest transfer comes through whole. Each runs once for each of [`seeds`], which vary what the
//! attacker says, where and when.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "../attacker/mod.rs"]
mod attacker;
#[path = "../operator/mod.rs"]
mod operator;

mod blocks;
mod connections;
mod extents;
mod handovers;
mod lanes;
mod oracle;
mod quarantine;
mod seeds;
mod sinks;
mod switch_over;
mod waiting;

/// The table of `docs/reliability.md` names a test for every attack of the catalogue, or says why there is none.
#[test]
fn the_catalogue_is_complete() {
    let text = include_str!("../../docs/reliability.md");
    let sources = [
        include_str!("blocks.rs"),
        include_str!("connections.rs"),
        include_str!("extents.rs"),
        include_str!("handovers.rs"),
        include_str!("lanes.rs"),
        include_str!("sinks.rs"),
        include_str!("switch_over.rs"),
        include_str!("waiting.rs"),
    ];
    for number in 1..=20 {
        let id = format!("| B{number:02} |");
        let row = text.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("no row {id}"));
        let tests = format!("async fn b{number:02}_");
        let has_tests = sources.iter().any(|source| source.contains(&tests));
        assert!(has_tests != row.contains("not here:"), "{row}");
    }
}
