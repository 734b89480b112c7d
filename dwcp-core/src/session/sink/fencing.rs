//! Lanes that change their framing in mid-transfer, as the sink sees it: [`Fencing`](super::super::handover::Fencing)
//! says when, this does it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::handover::{FARTHEST_EPOCH, FencingAction, FencingEvent, Wish};
use super::super::planted::Bug;
use super::super::{Output, SessionError, Time};
use super::lanes::{Lane, LaneState};
use super::{Sink, State};
use crate::wire::limits::{MAX_HANDOVER_NODES, MAX_LANE_IDS};
use crate::wire::{ErrorCode, Fence, FencedLane, Frame, Framing, HandedLane, Handover, LaneId, Message, Prefer};

/// How long lanes may take to reach their ends; what has not come then, comes again. spec: V-4
const DRAIN_LIMIT: Duration = Duration::from_millis(250);

impl Sink {
    /// Tells the source what this node wants, now and whenever lane 0 is made. spec: V-1
    pub(super) fn prefer(&mut self, wish: Wish) -> Result<(), SessionError> {
        let told = std::mem::replace(&mut self.wish, wish);
        let impossible = wish.framing == Framing::Messages && !self.config.messages;
        // What was promised, or runs, is finished as it is.
        if impossible && !self.promised() && !self.ran() {
            return Err(SessionError::NoFramingLeft { wanted: wish.framing });
        }
        if told != wish {
            self.say_wish();
        }
        Ok(())
    }

    pub(super) fn say_wish(&mut self) {
        let accepted = !self.telling.is_under_way() && self.state != State::Idle;
        if accepted && self.control_up && self.config.messages && !self.ran() {
            let Wish { framing, restart } = self.wish;
            self.say(Frame::Prefer(Prefer { framing, restart }));
        }
    }

    /// spec: V-3
    pub(super) fn fenced(&mut self, now: Time, fence: Fence) -> Result<(), SessionError> {
        let receiving = matches!(self.state, State::Receiving | State::Staging | State::Recording | State::Ready);
        if !receiving || self.telling.is_under_way() {
            return Err(SessionError::unexpected("FENCE before ACCEPT or after RUN"));
        }
        if fence.transfer != self.offer.transfer || fence.framing == Framing::Messages && !self.config.messages {
            return Err(SessionError::unexpected("FENCE of another transfer, or to a framing that was not agreed"));
        }
        if fence.epoch.0.saturating_sub(self.offer.epoch.0) > FARTHEST_EPOCH {
            return Err(SessionError::unexpected("FENCE of an epoch that is too far"));
        }
        self.check_fenced_lanes(&fence.lanes)?;
        // Said again it costs an answer a connection, and those are charged themselves.
        if fence.epoch > self.offer.epoch && self.fencing.is_active() && !self.fence_turns.take(now) {
            return Err(SessionError::PeerViolation {
                code: ErrorCode::Flood,
                lane: LaneId::CONTROL,
                position: fence.epoch.0,
                what: "more hand-overs than an honest source begins".into(),
            });
        }
        let running = |lane: &Lane| matches!(lane.state, LaneState::Open | LaneState::Closing { .. });
        let running = self.lanes.iter().filter(|(_, lane)| running(lane)).map(|(&id, _)| id);
        let running = running.filter(|_| !self.planted.has(Bug::LanesOutliveFence)).collect();
        self.fencing_step(now, FencingEvent::Fence(fence, running))
    }

    fn check_fenced_lanes(&self, fenced: &[FencedLane]) -> Result<(), SessionError> {
        let mut used: BTreeSet<LaneId> = self.lanes.keys().copied().collect();
        let mut ended = BTreeSet::new();
        let fits = self.lanes.len() + fenced.len() <= usize::from(MAX_LANE_IDS);
        let mut sound = |fenced: &FencedLane| {
            self.lanes.contains_key(&fenced.lane) && ended.insert(fenced.lane) && used.insert(fenced.next)
        };
        if fits && fenced.iter().all(&mut sound) {
            return Ok(());
        }
        Err(SessionError::unexpected(
            "FENCE names a lane twice, or one that never joined, or goes on as one that was used",
        ))
    }

