//! `Agent`: who acts, and the authenticated identities bound to it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;

/// Rules over the whole object.
pub(super) const RULES: &[Rule] = &[Rule {
    rule: "!has(self.spec.delegation) || !has(self.spec.delegation.fixed) || self.spec.delegation.fixed.kind != 'Agent' \
           || self.spec.delegation.fixed.name != self.metadata.name",
    message: "spec.delegation.fixed: an agent cannot act on behalf of itself",
}];

/// An AI agent of this namespace: the identities that it authenticates with, how far it is trusted, and for whom it may act.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    status = "AgentStatus",
    category = "remit",
    shortname = "ag",
    derive = "PartialEq",
    selectable = ".spec.type",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Trust", type_ = "integer", json_path = ".spec.trustLevel"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Identities", type_ = "string", json_path = ".status.identities", priority = 1),
    printcolumn(name = "Delegation", type_ = "string", json_path = ".spec.delegation.mode", priority = 1),
    printcolumn(name = "Session", type_ = "string", json_path = ".spec.session", priority = 1),
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
pub struct AgentSpec {
    /// Identities that authenticate as this agent, at most 16. An identity belongs to one agent: claimed twice, the younger Agent is
    /// Stalled. Changing the list, or starting with more than one, needs verb `elevate` on agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "atomic",
        "x-kubernetes-validations" = [{
            "rule": "self.all(a, self.exists_one(b, b.serviceAccount == a.serviceAccount))",
            "message": "each identity may be listed only once"
        }]
    ))]
    pub identities: Vec<AgentIdentity>,
    /// Kind of agent, a group in policies: `principal in AgentType::"coder"`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$"))]
    pub type_: Option<String>,
    /// Teams of the agent, groups in policies: `principal in Team::"payments"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub teams: Vec<String>,
    /// How far the agent is trusted: 0 (may do nothing) to 4. Policies read it as `principal.trust`. Raising it, or starting above 0,
    /// needs verb `elevate` on agents.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4))]
    pub trust_level: i64,
    /// While true, every call of the agent is answered `paused`. Setting it back to false needs verb `elevate` on agents.
    #[serde(default)]
    pub suspend: bool,
    /// Free attributes, tags in policies: `principal.hasTag("region") && principal.getTag("region") == "eu"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "attributes_schema")]
    pub attributes: BTreeMap<String, String>,
    /// For whom the agent may act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<Delegation>,
    /// Whether each call must name a session that Remit issued: `Optional` (without one the agent counts as its own session) or
    /// `Required` (a call without a live session is denied).
    #[serde(default)]
    pub session: SessionMode,
}

/// Cedar tags of an agent: few, short, and with names that a policy can spell.
fn attributes_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
        "x-kubernetes-validations": [{
            "rule": "self.all(name, size(name) > 0 && size(name) <= 63)",
            "message": "names of attributes have 1 to 63 characters"
        }]
    })
}

/// One authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentIdentity {
    /// Name of a ServiceAccount of this namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account: String,
}

/// Whether calls name a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionMode {
    /// Calls may come without one; the agent then counts as its own session.
    #[default]
    Optional,
    /// A call without a live session is denied.
    Required,
}

/// For whom an agent acts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.mode != 'None' || !has(self.fixed)",
        "message": "fixed needs mode Optional or Required: an agent with mode None acts for nobody"
    },
    {
        "rule": "self.mode != 'Required' || has(self.fixed)",
        "message": "mode Required needs fixed: no other delegator can be authenticated in this version"
    }
]))]
pub struct Delegation {
    /// Whether the agent acts on somebody's behalf: `None` (a call that names a delegator is refused), `Optional`, or `Required` (a
    /// call without an authenticated delegator is denied).
    #[serde(default)]
    pub mode: DelegationMode,
    /// The one delegator for whom the agent always acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<Delegator>,
}

/// Whether the agent acts on somebody's behalf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DelegationMode {
    /// Never: a call that names a delegator is refused.
    #[default]
    None,
    /// It may.
    Optional,
    /// It must: a call without an authenticated delegator is denied.
    Required,
}

/// A human or an agent on whose behalf an agent acts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.kind != 'Agent' || self.name.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
    "message": "name must be the name of an Agent of this namespace: lower-case letters, digits, '-' and '.'"
}]))]
pub struct Delegator {
    /// Whether the delegator is a human (`User`) or an agent of this namespace (`Agent`).
    pub kind: DelegatorKind,
    /// Name of the user, as the cluster knows them, or of the Agent.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\s\x00-\x1f\x7f]+$"))]
    pub name: String,
}

/// What a delegator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum DelegatorKind {
    /// A human, `User::"name"` in policies.
    User,
    /// An Agent of the same namespace.
    Agent,
}

/// What Remit found out about the agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// Usernames that authenticate as this agent now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub identities: Vec<String>,
    /// Name of the Incident that contains this agent, while one is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_incident: Option<String>,
    /// Risk band of the agent: low, medium or high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_band: Option<String>,
    /// Ready: the agent may authenticate. Stalled: what must change first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
