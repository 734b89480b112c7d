//! The rules of `docs/protocol.md`, one machine at a time: what goes in, what must come out.

mod deferral;
mod handover;
mod sink;
mod source;
mod telling;

use std::sync::Arc;
use std::time::Duration;

use crate::extent::Layout;
use crate::session::{Fingerprint, Input, Leaves, Machine, Outcome, Output, Time};
use crate::wire::{ErrorCode, FenceEpoch, Frame, GuestKind, LaneId, Name, Offer, TransferId};

const PAGES: u64 = 64;
const PEER: Fingerprint = Fingerprint([6; 32]);
const LANE: LaneId = LaneId(1);
const WIDE: u64 = 1 << 40;

fn offer() -> Offer {
    Offer {
        transfer: TransferId([7; 16]),
        epoch: FenceEpoch(3),
        kind: GuestKind::Live,
        name: Name::new("vm1").unwrap(),
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout: Layout::new(&[4096 * PAGES]).unwrap(),
    }
}

fn leaves() -> Arc<Leaves> {
    Arc::new(Leaves::new(&offer().layout))
}

/// A machine, its clock, and everything that it asked for since somebody last looked.
struct Bench<M> {
    machine: M,
    now: Time,
}

impl<M: Machine> Bench<M> {
    fn new(machine: M) -> Self {
        Self { machine, now: Time::after_epoch(Duration::from_secs(1)) }
    }

    fn feed(&mut self, input: Input) -> Vec<Output> {
        self.now = self.now + Duration::from_millis(1);
        self.feed_at_once(input)
    }

    fn feed_at_once(&mut self, input: Input) -> Vec<Output> {
        self.machine.handle(self.now, input);
        std::iter::from_fn(|| self.machine.poll()).collect()
    }

    fn hear(&mut self, frame: Frame) -> Vec<Output> {
        self.feed(Input::Frame(frame))
    }

    fn after(&mut self, wait: Duration) -> Vec<Output> {
        self.now = self.now + wait;
        self.feed(Input::Tick)
    }
}

fn frames(outputs: &[Output]) -> Vec<Frame> {
    let said = outputs.iter().filter_map(|output| match output {
        Output::Control(frame) if !matches!(frame, Frame::Ping(_)) => Some(frame.clone()),
        _ => None,
    });
    said.collect()
}

fn outcome(outputs: &[Output]) -> Option<&Outcome> {
    outputs.iter().find_map(|output| match output {
        Output::Finished(outcome) => Some(outcome),
        _ => None,
    })
}

/// The code of the ERROR frame that was said.
fn error_code(outputs: &[Output]) -> Option<ErrorCode> {
    frames(outputs).into_iter().find_map(|frame| match frame {
        Frame::Error(error) => Some(error.code),
        _ => None,
    })
}

macro_rules! asked {
    ($outputs:expr, $pattern:pat) => {
        $outputs.iter().any(|output| matches!(output, $pattern))
    };
}
use asked;
