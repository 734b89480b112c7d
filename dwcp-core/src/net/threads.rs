//! The threads of an endpoint: those on which lanes work, and those on which strangers are answered.
//!
//! What takes long at a time stays off the embedder's runtime, where lane 0 of all sessions is heard: an extent is
//! compressed for milliseconds, a handshake is a third of a millisecond of signatures, and they come by the thousand.

use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use super::buffers::Buffers;
use super::error::EndpointError;

/// The threads of an endpoint. They end with its last clone.
#[derive(Clone, Debug)]
pub(super) struct Threads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lanes: Pool,
    handshakes: Pool,
    buffers: Buffers,
}

impl Threads {
    /// As many for lanes as there are cores, whatever the number of lanes; half as many for handshakes, so that no flood of
    /// them takes more than that.
    pub(super) fn start() -> Result<Self, EndpointError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let lanes = Pool::start("dwcp-lane", cores)?;
        let handshakes = Pool::start("dwcp-handshake", cores.div_ceil(2))?;
        Ok(Self(Arc::new(Shared { lanes, handshakes, buffers: Buffers::default() })))
    }

    /// Extents that can be encoded at a time.
    pub(super) fn encoders(&self) -> u16 {
        u16::try_from(self.0.lanes.threads).unwrap_or(u16::MAX)
    }

    /// Where lanes work.
    pub(super) fn lanes(&self) -> &Handle {
        &self.0.lanes.handle
    }

    /// Does `work`, the cryptography of one handshake, on the threads for that; dropped, it is given up. Its socket stays
    /// with the runtime that made it.
    ///
    /// # Errors
    /// The endpoint ends.
    pub(super) async fn handshake<T, W>(&self, work: W) -> io::Result<T>
    where
        T: Send + 'static,
        W: IntoFuture<Output = T>,
        W::IntoFuture: Send + 'static,
    {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work.into_future(), &self.0.handshakes.handle);
        match tasks.join_next().await {
            Some(done) => done.map_err(io::Error::other),
            None => Err(io::ErrorKind::Interrupted.into()),
        }
    }

    /// What the lanes on these threads share.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.0.buffers
    }
}

#[derive(Debug)]
struct Pool {
    runtime: Option<Runtime>,
    handle: Handle,
    threads: usize,
}

impl Pool {
    fn start(name: &str, threads: usize) -> Result<Self, EndpointError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(name)
            .enable_all()
            .build()
            .map_err(EndpointError::Threads)?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, threads })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The last clone may go inside an async task, where waiting is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
