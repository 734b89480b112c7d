mod costs;
mod raw_bet;

use std::time::Duration;

use dwcp_hde::Effort;

use self::costs::{COUNT, Cost, LIGHT, Mix, PAGE, RAW, STEPS, WHOLE};
use self::raw_bet::{Ended, RawBet};
use super::Time;
use super::converge::{duration_at, rate};

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EffortPolicy {
    /// As brings most pages to the sink, by what the link delivered and the cores encoded lately: harder where the link is
    /// slow, not at all where it is faster than cores and sink.
    #[default]
    Auto,
    /// Always the same.
    Fixed(Effort),
}

/// Chooses the effort so that most pages come to the sink in a time: the slowest of encoder, link and sink decides.
///
/// Three things are measured, over stretches of eight extents and 40 ms at least: what the link delivered, as bytes of
/// acknowledged extents; what the cores took to encode them, and how well they packed, each as a factor to a table of all
/// efforts, so that one tells of the others; and, at an effort that the link did not limit, how long a page took in all,
/// which is what a slow sink is known by. From these the best mixture of two efforts follows.
///
/// What the link could carry beyond what it is given, only a [`RawBet`] tells.
#[derive(Debug)]
pub(super) struct Budget {
    policy: EffortPolicy,
    /// Compression is switched on.
    allowed: bool,
    /// Threads that encode at a time.
    encoders: u32,
    mix: Mix,
    /// Pages, times [`WHOLE`], by which the harder of the two is behind its share.
    behind: i64,
    /// Pages still to send.
    left: u64,
    /// What a page takes here, in thousandths of the table's time and wire bytes.
    slower: u64,
    bulkier: u64,
    /// What a page that is carried takes in looks at others that are not.
    looks: Duration,
    /// Encoders that were at work in each of the last stretches.
    at_work: [u32; SEEN],
    /// Extents that were encoded and not yet delivered.
    under_way: u32,
    /// The link had little to do in the last stretch: encoders are the limit, however few are at work.
    is_dry: bool,
    stretch: Option<Stretch>,
    /// Wire bytes a second of the last stretches.
    delivered: [u64; STRETCHES],
    /// Stretches in a row in which the link was not the limit.
    unlimited: u32,
    limits: [SinkLimit; COUNT],
    bet: RawBet,
}

/// What was seen of the transfer while there was always something to send.
#[derive(Debug)]
struct Stretch {
    since: Time,
    pages: u64,
    same: u32,
    encode: Duration,
    /// What the table says for it.
    expected: Duration,
    /// The same of wire bytes; of raw pages they say nothing.
    wire: u64,
    expected_wire: u64,
    /// Bytes on the wire, of all extents.
    sent: u64,
    delivered: u64,
    extents: u32,
    /// Of these, after which nothing was under way.
    dry: u32,
}

/// How long a page took in all at an effort that neither link nor table explain.
#[derive(Clone, Copy, Debug)]
struct SinkLimit {
    page: Duration,
    /// Until then it is believed, and for how long the next time.
    until: Time,
    patience: Duration,
}

/// A stretch takes this long, and has so many extents delivered.
const STRETCH: Duration = Duration::from_millis(40);
const EXTENTS: u32 = 8;
/// The link carries at least what it delivered in the best of so many stretches.
const STRETCHES: usize = 4;
/// It is the limit when it delivers nine tenths of that; if it does not twice in a row, something else is.
const NINE_TENTHS: (u64, u64) = (9, 10);
const SURE: u32 = 2;
/// Unless the link waits for them, one encoder more is counted on than were at work at a time in so many stretches: other
/// sessions may have the others.
const SEEN: usize = 8;
/// How long a sink's limit is believed, at first and at most.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(32);
/// What a bet takes when it is lost must be no more than such a part of what is left to do.
const WORTH: u32 = 32;
/// Factors are thousandths.
const ONE: u64 = 1000;

