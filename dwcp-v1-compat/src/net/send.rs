use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use dwcp_core::session::Time;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::TransferError;
use super::payload::Payload;
use super::tally::{Direction, Tally};
use crate::message::Outgoing;
use crate::wire::Framing;

/// Bytes that all connections of a message hold together, beside one header each.
const HELD: usize = 16 << 20;
/// What a connection holds at most: v1's default chunk of mst8.
const PART: usize = 256 * 1024;

/// How a message is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// As the peer is set.
    pub framing: Framing,
    /// Bytes of a chunk. An mst8 peer must be set to the same; v1's own defaults are 256 KiB for mst8, 64 KiB for amst16.
    pub chunk_bytes: u32,
    /// How long the peer may take nothing.
    pub stall: Duration,
    /// After all is sent, how long the peer may take to close its end.
    pub linger: Duration,
    /// Where it is counted.
    pub tally: Tally,
}

impl SendOptions {
    /// With v1's chunk size, 60 s and 10 s.
    pub fn new(framing: Framing) -> Self {
        let chunk_bytes = match framing {
            Framing::Mst8 => 256 * 1024,
            Framing::Amst16 => 64 * 1024,
        };
        let (stall, linger) = (Duration::from_secs(60), Duration::from_secs(10));
        Self { framing, chunk_bytes, stall, linger, tally: Tally::default() }
    }
}

/// A message that was sent. v1 acknowledges nothing: whether it arrived, let alone was stored, is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// Its bytes.
    pub bytes: u64,
    /// Its chunks.
    pub chunks: u32,
    /// Whether the peer closed all connections after their last byte, in time. That it did not reset one means that its
    /// system took all bytes; nothing more.
    pub closed: bool,
}

/// Sends one message over connections that have carried nothing yet, and closes them.
///
/// # Errors
/// v1 cannot carry it, `payload` cannot be read, or a connection failed: then nobody knows what arrived.
///
/// Cancel safe: all connections are closed, and the peer has a part of the message.
pub async fn send<S>(streams: Vec<S>, payload: &mut dyn Payload, options: &SendOptions) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    options.tally.counting(Direction::Sent, transmit(streams, payload, options), |sent| sent.bytes).await
}

/// As [`send`], for whoever counts the transfer himself.
pub(super) async fn transmit<S>(
    streams: Vec<S>,
    payload: &mut dyn Payload,
    options: &SendOptions,
) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let count = u16::try_from(streams.len()).unwrap_or(u16::MAX);
    let total = payload.bytes();
    let outgoing = Outgoing::new(options.framing, total, options.chunk_bytes, count, Time::default())?;
    let chunks = outgoing.chunks();
    let part = PART.min(HELD / streams.len().max(1));
    let lanes = streams.into_iter().zip(0..count).map(|(stream, number)| Lane::new(stream, number)).collect();
    let mut sending = Sending { outgoing, lanes, header: Vec::new(), part, turn: 0, start: Instant::now() };
    sending.run(payload, options.stall).await?;
    let closed = match timeout(options.linger, sending.closed()).await {
        Ok(done) => done.map(|()| true)?,
        Err(_) => false,
    };
    Ok(Sent { bytes: total, chunks, closed })
}

struct Lane<S> {
    stream: S,
    number: u16,
    /// Header and data, of which `written..filled` are to be written.
    buffer: Vec<u8>,
    filled: usize,
    written: usize,
    /// What is left of the chunk behind them: where, and how much.
    at: u64,
    left: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    /// Nothing more to send; the end is to be written.
    Closing,
    /// We have ended; the peer has not.
    Ended,
    Closed,
}

impl<S> Lane<S> {
    fn new(stream: S, number: u16) -> Self {
        Self { stream, number, buffer: Vec::new(), filled: 0, written: 0, at: 0, left: 0, state: State::Sending }
    }

    /// Room for so many more bytes, which are to be written.
    fn fill(&mut self, more: usize) -> &mut [u8] {
        let room = self.filled..self.filled + more;
        self.filled = room.end;
        if self.buffer.len() < room.end {
            self.buffer.resize(room.end, 0);
        }
        self.buffer.get_mut(room).unwrap_or_default()
    }

