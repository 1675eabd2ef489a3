//! The answer and its record.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::DecisionRecord;
use super::request::{Caller, CheckRequest};
use crate::policy::{PolicyError, PolicyRef};

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The call may be made.
    Allow,
    /// It may not.
    Deny,
    /// It may, once the humans that are asked say so. Until then it may not.
    ApprovalRequired,
    /// The question itself was wrong (4xx): nothing was decided.
    Refused,
}

impl Outcome {
    /// As records and filters write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::ApprovalRequired => "approval_required",
            Outcome::Refused => "refused",
        }
    }
}

/// What became of a call that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// The tool answered.
    Success,
    /// The tool answered that it failed.
    ToolError,
    /// The tool's server answered with a protocol error, or ended.
    Failed,
    /// The agent took the call back.
    Cancelled,
    /// The call was never sent.
    NotSent,
}

impl CallOutcome {
    /// As reports and people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            CallOutcome::Success => "success",
            CallOutcome::ToolError => "tool_error",
            CallOutcome::Failed => "failed",
            CallOutcome::Cancelled => "cancelled",
            CallOutcome::NotSent => "not_sent",
        }
    }
}

/// One decision, as the gates leave it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What is answered.
    pub outcome: Outcome,
    /// HTTP status: 200 for everything that was decided; 400, 403 or 503 for `refused`.
    pub status: u16,
    /// Stable reason code, snake_case: `allowed`, `denied_by_policy`, `no_permit`, `unknown_tool`, …
    pub code: &'static str,
    /// For people: the author's `@reason` where there is one.
    pub reason: String,
    /// Policies that determined the outcome.
    pub policies: Vec<Arc<PolicyRef>>,
    /// Asks that are open.
    pub asks: Vec<Arc<PolicyRef>>,
    /// Policies that errored.
    pub errors: Box<[PolicyError]>,
    /// While the tenant only observes: what this would be.
    pub would_be: Option<Box<WouldBe>>,
}

impl Decision {
    /// What counts when packages are compared: what it would be if the tenant enforced.
    pub fn weighed(&self) -> (Outcome, &'static str) {
        self.would_be.as_ref().map_or((self.outcome, self.code), |w| (w.outcome, w.code))
    }

    /// Ids of everything that determined it: policies, open asks, and policies that errored. Sorted, each once.
    pub fn determining(&self) -> Vec<String> {
        let policies = self.would_be.as_ref().map_or(&self.policies, |w| &w.policies);
        let ids = policies.iter().chain(&self.asks).map(|p| p.id.clone());
        let mut ids: Vec<String> = ids.chain(self.errors.iter().map(|e| e.policy.clone())).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What is asked of people, where that is what it weighs.
    pub fn asked(&self) -> Vec<Arc<PolicyRef>> {
        if self.weighed().0 != Outcome::ApprovalRequired {
            return Vec::new();
        }
        let policies = self.would_be.as_ref().map_or(&self.policies, |w| &w.policies);
        policies.iter().filter(|p| p.ask.is_some()).cloned().collect()
    }
}

/// What a decision would be if the tenant enforced.
#[derive(Clone, Debug)]
pub struct WouldBe {
    /// `deny` or `approval_required`.
    pub outcome: Outcome,
    /// Reason code.
    pub code: &'static str,
    /// For people.
    pub reason: String,
    /// Policies that would determine it.
    pub policies: Vec<Arc<PolicyRef>>,
}

/// Text bytes times pattern bytes that one evaluation may cost: about a tenth of a second.
pub const MAX_PATTERN_COST: u64 = 1 << 27;
/// Code of the deny of what would cost more than it may.
pub const TOO_COSTLY: &str = "evaluation_too_costly";

/// What the gates are given.
#[derive(Clone, Copy)]
pub struct CheckInput<'a> {
    /// The set that this check sees.
    pub snapshot: &'a super::Snapshot,
    /// Namespace that is asked about.
    pub tenant: &'a str,
    /// Who calls, after gate 2.
    pub caller: &'a Caller,
    /// The question.
    pub request: &'a CheckRequest,
    /// What the session table says of `request.session`.
    pub session: SessionState,
    /// Remit's clock.
    pub now: Timestamp,
    /// Decision id, a UUIDv7 that the server has made.
    pub id: &'a str,
    /// `X-Request-ID`.
    pub request_id: Option<&'a str>,
    /// Key of the digests that stand for `@sensitive` values in records.
    pub redaction_key: &'a [u8],
    /// What one evaluation may cost here, at most [`MAX_PATTERN_COST`].
    pub pattern_budget: u64,
}

/// What the session table says of the session that a call names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// The call names none.
    #[default]
    NotNamed,
    /// It is live and belongs to this agent of this tenant.
    Live,
    /// It is unknown, has ended, or is another's: they are not told apart.
    Unknown,
}

/// Decision and record; the record's `latency_micros` is 0 until the server sets it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What to answer.
    pub decision: Decision,
    /// What to keep.
    pub record: DecisionRecord,
}
