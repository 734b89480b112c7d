use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use dwcp_core::session::Time;

use super::Sight;
use crate::message::ConnectionId;
use crate::wire::limits::MAX_CONNECTIONS;

/// One v1 transfer that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// How many connections are looked at, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupsConfig {
    /// v1 transfers at a time. Each holds a table and a window.
    pub most_groups: usize,
    /// Connections of one transfer, and those of one address that have not spoken.
    pub most_connections: usize,
    /// Connections of all addresses that have not spoken.
    pub most_waiting: usize,
    /// From accept to the first bytes, unless the connection belongs to a transfer that is under way.
    pub deadline: Duration,
    /// From the end of a transfer that did not come whole: v1 dials its connections together, so those that are accepted until
    /// then are of the same message.
    pub aftermath: Duration,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        let most_connections = usize::from(MAX_CONNECTIONS);
        // A peer that tries again at once must not lose that try: version 1 says no message's name.
        let (deadline, aftermath) = (Duration::from_secs(5), Duration::ZERO);
        Self { most_groups: 64, most_connections, most_waiting: 4096, deadline, aftermath }
    }
}

/// What becomes of a connection that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It must speak until then.
    Watched {
        /// The deadline.
        until: Time,
    },
    /// A transfer from its address is under way: v1 opens connections that it may never use, and they stay open until it
    /// is over.
    Held(GroupId),
}

/// Where a connection goes that has spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the endpoint of v3.
    Tls,
    /// It is the first of a new transfer.
    Start(GroupId),
    /// It is one more of a transfer. v1 has no message id: two transfers from one address at a time cannot be told
    /// apart, and end in [`Defect`](crate::message::Defect)s.
    Join(GroupId),
    /// It is one more of a transfer that is over already, and did not come whole: it is hung up on, as the others were.
    Rest,
    /// It is hung up on.
    Close(TurnedAway),
}

/// Why a connection is hung up on. None of it is held against anybody: addresses can be forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TurnedAway {
    /// It speaks neither.
    #[error("neither TLS nor v1")]
    Garbage,
    /// Its address has as many that have not spoken as it may.
    #[error("too many connections of this address say nothing")]
    WaitingOfAddress,
    /// All addresses together have.
    #[error("too many connections say nothing")]
    Waiting,
    /// As many transfers are under way as may be.
    #[error("too many v1 transfers at a time")]
    Groups,
    /// Its transfer has as many connections as it may.
    #[error("too many connections of one v1 transfer")]
    Connections,
    /// It is not known: closed before, or never accepted.
    #[error("a connection that is not watched")]
    Unknown,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupCounts {
    /// Connections that spoke TLS.
    pub tls: u64,
    /// Transfers that began.
    pub started: u64,
    /// Further connections of theirs.
    pub joined: u64,
    /// Connections that were held for a transfer without having spoken.
    pub held: u64,
    /// Connections that spoke neither.
    pub garbage: u64,
    /// Connections that said nothing until their deadline.
    pub silent: u64,
    /// Connections that were too many, of whatever.
    pub turned_away: u64,
    /// Transfers that began and that nobody took: hung up on, because their caller did not want them or is gone.
    pub unclaimed: u64,
}

#[derive(Debug)]
struct Waiting {
    address: IpAddr,
    /// `None`: held for a transfer.
    until: Option<Time>,
    /// It came in the aftermath of a transfer.
    after: Option<Failed>,
}

#[derive(Debug)]
struct Group {
    address: IpAddr,
    members: usize,
    /// One of them began with the first chunk of the message.
    first: bool,
}

/// What is known of a transfer that is over and did not come whole.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// The end of its aftermath.
    until: Time,
    /// Its first chunk has come, so the next one is of another message.
    first: bool,
}

/// Sorts connections by address into v1 transfers, of which one for each address takes connections, and ends those that
/// never speak.
///
/// A connection is *waiting* until it has spoken, and then no longer known here but as a number in its group.
#[derive(Debug)]
pub struct Groups {
    config: GroupsConfig,
    waiting: BTreeMap<ConnectionId, Waiting>,
    /// Those of `waiting` that have a deadline.
    deadlines: BTreeSet<(Time, ConnectionId)>,
    waiting_of: HashMap<IpAddr, usize>,
    open: HashMap<IpAddr, GroupId>,
    groups: BTreeMap<GroupId, Group>,
    /// As many as `most_groups`; of more, each connection is taken for another transfer.
    failed: HashMap<IpAddr, Failed>,
    next: u64,
    counts: GroupCounts,
}

impl Groups {
    /// With none.
    pub fn new(config: GroupsConfig) -> Self {
        Self {
            config,
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting_of: HashMap::new(),
            open: HashMap::new(),
            groups: BTreeMap::new(),
            failed: HashMap::new(),
            next: 0,
            counts: GroupCounts::default(),
        }
    }

    /// A connection was accepted, and has not spoken.
    ///
    /// # Errors
    /// There are too many; close it.
    pub fn accepted(&mut self, now: Time, connection: ConnectionId, address: IpAddr) -> Result<Standing, TurnedAway> {
        let address = address.to_canonical();
        let of_address = self.waiting_of.get(&address).copied().unwrap_or(0);
        let refused = if of_address >= self.config.most_connections {
            Some(TurnedAway::WaitingOfAddress)
        } else if self.waiting.len() >= self.config.most_waiting {
            Some(TurnedAway::Waiting)
        } else {
            None
        };
        if let Some(refused) = refused {
            self.counts.turned_away += 1;
            return Err(refused);
        }
        let group = self.open.get(&address).copied();
        let until = group.is_none().then(|| now + self.config.deadline);
        self.deadlines.extend(until.map(|until| (until, connection)));
        let after = self.failed.get(&address).copied().filter(|failed| now < failed.until);
        self.waiting.insert(connection, Waiting { address, until, after });
        *self.waiting_of.entry(address).or_default() += 1;
        Ok(match (group, until) {
            (Some(group), _) => {
                self.counts.held += 1;
                Standing::Held(group)
            }
            (None, until) => Standing::Watched { until: until.unwrap_or(now) },
        })
    }

