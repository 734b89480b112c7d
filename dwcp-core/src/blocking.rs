//! The same for programs without an async runtime: a virtual machine monitor with threads of its own.
//!
//! ```text
//!  your thread ── send ──> blocks until the handshake is done ──> Session
//!  your thread ── progress, cancel, set_bandwidth ──> at once
//!  your thread ── outcome ──> blocks until the transfer is over
//! ```
//!
//! An [`Endpoint`] owns one thread that drives its sessions, beside the threads that [`net::Endpoint`] keeps for
//! lanes; both go with its last clone, listener and session, once the sessions that were dropped have ended. Everything
//! here is `Send`; nothing may be called from within an async task, where waiting would stop other tasks: that is refused
//! with [`EndpointError::InsideRuntime`]. `tokio`'s blocking threads count as inside; there, use [`net`].

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use crate::guest::Guest;
use crate::net::{self, EndpointError, Fingerprint, Identity, Records, Transfer, Trust};
use crate::session::{Outcome, Progress, Record, SinkConfig, SourceConfig};
use crate::wire::{Offer, TransferId};

/// A node. Cheap to clone; see [`net::Endpoint`].
#[derive(Clone, Debug)]
pub struct Endpoint {
    node: net::Endpoint,
    thread: Driving,
}

/// A transfer in progress. Dropping it cancels the transfer; after GIVE_UP it only stops waiting. What that means for the
/// guest (one that is paused is resumed at its source) is done soon after, also if all else of its [`Endpoint`] is gone by
/// then. A program that ends as a whole does better to [`cancel`](Self::cancel), and to wait for the
/// [`outcome`](Self::outcome).
#[derive(Debug)]
pub struct Session {
    session: Option<net::Session>,
    transfer: TransferId,
    thread: Driving,
}

/// Takes connections and hands out what they offer.
#[derive(Debug)]
pub struct Listener {
    listener: net::Listener,
    thread: Driving,
}

/// What a peer wants.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// To move something here.
    Offer(IncomingOffer),
    /// To know whether something that was READY here before a crash runs.
    Ask(IncomingAsk),
}

/// An offer that waits for an answer.
#[derive(Debug)]
pub struct IncomingOffer {
    offer: net::IncomingOffer,
    thread: Driving,
}

/// A question that waits for the guest it is about.
#[derive(Debug)]
pub struct IncomingAsk {
    ask: net::IncomingAsk,
    thread: Driving,
}

impl Endpoint {
    /// A node with this identity that talks to whom it trusts, and keeps no records.
    ///
    /// # Errors
    /// Identity or trust cannot be used; threads cannot be started.
    pub fn new(identity: &Identity, trust: &Trust) -> Result<Self, EndpointError> {
        Ok(Self { node: net::Endpoint::new(identity, trust)?, thread: Driving::start()? })
    }

