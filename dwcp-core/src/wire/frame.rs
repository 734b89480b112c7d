use std::fmt;

use bytes::Bytes;

use super::error::{Fault, Malformed};
use super::fields::{Put, Reader};
use super::handshake::read_bulk_lane;
use super::limits::{
    DEVICE_STATE_CHUNK, MAX_ACK_LANES, MAX_DEVICE_STATE, MAX_HAVE_LEAVES, MAX_NAME_BYTES, MAX_TEXT_BYTES,
};
use super::{
    Accept, Bind, Digest, FRAME_HEADER_BYTES, Fence, FenceEpoch, FrameHeader, FrameType, Handover, Hello, HelloAck,
    Join, Joined, LaneId, Message, Offer, Prefer, TransferId,
};
use crate::extent::RegionId;

/// One message on a lane, but for extents (see [`super::ExtentHead`]). [`Frame::encode`] and
/// [`Frame::decode`] are its only ways to and from bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// Source: offers versions and features.
    Hello(Hello),
    /// Sink: chooses.
    HelloAck(HelloAck),
    /// Source: confirms.
    Bind(Bind),
    /// Source: a bulk lane joins its session.
    Join(Join),
    /// Sink: it may.
    Joined(Joined),
    /// Source: what is to be moved.
    Offer(Offer),
    /// Sink: what it holds of it from before.
    Have(Have),
    /// Sink: takes it.
    Accept(Accept),
    /// Sink: what is applied.
    Ack(Ack),
    /// Sink: what a lane may carry.
    Credit(Credit),
    /// Source: a lane is dead.
    Bury(Bury),
    /// Sink: its worker has stopped.
    Buried(Buried),
    /// Source: the guest is paused.
    Pause(Pause),
    /// Source: a part of the devices' state.
    DeviceState(DeviceState),
    /// Sink: all is here and staged.
    Ready(Ready),
    /// Source: it has given up.
    Run(Run),
    /// Sink: the guest runs.
    Running(Running),
    /// Either: ends the transfer.
    Abort(Abort),
    /// Either: found a fault.
    Error(ErrorFrame),
    /// Either.
    Ping(Ping),
    /// Either.
    Pong(Ping),
    /// Sink: which framing it wants.
    Prefer(Prefer),
    /// Source: lanes end.
    Fence(Fence),
    /// Sink: what it holds.
    Handover(Handover),
    /// Source: what a lane carries next.
    Message(Message),
}

/// A transfer's name: 1 to 64 of `[a-z0-9._-]`, and neither `.` nor `..` nor with a leading dot.
/// spec: O-2
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// Anything but `[a-z0-9._-]{1,64}`, or a leading dot (hidden files and `..`).
    pub fn new(name: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(NameError::Length { bytes: name.len() });
        }
        if name.starts_with('.') {
            return Err(NameError::LeadingDot);
        }
        match name.bytes().position(|byte| !allowed(byte)) {
            Some(at) => Err(NameError::Character { at }),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

/// Why text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty or over 64 bytes.
    #[error("a name has 1 to 64 characters, this has {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A character outside `[a-z0-9._-]`.
    #[error("a name is made of a-z, 0-9, '.', '_' and '-'; character {at} is none of them")]
    Character {
        /// Where, from 0.
        at: usize,
    },
    /// It would be a hidden file, or `.` or `..`.
    #[error("a name does not start with a dot")]
    LeadingDot,
}

/// Pages that the sink holds, from a transfer that was cut off. spec: R-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// Which region.
    pub region: RegionId,
    /// The first page.
    pub first: u32,
    /// The leaf of each page from there on, 1 to 2048 of them.
    pub leaves: Vec<Digest>,
}

/// What the sink has verified and applied. spec: A-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Pages that would be there after a crash of the sink; 0 where it keeps nothing across one. spec: A-3
    pub durable: u64,
    /// For each lane: all sequence numbers below this are applied.
    pub lanes: Vec<(LaneId, u64)>,
}

/// What a lane may carry in all. spec: C-1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Which lane.
    pub lane: LaneId,
    /// Bytes of extent frames, headers included, since the lane joined. It never falls.
    pub total: u64,
}

/// Asks the sink to stop a lane's worker and to say what it applied. spec: B-1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bury {
    /// Which lane.
    pub lane: LaneId,
}

