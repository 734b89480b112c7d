//! Round trips over every mixture of page kinds, and what the encoder promises about them.

use std::cell::Cell;

use super::dictionary::held;
use super::{EFFORTS, all, round_trip, round_trip_with, wire};
use crate::{Bases, DecodeError, Decoder, Effort, EncodeError, Encoder, MAX_PAGES, Method, PAGE_BYTES, Request};
use proptest::prelude::*;

/// What a page looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Zero,
    Constant(u8),
    Text(u64),
    Words(u64),
    Random(u64),
    /// Half random, half zero.
    Half(u64),
    /// An earlier page with some bytes changed; with 0 changes an exact copy.
    Near(usize, u16),
}

/// What the receiver holds for a page.
#[derive(Debug, Clone, Copy)]
enum Old {
    Absent,
    Same,
    Edited(u16),
    Unrelated(u64),
}

pub(crate) fn random(mut state: u64) -> impl Iterator<Item = u8> {
    state |= 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    })
    .flatten()
}

fn edit(page: &mut [u8], edits: u16) {
    for place in 0..usize::from(edits) {
        page[place * 997 % PAGE_BYTES] ^= 0x5a;
    }
}

pub(super) fn build(kinds: &[Kind]) -> Vec<u8> {
    let mut pages = Vec::new();
    for kind in kinds {
        let page: Vec<u8> = match *kind {
            Kind::Zero => vec![0; PAGE_BYTES],
            Kind::Constant(byte) => vec![byte; PAGE_BYTES],
            Kind::Text(seed) => {
                random(seed).map(|byte| b"etaoin shrdlu.\n\t"[usize::from(byte % 16)]).take(PAGE_BYTES).collect()
            }
            Kind::Words(seed) => (0..512)
                .flat_map(|word| (seed | 0xffff_8880_0000_0000).wrapping_add(word * word * 64).to_le_bytes())
                .collect(),
            Kind::Random(seed) => random(seed).take(PAGE_BYTES).collect(),
            Kind::Half(seed) => {
                random(seed).take(PAGE_BYTES / 2).chain(std::iter::repeat_n(0, PAGE_BYTES / 2)).collect()
            }
            Kind::Near(of, edits) => {
                let earlier = pages.chunks(PAGE_BYTES).nth(of).map_or_else(|| vec![7; PAGE_BYTES], <[u8]>::to_vec);
                let mut page = earlier;
                edit(&mut page, edits);
                page
            }
        };
        pages.extend(page);
    }
    pages
}

pub(super) fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        2 => Just(Kind::Zero),
        1 => any::<u8>().prop_map(Kind::Constant),
        2 => any::<u64>().prop_map(Kind::Text),
        2 => any::<u64>().prop_map(Kind::Words),
        2 => any::<u64>().prop_map(Kind::Random),
        1 => any::<u64>().prop_map(Kind::Half),
        2 => (0_usize..24, 0_u16..600).prop_map(|(of, edits)| Kind::Near(of, edits)),
        1 => (0_usize..24).prop_map(|of| Kind::Near(of, 0)),
    ]
}

fn olds() -> impl Strategy<Value = Old> {
    prop_oneof![
        Just(Old::Absent),
        Just(Old::Same),
        (1_u16..2000).prop_map(Old::Edited),
        any::<u64>().prop_map(Old::Unrelated),
    ]
}

