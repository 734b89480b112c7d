//! The pause and the hand-over: everything between "the rest fits the budget" and RUNNING.

use std::time::Duration;

use bytes::Bytes;

use super::super::converge::{Verdict, duration_at};
use super::super::planted::Bug;
use super::super::record::{Record, Standing};
use super::super::stats::Phase;
use super::super::{Output, Owner, SessionError, Time};
use super::{Source, State};
use crate::guest::GuestError;
use crate::wire::limits::{DEVICE_STATE_CHUNK, MAX_DEVICE_STATE};
use crate::wire::{DeviceState, Digest, ErrorCode, Frame, LaneId, Offer, Pause, Ready, Run, Running};

/// What the switch-over costs besides bytes: two record writes and the sink's staging.
const SWITCH_COST: Duration = Duration::from_millis(15);

/// All about the pause.
#[derive(Debug, Default)]
pub(super) struct SwitchOver {
    pub(super) attempt: u32,
    pub(super) paused_at: Option<Time>,
    pub(super) harvested: bool,
    pub(super) devices: Option<Bytes>,
    pub(super) sealed: Option<Sealed>,
    /// Why GIVE_UP is not durable.
    unrecorded: String,
    /// What to tell the sink once GIVE_UP is durable.
    pub(super) run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub(super) root: Digest,
    pub(super) device_digest: Digest,
}

impl Source {
    /// How long the guest would stand still if it were paused now.
    pub(super) fn downtime_estimate(&self) -> Duration {
        let (_, wire_rate) = self.rates();
        let flying = duration_at(self.lanes.flight_bytes(), wire_rate);
        self.time_of(self.dirty.pages()) + flying + self.fixed_downtime()
    }

    /// What a pause takes that has nothing to send.
    pub(super) fn fixed_downtime(&self) -> Duration {
        self.control.rtt * 2 + SWITCH_COST
    }

    pub(super) fn paused(&mut self, now: Time) {
        if self.state != State::Pausing {
            return;
        }
        self.state = State::Draining;
        self.switch.paused_at = Some(now);
        self.switch.harvested = false;
        self.switch.devices = None;
        self.defer_nothing();
        if !self.control.up {
            return self.take_back(now);
        }
        self.harvest();
        self.outputs.push_back(Output::SaveDevices);
    }

    /// The guest runs again at the source; the sink's READY of this attempt is void.
    pub(super) fn take_back(&mut self, now: Time) {
        self.outputs.push_back(Output::Resume);
        self.end_downtime(now);
        self.switch.sealed = None;
        self.state = State::Copying;
        self.progress.phase = Phase::Copying;
        self.converge.restart(now);
    }

    pub(super) fn end_downtime(&mut self, now: Time) {
        if let Some(paused_at) = self.switch.paused_at.take() {
            let so_far = self.progress.downtime.unwrap_or_default();
            self.progress.downtime = Some(so_far + now.since(paused_at));
        }
    }

    pub(super) fn devices(&mut self, state: Bytes) -> Result<(), SessionError> {
        if u64::try_from(state.len()).unwrap_or(u64::MAX) > MAX_DEVICE_STATE {
            let text = format!("the devices' state has {} bytes, at most {MAX_DEVICE_STATE} are allowed", state.len());
            return Err(GuestError::Other(text).into());
        }
        self.switch.devices = Some(state);
        Ok(())
    }

    /// Everything is sent: tell the sink what it must hold. spec: S-1
    pub(super) fn seal(&mut self, now: Time) {
        let Some(devices) = self.switch.devices.clone() else { return };
        self.begin_round(now);
        self.switch.attempt += 1;
        let attempt = self.switch.attempt;
        let root = self.tree.root(&self.leaves);
        let device_digest = Digest(*blake3::hash(&devices).as_bytes());
        self.switch.sealed = Some(Sealed { root, device_digest });
        self.progress.root = Some(root);
        let device_bytes = u64::try_from(devices.len()).unwrap_or(u64::MAX);
        let finals = self.lanes.finals();
        self.say(Frame::Pause(Pause { attempt, root, device_bytes, device_digest, finals }));
        let mut offset = 0;
        for part in devices.chunks(DEVICE_STATE_CHUNK) {
            self.say(Frame::DeviceState(DeviceState { attempt, offset, bytes: devices.slice_ref(part) }));
            offset += u64::try_from(part.len()).unwrap_or(0);
        }
        self.state = State::Sealed;
        self.progress.phase = Phase::Committing;
    }

