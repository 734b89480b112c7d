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
}

/// Counts of one block, or the sum over many (`+=`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    methods: [MethodStats; Method::ALL.len()],
    /// Bytes of block heads and page tables, which belong to no method.
    pub head_bytes: u64,
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

    pub(crate) fn add(&mut self, method: Method, share: MethodStats) {
        if let Some(sum) = self.methods.get_mut(usize::from(method.number())) {
            *sum += share;
        }
    }
}

impl AddAssign for MethodStats {
    fn add_assign(&mut self, more: Self) {
        self.pages = self.pages.saturating_add(more.pages);
        self.bytes_in = self.bytes_in.saturating_add(more.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(more.bytes_out);
    }
}

impl AddAssign for Stats {
    fn add_assign(&mut self, more: Self) {
        for (sum, share) in self.methods.iter_mut().zip(more.methods) {
            *sum += share;
        }
        self.head_bytes = self.head_bytes.saturating_add(more.head_bytes);
    }
}
