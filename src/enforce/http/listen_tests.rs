//! The endpoint over real connections, before a server that writes down what it gets, and a decision point that does what the
//! test says.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, Method};
use axum::routing::any;
use http_body_util::{BodyExt as _, Full};
use hyper::Response as HyperResponse;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::sync::{Barrier, Notify};

use super::*;
use crate::enforce::http::{ListenArgs, UpstreamArgs};
use crate::enforce::{CallOutcome, PdpError, PdpFuture, Question, Ruling, Verdict};

/// Allows every tool but `fs/write`.
#[derive(Default)]
struct Scripted {
    gone: bool,
    /// Somebody asks about `fs/held`, and is answered when this is told.
    asked: Notify,
    held: Notify,
    outcomes: Mutex<Vec<CallOutcome>>,
}

impl Pdp for Scripted {
    fn check<'a>(&'a self, question: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
        let ruling = if question.tool == "fs/write" { Ruling::Deny } else { Ruling::Allow };
        let (rule, reason) = (Some("no-writes-here".into()), "Read only.".into());
        let verdict = Verdict {
            ruling,
            code: "denied_by_policy".into(),
            rule,
            reason,
            decision_id: "d".into(),
            asks: Default::default(),
        };
        let held = question.tool == "fs/held";
        Box::pin(async move {
            if held {
                self.asked.notify_one();
                self.held.notified().await;
            }
            if self.gone { Err(PdpError::Unreachable("secret".into())) } else { Ok(verdict) }
        })
    }
    fn tools<'a>(&'a self, _: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
        Box::pin(async { Ok(vec!["fs/read".into(), "fs/slow".into()]) })
    }
    fn report<'a>(&'a self, _: &'a str, outcome: CallOutcome, _: Duration) -> PdpFuture<'a, Result<(), PdpError>> {
        self.outcomes.lock().unwrap().push(outcome);
        Box::pin(async { Ok(()) })
    }
    fn close(&self) -> PdpFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What the server got: method, headers, body.
type Got = (Method, HeaderMap, String);

struct FakeServer {
    got: Mutex<Vec<Got>>,
    both: Barrier,
    answered: Notify,
    forgets: AtomicUsize,
}

fn event(message: &Value) -> String {
    String::from_utf8(sse::write(message.to_string().as_bytes())).unwrap()
}

fn streamed(text: String) -> Response {
    ([(CONTENT_TYPE, "text/event-stream")], text).into_response()
}

async fn fake(State(server): State<Arc<FakeServer>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    server.got.lock().unwrap().push((parts.method.clone(), parts.headers.clone(), body.clone()));
    if parts.method == Method::GET {
        if parts.headers.get("last-event-id").is_some_and(|id| id == "7") {
            return streamed(event(&json!({"jsonrpc": "2.0", "id": 5, "result": {"content": []}})));
        }
        let note = json!({"jsonrpc": "2.0", "method": "notifications/resources/list_changed"});
        return streamed(event(&note));
    }
    let message: Value = serde_json::from_str(&body).unwrap_or_default();
    let id = message["id"].clone();
    let answer = |result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    match message["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}});
            ([("mcp-session-id", "up-1")], axum::Json(answer(result))).into_response()
        }
        "tools/list" => {
            let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
            let names = ["read", "write", "slow", "breaks", "asks", "both", "lost", "held", "ends"];
            axum::Json(answer(json!({"tools": names.map(tool)}))).into_response()
        }
        "tools/call" => match message["params"]["name"].as_str().unwrap() {
            "read" => {
                let note = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}});
                streamed(event(&note) + &event(&answer(json!({"content": [{"type": "text", "text": "read"}]}))))
            }
            "slow" => {
                let note = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}});
                let first = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(event(&note)) });
                let endless = futures::StreamExt::chain(first, futures::stream::pending());
                ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(endless)).into_response()
            }
            "ends" => streamed(": nothing\n\n".into()),
            "breaks" => streamed("id: 7\nretry: 1\ndata:\n\n".into()),
            "both" => {
                server.both.wait().await;
                axum::Json(answer(
                    json!({"content": [{"type": "text", "text": message["params"]["arguments"]["who"]}]}),
                ))
                .into_response()
            }
            "asks" => {
                let ask =
                    json!({"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {"messages": []}});
                let first = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(event(&ask)) });
                let (server, last) = (server.clone(), event(&answer(json!({"content": []}))));
                let then = futures::stream::once(async move {
                    server.answered.notified().await;
                    Ok(last)
                });
                ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(futures::StreamExt::chain(first, then)))
                    .into_response()
            }
            _ => {
                server.forgets.fetch_add(1, Ordering::Relaxed);
                StatusCode::NOT_FOUND.into_response()
            }
        },
        "" if message.get("result").is_some() => {
            server.answered.notify_one();
            StatusCode::ACCEPTED.into_response()
        }
        method if method.starts_with("notifications/") => StatusCode::ACCEPTED.into_response(),
        _ => axum::Json(answer(json!({}))).into_response(),
    }
}

