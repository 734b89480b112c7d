//! The only clock of this crate.

use std::time::{Duration, Instant};

use crate::session::Time;

/// Turns the system's clock into the time since this session began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    epoch: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is where drivers read the clock")]
    pub(super) fn start() -> Self {
        Self { epoch: Instant::now() }
    }

    pub(super) fn now(&self) -> Time {
        Time::after_epoch(self.epoch.elapsed())
    }

    pub(super) fn instant(&self, time: Time) -> tokio::time::Instant {
        (self.epoch + time.since_epoch()).into()
    }
}

/// Measures how long something takes.
#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "this is where drivers read the clock")]
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
