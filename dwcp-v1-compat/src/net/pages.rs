//! A guest's regions as one row of bytes, as v1 sees it, without the padding of their last pages.

use std::sync::Arc;

use dwcp_core::{Guest, Layout, PAGE_BYTES, RegionId};

use super::error::TransferError;
use super::lent::Lent;

const PAGE: u64 = 4096;
/// Pages that are read or written at a time.
const BATCH: usize = 256;
const OUTSIDE: TransferError = TransferError::Config("bytes beyond the guest were asked for");

/// Whether each region but the last one is whole pages, so that pages of the row are pages of the guest.
pub(super) fn is_aligned(layout: &Layout) -> bool {
    let bytes: Vec<u64> = layout.regions().map(|(_, region)| region.bytes).collect();
    bytes.split_last().is_none_or(|(_, others)| others.iter().all(|bytes| bytes % PAGE == 0))
}

/// A place in the row.
struct Place {
    region: RegionId,
    /// In the region.
    offset: u64,
    /// From here to the end of the region.
    left: u64,
}

fn locate(layout: &Layout, at: u64) -> Option<Place> {
    let mut start = 0;
    for (region, bounds) in layout.regions() {
        let offset = at - start;
        if offset < bounds.bytes {
            return Some(Place { region, offset, left: bounds.bytes - offset });
        }
        start += bounds.bytes;
    }
    None
}

fn number(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn page(offset: u64) -> Result<u32, TransferError> {
    u32::try_from(offset / PAGE).map_err(|_| OUTSIDE)
}

/// Copies bytes of the row from anywhere: whole pages straight, the ends of others by way of a page.
pub(super) fn read_flat(guest: &dyn Guest, mut at: u64, mut into: &mut [u8]) -> Result<(), TransferError> {
    while !into.is_empty() {
        let Place { region, offset, left } = locate(guest.layout(), at).ok_or(OUTSIDE)?;
        let skip = size(offset % PAGE);
        let within = into.len().min(size(left));
        let here = match within / PAGE_BYTES * PAGE_BYTES {
            whole if skip == 0 && whole > 0 => whole,
            _ => within.min(PAGE_BYTES - skip),
        };
        let (now, later) = std::mem::take(&mut into).split_at_mut_checked(here).ok_or(OUTSIDE)?;
        if here.is_multiple_of(PAGE_BYTES) {
            guest.read(region, page(offset)?, now)?;
        } else {
            let mut whole = [0; PAGE_BYTES];
            guest.read(region, page(offset)?, &mut whole)?;
            now.copy_from_slice(whole.get(skip..skip + here).unwrap_or_default());
        }
        at += number(here);
        into = later;
    }
    Ok(())
}

/// Bytes of the row from anywhere, where they lie: up to so many, and not beyond a region.
pub(super) fn lend_flat(guest: &dyn Guest, at: u64, bytes: usize) -> Option<Lent<'_>> {
    let Place { region, offset, left } = locate(guest.layout(), at)?;
    let (skip, bytes) = (size(offset % PAGE), bytes.min(size(left)));
    let pages = u32::try_from((skip + bytes).div_ceil(PAGE_BYTES)).ok()?;
    Lent::new(guest.lend(region, page(offset).ok()?, pages)?, skip, bytes)
}

/// Writes bytes of the row in order, from the start of a page on. Holds 1 MiB at most.
pub(super) struct PageWriter {
    guest: Arc<dyn Guest>,
    at: u64,
    /// Bytes before `at`, of whole pages but for the end.
    held: Vec<u8>,
}

impl PageWriter {
    pub(super) fn new(guest: Arc<dyn Guest>) -> Self {
        Self { guest, at: 0, held: Vec::new() }
    }

    pub(super) fn guest(&self) -> &dyn Guest {
        self.guest.as_ref()
    }

    pub(super) fn shared(&self) -> &Arc<dyn Guest> {
        &self.guest
    }

    /// From here on.
    pub(super) fn start(&mut self, at: u64) {
        self.at = at;
        self.held.clear();
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            let Place { region, offset, left } = locate(self.guest.layout(), self.at).ok_or(OUTSIDE)?;
            let whole = bytes.len().min(size(left)) / PAGE_BYTES * PAGE_BYTES;
            // Nothing is held, so this is the start of a page: whole ones need not be copied.
            if self.held.is_empty() && whole > 0 {
                let (now, later) = bytes.split_at_checked(whole).ok_or(OUTSIDE)?;
                self.guest.write(region, page(offset)?, now)?;
                self.at += number(whole);
                bytes = later;
                continue;
            }
            let room = BATCH * PAGE_BYTES - self.held.len();
            let (now, later) = bytes.split_at_checked(room.min(size(left))).unwrap_or((bytes, &[]));
            self.held.extend_from_slice(now);
            self.at += number(now.len());
            bytes = later;
            if now.len() == room || number(now.len()) == left {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Everything is in the guest after this. Bytes to the end of the page that they end in become zero: they are those
    /// beyond a region, or its next bytes are still to come and it is not called.
    pub(super) fn flush(&mut self) -> Result<(), TransferError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let start = self.at - number(self.held.len());
        let Place { region, offset, .. } = locate(self.guest.layout(), start).ok_or(OUTSIDE)?;
        self.held.resize(self.held.len().next_multiple_of(PAGE_BYTES), 0);
        self.guest.write(region, page(offset)?, &self.held)?;
        self.held.clear();
        Ok(())
    }
}

impl std::fmt::Debug for PageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageWriter").field("at", &self.at).finish_non_exhaustive()
    }
}
