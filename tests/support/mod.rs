//! What integration tests share: a real control plane, the operator on it, and helpers to speak with both.
//!
//! A `Cluster` holds no connections: each test has a runtime of its own, and connections die with it.
// Helpers that no test needs at the moment are no reason to fail the build.
#![allow(dead_code, unused_imports)]

mod cluster;
mod control_plane;
pub mod folder;
mod http;
pub mod jwt;
pub mod mcp;
mod operator;
pub mod peers;
#[path = "../../src/store/testing/postgres.rs"]
pub mod postgres;
mod proxy;
mod replicas;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use cluster::{Cluster, PLATFORM, token_kubeconfig};
pub use control_plane::{ApiServer, ControlPlane};
pub use http::{Answer, Http, call};
pub use operator::Operator;
pub use proxy::Proxy;
pub use replicas::Replicas;

/// The control plane and operator that the tests of this run share. Each test makes namespaces of its own in it.
pub fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(ControlPlane::start(), &[]))
}

/// Root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the checkout.
pub fn file(path: &str) -> PathBuf {
    root().join(path)
}

/// Polls until `attempt` succeeds. Generous, because machines that run tests are slow and shared: 90 s.
pub async fn eventually<T, F, Fut>(what: &str, mut attempt: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(why) if begun.elapsed() > Duration::from_secs(90) => panic!("{what}: not after 90 s: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The same for code that does not run in a runtime.
pub fn eventually_blocking<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if begun.elapsed() > Duration::from_secs(90) => panic!("{what}: not after 90 s: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A random word for names.
pub fn unique() -> String {
    format!("{:08x}", RandomState::new().hash_one(Instant::now()) as u32)
}

/// A free loopback port below the range from which the kernel takes ports for outgoing connections, so that it stays free. It is
/// bound only seconds later: each port is given once in this process, and processes that run at once take from ranges of their own.
pub fn free_port() -> u16 {
    const RANGE: u16 = 200;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 60).expect("below 60") * RANGE;
    for _ in 0..RANGE {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {first} and {}", first + RANGE);
}

/// Last lines of a log, for messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| format!("{}: {e}", path.display()));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
