use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::session::Time;

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn nodes(count: usize) -> impl Iterator<Item = NodeName> {
    (0..count).map(|number| node(&format!("node-{number}")))
}

fn percent(text: &str) -> Percentage {
    text.parse().unwrap()
}

fn rule(percentage: &str) -> FlagRule {
    FlagRule { enabled: true, percentage: percent(percentage), ..FlagRule::off() }
}

fn document(version: u64, v3: FlagRule) -> FlagDocument {
    FlagDocument { version: FlagVersion::new(version).unwrap(), flags: Flags { v3, compression: None } }
}

fn seconds(count: u64) -> Time {
    Time::after_epoch(Duration::from_secs(count))
}

fn keeper() -> Keeper {
    Keeper::new(node("n1"), Origin::InProcess, MAX_STALE, None)
}

fn on(rule: &FlagRule, node: &NodeName) -> bool {
    rule.decide(Flag::V3, node).on
}

// --- the decision

#[test]
fn kill_goes_before_all_then_disabled_exclude_include_and_the_bucket() {
    let n1 = node("n1");
    let lists = |include: bool, exclude: bool| FlagRule {
        include: include.then(|| n1.clone()).into_iter().collect(),
        exclude: exclude.then(|| n1.clone()).into_iter().collect(),
        ..rule("100")
    };
    let why = |rule: FlagRule| rule.decide(Flag::V3, &n1);
    let killed = FlagRule { kill: true, ..lists(true, false) };
    assert_eq!(why(killed), Decision { on: false, why: Why::Killed });
    let disabled = FlagRule { enabled: false, ..lists(true, false) };
    assert_eq!(why(disabled), Decision { on: false, why: Why::Disabled });
    assert_eq!(why(lists(true, true)), Decision { on: false, why: Why::Excluded });
    let included = FlagRule { percentage: percent("0"), ..lists(true, false) };
    assert_eq!(why(included), Decision { on: true, why: Why::Included });
    assert!(on(&rule("100"), &n1) && !on(&rule("0"), &n1));
    let narrowed = FlagRule { threshold: Some(Threshold::new(0).unwrap()), ..rule("100") };
    assert!(!on(&narrowed, &n1), "a threshold goes before the percentage");
}

#[test]
fn ten_per_cent_of_ten_thousand_nodes_is_about_a_thousand() {
    let rule = rule("10");
    let count = nodes(10_000).filter(|node| on(&rule, node)).count();
    assert!((850..=1150).contains(&count), "{count}");
    // The two flags, and two salts, choose other nodes.
    let salted = FlagRule { salt: Word::new("again").unwrap(), ..rule.clone() };
    let both = nodes(10_000).filter(|node| on(&rule, node) && on(&salted, node)).count();
    assert!((50..=150).contains(&both), "{both}");
    let other = nodes(10_000).filter(|node| on(&rule, node) && rule.decide(Flag::Compression, node).on).count();
    assert!((50..=150).contains(&other), "{other}");
}

fn percentages() -> impl Strategy<Value = Percentage> {
    prop_oneof![0..=BUCKETS, Just(0), Just(BUCKETS), 0..2000_u32]
        .prop_map(|thousandths| percent(&format!("{}.{:03}", thousandths / 1000, thousandths % 1000)))
}

fn names() -> impl Strategy<Value = NodeName> {
    "[!-\"$-~]{1,40}".prop_map(|name| node(&name))
}

