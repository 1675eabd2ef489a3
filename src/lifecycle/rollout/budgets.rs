//! Stages and budgets with their defaults, as docs/rollouts.md gives them.

use crate::api::{ProofBudget, Stage, StageGate, TenantRolloutSpec, TenantRolloutStatus};

/// Percentages of the stages, where the spec has none.
const STAGES: [i64; 3] = [5, 25, 100];

/// The stages of a spec, never empty; the last is 100 %, whatever got past admission.
pub fn stages(spec: &TenantRolloutSpec) -> Vec<Stage> {
    let whole = |percent| Stage { percent, ..Stage::default() };
    let mut stages: Vec<Stage> = match &spec.stages {
        Some(stages) if !stages.is_empty() => stages.clone(),
        _ => STAGES.into_iter().map(whole).collect(),
    };
    if stages.last().is_none_or(|s| s.percent != 100) {
        stages.push(whole(100));
    }
    stages
}

/// Seconds that a stage lasts at least.
pub(super) fn min_seconds(stage: &Stage) -> i64 {
    stage.min_seconds.unwrap_or(300)
}

/// Decisions of the candidate that a stage needs.
pub(super) fn min_decisions(stage: &Stage) -> u64 {
    counted(stage.min_decisions, 20)
}

/// Calls that must have been compared, and decisions that must have been made, before a stage is left on what they say: never more than
/// the stage itself asks for. A stage that asks for none is left on none.
pub(super) fn needed(limits: &Limits, stage: &Stage) -> u64 {
    limits.min_samples.min(min_decisions(stage))
}

/// The stage that a rollout is in.
pub(super) fn stage_of(spec: &TenantRolloutSpec, status: &TenantRolloutStatus) -> Option<Stage> {
    let stages = stages(spec);
    let i = usize::try_from(status.stage?).ok()?;
    stages.get(i).or(stages.last()).cloned()
}

/// Decisions of the candidate that the stage needs in which a rollout is; 0: it is in none.
pub fn stage_minimum(spec: &TenantRolloutSpec, status: &TenantRolloutStatus) -> u64 {
    stage_of(spec, status).map_or(0, |stage| min_decisions(&stage))
}

pub(super) fn is_manual(stage: &Stage) -> bool {
    stage.gate == Some(StageGate::Manual)
}

/// Seconds without progress after which a rollout fails.
pub(super) fn deadline(spec: &TenantRolloutSpec) -> i64 {
    spec.progress_deadline_seconds.unwrap_or(86_400)
}

/// Decisions that must have been replayed for a verdict.
pub(super) fn min_replayed(spec: &TenantRolloutSpec) -> u64 {
    counted(spec.replay.as_ref().and_then(|r| r.min_decisions), 20)
}

fn counted(value: Option<i64>, default: u64) -> u64 {
    value.map_or(default, |v| u64::try_from(v).unwrap_or(0))
}

/// The budgets in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Differences of severity critical, at most.
    pub critical: u64,
    /// Differences of severity high, at most; expansions and restrictions apart.
    pub high: u64,
    /// Percentage points.
    pub denial_growth: u64,
    /// Percent.
    pub errors: u64,
    /// Percent.
    pub latency_growth: u64,
    /// Decisions that a rate needs.
    pub min_samples: u64,
    /// Seconds.
    pub window_seconds: i64,
    /// Of 100.
    pub shadow_percent: i64,
    /// What the proof must say.
    pub proof: ProofBudget,
}

impl From<&TenantRolloutSpec> for Limits {
    fn from(spec: &TenantRolloutSpec) -> Self {
        let b = spec.budgets.clone().unwrap_or_default();
        Self {
            critical: counted(b.critical_drift, 0),
            high: counted(b.high_drift, 2),
            denial_growth: counted(b.denial_growth_percent, 10),
            errors: counted(b.error_percent, 2),
            latency_growth: counted(b.latency_growth_percent, 200),
            min_samples: counted(b.min_samples, 20),
            window_seconds: b.window_seconds.unwrap_or(600),
            shadow_percent: b.shadow_percent.unwrap_or(100).clamp(0, 100),
            proof: b.proof.unwrap_or_default(),
        }
    }
}
