//! A server in-process for tests: tokens are names, rights are a list, the journal can fail, the gate can be a stand-in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::authn::{Audience, Authenticated, Authenticator, AuthnError, BoxFuture, Identity};
use super::authz::{Ask, Authorizer};
use super::clock::Clock;
use super::freshness::Freshness;
use super::metrics::Metrics;
use super::reviews::NoVerdict;
use super::{AppState, Gate, Lanes, Server, Sessions, Settings, Shadow, router};
use crate::api::{
    DelegationMode, EffectiveProfile, PolicyPackageSpec, Sensitivity, SessionMode, SourceFile, Tier, Tool,
};
use crate::gate::{self, AgentEntry, CheckInput, Checked, DecisionRecord, IdentityOwner, Outcome, Snapshot, Tenant};
use crate::policy::{AgentFacts, Ask as PolicyAsk, CompiledPackage, PolicyRef, Side, base_platform};
use crate::source::past::{NothingPast, PastPackages};
use crate::store::{Committed, Journal, SqliteOptions, SqliteStore, StoreError, StoreFuture};

/// Time that stands still unless moved.
pub struct FakeClock {
    base: Instant,
    millis: AtomicI64,
}

impl FakeClock {
    pub fn forward(&self, by: Duration) {
        self.millis.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self { base: Instant::now(), millis: AtomicI64::new(0) }
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        start + SignedDuration::from_millis(self.millis.load(Ordering::SeqCst))
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.millis.load(Ordering::SeqCst).try_into().unwrap())
    }
}

/// Token `acme:coder` is that ServiceAccount, `admin` is a human with an admin token, all else is garbage.
struct Names;

impl Authenticator for Names {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audience: Audience,
        _: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>> {
        Box::pin(async move {
            let username = match (token.split_once(':'), audience) {
                (Some((namespace, name)), Audience::Checks) => format!("system:serviceaccount:{namespace}:{name}"),
                (None, Audience::Admin) if token == "admin" => "alice".to_owned(),
                (None, Audience::Checks) if token == "human" => "alice".to_owned(),
                (Some(_), Audience::Admin) => return Err(AuthnError::Audience("remit-admin")),
                _ => return Err(AuthnError::Rejected),
            };
            Ok(Authenticated { identity: Arc::new(Identity { username, ..Identity::default() }), stale: false })
        })
    }
}

/// Rights as `username verb resource namespace`.
#[derive(Default)]
pub struct Rights(pub Mutex<HashSet<String>>);

impl Authorizer for Rights {
    fn allowed<'a>(&'a self, who: &'a Identity, ask: Ask) -> BoxFuture<'a, Result<bool, NoVerdict>> {
        let wanted = format!("{} {} {} {}", who.username, ask.verb, ask.resource, ask.namespace);
        Box::pin(async move { Ok(self.0.lock().unwrap().contains(&wanted)) })
    }
}

/// Keeps what is appended, and fails on demand.
#[derive(Default)]
pub struct SpyJournal {
    pub records: Mutex<Vec<DecisionRecord>>,
    pub mode: AtomicU8,
}

impl SpyJournal {
    pub const FULL: u8 = 1;
    pub const COMMIT_FAILS: u8 = 2;
    pub const HANGS: u8 = 3;

    pub fn outcomes(&self) -> Vec<(&'static str, String)> {
        self.records.lock().unwrap().iter().map(|r| (r.outcome.as_str(), r.code.clone())).collect()
    }
}

impl Journal for SpyJournal {
    fn append(&self, record: DecisionRecord) -> Result<StoreFuture<'static, Committed>, StoreError> {
        let mode = self.mode.load(Ordering::SeqCst);
        if mode == Self::FULL {
            return Err(StoreError::Full);
        }
        let mut records = self.records.lock().unwrap();
        records.push(record);
        let seq = records.len() as u64;
        Ok(match mode {
            Self::COMMIT_FAILS => Box::pin(async { Err(StoreError::Closed("disk full".into())) }),
            Self::HANGS => Box::pin(std::future::pending()),
            _ => Box::pin(async move { Ok(Committed { seq }) }),
        })
    }
}

