//! A bulk lane at the source: one worker that reads, hashes, encodes and writes.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dwcp_hde::{Dictionaries, Effort, Method, MethodStats, Request, Stats};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

use super::buffers::{Share, grow};
use super::clock::Stopwatch;
use super::dial::Dialer;
use super::dictionaries::Held;
use super::driver::{Event, Stream};
use super::message_source;
use super::statistics::MethodCounters;
use super::threads::Threads;
use crate::extent::{Extent, FlatPage, PAGE_BYTES, PageMask, RegionId};
use crate::guest::{Guest, GuestError, OldPages};
use crate::message::MessageCodec;
use crate::session::binding::Key;
use crate::session::leaves::{extent_digest, zero_leaf};
use crate::session::page_hash::hash_pages;
use crate::session::{Dispatch, Encoded, Input, Leaves, SlotId};
use crate::wire::{Digest, ExtentHead, FenceEpoch, FencedLane, Framing, LaneId, SessionId};

/// The bytes of the source's copy of what the sink acknowledged. Which page has which slot is the
/// machine's business; a slot is in one worker's hands at a time, so its lock is never waited for.
#[derive(Debug, Default)]
pub(super) struct ShadowBytes {
    slots: RwLock<Vec<Arc<Mutex<Vec<u8>>>>>,
}

impl ShadowBytes {
    fn slot(&self, id: SlotId) -> Option<Arc<Mutex<Vec<u8>>>> {
        let index = usize::try_from(id.0).ok()?;
        if let Some(slot) = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(index) {
            return Some(Arc::clone(slot));
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.len() <= index {
            slots.resize_with(index + 1, Arc::default);
        }
        slots.get(index).map(Arc::clone)
    }
}

/// What an extent is made from.
pub(super) struct SourcePages {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) leaves: Arc<Leaves>,
    pub(super) shadow: ShadowBytes,
    /// Of which the sink may hold one.
    pub(super) baselines: Arc<[Arc<dyn OldPages>]>,
    /// Of which the sink may hold some.
    pub(super) dictionaries: Held,
    pub(super) unread: Unread,
}

/// What all workers of one session share.
pub(super) struct SourceLanes {
    pub(super) pages: SourcePages,
    /// What the codec did for this session.
    pub(super) methods: Arc<MethodCounters>,
    /// Makes messages, where lanes carry them.
    pub(super) codec: Option<Arc<dyn MessageCodec>>,
    pub(super) threads: Threads,
    pub(super) dialer: Dialer,
    pub(super) session: SessionId,
    pub(super) key: Key,
}

/// What a lane carries, and in which epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) lane: LaneId,
    pub(super) epoch: FenceEpoch,
    pub(super) framing: Framing,
}

/// How a worker ended.
pub(super) enum Ended {
    Closed,
    /// As it was told to, after extents below `end`; the connection goes on as another lane.
    Left {
        stream: Box<Stream>,
        end: u64,
        next: LaneId,
    },
}

/// Opens the lane, unless its connection is there already, and works until the queue closes, the lane dies, it is told
/// to leave its connection to another, or `stop` fires; then reports its end. Nothing is reported after that.
pub(super) async fn run(
    shared: Arc<SourceLanes>,
    terms: Terms,
    kept: Option<Stream>,
    orders: message_source::Orders,
    events: mpsc::Sender<Event>,
    stop: oneshot::Receiver<()>,
) {
    let lane = terms.lane;
    let ended = tokio::select! {
        biased;
        _ = stop => Ended::Closed,
        ended = open_and_work(&shared, terms, kept, orders, &events) => ended,
    };
    if let Ended::Left { stream, end, next } = ended {
        let _ = events.send(Event::Kept { lane: next, stream }).await;
        let _ = events.send(Event::Input(Input::LaneEnded(FencedLane { lane, end, next }))).await;
    }
    let _ = events.send(Event::Input(Input::LaneDown { lane })).await;
}

