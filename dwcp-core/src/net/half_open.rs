//! Connections of whom nothing is known yet but their address: few for each, many in all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Of all together, if the process may have twice as many descriptors. Each costs some KiB.
const IN_ALL: usize = 8192;
/// The share of one address (IPv6: of one /64, which one host has): a thousand transfers that one host begins together.
/// Others of that address are hung up on, and dial again.
const SHARE: usize = 8;
/// However few descriptors there are: two sessions of 64 lanes.
const LEAST_PER_ADDRESS: usize = 128;

/// The connections that shake hands. A permit is held from accept until the handshake is over.
///
/// When all permits are out, the oldest connection makes room: who only holds connections open loses them, who shakes
/// hands is done long before it is the oldest.
#[derive(Clone, Debug)]
pub(super) struct HalfOpen(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    in_all: usize,
    most_per_address: usize,
    per_address: HashMap<IpAddr, usize>,
    /// By age.
    held: BTreeMap<u64, Held>,
    next: u64,
}

#[derive(Debug)]
struct Held {
    prefix: IpAddr,
    /// Dropped when its connection has to make room.
    _evict: oneshot::Sender<()>,
}

/// Descriptors that this process may have.
pub(super) fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// The right of one connection to shake hands; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    table: HalfOpen,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl HalfOpen {
    /// As many as the process has descriptors for, and as many again left for those that are past their handshake.
    pub(super) fn of_this_process() -> Self {
        Self::new((descriptors() / 2).clamp(1, IN_ALL))
    }

    fn new(in_all: usize) -> Self {
        let most_per_address = (in_all / SHARE).max(LEAST_PER_ADDRESS);
        let (per_address, held) = (HashMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Table { in_all, most_per_address, per_address, held, next: 0 })))
    }

    /// A permit, unless this address has as many as it may. Never waits.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Permit> {
        let prefix = prefix(address);
        let mut table = self.lock();
        if table.per_address.get(&prefix).is_some_and(|&held| held >= table.most_per_address) {
            return None;
        }
        if table.held.len() >= table.in_all
            && let Some((_, oldest)) = table.held.pop_first()
        {
            table.leave(oldest.prefix);
        }
        let number = table.next;
        table.next += 1;
        *table.per_address.entry(prefix).or_default() += 1;
        let (evict, evicted) = oneshot::channel();
        table.held.insert(number, Held { prefix, _evict: evict });
        Some(Permit { table: self.clone(), number, evicted })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn leave(&mut self, prefix: IpAddr) {
        if let Some(held) = self.per_address.get_mut(&prefix) {
            *held -= 1;
            if *held == 0 {
                self.per_address.remove(&prefix);
            }
        }
    }
}

impl Permit {
    /// Returns when the connection has to make room for a younger one.
    pub(super) async fn evicted(&mut self) {
        // Its sender says nothing; it is dropped.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if let Some(held) = table.held.remove(&self.number) {
            table.leave(held.prefix);
        }
    }
}

/// What one host is counted by.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = IN_ALL / SHARE;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    // spec: H-10
    #[test]
    fn an_address_has_its_limit_and_gets_back_what_it_returns() {
        let half_open = HalfOpen::new(IN_ALL);
        let mut held: Vec<_> = (0..MOST).map(|_| half_open.enter(v4(1)).unwrap()).collect();
        assert!(half_open.enter(v4(1)).is_none());
        assert!(half_open.enter("::ffff:127.0.0.1".parse().unwrap()).is_none(), "the same in another form");
        assert!(half_open.enter(v4(2)).is_some());
        held.pop();
        assert!(half_open.enter(v4(1)).is_some());
        drop(held);
        let table = half_open.lock();
        assert!(table.per_address.is_empty() && table.held.is_empty(), "nothing is remembered of who is gone");
    }

    #[test]
    fn a_host_has_one_limit_for_its_64_bits_of_addresses() {
        let half_open = HalfOpen::new(IN_ALL);
        let address = |host: usize| format!("2001:db8::{host:x}").parse().unwrap();
        let _held: Vec<_> = (0..MOST).map(|host| half_open.enter(address(host)).unwrap()).collect();
        assert!(half_open.enter(address(MOST)).is_none());
        assert!(half_open.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let half_open = HalfOpen::new(2);
        let (mut first, mut second) = (half_open.enter(v4(1)).unwrap(), half_open.enter(v4(2)).unwrap());
        let third = half_open.enter(v4(3)).unwrap();
        first.evicted().await;
        assert!(second.evicted.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop((first, third));
        assert_eq!(half_open.lock().held.len(), 1);
    }
}
