//! `TenantProfile`: a tenant's settings; the platform's profile is the floor that a tenant's may only tighten.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;

/// Rules over the whole object.
pub(super) const RULES: &[Rule] = &[
    Rule {
        rule: "self.metadata.name == 'default'",
        message: "metadata.name must be 'default': a namespace has one TenantProfile",
    },
    // Here and not at the fields, so that removing either is judged too.
    Rule {
        rule: "!has(self.spec) || !has(self.spec.enforcement) || self.spec.enforcement != 'Observe' || has(self.spec.observeUntil)",
        message: "spec.observeUntil is missing: enforcement Observe ends at an instant, such as 2026-01-31T12:00:00Z",
    },
    Rule {
        rule: "!has(self.spec) || !has(self.spec.observeUntil) || (has(self.spec.enforcement) && self.spec.enforcement == 'Observe')",
        message: "spec.observeUntil stands only with enforcement Observe",
    },
];

/// Condition: True while the tenant's own side is observed and not enforced.
pub const OBSERVING: &str = "Observing";
/// Reason of [`OBSERVING`] where `observeUntil` is too far ahead.
pub const TOO_FAR: &str = "TooFarAhead";
/// How far ahead `observeUntil` may be: whoever forgets it must not have switched policy off for good.
pub const MAX_OBSERVE: Duration = Duration::from_secs(90 * 24 * 3600);

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
    printcolumn(
        name = "Observing",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Observing")].status"#
    ),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.effective.observeUntil", priority = 1),
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
    /// `Enforce` (what policy denies is denied; so if not set) or `Observe` (what the tenant's own policy would stop is let through and
    /// recorded with what it would be, until `observeUntil`; the platform's forbids and suspended agents still stop). Setting `Observe`
    /// or prolonging it needs verb `observe` on tenantprofiles. The platform's `Enforce` forbids tenants to observe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
    /// When observing ends by itself and policy is enforced again, at most 90 days ahead. Mandatory with `Observe`, and only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe_until: Option<Time>,
}

/// Whether what the tenant's policy stops is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Enforcement {
    /// It is.
    Enforce,
    /// It is let through until `observeUntil`, and recorded.
    Observe,
}

impl TenantProfileSpec {
    /// Until when this profile asks to observe.
    pub fn asks_to_observe(&self) -> Option<Timestamp> {
        (self.enforcement == Some(Enforcement::Observe)).then_some(self.observe_until.as_ref()).flatten().map(|t| t.0)
    }
}

impl TenantProfile {
    /// The spec that counts. What was once found to be too far ahead must not begin by itself when it comes nearer: it stays
    /// enforced until somebody writes another instant.
    pub fn counted(&self) -> TenantProfileSpec {
        let found =
            self.status.iter().flat_map(|s| &s.conditions).any(|c| {
                c.type_ == OBSERVING && c.reason == TOO_FAR && c.observed_generation == self.metadata.generation
            });
        match found {
            true => TenantProfileSpec { observe_until: None, ..self.spec.clone() },
            false => self.spec.clone(),
        }
    }
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
    /// Ready: the values are in force. A setting that would loosen the platform's is named in the message. Observing: whether policy is
    /// observed and not enforced now, and why not.
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
    /// Until then the tenant's own policy is observed, not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub observe_until: Option<Timestamp>,
}

impl Default for EffectiveProfile {
    fn default() -> Self {
        Self { session_timeout_seconds: 900, retention_days: 90, observe_until: None }
    }
}

impl EffectiveProfile {
    /// The platform's profile over the built-in defaults, then the tenant's over it where it is tighter. The platform's own tenant is
    /// given as both.
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
        // Only the tenant itself begins to observe: a platform that observes makes no other tenant do so, but limits for how long.
        out.observe_until = match (platform.and_then(|p| p.enforcement), tenant.and_then(|t| t.asks_to_observe())) {
            (Some(Enforcement::Enforce), _) | (_, None) => None,
            (Some(Enforcement::Observe), Some(until)) => {
                platform.and_then(TenantProfileSpec::asks_to_observe).map(|limit| limit.min(until))
            }
            (None, Some(until)) => Some(until),
        };
        out
    }

    /// Until when the tenant observes, if it does at this instant.
    pub fn observes(&self, now: Timestamp) -> Option<Timestamp> {
        self.observe_until.filter(|until| now < *until && !too_far(*until, now))
    }
}

