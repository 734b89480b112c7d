//! The ends as processes, and what they say.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::ends::NAME;
use crate::options::Run;

/// A child process; killed when it is dropped.
pub struct End {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl End {
    fn start(words: &[&str], paths: &[&Path], more: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--child"]).args(words).args(paths).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, lines }
    }

    /// What it says next: a word, and what follows it.
    pub fn next(&mut self) -> (String, String) {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "a child ended early");
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        (word.to_owned(), rest.to_owned())
    }

    /// What follows a word, once it is said.
    pub fn until(&mut self, word: &str) -> String {
        loop {
            let (said, rest) = self.next();
            if said == word {
                return rest;
            }
        }
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child that lives");
        self.child.wait().expect("its end");
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Folders and files of one transfer.
pub struct Pair<'a> {
    pub image: &'a Path,
    pub folder: PathBuf,
    state: PathBuf,
    identity: PathBuf,
    lanes: u16,
    ledger: bool,
}

impl<'a> Pair<'a> {
    /// Below `base`, in folders of this name. One identity for both ends keeps it small; they still authenticate each
    /// other.
    pub fn new(base: &Path, name: &str, image: &'a Path, lanes: u16, ledger: bool) -> Self {
        let [folder, state, identity] = ["in", "state", "id"].map(|end| base.join(format!("{name}-{end}")));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::create_dir(&state).expect("a folder");
        let made = dwcp_core::net::Identity::generate("bench").expect("an identity");
        std::fs::write(&identity, made.to_pem()).expect("an identity");
        Self { image, folder, state, identity, lanes, ledger }
    }

    /// A receiver, and where it listens.
    pub fn sink(&self) -> (End, String) {
        let mut sink = End::start(&["sink"], &[&self.folder, &self.identity], &[]);
        let address = sink.until("listening");
        (sink, address)
    }

    pub fn source(&self, address: &str, run: Run) -> End {
        let ledger = if self.ledger { "ledger" } else { "plain" };
        let more = [address, &self.lanes.to_string(), ledger, &run.word()];
        End::start(&["source"], &[self.image, &self.state, &self.identity], &more)
    }

    /// Where it arrives.
    pub fn arrived(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// Frees its disk space.
    pub fn remove(&self) {
        std::fs::remove_dir_all(&self.folder).expect("own files");
        std::fs::remove_dir_all(&self.state).expect("own files");
    }
}
