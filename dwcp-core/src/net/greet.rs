//! A connection from accept to the first frame that matters.
//!
//! ```text
//!   accept ─> HalfOpen permit ─> Openings ─> TLS ─> its identity's turn, no quarantine ─> HELLO, BIND, first frame ─> First::begin
//!     └──────────────── one deadline, armed at accept ────────────────────────────────────────────┘└─ JOIN ─> its session
//! ```

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::accept::{First, Incoming, Known, Sessions};
use super::dial::{NO_MAC, random};
use super::driver::{Event, Stream};
use super::endpoint::{Endpoint, Spoken};
use super::half_open::{HalfOpen, Permit, descriptors};
use super::handshake::{ReadError, read_frame, turn_away, turn_away_unread, write_frame};
use super::offence::{Offence, TurnedAway};
use super::openings::Sorted;
use super::socket::Socket;
use super::statistics::VersionRefusal;
use super::tls::{Channel, channel};
use crate::session::Fingerprint;
use crate::session::binding::{self, Chosen, NegotiationError, Speaker};
use crate::wire::limits::{MAX_CONTROL_BYTES, MAX_HANDSHAKE_BYTES};
use crate::wire::{ErrorCode, Frame, Hello, HelloAck, Join, PeerLimits, SessionId};

/// One deadline, armed at accept, for TLS, the hello and the first frame, or the join. spec: H-9
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// The longest that an identity waits for its turn; half of the deadline, so that the rest can be done in the other.
const TURN_LIMIT: Duration = Duration::from_millis(2500);
/// Wait after the system refused to accept (no memory): it passes.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What all connections of a listener share.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) endpoint: Endpoint,
    pub(super) sessions: Sessions,
    pub(super) offers: mpsc::Sender<Incoming>,
    half_open: HalfOpen,
    /// Offers and questions of one identity that may wait for the embedder.
    pub(super) waiting_per_peer: usize,
    /// Turns at the records.
    pub(super) looks: Arc<Semaphore>,
}

/// A session that goes on, and the way to it.
type Resumed = (SessionId, mpsc::Sender<Event>);

/// What came of a connection that waits no longer.
type Opened = Option<Box<(First, Frame)>>;

/// Of one identity: offers and questions that wait for the embedder. Each holds a connection and some 30 KiB.
const WAITING_PER_PEER: usize = 1024;

/// First frames that look into the records at a time, each on a thread of those on which sessions do their chores; more wait.
const LOOKS: usize = 16;

fn waiting_per_peer() -> usize {
    (descriptors() / 8).clamp(16, WAITING_PER_PEER)
}

impl Gate {
    pub(super) fn new(endpoint: Endpoint, offers: mpsc::Sender<Incoming>) -> Self {
        Self {
            endpoint,
            sessions: Sessions::default(),
            offers,
            half_open: HalfOpen::of_this_process(),
            waiting_per_peer: waiting_per_peer(),
            looks: Arc::new(Semaphore::new(LOOKS)),
        }
    }

    /// Takes connections until it is dropped.
    pub(super) fn listen(self, socket: TcpListener) -> impl Future<Output = ()> {
        // At once, while there is a descriptor.
        let reserve = Reserve::open();
        self.take(socket, reserve)
    }

