//! The command line: its words, their meaning, and nothing else.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dwcp_core::net::Fingerprint;
use dwcp_core::session::EffortPolicy;
use dwcp_core::wire::{Name, TransferId};
use dwcp_hde::Effort;

use crate::baseline::{BaselineArgs, KeepBaseline, UseOfBaseline};
use crate::demo::{DemoArgs, PartArgs};
use crate::dictionary::{DictionaryArgs, UseOfDictionaries};
use crate::dual::FlagOptions;
use crate::estimate::EstimateArgs;
use crate::exit::{self, Exit};
use crate::flag::FlagArgs;
use crate::legacy::{ReceiveV1Args, SendV1Args};
use crate::units::{self, Bandwidth, Percent};

/// Moves live, changing state between hosts: guests, memory and disk images.
#[derive(Debug, Parser)]
#[command(name = "dwcp", version, after_help = TOP_EXAMPLES.to_owned() + exit::TABLE, max_term_width = 110)]
pub(crate) struct Cli {
    /// Say more on stderr; twice for still more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const TOP_EXAMPLES: &str = "\
Examples:
  dwcp demo
  dwcp identity new --out a.id
  dwcp receive --listen 0.0.0.0:7070 --identity b.id \\
      --trust sha256:<of a.id> --dir /var/lib/vm
  dwcp send --to host:7070 --identity a.id --trust sha256:<of b.id> \\
      --as vm1 vm1.mem

";

/// Trust is looked at before a transfer begins, so `receive` never ends for the lack of it.
const OF_RECEIVE: [Exit; 8] = [
    Exit::Ok,
    Exit::Failed,
    Exit::Usage,
    Exit::NotConverged,
    Exit::Integrity,
    Exit::Unreachable,
    Exit::Interrupted,
    Exit::InDoubt,
];
const OF_SEND: [Exit; 9] = [
    Exit::Ok,
    Exit::Failed,
    Exit::Usage,
    Exit::NotConverged,
    Exit::Integrity,
    Exit::Unauthorised,
    Exit::Unreachable,
    Exit::Interrupted,
    Exit::InDoubt,
];
/// Of commands that look at a node's own state, or change it.
const OF_TRANSFERS: [Exit; 3] = [Exit::Ok, Exit::Failed, Exit::Usage];
const OF_RESOLVE: [Exit; 7] =
    [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Integrity, Exit::Unauthorised, Exit::Unreachable, Exit::InDoubt];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make or show a node's key and certificate
    Identity(IdentityArgs),
    /// Wait for images and store them
    Receive(ReceiveArgs),
    /// Send an image, or successive snapshots of one guest
    Send(SendArgs),
    /// Tell what sending it would cost: bytes, time, downtime, by method; nothing is sent
    Estimate(EstimateArgs),
    /// List or end transfers in doubt
    Resolve(ResolveArgs),
    /// List peers of which nothing is taken for a time, or let them in again
    Quarantine(QuarantineArgs),
    /// Tell of each transfer on this node, go on with one, or give one up
    Transfers(TransfersArgs),
    /// Tell which nodes speak version 3, and why, or change that while they run
    Flag(FlagArgs),
    /// Keep earlier states of guests, of which a transfer need send only what has changed
    Baseline(BaselineArgs),
    /// Keep what pages have in common, to which extents of few pages can refer
    Dictionary(DictionaryArgs),
    /// Move a live guest between two nodes on this machine and check every write
    Demo(DemoArgs),
    /// A process of the demo
    #[command(hide = true)]
    DemoPart(PartArgs),
}

