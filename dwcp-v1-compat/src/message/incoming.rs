use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use dwcp_core::session::Time;

use super::table::ChunkTable;
use super::{Assurance, ConnectionId, Defect};
use crate::wire::limits::{
    MAX_AMST16_BYTES, MAX_AMST16_CHUNKS, MAX_CHUNK_BYTES, MAX_CONNECTIONS, MAX_DIALS, MAX_MST8_CHUNKS, MIN_PROGRESS,
};
use crate::wire::{ChunkHeader, Framing, Partial, Span};

/// What is known of a message before it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// mst8 says nothing: both are configured, and must be the sender's.
    Mst8 {
        /// Bytes of the message.
        total: u64,
        /// Bytes of a chunk.
        chunk_bytes: u32,
    },
    /// amst16 says total and offset in each header; chunk size follows from them.
    Amst16 {
        /// The most that is taken, at most 4 GiB - 1.
        most_bytes: u64,
        /// The largest chunk that is taken.
        most_chunk_bytes: u32,
    },
}

impl Shape {
    /// The framing.
    pub const fn framing(&self) -> Framing {
        match self {
            Self::Mst8 { .. } => Framing::Mst8,
            Self::Amst16 { .. } => Framing::Amst16,
        }
    }
}

/// How long what may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the start to the first byte.
    pub first: Duration,
    /// Without a byte on any connection. v1 itself waits 60 s for a header.
    pub silence: Duration,
    /// For each [`MIN_PROGRESS`] of new bytes, or for the rest: who sends a byte now and then is not silent, and would
    /// hold the only place of its address for ever. Longer than an idle peer needs to close and dial again.
    pub progress: Duration,
    /// Between the end of the last connection and another one, when bytes are missing: an idle v1 peer closes and
    /// dials again.
    pub redial: Duration,
    /// When all bytes have come, until the connections are closed. An mst8 peer may keep them.
    pub linger: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            first: seconds(60),
            silence: seconds(60),
            progress: seconds(120),
            redial: seconds(3),
            linger: seconds(5),
        }
    }
}

/// How one message is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingConfig {
    /// What is known of it.
    pub shape: Shape,
    /// Connections at a time; 256 at most.
    pub most_connections: u16,
    /// How far ahead of the first missing byte chunks are taken, for content that is used in order. `None`: anywhere, each
    /// byte has its place. Must hold the largest chunk.
    pub window: Option<u64>,
    /// How long what may take.
    pub deadlines: Deadlines,
}

/// What became of bytes that were fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// So many from the front are done with.
    pub used: usize,
    /// Some of them are payload.
    pub piece: Option<Piece>,
}

/// Payload bytes, and where they belong. The caller puts them there before it feeds more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In the bytes that were fed.
    pub range: Range<usize>,
    /// In the message.
    pub at: u64,
    /// They came already: the caller compares, and calls [`Incoming::differs`] unless they are the same.
    pub again: bool,
    /// The chunk that they are of.
    pub id: u32,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// More is to come.
    Open,
    /// All bytes are there; connections are still open.
    Whole,
    /// It is over.
    Done,
}

/// A message that came whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Its bytes.
    pub bytes: u64,
    /// Its chunks.
    pub chunks: u32,
    /// Chunks that came again with the same bytes.
    pub duplicates: u32,
    /// Connections that were opened for it.
    pub connections: u32,
    /// Those of them that carried nothing.
    pub silent: u32,
    /// Whether every connection was closed by the peer: v1's only end of a message. If not, all bytes that were expected
    /// came, and then nothing for the time of [`Deadlines::linger`].
    pub closed: bool,
    /// What is known of the bytes.
    pub assurance: Assurance,
}

#[derive(Clone, Copy, Debug)]
struct Geometry {
    total: u64,
    chunk_bytes: u32,
    chunks: u32,
}

impl Geometry {
    fn place(&self, id: u32) -> u64 {
        u64::from(id) * u64::from(self.chunk_bytes)
    }

    /// Of a chunk of the message.
    fn length(&self, id: u32) -> u32 {
        u32::try_from(self.total - self.place(id)).unwrap_or(u32::MAX).min(self.chunk_bytes)
    }
}

/// The chunk whose data a connection carries.
#[derive(Clone, Copy, Debug)]
struct Current {
    id: u32,
    at: u64,
    left: u32,
    again: bool,
}

