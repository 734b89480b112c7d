//! The root of a guest that stands still.

use super::{Guest, GuestError};
use crate::extent::{MAX_EXTENT_PAGES, PAGE_BYTES};
use crate::session::Leaves;
use crate::session::leaves::Tree;
use crate::session::page_hash::hash_pages;
use crate::wire::Digest;

/// Reads and hashes all of a guest, which must not change meanwhile: a transfer of it ends with this root. spec: I-3
///
/// # Errors
/// It cannot be read.
pub fn root_of(guest: &dyn Guest) -> Result<Digest, GuestError> {
    let layout = guest.layout();
    let leaves = Leaves::new(layout);
    let (mut pages, mut found) = (vec![0; MAX_EXTENT_PAGES * PAGE_BYTES], Vec::with_capacity(MAX_EXTENT_PAGES));
    for (id, region) in layout.regions() {
        for first in (0..region.pages).step_by(MAX_EXTENT_PAGES) {
            let count = usize::try_from(region.pages - first).unwrap_or(MAX_EXTENT_PAGES).min(MAX_EXTENT_PAGES);
            let part = pages.get_mut(..count * PAGE_BYTES).unwrap_or_default();
            guest.read(id, first, part)?;
            found.clear();
            hash_pages(part, &mut found);
            let numbers = (first..).map_while(|page| layout.flat(id, page));
            numbers.zip(&found).for_each(|(flat, leaf)| leaves.set(flat, *leaf));
        }
    }
    Ok(Tree::new(layout).root(&leaves))
}
