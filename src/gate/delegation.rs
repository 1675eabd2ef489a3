//! For whom the agent acts. Only an authenticated delegator counts; here that is the fixed one of `Agent.spec`.

use super::decision::Decision;
use super::pass::{Pass, deny, refuse};
use super::record::ChainLink;
use super::snapshot::{AgentEntry, Tenant};
use crate::api::{DelegationMode, Delegator, DelegatorKind};
use crate::policy::{AgentFacts, DelegationFacts};

/// Agents in one chain, at most; the human at its root does not count.
const MAX_CHAIN: usize = 8;

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    let claimed = pass.input.request.on_behalf_of.as_ref();
    let (Some(agent), Some(tenant)) = (pass.agent, pass.tenant) else {
        return match claimed {
            Some(_) => {
                Err(refuse(400, "invalid_request", "context.on_behalf_of: only agents act on behalf of others."))
            }
            None => Ok(()),
        };
    };
    let fixed = match agent.delegation {
        DelegationMode::None => None,
        DelegationMode::Optional | DelegationMode::Required => agent.fixed_delegator.as_ref(),
    };
    if let Some(claimed) = claimed
        && Some(claimed) != fixed
    {
        return Err(refuse(
            403,
            "delegator_mismatch",
            "context.on_behalf_of: this agent has no authenticated delegator of that name.",
        ));
    }
    let Some(fixed) = fixed else {
        return match agent.delegation {
            DelegationMode::Required => {
                Err(deny("delegation_required", "This agent acts only on somebody's behalf, and nobody is known."))
            }
            DelegationMode::None | DelegationMode::Optional => Ok(()),
        };
    };
    let facts = resolve(tenant, agent, fixed)?;
    let trust = facts.chain.iter().map(|a| a.trust).fold(agent.facts.trust, i64::min);
    if trust != agent.facts.trust {
        pass.restricted = Some(AgentFacts { trust, ..agent.facts.clone() });
    }
    pass.delegation = Some(facts);
    Ok(())
}

/// Follows fixed delegators up to the human at the root.
fn resolve(tenant: &Tenant, agent: &AgentEntry, first: &Delegator) -> Result<DelegationFacts, Decision> {
    let mut facts = DelegationFacts::default();
    let mut next = Some(first);
    while let Some(delegator) = next {
        if delegator.kind == DelegatorKind::User {
            facts.user = Some(delegator.name.clone());
            break;
        }
        if delegator.name == agent.facts.name || facts.chain.iter().any(|a| a.name == delegator.name) {
            return Err(deny("delegation_loop", format!("Agent {:?} delegates to itself.", delegator.name)));
        }
        if facts.chain.len() == MAX_CHAIN {
            return Err(deny("delegation_too_deep", format!("More than {MAX_CHAIN} agents in the delegation chain.")));
        }
        let entry = tenant.agents.get(&delegator.name).ok_or_else(|| {
            deny("unknown_delegator", format!("Tenant {:?} has no Agent {:?}.", tenant.name, delegator.name))
        })?;
        facts.chain.push(entry.facts.clone());
        next = match entry.delegation {
            DelegationMode::None => None,
            DelegationMode::Optional | DelegationMode::Required => entry.fixed_delegator.as_ref(),
        };
    }
    Ok(facts)
}

/// The delegating agents as far as they can be followed, for the record of a check that ended before this gate: with the one too many,
/// and up to the first that stands there twice, so that whoever asks again meets the same end.
pub(super) fn follow(tenant: &Tenant, agent: &AgentEntry) -> Vec<ChainLink> {
    let delegator = |entry: &AgentEntry| match entry.delegation {
        DelegationMode::None => None,
        DelegationMode::Optional | DelegationMode::Required => entry.fixed_delegator.clone(),
    };
    let mut chain: Vec<ChainLink> = Vec::new();
    let mut next = delegator(agent);
    while let Some(of) = next.filter(|d| d.kind == DelegatorKind::Agent) {
        let seen = of.name == agent.facts.name || chain.iter().any(|l| l.agent.name == of.name);
        let Some(entry) = tenant.agents.get(&of.name).filter(|_| !seen && chain.len() <= MAX_CHAIN) else { break };
        next = delegator(entry);
        chain.push(ChainLink { agent: entry.facts.clone(), delegator: next.clone() });
    }
    chain
}
