//! One record on both sides: what each makes of it, how they differ, and in which words.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::invariants::Judge;
use super::world::{Worlds, enforced, input};
use super::{Body, EffectiveSet, Recorded, Task, selects};
use crate::api::{Tier, Tool};
use crate::gate::{Decision, DecisionRecord, Outcome, decide, depends_on_redacted};
use crate::lifecycle::drift::{Cause, Drift, Severity, Side, asked_words, compare, reads_only};
use crate::policy::{Arguments, PolicyRef, REDACTED};
use crate::store::Place;

/// Why a record is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unreplayable {
    /// It can't be read.
    Unreadable,
    /// It is of another namespace.
    AnotherTenant,
    /// It is of a namespace of this name that is gone.
    TenantRecreated,
    /// The question was refused before it came to any policy.
    Refused,
    /// It was written by a version of Remit that did not keep what a replay needs.
    NoFacts,
    /// What a policy of either side says depends on a value that is not kept.
    RedactedValue,
    /// Under the very packages that decided it, the replay comes to another outcome: something else decided then.
    NotReproduced,
}

impl Unreplayable {
    /// As counts and reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Unreplayable::Unreadable => "unreadable",
            Unreplayable::AnotherTenant => "another_tenant",
            Unreplayable::TenantRecreated => "tenant_recreated",
            Unreplayable::Refused => "refused",
            Unreplayable::NoFacts => "no_facts",
            Unreplayable::RedactedValue => "redacted_value",
            Unreplayable::NotReproduced => "not_reproduced",
        }
    }
}

/// What one side makes of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideOf {
    /// `allow`, `deny`, `approval_required` or `refused`.
    pub outcome: Outcome,
    /// Reason code.
    pub code: String,
    /// Determining policies, open asks and policies that erred, sorted.
    pub policies: Vec<String>,
    /// Tier that its package gives the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The decision.
    pub decision: String,
    /// When it was decided.
    pub time: Timestamp,
    /// How bad.
    pub severity: Severity,
    /// Of what kind.
    pub cause: Cause,
    /// Who: the agent's name, or `type:id`.
    pub agent: String,
    /// For whom: `user:NAME` or `agent:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_from: Option<String>,
    /// Action.
    pub action: String,
    /// Tool, or `type:id` of another resource.
    pub tool: String,
    /// Before.
    pub baseline: SideOf,
    /// After.
    pub candidate: SideOf,
    /// All of it in a sentence. No argument values.
    pub sentence: String,
}

/// What became of one record.
pub(super) enum Verdict {
    /// It was not replayed.
    Not(Unreplayable),
    /// It was. The event stands where the sides differ.
    Replayed { baseline: Outcome, candidate: Outcome, reads: bool, agent: String, event: Option<Box<Event>> },
}

/// One record, replayed: everything that a tally takes.
pub(super) struct Row {
    pub place: Place,
    pub time: Timestamp,
    /// Stands for what went in.
    pub input: [u8; 32],
    /// Stands for what came out.
    pub result: [u8; 32],
    pub verdict: Verdict,
    /// Invariants that do not hold, by number, with the counter-example.
    pub violations: Vec<(usize, String)>,
}

/// Replays one record; None: it is not selected.
pub(super) fn row(task: &Task, judge: &Judge, worlds: &mut Worlds, recorded: &Recorded) -> Option<Row> {
    let place = recorded.place.clone();
    let input = Canonical::new(b"in\0").text(&place.id).number(place.micros).text(&recorded.hash).finish();
    let not = |why: Unreplayable| {
        let result = Canonical::new(b"not\0").text(&recorded.place.id).text(why.as_str()).finish();
        (Verdict::Not(why), Vec::new(), result)
    };
    let parsed;
    let record = match &recorded.body {
        Body::Record(record) => Some(record.as_ref()),
        Body::Text(text) => {
            parsed = serde_json::from_str::<DecisionRecord>(text).ok();
            parsed.as_ref()
        }
    };
    if record.is_some_and(|record| !selects(&task.selection, record)) {
        return None;
    }
    let (verdict, violations, result) = match record.map(|record| (record, replayed(task, worlds, record))) {
        None => not(Unreplayable::Unreadable),
        Some((_, Err(why))) => not(why),
        Some((record, Ok(both))) => {
            let drift = both.drift();
            let mut canonical = Canonical::new(b"out\0").text(&record.id);
            for side in [&both.baseline, &both.candidate] {
                canonical = canonical.text(side.outcome.as_str()).text(side.code);
                canonical = canonical.text(side.tier.map_or("", Tier::as_str));
                canonical = canonical.number(i64::try_from(side.policies.len()).unwrap_or(i64::MAX));
                canonical = side.policies.iter().fold(canonical, |c, id| c.text(id));
            }
            if let Some(drift) = drift {
                canonical = canonical.text(drift.severity.as_str()).text(drift.cause.as_str());
            }
            let result = canonical.finish();
            let violations = judge.event(record, &both);
            let event = drift.map(|drift| Box::new(event(record, &both, drift)));
            let (baseline, candidate) = (both.baseline.outcome, both.candidate.outcome);
            let (reads, agent) = (both.reads(), who(record));
            (Verdict::Replayed { baseline, candidate, reads, agent, event }, violations, result)
        }
    };
    let time = Timestamp::from_microsecond(place.micros).unwrap_or_default();
    Some(Row { place, time, input, result, verdict, violations })
}

