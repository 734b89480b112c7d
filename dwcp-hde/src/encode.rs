//! Pages to a block: plan every page, pack the groups, write the head last, when it is known which groups paid.

use crate::block::{self, GROUP_HEAD_BYTES, NUMBER_BYTES};
use crate::choose::{self, Sample};
use crate::codec::zstd::{self, Search};
use crate::codec::{dictionary, lz4};
use crate::forms::Forms;
use crate::{
    Bases, Dictionaries, Dictionary, Effort, EncodeError, MAX_PAGES, Method, MethodStats, PAGE_BYTES, Stats, delta,
    planes, zero,
};

/// Levels that [`Effort::Thorough`] takes. From 13 on zstd searches trees and parses optimally: 1 point more at a fifth of the
/// speed, which no link we meet waits for.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=12;
/// From this level on every form of a page is tried; below, a look at the page decides.
const TRIED_FROM: i32 = 6;
/// Pages of a prefix group: 64 KiB beside 64 KiB fits the tables of the fast zstd levels; 64 pages lose 2-10 points.
const PREFIX_PAGES: usize = 16;
/// Pages of a group where speed counts: they, packed, stay in a second-level cache of 1 MiB. 256 save 0.02 to 0.05 points more.
const BALANCED_PAGES: usize = 128;
/// A group must save at least 1/32 of its plain bytes, or it travels raw: the receiver's time counts too.
const LEAST_SAVING: usize = 32;
/// Bytes before the old pages of a prefix: zstd would take a prefix that starts with its dictionary magic for a trained
/// dictionary, and old pages may start with anything.
pub(crate) const PREFIX_GUARD: [u8; 8] = [0; 8];
/// The methods with a group of compressed bytes, in the order in which their groups are written.
const COMPRESSED: [Method; 9] = [
    Method::Lz4,
    Method::Zstd,
    Method::XorLz4,
    Method::XorZstd,
    Method::Prefix,
    Method::Planes,
    Method::NarrowPlanes,
    Method::Dictionary,
    Method::LikeBaseline,
];
/// The largest group for which a dictionary is used, below level [`TRIED_FROM`] and from it on. Larger groups gain less than
/// the dictionary's tables cost in time. `docs/performance.md`, "Dictionaries", has the table.
const FEW_PAGES: usize = 4;
const FEW_PAGES_TRIED: usize = 16;
/// Slots of the table that finds copies: at least twice [`MAX_PAGES`], a power of two.
const COPY_SLOTS: usize = 512;

/// What [`Encoder::encode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// The block in `out` ends with the head of a raw group, and the plain pages, byte for byte, must follow on the wire.
    pub raw_tail: bool,
    /// What each method did; the raw tail is counted.
    pub stats: Stats,
}

/// Packs extents into blocks. Keeps its tables and buffers, so one encoder per worker; no allocation after warm-up.
pub struct Encoder {
    plan: Vec<Method>,
    /// Page + 1 of the last page with a sample key in this slot, 0 for none.
    copies: [u16; COPY_SLOTS],
    /// For each `CopyOf` page, in page order, the page it copies.
    copied: Vec<u8>,
    /// For each `OfBaseline` page, in page order, the number of the page of the baseline.
    numbers: Vec<u8>,
    /// The groups of the block being made: the first `body_bytes` of `body`, which is as long as the largest body was, for zstd
    /// writes there and needs room.
    body: Vec<u8>,
    body_bytes: usize,
    /// Pages of one group, side by side; as long as the largest was.
    packed: Vec<u8>,
    prefix: Vec<u8>,
    picked: Vec<usize>,
    lz4: lz4::Packer,
    zstd: zstd::Packer,
    dictionary: dictionary::Packer,
    forms: Forms,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

/// How an extent is to be encoded.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// What the receiver holds for some of its pages.
    pub bases: &'a Bases<'a>,
    /// How hard to try.
    pub effort: Effort,
    /// What the receiver holds beside. The first is used, for the pages of method [`Method::Zstd`] where they are few: there
    /// its gain was measured on guests that it had not seen.
    pub dictionaries: &'a Dictionaries,
    /// Nanoseconds since anything, read once for each group, to tell how long each method took: this crate has no clock.
    pub clock: &'a dyn Fn() -> u64,
}

