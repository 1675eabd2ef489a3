//! From uses to permits: who may call what, from which trust on, with which arguments.
//!
//! A group of agents is named only where every agent of it that was seen used the tool. Must never permit more than what was
//! seen, but for other values of arguments that varied.

use std::collections::{BTreeMap, BTreeSet};

use super::Settings;
use super::gather::{Gathered, Key};
use super::text::{cedar, cedar_prefix, hash8, quoted, slug};
use crate::api::Tier;
use crate::gate::DecisionRecord;
use crate::policy::Arguments;

/// Arguments of one tool that a permit looks at, at most.
const MAX_CONDITIONS: usize = 8;
/// The longest value that a permit compares.
const MAX_VALUE: usize = 200;
/// Tools in one permit.
const MAX_TOOLS: usize = 100;

/// Whom a permit is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// One agent.
    Agent(String),
    /// All agents of a type.
    Type(String),
    /// All agents of a team.
    Team(String),
}

impl Principal {
    fn kind(&self) -> (&'static str, &str) {
        match self {
            Principal::Agent(name) => ("agent", name),
            Principal::Type(name) => ("type", name),
            Principal::Team(name) => ("team", name),
        }
    }

    fn scope(&self) -> String {
        match self {
            Principal::Agent(name) => format!("principal == Agent::{}", cedar(name)),
            Principal::Type(name) => format!("principal in AgentType::{}", cedar(name)),
            Principal::Team(name) => format!("principal in Team::{}", cedar(name)),
        }
    }

    /// For comments.
    pub fn words(&self) -> String {
        let (kind, name) = self.kind();
        format!("{kind} {}", quoted(name))
    }
}

/// What an argument must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Always this.
    Equals {
        /// Flattened key.
        key: String,
        /// Its text.
        value: String,
    },
    /// This directory, or something in it.
    Below {
        /// Flattened key.
        key: String,
        /// An absolute path without a slash at its end.
        directory: String,
    },
}

impl Condition {
    /// The flattened key of the argument.
    pub fn key(&self) -> &str {
        match self {
            Condition::Equals { key, .. } | Condition::Below { key, .. } => key,
        }
    }

    fn cedar(&self) -> String {
        let key = cedar(self.key());
        let value = format!("context.arguments.getTag({key})");
        let test = match self {
            Condition::Equals { value: wanted, .. } => format!("{value} == {}", cedar(wanted)),
            Condition::Below { directory, .. } => format!(
                "({value} == {} || ({value} like {} && !({value} like \"*/../*\") && !({value} like \"*/..\")))",
                cedar(directory),
                cedar_prefix(&format!("{directory}/"))
            ),
        };
        format!("when {{ context.arguments.hasTag({key}) && {test} }}")
    }
}

/// One permit.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `@id`.
    pub id: String,
    /// For whom.
    pub principal: Principal,
    /// Tools, all of one tier.
    pub tools: Vec<String>,
    /// The least trust that was seen, where that counts.
    pub floor: Option<i64>,
    /// What arguments must be.
    pub conditions: Vec<Condition>,
    /// The records behind it, by tool.
    pub records: BTreeMap<String, Vec<usize>>,
    /// Agents behind it.
    pub agents: BTreeSet<String>,
}

impl Grant {
    /// The policy's text.
    pub fn cedar(&self) -> String {
        let tools: Vec<String> = self.tools.iter().map(|t| format!("Tool::{}", cedar(t))).collect();
        // A scope takes one tool; a list stands in a condition.
        let (resource, list) = match tools.as_slice() {
            [one] => (format!("resource == {one}"), String::new()),
            many => {
                ("resource".to_owned(), format!("\nwhen {{\n  resource in [\n    {}\n  ]\n}}", many.join(",\n    ")))
            }
        };
        let mut text = format!(
            "@id({})\npermit (\n  {},\n  action == Action::\"call_tool\",\n  {resource}\n){list}",
            cedar(&self.id),
            self.principal.scope()
        );
        if let Some(floor) = self.floor {
            text.push_str(&format!("\nwhen {{ principal.trust >= {floor} }}"));
        }
        for condition in &self.conditions {
            text.push('\n');
            text.push_str(&condition.cedar());
        }
        text.push(';');
        text
    }
}

