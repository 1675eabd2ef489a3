//! Gate 1: the body, within its limits.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::error::HttpError;
use super::ijson;

/// Largest body, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Largest body of a caller that may not ask: it is read only to say in the record what was refused.
pub const MAX_REFUSED_BODY: usize = 64 * 1024;
/// How long a body may take to arrive.
const TIME: Duration = Duration::from_secs(10);

/// The JSON object that a POST must bring, of at most `limit` bytes.
pub async fn object(headers: &HeaderMap, body: Body, limit: usize) -> Result<Map<String, Value>, HttpError> {
    json_only(headers)?;
    Ok(ijson::parse_object(&bytes(headers, body, limit).await?)?)
}

/// The JSON object that a POST may bring; an empty body stands for an empty object.
pub async fn optional_object(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, HttpError> {
    let bytes = bytes(headers, body, MAX_BODY).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    json_only(headers)?;
    Ok(ijson::parse_object(&bytes)?)
}

fn json_only(headers: &HeaderMap) -> Result<(), HttpError> {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = sent.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let mut error = HttpError::field("unsupported_media_type", "Content-Type", "must be application/json");
    error.status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(error)
}

async fn bytes(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, HttpError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit as u64) {
        return Err(too_large(limit));
    }
    match tokio::time::timeout(TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(_)) => Err(HttpError::bad_request("body_unreadable", "The body ended before its end.")),
        Err(_) => Err(HttpError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The body did not arrive in time.")),
    }
}

fn too_large(limit: usize) -> HttpError {
    let message = format!("The body is larger than {limit} bytes.");
    HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}
