//! `remit operator` as a process of its own, as it runs on a bare machine.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{eventually_blocking, free_port, tail};

/// The operator. It can be killed and started again on the same ports with the same data. It ends with this process.
pub struct Operator {
    /// Port of the API that agents use.
    pub https: u16,
    /// Port of the admission webhook.
    pub webhook: u16,
    /// Port of /livez, /readyz, /metrics.
    pub metrics: u16,
    kubeconfig: PathBuf,
    data: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    environment: Mutex<Vec<(String, String)>>,
    running: Mutex<Option<Running>>,
}

struct Running {
    operator: Child,
    // Holds its standard input open: when this process ends, the shell sees it closed and kills the operator.
    guard: Child,
}

impl Operator {
    /// Chooses ports; starts nothing.
    pub fn prepare(folder: PathBuf, kubeconfig: PathBuf, arguments: &[&str]) -> Operator {
        Operator {
            https: free_port(),
            webhook: free_port(),
            metrics: free_port(),
            kubeconfig,
            data: folder.join("data"),
            log: folder.join("operator.log"),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            environment: Mutex::default(),
            running: Mutex::new(None),
        }
    }

    /// Environment of the starts from now on, such as `REMIT_FAULT` and `REMIT_PAUSE` (src/fault.rs).
    pub fn set_environment(&self, variables: &[(&str, &str)]) {
        *self.environment.lock().expect("lock") =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// Also after a panic that had it: the process must be ended all the same.
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its kubeconfig: to be written before it starts.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Folder of the store.
    pub fn data(&self) -> &PathBuf {
        &self.data
    }

    /// What the operator logged, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts it, without waiting.
    pub fn spawn(&self) {
        std::fs::create_dir_all(&self.data).expect("data folder");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("log");
        let operator = Command::new(env!("CARGO_BIN_EXE_remit"))
            .arg("operator")
            .args(["--namespace", super::PLATFORM, "--service-account", "remit", "--log-format", "json"])
            .arg(format!("--listen=127.0.0.1:{}", self.https))
            .arg(format!("--webhook-listen=127.0.0.1:{}", self.webhook))
            .arg(format!("--metrics-listen=127.0.0.1:{}", self.metrics))
            .arg("--dns-names=localhost,127.0.0.1")
            // A killed one's lease runs out sooner than by default.
            .args(["--lease-seconds=10", "--lease-renew-seconds=7", "--lease-retry-seconds=1"])
            .arg("--data-dir")
            .arg(&self.data)
            .args(&self.arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .envs(self.environment.lock().expect("lock").iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("remit operator");
        let guard = Command::new("sh")
            .args(["-c", r#"cat >/dev/null; kill -KILL "$1" 2>/dev/null"#, "guard", &operator.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let before = self.lock().replace(Running { operator, guard });
        assert!(before.is_none(), "the operator runs already");
    }

    /// Waits until /readyz says so.
    pub fn wait_ready(&self) {
        eventually_blocking("remit operator is ready", || {
            if let Some(running) = self.lock().as_mut()
                && let Some(status) = running.operator.try_wait().expect("wait")
            {
                panic!("remit operator ended ({status}); the end of its log:\n{}", tail(&self.log, 30));
            }
            let (status, body) = self.get("/readyz")?;
            if status == 200 { Ok(()) } else { Err(format!("{status} {body}; its log:\n{}", tail(&self.log, 15))) }
        });
    }

    /// Plain GET on the metrics port.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| format!("no HTTP: {text:?}"))?;
        Ok((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
    }

    /// Pid of what runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.operator.id())
    }

    /// Sends it a signal, `STOP` and `CONT` for a pause.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().expect("the operator runs");
        let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill");
        assert!(sent.success(), "kill -{name} {pid}");
    }

    /// Waits until it has ended by itself, as at a fault point. It can be started again then.
    pub fn wait_ended(&self) {
        eventually_blocking("remit operator ends by itself", || {
            let mut running = self.lock();
            match running.as_mut().map(|r| r.operator.try_wait().expect("wait")) {
                None | Some(Some(_)) => {
                    *running = None;
                    Ok(())
                }
                Some(None) => Err(tail(&self.log, 5)),
            }
        });
    }

    /// A number of `/metrics`; None: it has none of this name, or does not answer.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Whether it says that it leads.
    pub fn leads(&self) -> bool {
        self.metric("remit_leader") == Some(1.0)
    }

    /// Kills it as a crash would (SIGKILL).
    pub fn kill(&self) {
        if let Some(mut running) = self.lock().take() {
            // The guard first: it must never see the pid of a process that is gone.
            let _ = running.guard.kill();
            let _ = running.guard.wait();
            let _ = running.operator.kill(); // SIGKILL reaches a stopped process, too
            let _ = running.operator.wait();
        }
    }

    /// Asks it to end (SIGTERM) and returns its exit code once it did.
    pub fn stop(&self) -> Option<i32> {
        let mut running = self.lock().take()?;
        let _ = running.guard.kill();
        let _ = running.guard.wait();
        let _ = Command::new("kill").args(["-TERM", &running.operator.id().to_string()]).status();
        let status = eventually_blocking("remit operator stops", || {
            running.operator.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| tail(&self.log, 15))
        });
        status.code()
    }

    /// Starts it again on the same ports and data, and waits until it is ready.
    pub fn start(&self) {
        self.spawn();
        self.wait_ready();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}
