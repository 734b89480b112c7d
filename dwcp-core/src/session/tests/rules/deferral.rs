//! Pages that the guest writes all the time, on a link that takes 256 raw pages a second: half a budget of 150 ms is some 15.
//! No round is so long that the guest is asked in its middle.

use std::collections::VecDeque;

use super::*;
use crate::guest::{DirtyMap, Pending};
use crate::session::{Dispatch, Encoded, Owner, SessionError, Source, SourceConfig};
use crate::wire::{Accept, Ack, Credit};

struct Link {
    bench: Bench<Source>,
}

impl Link {
    fn new(config: SourceConfig) -> (Self, Vec<Output>) {
        let mut bench = Bench::new(Source::new(config, offer(), leaves(), PEER));
        bench.feed(Input::Start);
        bench.hear(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None }));
        let mut link = Self { bench };
        link.harvested(&[]);
        let outputs = link.bench.feed(Input::LaneUp { lane: LANE, credit: WIDE });
        (link, outputs)
    }

    fn harvested(&mut self, pages: &[std::ops::Range<u32>]) -> Vec<Output> {
        let mut dirty = DirtyMap::new(&offer().layout);
        pages.iter().for_each(|pages| dirty.mark(crate::RegionId(0), pages.start, pages.end - pages.start));
        self.bench.feed(Input::Harvested { dirty, pending: Pending::Unknown })
    }

    /// All that was sent arrives, and all that is sent thereupon; what else was asked for.
    fn arrives(&mut self, outputs: Vec<Output>) -> (Vec<u32>, Vec<Output>) {
        let (mut pages, mut asked) = (Vec::new(), Vec::new());
        let mut queue = VecDeque::from(outputs);
        while let Some(output) = queue.pop_front() {
            let Output::Send(Dispatch { lane, seq, extent, .. }) = output else {
                asked.push(output);
                continue;
            };
            pages.extend(extent.page_numbers());
            let count = u32::try_from(extent.pages()).unwrap();
            queue.extend(self.bench.after(Duration::from_secs(1) * count / 256));
            let (carried, wire_bytes) = (u16::try_from(count).unwrap(), u64::from(count) * 4096);
            queue.extend(self.bench.feed(Input::Encoded(Encoded {
                lane,
                seq,
                wire_bytes,
                carried,
                ..Encoded::default()
            })));
            queue.extend(self.bench.hear(Frame::Ack(Ack { durable: 0, lanes: vec![(LANE, seq + 1)] })));
        }
        pages.sort_unstable();
        (pages, asked)
    }
}

fn config(defer_hot: bool) -> SourceConfig {
    SourceConfig {
        lanes: 1,
        downtime_budget: Duration::from_millis(150),
        stall_patience: Duration::from_secs(4),
        defer_hot,
        ..SourceConfig::default()
    }
}

/// The fourth round begins: `hot` pages from 0 on were dirty in all harvests, 40 others are.
fn fourth_round(hot: u32, defer_hot: bool) -> (Link, Vec<u32>, Vec<Output>) {
    let (mut link, outputs) = Link::new(config(defer_hot));
    let (pages, outputs) = link.arrives(outputs);
    assert!(pages.len() == 64 && asked!(outputs, Output::Harvest));
    for (harvest, count) in [([0..34, 0..0], 34), ([0..hot, 34..64], hot + 30)] {
        let outputs = link.harvested(&harvest);
        let (pages, outputs) = link.arrives(outputs);
        assert_eq!(pages.len(), usize::try_from(count).unwrap(), "too short a history to leave any out");
        assert!(asked!(outputs, Output::Harvest));
    }
    let outputs = link.harvested(&[0..hot, 24..34, 10..24, 48..64]);
    let (pages, outputs) = link.arrives(outputs);
    (link, pages, outputs)
}

// spec: D-5
#[test]
fn hot_pages_are_left_for_the_pause_and_sent_there() {
    let (mut link, sent, outputs) = fourth_round(10, true);
    assert_eq!(sent, (10..34).chain(48..64).collect::<Vec<_>>());
    assert!(asked!(outputs, Output::Harvest), "the round is over with pages that are left");
    assert_eq!(link.bench.machine.progress().pages_deferred, 10);
    let mut outputs = link.harvested(&[0..5, 60..61]);
    assert!(asked!(outputs, Output::Pause), "ten deferred ones and another fit");
    assert_eq!(link.bench.machine.progress().rounds.last().map(|round| (round.pages, round.deferred)), Some((50, 10)));
    link.bench.feed(Input::Devices(bytes::Bytes::new()));
    outputs.extend(link.bench.feed(Input::Paused));
    outputs.extend(link.harvested(&[]));
    let (sent, _) = link.arrives(outputs);
    assert_eq!(sent, (0..10).chain(60..61).collect::<Vec<_>>(), "nothing dirty is forgotten");
    assert_eq!(link.bench.machine.progress().pages_deferred, 0);
}

