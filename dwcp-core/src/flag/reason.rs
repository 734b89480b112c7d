use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::node::start;

/// Why a flag was changed last. Two reasons say that what version 3 has applied is not to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Bytes were, or may have been, applied that are not those of the guest.
    Integrity,
    /// Somebody else may have written them.
    Security,
    /// Too slow, too dear.
    Performance,
    /// An operator wished it so; also what is meant where nothing is said.
    #[default]
    Operator,
    /// In the words of whoever changed it: 1 to 64 of a-z 0-9 . _ -
    Other(String),
}

/// Why a text is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReasonError {
    /// Letters that a reason may not have, or too many.
    #[error("{0:?} is no reason: it has 1 to 64 of a-z 0-9 . _ -")]
    Text(String),
    /// A reason that starts transfers from zero, misspelt, would keep what is not to be trusted.
    #[error(
        "the reason {text:?} is nearly `{meant}`, but would not start transfers from zero: write `{meant}`, or something else"
    )]
    Nearly {
        /// What was written.
        text: String,
        /// What it may have been meant to be.
        meant: &'static str,
    },
}

const MOST_BYTES: usize = 64;
const SPECIAL: [&str; 2] = ["integrity", "security"];

impl Reason {
    /// Whether a transfer that goes back to version 1 begins from zero, because of this.
    pub fn discards_applied(&self) -> bool {
        matches!(self, Self::Integrity | Self::Security)
    }

    /// As it stands in documents.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Integrity => "integrity",
            Self::Security => "security",
            Self::Performance => "performance",
            Self::Operator => "operator",
            Self::Other(text) => text,
        }
    }

    /// One of our own, which is known to be fit.
    pub(super) fn ours(text: &'static str) -> Self {
        Self::Other(text.to_owned())
    }
}

impl FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        let known = [Self::Integrity, Self::Security, Self::Performance, Self::Operator];
        if let Some(known) = known.into_iter().find(|reason| reason.as_str() == text) {
            return Ok(known);
        }
        let lower = text.to_ascii_lowercase();
        let nearly = |meant: &&str| lower.contains(meant) || lower.len() <= 16 && distance(&lower, meant) <= 2;
        if let Some(meant) = SPECIAL.into_iter().find(nearly) {
            return Err(ReasonError::Nearly { text: start(text), meant });
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if (1..=MOST_BYTES).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self::Other(text.to_owned()))
        } else {
            Err(ReasonError::Text(start(text)))
        }
    }
}

/// How many letters must be changed, added or left out to make one of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut next = vec![at + 1];
        for ((&diagonal, &above), against) in row.iter().zip(row.iter().skip(1)).zip(other.bytes()) {
            let left = next.last().copied().unwrap_or(0);
            let changed = diagonal + usize::from(letter != against);
            next.push(changed.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_of_four_or_a_small_text() {
        assert_eq!("integrity".parse(), Ok(Reason::Integrity));
        assert_eq!("operator".parse(), Ok(Reason::Operator));
        assert_eq!("inc-4711_disk.full".parse(), Ok(Reason::Other("inc-4711_disk.full".into())));
        for text in ["", "Performance", "a b", "a\n", "\u{e9}", &"x".repeat(65)] {
            assert!(matches!(text.parse::<Reason>(), Err(ReasonError::Text(_))), "{text:?}");
        }
        let discard = |text: &str| text.parse::<Reason>().unwrap().discards_applied();
        assert!(discard("integrity") && discard("security") && !discard("performance") && !discard("rollback"));
    }

    #[test]
    fn a_misspelt_reason_does_not_silently_keep_what_is_not_to_be_trusted() {
        for text in ["integrty", "intergrity", "Integrity", "INTEGRITY", "integritiy", "data-integrity", "integrity "] {
            let nearly = Err(ReasonError::Nearly { text: text.into(), meant: "integrity" });
            assert_eq!(text.parse::<Reason>(), nearly);
        }
        for text in ["secrity", "securty", "security-breach", "Security"] {
            let nearly = Err(ReasonError::Nearly { text: text.into(), meant: "security" });
            assert_eq!(text.parse::<Reason>(), nearly);
        }
    }

    #[test]
    fn distances() {
        assert_eq!([distance("", "abc"), distance("abc", ""), distance("kitten", "sitting")], [3, 3, 3]);
        assert_eq!([distance("security", "security"), distance("integrtiy", "integrity")], [0, 2]);
    }
}
