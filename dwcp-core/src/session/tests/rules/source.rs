use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::guest::{DirtyMap, Pending};
use crate::session::record::Standing;
use crate::session::{Dispatch, Encoded, Owner, Record, SessionError, Source, SourceConfig};
use crate::wire::{
    Abort, AbortReason, Accept, Ack, Buried, Bury, Digest, Have, Pause, PeerLimits, Ping, Ready, Run, Running,
};

fn config() -> SourceConfig {
    SourceConfig { lanes: 1, ..SourceConfig::default() }
}

fn offered(config: SourceConfig) -> Bench<Source> {
    let mut bench = Bench::new(Source::new(config, offer(), leaves(), PEER));
    let outputs = bench.feed(Input::Start);
    assert_eq!(frames(&outputs), [Frame::Offer(offer())]);
    assert!(asked!(outputs, Output::Harvest));
    bench
}

fn accept() -> Frame {
    Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline: None })
}

fn harvested(pages: &[u32]) -> Input {
    let mut dirty = DirtyMap::new(&offer().layout);
    for &page in pages {
        dirty.mark(crate::RegionId(0), page, 1);
    }
    Input::Harvested { dirty, pending: Pending::Unknown }
}

fn dispatches(outputs: Vec<Output>) -> Vec<Dispatch> {
    let sent = outputs.into_iter().filter_map(|output| match output {
        Output::Send(dispatch) => Some(dispatch),
        _ => None,
    });
    sent.collect()
}

fn lanes_opened(outputs: &[Output]) -> Vec<u16> {
    let opened = outputs.iter().filter_map(|output| match output {
        Output::OpenLane(lane) => Some(lane.0),
        _ => None,
    });
    opened.collect()
}

/// All pages are on their way on lane 1, as one extent.
fn copying() -> (Bench<Source>, Dispatch) {
    let mut bench = offered(config());
    assert_eq!(lanes_opened(&bench.hear(accept())), [1]);
    bench.feed(harvested(&[]));
    let sent = dispatches(bench.feed(Input::LaneUp { lane: LANE, credit: WIDE }));
    let [sent] = <[Dispatch; 1]>::try_from(sent).unwrap();
    assert_eq!((sent.seq, sent.extent.pages()), (0, 64));
    (bench, sent)
}

fn encoded(bench: &mut Bench<Source>, lane: LaneId, seq: u64) -> Vec<Output> {
    bench.feed(Input::Encoded(Encoded { lane, seq, wire_bytes: 9000, carried: 64, ..Encoded::default() }))
}

fn ack(lane: LaneId, applied: u64) -> Frame {
    Frame::Ack(Ack { durable: 0, lanes: vec![(lane, applied)] })
}

/// The guest is paused; the last harvest has not come back.
fn draining() -> Bench<Source> {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    assert!(asked!(bench.hear(ack(LANE, 1)), Output::Harvest), "a round ends when all of it is at the sink");
    assert!(asked!(bench.feed(harvested(&[])), Output::Pause));
    let outputs = bench.feed(Input::Paused);
    assert!(asked!(outputs, Output::Harvest) && asked!(outputs, Output::SaveDevices));
    bench
}

fn pause(outputs: &[Output]) -> Option<Pause> {
    frames(outputs).into_iter().find_map(|frame| match frame {
        Frame::Pause(pause) => Some(pause),
        _ => None,
    })
}

fn sealed() -> (Bench<Source>, Pause) {
    let mut bench = draining();
    bench.feed(harvested(&[]));
    let pause = pause(&bench.feed(Input::Devices(Bytes::from_static(b"devices")))).unwrap();
    (bench, pause)
}

fn ready(pause: &Pause) -> Ready {
    let Offer { transfer, epoch, .. } = offer();
    let Pause { attempt, root, device_digest, .. } = *pause;
    Ready { transfer, epoch, attempt, root, device_digest }
}

fn run(pause: &Pause) -> Frame {
    let Offer { transfer, epoch, .. } = offer();
    Frame::Run(Run { transfer, epoch, attempt: pause.attempt, root: pause.root })
}

fn running() -> Frame {
    Frame::Running(Running { transfer: offer().transfer, epoch: offer().epoch })
}

fn gave_up() -> (Bench<Source>, Pause) {
    let (mut bench, pause) = sealed();
    bench.hear(Frame::Ready(ready(&pause)));
    assert_eq!(frames(&bench.feed(Input::Persisted)), [run(&pause)]);
    (bench, pause)
}

