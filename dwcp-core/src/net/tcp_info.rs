//! What TCP counts of a connection: segments, and bytes with those that it sent again.
#![allow(unsafe_code, reason = "TCP_INFO has no safe door in rustix, socket2 or tokio")]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::net::TcpStream;

/// What the kernel tells at most: `struct tcp_info` of `linux/tcp.h` only grows at its end.
const BYTES: usize = 256;
/// Offsets in it.
const OPTIONS: usize = 5;
const BYTES_RECEIVED: usize = 128;
const SEGMENTS_SENT: usize = 136;
const SEGMENTS_RECEIVED: usize = 140;
const BYTES_SENT: usize = 200;
/// Of the options: segments carry timestamps.
const TIMESTAMPS: u8 = 1;

/// Heads of a segment, bytes: Ethernet without preamble and check sequence, as interfaces count it; TCP; and its timestamps.
const ETHERNET: u64 = 14;
const TCP: u64 = 20;
const TIMESTAMPS_BYTES: u64 = 12;
/// What the first segment each way has besides, where it has timestamps: segment size, window scale, SACK.
const SYN_BYTES: u64 = 8;

/// What an interface counts of one connection, bytes, each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OnLink {
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl OnLink {
    /// Of a connection up to now; `None` where the kernel does not tell (before Linux 4.19).
    pub(super) fn of(stream: &TcpStream) -> Option<Self> {
        // Not the peer's address: a connection that is closed has none any more.
        let ip = match stream.local_addr().ok()?.ip().to_canonical() {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        let info = tcp_info(std::os::fd::AsFd::as_fd(stream))?;
        Self::read(&info, ip)
    }

    fn read(info: &[u8], ip: u64) -> Option<Self> {
        let timestamps = if info.get(OPTIONS)? & TIMESTAMPS == 0 { 0 } else { TIMESTAMPS_BYTES };
        let heads = ETHERNET + ip + TCP + timestamps;
        let on_link = |bytes: u64, segments: u32| SYN_BYTES + bytes + u64::from(segments) * heads;
        Some(Self {
            sent: on_link(u64_at(info, BYTES_SENT)?, u32_at(info, SEGMENTS_SENT)?),
            received: on_link(u64_at(info, BYTES_RECEIVED)?, u32_at(info, SEGMENTS_RECEIVED)?),
        })
    }
}

fn u32_at(info: &[u8], at: usize) -> Option<u32> {
    info.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u64_at(info: &[u8], at: usize) -> Option<u64> {
    info.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// As many bytes as this kernel has of it.
fn tcp_info(of: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut info = vec![0_u8; BYTES];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has that many, and the bytes written to `length`;
    // the descriptor is borrowed, so it stays open.
    let failed = unsafe {
        libc::getsockopt(of.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    info.truncate(usize::try_from(length).ok()?);
    (failed == 0).then_some(info)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn each_end_counts_heads_and_bytes() {
        const LENGTH: u64 = 100_000;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        near.write_all(&vec![1; usize::try_from(LENGTH).unwrap()]).await.unwrap();
        far.read_exact(&mut vec![0; usize::try_from(LENGTH).unwrap()]).await.unwrap();
        let (near, far) = (OnLink::of(&near).unwrap(), OnLink::of(&far).unwrap());
        // A segment of loopback has up to 64 KiB; SYN and the acknowledgement of its answer have heads alone.
        assert!((LENGTH + 3 * 66..LENGTH + 100 * 66).contains(&near.sent), "{near:?}");
        assert!((LENGTH + 2 * 66..LENGTH + 100 * 66).contains(&far.received), "{far:?}");
        assert!((66..100 * 66).contains(&near.received), "{near:?}");
    }

    #[expect(clippy::host_endian_bytes, reason = "what the kernel writes is in its own order")]
    #[test]
    fn a_kernel_that_tells_less_is_not_believed() {
        let mut info = vec![0; 224];
        info[OPTIONS] = TIMESTAMPS;
        info[SEGMENTS_SENT..SEGMENTS_SENT + 4].copy_from_slice(&3_u32.to_ne_bytes());
        info[BYTES_SENT..BYTES_SENT + 8].copy_from_slice(&1000_u64.to_ne_bytes());
        assert_eq!(OnLink::read(&info, 20).unwrap(), OnLink { sent: 1008 + 3 * 66, received: 8 });
        assert_eq!(OnLink::read(&info, 40).unwrap().sent, 1008 + 3 * 86);
        assert_eq!(OnLink::read(&info[..207], 20), None, "Linux 4.18 ends before bytes_sent");
    }
}