/// Decides by the end of the resource's id: `allow`, `deny`, `ask`, `bad`, `slow`, `panic`.
pub fn by_name(input: &CheckInput<'_>) -> Checked {
    let policy = Arc::new(PolicyRef {
        id: "tenant/first/p".into(),
        reason: Some("Because.".into()),
        code: None,
        text_hash: "00".into(),
        ask: Some(PolicyAsk { group: "leads".into(), count: 2, window_seconds: None, binds: vec![] }),
        grants_tenants: false,
    });
    let id = input.request.resource.id.as_str();
    let (outcome, status, code) = match id.rsplit('/').next().unwrap() {
        "allow" => (Outcome::Allow, 200, "allowed"),
        "slow" => {
            std::thread::sleep(Duration::from_millis(600));
            (Outcome::Allow, 200, "allowed")
        }
        "ask" => (Outcome::ApprovalRequired, 200, "approval_required"),
        "bad" => (Outcome::Refused, 400, "invalid_request"),
        "panic" => panic!("on purpose"),
        _ => (Outcome::Deny, 200, "no_permit"),
    };
    let reason = if status == 400 { "resource.properties.owner: is the package's" } else { "Because." };
    let mut checked = gate::refused(input, status, code, reason.into());
    checked.decision.outcome = outcome;
    checked.record.outcome = outcome;
    checked.record.code = format!("{code}:{:?}", input.session);
    checked.record.digests = BTreeMap::from([("tenant".to_owned(), vec!["sha256:00".to_owned()])]);
    checked.decision.policies = vec![policy.clone()];
    if outcome == Outcome::ApprovalRequired {
        checked.decision.asks = vec![policy];
    }
    checked
}

pub fn agent(tenant: &str, name: &str) -> AgentEntry {
    AgentEntry {
        facts: AgentFacts {
            tenant: tenant.into(),
            name: name.into(),
            uid: format!("uid-{tenant}-{name}"),
            type_: String::new(),
            teams: vec![],
            trust: 2,
            suspended: false,
            attributes: BTreeMap::new(),
        },
        session: SessionMode::Optional,
        delegation: DelegationMode::None,
        fixed_delegator: None,
    }
}

pub fn tenant(name: &str, agents: &[&str]) -> Arc<Tenant> {
    Arc::new(Tenant {
        canary: None,
        name: name.into(),
        uid: format!("uid-{name}"),
        agents: agents.iter().map(|a| ((*a).to_owned(), Arc::new(agent(name, a)))).collect(),
        package: None,
        profile: EffectiveProfile { session_timeout_seconds: 60, retention_days: 90, observe_until: None },
    })
}

/// Tenants acme (coder, planner) and other (coder); gateways `acme:gateway` and `other:gateway`; `acme:twin` is claimed twice.
pub fn snapshot() -> Snapshot {
    let owner = |tenant: &str, name: &str| IdentityOwner::Agent { tenant: tenant.into(), name: name.into() };
    Snapshot {
        generation: 1,
        platform: None,
        tenants: HashMap::from([
            ("acme".to_owned(), tenant("acme", &["coder", "planner"])),
            ("other".to_owned(), tenant("other", &["coder"])),
        ]),
        identities: HashMap::from([
            ("system:serviceaccount:acme:coder".to_owned(), owner("acme", "coder")),
            ("system:serviceaccount:acme:planner".to_owned(), owner("acme", "planner")),
            ("system:serviceaccount:other:coder".to_owned(), owner("other", "coder")),
            ("system:serviceaccount:acme:twin".to_owned(), IdentityOwner::Conflict),
        ]),
    }
}

/// The same with the real platform package, and in acme a package that lets everybody read with `git/log`.
pub fn with_packages() -> Snapshot {
    let policy = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: "1.0.0".into(),
        tools: vec![Tool {
            name: "git/log".into(),
            tier: Tier::Read,
            sensitivity: Sensitivity::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        }],
        policies: vec![SourceFile { name: "main.cedar".into(), text: policy.into() }],
        ..PolicyPackageSpec::default()
    };
    let package = CompiledPackage::compile(&spec, "sha256:00", Side::Tenant).unwrap();
    let mut snapshot = snapshot();
    snapshot.platform = Some(Ok(vec![base_platform()]));
    let acme = tenant("acme", &["coder", "planner"]);
    snapshot.tenants.insert("acme".into(), Arc::new(Tenant { package: Some(package), ..Tenant::clone(&acme) }));
    snapshot
}

