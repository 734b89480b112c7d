use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use crate::net::TransferError;

/// Addresses remembered at a time, besides those that are protected; with one more the one that was seen first is forgotten. A
/// fleet has fewer.
const MOST: usize = 4096;
/// Bytes of a file that is read: more than so many addresses have.
const MOST_BYTES: u64 = 256 * 1024;

/// Addresses where a peer proved over TLS who it is, in memory and in a file if there is one.
///
/// Inside a tokio runtime the file is written on a thread that may block; [`flush`](Self::flush) before the process ends.
#[derive(Debug, Default)]
pub struct SpokenV3(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    file: Option<PathBuf>,
    known: Mutex<Known>,
    /// Held while the file is written: `known` never is.
    writing: Mutex<Written>,
    /// Somebody will write, and has not looked yet what.
    queued: AtomicBool,
    unwritten: AtomicU64,
    forgotten: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    addresses: VecDeque<IpAddr>,
    /// Those that are never forgotten.
    protected: BTreeSet<IpAddr>,
    /// How often they changed.
    changes: u64,
}

/// How many changes the file has.
#[derive(Debug, Default)]
struct Written(u64);

impl SpokenV3 {
    /// As this file says, one address a line; there need not be one yet.
    ///
    /// # Errors
    /// It cannot be read, or is something else: a downgrade could go unnoticed, so that is not passed over.
    pub fn open(file: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let file = file.into();
        let failed = |error| TransferError::io(format!("cannot read who spoke version 3 in {}", file.display()), error);
        let text = read(&file).map_err(failed)?;
        let damaged = |what: String| failed(io::Error::new(io::ErrorKind::InvalidData, what));
        // Half of a line may be an address, too: another one.
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(damaged("its last line has no end; it was cut off, or is no such file".into()));
        }
        let addresses = text.lines().map(str::parse).collect::<Result<VecDeque<IpAddr>, _>>();
        let addresses = addresses.map_err(|error| damaged(error.to_string()))?;
        let known = Mutex::new(Known { addresses, ..Known::default() });
        Ok(Self(Arc::new(Shared { file: Some(file), known, ..Shared::default() })))
    }

    /// Whether v3 was spoken with it.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.0.known().addresses.contains(&address.to_canonical())
    }

    /// Remembers it, at once for this process. Inside a tokio runtime the file follows: the disk is waited for on a thread
    /// that may block. What cannot be written is remembered until this process ends.
    pub fn remember(&self, address: IpAddr) {
        if !self.0.learn(address.to_canonical()) || self.0.file.is_none() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return self.flush() };
        // One that waits takes along all that come until it begins.
        if !self.0.queued.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(&self.0);
            runtime.spawn_blocking(move || shared.write());
        }
    }

    /// Never forgets these: with them a downgrade would be taken. Whoever has many addresses and a trusted key could make room
    /// for it otherwise. spec: H-12
    pub(super) fn protect(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.0.known().protected.extend(addresses);
    }

    /// How often an address was forgotten to make room for another: a fleet has fewer than are remembered, so somebody has
    /// many.
    pub fn forgotten(&self) -> u64 {
        self.0.forgotten.load(Ordering::Relaxed)
    }

    /// Writes what the file lacks, on this thread, and waits for whoever is writing: before the process ends, which may not
    /// wait for threads of its runtime.
    pub fn flush(&self) {
        self.0.write();
    }

    /// How often the file could not be written. What it lacks is forgotten by a restart, which a downgrade may wait for.
    pub fn unwritten(&self) -> u64 {
        self.0.unwritten.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is new.
    fn learn(&self, address: IpAddr) -> bool {
        let mut known = self.known();
        if known.addresses.contains(&address) {
            return false;
        }
        let Known { addresses, protected, .. } = &mut *known;
        if addresses.len() >= MOST + protected.len()
            && let Some(oldest) = addresses.iter().position(|known| !protected.contains(known))
        {
            addresses.remove(oldest);
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        known.addresses.push_back(address);
        known.changes += 1;
        true
    }

    /// One at a time, and each all that is known by then: nobody writes an older list over a newer one.
    fn write(&self) {
        let Some(file) = &self.file else { return };
        let mut written = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.queued.store(false, Ordering::Release);
        let (text, changes) = {
            let known = self.known();
            let text: String = known.addresses.iter().map(|address| format!("{address}\n")).collect();
            (text, known.changes)
        };
        if changes == written.0 {
            return;
        }
        // The next one that is new is another try.
        match replace(file, &text) {
            Ok(()) => written.0 = changes,
            Err(_) => {
                self.unwritten.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    match OpenOptions::new().read(true).open(file) {
        Ok(file) => {
            file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
            let long = u64::try_from(text.len()).unwrap_or(u64::MAX) > MOST_BYTES;
            if long { Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long")) } else { Ok(text) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
        Err(error) => Err(error),
    }
}

/// Beside its place, and renamed: a crash leaves the old one or the new one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));
    const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 8));
    const THIRD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    /// A pipe that nobody reads stands where the file is written: whoever opens it waits.
    #[test]
    fn a_disk_that_hangs_holds_up_nobody_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (file, stuck) = (folder.path().join("spoken-v3"), folder.path().join("spoken-v3.new"));
        assert!(Command::new("mkfifo").arg(&stuck).status().unwrap().success());
        let spoken = Arc::new(SpokenV3::open(&file).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (tell, told) = mpsc::channel();
        let (asked, within) = (Arc::clone(&spoken), runtime.handle().clone());
        thread::spawn(move || {
            let _within = within.enter();
            for address in [FIRST, SECOND, THIRD] {
                asked.remember(address);
            }
            tell.send([FIRST, SECOND, THIRD].map(|address| asked.holds(address))).unwrap();
        });
        let held = told.recv_timeout(Duration::from_secs(30)).expect("they wait for the disk");
        assert_eq!(held, [true; 3]);
        // With this end open it takes bytes, though it cannot be synced; then it is out of the way.
        let mut pipe = OpenOptions::new().read(true).write(true).open(&stuck).unwrap();
        pipe.read_exact(&mut [0; 8]).unwrap();
        fs::remove_file(stuck).unwrap();
        spoken.flush();
        assert!(spoken.unwritten() >= 1, "the first try failed, and that is counted");
        let again = SpokenV3::open(&file).unwrap();
        assert_eq!([FIRST, SECOND, THIRD].map(|address| again.holds(address)), [true; 3]);
    }

    /// A trusted peer with many addresses makes room for no downgrade of another.
    // spec: H-12
    #[test]
    fn who_may_speak_version_1_is_never_forgotten_to_have_spoken_3() {
        let spoken = SpokenV3::default();
        spoken.protect([FIRST]);
        spoken.remember(FIRST);
        spoken.remember(SECOND);
        for host in 0..=u32::try_from(MOST).unwrap() {
            spoken.remember(IpAddr::V4((0x7f00_0001 + host).into()));
        }
        assert!(spoken.holds(FIRST) && !spoken.holds(SECOND));
        assert_eq!(spoken.0.known().addresses.len(), MOST + 1);
        assert_eq!(spoken.forgotten(), 2);
    }

    #[test]
    fn those_that_are_remembered_at_once_are_all_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spoken-v3");
        let spoken = SpokenV3::open(&file).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let addresses: Vec<IpAddr> = (0..64).map(|host| IpAddr::from([10, 0, 1, host])).collect();
        thread::scope(|scope| {
            for part in addresses.chunks(16) {
                let (spoken, runtime) = (&spoken, &runtime);
                scope.spawn(move || {
                    let _within = runtime.enter();
                    part.iter().for_each(|address| spoken.remember(*address));
                });
            }
        });
        spoken.flush();
        let again = SpokenV3::open(&file).unwrap();
        assert!(addresses.iter().all(|address| again.holds(*address)));
        assert_eq!(spoken.unwritten(), 0);
    }
}