fn build_old(pages: &[u8], olds: &[Old]) -> ([u64; 4], Vec<u8>) {
    let mut mask = [0; 4];
    let mut bytes = Vec::new();
    for (index, (page, old)) in pages.chunks(PAGE_BYTES).zip(olds).enumerate() {
        let mut base = page.to_vec();
        match old {
            Old::Absent | Old::Same => {}
            Old::Edited(edits) => edit(&mut base, *edits),
            Old::Unrelated(seed) => base = random(*seed).take(PAGE_BYTES).collect(),
        }
        if !matches!(old, Old::Absent) {
            mask[index / 64] |= 1 << (index % 64);
        }
        bytes.extend(base);
    }
    (mask, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_mixture_comes_back(mix in prop::collection::vec((kinds(), olds()), 0..48), effort in 0..EFFORTS.len()) {
        let (kinds, olds): (Vec<_>, Vec<_>) = mix.into_iter().unzip();
        let pages = build(&kinds);
        let (present, bytes) = build_old(&pages, &olds);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        round_trip(&mut encoder, &mut decoder, &pages, &Bases::none(), EFFORTS[effort]);
        round_trip(&mut encoder, &mut decoder, &pages, &Bases::new(present, &bytes), EFFORTS[effort]);
        let both = (&mut encoder, &mut decoder);
        let numbers: Vec<_> = (0..17).map(|page| (page % 3 == 1).then_some(page * 0x0123_4567)).collect();
        let like: Vec<_> = (0..40).map(|page| (page % 3 == 2).then_some(page * 0x0123_4567)).collect();
        let bases = Bases::new(present, &bytes).with_pages_of_baseline(&numbers).with_pages_like_baseline(&like);
        round_trip_with(both, &pages, &bases, EFFORTS[effort], &held(3, 256));
    }
}

#[test]
fn every_method_is_chosen_where_it_belongs() {
    let kinds = [
        (Kind::Zero, Method::Zero),
        (Kind::Text(1), Method::Zstd),
        (Kind::Near(1, 0), Method::CopyOf),
        (Kind::Words(0), Method::Planes),
        (Kind::Random(5), Method::Raw),
    ];
    let pages = build(&kinds.map(|(kind, _)| kind));
    let done = round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &Bases::none(), Effort::Balanced);
    assert!(!done.raw_tail);
    for (_, method) in kinds {
        assert_eq!(done.stats.of(method).pages, 1, "{method:?}");
    }
    let (_, old) = build_old(&pages, &[Old::Same, Old::Same, Old::Edited(9), Old::Edited(800), Old::Absent]);
    let bases = Bases::new(all(4), &old);
    for (effort, methods) in [
        (Effort::Balanced, vec![Method::Zero, Method::Same, Method::XorZstd, Method::Prefix, Method::Raw]),
        (Effort::Fast, vec![Method::Zero, Method::Same, Method::XorLz4, Method::Lz4, Method::Raw]),
        (Effort::Raw, vec![Method::Zero, Method::Raw]),
    ] {
        let done = round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &bases, effort);
        let used: Vec<Method> = done.stats.used().map(|(method, _)| method).collect();
        assert!(methods.iter().all(|method| used.contains(method)), "{effort:?}: {used:?}");
    }
}

// spec: K-13
#[test]
fn a_page_like_one_of_the_baseline_travels_as_its_number_and_what_differs() {
    let pages = build(&[Kind::Text(1), Kind::Random(2), Kind::Text(3), Kind::Random(4)]);
    let olds = [Old::Edited(400), Old::Edited(40), Old::Edited(400), Old::Absent];
    let (present, old) = build_old(&pages, &olds);
    let numbers = [Some(0x0403_0201), Some(7), None, Some(9)];
    let bases = Bases::new(present, &old).with_pages_like_baseline(&numbers);
    for effort in EFFORTS {
        let (block, done) = wire(&mut Encoder::new(), &pages, &bases, effort);
        let used = !matches!(effort, Effort::Raw | Effort::Fast);
        assert_eq!(done.stats.of(Method::LikeBaseline).pages, if used { 2 } else { 0 }, "{effort:?}");
        let group = [0x0d, 1];
        let at = block.windows(2).rposition(|bytes| bytes == group).filter(|_| used);
        let numbers = at.and_then(|at| block.get(at + 6..at + 14));
        assert_eq!(numbers.is_some_and(|numbers| numbers == [1, 2, 3, 4, 7, 0, 0, 0]), used, "{effort:?}");
        assert!(!used || block.len() < PAGE_BYTES + 2500, "{effort:?}: {} bytes", block.len());
        let xor = done.stats.of(Method::XorLz4).pages + done.stats.of(Method::XorZstd).pages;
        assert!(xor <= 1, "{effort:?}: the sink does not hold that in their places");
        round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &bases, effort);
    }
}

