//! From what the store has to the status and back: what a pass starts from, and what it leaves.
//!
//! The store is right and the object shows it. A status that somebody forged, restored or that is behind is put right, never believed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Effect, Next, Observation, Pass, QUEUED, WATCH};
use crate::api::{RevisionStatus, TenantRolloutStatus};
use crate::store::RolloutCommit;

/// What decides by what anybody is answered: both packages, and their shares.
type Routes = (Option<(String, String, i64)>, Option<(String, String, i64)>, Option<i64>, Option<i64>);

fn routes(s: &TenantRolloutStatus) -> Routes {
    let of = |r: &Option<RevisionStatus>| r.as_ref().map(|r| (r.tenant_uid.clone(), r.digest.clone(), r.revision));
    (of(&s.stable), of(&s.candidate), s.percent, s.shadow_percent)
}

/// What the store keeps of a status: all but what describes it to people, and what is theirs.
fn kept(s: &TenantRolloutStatus) -> TenantRolloutStatus {
    TenantRolloutStatus {
        observed_generation: 0,
        phase: Default::default(),
        verdict: None,
        proof: None,
        replay: None,
        actions: Vec::new(),
        conditions: Vec::new(),
        ..s.clone()
    }
}

/// What a pass starts from: where the store has a state, that, with the object's texts.
pub fn resume(o: &Observation<'_>) -> TenantRolloutStatus {
    let there = o.status;
    let Some(stored) = o.stored else {
        // The first step: nothing can be under way yet, whatever the object says.
        return TenantRolloutStatus {
            candidate: None,
            stage: None,
            percent: None,
            shadow_percent: None,
            stage_started: None,
            progress: None,
            spec_hash: None,
            evidence_platform: Vec::new(),
            hold: None,
            progressed_at: None,
            verdict: None,
            proof: None,
            replay: None,
            handled: Vec::new(),
            ..there.clone()
        };
    };
    let mut base = TenantRolloutStatus {
        observed_generation: there.observed_generation,
        phase: there.phase,
        verdict: there.verdict.clone(),
        proof: there.proof.clone(),
        replay: there.replay.clone(),
        actions: there.actions.clone(),
        conditions: there.conditions.clone(),
        ..stored.state.clone()
    };
    if there.epoch > base.epoch || routes(there) != routes(&base) && there.epoch == base.epoch {
        // Replicas may have taken it for the newest: what puts it right must be newer still.
        base.epoch = there.epoch.saturating_add(1);
    }
    base
}

impl Pass<'_> {
    /// The effects in their order: bytes, store, status, the list of actions, and then people are told.
    pub(super) fn finish(mut self, base: &TenantRolloutStatus) -> Next {
        if routes(&self.status) != routes(base) {
            self.status.epoch = base.epoch.saturating_add(1);
        }
        self.status.observed_generation = self.o.generation;
        let before = self.o.stored.map(|s| &s.state);
        let now = kept(&self.status);
        let mut effects: Vec<Effect> = self.keep.drain(..).map(|digest| Effect::KeepBytes { digest }).collect();
        let rows = !(self.in_force.is_empty() && self.failures.is_empty() && self.records.is_empty());
        let moved = rows || before.map_or_else(|| now != kept(&TenantRolloutStatus::default()), |b| *b != now);
        if moved {
            let mut records = self.records;
            records.iter_mut().for_each(|r| r.epoch = self.status.epoch);
            effects.push(Effect::Commit(Box::new(RolloutCommit {
                tenant_uid: self.o.tenant_uid.into(),
                tenant: self.o.tenant.into(),
                expected: self.o.stored.map_or(0, |s| s.version),
                state: now,
                in_force: self.in_force,
                failures: self.failures,
                records,
            })));
        }
        if self.status != *self.o.status {
            let urgent = kept(&self.status) != kept(self.o.status)
                || self.status.phase != self.o.status.phase
                || self.status.observed_generation != self.o.status.observed_generation
                || said(&self.status.conditions) != said(&self.o.status.conditions);
            effects.push(Effect::WriteStatus { urgent });
        }
        if !self.handled.is_empty() {
            effects.push(Effect::RemoveActions(self.handled));
        }
        effects.extend(self.events);
        let again = match (&self.status.candidate, self.status.stage) {
            (None, _) => None,
            // What follows a step follows at once.
            _ if moved => Some(std::time::Duration::ZERO),
            (Some(_), None) => Some(QUEUED),
            (Some(_), Some(_)) => Some(WATCH),
        };
        Next { status: self.status, effects, again, taken_back: self.taken_back }
    }
}

/// What conditions say without their words.
fn said(conditions: &[Condition]) -> Vec<(&str, &str, &str, Option<i64>)> {
    conditions.iter().map(|c| (&*c.type_, &*c.status, &*c.reason, c.observed_generation)).collect()
}
