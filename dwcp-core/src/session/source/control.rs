//! Lane 0 as the source sees it: alive, silent, lost, re-made.

use std::collections::VecDeque;
use std::time::Duration;

use super::pace::Backoff;
use super::{Source, State};
use crate::session::handover::LeavingEvent;
use crate::session::planted::Bug;
use crate::session::{Output, Owner, SessionError, Time};
use crate::wire::{Bury, Frame, Ping};

/// A question on lane 0 once a second (spec: T-1): often enough to know the round trip and to notice silence.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A control lane that brings nothing for this long is dead. spec: T-2
pub(in crate::session) const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// The control connection.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) up: bool,
    pub(super) down_since: Time,
    pub(super) heard_at: Time,
    pub(super) ping_at: Time,
    pub(super) pings: VecDeque<(u64, Time)>,
    pub(super) next_ping: u64,
    pub(super) redial: Backoff,
    /// The sink no longer knows the session: begin a new one, to ask about the transfer.
    pub(super) fresh: bool,
    pub(super) rtt: Duration,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            up: false,
            down_since: Time::default(),
            heard_at: Time::default(),
            ping_at: Time::default(),
            pings: VecDeque::new(),
            next_ping: 0,
            redial: Backoff::default(),
            fresh: false,
            rtt: Duration::ZERO,
        }
    }
}

impl Source {
    pub(super) fn control_down(&mut self, now: Time) {
        if self.state == State::Ended {
            return;
        }
        if !self.control.up {
            // It could not be re-made: try again later.
            return self.control.redial.schedule(now);
        }
        self.control.up = false;
        self.control.down_since = now;
        self.control.pings.clear();
        self.control.redial.schedule(now);
        for lane in self.lanes.alive() {
            self.close_lane(lane);
        }
        self.leaving(now, LeavingEvent::Lost);
        // Before GIVE_UP any doubt resolves to the source: the guest runs again here. A pause that
        // is still under way is taken back when it completes.
        if matches!(self.state, State::Draining | State::Sealed) {
            self.take_back(now);
        }
    }

    /// spec: B-4
    pub(super) fn control_up(&mut self, now: Time) {
        self.control.up = true;
        // If it is a new session, that is the one to go on with from now on.
        self.control.fresh = false;
        self.control.heard_at = now;
        self.control.ping_at = now;
        self.control.redial.reset();
        self.redial_lanes.reset();
        self.progress.reconnects += 1;
        if !self.gave_up() {
            for lane in self.lanes.dead().collect::<Vec<_>>() {
                self.say(Frame::Bury(Bury { lane }));
            }
        }
        if !self.gave_up() {
            self.leaving(now, LeavingEvent::Back);
        }
        match self.state {
            State::Offered => self.say(Frame::Offer(self.offer.clone())),
            State::GaveUp if !self.planted.has(Bug::RunLost) => self.ask_to_run(),
            _ => {}
        }
    }

    pub(super) fn tend_control(&mut self, now: Time) -> Result<(), SessionError> {
        if self.control.up {
            if now.since(self.control.heard_at) > SILENCE_LIMIT {
                self.control_down(now);
            } else if now >= self.control.ping_at {
                let id = self.control.next_ping;
                self.control.next_ping += 1;
                self.control.pings.push_back((id, now));
                self.control.ping_at = now + PING_EVERY;
                self.say(Frame::Ping(Ping { id }));
            }
            return Ok(());
        }
        let silence = now.since(self.control.down_since);
        if silence > self.config.reconnect_limit {
            if !self.gave_up() {
                return Err(SessionError::Unreachable { silence });
            }
            if self.planted.has(Bug::SinkDeadAfterRun) {
                self.outputs.push_back(Output::Resume);
                self.finish(Owner::Source, Some(SessionError::Unreachable { silence }));
                return Ok(());
            }
        }
        if self.control.redial.due(now) {
            self.outputs.push_back(Output::Redial { fresh: self.control.fresh });
        }
        Ok(())
    }

    pub(super) fn pong(&mut self, now: Time, pong: Ping) {
        while let Some((id, at)) = self.control.pings.pop_front() {
            if id == pong.id {
                self.control.rtt = now.since(at);
                self.progress.control_latency.record(now.since(at));
                break;
            }
        }
    }
}
