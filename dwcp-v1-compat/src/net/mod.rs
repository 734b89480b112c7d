//! Drivers over tokio: one message over N connections, and memory and disk images as v1 migrates them.
//!
//! ```text
//!  Payload ──> send ──> N connections ──> receive ──> Landing        one message, either framing
//!  Guest ──> send_memory, send_disk ─ amst16 ─> receive_memory, receive_disk ──> Guest
//! ```
//!
//! v1 has no security of its own: these functions take connections from whoever made them, and speak in clear text over a
//! bare socket. Whether a peer may be spoken to like that is decided by [`PlaintextPolicy`], at the port that both versions
//! share ([`LegacyPort`], [`DualListener`]) and before anybody dials.
//!
//! A message is driven by one task, which owns its machine; payload is read and written on that task, so the calls of
//! [`Payload`] and [`Landing`] may take as long as a page cache does. Migration has a thread of its own. A guest that lends its
//! memory ([`dwcp_core::Guest::lend`]) is not copied from or to: sockets have it, and at the sink each connection is read by a
//! task of its own.

mod connect;
mod error;
mod in_order;
mod landing;
mod lent;
mod migrate;
mod pages;
mod payload;
mod port;
mod receive;
mod send;
mod session;
mod side_by_side;
mod spool;
mod statistics;
mod tally;
mod undo;

pub use self::connect::{accept, dial, tune};
pub use self::error::TransferError;
pub use self::landing::{BytesLanding, FileLanding, GuestLanding, Landing};
pub use self::lent::Lent;
pub use self::migrate::{
    Baseline, DiskOptions, DiskReceived, MigrateOptions, receive_disk, receive_memory, send_disk, send_memory,
};
pub use self::payload::{FilePayload, GuestPayload, Payload};
pub use self::port::{LegacyArrival, LegacyListener, LegacyPort, PlaintextPolicy, Refused, SpokenV3};
pub use self::receive::{Arrivals, ReceiveOptions, receive};
pub use self::send::{SendOptions, Sent, send};
pub use self::session::{DualListener, Ended, Form, Incoming, LegacySession, Session};
pub use self::statistics::Statistics;
pub use self::tally::{Tally, TransferCounts, TransferEnding};
