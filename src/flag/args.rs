use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use dwcp_core::flag::{Flag, FlagVersion, NodeName, Percentage, Reason, Word};

use crate::exit::{self, Exit, Failure};

const EXITS: [Exit; 3] = [Exit::Ok, Exit::Failed, Exit::Usage];

#[derive(Debug, Args)]
#[command(after_help = exit::help(&EXITS, "\
Examples:
  # what this node does, and why
  dwcp flag show --file flags.json
  # everybody back to v1, at once
  dwcp flag set --file flags.json dwcp_v3_hde --kill --reason integrity
  # a tenth of the nodes on v3
  dwcp flag set --file flags.json dwcp_v3_hde --enable --percentage 10

Nodes that watch the file see a change within 25 ms or so; nothing is started again. Where no file can be changed, set \
DWCP_FORCE_V1=1 for a node and start it again."))]
pub(crate) struct FlagArgs {
    #[command(subcommand)]
    pub(crate) command: FlagCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlagCommand {
    /// Tell what a node decides from a flag document, and why
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  # what this node does, and why
  dwcp flag show --file flags.json
  # what another node does
  dwcp flag show --file flags.json --node node-7 --json
  # what the receiver of this host makes of it, which remembers what it obeyed
  dwcp flag show --file flags.json --dir /var/lib/vm
  # and for how many of all nodes it is on
  dwcp flag show --file flags.json --roster nodes.txt

It ends with 0 whatever is decided, and with 1 if there is no good document: a node that was started since runs v1, \
one that has seen a good one keeps that for 5 minutes, then runs v1."))]
    Show(ShowArgs),
    /// Change a flag: the document is replaced as a whole, with the next version
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp flag set --file flags.json dwcp_v3_hde --create --enable --percentage 10
  dwcp flag set --file flags.json dwcp_v3_hde --percentage 10 \\
      --exact --roster nodes.txt
  dwcp flag set --file flags.json dwcp_v3_hde --exclude node-7 --exclude node-9
  dwcp flag set --file flags.json dwcp_v3_hde --disable --reason performance
  dwcp flag set --file flags.json dwcp_v3_hde --kill --reason integrity
  dwcp flag set --file flags.json dwcp_v3_hde --revive --percentage 1
  dwcp flag set --file flags.json dwcp_v3_compression --disable

Off by --disable, --kill or 0 %: transfers that run go on over v1 and keep what has arrived, unless the reason is \
`integrity` or `security`; then they begin from zero. What is killed stays off until --revive.

With a roster it is told which of its nodes come and go; --dry-run tells it and changes nothing."))]
    Set(Box<SetArgs>),
}

impl FlagCommand {
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Show(args) => args.json,
            Self::Set(args) => args.json,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The flag document
    #[arg(long)]
    pub(crate) file: PathBuf,
    /// For this node, as documents and rosters name it [default: the name of this host]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    /// All nodes, one name a line: tell for how many of them it is on
    #[arg(long, value_name = "FILE")]
    pub(crate) roster: Option<PathBuf>,
    /// The --dir of a receiver on this host: tell whether it refuses the document as older than what it obeyed before
    #[arg(long, conflicts_with = "state_dir")]
    pub(crate) dir: Option<PathBuf>,
    /// The --state-dir of a sender on this host: likewise
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(
    ["percentage", "enable", "disable", "kill", "revive", "reason", "include", "exclude", "unlist", "salt", "exact"]
)))]
pub(crate) struct SetArgs {
    /// The flag document
    #[arg(long)]
    pub(crate) file: PathBuf,
    /// Which flag
    #[arg(value_enum)]
    pub(crate) flag: FlagName,
    /// For this share of the nodes, 0 to 100 with up to three decimals
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub(crate) percentage: Option<Percentage>,
    /// Let percentage and lists count
    #[arg(long, conflicts_with_all = ["disable", "kill"])]
    pub(crate) enable: bool,
    /// Off for all nodes
    #[arg(long)]
    pub(crate) disable: bool,
    /// Off for all nodes, and --enable alone does not turn it on again
    #[arg(long, requires = "reason", conflicts_with = "revive")]
    pub(crate) kill: bool,
    /// Take a --kill back
    #[arg(long)]
    pub(crate) revive: bool,
    /// Why: integrity, security, performance, operator, or a word of your own (a-z 0-9 . _ -)
    #[arg(long)]
    pub(crate) reason: Option<Reason>,
    /// On for this node, whatever its bucket; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) include: Vec<NodeName>,
    /// Off for this node; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) exclude: Vec<NodeName>,
    /// Take this node off both lists; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) unlist: Vec<NodeName>,
    /// Another order of nodes: other ones are chosen
    #[arg(long, value_name = "WORD")]
    pub(crate) salt: Option<Word>,
    /// Choose the threshold so that the share of the roster is exact: 10 % of 10 nodes is one node
    #[arg(long, requires = "roster")]
    pub(crate) exact: bool,
    /// All nodes, one name a line
    #[arg(long, value_name = "FILE")]
    pub(crate) roster: Option<PathBuf>,
    /// The --dir of a receiver on this host that obeys the document: what is written is above what it obeyed
    #[arg(long, conflicts_with = "state_dir")]
    pub(crate) dir: Option<PathBuf>,
    /// The --state-dir of a sender on this host: likewise
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Who changes it [default: your user name]
    #[arg(long, value_name = "WHO")]
    pub(crate) by: Option<Word>,
    /// Write a new document where there is none, or one that cannot be read
    #[arg(long)]
    pub(crate) create: bool,
    /// The version of a document made with --create; above all that nodes have seen [default: the milliseconds since 1970]
    #[arg(long, value_name = "NUMBER", requires = "create", value_parser = version)]
    pub(crate) at_version: Option<FlagVersion>,
    /// Tell what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
}

impl SetArgs {
    /// Each node is named once: of two words about it, one would be lost.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let mut named = BTreeSet::new();
        let twice = self.include.iter().chain(&self.exclude).chain(&self.unlist).find(|node| !named.insert(*node));
        twice.map_or(Ok(()), |node| {
            let what = format!("{node} is named more than once");
            Err(Failure::new(Exit::Usage, what).advise("Name each node once, with --include, --exclude or --unlist."))
        })
    }
}

fn version(text: &str) -> Result<FlagVersion, String> {
    let parsed = text.parse().ok().and_then(FlagVersion::new);
    parsed.ok_or_else(|| format!("a version is a number from 1 to {}", FlagVersion::LAST))
}

/// A flag by its name in documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlagName {
    /// Who speaks version 3
    #[value(name = "dwcp_v3_hde")]
    V3,
    /// Who compresses in version 3
    #[value(name = "dwcp_v3_compression")]
    Compression,
}

impl From<FlagName> for Flag {
    fn from(name: FlagName) -> Self {
        match name {
            FlagName::V3 => Self::V3,
            FlagName::Compression => Self::Compression,
        }
    }
}
