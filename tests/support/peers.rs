//! The official MCP servers and clients of tests/peers, and Remit's binary between them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::{file, free_port};

/// Remit itself.
pub const REMIT: &str = env!("CARGO_BIN_EXE_remit");
/// For whatever a peer does.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where the peers are installed; installs them where they are not.
pub fn installed() -> &'static Path {
    static AT: OnceLock<PathBuf> = OnceLock::new();
    AT.get_or_init(|| {
        let output = std::process::Command::new(file("hack/peers.sh")).output().expect("hack/peers.sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the MCP peers can't be installed: {said}");
        std::env::var_os("REMIT_PEERS").map_or_else(|| file("target/peers"), PathBuf::from)
    })
}

/// The command of a reference server.
pub fn server(name: &str) -> String {
    installed().join("node_modules/.bin").join(format!("mcp-server-{name}")).display().to_string()
}

/// An official client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// `@modelcontextprotocol/sdk` 1.x: the older era.
    TypeScript1,
    /// `@modelcontextprotocol/client` 2.x: both eras, as the server answers.
    TypeScript2,
    /// `mcp` 1.x: the older era.
    Python1,
    /// `mcp` 2.x: both eras, as the server answers.
    Python2,
}

impl Sdk {
    pub const ALL: [Self; 4] = [Self::TypeScript1, Self::TypeScript2, Self::Python1, Self::Python2];

    /// The newest revision that it speaks.
    pub fn newest(self) -> &'static str {
        match self {
            Self::TypeScript1 | Self::Python1 => "2025-11-25",
            Self::TypeScript2 | Self::Python2 => "2026-07-28",
        }
    }

    /// Runs a scenario, and gives its outcome.
    pub async fn run(self, mut scenario: Value) -> Outcome {
        let peers = installed();
        let mut command = match self {
            Self::TypeScript1 | Self::TypeScript2 => {
                let mut command = Command::new("node");
                command.arg(file("tests/peers/client.mjs"));
                command
            }
            Self::Python1 | Self::Python2 => {
                let venv = if self == Self::Python1 { "python-1" } else { "python-2" };
                let mut command = Command::new(peers.join(venv).join("bin/python"));
                command.args(["-W", "ignore"]).arg(file("tests/peers/client.py"));
                command
            }
        };
        scenario["sdk"] = json!(if matches!(self, Self::TypeScript1 | Self::Python1) { 1 } else { 2 });
        command
            .env("PEERS", peers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the client starts");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(scenario.to_string().as_bytes()).await.expect("the client reads");
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("{self:?}: {scenario}: not done in time")).expect("the client ends");
        let (out, log) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned());
        let value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{self:?}: {e}: {out}\n{log}"));
        Outcome { sdk: self, value, log }
    }
}

/// What became of a scenario.
#[derive(Debug)]
pub struct Outcome {
    pub sdk: Sdk,
    pub value: Value,
    /// Standard error of the client, the proxy and the server.
    pub log: String,
}

impl Outcome {
    /// The outcome of one step, successful or not.
    pub fn step(&self, at: usize) -> &Value {
        assert!(self.value.get("connect").is_none(), "{:?}: no connection: {}\n{}", self.sdk, self.value, self.log);
        &self.value["steps"][at]
    }

    /// The result of a step that must succeed.
    pub fn result(&self, at: usize) -> &Value {
        let step = self.step(at);
        assert_eq!(step["ok"], true, "{:?}: step {at}: {step}\n{}", self.sdk, self.log);
        &step["result"]
    }

    /// Text of the tool result of a step, and whether it is an error.
    pub fn text(&self, at: usize) -> (&str, bool) {
        let result = self.result(at);
        (result["content"][0]["text"].as_str().unwrap_or_default(), result["isError"] == true)
    }

    /// Names in a list of this kind.
    pub fn names(&self, at: usize, kind: &str) -> Vec<&str> {
        self.result(at)[kind].as_array().expect("a list").iter().map(|t| t["name"].as_str().expect("a name")).collect()
    }
}

/// A folder with a policy in `policy`, made by `remit init`, and a folder `files`.
pub struct Desk(pub TempDir);

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}

