//! What it saves to leave hot pages for the pause: the same guest, link and chance, with and without.

use std::num::NonZeroU64;
use std::time::Duration;

use dwcp_core::session::{OnStall, Progress};

use crate::plan::{MS, Plan, Writes};
use crate::props::{Ending, Report, Violation};
use crate::rng::Rng;
use crate::world::World;

/// How a transfer went, as its source counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of extents.
    pub wire_bytes: u64,
    /// Rounds, the one with the guest paused included.
    pub rounds: u64,
    /// Pages that were left for later, in all rounds.
    pub deferred: u64,
    /// How long the guest stood still.
    pub downtime: Duration,
}

impl Cost {
    pub(crate) fn of(progress: &Progress) -> Self {
        Self {
            wire_bytes: progress.wire_bytes,
            rounds: progress.rounds.len() as u64,
            deferred: progress.rounds.iter().map(|round| round.deferred).sum(),
            downtime: progress.downtime.unwrap_or_default(),
        }
    }
}

/// One transfer with and without deferral.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The budget of both.
    pub budget: Duration,
    /// What is beyond any estimate of the source: how long the guest's operations and the disks may take in the pause.
    pub unknown: Duration,
    /// Hot pages are left for the pause. `None`: it did not converge.
    pub with: Option<Cost>,
    /// All that is dirty is sent in each round.
    pub without: Option<Cost>,
}

/// A guest with a hot spot behind a slow link, where nothing goes wrong.
pub fn plan(seed: u64) -> Plan {
    let mut plan = Plan::new(seed);
    let mut rng = Rng::new(seed ^ 0xd3fe);
    let r = &mut rng;
    let pages = r.between(4000, 16_000);
    plan.regions = vec![pages * 4096];
    (plan.more, plan.held, plan.faults, plan.calm_at) = (0, 0, Vec::new(), 0);
    plan.writer = Writes::Zipf;
    plan.writes = r.between(500, 8000);
    plan.device_bytes = 4096;
    (plan.latency, plan.jitter) = (r.magnitude(50_000, 5 * MS), 0);
    (plan.lane_rate, plan.page_bytes) = (1 << 30, r.pick(&[1000, 2500, 4096]));
    (plan.encode, plan.apply, plan.operation, plan.disk, plan.late_tick) = (100_000, 100_000, MS, MS, 0);
    // Half the pages at least are new in the first round: it takes one to eight seconds.
    plan.source.bandwidth = NonZeroU64::new(pages * plan.page_bytes / r.between(1, 8));
    plan.source.limits.extent_pages = 256;
    plan.source.shadow_bytes = 0;
    plan.source.downtime_budget = Duration::from_millis(r.between(100, 1000));
    plan.source.on_stall = OnStall::Abort;
    plan.source.stall_patience = Duration::from_secs(20);
    plan
}

/// Runs the plan of this seed twice.
///
/// # Errors
/// The first property that did not hold.
pub fn pair(seed: u64) -> Result<Pair, Box<Violation>> {
    let plan = plan(seed);
    let run = |defer_hot| -> Result<Option<Cost>, Box<Violation>> {
        let mut plan = plan.clone();
        plan.source.defer_hot = defer_hot;
        let Report { ending, cost, .. } = World::new(plan, None, false).run().map_err(Box::new)?;
        Ok(cost.filter(|_| ending == Ending::SwitchedOver))
    };
    let unknown = Duration::from_nanos(4 * plan.operation + 4 * plan.disk);
    Ok(Pair { budget: plan.source.downtime_budget, unknown, with: run(true)?, without: run(false)? })
}
