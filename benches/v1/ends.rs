//! What the two processes of a measurement do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_core::Guest;
use dwcp_core::flag::Constant;
use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::message::{Deadlines, Shape};
use dwcp_v1_compat::net::{
    Arrivals, GuestLanding, GuestPayload, MigrateOptions, ReceiveOptions, SendOptions, Tally, accept, dial, receive,
    receive_memory, send, send_memory,
};
use dwcp_v1_compat::wire::{Framing, Tier};
use serde_json::{Value, json};

use crate::pages::Pages;
use crate::usage;

const SOON: Duration = Duration::from_secs(60);
/// What a plain copy reads and writes at a time.
const PIECE: usize = 1 << 20;

/// How bytes get from one end to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From socket to socket, one thread a connection.
    Copy,
    /// amst16 around the bytes as they are.
    Plain,
    /// As v1 migrates.
    V1,
    V1Tls,
    V3,
}

impl Path {
    pub fn word(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Plain => "plain",
            Self::V1 => "v1",
            Self::V1Tls => "v1-tls",
            Self::V3 => "v3",
        }
    }

    fn parse(word: &str) -> Self {
        let all = [Self::Copy, Self::Plain, Self::V1, Self::V1Tls, Self::V3];
        all.into_iter().find(|path| path.word() == word).expect("a path")
    }
}

/// What one end has used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub bytes: u64,
    pub seconds: f64,
    pub cpu: f64,
    pub peak: u64,
}

impl Used {
    fn since(cpu: f64, bytes: usize, seconds: f64) -> Self {
        let (cpu, peak) = (usage::cpu_seconds() - cpu, usage::peak_memory());
        Self { bytes: bytes as u64, seconds, cpu, peak }
    }

    fn line(self) -> String {
        json!({"bytes": self.bytes, "seconds": self.seconds, "cpu": self.cpu, "peak": self.peak}).to_string()
    }

    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("a child said {line:?}"));
        let whole = |name: &str| value[name].as_u64().expect("a number");
        let real = |name: &str| value[name].as_f64().expect("a number");
        Self { bytes: whole("bytes"), seconds: real("seconds"), cpu: real("cpu"), peak: whole("peak") }
    }
}

struct Role {
    path: Path,
    pages: Pages,
    connections: u16,
    address: String,
    identity: String,
}

/// `sink|source PATH PAGES CONNECTIONS ADDRESS IDENTITY`
pub fn child(words: &[String]) {
    let [end, path, pages, connections, address, identity] = words else { panic!("an incomplete role") };
    let role = Role {
        path: Path::parse(path),
        pages: Pages::parse(pages),
        connections: connections.parse().expect("connections"),
        address: address.clone(),
        identity: identity.clone(),
    };
    // The first use of the cipher library costs a process 60 ms, and a node pays that once in its life.
    let _ = Identity::generate("warm").expect("an identity");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let used = match (end.as_str(), role.path) {
        ("sink", Path::Copy) => copy_in(&role),
        ("source", Path::Copy) => copy_out(&role),
        ("sink", Path::V1 | Path::Plain) => runtime.block_on(v1_sink(&role)),
        ("source", Path::V1 | Path::Plain) => runtime.block_on(v1_source(&role)),
        ("sink", _) => runtime.block_on(session_sink(&role)),
        _ => runtime.block_on(session_source(&role)),
    };
    println!("{}", used.line());
}

/// Tells the address and waits for nobody: the source is started next.
fn ready(address: SocketAddr) {
    forget_peak();
    println!("{address}");
}

/// All is prepared; the clock starts when the parent says so.
fn go() {
    forget_peak();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("a line");
}

/// What was needed to make the pages is no cost of moving them. Nor is giving the memory back: the guest outlives the clock.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("/proc/self/clear_refs");
}

/// One congestion control for a copy and for v1's path: what it makes of loopback is not what is compared. `DWCP_BENCH_CC`
/// names another one; empty, it is the system's.
fn pin(socket: &impl std::os::fd::AsFd) {
    let name = std::env::var("DWCP_BENCH_CC").unwrap_or_else(|_| "cubic".into());
    if !name.is_empty() {
        socket2::SockRef::from(socket).set_tcp_congestion(name.as_bytes()).expect("a congestion control");
    }
}

fn parts(total: usize, connections: u16) -> Vec<std::ops::Range<usize>> {
    let part = total.div_ceil(connections.into()).next_multiple_of(PIECE);
    (0..usize::from(connections)).map(|at| (at * part).min(total)..((at + 1) * part).min(total)).collect()
}

fn copy_in(role: &Role) -> Used {
    let mut memory = vec![1_u8; role.pages.bytes().len()];
    let total = memory.len();
    let listener = TcpListener::bind(&role.address).expect("listen");
    ready(listener.local_addr().expect("an address"));
    let mut cpu = None;
    std::thread::scope(|scope| {
        let mut rest = memory.as_mut_slice();
        for range in parts(total, role.connections) {
            let (part, after) = rest.split_at_mut(range.len());
            rest = after;
            let (mut socket, _) = listener.accept().expect("a connection");
            cpu.get_or_insert_with(usage::cpu_seconds);
            scope.spawn(move || {
                part.chunks_mut(PIECE).for_each(|piece| socket.read_exact(piece).expect("bytes"));
                assert_eq!(socket.read(&mut [0]).expect("the end"), 0);
            });
        }
    });
    Used::since(cpu.unwrap_or_default(), total, 0.0)
}

