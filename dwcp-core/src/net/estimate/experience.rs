//! What extents of a sample took, and what the rest is taken to need.

use std::collections::BTreeMap;

use dwcp_hde::{Effort, Method, MethodStats, Stats};

use super::{scaled, scaled_stats};

/// Pages that stand for all: 4 MiB.
const ENOUGH: u64 = 1024;

/// What an extent took that was made, or would take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Pages that are not known to be zeros.
    pub(super) solid: u64,
    pub(super) carried: u64,
    pub(super) head_bytes: u64,
    pub(super) body_bytes: u64,
    pub(super) nanos: u64,
    pub(super) methods: Stats,
}

impl Cost {
    pub(super) fn add(&mut self, other: &Self) {
        self.solid += other.solid;
        self.carried += other.carried;
        self.head_bytes += other.head_bytes;
        self.body_bytes += other.body_bytes;
        self.nanos += other.nanos;
        self.methods += other.methods;
    }

    /// What `pages` of `of` take, but for the methods.
    fn share(&self, pages: u64, of: u64) -> Self {
        let share = |count| scaled(count, pages, of);
        Self {
            solid: pages,
            carried: share(self.carried).min(pages),
            head_bytes: share(self.head_bytes),
            body_bytes: share(self.body_bytes),
            nanos: share(self.nanos),
            methods: Stats::default(),
        }
    }

    /// What is more than in `before`, which is a part of it.
    fn since(&self, before: &Self) -> Self {
        Self {
            solid: self.solid - before.solid,
            carried: self.carried - before.carried,
            head_bytes: self.head_bytes - before.head_bytes,
            body_bytes: self.body_bytes - before.body_bytes,
            nanos: self.nanos - before.nanos,
            methods: Stats::default(),
        }
    }
}

/// What extents of one effort took.
#[derive(Clone, Debug)]
struct Known {
    effort: Effort,
    seen: Cost,
    parts: BTreeMap<u32, Part>,
    /// Pages that were written again, and bytes that they were taken to need, by what was known at the time.
    again: u64,
    told: u64,
}

/// A part of the image, of which a chunk was made.
#[derive(Clone, Debug)]
struct Part {
    seen: Cost,
    /// Pages that were taken to be alike.
    alike: u64,
}

/// What was learnt from the extents that were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Experience {
    efforts: Vec<Known>,
    /// What was met itself: extents of the transfer, and pages that are known to be zeros.
    met: Stats,
    /// Pages of chunks that were made, each once, whatever the efforts.
    read: BTreeMap<u32, u64>,
    /// The same of extents of the transfer.
    made: u64,
}

impl Experience {
    fn known(&mut self, effort: Effort) -> Option<&mut Known> {
        self.efforts.iter_mut().find(|known| known.effort == effort)
    }

    /// Adds what was made at an effort.
    fn add(&mut self, effort: Effort, cost: &Cost) {
        match self.known(effort) {
            Some(known) => known.seen.add(cost),
            None => self.efforts.push(Known { effort, seen: *cost, parts: BTreeMap::new(), again: 0, told: 0 }),
        }
    }

    /// An extent of the transfer was made.
    pub(super) fn learn(&mut self, effort: Effort, cost: &Cost) {
        self.met += cost.methods;
        self.made += cost.solid;
        if cost.solid > 0 {
            self.add(effort, cost);
        }
    }

    /// The chunk that stands for a part was made.
    pub(super) fn learn_part(&mut self, effort: Effort, part: u32, cost: Cost) {
        self.read.insert(part, cost.solid);
        self.add(effort, &cost);
        if let Some(known) = self.known(effort) {
            known.parts.insert(part, Part { seen: cost, alike: 0 });
        }
    }

    /// What an extent of so many pages in a part would take, `solid` of them not known to be zeros. `None`: the part's chunk
    /// was not made at this effort yet.
    pub(super) fn alike(&mut self, effort: Effort, part: u32, pages: u64, solid: u64) -> Option<Cost> {
        let part = self.known(effort)?.parts.get_mut(&part)?;
        let before = part.seen.share(part.alike, part.seen.solid);
        part.alike += solid;
        let cost = part.seen.share(part.alike, part.seen.solid).since(&before);
        self.met.add(Method::Zero, MethodStats::left_out(pages - solid));
        Some(cost)
    }

    /// What an extent would take whose pages are like all that were made at its effort, `solid` of them not known to be zeros.
    /// `None`: too few were made to say.
    pub(super) fn average(&mut self, effort: Effort, solid: u64) -> Option<Cost> {
        let known = self.known(effort).filter(|known| known.seen.solid >= ENOUGH)?;
        Some(known.seen.share(solid, known.seen.solid))
    }

    /// The same for pages that the guest has written again: none of them is what the sink holds.
    pub(super) fn again(&mut self, effort: Effort, pages: u64) -> Option<Cost> {
        let most = self.efforts.iter().max_by_key(|known| known.seen.carried).map(|known| known.effort);
        let effort = if self.efforts.iter().any(|known| known.effort == effort && known.seen.carried > 0) {
            effort
        } else {
            most?
        };
        let known = self.efforts.iter_mut().find(|known| known.effort == effort && known.seen.carried > 0)?;
        known.again += pages;
        let cost = Cost { carried: pages, ..known.seen.share(pages, known.seen.carried) };
        known.told += cost.head_bytes + cost.body_bytes;
        Some(cost)
    }

