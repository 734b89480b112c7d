use std::collections::BTreeSet;

use super::node::{NodeName, NodeNameError};
use super::percentage::{Percentage, Threshold};
use super::{Flag, FlagRule, bucket};

/// All nodes of a fleet, for a share that is exact: 10 % of 10 nodes is one node, where hashing alone may give 0 or 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster(BTreeSet<NodeName>);

/// Why a text is no roster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// A line that names no node.
    #[error("line {line}: {source}")]
    Name {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        source: NodeNameError,
    },
    /// Two lines name the same node, so the share would be one of another number.
    #[error("line {line}: {node} is named twice")]
    Twice {
        /// From 1.
        line: usize,
        /// Who.
        node: NodeName,
    },
    /// A share of nobody.
    #[error("it names no node")]
    Empty,
}

/// A threshold for a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    /// For the document.
    pub threshold: Threshold,
    /// How many nodes of the roster should be in.
    pub wanted: usize,
    /// How many are. It differs from `wanted` where lists leave too few or too many, or where two nodes share a bucket.
    pub nodes: usize,
}

impl Roster {
    /// Reads one name a line; empty lines and what follows a `#` do not count.
    ///
    /// # Errors
    /// A line that names no node, a node that is named twice, or no node at all.
    pub fn parse(text: &str) -> Result<Self, RosterError> {
        let mut nodes = BTreeSet::new();
        for (words, line) in text.lines().zip(1..) {
            let name = words.split('#').next().unwrap_or_default().trim();
            if name.is_empty() {
                continue;
            }
            let node = NodeName::new(name).map_err(|source| RosterError::Name { line, source })?;
            if !nodes.insert(node.clone()) {
                return Err(RosterError::Twice { line, node });
            }
        }
        if nodes.is_empty() { Err(RosterError::Empty) } else { Ok(Self(nodes)) }
    }

    /// In rising order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeName> {
        self.0.iter()
    }

    /// The lowest threshold with which a flag would be on for that share of these nodes, by the lists and the salt of
    /// a rule that is neither killed nor disabled. Raising the percentage never lowers it; another roster may.
    pub fn exact(&self, flag: Flag, rule: &FlagRule, percentage: Percentage) -> Exact {
        let wanted = percentage.of(self.0.len());
        let included =
            self.0.iter().filter(|node| rule.include.contains(*node) && !rule.exclude.contains(*node)).count();
        let free = self.0.iter().filter(|node| !rule.include.contains(*node) && !rule.exclude.contains(*node));
        let mut buckets: Vec<u32> = free.map(|node| bucket(flag.key(), rule.salt.as_str(), node)).collect();
        buckets.sort_unstable();
        let needed = wanted.saturating_sub(included).min(buckets.len());
        let last = needed.checked_sub(1).and_then(|last| buckets.get(last));
        let threshold = match last {
            // Whoever joins later belongs to all.
            _ if percentage == Percentage::ALL => Threshold::ALL,
            Some(&last) => Threshold::above(last),
            None => Threshold::default(),
        };
        let below = buckets.iter().filter(|&&bucket| bucket < threshold.value()).count();
        Exact { threshold, wanted, nodes: included + below }
    }
}
