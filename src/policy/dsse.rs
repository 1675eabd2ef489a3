//! DSSE envelopes (<https://github.com/secure-systems-lab/dsse>, protocol v1) around the statement that signs a package.
//!
//! Nothing of a payload counts before its signature has been verified, except to refuse it. Verification is strict: one payload
//! type, canonical base64, ed25519 as `verify_strict` has it (no small-order points, no malleable signature).

use base64::prelude::{BASE64_STANDARD, Engine};
use ed25519_dalek::{Signature, Signer as _, SigningKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::refusal::{Refusal, RefusalCode};
use super::signer::{KeyError, PublicKey};
use crate::api::{Envelope, EnvelopeSignature};

/// The one payload type that is read.
pub const PAYLOAD_TYPE: &str = "application/vnd.remit.package.v1+json";
/// The one format of a statement.
pub const FORMAT_VERSION: &str = "1";
/// In place of an installation: the statement holds in every one.
pub const ANY_INSTALLATION: &str = "any";
/// The longest statement, decoded. Names are at most 253 bytes, so this leaves room for an author.
pub const MAX_STATEMENT_BYTES: usize = 4096;
/// The most signatures of one envelope.
pub const MAX_SIGNATURES: usize = 8;

/// What a signer says: these bytes are this version of this package, for this tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// `1`.
    pub format_version: String,
    /// UID of the installation's `kube-system` namespace, or `any`.
    pub installation: String,
    /// Namespace.
    pub tenant: String,
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Its digest.
    pub digest: String,
    /// Fingerprint of the key that signs.
    pub key_fingerprint: String,
    /// Who wrote the package, as they call themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// When it was signed, by the signer's clock: for people, nothing is decided by it.
    pub signed_at: Timestamp,
}

/// Verifies an envelope under one key. A trait, so that other formats of signature can come beside ed25519 in DSSE.
pub trait SignatureVerifier: Send + Sync {
    /// The statement, if the envelope holds a good signature of this key; `SignatureMismatch` or `EnvelopeMalformed` otherwise.
    fn verify(&self, envelope: &Envelope, public_key: &PublicKey) -> Result<Statement, Refusal>;
}

/// Ed25519 (RFC 8032, strict) over DSSE's pre-authentication encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ed25519Dsse;

impl SignatureVerifier for Ed25519Dsse {
    fn verify(&self, envelope: &Envelope, public_key: &PublicKey) -> Result<Statement, Refusal> {
        let opened = Opened::open(envelope)?;
        opened.verify(public_key)?;
        Ok(opened.statement)
    }
}

/// An envelope that was read, but not verified: its statement may be used to refuse, never to accept.
pub(super) struct Opened {
    payload_type: String,
    payload: Vec<u8>,
    /// Key id and signature, each key id once.
    signatures: Vec<(String, Signature)>,
    pub(super) statement: Statement,
}

