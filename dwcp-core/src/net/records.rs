use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::RecordsError;
use crate::session::{Record, Standing};
use crate::wire::TransferId;

/// The folder of records: one small fsynced file for each transfer, written beside its place and
/// renamed, so that after a crash there is the old one, the new one, or none. spec: P-2
#[derive(Clone, Debug)]
pub struct Records {
    folder: Option<PathBuf>,
}

impl Records {
    /// Records in this folder, which is made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, RecordsError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|source| RecordsError::Io { path: folder.clone(), source })?;
        Ok(Self { folder: Some(folder) })
    }

    /// No records: a crash after GIVE_UP leaves nothing to ask with. For guests that die with this
    /// process anyway.
    pub fn none() -> Self {
        Self { folder: None }
    }

    /// All records, in no order, and beside them the files that are none: one torn file must not stop
    /// a node, nor be overlooked.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Listing, RecordsError> {
        let mut listing = Listing::default();
        let Some(folder) = &self.folder else { return Ok(listing) };
        let at_folder = |source| RecordsError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(folder).map_err(at_folder)? {
            let path = entry.map_err(at_folder)?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                match read(&path) {
                    Ok(record) => listing.records.extend(record),
                    Err(error) => {
                        let transfer = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse().ok());
                        listing.damaged.push(Damaged { transfer, error });
                    }
                }
            }
        }
        Ok(listing)
    }

    /// The record of one transfer.
    ///
    /// # Errors
    /// It cannot be read, or is no record.
    pub fn load(&self, transfer: TransferId) -> Result<Option<Record>, RecordsError> {
        self.path(transfer).map_or(Ok(None), |path| read(&path))
    }

    /// Writes a record and waits until it is durable.
    ///
    /// # Errors
    /// It may or may not be there: treat the transfer as failed.
    pub fn store(&self, record: &Record) -> Result<(), RecordsError> {
        let (Some(folder), Some(path)) = (&self.folder, self.path(record.transfer)) else { return Ok(()) };
        let at = |source| RecordsError::Io { path: path.clone(), source };
        let beside = path.with_extension("tmp");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(at)?;
        file.write_all(record.encode().as_bytes()).map_err(at)?;
        file.sync_all().map_err(at)?;
        fs::rename(&beside, &path).map_err(at)?;
        if record.standing == Standing::GaveUp {
            // What was given up is never offered again. spec: O-6
            gone(fs::remove_file(path.with_extension(OFFERED))).map_err(at)?;
        }
        sync_folder(folder).map_err(at)
    }

    /// The id under which a source may offer what it names by `key`: that of one that was cut off before it gave up,
    /// so that the sink takes back what it had promised to that, or else `fresh`. It is remembered until it is given
    /// up. Without an [`Offering`] somebody offers the same just now, and `fresh` is not remembered.
    ///
    /// # Errors
    /// It cannot be remembered.
    pub fn offering(&self, key: &str, fresh: TransferId) -> Result<(TransferId, Option<Offering>), RecordsError> {
        let Some(folder) = &self.folder else { return Ok((fresh, None)) };
        let at_folder = |source| RecordsError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(folder).map_err(at_folder)? {
            let path = entry.map_err(at_folder)?.path();
            let offered = path.extension().is_some_and(|extension| extension == OFFERED);
            if !offered || !fs::read_to_string(&path).is_ok_and(|text| text == key) {
                continue;
            }
            let at = |source| RecordsError::Io { path: path.clone(), source };
            let Some(offering) = Offering::lock(&path).map_err(at)? else { return Ok((fresh, None)) };
            let known: Option<TransferId> = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse().ok());
            match known {
                // A record beside it: the crash came while it was given up.
                Some(known) if matches!(self.load(known), Ok(None)) => return Ok((known, Some(offering))),
                _ => gone(fs::remove_file(&path)).map_err(at)?,
            }
        }
        let path = folder.join(format!("{fresh}.{OFFERED}"));
        let at = |source| RecordsError::Io { path: path.clone(), source };
        fs::write(&path, key).and_then(|()| File::open(&path)?.sync_all()).map_err(at)?;
        let offering = Offering::lock(&path).map_err(at)?;
        sync_folder(folder).map_err(at)?;
        Ok((fresh, offering))
    }

    /// Removes a record, if it is there.
    ///
    /// # Errors
    /// The system refused.
    pub fn forget(&self, transfer: TransferId) -> Result<(), RecordsError> {
        let (Some(folder), Some(path)) = (&self.folder, self.path(transfer)) else { return Ok(()) };
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(folder).map_err(|source| RecordsError::Io { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(RecordsError::Io { path, source }),
        }
    }

    /// Removes records that say *ran* and were written more than `age` before `now`, and returns whose
    /// they were. A source that asks later is told that the transfer is not known: it stays in doubt,
    /// never runs, and its operator decides. Other records are promises, and stay. spec: P-4
    ///
    /// # Errors
    /// The folder cannot be read, or a file in it not be removed.
    pub fn prune(&self, now: SystemTime, age: Duration) -> Result<Vec<TransferId>, RecordsError> {
        let mut pruned = Vec::new();
        let Some(folder) = &self.folder else { return Ok(pruned) };
        let at_folder = |source| RecordsError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(folder).map_err(at_folder)? {
            let path = entry.map_err(at_folder)?.path();
            let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
            // A clock that went back makes a file young, which is safe.
            let old = written.is_ok_and(|at| now.duration_since(at).is_ok_and(|passed| passed > age));
            if old
                && path.extension().is_some_and(|extension| extension == EXTENSION)
                && let Ok(Some(record)) = read(&path)
                && record.standing == Standing::Ran
            {
                self.forget(record.transfer)?;
                pruned.push(record.transfer);
            }
        }
        Ok(pruned)
    }

    /// Where the record of a transfer is, or would be; for messages.
    pub fn path(&self, transfer: TransferId) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{transfer}.{EXTENSION}")))
    }
}

