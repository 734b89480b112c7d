//! Two classic mistakes of live migration, to prove that the demo's verdict finds them. Only in
//! builds with the feature `sim`.
//!
//! Neither shows in the roots: source and sink agree on every page that was sent. What was *not*
//! sent is missing, and only the client's log knows.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::arena::Arena;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// A harvest forgets some of the dirty pages.
    SkipDirty,
    /// Dirty bits are cleared after the pages have been read: what was written in between is lost.
    LateClear,
}

/// Harvests the wrong way.
#[derive(Debug)]
pub(super) struct Faulty {
    fault: Fault,
    /// Late clear: what the last harvest saw, to be cleared before the next.
    seen: Mutex<Vec<u64>>,
}

/// One page in four is forgotten.
const FORGOTTEN: u64 = 0x1111_1111_1111_1111;

impl Faulty {
    pub(super) fn new(fault: Fault) -> Self {
        Self { fault, seen: Mutex::default() }
    }

    pub(super) fn harvest(&self, arena: &Arena) -> Vec<u64> {
        match self.fault {
            Fault::SkipDirty => arena.take_dirty().map(|word| word & !FORGOTTEN).collect(),
            Fault::LateClear => {
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                for (word, bits) in arena.dirty_words().iter().zip(seen.iter()) {
                    word.fetch_and(!bits, Ordering::AcqRel);
                }
                *seen = arena.dirty_words().iter().map(|word| word.load(Ordering::Acquire)).collect();
                seen.clone()
            }
        }
    }
}