    /// A connection has spoken, and this was seen. [`Sight::More`] is for those that closed before it could be told.
    pub fn spoke(&mut self, connection: ConnectionId, sight: Sight) -> Route {
        let Some(Waiting { address, after, .. }) = self.forget(connection) else {
            return Route::Close(TurnedAway::Unknown);
        };
        match sight {
            Sight::Tls => {
                self.counts.tls += 1;
                Route::Tls
            }
            Sight::V1 { first } => self.group(address, first, after),
            Sight::Garbage | Sight::More => {
                self.counts.garbage += 1;
                Route::Close(TurnedAway::Garbage)
            }
        }
    }

    fn group(&mut self, address: IpAddr, first: bool, after: Option<Failed>) -> Route {
        let full = self.groups.len() >= self.config.most_groups;
        if let Some((id, group)) =
            self.open.get(&address).and_then(|id| self.groups.get_mut(id).map(|group| (*id, group)))
        {
            if group.members >= self.config.most_connections {
                self.counts.turned_away += 1;
                return Route::Close(TurnedAway::Connections);
            }
            group.members += 1;
            group.first |= first;
            self.counts.joined += 1;
            return Route::Join(id);
        }
        if after.is_some_and(|failed| !(first && failed.first)) {
            self.counts.joined += 1;
            return Route::Rest;
        }
        if full {
            self.counts.turned_away += 1;
            return Route::Close(TurnedAway::Groups);
        }
        let id = GroupId(self.next);
        self.next += 1;
        self.groups.insert(id, Group { address, members: 1, first });
        self.open.insert(address, id);
        self.counts.started += 1;
        // Those that the peer opened before it spoke on the first.
        for (connection, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| waiting.address == address) {
            if let Some(until) = waiting.until.take() {
                self.deadlines.remove(&(until, *connection));
                self.counts.held += 1;
            }
        }
        Route::Start(id)
    }

    /// A transfer that began is not taken. [`failed`](Self::failed) follows.
    pub fn unclaimed(&mut self) {
        self.counts.unclaimed += 1;
    }

    /// A connection of a transfer was closed by the peer: it may dial another one.
    pub fn left(&mut self, group: GroupId) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.members = group.members.saturating_sub(1);
        }
    }

    /// A connection that had not spoken was closed by the peer.
    pub fn closed(&mut self, connection: ConnectionId) {
        self.forget(connection);
    }

    /// A transfer is over and did not come whole: [`ended`](Self::ended), but connections of it may still be to come, which begin
    /// no other one.
    pub fn failed(&mut self, now: Time, group: GroupId) -> Vec<ConnectionId> {
        self.failed.retain(|_, failed| now < failed.until);
        if let Some(group) = self.groups.get(&group).filter(|_| self.failed.len() < self.config.most_groups) {
            let failed = Failed { until: now + self.config.aftermath, first: group.first };
            self.failed.insert(group.address, failed);
        }
        self.ended(group)
    }

    /// The transfer that a connection of this address would join.
    pub fn joined_from(&self, address: IpAddr) -> Option<GroupId> {
        self.open.get(&address.to_canonical()).copied()
    }

    /// The transfer of an address takes no more connections, though it is not over: what begins next from there is
    /// another one.
    pub fn complete(&mut self, group: GroupId) {
        self.open.retain(|_, open| *open != group);
    }

    /// A transfer is over, well or not. These connections were held for it without having spoken: close them.
    pub fn ended(&mut self, group: GroupId) -> Vec<ConnectionId> {
        let Some(Group { address, .. }) = self.groups.remove(&group) else { return Vec::new() };
        if self.open.get(&address).is_some_and(|open| *open != group) {
            // They are held for the one behind it.
            return Vec::new();
        }
        self.open.remove(&address);
        let held = self.waiting.iter().filter(|(_, waiting)| waiting.address == address && waiting.until.is_none());
        let held: Vec<_> = held.map(|(connection, _)| *connection).collect();
        for connection in &held {
            self.forget(*connection);
        }
        held
    }

    /// When [`expired`](Self::expired) is to be asked.
    pub fn deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// A connection that said nothing for too long: close it, and ask again.
    pub fn expired(&mut self, now: Time) -> Option<ConnectionId> {
        let (_, connection) = *self.deadlines.first().filter(|(until, _)| *until <= now)?;
        self.forget(connection);
        self.counts.silent += 1;
        Some(connection)
    }

    /// Connections that have not spoken, and transfers under way.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.groups.len())
    }

    /// How often what happened.
    pub fn counts(&self) -> GroupCounts {
        self.counts
    }

    fn forget(&mut self, connection: ConnectionId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&connection)?;
        let address = waiting.address;
        if let Some(until) = waiting.until {
            self.deadlines.remove(&(until, connection));
        }
        if let Some(count) = self.waiting_of.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.waiting_of.remove(&address);
            }
        }
        Some(waiting)
    }
}
