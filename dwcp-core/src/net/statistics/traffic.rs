//! What connections carry, handshakes and control included: what a network counts, but for TCP, IP and the link's own heads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all connections of an endpoint, as they were given to the kernel and taken from it: after encryption, before
/// TCP. Connections that came to nothing are in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// To peers.
    pub sent: u64,
    /// From peers.
    pub received: u64,
}

/// Counts it: two additions for a quarter of a MiB.
#[derive(Debug, Default)]
pub(in crate::net) struct TrafficMeter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl TrafficMeter {
    pub(in crate::net) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(in crate::net) fn received(&self, bytes: usize) {
        self.received.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        Traffic { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}