#[test]
fn an_old_page_that_has_nothing_in_common_is_no_base() {
    let pages = build(&[Kind::Text(1), Kind::Words(2)]);
    let (present, old) = build_old(&pages, &[Old::Unrelated(5), Old::Unrelated(6)]);
    let bases = Bases::new(present, &old);
    for effort in [Effort::Light, Effort::Balanced, Effort::Thorough(1), Effort::Thorough(12)] {
        let done = round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &bases, effort);
        let none = round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &Bases::none(), effort);
        assert_eq!(done.stats, none.stats, "{effort:?}");
    }
}

// spec: K-12
#[test]
fn pages_of_the_baseline_travel_as_their_numbers_whatever_the_effort() {
    let pages = build(&[Kind::Random(1), Kind::Zero, Kind::Text(1), Kind::Random(2), Kind::Random(1)]);
    let (_, old) = build_old(&pages, &[Old::Same, Old::Absent, Old::Edited(9), Old::Absent, Old::Absent]);
    let numbers = [Some(0x0403_0201), Some(9), Some(u32::MAX)];
    let bases = Bases::new(all(1), &old).with_pages_of_baseline(&numbers);
    for effort in EFFORTS {
        let (block, done) = wire(&mut Encoder::new(), &pages, &bases, effort);
        assert_eq!(done.stats.of(Method::OfBaseline).pages, 2, "{effort:?}: zeros are told for less");
        let group = [0x0c, 1, 8, 0, 0, 0, 1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff];
        assert!(block.windows(group.len()).any(|bytes| bytes == group), "{effort:?}");
        round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &bases, effort);
    }
}

#[test]
fn narrow_words_are_split_where_forms_are_tried() {
    let counters: Vec<u8> = (0..1024_u32).flat_map(|word| (0x0a00_0000 + word * word * 7).to_le_bytes()).collect();
    let pages = [build(&[Kind::Text(1), Kind::Words(0)]), counters].concat();
    let done = round_trip(&mut Encoder::new(), &mut Decoder::new(), &pages, &Bases::none(), Effort::Thorough(12));
    for method in [Method::Zstd, Method::Planes, Method::NarrowPlanes] {
        assert_eq!(done.stats.of(method).pages, 1, "{method:?}");
    }
}

#[test]
fn random_pages_cost_eleven_bytes_and_no_copy() {
    let pages = build(&(1..=256).map(|seed| Kind::Random(seed * 0x9e37_79b9)).collect::<Vec<_>>());
    for effort in EFFORTS {
        let mut head = Vec::new();
        let done = Encoder::new().encode(&pages, &Bases::none(), effort, &mut head).unwrap();
        assert!(done.raw_tail, "{effort:?}: {:?}", done.stats);
        assert_eq!(head.len(), 11);
        let block = [head, pages.clone()].concat();
        let mut scratch = Vec::new();
        let plain = Decoder::new().decode(&block, 256, &mut Bases::none(), &mut scratch).unwrap();
        assert!(plain == pages && std::ptr::eq(plain.as_ptr(), block[11..].as_ptr()), "no copy");
        assert!(scratch.is_empty());
    }
}

#[test]
fn zero_and_empty_extents_are_a_few_bytes() {
    for (pages, length) in [(0, 3), (1, 5), (256, 5)] {
        let (block, done) = wire(&mut Encoder::new(), &vec![0; pages * PAGE_BYTES], &Bases::none(), Effort::Raw);
        assert_eq!((block.len(), done.raw_tail), (length, false));
        round_trip(
            &mut Encoder::new(),
            &mut Decoder::new(),
            &vec![0; pages * PAGE_BYTES],
            &Bases::none(),
            Effort::Fast,
        );
    }
}

