//! Dictionaries: bytes that both ends hold from before, to which a frame of a few pages may refer.
//!
//! ```text
//!   pages of guests ── train ──> Dictionary ── id: BLAKE3 of its bytes ──> agreed on ──> Dictionaries ──> Encoder, Decoder
//! ```
//!
//! A dictionary is plain content, as if it stood before the pages. zstd's own kind, with tables of an entropy coder in front,
//! was measured and lost (`docs/performance.md`, "Dictionaries"): pages differ too much for one set of tables. Plain content
//! cannot be malformed, costs nothing to check but its digest, and a bad one costs time and never bytes.

mod train;

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use zstd_safe::DDict;

pub use self::train::{MAX_TRAINING_PAGES, TrainError, Trained, train};

/// The smallest dictionary: one segment of a trained one.
pub const MIN_DICTIONARY_BYTES: usize = train::SEGMENT;

/// The largest dictionary: what a frame with the largest window reaches back to. Each lane thread that encodes with one keeps
/// a copy of it and up to 3 MiB of tables.
pub const MAX_DICTIONARY_BYTES: usize = 1 << 20;

/// Dictionaries that two ends may agree on for one transfer.
pub const MAX_DICTIONARIES: usize = 4;

/// Content that begins like this would be read by zstd as a dictionary of its own kind.
const ZSTD_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// Names a dictionary: BLAKE3 of its bytes. Whoever knows it can tell whether another holds the same dictionary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DictionaryId(pub [u8; 32]);

impl DictionaryId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for DictionaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DictionaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DictionaryId({self})")
    }
}

/// A dictionary, prepared for decoding. Cheap to clone; its id is always that of its bytes.
#[derive(Clone)]
pub struct Dictionary(Arc<Prepared>);

struct Prepared {
    id: DictionaryId,
    bytes: Vec<u8>,
    unpacking: DDict<'static>,
}

impl Dictionary {
    /// A dictionary of these bytes, [`MIN_DICTIONARY_BYTES`] to [`MAX_DICTIONARY_BYTES`] of them.
    ///
    /// # Errors
    /// Too few or too many; they begin as zstd's own kind does; no memory for a copy. spec: K-11
    pub fn new(bytes: Vec<u8>) -> Result<Self, DictionaryError> {
        if !(MIN_DICTIONARY_BYTES..=MAX_DICTIONARY_BYTES).contains(&bytes.len()) {
            return Err(DictionaryError::Size { bytes: bytes.len() });
        }
        if bytes.starts_with(&ZSTD_MAGIC) {
            return Err(DictionaryError::ForeignKind);
        }
        let unpacking = DDict::try_create(&bytes).ok_or(DictionaryError::OutOfMemory)?;
        Ok(Self(Arc::new(Prepared { id: DictionaryId::of(&bytes), bytes, unpacking })))
    }

    /// Its name.
    pub fn id(&self) -> DictionaryId {
        self.0.id
    }

    /// Its content: pieces of guests' memory.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    pub(crate) fn unpacking(&self) -> &DDict<'static> {
        &self.0.unpacking
    }
}

impl PartialEq for Dictionary {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Dictionary {}

impl fmt::Debug for Dictionary {
    /// Never shows content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dictionary").field("id", &self.id()).field("bytes", &self.bytes().len()).finish()
    }
}

/// Bytes that are no dictionary.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive] // later kinds of content bring later reasons
pub enum DictionaryError {
    /// Too few or too many.
    #[error("a dictionary has {MIN_DICTIONARY_BYTES} to {MAX_DICTIONARY_BYTES} bytes, this has {bytes}")]
    Size {
        /// How many.
        bytes: usize,
    },
    /// A dictionary of zstd's own kind, which holds tables that nobody checks.
    #[error("it is a dictionary of the zstd tool, which has another format; train one with `dwcp dictionary train`")]
    ForeignKind,
    /// There is no memory for a copy.
    #[error("no memory for a dictionary")]
    OutOfMemory,
}