impl<'a> Request<'a> {
    /// Without dictionaries, and untimed.
    pub fn new(bases: &'a Bases<'a>, effort: Effort) -> Self {
        static NONE: Dictionaries = Dictionaries::none();
        Self { bases, effort, dictionaries: &NONE, clock: &|| 0 }
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("effort", &self.effort).finish_non_exhaustive()
    }
}

/// An extent on its way into a block.
struct Job<'a> {
    pages: &'a [u8],
    bases: &'a Bases<'a>,
    effort: Effort,
    search: Search,
    /// The dictionary that both ends hold, and its number.
    dictionary: Option<(u8, &'a Dictionary)>,
    stats: Stats,
    clock: &'a dyn Fn() -> u64,
    /// When the last step ended.
    lap: u64,
}

impl Job<'_> {
    /// Nanoseconds since the last step ended; the next one begins.
    fn lap(&mut self) -> u64 {
        let now = (self.clock)();
        now.saturating_sub(std::mem::replace(&mut self.lap, now))
    }

    /// The last step was for `method`.
    fn timed(&mut self, method: Method) {
        let nanos = self.lap();
        self.stats.add(method, MethodStats { nanos, ..MethodStats::default() });
    }

    fn page(&self, page: usize) -> &[u8] {
        page_of(self.pages, page)
    }
}

fn page_of(pages: &[u8], page: usize) -> &[u8] {
    pages.get(page * PAGE_BYTES..).and_then(|rest| rest.get(..PAGE_BYTES)).unwrap_or_default()
}

impl Encoder {
    /// An encoder without buffers yet; they grow at the first extents.
    pub const fn new() -> Self {
        Self {
            plan: Vec::new(),
            copies: [0; COPY_SLOTS],
            copied: Vec::new(),
            numbers: Vec::new(),
            body: Vec::new(),
            body_bytes: 0,
            packed: Vec::new(),
            prefix: Vec::new(),
            picked: Vec::new(),
            lz4: lz4::Packer::new(),
            zstd: zstd::Packer::new(),
            dictionary: dictionary::Packer::new(),
            forms: Forms::new(),
        }
    }

