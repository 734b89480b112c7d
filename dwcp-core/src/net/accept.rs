//! The sink's side of every connection.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::clock::Clock;
use super::control::ControlLink;
use super::dial::{HANDSHAKE_LIMIT, NO_MAC, random, socket};
use super::driver::{Chores, Driver, EVENTS, Event, Stream};
use super::endpoint::Endpoint;
use super::error::EndpointError;
use super::handshake::{ReadError, read_frame, turn_away, write_frame};
use super::lane_sink::SinkLanes;
use super::session::Session;
use super::sink_hands::SinkHands;
use super::tls::{Channel, channel};
use crate::guest::Guest;
use crate::session::binding::{self, Key, Speaker};
use crate::session::{Fingerprint, Input, Leaves, Machine, Record, Sink, SinkConfig, Standing, Time};
use crate::wire::limits::{MAX_CONTROL_BYTES, MAX_HANDSHAKE_BYTES};
use crate::wire::{
    Abort, AbortReason, ErrorCode, Frame, GuestKind, Hello, HelloAck, Join, Offer, PeerLimits, Run, SessionId,
    TransferId,
};

/// Connections that may be shaking hands at a time; more wait in the kernel's queue.
const HALF_OPEN: usize = 256;
/// A session answers whether it can be superseded as soon as it has done what waits in its queue.
const SUPERSEDE_LIMIT: Duration = Duration::from_secs(1);
/// Offers that may wait for [`Listener::accept`].
const OFFERS: usize = 16;
/// Wait after the system refused to accept (no descriptors, no memory): it passes.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Takes connections and hands out what they offer.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    incoming: mpsc::Receiver<Incoming>,
    task: JoinHandle<()>,
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
    first: First,
    seat: Seat,
    offer: Offer,
}

/// A question that waits for the guest it is about.
#[derive(Debug)]
pub struct IncomingAsk {
    first: First,
    seat: Seat,
    record: Record,
}

/// A control connection whose first frame has been read.
#[derive(Debug)]
struct First {
    gate: Gate,
    stream: Stream,
    address: SocketAddr,
    peer: Fingerprint,
    session: SessionId,
    key: Key,
    limits: PeerLimits,
}

/// The one session of a transfer, from its first frame on: what comes for it before somebody accepts
/// it waits in `queue`.
#[derive(Debug)]
struct Seat {
    place: Place,
    events: mpsc::Sender<Event>,
    queue: mpsc::Receiver<Event>,
}

/// Among the sessions that are alive; left when this is dropped.
#[derive(Debug)]
struct Place {
    sessions: Sessions,
    session: SessionId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.session);
    }
}

type Sessions = Arc<Mutex<HashMap<SessionId, Known>>>;

/// What all connections of a listener share.
#[derive(Clone, Debug)]
struct Gate {
    endpoint: Endpoint,
    sessions: Sessions,
    half_open: Arc<Semaphore>,
    offers: mpsc::Sender<Incoming>,
}

/// A session that is alive here.
#[derive(Clone, Debug)]
struct Known {
    peer: Fingerprint,
    transfer: TransferId,
    key: Key,
    limits: PeerLimits,
    /// The last attempt seen; an attempt is good once. spec: H-6
    attempt: u32,
    events: mpsc::Sender<Event>,
}

impl Listener {
    pub(super) async fn open(endpoint: Endpoint, at: &str) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Listen { address: at.to_owned(), source };
        let socket = TcpListener::bind(at).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let (offers, incoming) = mpsc::channel(OFFERS);
        let half_open = Arc::new(Semaphore::new(HALF_OPEN));
        let gate = Gate { endpoint, sessions: Arc::default(), half_open, offers };
        Ok(Self { address, incoming, task: tokio::spawn(gate.listen(socket)) })
    }

    /// Where it listens; tells the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next thing that a peer wants; `None` once it was closed.
    ///
    /// Cancel safe: dropped, it has taken nothing; what waits is there for the next call.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Takes no more connections. Sessions that were accepted go on, but cannot re-make theirs.
    pub fn close(&mut self) {
        self.task.abort();
        self.incoming.close();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl IncomingOffer {
    /// What is offered. All of it is the peer's word: data, never policy.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Who offers, by the key that it has proved to have.
    pub fn peer(&self) -> Fingerprint {
        self.first.peer
    }

    /// From where.
    pub fn address(&self) -> SocketAddr {
        self.first.address
    }

    /// Takes it: the pages go into `guest`, which starts out as zeros and has the offered layout.
    #[expect(clippy::needless_pass_by_value, reason = "a configuration is handed over, as to a source")]
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        let leaves = Arc::new(Leaves::new(&self.offer.layout));
        guest.held(&mut |region, page, leaf| {
            if let Some(page) = self.offer.layout.flat(region, page) {
                leaves.set(page, leaf);
            }
        });
        let config = SinkConfig { lanes: config.lanes.min(self.first.limits.lanes), ..config };
        let machine = Sink::new(config, self.offer.clone(), Arc::clone(&leaves), self.first.peer);
        self.first.drive(self.seat, &self.offer, machine, leaves, guest)
    }

    /// Turns it away with a sentence for the operator at the other end.
    pub fn refuse(self, text: &str) {
        let text = text.to_owned();
        tokio::spawn(async move { self.first.refuse(&text).await });
    }
}

