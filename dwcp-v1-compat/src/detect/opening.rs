use crate::wire::limits::{MAX_AMST16_CHUNKS, MAX_CHUNK_BYTES, MAX_MST8_CHUNKS};
use crate::wire::{ChunkHeader, Framing, Partial};

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Too few to say.
    More,
    /// A TLS ClientHello: a node that speaks v3.
    Tls,
    /// The header of a v1 chunk.
    V1 {
        /// It is the first of its message.
        first: bool,
    },
    /// Neither.
    Garbage,
}

/// A TLS record's head and the first byte of the message within.
const TLS_BYTES: usize = 6;

/// Looks at the first bytes of a connection, one at a time. Total: any bytes get an answer, after 16 at most.
///
/// Both kinds begin in different ways: a v1 chunk id is below 2^25, so its first byte is 0 or 1, and a TLS handshake record
/// begins with 0x16. A v1 peer that connects and says nothing is for [`Groups`](super::Groups) to judge.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    framing: Framing,
    head: Partial<16>,
    sight: Sight,
}

impl Opening {
    /// Of a connection from a peer that speaks `framing`, if it speaks v1. The two framings cannot be told apart: each is
    /// a plausible beginning of the other.
    pub const fn new(framing: Framing) -> Self {
        Self { framing, head: Partial::new(), sight: Sight::More }
    }

    /// Looks at one more byte. After a verdict it stays the same, and no more bytes are kept.
    pub fn feed(&mut self, byte: u8) -> Sight {
        if self.sight == Sight::More {
            self.head.fill(self.head.have() + 1, &mut [byte].as_slice());
            self.sight = judge(self.framing, self.head.bytes());
        }
        self.sight
    }

    /// The verdict so far.
    pub fn sight(&self) -> Sight {
        self.sight
    }

    /// The bytes that were looked at: whoever takes the connection over must have them first.
    pub fn bytes(&self) -> &[u8] {
        self.head.bytes()
    }
}

fn judge(framing: Framing, bytes: &[u8]) -> Sight {
    match bytes.first() {
        None => Sight::More,
        Some(0x16) => judge_tls(bytes),
        Some(0 | 1) => judge_v1(framing, bytes),
        Some(_) => Sight::Garbage,
    }
}

/// `16 03 01..04 length client_hello`, where the length is that of a record.
fn judge_tls(bytes: &[u8]) -> Sight {
    let fits = |(place, byte): (usize, &u8)| match place {
        1 => *byte == 3,
        2 => (1..=4).contains(byte),
        3 => *byte <= 0x40,
        5 => *byte == 1,
        _ => true,
    };
    // Records have at most 2^14 bytes, and a ClientHello more than its own head.
    let length = bytes.get(3..5).and_then(|field| field.first_chunk()).map(|[high, low]| (*high, *low));
    let possible = length.is_none_or(|length| length > (0, 4) && length <= (0x40, 0));
    if !possible || !bytes.iter().enumerate().all(fits) {
        Sight::Garbage
    } else if bytes.len() < TLS_BYTES {
        Sight::More
    } else {
        Sight::Tls
    }
}

/// What is the header of a chunk that [`Incoming`](crate::message::Incoming) may take. That one is exact; this one only
/// keeps noise from a transfer's place.
fn judge_v1(framing: Framing, bytes: &[u8]) -> Sight {
    let Some(header) = ChunkHeader::decode(framing, bytes) else { return Sight::More };
    let chunks = match framing {
        Framing::Mst8 => MAX_MST8_CHUNKS,
        Framing::Amst16 => MAX_AMST16_CHUNKS,
    };
    let misplaced = header.span.is_some_and(|span| header.id == 0 && span.offset != 0);
    if header.id >= chunks || !(1..=MAX_CHUNK_BYTES).contains(&header.length) || misplaced {
        return Sight::Garbage;
    }
    Sight::V1 { first: header.id == 0 }
}
