//! Where the nanoseconds of an incompressible page go, stage by stage, on one core.

use std::hint::black_box;
use std::time::Instant;

use dwcp_core::session::leaves::{extent_digest, leaf};
use dwcp_core::session::page_hash::hash_pages;
use dwcp_core::wire::FenceEpoch;
use dwcp_core::{Extent, Guest, RegionId, Run};

use crate::dwcp_ends::{guest, randomise};
use crate::options::Case;

const PAGES: usize = 65_536;

pub fn report() {
    let memory = guest(&Case::Random { bytes: PAGES as u64 * 4096 });
    let mut buffer = vec![0; 1 << 20];
    let mut state = 1;
    randomise(&mut buffer, &mut state);
    let extents = PAGES / 256;
    stage("source: copy out of the guest", extents, |extent| {
        memory.read(RegionId(0), (extent * 256) as u32, &mut buffer).expect("a read");
    });
    randomise(&mut buffer, &mut state);
    stage("both: zero test", extents, |_| {
        black_box(buffer.chunks(4096).filter(|page| dwcp_hde::is_zero(page)).count());
    });
    stage("both: BLAKE3, page by page", extents, |_| {
        buffer.chunks(4096).for_each(|page| {
            black_box(leaf(page));
        });
    });
    let mut many = Vec::new();
    stage("both: BLAKE3, pages side by side", extents, |_| {
        many.clear();
        hash_pages(&buffer, &mut many);
        black_box(many.len());
    });
    let leaves: Vec<_> = buffer.chunks(4096).map(leaf).collect();
    let extent = Extent::new(RegionId(0), vec![Run { start: 0, count: 256 }]).expect("an extent");
    stage("both: digest of the extent", extents, |_| {
        black_box(extent_digest(FenceEpoch(1), &extent, &leaves));
    });
    let (mut encoder, mut block) = (dwcp_hde::Encoder::new(), Vec::new());
    stage("source: choose a method (raw)", extents, |_| {
        block.clear();
        let bases = dwcp_hde::Bases::none();
        black_box(encoder.encode(&buffer, &bases, dwcp_hde::Effort::Balanced, &mut block).expect("a block"));
    });
    block.extend_from_slice(&buffer);
    let (mut decoder, mut scratch) = (dwcp_hde::Decoder::new(), Vec::new());
    stage("sink: decode (raw: a borrow)", extents, |_| {
        let plain = decoder.decode(&block, 256, &mut dwcp_hde::Bases::none(), &mut scratch).expect("pages");
        black_box(plain.len());
    });
    stage("sink: copy into the guest", extents, |extent| {
        memory.write(RegionId(0), (extent * 256) as u32, &buffer).expect("a write");
    });
}

/// The best of five sweeps, so that a neighbour on the machine does not show.
fn stage(name: &str, extents: usize, mut work: impl FnMut(usize)) {
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..extents).for_each(&mut work);
            start.elapsed().as_nanos() as f64 / (extents * 256) as f64
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:<34} {best:>8.1} ns/page");
}
