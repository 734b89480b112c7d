//! Messages cut and shuffled in every way that v1 has, against plain arrays; and each defect of a v1 peer.

use std::time::Duration;

use dwcp_core::session::Time;
use proptest::prelude::*;

use super::*;
use crate::wire::limits::{MAX_AMST16_BYTES, REORDER_WINDOW};
use crate::wire::{ChunkHeader, Framing, Span};

const START: Time = Time::after_epoch(Duration::ZERO);

fn at(seconds: u64) -> Time {
    START + Duration::from_secs(seconds)
}

fn name(connection: usize) -> ConnectionId {
    ConnectionId(u32::try_from(connection).unwrap())
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 256) % 251).unwrap()).collect()
}

fn shape(framing: Framing, total: usize, chunk_bytes: u32) -> Shape {
    match framing {
        Framing::Mst8 => Shape::Mst8 { total: u64::try_from(total).unwrap(), chunk_bytes },
        Framing::Amst16 => Shape::Amst16 { most_bytes: MAX_AMST16_BYTES, most_chunk_bytes: 1 << 20 },
    }
}

fn config(shape: Shape) -> IncomingConfig {
    IncomingConfig { shape, most_connections: 256, window: None, deadlines: Deadlines::default() }
}

fn incoming(shape: Shape) -> Incoming {
    Incoming::new(config(shape), START).unwrap()
}

/// A chunk as it stands on the wire.
fn frame(framing: Framing, data: &[u8], chunk_bytes: usize, id: usize) -> Vec<u8> {
    let start = id * chunk_bytes;
    let part = &data[start..data.len().min(start + chunk_bytes)];
    let number = |value: usize| u32::try_from(value).unwrap();
    let span = Span { offset: number(start), total: number(data.len()) };
    let span = (framing == Framing::Amst16).then_some(span);
    let mut out = Vec::new();
    ChunkHeader { id: number(id), length: number(part.len()), span }.encode(&mut out);
    out.extend_from_slice(part);
    out
}

/// Feeds `bytes`, and puts what comes of them where it belongs.
fn feed(incoming: &mut Incoming, now: Time, from: ConnectionId, bytes: &[u8], to: &mut [u8]) -> Result<(), Defect> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let taken = incoming.take(now, from, rest)?;
        if let Some(piece) = taken.piece {
            let place = usize::try_from(piece.at).unwrap();
            let data = &rest[piece.range.clone()];
            let place = &mut to[place..place + data.len()];
            if piece.again && place != data {
                return Err(incoming.differs(from, &piece));
            }
            place.copy_from_slice(data);
        }
        assert!(taken.used > 0, "a machine without a window takes all");
        rest = &rest[taken.used..];
    }
    Ok(())
}