const EXTENSION: &str = "record";
/// Of files that say what is being offered under the id in their name.
const OFFERED: &str = "offered";

/// Something that is being offered. Held for as long as its process lives: nobody else offers it under this id.
#[derive(Debug)]
pub struct Offering {
    _locked: File,
}

impl Offering {
    fn lock(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _locked: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
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

fn read(path: &Path) -> Result<Option<Record>, RecordsError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            Record::decode(&text).map(Some).map_err(|source| RecordsError::Record { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordsError::Io { path: path.to_owned(), source }),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Layout;
    use crate::session::Fingerprint;
    use crate::wire::{Digest, FenceEpoch, Name};

    fn record() -> Record {
        Record {
            transfer: TransferId([1; 16]),
            epoch: FenceEpoch(1),
            attempt: 1,
            root: Digest([2; 32]),
            name: Name::new("vm").unwrap(),
            layout: Layout::new(&[4096]).unwrap(),
            peer: Fingerprint([3; 32]),
            standing: Standing::Ready,
        }
    }

    // spec: P-2
    #[test]
    fn a_record_is_stored_replaced_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("deep/er")).unwrap();
        let mut record = record();
        assert_eq!(records.load(record.transfer).unwrap(), None);
        records.store(&record).unwrap();
        record.standing = Standing::Ran;
        records.store(&record).unwrap();
        assert_eq!(records.list().unwrap().records, [record.clone()]);
        assert_eq!(records.load(record.transfer).unwrap(), Some(record.clone()));
        records.forget(record.transfer).unwrap();
        records.forget(record.transfer).unwrap();
        assert!(records.list().unwrap().is_empty());
    }

    // spec: P-1
    #[test]
    fn a_damaged_record_is_told_by_name_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        records.store(&record()).unwrap();
        let torn = TransferId([5; 16]);
        fs::write(records.path(torn).unwrap(), "dwcp record 2\n").unwrap();
        fs::write(folder.path().join("x.record"), [0xff]).unwrap();
        let mut listing = records.list().unwrap();
        assert_eq!(listing.records, [record()]);
        listing.damaged.sort_by_key(|damaged| damaged.transfer);
        let told: Vec<_> =
            listing.damaged.iter().map(|damaged| (damaged.transfer, damaged.error.to_string())).collect();
        assert!(told[0].0.is_none() && told[0].1.contains("x.record"), "{told:?}");
        assert!(told[1].0 == Some(torn) && told[1].1.contains(&torn.to_string()), "{told:?}");
        assert!(matches!(records.load(torn), Err(RecordsError::Record { .. })), "not none");
    }

    // spec: P-4
    #[test]
    fn only_old_records_of_what_ran_are_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        let (day, now) = (Duration::from_secs(86_400), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31));
        let all = [(Standing::Ran, 8), (Standing::Ran, 6), (Standing::Ready, 8), (Standing::GaveUp, 8)];
        for ((standing, days), id) in all.into_iter().zip(0..) {
            let record = Record { transfer: TransferId([id; 16]), standing, ..record() };
            records.store(&record).unwrap();
            let file = File::open(records.path(record.transfer).unwrap()).unwrap();
            file.set_modified(now - day * days).unwrap();
        }
        let torn = records.path(TransferId([9; 16])).unwrap();
        fs::write(&torn, "torn").unwrap();
        File::open(&torn).unwrap().set_modified(now - day * 8).unwrap();
        assert_eq!(records.prune(now, day * 7).unwrap(), [TransferId([0; 16])]);
        assert_eq!(records.list().unwrap().records.len(), 3);
        assert!(torn.exists());
    }

    // spec: O-6
    #[test]
    fn what_was_offered_is_offered_again_under_its_id_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let id = |byte| TransferId([byte; 16]);
        let (first, offering) = records.offering("vm1 host:1", id(1)).unwrap();
        assert!(first == id(1) && offering.is_some());
        // Somebody else at the same time is somebody else.
        let (other, none) = records.offering("vm1 host:1", id(2)).unwrap();
        assert!(other == id(2) && none.is_none());
        drop(offering);
        assert_eq!(records.offering("vm2 host:1", id(3)).unwrap().0, id(3), "another key");
        assert_eq!(records.offering("vm1 host:1", id(4)).unwrap().0, id(1), "it was cut off");
        records.store(&Record { transfer: id(1), standing: Standing::GaveUp, ..record() }).unwrap();
        records.forget(id(1)).unwrap();
        assert_eq!(records.offering("vm1 host:1", id(5)).unwrap().0, id(5), "it was given up");
    }
}
