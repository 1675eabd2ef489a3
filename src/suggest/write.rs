//! The package's files: tools, permits, the forbids that stay, tests, and comments for whoever reviews them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::gather::{Expect, Gathered, is_redacted};
use super::grant::{Condition, Grant};
use super::text::{quoted, words, yaml, yaml_map, yaml_value};
use super::{Replayed, Settings, replay};
use crate::api::{PolicyPackageSpec, SourceFile};
use crate::gate::{Decision, DecisionRecord, EntityRef, Outcome};
use crate::package::MAX_TESTS;
use crate::policy::{AgentFacts, CompiledPackage, ForbidText, parse_version};

const PERMITS: &str = "permits.cedar";
const FORBIDS: &str = "forbids.cedar";
const ALLOWED: &str = "tests/allowed.yaml";
const BOUNDARIES: &str = "tests/boundaries.yaml";
/// Bytes of arguments that one test repeats.
const MAX_ARGUMENTS: usize = 4096;
/// Lines of one list in a comment.
const MAX_LINES: usize = 500;

/// Everything but the tests and the last words.
pub fn package(
    found: &Gathered<'_>,
    grants: &[Grant],
    kept: &[ForbidText],
    existing: Option<&PolicyPackageSpec>,
    settings: &Settings,
) -> PolicyPackageSpec {
    let mut policies = vec![SourceFile { name: PERMITS.into(), text: permits(found, grants) }];
    if !kept.is_empty() {
        let texts: Vec<&str> = kept.iter().map(|k| k.text.as_str()).collect();
        policies.push(SourceFile { name: FORBIDS.into(), text: format!("{}\n", texts.join("\n\n")) });
    }
    let listed = |name: &str| existing.is_some_and(|spec| spec.tools.iter().any(|t| t.name == name));
    let tools = found.tools.values().filter(|k| k.seen || listed(&k.tool.name)).map(|k| k.tool.clone());
    PolicyPackageSpec {
        package: existing.map_or_else(|| settings.package.clone(), |spec| spec.package.clone()),
        version: existing.map_or_else(|| "0.1.0".to_owned(), |spec| next_version(&spec.version)),
        author: existing.and_then(|spec| spec.author.clone()),
        tools: tools.collect(),
        policies,
        schema: existing.and_then(|spec| spec.schema.clone()),
        entities: existing.and_then(|spec| spec.entities.clone()),
        mapping: existing.and_then(|spec| spec.mapping.clone()),
        ..PolicyPackageSpec::default()
    }
}

/// The next minor version: permits changed.
fn next_version(version: &str) -> String {
    match parse_version(version) {
        Ok(v) => format!("{}.{}.0", v.major, v.minor + 1),
        Err(_) => "0.1.0".to_owned(),
    }
}

fn permits(found: &Gathered<'_>, grants: &[Grant]) -> String {
    let mut out = String::from(
        "// Suggested by `remit suggest` from what agents did. Every permit is a proposal: read it before you sign it.\n",
    );
    for grant in grants {
        let times: Vec<_> =
            grant.records.values().flatten().filter_map(|n| found.records.get(*n)).map(|r| r.time).collect();
        let span = match (times.iter().min(), times.iter().max()) {
            (Some(first), Some(last)) => format!(", {first} to {last}"),
            _ => String::new(),
        };
        out.push_str(&format!("\n// For {}: {} calls{span}.\n", grant.principal.words(), times.len()));
        if !matches!(grant.principal, super::grant::Principal::Agent(_)) {
            let agents: Vec<String> = grant.agents.iter().take(20).map(|a| quoted(a)).collect();
            out.push_str(&format!(
                "// Every agent of it that was seen did this ({} of them: {}); it is for the others of it too.\n",
                grant.agents.len(),
                agents.join(", ")
            ));
        }
        if let Some(floor) = grant.floor {
            out.push_str(&format!("// Nobody with less trust than {floor} did this.\n"));
        }
        for condition in &grant.conditions {
            let (key, what) = match condition {
                Condition::Equals { key, .. } => (key, "was the same in every call"),
                Condition::Below { key, .. } => (key, "named something in this directory in every call"),
            };
            out.push_str(&format!("// Argument {} {what}.\n", quoted(key)));
        }
        let records = grant.records.values().flatten().filter_map(|n| found.records.get(*n));
        let hidden: BTreeSet<&String> =
            records.flat_map(|r| r.request.arguments.iter().filter(|(_, v)| is_redacted(v)).map(|(k, _)| k)).collect();
        if !hidden.is_empty() {
            let names: Vec<String> = hidden.iter().take(20).map(|k| quoted(k)).collect();
            out.push_str(&format!("// Kept only as digests, so that nothing is said of them: {}.\n", names.join(", ")));
        }
        out.push_str(&grant.cedar());
        out.push('\n');
    }
    out
}

