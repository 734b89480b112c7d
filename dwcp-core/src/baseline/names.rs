//! What the files of a store are called. No name comes from a user or a peer.
//!
//! ```text
//!  store                                the header: which key
//!  <salt, 64 digits>.pack               pages, sealed
//!  <digest, 64>-<16 digits>.baseline    a manifest, sealed: which pages make up a baseline, and where they stand
//!  <digest, 64>-<16 digits>.used        empty of meaning; its time tells when the baseline was opened last
//!  *.new                                a file that is being written, or was when its process died
//! ```

use super::key::{ManifestDigest, Salt};

/// The header.
pub(super) const HEADER: &str = "store";
/// Of a file that is not whole yet.
pub(super) const UNFINISHED: &str = ".new";

const PACK: &str = ".pack";
const MANIFEST: &str = ".baseline";
const USED: &str = ".used";
/// Digits that tell apart manifests of the same pages.
const NUMBER: usize = 16;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileName {
    Pack(Salt),
    Manifest(ManifestName),
    Used(ManifestName),
    Unfinished,
    /// The header, or none of ours.
    Other,
}

/// A manifest, without its ending.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ManifestName {
    pub(super) digest: ManifestDigest,
    stem: String,
}

impl ManifestName {
    /// The salt is drawn for each file, so its start tells apart two of the same pages.
    pub(super) fn new(digest: ManifestDigest, salt: &Salt) -> Self {
        let number = hex(salt.get(..NUMBER / 2).unwrap_or_default());
        Self { digest, stem: format!("{digest}-{number}") }
    }

    fn parse(stem: &str) -> Option<Self> {
        let (digest, number) = stem.split_once('-')?;
        let digest = ManifestDigest(unhex(digest)?);
        (number.len() == NUMBER && number.bytes().all(is_digit)).then(|| Self { digest, stem: stem.to_owned() })
    }

    pub(super) fn file(&self) -> String {
        format!("{}{MANIFEST}", self.stem)
    }

    pub(super) fn used(&self) -> String {
        format!("{}{USED}", self.stem)
    }
}

impl FileName {
    pub(super) fn of(name: &str) -> Self {
        if let Some(finished) = name.strip_suffix(UNFINISHED) {
            let header = finished.strip_prefix(HEADER).and_then(|rest| unhex(rest.strip_prefix('-')?)).is_some();
            let ours = header || matches!(Self::of(finished), Self::Manifest(_));
            return if ours { Self::Unfinished } else { Self::Other };
        }
        let manifest = |stem| ManifestName::parse(stem);
        if let Some(salt) = name.strip_suffix(PACK).and_then(unhex) {
            Self::Pack(salt)
        } else if let Some(name) = name.strip_suffix(MANIFEST).and_then(manifest) {
            Self::Manifest(name)
        } else if let Some(name) = name.strip_suffix(USED).and_then(manifest) {
            Self::Used(name)
        } else {
            Self::Other
        }
    }
}

pub(super) fn pack(salt: &Salt) -> String {
    format!("{}{PACK}", hex(salt))
}

/// Where a header is written before it gets its name: not where another process writes its own.
pub(super) fn unfinished_header(salt: &Salt) -> String {
    format!("{HEADER}-{}{UNFINISHED}", hex(salt))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(is_digit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_made() {
        let manifest = ManifestName::new(ManifestDigest([0xab; 32]), &[7; 32]);
        assert_eq!(FileName::of(&manifest.file()), FileName::Manifest(manifest.clone()));
        assert_eq!(FileName::of(&manifest.used()), FileName::Used(manifest.clone()));
        assert_eq!(FileName::of(&format!("{}{UNFINISHED}", manifest.file())), FileName::Unfinished);
        assert_eq!(FileName::of(&unfinished_header(&[1; 32])), FileName::Unfinished);
        assert_eq!(FileName::of(&pack(&[9; 32])), FileName::Pack([9; 32]));
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        let short = pack(&[9; 32]).replacen("09", "", 1);
        for name in [
            "store",
            "store-x.new",
            "a.new",
            "x.pack",
            ".baseline",
            "vm.baseline",
            &short,
            &pack(&[0xaa; 32]).to_uppercase(),
        ] {
            assert_eq!(FileName::of(name), FileName::Other, "{name}");
        }
    }
}
