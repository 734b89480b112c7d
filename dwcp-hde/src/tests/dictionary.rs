//! Dictionaries: where they are used, what they save, and what a wrong one does.

use super::mixture::{Kind, build};
use super::{EFFORTS, random, round_trip_with, wire_with};
use crate::{Bases, Decoder, Dictionaries, Dictionary, Effort, Encoder, MAX_DICTIONARIES, Method, PAGE_BYTES, train};

/// A dictionary of text like that of [`Kind::Text`] and of noise, agreed on under this number, for groups of this size.
pub(super) fn held(number: u8, most_pages: usize) -> Dictionaries {
    let text = build(&[Kind::Text(1), Kind::Text(2), Kind::Near(0, 40)]);
    let content: Vec<u8> = random(5).take(PAGE_BYTES).chain(text).collect();
    agreed(number, &Dictionary::new(content).unwrap()).for_groups_of(most_pages)
}

fn agreed(number: u8, dictionary: &Dictionary) -> Dictionaries {
    let offered: Vec<Dictionary> = (0..MAX_DICTIONARIES).map(|_| dictionary.clone()).collect();
    Dictionaries::agreed(&offered, 1 << number)
}

/// Pages of sentences out of 500, no two in the same order: what a page cannot learn of itself, and others can tell it.
fn sentences(first: u64, pages: u64) -> Vec<u8> {
    let sentence = |number: u64| {
        let letters = random(number * 2 + 1).map(|byte| b"etaoin shrdlucmfw"[usize::from(byte % 17)]);
        letters.take(60 + usize::try_from(number % 9).unwrap())
    };
    let page = |page: u64| (0..80).flat_map(move |place| sentence((page * 7919 + place * (2 * page + 1)) % 500));
    (first..first + pages).flat_map(|number| page(number).take(PAGE_BYTES)).collect()
}

/// Those that use a dictionary.
const EFFORTS_USING: [Effort; 4] = [Effort::Balanced, Effort::Thorough(1), Effort::Thorough(6), Effort::Thorough(12)];

#[test]
fn a_dictionary_of_other_pages_makes_small_extents_smaller() {
    let dictionary = train(&sentences(1000, 200), 16 * 1024).unwrap().dictionary;
    let pages = sentences(0, 1);
    for effort in EFFORTS_USING {
        let size = |dictionaries: &Dictionaries| {
            let both = (&mut Encoder::new(), &mut Decoder::new());
            round_trip_with(both, &pages, &Bases::none(), effort, dictionaries).stats.bytes_out()
        };
        let (without, with) = (size(&Dictionaries::none()), size(&agreed(0, &dictionary)));
        assert!(with * 5 < without * 3, "{effort:?}: {with} bytes with the dictionary, {without} without");
    }
}

#[test]
fn only_few_pages_go_by_the_dictionary_and_only_by_zstd() {
    let dictionaries = agreed(2, &train(&sentences(1000, 200), 16 * 1024).unwrap().dictionary);
    for effort in EFFORTS {
        let most = match effort {
            Effort::Raw | Effort::Fast | Effort::Light | Effort::Thorough(5) => 0,
            Effort::Thorough(6..) => 16,
            _ => 4,
        };
        for pages in [1, 4, 5, 16, 17] {
            let (block, done) =
                wire_with(&mut Encoder::new(), &sentences(0, pages), &Bases::none(), effort, &dictionaries);
            let by_dictionary = done.stats.of(Method::Dictionary).pages;
            assert_eq!(by_dictionary, if pages <= most { pages } else { 0 }, "{effort:?}, {pages} pages");
            if by_dictionary > 0 {
                assert_eq!(block[11], 2, "the dictionary's number");
            }
        }
    }
}

#[test]
fn one_encoder_follows_another_dictionary_and_effort_at_once() {
    let dictionaries: Vec<Dictionaries> =
        [0, 1000].map(|first| agreed(1, &train(&sentences(first, 100), 8 * 1024).unwrap().dictionary)).into();
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for turn in 0..12_usize {
        let pages = sentences(u64::try_from(turn).unwrap() * 7, 2);
        let effort = EFFORTS_USING[turn % 4];
        let both = (&mut encoder, &mut decoder);
        let done = round_trip_with(both, &pages, &Bases::none(), effort, &dictionaries[turn % 2]);
        assert_eq!(done.stats.of(Method::Dictionary).pages, 2);
        let both = (&mut encoder, &mut decoder);
        let done = round_trip_with(both, &pages, &Bases::none(), effort, &Dictionaries::none());
        assert_eq!(done.stats.of(Method::Zstd).pages, 2);
    }
}

#[test]
fn random_pages_stay_raw_and_make_no_larger_block() {
    let random_page: Vec<u8> = random(3).take(PAGE_BYTES).collect();
    let half = build(&[Kind::Half(3)]);
    for pages in [random_page, half] {
        for effort in EFFORTS {
            let (with, _) = wire_with(&mut Encoder::new(), &pages, &Bases::none(), effort, &held(0, 256));
            assert!(with.len() <= 11 + pages.len());
        }
    }
}

#[test]
fn another_dictionary_gives_other_bytes_or_an_error_and_never_more() {
    let pages = sentences(0, 3);
    let right = train(&sentences(1000, 200), 16 * 1024).unwrap().dictionary;
    let (block, done) = wire_with(&mut Encoder::new(), &pages, &Bases::none(), Effort::Balanced, &agreed(0, &right));
    assert_eq!(done.stats.of(Method::Dictionary).pages, 3);
    let mut scratch = Vec::new();
    // As long as the right one: what it says is wrong, and the digest of the extent has to catch it.
    let mut flipped = right.bytes().to_vec();
    flipped.iter_mut().for_each(|byte| *byte ^= 1);
    let flipped = agreed(0, &Dictionary::new(flipped).unwrap());
    let plain = Decoder::new().decode_with(&block, 3, &mut Bases::none(), &flipped, &mut scratch).unwrap();
    assert!(plain.len() == pages.len() && plain != pages);
    // A shorter one does not reach back to where the block points.
    let short = agreed(0, &Dictionary::new(right.bytes()[..256].to_vec()).unwrap());
    match Decoder::new().decode_with(&block, 3, &mut Bases::none(), &short, &mut scratch) {
        Ok(plain) => assert!(plain.len() == pages.len() && plain != pages),
        Err(_) => assert!(scratch.is_empty()),
    }
}