    pub(super) fn fencing_step(&mut self, now: Time, event: FencingEvent) -> Result<(), SessionError> {
        for action in self.fencing.step(event) {
            match action {
                FencingAction::End(lanes) => self.end_lanes(now, &lanes),
                FencingAction::Clear if self.planted.has(Bug::RestartKeepsPages) => {
                    return self.fencing_step(now, FencingEvent::Cleared);
                }
                FencingAction::Clear => self.outputs.push_back(Output::Clear),
                FencingAction::Raise(least) => {
                    self.outputs.push_back(Output::RaiseFence { peer: self.peer, least });
                    if self.planted.has(Bug::HandoverBeforeFence) {
                        return self.fencing_step(now, FencingEvent::Durable(least));
                    }
                }
                FencingAction::GoOn(fence) => self.hand_over(&fence),
                FencingAction::Repeat => self.say_handover(Vec::new()),
                FencingAction::Violation => {
                    return Err(SessionError::unexpected(
                        "FENCE of an epoch that is past, or in the middle of another",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whatever READY promised is taken back (S-9); lanes go on to their ends, others end now.
    fn end_lanes(&mut self, now: Time, fenced: &[FencedLane]) {
        if let Some(promise) = &mut self.promise {
            promise.void = true;
        }
        if self.state == State::Ready {
            self.state = State::Receiving;
            self.promise = None;
        }
        self.pause = None;
        self.progress.phase = super::Phase::Copying;
        for ends in fenced {
            let open = self.lanes.get_mut(&ends.lane).filter(|lane| lane.state == LaneState::Open);
            if let Some(lane) = open {
                lane.state = LaneState::Closing { bury: false };
                self.outputs.push_back(Output::EndLane(*ends));
            }
        }
        self.close_lanes();
        self.kept.clear();
        self.drain_until = Some(now + DRAIN_LIMIT);
    }

    pub(super) fn drain_deadline(&self) -> Option<Time> {
        self.drain_until
    }

    /// What has not come by now comes again, on the new lanes.
    pub(super) fn end_drain(&mut self, now: Time) {
        if self.drain_until.is_none_or(|until| now < until) {
            return;
        }
        self.drain_until = None;
        let closing = |lane: &Lane| matches!(lane.state, LaneState::Closing { .. });
        for (&id, _) in self.lanes.iter().filter(|(_, lane)| closing(lane)) {
            self.outputs.push_back(Output::CloseLane(id));
        }
    }

    /// A lane has reached its end, and its connection is good.
    pub(super) fn lane_ended(&mut self, ended: FencedLane) {
        self.kept.push(ended);
    }

    /// From here on nothing of before can be applied. spec: V-4
    fn hand_over(&mut self, fence: &Fence) {
        self.drain_until = None;
        self.offer.epoch = fence.epoch;
        (self.progress.epoch, self.progress.framing) = (fence.epoch, fence.framing);
        self.progress.handovers += 1;
        self.outputs.push_back(Output::Engage { epoch: fence.epoch, framing: fence.framing });
        let kept = std::mem::take(&mut self.kept);
        let mut handed = Vec::new();
        for FencedLane { lane, next, .. } in &fence.lanes {
            // It may have been buried meanwhile.
            let survives =
                self.control_up && kept.iter().any(|kept| kept.lane == *lane) && !self.lanes.contains_key(next);
            let Some(old) = self.lanes.get_mut(lane) else { continue };
            old.state = LaneState::Buried;
            old.acked = old.applied;
            let applied = old.applied;
            let credit = if survives { self.window() } else { 0 };
            handed.push(HandedLane { lane: *lane, applied, credit });
            self.adopt(*next, credit);
        }
        self.say_handover(handed);
    }

    fn adopt(&mut self, next: LaneId, credit: u64) {
        if credit == 0 {
            self.outputs.push_back(Output::RefuseLane { lane: next });
            return;
        }
        self.lanes.insert(next, Lane::open(credit));
        self.outputs.push_back(Output::AdmitLane { lane: next, credit });
    }

    fn say_handover(&mut self, lanes: Vec<HandedLane>) {
        if !self.control_up || !self.fencing.is_asked() {
            return;
        }
        let nodes = self.tree.nodes(&self.leaves, MAX_HANDOVER_NODES);
        let nodes = nodes.into_iter().map(|(_, digest)| digest).collect();
        let (transfer, epoch) = (self.offer.transfer, self.offer.epoch);
        self.say(Frame::Handover(Handover { transfer, epoch, lanes, nodes }));
    }

    /// The guest is zeros again. spec: V-5
    pub(super) fn cleared(&mut self, now: Time) -> Result<(), SessionError> {
        self.leaves.clear();
        self.fencing_step(now, FencingEvent::Cleared)
    }

    /// One at a time, and within what the lane was granted. spec: V-6
    pub(super) fn message(&mut self, message: Message) -> Result<(), SessionError> {
        let violation = |code, what: &str| {
            let (lane, position) = (message.lane, message.first);
            Err(SessionError::PeerViolation { code, lane, position, what: what.into() })
        };
        if self.fencing.framing() != Framing::Messages {
            return violation(ErrorCode::Unexpected, "MESSAGE where lanes carry extents");
        }
        let Some(lane) = self.lanes.get_mut(&message.lane) else {
            return violation(ErrorCode::Unexpected, "MESSAGE on a lane that never joined");
        };
        if lane.state != LaneState::Open {
            // It crossed the end of its lane.
            return Ok(());
        }
        if message.first != lane.applied || lane.expects {
            return violation(ErrorCode::BadExtent, "MESSAGE before the one before it was acknowledged");
        }
        if lane.consumed + u64::from(message.bytes) > lane.granted {
            return violation(ErrorCode::CreditExceeded, "MESSAGE of more bytes than were granted");
        }
        lane.expects = true;
        self.outputs.push_back(Output::Expect(message));
        Ok(())
    }
}
