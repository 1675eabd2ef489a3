//! From decisions to what each agent used, and to what is left out and why.
//!
//! Must never count as a use what somebody stopped on purpose: the platform, a forbid, a person who suspended the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::replay::enforced;
use super::text::quoted;
use super::{Settings, TOOL_ACTION};
use crate::api::{PolicyPackageSpec, Tier, Tool};
use crate::gate::{DecisionRecord, Outcome};
use crate::policy::{ForbidText, base_platform};

/// Why something is not in the suggestion. Every word of it is for the people who review.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The platform stops it, by these policies.
    Platform(Vec<String>),
    /// The agent is suspended.
    Suspended,
    /// The Agent object stops it: this code.
    AgentRules(String),
    /// Policy stopped it when it was enforced: this code.
    Denied(String),
    /// Forbids of the tenant stop it, and stay.
    Forbidden(Vec<String>),
    /// Forbids of the tenant stop it, and this command does not know them.
    ForbiddenElsewhere(Vec<String>),
    /// People are asked by policies that this command does not know.
    Asked(Vec<String>),
    /// The tool is not what was reviewed.
    ToolChanged,
    /// It could not be evaluated: this code.
    NotEvaluated(String),
    /// Seen fewer times than is needed.
    Rare {
        /// How often it was seen.
        seen: usize,
        /// How often it must be.
        needed: usize,
    },
    /// Not a tool's call by an agent.
    OtherKind,
    /// No name that a package takes.
    BadName,
    /// A permit for it would also allow this decision, which was stopped.
    WouldAllow(String),
    /// The record does not hold what a replay needs: this code.
    NoFacts(String),
    /// The question itself was wrong.
    Refused(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Platform(ids) => write!(f, "the platform stops it ({})", ids.join(", ")),
            Reason::Suspended => f.write_str("the agent is suspended"),
            Reason::AgentRules(code) => write!(f, "its Agent object stops it ({code})"),
            Reason::Denied(code) => write!(f, "policy stopped it when it was enforced ({code})"),
            Reason::Forbidden(ids) => write!(f, "a forbid stops it and stays ({})", ids.join(", ")),
            Reason::ForbiddenElsewhere(ids) => {
                write!(f, "a forbid stops it ({}): give --package, so that it can be kept", ids.join(", "))
            }
            Reason::Asked(ids) => {
                write!(f, "people are asked first ({}): give --package, so that this can be kept", ids.join(", "))
            }
            Reason::ToolChanged => f.write_str("the tool is not what was reviewed: import it again"),
            Reason::NotEvaluated(code) => write!(f, "it could not be evaluated ({code})"),
            Reason::Rare { seen, needed } => write!(f, "seen {seen} times, {needed} are needed"),
            Reason::OtherKind => f.write_str("not a tool's call by an agent: write its permit by hand"),
            Reason::BadName => f.write_str("a package takes no tool of that name (server/name, printable ASCII)"),
            Reason::WouldAllow(id) => write!(f, "a permit would also allow decision {id}, which was stopped"),
            Reason::NoFacts(code) => write!(f, "decided before policy was asked ({code})"),
            Reason::Refused(code) => write!(f, "the question was wrong ({code})"),
        }
    }
}

/// What a replay of one record must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is permitted.
    Permit,
    /// It is stopped.
    Stop(Reason),
    /// It is not asked again.
    Skip(Reason),
}

/// An agent's calls of one tool.
pub type Key = (String, String);

/// What was found.
pub struct Gathered<'a> {
    /// Oldest first.
    pub records: Vec<&'a DecisionRecord>,
    /// Of each record.
    pub expect: Vec<Expect>,
    /// Records by agent and tool, of what is to be permitted.
    pub uses: BTreeMap<Key, Vec<usize>>,
    /// Tools of those, and of the package that was there.
    pub tools: BTreeMap<String, Known>,
}

/// A tool, and how it is known.
#[derive(Clone, Debug)]
pub struct Known {
    /// As it is written.
    pub tool: Tool,
    /// What a reviewer must look at.
    pub review: Option<String>,
    /// Whether any use of it is permitted.
    pub seen: bool,
}

