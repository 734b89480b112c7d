//! The files of this workspace, for tests that read them. Paths are relative to its root.
#![allow(dead_code, clippy::panic, reason = "each test uses a part, and may fail by panicking")]

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file that must be there.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file that may hold anything.
pub(crate) fn text_of(path: &str) -> String {
    let bytes = std::fs::read(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All Rust files below these folders.
pub(crate) fn rust_files(folders: &[&str]) -> Vec<String> {
    files(folders, ".rs")
}

/// All files below these folders whose name ends so; folders that are missing are empty.
pub(crate) fn files(folders: &[&str], ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    for folder in folders {
        collect(&root().join(folder), ending, &mut found);
    }
    found.sort();
    found
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, ending, found);
        } else if name.ends_with(ending) {
            let inside = path.strip_prefix(root()).unwrap_or(&path);
            found.push(inside.to_string_lossy().into_owned());
        }
    }
}

/// Whether a file is a test from its first line to its last.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "reference.rs")
}

/// The first line, from 1, that belongs to tests: 1 in a test file, else that of a `#[cfg(test)]` before a module with
/// a body. Modules of tests stand last in a file.
pub(crate) fn test_lines_from(path: &str, text: &str) -> usize {
    if is_test_file(path) {
        return 1;
    }
    let lines: Vec<&str> = text.lines().collect();
    let begins = |pair: &[&str]| matches!(pair, [gate, module] if gate.trim() == "#[cfg(test)]" && module.starts_with("mod ") && module.ends_with('{'));
    lines.windows(2).position(begins).map_or(usize::MAX, |at| at + 1)
}
