use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::TransferError;
use crate::message::{DefectCounts, DefectKind};

/// Counters of v1 transfers for an exporter. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    defects: [AtomicU64; DefectKind::ALL.len()],
    ways: [Way; 2],
}

#[derive(Debug, Default)]
struct Way {
    begun: AtomicU64,
    bytes: AtomicU64,
    ended: [AtomicU64; TransferEnding::ALL.len()],
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Sent,
    Received,
}

/// How a v1 transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TransferEnding {
    /// All was sent, which nobody acknowledged; or as much came as was expected, and is staged.
    Done,
    /// What came is no whole message; [`Tally::defects`] has the kind.
    Defect,
    /// It is a whole message, and no image: a packet, an op list or a list of blocks that is none, or lacks some.
    Content,
    /// v1 cannot carry it, or a setting cannot work.
    Refused,
    /// The peer is not there, was lost, or takes nothing, or next to nothing.
    Unreachable,
    /// Our guest, disk or system failed.
    Local,
    /// Somebody cancelled it.
    Cancelled,
}

impl TransferEnding {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Done, Self::Defect, Self::Content, Self::Refused, Self::Unreachable, Self::Local, Self::Cancelled];

    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Defect => "defect",
            Self::Content => "content",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Cancelled => "cancelled",
        }
    }

    fn of(error: &TransferError) -> Self {
        match error {
            TransferError::Defect(_) => Self::Defect,
            TransferError::Content(_) | TransferError::Blocks(_) | TransferError::MissingBlocks { .. } => Self::Content,
            TransferError::Refused(_)
            | TransferError::Pack(_)
            | TransferError::DeviceState { .. }
            | TransferError::Config(_) => Self::Refused,
            TransferError::Lost { .. }
            | TransferError::Stalled { .. }
            | TransferError::Slow { .. }
            | TransferError::Unconnected { .. } => Self::Unreachable,
            TransferError::Guest(_) | TransferError::Io { .. } | TransferError::Connect { .. } => Self::Local,
            TransferError::Cancelled => Self::Cancelled,
        }
    }
}

impl fmt::Display for TransferEnding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Transfers in one direction. `begun` is `live` and `ended` together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferCounts {
    /// Began.
    pub begun: u64,
    /// Are under way.
    pub live: u64,
    /// How they ended. What never happened is not in it.
    pub ended: BTreeMap<TransferEnding, u64>,
    /// Bytes of messages of those that are done.
    pub bytes: u64,
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

    /// Transfers that were sent. Nobody acknowledged those that are done.
    pub fn sent(&self) -> TransferCounts {
        self.way(Direction::Sent).counts()
    }

    /// Transfers that came.
    pub fn received(&self) -> TransferCounts {
        self.way(Direction::Received).counts()
    }

    pub(super) fn defect(&self, kind: DefectKind) {
        for (count, known) in self.0.defects.iter().zip(DefectKind::ALL) {
            count.fetch_add(u64::from(known == kind), Ordering::Relaxed);
        }
    }

    /// Counts a transfer from here to its end, also if it is dropped before.
    pub(super) async fn counting<T>(
        &self,
        direction: Direction,
        transfer: impl Future<Output = Result<T, TransferError>>,
        bytes: fn(&T) -> u64,
    ) -> Result<T, TransferError> {
        let way = self.way(direction);
        way.begun.fetch_add(1, Ordering::Relaxed);
        let mut counted = Counted { way, ending: TransferEnding::Cancelled };
        let done = transfer.await;
        counted.ending = done.as_ref().map_or_else(TransferEnding::of, |_| TransferEnding::Done);
        if let Ok(done) = &done {
            way.bytes.fetch_add(bytes(done), Ordering::Relaxed);
        }
        done
    }

    fn way(&self, direction: Direction) -> &Way {
        let [sent, received] = &self.0.ways;
        match direction {
            Direction::Sent => sent,
            Direction::Received => received,
        }
    }
}

impl Way {
    fn counts(&self) -> TransferCounts {
        // Before those that began: what ends meanwhile is not under way a negative number of times.
        let ended: BTreeMap<_, _> = TransferEnding::ALL
            .into_iter()
            .zip(&self.ended)
            .map(|(ending, count)| (ending, count.load(Ordering::Acquire)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let (begun, bytes) = (self.begun.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let live = begun.saturating_sub(ended.values().sum());
        TransferCounts { begun, live, ended, bytes }
    }
}

struct Counted<'a> {
    way: &'a Way,
    ending: TransferEnding,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        for (count, known) in self.way.ended.iter().zip(TransferEnding::ALL) {
            count.fetch_add(u64::from(known == self.ending), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use dwcp_core::GuestError;

    use super::*;
    use crate::message::Defect;
    use crate::wire::blocks::BlockError;

    async fn ended(error: TransferError) -> TransferCounts {
        let tally = Tally::default();
        let failing = async { Err::<u64, _>(error) };
        assert!(tally.counting(Direction::Received, failing, |bytes| *bytes).await.is_err());
        assert_eq!(tally.sent(), TransferCounts::default());
        tally.received()
    }

    #[tokio::test]
    async fn each_error_raises_the_counter_of_its_kind_and_no_other() {
        let second = Duration::from_secs(1);
        let lost = TransferError::Lost { connection: 0, source: ErrorKind::ConnectionReset.into() };
        let unconnected = TransferError::Unconnected { peer: String::new(), made: 0, wanted: 4, within: second };
        let cases = [
            (TransferError::Defect(Defect::Missing { first: 0, chunks: 1, bytes: 1 }), TransferEnding::Defect),
            (TransferError::Blocks(BlockError::Again { at: 0, id: 0 }), TransferEnding::Content),
            (TransferError::MissingBlocks { missing: 1, blocks: 2 }, TransferEnding::Content),
            (TransferError::DeviceState { bytes: 1 }, TransferEnding::Refused),
            (TransferError::Config("no"), TransferEnding::Refused),
            (lost, TransferEnding::Unreachable),
            (TransferError::Stalled { after: second }, TransferEnding::Unreachable),
            (TransferError::Slow { after: second, took: 0, least: 1, left: 1 }, TransferEnding::Unreachable),
            (unconnected, TransferEnding::Unreachable),
            (TransferError::Guest(GuestError::Other(String::new())), TransferEnding::Local),
            (TransferError::io("disk", ErrorKind::StorageFull.into()), TransferEnding::Local),
            (TransferError::Cancelled, TransferEnding::Cancelled),
        ];
        for (error, ending) in cases {
            let expected = TransferCounts { begun: 1, ended: [(ending, 1)].into(), ..TransferCounts::default() };
            assert_eq!(ended(error).await, expected);
        }
    }

    #[tokio::test]
    async fn a_transfer_is_live_until_it_is_done_or_dropped() {
        let tally = Tally::default();
        let mut forever = Box::pin(tally.counting(Direction::Sent, std::future::pending(), |bytes: &u64| *bytes));
        assert!(futures_poll(&mut forever).is_pending());
        assert_eq!((tally.sent().begun, tally.sent().live), (1, 1));
        drop(forever);
        tally.counting(Direction::Sent, async { Ok(7) }, |bytes: &u64| *bytes).await.unwrap();
        let ended = [(TransferEnding::Done, 1), (TransferEnding::Cancelled, 1)].into();
        assert_eq!(tally.sent(), TransferCounts { begun: 2, live: 0, ended, bytes: 7 });
    }

    fn futures_poll<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