/// The lane's worker has stopped: nothing more of this lane will ever be applied. spec: B-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buried {
    /// Which lane.
    pub lane: LaneId,
    /// All sequence numbers below this were applied. The one at it may have been written, too: its
    /// worker was stopped before it could say so, and the source sends it again.
    pub applied: u64,
}

/// The guest is paused and every page has been sent. spec: S-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Counts the pauses of this transfer; answers name it.
    pub attempt: u32,
    /// Root over all pages, see `session::leaves`.
    pub root: Digest,
    /// Bytes of device state that follow.
    pub device_bytes: u64,
    /// Their BLAKE3.
    pub device_digest: Digest,
    /// For each open lane: where its extents of this pause end. All of them precede the root.
    pub finals: Vec<(LaneId, u64)>,
}

/// A part of the state of the guest's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// The pause that it belongs to.
    pub attempt: u32,
    /// Its place; parts come in order without gaps. spec: S-2
    pub offset: u64,
    /// 1 byte to 256 KiB.
    pub bytes: Bytes,
}

/// The sink holds every page and the device state, staged, and durable where it is a disk. spec: S-3
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which incarnation.
    pub epoch: FenceEpoch,
    /// Which pause.
    pub attempt: u32,
    /// The sink's own root.
    pub root: Digest,
    /// BLAKE3 of the device state received.
    pub device_digest: Digest,
}

/// The source has given up the guest for good: the sink owns it. spec: S-5
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which incarnation.
    pub epoch: FenceEpoch,
    /// Which pause.
    pub attempt: u32,
    /// The root both agreed on.
    pub root: Digest,
}

/// The guest runs at the sink, or the image is visible there. spec: S-7
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which incarnation.
    pub epoch: FenceEpoch,
}

/// Ends the transfer without a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Why.
    pub reason: AbortReason,
    /// A sentence for the operator.
    pub text: String,
}

/// Why a transfer is ended without a fault of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AbortReason {
    /// Somebody cancelled it.
    Cancelled,
    /// The sink's policy refuses the offer.
    Refused,
    /// It does not converge.
    NotConverging,
    /// The sender's guest or disk failed.
    LocalFailure,
    /// The node shuts down.
    Shutdown,
    /// The sink cannot provide a page of the baseline that was agreed on. spec: O-9
    Baseline,
}

/// The sender found a fault of the receiver of this frame, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFrame {
    /// What kind.
    pub code: ErrorCode,
    /// The lane it was found on.
    pub lane: LaneId,
    /// The sequence number there, or a byte offset for a malformed frame.
    pub position: u64,
    /// A sentence for the operator.
    pub text: String,
}

/// Codes of [`ErrorFrame`]; the blame is in the first digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Bytes that are no frame.
    Malformed,
    /// A frame that this state does not allow.
    Unexpected,
    /// An extent outside the layout or out of sequence, or a block that claims more than its extent may hold.
    BadExtent,
    /// More bytes than were granted.
    CreditExceeded,
    /// A lane that may not join.
    JoinRejected,
    /// No version or feature in common, or a proof that does not match.
    Negotiation,
    /// The transfer or session is not known here.
    Unknown,
    /// More frames that move nothing, in a time, than an honest peer has use for.
    Flood,
    /// A digest of an extent does not match its plain bytes.
    ExtentDigest,
    /// The roots differ.
    RootMismatch,
    /// The device state's digest differs.
    DeviceDigest,
    /// The block of an extent cannot be decoded.
    BadBlock,
    /// The sender's own guest, disk or memory failed.
    Local,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Unexpected,
        Self::BadExtent,
        Self::CreditExceeded,
        Self::JoinRejected,
        Self::Negotiation,
        Self::Unknown,
        Self::Flood,
        Self::ExtentDigest,
        Self::RootMismatch,
        Self::DeviceDigest,
        Self::BadBlock,
        Self::Local,
    ];

    /// Its number: 1xx the peer broke the protocol, 2xx integrity, 3xx the sender itself.
    pub fn number(self) -> u16 {
        match self {
            Self::Malformed => 100,
            Self::Unexpected => 101,
            Self::BadExtent => 102,
            Self::CreditExceeded => 103,
            Self::JoinRejected => 104,
            Self::Negotiation => 105,
            Self::Unknown => 106,
            Self::Flood => 107,
            Self::ExtentDigest => 200,
            Self::RootMismatch => 201,
            Self::DeviceDigest => 202,
            Self::BadBlock => 203,
            Self::Local => 300,
        }
    }

    /// Whether bytes arrived other than they were sent.
    pub fn is_integrity(self) -> bool {
        matches!(self, Self::ExtentDigest | Self::RootMismatch | Self::DeviceDigest | Self::BadBlock)
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }
}

