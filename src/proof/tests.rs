//! What a proof says of small changes, with the real solver.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::api::{SourceFile, Tier, Tool};

/// The solver; the tests need it.
pub(super) fn solver() -> PathBuf {
    find(None).unwrap_or_else(|e| panic!("{e}: the proof's tests need Debian's package cvc5 (apt-get install cvc5)"))
}

pub(super) fn tool(name: &str, tier: Tier) -> Tool {
    Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: Vec::new(),
        description: None,
        schema_digest: None,
    }
}

pub(super) fn package(policies: &str) -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "test".into(),
        version: "1.0.0".into(),
        tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write), tool("git/delete", Tier::Admin)],
        policies: vec![SourceFile { name: "test.cedar".into(), text: policies.into() }],
        ..PolicyPackageSpec::default()
    }
}

pub(super) fn compared(baseline: PolicyPackageSpec, candidate: PolicyPackageSpec) -> Proof {
    proved(&Input { tenant: "acme".into(), baseline, candidate, ..Input::default() })
}

pub(super) fn proved(input: &Input) -> Proof {
    prove(input, solver(), PATIENT).unwrap()
}

/// Unoptimised, and on a machine that does other things besides.
const PATIENT: Limits = Limits { time: Duration::from_secs(600), query: Duration::from_secs(120), memory: 2 << 30 };

/// Compares policies over the same tools.
fn policies(baseline: &str, candidate: &str) -> Proof {
    compared(package(baseline), package(candidate))
}

pub(super) fn verdicts(proof: &Proof) -> (ProofVerdict, ProofVerdict) {
    (proof.alone, proof.with_approval)
}

use ProofVerdict::{Equivalent, Expands, Incomparable, Restricts, Unknown};

pub(super) const READS: &str =
    r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
pub(super) const WRITES: &str = r#"@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write")
    when { principal.trust >= 2 };"#;
const ASK: &str = r#"@id("ask") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;
pub(super) const FIRST: &str = include_str!("../../policies/default/tools.cedar");

fn both(a: &str, b: &str) -> String {
    format!("{a}\n{b}")
}

#[test]
fn identical_packages_are_equivalent() {
    let proof = policies(FIRST, FIRST);
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    assert_eq!((&proof.unknown_because, &proof.counter_examples), (&vec![], &vec![]));
    // The same in other words is proved, not only seen.
    let proof =
        policies(&both(READS, WRITES), &both(READS, &WRITES.replace("principal.trust >= 2", "!(principal.trust < 2)")));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    assert!(proof.queries > 0);
}

#[test]
fn an_added_permit_expands_with_a_call_that_was_decided() {
    let proof = policies(READS, &both(READS, WRITES));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    let example = &proof.counter_examples[0];
    assert!(example.expands);
    assert_eq!((example.baseline, example.candidate), (Outcome::Deny, Outcome::Allow));
    assert_eq!(example.candidate_policies, ["tenant/test/writes"]);
    assert_eq!(example.call.resource, "git/push");
    assert_eq!(
        example.sentence,
        "an agent (trust 2) calls git/push: before denied, no policy permits it, now allowed by tenant/test/writes"
    );
}

#[test]
fn a_narrowed_permit_restricts() {
    let proof = policies(WRITES, &WRITES.replace(">= 2", ">= 3"));
    assert_eq!(verdicts(&proof), (Restricts, Restricts), "{proof:?}");
    let example = &proof.counter_examples[0];
    assert!(!example.expands);
    assert_eq!(example.call.agent.as_ref().unwrap().trust, 2);
}

#[test]
fn more_here_and_less_there_is_incomparable() {
    let proof = policies(
        &both(READS, WRITES),
        &both(WRITES, FIRST)
            .replace("@id(\"reads\")", "@id(\"r2\")")
            .replace(
                "resource in ToolGroup::\"read\")",
                "resource in ToolGroup::\"read\") when { principal.trust > 3 }",
            )
            .replace("@id(\"writes\")\npermit", "@id(\"w2\")\npermit"),
    );
    assert_eq!(verdicts(&proof), (Incomparable, Incomparable), "{proof:?}");
    assert!(proof.counter_examples[0].expands && !proof.counter_examples.last().unwrap().expands);
}

