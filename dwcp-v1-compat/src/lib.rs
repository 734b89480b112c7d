//! DWCP v1 as its peers speak it, with the bounds that v1 lacks.
//!
//! v1 has no magic, version, handshake, message id, digest, acknowledgement, length bound or end marker, and is always in clear
//! text. What it cannot say is reported as unknown, never as success: see [`message::Assurance`] and [`message::Received`].
//!
//! - [`wire`]: byte layouts, nothing else.
//! - [`message`]: the pure machines [`message::Outgoing`] and [`message::Incoming`]: one message over N connections.
//! - [`detect`]: TLS or v1 by the first bytes; which connections are one transfer.
#![cfg_attr(feature = "net", doc = "- [`net`]: drivers over tokio, for messages, memory and disks.")]
//!
//! Imports go one way: `wire <- message <- detect, net`. Without the feature `net` nothing here links tokio or a socket.
//!
//! # Limits
//! Memory does not grow with what is moved: two bits a chunk (8 MiB at most), 16 MiB for chunks ahead of their turn, 32 MiB
//! for a window that a zstd frame asks for, and 256 KiB of plain bytes. [`wire::limits`] has all of them with their reasons.
//!
//! # Example
//! A message through both machines, and a connection that its peer closes too early:
//! ```
//! use dwcp_core::session::Time;
//! use dwcp_v1_compat::message::{
//!     ConnectionId, Deadlines, Defect, DefectKind, Incoming, IncomingConfig, Outgoing, Shape, Status,
//! };
//! use dwcp_v1_compat::wire::Framing;
//!
//! let data = b"live, changing state";
//! let now = Time::default();
//! let mut outgoing = Outgoing::new(Framing::Amst16, 20, 8, 1, now)?;
//! let mut stream = Vec::new();
//! while let Some(chunk) = outgoing.next(0, now)? {
//!     chunk.header.encode(&mut stream);
//!     let start = usize::try_from(chunk.at)?;
//!     stream.extend_from_slice(&data[start..start + usize::try_from(chunk.header.length)?]);
//! }
//!
//! let config = IncomingConfig {
//!     shape: Shape::Amst16 { most_bytes: 1 << 20, most_chunk_bytes: 1 << 16 },
//!     most_connections: 16,
//!     window: None,
//!     deadlines: Deadlines::default(),
//! };
//! let receive = |stream: &[u8]| -> Result<[u8; 20], Defect> {
//!     let (connection, mut place) = (ConnectionId(0), [0; 20]);
//!     let mut incoming = Incoming::new(config, now).expect("a valid configuration");
//!     incoming.connect(now, connection)?;
//!     let mut rest = stream;
//!     while !rest.is_empty() {
//!         let taken = incoming.take(now, connection, rest)?;
//!         if let Some(piece) = taken.piece {
//!             let at = usize::try_from(piece.at).expect("within the message");
//!             place[at..at + piece.range.len()].copy_from_slice(&rest[piece.range]);
//!         }
//!         rest = &rest[taken.used..];
//!     }
//!     incoming.fin(now, connection)?;
//!     assert_eq!(incoming.status(), Status::Done);
//!     Ok(place)
//! };
//! assert_eq!(&receive(&stream)?, data);
//! assert_eq!(receive(&stream[..stream.len() - 1]).unwrap_err().kind(), DefectKind::Torn);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codec;
pub mod detect;
pub mod message;
#[cfg(feature = "net")]
pub mod net;
pub mod wire;

pub use self::codec::Amst16;
