//! The gates over small real packages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::api::{
    DelegationMode, Delegator, DelegatorKind, EffectiveProfile, PolicyPackageSpec, SessionMode, SourceFile, Tier, Tool,
};
use crate::policy::{AgentFacts, CallerKind, CompiledPackage, Side, base_platform};

pub(super) const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("ask-admin") @require_approval("leads") @approval_count("2")
forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("no-force") @reason("Open a pull request instead.")
forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
"#;

pub(super) fn tool(name: &str, tier: Tier) -> Tool {
    Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: vec![],
        description: None,
        schema_digest: None,
    }
}

pub(super) fn compile(policies: &str, side: Side) -> Arc<CompiledPackage> {
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: "1.0.0".into(),
        tools: match side {
            Side::Platform => vec![],
            Side::Tenant => {
                vec![
                    tool("git/log", Tier::Read),
                    tool("git/push", Tier::Write),
                    tool("git/gc", Tier::Admin),
                    Tool { schema_digest: Some("sha256:aa".into()), ..tool("git/blame", Tier::Read) },
                ]
            }
        },
        policies: vec![SourceFile { name: "main.cedar".into(), text: policies.into() }],
        ..Default::default()
    };
    CompiledPackage::compile(&spec, "sha256:00", side).unwrap()
}

pub(super) fn agent(name: &str, trust: i64) -> AgentEntry {
    AgentEntry {
        facts: AgentFacts {
            tenant: "acme".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            type_: "coder".into(),
            teams: vec!["core".into()],
            trust,
            suspended: false,
            attributes: BTreeMap::new(),
        },
        session: SessionMode::Optional,
        delegation: DelegationMode::None,
        fixed_delegator: None,
    }
}

pub(super) fn acting_for(mut entry: AgentEntry, kind: DelegatorKind, name: &str) -> AgentEntry {
    entry.delegation = DelegationMode::Optional;
    entry.fixed_delegator = Some(Delegator { kind, name: name.into() });
    entry
}

pub(super) struct World {
    pub snapshot: Snapshot,
    pub caller: Caller,
    pub session: SessionState,
}

impl World {
    pub fn new(policies: &str, agents: Vec<AgentEntry>) -> Self {
        let tenant = Tenant {
            canary: None,
            name: "acme".into(),
            uid: "uid-acme".into(),
            agents: agents.into_iter().map(|a| (a.facts.name.clone(), Arc::new(a))).collect(),
            package: Some(compile(policies, Side::Tenant)),
            profile: EffectiveProfile::default(),
        };
        let snapshot = Snapshot {
            generation: 1,
            platform: Some(Ok(vec![base_platform()])),
            tenants: HashMap::from([("acme".to_owned(), Arc::new(tenant))]),
            identities: HashMap::new(),
        };
        let caller = Caller { username: "gateway".into(), kind: CallerKind::Gateway, agent: None, stale: false };
        Self { snapshot, caller, session: SessionState::NotNamed }
    }

    pub fn ask(&self, request: &CheckRequest) -> Checked {
        check(&self.input(request))
    }

    pub fn input<'a>(&'a self, request: &'a CheckRequest) -> CheckInput<'a> {
        CheckInput {
            snapshot: &self.snapshot,
            tenant: "acme",
            caller: &self.caller,
            request,
            session: self.session,
            now: "2026-11-22T13:05:00Z".parse().unwrap(),
            id: "id-1",
            request_id: Some("r-1"),
            redaction_key: b"key",
            pattern_budget: MAX_PATTERN_COST,
        }
    }

    pub fn call(&self, agent: &str, tool: &str) -> (Outcome, &'static str) {
        let d = self.ask(&call(agent, tool)).decision;
        (d.outcome, d.code)
    }
}

pub(super) fn call(agent: &str, tool: &str) -> CheckRequest {
    serde_json::from_value(json!({
        "subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool", "id": tool},
    }))
    .unwrap()
}