// spec: O-4
#[test]
fn no_lane_is_opened_before_the_sink_accepts() {
    let mut bench = offered(config());
    assert!(!asked!(bench.feed(harvested(&[])), Output::OpenLane(_)));
    assert!(!asked!(bench.after(Duration::from_secs(1)), Output::OpenLane(_)));
    assert!(asked!(bench.hear(accept()), Output::OpenLane(_)));
}

// spec: O-4
#[test]
fn an_accept_of_another_transfer_ends_the_session() {
    let mut bench = offered(config());
    let outputs = bench.hear(Frame::Accept(Accept { transfer: TransferId([9; 16]), dictionaries: 0, baseline: None }));
    assert_eq!(error_code(&outputs), Some(ErrorCode::Unexpected));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
}

// spec: O-8
#[test]
fn an_accept_of_dictionaries_that_were_not_offered_ends_the_session() {
    let answered = |offered: u8, dictionaries| {
        let dictionary = |number| Digest([number; 32]);
        let named = Offer { dictionaries: (0..offered).map(dictionary).collect(), ..offer() };
        let mut bench = Bench::new(Source::new(config(), named, leaves(), PEER));
        bench.feed(Input::Start);
        let transfer = offer().transfer;
        bench.hear(Frame::Accept(Accept { transfer, dictionaries, baseline: None }))
    };
    for (offered, accepted) in [(0, 1), (0, 0x80), (1, 2), (2, 4), (4, 0x10), (4, 0xff)] {
        assert_eq!(error_code(&answered(offered, accepted)), Some(ErrorCode::Unexpected), "{offered} {accepted}");
    }
    for (offered, accepted) in [(0, 0), (1, 1), (4, 0x0f), (4, 0x08)] {
        assert_eq!(error_code(&answered(offered, accepted)), None, "{offered} {accepted}");
    }
}

// spec: O-9
#[test]
fn an_accept_of_a_baseline_that_was_not_offered_ends_the_session() {
    let answered = |offered: u8, baseline| {
        let named = Offer { baselines: (0..offered).map(|number| Digest([number; 32])).collect(), ..offer() };
        let source = Source::new(config(), named, leaves(), PEER);
        let mut bench = Bench::new(source.with_baselines((0..offered).map(|_| leaves()).collect()));
        bench.feed(Input::Start);
        bench.hear(Frame::Accept(Accept { transfer: offer().transfer, dictionaries: 0, baseline }))
    };
    for (offered, accepted) in [(0, 0), (1, 1), (3, 3)] {
        assert_eq!(error_code(&answered(offered, Some(accepted))), Some(ErrorCode::Unexpected), "{offered} {accepted}");
    }
    for (offered, accepted) in [(0, None), (4, None), (1, Some(0)), (4, Some(3))] {
        assert_eq!(error_code(&answered(offered, accepted)), None, "{offered} {accepted:?}");
    }
}

// spec: O-9, D-4
#[test]
fn of_an_agreed_baseline_the_sink_is_known_to_hold_what_have_did_not_tell_otherwise() {
    let [held, baseline] = [leaves(), leaves()];
    let of = |byte| crate::session::leaves::leaf(&[byte; 4096]);
    (0..64).for_each(|page| baseline.set(crate::extent::FlatPage(page), of(1)));
    let named = Offer { baselines: vec![Digest([1; 32]); 2], ..offer() };
    let source = Source::new(config(), named, Arc::clone(&held), PEER);
    let mut bench = Bench::new(source.with_baselines(vec![leaves(), baseline]));
    bench.feed(Input::Start);
    bench.hear(Frame::Have(Have { region: crate::RegionId(0), first: 5, leaves: vec![of(7); 2] }));
    let accept = Accept { transfer: offer().transfer, dictionaries: 0, baseline: Some(1) };
    let asked = bench.hear(Frame::Accept(accept));
    let Some((known, Some(assumed))) = asked.into_iter().find_map(|output| match output {
        Output::Recall { held, baseline } => Some((held, baseline)),
        _ => None,
    }) else {
        panic!("what the sink holds is not looked up")
    };
    assert_eq!(bench.machine.progress().baseline, Some(1));
    // What a driver does.
    known.assume(&assumed);
    assert_eq!([4, 5, 6, 7].map(|page| held.get(crate::extent::FlatPage(page))), [of(1), of(7), of(7), of(1)]);
    bench.feed(harvested(&[]));
    let early = bench.feed(Input::LaneUp { lane: LANE, credit: WIDE });
    assert!(dispatches(early).is_empty(), "the baseline's leaves are not there yet");
    let sent = dispatches(bench.feed(Input::Recalled { same: DirtyMap::new(&offer().layout) }));
    assert!((0..64).all(|page| sent[0].known.get(page)), "{sent:?}");
}

