//! What should happen next: the pure machines.
//!
//! ```text
//!                  handle(now, Input)                    poll() -> Output
//!   driver  ────────────────────────────>  Source  ────────────────────────────>  driver
//!  (net, or the simulator)                  Sink
//! ```
//!
//! **Every `handle` must be followed by `poll` until it returns `None`, and by a look at
//! [`Machine::deadline`].** The machines are told the time, draw no random numbers, touch no socket
//! and no page: payload bytes go from guest to lane and from lane to guest around them, and only
//! descriptors ([`Dispatch`], [`Input::Encoded`], [`Input::Applied`]) come by. The same machines run
//! under tokio in [`crate::net`] and under a seeded clock in `dwcp-sim`.

pub(crate) mod allowance;
pub mod binding;
mod budget;
mod converge;
mod dirty;
mod fingerprint;
pub mod handover;
mod hot;
mod lanes;
pub mod leaves;
pub mod page_hash;
mod planted;
mod record;
mod shadow;
pub(crate) mod sink;
mod source;
mod stats;
pub mod verify;

pub use self::budget::EffortPolicy;
pub use self::converge::{OnStall, Verdict};
pub use self::dirty::DirtySet;
pub use self::fingerprint::{Fingerprint, FingerprintError};
pub use self::leaves::Leaves;
#[cfg(feature = "planted-bugs")]
pub use self::planted::Bug;
pub use self::record::{Record, RecordError, Standing};
pub use self::shadow::{ShadowFill, SlotId};
pub use self::sink::{Sink, SinkConfig};
pub use self::source::{Source, SourceConfig};
pub use self::stats::{HandoverStats, Histogram, Phase, Progress, RoundStats};

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::handover::Wish;
use crate::extent::{Extent, PageMask};
use crate::guest::{DirtyMap, GuestError, Pending};
use crate::wire::{
    AbortReason, ErrorCode, ErrorFrame, FenceEpoch, FencedLane, Frame, Framing, LaneId, Message, TransferId,
};

/// Time since the driver's epoch, which only the driver knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Duration);

