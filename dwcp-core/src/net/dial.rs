//! The source's side of every connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::EndpointError;
use super::handshake::{ReadError, read_frame, write_frame};
use super::socket::Socket;
use super::statistics::{Counters, VersionRefusal};
use super::threads::Threads;
use super::tls::{Channel, Tls, channel};
use crate::session::Fingerprint;
use crate::session::binding::{self, Chosen, Key, NegotiationError, Speaker, Speaks};
use crate::wire::limits::{MAX_CONTROL_BYTES, MAX_LANES};
use crate::wire::{
    Bind, Digest, ErrorCode, Frame, Hello, HelloAck, Join, LaneId, PeerLimits, ResumeClaim, Role, SessionId,
};

/// One deadline for TCP, TLS and the hello. spec: H-9
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How to reach one peer.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    /// As the operator wrote it: host and port.
    pub(super) to: String,
    /// The one peer that may answer, once it is known: what is promised to one trusted peer is no
    /// business of another. spec: P-3
    pub(super) peer: Option<Fingerprint>,
    pub(super) tls: Tls,
    pub(super) sockets: Sockets,
    /// All that this end can speak, whatever it wants now.
    pub(super) capable: Speaks,
    pub(super) counters: Arc<Counters>,
    pub(super) threads: Threads,
}

/// How sockets are set up.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets {
    /// `TCP_CONGESTION`, or the system's choice.
    pub(super) congestion: Option<String>,
}

/// Bytes of a bulk lane that may wait unsent in the kernel: enough to keep a 10 Gbit/s link busy for
/// the time a worker needs for the next piece, little enough that lane 0 is not delayed and the pause
/// finds little on its way.
pub(super) const NOTSENT_LOWAT: u32 = 512 * 1024;
/// The kernel gives a connection up when the peer is silent for this long although data is on its
/// way; lane 0 notices earlier by itself.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

impl Sockets {
    /// Best effort: a socket without these options works too, only slower.
    pub(super) fn tune(&self, stream: &TcpStream, bulk: bool) {
        let _ = stream.set_nodelay(true);
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        if bulk {
            let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT);
        }
        if let Some(name) = &self.congestion
            && let Err(error) = socket.set_tcp_congestion(name.as_bytes())
        {
            tracing::warn!(congestion = %name, %error, "TCP_CONGESTION cannot be set");
        }
    }
}

/// A control connection that has shaken hands.
#[derive(Debug)]
pub(super) struct ControlStream<S> {
    pub(super) stream: S,
    pub(super) channel: Channel,
    pub(super) ack: HelloAck,
    pub(super) chosen: Chosen,
    pub(super) limits: PeerLimits,
}

/// What a resumed session proves itself by.
#[derive(Clone, Debug)]
pub(super) struct Resume {
    pub(super) session: SessionId,
    pub(super) key: Key,
    pub(super) attempt: u32,
}

impl Dialer {
    /// Connects, authenticates and shakes hands for lane 0.
    pub(super) async fn control(
        &self,
        speaks: &Speaks,
        resume: Option<&Resume>,
    ) -> Result<ControlStream<TlsStream<Socket>>, EndpointError> {
        let handshake = async {
            let (mut stream, channel) = self.connect(false, speaks).await?;
            failpoint!("source.control.connected");
            let spoken = hello(&mut stream, &channel, speaks, resume).await;
            let (ack, chosen, limits) = spoken.map_err(|error| self.explain(error))?;
            Ok(ControlStream { stream, channel, ack, chosen, limits })
        };
        self.within(handshake).await.inspect_err(|error| {
            if let Some(why) = VersionRefusal::of(error) {
                self.counters.refused(why);
            }
        })
    }

