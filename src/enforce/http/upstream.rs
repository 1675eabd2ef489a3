//! The MCP server behind a URL (streamable HTTP), as its client.
//!
//! Credentials go to this server only: nothing of the agent's request is passed on but the message and what repeats it, and no
//! redirect is followed. Plain HTTP only to this machine, unless the user says otherwise.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::headers::{SESSION, VERSION};
use super::sse::{Event, Reader, SseError};
use crate::enforce::mcp::frame::MAX_SERVER_LINE;

/// To reach the server.
const CONNECT: Duration = Duration::from_secs(10);
/// For a response to begin, and for one that is no stream to end: a tool may work before it answers.
const ANSWER: Duration = Duration::from_secs(600);
/// For what no tool has to work for.
const PROMPT: Duration = Duration::from_secs(30);
/// The largest file of headers or a token.
const MAX_FILE: u64 = 64 * 1024;
/// Headers that are Remit's own business.
const RESERVED: &[&str] = &[
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "last-event-id",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where the server is and what it is told.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct UpstreamArgs {
    /// PEM file of the CA that signed the MCP server's certificate; this system's CAs, if not set
    #[arg(long, value_name = "FILE", help_heading = "MCP server over HTTP")]
    pub upstream_ca_file: Option<PathBuf>,
    /// File of the bearer token for the MCP server; read again for each request, so that it may rotate
    #[arg(long, value_name = "FILE", help_heading = "MCP server over HTTP")]
    pub upstream_token_file: Option<PathBuf>,
    /// File of further headers for the MCP server, one `Name: value` a line
    #[arg(long, value_name = "FILE", help_heading = "MCP server over HTTP")]
    pub upstream_header_file: Option<PathBuf>,
    /// Speak plain HTTP with a server that is not on this machine: anybody on the way can read and change everything
    #[arg(long, help_heading = "MCP server over HTTP")]
    pub allow_plain_upstream: bool,
}

/// What keeps a server from being asked, or from answering.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address.
    #[error("the MCP server's address {url:?}: {why}")]
    Address {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file of credentials or CAs.
    #[error("{flag} {path}: {why}", path = path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// TLS settings.
    #[error("TLS: {0}")]
    Tls(String),
    /// No connection, or it broke.
    #[error("the MCP server can't be reached: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("the MCP server gave no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// A stream that can't be read.
    #[error("the MCP server's answer can't be read: {0}")]
    Stream(#[from] SseError),
    /// An answer that is none.
    #[error("the MCP server's answer can't be read: {0}")]
    Answer(String),
}

/// How one message goes to the server.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// The server's own session id.
    pub session: Option<HeaderValue>,
    /// The revision that was agreed on in the older era.
    pub version: Option<String>,
    /// Further headers that belong to this message.
    pub headers: HeaderMap,
}

/// What the server answered to a message.
#[derive(Debug)]
pub enum Reply {
    /// Taken; nothing is to be answered.
    Accepted,
    /// One message.
    Message(Bytes),
    /// A stream of messages.
    Stream(Box<Stream>),
    /// No success, and what it said.
    Refused(StatusCode, Bytes),
}

/// A reply and the session that the server gave with it.
#[derive(Debug)]
pub struct Answered {
    /// The reply.
    pub reply: Reply,
    /// `Mcp-Session-Id`.
    pub session: Option<HeaderValue>,
}

/// One MCP server behind a URL.
pub struct Upstream {
    uri: Uri,
    headers: HeaderMap,
    token_file: Option<PathBuf>,
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Upstream {
    /// Reads the address and the files.
    pub fn new(url: &str, args: &UpstreamArgs) -> Result<Self, UpstreamError> {
        let uri = address(url, args.allow_plain_upstream)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        connector.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(args.upstream_ca_file.as_deref(), uri.scheme_str() == Some("https"))?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let headers = match &args.upstream_header_file {
            Some(path) => header_file(path)?,
            None => HeaderMap::new(),
        };
        if args.upstream_token_file.is_some() && headers.contains_key(AUTHORIZATION) {
            let path = args.upstream_header_file.clone().unwrap_or_default();
            let why = "has Authorization, and --upstream-token-file is given, too".into();
            return Err(UpstreamError::File { flag: "--upstream-header-file", path, why });
        }
        let upstream = Self {
            uri,
            headers,
            token_file: args.upstream_token_file.clone(),
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https),
        };
        // A file that can't be read is said at the start.
        upstream.token()?;
        Ok(upstream)
    }

    /// Host of the address, for names.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    fn token(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        self.token_file.as_deref().map(|path| bearer("--upstream-token-file", path)).transpose()
    }

    /// Sends one message.
    pub async fn post(&self, message: Vec<u8>, route: &Route) -> Result<Answered, UpstreamError> {
        let mut request = self.request(Method::POST, route, "application/json, text/event-stream")?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.body_mut() = Full::new(Bytes::from(message));
        let response = self.send(request, ANSWER).await?;
        let session = response.headers().get(SESSION).cloned();
        let reply = match (response.status(), media_type(response.headers()).as_str()) {
            (status, _) if !status.is_success() => Reply::Refused(status, whole(response).await?),
            (_, "text/event-stream") => Reply::Stream(Box::new(Stream::new(response.into_body()))),
            (_, "application/json") => Reply::Message(whole(response).await?),
            (StatusCode::ACCEPTED | StatusCode::NO_CONTENT, _) => Reply::Accepted,
            (_, other) => {
                // A notification may be answered with 200 and nothing.
                let other = other.escape_debug().take(64).collect::<String>();
                match whole(response).await? {
                    body if body.is_empty() => Reply::Accepted,
                    _ => return Err(UpstreamError::Answer(format!("its type is {other:?}"))),
                }
            }
        };
        Ok(Answered { reply, session })
    }

    /// Listens to what the server says unasked, or reads on after an event. None: it does not offer that.
    pub async fn listen(&self, route: &Route, after: Option<&str>) -> Result<Option<Stream>, UpstreamError> {
        let mut request = self.request(Method::GET, route, "text/event-stream")?;
        if let Some(id) = after {
            let id =
                HeaderValue::from_str(id).map_err(|_| UpstreamError::Answer("an event's id is no header".into()))?;
            request.headers_mut().insert("last-event-id", id);
        }
        let response = self.send(request, ANSWER).await?;
        match (response.status(), media_type(response.headers()).as_str()) {
            (StatusCode::METHOD_NOT_ALLOWED, _) => Ok(None),
            (status, "text/event-stream") if status.is_success() => Ok(Some(Stream::new(response.into_body()))),
            (status, _) => Err(UpstreamError::Answer(format!("it answered {} to GET", status.as_u16()))),
        }
    }

    /// Ends a session. A server that does not offer that is left alone.
    pub async fn delete(&self, route: &Route) -> Result<(), UpstreamError> {
        let request = self.request(Method::DELETE, route, "application/json")?;
        self.send(request, PROMPT).await.map(|_| ())
    }

    fn request(
        &self,
        method: Method,
        route: &Route,
        accept: &'static str,
    ) -> Result<Request<Full<Bytes>>, UpstreamError> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("remit/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = self.token()? {
            headers.insert(AUTHORIZATION, token);
        }
        if let Some(session) = &route.session {
            headers.insert(SESSION, session.clone());
        }
        if let Some(version) = &route.version {
            let version = HeaderValue::from_str(version);
            headers.insert(VERSION, version.map_err(|_| UpstreamError::Answer("its revision is no header".into()))?);
        }
        for (name, value) in &route.headers {
            headers.insert(name.clone(), value.clone());
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>, within: Duration) -> Result<Response<Incoming>, UpstreamError> {
        match tokio::time::timeout(within, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(UpstreamError::Connection(causes(&error))),
            Err(_) => Err(UpstreamError::Timeout(within)),
        }
    }
}