    /// Keeps records of what was promised (GIVE_UP, READY, RAN) in this folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn with_records(self, folder: impl Into<PathBuf>) -> Result<Self, EndpointError> {
        Ok(Self { node: self.node.with_records(folder)?, ..self })
    }

    /// As [`net::Endpoint::with_quarantine`].
    ///
    /// # Errors
    /// As there.
    pub fn with_quarantine(self, folder: impl Into<PathBuf>) -> Result<Self, EndpointError> {
        Ok(Self { node: self.node.with_quarantine(folder)?, ..self })
    }

    /// As [`net::Endpoint::offences`].
    pub fn offences(&self) -> net::Offences {
        self.node.offences()
    }

    /// As [`net::Endpoint::statistics`].
    pub fn statistics(&self) -> net::Statistics {
        self.node.statistics()
    }

    /// As [`net::Endpoint::quarantined`].
    pub fn quarantined(&self) -> Vec<net::Quarantined> {
        self.node.quarantined()
    }

    /// Pins `TCP_CONGESTION` of every connection, instead of the system's default.
    #[must_use]
    pub fn with_congestion(self, name: impl Into<String>) -> Self {
        Self { node: self.node.with_congestion(name), ..self }
    }

    /// Lets a source open so many bulk lanes here in one session, 1 to 64; 16 by default.
    #[must_use]
    pub fn with_lanes(self, lanes: u16) -> Self {
        Self { node: self.node.with_lanes(lanes), ..self }
    }

    /// The records of this node.
    pub fn records(&self) -> &Records {
        self.node.records()
    }

    /// Connects to a sink at `to` (host and port) and begins to move `guest`. Waits for the handshake only, 10 s at
    /// most.
    ///
    /// # Errors
    /// The sink cannot be reached, is not trusted, or speaks no common version.
    pub fn send(
        &self,
        to: &str,
        transfer: Transfer,
        guest: Arc<dyn Guest>,
        config: SourceConfig,
    ) -> Result<Session, EndpointError> {
        let session = self.thread.wait(self.node.send(to, transfer, guest, config))??;
        Ok(self.thread.drive(session))
    }

    /// Asks a sink whether it runs a transfer for which this node gave up before it crashed.
    ///
    /// # Errors
    /// As [`Endpoint::send`].
    pub fn ask(&self, to: &str, record: &Record, config: SourceConfig) -> Result<Session, EndpointError> {
        let session = self.thread.wait(self.node.ask(to, record, config))??;
        Ok(self.thread.drive(session))
    }

    /// Listens for sources at `at`, an address and a port; port 0 lets the system choose.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn listen(&self, at: &str) -> Result<Listener, EndpointError> {
        let listener = self.thread.wait(self.node.listen(at))??;
        Ok(Listener { listener, thread: self.thread.clone() })
    }
}

impl Session {
    /// The transfer's name for its whole life.
    pub fn transfer(&self) -> TransferId {
        self.transfer
    }

    /// Typed statistics, at most 50 ms old while the transfer lives. Never waits.
    pub fn progress(&self) -> Progress {
        self.session.as_ref().map(|session| session.progress().borrow().clone()).unwrap_or_default()
    }

    /// Ends the transfer; the guest stays where it is. After GIVE_UP it only ends the waiting, and the outcome is in
    /// doubt. Never waits.
    pub fn cancel(&self) {
        self.tell(net::Session::cancel);
    }

    /// Ends the transfer because this node shuts down, unless it is being switched over; see
    /// [`net::Session::retire`]. Never waits.
    pub fn retire(&self) {
        self.tell(net::Session::retire);
    }

    /// Limits all lanes together to so many bytes per second, from now on. Never waits.
    pub fn set_bandwidth(&self, bytes_per_second: Option<NonZeroU64>) {
        self.tell(|session| session.set_bandwidth(bytes_per_second));
    }

    fn tell(&self, what: impl FnOnce(&net::Session)) {
        let _inside = self.thread.enter();
        if let Some(session) = &self.session {
            what(session);
        }
    }

    /// Waits for the end; the outcome is told once.
    ///
    /// # Errors
    /// It was called within an async task.
    pub fn outcome(&mut self) -> Result<Outcome, EndpointError> {
        let Some(session) = &mut self.session else { return Ok(net::Session::told()) };
        self.thread.wait(session.outcome())
    }

