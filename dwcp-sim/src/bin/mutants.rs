//! Applies the changes of `docs/mutants.md`, one at a time, to a copy of the sources: each must make its test fail.
//!
//! ```text
//!  docs/mutants.md ──> [Mutant]        git ls-files ──> target/mutants/work (only what differs is written)
//!                         │
//!        every test passes unchanged? ──> change one line ──> cargo test ──> failed: killed
//!                                                                           passed: survived
//!                                                                           else:   broken row
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "\
Breaks one rule of docs/protocol.md at a time and checks that a test notices.

usage: cargo run --release -p dwcp-sim --bin mutants [-- --list | --only NAME-OR-RULE]

  --list        name the mutants and stop
  --only WHAT   only the mutant of this name, or those of this rule (W-4)

exit codes: 0 all killed, 1 one survived or could not be tried, 2 usage
";

/// One row of `docs/mutants.md`.
#[derive(Debug, Default, Clone)]
struct Mutant {
    name: String,
    rule: String,
    file: String,
    find: String,
    replace: String,
    test: String,
}

/// What became of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Killed,
    Survived,
    /// It does not compile, or its test was not found.
    Broken,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (list, only) = match words.as_slice() {
        [] => (false, None),
        ["--list"] => (true, None),
        ["--only", what] => (false, Some(*what)),
        ["--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(list, only) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True when every mutant asked for was killed.
fn run(list: bool, only: Option<&str>) -> Result<bool, String> {
    let root = workspace()?;
    let text = read(&root.join("docs/mutants.md"))?;
    let mut mutants = parse(&text)?;
    mutants.retain(|mutant| only.is_none_or(|what| mutant.name == what || mutant.rule == what));
    if mutants.is_empty() {
        return Err("no such mutant; --list names them".into());
    }
    if list {
        for mutant in &mutants {
            println!("{:5} {:30} {}", mutant.rule, mutant.name, mutant.file);
        }
        return Ok(true);
    }
    let work = root.join("target/mutants/work");
    copy_sources(&root, &work)?;
    let bench = Bench { work, target: root.join("target/mutants/target") };
    bench.check_unchanged(&mutants)?;
    let mut fates = Vec::new();
    for mutant in &mutants {
        print!("{:5} {:30} ", mutant.rule, mutant.name);
        let _ = std::io::stdout().flush();
        let (fate, output) = bench.try_mutant(mutant)?;
        println!("{fate:?}");
        if fate == Fate::Broken {
            println!("{output}");
        }
        fates.push(fate);
    }
    let killed = fates.iter().filter(|fate| **fate == Fate::Killed).count();
    println!("{killed} of {} killed", fates.len());
    Ok(killed == fates.len())
}

/// The root of the workspace that this binary was built in.
fn workspace() -> Result<PathBuf, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).ok_or_else(|| "dwcp-sim has no parent folder".into())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads the blocks that begin with three backquotes and `mutant`.
fn parse(text: &str) -> Result<Vec<Mutant>, String> {
    let mut mutants = Vec::new();
    let mut open: Option<Mutant> = None;
    for (line, number) in text.lines().zip(1..) {
        let fault = |what: &str| format!("docs/mutants.md:{number}: {what}");
        if let Some(name) = line.strip_prefix("```mutant ") {
            open = Some(Mutant { name: name.trim().to_owned(), ..Mutant::default() });
        } else if line == "```" {
            let Some(mutant) = open.take() else { continue };
            if [&mutant.rule, &mutant.file, &mutant.find, &mutant.test].iter().any(|field| field.is_empty()) {
                return Err(fault("the block above lacks a field"));
            }
            mutants.push(mutant);
        } else if let Some(mutant) = &mut open {
            let (key, value) = line.split_once(": ").ok_or_else(|| fault("`key: value` expected"))?;
            let field = match key {
                "rule" => &mut mutant.rule,
                "file" => &mut mutant.file,
                "find" => &mut mutant.find,
                "replace" => &mut mutant.replace,
                "test" => &mut mutant.test,
                _ => return Err(fault("no such key")),
            };
            value.clone_into(field);
        }
    }
    Ok(mutants)
}

/// Makes `work` hold exactly the sources that git knows or would add; files that are the same keep their times, so that
/// cargo builds nothing anew.
fn copy_sources(root: &Path, work: &Path) -> Result<(), String> {
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("git ls-files: {error}"))?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let wanted: BTreeSet<PathBuf> =
        listing.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect();
    if wanted.is_empty() {
        return Err("git knows no file here".into());
    }
    for path in &wanted {
        let (from, to) = (root.join(path), work.join(path));
        let at = |error: std::io::Error| format!("{}: {error}", path.display());
        let bytes = fs::read(&from).map_err(at)?;
        if fs::read(&to).is_ok_and(|known| known == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(at)?;
        }
        fs::write(&to, bytes).map_err(at)?;
    }
    let mut stale = Vec::new();
    collect_stale(work, work, &wanted, &mut stale);
    stale.iter().try_for_each(|path| fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display())))
}

