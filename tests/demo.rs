//! The demo as a stranger runs it: real processes, real sockets, and a verdict from the client's log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod operator;

use std::io::{BufRead, BufReader, Lines, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;

/// A demo that is under way.
struct Demo {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<Value>,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        Self::of(command.args(["demo", "--json"]).args(args).stdout(Stdio::piped()))
    }

    fn of(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, seen: Vec::new() }
    }

    /// Reads on until an event of this name (and, for a phase, of this phase) has come.
    fn until(&mut self, event: &str, phase: Option<&str>) -> Value {
        for line in self.lines.by_ref() {
            let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(value["schema"], 1, "{value}");
            operator::explained("demo", &value);
            self.seen.push(value.clone());
            if value["event"] == event && phase.is_none_or(|phase| value["phase"] == phase) {
                return value;
            }
        }
        panic!("no {event}: {:#?}", self.seen);
    }

    /// The summary is the last line, and has all fields however the demo ended.
    fn end(mut self) -> (ExitStatus, Value) {
        let summary = self.until("summary", None);
        for field in FIELDS {
            assert!(summary.get(field).is_some(), "no {field}: {summary}");
        }
        assert!(self.lines.next().is_none(), "nothing follows the summary");
        (self.process.wait().unwrap(), summary)
    }
}

const FIELDS: [&str; 19] = [
    "verdict",
    "owner",
    "error",
    "lost_writes",
    "root_source",
    "root_sink",
    "rounds",
    "resent_pages",
    "bytes_guest",
    "bytes_wire",
    "saved_pct",
    "mb_s",
    "downtime_ms",
    "crash",
    "crash_at_pct",
    "restart_ms",
    "pages_again_ms",
    "away_writes",
    "away_gap_ms",
];

fn kill(pid: &Value) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}

fn alive(pid: &Value) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Slow enough that it is still under way when a node is killed.
const SLOW: [&str; 6] = ["--size", "32m", "--write-rate", "2000", "--bandwidth", "4MB"];

#[test]
fn a_live_guest_moves_and_nothing_is_lost() {
    let (status, summary) = Demo::start(&["--size", "32m", "--bandwidth", "100MB"]).end();
    assert_eq!(summary["verdict"], "ok", "{summary}");
    assert_eq!(status.code(), Some(0));
    assert_eq!(summary["lost_writes"], 0);
    assert_eq!(summary["bytes_guest"], 32 << 20);
    assert!(summary["rounds"].as_u64() >= Some(3), "{summary}");
    assert!(summary["resent_pages"].as_u64() > Some(0), "{summary}");
    assert!(summary["root_source"].as_str().is_some_and(|root| root.len() == 64), "{summary}");
    assert_eq!(summary["root_source"], summary["root_sink"]);
    for figure in ["bytes_wire", "saved_pct", "mb_s", "downtime_ms", "client_gap_ms", "writes"] {
        assert!(summary[figure].is_number(), "{figure}: {summary}");
    }
}

/// Of the client's log again: a node that is killed and started again costs time and nothing else.
#[test]
fn a_crashed_node_is_started_again_and_nothing_is_lost() {
    for (victim, at, least) in [("sink", "60%", 60), ("source", "60", 60), ("sink", "100%", 100), ("source", "0%", 0)] {
        let args = ["--size", "8m", "--write-rate", "5000", "--crash", victim, "--at", at];
        let mut demo = Demo::start(&args);
        let started = demo.until("started", None);
        let crash = demo.until("crash", None);
        let restarted = demo.until("restarted", None);
        assert_eq!((&crash["node"], &restarted["node"]), (&victim.into(), &victim.into()));
        let old = if victim == "sink" { &started["pid_node_b"] } else { &started["pid_node_a"] };
        assert!(old != &restarted["pid"] && !alive(old), "{started} {restarted}");
        let (status, summary) = demo.end();
        assert_eq!((&summary["verdict"], status.code()), (&"ok".into(), Some(0)), "{victim} {at}: {summary}");
        assert_eq!((&summary["owner"], &summary["lost_writes"]), (&"sink".into(), &0.into()), "{summary}");
        assert_eq!(summary["root_source"], summary["root_sink"], "{summary}");
        assert_eq!(summary["crash"], victim, "{summary}");
        assert!(summary["crash_at_pct"].as_u64() >= Some(least), "{summary}");
        assert!(summary["restart_ms"].as_f64() > Some(0.0), "{summary}");
        assert!(summary["pages_again_ms"].as_f64() > summary["restart_ms"].as_f64(), "{summary}");
        assert!(summary["away_writes"].as_u64() > Some(0), "the guest stood still: {summary}");
        assert!(summary["downtime_ms"].is_number() && summary["away_gap_ms"].is_number(), "{summary}");
    }
}

