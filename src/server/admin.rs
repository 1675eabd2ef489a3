//! What humans read: decisions of a tenant, and the audit chain. Audience `remit-admin`, verb `get` on `decisions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::json;

use super::authn::{Audience, Identity};
use super::caller::{authenticate, may, named};
use super::error::HttpError;
use super::{AppState, Server};
use crate::store::{DecisionFilter, StoreError};

const WRONG: &str = "invalid_filter";
/// Most decisions of one page.
const MAX_PAGE: u32 = 1000;
/// Rows of the chain in one answer, if not said otherwise, and at most.
const AUDIT_ROWS: (u32, u32) = (1000, 10_000);

/// `GET /admin/tenants/{tenant}/decisions`.
pub async fn list(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let tenant = named(tenant)?;
    let filter = filter(&query.unwrap_or_default())?;
    authorized(&state, &parts, &tenant).await?;
    let filter = DecisionFilter { tenant_uid: Some(uid(&state, &tenant)?), ..filter };
    let page = state.store.decisions(&tenant, &filter).await.map_err(failed)?;
    Ok(Json(page).into_response())
}

/// `GET /admin/tenants/{tenant}/decisions/{id}`.
pub async fn one(
    State(state): State<AppState>,
    Path((tenant, id)): Path<(String, String)>,
    parts: Parts,
) -> Result<Response, HttpError> {
    let tenant = named(tenant)?;
    authorized(&state, &parts, &tenant).await?;
    let uid = uid(&state, &tenant)?;
    match state.store.decision(&tenant, &id).await.map_err(failed)? {
        Some(decision) if decision.record.tenant_uid == uid => Ok(Json(decision).into_response()),
        _ => Err(HttpError::not_found("unknown_decision", "This tenant has no decision with this id.")),
    }
}

/// `GET /admin/audit/records?after=SEQ&limit=N`: rows of the chain, one JSON object a line.
pub async fn audit_records(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let (mut after, mut limit, mut writer) = (0, AUDIT_ROWS.0, None);
    for (name, value) in parameters(&query.unwrap_or_default())? {
        match name.as_str() {
            "after" => {
                after = value.parse().map_err(|_| HttpError::field(WRONG, "after", "must be a sequence number"))?
            }
            "limit" => limit = number("limit", &value, AUDIT_ROWS.1)?,
            "writer" => writer = Some(value),
            _ => return Err(unknown(&name, "after, limit, writer")),
        }
    }
    authorized(&state, &parts, &state.settings.operator_namespace).await?;
    let writer = writer.unwrap_or_else(|| state.store.audit_writer());
    let rows = state.store.audit_rows(&writer, after, limit).await.map_err(failed)?;
    let mut lines = Vec::new();
    for row in &rows {
        serde_json::to_writer(&mut lines, row).map_err(|_| HttpError::internal())?;
        lines.push(b'\n');
    }
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/x-ndjson")], Body::from(lines)).into_response())
}

/// `GET /admin/audit/writers`: this replica's writer, and the manifest of all.
pub async fn audit_writers(State(state): State<AppState>, parts: Parts) -> Result<Response, HttpError> {
    authorized(&state, &parts, &state.settings.operator_namespace).await?;
    let writers = state.store.audit_writers().await.map_err(failed)?;
    Ok(Json(json!({"writer": state.store.audit_writer(), "writers": writers})).into_response())
}

/// `GET /admin/audit/anchors?writer=ID`: the writer, and its signed anchors, oldest first.
pub async fn audit_anchors(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let writer = writer(&state, query)?;
    authorized(&state, &parts, &state.settings.operator_namespace).await?;
    let anchors = state.store.audit_anchors(&writer).await.map_err(failed)?;
    Ok(Json(json!({"writer": writer, "anchors": anchors})).into_response())
}

/// `GET /admin/audit/tombstones?writer=ID`: what retention has taken, signed, oldest first.
pub async fn audit_tombstones(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let writer = writer(&state, query)?;
    authorized(&state, &parts, &state.settings.operator_namespace).await?;
    let tombstones = state.store.audit_tombstones(&writer).await.map_err(failed)?;
    Ok(Json(json!({"writer": writer, "tombstones": tombstones})).into_response())
}

/// Whose chain is asked for; this replica's if nothing is said.
fn writer(state: &Server, query: Option<String>) -> Result<String, HttpError> {
    let mut writer = None;
    for (name, value) in parameters(&query.unwrap_or_default())? {
        match name.as_str() {
            "writer" => writer = Some(value),
            _ => return Err(unknown(&name, "writer")),
        }
    }
    Ok(writer.unwrap_or_else(|| state.store.audit_writer()))
}

/// UID of the namespace as it is now: a re-created one does not see its predecessor's decisions. Empty where Remit knows
/// no such tenant, as in the records of callers from there. Staleness does not matter here: nothing is decided.
pub(super) fn uid(state: &Server, tenant: &str) -> Result<String, HttpError> {
    if state.freshness.age(state.clock.instant()).is_none() {
        return Err(HttpError::unavailable("not_synced", "Remit has not read its objects yet."));
    }
    Ok(state.snapshot.load().tenants.get(tenant).map(|t| t.uid.clone()).unwrap_or_default())
}