// spec: D-2
#[test]
fn no_page_is_read_before_its_dirty_bit_is_cleared() {
    let mut bench = offered(config());
    bench.hear(accept());
    let early = bench.feed(Input::LaneUp { lane: LANE, credit: WIDE });
    assert!(dispatches(early).is_empty(), "the first harvest has not come back");
    assert_eq!(dispatches(bench.feed(harvested(&[]))).len(), 1);
}

// spec: D-4
#[test]
fn a_page_is_known_only_while_the_sinks_copy_is_certain() {
    let (mut bench, first) = copying();
    assert_eq!(first.known.count(), 64, "zeros at the start");
    encoded(&mut bench, LANE, 0);
    bench.feed(Input::LaneDown { lane: LANE });
    let outputs = bench.hear(Frame::Buried(Buried { lane: LANE, applied: 0 }));
    assert!(!asked!(outputs, Output::Send(_)), "no lane");
    bench.after(Duration::from_secs(1));
    let again = dispatches(bench.feed(Input::LaneUp { lane: LaneId(2), credit: WIDE }));
    assert_eq!(again[0].known.count(), 0, "lost: nobody knows what the sink holds");
    encoded(&mut bench, LaneId(2), 0);
    bench.hear(ack(LaneId(2), 1));
    let dirty = DirtyMap::all(&offer().layout);
    let third = dispatches(bench.feed(Input::Harvested { dirty, pending: Pending::More }));
    assert_eq!(third[0].known.count(), 64, "acknowledged");
}

// spec: L-1
#[test]
fn a_lane_that_is_opened_again_has_a_new_id() {
    let (mut bench, _) = copying();
    bench.feed(Input::LaneDown { lane: LANE });
    assert_eq!(lanes_opened(&bench.after(Duration::from_secs(3))), [2]);
}

// spec: H-7
#[test]
fn the_sinks_limits_hold() {
    let narrow = PeerLimits { extent_pages: 5, lanes: 2 };
    let mut bench = offered(SourceConfig { lanes: 9, limits: narrow, ..SourceConfig::default() });
    assert_eq!(lanes_opened(&bench.hear(accept())), [1, 2]);
    bench.feed(harvested(&[]));
    let sent = dispatches(bench.feed(Input::LaneUp { lane: LANE, credit: WIDE }));
    assert!(!sent.is_empty() && sent.iter().all(|dispatch| dispatch.extent.pages() == 5));
}

// spec: C-2
#[test]
fn nothing_is_sent_beyond_the_credit() {
    let mut bench = offered(config());
    bench.hear(accept());
    bench.feed(harvested(&[]));
    assert!(dispatches(bench.feed(Input::LaneUp { lane: LANE, credit: 64 * 4096 })).is_empty(), "heads count too");
    let grant = Frame::Credit(crate::wire::Credit { lane: LANE, total: WIDE });
    assert_eq!(dispatches(bench.hear(grant)).len(), 1);
}

// spec: A-2
#[test]
fn an_ack_of_what_was_not_sent_is_a_violation() {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    let outputs = bench.hear(ack(LANE, 2));
    assert_eq!(error_code(&outputs), Some(ErrorCode::Unexpected));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
}

// spec: B-3
#[test]
fn nothing_of_a_dead_lane_is_sent_again_before_it_is_buried() {
    let (mut bench, first) = copying();
    encoded(&mut bench, LANE, 0);
    let outputs = bench.feed(Input::LaneDown { lane: LANE });
    assert_eq!(frames(&outputs), [Frame::Bury(Bury { lane: LANE })]);
    bench.after(Duration::from_secs(3));
    assert!(dispatches(bench.feed(Input::LaneUp { lane: LaneId(2), credit: WIDE })).is_empty());
    let again = dispatches(bench.hear(Frame::Buried(Buried { lane: LANE, applied: 0 })));
    assert_eq!(again[0].extent, first.extent);
}

