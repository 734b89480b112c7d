use std::fmt;

use sha2::{Digest, Sha256};

use super::environment::FORCE_V1;
use super::node::NodeName;
use super::percentage::Threshold;

/// Into so many buckets nodes are put.
pub const BUCKETS: u32 = 100_000;

/// The bucket of a node for a flag, 0 to 99999: the first eight bytes of SHA-256(key, 0, salt, 0, node), big-endian, as
/// a fraction of 2^64. It does not depend on the percentage, so raising that only adds nodes and lowering only removes.
pub fn bucket(key: &str, salt: &str, node: &NodeName) -> u32 {
    let mut hash = Sha256::new();
    for part in [key, "\0", salt, "\0", node.as_str()] {
        hash.update(part);
    }
    let first = hash.finalize().into_iter().take(8).fold(0_u128, |value, byte| value << 8 | u128::from(byte));
    // Below 2^64 times 10^5, so the upper half is below 10^5.
    u32::try_from((first * u128::from(BUCKETS)) >> 64).unwrap_or(BUCKETS - 1)
}

/// What is decided of a flag at a node, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is on.
    pub on: bool,
    /// For the operator.
    pub why: Why,
}

/// Why a flag is on or off. Its text is the end of a sentence such as "v1, because ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Somebody killed it.
    Killed,
    /// It is not enabled.
    Disabled,
    /// The node is in the list of those without.
    Excluded,
    /// The node is in the list of those with it.
    Included,
    /// By where the node's bucket lies.
    Bucket {
        /// Of the node.
        bucket: u32,
        /// Below it the flag is on.
        threshold: Threshold,
    },
    /// The document says nothing of it.
    Absent,
    /// No source of flags is configured.
    Fixed,
    /// `DWCP_FORCE_V1` is set.
    Forced,
    /// A source is configured, and gave no good document since the start.
    NoDocument,
    /// The source failed for longer than the last good document is kept.
    Expired,
}

impl Why {
    /// For metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Disabled => "disabled",
            Self::Excluded => "excluded",
            Self::Included => "included",
            Self::Bucket { .. } => "bucket",
            Self::Absent => "absent",
            Self::Fixed => "fixed",
            Self::Forced => "forced",
            Self::NoDocument => "no-document",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("the flag is killed"),
            Self::Disabled => f.write_str("the flag is not enabled"),
            Self::Excluded => f.write_str("the node is excluded"),
            Self::Included => f.write_str("the node is included"),
            Self::Bucket { bucket, threshold } if *bucket < threshold.value() => {
                write!(f, "its bucket {bucket} is below the threshold {threshold}")
            }
            Self::Bucket { bucket, threshold } => {
                write!(f, "its bucket {bucket} is not below the threshold {threshold}")
            }
            Self::Absent => f.write_str("the document does not name the flag"),
            Self::Fixed => f.write_str("no source of flags is configured"),
            Self::Forced => write!(f, "{FORCE_V1} is set in the environment of this node"),
            Self::NoDocument => f.write_str("no good flag document was found since the start"),
            Self::Expired => f.write_str("the flag document could not be read for too long"),
        }
    }
}
