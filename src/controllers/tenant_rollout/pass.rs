//! One pass: what is seen, what `lifecycle::rollout` makes of it, and its effects in their order.
//!
//! Bytes, then the store, then the status: whoever reads the status finds the others there. After a crash between any two the next pass,
//! here or on another replica, goes on from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use super::evidence::Looked;
use super::{Context, ReconcileError};
use crate::api::{
    DEFAULT_NAME, HumanAction, MANAGER, PolicyPackage, PolicyPackageSpec, RevisionStatus, TenantRollout,
    TenantRolloutStatus,
};
use crate::controllers::arrival::arrival;
use crate::controllers::verdict::{TenantFacts, judge};
use crate::controllers::{apply_status, until};
use crate::fault;
use crate::lifecycle::rollout::{Candidate, Effect, Keys, Next, Observation, is_exact, resume, revision, spec_hash};
use crate::policy::parse_version;
use crate::source::index::find_bytes;
use crate::source::judge::Said;
use crate::source::kubernetes::{Guarded, call};
use crate::source::recorded::check;
use crate::store::{InForceRow, Rollback, RolloutCommit};

/// How often a status is written in which only numbers of texts have changed.
const TEXTS: Duration = Duration::from_secs(10);
/// For how long verdicts hold while nothing that was watched has changed: the clock may have.
const JUDGED: Duration = Duration::from_secs(5);
/// How long a pass waits for tests of packages that take long.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// After a step, or where somebody else was faster: the watch brings what was written in the meantime.
const SOON: Duration = Duration::from_millis(20);
/// How often a status is written anew because somebody was faster.
const TRIES: usize = 5;
/// When the installed definition is looked at again, where it lacks something.
const DEFINITION: Duration = Duration::from_secs(10);

pub(super) struct Pass<'a> {
    pub ctx: &'a Context,
    pub tenant: &'a TenantFacts,
    pub rollout: &'a TenantRollout,
    pub packages: &'a [Arc<Guarded<PolicyPackage>>],
}

/// The packages with their verdicts, and the bytes of those that may come into force.
#[derive(Default)]
pub struct Judged {
    of: Vec<String>,
    at: Option<Instant>,
    /// When a verdict may be another one although nothing has changed.
    again: Option<Duration>,
    candidates: Vec<Candidate>,
    bytes: BTreeMap<String, (PolicyPackageSpec, Option<String>)>,
}