/// A question with a number, or its answer with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Echoed.
    pub id: u64,
}

impl Frame {
    /// Its type.
    pub fn frame_type(&self) -> FrameType {
        match self {
            Self::Hello(_) => FrameType::Hello,
            Self::HelloAck(_) => FrameType::HelloAck,
            Self::Bind(_) => FrameType::Bind,
            Self::Join(_) => FrameType::Join,
            Self::Joined(_) => FrameType::Joined,
            Self::Offer(_) => FrameType::Offer,
            Self::Have(_) => FrameType::Have,
            Self::Accept(_) => FrameType::Accept,
            Self::Ack(_) => FrameType::Ack,
            Self::Credit(_) => FrameType::Credit,
            Self::Bury(_) => FrameType::Bury,
            Self::Buried(_) => FrameType::Buried,
            Self::Pause(_) => FrameType::Pause,
            Self::DeviceState(_) => FrameType::DeviceState,
            Self::Ready(_) => FrameType::Ready,
            Self::Run(_) => FrameType::Run,
            Self::Running(_) => FrameType::Running,
            Self::Abort(_) => FrameType::Abort,
            Self::Error(_) => FrameType::Error,
            Self::Ping(_) => FrameType::Ping,
            Self::Pong(_) => FrameType::Pong,
            Self::Prefer(_) => FrameType::Prefer,
            Self::Fence(_) => FrameType::Fence,
            Self::Handover(_) => FrameType::Handover,
            Self::Message(_) => FrameType::Message,
        }
    }

    /// Appends the whole frame, header included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put(&[0; FRAME_HEADER_BYTES]);
        self.put_body(out);
        let body = out.len() - start - FRAME_HEADER_BYTES;
        debug_assert!(body <= self.frame_type().limit(), "our own frame exceeds its limit");
        let header = FrameHeader::new(self.frame_type(), u32::try_from(body).unwrap_or(u32::MAX));
        if let Some(place) = out.get_mut(start..start + FRAME_HEADER_BYTES) {
            place.copy_from_slice(&header.encode());
        }
    }

    fn put_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => hello.put(out),
            Self::HelloAck(ack) => ack.put(out),
            Self::Bind(bind) => bind.put(out),
            Self::Join(join) => join.put(out),
            Self::Joined(joined) => joined.put(out),
            Self::Offer(offer) => offer.put(out),
            Self::Have(have) => have.put(out),
            Self::Accept(accept) => accept.put(out),
            Self::Ack(ack) => ack.put(out),
            Self::Credit(credit) => {
                out.put_u16(credit.lane.0);
                out.put_u64(credit.total);
            }
            Self::Bury(bury) => out.put_u16(bury.lane.0),
            Self::Buried(buried) => {
                out.put_u16(buried.lane.0);
                out.put_u64(buried.applied);
            }
            Self::Pause(pause) => pause.put(out),
            Self::DeviceState(state) => {
                out.put_u32(state.attempt);
                out.put_u64(state.offset);
                out.put(&state.bytes);
            }
            Self::Ready(ready) => ready.put(out),
            Self::Run(run) => run.put(out),
            Self::Running(running) => {
                out.put(&running.transfer.0);
                out.put_u64(running.epoch.0);
            }
            Self::Abort(abort) => {
                out.put_u8(abort.reason.byte());
                put_text(&abort.text, out);
            }
            Self::Error(error) => {
                out.put_u16(error.code.number());
                out.put_u16(error.lane.0);
                out.put_u64(error.position);
                put_text(&error.text, out);
            }
            Self::Ping(ping) | Self::Pong(ping) => out.put_u64(ping.id),
            Self::Prefer(prefer) => prefer.put(out),
            Self::Fence(fence) => fence.put(out),
            Self::Handover(handover) => handover.put(out),
            Self::Message(message) => message.put(out),
        }
    }

    /// Reads the body of a frame whose header was [decoded](FrameHeader::decode). `None` is an
    /// optional frame that this version does not know, to be skipped. spec: W-3, W-7
    ///
    /// # Errors
    /// Whatever is not exactly one valid body; an extent, which has its own decoder.
    pub fn decode(frame: u8, body: &[u8]) -> Result<Option<Self>, Fault> {
        let Some(known) = FrameType::from_byte(frame) else {
            return Ok(None);
        };
        let mut reader = Reader::new(body);
        let decoded = Self::read_body(known, &mut reader)?;
        reader.end()?;
        Ok(Some(decoded))
    }

    fn read_body(known: FrameType, r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(match known {
            FrameType::Hello => Self::Hello(Hello::read(r)?),
            FrameType::HelloAck => Self::HelloAck(HelloAck::read(r)?),
            FrameType::Bind => Self::Bind(Bind::read(r)?),
            FrameType::Join => Self::Join(Join::read(r)?),
            FrameType::Joined => Self::Joined(Joined::read(r)?),
            FrameType::Offer => Self::Offer(Offer::read(r)?),
            FrameType::Have => Self::Have(Have::read(r)?),
            FrameType::Accept => Self::Accept(Accept::read(r)?),
            FrameType::Extent => return Err(r.fault(Malformed::Misplaced)),
            FrameType::Ack => Self::Ack(Ack::read(r)?),
            FrameType::Credit => Self::Credit(Credit { lane: read_bulk_lane(r)?, total: r.u64()? }),
            FrameType::Bury => Self::Bury(Bury { lane: read_bulk_lane(r)? }),
            FrameType::Buried => Self::Buried(Buried { lane: read_bulk_lane(r)?, applied: r.u64()? }),
            FrameType::Pause => Self::Pause(Pause::read(r)?),
            FrameType::DeviceState => Self::DeviceState(DeviceState::read(r)?),
            FrameType::Ready => Self::Ready(Ready::read(r)?),
            FrameType::Run => Self::Run(Run::read(r)?),
            FrameType::Running => {
                Self::Running(Running { transfer: TransferId(r.array()?), epoch: FenceEpoch(r.u64()?) })
            }
            FrameType::Abort => Self::Abort(Abort { reason: AbortReason::read(r)?, text: read_text(r)? }),
            FrameType::Error => Self::Error(ErrorFrame::read(r)?),
            FrameType::Ping => Self::Ping(Ping { id: r.u64()? }),
            FrameType::Pong => Self::Pong(Ping { id: r.u64()? }),
            FrameType::Prefer => Self::Prefer(Prefer::read(r)?),
            FrameType::Fence => Self::Fence(Fence::read(r)?),
            FrameType::Handover => Self::Handover(Handover::read(r)?),
            FrameType::Message => Self::Message(Message::read(r)?),
        })
    }
}