proptest! {
    #[test]
    fn raising_never_removes_a_node_and_lowering_never_adds_one(
        one in percentages(), two in percentages(), name in names(), salt in "[!-~]{0,8}",
        listed in any::<(bool, bool)>(),
    ) {
        let (low, high) = (one.min(two), one.max(two));
        let list = |is: bool| -> BTreeSet<NodeName> { is.then(|| name.clone()).into_iter().collect() };
        let at = |percentage| FlagRule {
            percentage,
            salt: Word::new(&salt).unwrap(),
            include: list(listed.0),
            exclude: list(listed.1),
            ..rule("0")
        };
        prop_assert!(!on(&at(low), &name) || on(&at(high), &name));
        prop_assert!(bucket(Flag::V3.key(), &salt, &name) < BUCKETS);
    }

    #[test]
    fn an_exact_share_is_exact_and_grows_with_the_percentage(
        names in proptest::collection::btree_set(names(), 1..60), one in percentages(), two in percentages(),
        include in proptest::collection::vec(any::<bool>(), 60), exclude in proptest::collection::vec(any::<bool>(), 60),
    ) {
        let (low, high) = (one.min(two), one.max(two));
        let listed = |which: &[bool]| -> BTreeSet<NodeName> {
            names.iter().zip(which).filter(|(_, is)| **is).map(|(name, _)| name.clone()).collect()
        };
        let (include, exclude) = (listed(&include), listed(&exclude));
        let rule = FlagRule { include: include.clone(), exclude: exclude.clone(), ..rule("0") };
        let lines: Vec<_> = names.iter().map(NodeName::as_str).collect();
        let roster = Roster::parse(&lines.join("\n")).unwrap();
        let count = |exact: Exact| {
            let rule = FlagRule { threshold: Some(exact.threshold), ..rule.clone() };
            names.iter().filter(|name| on(&rule, name)).count()
        };
        let (small, large) = (roster.exact(Flag::V3, &rule, low), roster.exact(Flag::V3, &rule, high));
        prop_assert!(small.threshold <= large.threshold);
        for (exact, percentage) in [(small, low), (large, high)] {
            prop_assert_eq!(exact.nodes, count(exact));
            prop_assert_eq!(exact.wanted, percentage.of(names.len()));
            let forced = include.difference(&exclude).count();
            let most = names.len() - exclude.len();
            let buckets: BTreeSet<_> = names.iter().map(|name| bucket(Flag::V3.key(), "", name)).collect();
            // Two nodes in one bucket go together.
            if buckets.len() == names.len() && percentage != Percentage::ALL {
                prop_assert_eq!(exact.nodes, exact.wanted.clamp(forced, most));
            }
        }
    }

    #[test]
    fn a_document_is_read_as_it_was_written(
        version in 1..=FlagVersion::LAST.value(), enabled: bool, kill: bool, percentage in percentages(),
        threshold in proptest::option::of(0..=u64::from(BUCKETS)), salt in "[!-~]{0,64}", by in "[!-~]{0,64}",
        include in proptest::collection::btree_set(names(), 0..5), exclude in proptest::collection::btree_set(names(), 0..5),
        reason in prop_oneof![Just("integrity"), Just("security"), Just("performance"), Just("operator"), Just("x.1_y-z")],
        both: bool,
    ) {
        let rule = FlagRule {
            enabled, percentage, kill, include, exclude,
            hash: HashName::Sha256,
            salt: Word::new(&salt).unwrap(),
            threshold: threshold.map(|value| Threshold::new(value).unwrap()),
            reason: reason.parse().unwrap(),
            updated_by: Word::new(&by).unwrap(),
        };
        let written = FlagDocument { flags: Flags { compression: both.then(|| rule.clone()), v3: rule }, ..document(version, FlagRule::off()) };
        prop_assert_eq!(FlagDocument::parse(written.render().unwrap().as_bytes()).unwrap(), written);
    }

    #[test]
    fn no_bytes_upset_the_reader_and_half_a_document_is_none(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
        let _ = FlagDocument::parse(&bytes);
        let text = document(7, rule("12.345")).render().unwrap();
        let text = text.trim_end();
        let half = text.get(..cut.min(text.len() - 1)).unwrap();
        prop_assert!(matches!(FlagDocument::parse(half.as_bytes()), Err(DocumentError::Garbage(_))), "{}", half);
    }
}

#[test]
fn ten_per_cent_of_ten_nodes_is_one_node() {
    let text: String = nodes(10).map(|node| format!("{node}\n")).collect();
    let roster = Roster::parse(&text).unwrap();
    let exact = |percentage: &str| roster.exact(Flag::V3, &rule("0"), percent(percentage));
    assert_eq!(exact("10").nodes, 1);
    assert_eq!([exact("0").nodes, exact("1").nodes, exact("50").nodes, exact("100").nodes], [0, 1, 5, 10]);
    assert_eq!((exact("0").threshold.value(), exact("100").threshold), (0, Threshold::ALL));
}

