//! Versions of every policy's text, tenant by tenant: what came into force when, by whom, and what it replaced.
//!
//! The database's own triggers write the versions when a row of `in_force` comes; nothing here can leave one out, change one or take
//! one away. A policy is named as in records: by its package and its `@id` there. A package of another name has other policies.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{StoreError, StoreFuture};
use crate::policy::PolicyText;

/// Most versions of one page.
pub const MAX_VERSIONS: u32 = 1000;

/// What comes into force with a row of `in_force`: what the versions are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The policies of the package; none where nothing is in force from then on.
    pub policies: Vec<PolicyText>,
    /// When it came into force.
    pub at: Timestamp,
    /// Author, as the package says; signed where the package is signed.
    pub author: Option<String>,
    /// Field manager that applied the object. Where the API server said at admission who applied it, that counts.
    pub applied_by: Option<String>,
    /// Where it came back into force: who went back to it, and why.
    pub rollback: Option<Rollback>,
}

/// Who went back to a former revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// The person, or `remit`.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Arrival {
    /// Nothing but a time.
    pub fn empty(at: Timestamp) -> Self {
        Self { policies: Vec::new(), at, author: None, applied_by: None, rollback: None }
    }
}

/// What a version changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The policy was not there before.
    Create,
    /// Its text became another.
    Update,
    /// It is gone.
    Delete,
    /// A former revision came back: what it had is there again, what it had not is gone.
    Rollback,
}

impl std::str::FromStr for Change {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text {
            "create" => Ok(Self::Create),
            "update" => Ok(Self::Update),
            "delete" => Ok(Self::Delete),
            "rollback" => Ok(Self::Rollback),
            _ => Err(StoreError::Corrupt { what: "change of a policy", why: format!("{text:?} is none") }),
        }
    }
}

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Name of the package.
    pub package: String,
    /// Its `@id` in the package.
    pub policy: String,
    /// From 1, without a gap.
    pub version: u64,
    /// When it came into force.
    pub time: Timestamp,
    /// What it changed.
    pub change: Change,
    /// Whether the policy is gone with this version.
    pub deleted: bool,
    /// SHA-256 of its text, hex, as in the `text_hash` of records; absent where it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its text; only with a single version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Revision of the rollout that it came with.
    pub revision: i64,
    /// Version of the package that it came with.
    pub package_version: String,
    /// Digest of the package in force from then on; empty: nothing was.
    pub after: String,
    /// Digest of the package in force before; empty: nothing was.
    pub before: String,
    /// Fingerprint of the key that the package was signed with; absent where it is unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<String>,
    /// Author, as the package says; signed where the package is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Who applied the package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_by: Option<String>,
    /// Who went back to a former revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What was in force, and is, policy by policy.
pub trait History: Send + Sync {
    /// Notes who applied the package of this digest in the namespace, by its UID, as the API server says. The newest note counts.
    fn note_applied<'a>(
        &'a self,
        tenant_uid: &'a str,
        digest: &'a str,
        username: &'a str,
        at: Timestamp,
    ) -> StoreFuture<'a, ()>;
    /// The newest version of every policy, deleted ones too, by package and id; of one package or of all.
    fn policies<'a>(&'a self, tenant_uid: &'a str, package: Option<&'a str>) -> StoreFuture<'a, Vec<PolicyVersion>>;
    /// Versions of a policy, newest first, those below `before` where it is given, at most `limit` (1 to `MAX_VERSIONS`). Empty where
    /// there is no such policy.
    fn versions<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        before: Option<u64>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<PolicyVersion>>;
    /// One version with its text.
    fn version<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        version: u64,
    ) -> StoreFuture<'a, Option<PolicyVersion>>;
}
