//! `GET …/rollouts/observability`: what the records and the shadow evaluations say of the two packages of a rollout. The same numbers that
//! its budgets are judged by, and nothing that a caller said.

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::AppState;
use super::admin::failed;
use super::error::HttpError;
use super::policies::{Params, reader};
use super::rollouts::{control, rollout};
use crate::lifecycle::evidence::{AgentCounts, Window};

/// Seconds that rates look back where `spec.budgets.windowSeconds` is not set.
const WINDOW: i64 = 600;

/// The route.
pub async fn observability(State(state): State<AppState>, params: Params, parts: Parts) -> Result<Response, HttpError> {
    let who = reader(&state, &parts, &params, "tenantrollouts").await?;
    let there = rollout(&state, &who.tenant).await?;
    let status = there.status.clone().unwrap_or_default();
    // Without a rollout under way, the newest that there was.
    let newest = status.history.iter().max_by_key(|h| h.revision.revision).map(|h| &h.revision);
    let Some(of) = status.candidate.as_ref().or(newest) else {
        return Err(HttpError::not_found("unknown_rollout", "This tenant has had no rollout yet."));
    };
    let seconds = there.spec.budgets.as_ref().and_then(|b| b.window_seconds).unwrap_or(WINDOW);
    let now = state.clock.now();
    let rates_since = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::UNIX_EPOCH);
    let entry = status.history.iter().find(|h| h.revision.revision == of.revision);
    let began = entry.and_then(|h| h.at.as_ref()).or(status.stage_started.as_ref()).map_or(rates_since, |t| t.0);
    let window = control(&state)?.window(&who.uid, of.revision, rates_since, 0).await.map_err(failed)?;
    let mut body = counted(&window);
    body["rollout"] = json!({"id": of.revision, "package": of.package, "version": of.version, "digest": of.digest});
    body["under_way"] = status.candidate.is_some().into();
    body["percent"] = status.percent.into();
    body["rates_since"] = rates_since.to_string().into();
    body["drift_since"] = began.to_string().into();
    body["verdict"] = serde_json::to_value(&status.verdict).map_err(|_| HttpError::internal())?;
    Ok(Json(body).into_response())
}

fn counted(w: &Window) -> Value {
    let sum = |of: &dyn Fn(&crate::lifecycle::evidence::AgentDrift) -> u64| w.shadow.iter().map(of).sum::<u64>();
    let worst: Vec<Value> = w
        .worst
        .iter()
        .map(|e| {
            json!({"decision_id": e.decision, "severity": e.severity.as_str(), "cause": e.cause.as_str(), "sentence": e.sentence,
                "candidate_policies": e.candidate_policies})
        })
        .collect();
    json!({
        "stable": arm(&w.stable),
        "candidate": arm(&w.canary),
        "drift": {
            "compared": sum(&|d| d.compared), "critical": sum(&|d| d.critical), "high": sum(&|d| d.high),
            "medium": sum(&|d| d.medium), "low": sum(&|d| d.low), "expansions": sum(&|d| d.expansions),
            "restrictions": sum(&|d| d.restrictions), "worst": worst,
        },
        "newest_record": w.newest.map(|t| t.to_string()),
    })
}

fn arm(agents: &[AgentCounts]) -> Value {
    let each: Vec<Value> = agents
        .iter()
        .map(|a| {
            json!({"agent": a.agent, "decisions": a.decisions, "denied": a.denied, "errors": a.errors,
                "error_example": a.error_example, "error_policies": a.error_policies,
                "mean_micros": a.latency_micros.checked_div(a.decisions)})
        })
        .collect();
    json!({
        "decisions": agents.iter().map(|a| a.decisions).sum::<u64>(),
        "denied": agents.iter().map(|a| a.denied).sum::<u64>(),
        "errors": agents.iter().map(|a| a.errors).sum::<u64>(),
        "agents": each,
    })
}