#[test]
fn policies_allow_deny_and_ask() {
    let world = World::new(POLICIES, vec![agent("coder", 2), agent("junior", 1)]);
    assert_eq!(world.call("coder", "git/log"), (Outcome::Allow, "allowed"));
    assert_eq!(world.call("coder", "git/push"), (Outcome::Allow, "allowed"));
    assert_eq!(world.call("junior", "git/push"), (Outcome::Deny, "no_permit"));
    assert_eq!(world.call("coder", "git/gc"), (Outcome::ApprovalRequired, "approval_required"));
    let asked = world.ask(&call("coder", "git/gc")).decision;
    let ask = asked.asks[0].ask.as_ref().unwrap();
    assert_eq!((ask.group.as_str(), ask.count, asked.asks[0].id.as_str()), ("leads", 2, "tenant/first/ask-admin"));
    assert_eq!(world.call("coder", "git/unlisted"), (Outcome::Deny, "unknown_tool"));
    assert_eq!(world.call("nobody", "git/log"), (Outcome::Deny, "unknown_agent"));
}

#[test]
fn a_hard_forbid_wins_over_an_ask_and_gives_its_reason() {
    let world = World::new(POLICIES, vec![agent("coder", 2)]);
    let mut request = call("coder", "git/gc");
    request.arguments.insert("command".into(), json!("git push --force"));
    let decision = world.ask(&request).decision;
    assert_eq!((decision.outcome, decision.code), (Outcome::Deny, "denied_by_policy"));
    assert_eq!(decision.reason, "Open a pull request instead.");
    assert_eq!(decision.policies[0].id, "tenant/first/no-force");
}

#[test]
fn the_platform_denies_trust_zero_whatever_the_tenant_permits() {
    let world = World::new(r#"@id("all") permit(principal, action, resource);"#, vec![agent("fresh", 0)]);
    let decision = world.ask(&call("fresh", "git/log")).decision;
    assert_eq!((decision.outcome, decision.code), (Outcome::Deny, "denied_by_policy"));
    assert!(decision.policies.iter().all(|p| p.id.starts_with("platform/base/")), "{:?}", decision.policies);
}

#[test]
fn a_platform_permit_alone_counts_only_if_it_grants_tenants() {
    let mut world = World::new(
        r#"@id("none") forbid(principal, action == Action::"network_access", resource);"#,
        vec![agent("coder", 2)],
    );
    let plain = compile(r#"@id("p") permit(principal, action, resource);"#, Side::Platform);
    world.snapshot.platform = Some(Ok(vec![base_platform(), plain]));
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "no_permit"));
    let grants = compile(r#"@id("p") @grants_tenants permit(principal, action, resource);"#, Side::Platform);
    world.snapshot.platform = Some(Ok(vec![base_platform(), grants]));
    assert_eq!(world.call("coder", "git/log"), (Outcome::Allow, "allowed"));
}

#[test]
fn patterns_cost_no_more_than_they_may_here() {
    let bombs = (0..10).map(|n| {
        let pattern = "a".repeat(1000);
        format!(
            r#"@id("f{n}") forbid(principal, action == Action::"call_tool", resource)
               when {{ context.arguments.hasTag("text") && context.arguments.getTag("text") like "*{pattern}b" }};"#
        )
    });
    let bombs: String = bombs.collect();
    let world = World::new(&format!("{POLICIES} {bombs}"), vec![agent("coder", 2)]);
    let mut request = call("coder", "git/log");
    request.arguments.insert("text".into(), json!("a".repeat(1000)));
    let within = |pattern_budget| {
        let input = CheckInput {
            snapshot: &world.snapshot,
            tenant: "acme",
            caller: &world.caller,
            request: &request,
            session: SessionState::NotNamed,
            now: "2026-11-22T13:05:00Z".parse().unwrap(),
            id: "id-1",
            request_id: None,
            redaction_key: b"key",
            pattern_budget,
        };
        check(&input).decision.code
    };
    assert_eq!(within(1 << 22), TOO_COSTLY);
    assert_eq!(within(MAX_PATTERN_COST), "allowed");
}

#[test]
fn an_erroring_policy_denies() {
    let world = World::new(
        r#"@id("all") permit(principal, action, resource);
           @id("sum") forbid(principal, action == Action::"call_tool", resource)
           when { context.numbers.hasTag("n") && context.numbers.getTag("n") + 1 < 0 };"#,
        vec![agent("coder", 2)],
    );
    let mut request = call("coder", "git/log");
    assert_eq!(world.ask(&request).decision.outcome, Outcome::Allow);
    request.arguments.insert("n".into(), json!(i64::MAX));
    let decision = world.ask(&request).decision;
    assert_eq!((decision.outcome, decision.code), (Outcome::Deny, "evaluation_error"));
    assert_eq!(decision.errors[0].policy, "tenant/first/sum");
}

#[test]
fn delegator_widens() {
    let permit_for_alice = r#"@id("alice") permit(principal, action == Action::"call_tool", resource)
        when { principal has delegated_by && principal.delegated_by == User::"alice" };"#;
    let delegated = acting_for(agent("coder", 2), DelegatorKind::User, "alice");
    let world = World::new(permit_for_alice, vec![delegated.clone()]);
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "no_permit"), "a delegator never widens");

    let forbid_for_alice = r#"@id("all") permit(principal, action, resource);
        @id("not-alice") forbid(principal, action == Action::"call_tool", resource)
        when { principal has delegated_by && principal.delegated_by == User::"alice" };"#;
    let world = World::new(forbid_for_alice, vec![delegated, agent("free", 2)]);
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "denied_by_policy"), "but it restricts");
    assert_eq!(world.call("free", "git/log"), (Outcome::Allow, "allowed"));
}