fn copy_out(role: &Role) -> Used {
    let memory = role.pages.bytes();
    go();
    let (cpu, start) = (usage::cpu_seconds(), Instant::now());
    std::thread::scope(|scope| {
        for range in parts(memory.len(), role.connections) {
            let part = &memory[range];
            let mut socket = TcpStream::connect(&role.address).expect("a connection");
            pin(&socket);
            socket.set_nodelay(true).expect("nodelay");
            scope.spawn(move || {
                part.chunks(PIECE).for_each(|piece| socket.write_all(piece).expect("bytes"));
                socket.shutdown(std::net::Shutdown::Write).expect("the end");
                assert_eq!(socket.read(&mut [0]).expect("the end"), 0);
            });
        }
    });
    Used::since(cpu, memory.len(), start.elapsed().as_secs_f64())
}

async fn v1_sink(role: &Role) -> Used {
    let guest: Arc<dyn Guest> = role.pages.blank();
    let bytes = guest.layout().bytes() as usize;
    let listener = tokio::net::TcpListener::bind(&role.address).await.expect("listen");
    let address = listener.local_addr().expect("an address");
    ready(address);
    // Whoever comes first is the only one who comes.
    let (first, from) = listener.accept().await.expect("a connection");
    let cpu = usage::cpu_seconds();
    let mut streams = vec![first];
    streams.extend(accept(&listener, from.ip(), role.connections - 1, SOON).await.expect("connections"));
    let shape = Shape::Amst16 { most_bytes: u64::from(u32::MAX), most_chunk_bytes: 1 << 20 };
    let options =
        ReceiveOptions { shape, most_connections: 256, deadlines: Deadlines::default(), tally: Tally::default() };
    let arrivals = Arrivals::fixed(streams);
    if role.path == Path::V1 {
        receive_memory(arrivals, Arc::clone(&guest), None, options).await.expect("it comes");
    } else {
        let mut landing = GuestLanding::new(Arc::clone(&guest)).expect("a landing");
        receive(arrivals, &mut landing, &options).await.expect("it comes");
    }
    Used::since(cpu, bytes, 0.0)
}

async fn v1_source(role: &Role) -> Used {
    let guest: Arc<dyn Guest> = role.pages.guest();
    let bytes = guest.layout().bytes() as usize;
    let (to, connections) = (role.address.parse().expect("an address"), role.connections);
    let options = SendOptions::new(Framing::Amst16);
    go();
    let (cpu, start) = (usage::cpu_seconds(), Instant::now());
    let sent = if role.path == Path::V1 {
        let spool = std::env::temp_dir();
        let options = MigrateOptions { send: options, tier: Tier::Local, spool };
        send_memory(Arc::clone(&guest), options, move || dial(to, connections, SOON)).await
    } else {
        let streams = dial(to, connections, SOON).await.expect("connections");
        streams.iter().for_each(pin);
        send(streams, &mut GuestPayload(Arc::clone(&guest)), &options).await
    };
    assert!(sent.expect("it is sent").closed);
    Used::since(cpu, bytes, start.elapsed().as_secs_f64())
}

fn endpoint(role: &Role) -> Endpoint {
    let identity = Identity::from_pem(&std::fs::read_to_string(&role.identity).expect("identity")).expect("identity");
    let endpoint = Endpoint::new(&identity, &Trust::fingerprints([identity.fingerprint()])).expect("an endpoint");
    if role.path == Path::V3 {
        return endpoint;
    }
    endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local })).with_flags(Arc::new(Constant::forced_v1()))
}

async fn session_sink(role: &Role) -> Used {
    let guest = role.pages.blank();
    let bytes = guest.layout().bytes() as usize;
    let mut listener = endpoint(role).listen(&role.address).await.expect("listen");
    ready(listener.local_addr());
    let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!("no offer") };
    let cpu = usage::cpu_seconds();
    let outcome = offer.accept(Arc::<Memory>::clone(&guest), SinkConfig::default()).outcome().await;
    assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
    Used::since(cpu, bytes, 0.0)
}

async fn session_source(role: &Role) -> Used {
    let guest = role.pages.guest();
    let bytes = guest.layout().bytes() as usize;
    let endpoint = endpoint(role);
    go();
    let (cpu, start) = (usage::cpu_seconds(), Instant::now());
    let transfer = Transfer::new(Name::new("bench").expect("a name"), GuestKind::Live);
    let config = SourceConfig { lanes: role.connections, ..SourceConfig::default() };
    let mut session = endpoint.send(&role.address, transfer, Arc::<Memory>::clone(&guest), config).await.expect("send");
    let outcome = session.outcome().await;
    let seconds = start.elapsed().as_secs_f64();
    assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
    Used::since(cpu, bytes, seconds)
}