/// What the sides make of a call, as the gates left it.
pub(super) struct Answer {
    pub outcome: Outcome,
    pub code: &'static str,
    pub policies: Vec<String>,
    pub asks: Vec<Arc<PolicyRef>>,
    pub tier: Option<Tier>,
}

impl Answer {
    /// Of a decision under this set.
    pub fn of(decision: &Decision, set: &EffectiveSet, resource: (&str, &str)) -> Self {
        let determining = decision.policies.iter().chain(&decision.asks).map(|p| &p.id);
        let mut policies: Vec<String> = determining.chain(decision.errors.iter().map(|e| &e.policy)).cloned().collect();
        policies.sort_unstable();
        policies.dedup();
        let (asks, tier) = (decision.asked(), tool(set, resource).map(|t| t.tier));
        Self { outcome: decision.outcome, code: decision.code, policies, asks, tier }
    }

    fn side(&self) -> Side<'_> {
        Side { outcome: self.outcome, policies: &self.policies, asks: &self.asks, tier: self.tier }
    }

    /// In words: `denied (no_permit)`, `allowed by tenant/base/writes`.
    pub fn words(&self) -> String {
        let what = match self.outcome {
            Outcome::Allow => "allowed",
            Outcome::Deny => "denied",
            Outcome::ApprovalRequired => "asked of people",
            Outcome::Refused => "refused",
        };
        let why = match self.code {
            "allowed" | "denied_by_policy" | "approval_required" => String::new(),
            code => format!(" ({code})"),
        };
        let by = match self.policies.as_slice() {
            [] => String::new(),
            [one] => format!(" by {one}"),
            [first, second] => format!(" by {first} and {second}"),
            [first, second, more @ ..] => format!(" by {first}, {second} and {} more", more.len()),
        };
        format!("{what}{why}{by}")
    }

    fn kept(&self) -> SideOf {
        SideOf { outcome: self.outcome, code: self.code.to_owned(), policies: self.policies.clone(), tier: self.tier }
    }
}

/// Both sides of one call.
pub(super) struct Both {
    pub baseline: Answer,
    pub candidate: Answer,
}

impl Both {
    pub fn drift(&self) -> Option<Drift> {
        compare(&self.baseline.side(), &self.candidate.side())
    }

    pub fn reads(&self) -> bool {
        reads_only(self.baseline.tier, self.candidate.tier)
    }
}

fn tool<'s>(set: &'s EffectiveSet, (type_, id): (&str, &str)) -> Option<&'s Tool> {
    if type_ == "tool" { set.package.tool(id) } else { None }
}

fn replayed(task: &Task, worlds: &mut Worlds, record: &DecisionRecord) -> Result<Both, Unreplayable> {
    if record.tenant != task.tenant {
        return Err(Unreplayable::AnotherTenant);
    }
    if task.tenant_uid.as_ref().is_some_and(|uid| *uid != record.tenant_uid) {
        return Err(Unreplayable::TenantRecreated);
    }
    let Some(facts) = record.facts.replay.as_deref() else {
        let refused = record.outcome == Outcome::Refused;
        return Err(if refused { Unreplayable::Refused } else { Unreplayable::NoFacts });
    };
    let world = worlds.of(task, record, facts);
    let (before, after) = (input(record, facts, &world.baseline), input(record, facts, &world.candidate));
    if keeps_less(&record.request.arguments) {
        let hidden = Arguments::flatten_kept(&record.request.arguments).map(|(_, hidden)| hidden).unwrap_or_default();
        if [&before, &after].into_iter().any(|input| depends_on_redacted(input, &hidden, facts.long_values)) {
            return Err(Unreplayable::RedactedValue);
        }
    }
    let resource = (record.request.resource.type_.as_str(), record.request.resource.id.as_str());
    let both = Both {
        baseline: Answer::of(&decide(&before), &task.baseline, resource),
        candidate: Answer::of(&decide(&after), &task.candidate, resource),
    };
    let (then, _) = enforced(record);
    let differs = |set: &EffectiveSet, answer: &Answer| decided_by(record, set) && answer.outcome != then;
    if differs(&task.baseline, &both.baseline) || differs(&task.candidate, &both.candidate) {
        return Err(Unreplayable::NotReproduced);
    }
    Ok(both)
}

