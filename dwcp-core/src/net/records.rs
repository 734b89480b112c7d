use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::error::RecordsError;
use crate::session::{Fingerprint, Record, Standing};
use crate::storage::{Disk, File, Folder, read_all};
use crate::wire::{FenceEpoch, TransferId};

/// The folder of records: one small fsynced file for each transfer, written beside its place and
/// renamed, so that after a crash there is the old one, the new one, or none. spec: P-2
#[derive(Clone, Debug)]
pub struct Records {
    store: Option<Store>,
}

#[derive(Clone, Debug)]
struct Store {
    names: Arc<dyn Folder>,
    /// For messages.
    path: PathBuf,
}

impl Records {
    /// Records in this folder, which is made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, RecordsError> {
        let path = folder.into();
        let opened = fs::create_dir_all(&path).and_then(|()| Disk::open(&path));
        let disk = opened.map_err(|source| RecordsError::Io { path: path.clone(), source })?;
        Ok(Self { store: Some(Store { names: Arc::new(disk), path }) })
    }

    /// Records in any storage.
    pub fn over(names: Arc<dyn Folder>) -> Self {
        Self { store: Some(Store { names, path: PathBuf::new() }) }
    }

    /// No records: a crash after GIVE_UP leaves nothing to ask with. For guests that die with this
    /// process anyway.
    pub fn none() -> Self {
        Self { store: None }
    }

    /// Where they are kept. `None`: nowhere.
    pub fn folder(&self) -> Option<Arc<dyn Folder>> {
        self.store.as_ref().map(|store| Arc::clone(&store.names))
    }

    /// All records, in no order, and beside them the files that are none: one torn file must not stop
    /// a node, nor be overlooked.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Listing, RecordsError> {
        let mut listing = Listing::default();
        let Some(store) = &self.store else { return Ok(listing) };
        for name in store.names(RECORD)? {
            match store.read(&name) {
                Ok(record) => listing.records.extend(record),
                Err(error) => listing.damaged.push(Damaged { transfer: id(&name, RECORD), error }),
            }
        }
        Ok(listing)
    }

    /// The record of one transfer.
    ///
    /// # Errors
    /// It cannot be read, or is no record.
    pub fn load(&self, transfer: TransferId) -> Result<Option<Record>, RecordsError> {
        self.store.as_ref().map_or(Ok(None), |store| store.read(&name(transfer, RECORD)))
    }

    /// Writes a record and waits until it is durable.
    ///
    /// # Errors
    /// It may or may not be there: treat the transfer as failed.
    pub fn store(&self, record: &Record) -> Result<(), RecordsError> {
        let Some(store) = &self.store else { return Ok(()) };
        let place = name(record.transfer, RECORD);
        let at = |source| store.failed(&place, source);
        store.write(&place, record.encode().as_bytes()).and_then(|()| store.names.sync()).map_err(at)
    }

    /// The id under which a source may offer what it names by `key`: that of one that was cut off before it gave up,
    /// so that the sink takes back what it had promised to that, or else `fresh`. It is remembered until it is given
    /// up. Without an [`Offering`] somebody offers the same just now, and `fresh` is not remembered.
    ///
    /// # Errors
    /// It cannot be remembered.
    pub fn offering(&self, key: &str, fresh: TransferId) -> Result<(TransferId, Option<Offering>), RecordsError> {
        let Some(store) = &self.store else { return Ok((fresh, None)) };
        // Until it is locked, lest two who begin the same find nothing of each other.
        let _turn = store.turn(OFFERS_LOCK)?;
        for place in store.names(OFFERED)? {
            let at = |source| store.failed(&place, source);
            let Ok(file) = store.names.open(&place) else { continue };
            if !read_all(file.as_ref(), MOST_BYTES).is_ok_and(|text| text == key.as_bytes()) {
                continue;
            }
            if !file.lock().map_err(at)? {
                return Ok((fresh, None));
            }
            // It may have been forgotten before it was locked.
            if !store.is_named(&place, file.as_ref()).map_err(at)? {
                continue;
            }
            match id(&place, OFFERED) {
                // A record beside it: the crash came while it was given up.
                Some(known) if matches!(self.load(known), Ok(None)) => {
                    // It is kept as long again, if that can be written down.
                    let _ = file.write_at(0, key.as_bytes());
                    // Who wrote it may have been killed before it was durable.
                    file.sync().and_then(|()| store.names.sync()).map_err(at)?;
                    return Ok((known, Some(Offering { _locked: file })));
                }
                _ => gone(store.names.remove(&place)).map_err(at)?,
            }
        }
        let place = name(fresh, OFFERED);
        let at = |source| store.failed(&place, source);
        let file = store.names.create(&place).map_err(at)?;
        let mine = file.lock().map_err(at)?;
        let written = file.write_at(0, key.as_bytes()).and_then(|()| file.sync()).and_then(|()| store.names.sync());
        if let Err(error) = written {
            let _ = store.names.remove(&place);
            return Err(at(error));
        }
        Ok((fresh, mine.then_some(Offering { _locked: file })))
    }

    /// What is being offered, or was when its source was cut off, in no order.
    ///
    /// # Errors
    /// The folder, or a file in it, cannot be read.
    pub fn offers(&self) -> Result<Vec<Offered>, RecordsError> {
        let mut offers = Vec::new();
        let Some(store) = &self.store else { return Ok(offers) };
        // A folder of somebody who never offered stays as it is.
        if store.names(OFFERED)?.is_empty() {
            return Ok(offers);
        }
        // Each is locked for a moment, in which nobody who begins with it shall be told that it is under way.
        let _turn = store.turn(OFFERS_LOCK)?;
        for place in store.names(OFFERED)? {
            let Some(transfer) = id(&place, OFFERED) else { continue };
            let Some((file, key)) = store.bytes(&place)? else { continue };
            // One that is just being made is locked by nobody yet, and shall not be by us.
            if !key.is_empty() {
                let at = |source| store.failed(&place, source);
                let begun = file.stat().map_err(at)?.modified;
                let busy = !file.lock().map_err(at)?;
                let (key, promised) = (String::from_utf8_lossy(&key).into_owned(), store.may_be_promised(transfer)?);
                offers.push(Offered { transfer, key, busy, begun, promised });
            }
        }
        Ok(offers)
    }

    /// Forgets what was cut off before it was given up, was begun for the last time more than `age` before `now`, and
    /// cannot have been [promised](Self::may_be_promised) to this source. Returns which these were. What is given up, what may
    /// be promised and what is under way stays, however old. What a process that was killed left half done goes at that age, too.
    ///
    /// # Errors
    /// The folder, or a file in it, cannot be read, or not be removed.
    pub fn expire(&self, now: SystemTime, age: Duration) -> Result<Vec<Offered>, RecordsError> {
        let mut expired = Vec::new();
        let Some(store) = &self.store else { return Ok(expired) };
        // Who begins with one meanwhile waits, and finds it gone.
        let _turn = store.turn(OFFERS_LOCK)?;
        for place in store.names(OFFERED)? {
            let at = |source| store.failed(&place, source);
            let Some(transfer) = id(&place, OFFERED) else { continue };
            let Some((file, key)) = store.bytes(&place)? else { continue };
            let begun = file.stat().map_err(at)?.modified;
            // Held until it is gone, so that nobody offers it meanwhile.
            if !is_old(begun, now, age) || !file.lock().map_err(at)? {
                continue;
            }
            let promised = store.may_be_promised(transfer)?;
            if promised
                || !store.is_named(&place, file.as_ref()).map_err(at)?
                || !matches!(self.load(transfer), Ok(None))
            {
                continue;
            }
            self.remove([place.clone(), name(transfer, WORDS)])?;
            let key = String::from_utf8_lossy(&key).into_owned();
            expired.push(Offered { transfer, key, busy: false, begun, promised });
        }
        store.tidy(now, age);
        Ok(expired)
    }

    /// Remembers, durably, that whom something is offered to may have all of it and have promised so from now on; or, once
    /// another session began, that it cannot any more.
    ///
    /// # Errors
    /// The system refused.
    pub fn may_be_promised(&self, transfer: TransferId, may: bool) -> Result<(), RecordsError> {
        let Some(store) = &self.store else { return Ok(()) };
        let place = name(transfer, PROMISED);
        if !may {
            return self.remove([place]);
        }
        let made = match store.names.create(&place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        };
        made.and_then(|()| store.names.sync()).map_err(|source| store.failed(&place, source))
    }

    /// Remembers a text about what is offered under this id, until that is forgotten: for people, and for whoever
    /// begins it again. Nothing relies on it: a crash may lose it.
    ///
    /// # Errors
    /// The system refused.
    pub fn note(&self, transfer: TransferId, text: &str) -> Result<(), RecordsError> {
        let Some(store) = &self.store else { return Ok(()) };
        let place = name(transfer, WORDS);
        store.write(&place, text.as_bytes()).map_err(|source| store.failed(&place, source))
    }

    /// What was [noted](Self::note).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn noted(&self, transfer: TransferId) -> Result<Option<String>, RecordsError> {
        let Some(store) = &self.store else { return Ok(None) };
        store.text(&name(transfer, WORDS))
    }

    /// Forgets that something was offered: the next source of the same offers it under another id. False: it is being
    /// offered just now, or was given up, and nothing is touched.
    ///
    /// # Errors
    /// The system refused.
    pub fn withdraw(&self, transfer: TransferId) -> Result<bool, RecordsError> {
        let Some(store) = &self.store else { return Ok(true) };
        // Who begins with it meanwhile waits, and finds it gone.
        let _turn = store.turn(OFFERS_LOCK)?;
        let place = name(transfer, OFFERED);
        // Held until it is gone, so that nobody offers it meanwhile.
        let _offering = match store.names.open(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => {
                let locked = file.and_then(|file| file.lock().map(|mine| mine.then_some(file)));
                let Some(file) = locked.map_err(|source| store.failed(&place, source))? else { return Ok(false) };
                Some(file)
            }
        };
        if self.load(transfer)?.is_some() {
            return Ok(false);
        }
        self.remove([name(transfer, OFFERED), name(transfer, WORDS), name(transfer, PROMISED)])?;
        Ok(true)
    }

    /// Removes a record, if it is there, and all else that is remembered of its transfer.
    ///
    /// # Errors
    /// The system refused.
    pub fn forget(&self, transfer: TransferId) -> Result<(), RecordsError> {
        // What was given up is never offered again: what says so goes last. spec: O-6
        self.remove([OFFERED, WORDS, PROMISED, RECORD].map(|ending| name(transfer, ending)))
    }

    /// Removes a record that may have been written in part, for certain. What is offered stays so.
    ///
    /// # Errors
    /// It may be there after a crash.
    pub fn retract(&self, transfer: TransferId) -> Result<(), RecordsError> {
        let Some(store) = &self.store else { return Ok(()) };
        // Not there now may be there after a crash: nobody knows what of the last writes reached the disk.
        let place = name(transfer, RECORD);
        let gone = gone(store.names.remove(&place)).and_then(|()| store.names.sync());
        gone.map_err(|source| store.failed(&place, source))
    }

    /// Removes files, in this order and for good, if they are there.
    fn remove<const N: usize>(&self, places: [String; N]) -> Result<(), RecordsError> {
        let Some(store) = &self.store else { return Ok(()) };
        for place in places {
            match store.names.remove(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => {
                    removed.and_then(|()| store.names.sync()).map_err(|source| store.failed(&place, source))?;
                }
            }
        }
        Ok(())
    }

    /// The epoch of this node and a peer: nothing of an earlier one is taken from it. 1 until it was raised. spec: O-7
    ///
    /// # Errors
    /// It cannot be read, or is none: then nothing may be taken from that peer.
    pub fn fence(&self, peer: Fingerprint) -> Result<FenceEpoch, RecordsError> {
        let Some(store) = &self.store else { return Ok(FIRST_EPOCH) };
        let place = fence_name(peer);
        let text = match store.names.open(&place).and_then(|file| read_all(file.as_ref(), MOST_BYTES)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FIRST_EPOCH),
            read => read.map_err(|source| store.failed(&place, source))?,
        };
        let epoch =
            std::str::from_utf8(&text).ok().and_then(|text| text.strip_prefix(FENCE_TITLE)?.trim().parse().ok());
        let none = || store.failed(&place, io::Error::new(io::ErrorKind::InvalidData, "it is no fence of dwcp"));
        epoch.map(FenceEpoch).filter(|&epoch| epoch >= FIRST_EPOCH).ok_or_else(none)
    }

    /// That the epoch of a peer was not read, and why.
    pub(super) fn unread(&self, peer: Fingerprint, source: io::Error) -> RecordsError {
        let folder = self.store.as_ref().map(|store| store.path.clone()).unwrap_or_default();
        RecordsError::Io { path: folder.join(fence_name(peer)), source }
    }

    /// Raises the epoch of this node and a peer to at least this, durably, and tells what it is. It never falls, whoever
    /// raises it at the same time, in whatever process.
    ///
    /// # Errors
    /// It cannot be written: take nothing of that epoch.
    pub fn raise_fence(&self, peer: Fingerprint, least: FenceEpoch) -> Result<FenceEpoch, RecordsError> {
        let Some(store) = self.store.as_ref().filter(|_| least > FIRST_EPOCH) else { return Ok(least) };
        let fence = self.fence(peer)?;
        if fence >= least {
            return Ok(fence);
        }
        let place = fence_name(peer);
        let at = |source| store.failed(&place, source);
        // All transfers of a pair hand over at the same moment.
        let _turn = store.turn(FENCE_LOCK)?;
        let fence = self.fence(peer)?;
        if fence >= least {
            return Ok(fence);
        }
        let text = format!("{FENCE_TITLE}{}\n", least.0);
        store.write(&place, text.as_bytes()).and_then(|()| store.names.sync()).map_err(at)?;
        Ok(least)
    }

    /// Removes records that say *ran* and were written more than `age` before `now`, and returns whose
    /// they were. A source that asks later is told that the transfer is not known: it stays in doubt,
    /// never runs, and its operator decides. Other records are promises, and stay. What a process that was killed left half
    /// done goes at that age, too. spec: P-4
    ///
    /// # Errors
    /// The folder cannot be read, or a file in it not be removed.
    pub fn prune(&self, now: SystemTime, age: Duration) -> Result<Vec<TransferId>, RecordsError> {
        let mut pruned = Vec::new();
        let Some(store) = &self.store else { return Ok(pruned) };
        for place in store.names(RECORD)? {
            let stat = store.names.stat(&place).map_err(|source| store.failed(&place, source))?;
            if stat.is_some_and(|stat| is_old(stat.modified, now, age))
                && let Ok(Some(record)) = store.read(&place)
                && record.standing == Standing::Ran
            {
                self.forget(record.transfer)?;
                pruned.push(record.transfer);
            }
        }
        store.tidy(now, age);
        Ok(pruned)
    }

    /// Where the record of a transfer is, or would be; for messages.
    pub fn path(&self, transfer: TransferId) -> Option<PathBuf> {
        self.store.as_ref().map(|store| store.path.join(name(transfer, RECORD)))
    }
}