impl Time {
    /// This long after the driver's epoch.
    pub const fn after_epoch(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Since the driver's epoch.
    pub const fn since_epoch(self) -> Duration {
        self.0
    }

    /// How long after `earlier`; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// What a driver can drive.
pub trait Machine {
    /// Something happened. Poll until `None` afterwards.
    fn handle(&mut self, now: Time, input: Input);

    /// The next thing to be done, in order. Outputs are queued when they arise, so that an idle poll
    /// costs a look at an empty queue.
    fn poll(&mut self) -> Option<Output>;

    /// When to feed [`Input::Tick`], if nothing else happens before.
    fn deadline(&self) -> Option<Time>;

    /// Figures so far.
    fn progress(&self) -> &Progress;
}

/// All that may happen to a machine. An input that the role does not expect is a bug of the driver
/// and is ignored.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The session begins: the handshake is done.
    Start,
    /// The deadline has passed.
    Tick,
    /// A frame came on the control lane.
    Frame(Frame),
    /// The control connection is lost. `clean` when the peer closed it properly.
    ControlDown {
        /// Whether the peer said so under TLS.
        clean: bool,
    },
    /// The control connection is re-made.
    ControlUp,
    /// The peer no longer knows this session (it was restarted).
    SessionLost,
    /// Source: a bulk lane has joined and may carry this many bytes.
    LaneUp {
        /// Which.
        lane: LaneId,
        /// Bytes that it may carry until more is granted.
        credit: u64,
    },
    /// Sink: a lane with a valid proof asks to join.
    LaneJoin {
        /// Which.
        lane: LaneId,
    },
    /// A lane's worker has ended and will report nothing more. At the source this includes lanes
    /// that could not be opened.
    LaneDown {
        /// Which.
        lane: LaneId,
    },
    /// Source: an extent has been read, hashed and encoded, and is about to be written.
    Encoded(Encoded),
    /// Sink: an extent has been verified and written to the guest.
    Applied(Applied),
    /// A lane carried something that must not be believed. At the sink its worker has stopped; at
    /// the source this can only be the control lane.
    LaneFault {
        /// Which.
        lane: LaneId,
        /// What it found.
        fault: SessionError,
    },
    /// Source: the guest's dirty log, cleared.
    Harvested {
        /// The pages written since the last harvest.
        dirty: DirtyMap,
        /// Whether more is certain to come.
        pending: Pending,
    },
    /// Source: the pages that the sink holds as they are.
    Recalled {
        /// Which.
        same: DirtyMap,
    },
    /// Source: the guest has stopped.
    Paused,
    /// Source: the state of its devices.
    Devices(Bytes),
    /// Sink: everything received is staged, and durable where it is a disk.
    Staged,
    /// Sink: the guest runs, or the image is visible.
    Running,
    /// The guest failed.
    GuestFailed(GuestError),
    /// The last record asked for is durable.
    Persisted,
    /// It could not be made durable.
    PersistFailed {
        /// What the system said.
        text: String,
    },
    /// Source: what may have been written of the record that failed is durably gone.
    Retracted,
    /// Source: nobody knows whether it is.
    RetractFailed {
        /// What the system said.
        text: String,
    },
    /// Somebody wants the transfer to end.
    Cancel,
    /// This node shuts down. What is not being switched over ends, and the peer is told why; the rest goes on until
    /// [`Input::Cancel`].
    Retire,
    /// Sink: its source has come with another session. Ends this one if lane 0 is lost and nothing is left that only
    /// this one can do; else it changes nothing.
    Superseded {
        /// The source offers the same transfer again, so it has not given up.
        again: bool,
    },
    /// What this node wants the lanes to carry, from now on.
    Prefer(Wish),
    /// Source: whether pages are compressed from now on. Zeros never travel.
    Compression(bool),
    /// A lane has ended as it was told to, after all below `end`, and its connection waits to be another. Its
    /// [`Input::LaneDown`] follows.
    LaneEnded(FencedLane),
    /// This epoch of the pair of peers is durable.
    Raised(FenceEpoch),
    /// Sink: what was applied is thrown away; the guest is zeros.
    Cleared,
    /// Source: a lane has made a message and waits for [`Output::Ship`]. The [`Input::Encoded`] of its extents came
    /// before.
    Prepared(Message),
    /// A new limit in bytes per second on all lanes together, or none.
    Bandwidth(Option<NonZeroU64>),
}

/// All that a machine may ask for.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send this on the control lane.
    Control(Frame),
    /// Source: re-make the control connection and answer with [`Input::ControlUp`],
    /// [`Input::ControlDown`] or [`Input::SessionLost`].
    Redial {
        /// As a new session, because the sink no longer knows this one.
        fresh: bool,
    },
    /// Source: open a bulk lane under this id.
    OpenLane(LaneId),
    /// Stop a lane's worker and answer with [`Input::LaneDown`] once it has ended.
    CloseLane(LaneId),
    /// Sink: the lane may join with this credit.
    AdmitLane {
        /// Which.
        lane: LaneId,
        /// Bytes that it may carry until more is granted.
        credit: u64,
    },
    /// Sink: it may not.
    RefuseLane {
        /// Which.
        lane: LaneId,
    },
    /// Sink: raise the lane's limit before the credit frame goes out.
    Grant {
        /// Which.
        lane: LaneId,
        /// Bytes in all.
        total: u64,
    },
    /// Source: read, hash, encode and write an extent on a lane.
    Send(Dispatch),
    /// Source: harvest the dirty log.
    Harvest,
    /// Source: find the pages that the guest knows, without reading them, to have the leaves that the sink holds. spec: R-2
    Recall {
        /// What the sink holds.
        held: Arc<Leaves>,
        /// Where that is not known: `held` is to [assume](Leaves::assume) these first. spec: O-9
        baseline: Option<Arc<Leaves>>,
    },
    /// Source: stop the guest.
    Pause,
    /// Source: let the guest run again.
    Resume,
    /// Source: save the state of the guest's devices.
    SaveDevices,
    /// Sink: load the devices' state, make everything durable.
    Stage {
        /// State of the devices.
        devices: Bytes,
    },
    /// Sink: run the guest, make the image visible. The point of no return is behind us.
    Run,
    /// Sink: throw away what was written.
    Discard,
    /// Sink: keep what was written for a later transfer of the same, if the guest can.
    Park,
    /// Sink: READY was promised and lane 0 is lost, so nobody here knows whether the source gave up.
    /// For the log: an operator may have to end it.
    Adrift,
    /// From now on lanes are opened and admitted in this epoch, and carry this.
    Engage {
        /// Of extents and promises.
        epoch: FenceEpoch,
        /// What lanes carry.
        framing: Framing,
    },
    /// Source: end this lane after the extent or message in its worker's hands, and keep its connection. Answer with
    /// [`Input::LaneEnded`], or only with [`Input::LaneDown`] if it is lost.
    LeaveLane {
        /// Which.
        lane: LaneId,
        /// The lane that its connection is from then on.
        next: LaneId,
    },
    /// Source: a lane on the connection that was kept for it. It has joined.
    AdoptLane(LaneId),
    /// Sink: end this lane after these extents or messages, and keep its connection. Answer as to
    /// [`Output::LeaveLane`].
    EndLane(FencedLane),
    /// Sink: what the lane carries next.
    Expect(Message),
    /// Source: write the message that was made.
    Ship(LaneId),
    /// Sink: throw away what was applied, and begin with zeros. Answer with [`Input::Cleared`].
    Clear,
    /// Make an epoch of this pair of peers durable, at least this one and never less than before; answer with
    /// [`Input::Raised`]. spec: O-7
    RaiseFence {
        /// The other of the pair.
        peer: Fingerprint,
        /// At least.
        least: FenceEpoch,
    },
    /// Make this record durable.
    Persist(Record),
    /// Remove the record of this transfer.
    Forget(TransferId),
    /// Source: durably remove what may have been written of the record that could not be made durable, and nothing else; answer
    /// with [`Input::Retracted`] or [`Input::RetractFailed`]. spec: S-5
    Retract(TransferId),
    /// The session is over. The last output.
    Finished(Outcome),
}

