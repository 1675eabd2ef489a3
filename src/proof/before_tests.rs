//! What decides before any policy does: enumerated types, mappings, and attributes that a call must bring because a forbid reads them.

use serde_json::{Value, json};

use super::tests::*;
use super::*;
use crate::api::{AttributeSource, MappedAttribute, MappedType, Mapping};
use ProofVerdict::{Equivalent, Expands, Incomparable, Restricts, Unknown};

const DEPLOYS: &str = r#"@id("deploy") permit(principal, action == Action::"deploy", resource);"#;
const READS_DOCS: &str = r#"@id("doc") permit(principal, action == Action::"read_doc", resource);"#;
/// It can never match, and still every call has to bring `secret`.
const DEAD: &str = r#"@id("dead") forbid(principal, action == Action::"read_doc", resource)
    when { resource is Folder && resource has secret && resource.secret };"#;

fn mapped(type_: &str, entity: &str, attributes: &[(&str, AttributeSource)]) -> MappedType {
    let attributes = attributes.iter().map(|(name, from)| MappedAttribute { name: (*name).into(), from: *from });
    MappedType { type_: type_.into(), entity: entity.into(), attributes: attributes.collect() }
}

/// A package with an enumerated type of environments.
fn environments(choices: &[&str], policies: &str) -> PolicyPackageSpec {
    let choices = Value::from(choices);
    PolicyPackageSpec {
        schema: Some(format!(
            "entity Env enum {choices}; action deploy appliesTo {{ principal: [Agent], resource: [Env], context: CallContext }};"
        )),
        mapping: Some(Mapping { resources: vec![mapped("env", "Env", &[])], ..Mapping::default() }),
        ..package(policies)
    }
}

/// A package with documents that have attributes.
fn docs(attributes: &str, sources: &[(&str, AttributeSource)], policies: &str) -> PolicyPackageSpec {
    PolicyPackageSpec {
        schema: Some(format!(
            "entity Folder {{ secret?: Bool }}; entity Doc in [Folder] {{ {attributes} }};
             action read_doc appliesTo {{ principal: [Agent], resource: [Doc], context: CallContext }};"
        )),
        mapping: Some(Mapping { resources: vec![mapped("doc", "Doc", sources)], ..Mapping::default() }),
        ..package(policies)
    }
}

fn with_entities(spec: PolicyPackageSpec, entities: Value) -> PolicyPackageSpec {
    PolicyPackageSpec { entities: Some(entities.to_string()), ..spec }
}

