//! Starts the two processes of a measurement, repeats it, takes medians.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::options::{Case, Options, Peer, Role};
use crate::{dwcp_ends, rustls_ends, usage};

/// What one end reports.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub bytes: u64,
    pub seconds: f64,
    pub cpu: f64,
    pub peak: u64,
    pub wire: u64,
}

impl Figures {
    pub fn since(cpu: f64, bytes: u64, seconds: f64, wire: u64) -> Self {
        Self { bytes, seconds, cpu: usage::cpu_seconds() - cpu, peak: usage::peak_memory(), wire }
    }

    fn line(self) -> String {
        json!({"bytes": self.bytes, "seconds": self.seconds, "cpu": self.cpu, "peak": self.peak, "wire": self.wire})
            .to_string()
    }

    fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("a child said {line:?}"));
        let whole = |name: &str| value[name].as_u64().expect("a number");
        let real = |name: &str| value[name].as_f64().expect("a number");
        let (seconds, cpu) = (real("seconds"), real("cpu"));
        Self { bytes: whole("bytes"), seconds, cpu, peak: whole("peak"), wire: whole("wire") }
    }
}

/// Where the two processes stand.
#[derive(Clone, Debug)]
pub enum Place {
    Loopback,
    /// Two network namespaces, and the sink's address in its own.
    Namespaces {
        source: String,
        sink: String,
        address: String,
    },
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    case: String,
    lanes: u16,
    dwcp: Sample,
    rustls: Sample,
    hash: Sample,
}

/// Medians of several measurements.
#[derive(Clone, Copy, Debug)]
struct Sample {
    mb_s: f64,
    cpu_s_per_gb: f64,
    /// Of it, at the end that takes more.
    cpu_of_one_end: f64,
    /// Not where the pages come from files that the benchmark itself unpacks.
    extra_mb: Option<f64>,
    wire_share: f64,
}

/// Measures DWCP and its peers, in turn.
pub fn row(name: &str, case: &Case, lanes: u16, options: &Options, place: &Place) -> Row {
    let peers = [Peer::Rustls, Peer::RustlsHash, Peer::Dwcp];
    let mut runs: [Vec<(Figures, Figures)>; 3] = Default::default();
    for repetition in 0..options.reps {
        for (peer, runs) in peers.into_iter().zip(&mut runs) {
            let run = once(peer, case, lanes, options, place);
            eprintln!("{name}, {lanes} lanes, run {}: {} {:.0} MB/s", repetition + 1, peer.word(), mb_s(run.0));
            runs.push(run);
        }
    }
    let [rustls, hash, dwcp] = runs.map(|runs| Sample::of(&runs, matches!(case, Case::Random { .. })));
    Row { case: name.to_owned(), lanes, dwcp, rustls, hash }
}

/// DWCP alone, with these efforts in turn: MB of guest a second of each, the medians.
pub fn rates(case: &Case, lanes: u16, efforts: &[&str], options: &Options, place: &Place) -> Vec<f64> {
    let mut rates = vec![Vec::new(); efforts.len()];
    for _ in 0..options.reps {
        for (effort, rates) in efforts.iter().zip(&mut rates) {
            let options = Options { effort: (*effort).to_owned(), ..options.clone() };
            rates.push(mb_s(once(Peer::Dwcp, case, lanes, &options, place).0));
        }
    }
    rates.into_iter().map(median).collect()
}

fn mb_s(source: Figures) -> f64 {
    source.bytes as f64 / 1e6 / source.seconds
}

impl Sample {
    fn of(runs: &[(Figures, Figures)], counted: bool) -> Self {
        let over = |figure: fn(&(Figures, Figures)) -> f64| median(runs.iter().map(figure).collect());
        Self {
            mb_s: over(|run| mb_s(run.0)),
            cpu_s_per_gb: over(|run| (run.0.cpu + run.1.cpu) / (run.0.bytes as f64 / 1e9)),
            cpu_of_one_end: over(|run| run.0.cpu.max(run.1.cpu) / (run.0.bytes as f64 / 1e9)),
            extra_mb: counted.then(|| over(|run| extra_mb(run.0).max(extra_mb(run.1)))),
            wire_share: over(|run| run.0.wire as f64 / run.0.bytes as f64),
        }
    }
}

