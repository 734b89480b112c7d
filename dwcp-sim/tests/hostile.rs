//! The bodies of the fuzz targets, on bytes that proptest makes up.

#![expect(clippy::unwrap_used, reason = "tests outside a #[test] function")]

use dwcp_core::wire::{FrameHeader, FrameType};
use proptest::prelude::*;

/// Arbitrary bytes under a header that fits them, so that most get past it.
fn framed(body: &[u8], frame: FrameType) -> Vec<u8> {
    let mut bytes = FrameHeader::new(frame, u32::try_from(body.len()).unwrap_or(u32::MAX)).encode().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

type Body = fn(&[u8]);

fn v1_seeds() -> Vec<(Body, Vec<u8>)> {
    let bodies: [(&str, Body); 3] = [
        ("v1_open", dwcp_sim::check_v1_open),
        ("v1_chunks", dwcp_sim::check_v1_chunks),
        ("v1_packet", dwcp_sim::check_v1_packet),
    ];
    let seeds_of = |(target, body): (&str, Body)| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(move |file| (body, std::fs::read(file).unwrap()))
    };
    bodies.into_iter().flat_map(seeds_of).collect()
}

/// More with `PROPTEST_CASES=1000000`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(4000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames(body in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..FrameType::ALL.len()) {
        dwcp_sim::check_frame(&body);
        dwcp_sim::check_frame(&framed(&body, FrameType::ALL[kind]));
        dwcp_sim::check_hello(&body);
        dwcp_sim::check_hello(&framed(&body, FrameType::ALL[kind]));
    }

    #[test]
    fn blocks(data in proptest::collection::vec(prop_oneof![0_u8..8, any::<u8>()], 0..200)) {
        dwcp_sim::check_block(&data);
    }

    /// The seeds of version 1, which are valid, with bytes changed and cut off.
    #[test]
    fn version_1(seed: prop::sample::Index, damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in 0_usize..12_000,
    ) {
        let seeds = v1_seeds();
        let (body, mut bytes) = seeds[seed.index(seeds.len())].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        body(&bytes);
    }

    #[test]
    fn operations(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
        dwcp_sim::run_operations(&data);
    }
}

/// Bytes that are worth something come far: otherwise the operations test nothing.
#[test]
fn operations_reach_every_phase() {
    let mut rng = dwcp_sim::rng::Rng::new(1);
    let mut reached = std::collections::BTreeMap::new();
    for _ in 0..20_000 {
        let data: Vec<u8> = (0..rng.between(1, 2000)).flat_map(|_| rng.word().to_le_bytes().first().copied()).collect();
        let dwcp_sim::hostile::Reached { phases: [source, sink], handovers } = dwcp_sim::reach(&data);
        *reached.entry(format!("source {source:?}")).or_insert(0) += 1;
        *reached.entry(format!("sink {sink:?}")).or_insert(0) += 1;
        for (end, count) in ["source", "sink"].into_iter().zip(handovers).filter(|(_, count)| *count > 0) {
            *reached.entry(format!("{end} handed over {}", count.min(3))).or_insert(0) += 1;
        }
    }
    println!("{reached:?}");
    let phases = ["source Copying", "source Committing", "source Handing", "sink Committing", "sink Handing"];
    for phase in phases.into_iter().chain(["source handed over 1", "source handed over 2", "sink handed over 2"]) {
        assert!(reached.contains_key(phase), "{phase} is not among {reached:?}");
    }
}
