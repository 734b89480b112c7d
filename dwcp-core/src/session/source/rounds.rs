//! Rounds: send what is dirty, have the guest say what is dirty again, decide.

use std::time::Duration;

use super::super::converge::{Decision, RoundEnd, Verdict, rate};
use super::super::stats::{Phase, RoundStats};
use super::super::{Output, SessionError, Time};
use super::{Source, State};
use crate::guest::{DirtyMap, Pending};

/// Wait after a harvest that brought nothing.
const IDLE_HARVEST: Duration = Duration::from_millis(5);
/// The same for a guest that knows of writes still to come, and has none.
const MORE_HARVEST: Duration = Duration::from_millis(50);
/// Rounds that are kept for the report; a transfer that needs more is not converging.
const MAX_ROUNDS_KEPT: usize = 1000;

/// The round in progress.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) harvesting: bool,
    /// The harvest at the start has come back. No page is read before that: its bits are of no use.
    /// spec: D-2
    pub(super) log_cleared: bool,
    /// What the guest knows of the pages that the sink holds is being asked.
    pub(super) recalling: bool,
    /// An empty harvest is not repeated at once.
    pub(super) harvest_at: Time,
    pub(super) started: Time,
    pub(super) pages: u64,
    pub(super) wire_bytes: u64,
    pub(super) more_certain: bool,
    /// Rounds that ended before.
    pub(super) number: u64,
    /// Pages that are left for the pause.
    pub(super) deferred: u64,
    /// The harvest under way is one in mid-round.
    pub(super) sampling: bool,
    /// There was one in this round.
    pub(super) sampled: bool,
    pub(super) harvested_at: Time,
    /// Pages that the harvests of this round brought; one that several of them brought counts in each. The whole round would
    /// tell too little of a guest that writes the same pages over and over.
    pub(super) written: u64,
    /// Plain bytes per second that were written in the last round that ended with the guest running.
    pub(super) dirty_rate: u64,
    /// The round before, once one was of pages that were sent again.
    pub(super) last: Option<RoundStats>,
}

impl Source {
    pub(super) fn harvest(&mut self) {
        if !self.round.harvesting {
            self.round.harvesting = true;
            self.outputs.push_back(Output::Harvest);
        }
    }

    pub(super) fn harvested(&mut self, now: Time, dirty: &DirtyMap, pending: Pending) -> Result<(), SessionError> {
        self.round.harvesting = false;
        self.round.written += dirty.count();
        if std::mem::take(&mut self.round.sampling) {
            self.sampled(now, dirty);
            return Ok(());
        }
        self.dirty.let_go(u64::MAX);
        self.dirty.mark(dirty);
        self.round.more_certain = pending == Pending::More;
        if !self.round.log_cleared {
            // The harvest at the start: nothing has been read yet, and everything is dirty.
            self.round.log_cleared = true;
            self.round.harvested_at = now;
            self.round.written = 0;
            return Ok(());
        }
        match self.state {
            State::Copying if self.leave.is_active() => {
                self.hold_hot(now, dirty);
                self.round_ended(now)
            }
            State::Draining => {
                self.switch.harvested = true;
                self.begin_round(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn round_ended(&mut self, now: Time) -> Result<(), SessionError> {
        let took = now.since(self.round.started);
        self.round.dirty_rate = rate(self.round.written.saturating_mul(4096), took);
        let lasting = self.dirty.pages() - self.dirty.held().min(self.deferrable());
        let figures = self.verdict(self.converge.rounds() + 1, self.downtime_estimate());
        let end = RoundEnd { now, lasting_wire: self.ratio.wire_of(lasting), took, figures };
        self.begin_round(now);
        if self.round.more_certain {
            self.defer_nothing();
            if self.dirty.pages() == 0 {
                self.round.harvest_at = now + MORE_HARVEST;
            }
            return Ok(());
        }
        match self.converge.round_ended(end) {
            Decision::AnotherRound => {
                self.let_excess_go(true);
                if self.dirty.pages() == 0 {
                    self.round.harvest_at = now + IDLE_HARVEST;
                }
                Ok(())
            }
            Decision::Pause => {
                // Most of the tree is hashed while the guest still runs.
                let _ = self.tree.root(&self.leaves);
                self.state = State::Pausing;
                self.progress.phase = Phase::Pausing;
                self.outputs.push_back(Output::Pause);
                Ok(())
            }
            Decision::Stop(verdict) => Err(verdict.into()),
        }
    }

    /// The present figures, as they are told if the transfer ends because of them.
    pub(super) fn verdict(&self, rounds: u32, estimate: Duration) -> Verdict {
        let (goodput, wire_goodput) = self.rates();
        Verdict {
            rounds,
            dirty_pages: self.dirty.pages(),
            wire_bytes: self.ratio.wire_of(self.dirty.pages()),
            estimate,
            budget: self.config.downtime_budget,
            fixed: self.fixed_downtime(),
            pause_limit: None,
            goodput,
            wire_goodput,
            dirty_rate: self.round.dirty_rate,
        }
    }

    pub(super) fn begin_round(&mut self, now: Time) {
        let idle = self.round.pages == 0 && self.round.wire_bytes == 0;
        let Round { pages, deferred, wire_bytes, started, number, .. } = self.round;
        let ended = RoundStats { pages, deferred, wire_bytes, duration: now.since(started) };
        if !idle && self.progress.rounds.len() < MAX_ROUNDS_KEPT {
            self.progress.rounds.push(ended);
        }
        self.ratio.round_ended(deferred);
        self.round.last = Some(ended).filter(|_| number > 0);
        self.round.number += 1;
        self.round.deferred = self.dirty.held();
        self.round.started = now;
        self.round.written = 0;
        self.round.pages = self.dirty.pages();
        self.round.wire_bytes = 0;
    }

    /// What follows when nothing can be sent: the next harvest, or the seal.
    pub(super) fn after_sending(&mut self, now: Time) {
        (self.progress.plain_rate, self.progress.wire_rate) = self.rates();
        if self.dirty.sendable() > 0 || self.lanes.unencoded() > 0 || self.round.harvesting {
            return;
        }
        match self.state {
            // A round ends when all of it is at the sink: then every page has a base there.
            State::Copying if !self.lanes.in_flight() && now >= self.round.harvest_at => self.harvest(),
            // An extent on a lane that is not buried may or may not be at the sink. spec: S-1
            State::Draining if self.lanes.flight_unburied() => {}
            State::Draining if self.dirty.pages() == 0 && self.switch.harvested && self.switch.devices.is_some() => {
                self.seal(now);
            }
            _ => {}
        }
    }
}