struct World {
    url: String,
    server: Arc<FakeServer>,
    pdp: Arc<Scripted>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

const BASE: [(&str, &str); 2] =
    [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];

impl World {
    async fn new() -> Self {
        Self::with(Scripted::default(), None, ListenArgs::default()).await
    }

    async fn with(pdp: Scripted, upstream: Option<&str>, args: ListenArgs) -> Self {
        let (both, answered) = (Barrier::new(2), Notify::new());
        let server = Arc::new(FakeServer { got: Mutex::default(), both, answered, forgets: AtomicUsize::new(0) });
        let router = Router::new().route("/up", any(fake)).with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/up", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let upstream = Upstream::new(upstream.unwrap_or(&address), &UpstreamArgs::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let pdp = Arc::new(pdp);
        let (stop, stopping) = watch::channel(false);
        let settings = Settings { server: "fs".into(), agent: "coder".into(), ..Settings::default() };
        let guard = Guard::new(at, &args).unwrap();
        let limit = Duration::from_secs(60);
        let serving = tokio::spawn(serve(listener, guard, upstream, settings, pdp.clone(), limit, stopping));
        let http = HttpClient::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { url: url(at), server, pdp, http, stop, serving }
    }

    async fn send(&self, method: Method, headers: &[(&str, &str)], body: &str) -> HyperResponse<Incoming> {
        let mut request = hyper::Request::builder().method(method).uri(&self.url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.http.request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap()
    }

    /// Status, session id and body.
    async fn ask(&self, method: Method, headers: &[(&str, &str)], body: &str) -> (u16, Option<String>, String) {
        let response = self.send(method, headers, body).await;
        let session = response.headers().get(SESSION).map(|v| v.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body =
            tokio::time::timeout(Duration::from_secs(60), response.into_body().collect()).await.unwrap().unwrap();
        (status, session, String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }

    async fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, Option<String>, String) {
        let all: Vec<(&str, &str)> = BASE.iter().chain(headers).copied().collect();
        self.ask(Method::POST, &all, body).await
    }

    async fn initialize(&self, headers: &[(&str, &str)], capabilities: Value) -> String {
        let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": capabilities}});
        let (status, session, body) = self.post(headers, &hello.to_string()).await;
        assert_eq!(status, 200, "{body}");
        session.expect("a session")
    }

    /// Bodies of the calls that the server got.
    fn calls(&self) -> Vec<String> {
        let is_call =
            |body: &String| serde_json::from_str::<Value>(body).is_ok_and(|message| message["method"] == "tools/call");
        self.server.got.lock().unwrap().iter().map(|(_, _, body)| body.clone()).filter(is_call).collect()
    }

    async fn outcomes(&self, wanted: &[CallOutcome]) {
        for _ in 0..3000 {
            if *self.pdp.outcomes.lock().unwrap() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?} is not {wanted:?}", self.pdp.outcomes.lock().unwrap());
    }
}

fn call(id: i64, tool: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        .to_string()
}

fn modern(id: i64, tool: &str, arguments: &Value) -> String {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments, "_meta": meta}}).to_string()
}

const VERSIONED: [(&str, &str); 2] = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call")];

