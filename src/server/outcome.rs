//! What became of a call that was allowed: said once, by the caller who asked.
//!
//! It changes no decision. Must never tell another's decision from one that does not exist.

use std::collections::HashMap;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::HttpError;
use super::{AppState, body, caller, ijson};
use crate::gate::{CallOutcome, Outcome};
use crate::store::{CallReport, StoreError};

const WRONG: &str = "invalid_request";
/// Largest body, bytes.
const MAX_BODY: usize = 4 * 1024;

/// `POST …/decisions/{id}/outcome`.
pub async fn report(
    State(state): State<AppState>,
    Path(params): Path<HashMap<String, String>>,
    request: Request,
) -> Result<StatusCode, HttpError> {
    let (parts, sent) = request.into_parts();
    let tenant = params.get("tenant").cloned();
    let call = caller::call(&state, &parts.headers, &parts.extensions, tenant).await?;
    if let Some(refusal) = &call.refusal {
        return Err(refusal.error());
    }
    let report = read(&body::object(&parts.headers, sent, MAX_BODY).await?, state.clock.now())?;
    let id = params.get("id").map(String::as_str).unwrap_or_default();
    let unknown = || HttpError::not_found("unknown_decision", "You asked for no decision with this id.");
    let uid = call.snapshot.tenants.get(&call.tenant).map(|t| t.uid.as_str()).ok_or_else(unknown)?;
    let found = state.store.decision(&call.tenant, id).await.map_err(failed)?;
    let found = found.filter(|d| d.record.tenant_uid == uid && d.record.caller.username == call.caller.username);
    let decision = found.ok_or_else(unknown)?;
    if decision.record.outcome != Outcome::Allow {
        let message = "Only a call that was allowed has an outcome.";
        return Err(HttpError { status: StatusCode::CONFLICT, ..HttpError::bad_request("not_allowed_call", message) });
    }
    if state.store.report_call(id, &report).await.map_err(failed)? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let message = "Another outcome was reported for this decision: the first one stays.";
    Err(HttpError { status: StatusCode::CONFLICT, ..HttpError::bad_request("outcome_reported", message) })
}

fn read(body: &Map<String, Value>, time: jiff::Timestamp) -> Result<CallReport, HttpError> {
    let field = |name: &str, what: String| HttpError::field(WRONG, name, what);
    if let Some(name) = body.keys().find(|name| !["outcome", "duration_ms"].contains(&name.as_str())) {
        let name = name.escape_debug().take(64).collect::<String>();
        return Err(HttpError::field(WRONG, name, "is not known: there are outcome, duration_ms"));
    }
    let known = "must be one of `success`, `tool_error`, `failed`, `cancelled`, `not_sent`";
    let outcome = body.get("outcome").ok_or_else(|| field("outcome", "is required".into()))?;
    let outcome: CallOutcome =
        serde_json::from_value(outcome.clone()).map_err(|_| field("outcome", known.to_owned()))?;
    let duration_ms = match body.get("duration_ms") {
        None => None,
        Some(value) => {
            let what =
                || field("duration_ms", format!("must be a whole number of milliseconds, not {}", ijson::kind(value)));
            Some(value.as_u64().filter(|ms| i64::try_from(*ms).is_ok()).ok_or_else(what)?)
        }
    };
    Ok(CallReport { outcome, duration_ms, time })
}

fn failed(error: StoreError) -> HttpError {
    tracing::error!(%error, "an outcome could not be kept");
    HttpError::unavailable("store_unavailable", "The outcome can't be kept now.")
}
