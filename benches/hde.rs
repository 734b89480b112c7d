//! Bytes per second of one core through the codec: `cargo bench --bench hde`.
//!
//! The real pages are those of `tests/data/guest-pages.zst`, three guests one after the other.

#![expect(clippy::expect_used, clippy::as_conversions, reason = "a bench stops at its own bugs")]

use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use dwcp_hde::{Bases, Decoder, Effort, Encoder, MAX_PAGES, PAGE_BYTES};

const GUESTS: usize = 3;
const FIRST_ROUND: usize = 320 * PAGE_BYTES;
const CHANGED: usize = 160 * PAGE_BYTES;
const GUEST: usize = FIRST_ROUND + 2 * CHANGED;
const EFFORTS: [(&str, Effort); 5] = [
    ("raw", Effort::Raw),
    ("fast", Effort::Fast),
    ("light", Effort::Light),
    ("balanced", Effort::Balanced),
    ("thorough 9", Effort::Thorough(9)),
];

/// An extent, and the old content of its pages if that is known.
struct Job {
    pages: Vec<u8>,
    old: Vec<u8>,
}

impl Job {
    fn bases(&self) -> Bases<'_> {
        let words = (self.old.len() / PAGE_BYTES).div_ceil(64);
        let present = std::array::from_fn(|word| match (word + 1).cmp(&words) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => u64::MAX >> ((64 - self.old.len() / PAGE_BYTES % 64) % 64),
            std::cmp::Ordering::Greater => 0,
        });
        Bases::new(present, &self.old)
    }

    /// The block as it stands on the wire.
    fn block(&self, encoder: &mut Encoder, effort: Effort) -> Vec<u8> {
        let mut block = Vec::new();
        let done = encoder.encode(&self.pages, &self.bases(), effort, &mut block).expect("an extent of ours");
        if done.raw_tail {
            block.extend_from_slice(&self.pages);
        }
        block
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(900))
        .configure_from_args();
    let fresh = |pages: Vec<u8>| Job { pages, old: Vec::new() };
    let zero = [fresh(vec![0; MAX_PAGES * PAGE_BYTES])];
    let random = [fresh(noise(MAX_PAGES * PAGE_BYTES))];
    let balanced = &EFFORTS[3..4];
    bench(&mut criterion, "hde/zero", &zero, balanced);
    bench(&mut criterion, "hde/random", &random, balanced);
    let (first, changed) = guests();
    bench(&mut criterion, "hde/first round", &first, &EFFORTS);
    bench(&mut criterion, "hde/changed pages", &changed, &EFFORTS[1..4]);
    dearest(&mut criterion);
    criterion.final_summary();
}

/// What a sender can make a decoder do for an extent at most: a zstd frame for each page, with a second block that has it
/// build three tables for three bytes.
fn dearest(criterion: &mut Criterion) {
    let dear = [0x6d, 0, 0, 0, 1, 0xa8, 0xe4, 0xff, 0xe3, 0x7f, 0xe4, 0xff, 0, 0, 0, 4];
    let group =
        [&[5, 0, 27, 0, 0, 0, 0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0xea, 0x7f, 0x00, b'x'], dear.as_slice()];
    let block = [&[1, 0, 1, 5, 255], group.concat().repeat(MAX_PAGES).as_slice()].concat();
    let (mut decoder, mut scratch) = (Decoder::new(), Vec::new());
    let mut group = criterion.benchmark_group("hde/the dearest block");
    group.throughput(Throughput::Bytes((MAX_PAGES * PAGE_BYTES) as u64));
    group.bench_function("decode", |bench| {
        bench.iter(|| {
            decoder.decode(&block, MAX_PAGES, &mut Bases::none(), &mut scratch).expect("within its bounds").len()
        });
    });
    group.finish();
}

fn bench(criterion: &mut Criterion, name: &str, jobs: &[Job], efforts: &[(&str, Effort)]) {
    let plain: usize = jobs.iter().map(|job| job.pages.len()).sum();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(plain as u64));
    for &(effort_name, effort) in efforts {
        both_ways(&mut group, effort_name, effort, jobs);
    }
    group.finish();
}

fn both_ways(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, effort: Effort, jobs: &[Job]) {
    let mut encoder = Encoder::new();
    let mut block = Vec::new();
    group.bench_function(format!("encode {name}"), |bench| {
        bench.iter(|| {
            for job in jobs {
                block.clear();
                encoder.encode(&job.pages, &job.bases(), effort, &mut block).expect("an extent of ours");
            }
        });
    });
    let blocks: Vec<Vec<u8>> = jobs.iter().map(|job| job.block(&mut encoder, effort)).collect();
    let mut decoder = Decoder::new();
    let mut scratch = Vec::new();
    group.bench_function(format!("decode {name}"), |bench| {
        bench.iter(|| {
            for (job, block) in jobs.iter().zip(&blocks) {
                let pages = job.pages.len() / PAGE_BYTES;
                decoder.decode(block, pages, &mut job.bases(), &mut scratch).expect("a block of ours");
            }
        });
    });
}

/// Extents of a first round, and extents of changed pages beside their old content, of all guests.
fn guests() -> (Vec<Job>, Vec<Job>) {
    let frame = include_bytes!("../tests/data/guest-pages.zst");
    let mut plain = vec![0; GUESTS * GUEST];
    let bytes = zstd_safe::decompress(plain.as_mut_slice(), frame).expect("tests/data/guest-pages.zst");
    assert_eq!(bytes, plain.len(), "tests/data/README.md tells another size");
    let (mut first, mut changed) = (Vec::new(), Vec::new());
    for guest in plain.chunks(GUEST) {
        let (round, rest) = guest.split_at(FIRST_ROUND);
        let (old, new) = rest.split_at(CHANGED);
        first.extend(round.chunks(64 * PAGE_BYTES).map(|pages| Job { pages: pages.to_vec(), old: Vec::new() }));
        changed.push(Job { pages: new.to_vec(), old: old.to_vec() });
    }
    (first, changed)
}

/// Bytes that nothing compresses (xorshift64).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(bytes / 8).flatten().collect()
}
