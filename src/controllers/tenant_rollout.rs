//! `TenantRollout`, by namespace: brings what `lifecycle::rollout` says about. Makes the empty rollout of a tenant that has none.
//!
//! It looks at the packages itself instead of waiting for their status: from `apply` to the new answer counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::arrival::arrival;
use super::verdict::{TenantFacts, judge};
use super::{Context, ReconcileError, apply_status, until};
use crate::api::{
    DEFAULT_NAME, GROUP, MANAGER, PolicyPackage, PolicyPackageSpec, READY, RevisionStatus, RolloutPhase, STALLED,
    TenantRollout, TenantRolloutStatus, VERSION, set_condition,
};
use crate::lifecycle::rollout::{Candidate, Effect, Keys, Observation, revision, revision_name, step};
use crate::policy::parse_version;
use crate::source::index::{compromised, find_bytes};
use crate::source::kubernetes::{Guarded, call};
use crate::source::recorded::{BYTES_LABEL, PackageBytes, check};
use crate::store::{InForceRow, Rollback};

/// What the controller is given: a namespace may need a rollout before it has one.
pub type Object = Namespace;

pub async fn reconcile(namespace: Arc<Namespace>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    if namespace.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let name = namespace.name_any();
    // Remembers signers for every namespace, also for one that has no package yet.
    let tenant = TenantFacts::read(&ctx, &namespace).await?;
    let packages = ctx.objects.packages_of(&name);
    let rollout = match ctx.objects.rollout_of(&name) {
        Some(rollout) => rollout.0.as_ref().ok().cloned(),
        None => None,
    };
    if tenant.is_platform {
        // Nobody should wait for what never comes: the platform's package is declared where the operator is.
        if let Some(rollout) = rollout.filter(|r| r.metadata.deletion_timestamp.is_none()) {
            let status = without_effect(&rollout, Timestamp::now());
            apply_status(&ctx.api(&name), &rollout, rollout.status.as_ref(), &status, true).await?;
        }
        return Ok(Action::await_change());
    }
    // Whoever may only write ConfigMaps can keep this one from being written (`immutable`), and must not hold up the rollout by it.
    let published = match rollout.is_some() || !packages.is_empty() || !ctx.objects.agents_of(&name).is_empty() {
        true => ctx.authority.publish(&ctx.client, &name, &tenant.uid).await,
        false => Ok(()),
    };
    let rollout = match rollout {
        Some(rollout) if rollout.metadata.deletion_timestamp.is_some() => return Ok(Action::await_change()),
        Some(rollout) => rollout,
        None if packages.is_empty() => return Ok(published.map(|()| Action::await_change())?),
        None => {
            let objects = packages.len() + ctx.objects.agents_of(&name).len();
            // Where something was in force the rollout was deleted: that is put right at once.
            let first = ctx.store.in_force(&tenant.uid).await?.is_empty();
            if let Some(wait) = ctx.quiet.left(&name, objects, Instant::now()).filter(|_| first) {
                return Ok(Action::requeue(wait));
            }
            make_empty(&ctx, &name).await?
        }
    };
    ctx.quiet.forget(&name);
    let next = Pass { ctx: &ctx, tenant: &tenant, rollout: &rollout, packages: &packages }.run().await?;
    Ok(published.map(|()| next)?)
}

/// For how long a namespace must have been quiet before it is given a rollout: `kubectl apply -f dir/` reads an object, finds it
/// missing and creates it, and must not find that Remit was faster.
const QUIET: Duration = Duration::from_secs(1);

/// Since when namespaces without a rollout have been quiet, by their number of objects.
#[derive(Default)]
pub struct Quiet(Mutex<HashMap<String, (usize, Instant)>>);

impl Quiet {
    /// How long to wait still; None: it has been quiet for long enough.
    fn left(&self, namespace: &str, objects: usize, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, since) = all.entry(namespace.into()).or_insert((objects, now));
        if *seen != objects {
            (*seen, *since) = (objects, now);
        }
        QUIET.checked_sub(now.saturating_duration_since(*since)).filter(|left| !left.is_zero())
    }

    fn forget(&self, namespace: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }
}

