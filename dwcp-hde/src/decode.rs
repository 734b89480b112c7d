//! A block to pages: everything that a head claims is checked before any work, and nothing half-decoded ever leaves.

use crate::block::{self, Group, NUMBER_BYTES, Reader};
use crate::codec::zstd::Before;
use crate::codec::{lz4, zstd};
use crate::encode::PREFIX_GUARD;
use crate::{BaseSource, DecodeError, Dictionaries, Method, PAGE_BYTES, delta, planes};

/// Unpacks blocks. Keeps its tables and buffers, so one decoder per worker; no allocation after warm-up.
pub struct Decoder {
    table: Vec<Method>,
    /// Plain (or still XORed, or still split) pages of one group, side by side.
    packed: Vec<u8>,
    prefix: Vec<u8>,
    picked: Vec<usize>,
    zstd: zstd::Unpacker,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// Which pages of a block need the receiver's old content: bit `i % 64` of word `i / 64` for page `i`. Reads the head only.
///
/// # Errors
/// The head is broken or claims another number of pages.
pub fn needs_bases(block: &[u8], pages: usize) -> Result<[u64; 4], DecodeError> {
    let mut table = Vec::new();
    Reader::new(block).table(pages, &mut table)?;
    let mut needed = [0; 4];
    for (index, _) in table.iter().enumerate().filter(|(_, method)| method.needs_base()) {
        if let Some(word) = needed.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
    Ok(needed)
}

impl Decoder {
    /// A decoder without buffers yet; they grow at the first blocks.
    pub const fn new() -> Self {
        Self {
            table: Vec::new(),
            packed: Vec::new(),
            prefix: Vec::new(),
            picked: Vec::new(),
            zstd: zstd::Unpacker::new(),
        }
    }

    /// The plain pages of `block`: exactly `pages * 4096` bytes.
    ///
    /// `pages` is what the checked extent header says. A block of raw pages only is answered by a borrow of its own bytes,
    /// every other one by a borrow of `scratch`. `bases` is asked only for pages whose method needs the old content. An old
    /// content that is not the sender's gives wrong plain bytes and no error here: the extent's digest is what catches it.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong and at which byte; `scratch` is empty then. spec: K-9
    pub fn decode<'b>(
        &mut self,
        block: &'b [u8],
        pages: usize,
        bases: &mut dyn BaseSource,
        scratch: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], DecodeError> {
        self.decode_with(block, pages, bases, &Dictionaries::none(), scratch)
    }

    /// As [`decode`](Self::decode), of a block that may name these dictionaries.
    ///
    /// # Errors
    /// As [`decode`](Self::decode); a dictionary that is not among them is one of the reasons. spec: K-10
    pub fn decode_with<'b>(
        &mut self,
        block: &'b [u8],
        pages: usize,
        bases: &mut dyn BaseSource,
        dictionaries: &Dictionaries,
        scratch: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], DecodeError> {
        match self.decode_checked(block, pages, bases, dictionaries, scratch) {
            Ok(Some(raw)) => Ok(raw),
            Ok(None) => Ok(scratch),
            Err(error) => {
                scratch.clear();
                Err(error)
            }
        }
    }

    /// `Some` when the plain pages stand in the block itself.
    fn decode_checked<'b>(
        &mut self,
        block: &'b [u8],
        pages: usize,
        bases: &mut dyn BaseSource,
        dictionaries: &Dictionaries,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, DecodeError> {
        let mut reader = Reader::new(block);
        reader.table(pages, &mut self.table)?;
        let table_end = reader.at();
        check_groups(&self.table, reader.clone(), dictionaries)?;
        if let Some(raw) = whole_raw(pages, reader.clone()) {
            return Ok(Some(raw));
        }
        scratch.resize(pages * PAGE_BYTES, 0);
        for (index, method) in self.table.iter().enumerate() {
            match method {
                Method::Zero => page_of(scratch, index).fill(0),
                Method::Same => base_into(bases, index, Method::Same, table_end, page_of(scratch, index))?,
                _ => {}
            }
        }
        let mut copies = reader.clone();
        let mut next = [0; Method::ALL.len()];
        while let Some(group) = reader.group()? {
            if group.method != Method::CopyOf {
                self.pick(&group, &mut next);
                self.unpack(&group, bases, dictionaries, scratch)?;
            }
        }
        while let Some(group) = copies.group()? {
            if group.method == Method::CopyOf {
                self.pick(&group, &mut next);
                self.copy_pages(&group, scratch)?;
            }
        }
        Ok(None)
    }

