//! What a rollout is judged by: replay, proof, and what the records of both arms say. Data only: who makes it is elsewhere, who
//! weighs it is `lifecycle::rollout`. None of it ever comes from a caller.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::drift::{Cause, Severity};

/// Calls from which on an agent is one that calls: its rate is a rate, and it is somebody beside whom another counts for its share only.
pub const CALLER: u64 = 5;

/// Which change is looked at. Evidence of another question is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Namespace.
    pub tenant: String,
    /// Its UID.
    pub tenant_uid: String,
    /// Digest of the package in force.
    pub baseline: String,
    /// Digest of the candidate.
    pub candidate: String,
    /// Digests of the platform's packages, base first: another platform voids what was found.
    pub platform: Vec<String>,
}

/// How far something that runs in the background has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress<T> {
    /// Waiting, or under way.
    Running { done: u64, total: u64 },
    /// It ended with a result, which may well be that nothing can be said.
    Done(T),
    /// It could not be carried out; it is tried again when it is asked for again.
    Failed(String),
}

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplaySummary {
    /// Id of the run.
    pub run: String,
    /// Fingerprint of what went in.
    pub input_fingerprint: String,
    /// Fingerprint of what came out.
    pub result_fingerprint: String,
    /// Decisions that were selected.
    pub selected: u64,
    /// Of them, those that were evaluated on both sides.
    pub replayed: u64,
    /// Of them, those without the facts that this takes.
    pub not_replayable: u64,
    /// Differences by severity.
    pub low: u64,
    pub medium: u64,
    pub high: u64,
    pub critical: u64,
    /// Differences that let somebody do more.
    pub expansions: u64,
    /// Differences that let somebody do less.
    pub restrictions: u64,
    /// Restrictions of severity high.
    pub high_restrictions: u64,
    /// The same by agent, as budgets take it; None: not counted by agent.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// Invariants that do not hold, each with its counter-example, in sentences.
    pub invariants_failed: Vec<String>,
    /// The worst differences, the worst first, at most 10.
    pub worst: Vec<DriftExample>,
}

/// What a replay's counts come to where one of several agents moves one agent's share only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shares {
    /// Agents with at least [`CALLER`] replayed decisions.
    pub callers: u64,
    /// Replayed decisions of the one that has the most.
    pub most: u64,
    /// Restrictions of severity high, of which none of several agents has more than the next one has, or 1.
    pub high_restrictions: u64,
}

/// One difference, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftExample {
    /// The decision.
    pub decision: String,
    /// How bad.
    pub severity: Severity,
    /// Of what kind.
    pub cause: Cause,
    /// A sentence that names agent, tool and the policies of both sides. No argument values.
    pub sentence: String,
    /// Determining policies of the candidate.
    pub candidate_policies: Vec<String>,
}

/// What the proof says of all calls, not only of those that were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofVerdict {
    /// The same calls go through.
    Equivalent,
    /// Fewer.
    Restricts,
    /// More.
    Expands,
    /// Some more, some fewer.
    Incomparable,
    /// Nothing is proved.
    Unknown,
}

impl ProofVerdict {
    /// As status and reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProofVerdict::Equivalent => "equivalent",
            ProofVerdict::Restricts => "restricts",
            ProofVerdict::Expands => "expands",
            ProofVerdict::Incomparable => "incomparable",
            ProofVerdict::Unknown => "unknown",
        }
    }

    /// Whether it says that somebody may do more.
    pub fn expands(self) -> bool {
        matches!(self, ProofVerdict::Expands | ProofVerdict::Incomparable)
    }
}

/// What a proof found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProofSummary {
    /// Of what goes through without a human.
    pub alone: ProofVerdict,
    /// Of what goes through at least with a human.
    pub with_approval: ProofVerdict,
    /// Calls that a person could make and that are decided otherwise, in sentences, expansions first; at most 10.
    pub counter_examples: Vec<String>,
    /// Why a verdict is unknown.
    pub unknown_because: Option<String>,
    /// Declared invariants that do not hold, each with a call that breaks it, in sentences.
    pub invariants_failed: Vec<String>,
    /// Declared invariants of which nothing is proved, and why, in sentences.
    #[serde(default)]
    pub invariants_unproved: Vec<String>,
    /// Time in the solver, milliseconds.
    pub solver_millis: u64,
}

/// What the records and the shadow evaluations of one revision say since an instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Decisions of each arm, by agent.
    pub stable: Vec<AgentCounts>,
    pub canary: Vec<AgentCounts>,
    /// Shadow evaluations, by agent: what the other arm made of the same call.
    pub shadow: Vec<AgentDrift>,
    /// Calls that were to be compared and could not be: there were too many at once, or what was found could not be kept.
    pub dropped: u64,
    /// How many agents the namespace has: nobody is alone only because the others have not called yet.
    pub agents: u64,
    /// The worst differences seen, the worst first, at most 10.
    pub worst: Vec<DriftExample>,
    /// The newest record that is counted.
    pub newest: Option<Timestamp>,
}

/// Decisions of one agent on one arm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentCounts {
    /// Name of the agent, or `type:id` of another subject.
    pub agent: String,
    /// All.
    pub decisions: u64,
    /// Denied, evaluation errors included.
    pub denied: u64,
    /// Denied because a policy could not be evaluated.
    pub errors: u64,
    /// A decision that was denied by an error, if there is one, and the policies that erred.
    pub error_example: Option<String>,
    pub error_policies: Vec<String>,
    /// Time in the gates of all of them together, microseconds; what a call waited for its turn is left out.
    pub latency_micros: u64,
}

/// Shadow evaluations of one agent's calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentDrift {
    /// Name of the agent, or `type:id` of another subject.
    pub agent: String,
    /// Calls that were evaluated on both arms.
    pub compared: u64,
    /// From stable to candidate, whichever arm answered: by severity.
    pub critical: u64,
    pub high: u64,
    pub medium: u64,
    pub low: u64,
    /// Of high: those that are restrictions, which can be acknowledged.
    pub high_restrictions: u64,
    /// Of all: what the candidate lets through and stable does not, and the other way round.
    pub expansions: u64,
    pub restrictions: u64,
    /// Calls that the candidate could not evaluate and stable could.
    pub errors: u64,
}
