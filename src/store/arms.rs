//! What the two arms of a rollout did: counted from the records, and from evaluations under the other arm.
//!
//! Only what Remit wrote itself is counted, and only of exactly one namespace UID and one revision.

use jiff::Timestamp;

use super::StoreFuture;
use crate::gate::Arm;
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::Window;

/// A call that was evaluated under the other arm too. No argument values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowRow {
    /// The decision.
    pub decision: String,
    /// Namespace.
    pub tenant: String,
    /// Its UID.
    pub tenant_uid: String,
    /// Number of the revision under way.
    pub revision: i64,
    /// Name of the agent, or `type:id` of another subject.
    pub agent: String,
    /// The arm that answered.
    pub answered: Arm,
    /// How bad the difference is, from stable to candidate; none: they are the same, and the row is only counted.
    pub severity: Severity,
    /// Of what kind the difference is; None where there is none.
    pub cause: Option<Cause>,
    /// A sentence that names agent, tool and the policies of both sides.
    pub sentence: String,
    /// Determining policies and open asks of the package in force.
    pub stable_policies: Vec<String>,
    /// Determining policies and open asks of the candidate.
    pub candidate_policies: Vec<String>,
    /// When the call was decided.
    pub time: Timestamp,
}

/// What a rollout is judged by.
pub trait Arms: Send + Sync {
    /// What the records of exactly this namespace UID and revision say from `rates_since` on, and their shadow evaluations from
    /// `drift_since` on (to the minute).
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        drift_since: Timestamp,
    ) -> StoreFuture<'a, Window>;
    /// Keeps shadow evaluations in one transaction: differences as they are, equal ones as counts. A call that is there already is
    /// not kept again.
    fn save_shadows<'a>(&'a self, rows: &'a [ShadowRow]) -> StoreFuture<'a, ()>;
}
