//! What the sink holds when the transfer begins, as it says in HAVE and ACCEPT.

use std::sync::Arc;

use super::{Source, State};
use crate::extent::FlatPage;
use crate::guest::DirtyMap;
use crate::session::leaves::zero_leaf;
use crate::session::stats::Phase;
use crate::session::{Leaves, Output, SessionError, Time};
use crate::wire::{Accept, Have};

impl Source {
    /// What a guest of the offered layout has of each baseline that the offer names, in its order: the leaves of pages that
    /// it takes from there, zeros elsewhere. spec: O-9
    #[must_use]
    pub fn with_baselines(mut self, baselines: Vec<Arc<Leaves>>) -> Self {
        self.baselines = baselines;
        self
    }

    /// The sink still has pages of a transfer that was cut off. They are read and hashed like all others, and those
    /// that are the same do not travel. spec: D-4, R-2
    pub(super) fn held(&mut self, have: &Have) -> Result<(), SessionError> {
        if self.state != State::Offered {
            return Err(SessionError::unexpected("HAVE after ACCEPT"));
        }
        let region = self.layout.region(have.region).filter(|region| {
            let count = u32::try_from(have.leaves.len()).unwrap_or(u32::MAX);
            have.first.checked_add(count).is_some_and(|end| end <= region.pages)
        });
        let region = region.ok_or_else(|| SessionError::unexpected("HAVE of pages outside the layout"))?;
        for (page, leaf) in (region.first + have.first..).zip(&have.leaves) {
            self.leaves.set(FlatPage(page), *leaf);
        }
        // Zeros tell nothing: they stand between pages that are told.
        let told = have.leaves.iter().filter(|leaf| **leaf != zero_leaf()).count();
        self.progress.pages_held += u64::try_from(told).unwrap_or(0);
        // Who knows which version brought them.
        self.leave.distrust_held();
        Ok(())
    }

    /// spec: O-4
    pub(super) fn accepted(&mut self, now: Time, accept: &Accept) -> Result<(), SessionError> {
        if accept.transfer != self.offer.transfer {
            return Err(SessionError::unexpected("ACCEPT names another transfer"));
        }
        // spec: O-8
        if (0_u8..8).skip(self.offer.dictionaries.len()).any(|number| accept.dictionaries >> number & 1 == 1) {
            return Err(SessionError::unexpected("ACCEPT names dictionaries that were not offered"));
        }
        let baseline = self.agreed(accept)?;
        if self.state != State::Offered {
            return Ok(());
        }
        self.dictionaries = accept.dictionaries;
        self.progress.agreed_on(&self.offer.dictionaries, accept.dictionaries);
        self.state = State::Copying;
        self.progress.phase = Phase::Copying;
        self.progress.baseline = accept.baseline;
        self.round.started = now;
        self.pace.filled_at = now;
        if baseline.is_some() {
            self.leave.distrust_held();
        }
        if self.progress.pages_held > 0 || baseline.is_some() {
            self.round.recalling = true;
            self.outputs.push_back(Output::Recall { held: Arc::clone(&self.leaves), baseline });
        }
        Ok(())
    }

    /// The baseline that both ends hold. spec: O-9
    fn agreed(&self, accept: &Accept) -> Result<Option<Arc<Leaves>>, SessionError> {
        let Some(number) = accept.baseline else { return Ok(None) };
        match self.baselines.get(usize::from(number)) {
            Some(leaves) => Ok(Some(Arc::clone(leaves))),
            None => Err(SessionError::unexpected("ACCEPT names a baseline that was not offered")),
        }
    }

    /// What the guest knows to be the same is neither read nor looked at again. spec: R-2
    pub(super) fn recalled(&mut self, same: &DirtyMap) {
        if std::mem::take(&mut self.round.recalling) {
            let pages = self.dirty.clear(same);
            self.progress.pages_same += pages;
            self.round.pages = self.dirty.pages();
        }
    }
}