/// One connection that is opened, carries `bytes`, and is closed.
fn whole(shape: Shape, bytes: &[u8]) -> Result<Received, Defect> {
    let mut incoming = incoming(shape);
    let mut place = vec![0; 1 << 16];
    incoming.connect(START, name(0))?;
    feed(&mut incoming, START, name(0), bytes, &mut place)?;
    incoming.fin(START, name(0))?;
    if incoming.status() != Status::Done {
        incoming.tick(at(60))?;
    }
    Ok(incoming.received().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_interleaving_of_what_is_sent_gives_the_message(
        mst8: bool,
        length in 0_usize..20_000,
        chunk_bytes in 1_u32..3000,
        connections in 1_u16..9,
        seed in proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..5000), 1..60),
    ) {
        let framing = if mst8 { Framing::Mst8 } else { Framing::Amst16 };
        let chunk_bytes = chunk_bytes.max(u32::try_from(length / 400).unwrap() + 1);
        let data = payload(length);
        let total = u64::try_from(length).unwrap();
        let mut outgoing = Outgoing::new(framing, total, chunk_bytes, connections, START).unwrap();
        let mut streams = vec![Vec::new(); usize::from(connections)];
        let mut turns = seed.iter().cycle();
        let mut idle = 0;
        while idle < usize::from(connections) * 64 {
            let connection = u16::try_from(turns.next().unwrap().0.index(streams.len())).unwrap();
            let connection = if idle > 64 { u16::try_from(idle).unwrap() % connections } else { connection };
            match outgoing.next(connection, START).unwrap() {
                Some(chunk) => {
                    idle = 0;
                    let size = usize::try_from(chunk_bytes).unwrap();
                    prop_assert_eq!(chunk.at, u64::from(chunk.header.id) * u64::from(chunk_bytes));
                    if mst8 {
                        prop_assert_eq!(chunk.header.id % u32::from(connections), u32::from(connection));
                    }
                    let bytes = frame(framing, &data, size, usize::try_from(chunk.header.id).unwrap());
                    let at = if mst8 { 0 } else { streams[usize::from(connection)].len() };
                    // mst8 in falling order: v1 writes in any.
                    streams[usize::from(connection)].splice(at..at, bytes);
                }
                None => idle += 1,
            }
        }
        let mut place = vec![0; length];
        let mut incoming = incoming(shape(framing, length, chunk_bytes));
        for connection in 0..streams.len() {
            incoming.connect(START, name(connection)).unwrap();
        }
        let mut rest: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
        for (connection, cut) in seed.iter().cycle() {
            let connection = connection.index(rest.len());
            let (now, later) = rest[connection].split_at(rest[connection].len().min(*cut));
            feed(&mut incoming, START, name(connection), now, &mut place).unwrap();
            rest[connection] = later;
            if now.is_empty() {
                // Its turn may not come again in this cycle.
                for (connection, left) in rest.iter_mut().enumerate() {
                    feed(&mut incoming, START, name(connection), std::mem::take(left), &mut place).unwrap();
                }
            }
            if rest.iter().all(|left| left.is_empty()) {
                break;
            }
        }
        for connection in 0..streams.len() {
            incoming.fin(START, name(connection)).unwrap();
        }
        if length == 0 && !mst8 {
            // Nothing on the wire: an amst16 receiver cannot know that this was a message.
            prop_assert!(incoming.received().is_none());
        } else {
            let received = incoming.received().unwrap();
            prop_assert_eq!(received.bytes, total);
            prop_assert!(received.closed);
            let expected = if mst8 { Assurance::LengthUnverified } else { Assurance::Unverified };
            prop_assert_eq!(received.assurance, expected);
            prop_assert!(place == data);
        }
    }

    #[test]
    fn in_a_window_the_front_always_comes_on(
        length in 1_usize..60_000,
        connections in 1_u16..20,
        seed in proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..3000), 1..80),
    ) {
        const CHUNK: usize = 512;
        let data = payload(length);
        // A work queue: ids rise within a connection.
        let mut streams = vec![Vec::new(); usize::from(connections)];
        for id in 0..length.div_ceil(CHUNK) {
            let stream = seed[id % seed.len()].0.index(streams.len());
            streams[stream].extend(frame(Framing::Amst16, &data, CHUNK, id));
        }
        let window = 4 * CHUNK;
        let config = IncomingConfig {
            window: Some(u64::try_from(window).unwrap()),
            ..config(Shape::Amst16 { most_bytes: 1 << 20, most_chunk_bytes: 512 })
        };
        let mut incoming = Incoming::new(config, START).unwrap();
        (0..streams.len()).for_each(|connection| incoming.connect(START, name(connection)).unwrap());
        let mut ring = vec![0; window];
        let (mut made, mut at) = (Vec::new(), vec![0; streams.len()]);
        while made.len() < length {
            let before = (made.len(), at.clone());
            for connection in 0..streams.len() {
                let wanted = incoming.wanted(name(connection)).min(seed[made.len() % seed.len()].1);
                let left = &streams[connection][at[connection]..];
                let mut rest = &left[..left.len().min(wanted)];
                at[connection] += rest.len();
                while !rest.is_empty() {
                    let taken = incoming.take(START, name(connection), rest).unwrap();
                    if let Some(piece) = taken.piece {
                        for (byte, place) in rest[piece.range].iter().zip(usize::try_from(piece.at).unwrap()..) {
                            prop_assert!(place >= made.len() && place < made.len() + window, "within the window");
                            ring[place % window] = *byte;
                        }
                    }
                    prop_assert!(taken.used > 0, "no byte is left over");
                    rest = &rest[taken.used..];
                }
                let front = usize::try_from(incoming.front()).unwrap();
                made.extend((made.len()..front).map(|place| ring[place % window]));
                incoming.used(u64::try_from(front).unwrap());
            }
            prop_assert!(before != (made.len(), at.clone()), "a turn without progress");
        }
        prop_assert!(made == data);
    }

    #[test]
    fn any_bytes_end_in_a_defect_or_within_the_message(
        bytes in proptest::collection::vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..400),
        mst8: bool,
        cut in 1_usize..50,
    ) {
        let framing = if mst8 { Framing::Mst8 } else { Framing::Amst16 };
        let mut incoming = incoming(match shape(framing, 300, 16) {
            Shape::Amst16 { .. } => Shape::Amst16 { most_bytes: 300, most_chunk_bytes: 64 },
            mst8 => mst8,
        });
        incoming.connect(START, name(0)).unwrap();
        let mut place = vec![0; 300];
        let fed = bytes.chunks(cut).try_for_each(|part| feed(&mut incoming, START, name(0), part, &mut place));
        if fed.is_ok() && incoming.fin(START, name(0)).is_ok() && incoming.status() != Status::Done {
            incoming.tick(at(60)).unwrap_err();
        }
    }
}