/// Version 3 is switched off and on again while pages flow, as an operator does it: by the flag document.
#[test]
fn a_guest_goes_back_to_version_1_and_forward_again_and_nothing_is_lost() {
    for (reason, zeros) in [("performance", false), ("integrity", true)] {
        let args = ["--size", "16m", "--write-rate", "5000", "--downgrade-at", "30%", "--reason", reason];
        let mut demo = Demo::start(&args);
        let (back, forward) = (demo.until("handed-over", None), demo.until("handed-over", None));
        assert_eq!((&back["to"], &back["restart"]), (&"v1".into(), &zeros.into()), "{back}");
        assert_eq!((&forward["to"], &forward["restart"]), (&"v3".into(), &false.into()), "{forward}");
        let (status, summary) = demo.end();
        assert_eq!((&summary["verdict"], status.code()), (&"ok".into(), Some(0)), "{reason}: {summary}");
        assert_eq!((&summary["owner"], &summary["lost_writes"]), (&"sink".into(), &0.into()), "{summary}");
        assert_eq!((&summary["reason"], &summary["pages_disputed"]), (&reason.into(), &0.into()), "{summary}");
        assert!(summary["v1_settled_ms"].is_number() && summary["v3_settled_ms"].is_number(), "{summary}");
        assert!(summary["away_writes"].as_u64() > Some(0), "the guest stood still: {summary}");
    }
}

/// What never spoke version 3 cannot go back from it, and no document is to blame.
#[test]
fn a_demo_that_is_forced_to_version_1_says_why_it_cannot_go_back() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    let args = ["demo", "--size", "4m", "--write-rate", "2000", "--downgrade-at", "30%"];
    let ended = command.args(args).env("DWCP_FORCE_V1", "1").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(9), "{said}");
    let verdict = said.lines().last().unwrap();
    assert!(verdict.starts_with("NOT EXERCISED") && verdict.contains("never spoke version 3"), "{said}");
    assert!(verdict.contains("DWCP_FORCE_V1 is set here"), "{said}");
    assert!(!said.contains("switched off"), "nothing is switched that is off: {said}");
}

/// The source gave the guest up, the sink was told to run it, and one of the two dies: what is left are records.
#[test]
fn a_crash_at_the_switch_over_is_ended_by_one_question() {
    for victim in ["sink", "source"] {
        let mut demo = Demo::start(&["--size", "8m", "--write-rate", "5000", "--crash", victim, "--at", "switch-over"]);
        assert!(demo.until("crash", None)["at_pct"].is_null());
        demo.until("restarted", None);
        let (status, summary) = demo.end();
        assert_eq!((&summary["verdict"], status.code()), (&"ok".into(), Some(0)), "{victim}: {summary}");
        assert_eq!((&summary["owner"], &summary["lost_writes"]), (&"sink".into(), &0.into()), "{summary}");
        assert_eq!((&summary["crash"], &summary["pages_again_ms"]), (&victim.into(), &Value::Null), "{summary}");
        assert!(summary["root_sink"].is_string() && summary["away_writes"].is_null(), "{summary}");
        assert!(summary["away_gap_ms"].as_f64() >= summary["restart_ms"].as_f64().map(f64::floor), "{summary}");
    }
}

#[test]
fn an_idle_guest_proves_nothing_and_says_so() {
    let (status, summary) = Demo::start(&["--size", "4m", "--write-rate", "0"]).end();
    assert_eq!(summary["verdict"], "not-exercised", "{summary}");
    assert_eq!(status.code(), Some(9));
    assert_eq!(summary["lost_writes"], 0);
}

