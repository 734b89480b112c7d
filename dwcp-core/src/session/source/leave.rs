//! Lanes that change their framing in mid-transfer, as the source sees it: [`Leaving`] says when, this does it.

use std::time::Duration;

use super::super::handover::{LeavingAction, LeavingEvent, Wish};
use super::super::planted::Bug;
use super::super::stats::HandoverStats;
use super::super::{Output, SessionError, Time};
use super::deferral::Ratio;
use super::{Source, State};
use crate::extent::FlatPage;
use crate::guest::DirtyMap;
use crate::wire::limits::MAX_HANDOVER_NODES;
use crate::wire::{Fence, FencedLane, Frame, Handover, LaneId, Message};

/// How long lanes may take to end by themselves; what has not ended then is buried. spec: V-2
const DRAIN_LIMIT: Duration = Duration::from_millis(250);
/// How long the sink may take to answer. The guest runs meanwhile, so this only bounds an ill sink.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Hand-overs that are kept for the report.
const MAX_HANDOVERS_KEPT: usize = 10;

/// What is only measured, and when to lose patience.
#[derive(Debug, Default)]
pub(super) struct LeaveClock {
    /// The wish came.
    wished: Time,
    /// The last extent of the old framing was handed to its connection.
    last_extent: Option<Time>,
    until: Option<Time>,
    draining: bool,
    /// Somebody changed his mind while lanes were changing.
    again: Option<Time>,
    /// A hand-over is due before its turn.
    turn_at: Option<Time>,
}

impl LeaveClock {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.turn_at.or(self.until)
    }
}

impl Source {
    /// This node, or the sink, wants another framing. After GIVE_UP the transfer is finished as it is.
    pub(super) fn wish(&mut self, now: Time, wish: LeavingEvent) {
        let was_due = self.leave.due().is_some() || !self.leave.is_active();
        if !self.leave.is_active() {
            self.leave_clock.again = Some(now);
        }
        self.leaving(now, wish);
        if !was_due && self.leave.due().is_some() {
            self.leave_clock = LeaveClock { wished: now, ..LeaveClock::default() };
        }
    }

    pub(super) fn leaving(&mut self, now: Time, event: LeavingEvent) {
        for action in self.leave.step(event) {
            match action {
                LeavingAction::Raise(least) => self.outputs.push_back(Output::RaiseFence { peer: self.peer, least }),
                LeavingAction::Say(fence) => {
                    self.leave_clock.draining = false;
                    self.leave_clock.until = Some(now + ANSWER_LIMIT);
                    if self.control.up {
                        self.say(Frame::Fence(fence));
                    }
                }
                // Asked for by `handed_over` only, which looks at what `step` returns itself.
                LeavingAction::GoOn(_) | LeavingAction::Violation => {}
            }
        }
    }

    /// Begins a hand-over that is due, once it may. spec: V-2
    pub(super) fn tend_leaving(&mut self, now: Time) -> Result<(), SessionError> {
        self.lose_patience(now)?;
        self.leave_clock.turn_at = None;
        let Some(wish) = self.leave.due() else { return Ok(()) };
        // What the sink holds from before must be known before it may be thrown away.
        if self.round.recalling || !matches!(self.state, State::Copying | State::Draining | State::Sealed) {
            return Ok(());
        }
        if !self.config.messages {
            return Err(SessionError::NoFramingLeft { wanted: wish.framing });
        }
        if !self.leave_turns.take(now) {
            self.leave_clock.turn_at = Some(self.leave_turns.ready_at());
            return Ok(());
        }
        if self.state != State::Copying {
            // A pause that is still under way is taken back when it completes.
            self.take_back(now);
        }
        let ending = self.end_lanes();
        self.leave_clock.draining = true;
        self.leave_clock.until = Some(now + DRAIN_LIMIT);
        self.leaving(now, LeavingEvent::Begin(ending));
        Ok(())
    }

    /// Tells every lane to end; those that carry extents keep their connections.
    fn end_lanes(&mut self) -> Vec<LaneId> {
        let ending = self.lanes.alive();
        for lane in self.lanes.open_ids() {
            if let Some(next) = self.lanes.leave(lane) {
                self.outputs.push_back(Output::LeaveLane { lane, next });
            }
        }
        for &lane in &ending {
            self.close_lane(lane);
        }
        ending
    }

    /// What does not end in time is buried; a sink that does not answer is given up.
    fn lose_patience(&mut self, now: Time) -> Result<(), SessionError> {
        if self.leave.is_active() || self.leave_clock.until.is_none_or(|until| now < until) {
            return Ok(());
        }
        self.leave_clock.until = None;
        if !self.leave_clock.draining {
            return Err(SessionError::HandoverUnanswered { silence: ANSWER_LIMIT });
        }
        for lane in self.lanes.closing_ids() {
            self.outputs.push_back(Output::CloseLane(lane));
        }
        Ok(())
    }