/// The attack: a package that lets agents deploy to production, with not one policy changed.
#[test]
fn another_value_of_an_enumerated_type_is_an_expansion() {
    let (dev, prod) = (environments(&["dev"], DEPLOYS), environments(&["dev", "prod"], DEPLOYS));
    let proof = compared(dev.clone(), prod.clone());
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    let example = &proof.counter_examples[0];
    assert_eq!((example.baseline, example.candidate), (Outcome::Refused, Outcome::Allow));
    assert_eq!(example.call.resource, "prod");
    assert_eq!(
        example.sentence,
        "an agent (trust 1) asks for deploy on env prod: before refused, now allowed by tenant/test/deploy (Env has prod now)"
    );
    let back = compared(prod.clone(), dev);
    assert_eq!(verdicts(&back), (Restricts, Restricts), "{back:?}");
    assert!(back.counter_examples[0].sentence.ends_with("(Env has prod no more)"), "{back:?}");
    let moved = compared(environments(&["dev", "test"], DEPLOYS), prod.clone());
    assert_eq!(verdicts(&moved), (Incomparable, Incomparable), "{moved:?}");
    // What nobody may do with the new value is no expansion; and the order says nothing.
    let guarded = DEPLOYS.replace(';', r#" unless { resource == Env::"prod" };"#);
    let proof = compared(environments(&["dev"], DEPLOYS), environments(&["dev", "prod"], &guarded));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    let proof = compared(prod, environments(&["prod", "dev"], DEPLOYS));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
    // The values that both have are still compared.
    let proof = compared(
        environments(&["dev", "test"], &DEPLOYS.replace(';', " when { principal.trust >= 2 };")),
        environments(&["dev"], &DEPLOYS.replace(';', " when { principal.trust >= 1 };")),
    );
    assert_eq!(verdicts(&proof), (Incomparable, Incomparable), "{proof:?}");
}

/// Who acts can be of an enumerated type as well, also on tools.
#[test]
fn another_subject_of_an_enumerated_type_is_an_expansion() {
    let bots = |choices: &[&str]| PolicyPackageSpec {
        schema: Some(format!(
            "entity Bot enum {}; action run appliesTo {{ principal: [Bot], resource: [Tool], context: CallContext }};",
            Value::from(choices)
        )),
        mapping: Some(Mapping { subjects: vec![mapped("bot", "Bot", &[])], ..Mapping::default() }),
        ..package(r#"@id("run") permit(principal, action == Action::"run", resource in ToolGroup::"read");"#)
    };
    let proof = compared(bots(&["nightly"]), bots(&["nightly", "weekly"]));
    assert_eq!(verdicts(&proof), (Expands, Expands), "{proof:?}");
    assert_eq!((proof.counter_examples.len(), proof.counter_examples[0].call.subject.as_str()), (1, "weekly"));
    let proof = compared(bots(&["nightly", "weekly"]), bots(&["nightly"]));
    assert_eq!(verdicts(&proof), (Restricts, Restricts), "{proof:?}");
}

/// The gates deny a call that leaves out what a forbid reads, whatever the forbid says: without it such a call goes through.
#[test]
fn a_dead_forbid_that_reads_a_callers_attribute_still_stops_calls() {
    let sources = [("secret", AttributeSource::Caller)];
    let with = docs("secret?: Bool", &sources, &format!("{READS_DOCS}{DEAD}"));
    let without = docs("secret?: Bool", &sources, READS_DOCS);
    let proof = compared(with.clone(), without.clone());
    assert_eq!(verdicts(&proof), (Unknown, Unknown), "{proof:?}");
    assert!(proof.unknown_because[0].contains("`secret`"), "{proof:?}");
    // The gates do tell the two apart.
    let call: Call = serde_json::from_value(json!({
        "subjectType": "agent", "subject": "a", "action": "read_doc", "resourceType": "doc", "resource": "d",
        "agent": {"tenant": "acme", "name": "a", "uid": "1", "type": "", "teams": [], "trust": 2, "suspended": false, "attributes": {}},
        "arguments": {}, "risk": 0, "granted": false, "hour": 12,
    }))
    .unwrap();
    let decide = |spec: &PolicyPackageSpec| {
        let compiled = crate::policy::CompiledPackage::compile(spec, "sha256:0", crate::policy::Side::Tenant).unwrap();
        call.decide("acme", &[crate::policy::base_platform()], &compiled).0
    };
    assert_eq!((decide(&with), decide(&without)), (Outcome::Deny, Outcome::Allow));
    // The same on both sides says nothing; of a document that the package lists, nothing is missing.
    assert_eq!(verdicts(&compared(with.clone(), with.clone())), (Equivalent, Equivalent));
    let listed = json!([{"uid": {"type": "Doc", "id": "d"}, "attrs": {}, "parents": []}]);
    let listed = with_entities(with.clone(), listed);
    assert_eq!((decide(&with), decide(&listed)), (Outcome::Deny, Outcome::Allow));
    let proof = compared(with, listed);
    assert_eq!(verdicts(&proof), (Unknown, Unknown), "{proof:?}");
    // Of another action it is nothing.
    let other = DEAD.replace("read_doc", "write_doc");
    let two = |policies: &str| {
        let spec = docs("secret?: Bool", &sources, policies);
        let schema = format!(
            "{} action write_doc appliesTo {{ principal: [Agent], resource: [Doc], context: CallContext }};",
            spec.schema.as_deref().unwrap()
        );
        PolicyPackageSpec { schema: Some(schema), ..spec }
    };
    let proof = compared(two(&format!("{READS_DOCS}{other}")), two(READS_DOCS));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
}

/// From whom an attribute is believed, and which there are.
#[test]
fn another_mapping_is_not_called_equivalent() {
    let one = |from| docs("secret?: Bool", &[("secret", from)], READS_DOCS);
    let proof = compared(one(AttributeSource::Agent), one(AttributeSource::Caller));
    assert_eq!(verdicts(&proof), (Unknown, Unknown), "{proof:?}");
    assert!(proof.unknown_because[0].contains("doc"), "{proof:?}");
    let none = docs("secret?: Bool", &[], READS_DOCS);
    assert_eq!(verdicts(&compared(none.clone(), one(AttributeSource::Agent))), (Unknown, Unknown));
    assert_eq!(verdicts(&compared(none.clone(), none)), (Equivalent, Equivalent));
}

/// The schema of the types that a call names.
#[test]
fn another_schema_of_the_types_of_a_call_is_not_called_equivalent() {
    let one = |attributes: &str| docs(attributes, &[("secret", AttributeSource::Caller)], READS_DOCS);
    for changed in ["secret?: Bool", "secret: Long", "secret: Bool, title: String"] {
        let proof = compared(one("secret: Bool"), one(changed));
        assert_eq!(verdicts(&proof), (Unknown, Unknown), "{changed}: {proof:?}");
        assert!(proof.unknown_because[0].contains("Doc"), "{proof:?}");
    }
    // A call that is newly let through is shown whatever else is unknown.
    let wider = READS_DOCS.replace(';', " when { principal.trust >= 3 };");
    let proof = compared(docs("title: String", &[], &wider), docs("title?: String", &[], READS_DOCS));
    assert_ne!(proof.alone, Equivalent, "{proof:?}");
    assert_ne!(proof.alone, Restricts, "{proof:?}");
    // Types that no call of this kind names don't matter to it.
    let other = |text: &str| {
        let spec = one("secret: Bool");
        PolicyPackageSpec { schema: Some(format!("{}{text}", spec.schema.as_deref().unwrap())), ..spec }
    };
    let proof = compared(one("secret: Bool"), other("entity Elsewhere;"));
    assert_eq!(verdicts(&proof), (Equivalent, Equivalent), "{proof:?}");
}

/// One random side: which values there are, from whom `secret` is believed, and which of the policies it has.
#[derive(Clone, Debug)]
struct Random {
    values: [bool; 3],
    source: u8,
    optional: bool,
    policies: [bool; 6],
    trust: i64,
}

const VALUES: [&str; 3] = ["dev", "test", "prod"];

impl Random {
    fn spec(&self) -> PolicyPackageSpec {
        let mut values: Vec<&str> =
            VALUES.into_iter().zip(self.values).filter(|(_, there)| *there).map(|(v, _)| v).collect();
        if values.is_empty() {
            values.push("dev");
        }
        let dev = values.first().copied().unwrap_or_default();
        let all = [
            format!(r#"@id("a") permit(principal, action == Action::"deploy", resource) when {{ principal.trust >= {} }};"#, self.trust),
            format!(r#"@id("b") forbid(principal, action == Action::"deploy", resource == Env::"{dev}");"#),
            format!(r#"@id("c") @require_approval("leads") forbid(principal, action, resource) when {{ principal.trust < {} }};"#, self.trust + 1),
            READS_DOCS.to_owned(),
            DEAD.to_owned(),
            r#"@id("d") forbid(principal, action == Action::"read_doc", resource) when { resource has secret && resource.secret };"#.to_owned(),
        ];
        let policies: String = all.into_iter().zip(self.policies).filter(|(_, there)| *there).map(|(p, _)| p).collect();
        let sources: &[_] = match self.source {
            0 => &[],
            1 => &[("secret", AttributeSource::Caller)],
            _ => &[("secret", AttributeSource::Agent)],
        };
        let docs = docs(if self.optional { "secret?: Bool" } else { "secret: Bool" }, sources, &policies);
        let envs = environments(&values, "");
        let mut mapping = docs.mapping.clone().unwrap();
        mapping.resources.extend(envs.mapping.unwrap().resources);
        PolicyPackageSpec {
            schema: Some(format!("{} {}", docs.schema.as_deref().unwrap(), envs.schema.unwrap())),
            mapping: Some(mapping),
            ..docs
        }
    }
}

/// Two sides that differ in few things, checked against what the gates make of every value, trust, caller and attribute under both.
#[test]
fn no_verdict_over_values_and_attributes_is_contradicted_by_the_gates() {
    use crate::policy::{AgentFacts, Arguments, CallerKind, CompiledPackage, Query, Resource, Side, Subject};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    let side = || {
        let policies = proptest::array::uniform6(proptest::bool::weighted(0.6));
        (proptest::array::uniform3(any::<bool>()), 0u8..3, any::<bool>(), policies, 1i64..3).prop_map(
            |(values, source, optional, policies, trust)| Random { values, source, optional, policies, trust },
        )
    };
    // What the candidate takes from another side, so that most pairs differ in one thing or two.
    let pair = (side(), side(), proptest::array::uniform5(proptest::bool::weighted(0.25))).prop_map(|(a, b, other)| {
        let candidate = Random {
            values: if other[0] { b.values } else { a.values },
            source: if other[1] { b.source } else { a.source },
            optional: if other[2] { b.optional } else { a.optional },
            policies: if other[3] { b.policies } else { a.policies },
            trust: if other[4] { b.trust } else { a.trust },
        };
        (a, candidate)
    });
    let platform = [crate::policy::base_platform()];
    let seen = std::cell::RefCell::new(std::collections::BTreeMap::<&str, u32>::new());
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 60, failure_persistence: None, max_shrink_iters: 40, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let result = runner.run(&pair, |(baseline, candidate)| {
        let specs = [baseline.spec(), candidate.spec()];
        // `resource.secret` of a type without it, or `has` of one that always has it, may be refused.
        let mut sides = Vec::new();
        for spec in &specs {
            let compiled = CompiledPackage::compile(spec, "sha256:0", Side::Tenant);
            sides.push(compiled.map_err(|e| TestCaseError::reject(e[0].to_string()))?);
        }
        let [baseline, candidate] = specs;
        let proof = compared(baseline, candidate);
        *seen.borrow_mut().entry(proof.alone.as_str()).or_default() += 1;
        let (arguments, none) = (Arguments::default(), serde_json::Map::new());
        let secrets = [None, Some(false), Some(true)];
        let docs = secrets.map(|secret| ("read_doc", "doc", "d", secret));
        for (action, type_, id, secret) in docs.into_iter().chain(VALUES.map(|v| ("deploy", "env", v, None))) {
            for (trust, caller) in (0..5).flat_map(|t| [(t, CallerKind::Agent), (t, CallerKind::Gateway)]) {
                let facts = AgentFacts {
                    tenant: "acme".into(),
                    name: "a".into(),
                    uid: "1".into(),
                    type_: String::new(),
                    teams: vec![],
                    trust,
                    suspended: false,
                    attributes: Default::default(),
                };
                let given = secret.map(|s| serde_json::Map::from_iter([("secret".to_owned(), json!(s))]));
                let query = Query {
                    subject: Subject::Agent { facts: &facts, delegation: None },
                    action,
                    resource: Resource { type_, id, properties: given.as_ref().unwrap_or(&none) },
                    caller,
                    tenant: "acme",
                    arguments: &arguments,
                    session: None,
                    risk: 0,
                    granted: false,
                    hour: 12,
                    tool: None,
                };
                let of = |package| crate::gate::weigh(&platform, package, std::slice::from_ref(&query)).0;
                let (before, after) = (of(&sides[0]), of(&sides[1]));
                for (verdict, lifted) in [(proof.alone, false), (proof.with_approval, true)] {
                    let passes = |outcome| super::prove::passes(outcome, lifted);
                    let contradicted = match verdict {
                        Equivalent => passes(before) != passes(after),
                        Restricts => passes(after) && !passes(before),
                        Expands | Incomparable | Unknown => false,
                    };
                    prop_assert!(
                        !contradicted,
                        "{verdict:?} lifted={lifted}: {query:?} {before:?} {after:?}\n{proof:?}"
                    );
                }
            }
        }
        Ok(())
    });
    result.unwrap();
    let seen = seen.into_inner();
    assert!(["equivalent", "restricts", "expands", "unknown"].iter().all(|v| seen.contains_key(v)), "{seen:?}");
}
