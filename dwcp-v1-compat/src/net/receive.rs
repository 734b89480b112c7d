use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use dwcp_core::session::Time;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::error::TransferError;
use super::landing::Landing;
use super::lent::is_socket;
use super::side_by_side::side_by_side;
use super::tally::{Direction, Tally};
use crate::message::{ConnectionId, Deadlines, Incoming, IncomingConfig, Received, Shape, Status};

/// What one read takes at most: a few of v1's chunks.
const READ: usize = 256 * 1024;

/// The connections of a message: those that are there, and those that come while it is taken.
#[derive(Debug)]
pub struct Arrivals<S> {
    /// Connections that are there.
    pub ready: Vec<S>,
    /// Connections that come. `None`: no more will.
    pub more: Option<mpsc::Receiver<S>>,
}

impl<S> Arrivals<S> {
    /// These and no others.
    pub fn fixed(ready: Vec<S>) -> Self {
        Self { ready, more: None }
    }
}

/// How a message is taken.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// What is known of it.
    pub shape: Shape,
    /// Connections at a time, 256 at most; more are hung up on.
    pub most_connections: u16,
    /// How long what may take.
    pub deadlines: Deadlines,
    /// Where it is counted.
    pub tally: Tally,
}

/// Takes one message, whose bytes go to `landing` as they come.
///
/// A success means no more than [`Received::assurance`] says. After an error `landing` holds a part of the message.
///
/// # Errors
/// The message has a [`Defect`](crate::message::Defect), or `landing` refused it.
///
/// Cancel safe: all connections are closed, and `landing` holds a part of the message.
pub async fn receive<S>(
    arrivals: Arrivals<S>,
    landing: &mut dyn Landing,
    options: &ReceiveOptions,
) -> Result<Received, TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let collected = collect(arrivals, landing, options);
    options.tally.counting(Direction::Received, collected, |received| received.bytes).await
}

/// As [`receive`], for whoever counts the transfer himself.
pub(super) async fn collect<S>(
    arrivals: Arrivals<S>,
    landing: &mut dyn Landing,
    options: &ReceiveOptions,
) -> Result<Received, TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let ReceiveOptions { shape, most_connections, deadlines, ref tally } = *options;
    let config = IncomingConfig { shape, most_connections, window: landing.window(), deadlines };
    let incoming = Incoming::new(config, Time::default()).map_err(TransferError::Config)?;
    let taking = Taking::new(incoming);
    let lender = landing.lender().filter(|_| is_socket::<S>());
    let done = match lender {
        Some(guest) => side_by_side(arrivals, taking, guest, tally).await,
        None => {
            let Arrivals { ready, more } = arrivals;
            let mut all = InTurns { taking, open: Vec::new(), next: 0, turn: 0, start: Instant::now() };
            all.run(ready, more, landing, tally).await
        }
    };
    done.inspect_err(|error| {
        if let TransferError::Defect(defect) = error {
            tally.defect(defect.kind());
        }
    })
}

enum Event<S> {
    Arrived(Option<S>),
    /// So many bytes of the connection at this index. `None`: it broke.
    Read(usize, Option<usize>),
    Tick,
}

/// One task, which reads all connections in turns.
struct InTurns<S> {
    taking: Taking,
    open: Vec<(ConnectionId, S)>,
    /// The next connection's number.
    next: u32,
    /// Which connection is asked first, so that each has its turn.
    turn: usize,
    start: Instant,
}

impl<S: AsyncRead + Unpin + Send> InTurns<S> {
    async fn run(
        &mut self,
        ready: Vec<S>,
        mut more: Option<mpsc::Receiver<S>>,
        landing: &mut dyn Landing,
        tally: &Tally,
    ) -> Result<Received, TransferError> {
        let mut buffer = vec![0; READ];
        for stream in ready {
            self.arrived(stream, tally);
        }
        loop {
            if let Some(received) = self.taking.incoming.received() {
                return Ok(received);
            }
            let due = self.taking.due(self.start);
            let next = async {
                tokio::select! {
                    stream = arrival(&mut more) => Event::Arrived(stream),
                    (index, read) = self.read_any(&mut buffer) => Event::Read(index, read),
                }
            };
            // What is there already is read first, however late we are.
            let event = tokio::select! {
                biased;
                event = next => event,
                () = sleep_until(due) => Event::Tick,
            };
            let now = self.now();
            match event {
                Event::Arrived(Some(stream)) => self.arrived(stream, tally),
                Event::Arrived(None) => more = None,
                Event::Read(index, read) => {
                    let read = read.map(|length| buffer.get(..length).unwrap_or_default());
                    self.read(now, index, read, landing)?;
                    self.taking.incoming.away(self.now().since(now));
                }
                Event::Tick => self.taking.tick(now)?,
            }
        }
    }

