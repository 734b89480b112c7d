//! A TCP connection below TLS that can read ahead.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::statistics::Counters;
use super::tcp_info::OnLink;

/// What a read takes from the kernel at most, and what a bulk lane encrypts before it writes: a quarter of a core's
/// second-level cache. 64 KiB and a record a read cost a tenth of the throughput of incompressible pages.
pub(super) const SOCKET_BYTES: usize = 256 * 1024;

/// After how many bytes either way the kernel is asked again what it counted: a call in some milliseconds.
const LOOK_EACH: u64 = 4 << 20;

/// rustls reads at most one record a call; a bulk lane asks the kernel for many. Until it does, a connection has no
/// buffer here: who is not authenticated yet costs nothing but the state of TLS.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    meter: Meter,
    /// Empty: nothing is read ahead.
    ahead: Vec<u8>,
    /// What of it is not yet taken.
    at: usize,
    end: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, counters: &Arc<Counters>) -> Self {
        Self { stream, meter: Meter::new(counters), ahead: Vec::new(), at: 0, end: 0 }
    }

    /// From now on so far, at the receiving end of a bulk lane.
    pub(super) fn read_ahead(&mut self, bytes: usize) {
        if self.ahead.is_empty() {
            self.ahead = vec![0; bytes];
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.meter.look(&self.stream);
    }
}

/// What of a connection is in its endpoint's counters.
#[derive(Debug)]
struct Meter {
    counters: Arc<Counters>,
    on_link: OnLink,
    /// Bytes both ways since the kernel was asked.
    since: u64,
}

impl Meter {
    fn new(counters: &Arc<Counters>) -> Self {
        Self { counters: Arc::clone(counters), on_link: OnLink::default(), since: 0 }
    }

    fn sent(&mut self, stream: &TcpStream, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.counters.traffic.sent(bytes);
        self.moved(stream, bytes);
    }

    fn received(&mut self, stream: &TcpStream, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.counters.traffic.received(bytes);
        self.moved(stream, bytes);
    }

    fn moved(&mut self, stream: &TcpStream, bytes: u64) {
        self.since += bytes;
        if self.since >= LOOK_EACH {
            self.look(stream);
        }
    }

    fn look(&mut self, stream: &TcpStream) {
        self.since = 0;
        if let Some(now) = OnLink::of(stream) {
            self.counters.traffic.on_link(self.on_link, now);
            self.on_link = now;
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, meter, ahead, at, end } = self.get_mut();
        if ahead.is_empty() {
            let before = into.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(cx, into))?;
            meter.received(stream, into.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        if at == end {
            let mut more = ReadBuf::new(ahead);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut more))?;
            (*at, *end) = (0, more.filled().len());
            meter.received(stream, *end);
        }
        let left = ahead.get(*at..*end).unwrap_or_default();
        let taken = left.get(..into.remaining()).unwrap_or(left);
        into.put_slice(taken);
        *at += taken.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, meter, .. } = self.get_mut();
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, bytes))?;
        meter.sent(stream, written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, meter, .. } = self.get_mut();
        let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, bytes))?;
        meter.sent(stream, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn what_is_read_is_the_same_before_and_while_it_reads_ahead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let counters = Arc::default();
        let mut socket = Socket::new(listener.accept().await.unwrap().0, &counters);
        let sent: Vec<u8> = (0..3 * SOCKET_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let all = sent.clone();
        let writer = tokio::spawn(async move {
            far.write_all(&all).await.unwrap();
            far
        });
        let mut read = vec![0; 1000];
        socket.read_exact(&mut read).await.unwrap();
        assert!(socket.ahead.is_empty(), "a handshake needs no buffer");
        socket.read_ahead(SOCKET_BYTES);
        read.resize(sent.len(), 0);
        for part in read[1000..].chunks_mut(777) {
            socket.read_exact(part).await.unwrap();
        }
        assert!(read == sent);
        drop(writer.await.unwrap());
        assert_eq!(socket.read(&mut [0; 10]).await.unwrap(), 0, "and so is the end");
        let traffic = counters.statistics(&crate::flag::Constant::v3(), Default::default()).traffic;
        assert_eq!((traffic.received, traffic.sent), (u64::try_from(sent.len()).unwrap(), 0), "each byte counts once");
        assert_eq!(
            (traffic.link_received, traffic.link_sent),
            (0, 0),
            "the kernel is asked now and then, and at the end"
        );
        drop(socket);
        let traffic = counters.statistics(&crate::flag::Constant::v3(), Default::default()).traffic;
        let heads = traffic.link_received - traffic.received;
        assert!((66..66 * 1000).contains(&heads) && traffic.link_sent >= 66, "{traffic:?}");
    }
}
