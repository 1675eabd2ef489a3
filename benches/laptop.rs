//! `remit serve`: from exec to the first answer, in a new folder and in one that was served before; a check through its socket; and from
//! the leader's death to the first answer of another process.
// A benchmark that cannot start has nothing to measure.
#![allow(clippy::expect_used)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Bytes;
use remit::transport::{Bounds, Transport, UnixSocket};
use serde_json::Value;

/// Starts that are measured of each kind.
const STARTS: usize = 20;
/// Checks that are measured.
const CHECKS: usize = 2000;
/// For one answer.
const BOUNDS: Bounds = Bounds { within: Duration::from_secs(10), answer: 1 << 20 };

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        println!("remit serve, from exec to the first answer through its socket, {STARTS} starts:");
        let mut first = Vec::new();
        for _ in 0..STARTS {
            let folder = folder();
            first.push(start(folder.path()).await.1);
        }
        report("a new folder", first);
        let folder = folder();
        let mut again = Vec::new();
        for n in 0..=STARTS {
            let (_serve, took) = start(folder.path()).await;
            if n > 0 {
                again.push(took);
            }
        }
        report("a folder that was served before", again);

        let mut takeovers = Vec::new();
        let (mut leader, _) = start(folder.path()).await;
        for _ in 0..STARTS {
            let follower = serve(folder.path());
            // It has connected once it says that another process serves; a second is plenty.
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(leader);
            let begun = Instant::now();
            answered(folder.path()).await;
            takeovers.push(begun.elapsed());
            leader = follower;
        }
        report("the leader is killed, another process answers", takeovers);

        let socket = UnixSocket::new(folder.path().join(".remit/remit.sock"));
        let mut checks = Vec::new();
        for _ in 0..CHECKS {
            let begun = Instant::now();
            assert!(ask(&socket, folder.path()).await, "a check was not allowed");
            checks.push(begun.elapsed());
        }
        println!("one check after the other through the socket, {CHECKS} checks, each allowed and committed to disk:");
        report("a check", checks);
    });
}

/// What `remit init` writes.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let made = Command::new(env!("CARGO_BIN_EXE_remit")).arg("init").arg(folder.path()).stdout(Stdio::null()).status();
    assert!(made.expect("remit init").success());
    folder
}

/// Until it is dropped.
struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path) -> Serve {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    command.arg("serve").arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Serve(command.spawn().expect("remit serve"))
}

async fn start(folder: &Path) -> (Serve, Duration) {
    let begun = Instant::now();
    let serve = serve(folder);
    answered(folder).await;
    (serve, begun.elapsed())
}

/// Waits for the first answer.
async fn answered(folder: &Path) {
    let socket = UnixSocket::new(folder.join(".remit/remit.sock"));
    while !ask(&socket, folder).await {
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// Whether a call was allowed.
async fn ask(socket: &UnixSocket, folder: &Path) -> bool {
    let token = std::fs::read_to_string(folder.join(".remit/token")).unwrap_or_default();
    let question = serde_json::json!({
        "subject": {"type": "agent", "id": "assistant"}, "action": {"name": "call_tool"},
        "resource": {"type": "tool", "id": "filesystem/read_file"}, "context": {"arguments": {"path": "notes.txt"}},
    });
    let request = Request::post("/access/v1/evaluation")
        .header("authorization", format!("Bearer {}", token.trim()))
        .header("content-type", "application/json")
        .body(Bytes::from(question.to_string()))
        .expect("request");
    let Ok(answer) = socket.send(request, BOUNDS).await else { return false };
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    body["decision"] == true
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!("  {what:<46} p50 {:7.2} ms   p99 {:7.2} ms", at(0.5), at(0.99));
}
