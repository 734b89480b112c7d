use std::collections::BTreeSet;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::node::{NodeName, Word};
use super::percentage::{Percentage, Threshold};
use super::reason::Reason;
use super::{Decision, Flag, Why, bucket};

/// No document is longer: room for some ten thousand names.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Orders flag documents: only a higher one takes the place of another. 1 to 2^53 - 1, which every JSON tool keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FlagVersion(u64);

impl FlagVersion {
    /// Of the first document.
    pub const FIRST: Self = Self(1);
    /// After which none can come.
    pub const LAST: Self = Self((1 << 53) - 1);

    /// `None`: it is 0, or above 2^53 - 1.
    pub fn new(value: u64) -> Option<Self> {
        (Self::FIRST.0..=Self::LAST.0).contains(&value).then_some(Self(value))
    }

    /// The number.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The version after it. `None`: there is none.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

impl fmt::Display for FlagVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for FlagVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        let refused = || D::Error::custom(format!("the version {value} is not from 1 to {}", Self::LAST));
        Self::new(value).ok_or_else(refused)
    }
}

/// What somebody decided for a fleet, as JSON.
///
/// ```
/// use dwcp_core::flag::{Flag, FlagDocument, NodeName};
///
/// let text = br#"{"version": 7, "flags": {"dwcp_v3_hde": {"enabled": true, "percentage": 100, "exclude": ["n2"]}}}"#;
/// let document = FlagDocument::parse(text)?;
/// let on = |node| document.decide(Flag::V3, &NodeName::new(node).unwrap()).on;
/// assert!(on("n1") && !on("n2"));
/// # Ok::<(), dwcp_core::flag::DocumentError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlagDocument {
    /// Rises with each change.
    pub version: FlagVersion,
    /// By name.
    pub flags: Flags,
}

/// The flags of a document. There are no others: an unknown name is an error, not a flag that nobody obeys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// Who speaks version 3.
    #[serde(rename = "dwcp_v3_hde")]
    pub v3: FlagRule,
    /// Who compresses. Without it all do.
    #[serde(rename = "dwcp_v3_compression", default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<FlagRule>,
}

/// For whom a flag is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlagRule {
    /// False: off for everybody.
    pub enabled: bool,
    /// What share of the nodes was wished for.
    pub percentage: Percentage,
    /// How nodes are put into buckets.
    #[serde(default)]
    pub hash: HashName,
    /// Another salt is another order of nodes.
    #[serde(default)]
    pub salt: Word,
    /// Below which bucket a node is in. Without it, what the percentage stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// Off for these, whatever else is said.
    #[serde(default)]
    pub exclude: BTreeSet<NodeName>,
    /// On for these, unless they are excluded.
    #[serde(default)]
    pub include: BTreeSet<NodeName>,
    /// True: off for everybody, until somebody takes this word back. Enabling is not enough.
    #[serde(default)]
    pub kill: bool,
    /// Why it was changed last.
    #[serde(default)]
    pub reason: Reason,
    /// Who changed it last.
    #[serde(default)]
    pub updated_by: Word,
}

/// How nodes are put into buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashName {
    /// The first eight bytes of SHA-256 over name of the flag, salt and name of the node.
    #[default]
    #[serde(rename = "sha256")]
    Sha256,
}

/// Why bytes are no document. It says where, by line and column.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than any document.
    #[error("it has {bytes} bytes, more than the {MAX_DOCUMENT_BYTES} that a flag document may have")]
    TooLarge {
        /// How long it is.
        bytes: u64,
    },
    /// No JSON: garbage, or half of a document.
    #[error("it is no JSON, or only a part: {0}")]
    Garbage(serde_json::Error),
    /// JSON, with a key that is not known, or a value that does not fit.
    #[error("it is no flag document: {0}")]
    Invalid(serde_json::Error),
}

impl FlagDocument {
    /// Reads a document; all of it is checked.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLarge { bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX) });
        }
        let refused = |error: serde_json::Error| match error.classify() {
            serde_json::error::Category::Data => DocumentError::Invalid(error),
            _ => DocumentError::Garbage(error),
        };
        let document = serde_json::from_slice(bytes).map_err(refused)?;
        // A derived reader takes a list of values for a list of fields, which would be a second form of documents.
        let value: Value = serde_json::from_slice(bytes).map_err(refused)?;
        let rules = value.get("flags").and_then(Value::as_object);
        if rules.is_some_and(|rules| rules.values().all(Value::is_object)) {
            Ok(document)
        } else {
            Err(refused(serde_json::Error::custom(
                "a list or null stands in the place of a document, its flags or a flag",
            )))
        }
    }

    /// The document as people and programs read it, with a line end.
    ///
    /// # Errors
    /// It would be longer than a document may be.
    pub fn render(&self) -> Result<String, DocumentError> {
        let text = serde_json::to_string_pretty(self).map_err(DocumentError::Invalid)? + "\n";
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLarge { bytes: u64::try_from(text.len()).unwrap_or(u64::MAX) });
        }
        Ok(text)
    }

    /// What it says of a flag, if anything.
    pub fn rule(&self, flag: Flag) -> Option<&FlagRule> {
        match flag {
            Flag::V3 => Some(&self.flags.v3),
            Flag::Compression => self.flags.compression.as_ref(),
        }
    }

    /// What it means for a node.
    pub fn decide(&self, flag: Flag, node: &NodeName) -> Decision {
        // Only the flag for compression may be missing, and only a document that names it turns it off.
        self.rule(flag).map_or(Decision { on: true, why: Why::Absent }, |rule| rule.decide(flag, node))
    }
}

impl FlagRule {
    /// On for nobody: what a new document begins with.
    pub fn off() -> Self {
        Self {
            enabled: false,
            percentage: Percentage::default(),
            hash: HashName::default(),
            salt: Word::default(),
            threshold: None,
            exclude: BTreeSet::new(),
            include: BTreeSet::new(),
            kill: false,
            reason: Reason::default(),
            updated_by: Word::default(),
        }
    }

    /// Below which bucket a node is in.
    pub fn effective_threshold(&self) -> Threshold {
        self.threshold.unwrap_or_else(|| self.percentage.threshold())
    }

    /// Whether it is on for a node, and why. Pure: the same for ever.
    pub fn decide(&self, flag: Flag, node: &NodeName) -> Decision {
        let decided = |on, why| Decision { on, why };
        if self.kill {
            return decided(false, Why::Killed);
        }
        if !self.enabled {
            return decided(false, Why::Disabled);
        }
        if self.exclude.contains(node) {
            return decided(false, Why::Excluded);
        }
        if self.include.contains(node) {
            return decided(true, Why::Included);
        }
        let HashName::Sha256 = self.hash;
        let (bucket, threshold) = (bucket(flag.key(), self.salt.as_str(), node), self.effective_threshold());
        let on = bucket < threshold.value();
        decided(on, Why::Bucket { bucket, threshold })
    }
}