// spec: B-3
#[test]
fn what_a_dead_lane_delivered_is_not_sent_again() {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    bench.feed(Input::LaneDown { lane: LANE });
    bench.after(Duration::from_secs(3));
    bench.feed(Input::LaneUp { lane: LaneId(2), credit: WIDE });
    let outputs = bench.hear(Frame::Buried(Buried { lane: LANE, applied: 1 }));
    assert!(asked!(outputs, Output::Harvest) && dispatches(outputs).is_empty());
}

// spec: B-4
#[test]
fn every_lane_is_buried_after_a_reconnect() {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    assert!(asked!(bench.feed(Input::ControlDown { clean: false }), Output::CloseLane(LANE)));
    assert!(frames(&bench.feed(Input::LaneDown { lane: LANE })).is_empty(), "nobody hears it");
    assert!(asked!(bench.after(Duration::from_secs(1)), Output::Redial { fresh: false }));
    assert_eq!(frames(&bench.feed(Input::ControlUp)), [Frame::Bury(Bury { lane: LANE })]);
    assert!(dispatches(bench.feed(Input::LaneUp { lane: LaneId(2), credit: WIDE })).is_empty());
}

// spec: S-1
#[test]
fn pause_is_said_when_the_last_harvest_is_sent() {
    let mut bench = draining();
    let devices = bench.feed(Input::Devices(Bytes::from_static(b"devices")));
    assert!(pause(&devices).is_none(), "the last harvest is missing");
    let sent = dispatches(bench.feed(harvested(&[5])));
    assert_eq!(sent[0].extent.page_numbers().collect::<Vec<_>>(), [5]);
    let outputs = encoded(&mut bench, LANE, 1);
    let pause = pause(&outputs).unwrap();
    assert_eq!((pause.attempt, pause.device_bytes, pause.finals), (1, 7, vec![(LANE, 2)]));
    let Frame::DeviceState(state) = &frames(&outputs)[1] else { panic!("{outputs:?}") };
    assert_eq!((state.attempt, state.offset, &state.bytes[..]), (1, 0, &b"devices"[..]));
}

// spec: S-1
#[test]
fn pause_waits_for_the_burial_of_every_dead_lane() {
    let mut bench = draining();
    bench.feed(Input::Devices(Bytes::new()));
    bench.feed(harvested(&[5]));
    bench.feed(Input::LaneDown { lane: LANE });
    assert!(pause(&encoded(&mut bench, LANE, 1)).is_none());
    let outputs = bench.hear(Frame::Buried(Buried { lane: LANE, applied: 2 }));
    assert!(pause(&outputs).is_some());
}

// spec: S-1
#[test]
fn what_is_lost_after_pause_is_sent_again_and_sealed_anew() {
    let mut bench = draining();
    bench.feed(Input::Devices(Bytes::new()));
    bench.feed(harvested(&[5]));
    assert_eq!(pause(&encoded(&mut bench, LANE, 1)).unwrap().attempt, 1);
    bench.feed(Input::LaneDown { lane: LANE });
    bench.hear(Frame::Buried(Buried { lane: LANE, applied: 1 }));
    bench.after(Duration::from_secs(1));
    assert_eq!(dispatches(bench.feed(Input::LaneUp { lane: LaneId(2), credit: WIDE })).len(), 1);
    assert_eq!(pause(&encoded(&mut bench, LaneId(2), 0)).unwrap().attempt, 2);
}

// spec: S-4
#[test]
fn ready_is_believed_only_if_all_of_it_is_ours() {
    let other = Digest([9; 32]);
    type Change = fn(&mut Ready, Digest);
    let wrong: [(Change, ErrorCode); 6] = [
        (|ready, _| ready.transfer = TransferId([0; 16]), ErrorCode::Unexpected),
        (|ready, _| ready.epoch = FenceEpoch(4), ErrorCode::Unexpected),
        (|ready, _| ready.attempt = 2, ErrorCode::Unexpected),
        (|ready, _| ready.attempt = 0, ErrorCode::Unexpected),
        (|ready, other| ready.root = other, ErrorCode::RootMismatch),
        (|ready, other| ready.device_digest = other, ErrorCode::DeviceDigest),
    ];
    for (change, code) in wrong {
        let (mut bench, pause) = sealed();
        let mut ready = ready(&pause);
        change(&mut ready, other);
        let outputs = bench.hear(Frame::Ready(ready));
        assert_eq!(error_code(&outputs), Some(code));
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
        assert!(asked!(outputs, Output::Resume) && !asked!(outputs, Output::Persist(_)));
    }
}

