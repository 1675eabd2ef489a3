//! Wall time of `remit hook claude-code` from exec to exit, once with `remit serve` running beside it and once on its own.
// A benchmark that cannot start has nothing to measure.
#![allow(clippy::expect_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Calls that are measured.
const CALLS: usize = 200;
/// Calls before them.
const WARM: usize = 10;

fn main() {
    let folder = tempfile::tempdir().expect("folder");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hooks");
    for name in ["package.yaml", "main.cedar", "agents.yaml"] {
        std::fs::copy(data.join("policy").join(name), folder.path().join(name)).expect("policy");
    }
    let input = std::fs::read(data.join("claude-code/bash.json")).expect("input");
    // The shell that the agent starts is part of what the agent waits for.
    let line =
        format!("'{}' hook claude-code --policy '{}' || exit 2", env!("CARGO_BIN_EXE_remit"), folder.path().display());
    println!("remit hook claude-code, {CALLS} calls one after the other, wall time from exec to exit:");
    report("sh -c true", &measure("true", &input));
    report("on its own (leads the folder each time)", &measure(&line, &input));
    let server = serve(folder.path());
    report("beside `remit serve`", &measure(&line, &input));
    drop(server);
}

fn measure(line: &str, input: &[u8]) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..WARM + CALLS)
        .map(|_| {
            let begun = Instant::now();
            let mut child = Command::new("/bin/sh")
                .args(["-c", line])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("sh");
            let _ = child.stdin.take().expect("stdin").write_all(input);
            let output = child.wait_with_output().expect("hook");
            let time = begun.elapsed();
            assert!(output.status.success(), "{output:?}");
            assert!(line == "true" || String::from_utf8_lossy(&output.stdout).contains("\"allow\""), "{output:?}");
            time
        })
        .skip(WARM)
        .collect();
    times.sort();
    times
}

fn report(what: &str, times: &[Duration]) {
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!("  {what:<42} p50 {:6.1} ms   p99 {:6.1} ms", at(0.5), at(0.99));
}

/// `remit serve`, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path) -> Server {
    let child = Command::new(env!("CARGO_BIN_EXE_remit"))
        .arg("serve")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("remit serve");
    let server = Server(child);
    let socket = folder.join(".remit/remit.sock");
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "remit serve does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}
