//! Images on their way to a disk: how fast they become durable, and what a kill of both ends costs.
//!
//! `cargo bench --bench disk -- --help` tells the options. Every end is a process of its own; sender and receiver stand
//! on the same machine and, unlike those of `transfer`, write to its disk.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks and stops at its own bugs"
)]

mod ends;
mod image;
mod options;
mod process;
mod resume;
mod throughput;

use options::{Options, USAGE};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help") {
        return println!("{USAGE}");
    }
    let options = Options::parse(words);
    if let Some(role) = &options.role {
        return ends::child(role);
    }
    if options.resume { resume::report(&options) } else { throughput::report(&options) }
}