// spec: S-4
#[test]
fn ready_before_the_last_ack_is_a_violation() {
    let mut bench = draining();
    bench.feed(Input::Devices(Bytes::new()));
    bench.feed(harvested(&[5]));
    let pause = pause(&encoded(&mut bench, LANE, 1)).unwrap();
    let outputs = bench.hear(Frame::Ready(ready(&pause)));
    assert_eq!(error_code(&outputs), Some(ErrorCode::Unexpected));
}

// spec: S-4
#[test]
fn ready_of_a_pause_that_was_taken_back_is_ignored_and_ready_twice_is_not() {
    let (mut bench, pause) = sealed();
    assert!(asked!(bench.feed(Input::ControlDown { clean: false }), Output::Resume));
    bench.feed(Input::ControlUp);
    let outputs = bench.hear(Frame::Ready(ready(&pause)));
    assert!(outcome(&outputs).is_none() && !asked!(outputs, Output::Persist(_)));
    let (mut bench, pause) = sealed();
    bench.hear(Frame::Ready(ready(&pause)));
    assert_eq!(outcome(&bench.hear(Frame::Ready(ready(&pause)))).unwrap().owner, Owner::InDoubt);
}

// spec: S-5
#[test]
fn run_is_said_only_when_give_up_is_durable() {
    let (mut bench, pause) = sealed();
    let outputs = bench.hear(Frame::Ready(ready(&pause)));
    assert!(frames(&outputs).is_empty());
    let Some(Output::Persist(record)) = outputs.first() else { panic!("{outputs:?}") };
    assert_eq!(*record, Record::of(&offer(), 1, pause.root, PEER, Standing::GaveUp));
    assert!(frames(&bench.after(Duration::from_millis(5))).is_empty());
    assert_eq!(frames(&bench.feed(Input::Persisted)), [run(&pause)]);
}

// spec: S-6
#[test]
fn before_give_up_every_failure_leaves_the_guest_at_the_source() {
    let failures =
        [|| Input::Cancel, || Input::Frame(running()), || Input::GuestFailed(crate::GuestError::Other("disk".into()))];
    for failure in failures {
        let (mut bench, _) = sealed();
        let outputs = bench.feed(failure());
        assert!(asked!(outputs, Output::Resume));
        assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
    }
    let (mut bench, pause) = sealed();
    bench.hear(Frame::Ready(ready(&pause)));
    assert!(!asked!(bench.feed(Input::PersistFailed { text: "full".into() }), Output::Resume));
    let outputs = bench.feed(Input::Retracted);
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
    assert!(asked!(outputs, Output::Resume) && !asked!(outputs, Output::Forget(_)));
}

/// What a failing disk has of it after all would be found later, by who sends RUN.
// spec: S-5
#[test]
fn a_give_up_that_may_be_on_the_disk_lets_nobody_run_the_guest() {
    let unrecorded = || {
        let (mut bench, pause) = sealed();
        bench.hear(Frame::Ready(ready(&pause)));
        let outputs = bench.feed(Input::PersistFailed { text: "a sync failed".into() });
        assert!(asked!(outputs, Output::Retract(_)) && !asked!(outputs, Output::Resume));
        assert!(outcome(&outputs).is_none() && frames(&outputs).is_empty());
        bench
    };
    // Nothing hurries it.
    let mut bench = unrecorded();
    let shutdown = Abort { reason: AbortReason::Cancelled, text: String::new() };
    for input in [Input::Cancel, Input::Frame(Frame::Abort(shutdown)), Input::ControlDown { clean: false }] {
        let outputs = bench.feed(input);
        assert!(outcome(&outputs).is_none() && !asked!(outputs, Output::Resume));
    }
    let outputs = bench.feed(Input::Retracted);
    assert!(asked!(outputs, Output::Resume));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Source);
    let outputs = unrecorded().feed(Input::RetractFailed { text: "it fails again".into() });
    assert!(!asked!(outputs, Output::Resume) && frames(&outputs).is_empty());
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::InDoubt);
}

