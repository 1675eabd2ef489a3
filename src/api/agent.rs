//! `Agent`: who acts, and the authenticated identities bound to it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;

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
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Identities that authenticate as this agent. An identity belongs to one agent: claimed twice, the younger Agent is Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<AgentIdentity>,
    /// Kind of agent, a group in policies: `principal in AgentType::"coder"`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Teams of the agent, groups in policies: `principal in Team::"payments"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teams: Vec<String>,
    /// How far the agent is trusted: 0 (may do nothing) to 4. Policies read it as `principal.trust`.
    #[serde(default)]
    pub trust_level: i64,
    /// While true, every call of the agent is answered `paused`.
    #[serde(default)]
    pub suspend: bool,
    /// Free attributes, tags in policies: `principal.hasTag("region") && principal.getTag("region") == "eu"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// For whom the agent may act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<Delegation>,
    /// Whether each call must name a session that Remit issued.
    #[serde(default)]
    pub session: SessionMode,
}

/// One authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentIdentity {
    /// Name of a ServiceAccount of this namespace.
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
pub struct Delegation {
    /// Whether the agent acts on somebody's behalf.
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
pub struct Delegator {
    /// Whether the delegator is a human or an agent of this namespace.
    pub kind: DelegatorKind,
    /// Name of the user or of the Agent.
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
    pub identities: Vec<String>,
    /// Name of the Incident that contains this agent, while one is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_incident: Option<String>,
    /// Risk band of the agent: low, medium or high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_band: Option<String>,
    /// Ready: the agent may authenticate. Stalled: what must change first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
