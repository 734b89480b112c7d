//! Peers that broke the protocol, and until when nothing of them is taken.
//!
//! Only authenticated peers get here, by their fingerprint: an address can be forged, and many honest peers may share
//! one. What is kept on disk is one small text file for each, written beside its place and renamed; a clock that was
//! set back cannot make a sentence longer than [`LONGEST`].

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::unix_seconds;
use super::error::RecordsError;
use super::offence::{Offence, Severity};
use crate::session::Fingerprint;

/// The first time. Doubles with each time after it.
const SHORTEST: Duration = Duration::from_secs(30);
/// However often.
const LONGEST: Duration = Duration::from_secs(3600);
/// So many offences that a broken memory can explain, within so long, cannot be explained by it.
const STRIKES: usize = 3;
const STRIKES_WITHIN: Duration = Duration::from_secs(600);
/// After so long without another offence the next time is the first time.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);
/// Peers remembered at a time. Those whose time is over go first.
const PEERS: usize = 4096;

/// The peers in quarantine, in memory, and in a folder if there is one.
#[derive(Debug, Default)]
pub struct Quarantine {
    folder: Option<PathBuf>,
    peers: Mutex<BTreeMap<Fingerprint, Peer>>,
}

/// A peer of which nothing is taken for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Who.
    pub peer: Fingerprint,
    /// For what, the last time.
    pub offence: Offence,
    /// How often so far; a day without an offence begins anew.
    pub times: u32,
    /// Since when, in seconds of Unix time.
    pub since: u64,
    /// Until when, in seconds of Unix time.
    pub until: u64,
}

/// What a folder of the quarantined holds.
#[derive(Debug, Default)]
pub struct QuarantineListing {
    /// Those in quarantine now.
    pub peers: Vec<Quarantined>,
    /// Files that cannot be read. They hold nobody.
    pub damaged: Vec<PathBuf>,
}

#[derive(Debug, Default)]
struct Peer {
    /// When it did what a broken memory can do.
    strikes: Vec<u64>,
    last: Option<Quarantined>,
}

impl Quarantine {
    /// With the state in this folder, which is made if need be. A file that cannot be read is warned of, and holds
    /// nobody: a torn file must not stop a node.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, RecordsError> {
        let folder = folder.into();
        let at_folder = |source| RecordsError::Io { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(at_folder)?;
        let mut peers = BTreeMap::new();
        for (path, found) in read_all(&folder).map_err(at_folder)? {
            match found {
                Some(last) => drop(peers.insert(last.peer, Peer { strikes: Vec::new(), last: Some(last) })),
                None => tracing::warn!(path = %path.display(), "a quarantine cannot be read, and is not kept"),
            }
        }
        Ok(Self { folder: Some(folder), peers: Mutex::new(peers) })
    }

