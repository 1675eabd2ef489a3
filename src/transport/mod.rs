//! How a request reaches a Remit: over HTTPS, over plain HTTP to this machine, through a Unix socket, or by a call in this process.
//!
//! Must never send a token over plain HTTP to another machine, never follow a redirect with it, and never read without a bound.

mod https;
mod unix;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, Response, Uri};
use tower::ServiceExt;

pub use https::{Https, tls};
pub use unix::{UnixSocket, reachable};

/// Future of a request, boxed so that the trait stays object safe.
pub type SendFuture<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, SendError>> + Send + 'a>>;

/// What bounds one request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time for the whole of it.
    pub within: Duration,
    /// Largest answer that is read, bytes.
    pub answer: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection, or it broke before the answer was whole.
    #[error("{0}")]
    Unreachable(String),
    /// No whole answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// More than is read.
    #[error("the answer is over {0} bytes")]
    TooLarge(usize),
}

/// Why an address or the settings for it can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address.
    #[error("{url}: {why}")]
    Address {
        /// As it was given.
        url: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The CA.
    #[error("{path}: {why}")]
    Ca {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Carries a request, whose URI is a path, to a Remit.
pub trait Transport: Send + Sync {
    /// One request and its whole answer, whatever its status.
    fn send(&self, request: Request<Bytes>, bounds: Bounds) -> SendFuture<'_>;
}

/// Calls a router of this process.
pub struct InProcess(pub Router);

impl Transport for InProcess {
    fn send(&self, request: Request<Bytes>, bounds: Bounds) -> SendFuture<'_> {
        let answer = self.0.clone().oneshot(request.map(Body::from));
        Box::pin(bounded(bounds, async move {
            let answer = answer.await.unwrap_or_else(|never| match never {});
            whole(answer, bounds.answer).await
        }))
    }
}

/// Runs a request within its time.
async fn bounded(
    bounds: Bounds,
    request: impl Future<Output = Result<Response<Bytes>, SendError>>,
) -> Result<Response<Bytes>, SendError> {
    tokio::time::timeout(bounds.within, request).await.unwrap_or(Err(SendError::Timeout(bounds.within)))
}

/// Reads the whole answer.
async fn whole<B>(answer: Response<B>, limit: usize) -> Result<Response<Bytes>, SendError>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = answer.into_parts();
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(Response::from_parts(parts, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(SendError::TooLarge(limit)),
        Err(error) => Err(SendError::Unreachable(format!("the answer ended early: {error}"))),
    }
}

/// The request as a client connection sends it: the path at this base address.
fn at(request: Request<Bytes>, base: &str) -> Result<Request<http_body_util::Full<Bytes>>, SendError> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    parts.uri = format!("{base}{path}")
        .parse::<Uri>()
        .map_err(|e| SendError::Unreachable(format!("{base}: not an address: {e}")))?;
    Ok(Request::from_parts(parts, http_body_util::Full::new(body)))
}

/// Percent-encodes all but RFC 3986's unreserved characters: fits a path segment and a query's value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What failed, from the outermost cause that says it: refused, unknown issuer, …
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut why = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !why.contains(&text) {
            why = if why.is_empty() { text } else { format!("{why}: {text}") };
        }
        cause = error.source();
    }
    if why.is_empty() { error.to_string() } else { why }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    const BOUNDS: Bounds = Bounds { within: Duration::from_secs(10), answer: 8 };

    #[test]
    fn values_are_encoded_whole() {
        assert_eq!(encode("a b&c=ü/~"), "a%20b%26c%3D%C3%BC%2F~");
    }

    #[tokio::test]
    async fn a_router_of_this_process_answers_within_its_bounds() {
        let slow = async || tokio::time::sleep(Duration::from_secs(60)).await;
        let router = Router::new()
            .route("/a", get(async || "12345678"))
            .route("/b", get(async || "123456789"))
            .route("/slow", get(slow));
        let ask = async |path: &str, bounds| {
            let request = Request::get(path).body(Bytes::new()).unwrap();
            InProcess(router.clone()).send(request, bounds).await
        };
        assert_eq!(ask("/a", BOUNDS).await.unwrap().into_body(), "12345678");
        assert_eq!(ask("/b", BOUNDS).await.unwrap_err(), SendError::TooLarge(8));
        let short = Bounds { within: Duration::from_millis(1), ..BOUNDS };
        assert_eq!(ask("/slow", short).await.unwrap_err(), SendError::Timeout(short.within));
    }
}
