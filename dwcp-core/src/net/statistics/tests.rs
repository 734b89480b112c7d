use super::*;
use crate::flag::{Constant, FlagDocument, InProcess, NodeName};
use crate::session::{HandoverStats, Input, Output, Progress, Time};
use crate::wire::{ErrorFrame, Fence, FenceEpoch, Frame, LaneId, Prefer, TransferId};

const MESSAGES: Framing = Framing::Messages;
const EXTENTS: Framing = Framing::Extents;

fn ms(count: u64) -> Time {
    Time::after_epoch(Duration::from_millis(count))
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// What a flag document of this reason means.
fn flags(version: u64, on: bool, reason: &str) -> Arc<FlagSnapshot> {
    let source = InProcess::new(NodeName::new("n1").unwrap(), Duration::from_secs(60));
    let text = format!(
        r#"{{"version": {version}, "flags": {{"dwcp_v3_hde": {{"enabled": {on}, "percentage": 100, "reason": "{reason}"}}}}}}"#
    );
    source.set(FlagDocument::parse(text.as_bytes()).unwrap()).unwrap();
    source.snapshot()
}

fn raise() -> Output {
    Output::RaiseFence { peer: crate::session::Fingerprint([0; 32]), least: FenceEpoch(2) }
}

fn fence(epoch: u64, framing: Framing, restart: bool) -> Input {
    let (transfer, lanes) = (TransferId([0; 16]), Vec::new());
    Input::Frame(Frame::Fence(Fence { transfer, epoch: FenceEpoch(epoch), framing, restart, lanes }))
}

fn handed(handovers: u64, to: Framing, last_extent: u64, settled: u64) -> Progress {
    let stats = HandoverStats { to, restart: false, last_extent: millis(last_extent), settled: millis(settled) };
    Progress { handovers, framing: to, handover_log: vec![stats], ..Progress::default() }
}

struct Session {
    counters: Arc<Counters>,
    ledger: Ledger,
}

impl Session {
    fn open(end: End, framing: Framing) -> Self {
        let counters = Arc::new(Counters::default());
        Self { ledger: Ledger::open(Arc::clone(&counters), end, framing), counters }
    }

    fn now(&self) -> Statistics {
        self.counters.statistics(&Constant::v3(), Offences::default())
    }

    fn handover(&self, end: End, to: Framing, reason: HandoverReason) -> HandoverStatistics {
        let statistics = self.now();
        let of_end = if end == End::Source { statistics.source } else { statistics.sink };
        of_end.handovers.get(&(to, reason)).cloned().unwrap_or_default()
    }
}

fn outcome(owner: Owner, error: Option<SessionError>) -> Outcome {
    Outcome { owner, error }
}

#[test]
fn each_end_of_a_session_raises_its_own_counter_and_no_other() {
    let reports =
        |code| SessionError::PeerReports(ErrorFrame { code, lane: LaneId::CONTROL, position: 0, text: "".into() });
    let aborted = |reason| SessionError::PeerAborted { reason, text: String::new() };
    let integrity =
        SessionError::Integrity { code: ErrorCode::ExtentDigest, lane: LaneId(1), position: 0, what: String::new() };
    let at_source = |error| outcome(Owner::Source, Some(error));
    let cases = [
        (outcome(Owner::Sink, None), Ending::SwitchedOver),
        (outcome(Owner::Sink, Some(SessionError::Cancelled)), Ending::SwitchedOver),
        (outcome(Owner::InDoubt, Some(SessionError::Cancelled)), Ending::InDoubt),
        (at_source(SessionError::Cancelled), Ending::Withdrawn),
        (at_source(SessionError::Superseded), Ending::Withdrawn),
        (at_source(SessionError::ShuttingDown), Ending::Withdrawn),
        (at_source(aborted(AbortReason::Shutdown)), Ending::Withdrawn),
        (at_source(aborted(AbortReason::Refused)), Ending::Failed),
        (at_source(SessionError::Unreachable { silence: millis(1) }), Ending::Failed),
        (at_source(reports(ErrorCode::Flood)), Ending::Failed),
        (at_source(reports(ErrorCode::RootMismatch)), Ending::Integrity),
        (at_source(integrity), Ending::Integrity),
    ];
    for (outcome, ending) in cases {
        let mut session = Session::open(End::Sink, EXTENTS);
        assert_eq!((session.now().sink.v3.begun, session.now().sink.v3.live), (1, 1));
        session.ledger.close(&outcome, &Progress::default());
        let ended = BTreeMap::from([(ending, 1)]);
        let v3 = SessionStatistics { begun: 1, ended, ..SessionStatistics::default() };
        // Its end is counted once, also when it is dropped.
        let Session { ledger, counters } = session;
        drop(ledger);
        let counted = counters.statistics(&Constant::v3(), Offences::default());
        assert_eq!(counted.sink, EndStatistics { v3, ..EndStatistics::default() });
        assert_eq!(counted.source, EndStatistics::default());
        assert!(counted.refused.is_empty() && counted.declined.is_empty());
    }
    let Session { ledger, counters } = Session::open(End::Source, MESSAGES);
    drop(ledger);
    let v1 = counters.statistics(&Constant::v3(), Offences::default()).source.v1;
    assert_eq!((v1.begun, v1.live, v1.ended), (1, 0, BTreeMap::from([(Ending::Dropped, 1)])));
}

#[test]
fn a_source_times_a_hand_over_from_the_moment_the_flag_was_seen() {
    let mut source = Session::open(End::Source, EXTENTS);
    source.ledger.flags(ms(0), &flags(1, true, "operator"));
    // Seen at 100, told to the machine at 110: its figures lack the difference.
    source.ledger.flags(ms(100), &flags(2, false, "performance"));
    source.ledger.performs(ms(110), &raise());
    let under_way = source.handover(End::Source, MESSAGES, HandoverReason::Performance);
    assert_eq!((under_way.begun, under_way.done, under_way.struck), (1, 0, 0));
    let handed = handed(1, MESSAGES, 20, 90);
    source.ledger.observe(ms(200), &handed);
    source.ledger.performs(ms(207), &Output::Ship(LaneId(9)));
    source.ledger.performs(ms(300), &Output::Ship(LaneId(9)));
    let done = source.handover(End::Source, MESSAGES, HandoverReason::Performance);
    assert_eq!((done.begun, done.done, done.struck), (1, 1, 0));
    assert_eq!((done.settled.count(), done.settled.max()), (1, millis(100)));
    assert_eq!((done.last_extent.count(), done.last_extent.max()), (1, millis(30)));
    assert_eq!((done.first_message.count(), done.first_message.max()), (1, millis(107)), "the first alone");
    let statistics = source.now();
    assert_eq!(statistics.source.handovers.len(), 1);
    assert_eq!((statistics.source.v3.live, statistics.source.v1.live), (0, 1));
    assert_eq!((statistics.source.v3.begun, statistics.source.v1.begun), (1, 0));
    // Told again of the same progress, nothing is counted again.
    source.ledger.observe(ms(400), &handed);
    assert_eq!(source.handover(End::Source, MESSAGES, HandoverReason::Performance), done);
}

#[test]
fn no_extent_after_the_flag_is_zero_and_no_message_is_no_time() {
    let mut source = Session::open(End::Source, EXTENTS);
    source.ledger.flags(ms(0), &flags(1, false, "inc-4711"));
    source.ledger.performs(ms(0), &raise());
    source.ledger.observe(ms(50), &handed(1, MESSAGES, 0, 50));
    // Back before anything was sent.
    source.ledger.flags(ms(60), &flags(2, true, "operator"));
    source.ledger.performs(ms(60), &raise());
    source.ledger.observe(ms(80), &handed(2, EXTENTS, 0, 20));
    source.ledger.performs(ms(90), &Output::Ship(LaneId(9)));
    let off = source.handover(End::Source, MESSAGES, HandoverReason::Other);
    assert_eq!((off.last_extent.count(), off.last_extent.max()), (1, Duration::ZERO));
    assert_eq!(off.first_message.count(), 0);
    let on = source.handover(End::Source, EXTENTS, HandoverReason::Operator);
    assert_eq!((on.done, on.settled.max(), on.last_extent.count(), on.first_message.count()), (1, millis(20), 0, 0));
}

#[test]
fn a_session_that_ends_in_the_middle_of_a_hand_over_strikes_it() {
    let mut source = Session::open(End::Source, EXTENTS);
    let prefer = Input::Frame(Frame::Prefer(Prefer { framing: MESSAGES, restart: true }));
    source.ledger.hears(ms(5), &prefer, &Progress::default());
    source.ledger.performs(ms(6), &raise());
    // The same fence is raised once more after a reconnect: it is the same hand-over.
    source.ledger.performs(ms(7), &raise());
    let unanswered = SessionError::HandoverUnanswered { silence: millis(10_000) };
    source.ledger.close(&outcome(Owner::Source, Some(unanswered)), &Progress::default());
    let struck = source.handover(End::Source, MESSAGES, HandoverReason::PeerDistrust);
    assert_eq!((struck.begun, struck.done, struck.struck), (1, 0, 1));
    assert_eq!(source.now().source.v3.ended, BTreeMap::from([(Ending::Failed, 1)]));
}

#[test]
fn a_sink_counts_a_fence_once_and_knows_whose_wish_it_was() {
    let progress = Progress { epoch: FenceEpoch(1), ..Progress::default() };
    let cases = [
        (flags(1, false, "security"), fence(2, MESSAGES, true), HandoverReason::Security),
        // Nothing of version 3 was applied, so nothing is thrown away.
        (flags(1, false, "security"), fence(2, MESSAGES, false), HandoverReason::Security),
        (flags(1, false, "performance"), fence(2, MESSAGES, true), HandoverReason::PeerDistrust),
        (flags(1, true, "operator"), fence(2, MESSAGES, false), HandoverReason::Peer),
    ];
    for (flags, fence, reason) in cases {
        let mut sink = Session::open(End::Sink, EXTENTS);
        sink.ledger.flags(ms(1), &flags);
        sink.ledger.hears(ms(2), &fence, &progress);
        sink.ledger.performs(ms(3), &raise());
        // Asked again on another connection, and once more when it is done.
        sink.ledger.hears(ms(4), &fence, &progress);
        let done = Progress { epoch: FenceEpoch(2), handovers: 1, framing: MESSAGES, ..Progress::default() };
        sink.ledger.observe(ms(5), &done);
        sink.ledger.hears(ms(6), &fence, &done);
        let counted = sink.handover(End::Sink, MESSAGES, reason);
        assert_eq!((counted.begun, counted.done, counted.struck), (1, 1, 0), "{reason}");
        assert_eq!(counted.settled.count(), 0, "only a source measures");
        assert_eq!(sink.now().sink.handovers.len(), 1);
    }
}

#[test]
fn bytes_and_latencies_belong_to_the_version_that_moved_them() {
    let mut source = Session::open(End::Source, EXTENTS);
    let mut extent_latency = Histogram::default();
    extent_latency.record(millis(3));
    let first = Progress { pages_settled: 10, wire_bytes: 9_000, extent_latency, ..Progress::default() };
    source.ledger.tell(&first);
    source.ledger.tell(&first);
    let mut extent_latency = first.extent_latency.clone();
    extent_latency.record(millis(40));
    let left = Progress { pages_settled: 12, wire_bytes: 10_000, extent_latency, ..handed(1, MESSAGES, 0, 0) };
    source.ledger.observe(ms(9), &left);
    let last = Progress { pages_settled: 112, wire_bytes: 410_000, ..left.clone() };
    source.ledger.close(&outcome(Owner::Sink, None), &last);
    let EndStatistics { v1, v3, .. } = source.now().source;
    assert_eq!((v3.guest_bytes, v3.wire_bytes, v3.extent_latency.count()), (12 * 4096, 10_000, 2));
    assert_eq!((v3.extent_latency.sum(), v3.extent_latency.max()), (millis(43), millis(40)));
    assert_eq!((v1.guest_bytes, v1.wire_bytes, v1.extent_latency.count()), (100 * 4096, 400_000, 0));
    assert!(v3.saved().is_some_and(|saved| (saved - (1.0 - 10_000.0 / 49_152.0)).abs() < 1e-9));
    assert_eq!((v1.saved(), SessionStatistics::default().saved()), (Some(1.0 - 400_000.0 / 409_600.0), None));
}

#[test]
fn disputed_pages_are_counted_with_their_hand_over() {
    let mut source = Session::open(End::Source, EXTENTS);
    source.ledger.observe(ms(1), &Progress { pages_disputed: 7, ..handed(1, MESSAGES, 0, 0) });
    source.ledger.observe(ms(2), &Progress { pages_disputed: 7, ..handed(2, EXTENTS, 0, 0) });
    let counted = source.now().source;
    assert_eq!((counted.pages_disputed, counted.handovers_disputed), (7, 1));
}

#[test]
fn what_a_flag_wants_that_the_peer_cannot_carry_is_a_refusal() {
    let mut sink = Session::open(End::Sink, EXTENTS);
    let error = SessionError::NoFramingLeft { wanted: MESSAGES };
    sink.ledger.close(&outcome(Owner::Source, Some(error)), &Progress::default());
    assert_eq!(sink.now().refused, BTreeMap::from([(VersionRefusal::NoFramingLeft, 1)]));
}

#[test]
fn why_a_source_could_not_connect_is_a_refusal_only_where_versions_are_to_blame() {
    let address = || "b:1".to_owned();
    let refused = |code| {
        let frame = ErrorFrame { code, lane: LaneId::CONTROL, position: 0, text: "".into() };
        EndpointError::Refused { address: address(), frame }
    };
    let negotiation = |source| EndpointError::Negotiation { address: address(), source };
    let no_version = NegotiationError::NoVersion { min: 3, max: 3, own_min: 1, own_max: 1 };
    for (error, why) in [
        (negotiation(no_version), Some(VersionRefusal::NoVersion)),
        (negotiation(NegotiationError::MissingFeature { bits: 1 }), Some(VersionRefusal::MissingFeature)),
        (negotiation(NegotiationError::DowngradeDetected), Some(VersionRefusal::DowngradeDetected)),
        (EndpointError::NothingInCommon { address: address() }, Some(VersionRefusal::NoVersion)),
        (EndpointError::NothingSpoken, Some(VersionRefusal::NothingSpoken)),
        (refused(ErrorCode::Negotiation), Some(VersionRefusal::RefusedByPeer)),
        (refused(ErrorCode::Local), None),
        (EndpointError::Timeout { address: address(), limit: millis(1) }, None),
    ] {
        assert_eq!(VersionRefusal::of(&error), why, "{error}");
    }
}

#[test]
fn what_was_turned_away_because_of_versions_is_gathered() {
    let counters = Counters::default();
    counters.refused(VersionRefusal::NothingSpoken);
    let turned_away = BTreeMap::from([
        (TurnedAway::NothingSpoken, 2),
        (TurnedAway::ClearText, 3),
        (TurnedAway::DowngradeRefused, 4),
        (TurnedAway::TimedOut, 5),
    ]);
    let offences = Offences { turned_away, ..Offences::default() };
    let statistics = counters.statistics(&Constant::v3(), offences.clone());
    let expected = [(VersionRefusal::NothingSpoken, 3), (VersionRefusal::ClearText, 3), (VersionRefusal::SpokeV3, 4)];
    assert_eq!(statistics.refused, BTreeMap::from(expected));
    assert_eq!(statistics.offences, offences);
}

#[test]
fn the_flag_tells_what_is_decided_and_how_stale_it_is() {
    let source = InProcess::new(NodeName::new("n1").unwrap(), Duration::from_secs(60));
    let none = FlagStatistics::of(&source);
    assert_eq!((none.snapshot.v3(), none.decided_ago, none.stats.version), (false, None, None));
    let text = br#"{"version": 7, "flags": {"dwcp_v3_hde": {"enabled": true, "percentage": 100}}}"#;
    source.set(FlagDocument::parse(text).unwrap()).unwrap();
    source.lost(ms(0), "gone");
    source.tick(ms(30_000));
    let stale = FlagStatistics::of(&source);
    assert!(stale.snapshot.v3() && stale.decided_ago.is_some());
    let version = stale.stats.version.map(crate::flag::FlagVersion::value);
    assert_eq!((version, stale.stats.stale), (Some(7), millis(30_000)));
    assert_eq!(stale.stats.refused(crate::flag::RefusalKind::Unreadable), 1);
}

#[test]
fn why_this_node_declines_is_what_its_flags_say() {
    let declined = |text: &str| {
        let source = InProcess::new(NodeName::new("n1").unwrap(), Duration::from_secs(60));
        let text = format!(r#"{{"version": 1, "flags": {{"dwcp_v3_hde": {{{text}}}}}}}"#);
        source.set(FlagDocument::parse(text.as_bytes()).unwrap()).unwrap();
        Declined::of(&source.snapshot())
    };
    let on = r#""enabled": true, "percentage": 100"#;
    assert_eq!(declined(on), None);
    assert_eq!(declined(&format!(r#"{on}, "kill": true"#)), Some(Declined::Killed));
    assert_eq!(declined(&format!(r#"{on}, "exclude": ["n1"]"#)), Some(Declined::Excluded));
    assert_eq!(declined(r#""enabled": false, "percentage": 100"#), Some(Declined::Disabled));
    assert_eq!(declined(r#""enabled": true, "percentage": 0"#), Some(Declined::Bucket));
    assert_eq!(Declined::of(&Constant::v3().snapshot()), None);
    assert_eq!(Declined::of(&Constant::forced_v1().snapshot()), Some(Declined::Forced));
    let silent = InProcess::new(NodeName::new("n1").unwrap(), millis(10));
    assert_eq!(Declined::of(&silent.snapshot()), Some(Declined::NoDocument));
    let text = br#"{"version": 7, "flags": {"dwcp_v3_hde": {"enabled": true, "percentage": 100}}}"#;
    silent.set(FlagDocument::parse(text).unwrap()).unwrap();
    silent.lost(ms(0), "gone");
    silent.tick(ms(10));
    assert_eq!(Declined::of(&silent.snapshot()), Some(Declined::Expired));
}

#[test]
fn every_word_is_a_label_of_its_own() {
    let words = [
        Ending::ALL.map(Ending::word).to_vec(),
        HandoverReason::ALL.map(HandoverReason::word).to_vec(),
        Declined::ALL.map(Declined::word).to_vec(),
        VersionRefusal::ALL.map(VersionRefusal::word).to_vec(),
    ];
    for words in words {
        let known: std::collections::BTreeSet<_> = words.iter().collect();
        assert_eq!(known.len(), words.len());
    }
    for (reason, word) in [("no-document", HandoverReason::NoDocument), ("stale", HandoverReason::Stale)] {
        assert_eq!(HandoverReason::of(&reason.parse().unwrap()), word);
    }
    // A document cannot claim to be the peer.
    assert_eq!(HandoverReason::of(&"peer".parse().unwrap()), HandoverReason::Other);
    assert_eq!(HandoverReason::of(&"other".parse().unwrap()), HandoverReason::Other);
}
