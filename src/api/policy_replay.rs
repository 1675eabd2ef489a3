//! `PolicyReplay`: recorded decisions evaluated under two packages, with the facts of their time.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;
use super::invariant::Invariant;
use super::tenant_rollout::PackageSelector;

/// Rules over the whole object. Immutability stands here and not at the fields: a transition rule of a field is skipped where the field is
/// absent before or after, so that adding or removing an optional one would get around it.
pub(super) const RULES: &[Rule] = &[
    Rule {
        rule: "self.spec == oldSelf.spec",
        message: "spec cannot be changed: what was replayed is what was asked for; apply a new object instead",
    },
    Rule {
        rule: "!has(self.spec.selection) || !has(self.spec.selection.since) || !has(self.spec.selection.until) || self.spec.selection.since < self.spec.selection.until",
        message: "spec.selection.until must be later than spec.selection.since",
    },
];

/// The recorded decisions of this namespace, evaluated again under two of its packages. Deleted 24 hours after it has finished.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "PolicyReplay",
    namespaced,
    status = "PolicyReplayStatus",
    category = "remit",
    shortname = "prep",
    derive = "PartialEq",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Replayed", type_ = "integer", json_path = ".status.counts.replayed"),
    printcolumn(name = "Critical", type_ = "integer", json_path = ".status.counts.critical"),
    printcolumn(name = "High", type_ = "integer", json_path = ".status.counts.high"),
    printcolumn(name = "Run", type_ = "string", json_path = ".status.run", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReplaySpec {
    /// Package to compare with; the one in force if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<PackageSelector>,
    /// Package to try.
    pub candidate: PackageSelector,
    /// Which decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<ReplaySelection>,
    /// What must hold of the candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub invariants: Vec<Invariant>,
}

/// Which recorded decisions are replayed. What is not set does not restrict; of a list, any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplaySelection {
    /// From this instant on. Whole seconds, as all times of Kubernetes: a fraction is cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Before this instant, whole seconds; before the start of the run if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Ids of sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub sessions: Vec<String>,
    /// Names of agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub agents: Vec<String>,
    /// Delegators: `NAME`, `user:NAME` or `agent:NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 260)), extend("x-kubernetes-list-type" = "set"))]
    pub delegators: Vec<String>,
    /// Tools, `server/name`, or ids of other resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)), extend("x-kubernetes-list-type" = "set"))]
    pub tools: Vec<String>,
    /// What was answered: `allow`, `deny`, `approval_required` or `refused`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub outcomes: Vec<RecordedOutcome>,
    /// At most so many, 1 to 10000000; 100000 if not set. The newest of each agent, in equal shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub limit: Option<i64>,
}

/// Decisions of a run where its selection names no limit.
pub const DEFAULT_REPLAY_LIMIT: i64 = 100_000;
/// The most decisions of a run.
pub const MAX_REPLAY_LIMIT: i64 = 10_000_000;

impl ReplaySelection {
    /// Decisions that are replayed at most.
    pub fn limit(&self) -> u64 {
        u64::try_from(self.limit.unwrap_or(DEFAULT_REPLAY_LIMIT)).unwrap_or_default()
    }

