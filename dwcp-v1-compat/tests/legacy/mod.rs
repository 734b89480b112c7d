//! A v1 peer, written from the description of its wire alone: blocking sockets, whole messages in memory, nothing of this
//! crate. It checks no more than v1 does.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

/// The bytes of an mst8 chunk.
pub(crate) fn mst8_chunk(payload: &[u8], chunk: usize, id: usize) -> Vec<u8> {
    let data = &payload[id * chunk..payload.len().min((id + 1) * chunk)];
    let mut out = Vec::new();
    out.extend_from_slice(&be32(id));
    out.extend_from_slice(&be32(data.len()));
    out.extend_from_slice(data);
    out
}

/// The bytes of an amst16 chunk. Offset and total wrap.
pub(crate) fn amst16_chunk(payload: &[u8], chunk: usize, id: usize) -> Vec<u8> {
    let data = &payload[id * chunk..payload.len().min((id + 1) * chunk)];
    let mut out = Vec::new();
    out.extend_from_slice(&be32(id));
    out.extend_from_slice(&be32(id * chunk));
    out.extend_from_slice(&be32(data.len()));
    out.extend_from_slice(&be32(payload.len()));
    out.extend_from_slice(data);
    out
}

fn be32(value: usize) -> [u8; 4] {
    let bytes = value.to_be_bytes();
    [bytes[4], bytes[5], bytes[6], bytes[7]]
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number * 256 + usize::from(*byte))
}

/// What each of N connections carries of an mst8 message: chunk i on connection i mod N, in some order.
pub(crate) fn mst8_streams(payload: &[u8], chunk: usize, connections: usize) -> Vec<Vec<u8>> {
    let mut streams = vec![Vec::new(); connections];
    let mut ids: Vec<usize> = (0..payload.len().div_ceil(chunk)).collect();
    // Goroutines race; any order will do, and this one is far from the first.
    ids.sort_by_key(|id| (id * 7919) % 101);
    for id in ids {
        streams[id % connections].extend(mst8_chunk(payload, chunk, id));
    }
    streams
}

/// What each of N connections carries of an amst16 message: a work queue, so ids rise within a connection.
pub(crate) fn amst16_streams(payload: &[u8], chunk: usize, connections: usize) -> Vec<Vec<u8>> {
    let mut streams = vec![Vec::new(); connections];
    for id in 0..payload.len().div_ceil(chunk) {
        // The last connection never gets anything.
        streams[(id * 31 / 7) % connections.saturating_sub(1).max(1)].extend(amst16_chunk(payload, chunk, id));
    }
    streams
}

/// Dials, writes each stream over a connection of its own, and closes all of them when all are written.
pub(crate) fn dial_and_write(to: SocketAddr, streams: Vec<Vec<u8>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let connections: Vec<TcpStream> = streams.iter().map(|_| TcpStream::connect(to).unwrap()).collect();
        let writers: Vec<_> = connections
            .into_iter()
            .zip(streams)
            .map(|(mut connection, stream)| {
                thread::spawn(move || {
                    // Whoever hangs up on us is looked at by the test.
                    let _ = connection.write_all(&stream);
                    connection
                })
            })
            .collect();
        for writer in writers {
            let _ = writer.join().unwrap().shutdown(Shutdown::Write);
        }
    })
}

/// Takes a message over connections, the way v1 does: ids are joined in their order, offsets are ignored, the last of a double
/// id wins.
fn read_all(connections: Vec<TcpStream>, header: usize) -> Vec<u8> {
    let readers: Vec<_> = connections
        .into_iter()
        .map(|mut connection| {
            thread::spawn(move || {
                let mut found = Vec::new();
                let mut head = vec![0; header];
                loop {
                    match connection.read_exact(&mut head) {
                        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return found,
                        other => other.unwrap(),
                    }
                    let length = if header == 8 { number(&head[4..8]) } else { number(&head[8..12]) };
                    let mut data = vec![0; length];
                    connection.read_exact(&mut data).unwrap();
                    found.push((number(&head[..4]), data));
                }
            })
        })
        .collect();
    let chunks: BTreeMap<usize, Vec<u8>> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    assert!(chunks.keys().copied().eq(0..chunks.len()), "chunks without a gap");
    chunks.into_values().flatten().collect()
}

/// An mst8 peer dials to receive, too.
pub(crate) fn mst8_dial_and_read(to: SocketAddr, connections: usize) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || read_all((0..connections).map(|_| TcpStream::connect(to).unwrap()).collect(), 8))
}

/// An amst16 receiver listens.
pub(crate) fn amst16_listen_and_read(connections: usize) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reader = thread::spawn(move || read_all((0..connections).map(|_| listener.accept().unwrap().0).collect(), 16));
    (address, reader)
}

/// An HDE packet around `content`.
pub(crate) fn packet(delta: u8, tier: u8, content: &[u8]) -> Vec<u8> {
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
    context.set_parameter(zstd_safe::CParameter::CompressionLevel(3)).unwrap();
    let mut frame = vec![0; zstd_safe::compress_bound(content.len())];
    let length = context.compress2(&mut frame[..], content).unwrap();
    let mut out = vec![delta, tier, 0, 0, 0, 0, 0, 0];
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&frame[..length]);
    out
}

/// What v1 makes of a packet: the frame, decoded. It ignores the length and applies no delta.
pub(crate) fn unpack(packet: &[u8]) -> Vec<u8> {
    assert!(packet[0] <= 1 && packet[1] <= 2 && packet[2..8].iter().all(|byte| *byte == 0));
    assert_eq!(number(&packet[8..16]), packet.len() - 16);
    let mut content = vec![0; 257 << 20];
    let length = zstd_safe::decompress(&mut content[..], &packet[16..]).unwrap();
    assert!(length <= 256 << 20, "v1 would refuse it");
    content.truncate(length);
    content
}

/// A disk image of blocks that arrive from the last to the first.
pub(crate) fn block_list(disk: &[u8], block: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, data) in disk.chunks(block).enumerate().rev() {
        let packet = packet(0, 1, data);
        out.extend_from_slice(&be32(id));
        out.extend_from_slice(&be32(packet.len()));
        out.extend_from_slice(&packet);
    }
    out
}

/// And back.
pub(crate) fn read_block_list(mut list: &[u8], block: usize) -> Vec<u8> {
    let mut disk = Vec::new();
    while !list.is_empty() {
        let (id, length) = (number(&list[..4]), number(&list[4..8]));
        let content = unpack(&list[8..8 + length]);
        disk.resize(disk.len().max(id * block + content.len()), 0);
        disk[id * block..id * block + content.len()].copy_from_slice(&content);
        list = &list[8 + length..];
    }
    disk
}
