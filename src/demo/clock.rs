//! The demo's only look at the clock.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the demo drives real processes: it measures how long they take")]
pub(super) fn now() -> Instant {
    Instant::now()
}
