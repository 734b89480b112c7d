//! What a page costs at each effort, and which efforts cost least together.

use std::time::Duration;

use dwcp_hde::Effort;

use crate::session::converge::duration_at;

/// An effort that is chosen from, and what a page took at it: time of one core to read, hash and encode, and bytes
/// on the wire. Pages of zeros are not counted. Means of the first rounds of three guests (`docs/performance.md`); how
/// far machine and guest are from these is learned as a factor each.
pub(super) struct Step {
    pub(super) effort: Effort,
    pub(super) time: Duration,
    pub(super) wire: u64,
}

/// LZ4 is no step: where the cores are the limit it saves hardly more time than [`Effort::Light`], where the link is it
/// carries a third more bytes.
pub(super) const STEPS: [Step; COUNT] = [
    Step { effort: Effort::Raw, time: Duration::from_nanos(1_200), wire: PAGE },
    Step { effort: Effort::Light, time: Duration::from_nanos(7_100), wire: 1_160 },
    Step { effort: Effort::Balanced, time: Duration::from_nanos(7_850), wire: 1_090 },
    Step { effort: Effort::Thorough(1), time: Duration::from_nanos(9_800), wire: 1_040 },
    Step { effort: Effort::Thorough(6), time: Duration::from_nanos(50_600), wire: 980 },
    Step { effort: Effort::Thorough(12), time: Duration::from_nanos(58_900), wire: 973 },
];
pub(super) const COUNT: usize = 6;
pub(super) const RAW: usize = 0;
pub(super) const LIGHT: usize = 1;
pub(super) const PAGE: u64 = 4096;

/// What work counts, in quarters, where a step is the harder one. The cores may have a guest and a sink to serve, too, so
/// what saves a few per cent more is planned for fewer of them: four fifths, and half for the last steps, which take five
/// times as long.
const PRICES: [u32; COUNT] = [4, 4, 4, 5, 8, 8];
/// Shares are counted in parts of this.
pub(super) const WHOLE: u32 = 32;
/// Of choices that take hardly longer than the best one, by one part in so many, that with the fewest bytes is taken.
const NEARLY: u32 = 32;

/// What a page takes at a step now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Until the cores have done with it.
    pub(super) work: Duration,
    /// Until whatever else there is has, such as a slow sink.
    pub(super) limit: Duration,
    /// Bytes on the wire.
    pub(super) wire: u64,
}

/// Two steps, and how much of what is sent has the harder one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mix {
    pub(super) lighter: usize,
    pub(super) harder: usize,
    /// Of [`WHOLE`].
    pub(super) share: u32,
}

impl Mix {
    pub(super) const fn only(step: usize) -> Self {
        Self { lighter: step, harder: step, share: WHOLE }
    }

    /// The step that most of what is sent has.
    pub(super) fn main(self) -> usize {
        if self.share * 2 >= WHOLE { self.harder } else { self.lighter }
    }

    pub(super) fn sends_raw(self) -> bool {
        self.lighter == RAW && (self.share < WHOLE || self.harder == RAW)
    }

    /// How long [`WHOLE`] pages take, and how many bytes on the wire.
    fn weigh(self, costs: &[Cost; COUNT], link: u64) -> (Duration, u64) {
        let of = |step: usize| costs.get(step).copied().unwrap_or_default();
        let (lighter, harder) = (of(self.lighter), of(self.harder));
        let wire = lighter.wire * u64::from(WHOLE - self.share) + harder.wire * u64::from(self.share);
        let mean = |of: fn(&Cost) -> Duration| of(&lighter) * (WHOLE - self.share) + of(&harder) * self.share;
        let work = mean(|cost| cost.work) * PRICES.get(self.harder).copied().unwrap_or(4) / 4;
        (work.max(mean(|cost| cost.limit)).max(duration_at(wire, link)), wire)
    }

    /// Of all mixtures of two steps, that which brings most pages to the sink over a link of so many bytes a second: of
    /// those that do nearly, the one with the fewest bytes.
    pub(super) fn best(costs: &[Cost; COUNT], link: u64) -> Self {
        let mixes = || {
            let pairs = (0..COUNT).flat_map(|harder| (0..harder).map(move |lighter| (lighter, harder)));
            let mixed =
                pairs.flat_map(|(lighter, harder)| (1..WHOLE).map(move |share| Self { lighter, harder, share }));
            (0..COUNT).map(Self::only).chain(mixed).map(|mix| (mix, mix.weigh(costs, link)))
        };
        let least = mixes().map(|(_, (time, _))| time).min().unwrap_or_default();
        let near = mixes().filter(|(_, (time, _))| *time <= least + least / NEARLY);
        near.min_by_key(|(_, (_, wire))| *wire).map_or(Self::only(LIGHT), |(mix, _)| mix)
    }
}
