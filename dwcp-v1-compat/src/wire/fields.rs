//! Fields as v1 writes them: fixed width, big-endian.

#![expect(clippy::big_endian_bytes, reason = "v1 is big-endian")]

/// Reads fields front to back. `None`: the bytes end within the field.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Bytes of a field or header that arrives in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partial<const N: usize> {
    bytes: [u8; N],
    have: usize,
}

impl<const N: usize> Partial<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], have: 0 }
    }

    /// Takes from the front of `input` until `need` bytes are there (at most `N`). Those, once they are.
    pub(crate) fn fill(&mut self, need: usize, input: &mut &[u8]) -> Option<&[u8]> {
        let need = need.min(N);
        let missing = need.saturating_sub(self.have);
        let (taken, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
        if let Some(room) = self.bytes.get_mut(self.have..self.have + taken.len()) {
            room.copy_from_slice(taken);
        }
        self.have += taken.len();
        *input = rest;
        if self.have < need { None } else { self.bytes.get(..need) }
    }

    pub(crate) fn have(&self) -> usize {
        self.have
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.have).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.have = 0;
    }
}