impl Desk {
    pub fn new() -> Self {
        let desk = Self(TempDir::new().expect("a directory"));
        std::fs::create_dir(desk.files()).expect("files/");
        std::fs::write(desk.files().join("a.txt"), "hello").expect("a.txt");
        let output = std::process::Command::new(REMIT).arg("init").arg(desk.policy()).output().expect("remit init");
        assert!(output.status.success(), "{output:?}");
        desk
    }

    pub fn policy(&self) -> PathBuf {
        self.0.path().join("policy")
    }

    pub fn files(&self) -> PathBuf {
        self.0.path().join("files")
    }

    pub fn file(&self, name: &str) -> String {
        self.files().join(name).display().to_string()
    }

    /// Adds these tools of a server to the package, all of them to read.
    pub fn add_reads(&self, server: &str, tools: &[&str]) {
        let path = self.policy().join("package.yaml");
        let mut text = std::fs::read_to_string(&path).expect("package.yaml");
        for tool in tools {
            text += &format!("  - {{name: {server}/{tool}, tier: read}}\n");
        }
        std::fs::write(path, text).expect("package.yaml");
    }

    /// `remit tools import`.
    pub async fn import(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(REMIT);
        command
            .args(["tools", "import"])
            .arg(self.policy())
            .args(args)
            .envs(env.iter().copied())
            .env("PEERS", installed());
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        tokio::time::timeout(PATIENCE, output).await.expect("in time").expect("remit runs")
    }

    /// The command of the proxy before a server's command.
    pub fn proxied(&self, args: &[&str], server: &[&str]) -> Value {
        let policy = self.policy().display().to_string();
        let words = [&[REMIT, "mcp-proxy", "--policy", &policy], args, &["--"], server].concat();
        json!(words)
    }

    /// The proxy before a server's URL.
    pub async fn proxy(&self, server: &str, upstream: &str) -> HttpProxy {
        let mut command = Command::new(REMIT);
        command.arg("mcp-proxy").arg("--policy").arg(self.policy()).args(["--server", server, "--upstream", upstream]);
        command.args(["--listen", "127.0.0.1:0"]);
        HttpProxy::start(command).await
    }
}

/// A proxy that listens. It ends with this.
pub struct HttpProxy {
    pub url: String,
    pub child: Child,
}

impl HttpProxy {
    /// Starts this command, and waits until it says where it listens.
    pub async fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the proxy starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let url = tokio::time::timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.expect("text").expect("the proxy says where it listens");
                if let Some((_, url)) = line.split_once(" at http") {
                    return format!("http{url}");
                }
            }
        });
        let url = url.await.expect("in time");
        // Read on, so that the log never fills the pipe.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("proxy: {line}")
            }
        });
        HttpProxy { url, child }
    }
}

/// A reference server, or the one of tests/peers, behind a URL. It ends with this.
pub struct HttpServer {
    pub url: String,
    pub child: Child,
}

impl HttpServer {
    /// `server-everything` over streamable HTTP.
    pub async fn everything() -> Self {
        let port = free_port();
        let mut command = Command::new(server("everything"));
        command.arg("streamableHttp").env("PORT", port.to_string());
        Self::start(command, port).await
    }

    /// The notes of tests/peers/server.mjs, in this folder.
    pub async fn notes(folder: &Path, env: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut command = Command::new("node");
        command
            .arg(file("tests/peers/server.mjs"))
            .arg(port.to_string())
            .env("NOTES", folder)
            .env("PEERS", installed());
        command.envs(env.iter().copied());
        Self::start(command, port).await
    }

    /// tests/peers/fake_http_server.py, which lists the tools of one file and writes what it gets into the other.
    pub async fn fake(tools: &Path, log: &Path) -> Self {
        let port = free_port();
        let mut command = Command::new("python3");
        command.arg(file("tests/peers/fake_http_server.py")).args(["--port", &port.to_string()]);
        command.arg("--tools").arg(tools).arg("--log").arg(log);
        Self::start(command, port).await
    }

    async fn start(mut command: Command, port: u16) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().expect("the server starts");
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the server does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { url: format!("http://127.0.0.1:{port}/mcp"), child }
    }
}