/// Comments at the end of the permits: what is not there, and what would be answered in another way.
fn last_words(found: &Gathered<'_>, replayed: &Replayed, existing: Option<&PolicyPackageSpec>) -> String {
    let mut out = String::new();
    let mut list = |title: &str, lines: &[String]| {
        if lines.is_empty() {
            return;
        }
        out.push_str(&format!("\n// {title}\n"));
        for line in lines.iter().take(MAX_LINES) {
            out.push_str(&format!("// - {line}\n"));
        }
        if lines.len() > MAX_LINES {
            out.push_str(&format!(
                "// - and {} more: `remit suggest -o json` lists them all\n",
                lines.len() - MAX_LINES
            ));
        }
    };
    let left_out: Vec<String> = found.left_out().iter().map(super::LeftOut::line).collect();
    list("Left out, and why:", &left_out);
    let differences = |all: &[super::Difference]| all.iter().map(super::Difference::line).collect::<Vec<_>>();
    list("Decisions that are answered in another way under this package:", &differences(&replayed.named));
    list("DECISIONS THAT CHANGE FOR NO KNOWN REASON (do not use this package):", &differences(&replayed.unexplained));
    if let Some(spec) = existing {
        let line = format!(
            "The permits and tests of {} {} are not here: its forbids, tools, schema, entities and mapping are.",
            words(&spec.package),
            words(&spec.version)
        );
        out.push_str(&format!("\n// {line}\n"));
    }
    out
}

/// The folder.
pub fn files(
    spec: &PolicyPackageSpec,
    found: &Gathered<'_>,
    grants: &[Grant],
    replayed: &Replayed,
    existing: Option<&PolicyPackageSpec>,
) -> Vec<SourceFile> {
    let mut files = vec![SourceFile { name: crate::source::folder::MANIFEST.into(), text: manifest(spec, found) }];
    for file in &spec.policies {
        let mut text = file.text.clone();
        if file.name == PERMITS {
            if grants.is_empty() {
                text.push_str("\n// There is none: nothing was seen often enough, or everything was stopped.\n");
            }
            text.push_str(&last_words(found, replayed, existing));
        }
        files.push(SourceFile { name: file.name.clone(), text });
    }
    let optional = [(crate::source::folder::SCHEMA, &spec.schema), (crate::source::folder::ENTITIES, &spec.entities)];
    for (name, text) in optional {
        files.extend(text.as_ref().map(|text| SourceFile { name: name.into(), text: text.clone() }));
    }
    files.extend(spec.tests.iter().cloned());
    files
}

/// The policies among the files.
pub fn policies(files: &[SourceFile]) -> Vec<SourceFile> {
    let mut policies: Vec<_> = files.iter().filter(|f| f.name.ends_with(".cedar")).cloned().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}

/// The tests among the files.
pub fn tests(files: &[SourceFile]) -> Vec<SourceFile> {
    files.iter().filter(|f| f.name.starts_with("tests/")).cloned().collect()
}