#[test]
fn a_roster_has_a_name_a_line_and_no_name_twice() {
    let roster = Roster::parse("# all of them\n n1 \n\nn2 # the slow one\r\n").unwrap();
    assert_eq!(roster.nodes().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2"]);
    assert!(matches!(Roster::parse("n1\nn2\nn1"), Err(RosterError::Twice { line: 3, .. })));
    assert!(matches!(Roster::parse("n1\nn 2"), Err(RosterError::Name { line: 2, .. })));
    assert_eq!(Roster::parse("# nobody\n"), Err(RosterError::Empty));
}

// --- documents

/// What is wrong with a document, and where; `flag` is what stands in the place of the flag for version 3.
#[track_caller]
fn invalid(flag: &str, words: &[&str]) {
    let text = format!("{{\n  \"version\": 7,\n  \"flags\": {{\"dwcp_v3_hde\": {flag}}}\n}}");
    let error = FlagDocument::parse(text.as_bytes()).unwrap_err();
    assert!(matches!(error, DocumentError::Invalid(_)), "{error}");
    for word in words.iter().chain(&["line 3"]) {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn what_does_not_fit_is_told_with_its_key_and_place() {
    invalid(r#"{"enabled": true, "percentge": 10}"#, &["unknown field `percentge`", "expected one of"]);
    invalid(r#"{"enabled": true}"#, &["missing field `percentage`"]);
    invalid(r#"{"enabled": true, "enabled": false, "percentage": 1}"#, &["duplicate field `enabled`"]);
    for percentage in ["-1", "101", "100.001", "1e3", "0.0001", "1e-9", "99999999999999999999"] {
        let flag = format!(r#"{{"enabled": true, "percentage": {percentage}}}"#);
        invalid(&flag, &["the percentage", "not a number from 0 to 100"]);
    }
    invalid(r#"{"enabled": true, "percentage": "10"}"#, &["string \"10\""]);
    invalid(r#"{"enabled": 1, "percentage": 10}"#, &["expected a boolean"]);
    invalid(r#"{"enabled": true, "percentage": 1, "threshold": 100001}"#, &["the threshold 100001"]);
    invalid(r#"{"enabled": true, "percentage": 1, "hash": "md5"}"#, &["unknown variant `md5`", "sha256"]);
    invalid(r#"{"enabled": true, "percentage": 1, "include": ["a b"]}"#, &["names no node"]);
    invalid(r#"{"enabled": true, "percentage": 1, "reason": "integrty"}"#, &["nearly `integrity`"]);
    invalid(r#"{"enabled": true, "percentage": 1, "salt": "a\u0000"}"#, &["is no word"]);
}

#[test]
fn a_document_has_a_version_and_flags_that_are_known() {
    let refused = |text: &str| FlagDocument::parse(text.as_bytes()).unwrap_err().to_string();
    let flag = r#"{"enabled": true, "percentage": 1}"#;
    assert!(refused(r#"{"version": 1, "flags": {}}"#).contains("missing field `dwcp_v3_hde`"));
    assert!(
        refused(&format!(r#"{{"version": 1, "flags": {{"dwcp_v4": {flag}}}}}"#)).contains("unknown field `dwcp_v4`")
    );
    for version in ["0", "9007199254740992", "18446744073709551615"] {
        let text = format!(r#"{{"version": {version}, "flags": {{"dwcp_v3_hde": {flag}}}}}"#);
        assert!(refused(&text).contains("is not from 1 to 9007199254740991"), "{}", refused(&text));
    }
    assert!(refused(&format!(r#"{{"flags": {{"dwcp_v3_hde": {flag}}}}}"#)).contains("missing field `version`"));
    let twice = format!(r#"{{"version": 1, "flags": {{"dwcp_v3_hde": {flag}}}}} {{}}"#);
    assert!(refused(&twice).contains("trailing characters"));
    // Fields without their names are no second form of a document.
    let lists = [
        r#"[1, {"dwcp_v3_hde": FLAG}]"#,
        r#"{"version": 1, "flags": [FLAG]}"#,
        r#"{"version": 1, "flags": {"dwcp_v3_hde": [true, 1]}}"#,
    ];
    for list in lists {
        assert!(refused(&list.replace("FLAG", flag)).contains("stands in the place"), "{list}");
    }
    let null = format!(r#"{{"version": 1, "flags": {{"dwcp_v3_hde": {flag}, "dwcp_v3_compression": null}}}}"#);
    assert!(refused(&null).contains("stands in the place"), "what is not said is left out");
    let long = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    assert!(matches!(FlagDocument::parse(&long), Err(DocumentError::TooLarge { .. })));
    let deep = "[".repeat(MAX_DOCUMENT_BYTES);
    assert!(matches!(FlagDocument::parse(deep.as_bytes()), Err(DocumentError::Garbage(_) | DocumentError::Invalid(_))));
    assert_eq!(FlagVersion::LAST.next(), None);
    assert_eq!(FlagVersion::FIRST.next(), FlagVersion::new(2));
}

#[test]
fn compression_is_on_unless_a_document_turns_it_off() {
    let n1 = node("n1");
    let mut document = document(1, rule("100"));
    assert_eq!(document.decide(Flag::Compression, &n1), Decision { on: true, why: Why::Absent });
    document.flags.compression = Some(FlagRule { enabled: false, ..rule("100") });
    let snapshot = FlagSnapshot::of(&document, &n1, Origin::InProcess);
    assert!(snapshot.v3() && !snapshot.compression());
    assert!(snapshot.to_string().ends_with("without compression, because the flag is not enabled"), "{snapshot}");
}

// --- what is kept of a source that fails

#[test]
fn the_last_good_document_holds_for_max_stale_and_not_a_moment_longer() {
    let mut keeper = keeper();
    assert_eq!(keeper.snapshot().standing(), Standing::Never);
    let text = document(3, rule("100")).render().unwrap();
    keeper.load(seconds(1), text.as_bytes()).unwrap();
    assert!(keeper.snapshot().v3() && keeper.deadline().is_none());
    keeper.tick(seconds(1_000_000));
    assert!(keeper.snapshot().v3(), "what is there does not grow old");
    assert!(keeper.load(seconds(1_000_000), b"{").is_err());
    let deadline = keeper.deadline().unwrap();
    assert_eq!(deadline, seconds(1_000_300));
    keeper.tick(seconds(1_000_299));
    assert_eq!((keeper.snapshot().v3(), keeper.snapshot().standing()), (true, Standing::Failing));
    // Other trouble is not a new life.
    keeper.fail(seconds(1_000_299), &Refusal::Silent);
    keeper.tick(deadline);
    let expired = keeper.snapshot();
    assert_eq!((expired.v3(), expired.standing(), expired.v3.why), (false, Standing::Expired, Why::Expired));
    assert!(!expired.reason().discards_applied() && keeper.deadline().is_none());
    let stats = keeper.stats();
    assert_eq!((stats.loads, stats.expiries, stats.stale), (1, 1, MAX_STALE));
    assert_eq!((stats.refused(RefusalKind::Garbage), stats.refused(RefusalKind::Silent)), (1, 1));
    keeper.load(seconds(1_000_301), text.as_bytes()).unwrap();
    assert!(keeper.snapshot().v3(), "the same document, back again");
    assert_eq!((keeper.stats().loads, keeper.stats().stale), (1, Duration::ZERO));
}

#[test]
fn a_clock_that_jumps_back_makes_nothing_older_or_younger() {
    let mut keeper = keeper();
    keeper.load(seconds(1000), document(3, rule("100")).render().unwrap().as_bytes()).unwrap();
    keeper.fail(seconds(1000), &Refusal::Silent);
    keeper.tick(seconds(1200));
    keeper.tick(seconds(0));
    assert_eq!(keeper.stats().stale, Duration::from_secs(200));
    assert!(keeper.snapshot().v3());
    keeper.tick(seconds(1300));
    assert!(!keeper.snapshot().v3());
    keeper.tick(seconds(0));
    assert_eq!((keeper.snapshot().v3(), keeper.stats().expiries), (false, 1), "what has expired stays so");
}

#[test]
fn a_version_must_rise_to_be_taken() {
    let mut keeper = keeper();
    keeper.take(document(7, rule("100"))).unwrap();
    let replayed = keeper.take(document(6, FlagRule::off())).unwrap_err();
    assert!(matches!(replayed, Refusal::Older { .. }), "{replayed}");
    let changed = keeper.take(document(7, FlagRule::off())).unwrap_err();
    assert!(changed.to_string().contains("has version 7 still; raise it"), "{changed}");
    keeper.take(document(7, rule("100"))).unwrap();
    assert!(keeper.snapshot().v3());
    keeper.take(document(8, FlagRule::off())).unwrap();
    assert!(!keeper.snapshot().v3());
    let stats = keeper.stats();
    assert_eq!((stats.loads, stats.version.map(FlagVersion::value)), (2, Some(8)));
    assert_eq!((stats.refused(RefusalKind::Older), stats.refused(RefusalKind::Conflict)), (1, 1));
    let mut reborn = Keeper::new(node("n1"), Origin::InProcess, MAX_STALE, FlagVersion::new(7));
    assert!(reborn.take(document(6, rule("100"))).is_err() && !reborn.snapshot().v3());
    assert!(reborn.take(document(7, rule("100"))).is_ok() && reborn.snapshot().v3());
}

#[test]
fn a_node_that_was_rolled_back_for_its_integrity_keeps_that_reason_when_its_source_fails() {
    let mut keeper = keeper();
    let killed = FlagRule { kill: true, reason: Reason::Integrity, ..rule("100") };
    keeper.take(document(7, killed)).unwrap();
    keeper.fail(seconds(0), &Refusal::Silent);
    keeper.tick(seconds(300));
    let snapshot = keeper.snapshot();
    assert_eq!((snapshot.standing(), snapshot.v3.why), (Standing::Expired, Why::Killed));
    assert!(snapshot.reason().discards_applied());
    let text = snapshot.to_string();
    assert!(text.contains("this node runs v1, because the flag is killed (version 7 of the control plane"), "{text}");
    assert!(text.contains("reason integrity") && text.contains("does not answer"), "{text}");
}

// --- sources

#[test]
fn constants_do_not_change() {
    assert!(Constant::v3().snapshot().v3() && Constant::v3().snapshot().compression());
    let forced = Constant::forced_v1();
    assert!(!forced.snapshot().v3() && !forced.watch().has_changed());
    assert_eq!(
        forced.snapshot().to_string(),
        "this node runs v1, because DWCP_FORCE_V1 is set in the environment of this node"
    );
    assert_eq!(forced.stats(), FlagStats::default());
}

struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_waits_is_woken_once_for_each_change_and_sees_the_last() {
    let source = InProcess::new(node("n1"), MAX_STALE);
    assert!(!source.snapshot().v3(), "version 1 until there is a document");
    let mut watch = source.watch();
    let counted = Arc::new(Counted(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counted));
    let mut context = Context::from_waker(&waker);
    {
        let mut changed = pin!(watch.changed());
        assert!(changed.as_mut().poll(&mut context).is_pending());
        source.set(document(1, rule("100"))).unwrap();
        source.set(document(2, FlagRule::off())).unwrap();
        assert_eq!(counted.0.load(Ordering::SeqCst), 1);
        let Poll::Ready(snapshot) = changed.as_mut().poll(&mut context) else { panic!("it changed") };
        assert_eq!((snapshot.v3(), snapshot.version()), (false, FlagVersion::new(2)));
    }
    assert!(!watch.has_changed() && watch.wait(Duration::ZERO).is_none());
    source.set(document(2, FlagRule::off())).unwrap();
    assert!(!watch.has_changed(), "the same is no change");
    source.lost(seconds(0), "the database is gone");
    assert_eq!(watch.wait(Duration::ZERO).unwrap().standing(), Standing::Failing);
    assert_eq!(source.deadline(), Some(seconds(300)));
    source.tick(seconds(300));
    assert!(watch.has_changed() && watch.latest().standing() == Standing::Expired);
    // A watch that is dropped while it waits leaves nothing to wake.
    assert!(pin!(watch.changed()).as_mut().poll(&mut context).is_pending());
    drop(watch);
    source.set(document(3, rule("100"))).unwrap();
    assert_eq!(counted.0.load(Ordering::SeqCst), 1);
}

#[test]
fn no_change_is_missed_by_threads_that_wait() {
    const LAST: u64 = 2000;
    let source = Arc::new(InProcess::new(node("n1"), MAX_STALE));
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let mut watch = source.watch();
            thread::spawn(move || {
                let mut version = None;
                while version.map(FlagVersion::value) != Some(LAST) {
                    let Some(snapshot) = watch.wait(Duration::from_secs(60)) else { return version };
                    assert!(snapshot.version() > version, "versions only rise");
                    version = snapshot.version();
                }
                version
            })
        })
        .collect();
    for version in 1..=LAST {
        source.set(document(version, rule("100"))).unwrap();
    }
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), FlagVersion::new(LAST));
    }
}