    /// What each method would have done to the whole image: together as many bytes as all extents were taken to need.
    pub(super) fn methods(&self) -> Stats {
        let mut sum = self.met;
        for Known { seen, parts, again, told, .. } in &self.efforts {
            for Part { seen, alike } in parts.values() {
                let share = seen.share(*alike, seen.solid);
                sum += fitted(&scaled_stats(&seen.methods, *alike, seen.solid), share.head_bytes + share.body_bytes);
            }
            let mut written = Stats::default();
            (written.head_bytes, written.look_nanos) = (seen.methods.head_bytes, seen.methods.look_nanos);
            for (method, share) in seen.methods.used().filter(|(_, share)| share.bytes_out > 0) {
                written.add(method, share);
            }
            sum += fitted(&scaled_stats(&written, *again, seen.carried), *told);
        }
        sum
    }

    /// Pages that were read and are not known to be zeros.
    pub(super) fn read(&self) -> u64 {
        self.made + self.read.values().sum::<u64>()
    }

    /// Pages that were encoded, those of a chunk once for each effort, and nanoseconds for them.
    pub(super) fn encoded(&self) -> (u64, u64) {
        self.efforts.iter().fold((0, 0), |(pages, nanos), known| (pages + known.seen.solid, nanos + known.seen.nanos))
    }
}

/// The same pages with so many bytes in all: what is known at the end is not what was known at each extent.
fn fitted(stats: &Stats, bytes: u64) -> Stats {
    let known = stats.used().fold(stats.head_bytes, |sum, (_, share)| sum + share.bytes_out);
    let mut fitted = Stats::default();
    (fitted.look_nanos, fitted.head_bytes) = (stats.look_nanos, bytes);
    for (method, share) in stats.used() {
        let bytes_out = scaled(share.bytes_out, bytes, known);
        fitted.head_bytes -= bytes_out;
        fitted.add(method, MethodStats { bytes_out, ..share });
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(pages: u64, zeros: u64, bytes: u64) -> Cost {
        let full = pages - zeros;
        let zstd = MethodStats { pages: full, bytes_in: full * 4096, bytes_out: bytes, nanos: pages * 3000 };
        let mut methods = Stats::default().with(Method::Zstd, zstd).with(Method::Zero, MethodStats::left_out(zeros));
        methods.head_bytes = 800;
        Cost { solid: pages, carried: full, head_bytes: 800, body_bytes: bytes, nanos: pages * 5000, methods }
    }

    fn bytes(stats: &Stats) -> u64 {
        stats.used().fold(stats.head_bytes, |sum, (_, share)| sum + share.bytes_out)
    }

    #[test]
    fn what_is_alike_costs_its_share_and_the_methods_add_up_to_the_bytes() {
        let effort = Effort::Balanced;
        let mut experience = Experience::default();
        assert!(experience.alike(effort, 3, 64, 64).is_none(), "nothing is known");
        experience.learn_part(effort, 3, cost(256, 56, 200_000));
        experience.learn_part(effort, 4, cost(256, 0, 1_000_003));
        assert!(experience.alike(Effort::Light, 3, 64, 64).is_none(), "nor of this effort");
        let told: Vec<Cost> = (0..30).map(|extent| experience.alike(effort, 3 + extent % 2, 70, 64).unwrap()).collect();
        assert_eq!(
            (told[0].carried, told[0].body_bytes, told[0].head_bytes, told[0].nanos),
            (50, 50_000, 200, 320_000)
        );
        let sum = |of: fn(&Cost) -> u64| told.iter().map(of).sum::<u64>();
        // 15 extents of either part, rounded once and not with each.
        assert_eq!(sum(|cost| cost.body_bytes), 200_000 * 960 / 256 + 1_000_003 * 960 / 256);
        assert_eq!(sum(|cost| cost.carried), 200 * 960 / 256 + 960);
        let methods = experience.methods();
        assert_eq!(methods.of(Method::Zero).pages, 56 * 960 / 256 + 30 * 6, "read, and those that are known");
        assert_eq!(methods.of(Method::Zstd).pages, sum(|cost| cost.carried));
        assert_eq!(bytes(&methods), sum(|cost| cost.head_bytes + cost.body_bytes));
        assert_eq!((experience.read(), experience.encoded()), (512, (512, 2_560_000)));
        experience.learn_part(Effort::Light, 3, cost(256, 56, 300_000));
        assert_eq!((experience.read(), experience.encoded()), (512, (768, 3_840_000)), "read once");
    }

    #[test]
    fn what_is_written_again_costs_what_was_carried() {
        let effort = Effort::Balanced;
        let mut experience = Experience::default();
        assert!(experience.again(effort, 10).is_none());
        experience.learn(effort, &cost(100, 50, 50_000));
        let again = [experience.again(effort, 300), experience.again(Effort::Light, 30)].map(Option::unwrap);
        assert_eq!(again.map(|cost| (cost.carried, cost.body_bytes)), [(300, 300_000), (30, 30_000)]);
        let methods = experience.methods();
        assert_eq!((methods.of(Method::Zstd).pages, methods.of(Method::Zero).pages), (380, 50));
        assert_eq!(bytes(&methods), 50_800 + again.map(|cost| cost.head_bytes + cost.body_bytes).iter().sum::<u64>());
        // What is read later packs otherwise, and does not change what was told.
        experience.learn(effort, &cost(100, 0, 900_000));
        assert_eq!(bytes(&experience.methods()), bytes(&methods) + 900_800);
    }
}
