//! What each method of the codec did, for people and for `--json`.

use std::fmt::Write;

use dwcp_hde::{Method, MethodStats, Stats};
use serde::Serialize;

use crate::report::{approximate, rounded};
use crate::units;

/// One method in `--json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OfMethod {
    method: &'static str,
    pages: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Of one core, to encode them.
    cpu_ms: f64,
}

/// All methods that were used, and what they saved together.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Methods {
    methods: Vec<OfMethod>,
    /// Of frames, blocks and page lists, which belong to no method.
    bytes_heads: u64,
    /// To choose the methods.
    look_ms: f64,
    saved_pct: Option<f64>,
    saved_pct_without_zero: Option<f64>,
}

impl Methods {
    pub(crate) fn of(stats: &Stats) -> Self {
        let of = |(method, share): (Method, MethodStats)| OfMethod {
            method: method.name(),
            pages: share.pages,
            bytes_in: share.bytes_in,
            bytes_out: share.bytes_out,
            cpu_ms: millis(share.nanos),
        };
        Self {
            methods: stats.used().map(of).collect(),
            bytes_heads: stats.head_bytes,
            look_ms: millis(stats.look_nanos),
            saved_pct: stats.saved().map(percent),
            saved_pct_without_zero: stats.saved_without_zero().map(percent),
        }
    }
}

/// A line for each method that was used, the one with most pages first.
pub(crate) fn table(stats: &Stats) -> String {
    let mut used: Vec<_> = stats.used().collect();
    used.sort_by_key(|(_, share)| std::cmp::Reverse(share.pages));
    let mut text =
        format!("  {:<14}{:>12}{:>12}{:>13}{:>9}{:>11}", "method", "pages", "plain", "on the wire", "saved", "CPU");
    for (method, share) in used {
        let MethodStats { pages, bytes_in, bytes_out, nanos } = share;
        let alone = Stats::default()
            .with(method, share)
            .saved()
            .map_or(String::new(), |saved| format!("{:.1} %", saved * 100.0));
        let (plain, wire) = (units::bytes(bytes_in), units::bytes(bytes_out));
        // Writing to a string cannot fail.
        let _ =
            write!(text, "\n  {:<14}{pages:>12}{plain:>12}{wire:>13}{alone:>9}{:>11}", method.name(), seconds(nanos));
    }
    let (heads, look) = (units::bytes(stats.head_bytes), seconds(stats.look_nanos));
    let _ = write!(text, "\n  {:<14}{:>12}{:>12}{heads:>13}{:>9}{look:>11}", "heads, choice", "", "", "");
    text
}

fn seconds(nanos: u64) -> String {
    format!("{:.2} s", approximate(nanos) / 1e9)
}

fn millis(nanos: u64) -> f64 {
    rounded(approximate(nanos) / 1e6, 1e3)
}

fn percent(share: f64) -> f64 {
    rounded(share * 100.0, 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_was_used_and_nothing_else() {
        let mut stats = Stats::default();
        (stats.head_bytes, stats.look_nanos) = (120, 30_000_000);
        stats.add(Method::Zero, MethodStats::left_out(10));
        stats.add(
            Method::Zstd,
            MethodStats { pages: 300, bytes_in: 300 * 4096, bytes_out: 75 * 4096, nanos: 2_000_000_000 },
        );
        let text = table(&stats);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words.len(), 4, "{text}");
        assert_eq!(words[1], ["zstd", "300", "1.2", "MB", "307.2", "kB", "75.0", "%", "2.00", "s"]);
        assert_eq!(words[2], ["zero", "10", "40.9", "kB", "0", "bytes", "100.0", "%", "0.00", "s"]);
        let shown = Methods::of(&stats);
        assert_eq!((shown.methods.len(), shown.bytes_heads, shown.saved_pct_without_zero), (2, 120, Some(75.0)));
    }
}