/// The trust that counts for a record: the least of its chain.
pub fn trust(record: &DecisionRecord) -> i64 {
    let own = record.facts.agent.as_ref().map_or(0, |a| a.trust);
    record.facts.delegation.iter().flat_map(|d| &d.chain).map(|a| a.trust).fold(own, i64::min)
}

/// The permits for everything that is to be permitted, in the order of their ids. `taken` are ids that others have.
pub fn grants(found: &Gathered<'_>, settings: &Settings, taken: &BTreeSet<String>) -> Vec<Grant> {
    let groups = Groups::of(found);
    let mut tools: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (agent, tool) in found.uses.keys() {
        tools.entry(tool).or_default().insert(agent);
    }
    let mut merged: BTreeMap<Merge, Grant> = BTreeMap::new();
    for (tool, users) in tools {
        let tier = found.tools.get(tool).map_or(Tier::Admin, |k| k.tool.tier);
        let of = |agent: &str| found.uses.get(&key(agent, tool)).map_or(&[][..], Vec::as_slice);
        let seen = |records: &[usize]| -> Vec<&DecisionRecord> {
            records.iter().filter_map(|n| found.records.get(*n).copied()).collect()
        };
        // Only who was seen with the same arguments is put together: a group must not loosen what one of it is held to.
        let mut alike: BTreeMap<Vec<Condition>, BTreeSet<&str>> = BTreeMap::new();
        for agent in users {
            alike.entry(conditions(&seen(of(agent)), tier, settings)).or_default().insert(agent);
        }
        for (conditions, users) in alike {
            for (principal, agents) in groups.cover(&users) {
                let records: Vec<usize> = agents.iter().flat_map(|a| of(a).iter().copied()).collect();
                // The platform denies everything to trust 0, so that 1 is no floor.
                let least = seen(&records).iter().map(|r| trust(r)).min().filter(|t| *t >= 2);
                let floor = if tier == Tier::Read { None } else { least };
                let alone = if conditions.is_empty() { String::new() } else { tool.to_owned() };
                let id = id(&principal, tier, floor, &alone);
                let merge = (principal.clone(), tier.as_str(), floor, alone);
                let grant = merged.entry(merge).or_insert_with(|| Grant {
                    id,
                    principal,
                    tools: Vec::new(),
                    floor,
                    conditions: conditions.clone(),
                    records: BTreeMap::new(),
                    agents: BTreeSet::new(),
                });
                grant.tools.push(tool.to_owned());
                grant.records.insert(tool.to_owned(), records);
                grant.agents.extend(agents.iter().map(|a| (*a).to_owned()));
            }
        }
    }
    let mut taken = taken.clone();
    let mut grants: Vec<Grant> = merged.into_values().flat_map(split).collect();
    grants.sort_by(|a, b| a.id.cmp(&b.id));
    for grant in &mut grants {
        if !taken.insert(grant.id.clone()) {
            let (kind, name) = grant.principal.kind();
            grant.id = format!("{}-{}", grant.id, hash8(&format!("{kind}\n{name}\n{}", grant.tools.join("\n"))));
            taken.insert(grant.id.clone());
        }
    }
    grants
}

