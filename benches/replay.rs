//! Replay: decisions per second of one core, and memory, at 10k, 100k and 1M records; and the same with the records read from SQLite.
// A benchmark that cannot start has nothing to measure.
#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use remit::api::{
    DelegationMode, EffectiveProfile, PolicyPackageSpec, ReplaySelection, SessionMode, SourceFile, Tier, Tool,
};
use remit::gate::{
    ActionRef, AgentEntry, Caller, CheckInput, CheckRequest, DecisionRecord, EntityRef, MAX_PATTERN_COST, SessionState,
    Snapshot, Tenant, check,
};
use remit::policy::{AgentFacts, CallerKind, CompiledPackage, Side, base_platform, digest};
use remit::replay::{EffectiveSet, Recorded, Replay, Report, Task};
use remit::store::{Journal, Place, ReplayRow, Replays, SqliteOptions, SqliteStore, Synchronous};
use serde_json::json;

/// Policies of each package.
const POLICIES: usize = 60;
/// Records of one page, as in the operator.
const PAGE: u64 = 1000;
/// Records that are read from SQLite.
const STORED: u64 = 100_000;

fn main() {
    let (baseline, candidate) = (set("1.0.0", 3), set("2.0.0", 2));
    let templates = templates(&baseline);
    let bytes: usize = templates.iter().map(|r| serde_json::to_vec(r).expect("record").len()).sum();
    println!("replay, {POLICIES} policies a package, records of {} bytes, one thread:", bytes / templates.len());
    for n in [10_000, 100_000, 1_000_000] {
        let replay = Replay::new(task(&baseline, &candidate)).expect("task");
        let mut tally = replay.begin();
        let mut spent = Duration::ZERO;
        for first in (0..n).step_by(PAGE as usize) {
            let page: Vec<Recorded> = (first..first + PAGE).map(|k| Recorded::from(row(&templates, k))).collect();
            let begun = Instant::now();
            replay.page(&mut tally, &page, 1);
            spent += begun.elapsed();
        }
        said(&format!("{n} records"), n, spent, &replay.finish(&tally));
    }
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(stored(&baseline, &candidate, &templates));
}

async fn stored(baseline: &EffectiveSet, candidate: &EffectiveSet, templates: &[DecisionRecord]) {
    let folder = tempfile::tempdir().expect("folder");
    let options = SqliteOptions { synchronous: Synchronous::Normal, ..SqliteOptions::default() };
    let store = SqliteStore::open(folder.path(), options).await.expect("store");
    for first in (0..STORED).step_by(PAGE as usize) {
        let waiting: Vec<_> = (first..first + PAGE)
            .map(|k| {
                let record = serde_json::from_str(&row(templates, k).body).expect("record");
                store.append(record).expect("queue")
            })
            .collect();
        for committed in waiting {
            committed.await.expect("commit");
        }
    }
    let replay = Replay::new(task(baseline, candidate)).expect("task");
    let (mut tally, mut after) = (replay.begin(), None::<Place>);
    let begun = Instant::now();
    loop {
        let rows =
            store.replay_page("acme", &ReplaySelection::default(), &[], after.as_ref(), 1000).await.expect("page");
        let Some(last) = rows.last() else { break };
        after = Some(last.place.clone());
        let page: Vec<Recorded> = rows.into_iter().map(Recorded::from).collect();
        replay.page(&mut tally, &page, 1);
    }
    said(&format!("{STORED} records read from SQLite"), STORED, begun.elapsed(), &replay.finish(&tally));
    store.close().await;
}

fn said(what: &str, n: u64, spent: Duration, report: &Report) {
    assert_eq!(report.counts.replayed, i64::try_from(n).expect("count"), "{:?}", report.counts);
    assert!(report.counts.critical > 0, "the candidate differs");
    let rate = n as f64 / spent.as_secs_f64();
    println!("  {what:<34} {rate:9.0} decisions/s   peak memory {:6.1} MiB", peak());
}

/// Most memory that this process has had, MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn task(baseline: &EffectiveSet, candidate: &EffectiveSet) -> Task {
    Task {
        tenant: "acme".into(),
        tenant_uid: Some("uid-acme".into()),
        baseline: baseline.clone(),
        candidate: candidate.clone(),
        invariants: Vec::new(),
        selection: ReplaySelection::default(),
    }
}

