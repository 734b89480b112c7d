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
