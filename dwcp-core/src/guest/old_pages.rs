//! Pages that a node has beside the guest.

use std::fmt;

use crate::extent::RegionId;
use crate::wire::Digest;

/// Pages that this node has beside the guest, such as a baseline. Where the sink holds one of them, a source sends only
/// what changed since: the sink told its leaf, so both have the same bytes, and nothing needs to be agreed.
pub trait OldPages: fmt::Debug + Send + Sync {
    /// Where a page with this leaf is; the one at `near`, if that is it. Called for each page that is sent, on a lane's
    /// thread: it must not read a disk.
    fn find(&self, leaf: Digest, near: (RegionId, u32)) -> Option<(RegionId, u32)>;

    /// Reads pages side by side from there on, and whether that succeeded: they must have the leaves by which they were found,
    /// or what they are the base of is refused by the sink. May block.
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> bool;
}
