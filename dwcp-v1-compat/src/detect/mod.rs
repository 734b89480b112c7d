//! Which protocol a connection speaks, from its first bytes; and which connections are one v1 transfer.
//!
//! ```text
//!  accepted ──> Groups ── watched until the deadline ── silent ──────────> hung up
//!                 |  ^                                                       ^
//!               bytes└── Opening ─ TLS ──> dwcp-core                         |
//!                           |  └─ garbage ──────────────────────────────────-┤
//!                           └─ v1 ──> the transfer of that address ── over ──┘
//! ```
//!
//! Nothing is allocated for what a connection says, and little for that it is there.

mod groups;
mod opening;
#[cfg(test)]
mod tests;

pub use self::groups::{GroupCounts, GroupId, Groups, GroupsConfig, Route, Standing, TurnedAway};
pub use self::opening::{Opening, Sight};
