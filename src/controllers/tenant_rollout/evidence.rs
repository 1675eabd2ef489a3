//! What a candidate is judged by: replay and proof where they are due, and what the records of both arms say.
//!
//! Looking never fails a pass: what can't be read, or not in time, is no evidence. Then nothing goes on, and what people ask for and a
//! compromised key are still seen to.

use std::future::Future;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::Context;
use crate::api::{TenantRolloutSpec, TenantRolloutStatus};
use crate::controllers::verdict::TenantFacts;
use crate::lifecycle::evidence::{Progress, ProofSummary, Question, ReplaySummary, Window};
use crate::lifecycle::rollout::{Evidence, Limits, decisions_of_candidate, question, stage_minimum};
use crate::store::{Arms, StoreError};

/// Time for one look at the records, or at replay and proof.
const LOOK: Duration = Duration::from_secs(5);

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
    ) -> Self {
        let mut looked = Self::default();
        if let Some(asked) = question(base, &tenant.name, &tenant.uid, platform) {
            let preflight = &ctx.rollout.preflight;
            let both = async { tokio::join!(preflight.replay(&asked), preflight.prove(&asked)) };
            match timeout(LOOK, both).await {
                Ok((replay, proof)) => looked.preflight = Some((asked, replay, proof)),
                Err(_) => tracing::warn!(tenant = %tenant.name, "replay and proof could not be asked for in {LOOK:?}"),
            }
        }
        let agents = u64::try_from(ctx.objects.agents_of(&tenant.name).len()).unwrap_or(u64::MAX);
        looked.records(&*ctx.rollout.arms, tenant, spec, base, agents, now).await;
        looked
    }

    /// What the records of both arms say, and how many decisions the stage has.
    async fn records(
        &mut self,
        arms: &dyn Arms,
        tenant: &TenantFacts,
        spec: &TenantRolloutSpec,
        base: &TenantRolloutStatus,
        agents: u64,
        now: Timestamp,
    ) {
        let (Some(candidate), Some(started)) = (&base.candidate, &base.stage_started) else { return };
        let limits = Limits::from(spec);
        let ago = SignedDuration::from_secs(limits.window_seconds);
        let rates_since = now.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH);
        let (uid, revision, needed) = (&tenant.uid, candidate.revision, stage_minimum(spec, base));
        let (window, stage) = tokio::join!(
            in_time(arms.window(uid, revision, rates_since, limits.min_samples)),
            in_time(arms.stage(uid, revision, started.0, needed)),
        );
        match (window, stage) {
            (Ok(window), Ok(stage)) => {
                self.window = Some(Window { agents, ..window });
                self.stage_decisions = decisions_of_candidate(&stage, needed);
            }
            (window, stage) => {
                // A breach that can be seen counts, also where the stage's own decisions can't.
                let error = stage.err().or(window.as_ref().err().cloned()).unwrap_or_default();
                tracing::warn!(tenant = %tenant.name, revision, error, "what the records of a rollout say can't be read");
                self.window = window.ok().map(|window| Window { agents, ..window });
            }
        }
    }

    pub fn evidence(&self) -> Option<Evidence<'_>> {
        self.preflight.as_ref().map(|(question, replay, proof)| Evidence { question, replay, proof })
    }

    /// The newest record that was counted.
    pub fn newest(&self) -> Option<Timestamp> {
        self.window.as_ref().and_then(|w| w.newest)
    }
}

async fn in_time<T>(what: impl Future<Output = Result<T, StoreError>>) -> Result<T, String> {
    match timeout(LOOK, what).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {} s", LOOK.as_secs())),
    }
}
