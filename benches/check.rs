//! Requests per second, latency and server CPU of a check with its committed record, beside a bare axum handler on the same
//! accept loop, in one run on loopback. Reports; asserts only that the answers are right.
//!
//! The server runs in a process of its own (this binary again, with `serve`), so that its CPU time is its own.

#![allow(clippy::expect_used)] // A report, not a service: what can't be measured ends it.

#[path = "support/load.rs"]
mod load;
#[path = "../src/store/testing/postgres.rs"]
mod postgres;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use remit::api::{EffectiveProfile, PolicyPackageSpec, SessionMode, SourceFile, Tier, Tool};
use remit::gate::{AgentEntry, Canary, IdentityOwner, Snapshot, Tenant};
use remit::policy::{AgentFacts, CompiledPackage, Side, base_platform};
use remit::server::{
    AccessReviewer, BoxFuture, Freshness, Lanes, Metrics, NoVerdict, ReviewedAccess, ReviewedTokens, Server, Sessions,
    Settings, Shadow, SystemClock, TokenReviewer, tls::ServingCertificate, tls::serve,
};
use remit::store::{
    Journal, PostgresOptions, PostgresStore, ReplicatedStore, ShippingOptions, SqliteOptions, SqliteStore, Store,
    Synchronous,
};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;

const TOOLS: usize = 500;
const TEAMS: usize = 20;
const USER: &str = "system:serviceaccount:acme:coder";

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Fault> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(8 << 20).build()?;
    match args.first().map(String::as_str) {
        Some("serve") => runtime.block_on(serve_one(&args[1..])),
        Some("shadow") => runtime.block_on(report_shadow(args.get(1).and_then(|a| a.parse().ok()).unwrap_or(3))),
        Some("postgres") => runtime.block_on(report_postgres(args.get(1).and_then(|a| a.parse().ok()).unwrap_or(3))),
        _ => runtime.block_on(report(args.first().and_then(|a| a.parse().ok()).unwrap_or(3))),
    }
}

/// One line of the report.
struct Line {
    rate: f64,
    p50: u32,
    p99: u32,
    cpu_micros: f64,
    rss: f64,
}

async fn report(seconds: u64) -> Result<(), Fault> {
    println!("Check with committed record (SQLite, WAL) against a bare axum handler of the same minute, on loopback,");
    println!("client on the same machine. x bare: requests per second, as a share of the bare handler's.\n");
    println!(
        "{:<34} {:>5} {:>9} {:>7} {:>8} {:>8} {:>10} {:>8}",
        "server", "conns", "req/s", "x bare", "p50 µs", "p99 µs", "CPU µs/req", "RSS MiB"
    );
    for tls in [false, true] {
        for connections in [1, 16] {
            for (commit, policies) in
                [("full", 1), ("full", 100), ("full", 1_000), ("full", 10_000), ("normal", 100), ("normal", 10_000)]
            {
                // The bare handler before and after: the machine is shared, and a minute is not like the next.
                let before = measure("bare", 0, "-", tls, connections, seconds).await?;
                let check = measure("check", policies, commit, tls, connections, seconds).await?;
                let after = measure("bare", 0, "-", tls, connections, seconds).await?;
                let bare = Line {
                    rate: (before.rate + after.rate) / 2.0,
                    cpu_micros: (before.cpu_micros + after.cpu_micros) / 2.0,
                    ..after
                };
                let scheme = if tls { "TLS" } else { "plain" };
                if policies == 1 {
                    print(&format!("bare axum, {scheme}"), connections, &bare, 1.0);
                }
                let name = format!("check, {policies} policies, {commit}, {scheme}");
                print(&name, connections, &check, check.rate / bare.rate);
            }
        }
    }
    println!(
        "\nfull: synchronous=FULL, an allow is on disk (fdatasync) before it is answered. normal: synchronous=NORMAL,"
    );
    println!("an allow is with the kernel (survives the process, not a power cut).");
    report_shadow(seconds).await?;
    report_postgres(seconds).await
}

