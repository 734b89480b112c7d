//! Warm baselines: earlier states of guests, kept at a node so that a transfer sends only what has changed since.
//!
//! ```text
//!   StoreKey ──> BaselineStore ── add(tenant, name, guest) ──> pack: chunks of 64 pages, zstd, AES-256-GCM
//!                     │                                        manifest: leaf and place of each page, sealed
//!                     │
//!                     └── baseline(tenant, digest) ──> Baseline ── leaf, find, read; Laying     pinned while it lives
//! ```
//!
//! - Agreed on by [`ManifestDigest`], a keyed digest over tenant, layout and leaves: [`StoreKey::digest`] makes it of the root
//!   with which a transfer ends.
//! - Pages of one tenant that are the same are stored once. Nothing is shared across tenants.
//! - A page is believed only if it has its leaf, whenever it is read.
//! - What is on disk, who may crash when, and the keys: `docs/baselines.md`, `sealed.rs`, `key.rs`.

mod add;
mod collect;
mod content;
mod error;
mod key;
mod laying;
mod likeness;
mod manifest;
mod names;
mod opened;
mod pack;
mod sealed;
mod store;

#[cfg(test)]
mod tests;

pub use self::add::Added;
pub use self::collect::Collected;
pub use self::error::{BaselineError, Damage};
pub use self::key::{KEY_BYTES, ManifestDigest, StoreKey};
pub use self::laying::Laying;
pub use self::manifest::{About, Draft, FORMAT, Manifest};
pub use self::opened::{Baseline, Progress};
pub use self::store::{BaselineStore, Limits, Listing, Summary};
