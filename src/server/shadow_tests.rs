//! Rollouts over the router: sessions that Remit issued, records of both arms, and the shadow that holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::queue::{WAITING_OF_AGENT, WAITING_OF_TENANT};
use super::*;
use crate::api::{PolicyPackageSpec, Sensitivity, SourceFile, Tool};
use crate::gate::{self, Canary, Tenant};
use crate::lifecycle::drift::Cause;
use crate::lifecycle::evidence::Window;
use crate::policy::{CompiledPackage, Side as PackageSide};
use crate::server::testing::{World, question, tenant, with_packages};
use crate::store::{SessionRow, ShadowBatch, Store, StoreError, StoreFuture};

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
    world.store.window("uid-acme", REVISION, Timestamp::UNIX_EPOCH, 0).await.unwrap()
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

/// Of each test that needs it one.
static HELD: [AtomicBool; 3] = [const { AtomicBool::new(true) }; 3];

/// An evaluation that takes for ever, as far as its callers are concerned.
fn held<const TEST: usize>(input: &CheckInput<'_>, arm: Arm) -> Checked {
    while HELD[TEST].load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    check_under(input, arm)
}

/// However long the shadow takes, answers don't wait for it; what it can't take is dropped, counted, and bounded in number.
#[tokio::test]
async fn the_shadow_holds_up_no_answer_and_what_does_not_fit_is_counted() {
    let world = shadowing(under_way(5, 100), held::<0>).await;
    let total = WAITING_OF_AGENT + 201;
    let begun = Instant::now();
    for _ in 0..total {
        let answered = world.ask("acme:coder", "coder", "git/log").await;
        assert_eq!(answered.code(), (200, "allowed"));
    }
    assert!(
        HELD[0].load(Ordering::SeqCst),
        "all were answered while the first was still being compared, in {:?}",
        begun.elapsed()
    );
    // One is being worked on, at most.
    let text = world.state.metrics.text().unwrap();
    let dropped = |n: usize| text.contains(&format!("remit_shadow_dropped_total{{reason=\"queue_full\"}} {n}"));
    assert!(dropped(200) || dropped(201), "{text}");
    HELD[0].store(false, Ordering::SeqCst);
    world.state.shadow.close().await;
    let seen = window(&world).await;
    let compared: u64 = seen.shadow.iter().map(|a| a.compared).sum();
    assert_eq!(compared + seen.dropped, total as u64, "what was not compared is known where the rollout is judged");
    assert!([WAITING_OF_AGENT as u64, WAITING_OF_AGENT as u64 + 1].contains(&compared), "{compared}");
}

/// Answers, whatever the answer is.
async fn by_gateway(world: &World, tenant: &str, question: &Value) {
    let path = format!("/tenants/{tenant}/access/v1/evaluation");
    let answered = world.post(&format!("{tenant}:gateway"), &path, question).await;
    assert_eq!(answered.status, 200, "{}", answered.text);
}

/// Six agents flood, two of them alone with more than there is room for. What a seventh asks once is compared, and is not far behind.
#[tokio::test]
async fn a_flooding_agent_keeps_no_other_agents_call_out() {
    let world = shadowing(under_way(5, 100), held::<1>).await;
    let mut total = 0;
    for (agent, calls) in [("agent0", WAITING_OF_TENANT + 10), ("agent1", WAITING_OF_TENANT + 10)] {
        for _ in 0..calls {
            by_gateway(&world, "acme", &question(agent, "git/log")).await;
            total += 1;
        }
    }
    for n in 2..6 {
        for _ in 0..WAITING_OF_AGENT {
            by_gateway(&world, "acme", &question(&format!("agent{n}"), "git/log")).await;
            total += 1;
        }
    }
    world.ask("acme:coder", "coder", "git/push").await;
    HELD[1].store(false, Ordering::SeqCst);
    world.state.shadow.close().await;
    let seen = window(&world).await;
    let coder = seen.shadow.iter().find(|a| a.agent == "coder").expect("the one call of coder is compared");
    assert_eq!((coder.compared, coder.critical), (1, 1));
    let compared: u64 = seen.shadow.iter().map(|a| a.compared).sum();
    assert_eq!(compared + seen.dropped, total + 1);
    assert!(compared <= WAITING_OF_TENANT as u64 + 1, "{compared}");
    for agent in &seen.shadow {
        assert!(agent.compared <= WAITING_OF_AGENT as u64 + 1, "{agent:?}");
    }
}

/// A tenant that fills all the memory there is for calls that wait, but for its share: others have theirs.
#[tokio::test]
async fn a_flooding_tenant_keeps_no_other_tenants_call_out() {
    let mut snapshot = under_way(5, 100);
    let acme = snapshot.tenants["acme"].clone();
    let other = snapshot.tenants.get_mut("other").unwrap();
    let packages = Tenant { canary: acme.canary.clone(), package: acme.package.clone(), ..Tenant::clone(other) };
    *other = Arc::new(packages);
    let world = shadowing(snapshot, held::<2>).await;
    let mut large = question("x", "git/log");
    large["context"]["arguments"]["text"] = "x".repeat(60 * 1024).into();
    for n in 0..300 {
        let agent = format!("agent{}", n % 10);
        large["subject"]["id"] = agent.clone().into();
        by_gateway(&world, "acme", &large).await;
    }
    by_gateway(&world, "other", &question("coder", "git/push")).await;
    HELD[2].store(false, Ordering::SeqCst);
    world.state.shadow.close().await;
    let other = world.store.window("uid-other", REVISION, Timestamp::UNIX_EPOCH, 0).await.unwrap();
    assert_eq!((other.shadow[0].compared, other.shadow[0].critical, other.dropped), (1, 1, 0));
    let acme = window(&world).await;
    let compared: u64 = acme.shadow.iter().map(|a| a.compared).sum();
    assert_eq!(compared + acme.dropped, 300);
    assert!((60..=70).contains(&compared), "{compared} of 60 KiB each are a quarter of all");
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
    let seen = window(&world).await;
    assert_eq!((seen.shadow[0].compared, seen.dropped), (2, 2));
    let text = world.state.metrics.text().unwrap();
    assert!(text.contains("remit_shadow_dropped_total{reason=\"panicked\"} 2"), "{text}");
}