impl Have {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u16(self.region.0);
        out.put_u32(self.first);
        self.leaves.iter().for_each(|leaf| out.put(&leaf.0));
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (region, first) = (RegionId(r.u16()?), r.u32()?);
        let at = r.at();
        let (leaves, rest) = r.remainder().as_chunks::<32>();
        if leaves.is_empty() || leaves.len() > MAX_HAVE_LEAVES {
            let value = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
            return Err(Fault { at, what: Malformed::Value { field: "number of leaves", value } });
        }
        if !rest.is_empty() {
            return Err(Fault { at, what: Malformed::Truncated { missing: 32 - rest.len() } });
        }
        Ok(Self { region, first, leaves: leaves.iter().copied().map(Digest).collect() })
    }
}

impl Ack {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.durable);
        put_lanes(&self.lanes, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let durable = r.u64()?;
        let at = r.at();
        let lanes = read_lanes(r)?;
        if lanes.is_empty() {
            return Err(Fault { at, what: Malformed::Value { field: "number of lanes", value: 0 } });
        }
        Ok(Self { durable, lanes })
    }
}

/// A sequence number for each of some lanes.
fn put_lanes(lanes: &[(LaneId, u64)], out: &mut Vec<u8>) {
    out.put_u16(u16::try_from(lanes.len()).unwrap_or(u16::MAX));
    for (lane, seq) in lanes {
        out.put_u16(lane.0);
        out.put_u64(*seq);
    }
}

fn read_lanes(r: &mut Reader<'_>) -> Result<Vec<(LaneId, u64)>, Fault> {
    let at = r.at();
    let count = usize::from(r.u16()?);
    if count > MAX_ACK_LANES {
        let value = u64::try_from(count).unwrap_or(u64::MAX);
        return Err(Fault { at, what: Malformed::Value { field: "number of lanes", value } });
    }
    let mut lanes = Vec::with_capacity(count);
    for _ in 0..count {
        lanes.push((read_bulk_lane(r)?, r.u64()?));
    }
    Ok(lanes)
}

