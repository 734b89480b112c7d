//! Zero pages: the most common page of a real guest, so the test must run at memory speed.

/// Bytes looked at between two early exits. Small enough to leave a page with data at once, large enough for vector code.
const STRIDE: usize = 256;

/// Whether every byte of `page` is zero; any length, an empty slice is zero.
///
/// The inner fold has no early exit, so it compiles to plain vector ORs on every target.
pub fn is_zero(page: &[u8]) -> bool {
    let (blocks, tail) = page.as_chunks::<STRIDE>();
    blocks.iter().all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for length in [0, 1, 255, 256, 257, 4095, 4096, 5000] {
            let mut page = vec![0; length];
            assert!(is_zero(&page));
            for place in 0..length {
                page[place] = 0x80;
                assert!(!is_zero(&page), "length {length}, place {place}");
                page[place] = 0;
            }
        }
    }
}
