//! Make it happen: lanes over TLS 1.3, the one driver loop, and what an embedder holds in hand.
//!
//! ```text
//!  Endpoint ──send──> dial ──┐                        ┌── listen ──> Incoming ──accept──┐
//!                            v                        v                                 v
//!                        control link (lane 0)  ══  control link                      driver(Sink)
//!                            │                        │
//!        driver(Source) ─────┤                        ├───── one event queue a session
//!                            │                        │
//!        lane workers ═══════╧═══ TLS 1.3 / TCP ══════╧═════ lane workers
//! ```
//!
//! Every session has one task that owns its machine and one queue of events into it, so that what
//! happens first is told first. Pages never pass through that task: a lane's worker copies them
//! between guest and socket by itself, on threads that the endpoint keeps for lanes.

mod accept;
mod buffers;
mod clock;
mod conduct;
mod control;
mod dial;
mod dictionaries;
mod driver;
mod endpoint;
mod error;
mod estimate;
mod greet;
mod half_open;
mod handshake;
mod identity;
mod lane_sink;
mod lane_source;
mod message_sink;
mod message_source;
mod offence;
mod openings;
mod quarantine;
mod records;
mod session;
mod sink_hands;
mod socket;
mod source_hands;
mod statistics;
mod tcp_info;
mod threads;
mod tls;

pub use self::accept::{Incoming, IncomingAsk, IncomingOffer, Listener};
pub use self::endpoint::{Endpoint, Transfer};
pub use self::error::{EndpointError, IdentityError, RecordsError};
pub use self::estimate::{Advice, Estimate, EstimateConfig, estimate};
pub use self::identity::{Identity, Trust};
pub use self::offence::{Offence, Offences, TurnedAway};
pub use self::openings::{Openings, Sorted, Sorting};
pub use self::quarantine::{Quarantine, QuarantineListing, Quarantined};
pub use self::records::{Damaged, Listing, Offered, Offering, Records};
pub use self::session::Session;
pub use self::statistics::{
    Declined, EndStatistics, Ending, FlagStatistics, HandoverReason, HandoverStatistics, SessionStatistics, Statistics,
    Traffic, VersionRefusal,
};
pub use crate::session::Fingerprint;

#[cfg(test)]
mod tests;
