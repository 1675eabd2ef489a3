//! The comment: sentences, budgets, and texts that must not become markup.

use super::*;
use crate::api::{Budgets, PolicyPackageSpec, ProofBudget, SourceFile, Tier, Tool};
use crate::lifecycle::evidence::{ProofVerdict, Shares};
use crate::policy::{CompiledPackage, Side, base_platform};
use crate::proof::{CounterExample, Holding, Input, InvariantProof};
use crate::replay::{EffectiveSet, MatrixCell};

/// A rollout's defaults.
fn lax() -> Held {
    Held::default()
}

fn budgets(change: impl FnOnce(&mut Budgets)) -> Held {
    let mut held = lax();
    change(held.rollout.budgets.get_or_insert_default());
    held
}

fn proof(alone: ProofVerdict) -> Proof {
    let mut proof = Proof::unknown(&Input::default(), "");
    proof.unknown_because.clear();
    (proof.alone, proof.with_approval) = (alone, alone);
    proof
}

fn example(sentence: &str) -> CounterExample {
    let call = serde_json::json!({
        "subjectType": "agent", "subject": "a", "action": "call_tool", "resourceType": "tool", "resource": "git/push",
        "arguments": {}, "risk": 0, "granted": false, "hour": 12
    });
    CounterExample {
        expands: true,
        with_approval: false,
        call: serde_json::from_value(call).unwrap(),
        baseline: Outcome::Deny,
        candidate: Outcome::Allow,
        baseline_policies: vec![],
        candidate_policies: vec![],
        sentence: sentence.into(),
    }
}

/// A report of no decisions, to be filled.
fn replay() -> Report {
    let spec = PolicyPackageSpec {
        package: "guard".into(),
        version: "1.0.0".into(),
        tools: vec![Tool {
            name: "git/log".into(),
            tier: Tier::Read,
            sensitivity: Default::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        }],
        policies: vec![SourceFile {
            name: "main.cedar".into(),
            text: r#"@id("p") permit(principal, action, resource);"#.into(),
        }],
        ..Default::default()
    };
    let package = CompiledPackage::compile(&spec, "sha256:0", Side::Tenant).unwrap();
    let set = EffectiveSet { platform: vec![base_platform()], package };
    crate::replay::run(&set, &set, &[], &mut []).unwrap()
}

fn replayed(cells: &[(Outcome, Outcome, u64)]) -> Report {
    let mut report = replay();
    report.counts.replayed = cells.iter().map(|c| c.2 as i64).sum();
    report.counts.selected = report.counts.replayed;
    report.matrix =
        cells.iter().map(|(b, c, n)| MatrixCell { baseline: *b, candidate: *c, reads: 0, writes: *n }).collect();
    report.from = Some("2026-11-15T10:00:00Z".parse().unwrap());
    report.to = Some("2026-11-22T10:00:00Z".parse().unwrap());
    report
}

fn tests() -> Tests {
    Tests { passed: 3, total: 3, failures: vec![] }
}

use Outcome::{Allow, ApprovalRequired, Deny};

#[test]
fn two_sentences_say_what_changes() {
    let mut expands = proof(ProofVerdict::Expands);
    expands.counter_examples = vec![example("an agent (trust 3) calls db/drop"), example("another")];
    let report = replayed(&[(Allow, Allow, 8_210), (Allow, Deny, 14), (Allow, ApprovalRequired, 5), (Deny, Allow, 2)]);
    let diff = Diff::new(tests(), expands, report, &lax());
    assert_eq!(
        diff.headline,
        [
            "Permits 2 new calls, here is one: an agent (trust 3) calls db/drop.",
            "Denies 14 of 8,231 recorded decisions from 2026-11-15 to 2026-11-22; 2 newly allowed; 5 newly asked about."
        ]
    );
    assert!(diff.passed, "{:?}", diff.checks);
    let none = Diff::new(tests(), proof(ProofVerdict::Restricts), replay(), &lax());
    assert_eq!(
        none.headline,
        ["Permits no new call: that is proved over all calls.", "No recorded decision could be replayed."]
    );
    let unknown = Diff::new(tests(), Proof::unknown(&Input::default(), "no solver"), replay(), &lax());
    assert_eq!(unknown.headline[0], "Whether it permits new calls is not known. Not everything is proved: no solver.");
}

