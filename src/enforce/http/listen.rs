//! The endpoint: HTTP requests to messages and back.
//!
//! Thin: who may speak is the guard's, what passes is the relay's. Must never look at a body before its sender is admitted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::connection::{Connection, Out, Shared};
use super::guard::{Barred, Client, Guard};
use super::headers::{Mismatch, Repeated, SESSION, VERSION, params};
use super::sessions::Sessions;
use super::sse;
use super::upstream::{Upstream, media_type};
use crate::enforce::Pdp;
use crate::enforce::mcp::frame::MAX_CLIENT_LINE;
use crate::enforce::mcp::{Action, Id, Kind, Message, Relay, Settings, error_line};
use crate::server::{Metrics, parse_json, tls};

/// Where the endpoint is.
pub const PATH: &str = "/mcp";
/// For a body to arrive.
const BODY: Duration = Duration::from_secs(30);
/// After so long without a word a response becomes a stream, and a stream says that it lives.
const QUIET: Duration = Duration::from_secs(15);
/// To tell servers that their sessions end, and Remit what became of calls.
const FAREWELL: Duration = Duration::from_secs(8);
/// A header says something else than the body (2026-07-28).
const HEADER_MISMATCH: i64 = -32020;
/// JSON-RPC's.
const INVALID_REQUEST: i64 = -32600;

/// A proxy that listens.
pub struct Endpoint {
    guard: Guard,
    sessions: Sessions,
    settings: Settings,
}

/// Serves a bound listener until `stop`, and says good-bye to the server and to Remit, which has `limit` for each answer.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    upstream: Upstream,
    settings: Settings,
    pdp: Arc<dyn Pdp>,
    limit: Duration,
    stop: watch::Receiver<bool>,
) {
    let shared = Shared { upstream: Arc::new(upstream), pdp, limit, settings: settings.clone() };
    let endpoint = Arc::new(Endpoint { guard, sessions: Sessions::new(shared), settings });
    let router = Router::new().route(PATH, any(handle)).with_state(endpoint.clone());
    let limits =
        tls::Limits { connections: 512, per_address: 512, drain: Duration::from_secs(10), ..Default::default() };
    let metrics = Arc::new(Metrics::new(Registry::default()));
    let mut stopped = stop.clone();
    let farewell = async {
        let _ = stopped.wait_for(|stop| *stop).await;
        // Streams end with their sessions, so that nothing has to be drained but answers.
        let _ = tokio::time::timeout(FAREWELL, endpoint.sessions.end()).await;
    };
    tokio::join!(tls::serve(listener, None, router, limits, metrics, stop), farewell);
}

/// Why a request ends before the relay. Its body is a JSON-RPC error where there is something to answer.
struct Refusal {
    status: StatusCode,
    code: i64,
    id: Option<Id>,
    why: String,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, code: INVALID_REQUEST, id: None, why: why.into() }
    }

    fn bad(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }
}

impl From<Barred> for Refusal {
    fn from(barred: Barred) -> Self {
        Self::new(barred.status, barred.why)
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let line = error_line(refusal.id.as_ref(), refusal.code, &refusal.why);
        let mut response = json_response(refusal.status, line);
        let mut also = |name: HeaderName, value: &'static str| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        match refusal.status {
            StatusCode::UNAUTHORIZED => also(WWW_AUTHENTICATE, "Bearer"),
            StatusCode::METHOD_NOT_ALLOWED => also(ALLOW, "GET, POST, DELETE"),
            StatusCode::SERVICE_UNAVAILABLE => also(RETRY_AFTER, "5"),
            _ => {}
        }
        response
    }
}

fn json_response(status: StatusCode, line: Vec<u8>) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, line).into_response()
}

async fn handle(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let client = match endpoint.guard.admit(request.headers()) {
        Ok(client) => client,
        Err(barred) => {
            tracing::warn!(status = barred.status.as_u16(), "refused a request: {}", barred.why);
            return Refusal::from(barred).into();
        }
    };
    let answered = match *request.method() {
        Method::POST => endpoint.post(client, request).await,
        Method::GET => endpoint.get(client, request.headers()).await,
        Method::DELETE => endpoint.delete(client, request.headers()).await,
        _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "POST, GET or DELETE")),
    };
    answered.unwrap_or_else(Into::into)
}

/// A message of the client, read as far as HTTP needs it.
struct Read {
    kind: Kind,
    repeated: Repeated,
    arguments: Option<Map<String, Value>>,
}