/// The dictionaries that two ends agreed on. A block names one by its number, 0 to 3: its place in what the source offered.
#[derive(Debug, Clone, Default)]
pub struct Dictionaries {
    slots: [Option<Dictionary>; MAX_DICTIONARIES],
    most_pages: Option<usize>,
}

impl Dictionaries {
    /// None: no block may name one.
    pub const fn none() -> Self {
        Self { slots: [const { None }; MAX_DICTIONARIES], most_pages: None }
    }

    /// Those offered of which `agreed` has the bit; others keep their number and cannot be named.
    pub fn agreed(offered: &[Dictionary], agreed: u8) -> Self {
        let kept = (0_u8..8).zip(offered).filter(|(number, _)| agreed >> number & 1 == 1);
        kept.fold(Self::none(), |all, (number, dictionary)| all.with(number, dictionary))
    }

    /// With one more, under this number. Numbers from [`MAX_DICTIONARIES`] on do not exist: nothing changes.
    #[must_use]
    pub fn with(mut self, number: u8, dictionary: &Dictionary) -> Self {
        if let Some(slot) = self.slots.get_mut(usize::from(number)) {
            *slot = Some(dictionary.clone());
        }
        self
    }

    /// Lets an encoder use them for groups of at most so many pages, whatever the effort, instead of those where a gain was
    /// measured. For measurements.
    #[must_use]
    pub fn for_groups_of(self, most_pages: usize) -> Self {
        Self { most_pages: Some(most_pages), ..self }
    }

    /// The one with this number.
    pub fn get(&self, number: u8) -> Option<&Dictionary> {
        self.slots.get(usize::from(number))?.as_ref()
    }

    /// The one that an encoder uses: the first that both hold.
    pub fn first(&self) -> Option<(u8, &Dictionary)> {
        (0_u8..).zip(&self.slots).find_map(|(number, slot)| Some((number, slot.as_ref()?)))
    }

    pub(crate) const fn most_pages(&self) -> Option<usize> {
        self.most_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dictionary(byte: u8) -> Dictionary {
        Dictionary::new(vec![byte; MIN_DICTIONARY_BYTES]).unwrap()
    }

    // spec: K-11
    #[test]
    fn only_plain_content_within_bounds_is_a_dictionary() {
        for bytes in [0, MIN_DICTIONARY_BYTES - 1, MAX_DICTIONARY_BYTES + 1] {
            assert_eq!(Dictionary::new(vec![1; bytes]), Err(DictionaryError::Size { bytes }));
        }
        let mut trained = vec![1; MIN_DICTIONARY_BYTES];
        trained[..4].copy_from_slice(&ZSTD_MAGIC);
        assert_eq!(Dictionary::new(trained), Err(DictionaryError::ForeignKind));
        for bytes in [MIN_DICTIONARY_BYTES, MAX_DICTIONARY_BYTES] {
            assert_eq!(Dictionary::new(vec![1; bytes]).unwrap().bytes().len(), bytes);
        }
    }

    #[test]
    fn the_id_is_the_digest_of_the_bytes_and_content_is_not_shown() {
        let one = dictionary(b'x');
        assert_eq!(one.id().to_string(), blake3::hash(one.bytes()).to_hex().to_string());
        assert_eq!(one, dictionary(b'x'));
        assert_ne!(one, dictionary(b'y'));
        assert!(!format!("{one:?}").contains("120, 120"), "{one:?}");
    }

    #[test]
    fn what_is_not_agreed_on_keeps_its_number_and_cannot_be_named() {
        let offered = [dictionary(0), dictionary(1), dictionary(2)];
        let some = Dictionaries::agreed(&offered, 0b1110);
        assert_eq!((some.get(0), some.get(1), some.get(2)), (None, Some(&offered[1]), Some(&offered[2])));
        assert_eq!((some.get(3), some.get(255)), (None, None), "what was not offered");
        assert_eq!(some.first(), Some((1, &offered[1])));
        assert_eq!(Dictionaries::none().first(), None);
    }
}
