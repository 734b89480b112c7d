use std::fmt;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;

use super::error::IdentityError;
use crate::session::Fingerprint;

/// A node's key and certificate.
///
/// Peers know a node by the [`Fingerprint`] of its public key, which survives a renewed certificate.
pub struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    certificates: Vec<CertificateDer<'static>>,
    fingerprint: Fingerprint,
    /// Both as they were read or made.
    pem: String,
}

impl Identity {
    /// A new ECDSA P-256 key with a certificate that it signs itself.
    ///
    /// # Errors
    /// The system's random numbers or the TLS library failed.
    pub fn generate(subject: &str) -> Result<Self, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| tls(&error))?;
        Self::certified(subject, &key)
    }

    /// The same key with a new certificate.
    ///
    /// # Errors
    /// The key is not one that certificates can be made for here.
    pub fn renewed(&self, subject: &str) -> Result<Self, IdentityError> {
        let key = rcgen::KeyPair::try_from(&self.key).map_err(|error| tls(&error))?;
        Self::certified(subject, &key)
    }

    fn certified(subject: &str, key: &rcgen::KeyPair) -> Result<Self, IdentityError> {
        let mut params = rcgen::CertificateParams::new(vec![subject.to_owned()]).map_err(|error| tls(&error))?;
        params.distinguished_name.push(rcgen::DnType::CommonName, subject);
        let certificate = params.self_signed(key).map_err(|error| tls(&error))?;
        Self::from_pem(&format!("{}{}", key.serialize_pem(), certificate.pem()))
    }

    /// Reads a PKCS#8 key and a chain of certificates, own one first.
    ///
    /// # Errors
    /// A part is missing or unreadable.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => IdentityError::Missing { what: "private key (PKCS#8)" },
            error => IdentityError::Unreadable { what: "private key", text: error.to_string() },
        })?;
        let certificates = certificates(text)?;
        let own = certificates.first().ok_or(IdentityError::Missing { what: "certificate" })?;
        let fingerprint = Fingerprint::of(own)?;
        Ok(Self { key, certificates, fingerprint, pem: text.to_owned() })
    }

    /// The key and the certificates as PEM. Keep it secret.
    pub fn to_pem(&self) -> String {
        self.pem.clone()
    }

    /// The hash of the public key, by which peers know this node.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.certificates.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

impl Fingerprint {
    /// The fingerprint of a certificate's key.
    ///
    /// # Errors
    /// The certificate cannot be parsed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = ParsedCertificate::try_from(certificate)
            .map_err(|error| IdentityError::Unreadable { what: "certificate", text: error.to_string() })?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &parsed.subject_public_key_info());
        let mut fingerprint = [0; 32];
        for (place, byte) in fingerprint.iter_mut().zip(digest.as_ref()) {
            *place = *byte;
        }
        Ok(Self(fingerprint))
    }
}

/// Whom a node talks to. There is no "everybody".
#[derive(Clone, Debug)]
pub enum Trust {
    /// Nodes with one of these keys, whatever their certificate says.
    Fingerprints(Vec<Fingerprint>),
    /// Nodes with a certificate that one of these authorities signed.
    Authorities(Vec<CertificateDer<'static>>),
}

impl Trust {
    /// Nodes with one of these keys.
    pub fn fingerprints(trusted: impl IntoIterator<Item = Fingerprint>) -> Self {
        Self::Fingerprints(trusted.into_iter().collect())
    }

    /// Nodes whose certificate one of these authorities signed, for the name that is dialled.
    ///
    /// # Errors
    /// The text holds no certificate.
    pub fn authorities_pem(text: &str) -> Result<Self, IdentityError> {
        Ok(Self::Authorities(certificates(text)?))
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Unreadable { what: "certificate", text: error.to_string() })?;
    if certificates.is_empty() {
        return Err(IdentityError::Missing { what: "certificate" });
    }
    Ok(certificates)
}

fn tls(error: &rcgen::Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file_and_its_renewal() {
        let identity = Identity::generate("node-a").unwrap();
        let read = Identity::from_pem(&identity.to_pem()).unwrap();
        assert_eq!(read.fingerprint(), identity.fingerprint());
        let renewed = read.renewed("node-a").unwrap();
        assert_eq!(renewed.fingerprint(), identity.fingerprint());
        assert_ne!(renewed.to_pem(), identity.to_pem(), "a new certificate");
    }

    #[test]
    fn what_is_missing_is_named() {
        let pem = Identity::generate("x").unwrap().to_pem();
        let (key, certificate) = pem.split_at(pem.find("-----BEGIN CERTIFICATE").unwrap());
        assert!(matches!(Identity::from_pem(key), Err(IdentityError::Missing { what: "certificate" })));
        assert!(matches!(Identity::from_pem(certificate), Err(IdentityError::Missing { .. })));
        assert!(Trust::authorities_pem("nothing").is_err());
    }
}
