//! What is explained of small packages.

use serde_json::json;

use crate::api::Tier;
use crate::policy::support::{Ask, compile, spec, tool};
use crate::policy::{Arguments, CompiledPackage, Fact, NearPermit, Part, Side};

const POLICIES: &str = r#"// The first file.
@id("reads")
permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") @reason("Coders push.")
permit (
  principal in Team::"core", action == Action::"call_tool",
  resource in ToolGroup::"write"
) when { principal.trust >= 1 && principal.trust >= 3 && context.arguments.hasTag("branch") };
@id("near") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write")
  when { principal.trust >= 1 && principal.trust >= 2 && context.hour > 20 }
  unless { context.arguments.hasTag("secret") && context.arguments.getTag("secret") like "x*" };
@id("other-team") permit(principal in Team::"ops", action == Action::"call_tool", resource in ToolGroup::"write");
@id("web") permit(principal, action == Action::"network_access", resource);
@id("no-force") @reason("Open a pull request.") forbid(principal, action, resource in ToolGroup::"write")
  when { context.arguments.hasTag("force") && context.arguments.getTag("force") == "true" && principal in Team::"core" };
@id("overflow") permit(principal, action == Action::"call_tool", resource == Tool::"git/gc")
  when { 9223372036854775807 + principal.trust > 0 };
"#;

fn package() -> std::sync::Arc<CompiledPackage> {
    let mut spec = spec(POLICIES);
    spec.tools.push(tool("git/gc", Tier::Admin));
    compile(&spec, Side::Tenant)
}

fn near(ask: &Ask, hidden: &[&str]) -> Vec<NearPermit> {
    let hidden: Vec<String> = hidden.iter().map(|h| (*h).to_owned()).collect();
    package().nearest_permits(&ask.query(), &hidden, 5).unwrap().0
}

fn ids(near: &[NearPermit]) -> Vec<&str> {
    near.iter().map(|p| p.policy.id.rsplit('/').next().unwrap()).collect()
}

fn fact(path: &str, value: &str) -> Fact {
    Fact { path: path.into(), value: Some(value.into()), missing: None }
}

#[test]
fn permits_are_ranked_by_how_much_of_them_held() {
    let near = near(&Ask::tool("git/push"), &[]);
    // In scope: two conditions left, then two with fewer before them; then those that one part of the scope keeps out.
    assert_eq!(ids(&near), ["near", "writes", "reads", "other-team", "overflow"]);
    assert_eq!((near[0].scope, near[0].conditions), (3, (2, 4)));
    assert_eq!((near[1].scope, near[1].conditions), (3, (1, 3)));
    assert_eq!(near[2].scope, 2);
}

#[test]
fn the_first_condition_that_failed_has_its_place_and_its_values() {
    let near = near(&Ask::tool("git/push"), &[]);
    let failed = &near[0].failed;
    assert_eq!(
        (failed.part, failed.text.as_str(), failed.result.as_str()),
        (Part::Condition, "context.hour > 20", "false")
    );
    assert_eq!(failed.facts, [fact("context.hour", "12")]);
    let source = failed.source.as_ref().unwrap();
    assert_eq!((source.file.as_str(), source.line, source.column, source.width), ("test.cedar", 10, 58, 17));
    assert_eq!(&source.text[57..57 + 17], "context.hour > 20");
    let source = near[1].source.as_ref().unwrap();
    assert_eq!((source.line, source.column, source.text.as_str()), (5, 1, "permit ("));
    assert_eq!(near[1].failed.text, "principal.trust >= 3");
    assert_eq!(near[1].failed.facts, [fact("principal.trust", "2")]);
}

