//! Pages of images, to learn from.

use std::path::PathBuf;

use dwcp_core::guest::ImageSource;
use dwcp_core::{Guest, GuestError, PAGE_BYTES, RegionId};
use dwcp_hde::{MAX_TRAINING_PAGES, is_zero};

/// Pages read at once.
const BATCH: u32 = 256;

/// Every page that is not zero, or every second, fourth, ... of them where there are more than a training takes: from all
/// images alike, in their order.
pub(super) fn collect(files: Vec<PathBuf>) -> Result<Vec<u8>, GuestError> {
    let images = files.into_iter().map(ImageSource::open).collect::<Result<Vec<_>, _>>()?;
    let mut kept = Kept { pages: Vec::new(), step: 1, seen: 0 };
    let mut batch = Vec::new();
    for image in images {
        let pages = u32::try_from(image.layout().pages()).unwrap_or(u32::MAX);
        let mut first = 0;
        while first < pages {
            let count = BATCH.min(pages - first);
            batch.resize(usize::try_from(count).unwrap_or(0) * PAGE_BYTES, 0);
            image.read(RegionId(0), first, &mut batch)?;
            batch.chunks_exact(PAGE_BYTES).filter(|page| !is_zero(page)).for_each(|page| kept.take(page));
            first += count;
        }
    }
    Ok(kept.pages)
}

/// Each `step`th page that was seen.
struct Kept {
    pages: Vec<u8>,
    step: u64,
    seen: u64,
}

impl Kept {
    fn take(&mut self, page: &[u8]) {
        let wanted = self.seen.is_multiple_of(self.step);
        self.seen += 1;
        if !wanted {
            return;
        }
        if self.pages.len() >= MAX_TRAINING_PAGES * PAGE_BYTES {
            self.halve();
            if !(self.seen - 1).is_multiple_of(self.step) {
                return;
            }
        }
        self.pages.extend_from_slice(page);
    }

    fn halve(&mut self) {
        let even: Vec<u8> = self.pages.chunks_exact(PAGE_BYTES).step_by(2).flatten().copied().collect();
        self.pages = even;
        self.step *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_even_over_all_that_was_seen() {
        let mut kept = Kept { pages: Vec::new(), step: 1, seen: 0 };
        let many = u32::try_from(MAX_TRAINING_PAGES * 3).unwrap();
        for number in 1..=many {
            let mut page = vec![0; PAGE_BYTES];
            page[..4].copy_from_slice(&number.to_le_bytes());
            kept.take(&page);
        }
        let numbers: Vec<u32> =
            kept.pages.chunks_exact(PAGE_BYTES).map(|page| u32::from_le_bytes(page[..4].try_into().unwrap())).collect();
        assert!(numbers.len() <= MAX_TRAINING_PAGES && numbers.len() > MAX_TRAINING_PAGES / 2);
        assert!(numbers.windows(2).all(|two| two[1] - two[0] == 4), "every fourth");
        assert!(*numbers.last().unwrap() > many - 5);
    }
}