impl Command {
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::DemoPart(_) => false,
            Self::Identity(args) => args.json,
            Self::Demo(args) => args.json(),
            Self::Receive(args) => args.json,
            Self::Send(args) => args.json,
            Self::Estimate(args) => args.json,
            Self::Resolve(args) => args.json,
            Self::Quarantine(args) => args.json,
            Self::Flag(args) => args.command.json(),
            Self::Baseline(args) => args.json,
            Self::Dictionary(args) => args.json,
            Self::Transfers(args) => args.command.json(),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&[Exit::Ok, Exit::Failed, Exit::Usage], "\
Examples:
  # make one, print its fingerprint for the peer's --trust
  dwcp identity new --out a.id
  # the same key and fingerprint, a new certificate
  dwcp identity new --renew a.id --out a2.id
  # print the fingerprint again
  dwcp identity show a.id"))]
pub(crate) struct IdentityArgs {
    #[command(subcommand)]
    pub(crate) command: IdentityCommand,
    /// Print JSON lines; the last one is the summary
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Make a key and a certificate, readable by you alone, and print the fingerprint
    #[command(after_help = "\
Examples:
  dwcp identity new --out a.id
  dwcp identity new --renew a.id --out a2.id && mv a2.id a.id

Renewing writes the key of the old file and a new certificate to --out; the old file stays as it is. Move the new one \
to its place, then start `dwcp receive` again. Peers that trust the fingerprint (--trust) notice nothing.

Certificates made here sign themselves: for peers that trust an authority (--trust-ca) replace the certificate in the \
file by one from there.")]
    New {
        /// Where to; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Renew this identity: its key and fingerprint with a new certificate, written to --out
        #[arg(long, value_name = "OLD_FILE")]
        renew: Option<PathBuf>,
        /// Name in the certificate; matters only to peers that trust a certificate authority
        #[arg(long, default_value = "dwcp")]
        subject: String,
    },
    /// Print the fingerprint
    #[command(after_help = "Examples:\n  dwcp identity show a.id")]
    Show {
        /// The identity
        file: PathBuf,
    },
}

/// Who we are and whom we talk to.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("peers").args(["trust", "trust_ca"])))]
pub(crate) struct Credentials {
    /// Our key and certificate, made by `dwcp identity new`
    #[arg(long, value_name = "FILE", required_unless_present = "v1")]
    pub(crate) identity: Option<PathBuf>,
    /// Fingerprint of a peer that we talk to; may be repeated
    #[arg(long, value_name = "FINGERPRINT", required_unless_present_any = ["trust_ca", "v1"])]
    pub(crate) trust: Vec<Fingerprint>,
    /// Talk to peers whose certificate was signed by an authority in this PEM file
    #[arg(long, value_name = "FILE")]
    pub(crate) trust_ca: Option<PathBuf>,
}

impl Credentials {
    /// The file of our key; version 1 alone has none.
    pub(crate) fn identity(&self) -> &Path {
        self.identity.as_deref().unwrap_or(Path::new(""))
    }
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&OF_RECEIVE, "\
Examples:
  dwcp receive --listen 0.0.0.0:7070 --identity b.id \\
      --trust sha256:<of the sender> --dir /var/lib/vm
  dwcp receive --listen 127.0.0.1:0 --identity b.id \\
      --trust sha256:<of the sender> --dir . --once --json
  dwcp receive ... --v1 amst16 --allow-plaintext-v1 10.0.0.7 \\
      --v1-as vm1 --v1-size 4GiB
  dwcp receive ... --v1 amst16 ... --v1-as vm1-new \\
      --v1-baseline vm1.mem --v1-baseline-of vm1

An image becomes visible under its name only after both ends agreed on its digest. What the receiver has promised is \
kept in DIR/.dwcp; after a crash start it again, and senders in doubt are answered.

Ctrl-C and SIGTERM are a good end: nothing new is taken, what has come whole is handed over if that can be done \
within --grace, the rest is parked (over version 1: thrown away) and goes on with the next `dwcp receive`; its sender \
waits for that. A second \
signal leaves at once. Without --once a transfer that failed is no failure of the receiver; one in doubt is.

With --v1 the same port takes version 1 in clear text as well, from the addresses that are named: what comes so is as \
good as its line says (\"length unverified\", \"unverified\"), is stored under --v1-as, and nobody proved who sent \
it. With --once it is the one transfer from its first header on, even if that is a bad one: its peer would not hear of \
it. What speaks neither version, says nothing or is refused is none."))]
pub(crate) struct ReceiveArgs {
    /// Address and port to listen on; port 0 lets the system choose
    #[arg(long, value_name = "ADDR:PORT", value_parser = units::listen_address)]
    pub(crate) listen: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// Where images are stored, under the name that the sender gives with --as
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Overwrite an image of the same name
    #[arg(long)]
    pub(crate) replace: bool,
    /// Take disk space only as pages come. By default all that an image needs is taken when it is
    /// offered, so that a disk that is too small is told at once
    #[arg(long)]
    pub(crate) sparse: bool,
    /// When stopped: how long what has come whole may take to be handed over, and to be kept as a baseline
    #[arg(long, default_value = "30s", value_parser = units::duration)]
    pub(crate) grace: Duration,
    /// End after one transfer, with its exit code. Whichever comes first, over either version; others are refused
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) baseline: UseOfBaseline,
    #[command(flatten)]
    pub(crate) keep: KeepBaseline,
    #[command(flatten)]
    pub(crate) dictionaries: UseOfDictionaries,
    #[command(flatten)]
    pub(crate) flag: FlagOptions,
    /// Connections that one transfer may use besides the control connection, 1 to 64
    #[arg(long, default_value = "16", value_parser = units::lanes)]
    pub(crate) lanes: NonZeroU16,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten, next_help_heading = "Version 1")]
    pub(crate) legacy: ReceiveV1Args,
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&OF_SEND, "\
Examples:
  dwcp send --to host:7070 --identity a.id \\
      --trust sha256:<of the receiver> --as vm1 vm1.mem
  dwcp send --to host:7070 --identity a.id \\
      --trust sha256:<of the receiver> --as vm1 \\
      --round t0.mem --round t1.mem --round t2.mem
  dwcp send ... --bandwidth 100mbit --json --as disk disk.img
  dwcp send --v1 amst16 --allow-plaintext-v1 10.0.0.7 --to 10.0.0.7:9876 \\
      --as vm1 vm1.mem