#[test]
fn totals_that_differ_are_two_messages() {
    let data = payload(2560);
    let mut bytes = frame(Framing::Amst16, &data, 1024, 0);
    bytes.extend(frame(Framing::Amst16, &data[..2000], 1000, 1));
    let defect = whole(shape(Framing::Amst16, 0, 0), &bytes).unwrap_err();
    assert_eq!(defect, Defect::MixedTotals { connection: name(0), at: 1040, total: 2000, before: 2560 });
}

#[test]
fn a_chunk_twice_is_taken_when_it_is_the_same_and_refused_otherwise() {
    let data = payload(2560);
    for framing in [Framing::Mst8, Framing::Amst16] {
        let shape = shape(framing, 2560, 1024);
        let part = |id| frame(framing, &data, 1024, id);
        let same = [part(1), part(0), part(1), part(2)].concat();
        let received = whole(shape, &same).unwrap();
        assert_eq!((received.duplicates, received.chunks, received.bytes), (1, 3, 2560));
        let mut other = same.clone();
        let last = part(1).len() + part(0).len() + part(1).len() - 1;
        other[last] ^= 1;
        assert_eq!(whole(shape, &other).unwrap_err().kind(), DefectKind::Duplicate);
        // In order, there is nothing left to compare with.
        let ordered = IncomingConfig { window: Some(REORDER_WINDOW), ..config(shape) };
        let mut incoming = Incoming::new(ordered, START).unwrap();
        incoming.connect(START, name(0)).unwrap();
        let twice = [part(0), part(0)].concat();
        let defect = feed(&mut incoming, START, name(0), &twice, &mut vec![0; 2560]).unwrap_err();
        let second = u64::try_from(part(0).len()).unwrap();
        assert_eq!(defect, Defect::Duplicate { connection: name(0), at: second, id: 0 });
    }
}

#[test]
fn a_chunk_on_two_connections_at_once_is_refused() {
    let data = payload(2560);
    let mut incoming = incoming(shape(Framing::Mst8, 2560, 1024));
    let part = frame(Framing::Mst8, &data, 1024, 0);
    let mut place = vec![0; 2560];
    for connection in 0..2 {
        incoming.connect(START, name(connection)).unwrap();
    }
    feed(&mut incoming, START, name(0), &part[..100], &mut place).unwrap();
    let defect = feed(&mut incoming, START, name(1), &part, &mut place).unwrap_err();
    assert_eq!(defect, Defect::Duplicate { connection: name(1), at: 0, id: 0 });
}

#[test]
fn repeating_chunks_without_end_is_refused() {
    let data = payload(2560);
    let part = frame(Framing::Mst8, &data, 1024, 0);
    let defect = whole(shape(Framing::Mst8, 2560, 1024), &part.repeat(4)).unwrap_err();
    assert_eq!(defect, Defect::Flood { connection: name(0), at: 3 * 1032 });
}

#[test]
fn a_hole_is_named_when_nobody_dials_again() {
    let data = payload(2560);
    for framing in [Framing::Mst8, Framing::Amst16] {
        let bytes = [frame(framing, &data, 1024, 0), frame(framing, &data, 1024, 2)].concat();
        let defect = whole(shape(framing, 2560, 1024), &bytes).unwrap_err();
        assert_eq!(defect, Defect::Missing { first: 1, chunks: 1, bytes: 1024 });
    }
}

