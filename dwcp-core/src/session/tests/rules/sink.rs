use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::extent::FlatPage;
use crate::session::leaves::{Tree, leaf};
use crate::session::record::Standing;
use crate::session::{Applied, Owner, Record, Sink, SinkConfig};
use crate::wire::limits::MAX_EXTENT_BYTES;
use crate::wire::{
    Abort, AbortReason, Accept, Ack, Buried, Bury, Credit, DeviceState, Digest, ErrorFrame, Fence, Framing, Have,
    Pause, Ping, Ready, Run, Running,
};

const DEVICES: &[u8] = b"devices";

fn config() -> SinkConfig {
    SinkConfig { lanes: 2, ..SinkConfig::default() }
}

fn receiving() -> Bench<Sink> {
    let mut bench = Bench::new(Sink::new(config(), offer(), leaves(), PEER));
    let accept = Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None });
    assert_eq!(frames(&bench.feed(Input::Start)), [accept]);
    bench
}

fn joined() -> Bench<Sink> {
    let mut bench = receiving();
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LANE }), Output::AdmitLane { lane: LANE, .. }));
    bench
}

fn applied(seq: u64) -> Input {
    Input::Applied(Applied { lane: LANE, seq, wire_bytes: 100, pages: 1, durable: 10 + seq })
}

fn root() -> Digest {
    Tree::new(&offer().layout).root(&leaves())
}

fn pause(attempt: u32, finals: &[(LaneId, u64)]) -> Pause {
    let device_bytes = u64::try_from(DEVICES.len()).unwrap();
    Pause { attempt, root: root(), device_bytes, device_digest: leaf(DEVICES), finals: finals.to_vec() }
}

fn part(attempt: u32, offset: u64, bytes: &'static [u8]) -> Frame {
    Frame::DeviceState(DeviceState { attempt, offset, bytes: Bytes::from_static(bytes) })
}

fn expected_ready(attempt: u32) -> Frame {
    let Offer { transfer, epoch, .. } = offer();
    Frame::Ready(Ready { transfer, epoch, attempt, root: root(), device_digest: leaf(DEVICES) })
}

fn run(attempt: u32) -> Run {
    Run { transfer: offer().transfer, epoch: offer().epoch, attempt, root: root() }
}

fn running() -> Frame {
    Frame::Running(Running { transfer: offer().transfer, epoch: offer().epoch })
}

fn ready() -> Bench<Sink> {
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[])));
    assert!(asked!(bench.hear(part(1, 0, DEVICES)), Output::Stage { .. }));
    bench.feed(Input::Staged);
    assert_eq!(frames(&bench.feed(Input::Persisted)), [expected_ready(1)]);
    bench
}

fn violates(outputs: &[Output]) {
    assert_eq!(error_code(outputs), Some(ErrorCode::Unexpected), "{outputs:?}");
    assert!(outcome(outputs).is_some());
    assert!(!asked!(outputs, Output::Run));
}

// spec: O-3
#[test]
fn the_same_offer_again_is_accepted_again() {
    let mut bench = receiving();
    let accept = Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None });
    assert_eq!(frames(&bench.hear(Frame::Offer(offer()))), [accept]);
    violates(&bench.hear(Frame::Offer(Offer { epoch: FenceEpoch(4), ..offer() })));
    let mut bench = joined();
    bench.feed(applied(0));
    violates(&bench.hear(Frame::Offer(offer())));
}

// spec: L-2
#[test]
fn a_lane_joins_once_and_within_the_limit() {
    let mut bench = receiving();
    let mut join = |lane| {
        let outputs = bench.feed(Input::LaneJoin { lane: LaneId(lane) });
        assert_ne!(asked!(outputs, Output::AdmitLane { .. }), asked!(outputs, Output::RefuseLane { .. }));
        asked!(outputs, Output::AdmitLane { .. })
    };
    assert_eq!([join(0), join(1), join(1), join(2), join(3)], [false, true, false, true, false]);
    bench.feed(Input::LaneDown { lane: LANE });
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LANE }), Output::RefuseLane { .. }), "an id is used once");
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LaneId(3) }), Output::AdmitLane { .. }));
    bench.feed(Input::ControlDown { clean: false });
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LaneId(4) }), Output::RefuseLane { .. }), "no lane 0");
    let mut bench = ready();
    bench.hear(Frame::Run(run(1)));
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LaneId(4) }), Output::RefuseLane { .. }), "after RUN");
}

