//! Invariants over what was replayed, and over the package itself: each of its tools is called by made-up agents of every trust.
//!
//! What holds here holds for these calls only: `remit prove` speaks of all of them. What does not hold has a counter-example, always.

use serde::{Deserialize, Serialize};

use super::Task;
use super::event::{Both, shown, who};
use super::probe::Probe;
use super::tally::Tally;
use crate::api::{BuiltIn, Expectation, Invariant, InvariantError, Meaning, Tier};
use crate::gate::{DecisionRecord, Outcome};

/// What came of one invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvariantResult {
    /// Its name.
    pub name: String,
    /// Whether no counter-example was found.
    pub holds: bool,
    /// A call for which it does not hold, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_example: Option<String>,
    /// Replayed decisions for which it does not hold.
    pub decisions: u64,
}

/// Invariants that can be judged.
pub(super) struct Judge(Vec<(Invariant, Meaning)>);

/// A call, as an invariant looks at it.
pub(super) struct Call<'a> {
    /// Name of the agent; None: another subject.
    pub agent: Option<&'a str>,
    /// The least trust of the agent and its delegating agents.
    pub trust: i64,
    /// Its teams.
    pub teams: &'a [String],
    /// The tool; None: another resource.
    pub tool: Option<&'a str>,
}

impl Judge {
    pub fn new(invariants: &[Invariant]) -> Result<Self, InvariantError> {
        let known = invariants.iter().map(|i| Ok((i.clone(), i.meaning()?)));
        let known: Vec<_> = known.collect::<Result<_, InvariantError>>()?;
        for (n, (invariant, _)) in known.iter().enumerate() {
            if known.iter().take(n).any(|(other, _)| other.name == invariant.name) {
                let why = "there are two of this name".to_owned();
                return Err(InvariantError { name: invariant.name.clone(), why });
            }
        }
        Ok(Self(known))
    }

    /// The invariants that a replayed decision breaks, each with the words for it.
    pub fn event(&self, record: &DecisionRecord, both: &Both) -> Vec<(usize, String)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let chain = record.facts.delegation.iter().flat_map(|d| &d.chain).map(|a| a.trust);
        let call = Call {
            agent: record.facts.agent.as_ref().map(|a| a.name.as_str()),
            trust: record.facts.agent.as_ref().map_or(0, |a| chain.fold(a.trust, i64::min)),
            teams: record.facts.agent.as_ref().map_or(&[], |a| &a.teams),
            tool: (record.request.resource.type_ == "tool").then_some(record.request.resource.id.as_str()),
        };
        let mut broken = Vec::new();
        for (n, (invariant, meaning)) in self.0.iter().enumerate() {
            if concerns(invariant, *meaning, &call, both) && !holds(*meaning, both) {
                let tool = call.tool.map_or_else(|| super::event::what(record), str::to_owned);
                broken.push((
                    n,
                    format!(
                        "Decision {}: agent {} and {}: {} before, {} now.",
                        record.id,
                        shown(&who(record)),
                        shown(&tool),
                        both.baseline.words(),
                        both.candidate.words()
                    ),
                ));
            }
        }
        broken
    }

    /// All of them, in order.
    pub fn invariants(&self) -> impl Iterator<Item = &Invariant> {
        self.0.iter().map(|(invariant, _)| invariant)
    }

    /// Notes which invariants a made-up call breaks that no other has broken before.
    pub fn made_up(&self, call: &Probe, broken: &mut [Option<String>]) {
        for (n, ((invariant, meaning), broken)) in self.0.iter().zip(broken).enumerate() {
            if broken.is_none()
                && call.of.is_none_or(|of| of == n)
                && concerns(invariant, *meaning, &call.call(), &call.both)
                && !holds(*meaning, &call.both)
            {
                *broken = Some(call.words());
            }
        }
    }

    /// All invariants, over what was replayed and over the package itself.
    pub fn results(&self, task: &Task, tally: &Tally) -> Vec<InvariantResult> {
        let mut made_up = tally.made_up.clone();
        made_up.go_on(task, self, &|| false);
        let results = self.0.iter().enumerate().map(|(n, (invariant, _))| {
            let (seen, decisions) = tally.violation(n);
            let counter_example = seen.map(str::to_owned).or_else(|| made_up.broken.get(n).cloned().flatten());
            InvariantResult {
                name: invariant.name.clone(),
                holds: counter_example.is_none(),
                counter_example,
                decisions,
            }
        });
        results.collect()
    }
}

/// Whether an invariant speaks of this call.
fn concerns(invariant: &Invariant, meaning: Meaning, call: &Call<'_>, both: &Both) -> bool {
    match meaning {
        Meaning::BuiltIn(BuiltIn::NoWritePrivilegeEscalation) => !both.reads(),
        Meaning::BuiltIn(BuiltIn::UnknownToolsDenied) => call.tool.is_some() && both.candidate.tier.is_none(),
        Meaning::BuiltIn(BuiltIn::WriteToolsNeedApproval) => {
            call.tool.is_some() && both.candidate.tier.is_some_and(|t| t != Tier::Read)
        }
        Meaning::Declared(_) => {
            // Taken apart by name, so that a new selector can't be forgotten here.
            let Invariant { name: _, expect: _, agent, agent_trust_below, team, tier, tool } = invariant;
            call.tool.is_some()
                && call.agent.is_some()
                && agent.as_ref().is_none_or(|a| call.agent == Some(a))
                && agent_trust_below.is_none_or(|below| call.trust < below)
                && team.as_ref().is_none_or(|team| call.teams.contains(team))
                && tier.is_none_or(|tier| both.candidate.tier == Some(tier))
                && tool.as_ref().is_none_or(|tool| call.tool == Some(tool))
        }
    }
}

fn holds(meaning: Meaning, both: &Both) -> bool {
    let stops = |outcome| matches!(outcome, Outcome::Deny | Outcome::Refused);
    match meaning {
        Meaning::BuiltIn(BuiltIn::NoWritePrivilegeEscalation) => !both.drift().is_some_and(|d| d.cause.expands()),
        Meaning::BuiltIn(BuiltIn::UnknownToolsDenied) | Meaning::Declared(Expectation::NeverAllow) => {
            stops(both.candidate.outcome)
        }
        Meaning::BuiltIn(BuiltIn::WriteToolsNeedApproval) | Meaning::Declared(Expectation::NeverAllowAlone) => {
            both.candidate.outcome != Outcome::Allow
        }
    }
}