    /// spec: S-4
    pub(super) fn ready(&mut self, ready: &Ready) -> Result<(), SessionError> {
        let current = self.state == State::Sealed && ready.attempt == self.switch.attempt;
        let Some(sealed) = self.switch.sealed.filter(|_| current) else {
            // READY of a pause that was taken back crossed our reconnect: void, not wrong. A READY
            // of a pause that never was is a violation.
            let never_was = ready.attempt == 0 || ready.attempt > self.switch.attempt;
            let twice = ready.attempt == self.switch.attempt && self.gave_up();
            return if never_was || twice { Err(SessionError::unexpected("READY without a pause")) } else { Ok(()) };
        };
        if ready.transfer != self.offer.transfer || ready.epoch != self.offer.epoch {
            return Err(SessionError::unexpected("READY names another transfer or epoch"));
        }
        if self.lanes.in_flight() {
            return Err(SessionError::unexpected("READY while extents are not acknowledged"));
        }
        self.progress.peer_root = Some(ready.root);
        let (code, what) = if ready.root != sealed.root {
            (ErrorCode::RootMismatch, "the sink's root differs from the source's")
        } else if ready.device_digest != sealed.device_digest {
            (ErrorCode::DeviceDigest, "the sink's device state differs from the source's")
        } else {
            self.give_up(sealed.root);
            return Ok(());
        };
        Err(SessionError::Integrity { code, lane: LaneId::CONTROL, position: 0, what: what.into() })
    }

    /// The point of no return, once it is durable. spec: S-5
    pub(super) fn give_up(&mut self, root: Digest) {
        let Offer { transfer, epoch, .. } = self.offer;
        let attempt = self.switch.attempt;
        self.switch.run = Some(Run { transfer, epoch, attempt, root });
        self.state = State::GivingUp;
        self.progress.phase = Phase::Handing;
        let record = Record::of(&self.offer, attempt, root, self.peer, Standing::GaveUp);
        self.outputs.push_back(Output::Persist(record));
    }

    pub(super) fn persisted(&mut self) {
        if self.state == State::GivingUp {
            self.state = State::GaveUp;
            self.ask_to_run();
        }
    }

    /// RUN, as often as it takes. spec: S-5, S-8
    pub(super) fn ask_to_run(&mut self) {
        if let Some(run) = self.switch.run.clone().filter(|_| self.control.up) {
            self.say(Frame::Run(run));
        }
    }

    /// spec: S-7
    pub(super) fn running(&mut self, now: Time, running: &Running) -> Result<(), SessionError> {
        if self.state != State::GaveUp {
            return Err(SessionError::unexpected("RUNNING before RUN"));
        }
        if running.transfer != self.offer.transfer || running.epoch != self.offer.epoch {
            return Err(SessionError::unexpected("RUNNING names another transfer or epoch"));
        }
        self.end_downtime(now);
        self.outputs.push_back(Output::Forget(self.offer.transfer));
        self.finish(Owner::Sink, None);
        Ok(())
    }

    pub(super) fn check_pause(&mut self, now: Time) -> Result<(), SessionError> {
        let Some(paused_at) = self.switch.paused_at else { return Ok(()) };
        let estimate = now.since(paused_at);
        if estimate <= self.config.pause_limit {
            return Ok(());
        }
        let rounds = u32::try_from(self.progress.rounds.len()).unwrap_or(u32::MAX);
        let verdict = Verdict { pause_limit: Some(self.config.pause_limit), ..self.verdict(rounds, estimate) };
        Err(SessionError::NotConverging(verdict))
    }

    /// RUN has not been sent, so the sink cannot run. But the record may be there after a crash, and whoever finds it sends RUN:
    /// the guest stands still until it is gone for certain. spec: S-5
    pub(super) fn persist_failed(&mut self, now: Time, text: String) {
        if self.state == State::GivingUp {
            self.state = State::Retracting;
            self.switch.unrecorded = text;
            self.outputs.push_back(Output::Retract(self.offer.transfer));
            if self.planted.has(Bug::RunUnretracted) {
                self.retracted(now);
            }
        }
    }

    /// The guest may go on here.
    pub(super) fn retracted(&mut self, now: Time) {
        if self.state == State::Retracting {
            self.state = State::Sealed;
            let text = std::mem::take(&mut self.switch.unrecorded);
            self.fail(now, SessionError::Record { text });
        }
    }

    /// Nobody runs it: only who reads that disk later knows whether the sink may.
    pub(super) fn retract_failed(&mut self, text: String) {
        if self.state == State::Retracting {
            self.finish(Owner::InDoubt, Some(SessionError::Record { text }));
        }
    }
}