    /// Appends the block of `pages` to `out` and says what was done.
    ///
    /// `pages` are the extent's plain pages, packed one after the other, at most [`MAX_PAGES`]. When `raw_tail` is set
    /// in the answer, `out` holds the block's head only and the plain `pages` must follow on the wire: a sender writes both
    /// vectored and copies nothing. At most [`max_block_bytes`](crate::max_block_bytes) bytes are appended.
    ///
    /// # Errors
    /// The caller's mistakes, see [`EncodeError`]; `out` is untouched then. Data can never fail.
    pub fn encode(
        &mut self,
        pages: &[u8],
        bases: &Bases<'_>,
        effort: Effort,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, EncodeError> {
        self.encode_with(pages, &Request::new(bases, effort), out)
    }

    /// As [`encode`](Self::encode), with all that a caller may ask for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with(
        &mut self,
        pages: &[u8],
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, EncodeError> {
        let Request { bases, effort, dictionaries, clock } = *request;
        let search = check(pages, bases, effort)?;
        let dictionary = dictionaries.first();
        let mut job = Job { pages, bases, effort, search, dictionary, stats: Stats::default(), clock, lap: clock() };
        self.make_plan(&job);
        if dictionary.is_some() {
            self.plan_dictionary(dictionaries.most_pages().unwrap_or_else(|| dictionary_pages(effort)));
        }
        job.stats.look_nanos = job.lap();
        self.body_bytes = 0;
        self.pack_all(&mut job);
        Ok(self.write(&mut job, out))
    }

    /// Gives each page a method by looking at it; no compression yet.
    fn make_plan(&mut self, job: &Job<'_>) {
        self.plan.clear();
        self.copied.clear();
        self.numbers.clear();
        self.copies.fill(0);
        for (index, page) in job.pages.chunks_exact(PAGE_BYTES).enumerate() {
            let method = self.method_of(index, page, job);
            self.plan.push(method);
        }
    }

    /// Gives the pages that would be one small group of zstd to the dictionary.
    fn plan_dictionary(&mut self, most_pages: usize) {
        let plain = self.plan.iter().filter(|planned| **planned == Method::Zstd).count();
        if (1..=most_pages).contains(&plain) {
            self.plan.iter_mut().filter(|planned| **planned == Method::Zstd).for_each(|planned| {
                *planned = Method::Dictionary;
            });
        }
    }

    fn method_of(&mut self, index: usize, page: &[u8], job: &Job<'_>) -> Method {
        if zero::is_zero(page) {
            return Method::Zero;
        }
        if let Some(number) = job.bases.of_baseline(index) {
            self.numbers.extend_from_slice(&number.to_le_bytes());
            return Method::OfBaseline;
        }
        if job.effort == Effort::Raw {
            return Method::Raw;
        }
        match (job.bases.get(index), job.bases.like_baseline(index)) {
            (Some(_), Some(_)) if job.effort != Effort::Fast => return Method::LikeBaseline,
            (Some(base), None) => {
                if let Some(method) = choose::against_base(page, base, job.effort) {
                    return method;
                }
            }
            _ => {}
        }
        let sample = choose::probe(page);
        if let Some(of) = self.copy_of(index, page, &sample, job) {
            self.copied.push(of);
            return Method::CopyOf;
        }
        match job.effort {
            Effort::Thorough(TRIED_FROM..) => self.forms.best(page, sample.random),
            _ if sample.random => Method::Raw,
            Effort::Raw => Method::Raw,
            Effort::Fast => Method::Lz4,
            Effort::Light | Effort::Balanced | Effort::Thorough(_) => choose::form(page),
        }
    }

    /// An earlier page of the extent with the same bytes, by one look into a small table of sample keys.
    fn copy_of(&mut self, index: usize, page: &[u8], sample: &Sample, job: &Job<'_>) -> Option<u8> {
        let slot = usize::try_from(sample.key.wrapping_mul(choose::SPREAD) >> 55).unwrap_or_default();
        let slot = self.copies.get_mut(slot)?;
        let earlier = usize::from(*slot).checked_sub(1);
        *slot = u16::try_from(index + 1).unwrap_or_default();
        let earlier = earlier.filter(|&earlier| job.page(earlier) == page)?;
        u8::try_from(earlier).ok()
    }

    /// Packs every group which the plan asks for; pages of a group that does not pay become raw.
    fn pack_all(&mut self, job: &mut Job<'_>) {
        let copied = std::mem::take(&mut self.copied);
        self.put_group(Method::CopyOf, copied.len(), &copied, job);
        self.copied = copied;
        let numbers = std::mem::take(&mut self.numbers);
        self.put_group(Method::OfBaseline, numbers.len() / NUMBER_BYTES, &numbers, job);
        self.numbers = numbers;
        for method in COMPRESSED {
            let limit = match (method, job.effort) {
                (Method::Prefix | Method::LikeBaseline, _) => PREFIX_PAGES,
                (_, Effort::Balanced) => BALANCED_PAGES,
                _ => MAX_PAGES,
            };
            let mut next = 0;
            while let Some(found) = self.pick(method, next, limit) {
                next = found;
                self.pack_group(method, job);
                job.timed(method);
            }
        }
    }

    /// A group of pages whose bytes are these.
    fn put_group(&mut self, method: Method, pages: usize, bytes: &[u8], job: &mut Job<'_>) {
        if pages > 0 {
            room(&mut self.body, self.body_bytes, bytes.len()).copy_from_slice(bytes);
            self.close_group(method, pages, bytes.len());
            count(&mut job.stats, method, pages, bytes.len() + GROUP_HEAD_BYTES);
            job.timed(method);
        }
    }

    /// Collects up to `limit` pages of `method` from page `next` on; the page to go on with, or `None` when there are none.
    fn pick(&mut self, method: Method, next: usize, limit: usize) -> Option<usize> {
        self.picked.clear();
        let planned = self.plan.iter().enumerate().skip(next).filter(|(_, planned)| **planned == method);
        self.picked.extend(planned.map(|(page, _)| page).take(limit));
        self.picked.last().map(|last| last + 1)
    }

    /// Packs the picked pages as one group of `method`.
    fn pack_group(&mut self, method: Method, job: &mut Job<'_>) {
        self.gather(method, job);
        let plain = self.packed.get(..self.picked.len() * PAGE_BYTES).unwrap_or_default();
        let limit = plain.len() - plain.len() / LEAST_SAVING;
        let into = room(&mut self.body, self.body_bytes, limit);
        let length = match method {
            Method::Lz4 | Method::XorLz4 => self.lz4.pack(plain, into),
            Method::Prefix => self.zstd.pack_after(&self.prefix, plain, job.search, into),
            Method::LikeBaseline => put_numbers(&self.picked, job.bases, into).and_then(|(length, frame)| {
                Some(length + self.zstd.pack_after(&self.prefix, plain, job.search, frame)?)
            }),
            Method::Dictionary => job.dictionary.and_then(|(number, dictionary)| {
                let (name, frame) = into.split_first_mut()?;
                *name = number;
                self.dictionary.pack(dictionary, plain, job.search, frame).map(|length| length + 1)
            }),
            _ => self.zstd.pack(plain, job.search.of(method), into),
        };
        let Some(length) = length else {
            for page in &self.picked {
                if let Some(planned) = self.plan.get_mut(*page) {
                    *planned = Method::Raw;
                }
            }
            return;
        };
        self.close_group(method, self.picked.len(), length);
        count(&mut job.stats, method, self.picked.len(), length + GROUP_HEAD_BYTES);
    }

    /// Writes the head of the group whose `length` bytes stand behind the room for it.
    fn close_group(&mut self, method: Method, pages: usize, length: usize) {
        if let Some(head) = self.body.get_mut(self.body_bytes..).and_then(|rest| rest.first_chunk_mut()) {
            *head = block::group_head(method, pages, length);
        }
        self.body_bytes += GROUP_HEAD_BYTES + length;
    }

    /// Puts the picked pages side by side, in the form which the method compresses.
    fn gather(&mut self, method: Method, job: &Job<'_>) {
        self.prefix.clear();
        self.prefix.extend_from_slice(&PREFIX_GUARD);
        let plain = self.picked.len() * PAGE_BYTES;
        if self.packed.len() < plain {
            self.packed.resize(plain, 0);
        }
        for (&index, form) in self.picked.iter().zip(self.packed.chunks_exact_mut(PAGE_BYTES)) {
            let page = job.page(index);
            match method {
                Method::Planes => planes::split(page, form),
                Method::NarrowPlanes => planes::split_narrow(page, form),
                _ => form.copy_from_slice(page),
            }
            match method {
                Method::XorLz4 | Method::XorZstd => delta::xor_into(form, job.bases.get(index).unwrap_or_default()),
                Method::Prefix | Method::LikeBaseline => {
                    self.prefix.extend_from_slice(job.bases.get(index).unwrap_or_default());
                }
                _ => {}
            }
        }
    }

    /// Writes head, groups and raw pages.
    fn write(&mut self, job: &mut Job<'_>, out: &mut Vec<u8>) -> Encoded {
        let start = out.len();
        block::write_head(out, &self.plan);
        job.stats.head_bytes = u64::try_from(out.len() - start).unwrap_or_default();
        out.extend_from_slice(self.body.get(..self.body_bytes).unwrap_or_default());
        for method in [Method::Zero, Method::Same] {
            let pages = self.plan.iter().filter(|planned| **planned == method).count();
            count(&mut job.stats, method, pages, 0);
        }
        let raw = self.plan.iter().filter(|planned| **planned == Method::Raw).count();
        let raw_tail = raw > 0 && raw == self.plan.len();
        if raw > 0 {
            block::write_group(out, Method::Raw, raw, raw * PAGE_BYTES);
            count(&mut job.stats, Method::Raw, raw, raw * PAGE_BYTES + GROUP_HEAD_BYTES);
        }
        if raw > 0 && !raw_tail {
            let planned = job.pages.chunks_exact(PAGE_BYTES).zip(&self.plan);
            planned.filter(|(_, method)| **method == Method::Raw).for_each(|(page, _)| out.extend_from_slice(page));
            job.timed(Method::Raw);
        }
        Encoded { raw_tail, stats: job.stats }
    }
}

/// Writes the numbers of the baseline's pages that are the bases of these pages; how many bytes that took, and the room after
/// them.
fn put_numbers<'a>(pages: &[usize], bases: &Bases<'_>, into: &'a mut [u8]) -> Option<(usize, &'a mut [u8])> {
    let (numbers, rest) = into.split_at_mut_checked(pages.len() * NUMBER_BYTES)?;
    for (number, page) in numbers.as_chunks_mut::<NUMBER_BYTES>().0.iter_mut().zip(pages) {
        *number = bases.like_baseline(*page)?.to_le_bytes();
    }
    Some((numbers.len(), rest))
}