/// What the shared store costs a check: the journal is the commit point on both, and on PostgreSQL it is shipped meanwhile.
async fn report_postgres(seconds: u64) -> Result<(), Fault> {
    println!(
        "\nA check on SQLite and on PostgreSQL (plain, 100 policies), both on this machine, which all of it shares. x SQLite:"
    );
    println!("requests per second, as a share of those with SQLite as the store.\n");
    println!(
        "{:<34} {:>5} {:>9} {:>7} {:>8} {:>8} {:>10} {:>8}",
        "store", "conns", "req/s", "x SQL", "p50 µs", "p99 µs", "CPU µs/req", "RSS MiB"
    );
    let server = tokio::task::spawn_blocking(postgres::Server::start_new).await?;
    for connections in [1, 16] {
        let sqlite = measure("check", 100, "full", false, connections, seconds).await?;
        print("SQLite, full", connections, &sqlite, 1.0);
        let journal = measure("check", 100, "normal", false, connections, seconds).await?;
        print("SQLite, normal", connections, &journal, journal.rate / sqlite.rate);
        let url = postgres::fresh_database_on(&server.url()).await;
        let shipped = measure("check", 100, &url, false, connections, seconds).await?;
        print("PostgreSQL (journal, shipped)", connections, &shipped, shipped.rate / sqlite.rate);
        let mut connection = postgres::connect(&url).await;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM records").fetch_one(&mut connection).await?;
        // Half a second of warming up was recorded too.
        let made = shipped.rate * seconds as f64;
        println!(
            "{:<34} {connections:>5} {:>9.0} records a second were in PostgreSQL when it ended",
            "",
            there as f64 / (seconds as f64 + 0.5)
        );
        if (there as f64) < made * 0.9 {
            println!("{:<34} {connections:>5} {:>9.0} records were not there yet", "", made - there as f64);
        }
    }
    Ok(())
}

/// What a rollout costs a check: none, one whose sessions are shared out, and one whose calls are all evaluated under both packages.
async fn report_shadow(seconds: u64) -> Result<(), Fault> {
    println!(
        "\nA check while a rollout runs (plain, normal): arms: sessions are shared out, nothing is compared; shadow: every call"
    );
    println!(
        "is evaluated under the other package too, after its answer. x none: requests per second, as a share of those without.\n"
    );
    println!(
        "{:<34} {:>5} {:>9} {:>7} {:>8} {:>8} {:>10} {:>8}",
        "server", "conns", "req/s", "x none", "p50 µs", "p99 µs", "CPU µs/req", "RSS MiB"
    );
    for connections in [1, 16] {
        for policies in [100, 10_000] {
            let mut rate = None;
            for kind in ["check", "arms", "shadow"] {
                let line = measure(kind, policies, "normal", false, connections, seconds).await?;
                let name = if kind == "check" { "none" } else { kind };
                let ratio = line.rate / *rate.get_or_insert(line.rate);
                print(&format!("{name}, {policies} policies"), connections, &line, ratio);
            }
        }
    }
    println!(
        "\nThe shadow has a thread of low priority: where every core answers, it compares what it can, and counts what it drops."
    );
    Ok(())
}

fn print(name: &str, connections: usize, line: &Line, ratio: f64) {
    println!(
        "{name:<34} {connections:>5} {:>9.0} {ratio:>7.2} {:>8} {:>8} {:>10.1} {:>8.0}",
        line.rate, line.p50, line.p99, line.cpu_micros, line.rss
    );
    std::io::stdout().flush().ok();
}