async fn open_and_work(
    shared: &Arc<SourceLanes>,
    terms: Terms,
    kept: Option<Stream>,
    orders: message_source::Orders,
    events: &mpsc::Sender<Event>,
) -> Ended {
    let lane = terms.lane;
    let stream = match kept {
        Some(stream) => stream,
        None => match shared.dialer.lane(shared.session, &shared.key, lane).await {
            Ok((stream, credit)) => {
                if events.send(Event::Input(Input::LaneUp { lane, credit })).await.is_err() {
                    return Ended::Closed;
                }
                Stream::Client(stream)
            }
            Err(error) => {
                tracing::warn!(%lane, %error, "a lane cannot be opened");
                return Ended::Closed;
            }
        },
    };
    let carried = match terms.framing {
        Framing::Extents => carry(shared, terms, orders, events, stream).await,
        Framing::Messages => message_source::carry(shared, terms, orders, events, stream).await,
    };
    match carried {
        Ok(ended) => return ended,
        Err(LaneError::Guest(error)) => {
            let _ = events.send(Event::Input(Input::GuestFailed(error))).await;
        }
        Err(LaneError::Io(error)) => tracing::info!(%lane, %error, "a lane was lost"),
    }
    Ended::Closed
}

pub(super) enum LaneError {
    Guest(GuestError),
    Io(io::Error),
}

async fn carry(
    shared: &Arc<SourceLanes>,
    Terms { lane, epoch, .. }: Terms,
    orders: message_source::Orders,
    events: &mpsc::Sender<Event>,
    mut stream: Stream,
) -> Result<Ended, LaneError> {
    let message_source::Orders { mut work, mut leave, .. } = orders;
    let buffers = shared.threads.buffers();
    let share = Share::of(&shared.threads);
    if let Stream::Client(client) = &mut stream {
        client.get_mut().1.set_buffer_limit(Some(share.bytes));
    }
    let mut head = Vec::new();
    let mut end = 0;
    loop {
        let dispatch = tokio::select! {
            biased;
            next = &mut leave => return Ok(next.map_or(Ended::Closed, |next| Ended::Left { stream: Box::new(stream), end, next })),
            dispatch = work.recv() => match dispatch {
                Some(dispatch) => dispatch,
                None => break,
            },
        };
        let watch = Stopwatch::start();
        let sheet = Sheet { head, body: buffers.take(), ..Sheet::default() };
        let sheet = PRESS
            .with_borrow_mut(|press| press.print(&shared.pages, epoch, &dispatch, sheet))
            .map_err(LaneError::Guest)?;
        failpoint!("source.lane.printed");
        let encode = watch.elapsed();
        let encoded = Encoded {
            lane,
            seq: dispatch.seq,
            wire_bytes: u64::try_from(sheet.head.len() + sheet.body().len()).unwrap_or(u64::MAX),
            carried: sheet.carried,
            same: sheet.same,
            encode,
        };
        shared.methods.add(&sheet.methods);
        if events.send(Event::Input(Input::Encoded(encoded))).await.is_err() {
            return Ok(Ended::Closed);
        }
        failpoint!("source.lane.reported");
        // Unconstrained, lest a task that has done much be told to wait for its own sake.
        let written = tokio::task::unconstrained(async {
            stream.write_all(&sheet.head).await?;
            stream.write_all(sheet.body()).await?;
            stream.flush().await
        });
        written.await.map_err(LaneError::Io)?;
        failpoint!("source.lane.written");
        end = dispatch.seq + 1;
        head = sheet.head;
        buffers.give(sheet.body);
    }
    let _ = stream.shutdown().await;
    Ok(Ended::Closed)
}

thread_local! {
    /// Of each lane thread: an extent is made without a pause.
    static PRESS: RefCell<Press> = RefCell::new(Press::new());
}