/// A file, and what is in it.
type Read = (Arc<dyn File>, Vec<u8>);

impl Store {
    /// Waits for those who have this lock, and has it until it is dropped.
    fn turn(&self, lock: &str) -> Result<Arc<dyn File>, RecordsError> {
        let locked = self.names.create(lock).or_else(|_| self.names.open(lock));
        let locked = locked.and_then(|file| file.wait_lock().map(|()| file));
        locked.map_err(|source| self.failed(lock, source))
    }

    /// Removes what nobody goes on with: files that were to be renamed, and what is said of offers that are forgotten. A crash may
    /// bring them back, which is why nothing is made durable.
    fn tidy(&self, now: SystemTime, age: Duration) {
        // What lists them next says so.
        for place in self.names.list().unwrap_or_default() {
            let of_offer = [WORDS, PROMISED].iter().find_map(|ending| id(&place, ending));
            let is_of = |of: &str| [RECORD, WORDS, FENCE].iter().any(|ending| of.ends_with(ending));
            let removed = match of_offer {
                Some(transfer) => self.remove_orphan(&place, transfer, now, age),
                None if place.strip_suffix(BESIDE).is_some_and(is_of) => self.remove_beside(&place, now, age),
                None => continue,
            };
            if let Err(error) = gone(removed) {
                tracing::warn!(%error, place, "what is half done cannot be removed");
            }
        }
    }

