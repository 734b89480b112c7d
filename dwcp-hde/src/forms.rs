//! In which form a page packs best: plain, or as byte planes of one width or the other. Found by trying.
//!
//! Every form goes through zstd's cheapest search, which ranks them as a thorough one would: on real first rounds it takes 0.1
//! points less than trying with level 1, at half the price. Against the look of [`crate::choose::form`] it saves 0.2 to 0.4 points
//! where both are searched alike.

use crate::codec::zstd::{Packer, Search};
use crate::{Method, PAGE_BYTES, planes};

/// A page that looks random is packed when it becomes no longer than this.
const WORTHWHILE: usize = PAGE_BYTES - PAGE_BYTES / 64;

/// Tries forms. Keeps its tables and two pages.
pub(crate) struct Forms {
    packer: Packer,
    split: Vec<u8>,
    packed: Vec<u8>,
}

impl Forms {
    pub(crate) const fn new() -> Self {
        Self { packer: Packer::new(), split: Vec::new(), packed: Vec::new() }
    }

    /// The method whose form of `page`, which is one page long, packs into the fewest bytes. A page that looks `random` and of
    /// which no form packs stays raw; others may still be made of few values, which the trial does not see.
    pub(crate) fn best(&mut self, page: &[u8], random: bool) -> Method {
        self.split.resize(PAGE_BYTES, 0);
        self.packed.resize(PAGE_BYTES, 0);
        let mut length = |form: &[u8]| self.packer.pack(form, Search::Trial, &mut self.packed).unwrap_or(PAGE_BYTES);
        let plain = length(page);
        planes::split(page, &mut self.split);
        let wide = length(&self.split);
        planes::split_narrow(page, &mut self.split);
        let narrow = length(&self.split);
        if random && plain.min(wide).min(narrow) > WORTHWHILE {
            Method::Raw
        } else if plain <= wide.min(narrow) {
            Method::Zstd
        } else if wide <= narrow {
            Method::Planes
        } else {
            Method::NarrowPlanes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(words: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
        words.flatten().take(PAGE_BYTES).collect()
    }

    #[test]
    fn each_form_wins_where_it_belongs() {
        let mut forms = Forms::new();
        let text = page(std::iter::repeat(b"the quick brown fox jumps over the lazy dog".to_vec()));
        let pointers =
            page((0..512_u64).map(|word| (0xffff_8880_1234_0000 + word * word * 192).to_le_bytes().to_vec()));
        let counters = page((0..1024_u32).map(|word| (0x0a00_0000 + word * word * 7).to_le_bytes().to_vec()));
        for (page, form) in [(text, Method::Zstd), (pointers, Method::Planes), (counters, Method::NarrowPlanes)] {
            assert_eq!(forms.best(&page, false), form);
            assert_eq!(forms.best(&page, true), form, "a look that was wrong");
        }
    }
}
