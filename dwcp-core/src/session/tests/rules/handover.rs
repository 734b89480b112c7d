use std::time::Duration;

use super::*;
use crate::session::handover::Wish;
use crate::session::{Sink, SinkConfig, Source, SourceConfig};
use crate::wire::{Accept, Fence, FencedLane, Framing, Handover, Prefer};

const OFF: Prefer = Prefer { framing: Framing::Messages, restart: false };
const ON: Prefer = Prefer { framing: Framing::Extents, restart: false };

fn sink() -> Bench<Sink> {
    let config = SinkConfig { lanes: 2, messages: true, ..SinkConfig::default() };
    let mut bench = Bench::new(Sink::new(config, offer(), leaves(), PEER));
    bench.feed(Input::Start);
    bench
}

fn fence(epoch: u64, framing: Framing, lanes: &[FencedLane]) -> Frame {
    let transfer = offer().transfer;
    Frame::Fence(Fence { transfer, epoch: FenceEpoch(epoch), framing, restart: false, lanes: lanes.to_vec() })
}

fn said_fence(outputs: &[Output]) -> Option<Fence> {
    frames(outputs).into_iter().find_map(|frame| match frame {
        Frame::Fence(fence) => Some(fence),
        _ => None,
    })
}

// spec: V-3
#[test]
fn a_fence_names_each_lane_once() {
    let (lane, end) = (LANE, 0);
    let twice = [FencedLane { lane, end, next: LaneId(2) }, FencedLane { lane, end, next: LaneId(3) }];
    let same_next = [twice[0], FencedLane { lane: LaneId(4), ..twice[0] }];
    for lanes in [twice, same_next] {
        let mut bench = sink();
        for lane in [LANE, LaneId(4)] {
            bench.feed(Input::LaneJoin { lane });
        }
        let outputs = bench.hear(fence(4, Framing::Messages, &lanes));
        assert_eq!(error_code(&outputs), Some(ErrorCode::Unexpected), "{outputs:?}");
        assert!(!asked!(outputs, Output::EndLane(_) | Output::AdmitLane { .. }), "{outputs:?}");
    }
}

// spec: V-3
#[test]
fn a_sink_takes_no_more_hand_overs_than_an_honest_source_begins() {
    let mut bench = sink();
    let mut change = |epoch: u64, wait: Duration| {
        bench.now = bench.now + wait;
        let framing = if epoch.is_multiple_of(2) { Framing::Messages } else { Framing::Extents };
        let outputs = bench.hear(fence(epoch, framing, &[]));
        let error = error_code(&outputs);
        bench.feed(Input::Raised(FenceEpoch(epoch)));
        error
    };
    for epoch in 4..20 {
        assert_eq!(change(epoch, Duration::ZERO), None, "epoch {epoch}");
    }
    for epoch in 20..40 {
        assert_eq!(change(epoch, Duration::from_millis(125)), None, "at the pace of a source");
    }
    let refused = (40..80).find_map(|epoch| change(epoch, Duration::ZERO).map(|code| (epoch, code)));
    let (epoch, code) = refused.unwrap();
    assert_eq!(code, ErrorCode::Flood);
    assert!(epoch <= 40 + 16, "{epoch}");
}

// spec: V-2
#[test]
fn a_flag_that_flaps_is_followed_at_the_pace_of_a_source_to_where_it_stands() {
    let config = SourceConfig { lanes: 1, messages: true, ..SourceConfig::default() };
    let mut bench = Bench::new(Source::new(config, offer(), leaves(), PEER));
    bench.feed(Input::Start);
    bench.hear(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None }));
    let (mut begun, mut epoch, mut wish) = (0, 3, ON);
    for _ in 0..100 {
        wish = if wish == ON { OFF } else { ON };
        let outputs = bench.hear(Frame::Prefer(wish));
        if asked!(outputs, Output::RaiseFence { .. }) {
            begun += 1;
            epoch = complete(&mut bench, epoch, &outputs);
        }
    }
    assert_eq!(begun, 8, "in a tenth of a second");
    bench.hear(Frame::Prefer(OFF));
    let due = bench.machine.deadline().unwrap();
    assert!(due.since(bench.now) < Duration::from_millis(150), "wakes for its turn");
    bench.now = due;
    let outputs = bench.feed_at_once(Input::Tick);
    assert!(asked!(outputs, Output::RaiseFence { .. }));
    complete(&mut bench, epoch, &outputs);
    assert_eq!(bench.machine.progress().framing, Framing::Messages);
}

#[test]
fn a_wish_that_comes_in_the_middle_of_a_hand_over_is_measured_from_when_it_came() {
    let config = SourceConfig { lanes: 1, messages: true, ..SourceConfig::default() };
    let mut bench = Bench::new(Source::new(config, offer(), leaves(), PEER));
    bench.now = bench.now + Duration::from_secs(3600);
    bench.feed(Input::Start);
    bench.hear(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None }));
    let outputs = bench.hear(Frame::Prefer(OFF));
    bench.now = bench.now + Duration::from_millis(500);
    bench.hear(Frame::Prefer(ON));
    bench.now = bench.now + Duration::from_millis(200);
    let epoch = complete(&mut bench, 3, &outputs);
    let outputs = bench.after(Duration::from_millis(100));
    complete(&mut bench, epoch, &outputs);
    let settled: Vec<_> = bench.machine.progress().handover_log.iter().map(|one| one.settled.as_millis()).collect();
    assert_eq!(settled, [701, 301]);
}

/// The hand-over that begins with `outputs` is brought to its end.
fn complete(bench: &mut Bench<Source>, epoch: u64, outputs: &[Output]) -> u64 {
    for output in outputs {
        if let Output::CloseLane(lane) = *output {
            bench.feed_at_once(Input::LaneDown { lane });
        }
    }
    let epoch = FenceEpoch(epoch + 1);
    let fence = said_fence(&bench.feed_at_once(Input::Raised(epoch))).unwrap();
    let nodes = vec![crate::session::leaves::Tree::new(&offer().layout).root(&leaves())];
    let handover = Handover { transfer: fence.transfer, epoch, lanes: Vec::new(), nodes };
    let outputs = bench.feed_at_once(Input::Frame(Frame::Handover(handover)));
    assert!(asked!(outputs, Output::Engage { .. }), "{outputs:?}");
    epoch.0
}

// spec: V-1
#[test]
fn what_a_node_wants_is_told_whenever_it_changes() {
    let mut bench = sink();
    let off = Wish { framing: Framing::Messages, restart: false };
    assert_eq!(frames(&bench.feed(Input::Prefer(off))), [Frame::Prefer(OFF)]);
    assert_eq!(frames(&bench.feed(Input::Prefer(off))), []);
    assert_eq!(frames(&bench.feed(Input::Prefer(Wish::default()))), [Frame::Prefer(ON)]);
}
