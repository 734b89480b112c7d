//! The bytes of a block: the only place in this crate that knows a byte offset. All integers are little-endian.
//!
//! ```text
//! block  = head, page table, groups to the end of the block
//!
//!          0         1         3
//!          +---------+---------+
//! head     | version | pages   |            version 0x01, pages u16 (0..=256)
//!          +---------+---------+
//! table    | method  | run - 1 |  ...       one entry per run of pages with one method, until `pages` are covered
//!          +---------+---------+----------------+-----------
//! group    | method  | pages-1 | length u32     | bytes ...
//!          +---------+---------+----------------+-----------
//! ```
//!
//! A group carries the next pages of its method, in page order. `zero` and `same` pages have no group. A block whose pages
//! are all raw has one group, whose bytes are the plain pages: the *raw tail*, which a sender need not copy.

use crate::{DecodeError, MAX_PAGES, Method, PAGE_BYTES};

/// The format this crate writes and reads.
const VERSION: u8 = 0x01;
/// Bytes of the head.
const HEAD_BYTES: usize = 3;
/// Bytes of one entry of the page table.
const RUN_BYTES: usize = 2;
/// Bytes before the payload of a group.
pub(crate) const GROUP_HEAD_BYTES: usize = 6;

/// Bytes of the number of a page of a baseline.
pub(crate) const NUMBER_BYTES: usize = 4;

/// The largest block of [`MAX_PAGES`] pages: what a receiver must be ready to buffer, and never more.
pub const MAX_BLOCK_BYTES: usize = max_block_bytes(MAX_PAGES);

/// The largest block of `pages` pages in bytes: each page a run and a group of its own, each group as long as its plain
/// pages (a longer one is never written and always refused). Counts above [`MAX_PAGES`] give the bound of `MAX_PAGES`.
pub const fn max_block_bytes(pages: usize) -> usize {
    let pages = if pages > MAX_PAGES { MAX_PAGES } else { pages };
    HEAD_BYTES + pages * (RUN_BYTES + GROUP_HEAD_BYTES + PAGE_BYTES)
}

/// Appends head and page table for the pages of `plan` (at most [`MAX_PAGES`]).
pub(crate) fn write_head(out: &mut Vec<u8>, plan: &[Method]) {
    out.push(VERSION);
    out.extend_from_slice(&u16::try_from(plan.len()).unwrap_or_default().to_le_bytes());
    for run in plan.chunk_by(|left, right| left == right) {
        if let (Some(method), Ok(more)) = (run.first(), u8::try_from(run.len() - 1)) {
            out.extend_from_slice(&[method.number(), more]);
        }
    }
}

/// Appends the head of a group of `pages` pages (1 to [`MAX_PAGES`]) and `length` bytes (at most 1 MiB).
pub(crate) fn write_group(out: &mut Vec<u8>, method: Method, pages: usize, length: usize) {
    out.extend_from_slice(&group_head(method, pages, length));
}

/// The head of a group, as of [`write_group`].
pub(crate) fn group_head(method: Method, pages: usize, length: usize) -> [u8; GROUP_HEAD_BYTES] {
    let pages = u8::try_from(pages.saturating_sub(1)).unwrap_or_default();
    let [a, b, c, d] = u32::try_from(length).unwrap_or_default().to_le_bytes();
    [method.number(), pages, a, b, c, d]
}

/// One group as it stands in the block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) method: Method,
    pub(crate) pages: usize,
    pub(crate) bytes: &'a [u8],
    /// Where `bytes` stand in the block.
    pub(crate) at: usize,
}