impl Pass<'_> {
    /// What people ask for, a compromised key and a breach come first: they wait for no package to be judged.
    pub(super) async fn run(&self) -> Result<Action, ReconcileError> {
        let (ctx, tenant) = (self.ctx, self.tenant);
        let now = Timestamp::now();
        let stored = ctx.rollout.store.rollout_state(&tenant.uid).await?;
        let recorded = ctx.store.in_force(&tenant.uid).await?;
        let failed = ctx.rollout.store.rollout_failures(&tenant.uid, &spec_hash(&self.rollout.spec)).await?;
        let compromised = tenant.compromised.clone();
        let covering = tenant.signers.iter().filter(|s| s.covers(&tenant.name, false));
        let good = covering.map(|s| s.key.fingerprint().to_owned()).filter(|k| !compromised.contains(k)).collect();
        let fault = ctx.faults.get(&tenant.name);
        let candidate_fault = ctx.faults.candidate(&tenant.name);
        let before = self.rollout.status.clone().unwrap_or(TenantRolloutStatus {
            observed_generation: crate::api::never_observed(),
            ..TenantRolloutStatus::default()
        });
        let platform = match &ctx.snapshot.load().platform {
            Some(Ok(packages)) => packages.iter().map(|p| p.digest().to_owned()).collect(),
            _ => Vec::new(),
        };
        let keys = Keys { good, compromised, required: tenant.signature_needed };
        // A definition that can't be read starts nothing, see below, and takes nothing back.
        let defined = ctx.rollout.definition.gap(&ctx.client, false).await;
        let gap = defined.as_ref().ok().cloned().flatten();
        let mut o = Observation {
            spec: &self.rollout.spec,
            status: &before,
            stored: stored.as_ref(),
            generation: self.rollout.metadata.generation.unwrap_or(0),
            tenant: &tenant.name,
            tenant_uid: &tenant.uid,
            candidates: &[],
            recorded: &recorded,
            failed: &failed,
            keys: &keys,
            kept: &BTreeSet::new(),
            obstacles: &BTreeMap::new(),
            epoch_in_use: ctx.faults.epoch_in_use(&tenant.name),
            load_error: fault.as_deref(),
            candidate_error: candidate_fault.as_deref(),
            platform: &platform,
            evidence: None,
            window: None,
            stage_decisions: 0,
            schema_gap: gap.as_deref(),
            now,
        };
        let base = resume(&o);
        let looked = Looked::look(ctx, tenant, &self.rollout.spec, &base, &platform, now).await;
        o.evidence = looked.evidence();
        o.window = looked.window.as_ref();
        o.stage_decisions = looked.stage_decisions;
        let former = self.kept(&base, &recorded, &keys.compromised);
        o.kept = &former;
        if let Some(next) = self.urgent(&o).await? {
            self.carry_out(&next, &Judged::default(), &looked, now).await?;
            // The rest follows at once.
            return Ok(Action::requeue(SOON));
        }
        defined?;
        let judged = self.judged().await?;
        let kept = former.iter().chain(judged.bytes.keys()).cloned().collect();
        (o.candidates, o.kept) = (&judged.candidates, &kept);
        let mut next = self.step(&o, &judged.bytes).await?;
        // Before a candidate starts the installed definition is read once more: a budget that it drops would not be there.
        let fresh;
        if gap.is_none() && starts(&next) {
            fresh = ctx.rollout.definition.gap(&ctx.client, true).await?;
            if fresh.is_some() {
                o.schema_gap = fresh.as_deref();
                next = self.step(&o, &judged.bytes).await?;
            }
        }
        let mut again = self.carry_out(&next, &judged, &looked, now).await?;
        if o.schema_gap.is_some() {
            again.get_or_insert(DEFINITION);
        }
        if let Some(judge) = judged.again {
            again = Some(again.map_or(judge, |a| a.min(judge)));
        }
        Ok(match again {
            Some(again) => Action::requeue(again),
            None => until(now, tenant.signers.iter().flat_map(|s| [s.not_before, s.not_after]).flatten()),
        })
    }

    /// Carries out the effects in order. When to come again; None: when something changes.
    async fn carry_out(
        &self,
        next: &Next,
        judged: &Judged,
        looked: &Looked,
        now: Timestamp,
    ) -> Result<Option<Duration>, ReconcileError> {
        let (ctx, tenant) = (self.ctx, self.tenant);
        let mut again = next.again.map(|d| d.max(SOON));
        let (mut kept, mut stepped) = (false, false);
        for effect in &next.effects {
            match effect {
                Effect::KeepBytes { digest } => {
                    if let Some((spec, key)) = judged.bytes.get(digest) {
                        self.keep(spec, digest, key.clone()).await?;
                    }
                    kept = true;
                    fault::point("rollout.bytes_kept");
                }
                Effect::Commit(step) => {
                    if !self.commit(step, judged, next, now).await? {
                        tracing::info!(tenant = %tenant.name, "another replica took a step of the rollout first");
                        return Ok(Some(SOON));
                    }
                    stepped = true;
                    fault::point("rollout.committed");
                }
                Effect::WriteStatus { urgent } => {
                    if let Some(left) = self.too_soon(*urgent) {
                        again = Some(again.map_or(left, |a| a.min(left)));
                        continue;
                    }
                    self.write(&next.status, stepped).await?;
                    ctx.rollout.wrote(&tenant.name);
                    if next.taken_back {
                        ctx.rollout.numbers.taken_back(looked.newest());
                    }
                    fault::point("rollout.status_written");
                }
                Effect::RemoveActions(actions) => {
                    self.remove(actions).await?;
                    fault::point("rollout.actions_removed");
                }
                Effect::Event { warning, reason, note } => {
                    ctx.event(self.rollout, *warning, reason, note).await;
                    fault::point("rollout.event_told");
                }
            }
        }
        if !kept {
            self.heal(&next.status).await?;
        }
        self.prune(&next.status).await?;
        Ok(again)
    }

    async fn commit(
        &self,
        step: &RolloutCommit,
        judged: &Judged,
        next: &Next,
        now: Timestamp,
    ) -> Result<bool, ReconcileError> {
        let arrivals: Vec<_> = step
            .in_force
            .iter()
            .map(|row| {
                let spec = judged.bytes.get(&row.digest).map(|(spec, _)| spec);
                arrival(self.ctx, row, spec, gone_back(step, row), now)
            })
            .collect();
        let done = self.ctx.rollout.store.commit_rollout(step, &arrivals).await?;
        if done && !step.in_force.is_empty() {
            // The high-water mark has moved: what is below it may not come by itself any more.
            self.ctx.rollout.forget(&self.tenant.name);
        }
        for record in step.records.iter().filter(|_| done) {
            tracing::info!(
                tenant = %self.tenant.name, revision = record.revision, phase = %record.phase, cause = %record.cause,
                package = %record.package, version = %record.version, percent = record.percent, epoch = next.status.epoch,
                "rollout"
            );
        }
        Ok(done)
    }

    /// Writes the status over the version that was read. After a step of this pass also over a newer one: what the store took is so,
    /// and people must still be told.
    async fn write(&self, status: &TenantRolloutStatus, stepped: bool) -> Result<(), ReconcileError> {
        let api = self.ctx.api::<TenantRollout>(&self.tenant.name);
        let mut tries = if stepped { TRIES } else { 0 };
        let mut newer: Option<TenantRollout> = None;
        loop {
            let over = newer.as_ref().unwrap_or(self.rollout);
            match apply_status(&api, over, over.status.as_ref(), status, true).await {
                Err(error) if tries > 0 && error.is_conflict() => {
                    let there = call("tenantrollouts", api.get_opt(DEFAULT_NAME)).await?;
                    // Another object of this name is told by its own pass.
                    let Some(there) = there.filter(|t| t.uid() == self.rollout.uid()) else { return Err(error) };
                    // One that is farther was written by somebody who has read a newer step.
                    if there.status.as_ref().is_some_and(|s| s.epoch > status.epoch) {
                        return Err(error);
                    }
                    newer = Some(there);
                    tries -= 1;
                }
                other => return other.map(drop),
            }
        }
    }

    /// How long a write that is not urgent has to wait; None: it may be written.
    fn too_soon(&self, urgent: bool) -> Option<Duration> {
        let last = self.ctx.rollout.last_write(&self.tenant.name).filter(|_| !urgent)?;
        TEXTS.checked_sub(last.elapsed()).filter(|left| !left.is_zero())
    }

    /// Takes handled entries from the list of actions, and no others: by their places in the version that was read, guarded by it.
    async fn remove(&self, handled: &[HumanAction]) -> Result<(), ReconcileError> {
        let api = self.ctx.api::<TenantRollout>(&self.tenant.name);
        let Some(there) = call("tenantrollouts", api.get_opt(DEFAULT_NAME)).await? else { return Ok(()) };
        let Some(ops) = removal(&there, handled) else { return Ok(()) };
        let patch = serde_json::from_value(ops).map_err(|e| ReconcileError::Json("actions", e))?;
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        call("status", api.patch_status::<TenantRollout>(DEFAULT_NAME, &params, &Patch::Json(patch))).await?;
        Ok(())
    }

    /// What verification says of the packages, from the last pass where nothing has changed since.
    async fn judged(&self) -> Result<Arc<Judged>, ReconcileError> {
        let ctx = self.ctx;
        let version = |kind: &str, name: String, version: Option<String>| format!("{kind}/{name} {version:?}");
        let mut of: Vec<String> =
            self.packages.iter().map(|p| version("p", p.name_any(), p.resource_version())).collect();
        of.extend(ctx.objects.signers.state().iter().map(|s| version("s", s.name_any(), s.resource_version())));
        if let Some(Ok(platform)) = &ctx.snapshot.load().platform {
            of.extend(platform.iter().map(|p| p.digest().to_owned()));
        }
        of.push(format!("{} {}", self.tenant.uid, self.tenant.signature_needed));
        of.sort();
        let known = ctx.rollout.judged(&self.tenant.name);
        let holds =
            |k: &Judged| k.at.is_some_and(|at| at.elapsed() < k.again.map_or(JUDGED, |again| again.min(JUDGED)));
        if let Some(known) = known.filter(|k| k.of == of && holds(k)) {
            return Ok(known);
        }
        let begun = Instant::now();
        let mut judged = Judged { of, at: Some(begun), ..Judged::default() };
        for package in self.packages.iter().filter_map(|p| p.0.as_ref().ok()) {
            let patience = PATIENCE.saturating_sub(begun.elapsed());
            let Said { verdict, again } = judge(ctx, self.tenant, &package.spec, patience).await?;
            judged.again = [judged.again, again].into_iter().flatten().min();
            let overall = verdict.overall();
            // Also of what is only below the mark: a rollback or a revert may need its bytes.
            let whole = verdict.test.is_none() && verdict.compiled.as_ref().is_none_or(Result::is_ok);
            if let (true, Ok(verified)) = (whole, &verdict.signed) {
                let key = verified.public_key.as_ref().map(|k| k.to_pem().to_owned());
                judged.bytes.insert(verdict.digest.clone(), (package.spec.clone(), key));
            }
            judged.candidates.push(Candidate {
                object: package.name_any(),
                package: package.spec.package.clone(),
                version: parse_version(&package.spec.version).ok(),
                digest: verdict.digest,
                verdict: overall,
            });
        }
        let judged = Arc::new(judged);
        ctx.rollout.remember(&self.tenant.name, judged.clone());
        Ok(judged)
    }

    /// Digests of former packages whose bytes are at hand and still right. The history is looked at only when something may have to be gone back to.
    fn kept(
        &self,
        base: &TenantRolloutStatus,
        recorded: &[InForceRow],
        compromised: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let mut former: Vec<RevisionStatus> = base.history.iter().map(|h| h.revision.clone()).collect();
        former.extend(recorded.iter().filter(|r| !r.digest.is_empty()).map(revision));
        let left = |r: &RevisionStatus| r.key_fingerprint.as_ref().is_some_and(|k| compromised.contains(k));
        let asked = is_exact(&self.rollout.spec) || !base.actions.is_empty();
        if !asked && !former.iter().any(left) {
            former.clear();
        }
        former.retain(|r| {
            let bytes = find_bytes(&self.ctx.objects, &self.tenant.name, r, &self.tenant.signers);
            bytes.is_ok_and(|b| check(&b, r, &self.tenant.name, &self.ctx.installation, &self.tenant.signers).is_ok())
        });
        former.into_iter().map(|r| r.digest).collect()
    }
}

