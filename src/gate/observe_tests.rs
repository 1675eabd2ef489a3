use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::*;
use crate::api::{
    DelegationMode, Delegator, DelegatorKind, EffectiveProfile, PolicyPackageSpec, SessionMode, SourceFile,
};
use crate::gate::{
    AgentEntry, Caller, CheckInput, CheckRequest, Checked, DecisionRecord, EntityRef, SessionState, Snapshot, Tenant,
    check,
};
use crate::policy::{AgentFacts, CallerKind, CompiledPackage, Side, base_platform};

const UNTIL: &str = "2026-11-23T00:00:00Z";
const TENANT: &str = r#"
    @id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
    @id("gc") permit(principal, action == Action::"call_tool", resource == Tool::"git/gc");
    @id("ask-gc") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource == Tool::"git/gc");
    @id("no-force") @reason("Open a pull request instead.") forbid(principal, action == Action::"call_tool", resource)
    when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
    @id("sum") forbid(principal, action == Action::"call_tool", resource)
    when { context.numbers.hasTag("n") && context.numbers.getTag("n") + 1 < 0 };
"#;
/// What a platform may say besides its base package.
const PLATFORM: &str = r#"
    @id("no-admin") @reason("The platform lets nobody administer.")
    forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin") when { context.tenant == "strict" };
    @id("no-secrets") forbid(principal, action == Action::"call_tool", resource)
    when { context.arguments.hasTag("path") && context.arguments.getTag("path") like "/secret*" };
    @id("ask-prod") @require_approval("platform") forbid(principal, action == Action::"call_tool", resource)
    when { context.arguments.hasTag("env") && context.arguments.getTag("env") == "prod" };
    @id("overflow") forbid(principal, action == Action::"call_tool", resource)
    when { context.numbers.hasTag("p") && context.numbers.getTag("p") + 1 < 0 };
    @id("no-bob") forbid(principal is Agent, action, resource)
    when { principal has delegated_by && principal.delegated_by == User::"bob" };
    @id("marked") forbid(principal, action == Action::"call_tool", resource)
    when { context has session && context.session == "marked" };
"#;

fn compile(policies: &str, side: Side) -> Arc<CompiledPackage> {
    let tool = |name: &str, tier, digest: Option<&str>| Tool {
        name: name.into(),
        tier,
        sensitivity: Sensitivity::Normal,
        groups: vec![],
        description: None,
        schema_digest: digest.map(str::to_owned),
    };
    let tools = [
        tool("git/log", Tier::Read, None),
        tool("git/blame", Tier::Read, Some("sha256:aa")),
        tool("git/push", Tier::Write, None),
        tool("git/gc", Tier::Admin, None),
    ];
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: "1.0.0".into(),
        tools: if side == Side::Tenant { tools.to_vec() } else { vec![] },
        policies: vec![SourceFile { name: "main.cedar".into(), text: policies.into() }],
        ..Default::default()
    };
    CompiledPackage::compile(&spec, "sha256:00", side).unwrap()
}

/// A world in which one agent of one tenant asks.
struct World {
    tenant: &'static str,
    observe_until: Option<&'static str>,
    package: Option<Arc<CompiledPackage>>,
    platform: Vec<Arc<CompiledPackage>>,
    agent: AgentEntry,
    session: SessionState,
    budget: u64,
}

impl World {
    fn new() -> Self {
        Self {
            tenant: "acme",
            observe_until: Some(UNTIL),
            package: Some(compile(TENANT, Side::Tenant)),
            platform: vec![base_platform(), compile(PLATFORM, Side::Platform)],
            agent: AgentEntry {
                facts: AgentFacts {
                    tenant: "acme".into(),
                    name: "coder".into(),
                    uid: "uid".into(),
                    type_: "coder".into(),
                    teams: vec![],
                    trust: 2,
                    suspended: false,
                    attributes: BTreeMap::new(),
                },
                session: SessionMode::Optional,
                delegation: DelegationMode::None,
                fixed_delegator: None,
            },
            session: SessionState::NotNamed,
            budget: MAX_PATTERN_COST,
        }
    }

