//! The messages of a lane that carries version 1: a block list in amst16 chunks, on one connection.
//!
//! ```text
//!  | chunk header 16 | up to 64 KiB | chunk header 16 | up to 64 KiB | ...
//!    whose data is    | page u32 | length u32 | HDE packet | page u32 | length u32 | HDE packet | ...
//! ```
//!
//! A block's id is the number of its first page among all pages of the layout, and its packet holds up to 256 pages.

use std::cell::RefCell;

use dwcp_core::PAGE_BYTES;
use dwcp_core::extent::FlatPage;
use dwcp_core::message::{MessageCodec, MessageError, TakeBlock};

use crate::wire::blocks::{BlockHeader, BlockReader, Part};
use crate::wire::{ChunkHeader, Framing, Packer, PacketError, Span, Tier, Unpacker};

/// Data of a chunk: version 1's default.
const CHUNK_BYTES: usize = 64 * 1024;
/// Plain bytes of a block at most.
const BLOCK_BYTES: usize = 256 * PAGE_BYTES;
/// Bytes of a packet at most: zstd makes little more of what it cannot compress.
const PACKET_BYTES: u32 = 256 * 4096 + 16 * 1024;

/// Version 1's framing for the lanes of an [`Endpoint`](dwcp_core::net::Endpoint), with levels of one tier.
///
/// ```
/// use std::sync::Arc;
///
/// use dwcp_core::net::{Endpoint, Identity, Trust};
/// use dwcp_v1_compat::Amst16;
/// use dwcp_v1_compat::wire::Tier;
///
/// let identity = Identity::generate("node-1")?;
/// let endpoint = Endpoint::new(&identity, &Trust::fingerprints([identity.fingerprint()]))?;
/// // From here on its sessions can leave version 3, and come back.
/// let endpoint = endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local }));
/// # drop(endpoint);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Amst16 {
    /// How far away the peer is taken to be.
    pub tier: Tier,
}

thread_local! {
    /// Of each lane thread: zstd's tables are large, and a block is made without a pause.
    static PACKER: RefCell<Option<Packer>> = const { RefCell::new(None) };
    static UNPACKER: RefCell<Option<(Unpacker, Vec<u8>)>> = const { RefCell::new(None) };
}

impl MessageCodec for Amst16 {
    fn block(&self, first: FlatPage, pages: &[u8], blocks: &mut Vec<u8>) -> Result<(), MessageError> {
        let at = blocks.len();
        let failed = |error: crate::wire::PackError| MessageError { what: error.to_string(), at };
        // Its length is known when it is made.
        BlockHeader { id: first.0, packet_bytes: 0 }.encode(blocks);
        let begin = blocks.len();
        PACKER
            .with_borrow_mut(|kept| {
                let packer = match kept {
                    Some(packer) => packer,
                    None => kept.insert(Packer::new()?),
                };
                packer.pack(self.tier, false, pages, blocks)
            })
            .map_err(failed)?;
        let packet_bytes = u32::try_from(blocks.len() - begin).unwrap_or(u32::MAX);
        let mut header = Vec::with_capacity(8);
        BlockHeader { id: first.0, packet_bytes }.encode(&mut header);
        if let Some(place) = blocks.get_mut(at..begin) {
            place.copy_from_slice(&header);
        }
        Ok(())
    }

    fn wrap(&self, blocks: &[u8], wire: &mut Vec<u8>) -> Result<(), MessageError> {
        let total = u32::try_from(blocks.len());
        let total = total.map_err(|_| MessageError { what: "an amst16 message is below 4 GiB".into(), at: 0 })?;
        let (mut id, mut offset) = (0, 0);
        for chunk in blocks.chunks(CHUNK_BYTES) {
            let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            ChunkHeader { id, length, span: Some(Span { offset, total }) }.encode(wire);
            wire.extend_from_slice(chunk);
            id += 1;
            offset += length;
        }
        Ok(())
    }

    fn read(&self, wire: &[u8], take: &mut TakeBlock<'_>) -> Result<(), MessageError> {
        UNPACKER.with_borrow_mut(|kept| {
            let (unpacker, plain) = match kept {
                Some(kept) => kept,
                None => kept.insert((Unpacker::new(len(BLOCK_BYTES)).map_err(|error| at(0, &error))?, Vec::new())),
            };
            Reading { unpacker, plain, blocks: BlockReader::new(u32::MAX, PACKET_BYTES), take, block: None }.all(wire)
        })
    }
}

fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn at(at: usize, what: &dyn std::fmt::Display) -> MessageError {
    MessageError { what: what.to_string(), at }
}

/// A message that is being read.
struct Reading<'a, 'b> {
    unpacker: &'a mut Unpacker,
    /// Of the block that is being read.
    plain: &'a mut Vec<u8>,
    blocks: BlockReader,
    block: Option<FlatPage>,
    take: &'a mut TakeBlock<'b>,
}

