//! Dictionaries on disk: a folder with a file for each.
//!
//! ```text
//!  NAME.dictionary    dwcp dictionary 1
//!                     id <BLAKE3 of the content, 64 hexadecimal digits>
//!                     made <seconds since 1970>
//!                     pages <pages that it was trained from>
//!                     bytes <of the content>
//!                     <empty line>
//!                     content
//! ```
//!
//! A file is written beside its place, synced and renamed, and only its owner may read it: its content is pieces of guests'
//! memory, in clear. When it is opened its content must have its id, so what rots or is exchanged is never used.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dwcp_hde::{Dictionary, DictionaryError, DictionaryId, MAX_DICTIONARY_BYTES, Trained};

use crate::storage::{Disk, File, Folder, Kind, Stat};
use crate::wire::{Name, NameError};

/// Dictionaries of a store: each is read, hashed and kept in memory by every process that uses them.
pub const MAX_STORED: usize = 64;
/// Bytes of a header at most; ours have some 130.
const MAX_HEADER: usize = 256;
const FIRST_LINE: &str = "dwcp dictionary 1";
const SUFFIX: &str = ".dictionary";
/// What is being written.
const UNFINISHED: &str = ".dictionary-new";
/// What nobody holds, and nobody wrote to for so long, a crash has left: writing takes milliseconds.
const LEFT: Duration = Duration::from_secs(60);

/// A folder of dictionaries. All calls may block.
#[derive(Debug)]
pub struct DictionaryStore {
    folder: Arc<dyn Folder>,
}

/// A dictionary with its name and what is known of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stored {
    /// Its name in the store.
    pub name: Name,
    /// When it was trained, by the clock of that node.
    pub made: SystemTime,
    /// Pages that it was trained from.
    pub pages: u64,
    /// It itself, whose id was checked.
    pub dictionary: Dictionary,
}

