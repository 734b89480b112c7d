//! LZ4 blocks through `lz4_flex` in its safe, bounds-checked form.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// An LZ4 encoder that keeps its hash table.
pub(crate) struct Packer {
    /// Made at the first use, so that an encoder which never needs LZ4 stays small.
    table: Option<CompressTable>,
    /// `lz4_flex` writes only to buffers of the worst-case size.
    squeezed: Vec<u8>,
}

impl Packer {
    pub(crate) const fn new() -> Self {
        Self { table: None, squeezed: Vec::new() }
    }

    /// Writes the LZ4 block of `plain` to the front of `into` and tells its length; `None` when it is longer than `into`.
    pub(crate) fn pack(&mut self, plain: &[u8], into: &mut [u8]) -> Option<usize> {
        let worst = get_maximum_output_size(plain.len());
        if self.squeezed.len() < worst {
            self.squeezed.resize(worst, 0);
        }
        let table = self.table.get_or_insert_with(CompressTable::large);
        let length = compress_into_with_table(plain, &mut self.squeezed, table).ok()?;
        into.get_mut(..length)?.copy_from_slice(self.squeezed.get(..length)?);
        Some(length)
    }
}

/// Decompresses `block` into exactly `plain`; false when it is broken or gives another number of bytes. spec: K-6
/// `plain` may hold anything after `false`: the caller throws it away.
pub(crate) fn unpack(block: &[u8], plain: &mut [u8]) -> bool {
    decompress_into(block, plain).is_ok_and(|length| length == plain.len())
}
