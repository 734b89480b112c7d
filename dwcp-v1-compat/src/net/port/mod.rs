//! One port for v3 in TLS and for v1 in clear text.
//!
//! ```text
//!  dwcp_core::net::Listener ── accepted ──> LegacyPort ── begins as TLS does ──> its handshake
//!                                              |  └─ v1, from who may not ──> hung up on, counted
//!                                              └─ v1 ──> Groups ──> LegacyListener ──> LegacyArrival (one message)
//! ```
//!
//! Only addresses that the operator named are spoken to in clear text, and none of them once it has spoken v3 unless the
//! operator said so, too: v1 proves nothing of who sends, so an address that can do better is taken at its word.

mod look;
mod policy;
mod spoken;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use dwcp_core::net::{Openings, Sorted, Sorting, TurnedAway};
use dwcp_core::session::Time;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

pub use self::policy::{PlaintextPolicy, Refused};
pub use self::spoken::SpokenV3;
use super::connect::tune;
use super::receive::Arrivals;
use crate::detect::{GroupCounts, GroupId, Groups, GroupsConfig, Route, Sight, Standing};
use crate::message::ConnectionId;

/// Connections of a transfer that wait to be taken up: as many as v1 opens.
const WAITING: usize = 256;

/// Sorts what comes to a port: give it to [`Endpoint::with_openings`](dwcp_core::net::Endpoint::with_openings).
///
/// At most 64 v1 transfers at a time, one from each address; [`GroupsConfig`] has the other bounds. A connection that says
/// nothing has 5 s, unless a v1 transfer from its address is under way: then it is held until that is over.
#[derive(Debug)]
pub struct LegacyPort {
    policy: PlaintextPolicy,
    spoken: Arc<SpokenV3>,
    arrived: mpsc::Sender<LegacyArrival>,
    table: Table,
}

/// The v1 transfers that come to a port.
#[derive(Debug)]
pub struct LegacyListener {
    arrivals: mpsc::Receiver<LegacyArrival>,
    table: Table,
    spoken: Arc<SpokenV3>,
}

/// A v1 transfer that began, and waits to be taken. Dropped, it is hung up on, and counted as
/// [`unclaimed`](GroupCounts::unclaimed).
#[derive(Debug)]
pub struct LegacyArrival {
    from: IpAddr,
    connections: Arrivals<Member>,
    place: Place,
}

impl LegacyPort {
    /// For peers that speak as the policy says. `spoken` is told of addresses that speak v3, and asked.
    pub fn new(policy: PlaintextPolicy, spoken: Arc<SpokenV3>) -> (Arc<Self>, LegacyListener) {
        spoken.protect(policy.allowed());
        let config = GroupsConfig::default();
        let (arrived, arrivals) = mpsc::channel(config.most_groups);
        let table = Table::new(config);
        let listener = LegacyListener { arrivals, table: table.clone(), spoken: Arc::clone(&spoken) };
        (Arc::new(Self { policy, spoken, arrived, table }), listener)
    }

    async fn look(&self, stream: TcpStream, from: SocketAddr) -> Sorted {
        let address = from.ip().to_canonical();
        match self.policy.allows(address, &self.spoken) {
            Ok(()) => self.take(stream, address).await,
            Err(refused) => self.refuse(stream, refused).await,
        }
    }

    /// Of an address that may speak nothing but TLS.
    async fn refuse(&self, stream: TcpStream, refused: Refused) -> Sorted {
        let framing = self.policy.framing();
        let why = match timeout(GroupsConfig::default().deadline, look::opening(&stream, framing)).await {
            Ok(Some(Sight::Tls)) => return Sorted::Tls(stream),
            Ok(Some(Sight::V1 { .. })) => match refused {
                Refused::NotAllowed { .. } => TurnedAway::ClearText,
                Refused::SpokeV3 { .. } => TurnedAway::DowngradeRefused,
            },
            Ok(Some(Sight::Garbage | Sight::More) | None) => TurnedAway::NotAuthenticated,
            Err(_) => TurnedAway::TimedOut,
        };
        Sorted::TurnedAway(why, Some(stream))
    }