#[test]
fn old_pages_that_look_like_a_dictionary_are_only_bytes() {
    let mut old = build(&[Kind::Text(3)]);
    old[..4].copy_from_slice(&[0x37, 0xa4, 0x30, 0xec]);
    let mut new = old.clone();
    edit(&mut new, 300);
    let bases = Bases::new(all(1), &old);
    let done = round_trip(&mut Encoder::new(), &mut Decoder::new(), &new, &bases, Effort::Balanced);
    assert_eq!(done.stats.of(Method::Prefix).pages, 1);
}

// spec: K-9
#[test]
fn a_wrong_base_gives_other_bytes_and_a_missing_one_an_error() {
    let old = build(&[Kind::Text(3), Kind::Text(4)]);
    let mut new = old.clone();
    edit(&mut new[..PAGE_BYTES], 300);
    edit(&mut new[PAGE_BYTES..], 5);
    let (block, _) = wire(&mut Encoder::new(), &new, &Bases::new(all(2), &old), Effort::Balanced);
    let mut scratch = Vec::new();
    let mut wrong = |_: usize, into: &mut [u8]| {
        into.fill(1);
        Ok(())
    };
    let plain = Decoder::new().decode(&block, 2, &mut wrong, &mut scratch).unwrap();
    assert!(plain.len() == new.len() && plain != new, "the digest of the extent has to catch this");
    let error = Decoder::new().decode(&block, 2, &mut Bases::none(), &mut scratch).unwrap_err();
    assert!(matches!(error, DecodeError::BaseMissing { .. }), "{error}");
    assert!(scratch.is_empty());
}

#[test]
fn misuse_is_refused_and_writes_nothing() {
    let mut out = vec![1, 2, 3];
    let mut encode = |bytes: usize, bases: &Bases<'_>, effort: Effort| {
        let error = Encoder::new().encode(&vec![9; bytes], bases, effort, &mut out).unwrap_err();
        assert_eq!(out, [1, 2, 3]);
        error
    };
    let none = Bases::none();
    assert_eq!(encode(4095, &none, Effort::Fast), EncodeError::PartialPage { bytes: 4095 });
    let pages = MAX_PAGES + 1;
    assert_eq!(encode(pages * PAGE_BYTES, &none, Effort::Fast), EncodeError::TooManyPages { pages });
    assert_eq!(encode(PAGE_BYTES, &none, Effort::Thorough(0)), EncodeError::Level { level: 0 });
    assert_eq!(encode(PAGE_BYTES, &none, Effort::Thorough(13)), EncodeError::Level { level: 13 });
    let short = Bases::new(all(2), &[0; PAGE_BYTES]);
    assert_eq!(encode(2 * PAGE_BYTES, &short, Effort::Fast), EncodeError::BaseBeyondEnd { page: 1, bytes: PAGE_BYTES });
}

#[test]
fn each_step_is_timed_by_the_clock_of_the_caller_and_all_of_it_together() {
    let mut pages: Vec<u8> = random(7).take(4 * PAGE_BYTES).collect();
    pages.extend(vec![0; PAGE_BYTES]);
    pages.extend(b"some text of many words, ".iter().copied().cycle().take(4 * PAGE_BYTES));
    let clock = Cell::new(0);
    // A clock that goes on by a microsecond with each look.
    let tick = || clock.replace(clock.get() + 1000);
    let mut timed = Vec::new();
    let none = Bases::none();
    let request = Request { clock: &tick, ..Request::new(&none, Effort::Balanced) };
    let done = Encoder::new().encode_with(&pages, &request, &mut timed).unwrap();
    let nanos = |method| done.stats.of(method).nanos;
    assert_eq!((done.stats.look_nanos, nanos(Method::Zstd), nanos(Method::Raw)), (1000, 1000, 1000));
    assert_eq!((nanos(Method::Zero), done.stats.nanos()), (0, 1000 * 3), "{:?}", done.stats);
    let mut block = Vec::new();
    let plain = Encoder::new().encode(&pages, &Bases::none(), Effort::Balanced, &mut block).unwrap();
    assert_eq!((block, plain.stats.nanos()), (timed, 0), "a clock changes no byte");
}
