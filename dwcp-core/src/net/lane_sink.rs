//! A bulk lane at the sink: one worker that reads, verifies, decodes and writes.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwcp_hde::Dictionaries;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use super::buffers::{Share, grow};
use super::clock::{Clock, thread_time};
use super::conduct::{EMPTY_EXTENTS, flood};
use super::driver::{Event, Stream};
use super::handshake::{ReadError, read_header};
use super::lane_source::Terms;
use super::message_sink;
use super::threads::Threads;
use crate::extent::FlatPage;
use crate::guest::{Guest, OldPages};
use crate::message::MessageCodec;
use crate::session::allowance::Allowance;
use crate::session::verify::{Checked, ExtentCheck, Workbench, malformed};
use crate::session::{Applied, Input, Leaves, SessionError};
use crate::wire::limits::MAX_EXTENT_BYTES;
use crate::wire::{
    ErrorCode, ExtentHead, FRAME_HEADER_BYTES, FenceEpoch, FencedLane, FrameHeader, FrameType, Framing, LaneId,
};

/// What all workers of one session share.
pub(super) struct SinkLanes {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) leaves: Arc<Leaves>,
    /// Reads messages, where lanes carry them.
    pub(super) codec: Option<Arc<dyn MessageCodec>>,
    pub(super) threads: Threads,
    /// Which blocks may name.
    pub(super) dictionaries: Dictionaries,
    /// Whose pages blocks may name.
    pub(super) baseline: Option<Arc<dyn OldPages>>,
}

/// How a worker ended.
pub(super) enum Ended {
    Closed,
    /// It has come to where it was told to end; the connection goes on as another lane.
    Reached {
        stream: Box<Stream>,
        fenced: FencedLane,
    },
}

/// What a worker begins with.
pub(super) struct Joining {
    pub(super) terms: Terms,
    pub(super) stream: Stream,
    pub(super) granted: Arc<AtomicU64>,
    pub(super) orders: message_sink::Orders,
}

/// Works until the lane ends, carries something wrong, or `stop` fires; then reports its end.
/// Nothing is applied or reported after that: this is what a burial waits for. spec: B-2
pub(super) async fn run(
    shared: Arc<SinkLanes>,
    joining: Joining,
    events: mpsc::Sender<Event>,
    stop: oneshot::Receiver<()>,
) {
    let Joining { terms, stream, granted, orders } = joining;
    let lane = terms.lane;
    let work = async {
        match terms.framing {
            Framing::Extents => {
                let mut unpacker = Unpacker::new(Arc::clone(&shared), lane, terms.epoch, granted);
                receive(&mut unpacker, orders.end, stream, &events).await
            }
            Framing::Messages => message_sink::receive(&shared, terms, orders, stream, &events).await,
        }
    };
    let ended = tokio::select! {
        biased;
        _ = stop => Ok(Ended::Closed),
        ended = work => ended,
    };
    match ended {
        Ok(Ended::Closed) => {}
        Ok(Ended::Reached { stream, fenced }) => {
            let _ = events.send(Event::Kept { lane: fenced.next, stream }).await;
            let _ = events.send(Event::Input(Input::LaneEnded(fenced))).await;
        }
        Err(fault) => {
            let _ = events.send(Event::Input(Input::LaneFault { lane, fault })).await;
        }
    }
    let _ = events.send(Event::Input(Input::LaneDown { lane })).await;
}

/// The end that a worker was told, and the wait for it.
struct End {
    told: Option<FencedLane>,
    order: oneshot::Receiver<FencedLane>,
}

impl End {
    /// The next header; `None` when the lane ends before it.
    async fn header(&mut self, stream: &mut Stream, unpacker: &Unpacker) -> Result<Option<FrameHeader>, ReadError> {
        let next_seq = unpacker.check.next_seq();
        let over = |told: &Option<FencedLane>| told.is_some_and(|fenced| next_seq >= fenced.end);
        if over(&self.told) {
            return Ok(None);
        }
        // Kept while the order comes: a header may be half read. At the end nothing is: its source writes nothing
        // more before it is answered.
        let mut header = std::pin::pin!(read_header(stream, unpacker.lane, MAX_EXTENT_BYTES));
        loop {
            tokio::select! {
                biased;
                fenced = &mut self.order, if self.told.is_none() => {
                    // Without anybody to tell its end, this worker is being stopped.
                    self.told = Some(fenced.map_err(|_| ReadError::Closed)?);
                    if over(&self.told) {
                        return Ok(None);
                    }
                }
                header = &mut header => return header.map(Some),
            }
        }
    }
}

async fn receive(
    unpacker: &mut Unpacker,
    order: oneshot::Receiver<FencedLane>,
    mut stream: Stream,
    events: &mpsc::Sender<Event>,
) -> Result<Ended, SessionError> {
    let mut end = End { told: None, order };
    let threads = unpacker.shared.threads.clone();
    let share = Share::of(&threads);
    stream.get_mut().0.read_ahead(share.bytes);
    loop {
        let header = match end.header(&mut stream, unpacker).await {
            Ok(Some(header)) => header,
            Ok(None) => {
                return Ok(end
                    .told
                    .map_or(Ended::Closed, |fenced| Ended::Reached { stream: Box::new(stream), fenced }));
            }
            Err(ReadError::Malformed(error)) => return Err(malformed(&error)),
            Err(ReadError::Closed | ReadError::Io(_)) => return Ok(Ended::Closed),
        };
        let known = FrameType::from_byte(header.frame);
        unpacker.charge(header.body_bytes())?;
        let mut body = threads.buffers().take();
        grow(&mut body, header.body_bytes());
        let Some(bytes) = body.get_mut(..header.body_bytes()) else { return Ok(Ended::Closed) };
        if stream.read_exact(bytes).await.is_err() {
            return Ok(Ended::Closed);
        }
        failpoint!("sink.lane.read");
        match known {
            Some(FrameType::Extent) => {
                // The place in the queue comes first: between the write to the guest and the report of it
                // nothing may stop this worker, or a burial would deny what was applied.
                let Ok(place) = events.reserve().await else { return Ok(Ended::Closed) };
                let began = thread_time();
                let applied = WORKBENCH.with_borrow_mut(|bench| unpacker.apply(bench, bytes))?;
                let spent = thread_time().saturating_sub(began);
                place.send(Event::Input(Input::Applied(applied)));
                failpoint!("sink.lane.applied");
                for _ in 0..unpacker.turn.spend(spent) {
                    tokio::task::yield_now().await;
                }
            }
            // An optional frame of a later version: charged, and skipped. spec: W-7
            None => {}
            Some(other) => return Err(unpacker.fault(ErrorCode::Unexpected, format!("{other:?} on a bulk lane"))),
        }
        threads.buffers().give(body);
    }
}

