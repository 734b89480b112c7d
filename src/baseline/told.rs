//! What is told of baselines: lines for people, fields for JSON.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_core::baseline::{Added, Collected, Summary};
use dwcp_core::wire::Name;
use serde::Serialize;

use crate::exit::Exit;
use crate::units;

/// One baseline.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) tenant: String,
    name: String,
    digest: String,
    root: String,
    /// Bytes of each region.
    regions: Vec<u64>,
    bytes_guest: u64,
    pages: u64,
    zero_pages: u64,
    unique_pages: u64,
    bytes_disk: u64,
    bytes_own: u64,
    /// Seconds since 1970.
    made: u64,
    used: u64,
    /// Null: its packs are all there, as long as they should be. Whether each page is whole tells `verify`.
    pub(super) damage: Option<String>,
    /// A newer one has its name; it stays for as long as it is in use.
    pub(super) replaced: bool,
}

impl Shown {
    /// In the order of a listing: the newest of a name stands first.
    pub(super) fn all(baselines: &[Summary]) -> Vec<Self> {
        let mut before = None;
        let mut shown = Vec::with_capacity(baselines.len());
        for summary in baselines {
            let name = (&summary.about.tenant, &summary.about.name);
            shown.push(Self::of(summary, before == Some(name)));
            before = Some(name);
        }
        shown
    }

    fn of(summary: &Summary, replaced: bool) -> Self {
        let about = &summary.about;
        Self {
            tenant: about.tenant.to_string(),
            name: about.name.to_string(),
            digest: summary.digest.to_string(),
            root: about.root.to_string(),
            regions: about.layout.regions().map(|(_, region)| region.bytes).collect(),
            bytes_guest: about.layout.bytes(),
            pages: about.layout.pages(),
            zero_pages: about.layout.pages() - about.pages,
            unique_pages: about.distinct,
            bytes_disk: summary.bytes,
            bytes_own: summary.own_bytes,
            made: seconds(summary.made),
            used: seconds(summary.used),
            damage: summary.damage.as_ref().map(|(file, damage)| format!("{file}: {damage}")),
            replaced,
        }
    }

    pub(super) fn line(&self) -> String {
        let digest = self.digest.get(..12).unwrap_or_default();
        let replaced = if self.replaced { ", replaced: goes with the next gc" } else { "" };
        let damaged = if self.damage.is_some() { ", DAMAGED" } else { "" };
        format!(
            "{}/{}  {digest}  {} as {} on the disk, used {}{replaced}{damaged}",
            self.tenant,
            self.name,
            units::bytes(self.bytes_guest),
            units::bytes(self.bytes_disk),
            units::ago(self.used),
        )
    }

    /// Whether it can be used, as far as that shows without reading it.
    fn state(&self) -> String {
        match &self.damage {
            Some(damage) => format!("DAMAGED, {damage}"),
            None => "all its packs are there; `dwcp baseline verify` reads its pages".into(),
        }
    }

    /// A line each, with its meaning first.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let regions: Vec<_> = self.regions.iter().map(|bytes| units::bytes(*bytes)).collect();
        let zero = self.zero_pages;
        vec![
            ("name", self.name.clone()),
            ("tenant", self.tenant.clone()),
            ("digest", self.digest.clone()),
            ("root", self.root.clone()),
            ("regions", format!("{} ({})", regions.len(), regions.join(", "))),
            ("pages", format!("{}, {zero} of them zeros, {} unique others", self.pages, self.unique_pages)),
            ("on disk", format!("{} bytes, {} of them for this one alone", self.bytes_disk, self.bytes_own)),
            ("made", units::ago(self.made)),
            ("used", units::ago(self.used)),
            ("state", self.state()),
        ]
    }
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One baseline in a last line.
#[derive(Serialize)]
pub(super) struct ShownSummary<'a> {
    pub(super) verdict: &'static str,
    #[serde(flatten)]
    pub(super) shown: &'a Shown,
}

/// The last line about many.
#[derive(Serialize)]
pub(super) struct Told {
    pub(super) verdict: &'static str,
    pub(super) baselines: usize,
    /// Those that cannot be used, or not wholly.
    pub(super) damaged: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_disk: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) damaged_pages: Option<u64>,
}

/// The end of a command that found damage: what it says and how it ends.
pub(super) fn exit_of(damaged: usize) -> Exit {
    if damaged == 0 { Exit::Ok } else { Exit::Integrity }
}

#[derive(Serialize)]
pub(super) struct AddedSummary {
    verdict: &'static str,
    tenant: String,
    name: String,
    digest: String,
    pages: u64,
    zero_pages: u64,
    known_pages: u64,
    stored_pages: u64,
    bytes_disk: u64,
}

impl AddedSummary {
    pub(super) fn of(tenant: &Name, name: &Name, added: &Added) -> Self {
        Self {
            verdict: Exit::Ok.word(),
            tenant: tenant.to_string(),
            name: name.to_string(),
            digest: added.digest.to_string(),
            pages: added.pages,
            zero_pages: added.zero,
            known_pages: added.known,
            stored_pages: added.stored,
            bytes_disk: added.bytes,
        }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{}/{}  {}\n  {} pages: {} zeros, {} stored, {} known already; {} on the disk",
            self.tenant,
            self.name,
            self.digest,
            self.pages,
            self.zero_pages,
            self.stored_pages,
            self.known_pages,
            units::bytes(self.bytes_disk),
        )
    }
}

#[derive(Serialize)]
pub(super) struct Verified {
    tenant: String,
    name: String,
    digest: String,
    pages: u64,
    damaged_pages: u64,
}

impl Verified {
    pub(super) fn of(summary: &Summary, damaged_pages: u64) -> Self {
        let about = &summary.about;
        let (tenant, name) = (about.tenant.to_string(), about.name.to_string());
        Self { tenant, name, digest: summary.digest.to_string(), pages: about.pages, damaged_pages }
    }
}

#[derive(Serialize)]
pub(super) struct CollectedSummary {
    verdict: &'static str,
    removed: usize,
    in_use: usize,
    damaged: usize,
    /// Files that could be neither used nor removed.
    left: usize,
    bytes_before: u64,
    bytes_disk: u64,
}

impl CollectedSummary {
    pub(super) fn of(collected: &Collected) -> Self {
        Self {
            verdict: Exit::Ok.word(),
            removed: collected.removed.len(),
            in_use: collected.in_use.len(),
            damaged: collected.damaged.len(),
            left: collected.left.len(),
            bytes_before: collected.bytes_before,
            bytes_disk: collected.bytes,
        }
    }

    pub(super) fn line(&self) -> String {
        format!("{} on the disk, {} before", units::bytes(self.bytes_disk), units::bytes(self.bytes_before))
    }
}

/// Where a baseline is damaged, for people: a page or two, or runs of them.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u16, u32, u32)>);

/// Ranges that are told; more would hide the rest of what is said.
const RANGES: usize = 8;

impl Ranges {
    pub(super) fn add(&mut self, region: u16, page: u32) {
        match self.0.last_mut() {
            Some((of, _, last)) if *of == region && *last + 1 == page => *last = page,
            _ => self.0.push((region, page, page)),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (region, first, last)) in self.0.iter().take(RANGES).enumerate() {
            let before = if index == 0 { ":" } else { "," };
            write!(f, "{before} region {region} pages {first} to {last}")?;
        }
        match self.0.len().checked_sub(RANGES + 1) {
            Some(more) => write!(f, ", and {} places more", more + 1),
            None => Ok(()),
        }
    }
}