#[test]
fn a_scope_that_does_not_fit_is_shown_with_the_groups_that_were() {
    let near = near(&Ask::tool("git/push"), &[]);
    let failed = &near[2].failed;
    assert_eq!(failed.part, Part::Resource);
    let source = failed.source.as_ref().unwrap();
    assert_eq!(&source.text[source.column - 1..][..source.width], "resource in ToolGroup::\"read\"");
    assert_eq!(failed.facts, [fact("resource", "Tool::\"git/push\""), fact("resource in", "[ToolGroup::\"write\"]")]);
    let failed = &near[3].failed;
    assert_eq!((failed.part, failed.source.as_ref().unwrap().line), (Part::Principal, 12));
    assert_eq!(failed.facts[1], fact("principal in", "[AgentType::\"coder\", Team::\"core\"]"));
}

#[test]
fn permits_for_other_actions_come_only_where_there_are_no_others() {
    let (found, matched) =
        package().nearest_permits(&Ask::on("network_access", "domain", "example.org").query(), &[], 5).unwrap();
    assert!(matched && !ids(&found).contains(&"web"), "{:?}", ids(&found));
    let package =
        compile(&spec("@id(\"web\") permit(principal, action == Action::\"network_access\", resource);"), Side::Tenant);
    let (found, matched) = package.nearest_permits(&Ask::tool("git/push").query(), &[], 5).unwrap();
    assert!(!matched);
    assert_eq!((ids(&found), found[0].failed.part), (vec!["web"], Part::Action));
}

#[test]
fn an_error_is_told_from_a_no() {
    let found = near(&Ask::tool("git/gc"), &[]);
    let overflow = found.iter().find(|p| p.policy.id.ends_with("overflow")).unwrap();
    assert_eq!(
        (overflow.failed.result.as_str(), overflow.failed.error.as_deref()),
        ("error", Some("integer overflow"))
    );
    assert_eq!(overflow.failed.facts, [fact("principal.trust", "2")]);
}

#[test]
fn a_value_that_nobody_kept_is_neither_shown_nor_guessed() {
    let mut ask = Ask::tool("git/push");
    ask.agent.trust = 4;
    ask.arguments = Arguments::default();
    let policy = r#"@id("near") permit(principal, action == Action::"call_tool", resource)
      unless { context.arguments.hasTag("secret") && context.arguments.getTag("secret") like "x*" };"#;
    let package = compile(&spec(policy), Side::Tenant);
    assert!(package.nearest_permits(&ask.query(), &[], 5).unwrap().1, "without the argument it matches");
    let (found, matched) = package.nearest_permits(&ask.query(), &["secret".into()], 5).unwrap();
    assert!(!matched);
    let failed = &found[0].failed;
    assert_eq!(failed.result, "not known");
    assert!(!failed.facts.is_empty() && failed.facts.iter().all(|f| f.value.is_none()), "{:?}", failed.facts);
    assert_eq!(failed.facts[0].missing.as_deref(), Some("not kept"));
}

#[test]
fn a_policy_that_decided_is_explained_with_what_it_read() {
    let ask = Ask::tool("git/push").arguments(json!({"force": true}));
    let found = package().explain(&ask.query(), &[], &["tenant/test/no-force", "tenant/test/gone"]).unwrap();
    assert_eq!(found.len(), 1);
    let source = found[0].source.as_ref().unwrap();
    assert_eq!((source.file.as_str(), source.line, source.column), ("test.cedar", 14, 49));
    assert!(found[0].text.starts_with("@id(\"no-force\")"), "{}", found[0].text);
    assert_eq!(
        found[0].facts,
        [
            fact("context.arguments.hasTag(\"force\")", "true"),
            fact("context.arguments.getTag(\"force\")", "\"true\""),
            fact("principal", "Agent::\"coder\""),
            fact("principal in", "[AgentType::\"coder\", Team::\"core\"]"),
        ]
    );
    assert!(found[0].failed.is_none(), "it held");
    let hidden = package().explain(&ask.query(), &["force".into()], &["tenant/test/no-force"]).unwrap();
    assert!(!format!("{:?}", hidden[0].facts).contains("\"true\""), "{:?}", hidden[0].facts);
}
