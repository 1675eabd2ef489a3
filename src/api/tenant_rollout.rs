//! `TenantRollout`: the tenant's pointer to the package in force.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;

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
    /// Stopped by a person or by `spec.paused`.
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
    pub cause: String,
    /// When it came into force.
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
    /// `promote`, `pause`, `abort` or `rollback`.
    #[schemars(length(max = 63))]
    pub action: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// `http` where Remit wrote it for an authenticated person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub via: Option<String>,
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
    /// What replay and proof said of the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Former revisions, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<HistoryEntry>,
    /// What people asked for and Remit has not handled yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub actions: Vec<HumanAction>,
    /// Ready: what was asked for is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
