//! The guest: a process of its own that serves the store from its arena. It knows nothing of the
//! migration but a gate that a node closes and opens.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::arena::Arena;
use super::control::{self, Command, Counters};
use super::message::{Event, GuestStart, Order, orders, report};
use super::request::{Request, Split, append_ack, append_counters};
use super::store::Store;

pub(super) fn run() -> anyhow::Result<()> {
    let (start, orders) = orders::<GuestStart>()?;
    let arena = Arena::open(&start.place)?;
    let gate = Arc::new(Gate::new(arena.clone()));
    if start.serve {
        gate.open_with(Store::create(arena)?);
    }
    let commands = listen(&start.place.control)?;
    let clients = listen(&start.place.store)?;
    let node_gate = Arc::clone(&gate);
    spawn("control", move || accept(&commands, "node", &node_gate, obey))?;
    let client_gate = Arc::clone(&gate);
    spawn("store", move || accept(&clients, "client", &client_gate, serve))?;
    report(&Event::Ready { address: None });
    while let Ok(order) = orders.recv() {
        if order == Order::Run {
            gate.run()?;
        }
    }
    Ok(())
}

/// What stands between a request and the store. Whoever answers requests holds it; so once a pause
/// has it, nothing is written and nothing is answered.
#[derive(Debug)]
struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// A pause is coming: do not take the gate again before it.
    closing: AtomicBool,
    arena: Arena,
    clients: Mutex<Vec<UnixStream>>,
}

#[derive(Debug, Default)]
struct Inner {
    running: bool,
    /// None until there is something to serve.
    store: Option<Store>,
    counters: Counters,
}

impl Gate {
    fn new(arena: Arena) -> Self {
        Self {
            inner: Mutex::default(),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
            arena,
            clients: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_with(&self, store: Store) {
        let mut inner = self.lock();
        inner.store = Some(store);
        inner.running = true;
        self.changed.notify_all();
    }

    fn pause(&self) -> Counters {
        self.closing.store(true, Ordering::SeqCst);
        let mut inner = self.lock();
        inner.running = false;
        self.closing.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        inner.counters
    }

    fn run(&self) -> anyhow::Result<Counters> {
        let mut inner = self.lock();
        if inner.store.is_none() {
            inner.store = Some(Store::open(self.arena.clone())?);
        }
        inner.running = true;
        self.changed.notify_all();
        Ok(inner.counters)
    }

    fn load(&self, counters: Counters) -> anyhow::Result<Counters> {
        let mut inner = self.lock();
        if inner.store.is_some() {
            bail!("this guest has a state of its own");
        }
        inner.counters = counters;
        Ok(counters)
    }

    /// Closes all clients' connections, so that they need not guess where the guest is. The end of
    /// the process would do so too, but only after it has unmapped the arena.
    fn hang_up(&self) {
        for client in self.clients.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Waits until the guest runs. Whoever sets `closing` clears it and notifies under the lock.
    fn enter(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        while !inner.running || self.closing.load(Ordering::SeqCst) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner
    }
}

/// Takes orders from one node.
fn obey(mut stream: UnixStream, gate: &Gate) -> anyhow::Result<()> {
    while let Some((command, counters)) = control::question(&mut stream) {
        let done = match command {
            Command::Pause => Ok(gate.pause()),
            Command::Run => gate.run(),
            Command::Load => gate.load(counters),
            Command::Leave => Ok(gate.pause()),
        };
        control::answer(&mut stream, done.as_ref().ok().copied());
        if command == Command::Leave {
            gate.hang_up();
            std::process::exit(0);
        }
        if let Err(error) = done {
            report(&Event::Failed { text: format!("the guest: {error:#}") });
        }
    }
    Ok(())
}

/// Bytes of requests that are read at once: some 250 writes.
const BATCH_BYTES: usize = 64 * 1024;
/// A client that does not read its replies for this long would hold up a pause.
const WRITE_LIMIT: Duration = Duration::from_millis(200);

/// Serves one client until it goes.
fn serve(mut stream: UnixStream, gate: &Gate) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    gate.clients.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
    let mut waiting: Vec<u8> = Vec::with_capacity(2 * BATCH_BYTES);
    let mut incoming = vec![0; BATCH_BYTES];
    let mut replies = Vec::with_capacity(BATCH_BYTES);
    loop {
        let count = stream.read(&mut incoming)?;
        if count == 0 {
            return Ok(());
        }
        waiting.extend_from_slice(incoming.get(..count).unwrap_or_default());
        let mut inner = gate.enter();
        let rest = answer(&mut inner, &waiting, &mut replies)?;
        // Under the gate: a paused guest answers nothing, not even what it has done.
        stream.write_all(&replies)?;
        drop(inner);
        replies.clear();
        let done = waiting.len() - rest;
        waiting.drain(..done);
    }
}

/// Answers every whole request; returns how many bytes are left over.
fn answer(inner: &mut Inner, mut bytes: &[u8], replies: &mut Vec<u8>) -> anyhow::Result<usize> {
    let Inner { store, counters, .. } = inner;
    let store = store.as_ref().context("a guest without a store runs")?;
    loop {
        let request = match Request::split_first(bytes) {
            Split::Request(request, rest) => {
                bytes = rest;
                request
            }
            Split::Short => return Ok(bytes.len()),
            Split::Unknown => bail!("this is no request"),
        };
        counters.operations += 1;
        match request {
            Request::Put(entry) => {
                store.put(&entry)?;
                counters.sequence = counters.sequence.max(entry.sequence);
                append_ack(&entry, replies);
            }
            Request::Get(key) => replies.extend(store.get(key)?),
            Request::Count => append_counters(*counters, replies),
        }
    }
}

fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    // Left by nobody: the folder is this run's own.
    let _ = fs::remove_file(socket);
    UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))
}

/// One thread for each connection; only the demo's own processes can reach the socket.
fn accept(
    listener: &UnixListener,
    who: &'static str,
    gate: &Arc<Gate>,
    serve: fn(UnixStream, &Gate) -> anyhow::Result<()>,
) {
    for stream in listener.incoming().filter_map(Result::ok) {
        let gate = Arc::clone(gate);
        let spawned = spawn(who, move || {
            // A client or node that breaks off is no failure of the guest.
            let _ = serve(stream, &gate);
        });
        if let Err(error) = spawned {
            report(&Event::Failed { text: format!("the guest: {error:#}") });
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).context("cannot start a thread")?;
    Ok(())
}
