//! How lanes change their framing in mid-transfer, and back: one pure step for each end. The machines drive these, and
//! so does the model checker of `dwcp-sim`.
//!
//! ```text
//!  source:  Active ──begin──> Draining ──all lanes ended, epoch durable: FENCE──> Fenced ──HANDOVER──> Active
//!  sink:    Active ──FENCE──> Draining ──all lanes ended──> (Clearing) ──> Raising ──epoch durable: HANDOVER──> Active
//! ```
//!
//! Nothing is sent or applied in between. An end that finds its fence behind it has no lane of before: whatever comes
//! later carries the old epoch and is dropped.

use std::collections::BTreeSet;

use super::allowance::Rate;
use crate::flag::FlagSnapshot;
use crate::wire::{Fence, FenceEpoch, FencedLane, Framing, LaneId, TransferId};

/// How far a peer may raise the epoch at a time: one that claims the last of all must not shut itself out.
pub const FARTHEST_EPOCH: u64 = 1 << 20;

/// Hand-overs that a source begins: each costs both ends a fence that is made durable, and every lane a new id. A flag
/// that flaps faster is followed to where it stands when the next turn comes.
pub(super) const BEGUN: Rate = Rate { burst: 8, per_second: 8 };
/// Hand-overs that a sink takes part in: whatever the way does to the times of FENCE, each follows the answer to the
/// one before, so an honest source never needs more than one beyond its own rate. spec: V-3
pub(super) const TAKEN: Rate = Rate { burst: 16, per_second: 16 };

/// What one side wants the lanes to carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wish {
    /// Which framing.
    pub framing: Framing,
    /// What version 3 applied is not to be trusted: begin again from zeros.
    pub restart: bool,
}

impl Wish {
    /// What a node wants by its flags.
    pub fn of(flags: &FlagSnapshot) -> Self {
        if flags.v3() {
            return Self::default();
        }
        Self { framing: Framing::Messages, restart: flags.reason().discards_applied() }
    }
}

/// The source's part of a hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leaving {
    transfer: TransferId,
    epoch: FenceEpoch,
    framing: Framing,
    own: Wish,
    peer: Wish,
    /// Version 3 applied something since the transfer began, or began again, or may have done so before.
    tainted: bool,
    phase: LeavingPhase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum LeavingPhase {
    Active,
    Draining { to: Wish, running: BTreeSet<LaneId>, ended: Vec<FencedLane>, epoch: Option<FenceEpoch> },
    Fenced { fence: Fence },
}

/// What happens to the source's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeavingEvent {
    /// This node wants something else.
    Wants(Wish),
    /// The sink wants something else.
    PeerWants(Wish),
    /// No extent is handed out from now on; these lanes were told to end.
    Begin(Vec<LaneId>),
    /// A lane has ended after `end` extents, and its connection is kept for another.
    Ended(FencedLane),
    /// A lane's worker is gone.
    Gone(LaneId),
    /// The connection of a lane that had ended is lost.
    Dropped(LaneId),
    /// This epoch of the pair is durable here.
    Durable(FenceEpoch),
    /// Lane 0 is lost, and with it all lanes.
    Lost,
    /// Lane 0 is re-made.
    Back,
    /// The sink's fence of this epoch is durable.
    Answered(FenceEpoch),
}

/// What the source is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeavingAction {
    /// Make an epoch durable that is at least this, and of this pair the highest.
    Raise(FenceEpoch),
    /// Say it, if lane 0 is up.
    Say(Fence),
    /// Go on in this epoch and framing.
    GoOn(Fence),
    /// The sink answers what was never asked, or something else.
    Violation,
}

impl Leaving {
    /// A transfer that begins in this epoch and framing.
    pub fn new(transfer: TransferId, epoch: FenceEpoch, framing: Framing) -> Self {
        let tainted = framing == Framing::Extents;
        // Who declined version 3 says so itself, or says that it was not it.
        let (own, peer) = (Wish::default(), Wish { framing, restart: false });
        Self { transfer, epoch, framing, own, peer, tainted, phase: LeavingPhase::Active }
    }

    /// The sink holds something from before the transfer: it may be of version 3. spec: V-5
    pub fn distrust_held(&mut self) {
        self.tainted = true;
    }

    /// The epoch that extents and promises have.
    pub fn epoch(&self) -> FenceEpoch {
        self.epoch
    }

