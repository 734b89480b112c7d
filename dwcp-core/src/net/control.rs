//! Lane 0 after the handshake: a reader and a writer beside the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use crate::session::sink::{HAVE_BATCH, LEAST_WEIGHT, weight};
use crate::wire::limits::MAX_CONTROL_BYTES;
use crate::wire::{ErrorCode, Frame, LaneId};

/// What may wait for the socket, in leaves of HAVE: twice what a sink says before it waits for an answer (8 MiB, or 8192 short
/// frames). A peer that lets more pile up does not read: its link is given up, so that the driver never waits for it.
const QUEUE: usize = 2 * HAVE_BATCH;
/// Other frames that may wait for it, if no HAVE does.
const QUEUE_OTHERS: usize = 1024;
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
    /// What waits.
    waiting: Arc<AtomicUsize>,
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
        let (frames, queue) = mpsc::channel(QUEUE / LEAST_WEIGHT);
        let reader = tokio::spawn(read_frames(read, generation, rate, events));
        let waiting = Arc::default();
        let writer = tokio::spawn(write_frames(write, queue, Arc::clone(&waiting)));
        Self { generation, frames: Some(frames), waiting, reader, writer }
    }

    /// Queues a frame; false when the link is dead or the peer does not read. spec: R-4
    pub(super) fn send(&self, frame: Frame) -> bool {
        let more = share(&frame);
        if self.waiting.fetch_add(more, Ordering::Relaxed) + more > QUEUE {
            tracing::info!("a peer does not read what it is told; its connection is given up");
            return false;
        }
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

/// What a frame takes of [`QUEUE`].
fn share(frame: &Frame) -> usize {
    if let Frame::Have(have) = frame { weight(have) } else { QUEUE / QUEUE_OTHERS }
}

async fn write_frames<S: AsyncWrite>(
    mut write: WriteHalf<S>,
    mut queue: mpsc::Receiver<Frame>,
    waiting: Arc<AtomicUsize>,
) {
    let mut bytes = Vec::new();
    while let Some(frame) = queue.recv().await {
        bytes.clear();
        let mut taken = share(&frame);
        failpoint!(sends, &frame);
        frame.encode(&mut bytes);
        while bytes.len() < BATCH
            && let Ok(frame) = queue.try_recv()
        {
            taken += share(&frame);
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
        waiting.fetch_sub(taken, Ordering::Relaxed);
        failpoint!(sent);
    }
    let _ = write.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::RegionId;
    use crate::net::conduct::FROM_A_SOURCE;
    use crate::session::leaves::zero_leaf;
    use crate::wire::limits::MAX_HAVE_LEAVES;
    use crate::wire::{Have, Ping};

    fn have(leaves: usize) -> Frame {
        Frame::Have(Have { region: RegionId(0), first: 0, leaves: vec![zero_leaf(); leaves] })
    }

    // spec: R-4
    #[tokio::test]
    async fn who_does_not_read_gets_no_more_of_what_is_held() {
        let (ours, _theirs) = tokio::io::duplex(1024);
        let (events, _queue) = mpsc::channel(1);
        let link = ControlLink::start(ours, 0, FROM_A_SOURCE, events);
        let taken = (0..20_000).take_while(|_| link.send(have(MAX_HAVE_LEAVES))).count();
        assert_eq!(taken, 2 * 64);
    }

    // spec: R-4
    #[tokio::test]
    async fn short_frames_of_what_is_held_are_bounded_and_leave_room_for_others() {
        for (frame, most) in [(have(1), 2 * 4096), (Frame::Ping(Ping { id: 0 }), 1024)] {
            let (ours, _theirs) = tokio::io::duplex(1024);
            let (events, _queue) = mpsc::channel(1);
            let link = ControlLink::start(ours, 0, FROM_A_SOURCE, events);
            assert_eq!((0..20_000).take_while(|_| link.send(frame.clone())).count(), most);
        }
        let (ours, _theirs) = tokio::io::duplex(1024);
        let (events, _queue) = mpsc::channel(1);
        let link = ControlLink::start(ours, 0, FROM_A_SOURCE, events);
        assert!((0..4096).all(|_| link.send(have(1))), "a batch");
        assert!((0..500).all(|id| link.send(Frame::Ping(Ping { id }))));
    }

    #[tokio::test]
    async fn who_reads_is_told_all_that_is_held() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let (events, _queue) = mpsc::channel(1);
        let link = ControlLink::start(ours, 0, FROM_A_SOURCE, events);
        for batch in 0..8 {
            assert!((0..64).all(|_| link.send(have(MAX_HAVE_LEAVES))), "batch {batch}");
            assert!(link.send(Frame::Ping(Ping { id: batch })));
            let mut body = Vec::new();
            while !matches!(read_one(&mut theirs, MAX_CONTROL_BYTES, &mut body).await, Ok(Some(Frame::Ping(_)))) {}
        }
    }
}
