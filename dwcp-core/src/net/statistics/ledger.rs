use std::sync::Arc;
use std::time::Duration;

use dwcp_hde::Stats;

use super::{Counters, End, EndStatistics, Ending, HandoverReason, HandoverStatistics, MethodCounters, VersionRefusal};
use crate::flag::FlagSnapshot;
use crate::session::handover::Wish;
use crate::session::{Histogram, Input, Outcome, Output, Progress, SessionError, Time};
use crate::wire::{Frame, Framing};

/// What one session is counted with: it sees what its driver sees, and tells the counters only what changed.
///
/// Why a hand-over came is known to no machine, for it does not matter to them. So the wishes of both ends are kept here, too: the
/// one that changed what both want together is the cause.
#[derive(Debug)]
pub(in crate::net) struct Ledger {
    counters: Arc<Counters>,
    end: End,
    framing: Framing,
    own: Wish,
    peer: Wish,
    cause: Option<Cause>,
    under_way: Option<UnderWay>,
    /// To version 1, and none of its messages was sent yet.
    first_message: Option<UnderWay>,
    told: Told,
    methods: Arc<MethodCounters>,
    over: bool,
}

/// What changed what both ends want, and when that was seen.
#[derive(Clone, Copy, Debug)]
struct Cause {
    reason: HandoverReason,
    at: Time,
}

/// A hand-over that has begun.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    to: Framing,
    cause: Cause,
}

/// What the counters know of this session.
#[derive(Debug, Default)]
struct Told {
    handovers: u64,
    pages_disputed: u64,
    pages_settled: u64,
    wire_bytes: u64,
    methods: Stats,
    extent_latency: Histogram,
}

impl Ledger {
    /// A session begins with this framing.
    pub(in crate::net) fn open(counters: Arc<Counters>, end: End, framing: Framing) -> Self {
        counters.at(end, |counted| {
            let sessions = counted.of_mut(framing);
            sessions.begun += 1;
            sessions.live += 1;
        });
        Self {
            counters,
            end,
            framing,
            own: Wish::default(),
            // A source takes its sink for who declined until it hears from it; a sink hears nothing but FENCE.
            peer: if end == End::Source { Wish { framing, restart: false } } else { Wish::default() },
            cause: None,
            under_way: None,
            first_message: None,
            told: Told::default(),
            methods: Arc::default(),
            over: false,
        }
    }

    /// Where the session's workers count what the codec did.
    pub(in crate::net) fn with_methods(mut self, methods: Arc<MethodCounters>) -> Self {
        self.methods = methods;
        self
    }

    /// Progress as embedders see it: with what the workers counted.
    pub(in crate::net) fn complete(&self, progress: &Progress) -> Progress {
        Progress { methods: self.methods.sum(), ..progress.clone() }
    }

    /// This node's flags, seen at this time.
    pub(in crate::net) fn flags(&mut self, seen: Time, flags: &FlagSnapshot) {
        let before = self.wanted();
        self.own = Wish::of(flags);
        self.caused(before, HandoverReason::of(flags.reason()), seen);
    }

    /// Before the machine is told.
    pub(in crate::net) fn hears(&mut self, now: Time, input: &Input, progress: &Progress) {
        match (self.end, input) {
            (End::Source, Input::Frame(Frame::Prefer(prefer))) => {
                self.peer_wishes(now, Wish { framing: prefer.framing, restart: prefer.restart });
            }
            (End::Sink, Input::Frame(Frame::Fence(fence))) if fence.epoch > progress.epoch => {
                let ours = self.own.framing == fence.framing && self.own.restart == fence.restart;
                if !ours || fence.framing == Framing::Extents {
                    self.peer_wishes(now, Wish { framing: fence.framing, restart: fence.restart });
                }
                self.begun(now, fence.framing);
            }
            _ => {}
        }
    }

