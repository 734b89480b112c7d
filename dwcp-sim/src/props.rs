//! What must hold in every run, and what is reported when it does not.

use std::fmt;

use crate::deferral::Cost;

/// A property of DWCP, in the order of the brief.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// The sink's state is the source's at the pause that was switched over: no write is lost.
    SameState,
    /// Never two owners.
    OneOwner,
    /// The sink runs the guest once.
    RunsOnce,
    /// Nothing unverified is visible.
    Verified,
    /// Bytes in flight on a lane never exceed its credit.
    Credit,
    /// A page has at most one version in flight.
    OneVersion,
    /// What the source believes the sink holds, the sink holds: bases of deltas, pages not carried.
    KnownAtSink,
    /// Nothing of a buried lane is applied, and no lane id joins twice.
    Buried,
    /// Nothing of an epoch is applied behind its fence, and a hand-over from zeros leaves nothing of before.
    Fenced,
    /// Every run ends: switched over, at the source, or in doubt for a reason.
    Ends,
    /// An honest peer is never accused.
    NoFalseAccusation,
    /// What a machine says of the owner is true.
    TrueOutcome,
    /// A machine waits for its deadline and for nothing in between.
    NoBusyLoop,
    /// No panic.
    NoPanic,
}

/// A property that did not hold, with all that is needed to see it again.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which property.
    pub property: Property,
    /// The seed that shows it.
    pub seed: u64,
    /// Virtual time in nanoseconds.
    pub at: u64,
    /// What happened.
    pub what: String,
    /// What happened before; empty unless the run was traced.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, us) = (self.at / 1_000_000, self.at / 1000 % 1000);
        writeln!(f, "seed {}: {:?} violated at {ms}.{us:03} ms: {}", self.seed, self.property, self.what)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl std::error::Error for Violation {}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The guest runs at the sink.
    SwitchedOver,
    /// The guest runs at the source.
    AtSource,
    /// It is paused at both.
    InDoubt,
}

/// Figures of a run.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Events handled.
    pub events: u64,
    /// Virtual nanoseconds.
    pub virtual_time: u64,
    /// Extents applied.
    pub extents: u64,
    /// What the last source counted, if it came to its end.
    pub cost: Option<Cost>,
    /// Hand-overs that the source began.
    pub handovers_begun: u64,
    /// Hand-overs that came to their end at the sink.
    pub handovers: u64,
    /// Hand-overs in the middle of which a connection was lost or held up, or a node died.
    pub handovers_struck: u64,
    /// Whether nothing went wrong by plan.
    pub quiet: bool,
}