    /// Connects and joins a bulk lane; returns its first credit.
    pub(super) async fn lane(
        &self,
        session: SessionId,
        key: &Key,
        lane: LaneId,
    ) -> Result<(TlsStream<Socket>, u64), EndpointError> {
        let handshake = async {
            let (mut stream, channel) = self.connect(true, &self.capable).await?;
            failpoint!("source.lane.connected");
            let mac = binding::join_mac(key, &channel.connection_key, session, lane);
            let answer = exchange(&mut stream, &Frame::Join(Join { session, lane, mac })).await;
            match answer.map_err(|error| self.explain(error))? {
                Frame::Joined(joined) if joined.lane == lane => Ok((stream, joined.credit)),
                other => Err(self.unexpected(&other)),
            }
        };
        self.within(handshake).await
    }

    async fn connect(&self, bulk: bool, speaks: &Speaks) -> Result<(TlsStream<Socket>, Channel), EndpointError> {
        let address = || self.to.clone();
        let addresses = tokio::net::lookup_host(&self.to)
            .await
            .map_err(|source| EndpointError::Resolve { host: address(), source })?;
        let stream = TcpStream::connect(addresses.collect::<Vec<_>>().as_slice())
            .await
            .map_err(|source| EndpointError::Connect { address: address(), source })?;
        self.sockets.tune(&stream, bulk);
        let connector = TlsConnector::from(self.tls.client(speaks));
        let shaken = connector.connect(self.server_name(), Socket::new(stream, &self.counters));
        let shaken = self.threads.handshake(shaken).await;
        let stream = shaken.and_then(|stream| stream).map_err(|source| self.tls_error(source))?;
        let (_, state) = stream.get_ref();
        let exported = channel(state, |label| state.export_keying_material([0; 32], label, None));
        let channel = exported.map_err(|error| self.tls_error(io::Error::other(error)))?;
        if let Some(peer) = self.peer.filter(|&peer| peer != channel.peer) {
            let what = format!(
                "it has the key {}, but this transfer went to {peer}; name the host that has that key",
                channel.peer
            );
            return Err(EndpointError::Unauthorised { address: address(), what });
        }
        Ok((stream, channel))
    }

    /// The host without its port. With pinned keys the name means nothing.
    fn server_name(&self) -> ServerName<'static> {
        let host = self.to.rsplit_once(':').map_or(self.to.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(host.to_owned()).unwrap_or_else(|_| {
            let localhost = std::net::IpAddr::from([127, 0, 0, 1]);
            ServerName::IpAddress(localhost.into())
        })
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, EndpointError>>) -> Result<T, EndpointError> {
        tokio::time::timeout(HANDSHAKE_LIMIT, work)
            .await
            .unwrap_or_else(|_| Err(EndpointError::Timeout { address: self.to.clone(), limit: HANDSHAKE_LIMIT }))
    }

    fn tls_error(&self, source: io::Error) -> EndpointError {
        let address = self.to.clone();
        let cause = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
                EndpointError::NothingInCommon { address }
            }
            Some(rustls::Error::InvalidMessage(_)) => {
                let what = "it does not speak TLS: it is no dwcp receiver; check the host and the port";
                EndpointError::Unexpected { address, what: what.into() }
            }
            Some(rustls::Error::AlertReceived(alert)) => EndpointError::Unauthorised {
                address,
                what: format!(
                    "the peer refuses our identity ({alert:?}); give it our fingerprint with --trust, see \
                     `dwcp identity show`, or the authority of our certificate with --trust-ca"
                ),
            },
            Some(rustls::Error::General(what)) => EndpointError::Unauthorised {
                address,
                what: format!("{what}; if this is the right host, pass its fingerprint with --trust"),
            },
            Some(rustls::Error::InvalidCertificate(reason)) => EndpointError::Unauthorised {
                address,
                what: format!(
                    "its certificate is not one that we trust: {reason}; if this is the right host, it needs one for \
                     the name that is dialled from an authority in --trust-ca, or pass its fingerprint with --trust"
                ),
            },
            Some(_) => EndpointError::Tls { address, source },
            // What rustls says of it is for programmers.
            None if source.kind() == io::ErrorKind::UnexpectedEof => {
                EndpointError::Lost { address, source: io::ErrorKind::UnexpectedEof.into() }
            }
            None => EndpointError::Lost { address, source },
        }
    }

    fn explain(&self, error: HelloError) -> EndpointError {
        let address = self.to.clone();
        match error {
            HelloError::Read(ReadError::Closed) => {
                EndpointError::Lost { address, source: io::ErrorKind::UnexpectedEof.into() }
            }
            HelloError::Read(ReadError::Io(source)) => self.tls_error(source),
            HelloError::Read(ReadError::Malformed(source)) => EndpointError::Malformed { address, source },
            HelloError::Negotiation(source) => EndpointError::Negotiation { address, source },
            HelloError::Answer(frame) => self.unexpected(&frame),
        }
    }

    fn unexpected(&self, frame: &Frame) -> EndpointError {
        let address = self.to.clone();
        match frame {
            Frame::Error(frame) => EndpointError::Refused { address, frame: frame.clone() },
            other => {
                let what = format!("it answers the handshake with {:?}", other.frame_type());
                EndpointError::Unexpected { address, what }
            }
        }
    }
}