/// What it takes to make an extent: three times its plain bytes, four with a shadow.
pub(super) struct Press {
    plain: Vec<u8>,
    bases: Vec<u8>,
    /// Pages that are carried and that the sink holds otherwise: their place among those carried, their number, their leaf
    /// at the sink.
    held: Vec<(usize, u32, Digest)>,
    /// Of the pages that are carried: what page of the baseline that the sink holds they equal. Empty without one.
    of_baseline: Vec<Option<u32>>,
    /// Of the same: what page of it is their base, for want of a better one.
    like_baseline: Vec<Option<u32>>,
    leaves: Vec<Digest>,
    block: Vec<u8>,
    encoder: dwcp_hde::Encoder,
}

/// What of an extent is to be carried, read and hashed.
pub(super) struct Cut<'a> {
    pub(super) plain: &'a [u8],
    pub(super) leaves: &'a [Digest],
    /// Pages in a row: the first, and how many.
    pub(super) runs: Vec<(FlatPage, usize)>,
    pub(super) carried: u16,
    pub(super) same: u16,
}

/// An extent ready to be written.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub(super) head: Vec<u8>,
    /// A shared buffer, and how much of it is the extent's.
    body: Vec<u8>,
    length: usize,
    pub(super) carried: u16,
    pub(super) same: u16,
    pub(super) methods: Stats,
}

impl Sheet {
    pub(super) fn body(&self) -> &[u8] {
        self.body.get(..self.length).unwrap_or_default()
    }
}

impl Press {
    pub(super) fn new() -> Self {
        Self {
            plain: Vec::new(),
            bases: Vec::new(),
            held: Vec::new(),
            of_baseline: Vec::new(),
            like_baseline: Vec::new(),
            leaves: Vec::new(),
            block: Vec::new(),
            encoder: dwcp_hde::Encoder::new(),
        }
    }

    /// Reads an extent, drops what the sink has, hashes and encodes the rest. The pages are read
    /// once: what is hashed is what is sent. spec: I-1
    /// What of it is not carried as it is in memory goes through `sheet`'s buffer.
    pub(super) fn print(
        &mut self,
        source: &SourcePages,
        epoch: FenceEpoch,
        dispatch: &Dispatch,
        mut sheet: Sheet,
    ) -> Result<Sheet, GuestError> {
        self.read(source, dispatch)?;
        let same = self.hash(source, dispatch);
        sheet.methods = self.left_out(&same);
        self.drop_leaves(&same);
        let mut based = self.swap_shadow(source, dispatch, &same);
        self.find_old_pages(source, dispatch, &mut based);
        let extent = self.drop_same(&dispatch.extent, &same);
        self.find_alike(source, dispatch, extent.pages(), &mut based);
        let plain = self.plain.get(..extent.bytes()).unwrap_or_default();
        self.block.clear();
        sheet.head.clear();
        let bases = dwcp_hde::Bases::new(*based.words(), &self.bases)
            .with_pages_of_baseline(&self.of_baseline)
            .with_pages_like_baseline(&self.like_baseline);
        let dictionaries = Dictionaries::agreed(source.dictionaries.offered(), dispatch.dictionaries);
        let watch = Stopwatch::start();
        let request =
            Request { bases: &bases, effort: dispatch.effort, dictionaries: &dictionaries, clock: &|| watch.nanos() };
        let encoded = self
            .encoder
            .encode_with(plain, &request, &mut self.block)
            .map_err(|error| GuestError::Other(format!("an extent cannot be encoded: {error}")))?;
        let raw = if encoded.raw_tail { plain.len() } else { 0 };
        let digest = extent_digest(epoch, &extent, &self.leaves);
        let count = |pages: usize| u16::try_from(pages).unwrap_or(u16::MAX);
        (sheet.carried, sheet.same) = (count(extent.pages()), count(same.count()));
        let head = ExtentHead { seq: dispatch.seq, epoch, digest, extent };
        head.encode(self.block.len() + raw, &mut sheet.head)
            .map_err(|fault| GuestError::Other(format!("an extent cannot be framed: {}", fault.what)))?;
        sheet.methods += encoded.stats;
        sheet.methods.head_bytes += u64::try_from(sheet.head.len()).unwrap_or(0);
        if encoded.raw_tail {
            sheet.head.extend_from_slice(&self.block);
            std::mem::swap(&mut self.plain, &mut sheet.body);
            sheet.length = raw;
        } else {
            std::mem::swap(&mut self.block, &mut sheet.body);
            sheet.length = sheet.body.len();
        }
        Ok(sheet)
    }

