//! `TenantProfile`: the settings as they work out over the platform's.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, apply_status};
use crate::api::{
    DEFAULT_NAME, EffectiveProfile, Enforcement, MAX_OBSERVE, OBSERVING, READY, RECONCILING, STALLED, TOO_FAR,
    TenantProfile, TenantProfileSpec, TenantProfileStatus, clear_condition, is_true, set_condition, too_far,
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
    let platform = platform.as_ref().and_then(|p| p.0.as_ref().ok()).map(TenantProfile::counted);
    let now = jiff::Timestamp::now();
    let status = next_status(profile, namespace == ctx.namespace, platform.as_ref(), now);
    let before = profile.status.as_ref().is_some_and(|s| is_true(&s.conditions, OBSERVING));
    let until = status.effective.and_then(|e| e.observe_until);
    apply_status(&ctx.api::<TenantProfile>(&namespace), profile, profile.status.as_ref(), &status, false).await?;
    match (before, until) {
        (false, Some(until)) => {
            let note = format!("the tenant's policy was switched from enforced to observed, until {until}");
            ctx.event(profile, true, "ObservingBegan", &note).await;
        }
        (true, None) => ctx.event(profile, false, "ObservingEnded", "the tenant's policy is enforced again").await,
        _ => {}
    }
    Ok(super::until(now, until))
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
    let spec = profile.counted();
    let platform = if is_platform { Some(&spec) } else { platform };
    let effective = EffectiveProfile::of(platform, Some(&spec));
    let effective = EffectiveProfile { observe_until: effective.observes(now), ..effective };
    status.effective = Some(effective);
    let (reason, message) = observing(&profile.spec, &spec, platform, effective.observe_until, now);
    set_condition(conditions, OBSERVING, effective.observe_until.is_some(), reason, clip(&message), generation, now);
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

/// Whether policy is observed, and why not. `asked` is what was written, `counted` what of it counts.
fn observing(
    asked: &TenantProfileSpec,
    counted: &TenantProfileSpec,
    platform: Option<&TenantProfileSpec>,
    effective: Option<jiff::Timestamp>,
    now: jiff::Timestamp,
) -> (&'static str, String) {
    if let Some(until) = effective {
        let message = format!("policy is not enforced until {until}: what it would stop is let through and recorded");
        return ("Observing", message);
    }
    match asked.asks_to_observe() {
        None => ("Enforced", "policy is enforced".to_owned()),
        Some(until) if counted.asks_to_observe().is_none() || too_far(until, now) => {
            let days = MAX_OBSERVE.as_secs() / 86_400;
            (TOO_FAR, format!("observeUntil is over {days} days ahead: policy is enforced; set a nearer instant"))
        }
        Some(until) if until <= now => ("Ended", format!("observing ended at {until}: policy is enforced")),
        Some(_) if platform.and_then(|p| p.enforcement) == Some(Enforcement::Enforce) => {
            ("PlatformEnforces", "the platform's profile says Enforce: policy is enforced".to_owned())
        }
        Some(_) => ("PlatformEnded", "the platform's profile allows no observing now: policy is enforced".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_may_only_tighten() {
        let platform =
            TenantProfileSpec { session_timeout_seconds: Some(600), retention_days: Some(30), ..Default::default() };
        let spec =
            TenantProfileSpec { session_timeout_seconds: Some(3600), retention_days: Some(60), ..Default::default() };
        let now = jiff::Timestamp::from_second(1).unwrap();
        let status = next_status(&TenantProfile::new("default", spec), false, Some(&platform), now);
        assert_eq!(
            status.effective,
            Some(EffectiveProfile { session_timeout_seconds: 600, retention_days: 60, observe_until: None })
        );
        let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "PlatformFloor"));
        assert!(ready.message.contains("3600"), "{}", ready.message);
    }

    #[test]
    fn observing_is_true_while_it_lasts_and_says_why_not() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let now = at("2026-01-01T00:00:00Z");
        let observe = |until: &str| TenantProfileSpec {
            enforcement: Some(Enforcement::Observe),
            observe_until: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(until))),
            ..Default::default()
        };
        let enforce = TenantProfileSpec { enforcement: Some(Enforcement::Enforce), ..Default::default() };
        let week = "2026-01-08T00:00:00Z";
        let look = |spec: &TenantProfileSpec, platform: Option<&TenantProfileSpec>| {
            let status = next_status(&TenantProfile::new("default", spec.clone()), false, platform, now);
            let found = status.conditions.iter().find(|c| c.type_ == OBSERVING).unwrap();
            (found.status.clone(), found.reason.clone(), status.effective.unwrap().observe_until)
        };
        let not = |reason: &str| ("False".to_owned(), reason.to_owned(), None);
        assert_eq!(look(&observe(week), None), ("True".into(), "Observing".into(), Some(at(week))));
        assert_eq!(look(&TenantProfileSpec::default(), None), not("Enforced"));
        assert_eq!(look(&observe("2026-01-01T00:00:00Z"), None), not("Ended"));
        assert_eq!(look(&observe("2026-06-01T00:00:00Z"), None), not(TOO_FAR));
        assert_eq!(look(&observe(week), Some(&enforce)), not("PlatformEnforces"));
        assert_eq!(look(&observe(week), Some(&observe("2025-12-01T00:00:00Z"))), not("PlatformEnded"));

        // Months later the same object, unchanged, is still enforced.
        let mut profile = TenantProfile::new("default", observe("2026-06-01T00:00:00Z"));
        profile.metadata.generation = Some(1);
        profile.status = Some(next_status(&profile, false, None, now));
        let later = next_status(&profile, false, None, at("2026-05-01T00:00:00Z"));
        assert_eq!(later.effective.unwrap().observe_until, None);
        assert!(later.conditions.iter().any(|c| c.type_ == OBSERVING && c.reason == TOO_FAR));
    }
}