/// A store that takes nothing, so many times; and then what another one takes.
struct Away {
    tries: AtomicU64,
    then: Arc<dyn Arms>,
}

impl Arms for Away {
    fn window<'a>(&'a self, _: &'a str, _: i64, _: Timestamp, _: u64) -> StoreFuture<'a, Window> {
        Box::pin(async { Err(StoreError::Closed("gone".into())) })
    }

    fn stage<'a>(&'a self, _: &'a str, _: i64, _: Timestamp, _: u64) -> StoreFuture<'a, Window> {
        Box::pin(async { Err(StoreError::Closed("gone".into())) })
    }

    fn save_shadows<'a>(&'a self, batch: &'a ShadowBatch) -> StoreFuture<'a, ()> {
        let left = self.tries.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            Ok(_) => Box::pin(async { Err(StoreError::Closed("gone".into())) }),
            Err(_) => self.then.save_shadows(batch),
        }
    }
}

async fn with_store_away(tries: u64) -> World {
    let world = World::with(gate::check, under_way(5, 100)).await;
    let away = Away { tries: AtomicU64::new(tries), then: world.store.clone() };
    let shadow = Shadow::start_with(Arc::new(away), world.state.metrics.clone(), b"key".to_vec(), check_under).unwrap();
    world.shadowing(shadow)
}

#[tokio::test]
async fn what_the_store_does_not_take_at_once_is_handed_in_again() {
    let world = with_store_away(2).await;
    for tool in ["git/push", "git/push", "git/log"] {
        world.ask("acme:coder", "coder", tool).await;
    }
    world.state.shadow.close().await;
    let seen = window(&world).await;
    assert_eq!((seen.shadow[0].compared, seen.shadow[0].critical, seen.dropped), (3, 2, 0));
    let text = world.state.metrics.text().unwrap();
    assert!(!text.contains("remit_shadow_dropped_total{"), "{text}");
}

#[tokio::test]
async fn what_the_store_never_takes_is_counted() {
    // Until what was compared is given up at stop; how many those were is taken then.
    let world = with_store_away(4).await;
    for _ in 0..3 {
        world.ask("acme:coder", "coder", "git/log").await;
    }
    world.state.shadow.close().await;
    let seen = window(&world).await;
    assert_eq!((seen.shadow.len(), seen.dropped), (0, 3));
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
    let by = |agent: &str| CheckRequest {
        subject: EntityRef { type_: "agent".into(), id: agent.into(), ..EntityRef::default() },
        ..CheckRequest::default()
    };
    let job = |tenant: &str, id: &str| Job {
        snapshot: snapshot.clone(),
        call: Arc::new(Call::of_tests(tenant, snapshot.clone())),
        request: by(&id[..1]),
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
        assert!(queue.push(job("noisy", &format!("n{n}"))).is_empty());
    }
    assert!(queue.push(job("quiet", "q0")).is_empty());
    assert!(queue.push(job("noisy", "m0")).is_empty(), "another agent of that tenant");
    queue.close();
    assert_eq!(queue.push(job("quiet", "late")).len(), 1, "nothing more is taken");
    let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|job| job.id).collect();
    assert_eq!(order, ["n0", "q0", "m0", "n1", "n2"]);
}

/// A policy of the platform that errs whatever the candidate is like is not the candidate's error.
#[test]
fn only_what_the_candidate_alone_could_not_evaluate_is_its_error() {
    let decision = |code: &'static str, erred: &[&str]| Decision {
        outcome: Outcome::Deny,
        status: 200,
        code,
        reason: String::new(),
        policies: vec![],
        asks: vec![],
        errors: erred
            .iter()
            .map(|policy| crate::policy::PolicyError { policy: (*policy).into(), message: "overflow".into() })
            .collect(),
        would_be: None,
    };
    let erring = |policies: &[&str]| decision(NOT_EVALUATED, policies);
    let forbidden = |policies: &[&str]| decision("denied_by_policy", policies);
    assert!(only_candidate_erred(&decision("no_permit", &[]), &erring(&["tenant/a/p"])));
    assert!(!only_candidate_erred(&erring(&["tenant/a/p"]), &erring(&["tenant/a/p"])));
    assert!(!only_candidate_erred(&erring(&["tenant/a/p"]), &decision("no_permit", &[])));
    assert!(!only_candidate_erred(&forbidden(&["platform/b/p"]), &erring(&["platform/b/p"])), "it erred on both");
    assert!(only_candidate_erred(&forbidden(&["platform/b/p"]), &erring(&["platform/b/p", "tenant/a/p"])));
    assert!(only_candidate_erred(&decision("no_permit", &[]), &erring(&["platform/b/p"])), "by the candidate's facts");
}
