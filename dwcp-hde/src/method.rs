//! The ways a page can travel. The numbers are wire values and never change their meaning.

/// How one page of a block is carried.
///
/// Exhaustive on purpose: a new method is a new wire number, which an old decoder refuses anyway, and every match in an
/// embedder should be reviewed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// All bytes are zero; nothing else travels.
    Zero,
    /// The page equals the base that the receiver holds; nothing else travels.
    Same,
    /// The page equals an earlier page of the same block; one byte, its index, travels.
    CopyOf,
    /// The plain bytes travel.
    Raw,
    /// Packed pages, one LZ4 block.
    Lz4,
    /// Packed pages, one zstd frame.
    Zstd,
    /// Packed (page XOR base), one LZ4 block.
    XorLz4,
    /// Packed (page XOR base), one zstd frame.
    XorZstd,
    /// Packed pages, one zstd frame whose raw prefix is the pages' own bases.
    Prefix,
    /// Packed pages, each split into eight byte planes, one zstd frame.
    Planes,
    /// Packed pages, one zstd frame after a dictionary that both ends hold; one byte, its number, before it.
    Dictionary,
    /// Packed pages, each split into four byte planes, one zstd frame.
    NarrowPlanes,
    /// The page equals one of a baseline that both ends hold, wherever it stands there; four bytes, its number, travel.
    OfBaseline,
    /// Packed pages, one zstd frame whose raw prefix is a page each of a baseline that both ends hold; their numbers, four bytes
    /// each, before it.
    LikeBaseline,
}

impl Method {
    /// Every method, in the order of the wire numbers.
    pub const ALL: [Self; 14] = [
        Self::Zero,
        Self::Same,
        Self::CopyOf,
        Self::Raw,
        Self::Lz4,
        Self::Zstd,
        Self::XorLz4,
        Self::XorZstd,
        Self::Prefix,
        Self::Planes,
        Self::Dictionary,
        Self::NarrowPlanes,
        Self::OfBaseline,
        Self::LikeBaseline,
    ];

    /// The wire number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Zero => 0x00,
            Self::Same => 0x01,
            Self::CopyOf => 0x02,
            Self::Raw => 0x03,
            Self::Lz4 => 0x04,
            Self::Zstd => 0x05,
            Self::XorLz4 => 0x06,
            Self::XorZstd => 0x07,
            Self::Prefix => 0x08,
            Self::Planes => 0x09,
            Self::Dictionary => 0x0a,
            Self::NarrowPlanes => 0x0b,
            Self::OfBaseline => 0x0c,
            Self::LikeBaseline => 0x0d,
        }
    }

    /// The method of a wire number, `None` for a number this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// A short lower-case name for reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Same => "same",
            Self::CopyOf => "copy-of",
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::XorLz4 => "xor-lz4",
            Self::XorZstd => "xor-zstd",
            Self::Prefix => "prefix",
            Self::Planes => "planes",
            Self::Dictionary => "dictionary",
            Self::NarrowPlanes => "narrow-planes",
            Self::OfBaseline => "of-baseline",
            Self::LikeBaseline => "like-baseline",
        }
    }

    /// Whether a decoder must know the receiver's old page.
    pub const fn needs_base(self) -> bool {
        matches!(self, Self::Same | Self::XorLz4 | Self::XorZstd | Self::Prefix)
    }

    /// Whether the page's bytes stand in a group; `Zero` and `Same` need none.
    pub(crate) const fn has_group(self) -> bool {
        !matches!(self, Self::Zero | Self::Same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_methods_are_one_to_one() {
        for (place, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(method.number()), place);
            assert_eq!(Method::from_number(method.number()), Some(method));
        }
        assert_eq!(Method::from_number(0x0e), None);
        assert_eq!(Method::from_number(0xff), None);
    }
}
