//! `PolicyReplay`: asks for a run, shows how far it is and what came of it, and deletes the object a day later.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;

use super::{Context, ReconcileError, apply_status, until};
use crate::api::{
    PolicyReplay, PolicyReplayStatus, READY, RECONCILING, ReplayProgress, ReplayState, STALLED, clear_condition,
    set_condition,
};
use crate::lifecycle::rollout::clip;
use crate::replay::{Asked, Report};
use crate::source::kubernetes::{Guarded, call};
use crate::store::{MAX_OPEN_RUNS, ReplayRun};

/// What the controller is given.
pub type Object = Guarded<PolicyReplay>;

/// For how long a finished object stays.
const TTL: SignedDuration = SignedDuration::from_hours(24);
/// How often a run is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often progress is written.
const PROGRESS_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// When what can't begin is tried again: a package may be applied after its replay.
const AGAIN: Duration = Duration::from_secs(5);

pub async fn reconcile(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let Ok(replay) = &object.0 else { return Ok(super::unreadable(&object)) };
    if replay.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    let namespace = replay.namespace().unwrap_or_default();
    let api: Api<PolicyReplay> = ctx.api(&namespace);
    let finished =
        replay.status.as_ref().and_then(|s| Some((s.state.filter(|s| s.finished())?, s.finished_at.clone()?)));
    if let Some((_, at)) = finished {
        return expire(&api, replay, at.0, now).await;
    }
    let Some(tenant) = ctx.objects.namespaces.get(&ObjectRef::new(&namespace)) else {
        return Ok(Action::requeue(AGAIN));
    };
    let uid = tenant.uid().unwrap_or_default();
    // Found again after a crash between keeping the run and writing the status.
    let key = format!("object:{}", replay.uid().unwrap_or_default());
    let run = match ctx.replays.newest_run(&uid, &key, None).await? {
        Some(run) => Ok(run),
        None => begin(&ctx, replay, &namespace, &uid, key, now).await?,
    };
    let status = next_status(replay, run.as_ref(), now);
    let changed = apply_status(&api, replay, replay.status.as_ref(), &status, false).await?;
    match &run {
        Err(_) => Ok(Action::requeue(AGAIN)),
        Ok(run) if !run.state.finished() => Ok(Action::requeue(LOOK)),
        Ok(run) => {
            if changed {
                let (reason, note) = finding(&status, run);
                ctx.event(replay, run.state == ReplayState::Failed, reason, &note).await;
            }
            Ok(until(now, status.finished_at.and_then(|at| at.0.checked_add(TTL).ok())))
        }
    }
}

