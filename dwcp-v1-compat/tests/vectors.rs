//! Bytes which an unmodified v1 wrote (`tests/vectors/README.md`): ours reads them, and writes what reads the same.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests outside a #[test] function")]

use dwcp_v1_compat::wire::{
    ChunkHeader, ContentDecoder, Expected, Framing, Packer, PacketHeader, Piece, Span, Tier, delta,
};

fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/vectors/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

fn content(packet: &[u8], expected: Expected, base: &[u8]) -> Vec<u8> {
    let mut decoder = ContentDecoder::new(1 << 20).unwrap();
    decoder.begin(u64::try_from(packet.len()).unwrap(), expected).unwrap();
    let mut made = Vec::new();
    for mut bytes in packet.chunks(50) {
        while let Some(piece) = decoder.next(&mut bytes).unwrap() {
            match piece {
                Piece::Bytes(bytes) => made.extend_from_slice(bytes),
                Piece::Copy { at, bytes } => {
                    let at = usize::try_from(at).unwrap();
                    made.extend_from_slice(&base[at..at + usize::try_from(bytes).unwrap()]);
                }
            }
        }
    }
    decoder.finish().unwrap();
    made
}

const TIERS: [(u8, Tier); 3] = [(0, Tier::Local), (1, Tier::Regional), (2, Tier::Global)];

#[test]
fn full_packets_give_their_content_and_ours_give_the_same() {
    let base = vector("hde-base");
    for (number, tier) in TIERS {
        let golden = vector(&format!("hde16-full-tier{number}"));
        assert!(content(&golden, Expected::default(), &[]) == base, "tier {number}");
        let mut ours = Vec::new();
        Packer::new().unwrap().pack(tier, false, &base, &mut ours).unwrap();
        assert!(content(&ours, Expected::default(), &[]) == base, "tier {number}");
        let (golden, ours) = (PacketHeader::decode(&golden[..16]).unwrap(), PacketHeader::decode(&ours[..16]).unwrap());
        assert_eq!(PacketHeader { frame_bytes: 0, ..golden }, PacketHeader { frame_bytes: 0, ..ours });
    }
    let disk = vector("hde16-disk-block7-tier1");
    assert!(content(&disk, Expected::default(), &[]) == base);
}

#[test]
fn delta_packets_are_applied_to_our_baseline_and_ours_are_the_same_ops() {
    let (base, next, ops) = (vector("hde-base"), vector("hde-next"), vector("hde16-delta-ops-vm1"));
    let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap();
    for (number, tier) in TIERS {
        let id = format!("vm{number}_memory");
        let expected = Expected { bytes: Some(length(&next)), baseline: Some((id.clone(), length(&base))) };
        let golden = vector(&format!("hde16-delta-tier{number}"));
        assert!(content(&golden, expected.clone(), &base) == next, "tier {number}");
        let (mut list, mut ours) = (Vec::new(), Vec::new());
        delta::encode(&id, &base, &next, &mut list).unwrap();
        assert!(number != 1 || list == ops, "the op list is the same, byte for byte");
        Packer::new().unwrap().pack(tier, true, &list, &mut ours).unwrap();
        assert!(content(&ours, expected, &base) == next, "tier {number}");
    }
}

/// Reads headers and data one after the other.
fn chunks(framing: Framing, mut stream: &[u8]) -> Vec<(ChunkHeader, Vec<u8>)> {
    let mut found = Vec::new();
    while !stream.is_empty() {
        let header = ChunkHeader::decode(framing, stream).unwrap();
        let end = framing.header_bytes() + usize::try_from(header.length).unwrap();
        found.push((header, stream[framing.header_bytes()..end].to_vec()));
        stream = &stream[end..];
    }
    found
}

#[test]
fn headers_of_chunks_are_read_and_written_byte_for_byte() {
    let payload = vector("payload");
    let streams: [(&str, Framing, &[u32]); 6] = [
        ("mst8-1stream-order-2-0-1", Framing::Mst8, &[2, 0, 1]),
        ("mst8-1stream-order-0-2-1", Framing::Mst8, &[0, 2, 1]),
        ("mst8-3streams-s0", Framing::Mst8, &[0]),
        ("mst8-3streams-s1", Framing::Mst8, &[1]),
        ("mst8-3streams-s2", Framing::Mst8, &[2]),
        ("amst16-1stream", Framing::Amst16, &[0, 1, 2]),
    ];
    for (name, framing, order) in streams {
        let stream = vector(name);
        let mut again = Vec::new();
        let found = chunks(framing, &stream);
        assert_eq!(found.iter().map(|(header, _)| header.id).collect::<Vec<_>>(), order, "{name}");
        for (header, data) in &found {
            let at = usize::try_from(header.id).unwrap() * 1024;
            let wanted = &payload[at..payload.len().min(at + 1024)];
            assert!(data == wanted, "{name}: chunk {}", header.id);
            let span = Span { offset: header.id * 1024, total: 2560 };
            let span = (framing == Framing::Amst16).then_some(span);
            ChunkHeader { id: header.id, length: u32::try_from(wanted.len()).unwrap(), span }.encode(&mut again);
            again.extend_from_slice(wanted);
        }
        assert!(again == stream, "{name}");
    }
}
