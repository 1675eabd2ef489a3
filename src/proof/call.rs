//! Calls that a person could make: what a counter-example is written as, and how both sides decide it.
//!
//! A model of the solver is only a hint. What is shown was decided otherwise by Remit's own gates, under both packages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::{Entity, EntityUid, EvalResult};
use cedar_policy_symcc::Env;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::environment::Environment;
use crate::gate::{Outcome, weigh};
use crate::policy::{
    AgentFacts, Arguments, CallerKind, CompiledPackage, DelegationFacts, PolicyRef, Query, Resource, Subject, portrait,
};

/// Stands for an agent that no policy names.
const ANY_AGENT: &str = "any-agent";
/// The longest value that a sentence quotes.
const MAX_QUOTED: usize = 60;

/// A call, with everything that the policies may look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// AuthZEN type of the subject.
    pub subject_type: String,
    /// Its id; an agent's name.
    pub subject: String,
    /// The agent, where the subject is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentFacts>,
    /// For whom it acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<DelegationFacts>,
    /// The action.
    pub action: String,
    /// AuthZEN type of the resource.
    pub resource_type: String,
    /// Its id; a tool's name.
    pub resource: String,
    /// Arguments.
    pub arguments: Map<String, Value>,
    /// Session, where the call names a live one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Risk, 0 to 100.
    pub risk: i64,
    /// Whether an active grant covers it.
    pub granted: bool,
    /// Hour of the day, UTC.
    pub hour: i64,
}

impl Call {
    /// What one side makes of it, and by which policies.
    pub(super) fn decide(
        &self,
        tenant: &str,
        platform: &[Arc<CompiledPackage>],
        package: &CompiledPackage,
    ) -> (Outcome, Vec<Arc<PolicyRef>>) {
        let Ok(arguments) = Arguments::flatten(&self.arguments) else { return (Outcome::Refused, Vec::new()) };
        let none = Map::new();
        let subjects = match &self.agent {
            Some(facts) => {
                let alone = Subject::Agent { facts, delegation: None };
                let with = self.delegation.as_ref().map(|d| Subject::Agent { facts, delegation: Some(d) });
                std::iter::once(alone).chain(with).collect()
            }
            None => vec![Subject::Other { type_: &self.subject_type, id: &self.subject, properties: &none }],
        };
        let queries: Vec<Query<'_>> = subjects
            .into_iter()
            .map(|subject| Query {
                subject,
                action: &self.action,
                resource: Resource { type_: &self.resource_type, id: &self.resource, properties: &none },
                caller: CallerKind::Gateway,
                tenant,
                arguments: &arguments,
                session: self.session.as_deref(),
                risk: self.risk,
                granted: self.granted,
                hour: self.hour,
                tool: if self.resource_type == "tool" { package.tool(&self.resource) } else { None },
            })
            .collect();
        weigh(platform, package, &queries)
    }

    /// Who calls what, in words.
    pub fn words(&self) -> String {
        let mut who = match &self.agent {
            Some(agent) => {
                let mut facts = vec![format!("trust {}", agent.trust)];
                if !agent.type_.is_empty() {
                    facts.push(format!("type {}", quoted(&agent.type_)));
                }
                facts.extend(agent.teams.iter().map(|t| format!("team {}", quoted(t))));
                facts.extend(agent.attributes.iter().map(|(k, v)| format!("{}={}", quoted(k), quoted(v))));
                let name = if agent.name == ANY_AGENT {
                    "an agent".to_owned()
                } else {
                    format!("agent {}", quoted(&agent.name))
                };
                format!("{name} ({})", facts.join(", "))
            }
            None => format!("{} {}", self.subject_type, quoted(&self.subject)),
        };
        if let Some(delegation) = &self.delegation {
            let root = delegation.user.as_deref().map(quoted);
            let chain = delegation.chain.iter().map(|a| quoted(&a.name));
            who.push_str(&format!(" for {}", chain.chain(root).collect::<Vec<_>>().join(", for ")));
        }
        let what = match self.action.as_str() {
            "call_tool" => format!("calls {}", quoted(&self.resource)),
            "network_access" => format!("reaches {}", quoted(&self.resource)),
            other => format!("asks for {} on {} {}", quoted(other), self.resource_type, quoted(&self.resource)),
        };
        let mut with = Vec::new();
        if !self.arguments.is_empty() {
            with.push(format!("arguments {}", shortened(&Value::Object(self.arguments.clone()).to_string())));
        }
        if self.risk > 0 {
            with.push(format!("risk {}", self.risk));
        }
        if self.granted {
            with.push("a grant".to_owned());
        }
        with.extend(self.session.as_ref().map(|s| format!("session {}", quoted(s))));
        if self.hour != NOON {
            with.push(format!("at {:02}:00 UTC", self.hour));
        }
        let with = if with.is_empty() { String::new() } else { format!(" with {}", with.join(", ")) };
        format!("{who} {what}{with}")
    }