/// What one extent took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) effort: Effort,
    /// Time to read, hash and encode it.
    pub(super) encode: Duration,
    /// Pages carried.
    pub(super) carried: u16,
    /// Pages that were looked at and found to be at the sink.
    pub(super) same: u16,
    pub(super) wire_bytes: u64,
}

impl Budget {
    pub(super) fn new(policy: EffortPolicy, encoders: u16) -> Self {
        Self {
            policy,
            allowed: true,
            encoders: u32::from(encoders.max(1)),
            // Little is lost when it was wrong in either direction.
            mix: Mix::only(LIGHT),
            behind: 0,
            left: 0,
            slower: ONE,
            bulkier: ONE,
            looks: Duration::ZERO,
            at_work: [0; SEEN],
            under_way: 0,
            is_dry: false,
            stretch: None,
            delivered: [0; STRETCHES],
            unlimited: 0,
            limits: [SinkLimit { page: Duration::ZERO, until: Time::default(), patience: FIRST }; COUNT],
            bet: RawBet::new(),
        }
    }

    pub(super) fn allow(&mut self, on: bool) {
        self.allowed = on;
        self.pause();
    }

    fn decides(&self) -> bool {
        self.allowed && self.policy == EffortPolicy::Auto
    }

    /// Of the next extent.
    pub(super) fn effort(&self) -> Effort {
        match self.policy {
            _ if !self.allowed => Effort::Raw,
            EffortPolicy::Fixed(effort) => effort,
            EffortPolicy::Auto => STEPS.get(self.step()).map_or(Effort::Light, |step| step.effort),
        }
    }

    fn step(&self) -> usize {
        let Mix { lighter, harder, share } = self.mix;
        match () {
            () if self.bet.takes_next() => RAW,
            () if share == WHOLE || self.behind > 0 => harder,
            () => lighter,
        }
    }

    /// An extent of so many pages goes out with the effort that was told, and so many pages are left.
    pub(super) fn handed(&mut self, pages: usize, left: u64) {
        self.left = left;
        if self.bet.takes_next() {
            return self.bet.handed();
        }
        let hard = self.step() == self.mix.harder;
        let pages = i64::try_from(pages).unwrap_or(0);
        let [share, rest] = [self.mix.share, WHOLE - self.mix.share].map(i64::from);
        self.behind += if hard { -rest * pages } else { share * pages };
    }

    /// There is nothing to send: the time until there is tells nothing.
    pub(super) fn pause(&mut self) {
        self.stretch = None;
        self.bet.drop();
    }

    /// The link is another one.
    pub(super) fn begin_anew(&mut self) {
        self.pause();
        self.delivered = [0; STRETCHES];
        self.take(Mix::only(LIGHT));
    }

    /// An extent was encoded.
    pub(super) fn encoded(&mut self, sample: Sample) {
        self.under_way += 1;
        let Some(step) = STEPS.iter().find(|step| step.effort == sample.effort).filter(|_| self.decides()) else {
            return;
        };
        let (pages, Some(stretch)) = (u32::from(sample.carried), &mut self.stretch) else { return };
        stretch.pages += u64::from(pages);
        stretch.same += u32::from(sample.same);
        stretch.encode += sample.encode;
        stretch.expected += step.time * pages;
        stretch.sent += sample.wire_bytes;
        if sample.effort != Effort::Raw {
            stretch.wire += sample.wire_bytes;
            stretch.expected_wire += step.wire * u64::from(pages);
        }
    }

