//! A bulk lane at the sink: one worker that reads, verifies, decodes and writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use super::allowance::Allowance;
use super::clock::Clock;
use super::conduct::{EMPTY_EXTENTS, flood};
use super::driver::{Event, Stream};
use super::handshake::{ReadError, read_header};
use crate::extent::{Extent, FlatPage};
use crate::guest::{Guest, GuestError};
use crate::session::leaves::extent_digest;
use crate::session::page_hash::hash_pages;
use crate::session::{Applied, Input, Leaves, SessionError};
use crate::wire::limits::MAX_EXTENT_BYTES;
use crate::wire::{Digest, ErrorCode, ExtentHead, FRAME_HEADER_BYTES, FenceEpoch, FrameType, LaneId, WireError};

/// What all workers of one session share.
pub(super) struct SinkLanes {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) leaves: Arc<Leaves>,
    pub(super) epoch: FenceEpoch,
}

/// Works until the lane ends, carries something wrong, or `stop` fires; then reports its end.
/// Nothing is applied or reported after that: this is what a burial waits for. spec: B-2
pub(super) async fn run(
    shared: Arc<SinkLanes>,
    lane: LaneId,
    stream: Stream,
    granted: Arc<AtomicU64>,
    events: mpsc::Sender<Event>,
    stop: oneshot::Receiver<()>,
) {
    let mut unpacker = Unpacker::new(shared, lane, granted);
    let work = receive(&mut unpacker, stream, &events);
    let ended = tokio::select! {
        biased;
        _ = stop => Ok(()),
        ended = work => ended,
    };
    if let Err(fault) = ended {
        let _ = events.send(Event::Input(Input::LaneFault { lane, fault })).await;
    }
    let _ = events.send(Event::Input(Input::LaneDown { lane })).await;
}

async fn receive(
    unpacker: &mut Unpacker,
    mut stream: Stream,
    events: &mpsc::Sender<Event>,
) -> Result<(), SessionError> {
    let mut body = vec![0; MAX_EXTENT_BYTES];
    stream.get_mut().0.read_ahead();
    loop {
        let header = match read_header(&mut stream, unpacker.lane, MAX_EXTENT_BYTES).await {
            Ok(header) => header,
            Err(ReadError::Malformed(error)) => return Err(malformed(&error)),
            Err(ReadError::Closed | ReadError::Io(_)) => return Ok(()),
        };
        let known = FrameType::from_byte(header.frame);
        let Some(body) = body.get_mut(..header.body_bytes()) else { return Ok(()) };
        unpacker.charge(header.body_bytes())?;
        if stream.read_exact(body).await.is_err() {
            return Ok(());
        }
        match known {
            Some(FrameType::Extent) => {}
            // An optional frame of a later version: charged, and skipped. spec: W-7
            None => continue,
            Some(other) => return Err(unpacker.fault(ErrorCode::Unexpected, format!("{other:?} on a bulk lane"))),
        }
        // The place in the queue comes first: between the write to the guest and the report of it
        // nothing may stop this worker, or a burial would deny what was applied.
        let Ok(place) = events.reserve().await else { return Ok(()) };
        place.send(Event::Input(Input::Applied(unpacker.apply(body)?)));
    }
}

fn malformed(error: &WireError) -> SessionError {
    SessionError::PeerViolation {
        code: ErrorCode::Malformed,
        lane: error.lane,
        position: u64::try_from(error.at).unwrap_or(u64::MAX),
        what: error.to_string(),
    }
}

/// A worker's state and buffers: about 2 MiB beside the body's.
struct Unpacker {
    shared: Arc<SinkLanes>,
    lane: LaneId,
    granted: Arc<AtomicU64>,
    received: u64,
    charged_at_last_ack: u64,
    next_seq: u64,
    leaves: Vec<Digest>,
    scratch: Vec<u8>,
    decoder: dwcp_hde::Decoder,
    clock: Clock,
    empty: Allowance,
}

impl Unpacker {
    fn new(shared: Arc<SinkLanes>, lane: LaneId, granted: Arc<AtomicU64>) -> Self {
        let clock = Clock::start();
        Self {
            empty: Allowance::new(EMPTY_EXTENTS, clock.now()),
            clock,
            shared,
            lane,
            granted,
            received: 0,
            charged_at_last_ack: 0,
            next_seq: 0,
            leaves: Vec::new(),
            scratch: Vec::new(),
            decoder: dwcp_hde::Decoder::new(),
        }
    }