/// Reads a block from front to back.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(block: &'a [u8]) -> Self {
        Self { rest: block, at: 0 }
    }

    /// Position of the next byte.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    /// Reads head and page table into `table`, which then has exactly `pages` entries. spec: K-1, K-2
    pub(crate) fn table(&mut self, pages: usize, table: &mut Vec<Method>) -> Result<(), DecodeError> {
        table.clear();
        if pages > MAX_PAGES {
            return Err(DecodeError::TooManyPages { pages });
        }
        let [version] = self.take()?;
        if version != VERSION {
            return Err(DecodeError::Version { at: 0, version });
        }
        let at = self.at;
        let claimed = usize::from(u16::from_le_bytes(self.take()?));
        if claimed != pages {
            return Err(DecodeError::PageCount { at, claimed, expected: pages });
        }
        while table.len() < pages {
            let at = self.at;
            let [number, more] = self.take()?;
            let method = Method::from_number(number).ok_or(DecodeError::UnknownMethod { at, number })?;
            let (run, left) = (usize::from(more) + 1, pages - table.len());
            if run > left {
                return Err(DecodeError::RunBeyondEnd { at, run, left });
            }
            table.extend(std::iter::repeat_n(method, run));
        }
        Ok(())
    }

    /// Reads the next group, `None` at the end of the block. spec: K-4, K-8
    pub(crate) fn group(&mut self) -> Result<Option<Group<'a>>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let at = self.at;
        let [number, more] = self.take()?;
        let method = Method::from_number(number).ok_or(DecodeError::UnknownMethod { at, number })?;
        let pages = usize::from(more) + 1;
        let length = usize::try_from(u32::from_le_bytes(self.take()?)).unwrap_or(usize::MAX);
        let plain = pages * PAGE_BYTES;
        let possible = match method {
            Method::Zero | Method::Same => {
                return Err(DecodeError::GroupWithoutBytes { at, method });
            }
            Method::Raw => length == plain,
            Method::CopyOf => length == pages,
            Method::OfBaseline => length == pages * NUMBER_BYTES,
            Method::LikeBaseline => pages * NUMBER_BYTES < length && length <= plain,
            _ => 0 < length && length <= plain,
        };
        if !possible {
            return Err(DecodeError::GroupLength { at, method, pages, length });
        }
        let at = self.at;
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return Err(DecodeError::Truncated { at, need: length - self.rest.len() });
        };
        self.rest = rest;
        self.at += length;
        Ok(Some(Group { method, pages, bytes, at }))
    }

    /// The bytes not read yet.
    pub(crate) const fn left(&self) -> usize {
        self.rest.len()
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((field, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated { at: self.at, need: N - self.rest.len() });
        };
        self.rest = rest;
        self.at += N;
        Ok(*field)
    }
}

/// The number of the dictionary that a [`Method::Dictionary`] group names, and its frame. A group is never empty (K-4).
pub(crate) fn split_dictionary(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((u8::MAX, bytes), |(number, frame)| (*number, frame))
}

/// The numbers of the pages that a [`Method::LikeBaseline`] group names, and its frame, which is not empty (K-4).
pub(crate) fn split_numbers(bytes: &[u8], pages: usize) -> (&[[u8; NUMBER_BYTES]], &[u8]) {
    let (numbers, frame) = bytes.split_at_checked(pages * NUMBER_BYTES).unwrap_or_default();
    (numbers.as_chunks().0, frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_block_never_change() {
        let mut block = Vec::new();
        write_head(&mut block, &[Method::Zero, Method::Zero, Method::CopyOf, Method::Raw]);
        write_group(&mut block, Method::CopyOf, 1, 1);
        block.push(0);
        write_group(&mut block, Method::Raw, 1, PAGE_BYTES);
        let expected = [0x01, 0x04, 0x00, 0x00, 0x01, 0x02, 0x00, 0x03, 0x00]; // version, pages, three runs
        let copy = [0x02, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00];
        let raw = [0x03, 0x00, 0x00, 0x10, 0x00, 0x00];
        assert_eq!(block, [expected.as_slice(), &copy, &raw].concat());
    }

    #[test]
    fn bounds_hold_for_the_largest_block() {
        assert_eq!(max_block_bytes(0), 3);
        assert_eq!(max_block_bytes(1), 3 + 2 + 6 + PAGE_BYTES);
        assert_eq!(max_block_bytes(usize::MAX), MAX_BLOCK_BYTES);
        let mut block = Vec::new();
        write_head(&mut block, &[Method::Raw; MAX_PAGES]);
        write_group(&mut block, Method::Raw, MAX_PAGES, MAX_PAGES * PAGE_BYTES);
        assert_eq!(block, [0x01, 0x00, 0x01, 0x03, 0xff, 0x03, 0xff, 0x00, 0x00, 0x10, 0x00]);
    }
}
