//! `TenantRollout`: the tenant's pointer to the package in force.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;
use super::invariant::Invariant;

/// Rules over the whole object.
pub(super) const RULES: &[Rule] = &[Rule {
    rule: "self.metadata.name == 'default'",
    message: "metadata.name must be 'default': a namespace has one TenantRollout",
}];

/// Which package is in force in this namespace. Always named `default`; an empty spec means the highest Ready version of the only package.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "TenantRollout",
    namespaced,
    status = "TenantRolloutStatus",
    category = "remit",
    shortname = "tro",
    derive = "PartialEq",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Package", type_ = "string", json_path = ".status.stable.package"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.stable.version"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidate.version"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Percent", type_ = "integer", json_path = ".status.percent"),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.stable.digest", priority = 1),
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
pub struct TenantRolloutSpec {
    /// Which package to put in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageSelector>,
    /// While true, what is in force stays.
    #[serde(default)]
    pub paused: bool,
    /// How many former revisions are kept, 1 to 100; 10 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub revision_history_limit: Option<i64>,
    /// The way of a candidate to all sessions; 5, 25 and 100 percent if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 20),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub stages: Option<Vec<Stage>>,
    /// What takes a candidate back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Budgets>,
    /// What to do where replay or a stage has too little to judge by: `Pause` (the default) waits for a person, `Proceed` goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_inconclusive: Option<OnInconclusive>,
    /// Seconds without progress after which a rollout is Degraded and what was in force is in force for everyone, 1 to 2592000; 86400
    /// if not set. Time in which a person is waited for does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub progress_deadline_seconds: Option<i64>,
    /// Digests of candidates whose restrictions (calls that were allowed and are not any more) are meant: they count in no budget.
    /// Expansions can't be acknowledged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(regex(pattern = r"^sha256:[0-9a-f]{64}$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub acknowledged_restrictions: Vec<String>,
    /// Which recorded decisions are replayed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<RolloutReplay>,
}

/// The most stages that a rollout may have.
const MAX_STAGES: usize = 20;

/// The order of stages, one rule a place: a rule that computes its message with the index costs the API server more than it allows.
pub(super) fn stage_rules() -> Vec<ValidationRule> {
    let rule =
        |rule: String, message: String| ValidationRule { rule, message: Some(message), ..ValidationRule::default() };
    let grows = (1..MAX_STAGES).map(|i| {
        let before = i - 1;
        rule(
            format!("size(self) <= {i} || self[{i}].percent > self[{before}].percent"),
            format!("stages[{i}].percent: must be more than in the stage before"),
        )
    });
    let ends = (0..MAX_STAGES).map(|i| {
        let size = i + 1;
        rule(
            format!("size(self) != {size} || self[{i}].percent == 100"),
            format!("stages[{i}].percent: must be 100 in the last stage"),
        )
    });
    grows.chain(ends).collect()
}

/// One stage of a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Sessions that the candidate decides for, of 100: whole, 1 to 100, more than in the stage before; 100 in the last.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i64,
    /// Seconds that the stage lasts at least, 0 to 2592000; 300 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub min_seconds: Option<i64>,
    /// Decisions of the candidate that the stage needs at least, answered or in shadow, 0 to 1000000; 20 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_decisions: Option<i64>,
    /// `Manual`: the stage is left only when a person promotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<StageGate>,
}

/// Who ends a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StageGate {
    /// Remit, when time, decisions and budgets allow it.
    #[default]
    Automatic,
    /// A person besides.
    Manual,
}

/// What to do where there is too little to judge by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnInconclusive {
    /// Wait for a person.
    #[default]
    Pause,
    /// Go on.
    Proceed,
}

