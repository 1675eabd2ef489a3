//! `TenantProfile`: a tenant's settings; the platform's profile is the floor that a tenant's may only tighten.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;

/// Rules over the whole object.
pub(super) const RULES: &[Rule] = &[Rule {
    rule: "self.metadata.name == 'default'",
    message: "metadata.name must be 'default': a namespace has one TenantProfile",
}];

/// Settings of a tenant. Always named `default`. The one of the operator's own namespace is the floor: a tenant may only tighten it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "TenantProfile",
    namespaced,
    status = "TenantProfileStatus",
    category = "remit",
    shortname = "tprof",
    derive = "PartialEq",
    printcolumn(name = "Session-Timeout", type_ = "integer", json_path = ".status.effective.sessionTimeoutSeconds"),
    printcolumn(name = "Retention-Days", type_ = "integer", json_path = ".status.effective.retentionDays"),
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
pub struct TenantProfileSpec {
    /// Seconds without heartbeat after which a session ends, 10 to 86400; 900 if not set. A tenant's may only be shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86_400))]
    pub session_timeout_seconds: Option<i64>,
    /// Days for which decision records are kept, 1 to 3650; 90 if not set. A tenant's may only be longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3650))]
    pub retention_days: Option<i64>,
}

/// The settings as they work out together with the platform's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantProfileStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// Values in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<EffectiveProfile>,
    /// Ready: the values are in force. A setting that would loosen the platform's is named in the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A tenant's settings in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveProfile {
    /// Seconds without heartbeat after which a session ends.
    pub session_timeout_seconds: i64,
    /// Days for which decision records are kept.
    pub retention_days: i64,
}

impl Default for EffectiveProfile {
    fn default() -> Self {
        Self { session_timeout_seconds: 900, retention_days: 90 }
    }
}

impl EffectiveProfile {
    /// The platform's profile over the built-in defaults, then the tenant's over it where it is tighter.
    pub fn of(platform: Option<&TenantProfileSpec>, tenant: Option<&TenantProfileSpec>) -> Self {
        let mut out = Self::default();
        if let Some(p) = platform {
            out.session_timeout_seconds = p.session_timeout_seconds.unwrap_or(out.session_timeout_seconds);
            out.retention_days = p.retention_days.unwrap_or(out.retention_days);
        }
        if let Some(t) = tenant {
            out.session_timeout_seconds =
                t.session_timeout_seconds.map_or(out.session_timeout_seconds, |v| v.min(out.session_timeout_seconds));
            out.retention_days = t.retention_days.map_or(out.retention_days, |v| v.max(out.retention_days));
        }
        out
    }
}
