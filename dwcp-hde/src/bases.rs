//! The receiver's old pages, as the sender knows them ([`Bases`]) and as the receiver hands them out ([`BaseSource`]).

use crate::{BaseMissing, PAGE_BYTES};

/// What the sink already holds for each page of an extent, as the source's shadow knows it.
///
/// A base that is not what the sink really holds gives wrong plain bytes there, which the extent's digest catches: the
/// shadow must be right, but a wrong one costs a resend and never corrupts.
#[derive(Debug, Clone, Copy)]
pub struct Bases<'a> {
    present: [u64; 4],
    bytes: &'a [u8],
    of_baseline: &'a [Option<u32>],
    like_baseline: &'a [Option<u32>],
}

impl<'a> Bases<'a> {
    /// Nothing is known of the sink: no delta is made.
    pub const fn none() -> Self {
        Self { present: [0; 4], bytes: &[], of_baseline: &[], like_baseline: &[] }
    }

    /// Bit `i % 64` of `present[i / 64]` says that page `i`'s old content stands at `bytes[i * 4096..]`.
    /// Bytes of absent pages are never read, and `bytes` may end after the last present page.
    pub const fn new(present: [u64; 4], bytes: &'a [u8]) -> Self {
        Self { present, bytes, of_baseline: &[], like_baseline: &[] }
    }

    /// Page `i` equals page `numbers[i]` of the baseline that the sink holds, too; pages after the last equal none.
    #[must_use]
    pub const fn with_pages_of_baseline(self, numbers: &'a [Option<u32>]) -> Self {
        Self { of_baseline: numbers, ..self }
    }

    /// The base of page `i` is not what the sink holds in its place but page `numbers[i]` of the baseline that it holds, too;
    /// those after the last are what it holds.
    #[must_use]
    pub const fn with_pages_like_baseline(self, numbers: &'a [Option<u32>]) -> Self {
        Self { like_baseline: numbers, ..self }
    }

    /// The page of the baseline that is the base of page `page`.
    pub fn like_baseline(&self, page: usize) -> Option<u32> {
        self.like_baseline.get(page).copied().flatten()
    }

    /// The page of the baseline that page `page` equals.
    pub fn of_baseline(&self, page: usize) -> Option<u32> {
        self.of_baseline.get(page).copied().flatten()
    }

    /// Whether page `page` has a base.
    pub fn has(&self, page: usize) -> bool {
        self.present.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether any page has one.
    pub fn any(&self) -> bool {
        self.present != [0; 4]
    }

    /// Length of the base bytes.
    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The base of page `page`.
    pub fn get(&self, page: usize) -> Option<&'a [u8]> {
        if !self.has(page) {
            return None;
        }
        let start = page.checked_mul(PAGE_BYTES)?;
        self.bytes.get(start..start.checked_add(PAGE_BYTES)?)
    }
}

/// Where a decoder finds the old content of a page: the sink's own memory.
///
/// Closures `FnMut(usize, &mut [u8]) -> Result<(), BaseMissing>` are base sources, and so is [`Bases`].
pub trait BaseSource {
    /// Fills `into`, one page long, with the old content of page `page` of the extent (not of the guest).
    ///
    /// # Errors
    /// [`BaseMissing`] when there is none; the block is refused then.
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing>;

    /// Fills `into`, one page long, with page `number` of the baseline that both ends hold.
    ///
    /// # Errors
    /// [`BaseMissing`] when there is none, as where no baseline was agreed on; the block is refused then.
    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        let _ = (number, into);
        Err(BaseMissing)
    }
}

impl<F: FnMut(usize, &mut [u8]) -> Result<(), BaseMissing>> BaseSource for F {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        self(page, into)
    }
}

impl BaseSource for Bases<'_> {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        match self.get(page) {
            Some(old) if old.len() == into.len() => {
                into.copy_from_slice(old);
                Ok(())
            }
            _ => Err(BaseMissing),
        }
    }
}
