//! The machines by hand: one regression for each bug that `dwcp-sim` found in them, named by what
//! must hold, with the seed that showed it.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::extent::Layout;
use crate::wire::limits::MAX_EXTENT_BYTES;
use crate::wire::{
    Accept, Ack, Bury, Digest, FRAME_HEADER_BYTES, FenceEpoch, GuestKind, LaneId, Name, Offer, Pause, Ping, Ready, Run,
};

const NOTHING: Duration = Duration::ZERO;
const PEER: Fingerprint = Fingerprint([6; 32]);

fn at(ms: u64) -> Time {
    Time::after_epoch(Duration::from_millis(ms))
}

fn offer() -> Offer {
    Offer {
        transfer: TransferId([7; 16]),
        epoch: FenceEpoch(1),
        kind: GuestKind::Live,
        name: Name::new("vm").unwrap(),
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout: Layout::new(&[4096 * 8]).unwrap(),
    }
}

/// Feeds one input and collects what is asked for.
fn feed(machine: &mut impl Machine, ms: u64, input: Input) -> Vec<Output> {
    machine.handle(at(ms), input);
    std::iter::from_fn(|| machine.poll()).collect()
}

fn says(outputs: &[Output], wanted: fn(&Frame) -> bool) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Control(frame) if wanted(frame)))
}

fn source() -> Source {
    let layout = offer().layout;
    Source::new(SourceConfig::default(), offer(), Arc::new(Leaves::new(&layout)), PEER)
}

/// A source on one lane that has sent every page and sees nothing dirty: it is draining.
fn sealed_source() -> (Source, Pause) {
    let mut source = source();
    let layout = offer().layout;
    let clean = || Input::Harvested { dirty: DirtyMap::new(&layout), pending: Pending::Unknown };
    feed(&mut source, 0, Input::Start);
    feed(&mut source, 0, clean());
    feed(
        &mut source,
        0,
        Input::Frame(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None })),
    );
    let lane = LaneId(1);
    feed(&mut source, 0, Input::LaneUp { lane, credit: 8 << 20 });
    feed(&mut source, 1, Input::Encoded(Encoded { lane, seq: 0, wire_bytes: 100, carried: 8, ..Encoded::default() }));
    feed(&mut source, 2, Input::Frame(Frame::Ack(Ack { durable: 0, lanes: vec![(lane, 1)] })));
    let outputs = feed(&mut source, 3, clean());
    assert!(outputs.iter().any(|output| matches!(output, Output::Pause)), "{outputs:?}");
    feed(&mut source, 4, Input::Paused);
    feed(&mut source, 4, Input::Devices(Bytes::new()));
    let outputs = feed(&mut source, 4, clean());
    let pause = outputs.into_iter().find_map(|output| match output {
        Output::Control(Frame::Pause(pause)) => Some(pause),
        _ => None,
    });
    (source, pause.unwrap())
}

fn gave_up() -> Source {
    let (mut source, pause) = sealed_source();
    let Offer { transfer, epoch, .. } = offer();
    let Pause { attempt, root, device_digest, .. } = pause;
    feed(&mut source, 5, Input::Frame(Frame::Ready(Ready { transfer, epoch, attempt, root, device_digest })));
    let outputs = feed(&mut source, 6, Input::Persisted);
    assert!(says(&outputs, |frame| matches!(frame, Frame::Run(_))), "{outputs:?}");
    source
}

fn sink(lane_window: u64) -> Sink {
    let layout = offer().layout;
    let config = SinkConfig { lane_window, ..SinkConfig::default() };
    let mut sink = Sink::new(config, offer(), Arc::new(Leaves::new(&layout)), PEER);
    feed(&mut sink, 0, Input::Start);
    sink
}

/// A sink of a guest of zeros that has promised READY, and the RUN that it waits for.
fn staged_sink() -> (Sink, Frame) {
    let mut sink = sink(0);
    let Offer { transfer, epoch, layout, .. } = offer();
    let root = leaves::Tree::new(&layout).root(&Leaves::new(&layout));
    let device_digest = Digest(*blake3::hash(&[]).as_bytes());
    let pause = Pause { attempt: 1, root, device_bytes: 0, device_digest, finals: vec![] };
    feed(&mut sink, 1, Input::Frame(Frame::Pause(pause)));
    feed(&mut sink, 1, Input::Staged);
    (sink, Frame::Run(Run { transfer, epoch, attempt: 1, root }))
}

fn ready_sink() -> (Sink, Frame) {
    let (mut sink, run) = staged_sink();
    let outputs = feed(&mut sink, 2, Input::Persisted);
    assert!(says(&outputs, |frame| matches!(frame, Frame::Ready(_))), "{outputs:?}");
    (sink, run)
}

/// Ticks at each deadline for a while: none may stay in the past.
fn tick_through(machine: &mut impl Machine, until: Time) {
    let mut ticks = 0;
    while let Some(deadline) = machine.deadline().filter(|&deadline| deadline < until) {
        machine.handle(deadline, Input::Tick);
        while machine.poll().is_some() {}
        ticks += 1;
        assert!(ticks < 1000, "the deadline {deadline:?} comes again and again");
    }
}