    /// Who is in quarantine now by this folder, whoever else uses it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(folder: &Path) -> Result<QuarantineListing, RecordsError> {
        let at_folder = |source| RecordsError::Io { path: folder.to_owned(), source };
        let (now, mut listing) = (unix_seconds(), QuarantineListing::default());
        for (path, found) in read_all(folder).map_err(at_folder)? {
            match found {
                Some(last) if last.holds(now) => listing.peers.push(last),
                Some(_) => {}
                None => listing.damaged.push(path),
            }
        }
        listing.peers.sort_by_key(|quarantined| quarantined.peer);
        Ok(listing)
    }

    /// Takes the peer out of quarantine by an operator's word, and says whether it was in. A node that uses the same
    /// folder notices when the peer comes next.
    ///
    /// # Errors
    /// The system refused.
    pub fn clear(folder: &Path, peer: Fingerprint) -> Result<bool, RecordsError> {
        let path = path_of(folder, peer);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(RecordsError::Io { path, source }),
        }
    }

    /// Who is in quarantine now.
    pub(super) fn now(&self) -> Vec<Quarantined> {
        let now = unix_seconds();
        self.lock().values().filter_map(|peer| peer.last).filter(|last| last.holds(now)).collect()
    }

    /// Whether nothing is taken of this peer now.
    pub(super) fn holds(&self, peer: Fingerprint) -> bool {
        let mut peers = self.lock();
        let Some(last) = peers.get(&peer).and_then(|peer| peer.last) else { return false };
        if !last.holds(unix_seconds()) {
            return false;
        }
        let cleared = self.folder.as_ref().is_some_and(|folder| fs::exists(path_of(folder, peer)).is_ok_and(|is| !is));
        if cleared {
            peers.remove(&peer);
        }
        !cleared
    }

    /// Charges a peer with an offence.
    pub(super) fn charge(&self, peer: Fingerprint, offence: Offence) {
        let now = unix_seconds();
        let mut peers = self.lock();
        if peers.len() >= PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, known| known.last.is_some_and(|last| last.holds(now)));
        }
        let Some(quarantined) = peers.entry(peer).or_default().charge(peer, offence, now) else { return };
        let seconds = quarantined.until - quarantined.since;
        tracing::warn!(%peer, %offence, seconds, "a peer broke the protocol and is quarantined");
        // Kept in memory all the same.
        if let Some(Err(error)) = self.folder.as_ref().map(|folder| store(folder, &quarantined)) {
            tracing::warn!(%peer, %error, "a quarantine cannot be written, and ends with this process");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fingerprint, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// What follows from an offence at this time.
    fn charge(&mut self, peer: Fingerprint, offence: Offence, now: u64) -> Option<Quarantined> {
        if offence.severity() == Severity::Ambiguous {
            let after = now.saturating_sub(STRIKES_WITHIN.as_secs());
            self.strikes.retain(|&at| at > after && at <= now);
            self.strikes.push(now);
            if self.strikes.len() < STRIKES {
                return None;
            }
        }
        self.strikes.clear();
        let recent = self.last.filter(|last| now < last.until.saturating_add(FORGOTTEN_AFTER.as_secs()));
        let times = recent.map_or(0, |last| last.times).saturating_add(1);
        let doublings = times.saturating_sub(1).min(16);
        let seconds = (SHORTEST.as_secs() << doublings).min(LONGEST.as_secs());
        let last = Quarantined { peer, offence, times, since: now, until: now.saturating_add(seconds) };
        self.last = Some(last);
        Some(last)
    }
}

impl Quarantined {
    /// For how long yet.
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.until.saturating_sub(unix_seconds()))
    }

    fn holds(&self, now: u64) -> bool {
        now < self.until && self.until - now <= LONGEST.as_secs()
    }

    fn encode(&self) -> String {
        let Self { peer, offence, times, since, until } = self;
        let body = format!("{TITLE}\npeer {peer}\noffence {offence}\ntimes {times}\nsince {since}\nuntil {until}\n");
        format!("{body}digest {}\n", blake3::hash(body.as_bytes()).to_hex())
    }

    /// `None` for a text that was torn or edited.
    fn decode(text: &str) -> Option<Self> {
        let (body, digest) = text.strip_suffix('\n')?.rsplit_once("digest ")?;
        if blake3::hash(body.as_bytes()).to_hex().as_str() != digest {
            return None;
        }
        let mut lines = body.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        field("dwcp").filter(|rest| TITLE.ends_with(rest))?;
        let peer = field("peer")?.parse().ok()?;
        let offence = Offence::named(field("offence")?)?;
        let times = field("times")?.parse().ok()?;
        let since = field("since")?.parse().ok()?;
        let until = field("until")?.parse().ok()?;
        Some(Self { peer, offence, times, since, until })
    }
}

const TITLE: &str = "dwcp quarantine 1";
const EXTENSION: &str = "quarantine";

fn path_of(folder: &Path, peer: Fingerprint) -> PathBuf {
    let name = peer.to_string().replace("sha256:", "");
    folder.join(name).with_extension(EXTENSION)
}