// spec
#[test]
fn an_ack_names_what_is_applied_and_comes_soon() {
    let mut bench = joined();
    assert!(frames(&bench.feed(applied(0))).is_empty(), "it may wait for others");
    assert!(bench.machine.deadline().is_some_and(|at| at.since(bench.now) < Duration::from_millis(3)));
    let acks = frames(&bench.after(Duration::from_millis(3)));
    assert_eq!(acks, [Frame::Ack(Ack { durable: 10, lanes: vec![(LANE, 1)] })]);
    let many: Vec<Frame> = (1..5).flat_map(|seq| frames(&bench.feed_at_once(applied(seq)))).collect();
    assert_eq!(many, [Frame::Ack(Ack { durable: 14, lanes: vec![(LANE, 5)] })]);
}

// spec: C-3
#[test]
fn credit_is_granted_again_when_half_of_it_is_used() {
    let window = 8 << 20;
    let mut bench = receiving();
    let outputs = bench.feed(Input::LaneJoin { lane: LANE });
    assert!(matches!(outputs[..], [Output::AdmitLane { credit, .. }] if credit == window));
    let mut apply =
        |seq, wire_bytes| bench.feed(Input::Applied(Applied { lane: LANE, seq, wire_bytes, pages: 1, durable: 0 }));
    assert!(!asked!(apply(0, window / 2), Output::Grant { .. }));
    let outputs = apply(1, 1);
    let total = window / 2 + 1 + window;
    let grant = outputs.iter().position(|output| matches!(output, Output::Grant { total: to, .. } if *to == total));
    let said = outputs.iter().position(|output| matches!(output, Output::Control(Frame::Credit(_))));
    assert!(grant.unwrap() < said.unwrap(), "the gate opens before the frame goes out");
    assert!(frames(&outputs).contains(&Frame::Credit(Credit { lane: LANE, total })));
}

// spec: C-3
#[test]
fn a_window_always_has_room_for_an_extent() {
    let mut bench = Bench::new(Sink::new(SinkConfig { lane_window: 1, ..config() }, offer(), leaves(), PEER));
    bench.feed(Input::Start);
    let outputs = bench.feed(Input::LaneJoin { lane: LANE });
    let least = u64::try_from(MAX_EXTENT_BYTES).unwrap();
    assert!(matches!(outputs[..], [Output::AdmitLane { credit, .. }] if credit > least));
}

// spec: B-1, B-2
#[test]
fn a_burial_is_answered_when_the_worker_has_stopped() {
    let mut bench = joined();
    let outputs = bench.hear(Frame::Bury(Bury { lane: LANE }));
    assert!(asked!(outputs, Output::CloseLane(LANE)) && frames(&outputs).is_empty());
    assert!(frames(&bench.feed(applied(0))).is_empty(), "what was in its hands");
    let outputs = bench.feed(Input::LaneDown { lane: LANE });
    assert_eq!(frames(&outputs), [Frame::Buried(Buried { lane: LANE, applied: 1 })]);
    let again = bench.hear(Frame::Bury(Bury { lane: LANE }));
    assert_eq!(frames(&again), [Frame::Buried(Buried { lane: LANE, applied: 1 })]);
}

// spec: B-1
#[test]
fn a_lane_that_was_buried_before_it_joined_cannot_join() {
    let mut bench = receiving();
    let outputs = bench.hear(Frame::Bury(Bury { lane: LANE }));
    assert_eq!(frames(&outputs), [Frame::Buried(Buried { lane: LANE, applied: 0 })]);
    assert!(asked!(bench.feed(Input::LaneJoin { lane: LANE }), Output::RefuseLane { .. }));
}