    /// Charges a frame before its body is read. spec: C-1
    fn charge(&mut self, body_bytes: usize) -> Result<(), SessionError> {
        let bytes = u64::try_from(body_bytes + FRAME_HEADER_BYTES).unwrap_or(u64::MAX);
        self.received = self.received.saturating_add(bytes);
        // Acquire pairs with the store before the credit frame goes out.
        let granted = self.granted.load(Ordering::Acquire);
        if self.received > granted {
            let what = format!("{} bytes were sent, {granted} were granted", self.received);
            return Err(self.fault(ErrorCode::CreditExceeded, what));
        }
        Ok(())
    }

    /// Verifies an extent and writes it to the guest; nothing of it is written before its digest is
    /// found right. spec: E-1, E-2, E-4, E-5
    fn apply(&mut self, body: &[u8]) -> Result<Applied, SessionError> {
        let bad = ErrorCode::BadExtent;
        let decoded = ExtentHead::decode(body);
        let (head, block) = decoded.map_err(|fault| malformed(&fault.on(self.lane, FrameType::Extent.byte())))?;
        if head.seq != self.next_seq {
            let what = format!("sequence number {} where {} is due", head.seq, self.next_seq);
            return Err(self.fault(bad, what));
        }
        if head.epoch != self.shared.epoch {
            return Err(self.fault(bad, format!("{} where {} is due", head.epoch, self.shared.epoch)));
        }
        self.charge_empty(&head.extent)?;
        let layout = self.shared.guest.layout();
        let bounds = head.extent.check(layout).map_err(|error| self.fault(bad, error.to_string()))?;
        let numbers: Vec<u32> = head.extent.page_numbers().collect();
        let region = head.extent.region();
        let guest = Arc::clone(&self.shared.guest);
        let mut failed: Option<GuestError> = None;
        let mut bases = |index: usize, into: &mut [u8]| {
            let number = numbers.get(index).copied().ok_or(dwcp_hde::BaseMissing)?;
            guest.read(region, number, into).map_err(|error| {
                failed = Some(error);
                dwcp_hde::BaseMissing
            })
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let plain = self.decoder.decode(block, head.extent.pages(), &mut bases, &mut scratch);
        if let Some(error) = failed {
            return Err(error.into());
        }
        let plain = plain.map_err(|error| self.undecodable(&error))?;
        self.leaves.clear();
        hash_pages(plain, &mut self.leaves);
        if extent_digest(head.epoch, &head.extent, &self.leaves) != head.digest {
            return Err(SessionError::Integrity {
                code: ErrorCode::ExtentDigest,
                lane: self.lane,
                position: head.seq,
                what: "the digest of an extent does not match its plain bytes".into(),
            });
        }
        let mut rest = plain;
        for run in head.extent.runs() {
            let Some((pages, after)) = rest.split_at_checked(run.bytes()) else { break };
            self.shared.guest.write(region, run.start, pages)?;
            rest = after;
        }
        for (number, digest) in numbers.iter().zip(&self.leaves) {
            self.shared.leaves.set(FlatPage(bounds.first + number), *digest);
        }
        let mut leaves = self.leaves.as_slice();
        for run in head.extent.runs() {
            let Some((these, after)) = leaves.split_at_checked(usize::from(run.count)) else { break };
            self.shared.guest.written(region, run.start, these);
            leaves = after;
        }
        self.scratch = scratch;
        Ok(self.applied(&head))
    }

    fn applied(&mut self, head: &ExtentHead) -> Applied {
        self.next_seq += 1;
        let wire_bytes = self.received - self.charged_at_last_ack;
        self.charged_at_last_ack = self.received;
        let pages = u16::try_from(head.extent.pages()).unwrap_or(u16::MAX);
        Applied { lane: self.lane, seq: head.seq, wire_bytes, pages }
    }

    /// A block that claims too much is meant so; one that is broken may be so by chance. spec: K-5
    fn undecodable(&self, error: &dwcp_hde::DecodeError) -> SessionError {
        let what = format!("block: {error}");
        let (lane, position) = (self.lane, self.next_seq);
        match error {
            dwcp_hde::DecodeError::OutOfMemory => GuestError::Other(error.to_string()).into(),
            excess if excess.is_excess() => self.fault(ErrorCode::BadExtent, what),
            _ => SessionError::Integrity { code: ErrorCode::BadBlock, lane, position, what },
        }
    }

    /// Charges an extent that carries no page. spec: F-2
    fn charge_empty(&mut self, extent: &Extent) -> Result<(), SessionError> {
        if extent.pages() > 0 || self.empty.take(self.clock.now()) {
            return Ok(());
        }
        Err(flood(self.lane, self.next_seq, "more extents without a page than there is use for"))
    }

    fn fault(&self, code: ErrorCode, what: String) -> SessionError {
        SessionError::PeerViolation { code, lane: self.lane, position: self.next_seq, what }
    }
}
