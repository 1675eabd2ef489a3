//! The index and what is looked up once never change an answer: over random schemas, policies (with ones that error), entities
//! and requests, the fast evaluation equals Cedar's own authorizer over everything. And what is foreseen of a call before its
//! arguments are known holds for it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use super::support::{agent, spec};
use super::{
    AgentFacts, Arguments, CallerKind, CompiledPackage, DelegationFacts, Evaluation, Outcomes, PolicyRef, Query,
    Resource, Side, Subject,
};
use crate::api::{AttributeSource, MappedAttribute, MappedType, Mapping, PolicyPackageSpec, SourceFile};

const PRINCIPALS: [&str; 12] = [
    "principal",
    "principal == Agent::\"coder\"",
    "principal == Agent::\"other\"",
    "principal in Team::\"t0\"",
    "principal in AgentType::\"coder\"",
    "principal is Agent",
    "principal is Agent in Team::\"t1\"",
    "principal == User::\"u0\"",
    "principal in Group::\"g1\"",
    "principal in User::\"u1\"",
    "principal is User",
    "principal is User in Group::\"g2\"",
];
const ACTIONS: [&str; 7] = [
    "action",
    "action == Action::\"read\"",
    "action == Action::\"write\"",
    "action in Action::\"reading\"",
    "action in Action::\"anything\"",
    "action in [Action::\"write\", Action::\"reading\"]",
    "action in [Action::\"read\"]",
];
const RESOURCES: [&str; 12] = [
    "resource",
    "resource == Doc::\"d0\"",
    "resource == Doc::\"new\"",
    "resource in Folder::\"f0\"",
    "resource in Folder::\"f2\"",
    "resource in Doc::\"d1\"",
    "resource is Doc",
    "resource is Folder",
    "resource is Doc in Folder::\"f1\"",
    "resource is Doc in Folder::\"f3\"",
    "resource == Folder::\"f1\"",
    "resource is Folder in Folder::\"f3\"",
];
/// The overflows and the entity of which nothing is known error for some requests.
const CONDITIONS: [&str; 22] = [
    "true",
    "context.risk > 2",
    "9223372036854775807 + context.risk > 0",
    "principal is Agent && principal.trust >= 2",
    "resource is Doc && resource has level && resource.level > 2",
    "resource is Doc && resource has owner && resource.owner in Group::\"g1\"",
    "resource is Doc && resource has owner && resource.owner == User::\"u1\"",
    "Doc::\"ghost\".size > 1",
    "context.arguments.hasTag(\"a\") && context.arguments.getTag(\"a\") like \"*x*\"",
    "context.numbers.hasTag(\"n\") && context.numbers.getTag(\"n\") * 4611686018427387904 > 0",
    "Folder::\"f0\" in Folder::\"f3\"",
    "resource is Doc && resource has next && resource.next.size > 1",
    "principal is Agent && principal has delegated_by && principal.delegated_by in Group::\"g2\"",
    "resource in [Folder::\"f1\", Folder::\"f3\"]",
    "principal is Agent && principal.delegation_chain.contains(Agent::\"other\")",
    "resource is Doc && resource has next && resource.next has next && resource.next.next in Folder::\"f3\"",
    "context.hour > 12 || !(context.arguments.hasTag(\"a\") && principal is Agent)",
    "if context.granted then 9223372036854775807 + context.risk > 0 else principal is Agent && principal.trust >= 3",
    "if principal is Agent then context.risk > 1 else 9223372036854775807 + context.risk > 0",
    "!(context has session) && context.numbers.hasTag(\"n\") && context.numbers.getTag(\"n\") > 1",
    "!(principal is User || context.arguments.hasTag(\"b\")) && Arguments::\"call\".hasTag(\"a\")",
    "(principal is User && context.risk > 0) || (principal is Agent && Doc::\"ghost\".size > 1 && context.risk > 1)",
];

#[derive(Clone, Debug)]
struct Case {
    /// Which memberships the schema has.
    schema: [bool; 3],
    policies: Vec<(bool, usize, usize, usize, usize)>,
    /// For each folder, group and document: which others it is in, or points to.
    edges: Vec<u8>,
    requests: Vec<Request>,
}