/// The server's process; ended when dropped.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn measure(
    kind: &str,
    policies: usize,
    commit: &str,
    tls: bool,
    connections: usize,
    seconds: u64,
) -> Result<Line, Fault> {
    let child = Command::new(std::env::current_exe()?)
        .args(["serve", kind, &policies.to_string(), commit, if tls { "tls" } else { "plain" }])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut served = Served(child);
    let mut line = String::new();
    BufReader::new(served.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let (port, certificate) = line.trim().split_once(' ').ok_or("the server did not start")?;
    let port = port.parse()?;
    let certificate =
        (certificate != "-").then(|| URL_SAFE_NO_PAD.decode(certificate).map(CertificateDer::from)).transpose()?;
    let request = Arc::new(request());
    let expect = if kind == "bare" { "ok" } else { "\"decision\":true" };
    let warm_up = Duration::from_millis(500);
    load::run(port, certificate.clone(), request.clone(), expect, connections, warm_up).await;
    let (before, _) = load::usage(served.0.id());
    let run = load::run(port, certificate, request, expect, connections, Duration::from_secs(seconds)).await;
    let (after, rss) = load::usage(served.0.id());
    Ok(Line {
        rate: run.rate(),
        p50: run.percentile(0.5),
        p99: run.percentile(0.99),
        cpu_micros: (after - before) * 1e6 / run.requests as f64,
        rss,
    })
}

fn request() -> Vec<u8> {
    let body = serde_json::json!({
        "subject": {"type": "agent", "id": "coder"},
        "action": {"name": "call_tool"},
        "resource": {"type": "tool", "id": "server/tool-7"},
        "context": {"arguments": {"path": "src/main.rs", "command": "cargo test", "lines": 40}},
    })
    .to_string();
    format!(
        "POST /tenants/acme/access/v1/evaluation HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        token(),
        body.len()
    )
    .into_bytes()
}

/// A token as the API server's look; the reviewer below answers for it.
fn token() -> String {
    let part = |v: serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let head = part(serde_json::json!({"alg": "RS256", "kid": "bench", "typ": "JWT"}));
    let claims = part(serde_json::json!({"aud": ["remit"], "exp": 4_000_000_000_i64, "iss": "bench", "sub": USER}));
    format!("{head}.{claims}.{}", URL_SAFE_NO_PAD.encode([7u8; 256]))
}

/// Stands for the API server: says at once what it would say.
struct Reviewer;

impl TokenReviewer for Reviewer {
    fn review<'a>(&'a self, _: &'a str, audience: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, NoVerdict>> {
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo { username: Some(USER.into()), ..UserInfo::default() }),
            ..TokenReviewStatus::default()
        };
        Box::pin(async move { Ok(status) })
    }
}

impl AccessReviewer for Reviewer {
    fn review(&self, _: SubjectAccessReviewSpec) -> BoxFuture<'_, Result<bool, NoVerdict>> {
        Box::pin(async { Ok(false) })
    }
}