    /// What lanes carry, if they carry anything.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether extents may be handed out.
    pub fn is_active(&self) -> bool {
        self.phase == LeavingPhase::Active
    }

    /// Whether this lane has ended as it was told to.
    pub fn has_ended(&self, lane: LaneId) -> bool {
        matches!(&self.phase, LeavingPhase::Draining { ended, .. } if ended.iter().any(|fenced| fenced.lane == lane))
    }

    /// The lane that ended, and whose connection was kept for this one.
    pub fn ended_into(&self, next: LaneId) -> Option<LaneId> {
        let ended = match &self.phase {
            LeavingPhase::Active => return None,
            LeavingPhase::Draining { ended, .. } => ended,
            LeavingPhase::Fenced { fence } => &fence.lanes,
        };
        ended.iter().find(|fenced| fenced.next == next).map(|fenced| fenced.lane)
    }

    /// Version 3 needs both; version 1 one. spec: V-1
    fn wanted(&self) -> Wish {
        let both = [self.own, self.peer];
        let framing = both.iter().map(|wish| wish.framing).min().unwrap_or_default();
        Wish { framing, restart: framing == Framing::Messages && both.iter().any(|wish| wish.restart) }
    }

    /// What a hand-over should lead to, if one is due.
    pub fn due(&self) -> Option<Wish> {
        let wanted = self.wanted();
        let distrusted = wanted.restart && self.tainted;
        (self.is_active() && (wanted.framing != self.framing || distrusted)).then_some(wanted)
    }

    /// One step. spec: V-2, V-3, V-5
    pub fn step(&mut self, event: LeavingEvent) -> Vec<LeavingAction> {
        match event {
            LeavingEvent::Wants(wish) => self.own = wish,
            LeavingEvent::PeerWants(wish) => self.peer = wish,
            LeavingEvent::Begin(lanes) => return self.begin(lanes),
            LeavingEvent::Ended(fenced) => self.ended(fenced),
            LeavingEvent::Gone(lane) => self.gone(lane),
            LeavingEvent::Dropped(next) => self.forget(|fenced| fenced.next == next),
            LeavingEvent::Durable(durable) => self.durable(durable),
            LeavingEvent::Lost => self.lost(),
            LeavingEvent::Back => {
                if let LeavingPhase::Fenced { fence } = &self.phase {
                    return vec![LeavingAction::Say(fence.clone())];
                }
            }
            LeavingEvent::Answered(epoch) => return self.answered(epoch),
        }
        self.complete()
    }

    fn begin(&mut self, lanes: Vec<LaneId>) -> Vec<LeavingAction> {
        let Some(to) = self.due() else { return Vec::new() };
        let running = lanes.into_iter().collect();
        self.phase = LeavingPhase::Draining { to, running, ended: Vec::new(), epoch: None };
        let mut actions = vec![LeavingAction::Raise(FenceEpoch(self.epoch.0 + 1))];
        actions.extend(self.complete());
        actions
    }

    fn ended(&mut self, fenced: FencedLane) {
        if let LeavingPhase::Draining { running, ended, .. } = &mut self.phase
            && running.contains(&fenced.lane)
        {
            ended.push(fenced);
        }
    }

    fn gone(&mut self, lane: LaneId) {
        if let LeavingPhase::Draining { running, .. } = &mut self.phase {
            running.remove(&lane);
        }
    }

    fn durable(&mut self, durable: FenceEpoch) {
        if let LeavingPhase::Draining { epoch, .. } = &mut self.phase {
            *epoch = Some(durable);
        }
    }

    fn forget(&mut self, which: impl Fn(&FencedLane) -> bool) {
        match &mut self.phase {
            LeavingPhase::Draining { ended, .. } => ended.retain(|fenced| !which(fenced)),
            LeavingPhase::Fenced { fence } => fence.lanes.retain(|fenced| !which(fenced)),
            LeavingPhase::Active => {}
        }
    }

    /// What ended has no connection any more; it is buried like the others, by name. spec: B-4
    fn lost(&mut self) {
        self.forget(|_| true);
    }

