//! A bulk lane at the source: one worker that reads, hashes, encodes and writes.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::client::TlsStream;

use super::clock::Stopwatch;
use super::dial::Dialer;
use super::driver::Event;
use crate::extent::{Extent, FlatPage, MAX_EXTENT_PAGES, PAGE_BYTES, PageMask};
use crate::guest::{Guest, GuestError};
use crate::session::binding::Key;
use crate::session::leaves::extent_digest;
use crate::session::page_hash::hash_pages;
use crate::session::{Dispatch, Encoded, Input, Leaves, SlotId};
use crate::wire::{Digest, ExtentHead, FenceEpoch, LaneId, SessionId};

/// The bytes of the source's copy of what the sink acknowledged. Which page has which slot is the
/// machine's business; a slot is in one worker's hands at a time, so its lock is never waited for.
#[derive(Debug, Default)]
pub(super) struct ShadowBytes {
    slots: RwLock<Vec<Arc<Mutex<Vec<u8>>>>>,
}

impl ShadowBytes {
    fn slot(&self, id: SlotId) -> Option<Arc<Mutex<Vec<u8>>>> {
        let index = usize::try_from(id.0).ok()?;
        if let Some(slot) = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(index) {
            return Some(Arc::clone(slot));
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.len() <= index {
            slots.resize_with(index + 1, Arc::default);
        }
        slots.get(index).map(Arc::clone)
    }
}

/// What all workers of one session share.
pub(super) struct SourceLanes {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) leaves: Arc<Leaves>,
    pub(super) shadow: ShadowBytes,
    pub(super) epoch: FenceEpoch,
    pub(super) dialer: Dialer,
    pub(super) session: SessionId,
    pub(super) key: Key,
}

/// Opens the lane and works until the queue closes, the lane dies or `stop` fires; then reports its
/// end. Nothing is reported after that.
pub(super) async fn run(
    shared: Arc<SourceLanes>,
    lane: LaneId,
    work: mpsc::Receiver<Dispatch>,
    events: mpsc::Sender<Event>,
    stop: oneshot::Receiver<()>,
) {
    tokio::select! {
        biased;
        _ = stop => {}
        () = open_and_work(&shared, lane, work, &events) => {}
    }
    let _ = events.send(Event::Input(Input::LaneDown { lane })).await;
}

async fn open_and_work(
    shared: &Arc<SourceLanes>,
    lane: LaneId,
    work: mpsc::Receiver<Dispatch>,
    events: &mpsc::Sender<Event>,
) {
    let (stream, credit) = match shared.dialer.lane(shared.session, &shared.key, lane).await {
        Ok(joined) => joined,
        Err(error) => return tracing::warn!(%lane, %error, "a lane cannot be opened"),
    };
    if events.send(Event::Input(Input::LaneUp { lane, credit })).await.is_err() {
        return;
    }
    match carry(shared, lane, work, events, stream).await {
        Ok(()) => {}
        Err(LaneError::Guest(error)) => {
            let _ = events.send(Event::Input(Input::GuestFailed(error))).await;
        }
        Err(LaneError::Io(error)) => tracing::warn!(%lane, %error, "a lane was lost"),
    }
}

enum LaneError {
    Guest(GuestError),
    Io(std::io::Error),
}

async fn carry(
    shared: &Arc<SourceLanes>,
    lane: LaneId,
    mut work: mpsc::Receiver<Dispatch>,
    events: &mpsc::Sender<Event>,
    mut stream: TlsStream<tokio::net::TcpStream>,
) -> Result<(), LaneError> {
    let mut press = Press::new();
    let mut last_write = std::time::Duration::ZERO;
    while let Some(dispatch) = work.recv().await {
        let watch = Stopwatch::start();
        let sheet = press.print(shared, &dispatch).map_err(LaneError::Guest)?;
        let encode = watch.elapsed();
        let encoded = Encoded {
            lane,
            seq: dispatch.seq,
            wire_bytes: u64::try_from(sheet.head.len() + sheet.body.len()).unwrap_or(u64::MAX),
            carried: sheet.carried,
            same: sheet.same,
            encode,
            last_write,
        };
        if events.send(Event::Input(Input::Encoded(encoded))).await.is_err() {
            return Ok(());
        }
        let watch = Stopwatch::start();
        let written = async {
            stream.write_all(sheet.head).await?;
            stream.write_all(sheet.body).await?;
            stream.flush().await
        };
        written.await.map_err(LaneError::Io)?;
        last_write = watch.elapsed();
    }
    let _ = stream.shutdown().await;
    Ok(())
}

/// A worker's buffers, reused for every extent: about 2 MiB, 3 with a shadow.
pub(super) struct Press {
    plain: Vec<u8>,
    bases: Vec<u8>,
    leaves: Vec<Digest>,
    block: Vec<u8>,
    head: Vec<u8>,
    encoder: dwcp_hde::Encoder,
}

/// An extent ready to be written.
pub(super) struct Sheet<'a> {
    pub(super) head: &'a [u8],
    pub(super) body: &'a [u8],
    carried: u16,
    same: u16,
}