    /// Simpler calls, each with one thing less.
    fn simpler(&self) -> Vec<Call> {
        let mut all = Vec::new();
        let mut push = |call: Call| {
            if call != *self {
                all.push(call);
            }
        };
        push(Call { delegation: None, ..self.clone() });
        push(Call { session: None, ..self.clone() });
        push(Call { granted: false, ..self.clone() });
        push(Call { risk: 0, ..self.clone() });
        push(Call { hour: NOON, ..self.clone() });
        if let Some(agent) = &self.agent {
            let with = |facts: AgentFacts| Call { subject: facts.name.clone(), agent: Some(facts), ..self.clone() };
            push(with(AgentFacts { name: ANY_AGENT.into(), ..agent.clone() }));
            push(with(AgentFacts { type_: String::new(), ..agent.clone() }));
            push(with(AgentFacts { teams: Vec::new(), ..agent.clone() }));
            push(with(AgentFacts { attributes: BTreeMap::new(), ..agent.clone() }));
            for n in 0..agent.teams.len() {
                let mut teams = agent.teams.clone();
                teams.remove(n);
                push(with(AgentFacts { teams, ..agent.clone() }));
            }
            for key in agent.attributes.keys() {
                let mut attributes = agent.attributes.clone();
                attributes.remove(key);
                push(with(AgentFacts { attributes, ..agent.clone() }));
            }
            for trust in 0..agent.trust {
                push(with(AgentFacts { trust, ..agent.clone() }));
            }
        }
        push(Call { arguments: Map::new(), ..self.clone() });
        for key in self.arguments.keys() {
            let mut arguments = self.arguments.clone();
            arguments.remove(key);
            push(Call { arguments, ..self.clone() });
        }
        all
    }

    /// The simplest call that one finds from this one of which the same still holds.
    pub(super) fn simplified(self, holds: impl Fn(&Call) -> bool) -> Call {
        let mut call = self;
        for _ in 0..32 {
            match call.simpler().into_iter().find(|c| holds(c)) {
                Some(simpler) => call = simpler,
                None => break,
            }
        }
        call
    }
}

