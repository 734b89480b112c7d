//! Whole transfers between two processes, with their peers beside them in one run.
//!
//! ```text
//! cargo bench --bench transfer                 4 GiB incompressible on loopback, 1 and 4 lanes
//! cargo bench --bench transfer -- --shaped     guest memory over 1 Gbit/s (two namespaces; root)
//! cargo bench --bench transfer -- --adaptive   `auto` beside each fixed effort at 50 and 500 Mbit/s and unshaped (root)
//! cargo bench --bench transfer -- --stages     where the nanoseconds of a page go
//! options: --json  --size 4g  --lanes 1,4  --reps 5  --pages DIR  --extent-pages 256  --effort auto
//!          of --adaptive: --links 50mbit,500mbit,unshaped  --efforts raw,light,6
//! ```
//!
//! Every measurement starts two fresh processes. The peers are `rustls`: one thread a connection
//! that writes 1 MiB at a time, and reads it at the other end; and `rustls+hash`: the same with a
//! copy out of and into guest memory and a BLAKE3 of every 4 KiB page, at both ends.
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

mod adaptive;
mod corpus;
mod dwcp_ends;
mod link;
mod measure;
mod options;
mod rustls_ends;
mod shaped;
mod stages;
mod usage;

use options::{Case, Options};

fn main() {
    let options = Options::parse(std::env::args().skip(1).collect());
    if let Some(role) = &options.role {
        return measure::child(role, &options);
    }
    if options.stages {
        return stages::report();
    }
    if options.adaptive {
        return adaptive::report(&options);
    }
    let mut rows = Vec::new();
    if options.shaped {
        rows.extend(shaped::rows(&options));
    } else {
        for &lanes in &options.lanes {
            let case = Case::Random { bytes: options.size };
            rows.push(measure::row("incompressible", &case, lanes, &options, &measure::Place::Loopback));
        }
    }
    if options.json {
        println!("{}", measure::json(&rows));
    } else {
        measure::table(&rows);
    }
}