impl Press {
    pub(super) fn new() -> Self {
        Self {
            plain: vec![0; MAX_EXTENT_PAGES * PAGE_BYTES],
            bases: Vec::new(),
            leaves: Vec::with_capacity(MAX_EXTENT_PAGES),
            block: Vec::new(),
            head: Vec::new(),
            encoder: dwcp_hde::Encoder::new(),
        }
    }

    /// Reads an extent, drops what the sink has, hashes and encodes the rest. The pages are read
    /// once: what is hashed is what is sent. spec: I-1
    pub(super) fn print(&mut self, shared: &SourceLanes, dispatch: &Dispatch) -> Result<Sheet<'_>, GuestError> {
        let region = dispatch.extent.region();
        let mut at = 0;
        for run in dispatch.extent.runs() {
            let end = at + run.bytes();
            let into = self.plain.get_mut(at..end).ok_or(GuestError::Outside { region, first: run.start })?;
            shared.guest.read(region, run.start, into)?;
            at = end;
        }
        let same = self.hash(shared, dispatch);
        let extent = self.drop_same(&dispatch.extent, &same);
        let based = self.swap_shadow(shared, dispatch, &same);
        let plain = self.plain.get(..extent.bytes()).unwrap_or_default();
        self.block.clear();
        self.head.clear();
        let bases = dwcp_hde::Bases::new(*based.words(), &self.bases);
        let encoded = self
            .encoder
            .encode(plain, &bases, dispatch.effort, &mut self.block)
            .map_err(|error| GuestError::Other(format!("an extent cannot be encoded: {error}")))?;
        let raw = if encoded.raw_tail { plain } else { &[] };
        let digest = extent_digest(shared.epoch, &extent, &self.leaves);
        let count = |pages: usize| u16::try_from(pages).unwrap_or(u16::MAX);
        let (carried, dropped) = (count(extent.pages()), count(same.count()));
        let head = ExtentHead { seq: dispatch.seq, epoch: shared.epoch, digest, extent };
        head.encode(self.block.len() + raw.len(), &mut self.head)
            .map_err(|fault| GuestError::Other(format!("an extent cannot be framed: {}", fault.what)))?;
        let body = if encoded.raw_tail {
            self.head.extend_from_slice(&self.block);
            raw
        } else {
            &self.block
        };
        Ok(Sheet { head: &self.head, body, carried, same: dropped })
    }

    /// Hashes every page; those that the sink has already are told, and their leaves not kept.
    fn hash(&mut self, shared: &SourceLanes, dispatch: &Dispatch) -> PageMask {
        let mut same = PageMask::EMPTY;
        self.leaves.clear();
        hash_pages(self.plain.get(..dispatch.extent.bytes()).unwrap_or_default(), &mut self.leaves);
        let first = shared.guest.layout().region(dispatch.extent.region()).map_or(0, |region| region.first);
        for ((index, number), digest) in dispatch.extent.page_numbers().enumerate().zip(&self.leaves) {
            let flat = FlatPage(first + number);
            if dispatch.known.get(index) && shared.leaves.get(flat) == *digest {
                same.set(index);
            } else {
                shared.leaves.set(flat, *digest);
            }
        }
        if !same.is_empty() {
            let mut index = 0;
            self.leaves.retain(|_| {
                index += 1;
                !same.get(index - 1)
            });
        }
        same
    }

    /// Closes the gaps that dropped pages leave.
    fn drop_same(&mut self, extent: &Extent, same: &PageMask) -> Extent {
        if same.is_empty() {
            return extent.clone();
        }
        let mut to = 0;
        for index in (0..extent.pages()).filter(|&index| !same.get(index)) {
            if index != to {
                self.plain.copy_within(index * PAGE_BYTES..(index + 1) * PAGE_BYTES, to * PAGE_BYTES);
            }
            to += 1;
        }
        extent.without(same)
    }

    /// Takes the old pages out of the shadow, puts the new ones in. Returns which of the pages that
    /// remain have an old one.
    fn swap_shadow(&mut self, shared: &SourceLanes, dispatch: &Dispatch, same: &PageMask) -> PageMask {
        let mut based = PageMask::EMPTY;
        if dispatch.slots.is_empty() {
            return based;
        }
        self.bases.resize(MAX_EXTENT_PAGES * PAGE_BYTES, 0);
        let kept = (0..dispatch.extent.pages()).filter(|&index| !same.get(index));
        for (place, index) in kept.enumerate() {
            let slot = dispatch.slots.get(index).copied().flatten().and_then(|id| shared.shadow.slot(id));
            let span = place * PAGE_BYTES..(place + 1) * PAGE_BYTES;
            let (Some(slot), Some(page)) = (slot, self.plain.get(span.clone())) else { continue };
            let mut old = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if dispatch.based.get(index)
                && let Some(base) = self.bases.get_mut(span)
                && old.len() == PAGE_BYTES
            {
                base.copy_from_slice(&old);
                based.set(place);
            }
            old.clear();
            old.extend_from_slice(page);
        }
        based
    }
}