    /// Of an offer that is forgotten, which never comes back under its id.
    fn remove_orphan(&self, place: &str, transfer: TransferId, now: SystemTime, age: Duration) -> io::Result<()> {
        let old = self.names.stat(place)?.is_some_and(|stat| is_old(stat.modified, now, age));
        if !old
            || self.names.stat(&name(transfer, OFFERED))?.is_some()
            || self.names.stat(&name(transfer, RECORD))?.is_some()
        {
            return Ok(());
        }
        self.names.remove(place)
    }

    /// Who writes there again waits for the lock, lest his own be taken away.
    fn remove_beside(&self, place: &str, now: SystemTime, age: Duration) -> io::Result<()> {
        let file = self.names.open(place)?;
        if !is_old(file.stat()?.modified, now, age) || !file.lock()? || !self.is_named(place, file.as_ref())? {
            return Ok(());
        }
        self.names.remove(place)
    }

    /// Names with this ending.
    fn names(&self, ending: &str) -> Result<Vec<String>, RecordsError> {
        let listed = self.names.list().map_err(|source| RecordsError::Io { path: self.path.clone(), source })?;
        Ok(listed.into_iter().filter(|name| name.ends_with(ending)).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Record>, RecordsError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let decoded = Record::decode(&text);
        decoded.map(Some).map_err(|source| RecordsError::Record { path: self.path.join(name), source })
    }

    fn text(&self, name: &str) -> Result<Option<String>, RecordsError> {
        let Some((_, bytes)) = self.bytes(name)? else { return Ok(None) };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| self.failed(name, io::Error::new(io::ErrorKind::InvalidData, "it is no text")))
    }

