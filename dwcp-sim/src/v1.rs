//! The fuzz bodies of version 1: what a peer that nobody knows can say first, in a message, and in a packet.

use std::time::Duration;

use dwcp_core::session::Time;
use dwcp_v1_compat::detect::{Opening, Sight};
use dwcp_v1_compat::message::{ConnectionId, Deadlines, Incoming, IncomingConfig, Shape, Status};
use dwcp_v1_compat::wire::blocks::{BlockReader, Part};
use dwcp_v1_compat::wire::{ContentDecoder, Expected, Framing, Piece};

/// What a content may have here: small, so that the fuzzer is fast.
const MOST: u64 = 64 << 10;
const BASELINE: u64 = 8192;

/// The first bytes of a connection, for both framings: an answer within 16 bytes, which stays.
pub fn check_v1_open(bytes: &[u8]) {
    for framing in [Framing::Mst8, Framing::Amst16] {
        let mut opening = Opening::new(framing);
        let mut verdict = Sight::More;
        for (at, byte) in bytes.iter().enumerate() {
            let sight = opening.feed(*byte);
            assert!(verdict == Sight::More || sight == verdict, "a verdict changed");
            assert!(at < 15 || sight != Sight::More, "no verdict after 16 bytes");
            assert!(opening.bytes().len() <= 16 && bytes.starts_with(opening.bytes()));
            verdict = sight;
        }
    }
}

/// A message over up to four connections. The first byte chooses framing, window and cuts; then come pairs of a connection's
/// number and a length, each with so many bytes of it.
pub fn check_v1_chunks(bytes: &[u8]) {
    const TOTAL: usize = 10_000;
    let Some((options, mut rest)) = bytes.split_first() else { return };
    let total = u64::try_from(TOTAL).unwrap();
    let shape = match options & 1 {
        0 => Shape::Mst8 { total, chunk_bytes: 1024 },
        _ => Shape::Amst16 { most_bytes: total, most_chunk_bytes: 1024 },
    };
    let window = (options & 2 != 0).then_some(2048);
    let config = IncomingConfig { shape, most_connections: 4, window, deadlines: Deadlines::default() };
    let mut incoming = Incoming::new(config, Time::default()).unwrap();
    (0..4).for_each(|connection| incoming.connect(Time::default(), ConnectionId(connection)).unwrap());
    let mut place = vec![false; TOTAL];
    let mut ended = [false; 4];
    while let [connection, length, more @ ..] = rest {
        let connection = usize::from(connection % 4);
        let id = ConnectionId(u32::try_from(connection).unwrap());
        let (now, later) = more.split_at(more.len().min(usize::from(*length)));
        rest = later;
        if now.is_empty() {
            ended[connection] = true;
            if incoming.fin(Time::default(), id).is_err() {
                return;
            }
        }
        let wanted = if ended[connection] { 0 } else { incoming.wanted(id).min(now.len()) };
        if feed(&mut incoming, id, &now[..wanted], &mut place).is_none() {
            return;
        }
        if window.is_some() {
            incoming.used(incoming.front());
        }
    }
    let front = usize::try_from(incoming.front()).unwrap();
    assert!(place[..front].iter().all(|there| *there), "the front is beyond a hole");
    if incoming.status() != Status::Open {
        let length = usize::try_from(incoming.total().unwrap()).unwrap();
        assert!(place[..length].iter().all(|there| *there), "whole, with a hole");
    }
    let _ = incoming.tick(Time::after_epoch(Duration::from_secs(100)));
}

/// `None`: the message ended.
fn feed(incoming: &mut Incoming, id: ConnectionId, mut bytes: &[u8], place: &mut [bool]) -> Option<()> {
    while !bytes.is_empty() {
        let taken = incoming.take(Time::default(), id, bytes).ok()?;
        assert!(taken.used > 0 && taken.used <= bytes.len(), "no byte that was wanted is left over");
        if let Some(piece) = taken.piece {
            let at = usize::try_from(piece.at).unwrap();
            let here = &mut place[at..at + piece.range.len()];
            assert!(here.iter().all(|there| *there == piece.again), "a place twice, or not said so");
            here.fill(true);
        }
        bytes = &bytes[taken.used..];
    }
    Some(())
}

/// A packet, or a list of blocks, in pieces. The first byte chooses which, what is expected, and the cut.
pub fn check_v1_packet(bytes: &[u8]) {
    let Some((options, rest)) = bytes.split_first() else { return };
    let cut = usize::from(options >> 3) * 7 + 1;
    let expected = Expected {
        bytes: (options & 1 != 0).then_some(12_388),
        baseline: (options & 2 != 0).then(|| ("vm1_memory".to_owned(), BASELINE)),
    };
    let mut decoder = ContentDecoder::new(MOST).unwrap();
    if options & 4 == 0 {
        if decoder.begin(u64::try_from(rest.len()).unwrap(), expected.clone()).is_ok() {
            decode(&mut decoder, rest, cut, &expected);
        }
        return;
    }
    let mut reader = BlockReader::new(64, 1 << 20);
    let (mut packet, mut wanted) = (Vec::new(), 0);
    for mut piece in rest.chunks(cut) {
        loop {
            match reader.next(&mut piece) {
                Ok(Some(Part::Begin(header))) => {
                    assert!(header.id < 64 && header.packet_bytes <= 1 << 20);
                    packet.clear();
                    wanted = usize::try_from(header.packet_bytes).unwrap();
                }
                Ok(Some(Part::Packet(bytes))) => packet.extend_from_slice(bytes),
                Ok(Some(Part::End)) => {
                    assert_eq!(packet.len(), wanted, "a block ended elsewhere");
                    if decoder.begin(u64::try_from(packet.len()).unwrap(), expected.clone()).is_ok() {
                        decode(&mut decoder, &packet, cut, &expected);
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn decode(decoder: &mut ContentDecoder, packet: &[u8], cut: usize, expected: &Expected) {
    let most = expected.bytes.unwrap_or(MOST).max(MOST);
    let mut made = 0;
    for mut piece in packet.chunks(cut) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(Piece::Bytes(bytes))) => made += u64::try_from(bytes.len()).unwrap(),
                Ok(Some(Piece::Copy { at, bytes })) => {
                    assert!(at == made && at + bytes <= BASELINE, "a copy of what the baseline has not");
                    made += bytes;
                }
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(made <= most, "more than may be made");
        }
    }
    if let Ok(told) = decoder.finish() {
        assert!(told == made && expected.bytes.is_none_or(|bytes| bytes == made));
    }
}