// spec: S-1
#[test]
fn the_attempts_of_pauses_rise() {
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(2, &[(LANE, 9)])));
    violates(&bench.hear(Frame::Pause(pause(2, &[(LANE, 9)]))));
    let mut bench = ready();
    bench.hear(Frame::Run(run(1)));
    violates(&bench.hear(Frame::Pause(pause(3, &[]))));
}

// spec: S-2
#[test]
fn device_state_comes_in_order_and_within_its_length() {
    let wrong = [part(1, 0, b"devi"), part(1, 5, b"ces"), part(1, 4, b"cess"), part(2, 4, b"ces")];
    for second in wrong {
        let mut bench = joined();
        bench.hear(Frame::Pause(pause(1, &[])));
        assert!(outcome(&bench.hear(part(1, 0, b"devi"))).is_none());
        violates(&bench.hear(second));
    }
    let mut bench = joined();
    violates(&bench.hear(part(1, 0, DEVICES)));
}

// spec: S-3
#[test]
fn ready_is_said_when_everything_is_here_staged_and_recorded() {
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[(LANE, 2)])));
    assert!(!asked!(bench.hear(part(1, 0, DEVICES)), Output::Stage { .. }), "extents are missing");
    assert!(!asked!(bench.feed(applied(0)), Output::Stage { .. }));
    assert!(asked!(bench.feed(applied(1)), Output::Stage { .. }));
    let outputs = bench.feed(Input::Staged);
    let Some(Output::Persist(record)) = outputs.first() else { panic!("{outputs:?}") };
    assert_eq!(*record, Record::of(&offer(), 1, root(), PEER, Standing::Ready));
    assert!(frames(&outputs).is_empty(), "not durable yet");
    assert_eq!(frames(&bench.feed(Input::Persisted)), [expected_ready(1)]);
}

// spec: S-3, X-1
#[test]
fn a_root_or_device_state_that_differs_is_an_integrity_error() {
    let mut other = pause(1, &[]);
    other.root = Digest([1; 32]);
    let mut device = pause(1, &[]);
    device.device_digest = Digest([1; 32]);
    for (pause, code) in [(other, ErrorCode::RootMismatch), (device, ErrorCode::DeviceDigest)] {
        let mut bench = joined();
        bench.hear(Frame::Pause(pause));
        let outputs = bench.hear(part(1, 0, DEVICES));
        assert_eq!(error_code(&outputs), Some(code));
        assert!(asked!(outputs, Output::Discard) && !asked!(outputs, Output::Stage { .. }));
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
    }
}

// spec: S-5
#[test]
fn nothing_runs_without_the_run_that_was_promised() {
    violates(&joined().hear(Frame::Run(run(1))));
    let wrong = [
        Run { transfer: TransferId([0; 16]), ..run(1) },
        Run { epoch: FenceEpoch(4), ..run(1) },
        Run { attempt: 2, ..run(1) },
        Run { root: Digest([1; 32]), ..run(1) },
    ];
    for run in wrong {
        violates(&ready().hear(Frame::Run(run)));
    }
    assert!(asked!(ready().hear(Frame::Run(run(1))), Output::Run));
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[])));
    bench.hear(part(1, 0, DEVICES));
    violates(&bench.hear(Frame::Run(run(1))));
}

// spec: S-7
#[test]
fn the_guest_is_started_once_and_running_is_said_when_that_is_recorded() {
    let mut bench = ready();
    assert!(asked!(bench.hear(Frame::Run(run(1))), Output::Run));
    let outputs = bench.feed(Input::Running);
    let Some(Output::Persist(record)) = outputs.first() else { panic!("{outputs:?}") };
    assert_eq!(record.standing, Standing::Ran);
    assert!(frames(&outputs).is_empty(), "not durable yet");
    assert_eq!(frames(&bench.feed(Input::Persisted)), [running()]);
    let outputs = bench.hear(Frame::Run(run(1)));
    assert_eq!(frames(&outputs), [running()]);
    assert!(!asked!(outputs, Output::Run), "never twice");
}