type Merge = (Principal, &'static str, Option<i64>, String);

fn key(agent: &str, tool: &str) -> Key {
    (agent.to_owned(), tool.to_owned())
}

fn id(principal: &Principal, tier: Tier, floor: Option<i64>, tool: &str) -> String {
    let (kind, name) = principal.kind();
    let what = if tool.is_empty() { tier.as_str().to_owned() } else { slug(tool) };
    let floor = floor.map(|f| format!("-trust{f}")).unwrap_or_default();
    format!("{kind}-{}-{what}{floor}", slug(name))
}

/// A permit of many tools in several.
fn split(grant: Grant) -> Vec<Grant> {
    let parts: Vec<Vec<String>> = grant.tools.chunks(MAX_TOOLS).map(<[String]>::to_vec).collect();
    if parts.len() < 2 {
        return vec![grant];
    }
    let part = |(n, tools): (usize, Vec<String>)| Grant {
        id: format!("{}-part{}", grant.id, n + 1),
        records: tools.iter().filter_map(|t| Some((t.clone(), grant.records.get(t)?.clone()))).collect(),
        tools,
        ..grant.clone()
    };
    parts.into_iter().enumerate().map(part).collect()
}

/// Types and teams with two or more agents, none of which changed while it was looked at.
struct Groups {
    members: BTreeMap<Principal, BTreeSet<String>>,
}

impl Groups {
    fn of(found: &Gathered<'_>) -> Self {
        let mut members: BTreeMap<Principal, BTreeSet<String>> = BTreeMap::new();
        let mut facts: BTreeMap<&str, BTreeSet<(&str, &[String])>> = BTreeMap::new();
        for agent in found.records.iter().filter_map(|r| r.facts.agent.as_ref()) {
            facts.entry(&agent.name).or_default().insert((&agent.type_, &agent.teams));
            let teams = agent.teams.iter().map(|t| Principal::Team(t.clone()));
            let types = (!agent.type_.is_empty()).then(|| Principal::Type(agent.type_.clone()));
            for group in teams.chain(types) {
                members.entry(group).or_default().insert(agent.name.clone());
            }
        }
        members.retain(|_, agents| {
            agents.len() > 1 && agents.iter().all(|a| facts.get(a.as_str()).is_some_and(|f| f.len() == 1))
        });
        Self { members }
    }

    /// Each user of a tool once: in a type, else in a team, else by its name.
    fn cover<'u>(&self, users: &BTreeSet<&'u str>) -> Vec<(Principal, Vec<&'u str>)> {
        let mut left = users.clone();
        let mut out = Vec::new();
        for (group, members) in &self.members {
            let all = members.iter().all(|m| users.contains(m.as_str()));
            let new: Vec<&str> = left.iter().filter(|u| members.contains(**u)).copied().collect();
            // Whoever is in an earlier group already would be permitted twice, on two grounds.
            if all && new.len() == members.len() {
                left.retain(|u| !members.contains(*u));
                out.push((group.clone(), new));
            }
        }
        out.extend(left.into_iter().map(|agent| (Principal::Agent(agent.to_owned()), vec![agent])));
        out
    }
}

/// What every one of these calls had in common. Only over enough of them; of tools that only read, only directories.
fn conditions(seen: &[&DecisionRecord], tier: Tier, settings: &Settings) -> Vec<Condition> {
    if seen.len() < settings.min_constant {
        return Vec::new();
    }
    let flat: Vec<Arguments> = seen.iter().filter_map(|r| Arguments::flatten(&r.request.arguments).ok()).collect();
    let Some(first) = flat.first().filter(|_| flat.len() == seen.len()) else { return Vec::new() };
    let mut out = Vec::new();
    for key in first.strings.keys() {
        // A digest stands there, of the value or of one that is too long: the value itself is not known.
        let hidden =
            key.ends_with(".@sensitive") || key == "@sensitive" || flat.iter().any(|f| f.replaced.contains(key));
        let values: BTreeSet<&str> = flat.iter().filter_map(|f| f.strings.get(key)).map(String::as_str).collect();
        if hidden || !flat.iter().all(|f| f.strings.contains_key(key)) || out.len() == MAX_CONDITIONS {
            continue;
        }
        let mut all = values.iter();
        match (all.next(), all.next()) {
            (Some(only), None) if tier != Tier::Read && only.len() <= MAX_VALUE && key.len() <= MAX_VALUE => {
                out.push(Condition::Equals { key: key.clone(), value: (*only).to_owned() });
            }
            (Some(_), Some(_)) if key.len() <= MAX_VALUE => {
                out.extend(directory(&values).map(|directory| Condition::Below { key: key.clone(), directory }));
            }
            _ => {}
        }
    }
    out
}

/// The directory in which all of these lie, if they are absolute paths and it is not the root.
fn directory(paths: &BTreeSet<&str>) -> Option<String> {
    let good = |p: &&&str| p.starts_with('/') && !p.contains('\0') && !p.split('/').any(|part| part == "..");
    if paths.iter().filter(good).count() != paths.len() {
        return None;
    }
    let mut common: Option<Vec<&str>> = None;
    for path in paths {
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        common = Some(match common {
            None => parts,
            Some(before) => before.iter().zip(&parts).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect(),
        });
    }
    let directory = common?.join("/");
    let deep = directory.len() > 1 && directory.len() <= MAX_VALUE && !directory.contains("//");
    deep.then_some(directory)
}
