//! `TenantProfile`: the settings as they work out over the platform's.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, apply_status};
use crate::api::{
    DEFAULT_NAME, EffectiveProfile, READY, RECONCILING, STALLED, TenantProfile, TenantProfileSpec, TenantProfileStatus,
    clear_condition, set_condition,
};
use crate::lifecycle::rollout::clip;
use crate::source::kubernetes::Guarded;

/// What the controller is given.
pub type Object = Guarded<TenantProfile>;

pub async fn reconcile(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let Ok(profile) = &object.0 else { return Ok(super::unreadable(&object)) };
    if profile.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = profile.namespace().unwrap_or_default();
    let platform = ctx.objects.profile_of(&ctx.namespace);
    let platform = platform.as_ref().and_then(|p| p.0.as_ref().ok()).map(|p| &p.spec);
    let status = next_status(profile, namespace == ctx.namespace, platform, jiff::Timestamp::now());
    apply_status(&ctx.api::<TenantProfile>(&namespace), profile, profile.status.as_ref(), &status, false).await?;
    Ok(Action::await_change())
}

fn next_status(
    profile: &TenantProfile,
    is_platform: bool,
    platform: Option<&TenantProfileSpec>,
    now: jiff::Timestamp,
) -> TenantProfileStatus {
    let generation = profile.metadata.generation.unwrap_or(0);
    let mut status = profile.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let conditions = &mut status.conditions;
    clear_condition(conditions, RECONCILING);
    if profile.name_any() != DEFAULT_NAME {
        status.effective = None;
        let message = "only the TenantProfile named default counts";
        set_condition(conditions, READY, false, "NameIgnored", message, generation, now);
        set_condition(conditions, STALLED, true, "NameIgnored", message, generation, now);
        return status;
    }
    clear_condition(conditions, STALLED);
    let effective = match is_platform {
        true => EffectiveProfile::of(Some(&profile.spec), None),
        false => EffectiveProfile::of(platform, Some(&profile.spec)),
    };
    status.effective = Some(effective);
    let ignored = |name: &str, asked: Option<i64>, got: i64| {
        asked.filter(|a| *a != got).map(|a| format!("{name} {a} would loosen the platform's: {got} stays"))
    };
    let loose: Vec<String> = [
        ignored("sessionTimeoutSeconds", profile.spec.session_timeout_seconds, effective.session_timeout_seconds),
        ignored("retentionDays", profile.spec.retention_days, effective.retention_days),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (reason, message) = match loose.is_empty() {
        true => ("InForce", "the values are in force".to_owned()),
        false => ("PlatformFloor", loose.join("; ")),
    };
    set_condition(conditions, READY, true, reason, clip(&message), generation, now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_may_only_tighten() {
        let platform = TenantProfileSpec { session_timeout_seconds: Some(600), retention_days: Some(30) };
        let spec = TenantProfileSpec { session_timeout_seconds: Some(3600), retention_days: Some(60) };
        let now = jiff::Timestamp::from_second(1).unwrap();
        let status = next_status(&TenantProfile::new("default", spec), false, Some(&platform), now);
        assert_eq!(status.effective, Some(EffectiveProfile { session_timeout_seconds: 600, retention_days: 60 }));
        let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "PlatformFloor"));
        assert!(ready.message.contains("3600"), "{}", ready.message);
    }
}
