//! Attacks on a node over real TLS, by a peer that it trusts, while an honest transfer goes on at the same node.
//!
//! The ids are those of the table in `docs/reliability.md`. Every attack is held against one oracle, [`oracle`]: the
//! honest end ends with a typed error, counts exactly one offence of the expected kind, applies nothing, quarantines by
//! how bad it was, and the honest transfer comes through whole.
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
mod lanes;
mod oracle;
mod quarantine;
mod sinks;
mod switch_over;
