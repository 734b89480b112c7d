//! What a key holds: a numbered record that proves itself.
//!
//! ```text
//!   0      8          16                         240        256
//!   | key  | sequence | value                    | digest   |
//!                       \_ of the key _/\_ new _/   BLAKE3 over all before it
//! ```

/// Bytes of an [`Entry`]: 16 of them fill a page.
pub(super) const ENTRY_BYTES: usize = 256;
const VALUE_BYTES: usize = 224;
/// The part of a value that stays the same as long as its key lives, as most of a real row does:
/// a write changes the rest.
const LASTING_BYTES: usize = 160;
const DIGEST_BYTES: usize = 16;

/// The first 16 bytes of a BLAKE3 hash.
pub(super) type Digest = [u8; DIGEST_BYTES];

/// One numbered record of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Never 0: that is a vacant slot.
    pub(super) key: u64,
    /// Which write of the client this is.
    pub(super) sequence: u64,
    pub(super) value: [u8; VALUE_BYTES],
    pub(super) digest: Digest,
}

impl Entry {
    /// The record that the client writes under this key and number.
    pub(super) fn new(key: u64, sequence: u64) -> Self {
        let mut value = [b' '; VALUE_BYTES];
        let (lasting, fresh) = value.split_at_mut(LASTING_BYTES);
        if key.is_multiple_of(BLOB_EVERY) {
            noise(lasting, key);
            noise(fresh, mix(key) ^ sequence);
        } else {
            prose(lasting, key);
            prose(fresh, mix(key) ^ sequence);
        }
        let digest = digest(key, sequence, &value);
        Self { key, sequence, value, digest }
    }

    pub(super) fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let parts = self.key.to_le_bytes().into_iter().chain(self.sequence.to_le_bytes());
        for (place, byte) in bytes.iter_mut().zip(parts.chain(self.value).chain(self.digest)) {
            *place = byte;
        }
        bytes
    }

    /// What these bytes say, true or not: see [`Entry::is_whole`].
    pub(super) fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (value, rest) = rest.split_first_chunk::<VALUE_BYTES>()?;
        let digest = *rest.first_chunk::<DIGEST_BYTES>()?;
        Some(Self { key: u64::from_le_bytes(*key), sequence: u64::from_le_bytes(*sequence), value: *value, digest })
    }

    /// Whether the digest is that of the rest.
    pub(super) fn is_whole(&self) -> bool {
        digest(self.key, self.sequence, &self.value) == self.digest
    }
}

/// Every eighth key holds bytes that do not compress, as a picture or an encrypted field would.
const BLOB_EVERY: u64 = 8;

fn digest(key: u64, sequence: u64, value: &[u8; VALUE_BYTES]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&key.to_le_bytes()).update(&sequence.to_le_bytes()).update(value);
    let hash = hasher.finalize();
    hash.as_bytes().first_chunk::<DIGEST_BYTES>().copied().unwrap_or_default()
}

fn noise(into: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    for chunk in into.chunks_mut(8) {
        for (place, byte) in chunk.iter_mut().zip(random.next().to_le_bytes()) {
            *place = byte;
        }
    }
}

/// Words and numbers, which compress about as well as the heap of a database does.
fn prose(into: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    let mut rest = into;
    while !rest.is_empty() {
        let draw = random.next();
        let digits = draw.to_string();
        // One number to seven words.
        let word = match draw % 8 {
            0 => digits.get(..6).unwrap_or(&digits),
            _ => usize::try_from(draw / 8 % 64).ok().and_then(|at| WORDS.get(at)).copied().unwrap_or("-"),
        };
        let (head, tail) = rest.split_at_mut(word.len().min(rest.len()));
        for (place, byte) in head.iter_mut().zip(word.bytes()) {
            *place = byte;
        }
        // The byte between two words keeps its blank.
        rest = tail.get_mut(1..).unwrap_or_default();
    }
}

/// Splitmix64: small, even, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads neighbouring numbers over all 64 bits.
pub(super) fn mix(number: u64) -> u64 {
    let once = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let twice = (once ^ once >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    twice ^ twice >> 31
}

const WORDS: [&str; 64] = [
    "status",
    "active",
    "pending",
    "closed",
    "user",
    "order",
    "invoice",
    "account",
    "city",
    "street",
    "amber",
    "falcon",
    "river",
    "stone",
    "north",
    "south",
    "total",
    "amount",
    "price",
    "net",
    "created",
    "updated",
    "shipped",
    "paid",
    "email",
    "example.org",
    "phone",
    "note",
    "customer",
    "called",
    "about",
    "the",
    "delivery",
    "of",
    "a",
    "second",
    "parcel",
    "and",
    "asked",
    "for",
    "refund",
    "item",
    "quantity",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "true",
    "false",
    "null",
    "session",
    "token",
    "expires",
    "login",
    "admin",
    "guest",
    "host",
    "region",
    "west",
    "east",
    "backup",
    "primary",
    "replica",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_bytes_and_a_flipped_bit_does_not() {
        for key in [7, 8] {
            let entry = Entry::new(key, 42);
            let mut bytes = entry.to_bytes();
            assert_eq!(Entry::from_bytes(&bytes), Some(entry));
            assert!(entry.is_whole());
            bytes[100] ^= 1;
            assert!(!Entry::from_bytes(&bytes).unwrap().is_whole());
        }
    }

    #[test]
    fn a_new_record_keeps_most_of_the_old_value() {
        let (old, new) = (Entry::new(7, 1), Entry::new(7, 2));
        assert_eq!(old.value[..LASTING_BYTES], new.value[..LASTING_BYTES]);
        assert_ne!(old.value, new.value);
    }
}
