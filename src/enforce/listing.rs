//! The tools of an MCP server, as its client: for `remit tools import`.
//!
//! Asks for the list and nothing else. Offers the server nothing, so it has nothing to ask for. Reads with the proxy's own strictness,
//! because the digests must be the ones that the proxy will compute.

use std::ffi::OsString;
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};

use super::http::{Repeated, Reply, Route, Upstream, UpstreamError};
use super::mcp::child::Server;
use super::mcp::frame::{Frame, Lines, MAX_SERVER_LINE, text};
use super::mcp::methods::{LEGACY, META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN};
use super::mcp::{Id, Kind, Message, Page, error_line};

/// Pages of one list.
const MAX_PAGES: usize = 1000;
/// Tools of one server.
const MAX_TOOLS: usize = 10_000;
/// JSON-RPC's.
const METHOD_NOT_FOUND: i64 = -32601;

/// Where the server is.
pub enum Target {
    /// A command that speaks MCP on its standard streams.
    Command(Vec<OsString>),
    /// Streamable HTTP.
    Url(Box<Upstream>),
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The command.
    #[error("{program}: can't be started: {why}")]
    Start {
        /// Its first word.
        program: String,
        /// The system's words.
        why: std::io::Error,
    },
    /// It has gone.
    #[error("the MCP server ended before it had listed its tools (what it said stands above)")]
    Ended,
    /// Too slow.
    #[error("the MCP server did not list its tools within {} s (--timeout)", .0.as_secs())]
    Timeout(Duration),
    /// Over HTTP.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It says no.
    #[error("the MCP server answered {method} with an error: {message}")]
    Refused {
        /// What was asked.
        method: String,
        /// Its words, escaped.
        message: String,
    },
    /// It says what can't be read.
    #[error("the MCP server's answer to {method} can't be read: {why}")]
    Unreadable {
        /// What was asked.
        method: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What a server lists.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Definitions as they were sent, with their digests.
    pub tools: Vec<(Map<String, Value>, String)>,
    /// Why others were left out: the proxy leaves them out, too.
    pub left_out: Vec<String>,
}

/// Asks a server for all of its tools.
pub async fn list(target: Target, within: Duration) -> Result<Listing, ListingError> {
    let asked = async {
        match target {
            Target::Command(command) => {
                let (mut server, stdin, stdout) = Server::start(&command).map_err(|why| {
                    let program = command.first().map(|p| p.display().to_string()).unwrap_or_default();
                    ListingError::Start { program, why }
                })?;
                let lines = Lines::new(MAX_SERVER_LINE);
                let mut client = Client::new(Wire::Stdio { stdin, stdout, lines });
                let listing = client.list().await;
                drop(client);
                // It has said what was to be said: how it ends does not matter.
                let _ = server.end().await;
                listing
            }
            Target::Url(upstream) => {
                let mut client = Client::new(Wire::Http { upstream, route: Route::default() });
                let listing = client.list().await;
                if let Wire::Http { upstream, route } = &client.wire
                    && route.session.is_some()
                {
                    let _ = upstream.delete(route).await;
                }
                listing
            }
        }
    };
    tokio::time::timeout(within, asked).await.unwrap_or(Err(ListingError::Timeout(within)))
}

enum Wire {
    Stdio { stdin: ChildStdin, stdout: ChildStdout, lines: Lines },
    Http { upstream: Box<Upstream>, route: Route },
}

struct Client {
    wire: Wire,
    next: i64,
    /// Goes with every request of the newer era.
    meta: Option<Value>,
}

impl Client {
    fn new(wire: Wire) -> Self {
        Self { wire, next: 0, meta: None }
    }

    async fn list(&mut self) -> Result<Listing, ListingError> {
        self.begin().await?;
        let mut listing = Listing::default();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let params = cursor.as_ref().map(|cursor| json!({"cursor": cursor})).unwrap_or_else(|| json!({}));
            let answer = match self.request("tools/list", params).await {
                Err(ListingError::Refused { message, .. }) if message.starts_with("-32601") => return Ok(listing),
                answer => answer?,
            };
            let wrong = |why: String| ListingError::Unreadable { method: "tools/list".into(), why };
            let message = Message::read(&answer).map_err(wrong)?;
            let page = Page::read(message.result.ok_or_else(|| wrong("no result".into()))?).map_err(wrong)?;
            for (raw, digest) in page.definitions() {
                let definition = serde_json::from_str(raw).map_err(|e| wrong(e.to_string()))?;
                listing.tools.push((definition, digest.to_owned()));
            }
            listing.left_out.extend(page.left_out.iter().cloned());
            if listing.tools.len() > MAX_TOOLS {
                return Err(wrong(format!("more than {MAX_TOOLS} tools")));
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(listing),
            }
        }
        Err(ListingError::Unreadable { method: "tools/list".into(), why: format!("more than {MAX_PAGES} pages") })
    }

    /// The older era's handshake; where a server refuses that, the newer era.
    async fn begin(&mut self) -> Result<(), ListingError> {
        let me = json!({"name": "remit", "version": env!("CARGO_PKG_VERSION")});
        let newest = LEGACY.last().copied().unwrap_or_default();
        let hello = json!({"protocolVersion": newest, "capabilities": {}, "clientInfo": me});
        let refused = match self.request("initialize", hello).await {
            Ok(answer) => {
                let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
                let version = answer["result"]["protocolVersion"].as_str().unwrap_or_default().to_owned();
                if !LEGACY.contains(&version.as_str()) {
                    let why = format!("protocol revision {:?} is not known", escaped(&version));
                    return Err(ListingError::Unreadable { method: "initialize".into(), why });
                }
                if let Wire::Http { route, .. } = &mut self.wire {
                    route.version = Some(version);
                }
                let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
                return self.tell(note.to_string().into_bytes()).await;
            }
            Err(refused @ ListingError::Refused { .. }) => refused,
            Err(error) => return Err(error),
        };
        let newest = MODERN.last().copied().unwrap_or_default();
        self.meta = Some(json!({META_VERSION: newest, META_CLIENT: me, META_CAPABILITIES: {}}));
        // A server that knows neither is not helped by a second error.
        self.request("server/discover", json!({})).await.map(|_| ()).map_err(|_| refused)
    }

