//! What the store knows of rollouts: where each one stands, which pairs of spec and package have failed, and what happened.
//!
//! The store is written before the status, in one transaction a step, and only over the version that was read: a leader that is one no
//! more changes nothing. Nothing is ever deleted for a rollout's being deleted; it belongs to the namespace's UID.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Arrival, InForceRow, StoreError, StoreFuture};
use crate::api::{RolloutVerdict, TenantRolloutStatus};

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutState {
    /// Counted up with each commit, from 1.
    pub version: i64,
    /// What decides who is answered by what, and what the rollout waits for: a status without its texts and conditions.
    pub state: TenantRolloutStatus,
}

/// A package that does not start again under the spec by which it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutFailure {
    /// SHA-256 of the spec, without `paused`.
    pub spec_hash: String,
    /// Digest of the package.
    pub digest: String,
    /// `BudgetExceeded`, `ProgressDeadlineExceeded`, `Aborted`, `RolledBack`.
    pub cause: String,
    /// A sentence for people: decisions, policies, threshold; or who, and why.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A step of a rollout, for the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRecord {
    /// Number of the revision.
    pub revision: i64,
    /// When.
    pub at: Timestamp,
    /// `queued`, `canary`, `promoting`, `completed` or `rolled_back`.
    pub phase: String,
    /// Why: `NewVersion`, `StageReached`, `BudgetExceeded`, …
    pub cause: String,
    /// The package, its version and digest.
    pub package: String,
    pub version: String,
    pub digest: String,
    /// Digest of what was in force before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// SHA-256 of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_hash: Option<String>,
    /// Stage from 0, and its share of sessions; None: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// The status's epoch from this step on.
    pub epoch: i64,
    /// Who asked for it; None: Remit itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the budgets said at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RolloutVerdict>,
}

/// A step: all of it, or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutCommit {
    /// UID of the namespace.
    pub tenant_uid: String,
    /// Its name.
    pub tenant: String,
    /// Version of the state that the step was made from; 0: there was none.
    pub expected: i64,
    /// Where the rollout stands from now on.
    pub state: TenantRolloutStatus,
    /// What comes into force by it, in order.
    pub in_force: Vec<InForceRow>,
    /// What does not start again.
    pub failures: Vec<RolloutFailure>,
    /// What happened.
    pub records: Vec<RolloutRecord>,
}

/// Where rollouts stand.
pub trait Rollouts: Send + Sync {
    /// Where the rollout of this namespace stands; None: it never took a step.
    fn rollout_state<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Option<RolloutState>>;
    /// Takes a step in one transaction, with what the history is told of each row of `in_force`, in order. False: somebody else took
    /// a step since `expected`, and nothing is changed.
    fn commit_rollout<'a>(&'a self, commit: &'a RolloutCommit, arrivals: &'a [Arrival]) -> StoreFuture<'a, bool>;
    /// What has failed under this spec.
    fn rollout_failures<'a>(&'a self, tenant_uid: &'a str, spec_hash: &'a str) -> StoreFuture<'a, Vec<RolloutFailure>>;
    /// What happened, newest first, at most `limit` (1 to 1000).
    fn rollout_records<'a>(&'a self, tenant_uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<RolloutRecord>>;
}

pub(super) fn rollout_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Corrupt { what, why: e.to_string() })
}

pub(super) fn rollout_of_json<T: for<'d> Deserialize<'d>>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what, why: e.to_string() })
}
