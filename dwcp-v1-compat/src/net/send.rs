use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dwcp_core::session::Time;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::TransferError;
use super::lent::{Part, all_taken, poll_write, socket};
use super::payload::Payload;
use super::tally::{Direction, Tally};
use crate::message::Outgoing;
use crate::wire::Framing;
use crate::wire::limits::MIN_PROGRESS;

/// Bytes that all connections of a message hold together, beside one header each.
const HELD: usize = 16 << 20;
/// What a connection holds at most: v1's default chunk of mst8.
const PART: usize = 256 * 1024;
/// What one call gives to a socket at most of memory that is lent: each call ends with a segment that is not full.
const LENT: u64 = 1 << 20;

/// How a message is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// As the peer is set.
    pub framing: Framing,
    /// Bytes of a chunk. An mst8 peer must be set to the same; v1's own defaults are 256 KiB for mst8, 64 KiB for amst16.
    pub chunk_bytes: u32,
    /// How long the peer may take nothing.
    pub stall: Duration,
    /// How long it may take for another MiB, or for the rest: a byte a minute is no silence. Time in which the payload
    /// is read does not count.
    pub progress: Duration,
    /// After all is sent, how long the peer may take to close its end.
    pub linger: Duration,
    /// Where it is counted.
    pub tally: Tally,
}

impl SendOptions {
    /// With v1's chunk size, 60 s, 120 s and 10 s.
    pub fn new(framing: Framing) -> Self {
        let chunk_bytes = match framing {
            Framing::Mst8 => 256 * 1024,
            Framing::Amst16 => 64 * 1024,
        };
        let [stall, progress, linger] = [60, 120, 10].map(Duration::from_secs);
        Self { framing, chunk_bytes, stall, progress, linger, tally: Tally::default() }
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
    /// Whether the peer closed all connections after their last byte, in time. Its system took all bytes then; nothing more. An
    /// end that came before that does not count.
    pub closed: bool,
}

/// Sends one message over connections that have carried nothing yet, and closes them.
///
/// # Errors
/// v1 cannot carry it, `payload` cannot be read, or a connection failed, or took too little for too long: then nobody knows
/// what arrived.
///
/// Cancel safe: all connections are closed, and the peer has a part of the message.
pub async fn send<S>(streams: Vec<S>, payload: &mut dyn Payload, options: &SendOptions) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
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
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let total = payload.bytes();
    let mut sending = Sending::of(streams, total, options)?;
    let chunks = sending.outgoing.chunks();
    let pace = Pace { limit: options.progress, since: Instant::now(), took: 0, left: total };
    sending.run(payload, options.stall, pace).await?;
    let closed = match timeout(options.linger, sending.closed()).await {
        Ok(closed) => closed?,
        Err(_) => false,
    };
    Ok(Sent { bytes: total, chunks, closed })
}

struct Lane<S> {
    stream: S,
    number: u16,
    /// What is to be written, and so many bytes of it are.
    parts: Vec<Bytes>,
    filled: usize,
    written: usize,
    /// Those that are not lent, one behind the other.
    buffer: Vec<u8>,
    held: usize,
    /// What is left of the chunk behind them: where, and how much.
    at: u64,
    left: u32,
    state: State,
    /// The peer ended it before it can have had all.
    early: bool,
}

/// Bytes that are to be written, and how many.
#[derive(Clone, Copy)]
enum Bytes {
    /// Of the buffer, behind those of the part before.
    Held(usize),
    /// Of the message, from there on, where the payload has them.
    Lent(u64, usize),
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
        Self {
            stream,
            number,
            parts: Vec::new(),
            filled: 0,
            written: 0,
            buffer: Vec::new(),
            held: 0,
            at: 0,
            left: 0,
            state: State::Sending,
            early: false,
        }
    }

    /// Everything is written.
    fn empty(&mut self) {
        self.parts.clear();
        (self.filled, self.written, self.held) = (0, 0, 0);
    }

    /// Room for so many more bytes, which are to be written.
    fn fill(&mut self, more: usize) -> &mut [u8] {
        let room = self.held..self.held + more;
        self.held = room.end;
        self.filled += more;
        self.parts.push(Bytes::Held(more));
        if self.buffer.len() < room.end {
            self.buffer.resize(room.end, 0);
        }
        self.buffer.get_mut(room).unwrap_or_default()
    }

    /// What is left to be written, part by part.
    fn rest<'a>(&'a self, payload: &'a dyn Payload) -> impl Iterator<Item = Part<'a>> {
        let (mut skip, mut held) = (self.written, 0);
        self.parts.iter().filter_map(move |part| match *part {
            Bytes::Held(bytes) => {
                let start = held + bytes.min(skip);
                held += bytes;
                skip -= bytes.min(skip);
                self.buffer.get(start..held).filter(|rest| !rest.is_empty()).map(Part::Ours)
            }
            Bytes::Lent(at, bytes) => {
                let written = bytes.min(skip);
                skip -= written;
                let at = at + u64::try_from(written).unwrap_or(0);
                payload.lend(at, bytes - written).map(Part::Lent)
            }
        })
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
    /// Bytes that a connection is given at a time, and such that are lent.
    part: usize,
    lent: usize,
    /// Which connection is asked first, so that each has its turn.
    turn: usize,
    start: Instant,
}

