use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::error::{BaselineError, Damage};
use super::key::{ManifestDigest, Salt, StoreKey, random};
use super::manifest::{About, Chunk};
use super::names::{self, FileName, HEADER, ManifestName};
use super::opened::Baseline;
use super::pack::Pack;
use super::sealed::{self, HEAD};
use crate::storage::{Disk, File, Folder, Kind};
use crate::wire::{Digest, Name};

/// What a store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on disk of all baselines together. What does not fit is refused, nothing is thrown away for it.
    pub bytes: u64,
    /// Pages of one baseline, rounded up to 64 for each region. Opening one may take 48 bytes of memory for each.
    pub pages: u64,
}

impl Default for Limits {
    /// 64 GiB on disk, and images of 1 TiB.
    fn default() -> Self {
        Self { bytes: 64 << 30, pages: 1 << 28 }
    }
}

/// A folder of baselines: earlier states of guests, of which a transfer sends only what has changed since.
///
/// Several threads and processes may use one folder at once. Reading waits for nobody; [`add`](Self::add) and
/// [`collect`](Self::collect) wait for each other. All calls may block. A crash at any moment leaves each baseline whole or
/// not there, and at most garbage, which the next collection removes.
#[derive(Debug)]
pub struct BaselineStore {
    pub(super) folder: Arc<dyn Folder>,
    pub(super) key: StoreKey,
    pub(super) limits: Limits,
    #[cfg(feature = "planted-bugs")]
    salts: Option<std::sync::atomic::AtomicU64>,
}

/// What a listing tells of a baseline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// By which nodes agree on it.
    pub digest: ManifestDigest,
    /// Whose it is, its name, layout and root.
    pub about: About,
    /// Bytes of its pages on disk, with its manifest.
    pub bytes: u64,
    /// Those of them that no other baseline uses: what removing it gives back.
    pub own_bytes: u64,
    /// When it was made, by the file system's clock.
    pub made: SystemTime,
    /// When it was opened last.
    pub used: SystemTime,
    /// The first of its packs that is missing or too short, and how: it cannot be opened. Packs are looked at, not read, so
    /// `None` does not say that all its pages are whole.
    pub damage: Option<(String, Damage)>,
    pub(super) name: ManifestName,
}

/// All baselines of a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// By tenant and name, the newest of each name first.
    pub baselines: Vec<Summary>,
    /// Manifests that cannot be used, and why.
    pub damaged: Vec<(String, BaselineError)>,
}

/// A manifest's head, and the chunks that it refers to.
pub(super) struct Indexed {
    pub(super) summary: Summary,
    pub(super) chunks: Vec<Chunk>,
}

/// Indexes of all manifests.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) indexed: Vec<Indexed>,
    /// A collection removes these: what they say is lost.
    pub(super) damaged: Vec<(String, BaselineError)>,
    /// These may be whole: a right is missing, or a descriptor.
    pub(super) unreadable: Vec<(String, BaselineError)>,
}

impl BaselineStore {
    /// Opens a store in a directory of this machine.
    ///
    /// # Errors
    /// There is none; it was made with another key; it is damaged or cannot be read.
    pub fn open(path: impl AsRef<Path>, key: StoreKey, limits: Limits) -> Result<Self, BaselineError> {
        Self::over(disk(path.as_ref())?, key, limits)
    }

    /// Opens a store in a directory of this machine, and makes it when there is none. The directory must exist.
    ///
    /// # Errors
    /// As [`open`](Self::open), and the directory cannot be written.
    pub fn make(path: impl AsRef<Path>, key: StoreKey, limits: Limits) -> Result<Self, BaselineError> {
        Self::make_over(disk(path.as_ref())?, key, limits)
    }

    /// Opens a store over any storage: what an object store would implement is [`Folder`].
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over(folder: Arc<dyn Folder>, key: StoreKey, limits: Limits) -> Result<Self, BaselineError> {
        let store = Self {
            folder,
            key,
            limits,
            #[cfg(feature = "planted-bugs")]
            salts: None,
        };
        store.check_header()?;
        Ok(store)
    }

