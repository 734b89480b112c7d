//! What the pages of a file hash to, kept beside a sender, so that one that was killed need not read the file again.
//!
//! That is only sound where every write after the hashing leaves a new time behind. A store through a shared mapping
//! leaves one when its page was clean, and none when it was dirty already. So nothing is noted before the image's dirty
//! pages have been written back ([`Ledger::trust`]), and nothing at all on file systems that never write back.
//!
//! The file is that of a journal, whose "peer" is a digest of the image's device, inode, size and times: an image that
//! was written to since has no ledger. It is never synced, for its chain tells what of it is whole.

use std::io::{self, BufReader};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::journal::{About, Recorder};
use crate::extent::{Layout, RegionId};
use crate::session::leaves::zero_leaf;
use crate::session::{Fingerprint, Leaves};
use crate::storage::{Disk, File, Folder, Reader};
use crate::wire::{Digest, Name};

const ENDING: &str = ".ledger";
/// Bytes that are written together; what a kill may cost is 8 MiB of image, that are read again.
const BUFFER_BYTES: usize = 64 * 1024;
/// A file may be written to twice within what its file system takes for one moment. So what is hashed so soon after a
/// change is not kept.
const SETTLED: Duration = Duration::from_secs(2);
/// How long what nobody came back for is kept.
const KEPT: Duration = Duration::from_secs(86_400);

/// The ledger of one file.
#[derive(Debug)]
pub(super) struct Ledger {
    layout: Layout,
    /// What is known, from an earlier process or this one.
    known: Leaves,
    names: Arc<dyn Folder>,
    name: String,
    /// When the image was changed last.
    changed: SystemTime,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    file: Arc<dyn File>,
    recorder: Recorder,
    settled: bool,
    /// Every write from now on shows in the image's times.
    trusted: bool,
    /// It could not be written to; the transfer does without.
    failed: bool,
}

impl Ledger {
    /// Opens the ledger of an image in a folder, or begins one. `None`: another process has it.
    pub(super) fn open(
        folder: &Path,
        name: &str,
        image: [u8; 32],
        changed: SystemTime,
        layout: &Layout,
    ) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(folder)?;
        let names: Arc<dyn Folder> = Arc::new(Disk::open(folder)?);
        let name = format!("{name}{ENDING}");
        let file = match names.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => names.create(&name),
            opened => opened,
        }?;
        if !file.lock()? {
            return Ok(None);
        }
        let title = Name::new("ledger").map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let about = About { peer: Fingerprint(image), name: title, layout: layout.clone() };
        let input = BufReader::with_capacity(1 << 20, Reader::of(file.as_ref())?);
        let (recorder, known) = Recorder::go_on(input, &about)?;
        file.set_len(recorder.bytes())?;
        file.write_at(0, recorder.header())?;
        let settled = is_settled(file.stat()?.modified, changed);
        // An image that is the same since then has no page that could be written to unseen.
        let trusted = recorder.bytes() > u64::try_from(recorder.header().len()).unwrap_or(u64::MAX);
        let ledger = Self {
            layout: layout.clone(),
            known,
            changed,
            log: Mutex::new(Log { recorder, settled, trusted, failed: false, file }),
            names,
            name,
        };
        ledger.prune()?;
        Ok(Some(ledger))
    }

    /// The leaf of a page, if it is known and not that of zeros.
    pub(super) fn recall(&self, region: RegionId, page: u32) -> Option<Digest> {
        let leaf = self.known.get(self.layout.flat(region, page)?);
        (leaf != zero_leaf()).then_some(leaf)
    }

    /// Pages were read, and have these leaves.
    pub(super) fn note(&self, region: RegionId, first: u32, leaves: &[Digest]) {
        let mut log = self.log();
        if !log.trusted {
            return;
        }
        for (page, leaf) in (first..).map_while(|page| self.layout.flat(region, page)).zip(leaves) {
            self.known.set(page, *leaf);
        }
        log.recorder.note(region, first, leaves);
        if log.recorder.waiting() >= BUFFER_BYTES {
            self.write(&mut log);
        }
    }

    /// The image had no dirty pages at a moment since it was opened, and is the same: what is hashed from now on may be
    /// noted.
    pub(super) fn trust(&self) {
        self.log().trusted = true;
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.log().trusted
    }

    /// Nobody needs it any more.
    pub(super) fn remove(&self) {
        self.log().failed = true;
        let _ = self.names.remove(&self.name);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, log: &mut Log) {
        if log.failed {
            return log.recorder.drop_waiting();
        }
        let written = if log.settled {
            let (at, bytes) = log.recorder.take_waiting();
            log.file.write_at(at, &bytes)
        } else {
            log.recorder.drop_waiting();
            self.now(log.file.as_ref(), log.recorder.header()).map(|now| {
                log.settled = is_settled(now, self.changed);
            })
        };
        if let Err(error) = written {
            tracing::warn!(%error, "what is known of the image cannot be kept; a sender that is killed reads it again");
            log.failed = true;
        }
    }

    /// What the file system's clock says.
    fn now(&self, file: &dyn File, header: &[u8]) -> io::Result<SystemTime> {
        file.write_at(0, header)?;
        Ok(file.stat()?.modified)
    }

    /// Removes ledgers that nobody came back for.
    fn prune(&self) -> io::Result<()> {
        let now = self.log().file.stat()?.modified;
        for name in self.names.list()?.iter().filter(|name| name.ends_with(ENDING)) {
            let Some(stat) = self.names.stat(name)? else { continue };
            let old = now.duration_since(stat.modified).is_ok_and(|age| age > KEPT);
            if old && self.names.open(name).is_ok_and(|file| file.lock().unwrap_or(false)) {
                let _ = self.names.remove(name);
            }
        }
        Ok(())
    }
}