// spec: S-8
#[test]
fn a_sink_that_crashed_answers_by_its_record() {
    let record = |standing| Record::of(&offer(), 1, root(), PEER, standing);
    let mut bench = Bench::new(Sink::recover(config(), offer(), &record(Standing::Ran)));
    assert!(frames(&bench.feed(Input::Start)).is_empty());
    let outputs = bench.hear(Frame::Run(run(1)));
    assert_eq!(frames(&outputs), [running()]);
    assert!(!asked!(outputs, Output::Run), "it runs already");
    let mut bench = Bench::new(Sink::recover(config(), offer(), &record(Standing::Ready)));
    bench.feed(Input::Start);
    assert!(asked!(bench.hear(Frame::Run(run(1))), Output::Run));
}

// spec: S-10
#[test]
fn a_promise_whose_connection_is_lost_is_told_to_the_log() {
    assert!(asked!(ready().feed(Input::ControlDown { clean: false }), Output::Adrift));
    assert!(asked!(ready().after(Duration::from_secs(11)), Output::Adrift), "silence is a loss, too");
    assert!(!asked!(joined().feed(Input::ControlDown { clean: false }), Output::Adrift));
    let mut bench = ready();
    bench.hear(Frame::Run(run(1)));
    assert!(!asked!(bench.feed(Input::ControlDown { clean: false }), Output::Adrift), "RUN has come");
}

// spec: S-9
#[test]
fn an_extent_or_a_new_pause_voids_the_ready() {
    let mut bench = ready();
    bench.feed(applied(0));
    violates(&bench.hear(Frame::Run(run(1))));
    let mut bench = ready();
    bench.hear(Frame::Pause(pause(2, &[(LANE, 5)])));
    violates(&bench.hear(Frame::Run(run(1))));
}

// spec: S-9
#[test]
fn a_pause_taken_back_while_the_sink_stages_makes_no_ready() {
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[])));
    bench.hear(part(1, 0, DEVICES));
    bench.feed(applied(0));
    assert!(!asked!(bench.feed(Input::Staged), Output::Persist(_)));
    assert!(frames(&bench.feed(Input::Persisted)).is_empty());
}

// spec: S-9
#[test]
fn a_pause_that_was_taken_back_before_it_was_looked_at_accuses_nobody() {
    let (held, expected) = (leaves(), leaves());
    let mut bench = Bench::new(Sink::new(config(), offer(), Arc::clone(&held), PEER));
    bench.feed(Input::Start);
    bench.feed(Input::LaneJoin { lane: LANE });
    bench.hear(Frame::Pause(pause(1, &[])));
    bench.hear(part(1, 0, DEVICES));
    // It stages slowly; meanwhile the source loses lane 0, pauses again, and takes that back, too.
    bench.hear(Frame::Pause(pause(2, &[])));
    bench.hear(part(2, 0, DEVICES));
    held.set(FlatPage(3), leaf(b"written since"));
    bench.feed(applied(0));
    let outputs = bench.feed(Input::Staged);
    assert_eq!(error_code(&outputs), None, "the root is no longer that of any pause: {outputs:?}");
    assert!(outcome(&outputs).is_none() && !asked!(outputs, Output::Persist(_)));
    expected.set(FlatPage(3), leaf(b"written since"));
    let root = Tree::new(&offer().layout).root(&expected);
    bench.hear(Frame::Pause(Pause { root, ..pause(3, &[(LANE, 1)]) }));
    assert!(asked!(bench.hear(part(3, 0, DEVICES)), Output::Stage { .. }));
}

