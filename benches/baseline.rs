//! A store of baselines, on one core: `cargo bench --bench baseline [-- --pages FILE]`.
//!
//! Without a file the image is made of the pages of `tests/data/guest-pages.zst`, each with a number of its own, so that none is known
//! already, and a third of zeros. The store stands in a temporary folder, whose writes are synced.

#![expect(clippy::expect_used, clippy::as_conversions, reason = "a bench stops at its own bugs")]
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]

use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_core::baseline::{Baseline, BaselineStore, Limits, StoreKey};
use dwcp_core::guest::{Guest, ImageSource, Memory};
use dwcp_core::wire::Name;
use dwcp_core::{Layout, PAGE_BYTES, RegionId};

/// Pages of the image that is made: 256 MiB.
const PAGES: u32 = 1 << 16;
const EXTENT: usize = 256;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let file = words.iter().position(|word| word == "--pages").and_then(|at| words.get(at + 1));
    let image: Box<dyn Guest> = match file {
        Some(path) => Box::new(ImageSource::open(path).expect("an image")),
        None => Box::new(made()),
    };
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), &*image);
}

/// Real pages, again and again with another number in each.
fn made() -> Memory {
    let packed = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/guest-pages.zst")).expect("the pages");
    let mut real = vec![0; 64 << 20];
    let bytes = zstd_safe::decompress(&mut real[..], &packed).expect("zstd");
    real.truncate(bytes);
    let memory = Memory::new(Layout::new(&[u64::from(PAGES) * PAGE_BYTES as u64]).expect("a layout"));
    for (page, bytes) in (0..PAGES).filter(|page| page % 3 != 0).zip(real.chunks_exact(PAGE_BYTES).cycle()) {
        let mut bytes = bytes.to_vec();
        bytes.iter_mut().rev().zip(page.to_le_bytes()).for_each(|(byte, number)| *byte = number);
        memory.write(RegionId(0), page, &bytes).expect("memory");
    }
    memory
}

fn run(folder: &Path, image: &dyn Guest) {
    let store = BaselineStore::make(folder, StoreKey::new(&[1; 32]), Limits::default()).expect("a store");
    let (tenant, name) = (Name::new("bench").expect("a name"), Name::new("vm").expect("a name"));
    let all = image.layout().bytes();
    let (added, took) = timed(|| store.add(&tenant, &name, image, &mut |_| {}).expect("add"));
    let filled = (added.pages - added.zero) * 4096;
    println!("{} pages, {} of them zeros; {} bytes on the disk", added.pages, added.zero, added.bytes);
    row("add, all new", all, filled, took);
    let (_, took) = timed(|| store.add(&tenant, &name, image, &mut |_| {}).expect("add"));
    row("add, all known", all, filled, took);
    let (baseline, took) = timed(|| store.baseline(&tenant, added.digest).expect("open"));
    row("open", all, filled, took);
    let (_, took) = timed(|| read_all(&baseline));
    row("read in extents", all, filled, took);
    let (_, took) = timed(|| read_scattered(&baseline));
    println!("read single pages, scattered: {:.1} us each", took.as_secs_f64() * 1e6 / f64::from(SCATTERED));
    let (_, took) = timed(|| find_all(&baseline, &|at| Some(at)));
    println!("find by place: {:.0} ns a page", took.as_secs_f64() * 1e9 / (filled / 4096) as f64);
    let (_, took) = timed(|| baseline.find(baseline.leaf(RegionId(0), 1).expect("a page"), None));
    println!("first find by content (the table is made): {:.1} ms", took.as_secs_f64() * 1e3);
    let (_, took) = timed(|| find_all(&baseline, &|_| None));
    println!("find by content: {:.0} ns a page", took.as_secs_f64() * 1e9 / (filled / 4096) as f64);
}

fn timed<R>(work: impl FnOnce() -> R) -> (R, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

fn row(what: &str, all: u64, filled: u64, took: Duration) {
    let rate = |bytes: u64| bytes as f64 / 1e6 / took.as_secs_f64();
    println!(
        "{what}: {:.0} ms, {:.0} MB/s of the image, {:.0} MB/s of what is not zeros",
        took.as_secs_f64() * 1e3,
        rate(all),
        rate(filled)
    );
}

fn read_all(baseline: &Baseline) {
    let mut bytes = vec![0; EXTENT * PAGE_BYTES];
    for (region, first, leaves) in baseline.runs() {
        let into = bytes.get_mut(..leaves.len() * PAGE_BYTES).expect("an extent");
        baseline.read(region, first, into).expect("read");
    }
}

const SCATTERED: u32 = 4000;

fn read_scattered(baseline: &Baseline) {
    let mut page = [0; PAGE_BYTES];
    let pages = baseline.layout().region(RegionId(0)).expect("a region").pages;
    for turn in 0..SCATTERED {
        let at = turn.wrapping_mul(2_654_435_761) % pages;
        baseline.read(RegionId(0), at, &mut page).expect("read");
    }
}

fn find_all(baseline: &Baseline, near: &dyn Fn((RegionId, u32)) -> Option<(RegionId, u32)>) {
    for (region, first, leaves) in baseline.runs() {
        for (page, leaf) in (first..).zip(leaves) {
            assert!(baseline.find(leaf, near((region, page))).is_some(), "a page is lost");
        }
    }
}