/// Why a store could not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no dictionary of that name.
    #[error("there is no dictionary {name}")]
    Unknown {
        /// The name.
        name: Name,
    },
    /// The store is full.
    #[error("there are {MAX_STORED} dictionaries already; remove one that is not used any more")]
    Full,
    /// Somebody laid more files into the folder than a store may have: none of them is used.
    #[error("there are {found} files *{SUFFIX} of at most {MAX_STORED}; {last} is the last of them by name")]
    TooMany {
        /// How many there are.
        found: usize,
        /// Name of one of them in the folder.
        last: String,
    },
    /// Another process writes a dictionary of that name.
    #[error("another process is making a dictionary {name}")]
    Busy {
        /// The name.
        name: Name,
    },
    /// A file is not what was written there.
    #[error("{file} is damaged or no dictionary: {flaw}")]
    Damaged {
        /// Its name in the folder.
        file: String,
        /// What is wrong.
        flaw: Flaw,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Its name is none that a dictionary may have.
    #[error("its name: {0}")]
    Name(#[from] NameError),
    /// No regular file.
    #[error("it is no regular file")]
    NoFile,
    /// Longer than any dictionary.
    #[error("it has {bytes} bytes, a dictionary has at most {}", MAX_HEADER + MAX_DICTIONARY_BYTES)]
    TooLong {
        /// How many it has.
        bytes: u64,
    },
    /// The lines before the content.
    #[error("its header does not have the line `{line} ...`")]
    Header {
        /// The line that is missing or makes no sense.
        line: &'static str,
    },
    /// Cut off, or longer than it says.
    #[error("it says {said} bytes and has {found}")]
    Length {
        /// By its header.
        said: usize,
        /// In the file.
        found: usize,
    },
    /// The content is not what it was.
    #[error("its content has the id {found}, not {said}")]
    Id {
        /// By its header.
        said: String,
        /// Of the content.
        found: DictionaryId,
    },
    /// The content is none that a dictionary may have.
    #[error(transparent)]
    Content(#[from] DictionaryError),
}

impl DictionaryStore {
    /// Opens the store in a directory of this machine, which must exist.
    ///
    /// # Errors
    /// There is none, or it may not be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let disk = Disk::open(path).map_err(|source| io_error(format!("cannot open {}", path.display()), source))?;
        Ok(Self::over(Arc::new(disk)))
    }

    /// A store over any storage.
    pub fn over(folder: Arc<dyn Folder>) -> Self {
        Self { folder }
    }

    /// Keeps a dictionary, durably. One of the same name is replaced. Files that a crash left unfinished a minute before
    /// `made`, or earlier, are removed, whatever their name.
    ///
    /// # Errors
    /// The store is full, somebody else writes the same name, or the disk fails; what was there before is as it was then.
    pub fn add(&self, name: &Name, trained: &Trained, made: SystemTime) -> Result<(), StoreError> {
        let file = format!("{name}{SUFFIX}");
        let names = self.files()?;
        if names.len() >= MAX_STORED && !names.contains(&file) {
            return Err(StoreError::Full);
        }
        self.sweep(made);
        let unfinished = format!("{name}{UNFINISHED}");
        let writing = |source| io_error(format!("cannot write {unfinished}"), source);
        let handle = self.claim(&unfinished).map_err(writing)?.ok_or(StoreError::Busy { name: name.clone() })?;
        let content = trained.dictionary.bytes();
        let seconds = made.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (id, pages, bytes) = (trained.dictionary.id(), trained.pages, content.len());
        let header = format!("{FIRST_LINE}\nid {id}\nmade {seconds}\npages {pages}\nbytes {bytes}\n\n");
        let all = [header.as_bytes(), content].concat();
        let written = handle.set_len(0).and_then(|()| handle.write_at(0, &all)).and_then(|()| handle.sync());
        if let Err(source) = written {
            // A disk that is full shall not stay so for our sake.
            let _ = self.folder.remove(&unfinished);
            return Err(writing(source));
        }
        let placed = self.folder.replace(&unfinished, &file).and_then(|()| self.folder.sync());
        placed.map_err(|source| io_error(format!("cannot make {file} durable"), source))
    }

    /// Removes what a crash left. What cannot be removed harms nobody but the disk.
    fn sweep(&self, now: SystemTime) {
        for name in self.folder.list().unwrap_or_default().iter().filter(|name| name.ends_with(UNFINISHED)) {
            let old = |stat: &Stat| now.duration_since(stat.modified).is_ok_and(|age| age >= LEFT);
            let stat = self.folder.stat(name).ok().flatten().filter(old);
            if stat.is_none_or(|stat| stat.kind != Kind::Regular) {
                continue;
            }
            // Whoever writes holds its lock.
            if let Ok(file) = self.folder.open(name)
                && file.lock().unwrap_or(false)
            {
                let _ = self.folder.remove(name);
            }
        }
    }

    /// A file that nobody else writes. `None`: somebody does. What a crash left is written over.
    fn claim(&self, name: &str) -> io::Result<Option<Arc<dyn File>>> {
        let file = match self.folder.create(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.folder.open(name)?,
            other => other?,
        };
        if !file.lock()? {
            return Ok(None);
        }
        // Who held it may have renamed it meanwhile: then it is a whole dictionary.
        let (now, ours) = (self.folder.stat(name)?, file.stat()?);
        Ok(now.is_some_and(|now| now.id == ours.id).then_some(file))
    }

    /// The dictionary of this name.
    ///
    /// # Errors
    /// There is none, or its file is not what was written.
    pub fn load(&self, name: &Name) -> Result<Stored, StoreError> {
        self.read(&format!("{name}{SUFFIX}"))
    }

    /// All of them, the newest first; the error of one that cannot be used is in its place, at the end.
    ///
    /// # Errors
    /// The folder cannot be read, or has more than [`MAX_STORED`].
    pub fn list(&self) -> Result<(Vec<Stored>, Vec<StoreError>), StoreError> {
        let names = self.files()?;
        if let Some(last) = names.last().filter(|_| names.len() > MAX_STORED) {
            return Err(StoreError::TooMany { found: names.len(), last: last.clone() });
        }
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for name in names {
            match self.read(&name) {
                Ok(stored) => whole.push(stored),
                Err(error) => damaged.push(error),
            }
        }
        whole.sort_by(|a, b| b.made.cmp(&a.made).then_with(|| a.name.cmp(&b.name)));
        Ok((whole, damaged))
    }

    /// All of them for a transfer, the newest first.
    ///
    /// # Errors
    /// One cannot be used: the error names its file. A transfer without it would only be larger, but nobody would know why.
    pub fn dictionaries(&self) -> Result<Vec<Dictionary>, StoreError> {
        let (whole, damaged) = self.list()?;
        damaged.into_iter().next().map_or_else(|| Ok(whole.into_iter().map(|one| one.dictionary).collect()), Err)
    }

    /// Names of the files, sorted.
    fn files(&self) -> Result<Vec<String>, StoreError> {
        let listing = |source| io_error("cannot list the dictionaries".to_owned(), source);
        let mut names = self.folder.list().map_err(listing)?;
        names.retain(|name| name.ends_with(SUFFIX));
        names.sort();
        Ok(names)
    }

    fn read(&self, file: &str) -> Result<Stored, StoreError> {
        let damaged = |flaw| StoreError::Damaged { file: file.to_owned(), flaw };
        let reading = |source| io_error(format!("cannot read {file}"), source);
        let name = Name::new(file.strip_suffix(SUFFIX).unwrap_or(file)).map_err(|error| damaged(error.into()))?;
        // Before it is opened: it may be a pipe or a link.
        match self.folder.stat(file).map_err(reading)? {
            None => return Err(StoreError::Unknown { name }),
            Some(stat) if stat.kind != Kind::Regular => return Err(damaged(Flaw::NoFile)),
            Some(_) => {}
        }
        let handle = self.folder.open(file).map_err(reading)?;
        let bytes = handle.stat().map_err(reading)?.bytes;
        let length = usize::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_HEADER + MAX_DICTIONARY_BYTES);
        let mut all = vec![0; length.ok_or_else(|| damaged(Flaw::TooLong { bytes }))?];
        handle.read_at(0, &mut all).map_err(reading)?;
        parse(name, &all).map_err(damaged)
    }
}