/// Sorts the decisions. `kept` are the forbids that stay.
pub fn gather<'a>(
    records: &'a [DecisionRecord],
    existing: Option<&PolicyPackageSpec>,
    kept: &[ForbidText],
    settings: &Settings,
) -> Gathered<'a> {
    let mut records: Vec<&DecisionRecord> = records.iter().collect();
    records.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
    records.dedup_by(|a, b| a.id == b.id);
    let prefix = existing.map(|spec| format!("tenant/{}/", spec.package));
    let classify = Classify { kept, prefix };
    let mut expect: Vec<Expect> = records.iter().map(|r| classify.of(r)).collect();

    // Who stands suspended at the end is given nothing.
    let last: BTreeMap<&str, &DecisionRecord> = records.iter().map(|r| (r.agent.as_str(), *r)).collect();
    for (record, expect) in records.iter().zip(&mut expect) {
        let suspended = last.get(record.agent.as_str()).is_some_and(|r| is_suspended(r));
        if suspended && *expect == Expect::Permit {
            *expect = Expect::Stop(Reason::Suspended);
        }
    }
    let mut found = Gathered { records, expect, uses: BTreeMap::new(), tools: BTreeMap::new() };
    found.count();
    found.name_tools(existing);
    let rare: Vec<(Key, Reason)> = found
        .uses
        .iter()
        .filter_map(|(key, seen)| {
            let tier = found.tools.get(&key.1).map_or(Tier::Admin, |k| k.tool.tier);
            let needed = if tier == Tier::Read { settings.min_reads } else { settings.min_changes };
            (seen.len() < needed).then(|| (key.clone(), Reason::Rare { seen: seen.len(), needed }))
        })
        .collect();
    for (key, reason) in rare {
        found.withdraw(&key, &reason);
    }
    found
}

fn is_suspended(record: &DecisionRecord) -> bool {
    record.code == "paused" || record.facts.agent.as_ref().is_some_and(|a| a.suspended)
}

impl Gathered<'_> {
    fn count(&mut self) {
        for (n, (record, expect)) in self.records.iter().zip(&self.expect).enumerate() {
            if *expect == Expect::Permit {
                let key = (record.agent.clone(), record.request.resource.id.clone());
                self.uses.entry(key).or_default().push(n);
            }
        }
    }

    /// Takes back what was to be permitted; false where nothing was.
    pub fn withdraw(&mut self, key: &Key, reason: &Reason) -> bool {
        let Some(records) = self.uses.remove(key) else { return false };
        for n in records {
            if let Some(expect) = self.expect.get_mut(n) {
                *expect = Expect::Stop(reason.clone());
            }
        }
        true
    }

    /// What each tool is: as the package says, else as the last record has it, else a proposal.
    fn name_tools(&mut self, existing: Option<&PolicyPackageSpec>) {
        let listed = existing.iter().flat_map(|spec| &spec.tools);
        self.tools = listed.map(|t| (t.name.clone(), Known { tool: t.clone(), review: None, seen: false })).collect();
        let mut digests: BTreeMap<&str, BTreeSet<Option<&str>>> = BTreeMap::new();
        // The records are in the order of time: of those that know the tool, the last counts.
        let mut recorded: BTreeMap<&str, Option<(usize, &Tool)>> = BTreeMap::new();
        for n in self.uses.values().flatten() {
            let Some(record) = self.records.get(*n) else { continue };
            let name = record.request.resource.id.as_str();
            digests.entry(name).or_default().insert(record.request.schema_digest.as_deref());
            let known = recorded.entry(name).or_default();
            if let Some(tool) = record.facts.tool.as_ref().filter(|_| known.is_none_or(|(before, _)| before < *n)) {
                *known = Some((*n, tool));
            }
        }
        for (name, known) in recorded {
            let entry = match (self.tools.remove(name), known) {
                (Some(listed), _) => listed,
                (None, Some((_, tool))) => Known { tool: tool.clone(), review: None, seen: false },
                (None, None) => {
                    let seen = digests.get(name).filter(|d| d.len() == 1).and_then(|d| d.first().copied().flatten());
                    proposed(name, seen)
                }
            };
            self.tools.insert(name.to_owned(), entry);
        }
    }
}