async fn serve_one(args: &[String]) -> Result<(), Fault> {
    let [kind, policies, commit, tls] = args else { return Err("serve KIND POLICIES COMMIT TLS".into()) };
    let folder = tempfile::tempdir()?;
    let metrics = Arc::new(Metrics::default());
    let router = match kind.as_str() {
        "bare" => axum::Router::new().fallback(async |body: axum::body::Bytes| {
            std::hint::black_box(body);
            ([("content-type", "application/json")], "{\"ok\":true}")
        }),
        _ => {
            let synchronous = if commit == "full" { Synchronous::Full } else { Synchronous::Normal };
            let cap = commit.contains("://").then_some(1 << 30);
            let options = SqliteOptions { synchronous, cap, ..SqliteOptions::default() };
            let sqlite = SqliteStore::open(folder.path(), options).await?;
            let (journal, store): (Arc<dyn Journal>, Arc<dyn Store>) = if commit.contains("://") {
                let options = PostgresOptions::new(commit.parse()?, sqlite.writer());
                let shipped =
                    ReplicatedStore::start(sqlite.clone(), PostgresStore::lazy(options), ShippingOptions::default());
                (shipped.clone(), shipped)
            } else {
                (sqlite.clone(), sqlite.clone())
            };
            let clock = Arc::new(SystemClock);
            let freshness = Arc::new(Freshness::new(Instant::now()));
            freshness.alive(Instant::now());
            let shadow = match kind.as_str() {
                "shadow" => Shadow::start(sqlite.clone(), metrics.clone(), vec![7; 32])?,
                _ => Shadow::off(),
            };
            remit::server::router(Arc::new(Server {
                snapshot: Arc::new(ArcSwap::from_pointee(snapshot(policies.parse()?, kind != "check")?)),
                freshness,
                journal,
                store: store.clone(),
                replays: sqlite.clone(),
                authenticator: Arc::new(ReviewedTokens::new(Arc::new(Reviewer), None, clock.clone(), metrics.clone())),
                authorizer: Arc::new(ReviewedAccess::new(Arc::new(Reviewer), clock.clone(), metrics.clone())),
                sessions: Arc::new(Sessions::load(store.as_ref()).await?),
                metrics: metrics.clone(),
                clock,
                redaction_key: vec![7; 32],
                settings: Settings::default(),
                gate: remit::gate::check,
                lanes: Lanes::default(),
                past: Arc::new(remit::source::past::NothingPast),
                shadow: Arc::new(shadow),
                control: None,
            }))
        }
    };
    let (config, certificate) = if tls == "tls" {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let served =
            ServingCertificate::new(issued.cert.pem().as_bytes(), issued.signing_key.serialize_pem().as_bytes())?;
        (Some(served.config()?), URL_SAFE_NO_PAD.encode(issued.cert.der()))
    } else {
        (None, "-".to_owned())
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{} {certificate}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    serve(listener, config, router, Default::default(), metrics, stopped).await;
    Ok(())
}

fn snapshot(policies: usize, rollout: bool) -> Result<Snapshot, Fault> {
    let tools = (0..TOOLS).map(|i| Tool {
        name: format!("server/tool-{i}"),
        tier: Tier::Write,
        sensitivity: Default::default(),
        groups: vec![],
        description: None,
        schema_digest: None,
    });
    let mut text = String::from(
        "@id(\"own\") permit(principal in Team::\"team-0\", action == Action::\"call_tool\", resource in ToolGroup::\"write\");\n",
    );
    for i in 1..policies {
        let (tool, team) = (i % TOOLS, i / TOOLS % TEAMS + 1);
        text += &format!(
            "@id(\"p{i}\")permit(principal in Team::\"team-{team}\",action==Action::\"call_tool\",resource==Tool::\"server/tool-{tool}\");\n"
        );
    }
    let spec = PolicyPackageSpec {
        package: "bench".into(),
        version: "1.0.0".into(),
        tools: tools.collect(),
        policies: vec![SourceFile { name: "main.cedar".into(), text }],
        ..PolicyPackageSpec::default()
    };
    let package = CompiledPackage::compile(&spec, "sha256:bench", Side::Tenant).map_err(|r| format!("{r:?}"))?;
    let agent = AgentEntry {
        facts: AgentFacts {
            tenant: "acme".into(),
            name: "coder".into(),
            uid: "uid".into(),
            type_: "coder".into(),
            teams: vec!["team-0".into()],
            trust: 2,
            suspended: false,
            attributes: BTreeMap::new(),
        },
        session: SessionMode::Optional,
        delegation: Default::default(),
        fixed_delegator: None,
    };
    let candidate = PolicyPackageSpec { version: "1.1.0".into(), ..spec };
    let candidate = CompiledPackage::compile(&candidate, "sha256:other", Side::Tenant).map_err(|r| format!("{r:?}"))?;
    let canary = Canary { package: Some(candidate), revision: 2, percent: 5, shadow_percent: 100, key: [7; 32] };
    let tenant = Tenant {
        canary: rollout.then(|| Arc::new(canary)),
        name: "acme".into(),
        uid: "uid".into(),
        agents: HashMap::from([("coder".to_owned(), Arc::new(agent))]),
        package: Some(package),
        profile: EffectiveProfile::default(),
    };
    let owner = IdentityOwner::Agent { tenant: "acme".into(), name: "coder".into() };
    Ok(Snapshot {
        generation: 1,
        platform: Some(Ok(vec![base_platform()])),
        tenants: HashMap::from([("acme".to_owned(), Arc::new(tenant))]),
        identities: HashMap::from([(USER.to_owned(), owner)]),
    })
}