    fn ask(&self, request: &CheckRequest) -> Checked {
        let profile = EffectiveProfile {
            observe_until: self.observe_until.map(|t| t.parse().unwrap()),
            ..EffectiveProfile::default()
        };
        let mut agent = self.agent.clone();
        agent.facts.tenant = self.tenant.into();
        let mut planner = World::agent_of(&self.agent, "planner");
        planner.facts.suspended = true;
        let tenant = Tenant {
            canary: None,
            name: self.tenant.into(),
            uid: "uid".into(),
            agents: HashMap::from([("coder".into(), Arc::new(agent)), ("planner".into(), Arc::new(planner))]),
            package: self.package.clone(),
            profile,
        };
        let snapshot = Snapshot {
            platform: Some(Ok(self.platform.clone())),
            tenants: HashMap::from([(self.tenant.into(), Arc::new(tenant))]),
            ..Snapshot::default()
        };
        let caller = Caller { username: "gateway".into(), kind: CallerKind::Gateway, agent: None, stale: false };
        check(&CheckInput {
            snapshot: &snapshot,
            tenant: self.tenant,
            caller: &caller,
            request,
            session: self.session,
            now: "2026-11-22T13:05:00Z".parse().unwrap(),
            id: "id-1",
            request_id: None,
            redaction_key: b"key",
            pattern_budget: self.budget,
        })
    }

    fn agent_of(like: &AgentEntry, name: &str) -> AgentEntry {
        let mut agent = like.clone();
        agent.facts.name = name.into();
        agent.fixed_delegator = None;
        agent.delegation = DelegationMode::None;
        agent
    }

    /// Outcome, code, and the code that it would have.
    fn call(&self, tool: &str, arguments: Value) -> (Outcome, &'static str, Option<&'static str>) {
        self.of(&call(tool, arguments))
    }

    fn of(&self, request: &CheckRequest) -> (Outcome, &'static str, Option<&'static str>) {
        let Checked { decision, record } = self.ask(request);
        assert_eq!(record.would_be.is_some(), decision.would_be.is_some());
        assert_eq!(record.observed, decision.code == OBSERVED);
        (decision.outcome, decision.code, decision.would_be.map(|w| w.code))
    }
}

fn call(tool: &str, arguments: Value) -> CheckRequest {
    let Value::Object(arguments) = arguments else { panic!("{arguments}") };
    let entity = |type_: &str, id: &str| EntityRef { type_: type_.into(), id: id.into(), properties: Map::new() };
    CheckRequest {
        subject: entity("agent", "coder"),
        action: crate::gate::ActionRef { name: "call_tool".into(), ..Default::default() },
        resource: entity("tool", tool),
        arguments,
        ..CheckRequest::default()
    }
}

/// Every way in which the tenant's side ends a check, with the code.
fn tenants_stops() -> Vec<(&'static str, World, CheckRequest)> {
    let plain = |tool: &str, arguments: Value| (World::new(), call(tool, arguments));
    let mut out = Vec::new();
    let mut add = |code, (world, request)| out.push((code, world, request));
    add("no_permit", plain("git/push", json!({})));
    add("denied_by_policy", plain("git/log", json!({"command": "push --force"})));
    add("approval_required", plain("git/gc", json!({})));
    add("evaluation_error", plain("git/log", json!({"n": i64::MAX})));
    add("unknown_tool", plain("shell/run", json!({})));
    add("argument_too_large", plain("git/log", json!({"command": "a".repeat(70_000)})));
    let (world, mut request) = plain("git/blame", json!({}));
    request.schema_digest = Some("sha256:bb".into());
    add("tool_changed", (world, request));
    let (mut world, mut request) = plain("git/log", json!({}));
    world.session = SessionState::Unknown;
    request.session = Some("marked".into());
    add("session_unknown", (world, request));
    let (mut world, request) = plain("git/log", json!({}));
    world.agent.session = SessionMode::Required;
    add("session_required", (world, request));
    let (mut world, request) = plain("git/log", json!({}));
    world.agent.delegation = DelegationMode::Required;
    add("delegation_required", (world, request));
    let (mut world, request) = plain("git/log", json!({}));
    world.package = None;
    add("no_package", (world, request));
    let (mut world, request) = plain("git/log", json!({"text": "a".repeat(20_000)}));
    let bombs: String = (0..10)
        .map(|n| {
            format!(
                r#"@id("f{n}") forbid(principal, action == Action::"call_tool", resource) when
                   {{ context.arguments.hasTag("text") && context.arguments.getTag("text") like "*{}b{n}" }};"#,
                "a".repeat(1000)
            )
        })
        .collect();
    world.package = Some(compile(&format!("{TENANT}{bombs}"), Side::Tenant));
    add("evaluation_too_costly", (world, request));
    out
}