fn manifest(spec: &PolicyPackageSpec, found: &Gathered<'_>) -> String {
    let mut out = String::from("# Suggested by `remit suggest`");
    if let (Some(first), Some(last)) = (found.records.first(), found.records.last()) {
        let (count, tenant) = (found.records.len(), quoted(&first.tenant));
        out.push_str(&format!(" from {count} decisions of tenant {tenant}, {} to {}", first.time, last.time));
    }
    out.push_str(".\n# Look at every line that says `review`, then at permits.cedar and at what it left out.\n");
    out.push_str(&format!("package: {}\nversion: {}\n", yaml(&spec.package), yaml(&spec.version)));
    if let Some(author) = &spec.author {
        out.push_str(&format!("author: {}\n", yaml(author)));
    }
    out.push_str(if spec.tools.is_empty() { "tools: []\n" } else { "tools:\n" });
    for tool in &spec.tools {
        let known = found.tools.get(&tool.name);
        if let Some(review) = known.and_then(|k| k.review.as_ref()) {
            out.push_str(&format!("  # review: {}\n", words(review)));
        } else if known.is_none_or(|k| !k.seen) {
            out.push_str("  # nobody is permitted to call it here\n");
        }
        let value = serde_json::to_value(tool).unwrap_or_default();
        out.push_str(&format!("  - {}\n", yaml_value(&value)));
    }
    if let Some(mapping) = &spec.mapping {
        let value = serde_json::to_value(mapping).unwrap_or_default();
        out.push_str(&format!("mapping: {}\n", yaml_value(&value)));
    }
    out
}

