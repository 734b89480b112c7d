//! The demo's processes, as seen from the command that starts them.

use std::fmt;
use std::process::Stdio;

use anyhow::Context as _;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::message::{Event, Opening, Order};

/// What a process of the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The key-value store.
    Guest,
    /// Node A, which has the guest.
    Source,
    /// Node B, which gets it.
    Sink,
    /// The client of the store.
    Client,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Source => "source",
            Self::Sink => "sink",
            Self::Client => "client",
        }
    }
}

/// Which process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    GuestAtSource,
    GuestAtSink,
    NodeA,
    NodeB,
    Client,
}

impl Who {
    fn part(self) -> Part {
        match self {
            Self::GuestAtSource | Self::GuestAtSink => Part::Guest,
            Self::NodeA => Part::Source,
            Self::NodeB => Part::Sink,
            Self::Client => Part::Client,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestAtSource => "the guest at the source",
            Self::GuestAtSink => "the guest at the sink",
            Self::NodeA => "node A (source)",
            Self::NodeB => "node B (sink)",
            Self::Client => "the client",
        })
    }
}

/// What one process said, or `None` when it has ended.
pub(super) type Said = (Who, Option<Event>);

/// A running process. It ends when this is dropped, or when this command dies in whatever way: its
/// standard input ends then.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    input: ChildStdin,
    pub(super) pid: u32,
}

impl Child {
    pub(super) async fn start<T: Serialize>(
        who: Who,
        opening: &Opening<T>,
        said: mpsc::Sender<Said>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program of this command")?;
        let mut command = Command::new(program);
        command.args(["demo-part", who.part().as_str()]);
        // Ctrl-C is for this command, which then ends the others in order.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot start {who}"))?;
        let pid = process.id().with_context(|| format!("{who} ended at once"))?;
        let input = process.stdin.take().context("no standard input")?;
        let output = process.stdout.take().context("no standard output")?;
        tokio::spawn(listen(who, output, said));
        let mut child = Self { process, input, pid };
        child.say(opening).await.with_context(|| format!("cannot tell {who} what to do"))?;
        Ok(child)
    }

    pub(super) async fn order(&mut self, order: Order) -> anyhow::Result<()> {
        self.say(&order).await
    }

    /// Kills it with -9 and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        let _ = self.process.start_kill();
        let _ = self.process.wait().await;
    }

    /// Ends it and waits until it is gone.
    pub(super) async fn end(mut self) {
        drop(self.input);
        let _ = self.process.start_kill();
        let _ = self.process.wait().await;
    }

    async fn say(&mut self, words: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(words)?;
        line.push(b'\n');
        self.input.write_all(&line).await?;
        Ok(self.input.flush().await?)
    }
}

/// Passes on what a process says until it is gone.
async fn listen(who: Who, output: ChildStdout, said: mpsc::Sender<Said>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(event) = serde_json::from_str(&line)
            && said.send((who, Some(event))).await.is_err()
        {
            return;
        }
    }
    let _ = said.send((who, None)).await;
}