#[test]
fn a_short_tail_is_told_with_what_is_missing() {
    let data = payload(2560);
    let part = frame(Framing::Amst16, &data, 1024, 0);
    let torn = |end: usize| whole(shape(Framing::Amst16, 0, 0), &part[..end]).unwrap_err();
    let connection = name(0);
    assert_eq!(torn(10), Defect::Torn { connection, at: 10, part: "header", missing: 6 });
    assert_eq!(torn(16), Defect::Torn { connection, at: 16, part: "chunk", missing: 1024 });
    assert_eq!(torn(1039), Defect::Torn { connection, at: 1039, part: "chunk", missing: 1 });
}

#[test]
fn a_length_of_3_gib_reserves_nothing() {
    let mut bytes = Vec::new();
    ChunkHeader { id: 0, length: 3 << 30, span: None }.encode(&mut bytes);
    let defect = whole(shape(Framing::Mst8, 2560, 1024), &bytes).unwrap_err();
    assert_eq!(defect, Defect::Length { connection: name(0), at: 0, id: 0, length: 3 << 30, expected: 1024 });
    let mut bytes = Vec::new();
    let span = Some(Span { offset: 0, total: u32::MAX });
    ChunkHeader { id: 0, length: 3 << 30, span }.encode(&mut bytes);
    let defect = whole(shape(Framing::Amst16, 0, 0), &bytes).unwrap_err();
    assert_eq!(defect, Defect::Length { connection: name(0), at: 0, id: 0, length: 3 << 30, expected: 1 << 20 });
    // A table of 2^32 chunks.
    let mut bytes = Vec::new();
    ChunkHeader { id: 0, length: 1, span }.encode(&mut bytes);
    assert_eq!(whole(shape(Framing::Amst16, 0, 0), &bytes).unwrap_err().kind(), DefectKind::TooManyChunks);
    let small = Shape::Amst16 { most_bytes: 2559, most_chunk_bytes: 1024 };
    let first = frame(Framing::Amst16, &payload(2560), 1024, 0);
    let defect = whole(small, &first).unwrap_err();
    assert_eq!(defect, Defect::TooLarge { connection: name(0), at: 0, total: 2560, limit: 2559 });
}

#[test]
fn another_chunk_size_at_the_sender_is_an_error_and_not_short_data() {
    let data = payload(2560);
    let defect = whole(shape(Framing::Mst8, 2560, 1024), &frame(Framing::Mst8, &data, 512, 0)).unwrap_err();
    assert_eq!(defect, Defect::Length { connection: name(0), at: 0, id: 0, length: 512, expected: 1024 });
    assert!(defect.to_string().contains("chunk sizes"), "{defect}");
}

#[test]
fn an_eaten_byte_is_noticed_wherever_it_was() {
    let data: Vec<u8> = payload(2560).iter().map(|byte| byte | 0x80).collect();
    for framing in [Framing::Mst8, Framing::Amst16] {
        let good: Vec<u8> = (0..3).flat_map(|id| frame(framing, &data, 1024, id)).collect();
        assert!(whole(shape(framing, 2560, 1024), &good).is_ok());
        for eaten in 0..good.len() {
            let mut bytes = good.clone();
            bytes.remove(eaten);
            let mut incoming = incoming(shape(framing, 2560, 1024));
            incoming.connect(START, name(0)).unwrap();
            let fed = feed(&mut incoming, START, name(0), &bytes, &mut vec![0; 4096]);
            assert!(fed.and_then(|()| incoming.fin(START, name(0))).is_err(), "{framing}: byte {eaten}");
        }
    }
}

#[test]
fn a_message_that_ran_over_4_gib_is_refused_with_the_reason() {
    // 5 GiB in chunks of 1 MiB: its headers say 1 GiB, and chunk 4096 offset 0.
    let span = |offset| Some(Span { offset, total: 1 << 30 });
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    incoming.connect(START, name(0)).unwrap();
    let mut bytes = Vec::new();
    ChunkHeader { id: 0, length: 1 << 20, span: span(0) }.encode(&mut bytes);
    bytes.resize(16 + (1 << 20), 0);
    feed(&mut incoming, START, name(0), &bytes, &mut vec![0; 1 << 20]).unwrap();
    let mut bytes = Vec::new();
    ChunkHeader { id: 4097, length: 1 << 20, span: span(1 << 20) }.encode(&mut bytes);
    let defect = feed(&mut incoming, START, name(0), &bytes, &mut []).unwrap_err();
    assert_eq!(defect, Defect::Wrapped { connection: name(0), at: 16 + (1 << 20) });
    assert!(defect.to_string().contains("4 GiB - 1"));
    let mut bytes = Vec::new();
    ChunkHeader { id: 0, length: 1, span: Some(Span { offset: 0, total: 0 }) }.encode(&mut bytes);
    assert_eq!(whole(shape(Framing::Amst16, 0, 0), &bytes).unwrap_err().kind(), DefectKind::Wrapped, "exactly 4 GiB");

    let refused = Outgoing::new(Framing::Amst16, MAX_AMST16_BYTES + 1, 1 << 20, 16, START).unwrap_err();
    assert_eq!(refused, Refusal::TooLarge { total: 1 << 32 });
    assert!(Outgoing::new(Framing::Amst16, MAX_AMST16_BYTES, 1 << 20, 16, START).is_ok());
}