/// The same package with its tests: each is asked here first, and is written only if it says what it is there to say.
pub fn with_tests(
    spec: PolicyPackageSpec,
    found: &Gathered<'_>,
    grants: &[Grant],
    compiled: &Arc<CompiledPackage>,
) -> PolicyPackageSpec {
    let mut allowed = Cases::new("allow", "What was seen and is permitted.", MAX_TESTS / 2);
    let mut boundaries = Cases::new("deny", "Where the permits end, and what was left out.", MAX_TESTS / 2 - 1);
    for grant in grants {
        for (n, tool) in grant.tools.iter().enumerate() {
            let Some(sample) = sample(found, grant, tool) else { continue };
            let ask = |record: &DecisionRecord| replay::ask(record, compiled);
            let permitted = [Outcome::Allow, Outcome::ApprovalRequired];
            allowed.add(&format!("{} calls {}", sample.agent, tool), &sample, ask(&sample), &permitted);
            if n == 0 {
                for (what, outside) in outsiders(&sample, grant) {
                    boundaries.add(&format!("{what} of {}", grant.id), &outside, ask(&outside), &[Outcome::Deny]);
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (record, expect) in found.records.iter().zip(&found.expect) {
        let Expect::Stop(reason) = expect else { continue };
        // What its Agent object or session stops can't be written down in a test.
        let unwritable = matches!(reason, super::Reason::AgentRules(_));
        if unwritable || !seen.insert((record.agent.as_str(), record.request.resource.id.as_str(), reason)) {
            continue;
        }
        let name = format!("{} calls {}: {reason}", record.agent, record.request.resource.id);
        // Arguments only where they are what stops it: they may hold what should not be written down.
        let bare = DecisionRecord { request: without(record, |_| false), ..plain(record) };
        let whole = DecisionRecord { request: without(record, |v| !is_redacted(v)), ..plain(record) };
        let small = size(&whole) <= MAX_ARGUMENTS;
        for case in [Some(bare), small.then_some(whole)].into_iter().flatten() {
            let decision = replay::ask(&case, compiled);
            if boundaries.add(&name, &case, decision, &[Outcome::Deny]) {
                break;
            }
        }
    }
    let mut tests = vec![allowed.file(ALLOWED)];
    boundaries.texts.push(
        "- name: \"a tool that is not listed\"\n  agent: {name: somebody, trust: 4}\n  \
         call: {tool: not/listed}\n  expect: {decision: deny, code: unknown_tool}\n"
            .to_owned(),
    );
    tests.push(boundaries.file(BOUNDARIES));
    // A package that lists this name would make the last test fail.
    if spec.tools.iter().any(|t| t.name == "not/listed") {
        tests.iter_mut().for_each(|t| t.text = t.text.replace("not/listed", "not/listed-anywhere"));
    }
    PolicyPackageSpec { tests, ..spec }
}

/// The record that a test repeats: the one with the fewest bytes, with only those arguments that the permit looks at.
fn sample(found: &Gathered<'_>, grant: &Grant, tool: &str) -> Option<DecisionRecord> {
    let records = grant.records.get(tool)?.iter().filter_map(|n| found.records.get(*n));
    let keys: Vec<&str> = grant.conditions.iter().map(Condition::key).collect();
    let cut = |record: &&DecisionRecord| {
        let mut request = without(record, |_| true);
        request.arguments.retain(|name, _| keys.iter().any(|key| first_segment(key) == *name));
        DecisionRecord { request, ..plain(record) }
    };
    records.map(cut).min_by_key(size)
}

/// The first argument name of a flattened key.
fn first_segment(key: &str) -> String {
    let mut out = String::new();
    let mut chars = key.chars();
    while let Some(c) = chars.next() {
        match c {
            '.' => break,
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

fn size(record: &DecisionRecord) -> usize {
    Value::Object(record.request.arguments.clone()).to_string().len()
}

/// The question with those arguments that `keep` takes, and without what a test can't say.
fn without(record: &DecisionRecord, keep: impl Fn(&Value) -> bool) -> crate::gate::CheckRequest {
    let mut request = record.request.clone();
    request.arguments.retain(|_, v| keep(v));
    request.session = None;
    request.schema_digest = None;
    request.on_behalf_of = None;
    request
}

/// A record as if nothing but policy had decided, asked by an enforcement point.
fn plain(record: &DecisionRecord) -> DecisionRecord {
    let caller = crate::gate::Caller {
        username: "test".into(),
        kind: crate::policy::CallerKind::Gateway,
        agent: None,
        stale: false,
    };
    // Nor what its Agent object demanded: a test can't say that.
    let facts = crate::gate::RecordedFacts { replay: None, ..record.facts.clone() };
    DecisionRecord { caller, would_be: None, code: String::new(), facts, ..record.clone() }
}

/// Questions that lie just outside of a permit.
fn outsiders(sample: &DecisionRecord, grant: &Grant) -> Vec<(String, DecisionRecord)> {
    let mut out = Vec::new();
    let mut stranger = sample.clone();
    let name = format!("not-{}", super::text::hash8(&sample.agent));
    stranger.agent.clone_from(&name);
    stranger.request.subject = EntityRef { id: name.clone(), ..stranger.request.subject };
    stranger.facts.delegation = None;
    stranger.facts.agent = sample.facts.agent.as_ref().map(|a| AgentFacts {
        name,
        type_: String::new(),
        teams: Vec::new(),
        attributes: Default::default(),
        trust: 4,
        ..a.clone()
    });
    out.push(("another agent".to_owned(), stranger));
    if let Some(floor) = grant.floor {
        let mut less = sample.clone();
        if let Some(agent) = &mut less.facts.agent {
            agent.trust = floor - 1;
        }
        out.push((format!("trust {}", floor - 1), less));
    }
    for condition in &grant.conditions {
        let others: Vec<String> = match condition {
            Condition::Equals { value, .. } => vec![format!("{value}-other")],
            Condition::Below { directory, .. } => {
                vec![format!("{directory}-other/x"), format!("{directory}/../x"), format!("{directory}/..")]
            }
        };
        for other in others {
            let mut outside = sample.clone();
            let changed = outside.request.arguments.iter_mut().any(|(name, v)| put(name, v, condition.key(), &other));
            if changed {
                out.push((format!("argument {} as {}", quoted(condition.key()), quoted(&other)), outside));
            }
        }
    }
    out
}

/// Replaces the value at a flattened key; false where it is not below this argument.
fn put(name: &str, value: &mut Value, key: &str, new: &str) -> bool {
    let escaped: String =
        name.chars().flat_map(|c| matches!(c, '.' | '\\').then_some('\\').into_iter().chain([c])).collect();
    if key == escaped {
        *value = Value::String(new.to_owned());
        return true;
    }
    let Some(rest) = key.strip_prefix(&escaped).and_then(|rest| rest.strip_prefix('.')) else { return false };
    match value {
        Value::Object(members) => members.iter_mut().any(|(name, v)| put(name, v, rest, new)),
        Value::Array(items) => items.iter_mut().enumerate().any(|(n, v)| put(&n.to_string(), v, rest, new)),
        _ => false,
    }
}

/// Tests of one file.
struct Cases {
    word: &'static str,
    title: &'static str,
    limit: usize,
    texts: Vec<String>,
    left: usize,
}

impl Cases {
    fn new(word: &'static str, title: &'static str, limit: usize) -> Self {
        Self { word, title, limit, texts: Vec::new(), left: 0 }
    }

    /// Adds a test if the package answers it as it should; false where it does not.
    fn add(&mut self, name: &str, record: &DecisionRecord, decision: Option<Decision>, wanted: &[Outcome]) -> bool {
        let Some(decision) = decision.filter(|d| wanted.contains(&d.outcome)) else { return false };
        let Some(agent) = record.facts.agent.as_ref() else { return false };
        if self.texts.len() >= self.limit {
            self.left += 1;
            return true;
        }
        let name: String = words(name).chars().take(120).collect();
        let name = format!("{} {:03}: {name}", self.word, self.texts.len() + 1);
        let request = &record.request;
        let mut call = Map::new();
        if request.resource.properties.is_empty() {
            call.insert("tool".into(), json!(request.resource.id));
        } else {
            call.insert("action".into(), json!(request.action.name));
            call.insert("resource".into(), serde_json::to_value(&request.resource).unwrap_or_default());
        }
        if !request.arguments.is_empty() {
            call.insert("arguments".into(), Value::Object(request.arguments.clone()));
        }
        let expect = json!({"decision": decision.outcome.as_str(), "code": decision.code});
        let mut text = format!("- name: {}\n  agent: {}\n", yaml(&short(&name)), yaml_map(&agent_case(agent)));
        if let Some(delegator) = delegator(record) {
            text.push_str(&format!("  on_behalf_of: {}\n", yaml_value(&delegator)));
        }
        text.push_str(&format!("  at: {}\n  call: {}\n", yaml(&record.time.to_string()), yaml_map(&call)));
        text.push_str(&format!("  expect: {}\n", yaml_value(&expect)));
        self.texts.push(text);
        true
    }

    fn file(self, name: &str) -> SourceFile {
        let mut text = format!("# {}\n", self.title);
        if self.left > 0 {
            text.push_str(&format!("# {} more are not written: a package has at most {MAX_TESTS} tests.\n", self.left));
        }
        text.push_str(&self.texts.join("\n"));
        if self.texts.is_empty() {
            text.push_str("[]\n");
        }
        SourceFile { name: name.into(), text }
    }
}

/// At most as many bytes as a test's name may have.
fn short(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if out.len() + c.len_utf8() > 190 {
            break;
        }
        out.push(c);
    }
    out
}

fn agent_case(facts: &AgentFacts) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("name".into(), json!(facts.name));
    out.insert("trust".into(), json!(facts.trust));
    if !facts.type_.is_empty() {
        out.insert("type".into(), json!(facts.type_));
    }
    if !facts.teams.is_empty() {
        out.insert("teams".into(), json!(facts.teams));
    }
    if !facts.attributes.is_empty() {
        out.insert("attributes".into(), json!(facts.attributes));
    }
    if facts.suspended {
        out.insert("suspended".into(), json!(true));
    }
    out
}

fn delegator(record: &DecisionRecord) -> Option<Value> {
    let delegation = record.facts.delegation.as_ref()?;
    let user = delegation.user.as_ref().map(|user| json!({"user": user}));
    delegation.chain.iter().rev().fold(user, |outer, agent| {
        let mut case = agent_case(agent);
        if let Some(outer) = outer {
            case.insert("on_behalf_of".into(), outer);
        }
        Some(json!({"agent": case}))
    })
}