    /// After the machine was told, and before it is asked what to do: what it did may begin the next hand-over.
    pub(in crate::net) fn observe(&mut self, now: Time, progress: &Progress) {
        if progress.handovers == self.told.handovers {
            return;
        }
        // What came before was of the old framing.
        self.tell(progress);
        let done = progress.handovers - self.told.handovers;
        self.told.handovers = progress.handovers;
        let disputed = progress.pages_disputed - self.told.pages_disputed;
        self.told.pages_disputed = progress.pages_disputed;
        let from = std::mem::replace(&mut self.framing, progress.framing);
        let to = progress.framing;
        let handover = self.under_way.take().unwrap_or(UnderWay { to, cause: self.cause_or(now) });
        self.counters.at(self.end, |counted| {
            counted.of_mut(from).live -= 1;
            counted.of_mut(to).live += 1;
            counted.pages_disputed += disputed;
            counted.handovers_disputed += u64::from(disputed > 0);
            let statistics = of_handover(counted, handover);
            statistics.done += done;
            if let Some(stats) = progress.handover_log.last().filter(|_| self.end == End::Source) {
                // The machine's clock began when it was told of the wish.
                let seen = now.since(handover.cause.at).max(stats.settled);
                statistics.settled.record(seen);
                if from == Framing::Extents {
                    let after = stats.settled.saturating_sub(stats.last_extent);
                    let none = stats.last_extent.is_zero();
                    statistics.last_extent.record(if none { Duration::ZERO } else { seen.saturating_sub(after) });
                }
            }
        });
        self.first_message = Some(handover).filter(|_| to == Framing::Messages && self.end == End::Source);
    }

    /// What the machine asks for.
    pub(in crate::net) fn performs(&mut self, now: Time, output: &Output) {
        match output {
            Output::RaiseFence { .. } => self.begun(now, self.wanted().framing),
            Output::Ship(_) => {
                if let Some(handover) = self.first_message.take() {
                    let waited = now.since(handover.cause.at);
                    self.counters.at(self.end, |counted| of_handover(counted, handover).first_message.record(waited));
                }
            }
            _ => {}
        }
    }

    /// Tells what was moved since it was told last.
    pub(in crate::net) fn tell(&mut self, progress: &Progress) {
        let pages = progress.pages_settled.saturating_sub(self.told.pages_settled);
        let wire = progress.wire_bytes.saturating_sub(self.told.wire_bytes);
        let timed = progress.extent_latency.count() > self.told.extent_latency.count();
        let methods = self.methods.sum();
        if pages == 0 && wire == 0 && !timed && methods == self.told.methods {
            return;
        }
        self.counters.at(self.end, |counted| {
            let sessions = counted.of_mut(self.framing);
            sessions.guest_bytes += pages * 4096;
            sessions.wire_bytes += wire;
            sessions.methods += methods.since(&self.told.methods);
            sessions.extent_latency.add(&progress.extent_latency, &self.told.extent_latency);
        });
        (self.told.pages_settled, self.told.wire_bytes) = (progress.pages_settled, progress.wire_bytes);
        self.told.methods = methods;
        if timed {
            self.told.extent_latency = progress.extent_latency.clone();
        }
    }

    /// It is over.
    pub(in crate::net) fn close(&mut self, outcome: &Outcome, progress: &Progress) {
        self.tell(progress);
        if matches!(outcome.error, Some(SessionError::NoFramingLeft { .. })) {
            self.counters.refused(VersionRefusal::NoFramingLeft);
        }
        self.ended(Ending::of(outcome));
    }

    fn ended(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let (framing, struck) = (self.framing, self.under_way.take());
        self.counters.at(self.end, |counted| {
            let sessions = counted.of_mut(framing);
            sessions.live -= 1;
            *sessions.ended.entry(ending).or_default() += 1;
            if let Some(handover) = struck {
                of_handover(counted, handover).struck += 1;
            }
        });
    }

    fn peer_wishes(&mut self, now: Time, wish: Wish) {
        let before = self.wanted();
        self.peer = wish;
        let reason = if wish.restart { HandoverReason::PeerDistrust } else { HandoverReason::Peer };
        self.caused(before, reason, now);
    }

    /// As [`Leaving`](crate::session::handover::Leaving) has it: version 3 needs both.
    fn wanted(&self) -> Wish {
        let framing = self.own.framing.min(self.peer.framing);
        Wish { framing, restart: framing == Framing::Messages && (self.own.restart || self.peer.restart) }
    }

    fn caused(&mut self, before: Wish, reason: HandoverReason, at: Time) {
        if self.wanted() != before {
            self.cause = Some(Cause { reason, at });
        }
    }

    fn cause_or(&self, now: Time) -> Cause {
        self.cause.unwrap_or(Cause { reason: HandoverReason::Peer, at: now })
    }

    fn begun(&mut self, now: Time, to: Framing) {
        if self.under_way.is_some() {
            return;
        }
        let handover = UnderWay { to, cause: self.cause_or(now) };
        self.under_way = Some(handover);
        self.first_message = None;
        self.counters.at(self.end, |counted| of_handover(counted, handover).begun += 1);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.ended(Ending::Dropped);
    }
}

fn of_handover(counted: &mut EndStatistics, handover: UnderWay) -> &mut HandoverStatistics {
    counted.handovers.entry((handover.to, handover.cause.reason)).or_default()
}
