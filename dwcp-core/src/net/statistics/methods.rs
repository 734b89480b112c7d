use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_hde::{Method, MethodStats, Stats};

/// What the codec did for one session, as its lanes' workers count it: some additions for each extent, and no lock.
#[derive(Debug)]
pub(in crate::net) struct MethodCounters {
    /// Pages, bytes in, bytes out, nanoseconds.
    methods: [[AtomicU64; 4]; Method::ALL.len()],
    head_bytes: AtomicU64,
    look_nanos: AtomicU64,
}

impl Default for MethodCounters {
    fn default() -> Self {
        Self {
            methods: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
            head_bytes: AtomicU64::new(0),
            look_nanos: AtomicU64::new(0),
        }
    }
}

impl MethodCounters {
    /// One extent.
    pub(in crate::net) fn add(&self, extent: &Stats) {
        for (method, counters) in Method::ALL.into_iter().zip(&self.methods) {
            let MethodStats { pages, bytes_in, bytes_out, nanos } = extent.of(method);
            for (counter, more) in counters.iter().zip([pages, bytes_in, bytes_out, nanos]) {
                // Most methods have no page of an extent.
                if more > 0 {
                    counter.fetch_add(more, Ordering::Relaxed);
                }
            }
        }
        self.head_bytes.fetch_add(extent.head_bytes, Ordering::Relaxed);
        self.look_nanos.fetch_add(extent.look_nanos, Ordering::Relaxed);
    }

    /// All extents so far.
    pub(in crate::net) fn sum(&self) -> Stats {
        let mut sum = Stats::default();
        for (method, counters) in Method::ALL.into_iter().zip(&self.methods) {
            let [pages, bytes_in, bytes_out, nanos] =
                counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
            sum.add(method, MethodStats { pages, bytes_in, bytes_out, nanos });
        }
        sum.head_bytes = self.head_bytes.load(Ordering::Relaxed);
        sum.look_nanos = self.look_nanos.load(Ordering::Relaxed);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_all_extents() {
        let counters = MethodCounters::default();
        let mut expected = Stats::default();
        for (pages, method) in (1..).zip(Method::ALL) {
            let share = MethodStats { pages, bytes_in: 4096 * pages, bytes_out: 5 * pages, nanos: 11 * pages };
            let mut extent = Stats::default().with(method, share).with(Method::Zero, MethodStats::left_out(1));
            (extent.head_bytes, extent.look_nanos) = (3 * pages, 7 * pages);
            counters.add(&extent);
            expected += extent;
        }
        assert_eq!(counters.sum(), expected);
        assert_eq!((expected.of(Method::Zero).pages, expected.head_bytes), (1 + 14, 3 * 105));
    }
}