fn collect_stale(folder: &Path, work: &Path, wanted: &BTreeSet<PathBuf>, stale: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_stale(&path, work, wanted, stale);
        } else if path.strip_prefix(work).is_ok_and(|inside| !wanted.contains(inside)) {
            stale.push(path);
        }
    }
}

/// Where mutants are tried.
struct Bench {
    work: PathBuf,
    target: PathBuf,
}

impl Bench {
    /// Every test that shall fail must pass first, or its failure says nothing.
    fn check_unchanged(&self, mutants: &[Mutant]) -> Result<(), String> {
        let tests: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.test.as_str()).collect();
        for test in tests {
            let (fate, output) = self.test(test)?;
            if fate != Fate::Survived {
                return Err(format!("`{test}` does not pass without a change:\n{output}"));
            }
        }
        Ok(())
    }

    fn try_mutant(&self, mutant: &Mutant) -> Result<(Fate, String), String> {
        let path = self.work.join(&mutant.file);
        let sound = read(&path)?;
        let count = sound.matches(&mutant.find).count();
        if count != 1 {
            return Ok((Fate::Broken, format!("`{}` stands {count} times in {}", mutant.find, mutant.file)));
        }
        let write = |text: &str| fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()));
        write(&sound.replace(&mutant.find, &mutant.replace))?;
        let tried = self.test(&mutant.test);
        write(&sound)?;
        tried
    }

    /// Runs one test, by package, target and full name.
    fn test(&self, test: &str) -> Result<(Fate, String), String> {
        let words: Vec<&str> = test.split(' ').collect();
        let [package, target, name] = words.as_slice() else {
            return Err(format!("`{test}` is not a package, a target and a name"));
        };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--quiet", "-p", package]);
        match target.strip_prefix("test:") {
            Some(file) => cargo.args(["--test", file]),
            None => cargo.arg("--lib"),
        };
        if *package == "dwcp-core" {
            cargo.arg("--no-default-features");
        }
        // A mutant is compiled once and runs for a moment.
        for member in ["dwcp-core", "dwcp-hde"] {
            cargo.args(["--config", &format!("profile.dev.package.{member}.opt-level=0")]);
        }
        cargo.args(["--config", "profile.dev.debug=0", "--", "--exact", name]);
        cargo.current_dir(&self.work).env("CARGO_TARGET_DIR", &self.target).env("RUST_BACKTRACE", "0");
        cargo.env("RUSTFLAGS", "--cap-lints=allow").stdin(Stdio::null());
        let done = cargo.output().map_err(|error| format!("cargo: {error}"))?;
        let output = [String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)].concat();
        let ran = output.contains("running 1 test");
        let fate = match (ran, done.status.success()) {
            (true, true) => Fate::Survived,
            (true, false) => Fate::Killed,
            (false, _) => Fate::Broken,
        };
        Ok((fate, output))
    }
}