// spec: V-4
#[test]
fn a_fence_is_answered_on_its_own_connection_only() {
    let config = SinkConfig { messages: true, ..config() };
    let mut bench = Bench::new(Sink::new(config, offer(), leaves(), PEER));
    bench.feed(Input::Start);
    bench.feed(Input::LaneJoin { lane: LANE });
    let epoch = FenceEpoch(4);
    let transfer = offer().transfer;
    let fence = Fence { transfer, epoch, framing: Framing::Messages, restart: false, lanes: Vec::new() };
    bench.hear(Frame::Bury(Bury { lane: LANE }));
    bench.hear(Frame::Fence(fence.clone()));
    assert!(asked!(bench.feed(Input::LaneDown { lane: LANE }), Output::RaiseFence { .. }));
    // The answer to BURY is lost, and what is asked again has not come yet.
    bench.feed(Input::ControlDown { clean: false });
    bench.feed(Input::ControlUp);
    let is_handover = |frame: &Frame| matches!(frame, Frame::Handover(_));
    assert!(!frames(&bench.feed(Input::Raised(epoch))).iter().any(is_handover));
    assert_eq!(
        frames(&bench.hear(Frame::Bury(Bury { lane: LANE }))),
        [Frame::Buried(Buried { lane: LANE, applied: 0 })]
    );
    assert!(frames(&bench.hear(Frame::Fence(fence))).iter().all(is_handover));
}

// spec: S-10
#[test]
fn a_sink_that_is_ready_waits_for_ever_and_one_that_is_not_does_not() {
    let mut bench = ready();
    bench.feed(Input::ControlDown { clean: false });
    let outputs = bench.after(Duration::from_secs(365 * 86_400));
    assert!(outcome(&outputs).is_none() && !asked!(outputs, Output::Discard));
    let outputs = bench.feed(Input::Cancel);
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::InDoubt);
    assert!(!asked!(outputs, Output::Discard) && !asked!(outputs, Output::Forget(_)));
    let mut bench = joined();
    bench.feed(Input::ControlDown { clean: false });
    let outputs = bench.after(Duration::from_secs(61));
    assert!(asked!(outputs, Output::Park));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
}

// spec: R-3
#[test]
fn a_node_that_shuts_down_parks_what_is_not_whole_and_hands_over_the_rest() {
    let is_shutdown = |frame: &Frame| matches!(frame, Frame::Abort(abort) if abort.reason == AbortReason::Shutdown);
    let outputs = joined().feed(Input::Retire);
    assert!(frames(&outputs).iter().any(is_shutdown) && asked!(outputs, Output::Park));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);

    // The device state is still on its way: that takes no time worth a transfer.
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[])));
    assert!(outcome(&bench.feed(Input::Retire)).is_none());
    assert!(asked!(bench.hear(part(1, 0, DEVICES)), Output::Stage { .. }));
    let outputs = bench.feed(Input::Cancel);
    assert!(frames(&outputs).iter().any(is_shutdown) && asked!(outputs, Output::Park), "its time is over");

    // What the pause announced has not come, and the source takes it back: there is nothing to wait for.
    let mut bench = joined();
    bench.hear(Frame::Pause(pause(1, &[])));
    assert!(outcome(&bench.feed(Input::Retire)).is_none());
    let outputs = bench.feed(applied(0));
    assert!(frames(&outputs).iter().any(is_shutdown) && asked!(outputs, Output::Park), "{outputs:?}");
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);

    let mut bench = ready();
    assert!(outcome(&bench.feed(Input::Retire)).is_none());
    assert!(asked!(bench.hear(Frame::Run(run(1))), Output::Run));

    // Nobody waits for a source that was lost after its guest ran.
    for (first, then) in [
        (Input::Retire, Input::ControlDown { clean: false }),
        (Input::ControlDown { clean: false }, Input::Retire),
        (Input::Retire, Input::Cancel),
    ] {
        let mut bench = ready();
        bench.hear(Frame::Run(run(1)));
        bench.feed(Input::Running);
        bench.feed(Input::Persisted);
        assert!(outcome(&bench.feed(first)).is_none());
        assert_eq!(outcome(&bench.feed(then)).unwrap().owner, Owner::Sink);
    }

    let mut bench = ready();
    bench.feed(Input::Retire);
    let outputs = bench.feed(Input::Cancel);
    assert!(frames(&outputs).is_empty(), "the promise stands");
    assert!(!asked!(outputs, Output::Park) && !asked!(outputs, Output::Forget(_)));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::InDoubt);
}