/// Rules for groups of tools and for tools of their own, with conditions on trust, arguments and teams.
fn set(version: &str, trust: i64) -> EffectiveSet {
    let tiers = [Tier::Read, Tier::Write, Tier::Admin];
    let tool = |n: usize| Tool {
        name: format!("server/tool-{n}"),
        tier: tiers[n % 3],
        sensitivity: Default::default(),
        groups: Vec::new(),
        description: None,
        schema_digest: None,
    };
    let mut text = format!(
        r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
        @id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when {{ principal.trust >= {trust} }};
        @id("no-force") forbid(principal, action == Action::"call_tool", resource)
        when {{ context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" }};
        "#
    );
    for n in 0..POLICIES - 3 {
        text.push_str(&format!(
            "@id(\"own-{n}\") permit(principal in Team::\"team-{}\", action == Action::\"call_tool\", resource == Tool::\"server/tool-{}\") when {{ principal.trust >= 2 }};\n",
            n % 7, n % 20
        ));
    }
    let spec = PolicyPackageSpec {
        package: "bench".into(),
        version: version.into(),
        tools: (0..20).map(tool).collect(),
        policies: vec![SourceFile { name: "main.cedar".into(), text }],
        ..PolicyPackageSpec::default()
    };
    let package = CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant).expect("package");
    EffectiveSet { platform: vec![base_platform()], package }
}

/// Decisions of eight agents on every tool, as a server records them.
fn templates(set: &EffectiveSet) -> Vec<DecisionRecord> {
    let agent = |n: i64| AgentEntry {
        facts: AgentFacts {
            tenant: "acme".into(),
            name: format!("agent-{n}"),
            uid: format!("uid-{n}"),
            type_: "coder".into(),
            teams: vec![format!("team-{n}")],
            trust: n % 4 + 1,
            suspended: false,
            attributes: BTreeMap::new(),
        },
        session: SessionMode::Optional,
        delegation: DelegationMode::None,
        fixed_delegator: None,
    };
    let tenant = Tenant {
        name: "acme".into(),
        uid: "uid-acme".into(),
        agents: (0..8).map(|n| (format!("agent-{n}"), Arc::new(agent(n)))).collect(),
        package: Some(set.package.clone()),
        canary: None,
        profile: EffectiveProfile::default(),
    };
    let snapshot = Snapshot {
        platform: Some(Ok(set.platform.clone())),
        tenants: HashMap::from([("acme".to_owned(), Arc::new(tenant))]),
        ..Snapshot::default()
    };
    let caller = Caller {
        username: "system:serviceaccount:acme:gateway".into(),
        kind: CallerKind::Gateway,
        agent: None,
        stale: false,
    };
    let calls = (0..8).flat_map(|a| (0..20).map(move |t| (a, t)));
    let record = |(a, t): (usize, usize)| {
        let arguments = json!({"command": format!("git push origin feature-{t}"), "branch": "main", "options": {"depth": 3, "quiet": true}});
        let request = CheckRequest {
            subject: EntityRef { type_: "agent".into(), id: format!("agent-{a}"), ..Default::default() },
            action: ActionRef { name: "call_tool".into(), ..Default::default() },
            resource: EntityRef { type_: "tool".into(), id: format!("server/tool-{t}"), ..Default::default() },
            arguments: arguments.as_object().cloned().unwrap_or_default(),
            session: Some("0192f0c1-0000-7000-8000-000000000001".into()),
            ..Default::default()
        };
        check(&CheckInput {
            snapshot: &snapshot,
            tenant: "acme",
            caller: &caller,
            request: &request,
            session: SessionState::Live,
            now: Timestamp::from_second(1_790_000_000).expect("time"),
            id: "01900000-0000-7000-8000-000000000000",
            request_id: None,
            redaction_key: b"key",
            pattern_budget: MAX_PATTERN_COST,
        })
        .record
    };
    calls.map(record).collect()
}

/// Record number `k`, as a store gives it.
fn row(templates: &[DecisionRecord], k: u64) -> ReplayRow {
    let mut record = templates[usize::try_from(k).expect("number") % templates.len()].clone();
    record.id = format!("01900000-0000-7000-8000-{k:012x}");
    record.time = Timestamp::from_second(1_790_000_000 + i64::try_from(k / 10).expect("number")).expect("time");
    ReplayRow {
        place: Place::of(&record),
        hash: format!("{k:064x}"),
        body: serde_json::to_string(&record).expect("record"),
    }
}
