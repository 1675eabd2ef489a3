//! What `remit mcp-proxy` adds to a call of a tool: latencies of one client that calls one tool again and again, directly and through
//! the proxy with an embedded policy folder, in one run. Reports; asserts only that the answers are right.
//!
//! The server is a small one in Python (`tests/peers/fake_server.py`), whose own time is in every line but the denied one.

#![allow(clippy::expect_used)] // A report, not a service: what can't be measured ends it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Calls before anything is measured.
const WARM: usize = 200;

struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    line: String,
}

impl Client {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (to, from) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
        let mut client = Self { child, to, from: BufReader::new(from), line: String::new() };
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}});
        client.ask(&json!({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params}).to_string());
        client.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        client
    }

    fn send(&mut self, message: &str) {
        self.to.write_all(format!("{message}\n").as_bytes()).expect("it reads");
        self.to.flush().expect("it reads");
    }

    fn ask(&mut self, message: &str) -> &str {
        self.send(message);
        self.line.clear();
        self.from.read_line(&mut self.line).expect("it answers");
        &self.line
    }

    /// Latencies of so many calls, sorted.
    fn calls(&mut self, tool: &str, calls: usize, denied: bool) -> Vec<Duration> {
        let mut out = Vec::with_capacity(calls);
        for n in 0..calls + WARM {
            let params = json!({"name": tool, "arguments": {"path": "docs/notes.md", "n": n}});
            let call = json!({"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": params}).to_string();
            let begun = Instant::now();
            let answer = self.ask(&call);
            let took = begun.elapsed();
            let answer: Value = serde_json::from_str(answer).expect("JSON");
            assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(n), &json!(denied)), "{answer}");
            if n >= WARM {
                out.push(took);
            }
        }
        out.sort_unstable();
        out
    }

    fn end(self) {
        let Self { mut child, to, .. } = self;
        drop(to);
        child.wait().expect("it ends");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let calls: usize = args.first().and_then(|a| a.parse().ok()).unwrap_or(5_000);
    let dir = tempfile::TempDir::new().expect("a directory");
    let agents = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata:\n  name: coder\nspec:\n  trustLevel: 2\n";
    let package =
        "package: bench\nversion: 1.0.0\ntools:\n  - {name: fs/read, tier: read}\n  - {name: fs/write, tier: write}\n";
    let cedar =
        "@id(\"reads\") permit (principal, action == Action::\"call_tool\", resource in ToolGroup::\"read\");\n";
    for (name, text) in [("agents.yaml", agents), ("package.yaml", package), ("main.cedar", cedar)] {
        std::fs::write(dir.path().join(name), text).expect(name);
    }
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/fake_server.py");
    let direct = || {
        let mut command = Command::new("python3");
        command.arg(&server);
        command
    };
    let proxied = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.arg("mcp-proxy").arg("--policy").arg(dir.path()).args(["--server", "fs", "--", "python3"]).arg(&server);
        command
    };
    println!(
        "{calls} calls, one at a time; every allow waits for its committed record (SQLite, WAL, synchronous=FULL).\n"
    );
    println!("{:<28} {:>9} {:>9} {:>9}", "call", "p50 µs", "p99 µs", "max µs");
    let measure = |name: &str, command: Command, tool: &str, denied: bool| {
        let mut client = Client::start(command);
        let took = client.calls(tool, calls, denied);
        client.end();
        let at = |share: f64| took[((took.len() as f64 * share) as usize).min(took.len() - 1)].as_micros();
        println!("{name:<28} {:>9} {:>9} {:>9}", at(0.5), at(0.99), at(1.0));
        (at(0.5), at(0.99))
    };
    // Direct before and after: the machine is shared, and a minute is not like the next.
    let before = measure("direct", direct(), "read", false);
    let allowed = measure("through the proxy, allowed", proxied(), "read", false);
    measure("through the proxy, denied", proxied(), "write", true);
    let after = measure("direct", direct(), "read", false);
    let over = |through: u128, a: u128, b: u128| {
        i128::try_from(through).unwrap_or(0) - i128::try_from((a + b) / 2).unwrap_or(0)
    };
    println!(
        "\noverhead: p50 {} µs, p99 {} µs",
        over(allowed.0, before.0, after.0),
        over(allowed.1, before.1, after.1)
    );
}
