//! The first frames of a connection, before anything is believed.

use super::error::{Fault, Malformed};
use super::fields::{Put, Reader};
use super::{Digest, LaneId, SessionId};

/// Says "DWCP v3" and nothing else could: a high byte first (no ASCII protocol starts so), then a
/// line end of each kind, which a text-mode relay would damage.
const MAGIC: [u8; 8] = *b"\x93DWCP\r\n\x00";

/// What the speaker of a hello wants to be. spec: W-9
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has the guest.
    Source,
}

/// What a peer is willing to take. Each side uses the smaller of its own and the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Pages of an extent, 1..=256.
    pub extent_pages: u16,
    /// Bulk lanes open at a time, at least 1.
    pub lanes: u16,
}

/// Offers versions and features, and may claim an earlier session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version spoken.
    pub version_min: u8,
    /// Highest protocol version spoken.
    pub version_max: u8,
    /// What the speaker wants to be.
    pub role: Role,
    /// Features that it can use, one bit each.
    pub features: u64,
    /// Those of them without which it cannot work.
    pub required: u64,
    /// What it takes.
    pub limits: PeerLimits,
    /// Random, so that no two handshakes are alike.
    pub nonce: [u8; 32],
    /// The session that this connection continues.
    pub resume: Option<ResumeClaim>,
}

/// A claim to an earlier session, bound to this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeClaim {
    /// Which session.
    pub session: SessionId,
    /// Counts the connections of this session; each is used once.
    pub attempt: u32,
    /// See `session::binding`. spec: H-6
    pub mac: Digest,
}

/// The sink's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloAck {
    /// The version to be spoken.
    pub version: u8,
    /// Lowest protocol version that the sink would speak now.
    pub version_min: u8,
    /// Highest.
    pub version_max: u8,
    /// Features that it can use, one bit each.
    pub features: u64,
    /// What the sink takes.
    pub limits: PeerLimits,
    /// New, or the one claimed.
    pub session: SessionId,
    /// Whether the claimed session goes on.
    pub resumed: bool,
    /// Random.
    pub nonce: [u8; 32],
    /// Over both offers, under a key of this TLS connection. spec: H-3
    pub mac: Digest,
}

/// The source's proof that both saw the same two offers. spec: H-3
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Over both offers, in the other direction.
    pub mac: Digest,
}

/// A connection that wants to be a bulk lane of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Which session.
    pub session: SessionId,
    /// Which lane; never 0, never one used before.
    pub lane: LaneId,
    /// Under the session's key, bound to this TLS connection. spec: H-5
    pub mac: Digest,
}

/// The sink takes the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Which lane.
    pub lane: LaneId,
    /// Bytes of frames that it may carry until more is granted.
    pub credit: u64,
}

impl PeerLimits {
    fn put(self, out: &mut Vec<u8>) {
        out.put_u16(self.extent_pages);
        out.put_u16(self.lanes);
    }

    /// spec: H-7
    fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let at = reader.at();
        let limits = Self { extent_pages: reader.u16()?, lanes: reader.u16()? };
        if limits.extent_pages == 0 || limits.lanes == 0 {
            return Err(Fault { at, what: Malformed::Value { field: "a limit (0 never means unlimited)", value: 0 } });
        }
        Ok(limits)
    }
}

impl Hello {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&MAGIC);
        out.put_u8(self.version_min);
        out.put_u8(self.version_max);
        out.put_u8(match self.role {
            Role::Source => 1,
        });
        out.put_u8(u8::from(self.resume.is_some()));
        out.put_u64(self.features);
        out.put_u64(self.required);
        self.limits.put(out);
        out.put(&self.nonce);
        if let Some(claim) = &self.resume {
            out.put(&claim.session.0);
            out.put_u32(claim.attempt);
            out.put(&claim.mac.0);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        if reader.array()? != MAGIC {
            return Err(Fault { at: 0, what: Malformed::Magic });
        }
        let (version_min, version_max) = (reader.u8()?, reader.u8()?);
        if version_min > version_max {
            return Err(Fault { at: 8, what: Malformed::Value { field: "version_min", value: version_min.into() } });
        }
        let role = match reader.u8()? {
            1 => Role::Source,
            value => return Err(Fault { at: 10, what: Malformed::Value { field: "role", value: value.into() } }),
        };
        let resumes = read_bool(reader, "resume")?;
        let (features, required) = (reader.u64()?, reader.u64()?);
        if required & !features != 0 {
            let what = Malformed::Value { field: "required features (not among those offered)", value: required };
            return Err(reader.fault(what));
        }
        let limits = PeerLimits::read(reader)?;
        let nonce = reader.array()?;
        let resume = if resumes {
            let session = SessionId(reader.array()?);
            Some(ResumeClaim { session, attempt: reader.u32()?, mac: Digest(reader.array()?) })
        } else {
            None
        };
        Ok(Self { version_min, version_max, role, features, required, limits, nonce, resume })
    }
}

impl HelloAck {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u8(self.version);
        out.put_u8(u8::from(self.resumed));
        out.put_u8(self.version_min);
        out.put_u8(self.version_max);
        out.put_u64(self.features);
        self.limits.put(out);
        out.put(&self.session.0);
        out.put(&self.nonce);
        out.put(&self.mac.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let version = reader.u8()?;
        let resumed = read_bool(reader, "resumed")?;
        let (version_min, version_max) = (reader.u8()?, reader.u8()?);
        if !(version_min..=version_max).contains(&version) {
            return Err(Fault { at: 0, what: Malformed::Value { field: "version", value: version.into() } });
        }
        let features = reader.u64()?;
        let limits = PeerLimits::read(reader)?;
        let session = SessionId(reader.array()?);
        let (nonce, mac) = (reader.array()?, Digest(reader.array()?));
        Ok(Self { version, version_min, version_max, features, limits, session, resumed, nonce, mac })
    }
}

impl Bind {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.mac.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self { mac: Digest(reader.array()?) })
    }
}

impl Join {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.session.0);
        out.put_u16(self.lane.0);
        out.put(&self.mac.0);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let session = SessionId(reader.array()?);
        Ok(Self { session, lane: read_bulk_lane(reader)?, mac: Digest(reader.array()?) })
    }
}

impl Joined {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u16(self.lane.0);
        out.put_u64(self.credit);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self { lane: read_bulk_lane(reader)?, credit: reader.u64()? })
    }
}

/// A flag is 0 or 1. spec: W-9
pub(super) fn read_bool(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, Fault> {
    let at = reader.at();
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Fault { at, what: Malformed::Value { field, value: value.into() } }),
    }
}

/// A lane id that is not the control lane's. spec: W-9
pub(super) fn read_bulk_lane(reader: &mut Reader<'_>) -> Result<LaneId, Fault> {
    let at = reader.at();
    match reader.u16()? {
        0 => Err(Fault { at, what: Malformed::Value { field: "lane", value: 0 } }),
        lane => Ok(LaneId(lane)),
    }
}