thread_local! {
    /// Of each lane thread: a check is never interrupted by another.
    static WORKBENCH: RefCell<Workbench> = RefCell::default();
}

/// What a lane may compute on its thread before the others there come. Its peer decides what stands in a byte: 4096 zeros,
/// or a page of a baseline for which 64 are unpacked, so that no number of bytes or pages is a bound. A lane whose extent took
/// as long as ten turns lets each other have ten.
#[derive(Debug, Default)]
struct Turn {
    used: Duration,
}

/// About as long as 256 pages take.
const TURN: Duration = Duration::from_millis(1);
/// Turns that one extent costs at most: more than 256 pages can take.
const MOST_TURNS: u32 = 256;

impl Turn {
    /// Uses some time; returns how many turns of others are due.
    fn spend(&mut self, time: Duration) -> u32 {
        self.used = (self.used + time).min(TURN * MOST_TURNS);
        let turns = u32::try_from(self.used.as_micros() / TURN.as_micros()).unwrap_or(MOST_TURNS);
        self.used -= TURN * turns;
        turns
    }
}

/// A worker's state. Its buffers are its endpoint's.
struct Unpacker {
    shared: Arc<SinkLanes>,
    lane: LaneId,
    granted: Arc<AtomicU64>,
    received: u64,
    charged_at_last_ack: u64,
    check: ExtentCheck,
    clock: Clock,
    empty: Allowance,
    turn: Turn,
}

impl Unpacker {
    fn new(shared: Arc<SinkLanes>, lane: LaneId, epoch: FenceEpoch, granted: Arc<AtomicU64>) -> Self {
        let clock = Clock::start();
        Self {
            check: ExtentCheck::new(lane, epoch)
                .with_dictionaries(shared.dictionaries.clone())
                .with_baseline(shared.baseline.clone()),
            empty: Allowance::new(EMPTY_EXTENTS, clock.now()),
            clock,
            turn: Turn::default(),
            shared,
            lane,
            granted,
            received: 0,
            charged_at_last_ack: 0,
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

    /// Writes an extent to the guest once it is found right.
    fn apply(&mut self, bench: &mut Workbench, body: &[u8]) -> Result<Applied, SessionError> {
        let SinkLanes { guest, leaves: table, .. } = &*self.shared;
        let mut read = |region, page, into: &mut [u8]| guest.read(region, page, into);
        let Checked { head, bounds, plain, leaves } = self.check.check(bench, body, guest.layout(), &mut read)?;
        let region = head.extent.region();
        failpoint!("sink.lane.verified");
        let mut rest = plain;
        for run in head.extent.runs() {
            let Some((pages, after)) = rest.split_at_checked(run.bytes()) else { break };
            guest.write(region, run.start, pages)?;
            rest = after;
        }
        failpoint!("sink.lane.written");
        for (number, digest) in head.extent.page_numbers().zip(leaves) {
            table.set(FlatPage(bounds.first + number), *digest);
        }
        let mut rest = leaves;
        for run in head.extent.runs() {
            let Some((these, after)) = rest.split_at_checked(usize::from(run.count)) else { break };
            guest.written(region, run.start, these);
            rest = after;
        }
        self.charge_empty(&head)?;
        Ok(self.applied(&head))
    }

    fn applied(&mut self, head: &ExtentHead) -> Applied {
        let wire_bytes = self.received - self.charged_at_last_ack;
        self.charged_at_last_ack = self.received;
        let pages = u16::try_from(head.extent.pages()).unwrap_or(u16::MAX);
        Applied { lane: self.lane, seq: head.seq, wire_bytes, pages, durable: self.shared.guest.durable() }
    }

    /// Charges an extent that carries no page. spec: F-2
    fn charge_empty(&mut self, head: &ExtentHead) -> Result<(), SessionError> {
        if head.extent.pages() > 0 || self.empty.take(self.clock.now()) {
            return Ok(());
        }
        Err(flood(self.lane, head.seq, "more extents without a page than there is use for"))
    }

    fn fault(&self, code: ErrorCode, what: String) -> SessionError {
        SessionError::PeerViolation { code, lane: self.lane, position: self.check.next_seq(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_have_as_many_turns_as_an_extent_took() {
        let micros = Duration::from_micros;
        let mut turn = Turn::default();
        let spent = [400, 400, 400, 0, 58_000, 700, 100].map(|time| turn.spend(micros(time)));
        assert_eq!(spent, [0, 0, 1, 0, 58, 0, 1], "what is left of a turn counts in the next");
        assert_eq!(turn.spend(Duration::from_secs(3600)), MOST_TURNS);
        assert_eq!(turn.spend(micros(999)), 0, "and no more is owed");
    }
}
