//! A lane of messages at the sink: one worker that reads what was announced, verifies it whole, and writes it.

use std::cell::RefCell;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use super::buffers::Share;
use super::driver::{Event, Stream};
use super::lane_sink::{Ended, SinkLanes};
use super::lane_source::Terms;
use crate::extent::{FlatPage, PAGE_BYTES, RegionId};
use crate::message::{MessageCodec, MessageError, message_digest};
use crate::session::page_hash::hash_pages;
use crate::session::{Applied, Input, SessionError};
use crate::wire::{Digest, ErrorCode, FencedLane, Message};

/// What tells a worker what to do.
pub(super) struct Orders {
    pub(super) expect: mpsc::Receiver<Message>,
    pub(super) end: oneshot::Receiver<FencedLane>,
}

/// Works until the lane ends, carries something wrong, or reaches the end that it was told.
pub(super) async fn receive(
    shared: &Arc<SinkLanes>,
    terms: Terms,
    orders: Orders,
    mut stream: Stream,
    events: &mpsc::Sender<Event>,
) -> Result<Ended, SessionError> {
    let Orders { mut expect, mut end } = orders;
    let Some(codec) = shared.codec.clone() else { return Ok(Ended::Closed) };
    let share = Share::of(&shared.threads);
    stream.get_mut().0.read_ahead(share.bytes);
    let (mut next_seq, mut told) = (0, None);
    loop {
        if let Some(fenced) = told.filter(|fenced: &FencedLane| next_seq >= fenced.end) {
            return Ok(Ended::Reached { stream: Box::new(stream), fenced });
        }
        let message = tokio::select! {
            biased;
            message = expect.recv() => match message {
                Some(message) => message,
                None => return Ok(Ended::Closed),
            },
            fenced = &mut end, if told.is_none() => match fenced {
                Ok(fenced) => {
                    told = Some(fenced);
                    continue;
                }
                Err(_) => return Ok(Ended::Closed),
            },
        };
        // Bounded by what was granted before it was announced (V-6), and no memory is taken before bytes come.
        let mut wire = Vec::new();
        let read = (&mut stream).take(message.bytes.into()).read_to_end(&mut wire).await;
        if read.is_err() || u32::try_from(wire.len()) != Ok(message.bytes) {
            return Ok(Ended::Closed);
        }
        failpoint!("sink.lane.read");
        let Ok(place) = events.reserve().await else { return Ok(Ended::Closed) };
        let applied = BENCH.with_borrow_mut(|bench| {
            let found = bench.read(shared, &*codec, terms, &message, &wire)?;
            bench.write(shared, &message, found)
        })?;
        next_seq = applied.seq + 1;
        place.send(Event::Input(Input::Applied(applied)));
        failpoint!("sink.lane.applied");
    }
}

thread_local! {
    /// Of each lane thread: a check is never interrupted by another.
    static BENCH: RefCell<Bench> = RefCell::default();
}

/// The plain pages of a message, and where they belong.
#[derive(Default)]
struct Bench {
    plain: Vec<u8>,
    leaves: Vec<Digest>,
    blocks: Vec<Placed>,
}

#[derive(Clone, Copy)]
struct Placed {
    region: RegionId,
    /// Within the region.
    page: u32,
    flat: FlatPage,
    count: usize,
}

/// A message that may be written.
struct Sound;

impl Bench {
    /// Nothing comes out of it that was not found right. spec: V-6
    fn read(
        &mut self,
        shared: &SinkLanes,
        codec: &dyn MessageCodec,
        terms: Terms,
        message: &Message,
        wire: &[u8],
    ) -> Result<Sound, SessionError> {
        let (Self { plain, leaves, blocks }, Terms { lane, epoch, .. }) = (self, terms);
        plain.clear();
        leaves.clear();
        blocks.clear();
        let layout = shared.guest.layout();
        let most = usize::try_from(message.pages).unwrap_or(0);
        let mut take = |first: FlatPage, pages: &[u8]| {
            let wrong = |what: &str| MessageError { what: what.into(), at: plain.len() };
            let count = pages.len() / PAGE_BYTES;
            if pages.is_empty() || !pages.len().is_multiple_of(PAGE_BYTES) || plain.len() / PAGE_BYTES + count > most {
                return Err(wrong("a block that is not whole pages, or more of them than were announced"));
            }
            let (region, page) = layout.locate(first).ok_or_else(|| wrong("a block outside the layout"))?;
            let bounds = layout.region(region).ok_or_else(|| wrong("a block outside the layout"))?;
            let end = u32::try_from(count).ok().and_then(|count| page.checked_add(count));
            if end.is_none_or(|end| end > bounds.pages) {
                return Err(wrong("a block beyond the end of its region"));
            }
            plain.extend_from_slice(pages);
            blocks.push(Placed { region, page, flat: first, count });
            Ok(())
        };
        let position = message.first;
        codec.read(wire, &mut take).map_err(|error| {
            let code = ErrorCode::BadBlock;
            SessionError::Integrity { code, lane, position, what: format!("message: {error}") }
        })?;
        hash_pages(plain, leaves);
        let pages = blocks.iter().flat_map(|block| (block.flat.0..).take(block.count).map(FlatPage));
        let whole = plain.len() / PAGE_BYTES == most;
        if !whole || message_digest(epoch, lane, message.first, pages.zip(leaves.iter())) != message.digest {
            let what = "the digest of a message does not match its plain pages".into();
            return Err(SessionError::Integrity { code: ErrorCode::ExtentDigest, lane, position, what });
        }
        failpoint!("sink.lane.verified");
        Ok(Sound)
    }

    fn write(&self, shared: &SinkLanes, message: &Message, Sound: Sound) -> Result<Applied, SessionError> {
        let (mut plain, mut leaves) = (self.plain.as_slice(), self.leaves.as_slice());
        for block in &self.blocks {
            let Some((pages, rest)) = plain.split_at_checked(block.count * PAGE_BYTES) else { break };
            let Some((these, others)) = leaves.split_at_checked(block.count) else { break };
            shared.guest.write(block.region, block.page, pages)?;
            failpoint!("sink.lane.written");
            for (page, leaf) in (block.flat.0..).zip(these) {
                shared.leaves.set(FlatPage(page), *leaf);
            }
            shared.guest.written(block.region, block.page, these);
            (plain, leaves) = (rest, others);
        }
        let seq = message.first + u64::from(message.extents) - 1;
        let pages = u16::try_from(message.pages).unwrap_or(u16::MAX);
        let wire_bytes = u64::from(message.bytes);
        Ok(Applied { lane: message.lane, seq, wire_bytes, pages, durable: shared.guest.durable() })
    }
}
