//! `remit suggest`: from what agents did to a least-privilege package that a person reviews.
//!
//! Pure, and deterministic: the same decisions give the same bytes. Every decision is asked again under the result; what it would
//! allow although it was stopped is taken out, and whatever is answered in another way is named.

pub mod gather;
mod grant;
pub mod replay;
pub mod text;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::api::{PolicyPackageSpec, SourceFile};
use crate::gate::{DecisionRecord, Outcome};
use crate::policy::{CompiledPackage, Refusal, Side, digest, forbids};
use gather::{Expect, Gathered, Key, LeftOut, Reason};
use grant::Grant;

/// The action whose permits are suggested.
pub const TOOL_ACTION: &str = "call_tool";

/// What to be content with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the package, where there was none.
    pub package: String,
    /// How often a tool that reads must be seen in an agent's hands.
    pub min_reads: usize,
    /// The same for tools that write or administer.
    pub min_changes: usize,
    /// How many calls must agree before a permit looks at their arguments.
    pub min_constant: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { package: "suggested".to_owned(), min_reads: 2, min_changes: 3, min_constant: 5 }
    }
}

/// A package, and what there is to say of it.
#[derive(Clone, Debug)]
pub struct Suggestion {
    /// As it is read from its folder.
    pub spec: PolicyPackageSpec,
    /// The folder: names and texts.
    pub files: Vec<SourceFile>,
    /// For people and programs.
    pub summary: Summary,
}

/// What there is to say of a suggestion.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Decisions that were looked at.
    pub decisions: usize,
    /// `@id` of each permit, and how many decisions stand behind it.
    pub permits: BTreeMap<String, usize>,
    /// `@id` of each forbid that was kept.
    pub kept: Vec<String>,
    /// Tools that nobody has reviewed yet.
    pub review: Vec<String>,
    /// What is left out.
    pub left_out: Vec<LeftOut>,
    /// What the replay showed.
    pub replay: Replayed,
}

/// Every decision asked again under the suggestion.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    /// Answered as before.
    pub same: usize,
    /// Answered in another way, for a reason that is named.
    pub named: Vec<Difference>,
    /// Answered in another way, and nobody knows why: a defect of the suggestion.
    pub unexplained: Vec<Difference>,
    /// Not asked again: the record does not hold what is needed, or the platform's further packages decided.
    pub not_replayed: usize,
}

/// Decisions of one agent and tool that would be answered in another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Agent, or another subject.
    pub agent: String,
    /// Tool, or another resource.
    pub tool: String,
    /// What was answered.
    pub before: String,
    /// What would be.
    pub after: String,
    /// Why.
    pub reason: String,
    /// How many decisions.
    pub decisions: usize,
    /// The last of them.
    pub example: String,
}

/// Why there is no suggestion.
#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    /// Nothing to learn from.
    #[error("there are no decisions to learn from")]
    Nothing,
    /// Decisions of several tenants: a package is of one.
    #[error("the decisions are of several tenants: {0}")]
    Tenants(String),
    /// The package that was there, or (a defect) the suggestion, can't be used.
    #[error("{what}: {}", .refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// Which package.
        what: &'static str,
        /// What is wrong with it.
        refusals: Vec<Refusal>,
    },
}

/// Suggests a package. `existing` is the one that the decisions were made under, if it is known: its forbids stay.
pub fn suggest(
    records: &[DecisionRecord],
    existing: Option<&PolicyPackageSpec>,
    settings: &Settings,
) -> Result<Suggestion, SuggestError> {
    let tenants: BTreeSet<&str> = records.iter().map(|r| r.tenant.as_str()).collect();
    match tenants.len() {
        0 => return Err(SuggestError::Nothing),
        1 => {}
        _ => {
            let names: Vec<String> = tenants.iter().map(|t| text::quoted(t)).collect();
            return Err(SuggestError::Tenants(names.join(", ")));
        }
    }
    let mut kept = Vec::new();
    if let Some(spec) = existing {
        let refused = |refusals| SuggestError::Refused { what: "the package that is there", refusals };
        CompiledPackage::compile(spec, &digest(spec), Side::Tenant).map_err(refused)?;
        for file in &spec.policies {
            kept.extend(forbids(&file.name, &file.text).map_err(|refusal| refused(vec![refusal]))?);
        }
    }
    let mut found = gather::gather(records, existing, &kept, settings);
    let taken: BTreeSet<String> = kept.iter().map(|k| k.id.clone()).collect();
    let (grants, spec, compiled, replayed) = loop {
        let grants = grant::grants(&found, settings, &taken);
        found.mark_seen(&grants);
        let spec = write::package(&found, &grants, &kept, existing, settings);
        let compiled = CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant)
            .map_err(|refusals| SuggestError::Refused { what: "the suggestion", refusals })?;
        let (replayed, too_much) = compare(&found, &compiled);
        // What must stop and would be allowed: rather no permit at all for that agent and tool.
        let withdrawn =
            too_much.into_iter().filter(|(key, id)| found.withdraw(key, &Reason::WouldAllow(id.clone()))).count();
        if withdrawn == 0 {
            break (grants, spec, compiled, replayed);
        }
    };
    let spec = write::with_tests(spec, &found, &grants, &compiled);
    let files = write::files(&spec, &found, &grants, &replayed, existing);
    let summary = Summary {
        package: spec.package.clone(),
        version: spec.version.clone(),
        decisions: found.records.len(),
        permits: grants.iter().map(|g| (g.id.clone(), g.records.values().map(Vec::len).sum())).collect(),
        kept: kept.into_iter().map(|k| k.id).collect(),
        review: found.tools.values().filter(|k| k.review.is_some() && k.seen).map(|k| k.tool.name.clone()).collect(),
        left_out: found.left_out(),
        replay: replayed,
    };
    let spec = PolicyPackageSpec { policies: write::policies(&files), tests: write::tests(&files), ..spec };
    Ok(Suggestion { spec, files, summary })
}