impl Pause {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.attempt);
        out.put(&self.root.0);
        out.put_u64(self.device_bytes);
        out.put(&self.device_digest.0);
        put_lanes(&self.finals, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (attempt, root) = (r.u32()?, Digest(r.array()?));
        let at = r.at();
        let device_bytes = r.u64()?;
        if device_bytes > MAX_DEVICE_STATE {
            return Err(Fault { at, what: Malformed::TooLong { length: device_bytes, limit: MAX_DEVICE_STATE } });
        }
        let device_digest = Digest(r.array()?);
        Ok(Self { attempt, root, device_bytes, device_digest, finals: read_lanes(r)? })
    }
}

impl DeviceState {
    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (attempt, offset) = (r.u32()?, r.u64()?);
        let at = r.at();
        let bytes = r.remainder();
        if bytes.is_empty() || bytes.len() > DEVICE_STATE_CHUNK {
            let value = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return Err(Fault { at, what: Malformed::Value { field: "bytes of device state", value } });
        }
        Ok(Self { attempt, offset, bytes: Bytes::copy_from_slice(bytes) })
    }
}

impl Ready {
    fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u64(self.epoch.0);
        out.put_u32(self.attempt);
        out.put(&self.root.0);
        out.put(&self.device_digest.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            transfer: TransferId(r.array()?),
            epoch: FenceEpoch(r.u64()?),
            attempt: r.u32()?,
            root: Digest(r.array()?),
            device_digest: Digest(r.array()?),
        })
    }
}

impl Run {
    fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u64(self.epoch.0);
        out.put_u32(self.attempt);
        out.put(&self.root.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            transfer: TransferId(r.array()?),
            epoch: FenceEpoch(r.u64()?),
            attempt: r.u32()?,
            root: Digest(r.array()?),
        })
    }
}

impl AbortReason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Cancelled, Self::Refused, Self::NotConverging, Self::LocalFailure, Self::Shutdown, Self::Baseline];

    fn byte(self) -> u8 {
        match self {
            Self::Cancelled => 1,
            Self::Refused => 2,
            Self::NotConverging => 3,
            Self::LocalFailure => 4,
            Self::Shutdown => 5,
            Self::Baseline => 6,
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let at = r.at();
        let byte = r.u8()?;
        let what = Malformed::Value { field: "abort reason", value: byte.into() };
        Self::ALL.into_iter().find(|reason| reason.byte() == byte).ok_or(Fault { at, what })
    }
}

impl ErrorFrame {
    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let at = r.at();
        let number = r.u16()?;
        let what = Malformed::Value { field: "error code", value: number.into() };
        let code = ErrorCode::from_number(number).ok_or(Fault { at, what })?;
        Ok(Self { code, lane: LaneId(r.u16()?), position: r.u64()?, text: read_text(r)? })
    }
}

/// Text goes last and takes the rest of the body; cut at a character when it is too long.
/// What says that more was said.
const MORE: &str = " ...";

/// A text that is too long ends at a word, and shows that it does: half a word looks like the end of what was known.
fn put_text(text: &str, out: &mut Vec<u8>) {
    if text.len() <= MAX_TEXT_BYTES {
        return out.put(text.as_bytes());
    }
    let most = MAX_TEXT_BYTES - MORE.len();
    let kept = (0..=most).rev().find_map(|at| text.get(..at)).unwrap_or_default();
    let next_is_space = text.get(kept.len()..).is_some_and(|rest| rest.starts_with(' '));
    // What has no words, such as a path, is cut where it must be.
    let word = if next_is_space { None } else { kept.rfind(' ').filter(|&at| at >= most / 2) };
    let kept = word.and_then(|at| kept.get(..at)).unwrap_or(kept);
    out.put(kept.trim_end_matches([' ', ',', ';', ':']).as_bytes());
    out.put(MORE.as_bytes());
}

/// A peer's text ends up in terminals and logs: control characters do not pass. spec: W-8
fn read_text(r: &mut Reader<'_>) -> Result<String, Fault> {
    let at = r.at();
    let bytes = r.remainder();
    if bytes.len() > MAX_TEXT_BYTES {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        return Err(Fault { at, what: Malformed::TooLong { length, limit: 256 } });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Fault { at, what: Malformed::Text })?;
    Ok(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}