/// Budgets of a rollout, per tenant and arm in a window. All that is counted comes from Remit's own records; one agent moves at most
/// one agent's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budgets {
    /// Differences of severity critical, in replay and in shadow, 0 to 1000000; 0 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub critical_drift: Option<i64>,
    /// Differences of severity high, 0 to 1000000; 2 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub high_drift: Option<i64>,
    /// Growth of the denial rate from stable to candidate, in percentage points, 0 to 100; 10 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub denial_growth_percent: Option<i64>,
    /// Decisions of the candidate that end in an evaluation error which the package in force does not have, percent, 0 to 100; 2 if not
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub error_percent: Option<i64>,
    /// Growth of the mean time in the gates from stable to candidate for the agent in the middle, percent, 0 to 10000; 200 if not set.
    /// Below 10 ms, or with fewer than 100 decisions on an arm, nothing is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub latency_growth_percent: Option<i64>,
    /// Decisions that a rate needs before it counts, and compared calls without which no stage is left (never more than its
    /// `minDecisions`), 1 to 1000000; 20 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_samples: Option<i64>,
    /// Seconds that the rates look back, 10 to 86400; 600 if not set. Drift counts since the revision began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86_400))]
    pub window_seconds: Option<i64>,
    /// Sessions whose calls are evaluated under the other arm too, off the answer's path, percent, 0 to 100; 100 if not set.
    /// With 0 no stage is left by itself, unless its `minDecisions` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub shadow_percent: Option<i64>,
    /// What the proof must say: `NotRequired` (the default), `Required` (unknown holds the rollout) or `NoExpansion` (unknown holds
    /// it, and what lets anybody do more fails it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofBudget>,
}

/// What the proof must say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ProofBudget {
    /// It is shown and holds nothing.
    #[default]
    NotRequired,
    /// There must be one.
    Required,
    /// It must say that nobody may do more.
    NoExpansion,
}

/// Which recorded decisions are replayed before stage one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutReplay {
    /// How far back, seconds, 60 to 31536000; 604800 (7 days) if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 31_536_000))]
    pub since_seconds: Option<i64>,
    /// At most so many, 1 to 1000000; 100000 if not set. The newest of each agent, in equal shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Decisions that must have been replayed for a verdict, 1 to 1000000; 20 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_decisions: Option<i64>,
    /// Invariants that the candidate must keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub invariants: Vec<Invariant>,
}

/// Which package to put in force: by name and version range, or by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.digest) || (!has(self.name) && !has(self.version))",
    "message": "digest names exactly one package: leave out name and version, or leave out digest"
}]))]
pub struct PackageSelector {
    /// Name of the package. May be left out where the namespace has packages of one name only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Range of versions, as Cargo writes it: `^1.2`, `>=1, <2`, `=1.4.0`. The highest Ready version in it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub version: Option<String>,
    /// Exactly this package, `sha256:` and 64 hex digits. Excludes name and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RolloutPhase {
    /// What was asked for is in force, or nothing was asked for.
    #[default]
    Healthy,
    /// A candidate is on its way.
    Progressing,
    /// Waits for a person: stopped by one, by `spec.paused`, at a gate, or with too little to judge by.
    Paused,
    /// What was asked for can't come into force; what was in force stays.
    Degraded,
}

/// A package that is, was or may come in force, with what it was verified against.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// UID of the namespace that it is in force in: a re-created namespace inherits nothing.
    pub tenant_uid: String,
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Its digest.
    pub digest: String,
    /// Fingerprint of the key that its signature was verified with; absent where it is unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<String>,
    /// When it was verified first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_verified: Option<Time>,
    /// ControllerRevision that keeps its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_revision: Option<String>,
    /// Number of the revision, counted up for each change of what is in force.
    #[serde(default)]
    pub revision: i64,
}

/// For what a rollout waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HoldReason {
    /// A person paused it; only a person resumes it.
    #[default]
    Person,
    /// `spec.paused` is true.
    Spec,
    /// Replay or a stage has too little to judge by, and `onInconclusive` is `Pause`.
    Inconclusive,
    /// A budget requires a proof and there is none.
    Proof,
    /// The stage has a manual gate, or nothing is in force any more and a person has to say what comes.
    Gate,
}

