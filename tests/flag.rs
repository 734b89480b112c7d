//! `dwcp flag`: what an operator changes in a flag document, and what nodes that watch it make of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

mod operator;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use dwcp_core::flag::{FileOptions, FileSource, Flag, FlagDocument, FlagSource, NodeName};
use operator::{LIMIT, Said, dwcp, run};
use serde_json::Value;

/// A folder with a flag document.
struct Fleet {
    folder: tempfile::TempDir,
}

impl Fleet {
    /// All nodes on version 3, by version 1 of the document.
    fn new() -> Self {
        let fleet = Self { folder: tempfile::tempdir().unwrap() };
        ok(&fleet.set(&["--create", "--at-version", "1", "--enable", "--percentage", "100"]));
        fleet
    }

    fn on(&self) -> Vec<String> {
        (0..10).map(|number| format!("node-{number}")).filter(|node| self.v3(node)).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("flags.json")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn document(&self) -> FlagDocument {
        FlagDocument::parse(self.text().as_bytes()).unwrap()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = dwcp();
        command.args(["flag", verb]).arg("--file").arg(self.file());
        command.env_remove("DWCP_FORCE_V1").env_remove("SUDO_USER").env("USER", "alice");
        command
    }

    fn set(&self, words: &[&str]) -> Said {
        run(self.command("set").arg("dwcp_v3_hde").args(words))
    }

    fn show(&self, words: &[&str]) -> Said {
        run(self.command("show").args(words))
    }

    fn roster(&self, count: usize) -> String {
        let path = self.path("nodes.txt");
        let names: Vec<_> = (0..count).map(|number| format!("node-{number}")).collect();
        fs::write(&path, "# all nodes\n".to_owned() + &names.join("\n")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What a node decides, by its name.
    fn v3(&self, node: &str) -> bool {
        self.document().decide(Flag::V3, &NodeName::new(node).unwrap()).on
    }
}

#[track_caller]
fn ok(said: &Said) {
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
}

/// The JSON lines before the last.
fn events(said: &Said) -> Vec<Value> {
    let mut lines: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.pop();
    lines
}

#[test]
fn a_rollout_goes_up_and_back_and_says_what_changed() {
    let fleet = Fleet::new();
    let summary = fleet.set(&["--percentage", "10", "--json"]).summary();
    let second = summary["version"].as_u64().unwrap();
    assert!(summary["version_before"] == 1 && second > 1_700_000_000, "the clock's: {summary}");
    assert_eq!((&summary["written"], &summary["updated_by"]), (&true.into(), &"alice".into()));
    let change = &summary["changes"][0];
    assert_eq!(
        (&change["field"], &change["before"], &change["after"]),
        (&"percentage".into(), &"100".into(), &"10".into())
    );
    let said = fleet.set(&["--percentage", "12.5", "--by", "bob"]);
    ok(&said);
    assert!(said.out.contains("percentage 10 -> 12.5"), "{}", said.out);
    assert!(fleet.document().version.value() > second, "even within one second");
    assert_eq!(fleet.document().flags.v3.updated_by.as_str(), "bob");
    let said = fleet.set(&["--disable", "--reason", "performance"]);
    ok(&said);
    assert!(!fleet.v3("node-1") && fleet.document().flags.v3.reason.as_str() == "performance");
    let before = fleet.document().version;
    let said = fleet.set(&["--disable", "--dry-run"]);
    ok(&said);
    assert!(said.out.contains("it says so already") && fleet.document().version == before, "{}", said.out);
    // A word that the document says already is written all the same: nobody knows which document nodes obey.
    let summary = fleet.set(&["--disable", "--json"]).summary();
    assert_eq!((&summary["written"], &summary["changes"]), (&true.into(), &serde_json::json!([])));
    assert!(fleet.document().version > before && fleet.document().flags.v3.reason.as_str() == "performance");
}

#[test]
fn what_is_killed_stays_off_until_it_is_revived() {
    let fleet = Fleet::new();
    fleet.set(&["--kill"]).failed(2, &["--reason"]);
    ok(&fleet.set(&["--kill", "--reason", "integrity"]));
    assert!(!fleet.v3("node-1"));
    let said = fleet.set(&["--enable", "--percentage", "50"]);
    ok(&said);
    assert!(said.err.contains("no node has dwcp_v3_hde: it is killed; --revive"), "{}", said.err);
    let rule = fleet.document().flags.v3;
    assert!(rule.kill && rule.reason.discards_applied(), "why it is off is still why it is off");
    ok(&fleet.set(&["--revive", "--percentage", "100"]));
    assert!(fleet.v3("node-1") && !fleet.document().flags.v3.reason.discards_applied());
}

/// What somebody distrusted is not trusted again because somebody else changes a list.
#[test]
fn distrust_stays_until_nodes_are_turned_on_or_another_reason_is_given() {
    let distrusts = |fleet: &Fleet| fleet.document().flags.v3.reason.discards_applied();
    for off in [&["--percentage", "0"][..], &["--exclude", "node-7"], &["--disable"]] {
        let fleet = Fleet::new();
        ok(&fleet.set(&[off, &["--reason", "integrity"]].concat()));
        let said = fleet.set(&["--exclude", "node-9"]);
        ok(&said);
        assert!(distrusts(&fleet) && said.err.contains("the reason stays integrity"), "{off:?}: {}", said.err);
        let again = fleet.folder.path();
        let copy = fs::read(again.join("flags.json")).unwrap();
        ok(&fleet.set(&["--reason", "operator"]));
        assert!(!distrusts(&fleet), "{off:?}");
        fs::write(again.join("flags.json"), copy).unwrap();
        ok(&fleet.set(&["--unlist", "node-9", "--enable", "--percentage", "100"]));
        assert!(!distrusts(&fleet), "{off:?}");
    }
}

/// A document that came from a backup, or was lost, must not make the next command one that nobody obeys.
#[test]
fn what_is_written_is_above_all_that_was_obeyed() {
    let fleet = Fleet::new();
    let old = fleet.text();
    let records = fleet.path("in/.dwcp");
    fs::create_dir_all(&records).unwrap();
    let open = || {
        let remember = dwcp_core::net::Records::open(&records).unwrap().folder();
        let options = FileOptions { remember, ..FileOptions::default() };
        FileSource::open(fleet.file(), NodeName::new("node-1").unwrap(), options).unwrap()
    };
    let node = open();
    let mut watch = node.watch();
    ok(&fleet.set(&["--percentage", "50"]));
    let obeyed = fleet.document().version;
    while node.stats().remembered != Some(obeyed) {
        std::thread::yield_now();
    }
    let _ = watch.wait(LIMIT);
    fs::write(fleet.file(), &old).unwrap();
    let dir = fleet.path("in");
    let said = fleet.show(&["--node", "node-1", "--json", "--dir", dir.to_str().unwrap()]);
    let summary = said.summary();
    assert_eq!((&summary["older"], &summary["runs"]), (&true.into(), &"v1".into()), "{summary}");
    assert!(said.err.contains("refuses version 1 as older"), "{}", said.err);
    // A clock was ahead once.
    let ahead = old.replace("\"version\": 1,", "\"version\": 9007199254740000,");
    fs::write(fleet.file(), ahead).unwrap();
    while node.stats().remembered.map(dwcp_core::flag::FlagVersion::value) != Some(9_007_199_254_740_000) {
        std::thread::yield_now();
    }
    for text in [Some(&*old), Some("half"), None] {
        match text {
            Some(text) => fs::write(fleet.file(), text).unwrap(),
            None => fs::remove_file(fleet.file()).unwrap(),
        }
        let create: &[&str] = if text == Some(&*old) { &[] } else { &["--create"] };
        ok(&fleet.set(&[create, &["--kill", "--reason", "integrity", "--dir", dir.to_str().unwrap()]].concat()));
        let killed = loop {
            let now = node.snapshot();
            if now.version() == Some(fleet.document().version) {
                break now;
            }
            std::thread::yield_now();
        };
        assert!(!killed.v3() && killed.reason().discards_applied());
        while node.stats().remembered != killed.version() {
            std::thread::yield_now();
        }
    }
    // An old document that was killed, too, changes nothing by that, and nobody would obey it.
    let newest = fleet.document().version;
    let older = fleet.text().replace(&format!("\"version\": {newest},"), "\"version\": 5,");
    fs::write(fleet.file(), older).unwrap();
    ok(&fleet.set(&["--kill", "--reason", "integrity", "--dir", dir.to_str().unwrap()]));
    assert!(fleet.document().version > newest, "{}", fleet.text());
}

#[test]
fn a_reason_can_be_made_worse_afterwards_but_not_misspelt() {
    let fleet = Fleet::new();
    ok(&fleet.set(&["--disable", "--reason", "performance"]));
    ok(&fleet.set(&["--reason", "security"]));
    assert!(fleet.document().flags.v3.reason.discards_applied());
    fleet.set(&["--reason", "integrty"]).failed(2, &["nearly `integrity`"]);
    fleet.set(&["--reason", "Because of it"]).failed(2, &["a-z 0-9"]);
}

#[test]
fn lists_go_before_the_share_and_a_node_is_on_one_of_them() {
    let fleet = Fleet::new();
    ok(&fleet.set(&["--exclude", "node-1", "--exclude", "node-2"]));
    assert!(!fleet.v3("node-1") && !fleet.v3("node-2") && fleet.v3("node-3"));
    let said = fleet.set(&["--percentage", "0", "--include", "node-1"]);
    ok(&said);
    assert!(said.out.contains("exclude    node-1 -> -") && said.out.contains("include    - -> node-1"), "{}", said.out);
    assert!(fleet.v3("node-1") && !fleet.v3("node-3"));
    ok(&fleet.set(&["--unlist", "node-1"]));
    assert!(!fleet.v3("node-1") && fleet.document().flags.v3.include.is_empty());
    fleet.set(&["--include", "node 7"]).failed(2, &["names no node"]);
}

#[test]
fn an_exact_tenth_of_ten_nodes_is_one_and_grows_without_losing_it() {
    let fleet = Fleet::new();
    let roster = fleet.roster(10);
    let share =
        |percentage: &str| fleet.set(&["--percentage", percentage, "--exact", "--roster", &roster, "--json"]).summary();
    let names = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
    let one = share("10");
    assert_eq!((&one["roster"]["on"], names(&one["roster"]["leaves"]).len()), (&1.into(), 9));
    let five = share("50");
    assert_eq!(five["roster"]["on"], 5);
    assert_eq!((names(&five["roster"]["joins"]).len(), names(&five["roster"]["leaves"]).len()), (4, 0));
    let chosen = fleet.document().flags.v3.threshold;
    ok(&fleet.set(&["--exclude", "elsewhere"]));
    assert_eq!(fleet.document().flags.v3.threshold, chosen, "a list is no other share");
    // Without a roster nobody can say which share is exact, but a node never goes against the operator's word.
    let mut before = fleet.on();
    for percentage in ["51", "60", "80", "100", "60", "51", "20", "10", "9", "0"] {
        let lower = fleet.document().flags.v3.percentage > percentage.parse().unwrap();
        ok(&fleet.set(&["--percentage", percentage]));
        let after = fleet.on();
        let (few, many) = if lower { (&after, &before) } else { (&before, &after) };
        assert!(few.iter().all(|node| many.contains(node)), "{percentage} %: {before:?} -> {after:?}");
        before = after;
    }
    assert_eq!((before.len(), fleet.document().flags.v3.threshold), (0, None));
    fleet.set(&["--exact"]).failed(2, &["--roster"]);
    fs::write(&roster, "node-1\nnode-1\n").unwrap();
    fleet.set(&["--exact", "--roster", &roster]).failed(1, &["line 2: node-1 is named twice", "one name a line"]);
}

#[test]
fn show_says_what_a_node_decides_and_why() {
    let fleet = Fleet::new();
    ok(&fleet.set(&["--percentage", "50", "--exclude", "node-2"]));
    let roster = fleet.roster(10);
    let said = fleet.show(&["--node", "node-2", "--roster", &roster, "--json"]);
    ok(&said);
    let [v3, compression] = <[Value; 2]>::try_from(events(&said)).unwrap();
    assert_eq!((&v3["flag"], &v3["on"], &v3["why"]), (&"dwcp_v3_hde".into(), &false.into(), &"excluded".into()));
    assert_eq!(
        (&v3["threshold"], &v3["reason"], &v3["updated_by"]),
        (&50_000.into(), &"operator".into(), &"alice".into())
    );
    assert_eq!(v3["bucket"], dwcp_core::flag::bucket("dwcp_v3_hde", "", &NodeName::new("node-2").unwrap()));
    let on = (0..10).filter(|number| fleet.v3(&format!("node-{number}"))).count();
    assert_eq!(v3["nodes_on"], on);
    assert_eq!((&compression["on"], &compression["why"]), (&true.into(), &"absent".into()));
    let summary = said.summary();
    let version = fleet.document().version.value();
    assert_eq!((&summary["runs"], &summary["version"], &summary["nodes"]), (&"v1".into(), &version.into(), &10.into()));
    assert!(summary["written_s_ago"].as_u64().unwrap() < 600);

    let said = fleet.show(&["--node", "node-2"]);
    assert!(said.out.contains("off  at node-2, because the node is excluded"), "{}", said.out);
    ok(&fleet.show(&[]));
    let said = run(fleet.command("show").args(["--node", "node-3", "--json"]).env("DWCP_FORCE_V1", "1"));
    assert_eq!((&said.summary()["runs"], &said.summary()["forced_v1"]), (&"v1".into(), &true.into()));
    assert!(said.err.contains("DWCP_FORCE_V1 is set here"), "{}", said.err);
}

#[test]
fn compression_alone_can_be_turned_off() {
    let fleet = Fleet::new();
    ok(&run(fleet.command("set").args(["dwcp_v3_compression", "--disable"])));
    let summary = fleet.show(&["--node", "node-1", "--json"]).summary();
    assert_eq!((&summary["runs"], &summary["compression"]), (&"v3".into(), &false.into()));
    ok(&run(fleet.command("set").args(["dwcp_v3_compression", "--enable"])));
    assert_eq!(fleet.show(&["--node", "node-1", "--json"]).summary()["compression"], true);
}

#[test]
fn a_wrong_path_and_a_damaged_document_are_told_and_not_written_over() {
    let fleet = Fleet::new();
    let elsewhere = fleet.path("flag.json");
    let mistyped = || {
        let mut command = dwcp();
        command.args(["flag", "set", "dwcp_v3_hde", "--kill", "--reason", "integrity", "--file"]).arg(&elsewhere);
        command
    };
    run(&mut mistyped()).failed(1, &["there is no", "no node looks at it", "--create"]);
    assert!(!elsewhere.exists(), "a kill that nobody sees is worse than an error");
    run(dwcp().args(["flag", "show", "--node", "n", "--file"]).arg(&elsewhere)).failed(1, &["there is no"]);

    let half = fleet.text();
    fs::write(fleet.file(), &half[..half.len() / 2]).unwrap();
    fleet.show(&["--node", "n"]).failed(1, &["only a part", "line ", "5 minutes, then run v1"]);
    fleet.set(&["--disable"]).failed(1, &["only a part", "--create"]);
    assert_eq!(fleet.text(), half[..half.len() / 2]);
    ok(&fleet.set(&["--create", "--at-version", "40", "--kill", "--reason", "security"]));
    assert_eq!(fleet.document().version.value(), 40);
    fleet.set(&["--create", "--at-version", "50", "--disable"]).failed(1, &["good document already"]);
    fleet.set(&["--percentage", "101"]).failed(2, &["0 to 100"]);
    fleet.set(&["--percentage", "-1"]).failed(2, &["0 to 100"]);
    fleet.set(&[]).failed(2, &["--percentage", "--kill"]);
    fs::write(fleet.file(), r#"{"version": 1, "flags": {"dwcp_v3_hde": {"enabled": true, "percent": 1}}}"#).unwrap();
    fleet.show(&["--node", "n"]).failed(1, &["unknown field `percent`", "line 1 column"]);
    fs::remove_file(fleet.file()).unwrap();
    fs::create_dir(fleet.file()).unwrap();
    fleet.show(&["--node", "n"]).failed(1, &["is no file"]);
}

#[test]
fn after_the_last_version_there_is_none() {
    let fleet = Fleet::new();
    let last = fleet.text().replace("\"version\": 1,", "\"version\": 9007199254740991,");
    fs::write(fleet.file(), last).unwrap();
    fleet.set(&["--disable"]).failed(1, &["after which there is none"]);
}

#[test]
fn the_file_is_replaced_as_a_whole_with_the_rights_it_had() {
    let fleet = Fleet::new();
    assert_eq!(fleet.file().metadata().unwrap().mode() & 0o777, 0o644);
    fs::set_permissions(fleet.file(), fs::Permissions::from_mode(0o640)).unwrap();
    let old = fleet.file().metadata().unwrap();
    // What a crash left behind is in nobody's way.
    fs::write(fleet.path(".flags.json.dwcp-new"), "half").unwrap();
    ok(&fleet.set(&["--percentage", "10"]));
    let new = fleet.file().metadata().unwrap();
    assert_ne!(old.ino(), new.ino());
    assert_eq!((old.mode(), old.uid(), old.gid()), (new.mode(), new.uid(), new.gid()));
    let names: Vec<_> = fs::read_dir(fleet.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["flags.json"]);
    // A link is kept, and what it leads to is changed.
    symlink("flags.json", fleet.path("link.json")).unwrap();
    ok(&run(dwcp().args(["flag", "set", "dwcp_v3_hde", "--disable", "--file"]).arg(fleet.path("link.json"))));
    assert!(fleet.path("link.json").is_symlink() && !fleet.v3("node-1"));
    let summary = fleet.set(&["--enable", "--dry-run", "--json"]).summary();
    let version = fleet.document().version.value();
    assert_eq!(summary["written"], false);
    assert!(summary["version"].as_u64().unwrap() > version);
}

#[test]
fn two_operators_do_not_undo_each_other() {
    let fleet = Fleet::new();
    let held = File::open(fleet.folder.path()).unwrap();
    held.lock().unwrap();
    fleet.set(&["--disable"]).failed(1, &["somebody has locked", "nothing was changed", "DWCP_FORCE_V1"]);
    // A kill switch does not fail for a lock that is held a moment.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| fleet.set(&["--disable"]));
        drop(held);
        ok(&waits.join().unwrap());
    });
}

#[test]
fn a_node_that_watches_follows_the_operator() {
    let fleet = Fleet::new();
    let source = FileSource::open(fleet.file(), NodeName::new("node-1").unwrap(), FileOptions::default()).unwrap();
    assert!(source.snapshot().v3());
    let mut watch = source.watch();
    ok(&fleet.set(&["--kill", "--reason", "integrity"]));
    let killed = watch.wait(LIMIT).expect("it is seen");
    assert!(!killed.v3() && killed.reason().discards_applied() && killed.seen().is_some());
    ok(&fleet.set(&["--revive"]));
    assert!(watch.wait(LIMIT).expect("it is seen").v3());
    assert_eq!(source.stats().loads, 3);
}

#[test]
fn a_kill_is_obeyed_however_the_document_came_to_say_so() {
    let fleet = Fleet::new();
    let node = FileSource::open(fleet.file(), NodeName::new("node-1").unwrap(), FileOptions::default()).unwrap();
    assert!(node.snapshot().v3());
    // By hand, and the version was left as it is.
    let by_hand = fleet.text().replace("\"kill\": false", "\"kill\": true");
    assert_ne!(by_hand, fleet.text());
    fs::write(fleet.file(), by_hand).unwrap();
    let said = fleet.set(&["--kill", "--reason", "operator"]);
    ok(&said);
    let mut seen = node.watch();
    while node.snapshot().v3() {
        assert!(seen.wait(LIMIT).is_some(), "{}", said.out);
    }
}

#[test]
fn the_last_version_of_all_says_how_to_count_anew() {
    let fleet = Fleet::new();
    let last = fleet.text().replace("\"version\": 1,", "\"version\": 9007199254740991,");
    assert_ne!(last, fleet.text());
    fs::write(fleet.file(), &last).unwrap();
    fleet.set(&["--disable"]).failed(1, &["after which there is none", "DWCP_FORCE_V1=1", "flag-version"]);
    assert_eq!(fleet.text(), last);
    let dir = fleet.path("images");
    fs::create_dir_all(dir.join(".dwcp")).unwrap();
    let remembered = dir.join(".dwcp/flag-version");
    fs::write(fleet.file(), last.replace("9007199254740991", "5")).unwrap();
    fs::write(&remembered, "dwcp flag version 1\nobeyed 9007199254740991\n").unwrap();
    let dir = dir.to_str().unwrap();
    fleet.set(&["--disable", "--dir", dir]).failed(1, &["this node obeyed version 9007199254740991"]);
    // What cannot be read is no reason to leave version 3 on.
    fs::write(&remembered, "what").unwrap();
    let said = fleet.set(&["--kill", "--reason", "integrity", "--dir", dir]);
    ok(&said);
    assert!(said.err.contains("the version is the clock's: ") && !fleet.v3("node-1"), "{}", said.err);
}

#[test]
fn what_would_be_lost_of_an_edit_is_refused() {
    let fleet = Fleet::new();
    for twice in [["--include", "a", "--exclude", "a"], ["--include", "b", "--unlist", "b"]] {
        fleet.set(&twice).failed(2, &["is named more than once"]);
    }
    let nowhere = fleet.path("link.json");
    symlink(fleet.path("missing.json"), &nowhere).unwrap();
    let mut command = dwcp();
    command.args(["flag", "set", "--create", "--enable", "dwcp_v3_hde", "--file"]).arg(&nowhere);
    run(&mut command).failed(1, &["is a link that leads nowhere"]);
    assert!(nowhere.is_symlink());
    let mut command = fleet.command("set");
    let said = run(command.args(["dwcp_v3_compression", "--disable", "--reason", "integrity"]));
    ok(&said);
    assert!(said.err.contains("makes no transfer begin from zero"), "{}", said.err);
}