    /// The same for a lane of messages, which takes the plain pages.
    pub(super) fn cut(&mut self, source: &SourcePages, dispatch: &Dispatch) -> Result<Cut<'_>, GuestError> {
        self.read(source, dispatch)?;
        let same = self.hash(source, dispatch);
        self.drop_leaves(&same);
        let extent = self.drop_same(&dispatch.extent, &same);
        let first = source.guest.layout().region(extent.region()).map_or(0, |region| region.first);
        let runs = extent.runs().iter().map(|run| (FlatPage(first + run.start), usize::from(run.count))).collect();
        let count = |pages: usize| u16::try_from(pages).unwrap_or(u16::MAX);
        Ok(Cut {
            plain: self.plain.get(..extent.bytes()).unwrap_or_default(),
            leaves: &self.leaves,
            runs,
            carried: count(extent.pages()),
            same: count(same.count()),
        })
    }

    fn read(&mut self, source: &SourcePages, dispatch: &Dispatch) -> Result<(), GuestError> {
        let region = dispatch.extent.region();
        grow(&mut self.plain, dispatch.extent.bytes());
        let mut at = 0;
        for run in dispatch.extent.runs() {
            let end = at + run.bytes();
            let into = self.plain.get_mut(at..end).ok_or(GuestError::Outside { region, first: run.start })?;
            source.guest.read(region, run.start, into)?;
            at = end;
        }
        Ok(())
    }

    /// Hashes every page, and tells those that the sink has already.
    fn hash(&mut self, source: &SourcePages, dispatch: &Dispatch) -> PageMask {
        let mut same = PageMask::EMPTY;
        self.held.clear();
        self.of_baseline.clear();
        self.like_baseline.clear();
        self.leaves.clear();
        hash_pages(self.plain.get(..dispatch.extent.bytes()).unwrap_or_default(), &mut self.leaves);
        let mut told = 0;
        for run in dispatch.extent.runs() {
            let end = told + usize::from(run.count);
            let leaves = self.leaves.get(told..end).unwrap_or_default();
            source.guest.hashed(dispatch.extent.region(), run.start, leaves);
            told = end;
        }
        let first = source.guest.layout().region(dispatch.extent.region()).map_or(0, |region| region.first);
        let agreed = dispatch.baseline.and_then(|number| source.baselines.get(usize::from(number)));
        let region = dispatch.extent.region();
        let mut carried = 0;
        for ((index, number), digest) in dispatch.extent.page_numbers().enumerate().zip(&self.leaves) {
            let flat = FlatPage(first + number);
            if dispatch.known.get(index) && source.leaves.get(flat) == *digest {
                same.set(index);
            } else {
                let at_sink = source.leaves.get(flat);
                let found = agreed.and_then(|baseline| {
                    let (region, page) = baseline.find(*digest, (region, number))?;
                    baseline.layout().flat(region, page)
                });
                if agreed.is_some() {
                    self.of_baseline.push(found.map(|page| page.0));
                }
                if found.is_none()
                    && !source.baselines.is_empty()
                    && dispatch.known.get(index)
                    && at_sink != zero_leaf()
                {
                    self.held.push((carried, number, at_sink));
                }
                source.leaves.set(flat, *digest);
                carried += 1;
            }
        }
        same
    }

    /// Pages that are not carried, by what they are.
    fn left_out(&self, same: &PageMask) -> Stats {
        let mut stats = Stats::default();
        if same.is_empty() {
            return stats;
        }
        let zero = zero_leaf();
        let left_out = self.leaves.iter().enumerate().filter(|(index, _)| same.get(*index));
        let zeros = u64::try_from(left_out.filter(|(_, leaf)| **leaf == zero).count()).unwrap_or(0);
        let all = u64::try_from(same.count()).unwrap_or(0);
        stats.add(Method::Zero, MethodStats::left_out(zeros));
        stats.add(Method::Same, MethodStats::left_out(all - zeros));
        stats
    }

    /// Keeps only the leaves of pages that are carried.
    fn drop_leaves(&mut self, same: &PageMask) {
        if !same.is_empty() {
            let mut index = 0;
            self.leaves.retain(|_| {
                index += 1;
                !same.get(index - 1)
            });
        }
    }

    /// Closes the gaps that dropped pages leave.
    fn drop_same(&mut self, extent: &Extent, same: &PageMask) -> Extent {
        if same.is_empty() {
            return extent.clone();
        }
        for (to, index) in (0..extent.pages()).filter(|&index| !same.get(index)).enumerate() {
            if index != to {
                self.plain.copy_within(index * PAGE_BYTES..(index + 1) * PAGE_BYTES, to * PAGE_BYTES);
            }
        }
        extent.without(same)
    }

    /// Takes the old pages out of the shadow, puts the new ones in: all of them, also those that
    /// are not carried, because the acknowledgement makes every lent slot a base. Returns which of
    /// the pages that are carried have an old one. spec: D-3
    fn swap_shadow(&mut self, source: &SourcePages, dispatch: &Dispatch, same: &PageMask) -> PageMask {
        let mut based = PageMask::EMPTY;
        if dispatch.slots.is_empty() {
            return based;
        }
        grow(&mut self.bases, dispatch.extent.bytes());
        let mut place = 0;
        for (index, page) in self.plain.chunks_exact(PAGE_BYTES).take(dispatch.extent.pages()).enumerate() {
            let carried = !same.get(index);
            if let Some(slot) = dispatch.slots.get(index).copied().flatten().and_then(|id| source.shadow.slot(id)) {
                let mut old = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if carried
                    && dispatch.based.get(index)
                    && let Some(base) = self.bases.get_mut(place * PAGE_BYTES..(place + 1) * PAGE_BYTES)
                    && old.len() == PAGE_BYTES
                {
                    base.copy_from_slice(&old);
                    based.set(place);
                }
                old.clear();
                old.extend_from_slice(page);
            }
            place += usize::from(carried);
        }
        based
    }

    /// Bases for pages that have none in the shadow, where the sink holds what this node has beside the guest.
    fn find_old_pages(&mut self, source: &SourcePages, dispatch: &Dispatch, based: &mut PageMask) {
        if dispatch.effort == Effort::Raw {
            return;
        }
        let region = dispatch.extent.region();
        let mut stretches: Vec<Stretch<'_>> = Vec::new();
        for &(place, number, leaf) in self.held.iter().filter(|(place, ..)| !based.get(*place)) {
            let found = |old: &'_ Arc<dyn OldPages>| old.find(leaf, (region, number));
            let Some((old, at)) = source.baselines.iter().find_map(|old| Some((old, found(old)?))) else { continue };
            match stretches.last_mut() {
                Some(last) if last.goes_on(place, old, at) => last.pages += 1,
                _ => stretches.push(Stretch { place, old, at, pages: 1 }),
            }
        }
        if stretches.is_empty() {
            return;
        }
        grow(&mut self.bases, dispatch.extent.bytes());
        for Stretch { place, old, at: (found, page), pages } in stretches {
            let Some(into) = self.bases.get_mut(place * PAGE_BYTES..(place + pages) * PAGE_BYTES) else { continue };
            match old.read(found, page, into) {
                Ok(()) => (place..place + pages).for_each(|place| based.set(place)),
                Err(error) => source.unread.tell(pages, &error),
            }
        }
    }

    /// Bases for those of so many carried pages that have none, or one with nothing in common: pages of the agreed baseline that
    /// are like them, wherever they stand. spec: K-13
    fn find_alike(&mut self, source: &SourcePages, dispatch: &Dispatch, carried: usize, based: &mut PageMask) {
        let agreed = dispatch.baseline.and_then(|number| source.baselines.get(usize::from(number)));
        let Some(baseline) = agreed.filter(|_| !matches!(dispatch.effort, Effort::Raw | Effort::Fast)) else { return };
        let Self { plain, bases, leaves, of_baseline, like_baseline, .. } = self;
        grow(bases, carried * PAGE_BYTES);
        like_baseline.resize(carried, None);
        let pages = plain.chunks_exact(PAGE_BYTES).zip(bases.chunks_exact_mut(PAGE_BYTES)).zip(leaves);
        for (place, (((page, base), leaf), (of, like))) in pages.zip(of_baseline.iter().zip(like_baseline)).enumerate()
        {
            let is_told = of.is_some() || *leaf == zero_leaf();
            if is_told || based.get(place) && dwcp_hde::is_related(page, base) {
                continue;
            }
            let Some((region, number)) = baseline.find_like(page) else { continue };
            match baseline.read(region, number, base) {
                Ok(()) => {
                    *like = baseline.layout().flat(region, number).map(|flat| flat.0);
                    based.set(place);
                }
                Err(error) => {
                    source.unread.tell(1, &error);
                    based.unset(place);
                }
            }
        }
    }
}

