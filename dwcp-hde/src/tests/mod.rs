//! Tests of whole blocks; small parts are tested beside their code.

mod dictionary;
mod guest;
mod hostile;
mod mixture;

pub(crate) use mixture::random;

use crate::{
    BaseMissing, BaseSource, Bases, Decoder, Dictionaries, Effort, Encoded, Encoder, PAGE_BYTES, Request,
    max_block_bytes, reference,
};

/// Every effort worth a test.
const EFFORTS: [Effort; 7] = [
    Effort::Raw,
    Effort::Fast,
    Effort::Light,
    Effort::Balanced,
    Effort::Thorough(1),
    Effort::Thorough(5),
    Effort::Thorough(12),
];

/// The bitmask of the first `pages` pages.
fn all(pages: usize) -> [u64; 4] {
    let mut mask = [0; 4];
    for page in 0..pages {
        mask[page / 64] |= 1 << (page % 64);
    }
    mask
}

/// The whole block as it stands on the wire.
fn wire(encoder: &mut Encoder, pages: &[u8], bases: &Bases<'_>, effort: Effort) -> (Vec<u8>, Encoded) {
    wire_with(encoder, pages, bases, effort, &Dictionaries::none())
}

fn wire_with(
    encoder: &mut Encoder,
    pages: &[u8],
    bases: &Bases<'_>,
    effort: Effort,
    dictionaries: &Dictionaries,
) -> (Vec<u8>, Encoded) {
    let mut block = Vec::new();
    let done =
        encoder.encode_with(pages, &Request { dictionaries, ..Request::new(bases, effort) }, &mut block).unwrap();
    if done.raw_tail {
        block.extend_from_slice(pages);
    }
    (block, done)
}

/// Encodes, decodes with both decoders, and checks every promise on the way.
fn round_trip(
    encoder: &mut Encoder,
    decoder: &mut Decoder,
    pages: &[u8],
    bases: &Bases<'_>,
    effort: Effort,
) -> Encoded {
    round_trip_with((encoder, decoder), pages, bases, effort, &Dictionaries::none())
}

fn round_trip_with(
    (encoder, decoder): (&mut Encoder, &mut Decoder),
    pages: &[u8],
    bases: &Bases<'_>,
    effort: Effort,
    dictionaries: &Dictionaries,
) -> Encoded {
    let (block, done) = wire_with(encoder, pages, bases, effort, dictionaries);
    let count = pages.len() / PAGE_BYTES;
    assert!(block.len() <= max_block_bytes(count));
    assert_eq!(done.stats.bytes_out(), u64::try_from(block.len()).unwrap());
    assert_eq!(done.stats.bytes_in(), u64::try_from(pages.len()).unwrap());
    assert_eq!(done.stats.pages(), u64::try_from(count).unwrap());

    let needed = crate::needs_bases(&block, count).unwrap();
    let mut sink = Sink { needed, bases, pages };
    let mut scratch = Vec::new();
    let plain = decoder.decode_with(&block, count, &mut sink, dictionaries, &mut scratch).unwrap();
    assert!(plain == pages, "the real decoder differs");
    let oracle = reference::decode(
        &block,
        &|page| bases.get(page).unwrap().to_vec(),
        &|number| dictionaries.get(number).unwrap().bytes().to_vec(),
        &|number| sink.baseline(number).to_vec(),
    );
    assert!(oracle.concat() == pages, "the reference decoder differs");
    done
}

/// A sink that holds what its source was told that it does.
struct Sink<'a> {
    needed: [u64; 4],
    bases: &'a Bases<'a>,
    pages: &'a [u8],
}

impl Sink<'_> {
    /// The page of the baseline with this number is the one that was said to equal it, or the base that was said to be it.
    fn baseline(&self, number: u32) -> &[u8] {
        let equal = |(page, _): &(usize, &[u8])| self.bases.of_baseline(*page) == Some(number);
        let like = |page: &usize| self.bases.like_baseline(*page) == Some(number);
        let equal = self.pages.chunks(PAGE_BYTES).enumerate().find(equal).map(|(_, page)| page);
        let base = || self.bases.get((0..self.pages.len() / PAGE_BYTES).find(like)?);
        equal.or_else(base).expect("nobody said so")
    }
}

impl BaseSource for Sink<'_> {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        assert_eq!(self.needed[page / 64] >> (page % 64) & 1, 1, "page {page} was asked for without need");
        into.copy_from_slice(self.bases.get(page).unwrap());
        Ok(())
    }

    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        into.copy_from_slice(self.baseline(number));
        Ok(())
    }
}
