//! Our own encoder as a transfer drives it: extents of neighbouring pages, those that the sink holds left out, those that its
//! baseline has elsewhere named, the rest encoded against what it holds.

use dwcp_core::session::leaves::{extent_digest, leaf};
use dwcp_core::wire::{ExtentHead, FenceEpoch};
use dwcp_core::{Extent, RegionId, Run};
use dwcp_hde::{BaseMissing, BaseSource, Bases, Decoder, Effort, Encoder, PAGE_BYTES};

use crate::measure::{Method, Place};
use crate::rounds::Round;

/// What is sent at 1 Gbit/s by one core.
const GIGABIT: Plan = Plan { name: "dwcp", effort: Effort::Balanced, pages: 256 };
/// What is sent at 100 Mbit/s by one core.
const THIN: Plan = Plan { name: "dwcp-thin", effort: Effort::Thorough(12), pages: 256 };
/// Others, to see what they would cost.
const OTHERS: [Plan; 7] = [
    Plan { name: "fast/64", effort: Effort::Fast, pages: 64 },
    Plan { name: "light/64", effort: Effort::Light, pages: 64 },
    Plan { name: "balanced/64", effort: Effort::Balanced, pages: 64 },
    Plan { name: "balanced/128", effort: Effort::Balanced, pages: 128 },
    Plan { name: "thorough 3", effort: Effort::Thorough(3), pages: 256 },
    Plan { name: "thorough 6", effort: Effort::Thorough(6), pages: 256 },
    Plan { name: "thorough 9", effort: Effort::Thorough(9), pages: 256 },
];
/// What a warm transfer costs beyond its extents, and more: the digest by which both ends know that they hold the same image
/// is 32 bytes of OFFER, the answer one byte of ACCEPT (O-9).
const BASELINE_BYTES: usize = 32 + 64;

/// How extents are made.
#[derive(Debug, Clone, Copy)]
struct Plan {
    name: &'static str,
    effort: Effort,
    /// Pages of an extent before those that the sink holds are left out.
    pages: usize,
}

/// An extent, its plain pages, and what the sink holds in their place.
struct Job {
    head: ExtentHead,
    plain: Vec<u8>,
    old: Vec<u8>,
    places: Vec<usize>,
    /// For each page, its number in the baseline, if that has it anywhere.
    numbers: Vec<Option<u32>>,
}

impl Job {
    fn bases(&self) -> Bases<'_> {
        if self.old.is_empty() {
            return Bases::none();
        }
        let mut present = [0_u64; 4];
        for page in 0..self.places.len() {
            present[page / 64] |= 1 << (page % 64);
        }
        Bases::new(present, &self.old).with_pages_of_baseline(&self.numbers)
    }
}

/// What the sink holds: the old pages of an extent, and all of them by number.
struct Held<'a> {
    bases: Bases<'a>,
    image: &'a [u8],
}

impl BaseSource for Held<'_> {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        self.bases.base(page, into)
    }

    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        let at = number as usize * PAGE_BYTES;
        into.copy_from_slice(self.image.get(at..at + PAGE_BYTES).ok_or(BaseMissing)?);
        Ok(())
    }
}

struct Dwcp<'a> {
    plan: Plan,
    /// The image that the sink holds; empty: none.
    held: &'a [u8],
    jobs: Vec<Job>,
    /// Bytes beside the extents.
    beside: usize,
    encoder: Encoder,
    decoder: Decoder,
    scratch: Vec<u8>,
    /// Heads of all frames.
    heads: Vec<u8>,
    /// Blocks of all extents, one after the other, and where each ends.
    blocks: Vec<u8>,
    ends: Vec<usize>,
}

pub fn methods<'a>(round: &'a Round<'_>) -> Vec<Box<dyn Method + 'a>> {
    let plans = [GIGABIT, THIN].into_iter().chain(OTHERS);
    plans.map(|plan| -> Box<dyn Method> { Box::new(Dwcp::new(plan, round)) }).collect()
}

impl<'a> Dwcp<'a> {
    fn new(plan: Plan, round: &Round<'a>) -> Self {
        let extents = round.pages.chunks(plan.pages).zip(0..);
        Self {
            plan,
            held: round.old.unwrap_or_default(),
            jobs: extents.filter_map(|(pages, seq)| job(round, pages, seq)).collect(),
            beside: if round.name == "warm" { BASELINE_BYTES } else { 0 },
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            scratch: Vec::new(),
            heads: Vec::new(),
            blocks: Vec::new(),
            ends: Vec::new(),
        }
    }
}

/// The extent of those of `pages` that the sink does not hold yet: a lane compares their leaves with the sink's.
fn job(round: &Round<'_>, pages: &[(u32, usize)], seq: u64) -> Option<Job> {
    let held = |place| {
        round.old_page(place).map_or_else(|| dwcp_hde::is_zero(round.page(place)), |old| old == round.page(place))
    };
    let sent: Vec<(u32, usize)> = pages.iter().copied().filter(|(_, place)| !held(*place)).collect();
    if sent.is_empty() {
        return None;
    }
    let mut runs: Vec<Run> = Vec::new();
    for (number, _) in &sent {
        match runs.last_mut() {
            Some(run) if run.end() == *number => run.count += 1,
            _ => runs.push(Run { start: *number, count: 1 }),
        }
    }
    let extent = Extent::new(RegionId(0), runs).expect("rising pages");
    let places: Vec<usize> = sent.iter().map(|(_, place)| *place).collect();
    let plain: Vec<u8> = places.iter().flat_map(|place| round.page(*place)).copied().collect();
    let old = places.iter().filter_map(|place| round.old_page(*place)).flatten().copied().collect();
    let number = |page| round.baseline.as_ref().and_then(|baseline| baseline.get(page)).copied();
    let numbers = places.iter().map(|place| number(round.page(*place))).collect();
    let leaves: Vec<_> = plain.chunks(PAGE_BYTES).map(leaf).collect();
    let digest = extent_digest(FenceEpoch(1), &extent, &leaves);
    Some(Job { head: ExtentHead { seq, epoch: FenceEpoch(1), digest, extent }, plain, old, places, numbers })
}

impl Method for Dwcp<'_> {
    fn name(&self) -> String {
        self.plan.name.to_owned()
    }

    fn encode(&mut self) {
        self.heads.clear();
        self.blocks.clear();
        self.ends.clear();
        for job in &self.jobs {
            let start = self.blocks.len();
            let done = self.encoder.encode(&job.plain, &job.bases(), self.plan.effort, &mut self.blocks);
            if done.expect("an extent of ours").raw_tail {
                self.blocks.extend_from_slice(&job.plain);
            }
            job.head.encode(self.blocks.len() - start, &mut self.heads).expect("below 4 GiB");
            self.ends.push(self.blocks.len());
        }
    }

    fn bytes_out(&self) -> usize {
        self.heads.len() + self.blocks.len() + self.beside
    }

    fn decode(&mut self, put: &mut dyn FnMut(Place<'_>, &[u8])) {
        let mut start = 0;
        for (job, end) in self.jobs.iter().zip(&self.ends) {
            let (block, pages) = (&self.blocks[start..*end], job.places.len());
            let mut held = Held { bases: job.bases(), image: self.held };
            let plain = self.decoder.decode(block, pages, &mut held, &mut self.scratch).expect("a block of ours");
            put(Place::At(&job.places), plain);
            start = *end;
        }
    }
}