/// Pages of baselines that could not be read here. That costs bytes and nothing else: what would have been made of them travels
/// whole. The first is told at once, and how many there were when the session is over.
#[derive(Debug, Default)]
pub(super) struct Unread(AtomicUsize);

impl Unread {
    fn tell(&self, pages: usize, error: &GuestError) {
        if self.0.fetch_add(pages, Ordering::Relaxed) > 0 {
            return;
        }
        match error {
            GuestError::Baseline { name, region, page, why, .. } => tracing::warn!(
                "{region}, page {page} of baseline {name} cannot be read here ({why}): such pages travel whole, and no other is \
                 told; `dwcp baseline verify` names all of them"
            ),
            error => tracing::warn!(%error, "pages of a baseline cannot be read here: they travel whole"),
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let count = *self.0.get_mut();
        if count > 1 {
            tracing::warn!("{count} pages of baselines could not be read here in all, and travelled whole");
        }
    }
}

/// Pages that are neighbours in an extent and where they are found: they are read together.
struct Stretch<'a> {
    /// Among the pages that are carried.
    place: usize,
    old: &'a Arc<dyn OldPages>,
    at: (RegionId, u32),
    pages: usize,
}

impl Stretch<'_> {
    fn goes_on(&self, place: usize, old: &Arc<dyn OldPages>, (region, page): (RegionId, u32)) -> bool {
        let (found, first) = self.at;
        Arc::ptr_eq(self.old, old)
            && self.place + self.pages == place
            && found == region
            && usize::try_from(page.saturating_sub(first)) == Ok(self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Layout, RegionId, Run};
    use crate::guest::Memory;

    fn pages(guest: Arc<Memory>) -> SourcePages {
        let leaves = Arc::new(Leaves::new(guest.layout()));
        SourcePages {
            leaves,
            guest,
            shadow: ShadowBytes::default(),
            baselines: [].into(),
            dictionaries: Held::default(),
            unread: Unread::default(),
        }
    }

    fn dispatch(page: u32, known: bool, based: bool) -> Dispatch {
        let mut mask = PageMask::EMPTY;
        mask.set(0);
        Dispatch {
            lane: LaneId(1),
            seq: 0,
            extent: Extent::new(RegionId(0), vec![Run { start: page, count: 1 }]).unwrap(),
            known: if known { mask } else { PageMask::EMPTY },
            slots: vec![Some(SlotId(0))],
            based: if based { mask } else { PageMask::EMPTY },
            effort: dwcp_hde::Effort::Fast,
            dictionaries: 0,
            baseline: None,
        }
    }

    /// A baseline of four pages of one byte each, of which the third cannot be read; every page is like the one whose number it
    /// begins with.
    #[derive(Debug)]
    struct Four(Layout);

    impl OldPages for Four {
        fn digest(&self) -> Digest {
            Digest([1; 32])
        }

        fn layout(&self) -> &Layout {
            &self.0
        }

        fn leaves_of(&self, layout: &Layout) -> Arc<Leaves> {
            Arc::new(Leaves::new(layout))
        }

        fn find(&self, _: Digest, _: (RegionId, u32)) -> Option<(RegionId, u32)> {
            None
        }

        fn find_like(&self, page: &[u8]) -> Option<(RegionId, u32)> {
            Some((RegionId(0), u32::from(page[0]))).filter(|(_, page)| *page < 4)
        }

        fn read(&self, _: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
            into.fill(u8::try_from(first).unwrap());
            if first == 2 { Err(GuestError::Other("rotten".into())) } else { Ok(()) }
        }
    }

    // spec: K-13
    #[test]
    fn what_is_like_a_page_of_the_baseline_has_it_as_base_and_what_cannot_be_read_is_none() {
        let layout = Layout::new(&[4096 * 4]).unwrap();
        let guest = Arc::new(Memory::new(layout.clone()));
        for page in 0..4_u64 {
            for word in 0..512 {
                guest.poke(RegionId(0), page * 4096 + word * 8, (page * 0x0101_0101_0101_0101) ^ (word << 40));
            }
        }
        let old: Arc<dyn OldPages> = Arc::new(Four(layout));
        let source = SourcePages { baselines: [old].into(), ..pages(guest) };
        let whole = Extent::new(RegionId(0), vec![Run { start: 0, count: 4 }]).unwrap();
        for (baseline, effort, pages) in
            [(Some(0), Effort::Balanced, 3), (None, Effort::Balanced, 0), (Some(0), Effort::Fast, 0)]
        {
            let slots = vec![None; 4];
            let dispatch = Dispatch { extent: whole.clone(), slots, effort, baseline, ..dispatch(0, false, false) };
            let sheet = Press::new().print(&source, FenceEpoch(1), &dispatch, Sheet::default()).unwrap();
            assert_eq!(sheet.methods.of(Method::LikeBaseline).pages, pages, "{effort:?} {baseline:?}");
            assert_eq!(sheet.carried, 4);
        }
    }

    // spec: D-3
    #[test]
    fn a_slot_taken_over_for_a_page_that_is_not_carried_holds_that_page() {
        let guest = Arc::new(Memory::new(Layout::new(&[4096 * 4]).unwrap()));
        let page = |byte: u64| byte * 0x0101_0101_0101_0101;
        for word in 0..512 {
            guest.poke(RegionId(0), word * 8, page(1));
            guest.poke(RegionId(0), 4096 + word * 8, page(2));
        }
        let pages = pages(Arc::clone(&guest));
        let mut press = Press::new();
        press.print(&pages, FenceEpoch(1), &dispatch(1, false, false), Sheet::default()).unwrap();
        press.print(&pages, FenceEpoch(1), &dispatch(0, false, false), Sheet::default()).unwrap();
        // Page 1 takes the slot over and is found to be at the sink already.
        let sheet = press.print(&pages, FenceEpoch(1), &dispatch(1, true, false), Sheet::default()).unwrap();
        assert_eq!((sheet.carried, sheet.same), (0, 1));
        let slot = pages.shadow.slot(SlotId(0)).unwrap();
        assert!(slot.lock().unwrap().iter().all(|&byte| byte == 2), "the old owner's page is still there");
    }
}
