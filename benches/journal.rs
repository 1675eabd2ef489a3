//! The journal alone: records committed per second and CPU per record, beside SQLite's own bare INSERT of the same bytes
//! in the same minute, because the disk decides most of it. `cargo bench --bench journal`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use remit::gate::{ActionRef, Caller, CheckRequest, DecisionRecord, EntityRef, Outcome, RecordedFacts};
use remit::policy::{CallerKind, PolicyRef};
use remit::store::{Journal, SqliteOptions, SqliteStore, Synchronous};
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long each line measures.
const TIME: Duration = Duration::from_secs(3);

fn record() -> DecisionRecord {
    DecisionRecord {
        id: uuid::Uuid::now_v7().to_string(),
        time: jiff::Timestamp::now(),
        tenant: "acme".into(),
        tenant_uid: "6f8c1c52-3f0e-4f0a-9d53-0d0a8f3f9a11".into(),
        request_id: Some("01JD0000000000000000000000".into()),
        caller: Caller {
            username: "system:serviceaccount:acme:coder".into(),
            kind: CallerKind::Agent,
            agent: Some(("acme".into(), "coder".into())),
            stale: false,
        },
        agent: "coder".into(),
        delegated_from: Some("user:alice".into()),
        request: CheckRequest {
            subject: EntityRef { type_: "agent".into(), id: "coder".into(), ..Default::default() },
            action: ActionRef { name: "call_tool".into(), ..Default::default() },
            resource: EntityRef { type_: "tool".into(), id: "git/push".into(), ..Default::default() },
            arguments: [("command".to_owned(), "git push origin main".into())].into_iter().collect(),
            ..Default::default()
        },
        facts: RecordedFacts::default(),
        arm: "stable".into(),
        revision: None,
        digests: [("tenant".to_owned(), vec![format!("sha256:{}", "0".repeat(64))])].into_iter().collect(),
        outcome: Outcome::Allow,
        code: "allowed".into(),
        reason: "Trusted agents write.".into(),
        policies: vec![PolicyRef {
            id: "tenant/base/writes".into(),
            reason: None,
            code: None,
            text_hash: "0".repeat(64),
            ask: None,
            grants_tenants: false,
        }],
        asks: Vec::new(),
        errors: Vec::new(),
        observed: false,
        would_be: None,
        latency_micros: 12,
    }
}

/// CPU time of this process, user and system, in microseconds.
fn cpu_micros() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<f64>().ok()).ok_or("/proc/self/stat");
    // Linux counts in hundredths of a second here.
    Ok((ticks(11)? + ticks(12)?) * 10_000.0)
}

struct Line {
    rate: f64,
    cpu: f64,
    p50: u32,
    p99: u32,
}

fn line(begun: Instant, cpu: f64, mut latencies: Vec<u32>) -> Result<Line, Failure> {
    latencies.sort_unstable();
    let n = latencies.len();
    let at = |p: f64| latencies.get(((n as f64 * p) as usize).min(n.saturating_sub(1))).copied().unwrap_or(0);
    Ok(Line {
        rate: n as f64 / begun.elapsed().as_secs_f64(),
        cpu: (cpu_micros()? - cpu) / n.max(1) as f64,
        p50: at(0.5),
        p99: at(0.99),
    })
}

/// One INSERT of the same bytes after the other, committed each: what SQLite and the disk alone do.
async fn bare(dir: &Path, synchronous: SqliteSynchronous) -> Result<Line, Failure> {
    let mut conn = SqliteConnectOptions::new()
        .filename(dir.join("bare.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS bare (seq INTEGER PRIMARY KEY, body TEXT)").execute(&mut conn).await?;
    let body = serde_json::to_string(&record())?;
    let (begun, cpu) = (Instant::now(), cpu_micros()?);
    let mut latencies = Vec::new();
    while begun.elapsed() < TIME {
        let one = Instant::now();
        sqlx::query("INSERT INTO bare (body) VALUES (?)").bind(body.clone()).execute(&mut conn).await?;
        latencies.push(u32::try_from(one.elapsed().as_micros())?);
    }
    line(begun, cpu, latencies)
}

async fn journal(dir: &Path, synchronous: Synchronous, callers: usize) -> Result<Line, Failure> {
    let store = SqliteStore::open(dir.join("data"), SqliteOptions { synchronous, ..Default::default() }).await?;
    let (begun, cpu) = (Instant::now(), cpu_micros()?);
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let store: Arc<SqliteStore> = store.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while begun.elapsed() < TIME {
                    let one = Instant::now();
                    store.append(record())?.await?;
                    latencies.push(u32::try_from(one.elapsed().as_micros())?);
                }
                Ok::<_, Failure>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let result = line(begun, cpu, latencies);
    store.close().await;
    result
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // On the disk that is measured: the system's temporary folder may be memory.
    let dir = tempfile::tempdir_in(std::env::var("REMIT_BENCH_DIR").unwrap_or_else(|_| ".".into()))?;
    println!("record: {} bytes of JSON", serde_json::to_vec(&record())?.len());
    for (name, synchronous, sqlite) in [
        ("FULL", Synchronous::Full, SqliteSynchronous::Full),
        ("NORMAL", Synchronous::Normal, SqliteSynchronous::Normal),
    ] {
        let base = bare(dir.path(), sqlite).await?;
        println!(
            "synchronous={name:<6} bare INSERT    {:>8.0}/s   1.00   {:>5.1} µs CPU   p50 {:>6} µs   p99 {:>6} µs",
            base.rate, base.cpu, base.p50, base.p99
        );
        for callers in [1, 16, 64, 256] {
            let it = journal(dir.path(), synchronous, callers).await?;
            println!(
                "synchronous={name:<6} {callers:>3} callers    {:>8.0}/s   {:>4.2}   {:>5.1} µs CPU   p50 {:>6} µs   p99 {:>6} µs",
                it.rate,
                it.rate / base.rate,
                it.cpu,
                it.p50,
                it.p99
            );
        }
    }
    Ok(())
}
