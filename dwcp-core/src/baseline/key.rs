//! Keys: what is derived of a store's key, and for what.
//!
//! ```text
//!  key file, 32 bytes ──┬── sealing ──┬── of a file, by its salt of 32 random bytes     AES-256-GCM, nonce = byte offset
//!                       │             └── check of the store's header                   tells a wrong key
//!                       └── agreement ── of a tenant, by its name                       manifest digests
//! ```
//!
//! **Nonces.** A sealed file has a key of its own, derived of a salt that is drawn when the file is made. Its nonce is the
//! offset at which a sealed piece stands, which only rises. A file is written by the process that made it, from front to
//! back, and never again: what a crash or a full disk cuts short is thrown away, not gone on with. So no nonce is used
//! twice with a key, and there is no counter that a crash could set back.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::error::BaselineError;
use crate::wire::{Digest, Name};

/// Bytes of a key file.
pub const KEY_BYTES: usize = 32;
/// Bytes that sealing adds.
pub(super) const TAG: usize = 16;
/// What tells a file's key and name from all others.
pub(super) type Salt = [u8; 32];

const SEALING: &str = "dwcp 2026-11-22 baseline store: sealing";
const AGREEMENT: &str = "dwcp 2026-11-22 baseline store: agreement";
const CHECK: &[u8] = b"check of the header";

/// A store's key. The nodes that share baselines have the same one; it is never written by this crate.
#[derive(Clone)]
pub struct StoreKey {
    sealing: [u8; 32],
    agreement: [u8; 32],
}

impl StoreKey {
    /// The key of a key file: 32 bytes from a random number generator, not from a person.
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        Self { sealing: blake3::derive_key(SEALING, bytes), agreement: blake3::derive_key(AGREEMENT, bytes) }
    }

    /// Bytes for a new key file.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> Result<[u8; KEY_BYTES], BaselineError> {
        random()
    }

    /// By which two nodes know that they hold the same baseline of a tenant: bound to the tenant, the layout and the
    /// leaves of all pages (`root` binds the last two, spec: I-3). Another key or another tenant gives another digest of the
    /// same pages, so that nothing can be compared across tenants.
    pub fn digest(&self, tenant: &Name, root: Digest) -> ManifestDigest {
        let tenant = blake3::keyed_hash(&self.agreement, tenant.as_str().as_bytes());
        ManifestDigest(*blake3::keyed_hash(tenant.as_bytes(), &root.0).as_bytes())
    }

    /// Of a store's header.
    pub(super) fn check(&self, salt: &Salt) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.sealing);
        hasher.update(CHECK);
        hasher.update(salt);
        *hasher.finalize().as_bytes()
    }

    /// Of the file with this salt.
    pub(super) fn of_file(&self, salt: &Salt) -> Result<FileKey, BaselineError> {
        let key = blake3::keyed_hash(&self.sealing, salt);
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).map_err(|_| BaselineError::Cipher)?;
        Ok(FileKey { key: LessSafeKey::new(key), salt: *salt })
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey")
    }
}

/// Seals and opens the pieces of one file.
#[derive(Debug)]
pub(super) struct FileKey {
    key: LessSafeKey,
    salt: Salt,
}

impl FileKey {
    /// Seals a piece in place, for the offset at which it will stand. `last`: no piece follows it.
    pub(super) fn seal(&self, at: u64, last: bool, piece: &mut Vec<u8>) -> Result<(), BaselineError> {
        let aad = Aad::from(self.bound_to(at, last));
        self.key.seal_in_place_append_tag(nonce(at), aad, piece).map_err(|_| BaselineError::Cipher)
    }

    /// Opens a piece in place. `None`: it is not what was sealed there.
    pub(super) fn open<'a>(&self, at: u64, last: bool, piece: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.key.open_in_place(nonce(at), Aad::from(self.bound_to(at, last)), piece).ok()
    }

    /// A piece is of no use in another file, at another place, or as the end of a file that was cut off.
    fn bound_to(&self, at: u64, last: bool) -> [u8; 41] {
        let mut bound = [0; 41];
        for (byte, value) in bound.iter_mut().zip(self.salt.into_iter().chain(at.to_le_bytes()).chain([u8::from(last)]))
        {
            *byte = value;
        }
        bound
    }
}

/// Bytes that nobody can guess.
pub(super) fn random() -> Result<[u8; 32], BaselineError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| BaselineError::Cipher)?;
    Ok(bytes)
}

fn nonce(at: u64) -> Nonce {
    let mut nonce = [0; 12];
    for (byte, value) in nonce.iter_mut().zip(at.to_le_bytes()) {
        *byte = value;
    }
    Nonce::assume_unique_for_key(nonce)
}

/// Names a baseline between the nodes that have its tenant's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestDigest(pub [u8; 32]);

impl fmt::Display for ManifestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_digest_is_the_same_only_for_the_same_key_tenant_and_root() {
        let (one, other) = (StoreKey::new(&[1; 32]), StoreKey::new(&[2; 32]));
        let root = Digest([7; 32]);
        let digest = one.digest(&name("a"), root);
        assert_eq!(digest, StoreKey::new(&[1; 32]).digest(&name("a"), root));
        assert_ne!(digest, other.digest(&name("a"), root));
        assert_ne!(digest, one.digest(&name("b"), root));
        assert_ne!(digest, one.digest(&name("a"), Digest([8; 32])));
    }

    #[test]
    fn a_piece_opens_only_as_what_it_was_sealed() {
        let key = StoreKey::new(&[1; 32]);
        let file = key.of_file(&[3; 32]).unwrap();
        let mut sealed = b"a page".to_vec();
        file.seal(40, false, &mut sealed).unwrap();
        assert_eq!(sealed.len(), 6 + TAG);
        assert_eq!(file.open(40, false, &mut sealed.clone()).unwrap(), b"a page");
        assert!(file.open(41, false, &mut sealed.clone()).is_none(), "another place");
        assert!(file.open(40, true, &mut sealed.clone()).is_none(), "the end of a file");
        assert!(key.of_file(&[4; 32]).unwrap().open(40, false, &mut sealed.clone()).is_none(), "another file");
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(file.open(40, false, &mut damaged).is_none(), "bit {bit}");
        }
    }
}
