//! AuthZEN's metadata, for the whole and for each tenant, and the OpenAPI document. Public: they say nothing about anybody.

use axum::Json;
use axum::extract::Path;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::caller::named;
use super::error::HttpError;
use super::openapi as document;

/// `GET /.well-known/authzen-configuration`.
pub async fn plain(headers: HeaderMap) -> Result<Response, HttpError> {
    metadata(&base(&headers)?)
}

/// `GET /.well-known/authzen-configuration/tenants/{tenant}`. Answers for every name: whether a tenant exists is not public.
pub async fn tenant(Path(tenant): Path<String>, headers: HeaderMap) -> Result<Response, HttpError> {
    let tenant = named(tenant)?;
    metadata(&format!("{}/tenants/{tenant}", base(&headers)?))
}

/// `GET /openapi.json`.
pub async fn openapi() -> Response {
    Json(document::document()).into_response()
}

fn metadata(pdp: &str) -> Result<Response, HttpError> {
    let metadata = json!({
        "policy_decision_point": pdp,
        "access_evaluation_endpoint": format!("{pdp}/access/v1/evaluation"),
        "access_evaluations_endpoint": format!("{pdp}/access/v1/evaluations"),
        "search_subject_endpoint": format!("{pdp}/access/v1/search/subject"),
        "search_resource_endpoint": format!("{pdp}/access/v1/search/resource"),
        "search_action_endpoint": format!("{pdp}/access/v1/search/action"),
    });
    // Private: it names the host that this client used.
    Ok(([(header::CACHE_CONTROL, "private, max-age=300")], Json(metadata)).into_response())
}

/// `https://HOST`: the identifier must be the one that the client has used, or it must refuse the metadata.
fn base(headers: &HeaderMap) -> Result<String, HttpError> {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
        return Err(HttpError::field("invalid_request", "Host", "must be a host, with or without port"));
    }
    Ok(format!("https://{host}"))
}