#[test]
fn a_killed_node_leaves_the_guest_at_the_source() {
    for (node, name) in [("pid_node_a", "node A (source) died"), ("pid_node_b", "node B (sink) died")] {
        // Before the transfer, and in the midst of it.
        for copying in [false, true] {
            let mut demo = Demo::start(&SLOW);
            let started = demo.until("started", None);
            if copying {
                demo.until("phase", Some("copying"));
            }
            kill(&started[node]);
            let (status, summary) = demo.end();
            assert_eq!(summary["verdict"], "failed", "{node}: {summary}");
            assert_eq!(summary["owner"], "source", "{node}: {summary}");
            assert_eq!(summary["lost_writes"], 0, "{node}: {summary}");
            assert!(summary["writes"].as_u64() > Some(0), "{node}: {summary}");
            let error = summary["error"].as_str().unwrap_or_default();
            assert!(error.starts_with(name) && !error.contains("dwcp receive"), "{node}: {summary}");
            assert_eq!(status.code(), Some(1), "{node}");
        }
    }
}

#[test]
fn a_killed_guest_or_client_leaves_nothing_to_judge_and_a_whole_summary() {
    for (pid, name) in [("pid_guest", "the guest at the source died"), ("pid_client", "the client died")] {
        let mut demo = Demo::start(&SLOW);
        let started = demo.until("started", None);
        demo.until("phase", Some("copying"));
        kill(&started[pid]);
        let (status, summary) = demo.end();
        assert_eq!((&summary["verdict"], &summary["error"]), (&"failed".into(), &name.into()), "{summary}");
        assert!(summary["lost_writes"].is_null(), "{summary}");
        assert_eq!(status.code(), Some(1));
    }
}

/// The limit makes lanes idle, so what they deliver while they are busy would fit the budget easily:
/// the guest must not be paused for that.
#[test]
fn a_guest_that_outruns_the_link_stays_and_the_verdict_says_so() {
    let (status, summary) =
        Demo::start(&["--size", "8m", "--write-rate", "20000", "--bandwidth", "1MB", "--downtime", "500ms"]).end();
    assert_eq!(summary["verdict"], "not-converged", "{summary}");
    assert_eq!(status.code(), Some(3));
    assert_eq!((&summary["owner"], &summary["lost_writes"]), (&"source".into(), &0.into()), "{summary}");
    assert!(summary["error"].as_str().unwrap_or_default().contains("will not converge"), "{summary}");
    assert!(summary["downtime_ms"].is_null(), "it was not paused: {summary}");
}

#[test]
fn a_killed_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.args(["demo", "--json"]).args(SLOW).env("TMPDIR", folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = Demo::of(&mut command);
    let mut errors = demo.process.stderr.take().unwrap();
    let started = demo.until("started", None);
    demo.until("phase", Some("copying"));
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    // All children share this pipe: it ends when the last of them has.
    errors.read_to_end(&mut Vec::new()).unwrap();
    for name in ["pid_node_a", "pid_node_b", "pid_guest", "pid_guest_b", "pid_client"] {
        // A process closes its pipes a moment before it is gone.
        let gone = (0..500).any(|_| {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
            !alive(&started[name])
        });
        assert!(gone, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn ctrl_c_ends_everything_and_removes_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.args(["demo", "--json"]).args(SLOW).env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut demo = Demo::of(&mut command);
    demo.until("phase", Some("copying"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let pid = demo.process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (status, summary) = demo.end();
    assert_eq!(summary["verdict"], "interrupted");
    assert_eq!(status.code(), Some(7));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The roots of both sides agree in each of these runs: only the client's log knows better.
#[cfg(feature = "sim")]
#[test]
fn planted_bugs_turn_the_verdict_red() {
    for fault in ["skip-dirty", "late-clear"] {
        let (status, summary) = Demo::start(&["--size", "32m", "--bandwidth", "100MB", "--break", fault]).end();
        assert_eq!(summary["verdict"], "lost", "{fault}: {summary}");
        assert!(summary["lost_writes"].as_u64() > Some(0), "{fault}: {summary}");
        assert_eq!(summary["root_source"], summary["root_sink"], "{fault}: {summary}");
        assert_eq!(status.code(), Some(1), "{fault}");
    }
}
