//! `PolicyPackage`: what verification says of it, for people. What comes into force is the rollout's, by the same verdict.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;

use super::verdict::{TenantFacts, judge};
use super::{Context, ReconcileError, apply_status, until};
use crate::api::{PolicyPackage, PolicyPackageStatus, READY, RECONCILING, STALLED, clear_condition, set_condition};
use crate::lifecycle::rollout::clip;
use crate::package::Verdict;
use crate::policy::{Refusal, RefusalCode};
use crate::source::judge::Said;
use crate::source::kubernetes::Guarded;

/// What the controller is given.
pub type Object = Guarded<PolicyPackage>;

/// How long a pass waits for tests.
const PATIENCE: Duration = Duration::from_secs(2);
/// It parses, agrees with the schema, and its tests pass.
const VALID: &str = "Valid";
/// It carries a signature that counts.
const SIGNED: &str = "Signed";

/// Where a package stands in its tenant's history.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    /// It never was in force.
    New,
    /// It is in force: what verification would say of it today does not matter.
    InForce,
    /// It was in force.
    Former,
}

pub async fn reconcile(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let Ok(package) = &object.0 else { return Ok(super::unreadable(&object)) };
    let name = package.namespace().unwrap_or_default();
    if package.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let Some(namespace) = ctx.objects.namespaces.get(&ObjectRef::new(&name)) else {
        // Its Namespace is still on its way here; that brings the package back.
        return Ok(Action::requeue(Duration::from_millis(50)));
    };
    let tenant = TenantFacts::read(&ctx, &namespace).await?;
    let Said { verdict, again } = judge(&ctx, &tenant, &package.spec, PATIENCE).await?;
    if tenant.is_platform && ctx.declared.as_deref() == Some(verdict.digest.as_str()) && verdict.overall().is_ok() {
        let key = verdict.signed.as_ref().ok().and_then(|v| v.public_key.as_ref()).map(|k| k.to_pem().to_owned());
        super::tenant_rollout::keep_bytes(&ctx, &name, &package.spec, &verdict.digest, key, 1).await?;
    }
    let standing = standing(&ctx, &tenant, &verdict).await?;
    let now = Timestamp::now();
    let status = next_status(package, &verdict, standing, now);
    let written =
        apply_status(&ctx.api::<PolicyPackage>(&name), package, package.status.as_ref(), &status, false).await?;
    let reason = |s: Option<&PolicyPackageStatus>| {
        s.and_then(|s| s.conditions.iter().find(|c| c.type_ == STALLED)).map(|c| (c.reason.clone(), c.message.clone()))
    };
    if written
        && let Some((why, message)) = reason(Some(&status))
        && reason(package.status.as_ref()).is_none_or(|(old, _)| old != why)
    {
        ctx.event(package, true, &why, &message).await;
    }
    let instants = tenant.signers.iter().flat_map(|s| [s.not_before, s.not_after]).flatten();
    Ok(again.map_or_else(|| until(now, instants), Action::requeue))
}

async fn standing(ctx: &Context, tenant: &TenantFacts, verdict: &Verdict) -> Result<Standing, ReconcileError> {
    if tenant.is_platform {
        return Ok(Standing::New);
    }
    let rollout = ctx.objects.rollout_of(&tenant.name);
    let stable = rollout.as_ref().and_then(|r| r.0.as_ref().ok()?.status.as_ref()?.stable.as_ref());
    let left = |key: &Option<String>| key.as_ref().is_some_and(|k| tenant.compromised.contains(k));
    if stable.is_some_and(|s| s.digest == verdict.digest && s.tenant_uid == tenant.uid && !left(&s.key_fingerprint)) {
        return Ok(Standing::InForce);
    }
    let rows = ctx.store.in_force(&tenant.uid).await?;
    Ok(if rows.iter().any(|r| r.digest == verdict.digest) { Standing::Former } else { Standing::New })
}

fn is_about_signing(code: RefusalCode) -> bool {
    use RefusalCode::*;
    matches!(
        code,
        UnknownSigner
            | ForeignSigner
            | RevokedSigner
            | SignerNotYetValid
            | SignerExpired
            | Unsigned
            | DigestMismatch
            | SignatureMismatch
            | EnvelopeMalformed
            | TenantMismatch
            | NameMismatch
            | VersionMismatch
            | InstallationMismatch
    )
}

