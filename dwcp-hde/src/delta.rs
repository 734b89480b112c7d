//! Differences between a page and the base that the receiver holds.

/// XORs `base` into `page`; the shorter length counts. Its own inverse, so both sides use it.
pub(crate) fn xor_into(page: &mut [u8], base: &[u8]) {
    for (byte, old) in page.iter_mut().zip(base) {
        *byte ^= old;
    }
}

/// How many aligned 4-byte words differ. A plain sum without early exit, so that it compiles to vector code.
pub(crate) fn changed_words(page: &[u8], base: &[u8]) -> u32 {
    let (new, _) = page.as_chunks::<4>();
    let (old, _) = base.as_chunks::<4>();
    new.iter().zip(old).map(|(new, old)| u32::from(u32::from_le_bytes(*new) != u32::from_le_bytes(*old))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xor_twice_is_nothing() {
        let old: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let new: Vec<u8> = old.iter().map(|byte| byte.wrapping_mul(7)).collect();
        let mut page = new.clone();
        xor_into(&mut page, &old);
        assert_ne!(page, new);
        xor_into(&mut page, &old);
        assert_eq!(page, new);
    }

    #[test]
    fn words_are_counted_once() {
        let old = vec![9; 4096];
        let mut new = old.clone();
        assert_eq!(changed_words(&new, &old), 0);
        new[0] = 1;
        new[3] = 1;
        new[4095] = 1;
        assert_eq!(changed_words(&new, &old), 2);
    }
}
