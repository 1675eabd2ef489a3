//! What a candidate is judged by: replay and proof where they are due, and what the records of both arms say.

use jiff::{SignedDuration, Timestamp};

use super::{Context, ReconcileError};
use crate::api::{TenantRolloutSpec, TenantRolloutStatus};
use crate::controllers::verdict::TenantFacts;
use crate::lifecycle::evidence::{Progress, ProofSummary, Question, ReplaySummary, Window};
use crate::lifecycle::rollout::{Evidence, Limits, decisions_of_candidate, question, stage_minimum};

/// What was looked at in this pass.
#[derive(Default)]
pub(super) struct Looked {
    preflight: Option<(Question, Progress<ReplaySummary>, Progress<ProofSummary>)>,
    pub window: Option<Window>,
    pub stage_decisions: u64,
}

impl Looked {
    pub async fn look(
        ctx: &Context,
        tenant: &TenantFacts,
        spec: &TenantRolloutSpec,
        base: &TenantRolloutStatus,
        platform: &[String],
        now: Timestamp,
    ) -> Result<Self, ReconcileError> {
        let mut looked = Self::default();
        if let Some(asked) = question(base, &tenant.name, &tenant.uid, platform) {
            let preflight = &ctx.rollout.preflight;
            let (replay, proof) = tokio::join!(preflight.replay(&asked), preflight.prove(&asked));
            looked.preflight = Some((asked, replay, proof));
        }
        let (Some(candidate), Some(started)) = (&base.candidate, &base.stage_started) else { return Ok(looked) };
        let ago = SignedDuration::from_secs(Limits::from(spec).window_seconds);
        let rates_since = now.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH);
        // Drift counts since the revision began; none is seen before stage one.
        let entry = base.history.iter().find(|h| h.revision.revision == candidate.revision);
        let began = entry.and_then(|h| h.at.as_ref()).map_or(started.0, |t| t.0);
        let (uid, revision, arms) = (&tenant.uid, candidate.revision, &ctx.rollout.arms);
        looked.window = Some(arms.window(uid, revision, rates_since, began).await?);
        let stage = arms.window(uid, revision, started.0, started.0).await?;
        looked.stage_decisions = decisions_of_candidate(&stage, stage_minimum(spec, base));
        Ok(looked)
    }

    pub fn evidence(&self) -> Option<Evidence<'_>> {
        self.preflight.as_ref().map(|(question, replay, proof)| Evidence { question, replay, proof })
    }

    /// The newest record that was counted.
    pub fn newest(&self) -> Option<Timestamp> {
        self.window.as_ref().and_then(|w| w.newest)
    }
}