impl Opened {
    /// Reads the envelope's shape; every deviation is `EnvelopeMalformed`, with the field.
    pub(super) fn open(envelope: &Envelope) -> Result<Self, Refusal> {
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed(format!(
                "payloadType is {:?}, expected {PAYLOAD_TYPE:?}",
                clip(&envelope.payload_type)
            )));
        }
        if envelope.payload.len() > MAX_STATEMENT_BYTES.div_ceil(3) * 4 {
            return Err(malformed(format!(
                "payload has {} base64 characters, at most {} are read",
                envelope.payload.len(),
                MAX_STATEMENT_BYTES.div_ceil(3) * 4
            )));
        }
        if envelope.signatures.is_empty() || envelope.signatures.len() > MAX_SIGNATURES {
            return Err(malformed(format!(
                "signatures has {} entries, expected 1 to {MAX_SIGNATURES}",
                envelope.signatures.len()
            )));
        }
        let payload = decode("payload", &envelope.payload)?;
        let mut signatures: Vec<(String, Signature)> = Vec::with_capacity(envelope.signatures.len());
        for (i, signature) in envelope.signatures.iter().enumerate() {
            if !is_digest(&signature.keyid) {
                return Err(malformed(format!(
                    "signatures[{i}].keyid is {:?}, expected \"sha256:\" and 64 lower-case hex digits",
                    clip(&signature.keyid)
                )));
            }
            if let Some(first) = signatures.iter().position(|(keyid, _)| *keyid == signature.keyid) {
                return Err(malformed(format!(
                    "signatures[{i}].keyid is the same as signatures[{first}].keyid: one signature a key"
                )));
            }
            let raw = decode(&format!("signatures[{i}].sig"), &signature.sig)?;
            let raw = Signature::from_slice(&raw).map_err(|_| {
                malformed(format!("signatures[{i}].sig has {} bytes, an ed25519 signature has 64", raw.len()))
            })?;
            signatures.push((signature.keyid.clone(), raw));
        }
        let statement: Statement = serde_json::from_slice(&payload)
            .map_err(|e| malformed(format!("payload is no statement that Remit reads: {e}")))?;
        if statement.format_version != FORMAT_VERSION {
            return Err(malformed(format!(
                "payload: formatVersion is {:?}, expected {FORMAT_VERSION:?}",
                statement.format_version
            )));
        }
        if !signatures.iter().any(|(keyid, _)| *keyid == statement.key_fingerprint) {
            return Err(malformed(format!(
                "payload: keyFingerprint is {:?}, but no signature has that keyid",
                clip(&statement.key_fingerprint)
            )));
        }
        Ok(Self { payload_type: envelope.payload_type.clone(), payload, signatures, statement })
    }

    /// Key ids, in the envelope's order.
    pub(super) fn keyids(&self) -> impl Iterator<Item = &str> {
        self.signatures.iter().map(|(keyid, _)| keyid.as_str())
    }

    /// Verifies the signature that names this key.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<(), Refusal> {
        let Some((i, (_, signature))) =
            self.signatures.iter().enumerate().find(|(_, (keyid, _))| keyid == key.fingerprint())
        else {
            return Err(Refusal::new(
                RefusalCode::SignatureMismatch,
                format!("spec.signature: no signature has the keyid {}", key.fingerprint()),
            ));
        };
        key.key().verify_strict(&pae(&self.payload_type, &self.payload), signature).map_err(|_| {
            Refusal::new(
                RefusalCode::SignatureMismatch,
                format!(
                    "spec.signature.signatures[{i}].sig does not verify under key {}: the statement or the signature was \
                     changed, or another key signed; sign again with `remit package sign`",
                    key.fingerprint()
                ),
            )
        })
    }
}

/// What an envelope says, NOT verified: for people to read, nothing may be decided by it.
pub fn peek_statement(envelope: &Envelope) -> Result<Statement, Refusal> {
    Opened::open(envelope).map(|opened| opened.statement)
}

/// Signs a statement: what `remit package sign` does, offline, with a key that the operator never sees.
pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Envelope, SignError> {
    let public = PublicKey::from_key(key.verifying_key())?;
    if statement.key_fingerprint != public.fingerprint() {
        return Err(SignError::OtherKey);
    }
    let payload = serde_json::to_vec(statement).map_err(|e| SignError::Statement(e.to_string()))?;
    if payload.len() > MAX_STATEMENT_BYTES {
        return Err(SignError::Statement(format!("{} bytes, at most {MAX_STATEMENT_BYTES}", payload.len())));
    }
    let signature = key.sign(&pae(PAYLOAD_TYPE, &payload));
    Ok(Envelope {
        payload_type: PAYLOAD_TYPE.into(),
        payload: BASE64_STANDARD.encode(&payload),
        signatures: vec![EnvelopeSignature {
            keyid: public.fingerprint().into(),
            sig: BASE64_STANDARD.encode(signature.to_bytes()),
        }],
    })
}

/// Why a statement can't be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key is one that would be refused.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The statement names another key than the one that signs.
    #[error("the statement's keyFingerprint is not that of the key that signs")]
    OtherKey,
    /// The statement is too large.
    #[error("the statement can't be signed: {0}")]
    Statement(String),
}

/// DSSE's pre-authentication encoding: `DSSEv1 SP LEN(type) SP type SP LEN(body) SP body`.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Standard base64, canonical: padded, no unused bits set, no white space.
fn decode(field: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD.decode(text).map_err(|e| malformed(format!("{field} is not canonical standard base64: {e}")))
}

fn malformed(message: String) -> Refusal {
    Refusal::new(RefusalCode::EnvelopeMalformed, format!("spec.signature: {message}"))
}