    fn read(
        &mut self,
        now: Time,
        index: usize,
        read: Option<&[u8]>,
        landing: &mut dyn Landing,
    ) -> Result<(), TransferError> {
        let Some(id) = self.open.get(index).map(|(id, _)| *id) else { return Ok(()) };
        match read {
            Some([]) => {
                self.open.swap_remove(index);
                Ok(self.taking.incoming.fin(now, id)?)
            }
            None => {
                self.open.swap_remove(index);
                Ok(self.taking.incoming.lost(now, id)?)
            }
            Some(bytes) => self.taking.put(now, id, bytes, landing),
        }
    }

    fn now(&self) -> Time {
        Time::after_epoch(self.start.elapsed())
    }

    /// One too many is hung up on: whoever it is, the message goes on without it.
    fn arrived(&mut self, stream: S, tally: &Tally) {
        let id = ConnectionId(self.next);
        match self.taking.incoming.connect(self.now(), id) {
            Ok(()) => {
                self.next = self.next.wrapping_add(1);
                self.open.push((id, stream));
            }
            Err(defect) => tally.defect(defect.kind()),
        }
    }

    /// The next connection that has something to say and may say it.
    async fn read_any(&mut self, buffer: &mut [u8]) -> (usize, Option<usize>) {
        let Self { taking, open, turn, .. } = self;
        poll_fn(|cx| {
            let count = open.len();
            for step in 0..count {
                let index = (*turn + step) % count;
                let Some((id, stream)) = open.get_mut(index) else { continue };
                let wanted = taking.incoming.wanted(*id).min(buffer.len());
                let Some(room) = buffer.get_mut(..wanted).filter(|room| !room.is_empty()) else { continue };
                let mut room = ReadBuf::new(room);
                if let Poll::Ready(done) = Pin::new(stream).poll_read(cx, &mut room) {
                    *turn = index + 1;
                    return Poll::Ready((index, done.ok().map(|()| room.filled().len())));
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// A message that is taken, whoever reads its connections.
pub(super) struct Taking {
    pub(super) incoming: Incoming,
    /// The landing knows the length.
    begun: bool,
}

impl Taking {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self { incoming, begun: false }
    }

    /// Puts what a connection carried into its place.
    pub(super) fn put(
        &mut self,
        now: Time,
        id: ConnectionId,
        mut bytes: &[u8],
        landing: &mut dyn Landing,
    ) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            let taken = self.incoming.take(now, id, bytes)?;
            if let Some(total) = self.incoming.total().filter(|_| !self.begun) {
                landing.begin(total)?;
                self.begun = true;
            }
            if let Some(piece) = taken.piece {
                let bytes = bytes.get(piece.range.clone()).unwrap_or_default();
                if !piece.again {
                    landing.put(piece.at, bytes)?;
                } else if !landing.same(piece.at, bytes)? {
                    return Err(self.incoming.differs(id, &piece).into());
                }
            }
            if taken.used == 0 {
                return Err(TransferError::Config("more was read of a connection than may be taken"));
            }
            bytes = bytes.get(taken.used..).unwrap_or_default();
        }
        if landing.window().is_some() {
            let used = landing.advance(self.incoming.front())?;
            self.incoming.used(used);
        }
        Ok(())
    }

    /// When something is too late.
    pub(super) fn due(&self, start: Instant) -> Instant {
        start + self.incoming.deadline().since_epoch()
    }

    /// It is late.
    pub(super) fn tick(&mut self, now: Time) -> Result<(), TransferError> {
        if self.incoming.tick(now)? == Status::Done && self.incoming.received().is_none() {
            return Err(TransferError::Config("a message ended that had no length"));
        }
        Ok(())
    }
}

pub(super) async fn arrival<S>(more: &mut Option<mpsc::Receiver<S>>) -> Option<S> {
    match more {
        Some(more) => more.recv().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::time::sleep;

    use super::*;
    use crate::message::{Defect, DefectKind};
    use crate::net::BytesLanding;

    /// In simulated time: it speaks every three seconds, and two minutes later it has lost its place.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_drips_is_hung_up_on_and_counted() {
        let (mut far, near) = tokio::io::duplex(64);
        let dripping = tokio::spawn(async move {
            far.write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]).await.unwrap();
            while far.write_all(&[7]).await.is_ok() {
                sleep(Duration::from_secs(3)).await;
            }
        });
        let shape = Shape::Amst16 { most_bytes: 1 << 20, most_chunk_bytes: 1 << 16 };
        let (deadlines, tally) = (Deadlines::default(), Tally::default());
        let options = ReceiveOptions { shape, most_connections: 1, deadlines, tally };
        let start = Instant::now();
        let mut landing = BytesLanding::new(1 << 20);
        let error = receive(Arrivals::fixed(vec![near]), &mut landing, &options).await.unwrap_err();
        assert!(matches!(error, TransferError::Defect(Defect::Slow { .. })), "{error}");
        assert_eq!(start.elapsed().as_secs(), 120);
        assert_eq!(options.tally.defects().of(DefectKind::Slow), 1);
        dripping.await.unwrap();
    }
}