/// An extent on its way to a lane's worker.
#[derive(Debug)]
pub struct Dispatch {
    /// Which lane.
    pub lane: LaneId,
    /// Its place there.
    pub seq: u64,
    /// The pages to look at; those that the sink has already are not carried.
    pub extent: Extent,
    /// Pages whose leaf in [`Leaves`] is what the sink holds.
    pub known: PageMask,
    /// For each page its slot in the shadow, or none; empty when no page has one.
    pub slots: Vec<Option<SlotId>>,
    /// Pages whose slot holds what the sink holds.
    pub based: PageMask,
    /// How hard to compress.
    pub effort: dwcp_hde::Effort,
    /// Which of the offered dictionaries the sink holds: bit n for the n-th.
    pub dictionaries: u8,
    /// Which of the offered baselines the sink holds, counted from 0.
    pub baseline: Option<u8>,
}

/// What a source's worker reports before it writes an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Which lane.
    pub lane: LaneId,
    /// Which extent.
    pub seq: u64,
    /// Bytes of the frame, header included.
    pub wire_bytes: u64,
    /// Pages that it carries.
    pub carried: u16,
    /// Pages found to be at the sink already.
    pub same: u16,
    /// Time spent to read, hash and encode.
    pub encode: Duration,
}

impl Default for LaneId {
    fn default() -> Self {
        Self::CONTROL
    }
}

/// What a sink's worker reports after it wrote an extent to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Which lane.
    pub lane: LaneId,
    /// Which extent.
    pub seq: u64,
    /// Bytes of the frame, header included.
    pub wire_bytes: u64,
    /// Pages written.
    pub pages: u16,
    /// Pages, of all lanes, that would be there after a crash.
    pub durable: u64,
}

/// How a session ended.
#[derive(Debug)]
pub struct Outcome {
    /// Who may run the guest now.
    pub owner: Owner,
    /// Why it is not what was wanted, if so.
    pub error: Option<SessionError>,
}

/// Who may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It runs at the source, as before.
    Source,
    /// It runs at the sink; the image is visible there.
    Sink,
    /// Nobody: the source has given up and does not know whether the sink runs. Both stay paused.
    InDoubt,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "the source",
            Self::Sink => "the sink",
            Self::InDoubt => "nobody (in doubt)",
        })
    }
}

