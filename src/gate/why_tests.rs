//! Explanations of decisions that the gates made.

use std::sync::Arc;

use serde_json::json;

use super::super::tests::{World, acting_for, agent, call, compile};
use super::*;
use crate::api::DelegatorKind;
use crate::gate::CheckRequest;
use crate::policy::base_platform;

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("no-force") @reason("Open a pull request instead.") @code("no-force-here") @sensitive("password")
forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" }
unless { context.arguments.hasTag("password") && context.arguments.getTag("password") == "let-me" };
@id("overflow") forbid(principal, action == Action::"call_tool", resource)
when { context.numbers.hasTag("n") && context.numbers.getTag("n") * 4611686018427387904 > 0 };
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("ask") @require_approval("leads") forbid(principal, action, resource in ToolGroup::"admin");
"#;
const PLATFORM: &str = r#"@id("quiet") @reason("Not on this cluster.")
forbid(principal is Agent, action, resource) when { principal.getTag("zone") == "red-secret-zone" && principal.hasTag("zone") };"#;

fn texts(world: &World, platform_visible: bool) -> Vec<Texts> {
    let of = |side, p: &Arc<CompiledPackage>, visible| Texts {
        side,
        digest: p.digest().to_owned(),
        package: Some(p.clone()),
        visible,
    };
    let platform = world.snapshot.platform.as_ref().unwrap().as_ref().unwrap();
    let mut all: Vec<Texts> = platform.iter().map(|p| of(Side::Platform, p, platform_visible)).collect();
    all.push(of(Side::Tenant, world.snapshot.tenants["acme"].package.as_ref().unwrap(), true));
    all
}

fn explain(world: &World, request: &CheckRequest) -> Why {
    why(&world.ask(request).record, &texts(world, true))
}

fn with(tool: &str, arguments: serde_json::Value) -> CheckRequest {
    CheckRequest { arguments: arguments.as_object().unwrap().clone(), ..call("coder", tool) }
}

#[test]
fn a_deny_names_its_policy_place_and_values_and_keeps_secrets() {
    let world = World::new(POLICIES, vec![agent("coder", 2)]);
    let found = explain(&world, &with("git/push", json!({"command": "git push --force", "password": "hunter2"})));
    assert_eq!((found.outcome, found.code.as_str()), (Outcome::Deny, "denied_by_policy"));
    let one = &found.determining[0];
    assert_eq!((one.policy.as_str(), one.effect.as_deref()), ("tenant/first/no-force", Some("forbid")));
    assert_eq!(
        (one.reason.as_deref(), one.rule.as_deref()),
        (Some("Open a pull request instead."), Some("no-force-here"))
    );
    let source = one.source.as_ref().unwrap();
    assert_eq!((source.file.as_str(), source.line, source.column), ("main.cedar", 5, 1));
    let value = |path: &str| one.facts.iter().find(|f| f.path.contains(path)).unwrap();
    assert_eq!(value("getTag(\"command\")").value.as_deref(), Some("\"git push --force\""));
    assert_eq!(
        (&value("getTag(\"password\")").value, value("getTag(\"password\")").missing.as_deref()),
        (&None, Some("not kept"))
    );
    assert!(!serde_json::to_string(&found).unwrap().contains("hunter2"));
    assert!(found.nearest.is_empty());
}

#[test]
fn a_default_deny_names_the_nearest_permit_and_what_failed() {
    let world = World::new(POLICIES, vec![agent("junior", 1)]);
    let found = explain(&world, &call("junior", "git/push"));
    assert_eq!(found.code, "no_permit");
    let first = &found.nearest[0];
    assert_eq!((first.policy.as_str(), first.failed.text.as_str()), ("tenant/first/writes", "principal.trust >= 2"));
    assert_eq!(first.failed.facts[0].value.as_deref(), Some("1"));
    assert_eq!(found.nearest.len(), 3, "the other permits' resources do not fit: {:?}", found.nearest);
    assert!(found.packages.iter().all(|p| p.text == "shown"), "{:?}", found.packages);
}

#[test]
fn a_permit_that_failed_only_with_the_delegator_is_said_to() {
    let chief = acting_for(agent("chief", 4), DelegatorKind::Agent, "junior");
    let world = World::new(POLICIES, vec![chief, agent("junior", 1)]);
    let found = explain(&world, &call("chief", "git/push"));
    assert_eq!(found.nearest[0].policy, "tenant/first/writes");
    assert_eq!(found.nearest[0].failed.facts[0].value.as_deref(), Some("1"), "the least trust of the chain");
    assert!(found.advice[0].contains("agent:junior"), "{:?}", found.advice);
}

