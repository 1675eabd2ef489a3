//! The hash chain of one writer: what is hashed, and which columns a record's bytes imply.
//!
//! Pure. It never reads a database and never trusts a column that it can derive.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gate::DecisionRecord;

/// SHA-256.
pub type Hash = [u8; 32];

/// Separates a link's hash from every other use of SHA-256.
const LINK: &[u8] = b"remit.audit.link.v1\0";
/// Separates the start of a chain.
const GENESIS: &[u8] = b"remit.audit.genesis.v1\0";
/// Separates the digest over the rows that a tombstone covers.
const TOMBSTONE: &[u8] = b"remit.audit.tombstone.v1\0";

/// What stands before record 1: bound to the writer, so that one writer's chain can't pass as another's.
pub fn genesis(writer: &str) -> Hash {
    Sha256::new().chain_update(GENESIS).chain_update(writer.as_bytes()).finalize().into()
}

/// Hash of a record's bytes.
pub fn body_hash(body: &[u8]) -> Hash {
    Sha256::digest(body).into()
}

/// The chain's hash up to and including record `seq`. It takes the body's hash, not the body, so that the chain can still
/// be computed after retention took the body away.
pub fn link(previous: &Hash, seq: u64, body_hash: &Hash) -> Hash {
    Sha256::new()
        .chain_update(LINK)
        .chain_update(previous)
        .chain_update(seq.to_be_bytes())
        .chain_update(body_hash)
        .finalize()
        .into()
}

/// Digest of rows that are taken away: (seq, hash of the body), in order of seq.
#[derive(Clone)]
pub struct RowsDigest(Sha256);

impl Default for RowsDigest {
    fn default() -> Self {
        Self(Sha256::new().chain_update(TOMBSTONE))
    }
}

impl RowsDigest {
    /// Adds one row.
    pub fn add(&mut self, seq: u64, body_hash: &Hash) {
        self.0.update(seq.to_be_bytes());
        self.0.update(body_hash);
    }

    /// As a tombstone names it: `sha256:<hex>`.
    pub fn finish(self) -> String {
        let hash: Hash = self.0.finalize().into();
        format!("sha256:{}", hex(&hash))
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.push(char::from(DIGITS[usize::from(b >> 4)]));
        out.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    out
}

/// A hash from its 64 hex digits; None where it is anything else.
pub fn unhex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut out = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(out)
}

/// The columns beside a record's bytes, by which decisions are found. Always derived from the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// Decision id.
    pub id: String,
    /// When it was decided, microseconds since 1970.
    pub time: i64,
    /// Namespace.
    pub tenant: String,
    /// Agent; empty for other subjects.
    pub agent: String,
    /// `user:NAME` or `agent:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegator: Option<String>,
    /// Session id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Action name.
    pub action: String,
    /// Outcome, as records write it.
    pub outcome: String,
}

impl From<DecisionRecord> for Columns {
    fn from(record: DecisionRecord) -> Self {
        Self {
            id: record.id,
            time: record.time.as_microsecond(),
            tenant: record.tenant,
            agent: record.agent,
            delegator: record.delegated_from,
            session: record.request.session,
            action: record.request.action.name,
            outcome: record.outcome.as_str().to_owned(),
        }
    }
}

impl Columns {
    /// Reads only what the columns need, so that records of other versions of Remit can be verified too.
    pub fn derive(body: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Body {
            id: String,
            time: jiff::Timestamp,
            tenant: String,
            agent: String,
            #[serde(default)]
            delegated_from: Option<String>,
            request: Request,
            outcome: String,
        }
        #[derive(Deserialize)]
        struct Request {
            #[serde(default)]
            session: Option<String>,
            action: Action,
        }
        #[derive(Deserialize)]
        struct Action {
            name: String,
        }
        let body: Body = serde_json::from_slice(body)?;
        Ok(Self {
            id: body.id,
            time: body.time.as_microsecond(),
            tenant: body.tenant,
            agent: body.agent,
            delegator: body.delegated_from,
            session: body.request.session,
            action: body.request.action.name,
            outcome: body.outcome,
        })
    }

    /// The first column that differs, by name.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            ("id", self.id != other.id),
            ("time", self.time != other.time),
            ("tenant", self.tenant != other.tenant),
            ("agent", self.agent != other.agent),
            ("delegator", self.delegator != other.delegator),
            ("session", self.session != other.session),
            ("action", self.action != other.action),
            ("outcome", self.outcome != other.outcome),
        ]
        .into_iter()
        .find_map(|(name, differs)| differs.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn columns_follow_from_the_bytes() {
        let mut record = testing::record("acme", 7);
        record.delegated_from = Some("user:alice".into());
        record.request.session = Some("s-1".into());
        let body = serde_json::to_vec(&record).unwrap();
        assert_eq!(Columns::from(record), Columns::derive(&body).unwrap());
    }

    #[test]
    fn a_link_depends_on_each_part() {
        let a = genesis("a");
        let body = body_hash(b"{}");
        let one = link(&a, 1, &body);
        assert_ne!(one, link(&genesis("b"), 1, &body));
        assert_ne!(one, link(&a, 2, &body));
        assert_ne!(one, link(&a, 1, &body_hash(b"{ }")));
    }

    #[test]
    fn hex_round_trip() {
        let hash = body_hash(b"x");
        assert_eq!(unhex(&hex(&hash)), Some(hash));
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex(&"+1".repeat(32)), None);
    }
}