#[test]
fn offsets_that_cannot_be_are_refused() {
    let data = payload(2560);
    let with = |header: ChunkHeader| {
        let mut bytes = frame(Framing::Amst16, &data, 1024, 0);
        header.encode(&mut bytes);
        whole(shape(Framing::Amst16, 0, 0), &bytes).unwrap_err()
    };
    let span = |offset| Some(Span { offset, total: 2560 });
    let connection = name(0);
    let offset = with(ChunkHeader { id: 1, length: 1024, span: span(1025) });
    assert_eq!(offset, Defect::Offset { connection, at: 1040, id: 1, offset: 1025 });
    let id = with(ChunkHeader { id: 3, length: 512, span: span(3072) });
    assert_eq!(id, Defect::Id { connection, at: 1040, id: 3, chunks: 3 });
    let mut first = Vec::new();
    ChunkHeader { id: 2, length: 1024, span: span(1025) }.encode(&mut first);
    let defect = whole(shape(Framing::Amst16, 0, 0), &first).unwrap_err();
    assert_eq!(defect, Defect::Offset { connection, at: 0, id: 2, offset: 1025 });
}

#[test]
fn silence_ends_in_time_and_says_what_is_missing() {
    let data = payload(2560);
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    incoming.connect(START, name(0)).unwrap();
    assert_eq!(incoming.deadline(), at(60));
    assert_eq!(incoming.tick(at(59)), Ok(Status::Open));
    feed(&mut incoming, at(59), name(0), &frame(Framing::Amst16, &data, 1024, 0), &mut vec![0; 2560]).unwrap();
    assert_eq!(incoming.deadline(), at(119));
    let silent = Defect::Silent { after: Duration::from_secs(60), missing: 1536 };
    assert_eq!(incoming.tick(at(119)), Err(silent));
}

/// It is never silent, and would hold the only place of its address for 500 years.
#[test]
fn a_peer_that_drips_a_byte_every_few_seconds_is_slow() {
    let total = MAX_AMST16_BYTES;
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    incoming.connect(START, name(0)).unwrap();
    let span = Span { offset: 0, total: u32::MAX };
    let mut header = Vec::new();
    ChunkHeader { id: 0, length: 1 << 20, span: Some(span) }.encode(&mut header);
    incoming.take(at(7), name(0), &header).unwrap();
    let mut drip = 10;
    let slow = loop {
        match incoming.tick(at(drip)) {
            Ok(_) => incoming.take(at(drip), name(0), &[1]).unwrap(),
            Err(slow) => break slow,
        };
        drip += 3;
    };
    let (came, missing) = (39, total - 39);
    assert_eq!(drip, 127, "120 s after it spoke first");
    assert_eq!(slow, Defect::Slow { after: Duration::from_secs(120), came, least: 1 << 20, missing });
    assert_eq!((slow.kind(), slow.kind().name()), (DefectKind::Slow, "slow"));
}

/// A chunk of 64 KiB every seven seconds.
#[test]
fn a_peer_on_a_bad_link_is_not_slow() {
    let data = payload(48 << 16);
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    let mut place = vec![0; data.len()];
    incoming.connect(START, name(0)).unwrap();
    for (id, time) in (0..48).zip((0..).map(|turn| turn * 7)) {
        assert_eq!(incoming.tick(at(time)), Ok(Status::Open), "at {time} s");
        feed(&mut incoming, at(time), name(0), &frame(Framing::Amst16, &data, 1 << 16, id), &mut place).unwrap();
    }
    assert_eq!(incoming.status(), Status::Whole);
    assert!(place == data);
}

