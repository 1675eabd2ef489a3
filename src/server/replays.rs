//! Replays of recorded decisions: asked for, looked after, and read as JSON or as a page. Audience `remit-admin`; verb `create` or `get` on
//! `policyreplays` in the namespace, and `get` on `decisions`: a replay says of what was recorded what a policy of one's choice says of it.
//!
//! Ids are issued here. A run is found by its namespace's UID: whoever names another tenant's hears that there is none.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::admin::{failed, parameters, uid, unknown};
use super::authn::{Audience, Identity};
use super::caller::{authenticate, may, named};
use super::error::HttpError;
use super::{AppState, Server, body};
use crate::replay::{self, Asked, Report};
use crate::store::{MAX_OPEN_RUNS, ReplayRun, StoreError};

const WRONG: &str = "invalid_request";
/// Largest body, bytes.
const MAX_BODY: usize = 256 * 1024;

/// `POST /admin/replay/runs`.
pub async fn begin(State(state): State<AppState>, request: Request) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    // Who may do nothing here must not learn from an error which field would have been wrong.
    let caller = authenticate(&state, &parts.headers, &parts.extensions, Audience::Admin).await?;
    let mut sent = body::object(&parts.headers, sent, MAX_BODY).await?;
    let tenant = match sent.remove("tenant") {
        Some(Value::String(tenant)) => named(tenant)?,
        Some(_) => return Err(HttpError::field(WRONG, "tenant", "must be a text")),
        None => return Err(HttpError::field(WRONG, "tenant", "is required")),
    };
    permitted(&state, &caller.identity, "create", &tenant).await?;
    let asked: Asked = serde_path_to_error::deserialize(Value::Object(sent)).map_err(|error| {
        let field = error.path().to_string();
        HttpError::field(WRONG, if field == "." { "body".to_owned() } else { field }, error.inner())
    })?;
    let uid = known(&state, &tenant)?;
    let (snapshot, now) = (state.snapshot.load_full(), state.clock.now());
    let (past, of) = (state.past.clone(), tenant.clone());
    // A folder is read to find its packages.
    let spec =
        tokio::task::spawn_blocking(move || asked.fixed(&of, &snapshot, now, |selector| past.digest_of(&of, selector)));
    let spec = spec.await.map_err(|_| HttpError::internal())?;
    let spec = spec.map_err(|error| HttpError::field(WRONG, error.field, error.why))?;
    let id = Uuid::now_v7().to_string();
    let run = ReplayRun::queued(id.clone(), &tenant, &uid, format!("http:{id}"), spec, now);
    let added = state.replays.add_run(&run).await.map_err(|error| match error {
        // Issued a moment ago: nobody else's mistake.
        StoreError::Invalid { .. } => HttpError::internal(),
        other => failed(other),
    })?;
    if !added {
        let message = format!("{MAX_OPEN_RUNS} replays of {tenant:?} wait or are under way: wait for one of them.");
        let error = HttpError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_runs", message);
        return Err(HttpError { retry_after: Some(10), ..error });
    }
    tracing::info!(run = id, tenant, by = caller.identity.username, "a replay was asked for");
    let mut response = (StatusCode::ACCEPTED, Json(shown(&run))).into_response();
    if let Ok(place) = HeaderValue::from_str(&place(&run)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// `GET /admin/replay/runs/{id}?tenant=NAME`.
pub async fn one(
    State(state): State<AppState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Json<Value>, HttpError> {
    Ok(Json(shown(&find(&state, &parts, query, &id).await?)))
}

/// `GET /admin/replay/runs/{id}/report?tenant=NAME`: JSON, or a page where HTML is accepted and JSON is not.
pub async fn report(
    State(state): State<AppState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let run = find(&state, &parts, query, &id).await?;
    let Some(text) = run.report else {
        let message = match run.error {
            Some(why) => format!("This replay failed, and has no report: {why}"),
            None => "This replay has not finished yet.".to_owned(),
        };
        return Err(HttpError { status: StatusCode::CONFLICT, ..HttpError::bad_request("no_report", message) });
    };
    let report: Report = serde_json::from_str(&text).map_err(|error| {
        tracing::error!(%error, run = run.id, "a stored report can't be read");
        HttpError::internal()
    })?;
    if !wants_html(&parts.headers) {
        return Ok(Json(report).into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, replay::CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, replay::html(&report)).into_response())
}

/// The run, if the caller may read it and it is of the tenant that is named.
async fn find(state: &Arc<Server>, parts: &Parts, query: Option<String>, id: &str) -> Result<ReplayRun, HttpError> {
    let caller = authenticate(state, &parts.headers, &parts.extensions, Audience::Admin).await?;
    let mut tenant = None;
    for (name, value) in parameters(&query.unwrap_or_default())? {
        match name.as_str() {
            "tenant" => tenant = Some(named(value)?),
            _ => return Err(unknown(&name, "tenant")),
        }
    }
    let tenant = tenant.ok_or_else(|| HttpError::field(WRONG, "tenant", "is required: ?tenant=NAME"))?;
    permitted(state, &caller.identity, "get", &tenant).await?;
    let uid = known(state, &tenant)?;
    let found = state.replays.run(&uid, id).await.map_err(failed)?;
    found.ok_or_else(|| HttpError::not_found("unknown_run", "This tenant has no replay with this id."))
}

/// UID of a tenant that is there: an empty one would find what belongs to nobody.
fn known(state: &Server, tenant: &str) -> Result<String, HttpError> {
    let uid = uid(state, tenant)?;
    if uid.is_empty() && !state.snapshot.load().tenants.contains_key(tenant) {
        return Err(HttpError::not_found("unknown_tenant", format!("Remit knows no tenant {tenant:?}.")));
    }
    Ok(uid)
}

/// Whether the caller has the verb on replays here, and may read what was recorded.
async fn permitted(state: &Server, who: &Identity, verb: &'static str, tenant: &str) -> Result<(), HttpError> {
    for (verb, resource) in [(verb, "policyreplays"), ("get", "decisions")] {
        if !may(state, who, verb, resource, tenant).await? {
            let message =
                format!("{:?} may not `{verb}` `{resource}.remit.dev` in namespace {tenant:?}.", who.username);
            return Err(HttpError::forbidden("not_allowed", message));
        }
    }
    Ok(())
}

/// As long as `text/html` is named, and no `application/json` before it.
fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut kinds = accepted.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kinds.find(|kind| matches!(*kind, "text/html" | "application/json")) == Some("text/html")
}

fn place(run: &ReplayRun) -> String {
    format!("/admin/replay/runs/{}?tenant={}", run.id, run.tenant)
}

fn shown(run: &ReplayRun) -> Value {
    let mut value = json!({
        "id": run.id,
        "tenant": run.tenant,
        "state": run.state,
        "progress": {"done": run.done, "total": run.total},
        "baseline": run.spec.baseline,
        "candidate": run.spec.candidate,
        "platform": run.spec.platform,
        "selection": run.spec.selection,
        "invariants": run.spec.invariants,
        "createdAt": run.created,
        "status": place(run),
    });
    let more = [
        ("startedAt", run.started.map(|t| json!(t))),
        ("finishedAt", run.finished.map(|t| json!(t))),
        ("error", run.error.as_ref().map(|e| json!(e))),
        ("inputFingerprint", run.input_fingerprint.as_ref().map(|f| json!(f))),
        ("resultFingerprint", run.result_fingerprint.as_ref().map(|f| json!(f))),
        (
            "report",
            run.report.as_ref().map(|_| json!(format!("/admin/replay/runs/{}/report?tenant={}", run.id, run.tenant))),
        ),
    ];
    for (name, field) in more {
        if let Some(field) = field {
            value[name] = field;
        }
    }
    value
}

#[cfg(test)]
#[path = "replays_tests.rs"]
mod tests;