impl Reading<'_, '_> {
    fn all(&mut self, wire: &[u8]) -> Result<(), MessageError> {
        let (mut rest, mut due, mut offset) = (wire, 0_u32, 0_u32);
        let mut total = None;
        while !rest.is_empty() {
            let here = wire.len() - rest.len();
            let header = ChunkHeader::decode(Framing::Amst16, rest).ok_or_else(|| at(here, &"a cut chunk header"))?;
            let span = header.span.unwrap_or(Span { offset: 0, total: 0 });
            let same = *total.get_or_insert(span.total) == span.total;
            if header.id != due || span.offset != offset || !same {
                return Err(at(here, &"a chunk out of turn, or of another message"));
            }
            let length = usize::try_from(header.length).unwrap_or(usize::MAX);
            let chunk = rest.get(16..).and_then(|data| data.split_at_checked(length));
            let (data, after) = chunk.filter(|(data, _)| !data.is_empty()).ok_or_else(|| at(here, &"a cut chunk"))?;
            self.data(here, data)?;
            rest = after;
            due += 1;
            offset = offset.checked_add(header.length).ok_or_else(|| at(here, &"chunks beyond 4 GiB"))?;
        }
        if total.unwrap_or(0) != offset {
            return Err(at(wire.len(), &"the chunks are not the length that they claim"));
        }
        // The last block may be over without its end having been told.
        self.data(wire.len(), &[])?;
        self.blocks.finish().map_err(|error| at(wire.len(), &error))
    }

    fn data(&mut self, here: usize, mut data: &[u8]) -> Result<(), MessageError> {
        while let Some(part) = self.blocks.next(&mut data).map_err(|error| at(here, &error))? {
            match part {
                Part::Begin(header) => {
                    self.plain.clear();
                    self.block = Some(FlatPage(header.id));
                    self.unpacker.begin(header.packet_bytes.into()).map_err(|error| at(here, &error))?;
                }
                Part::Packet(packet) => self.unpack(packet).map_err(|error| at(here, &error))?,
                Part::End => self.end(here)?,
            }
        }
        Ok(())
    }

    fn unpack(&mut self, mut packet: &[u8]) -> Result<(), PacketError> {
        loop {
            let before = packet.len();
            let more = self.unpacker.fill(&mut packet)?;
            let made = self.unpacker.plain();
            self.plain.extend_from_slice(made);
            let count = made.len();
            self.unpacker.consume(count);
            if !more && packet.len() == before {
                return Ok(());
            }
        }
    }

    fn end(&mut self, here: usize) -> Result<(), MessageError> {
        self.unpacker.finish().map_err(|error| at(here, &error))?;
        if self.unpacker.header().is_some_and(|header| header.delta) {
            return Err(at(here, &"a delta, where whole pages are due"));
        }
        match self.block.take() {
            Some(first) => (self.take)(first, self.plain),
            None => Err(at(here, &"a block that never began")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(seed: u64, count: usize) -> Vec<u8> {
        let mut state = seed;
        let word = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Half of it compresses.
            if state >> 63 == 0 { state >> 40 } else { 7 }
        };
        (0..count * 512).map(word).flat_map(u64::to_le_bytes).collect()
    }

    fn message(blocks: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let codec = Amst16 { tier: Tier::Local };
        let (mut list, mut wire) = (Vec::new(), Vec::new());
        for (first, pages) in blocks {
            codec.block(FlatPage(*first), pages, &mut list).unwrap();
        }
        codec.wrap(&list, &mut wire).unwrap();
        wire
    }

    fn read(wire: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, MessageError> {
        let mut blocks = Vec::new();
        Amst16 { tier: Tier::Local }.read(wire, &mut |first, pages| {
            blocks.push((first.0, pages.to_vec()));
            Ok(())
        })?;
        Ok(blocks)
    }

    #[test]
    fn blocks_of_all_sizes_survive_in_order() {
        let blocks: Vec<_> = [1_usize, 3, 64, 256]
            .iter()
            .zip(0..)
            .map(|(&n, i)| (i * 1000, pages(u64::try_from(n).unwrap(), n)))
            .collect();
        let wire = message(&blocks);
        assert!(read(&wire).unwrap() == blocks);
        assert_eq!(read(&message(&[])).unwrap(), []);
        // What a peer of version 1 would see: chunk 0 at offset 0, its total, and a block that begins with its id.
        assert_eq!(wire[..8], [0; 8]);
        assert_eq!(wire[16..20], [0; 4]);
    }

    #[test]
    fn nothing_is_taken_twice_or_out_of_turn() {
        let wire = message(&[(5, pages(1, 200)), (99, pages(2, 1))]);
        assert!(read(&[wire.as_slice(), &wire].concat()).is_err(), "two messages");
        assert!(read(&wire[16 + CHUNK_BYTES..]).is_err(), "the first chunk is missing");
    }

    proptest! {
        #[test]
        fn a_damaged_message_is_an_error_or_other_pages_and_never_a_panic(
            at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<bool>(),
        ) {
            let blocks = vec![(5, pages(1, 20)), (99, pages(2, 1))];
            let mut wire = message(&blocks);
            let at = at.index(wire.len());
            if cut {
                wire.truncate(at);
                if let Ok(read) = read(&wire) {
                    prop_assert!(at == 0 && read.is_empty(), "cut at {at}");
                }
            } else {
                wire[at] ^= flip;
                if let Ok(read) = read(&wire) {
                    prop_assert!(read.len() == 2, "zstd's checksum covers the pages");
                }
            }
        }
    }
}
