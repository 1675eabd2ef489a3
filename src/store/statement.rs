//! What the writer signs about its chain: anchors (how far it goes) and tombstones (what retention took away), as DSSE
//! envelopes under the installation's key.
//!
//! Nothing in a statement is believed before its signature has been verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::chain::{Hash, RowsDigest, hex};
use crate::api::{Envelope, EnvelopeSignature};

/// Version of the statements.
const FORMAT: &str = "1";

/// How far a writer's chain goes. Whoever keeps one outside the database can tell later whether anything up to `seq` was
/// cut or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Anchor {
    /// Always "1".
    pub format_version: String,
    /// Who writes the chain.
    pub writer: String,
    /// Last sequence number.
    pub seq: u64,
    /// Hash of the chain up to it, hex.
    pub head: String,
    /// Records since the beginning that are still whole.
    pub records: u64,
    /// Tombstones since the beginning.
    pub tombstones: u64,
    /// When it was signed.
    pub time: Timestamp,
}

/// What retention took away: the rows' bodies. Their hashes stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// Always "1".
    pub format_version: String,
    /// Who writes the chain.
    pub writer: String,
    /// Number of the tombstone, from 1 without gaps.
    pub number: u64,
    /// Namespace whose records they were.
    pub tenant: String,
    /// Why: `retention`.
    pub reason: String,
    /// Who did it.
    pub by: String,
    /// Everything of it was older than this.
    pub before: Timestamp,
    /// When it was done.
    pub time: Timestamp,
    /// How many rows.
    pub rows: u64,
    /// The first of them.
    pub from_seq: u64,
    /// The last of them.
    pub to_seq: u64,
    /// Digest over (seq, hash of the body) of each, in order.
    pub rows_digest: String,
}

/// A statement that can be signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// Media type of the payload.
    const PAYLOAD_TYPE: &'static str;
    /// What it is called in messages.
    const NAME: &'static str;
    /// Its format version.
    fn format_version(&self) -> &str;
}

impl Anchor {
    /// Statement of this version.
    pub fn new(writer: &str, seq: u64, head: &[u8], records: u64, tombstones: u64, time: Timestamp) -> Self {
        Self { format_version: FORMAT.into(), writer: writer.into(), seq, head: hex(head), records, tombstones, time }
    }
}

impl Statement for Anchor {
    const PAYLOAD_TYPE: &'static str = "application/vnd.remit.anchor.v1+json";
    const NAME: &'static str = "anchor";
    fn format_version(&self) -> &str {
        &self.format_version
    }
}

impl Statement for Tombstone {
    const PAYLOAD_TYPE: &'static str = "application/vnd.remit.tombstone.v1+json";
    const NAME: &'static str = "tombstone";
    fn format_version(&self) -> &str {
        &self.format_version
    }
}

impl Tombstone {
    /// The one format version that there is.
    pub const FORMAT_VERSION: &'static str = FORMAT;

    /// What retention takes away at `now`: these rows (seq, hash of the body), in order of seq.
    pub(super) fn of_retention(
        writer: &str,
        number: u64,
        tenant: String,
        before: Timestamp,
        now: Timestamp,
        rows: &[(u64, Hash)],
    ) -> Self {
        let mut digest = RowsDigest::default();
        rows.iter().for_each(|(seq, hash)| digest.add(*seq, hash));
        Self {
            format_version: FORMAT.into(),
            writer: writer.into(),
            number,
            tenant,
            reason: "retention".into(),
            by: "remit".into(),
            before,
            time: now,
            rows: rows.len() as u64,
            from_seq: rows.first().map_or(0, |(seq, _)| *seq),
            to_seq: rows.last().map_or(0, |(seq, _)| *seq),
            rows_digest: digest.finish(),
        }
    }
}

/// Why an envelope is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not this kind of statement.
    #[error("payloadType is `{got}`, expected `{expected}`")]
    Kind { expected: &'static str, got: String },
    /// Base64 or JSON.
    #[error("{field}: {why}")]
    Malformed { field: &'static str, why: String },
    /// A later version of Remit wrote it.
    #[error("formatVersion is `{0}`, this version of remit reads `1`")]
    Version(String),
    /// The signature.
    #[error("no signature of the key {0} verifies")]
    Signature(String),
}

/// Fingerprint of a key: SHA-256 over its 32 bytes.
pub fn fingerprint(key: &VerifyingKey) -> String {
    format!("sha256:{}", hex(&Sha256::digest(key.as_bytes())))
}

/// DSSE's pre-authentication encoding.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Signs a statement.
pub fn sign<S: Statement>(statement: &S, key: &SigningKey) -> Result<Envelope, serde_json::Error> {
    let payload = serde_json::to_vec(statement)?;
    let signature = key.sign(&pae(S::PAYLOAD_TYPE, &payload));
    Ok(Envelope {
        payload_type: S::PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(&payload),
        signatures: vec![EnvelopeSignature {
            keyid: fingerprint(&key.verifying_key()),
            sig: STANDARD.encode(signature.to_bytes()),
        }],
    })
}

/// Reads a statement; with a key only where a signature of that key verifies (strictly).
pub fn open<S: Statement>(envelope: &Envelope, key: Option<&VerifyingKey>) -> Result<S, StatementError> {
    if envelope.payload_type != S::PAYLOAD_TYPE {
        return Err(StatementError::Kind { expected: S::PAYLOAD_TYPE, got: envelope.payload_type.clone() });
    }
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|e| StatementError::Malformed { field: "payload", why: e.to_string() })?;
    if let Some(key) = key {
        let signed = pae(S::PAYLOAD_TYPE, &payload);
        let verifies = envelope.signatures.iter().any(|s| {
            let bytes = STANDARD.decode(&s.sig).ok().and_then(|bytes| Signature::from_slice(&bytes).ok());
            bytes.is_some_and(|signature| key.verify_strict(&signed, &signature).is_ok())
        });
        if !verifies {
            return Err(StatementError::Signature(fingerprint(key)));
        }
    }
    let statement: S = serde_json::from_slice(&payload)
        .map_err(|e| StatementError::Malformed { field: "payload", why: e.to_string() })?;
    if statement.format_version() != FORMAT {
        return Err(StatementError::Version(statement.format_version().to_owned()));
    }
    Ok(statement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor() -> Anchor {
        Anchor::new("w", 3, &[7; 32], 3, 0, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_signed_anchor_opens_under_its_key_only() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let other = SigningKey::from_bytes(&[2; 32]).verifying_key();
        let envelope = sign(&anchor(), &key).unwrap();
        assert_eq!(open::<Anchor>(&envelope, Some(&key.verifying_key())).unwrap(), anchor());
        assert_eq!(
            open::<Anchor>(&envelope, Some(&other)).unwrap_err(),
            StatementError::Signature(fingerprint(&other))
        );
    }

    #[test]
    fn a_changed_payload_does_not_verify() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let mut envelope = sign(&anchor(), &key).unwrap();
        let mut changed = anchor();
        changed.seq = 2;
        envelope.payload = STANDARD.encode(serde_json::to_vec(&changed).unwrap());
        assert!(matches!(open::<Anchor>(&envelope, Some(&key.verifying_key())), Err(StatementError::Signature(_))));
    }

    #[test]
    fn an_anchor_is_no_tombstone() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let envelope = sign(&anchor(), &key).unwrap();
        assert!(matches!(open::<Tombstone>(&envelope, Some(&key.verifying_key())), Err(StatementError::Kind { .. })));
    }
}
