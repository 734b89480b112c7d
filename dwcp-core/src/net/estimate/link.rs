//! A link that is only computed: one queue, bytes of all lanes one after the other.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::session::Time;

/// Plain bytes of a TLS record, and what TLS 1.3 adds to each: its head, its type and its tag.
const RECORD: u64 = 16 * 1024;
const RECORD_HEAD: u64 = 5 + 1 + 16;
/// Bytes of a full TCP segment with time stamps at an MTU of 1500, and what IPv4, TCP and Ethernet add to each.
const SEGMENT: u64 = 1448;
const SEGMENT_HEAD: u64 = 20 + 32 + 14;

/// One way of a link.
#[derive(Debug)]
pub(super) struct Link {
    /// Bytes a second.
    rate: NonZeroU64,
    /// Bytes that wait in buffers before a write has to.
    queue: u64,
    free_at: Time,
    pub(super) busy: Duration,
    /// What was added to the bytes that were sent.
    pub(super) tls_bytes: u64,
    pub(super) packet_bytes: u64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// When it returned.
    pub(super) at: Time,
    /// When its last byte had left.
    pub(super) left: Time,
}

impl Link {
    pub(super) fn new(rate: NonZeroU64, queue: u64) -> Self {
        Self { rate, queue, free_at: Time::default(), busy: Duration::ZERO, tls_bytes: 0, packet_bytes: 0 }
    }

    /// Sends bytes that were written in these pieces, each of which begins a record of TLS.
    pub(super) fn send(&mut self, now: Time, pieces: [u64; 2]) -> Written {
        let plain: u64 = pieces.iter().sum();
        let tls = pieces.iter().map(|piece| piece.div_ceil(RECORD) * RECORD_HEAD).sum::<u64>();
        let packets = (plain + tls).div_ceil(SEGMENT) * SEGMENT_HEAD;
        self.tls_bytes += tls;
        self.packet_bytes += packets;
        let took = self.time(plain + tls + packets);
        self.busy += took;
        self.free_at = self.free_at.max(now) + took;
        // It returns once no more than the queue is left.
        let room = Time::after_epoch(self.free_at.since_epoch().saturating_sub(self.time(self.queue)));
        Written { at: room.max(now), left: self.free_at }
    }

    fn time(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_when_the_queue_is_full_and_not_before() {
        let mut link = Link::new(NonZeroU64::new(1_000_000).unwrap(), 100_000);
        let start = Time::after_epoch(Duration::from_secs(1));
        let first = link.send(start, [50, 60_000]);
        assert_eq!(first.at, start);
        let bytes = 50 + 60_000 + 22 + 4 * 22;
        assert_eq!((link.tls_bytes, link.packet_bytes), (5 * 22, (50 + 60_000 + 110_u64).div_ceil(1448) * 66));
        assert_eq!(first.left, start + Duration::from_micros(bytes + link.packet_bytes));
        let second = link.send(start, [50, 60_000]);
        assert!(second.at > start, "{second:?}");
        assert_eq!(second.left.since(second.at), Duration::from_millis(100), "what the queue holds is still to leave");
        // Idle meanwhile: nothing is left of the queue.
        let later = start + Duration::from_secs(10);
        assert_eq!(link.send(later, [1, 0]).at, later);
    }
}
