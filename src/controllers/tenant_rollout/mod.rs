//! `TenantRollout`, by namespace: brings what `lifecycle::rollout` says about. Makes the empty rollout of a tenant that has none.
//!
//! It looks at the packages itself instead of waiting for their status: from `apply` to the new answer counts.

mod bytes;
mod definition;
mod evidence;
mod numbers;
mod pass;
mod targets;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use serde_json::json;

use super::preflight::Preflight;
use super::verdict::TenantFacts;
use super::{Context, ReconcileError, apply_status};
use crate::api::{
    DEFAULT_NAME, GROUP, MANAGER, READY, RolloutPhase, STALLED, TenantRollout, TenantRolloutStatus, VERSION,
    set_condition,
};
use crate::source::kubernetes::call;
use crate::store::{Arms, Rollouts};

pub use bytes::keep_bytes;
pub use numbers::Numbers;

use self::definition::Definition;
use self::pass::{Judged, Pass};

/// What rollouts need besides what every reconciler has.
pub struct Rollout {
    /// Where they stand.
    pub store: Arc<dyn Rollouts>,
    /// What the records of both arms say.
    pub arms: Arc<dyn Arms>,
    /// Makes replay and proof.
    pub preflight: Arc<dyn Preflight>,
    /// The installed definition.
    pub definition: Definition,
    /// Numbers for `/metrics`.
    pub numbers: Numbers,
    seen: Mutex<HashMap<String, Seen>>,
}

/// What is remembered of a namespace between passes; all of it can be lost.
#[derive(Default)]
struct Seen {
    judged: Option<Arc<Judged>>,
    written: Option<Instant>,
}

impl Rollout {
    /// Over these.
    pub fn new(store: Arc<dyn Rollouts>, arms: Arc<dyn Arms>, preflight: Arc<dyn Preflight>) -> Self {
        let (definition, numbers, seen) = Default::default();
        Self { store, arms, preflight, definition, numbers, seen }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judged(&self, namespace: &str) -> Option<Arc<Judged>> {
        self.seen().get(namespace).and_then(|s| s.judged.clone())
    }

    fn remember(&self, namespace: &str, judged: Arc<Judged>) {
        self.seen().entry(namespace.to_owned()).or_default().judged = Some(judged);
    }

    fn forget(&self, namespace: &str) {
        if let Some(seen) = self.seen().get_mut(namespace) {
            seen.judged = None;
        }
    }

    fn last_write(&self, namespace: &str) -> Option<Instant> {
        self.seen().get(namespace).and_then(|s| s.written)
    }

    fn wrote(&self, namespace: &str) {
        self.seen().entry(namespace.to_owned()).or_default().written = Some(Instant::now());
    }

    /// The namespace is gone.
    fn drop_namespace(&self, namespace: &str) {
        self.seen().remove(namespace);
    }
}

/// What the controller is given: a namespace may need a rollout before it has one.
pub type Object = Namespace;

pub async fn reconcile(namespace: Arc<Namespace>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let name = namespace.name_any();
    if namespace.metadata.deletion_timestamp.is_some() {
        ctx.rollout.drop_namespace(&name);
        return Ok(Action::await_change());
    }
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
        None => {
            let objects = packages.len() + ctx.objects.agents_of(&name).len();
            // Where something was in force the rollout was deleted: that is put right at once, also where no package object is there.
            let first = ctx.store.in_force(&tenant.uid).await?.is_empty();
            if first && packages.is_empty() {
                return Ok(published.map(|()| Action::await_change())?);
            }
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
