use std::path::Path;

use dwcp_core::net::{Fingerprint, Quarantine, QuarantineListing, Quarantined};
use serde::Serialize;

use crate::cli::{QuarantineArgs, QuarantineCommand};
use crate::exit::{Exit, Failure};
use crate::place::is_folder;
use crate::receive;
use crate::report::Report;

/// `dwcp quarantine`.
pub(crate) fn run(args: QuarantineArgs, report: &Report) -> Result<Exit, Failure> {
    match args.command {
        QuarantineCommand::List { dir } => list(&look(&dir)?, &dir, report),
        QuarantineCommand::Clear { peer: Some(peer), dir, .. } => clear(&[peer], &look(&dir)?, &dir, report),
        QuarantineCommand::Clear { peer: None, dir, .. } => {
            let listing = look(&dir)?;
            let all: Vec<_> = listing.peers.iter().map(|quarantined| quarantined.peer).collect();
            clear(&all, &listing, &dir, report)
        }
    }
}

/// What was named must be there: a mistyped path would hide a quarantine.
fn look(dir: &Path) -> Result<QuarantineListing, Failure> {
    let records = dir.join(receive::RECORDS);
    if !is_folder(&records)? {
        let what = format!("no `dwcp receive` ever stored images in {}", dir.display());
        let advice = "Name with --dir the directory that `dwcp receive --dir` was given.";
        return Err(Failure::new(Exit::Failed, what).advise(advice));
    }
    let folder = records.join(receive::QUARANTINE);
    if is_folder(&folder)? { Ok(Quarantine::list(&folder)?) } else { Ok(QuarantineListing::default()) }
}

#[derive(Serialize)]
struct Shown {
    peer: String,
    offence: &'static str,
    times: u32,
    since: u64,
    until: u64,
}

impl From<&Quarantined> for Shown {
    fn from(quarantined: &Quarantined) -> Self {
        let Quarantined { peer, offence, times, since, until } = quarantined;
        Self { peer: peer.to_string(), offence: offence.as_str(), times: *times, since: *since, until: *until }
    }
}

#[derive(Serialize)]
struct Listed {
    verdict: &'static str,
    peers: usize,
    damaged: usize,
}

fn list(listing: &QuarantineListing, dir: &Path, report: &Report) -> Result<Exit, Failure> {
    for path in &listing.damaged {
        report.warn(&format!("warning: {} cannot be read and holds nobody; remove it", path.display()));
    }
    if listing.peers.is_empty() {
        report.say(&format!("nobody is in quarantine in {}", dir.display()));
    }
    for quarantined in &listing.peers {
        let left = quarantined.left().as_secs();
        report.say(&format!(
            "{}  {left} s left  for {}, time {}",
            quarantined.peer, quarantined.offence, quarantined.times
        ));
        report.event("quarantined", &Shown::from(quarantined));
    }
    let (peers, damaged) = (listing.peers.len(), listing.damaged.len());
    report.event("summary", &Listed { verdict: Exit::Ok.word(), peers, damaged });
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Cleared {
    verdict: &'static str,
    cleared: usize,
}

fn clear(peers: &[Fingerprint], known: &QuarantineListing, dir: &Path, report: &Report) -> Result<Exit, Failure> {
    let folder = dir.join(receive::RECORDS).join(receive::QUARANTINE);
    for &peer in peers {
        if !known.peers.iter().any(|quarantined| quarantined.peer == peer) {
            let what = format!("{peer} is not in quarantine in {}", dir.display());
            return Err(Failure::new(Exit::Failed, what).advise("See `dwcp quarantine list`."));
        }
        Quarantine::clear(&folder, peer)?;
        report.say(&format!("{peer} may connect again"));
    }
    if peers.is_empty() {
        report.say(&format!("nobody is in quarantine in {}", dir.display()));
    }
    report.event("summary", &Cleared { verdict: Exit::Ok.word(), cleared: peers.len() });
    Ok(Exit::Ok)
}