/// Messages as they come.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    reader: Reader,
    ready: std::collections::VecDeque<Event>,
}

impl Stream {
    fn new(body: Incoming) -> Self {
        Self { body, reader: Reader::new(MAX_SERVER_LINE), ready: Default::default() }
    }

    /// The next message. None at the end.
    pub async fn next(&mut self) -> Result<Option<String>, UpstreamError> {
        loop {
            while let Some(event) = self.ready.pop_front() {
                if event.is_message() {
                    return Ok(Some(event.data));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(UpstreamError::Connection(causes(&error))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.ready.extend(self.reader.push(&bytes)?);
                    }
                }
            }
        }
    }

    /// Where to read on, if the server lets one, and how long to wait before that.
    pub fn resumable(&self) -> Option<(String, Duration)> {
        let wait = Duration::from_millis(self.reader.retry.unwrap_or(1000).min(30_000));
        self.reader.last_id.clone().filter(|id| !id.is_empty()).map(|id| (id, wait))
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, UpstreamError> {
    let body = Limited::new(response.into_body(), MAX_SERVER_LINE).collect();
    match tokio::time::timeout(ANSWER, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(UpstreamError::Answer(error.to_string())),
        Err(_) => Err(UpstreamError::Timeout(ANSWER)),
    }
}

/// The type without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn address(url: &str, plain: bool) -> Result<Uri, UpstreamError> {
    let wrong = |why| UpstreamError::Address { url: url.escape_debug().take(200).collect(), why };
    let uri: Uri = url.parse().map_err(|_| wrong("not a URL such as https://mcp.example/mcp"))?;
    let host =
        uri.host().filter(|h| !h.is_empty()).ok_or_else(|| wrong("not a URL such as https://mcp.example/mcp"))?;
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(wrong("credentials don't belong into it: use --upstream-token-file"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if plain || is_loopback(host) => Ok(uri),
        Some("http") => Err(wrong("plain HTTP only to this machine (or say --allow-plain-upstream)")),
        _ => Err(wrong("must begin with https://")),
    }
}

/// Whether a host is this machine, whatever DNS says.
pub(super) fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn tls(ca: Option<&Path>, https: bool) -> Result<rustls::ClientConfig, UpstreamError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |e: rustls::Error| UpstreamError::Tls(e.to_string());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(wrong)?;
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        Some(path) => {
            let wrong = |why: String| UpstreamError::File { flag: "--upstream-ca-file", path: path.to_owned(), why };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
                let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
                roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("no certificate in it".into()));
            }
        }
        None if https => {
            let builder = builder.with_native_roots();
            let builder = builder.map_err(|e| UpstreamError::Tls(format!("this system's CAs: {e}")))?;
            return Ok(builder.with_no_client_auth());
        }
        // Nobody is asked over TLS, so a system without CAs is no error.
        None => {}
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn small_file(flag: &'static str, path: &Path) -> Result<String, UpstreamError> {
    use std::io::Read as _;
    let wrong = |why: String| UpstreamError::File { flag, path: path.to_owned(), why };
    let file = std::fs::File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 > MAX_FILE { Err(wrong(format!("over {MAX_FILE} bytes"))) } else { Ok(text) }
}

