//! What a node counted while it ran, told when it ends: for whoever looks at a rollout. An exporter reads the same from
//! the library.

use std::collections::BTreeMap;
use std::time::Duration;

use dwcp_core::flag::{Flag, RefusalKind};
use dwcp_core::net::{EndStatistics, Endpoint, FlagStatistics, HandoverStatistics, SessionStatistics, Statistics};
use serde::Serialize;

use crate::methods::Methods;
use crate::report::Report;

/// Which end of its transfers a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    Source,
    Sink,
}

/// A line of `--json` in any case; one for people where there is more to tell than transfers over version 3.
pub(crate) fn tell(endpoint: &Endpoint, end: End, report: &Report) {
    let statistics = endpoint.statistics();
    report.event("statistics", &Shown::of(&statistics, end));
    if let Some(line) = line(&statistics, end) {
        report.say(&line);
    }
}

#[derive(Serialize)]
struct Shown {
    at: End,
    v1: Sessions,
    v3: Sessions,
    handovers: Vec<Handovers>,
    pages_disputed: u64,
    handovers_disputed: u64,
    /// Who declined version 3, and why.
    declined: BTreeMap<&'static str, u64>,
    /// What came to nothing because of versions.
    refused: BTreeMap<&'static str, u64>,
    /// What peers did that they must not, by what it was.
    offences: BTreeMap<&'static str, u64>,
    /// Peers and strangers that were not let in, by why.
    turned_away: BTreeMap<&'static str, u64>,
    flag: Flags,
    /// Of all connections, handshakes and control included; TCP's own heads are not.
    bytes_sent: u64,
    bytes_received: u64,
    /// The same as an Ethernet interface counts it.
    link_bytes_sent: u64,
    link_bytes_received: u64,
}

#[derive(Serialize)]
struct Sessions {
    begun: u64,
    live: u64,
    ended: BTreeMap<&'static str, u64>,
    bytes_guest: u64,
    bytes_wire: u64,
    /// Null at a receiver, which does not measure it.
    extent_ms_p99: Option<u128>,
    /// Of a sender.
    codec: Methods,
}

#[derive(Serialize)]
struct Handovers {
    to: String,
    reason: &'static str,
    begun: u64,
    done: u64,
    struck: u64,
    /// The longest of each; null where none was measured.
    last_extent_ms_max: Option<u128>,
    first_message_ms_max: Option<u128>,
    settled_ms_max: Option<u128>,
}

#[derive(Serialize)]
struct Flags {
    runs: &'static str,
    why: &'static str,
    standing: &'static str,
    version: Option<u64>,
    /// For how long its source has failed; 0 is good.
    stale_s: u64,
    loads: u64,
    expiries: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Shown {
    fn of(statistics: &Statistics, end: End) -> Self {
        let (of_end, offences) = (at(statistics, end), &statistics.offences);
        let handovers = of_end.handovers.iter().map(|((to, reason), counts)| Handovers {
            to: to.to_string(),
            reason: reason.word(),
            begun: counts.begun,
            done: counts.done,
            struck: counts.struck,
            last_extent_ms_max: longest(&counts.last_extent),
            first_message_ms_max: longest(&counts.first_message),
            settled_ms_max: longest(&counts.settled),
        });
        Self {
            at: end,
            v1: Sessions::of(&of_end.v1),
            v3: Sessions::of(&of_end.v3),
            handovers: handovers.collect(),
            pages_disputed: of_end.pages_disputed,
            handovers_disputed: of_end.handovers_disputed,
            declined: statistics.declined.iter().map(|(by, count)| (by.word(), *count)).collect(),
            refused: statistics.refused.iter().map(|(why, count)| (why.word(), *count)).collect(),
            offences: offences.charged.iter().map(|(what, count)| (what.as_str(), *count)).collect(),
            turned_away: offences.turned_away.iter().map(|(why, count)| (why.as_str(), *count)).collect(),
            flag: Flags::of(&statistics.flag),
            bytes_sent: statistics.traffic.sent,
            bytes_received: statistics.traffic.received,
            link_bytes_sent: statistics.traffic.link_sent,
            link_bytes_received: statistics.traffic.link_received,
        }
    }
}

impl Sessions {
    fn of(sessions: &SessionStatistics) -> Self {
        Self {
            begun: sessions.begun,
            live: sessions.live,
            ended: sessions.ended.iter().map(|(ending, count)| (ending.word(), *count)).collect(),
            bytes_guest: sessions.guest_bytes,
            bytes_wire: sessions.wire_bytes,
            codec: Methods::of(&sessions.methods),
            extent_ms_p99: sessions.extent_latency.quantile(0.99).map(|latency| latency.as_millis()),
        }
    }
}

impl Flags {
    fn of(flag: &FlagStatistics) -> Self {
        let (snapshot, stats) = (&flag.snapshot, &flag.stats);
        let refused = RefusalKind::ALL.into_iter().map(|kind| (kind.word(), stats.refused(kind)));
        Self {
            runs: if snapshot.v3() { "v3" } else { "v1" },
            why: snapshot.decision(Flag::V3).why.word(),
            standing: snapshot.standing().word(),
            version: snapshot.version().map(dwcp_core::flag::FlagVersion::value),
            stale_s: stats.stale.as_secs(),
            loads: stats.loads,
            expiries: stats.expiries,
            refused: refused.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

fn at(statistics: &Statistics, end: End) -> &EndStatistics {
    match end {
        End::Source => &statistics.source,
        End::Sink => &statistics.sink,
    }
}

fn longest(times: &dwcp_core::session::Histogram) -> Option<u128> {
    (times.count() > 0).then(|| times.max().as_millis())
}

/// `None`: nothing but version 3 was spoken, and nobody minded.
fn line(statistics: &Statistics, end: End) -> Option<String> {
    let of_end = at(statistics, end);
    let mut told = Vec::new();
    if of_end.v1.begun > 0 {
        let (v3, v1) = (of_end.v3.begun, of_end.v1.begun);
        let declined = words(statistics.declined.iter().map(|(by, count)| (by.word(), *count)));
        told.push(format!("{v3} transfer(s) began over v3, {v1} over v1 inside TLS (v3 was declined: {declined})"));
    }
    let sum = |of: fn(&HandoverStatistics) -> u64| of_end.handovers.values().map(of).sum::<u64>();
    if sum(|counts| counts.begun) > 0 {
        let slowest = of_end.handovers.values().map(|counts| counts.settled.max()).max().unwrap_or_default();
        let within =
            if slowest > Duration::ZERO { format!(" within {} ms", slowest.as_millis()) } else { String::new() };
        told.push(format!(
            "{} hand-over(s) done{within}, {} struck",
            sum(|counts| counts.done),
            sum(|counts| counts.struck)
        ));
    }
    if of_end.pages_disputed > 0 {
        told.push(format!(
            "{} page(s) were not at the receiver as believed, and were sent again",
            of_end.pages_disputed
        ));
    }
    if !statistics.refused.is_empty() {
        let refused = words(statistics.refused.iter().map(|(why, count)| (why.word(), *count)));
        told.push(format!("refused because of versions: {refused}"));
    }
    (!told.is_empty()).then(|| format!("counted: {}", told.join("; ")))
}

fn words(counts: impl Iterator<Item = (&'static str, u64)>) -> String {
    counts.map(|(word, count)| format!("{word} {count}")).collect::<Vec<_>>().join(", ")
}
