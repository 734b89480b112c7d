//! Nanoseconds to write and to read one frame: `cargo bench --bench wire`.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use dwcp_core::wire::{Ack, Credit, Digest, ExtentHead, FRAME_HEADER_BYTES, FenceEpoch, Frame, FrameHeader, LaneId};
use dwcp_core::{Extent, RegionId, Run};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    let ack = Ack { durable: 0, lanes: (1..=4).map(|lane| (LaneId(lane), u64::from(lane) << 20)).collect() };
    frame(&mut criterion, "ack of 4 lanes", &Frame::Ack(ack));
    frame(&mut criterion, "credit", &Frame::Credit(Credit { lane: LaneId(3), total: 1 << 33 }));
    extent_head(&mut criterion);
    criterion.final_summary();
}

fn frame(criterion: &mut Criterion, name: &str, frame: &Frame) {
    let mut group = criterion.benchmark_group(format!("wire/{name}"));
    let mut bytes = Vec::new();
    group.bench_function("encode", |bench| {
        bench.iter(|| {
            bytes.clear();
            black_box(frame).encode(&mut bytes);
        });
    });
    group.bench_function("decode", |bench| bench.iter(|| read(black_box(&bytes))));
    group.finish();
}

/// As a control connection's reader does it.
fn read(bytes: &[u8]) -> Option<Frame> {
    let (header, body) = bytes.split_first_chunk()?;
    let header = FrameHeader::decode(*header, usize::MAX).ok()?;
    Frame::decode(header.frame, body).ok()?
}

/// 64 single pages, 37 apart: what a database's dirty log looks like.
fn extent_head(criterion: &mut Criterion) {
    let runs = (0..64).map(|run| Run { start: 1_000_000 + run * 37, count: 1 }).collect();
    let Ok(extent) = Extent::new(RegionId(0), runs) else { return };
    let head = ExtentHead { seq: 1 << 20, epoch: FenceEpoch(1), digest: Digest([7; 32]), extent };
    let mut group = criterion.benchmark_group("wire/extent head of 64 runs");
    let mut bytes = Vec::new();
    group.bench_function("encode", |bench| {
        bench.iter(|| {
            bytes.clear();
            black_box(&head).encode(0, &mut bytes)
        });
    });
    let body = bytes.split_off(FRAME_HEADER_BYTES);
    group.bench_function("decode", |bench| bench.iter(|| ExtentHead::decode(black_box(&body)).is_ok()));
    group.finish();
}
