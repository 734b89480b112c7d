use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout_at};

use super::error::TransferError;
use super::receive::Arrivals;

/// As v1 sets it.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Connections that were accepted and not yet taken up.
const WAITING: usize = 16;
/// When no connection can be accepted, because no descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Sets a socket as v1 does: no delay, keepalive of 30 s. Best effort: it works without them, too.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let alive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = SockRef::from(stream).set_tcp_keepalive(&alive);
}

/// Makes `connections` connections to a peer that listens.
///
/// # Errors
/// Not all of them could be made in time.
///
/// Cancel safe: what was made is closed.
pub async fn dial(to: SocketAddr, connections: u16, within: Duration) -> Result<Vec<TcpStream>, TransferError> {
    let connect = || TcpStream::connect(to);
    gather(&to.to_string(), connections, within, connect).await
}

/// Takes `connections` connections from one address. v1's bulk transport dials from both ends, so that its peer listens even to
/// send. Others are hung up on.
///
/// # Errors
/// Not all of them came in time.
///
/// Cancel safe: what was accepted is closed.
pub async fn accept(
    listener: &TcpListener,
    from: IpAddr,
    connections: u16,
    within: Duration,
) -> Result<Vec<TcpStream>, TransferError> {
    gather(&from.to_string(), connections, within, || accept_one(listener, from)).await
}

async fn gather<F>(
    peer: &str,
    wanted: u16,
    within: Duration,
    mut next: impl FnMut() -> F,
) -> Result<Vec<TcpStream>, TransferError>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let deadline = tokio::time::Instant::now() + within;
    let mut streams = Vec::with_capacity(usize::from(wanted));
    while streams.len() < usize::from(wanted) {
        match timeout_at(deadline, next()).await {
            Ok(Ok(stream)) => {
                tune(&stream);
                streams.push(stream);
            }
            Ok(Err(source)) => return Err(TransferError::Connect { peer: peer.to_owned(), source }),
            Err(_) => {
                return Err(TransferError::Unconnected { peer: peer.to_owned(), made: streams.len(), wanted, within });
            }
        }
    }
    Ok(streams)
}

async fn accept_one(listener: &TcpListener, from: IpAddr) -> io::Result<TcpStream> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.ip().to_canonical() == from.to_canonical() {
            return Ok(stream);
        }
    }
}

impl Arrivals<TcpStream> {
    /// Whatever connects from one address, for as long as the message is taken. Others are hung up on. Must be called
    /// within a tokio runtime.
    pub fn listen(listener: TcpListener, from: IpAddr) -> Self {
        let (arrived, more) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = arrived.closed() => return,
                    stream = accept_one(&listener, from) => stream,
                };
                match stream {
                    Ok(stream) => {
                        tune(&stream);
                        if arrived.send(stream).await.is_err() {
                            return;
                        }
                    }
                    Err(_) => sleep(PAUSE).await,
                }
            }
        });
        Self { ready: Vec::new(), more: Some(more) }
    }
}
