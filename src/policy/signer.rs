//! Keys that may sign packages: the public key, and the PolicySigner that says for which tenants and when it counts.
//!
//! A key that could make one signature fit several messages (small order, non-canonical encoding) never becomes a `PublicKey`.

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey};
use jiff::Timestamp;
use kube::ResourceExt;

use super::digest::sha256_text;
use crate::api::{PolicySigner, RevokedReason};

/// The longest PEM text that is looked at; an ed25519 key takes 113 bytes.
const MAX_PEM_BYTES: usize = 1024;

/// An ed25519 public key that is safe to verify with.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    fingerprint: String,
    pem: String,
}

/// Why a text is not a public key that Remit verifies with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PEM, or not SubjectPublicKeyInfo of ed25519.
    #[error("not an ed25519 public key in PEM (SubjectPublicKeyInfo, \"-----BEGIN PUBLIC KEY-----\"): {0}")]
    NotPem(String),
    /// The text holds more than the key, or writes it in another form than the usual one.
    #[error("the PEM text must hold one key and nothing else, as `remit keygen` and `openssl pkey -pubout` write it")]
    NotCanonicalPem,
    /// A key of small order: some signatures fit every message.
    #[error(
        "the key is of small order, so that one signature would fit many messages; make a new key with `remit keygen`"
    )]
    SmallOrder,
    /// The point is written in another way than its canonical one, or lies outside the prime-order group.
    #[error(
        "the key is not the canonical encoding of a point of the prime-order group; make a new key with `remit keygen`"
    )]
    NotCanonicalPoint,
}

impl PublicKey {
    /// Reads SubjectPublicKeyInfo PEM, strictly: one key, nothing else, no small order, canonical.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(KeyError::NotPem(format!("{} bytes, at most {MAX_PEM_BYTES}", pem.len())));
        }
        let key = VerifyingKey::from_public_key_pem(pem.trim()).map_err(|e| KeyError::NotPem(e.to_string()))?;
        let read = Self::from_key(key)?;
        if pem.trim().replace("\r\n", "\n") != read.pem.trim() {
            return Err(KeyError::NotCanonicalPem);
        }
        Ok(read)
    }

    /// A key that was read or made elsewhere, after the same checks.
    pub fn from_key(key: VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() {
            return Err(KeyError::SmallOrder);
        }
        let point = key.to_edwards();
        if !point.is_torsion_free() || point.compress().as_bytes() != key.as_bytes() {
            return Err(KeyError::NotCanonicalPoint);
        }
        let pem = key.to_public_key_pem(LineEnding::LF).map_err(|e| KeyError::NotPem(e.to_string()))?;
        Ok(Self { fingerprint: sha256_text(key.as_bytes()), key, pem })
    }

    /// SHA-256 of the raw 32 bytes, `sha256:` and 64 hex digits: how packages and records name the key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// SubjectPublicKeyInfo PEM, as `from_pem` reads it.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The key itself, for the verifier.
    pub(super) fn key(&self) -> &VerifyingKey {
        &self.key
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint)
    }
}

/// A key and what it may sign: a PolicySigner, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Name of the PolicySigner; messages name it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// Tenants whose packages it may sign; `*` is every tenant but the platform.
    pub tenants: Vec<String>,
    /// Nothing is verified for the first time before this instant.
    pub not_before: Option<Timestamp>,
    /// Nothing is verified for the first time after this instant.
    pub not_after: Option<Timestamp>,
    /// Set when the key was withdrawn.
    pub revoked: Option<RevokedReason>,
}

impl Signer {
    /// Whether the signer may sign this tenant's packages. `*` never includes the platform, which must be named.
    pub fn covers(&self, tenant: &str, is_platform: bool) -> bool {
        self.tenants.iter().any(|t| t == tenant || (t == "*" && !is_platform))
    }
}

/// A PolicySigner that can't be used, with the field to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The key.
    #[error("PolicySigner {name}: spec.publicKey: {error}")]
    Key {
        /// Name of the PolicySigner.
        name: String,
        /// What is wrong with it.
        error: KeyError,
    },
    /// It would never be valid.
    #[error("PolicySigner {name}: spec.notAfter {not_after} lies before spec.notBefore {not_before}")]
    Window {
        /// Name of the PolicySigner.
        name: String,
        /// As given.
        not_before: Timestamp,
        /// As given.
        not_after: Timestamp,
    },
    /// It covers nothing.
    #[error("PolicySigner {name}: spec.tenants is empty: name the namespaces that it may sign for, or \"*\"")]
    NoTenants {
        /// Name of the PolicySigner.
        name: String,
    },
}

impl TryFrom<&PolicySigner> for Signer {
    type Error = SignerError;

