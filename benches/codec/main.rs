//! What the codec saves on real guest memory and how fast, beside its peers in the same run.
//!
//! `cargo bench --bench codec -- --help` tells the options. One thread; every decode is compared with the input.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks and stops at its own bugs"
)]

mod corpus;
mod dictionaries;
mod dwcp;
mod measure;
mod options;
mod peers;
mod rounds;
mod table;
mod xbzrle;

use std::process::ExitCode;

use options::{Options, USAGE};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match Options::parse(words).and_then(|options| report(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures every workload and prints its rows as soon as they are known.
fn report(options: &Options) -> anyhow::Result<()> {
    if options.dictionaries {
        let rows = dictionaries::report(options)?;
        if options.json {
            println!("summary {}", serde_json::json!({ "rows": rows }));
        }
        return Ok(());
    }
    let mut rows = Vec::new();
    for name in corpus::names(options)? {
        let workload = corpus::read(options, &name)?;
        for round in rounds::of(&workload) {
            let measured = measure::round(&round, options)?;
            table::print(&measured, round.chosen_of);
            rows.extend(measured);
        }
    }
    if options.json {
        println!("summary {}", serde_json::json!({ "rows": rows }));
    }
    Ok(())
}
