//! What the client and the store say to each other, over a socket in the run's private folder.
//!
//! ```text
//!   put   | 1 | entry 256 |     reply  | key 8 | sequence 8 | digest 16 |
//!   get   | 2 | key 8 |         reply  | entry 256 |         zeros when there is none
//!   count | 3 |                 reply  | sequence 8 | operations 8 |
//! ```

use super::control::Counters;
use super::entry::{Digest, ENTRY_BYTES, Entry};

/// One question of the client.
#[expect(clippy::large_enum_variant, reason = "nearly all requests are puts, and none is kept")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Put(Entry),
    Get(u64),
    Count,
}

/// Bytes of the reply to a put.
pub(super) const ACK_BYTES: usize = 32;

impl Request {
    pub(super) fn append_to(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Put(entry) => {
                bytes.push(1);
                bytes.extend(entry.to_bytes());
            }
            Self::Get(key) => {
                bytes.push(2);
                bytes.extend(key.to_le_bytes());
            }
            Self::Count => bytes.push(3),
        }
    }

    /// The first request in these bytes and what follows it.
    pub(super) fn split_first(bytes: &[u8]) -> Split<'_> {
        let Some((kind, rest)) = bytes.split_first() else { return Split::Short };
        match kind {
            1 => match rest.split_first_chunk::<ENTRY_BYTES>() {
                Some((entry, rest)) => {
                    Entry::from_bytes(entry).map_or(Split::Unknown, |entry| Split::Request(Self::Put(entry), rest))
                }
                None => Split::Short,
            },
            2 => match rest.split_first_chunk::<8>() {
                Some((key, rest)) => Split::Request(Self::Get(u64::from_le_bytes(*key)), rest),
                None => Split::Short,
            },
            3 => Split::Request(Self::Count, rest),
            _ => Split::Unknown,
        }
    }
}

/// What stands at the front of a buffer.
#[expect(clippy::large_enum_variant, reason = "nearly all are requests, and none is kept")]
#[derive(Debug)]
pub(super) enum Split<'a> {
    Request(Request, &'a [u8]),
    /// More bytes are needed.
    Short,
    /// No client of ours.
    Unknown,
}

/// The reply to a put: the guest names what it has written.
pub(super) fn append_ack(entry: &Entry, bytes: &mut Vec<u8>) {
    bytes.extend(entry.key.to_le_bytes());
    bytes.extend(entry.sequence.to_le_bytes());
    bytes.extend(entry.digest);
}

/// Whether this is the reply to the put of that entry.
pub(super) fn acknowledges(ack: &[u8; ACK_BYTES], entry: &Entry) -> bool {
    let mut expected = Vec::with_capacity(ACK_BYTES);
    append_ack(entry, &mut expected);
    expected == ack
}

/// What the client has on record for a key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Logged {
    /// 0: never acknowledged.
    pub(super) sequence: u64,
    pub(super) digest: Digest,
}

/// The reply to a count.
pub(super) fn append_counters(counters: Counters, bytes: &mut Vec<u8>) {
    bytes.extend(counters.to_bytes());
}