impl IncomingAsk {
    /// What this node had promised.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Who asks.
    pub fn peer(&self) -> Fingerprint {
        self.first.peer
    }

    /// Turns the question away with a sentence for the operator at the other end. The doubt stays.
    pub fn refuse(self, text: &str) {
        let (mut stream, text) = (self.first.stream, text.to_owned());
        tokio::spawn(async move { turn_away(&mut stream, ErrorCode::Local, &text).await });
    }

    /// Answers, with the guest that was staged then. For a record that says RAN any guest will do:
    /// it is not touched.
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        let (transfer, epoch, name) = (self.record.transfer, self.record.epoch, self.record.name.clone());
        let layout = guest.layout().clone();
        let leaves = Arc::new(Leaves::new(&layout));
        let offer = Offer { transfer, epoch, kind: GuestKind::Image, name, layout };
        let machine = Sink::recover(config, offer.clone(), &self.record);
        self.first.drive(self.seat, &offer, machine, leaves, guest)
    }
}

impl First {
    /// The place of this session, or else, if its transfer has one already, the way to that when it
    /// is this peer's. spec: O-5
    fn seat(&self, transfer: TransferId) -> Result<Seat, Option<mpsc::Sender<Event>>> {
        let (events, queue) = mpsc::channel(EVENTS);
        let (peer, key, limits) = (self.peer, self.key.clone(), self.limits);
        let known = Known { peer, transfer, key, limits, attempt: 0, events: events.clone() };
        let mut sessions = self.gate.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = sessions.values().find(|known| known.transfer == transfer) {
            return Err((other.peer == self.peer).then(|| other.events.clone()));
        }
        sessions.insert(self.session, known);
        let place = Place { sessions: Arc::clone(&self.gate.sessions), session: self.session };
        Ok(Seat { place, events, queue })
    }