#[test]
fn trust_is_the_least_of_the_delegation_chain() {
    let coder = acting_for(agent("coder", 3), DelegatorKind::Agent, "planner");
    let planner = acting_for(agent("planner", 1), DelegatorKind::User, "alice");
    let world = World::new(POLICIES, vec![coder, planner]);
    assert_eq!(world.call("coder", "git/log"), (Outcome::Allow, "allowed"));
    assert_eq!(world.call("coder", "git/push"), (Outcome::Deny, "no_permit"));
    let record = world.ask(&call("coder", "git/log")).record;
    assert_eq!(record.delegated_from.as_deref(), Some("agent:planner"));
    assert_eq!(record.facts.delegation.unwrap().user.as_deref(), Some("alice"));
}

#[test]
fn delegation_loops_and_strangers_are_refused() {
    let a = acting_for(agent("a", 3), DelegatorKind::Agent, "b");
    let b = acting_for(agent("b", 3), DelegatorKind::Agent, "a");
    let mut needs = agent("needs", 3);
    needs.delegation = DelegationMode::Required;
    let world = World::new(POLICIES, vec![a, b, needs, acting_for(agent("c", 3), DelegatorKind::User, "alice")]);
    assert_eq!(world.call("a", "git/log"), (Outcome::Deny, "delegation_loop"));
    assert_eq!(world.call("needs", "git/log"), (Outcome::Deny, "delegation_required"));
    let mut request = call("c", "git/log");
    request.on_behalf_of = Some(Delegator { kind: DelegatorKind::User, name: "alice".into() });
    assert_eq!(world.ask(&request).decision.outcome, Outcome::Allow);
    request.on_behalf_of = Some(Delegator { kind: DelegatorKind::User, name: "ceo".into() });
    let decision = world.ask(&request).decision;
    assert_eq!((decision.outcome, decision.status, decision.code), (Outcome::Refused, 403, "delegator_mismatch"));
}

#[test]
fn nobody_acts_suspended_or_through_a_suspended_agent() {
    let mut suspended = agent("planner", 3);
    suspended.facts.suspended = true;
    let world = World::new(POLICIES, vec![suspended, acting_for(agent("coder", 3), DelegatorKind::Agent, "planner")]);
    assert_eq!(world.call("planner", "git/log"), (Outcome::Deny, "paused"));
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "paused"));
}

