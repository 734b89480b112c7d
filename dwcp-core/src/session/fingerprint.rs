use std::fmt;

/// SHA-256 of a public key (its SubjectPublicKeyInfo, DER): who a peer is, for trust and for records.
/// `openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum` prints the same.
///
/// It lives here, below keys and certificates, because a [`Record`](super::Record) names one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is no [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is sha256: and 64 hexadecimal digits, as `dwcp identity show FILE` prints it")]
pub struct FingerprintError;

impl std::str::FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.is_ascii());
        let digits = digits.ok_or(FingerprintError)?;
        let mut fingerprint = [0; 32];
        for (byte, at) in fingerprint.iter_mut().zip((0..64).step_by(2)) {
            let pair = digits.get(at..at + 2).ok_or(FingerprintError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| FingerprintError)?;
        }
        Ok(Self(fingerprint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_text() {
        let fingerprint = Fingerprint(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        for bad in ["", "sha256:", "sha1:00", &"0".repeat(71), &format!("sha256:{}", "g".repeat(64))] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