// spec: S-10, O-6, T-2
#[test]
fn a_source_that_comes_again_ends_what_it_lost_and_nothing_else() {
    for again in [false, true] {
        let silent = Duration::from_secs(11);
        let mut bench = joined();
        assert!(outcome(&bench.feed(Input::Superseded { again })).is_none(), "its connection lives");
        bench.after(silent);
        let outputs = bench.feed(Input::Superseded { again });
        assert!(asked!(outputs, Output::Park));
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);

        let mut bench = ready();
        assert!(outcome(&bench.feed(Input::Superseded { again })).is_none(), "its connection lives");
        bench.after(silent);
        let outputs = bench.feed(Input::Superseded { again });
        // Without an offer of the same transfer the source may have given it up.
        assert_eq!(outcome(&outputs).map(|outcome| outcome.owner), again.then_some(Owner::Source));
        assert_eq!(asked!(outputs, Output::Forget(_)), again);

        let mut bench = ready();
        bench.hear(Frame::Run(run(1)));
        bench.feed(Input::ControlDown { clean: false });
        assert!(outcome(&bench.feed(Input::Superseded { again })).is_none(), "the guest is being started");
        bench.feed(Input::Running);
        assert!(outcome(&bench.feed(Input::Superseded { again })).is_none(), "and that is being recorded");
        bench.feed(Input::Persisted);
        let outputs = bench.feed(Input::Superseded { again });
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Sink);
        assert!(!asked!(outputs, Output::Forget(_)), "a late question finds the record");
    }
}

// spec: S-10
#[test]
fn the_source_may_end_a_ready_sink_by_abort() {
    let outputs = ready().hear(Frame::Abort(Abort { reason: AbortReason::Cancelled, text: String::new() }));
    assert!(asked!(outputs, Output::Park) && asked!(outputs, Output::Forget(_)));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
}

// spec: S-6, S-7
#[test]
fn once_run_is_here_no_abort_makes_a_doubt_of_it() {
    let late = [
        Frame::Abort(Abort { reason: AbortReason::Cancelled, text: String::new() }),
        Frame::Error(ErrorFrame { code: ErrorCode::Unexpected, lane: LANE, position: 0, text: String::new() }),
    ];
    for frame in late {
        let mut bench = ready();
        assert!(asked!(bench.hear(Frame::Run(run(1))), Output::Run));
        for input in [None, Some(Input::Running), Some(Input::Persisted)] {
            let outputs = input.map(|input| bench.feed(input)).unwrap_or_default();
            assert!(outcome(&outputs).is_none(), "{outputs:?}");
            let outputs = bench.hear(frame.clone());
            assert!(outputs.is_empty(), "{outputs:?}");
        }
        assert_eq!(frames(&bench.hear(Frame::Run(run(1)))), [running()]);
        assert_eq!(outcome(&bench.feed(Input::ControlDown { clean: true })).unwrap().owner, Owner::Sink);
    }
}

// spec: T-1
#[test]
fn a_ping_is_answered_with_its_number() {
    assert_eq!(frames(&receiving().hear(Frame::Ping(Ping { id: 5 }))), [Frame::Pong(Ping { id: 5 })]);
}

// spec: T-2
#[test]
fn a_silent_source_is_taken_for_lost() {
    let mut bench = joined();
    assert!(!asked!(bench.after(Duration::from_millis(9_900)), Output::CloseLane(_)));
    assert!(asked!(bench.after(Duration::from_millis(200)), Output::CloseLane(LANE)));
}

// spec: R-1
#[test]
fn what_is_held_is_told_before_accept() {
    let offer = Offer { layout: crate::Layout::new(&[4096 * 64, 4096 * 200]).unwrap(), ..offer() };
    let held = Arc::new(crate::session::Leaves::new(&offer.layout));
    for page in [3, 4, 200] {
        held.set(crate::extent::FlatPage(page), leaf(&[7; 4096]));
    }
    let mut bench = Bench::new(Sink::new(config(), offer.clone(), held, PEER));
    let have = |region, first, pages| {
        let leaves = vec![leaf(&[7; 4096]); pages];
        Frame::Have(Have { region: crate::RegionId(region), first, leaves })
    };
    let accept = Frame::Accept(Accept { transfer: offer.transfer, dictionaries: 0, baseline: None });
    let told = [have(0, 3, 2), have(1, 200 - 64, 1), accept];
    assert_eq!(frames(&bench.feed(Input::Start)), told);
    // The ACCEPT was lost: all of it again.
    assert_eq!(frames(&bench.hear(Frame::Offer(offer))), told);
}