#[test]
fn without_deferral_every_round_sends_all() {
    let (_, sent, _) = fourth_round(10, false);
    assert_eq!(sent, (0..34).chain(48..64).collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_half_the_budget_is_sent_last() {
    // Of 24 hot pages some 15 fit: a word of the bitmap is let go as a whole.
    let (_, sent, outputs) = fourth_round(24, true);
    assert_eq!(sent, (0..34).chain(48..64).collect::<Vec<_>>());
    assert!(asked!(outputs, Output::Harvest));
}

#[test]
fn a_round_with_nothing_but_hot_pages_sends_them() {
    let (mut link, _, _) = fourth_round(10, true);
    // Slower than before, and still enough for one extent at once.
    link.bench.feed(Input::Bandwidth(std::num::NonZeroU64::new(50_000)));
    let outputs = link.harvested(&[0..9, 9..10]);
    assert!(!asked!(outputs, Output::Pause), "they would take 0.8 s by now");
    let sent = outputs.iter().any(|output| matches!(output, Output::Send(dispatch) if dispatch.extent.pages() == 10));
    assert!(sent, "{outputs:?}");
}

#[test]
fn a_guest_that_outruns_the_link_is_told_with_its_numbers() {
    let (mut link, mut outputs) = Link::new(config(false));
    let verdict = loop {
        let (_, harvest) = link.arrives(outputs);
        assert!(asked!(harvest, Output::Harvest), "{harvest:?}");
        outputs = link.harvested(&[0..32, 32..64]);
        if let Some(outcome) = outcome(&outputs) {
            assert_eq!(outcome.owner, Owner::Source);
            let Some(SessionError::NotConverging(verdict)) = outcome.error else { panic!("{outcome:?}") };
            break verdict;
        }
    };
    assert!(verdict.rounds < 10, "a quarter of the patience, not all of it: {verdict:?}");
    assert_eq!((verdict.dirty_pages, verdict.wire_bytes), (64, 64 * 4096));
    let near = |rate: u64| (900_000..1_100_000).contains(&rate);
    assert!(near(verdict.dirty_rate) && near(verdict.goodput) && near(verdict.wire_goodput), "{verdict:?}");
}

/// Sixteen pages at a time, of 300 ms each: the guest is asked in the middle of each round and at its end.
#[test]
fn a_page_that_is_written_over_and_over_counts_whenever_the_guest_is_asked() {
    let mut bench = Bench::new(Source::new(config(true), offer(), leaves(), PEER));
    bench.feed(Input::Start);
    bench.hear(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None }));
    let mut dirty = DirtyMap::new(&offer().layout);
    dirty.mark(crate::RegionId(0), 0, 64);
    let harvested = || Input::Harvested { dirty: dirty.clone(), pending: Pending::Unknown };
    bench.feed(harvested());
    let mut queue = VecDeque::from(bench.feed(Input::LaneUp { lane: LANE, credit: 66 * 4096 }));
    let (mut asked, mut sent) = (0, 0);
    let verdict = loop {
        match queue.pop_front().expect("it ends") {
            Output::Send(Dispatch { lane, seq, extent, .. }) => {
                queue.extend(bench.after(Duration::from_millis(300)));
                let carried = u16::try_from(extent.pages()).unwrap();
                let wire_bytes = u64::from(carried) * 4096;
                queue.extend(bench.feed(Input::Encoded(Encoded {
                    lane,
                    seq,
                    wire_bytes,
                    carried,
                    ..Encoded::default()
                })));
                queue.extend(bench.hear(Frame::Ack(Ack { durable: 0, lanes: vec![(LANE, seq + 1)] })));
                sent += wire_bytes;
                queue.extend(bench.hear(Frame::Credit(Credit { lane: LANE, total: sent + 18 * 4096 })));
            }
            Output::Harvest => {
                asked += 1;
                queue.extend(bench.feed(harvested()));
            }
            Output::Finished(outcome) => {
                let Some(SessionError::NotConverging(verdict)) = outcome.error else { panic!("{outcome:?}") };
                break verdict;
            }
            _ => {}
        }
    };
    assert_eq!(asked, 2 * verdict.rounds - 1, "once in the first round, which is one extent");
    let twice = 2 * 64 * 4096 * 10 / 12;
    assert!((twice / 20 * 19..=twice).contains(&verdict.dirty_rate), "{verdict:?}");
}
