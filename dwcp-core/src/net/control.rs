//! Lane 0 after the handshake: a reader and a writer beside the driver.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::clock::Clock;
use super::conduct::flood;
use super::driver::Event;
use super::handshake::{ReadError, read_one};
use crate::session::SessionError;
use crate::session::allowance::{Allowance, Rate};
use crate::wire::limits::MAX_CONTROL_BYTES;
use crate::wire::{ErrorCode, Frame, LaneId};

/// Frames that may wait for the socket. A peer that lets so many pile up does not read: its link is
/// given up, so that the driver never waits for it.
const QUEUE: usize = 1024;
/// Bytes gathered into one write.
const BATCH: usize = 64 * 1024;
/// How long the last frames may take to go out.
const FAREWELL: Duration = Duration::from_secs(2);

/// The driver's end of a control connection.
#[derive(Debug)]
pub(super) struct ControlLink {
    /// Tells the events of this connection from those of one before.
    pub(super) generation: u64,
    frames: Option<mpsc::Sender<Frame>>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl ControlLink {
    /// Starts reading and writing.
    pub(super) fn start<S>(stream: S, generation: u64, rate: Rate, events: mpsc::Sender<Event>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let (frames, queue) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(read_frames(read, generation, rate, events));
        let writer = tokio::spawn(write_frames(write, queue));
        Self { generation, frames: Some(frames), reader, writer }
    }

    /// Queues a frame; false when the link is dead or the peer does not read.
    pub(super) fn send(&self, frame: Frame) -> bool {
        self.frames.as_ref().is_some_and(|frames| frames.try_send(frame).is_ok())
    }

    /// Sends what is queued, closes properly, and stops: after it the connection is no more, and counted, unless the last frames
    /// could not go out in time.
    pub(super) async fn close(mut self) {
        self.frames = None;
        if tokio::time::timeout(FAREWELL, &mut self.writer).await.is_ok() {
            self.reader.abort();
            let _ = (&mut self.reader).await;
        }
    }
}

impl Drop for ControlLink {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

/// Every frame is charged, those too that are skipped. spec: F-1
async fn read_frames<S: AsyncRead>(read: ReadHalf<S>, generation: u64, rate: Rate, events: mpsc::Sender<Event>) {
    let mut read = BufReader::with_capacity(16 * 1024, read);
    let mut body = Vec::new();
    let clock = Clock::start();
    let mut allowance = Allowance::new(rate, clock.now());
    loop {
        let event = match read_one(&mut read, MAX_CONTROL_BYTES, &mut body).await {
            Ok(_) if !allowance.take(clock.now()) => {
                let fault = flood(LaneId::CONTROL, 0, "more control frames than there is use for");
                Event::ControlLost { generation, clean: false, fault: Some(fault) }
            }
            Ok(Some(frame)) => Event::Frame { generation, frame },
            Ok(None) => continue,
            Err(ReadError::Closed) => Event::ControlLost { generation, clean: true, fault: None },
            Err(ReadError::Io(error)) => {
                tracing::debug!(%error, "control connection lost");
                Event::ControlLost { generation, clean: false, fault: None }
            }
            Err(ReadError::Malformed(error)) => {
                let position = u64::try_from(error.at).unwrap_or(u64::MAX);
                let (code, lane) = (ErrorCode::Malformed, error.lane);
                let what = error.to_string();
                let fault = SessionError::PeerViolation { code, lane, position, what };
                Event::ControlLost { generation, clean: false, fault: Some(fault) }
            }
        };
        let over = matches!(event, Event::ControlLost { .. });
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

async fn write_frames<S: AsyncWrite>(mut write: WriteHalf<S>, mut queue: mpsc::Receiver<Frame>) {
    let mut bytes = Vec::new();
    while let Some(frame) = queue.recv().await {
        bytes.clear();
        failpoint!(sends, &frame);
        frame.encode(&mut bytes);
        while bytes.len() < BATCH
            && let Ok(frame) = queue.try_recv()
        {
            failpoint!(sends, &frame);
            frame.encode(&mut bytes);
        }
        let written = async {
            write.write_all(&bytes).await?;
            write.flush().await
        };
        if let Err(error) = written.await {
            // The reader sees the same and tells the driver.
            tracing::debug!(%error, "control connection cannot be written");
            return;
        }
        failpoint!(sent);
    }
    let _ = write.shutdown().await;
}
