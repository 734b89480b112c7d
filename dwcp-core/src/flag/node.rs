use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// The name by which documents know a node: 1 to 253 visible ASCII characters but `#`, compared byte for byte.
///
/// Nothing in it can be taken for the zero bytes that part the fields of the hash, nor for the end of a roster's line or its comment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeName(String);

/// Why a text names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no node: a name has 1 to 253 visible ASCII characters, no blank and no #")]
pub struct NodeNameError(String);

/// A salt, or who changed a flag: up to 64 visible ASCII characters, perhaps none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Word(String);

/// Why a text is no word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no word: it may have up to 64 visible ASCII characters and no blank")]
pub struct WordError(String);

/// As long as a host's name may be.
const MOST_NODE_BYTES: usize = 253;
const MOST_WORD_BYTES: usize = 64;

fn visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Enough of a text to know it again; what is cut off shows.
pub(super) fn start(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((cut, _)) => format!("{}...", text.get(..cut).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl NodeName {
    /// # Errors
    /// It is empty, too long, or has characters that a name may not have.
    pub fn new(text: &str) -> Result<Self, NodeNameError> {
        let fits = (1..=MOST_NODE_BYTES).contains(&text.len()) && visible(text) && !text.contains('#');
        if fits { Ok(Self(text.to_owned())) } else { Err(NodeNameError(start(text))) }
    }

    /// As it stands in documents.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Word {
    /// # Errors
    /// It is too long, or has characters that a word may not have.
    pub fn new(text: &str) -> Result<Self, WordError> {
        let fits = text.len() <= MOST_WORD_BYTES && visible(text);
        if fits { Ok(Self(text.to_owned())) } else { Err(WordError(start(text))) }
    }

    /// As it stands in documents.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        Self::new(text)
    }
}

impl FromStr for Word {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        Self::new(text)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_blank_no_zero_and_an_end() {
        for text in ["node-0", "a", "host.example.org", "spiffe://d/n", "sha256:ab", &"n".repeat(253)] {
            assert_eq!(NodeName::new(text).unwrap().as_str(), text);
        }
        for text in ["", "a b", "a\0b", "a\n", "a#b", "\u{e9}", &"n".repeat(254)] {
            assert!(NodeName::new(text).is_err(), "{text:?}");
        }
        assert!(Word::new("").is_ok() && Word::new(&"w".repeat(64)).is_ok());
        assert!(Word::new(&"w".repeat(65)).is_err() && Word::new("\0").is_err());
        assert_eq!((start("short"), start(&"w".repeat(65))), ("short".to_owned(), "w".repeat(64) + "..."));
    }
}