#[test]
fn an_agent_asks_only_for_itself_and_is_recorded_in_its_own_tenant() {
    let mut world = World::new(POLICIES, vec![agent("coder", 2), agent("other", 4)]);
    world.caller = Caller {
        username: "system:serviceaccount:evil:coder".into(),
        kind: CallerKind::Agent,
        agent: Some(("evil".into(), "coder".into())),
        stale: false,
    };
    let checked = world.ask(&call("coder", "git/log"));
    assert_eq!((checked.decision.outcome, checked.decision.status), (Outcome::Refused, 403));
    assert_eq!(checked.record.tenant, "evil");
    world.caller.agent = Some(("acme".into(), "coder".into()));
    assert_eq!(world.call("other", "git/log"), (Outcome::Refused, "not_your_identity"));
    assert_eq!(world.call("coder", "git/log"), (Outcome::Allow, "allowed"));
}

#[test]
fn sessions_are_checked() {
    let mut strict = agent("strict", 2);
    strict.session = SessionMode::Required;
    let mut world = World::new(POLICIES, vec![strict, agent("coder", 2)]);
    assert_eq!(world.call("strict", "git/log"), (Outcome::Deny, "session_required"));
    world.session = SessionState::Unknown;
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "session_unknown"));
    world.session = SessionState::Live;
    assert_eq!(world.call("strict", "git/log"), (Outcome::Allow, "allowed"));
}

#[test]
fn without_the_platform_or_a_package_nothing_is_allowed() {
    let mut world = World::new(POLICIES, vec![agent("coder", 2)]);
    world.snapshot.platform = Some(Err("gone".into()));
    let decision = world.ask(&call("coder", "git/log")).decision;
    assert_eq!((decision.status, decision.code), (503, "platform_policy_unavailable"));
    assert!(!decision.reason.contains("gone"), "why is the platform's business");
    world.snapshot.platform = Some(Ok(vec![]));
    assert_eq!(world.ask(&call("coder", "git/log")).decision.status, 503);
    world.snapshot.platform = None;
    assert_eq!(world.ask(&call("coder", "git/log")).decision.code, "not_synced");

    let mut world = World::new(POLICIES, vec![agent("coder", 2)]);
    let mut tenant = world.snapshot.tenants["acme"].as_ref().clone();
    tenant.package = None;
    world.snapshot.tenants.insert("acme".into(), Arc::new(tenant));
    assert_eq!(world.call("coder", "git/log"), (Outcome::Deny, "no_package"));
}

#[test]
fn attributes_of_an_agent_never_come_from_the_caller() {
    let world = World::new(POLICIES, vec![agent("junior", 1)]);
    let mut request = call("junior", "git/push");
    request.subject.properties.insert("trust".into(), json!(4));
    let decision = world.ask(&request).decision;
    assert_eq!((decision.outcome, decision.status), (Outcome::Refused, 400));
    assert!(decision.reason.starts_with("subject.properties"), "{}", decision.reason);
}

#[test]
fn the_record_says_who_what_and_why() {
    let world = World::new(POLICIES, vec![agent("coder", 2)]);
    let Checked { record, .. } = world.ask(&call("coder", "git/push"));
    assert_eq!(
        (record.tenant.as_str(), record.tenant_uid.as_str(), record.agent.as_str()),
        ("acme", "uid-acme", "coder")
    );
    assert_eq!(record.policies[0].id, "tenant/first/writes");
    assert_eq!(record.digests["tenant"], ["sha256:00"]);
    assert_eq!(record.digests["platform"], [base_platform().digest()]);
    assert_eq!(record.facts.hour, 13);
    assert_eq!(record.request_id.as_deref(), Some("r-1"));
    let back: DecisionRecord = serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
    assert_eq!(back.facts, record.facts, "a record can be read back");
}

#[test]
fn a_tool_that_is_not_what_was_reviewed_is_denied() {
    let world = World::new(POLICIES, vec![agent("coder", 2)]);
    let ask = |tool: &str, seen: Option<&str>| {
        let request = CheckRequest { schema_digest: seen.map(str::to_owned), ..call("coder", tool) };
        world.ask(&request).decision.code
    };
    assert_eq!(ask("git/blame", Some("sha256:aa")), "allowed");
    assert_eq!(ask("git/blame", Some("sha256:bb")), "tool_changed");
    assert_eq!(ask("git/blame", None), "allowed", "who does not see the server can't compare");
    assert_eq!(ask("git/log", Some("sha256:bb")), "allowed", "nothing is pinned");
}
