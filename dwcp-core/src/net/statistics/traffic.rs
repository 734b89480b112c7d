//! What connections carry, handshakes and control included: as it was given to the kernel, and as a network counts it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::tcp_info::OnLink;

/// Bytes of all connections of an endpoint on which TLS was begun. Those that came to nothing then are in it; those that were hung
/// up on before, and version 1 in clear text, are not.
///
/// `sent` and `received` are what was given to the kernel and taken from it: after encryption, before TCP. The others are
/// what an Ethernet interface counts of the same connections: with the heads of all segments (bare acknowledgements, too)
/// and what TCP sent again. They are looked up at the end of a connection and each 4 MiB, so of a connection that lives
/// they are behind by that much; they are 0 where the kernel does not tell (before Linux 4.19). What is on its
/// way when a connection is dropped, and its last acknowledgements, are counted by nobody: little after an orderly end, up to
/// what the kernel had still to send after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// To peers.
    pub sent: u64,
    /// From peers.
    pub received: u64,
    /// To peers, with heads and with what was sent again.
    pub link_sent: u64,
    /// From peers, with heads.
    pub link_received: u64,
}

/// Counts it: two additions for a quarter of a MiB.
#[derive(Debug, Default)]
pub(in crate::net) struct TrafficMeter {
    sent: AtomicU64,
    received: AtomicU64,
    link_sent: AtomicU64,
    link_received: AtomicU64,
}

impl TrafficMeter {
    pub(in crate::net) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(in crate::net) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What came on the link since the look before.
    pub(in crate::net) fn on_link(&self, before: OnLink, now: OnLink) {
        self.link_sent.fetch_add(now.sent.saturating_sub(before.sent), Ordering::Relaxed);
        self.link_received.fetch_add(now.received.saturating_sub(before.received), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        let [sent, received, link_sent, link_received] =
            [&self.sent, &self.received, &self.link_sent, &self.link_received]
                .map(|count| count.load(Ordering::Relaxed));
        Traffic { sent, received, link_sent, link_received }
    }
}