    /// Opens a store over any storage, and makes it when there is none.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn make_over(folder: Arc<dyn Folder>, key: StoreKey, limits: Limits) -> Result<Self, BaselineError> {
        make_header(&*folder, &key)?;
        Self::over(folder, key, limits)
    }

    /// Draws salts from a seed, so that a simulated life can be lived again. Never in a product build.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_salts_of(self, seed: u64) -> Self {
        Self { salts: Some(seed.into()), ..self }
    }

    fn check_header(&self) -> Result<(), BaselineError> {
        let file = match self.folder.open_to_read(HEADER) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.without_header()?),
            other => other.map_err(|error| BaselineError::io(format!("cannot open {HEADER}"), error))?,
        };
        let mut header = [0; HEAD + CHECK];
        let damaged = |error| match error {
            BaselineError::Damaged { .. } => BaselineError::DamagedHeader,
            other => other,
        };
        sealed::read_at(&*file, 0, &mut header, HEADER).map_err(damaged)?;
        let (head, check) = header.split_at(HEAD);
        let salt = sealed::parse_head(sealed::Kind::Store, head, HEADER).map_err(damaged)?;
        if check == header_check(&self.key, head, &salt) {
            return Ok(());
        }
        // The sum needs no key, so it tells which of the two it is.
        let whole = check.get(KEYED..) == Some(&header_sum(head, check));
        Err(if whole { BaselineError::WrongKey } else { BaselineError::DamagedHeader })
    }

    /// What is wrong with a folder that has no header.
    fn without_header(&self) -> Result<BaselineError, BaselineError> {
        Ok(match sealed_files(&*self.folder, &self.key)? {
            Sealed::None => BaselineError::NoStore,
            Sealed::Opened => BaselineError::NoHeader,
            Sealed::Closed => BaselineError::NoneOpened,
        })
    }

    /// A salt that no file has had.
    pub(super) fn salt(&self) -> Result<Salt, BaselineError> {
        #[cfg(feature = "planted-bugs")]
        if let Some(salts) = &self.salts {
            let number = salts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Ok(*blake3::hash(&number.to_le_bytes()).as_bytes());
        }
        random()
    }

    /// Bytes that all files of the store take on disk.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn bytes(&self) -> Result<u64, BaselineError> {
        let looking = |error| BaselineError::io("cannot look at the files of the store", error);
        let mut bytes = 0;
        for name in self.folder.list().map_err(looking)? {
            if FileName::of(&name) != FileName::Other {
                bytes += self.folder.stat(&name).map_err(looking)?.map_or(0, |stat| stat.used);
            }
        }
        Ok(bytes)
    }

    /// All baselines, and what of them is damaged; that packs are there is looked at, pages are not read.
    ///
    /// # Errors
    /// The folder cannot be read, or has files of a newer version.
    pub fn list(&self) -> Result<Listing, BaselineError> {
        let mut survey = self.survey()?;
        survey.count_own();
        let mut packs = HashMap::new();
        for indexed in &mut survey.indexed {
            indexed.summary.damage = self.pack_damage(indexed, &mut packs)?;
        }
        let mut baselines: Vec<Summary> = survey.indexed.into_iter().map(|indexed| indexed.summary).collect();
        baselines.sort_by(|a, b| order(&a.about).cmp(&order(&b.about)));
        let damaged = survey.damaged.into_iter().chain(survey.unreadable).collect();
        Ok(Listing { baselines, damaged })
    }

    /// What is wrong with the packs of a baseline, as far as that shows without reading them. `seen`: packs that were looked at
    /// already, and up to where they are there.
    fn pack_damage(
        &self,
        indexed: &Indexed,
        seen: &mut HashMap<Salt, u64>,
    ) -> Result<Option<(String, Damage)>, BaselineError> {
        for (salt, end) in indexed.packs() {
            if seen.get(&salt).is_some_and(|reaches| *reaches >= end) {
                continue;
            }
            match Pack::open(&*self.folder, &self.key, &salt, end) {
                Ok(_) => {
                    seen.insert(salt, end);
                }
                Err(BaselineError::Damaged { file, damage }) => {
                    // A collection that runs meanwhile removes manifests first.
                    let manifest = indexed.summary.name.file();
                    return Ok(self.find(&manifest)?.map(|_| (file, damage)));
                }
                // Of this baseline alone: a disk that cannot read one file has others.
                Err(BaselineError::Io { what, source }) => {
                    return Ok(Some((what, Damage::Unreadable { why: source.to_string() })));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The digest of a tenant's baseline with this root: of what a transfer between two nodes ended with.
    pub fn digest(&self, tenant: &Name, root: Digest) -> ManifestDigest {
        self.key.digest(tenant, root)
    }

    /// Opens a tenant's baseline by its digest, and checks all but its pages: those are checked when they are read.
    ///
    /// # Errors
    /// The tenant has none with this digest, or only damaged ones.
    pub fn baseline(&self, tenant: &Name, digest: ManifestDigest) -> Result<Baseline, BaselineError> {
        let mut failed = BaselineError::Unknown { tenant: tenant.clone(), what: digest.to_string() };
        for name in self.manifests()?.into_iter().filter(|name| name.digest == digest) {
            match self.pinned(&name) {
                Ok(Some(baseline)) if baseline.about().tenant == *tenant => {
                    self.touch(&name);
                    return Ok(baseline);
                }
                Ok(_) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Opens the first of these that is here, is whole but for its pages, and that `takes` does not decline; and tells which
    /// of them it is. What cannot be opened is passed over. spec: O-9
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn first_of(
        &self,
        digests: &[ManifestDigest],
        takes: &dyn Fn(&About) -> bool,
    ) -> Result<Option<(usize, Baseline)>, BaselineError> {
        let manifests = self.manifests()?;
        for (number, digest) in digests.iter().enumerate() {
            for name in manifests.iter().filter(|name| name.digest == *digest) {
                match self.pinned(name) {
                    Ok(Some(baseline)) if takes(baseline.about()) => {
                        self.touch(name);
                        return Ok(Some((number, baseline)));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a baseline that a sender names cannot be used; the next one is tried");
                    }
                }
            }
        }
        Ok(None)
    }

    /// Opens what a listing told of, without counting that as a use of it.
    ///
    /// # Errors
    /// It has been collected since, or is damaged.
    pub fn look_into(&self, summary: &Summary) -> Result<Baseline, BaselineError> {
        let About { tenant, name, .. } = &summary.about;
        let unknown = || BaselineError::Unknown { tenant: tenant.clone(), what: name.to_string() };
        self.pinned(&summary.name)?.ok_or_else(unknown)
    }

    /// Counts a baseline that a listing told of as used now, for [`collect`](Self::collect).
    pub fn use_of(&self, summary: &Summary) {
        self.touch(&summary.name);
    }

    /// Opens a manifest and keeps others from collecting it. `None`: it has been collected.
    pub(super) fn pinned(&self, name: &ManifestName) -> Result<Option<Baseline>, BaselineError> {
        let file = name.file();
        let Some(pin) = self.find(&file)? else { return Ok(None) };
        let locking = |error| BaselineError::io(format!("cannot lock {file}"), error);
        if !pin.share().map_err(locking)? {
            return Ok(None);
        }
        // Only now is it sure that nobody removes it, if nobody has.
        let looking = |error| BaselineError::io(format!("cannot look at {file}"), error);
        let (now, then) = (self.folder.stat(&file).map_err(looking)?, pin.stat().map_err(looking)?);
        if now.is_none_or(|now| now.id != then.id) {
            return Ok(None);
        }
        let manifest = sealed::read_manifest(&*pin, &file, &self.key, self.limits.pages)?;
        Baseline::new(&*self.folder, &self.key, name.clone(), manifest, pin).map(Some)
    }

    /// A file that is open to be read. `None`: there is none.
    fn find(&self, name: &str) -> Result<Option<Arc<dyn File>>, BaselineError> {
        match self.folder.open_to_read(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BaselineError::io(format!("cannot open {name}"), error)),
        }
    }

    /// Remembers the moment by the time of a file. What cannot be remembered makes the baseline look older, no more.
    fn touch(&self, name: &ManifestName) {
        let used = name.used();
        let file = self.folder.open(&used).or_else(|_| self.folder.create(&used));
        let _ = file.and_then(|file| file.write_at(0, &[0]));
    }

    pub(super) fn manifests(&self) -> Result<Vec<ManifestName>, BaselineError> {
        let names = self.folder.list().map_err(|error| BaselineError::io("cannot list the store", error))?;
        let manifest = |name: String| match FileName::of(&name) {
            FileName::Manifest(name) => Some(name),
            _ => None,
        };
        let mut manifests: Vec<_> = names.into_iter().filter_map(manifest).collect();
        manifests.sort();
        Ok(manifests)
    }

    /// The heads and chunks of all manifests. One that is collected meanwhile is left out, and one that cannot be read takes
    /// nothing from the others.
    pub(super) fn survey(&self) -> Result<Survey, BaselineError> {
        let mut survey = Survey::default();
        for name in self.manifests()? {
            let file = name.file();
            match self.index(name) {
                Ok(indexed) => survey.indexed.extend(indexed),
                Err(BaselineError::Io { what, source }) => match self.lost(&file, &source) {
                    Some(damage) => survey.damaged.push((file.clone(), BaselineError::damaged(&file, damage))),
                    None => survey.unreadable.push((file, BaselineError::Io { what, source })),
                },
                Err(error) if error.is_damage() => survey.damaged.push((file, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(survey)
    }

    /// How what the system does not read is gone: the disk cannot, or there is no file but a link or a directory. `None`: it may
    /// be read another time, or by somebody else.
    fn lost(&self, name: &str, error: &io::Error) -> Option<Damage> {
        match self.folder.stat(name).ok()??.kind {
            Kind::Folder => Some(Damage::Directory),
            Kind::Regular if error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error()) => None,
            _ => Some(Damage::Unreadable { why: error.to_string() }),
        }
    }

    fn index(&self, name: ManifestName) -> Result<Option<Indexed>, BaselineError> {
        let path = name.file();
        let Some(file) = self.find(&path)? else { return Ok(None) };
        let (about, chunks) = sealed::read_index(&*file, &path, &self.key, self.limits.pages)?;
        if self.key.digest(&about.tenant, about.root) != name.digest {
            return Err(BaselineError::damaged(&path, Damage::Contents { what: "it is another baseline's" }));
        }
        let looking = |error| BaselineError::io(format!("cannot look at {path}"), error);
        let stat = file.stat().map_err(looking)?;
        let used = self.folder.stat(&name.used()).map_err(looking)?.map_or(stat.modified, |used| used.modified);
        let bytes = stat.bytes + chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum::<u64>();
        let (digest, made) = (name.digest, stat.modified);
        let used = used.max(made);
        let summary = Summary { digest, about, bytes, own_bytes: bytes, made, used, damage: None, name };
        Ok(Some(Indexed { summary, chunks }))
    }

    /// Waits until nobody else adds or collects, and keeps others from it for as long as what is returned lives.
    pub(super) fn write_lock(&self) -> Result<Arc<dyn File>, BaselineError> {
        let locking = |error| BaselineError::io(format!("cannot lock {HEADER}"), error);
        let file = self.folder.open(HEADER).map_err(locking)?;
        file.wait_lock().map_err(locking)?;
        Ok(file)
    }

    /// Whether [`add`](Self::add) and [`collect`](Self::collect) would have to wait for somebody.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn is_busy(&self) -> Result<bool, BaselineError> {
        let locking = |error| BaselineError::io(format!("cannot lock {HEADER}"), error);
        let free = self.folder.open(HEADER).and_then(|file| file.lock()).map_err(locking)?;
        Ok(!free)
    }

    pub(super) fn sync_names(&self) -> Result<(), BaselineError> {
        self.folder.sync().map_err(|error| BaselineError::io("making names durable", error))
    }
}

/// By tenant and name, the newest first.
fn order(about: &About) -> (&str, &str, std::cmp::Reverse<u64>) {
    (about.tenant.as_str(), about.name.as_str(), std::cmp::Reverse(about.generation))
}

fn disk(path: &Path) -> Result<Arc<dyn Folder>, BaselineError> {
    let disk = Disk::open(path)
        .map_err(|error| BaselineError::io(format!("cannot open the directory {}", path.display()), error))?;
    Ok(Arc::new(disk))
}

/// Bytes after the head of a header: a check by the key, and a sum over head and check.
const CHECK: usize = KEYED + 16;
const KEYED: usize = 32;

fn header_check(key: &StoreKey, head: &[u8], salt: &Salt) -> Vec<u8> {
    let mut check = key.check(salt).to_vec();
    let sum = header_sum(head, &check);
    check.extend_from_slice(&sum);
    check
}

fn header_sum(head: &[u8], check: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(check.get(..KEYED).unwrap_or_default());
    hasher.finalize().as_bytes().first_chunk().copied().unwrap_or_default()
}

/// What a folder has beside its header.
enum Sealed {
    /// No pack and no manifest.
    None,
    /// At least one manifest that the key opens.
    Opened,
    /// None that it opens.
    Closed,
}

fn sealed_files(folder: &dyn Folder, key: &StoreKey) -> Result<Sealed, BaselineError> {
    let mut found = Sealed::None;
    for name in folder.list().map_err(|error| BaselineError::io("cannot list the store", error))? {
        match FileName::of(&name) {
            FileName::Manifest(_) => {
                let file = folder.open_to_read(&name);
                if file.is_ok_and(|file| sealed::read_index(&*file, &name, key, u64::MAX).is_ok()) {
                    return Ok(Sealed::Opened);
                }
                found = Sealed::Closed;
            }
            FileName::Pack(_) => found = Sealed::Closed,
            _ => {}
        }
    }
    Ok(found)
}

/// Makes the header unless there is one, or it would be that of other baselines: with it their own key would be refused, and
/// a collection with this one would remove them. Of two processes that do so at once, the first one's counts.
fn make_header(folder: &dyn Folder, key: &StoreKey) -> Result<(), BaselineError> {
    let making = |error| BaselineError::io("making the store's header", error);
    let is_there = || Ok::<_, BaselineError>(folder.stat(HEADER).map_err(making)?.is_some());
    if is_there()? {
        return Ok(());
    }
    if matches!(sealed_files(folder, key)?, Sealed::Closed) {
        // Unless another process has made it since, and adds already.
        return if is_there()? { Ok(()) } else { Err(BaselineError::NoneOpened) };
    }
    let salt = random()?;
    let unfinished = names::unfinished_header(&salt);
    let write = || {
        let file = folder.create(&unfinished)?;
        let mut header = sealed::head(sealed::Kind::Store, &salt);
        let check = header_check(key, &header, &salt);
        header.extend_from_slice(&check);
        file.write_at(0, &header)?;
        file.sync()?;
        match folder.rename(&unfinished, HEADER) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => folder.remove(&unfinished)?,
            other => other?,
        }
        folder.sync()
    };
    write().map_err(|error| {
        // What cannot be removed is removed by the first collection.
        let _ = folder.remove(&unfinished);
        making(error)
    })
}
