//! What callers of a port hold that speaks both: sessions of v3, and messages of v1.

use std::net::IpAddr;
use std::sync::Arc;

use dwcp_core::Guest;
use dwcp_core::session::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::TransferError;
use super::landing::GuestLanding;
use super::migrate::{Baseline, DiskOptions, receive_disk, receive_memory};
use super::port::{LegacyArrival, LegacyListener, LegacyPort, Member, PlaintextPolicy, SpokenV3};
use super::receive::{Arrivals, ReceiveOptions, collect};
use super::statistics::Statistics;
use super::tally::{Direction, Tally};
use super::undo::Undo;
use crate::message::Received;

/// A port where both versions come in.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dwcp_core::net::{Endpoint, Identity, Trust};
/// use dwcp_v1_compat::net::{DualListener, Incoming, PlaintextPolicy, SpokenV3};
/// use dwcp_v1_compat::wire::Framing;
///
/// # async fn listen(endpoint: Endpoint) -> Result<(), Box<dyn std::error::Error>> {
/// let policy = PlaintextPolicy::new(Framing::Amst16, ["10.0.0.7".parse()?]);
/// let spoken = Arc::new(SpokenV3::open("/var/lib/vm/.dwcp/spoken-v3")?);
/// let mut listener = DualListener::listen(endpoint, "0.0.0.0:7070", policy, spoken).await?;
/// while let Some(incoming) = listener.accept().await {
///     match incoming {
///         Incoming::V3(incoming) => println!("{incoming:?}"),
///         Incoming::V1(arrival) => println!("version 1 from {}", arrival.from()),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DualListener {
    v3: dwcp_core::net::Listener,
    v1: LegacyListener,
    /// For its counters.
    endpoint: dwcp_core::net::Endpoint,
    tally: Tally,
}

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// An offer or a question of a peer that proved who it is.
    V3(Box<dwcp_core::net::Incoming>),
    /// The beginning of a message from an address.
    V1(Box<LegacyArrival>),
}

impl DualListener {
    /// Listens at `at`, an address and a port.
    ///
    /// # Errors
    /// The address cannot be listened on.
    ///
    /// Cancel safe: dropped before it returns, nobody listens.
    pub async fn listen(
        endpoint: dwcp_core::net::Endpoint,
        at: &str,
        policy: PlaintextPolicy,
        spoken: Arc<SpokenV3>,
    ) -> Result<Self, dwcp_core::net::EndpointError> {
        let (port, v1) = LegacyPort::new(policy, spoken);
        let endpoint = endpoint.with_openings(port);
        let v3 = endpoint.listen(at).await?;
        Ok(Self { v3, v1, endpoint, tally: Tally::default() })
    }

    /// Where it listens; tells the port that the system chose.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.v3.local_addr()
    }

    /// How often what happened, of addresses that may speak v1.
    pub fn counts(&self) -> crate::detect::GroupCounts {
        self.v1.counts()
    }

    /// Where v1 transfers are counted: for [`ReceiveOptions::tally`].
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// All that is counted here, of both versions, for an exporter.
    pub fn statistics(&self) -> Statistics {
        Statistics::of(&self.endpoint, &self.v1, &self.tally)
    }

    /// What comes next, of either version; `None` once it was closed.
    ///
    /// Cancel safe: dropped, it has taken nothing.
    pub async fn accept(&mut self) -> Option<Incoming> {
        tokio::select! {
            incoming = self.v3.accept() => incoming.map(|incoming| Incoming::V3(Box::new(incoming))),
            Some(arrival) = self.v1.accept() => Some(Incoming::V1(Box::new(arrival))),
        }
    }
}

/// How a v1 peer sends a guest, which it does not say.
#[derive(Clone, Debug)]
pub enum Form {
    /// Its bytes as they are.
    Plain,
    /// One packet of all of it. Over amst16 only.
    Memory(Option<Baseline>),
    /// A list of blocks. Over amst16 only.
    Disk(DiskOptions, Option<Baseline>),
}

/// A transfer of either version.
#[derive(Debug)]
pub enum Session {
    /// With a hand-over, and a root that both ends have.
    V3(dwcp_core::net::Session),
    /// With neither.
    V1(LegacySession),
}

