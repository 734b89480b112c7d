//! Two ends of the built binary: their folder, their identities, their processes.

#![allow(dead_code, reason = "no test file needs all of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dwcp_core::net::Records;

/// Nothing here takes a second on an idle machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn dwcp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.env_remove("XDG_STATE_HOME").env("NO_COLOR", "1");
    command
}

/// What a command said and how it ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("not killed"),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// The exit code, and words that the operator must be told.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in: {}", self.err);
        }
    }

    /// The last line, of a `send` that ended in whatever way.
    #[track_caller]
    pub(crate) fn send_summary(&self) -> serde_json::Value {
        let summary = self.summary();
        whole(&summary);
        summary
    }

    pub(crate) fn summary(&self) -> serde_json::Value {
        let line = self.out.lines().last().unwrap_or_else(|| panic!("no line: {}", self.err));
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&value["schema"], &value["event"]), (&1.into(), &"summary".into()), "{line}");
        value
    }
}

/// A number in a JSON line.
#[track_caller]
pub(crate) fn figure(line: &serde_json::Value, name: &str) -> u64 {
    line[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"))
}

/// All fields stand in a summary of `send`, known or not.
#[track_caller]
pub(crate) fn whole(summary: &serde_json::Value) {
    let fields = ["verdict", "transfer", "name", "error", "advice", "root_source", "root_sink", "rounds"];
    let figures = ["resent_pages", "bytes_guest", "bytes_wire", "saved_pct", "mb_s", "downtime_ms", "seconds"];
    for field in fields.into_iter().chain(figures) {
        assert!(summary.get(field).is_some(), "no {field}: {summary}");
    }
}

/// Who reads the lines by a program finds each of their fields explained, in the section of its command or among the words.
#[track_caller]
pub(crate) fn explained(command: &str, line: &serde_json::Value) {
    const DOCUMENT: &str = include_str!("../../docs/json.md");
    let sections = || DOCUMENT.split("\n## ");
    let own = sections().find(|section| section.contains(&format!(". `dwcp {command}`\n"))).expect("a section");
    let words = [sections().next().unwrap(), sections().nth(1).unwrap(), own];
    let mut values = vec![line];
    while let Some(value) = values.pop() {
        values.extend(value.as_array().into_iter().flatten());
        for (field, value) in value.as_object().into_iter().flatten() {
            let word = format!("`{field}`");
            let known = words.iter().any(|section| section.contains(&word)) || ["schema", "event"].contains(&&**field);
            assert!(known, "docs/json.md says nothing of {field}: {line}");
            values.push(value);
        }
    }
    let event = format!("`{}`", line["event"].as_str().unwrap());
    assert!(words.iter().any(|section| section.contains(&event)), "docs/json.md has no {event} of {command}");
}

/// The lines of commands that come to an end by themselves are looked at, too.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Said {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let said = Said::of(&command.output().unwrap());
    // What goes on with a transfer has the lines of what began it.
    let looked_at = ["flag", "transfers", "resolve", "quarantine", "dictionary"].contains(&&*words[0]);
    if looked_at && words.iter().any(|word| word == "--json") && !words.iter().any(|word| word == "resume") {
        for line in said.out.lines() {
            explained(&words[0], &serde_json::from_str(line).unwrap());
        }
    }
    said
}