#[test]
fn time_in_which_we_did_not_read_is_neither_silence_nor_slowness() {
    let data = payload(2560);
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    incoming.connect(START, name(0)).unwrap();
    feed(&mut incoming, START, name(0), &frame(Framing::Amst16, &data, 1024, 0), &mut vec![0; 2560]).unwrap();
    // Our disk took five minutes for that chunk.
    incoming.away(Duration::from_secs(300));
    assert_eq!((incoming.deadline(), incoming.tick(at(359))), (at(360), Ok(Status::Open)));
    assert!(matches!(incoming.tick(at(360)), Err(Defect::Silent { .. })));
}

/// All of it is there: it is no defect, and it is over.
#[test]
fn a_peer_that_repeats_a_whole_message_byte_by_byte_is_waited_for_only_so_long() {
    let data = payload(1024);
    let mut incoming = incoming(shape(Framing::Amst16, 0, 0));
    incoming.connect(START, name(0)).unwrap();
    let chunk = frame(Framing::Amst16, &data, 1024, 0);
    feed(&mut incoming, START, name(0), &chunk, &mut vec![0; 1024]).unwrap();
    for (byte, time) in chunk.iter().zip((0..40).map(|turn| turn * 3)) {
        assert_eq!(incoming.tick(at(time)), Ok(Status::Whole), "at {time} s");
        incoming.take(at(time), name(0), &[*byte]).unwrap();
    }
    assert_eq!(incoming.tick(at(120)), Ok(Status::Done));
    assert!(!incoming.received().unwrap().closed);
}

#[test]
fn a_peer_that_keeps_the_next_chunk_and_sends_far_ones_is_named() {
    let data = payload(4096);
    let config =
        IncomingConfig { window: Some(1024), ..config(Shape::Amst16 { most_bytes: 4096, most_chunk_bytes: 512 }) };
    let mut incoming = Incoming::new(config, START).unwrap();
    incoming.connect(START, name(0)).unwrap();
    let far = frame(Framing::Amst16, &data, 512, 5);
    let taken = incoming.take(START, name(0), &far).unwrap();
    assert_eq!(taken, Taken { used: 16, piece: None });
    assert_eq!(incoming.wanted(name(0)), 0);
    let held = Defect::HeldBack { id: 0, after: Duration::from_secs(60) };
    assert_eq!(incoming.tick(at(60)), Err(held));
}

/// After 61 s without a byte a v1 peer closes all its connections and dials as many again.
#[test]
fn connections_may_be_dialled_again_before_and_within_a_message() {
    let data = payload(2560);
    let mut incoming = incoming(shape(Framing::Mst8, 2560, 1024));
    let mut place = vec![0; 2560];
    let part = |id| frame(Framing::Mst8, &data, 1024, id);
    incoming.connect(START, name(0)).unwrap();
    incoming.connect(START, name(1)).unwrap();
    for connection in 0..2 {
        incoming.fin(at(50), name(connection)).unwrap();
    }
    assert_eq!(incoming.tick(at(54)), Ok(Status::Open), "nothing has begun yet");
    incoming.connect(at(54), name(2)).unwrap();
    feed(&mut incoming, at(55), name(2), &part(0), &mut place).unwrap();
    incoming.fin(at(56), name(2)).unwrap();
    assert_eq!(incoming.deadline(), at(59), "bytes are missing: somebody must dial again");
    incoming.connect(at(58), name(3)).unwrap();
    feed(&mut incoming, at(58), name(3), &[part(1), part(2)].concat(), &mut place).unwrap();
    assert_eq!(incoming.status(), Status::Whole);
    incoming.fin(at(58), name(3)).unwrap();
    let received = incoming.received().unwrap();
    assert_eq!((received.connections, received.silent, received.closed), (4, 2, true));
    assert!(place == data);
}

#[test]
fn a_peer_that_never_closes_is_waited_for_only_so_long() {
    let data = payload(2560);
    let mut incoming = incoming(shape(Framing::Mst8, 2560, 1024));
    incoming.connect(START, name(0)).unwrap();
    incoming.connect(START, name(1)).unwrap();
    let all: Vec<u8> = (0..3).flat_map(|id| frame(Framing::Mst8, &data, 1024, id)).collect();
    feed(&mut incoming, at(1), name(0), &all, &mut vec![0; 2560]).unwrap();
    assert_eq!((incoming.status(), incoming.received()), (Status::Whole, None));
    assert_eq!(incoming.tick(at(5)), Ok(Status::Whole));
    assert_eq!(incoming.tick(at(6)), Ok(Status::Done));
    let received = incoming.received().unwrap();
    assert!(!received.closed, "said as it is");
    assert_eq!(received.assurance.to_string(), "length unverified");
}

