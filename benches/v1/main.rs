//! Version 1 in clear text as it migrates, version 1 inside TLS with the root check, and version 3, between two processes.
//!
//! ```text
//! cargo bench --bench v1                       loopback, then 1 Gbit/s (two namespaces; root, else skipped)
//! options: --json  --size-mib 256  --connections 4  --reps 5  --pages DIR  --link loopback|1gbit
//!          --plain                             only the row `plain bytes`
//! ```
//!
//! `v1` is the memory of a guest in one packet of tier 0 over amst16: compressed into a file, then sent. `v1 in TLS` is a
//! session of ours whose lanes carry amst16 messages. Ratios are v3 against v1 in clear text where the link is shaped, and
//! against v1 in TLS on loopback. The row `plain bytes` compares v1's own path, uncompressed, with a copy from socket to
//! socket over as many connections, in nine pairs.
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

#[path = "../transfer/corpus.rs"]
mod corpus;
mod ends;
#[path = "../transfer/link.rs"]
mod link;
mod pages;
mod pairs;
mod rows;
#[path = "../transfer/usage.rs"]
mod usage;

use std::path::PathBuf;

use ends::Path;
use pages::Pages;

/// What the command line says.
pub struct Options {
    json: bool,
    size: usize,
    connections: u16,
    reps: usize,
    pages: Option<PathBuf>,
    links: Vec<&'static str>,
    /// Nothing but the row `plain bytes`.
    plain: bool,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = words.iter().position(|word| word == "--child") {
        return ends::child(&words[at + 1..]);
    }
    let options = parse(&words);
    let rows = rows::all(&options);
    if options.json {
        println!("{}", serde_json::json!({"schema": 1, "event": "summary", "rows": rows}));
    } else {
        rows::table(&rows);
    }
}

fn parse(words: &[String]) -> Options {
    let after = |name: &str| words.iter().position(|word| word == name).map(|at| words[at + 1].as_str());
    let number = |name: &str, default: usize| after(name).map_or(default, |text| text.parse().expect("a number"));
    Options {
        json: words.iter().any(|word| word == "--json"),
        size: number("--size-mib", 256) << 20,
        connections: u16::try_from(number("--connections", 4)).expect("connections"),
        reps: number("--reps", 5),
        pages: after("--pages").map(PathBuf::from),
        plain: words.iter().any(|word| word == "--plain"),
        links: match after("--link") {
            None => vec!["loopback", "1gbit"],
            Some("1gbit") => vec!["1gbit"],
            Some(_) => vec!["loopback"],
        },
    }
}

/// What is moved: so many cases as there are pages.
pub fn cases(options: &Options) -> Vec<Pages> {
    let mut cases = vec![Pages::Random(options.size), Pages::Sample];
    if let Some(folder) = &options.pages {
        cases.extend(corpus::names(folder).into_iter().map(|name| Pages::Corpus(folder.clone(), name)));
    }
    cases
}

/// The three ways that are compared.
pub const WAYS: [Path; 3] = [Path::V1, Path::V1Tls, Path::V3];
