use std::time::Duration;

use dwcp_core::session::Time;

use crate::wire::limits::{MAX_AMST16_BYTES, MAX_AMST16_CHUNKS, MAX_CHUNK_BYTES, MAX_CONNECTIONS, MAX_MST8_CHUNKS};
use crate::wire::{ChunkHeader, Framing, Span};

/// A connection over which nothing went for so long is not used any more: a v1 peer closes it 61 s after its last byte, and
/// its test whether it is still alive can take one of our bytes out of the stream.
const MOST_IDLE: Duration = Duration::from_secs(50);

/// The next chunk of a connection: its header, and which bytes of the message follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What goes first.
    pub header: ChunkHeader,
    /// Where its data starts in the message.
    pub at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    /// mst8: the next chunk, as each connection has its own.
    next: u64,
    /// When the last byte went.
    busy: Time,
}

/// Splits one message into chunks for N connections.
///
/// mst8 gives chunk i to connection i mod N; with amst16 whichever connection asks gets the next chunk.
#[derive(Debug)]
pub struct Outgoing {
    framing: Framing,
    total: u64,
    chunk_bytes: u32,
    chunks: u32,
    lanes: Vec<Lane>,
    /// amst16: the next chunk of all.
    next: u64,
}

impl Outgoing {
    /// Of a message of `total` bytes. A message of no bytes has no chunks: nothing goes on the wire.
    ///
    /// # Errors
    /// The transport cannot carry it.
    pub fn new(framing: Framing, total: u64, chunk_bytes: u32, connections: u16, now: Time) -> Result<Self, Refusal> {
        if connections == 0 || connections > MAX_CONNECTIONS {
            return Err(Refusal::Connections { connections });
        }
        if chunk_bytes == 0 || chunk_bytes > MAX_CHUNK_BYTES {
            return Err(Refusal::ChunkBytes { chunk_bytes });
        }
        if framing == Framing::Amst16 && total > MAX_AMST16_BYTES {
            return Err(Refusal::TooLarge { total });
        }
        let limit = match framing {
            Framing::Mst8 => MAX_MST8_CHUNKS,
            Framing::Amst16 => MAX_AMST16_CHUNKS,
        };
        let chunks = u32::try_from(total.div_ceil(u64::from(chunk_bytes))).ok().filter(|chunks| *chunks <= limit);
        let chunks = chunks.ok_or(Refusal::TooManyChunks { total, chunk_bytes, limit })?;
        let lanes = (0..connections).map(|lane| Lane { next: lane.into(), busy: now }).collect();
        Ok(Self { framing, total, chunk_bytes, chunks, lanes, next: 0 })
    }

    /// Chunks in all.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// What goes next over a connection, counted from 0. `None`: nothing more; close it.
    ///
    /// # Errors
    /// The connection was idle for so long that a v1 peer may have touched it.
    pub fn next(&mut self, connection: u16, now: Time) -> Result<Option<Chunk>, Refusal> {
        let count = u64::try_from(self.lanes.len()).unwrap_or(u64::MAX);
        let unknown = Refusal::Connections { connections: connection };
        let lane = self.lanes.get_mut(usize::from(connection)).ok_or(unknown)?;
        let (next, step) = match self.framing {
            Framing::Mst8 => (&mut lane.next, count),
            Framing::Amst16 => (&mut self.next, 1),
        };
        let Some(id) = u32::try_from(*next).ok().filter(|id| *id < self.chunks) else { return Ok(None) };
        let idle = now.since(lane.busy);
        if idle > MOST_IDLE {
            return Err(Refusal::Idle { connection, idle });
        }
        lane.busy = now;
        *next += step;
        let at = u64::from(id) * u64::from(self.chunk_bytes);
        let length = u32::try_from(self.total - at).unwrap_or(u32::MAX).min(self.chunk_bytes);
        let span = (self.framing == Framing::Amst16).then(|| Span {
            offset: u32::try_from(at).unwrap_or(u32::MAX),
            total: u32::try_from(self.total).unwrap_or(u32::MAX),
        });
        Ok(Some(Chunk { header: ChunkHeader { id, length, span }, at }))
    }

    /// Bytes went over a connection.
    pub fn wrote(&mut self, connection: u16, now: Time) {
        if let Some(lane) = self.lanes.get_mut(usize::from(connection)) {
            lane.busy = now;
        }
    }
}

/// A message that is not sent over v1: for us to change, or for v3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// amst16 counts with 32 bits.
    #[error("{total} bytes are more than the 4 GiB - 1 that an amst16 message can have; send it with v3 or in parts")]
    TooLarge {
        /// Bytes of the message.
        total: u64,
    },
    /// A chunk size that no v1 peer has.
    #[error("a chunk of {chunk_bytes} bytes: 1 to 16 MiB are possible, and the peer must be set to the same")]
    ChunkBytes {
        /// The size asked for.
        chunk_bytes: u32,
    },
    /// Chunks too small for the message.
    #[error("{total} bytes in chunks of {chunk_bytes} make more than {limit} chunks; take larger ones at both ends")]
    TooManyChunks {
        /// Bytes of the message.
        total: u64,
        /// Bytes of a chunk.
        chunk_bytes: u32,
        /// The limit.
        limit: u32,
    },
    /// A number of connections that v1 does not have.
    #[error("{connections} connections: 1 to 256 are possible")]
    Connections {
        /// The number asked for.
        connections: u16,
    },
    /// An idle connection that the peer may have tested.
    #[error(
        "v1 connection {connection} was idle for {} s: a v1 peer may have closed it or taken a byte out of it; send the \
         message again over new connections",
        idle.as_secs()
    )]
    Idle {
        /// Which.
        connection: u16,
        /// For how long.
        idle: Duration,
    },
}