/// Deletes what finished long enough ago: exactly this object, and nothing that has come in its place.
async fn expire(
    api: &Api<PolicyReplay>,
    replay: &PolicyReplay,
    at: Timestamp,
    now: Timestamp,
) -> Result<Action, ReconcileError> {
    let ends = at.checked_add(TTL).unwrap_or(Timestamp::MAX);
    if ends > now {
        return Ok(until(now, [ends]));
    }
    let preconditions = Preconditions { uid: replay.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match call("policyreplays", api.delete(&replay.name_any(), &params)).await {
        Ok(_) => {
            tracing::info!(name = %replay.name_any(), namespace = replay.namespace(), "a finished replay is deleted")
        }
        Err(error) if error.status().is_some_and(|s| s.is_not_found()) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Action::await_change())
}

/// Why a run does not begin: reason, message, and whether only a change helps.
type Waits = (&'static str, String);

/// Keeps a run for the object, if it can begin.
async fn begin(
    ctx: &Context,
    replay: &PolicyReplay,
    namespace: &str,
    uid: &str,
    key: String,
    now: Timestamp,
) -> Result<Result<ReplayRun, Waits>, ReconcileError> {
    let find = |selector: &_| ctx.past.digest_of(namespace, selector);
    let spec = match Asked::from(&replay.spec).fixed(namespace, &ctx.snapshot.load(), now, find) {
        Ok(spec) => spec,
        Err(error) => return Ok(Err(("CannotBegin", format!("spec.{error}")))),
    };
    let run = ReplayRun::queued(uuid::Uuid::now_v7().to_string(), namespace, uid, key, spec, now);
    if !ctx.replays.add_run(&run).await? {
        return Ok(Err(("TooManyRuns", format!("{MAX_OPEN_RUNS} replays of this namespace wait or are under way"))));
    }
    Ok(Ok(run))
}

/// What a finished run comes to, in one line.
fn finding(status: &PolicyReplayStatus, run: &ReplayRun) -> (&'static str, String) {
    match (&run.error, status.verdict, &status.counts) {
        (Some(error), ..) => ("ReplayFailed", error.clone()),
        (None, Some(verdict), Some(c)) => {
            let reason = match verdict {
                crate::api::ReplayVerdict::Pass => "Passed",
                crate::api::ReplayVerdict::Fail => "DifferencesFound",
                crate::api::ReplayVerdict::Inconclusive => "Inconclusive",
            };
            let note = format!(
                "{}: replayed {} of {}; critical {}, high {}, medium {}, low {}; invariants that fail: {}",
                verdict.as_str(),
                c.replayed,
                c.selected,
                c.critical,
                c.high,
                c.medium,
                c.low,
                status.invariants_failed.len()
            );
            (reason, note)
        }
        (None, ..) => ("ReportUnreadable", "its report can't be read".to_owned()),
    }
}

fn next_status(replay: &PolicyReplay, run: Result<&ReplayRun, &Waits>, now: Timestamp) -> PolicyReplayStatus {
    let generation = replay.metadata.generation.unwrap_or(0);
    let old = replay.status.clone().unwrap_or_default();
    let mut status =
        PolicyReplayStatus { observed_generation: generation, conditions: old.conditions, ..Default::default() };
    // (Ready, Reconciling, reason, message)
    let (ready, reconciling, reason, message) = match run {
        Err((reason, why)) => (false, *reason == "TooManyRuns", *reason, why.clone()),
        Ok(run) => {
            status.state = Some(run.state);
            status.run = Some(run.id.clone());
            status.baseline = Some(run.spec.baseline.clone());
            status.candidate = Some(run.spec.candidate.clone());
            status.finished_at = run.finished.map(Time);
            status.input_fingerprint.clone_from(&run.input_fingerprint);
            status.result_fingerprint.clone_from(&run.result_fingerprint);
            status.progress = progress(old.progress, old.state, run, now);
            if let Some(report) = run.report.as_deref().and_then(|text| serde_json::from_str::<Report>(text).ok()) {
                // Whoever may read the object need not be one who may read decisions: what names one is in the report alone.
                status.invariants_failed = report.invariants_that_fail();
                status.verdict = Some(report.verdict);
                status.counts = Some(report.counts);
            }
            match run.state {
                ReplayState::Queued => (false, true, "Queued", "the replay waits for its turn".to_owned()),
                ReplayState::Running => (false, true, "Running", "decisions are being replayed".to_owned()),
                ReplayState::Failed | ReplayState::Completed => {
                    let (reason, note) = finding(&status, run);
                    (run.state == ReplayState::Completed, false, reason, note)
                }
            }
        }
    };
    let conditions = &mut status.conditions;
    let message = clip(&message);
    set_condition(conditions, READY, ready, reason, message.as_str(), generation, now);
    for (type_, holds) in [(RECONCILING, reconciling), (STALLED, !ready && !reconciling)] {
        match holds {
            true => set_condition(conditions, type_, true, reason, message.as_str(), generation, now),
            false => clear_condition(conditions, type_),
        }
    }
    status
}

/// Written at most every ten seconds, but for the first and the last.
fn progress(
    old: Option<ReplayProgress>,
    state: Option<ReplayState>,
    run: &ReplayRun,
    now: Timestamp,
) -> Option<ReplayProgress> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let recent = |at: &Time| now.duration_since(at.0) < PROGRESS_EVERY;
    match old {
        Some(old) if state == Some(run.state) && old.at.as_ref().is_some_and(recent) => Some(old),
        _ => Some(ReplayProgress { done: number(run.done), total: number(run.total), at: Some(Time(now)) }),
    }
}