#[derive(Clone, Debug)]
struct Request {
    subject: usize,
    trust: i64,
    teams: u8,
    delegation: usize,
    write: bool,
    resource: usize,
    properties: u8,
    arguments: u8,
    risk: i64,
}

fn case() -> impl Strategy<Value = Case> {
    let policy = (any::<bool>(), 0..PRINCIPALS.len(), 0..ACTIONS.len(), 0..RESOURCES.len(), 0..CONDITIONS.len());
    let request =
        (0..4_usize, 0..5_i64, any::<u8>(), 0..4_usize, any::<bool>(), 0..9_usize, any::<u8>(), any::<u8>(), 0..5_i64)
            .prop_map(|(subject, trust, teams, delegation, write, resource, properties, arguments, risk)| Request {
                subject,
                trust,
                teams,
                delegation,
                write,
                resource,
                properties,
                arguments,
                risk,
            });
    let policies = proptest::collection::vec(policy, 1..24);
    let edges = proptest::collection::vec(any::<u8>(), 16);
    (any::<[bool; 3]>(), policies, edges, proptest::collection::vec(request, 24))
        .prop_map(|(schema, policies, edges, requests)| Case { schema, policies, edges, requests })
}

fn package(case: &Case) -> PolicyPackageSpec {
    let [nested, grouped, wide] = case.schema;
    let applies = "appliesTo { principal: [Agent, User], resource: [Doc, Folder], context: CallContext }";
    let schema = format!(
        "entity Folder in [Folder]; entity Doc in [Folder] {{ size: Long, level?: Long, owner?: User, next?: Doc }};
         action anything; action reading{}; action read in [reading] {applies}; action write{} {applies};{}",
        if nested { " in [anything]" } else { "" },
        if grouped { " in [anything]" } else { "" },
        if wide { " entity Extra in [Folder, Group]; entity Colour enum [\"red\", \"blue\"];" } else { "" },
    );
    let mut text = String::new();
    for (number, (permit, principal, action, resource, condition)) in case.policies.iter().enumerate() {
        let effect = if *permit { "permit" } else { "forbid" };
        let ask = if !permit && number % 3 == 0 { "@require_approval(\"leads\") " } else { "" };
        let (p, a, r, c) = (PRINCIPALS[*principal], ACTIONS[*action], RESOURCES[*resource], CONDITIONS[*condition]);
        writeln!(text, "@id(\"p{number}\") {ask}{effect}({p}, {a}, {r}) when {{ {c} }};").unwrap();
    }
    let half = text.lines().count() / 2;
    let file = |name: &str, lines: Vec<&str>| SourceFile { name: name.into(), text: lines.join("\n") };
    let attributes =
        [("level", AttributeSource::Agent), ("owner", AttributeSource::Caller), ("next", AttributeSource::Agent)];
    let attributes = attributes.map(|(name, from)| MappedAttribute { name: name.into(), from }).to_vec();
    PolicyPackageSpec {
        policies: vec![
            file("a.cedar", text.lines().take(half).collect()),
            file("b.cedar", text.lines().skip(half).collect()),
        ],
        schema: Some(schema),
        entities: Some(entities(&case.edges).to_string()),
        mapping: Some(Mapping {
            resources: vec![
                MappedType { type_: "doc".into(), entity: "Doc".into(), attributes },
                MappedType { type_: "folder".into(), entity: "Folder".into(), attributes: vec![] },
            ],
            ..Mapping::default()
        }),
        ..spec("")
    }
}

