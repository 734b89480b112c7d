//! Pages that a node has beside the guest.

use std::fmt;

use std::sync::Arc;

use crate::extent::{Layout, RegionId};
use crate::session::Leaves;
use crate::wire::Digest;

/// Pages that this node has beside the guest, such as a baseline, and that a sink may have, too. A source offers them by
/// their digest. Of what the sink then holds only what changed since is sent. spec: O-9
pub trait OldPages: fmt::Debug + Send + Sync {
    /// By which two nodes know that they have the same. Must tell nothing to who does not have it: a keyed digest.
    fn digest(&self) -> Digest;

    /// What a guest of this layout has of them: the leaves of pages that both have at the same place, and zeros. May block.
    fn leaves_of(&self, layout: &Layout) -> Arc<Leaves>;

    /// Where a page with this leaf is; the one at `near`, if that is it. Called for each page that is sent, on a lane's
    /// thread: it must not read a disk.
    fn find(&self, leaf: Digest, near: (RegionId, u32)) -> Option<(RegionId, u32)>;

    /// Reads pages side by side from there on, and whether that succeeded: they must have the leaves by which they were found,
    /// or what they are the base of is refused by the sink. May block.
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> bool;
}