/// `Bearer` and the token of a file.
pub(super) fn bearer(flag: &'static str, path: &Path) -> Result<HeaderValue, UpstreamError> {
    let text = small_file(flag, path)?;
    let token = text.trim();
    let wrong = |why: &str| UpstreamError::File { flag, path: path.to_owned(), why: why.to_owned() };
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("no token in it"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong("not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn header_file(path: &Path) -> Result<HeaderMap, UpstreamError> {
    let flag = "--upstream-header-file";
    let mut headers = HeaderMap::new();
    for (i, line) in small_file(flag, path)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong =
            |why: &str| UpstreamError::File { flag, path: path.to_owned(), why: format!("line {}: {why}", i + 1) };
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("must be `Name: value`"))?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| wrong("no name of a header"))?;
        if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("mcp-") {
            return Err(wrong("this header is Remit's own"));
        }
        let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong("no value of a header"))?;
        value.set_sensitive(true);
        if headers.insert(name, value).is_some() {
            return Err(wrong("this header is there already"));
        }
    }
    Ok(headers)
}

/// An error with its causes: the outermost says nothing.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.escape_debug().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for good in [
            "https://mcp.example/mcp",
            "http://127.0.0.1:1/mcp",
            "http://[::1]:1/",
            "http://localhost/mcp",
            "http://127.9.9.9/",
        ] {
            assert!(address(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://mcp.example/mcp",
            "http://10.0.0.1/mcp",
            "http://localhost.evil.example/",
            "ftp://127.0.0.1/",
            "mcp.example",
            "https://u:p@mcp.example/",
            "",
        ] {
            assert!(address(bad, false).is_err(), "{bad}");
        }
        assert!(address("http://10.0.0.1/mcp", true).is_ok());
        let secret = address("https://user:pass@mcp.example/", false).unwrap_err().to_string();
        assert!(secret.contains("--upstream-token-file"), "{secret}");
    }

    #[test]
    fn headers_come_from_a_file_and_are_not_shown() {
        let good = file("# ours\nX-Api-Key: k3y\n\nAuthorization: Basic abc\n");
        let headers = header_file(good.path()).unwrap();
        assert_eq!(headers["x-api-key"], "k3y");
        assert!(!format!("{headers:?}").contains("k3y"));
        for bad in ["Host: x", "Mcp-Session-Id: x", "x", "a b: c", "X: 1\nx: 2", "content-length: 1"] {
            assert!(header_file(file(bad).path()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_one_word() {
        assert_eq!(bearer("--t", file("t0ken\n").path()).unwrap(), "Bearer t0ken");
        for bad in ["", "\n", "a b", "a\nb", "\u{e9}"] {
            assert!(bearer("--t", file(bad).path()).is_err(), "{bad:?}");
        }
        let args = UpstreamArgs { upstream_token_file: Some("/nowhere".into()), ..Default::default() };
        assert!(Upstream::new("http://127.0.0.1:1/", &args).is_err(), "said at the start");
    }
}
