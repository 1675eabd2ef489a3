//! Errors of the HTTP surface: AuthZEN's status codes, a code for programs, a message for people that names the field.
//!
//! Must never carry a token, an argument's value or a policy's text.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::ijson::JsonError;

/// An answer that is no decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct HttpError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code, snake_case.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Path in the body, header or query parameter that is wrong.
    pub field: Option<String>,
    /// Id of the record that was kept of it, if one was.
    pub decision_id: Option<String>,
    /// Seconds after which it makes sense to try again.
    pub retry_after: Option<u32>,
    /// More for programs: the members of this object stand beside the others.
    pub details: Option<Box<Value>>,
}

/// The body as programs read it.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<&'a str>,
    #[serde(flatten)]
    details: Option<&'a Value>,
}

impl HttpError {
    /// An error with its code and message.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None, decision_id: None, retry_after: None, details: None }
    }

    /// 400.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400 for one field; the message starts with its name.
    pub fn field(code: &'static str, field: impl Into<String>, what: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self { message: format!("{field}: {what}"), field: Some(field), ..Self::bad_request(code, "") }
    }

    /// 401.
    pub fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    /// 403.
    pub fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// 404.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 503, worth another try.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    /// 500; what went wrong is in the log, not in the answer.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an internal error; the log says more")
    }

    /// The same error as text, for callers that accept `text/plain` only.
    pub fn into_text_response(self) -> Response {
        let body = self.message.clone();
        let mut response = (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response();
        self.add_headers(&mut response);
        response
    }

    fn add_headers(self, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750, 3: without credentials no error code.
            let value = if self.code == "token_missing" {
                r#"Bearer realm="remit""#
            } else {
                r#"Bearer realm="remit", error="invalid_token""#
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.code,
            message: &self.message,
            field: self.field.as_deref(),
            decision_id: self.decision_id.as_deref(),
            details: self.details.as_deref(),
        };
        let mut response = (self.status, Json(body)).into_response();
        self.add_headers(&mut response);
        response
    }
}

impl From<JsonError> for HttpError {
    fn from(error: JsonError) -> Self {
        if error.field.is_empty() {
            Self::bad_request("invalid_json", error.message)
        } else {
            Self::field("invalid_json", error.field, error.message)
        }
    }
}