    fn try_from(signer: &PolicySigner) -> Result<Self, SignerError> {
        let name = signer.name_any();
        let key = PublicKey::from_pem(&signer.spec.public_key)
            .map_err(|error| SignerError::Key { name: name.clone(), error })?;
        let not_before = signer.spec.not_before.as_ref().map(|t| t.0);
        let not_after = signer.spec.not_after.as_ref().map(|t| t.0);
        if let (Some(not_before), Some(not_after)) = (not_before, not_after)
            && not_after < not_before
        {
            return Err(SignerError::Window { name, not_before, not_after });
        }
        if signer.spec.tenants.is_empty() {
            return Err(SignerError::NoTenants { name });
        }
        Ok(Self {
            name,
            key,
            tenants: signer.spec.tenants.clone(),
            not_before,
            not_after,
            revoked: signer.spec.revoked.as_ref().map(|r| r.reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::api::PolicySignerSpec;

    /// SubjectPublicKeyInfo of ed25519 (RFC 8410) around 32 raw bytes.
    fn spki(raw: &[u8; 32]) -> String {
        let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        der.extend_from_slice(raw);
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der))
    }

    fn raw(hex: &str) -> [u8; 32] {
        let bytes: Vec<u8> = (0..64).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn reads_what_openssl_writes() {
        // RFC 8410, section 10.1.
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = PublicKey::from_pem(pem).unwrap();
        assert_eq!(key.to_pem(), pem);
        assert_eq!(
            key.fingerprint(),
            sha256_text(&raw("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"))
        );
        assert_eq!(PublicKey::from_pem(&pem.replace('\n', "\r\n")).unwrap(), key);
    }

    #[test]
    fn refuses_every_small_order_point() {
        // The eight points of order 1, 2, 4 and 8, and the non-canonical ways to write some of them.
        let points = [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "0100000000000000000000000000000000000000000000000000000000000080",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for point in points {
            let refused = PublicKey::from_pem(&spki(&raw(point))).unwrap_err();
            assert!(matches!(refused, KeyError::SmallOrder | KeyError::NotPem(_)), "{point}: {refused}");
        }
        // The eight canonical ones decode, so that it is the order that refuses them.
        for point in &points[..8] {
            assert_eq!(PublicKey::from_pem(&spki(&raw(point))), Err(KeyError::SmallOrder), "{point}");
        }
    }

    #[test]
    fn refuses_a_point_outside_the_prime_order_group() {
        let good = SigningKey::from_bytes(&[7; 32]).verifying_key();
        let torsion =
            VerifyingKey::from_bytes(&raw("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"));
        let mixed = (good.to_edwards() + torsion.unwrap().to_edwards()).compress().to_bytes();
        assert_eq!(PublicKey::from_pem(&spki(&mixed)), Err(KeyError::NotCanonicalPoint));
        assert!(PublicKey::from_pem(&spki(good.as_bytes())).is_ok());
    }

    #[test]
    fn refuses_a_point_written_in_a_non_canonical_way() {
        // y = p + 3 is y = 3 once more; p = 2^255 - 19.
        let written = raw("f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f");
        let key = VerifyingKey::from_bytes(&written).unwrap();
        assert_eq!(key.as_bytes(), &written, "the library keeps the bytes, so that we have to look");
        assert!(PublicKey::from_pem(&spki(&written)).is_err());
    }

    #[test]
    fn refuses_what_is_not_exactly_one_key() {
        let good = spki(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes());
        let bad = [
            String::new(),
            "hello".into(),
            good.repeat(2),
            format!("comment\n{good}"),
            good.replace("PUBLIC KEY", "PRIVATE KEY"),
            good.replace("MCow", "MCoy"),
            good.replacen('=', "", 1),
            "x".repeat(2000),
        ];
        for pem in bad {
            assert!(PublicKey::from_pem(&pem).is_err(), "{pem:?}");
        }
    }

    #[test]
    fn star_never_includes_the_platform() {
        let key = PublicKey::from_key(SigningKey::from_bytes(&[7; 32]).verifying_key()).unwrap();
        let mut signer = Signer {
            name: "s".into(),
            key,
            tenants: vec!["*".into()],
            not_before: None,
            not_after: None,
            revoked: None,
        };
        assert!(signer.covers("acme", false));
        assert!(!signer.covers("remit-system", true));
        signer.tenants.push("remit-system".into());
        assert!(signer.covers("remit-system", true));
    }

    #[test]
    fn an_unusable_signer_names_the_field() {
        let spec = PolicySignerSpec { public_key: "x".into(), tenants: vec!["a".into()], ..Default::default() };
        let text = Signer::try_from(&PolicySigner::new("alice", spec)).unwrap_err().to_string();
        assert!(text.contains("alice") && text.contains("spec.publicKey"), "{text}");

        let good = spki(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes());
        let spec = PolicySignerSpec { public_key: good.clone(), ..Default::default() };
        let text = Signer::try_from(&PolicySigner::new("alice", spec)).unwrap_err().to_string();
        assert!(text.contains("spec.tenants"), "{text}");

        let time = |t: &str| Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t.parse().unwrap()));
        let spec = PolicySignerSpec {
            public_key: good,
            tenants: vec!["a".into()],
            not_before: time("2026-02-01T00:00:00Z"),
            not_after: time("2026-01-01T00:00:00Z"),
            revoked: None,
        };
        let text = Signer::try_from(&PolicySigner::new("alice", spec)).unwrap_err().to_string();
        assert!(text.contains("spec.notAfter 2026-01-01"), "{text}");
    }
}
