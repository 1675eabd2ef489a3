//! Random pairs of packages, random calls: what is called equivalent or restricting is never contradicted by Remit's gates, and every
//! call that is shown is decided as it says.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, json};

use super::prove::passes;
use super::tests::{proved, solver, tool};
use super::{Call, Input};
use crate::api::{PolicyPackageSpec, Sensitivity, SourceFile, Tier, Tool};
use crate::lifecycle::evidence::ProofVerdict;
use crate::policy::{AgentFacts, CompiledPackage, DelegationFacts, Side, base_platform};

/// A condition: small, over everything that a call brings, some of which can err.
fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0i64..5).prop_map(|n| format!("principal.trust >= {n}")),
        Just("principal has delegated_by".to_owned()),
        Just(r#"principal has delegated_by && principal.delegated_by in Group::"leads""#.to_owned()),
        Just(r#"principal in Team::"core""#.to_owned()),
        Just(r#"principal in AgentType::"coder""#.to_owned()),
        Just(r#"principal.type == "coder""#.to_owned()),
        Just(r#"principal == Agent::"bot""#.to_owned()),
        Just(r#"principal.delegation_chain.contains(Agent::"boss")"#.to_owned()),
        Just(r#"principal.hasTag("region") && principal.getTag("region") == "eu""#.to_owned()),
        Just(r#"resource.tier == "admin""#.to_owned()),
        Just("resource.sensitive".to_owned()),
        Just(r#"resource in [ToolGroup::"read", ToolGroup::"vcs"]"#.to_owned()),
        Just(r#"Tool::"git/push" in ToolGroup::"write""#.to_owned()),
        Just(r#"context.arguments.hasTag("b") && context.arguments.getTag("b") like "m*n""#.to_owned()),
        (0i64..3).prop_map(|n| format!(r#"context.numbers.hasTag("n") && context.numbers.getTag("n") > {n}"#)),
        (0i64..3).prop_map(|n| format!(r#"context.numbers.hasTag("n") && context.numbers.getTag("n") * 3 > {n}"#)),
        (0i64..4).prop_map(|n| format!("context.risk > {}", n * 30)),
        Just("context.granted".to_owned()),
        Just("context.hour < 12".to_owned()),
        Just(r#"context has session && context.session == "s""#.to_owned()),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

fn policy() -> impl Strategy<Value = (u8, u8, String)> {
    (0u8..8, 0u8..5, condition())
}

fn text(policies: &[(u8, u8, String)]) -> String {
    let lines = policies.iter().enumerate().map(|(n, (effect, scope, condition))| {
        let (annotation, effect) = match effect {
            0..=4 => ("", "permit"),
            5 | 6 => ("", "forbid"),
            _ => (r#"@require_approval("leads")"#, "forbid"),
        };
        let resource = ["resource", r#"resource in ToolGroup::"read""#, r#"resource in ToolGroup::"write""#,
            r#"resource == Tool::"git/push""#, r#"resource in ToolGroup::"vcs""#][usize::from(*scope)];
        format!(r#"@id("p{n}") {annotation} {effect}(principal, action == Action::"call_tool", {resource}) when {{ {condition} }};"#)
    });
    lines.collect()
}

#[derive(Clone, Debug)]
struct Pair {
    policies: Vec<(u8, u8, String)>,
    /// What the candidate has instead of the policy of that number, or besides.
    changed: Option<(usize, (u8, u8, String))>,
    removed: Option<usize>,
    tiers: [(u8, bool, bool); 2],
    leads: [bool; 2],
}

fn pair() -> impl Strategy<Value = Pair> {
    (
        proptest::collection::vec(policy(), 1..4),
        proptest::option::of((0usize..4, policy())),
        proptest::option::weighted(0.2, 0usize..4),
        (0u8..3, any::<bool>(), any::<bool>()),
        proptest::option::weighted(0.3, (0u8..3, any::<bool>(), any::<bool>())),
        any::<bool>(),
        proptest::bool::weighted(0.3),
    )
        .prop_map(|(policies, changed, removed, tier, other, lead, flip)| Pair {
            policies,
            changed,
            removed,
            tiers: [tier, other.unwrap_or(tier)],
            leads: [lead, lead != flip],
        })
}

fn package(policies: &[(u8, u8, String)], (tier, sensitive, vcs): (u8, bool, bool), lead: bool) -> PolicyPackageSpec {
    let push = Tool {
        sensitivity: if sensitive { Sensitivity::Sensitive } else { Sensitivity::Normal },
        groups: if vcs { vec!["vcs".into()] } else { vec![] },
        ..tool("git/push", [Tier::Read, Tier::Write, Tier::Admin][usize::from(tier)])
    };
    let parents = if lead { json!([{"type": "Group", "id": "leads"}]) } else { json!([]) };
    let entities = json!([
        {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": parents},
        {"uid": {"type": "Group", "id": "leads"}, "attrs": {}, "parents": []},
    ]);
    PolicyPackageSpec {
        package: "random".into(),
        version: "1.0.0".into(),
        tools: vec![tool("git/log", Tier::Read), push],
        policies: vec![SourceFile { name: "random.cedar".into(), text: text(policies) }],
        entities: Some(entities.to_string()),
        ..PolicyPackageSpec::default()
    }
}

impl Pair {
    fn specs(&self) -> [PolicyPackageSpec; 2] {
        let mut changed = self.policies.clone();
        if let Some((at, policy)) = &self.changed {
            if *at < changed.len() { changed[*at] = policy.clone() } else { changed.push(policy.clone()) }
        }
        if let Some(at) = self.removed
            && at < changed.len()
            && changed.len() > 1
        {
            changed.remove(at);
        }
        [package(&self.policies, self.tiers[0], self.leads[0]), package(&changed, self.tiers[1], self.leads[1])]
    }
}

fn call() -> impl Strategy<Value = Call> {
    let agent = (0i64..5, any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(any::<bool>()));
    let delegation = (proptest::option::of(any::<bool>()), proptest::bool::weighted(0.3));
    let arguments = (
        proptest::option::of(prop_oneof![Just("main"), Just("mn"), Just("x")]),
        proptest::option::of(prop_oneof![-3i64..5, Just(i64::MAX)]),
    );
    let context = (prop_oneof![Just(0i64), Just(31), Just(61), Just(100)], any::<bool>(), 0i64..24, any::<bool>());
    (agent, delegation, arguments, context, any::<bool>()).prop_map(
        |((trust, bot, core, coder, region), (user, boss), (b, n), (risk, granted, hour, session), push)| {
            let facts = |name: &str| AgentFacts {
                tenant: "acme".into(),
                name: name.into(),
                uid: "1".into(),
                type_: if coder { "coder".into() } else { String::new() },
                teams: if core { vec!["core".into()] } else { vec![] },
                trust,
                suspended: false,
                attributes: region
                    .map(|eu| ("region".into(), if eu { "eu" } else { "us" }.into()))
                    .into_iter()
                    .collect(),
            };
            let name = if bot { "bot" } else { "coder" };
            let user = user.map(|ann| if ann { "ann".to_owned() } else { "bob".to_owned() });
            let chain = if boss { vec![facts("boss")] } else { vec![] };
            let mut arguments = Map::new();
            arguments.extend(b.map(|b| ("b".to_owned(), json!(b))));
            arguments.extend(n.map(|n| ("n".to_owned(), json!(n))));
            Call {
                subject_type: "agent".into(),
                subject: name.into(),
                agent: Some(facts(name)),
                delegation: (user.is_some() || !chain.is_empty()).then_some(DelegationFacts { user, chain }),
                action: "call_tool".into(),
                resource_type: "tool".into(),
                resource: if push { "git/push" } else { "git/log" }.into(),
                arguments,
                session: session.then(|| "s".into()),
                risk,
                granted,
                hour,
            }
        },
    )
}

#[test]
fn no_verdict_is_contradicted_by_the_gates() {
    solver();
    let platform = [base_platform()];
    let (mut seen, mut unknown) = (std::collections::BTreeMap::<&str, u32>::new(), 0);
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 40, failure_persistence: None, max_shrink_iters: 40, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let strategy = (pair(), proptest::collection::vec(call(), 150));
    let counted = std::cell::RefCell::new((&mut seen, &mut unknown));
    let result = runner.run(&strategy, |(pair, calls)| {
        let [baseline, candidate] = pair.specs();
        let compile = |spec: &PolicyPackageSpec| -> Result<Arc<CompiledPackage>, TestCaseError> {
            CompiledPackage::compile(spec, "sha256:0", Side::Tenant)
                .map_err(|_| TestCaseError::reject("it does not compile"))
        };
        let sides = [compile(&baseline)?, compile(&candidate)?];
        let proof = proved(&Input { tenant: "acme".into(), baseline, candidate, ..Input::default() });
        *counted.borrow_mut().0.entry(proof.alone.as_str()).or_default() += 1;
        if proof.is_unknown() {
            *counted.borrow_mut().1 += 1;
        }
        let decided = |call: &Call| {
            let of = |package: &CompiledPackage| call.decide("acme", &platform, package).0;
            (of(&sides[0]), of(&sides[1]))
        };
        for example in &proof.counter_examples {
            prop_assert_eq!((example.baseline, example.candidate), decided(&example.call), "{:?}", example);
            let lifted = example.with_approval;
            let (lets, stops) = if example.expands {
                (example.candidate, example.baseline)
            } else {
                (example.baseline, example.candidate)
            };
            prop_assert!(passes(lets, lifted) && !passes(stops, lifted), "{:?}", example);
        }
        for call in &calls {
            let (before, after) = decided(call);
            for (verdict, lifted) in [(proof.alone, false), (proof.with_approval, true)] {
                let (before, after) = (passes(before, lifted), passes(after, lifted));
                let contradicted = match verdict {
                    ProofVerdict::Equivalent => before != after,
                    ProofVerdict::Restricts => after && !before,
                    ProofVerdict::Expands | ProofVerdict::Incomparable | ProofVerdict::Unknown => false,
                };
                prop_assert!(!contradicted, "{:?} lifted={}: {:?}\n{:?}", verdict, lifted, call, proof);
            }
        }
        Ok(())
    });
    result.unwrap();
    // A proof that says `unknown` of everything would pass, too.
    assert!(["equivalent", "restricts", "expands"].iter().all(|v| seen.contains_key(v)), "{seen:?}");
    assert!(unknown * 2 < seen.values().sum::<u32>(), "{unknown} unknown: {seen:?}");
}