    /// Sends a request and gives the answer's bytes, a result.
    async fn request(&mut self, method: &str, mut params: Value) -> Result<String, ListingError> {
        self.next += 1;
        let id = Id::Number(self.next);
        if let Some(meta) = &self.meta {
            params["_meta"] = meta.clone();
        }
        let request = json!({"jsonrpc": "2.0", "id": id.json(), "method": method, "params": params});
        let answer = self.ask(request.to_string().into_bytes(), &id, method).await?;
        let read: Value = serde_json::from_str(&answer).unwrap_or_default();
        match read.get("error") {
            None => Ok(answer),
            Some(error) => {
                let text = error.get("message").and_then(Value::as_str).unwrap_or("no message");
                let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
                Err(ListingError::Refused { method: method.into(), message: format!("{code} {}", escaped(text)) })
            }
        }
    }

    async fn ask(&mut self, line: Vec<u8>, id: &Id, method: &str) -> Result<String, ListingError> {
        if let Wire::Http { .. } = &self.wire {
            return self.ask_http(line, id, method).await;
        }
        self.tell(line).await?;
        loop {
            let message = self.read_line().await?;
            if let Some(answer) = self.take(message, id).await? {
                return Ok(answer);
            }
        }
    }

    /// The next line of the server.
    async fn read_line(&mut self) -> Result<String, ListingError> {
        let Wire::Stdio { stdout, lines, .. } = &mut self.wire else { return Err(ListingError::Ended) };
        loop {
            while let Some(frame) = lines.next_line() {
                // A line that is no message is the proxy's to complain of; here it only is not the answer.
                if let Frame::Line(line) = frame
                    && let Ok(Some(text)) = text(&line)
                {
                    return Ok(text.to_owned());
                }
            }
            let mut chunk = [0; 16 * 1024];
            match stdout.read(&mut chunk).await {
                Ok(n) if n > 0 => lines.push(&chunk[..n]),
                Ok(_) | Err(_) => return Err(ListingError::Ended),
            }
        }
    }

    async fn ask_http(&mut self, line: Vec<u8>, id: &Id, method: &str) -> Result<String, ListingError> {
        let Wire::Http { upstream, route } = &mut self.wire else { return Err(ListingError::Ended) };
        let mut route_now = route.clone();
        Repeated::read(&line)
            .write(&mut route_now.headers)
            .map_err(|e| ListingError::Unreadable { method: method.into(), why: e.to_string() })?;
        let answered = upstream.post(line, &route_now).await?;
        if method == "initialize" {
            route.session = answered.session;
        }
        let no_answer = || ListingError::Unreadable { method: method.into(), why: "it ended without an answer".into() };
        match answered.reply {
            Reply::Accepted => Err(no_answer()),
            Reply::Message(body) => {
                let body = String::from_utf8_lossy(body.trim_ascii()).into_owned();
                self.take(body, id).await?.ok_or_else(no_answer)
            }
            Reply::Stream(mut stream) => {
                while let Some(message) = stream.next().await? {
                    if let Some(answer) = self.take(message, id).await? {
                        return Ok(answer);
                    }
                }
                Err(no_answer())
            }
            Reply::Refused(status, body) => {
                let body = String::from_utf8_lossy(body.trim_ascii()).into_owned();
                let said: Value = serde_json::from_str(&body).unwrap_or_default();
                let text = said["error"]["message"].as_str().unwrap_or("no message");
                let message = format!("{} {}", status.as_u16(), escaped(text));
                Err(ListingError::Refused { method: method.into(), message })
            }
        }
    }

    /// One message of the server: the answer to `id`, or something that is put aside.
    async fn take(&mut self, text: String, id: &Id) -> Result<Option<String>, ListingError> {
        let kind = match Message::read(&text) {
            Ok(message) => message.kind,
            Err(_) => return Ok(None),
        };
        match kind {
            Kind::Response { id: answered, .. } if answered == *id => Ok(Some(text)),
            Kind::Request { id, method } => {
                let line = match method.as_str() {
                    "ping" => json!({"jsonrpc": "2.0", "id": id.json(), "result": {}}).to_string().into_bytes(),
                    _ => error_line(Some(&id), METHOD_NOT_FOUND, "Method not found"),
                };
                self.tell(line).await.map(|()| None)
            }
            Kind::Notification { .. } | Kind::Response { .. } => Ok(None),
        }
    }

    /// Sends what has no answer.
    async fn tell(&mut self, mut line: Vec<u8>) -> Result<(), ListingError> {
        match &mut self.wire {
            Wire::Stdio { stdin, .. } => {
                line.push(b'\n');
                let written = stdin.write_all(&line).await;
                written.map_err(|_| ListingError::Ended)?;
                stdin.flush().await.map_err(|_| ListingError::Ended)
            }
            Wire::Http { upstream, route } => {
                let route = Route { headers: HeaderMap::new(), ..route.clone() };
                upstream.post(line, &route).await.map(|_| ()).map_err(Into::into)
            }
        }
    }
}

/// A server's words, for people.
fn escaped(text: &str) -> String {
    text.escape_debug().take(300).collect()
}
