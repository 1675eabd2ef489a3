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
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct PolicySignerSpec {
    /// Ed25519 public key, PEM (SubjectPublicKeyInfo). It can't be changed: make a new signer instead.
    pub public_key: String,
    /// Namespaces whose packages the key may sign. `*` means every namespace except the operator's own, which must be named.
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
    /// What the withdrawal means for packages that the key has signed.
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
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
