//! A message whose connections are read side by side, each by a task of its own, straight into memory that a guest lends.
//!
//! ```text
//! reader  ─┐  asks where the next bytes belong, lets the socket put them there, tells so
//! reader  ─┼─> Taking (a lock, never held over a read)
//! reader  ─┘
//! driver: connections that come, deadlines, the end
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dwcp_core::Guest;
use dwcp_core::session::Time;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::error::TransferError;
use super::landing::GuestLanding;
use super::lent::{poll_read, socket};
use super::pages::lend_flat;
use super::receive::{Arrivals, Taking, arrival};
use super::tally::Tally;
use crate::message::{ConnectionId, Received};

/// What a reader holds of headers, of chunks that came again, and of regions that are not lent: 256 readers hold 16 MiB.
const HELD: usize = 64 * 1024;
/// When something is late, how long readers may still find what is there already: we may be those who were late.
const GRACE: Duration = Duration::from_millis(100);

/// Takes one message into a guest that lends its memory, over connections that are sockets.
///
/// Cancel safe: all connections are closed; once it is dropped, nobody writes to the guest.
pub(super) async fn side_by_side<S>(
    arrivals: Arrivals<S>,
    taking: Taking,
    guest: Arc<dyn Guest>,
    tally: &Tally,
) -> Result<Received, TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let landing = GuestLanding::new(Arc::clone(&guest))?;
    let shared = Arc::new(Shared {
        message: Mutex::new(Message { taking, landing }),
        guest,
        open: RwLock::new(true),
        sooner: Notify::new(),
        start: Instant::now(),
    });
    // Dropped last, when no reader is asked to go on any more.
    let _closing = Closing(Arc::clone(&shared));
    let mut readers = JoinSet::new();
    let mut next = 0;
    let mut arrived = |stream: S, readers: &mut JoinSet<_>| {
        let id = ConnectionId(next);
        match shared.lock().taking.incoming.connect(shared.now(), id) {
            Ok(()) => {
                next = next.wrapping_add(1);
                readers.spawn(Arc::clone(&shared).read_all(stream, id));
            }
            // One too many is hung up on: whoever it is, the message goes on without it.
            Err(defect) => tally.defect(defect.kind()),
        }
    };
    let Arrivals { ready, mut more } = arrivals;
    ready.into_iter().for_each(|stream| arrived(stream, &mut readers));
    // Since when something is late. What else happens meanwhile does not begin its grace anew.
    let mut late_at = None;
    loop {
        let due = {
            let taking = &shared.lock().taking;
            if let Some(received) = taking.incoming.received() {
                return Ok(received);
            }
            taking.due(shared.start)
        };
        late_at = late_at.filter(|(known, _)| *known == due).or_else(|| Some((due, due.max(Instant::now()) + GRACE)));
        let late = sleep_until(late_at.map_or(due, |(_, until)| until));
        tokio::select! {
            biased;
            () = late => shared.lock().taking.tick(shared.now())?,
            Some(read) = readers.join_next() => read.unwrap_or(Err(TransferError::Cancelled))?,
            () = shared.sooner.notified() => {}
            stream = arrival(&mut more) => match stream {
                Some(stream) => arrived(stream, &mut readers),
                None => more = None,
            },
        }
    }
}

struct Message {
    taking: Taking,
    /// For what the socket cannot put in its place.
    landing: GuestLanding,
}

struct Shared {
    message: Mutex<Message>,
    guest: Arc<dyn Guest>,
    /// Held while the guest is written to.
    open: RwLock<bool>,
    /// Another deadline counts, an earlier one: the first byte has come, or the last.
    sooner: Notify,
    start: Instant,
}

/// From its end on nobody writes to the guest: readers that were aborted may still be running.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Bytes that were read of a connection; none: its end.
struct Came {
    /// Of them are in their place already.
    placed: usize,
    /// Behind them, in the buffer.
    held: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Message> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        Time::after_epoch(self.start.elapsed())
    }

    /// Until the connection ends.
    async fn read_all<S: AsyncRead + Unpin + 'static>(
        self: Arc<Self>,
        mut stream: S,
        id: ConnectionId,
    ) -> Result<(), TransferError> {
        let mut buffer = vec![0; HELD];
        loop {
            let came = poll_fn(|cx| self.read(&mut stream, id, &mut buffer, cx)).await;
            // Nobody else writes what this connection carries, so the lock is needed for the books alone; but once it is
            // closed, the landing must not be used either.
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            if !*open {
                return Err(TransferError::Cancelled);
            }
            let now = self.now();
            let Message { taking, landing } = &mut *self.lock();
            let due = taking.incoming.deadline();
            match came {
                Ok(Came { placed: 0, held: 0 }) => return Ok(taking.incoming.fin(now, id)?),
                Err(_) => return Ok(taking.incoming.lost(now, id)?),
                Ok(Came { placed, held }) => {
                    taking.incoming.placed(now, id, placed);
                    taking.put(now, id, buffer.get(..held).unwrap_or_default(), landing)?;
                }
            }
            if taking.incoming.deadline() < due {
                self.sooner.notify_one();
            }
        }
    }

    /// Reads the rest of a chunk into its place and the header behind it into the buffer, or else what is no data of another
    /// chunk: that stays in the socket until its header tells where it belongs.
    fn read<S: AsyncRead + Unpin + 'static>(
        &self,
        stream: &mut S,
        id: ConnectionId,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Came>> {
        let (wanted, place) = {
            let incoming = &self.lock().taking.incoming;
            (incoming.to_next(id), incoming.place(id))
        };
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let place = place.filter(|_| *open).and_then(|(at, bytes)| Some((bytes, lend_flat(&*self.guest, at, bytes)?)));
        if let (Some(socket), Some((bytes, lent))) = (socket(stream), place) {
            let behind = if lent.len() == bytes { wanted - bytes } else { 0 };
            let count = ready!(poll_read(socket, cx, lent, buffer.get_mut(..behind).unwrap_or_default()))?;
            let placed = count.min(lent.len());
            return Poll::Ready(Ok(Came { placed, held: count - placed }));
        }
        let mut room = ReadBuf::new(buffer.get_mut(..wanted.min(HELD)).unwrap_or_default());
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        Poll::Ready(Ok(Came { placed: 0, held: room.filled().len() }))
    }
}

