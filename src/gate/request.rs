//! What came over the wire, after gate 1 has read it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::{Delegator, DelegatorKind};
use crate::policy::CallerKind;

/// AuthZEN subject or resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EntityRef {
    /// AuthZEN type.
    #[serde(rename = "type")]
    pub type_: String,
    /// AuthZEN id.
    pub id: String,
    /// AuthZEN properties.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub properties: Map<String, Value>,
}

/// AuthZEN action.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionRef {
    /// Name.
    pub name: String,
    /// Properties: kept in the record, never given to policies.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub properties: Map<String, Value>,
}

/// One question, with the context that Remit knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Who acts.
    pub subject: EntityRef,
    /// What.
    pub action: ActionRef,
    /// On what.
    pub resource: EntityRef,
    /// `context.arguments`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub arguments: Map<String, Value>,
    /// `context.session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `context.schema_digest`: digest of the tool's definition as the enforcement point has it from the tool's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_digest: Option<String>,
    /// `context.on_behalf_of`: a user's name, or `{type: "user"|"agent", id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Delegator>,
}

/// Who calls, after gate 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caller {
    /// As the API server names it: `system:serviceaccount:acme:coder`.
    pub username: String,
    /// An agent for itself, or an enforcement point for others.
    pub kind: CallerKind,
    /// For an agent: its (tenant, name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<(String, String)>,
    /// The token was last reviewed longer ago than usual, because the API server is out of reach.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// A delegator in records: `user:alice` or `agent:planner`.
pub fn delegator_text(d: &Delegator) -> String {
    match d.kind {
        DelegatorKind::User => format!("user:{}", d.name),
        DelegatorKind::Agent => format!("agent:{}", d.name),
    }
}
