//! Buffers for extents on their way, which the lanes of an endpoint share: a thousand lanes do not all work at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::socket::SOCKET_BYTES;
use super::threads::Threads;
use crate::wire::limits::MAX_MESSAGE_EXTENTS;

/// Buffers that are kept for the next lane.
const KEPT: usize = 64;
/// What all lanes of an endpoint read or encrypt ahead together, about.
const AHEAD_BYTES: usize = 16 << 20;
/// One record of TLS.
const LEAST_AHEAD: usize = 16 << 10;
/// Extents that the messages of all lanes of an endpoint hold together, about.
const MESSAGES_EXTENTS: usize = 128;

/// The buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    lanes: AtomicUsize,
}

impl Buffers {
    /// A buffer, with whatever is in it.
    pub(super) fn take(&self) -> Vec<u8> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

/// What one lane may read, or encrypt, ahead, and do in one go.
pub(super) struct Share {
    threads: Threads,
    pub(super) bytes: usize,
    /// Extents of a message. It is made, and checked, without a pause, while all other lanes of a thread wait: one of
    /// them may have been told to end.
    pub(super) extents: usize,
}

impl Share {
    /// For one more lane: a few go far, and many a little.
    pub(super) fn of(threads: &Threads) -> Self {
        let lanes = threads.buffers().lanes.fetch_add(1, Ordering::Relaxed) + 1;
        Self { threads: threads.clone(), bytes: share(lanes), extents: message_extents(lanes) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.threads.buffers().lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

fn share(lanes: usize) -> usize {
    (AHEAD_BYTES / lanes).clamp(LEAST_AHEAD, SOCKET_BYTES)
}

fn message_extents(lanes: usize) -> usize {
    (MESSAGES_EXTENTS / lanes).clamp(1, usize::from(MAX_MESSAGE_EXTENTS))
}

/// At least so long; what was there stays.
pub(super) fn grow(buffer: &mut Vec<u8>, bytes: usize) {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lanes_read_far_ahead_and_many_a_little() {
        assert_eq!([1, 64, 128, 2000].map(share), [SOCKET_BYTES, SOCKET_BYTES, SOCKET_BYTES / 2, LEAST_AHEAD]);
        assert!((1..=1000).map(share).sum::<usize>() < 4 * AHEAD_BYTES);
        let most = usize::from(MAX_MESSAGE_EXTENTS);
        assert_eq!([1, 16, 32, 400].map(message_extents), [most, most, 4, 1], "many lanes wait for each other");
    }

    #[test]
    fn a_buffer_that_was_given_back_is_used_again() {
        let buffers = Buffers::default();
        (0..KEPT + 5).for_each(|_| buffers.give(vec![7; 10]));
        assert_eq!(buffers.free.lock().unwrap().len(), KEPT);
        assert_eq!(buffers.take().len(), 10);
    }
}
