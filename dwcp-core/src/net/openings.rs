//! What else than TLS the connections of a listener may begin with. Somebody else knows it, and is asked before TLS begins.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use tokio::net::TcpStream;

use super::offence::TurnedAway;

/// Sorts the connections of a [`Listener`](super::Listener) before TLS begins, so that an older protocol can share its port.
///
/// What is called here knows nothing of the peer but its address, and must not reserve memory by what the peer says.
pub trait Openings: fmt::Debug + Send + Sync {
    /// Looks at how a connection begins, without taking a byte of what may be TLS. Dropped where the connection has to
    /// make room for younger ones; there is no other limit on how long it may take but its own.
    fn sort(&self, stream: TcpStream, from: SocketAddr) -> Sorting<'_>;

    /// A peer at this address has proved over TLS who it is.
    fn authenticated(&self, from: IpAddr);
}

/// A connection that is looked at.
pub type Sorting<'a> = Pin<Box<dyn Future<Output = Sorted> + Send + 'a>>;

/// What a connection is.
#[derive(Debug)]
pub enum Sorted {
    /// It begins as TLS does, and no byte of it was taken. What is left of the five seconds since it was accepted is for
    /// its handshake.
    Tls(TcpStream),
    /// It is none of ours.
    Taken,
    /// It is to be hung up on, if it is still there: after it has been counted, so that who sees the end finds it counted.
    TurnedAway(TurnedAway, Option<TcpStream>),
}