fn is_settled(now: SystemTime, changed: SystemTime) -> bool {
    now.duration_since(changed).is_ok_and(|age| age > SETTLED)
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.write(&mut self.log());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::leaves::leaf;

    const IMAGE: [u8; 32] = [1; 32];

    fn layout() -> Layout {
        Layout::new(&[100 * 4096]).unwrap()
    }

    fn open(dir: &Path, image: [u8; 32], changed: SystemTime) -> Option<Ledger> {
        Ledger::open(dir, "8-15", image, changed, &layout()).unwrap()
    }

    fn leaves(bytes: &[u8]) -> Vec<Digest> {
        bytes.iter().map(|byte| leaf(&[*byte; 4096])).collect()
    }

    fn recall(ledger: &Ledger, first: u32, count: usize) -> Option<Vec<Digest>> {
        (first..).take(count).map(|page| ledger.recall(RegionId(0), page)).collect()
    }

    /// More than is written in one go.
    fn note(ledger: &Ledger) {
        ledger.trust();
        let bytes: Vec<u8> = (1..=50).collect();
        (0..BUFFER_BYTES / 1600 + 1).for_each(|_| ledger.note(RegionId(0), 7, &leaves(&bytes)));
        ledger.note(RegionId(0), 90, &leaves(&[99]));
    }

    #[test]
    fn what_was_hashed_is_known_to_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap();
        note(&ledger);
        assert!(open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).is_none(), "somebody has it");
        drop(ledger);
        let ledger = open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(recall(&ledger, 7, 3), Some(leaves(&[1, 2, 3])));
        assert_eq!(recall(&ledger, 90, 1), Some(leaves(&[99])));
        assert_eq!(recall(&ledger, 6, 2), None, "one of them is not known");
        ledger.remove();
        drop(ledger);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_image_and_a_torn_end_are_not_known() {
        let dir = tempfile::tempdir().unwrap();
        note(&open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap());
        let path = dir.path().join("8-15.ledger");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let ledger = open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recall(&ledger, 7, 1), recall(&ledger, 90, 1)), (Some(leaves(&[1])), None));
        drop(ledger);
        let other = open(dir.path(), [2; 32], SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(recall(&other, 7, 1), None);
    }

    #[test]
    fn nothing_is_noted_before_the_image_is_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap();
        ledger.note(RegionId(0), 7, &leaves(&[1]));
        assert_eq!(recall(&ledger, 7, 1), None);
        ledger.trust();
        ledger.note(RegionId(0), 7, &leaves(&[1]));
        assert_eq!(recall(&ledger, 7, 1), Some(leaves(&[1])));
        drop(ledger);
        assert!(open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap().is_trusted(), "it was then");
    }

    #[test]
    fn what_is_hashed_right_after_a_change_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        // A change that the file system's clock has not left behind.
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33);
        note(&open(dir.path(), IMAGE, changed).unwrap());
        assert_eq!(recall(&open(dir.path(), IMAGE, changed).unwrap(), 7, 1), None);
    }

    #[test]
    fn ledgers_that_nobody_came_back_for_go() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("8-16.ledger");
        std::fs::write(&old, "old").unwrap();
        std::fs::File::options().write(true).open(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        drop(open(dir.path(), IMAGE, SystemTime::UNIX_EPOCH).unwrap());
        assert!(!old.exists());
    }
}