/// `sha256:` and 64 lower-case hex digits.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The beginning of a text from outside, short enough for a message.
pub(super) fn clip(text: &str) -> &str {
    match text.char_indices().nth(80) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn public(key: &SigningKey) -> PublicKey {
        PublicKey::from_key(key.verifying_key()).unwrap()
    }

    fn statement() -> Statement {
        Statement {
            format_version: "1".into(),
            installation: "any".into(),
            tenant: "acme".into(),
            package: "tools".into(),
            version: "1.0.0".into(),
            digest: super::super::digest::sha256_text(b"x"),
            key_fingerprint: public(&key()).fingerprint().into(),
            author: Some("Ann".into()),
            signed_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        }
    }

    /// An envelope around any payload, with a good signature.
    fn envelope_of(payload: &[u8]) -> Envelope {
        let mut envelope = sign(&statement(), &key()).unwrap();
        envelope.payload = BASE64_STANDARD.encode(payload);
        envelope.signatures[0].sig = BASE64_STANDARD.encode(key().sign(&pae(PAYLOAD_TYPE, payload)).to_bytes());
        envelope
    }

    fn refused(envelope: &Envelope) -> Refusal {
        Ed25519Dsse.verify(envelope, &public(&key())).unwrap_err()
    }

    #[test]
    fn pre_authentication_encoding_is_that_of_the_protocol() {
        // The protocol's own example.
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
        // Lengths count bytes, not characters.
        assert_eq!(pae("é", "ü".as_bytes()), "DSSEv1 2 é 2 ü".as_bytes());
    }

    #[test]
    fn what_is_signed_verifies() {
        assert_eq!(Ed25519Dsse.verify(&sign(&statement(), &key()).unwrap(), &public(&key())), Ok(statement()));
    }

    #[test]
    fn every_changed_byte_of_the_payload_is_found() {
        let envelope = sign(&statement(), &key()).unwrap();
        let payload = BASE64_STANDARD.decode(&envelope.payload).unwrap();
        for i in 0..payload.len() {
            let mut changed = payload.clone();
            changed[i] ^= 1;
            let changed = Envelope { payload: BASE64_STANDARD.encode(changed), ..envelope.clone() };
            let code = refused(&changed).code;
            assert!(
                matches!(code, RefusalCode::SignatureMismatch | RefusalCode::EnvelopeMalformed),
                "byte {i}: {code}"
            );
        }
    }

    #[test]
    fn every_changed_bit_of_the_signature_is_found() {
        let envelope = sign(&statement(), &key()).unwrap();
        let sig = BASE64_STANDARD.decode(&envelope.signatures[0].sig).unwrap();
        for bit in 0..sig.len() * 8 {
            let mut changed = sig.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut bad = envelope.clone();
            bad.signatures[0].sig = BASE64_STANDARD.encode(changed);
            assert_eq!(refused(&bad).code, RefusalCode::SignatureMismatch, "bit {bit}");
        }
    }

    /// S + L is the same scalar: a library that does not look makes a second signature out of the first.
    #[test]
    fn malleable_signature_is_refused() {
        // L = 2^252 + 27742317777372353535851937790883648493, little endian.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut envelope = sign(&statement(), &key()).unwrap();
        let mut sig = BASE64_STANDARD.decode(&envelope.signatures[0].sig).unwrap();
        let mut carry = 0u16;
        for (byte, l) in sig[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(l) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        envelope.signatures[0].sig = BASE64_STANDARD.encode(sig);
        assert_eq!(refused(&envelope).code, RefusalCode::SignatureMismatch);
    }

    /// With a small-order R (here the neutral element) and S = 0, verification that is not strict is fooled under a weak key.
    #[test]
    fn small_order_signature_is_refused() {
        let mut envelope = sign(&statement(), &key()).unwrap();
        let mut sig = [0u8; 64];
        sig[0] = 1;
        envelope.signatures[0].sig = BASE64_STANDARD.encode(sig);
        assert_eq!(refused(&envelope).code, RefusalCode::SignatureMismatch);
    }

    #[test]
    fn another_payload_type_is_refused() {
        for other in
            ["application/json", "", "application/vnd.remit.package.v1+JSON", "application/vnd.remit.package.v1+json "]
        {
            let mut envelope = sign(&statement(), &key()).unwrap();
            envelope.payload_type = other.into();
            let refusal = refused(&envelope);
            assert_eq!(refusal.code, RefusalCode::EnvelopeMalformed);
            assert!(refusal.message.contains("payloadType"), "{refusal}");
        }
    }

    #[test]
    fn non_canonical_base64_is_refused() {
        let good = envelope_of(&serde_json::to_vec(&statement()).unwrap());
        assert!(Ed25519Dsse.verify(&good, &public(&key())).is_ok());
        // A 64-byte signature ends in two characters of which the last holds four unused bits, and "==".
        let sig = &good.signatures[0].sig;
        let stem = sig.strip_suffix("==").unwrap();
        let last = stem.chars().last().unwrap();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
        let spellings = [
            stem.to_string(),
            format!("{stem}="),
            format!("{sig}\n"),
            format!(" {sig}"),
            format!("{}{next}==", &stem[..stem.len() - 1]),
        ];
        for spelling in spellings {
            let mut bad = good.clone();
            bad.signatures[0].sig = spelling.clone();
            let refusal = refused(&bad);
            assert_eq!(refusal.code, RefusalCode::EnvelopeMalformed, "{spelling:?}");
            assert!(refusal.message.contains("signatures[0].sig"), "{refusal}");
        }
    }

    #[test]
    fn a_statement_out_of_shape_is_refused_though_signed() {
        let good = serde_json::to_string(&statement()).unwrap();
        assert!(Ed25519Dsse.verify(&envelope_of(good.as_bytes()), &public(&key())).is_ok());
        let bad = [
            (good.replace("\"tenant\"", "\"tenants\""), "tenants"),
            (good.replacen('{', "{\"extra\":1,", 1), "extra"),
            (good.replacen('{', "{\"tenant\":\"other\",", 1), "duplicate field `tenant`"),
            (good.replace("\"formatVersion\":\"1\"", "\"formatVersion\":\"2\""), "formatVersion is \"2\""),
            (good.replace(public(&key()).fingerprint(), "sha256:other"), "keyFingerprint"),
            (format!("{good}x"), "trailing"),
            ("{}".into(), "missing field"),
            ("[".repeat(2000), "payload"),
        ];
        for (payload, expected) in bad {
            let refusal = refused(&envelope_of(payload.as_bytes()));
            assert_eq!(refusal.code, RefusalCode::EnvelopeMalformed, "{payload}");
            assert!(refusal.message.contains(expected), "{refusal}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let refusal = refused(&envelope_of(&vec![b' '; MAX_STATEMENT_BYTES + 10]));
        assert!(refusal.message.contains("payload has"), "{refusal}");
        for count in [0, MAX_SIGNATURES + 1] {
            let mut envelope = sign(&statement(), &key()).unwrap();
            envelope.signatures = vec![envelope.signatures[0].clone(); count];
            let refusal = refused(&envelope);
            assert!(refusal.message.contains(&format!("signatures has {count} entries")), "{refusal}");
        }
        let long = Statement { author: Some("x".repeat(5000)), ..statement() };
        assert!(matches!(sign(&long, &key()), Err(SignError::Statement(_))));
    }

    #[test]
    fn key_ids_have_one_form_and_come_once() {
        let good = sign(&statement(), &key()).unwrap();
        for keyid in ["", "sha256:", "SHA256:00", &good.signatures[0].keyid.to_uppercase()] {
            let mut envelope = good.clone();
            envelope.signatures[0].keyid = keyid.into();
            assert!(refused(&envelope).message.contains("signatures[0].keyid"));
        }
        let mut envelope = good.clone();
        envelope.signatures.push(good.signatures[0].clone());
        assert!(refused(&envelope).message.contains("signatures[1].keyid is the same"));
    }

    #[test]
    fn another_key_does_not_verify() {
        let other = public(&SigningKey::from_bytes(&[2; 32]));
        let refusal = Ed25519Dsse.verify(&sign(&statement(), &key()).unwrap(), &other).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::SignatureMismatch);
        assert!(sign(&Statement { key_fingerprint: other.fingerprint().into(), ..statement() }, &key()).is_err());
    }
}
