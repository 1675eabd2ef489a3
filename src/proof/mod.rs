//! Proof: what a candidate newly lets through, and what no more, over all calls that could be made, not only those that were. docs/proof.md
//! has the words and the limits.
//!
//! Must never call a change harmless that is not: a verdict stands only where no policy of either side can err, everything that the
//! solver does not see is put in or left open, and what is in doubt is `unknown`. No call is shown that Remit's own gates have not
//! decided as it says.

mod call;
mod environment;
mod gates;
mod half;
mod invariants;
mod prove;
mod rewrite;
mod solver;
pub mod worker;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use call::Call;
pub use prove::prove;
pub use solver::{Limits, NoSolver, PROGRAM, VARIABLE, find};

use crate::api::{Invariant, PolicyPackageSpec};
use crate::gate::Outcome;
use crate::lifecycle::evidence::{ProofSummary, ProofVerdict};

/// Counter-examples that a summary holds.
const MAX_SHOWN: usize = 10;

/// What is to be proved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Namespace: the platform's policies name agents and teams by it.
    pub tenant: String,
    /// The package in force.
    pub baseline: PolicyPackageSpec,
    /// The candidate.
    pub candidate: PolicyPackageSpec,
    /// The platform's packages beside the base package, which is always there.
    #[serde(default)]
    pub platform: Vec<PolicyPackageSpec>,
    /// What must hold of the candidate.
    #[serde(default)]
    pub invariants: Vec<Invariant>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Digests of what was compared.
    pub baseline: String,
    pub candidate: String,
    /// Digests of the platform's packages, base first.
    pub platform: Vec<String>,
    /// Of what goes through without a human.
    pub alone: ProofVerdict,
    /// Of what goes through at least with a human.
    pub with_approval: ProofVerdict,
    /// By kind of call.
    pub environments: Vec<EnvironmentProof>,
    /// Calls that are decided otherwise, expansions first.
    pub counter_examples: Vec<CounterExample>,
    /// Policies of the candidate that can never apply.
    pub never_apply: Vec<String>,
    /// Policies that can err, and in which kind of call.
    pub can_err: Vec<CanErr>,
    /// Declared invariants.
    pub invariants: Vec<InvariantProof>,
    /// Why something is unknown.
    pub unknown_because: Vec<String>,
    /// What differs and is not part of the question.
    pub notes: Vec<String>,
    /// Time in the solver, milliseconds.
    pub solver_millis: u64,
    /// Questions that it was asked.
    pub queries: u64,
}

/// What was found of one kind of call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentProof {
    /// Which calls.
    pub environment: String,
    /// The tools that it is about, where it is about tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    pub alone: ProofVerdict,
    pub with_approval: ProofVerdict,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_because: Vec<String>,
}

/// A call that both sides decide otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterExample {
    /// Whether the candidate lets it through, not the baseline.
    pub expands: bool,
    /// Whether that is so only with a human's approval.
    pub with_approval: bool,
    pub call: Call,
    pub baseline: Outcome,
    pub candidate: Outcome,
    /// Determining policies of each side.
    pub baseline_policies: Vec<String>,
    pub candidate_policies: Vec<String>,
    /// For people.
    pub sentence: String,
}

/// A policy that can err.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CanErr {
    pub policy: String,
    pub environment: String,
}

/// What is known of an invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holding {
    /// Of every call.
    Holds,
    /// There is a call of which it does not hold.
    Fails,
    /// Neither was proved.
    Unknown,
}

/// One declared invariant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvariantProof {
    pub name: String,
    pub holding: Holding,
    /// The counter-example, or why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl Proof {
    /// Nothing is known.
    pub fn unknown(input: &Input, because: impl Into<String>) -> Self {
        let because = because.into();
        let digest = crate::policy::digest;
        let base = crate::policy::base_platform().digest().to_owned();
        Self {
            baseline: digest(&input.baseline),
            candidate: digest(&input.candidate),
            platform: std::iter::once(base).chain(input.platform.iter().map(digest)).collect(),
            alone: ProofVerdict::Unknown,
            with_approval: ProofVerdict::Unknown,
            environments: Vec::new(),
            counter_examples: Vec::new(),
            never_apply: Vec::new(),
            can_err: Vec::new(),
            invariants: input
                .invariants
                .iter()
                .map(|i| InvariantProof {
                    name: i.name.clone(),
                    holding: Holding::Unknown,
                    because: Some(because.clone()),
                })
                .collect(),
            unknown_because: vec![because],
            notes: Vec::new(),
            solver_millis: 0,
            queries: 0,
        }
    }

    /// Whether it shows that somebody may do more, alone or with a human.
    pub fn expands(&self) -> bool {
        self.alone.expands() || self.with_approval.expands()
    }

    /// Whether anything is unknown.
    pub fn is_unknown(&self) -> bool {
        self.alone == ProofVerdict::Unknown || self.with_approval == ProofVerdict::Unknown
    }

    /// As a rollout keeps it.
    pub fn summary(&self) -> ProofSummary {
        let named = |fails: bool| {
            let those = self.invariants.iter().filter(move |i| match i.holding {
                Holding::Holds => false,
                Holding::Fails => fails,
                _ => !fails,
            });
            those.map(|i| format!("{}: {}", i.name, i.because.as_deref().unwrap_or("not proved"))).collect()
        };
        ProofSummary {
            alone: self.alone,
            with_approval: self.with_approval,
            counter_examples: self.counter_examples.iter().take(MAX_SHOWN).map(|c| c.sentence.clone()).collect(),
            unknown_because: (!self.unknown_because.is_empty()).then(|| self.unknown_because.join("; ")),
            invariants_failed: named(true),
            invariants_unproved: named(false),
            solver_millis: self.solver_millis,
        }
    }
}