// spec: S-6
#[test]
fn after_give_up_the_source_never_runs_the_guest_and_never_aborts() {
    let (mut bench, _) = gave_up();
    let outputs = bench.feed(Input::Cancel);
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::InDoubt);
    assert!(!asked!(outputs, Output::Resume) && !asked!(outputs, Output::Forget(_)));
    assert!(frames(&outputs).is_empty(), "an ABORT could make the sink throw away what it owns");
    let (mut bench, _) = gave_up();
    bench.feed(Input::ControlDown { clean: false });
    for _ in 0..100 {
        let outputs = bench.after(Duration::from_secs(60));
        assert!(outcome(&outputs).is_none() && !asked!(outputs, Output::Resume));
        bench.feed(Input::ControlDown { clean: false });
    }
}

// spec: S-7
#[test]
fn running_ends_the_session_at_the_source() {
    let (mut bench, _) = gave_up();
    let outputs = bench.hear(running());
    assert!(asked!(outputs, Output::Forget(_)) && !asked!(outputs, Output::Resume));
    assert_eq!(outcome(&outputs).unwrap().owner, Owner::Sink);
    let (mut bench, _) = sealed();
    assert_eq!(error_code(&bench.hear(running())), Some(ErrorCode::Unexpected), "RUNNING before RUN");
}

// spec: S-8
#[test]
fn run_is_said_again_on_every_new_connection() {
    let (mut bench, pause) = gave_up();
    for _ in 0..3 {
        bench.feed(Input::ControlDown { clean: false });
        assert!(asked!(bench.after(Duration::from_secs(2)), Output::Redial { .. }));
        assert_eq!(frames(&bench.feed(Input::ControlUp)), [run(&pause)]);
    }
    bench.feed(Input::ControlDown { clean: false });
    bench.feed(Input::SessionLost);
    assert!(asked!(bench.after(Duration::from_secs(2)), Output::Redial { fresh: true }));
}

/// News of a dial that came too late. spec: B-4
#[test]
fn a_session_whose_control_connection_is_up_is_not_lost() {
    let (mut bench, _) = copying();
    assert!(outcome(&bench.feed(Input::SessionLost)).is_none());
    bench.feed(Input::ControlDown { clean: false });
    assert!(outcome(&bench.feed(Input::SessionLost)).is_some());
}

// spec: S-8
#[test]
fn a_source_that_crashed_after_give_up_asks_by_its_record() {
    let Offer { transfer, epoch, .. } = offer();
    let root = Digest([4; 32]);
    let record = Record::of(&offer(), 2, root, PEER, Standing::GaveUp);
    let mut bench = Bench::new(Source::recover(config(), offer(), &record));
    let outputs = bench.feed(Input::Start);
    assert_eq!(frames(&outputs), [Frame::Run(Run { transfer, epoch, attempt: 2, root })]);
    assert_eq!(outcome(&bench.hear(running())).unwrap().owner, Owner::Sink);
}

// spec: T-1
#[test]
fn a_ping_is_answered_with_its_number() {
    let (mut bench, _) = copying();
    assert_eq!(frames(&bench.hear(Frame::Ping(Ping { id: 77 }))), [Frame::Pong(Ping { id: 77 })]);
}

// spec: T-2
#[test]
fn a_silent_sink_is_taken_for_lost() {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    bench.hear(ack(LANE, 1));
    assert!(!asked!(bench.after(Duration::from_millis(9_900)), Output::CloseLane(_)));
    assert!(asked!(bench.after(Duration::from_millis(200)), Output::CloseLane(_)));
    assert!(asked!(bench.after(Duration::from_secs(1)), Output::Redial { .. }));
}

// spec: D-4, R-2
#[test]
fn what_the_sink_has_is_compared_with_and_read_all_the_same() {
    let held = leaves();
    let mut bench = Bench::new(Source::new(config(), offer(), Arc::clone(&held), PEER));
    bench.feed(Input::Start);
    let leaf = crate::session::leaves::leaf(&[7; 4096]);
    let have = |region, first| Frame::Have(Have { region: crate::RegionId(region), first, leaves: vec![leaf; 2] });
    assert!(frames(&bench.hear(have(0, 5))).is_empty());
    assert_eq!(held.get(crate::extent::FlatPage(6)), leaf);
    assert!(asked!(bench.hear(accept()), Output::Recall { .. }));
    bench.feed(harvested(&[]));
    let waits = bench.feed(Input::LaneUp { lane: LANE, credit: WIDE });
    assert!(dispatches(waits).is_empty(), "what the guest knows is not known yet");
    let sent = dispatches(bench.feed(Input::Recalled { same: DirtyMap::new(&offer().layout) }));
    assert_eq!((sent[0].extent.pages(), sent[0].known.get(5)), (64, true));
    assert_eq!(bench.machine.progress().pages_held, 2);
    assert_eq!(error_code(&bench.hear(have(0, 5))), Some(ErrorCode::Unexpected), "after ACCEPT");
}

