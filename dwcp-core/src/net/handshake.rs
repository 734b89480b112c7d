//! One frame at a time, while a connection is young.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::session::binding::NegotiationError;
use crate::wire::{ErrorCode, ErrorFrame, FRAME_HEADER_BYTES, Frame, FrameHeader, LaneId, WireError};

/// Why a frame did not come.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection ended between frames, properly.
    Closed,
    /// It broke.
    Io(io::Error),
    /// What came is no frame.
    Malformed(WireError),
}

/// Reads one frame of at most `limit` body bytes; unknown optional frames are skipped.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
    body: &mut Vec<u8>,
) -> Result<Frame, ReadError> {
    loop {
        if let Some(frame) = read_one(stream, limit, body).await? {
            return Ok(frame);
        }
    }
}

/// Reads one frame; `None` for an unknown optional one.
pub(super) async fn read_one(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
    body: &mut Vec<u8>,
) -> Result<Option<Frame>, ReadError> {
    let header = read_header(stream, LaneId::CONTROL, limit).await?;
    body.clear();
    body.resize(header.body_bytes(), 0);
    stream.read_exact(body).await.map_err(ReadError::Io)?;
    let decoded = Frame::decode(header.frame, body);
    let decoded = decoded.map_err(|fault| ReadError::Malformed(fault.on(LaneId::CONTROL, header.frame)))?;
    if let Some(_frame) = &decoded {
        failpoint!(received, _frame);
    }
    Ok(decoded)
}

/// Reads the eight bytes before a body.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    lane: LaneId,
    limit: usize,
) -> Result<FrameHeader, ReadError> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let mut have = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await.map_err(ReadError::Io)? {
            0 if have == 0 => return Err(ReadError::Closed),
            0 => return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
            count => have += count,
        }
    }
    let [.., frame, _, _, _] = bytes;
    FrameHeader::decode(bytes, limit).map_err(|fault| ReadError::Malformed(fault.on(lane, frame)))
}

/// Writes one frame and pushes it out.
pub(super) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    failpoint!(sends, frame);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    failpoint!(sent);
    Ok(())
}

/// Tells the peer why it is turned away. What becomes of it is no longer our concern.
pub(super) async fn turn_away(stream: &mut (impl AsyncWrite + Unpin), code: ErrorCode, text: &str) {
    let frame = Frame::Error(ErrorFrame { code, lane: LaneId::CONTROL, position: 0, text: text.into() });
    let _ = write_frame(stream, &frame).await;
    let _ = stream.shutdown().await;
}

/// As [`turn_away`], of a peer that may still be sending: what it sends is read until it hangs up, lest a reset swallow
/// the sentence. Whoever calls this has a deadline.
pub(super) async fn turn_away_unread<S>(stream: &mut S, code: ErrorCode, text: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    turn_away(stream, code, text).await;
    let mut unread = [0; 512];
    while matches!(stream.read(&mut unread).await, Ok(1..)) {}
}

impl From<NegotiationError> for ErrorCode {
    fn from(_: NegotiationError) -> Self {
        Self::Negotiation
    }
}
