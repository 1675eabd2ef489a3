//! `PolicySigner`: a public key and the tenants whose packages it may sign.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;

/// A key that may sign policy packages of the named tenants. Once a signer covers a tenant, new unsigned packages are refused there.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "PolicySigner",
    status = "PolicySignerStatus",
    category = "remit",
    shortname = "psign",
    derive = "PartialEq",
    printcolumn(name = "Tenants", type_ = "string", json_path = ".spec.tenants"),
    printcolumn(name = "Packages", type_ = "integer", json_path = ".status.packages"),
    printcolumn(name = "Revoked", type_ = "string", json_path = ".spec.revoked.reason"),
    printcolumn(name = "Not-Before", type_ = "string", json_path = ".spec.notBefore", priority = 1),
    printcolumn(name = "Not-After", type_ = "string", json_path = ".spec.notAfter", priority = 1),
    printcolumn(name = "Fingerprint", type_ = "string", json_path = ".status.fingerprint", priority = 1),
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
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.publicKey == oldSelf.publicKey",
        "message": "publicKey cannot be changed: apply a new PolicySigner for the new key, and set revoked on this one"
    },
    {
        "rule": "!has(self.notBefore) || !has(self.notAfter) || self.notAfter > self.notBefore",
        "message": "notAfter must be later than notBefore"
    },
    {
        "rule": "!has(oldSelf.revoked) || has(self.revoked)",
        "message": "revoked cannot be taken back: apply a new PolicySigner with a new key instead"
    },
    {
        "rule": "!has(oldSelf.revoked) || !has(self.revoked) || oldSelf.revoked.reason != 'Compromised' \
|| self.revoked.reason == 'Compromised'",
        "message": "revoked.reason cannot go back from Compromised to Superseded"
    }
]))]
pub struct PolicySignerSpec {
    /// Ed25519 public key, PEM (SubjectPublicKeyInfo). It can't be changed: make a new signer instead.
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "self.startsWith('-----BEGIN PUBLIC KEY-----')",
        "message": "publicKey must be PEM that starts with -----BEGIN PUBLIC KEY-----, as `remit keygen` prints it"
    }]))]
    pub public_key: String,
    /// Namespaces whose packages the key may sign. `*` means every namespace except the operator's own, which must be named.
    #[schemars(
        length(min = 1, max = 256),
        inner(length(min = 1, max = 63), regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub tenants: Vec<String>,
    /// Before this instant nothing is verified for the first time with this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// After this instant nothing is verified for the first time with this key. What is in force stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// Set when the key is not to be used any more. It can't be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// Why and how a key was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// What the withdrawal means for packages that the key has signed: `Superseded` (signs nothing new, what is in force stays) or
    /// `Compromised` (everything that it signed leaves force at once).
    pub reason: RevokedReason,
}

/// What a withdrawal means for packages that the key has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RevokedReason {
    /// Signs nothing new; what it signed stays in force.
    Superseded,
    /// Everything that it signed leaves force at once.
    Compromised,
}

/// What Remit found out about the signer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicySignerStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// SHA-256 of the raw public key, `sha256:` and 64 hex digits. Packages name their key by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Number of PolicyPackages in the cluster that carry a signature of this key.
    #[serde(default)]
    pub packages: i64,
    /// Ready: the key may sign now. Expired, Stalled: why it may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