#[cfg(test)]
mod tests {
    use dwcp_core::Layout;
    use dwcp_core::guest::Memory;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;
    use crate::message::{Deadlines, Defect, DefectKind, Incoming, IncomingConfig, Shape};

    /// Takes a message of one connection at a time, into memory.
    async fn taken(arrivals: Arrivals<DuplexStream>, tally: &Tally) -> Result<Received, TransferError> {
        let shape = Shape::Amst16 { most_bytes: 1 << 20, most_chunk_bytes: 1 << 16 };
        let config = IncomingConfig { shape, most_connections: 1, window: None, deadlines: Deadlines::default() };
        let taking = Taking::new(Incoming::new(config, Time::default()).unwrap());
        let guest: Arc<dyn Guest> = Arc::new(Memory::new(Layout::new(&[8]).unwrap()));
        side_by_side(arrivals, taking, guest, tally).await
    }

    /// In simulated time: who is refused every few milliseconds, also while something is late, changes nothing for the others. The
    /// message is as late as if nobody had dialled.
    #[tokio::test(start_paused = true)]
    async fn connections_that_are_refused_move_no_deadline() {
        // Half of a chunk, and then nothing.
        let part = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1, 2, 3, 4];
        let mut late_after = Vec::new();
        for step in [None, Some(70), Some(7)].map(|step| step.map(Duration::from_millis)) {
            let (mut far, near) = duplex(64);
            far.write_all(&part).await.unwrap();
            let (joins, more) = mpsc::channel(1);
            let dialling = tokio::spawn(async move {
                let Some(step) = step else { return 0 };
                // More than twice as long as it may take.
                for dialled in 0..20_000 {
                    if joins.send(duplex(64).1).await.is_err() {
                        return dialled;
                    }
                    sleep(step).await;
                }
                20_000
            });
            let (start, tally) = (Instant::now(), Tally::default());
            let error = taken(Arrivals { ready: vec![near], more: Some(more) }, &tally).await.unwrap_err();
            assert!(matches!(error, TransferError::Defect(Defect::Silent { .. })), "{error}");
            late_after.push(start.elapsed().as_millis());
            let (dialled, refused) = (dialling.await.unwrap(), tally.defects().of(DefectKind::TooManyConnections));
            // The last of them may find nobody.
            assert!(refused + 1 >= dialled && (step.is_none() || refused > 800), "{refused} of {dialled}");
            drop(far);
        }
        let least = (Deadlines::default().silence + GRACE).as_millis();
        assert!(late_after.iter().all(|after| (least..least + 3).contains(after)), "{late_after:?}");
    }

    /// Nor does one that is refused end the wait for a peer that closed all and dials again.
    #[tokio::test(start_paused = true)]
    async fn a_message_goes_on_over_the_next_connection_that_finds_a_place() {
        let chunk = |id: u8| [0, 0, 0, id, 0, 0, 0, id * 4, 0, 0, 0, 4, 0, 0, 0, 8, id, id, id, id];
        let (mut first, near) = duplex(64);
        let (joins, more) = mpsc::channel(1);
        let dialling = tokio::spawn(async move {
            first.write_all(&chunk(0)).await.unwrap();
            joins.send(duplex(64).1).await.unwrap();
            sleep(Duration::from_secs(50)).await;
            drop(first);
            sleep(Duration::from_millis(2900)).await;
            let (mut second, near) = duplex(64);
            second.write_all(&chunk(1)).await.unwrap();
            joins.send(near).await.unwrap();
        });
        let tally = Tally::default();
        let received = taken(Arrivals { ready: vec![near], more: Some(more) }, &tally).await.unwrap();
        dialling.await.unwrap();
        assert_eq!((received.bytes, received.connections, received.closed), (8, 2, true));
        assert_eq!(tally.defects().of(DefectKind::TooManyConnections), 1);
    }
}