impl Endpoint {
    async fn post(&self, client: Client, request: Request) -> Result<Response, Refusal> {
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        if media_type(&headers) != "application/json" {
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: must be application/json"));
        }
        if !accepts(&headers, "application/json") || !accepts(&headers, "text/event-stream") {
            let why = "Accept: must list application/json and text/event-stream";
            return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, why));
        }
        let body = whole(body).await?;
        let line = body.trim_ascii();
        let Read { kind, repeated, arguments } = match self.read(line) {
            Ok(read) => read,
            Err(answer) => return Ok(json_response(StatusCode::BAD_REQUEST, answer)),
        };
        let is_request = matches!(kind, Kind::Request { .. });
        let id = match &kind {
            Kind::Request { id, .. } => Some(id.clone()),
            Kind::Notification { .. } | Kind::Response { .. } => None,
        };
        let mismatch = |Mismatch(why)| Refusal {
            status: StatusCode::BAD_REQUEST,
            code: HEADER_MISMATCH,
            id: id.clone(),
            why: format!("Header mismatch: {why}"),
        };
        repeated.agrees(&headers, is_request).map_err(mismatch)?;
        let mut onward = HeaderMap::new();
        if repeated.version.is_some() && repeated.method.as_deref() == Some("tools/call") {
            onward.extend(params(&headers, arguments.as_ref()).map_err(mismatch)?);
        }
        let now = Instant::now();
        let (connection, id, answers, session) = match kind {
            Kind::Request { id, method } if repeated.version.is_some() => {
                let asked = self.sessions.ask(&id, &method, line, onward).await;
                let (connection, answers) = asked.ok_or_else(|| busy("too many requests under this id"))?;
                return Ok(Reply { connection, id: Some(id), modern: true, session: None, answers }.response().await);
            }
            Kind::Notification { method } if repeated.version.is_some() => {
                // This revision has none that a client may send over HTTP.
                tracing::debug!(method = %method.escape_debug(), "dropped a client's notification");
                return Ok(StatusCode::ACCEPTED.into_response());
            }
            Kind::Request { id, method } if method == "initialize" && !headers.contains_key(SESSION) => {
                let opened = self.sessions.open(client, now);
                let (session, connection) = opened.ok_or_else(|| busy("too many sessions"))?;
                let answers = connection.request(id.clone(), &method, line, onward).await;
                (connection, id, answers, Some(session))
            }
            Kind::Request { id, method } => {
                let connection = self.session(client, &headers, now)?;
                let answers = connection.request(id.clone(), &method, line, onward).await;
                (connection, id, answers, None)
            }
            Kind::Notification { .. } | Kind::Response { .. } => {
                let connection = self.session(client, &headers, now)?;
                return match connection.tell(line).await {
                    Ok(()) => Ok(StatusCode::ACCEPTED.into_response()),
                    Err(_) => Err(Refusal::new(StatusCode::BAD_GATEWAY, "the MCP server did not take the message")),
                };
            }
        };
        let answers = answers.ok_or_else(|| Refusal::bad("id: a request with this id is not answered yet"))?;
        let response =
            Reply { connection, id: Some(id), modern: false, session: session.clone(), answers }.response().await;
        if let Some(session) = session
            && !response.headers().contains_key(SESSION)
        {
            // The handshake failed.
            self.sessions.close(&session, client);
        }
        Ok(response)
    }

    /// Reads a message. The error is the answer to it.
    fn read(&self, line: &[u8]) -> Result<Read, Vec<u8>> {
        let text = std::str::from_utf8(line).ok();
        let message = text.and_then(|text| Message::read(text).ok());
        let members = parse_json(line).ok();
        match (message, members) {
            (Some(message), Some(Value::Object(members))) => {
                let params = members.get("params").and_then(Value::as_object);
                let method = members.get("method").and_then(Value::as_str);
                let arguments = params.and_then(|p| p.get("arguments")).and_then(Value::as_object).cloned();
                Ok(Read { kind: message.kind, repeated: Repeated::of(method, params), arguments })
            }
            // A relay that knows nobody says what is wrong.
            _ => {
                let actions = Relay::new(self.settings.clone()).from_client(line, Instant::now());
                let answer = actions.into_iter().find_map(|action| match action {
                    Action::ToClient { line, .. } => Some(line),
                    _ => None,
                });
                Err(answer.unwrap_or_else(|| error_line(None, INVALID_REQUEST, "refused by Remit: no message")))
            }
        }
    }

    fn session(&self, client: Client, headers: &HeaderMap, now: Instant) -> Result<Arc<Connection>, Refusal> {
        let id =
            headers.get(SESSION).ok_or_else(|| Refusal::bad("Mcp-Session-Id is missing: begin with initialize"))?;
        if headers.get_all(SESSION).iter().count() > 1 {
            return Err(Refusal::bad("Mcp-Session-Id is there twice"));
        }
        let connection = self.sessions.find(id, client, now).ok_or_else(unknown)?;
        let sent = headers.get(VERSION).map(|v| v.to_str().unwrap_or_default());
        match (sent, connection.version()) {
            (Some(sent), Some(agreed)) if sent != agreed => {
                Err(Refusal::bad("MCP-Protocol-Version: not the one that this session agreed on"))
            }
            _ => Ok(connection),
        }
    }

    async fn get(&self, client: Client, headers: &HeaderMap) -> Result<Response, Refusal> {
        if !accepts(headers, "text/event-stream") {
            return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, "Accept: must list text/event-stream"));
        }
        if headers.contains_key("last-event-id") {
            // The proxy's streams have no ids, so nobody has one to go on from.
            return Err(Refusal::bad("Last-Event-ID: this proxy's streams can't be resumed"));
        }
        if !headers.contains_key(SESSION) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET: only in a session"));
        }
        let connection = self.session(client, headers, Instant::now())?;
        match connection.listen().await {
            Ok(Some(answers)) => Ok(Reply { connection, id: None, modern: false, session: None, answers }.stream(None)),
            Ok(None) => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "the MCP server says nothing unasked")),
            Err(None) => Err(Refusal::new(StatusCode::CONFLICT, "somebody listens already")),
            Err(Some(error)) => {
                tracing::warn!(%error, "the MCP server can't be listened to");
                Err(Refusal::new(StatusCode::BAD_GATEWAY, "the MCP server can't be listened to"))
            }
        }
    }

    async fn delete(&self, client: Client, headers: &HeaderMap) -> Result<Response, Refusal> {
        let Some(id) = headers.get(SESSION) else {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "DELETE: only of a session"));
        };
        let connection = self.sessions.close(id, client).ok_or_else(unknown)?;
        connection.end().await;
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "Mcp-Session-Id: no such session")
}

