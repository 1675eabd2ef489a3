//! `X-Request-ID`: echoed as the specification wants it, in Remit's alphabet.
//!
//! An id that can't be echoed safely is refused rather than dropped: a caller that sends one relies on it.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::error::HttpError;

const NAME: &str = "x-request-id";
const MAX: usize = 128;

/// The caller's id of a request.
#[derive(Clone, Debug)]
pub struct RequestId(pub HeaderValue);

impl RequestId {
    /// As text: the alphabet was checked.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Wraps every route: echoes the id, counts refusals, and gives errors as text to whom asks for text only.
pub async fn echo(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let wants_text = wants_text(&request);
    let id = match read(&request) {
        Ok(id) => id,
        Err(error) => return finish(&state, error.into_response(), None, wants_text),
    };
    if let Some(id) = &id {
        request.extensions_mut().insert(RequestId(id.clone()));
    }
    let response = next.run(request).await;
    finish(&state, response, id, wants_text)
}

fn read(request: &Request) -> Result<Option<HeaderValue>, HttpError> {
    let mut values = request.headers().get_all(NAME).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return Ok(None) };
    let bytes = value.as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if second.is_some() || bytes.is_empty() || bytes.len() > MAX || !bytes.iter().all(plain) {
        let what = "must be one value of 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_` and `-`";
        return Err(HttpError::field("invalid_request_id", "X-Request-ID", what));
    }
    Ok(Some(value.clone()))
}

fn wants_text(request: &Request) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.contains("text/plain") && !accept.contains("application/json")
}

fn finish(state: &AppState, mut response: Response, id: Option<HeaderValue>, wants_text: bool) -> Response {
    if let Some(error) = response.extensions_mut().remove::<HttpError>() {
        state.metrics.request_refused(error.code);
        if wants_text {
            response = error.into_text_response();
        }
    } else if response.status() == StatusCode::INTERNAL_SERVER_ERROR {
        state.metrics.request_refused("internal");
    }
    if let Some(id) = id {
        response.headers_mut().insert(NAME, id);
    }
    response
}
