use std::io;
use std::path::PathBuf;

use crate::session::RecordError;
use crate::session::binding::NegotiationError;
use crate::wire::{ErrorFrame, WireError};

/// Why an endpoint cannot be made, listen, or begin a session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// A call of [`crate::blocking`] within an async task.
    #[error(
        "a blocking call was made from within an async runtime, whose tasks it would stop; use dwcp_core::net there"
    )]
    InsideRuntime,
    /// Version 3 is switched off, and this endpoint was given nothing else to speak.
    #[error(
        "version 3 is switched off on this node (see `dwcp flag show`) and nothing else can be spoken; switch it on, or \
         give the endpoint a codec for version 1's messages"
    )]
    NothingSpoken,
    /// The name of the peer's host is not known.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// What was asked for.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The peer took too long.
    #[error("{address} did not finish the handshake within {} s", .limit.as_secs())]
    Timeout {
        /// Where.
        address: String,
        /// How long was waited.
        limit: std::time::Duration,
    },
    /// The peer is not who it should be, or does not accept who we are.
    #[error("{address}: {what}")]
    Unauthorised {
        /// Where.
        address: String,
        /// Who refused whom, and what to do.
        what: String,
    },
    /// TLS failed otherwise.
    #[error("{address}: TLS: {source}")]
    Tls {
        /// Where.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The connection was lost during the handshake.
    #[error("{address}: the connection was lost during the handshake: {source}")]
    Lost {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its TLS takes none of the protocols that we offer.
    #[error(
        "{address}: it speaks TLS, but none of our versions: it is no dwcp receiver, or ours is switched off and it has \
         no other; check the host and the port, and `dwcp flag show`"
    )]
    NothingInCommon {
        /// Where.
        address: String,
    },
    /// No common version or feature, or a proof that does not match.
    #[error("{address}: {source}")]
    Negotiation {
        /// Where.
        address: String,
        /// What does not fit.
        source: NegotiationError,
    },
    /// The peer sent what is no valid frame.
    #[error("{address}: {source}")]
    Malformed {
        /// Where.
        address: String,
        /// What and where.
        source: WireError,
    },
    /// The peer sent a valid frame that has no business here.
    #[error("{address}: {what}")]
    Unexpected {
        /// Where.
        address: String,
        /// What it did.
        what: String,
    },
    /// The peer refused the handshake and said why.
    #[error("{address} refuses: {} ({:?})", .frame.text, .frame.code)]
    Refused {
        /// Where.
        address: String,
        /// In its words.
        frame: ErrorFrame,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Key, certificate or trust cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The folder of records cannot be used.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// Threads for lanes cannot be started.
    #[error("cannot start threads for lanes and handshakes: {0}")]
    Threads(io::Error),
}

impl EndpointError {
    /// Whether waiting and trying again may help.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Resolve { .. } | Self::Connect { .. } | Self::Timeout { .. } | Self::Lost { .. })
    }
}

/// Why a key, a certificate or trust cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The PEM text lacks a part.
    #[error("no {what} in the PEM text; make an identity with `dwcp identity new --out FILE`")]
    Missing {
        /// Which part.
        what: &'static str,
    },
    /// A part cannot be read.
    #[error("the {what} cannot be read: {text}")]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        text: String,
    },
    /// Nobody is trusted.
    #[error("nobody is trusted: give at least one fingerprint or certificate authority")]
    NoTrust,
    /// The TLS library refused.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Why records of transfers cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// The system refused.
    #[error("what is remembered of transfers cannot be kept in {path}, or read there: {source}", path = .path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no record.
    #[error(
        "{path}: {source}; learn at the other end what became of this transfer (`dwcp resolve`), then remove this file",
        path = .path.display()
    )]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
}
