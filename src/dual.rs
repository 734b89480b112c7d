//! Both versions in one node: what `dwcp send` and `dwcp receive` do with the runtime flag.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dwcp_core::flag::{FileOptions, NodeName, configured};
use dwcp_core::net::Endpoint;
use dwcp_core::session::Progress;
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::wire::Tier;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::flag::this_host;
use crate::report::Report;

/// Which version is spoken.
#[derive(Debug, Args)]
pub(crate) struct FlagOptions {
    /// Obey this flag document, also while transfers run: where it switches version 3 off for this node, transfers go
    /// on over version 1 within a second, and come back when it is switched on. See `dwcp flag --help`
    #[arg(long, value_name = "FILE")]
    pub(crate) flags: Option<PathBuf>,
    /// The name of this node in that document [default: the name of this host]
    #[arg(long, value_name = "NAME", requires = "flags")]
    pub(crate) node: Option<NodeName>,
}

/// An endpoint that speaks both versions, as the flag lets it.
pub(crate) fn dual(endpoint: Endpoint, options: &FlagOptions) -> Result<Endpoint, Failure> {
    let node = match (&options.node, &options.flags) {
        (Some(node), _) => node.clone(),
        (None, Some(_)) => this_host()?,
        // Without a document nothing is decided by name.
        (None, None) => this_host().or_else(|_| NodeName::new("node").map_err(|_| unnamed()))?,
    };
    // What was obeyed once is not taken back by a restart.
    let watched = FileOptions { remember: endpoint.records().folder(), ..FileOptions::default() };
    let flags = configured(options.flags.as_deref(), node, watched).map_err(|error| {
        let failure = Failure::new(Exit::Failed, format!("the flag document cannot be watched: {error}"));
        match error.kind() {
            ErrorKind::InvalidData => {
                failure.advise("That file is beside the records: `.dwcp` in --dir, or --state-dir.")
            }
            _ => failure
                .advise("It needs three threads: look at the limits of this process, and at the disk of the records."),
        }
    })?;
    let now = flags.snapshot();
    tracing::info!(flags = %now, "which version is spoken");
    Ok(endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local })).with_flags(flags))
}

fn unnamed() -> Failure {
    Failure::new(Exit::Failed, "this node has no name").advise("Name it with --node.")
}

/// A line of `--json`, and one for people, for each hand-over.
#[derive(Debug, Default)]
pub(crate) struct Handovers {
    told: u64,
}

#[derive(Serialize)]
struct HandedOver<'a> {
    transfer: &'a str,
    to: String,
    epoch: u64,
    /// From zeros, because of the reason in the flag document.
    restart: Option<bool>,
    /// Since the flag was seen; only a source measures it.
    settled_ms: Option<u128>,
    last_extent_ms: Option<u128>,
    pages_disputed: u64,
}

impl Handovers {
    /// Tells of those that are new.
    pub(crate) fn tell(&mut self, report: &Report, transfer: &str, progress: &Progress) {
        while self.told < progress.handovers {
            let after = usize::try_from(progress.handovers - self.told).unwrap_or(usize::MAX);
            let kept = &progress.handover_log;
            let stats = kept.len().checked_sub(after).and_then(|index| kept.get(index));
            self.told += 1;
            let to = stats.map_or(progress.framing, |stats| stats.to).to_string();
            let within = stats.map_or(String::new(), |stats| format!(" within {} ms", stats.settled.as_millis()));
            let zeros = if stats.is_some_and(|stats| stats.restart) { ", from zeros" } else { "" };
            report.say(&format!("transfer {transfer} goes on as {to}{zeros}{within} (the runtime flag)"));
            let fields = HandedOver {
                transfer,
                to,
                epoch: progress.epoch.0,
                restart: stats.map(|stats| stats.restart),
                settled_ms: stats.map(|stats| stats.settled.as_millis()),
                last_extent_ms: stats.map(|stats| stats.last_extent.as_millis()),
                pages_disputed: progress.pages_disputed,
            };
            report.event("handed-over", &fields);
        }
    }
}