    /// What is wrong with it: the field, and why. The API server holds objects to the same rules; HTTP bodies come here.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let lists = [
            ("selection.sessions", &self.sessions),
            ("selection.agents", &self.agents),
            ("selection.delegators", &self.delegators),
            ("selection.tools", &self.tools),
        ];
        for (field, list) in lists {
            if list.len() > 64 || list.iter().any(|text| text.is_empty() || text.len() > 1024) {
                return Err((field, "at most 64 texts of 1 to 1024 bytes".to_owned()));
            }
        }
        if self.outcomes.len() > 4 {
            return Err(("selection.outcomes", "each outcome once".to_owned()));
        }
        if !(1..=MAX_REPLAY_LIMIT).contains(&self.limit.unwrap_or(DEFAULT_REPLAY_LIMIT)) {
            return Err(("selection.limit", format!("must be 1 to {MAX_REPLAY_LIMIT}")));
        }
        match (&self.since, &self.until) {
            (Some(since), Some(until)) if since.0 >= until.0 => {
                Err(("selection.until", "must be later than since".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// What was answered, as records write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordedOutcome {
    /// The call might be made.
    Allow,
    /// It might not.
    Deny,
    /// Humans were asked.
    ApprovalRequired,
    /// The question itself was wrong.
    Refused,
}

impl RecordedOutcome {
    /// As records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordedOutcome::Allow => "allow",
            RecordedOutcome::Deny => "deny",
            RecordedOutcome::ApprovalRequired => "approval_required",
            RecordedOutcome::Refused => "refused",
        }
    }
}

/// Where a replay stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplayState {
    /// It waits for its turn.
    #[default]
    Queued,
    /// It is under way.
    Running,
    /// It has a result, which may be that nothing can be said.
    Completed,
    /// It could not be carried out.
    Failed,
}

impl ReplayState {
    /// As status, store and API write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplayState::Queued => "queued",
            ReplayState::Running => "running",
            ReplayState::Completed => "completed",
            ReplayState::Failed => "failed",
        }
    }

    /// Whether nothing follows.
    pub fn finished(self) -> bool {
        matches!(self, ReplayState::Completed | ReplayState::Failed)
    }
}

/// What a finished replay comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplayVerdict {
    /// Decisions were replayed, none differs critically, and every invariant holds.
    Pass,
    /// A difference is critical, or an invariant does not hold.
    Fail,
    /// No decision could be replayed: nothing can be said.
    Inconclusive,
}

impl ReplayVerdict {
    /// As status and reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplayVerdict::Pass => "pass",
            ReplayVerdict::Fail => "fail",
            ReplayVerdict::Inconclusive => "inconclusive",
        }
    }
}

/// What Remit found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReplayStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// `queued`, `running`, `completed` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ReplayState>,
    /// Id of the run: its report is at `/admin/replay/runs/{id}/report?tenant=NAMESPACE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// How far it has come; written at most every 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ReplayProgress>,
    /// Digest of the package that was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Digest of the package that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// What was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<ReplayCounts>,
    /// Invariants that do not hold, by name. The counter-examples are in the report, for whoever may read decisions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub invariants_failed: Vec<String>,
    /// `pass`, `fail` or `inconclusive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<ReplayVerdict>,
    /// Fingerprint of what went in: packages, selection, invariants and every selected record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_fingerprint: Option<String>,
    /// Fingerprint of what came out. The same input always gives the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_fingerprint: Option<String>,
    /// When it finished. The object goes 24 hours later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Ready: the replay has a result. Reconciling: it waits or is under way. Stalled: it can't be carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far a replay has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayProgress {
    /// Decisions that were looked at.
    pub done: i64,
    /// Decisions that were selected.
    pub total: i64,
    /// When this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// What a replay has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayCounts {
    /// Decisions that were selected.
    pub selected: i64,
    /// Of them, those that were evaluated on both sides.
    pub replayed: i64,
    /// Of them, those that could not be.
    pub not_replayable: i64,
    /// Why not, with how many: `no_facts`, `redacted_value`, `refused`, `tenant_recreated`, `another_tenant`, `not_reproduced`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_replayable_because: BTreeMap<String, i64>,
    /// Replayed decisions without any difference.
    pub same: i64,
    /// Differences by severity.
    pub low: i64,
    pub medium: i64,
    pub high: i64,
    pub critical: i64,
    /// Differences by root cause: `access_restricted`, `access_expanded`, `approval_added`, `approval_removed`,
    /// `approval_weakened`, `rule_changed`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub causes: BTreeMap<String, i64>,
    /// Differences that let somebody do more.
    pub expansions: i64,
    /// Differences that let somebody do less.
    pub restrictions: i64,
    /// Restrictions of severity high.
    pub high_restrictions: i64,
}