/// Why a session ended otherwise than hoped; each variant says whose fault it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer broke the protocol.
    #[error("the peer broke the protocol on {lane} at {position}: {what}")]
    PeerViolation {
        /// What to tell it.
        code: ErrorCode,
        /// Where.
        lane: LaneId,
        /// Sequence number, or byte offset within a frame.
        position: u64,
        /// What it did.
        what: String,
    },
    /// Bytes arrived other than they were sent: a fault of memory, disk or software at either end.
    #[error("integrity: {what} ({lane}, extent {position}); nothing of it was made visible")]
    Integrity {
        /// What to tell the peer.
        code: ErrorCode,
        /// Where.
        lane: LaneId,
        /// Sequence number.
        position: u64,
        /// What does not match.
        what: String,
    },
    /// The peer found a fault of ours, or failed itself.
    #[error("the peer reports: {} ({:?}, {}, position {})", .0.text, .0.code, .0.lane, .0.position)]
    PeerReports(ErrorFrame),
    /// The peer ended the transfer.
    #[error("the peer ended the transfer ({reason:?}): {text}")]
    PeerAborted {
        /// Why.
        reason: AbortReason,
        /// In its words.
        text: String,
    },
    /// No connection for too long.
    #[error("no connection to the peer for {} s", .silence.as_secs())]
    Unreachable {
        /// How long.
        silence: Duration,
    },
    /// Lanes were lost again and again until their ids were used up, and pages are left to be sent.
    #[error(
        "all {lanes} lane ids of this session are used up, because its lanes are lost again and again; check the link \
         and what stands between the hosts, and start the transfer again"
    )]
    LanesUsedUp {
        /// Lanes that were opened.
        lanes: u16,
    },
    /// Dirty pages come faster than they can be sent.
    #[error(transparent)]
    NotConverging(#[from] Verdict),
    /// The lanes should carry something else, and one end cannot.
    #[error(
        "the transfer has to go on as {wanted}, which the peer cannot carry; the guest stays where it is - see \
         `dwcp flag show` for who decided that, and send it again after the flag or the peer has changed"
    )]
    NoFramingLeft {
        /// What is wanted.
        wanted: Framing,
    },
    /// The sink does not say that its fence is up.
    #[error("the peer did not answer the hand-over within {} s; the guest runs here - try again", .silence.as_secs())]
    HandoverUnanswered {
        /// How long.
        silence: Duration,
    },
    /// Our own guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Our own state could not be made durable.
    #[error("cannot write the record of the transfer: {text}; free or repair the disk that holds it")]
    Record {
        /// What the system said.
        text: String,
    },
    /// Somebody cancelled it here.
    #[error("cancelled")]
    Cancelled,
    /// This node shuts down. The peer may come back to the next one.
    #[error("this node is being stopped; what is stored of the transfer waits for its sender")]
    ShuttingDown,
    /// Sink: its source lost this session and has come with another one, which goes on with what is stored.
    #[error("superseded by a newer session of the same transfer, which goes on with what is stored")]
    Superseded,
    /// The peer forgot the session before the switch-over.
    #[error("the peer was restarted and no longer knows this transfer; start it again")]
    PeerRestarted,
}

impl SessionError {
    /// Whether it says nothing against the pages that arrived.
    pub(crate) fn spares_pages(&self) -> bool {
        if let Self::PeerReports(error) = self {
            return !error.code.is_integrity();
        }
        matches!(
            self,
            Self::PeerAborted { .. }
                | Self::Unreachable { .. }
                | Self::Cancelled
                | Self::ShuttingDown
                | Self::Superseded
                | Self::Record { .. }
                | Self::Guest(GuestError::NoSpace { .. })
        )
    }

    /// A violation found in a control frame.
    pub(crate) fn unexpected(what: impl Into<String>) -> Self {
        Self::PeerViolation { code: ErrorCode::Unexpected, lane: LaneId::CONTROL, position: 0, what: what.into() }
    }

    /// What to tell the peer, when it is the peer's business. spec: X-1
    pub(crate) fn frame(&self) -> Option<Frame> {
        let abort = |reason, text: String| Some(Frame::Abort(crate::wire::Abort { reason, text }));
        match self {
            Self::PeerViolation { code, lane, position, what } | Self::Integrity { code, lane, position, what } => {
                Some(Frame::Error(ErrorFrame { code: *code, lane: *lane, position: *position, text: what.clone() }))
            }
            // spec: O-9
            Self::Guest(GuestError::Baseline { .. }) => abort(AbortReason::Baseline, self.to_string()),
            Self::Guest(_)
            | Self::Record { .. }
            | Self::LanesUsedUp { .. }
            | Self::HandoverUnanswered { .. }
            | Self::NoFramingLeft { .. } => abort(AbortReason::LocalFailure, self.to_string()),
            Self::NotConverging(_) => abort(AbortReason::NotConverging, self.to_string()),
            Self::Cancelled => abort(AbortReason::Cancelled, self.to_string()),
            Self::ShuttingDown => abort(AbortReason::Shutdown, self.to_string()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