#[test]
fn each_budget_fails_by_itself_and_what_is_inconclusive_only_where_it_is_required() {
    let passed = |tests: Tests, proof: Proof, replay: Report, held: Held| Diff::new(tests, proof, replay, &held).passed;
    let good = || replayed(&[(Allow, Allow, 100)]);
    let with = |change: fn(&mut Report)| {
        let mut report = good();
        change(&mut report);
        report
    };
    let same = || proof(ProofVerdict::Equivalent);
    let strict = || Held { require: true, ..lax() };
    assert!(passed(tests(), same(), good(), strict()));
    assert!(!passed(Tests { failures: vec!["x".into()], ..tests() }, same(), good(), lax()));
    assert!(!passed(tests(), same(), with(|r| r.counts.critical = 1), lax()));
    assert!(passed(tests(), same(), with(|r| r.counts.critical = 1), budgets(|b| b.critical_drift = Some(1))));
    assert!(passed(tests(), same(), with(|r| r.counts.high = 2), lax()));
    assert!(!passed(tests(), same(), with(|r| r.counts.high = 3), lax()));
    let restricts = |r: &mut Report| {
        (r.counts.high, r.counts.high_restrictions) = (9, 9);
        r.shares = Some(Shares { high_restrictions: 9, ..Shares::default() });
    };
    assert!(!passed(tests(), same(), with(restricts), lax()));
    let mut acknowledged = lax();
    acknowledged.rollout.acknowledged_restrictions = vec!["sha256:0".into()];
    assert!(passed(tests(), same(), with(restricts), acknowledged));
    assert!(passed(tests(), same(), replay(), lax()) && !passed(tests(), same(), replay(), strict()));
    for (verdict, required, no_expansion) in [
        (ProofVerdict::Equivalent, true, true),
        (ProofVerdict::Restricts, true, true),
        (ProofVerdict::Expands, true, false),
        (ProofVerdict::Incomparable, true, false),
        (ProofVerdict::Unknown, false, false),
    ] {
        assert!(passed(tests(), proof(verdict), good(), lax()), "{verdict:?} is only shown");
        let wants = |wanted| passed(tests(), proof(verdict), good(), budgets(|b| b.proof = Some(wanted)));
        assert_eq!(
            (wants(ProofBudget::Required), wants(ProofBudget::NoExpansion)),
            (required, no_expansion),
            "{verdict:?}"
        );
    }
    for (holding, shown, required) in
        [(Holding::Holds, true, true), (Holding::Unknown, true, false), (Holding::Fails, false, false)]
    {
        let mut held = same();
        held.invariants = vec![InvariantProof { name: "x".into(), holding, because: None }];
        assert_eq!(passed(tests(), held.clone(), good(), lax()), shown);
        assert_eq!(passed(tests(), held, good(), budgets(|b| b.proof = Some(ProofBudget::Required))), required);
    }
}

#[test]
fn texts_of_others_are_no_markup_no_link_and_mention_nobody() {
    let mut hostile = proof(ProofVerdict::Expands);
    hostile.counter_examples =
        vec![example("<img src=x> [a](https://evil) @team #7 `x` | b\n# title www.evil.example **bold** \u{1b}[31m")];
    let diff = Diff::new(tests(), hostile, replay(), &lax());
    let text = diff.markdown();
    assert!(text.contains("@\u{200b}team") && text.contains("#\u{200b}7"), "as it is rendered, too: {text}");
    for bad in
        ["<img", "](https:", "@team", "#7", "&#64;", "&#35;", "\n# title", "www.evil", "**bold**", "\u{1b}", "`x`"]
    {
        assert!(!text.contains(bad), "{bad}: {text}");
    }
    assert!(text.starts_with("## Remit: guard 1.0.0 → 1.0.0: within the budgets\n"), "{text}");
    assert!(safe(&"x".repeat(1000)).chars().count() == MAX_TEXT + 1);
}

#[test]
fn numbers_are_grouped() {
    for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (8_231, "8,231"), (1_234_567, "1,234,567")] {
        assert_eq!(counted(n), text);
    }
}