Ctrl-C cancels and leaves everything here as it was; a second one leaves at once. What is durable at the receiver by then \
is kept there for a day and does not travel again. Nobody may write to the files until the \
receiver has them. That is noticed by their times, and nothing is switched over; only stores through a shared mapping \
(the memory file of a VM that runs) may go unnoticed.

With --v1 a peer that was never updated gets the image in clear text, compressed at its fastest. It acknowledges \
nothing: exit code 0 means sent, not arrived. Neither identity nor trust is used then, and nothing is gone on with."))]
#[command(group(clap::ArgGroup::new("image").required(true).args(["file", "rounds"])))]
pub(crate) struct SendArgs {
    /// Host and port of `dwcp receive`
    #[arg(long, value_name = "HOST:PORT", value_parser = units::host_port)]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// Name at the receiver: 1 to 64 of a-z 0-9 . _ -
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: Name,
    /// The image; sparse files stay sparse
    pub(crate) file: Option<PathBuf>,
    /// A snapshot of the guest, oldest first; may be repeated, and only what differs travels. Begun again after it was cut
    /// off, the last one is sent alone
    #[arg(long = "round", value_name = "FILE")]
    pub(crate) rounds: Vec<PathBuf>,
    /// Connections besides the control connection, 1 to 64
    #[arg(long, default_value = "4", value_parser = units::lanes)]
    pub(crate) lanes: NonZeroU16,
    /// Limit of all connections together, such as 100mbit or 50MB a second
    #[arg(long, value_name = "RATE")]
    pub(crate) bandwidth: Option<Bandwidth>,
    /// How long the last round may take
    #[arg(long, default_value = "300ms", value_parser = units::duration)]
    pub(crate) downtime: Duration,
    /// Memory for what the receiver has already, as a share of the guest; used by --round
    #[arg(long, default_value = "25%")]
    pub(crate) shadow: Percent,
    /// How hard to compress
    #[arg(long, value_enum, default_value_t)]
    pub(crate) effort: EffortArg,
    /// Where this node remembers its transfers, so that each can be gone on with, asked about or listed, and what it has
    /// read of images [default: $XDG_STATE_HOME/dwcp or ~/.local/state/dwcp]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// How long a lost connection may stay lost
    #[arg(long, default_value = "30s", value_parser = units::duration)]
    pub(crate) reconnect_limit: Duration,
    #[command(flatten)]
    pub(crate) baseline: UseOfBaseline,
    #[command(flatten)]
    pub(crate) keep: KeepBaseline,
    #[command(flatten)]
    pub(crate) dictionaries: UseOfDictionaries,
    #[command(flatten)]
    pub(crate) flag: FlagOptions,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten, next_help_heading = "Version 1")]
    pub(crate) legacy: SendV1Args,
}