    fn complete(&mut self) -> Vec<LeavingAction> {
        let LeavingPhase::Draining { to, running, ended, epoch: Some(epoch) } = &mut self.phase else {
            return Vec::new();
        };
        if !running.is_empty() {
            return Vec::new();
        }
        let fence = Fence {
            transfer: self.transfer,
            epoch: *epoch,
            framing: to.framing,
            restart: to.restart && self.tainted,
            lanes: std::mem::take(ended),
        };
        self.phase = LeavingPhase::Fenced { fence: fence.clone() };
        vec![LeavingAction::Say(fence)]
    }

    fn answered(&mut self, epoch: FenceEpoch) -> Vec<LeavingAction> {
        match &self.phase {
            LeavingPhase::Fenced { fence } if fence.epoch == epoch => {
                let fence = fence.clone();
                self.epoch = epoch;
                self.framing = fence.framing;
                self.tainted = (self.tainted && !fence.restart) || fence.framing == Framing::Extents;
                self.phase = LeavingPhase::Active;
                vec![LeavingAction::GoOn(fence)]
            }
            // Said twice, because the first answer crossed our reconnect.
            LeavingPhase::Active if epoch == self.epoch => Vec::new(),
            _ => vec![LeavingAction::Violation],
        }
    }
}

/// The sink's part of a hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fencing {
    epoch: FenceEpoch,
    framing: Framing,
    /// FENCE came on the present lane 0. Before it came, on the same connection, the burial of every lane that the
    /// source lost with the one before: whoever answers sooner answers a source that does not know them ended.
    asked: bool,
    phase: FencingPhase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FencingPhase {
    Active,
    Draining { fence: Fence, running: BTreeSet<LaneId> },
    Clearing { fence: Fence },
    Raising { fence: Fence },
}

/// What happens to the sink's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FencingEvent {
    /// The source says FENCE; these lanes have workers.
    Fence(Fence, Vec<LaneId>),
    /// A lane's worker has ended: nothing more of it will be applied.
    Gone(LaneId),
    /// What was there is thrown away.
    Cleared,
    /// The epoch is durable.
    Durable(FenceEpoch),
    /// Lane 0 is re-made: what was asked on the one before is asked again, or not.
    Back,
}

/// What the sink is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FencingAction {
    /// These lanes end here, all others now.
    End(Vec<FencedLane>),
    /// Throw away what was applied.
    Clear,
    /// Make the epoch durable.
    Raise(FenceEpoch),
    /// Go on in this epoch and framing, and say HANDOVER if [`Fencing::is_asked`].
    GoOn(Fence),
    /// Say HANDOVER without lanes: the first was lost, or never said.
    Repeat,
    /// A fence of the past, or one in another.
    Violation,
}

impl Fencing {
    /// A transfer that begins in this epoch and framing.
    pub fn new(epoch: FenceEpoch, framing: Framing) -> Self {
        Self { epoch, framing, asked: false, phase: FencingPhase::Active }
    }

    /// Whether the source has asked on this lane 0, and waits for HANDOVER. spec: V-4
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// The epoch of what is applied and promised.
    pub fn epoch(&self) -> FenceEpoch {
        self.epoch
    }

    /// What lanes carry.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether lanes may join and extents be applied.
    pub fn is_active(&self) -> bool {
        self.phase == FencingPhase::Active
    }

    /// One step. spec: V-3, V-4
    pub fn step(&mut self, event: FencingEvent) -> Vec<FencingAction> {
        match event {
            FencingEvent::Fence(fence, lanes) => {
                let asked = std::mem::replace(&mut self.asked, true);
                return self.fence(fence, lanes, asked);
            }
            FencingEvent::Back => self.asked = false,
            FencingEvent::Gone(lane) => {
                if let FencingPhase::Draining { running, .. } = &mut self.phase {
                    running.remove(&lane);
                }
                return self.drained();
            }
            FencingEvent::Cleared => {
                if let FencingPhase::Clearing { fence } = &self.phase {
                    let fence = fence.clone();
                    return self.raise(fence);
                }
            }
            FencingEvent::Durable(epoch) => {
                // Another transfer of the pair may be further already.
                if let FencingPhase::Raising { fence } = &self.phase
                    && fence.epoch <= epoch
                {
                    let fence = fence.clone();
                    (self.epoch, self.framing) = (fence.epoch, fence.framing);
                    self.phase = FencingPhase::Active;
                    return vec![FencingAction::GoOn(fence)];
                }
            }
        }
        Vec::new()
    }