    pub(super) fn lane_ended(&mut self, now: Time, fenced: FencedLane) {
        // What its connection was to be may have been dropped already; then it is a lane that was lost.
        if self.lanes.is_opening(fenced.next) {
            self.leaving(now, LeavingEvent::Ended(fenced));
        }
    }

    /// When the last extent of the old framing left.
    pub(super) fn note_extent(&mut self, now: Time) {
        self.leave_clock.last_extent = Some(now);
    }

    /// spec: V-4
    pub(super) fn handed_over(&mut self, now: Time, handover: &Handover) -> Result<(), SessionError> {
        let stray = || SessionError::unexpected("HANDOVER that answers no FENCE");
        if handover.transfer != self.offer.transfer {
            return Err(stray());
        }
        let fence = match self.leave.step(LeavingEvent::Answered(handover.epoch)).pop() {
            Some(LeavingAction::GoOn(fence)) => fence,
            None => return Ok(()),
            Some(_) => return Err(stray()),
        };
        self.offer.epoch = fence.epoch;
        self.outputs.push_back(Output::Engage { epoch: fence.epoch, framing: fence.framing });
        self.lanes.carry(fence.framing);
        // A lane of messages does not keep the copies up.
        if !self.planted.has(Bug::ShadowOutlivesHandover) {
            self.shadow.distrust();
        }
        for handed in &handover.lanes {
            self.bury_lane(now, handed.lane, handed.applied)?;
        }
        if self.lanes.in_flight() {
            return Err(SessionError::unexpected("HANDOVER without the end of every lane"));
        }
        for fenced in &fence.lanes {
            let handed = handover.lanes.iter().find(|handed| handed.lane == fenced.lane);
            match handed.map(|handed| handed.credit).filter(|&credit| credit > 0) {
                Some(credit) if self.lanes.joined(fenced.next, credit) => {
                    self.outputs.push_back(Output::AdoptLane(fenced.next));
                }
                _ => self.close_lane(fenced.next),
            }
        }
        if fence.restart {
            self.begin_again();
        } else {
            self.verify(handover)?;
        }
        self.note_handover(now, &fence);
        Ok(())
    }

    /// The sink has zeros again. spec: V-5
    fn begin_again(&mut self) {
        self.leaves.clear();
        self.known.fill(true);
        self.hot.clear();
        self.defer_nothing();
        self.dirty.mark(&DirtyMap::all(&self.layout));
    }

    /// Where the sink's tree differs nothing is known of it. spec: V-4
    fn verify(&mut self, handover: &Handover) -> Result<(), SessionError> {
        let own = self.tree.nodes(&self.leaves, MAX_HANDOVER_NODES);
        if own.len() != handover.nodes.len() {
            return Err(SessionError::unexpected("HANDOVER with another number of nodes than this layout has"));
        }
        let differing = own.iter().zip(&handover.nodes).filter(|((_, own), theirs)| own != *theirs);
        let mut disputed = DirtyMap::new(&self.layout);
        for ((pages, _), _) in differing {
            for page in pages.clone().map(FlatPage) {
                if let Some((region, number)) = self.layout.locate(page) {
                    self.progress.pages_disputed += u64::from(self.known.get(page));
                    disputed.mark(region, number, 1);
                }
                self.known.set(page, false);
            }
        }
        if disputed.count() > 0 {
            self.dirty.mark(&disputed);
        }
        Ok(())
    }

    fn note_handover(&mut self, now: Time, fence: &Fence) {
        self.progress.framing = fence.framing;
        self.progress.epoch = fence.epoch;
        self.progress.handovers += 1;
        let clock = std::mem::take(&mut self.leave_clock);
        self.leave_clock.wished = clock.again.unwrap_or(now);
        // A wish of long ago whose lane 0 was lost meanwhile is measured all the same: that is what a user waits.
        let last_extent = clock.last_extent.map_or(Duration::ZERO, |at| at.since(clock.wished));
        let settled = now.since(clock.wished);
        if self.progress.handover_log.len() >= MAX_HANDOVERS_KEPT {
            self.progress.handover_log.remove(0);
        }
        let stats = HandoverStats { to: fence.framing, restart: fence.restart, last_extent, settled };
        self.progress.handover_log.push(stats);
        // Measures begin anew with what the new framing can do.
        self.converge.restart(now);
        self.ratio = Ratio::default();
    }

    /// A message is whole: it is announced when the one before is acknowledged. spec: V-6
    pub(super) fn prepared(&mut self, message: Message) {
        if let Some(message) = self.lanes.prepared(message) {
            self.ship(message);
        }
    }

    pub(super) fn ship(&mut self, message: Message) {
        self.say(Frame::Message(message));
        self.outputs.push_back(Output::Ship(message.lane));
    }

    /// Whether a wish still changes anything.
    pub(super) fn may_leave(&self) -> bool {
        !self.gave_up() && self.state != State::Ended
    }
}

impl From<crate::wire::Prefer> for Wish {
    fn from(prefer: crate::wire::Prefer) -> Self {
        Self { framing: prefer.framing, restart: prefer.restart }
    }
}