/// Folders and groups as graphs without cycles (edges go to higher numbers only), documents and users in them.
fn entities(edges: &[u8]) -> Value {
    let uid = |ty: &str, n: usize| json!({"type": ty, "id": format!("{}{n}", ty[..1].to_lowercase())});
    let targets = |ty: &str, bits: u8, above: usize| -> Vec<Value> {
        (above..4).filter(|n| bits & (1 << n) != 0).map(|n| uid(ty, n)).collect()
    };
    let mut all = Vec::new();
    for n in 0..4 {
        // The last folder is only ever mentioned.
        if n < 3 {
            all.push(json!({"uid": uid("Folder", n), "attrs": {}, "parents": targets("Folder", edges[n], n + 1)}));
        }
        all.push(json!({"uid": uid("Group", n), "attrs": {}, "parents": targets("Group", edges[4 + n], n + 1)}));
        if n < 2 {
            all.push(json!({"uid": uid("User", n), "attrs": {}, "parents": targets("Group", edges[8 + n], 0)}));
        }
        let bits = edges[12 + n];
        let mut attributes = Map::from_iter([("size".to_owned(), json!(bits % 5))]);
        if bits & 16 != 0 {
            attributes.insert("level".into(), json!(bits % 4));
        }
        if bits & 32 != 0 {
            attributes.insert("owner".into(), uid("User", usize::from(bits % 3)));
        }
        if bits & 64 != 0 {
            // Perhaps to a document that nobody lists.
            attributes.insert("next".into(), uid("Doc", usize::from(bits % 6)));
        }
        all.push(json!({"uid": uid("Doc", n), "attrs": attributes, "parents": targets("Folder", edges[8 + n], 0)}));
    }
    Value::Array(all)
}

/// Asks one question both ways, the fast way twice, and once without what a call brings. Returns how many permits, forbids, asks and
/// errors there were, and how many policies were foreseen to match always, never and perhaps.
fn ask(package: &CompiledPackage, request: &Request) -> Result<[usize; 7], TestCaseError> {
    let facts = |name: &str, trust| AgentFacts {
        name: name.into(),
        trust,
        teams: (0..2).filter(|n| request.teams & (1 << n) != 0).map(|n| format!("t{n}")).collect(),
        ..agent(trust)
    };
    let (coder, other) = (facts("coder", request.trust), facts("other", 1));
    let delegation = match request.delegation {
        0 => None,
        1 => Some(DelegationFacts { user: Some("u0".into()), chain: vec![] }),
        2 => Some(DelegationFacts { user: Some("nobody".into()), chain: vec![other.clone()] }),
        _ => Some(DelegationFacts { user: None, chain: vec![other.clone()] }),
    };
    let none = Map::new();
    let subject = match request.subject {
        0 | 1 => Subject::Agent { facts: &coder, delegation: delegation.as_ref() },
        2 => Subject::Other { type_: "user", id: "u0", properties: &none },
        _ => Subject::Other { type_: "user", id: "nobody", properties: &none },
    };
    let (type_, id) = match request.resource {
        n @ 0..=3 => ("doc", format!("d{n}")),
        4 | 5 => ("doc", "new".to_owned()),
        n => ("folder", format!("f{}", n - 5)),
    };
    let mut properties = Map::new();
    if id == "new" {
        if request.properties & 1 != 0 {
            properties.insert("level".into(), json!(request.properties % 5));
        }
        if request.properties & 2 != 0 {
            properties.insert("owner".into(), json!({"type": "User", "id": "u1"}));
        }
        if request.properties & 4 != 0 {
            properties.insert("next".into(), json!({"type": "Doc", "id": format!("d{}", request.properties % 5)}));
        }
    }
    let mut arguments = json!({"n": request.arguments % 4, "a": if request.arguments & 8 == 0 { "axb" } else { "ab" }});
    if request.arguments & 16 != 0 {
        arguments["a"] = json!("x".repeat(70_000));
    }
    let arguments = Arguments::flatten(arguments.as_object().unwrap()).unwrap();
    let query = Query {
        subject,
        action: if request.write { "write" } else { "read" },
        resource: Resource { type_, id: &id, properties: &properties },
        caller: CallerKind::Gateway,
        tenant: "acme",
        arguments: &arguments,
        session: None,
        risk: request.risk,
        granted: false,
        hour: 12,
        tool: None,
    };
    let slow = package.evaluate_full_scan(&query);
    prop_assert_eq!(&package.evaluate(&query), &slow);
    prop_assert_eq!(&package.evaluate(&query), &slow);
    let found = slow.map_err(|e| TestCaseError::fail(e.to_string()))?;
    let settled = foreseen(package, &query, &found)?;
    let counts = [found.permits.len(), found.forbids.len(), found.asks.len(), found.errors.len()];
    Ok(std::array::from_fn(|n| counts.get(n).or(settled.get(n.wrapping_sub(counts.len()))).copied().unwrap_or(0)))
}

