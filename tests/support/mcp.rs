//! The MCP proxy between a test and a server that writes down what it gets.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use remit::enforce::mcp::definition_digest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::file;

/// The tools of the fake server, as it lists them.
pub fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    json!([
        {"name": "read", "description": "Reads a file.", "inputSchema": schema},
        {"name": "write", "description": "Writes a file.", "inputSchema": schema},
        {"name": "hidden", "description": "Nobody may call it.", "inputSchema": schema}
    ])
}

/// A folder with a policy, and a fake server's tools and log.
pub struct Desk {
    pub dir: TempDir,
}

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}

impl Desk {
    /// Agent `coder` may call `fs/read`, and `fs/write` is forbidden with the code `no-writes-here`. `fs/read` is pinned.
    pub fn new() -> Self {
        let desk = Self { dir: TempDir::new().expect("a directory") };
        let policy = desk.policy();
        std::fs::create_dir(&policy).expect("policy/");
        let pinned = definition_digest(tools()[0].as_object().expect("an object")).expect("a digest");
        let package = format!(
            "package: desk\nversion: 1.0.0\ntools:\n  - {{name: fs/read, tier: read, schemaDigest: \"{pinned}\"}}\n  - {{name: fs/write, tier: write}}\n"
        );
        let cedar = "@id(\"reads\")\npermit (principal, action == Action::\"call_tool\", resource in ToolGroup::\"read\");\n\
             @id(\"writes-some\")\npermit (principal, action == Action::\"call_tool\", resource in ToolGroup::\"write\");\n\
             @id(\"secret-policy-id\")\n@code(\"no-writes-here\")\n@reason(\"Writing is not for agents. Propose a change instead.\")\n\
             forbid (principal, action == Action::\"call_tool\", resource in ToolGroup::\"write\")\n\
             when { context.arguments.hasTag(\"path\") };\n";
        let agents = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata:\n  name: coder\nspec:\n  trustLevel: 2\n";
        for (name, text) in [("package.yaml", package.as_str()), ("main.cedar", cedar), ("agents.yaml", agents)] {
            std::fs::write(policy.join(name), text).expect(name);
        }
        desk.set_tools(&tools());
        desk
    }

    pub fn policy(&self) -> PathBuf {
        self.dir.path().join("policy")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("received")
    }

    /// What the server lists from now on. Put in place at once, as the server may be reading.
    pub fn set_tools(&self, tools: &Value) {
        let (new, file) = (self.dir.path().join("tools.new"), self.dir.path().join("tools.json"));
        std::fs::write(&new, tools.to_string()).expect("tools.new");
        std::fs::rename(new, file).expect("tools.json");
    }

    /// Every line that the server has got.
    pub fn received(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The proxy with the folder embedded, before a server of this mode.
    pub fn proxy(&self, mode: &str) -> Proxy {
        self.proxy_with(mode, &["--policy", &self.policy().display().to_string()])
    }

    /// The proxy with these arguments.
    pub fn proxy_with(&self, mode: &str, args: &[&str]) -> Proxy {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.arg("mcp-proxy").args(args).args(["--server", "fs", "--", "python3"]);
        command.arg(file("tests/peers/fake_server.py")).args(["--mode", mode, "--log"]).arg(self.log());
        command.arg("--tools").arg(self.dir.path().join("tools.json"));
        command.env("REMIT_SECRET", "x").env("REMIT_LOG", "warn");
        Proxy::start(command)
    }
}

/// A running proxy; the test is its client.
pub struct Proxy {
    pub child: Child,
    to: Option<ChildStdin>,
    from: Lines<BufReader<ChildStdout>>,
    /// Answers that came before somebody wanted them.
    kept: Vec<Value>,
}

impl Proxy {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the proxy starts");
        let (to, from) = (child.stdin.take(), child.stdout.take().expect("stdout"));
        Self { child, to, from: BufReader::new(from).lines(), kept: Vec::new() }
    }

    /// Sends these bytes and a line end.
    pub async fn raw(&mut self, line: impl AsRef<[u8]>) {
        let to = self.to.as_mut().expect("open");
        to.write_all(line.as_ref()).await.expect("the proxy reads");
        to.write_all(b"\n").await.expect("the proxy reads");
    }

    pub async fn send(&mut self, message: &Value) {
        self.raw(message.to_string()).await;
    }

    /// The next message, whatever it is; everything on standard output must be one.
    pub async fn next(&mut self) -> Value {
        if !self.kept.is_empty() {
            return self.kept.remove(0);
        }
        self.read().await
    }