    /// `asked`: not the first FENCE on this lane 0.
    fn fence(&mut self, fence: Fence, lanes: Vec<LaneId>, asked: bool) -> Vec<FencingAction> {
        match &self.phase {
            FencingPhase::Active if !asked && fence.epoch == self.epoch && fence.framing == self.framing => {
                return vec![FencingAction::Repeat];
            }
            FencingPhase::Active if fence.epoch > self.epoch => {}
            FencingPhase::Draining { fence: under_way, .. }
            | FencingPhase::Clearing { fence: under_way }
            | FencingPhase::Raising { fence: under_way }
                if !asked && under_way.epoch == fence.epoch =>
            {
                // The source lost its lanes and asks again: it is answered once all is done.
                return Vec::new();
            }
            _ => return vec![FencingAction::Violation],
        }
        let mut actions = vec![FencingAction::End(fence.lanes.clone())];
        self.phase = FencingPhase::Draining { fence, running: lanes.into_iter().collect() };
        actions.extend(self.drained());
        actions
    }

    fn drained(&mut self) -> Vec<FencingAction> {
        let fence = match &self.phase {
            FencingPhase::Draining { fence, running } if running.is_empty() => fence.clone(),
            _ => return Vec::new(),
        };
        if fence.restart {
            self.phase = FencingPhase::Clearing { fence };
            return vec![FencingAction::Clear];
        }
        self.raise(fence)
    }

