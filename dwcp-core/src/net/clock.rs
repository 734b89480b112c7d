//! The only clock of this crate.

use std::time::{Duration, Instant, SystemTime};

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

    /// When something was, as this session's time; its begin, if before that.
    pub(super) fn time(&self, instant: Instant) -> Time {
        Time::after_epoch(instant.saturating_duration_since(self.epoch))
    }

    pub(super) fn instant(&self, time: Time) -> tokio::time::Instant {
        (self.epoch + time.since_epoch()).into()
    }
}

/// What this thread has computed so far: time in which it waited, for a disk or for its turn on a core, is not in it.
pub(super) fn thread_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(spent).unwrap_or_default()
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

    pub(super) fn nanos(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The wall clock, for what must survive a restart. Zero when it stands before 1970.
#[expect(clippy::disallowed_methods, reason = "this is where drivers read the clock")]
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