/// Why a rollout does not go on by itself. The time does not count towards `progressDeadlineSeconds`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutHold {
    /// What it waits for.
    pub reason: HoldReason,
    /// Who paused it, with `Person`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub by: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// A former or running revision.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The package.
    #[serde(flatten)]
    pub revision: RevisionStatus,
    /// `queued`, `canary`, `promoting`, `completed` or `rolled_back`.
    pub phase: String,
    /// Why it came into force or left it: `FirstPackage`, `NewVersion`, `SignerCompromised`, …
    #[schemars(length(max = 63))]
    pub cause: String,
    /// More about the cause, for people: the threshold, decisions and policies, or who asked and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// What a person asked for; appended by them, moved to history by Remit.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HumanAction {
    /// Chosen by the writer, unique in the list.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// Who asks: the request's username.
    #[schemars(length(max = 253))]
    pub actor: String,
    /// `pause`, `resume`, `promote`, `promote-full`, `abort` or `rollback`.
    #[schemars(length(max = 63))]
    pub action: String,
    /// Why; `promote-full`, `abort` and `rollback` need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// For `rollback`: number of the revision in history to go back to; the newest before the one in force if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub revision: Option<i64>,
    /// Digest of the candidate, or for `rollback` of the package in force, that the writer looked at: if another one is there by
    /// now, nothing is done. `promote`, `promote-full` and `rollback` need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub digest: Option<String>,
    /// For `promote`: the stage that the writer looked at, from 1; 0 before stage one. If it is in another one by now, nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub stage: Option<i64>,
    /// `http` where Remit wrote it for an authenticated person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub via: Option<String>,
}

/// An action that Remit has handled.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandledAction {
    /// The action.
    #[serde(flatten)]
    pub action: HumanAction,
    /// What came of it: `done`, or why not.
    pub result: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// What the budgets say of the candidate now.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutVerdict {
    /// The worst of the checks.
    pub result: CheckResult,
    /// One a budget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub checks: Vec<BudgetCheck>,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CheckResult {
    /// Within the budget.
    Pass,
    /// Too little to judge by.
    #[default]
    Inconclusive,
    /// Over the budget.
    Fail,
}

/// One budget, what was measured, and what that means.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetCheck {
    /// Before stage one `replay`, `replayCriticalDrift`, `replayHighExpansions`, `replayHighRestrictions`, `replayInvariants`, `proof`,
    /// `proofInvariants`; from then on also `samples`, `shadow`, `criticalDrift`, `highExpansions`, `highRestrictions`,
    /// `denialGrowth`, `errors`, `latency`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it came to.
    pub result: CheckResult,
    /// What was measured, in words with its unit.
    #[schemars(length(max = 256))]
    pub value: String,
    /// What it may be at most.
    #[schemars(length(max = 256))]
    pub threshold: String,
    /// Which decisions and policies, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub reason: Option<String>,
}

/// Where the rollout stands.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantRolloutStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// Healthy, Progressing, Paused or Degraded.
    #[serde(default)]
    pub phase: RolloutPhase,
    /// The package in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<RevisionStatus>,
    /// The package on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<RevisionStatus>,
    /// Stage of the candidate, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<i64>,
    /// Sessions that the candidate decides for, of 100; absent before stage one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// Sessions whose calls are evaluated under the other arm too, of 100; absent before stage one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_percent: Option<i64>,
    /// Counted up whenever anybody may be answered under another package than before. A replica that reads a lower number than it
    /// acts by has read something old, and stays where it is.
    #[serde(default)]
    pub epoch: i64,
    /// When the stage began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_started: Option<Time>,
    /// `queued`, `canary`, `promoting`, `completed` or `rolled_back`: how far the newest revision has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub progress: Option<String>,
    /// SHA-256 of the spec (without `paused`) that the candidate is rolled out by: another spec starts another revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub spec_hash: Option<String>,
    /// Digests of the platform's packages that replay and proof of the candidate were accepted under: under others they are void.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub evidence_platform: Vec<String>,
    /// Why it does not go on by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<RolloutHold>,
    /// When the candidate last made a step, or stopped waiting for a person: from here the progress deadline counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressed_at: Option<Time>,
    /// What the budgets say of the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RolloutVerdict>,
    /// What the proof says of the candidate, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub proof: Option<String>,
    /// What the replay says of the candidate, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub replay: Option<String>,
    /// Former revisions, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<HistoryEntry>,
    /// What people asked for and Remit has not handled yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub actions: Vec<HumanAction>,
    /// What people asked for and Remit has handled, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub handled: Vec<HandledAction>,
    /// Ready: what was asked for is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