/// What a file holds. spec: K-11
fn parse(name: Name, all: &[u8]) -> Result<Stored, Flaw> {
    let first = Flaw::Header { line: FIRST_LINE };
    let end = all.windows(2).take(MAX_HEADER).position(|pair| pair == b"\n\n").ok_or(first)?;
    let (header, rest) = all.split_at_checked(end + 2).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| Flaw::Header { line: FIRST_LINE })?;
    let mut lines = header.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(Flaw::Header { line: FIRST_LINE });
    }
    let mut value = |line: &'static str| {
        let text = lines.next().and_then(|text| text.strip_prefix(line)?.strip_prefix(' '));
        text.ok_or(Flaw::Header { line })
    };
    let said = value("id")?.to_owned();
    let mut number = |line| value(line)?.parse::<u64>().map_err(|_| Flaw::Header { line });
    let (made, pages, bytes) = (number("made")?, number("pages")?, number("bytes")?);
    let bytes = usize::try_from(bytes).map_err(|_| Flaw::Header { line: "bytes" })?;
    if bytes != rest.len() {
        return Err(Flaw::Length { said: bytes, found: rest.len() });
    }
    let dictionary = Dictionary::new(rest.to_vec())?;
    if said != dictionary.id().to_string() {
        return Err(Flaw::Id { said, found: dictionary.id() });
    }
    let made = UNIX_EPOCH.checked_add(Duration::from_secs(made)).ok_or(Flaw::Header { line: "made" })?;
    Ok(Stored { name, made, pages, dictionary })
}