impl Gathered<'_> {
    fn mark_seen(&mut self, grants: &[Grant]) {
        let seen: BTreeSet<&String> = grants.iter().flat_map(|g| &g.tools).collect();
        for (name, known) in &mut self.tools {
            known.seen = seen.contains(name);
        }
    }
}

/// Asks every decision again. Gives what differs, and the uses whose permits would allow what must stop.
fn compare(found: &Gathered<'_>, package: &Arc<CompiledPackage>) -> (Replayed, BTreeMap<Key, String>) {
    type Line = (String, String, &'static str, &'static str, String);
    let (mut out, mut too_much) = (Replayed::default(), BTreeMap::new());
    let mut lines: BTreeMap<(bool, Line), (usize, String)> = BTreeMap::new();
    for (record, expect) in found.records.iter().zip(&found.expect) {
        if matches!(expect, Expect::Skip(_)) {
            out.not_replayed += 1;
            continue;
        }
        let Some(now) = replay::ask(record, package) else {
            out.not_replayed += 1;
            continue;
        };
        let (before, after) = (record.outcome, now.outcome);
        let (enforced, _) = replay::enforced(record);
        let policies: Vec<&str> = now.policies.iter().map(|p| p.id.as_str()).collect();
        let why = match (expect, after) {
            (Expect::Permit, Outcome::Allow) if enforced == Outcome::ApprovalRequired => None,
            (Expect::Permit, Outcome::Allow) => Some("it is permitted".to_owned()),
            (Expect::Permit, Outcome::ApprovalRequired) => Some(format!("people are asked ({})", policies.join(", "))),
            (Expect::Permit, Outcome::Deny) if now.code == "denied_by_policy" => {
                Some(format!("a forbid stops it and stays ({})", policies.join(", ")))
            }
            (Expect::Permit, Outcome::Deny) => match now.code {
                code @ ("evaluation_error" | "attributes_missing" | "argument_too_large" | "evaluation_too_costly") => {
                    Some(format!("it could not be evaluated ({code})"))
                }
                "tool_changed" => Some(Reason::ToolChanged.to_string()),
                code @ ("session_required" | "session_unknown" | "delegation_required") => {
                    Some(Reason::AgentRules(code.to_owned()).to_string())
                }
                _ => None,
            },
            (Expect::Stop(reason), Outcome::Deny) => Some(reason.to_string()),
            (Expect::Stop(reason), now) if now == enforced && now != Outcome::Allow => Some(reason.to_string()),
            _ => None,
        };
        if why.is_none() && matches!(after, Outcome::Allow | Outcome::ApprovalRequired) {
            too_much.insert((record.agent.clone(), record.request.resource.id.clone()), record.id.clone());
        }
        if before == after && why.is_some() {
            out.same += 1;
            continue;
        }
        let reason = why.clone().unwrap_or_else(|| format!("now {}", now.code));
        let who = (gather::who(record), record.request.resource.id.clone());
        let line = (who.0, who.1, before.as_str(), after.as_str(), reason);
        let line = lines.entry((why.is_some(), line)).or_default();
        *line = (line.0 + 1, record.id.clone());
    }
    for ((named, (agent, tool, before, after, reason)), (decisions, example)) in lines {
        let (before, after) = (before.to_owned(), after.to_owned());
        let difference = Difference { agent, tool, before, after, reason, decisions, example };
        if named { out.named.push(difference) } else { out.unexplained.push(difference) }
    }
    (out, too_much)
}

impl Difference {
    /// For comments and people: one line, whatever the names hold.
    pub fn line(&self) -> String {
        let (agent, tool) = (text::quoted(&self.agent), text::quoted(&self.tool));
        let reason = text::words(&self.reason);
        format!("{agent} calls {tool} ({}×): {} becomes {}: {reason}", self.decisions, self.before, self.after)
    }
}

#[cfg(test)]
mod tests;