/// An hour that nobody needs to hear of.
const NOON: i64 = 12;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(4 * MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A name as it is, or in quotes where it is anything else.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if !text.is_empty() && text.len() <= MAX_QUOTED && text.chars().all(plain) {
        return text.to_owned();
    }
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The calls that a model of the solver can mean, as far as a person could make them. `tool`: the tool that was asked about; `numbers`:
/// the arguments that policies read as numbers.
pub(super) fn of_model(
    model: &Env,
    environment: &Environment,
    tenant: &str,
    tool: Option<&str>,
    numbers: &BTreeSet<smol_str::SmolStr>,
) -> Vec<Call> {
    // To the solver an argument can be a text and another number at once. In a call it is one of the two.
    let readings: [&dyn Fn(&str) -> bool; 3] = [&|key| numbers.contains(key), &|_| true, &|_| false];
    let mut calls: Vec<Call> = Vec::new();
    for is_number in readings {
        if let Some(call) = read_as(model, environment, tenant, tool, is_number)
            && !calls.contains(&call)
        {
            calls.push(call);
        }
    }
    calls
}

fn read_as(
    model: &Env,
    environment: &Environment,
    tenant: &str,
    tool: Option<&str>,
    is_number: &dyn Fn(&str) -> bool,
) -> Option<Call> {
    let principal = model.request.principal()?;
    let resource = model.request.resource()?;
    let entity = model.entities.get(principal)?;
    let context = model.request.context()?;
    let long = |name: &str| match context.get(name) {
        Some(EvalResult::Long(n)) => Some(n),
        _ => None,
    };
    let agent = environment.has_agent().then(|| agent(entity, principal, &model.entities, tenant));
    let delegation = environment.has_agent().then(|| delegation(entity, tenant)).flatten();
    let resource = match tool {
        Some(tool) => tool.to_owned(),
        None if environment.resource_type == "domain" => domain(model, resource),
        None => text(resource).to_owned(),
    };
    Some(Call {
        subject_type: environment.subject_type.clone(),
        subject: agent.as_ref().map_or_else(|| text(principal).to_owned(), |a: &AgentFacts| a.name.clone()),
        agent,
        delegation,
        action: environment.action.clone(),
        resource_type: environment.resource_type.clone(),
        resource,
        arguments: arguments(model, is_number)?,
        session: match context.get("session") {
            Some(EvalResult::String(text)) if !text.is_empty() => Some(text),
            _ => None,
        },
        risk: long("risk").unwrap_or(0),
        granted: matches!(context.get("granted"), Some(EvalResult::Bool(true))),
        hour: long("hour").unwrap_or(NOON),
    })
}

fn text(uid: &EntityUid) -> &str {
    uid.id().unescaped()
}

fn of_type(uid: &EntityUid, ty: &str) -> bool {
    uid.type_name().to_string() == ty
}

/// Names as Kubernetes takes them.
fn is_name(text: &str) -> bool {
    let part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(part)
}

fn facts(name: &str, tenant: &str) -> AgentFacts {
    AgentFacts {
        tenant: tenant.to_owned(),
        name: if is_name(name) { name.to_owned() } else { ANY_AGENT.to_owned() },
        uid: "1".to_owned(),
        type_: String::new(),
        teams: Vec::new(),
        trust: 4,
        suspended: false,
        attributes: BTreeMap::new(),
    }
}

fn agent(entity: &Entity, uid: &EntityUid, entities: &cedar_policy::Entities, tenant: &str) -> AgentFacts {
    let ancestors: Vec<&EntityUid> = entities.ancestors(uid).into_iter().flatten().collect();
    let type_ = ancestors.iter().find(|a| of_type(a, "AgentType")).map(|a| text(a).to_owned());
    let named = match entity.attr("type") {
        Some(Ok(EvalResult::String(text))) => text,
        _ => String::new(),
    };
    let teams = ancestors.iter().filter(|a| of_type(a, "Team")).map(|a| text(a).to_owned()).filter(|t| !t.is_empty());
    let attributes = entity.tags().filter_map(|(key, value)| match value {
        Ok(EvalResult::String(value)) => Some((key.to_owned(), value)),
        _ => None,
    });
    AgentFacts {
        type_: type_.unwrap_or(named),
        teams: teams.collect(),
        trust: match entity.attr("trust") {
            Some(Ok(EvalResult::Long(n))) => n,
            _ => 0,
        },
        attributes: attributes.collect(),
        ..facts(text(uid), tenant)
    }
}

fn delegation(entity: &Entity, tenant: &str) -> Option<DelegationFacts> {
    let user = match entity.attr("delegated_by") {
        Some(Ok(EvalResult::EntityUid(user))) => Some(text(&user).to_owned()).filter(|u| !u.is_empty()),
        _ => None,
    };
    let chain: Vec<AgentFacts> = match entity.attr("delegation_chain") {
        Some(Ok(EvalResult::Set(agents))) => agents
            .iter()
            .filter_map(|a| match a {
                EvalResult::EntityUid(uid) if is_name(text(uid)) => Some(facts(text(uid), tenant)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    (user.is_some() || !chain.is_empty()).then_some(DelegationFacts { user, chain })
}

/// A name that lies in the groups that the model chose.
fn domain(model: &Env, resource: &EntityUid) -> String {
    let own = text(resource);
    let groups: BTreeSet<&str> = model
        .entities
        .ancestors(resource)
        .into_iter()
        .flatten()
        .map(text)
        .filter(|t| portrait::domain_parents(t).is_some())
        .collect();
    if portrait::domain_parents(own).is_some_and(|parents| groups.iter().all(|g| parents.iter().any(|p| p == g))) {
        return own.to_owned();
    }
    match groups.into_iter().max_by_key(|g| g.len()) {
        Some(group) => format!("host.{group}"),
        None => "host.example".to_owned(),
    }
}

/// The call's arguments; None where no JSON object flattens to these.
fn arguments(model: &Env, is_number: &dyn Fn(&str) -> bool) -> Option<Map<String, Value>> {
    let (texts, numbers) = portrait::call_entities();
    let tags = |uid: cedar_policy_core::ast::EntityUID| {
        let entity = model.entities.get(&EntityUid::from(uid));
        entity.into_iter().flat_map(|e| e.tags().filter_map(|(k, v)| Some((k.to_owned(), v.ok()?))).collect::<Vec<_>>())
    };
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    for (key, value) in tags(texts) {
        if let EvalResult::String(text) = value {
            values.insert(key, Value::String(text));
        }
    }
    for (key, value) in tags(numbers) {
        if let EvalResult::Long(n) = value
            && (is_number(&key) || !values.contains_key(&key))
        {
            values.insert(key, Value::from(n));
        }
    }
    let mut root = Map::new();
    for (key, value) in values {
        insert(&mut root, &split(&key), value)?;
    }
    Some(root)
}

/// The parts of a flattened key.
fn split(key: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in key.chars() {
        match (c, parts.last_mut()) {
            ('\\', _) if !escaped => escaped = true,
            ('.', _) if !escaped => parts.push(String::new()),
            (c, Some(part)) => {
                part.push(c);
                escaped = false;
            }
            (_, None) => {}
        }
    }
    parts
}

fn insert(into: &mut Map<String, Value>, path: &[String], value: Value) -> Option<()> {
    let (first, rest) = path.split_first()?;
    if rest.is_empty() {
        return into.insert(first.clone(), value).is_none().then_some(());
    }
    match into.entry(first.clone()).or_insert_with(|| Value::Object(Map::new())) {
        Value::Object(members) => insert(members, rest, value),
        _ => None,
    }
}
