//! Memory that a guest lends to a socket, so that bytes go from one to the other without a copy of ours.
#![allow(
    unsafe_code,
    reason = "memory that others may write is no buffer that a safe system call takes; this module is its only door"
)]

use std::any::{Any, TypeId};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::port::Member;

/// Parts that one call writes at most: a header and data each, of a mebibyte in v1's chunks.
const MOST_PARTS: usize = 32;

/// Bytes of memory that is lent. Never a `&[u8]`: others may have it, too, and the kernel looks at it as another process
/// would.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    words: &'a [AtomicU64],
    skip: usize,
    bytes: usize,
}

impl<'a> Lent<'a> {
    /// `bytes` bytes behind the first `skip` ones. `None`: there are none, or not so many.
    pub fn new(words: &'a [AtomicU64], skip: usize, bytes: usize) -> Option<Self> {
        let end = skip.checked_add(bytes)?;
        (bytes > 0 && end <= size_of_val(words)).then_some(Self { words, skip, bytes })
    }

    /// How many; never 0.
    #[expect(clippy::len_without_is_empty, reason = "no bytes are not lent")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// For a system call that is over before the words are given back.
    fn part(self) -> libc::iovec {
        // SAFETY: `new` has seen that `skip` lies within the words.
        let start = unsafe { self.words.as_ptr().cast::<u8>().add(self.skip) };
        libc::iovec { iov_base: start.cast_mut().cast(), iov_len: self.bytes }
    }
}

impl fmt::Debug for Lent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.bytes)
    }
}

/// What is written.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    Ours(&'a [u8]),
    Lent(Lent<'a>),
}

/// Whether the peer's system has said that it has all bytes that were written; our end of the connection need not have come
/// there. True where nobody can tell.
pub(super) fn all_taken(socket: &TcpStream) -> bool {
    let mut left: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, so it stays open, and the call writes one int, into ours.
    let told = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    // Our end counts as one.
    told != 0 || left <= 1
}

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The socket below a connection, if that is all it is: what is inside TLS has none for us.
pub(super) fn socket<S: 'static>(connection: &S) -> Option<&TcpStream> {
    let connection: &dyn Any = connection;
    connection.downcast_ref().or_else(|| connection.downcast_ref().map(Member::socket))
}

/// Whether connections of this type have a [`socket`].
pub(super) fn is_socket<S: 'static>() -> bool {
    [TypeId::of::<TcpStream>(), TypeId::of::<Member>()].contains(&TypeId::of::<S>())
}

/// Reads into what is lent, and what comes behind it into `behind`. Returns how many bytes; 0 is the end.
pub(super) fn poll_read(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    lent: Lent<'_>,
    behind: &mut [u8],
) -> Poll<io::Result<usize>> {
    let room = lent.len() + behind.len();
    let mut parts = [lent.part(), libc::iovec { iov_base: behind.as_mut_ptr().cast(), iov_len: behind.len() }];
    poll(socket, cx, Interest::READABLE, room, |fd, message| {
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        // SAFETY: the descriptor is borrowed, so it stays open. Both parts are memory that stays where it is during the call:
        // what is lent is made of atomic words, which may change at any time, and `behind` is ours alone.
        unsafe { libc::recvmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })
}

/// Writes parts in their order, the first [`MOST_PARTS`] of them. Returns how many bytes.
pub(super) fn poll_write<'a>(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    parts: impl Iterator<Item = Part<'a>>,
) -> Poll<io::Result<usize>> {
    let mut vector = [NOTHING; MOST_PARTS];
    let (mut room, mut count) = (0, 0);
    for (place, part) in vector.iter_mut().zip(parts) {
        *place = match part {
            Part::Ours(bytes) => libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() },
            Part::Lent(lent) => lent.part(),
        };
        (room, count) = (room + place.iov_len, count + 1);
    }
    poll(socket, cx, Interest::WRITABLE, room, |fd, message| {
        message.msg_iov = vector.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: the descriptor is borrowed, so it stays open. The parts are memory that stays where it is during the call,
        // and that the kernel only reads; what is lent is made of atomic words, which may change at any time.
        unsafe { libc::sendmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
    })
}

/// Calls when the socket is ready. What moved less than `room` bytes has emptied or filled it: the next call waits.
fn poll(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    interest: Interest,
    room: usize,
    mut call: impl FnMut(BorrowedFd<'_>, &mut libc::msghdr) -> isize,
) -> Poll<io::Result<usize>> {
    // SAFETY: a message of C without address, parts and control data is all zeros.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    loop {
        ready!(if interest.is_readable() { socket.poll_read_ready(cx) } else { socket.poll_write_ready(cx) })?;
        let mut moved = None;
        let tried = socket.try_io(interest, || {
            let bytes = usize::try_from(call(socket.as_fd(), &mut message)).map_err(|_| io::Error::last_os_error())?;
            moved = Some(bytes);
            if bytes > 0 && bytes < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (moved, tried) {
            (Some(bytes), _) => return Poll::Ready(Ok(bytes)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
            (None, Ok(())) => return Poll::Ready(Ok(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_lent_than_there_is() {
        let words = [const { AtomicU64::new(0) }; 2];
        assert_eq!(Lent::new(&words, 3, 13).unwrap().len(), 13);
        assert!(Lent::new(&words, 3, 14).is_none() && Lent::new(&words, 16, 1).is_none());
        assert!(Lent::new(&words, usize::MAX, 2).is_none());
        assert!(Lent::new(&words, 0, 0).is_none());
    }
}
