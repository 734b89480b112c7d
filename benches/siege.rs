//! A node under siege: thousands of connections that say nothing, and an honest peer that wants in.
//!
//! ```text
//! cargo bench --bench siege                5,000 connections from 500 addresses, silent, and silent after a ClientHello
//! options: --connections 5000  --addresses 500  --handshakes 200
//! ```
//!
//! The node is a process of its own, so that its memory can be read. Attackers come from addresses of 127.1.0.0/16, the
//! honest peer from 127.0.0.1; a handshake is one `Endpoint::send` until it returns.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks and stops at its own bugs"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_core::Layout;
use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::SourceConfig;
use dwcp_core::wire::{GuestKind, Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

struct Options {
    connections: usize,
    addresses: usize,
    handshakes: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |name: &str, default| {
        let at = words.iter().position(|word| word == name);
        at.map_or(default, |at| words[at + 1].parse().expect("a number"))
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if words.first().is_some_and(|word| word == "--node") {
        return runtime.block_on(node());
    }
    let options = Options {
        connections: number("--connections", 5000),
        addresses: number("--addresses", 500),
        handshakes: number("--handshakes", 200),
    };
    println!("| connections | opened in s | p50 ms | p99 ms | most ms | last reaped s later | extra KiB | KiB each |");
    println!("|---|---|---|---|---|---|---|---|");
    runtime.block_on(async {
        besiege("none", &options, 0, b"").await;
        besiege("silent", &options, options.connections, b"").await;
        besiege("silent after a ClientHello", &options, options.connections, &client_hello()).await;
        crowd(1000).await;
    });
}

/// Refuses what it is offered: only the way there is measured. Its identity comes in, its address goes out.
async fn node() {
    let mut lines = std::io::stdin().lines();
    let mut pem = || {
        let mut text = String::new();
        for line in lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            text += &(line + "\n");
        }
        Identity::from_pem(&text).unwrap()
    };
    let (own, peer) = (pem(), pem());
    let endpoint = Endpoint::new(&own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
    let mut listener = endpoint.listen("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr());
    while let Some(incoming) = listener.accept().await {
        match incoming {
            Incoming::Offer(offer) => offer.refuse("thank you"),
            Incoming::Ask(ask) => ask.refuse("thank you"),
            _ => {}
        }
    }
}

struct Node {
    process: Child,
    address: SocketAddr,
    honest: Endpoint,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    fn start() -> Self {
        let (own, peer) = (Identity::generate("node").unwrap(), Identity::generate("honest").unwrap());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg("--node").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        write!(stdin, "{}\n{}\n", own.to_pem(), peer.to_pem()).unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let honest = Endpoint::new(&peer, &Trust::fingerprints([own.fingerprint()])).unwrap();
        Self { process, address: line.trim().parse().unwrap(), honest }
    }

    /// Resident memory, in KiB.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn handshake(&self) -> Duration {
        let guest = Arc::new(Memory::new(Layout::new(&[4096]).unwrap()));
        let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Live);
        let (to, started) = (self.address.to_string(), Instant::now());
        let mut session = self.honest.send(&to, transfer, guest, SourceConfig::default()).await.unwrap();
        let took = started.elapsed();
        let _ = session.outcome().await;
        took
    }
}

/// One row: so many connections are opened and held, then honest peers come, then it is waited until all are cut.
async fn besiege(name: &str, options: &Options, connections: usize, opening: &[u8]) {
    let node = Node::start();
    for _ in 0..20 {
        node.handshake().await;
    }
    let before = node.resident();
    let mut held = Vec::with_capacity(connections);
    let began = Instant::now();
    for number in 0..connections {
        held.push(connect(&node, number % options.addresses, opening).await);
    }
    let opened = began.elapsed();
    let mut peak = node.resident();
    let mut took = Vec::with_capacity(options.handshakes);
    for number in 0..options.handshakes {
        took.push(node.handshake().await);
        if number % 16 == 0 {
            peak = peak.max(node.resident());
        }
    }
    let mut answered = 0;
    for mut stream in held {
        let mut rest = [0; 4096];
        loop {
            match stream.read(&mut rest).await {
                Ok(0) | Err(_) => break,
                Ok(count) => answered += count,
            }
        }
    }
    let reaped = if connections == 0 { Duration::ZERO } else { began.elapsed() - opened };
    assert!(connections == 0 || opening.is_empty() == (answered == 0), "{answered} bytes answered");
    took.sort_unstable();
    let ms = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    let extra = peak.saturating_sub(before);
    let each = extra as f64 / connections.max(1) as f64;
    println!(
        "| {connections} {name} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {extra} | {each:.1} |",
        opened.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        ms(1.0),
        reaped.as_secs_f64()
    );
}

/// Honest peers that all come at the same moment, from one address and with one identity.
async fn crowd(peers: usize) {
    let node = Arc::new(Node::start());
    let began = Instant::now();
    let all: Vec<_> = (0..peers)
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.handshake().await })
        })
        .collect();
    for one in all {
        one.await.expect("an honest handshake");
    }
    println!("\n{peers} honest handshakes at once: all done within {:.2} s", began.elapsed().as_secs_f64());
}

/// From an address of its own.
async fn connect(node: &Node, address: usize, opening: &[u8]) -> TcpStream {
    let from = Ipv4Addr::new(127, 1, u8::try_from(address / 250).unwrap(), u8::try_from(address % 250 + 1).unwrap());
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(node.address).await.expect("descriptors for both ends: see ulimit -n");
    stream.write_all(opening).await.unwrap();
    stream
}

/// What makes the node do the dear part of a handshake, for nothing.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dwcp/3".to_vec()];
    let mut client = rustls::ClientConnection::new(Arc::new(config), "x".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}