fn next_status(package: &PolicyPackage, verdict: &Verdict, standing: Standing, now: Timestamp) -> PolicyPackageStatus {
    let generation = package.metadata.generation.unwrap_or(0);
    let mut status = package.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.digest = Some(verdict.digest.clone());
    let compiled = verdict.compiled.as_ref().and_then(|c| c.as_ref().ok());
    if let Some(compiled) = compiled {
        status.policies = i64::try_from(compiled.policy_count()).unwrap_or(i64::MAX);
        status.cost_class = Some(compiled.cost_class().to_owned());
    }
    let mut set = |type_: &str, on: bool, reason: &str, message: &str| {
        set_condition(&mut status.conditions, type_, on, reason, clip(message), generation, now);
    };
    match (&verdict.signed, &verdict.compiled, &verdict.test) {
        (Err(r), ..) if is_about_signing(r.code) => set(VALID, false, "NotParsed", "not parsed, for what Signed says"),
        (Err(r), ..) | (_, Some(Err(r)), _) | (_, _, Some(r)) => set(VALID, false, r.code.as_str(), &r.message),
        (Ok(_), ..) => set(VALID, true, "Valid", "it parses, agrees with its schema, and its tests pass"),
    }
    match &verdict.signed {
        Ok(v) => match (&v.key_fingerprint, &v.signer) {
            (Some(key), signer) => {
                let by = signer.as_deref().unwrap_or("?");
                set(SIGNED, true, "Signed", &format!("signed by {by} ({})", key.get(..19).unwrap_or(key)));
            }
            (None, _) => set(SIGNED, false, "Unsigned", "it carries no signature, and its tenant needs none yet"),
        },
        Err(r) if is_about_signing(r.code) => set(SIGNED, false, r.code.as_str(), &r.message),
        Err(_) => set(SIGNED, false, "NotChecked", "not checked, for what Valid says"),
    }
    let overall = verdict.overall();
    let (ready, reason, message): (bool, &str, String) = match (&overall, standing) {
        (_, Standing::InForce) => (true, "InForce", "it is in force".into()),
        (Ok(_), _) => (true, "Ready", "it may come into force".into()),
        (Err(Refusal { code: RefusalCode::Downgrade, .. }), Standing::Former) => {
            (true, "Former", "it was in force; a higher version has taken its place".into())
        }
        (Err(r), _) => (false, r.code.as_str(), r.message.clone()),
    };
    set(READY, ready, reason, &message);
    let conditions = &mut status.conditions;
    clear_condition(conditions, RECONCILING);
    if ready {
        clear_condition(conditions, STALLED);
    } else {
        set_condition(conditions, STALLED, true, reason, clip(&message), generation, now);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::is_true;
    use crate::policy::Verified;

    fn verdict(signed: Result<Verified, Refusal>, history: Option<Refusal>) -> Verdict {
        Verdict { digest: "sha256:x".into(), signed, compiled: None, test: None, history }
    }

    fn unsigned() -> Verified {
        Verified { digest: "sha256:x".into(), key_fingerprint: None, signer: None, author: None, public_key: None }
    }

    fn look(verdict: &Verdict, standing: Standing) -> PolicyPackageStatus {
        let package = PolicyPackage::new("p", Default::default());
        next_status(&package, verdict, standing, Timestamp::from_second(1).unwrap())
    }

    #[test]
    fn unsigned_is_ready_where_no_signer_is_and_refused_where_one_is() {
        let free = look(&verdict(Ok(unsigned()), None), Standing::New);
        assert!(is_true(&free.conditions, READY) && !is_true(&free.conditions, SIGNED));
        let refusal = Refusal::new(RefusalCode::Unsigned, "spec.signature is missing");
        let covered = look(&verdict(Err(refusal.clone()), None), Standing::New);
        assert!(!is_true(&covered.conditions, READY) && is_true(&covered.conditions, STALLED));
        let ready = covered.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!(ready.reason, "Unsigned");
        assert!(
            is_true(&look(&verdict(Err(refusal), None), Standing::InForce).conditions, READY),
            "what is in force stays"
        );
    }

    #[test]
    fn former_version_is_no_failure_but_a_new_lower_one_is() {
        let low = Refusal::new(RefusalCode::Downgrade, "below");
        let v = verdict(Ok(unsigned()), Some(low));
        assert!(is_true(&look(&v, Standing::Former).conditions, READY));
        assert!(is_true(&look(&v, Standing::New).conditions, STALLED));
    }
}
