//! A baseline that both ends hold: the sink's guest has its pages from the start, and is laid over with them meanwhile.

use std::sync::Arc;

use dwcp_core::Layout;
use dwcp_core::extent::FlatPage;
use dwcp_core::session::{Leaves, Sink};
use dwcp_core::wire::Digest;

use super::World;
use crate::guest::{Content, SimGuest, leaf};
use crate::plan::{Plan, Planted};
use crate::rng::Rng;

/// The offer names another one first, which the sink does not hold.
const NUMBER: u8 = 1;

/// What both ends hold, and which of it is not yet in its place.
#[derive(Debug)]
pub(super) struct Warm {
    contents: Vec<Content>,
    leaves: Arc<Leaves>,
    unlaid: Vec<bool>,
}

impl Warm {
    /// An earlier state of the guest: some pages as they are now, some others, some zeros.
    pub(super) fn of(plan: &Plan, guest: &SimGuest) -> Option<Self> {
        if plan.baseline == 0 {
            return None;
        }
        let layout = Layout::new(&plan.regions).unwrap();
        let mut rng = Rng::new(plan.seed ^ 0xba5e);
        let leaves = Leaves::new(&layout);
        let mut contents = vec![0; layout.flat_pages() as usize];
        for page in (0..layout.flat_pages()).map(FlatPage).filter(|&page| layout.locate(page).is_some()) {
            let content = match rng.below(10) {
                0 | 1 => 0,
                2..=4 => u64::MAX / 2 - u64::from(page.0),
                _ => guest.read(page),
            };
            // A baseline may be of a smaller guest.
            if rng.percent(plan.baseline) {
                contents[page.0 as usize] = content;
                leaves.set(page, leaf(content));
            }
        }
        let unlaid = vec![false; contents.len()];
        Some(Self { contents, leaves: Arc::new(leaves), unlaid })
    }

    pub(super) fn digests(warm: Option<&Self>) -> Vec<Digest> {
        warm.map_or_else(Vec::new, |_| vec![Digest([1; 32]), Digest([2; 32])])
    }

    /// What a source knows of those that it offers.
    pub(super) fn offered(warm: Option<&Self>, layout: &Layout) -> Vec<Arc<Leaves>> {
        warm.map_or_else(Vec::new, |warm| vec![Arc::new(Leaves::new(layout)), Arc::clone(&warm.leaves)])
    }
}

impl World {
    /// A sink that takes the baseline, if there is one. spec: O-9
    pub(super) fn warmed(&mut self, sink: Sink) -> Sink {
        let Some(warm) = &mut self.warm else { return sink };
        for (page, content) in warm.contents.iter().enumerate() {
            let held = self.sink_leaves.get(FlatPage(page as u32)) != leaf(0);
            warm.unlaid[page] = *content != 0 && !held;
        }
        sink.with_baseline(NUMBER, Arc::clone(&warm.leaves))
    }

    /// What the sink has there, laid down or not.
    pub(super) fn at_sink(&self, page: FlatPage) -> Content {
        let index = page.0 as usize;
        let unlaid = self.warm.as_ref().filter(|warm| warm.unlaid[index]);
        unlaid.map_or_else(|| self.sink.guest.read(page), |warm| warm.contents[index])
    }

    /// A page is replaced; that is a moment for the background to lay some others.
    pub(super) fn replace(&mut self, page: FlatPage, content: Content) {
        self.sink.guest.overwrite(page, content);
        let over = self.planted == Some(Planted::LaidOver);
        let Some(warm) = &mut self.warm else { return };
        if !over {
            warm.unlaid[page.0 as usize] = false;
        }
        let start = (self.extents as usize).wrapping_mul(31) % warm.unlaid.len();
        if let Some(next) = (start..warm.unlaid.len()).find(|&index| warm.unlaid[index]) {
            self.lay(FlatPage(next as u32));
        }
    }

    fn lay(&mut self, page: FlatPage) {
        let Some(warm) = &mut self.warm else { return };
        if std::mem::take(&mut warm.unlaid[page.0 as usize]) {
            self.sink.guest.overwrite(page, warm.contents[page.0 as usize]);
        }
    }

    /// Before READY all of it is in its place.
    pub(super) fn lay_rest(&mut self) {
        let pages = self.warm.as_ref().map_or(0, |warm| warm.unlaid.len());
        (0..pages).for_each(|page| self.lay(FlatPage(page as u32)));
    }

    /// The sink's guest is zeros, and nothing is laid any more.
    pub(super) fn wipe_sink(&mut self) {
        self.sink.guest.wipe();
        if let Some(warm) = &mut self.warm {
            warm.unlaid.fill(false);
        }
    }
}
