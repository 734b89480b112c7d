//! Sealed files: a head in clear, then sealed pieces.
//!
//! ```text
//!  head        magic [8] | format u16 | salt [32]
//!  manifest    head | length u32, sealed segment | length u32, sealed segment | ...       the last one is sealed as such
//!  pack        head | sealed chunk | sealed chunk | ...                                  manifests know where each stands
//! ```

use std::io;
use std::sync::Arc;

use super::error::{BaselineError, Damage};
use super::key::{FileKey, Salt, StoreKey, TAG};
use super::manifest::{About, Chunk, Draft, FORMAT, MAX_SEGMENT, Manifest};
use crate::storage::{File, Folder};

/// Bytes of a head.
pub(super) const HEAD: usize = 8 + 2 + 32;

/// What begins with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Store,
    Pack,
    Manifest,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Store => b"DWCPstor",
            Self::Pack => b"DWCPpack",
            Self::Manifest => b"DWCPbase",
        }
    }
}

pub(super) fn head(kind: Kind, salt: &Salt) -> Vec<u8> {
    let mut head = kind.magic().to_vec();
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(salt);
    head
}

/// The salt of a head. `name` is for messages.
pub(super) fn parse_head(kind: Kind, head: &[u8], name: &str) -> Result<Salt, BaselineError> {
    let parsed = head.split_first_chunk::<8>().and_then(|(magic, rest)| Some((magic, rest.split_first_chunk::<2>()?)));
    let magic = || BaselineError::damaged(name, Damage::Magic);
    let Some((_, (format, rest))) = parsed.filter(|(magic, _)| *magic == kind.magic()) else { return Err(magic()) };
    let found = u16::from_le_bytes(*format);
    if found != FORMAT {
        return Err(BaselineError::Format { file: name.to_owned(), found });
    }
    rest.first_chunk().copied().ok_or_else(magic)
}

pub(super) fn read_head(kind: Kind, file: &dyn File, name: &str) -> Result<Salt, BaselineError> {
    let mut head = [0; HEAD];
    read_at(file, 0, &mut head, name)?;
    parse_head(kind, &head, name)
}

/// Reads bytes that must be there.
pub(super) fn read_at(file: &dyn File, at: u64, into: &mut [u8], name: &str) -> Result<(), BaselineError> {
    file.read_at(at, into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BaselineError::damaged(name, Damage::Truncated { at: at + length(into.len()) }),
        _ => BaselineError::io(format!("cannot read {name} at byte {at}"), error),
    })
}

pub(super) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Opens a file that must be there, to read it.
pub(super) fn open(folder: &dyn Folder, name: &str) -> Result<Arc<dyn File>, BaselineError> {
    folder.open_to_read(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BaselineError::damaged(name, Damage::Missing),
        _ => BaselineError::io(format!("cannot open {name}"), error),
    })
}

/// Writes a manifest to an empty file, and makes its bytes durable. Returns how many there are.
pub(super) fn write_manifest(
    file: &dyn File,
    name: &str,
    key: &StoreKey,
    salt: &Salt,
    manifest: &Manifest,
) -> Result<u64, BaselineError> {
    let key = key.of_file(salt)?;
    let write = |at, bytes: &[u8]| {
        file.write_at(at, bytes).map_err(|error| BaselineError::io(format!("writing {name}"), error))
    };
    let head = head(Kind::Manifest, salt);
    write(0, &head)?;
    let mut at = length(head.len());
    manifest.encode(&mut |mut segment, last| {
        key.seal(at, last, &mut segment)?;
        let bytes = u32::try_from(segment.len()).unwrap_or(u32::MAX).to_le_bytes();
        write(at, &bytes)?;
        write(at + 4, &segment)?;
        at += 4 + length(segment.len());
        Ok::<_, BaselineError>(())
    })?;
    file.sync().map_err(|error| BaselineError::io(format!("making {name} durable"), error))?;
    Ok(at)
}

/// A manifest, all of it, with layouts of at most so many pages.
pub(super) fn read_manifest(
    file: &dyn File,
    name: &str,
    key: &StoreKey,
    most_pages: u64,
) -> Result<Manifest, BaselineError> {
    let (mut segments, mut draft) = begin(file, name, key, most_pages)?;
    while let Some(segment) = segments.next()? {
        draft.take(segment).map_err(|damage| BaselineError::damaged(name, damage))?;
    }
    draft.finish().map_err(|damage| BaselineError::damaged(name, damage))
}

/// What a manifest says before it comes to pages.
pub(super) fn read_index(
    file: &dyn File,
    name: &str,
    key: &StoreKey,
    most_pages: u64,
) -> Result<(About, Vec<Chunk>), BaselineError> {
    let (mut segments, mut draft) = begin(file, name, key, most_pages)?;
    while draft.wants_chunks() {
        let missing = Damage::Contents { what: "it names fewer pages than it should" };
        let segment = segments.next()?.ok_or_else(|| BaselineError::damaged(name, missing))?;
        draft.take(segment).map_err(|damage| BaselineError::damaged(name, damage))?;
    }
    Ok(draft.into_index())
}

fn begin<'a>(
    file: &'a dyn File,
    name: &'a str,
    key: &StoreKey,
    most_pages: u64,
) -> Result<(Segments<'a>, Draft), BaselineError> {
    let salt = read_head(Kind::Manifest, file, name)?;
    let end = file.stat().map_err(|error| BaselineError::io(format!("cannot look at {name}"), error))?.bytes;
    let mut segments = Segments { file, name, key: key.of_file(&salt)?, at: length(HEAD), end, sealed: Vec::new() };
    let missing = || BaselineError::damaged(name, Damage::Truncated { at: length(HEAD) + 1 });
    let draft = Draft::begin(segments.next()?.ok_or_else(missing)?, most_pages);
    Ok((segments, draft.map_err(|damage| BaselineError::damaged(name, damage))?))
}

/// The plain segments of a manifest. What ends with the file must have been sealed as the last one, so a file that was cut
/// off anywhere is told.
struct Segments<'a> {
    file: &'a dyn File,
    name: &'a str,
    key: FileKey,
    at: u64,
    end: u64,
    sealed: Vec<u8>,
}

impl Segments<'_> {
    fn next(&mut self) -> Result<Option<&[u8]>, BaselineError> {
        if self.at == self.end {
            return Ok(None);
        }
        let at = self.at;
        let mut bytes = [0; 4];
        read_at(self.file, at, &mut bytes, self.name)?;
        let bytes = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        let damage = BaselineError::damaged(self.name, Damage::Piece { at });
        let next = at + 4 + length(bytes);
        if bytes > MAX_SEGMENT + TAG {
            return Err(damage);
        }
        if next > self.end {
            return Err(BaselineError::damaged(self.name, Damage::Truncated { at: next }));
        }
        self.sealed.resize(bytes, 0);
        read_at(self.file, at + 4, &mut self.sealed, self.name)?;
        self.at = next;
        self.key.open(at, next == self.end, &mut self.sealed).map(|plain| Some(&*plain)).ok_or(damage)
    }
}