/// Its own failure like any other, but for the word that says whose bytes are damaged.
// spec: O-9, K-12
#[test]
fn a_page_of_a_baseline_that_cannot_be_provided_has_a_reason_of_its_own() {
    let rotten = crate::GuestError::Baseline {
        digest: Digest([1; 32]),
        name: Name::new("golden").unwrap(),
        region: crate::RegionId(0),
        page: 17,
        why: String::new(),
    };
    for (error, expected) in [
        (rotten, AbortReason::Baseline),
        (crate::GuestError::NoSpace { what: String::new() }, AbortReason::LocalFailure),
    ] {
        let outputs = joined().feed(Input::GuestFailed(error));
        assert!(frames(&outputs).iter().any(|frame| matches!(frame, Frame::Abort(abort) if abort.reason == expected)));
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
        assert_eq!(asked!(outputs, Output::Discard), expected == AbortReason::Baseline, "a full disk has whole pages");
    }
}

// spec: O-9, R-1
#[test]
fn of_an_agreed_baseline_only_what_is_held_otherwise_is_told() {
    let [held, baseline] = [(); 2].map(|()| leaves());
    (0..64).for_each(|page| baseline.set(FlatPage(page), leaf(&[1; 4096])));
    for (page, byte) in [(2, 1), (3, 7), (4, 7)] {
        held.set(FlatPage(page), leaf(&[byte; 4096]));
    }
    let named = Offer { baselines: vec![Digest([1; 32]); 3], ..offer() };
    let sink = Sink::new(config(), named.clone(), Arc::clone(&held), PEER).with_baseline(2, baseline);
    let mut bench = Bench::new(sink);
    let told = [
        Frame::Have(Have { region: crate::RegionId(0), first: 3, leaves: vec![leaf(&[7; 4096]); 2] }),
        Frame::Accept(Accept { transfer: named.transfer, dictionaries: 0, baseline: Some(2) }),
    ];
    assert_eq!(frames(&bench.feed(Input::Start)), told);
    assert_eq!(frames(&bench.hear(Frame::Offer(named))), told, "the ACCEPT was lost");
    let expected = |page| leaf(&[if (3..5).contains(&page) { 7 } else { 1 }; 4096]);
    assert!((0..64).all(|page| held.get(FlatPage(page)) == expected(page)), "the root is over all of it");
}

// spec: R-1
#[test]
fn much_that_is_held_is_told_at_the_pace_of_the_source() {
    let offer = Offer { layout: crate::Layout::new(&[4096 * 64 * 2048 * 2]).unwrap(), ..offer() };
    let held = Arc::new(crate::session::Leaves::new(&offer.layout));
    (0..64 * 2048 + 1).for_each(|page| held.set(crate::extent::FlatPage(page), leaf(&[7; 4096])));
    let mut bench = Bench::new(Sink::new(config(), offer, held, PEER));
    let outputs = bench.feed(Input::Start);
    assert!(asked!(outputs, Output::Control(Frame::Ping(_))));
    let first = frames(&outputs);
    assert!(first.len() == 64 && first.iter().all(|frame| matches!(frame, Frame::Have(_))), "{}", first.len());
    let pong = Frame::Pong(Ping { id: 0 });
    let rest = frames(&bench.hear(pong.clone()));
    assert!(matches!(rest.as_slice(), [Frame::Have(have), Frame::Accept(_)] if have.leaves.len() == 1), "{rest:?}");
    assert!(frames(&bench.hear(pong)).is_empty(), "ACCEPT is said once");
}