    /// The pages that `group` carries: the next ones of its method.
    fn pick(&mut self, group: &Group<'_>, next: &mut [usize; Method::ALL.len()]) {
        self.picked.clear();
        let Some(next) = next.get_mut(usize::from(group.method.number())) else {
            return;
        };
        let planned = self.table.iter().enumerate().skip(*next).filter(|(_, method)| **method == group.method);
        self.picked.extend(planned.map(|(page, _)| page).take(group.pages));
        *next = self.picked.last().map_or(*next, |last| last + 1);
    }

    /// Unpacks one group of pages into `scratch`.
    fn unpack(
        &mut self,
        group: &Group<'_>,
        bases: &mut dyn BaseSource,
        dictionaries: &Dictionaries,
        scratch: &mut [u8],
    ) -> Result<(), DecodeError> {
        let &Group { method, at, bytes, .. } = group;
        if method == Method::OfBaseline {
            return self.fill_from_baseline(bytes, bases, at, scratch);
        }
        if method == Method::Raw {
            scatter(bytes, &self.picked, scratch, |page, into| {
                into.copy_from_slice(page);
            });
            return Ok(());
        }
        self.prefix.clear();
        match method {
            Method::Prefix => self.gather_prefix(bases, at)?,
            Method::LikeBaseline => self.gather_from_baseline(block::split_numbers(bytes, group.pages).0, bases, at)?,
            _ => {}
        }
        self.packed.resize(group.pages * PAGE_BYTES, 0);
        let (frame, before) = match method {
            Method::Prefix => (bytes, Before::Prefix(&self.prefix)),
            Method::LikeBaseline => (block::split_numbers(bytes, group.pages).1, Before::Prefix(&self.prefix)),
            Method::Dictionary => {
                let (number, frame) = block::split_dictionary(bytes);
                let dictionary = dictionaries.get(number).ok_or(DecodeError::DictionaryUnknown { at, number })?;
                (frame, Before::Dictionary(dictionary.unpacking()))
            }
            _ => (bytes, Before::Nothing),
        };
        match method {
            Method::Lz4 | Method::XorLz4 if lz4::unpack(bytes, &mut self.packed) => {}
            Method::Lz4 | Method::XorLz4 => return Err(DecodeError::Corrupt { at, method }),
            _ => self.zstd.unpack(frame, before, &mut self.packed).map_err(|fault| match fault {
                zstd::Fault::Frame(reason) => DecodeError::Frame { at, reason },
                zstd::Fault::Corrupt => DecodeError::Corrupt { at, method },
                zstd::Fault::OutOfMemory => DecodeError::OutOfMemory,
            })?,
        }
        match method {
            Method::Planes => scatter(&self.packed, &self.picked, scratch, planes::join),
            Method::NarrowPlanes => scatter(&self.packed, &self.picked, scratch, planes::join_narrow),
            Method::XorLz4 | Method::XorZstd => {
                for &index in &self.picked {
                    base_into(bases, index, method, at, page_of(scratch, index))?;
                }
                scatter(&self.packed, &self.picked, scratch, |page, into| {
                    delta::xor_into(into, page);
                });
            }
            _ => scatter(&self.packed, &self.picked, scratch, |page, into| {
                into.copy_from_slice(page);
            }),
        }
        Ok(())
    }

    /// Fills the picked pages with those of the baseline that they are said to equal. spec: K-12
    fn fill_from_baseline(
        &self,
        numbers: &[u8],
        bases: &mut dyn BaseSource,
        at: usize,
        scratch: &mut [u8],
    ) -> Result<(), DecodeError> {
        for (&page, number) in self.picked.iter().zip(numbers.as_chunks::<NUMBER_BYTES>().0) {
            let missing = |_| DecodeError::BaseMissing { at, page, method: Method::OfBaseline };
            bases.of_baseline(u32::from_le_bytes(*number), page_of(scratch, page)).map_err(missing)?;
        }
        Ok(())
    }

    /// The old content of the picked pages, as the encoder put it before its frame.
    fn gather_prefix(&mut self, bases: &mut dyn BaseSource, at: usize) -> Result<(), DecodeError> {
        self.prefix.extend_from_slice(&PREFIX_GUARD);
        for &index in &self.picked {
            let start = self.prefix.len();
            self.prefix.resize(start + PAGE_BYTES, 0);
            let into = self.prefix.get_mut(start..).unwrap_or_default();
            base_into(bases, index, Method::Prefix, at, into)?;
        }
        Ok(())
    }

