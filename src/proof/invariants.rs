//! Declared invariants, proved over every call. What is neither proved nor refuted by a call that the gates have decided is unknown.

use cedar_policy_core::ast::{Expr, Var};
use smol_str::SmolStr;

use super::call::{self, Call};
use super::environment::Environment;
use super::half::{Half, Symbols};
use super::prove::{Case, Prover, passes};
use super::solver::{Ask, Session};
use super::{Holding, InvariantProof};
use crate::api::{BuiltIn, Expectation, Invariant, Meaning, Tier};
use crate::policy::{TYPES, uid};

/// The invariants while environment after environment is looked at.
pub(super) struct Judged<'a> {
    invariants: Vec<(&'a Invariant, InvariantProof)>,
}

impl<'a> Judged<'a> {
    /// None is refuted yet.
    pub fn new(declared: &'a [Invariant]) -> Self {
        let invariants = declared.iter().map(|invariant| {
            let (holding, because) = match invariant.meaning() {
                Ok(_) => (Holding::Holds, None),
                Err(error) => (Holding::Unknown, Some(error.to_string())),
            };
            (invariant, InvariantProof { name: invariant.name.clone(), holding, because })
        });
        Self { invariants: invariants.collect() }
    }

    /// What was found.
    pub fn results(self) -> Vec<InvariantProof> {
        self.invariants.into_iter().map(|(_, proof)| proof).collect()
    }

    /// Looks at one kind of call. Invariants speak of calls of tools.
    pub async fn environment(
        &mut self,
        prover: &Prover<'_>,
        environment: &Environment,
        symbols: &Result<Symbols, String>,
        cases: &[Case],
        session: &mut Session,
    ) {
        if !environment.has_tool() {
            return;
        }
        for (invariant, proof) in &mut self.invariants {
            let Ok(meaning) = invariant.meaning() else { continue };
            for case in cases {
                // One call that breaks it is enough.
                if proof.holding == Holding::Fails {
                    break;
                }
                let found = match meaning {
                    // Gate 3 denies what the package does not list, before any policy is asked.
                    Meaning::BuiltIn(BuiltIn::UnknownToolsDenied) => Ok(()),
                    Meaning::BuiltIn(BuiltIn::NoWritePrivilegeEscalation) => escalation(prover, case),
                    Meaning::BuiltIn(BuiltIn::WriteToolsNeedApproval) => {
                        if prover.tier(case) == Some(Tier::Read) {
                            continue;
                        }
                        never(prover, environment, symbols, case, session, None, Expectation::NeverAllowAlone).await
                    }
                    Meaning::Declared(expectation) => {
                        never(prover, environment, symbols, case, session, Some(invariant), expectation).await
                    }
                };
                match found {
                    Ok(()) => {}
                    Err((Holding::Unknown, _)) if proof.holding == Holding::Unknown => {}
                    Err((holding, why)) => {
                        proof.holding = holding;
                        proof.because = Some(why);
                    }
                }
            }
        }
    }
}

type Found = Result<(), (Holding, String)>;

/// Whether somebody may do more with a tool that is not a read on both sides.
fn escalation(prover: &Prover<'_>, case: &Case) -> Found {
    if prover.tiers(case).iter().all(|tier| matches!(tier, Some(Tier::Read) | None)) {
        return Ok(());
    }
    let tools = case.tools.join(", ");
    if case.alone.more || case.lifted.more {
        return Err((Holding::Fails, format!("the candidate lets through more calls of {tools}")));
    }
    if case.alone.open || case.lifted.open {
        return Err((Holding::Unknown, format!("nothing is proved of {tools}: {}", case.because.join("; "))));
    }
    Ok(())
}

/// Whether the candidate lets no such call through. A policy that errs only ever denies: what the solver excludes, Remit does.
async fn never(
    prover: &Prover<'_>,
    environment: &Environment,
    symbols: &Result<Symbols, String>,
    case: &Case,
    session: &mut Session,
    of: Option<&Invariant>,
    expectation: Expectation,
) -> Found {
    let selected = |i: &Invariant| {
        i.tier.is_none_or(|tier| prover.tier(case) == Some(tier))
            && i.tool.as_ref().is_none_or(|tool| case.tools.contains(tool))
    };
    let of_agents = |i: &Invariant| i.agent.is_some() || i.agent_trust_below.is_some() || i.team.is_some();
    if of.is_some_and(|i| !selected(i) || of_agents(i) && !environment.has_agent()) || !case.candidate.permits() {
        return Ok(());
    }
    let lifted = expectation == Expectation::NeverAllow;
    let symbols = symbols.as_ref().map_err(|why| (Holding::Unknown, why.clone()))?;
    let selectors = of.map(selectors).unwrap_or_default();
    let breaks = |call: &Call| passes(prover.outcome(call, true).0, lifted) && of.is_none_or(|i| is_of(i, call));
    // The tool that the invariant names stands for its class.
    let tool = of.and_then(|i| i.tool.as_deref()).or(case.tools.first().map(String::as_str));
    let nothing = Half::default();
    for (attempt, given) in symbols.simpler_calls().into_iter().enumerate() {
        let given: Vec<Expr> = given.into_iter().chain(selectors.iter().chain(&case.given).cloned()).collect();
        let sets = symbols
            .set(&case.candidate, lifted, &given)
            .and_then(|a| Ok((a, symbols.set(&nothing, lifted, &[])?)))
            .map_err(|why| (Holding::Unknown, why))?;
        match session.ask(Ask::Implies(&sets.0, &sets.1)).await {
            Ok(None) if attempt == 0 => return Ok(()),
            Ok(None) => {}
            Ok(Some(model)) => {
                let calls = call::of_model(&model, environment, &prover.input.tenant, tool, symbols.number_keys());
                if let Some(call) = calls.into_iter().find(|c| breaks(c)) {
                    let call = call.simplified(breaks);
                    let (outcome, policies) = prover.outcome(&call, true);
                    return Err((
                        Holding::Fails,
                        format!("{}: {} by {}", call.words(), outcome.as_str(), policies.join(", ")),
                    ));
                }
            }
            Err(why) => return Err((Holding::Unknown, why.to_string())),
        }
    }
    Err((
        Holding::Unknown,
        format!("the solver sees a call of {} that the gates do not confirm", case.tools.join(", ")),
    ))
}

/// Of whose calls it speaks, for the solver.
fn selectors(invariant: &Invariant) -> Vec<Expr> {
    let principal = || Expr::var(Var::Principal);
    let mut all = Vec::new();
    if let Some(agent) = &invariant.agent {
        all.push(Expr::is_eq(principal(), Expr::val(uid(&TYPES.agent, agent))));
    }
    if let Some(below) = invariant.agent_trust_below {
        // With delegating agents the least trust of the chain is what policies see.
        all.push(Expr::less(Expr::get_attr(principal(), SmolStr::new_static("trust")), Expr::val(below)));
    }
    if let Some(team) = &invariant.team {
        all.push(Expr::is_in(principal(), Expr::val(uid(&TYPES.team, team))));
    }
    all
}

/// The same, of a call.
fn is_of(invariant: &Invariant, call: &Call) -> bool {
    let Some(agent) = &call.agent else {
        return invariant.agent.is_none() && invariant.agent_trust_below.is_none() && invariant.team.is_none();
    };
    invariant.agent.as_ref().is_none_or(|name| *name == agent.name)
        && invariant.agent_trust_below.is_none_or(|below| agent.trust < below)
        && invariant.team.as_ref().is_none_or(|team| agent.teams.contains(team))
}