fn busy(why: &str) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// Whether `Accept` lists a type.
fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let (group, _) = wanted.split_once('/').unwrap_or_default();
    headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|range| {
        let range = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        range == wanted || range == "*/*" || range.strip_suffix("/*") == Some(group)
    })
}

async fn whole(body: Body) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY, Limited::new(body, MAX_CLIENT_LINE).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the message is over {MAX_CLIENT_LINE} bytes")))
        }
        Ok(Err(_)) => Err(Refusal::bad("the body ended before its end")),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

/// A response on its way. Dropped before its end, the client has gone.
struct Reply {
    connection: Arc<Connection>,
    id: Option<Id>,
    modern: bool,
    session: Option<HeaderValue>,
    answers: mpsc::Receiver<Out>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        // In the older era closing a response takes nothing back.
        if let (true, Some(id)) = (self.modern, &self.id) {
            self.connection.left(id);
        }
    }
}

impl Reply {
    async fn response(mut self) -> Response {
        match tokio::time::timeout(QUIET, self.answers.recv()).await {
            Ok(Some(Out::Answer { line, status })) => {
                let status = status.filter(|_| self.modern).unwrap_or_else(|| self.status(&line));
                let mut response = json_response(status, line);
                let agreed = self.connection.version().is_some();
                if let Some(session) = self.session.take().filter(|_| agreed) {
                    response.headers_mut().insert(SESSION, session);
                }
                self.id = None;
                response
            }
            Ok(Some(Out::Message(line))) => self.stream(Some(line)),
            // None: the request was taken back, so its response has no answer.
            Err(_) | Ok(None) => self.stream(None),
            Ok(Some(Out::Gone)) => {
                self.id = None;
                unknown().into()
            }
        }
    }

    /// In the newer era an error of the protocol is an error of HTTP, too.
    fn status(&self, line: &[u8]) -> StatusCode {
        let code = || serde_json::from_slice::<Value>(line).ok()?.get("error")?.get("code")?.as_i64();
        match code() {
            Some(-32022..=-32020) if self.modern => StatusCode::BAD_REQUEST,
            Some(-32601) if self.modern => StatusCode::NOT_FOUND,
            _ => StatusCode::OK,
        }
    }

    fn stream(mut self, first: Option<Vec<u8>>) -> Response {
        let session = self.session.take();
        let first = first.map(|line| Bytes::from(sse::write(&line)));
        let rest = futures::stream::unfold(Some((self, first)), |state| async {
            let (mut reply, first) = state?;
            if let Some(first) = first {
                return Some((Ok::<_, std::convert::Infallible>(first), Some((reply, None))));
            }
            match tokio::time::timeout(QUIET, reply.answers.recv()).await {
                Err(_) => Some((Ok(Bytes::from_static(b": \n\n")), Some((reply, None)))),
                Ok(Some(Out::Message(line))) => Some((Ok(Bytes::from(sse::write(&line))), Some((reply, None)))),
                Ok(Some(Out::Answer { line, .. })) => {
                    reply.id = None;
                    Some((Ok(Bytes::from(sse::write(&line))), None))
                }
                Ok(Some(Out::Gone) | None) => {
                    reply.id = None;
                    None
                }
            }
        });
        let buffering = HeaderName::from_static("x-accel-buffering");
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (buffering, "no")];
        let mut response = (headers, Body::from_stream(rest)).into_response();
        if let Some(session) = session {
            response.headers_mut().insert(SESSION, session);
        }
        response
    }
}

/// The address of a listener, for people.
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}{PATH}")
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