/// Memory of the larger end besides the guest and 32 bytes a page.
fn extra_mb(end: Figures) -> f64 {
    (end.peak as f64 - end.bytes as f64 - (end.bytes / 4096 * 32) as f64) / (1 << 20) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn once(peer: Peer, case: &Case, lanes: u16, options: &Options, place: &Place) -> (Figures, Figures) {
    let folder = tempfile::tempdir().expect("a folder");
    let identity = folder.path().join("bench.id");
    let made = dwcp_core::net::Identity::generate("bench").expect("an identity");
    std::fs::write(&identity, made.to_pem()).expect("an identity");
    let identity = identity.to_str().expect("a path");
    let (listen, source_ns, sink_ns) = match place {
        Place::Loopback => ("127.0.0.1:0".to_owned(), None, None),
        Place::Namespaces { source, sink, address } => (format!("{address}:0"), Some(source), Some(sink)),
    };
    let spawn = |end: &str, address: &str, namespace: Option<&String>| {
        let own = std::env::current_exe().expect("own path");
        let mut command = match namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(own);
                command
            }
            None => Command::new(own),
        };
        let (lanes, pages) = (lanes.to_string(), options.extent_pages.to_string());
        command.args(["--child", end, peer.word(), &case.word(), &lanes, &pages, &options.effort, address, identity]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child")
    };
    let mut sink = Ends::new(spawn("sink", &listen, sink_ns));
    let address = sink.line();
    let mut source = Ends::new(spawn("source", &address, source_ns));
    source.line();
    source.child.stdin.take().expect("a pipe").write_all(b"go\n").expect("a pipe");
    let sent = Figures::parse(&source.line());
    let received = Figures::parse(&sink.line());
    (sent, received)
}

struct Ends {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Ends {
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

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a child process does.
pub fn child(role: &Role, _: &Options) {
    // The first use of the cipher library costs a process 60 ms: nobody's throughput.
    rustls_ends::shake_hands(role);
    let say = |text: String| println!("{text}");
    let wait = || {
        println!("ready");
        std::io::stdin().read_line(&mut String::new()).expect("a line");
    };
    let figures = match (role.peer, role.sends) {
        (Peer::Dwcp, true) => dwcp_ends::source(role, wait),
        (Peer::Dwcp, false) => dwcp_ends::sink(role, say),
        (_, true) => rustls_ends::source(role, wait),
        (_, false) => rustls_ends::sink(role, say),
    };
    println!("{}", figures.line());
}

pub fn table(rows: &[Row]) {
    println!(
        "{:<22} {:>5} {:>10} {:>11} {:>12} {:>7} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "case",
        "lanes",
        "dwcp MB/s",
        "rustls MB/s",
        "r+hash MB/s",
        "ratio",
        "ratio+h",
        "CPU s/GB",
        "one end",
        "extra MB",
        "wire"
    );
    for row in rows {
        println!(
            "{:<22} {:>5} {:>10.0} {:>11.0} {:>12.0} {:>7.2} {:>9.2} {:>9.2} {:>9.2} {:>9} {:>6.1}%",
            row.case,
            row.lanes,
            row.dwcp.mb_s,
            row.rustls.mb_s,
            row.hash.mb_s,
            row.dwcp.mb_s / row.rustls.mb_s,
            row.dwcp.mb_s / row.hash.mb_s,
            row.dwcp.cpu_s_per_gb,
            row.dwcp.cpu_of_one_end,
            row.dwcp.extra_mb.map_or_else(|| "-".to_owned(), |extra| format!("{extra:.1}")),
            row.dwcp.wire_share * 100.0,
        );
    }
    if let Some(row) = rows.first() {
        let (bare, hash) = (row.rustls.cpu_s_per_gb, row.hash.cpu_s_per_gb);
        println!("CPU s/GB of the peers at {} lanes: rustls {bare:.2}, rustls+hash {hash:.2}", row.lanes);
    }
}

pub fn json(rows: &[Row]) -> Value {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "case": row.case,
                "lanes": row.lanes,
                "mb_s": round(row.dwcp.mb_s),
                "rustls_mb_s": round(row.rustls.mb_s),
                "rustls_hash_mb_s": round(row.hash.mb_s),
                "ratio": round(row.dwcp.mb_s / row.rustls.mb_s),
                "ratio_hash": round(row.dwcp.mb_s / row.hash.mb_s),
                "cpu_s_per_gb": round(row.dwcp.cpu_s_per_gb),
                "cpu_s_per_gb_one_end": round(row.dwcp.cpu_of_one_end),
                "rss_extra_mb": row.dwcp.extra_mb.map(round),
                "wire_share": round(row.dwcp.wire_share),
            })
        })
        .collect();
    json!({"schema": 1, "event": "summary", "rows": rows})
}