#[test]
fn every_stop_of_the_tenants_own_side_is_let_through_and_kept() {
    let stops = tenants_stops();
    let mut covered: Vec<_> = stops.iter().map(|(code, ..)| *code).collect();
    covered.push("attributes_missing");
    covered.sort_unstable();
    let mut all = TENANTS_OWN.to_vec();
    all.sort_unstable();
    assert_eq!(covered, all, "each code that is lifted is tried here");
    for (code, mut world, request) in stops {
        world.observe_until = None;
        assert_eq!(world.of(&request).1, code, "enforced");
        world.observe_until = Some(UNTIL);
        assert_eq!(world.of(&request), (Outcome::Allow, OBSERVED, Some(code)));
    }
}

#[test]
fn what_the_platform_stops_is_stopped_wherever_the_tenants_side_ended() {
    for (code, world, request) in tenants_stops() {
        for (argument, value, outcome, stop) in [
            ("path", json!("/secret/key"), Outcome::Deny, "denied_by_policy"),
            ("env", json!("prod"), Outcome::ApprovalRequired, "approval_required"),
            ("p", json!(i64::MAX), Outcome::Deny, "evaluation_error"),
            ("path", json!("a".repeat(70_000)), Outcome::Deny, "argument_too_large"),
        ] {
            let mut request = request.clone();
            request.arguments.insert(argument.into(), value);
            let checked = world.ask(&request).decision;
            assert_eq!((checked.outcome, checked.code), (outcome, stop), "{code} must not hide {argument}");
            let named =
                checked.policies.iter().map(|p| p.id.as_str()).chain(checked.errors.iter().map(|e| e.policy.as_str()));
            assert!(stop == "argument_too_large" || named.clone().any(|p| p.starts_with("platform/")), "{code}");
            assert!(checked.would_be.is_none());
        }
    }
}

#[test]
fn a_suspended_agent_does_nothing_wherever_the_tenants_side_ended() {
    for (code, mut world, request) in tenants_stops() {
        world.agent.facts.suspended = true;
        assert_eq!(world.of(&request), (Outcome::Deny, "paused", None), "{code}");
    }
    // Nor does anybody through one.
    for (code, mut world, request) in tenants_stops().into_iter().filter(|(code, ..)| *code != "delegation_required") {
        world.agent.delegation = DelegationMode::Optional;
        world.agent.fixed_delegator = Some(Delegator { kind: DelegatorKind::Agent, name: "planner".into() });
        let mut agent = world.agent.clone();
        agent.facts.suspended = false;
        world.agent = agent;
        assert_eq!(world.of(&request), (Outcome::Deny, "paused", None), "{code}");
    }
}

#[test]
fn the_platform_is_asked_about_the_delegator_too() {
    for (code, mut world, request) in tenants_stops().into_iter().filter(|(code, ..)| *code != "delegation_required") {
        world.agent.delegation = DelegationMode::Optional;
        world.agent.fixed_delegator = Some(Delegator { kind: DelegatorKind::User, name: "bob".into() });
        assert_eq!(world.of(&request), (Outcome::Deny, "denied_by_policy", None), "{code}");
        world.agent.fixed_delegator = Some(Delegator { kind: DelegatorKind::User, name: "alice".into() });
        assert_eq!(world.of(&request).2, Some(code));
        let mut other = request.clone();
        other.on_behalf_of = Some(Delegator { kind: DelegatorKind::User, name: "carol".into() });
        assert_eq!(world.of(&other), (Outcome::Refused, "delegator_mismatch", None), "{code}");
        // A chain that can't be followed can't be put to the platform.
        world.agent.fixed_delegator = Some(Delegator { kind: DelegatorKind::Agent, name: "nobody".into() });
        assert_eq!(world.of(&request), (Outcome::Deny, "unknown_delegator", None), "{code}");
    }
}

