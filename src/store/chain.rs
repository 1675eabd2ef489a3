//! The hash chain of one writer: what is hashed, and which columns a record's bytes imply.
//!
//! Pure. It never reads a database and never trusts a column that it can derive.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gate::{DecisionRecord, Outcome};

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
    /// By what a rollout is judged; absent where the record counts for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutColumns>,
}

/// What a record says of the arm of a rollout that it was decided by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutColumns {
    /// UID of the namespace.
    pub tenant_uid: String,
    /// Number of the revision.
    pub revision: i64,
    /// `stable` or `canary`.
    pub arm: String,
    /// Name of the agent, or `type:id` of another subject.
    pub subject: String,
    /// `allow`, `approval_required`, `deny`, or `error`: denied because a policy could not be evaluated. Of what was only observed:
    /// what it would be.
    pub result: String,
    /// Time in the gates, microseconds.
    pub latency: i64,
}

/// Codes of denies by which nobody decided: a policy failed, or the package of the arm could not be loaded.
const NOT_EVALUATED: [&str; 2] = ["evaluation_error", "no_package"];

/// What counts when arms are compared. A question that was refused was not allowed.
fn result(outcome: &str, code: &str) -> String {
    match outcome {
        "deny" if NOT_EVALUATED.contains(&code) => "error",
        "allow" | "approval_required" => outcome,
        _ => Outcome::Deny.as_str(),
    }
    .to_owned()
}

/// Whom a record is counted for.
pub(super) fn subject(agent: &str, type_: &str, id: &str) -> String {
    if agent.is_empty() { format!("{type_}:{id}") } else { agent.to_owned() }
}

impl From<DecisionRecord> for Columns {
    fn from(record: DecisionRecord) -> Self {
        let rollout = record.revision.map(|revision| {
            let (outcome, code) = match &record.would_be {
                Some(w) => (w.outcome, &w.code),
                None => (record.outcome, &record.code),
            };
            let asked = &record.request.subject;
            RolloutColumns {
                tenant_uid: record.tenant_uid.clone(),
                revision,
                arm: record.arm.clone(),
                subject: subject(&record.agent, &asked.type_, &asked.id),
                result: result(outcome.as_str(), code),
                latency: i64::try_from(record.latency_micros).unwrap_or(i64::MAX),
            }
        });
        Self {
            rollout,
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
            #[serde(default)]
            tenant_uid: String,
            #[serde(default)]
            arm: String,
            #[serde(default)]
            revision: Option<i64>,
            #[serde(default)]
            code: String,
            #[serde(default)]
            would_be: Option<WouldBe>,
            #[serde(default)]
            latency_micros: u64,
        }
        #[derive(Deserialize)]
        struct WouldBe {
            outcome: String,
            code: String,
        }
        #[derive(Deserialize)]
        struct Request {
            #[serde(default)]
            session: Option<String>,
            #[serde(default)]
            subject: Subject,
            action: Action,
        }
        #[derive(Default, Deserialize)]
        struct Subject {
            #[serde(rename = "type", default)]
            type_: String,
            #[serde(default)]
            id: String,
        }
        #[derive(Deserialize)]
        struct Action {
            name: String,
        }
        let body: Body = serde_json::from_slice(body)?;
        let rollout = body.revision.map(|revision| {
            let (outcome, code) = match &body.would_be {
                Some(w) => (&w.outcome, &w.code),
                None => (&body.outcome, &body.code),
            };
            RolloutColumns {
                result: result(outcome, code),
                subject: subject(&body.agent, &body.request.subject.type_, &body.request.subject.id),
                tenant_uid: body.tenant_uid,
                revision,
                arm: body.arm,
                latency: i64::try_from(body.latency_micros).unwrap_or(i64::MAX),
            }
        });
        Ok(Self {
            rollout,
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
            ("rollout", self.rollout != other.rollout),
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
    fn what_a_rollout_is_judged_by_follows_from_the_bytes() {
        let mut record = testing::record("acme", 7);
        assert_eq!(Columns::from(record.clone()).rollout, None, "no revision, nothing to judge");
        (record.revision, record.arm) = (Some(3), "canary".into());
        let derived = |record: &DecisionRecord| {
            let columns = Columns::from(record.clone());
            assert_eq!(columns, Columns::derive(&serde_json::to_vec(record).unwrap()).unwrap());
            columns.rollout.unwrap()
        };
        let allowed = derived(&record);
        assert_eq!((allowed.arm.as_str(), allowed.subject.as_str(), allowed.latency), ("canary", "coder", 12));
        assert_eq!((allowed.result.as_str(), allowed.tenant_uid.as_str()), ("allow", "uid-acme"));
        for (outcome, code, expected) in [
            (Outcome::Deny, "evaluation_error", "error"),
            (Outcome::Deny, "no_package", "error"),
            (Outcome::Deny, "no_permit", "deny"),
            (Outcome::Refused, "invalid_request", "deny"),
            (Outcome::ApprovalRequired, "approval_required", "approval_required"),
        ] {
            (record.outcome, record.code) = (outcome, code.into());
            assert_eq!(derived(&record).result, expected);
        }
        (record.outcome, record.agent) = (Outcome::Allow, String::new());
        record.would_be = Some(crate::gate::RecordedWouldBe {
            outcome: Outcome::Deny,
            code: "evaluation_error".into(),
            reason: String::new(),
            policies: vec![],
        });
        let observed = derived(&record);
        assert_eq!((observed.result.as_str(), observed.subject.as_str()), ("error", "agent:coder"));
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