    fn drive(self, seat: Seat, offer: &Offer, machine: Sink, leaves: Arc<Leaves>, guest: Arc<dyn Guest>) -> Session {
        let Seat { place, events, queue } = seat;
        let shared = Arc::new(SinkLanes { guest: Arc::clone(&guest), leaves, epoch: offer.epoch });
        let hands = SinkHands {
            transfer: offer.transfer,
            peer: self.peer,
            shared,
            threads: self.gate.endpoint.threads.clone(),
            events: events.clone(),
            workers: JoinSet::new(),
            lanes: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        let (progress, watch) = watch::channel(machine.progress().clone());
        let driver = Driver {
            machine,
            hands,
            control: Some(ControlLink::start(self.stream, 0, events.clone())),
            generation: 0,
            chores: Chores::start(guest, self.gate.endpoint.records, events.clone()),
            events: events.clone(),
            queue,
            clock: Clock::start(),
            progress,
            published: Time::default(),
        };
        let task = tokio::spawn(async move {
            let outcome = driver.run(Vec::new()).await;
            drop(place);
            outcome
        });
        Session::new(offer.transfer, events, watch, task)
    }
}

impl Gate {
    /// Survives every error of `accept`: they concern one connection, or pass.
    async fn listen(self, socket: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.half_open).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, address)) => {
                    failpoint!("sink.accepted");
                    let gate = self.clone();
                    tokio::spawn(async move {
                        let greeting = gate.greet(stream, address);
                        if tokio::time::timeout(HANDSHAKE_LIMIT, greeting).await.is_err() {
                            tracing::info!(%address, "a connection did not finish its handshake in time");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// TLS, then the first frame tells lane 0 from a bulk lane.
    async fn greet(&self, stream: TcpStream, address: SocketAddr) {
        let Some((mut stream, channel)) = self.authenticate(stream, address).await else { return };
        failpoint!("sink.authenticated");
        match read_frame(&mut stream, MAX_HANDSHAKE_BYTES, &mut Vec::new()).await {
            Ok(Frame::Hello(hello)) => self.hello(stream, channel, address, hello).await,
            Ok(Frame::Join(join)) => self.join(stream, &channel, join).await,
            Ok(other) => {
                let text = format!("a connection begins with HELLO or JOIN, not with {:?}", other.frame_type());
                turn_away(&mut stream, ErrorCode::Unexpected, &text).await;
            }
            Err(ReadError::Malformed(error)) => {
                tracing::info!(%address, %error, "malformed opening");
                turn_away(&mut stream, ErrorCode::Malformed, &error.to_string()).await;
            }
            Err(ReadError::Closed | ReadError::Io(_)) => {}
        }
    }

    async fn authenticate(&self, stream: TcpStream, address: SocketAddr) -> Option<(Stream, Channel)> {
        self.endpoint.sockets.tune(&stream, false);
        let acceptor = TlsAcceptor::from(Arc::clone(&self.endpoint.tls.server));
        let stream = match acceptor.accept(socket(stream)).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(%address, %error, "a connection was not authenticated");
                return None;
            }
        };
        let (_, state) = stream.get_ref();
        match channel(state, |label| state.export_keying_material([0; 32], label, None)) {
            Ok(channel) => Some((TlsStream::Server(stream), channel)),
            Err(error) => {
                tracing::info!(%address, %error, "a connection was not authenticated");
                None
            }
        }
    }

    /// spec: H-2, H-3
    async fn hello(&self, mut stream: Stream, channel: Channel, address: SocketAddr, hello: Hello) {
        let chosen = match binding::choose(&hello, 0) {
            Ok(chosen) => chosen,
            Err(error) => return turn_away(&mut stream, error.into(), &error.to_string()).await,
        };
        let own = PeerLimits { extent_pages: 256, lanes: self.endpoint.lanes };
        let resumed = match self.resumed(&hello, &channel) {
            Ok(resumed) => resumed,
            Err(text) => return turn_away(&mut stream, ErrorCode::Unknown, text).await,
        };
        let session = resumed.as_ref().map_or_else(|| SessionId(random()), |(session, _)| *session);
        let mut ack = HelloAck {
            version: chosen.version,
            features: chosen.features,
            limits: own,
            session,
            resumed: resumed.is_some(),
            nonce: random(),
            mac: NO_MAC,
        };
        ack.mac = binding::offers_mac(&channel.connection_key, Speaker::Sink, &hello, &ack);
        if write_frame(&mut stream, &Frame::HelloAck(ack.clone())).await.is_err() {
            return;
        }
        let Ok(Frame::Bind(bind)) = read_frame(&mut stream, MAX_HANDSHAKE_BYTES, &mut Vec::new()).await else {
            return turn_away(&mut stream, ErrorCode::Unexpected, "HELLO is followed by BIND").await;
        };
        let expected = binding::offers_mac(&channel.connection_key, Speaker::Source, &hello, &ack);
        if !binding::same(bind.mac, expected) {
            let error = binding::NegotiationError::DowngradeDetected;
            return turn_away(&mut stream, error.into(), &error.to_string()).await;
        }
        if let Some((_, events)) = resumed {
            let _ = events.send(Event::ControlMade { stream: Box::new(stream), first: None }).await;
            return;
        }
        let limits = binding::narrow(own, hello.limits);
        let (peer, key) = (channel.peer, channel.session_key);
        let first = First { gate: self.clone(), stream, address, peer, session, key, limits };
        first.read().await;
    }

    /// The session that a hello claims, if its proof is good. spec: H-6
    fn resumed(
        &self,
        hello: &Hello,
        channel: &Channel,
    ) -> Result<Option<(SessionId, mpsc::Sender<Event>)>, &'static str> {
        let Some(claim) = &hello.resume else { return Ok(None) };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = "this session is not known here";
        let known = sessions.get_mut(&claim.session).ok_or(unknown)?;
        let mac = binding::resume_mac(&known.key, &channel.connection_key, claim.session, claim.attempt);
        let fresh = claim.attempt > known.attempt;
        if !binding::same(mac, claim.mac) || known.peer != channel.peer || !fresh {
            return Err(unknown);
        }
        known.attempt = claim.attempt;
        Ok(Some((claim.session, known.events.clone())))
    }

    /// spec: H-5, L-2
    async fn join(&self, mut stream: Stream, channel: &Channel, join: Join) {
        let known = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&join.session).cloned();
        let sound = known.filter(|known| {
            let mac = binding::join_mac(&known.key, &channel.connection_key, join.session, join.lane);
            binding::same(mac, join.mac) && known.peer == channel.peer && known.limits.lanes > 0
        });
        let Some(known) = sound else {
            let text = "this lane may not join: its session is not known here or its proof does not match";
            return turn_away(&mut stream, ErrorCode::JoinRejected, text).await;
        };
        let _ = known.events.send(Event::Join { lane: join.lane, stream: Box::new(stream) }).await;
    }
}

