//! A slow, obvious decoder: the oracle for the real one. It trusts its block, reads it byte by byte, and panics freely.

use crate::Method;

/// The bytes of what has this number.
type Held<'a, N> = &'a dyn Fn(N) -> Vec<u8>;

/// The plain pages of an honest block.
pub(crate) fn decode(
    block: &[u8],
    base: Held<'_, usize>,
    dictionary: Held<'_, u8>,
    baseline: Held<'_, u32>,
) -> Vec<Vec<u8>> {
    assert_eq!(block[0], 1);
    let count = usize::from(block[1]) + 256 * usize::from(block[2]);
    let mut methods = Vec::new();
    let mut at = 3;
    while methods.len() < count {
        for _ in 0..=block[at + 1] {
            methods.push(Method::from_number(block[at]).unwrap());
        }
        at += 2;
    }
    let mut pages: Vec<Option<Vec<u8>>> = vec![None; count];
    let mut copies: Vec<(usize, usize)> = Vec::new();
    while at < block.len() {
        let method = Method::from_number(block[at]).unwrap();
        let length: usize = (0..4).map(|place| usize::from(block[at + 2 + place]) << (8 * place)).sum();
        let bytes = &block[at + 6..at + 6 + length];
        let done = |page: usize| pages[page].is_some() || copies.iter().any(|(copy, _)| *copy == page);
        let open = |page: &usize| methods[*page] == method && !done(*page);
        let mine: Vec<usize> = (0..count).filter(open).take(usize::from(block[at + 1]) + 1).collect();
        at += 6 + length;
        if method == Method::CopyOf {
            copies.extend(mine.iter().zip(bytes).map(|(page, of)| (*page, usize::from(*of))));
            continue;
        }
        if method == Method::OfBaseline {
            for (page, number) in mine.iter().zip(bytes.chunks(4)) {
                pages[*page] = Some(baseline(read_number(number)));
            }
            continue;
        }
        if method == Method::LikeBaseline {
            let (numbers, frame) = bytes.split_at(4 * mine.len());
            let mut prefix = vec![0; 8];
            numbers.chunks(4).for_each(|number| prefix.extend(baseline(read_number(number))));
            for (page, plain) in mine.iter().zip(after(&prefix, frame, mine.len() * 4096).chunks(4096)) {
                pages[*page] = Some(plain.to_vec());
            }
            continue;
        }
        for (page, plain) in mine.iter().zip(unpack(method, bytes, &mine, base, dictionary)) {
            pages[*page] = Some(plain);
        }
    }
    for page in 0..count {
        match methods[page] {
            Method::Zero => pages[page] = Some(vec![0; 4096]),
            Method::Same => pages[page] = Some(base(page)),
            Method::CopyOf => {
                let of = copies.iter().find(|(copy, _)| *copy == page).unwrap().1;
                pages[page] = pages[of].clone();
            }
            _ => {}
        }
    }
    pages.into_iter().map(Option::unwrap).collect()
}

fn read_number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| sum * 256 + u32::from(*byte))
}

fn unpack(
    method: Method,
    bytes: &[u8],
    mine: &[usize],
    base: Held<'_, usize>,
    dictionary: Held<'_, u8>,
) -> Vec<Vec<u8>> {
    let size = mine.len() * 4096;
    let packed = match method {
        Method::Raw => bytes.to_vec(),
        Method::Lz4 | Method::XorLz4 => lz4_flex::block::decompress(bytes, size).unwrap(),
        Method::Prefix => {
            let mut prefix = vec![0; 8];
            mine.iter().for_each(|page| prefix.extend(base(*page)));
            after(&prefix, bytes, size)
        }
        Method::Dictionary => after(&dictionary(bytes[0]), &bytes[1..], size),
        _ => {
            let mut plain = vec![0; size];
            assert_eq!(zstd_safe::decompress(plain.as_mut_slice(), bytes), Ok(size));
            plain
        }
    };
    let pages = packed.chunks(4096).zip(mine).map(|(plain, page)| match method {
        Method::XorLz4 | Method::XorZstd => plain.iter().zip(base(*page)).map(|(new, old)| new ^ old).collect(),
        Method::Planes => (0..4096).map(|byte| plain[byte % 8 * 512 + byte / 8]).collect(),
        Method::NarrowPlanes => (0..4096).map(|byte| plain[byte % 4 * 1024 + byte / 4]).collect(),
        _ => plain.to_vec(),
    });
    pages.collect()
}

/// The `size` bytes of a frame that stands after `before`.
fn after(before: &[u8], frame: &[u8], size: usize) -> Vec<u8> {
    let mut plain = vec![0; size];
    let mut frames = zstd_safe::DCtx::create();
    frames.ref_prefix(before).unwrap();
    let mut input = zstd_safe::InBuffer::around(frame);
    let mut output = zstd_safe::OutBuffer::around(plain.as_mut_slice());
    while frames.decompress_stream(&mut output, &mut input).unwrap() != 0 {}
    plain
}