/// Every file of a folder that should say who is in quarantine, and whom it says.
fn read_all(folder: &Path) -> io::Result<Vec<(PathBuf, Option<Quarantined>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let found = fs::read_to_string(&path).ok().and_then(|text| Quarantined::decode(&text));
            let found = found.filter(|found| path_of(folder, found.peer) == path);
            all.push((path, found));
        }
    }
    Ok(all)
}

fn store(folder: &Path, quarantined: &Quarantined) -> io::Result<()> {
    let path = path_of(folder, quarantined.peer);
    let beside = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(quarantined.encode().as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Fingerprint = Fingerprint([0xab; 32]);

    fn sentence(peer: &mut Peer, offence: Offence, now: u64) -> Option<u64> {
        peer.charge(PEER, offence, now).map(|quarantined| quarantined.until - quarantined.since)
    }

    #[test]
    fn a_deliberate_offence_counts_at_once_and_each_time_twice_as_long() {
        let mut peer = Peer::default();
        let mut now = 1_000_000;
        let sentences: Vec<_> = (0..10)
            .map(|_| {
                now += 4000;
                sentence(&mut peer, Offence::OverCredit, now).unwrap()
            })
            .collect();
        assert_eq!(sentences, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        now += 3600 + 86_400;
        assert_eq!(sentence(&mut peer, Offence::OverCredit, now), Some(30), "a day later it is forgotten");
    }

    #[test]
    fn what_a_broken_memory_can_do_counts_the_third_time_in_ten_minutes() {
        let mut peer = Peer::default();
        let digest = Offence::ExtentDigest;
        let at = |peer: &mut Peer, now| sentence(peer, digest, now);
        assert_eq!([at(&mut peer, 1000), at(&mut peer, 1300), at(&mut peer, 1601)], [None; 3]);
        assert_eq!(at(&mut peer, 1700), Some(30));
        assert_eq!(at(&mut peer, 1701), None, "it begins anew");
        assert_eq!(sentence(&mut peer, Offence::OverCredit, 1702), Some(60));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hold_anybody_for_longer() {
        let last = Quarantined { peer: PEER, offence: Offence::Flood, times: 1, since: 10_000, until: 10_030 };
        assert!(last.holds(10_000) && last.holds(10_029));
        assert!(!last.holds(10_030) && !last.holds(100));
    }

    #[test]
    fn it_survives_a_restart_and_a_torn_file_holds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(folder.path()).unwrap();
        quarantine.charge(PEER, Offence::OutOfPlace);
        assert!(quarantine.holds(PEER));
        let again = Quarantine::open(folder.path()).unwrap();
        assert!(again.holds(PEER));
        let listed = Quarantine::list(folder.path()).unwrap();
        assert_eq!((listed.peers, listed.damaged.len()), (again.now(), 0));
        let path = path_of(folder.path(), PEER);
        let text = fs::read_to_string(&path).unwrap();
        for torn in [&text[..text.len() - 1], &text[..20], "", &text.replace("times 1", "times 9")] {
            fs::write(&path, torn).unwrap();
            assert!(!Quarantine::open(folder.path()).unwrap().holds(PEER), "{torn:?}");
            assert_eq!(Quarantine::list(folder.path()).unwrap().damaged, std::slice::from_ref(&path));
        }
    }

    #[test]
    fn an_operator_clears_it_under_a_node_that_runs() {
        let folder = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(folder.path()).unwrap();
        quarantine.charge(PEER, Offence::OutOfPlace);
        assert!(Quarantine::clear(folder.path(), PEER).unwrap());
        assert!(!Quarantine::clear(folder.path(), PEER).unwrap());
        assert!(!quarantine.holds(PEER));
        quarantine.charge(PEER, Offence::OutOfPlace);
        assert_eq!(quarantine.now()[0].times, 1, "what was cleared is forgotten");
    }
}