/// Who reads decisions there, if they may.
pub(super) async fn authorized(state: &Server, parts: &Parts, namespace: &str) -> Result<Arc<Identity>, HttpError> {
    let caller = authenticate(state, &parts.headers, &parts.extensions, Audience::Admin).await?;
    if may(state, &caller.identity, "get", "decisions", namespace).await? {
        return Ok(caller.identity);
    }
    let message =
        format!("{:?} may not `get` `decisions.remit.dev` in namespace {namespace:?}.", caller.identity.username);
    Err(HttpError::forbidden("not_allowed", message))
}

pub(super) fn failed(error: StoreError) -> HttpError {
    match error {
        StoreError::Invalid { field, why } => HttpError::field(WRONG, field, why),
        other => {
            tracing::error!(error = %other, "the store could not be read");
            HttpError::unavailable("store_unavailable", "The store can't be read now.")
        }
    }
}

fn filter(query: &str) -> Result<DecisionFilter, HttpError> {
    let mut filter = DecisionFilter::default();
    for (name, value) in parameters(query)? {
        match name.as_str() {
            "agent" => filter.agent = Some(value),
            "delegator" => filter.delegator = Some(value),
            "session" => filter.session = Some(value),
            "action" => filter.action = Some(value),
            "outcome" if matches!(value.as_str(), "allow" | "deny" | "approval_required" | "refused") => {
                filter.outcome = Some(value);
            }
            "outcome" => {
                return Err(HttpError::field(WRONG, "outcome", "must be allow, deny, approval_required or refused"));
            }
            "would_be" if matches!(value.as_str(), "deny" | "approval_required") => filter.would_be = Some(value),
            "would_be" => return Err(HttpError::field(WRONG, "would_be", "must be deny or approval_required")),
            "since" => filter.since = Some(time("since", &value)?),
            "until" => filter.until = Some(time("until", &value)?),
            "limit" => filter.limit = Some(number("limit", &value, MAX_PAGE)?),
            "page" => filter.page = Some(value),
            _ => {
                return Err(unknown(
                    &name,
                    "agent, delegator, session, action, outcome, would_be, since, until, limit, page",
                ));
            }
        }
    }
    match (filter.since, filter.until) {
        (Some(since), Some(until)) if since >= until => {
            Err(HttpError::field(WRONG, "until", "must be later than since"))
        }
        _ => Ok(filter),
    }
}

pub(super) fn unknown(name: &str, known: &str) -> HttpError {
    let name = name.escape_debug().take(64).collect::<String>();
    HttpError::field(WRONG, name, format!("is no filter: there are {known}"))
}

fn time(name: &'static str, value: &str) -> Result<Timestamp, HttpError> {
    value.parse().map_err(|_| HttpError::field(WRONG, name, "must be a time such as 2026-01-31T12:00:00Z"))
}

pub(super) fn number(name: &'static str, value: &str, max: u32) -> Result<u32, HttpError> {
    let number = value.parse().ok().filter(|n| (1..=max).contains(n));
    number.ok_or_else(|| HttpError::field(WRONG, name, format!("must be a number from 1 to {max}")))
}

/// Query parameters, decoded; each at most once and never empty, so that a filter can't silently mean something else.
pub(super) fn parameters(query: &str) -> Result<Vec<(String, String)>, HttpError> {
    let mut out: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(value)) = (decode(name), decode(value)) else {
            return Err(HttpError::bad_request(WRONG, "The query is not percent-encoded UTF-8."));
        };
        if value.is_empty() {
            return Err(HttpError::field(WRONG, name.escape_debug().take(64).collect::<String>(), "must not be empty"));
        }
        if out.iter().any(|(there, _)| *there == name) {
            return Err(HttpError::field(WRONG, name.escape_debug().take(64).collect::<String>(), "occurs twice"));
        }
        out.push((name, value));
    }
    Ok(out)
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_decoded() {
        let f = filter("agent=coder&delegator=alice%40acme&outcome=deny&since=2026-01-01T00:00:00Z&until=2026-01-02T00%3A00%3A00%2B01%3A00&limit=1000").unwrap();
        assert_eq!(
            (f.agent.as_deref(), f.delegator.as_deref(), f.outcome.as_deref()),
            (Some("coder"), Some("alice@acme"), Some("deny"))
        );
        assert_eq!((f.since.unwrap().to_string().as_str(), f.limit), ("2026-01-01T00:00:00Z", Some(1000)));
        assert_eq!(f.until.unwrap().to_string(), "2026-01-01T23:00:00Z");
    }

    #[test]
    fn a_bad_filter_is_named() {
        for (query, field) in [
            ("agnet=coder", "agnet"),
            ("outcome=maybe", "outcome"),
            ("would_be=allow", "would_be"),
            ("since=yesterday", "since"),
            ("until=", "until"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("agent=a&agent=b", "agent"),
            ("since=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00Z", "until"),
        ] {
            let error = filter(query).unwrap_err();
            assert_eq!((error.status, error.field.as_deref()), (StatusCode::BAD_REQUEST, Some(field)), "{query}");
        }
        assert!(filter("agent=%ff").is_err());
        assert!(filter("agent=%4").is_err());
    }
}
