use std::time::Duration;

use crate::wire::{Digest, FenceEpoch, Framing};

/// Where a session stands, in words for a progress bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The offer is out.
    #[default]
    Offered,
    /// Rounds, while the guest runs.
    Copying,
    /// The guest is paused; the rest is on its way.
    Pausing,
    /// Roots are compared, the sink stages.
    Committing,
    /// GIVE_UP is durable; waiting for the sink to run.
    Handing,
    /// Over.
    Ended,
}

/// Typed statistics of one session, at either end. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Where the session stands.
    pub phase: Phase,
    /// Bytes of the guest, zeros included.
    pub guest_bytes: u64,
    /// Source: pages that the sink said it holds, durably, from before this session.
    pub pages_held: u64,
    /// Which of the offered baselines both ends hold, counted from 0, once that is agreed on. spec: O-9
    pub baseline: Option<u8>,
    /// Pages looked at and sent, or found to be there, in all rounds.
    pub pages_read: u64,
    /// Of these, pages that the sink had already (zeros in the first round included).
    pub pages_same: u64,
    /// Pages that would be there after a crash of the sink, as it last said: an image's, never a live guest's. When the
    /// sink is READY all of an image is.
    pub pages_durable: u64,
    /// Pages carried by extents.
    pub pages_carried: u64,
    /// Pages that were looked at a second or later time.
    pub pages_resent: u64,
    /// Pages that have been acknowledged (source) or applied (sink), in all rounds.
    pub pages_settled: u64,
    /// Bytes of frames on bulk lanes, headers included.
    pub wire_bytes: u64,
    /// Source: what each method of the codec did to the pages of extents: pages, bytes, and the time that it took. Pages that
    /// were left out because the sink has them are `Zero` or `Same`; bytes of an extent's own head are `head_bytes`. Filled in
    /// by the driver, for machines have no clock. Of a session that carried nothing but extents and lost no lane, its pages
    /// are `pages_read` and its bytes `wire_bytes`.
    pub methods: dwcp_hde::Stats,
    /// Source: BLAKE3 of the dictionary that extents may refer to, the first of those offered that the sink holds, too.
    /// `methods` tells how many pages did.
    pub dictionary: Option<Digest>,
    /// Rounds that are over and had something to send, the one with the guest paused included.
    pub rounds: Vec<RoundStats>,
    /// Pages not yet sent in the present round.
    pub pages_left: u64,
    /// Source: pages that are left for a later round, or for the pause because the guest writes them all the time.
    pub pages_deferred: u64,
    /// Source: plain bytes per second that its lanes deliver together while they have something to deliver, zeros included: what
    /// a pause could count on. Not what came across lately, which is `pages_settled` over time.
    pub plain_rate: u64,
    /// The same on the wire.
    pub wire_rate: u64,
    /// Bulk lanes open.
    pub lanes: u16,
    /// Bulk lanes that died.
    pub lanes_lost: u64,
    /// What lanes carry now.
    pub framing: Framing,
    /// The epoch now; it rises with each hand-over.
    pub epoch: FenceEpoch,
    /// Hand-overs from one framing to another, or to the same from zeros.
    pub handovers: u64,
    /// Source: the last ten of them, the latest last.
    pub handover_log: Vec<HandoverStats>,
    /// Source: pages that it believed to be at the sink, where the sink's tree differed at a hand-over.
    pub pages_disputed: u64,
    /// Times that the control connection was re-made.
    pub reconnects: u64,
    /// From the guest's pause to the sink's RUNNING, in all; what the guest lost.
    pub downtime: Option<Duration>,
    /// The limit that was asked for.
    pub downtime_budget: Duration,
    /// Root of the last pause at this end.
    pub root: Option<Digest>,
    /// The peer's root, once it has told it.
    pub peer_root: Option<Digest>,
    /// From the reading of an extent to its acknowledgement.
    pub extent_latency: Histogram,
    /// Round trip of the control lane.
    pub control_latency: Histogram,
}

/// One hand-over, as its source measured it from the moment it was wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoverStats {
    /// To which framing.
    pub to: Framing,
    /// From zeros.
    pub restart: bool,
    /// Until the last extent or message of the old framing was on its way; zero if none was after the wish.
    pub last_extent: Duration,
    /// Until the sink's answer: from then on the new framing carries what is left.
    pub settled: Duration,
}

impl Progress {
    /// The sink holds these of the dictionaries that were offered: bit n of `held` for the n-th.
    pub(super) fn agreed_on(&mut self, offered: &[Digest], held: u8) {
        let mut offered = offered.iter().zip(0_u8..8);
        self.dictionary = offered.find(|(_, number)| held >> number & 1 == 1).map(|(id, _)| *id);
    }

    /// The share of all bytes read that did not travel, 0..1.
    pub fn saved(&self) -> f64 {
        // The last page is read with the zeros that fill it up.
        let padding = self.guest_bytes.next_multiple_of(4096) - self.guest_bytes;
        let read = self.pages_read.saturating_mul(4096).saturating_sub(padding);
        if read == 0 { 0.0 } else { (1.0 - ratio(self.wire_bytes, read)).max(0.0) }
    }
}

#[expect(clippy::as_conversions, reason = "a share for humans; 53 bits are plenty")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// One sweep over the pages that were dirty when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Pages dirty at its begin.
    pub pages: u64,
    /// Of these, pages that it left for the pause.
    pub deferred: u64,
    /// Wire bytes encoded during it.
    pub wire_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Upper bounds of the buckets in milliseconds; 50 is among them because the product promises it.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 30_000];

/// Counts of durations in fixed buckets, the last one open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; 13],
    total: Duration,
    max: Duration,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        let bucket = BOUNDS_MS.partition_point(|&bound| Duration::from_millis(bound) < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.total = self.total.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Each bucket's upper bound and how many durations were at most that, as Prometheus counts.
    /// The last bound is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let bounds = BOUNDS_MS.iter().map(|&bound| Some(Duration::from_millis(bound))).chain([None]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// Adds what another one counted since it was as `before`.
    #[cfg(feature = "net")]
    pub(crate) fn add(&mut self, other: &Self, before: &Self) {
        for (count, (now, then)) in self.counts.iter_mut().zip(other.counts.iter().zip(&before.counts)) {
            *count += now.saturating_sub(*then);
        }
        self.total = self.total.saturating_add(other.total.saturating_sub(before.total));
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        self.total
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// An upper bound of the given share (0..=1) of all durations: the bound of their bucket.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let reached = self.cumulative().find(|&(_, below)| ratio(below, count) >= share)?;
        Some(reached.0.unwrap_or(self.max).min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_of_50_ms_holds_50_ms() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_millis(50));
        histogram.record(Duration::from_millis(51));
        histogram.record(Duration::from_secs(60));
        let at_50 = histogram.cumulative().find(|(bound, _)| *bound == Some(Duration::from_millis(50)));
        assert_eq!(at_50, Some((Some(Duration::from_millis(50)), 1)));
        assert_eq!(histogram.cumulative().last(), Some((None, 3)));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_millis(100)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(60)));
    }

    #[test]
    fn saved_is_a_share() {
        let progress = Progress { pages_read: 100, wire_bytes: 4096 * 25, ..Progress::default() };
        assert!((progress.saved() - 0.75).abs() < 1e-9);
        assert!(Progress::default().saved().abs() < 1e-9);
        let small = Progress { pages_read: 2, wire_bytes: 5107, guest_bytes: 5000, ..Progress::default() };
        assert!(small.saved().abs() < 1e-9, "random bytes save nothing");
    }
}
