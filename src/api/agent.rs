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
    /// Identities that authenticate as this agent, at most 16. An identity belongs to one agent of the namespace: claimed twice, the
    /// younger Agent is Stalled. Changing the list, or starting with more than one ServiceAccount of this namespace, needs verb
    /// `elevate` on agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "atomic",
        "x-kubernetes-validations" = [{
            "rule": "self.all(a, self.exists_one(b, b == a))",
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

/// Longest `oidc.issuer`, bytes.
pub const MAX_ISSUER: usize = 512;
/// Longest `oidc.subject`, bytes (OpenID Connect Core, 2).
pub const MAX_SUBJECT: usize = 255;
/// Longest SPIFFE id, bytes (SPIFFE-ID, 2.3).
const MAX_SPIFFE: usize = 2048;

/// One authenticated identity: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.serviceAccount), has(self.oidc), has(self.spiffe)].filter(is, is).size() == 1",
    "message": "an identity is exactly one of serviceAccount, oidc and spiffe"
}]))]
pub struct AgentIdentity {
    /// Name of a ServiceAccount of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account: Option<String>,
    /// Subject of an OpenID Connect issuer. The issuer must be one that this Remit is configured with for this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcIdentity>,
    /// SPIFFE id of a workload, `spiffe://TRUST-DOMAIN/PATH`, in whose trust domain an issuer that this Remit is configured with for
    /// this namespace speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$"))]
    pub spiffe: Option<String>,
}

/// A subject of an OpenID Connect issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OidcIdentity {
    /// `iss` of its tokens, to the byte.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://[^\s#?\x00-\x1f\x7f]+$"))]
    pub issuer: String,
    /// `sub` of its tokens, to the byte.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub subject: String,
}

impl AgentIdentity {
    /// A ServiceAccount of the Agent's namespace.
    pub fn service_account(name: impl Into<String>) -> Self {
        Self { service_account: Some(name.into()), ..Self::default() }
    }

    /// As which Remit's authentication knows it. None where it is not exactly one identity, or one that no token can prove.
    pub fn username(&self, namespace: &str) -> Option<String> {
        match (&self.service_account, &self.oidc, &self.spiffe) {
            (Some(account), None, None) => Some(format!("system:serviceaccount:{namespace}:{account}")),
            (None, Some(oidc), None) if !oidc.issuer.contains('#') => Some(oidc_username(&oidc.issuer, &oidc.subject)),
            (None, None, Some(id)) if is_spiffe_id(id) => Some(id.clone()),
            _ => None,
        }
    }
}

/// Name of an OpenID Connect identity. An issuer has no `#`, so no two identities share a name.
pub fn oidc_username(issuer: &str, subject: &str) -> String {
    format!("oidc:{issuer}#{subject}")
}

/// Whether a name is one that [`AgentIdentity::username`] gives to identities of other issuers than the cluster's.
pub fn is_federated(username: &str) -> bool {
    username.starts_with("oidc:http") || username.starts_with("spiffe://")
}

/// SPIFFE-ID, 2: trust domain and path in plain characters, no `.` or `..`, nothing empty.
pub fn is_spiffe_id(id: &str) -> bool {
    let Some((domain, path)) = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    let segment = |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(|b| plain(b) || b.is_ascii_uppercase());
    id.len() <= MAX_SPIFFE
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(plain)
        && path.split('/').all(segment)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_one_thing_and_has_a_name_of_its_own() {
        let account = AgentIdentity::service_account("coder");
        assert_eq!(account.username("acme").as_deref(), Some("system:serviceaccount:acme:coder"));
        let oidc = |issuer: &str, subject: &str| AgentIdentity {
            oidc: Some(OidcIdentity { issuer: issuer.into(), subject: subject.into() }),
            ..AgentIdentity::default()
        };
        let spoof = oidc("https://idp", "system:serviceaccount:acme:coder").username("acme").unwrap();
        assert_eq!(spoof, "oidc:https://idp#system:serviceaccount:acme:coder");
        assert!(
            is_federated(&spoof) && !is_federated("system:serviceaccount:acme:coder") && !is_federated("oidc:alice")
        );
        // `#` can't be moved from the subject into the issuer.
        assert_ne!(oidc("https://idp", "a#b").username("x"), oidc("https://idp#a", "b").username("x"));
        let both = AgentIdentity { service_account: Some("coder".into()), ..oidc("https://idp", "x") };
        assert_eq!(both.username("acme"), None);
        assert_eq!(AgentIdentity::default().username("acme"), None);
    }

    #[test]
    fn spiffe_ids_are_read_as_the_standard_has_them() {
        for good in ["spiffe://prod.example/ns/acme/sa/coder", "spiffe://a/B_c-1.2"] {
            assert!(is_spiffe_id(good), "{good}");
        }
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for bad in [
            "",
            "spiffe://",
            "spiffe://a",
            "spiffe://a/",
            "spiffe:///x",
            "spiffe://A/x",
            "spiffe://a/x/",
            "spiffe://a//x",
            "spiffe://a/../x",
            "spiffe://a/./x",
            "spiffe://a/x?y",
            "spiffe://a/x%20",
            "spiffe://a:1/x",
            "SPIFFE://a/x",
            &long,
        ] {
            assert!(!is_spiffe_id(bad), "{bad}");
        }
    }
}