// spec: R-2
#[test]
fn what_the_guest_knows_to_be_the_same_is_not_read() {
    let mut bench = offered(config());
    let leaf = crate::session::leaves::leaf(&[7; 4096]);
    bench.hear(Frame::Have(Have { region: crate::RegionId(0), first: 0, leaves: vec![leaf; 8] }));
    bench.hear(accept());
    bench.feed(harvested(&[3]));
    bench.feed(Input::LaneUp { lane: LANE, credit: WIDE });
    let mut same = DirtyMap::new(&offer().layout);
    same.mark(crate::RegionId(0), 0, 8);
    let sent = dispatches(bench.feed(Input::Recalled { same }));
    assert_eq!(sent[0].extent.page_numbers().next(), Some(8));
    assert_eq!(bench.machine.progress().pages_same, 8);
}

// spec: R-2
#[test]
fn a_have_outside_the_layout_is_refused() {
    let leaf = crate::session::leaves::leaf(&[7; 4096]);
    for (region, first) in [(9, 0), (0, u32::MAX), (0, offer().layout.region(crate::RegionId(0)).unwrap().pages - 1)] {
        let mut bench = offered(config());
        let have = Have { region: crate::RegionId(region), first, leaves: vec![leaf; 2] };
        assert_eq!(error_code(&bench.hear(Frame::Have(have))), Some(ErrorCode::Unexpected), "{region} {first}");
    }
}

// spec: L-2
#[test]
fn a_session_whose_lane_ids_are_used_up_ends_and_says_so() {
    let (mut bench, _) = copying();
    let mut outputs = Vec::new();
    for id in (1..=4096).map(LaneId) {
        assert!(outcome(&outputs).is_none(), "after {id}");
        bench.feed(Input::LaneDown { lane: id });
        bench.hear(Frame::Buried(Buried { lane: id, applied: 0 }));
        outputs = bench.after(Duration::from_secs(3));
    }
    let Some(Outcome { owner: Owner::Source, error: Some(error) }) = outcome(&outputs) else { panic!("{outputs:?}") };
    assert!(error.to_string().contains("all 4096 lane ids of this session are used up"), "{error}");
    assert!(matches!(frames(&outputs)[..], [Frame::Abort(_)]), "{outputs:?}");
}

// spec: S-1
#[test]
fn a_session_that_needs_no_lane_any_more_goes_on_without_lane_ids() {
    let (mut bench, _) = copying();
    encoded(&mut bench, LANE, 0);
    assert!(asked!(bench.hear(ack(LANE, 1)), Output::Harvest));
    for id in (1..=4096).map(LaneId) {
        bench.feed(Input::LaneDown { lane: id });
        bench.hear(Frame::Buried(Buried { lane: id, applied: u64::from(id == LANE) }));
        assert!(outcome(&bench.after(Duration::from_secs(3))).is_none(), "after {id}");
    }
    assert!(asked!(bench.feed(harvested(&[])), Output::Pause));
    bench.feed(Input::Paused);
    bench.feed(harvested(&[]));
    let pause = pause(&bench.feed(Input::Devices(Bytes::new()))).unwrap();
    assert!(asked!(bench.hear(Frame::Ready(ready(&pause))), Output::Persist(_)));
}

/// That is no guest which writes too much: more budget, or fewer writes, would not have helped.
#[test]
fn a_pause_that_takes_too_long_is_told_as_that() {
    let mut bench = draining();
    let limit = SourceConfig::default().pause_limit;
    // The sink is there all the while.
    bench.after(limit / 2);
    bench.hear(ack(LANE, 1));
    let outputs = bench.after(limit / 2 + Duration::from_millis(1));
    let outcome = outcome(&outputs).expect("its guest runs again");
    let Some(SessionError::NotConverging(verdict)) = outcome.error else { panic!("{outcome:?}") };
    assert_eq!((outcome.owner, verdict.pause_limit), (Owner::Source, Some(limit)));
    let told = verdict.to_string();
    assert!(told.contains("pause took too long") && !told.contains("would converge"), "{told}");
}