    fn raise(&mut self, fence: Fence) -> Vec<FencingAction> {
        let epoch = fence.epoch;
        self.phase = FencingPhase::Raising { fence };
        vec![FencingAction::Raise(epoch)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransferId = TransferId([1; 16]);
    const OFF: Wish = Wish { framing: Framing::Messages, restart: false };

    fn fenced(lane: u16, end: u64) -> FencedLane {
        FencedLane { lane: LaneId(lane), end, next: LaneId(lane + 10) }
    }

    fn fence(epoch: u64, restart: bool, lanes: Vec<FencedLane>) -> Fence {
        Fence { transfer: ID, epoch: FenceEpoch(epoch), framing: Framing::Messages, restart, lanes }
    }

    // spec: V-2
    #[test]
    fn a_source_says_fence_when_its_lanes_have_ended_and_its_epoch_is_durable() {
        let mut source = Leaving::new(ID, FenceEpoch(4), Framing::Extents);
        assert_eq!(source.due(), None);
        source.step(LeavingEvent::PeerWants(OFF));
        assert_eq!(source.due(), Some(OFF), "one side is enough to leave version 3");
        let lanes = vec![LaneId(1), LaneId(2)];
        assert_eq!(source.step(LeavingEvent::Begin(lanes)), [LeavingAction::Raise(FenceEpoch(5))]);
        assert!(!source.is_active());
        assert_eq!(source.step(LeavingEvent::Ended(fenced(1, 7))), []);
        assert_eq!(source.step(LeavingEvent::Gone(LaneId(1))), []);
        assert_eq!(source.step(LeavingEvent::Durable(FenceEpoch(6))), [], "another transfer of the pair was ahead");
        let said = fence(6, false, vec![fenced(1, 7)]);
        assert_eq!(source.step(LeavingEvent::Gone(LaneId(2))), [LeavingAction::Say(said.clone())]);
        assert_eq!(source.step(LeavingEvent::Answered(FenceEpoch(5))), [LeavingAction::Violation]);
        assert_eq!(source.step(LeavingEvent::Answered(FenceEpoch(6))), [LeavingAction::GoOn(said)]);
        assert_eq!((source.epoch(), source.framing()), (FenceEpoch(6), Framing::Messages));
        assert_eq!(source.due(), None);
        source.step(LeavingEvent::PeerWants(Wish::default()));
        assert_eq!(source.due(), Some(Wish::default()), "and both to come back");
    }

    // spec: V-5
    #[test]
    fn distrust_begins_again_once_and_also_when_it_comes_late() {
        let mut source = Leaving::new(ID, FenceEpoch(1), Framing::Extents);
        source.step(LeavingEvent::Wants(OFF));
        source.step(LeavingEvent::Begin(vec![]));
        assert_eq!(source.step(LeavingEvent::Durable(FenceEpoch(2))), [LeavingAction::Say(fence(2, false, vec![]))]);
        source.step(LeavingEvent::Answered(FenceEpoch(2)));
        source.step(LeavingEvent::Wants(Wish { restart: true, ..OFF }));
        assert!(source.due().is_some(), "what version 3 applied is still there");
        source.step(LeavingEvent::Begin(vec![]));
        let said = source.step(LeavingEvent::Durable(FenceEpoch(3)));
        assert_eq!(said, [LeavingAction::Say(fence(3, true, vec![]))]);
        source.step(LeavingEvent::Answered(FenceEpoch(3)));
        assert_eq!(source.due(), None, "nothing of version 3 is left");
    }

    // spec: V-3
    #[test]
    fn a_source_that_lost_lane_0_asks_again_without_the_lanes() {
        let mut source = Leaving::new(ID, FenceEpoch(1), Framing::Extents);
        source.step(LeavingEvent::Wants(OFF));
        source.step(LeavingEvent::Begin(vec![LaneId(1)]));
        source.step(LeavingEvent::Ended(fenced(1, 3)));
        source.step(LeavingEvent::Durable(FenceEpoch(2)));
        source.step(LeavingEvent::Gone(LaneId(1)));
        assert_eq!(source.step(LeavingEvent::Lost), []);
        assert_eq!(source.step(LeavingEvent::Back), [LeavingAction::Say(fence(2, false, vec![]))]);
    }

    // spec: V-4
    #[test]
    fn a_sink_answers_when_nothing_of_before_can_be_applied_and_that_is_durable() {
        let mut sink = Fencing::new(FenceEpoch(1), Framing::Extents);
        let said = fence(2, true, vec![fenced(1, 3)]);
        let lanes = vec![LaneId(1), LaneId(2)];
        let ends = sink.step(FencingEvent::Fence(said.clone(), lanes));
        assert_eq!(ends, [FencingAction::End(vec![fenced(1, 3)])]);
        assert_eq!(sink.step(FencingEvent::Gone(LaneId(1))), []);
        sink.step(FencingEvent::Back);
        assert_eq!(sink.step(FencingEvent::Fence(fence(2, true, vec![]), vec![])), [], "asked again meanwhile");
        assert_eq!(sink.step(FencingEvent::Gone(LaneId(2))), [FencingAction::Clear], "not while a worker writes");
        assert_eq!(sink.step(FencingEvent::Cleared), [FencingAction::Raise(FenceEpoch(2))]);
        assert_eq!(sink.epoch(), FenceEpoch(1));
        assert_eq!(sink.step(FencingEvent::Durable(FenceEpoch(2))), [FencingAction::GoOn(said)]);
        assert_eq!((sink.epoch(), sink.framing()), (FenceEpoch(2), Framing::Messages));
        let again = FencingEvent::Fence(fence(2, true, vec![]), vec![]);
        assert_eq!(sink.step(again.clone()), [FencingAction::Violation], "once a connection");
        sink.step(FencingEvent::Back);
        assert_eq!(sink.step(again), [FencingAction::Repeat], "not cleared again: it may have applied something since");
    }

    // spec: V-4
    #[test]
    fn a_sink_owes_no_answer_to_what_was_asked_on_a_connection_that_is_lost() {
        let mut sink = Fencing::new(FenceEpoch(1), Framing::Extents);
        sink.step(FencingEvent::Fence(fence(2, false, vec![]), vec![]));
        assert!(sink.is_asked());
        assert_eq!(sink.step(FencingEvent::Back), []);
        let on = sink.step(FencingEvent::Durable(FenceEpoch(2)));
        assert_eq!(on, [FencingAction::GoOn(fence(2, false, vec![]))]);
        assert!(!sink.is_asked(), "the source has not said yet which lanes it lost");
        let again = sink.step(FencingEvent::Fence(fence(2, false, vec![]), vec![]));
        assert_eq!(again, [FencingAction::Repeat]);
        assert!(sink.is_asked());
    }

    // spec: V-3
    #[test]
    fn a_fence_of_the_past_is_a_violation() {
        let mut sink = Fencing::new(FenceEpoch(5), Framing::Extents);
        for epoch in [1, 4, 5] {
            let old = FencingEvent::Fence(fence(epoch, false, vec![]), vec![]);
            assert_eq!(sink.step(old), [FencingAction::Violation], "epoch {epoch}");
        }
    }
}