/// Whether the record was decided by exactly this set.
fn decided_by(record: &DecisionRecord, set: &EffectiveSet) -> bool {
    let is = |side: &str, packages: &[Arc<crate::policy::CompiledPackage>]| {
        record.digests.get(side).is_some_and(|digests| digests.iter().eq(packages.iter().map(|p| p.digest())))
    };
    is("tenant", std::slice::from_ref(&set.package)) && is("platform", &set.platform)
}

/// Whether a value of the arguments was not kept.
fn keeps_less(arguments: &Map<String, Value>) -> bool {
    let redacted = |name: &str, value: &Value| {
        name == REDACTED.0 && value.as_str().is_some_and(|text| text.starts_with(REDACTED.1))
    };
    arguments.iter().any(|(name, value)| redacted(name, value) || below(value))
}

fn below(value: &Value) -> bool {
    match value {
        Value::Object(members) => keeps_less(members),
        Value::Array(items) => items.iter().any(below),
        _ => false,
    }
}

/// Who acts, as sentences name it.
pub(super) fn who(record: &DecisionRecord) -> String {
    match record.agent.as_str() {
        "" => format!("{}:{}", record.request.subject.type_, record.request.subject.id),
        agent => agent.to_owned(),
    }
}

/// On what.
pub(super) fn what(record: &DecisionRecord) -> String {
    let resource = &record.request.resource;
    if resource.type_ == "tool" { resource.id.clone() } else { format!("{}:{}", resource.type_, resource.id) }
}

/// A name that a caller chose, in one short line.
pub(super) fn shown(name: &str) -> String {
    let short: String = name.chars().take(120).collect();
    let cut = if short.len() < name.len() { "…" } else { "" };
    format!("\"{}{cut}\"", short.escape_debug())
}

/// `tool "git/push" (write)`, with both tiers where they differ.
fn resource_words(record: &DecisionRecord, both: &Both) -> String {
    let resource = &record.request.resource;
    let kind = if resource.type_ == "tool" { "tool".to_owned() } else { resource.type_.escape_debug().to_string() };
    let word = |tier: Option<Tier>| tier.map_or("not listed", Tier::as_str);
    let tier = match (both.baseline.tier, both.candidate.tier) {
        (None, None) => String::new(),
        (before, after) if before == after => format!(" ({})", word(after)),
        (before, after) => format!(" ({}, now {})", word(before), word(after)),
    };
    format!("{kind} {}{tier}", shown(&resource.id))
}

fn event(record: &DecisionRecord, both: &Both, drift: Drift) -> Event {
    let action = match record.request.action.name.as_str() {
        "call_tool" => "calling".to_owned(),
        other => format!("asking for {} on", shown(other)),
    };
    let kind = if record.agent.is_empty() { "Subject" } else { "Agent" };
    let behalf = record.delegated_from.as_ref().map(|d| format!(" on behalf of {}", shown(d))).unwrap_or_default();
    let sentence = format!(
        "{kind} {}{behalf} {action} {}: {} before, {} now.{}",
        shown(&who(record)),
        resource_words(record, both),
        both.baseline.words(),
        both.candidate.words(),
        asked_words(&both.baseline.asks, &both.candidate.asks),
    );
    Event {
        decision: record.id.clone(),
        time: record.time,
        severity: drift.severity,
        cause: drift.cause,
        agent: who(record),
        delegated_from: record.delegated_from.clone(),
        action: record.request.action.name.clone(),
        tool: what(record),
        baseline: both.baseline.kept(),
        candidate: both.candidate.kept(),
        sentence,
    }
}

/// Bytes that stand for one thing only: every part with its length.
pub(super) struct Canonical(Sha256);

impl Canonical {
    pub fn new(tag: &[u8]) -> Self {
        Self(Sha256::new_with_prefix(tag))
    }

    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
        self
    }

    pub fn number(mut self, number: i64) -> Self {
        self.0.update(number.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8; 32]) -> Self {
        self.0.update(bytes);
        self
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
