//! The peer: bare rustls over blocking sockets, one thread a connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use dwcp_core::net::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::corpus;
use crate::dwcp_ends::randomise;
use crate::measure::Figures;
use crate::options::{Case, Peer, Role};
use crate::usage;

const CHUNK: usize = 1 << 20;

/// As DWCP sets its sockets.
fn tune(socket: &TcpStream) {
    socket.set_nodelay(true).expect("nodelay");
    let reference = socket2::SockRef::from(socket);
    reference.set_tcp_congestion(b"cubic").expect("cubic");
}

fn bytes(case: &Case) -> Vec<u8> {
    match case {
        Case::Random { bytes } => {
            let mut plain = vec![0; usize::try_from(*bytes).expect("fits")];
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            randomise(&mut plain, &mut state);
            plain
        }
        Case::Corpus { folder, name, times } => corpus::first_snapshot(folder, name).repeat(*times),
    }
}

fn hash_pages(bytes: &[u8]) -> u8 {
    bytes.chunks(4096).fold(0, |sum, page| sum ^ blake3::hash(page).as_bytes()[0])
}

/// The parts of memory that the connections carry.
fn parts(total: usize, lanes: u16) -> Vec<std::ops::Range<usize>> {
    let part = total.div_ceil(usize::from(lanes)).next_multiple_of(CHUNK);
    (0..usize::from(lanes)).map(|lane| (lane * part).min(total)..((lane + 1) * part).min(total)).collect()
}

pub fn sink(role: &Role, ready: impl FnOnce(String)) -> Figures {
    let config = server_config(role);
    let listener = TcpListener::bind(&role.address).expect("listen");
    let total = match &role.case {
        Case::Random { bytes } => usize::try_from(*bytes).expect("fits"),
        case @ Case::Corpus { .. } => bytes(case).len(),
    };
    // Touched before the clock starts, like the memory that DWCP's sink writes to.
    let mut memory = vec![1_u8; total];
    ready(listener.local_addr().expect("an address").to_string());
    let hashes = role.peer == Peer::RustlsHash;
    let mut cpu = None;
    std::thread::scope(|scope| {
        let mut rest = memory.as_mut_slice();
        for range in parts(total, role.lanes) {
            let (part, after) = rest.split_at_mut(range.len());
            rest = after;
            let (socket, _) = listener.accept().expect("a connection");
            cpu.get_or_insert_with(usage::cpu_seconds);
            tune(&socket);
            let connection = ServerConnection::new(Arc::clone(&config)).expect("TLS");
            scope.spawn(move || {
                let mut stream = StreamOwned::new(connection, socket);
                let mut buffer = vec![0; CHUNK];
                for piece in part.chunks_mut(CHUNK) {
                    let chunk = &mut buffer[..piece.len()];
                    stream.read_exact(chunk).expect("bytes");
                    if hashes {
                        std::hint::black_box(hash_pages(chunk));
                        piece.copy_from_slice(chunk);
                    }
                }
                stream.write_all(b"k").expect("an answer");
                stream.flush().expect("an answer");
            });
        }
    });
    Figures::since(cpu.unwrap_or_default(), total as u64, 0.0, 0)
}

pub fn source(role: &Role, go: impl FnOnce()) -> Figures {
    let config = client_config(role);
    let memory = bytes(&role.case);
    let hashes = role.peer == Peer::RustlsHash;
    go();
    let cpu = usage::cpu_seconds();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for range in parts(memory.len(), role.lanes) {
            let socket = TcpStream::connect(&role.address).expect("a connection");
            tune(&socket);
            let name = ServerName::try_from("bench").expect("a name");
            let connection = ClientConnection::new(Arc::clone(&config), name).expect("TLS");
            let part = &memory[range];
            scope.spawn(move || {
                let mut stream = StreamOwned::new(connection, socket);
                let mut buffer = vec![0; CHUNK];
                for piece in part.chunks(CHUNK) {
                    if hashes {
                        let chunk = &mut buffer[..piece.len()];
                        chunk.copy_from_slice(piece);
                        std::hint::black_box(hash_pages(chunk));
                        stream.write_all(chunk).expect("bytes");
                    } else {
                        stream.write_all(piece).expect("bytes");
                    }
                }
                stream.flush().expect("bytes");
                let mut answer = [0];
                stream.read_exact(&mut answer).expect("an answer");
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    Figures::since(cpu, memory.len() as u64, seconds, memory.len() as u64)
}

/// The same cipher as DWCP's, so that only the rest is compared.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let default = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..default })
}

fn pem(role: &Role) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let text = Identity::from_pem(&std::fs::read_to_string(&role.identity).expect("identity")).expect("PEM").to_pem();
    let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().expect("certificates");
    (chain, PrivateKeyDer::from_pem_slice(text.as_bytes()).expect("a key"))
}

fn server_config(role: &Role) -> Arc<ServerConfig> {
    let (chain, key) = pem(role);
    let versions = &[&rustls::version::TLS13];
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).expect("versions");
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("a certificate"))
}

fn client_config(role: &Role) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(pem(role).0[0].clone()).expect("a root");
    let versions = &[&rustls::version::TLS13];
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).expect("versions");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// One handshake in memory.
pub fn shake_hands(role: &Role) {
    let name = ServerName::try_from("bench").expect("a name");
    let mut client = ClientConnection::new(client_config(role), name).expect("TLS");
    let mut server = ServerConnection::new(server_config(role)).expect("TLS");
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("bytes");
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("bytes");
            server.process_new_packets().expect("TLS");
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("bytes");
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("bytes");
            client.process_new_packets().expect("TLS");
        }
    }
}