    /// Waits for the end, for so long at most. `None`: it is not over, and can be waited for again.
    ///
    /// # Errors
    /// It was called within an async task.
    pub fn outcome_within(&mut self, limit: Duration) -> Result<Option<Outcome>, EndpointError> {
        let Some(session) = &mut self.session else { return Ok(Some(net::Session::told())) };
        self.thread.wait(async { tokio::time::timeout(limit, session.outcome()).await.ok() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        let thread = self.thread.clone();
        let _inside = self.thread.enter();
        session.cancel();
        // Whoever holds the thread last ends it, and a driver that is ended halfway leaves a paused guest paused.
        tokio::spawn(async move {
            session.outcome().await;
            drop(thread);
        });
    }
}

impl Listener {
    /// Where it listens; tells the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Waits for the next thing that a peer wants; `None` once it is closed.
    ///
    /// # Errors
    /// It was called within an async task.
    pub fn accept(&mut self) -> Result<Option<Incoming>, EndpointError> {
        let incoming = self.thread.wait(self.listener.accept())?;
        let thread = self.thread.clone();
        Ok(incoming.map(|incoming| match incoming {
            net::Incoming::Offer(offer) => Incoming::Offer(IncomingOffer { offer, thread }),
            net::Incoming::Ask(ask) => Incoming::Ask(IncomingAsk { ask, thread }),
        }))
    }

    /// Takes no more connections. Sessions that were accepted go on, but cannot re-make theirs.
    pub fn close(&mut self) {
        self.listener.close();
    }
}

impl IncomingOffer {
    /// What is offered. All of it is the peer's word: data, never policy.
    pub fn offer(&self) -> &Offer {
        self.offer.offer()
    }

    /// Who offers, by the key that it has proved to have.
    pub fn peer(&self) -> Fingerprint {
        self.offer.peer()
    }

    /// From where.
    pub fn address(&self) -> SocketAddr {
        self.offer.address()
    }

    /// Takes it: the pages go into `guest`, which starts out as zeros and has the offered layout.
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        let Self { offer, thread } = self;
        let session = {
            let _inside = thread.enter();
            offer.accept(guest, config)
        };
        thread.drive(session)
    }

    /// Turns it away with a sentence for the operator at the other end.
    pub fn refuse(self, text: &str) {
        let _inside = self.thread.enter();
        self.offer.refuse(text);
    }
}

impl IncomingAsk {
    /// What this node had promised.
    pub fn record(&self) -> &Record {
        self.ask.record()
    }

    /// Who asks.
    pub fn peer(&self) -> Fingerprint {
        self.ask.peer()
    }

    /// Answers, with the guest that was staged then; see [`net::IncomingAsk::accept`].
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        let Self { ask, thread } = self;
        let session = {
            let _inside = thread.enter();
            ask.accept(guest, config)
        };
        thread.drive(session)
    }

    /// Turns the question away with a sentence for the operator at the other end. The doubt stays.
    pub fn refuse(self, text: &str) {
        let _inside = self.thread.enter();
        self.ask.refuse(text);
    }
}

/// The thread that drives sessions, shared by all that need it.
#[derive(Clone, Debug)]
struct Driving(Arc<Thread>);

#[derive(Debug)]
struct Thread(Option<Runtime>, Handle);

