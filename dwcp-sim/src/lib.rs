//! A seeded simulator of DWCP sessions: the pure machines of `dwcp-core` under a virtual clock, with
//! a guest that writes, a link that loses, nodes that crash, and the properties that must hold all the
//! same. **A seed is a whole run, and the bug report.**
//!
//! ```text
//!   seed ──> Plan ──> World::run ──> Report | Violation { property, seed, time, trace }
//! ```

#![allow(
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a simulator stops at its own bugs"
)]

#[cfg(feature = "baseline")]
pub mod baselines;
pub mod deferral;
#[cfg(feature = "disk")]
pub mod disk;
pub mod flags;
pub mod guest;
pub mod hostile;
pub mod malformed;
pub mod model;
pub mod net;
pub mod plan;
pub mod props;
pub mod rng;
pub mod specimens;
pub mod v1;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dwcp_core::session::Fingerprint;

/// Whom each end takes the other for. Keys are beneath what is simulated.
const PEER: Fingerprint = Fingerprint([1; 32]);

#[cfg(feature = "baseline")]
pub use self::baselines::check_baseline;
pub use self::flags::check_flag_document;
pub use self::hostile::{check_block, check_frame, check_hello, reach, run_operations};
pub use self::plan::{Plan, Planted};
pub use self::props::{Ending, Property, Report, Violation};
pub use self::v1::{check_v1_chunks, check_v1_open, check_v1_packet};
pub use self::world::World;

/// Runs a seed; when a property does not hold, runs it again with a trace.
///
/// # Errors
/// The first property that did not hold.
pub fn run_seed(seed: u64, planted: Option<Planted>) -> Result<Report, Box<Violation>> {
    let first = attempt(seed, planted, false);
    if first.is_ok() { first } else { attempt(seed, planted, true) }
}

fn attempt(seed: u64, planted: Option<Planted>, traced: bool) -> Result<Report, Box<Violation>> {
    let run = || World::new(Plan::new(seed), planted, traced).run();
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(Box::new),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = what.unwrap_or_else(|| "a panic".into());
            Err(Box::new(Violation { property: Property::NoPanic, seed, at: 0, what, trace: Vec::new() }))
        }
    }
}