    /// Of an address that may speak either.
    async fn take(&self, stream: TcpStream, address: IpAddr) -> Sorted {
        let Some(mut waiting) = self.table.enter(address) else {
            return Sorted::TurnedAway(TurnedAway::OverAddressLimit, Some(stream));
        };
        let sight = tokio::select! {
            sight = look::opening(&stream, self.policy.framing()) => sight,
            silent = waiting.closed() => {
                return if silent { Sorted::TurnedAway(TurnedAway::TimedOut, Some(stream)) } else { Sorted::Taken };
            }
        };
        // v1 closes what it opened and had no use for.
        let Some(sight) = sight else { return Sorted::Taken };
        let why = match waiting.spoke(sight) {
            Way::Tls => return Sorted::Tls(stream),
            Way::Start(group, more) => return self.start(group, more, stream, address),
            Way::Join(group, joins) => return self.join(group, &joins, sight, stream, address),
            // The transfer was counted when it ended.
            Way::Over => return Sorted::Taken,
            Way::Close(crate::detect::TurnedAway::Garbage) => TurnedAway::NotAuthenticated,
            Way::Close(_) => TurnedAway::OverAddressLimit,
        };
        Sorted::TurnedAway(why, Some(stream))
    }

    fn start(&self, group: GroupId, more: mpsc::Receiver<Member>, stream: TcpStream, from: IpAddr) -> Sorted {
        let place = Place { table: self.table.clone(), group, claimed: false, whole: false };
        let ready = vec![self.table.member(group, stream)];
        let arrival = LegacyArrival { from, connections: Arrivals { ready, more: Some(more) }, place };
        match self.arrived.try_send(arrival) {
            Ok(()) => Sorted::Taken,
            // The peer may speak v1, so nothing is held against it; the arrival is dropped, which is counted.
            Err(TrySendError::Closed(_)) => Sorted::Taken,
            Err(TrySendError::Full(_)) => Sorted::TurnedAway(TurnedAway::OverAddressLimit, None),
        }
    }

    fn join(
        &self,
        group: GroupId,
        joins: &mpsc::Sender<Member>,
        sight: Sight,
        stream: TcpStream,
        from: IpAddr,
    ) -> Sorted {
        match joins.try_send(self.table.member(group, stream)) {
            Ok(()) => Sorted::Taken,
            Err(TrySendError::Full(_)) => Sorted::TurnedAway(TurnedAway::OverAddressLimit, None),
            // All of the message had come a moment ago, or it failed: a first chunk is of the next one, all else its rest.
            Err(TrySendError::Closed(member)) if sight == (Sight::V1 { first: true }) => {
                match self.table.enter(from).map(|mut next| next.spoke(sight)) {
                    Some(Way::Start(group, more)) => self.start(group, more, member.stream, from),
                    _ => Sorted::TurnedAway(TurnedAway::OverAddressLimit, None),
                }
            }
            Err(TrySendError::Closed(_)) => Sorted::Taken,
        }
    }
}

impl Openings for LegacyPort {
    fn sort(&self, stream: TcpStream, from: SocketAddr) -> Sorting<'_> {
        Box::pin(self.look(stream, from))
    }

    fn authenticated(&self, from: IpAddr) {
        self.spoken.remember(from);
    }
}

impl LegacyListener {
    /// The next v1 transfer; `None` once its port is gone.
    ///
    /// Cancel safe: dropped, it has taken nothing.
    pub async fn accept(&mut self) -> Option<LegacyArrival> {
        self.arrivals.recv().await
    }

    /// How often what happened at the port, of addresses that may speak v1.
    pub fn counts(&self) -> GroupCounts {
        self.table.lock().groups.counts()
    }

    /// How often who spoke v3 could not be written down; see [`SpokenV3::unwritten`].
    pub fn unwritten(&self) -> u64 {
        self.spoken.unwritten()
    }

    /// How often who spoke v3 was forgotten to make room; see [`SpokenV3::forgotten`].
    pub fn forgotten(&self) -> u64 {
        self.spoken.forgotten()
    }

    /// Connections that say nothing now, of such addresses: watched for 5 s, or held for a transfer.
    pub fn silent(&self) -> usize {
        self.table.lock().groups.load().0
    }
}

impl LegacyArrival {
    /// From where. That is all that is known of the peer.
    pub fn from(&self) -> IpAddr {
        self.from
    }

    /// Its connections, and what holds its address's place as long as it lives.
    pub(super) fn split(mut self) -> (Arrivals<Member>, Place) {
        self.place.claimed = true;
        (self.connections, self.place)
    }

    /// Closed when no more of its connections are read: the message is complete, or has failed.
    pub(super) fn more(&self) -> Option<mpsc::Sender<Member>> {
        self.place.table.lock().transfers.get(&self.place.group).cloned()
    }
}

/// What a port knows of connections that have not spoken, and of transfers.
#[derive(Clone)]
struct Table(Arc<Mutex<State>>);

struct State {
    groups: Groups,
    /// Where further connections of a transfer go.
    transfers: HashMap<GroupId, mpsc::Sender<Member>>,
    /// How those are told to close that have not spoken: whether for their silence.
    waiting: HashMap<ConnectionId, oneshot::Sender<bool>>,
    next: u32,
    start: Instant,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.lock().groups.counts()).finish()
    }
}

