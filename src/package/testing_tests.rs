//! What a package's test may say, and how it is answered.

use super::*;
use crate::api::{AttributeSource, MappedAttribute, MappedType, Mapping, Tier, Tool};
use crate::policy::{base_platform, digest};

const POLICIES: &str = r#"
@id("reads") permit (principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("coders") permit (principal in AgentType::"coder", action == Action::"call_tool", resource in ToolGroup::"write");
@id("eu") permit (principal in Team::"payments", action == Action::"call_tool", resource in ToolGroup::"write")
  when { principal.hasTag("region") && principal.getTag("region") == "eu" };
@id("own") permit (principal, action == Action::"open", resource) when { resource.owner == "ann" };
@id("night") @reason("Come back in the morning.")
forbid (principal, action == Action::"call_tool", resource in ToolGroup::"write") when { context.hour < 6 };
@id("nobody") @reason("Not for eve.")
forbid (principal, action == Action::"call_tool", resource)
  when { principal has delegated_by && principal.delegated_by == User::"eve" };
@id("ask") @require_approval("leads")
forbid (principal, action == Action::"call_tool", resource)
  when { context.arguments.hasTag("branch") && context.arguments.getTag("branch") == "main" };
"#;
const SCHEMA: &str = "entity Document { owner: String };\n\
                      action open appliesTo { principal: Agent, resource: Document };\n";

fn report(tests: &[&str]) -> TestReport {
    let tool = |name: &str, tier| Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: vec![],
        description: None,
        schema_digest: None,
    };
    let files = tests.iter().enumerate();
    let spec = PolicyPackageSpec {
        package: "tools".into(),
        version: "1.0.0".into(),
        tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write)],
        policies: vec![SourceFile { name: "main.cedar".into(), text: POLICIES.into() }],
        schema: Some(SCHEMA.into()),
        mapping: Some(Mapping {
            subjects: vec![],
            resources: vec![MappedType {
                type_: "document".into(),
                entity: "Document".into(),
                attributes: vec![MappedAttribute { name: "owner".into(), from: AttributeSource::Caller }],
            }],
        }),
        tests: files.map(|(i, t)| SourceFile { name: format!("tests/{i}.yaml"), text: t.to_string() }).collect(),
        ..Default::default()
    };
    let compiled = CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant).unwrap();
    run_tests(&spec, &compiled, &[base_platform()])
}

#[track_caller]
fn passes(test: &str) {
    let report = report(&[test]);
    assert!(report.passed() && !report.results.is_empty(), "{:?}", report.refusals());
}

#[test]
fn agents_have_the_facts_that_the_test_gives_them() {
    passes(
        "- {name: a, agent: x, call: {tool: git/log}, expect: {decision: allow, code: allowed, policies: [reads]}}
- {name: b, agent: {trust: 0}, call: {tool: git/log}, expect: {decision: deny}}
- {name: c, agent: {type: coder}, call: {tool: git/push}, expect: {decision: allow, policies: [coders]}}
- {name: d, agent: {teams: [payments], attributes: {region: eu}}, call: {tool: git/push}, expect: {decision: allow, policies: [tenant/tools/eu]}}
- {name: e, agent: {teams: [payments], attributes: {region: us}}, call: {tool: git/push}, expect: {decision: deny, code: no_permit, policies: []}}
- {name: f, agent: {suspended: true}, call: {tool: git/log}, expect: {decision: deny, code: paused}}
- {name: g, agent: {type: coder}, at: 2026-01-01T05:59:00Z, call: {tool: git/push}, expect: {decision: deny, policies: [night]}}
- {name: h, agent: x, call: {tool: git/log, arguments: {branch: main}}, expect: {decision: approval_required, policies: [ask]}}
- {name: i, agent: x, call: {tool: shell/run}, expect: {decision: deny, code: unknown_tool}}
",
    );
}

#[test]
fn delegators_are_users_or_agents_in_a_chain() {
    passes(
        "- {name: a, agent: x, on_behalf_of: ann, call: {tool: git/log}, expect: {decision: allow}}
- {name: b, agent: x, on_behalf_of: eve, call: {tool: git/log}, expect: {decision: deny, policies: [nobody]}}
- {name: c, agent: {name: x, on_behalf_of: {user: eve}}, call: {tool: git/log}, expect: {decision: deny, policies: [nobody]}}
- {name: d, agent: x, on_behalf_of: {agent: {name: planner, on_behalf_of: eve}}, call: {tool: git/log}, expect: {decision: deny, policies: [nobody]}}
- {name: e, agent: {name: x, trust: 3}, on_behalf_of: {agent: {name: planner, trust: 0}}, call: {tool: git/log}, expect: {decision: deny}}
- {name: f, agent: {name: x, trust: 3}, on_behalf_of: {agent: planner}, call: {tool: git/log}, expect: {decision: allow}}
",
    );
}

#[test]
fn other_actions_and_attributes_of_the_call() {
    passes(
        "- {name: a, agent: x, call: {action: open, resource: {type: document, id: d, properties: {owner: ann}}}, expect: {decision: allow, policies: [own]}}
- {name: b, agent: x, call: {action: open, resource: {type: document, id: d, properties: {owner: eve}}}, expect: {decision: deny}}
- {name: c, caller: agent, agent: x, call: {action: open, resource: {type: document, id: d, properties: {owner: ann}}}, expect: {decision: refused, code: invalid_request}}
",
    );
}

