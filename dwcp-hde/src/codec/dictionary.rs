//! zstd frames after a dictionary: as [`super::zstd::Packer`], with a context of their own that keeps the dictionary's tables.

use zstd_safe::{CCtx, CParameter, ResetDirective};

use super::zstd::{Search, parameters};
use crate::{Dictionary, DictionaryId};

/// The table of a fast search holds the dictionary beside the pages: 2^14 places would forget most of 64 KiB.
const HASH_LOG: u32 = 16;

/// A zstd encoder that keeps a dictionary and its tables: 2 to 4 MiB, made at the first use.
pub(crate) struct Packer {
    frames: Option<CCtx<'static>>,
    /// What `frames` is set to. Changing it builds the tables anew, some hundred microseconds.
    loaded: Option<(DictionaryId, Search)>,
}

impl Packer {
    pub(crate) const fn new() -> Self {
        Self { frames: None, loaded: None }
    }

    /// Writes the frame of `plain` after `dictionary` to `into`, and says how long it is; `None` when it has no room or zstd
    /// fails.
    pub(crate) fn pack(
        &mut self,
        dictionary: &Dictionary,
        plain: &[u8],
        search: Search,
        into: &mut [u8],
    ) -> Option<usize> {
        self.load(dictionary, search)?;
        let frames = self.frames.as_mut()?;
        let done = frames.compress2(into, plain).ok();
        if done.is_none() && frames.reset(ResetDirective::SessionOnly).is_err() {
            (self.frames, self.loaded) = (None, None);
        }
        done
    }

    fn load(&mut self, dictionary: &Dictionary, search: Search) -> Option<()> {
        let wanted = Some((dictionary.id(), search));
        if self.loaded == wanted {
            return Some(());
        }
        self.loaded = None;
        if self.frames.is_none() {
            self.frames = CCtx::try_create();
        }
        let frames = self.frames.as_mut()?;
        frames.reset(ResetDirective::SessionAndParameters).ok()?;
        let wider = matches!(search, Search::Light | Search::Balanced).then_some(CParameter::HashLog(HASH_LOG));
        for parameter in parameters(search).chain(wider) {
            frames.set_parameter(parameter).ok()?;
        }
        frames.load_dictionary(dictionary.bytes()).ok()?;
        self.loaded = wanted;
        Some(())
    }
}