/// Room for `bytes` bytes of a group behind the groups that `body` holds, and behind its head.
fn room(body: &mut Vec<u8>, groups: usize, bytes: usize) -> &mut [u8] {
    let start = groups + GROUP_HEAD_BYTES;
    if body.len() < start + bytes {
        body.resize(start + bytes, 0);
    }
    body.get_mut(start..start + bytes).unwrap_or_default()
}

fn count(stats: &mut Stats, method: Method, pages: usize, bytes_out: usize) {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let share = MethodStats {
        pages: number(pages),
        bytes_in: number(pages * PAGE_BYTES),
        bytes_out: number(bytes_out),
        nanos: 0,
    };
    stats.add(method, share);
}

/// The largest group for which a dictionary is used.
const fn dictionary_pages(effort: Effort) -> usize {
    match effort {
        // zstd's own levels 3 to 5 pick matches in the dictionary that cost more than they save.
        Effort::Raw | Effort::Fast | Effort::Light | Effort::Thorough(2..TRIED_FROM) => 0,
        Effort::Balanced | Effort::Thorough(..2) => FEW_PAGES,
        Effort::Thorough(_) => FEW_PAGES_TRIED,
    }
}

/// Checks the caller's side and tells how zstd is to search.
fn check(pages: &[u8], bases: &Bases<'_>, effort: Effort) -> Result<Search, EncodeError> {
    if !pages.len().is_multiple_of(PAGE_BYTES) {
        return Err(EncodeError::PartialPage { bytes: pages.len() });
    }
    let count = pages.len() / PAGE_BYTES;
    if count > MAX_PAGES {
        return Err(EncodeError::TooManyPages { pages: count });
    }
    if let Some(page) = (0..count).find(|page| bases.has(*page) && bases.get(*page).is_none()) {
        return Err(EncodeError::BaseBeyondEnd { page, bytes: bases.len() });
    }
    match effort {
        Effort::Thorough(level) if !LEVELS.contains(&level) => Err(EncodeError::Level { level }),
        Effort::Thorough(level) => Ok(Search::Level(level)),
        Effort::Light => Ok(Search::Light),
        Effort::Raw | Effort::Fast | Effort::Balanced => Ok(Search::Balanced),
    }
}
