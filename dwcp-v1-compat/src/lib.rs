//! DWCP v1 as its peers speak it, with the bounds that v1 lacks.
//!
//! v1 has no magic, version, handshake, message id, checksum over a message, acknowledgement, length bound or end marker, and
//! is always in clear text. What it cannot say is reported as unknown, never as success.

pub mod detect;
pub mod message;
#[cfg(feature = "net")]
pub mod net;
pub mod wire;
