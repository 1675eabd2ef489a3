//! Observe: while a tenant only observes, what its own side would stop is let through, and what it would have been is kept.
//!
//! Must never let through what the platform stops, a suspended agent, or a question that is itself wrong; and the place where the
//! tenant's side ended must not matter: who makes it end early wins nothing. What is not named here stays as it was decided.

use jiff::Timestamp;

use super::decision::{Decision, MAX_PATTERN_COST, Outcome, TOO_COSTLY, WouldBe};
use super::pass::Pass;
use super::{delegation, policy, stops, subject};
use crate::api::{Sensitivity, Tier, Tool};
use crate::policy::QueryError;

/// Code of what was let through.
pub const OBSERVED: &str = "observed";
/// What the tenant's own side decides: its policies, its list of tools, its rules for sessions and delegators. A code that is not
/// here is not lifted, so a new gate stops in Observe too until somebody decides otherwise.
const TENANTS_OWN: &[&str] = &[
    "no_package",
    "unknown_tool",
    "tool_changed",
    "session_required",
    "session_unknown",
    "delegation_required",
    "denied_by_policy",
    "evaluation_error",
    "attributes_missing",
    "argument_too_large",
    "no_permit",
    "approval_required",
    TOO_COSTLY,
];

/// Gives the decision as it is, or as it is while the tenant observes.
pub(super) fn weigh(pass: &mut Pass<'_>, decision: Decision) -> Decision {
    let Some(until) = observing(pass).filter(|_| liftable(pass, &decision)) else { return decision };
    let stopped = reach(pass).and_then(|tools| policy::platform(pass, &tools.each()));
    match stopped {
        Err(stop) => stop,
        Ok(()) => Decision {
            outcome: Outcome::Allow,
            code: OBSERVED,
            reason: format!("Policy is observed until {until}, not enforced: this would be {}.", said(&decision)),
            policies: Vec::new(),
            asks: Vec::new(),
            would_be: Some(Box::new(WouldBe {
                outcome: decision.outcome,
                code: decision.code,
                reason: decision.reason,
                policies: decision.policies,
            })),
            ..decision
        },
    }
}

/// Until when the tenant observes.
pub(super) fn observing(pass: &Pass<'_>) -> Option<Timestamp> {
    pass.tenant.and_then(|t| t.profile.observes(pass.input.now))
}

/// Whether this is for the tenant's own side to say.
pub(super) fn liftable(pass: &Pass<'_>, decision: &Decision) -> bool {
    matches!(decision.outcome, Outcome::Deny | Outcome::ApprovalRequired)
        && TENANTS_OWN.contains(&decision.code)
        // On less than the whole budget nothing was found out yet: the server begins again with more.
        && (decision.code != TOO_COSTLY || pass.input.pattern_budget >= MAX_PATTERN_COST)
}

fn said(decision: &Decision) -> String {
    match decision.outcome {
        Outcome::ApprovalRequired => "asked of people".to_owned(),
        _ => format!("denied ({})", decision.code),
    }
}

/// What the platform is asked about.
pub(super) enum Tools<'a> {
    /// Not a tool.
    None,
    /// As the tenant's package lists it.
    Known(&'a Tool),
    /// Nobody has said what it is, so that it may be of any tier: what the platform forbids of one stops it.
    Any([Tool; 6]),
}

impl Tools<'_> {
    /// Each of them.
    pub(super) fn each(&self) -> Vec<Option<&Tool>> {
        match self {
            Tools::None => vec![None],
            Tools::Known(tool) => vec![Some(tool)],
            Tools::Any(tools) => tools.iter().map(Some).collect(),
        }
    }
}

/// Asks the gates that the check may not have reached, and that stop whatever the tenant's side says; gives what is left for the
/// platform to judge.
pub(super) fn reach<'a>(pass: &mut Pass<'a>) -> Result<Tools<'a>, Decision> {
    if pass.delegation.is_none() {
        match delegation::gate(pass) {
            // Nobody is known for whom it acts: the platform is asked about the agent alone.
            Err(end) if end.code == "delegation_required" => {}
            // A chain that can't be followed can't be put to the platform; a wrong delegator is a wrong question.
            other => other?,
        }
    }
    stops::gate(pass)?;
    let resource = &pass.input.request.resource;
    if resource.type_ != "tool" {
        return Ok(Tools::None);
    }
    if let Ok(tool) = subject::tool(pass) {
        return Ok(Tools::Known(tool));
    }
    if let Some(name) = resource.properties.keys().next() {
        return Err(subject::bad_request(QueryError {
            field: format!("resource.properties.{name}"),
            message: "tools have no such property".into(),
        }));
    }
    Ok(Tools::Any(any_tier(&resource.id)))
}

fn any_tier(name: &str) -> [Tool; 6] {
    let tool = |tier, sensitivity| Tool {
        name: name.to_owned(),
        tier,
        sensitivity,
        groups: Vec::new(),
        description: None,
        schema_digest: None,
    };
    let [read, write, admin] = [Tier::Read, Tier::Write, Tier::Admin];
    let (normal, sensitive) = (Sensitivity::Normal, Sensitivity::Sensitive);
    [
        tool(read, normal),
        tool(write, normal),
        tool(admin, normal),
        tool(read, sensitive),
        tool(write, sensitive),
        tool(admin, sensitive),
    ]
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod unit;
