//! What a flag document means, as files that another implementation can read. `tests/vectors/flags/README.md` says how,
//! and has a reader of its own that does not know this crate.
//!
//! `DWCP_BLESS=1 cargo test -p dwcp-core --test flag_vectors` writes files that are missing, and never changes one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail by panicking, in its helpers too"
)]

use std::path::Path;

use dwcp_core::flag::{Flag, FlagDocument, FlagRule, Keeper, MAX_STALE, NodeName, Origin, Roster, Word, bucket};
use dwcp_core::session::Time;
use serde_json::{Value, json};

/// The rows of a golden file; a missing one is written first when blessing.
fn golden(name: &str, rows: &[Value]) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/flags").join(name);
    if !path.exists() && std::env::var_os("DWCP_BLESS").is_some_and(|value| value == "1") {
        let lines: Vec<_> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}; DWCP_BLESS=1 writes it"));
    serde_json::from_str(&text).unwrap()
}

/// What the file has is what we find, row by row.
#[track_caller]
fn check(name: &str, rows: &[Value]) {
    let known = golden(name, rows);
    for (row, known) in rows.iter().zip(&known) {
        assert_eq!(row, known, "{name}");
    }
    assert_eq!(rows.len(), known.len(), "{name} has rows that are not checked, or lacks some");
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

#[test]
fn buckets() {
    let names =
        ["node-0", "node-1", "node-7", "node-123", "node-456", "a", "host.example.org", "spiffe://example.org/n/1"];
    let mut rows = Vec::new();
    for flag in Flag::ALL {
        for salt in ["", "2026-q4"] {
            for name in names.into_iter().chain([&*"n".repeat(253)]) {
                let bucket = bucket(flag.key(), salt, &node(name));
                rows.push(json!({"flag": flag.key(), "salt": salt, "node": name, "bucket": bucket}));
            }
        }
    }
    check("buckets.json", &rows);
}

#[test]
fn decisions() {
    let flag = |fields: Value| {
        let mut flag = json!({"enabled": true, "percentage": 50});
        flag.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        flag
    };
    let flags = [
        flag(json!({})),
        flag(json!({"percentage": 0})),
        flag(json!({"percentage": 100})),
        flag(json!({"percentage": 12.345})),
        flag(json!({"salt": "2026-q4"})),
        flag(json!({"threshold": 0})),
        flag(json!({"percentage": 0, "threshold": 100_000})),
        flag(json!({"include": ["node-0"], "exclude": ["node-1"], "hash": "sha256"})),
        flag(json!({"include": ["node-0"], "exclude": ["node-0"]})),
        flag(json!({"percentage": 0, "include": ["node-0"]})),
        flag(json!({"enabled": false, "include": ["node-0"]})),
        flag(
            json!({"kill": true, "percentage": 100, "include": ["node-0"], "reason": "integrity", "updated_by": "bob"}),
        ),
    ];
    let mut rows = Vec::new();
    for flag in &flags {
        for compression in [None, Some(json!({"enabled": false, "percentage": 100}))] {
            let mut flags = json!({"dwcp_v3_hde": flag});
            if let Some(rule) = compression {
                flags["dwcp_v3_compression"] = rule;
            }
            let document = json!({"version": 7, "flags": flags});
            let parsed = FlagDocument::parse(document.to_string().as_bytes()).unwrap();
            for name in ["node-0", "node-1", "node-7"] {
                let [v3, compression] = Flag::ALL.map(|flag| parsed.decide(flag, &node(name)));
                rows.push(json!({
                    "document": document, "node": name, "v3": v3.on, "why": v3.why.word(), "compression": compression.on,
                }));
            }
        }
    }
    check("decisions.json", &rows);
}

#[test]
fn exact_shares() {
    let names: Vec<_> = (0..10).map(|number| format!("node-{number}")).collect();
    let roster = Roster::parse(&names.join("\n")).unwrap();
    let mut rows = Vec::new();
    for (salt, include, exclude) in
        [("", "[]", "[]"), ("2026-q4", "[]", "[]"), ("", r#"["node-3"]"#, r#"["node-4", "node-5"]"#)]
    {
        let list = |text: &str| serde_json::from_str(text).unwrap();
        let rule = FlagRule {
            enabled: true,
            salt: Word::new(salt).unwrap(),
            include: list(include),
            exclude: list(exclude),
            ..FlagRule::off()
        };
        for percentage in ["0", "1", "10", "15", "50", "90", "100"] {
            let exact = roster.exact(Flag::V3, &rule, percentage.parse().unwrap());
            let chosen = FlagRule { threshold: Some(exact.threshold), ..rule.clone() };
            let on: Vec<_> =
                roster.nodes().filter(|node| chosen.decide(Flag::V3, node).on).map(NodeName::as_str).collect();
            assert_eq!(on.len(), exact.nodes);
            rows.push(json!({
                "roster": names, "salt": salt, "include": rule.include, "exclude": rule.exclude,
                "percentage": percentage, "wanted": exact.wanted, "threshold": exact.threshold, "on": on,
            }));
        }
    }
    check("exact.json", &rows);
}

/// What is refused after a good document of version 7, and as what. The texts of errors are ours.
#[test]
fn refusals() {
    let good = r#"{"version": 7, "flags": {"dwcp_v3_hde": {"enabled": true, "percentage": 100}}}"#;
    let texts = [
        "",
        "{",
        &good[..40],
        "\u{feff}{}",
        "[]",
        "null",
        r#"{"version": 8}"#,
        r#"{"version": 8, "flags": {}}"#,
        &good.replace('7', "0"),
        &good.replace('7', "8.5"),
        &good.replace('7', "9007199254740992"),
        &good.replace('7', "6"),
        &good.replace("100", "99"),
        &good.replace('7', "8").replace("100", "100.001"),
        &good.replace('7', "8").replace("100", "-1"),
        &good.replace('7', "8").replace("100", "1e400"),
        &good.replace('7', "8").replace("100", "\"100\""),
        &good.replace('7', "8").replace("percentage", "percent"),
        &good.replace('7', "8").replace("dwcp_v3_hde", "dwcp_v3"),
        &good.replace('7', "8").replace("true,", "true, \"hash\": \"fnv1a\","),
        &good.replace('7', "8").replace("true,", "true, \"threshold\": 100001,"),
        &good.replace('7', "8").replace("true,", "true, \"include\": [\"\"],"),
        &good.replace('7', "8").replace("true,", "true, \"reason\": \"Integrity\","),
        &good.replace('7', "8").replace("true,", "true, \"kill\": null,"),
        &good.replace('7', "8").replace("true,", "true, \"enabled\": true,"),
        &format!("{good}{good}"),
        r#"[8, {"dwcp_v3_hde": {"enabled": true, "percentage": 100}}]"#,
        r#"{"version": 8, "flags": {"dwcp_v3_hde": [true, 100]}}"#,
    ];
    let mut rows = Vec::new();
    for text in texts {
        let mut keeper = Keeper::new(node("node-0"), Origin::InProcess, MAX_STALE, None);
        keeper.load(Time::default(), good.as_bytes()).unwrap();
        let refusal = keeper.load(Time::default(), text.as_bytes()).unwrap_err();
        assert!(keeper.snapshot().v3() && keeper.stats().refused(refusal.kind()) == 1);
        rows.push(json!({"text": text, "refused": refusal.kind().word()}));
    }
    check("refused.json", &rows);
}
