//! Rollouts over the router: sessions that Remit issued, records of both arms, and the shadow that holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::api::{PolicyPackageSpec, Sensitivity, SourceFile, Tool};
use crate::gate::{self, Canary, Tenant};
use crate::lifecycle::drift::Cause;
use crate::lifecycle::evidence::Window;
use crate::policy::{CompiledPackage, Side as PackageSide};
use crate::server::testing::{World, question, tenant, with_packages};
use crate::store::{SessionRow, Store, StoreError, StoreFuture};

const REVISION: i64 = 4;
const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
const ALL: &str = r#"@id("all") permit(principal, action == Action::"call_tool", resource);"#;

fn package(version: &str, policy: &str) -> Arc<CompiledPackage> {
    let tool = |name: &str, tier| Tool {
        name: name.into(),
        tier,
        sensitivity: Sensitivity::default(),
        groups: vec![],
        description: None,
        schema_digest: None,
    };
    let mut tools = vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write)];
    if version == "2.0.0" {
        tools.push(tool("git/new", Tier::Write));
    }
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: version.into(),
        tools,
        policies: vec![SourceFile { name: "main.cedar".into(), text: policy.into() }],
        ..PolicyPackageSpec::default()
    };
    CompiledPackage::compile(&spec, &format!("sha256:{version}"), PackageSide::Tenant).unwrap()
}

