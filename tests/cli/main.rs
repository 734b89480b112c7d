//! The built binary, as an operator meets it: real processes, loopback, port 0.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

#[path = "../operator/mod.rs"]
mod operator;

mod command_line;
mod identities;
mod images;
mod promises;
mod stopping;
