//! Pages that a node has beside the guest.

use std::fmt;

use std::sync::Arc;

use super::GuestError;
use crate::extent::{Layout, RegionId};
use crate::session::Leaves;
use crate::wire::Digest;

/// Pages that this node has beside the guest, such as a baseline, and that a sink may have, too. A source offers them by
/// their digest. Of what the sink then holds only what changed since is sent. spec: O-9
pub trait OldPages: fmt::Debug + Send + Sync {
    /// By which two nodes know that they have the same. Must tell nothing to who does not have it: a keyed digest.
    fn digest(&self) -> Digest;

    /// Their own regions: by flat pages of these an extent names pages that it does not carry. spec: K-12
    fn layout(&self) -> &Layout;

    /// What a guest of this layout has of them: the leaves of pages that both have at the same place, and zeros. May block.
    fn leaves_of(&self, layout: &Layout) -> Arc<Leaves>;

    /// Where a page with this leaf is; the one at `near`, if that is it. Called for each page that is sent, on a lane's
    /// thread: it must not read a disk.
    fn find(&self, leaf: Digest, near: (RegionId, u32)) -> Option<(RegionId, u32)>;

    /// Where a page is that has much in common with this one: a transfer then sends what differs. None, unless an implementation
    /// knows better. Called on a lane's thread for pages that have no other base: it must not read a disk. spec: K-13
    fn find_like(&self, page: &[u8]) -> Option<(RegionId, u32)> {
        let _ = page;
        None
    }

    /// Reads pages side by side from there on: they must have the leaves by which they were found, or what is made from them
    /// is refused by the sink. May block.
    ///
    /// # Errors
    /// They cannot be read, or are damaged. A source then sends without them; a sink ends the transfer.
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError>;
}

/// Which of the offered baselines a sink has, and what its guest has of it. spec: O-9
#[derive(Clone, Debug)]
pub struct HeldPages {
    /// Its number in the offer, counted from 0.
    pub number: u8,
    /// As [`OldPages::leaves_of`] for the offered layout: each page that the guest does not tell itself to hold
    /// ([`Guest::held`](super::Guest::held)) has its leaf there.
    pub leaves: Arc<Leaves>,
    /// Extents may name its pages, wherever they stand.
    pub pages: Arc<dyn OldPages>,
}