/// Status of a rollout in the operator's own namespace.
fn without_effect(rollout: &TenantRollout, now: Timestamp) -> TenantRolloutStatus {
    let generation = rollout.metadata.generation.unwrap_or(0);
    let mut status = TenantRolloutStatus {
        observed_generation: generation,
        phase: RolloutPhase::Degraded,
        // An action that somebody appended stays theirs.
        actions: rollout.status.as_ref().map(|s| s.actions.clone()).unwrap_or_default(),
        conditions: rollout.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default(),
        ..TenantRolloutStatus::default()
    };
    let message = "it has no effect here: the platform's package is declared by chart value platformPackage";
    for (type_, on) in [(READY, false), (STALLED, true)] {
        set_condition(&mut status.conditions, type_, on, "PlatformNamespace", message, generation, now);
    }
    status
}

/// The one thing that Remit writes into a spec: nothing.
async fn make_empty(ctx: &Context, namespace: &str) -> Result<TenantRollout, ReconcileError> {
    let body = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "TenantRollout",
        "metadata": {"name": DEFAULT_NAME, "namespace": namespace},
        "spec": {},
    });
    let empty = serde_json::from_value(body).map_err(|e| ReconcileError::Json("TenantRollout", e))?;
    let api = ctx.api::<TenantRollout>(namespace);
    match call("tenantrollouts", api.create(&by_remit(), &empty)).await {
        Ok(made) => Ok(made),
        // Its author was faster.
        Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {
            Ok(call("tenantrollouts", api.get(DEFAULT_NAME)).await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn by_remit() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

struct Pass<'a> {
    ctx: &'a Context,
    tenant: &'a TenantFacts,
    rollout: &'a TenantRollout,
    packages: &'a [Arc<Guarded<PolicyPackage>>],
}

impl Pass<'_> {
    async fn run(&self) -> Result<Action, ReconcileError> {
        let (ctx, tenant) = (self.ctx, self.tenant);
        let now = Timestamp::now();
        let recorded = ctx.store.in_force(&tenant.uid).await?;
        let (candidates, by_digest) = self.candidates().await?;
        let compromised = compromised(&tenant.signers);
        let covering = tenant.signers.iter().filter(|s| s.covers(&tenant.name, false));
        let good = covering.map(|s| s.key.fingerprint().to_owned()).filter(|k| !compromised.contains(k)).collect();
        let kept = self.kept(&by_digest, &recorded, &compromised);
        let fault = ctx.faults.get(&tenant.name);
        let before = self.rollout.status.clone().unwrap_or(TenantRolloutStatus {
            observed_generation: crate::api::never_observed(),
            ..TenantRolloutStatus::default()
        });
        let next = step(&Observation {
            spec: &self.rollout.spec,
            status: &before,
            generation: self.rollout.metadata.generation.unwrap_or(0),
            tenant: &tenant.name,
            tenant_uid: &tenant.uid,
            candidates: &candidates,
            recorded: &recorded,
            keys: &Keys { good, compromised },
            kept: &kept,
            load_error: fault.as_deref(),
            now,
        });
        // Bytes, then the store, then the status: whoever reads the status finds the others there.
        for effect in &next.effects {
            match effect {
                Effect::KeepBytes { digest } => {
                    if let Some((spec, key)) = by_digest.get(digest) {
                        self.keep(spec, digest, key.clone()).await?;
                    }
                }
                Effect::PutInForce(row) => {
                    let spec = by_digest.get(&row.digest).map(|(spec, _)| spec);
                    let arrival = arrival(ctx, row, spec, gone_back(&next.status, row), now);
                    ctx.store.put_in_force(row, &arrival).await?;
                }
                Effect::Event { .. } => {}
            }
        }
        if !next.effects.iter().any(|e| matches!(e, Effect::KeepBytes { .. })) {
            self.heal(&next.status).await?;
        }
        let api = ctx.api::<TenantRollout>(&tenant.name);
        apply_status(&api, self.rollout, self.rollout.status.as_ref(), &next.status, true).await?;
        for effect in &next.effects {
            if let Effect::Event { warning, reason, note } = effect {
                ctx.event(self.rollout, *warning, reason, note).await;
            }
        }
        self.prune(&next.status).await?;
        Ok(until(now, tenant.signers.iter().flat_map(|s| [s.not_before, s.not_after]).flatten()))
    }

    /// The packages with their verdicts, and the bytes of those that may come into force.
    async fn candidates(
        &self,
    ) -> Result<(Vec<Candidate>, BTreeMap<String, (PolicyPackageSpec, Option<String>)>), ReconcileError> {
        let (mut candidates, mut bytes) = (Vec::new(), BTreeMap::new());
        for package in self.packages.iter().filter_map(|p| p.0.as_ref().ok()) {
            let verdict = judge(self.ctx, self.tenant, &package.spec).await?;
            let overall = verdict.overall();
            if let (Ok(_), Ok(verified)) = (&overall, &verdict.signed) {
                let key = verified.public_key.as_ref().map(|k| k.to_pem().to_owned());
                bytes.insert(verdict.digest.clone(), (package.spec.clone(), key));
            }
            candidates.push(Candidate {
                object: package.name_any(),
                package: package.spec.package.clone(),
                version: parse_version(&package.spec.version).ok(),
                digest: verdict.digest,
                verdict: overall,
            });
        }
        Ok((candidates, bytes))
    }

    /// Digests whose bytes are at hand and still right. The history is looked at only when something has to be gone back to.
    fn kept(
        &self,
        candidates: &BTreeMap<String, (PolicyPackageSpec, Option<String>)>,
        recorded: &[InForceRow],
        compromised: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let status = self.rollout.status.iter();
        let mut former: Vec<RevisionStatus> = status.flat_map(|s| &s.history).map(|h| h.revision.clone()).collect();
        former.extend(recorded.iter().map(revision));
        let left = |r: &RevisionStatus| r.key_fingerprint.as_ref().is_some_and(|k| compromised.contains(k));
        if !former.iter().any(left) {
            former.clear();
        }
        former.retain(|r| {
            let bytes = find_bytes(&self.ctx.objects, &self.tenant.name, r, &self.tenant.signers);
            bytes.is_ok_and(|b| check(&b, r, &self.tenant.name, &self.ctx.installation, &self.tenant.signers).is_ok())
        });
        former.into_iter().map(|r| r.digest).chain(candidates.keys().cloned()).collect()
    }

    async fn keep(&self, spec: &PolicyPackageSpec, digest: &str, key: Option<String>) -> Result<(), ReconcileError> {
        keep_bytes(self.ctx, &self.tenant.name, spec, digest, key, Some(owner(self.rollout)), 1).await
    }

    /// Makes the ControllerRevision of what is in force anew where somebody deleted it, or where its owner is a rollout that is gone
    /// (the garbage collector is about to take it).
    async fn heal(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        let Some(stable) = &status.stable else { return Ok(()) };
        let name = stable.controller_revision.clone().unwrap_or_else(|| revision_name(&stable.digest));
        let there = self.ctx.objects.revisions.get(&ObjectRef::new(&name).within(&self.tenant.name));
        let uid = self.rollout.uid().unwrap_or_default();
        if there.is_some_and(|r| r.owner_references().iter().any(|o| o.uid == uid)) {
            return Ok(());
        }
        let Ok(bytes) = find_bytes(&self.ctx.objects, &self.tenant.name, stable, &self.tenant.signers) else {
            return Ok(());
        };
        if check(&bytes, stable, &self.tenant.name, &self.ctx.installation, &self.tenant.signers).is_ok() {
            self.keep(&bytes.spec, &stable.digest, bytes.public_key).await?;
        }
        Ok(())
    }

    /// Deletes bytes that no revision in the history refers to. Only what this rollout owns.
    async fn prune(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        let entries = status.history.iter().map(|h| &h.revision).chain(&status.stable);
        let wanted: BTreeSet<String> = entries.map(|r| revision_name(&r.digest)).collect();
        let uid = self.rollout.uid().unwrap_or_default();
        let api = self.ctx.api::<ControllerRevision>(&self.tenant.name);
        let all = self.ctx.objects.revisions.state_filter(|r| {
            r.namespace().as_deref() == Some(&self.tenant.name)
                && !wanted.contains(&r.name_any())
                && r.owner_references().iter().any(|o| o.uid == uid)
        });
        for old in all {
            let preconditions = Preconditions { uid: old.uid(), resource_version: old.resource_version() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match call("controllerrevisions", api.delete(&old.name_any(), &params)).await {
                Ok(_) => {
                    tracing::info!(tenant = %self.tenant.name, name = %old.name_any(), "package bytes beyond the history limit deleted")
                }
                Err(error) if error.status().is_some_and(|s| s.is_not_found() || s.is_conflict()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether the revision came into force by going back, for the history.
fn gone_back(status: &TenantRolloutStatus, row: &InForceRow) -> Option<Rollback> {
    let entry = status.history.iter().find(|h| h.revision.revision == row.revision)?;
    let back = entry.cause == "SignerCompromised";
    back.then(|| Rollback { by: MANAGER.into(), reason: entry.cause.clone() })
}

fn owner(rollout: &TenantRollout) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: TenantRollout::kind(&()).into_owned(),
        name: rollout.name_any(),
        uid: rollout.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// Keeps a package's bytes as a ControllerRevision. One of the same name with other bytes (the same content, signed anew) is replaced.
pub async fn keep_bytes(
    ctx: &Context,
    namespace: &str,
    spec: &PolicyPackageSpec,
    digest: &str,
    public_key: Option<String>,
    owner: Option<OwnerReference>,
    revision: i64,
) -> Result<(), ReconcileError> {
    let name = revision_name(digest);
    let bytes = PackageBytes { spec: spec.clone(), public_key };
    let data = serde_json::to_value(&bytes).map_err(|e| ReconcileError::Json("ControllerRevision.data", e))?;
    let api = ctx.api::<ControllerRevision>(namespace);
    let known = ctx.objects.revisions.get(&ObjectRef::new(&name).within(namespace));
    let (same_data, same_owner) = known.as_ref().map_or((false, false), |k| {
        let owned = owner.as_ref().is_none_or(|o| k.owner_references().iter().any(|r| r.uid == o.uid));
        (k.data.0 == data, owned)
    });
    if same_data && same_owner {
        return Ok(());
    }
    let mut kept =
        ControllerRevision { data: RawExtension(data), revision: Some(revision), ..ControllerRevision::default() };
    kept.metadata.name = Some(name.clone());
    kept.metadata.owner_references = owner.clone().map(|o| vec![o]);
    kept.labels_mut().insert(BYTES_LABEL.into(), "true".into());
    kept.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
    match call("controllerrevisions", api.create(&by_remit(), &kept)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {}
        Err(error) => return Err(error.into()),
    }
    let there = call("controllerrevisions", api.get_opt(&name)).await?;
    let right = |k: &ControllerRevision| {
        let owned = owner.as_ref().is_none_or(|o| k.owner_references().iter().any(|r| r.uid == o.uid));
        k.data == kept.data && owned && k.metadata.deletion_timestamp.is_none()
    };
    if there.as_ref().is_some_and(right) {
        return Ok(());
    }
    // `data` can't be changed, and the garbage collector takes what belongs to a rollout that is gone.
    tracing::info!(%namespace, %name, "package bytes are written anew: signed by another key, or owned by a rollout that is gone");
    if let Some(old) = there {
        let preconditions = Some(Preconditions { uid: old.uid(), resource_version: None });
        match call("controllerrevisions", api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }))
            .await
        {
            Err(error) if !error.status().is_some_and(|s| s.is_not_found() || s.is_conflict()) => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    call("controllerrevisions", api.create(&by_remit(), &kept)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_of_the_platform_says_that_it_has_no_effect_and_does_not_flap() {
        let mut rollout = TenantRollout::new("default", Default::default());
        rollout.metadata.generation = Some(3);
        let first = without_effect(&rollout, Timestamp::from_second(1).unwrap());
        assert!(crate::api::is_true(&first.conditions, STALLED) && !crate::api::is_true(&first.conditions, READY));
        assert_eq!(first.observed_generation, 3);
        rollout.status = Some(first.clone());
        assert_eq!(without_effect(&rollout, Timestamp::from_second(9).unwrap()), first);
    }

    #[test]
    fn a_rollout_is_made_only_after_the_namespace_was_quiet() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.left("acme", 1, start), Some(QUIET));
        assert!(quiet.left("acme", 1, start + QUIET / 2).is_some());
        assert_eq!(quiet.left("acme", 2, start + QUIET / 2), Some(QUIET), "another object: its author is still at it");
        assert!(quiet.left("acme", 2, start + QUIET).is_some());
        assert_eq!(quiet.left("acme", 2, start + QUIET + QUIET / 2), None);
        quiet.forget("acme");
        assert_eq!(quiet.left("acme", 2, start + 3 * QUIET), Some(QUIET));
    }
}
