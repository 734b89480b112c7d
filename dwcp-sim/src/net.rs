//! Connections: a control connection is two ordered directions, a lane one.

use std::collections::VecDeque;

use dwcp_core::Extent;
use dwcp_core::session::{Applied, Dispatch};
use dwcp_core::wire::{Digest, FenceEpoch, FencedLane, Framing, LaneId, Message};

use crate::guest::Content;
use crate::plan::Side;

/// One direction of an ordered, reliable stream, until it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// What is sent arrives.
    pub alive: bool,
    /// Nothing arrives before this: what was sent earlier arrives earlier, and stalls hold back all.
    pub not_before: u64,
}

impl Stream {
    /// A fresh one.
    pub const OPEN: Self = Self { alive: true, not_before: 0 };

    /// When something arrives that would do so at `at` if nothing was in its way.
    pub fn arrival(&mut self, at: u64) -> u64 {
        self.not_before = self.not_before.max(at);
        self.not_before
    }
}

/// A control connection.
#[derive(Clone, Copy, Debug)]
pub struct Conn {
    /// Frames for the source.
    pub to_source: Stream,
    /// Frames for the sink.
    pub to_sink: Stream,
}

impl Conn {
    /// A fresh one.
    pub const OPEN: Self = Self { to_source: Stream::OPEN, to_sink: Stream::OPEN };

    /// The direction towards a side.
    pub fn towards(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Source => &mut self.to_source,
            Side::Sink => &mut self.to_sink,
        }
    }
}

/// Where an end of a lane stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not there yet.
    Joining,
    /// Its worker works.
    Open,
    /// Its worker was told to stop.
    Stopping,
    /// Its worker has ended.
    Gone,
}

/// An extent under way.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Place in the lane.
    pub seq: u64,
    /// Of the transfer.
    pub epoch: FenceEpoch,
    /// Over place and leaves.
    pub digest: Digest,
    /// The pages.
    pub extent: Extent,
    /// What they hold.
    pub pages: Vec<Carried>,
    /// Bytes of the frame.
    pub wire_bytes: u64,
}

/// One page under way.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Its content.
    pub content: Content,
    /// As a delta against this content.
    pub base: Option<Content>,
}

/// An extent in the hands of a source's worker: copied, not yet encoded.
#[derive(Debug)]
pub struct Copied {
    /// What was asked for.
    pub dispatch: Dispatch,
    /// The pages as they were read.
    pub pages: Vec<Content>,
    /// When.
    pub at: u64,
}

/// A bulk lane with the workers at both ends.
#[derive(Debug)]
pub struct Lane {
    /// Which.
    pub id: LaneId,
    /// The source's worker.
    pub source: End,
    /// Dispatches that it has not begun.
    pub todo: VecDeque<Dispatch>,
    /// What is in its hands: one extent, or those of a message.
    pub copied: Vec<Copied>,
    /// A message that waits for its word to go.
    pub made: Vec<Parcel>,
    /// It was told to end, and as which lane its connection goes on.
    pub leaving: Option<LaneId>,
    /// Extents that it has written.
    pub written: u64,
    /// What it carries, and in which epoch.
    pub framing: Framing,
    /// Of the extents that it carries.
    pub epoch: FenceEpoch,
    /// It has something scheduled.
    pub source_busy: bool,
    /// The stream between them.
    pub stream: Stream,
    /// The sink's worker.
    pub sink: End,
    /// Extents that arrived.
    pub inbox: VecDeque<Parcel>,
    /// It has something scheduled.
    pub sink_busy: bool,
    /// The message that is due.
    pub expected: Option<Message>,
    /// It was told where to end.
    pub ends: Option<FencedLane>,
    /// Extents written and not yet reported to the machine.
    pub reports: VecDeque<Applied>,
    /// The sink's limit.
    pub granted: u64,
    /// Bytes that arrived.
    pub arrived: u64,
    /// Sequence number that must come next.
    pub next_seq: u64,
    /// The sink has answered BURIED.
    pub buried: bool,
}

impl Lane {
    /// A lane that the source dials.
    pub fn dialled(id: LaneId, (epoch, framing): (FenceEpoch, Framing)) -> Self {
        Self {
            id,
            source: End::Joining,
            todo: VecDeque::new(),
            copied: Vec::new(),
            made: Vec::new(),
            leaving: None,
            written: 0,
            framing,
            epoch,
            source_busy: false,
            stream: Stream::OPEN,
            sink: End::Joining,
            inbox: VecDeque::new(),
            sink_busy: false,
            expected: None,
            ends: None,
            reports: VecDeque::new(),
            granted: 0,
            arrived: 0,
            next_seq: 0,
            buried: false,
        }
    }
}
