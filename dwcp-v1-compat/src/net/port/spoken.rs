use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::net::TransferError;

/// Addresses remembered at a time; with one more the one that was seen first is forgotten. A fleet has fewer.
const MOST: usize = 4096;
/// Bytes of a file that is read: more than so many addresses have.
const MOST_BYTES: u64 = 256 * 1024;

/// Addresses where a peer proved over TLS who it is, in memory and in a file if there is one.
#[derive(Debug, Default)]
pub struct SpokenV3 {
    file: Option<PathBuf>,
    addresses: Mutex<VecDeque<IpAddr>>,
    unwritten: AtomicU64,
}

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
        Ok(Self { file: Some(file), addresses: Mutex::new(addresses), unwritten: AtomicU64::default() })
    }

    /// Whether v3 was spoken with it.
    pub fn holds(&self, address: IpAddr) -> bool {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.contains(&address.to_canonical())
    }

    /// Remembers it. What cannot be written is remembered until this process ends.
    pub fn remember(&self, address: IpAddr) {
        let address = address.to_canonical();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.contains(&address) {
            return;
        }
        if addresses.len() >= MOST {
            addresses.pop_front();
        }
        addresses.push_back(address);
        if let Some(file) = &self.file {
            let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
            // The next one that is new is another try.
            if replace(file, &text).is_err() {
                self.unwritten.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How often the file could not be written. What it lacks is forgotten by a restart, which a downgrade may wait for.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
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