/// A folder with two identities, a sender's state, and a receiver's directory.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) sender: String,
    pub(crate) receiver: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = |name: &str| {
            let said = run(dwcp().args(["identity", "new", "--out"]).arg(folder.path().join(name)));
            assert_eq!(said.code, 0, "{}", said.err);
            said.out.trim().to_owned()
        };
        let (sender, receiver) = (identity("a.id"), identity("b.id"));
        fs::create_dir(folder.path().join("in")).unwrap();
        Self { folder, sender, receiver }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn receive(&self) -> Command {
        self.receive_at("127.0.0.1:0")
    }

    pub(crate) fn receive_at(&self, address: &str) -> Command {
        let mut command = dwcp();
        command.args(["receive", "--listen", address, "--json", "--trust", &self.sender]);
        command.arg("--identity").arg(self.path("b.id")).arg("--dir").arg(self.path("in"));
        command
    }

    pub(crate) fn listen(&self) -> Receiver {
        Receiver::start(&mut self.receive())
    }

    pub(crate) fn send(&self, to: &str, name: &str) -> Command {
        let mut command = dwcp();
        command.args(["send", "--to", to, "--as", name, "--trust", &self.receiver]);
        command.arg("--identity").arg(self.path("a.id")).arg("--state-dir").arg(self.path("state"));
        command
    }

    /// A file of one hole with something in it, and an odd size.
    pub(crate) fn sparse(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(20_000_123).unwrap();
        file.write_all_at(&noise(300_000), 5_000_000).unwrap();
        file.write_all_at(b"the end", 20_000_123 - 7).unwrap();
        path
    }

    pub(crate) fn stored(&self, name: &str) -> PathBuf {
        self.path("in").join(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        fs::read_dir(self.path("in")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap())
    }

    /// Images that can be seen in the receiver's directory.
    pub(crate) fn visible(&self) -> Vec<String> {
        let mut names: Vec<_> = self.names().filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// Files of transfers that are under way there, or were cut off.
    pub(crate) fn parked(&self) -> usize {
        self.names().filter(|name| name.starts_with(".dwcp-")).count()
    }
}

/// Bytes that no compressor makes smaller.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// A process whose lines are read as they come.
pub(crate) struct Lines {
    pub(crate) child: Child,
    pub(crate) lines: mpsc::Receiver<serde_json::Value>,
}

impl Lines {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out: ChildStdout = child.stdout.take().unwrap();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    /// Waits for an event.
    #[track_caller]
    pub(crate) fn until(&mut self, event: &str) -> serde_json::Value {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) if line["event"] == event => return line,
                Ok(_) => {}
                Err(error) => {
                    let _ = self.child.kill();
                    panic!("no `{event}` came: {error}; {}", self.errors());
                }
            }
        }
    }

    pub(crate) fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().map(|mut err| err.read_to_string(&mut text));
        text
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn interrupt(&self) {
        self.signal("INT");
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    pub(crate) fn end(mut self) -> (i32, String) {
        let text = self.errors();
        (self.child.wait().unwrap().code().expect("not killed"), text)
    }
}

/// A test that fails leaves no process behind.
impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Receiver {
    pub(crate) lines: Lines,
    pub(crate) address: String,
}

impl Receiver {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut lines = Lines::start(command);
        let address = lines.until("listening")["address"].as_str().unwrap().to_owned();
        Self { lines, address }
    }

    /// Ctrl-C while nothing is under way is a good end.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.lines.interrupt();
        let (code, err) = self.lines.end();
        assert_eq!(code, 0, "{err}");
    }
}

/// An image that takes a while: 16 s at the given rate.
pub(crate) fn slow(place: &Place, to: &str, name: &str) -> (PathBuf, Lines) {
    let image = place.path("slow.mem");
    fs::write(&image, noise(16_000_000)).unwrap();
    let sending = Lines::start(place.send(to, name).args(["--json", "--bandwidth", "1MB"]).arg(&image));
    (image, sending)
}

/// Stands between the ends and passes on what the sender says until its record says that it gave up: RUN comes after
/// that, and is the only thing that does.
pub(crate) struct WithoutRun {
    pub(crate) address: String,
    pub(crate) gave_up: mpsc::Receiver<()>,
    /// From now on all is passed on.
    pub(crate) open: Arc<AtomicBool>,
}

impl WithoutRun {
    pub(crate) fn start(receiver: &str, state: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, receiver) = (listener.local_addr().unwrap().to_string(), receiver.to_owned());
        let (tell, gave_up) = mpsc::channel();
        let open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&open);
        std::thread::spawn(move || {
            for mut sender in listener.incoming().map_while(Result::ok) {
                let Ok(mut sink) = TcpStream::connect(&receiver) else { continue };
                let (mut back, mut from_sink) = (sender.try_clone().unwrap(), sink.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_sink, &mut back);
                    let _ = back.shutdown(Shutdown::Both);
                });
                let (state, tell, opened) = (state.clone(), tell.clone(), Arc::clone(&opened));
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(count @ 1..) = sender.read(&mut bytes) {
                        let gave_up = Records::open(&state).unwrap().list().is_ok_and(|records| !records.is_empty());
                        if gave_up && !opened.load(Ordering::Relaxed) {
                            let _ = tell.send(());
                        } else if sink.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, gave_up, open }
    }
}
