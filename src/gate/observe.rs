//! Observe: while a tenant only observes, what its own side would stop is let through, and what it would have been is kept.
//!
//! Must never let through what the platform stops, a suspended agent, or a question that is itself wrong; and the place where the
//! tenant's side ended must not matter: who makes it end early wins nothing. What is not named here stays as it was decided.

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
    let Some(until) = pass.tenant.and_then(|t| t.profile.observes(pass.input.now)) else { return decision };
    if !liftable(pass, &decision) {
        return decision;
    }
    match stopped(pass) {
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

/// Whether observing can lift this: the tenant's own side decided it.
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

/// Everything that stops whatever the tenant's side says. The gates that the check did not reach are asked here.
fn stopped(pass: &mut Pass<'_>) -> Result<(), Decision> {
    if pass.delegation.is_none() {
        match delegation::gate(pass) {
            // Nobody is known for whom it acts: the platform is asked about the agent alone.
            Err(end) if end.code == "delegation_required" => {}
            // A chain that can't be followed can't be put to the platform; a wrong delegator is a wrong question.
            other => other?,
        }
    }
    stops::gate(pass)?;
    if pass.input.request.resource.type_ != "tool" {
        return policy::platform(pass, &[None]);
    }
    if let Ok(tool) = subject::tool(pass) {
        return policy::platform(pass, &[Some(tool)]);
    }
    if let Some(name) = pass.input.request.resource.properties.keys().next() {
        return Err(subject::bad_request(QueryError {
            field: format!("resource.properties.{name}"),
            message: "tools have no such property".into(),
        }));
    }
    // A tool of which nobody has said what it is may be of any tier: what the platform forbids of one stops it.
    let tools = any_tier(&pass.input.request.resource.id);
    policy::platform(pass, &tools.each_ref().map(Some))
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
