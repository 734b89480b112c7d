use super::error::TransferError;
use super::landing::Landing;
use crate::wire::limits::REORDER_WINDOW;

/// What uses a message from its first byte to its last.
pub(super) trait Reader: Send {
    /// The message has so many bytes.
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError>;

    /// Its next bytes.
    fn push(&mut self, bytes: &[u8]) -> Result<(), TransferError>;
}

/// Puts chunks that arrive ahead of their turn into a ring of 16 MiB, and gives them on in order. Whoever sends further ahead
/// than that waits.
#[derive(Debug)]
pub(super) struct InOrder<R> {
    pub(super) reader: R,
    ring: Box<[u8]>,
    /// Bytes given on.
    base: u64,
}

impl<R: Reader> InOrder<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, ring: vec![0; slot(REORDER_WINDOW)].into(), base: 0 }
    }

    /// Two parts where it wraps.
    fn parts(&mut self, at: u64, length: usize) -> [&mut [u8]; 2] {
        let start = slot(at % REORDER_WINDOW);
        let (front, back) = self.ring.split_at_mut_checked(start).unwrap_or((&mut [], &mut []));
        let first = length.min(back.len());
        [back.get_mut(..first).unwrap_or_default(), front.get_mut(..length - first).unwrap_or_default()]
    }
}

fn slot(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl<R: Reader> Landing for InOrder<R> {
    fn window(&self) -> Option<u64> {
        Some(REORDER_WINDOW)
    }

    fn begin(&mut self, bytes: u64) -> Result<(), TransferError> {
        self.reader.begin(bytes)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let [first, second] = self.parts(at, bytes.len());
        let (one, two) = bytes.split_at_checked(first.len()).unwrap_or((bytes, &[]));
        first.copy_from_slice(one);
        second.copy_from_slice(two);
        Ok(())
    }

    fn same(&mut self, _at: u64, _bytes: &[u8]) -> Result<bool, TransferError> {
        Ok(false)
    }

    fn advance(&mut self, front: u64) -> Result<u64, TransferError> {
        if front == self.base {
            return Ok(front);
        }
        let start = slot(self.base % REORDER_WINDOW);
        let ready = slot(front - self.base);
        let (head, tail) = self.ring.split_at_checked(start).unwrap_or((&[], &[]));
        let first = ready.min(tail.len());
        self.reader.push(tail.get(..first).unwrap_or_default())?;
        self.reader.push(head.get(..ready - first).unwrap_or_default())?;
        self.base = front;
        Ok(front)
    }
}
