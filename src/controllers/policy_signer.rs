//! `PolicySigner`: whether its key may sign now.

use std::sync::Arc;

use jiff::Timestamp;
use kube::api::Api;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, apply_status, until};
use crate::api::{
    PolicySigner, PolicySignerStatus, READY, RECONCILING, RevokedReason, STALLED, clear_condition, set_condition,
};
use crate::lifecycle::rollout::clip;
use crate::policy::Signer;
use crate::source::kubernetes::Guarded;

/// What the controller is given.
pub type Object = Guarded<PolicySigner>;

/// True once `notAfter` has passed.
const EXPIRED: &str = "Expired";

pub async fn reconcile(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let Ok(signer) = &object.0 else { return Ok(super::unreadable(&object)) };
    if signer.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    let read = Signer::try_from(signer);
    let packages = read.as_ref().map_or(0, |s| count_packages(&ctx, s.key.fingerprint()));
    let status = next_status(signer, read.as_ref().map_err(ToString::to_string), packages, now);
    let api: Api<PolicySigner> = Api::all(ctx.client.clone());
    apply_status(&api, signer, signer.status.as_ref(), &status, false).await?;
    let instants = [&signer.spec.not_before, &signer.spec.not_after];
    Ok(until(now, instants.into_iter().flatten().map(|t| t.0)))
}

fn count_packages(ctx: &Context, fingerprint: &str) -> i64 {
    let signed = ctx.objects.packages.state_filter(|p| {
        let signature = p.0.as_ref().ok().and_then(|p| p.spec.signature.as_ref());
        signature.is_some_and(|e| e.signatures.iter().any(|s| s.keyid == fingerprint))
    });
    i64::try_from(signed.len()).unwrap_or(i64::MAX)
}

fn next_status(
    signer: &PolicySigner,
    read: Result<&Signer, String>,
    packages: i64,
    now: Timestamp,
) -> PolicySignerStatus {
    let generation = signer.metadata.generation.unwrap_or(0);
    let mut status = signer.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.packages = packages;
    status.fingerprint = read.as_ref().ok().map(|s| s.key.fingerprint().to_owned());
    let expired = read.as_ref().is_ok_and(|s| s.not_after.is_some_and(|t| t < now));
    // (Ready, Stalled, reason, message)
    let (ready, stalled, reason, message) = match &read {
        Err(why) => (false, true, "InvalidKey", why.clone()),
        Ok(s) => match (s.revoked, s.not_before.filter(|t| *t > now)) {
            (Some(RevokedReason::Compromised), _) => {
                (false, true, "Compromised", "revoked as compromised: what it signed left force".to_owned())
            }
            (Some(RevokedReason::Superseded), _) => (
                false,
                true,
                "Superseded",
                "revoked as superseded: it signs nothing new, what it signed stays".to_owned(),
            ),
            _ if expired => (false, true, "Expired", "spec.notAfter has passed: it signs nothing new".to_owned()),
            (None, Some(t)) => (false, false, "NotYetValid", format!("spec.notBefore {t} lies ahead")),
            (None, None) => (true, false, "Valid", format!("the key may sign for {}", s.tenants.join(", "))),
        },
    };
    let conditions = &mut status.conditions;
    set_condition(conditions, READY, ready, reason, clip(&message), generation, now);
    let (why, text) = match expired {
        true => ("Expired", "spec.notAfter has passed"),
        false => ("NotExpired", "spec.notAfter has not passed"),
    };
    set_condition(conditions, EXPIRED, expired, why, text, generation, now);
    clear_condition(conditions, RECONCILING);
    if stalled {
        set_condition(conditions, STALLED, true, reason, clip(&message), generation, now);
    } else {
        clear_condition(conditions, STALLED);
        if !ready {
            set_condition(conditions, RECONCILING, true, reason, clip(&message), generation, now);
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::is_true;
    use crate::policy::PublicKey;

    fn status(revoked: Option<RevokedReason>, window: (Option<i64>, Option<i64>), at: i64) -> PolicySignerStatus {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let time = |t: Option<i64>| t.map(|t| Timestamp::from_second(t).unwrap());
        let signer = Signer {
            name: "s".into(),
            key: PublicKey::from_key(key).unwrap(),
            tenants: vec!["acme".into()],
            not_before: time(window.0),
            not_after: time(window.1),
            revoked,
        };
        let object = PolicySigner::new("s", Default::default());
        next_status(&object, Ok(&signer), 3, Timestamp::from_second(at).unwrap())
    }

    #[test]
    fn ready_only_inside_its_window_and_unrevoked() {
        assert!(is_true(&status(None, (Some(10), Some(20)), 15).conditions, READY));
        let early = status(None, (Some(10), Some(20)), 5);
        assert!(!is_true(&early.conditions, READY) && is_true(&early.conditions, RECONCILING));
        let late = status(None, (Some(10), Some(20)), 25);
        assert!(is_true(&late.conditions, EXPIRED) && is_true(&late.conditions, STALLED));
        for reason in [RevokedReason::Superseded, RevokedReason::Compromised] {
            assert!(!is_true(&status(Some(reason), (None, None), 5).conditions, READY));
        }
        assert_eq!(early.packages, 3);
        assert!(early.fingerprint.unwrap().starts_with("sha256:"));
    }
}