#[test]
fn a_wrong_question_stays_wrong() {
    for (code, world, request) in tenants_stops() {
        let mut own = request.clone();
        own.subject.properties.insert("trust".into(), json!(4));
        assert_eq!(world.of(&own).0, Outcome::Refused, "{code}");
        let mut properties = request.clone();
        properties.resource.properties.insert("tier".into(), json!("nothing"));
        let (outcome, ..) = world.of(&properties);
        assert!(outcome == Outcome::Refused || code.starts_with("session") || code.starts_with("delegation"), "{code}");
    }
    let mut world = World::new();
    world.platform = vec![];
    assert_eq!(world.call("git/push", json!({})), (Outcome::Refused, "platform_policy_unavailable", None));
    let mut stranger = call("git/log", json!({}));
    stranger.subject.id = "stranger".into();
    assert_eq!(World::new().of(&stranger), (Outcome::Deny, "unknown_agent", None), "nobody knows what it is");
}

#[test]
fn a_tool_of_which_nothing_is_known_may_be_one_that_the_platform_forbids() {
    let mut world = World::new();
    world.tenant = "strict";
    assert_eq!(world.call("git/push", json!({})), (Outcome::Allow, OBSERVED, Some("no_permit")), "write is not admin");
    assert_eq!(world.call("git/gc", json!({})), (Outcome::Deny, "denied_by_policy", None));
    assert_eq!(world.call("shell/run", json!({})), (Outcome::Deny, "denied_by_policy", None), "it may be admin");
    let changed = CheckRequest { schema_digest: Some("sha256:bb".into()), ..call("git/blame", json!({})) };
    assert_eq!(world.of(&changed), (Outcome::Deny, "denied_by_policy", None), "it is no more what was reviewed");
    world.package = None;
    assert_eq!(world.call("git/log", json!({})), (Outcome::Deny, "denied_by_policy", None));
}

#[test]
fn trust_zero_and_a_session_that_is_anothers_win_nothing() {
    let mut world = World::new();
    world.agent.facts.trust = 0;
    assert_eq!(world.call("git/log", json!({})), (Outcome::Deny, "denied_by_policy", None));
    let mut world = World::new();
    world.session = SessionState::Live;
    let request = CheckRequest { session: Some("marked".into()), ..call("git/push", json!({})) };
    assert_eq!(
        world.of(&request),
        (Outcome::Deny, "denied_by_policy", None),
        "its own session is known to the platform"
    );
}

#[test]
fn on_part_of_the_budget_nothing_is_let_through() {
    let (_, mut world, request) =
        tenants_stops().into_iter().find(|(code, ..)| *code == "evaluation_too_costly").unwrap();
    world.budget = 1 << 22;
    assert_eq!(world.of(&request), (Outcome::Deny, TOO_COSTLY, None), "the server begins again with all of it");
}

#[test]
fn it_ends_at_its_instant_and_changes_no_allow() {
    let mut world = World::new();
    assert_eq!(world.call("git/log", json!({})), (Outcome::Allow, "allowed", None));
    for until in ["2026-11-22T13:05:00Z", "2026-01-01T00:00:00Z", "2027-11-22T13:05:00Z"] {
        world.observe_until = Some(until);
        assert_eq!(world.call("git/push", json!({})), (Outcome::Deny, "no_permit", None), "{until}");
    }
}

#[test]
fn the_record_keeps_what_it_would_be() {
    let record = World::new().ask(&call("git/log", json!({"command": "git push --force"}))).record;
    assert_eq!((record.outcome, record.code.as_str(), record.observed), (Outcome::Allow, OBSERVED, true));
    assert!(record.policies.is_empty() && record.reason.contains(UNTIL), "{}", record.reason);
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["would_be"]["outcome"], "deny");
    assert_eq!(json["would_be"]["reason"], "Open a pull request instead.");
    assert_eq!(json["would_be"]["policies"][0]["id"], "tenant/first/no-force");
    let back: DecisionRecord = serde_json::from_value(json).unwrap();
    assert_eq!(back.would_be, record.would_be);
    let plain = serde_json::to_value(World::new().ask(&call("git/log", json!({}))).record).unwrap();
    assert!(plain.get("would_be").is_none() && plain.get("observed").is_none());
}
