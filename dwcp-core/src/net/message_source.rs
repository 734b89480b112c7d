//! A lane of messages at the source: one worker that reads, hashes, encodes, waits for its word, and writes.

use std::cell::RefCell;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

use super::buffers::Share;
use super::clock::Stopwatch;
use super::driver::{Event, Stream};
use super::lane_source::{Ended, LaneError, Press, SourceLanes, Terms};
use crate::guest::GuestError;
use crate::message::{MessageCodec, MessageError, message_digest};
use crate::session::{Dispatch, Encoded, Input};
use crate::wire::limits::MAX_MESSAGE_BYTES;
use crate::wire::{Digest, LaneId, Message};

thread_local! {
    /// Of each lane thread: a message is made without a pause.
    static WORKSHOP: RefCell<Workshop> = RefCell::default();
}

/// What it takes to make a message, shared by the lanes of a thread.
struct Workshop {
    press: Press,
    blocks: Vec<u8>,
}

impl Default for Workshop {
    fn default() -> Self {
        Self { press: Press::new(), blocks: Vec::new() }
    }
}

/// A message that waits for its word.
struct Made {
    message: Message,
    wire: Vec<u8>,
    encoded: Vec<Encoded>,
}

/// What tells a worker what to do.
pub(super) struct Orders {
    pub(super) work: mpsc::Receiver<Dispatch>,
    /// The message that was made may go.
    pub(super) ship: mpsc::Receiver<()>,
    pub(super) leave: oneshot::Receiver<LaneId>,
}

/// Works until the queue closes, the lane dies, or it is told to end.
pub(super) async fn carry(
    shared: &Arc<SourceLanes>,
    terms: Terms,
    orders: Orders,
    events: &mpsc::Sender<Event>,
    mut stream: Stream,
) -> Result<Ended, LaneError> {
    let Orders { mut work, mut ship, mut leave } = orders;
    let Some(codec) = shared.codec.clone() else { return Ok(Ended::Closed) };
    let share = Share::of(&shared.threads);
    if let Stream::Client(client) = &mut stream {
        client.get_mut().1.set_buffer_limit(Some(share.bytes));
    }
    let mut written = 0;
    let mut batch = Vec::new();
    loop {
        batch.clear();
        tokio::select! {
            biased;
            next = &mut leave => return Ok(next.map_or(Ended::Closed, |next| Ended::Left { stream: Box::new(stream), end: written, next })),
            count = work.recv_many(&mut batch, share.extents) => if count == 0 { break },
        }
        let made = WORKSHOP.with_borrow_mut(|shop| shop.make(shared, &*codec, terms, &batch))?;
        failpoint!("source.lane.printed");
        for encoded in made.encoded {
            if events.send(Event::Input(Input::Encoded(encoded))).await.is_err() {
                return Ok(Ended::Closed);
            }
        }
        if events.send(Event::Input(Input::Prepared(made.message))).await.is_err() || ship.recv().await.is_none() {
            return Ok(Ended::Closed);
        }
        failpoint!("source.lane.reported");
        stream.write_all(&made.wire).await.map_err(LaneError::Io)?;
        stream.flush().await.map_err(LaneError::Io)?;
        failpoint!("source.lane.written");
        written = made.message.first + u64::from(made.message.extents);
    }
    let _ = stream.shutdown().await;
    Ok(Ended::Closed)
}

impl Workshop {
    fn make(
        &mut self,
        shared: &SourceLanes,
        codec: &dyn MessageCodec,
        terms: Terms,
        batch: &[Dispatch],
    ) -> Result<Made, LaneError> {
        let mut encoded = Vec::with_capacity(batch.len());
        let mut leaves: Vec<Digest> = Vec::new();
        let mut pages = Vec::new();
        self.blocks.clear();
        let lane = batch.first().map_or(LaneId::CONTROL, |dispatch| dispatch.lane);
        let first = batch.first().map_or(0, |dispatch| dispatch.seq);
        for dispatch in batch {
            let watch = Stopwatch::start();
            let cut = self.press.cut(&shared.pages, dispatch).map_err(LaneError::Guest)?;
            let mut rest = cut.plain;
            for (first, count) in cut.runs {
                let Some((run, after)) = rest.split_at_checked(count * crate::PAGE_BYTES) else { break };
                codec.block(first, run, &mut self.blocks).map_err(failed)?;
                pages.extend((first.0..).take(count).map(crate::extent::FlatPage));
                rest = after;
            }
            leaves.extend_from_slice(cut.leaves);
            let (carried, same) = (cut.carried, cut.same);
            let encode = watch.elapsed();
            encoded.push(Encoded { lane, seq: dispatch.seq, carried, same, encode, wire_bytes: 0 });
        }
        let mut wire = Vec::new();
        codec.wrap(&self.blocks, &mut wire).map_err(failed)?;
        let too_long = || failed(MessageError { what: "the message is too long".into(), at: wire.len() });
        let bytes = u32::try_from(wire.len()).ok().filter(|&bytes| bytes <= MAX_MESSAGE_BYTES);
        let bytes = bytes.ok_or_else(too_long)?;
        share_out(u64::from(bytes), &mut encoded);
        let digest = message_digest(terms.epoch, lane, first, pages.iter().copied().zip(&leaves));
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let extents = u16::try_from(batch.len()).unwrap_or(u16::MAX);
        Ok(Made { message: Message { lane, first, extents, pages: count(pages.len()), bytes, digest }, wire, encoded })
    }
}

/// Each extent of a message has its share of the bytes: together they are what the lane is charged.
fn share_out(bytes: u64, encoded: &mut [Encoded]) {
    let count = u64::try_from(encoded.len()).unwrap_or(1).max(1);
    for (index, encoded) in (0..).zip(encoded) {
        encoded.wire_bytes = bytes * (index + 1) / count - bytes * index / count;
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: MessageError) -> LaneError {
    LaneError::Guest(GuestError::Other(format!("a message cannot be made: {error}")))
}