/// acme with coder and planner: only reads are permitted in force, everything under the candidate.
fn under_way(percent: u8, shadow_percent: u8) -> Snapshot {
    let mut snapshot = with_packages();
    let canary = Canary {
        package: Some(package("2.0.0", ALL)),
        revision: REVISION,
        percent,
        shadow_percent,
        key: gate::arms_key(b"the same on every replica"),
    };
    let names: Vec<String> = (0..10).map(|n| format!("agent{n}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.extend(["coder", "planner"]);
    let acme = Tenant {
        package: Some(package("1.0.0", READS)),
        canary: Some(Arc::new(canary)),
        ..Tenant::clone(&tenant("acme", &names))
    };
    snapshot.tenants.insert("acme".into(), Arc::new(acme));
    snapshot
}

fn in_session(agent: &str, tool: &str, session: &str) -> Value {
    let mut question = question(agent, tool);
    question["context"] = json!({"session": session});
    question
}

async fn shadowing(snapshot: Snapshot, under: Under) -> World {
    let world = World::with(gate::check, snapshot).await;
    let shadow = Shadow::start_with(world.store.clone(), world.state.metrics.clone(), b"key".to_vec(), under).unwrap();
    world.shadowing(shadow)
}

async fn window(world: &World) -> Window {
    let epoch = Timestamp::UNIX_EPOCH;
    world.store.window("uid-acme", REVISION, epoch, epoch).await.unwrap()
}

async fn open(world: &World, agent: &str) -> String {
    let opened = world.post(&format!("acme:{agent}"), "/sessions", &json!({})).await;
    opened.body["session"].as_str().unwrap().to_owned()
}

/// Two replicas over the same status and the same sessions, ten thousand of them.
#[tokio::test]
async fn two_replicas_answer_each_session_under_the_same_package() {
    let (one, two) =
        (World::with(gate::check, under_way(25, 0)).await, World::with(gate::check, under_way(25, 0)).await);
    let now = one.state.clock.now();
    let rows: Vec<SessionRow> = (0..10_000)
        .map(|n| SessionRow {
            id: format!("{:032x}", u128::from(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)),
            tenant: "acme".into(),
            tenant_uid: "uid-acme".into(),
            agent: format!("agent{}", n % 10),
            agent_uid: format!("uid-acme-agent{}", n % 10),
            started: now,
            last_seen: now,
            ended: None,
        })
        .collect();
    for world in [&one, &two] {
        world.store.save_sessions(&rows).await.unwrap();
    }
    let (one, two) = (one.restarted().await, two.restarted().await);
    for row in &rows {
        let asked = in_session(&row.agent, "git/push", &row.id);
        for world in [&one, &two] {
            world.post("acme:gateway", "/tenants/acme/access/v1/evaluation", &asked).await;
        }
    }
    let arms = |world: &World| -> Vec<(Option<String>, String, Option<i64>, &'static str)> {
        let records = world.journal.records.lock().unwrap();
        records.iter().map(|r| (r.request.session.clone(), r.arm.clone(), r.revision, r.outcome.as_str())).collect()
    };
    let (first, second) = (arms(&one), arms(&two));
    assert_eq!(first.len(), 10_000);
    assert!(first == second, "a session was answered under two packages");
    let canary = first.iter().filter(|(_, arm, _, _)| arm == "canary").count();
    assert!((2_300..2_700).contains(&canary), "{canary} of 10000 at 25 %");
    for (_, arm, revision, outcome) in &first {
        assert_eq!((*outcome, *revision), (if arm == "canary" { "allow" } else { "deny" }, Some(REVISION)));
    }
}

/// An agent that makes up ids of sessions gets no other arm by it, and no answer; and of those that Remit issues it chooses none.
#[tokio::test]
async fn arm_shopping_by_session_ids() {
    let world = World::with(gate::check, under_way(50, 0)).await;
    let own = world.ask("acme:coder", "coder", "git/push").await;
    let mut said = BTreeSet::new();
    for n in 0..200 {
        let made_up = world
            .post("acme:coder", "/access/v1/evaluation", &in_session("coder", "git/push", &format!("mine-{n}")))
            .await;
        said.insert(made_up.code().1.to_owned());
        let chosen = world.post("acme:coder", "/sessions", &json!({"session": format!("mine-{n}")})).await;
        assert_eq!(chosen.status, 400, "{}", chosen.text);
    }
    assert_eq!(said, BTreeSet::from(["session_unknown".to_owned()]));
    // Nor another agent's, which may well be on the other arm.
    for _ in 0..20 {
        let others = open(&world, "planner").await;
        let borrowed =
            world.post("acme:coder", "/access/v1/evaluation", &in_session("coder", "git/push", &others)).await;
        assert_eq!(borrowed.code().1, "session_unknown");
    }
    {
        let records = world.journal.records.lock().unwrap();
        let arms: BTreeSet<&str> = records.iter().map(|r| r.arm.as_str()).collect();
        assert_eq!(arms.len(), 1, "always the agent's own");
        assert!(records[1..].iter().all(|r| r.revision.is_none()), "and it counts for nothing");
    }
    // What is answered has no word of arm, revision or package.
    let session = open(&world, "coder").await;
    let search = json!({"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
        "resource": {"type": "tool"}, "context": {"session": session}});
    let answers = [
        own,
        world.post("acme:coder", "/access/v1/evaluation", &in_session("coder", "git/push", &session)).await,
        world.post("acme:coder", "/access/v1/evaluation", &in_session("coder", "git/none", &session)).await,
        world.post("acme:coder", "/access/v1/search/resource", &search).await,
    ];
    for answer in answers {
        for word in ["canary", "stable", "arm", "revision", "candidate", "1.0.0", "2.0.0", "sha256"] {
            assert!(!answer.text.contains(word), "{word}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_search_lists_what_a_check_of_the_same_session_allows() {
    let world = World::with(gate::check, under_way(50, 0)).await;
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let session = open(&world, "coder").await;
        let search = json!({"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
            "resource": {"type": "tool"}, "context": {"session": session}});
        let found = world.post("acme:coder", "/access/v1/search/resource", &search).await;
        // One tool that both packages list, and one that only the candidate does.
        for tool in ["git/push", "git/new"] {
            let listed = found.body["results"].as_array().unwrap().iter().any(|r| r["id"] == tool);
            let checked = world.post("acme:coder", "/access/v1/evaluation", &in_session("coder", tool, &session)).await;
            assert_eq!(json!(listed), checked.body["decision"], "{tool}");
            seen.insert(listed);
        }
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn both_arms_are_compared_from_stable_to_candidate() {
    let world = shadowing(under_way(50, 100), check_under).await;
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..40 {
        let session = open(&world, "coder").await;
        for tool in ["git/push", "git/log"] {
            world.post("acme:coder", "/access/v1/evaluation", &in_session("coder", tool, &session)).await;
        }
    }
    for record in world.journal.records.lock().unwrap().iter() {
        *answered.entry(record.arm.clone()).or_default() += 1;
    }
    assert_eq!(answered.len(), 2, "both arms answered: {answered:?}");
    world.state.shadow.close().await;
    let seen = window(&world).await;
    let coder = &seen.shadow[0];
    assert_eq!((coder.agent.as_str(), coder.compared), ("coder", 80));
    // Whichever answered, a write was denied in force, and is allowed under the candidate; a read is allowed by another policy.
    assert_eq!((coder.critical, coder.low, coder.high, coder.medium), (40, 40, 0, 0));
    assert_eq!((coder.expansions, coder.restrictions), (40, 0));
    let worst = &seen.worst[0];
    assert_eq!((worst.severity, worst.cause), (Severity::Critical, Cause::AccessExpanded));
    assert_eq!(worst.candidate_policies, ["tenant/first/all"]);
    assert_eq!(
        worst.sentence,
        "coder and call_tool git/push: denied (no_permit) in force, allowed by tenant/first/all under the candidate."
    );
    assert!(world.journal.records.lock().unwrap().iter().any(|r| r.id == worst.decision));
    let text = world.state.metrics.text().unwrap();
    assert!(text.contains("remit_shadow_compared_total{tenant=\"acme\"} 80"), "{text}");
    assert!(text.contains("remit_shadow_drift_total{tenant=\"acme\",severity=\"critical\"} 40"), "{text}");
    assert!(text.contains("remit_rollout_decisions_total{tenant=\"acme\",arm=\"canary\",outcome=\"allow\"}"), "{text}");
    world.state.metrics.keep_tenants(|_| false);
    assert!(!world.state.metrics.text().unwrap().contains("acme"), "a tenant that is gone is no label");
}

#[tokio::test]
async fn a_share_of_the_sessions_is_compared_and_without_one_none() {
    for (share, expected) in [(0, 0..1), (50, 60..140)] {
        let world = shadowing(under_way(5, share), check_under).await;
        for n in 0..200 {
            let asked = json!({"subject": {"type": "user", "id": format!("u{n}")}, "action": {"name": "call_tool"},
                "resource": {"type": "tool", "id": "git/log"}});
            world.post("acme:gateway", "/tenants/acme/access/v1/evaluation", &asked).await;
        }
        world.state.shadow.close().await;
        let compared: u64 = window(&world).await.shadow.iter().map(|a| a.compared).sum();
        assert!(expected.contains(&compared), "{compared} of 200 at {share} %");
    }
}

static HELD: AtomicBool = AtomicBool::new(true);

/// An evaluation that takes for ever, as far as its callers are concerned.
fn held(input: &CheckInput<'_>, arm: Arm) -> Checked {
    while HELD.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    check_under(input, arm)
}

/// However long the shadow takes, answers don't wait for it; what it can't take is dropped, counted, and bounded in number.
#[tokio::test]
async fn the_shadow_holds_up_no_answer_and_what_does_not_fit_is_counted() {
    let world = shadowing(under_way(5, 100), held).await;
    let total = WAITING_OF_ONE + 201;
    let begun = Instant::now();
    for _ in 0..total {
        let answered = world.ask("acme:coder", "coder", "git/log").await;
        assert_eq!(answered.code(), (200, "allowed"));
    }
    assert!(
        HELD.load(Ordering::SeqCst),
        "all were answered while the first was still being compared, in {:?}",
        begun.elapsed()
    );
    // One is being worked on, at most.
    let text = world.state.metrics.text().unwrap();
    let dropped = |n: usize| text.contains(&format!("remit_shadow_dropped_total{{reason=\"queue_full\"}} {n}"));
    assert!(dropped(200) || dropped(201), "{text}");
    HELD.store(false, Ordering::SeqCst);
    world.state.shadow.close().await;
    let compared: u64 = window(&world).await.shadow.iter().map(|a| a.compared).sum();
    assert!([WAITING_OF_ONE as u64, WAITING_OF_ONE as u64 + 1].contains(&compared), "{compared}");
}

fn panics_on_push(input: &CheckInput<'_>, arm: Arm) -> Checked {
    assert_ne!(input.request.resource.id, "git/push", "on purpose");
    check_under(input, arm)
}

#[tokio::test]
async fn a_panic_costs_one_comparison() {
    let world = shadowing(under_way(5, 100), panics_on_push).await;
    for tool in ["git/push", "git/log", "git/push", "git/log"] {
        assert_eq!(world.ask("acme:coder", "coder", tool).await.status, 200);
    }
    world.state.shadow.close().await;
    assert_eq!(window(&world).await.shadow[0].compared, 2);
    let text = world.state.metrics.text().unwrap();
    assert!(text.contains("remit_shadow_dropped_total{reason=\"panicked\"} 2"), "{text}");
}

/// A store that takes nothing.
struct Gone;

impl Arms for Gone {
    fn window<'a>(&'a self, _: &'a str, _: i64, _: Timestamp, _: Timestamp) -> StoreFuture<'a, Window> {
        Box::pin(async { Err(StoreError::Closed("gone".into())) })
    }

    fn save_shadows<'a>(&'a self, _: &'a [ShadowRow]) -> StoreFuture<'a, ()> {
        Box::pin(async { Err(StoreError::Closed("gone".into())) })
    }
}

#[tokio::test]
async fn what_the_store_does_not_take_is_counted_and_not_tried_again() {
    let world = World::with(gate::check, under_way(5, 100)).await;
    let shadow = Shadow::start_with(Arc::new(Gone), world.state.metrics.clone(), b"key".to_vec(), check_under).unwrap();
    let world = world.shadowing(shadow);
    for _ in 0..3 {
        world.ask("acme:coder", "coder", "git/log").await;
    }
    world.state.shadow.close().await;
    let text = world.state.metrics.text().unwrap();
    assert!(text.contains("remit_shadow_dropped_total{reason=\"store_failed\"} 3"), "{text}");
    assert!(!text.contains("remit_shadow_compared_total{"), "{text}");
}

/// Where one side can't be loaded there is no comparison: it would say that the candidate denies everything, or permits it.
#[tokio::test]
async fn a_side_that_cannot_be_loaded_is_no_drift() {
    let mut snapshot = under_way(50, 100);
    let acme = snapshot.tenants.get_mut("acme").unwrap();
    let canary = Canary { package: None, ..Canary::clone(acme.canary.as_ref().unwrap()) };
    *acme = Arc::new(Tenant { canary: Some(Arc::new(canary)), ..Tenant::clone(acme) });
    let world = shadowing(snapshot, check_under).await;
    let mut codes = BTreeSet::new();
    for _ in 0..40 {
        let session = open(&world, "coder").await;
        let asked = in_session("coder", "git/log", &session);
        codes.insert(world.post("acme:coder", "/access/v1/evaluation", &asked).await.code().1.to_owned());
    }
    assert_eq!(codes, BTreeSet::from(["allowed".to_owned(), "no_package".to_owned()]));
    world.state.shadow.close().await;
    assert!(window(&world).await.shadow.is_empty());
}

/// One tenant's flood is worked off beside the others', not before them.
#[test]
fn each_tenant_has_its_turn() {
    let queue = Queue::default();
    let snapshot = Arc::new(under_way(5, 100));
    let job = |tenant: &str, id: &str| Job {
        snapshot: snapshot.clone(),
        call: Arc::new(Call::of_tests(tenant, snapshot.clone())),
        request: CheckRequest::default(),
        session: SessionState::NotNamed,
        now: Timestamp::UNIX_EPOCH,
        id: id.into(),
        arm: Arm::Stable,
        revision: 1,
        answered: gate::check(&CheckInput {
            snapshot: &snapshot,
            tenant,
            caller: &Call::of_tests(tenant, snapshot.clone()).caller,
            request: &CheckRequest::default(),
            session: SessionState::NotNamed,
            now: Timestamp::UNIX_EPOCH,
            id,
            request_id: None,
            redaction_key: b"",
            pattern_budget: MAX_PATTERN_COST,
        })
        .decision,
    };
    for n in 0..3 {
        assert!(queue.push(job("noisy", &format!("n{n}"))));
    }
    assert!(queue.push(job("quiet", "q0")));
    queue.close();
    assert!(!queue.push(job("quiet", "late")), "nothing more is taken");
    let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|job| job.id).collect();
    assert_eq!(order, ["n0", "q0", "n1", "n2"]);
}