impl SendArgs {
    /// The image as it was when it was handed over.
    pub(crate) fn last_image(&self) -> PathBuf {
        self.file.as_ref().or(self.rounds.last()).cloned().unwrap_or_default()
    }
}

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum EffortArg {
    /// As hard as the link is slow
    #[default]
    Auto,
    /// Not at all
    Raw,
    /// LZ4
    Fast,
    /// zstd at its fastest
    Light,
    /// zstd
    Balanced,
}

impl EffortArg {
    /// What a source is told.
    pub(crate) fn policy(self) -> EffortPolicy {
        match self {
            Self::Auto => EffortPolicy::Auto,
            Self::Raw => EffortPolicy::Fixed(Effort::Raw),
            Self::Fast => EffortPolicy::Fixed(Effort::Fast),
            Self::Light => EffortPolicy::Fixed(Effort::Light),
            Self::Balanced => EffortPolicy::Fixed(Effort::Balanced),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&OF_RESOLVE, "\
Examples:
  # list what this sender does not know
  dwcp resolve
  # list what this receiver waits for
  dwcp resolve --dir /var/lib/vm
  # ask the receiver again
  dwcp resolve TRANSFER --to host:7070 --identity a.id \\
      --trust sha256:<of the receiver>
  # at the source: by the operator's word
  dwcp resolve TRANSFER --owner sink --fenced
  # at the receiver: the staged image becomes visible
  dwcp resolve TRANSFER --dir DIR --owner sink --fenced

A transfer is in doubt when the source gave its guest up and was not told that the receiver has it. Asking again is \
always safe. --owner is not: only you can know that the other side will never run it too. Say so with --fenced, and \
give both sides the same owner. Each such word is kept in resolved.jsonl beside the records."))]
pub(crate) struct ResolveArgs {
    /// The transfer to end; without it all are listed
    pub(crate) transfer: Option<TransferId>,
    /// Ask this receiver whether it has the guest
    #[arg(long, value_name = "HOST:PORT", value_parser = units::host_port)]
    #[arg(requires = "transfer", requires = "identity", conflicts_with_all = ["owner", "dir"])]
    pub(crate) to: Option<String>,
    /// Our key and certificate
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) identity: Option<PathBuf>,
    /// Fingerprint of the receiver
    #[arg(long, value_name = "FINGERPRINT", requires = "to", conflicts_with = "trust_ca")]
    pub(crate) trust: Vec<Fingerprint>,
    /// PEM file of certificate authorities
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) trust_ca: Option<PathBuf>,
    /// End it by your word: who has the guest from now on
    #[arg(long, value_enum, requires = "transfer", requires = "fenced")]
    pub(crate) owner: Option<OwnerArg>,
    /// You made sure that the other side will never run it
    #[arg(long, requires = "owner")]
    pub(crate) fenced: bool,
    /// Look at a receiver's directory instead of a sender's state
    #[arg(long, conflicts_with = "state_dir")]
    pub(crate) dir: Option<PathBuf>,
    /// Overwrite an image of the same name
    #[arg(long, requires = "dir")]
    pub(crate) replace: bool,
    /// Where a sender remembers transfers in doubt [default: as `dwcp send`]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&OF_SEND, "\
Examples:
  # what this sender is sending, was cut off in, or does not know
  dwcp transfers list
  # what this receiver has of images, and what was handed over lately
  dwcp transfers list --dir /var/lib/vm
  # all that is known of one
  dwcp transfers show TRANSFER
  # send it again, or ask its receiver again
  dwcp transfers resume TRANSFER
  # at the receiver: remove what has arrived of one that was cut off
  dwcp transfers abort TRANSFER --dir /var/lib/vm

Without --dir it is about a sender: what `dwcp send` remembers in --state-dir. With --dir it is about the receiver of \
that directory. Nothing here decides a doubt: that is `dwcp resolve`.

Version 1 in clear text (--v1) leaves no record, so its transfers are never here: they cannot be gone on with, asked \
about or taken back. Version 1 inside TLS (by the runtime flag) is here like any other."))]
pub(crate) struct TransfersArgs {
    #[command(subcommand)]
    pub(crate) command: TransfersCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TransfersCommand {
    /// Tell of all transfers that this node knows
    #[command(after_help = exit::help(&OF_TRANSFERS, "\
Examples:
  dwcp transfers list
  dwcp transfers list --dir /var/lib/vm --json

At a sender: sending, handing-over (given up, RUN is on its way), cut-off (forgotten by the first `dwcp send` that is \
begun 30 days after it was begun last, unless the receiver may have all of it), in-doubt (never forgotten).

At a receiver: receiving, parked (cut off; kept for 24 h after its last page), handing-over, in-doubt (all is here, \
and its sender must say that it may be used), visible (it may be used; killed before its sender could hear so), \
handed-over (remembered for 7 days).

A transfer whose sender was lost counts as receiving for a minute yet; the line tells for how long nothing came."))]
    List(NodeArgs),
    /// Tell all that is known of one transfer, and what can be done next
    #[command(after_help = exit::help(&OF_TRANSFERS, "\
Examples:
  dwcp transfers show TRANSFER
  dwcp transfers show TRANSFER --dir /var/lib/vm --json"))]
    Show(OneArgs),
    /// Send again what was cut off, or ask again about what is in doubt; at the sender
    #[command(after_help = exit::help(&OF_SEND, "\
Examples:
  dwcp transfers resume TRANSFER

A transfer that was cut off is sent with the words of the `dwcp send` that began it, from the folder where that ran; \
pages that are durable at the receiver do not travel again. About one in doubt its receiver is asked, as by \
`dwcp resolve TRANSFER --to ...`. At a receiver nothing can be resumed."))]
    Resume(OneArgs),
    /// Give up for good a transfer that was cut off
    #[command(after_help = exit::help(&OF_TRANSFERS, "\
Examples:
  dwcp transfers abort TRANSFER
  dwcp transfers abort TRANSFER --dir /var/lib/vm

At a sender it is forgotten: the next `dwcp send` of the same is another transfer. The image is not touched. At a \
receiver what has arrived of it is removed. One that is under way is refused (stop it with Ctrl-C), and so is one in \
doubt (see `dwcp resolve`)."))]
    Abort(OneArgs),
}

impl TransfersCommand {
    fn json(&self) -> bool {
        match self {
            Self::List(node) => node.json,
            Self::Show(one) | Self::Resume(one) | Self::Abort(one) => one.node.json,
        }
    }
}

/// Which node, and how to tell of it.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Look at a receiver's directory instead of a sender's state
    #[arg(long, conflicts_with = "state_dir")]
    pub(crate) dir: Option<PathBuf>,
    /// Where a sender remembers its transfers [default: as `dwcp send`]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
}

/// One transfer of a node.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its id, as `dwcp transfers list` tells it
    pub(crate) transfer: TransferId,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// Who has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OwnerArg {
    /// The sender
    Source,
    /// The receiver
    Sink,
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(&[Exit::Ok, Exit::Failed, Exit::Usage], "\
Examples:
  dwcp quarantine list --dir /var/lib/vm
  dwcp quarantine clear sha256:<of the peer> --dir /var/lib/vm
  dwcp quarantine clear --all --dir /var/lib/vm

A trusted peer that breaks the protocol is refused for 30 s, and twice as long each time, up to an hour: at once for \
what no honest peer can do, the third time in ten minutes for what a broken memory can do. Look at that peer first: \
its memory, its version, who else has its key. A receiver that runs need not be stopped."))]
pub(crate) struct QuarantineArgs {
    #[command(subcommand)]
    pub(crate) command: QuarantineCommand,
    /// Print JSON lines; the last one is the summary
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// Who is refused, for what, and for how long yet
    #[command(after_help = exit::help(&OF_TRANSFERS, "\
Examples:
  dwcp quarantine list --dir /var/lib/vm"))]
    List {
        /// The directory of `dwcp receive`
        #[arg(long)]
        dir: PathBuf,
    },
    /// Let a peer in again
    #[command(after_help = exit::help(&OF_TRANSFERS, "\
Examples:
  dwcp quarantine clear sha256:<of the peer> --dir /var/lib/vm
  dwcp quarantine clear --all --dir /var/lib/vm"))]
    #[command(group(clap::ArgGroup::new("whom").required(true).args(["peer", "all"])))]
    Clear {
        /// Whom; or --all
        #[arg(value_name = "FINGERPRINT")]
        peer: Option<Fingerprint>,
        /// Everybody
        #[arg(long)]
        all: bool,
        /// The directory of `dwcp receive`
        #[arg(long)]
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Of a terminal that nobody has made wider.
    const COLUMNS: usize = 80;

    /// What stands below the options, of a command and of all below it, with the words that lead there.
    fn epilogues(command: &clap::Command, above: &str) -> Vec<(String, String)> {
        let words = format!("{above}{}", command.get_name());
        let own = command.get_after_help().into_iter().chain(command.get_after_long_help());
        let own = own.map(|text| (words.clone(), text.to_string()));
        let below = command.get_subcommands().flat_map(|one| epilogues(one, &format!("{words} ")));
        own.chain(below).collect()
    }

    /// What is wrong with a line, which another one follows. clap wraps lines where the terminal ends, and knows
    /// neither commands nor paragraphs.
    fn fault(line: &str, next: &str) -> Option<&'static str> {
        let indented = |line: &str| line.starts_with(' ');
        match indented(line) {
            true if line.chars().count() > COLUMNS => Some("longer than 80 columns"),
            true if line.ends_with('\\') && !indented(next) => Some("nothing follows its backslash"),
            false if !line.is_empty() && !next.is_empty() && !indented(next) => {
                Some("a paragraph is one line here, and is wrapped by the terminal's width")
            }
            _ => None,
        }
    }

    #[test]
    fn epilogues_fit_any_terminal() {
        let all = epilogues(&Cli::command(), "");
        let mut faults = Vec::new();
        for (words, text) in &all {
            let next = text.lines().skip(1).chain([""]);
            let found = text.lines().zip(next).filter_map(|(line, next)| Some((line, fault(line, next)?)));
            faults.extend(found.map(|(line, fault)| format!("{words}: {fault}:\n{line}")));
        }
        assert!(all.len() >= 30, "only {} epilogues were found", all.len());
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn what_a_terminal_would_break_is_a_fault() {
        let long = format!("  dwcp {}", "x".repeat(COLUMNS - 7));
        assert_eq!((fault(&long, ""), fault(&format!("{long} "), "").is_some()), (None, true));
        assert!(fault("  dwcp send \\", "").is_some() && fault("  dwcp send \\", "      vm1.mem").is_none());
        assert!(fault("Nothing is", "sent.").is_some());
        assert!(fault(&"Nothing is sent. ".repeat(20), "").is_none() && fault("Exit codes:", "  0  ok").is_none());
    }
}