impl Driving {
    fn start() -> Result<Self, EndpointError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("dwcp-driver")
            .enable_all()
            .build()
            .map_err(EndpointError::Threads)?;
        let handle = runtime.handle().clone();
        Ok(Self(Arc::new(Thread(Some(runtime), handle))))
    }

    fn drive(&self, session: net::Session) -> Session {
        Session { transfer: session.transfer(), session: Some(session), thread: self.clone() }
    }

    /// What spawns tasks needs to know where.
    fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.0.1.enter()
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, EndpointError> {
        if Handle::try_current().is_ok() {
            return Err(EndpointError::InsideRuntime);
        }
        Ok(self.0.1.block_on(work))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Nobody drives a session any more, for each of those has a clone. Waiting for it could wait for itself: the last
        // one may go on that very thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::extent::{Layout, RegionId};
    use crate::guest::{GuestError, Memory};
    use crate::session::{Owner, SessionError};
    use crate::wire::{GuestKind, Name};

    fn nodes() -> (Endpoint, Endpoint) {
        let (ours, theirs) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
        let node = |own, peer: &Identity| Endpoint::new(own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
        (node(&ours, &theirs), node(&theirs, &ours))
    }

    fn guest() -> Arc<Memory> {
        Arc::new(Memory::new(Layout::new(&[1 << 20]).unwrap()))
    }

    fn transfer() -> Transfer {
        Transfer::new(Name::new("guest").unwrap(), GuestKind::Live)
    }

    #[test]
    fn threads_without_a_runtime_move_a_guest() {
        let (source, sink) = nodes();
        let mut listener = sink.listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().to_string();
        let receiving = std::thread::spawn(move || {
            let Some(Incoming::Offer(offer)) = listener.accept().unwrap() else { panic!("no offer") };
            offer.accept(guest(), SinkConfig::default()).outcome().unwrap().owner
        });
        let mut session = source.send(&address, transfer(), guest(), SourceConfig::default()).unwrap();
        // The node may go before its sessions.
        drop(source);
        assert_eq!(session.outcome().unwrap().owner, Owner::Sink);
        assert!(session.progress().root.is_some() && session.outcome_within(Duration::ZERO).unwrap().is_some());
        drop(session);
        assert_eq!(receiving.join().unwrap(), Owner::Sink);
    }

    #[test]
    fn a_session_that_is_dropped_is_cancelled() {
        let (source, sink) = nodes();
        let mut listener = sink.listen("127.0.0.1:0").unwrap();
        let session = source.send(&listener.local_addr().to_string(), transfer(), guest(), SourceConfig::default());
        let Some(Incoming::Offer(offer)) = listener.accept().unwrap() else { panic!("no offer") };
        drop(session.unwrap());
        assert_eq!(offer.accept(guest(), SinkConfig::default()).outcome().unwrap().owner, Owner::Source);
    }

    /// Stops when it is told to, and tells when it is asked to and when it runs on.
    #[derive(Debug)]
    struct Slow {
        memory: Arc<Memory>,
        asked: mpsc::Sender<&'static str>,
        may_stop: Mutex<mpsc::Receiver<()>>,
    }

    impl Guest for Slow {
        fn layout(&self) -> &Layout {
            self.memory.layout()
        }
        fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
            self.memory.read(region, first, into)
        }
        fn pause(&self) -> Result<(), GuestError> {
            let _ = self.asked.send("pause");
            let _ = self.may_stop.lock().unwrap().recv();
            Ok(())
        }
        fn resume(&self) -> Result<(), GuestError> {
            let _ = self.asked.send("resume");
            Ok(())
        }
    }

    #[test]
    fn a_guest_that_is_being_paused_runs_on_when_all_is_dropped() {
        let (source, sink) = nodes();
        let mut listener = sink.listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().to_string();
        let receiving = std::thread::spawn(move || {
            let Some(Incoming::Offer(offer)) = listener.accept().unwrap() else { panic!("no offer") };
            offer.accept(guest(), SinkConfig::default()).outcome().unwrap()
        });
        let ((asked, heard), (stop, may_stop)) = (mpsc::channel(), mpsc::channel());
        let slow = Arc::new(Slow { memory: guest(), asked, may_stop: Mutex::new(may_stop) });
        let session = source.send(&address, transfer(), slow, SourceConfig::default()).unwrap();
        let limit = Duration::from_secs(60);
        assert_eq!(heard.recv_timeout(limit), Ok("pause"));
        drop((session, source));
        stop.send(()).unwrap();
        assert_eq!(heard.recv_timeout(limit), Ok("resume"));
        // Its sink was told, and need not wait for a source that may come back.
        let outcome = receiving.join().unwrap();
        assert_eq!(outcome.owner, Owner::Source);
        assert!(matches!(outcome.error, Some(SessionError::PeerAborted { .. })), "{outcome:?}");
        assert_eq!(heard.recv_timeout(limit), Err(mpsc::RecvTimeoutError::Disconnected), "and nothing is left of it");
    }

    #[test]
    fn a_call_within_an_async_task_is_refused() {
        let (source, _) = nodes();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let refused = runtime.block_on(async { source.listen("127.0.0.1:0").map(|_| ()) });
        assert!(matches!(refused, Err(EndpointError::InsideRuntime)));
    }

    #[test]
    fn everything_can_move_to_another_thread() {
        fn send<T: Send>() {}
        send::<Endpoint>();
        send::<Session>();
        send::<Listener>();
        send::<Incoming>();
    }
}