#[test]
fn an_added_ask_restricts_alone_and_is_the_same_with_a_human() {
    let proof = policies(WRITES, &both(WRITES, ASK));
    assert_eq!(verdicts(&proof), (Restricts, Equivalent), "{proof:?}");
    assert_eq!(proof.counter_examples[0].candidate, Outcome::ApprovalRequired);
}

#[test]
fn a_removed_ask_expands_alone() {
    let proof = policies(&both(WRITES, ASK), WRITES);
    assert_eq!(verdicts(&proof), (Expands, Equivalent), "{proof:?}");
    assert_eq!(proof.counter_examples[0].baseline_policies, ["tenant/test/ask"]);
}

/// People are asked as before, under the same name: not the same people, or not as many of them.
#[test]
fn a_weaker_human_gate_expands_with_a_human() {
    let gate = |asked: &str| both(WRITES, &ASK.replace(r#"@require_approval("leads")"#, asked));
    let two = gate(r#"@require_approval("leads") @approval_count("2")"#);
    for weaker in [
        r#"@require_approval("everybody") @approval_count("2")"#,
        r#"@require_approval("leads")"#,
        r#"@require_approval("leads") @approval_count("2") @approval_window("1d")"#,
    ] {
        let proof = policies(&two, &gate(weaker));
        assert_eq!(verdicts(&proof), (Equivalent, Expands), "{weaker}: {proof:?}");
        let example = &proof.counter_examples[0];
        assert!(example.expands && example.with_approval);
        assert_eq!((example.baseline, example.candidate), (Outcome::ApprovalRequired, Outcome::ApprovalRequired));
        let words =
            "before asked about by tenant/test/ask, now asked about by tenant/test/ask; 2 of \"leads\" before, ";
        assert!(example.sentence.contains(words), "{}", example.sentence);
    }
    let stricter = policies(&gate(r#"@require_approval("leads")"#), &two);
    assert_eq!(verdicts(&stricter), (Equivalent, Equivalent), "{stricter:?}");
    // For some calls only, by another policy.
    let split = both(
        &two.replace("ToolGroup::\"write\");", "ToolGroup::\"write\") when { principal.trust < 4 };"),
        r#"@id("late") @require_approval("everybody") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#,
    );
    let proof = policies(&two, &split);
    assert_eq!(verdicts(&proof), (Equivalent, Expands), "{proof:?}");
    assert_eq!(proof.counter_examples[0].call.agent.as_ref().unwrap().trust, 4);
    // The same demand under other names and in other words is the same.
    let same = both(
        &two.replace("ToolGroup::\"write\");", "ToolGroup::\"write\") when { principal.trust < 4 };"),
        r#"@id("late") @require_approval("leads") @approval_count("3") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 4 };"#,
    );
    let proof = policies(&two, &same);
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
}

#[test]
fn a_platforms_forbid_hides_an_expansion() {
    // The base package lets trust 0 do nothing.
    let zero =
        r#"@id("zero") permit(principal, action == Action::"call_tool", resource) when { principal.trust == 0 };"#;
    let proof = policies(READS, &both(READS, zero));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    // A platform's package names agents and teams by the tenant, and tools by their tier only.
    let platform = |text: &str| PolicyPackageSpec { tools: vec![], package: "further".into(), ..package(text) };
    let mut input = Input {
        tenant: "acme".into(),
        baseline: package(READS),
        candidate: package(&both(
            READS,
            r#"@id("bot") permit(principal in Team::"core", action == Action::"call_tool", resource == Tool::"git/push");"#,
        )),
        platform: vec![platform(
            r#"@id("no") forbid(principal in Team::"acme/core", action == Action::"call_tool", resource in ToolGroup::"write")
               when { context.tenant == "acme" };"#,
        )],
        ..Input::default()
    };
    let proof = proved(&input);
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    input.tenant = "other".into();
    let proof = proved(&input);
    assert_eq!(verdicts(&proof), (Expands, Expands), "another tenant's team is not this one: {proof:?}");
}

#[test]
fn with_a_delegator_both_evaluations_count() {
    let delegated = r#"@id("d") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read")
        when { principal has delegated_by && principal.delegated_by == User::"ann" };"#;
    // A permit only with the delegator lets nothing through: without her the same call is denied.
    let proof = policies(WRITES, &both(WRITES, delegated));
    assert!(!proof.expands(), "{proof:?}");
    let proof = policies(
        &both(
            READS,
            r#"@id("f") forbid(principal, action, resource) when { principal is Agent && principal has delegated_by };"#,
        ),
        READS,
    );
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    let delegation = proof.counter_examples[0].call.delegation.as_ref().unwrap();
    assert!(delegation.user.is_some());
}

#[test]
fn arguments_and_numbers_become_a_call() {
    let limited = r#"@id("amount") permit(principal, action == Action::"call_tool", resource == Tool::"git/push")
        when { context.numbers.hasTag("order.amount") && context.numbers.getTag("order.amount") <= 100
            && context.arguments.hasTag("to") && context.arguments.getTag("to") like "*@example.org" };"#;
    let proof = policies(limited, &limited.replace("<= 100", "<= 200"));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    let arguments = &proof.counter_examples[0].call.arguments;
    let amount = arguments["order"]["amount"].as_i64().unwrap();
    assert!((101..=200).contains(&amount), "{arguments:?}");
    assert!(arguments["to"].as_str().unwrap().ends_with("@example.org"));
}

#[test]
fn destinations_risk_grants_and_sessions_are_looked_at() {
    let net = r#"@id("n") permit(principal, action == Action::"network_access", resource in Domain::"example.org");"#;
    let proof = policies(net, &net.replace("example.org", "org"));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    assert!(proof.counter_examples[0].call.resource.ends_with("org"), "{proof:?}");
    let proof = policies(&net.replace("example.org", "org"), net);
    assert_eq!(verdicts(&proof), (Restricts, Restricts), "{proof:?}");
    let risky = READS.replace(';', " when { context.risk < 70 || context.granted };");
    let proof = policies(&risky, READS);
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    assert!(proof.counter_examples[0].call.risk >= 70);
    // Risk is at most 100.
    let proof = policies(&READS.replace(';', " when { context.risk < 101 };"), READS);
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
}

#[test]
fn listed_entities_are_put_in_on_both_sides() {
    let by_leads = r#"@id("leads") forbid(principal, action == Action::"call_tool", resource)
        when { principal has delegated_by && !(principal.delegated_by in Group::"leads") };"#;
    let leads = |names: &[&str]| {
        let listed: Vec<_> = names
            .iter()
            .map(|n| serde_json::json!({"uid": {"type": "User", "id": n}, "attrs": {}, "parents": [{"type": "Group", "id": "leads"}]}))
            .chain([serde_json::json!({"uid": {"type": "Group", "id": "leads"}, "attrs": {}, "parents": []})])
            .collect();
        PolicyPackageSpec { entities: Some(serde_json::to_string(&listed).unwrap()), ..package(&both(READS, by_leads)) }
    };
    assert_eq!(verdicts(&compared(leads(&["ann"]), leads(&["ann"]))), (Equivalent, Equivalent));
    let proof = compared(leads(&["ann"]), leads(&["ann", "bob"]));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    let delegation = proof.counter_examples[0].call.delegation.as_ref().unwrap();
    assert_eq!(delegation.user.as_deref(), Some("bob"));
    let proof = compared(leads(&["ann", "bob"]), leads(&["bob"]));
    assert_eq!(verdicts(&proof), (Restricts, Restricts), "{proof:?}");
}

#[test]
fn a_type_of_ones_own_is_compared_as_far_as_it_is_known() {
    use crate::api::{AttributeSource, MappedAttribute, MappedType, Mapping};
    let docs = |policies: &str| PolicyPackageSpec {
        schema: Some(
            "entity Doc { owner?: User, secret: Bool };
             action read_doc appliesTo { principal: [Agent], resource: [Doc], context: CallContext };"
                .into(),
        ),
        mapping: Some(Mapping {
            resources: vec![MappedType {
                type_: "doc".into(),
                entity: "Doc".into(),
                attributes: vec![MappedAttribute { name: "secret".into(), from: AttributeSource::Agent }],
            }],
            ..Mapping::default()
        }),
        ..package(policies)
    };
    let read = r#"@id("doc") permit(principal, action == Action::"read_doc", resource);"#;
    let open = r#"@id("doc") permit(principal, action == Action::"read_doc", resource) when { !resource.secret };"#;
    assert_eq!(verdicts(&compared(docs(read), docs(read))), (Equivalent, Equivalent));
    assert_eq!(verdicts(&compared(docs(open), docs(open))), (Equivalent, Equivalent));
    let proof = compared(docs(READS), docs(read));
    assert_eq!(verdicts(&proof), (Incomparable, Incomparable), "{proof:?}");
    // Every call may leave `secret` out, and then the policy errs: the solver does not know of that.
    let proof = compared(docs(open), docs(read));
    assert_ne!(proof.alone, Equivalent, "{proof:?}");
    assert_ne!(proof.alone, Restricts, "{proof:?}");
    let always =
        r#"@id("doc") permit(principal, action == Action::"read_doc", resource) when { resource.secret || true };"#;
    let proof = compared(docs(always), docs(read));
    assert!(matches!(proof.alone, Unknown | Expands), "a call without `secret` is newly let through: {proof:?}");
}

#[test]
fn a_schema_that_contradicts_the_other_is_unknown_where_it_is_spoken_of() {
    let with = |schema: &str, policies: &str| PolicyPackageSpec { schema: Some(schema.into()), ..package(policies) };
    let proof = compared(
        with("entity Extra { a: Long };", &both(READS, WRITES)),
        with("entity Extra { a: String };", &both(READS, &WRITES.replace(">= 2", ">= 3"))),
    );
    assert_eq!(verdicts(&proof), (Restricts, Restricts), "nobody speaks of Extra: {proof:?}");
}

#[test]
fn policies_that_can_never_apply_and_that_can_err_are_named() {
    let never =
        r#"@id("never") permit(principal, action == Action::"call_tool", resource) when { principal.trust > 7 };"#;
    let errs = r#"@id("errs") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write")
        when { context.numbers.hasTag("n") && context.numbers.getTag("n") + 1 > 100 };"#;
    let proof = policies(READS, &format!("{READS}{never}{errs}"));
    assert_eq!(proof.never_apply, ["tenant/test/never"], "{proof:?}");
    let named: Vec<&str> = proof.can_err.iter().map(|c| c.policy.as_str()).collect();
    assert_eq!(named, ["tenant/test/errs"]);
    assert!(proof.can_err[0].environment.contains("call_tool"));
    // What can't overflow for any trust that there is, can't err.
    let bounded = READS.replace(';', " when { principal.trust + 1 > 0 };");
    let proof = policies(READS, &bounded);
    assert_eq!((verdicts(&proof), proof.can_err), ((Equivalent, Equivalent), vec![]));
}

#[test]
fn declared_invariants_are_proved_over_every_call() {
    let invariant = |value: serde_json::Value| serde_json::from_value::<Invariant>(value).unwrap();
    let input = |policies: &str| Input {
        tenant: "acme".into(),
        baseline: package(READS),
        candidate: package(policies),
        invariants: vec![
            invariant(
                serde_json::json!({"name": "juniors", "agentTrustBelow": 3, "tier": "admin", "expect": "neverAllow"}),
            ),
            invariant(serde_json::json!({"name": "push", "tool": "git/push", "expect": "neverAllowAlone"})),
            Invariant::named("unknown_tools_denied"),
            Invariant::named("no_write_privilege_escalation"),
            Invariant::named("write_tools_need_approval"),
            Invariant::named("nonsense"),
        ],
        ..Input::default()
    };
    let holding = |proof: &Proof| proof.invariants.iter().map(|i| i.holding).collect::<Vec<_>>();
    use Holding::{Fails, Holds};
    let good = r#"@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin")
        when { principal.trust >= 3 };"#;
    let proof = proved(&input(&both(READS, good)));
    assert_eq!(holding(&proof), [Holds, Holds, Holds, Fails, Fails, Holding::Unknown], "{:?}", proof.invariants);
    let proof = proved(&input(&format!("{READS}{}{WRITES}{ASK}", good.replace(">= 3", ">= 2"))));
    assert_eq!(holding(&proof), [Fails, Holds, Holds, Fails, Fails, Holding::Unknown], "{:?}", proof.invariants);
    let why = proof.invariants[0].because.as_deref().unwrap();
    assert!(why.contains("trust 2") && why.contains("git/delete") && why.contains("tenant/test/admins"), "{why}");
    let proof = proved(&input(READS));
    assert_eq!(holding(&proof), [Holds, Holds, Holds, Holds, Holds, Holding::Unknown], "{:?}", proof.invariants);
    let summary = proof.summary();
    assert!(summary.invariants_failed.is_empty(), "{:?}", summary.invariants_failed);
    let unproved = summary.invariants_unproved;
    assert!(unproved.len() == 1 && unproved[0].starts_with("nonsense: "), "{unproved:?}");
}

#[test]
fn a_hundred_policies_with_a_changed_bound_are_compared_in_time() {
    let many = |bound: i64| -> String {
        (0..100)
            .map(|n| {
                let bound = if n == 57 { bound } else { 1_000 + n };
                format!(
                    r#"@id("p{n}") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write")
                       when {{ context.numbers.hasTag("n{n}") && context.numbers.getTag("n{n}") < {bound} }};"#
                )
            })
            .collect()
    };
    let proof = policies(&many(1_000), &many(2_000));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{:?}", proof.unknown_because);
    assert_eq!(proof.counter_examples[0].candidate_policies, ["tenant/test/p57"]);
}

#[test]
fn what_the_solver_does_not_answer_is_unknown() {
    let input = Input {
        tenant: "acme".into(),
        baseline: package(READS),
        candidate: package(&both(READS, WRITES)),
        ..Input::default()
    };
    // No time at all.
    let limits = Limits { time: Duration::ZERO, ..Limits::default() };
    let proof = prove(&input, solver(), limits).unwrap();
    assert_eq!(verdicts(&proof), (Unknown, Unknown));
    assert!(proof.unknown_because[0].contains("time"), "{proof:?}");
    // Something that is no solver, and dies of what it is told.
    let proof = prove(&input, "/bin/false".into(), Limits::default()).unwrap();
    assert_eq!(verdicts(&proof), (Unknown, Unknown));
    assert!(proof.unknown_because.iter().any(|w| w.contains("the solver ended")), "{proof:?}");
    // Something that never answers: it is killed.
    let dir = tempfile::tempdir().unwrap();
    let silent = script(dir.path(), "echo $$ > $(dirname $0)/pid; exec sleep 1000");
    let limits = Limits { query: Duration::from_millis(300), ..Limits::default() };
    let proof = prove(&input, silent, limits).unwrap();
    assert_eq!(verdicts(&proof), (Unknown, Unknown));
    assert!(proof.unknown_because.iter().any(|w| w.contains("did not answer")), "{proof:?}");
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "killed, and waited for");
    // Too little memory to start in.
    let limits = Limits { memory: 1 << 20, ..Limits::default() };
    let proof = prove(&input, solver(), limits).unwrap();
    assert_eq!(verdicts(&proof), (Unknown, Unknown), "{proof:?}");
}

/// A program that is no solver.
pub(super) fn script(dir: &std::path::Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("solver.sh");
    std::fs::write(&path, format!("#!/bin/sh\nPATH=/bin:/usr/bin\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_liar_for_a_solver_shows_no_call() {
    // Says of everything that there is a counter-example, and gives an empty model.
    let dir = tempfile::tempdir().unwrap();
    let liar = script(
        dir.path(),
        r#"while read -r line; do case "$line" in "(check-sat)") echo sat;; "(get-model)") printf '(\n)\n';; esac; done"#,
    );
    let input = Input {
        tenant: "acme".into(),
        baseline: package(&both(READS, WRITES)),
        candidate: package(&both(READS, &WRITES.replace(">= 2", ">= 3"))),
        ..Input::default()
    };
    let proof = prove(&input, liar, Limits::default()).unwrap();
    assert_eq!((verdicts(&proof), proof.counter_examples.len()), ((Unknown, Unknown), 0), "{proof:?}");
}

#[test]
fn a_missing_solver_is_named() {
    let missing = find(Some("/nowhere/cvc5".as_ref())).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/cvc5"));
    assert!(NoSolver::Missing.to_string().contains("package cvc5"));
    let proof = Proof::unknown(&Input::default(), missing.to_string());
    assert!(proof.is_unknown() && !proof.expands());
    assert!(proof.summary().unknown_because.unwrap().contains("/nowhere/cvc5"));
}

#[test]
fn a_package_that_does_not_compile_is_refused() {
    let input = Input { candidate: package("this is not Cedar"), baseline: package(READS), ..Input::default() };
    let error = prove(&input, solver(), Limits::default()).unwrap_err();
    assert!(error.starts_with("candidate: "), "{error}");
}