impl First {
    /// A new session begins with an offer, or with the question of a source that gave up. spec: S-8
    async fn read(mut self) {
        match read_frame(&mut self.stream, MAX_CONTROL_BYTES, &mut Vec::new()).await {
            Ok(Frame::Offer(offer)) => self.offered(offer).await,
            Ok(Frame::Run(run)) => self.asked(run).await,
            Ok(other) => {
                let text = format!("a session begins with OFFER or RUN, not with {:?}", other.frame_type());
                turn_away(&mut self.stream, ErrorCode::Unexpected, &text).await;
            }
            Err(ReadError::Malformed(error)) => {
                turn_away(&mut self.stream, ErrorCode::Malformed, &error.to_string()).await;
            }
            Err(ReadError::Closed | ReadError::Io(_)) => {}
        }
    }

    /// One session a transfer, and one transfer an id: what ran here is no longer offered. spec: O-5
    async fn offered(mut self, offer: Offer) {
        let Some(seat) = self.retake(offer.transfer).await else {
            let text = "this transfer is under way here in another session; end that, or begin a new transfer";
            return self.refuse(text).await;
        };
        failpoint!("sink.seated");
        let records = &self.gate.endpoint.records;
        let recorded = match records.load(offer.transfer) {
            Ok(Some(record)) if self.retracts(&record, &offer) => {
                failpoint!("sink.retracts");
                let forgotten = records.forget(offer.transfer);
                failpoint!("sink.retracted");
                forgotten.map(|()| None)
            }
            other => other,
        };
        match recorded {
            Ok(None) => {
                let offers = self.gate.offers.clone();
                let _ = offers.send(Incoming::Offer(IncomingOffer { first: self, seat, offer })).await;
            }
            Ok(Some(_)) => {
                let text = "this transfer was here before: ask what became of it (`dwcp resolve`), or begin a new one";
                self.refuse(text).await;
            }
            Err(error) => turn_away(&mut self.stream, ErrorCode::Local, &error.to_string()).await,
        }
    }

    /// A source never offers what it gave up: its offer takes back what was promised to it. spec: O-6
    fn retracts(&self, record: &Record, offer: &Offer) -> bool {
        let same = record.peer == self.peer && record.name == offer.name && record.layout == offer.layout;
        same && record.standing == Standing::Ready
    }

    /// The place of this session, once the one that its source has lost is over. spec: O-5, O-6
    async fn retake(&self, transfer: TransferId) -> Option<Seat> {
        let lost = match self.seat(transfer) {
            Ok(seat) => return Some(seat),
            Err(lost) => lost?,
        };
        let (ends, answer) = oneshot::channel();
        let asked = lost.send(Event::Supersede { again: true, ends }).await;
        // A session that is over drops the question; one that nobody has accepted yet leaves it unanswered.
        let answered = tokio::time::timeout(SUPERSEDE_LIMIT, answer).await.ok()?;
        if asked.is_ok() && !answered.unwrap_or(true) {
            return None;
        }
        lost.closed().await;
        // Its place is free a moment after its queue.
        loop {
            match self.seat(transfer) {
                Ok(seat) => return Some(seat),
                Err(Some(other)) if other.same_channel(&lost) => tokio::task::yield_now().await,
                Err(_) => return None,
            }
        }
    }

    /// Turns an offer away with a sentence for the operator at the other end.
    async fn refuse(mut self, text: &str) {
        let abort = Frame::Abort(Abort { reason: AbortReason::Refused, text: text.into() });
        let _ = write_frame(&mut self.stream, &abort).await;
        // Wait for the peer to hang up first, lest a reset swallow the sentence.
        let _ = tokio::time::timeout(HANDSHAKE_LIMIT, read_frame(&mut self.stream, 64, &mut Vec::new())).await;
    }

    /// Another peer than the record's is told what it would be told of a transfer that never was.
    /// spec: P-3
    async fn asked(mut self, run: Run) {
        let unknown = "this transfer is not known here";
        let (transfer, run) = (run.transfer, Frame::Run(run));
        let seat = match self.seat(transfer) {
            Ok(seat) => seat,
            Err(Some(events)) => {
                let made = Event::ControlMade { stream: Box::new(self.stream), first: Some(run) };
                let _ = events.send(made).await;
                return;
            }
            Err(None) => return turn_away(&mut self.stream, ErrorCode::Unknown, unknown).await,
        };
        match self.gate.endpoint.records.load(transfer) {
            Ok(Some(record)) if record.peer == self.peer && record.standing != Standing::GaveUp => {
                // The session hears it as soon as somebody accepts; the queue was made a moment ago
                // and has room.
                let _ = seat.events.try_send(Event::Input(Input::Frame(run)));
                let offers = self.gate.offers.clone();
                let _ = offers.send(Incoming::Ask(IncomingAsk { first: self, seat, record })).await;
            }
            Ok(_) => turn_away(&mut self.stream, ErrorCode::Unknown, unknown).await,
            Err(error) => turn_away(&mut self.stream, ErrorCode::Local, &error.to_string()).await,
        }
    }
}