/// A tool that no package lists. The name is all that is known, and an agent may have made it up.
fn proposed(name: &str, digest: Option<&str>) -> Known {
    const ADMIN: &[&str] = &[
        "admin",
        "bash",
        "chmod",
        "chown",
        "delete",
        "destroy",
        "drop",
        "eval",
        "exec",
        "execute",
        "force",
        "format",
        "grant",
        "kill",
        "purge",
        "remove",
        "reset",
        "revoke",
        "rm",
        "run",
        "shell",
        "shred",
        "sudo",
        "terminate",
        "truncate",
        "uninstall",
        "wipe",
    ];
    const READ: &[&str] = &[
        "count", "describe", "diff", "find", "get", "list", "log", "read", "search", "show", "stat", "status", "view",
    ];
    let own = name.split_once('/').map_or(name, |(_, own)| own);
    let words = words(own);
    let (tier, why) = if let Some(word) = words.iter().find(|w| ADMIN.contains(&w.as_str())) {
        (Tier::Admin, format!("`admin` by its name ({word})"))
    } else if let Some(word) = words.first().filter(|w| READ.contains(&w.as_str())) {
        (Tier::Read, format!("`read` by its name alone ({word})"))
    } else {
        (Tier::Write, "`write` because its name says nothing else".to_owned())
    };
    let pinned = if digest.is_some() { "; the definition that was seen is pinned" } else { "" };
    let tool = Tool {
        name: name.to_owned(),
        tier,
        sensitivity: crate::api::Sensitivity::Normal,
        groups: Vec::new(),
        description: None,
        schema_digest: digest.map(str::to_owned),
    };
    let review = format!("no package lists this tool yet: {why}{pinned}");
    Known { tool, review: Some(review), seen: false }
}

/// `deleteBranch`, `delete_branch` and `delete-branch` are the same words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (c.is_ascii_uppercase() && before.is_ascii_lowercase()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_ascii_alphanumeric(), words.last_mut()) {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words.retain(|w| !w.is_empty());
    words
}

struct Classify<'a> {
    kept: &'a [ForbidText],
    /// `tenant/PACKAGE/` of the package that was there.
    prefix: Option<String>,
}

impl Classify<'_> {
    fn of(&self, record: &DecisionRecord) -> Expect {
        let request = &record.request;
        let (outcome, code) = enforced(record);
        let code = code.to_owned();
        if record.outcome == Outcome::Refused {
            return Expect::Skip(Reason::Refused(code));
        }
        if request.subject.type_ != "agent" || request.action.name != TOOL_ACTION || request.resource.type_ != "tool" {
            return Expect::Skip(Reason::OtherKind);
        }
        let policies: Vec<&crate::policy::PolicyRef> =
            record.would_be.as_ref().map_or(&record.policies, |w| &w.policies).iter().chain(&record.asks).collect();
        let mut ids: Vec<String> = policies.iter().map(|p| p.id.clone()).collect();
        ids.sort();
        ids.dedup();
        let platform: Vec<String> = ids.iter().filter(|id| id.starts_with("platform/")).cloned().collect();
        if record.outcome != Outcome::Allow && !platform.is_empty() {
            return match platform.iter().all(|id| id.starts_with("platform/base/")) {
                true => Expect::Stop(Reason::Platform(platform)),
                // Only the base package is here to be asked again.
                false => Expect::Skip(Reason::Platform(platform)),
            };
        }
        if record.facts.agent.is_none() {
            return Expect::Skip(Reason::NoFacts(code));
        }
        let use_it = || match usable(&request.resource.id) {
            true => Expect::Permit,
            false => Expect::Stop(Reason::BadName),
        };
        match (outcome, code.as_str()) {
            (Outcome::Allow, _) => use_it(),
            (_, "paused") => Expect::Stop(Reason::Suspended),
            (_, "session_required" | "session_unknown" | "delegation_required") => {
                Expect::Stop(Reason::AgentRules(code))
            }
            (_, "delegation_loop" | "delegation_too_deep" | "unknown_delegator" | "unknown_agent") => {
                Expect::Skip(Reason::NoFacts(code))
            }
            (Outcome::ApprovalRequired, _) if self.prefix.is_some() && self.known(&policies) => use_it(),
            (Outcome::ApprovalRequired, _) => Expect::Stop(Reason::Asked(ids)),
            (_, "tool_changed") => Expect::Stop(Reason::ToolChanged),
            (_, "denied_by_policy") if !self.known(&policies) => Expect::Stop(Reason::ForbiddenElsewhere(ids)),
            // What the forbid read is not in the record, so that a replay could not see it match.
            (_, "denied_by_policy") if redacted(record) => Expect::Skip(Reason::Forbidden(ids)),
            (_, "denied_by_policy") => Expect::Stop(Reason::Forbidden(ids)),
            (_, "evaluation_error" | "attributes_missing" | "argument_too_large" | "evaluation_too_costly") => {
                match only_base(record) {
                    true => Expect::Stop(Reason::NotEvaluated(code)),
                    false => Expect::Skip(Reason::NotEvaluated(code)),
                }
            }
            (_, "no_permit" | "unknown_tool" | "no_package") if record.would_be.is_some() => use_it(),
            _ => Expect::Stop(Reason::Denied(code)),
        }
    }

    /// Whether each of these is a forbid that stays, letter by letter.
    fn known(&self, policies: &[&crate::policy::PolicyRef]) -> bool {
        let Some(prefix) = &self.prefix else { return false };
        let kept = |p: &crate::policy::PolicyRef| {
            let id = p.id.strip_prefix(prefix.as_str());
            self.kept.iter().any(|k| Some(k.id.as_str()) == id && k.text_hash == p.text_hash)
        };
        !policies.is_empty() && policies.iter().all(|p| kept(p))
    }
}

