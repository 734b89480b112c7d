//! A bet that the link outruns every encoder.

use std::time::Duration;

use super::costs::PAGE;
use crate::session::Time;
use crate::session::converge::{duration_at, rate};

/// Sends a few extents raw, to see how fast they are delivered.
///
/// Nothing short of trying tells: a link that is filled by what the encoders make looks just like a sink or cores that
/// can do no more. A lost bet costs some megabytes, and is repeated less and less often.
#[derive(Debug)]
pub(super) struct RawBet {
    due: Time,
    patience: Duration,
    placed: Option<Placed>,
}

#[derive(Debug)]
struct Placed {
    at: Time,
    /// Extents still to be handed out raw, and raw ones that were delivered.
    left: u32,
    delivered: u32,
    /// Since the first of them was delivered.
    since: Option<Time>,
    wire: u64,
    /// What a page takes without the bet.
    page: Duration,
}

/// How a bet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Raw pages come faster, or half as fast at least: worth a longer look.
    Won {
        /// What a page took before.
        page: Duration,
    },
    Lost {
        /// What was delivered meanwhile, bytes a second.
        rate: u64,
    },
}

/// Extents of a bet: at 1 Gbit/s 34 ms, of which a third would have been needed anyway.
const EXTENTS: u32 = 16;
/// Pages that each of them has or so.
const EXTENT_PAGES: u32 = 64;
/// It may be won when so many were delivered, in no less than this: acknowledgements come in bursts.
const LEAST: u32 = 6;
const SHORTEST: Duration = Duration::from_millis(2);
/// Until the next bet, at first and at most.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(8);
/// A bet that is not decided by then is lost.
const LIMIT: Duration = Duration::from_millis(500);

impl RawBet {
    pub(super) fn new() -> Self {
        Self { due: Time::default(), patience: FIRST, placed: None }
    }

    /// What is lost with a bet on a link of so many bytes a second, where a page takes so long without it.
    pub(super) fn cost(link: u64, page: Duration) -> Duration {
        (duration_at(PAGE, link) * EXTENTS * EXTENT_PAGES).saturating_sub(page * EXTENTS * EXTENT_PAGES)
    }

    /// What comes now does not count.
    pub(super) fn drop(&mut self) {
        self.placed = None;
    }

    /// Places a bet, if it is time for one.
    pub(super) fn place(&mut self, now: Time, page: Duration) -> bool {
        if now < self.due || self.placed.is_some() {
            return false;
        }
        self.placed = Some(Placed { at: now, left: EXTENTS, delivered: 0, since: None, wire: 0, page });
        self.due = now + self.patience;
        self.patience = (self.patience * 2).min(MOST);
        true
    }

    pub(super) fn is_placed(&self) -> bool {
        self.placed.is_some()
    }

    /// Whether the next extent is part of a bet.
    pub(super) fn takes_next(&self) -> bool {
        self.placed.as_ref().is_some_and(|placed| placed.left > 0)
    }

    /// An extent went out raw.
    pub(super) fn handed(&mut self) {
        if let Some(placed) = &mut self.placed {
            placed.left = placed.left.saturating_sub(1);
        }
    }

    /// An extent was delivered. Says how the bet ended, if it did.
    pub(super) fn delivered(&mut self, now: Time, wire: u64, raw: bool) -> Option<Ended> {
        let placed = self.placed.as_mut()?;
        placed.wire += wire;
        if raw {
            placed.delivered += 1;
            if placed.since.is_none() {
                (placed.since, placed.wire) = (Some(now), 0);
            }
        }
        let late = now.since(placed.at) > LIMIT;
        let since = placed.since.or(Some(placed.at).filter(|_| late))?;
        let took = now.since(since);
        let rate = rate(placed.wire, took.max(SHORTEST));
        // What so few extents tell is rough, and a longer look is cheap.
        let won = placed.delivered >= LEAST && took >= SHORTEST && duration_at(PAGE, rate) / 2 <= placed.page;
        let ended = match () {
            () if won => Ended::Won { page: placed.page },
            () if late || placed.delivered >= EXTENTS => Ended::Lost { rate },
            () => return None,
        };
        self.placed = None;
        Some(ended)
    }
}