    /// Whether this very file has that name.
    fn is_named(&self, name: &str, file: &dyn File) -> io::Result<bool> {
        let own = file.stat()?.id;
        Ok(self.names.stat(name)?.is_some_and(|named| named.id == own))
    }

    fn may_be_promised(&self, transfer: TransferId) -> Result<bool, RecordsError> {
        let place = name(transfer, PROMISED);
        self.names.stat(&place).map(|stat| stat.is_some()).map_err(|source| self.failed(&place, source))
    }

    /// A file of this name, if there is one.
    fn bytes(&self, name: &str) -> Result<Option<Read>, RecordsError> {
        let opened = self.names.open(name);
        match opened.and_then(|file| read_all(file.as_ref(), MOST_BYTES).map(|bytes| (file, bytes))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|source| self.failed(name, source)),
        }
    }

    /// Writes a file beside its place and gives it its name; the name is not durable yet.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = format!("{name}{BESIDE}");
        if let Ok(left) = self.names.open(&beside) {
            // Whoever removes it because it is old shall be done with that, or find that it is gone.
            left.wait_lock()?;
            gone(self.names.remove(&beside))?;
        }
        let file = self.names.create(&beside)?;
        let written =
            file.write_at(0, bytes).and_then(|()| file.sync()).and_then(|()| self.names.replace(&beside, name));
        if written.is_err() {
            // A full disk is full enough without what nobody will read.
            let _ = self.names.remove(&beside);
        }
        written
    }

    fn failed(&self, name: &str, source: io::Error) -> RecordsError {
        RecordsError::Io { path: self.path.join(name), source }
    }
}

