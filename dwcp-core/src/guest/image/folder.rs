use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::journal::{About, Committer, Journal, room};
use super::place::{BESIDE, Found, JOURNAL, Place, STAGING, beside_name, journal_name, staging_name, transfer_of};
use super::staging::ImageStaging;
use crate::extent::{Layout, PAGE_BYTES};
use crate::guest::{Guest, GuestError};
use crate::session::{Fingerprint, Record};
use crate::storage::{Disk, Folder, Kind};
use crate::wire::{Name, Offer, TransferId};

/// A directory where images arrive: under their names when they are whole, and until then
///
/// ```text
///  .dwcp-<transfer>.part     the staging file, mode 0600
///  .dwcp-<transfer>.wal      the journal: which of its pages are durable
/// ```
///
/// Cheap to clone. No peer chooses a path: names are checked by their type and used below an open handle.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    pub(super) names: Arc<dyn Folder>,
    /// For messages.
    path: PathBuf,
    pub(super) committer: Option<Arc<Committer>>,
    pub(super) replace: bool,
    pub(super) sparse: bool,
}

impl ImageFolder {
    /// Opens a directory.
    ///
    /// # Errors
    /// It is missing, or none.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, GuestError> {
        let path = path.into();
        let disk = Disk::open(&path)
            .map_err(|error| GuestError::io(format!("cannot open the directory {}", path.display()), error))?;
        let committer = Some(Committer::of_process());
        Ok(Self { names: Arc::new(disk), path, committer, replace: false, sparse: false })
    }

    /// Over any storage. Pages become durable 16 MiB at a time, or when somebody needs them: no thread and no clock
    /// takes part.
    pub fn over(names: Arc<dyn Folder>) -> Self {
        Self { names, path: PathBuf::new(), committer: None, replace: false, sparse: false }
    }

    /// Whether images may take the place of files that have their names; by default not.
    #[must_use]
    pub fn replacing(self, replace: bool) -> Self {
        Self { replace, ..self }
    }

    /// Whether the disk's space is taken only as pages come. By default all of an image's is taken when it is offered,
    /// so that a disk that is too small is told at the start, and what stayed zeros is given back at the end.
    #[must_use]
    pub fn sparse(self, sparse: bool) -> Self {
        Self { sparse, ..self }
    }

    /// Makes the staging file of a transfer, without a journal: after a crash nothing of it is gone on with.
    ///
    /// # Errors
    /// The directory cannot be written or has not the space; the name exists there and may not be replaced; the
    /// transfer is being staged already.
    pub fn create(&self, name: &Name, transfer: TransferId, layout: Layout) -> Result<ImageStaging, GuestError> {
        failpoint!(waits, "sink.image.creates");
        let place = Place::new(self, name, transfer);
        place.refuse_existing()?;
        let file = self.names.create(&place.staging);
        let file = file.map_err(|error| self.failed("cannot create a staging file in", error))?;
        let sized = file.set_len(layout.bytes()).and_then(|()| self.reserve(file.as_ref(), &layout));
        if let Err(error) = sized {
            let _ = self.names.remove(&place.staging);
            return Err(self.no_room(name, &layout, error));
        }
        let staging = ImageStaging::over(file, place, layout);
        staging.mark();
        Ok(staging)
    }

    /// As [`create`](Self::create) for what is offered, with a journal beside the staging file of what of it is
    /// durable. Goes on with what is left of an earlier transfer, if that was of the same name and layout from the
    /// same peer and `taken` does not say that its transfer is under way or promised.
    ///
    /// # Errors
    /// As [`create`](Self::create). [`GuestError::Busy`] where what is left is written to, or looked at, by somebody else:
    /// who looks has it for a moment only. What is left and cannot be read just now stays as it is.
    pub fn go_on(
        &self,
        offer: &Offer,
        peer: Fingerprint,
        taken: impl Fn(TransferId) -> bool,
    ) -> Result<ImageStaging, GuestError> {
        failpoint!("sink.image.stages");
        let place = Place::new(self, &offer.name, offer.transfer);
        place.refuse_existing()?;
        let about = About { peer, name: offer.name.clone(), layout: offer.layout.clone() };
        if let Some(found) = self.find(&place, &about, taken)? {
            // What is durable is not thrown away because a disk fails.
            let journal = place.take_over(&about, &found).map_err(|error| {
                self.failed(&format!("cannot go on with what is left of transfer {} in", found.left), error)
            })?;
            let (_, held) = found.journal.into_parts();
            let staging = ImageStaging::over(found.file, place, offer.layout.clone()).holding(journal, held);
            // To take space that is there already takes as long as it has pieces.
            let cleared = staging.clear_others().and_then(|given_back| {
                let lacks = given_back || staging.lacks() > 0;
                if lacks { self.reserve(staging.file(), &offer.layout) } else { Ok(()) }
            });
            let cleared = cleared.and_then(|()| self.reserve_journal(&staging));
            return match cleared {
                Ok(()) => Ok(staging),
                Err(error) => Err(self.no_room_to_go_on(&staging, error)),
            };
        }
        place.clear(&about)?;
        let staging = self.create(&offer.name, offer.transfer, offer.layout.clone())?.with_journal(&about)?;
        if let Err(error) = self.reserve_journal(&staging) {
            staging.discard();
            return Err(self.no_room(&offer.name, &offer.layout, error));
        }
        self.names.sync().map_err(|error| self.failed("cannot make durable", error))?;
        Ok(staging)
    }

    /// What can be gone on with. All else that is left of the same image goes with it, or now, when there is nothing.
    fn find(
        &self,
        place: &Place,
        about: &About,
        taken: impl Fn(TransferId) -> bool,
    ) -> Result<Option<Found>, GuestError> {
        let (mut found, mut others) = (None::<Found>, Vec::new());
        for left in place.left(about, taken)? {
            match &found {
                // A second name that a crash left.
                Some(parts) if place.is_also(left, parts)? => others.push(left),
                Some(_) => {
                    place.look(about, left)?;
                    others.push(left);
                }
                None => match place.look(about, left)? {
                    Some(parts) => found = Some(parts),
                    None => others.push(left),
                },
            }
        }
        let Some(found) = found else {
            others.into_iter().for_each(|left| self.remove(left));
            return Ok(None);
        };
        Ok(Some(Found { others, ..found }))
    }

    /// Finds the staging file of a transfer again, after a restart, or the image under its name when
    /// the crash came after RUN was obeyed. The latter is believed only when its bytes have the
    /// record's root, which [`ImageStaging::verify`] and its `resume` find out by reading
    /// all of it: anybody may have put a file of that name there.
    ///
    /// # Errors
    /// Neither exists, or what exists has another size.
    pub fn reopen(&self, record: &Record) -> Result<ImageStaging, GuestError> {
        failpoint!(waits, "sink.image.reopens");
        let name = &record.name;
        let place = Place::new(self, name, record.transfer);
        let (file, doubted) = match self.names.open(&place.staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (self.names.open(name.as_str()), Some(record.root))
            }
            other => (other, None),
        };
        let lost = |error| self.failed(&format!("cannot find {} or {name} in", place.staging), error);
        let file = file.map_err(lost)?;
        let stat = file.stat().map_err(lost)?;
        if stat.kind != Kind::Regular || stat.bytes != record.layout.bytes() {
            return Err(place.not_staged(doubted.map_or(&place.staging, |_| name.as_str())));
        }
        Ok(ImageStaging::over(file, place, record.layout.clone()).found(doubted))
    }

    /// Transfers that were cut off here and can be gone on with, and those that are under way just now.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn parked(&self) -> Result<Vec<Parked>, GuestError> {
        let mut parked = Vec::new();
        for name in self.list()? {
            let Some(transfer) = transfer_of(&name, JOURNAL) else { continue };
            // One that cannot be read is swept away in time.
            parked.extend(self.parked_of(transfer));
        }
        parked.sort_by(|a, b| (&a.name, a.transfer).cmp(&(&b.name, b.transfer)));
        Ok(parked)
    }

    /// One of [`parked`](Self::parked). `None`: it is not, or its journal cannot be read.
    pub fn parked_of(&self, transfer: TransferId) -> Option<Parked> {
        let journal = journal_name(transfer);
        let (about, held) = self.names.open(&journal).and_then(Journal::read).ok()??.into_parts();
        let written = self.names.stat(&journal).ok()??.modified;
        let staging = self.names.open(&staging_name(transfer)).ok()?;
        let held_bytes = ImageStaging::pages(&about.layout, &held) * u64::try_from(PAGE_BYTES).unwrap_or(0);
        let About { peer, name, layout } = about;
        let busy = matches!(staging.lock(), Ok(false));
        Some(Parked { transfer, peer, name, bytes: layout.bytes(), held_bytes, written, busy })
    }

    /// Throws away what is left of a transfer that was cut off, so that nobody goes on with it. It is gone for certain
    /// when this returns, or else was never there. False: it is under way just now, and nothing is touched.
    ///
    /// The caller makes sure that it was not promised.
    ///
    /// # Errors
    /// The system refused.
    pub fn abort(&self, transfer: TransferId) -> Result<bool, GuestError> {
        let staging = staging_name(transfer);
        let failed = |error| self.failed(&format!("cannot remove {staging} in"), error);
        // Held until all is gone: a receiver that begins with it meanwhile finds out before it promises anything.
        let _mark = match self.names.open(&staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Ok(file) if matches!(file.lock(), Ok(false)) => return Ok(false),
            other => Some(other.map_err(failed)?),
        };
        for name in [staging_name(transfer), journal_name(transfer), beside_name(transfer)] {
            match self.names.remove(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed)?,
            }
        }
        // Lest a crash bring a journal back beside a new staging file.
        self.names.sync().map_err(failed)?;
        Ok(true)
    }

    /// Throws away what is left of a transfer: its staging file and journal. Nothing is there: nothing happens.
    pub fn remove(&self, transfer: TransferId) {
        for name in [staging_name(transfer), journal_name(transfer), beside_name(transfer)] {
            let _ = self.names.remove(&name);
        }
    }

    /// Removes the staging files whose transfer `keep` does not want: what an earlier process left that
    /// was killed before its transfers were READY. Those with a journal stay for 24 hours, for
    /// [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// The directory cannot be read, or a file in it not be removed.
    pub fn sweep(&self, now: SystemTime, keep: impl Fn(TransferId) -> bool) -> Result<Swept, GuestError> {
        let mut swept = Swept::default();
        for name in self.list()? {
            let transfer = [STAGING, JOURNAL, BESIDE].iter().find_map(|ending| transfer_of(&name, ending));
            let Some(transfer) = transfer.filter(|&transfer| !keep(transfer)) else { continue };
            if self.is_parked(transfer, now) {
                if name.ends_with(JOURNAL) {
                    swept.parked.push(transfer);
                }
                continue;
            }
            failpoint!(waits, "sink.image.sweeps");
            match self.names.remove(&name) {
                // Somebody else was faster, such as an operator who aborts it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => {
                    removed.map_err(|error| self.failed(&format!("cannot remove {name} in"), error))?;
                    swept.removed.push(name);
                }
            }
        }
        Ok(swept)
    }

    /// Whether a transfer has staging file and journal, and was written to lately.
    fn is_parked(&self, transfer: TransferId, now: SystemTime) -> bool {
        let modified = |name: String| self.names.stat(&name).ok().flatten().map(|stat| stat.modified);
        let young = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < PARKED_KEPT) || at > now;
        modified(staging_name(transfer)).is_some() && modified(journal_name(transfer)).is_some_and(young)
    }

    pub(super) fn list(&self) -> Result<Vec<String>, GuestError> {
        self.names.list().map_err(|error| self.failed("cannot list", error))
    }

    fn reserve(&self, file: &dyn crate::storage::File, layout: &Layout) -> io::Result<()> {
        if self.sparse {
            return Ok(());
        }
        match file.reserve(layout.bytes()) {
            // It takes space as pages come, as it would with `sparse`.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    /// Lest it be the journal for which there is no space in the end.
    fn reserve_journal(&self, staging: &ImageStaging) -> io::Result<()> {
        if self.sparse {
            return Ok(());
        }
        match staging.reserve_journal() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn no_room(&self, name: &Name, layout: &Layout, error: io::Error) -> GuestError {
        if no_space(&error) {
            return GuestError::Other(format!(
                "no space left in {} for {name}: it needs {} bytes, and {} for its journal; free as many, or let the \
                 receiver take space only as pages come (--sparse) if most of the image is zeros",
                self.path.display(),
                layout.bytes(),
                room(layout)
            ));
        }
        self.failed(&format!("cannot make a file of {} bytes in", layout.bytes()), error)
    }

    fn no_room_to_go_on(&self, staging: &ImageStaging, error: io::Error) -> GuestError {
        if no_space(&error) {
            let what = format!(
                "no space left in {} to go on with {}: what has come stays for a day; free {} bytes, and send it again",
                self.path.display(),
                staging.name(),
                staging.lacks().saturating_add(room(staging.layout()))
            );
            return GuestError::Other(what);
        }
        self.failed(&format!("cannot go on with {} in", staging.name()), error)
    }

    /// A name of this directory, for messages.
    pub(super) fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// The directory, for messages.
    pub(super) fn place(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    pub(super) fn failed(&self, what: &str, error: io::Error) -> GuestError {
        GuestError::io(format!("{what} {}", self.path.display()), error)
    }
}

/// Whether a disk, or somebody's share of it, is full.
pub(super) fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A transfer that was cut off before it was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parked {
    /// Which.
    pub transfer: TransferId,
    /// From whom; nobody else can go on with it.
    pub peer: Fingerprint,
    /// What it will be called.
    pub name: Name,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of pages that are here, durable, and do not travel again.
    pub held_bytes: u64,
    /// When it was last written to.
    pub written: SystemTime,
    /// It is under way: an [`ImageStaging`] of this or another process has it.
    pub busy: bool,
}

impl Parked {
    /// From when on [`ImageFolder::sweep`] removes it, if nothing of it comes before: 24 hours after it was written to.
    pub fn kept_until(&self) -> SystemTime {
        self.written + PARKED_KEPT
    }
}

/// What [`ImageFolder::sweep`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files that are gone.
    pub removed: Vec<String>,
    /// Transfers that can be gone on with.
    pub parked: Vec<TransferId>,
}

/// How long a transfer that was cut off may be gone on with.
pub(super) const PARKED_KEPT: Duration = Duration::from_secs(86_400);