#[test]
fn a_reset_between_chunks_is_no_clean_end() {
    let data = payload(1024);
    let mut incoming = incoming(shape(Framing::Mst8, 1024, 1024));
    incoming.connect(START, name(0)).unwrap();
    feed(&mut incoming, START, name(0), &frame(Framing::Mst8, &data, 1024, 0), &mut vec![0; 1024]).unwrap();
    incoming.lost(START, name(0)).unwrap();
    assert!(!incoming.received().unwrap().closed);
}

#[test]
fn connections_are_bounded_at_a_time_and_in_all() {
    let few = IncomingConfig { most_connections: 2, ..config(shape(Framing::Mst8, 2560, 1024)) };
    let mut incoming = Incoming::new(few, START).unwrap();
    let connect = |incoming: &mut Incoming, id| incoming.connect(START, ConnectionId(id));
    connect(&mut incoming, 0).unwrap();
    connect(&mut incoming, 1).unwrap();
    let refused = Defect::TooManyConnections { connection: ConnectionId(2), limit: 2 };
    assert_eq!(connect(&mut incoming, 2), Err(refused));
    for id in 2..4096 {
        incoming.fin(START, ConnectionId(id - 1)).unwrap();
        connect(&mut incoming, id).unwrap();
    }
    incoming.fin(START, ConnectionId(0)).unwrap();
    let refused = Defect::TooManyConnections { connection: ConnectionId(5000), limit: 4096 };
    assert_eq!(connect(&mut incoming, 5000), Err(refused));
}

#[test]
fn an_idle_connection_is_not_written_to_again() {
    let mut outgoing = Outgoing::new(Framing::Mst8, 4096, 1024, 2, START).unwrap();
    assert!(outgoing.next(0, at(50)).unwrap().is_some());
    outgoing.wrote(0, at(60));
    assert!(outgoing.next(0, at(110)).unwrap().is_some());
    let refused = outgoing.next(1, at(51)).unwrap_err();
    assert_eq!(refused, Refusal::Idle { connection: 1, idle: Duration::from_secs(51) });
    assert_eq!(outgoing.next(0, at(500)), Ok(None), "what has nothing to send is closed, however late");
}

#[test]
fn what_no_v1_peer_has_is_refused() {
    let new = |chunk_bytes, connections| Outgoing::new(Framing::Mst8, 1 << 40, chunk_bytes, connections, START);
    assert_eq!(new(1 << 18, 0).unwrap_err(), Refusal::Connections { connections: 0 });
    assert_eq!(new(1 << 18, 257).unwrap_err(), Refusal::Connections { connections: 257 });
    assert_eq!(new(0, 1).unwrap_err(), Refusal::ChunkBytes { chunk_bytes: 0 });
    assert_eq!(new(1 << 25, 1).unwrap_err(), Refusal::ChunkBytes { chunk_bytes: 1 << 25 });
    assert!(matches!(new(1 << 10, 1).unwrap_err(), Refusal::TooManyChunks { .. }));
    let bad = |shape, window| Incoming::new(IncomingConfig { window, ..config(shape) }, START).is_err();
    assert!(bad(Shape::Mst8 { total: 1, chunk_bytes: 0 }, None));
    assert!(bad(Shape::Mst8 { total: 1 << 40, chunk_bytes: 1024 }, None));
    assert!(bad(Shape::Amst16 { most_bytes: 1 << 32, most_chunk_bytes: 1024 }, None));
    assert!(bad(Shape::Amst16 { most_bytes: 1, most_chunk_bytes: 1024 }, Some(1023)));
}

#[test]
fn defects_are_counted_by_kind() {
    let mut counts = DefectCounts::default();
    counts.add(DefectKind::Torn, 1);
    counts.add(DefectKind::Torn, 1);
    counts.add(DefectKind::Id, 1);
    assert_eq!(counts.of(DefectKind::Torn), 2);
    assert_eq!(counts.all().map(|(_, count)| count).sum::<u64>(), 3);
}