/// Asks the same without its arguments, risk and the like: what happened must have been foreseen. Returns how many policies were
/// said always, never and perhaps to match.
fn foreseen(package: &CompiledPackage, query: &Query<'_>, found: &Evaluation) -> Result<[usize; 3], TestCaseError> {
    let blank = Query { arguments: &Arguments::default(), risk: 0, granted: true, hour: 3, ..query.clone() };
    let prospect = package.prospect(&blank).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(&prospect.attributes_missing, &found.attributes_missing);
    let mut settled = [0; 3];
    for p in &prospect.policies {
        let is = |list: &[Arc<PolicyRef>]| list.iter().any(|one| one.id == p.policy.id);
        let matched = is(&found.permits) || is(&found.forbids) || is(&found.asks);
        let errored = found.errors.iter().any(|e| e.policy == p.policy.id);
        let possible = if errored {
            p.outcomes.errs
        } else if matched {
            p.outcomes.holds
        } else {
            p.outcomes.fails
        };
        prop_assert!(possible, "{}: matched {matched}, errored {errored}, foreseen {:?}", p.policy.id, p.outcomes);
        settled[match p.outcomes {
            Outcomes::HOLDS => 0,
            Outcomes::FAILS => 1,
            _ => 2,
        }] += 1;
    }
    // A policy that is no candidate neither matches nor errs.
    let known = |id: &str| prospect.policies.iter().any(|p| p.policy.id == id);
    prop_assert!(found.permits.iter().chain(&found.forbids).chain(&found.asks).all(|p| known(&p.id)));
    prop_assert!(found.errors.iter().all(|e| known(&e.policy)));
    Ok(settled)
}

#[test]
fn the_index_changes_no_answer() {
    let seen: [AtomicUsize; 7] = Default::default();
    let mut runner = TestRunner::new(Config { cases: 120, failure_persistence: None, ..Config::default() });
    let result = runner.run(&case(), |case| {
        let package = CompiledPackage::compile(&package(&case), "sha256:0", Side::Tenant)
            .map_err(|refusals| TestCaseError::fail(format!("{refusals:?}")))?;
        for request in &case.requests {
            for (total, n) in seen.iter().zip(ask(&package, request)?) {
                total.fetch_add(n, Ordering::Relaxed);
            }
        }
        Ok(())
    });
    result.unwrap();
    // A test in which nothing matched and nothing erred would show nothing.
    for total in &seen {
        assert!(total.load(Ordering::Relaxed) > 30, "{seen:?}");
    }
}

#[test]
fn looked_up_plans_are_bounded_and_never_mixed_up() {
    let package = super::support::compile(
        &spec(
            "@id(\"known\") permit(principal is Agent, action == Action::\"network_access\", resource in Domain::\"example.org\") when { principal.trust > 2 };",
        ),
        Side::Tenant,
    );
    let mut ask = super::support::Ask::on("network_access", "domain", "");
    for round in 0..3 {
        for n in 0..3000_i64 {
            ask.agent.trust = n % 5;
            ask.resource.1 = if n % 2 == 0 { format!("h{n}.example.org") } else { format!("h{n}.example.com") };
            let found = package.evaluate(&ask.query()).unwrap();
            assert_eq!(found.permits.len(), usize::from(n % 2 == 0 && n % 5 > 2), "{round} {n}");
        }
    }
    assert!(package.plans.len() <= 2 * 2048 + 1, "{}", package.plans.len());
    // The same name with other facts is another question.
    ask.resource.1 = "h2.example.org".into();
    for (trust, permits) in [(3, 1), (2, 0), (3, 1)] {
        ask.agent.trust = trust;
        assert_eq!(package.evaluate(&ask.query()).unwrap().permits.len(), permits);
    }
}