    /// An extent that was encoded is under way no more, with its lane.
    pub(super) fn gone(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// An extent was acknowledged.
    pub(super) fn delivered(&mut self, now: Time, wire_bytes: u64, effort: Effort) {
        self.gone();
        if !self.decides() {
            return;
        }
        match self.bet.delivered(now, wire_bytes, effort == Effort::Raw) {
            Some(Ended::Won { page }) => self.go_raw(now, page),
            Some(Ended::Lost { rate }) => {
                self.note_delivered(rate);
                self.pause();
            }
            None => {}
        }
        // What is delivered first was under way for a while.
        let Some(stretch) = &mut self.stretch else { return self.stretch = Some(Stretch::begin(now)) };
        stretch.delivered += wire_bytes;
        stretch.extents += 1;
        stretch.dry += u32::from(self.under_way == 0);
        let enough = stretch.extents >= EXTENTS && now.since(stretch.since) >= STRETCH && stretch.pages > 0;
        if enough && !self.bet.is_placed() {
            self.weigh(now);
        }
    }

    fn go_raw(&mut self, now: Time, page: Duration) {
        self.limit(now, page);
        self.take(Mix::only(RAW));
        self.pause();
    }

    fn take(&mut self, mix: Mix) {
        if mix != self.mix {
            (self.mix, self.behind, self.unlimited) = (mix, 0, 0);
        }
    }

    /// Decides anew after a stretch.
    fn weigh(&mut self, now: Time) {
        let Some(stretch) = self.stretch.replace(Stretch::begin(now)) else { return };
        let took = now.since(stretch.since);
        self.slower = stretch.slower().map_or(self.slower, |seen| self.slower.midpoint(seen));
        // Of raw pages nothing is learned: in time the guest may be another one.
        self.bulkier = stretch.bulkier().map_or((self.bulkier * 31 + ONE) / 32, |seen| self.bulkier.midpoint(seen));
        self.note_work(&stretch, took);
        let page = took / u32::try_from(stretch.pages).unwrap_or(u32::MAX).max(1);
        let rate = rate(stretch.delivered, took);
        let busy = stretch.busy() >= took * self.encoders * 9 / 10;
        self.is_dry = stretch.dry * 2 > stretch.extents;
        if busy || self.is_dry {
            // What the encoders limit tells only what the link carries at least.
            self.note_delivered(self.carries().max(rate + rate / 16));
        } else {
            self.watch_link(now, rate, page);
        }
        let pays = RawBet::cost(self.carries(), page) <= self.time_left(page) / WORTH;
        if pays && self.is_fast(page) && !self.mix.sends_raw() && self.bet.place(now, page) {
            return;
        }
        self.take(Mix::best(&self.costs(now), self.carries()));
    }

    /// How long what is left to send will take.
    fn time_left(&self, page: Duration) -> Duration {
        page * u32::try_from(self.left).unwrap_or(u32::MAX)
    }

    /// A link so fast that one core can hardly pack for it might outrun all of them.
    fn is_fast(&self, page: Duration) -> bool {
        page <= self.work(LIGHT) * self.encoders().max(2) * 5 / 4
    }

    /// Takes note of what the link delivered in a stretch. That something unknown limits it is known by that it delivers less
    /// than it did.
    fn watch_link(&mut self, now: Time, rate: u64, page: Duration) {
        let before = self.carries();
        self.note_delivered(rate);
        let link = self.carries();
        if link < before - before / 4 {
            // It is slower now, and that may be what looked like a slow sink.
            self.limits.iter_mut().for_each(|limit| limit.until = now);
        }
        let (part, whole) = NINE_TENTHS;
        self.unlimited = if rate < link / whole * part { self.unlimited + 1 } else { 0 };
        if self.unlimited >= SURE {
            self.limit(now, page);
        }
    }

    fn note_work(&mut self, stretch: &Stretch, took: Duration) {
        let pages = u32::try_from(stretch.pages).unwrap_or(u32::MAX).max(1);
        self.looks = stretch.looks() / pages;
        let at_work = (stretch.busy() + took / 2).as_nanos() / took.as_nanos().max(1);
        self.at_work.rotate_right(1);
        if let Some(last) = self.at_work.first_mut() {
            *last = u32::try_from(at_work).unwrap_or(u32::MAX);
        }
    }

    /// Encoders that can be counted on.
    fn encoders(&self) -> u32 {
        let at_work = self.at_work.iter().copied().max().unwrap_or(0);
        self.encoders.min(at_work.saturating_add(u32::from(!self.is_dry))).max(1)
    }

    fn note_delivered(&mut self, rate: u64) {
        self.delivered.rotate_right(1);
        if let Some(last) = self.delivered.first_mut() {
            *last = rate;
        }
    }

    fn carries(&self) -> u64 {
        self.delivered.iter().copied().max().unwrap_or(0)
    }

    /// What a page takes at the effort that is used now, though the link would carry more.
    fn limit(&mut self, now: Time, page: Duration) {
        let Mix { lighter, harder, share } = self.mix;
        let (step, page) = match lighter {
            RAW if harder == RAW => return,
            RAW => {
                let raw = duration_at(PAGE, self.carries()) * (WHOLE - share);
                (harder, (page * WHOLE).saturating_sub(raw) / share)
            }
            _ => (self.mix.main(), page),
        };
        if let Some(limit) = self.limits.get_mut(step).filter(|limit| limit.until <= now) {
            *limit = SinkLimit { page, until: now + limit.patience, patience: (limit.patience * 2).min(MOST) };
        }
    }

    /// What a page takes of all encoders at a step, its encryption included.
    fn work(&self, step: usize) -> Duration {
        let table = STEPS.get(step).map_or(Duration::ZERO, |step| step.time);
        let slower = u32::try_from(self.slower).unwrap_or(u32::MAX);
        (table * slower / 1000 + self.looks + written(self.wire(step))) / self.encoders()
    }

    /// Bytes on the wire of a page at a step.
    fn wire(&self, step: usize) -> u64 {
        match step {
            RAW => PAGE,
            _ => STEPS.get(step).map_or(PAGE, |step| (step.wire * self.bulkier / ONE).min(PAGE)),
        }
    }

    fn costs(&self, now: Time) -> [Cost; COUNT] {
        let limits = self.limits.map(|limit| if now < limit.until { limit.page } else { Duration::ZERO });
        // A sink that limits packed pages is taken to be what limits raw ones, too.
        let is_limited = limits.iter().any(|page| !page.is_zero());
        let raw = if is_limited { duration_at(PAGE, self.carries()) } else { Duration::ZERO };
        std::array::from_fn(|step| {
            // One that is too slow for an effort is so for harder ones.
            let packed = limits.iter().take(step + 1).copied().max().unwrap_or_default();
            let limit = if step == RAW { raw } else { packed };
            Cost { work: self.work(step), limit, wire: self.wire(step) }
        })
    }
}

/// What it takes to encrypt bytes and to hand them to the kernel, on the thread that encoded them: a nanosecond a byte or so.
fn written(bytes: u64) -> Duration {
    Duration::from_nanos(bytes)
}

impl Stretch {
    fn begin(since: Time) -> Self {
        Self {
            since,
            pages: 0,
            same: 0,
            encode: Duration::ZERO,
            expected: Duration::ZERO,
            wire: 0,
            expected_wire: 0,
            sent: 0,
            delivered: 0,
            extents: 0,
            dry: 0,
        }
    }

    /// What encoders were at work for.
    fn busy(&self) -> Duration {
        self.encode + written(self.sent)
    }

    /// What looks at pages that are not carried took, or so.
    fn looks(&self) -> Duration {
        let look = STEPS.get(RAW).map_or(Duration::ZERO, |raw| raw.time);
        (look * self.same).min(self.encode)
    }

    fn slower(&self) -> Option<u64> {
        let factor =
            (self.encode.saturating_sub(self.looks()) * 1000).as_nanos().checked_div(self.expected.as_nanos())?;
        Some(u64::try_from(factor).unwrap_or(u64::MAX).clamp(ONE / 32, ONE * 32))
    }

    fn bulkier(&self) -> Option<u64> {
        let factor = (self.wire * ONE).checked_div(self.expected_wire)?;
        Some(factor.clamp(1, ONE * 4))
    }
}

#[cfg(test)]
mod tests;