#[test]
fn a_failing_test_names_file_line_expected_and_got() {
    let report = report(&["# first\n- name: nobody reads\n  agent: x\n  call: {tool: git/log}\n  \
        expect: {decision: deny, code: no_permit, policies: [night]}\n"]);
    let refusals = report.refusals();
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0].code, RefusalCode::TestFailed);
    for words in [
        "tests/0.yaml:2:3: test \"nobody reads\"",
        "expected deny (no_permit) by tenant/tools/night",
        "got allow (allowed)",
        "determining policies: tenant/tools/reads",
    ] {
        assert!(refusals[0].message.contains(words), "{words:?} is not in {}", refusals[0]);
    }
    assert_eq!(report.refusal(), Some(refusals[0].clone()));
}

#[test]
fn every_part_of_the_expectation_counts() {
    let base =
        "- {name: a, agent: x, call: {tool: git/log}, expect: {decision: allow, code: allowed, policies: [reads]}}";
    passes(base);
    for (from, to) in [
        ("decision: allow", "decision: deny"),
        ("code: allowed", "code: no_permit"),
        ("[reads]", "[]"),
        ("[reads]", "[reads, night]"),
        ("[reads]", "[coders]"),
    ] {
        assert!(!report(&[&base.replace(from, to)]).passed(), "{to}");
    }
}

#[test]
fn mistakes_in_tests_have_their_place() {
    let bad = [
        ("- {name: a, agnt: x}", "agnt"),
        ("- {name: a, agent: {trsut: 3}, call: {tool: git/log}, expect: {decision: allow}}", "trsut"),
        ("- {name: a, agent: {trust: 5}, call: {tool: git/log}, expect: {decision: allow}}", "trust is 5"),
        ("- {name: a, agent: x, call: {tool: git/log}, expect: {decision: allwo}}", "allwo"),
        ("- {name: a, agent: x, call: {tool: git/log}, expect: {decision: allow, polices: []}}", "polices"),
        ("- {name: a, agent: x, call: {tool: git/log}}", "expect"),
        ("- {name: a, agent: x, call: {}, expect: {decision: allow}}", "either tool, or action and resource"),
        ("- {name: a, agent: x, call: {tool: t, action: open}, expect: {decision: allow}}", "either tool, or"),
        ("- {name: a, call: {tool: git/log}, expect: {decision: allow}}", "one of agent and subject"),
        ("- {name: '', agent: x, call: {tool: git/log}, expect: {decision: allow}}", "name is empty"),
        ("- {name: a, agent: x, on_behalf_of: {}, call: {tool: t}, expect: {decision: deny}}", "one of user and agent"),
        ("- {name: a, agent: x, on_behalf_of: {agent: x}, call: {tool: t}, expect: {decision: deny}}", "stands twice"),
        (
            "- {name: a, subject: {type: user, id: u}, on_behalf_of: x, call: {tool: t}, expect: {decision: deny}}",
            "only an agent",
        ),
        ("name: a", ""),
        ("- [", ""),
    ];
    for (text, words) in bad {
        let report = report(&[&format!("# first line\n{text}\n")]);
        assert_eq!(report.unreadable.len(), 1, "{text}: {:?}", report.unreadable);
        let refusal = &report.unreadable[0];
        assert_eq!(refusal.code, RefusalCode::TestSyntax, "{refusal}");
        assert!(refusal.message.contains("tests/0.yaml:") && refusal.message.contains(words), "{text}: {refusal}");
        assert!(!refusal.message.contains('\n') && !report.passed());
    }
}

#[test]
fn names_come_once_in_all_files() {
    let test = "- {name: a, agent: x, call: {tool: git/log}, expect: {decision: allow}}";
    let report = report(&[test, &format!("\n{test}")]);
    assert_eq!(report.results.len(), 1);
    assert_eq!(report.unreadable[0].code, RefusalCode::DuplicateId);
    let message = &report.unreadable[0].message;
    assert!(message.contains("tests/1.yaml:2:3") && message.contains("tests/0.yaml:1:3"), "{message}");
}

#[test]
fn number_and_time_are_bounded() {
    let many: String = (0..=MAX_TESTS)
        .map(|i| format!("- {{name: t{i}, agent: x, call: {{tool: git/log}}, expect: {{decision: allow}}}}\n"))
        .collect();
    let report = report(&[&many]);
    assert_eq!((report.results.len(), report.unreadable[0].code), (0, RefusalCode::TooLarge));

    let spec = PolicyPackageSpec {
        package: "tools".into(),
        version: "1.0.0".into(),
        policies: vec![SourceFile { name: "main.cedar".into(), text: POLICIES.replace("@id(\"own\")", "//") }],
        tests: vec![SourceFile {
            name: "t.yaml".into(),
            text: "- {name: a, agent: x, call: {tool: t}, expect: {decision: deny}}\n\
                   - {name: b, agent: x, call: {tool: t}, expect: {decision: deny}}\n"
                .into(),
        }],
        ..Default::default()
    };
    let compiled = CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant).unwrap();
    let left = std::cell::Cell::new(1);
    let report = run_tests_while(&spec, &compiled, &[base_platform()], || left.replace(left.get() - 1) > 0);
    assert!(report.cut_short);
    assert_eq!(report.results.len(), 1);
    assert!(!report.passed(), "what was not run has not passed");
    assert!(report.refusals()[0].message.contains("1 of 2 were run"), "{:?}", report.refusals());
}