#[tokio::test]
async fn denied_calls_stay_here_and_allowed_ones_go_as_they_came() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let session = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-06-18")];
    let (status, _, body) = world.post(&session, &call(1, "write", &json!({}))).await;
    assert_eq!(status, 200);
    assert!(body.contains("denied (no-writes-here): Read only.") && body.contains("\"isError\":true"), "{body}");
    let odd = r#"{"params":{"arguments":{"n":1.0, "a":"\u00e9"},"name":"read"}, "id":2,"method":"tools\/call","jsonrpc":"2.0"}"#;
    let (_, _, body) = world.post(&session, odd).await;
    let events: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    assert!(events.len() == 2 && events[0].contains("progress") && events[1].contains("\"read\""), "{body}");
    assert_eq!(world.calls(), [odd]);
    let (_, _, body) = world.post(&session, r#"{"jsonrpc":"2.0","id":3,"method":"tools/list"}"#).await;
    assert!(body.contains("\"slow\"") && !body.contains("\"write\""), "{body}");
    world.outcomes(&[CallOutcome::Success]).await;
}

#[tokio::test]
async fn a_session_is_its_beginners_and_credentials_stay_here() {
    let world = World::new().await;
    let (ada, bob) = (("authorization", "Bearer ada"), ("authorization", "Bearer bob"));
    let id = world.initialize(&[ada], json!({})).await;
    assert_ne!(id, "up-1", "the server's own id stays here");
    let session = ("mcp-session-id", id.as_str());
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    assert_eq!(world.post(&[ada, session], ping).await.0, 200);
    for (headers, status) in [
        (vec![bob, session], 404),
        (vec![session], 404),
        (vec![ada, ("mcp-session-id", "up-1")], 404),
        (vec![ada, ("mcp-session-id", "x")], 404),
        (vec![ada], 400),
        (vec![ada, session, session], 400),
        (vec![ada, session, ("mcp-protocol-version", "2025-11-25")], 400),
    ] {
        assert_eq!(world.post(&headers, ping).await.0, status, "{headers:?}");
    }
    assert_eq!(world.ask(Method::DELETE, &[bob, session], "").await.0, 404);
    assert_eq!(world.ask(Method::DELETE, &[ada, session], "").await.0, 204);
    assert_eq!(world.post(&[ada, session], ping).await.0, 404);
    let got = world.server.got.lock().unwrap();
    let deleted: Vec<&Got> = got.iter().filter(|(method, ..)| method == Method::DELETE).collect();
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].1["mcp-session-id"], "up-1");
    for (_, headers, _) in got.iter() {
        assert!(
            !headers.contains_key(AUTHORIZATION) && headers.get("mcp-session-id").is_none_or(|v| v == "up-1"),
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn what_headers_and_body_say_differently_goes_nowhere() {
    let world = World::new().await;
    let body = modern(1, "read", &json!({"region": "eu"}));
    let [version, method] = VERSIONED;
    for bad in [
        vec![],
        vec![version],
        vec![version, method],
        vec![version, method, ("mcp-name", "write")],
        vec![version, ("mcp-method", "tools/list"), ("mcp-name", "read")],
        vec![("mcp-protocol-version", "2025-06-18"), method, ("mcp-name", "read")],
        vec![version, method, ("mcp-name", "read"), ("mcp-name", "write")],
        vec![version, method, ("mcp-name", "read"), ("mcp-param-region", "us")],
    ] {
        let (status, _, answer) = world.post(&bad, &body).await;
        assert!(status == 400 && answer.contains("-32020") && answer.contains("\"id\":1"), "{bad:?}: {answer}");
    }
    // The other way round: a header of the newer era over a body of the older.
    let (status, _, answer) = world.post(&[version], &call(1, "read", &json!({}))).await;
    assert!(status == 400 && answer.contains("-32020"), "{answer}");
    assert!(world.server.got.lock().unwrap().is_empty());
    let good =
        [version, method, ("mcp-name", "read"), ("mcp-param-region", "eu"), ("mcp-session-id", "any"), ("x-evil", "1")];
    let (status, session, answer) = world.post(&good, &body).await;
    assert!(status == 200 && session.is_none() && answer.contains("\"read\""), "{answer}");
    let got = world.server.got.lock().unwrap();
    let (_, headers, sent) = got.iter().find(|(_, _, b)| b.contains("tools/call")).unwrap();
    assert_eq!(*sent, body);
    for (name, value) in [version, method, ("mcp-name", "read"), ("mcp-param-region", "eu")] {
        assert_eq!(headers[name], value);
    }
    assert!(!headers.contains_key("mcp-session-id") && !headers.contains_key("x-evil"), "{headers:?}");
    // The proxy's own question before the call carries the newer era, too.
    let (_, headers, _) = got.iter().find(|(_, _, b)| b.contains("tools/list")).unwrap();
    assert!(headers["mcp-method"] == "tools/list" && headers["mcp-protocol-version"] == "2026-07-28", "{headers:?}");
}

#[tokio::test]
async fn denied_in_the_newer_era_too() {
    let world = World::new().await;
    let headers = [VERSIONED[0], VERSIONED[1], ("mcp-name", "write")];
    let (status, _, answer) = world.post(&headers, &modern(1, "write", &json!({}))).await;
    assert!(status == 200 && answer.contains("denied (no-writes-here)") && answer.contains("complete"), "{answer}");
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn one_message_a_body_and_only_json() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let session = [("mcp-session-id", session.as_str())];
    let (read, write) = (call(1, "read", &json!({})), call(2, "write", &json!({})));
    for bad in [
        format!("[{read}]"),
        format!("[{read},{write}]"),
        format!("{read}\n{write}"),
        format!("{read}{write}"),
        read.replace("\"id\":1", "\"id\":1,\"id\":2"),
        read.replace("\"method\"", "\"Method\":\"tools/list\",\"method\""),
        "{".into(),
        "null".into(),
        String::new(),
    ] {
        let (status, _, answer) = world.post(&session, &bad).await;
        assert!(status == 400 && answer.contains("\"error\""), "{bad}: {status} {answer}");
    }
    assert!(world.calls().is_empty());
    let accept = ("accept", "application/json, text/event-stream");
    assert_eq!(world.ask(Method::POST, &[accept, ("content-type", "text/plain")], &read).await.0, 415);
    assert_eq!(
        world.ask(Method::POST, &[("content-type", "application/json"), ("accept", "application/json")], &read).await.0,
        406
    );
    assert_eq!(world.ask(Method::PUT, &BASE, &read).await.0, 405);
    let huge = format!("{{\"x\":\"{}\"}}", "x".repeat(MAX_CLIENT_LINE));
    assert_eq!(world.post(&session, &huge).await.0, 413);
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn no_web_page_and_nobody_without_the_token() {
    let world = World::new().await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
    for bad in [(HOST.as_str(), "evil.example"), ("origin", "https://evil.example"), ("origin", "null")] {
        assert_eq!(world.post(&[bad], ping).await.0, 403, "{bad:?}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "t0ken").unwrap();
    let args = ListenArgs { client_token_file: Some(file.path().into()), ..Default::default() };
    let guarded = World::with(Scripted::default(), None, args).await;
    assert_eq!(guarded.post(&[], ping).await.0, 401);
    assert_eq!(guarded.post(&[("authorization", "Bearer wrong")], ping).await.0, 401);
    assert!(guarded.server.got.lock().unwrap().is_empty() && world.server.got.lock().unwrap().is_empty());
    guarded.initialize(&[("authorization", "Bearer t0ken")], json!({})).await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_read_on_and_no_client_resumes() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let session = ("mcp-session-id", session.as_str());
    let (status, _, body) = world.post(&[session], &call(5, "breaks", &json!({}))).await;
    assert!(status == 200 && body.contains("\"result\"") && !body.contains("\nid:"), "{body}");
    let listen = [("accept", "text/event-stream"), session];
    let (status, _, body) = world.ask(Method::GET, &listen, "").await;
    assert!(status == 200 && body.contains("resources/list_changed"), "{body}");
    let resume = [listen[0], session, ("last-event-id", "7")];
    assert_eq!(world.ask(Method::GET, &resume, "").await.0, 400);
    assert_eq!(world.ask(Method::GET, &listen[..1], "").await.0, 405);
    assert_eq!(world.ask(Method::GET, &[session], "").await.0, 406);
}

#[tokio::test]
async fn when_the_server_forgets_a_session_so_does_the_proxy() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let session = [("mcp-session-id", session.as_str())];
    assert_eq!(world.post(&session, &call(1, "lost", &json!({}))).await.0, 404);
    assert_eq!(world.server.forgets.load(Ordering::Relaxed), 1);
    assert_eq!(world.post(&session, r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).await.0, 404);
    world.outcomes(&[CallOutcome::Failed]).await;
}

#[tokio::test]
async fn without_a_server_or_without_remit_there_is_an_error() {
    let dead = World::with(Scripted::default(), Some("http://127.0.0.1:1/mcp"), ListenArgs::default()).await;
    let hello = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#;
    let (status, session, body) = dead.post(&[], hello).await;
    assert!(
        status == 200 && session.is_none() && body.contains("can't be reached") && !body.contains("127.0.0.1"),
        "{body}"
    );
    let world = World::with(Scripted { gone: true, ..Default::default() }, None, ListenArgs::default()).await;
    let session = world.initialize(&[], json!({})).await;
    let (_, _, body) = world.post(&[("mcp-session-id", &session)], &call(1, "read", &json!({}))).await;
    assert!(body.contains("denied (remit_unreachable)") && !body.contains("secret"), "{body}");
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn clients_that_choose_the_same_id_get_their_own_answers() {
    let world = World::new().await;
    let headers = [VERSIONED[0], VERSIONED[1], ("mcp-name", "both")];
    let (ada, bob) = (modern(1, "both", &json!({"who": "ada"})), modern(1, "both", &json!({"who": "bob"})));
    let (a, b) = tokio::join!(world.post(&headers, &ada), world.post(&headers, &bob));
    assert!(a.2.contains("ada") && !a.2.contains("bob"), "{a:?}");
    assert!(b.2.contains("bob") && !b.2.contains("ada"), "{b:?}");
}

#[tokio::test]
async fn closing_a_response_takes_a_request_of_the_newer_era_back() {
    let world = World::new().await;
    let headers: Vec<_> = BASE.into_iter().chain(VERSIONED).chain([("mcp-name", "slow")]).collect();
    let mut response = world.send(Method::POST, &headers, &modern(1, "slow", &json!({}))).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"event: message"));
    drop(response);
    world.outcomes(&[CallOutcome::Cancelled]).await;
}

#[tokio::test]
async fn a_server_asks_on_the_response_and_gets_only_the_clients_answer() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({"sampling": {}})).await;
    let headers: Vec<_> = BASE.into_iter().chain([("mcp-session-id", session.as_str())]).collect();
    let mut response = world.send(Method::POST, &headers, &call(1, "asks", &json!({}))).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("sampling/createMessage"));
    let answer = |id: i64| json!({"jsonrpc": "2.0", "id": id, "result": {"role": "assistant"}}).to_string();
    assert_eq!(world.ask(Method::POST, &headers, &answer(99)).await.0, 202, "dropped: nobody asked");
    assert_eq!(world.ask(Method::POST, &headers, &answer(1)).await.0, 202);
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("\"result\""));
    let got = world.server.got.lock().unwrap();
    let answers: Vec<&String> = got.iter().map(|(_, _, b)| b).filter(|b| b.contains("assistant")).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn every_response_ends() {
    let world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let session = [("mcp-session-id", session.as_str())];
    let (status, _, body) = world.post(&session, &call(1, "ends", &json!({}))).await;
    assert!(status == 200 && body.contains("ended without an answer"), "{body}");
    world.outcomes(&[CallOutcome::Failed]).await;
    // Taken back while Remit thinks about it: the server never hears of it, and the response ends.
    let held = call(2, "held", &json!({}));
    let waiting = world.post(&session, &held);
    let cancel = async {
        world.pdp.asked.notified().await;
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
        assert_eq!(world.post(&session, &cancel.to_string()).await.0, 202);
    };
    let ((status, _, body), ()) = tokio::join!(waiting, cancel);
    assert!(status == 200 && !body.contains("data:"), "{body}");
    world.pdp.held.notify_one();
    world.outcomes(&[CallOutcome::Failed, CallOutcome::NotSent]).await;
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test]
async fn at_the_end_sessions_are_ended_and_streams_close() {
    let mut world = World::new().await;
    let session = world.initialize(&[], json!({})).await;
    let headers: Vec<_> = BASE.into_iter().chain([("mcp-session-id", session.as_str())]).collect();
    let mut response = world.send(Method::POST, &headers, &call(1, "slow", &json!({}))).await;
    response.body_mut().frame().await.unwrap().unwrap();
    world.stop.send(true).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), response.into_body().collect()).await;
    assert!(ended.is_ok(), "the stream ends");
    tokio::time::timeout(Duration::from_secs(60), &mut world.serving).await.unwrap().unwrap();
    let told = world.server.got.lock().unwrap().iter().any(|(method, ..)| method == Method::DELETE);
    assert!(told, "the server is told");
    world.outcomes(&[CallOutcome::Failed]).await;
}
