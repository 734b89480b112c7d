//! TLS 1.3 with mutual authentication, by the key's fingerprint or by an authority.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};

use super::error::IdentityError;
use super::identity::{Identity, Trust};
use crate::session::Fingerprint;
use crate::session::binding::{CONNECTION_LABEL, Key, SESSION_LABEL, Speaks};
use crate::wire::Framing;

/// The application protocols: version 3, and its lanes with version 1's messages. spec: H-1
const V3: &[u8] = b"dwcp/3";
const V1: &[u8] = b"dwcp/1";

/// What both ends of an endpoint's connections are made with.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    clients: [Arc<ClientConfig>; 3],
    servers: [Arc<ServerConfig>; 3],
}

/// What is offered: by who can speak only version 3, by who can speak both, by who does not want version 3. A server
/// that does not want it takes it all the same where nothing else is offered, so that it can say why it refuses.
const CLIENTS: [&[&[u8]]; 3] = [&[V3], &[V3, V1], &[V1]];
const SERVERS: [&[&[u8]]; 3] = [&[V3], &[V3, V1], &[V1, V3]];

fn place(speaks: &Speaks) -> usize {
    match (*speaks.versions.start(), *speaks.versions.end()) {
        (3, _) => 0,
        (_, 3) => 1,
        _ => 2,
    }
}

impl Tls {
    pub(super) fn new(identity: &Identity, trust: &Trust) -> Result<Self, IdentityError> {
        let provider = Arc::new(provider());
        let (server_verifier, client_verifier) = verifiers(trust, &provider)?;
        let versions = &[&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(server_verifier)
            .with_client_auth_cert(identity.chain(), identity.key())
            .map_err(tls)?;
        // No tickets, no early data: every connection proves its identity anew.
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(identity.chain(), identity.key())
            .map_err(tls)?;
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        let offer = |protocols: &[&[u8]]| protocols.iter().map(|protocol| protocol.to_vec()).collect::<Vec<_>>();
        let clients = CLIENTS.map(|protocols| {
            let mut client = client.clone();
            client.alpn_protocols = offer(protocols);
            Arc::new(client)
        });
        let servers = SERVERS.map(|protocols| {
            let mut server = server.clone();
            server.alpn_protocols = offer(protocols);
            Arc::new(server)
        });
        Ok(Self { clients, servers })
    }

    pub(super) fn client(&self, speaks: &Speaks) -> Arc<ClientConfig> {
        let [v3, both, v1] = &self.clients;
        Arc::clone([v3, both, v1].get(place(speaks)).copied().unwrap_or(both))
    }

    pub(super) fn server(&self, speaks: &Speaks) -> Arc<ServerConfig> {
        let [v3, both, v1] = &self.servers;
        Arc::clone([v3, both, v1].get(place(speaks)).copied().unwrap_or(both))
    }
}

/// AES-128-GCM first: 9 to 15 % cheaper than AES-256 at the same strength against anything known.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..aws_lc_rs::default_provider()
    }
}

type Verifiers = (Arc<dyn ServerCertVerifier>, Arc<dyn ClientCertVerifier>);

fn verifiers(trust: &Trust, provider: &Arc<CryptoProvider>) -> Result<Verifiers, IdentityError> {
    match trust {
        Trust::Fingerprints(trusted) => {
            if trusted.is_empty() {
                return Err(IdentityError::NoTrust);
            }
            let algorithms = provider.signature_verification_algorithms;
            let pinned = Arc::new(Pinned { trusted: trusted.clone(), algorithms });
            let server: Arc<dyn ServerCertVerifier> = Arc::<Pinned>::clone(&pinned);
            Ok((server, pinned))
        }
        Trust::Authorities(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority.clone()).map_err(tls)?;
            }
            let roots = Arc::new(roots);
            let server =
                rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
            let client = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            let server = server.build().map_err(|error| IdentityError::Tls(error.to_string()))?;
            let client = client.build().map_err(|error| IdentityError::Tls(error.to_string()))?;
            Ok((server, client))
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn tls(error: Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// Accepts exactly the certificates whose key is trusted. Names and dates in them are not looked
/// at: the key is the identity. The handshake's signature proves that the peer has it. spec: H-8
#[derive(Debug)]
struct Pinned {
    trusted: Vec<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let fingerprint = Fingerprint::of(certificate)
            .map_err(|_| Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        if self.trusted.contains(&fingerprint) {
            return Ok(());
        }
        Err(Error::General(format!("its key {fingerprint} is not trusted here")))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a finished TLS handshake tells.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    pub(super) peer: Fingerprint,
    /// What TLS agreed on.
    pub(super) framing: Framing,
    /// Binds this connection.
    pub(super) connection_key: Key,
    /// Binds a session, if this connection begins one.
    pub(super) session_key: Key,
}

/// Checks the application protocol and exports the keys.
pub(super) fn channel(
    state: &rustls::CommonState,
    export: impl Fn(&[u8]) -> Result<[u8; 32], Error>,
) -> Result<Channel, Error> {
    let framing = match state.alpn_protocol() {
        Some(V3) => Framing::Extents,
        Some(V1) => Framing::Messages,
        _ => return Err(Error::General("the peer speaks neither dwcp/3 nor dwcp/1 (ALPN)".into())),
    };
    let certificate = state.peer_certificates().and_then(<[_]>::first).ok_or(Error::NoCertificatesPresented)?;
    let peer = Fingerprint::of(certificate).map_err(|error| Error::General(error.to_string()))?;
    let key = |label| export(label).map(Key::new);
    Ok(Channel { peer, framing, connection_key: key(CONNECTION_LABEL)?, session_key: key(SESSION_LABEL)? })
}