    /// The pages of the baseline that the picked pages are like, as the encoder put them before its frame. spec: K-13
    fn gather_from_baseline(
        &mut self,
        numbers: &[[u8; NUMBER_BYTES]],
        bases: &mut dyn BaseSource,
        at: usize,
    ) -> Result<(), DecodeError> {
        self.prefix.extend_from_slice(&PREFIX_GUARD);
        for (&page, number) in self.picked.iter().zip(numbers) {
            let start = self.prefix.len();
            self.prefix.resize(start + PAGE_BYTES, 0);
            let into = self.prefix.get_mut(start..).unwrap_or_default();
            let missing = |_| DecodeError::BaseMissing { at, page, method: Method::LikeBaseline };
            bases.of_baseline(u32::from_le_bytes(*number), into).map_err(missing)?;
        }
        Ok(())
    }

    /// Copies the pages that equal earlier ones. Runs in page order and last, so the earlier page is complete. spec: K-7
    fn copy_pages(&self, group: &Group<'_>, scratch: &mut [u8]) -> Result<(), DecodeError> {
        for (place, (&page, &of)) in self.picked.iter().zip(group.bytes).enumerate() {
            let of = usize::from(of);
            let (earlier, from_page) = scratch.split_at_mut_checked(page * PAGE_BYTES).unwrap_or_default();
            let source = earlier.chunks_exact(PAGE_BYTES).nth(of);
            let source = source.ok_or(DecodeError::CopyForward { at: group.at + place, page, of })?;
            page_of(from_page, 0).copy_from_slice(source);
        }
        Ok(())
    }
}

/// Checks that the groups carry exactly the pages of the table, and that nothing stands after them. No work is done yet.
/// spec: K-3, K-8, K-10
fn check_groups(table: &[Method], mut reader: Reader<'_>, dictionaries: &Dictionaries) -> Result<(), DecodeError> {
    let mut left = [0_usize; Method::ALL.len()];
    for method in table {
        if let Some(count) = left.get_mut(usize::from(method.number())) {
            *count += 1;
        }
    }
    loop {
        let at = reader.at();
        if left.iter().zip(Method::ALL).all(|(count, method)| *count == 0 || !method.has_group()) {
            return match reader.left() {
                0 => Ok(()),
                bytes => Err(DecodeError::Trailing { at, bytes }),
            };
        }
        let Some(Group { method, pages, bytes, at: inside }) = reader.group()? else {
            let missing = left.iter().zip(Method::ALL).find(|(count, method)| **count > 0 && method.has_group());
            let (pages, method) = missing.map_or((0, Method::Raw), |(count, method)| (*count, method));
            return Err(DecodeError::GroupMissing { at, method, pages });
        };
        if method == Method::Dictionary {
            let (number, _) = block::split_dictionary(bytes);
            dictionaries.get(number).ok_or(DecodeError::DictionaryUnknown { at: inside, number })?;
        }
        let count = left.get_mut(usize::from(method.number()));
        let had = count.as_deref().copied().unwrap_or_default();
        match (count, had.checked_sub(pages)) {
            (Some(count), Some(rest)) => *count = rest,
            _ => {
                return Err(DecodeError::GroupBeyondTable { at, method, pages, left: had });
            }
        }
    }
}

/// The plain pages where the block is one raw group (its groups are checked).
fn whole_raw<'b>(pages: usize, mut reader: Reader<'b>) -> Option<&'b [u8]> {
    let group = reader.group().ok()??;
    (group.method == Method::Raw && group.pages == pages).then_some(group.bytes)
}

fn page_of(pages: &mut [u8], page: usize) -> &mut [u8] {
    pages.chunks_exact_mut(PAGE_BYTES).nth(page).unwrap_or_default()
}

/// Hands each packed page and its place in `scratch` to `put`.
fn scatter(packed: &[u8], picked: &[usize], scratch: &mut [u8], put: impl Fn(&[u8], &mut [u8])) {
    for (page, &index) in packed.chunks_exact(PAGE_BYTES).zip(picked) {
        put(page, page_of(scratch, index));
    }
}

fn base_into(
    bases: &mut dyn BaseSource,
    page: usize,
    method: Method,
    at: usize,
    into: &mut [u8],
) -> Result<(), DecodeError> {
    bases.base(page, into).map_err(|_| DecodeError::BaseMissing { at, page, method })
}