#[test]
fn an_error_is_explained_where_it_happened() {
    let world = World::new(&POLICIES.replace(" @sensitive(\"password\")", ""), vec![agent("coder", 2)]);
    let found = explain(&world, &with("git/push", json!({"n": 4})));
    assert_eq!(found.code, "evaluation_error");
    let one = &found.determining[0];
    assert_eq!((one.policy.as_str(), one.error.as_deref()), ("tenant/first/overflow", Some("integer overflow")));
    let failed = one.failed.as_ref().unwrap();
    assert_eq!((failed.result.as_str(), failed.facts[0].value.as_deref()), ("error", Some("4")));
}

#[test]
fn a_platforms_text_is_for_the_platforms_readers() {
    let mut zoned = agent("coder", 2);
    zoned.facts.attributes.insert("zone".into(), "red-secret-zone".into());
    let mut world = World::new(POLICIES, vec![zoned]);
    let quiet = PLATFORM.replace(
        "principal.getTag(\"zone\") == \"red-secret-zone\" && principal.hasTag(\"zone\")",
        "principal.hasTag(\"zone\") && principal.getTag(\"zone\") == \"red-secret-zone\"",
    );
    world.snapshot.platform = Some(Ok(vec![base_platform(), compile(&quiet, Side::Platform)]));
    let record = world.ask(&call("coder", "git/log")).record;
    let hidden = serde_json::to_string(&why(&record, &texts(&world, false))).unwrap();
    assert!(hidden.contains("platform/first/quiet") && hidden.contains("Not on this cluster."), "{hidden}");
    assert!(!hidden.contains("red-secret-zone") && !hidden.contains("main.cedar"), "{hidden}");
    let shown = serde_json::to_string(&why(&record, &texts(&world, true))).unwrap();
    assert!(shown.contains("red-secret-zone") && shown.contains("main.cedar"), "{shown}");
}

/// The words are in the answer to a gateway and in the record, which the tenant's readers have.
#[test]
fn cedars_words_about_a_platforms_policy_are_for_the_platforms_readers() {
    let mut world = World::new(POLICIES, vec![agent("coder", 2)]);
    let sum = r#"@id("sum") forbid(principal, action == Action::"call_tool", resource)
        when { context.numbers.hasTag("p") && context.numbers.getTag("p") * 4611686018427387904 > 0 };"#;
    world.snapshot.platform = Some(Ok(vec![base_platform(), compile(sum, Side::Platform)]));
    let checked = world.ask(&with("git/log", json!({"p": 4})));
    let said = |errors: &[crate::policy::PolicyError]| {
        errors.iter().map(|e| (e.policy.clone(), e.message.clone())).collect::<Vec<_>>()
    };
    let unsaid = [("platform/first/sum".to_owned(), "evaluation failed".to_owned())];
    assert_eq!(said(&checked.decision.errors), unsaid);
    assert_eq!(said(&checked.record.errors), unsaid);
    let tenants = why(&checked.record, &texts(&world, false));
    assert!(tenants.determining[0].error.is_none() && tenants.determining[0].failed.is_none());
    // As of a record that does not say which of the platform's packages was asked.
    let only_own: Vec<Texts> = texts(&world, true).into_iter().filter(|t| t.side == Side::Tenant).collect();
    assert!(why(&checked.record, &only_own).determining[0].error.is_none());
    let platforms = why(&checked.record, &texts(&world, true));
    let failed = platforms.determining[0].failed.as_ref().unwrap();
    assert_eq!(failed.error.as_deref(), Some("integer overflow"));
}

#[test]
fn a_text_that_is_gone_is_said_to_be_gone() {
    let world = World::new(POLICIES, vec![agent("coder", 2)]);
    let record = world.ask(&with("git/push", json!({"command": "--force"}))).record;
    let mut texts = texts(&world, true);
    texts.last_mut().unwrap().package = None;
    let found = why(&record, &texts);
    assert_eq!(found.determining[0].reason.as_deref(), Some("Open a pull request instead."));
    assert!(found.determining[0].source.is_none() && found.determining[0].facts.is_empty());
    assert_eq!(found.packages.last().unwrap().text, "gone");
    assert!(found.advice[0].contains("is gone"), "{:?}", found.advice);
}

#[test]
fn denials_before_policy_say_what_to_do() {
    let mut paused = agent("paused", 2);
    paused.facts.suspended = true;
    let world = World::new(POLICIES, vec![agent("coder", 2), paused]);
    let advice = |request: &CheckRequest| explain(&world, request).advice.join(" ");
    assert!(advice(&call("coder", "git/psuh")).contains("Perhaps git/push is meant."));
    assert!(advice(&call("paused", "git/log")).contains("spec.suspend"));
    assert!(advice(&call("nobody", "git/log")).contains("no Agent \"nobody\""));
    let mut changed = call("coder", "git/blame");
    changed.schema_digest = Some("sha256:bb".into());
    assert!(advice(&changed).contains("remit tools import"));
    assert!(advice(&call("coder", "git/gc")).contains("1 of \"leads\""));
    let allowed = explain(&world, &call("coder", "git/log"));
    assert_eq!((allowed.determining[0].policy.as_str(), allowed.advice.len()), ("tenant/first/reads", 0));
}