    /// Survives every error of `accept`: they concern one connection, or pass.
    async fn take(self, socket: TcpListener, mut reserve: Reserve) {
        loop {
            match socket.accept().await {
                Ok((stream, address)) => match self.half_open.enter(address.ip()) {
                    Some(permit) => drop(tokio::spawn(self.clone().serve(stream, address, permit))),
                    // Hung up on, not queued: a queue would be the attacker's.
                    None => self.turned_away(TurnedAway::OverAddressLimit),
                },
                Err(error) if is_out_of_descriptors(&error) => {
                    tracing::info!(%error, "no descriptor is left for a connection; it is hung up on");
                    if let Some(stream) = reserve.accept(&socket).await {
                        self.turned_away(TurnedAway::NoDescriptor);
                        reserve.hang_up(stream);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// The permit is given back as soon as the handshake is over; what waits after that is bounded by identity.
    /// spec: H-10
    async fn serve(self, stream: TcpStream, address: SocketAddr, mut permit: Permit) {
        let deadline = Instant::now() + GREETING_LIMIT;
        let Some(stream) = self.sorted(stream, address, &mut permit).await else { return };
        let mut greeting = pin!(tokio::time::timeout_at(deadline, self.greet(stream, address)));
        let opened = tokio::select! {
            biased;
            opened = &mut greeting => opened,
            () = permit.evicted() => {
                tracing::info!(%address, "a half-open connection made room");
                return self.turned_away(TurnedAway::MadeRoom);
            }
        };
        drop(permit);
        match opened {
            Ok(Some(opened)) => {
                let (first, frame) = *opened;
                Box::pin(first.begin(frame)).await;
            }
            Ok(None) => {}
            Err(_) => {
                tracing::info!(%address, "a connection did not finish its handshake in time");
                self.turned_away(TurnedAway::TimedOut);
            }
        }
    }

    /// The connection, if it is TLS. Who sorts has a deadline of his own: what he takes is not ours to hang up on.
    /// spec: H-12
    async fn sorted(&self, stream: TcpStream, address: SocketAddr, permit: &mut Permit) -> Option<TcpStream> {
        let Some(openings) = &self.endpoint.openings else { return Some(stream) };
        let sorted = tokio::select! {
            biased;
            sorted = openings.sort(stream, address) => sorted,
            () = permit.evicted() => Sorted::TurnedAway(TurnedAway::MadeRoom, None),
        };
        match sorted {
            Sorted::Tls(stream) => return Some(stream),
            Sorted::Taken => {}
            Sorted::TurnedAway(why, _open) => {
                tracing::info!(%address, %why, "a connection was hung up on before TLS");
                self.turned_away(why);
            }
        }
        None
    }

    async fn greet(&self, stream: TcpStream, address: SocketAddr) -> Opened {
        failpoint!("sink.accepted");
        let (stream, channel, spoken) = self.authenticate(stream, address).await?;
        failpoint!("sink.authenticated");
        // Also of one that is refused next: it can do better than version 1.
        if let Some(openings) = &self.endpoint.openings {
            openings.authenticated(address.ip());
        }
        // In a box: what comes before authentication stays small.
        Box::pin(self.identified(stream, channel, address, spoken)).await
    }

    async fn authenticate(&self, stream: TcpStream, address: SocketAddr) -> Option<(Stream, Channel, Spoken)> {
        self.endpoint.sockets.tune(&stream, false);
        // One view of the flag for all of a handshake.
        let Some(spoken) = self.endpoint.spoken() else {
            tracing::warn!(%address, "version 3 is switched off here, and nothing else can be spoken");
            self.turned_away(TurnedAway::NothingSpoken);
            return None;
        };
        let acceptor = TlsAcceptor::from(self.endpoint.tls.server(&spoken.speaks));
        let refused = |error: &dyn fmt::Display| {
            tracing::info!(%address, %error, "a connection was not authenticated");
            self.turned_away(TurnedAway::NotAuthenticated);
        };
        let (conduct, counters) = (Arc::clone(&self.endpoint.conduct), Arc::clone(&self.endpoint.counters));
        let shaken = acceptor.accept(Socket::new(stream, &self.endpoint.counters)).into_fallible();
        let shaken = self.endpoint.threads.handshake(async move {
            // Counted before it is closed, here as everywhere: who sees the end finds it counted. Its alert is out by then.
            shaken.await.map_err(|(error, _open)| {
                match error.get_ref().and_then(|error| error.downcast_ref()) {
                    Some(rustls::Error::NoApplicationProtocol) => counters.refused(VersionRefusal::NoVersion),
                    // Most often an operator who forgot --trust, and who looks here, too.
                    Some(rustls::Error::General(_) | rustls::Error::InvalidCertificate(_))
                        if conduct.tells_of_stranger() =>
                    {
                        tracing::warn!(%address, %error, "a peer is not trusted here, and was hung up on");
                    }
                    _ => tracing::info!(%address, %error, "a connection was not authenticated"),
                }
                conduct.turned_away(TurnedAway::NotAuthenticated);
            })
        });
        let stream = match shaken.await {
            Ok(shaken) => shaken.ok()?,
            Err(error) => {
                refused(&error);
                return None;
            }
        };
        let (_, state) = stream.get_ref();
        match channel(state, |label| state.export_keying_material([0; 32], label, None)) {
            Ok(channel) => Some((TlsStream::Server(stream), channel, spoken)),
            Err(error) => {
                refused(&error);
                None
            }
        }
    }

    /// Who it is, is known; whether anything is taken of it now. spec: H-11
    async fn identified(&self, mut stream: Stream, channel: Channel, address: SocketAddr, spoken: Spoken) -> Opened {
        let peer = channel.peer;
        let Some(wait) = self.endpoint.conduct.turn(peer, TURN_LIMIT) else {
            self.turned_away(TurnedAway::OverPeerLimit);
            let text = "this peer connects too often; try again later";
            turn_away_unread(&mut stream, ErrorCode::Local, text).await;
            return None;
        };
        tokio::time::sleep(wait).await;
        if self.endpoint.conduct.quarantine.holds(peer) {
            self.turned_away(TurnedAway::Quarantined);
            tracing::info!(%peer, %address, "a connection of a quarantined peer was refused");
            turn_away_unread(&mut stream, ErrorCode::Local, "refused here for now; ask its operator").await;
            return None;
        }
        self.first_frame(stream, channel, address, spoken).await
    }

    /// The first frame tells lane 0 from a bulk lane.
    async fn first_frame(&self, mut stream: Stream, channel: Channel, address: SocketAddr, spoken: Spoken) -> Opened {
        match read_frame(&mut stream, MAX_HANDSHAKE_BYTES, &mut Vec::new()).await {
            Ok(Frame::Hello(hello)) => {
                return self.hello(stream, channel, address, hello, spoken).await;
            }
            Ok(Frame::Join(join)) => self.join(stream, &channel, join).await,
            Ok(other) => {
                let text = format!("a connection begins with HELLO or JOIN, not with {:?}", other.frame_type());
                self.accuse(&mut stream, channel.peer, ErrorCode::Unexpected, &text).await;
            }
            Err(error) => self.unreadable(&mut stream, channel.peer, &error).await,
        }
        None
    }

    /// spec: H-2, H-3
    async fn hello(
        &self,
        mut stream: Stream,
        channel: Channel,
        address: SocketAddr,
        hello: Hello,
        spoken: Spoken,
    ) -> Opened {
        // A session that goes on has its framing already.
        let speaks = if hello.resume.is_some() { self.endpoint.capable() } else { spoken.speaks.clone() };
        let agreed = |chosen: &Chosen| hello.resume.is_some() || chosen.framing == channel.framing;
        let chosen = binding::choose(&hello, &speaks, 0)
            .and_then(|chosen| if agreed(&chosen) { Ok(chosen) } else { Err(NegotiationError::DowngradeDetected) });
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                self.endpoint.counters.refused(error.into());
                turn_away(&mut stream, error.into(), &error.to_string()).await;
                return None;
            }
        };
        let own = PeerLimits { extent_pages: 256, lanes: self.endpoint.lanes };
        let resumed = match self.resumed(&hello, &channel) {
            Ok(resumed) => resumed,
            Err((code, text)) => {
                turn_away(&mut stream, code, text).await;
                return None;
            }
        };
        let session = resumed.as_ref().map_or_else(|| SessionId(random()), |(session, _)| *session);
        let mut ack = HelloAck {
            version: chosen.framing.version(),
            version_min: *speaks.versions.start(),
            version_max: *speaks.versions.end(),
            features: speaks.features,
            limits: own,
            session,
            resumed: resumed.is_some(),
            nonce: random(),
            mac: NO_MAC,
        };
        ack.mac = binding::offers_mac(&channel.connection_key, Speaker::Sink, &hello, &ack);
        write_frame(&mut stream, &Frame::HelloAck(ack.clone())).await.ok()?;
        self.bound(&mut stream, &channel, &hello, &ack).await?;
        if let Some((_, events)) = resumed {
            let _ = events.send(Event::ControlMade { stream: Box::new(stream), first: None }).await;
            return None;
        }
        if let Some(by) = spoken.declined(chosen.framing) {
            self.endpoint.counters.declined(by);
        }
        let limits = binding::narrow(own, hello.limits);
        match read_frame(&mut stream, MAX_CONTROL_BYTES, &mut Vec::new()).await {
            Ok(frame) => {
                let (peer, key) = (channel.peer, channel.session_key);
                let first = First { gate: self.clone(), stream, address, peer, session, key, limits, chosen };
                Some(Box::new((first, frame)))
            }
            Err(error) => {
                self.unreadable(&mut stream, channel.peer, &error).await;
                None
            }
        }
    }

    /// BIND, whose proof says that nobody changed the offers on the way. spec: H-3
    async fn bound(&self, stream: &mut Stream, channel: &Channel, hello: &Hello, ack: &HelloAck) -> Option<()> {
        let bind = match read_frame(stream, MAX_HANDSHAKE_BYTES, &mut Vec::new()).await {
            Ok(Frame::Bind(bind)) => bind,
            Ok(_) => {
                self.accuse(stream, channel.peer, ErrorCode::Unexpected, "HELLO is followed by BIND").await;
                return None;
            }
            Err(error) => {
                self.unreadable(stream, channel.peer, &error).await;
                return None;
            }
        };
        let expected = binding::offers_mac(&channel.connection_key, Speaker::Source, hello, ack);
        if binding::same(bind.mac, expected) {
            return Some(());
        }
        // Under TLS nobody can have changed it on the way but the peer itself.
        self.endpoint.conduct.charge(channel.peer, Offence::BadProof);
        let error = binding::NegotiationError::DowngradeDetected;
        self.endpoint.counters.refused(error.into());
        turn_away(stream, error.into(), &error.to_string()).await;
        None
    }

    /// The session that a hello claims, if its proof is good. spec: H-6, H-11
    fn resumed(&self, hello: &Hello, channel: &Channel) -> Result<Option<Resumed>, (ErrorCode, &'static str)> {
        let Some(claim) = &hello.resume else { return Ok(None) };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = (ErrorCode::Unknown, "this session is not known here");
        let known = sessions.get_mut(&claim.session).ok_or(unknown)?;
        let mac = binding::resume_mac(&known.key, &channel.connection_key, claim.session, claim.attempt);
        let fresh = claim.attempt > known.attempt;
        if !binding::same(mac, claim.mac) || known.peer != channel.peer {
            // It is written to the disk, for which nobody shall wait.
            drop(sessions);
            self.endpoint.conduct.charge(channel.peer, Offence::BadProof);
            return Err(unknown);
        }
        if !fresh {
            return Err(unknown);
        }
        if !known.may_come_back() {
            drop(sessions);
            self.turned_away(TurnedAway::OverPeerLimit);
            return Err((ErrorCode::Local, "this session waits for its receiver's answer; try again later"));
        }
        known.attempt = claim.attempt;
        Ok(Some((claim.session, known.events.clone())))
    }

    /// spec: H-5, L-2
    async fn join(&self, mut stream: Stream, channel: &Channel, join: Join) {
        let known = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&join.session).cloned();
        let sound = known.as_ref().filter(|known| {
            let mac = binding::join_mac(&known.key, &channel.connection_key, join.session, join.lane);
            binding::same(mac, join.mac) && known.peer == channel.peer && known.limits.lanes > 0
        });
        // It was told nothing yet that would let it open a lane. spec: O-4
        if sound.is_some_and(Known::is_waiting) {
            let text = "a lane comes after ACCEPT, and its session was not accepted yet";
            return self.accuse(&mut stream, channel.peer, ErrorCode::Unexpected, text).await;
        }
        let Some(sound) = sound else {
            // A session that is over is not known, and its lanes may still come.
            if known.is_some() {
                self.endpoint.conduct.charge(channel.peer, Offence::BadProof);
            }
            let text = "this lane may not join: its session is not known here or its proof does not match";
            return turn_away(&mut stream, ErrorCode::JoinRejected, text).await;
        };
        let _ = sound.events.send(Event::Join { lane: join.lane, stream: Box::new(stream) }).await;
    }

    /// What came is no frame, or nothing came. spec: W-2
    async fn unreadable(&self, stream: &mut Stream, peer: Fingerprint, error: &ReadError) {
        if let ReadError::Malformed(error) = error {
            tracing::info!(%peer, %error, "malformed opening");
            self.accuse(stream, peer, ErrorCode::Malformed, &error.to_string()).await;
        }
    }

    /// Charges the peer and tells it with what.
    async fn accuse(&self, stream: &mut Stream, peer: Fingerprint, code: ErrorCode, text: &str) {
        if let Some(offence) = Offence::told_as(code) {
            self.endpoint.conduct.charge(peer, offence);
        }
        turn_away(stream, code, text).await;
    }

    fn turned_away(&self, why: TurnedAway) {
        self.endpoint.conduct.turned_away(why);
    }
}

/// A descriptor that is kept for the time when there is no other: with it a connection that waits in the kernel's queue
/// can be taken out and hung up on, so that the queue does not wait for ever and neither does this process spin.
#[derive(Debug)]
struct Reserve {
    /// What the reserve is a copy of.
    null: Option<OwnedFd>,
    kept: Option<OwnedFd>,
}

impl Reserve {
    fn open() -> Self {
        let null: Option<OwnedFd> = File::open("/dev/null").ok().map(OwnedFd::from);
        let kept = null.as_ref().and_then(|null| null.try_clone().ok());
        Self { null, kept }
    }

    /// The connection that waits. None may: the system complains before it looks.
    async fn accept(&mut self, socket: &TcpListener) -> Option<TcpStream> {
        self.kept = None;
        match poll_fn(|cx| Poll::Ready(socket.poll_accept(cx))).await {
            Poll::Ready(Ok((stream, _))) => return Some(stream),
            Poll::Pending => {}
            // Somebody was faster and has the descriptor now.
            Poll::Ready(Err(_)) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
        self.kept = self.null.as_ref().and_then(|null| null.try_clone().ok());
        None
    }

    /// Closes it and keeps its descriptor, in one step, lest somebody else take that in between.
    fn hang_up(&mut self, stream: TcpStream) {
        let (Some(null), Ok(stream)) = (&self.null, stream.into_std()) else { return };
        let mut taken = OwnedFd::from(stream);
        self.kept = rustix::io::dup2(null, &mut taken).is_ok().then_some(taken);
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let out = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    out.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