// dwcp-sim seed 36
#[test]
fn a_failed_redial_is_followed_by_another() {
    let mut source = source();
    feed(&mut source, 0, Input::Start);
    feed(&mut source, 0, Input::ControlDown { clean: false });
    for ms in [50, 150, 350] {
        let outputs = feed(&mut source, ms, Input::Tick);
        assert!(outputs.iter().any(|output| matches!(output, Output::Redial { fresh: false })), "{ms}: {outputs:?}");
        feed(&mut source, ms, Input::ControlDown { clean: false });
    }
}

// dwcp-sim seeds 3, 21, 32, 36, 120
#[test]
fn no_deadline_stays_in_the_past() {
    let minutes = at(120_000);
    let limited = SourceConfig { bandwidth: NonZeroU64::new(1000), ..SourceConfig::default() };
    let mut unanswered = Source::new(limited, offer(), Arc::new(Leaves::new(&offer().layout)), PEER);
    feed(&mut unanswered, 0, Input::Start);
    tick_through(&mut unanswered, minutes);
    tick_through(&mut sealed_source().0, minutes);
    tick_through(&mut gave_up(), minutes);
    tick_through(&mut ready_sink().0, minutes);
    let mut cut = gave_up();
    feed(&mut cut, 7, Input::ControlDown { clean: false });
    tick_through(&mut cut, minutes);
}

/// The effort of the last extent of 16 MiB that pack to half, over sockets in which no write ever waits.
fn effort_at_the_end(bandwidth: Option<NonZeroU64>) -> dwcp_hde::Effort {
    let offer = Offer { layout: Layout::new(&[16 << 20]).unwrap(), ..offer() };
    let config = SourceConfig { lanes: 1, bandwidth, ..SourceConfig::default() };
    let mut source = Source::new(config, offer.clone(), Arc::new(Leaves::new(&offer.layout)), PEER);
    let (lane, transfer) = (LaneId(1), offer.transfer);
    let clean = DirtyMap::new(&offer.layout);
    feed(&mut source, 0, Input::Start);
    feed(&mut source, 0, Input::Harvested { dirty: clean, pending: Pending::Unknown });
    feed(&mut source, 0, Input::Frame(Frame::Accept(Accept { transfer, dictionaries: 0, baseline: None })));
    let mut due: std::collections::VecDeque<_> = feed(&mut source, 0, Input::LaneUp { lane, credit: 1 << 40 }).into();
    let (mut ms, mut last) = (0, None);
    while source.progress().pages_settled < offer.layout.pages() {
        let Some(output) = due.pop_front() else {
            ms += 1;
            due.extend(feed(&mut source, ms, Input::Tick));
            continue;
        };
        let Output::Send(Dispatch { seq, extent, effort, .. }) = output else { continue };
        last = Some(effort);
        let carried = u16::try_from(extent.pages()).unwrap();
        let (wire_bytes, encode) = (u64::from(carried) * 2048, Duration::from_millis(1));
        let encoded = Encoded { lane, seq, wire_bytes, carried, encode, ..Encoded::default() };
        due.extend(feed(&mut source, ms, Input::Encoded(encoded)));
        due.extend(feed(&mut source, ms, Input::Frame(Frame::Ack(Ack { durable: 0, lanes: vec![(lane, seq + 1)] }))));
    }
    last.unwrap()
}

#[test]
fn a_limit_is_a_slow_link() {
    let limited = effort_at_the_end(NonZeroU64::new(8 << 20));
    assert!(!matches!(limited, dwcp_hde::Effort::Raw | dwcp_hde::Effort::Light), "{limited:?}");
    let free = effort_at_the_end(None);
    assert_eq!(free, dwcp_hde::Effort::Light, "nothing is known before anything was acknowledged");
}

// dwcp-sim seed 88
#[test]
fn a_source_that_gave_up_never_says_abort() {
    let mut source = gave_up();
    let outputs = feed(&mut source, 7, Input::Cancel);
    assert!(!says(&outputs, |_| true), "{outputs:?}");
    assert!(matches!(outputs.last(), Some(Output::Finished(Outcome { owner: Owner::InDoubt, .. }))));
}

#[test]
fn a_promise_that_cannot_be_recorded_costs_no_page_that_is_durable() {
    let (mut sink, _) = staged_sink();
    let outputs = feed(&mut sink, 2, Input::PersistFailed { text: "no space left".into() });
    let kept: Vec<_> = outputs.iter().filter(|output| matches!(output, Output::Forget(_) | Output::Park)).collect();
    assert!(matches!(kept[..], [Output::Forget(_), Output::Park]), "{outputs:?}");
    assert!(!outputs.iter().any(|output| matches!(output, Output::Discard)), "{outputs:?}");
}