/// Whether the peer said that it does not know the session.
pub(super) fn session_unknown(error: &EndpointError) -> bool {
    matches!(error, EndpointError::Refused { frame, .. } if frame.code == ErrorCode::Unknown)
}

enum HelloError {
    Read(ReadError),
    Negotiation(NegotiationError),
    Answer(Box<Frame>),
}

/// spec: H-2, H-3
async fn hello(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    channel: &Channel,
    speaks: &Speaks,
    resume: Option<&Resume>,
) -> Result<(HelloAck, Chosen, PeerLimits), HelloError> {
    let own = PeerLimits { extent_pages: 256, lanes: MAX_LANES };
    let hello = Hello {
        version_min: *speaks.versions.start(),
        version_max: *speaks.versions.end(),
        role: Role::Source,
        features: speaks.features,
        required: 0,
        limits: own,
        nonce: random(),
        resume: resume.map(|resume| ResumeClaim {
            session: resume.session,
            attempt: resume.attempt,
            mac: binding::resume_mac(&resume.key, &channel.connection_key, resume.session, resume.attempt),
        }),
    };
    let ack = match exchange(stream, &Frame::Hello(hello.clone())).await? {
        Frame::HelloAck(ack) => ack,
        other => return Err(HelloError::Answer(Box::new(other))),
    };
    let sound = binding::same(ack.mac, binding::offers_mac(&channel.connection_key, Speaker::Sink, &hello, &ack));
    let claimed = resume.map(|resume| resume.session);
    let same_session = claimed.is_none_or(|session| ack.resumed && ack.session == session);
    let chosen = binding::check(&hello, &ack).map_err(HelloError::Negotiation)?;
    // What TLS agreed on and what the offers lead to is one thing. A session that goes on has its framing already.
    let agreed = resume.is_some() || channel.framing == chosen.framing;
    if !sound || !agreed || !same_session {
        return Err(HelloError::Negotiation(NegotiationError::DowngradeDetected));
    }
    let mac = binding::offers_mac(&channel.connection_key, Speaker::Source, &hello, &ack);
    let bind = Frame::Bind(Bind { mac });
    write_frame(stream, &bind).await.map_err(|error| HelloError::Read(ReadError::Io(error)))?;
    let limits = binding::narrow(own, ack.limits);
    Ok((ack, chosen, limits))
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), frame: &Frame) -> Result<Frame, HelloError> {
    write_frame(stream, frame).await.map_err(|error| HelloError::Read(ReadError::Io(error)))?;
    read_frame(stream, MAX_CONTROL_BYTES, &mut Vec::new()).await.map_err(HelloError::Read)
}

impl From<HelloError> for ReadError {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Read(error) => error,
            HelloError::Negotiation(_) | HelloError::Answer(_) => Self::Closed,
        }
    }
}

/// Random bytes from the system, by way of the TLS library. Without them nothing here is safe.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "a system without random numbers must not go on")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random numbers");
    bytes
}

/// A digest that no proof has: stands in a hello ack while its proof is computed.
pub(super) const NO_MAC: Digest = Digest([0; 32]);