/// Whether a candidate starts by this.
fn starts(next: &Next) -> bool {
    next.effects.iter().any(|e| matches!(e, Effect::Commit(c) if c.records.iter().any(|r| r.phase == "queued")))
}

/// The patch that removes these entries from the list of actions; None: none of them is there. What was written since the object was
/// read makes it fail.
fn removal(there: &TenantRollout, handled: &[HumanAction]) -> Option<Value> {
    let list = there.status.as_ref().map(|s| s.actions.as_slice()).unwrap_or_default();
    let mut ops = vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": there.resource_version()?})];
    // From the end, so that a removal moves none of the others.
    for (i, action) in list.iter().enumerate().rev().filter(|(_, a)| handled.contains(a)) {
        ops.push(json!({"op": "test", "path": format!("/status/actions/{i}/id"), "value": action.id}));
        ops.push(json!({"op": "remove", "path": format!("/status/actions/{i}")}));
    }
    if ops.len() == 1 {
        return None;
    }
    Some(ops.into())
}

/// Whether the revision came into force by going back, for the history of policies.
fn gone_back(step: &RolloutCommit, row: &InForceRow) -> Option<Rollback> {
    let record = step.records.iter().find(|r| r.revision == row.revision)?;
    if !matches!(record.cause.as_str(), "SignerCompromised" | "RolledBack" | "Reverted") {
        return None;
    }
    let by = record.by.clone().unwrap_or_else(|| MANAGER.into());
    let reason = record.message.clone().unwrap_or_else(|| record.cause.clone());
    Some(Rollback { by, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(id: &str) -> HumanAction {
        HumanAction { id: id.into(), actor: "ann".into(), action: "pause".into(), ..HumanAction::default() }
    }

    #[test]
    fn only_handled_entries_are_removed_and_from_the_end() {
        let mut there = TenantRollout::new("default", Default::default());
        there.metadata.resource_version = Some("7".into());
        let actions = ["a", "b", "c"].map(action).to_vec();
        there.status = Some(TenantRolloutStatus { actions, ..TenantRolloutStatus::default() });
        let patch = removal(&there, &[action("a"), action("c"), action("gone")]).unwrap();
        let expected = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "test", "path": "/status/actions/2/id", "value": "c"},
            {"op": "remove", "path": "/status/actions/2"},
            {"op": "test", "path": "/status/actions/0/id", "value": "a"},
            {"op": "remove", "path": "/status/actions/0"},
        ]);
        assert_eq!(patch, expected);
        // Somebody's entry of the same id with other content is another entry.
        assert!(removal(&there, &[HumanAction { actor: "bob".into(), ..action("b") }]).is_none());
    }
}
