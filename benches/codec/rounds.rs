//! What a transfer has to send: the first round, the pages that changed since, those of them that hardly changed, and a whole
//! guest whose old image is known.

use std::collections::HashMap;

use dwcp_hde::{PAGE_BYTES, is_zero};

use crate::corpus::Workload;

/// Some pages of a snapshot, and what the sink holds in their place.
#[derive(Debug)]
pub struct Round<'a> {
    pub workload: &'a str,
    /// `first`, `dirty1`, `sparse1`, `dirty2`, `sparse2`, ..., `warm`.
    pub name: String,
    /// The snapshot.
    pub image: &'a [u8],
    /// What the sink holds, page by page; `None`: zeros.
    pub old: Option<&'a [u8]>,
    /// The pages in question as (number in the guest, place in the image), rising.
    pub pages: Vec<(u32, usize)>,
    /// Those of them that are not zero, packed.
    pub solid: Vec<u8>,
    /// How many are zero.
    pub zero_pages: usize,
    /// The old image is a baseline: one of its pages of each content, which may be named wherever it stands (K-12).
    pub baseline: Option<HashMap<&'a [u8], u32>>,
    /// Of how many pages of another round these were chosen.
    pub chosen_of: Option<usize>,
}

/// Bytes of a page that may have changed in a round of sparse changes.
const SPARSE_BYTES: usize = 64;

impl Round<'_> {
    /// The page at a place of the image.
    pub fn page(&self, place: usize) -> &[u8] {
        page(self.image, place)
    }

    /// What the sink holds at a place of the image, if that is anything but zeros.
    pub fn old_page(&self, place: usize) -> Option<&[u8]> {
        self.old.map(|old| page(old, place))
    }
}

fn page(image: &[u8], place: usize) -> &[u8] {
    &image[place * PAGE_BYTES..][..PAGE_BYTES]
}

/// Every round that the snapshots of a workload make.
pub fn of(workload: &Workload) -> Vec<Round<'_>> {
    let [first, later @ ..] = workload.snapshots.as_slice() else { return Vec::new() };
    let places = 0..workload.numbers.len();
    let mut rounds = vec![round(workload, "first".into(), first, None, (0..workload.first_round).collect())];
    for (old, (new, number)) in workload.snapshots.iter().zip(later.iter().zip(1..)) {
        let changed: Vec<usize> = places.clone().filter(|place| page(old, *place) != page(new, *place)).collect();
        let (all, mut sparse) = (changed.len(), changed.clone());
        sparse.retain(|place| different(page(old, *place), page(new, *place)) <= SPARSE_BYTES);
        rounds.push(round(workload, format!("dirty{number}"), new, Some(old), changed));
        let sparse = round(workload, format!("sparse{number}"), new, Some(old), sparse);
        rounds.push(Round { chosen_of: Some(all), ..sparse });
    }
    if let Some(last) = later.last() {
        let sent = |place: &usize| !is_zero(page(last, *place)) || !is_zero(page(first, *place));
        let warm = round(workload, "warm".into(), last, Some(first), places.filter(sent).collect());
        let numbered = first.chunks_exact(PAGE_BYTES).zip(0..).filter(|(page, _)| !is_zero(page));
        rounds.push(Round { baseline: Some(numbered.collect()), ..warm });
    }
    rounds
}

fn different(old: &[u8], new: &[u8]) -> usize {
    old.iter().zip(new).filter(|(old, new)| old != new).count()
}

fn round<'a>(
    workload: &'a Workload,
    name: String,
    image: &'a [u8],
    old: Option<&'a [u8]>,
    places: Vec<usize>,
) -> Round<'a> {
    let mut pages: Vec<(u32, usize)> = places.into_iter().map(|place| (workload.numbers[place], place)).collect();
    pages.sort_unstable();
    let solid: Vec<u8> =
        pages.iter().map(|(_, place)| page(image, *place)).filter(|page| !is_zero(page)).flatten().copied().collect();
    let zero_pages = pages.len() - solid.len() / PAGE_BYTES;
    Round { workload: &workload.name, name, image, old, pages, solid, zero_pages, baseline: None, chosen_of: None }
}