fn io_error(what: String, source: io::Error) -> StoreError {
    StoreError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn trained(byte: u8) -> Trained {
        Trained { dictionary: Dictionary::new(vec![byte; 1000]).unwrap(), pages: 7 }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_kept_comes_back_newest_first_and_only_the_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = DictionaryStore::open(folder.path()).unwrap();
        store.add(&name("old"), &trained(1), at(10)).unwrap();
        store.add(&name("new"), &trained(2), at(20)).unwrap();
        store.add(&name("old"), &trained(3), at(11)).unwrap();
        let all = DictionaryStore::open(folder.path()).unwrap().dictionaries().unwrap();
        assert_eq!(all, [trained(2).dictionary, trained(3).dictionary]);
        let one = store.load(&name("old")).unwrap();
        assert_eq!((one.made, one.pages, &one.dictionary), (at(11), 7, &trained(3).dictionary));
        assert!(matches!(store.load(&name("none")), Err(StoreError::Unknown { .. })));
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 2, "nothing is left beside them");
        assert!(files.iter().all(|file| file.metadata().unwrap().permissions().mode() & 0o777 == 0o600));
    }

    // spec: K-11
    #[test]
    fn a_file_that_was_cut_changed_or_exchanged_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = DictionaryStore::open(folder.path()).unwrap();
        store.add(&name("web"), &trained(1), at(10)).unwrap();
        let path = folder.path().join("web.dictionary");
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = store.dictionaries().unwrap_err();
            assert!(error.to_string().starts_with("web.dictionary is damaged"), "{error}");
        };
        for cut in [0, 1, 17, 40, whole.len() - 1000, whole.len() - 1] {
            refused(&whole[..cut]);
        }
        for at in 0..whole.len() {
            let number = whole[..at].split(|byte| *byte == b'\n').next_back().unwrap();
            if number.starts_with(b"made ") || number.starts_with(b"pages ") {
                continue; // told to people, and nothing else
            }
            let mut changed = whole.clone();
            changed[at] ^= 1;
            refused(&changed);
        }
        refused(&[whole.as_slice(), b"x"].concat());
        refused(&vec![b'\n'; MAX_HEADER + MAX_DICTIONARY_BYTES + 1]);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(store.dictionaries().unwrap(), [trained(1).dictionary]);
    }

    #[test]
    fn links_and_foreign_names_are_no_dictionaries() {
        let folder = tempfile::tempdir().unwrap();
        let store = DictionaryStore::open(folder.path()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("link.dictionary")).unwrap();
        assert!(matches!(store.load(&name("link")), Err(StoreError::Damaged { flaw: Flaw::NoFile, .. })));
        std::fs::write(folder.path().join("Not A Name.dictionary"), b"x").unwrap();
        let (whole, damaged) = store.list().unwrap();
        assert_eq!((whole.len(), damaged.len()), (0, 2));
    }

    #[test]
    fn what_a_crash_left_is_swept_by_the_next_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = DictionaryStore::open(folder.path()).unwrap();
        let path = |name: &str| folder.path().join(format!("{name}{UNFINISHED}"));
        let held = store.claim(&format!("held{UNFINISHED}")).unwrap().unwrap();
        std::fs::write(path("crashed"), "dwcp dict").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let now = path("crashed").metadata().unwrap().modified().unwrap();
        store.add(&name("young"), &trained(1), now).unwrap();
        assert!(path("crashed").exists(), "somebody may just be about to lock it");
        store.add(&name("web"), &trained(1), now + 2 * LEFT).unwrap();
        assert!(!path("crashed").exists() && path("held").exists() && path("folder").exists());
        drop(held);
    }

    #[test]
    fn a_store_has_a_bound_and_one_writer_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = DictionaryStore::open(folder.path()).unwrap();
        for number in 0..MAX_STORED {
            store.add(&name(&format!("d{number}")), &trained(1), at(1)).unwrap();
        }
        assert!(matches!(store.add(&name("more"), &trained(1), at(1)), Err(StoreError::Full)));
        store.add(&name("d0"), &trained(2), at(2)).unwrap();
        let other = store.claim(&format!("d1{UNFINISHED}")).unwrap().unwrap();
        assert!(matches!(store.add(&name("d1"), &trained(2), at(2)), Err(StoreError::Busy { .. })));
        drop(other);
        store.add(&name("d1"), &trained(2), at(2)).unwrap();
        // Nobody trained this one: it was copied here.
        std::fs::copy(folder.path().join("d1.dictionary"), folder.path().join("web.dictionary")).unwrap();
        let error = store.list().unwrap_err();
        assert!(matches!(&error, StoreError::TooMany { found: 65, last } if last == "web.dictionary"), "{error}");
        assert!(
            store.dictionaries().unwrap_err().to_string().starts_with("there are 65 files *.dictionary of at most 64")
        );
    }
}