#[derive(Debug)]
struct Connection {
    head: Partial<16>,
    current: Option<Current>,
    /// Bytes that came.
    at: u64,
}

impl Connection {
    /// So many bytes of its chunk have come. Returns whether that is all of it.
    fn advance(&mut self, current: Current, here: usize) -> bool {
        let left = current.left - u32::try_from(here).unwrap_or(current.left);
        self.at += number(here);
        self.current = (left > 0).then(|| Current { at: current.at + number(here), left, ..current });
        left == 0
    }
}

/// Takes one message from connections in any order. Memory is two bits a chunk and 48 bytes a connection.
#[derive(Debug)]
pub struct Incoming {
    config: IncomingConfig,
    geometry: Option<Geometry>,
    table: ChunkTable,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Bytes before this one have been used, where there is a window.
    base: u64,
    missing: u64,
    again_bytes: u64,
    duplicates: u32,
    opened: u32,
    silent: u32,
    started: Time,
    spoken: bool,
    last: Time,
    /// When it last was [`MIN_PROGRESS`] further, first spoke, or became whole.
    further: Time,
    /// New bytes since then.
    gained: u64,
    /// The peer reset a connection, between two chunks.
    reset: bool,
    lingered: bool,
}

impl Incoming {
    /// A message that is to come from now on.
    ///
    /// # Errors
    /// A sentence about the configuration, such as a window smaller than a chunk.
    pub fn new(config: IncomingConfig, now: Time) -> Result<Self, &'static str> {
        if config.most_connections == 0 || config.most_connections > MAX_CONNECTIONS {
            return Err("a v1 message has 1 to 256 connections");
        }
        let (geometry, chunk_bytes) = match config.shape {
            Shape::Mst8 { total, chunk_bytes } => (Some(mst8_geometry(total, chunk_bytes)?), chunk_bytes),
            Shape::Amst16 { most_bytes, most_chunk_bytes } => {
                if most_bytes > MAX_AMST16_BYTES {
                    return Err("an amst16 message has at most 4 GiB - 1 bytes");
                }
                (None, most_chunk_bytes)
            }
        };
        if chunk_bytes == 0 || chunk_bytes > MAX_CHUNK_BYTES {
            return Err("a v1 chunk has 1 byte to 16 MiB");
        }
        if config.window.is_some_and(|window| window < u64::from(chunk_bytes)) {
            return Err("the window must hold the largest chunk");
        }
        Ok(Self {
            config,
            geometry,
            table: ChunkTable::new(geometry.map_or(0, |geometry| geometry.chunks)),
            connections: BTreeMap::new(),
            base: 0,
            missing: geometry.map_or(0, |geometry| geometry.total),
            again_bytes: 0,
            duplicates: 0,
            opened: 0,
            silent: 0,
            started: now,
            spoken: false,
            last: now,
            further: now,
            gained: 0,
            reset: false,
            lingered: false,
        })
    }

    /// A connection was opened.
    ///
    /// # Errors
    /// It is one too many, at a time or in all.
    pub fn connect(&mut self, now: Time, connection: ConnectionId) -> Result<(), Defect> {
        let limit = u32::from(self.config.most_connections);
        let open = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        if open >= limit || self.opened >= MAX_DIALS {
            let limit = if open >= limit { limit } else { MAX_DIALS };
            return Err(Defect::TooManyConnections { connection, limit });
        }
        self.opened += 1;
        self.last = now;
        self.connections.insert(connection, Connection { head: Partial::new(), current: None, at: 0 });
        Ok(())
    }

    /// How many bytes may be read from a connection now. None: its next chunk lies beyond the window. Any number: whatever
    /// comes has its place, there being no window.
    pub fn wanted(&self, connection: ConnectionId) -> usize {
        if self.config.window.is_none() && self.connections.contains_key(&connection) {
            return usize::MAX;
        }
        self.to_next(connection)
    }

    /// How many bytes of a connection are no data of another chunk than the one it carries: the rest of that one and the header
    /// behind it, or of a header. None where its chunk lies beyond the window.
    pub fn to_next(&self, connection: ConnectionId) -> usize {
        let header = self.config.shape.framing().header_bytes();
        match self.connections.get(&connection) {
            None => 0,
            Some(Connection { current: None, head, .. }) => header - head.have().min(header),
            Some(Connection { current: Some(current), .. }) if self.is_beyond(current) => 0,
            // The header behind it comes with the same read.
            Some(Connection { current: Some(current), .. }) => size(current.left).saturating_add(header),
        }
    }

    /// Where the next bytes of a connection belong, and how many: for a caller that reads them straight into their place. `None`
    /// when a header is next, or a chunk that must be compared or may not come yet.
    pub fn place(&self, connection: ConnectionId) -> Option<(u64, usize)> {
        let current = self.connections.get(&connection)?.current.as_ref()?;
        (!current.again && !self.is_beyond(current)).then(|| (current.at, size(current.left)))
    }

    /// So many bytes of a connection are in the [`place`](Self::place) where they belong.
    pub fn placed(&mut self, now: Time, connection: ConnectionId, bytes: usize) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let Some(current) = known.current else { return };
        let here = bytes.min(size(current.left));
        self.missing -= number(here);
        if known.advance(current, here) {
            self.table.hold(current.id);
        }
        self.heard(now, here);
    }

    fn is_beyond(&self, current: &Current) -> bool {
        let end = current.at + u64::from(current.left);
        self.config.window.is_some_and(|window| end > self.base + window)
    }

    /// Takes from the front of what a connection carried. Call again with the rest until all is used, after the piece is
    /// put in its place.
    ///
    /// # Errors
    /// What came cannot be part of the message.
    pub fn take(&mut self, now: Time, connection: ConnectionId, bytes: &[u8]) -> Result<Taken, Defect> {
        let Some(mut known) = self.connections.remove(&connection) else {
            return Err(Defect::TooManyConnections { connection, limit: u32::from(self.config.most_connections) });
        };
        let taken = self.take_from(connection, &mut known, bytes);
        self.connections.insert(connection, known);
        let taken = taken?;
        if taken.used > 0 {
            self.heard(now, taken.piece.as_ref().filter(|piece| !piece.again).map_or(0, |piece| piece.range.len()));
        }
        Ok(taken)
    }

    /// The peer has spoken, and so many bytes are new.
    fn heard(&mut self, now: Time, new: usize) {
        if !self.spoken {
            self.further = now;
        }
        (self.spoken, self.last) = (true, now);
        self.gained += number(new);
        if new > 0 && (self.gained >= MIN_PROGRESS || self.is_whole()) {
            (self.further, self.gained) = (now, 0);
        }
    }

    /// The caller read nothing for so long up to now, because it had other work. That is not the peer's silence.
    pub fn away(&mut self, time: Duration) {
        self.last = self.last + time;
        self.further = self.further + time;
    }

    fn take_from(&mut self, name: ConnectionId, known: &mut Connection, bytes: &[u8]) -> Result<Taken, Defect> {
        let mut rest = bytes;
        let current = match known.current {
            Some(current) => current,
            None => {
                let framing = self.config.shape.framing();
                let header = known.head.fill(framing.header_bytes(), &mut rest);
                let header = header.and_then(|header| ChunkHeader::decode(framing, header));
                known.at += number(bytes.len() - rest.len());
                let Some(header) = header else { return Ok(Taken { used: bytes.len() - rest.len(), piece: None }) };
                let start = known.at - number(framing.header_bytes());
                let current = self.admit(name, start, &header)?;
                known.head.clear();
                known.current = Some(current);
                current
            }
        };
        let used = bytes.len() - rest.len();
        let here = size(current.left).min(rest.len());
        if here == 0 || self.is_beyond(&current) {
            return Ok(Taken { used, piece: None });
        }
        let piece = Piece { range: used..used + here, at: current.at, again: current.again, id: current.id };
        if !current.again {
            self.missing -= number(here);
        }
        if known.advance(current, here) {
            self.table.hold(current.id);
        }
        Ok(Taken { used: used + here, piece: Some(piece) })
    }

    /// Whether a chunk with this header may come now.
    fn admit(&mut self, connection: ConnectionId, at: u64, header: &ChunkHeader) -> Result<Current, Defect> {
        let geometry = match self.geometry {
            Some(geometry) => geometry,
            None => self.learn(connection, at, header)?,
        };
        check(connection, at, header, &geometry)?;
        let id = header.id;
        let again = self.table.has_begun(id);
        if again {
            // What is used in order is gone: nothing is left to compare with. What is still coming cannot be compared yet.
            if self.config.window.is_some() || !self.table.is_held(id) {
                return Err(Defect::Duplicate { connection, at, id });
            }
            self.again_bytes += u64::from(header.length);
            if self.again_bytes > geometry.total {
                return Err(Defect::Flood { connection, at });
            }
            self.duplicates += 1;
        }
        self.table.begin(id);
        Ok(Current { id, at: geometry.place(id), left: header.length, again })
    }

    /// amst16: total and chunk size, from whichever header comes first.
    fn learn(&mut self, connection: ConnectionId, at: u64, header: &ChunkHeader) -> Result<Geometry, Defect> {
        let Shape::Amst16 { most_bytes, most_chunk_bytes } = self.config.shape else {
            return Err(Defect::Wrapped { connection, at });
        };
        let ChunkHeader { id, length, span } = *header;
        let Span { offset, total } = span.unwrap_or(Span { offset: 0, total: 0 });
        // A message of no bytes has no header: its total ran over.
        if total == 0 {
            return Err(Defect::Wrapped { connection, at });
        }
        let total = u64::from(total);
        if total > most_bytes {
            return Err(Defect::TooLarge { connection, at, total, limit: most_bytes });
        }
        let chunk_bytes = match offset.checked_div(id) {
            None => length,
            Some(chunk_bytes) if chunk_bytes.checked_mul(id) == Some(offset) => chunk_bytes,
            Some(_) => return Err(Defect::Offset { connection, at, id, offset }),
        };
        if chunk_bytes == 0 || chunk_bytes > most_chunk_bytes {
            return Err(Defect::Length { connection, at, id, length, expected: most_chunk_bytes });
        }
        let chunks = u32::try_from(total.div_ceil(u64::from(chunk_bytes))).unwrap_or(u32::MAX);
        if chunks > MAX_AMST16_CHUNKS {
            let limit = MAX_AMST16_CHUNKS;
            return Err(Defect::TooManyChunks { connection, at, total, chunk_bytes, limit });
        }
        let geometry = Geometry { total, chunk_bytes, chunks };
        check(connection, at, header, &geometry)?;
        self.table = ChunkTable::new(chunks);
        self.missing = total;
        self.geometry = Some(geometry);
        Ok(geometry)
    }

    /// The bytes of a piece that came again are others, or nobody can say.
    pub fn differs(&self, connection: ConnectionId, piece: &Piece) -> Defect {
        let at = self.connections.get(&connection).map_or(0, |known| known.at);
        Defect::Duplicate { connection, at: at.saturating_sub(number(piece.range.len())), id: piece.id }
    }

    /// A connection was closed by the peer.
    ///
    /// # Errors
    /// Within a header or a chunk.
    pub fn fin(&mut self, now: Time, connection: ConnectionId) -> Result<(), Defect> {
        let Some(known) = self.connections.remove(&connection) else { return Ok(()) };
        let header = self.config.shape.framing().header_bytes();
        let (part, missing) = match &known.current {
            Some(current) => ("chunk", u64::from(current.left)),
            None if known.head.have() > 0 => ("header", number(header.saturating_sub(known.head.have()))),
            None => {
                self.silent += u32::from(known.at == 0);
                self.last = now;
                return Ok(());
            }
        };
        Err(Defect::Torn { connection, at: known.at, part, missing })
    }

    /// A connection broke. Between two chunks that is taken for its end, though the message then does not count as
    /// closed.
    ///
    /// # Errors
    /// Within a header or a chunk.
    pub fn lost(&mut self, now: Time, connection: ConnectionId) -> Result<(), Defect> {
        self.reset = true;
        self.fin(now, connection)
    }

    /// All bytes before this one are there.
    pub fn front(&self) -> u64 {
        self.geometry.map_or(0, |geometry| geometry.place(self.table.front()).min(geometry.total))
    }

    /// All bytes before this one have been used: connections beyond the window may go on.
    pub fn used(&mut self, base: u64) {
        self.base = self.base.max(base);
    }

    /// Bytes of the message, once they are known.
    pub fn total(&self) -> Option<u64> {
        self.geometry.map(|geometry| geometry.total)
    }

    fn is_whole(&self) -> bool {
        self.geometry.is_some() && self.missing == 0
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        match (self.is_whole(), self.connections.is_empty() && self.opened > 0) {
            (true, true) => Status::Done,
            (true, false) if self.lingered => Status::Done,
            (true, false) => Status::Whole,
            (false, _) => Status::Open,
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub fn deadline(&self) -> Time {
        let Deadlines { first, progress, .. } = self.config.deadlines;
        if !self.spoken && !self.is_whole() {
            return self.started + first;
        }
        self.quiet_until().min(self.further + progress)
    }

    fn quiet_until(&self) -> Time {
        let Deadlines { silence, redial, linger, .. } = self.config.deadlines;
        if self.is_whole() {
            self.last + linger
        } else if self.connections.is_empty() {
            self.last + redial
        } else {
            self.last + silence
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// Too much of it, and the message is not whole.
    pub fn tick(&mut self, now: Time) -> Result<Status, Defect> {
        if now < self.deadline() {
            return Ok(self.status());
        }
        let Deadlines { first, silence, progress, .. } = self.config.deadlines;
        if self.is_whole() {
            self.lingered = true;
            return Ok(Status::Done);
        }
        if !self.spoken {
            return Err(Defect::Silent { after: first, missing: self.missing });
        }
        if now < self.quiet_until() {
            let (came, missing) = (self.gained, self.missing);
            return Err(Defect::Slow { after: progress, came, least: MIN_PROGRESS, missing });
        }
        if self.connections.is_empty() {
            let chunks = self.geometry.map_or(0, |geometry| geometry.chunks) - self.table.held_count();
            return Err(Defect::Missing { first: self.table.front(), chunks, bytes: self.missing });
        }
        if self.connections.values().any(|known| known.current.is_some_and(|current| self.is_beyond(&current))) {
            return Err(Defect::HeldBack { id: self.table.front(), after: silence });
        }
        Err(Defect::Silent { after: silence, missing: self.missing })
    }

    /// What came, when it is over.
    pub fn received(&self) -> Option<Received> {
        let geometry = self.geometry.filter(|_| self.status() == Status::Done)?;
        Some(Received {
            bytes: geometry.total,
            chunks: geometry.chunks,
            duplicates: self.duplicates,
            connections: self.opened,
            silent: self.silent,
            closed: self.connections.is_empty() && !self.reset,
            assurance: match self.config.shape {
                Shape::Mst8 { .. } => Assurance::LengthUnverified,
                Shape::Amst16 { .. } => Assurance::Unverified,
            },
        })
    }
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn number(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn mst8_geometry(total: u64, chunk_bytes: u32) -> Result<Geometry, &'static str> {
    let chunks = total.checked_div(u64::from(chunk_bytes)).ok_or("a v1 chunk has 1 byte to 16 MiB")?;
    let chunks = chunks + u64::from(!total.is_multiple_of(u64::from(chunk_bytes)));
    let chunks = u32::try_from(chunks).ok().filter(|chunks| *chunks <= MAX_MST8_CHUNKS);
    let chunks = chunks.ok_or("the message has too many chunks: take larger ones, at both ends")?;
    Ok(Geometry { total, chunk_bytes, chunks })
}

/// Whether a header is one of this message. A v1 receiver looks at the id only.
fn check(connection: ConnectionId, at: u64, header: &ChunkHeader, geometry: &Geometry) -> Result<(), Defect> {
    let ChunkHeader { id, length, span } = *header;
    let place = geometry.place(id);
    if let Some(Span { offset, total }) = span {
        if u64::from(total) != geometry.total {
            return Err(Defect::MixedTotals { connection, at, total, before: geometry.total });
        }
        if u64::from(offset) != place {
            let wrapped = u64::from(offset) == place % (MAX_AMST16_BYTES + 1);
            return Err(if wrapped {
                Defect::Wrapped { connection, at }
            } else {
                Defect::Offset { connection, at, id, offset }
            });
        }
    }
    if id >= geometry.chunks {
        return Err(Defect::Id { connection, at, id, chunks: geometry.chunks });
    }
    let expected = geometry.length(id);
    if length != expected {
        return Err(Defect::Length { connection, at, id, length, expected });
    }
    Ok(())
}
