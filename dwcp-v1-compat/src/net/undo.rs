use std::sync::Arc;

use dwcp_core::Guest;

/// What is done with a guest unless all goes well, whatever ends it: an error, a panic, a future that is dropped.
pub(super) struct Undo {
    guest: Option<Arc<dyn Guest>>,
    undo: fn(&dyn Guest),
}

impl Undo {
    /// A guest that was paused runs again.
    pub(super) fn resume(guest: &Arc<dyn Guest>) -> Self {
        // There is nobody left to tell; a guest that cannot run says so itself.
        Self { guest: Some(Arc::clone(guest)), undo: |guest| drop(guest.resume()) }
    }

    /// A guest that was written to throws that away.
    pub(super) fn discard(guest: &Arc<dyn Guest>) -> Self {
        Self { guest: Some(Arc::clone(guest)), undo: |guest| guest.discard() }
    }

    /// All went well.
    pub(super) fn keep(mut self) {
        self.guest = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(guest) = &self.guest {
            (self.undo)(guest.as_ref());
        }
    }
}