#[test]
fn a_cancel_after_run_is_too_late() {
    let (mut sink, run) = ready_sink();
    feed(&mut sink, 3, Input::Frame(run));
    assert!(feed(&mut sink, 3, Input::Cancel).is_empty());
    feed(&mut sink, 4, Input::Running);
    let outputs = feed(&mut sink, 5, Input::Persisted);
    assert!(says(&outputs, |frame| matches!(frame, Frame::Running(_))), "{outputs:?}");
}

// dwcp-sim seed 175
#[test]
fn a_guest_that_runs_is_said_to_run_even_when_that_cannot_be_recorded() {
    let (mut sink, run) = ready_sink();
    feed(&mut sink, 3, Input::Frame(run));
    feed(&mut sink, 4, Input::Running);
    let outputs = feed(&mut sink, 5, Input::PersistFailed { text: "full".into() });
    assert!(says(&outputs, |frame| matches!(frame, Frame::Running(_))), "{outputs:?}");
    assert!(!says(&outputs, |frame| matches!(frame, Frame::Abort(_))), "{outputs:?}");
    assert!(matches!(outputs.last(), Some(Output::Finished(Outcome { owner: Owner::Sink, .. }))));
}

// dwcp-sim seed 367. spec: C-3
#[test]
fn a_lane_always_has_credit_for_the_largest_extent() {
    let largest = u64::try_from(MAX_EXTENT_BYTES + FRAME_HEADER_BYTES).unwrap();
    for window in [0, largest + 1000, 2 * largest - 1] {
        let mut sink = sink(window);
        let lane = LaneId(1);
        let mut granted = feed(&mut sink, 0, Input::LaneJoin { lane })
            .iter()
            .find_map(|output| if let Output::AdmitLane { credit, .. } = output { Some(*credit) } else { None })
            .unwrap();
        let mut consumed = 0;
        for seq in 0..50 {
            let wire_bytes = 40_000;
            consumed += wire_bytes;
            for output in feed(&mut sink, seq, Input::Applied(Applied { lane, seq, wire_bytes, pages: 9, durable: 0 }))
            {
                if let Output::Grant { total, .. } = output {
                    granted = total;
                }
            }
            assert!(granted - consumed >= largest, "window {window}: stuck after {seq}");
        }
    }
}

#[test]
fn a_control_lane_that_speaks_again_is_up_again() {
    let mut sink = sink(0);
    let lane = LaneId(1);
    feed(&mut sink, 0, Input::LaneJoin { lane });
    // Silent for too long: lanes are closed.
    let outputs = feed(&mut sink, 10_001, Input::Tick);
    assert!(outputs.iter().any(|output| matches!(output, Output::CloseLane(_))), "{outputs:?}");
    feed(&mut sink, 11_000, Input::Frame(Frame::Bury(Bury { lane })));
    let outputs = feed(&mut sink, 11_001, Input::LaneDown { lane });
    assert!(says(&outputs, |frame| matches!(frame, Frame::Buried(_))), "{outputs:?}");
    feed(&mut sink, 11_002, Input::Frame(Frame::Ping(Ping { id: 1 })));
    assert!(feed(&mut sink, 20_000, Input::Tick).is_empty(), "not an orphan");
}

#[test]
fn a_burial_leaves_nothing_to_acknowledge() {
    let mut sink = sink(0);
    let applied =
        |lane, seq| Input::Applied(Applied { lane: LaneId(lane), seq, wire_bytes: 100, pages: 1, durable: 0 });
    feed(&mut sink, 0, Input::LaneJoin { lane: LaneId(1) });
    feed(&mut sink, 0, Input::LaneJoin { lane: LaneId(2) });
    (0..3).for_each(|seq| drop(feed(&mut sink, 0, applied(1, seq))));
    feed(&mut sink, 0, Input::LaneDown { lane: LaneId(1) });
    feed(&mut sink, 0, Input::Frame(Frame::Bury(Bury { lane: LaneId(1) })));
    let outputs = feed(&mut sink, 0, applied(2, 0));
    assert!(!says(&outputs, |frame| matches!(frame, Frame::Ack(_))), "one extent waits for more: {outputs:?}");
}

// spec: S-8
#[test]
fn a_recovered_source_dials_a_fresh_session_and_stays_with_it() {
    let record = Record::of(&offer(), 1, Digest([1; 32]), PEER, Standing::GaveUp);
    let mut source = Source::recover(SourceConfig::default(), offer(), &record);
    let redials = |source: &mut Source, ms| {
        feed(source, ms, Input::ControlDown { clean: false });
        let outputs = feed(source, ms + 2000, Input::Tick);
        outputs.into_iter().find_map(|output| if let Output::Redial { fresh } = output { Some(fresh) } else { None })
    };
    assert_eq!(redials(&mut source, 0), Some(true), "the old session's keys are gone");
    let outputs = feed(&mut source, 3000, Input::ControlUp);
    assert!(says(&outputs, |frame| matches!(frame, Frame::Run(_))), "{outputs:?}");
    assert_eq!(redials(&mut source, 4000), Some(false), "the new session goes on");
    assert_eq!(source.progress().downtime.unwrap_or(NOTHING), NOTHING);
}
