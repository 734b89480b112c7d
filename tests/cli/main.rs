//! The built binary, as an operator meets it: real processes, loopback, port 0.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::big_endian_bytes,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

#[path = "../operator/mod.rs"]
mod operator;

mod command_line;
mod held;
mod identities;
mod images;
#[path = "../../dwcp-v1-compat/tests/legacy/mod.rs"]
mod legacy;
mod legacy_ends;
mod plaintext;
mod promises;
mod stopping;
