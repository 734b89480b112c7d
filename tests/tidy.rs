//! Style that matters is a test: who may import whom, sizes, banned words, links.

mod tree;

use std::path::Path;

use tree::{files, read, root, rust_files, test_lines_from, text_of};

/// Lines of a file without its tests.
const MOST_LINES: usize = 800;

/// The lines of a file that are product code, with their numbers.
fn product_lines(path: &str) -> Vec<(usize, String)> {
    let text = text_of(path);
    let end = test_lines_from(path, &text);
    text.lines().zip(1..).filter(|(_, number)| *number < end).map(|(line, number)| (number, line.to_owned())).collect()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn product_files() -> Vec<String> {
    let all = rust_files(&["dwcp-core/src", "dwcp-hde/src", "dwcp-sim/src", "dwcp-v1-compat/src", "src"]);
    all.into_iter().filter(|path| !tree::is_test_file(path)).collect()
}

#[test]
fn imports_go_one_way() {
    const RULES: [(&str, &[&str], &str); 8] = [
        (
            "dwcp-core/src/wire",
            &[
                "crate::session",
                "crate::net",
                "crate::guest",
                "dwcp_hde",
                "tokio",
                "rustls",
                "std::net",
                "std::io",
                "std::fs",
            ],
            "wire knows bytes and extents only",
        ),
        (
            "dwcp-core/src/session",
            &[
                "crate::net",
                "tokio",
                "rustls",
                "std::net",
                "std::io",
                "std::fs",
                "std::thread",
                "Instant",
                "SystemTime",
            ],
            "session is pure: no socket, no file, no clock, no thread",
        ),
        (
            "dwcp-hde/src",
            &["dwcp_core", "tokio", "rustls", "std::net", "std::io", "std::fs", "std::thread", "std::env", "std::time"],
            "hde is bytes in, bytes out",
        ),
        ("dwcp-core/src", &["qemu", "v1_compat", "dwcp_sim", "dwcp_control"], "core knows no other end"),
        ("src", &["dwcp_sim"], "the product does not contain the simulator"),
        (
            "dwcp-v1-compat/src/wire",
            &["crate::message", "crate::detect", "crate::net", "tokio", "std::net", "std::io", "std::fs"],
            "wire knows bytes only",
        ),
        (
            "dwcp-v1-compat/src/message",
            &["crate::detect", "crate::net", "tokio", "std::net", "std::io", "std::fs", "std::thread", "Instant"],
            "a message is pure: no socket, no file, no clock, no thread",
        ),
        (
            "dwcp-v1-compat/src/detect",
            &["crate::net", "tokio", "std::io", "std::fs", "std::thread", "Instant", "TcpStream"],
            "detection is pure: addresses and bytes, no socket, no clock",
        ),
    ];
    let mut faults = Vec::new();
    for (folder, banned, why) in RULES {
        let files = rust_files(&[folder]);
        assert!(!files.is_empty(), "{folder} is empty");
        for path in files.iter().filter(|path| !tree::is_test_file(path)) {
            for (number, line) in product_lines(path) {
                let word = banned.iter().find(|word| !is_comment(&line) && names(&line, word));
                faults.extend(word.map(|word| format!("{path}:{number}: `{word}`: {why}")));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Whether a line has `word` as a path of its own, not as a part of a longer name.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[test]
fn only_manifests_that_may_name_a_crate_do() {
    const RULES: [(&str, &[&str]); 4] = [
        ("dwcp-hde/Cargo.toml", &["tokio", "rustls", "dwcp-core"]),
        ("dwcp-core/Cargo.toml", &["dwcp-sim", "clap", "anyhow", "dwcp-v1-compat", "dwcp-qemu"]),
        ("dwcp-sim/Cargo.toml", &["tokio", "rustls", "clap"]),
        ("dwcp-v1-compat/Cargo.toml", &["dwcp-sim", "clap", "anyhow", "dwcp-hde"]),
    ];
    for (manifest, banned) in RULES {
        let text = read(manifest);
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("description"));
        for line in lines {
            let name = line.split([' ', '.', '=']).next().unwrap_or_default();
            assert!(!banned.contains(&name), "{manifest} must not depend on {name}");
        }
    }
}

#[test]
fn every_member_is_there_and_nothing_else() {
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap_or_default();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&".") && members.len() > 1, "members were not understood: {members:?}");
    for member in &members {
        assert!(root().join(member).join("Cargo.toml").exists(), "{member} has no Cargo.toml");
    }
    let excluded = ["fuzz"];
    for entry in std::fs::read_dir(root()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let package = entry.path().join("Cargo.toml").exists();
        let known = members.contains(&name.as_str()) || excluded.contains(&name.as_str());
        assert!(!package || known, "{name} is a package and no member of the workspace");
    }
}

#[test]
fn files_stay_small() {
    let lines_of = |path: &String| (path.clone(), product_lines(path).len());
    let long: Vec<_> = product_files().iter().map(lines_of).filter(|(_, lines)| *lines > MOST_LINES).collect();
    assert!(long.is_empty(), "more than {MOST_LINES} lines without tests: {long:?}");
}

#[test]
fn nothing_is_left_for_later_or_badly_named() {
    let words = ["TO", "FIX", "XX"].iter().zip(["DO", "ME", "X"]).map(|(one, two)| format!("{one}{two}"));
    let words: Vec<String> = words.chain(["todo!".into(), "unimplemented!".into()]).collect();
    let mut faults = Vec::new();
    for path in product_files() {
        let name = Path::new(&path).file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if ["utils", "util", "common", "misc", "types", "helpers"].contains(&name.as_str()) {
            faults.push(format!("{path}: a file is named after its noun"));
        }
        for (number, line) in product_lines(&path) {
            let word = words.iter().find(|word| names(&line, word));
            faults.extend(word.map(|word| format!("{path}:{number}: {word}")));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Whoever selects over a future must know what becomes of it when another one is first.
#[test]
fn every_public_async_function_says_whether_it_is_cancel_safe() {
    let (mut found, mut faults) = (0, Vec::new());
    let libraries = ["dwcp-core/src", "dwcp-v1-compat/src"];
    let in_library = |path: &String| libraries.iter().any(|folder| path.starts_with(folder));
    for path in product_files().into_iter().filter(in_library) {
        let lines = product_lines(&path);
        for (at, (number, line)) in lines.iter().enumerate() {
            if !line.trim_start().starts_with("pub async fn ") {
                continue;
            }
            found += 1;
            let above = lines.iter().take(at).rev().map(|(_, line)| line.trim_start());
            let mut docs = above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
            if !docs.any(|line| line.starts_with("/// Cancel safe: ")) {
                faults.push(format!("{path}:{number}: no line `Cancel safe: ...` above {}", line.trim()));
            }
        }
    }
    assert!(found >= 6, "only {found} public async functions were found");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn links_lead_somewhere() {
    let mut documents = files(&["docs", "tests/vectors", "tests/data", "dwcp-hde", "dwcp-v1-compat"], ".md");
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
    documents.extend(top.iter().filter(|name| root().join(name).exists()).map(|name| (*name).to_owned()));
    let mut faults = Vec::new();
    for path in documents {
        let text = text_of(&path);
        let folder = root().join(&path).parent().map(Path::to_path_buf).unwrap_or_default();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = file.is_empty() || folder.join(file).exists();
            let linked = if file.is_empty() {
                text.clone()
            } else {
                std::fs::read_to_string(folder.join(file)).unwrap_or_default()
            };
            if !there || !(anchor.is_empty() || anchors(&linked).any(|known| known == anchor)) {
                faults.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(faults.is_empty(), "links that lead nowhere:\n{}", faults.join("\n"));
}

/// The anchors of a document's headings, as forges make them.
fn anchors(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    })
}