const RECORD: &str = ".record";
/// Of files that say what is being offered under the id in their name.
const OFFERED: &str = ".offered";
/// Of files that say how an offer was begun.
const WORDS: &str = ".words";
/// Of files beside an offer that the sink may have taken up to its promise.
const PROMISED: &str = ".promised";
const BESIDE: &str = ".tmp";
/// No record, and no key of an offer, is longer.
const MOST_BYTES: u64 = 1 << 20;

/// The first epoch of every pair of peers. Later ones belong to hand-overs.
pub(super) const FIRST_EPOCH: FenceEpoch = FenceEpoch(1);
/// Who holds it may look through what is offered, and begin or forget some of it.
const OFFERS_LOCK: &str = "offers.lock";
/// Who holds it may raise fences.
const FENCE_LOCK: &str = "fences.lock";
const FENCE: &str = ".fence";
const FENCE_TITLE: &str = "dwcp fence 1\nepoch ";

fn fence_name(peer: Fingerprint) -> String {
    let hex: String = peer.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}{FENCE}")
}

fn name(transfer: TransferId, ending: &str) -> String {
    format!("{transfer}{ending}")
}

fn id(name: &str, ending: &str) -> Option<TransferId> {
    name.strip_suffix(ending)?.parse().ok()
}

/// Something that is being offered. Held for as long as its process lives: nobody else offers it under this id.
#[derive(Debug)]
pub struct Offering {
    _locked: Arc<dyn File>,
}

/// What is being offered, or was when its source was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offered {
    /// Under which id.
    pub transfer: TransferId,
    /// What it is, in its source's words; anything, if a power cut came while they were written.
    pub key: String,
    /// An [`Offering`] of this or another process lives.
    pub busy: bool,
    /// When it was begun for the last time.
    pub begun: SystemTime,
    /// The sink may have all of it and [have promised](Records::may_be_promised) so.
    pub promised: bool,
}

/// A clock that went back makes a file young, which is safe.
fn is_old(written: SystemTime, now: SystemTime, age: Duration) -> bool {
    now.duration_since(written).is_ok_and(|passed| passed > age)
}

/// What is not there need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// What a folder of records holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// What can be read.
    pub records: Vec<Record>,
    /// What cannot. Of such a transfer nothing may be thrown away or promised.
    pub damaged: Vec<Damaged>,
}

impl Listing {
    /// Whether there is nothing at all, readable or not.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.damaged.is_empty()
    }
}

/// A file in the place of a record that is none. spec: P-1
#[derive(Debug)]
pub struct Damaged {
    /// Of which transfer, by the name of the file.
    pub transfer: Option<TransferId>,
    /// Which file, and what is wrong with it.
    pub error: RecordsError,
}

#[cfg(test)]
mod tests;
