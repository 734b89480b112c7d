//! What an encoder did, method by method.

use crate::Method;
use std::ops::AddAssign;

/// One method's share of the work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodStats {
    /// Pages carried by the method.
    pub pages: u64,
    /// Their plain bytes.
    pub bytes_in: u64,
    /// Bytes on the wire for them, group heads included (a raw tail counts too).
    pub bytes_out: u64,
    /// Time spent to pack them, in nanoseconds of the clock of [`Request`](crate::Request);
    /// zero without one. That of a group which did not pay, and so went raw, is its method's.
    pub nanos: u64,
}

/// Counts of one block, or the sum over many (`+=`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    methods: [MethodStats; Method::ALL.len()],
    /// Bytes of block heads and page tables, which belong to no method.
    pub head_bytes: u64,
    /// Time spent to look at pages and choose their methods, in nanoseconds.
    pub look_nanos: u64,
}

impl Stats {
    /// The share of one method.
    pub fn of(&self, method: Method) -> MethodStats {
        self.methods.get(usize::from(method.number())).copied().unwrap_or_default()
    }

    /// Every method that carried a page.
    pub fn used(&self) -> impl Iterator<Item = (Method, MethodStats)> + '_ {
        Method::ALL.into_iter().zip(self.methods).filter(|(_, share)| share.pages > 0)
    }

    /// Pages in all.
    pub fn pages(&self) -> u64 {
        self.methods.iter().map(|share| share.pages).sum()
    }

    /// Plain bytes in all.
    pub fn bytes_in(&self) -> u64 {
        self.methods.iter().map(|share| share.bytes_in).sum()
    }

    /// Bytes on the wire in all, a raw tail included.
    pub fn bytes_out(&self) -> u64 {
        self.methods.iter().map(|share| share.bytes_out).sum::<u64>() + self.head_bytes
    }

    /// Time in all, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.methods.iter().map(|share| share.nanos).sum::<u64>() + self.look_nanos
    }

    /// Counts what a method did. Pages that were left out before an encoder saw them are added so, as
    /// [`Method::Zero`] or [`Method::Same`].
    pub fn add(&mut self, method: Method, share: MethodStats) {
        if let Some(sum) = self.methods.get_mut(usize::from(method.number())) {
            *sum += share;
        }
    }

    /// With this counted, too.
    #[must_use]
    pub fn with(mut self, method: Method, share: MethodStats) -> Self {
        self.add(method, share);
        self
    }

    /// What was counted since these were as `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut more = *self;
        for (now, then) in more.methods.iter_mut().zip(&before.methods) {
            now.pages = now.pages.saturating_sub(then.pages);
            now.bytes_in = now.bytes_in.saturating_sub(then.bytes_in);
            now.bytes_out = now.bytes_out.saturating_sub(then.bytes_out);
            now.nanos = now.nanos.saturating_sub(then.nanos);
        }
        more.head_bytes = more.head_bytes.saturating_sub(before.head_bytes);
        more.look_nanos = more.look_nanos.saturating_sub(before.look_nanos);
        more
    }

    /// The share of the plain bytes that did not travel, 0..1; `None` when there were none.
    pub fn saved(&self) -> Option<f64> {
        share_saved(self.bytes_in(), self.bytes_out())
    }

    /// The same of pages that are not zeros: what compression and deltas saved. `None` when there were none.
    pub fn saved_without_zero(&self) -> Option<f64> {
        share_saved(self.bytes_in() - self.of(Method::Zero).bytes_in, self.bytes_out())
    }
}

fn share_saved(plain: u64, wire: u64) -> Option<f64> {
    #[expect(clippy::as_conversions, reason = "a share for humans; 53 bits are plenty")]
    let ratio = |part: u64, whole: u64| part as f64 / whole as f64;
    (plain > 0).then(|| (1.0 - ratio(wire, plain)).max(0.0))
}

impl MethodStats {
    /// So many whole pages, of which nothing travels.
    pub fn left_out(pages: u64) -> Self {
        Self { pages, bytes_in: pages.saturating_mul(4096), ..Self::default() }
    }
}

impl AddAssign for MethodStats {
    fn add_assign(&mut self, more: Self) {
        self.pages = self.pages.saturating_add(more.pages);
        self.bytes_in = self.bytes_in.saturating_add(more.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(more.bytes_out);
        self.nanos = self.nanos.saturating_add(more.nanos);
    }
}

impl AddAssign for Stats {
    fn add_assign(&mut self, more: Self) {
        for (sum, share) in self.methods.iter_mut().zip(more.methods) {
            *sum += share;
        }
        self.head_bytes = self.head_bytes.saturating_add(more.head_bytes);
        self.look_nanos = self.look_nanos.saturating_add(more.look_nanos);
    }
}
