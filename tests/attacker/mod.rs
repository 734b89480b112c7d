//! A peer that says what it likes over real TLS: the tool of `tests/hostile.rs` and `tests/attacks`.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is not as it should be, and takes the tools that it needs"
)]

use std::net::SocketAddr;
use std::sync::Arc;

use dwcp_core::net::Identity;
use dwcp_core::session::binding::{self, Key, Speaker};
use dwcp_core::session::leaves::{extent_digest, leaf};
use dwcp_core::wire::*;
use dwcp_core::{Extent, Layout, PAGE_BYTES, RegionId, Run as PageRun};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Of the guest that attackers offer.
pub(crate) const PAGES: u64 = 64;

/// What both verifiers are asked about signatures.
macro_rules! any_signature {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Trusts everybody: it is the attacker.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    any_signature!();
}

/// Asks whoever connects for a certificate and takes any: it is the attacker.
impl rustls::server::danger::ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    any_signature!();
}

/// A connection on which any bytes and frames can be said.
pub(crate) struct Raw {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The error that was heard while something else was waited for.
    heard: Option<ErrorFrame>,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr, identity: Option<&Identity>, alpn: &[u8]) -> std::io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match identity {
            Some(identity) => {
                let pem = identity.to_pem();
                let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = if alpn.is_empty() { vec![] } else { vec![alpn.to_vec()] };
        let socket = TcpStream::connect(to).await?;
        let name = ServerName::try_from("x").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        Ok(Self { stream: stream.into(), heard: None })
    }

    /// Takes a connection as a sink would.
    pub(crate) async fn accept(socket: TcpStream, identity: &Identity) -> std::io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pem = identity.to_pem();
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anybody))
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"dwcp/3".to_vec()];
        config.send_tls13_tickets = 0;
        let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(socket).await?;
        Ok(Self { stream: stream.into(), heard: None })
    }

    pub(crate) fn key(&self, label: &[u8]) -> Key {
        let exported = match &self.stream {
            TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], label, None),
            TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], label, None),
        };
        Key::new(exported.unwrap())
    }

    /// Shakes hands as a sink.
    pub(crate) async fn greet(&mut self) -> HelloAck {
        let Frame::Hello(hello) = self.hear().await.unwrap() else { panic!("no HELLO") };
        let mut ack = HelloAck {
            version: 3,
            version_min: 3,
            version_max: 3,
            features: 0,
            limits: PeerLimits { extent_pages: 256, lanes: 4 },
            session: SessionId([9; 16]),
            resumed: false,
            nonce: [8; 32],
            mac: Digest([0; 32]),
        };
        ack.mac = binding::offers_mac(&self.key(binding::CONNECTION_LABEL), Speaker::Sink, &hello, &ack);
        self.say(&Frame::HelloAck(ack.clone())).await;
        let Frame::Bind(_) = self.hear().await.unwrap() else { panic!("no BIND") };
        ack
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.bytes(&bytes).await;
    }

    pub(crate) async fn hear(&mut self) -> std::io::Result<Frame> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header).await?;
        let header = FrameHeader::decode(header, usize::MAX).unwrap();
        let mut body = vec![0; header.body_bytes()];
        self.stream.read_exact(&mut body).await?;
        Ok(Frame::decode(header.frame, &body).unwrap().unwrap())
    }

    /// Frames until an error or abort comes.
    pub(crate) async fn hear_error(&mut self) -> ErrorFrame {
        if let Some(error) = self.heard.take() {
            return error;
        }
        loop {
            if let Frame::Error(error) = self.hear().await.expect("an error frame before the end") {
                return error;
            }
        }
    }

    /// Frames until such a one comes, or an error, which [`Self::hear_error`] then tells.
    pub(crate) async fn hear_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            match self.hear().await.expect("a frame before the end") {
                Frame::Error(error) => {
                    self.heard = Some(error);
                    return None;
                }
                frame if wanted(&frame) => return Some(frame),
                _ => {}
            }
        }
    }

    /// Shakes hands as a source; `spoil` may change the hello.
    pub(crate) async fn hello(&mut self, spoil: impl FnOnce(&mut Hello)) -> (HelloAck, Hello) {
        let mut hello = hello();
        spoil(&mut hello);
        self.say(&Frame::Hello(hello.clone())).await;
        match self.hear().await.unwrap() {
            Frame::HelloAck(ack) => (ack, hello),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn bind(&mut self, hello: &Hello, ack: &HelloAck) {
        let mac = binding::offers_mac(&self.key(binding::CONNECTION_LABEL), Speaker::Source, hello, ack);
        self.say(&Frame::Bind(Bind { mac })).await;
    }
}

/// Of a source that has no session yet.
pub(crate) fn hello() -> Hello {
    Hello {
        version_min: 3,
        version_max: 3,
        role: Role::Source,
        features: 0,
        required: 0,
        limits: PeerLimits { extent_pages: 256, lanes: 4 },
        nonce: [7; 32],
        resume: None,
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        transfer: TransferId([5; 16]),
        epoch: FenceEpoch(1),
        kind: GuestKind::Live,
        name: Name::new("vm").unwrap(),
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout: Layout::new(&[PAGES * 4096]).unwrap(),
    }
}

/// A sound extent of one page, to be spoiled.
pub(crate) fn extent(seq: u64, epoch: u64, page: u32, spoil_digest: bool) -> Vec<u8> {
    let plain = vec![0xa5_u8; PAGE_BYTES];
    let mut digest = digest_of(epoch, page, &plain);
    if spoil_digest {
        digest.0[0] ^= 1;
    }
    let block = block_of(&plain, dwcp_hde::Effort::Fast, &dwcp_hde::Bases::none());
    extent_with(seq, epoch, page, plain.len() / PAGE_BYTES, digest, &block)
}

/// What an extent of these pages from `page` on proves.
pub(crate) fn digest_of(epoch: u64, page: u32, plain: &[u8]) -> Digest {
    let leaves: Vec<_> = plain.chunks(PAGE_BYTES).map(leaf).collect();
    extent_digest(FenceEpoch(epoch), &run_of(page, plain.len() / PAGE_BYTES), &leaves)
}

/// As an honest source would pack them.
pub(crate) fn block_of(plain: &[u8], effort: dwcp_hde::Effort, bases: &dwcp_hde::Bases<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    let done = dwcp_hde::Encoder::new().encode(plain, bases, effort, &mut block).unwrap();
    if done.raw_tail {
        block.extend_from_slice(plain);
    }
    block
}

/// An extent frame with any digest and any block.
pub(crate) fn extent_with(seq: u64, epoch: u64, page: u32, pages: usize, digest: Digest, block: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let head = ExtentHead { seq, epoch: FenceEpoch(epoch), digest, extent: run_of(page, pages) };
    head.encode(block.len(), &mut frame).unwrap();
    frame.extend_from_slice(block);
    frame
}

fn run_of(page: u32, pages: usize) -> Extent {
    let count = u16::try_from(pages).unwrap();
    let runs = if pages == 0 { vec![] } else { vec![PageRun { start: page, count }] };
    Extent::new(RegionId(0), runs).unwrap()
}