/// How much the peer takes, headers included.
struct Pace {
    limit: Duration,
    /// When it had taken another MiB.
    since: Instant,
    /// Since then.
    took: u64,
    /// Bytes of the message that it did not take, or somewhat fewer: headers are counted as if they were some.
    left: u64,
}

impl Pace {
    fn due(&self) -> Instant {
        self.since + self.limit
    }

    fn took(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.took += bytes;
        self.left = self.left.saturating_sub(bytes);
        if self.took >= MIN_PROGRESS {
            (self.since, self.took) = (Instant::now(), 0);
        }
    }

    fn too_slow(&self) -> TransferError {
        TransferError::Slow { after: self.limit, took: self.took, least: MIN_PROGRESS, left: self.left }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Sending<S> {
    fn of(streams: Vec<S>, total: u64, options: &SendOptions) -> Result<Self, TransferError> {
        let count = u16::try_from(streams.len()).unwrap_or(u16::MAX);
        let outgoing = Outgoing::new(options.framing, total, options.chunk_bytes, count, Time::default())?;
        let part = PART.min(HELD / streams.len().max(1));
        // A message that is short has a share for each connection.
        let lent = usize::try_from(LENT.min(total / u64::from(count.max(1)))).unwrap_or(part).max(part);
        let lanes = streams.into_iter().zip(0..count).map(|(stream, number)| Lane::new(stream, number)).collect();
        Ok(Self { outgoing, lanes, header: Vec::new(), part, lent, turn: 0, start: Instant::now() })
    }

    async fn run(&mut self, payload: &mut dyn Payload, stall: Duration, mut pace: Pace) -> Result<(), TransferError> {
        for index in 0..self.lanes.len() {
            self.refill(index, payload)?;
        }
        pace.since = Instant::now();
        while self.lanes.iter().any(|lane| matches!(lane.state, State::Sending | State::Closing)) {
            let silent = Instant::now() + stall;
            let due = silent.min(pace.due());
            let progress = timeout_at(due, self.progress(payload)).await;
            let late = |_| if due == silent { TransferError::Stalled { after: stall } } else { pace.too_slow() };
            let (index, written) = progress.map_err(late)??;
            pace.took(written);
            let reading = Instant::now();
            self.refill(index, payload)?;
            pace.since += reading.elapsed();
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
        lane.empty();
        let lends = socket(&lane.stream).is_some();
        let mut room = self.lent;
        // What is held of the message is bounded, whatever could be lent of it.
        while room > 0 && lane.held < self.part {
            if lane.left == 0 {
                let Some(chunk) = self.outgoing.next(lane.number, now)? else { break };
                self.header.clear();
                chunk.header.encode(&mut self.header);
                lane.fill(self.header.len()).copy_from_slice(&self.header);
                (lane.at, lane.left) = (chunk.at, chunk.header.length);
            }
            let mut here = room.min(usize::try_from(lane.left).unwrap_or(usize::MAX));
            match payload.lend(lane.at, here).filter(|_| lends) {
                Some(lent) => {
                    here = lent.len().min(here);
                    lane.parts.push(Bytes::Lent(lane.at, here));
                    lane.filled += here;
                }
                None => {
                    here = here.min(self.part.saturating_sub(lane.held).max(1));
                    payload.read_at(lane.at, lane.fill(here))?;
                }
            }
            lane.at += u64::try_from(here).unwrap_or(0);
            lane.left -= u32::try_from(here).unwrap_or(0);
            room -= here;
        }
        if lane.filled == 0 {
            lane.state = State::Closing;
        }
        Ok(())
    }

    /// Which connection wrote so many bytes, or its end.
    async fn progress(&mut self, payload: &mut dyn Payload) -> Result<(usize, usize), TransferError> {
        let Self { lanes, turn, .. } = self;
        poll_fn(move |cx| {
            let count = lanes.len();
            for step in 0..count {
                let index = (*turn + step) % count;
                let Some(lane) = lanes.get_mut(index) else { continue };
                if let Poll::Ready(done) = write(lane, payload, cx) {
                    *turn = index + 1;
                    return Poll::Ready(done.map(|written| (index, written)).map_err(|error| lane.lost(error)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The peer closed all connections: whether none of them before it had all.
    async fn closed(&mut self) -> Result<bool, TransferError> {
        poll_fn(|cx| {
            for lane in self.lanes.iter_mut().filter(|lane| lane.state != State::Closed) {
                if let Err(error) = ready!(poll_end(&mut lane.stream, cx)) {
                    return Poll::Ready(Err(lane.lost(error)));
                }
                lane.early |= socket(&lane.stream).is_some_and(|socket| !all_taken(socket));
                lane.state = State::Closed;
            }
            Poll::Ready(Ok(()))
        })
        .await?;
        Ok(self.lanes.iter().all(|lane| !lane.early))
    }
}

/// `Ready` when the peer has closed a connection. What it says before is nothing that v1 has, and is dropped.
fn poll_end<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut dropped = [0; 4096];
    loop {
        let mut room = ReadBuf::new(&mut dropped);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut room))?;
        if room.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// `Ready` when the connection got on, by so many bytes or by its end.
fn write<S>(lane: &mut Lane<S>, payload: &dyn Payload, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    match lane.state {
        State::Ended | State::Closed => Poll::Pending,
        State::Closing => Pin::new(&mut lane.stream).poll_shutdown(cx).map_ok(|()| {
            lane.state = State::Ended;
            0
        }),
        State::Sending => {
            if !lane.early {
                lane.early = poll_end(&mut lane.stream, cx)?.is_ready();
            }
            let written = ready!(match socket(&lane.stream) {
                Some(socket) if lane.held < lane.filled => poll_write(socket, cx, lane.rest(payload)),
                _ => {
                    let rest = lane.buffer.get(lane.written..lane.held).unwrap_or_default();
                    Pin::new(&mut lane.stream).poll_write(cx, rest)
                }
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            lane.written += written;
            Poll::Ready(Ok(written))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::sleep;

    use super::*;
    use crate::net::TransferEnding;

    /// Sends so many bytes to a peer that takes `bite` of them every three seconds, in simulated time.
    async fn sent_to(bite: usize, bytes: usize) -> (Result<Sent, TransferError>, Duration, Tally) {
        let (near, mut far) = tokio::io::duplex(64);
        let taking = tokio::spawn(async move {
            let mut bitten = vec![0; bite];
            while far.read(&mut bitten).await.is_ok_and(|count| count > 0) {
                sleep(Duration::from_secs(3)).await;
            }
        });
        let options = SendOptions::new(Framing::Amst16);
        let start = Instant::now();
        let done = send(vec![near], &mut vec![7; bytes], &options).await;
        let took = start.elapsed();
        taking.await.unwrap();
        (done, took, options.tally)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_byte_every_few_seconds_is_given_up_and_counted() {
        let (done, took, tally) = sent_to(1, 1 << 20).await;
        let error = done.unwrap_err();
        assert!(matches!(error, TransferError::Slow { took: 90..=120, left, .. } if left > 1_000_000), "{error}");
        assert_eq!((took.as_secs(), tally.sent().ended[&TransferEnding::Unreachable]), (120, 1));
    }

    /// A socket takes a mebibyte of what is lent at a time; what is not is held, and bounded for all connections together.
    #[tokio::test]
    async fn what_is_not_lent_is_held_in_small_parts_also_for_sockets() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut payload = vec![7; 8 << 20];
        let options = SendOptions::new(Framing::Amst16);
        let mut sending = Sending::of(vec![stream], Payload::bytes(&payload), &options).unwrap();
        sending.refill(0, &mut payload).unwrap();
        let held = sending.lanes[0].buffer.len();
        assert!((PART..=PART + 64).contains(&held), "{held}");
    }

    /// It half-closed a connection that it was to read, and need not have read a byte.
    #[tokio::test]
    async fn an_end_before_the_last_byte_is_not_taken_for_one_after_it() {
        for (early, read) in [(true, true), (true, false), (false, true)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut far = listener.accept().await.unwrap().0;
            if early {
                far.shutdown().await.unwrap();
                near.readable().await.unwrap();
            }
            let mut payload = vec![7; 20_000];
            let options = SendOptions::new(Framing::Amst16);
            let reading = async {
                if read {
                    far.read_to_end(&mut Vec::new()).await.unwrap();
                    far.shutdown().await.unwrap();
                }
                far
            };
            let (sent, _far) = tokio::join!(send(vec![near], &mut payload, &options), reading);
            assert_eq!(sent.unwrap().closed, !early, "{early}, {read}");
        }
    }

    /// It ends when we have written all, and has not taken it.
    #[tokio::test]
    async fn an_end_of_a_peer_that_has_not_taken_all_is_not_taken_for_one_after_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        let mut payload = vec![7; 64_000];
        let options = SendOptions::new(Framing::Amst16);
        let mut sending = Sending::of(vec![near], Payload::bytes(&payload), &options).unwrap();
        let pace = Pace { limit: options.progress, since: Instant::now(), took: 0, left: 64_000 };
        sending.run(&mut payload, options.stall, pace).await.unwrap();
        far.shutdown().await.unwrap();
        assert!(!sending.closed().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_of_a_message_may_be_fewer_than_a_mebibyte() {
        let (done, took, _) = sent_to(64, 2000).await;
        done.unwrap();
        assert!((90..120).contains(&took.as_secs()), "{took:?}");
    }
}
