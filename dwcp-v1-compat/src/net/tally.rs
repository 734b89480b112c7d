use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::{DefectCounts, DefectKind};

/// Counters of v1 transfers for an exporter. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    defects: [AtomicU64; DefectKind::ALL.len()],
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
}

impl Tally {
    /// Defects of incoming messages, by kind.
    pub fn defects(&self) -> DefectCounts {
        let mut counts = DefectCounts::default();
        for (count, kind) in self.0.defects.iter().zip(DefectKind::ALL) {
            counts.add(kind, count.load(Ordering::Relaxed));
        }
        counts
    }

    /// Messages and bytes that were sent to their end. Nobody acknowledged them.
    pub fn sent(&self) -> (u64, u64) {
        (self.0.sent.load(Ordering::Relaxed), self.0.sent_bytes.load(Ordering::Relaxed))
    }

    /// Messages and bytes that came whole.
    pub fn received(&self) -> (u64, u64) {
        (self.0.received.load(Ordering::Relaxed), self.0.received_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn defect(&self, kind: DefectKind) {
        for (count, known) in self.0.defects.iter().zip(DefectKind::ALL) {
            count.fetch_add(u64::from(known == kind), Ordering::Relaxed);
        }
    }

    pub(super) fn count_sent(&self, bytes: u64) {
        self.0.sent.fetch_add(1, Ordering::Relaxed);
        self.0.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.0.received.fetch_add(1, Ordering::Relaxed);
        self.0.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
