use std::io::{self, ErrorKind};

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::detect::{Opening, Sight};
use crate::wire::Framing;

/// How a connection begins; `None` when it ended without a word. Takes none of its bytes, and waits until there are enough
/// of them, or never more.
pub(super) async fn opening(stream: &TcpStream, framing: Framing) -> Option<Sight> {
    loop {
        let Ok(ready) = stream.ready(Interest::READABLE).await else { return None };
        let ended = ready.is_read_closed();
        let looked = stream.try_io(Interest::READABLE, || match peek(stream, framing)? {
            // Too few yet: only "would block" makes the runtime wait for more.
            Some(Sight::More) if !ended => Err(ErrorKind::WouldBlock.into()),
            sight => Ok(sight),
        });
        match looked {
            Ok(Some(Sight::More)) => return Some(Sight::Garbage),
            Ok(sight) => return sight,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

fn peek(stream: &TcpStream, framing: Framing) -> io::Result<Option<Sight>> {
    let mut bytes = [0; 16];
    let (_, length) = recv(stream, &mut bytes, RecvFlags::PEEK)?;
    let mut opening = Opening::new(framing);
    for byte in bytes.get(..length).unwrap_or_default() {
        opening.feed(*byte);
    }
    // Nothing to read, and no error: the peer has closed.
    Ok((length > 0).then(|| opening.sight()))
}