/// How a transfer ended.
#[derive(Debug)]
pub enum Ended {
    /// Who has the guest is known, or known to be in doubt.
    V3(Outcome),
    /// What came is as good as its [`Assurance`](crate::message::Assurance), and who runs it is for an operator to decide.
    V1(Result<Received, TransferError>),
}

/// A guest that comes over v1. Dropped, it is cancelled.
#[derive(Debug)]
pub struct LegacySession {
    from: IpAddr,
    /// Taken when it has ended.
    task: Option<JoinHandle<Result<Received, TransferError>>>,
    /// Closed once all has come.
    more: Option<mpsc::Sender<Member>>,
}

impl LegacyArrival {
    /// Takes it into a guest that is all zeros and has the size of what comes. After a success the guest is staged, and
    /// the caller lets it run or discards it; after an error it has been told to discard what came.
    pub fn take(self, guest: Arc<dyn Guest>, form: Form, options: ReceiveOptions) -> LegacySession {
        let (from, more) = (self.from(), self.more());
        let task = tokio::spawn(async move {
            let (arrivals, place) = self.split();
            let taken = match form {
                Form::Memory(baseline) => receive_memory(arrivals, guest, baseline, options).await,
                Form::Disk(disk, baseline) => {
                    receive_disk(arrivals, guest, disk, baseline, options).await.map(|disk| disk.received)
                }
                Form::Plain => {
                    let taken = take_plain(arrivals, guest, &options);
                    options.tally.counting(Direction::Received, taken, |received| received.bytes).await
                }
            };
            if taken.is_ok() {
                place.whole();
            }
            taken
        });
        LegacySession { from, task: Some(task), more }
    }
}

/// An image as it is, into a guest that is staged then.
async fn take_plain(
    arrivals: Arrivals<Member>,
    guest: Arc<dyn Guest>,
    options: &ReceiveOptions,
) -> Result<Received, TransferError> {
    let staged = Undo::discard(&guest);
    let mut landing = GuestLanding::new(Arc::clone(&guest))?;
    let received = collect(arrivals, &mut landing, options).await?;
    stage(guest, staged).await?.keep();
    Ok(received)
}

/// On a thread that may wait for the disk. Whoever is gone meanwhile does not get what undoes it, and so it is undone.
async fn stage(guest: Arc<dyn Guest>, staged: Undo) -> Result<Undo, TransferError> {
    let (done, over) = oneshot::channel();
    spawn_blocking(move || done.send(guest.stage().map(|()| staged)));
    Ok(over.await.map_err(|_| TransferError::Cancelled)??)
}

impl LegacySession {
    /// From where.
    pub fn from(&self) -> IpAddr {
        self.from
    }

    /// Ends it as soon as possible; its guest discards what came.
    pub fn cancel(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }

    /// Ends it, unless all of it has come: then it is staged as if nobody had asked.
    pub fn retire(&self) {
        if !self.more.as_ref().is_some_and(mpsc::Sender::is_closed) {
            self.cancel();
        }
    }

    /// Waits for its end. Asked again, it says that it was cancelled.
    ///
    /// Cancel safe: dropped, it can be asked again.
    ///
    /// # Errors
    /// As [`receive_memory`], [`receive_disk`] and [`receive`](super::receive()).
    pub async fn outcome(&mut self) -> Result<Received, TransferError> {
        let Some(task) = &mut self.task else { return Err(TransferError::Cancelled) };
        let ended = task.await.unwrap_or(Err(TransferError::Cancelled));
        self.task = None;
        ended
    }
}

impl Drop for LegacySession {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Session {
    /// 1 or 3.
    pub fn version(&self) -> u16 {
        match self {
            Self::V3(_) => 3,
            Self::V1(_) => 1,
        }
    }

    /// Ends it, unless it has been handed over.
    pub fn cancel(&self) {
        match self {
            Self::V3(session) => session.cancel(),
            Self::V1(session) => session.cancel(),
        }
    }

    /// Waits for its end.
    ///
    /// Cancel safe: dropped, it can be asked again.
    pub async fn outcome(&mut self) -> Ended {
        match self {
            Self::V3(session) => Ended::V3(session.outcome().await),
            Self::V1(session) => Ended::V1(session.outcome().await),
        }
    }
}
