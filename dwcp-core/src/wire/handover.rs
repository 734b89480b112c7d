//! The frames by which lanes change their framing in mid-transfer, and by which a lane of messages is told what
//! comes next.

use super::error::{Fault, Malformed};
use super::fields::{Put, Reader};
use super::handshake::{read_bool, read_bulk_lane};
use super::limits::{MAX_ACK_LANES, MAX_HANDOVER_NODES, MAX_MESSAGE_BYTES, MAX_MESSAGE_EXTENTS};
use super::{Digest, FenceEpoch, LaneId, TransferId};

/// What a bulk lane carries. Everything else of a session is the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Framing {
    /// Version 1's messages, each announced on lane 0.
    Messages,
    /// Extents, as version 3 has them.
    #[default]
    Extents,
}

impl Framing {
    /// The protocol version that is named after it.
    pub fn version(self) -> u8 {
        match self {
            Self::Messages => 1,
            Self::Extents => 3,
        }
    }

    /// The framing of a protocol version.
    pub fn of_version(version: u8) -> Option<Self> {
        [Self::Messages, Self::Extents].into_iter().find(|framing| framing.version() == version)
    }

    fn put(self, out: &mut Vec<u8>) {
        out.put_u8(self.version());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let at = r.at();
        let byte = r.u8()?;
        let what = Malformed::Value { field: "framing", value: byte.into() };
        Self::of_version(byte).ok_or(Fault { at, what })
    }
}

impl std::fmt::Display for Framing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}", self.version())
    }
}

/// The framing that the sink wants from now on. spec: V-1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefer {
    /// Which.
    pub framing: Framing,
    /// What was applied so far is not to be trusted.
    pub restart: bool,
}

/// From here on nothing of an older epoch is applied. spec: V-3
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Which transfer.
    pub transfer: TransferId,
    /// Its epoch from here on.
    pub epoch: FenceEpoch,
    /// What its lanes carry from here on.
    pub framing: Framing,
    /// The sink throws away what it has and begins with zeros.
    pub restart: bool,
    /// The lanes that end here.
    pub lanes: Vec<FencedLane>,
}

/// A lane that ends after an extent, and whose connection goes on as another lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FencedLane {
    /// The lane that ends.
    pub lane: LaneId,
    /// Where: all its sequence numbers are below this.
    pub end: u64,
    /// The lane that its connection is from there on.
    pub next: LaneId,
}

/// The fence is durable at the sink, and this is what it holds. spec: V-4
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Which transfer.
    pub transfer: TransferId,
    /// The new epoch.
    pub epoch: FenceEpoch,
    /// For each lane of the fence: what of it was applied.
    pub lanes: Vec<HandedLane>,
    /// Digests over what the sink holds, of the lowest level of the tree that has few enough, region by region.
    pub nodes: Vec<Digest>,
}

/// What became of a fenced lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedLane {
    /// The lane that ended.
    pub lane: LaneId,
    /// All sequence numbers below this were applied, and nothing else.
    pub applied: u64,
    /// What the lane on its connection may carry; 0 if the connection did not survive.
    pub credit: u64,
}

/// What a lane of messages carries next. spec: V-6
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which lane.
    pub lane: LaneId,
    /// The sequence number of its first extent.
    pub first: u64,
    /// Extents in it.
    pub extents: u16,
    /// Pages in them.
    pub pages: u32,
    /// Bytes on the lane.
    pub bytes: u32,
    /// Over epoch, place and leaves of the pages.
    pub digest: Digest,
}

impl Prefer {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        self.framing.put(out);
        out.put_u8(u8::from(self.restart));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self { framing: Framing::read(r)?, restart: read_bool(r, "restart")? })
    }
}

impl Fence {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u64(self.epoch.0);
        self.framing.put(out);
        out.put_u8(u8::from(self.restart));
        put_count(self.lanes.len(), out);
        for fenced in &self.lanes {
            out.put_u16(fenced.lane.0);
            out.put_u64(fenced.end);
            out.put_u16(fenced.next.0);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (transfer, epoch) = (TransferId(r.array()?), FenceEpoch(r.u64()?));
        let (framing, restart) = (Framing::read(r)?, read_bool(r, "restart")?);
        let lanes =
            read_lanes(r, |r| Ok(FencedLane { lane: read_bulk_lane(r)?, end: r.u64()?, next: read_bulk_lane(r)? }))?;
        Ok(Self { transfer, epoch, framing, restart, lanes })
    }
}

impl Handover {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u64(self.epoch.0);
        put_count(self.lanes.len(), out);
        for handed in &self.lanes {
            out.put_u16(handed.lane.0);
            out.put_u64(handed.applied);
            out.put_u64(handed.credit);
        }
        self.nodes.iter().for_each(|node| out.put(&node.0));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (transfer, epoch) = (TransferId(r.array()?), FenceEpoch(r.u64()?));
        let lanes =
            read_lanes(r, |r| Ok(HandedLane { lane: read_bulk_lane(r)?, applied: r.u64()?, credit: r.u64()? }))?;
        let at = r.at();
        let (nodes, rest) = r.remainder().as_chunks::<32>();
        if !rest.is_empty() {
            return Err(Fault { at, what: Malformed::Truncated { missing: 32 - rest.len() } });
        }
        if nodes.len() > MAX_HANDOVER_NODES {
            let value = u64::try_from(nodes.len()).unwrap_or(u64::MAX);
            return Err(Fault { at, what: Malformed::Value { field: "number of nodes", value } });
        }
        Ok(Self { transfer, epoch, lanes, nodes: nodes.iter().copied().map(Digest).collect() })
    }
}

impl Message {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u16(self.lane.0);
        out.put_u64(self.first);
        out.put_u16(self.extents);
        out.put_u32(self.pages);
        out.put_u32(self.bytes);
        out.put(&self.digest.0);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (lane, first) = (read_bulk_lane(r)?, r.u64()?);
        let at = r.at();
        let (extents, pages, bytes) = (r.u16()?, r.u32()?, r.u32()?);
        let value = |field, value: u32| Err(Fault { at, what: Malformed::Value { field, value: value.into() } });
        if extents == 0 || extents > MAX_MESSAGE_EXTENTS {
            return value("extents of a message", extents.into());
        }
        if usize::try_from(pages).map_or(true, |pages| pages > usize::from(extents) * crate::extent::MAX_EXTENT_PAGES) {
            return value("pages of a message", pages);
        }
        if bytes > MAX_MESSAGE_BYTES {
            return value("bytes of a message", bytes);
        }
        Ok(Self { lane, first, extents, pages, bytes, digest: Digest(r.array()?) })
    }
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    out.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
}

fn read_lanes<T>(r: &mut Reader<'_>, read: impl Fn(&mut Reader<'_>) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    let at = r.at();
    let count = usize::from(r.u16()?);
    if count > MAX_ACK_LANES {
        let value = u64::try_from(count).unwrap_or(u64::MAX);
        return Err(Fault { at, what: Malformed::Value { field: "number of lanes", value } });
    }
    (0..count).map(|_| read(r)).collect()
}
