//! What the demo's processes say to the command that started them: JSON lines on their standard
//! output; and what it says to them: JSON lines on their standard input. The first line is what to
//! start with. When the input ends, the command is gone, and the process goes too.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::Context as _;
use dwcp_core::session::Progress;
use dwcp_core::wire::Framing;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where a guest is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GuestPlace {
    /// Dirty bits and arena.
    pub(super) arena: PathBuf,
    pub(super) arena_bytes: u64,
    /// The client's socket.
    pub(super) store: PathBuf,
    /// The node's socket.
    pub(super) control: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GuestStart {
    pub(super) place: GuestPlace,
    /// Make an empty store and serve; else wait for one to arrive.
    pub(super) serve: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeStart {
    pub(super) place: GuestPlace,
    /// Key and certificate, made for this run; they never touch a disk.
    pub(super) identity: String,
    pub(super) trust: String,
    pub(super) records: PathBuf,
    /// Started again after a crash: what is here may be in the middle of a transfer.
    pub(super) again: bool,
    /// The flag document that it obeys.
    pub(super) flags: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SinkStart {
    pub(super) node: NodeStart,
    /// Where to listen.
    pub(super) at: String,
    /// Tell of RUN, and do not obey before [`Order::Go`].
    pub(super) hold: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SourceStart {
    pub(super) node: NodeStart,
    pub(super) to: String,
    pub(super) lanes: u16,
    pub(super) downtime_ms: u64,
    pub(super) bandwidth: Option<u64>,
    /// Either node will be killed and started again.
    pub(super) crash: bool,
    /// Bytes per second until then.
    pub(super) until_crash: Option<u64>,
    #[cfg(feature = "sim")]
    pub(super) fault: Option<super::Fault>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClientStart {
    /// Stores that may answer, the first one first.
    pub(super) stores: Vec<PathBuf>,
    pub(super) keys: u64,
    /// Writes per second.
    pub(super) write_rate: u64,
    /// The log of acknowledgements.
    pub(super) log: PathBuf,
}

/// What a process is told after its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// Source: begin the transfer. Sink: run the guest that is held.
    Go,
    /// Source: end it.
    Cancel,
    /// Source: as fast as it was asked to be, from now on.
    Hurry,
    /// Guest: serve again, because the node that paused it is gone and had not given up.
    Run,
    /// Client: tell what was written since the last mark.
    Mark,
    /// Client: stop writing, read every key.
    Verify,
}

/// What a process reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event {
    /// It is there; a sink says where it listens.
    Ready { address: Option<String> },
    /// Client: how far the fill is.
    Filling { done: u64, of: u64 },
    /// Client: how far the verification is.
    Verifying { done: u64, of: u64 },
    /// Client: writes acknowledged since the fill.
    Writing { acknowledged: u64 },
    /// Client: writes acknowledged since the last mark, and the longest wait for one meanwhile.
    Marked { writes: u64, gap_ms: u64 },
    /// Sink: it was told to run the guest, and waits with that.
    Held,
    /// Source: the migration begins again from the first page, because the sink was started again.
    Again,
    /// Source: statistics.
    Moving { figures: Box<Figures> },
    /// Node: the session is over.
    Over { owner: Owner, error: Option<String>, converged: bool, figures: Box<Figures> },
    /// Client: the verdict.
    Verified(Verified),
    /// It cannot go on.
    Failed { text: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Owner {
    Source,
    Sink,
    InDoubt,
}

/// What the client found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verified {
    /// Keys whose last acknowledged record is not what the store holds.
    pub(super) lost_writes: u64,
    pub(super) keys: u64,
    /// Acknowledged writes, the fill included.
    pub(super) writes: u64,
    /// Writes a second while the fill was over and the guest ran.
    pub(super) rate: u64,
    /// Longest time between two acknowledgements.
    pub(super) gap_ms: u64,
    /// Whether the store's own counters came along.
    pub(super) counters_kept: bool,
    /// The first loss in words.
    pub(super) example: Option<String>,
}

/// A node's statistics: of [`Progress`], what the demo shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) phase: String,
    pub(super) rounds: Vec<Round>,
    pub(super) pages_left: u64,
    pub(super) pages_settled: u64,
    pub(super) pages_resent: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_wire: u64,
    pub(super) saved: f64,
    pub(super) plain_rate: u64,
    pub(super) wire_rate: u64,
    pub(super) downtime_us: Option<u64>,
    pub(super) root: Option<String>,
    /// v1 or v3: what the lanes carry.
    pub(super) framing: String,
    /// Hand-overs between versions.
    pub(super) handed: Vec<Handed>,
    pub(super) pages_disputed: u64,
}

/// One hand-over, as the source measured it from the moment at which it saw the flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Handed {
    /// v1 or v3.
    pub(super) to: String,
    pub(super) restart: bool,
    pub(super) last_extent_us: u64,
    pub(super) settled_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Round {
    pub(super) pages: u64,
    pub(super) wire_bytes: u64,
    pub(super) micros: u64,
}

impl Figures {
    /// It began with version 1 and stayed there: there was nothing to go back from.
    pub(super) fn never_v3(&self) -> bool {
        self.framing == Framing::Messages.to_string() && self.handed.is_empty()
    }

    pub(super) fn of(progress: &Progress) -> Self {
        let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let rounds = progress.rounds.iter();
        Self {
            phase: format!("{:?}", progress.phase).to_lowercase(),
            rounds: rounds
                .map(|round| Round { pages: round.pages, wire_bytes: round.wire_bytes, micros: micros(round.duration) })
                .collect(),
            pages_left: progress.pages_left,
            pages_settled: progress.pages_settled,
            pages_resent: progress.pages_resent,
            bytes_read: progress.pages_read.saturating_mul(4096),
            bytes_wire: progress.wire_bytes,
            saved: progress.saved(),
            plain_rate: progress.plain_rate,
            wire_rate: progress.wire_rate,
            downtime_us: progress.downtime.map(micros),
            root: progress.root.map(|root| root.to_string()),
            framing: progress.framing.to_string(),
            handed: progress
                .handover_log
                .iter()
                .map(|handed| Handed {
                    to: handed.to.to_string(),
                    restart: handed.restart,
                    last_extent_us: micros(handed.last_extent),
                    settled_us: micros(handed.settled),
                })
                .collect(),
            pages_disputed: progress.pages_disputed,
        }
    }
}

/// Says one line to the command that started this process. When it is gone there is nobody to tell.
pub(super) fn report(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

/// The first line of the standard input: what to start with, and where all of this run lives.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opening<T> {
    pub(super) folder: PathBuf,
    pub(super) start: T,
}

/// What to start with, and the orders that follow. When the input ends, this process ends: a guest
/// that nobody watches must not outlive the demo. The command may have been killed, so whoever is
/// left removes the folder.
pub(super) fn orders<T: DeserializeOwned>() -> anyhow::Result<(T, mpsc::Receiver<Order>)> {
    let mut first = String::new();
    std::io::stdin().lock().read_line(&mut first)?;
    let opening = serde_json::from_str(&first).context("`dwcp demo` starts this process; it is not for people")?;
    let Opening { folder, start } = opening;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("orders".into()).spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(order) = serde_json::from_str(&line) {
                let _ = tell.send(order);
            }
        }
        let _ = std::fs::remove_dir_all(folder);
        std::process::exit(0);
    })?;
    Ok((start, told))
}

/// Opens a file that another process of ours holds.
pub(super) fn open_shared(path: &Path) -> anyhow::Result<std::fs::File> {
    let opened = std::fs::File::options().read(true).write(true).open(path);
    opened.with_context(|| format!("cannot open the shared memory {}", path.display()))
}