/// Whether the platform had nothing to say but what is compiled in.
fn only_base(record: &DecisionRecord) -> bool {
    record.digests.get("platform").is_none_or(|d| d.iter().all(|d| d == base_platform().digest()))
}

/// A name that a package's list of tools takes.
fn usable(name: &str) -> bool {
    let two = name.split('/').count() == 2 && name.split('/').all(|p| !p.is_empty());
    two && name.len() <= 253 && name.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a value of this question stands as a digest.
pub fn redacted(record: &DecisionRecord) -> bool {
    record.request.arguments.values().any(is_redacted)
}

/// Whether a value stands as a digest, or holds one that does.
pub fn is_redacted(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.contains_key("@sensitive") || members.values().any(is_redacted),
        Value::Array(items) => items.iter().any(is_redacted),
        _ => false,
    }
}

/// One line of what was left out: the reason, who and what, how often, and a decision that shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// Agent, or another subject.
    pub agent: String,
    /// Tool, or another resource.
    pub tool: String,
    /// Why.
    pub reason: String,
    /// How many decisions.
    pub decisions: usize,
    /// The last of them.
    pub example: String,
}

impl LeftOut {
    /// For comments and people: one line, whatever the names hold.
    pub fn line(&self) -> String {
        let reason = super::text::words(&self.reason);
        format!("{} calls {} ({}×): {reason}", quoted(&self.agent), quoted(&self.tool), self.decisions)
    }
}

impl Gathered<'_> {
    /// Everything that is left out, by agent, tool and reason.
    pub fn left_out(&self) -> Vec<LeftOut> {
        let mut lines: BTreeMap<(String, String, &Reason), (usize, usize)> = BTreeMap::new();
        for (n, (record, expect)) in self.records.iter().zip(&self.expect).enumerate() {
            let (Expect::Stop(reason) | Expect::Skip(reason)) = expect else { continue };
            let line = lines.entry((who(record), record.request.resource.id.clone(), reason)).or_default();
            *line = (line.0 + 1, n);
        }
        let lines = lines.into_iter().map(|((agent, tool, reason), (decisions, last))| LeftOut {
            agent,
            tool,
            reason: reason.to_string(),
            decisions,
            example: self.records.get(last).map(|r| r.id.clone()).unwrap_or_default(),
        });
        lines.collect()
    }
}

/// The agent, or another subject with its type.
pub fn who(record: &DecisionRecord) -> String {
    match record.agent.as_str() {
        "" => format!("{}:{}", record.request.subject.type_, record.request.subject.id),
        agent => agent.to_owned(),
    }
}