    async fn read(&mut self) -> Value {
        let line =
            tokio::time::timeout(Duration::from_secs(90), self.from.next_line()).await.expect("a message in time");
        let line = line.expect("text").unwrap_or_else(|| panic!("the proxy has ended"));
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("not the protocol: {line}: {e}"));
        assert_eq!(value["jsonrpc"], "2.0", "{line}");
        value
    }

    /// The answer to this request; other messages are kept for `next`.
    pub async fn answer(&mut self, id: impl Into<Value>) -> Value {
        let id = id.into();
        let answers = |m: &Value| m.get("method").is_none() && m["id"] == id;
        if let Some(at) = self.kept.iter().position(answers) {
            return self.kept.remove(at);
        }
        loop {
            let message = self.read().await;
            if answers(&message) {
                return message;
            }
            self.kept.push(message);
        }
    }

    /// The handshake of this revision, with these capabilities.
    pub async fn initialize(&mut self, capabilities: Value) {
        let params = json!({"protocolVersion": REVISION, "capabilities": capabilities, "clientInfo": {"name": "test", "version": "1"}});
        self.send(&json!({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params})).await;
        let answer = self.answer("init").await;
        assert_eq!(answer["result"]["protocolVersion"], REVISION, "{answer}");
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    }

    /// Sends a call; its answer is for `answer`.
    pub async fn call(&mut self, id: i64, tool: &str, arguments: Value) {
        let params = json!({"name": tool, "arguments": arguments});
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})).await;
    }

    /// Everything that was sent before has been read: a ping has come back from the server.
    pub async fn settled(&mut self) {
        self.send(&json!({"jsonrpc": "2.0", "id": "settled", "method": "ping"})).await;
        self.answer("settled").await;
    }

    /// Closes the client's side; what came before the end, how it ended, and its log.
    pub async fn end(mut self) -> (Vec<Value>, ExitStatus, String) {
        self.to.take();
        while let Some(line) = self.from.next_line().await.expect("text") {
            self.kept.push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("not the protocol: {line}: {e}")));
        }
        let mut log = String::new();
        self.child.stderr.take().expect("stderr").read_to_string(&mut log).await.expect("text");
        let status = tokio::time::timeout(Duration::from_secs(90), self.child.wait()).await;
        (self.kept, status.expect("it ends").expect("it has a status"), log)
    }
}

/// The revision that these clients speak.
const REVISION: &str = "2025-11-25";

/// An agent at a proxy that listens: one session of streamable HTTP.
pub struct HttpClient {
    url: String,
    http: Client<HttpConnector, Full<Bytes>>,
    session: Option<String>,
}

impl HttpClient {
    /// After the handshake.
    pub async fn connect(url: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let mut client = Self { url: url.into(), http, session: None };
        let params =
            json!({"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
        let hello = json!({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params});
        let (status, session, body) = client.post(&hello).await;
        let answer = answer(&body, &hello["id"]);
        assert_eq!((status, &answer["result"]["protocolVersion"]), (200, &json!(REVISION)), "{body}");
        client.session = Some(session.expect("a session"));
        let (status, _, body) = client.post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        assert_eq!(status, 202, "{body}");
        client
    }

    /// The answer to a request.
    pub async fn request(&self, id: i64, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let (status, _, body) = self.post(&request).await;
        assert_eq!(status, 200, "{body}");
        answer(&body, &request["id"])
    }

    /// The answer to a call.
    pub async fn call(&self, id: i64, tool: &str, arguments: Value) -> Value {
        self.request(id, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// Status, session and body.
    async fn post(&self, message: &Value) -> (u16, Option<String>, String) {
        let mut request = Request::post(&self.url).header("content-type", "application/json");
        request = request.header("accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", REVISION);
        }
        let request = request.body(Full::new(Bytes::from(message.to_string()))).expect("a request");
        let answered = tokio::time::timeout(Duration::from_secs(90), async {
            let (head, body) = self.http.request(request).await.expect("the proxy answers").into_parts();
            let session = head.headers.get("mcp-session-id").map(|v| v.to_str().expect("text").to_owned());
            let body = body.collect().await.expect("a body").to_bytes();
            (head.status.as_u16(), session, String::from_utf8(body.to_vec()).expect("text"))
        });
        answered.await.expect("an answer in time")
    }
}

/// The answer in a body: JSON, or the events of a proxy that had to wait for it.
fn answer(body: &str, id: &Value) -> Value {
    let events = body.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut messages = events.chain([body]).filter_map(|text| serde_json::from_str::<Value>(text).ok());
    messages.find(|m| m["id"] == *id).unwrap_or_else(|| panic!("no answer to {id}: {body}"))
}

/// The text of a tool result that says that the call was not made.
pub fn denial(answer: &Value) -> &str {
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}"))
}

/// A `remit serve` of this folder.
pub fn serve(policy: &Path) -> std::process::Child {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_remit"));
    command.arg("serve").arg(policy).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("remit serve starts")
}
