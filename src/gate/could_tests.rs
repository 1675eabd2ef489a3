//! What could be allowed, against what is: over random policies on both sides, agents, delegators and arguments.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::tests::{World, acting_for, agent, call, compile};
use super::*;
use crate::api::DelegatorKind;
use crate::policy::{Side, base_platform};

/// Parts of conditions: known ones, ones that a call brings, and ones that can err.
const PARTS: [&str; 20] = [
    "true",
    "true",
    "false",
    "false",
    "principal is Agent",
    "resource in ToolGroup::\"read\"",
    "principal.trust >= 2",
    "resource in ToolGroup::\"write\"",
    "principal has delegated_by",
    "principal.delegation_chain.contains(Agent::\"junior\")",
    "9223372036854775807 + principal.trust > 0",
    "context.arguments.hasTag(\"force\")",
    "context.arguments.hasTag(\"branch\") && context.arguments.getTag(\"branch\") == \"main\"",
    "context.numbers.hasTag(\"n\") && context.numbers.getTag(\"n\") > 3",
    "context.numbers.hasTag(\"n\") && context.numbers.getTag(\"n\") * 4611686018427387904 > 0",
    "context.hour > 12",
    "context has session",
    "context has session",
    "!(context has session)",
    "context.granted || context.risk < 50",
];
const TOOLS: [&str; 5] = ["git/log", "git/push", "git/gc", "git/blame", "git/unlisted"];

/// A condition over the parts.
fn condition() -> impl Strategy<Value = String> {
    let leaf = (0..PARTS.len()).prop_map(|n| PARTS[n].to_owned());
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("if ({a}) then ({b}) else ({c})")),
        ]
    })
}

#[derive(Clone, Debug)]
struct Case {
    tenant: Vec<(usize, String)>,
    platform: Vec<(usize, String)>,
    trust: i64,
    delegated: usize,
    observes: bool,
    calls: Vec<(usize, u8)>,
}

fn case() -> impl Strategy<Value = Case> {
    let policies = |most: usize| proptest::collection::vec((0..5_usize, condition()), 0..most);
    let calls = proptest::collection::vec((0..TOOLS.len(), any::<u8>()), 24);
    (policies(5), policies(2), 1..4_i64, 0..3_usize, 0..4_u8, calls).prop_map(
        |(tenant, platform, trust, delegated, observes, calls)| {
            let observes = observes == 0;
            Case { tenant, platform, trust, delegated, observes, calls }
        },
    )
}

fn text(policies: &[(usize, String)], side: Side) -> String {
    let one = |(n, (kind, condition)): (usize, &(usize, String))| {
        let (effect, annotation) = match (kind, side) {
            (0, _) => ("forbid", ""),
            (1, _) => ("forbid", "@require_approval(\"leads\")"),
            (2, Side::Platform) => ("permit", "@grants_tenants"),
            _ => ("permit", ""),
        };
        let name = if side == Side::Platform { "Agent::\"acme/junior\"" } else { "Agent::\"junior\"" };
        let condition = condition.replace("Agent::\"junior\"", name);
        format!(
            "@id(\"p{n}\") {annotation} {effect}(principal is Agent, action == Action::\"call_tool\", resource) when {{ {condition} }};\n"
        )
    };
    policies.iter().enumerate().map(one).collect()
}

fn arguments(bits: u8) -> Value {
    let mut arguments = json!({});
    if bits & 1 != 0 {
        arguments["force"] = json!(true);
    }
    if bits & 2 != 0 {
        arguments["branch"] = json!(if bits & 4 != 0 { "main" } else { "other" });
    }
    if bits & 8 != 0 {
        arguments["n"] = json!(bits % 7);
    }
    arguments
}

#[test]
fn what_a_check_allows_could_be_allowed() {
    let seen: [AtomicUsize; 7] = Default::default();
    let count = |n: usize| seen[n].fetch_add(1, Ordering::Relaxed);
    let mut runner = TestRunner::new(Config { cases: 250, failure_persistence: None, ..Config::default() });
    runner
        .run(&case(), |case| {
            let coder = match case.delegated {
                0 => agent("coder", case.trust),
                1 => acting_for(agent("coder", case.trust), DelegatorKind::User, "alice"),
                _ => acting_for(agent("coder", case.trust), DelegatorKind::Agent, "junior"),
            };
            // A package needs a policy; this one is about nobody here.
            let policies = text(&case.tenant, Side::Tenant)
                + "@id(\"none\") permit(principal == Agent::\"nobody\", action == Action::\"call_tool\", resource);";
            let mut world = World::new(&policies, vec![coder, agent("junior", 1)]);
            if !case.platform.is_empty() {
                let more = compile(&text(&case.platform, Side::Platform), Side::Platform);
                world.snapshot.platform = Some(Ok(vec![base_platform(), more]));
            }
            if case.observes {
                let mut acme = Tenant::clone(&world.snapshot.tenants["acme"]);
                acme.profile.observe_until = Some("2026-11-23T13:05:00Z".parse().unwrap());
                world.snapshot.tenants.insert("acme".into(), std::sync::Arc::new(acme));
            }
            for (tool, bits) in &case.calls {
                let blank = call("coder", TOOLS[*tool]);
                let mut request = blank.clone();
                request.arguments = arguments(*bits).as_object().unwrap().clone();
                if bits & 16 != 0 {
                    request.session = Some("s".into());
                    world.session = SessionState::Live;
                } else {
                    world.session = SessionState::NotNamed;
                }
                let decision = world.ask(&request).decision;
                world.session = SessionState::NotNamed;
                let could = could_allow(&world.input(&blank)).unwrap();
                let allowed = matches!(decision.outcome, Outcome::Allow | Outcome::ApprovalRequired);
                if allowed {
                    prop_assert!(could.allowed != Could::No, "{:?} {:?}\n{}", decision, could, policies);
                    let asked = decision.outcome == Outcome::ApprovalRequired;
                    let expected = if asked { Could::No } else { Could::Always };
                    prop_assert!(could.approval != expected, "{:?} {:?}\n{}", decision, could, policies);
                    count(usize::from(asked));
                    if decision.would_be.is_some() {
                        count(6);
                    }
                } else {
                    prop_assert!(could.allowed != Could::Always, "{:?} {:?}\n{}", decision, could, policies);
                }
                count(2 + could.allowed as usize);
                count(if could.approval == Could::Always { 5 } else { 2 });
            }
            Ok(())
        })
        .unwrap();
    // Allowed, asked, impossible, perhaps, always, always asked, observed: a test in which one never came up would show nothing of it.
    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) > 30), "{seen:?}");
}

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin") when { context.hour > 8 };
@id("ask-admin") @require_approval("leads")
forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("no-force") @reason("Open a pull request instead.")
forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write")
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
"#;

