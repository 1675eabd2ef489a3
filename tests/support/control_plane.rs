//! A real kube-apiserver, etcd and kube-controller-manager, by hack/controlplane.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::{eventually_blocking, file, free_port, tail, unique};

/// A running control plane. It ends when dropped, and with this process, however that ends.
pub struct ControlPlane {
    dir: PathBuf,
    state: Value,
}

impl ControlPlane {
    /// Starts one of its own; builds the binaries first where this machine does not have them.
    pub fn start() -> ControlPlane {
        let dir = std::env::temp_dir().join(format!("remit-test-{}-{}", std::process::id(), unique()));
        let out = Command::new(file("hack/controlplane/run"))
            .args(["start", "--parent-pid", &std::process::id().to_string(), "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("hack/controlplane/run");
        assert!(out.status.success(), "the control plane does not start (its messages are above)");
        let state = std::fs::read(dir.join("state.json")).expect("state.json");
        ControlPlane { state: serde_json::from_slice(&state).expect("state.json"), dir }
    }

    /// A folder for the test's own files, removed with the control plane.
    pub fn attached(&self, name: &str) -> PathBuf {
        let path = self.dir.join("attached").join(name);
        std::fs::create_dir_all(&path).expect("attached folder");
        path
    }

    /// Where its parts log.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    fn text(&self, key: &str) -> &str {
        self.state[key].as_str().unwrap_or_else(|| panic!("state.json has no {key}"))
    }

    /// `https://127.0.0.1:PORT`.
    pub fn server(&self) -> &str {
        self.text("server")
    }

    /// Kubeconfig of a cluster administrator.
    pub fn kubeconfig(&self) -> &Path {
        Path::new(self.text("kubeconfig"))
    }

    /// Version that was built; empty when KUBEBUILDER_ASSETS gave the binaries.
    pub fn version(&self) -> &str {
        self.text("kubernetes")
    }

    /// Pids of its parts.
    pub fn pids(&self) -> Vec<u32> {
        let parts = self.state["components"].as_array().expect("components");
        parts.iter().map(|c| c["pid"].as_u64().expect("pid") as u32).collect()
    }

    /// kubectl as administrator.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.kubectl_with(args, "")
    }

    /// kubectl as administrator with standard input. The error is what it says on standard error.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String, String> {
        self.kubectl_heard(args, input).map(|(out, _)| out)
    }

    /// The same, with what it says on standard error (warnings) as the second text.
    pub fn kubectl_heard(&self, args: &[&str], input: &str) -> Result<(String, String), String> {
        let mut command = Command::new(self.text("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.join("attached")).args(args);
        run(command, input)
    }

    /// The chart as YAML, for `helm template` arguments such as `--set deploy=false`.
    pub fn render_chart(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.text("helm"));
        command.env("HOME", self.dir.join("attached")).args(["template", "remit"]).arg(file("charts/remit"));
        command.args(["--namespace", super::PLATFORM]).args(args);
        run(command, "").map(|(out, _)| out)
    }

    /// Client configuration of the administrator.
    pub async fn config(&self) -> kube::Config {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("kubeconfig");
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("kubeconfig")
    }

    /// Client of the administrator, for this test's runtime.
    pub async fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config().await).expect("client")
    }

    /// Client of the administrator in the role of somebody else.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        let mut config = self.config().await;
        config.auth_info.impersonate = Some(user.into());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|g| (*g).to_owned()).collect());
        kube::Client::try_from(config).expect("client")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = Command::new(file("hack/controlplane/run")).args(["stop", "--dir"]).arg(&self.dir).output();
    }
}

/// Runs a command; Ok is its standard output and error, Err its standard error.
fn run(mut command: Command, input: &str) -> Result<(String, String), String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // Input of tests is small against what kubectl reads before it writes; a pipe that closes early is the command's own failure.
    let _ = child.stdin.take().expect("stdin").write_all(input.as_bytes());
    let out = child.wait_with_output().expect("output");
    let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if out.status.success() { Ok((text(&out.stdout), text(&out.stderr))) } else { Err(text(&out.stderr)) }
}

/// Another kube-apiserver on the same etcd, that can be killed and started again while the first goes on: kubectl and the tests use
/// that one, what is tried goes through this one. Its watches begin with an empty cache after each start, as after any restart.
pub struct ApiServer {
    command: Vec<String>,
    port: u16,
    log: PathBuf,
    running: Option<Child>,
}

impl ApiServer {
    /// Starts it with the arguments of the one that runs.
    pub fn start(plane: &ControlPlane) -> ApiServer {
        let parts = plane.state["components"].as_array().expect("components");
        let pid = parts.iter().find(|c| c["name"] == "kube-apiserver").expect("kube-apiserver")["pid"].clone();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("command line of kube-apiserver");
        let all = line.split(|b| *b == 0).filter(|a| !a.is_empty()).map(|a| String::from_utf8_lossy(a).into_owned());
        let port = free_port();
        let command =
            all.map(|a| if a.starts_with("--secure-port=") { format!("--secure-port={port}") } else { a }).collect();
        let mut server = ApiServer { command, port, log: plane.logs().join("second-apiserver.log"), running: None };
        server.restart();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it runs, starts it, and waits until it listens.
    pub fn restart(&mut self) {
        self.kill();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("log");
        // It ends by itself when its etcd does, which ends with this process.
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("kube-apiserver");
        self.running = Some(child);
        eventually_blocking("the second API server listens", || {
            TcpStream::connect(self.address()).map(drop).map_err(|e| format!("{e}; {}", tail(&self.log, 5)))
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}