/// Whether this is further ahead than anybody may observe.
pub fn too_far(until: Timestamp, now: Timestamp) -> bool {
    let limit = SignedDuration::try_from(MAX_OBSERVE).unwrap_or(SignedDuration::ZERO);
    until.duration_since(now) > limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn spec(enforcement: Option<Enforcement>, until: Option<&str>) -> TenantProfileSpec {
        TenantProfileSpec { enforcement, observe_until: until.map(|t| Time(at(t))), ..TenantProfileSpec::default() }
    }

    #[test]
    fn the_platform_limits_who_observes_and_for_how_long() {
        use Enforcement::{Enforce, Observe};
        let tenant = spec(Some(Observe), Some("2026-02-01T00:00:00Z"));
        let until = |platform: Option<&TenantProfileSpec>, tenant: Option<&TenantProfileSpec>| {
            EffectiveProfile::of(platform, tenant).observe_until.map(|t| t.to_string())
        };
        let longer = spec(Some(Observe), Some("2026-03-01T00:00:00Z"));
        assert_eq!(until(None, Some(&tenant)).as_deref(), Some("2026-02-01T00:00:00Z"));
        assert_eq!(until(Some(&spec(None, None)), Some(&tenant)).as_deref(), Some("2026-02-01T00:00:00Z"));
        assert_eq!(until(Some(&spec(Some(Enforce), None)), Some(&tenant)), None, "the platform forbids it");
        assert_eq!(until(Some(&tenant), Some(&longer)).as_deref(), Some("2026-02-01T00:00:00Z"));
        assert_eq!(until(Some(&tenant), None), None, "a platform that observes makes nobody else do so");
        assert_eq!(until(Some(&tenant), Some(&spec(Some(Enforce), None))), None);
        assert_eq!(until(None, Some(&spec(None, Some("2026-02-01T00:00:00Z")))), None, "an instant alone is nothing");
        assert_eq!(until(Some(&tenant), Some(&tenant)).as_deref(), Some("2026-02-01T00:00:00Z"), "the platform's own");
    }

    #[test]
    fn observing_ends_at_its_instant_and_never_lasts_longer_than_allowed() {
        let observing = |until: &str, now: &str| {
            let profile = EffectiveProfile { observe_until: Some(at(until)), ..EffectiveProfile::default() };
            profile.observes(at(now)).is_some()
        };
        assert!(observing("2026-02-01T00:00:00Z", "2026-01-31T23:59:59.999Z"));
        assert!(!observing("2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z"), "the instant itself is enforced");
        assert!(observing("2026-04-01T00:00:00Z", "2026-01-01T00:00:00Z"), "90 days");
        assert!(!observing("2026-04-01T00:00:01Z", "2026-01-01T00:00:00Z"), "a second more");
        assert!(EffectiveProfile::default().observes(at("2026-01-01T00:00:00Z")).is_none());
    }

    #[test]
    fn what_was_too_far_ahead_does_not_begin_by_itself() {
        let mut profile = TenantProfile::new("default", spec(Some(Enforcement::Observe), Some("2027-01-01T00:00:00Z")));
        profile.metadata.generation = Some(3);
        assert!(profile.counted().asks_to_observe().is_some());
        let mut status = TenantProfileStatus::default();
        let now = at("2026-01-01T00:00:00Z");
        super::super::set_condition(&mut status.conditions, OBSERVING, false, TOO_FAR, "", 3, now);
        profile.status = Some(status);
        assert_eq!(profile.counted().asks_to_observe(), None);
        profile.metadata.generation = Some(4);
        assert!(profile.counted().asks_to_observe().is_some(), "somebody wrote it anew");
    }
}