pub struct World {
    pub state: AppState,
    pub router: Router,
    pub clock: Arc<FakeClock>,
    pub journal: Arc<SpyJournal>,
    pub rights: Arc<Rights>,
    pub store: Arc<SqliteStore>,
    _dir: Arc<tempfile::TempDir>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(by_name, snapshot()).await
    }

    pub async fn with(gate: Gate, snapshot: Snapshot) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        Self::over(dir, store, gate, snapshot, Arc::new(FakeClock::default())).await
    }

    /// Another process over the same data.
    pub async fn restarted(self) -> Self {
        self.store.close().await;
        let (dir, clock, snapshot) = (self._dir.clone(), self.clock.clone(), self.state.snapshot.load_full());
        let gate = self.state.gate;
        drop(self);
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        Self::over(dir, store, gate, Snapshot::clone(&snapshot), clock).await
    }

    async fn over(
        dir: Arc<tempfile::TempDir>,
        store: Arc<SqliteStore>,
        gate: Gate,
        snapshot: Snapshot,
        clock: Arc<FakeClock>,
    ) -> Self {
        let journal = Arc::new(SpyJournal::default());
        let rights = Arc::new(Rights::default());
        for ns in ["acme", "other"] {
            rights.0.lock().unwrap().insert(format!("system:serviceaccount:{ns}:gateway check agents {ns}"));
        }
        let freshness = Arc::new(Freshness::new(clock.base));
        freshness.alive(clock.instant());
        let state = Arc::new(Server {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            freshness,
            journal: journal.clone(),
            store: store.clone(),
            replays: store.clone(),
            authenticator: Arc::new(Names),
            authorizer: rights.clone(),
            sessions: Arc::new(Sessions::load(store.as_ref()).await.unwrap()),
            metrics: Arc::new(Metrics::default()),
            clock: clock.clone(),
            redaction_key: b"key".to_vec(),
            settings: Settings { commit_timeout: Duration::from_millis(100), ..Settings::default() },
            gate,
            lanes: Lanes::default(),
            past: Arc::new(NothingPast),
            shadow: Arc::new(Shadow::off()),
            control: None,
        });
        Self { router: router(state.clone()), state, clock, journal, rights, store, _dir: dir }
    }

    /// The same server, with packages that were in force before.
    pub fn remembering(self, past: Arc<dyn PastPackages>) -> Self {
        let shadow = self.state.shadow.clone();
        self.with_parts(past, shadow)
    }

    /// The same server, comparing the packages of rollouts.
    pub fn shadowing(self, shadow: Shadow) -> Self {
        let past = self.state.past.clone();
        self.with_parts(past, Arc::new(shadow))
    }

    fn with_parts(self, past: Arc<dyn PastPackages>, shadow: Arc<Shadow>) -> Self {
        let s = &self.state;
        let state = Arc::new(Server {
            snapshot: s.snapshot.clone(),
            freshness: s.freshness.clone(),
            journal: s.journal.clone(),
            store: s.store.clone(),
            replays: s.replays.clone(),
            authenticator: s.authenticator.clone(),
            authorizer: s.authorizer.clone(),
            sessions: s.sessions.clone(),
            metrics: s.metrics.clone(),
            clock: s.clock.clone(),
            redaction_key: s.redaction_key.clone(),
            settings: s.settings.clone(),
            gate: s.gate,
            lanes: Lanes::default(),
            past,
            shadow,
            control: s.control.clone(),
        });
        Self { router: router(state.clone()), state, ..self }
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { status, headers, body, text }
    }

    pub async fn post(&self, token: &str, path: &str, body: &Value) -> Reply {
        self.send(post(token, path, body.to_string())).await
    }

    pub async fn get(&self, token: &str, path: &str) -> Reply {
        self.send(with_token(Request::get(path), token).body(Body::empty()).unwrap()).await
    }

    /// The agent asks for itself.
    pub async fn ask(&self, token: &str, agent: &str, tool: &str) -> Reply {
        self.post(token, "/access/v1/evaluation", &question(agent, tool)).await
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    /// Status, and the code wherever it stands.
    pub fn code(&self) -> (u16, &str) {
        let code = self.body.get("code").or_else(|| self.body["context"].get("code"));
        (self.status, code.and_then(Value::as_str).unwrap_or_default())
    }
}

pub fn with_token(builder: axum::http::request::Builder, token: &str) -> axum::http::request::Builder {
    builder.header("authorization", format!("Bearer {token}"))
}

pub fn post(token: &str, path: &str, body: String) -> Request<Body> {
    let builder = with_token(Request::post(path), token).header("content-type", "application/json");
    builder.body(Body::from(body)).unwrap()
}

pub fn question(agent: &str, tool: &str) -> Value {
    json!({"subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool", "id": tool}})
}
