//! A folder with a package and Agents, and `remit serve` processes over it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hyper::Request;
use hyper::body::Bytes;
use remit::transport::{Bounds, Https, Transport, UnixSocket};
use serde_json::Value;

use super::{eventually_blocking, free_port, tail};

/// Bounds of the tests' own requests.
const BOUNDS: Bounds = Bounds { within: Duration::from_secs(60), answer: 64 << 20 };

/// A folder that a test writes and serves.
pub struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    /// With these files in it, beside `package.yaml` with tools git/log (read) and git/push (write).
    pub fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder { dir: tempfile::tempdir().expect("folder") };
        let tools = "  - {name: git/log, tier: read}\n  - {name: git/push, tier: write}\n";
        folder.write("package.yaml", &format!("package: tools\nversion: 1.0.0\ntools:\n{tools}"));
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file as editors do: whole, and then renamed into place.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        let hidden = self.path().join(".save");
        std::fs::write(&hidden, text).expect("file");
        std::fs::rename(&hidden, &path).expect("file");
    }

    /// A file of Remit's own in it.
    pub fn state(&self, name: &str) -> PathBuf {
        self.path().join(".remit").join(name)
    }

    /// A token; empty before there is one.
    pub fn token(&self, name: &str) -> String {
        std::fs::read_to_string(self.state(name)).unwrap_or_default().trim().to_owned()
    }

    /// Asks through the socket.
    pub fn socket(&self) -> UnixSocket {
        UnixSocket::new(self.state("remit.sock"))
    }

    /// Runs a command of `remit` to its end, with this folder as last argument.
    pub fn remit(&self, args: &[&str]) -> Output {
        remit().args(args).arg(self.path()).output().expect("remit")
    }

    /// Starts `remit serve` and waits until it says what it serves.
    pub fn serve(&self) -> Serve {
        Serve::start(self, &[])
    }
}

/// `remit`, without what the environment of the tests says about another one.
pub fn remit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    for name in ["REMIT_URL", "REMIT_CA_FILE", "REMIT_TOKEN_FILE", "REMIT_TENANT", "REMIT_AGENT", "REMIT_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A running `remit serve` with a loopback port. It ends with this process.
pub struct Serve {
    /// Port of its HTTP.
    pub port: u16,
    log: PathBuf,
    child: Child,
    guard: Child,
}

impl Serve {
    /// Starts it with more arguments.
    pub fn start(folder: &Folder, more: &[&str]) -> Serve {
        let port = free_port();
        let log = folder.path().join(format!(".serve-{port}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("log");
        let child = remit()
            .arg("serve")
            .arg(folder.path())
            .arg(format!("--listen=127.0.0.1:{port}"))
            .args(more)
            .stdout(file.try_clone().expect("log"))
            .stderr(file)
            .spawn()
            .expect("remit serve");
        let guard = Command::new("sh")
            .args(["-c", r#"cat >/dev/null; kill -KILL "$1" 2>/dev/null"#, "guard", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let mut serve = Serve { port, log, child, guard };
        eventually_blocking("remit serve is up", || {
            if let Some(status) = serve.child.try_wait().expect("wait") {
                panic!("remit serve ended ({status}):\n{}", serve.log());
            }
            if serve.log().contains("records remit") { Ok(()) } else { Err(tail(&serve.log, 10)) }
        });
        serve
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks over loopback.
    pub fn http(&self) -> Https {
        Https::new(&format!("http://127.0.0.1:{}", self.port), None).expect("address")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end, and gives its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let status = eventually_blocking("remit serve stops", || {
            self.child.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| tail(&self.log, 10))
        });
        status.code()
    }

    fn end(&mut self) {
        // The guard first: it must never see the pid of a process that is gone.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.end();
    }
}

/// POST of JSON, or GET where there is no body: status and body.
pub async fn ask(to: &dyn Transport, token: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let answer = to.send(request.body(Bytes::from(body)).expect("request"), BOUNDS).await.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    let bytes = answer.into_body();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
}

/// May this agent call this tool?
pub async fn call(to: &dyn Transport, token: &str, agent: &str, tool: &str) -> Result<(u16, Value), String> {
    let question = super::http::call(agent, tool, serde_json::json!({}));
    ask(to, token, "/access/v1/evaluation", Some(&question)).await
}