impl Table {
    fn new(config: GroupsConfig) -> Self {
        let (transfers, waiting) = (HashMap::new(), HashMap::new());
        let state = State { groups: Groups::new(config), transfers, waiting, next: 0, start: Instant::now() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: there are too many.
    fn enter(&self, address: IpAddr) -> Option<Waiting> {
        let mut state = self.lock();
        let connection = ConnectionId(state.next);
        state.next = state.next.wrapping_add(1);
        let now = state.now();
        let until = match state.groups.accepted(now, connection, address).ok()? {
            Standing::Watched { until } => Some(state.start + until.since_epoch()),
            Standing::Held(_) => None,
        };
        let (close, closed) = oneshot::channel();
        state.waiting.insert(connection, close);
        Some(Waiting { table: self.clone(), connection, address, until, closed })
    }

    fn member(&self, group: GroupId, stream: TcpStream) -> Member {
        tune(&stream);
        Member { stream, _seat: Seat { table: self.clone(), group } }
    }
}

impl State {
    fn now(&self) -> Time {
        Time::after_epoch(self.start.elapsed())
    }

    /// Nobody reads what more comes for a message that is complete, though it may still be stored.
    fn close_complete(&mut self, from: IpAddr) {
        let Some(group) = self.groups.joined_from(from) else { return };
        if self.transfers.get(&group).is_none_or(mpsc::Sender::is_closed) {
            self.groups.complete(group);
        }
    }

    fn close(&mut self, connection: ConnectionId, silent: bool) {
        if let Some(close) = self.waiting.remove(&connection) {
            // It may have gone by itself.
            let _ = close.send(silent);
        }
    }
}

/// Where a connection goes that has spoken, and how it gets there.
enum Way {
    Tls,
    Start(GroupId, mpsc::Receiver<Member>),
    Join(GroupId, mpsc::Sender<Member>),
    /// It is of a transfer that is over.
    Over,
    Close(crate::detect::TurnedAway),
}

/// A connection that has not spoken; forgotten when dropped.
struct Waiting {
    table: Table,
    connection: ConnectionId,
    address: IpAddr,
    /// Its deadline when it came; a transfer that began since may hold it.
    until: Option<Instant>,
    closed: oneshot::Receiver<bool>,
}

impl Waiting {
    /// Returns when it is to be closed: whether for its silence, or because the transfer that held it is over.
    async fn closed(&mut self) -> bool {
        loop {
            tokio::select! {
                closed = &mut self.closed => return closed.unwrap_or(false),
                () = passed(self.until) => {
                    self.until = None;
                    let mut state = self.table.lock();
                    let now = state.now();
                    while let Some(silent) = state.groups.expired(now) {
                        state.close(silent, true);
                    }
                }
            }
        }
    }

    /// In one step with the way that further connections of a transfer take: they may be right behind.
    fn spoke(&mut self, sight: Sight) -> Way {
        let mut state = self.table.lock();
        if sight == (Sight::V1 { first: true }) {
            state.close_complete(self.address);
        }
        match state.groups.spoke(self.connection, sight) {
            Route::Tls => Way::Tls,
            Route::Start(group) => {
                let (joins, more) = mpsc::channel(WAITING);
                state.transfers.insert(group, joins);
                Way::Start(group, more)
            }
            Route::Join(group) => match state.transfers.get(&group) {
                Some(joins) => Way::Join(group, joins.clone()),
                None => Way::Over,
            },
            // It was held for one that ended while it spoke.
            Route::Rest | Route::Close(crate::detect::TurnedAway::Unknown) => Way::Over,
            Route::Close(why) => Way::Close(why),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        state.waiting.remove(&self.connection);
        state.groups.closed(self.connection);
    }
}

async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

/// The place of a transfer; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Table,
    group: GroupId,
    /// Somebody takes the transfer, and counts how it ends.
    claimed: bool,
    /// It came whole, so nothing of it is still to come.
    whole: bool,
}

impl Place {
    /// Gives it back when a message has come whole.
    pub(super) fn whole(mut self) {
        self.whole = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        if !self.claimed {
            state.groups.unclaimed();
        }
        state.transfers.remove(&self.group);
        let now = state.now();
        let held = if self.whole { state.groups.ended(self.group) } else { state.groups.failed(now, self.group) };
        for held in held {
            state.close(held, false);
        }
    }
}

/// A connection of a transfer.
#[derive(Debug)]
pub(super) struct Member {
    stream: TcpStream,
    _seat: Seat,
}

/// What a connection takes of its transfer's limit; given back when dropped.
#[derive(Debug)]
struct Seat {
    table: Table,
    group: GroupId,
}

impl Member {
    pub(in crate::net) fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for Member {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.table.lock().groups.left(self.group);
    }
}
