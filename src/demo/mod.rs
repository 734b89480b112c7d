//! `dwcp demo`: the main job in one command. Two nodes, a live guest, a client that is the witness.
//!
//! ```text
//!                        dwcp demo (starts all, shows, judges)
//!                          │ one pipe each way to every process
//!      ┌──────────┬────────┴───────────────────────┬───────────┐
//!    guest ═══ node A ════ TLS 1.3, loopback ════ node B ═══ guest (empty until RUN)
//!      │  arena                                        arena   │
//!      └───────────────────── client ──────────────────────────┘
//!                writes, logs every acknowledgement, reads every key
//! ```
//!
//! Node and guest share memory and a control socket, nothing else: a node that is killed takes no
//! guest with it. Ownership never depends on this command; it only asks who has it.

mod arena;
mod child;
mod client;
mod clock;
mod control;
mod crash;
mod downgrade;
mod entry;
#[cfg(feature = "sim")]
mod fault;
mod guest;
mod live;
mod message;
mod node;
mod phases;
mod request;
mod run;
mod scene;
mod store;
mod verdict;

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use dwcp_core::flag::Reason;

use self::child::Part;
use self::crash::{Moment, Victim};
#[cfg(feature = "sim")]
use self::fault::Fault;
use crate::exit::{Exit, Failure};
use crate::report::Report;
use crate::units::{self, Bandwidth};

/// Moves a live key-value store between two nodes on this machine and checks every write.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dwcp demo
  dwcp demo --size 1g --lanes 2 --write-rate 50000
  dwcp demo --crash sink
  dwcp demo --crash source --at 30%
  dwcp demo --crash sink --at switch-over
  dwcp demo --downgrade-at 40%
  dwcp demo --downgrade-at 40% --reason integrity
  dwcp demo --json | tail -n 1

--crash kills a node with -9 and starts it again; the migration finishes by itself, from the first page or, after the \
switch-over began, by one question. Before a crash in the first round the link is limited to half of --size a second, \
or the guest would have moved before.

--downgrade-at switches version 3 off for both nodes while pages flow (the flag document of `dwcp flag`), waits until \
the transfer goes on as version 1, and switches it on again: the same connections carry both, and the guest runs on. \
With the reason integrity or security the destination throws away what version 3 applied and begins from zeros. Until \
then the link is limited, as above.

Exit codes:
  0  the guest runs at the destination, and every acknowledged write is there
  1  an acknowledged write is lost, or the guest did not move: see the last line
  2  the command line is wrong
  3  the guest is written to faster than it can be moved; it runs at the source
  7  interrupted; nothing of the run is left
  8  in doubt: a node died between giving up and being told that the guest runs
  9  not exercised: no page was sent again, or fewer than 3 rounds without
     --crash, or --crash or --downgrade-at came too late")]
pub(crate) struct DemoArgs {
    /// TLS connections that carry pages
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    lanes: u16,
    /// Memory of the guest, at least 1m
    #[arg(long, default_value = "256m", value_parser = size)]
    size: u64,
    /// Writes per second of the client
    #[arg(long, default_value_t = 20_000)]
    write_rate: u64,
    /// How long the guest may stand still
    #[arg(long, default_value = "300ms", value_parser = units::duration)]
    downtime: Duration,
    /// Limit of all connections together, such as 1gbit or 50MB a second
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Bandwidth>,
    /// Kill this node on the way, start it again, and let the migration finish by itself
    #[arg(long, value_enum, value_name = "NODE")]
    crash: Option<Victim>,
    /// When --crash comes: so much of the guest has been sent once, 0% to 100%; or switch-over, when it
    /// is given up and not yet running again
    #[arg(long, default_value = "60%", value_name = "WHEN", requires = "crash", allow_hyphen_values = true)]
    at: Moment,
    /// When so much of the guest has been sent once, go back to version 1, and later forward again
    #[arg(long, value_name = "WHEN", conflicts_with = "crash", allow_hyphen_values = true)]
    downgrade_at: Option<units::Percent>,
    /// Why version 3 is switched off: integrity and security begin again from zeros
    #[arg(long, default_value = "performance", value_name = "REASON", requires = "downgrade_at")]
    #[arg(value_parser = reasons())]
    reason: Reason,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    json: bool,
    /// Plant a bug that the verdict must find. The roots do not show it, for both sides agree on
    /// every page that was sent; the client's log shows what was not
    #[cfg(feature = "sim")]
    #[arg(long = "break", value_enum)]
    fault: Option<Fault>,
}

/// A process of the demo. Started by `dwcp demo`, which tells it the rest on its standard input.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    /// Which one
    #[arg(value_enum)]
    part: Part,
}

impl DemoArgs {
    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// Runs the demo. What could not be set up, or failed in a way that leaves nothing to judge, ends in
/// a summary too.
pub(crate) async fn run(args: &DemoArgs, report: &Report) -> Exit {
    match run::run(args, report).await {
        Ok(exit) => exit,
        Err(error) => {
            let failure = Failure::new(Exit::Failed, sentence(&error));
            verdict::unknown(report, &failure.advise("Nothing is left of this run: start it again."))
        }
    }
}

/// Runs one process of the demo until the command that started it is gone. That command has been
/// told of every failure, so nothing is printed here.
pub(crate) async fn part(args: &PartArgs) -> Exit {
    let done = match args.part {
        Part::Guest => guest::run(),
        Part::Source => node::source().await,
        Part::Sink => node::sink().await,
        Part::Client => client::run(),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(error) => {
            message::report(&message::Event::Failed { text: sentence(&error) });
            Exit::Failed
        }
    }
}

/// An error with its causes, each once: many errors of the core name their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A demo can show those that mean something; a word of one's own is for documents.
fn reasons() -> impl TypedValueParser<Value = Reason> {
    let words = ["integrity", "security", "performance", "operator"];
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Reason>())
}

/// Smallest guest: a table of a few thousand keys.
const MIN_BYTES: u64 = 1 << 20;

/// `256m`, `1g`: binary units, as memory is sold.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size of a guest; write a number and m or g, at least 1m, such as 256m");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|&bytes| bytes >= MIN_BYTES).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_reason_is_one_of_four() {
        let parse = |word: &str| Cli::try_parse_from(["dwcp", "demo", "--downgrade-at", "40%", "--reason", word]);
        for word in ["integrity", "security", "performance", "operator"] {
            let Command::Demo(args) = parse(word).unwrap().command else { panic!("no demo") };
            assert_eq!(args.reason.as_str(), word);
        }
        for bad in ["", "integrty", "Integrity", "disk-full"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("[possible values: integrity, security, performance, operator]"), "{error}");
        }
    }

    #[test]
    fn a_size_has_a_unit() {
        assert_eq!(size("256m"), Ok(256 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        for bad in ["", "m", "0m", "256", "-1g", "99999999999g", "ä"] {
            assert!(size(bad).unwrap_err().contains("256m"), "{bad}");
        }
    }
}
