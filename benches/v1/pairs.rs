//! Starts the two processes of a measurement.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::ends::{Path, Used};
use crate::link::{ADDRESS, SINK, SOURCE};
use crate::pages::Pages;

/// What both ends used of one transfer.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub mb_s: f64,
    pub cpu: f64,
    /// Of the larger end.
    pub peak: u64,
}

pub fn run(path: Path, pages: &Pages, connections: u16, shaped: bool) -> Run {
    let folder = tempfile::tempdir().expect("a folder");
    let identity = folder.path().join("bench.id");
    let made = dwcp_core::net::Identity::generate("bench").expect("an identity");
    std::fs::write(&identity, made.to_pem()).expect("an identity");
    let spawn = |end: &str, address: &str, namespace: &str| {
        let own = std::env::current_exe().expect("own path");
        let mut command = if shaped {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(own);
            command
        } else {
            Command::new(own)
        };
        command.args(["--child", end, path.word(), &pages.word(), &connections.to_string(), address]).arg(&identity);
        End::new(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child"))
    };
    let listen = if shaped { format!("{ADDRESS}:0") } else { "127.0.0.1:0".to_owned() };
    let mut sink = spawn("sink", &listen, SINK);
    let mut source = spawn("source", &sink.line(), SOURCE);
    source.line();
    source.child.stdin.take().expect("a pipe").write_all(b"go\n").expect("a pipe");
    let (sent, received) = (Used::parse(&source.line()), Used::parse(&sink.line()));
    Run {
        mb_s: sent.bytes as f64 / 1e6 / sent.seconds,
        cpu: sent.cpu + received.cpu,
        peak: sent.peak.max(received.peak),
    }
}

struct End {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl End {
    fn new(mut child: Child) -> Self {
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "a child ended early");
        line.trim().to_owned()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