fn could(world: &World, agent: &str, tool: &str) -> (Could, Could, &'static str) {
    let found = could_allow(&world.input(&call(agent, tool))).unwrap();
    (found.allowed, found.approval, found.stopped.map_or("", |d| d.code))
}

#[test]
fn each_tool_is_said_to_be_possible_or_not_and_on_what_it_depends() {
    let world = World::new(POLICIES, vec![agent("coder", 2), agent("junior", 1), agent("fresh", 0)]);
    assert_eq!(could(&world, "coder", "git/log"), (Could::Always, Could::No, ""));
    assert_eq!(could(&world, "coder", "git/push"), (Could::Maybe, Could::No, ""));
    assert_eq!(could(&world, "coder", "git/gc"), (Could::Maybe, Could::Always, ""));
    assert_eq!(could(&world, "junior", "git/push"), (Could::No, Could::No, "no_permit"));
    assert_eq!(could(&world, "fresh", "git/log"), (Could::No, Could::No, "denied_by_policy"));
    assert_eq!(could(&world, "coder", "git/unlisted"), (Could::No, Could::No, "unknown_tool"));
    assert_eq!(could(&world, "nobody", "git/log"), (Could::No, Could::No, "unknown_agent"));
    let depends = could_allow(&world.input(&call("coder", "git/push"))).unwrap().depends;
    assert_eq!(
        (depends[0].policy.as_str(), depends[0].effect.as_str(), depends[0].conditions.as_slice()),
        (
            "tenant/first/no-force",
            "forbid",
            [
                "context.arguments.hasTag(\"command\")".to_owned(),
                "context.arguments.getTag(\"command\") like \"*--force*\"".to_owned()
            ]
            .as_slice()
        )
    );
}

#[test]
fn stops_sessions_and_delegators_count() {
    let mut paused = agent("coder", 2);
    paused.facts.suspended = true;
    assert_eq!(could(&World::new(POLICIES, vec![paused]), "coder", "git/log"), (Could::No, Could::No, "paused"));
    // Through an agent of trust 1 even the chief does not write.
    let chief = acting_for(agent("chief", 4), DelegatorKind::Agent, "junior");
    let world = World::new(POLICIES, vec![chief, agent("junior", 1)]);
    assert_eq!(could(&world, "chief", "git/push").2, "no_permit");
    // An agent that must name a session can open one; a session that is not its own helps nobody.
    let mut strict = agent("coder", 2);
    strict.session = crate::api::SessionMode::Required;
    let mut world = World::new(POLICIES, vec![strict]);
    assert_eq!(could(&world, "coder", "git/log").0, Could::Always);
    world.session = SessionState::Unknown;
    assert_eq!(could(&world, "coder", "git/log").2, "session_unknown");
}

#[test]
fn a_platforms_condition_is_named_but_not_shown() {
    let mut world = World::new(POLICIES, vec![agent("coder", 2)]);
    let secret = r#"@id("night") forbid(principal, action, resource) when { context.hour < 6 };"#;
    world.snapshot.platform = Some(Ok(vec![base_platform(), compile(secret, Side::Platform)]));
    let found = could_allow(&world.input(&call("coder", "git/log"))).unwrap();
    assert_eq!(found.allowed, Could::Maybe);
    assert_eq!(found.depends.len(), 1);
    assert_eq!((found.depends[0].policy.as_str(), found.depends[0].conditions.len()), ("platform/first/night", 0));
}

#[test]
fn an_agent_asks_only_for_itself() {
    let mut world = World::new(POLICIES, vec![agent("coder", 2), agent("chief", 4)]);
    world.caller.kind = crate::policy::CallerKind::Agent;
    world.caller.agent = Some(("acme".into(), "coder".into()));
    assert!(could_allow(&world.input(&call("coder", "git/log"))).is_ok());
    let refused = could_allow(&world.input(&call("chief", "git/log"))).unwrap_err();
    assert_eq!((refused.status, refused.code), (403, "not_your_identity"));
}