    fn lost(&self, source: io::Error) -> TransferError {
        TransferError::Lost { connection: self.number.into(), source }
    }
}

struct Sending<S> {
    outgoing: Outgoing,
    lanes: Vec<Lane<S>>,
    /// Of the chunk that is begun.
    header: Vec<u8>,
    part: usize,
    /// Which connection is asked first, so that each has its turn.
    turn: usize,
    start: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Sending<S> {
    async fn run(&mut self, payload: &mut dyn Payload, stall: Duration) -> Result<(), TransferError> {
        for index in 0..self.lanes.len() {
            self.refill(index, payload)?;
        }
        while self.lanes.iter().any(|lane| matches!(lane.state, State::Sending | State::Closing)) {
            let due = Instant::now() + stall;
            let index =
                timeout_at(due, self.progress()).await.map_err(|_| TransferError::Stalled { after: stall })??;
            self.refill(index, payload)?;
        }
        Ok(())
    }

    /// Gives a connection that has written everything its next bytes.
    fn refill(&mut self, index: usize, payload: &mut dyn Payload) -> Result<(), TransferError> {
        let now = Time::after_epoch(self.start.elapsed());
        let Some(lane) = self.lanes.get_mut(index) else { return Ok(()) };
        if lane.state != State::Sending {
            return Ok(());
        }
        if lane.written > 0 {
            self.outgoing.wrote(lane.number, now);
        }
        if lane.written < lane.filled {
            return Ok(());
        }
        (lane.filled, lane.written) = (0, 0);
        let mut room = self.part;
        while room > 0 {
            if lane.left == 0 {
                let Some(chunk) = self.outgoing.next(lane.number, now)? else { break };
                self.header.clear();
                chunk.header.encode(&mut self.header);
                lane.fill(self.header.len()).copy_from_slice(&self.header);
                (lane.at, lane.left) = (chunk.at, chunk.header.length);
            }
            let here = room.min(usize::try_from(lane.left).unwrap_or(usize::MAX));
            payload.read_at(lane.at, lane.fill(here))?;
            lane.at += u64::try_from(here).unwrap_or(0);
            lane.left -= u32::try_from(here).unwrap_or(0);
            room -= here;
        }
        if lane.filled == 0 {
            lane.state = State::Closing;
        }
        Ok(())
    }

    /// Which connection wrote something, or its end.
    async fn progress(&mut self) -> Result<usize, TransferError> {
        let Self { lanes, turn, .. } = self;
        poll_fn(|cx| {
            let count = lanes.len();
            for step in 0..count {
                let index = (*turn + step) % count;
                let Some(lane) = lanes.get_mut(index) else { continue };
                if let Poll::Ready(done) = write(lane, cx) {
                    *turn = index + 1;
                    return Poll::Ready(done.map(|()| index).map_err(|error| lane.lost(error)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The peer closed all connections. What it says before is nothing that v1 has, and is dropped.
    async fn closed(&mut self) -> Result<(), TransferError> {
        let mut dropped = [0; 4096];
        poll_fn(|cx| {
            for lane in self.lanes.iter_mut().filter(|lane| lane.state != State::Closed) {
                loop {
                    let mut room = ReadBuf::new(&mut dropped);
                    match Pin::new(&mut lane.stream).poll_read(cx, &mut room) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(lane.lost(error))),
                        Poll::Ready(Ok(())) if room.filled().is_empty() => break,
                        Poll::Ready(Ok(())) => {}
                    }
                }
                lane.state = State::Closed;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

/// `Ready` when the connection got on.
fn write<S: AsyncWrite + Unpin>(lane: &mut Lane<S>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let stream = Pin::new(&mut lane.stream);
    match lane.state {
        State::Ended | State::Closed => Poll::Pending,
        State::Closing => stream.poll_shutdown(cx).map_ok(|()| lane.state = State::Ended),
        State::Sending => {
            let rest = lane.buffer.get(lane.written..lane.filled).unwrap_or_default();
            match stream.poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    lane.written += written;
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        }
    }
}
