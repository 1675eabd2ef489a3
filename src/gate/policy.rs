//! Policy: two evaluations, never one merged set, each with and without the delegator.
//!
//! Deny if any side has a matching `forbid` that can't be lifted, or any evaluation error. A permit must come from the
//! tenant, or from a platform policy marked `@grants_tenants`. With a delegator, all of this must hold with and without it.

use std::collections::HashSet;
use std::sync::Arc;

use super::approval::asked;
use super::decision::{Decision, MAX_PATTERN_COST, Outcome, SessionState, TOO_COSTLY};
use super::pass::{Pass, deny};
use super::subject::bad_request;
use crate::api::Tool;
use crate::policy::{CompiledPackage, Evaluation, PolicyError, PolicyRef, Query, Resource, Subject};

/// Stands for Cedar's words about a platform's policy.
const UNSAID: &str = "evaluation failed";

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    let (mut permits, mut asks) = (Vec::new(), Vec::new());
    each(pass, |package, query| {
        let found = evaluate(pass.platform, package, query, pass.input.pattern_budget)?;
        add(&mut permits, found.permits);
        add(&mut asks, found.asks);
        Ok(())
    })?;
    pass.permits = permits;
    pass.asks.extend(asks);
    Ok(())
}

/// Puts the question as it is asked of each side: without the delegator, and with it where there is one.
pub(super) fn each(
    pass: &Pass<'_>,
    mut ask: impl FnMut(&CompiledPackage, &Query<'_>) -> Result<(), Decision>,
) -> Result<(), Decision> {
    let Some(package) = pass.package else {
        return Err(deny("no_package", "No policy package is in force."));
    };
    own_attributes(pass)?;
    let resource = &pass.input.request.resource;
    let tool = if resource.type_ == "tool" { package.tool(&resource.id) } else { None };
    for subject in subjects(pass) {
        ask(package, &query(pass, subject, tool))?;
    }
    Ok(())
}

/// What the platform alone stops, whatever the tenant's side says: its forbids, its asks, and whatever it can't evaluate. Every
/// one of `tools` is asked about: where it is not known what a tool is, it may be any of them.
pub(super) fn platform(pass: &Pass<'_>, tools: &[Option<&Tool>]) -> Result<(), Decision> {
    own_attributes(pass)?;
    // Together they cost no more than one evaluation may.
    let budget = pass.input.pattern_budget / u64::try_from(tools.len()).unwrap_or(u64::MAX).max(1);
    let mut asks = Vec::new();
    for subject in subjects(pass) {
        for tool in tools {
            let query = query(pass, subject.clone(), *tool);
            affordable(pass.platform.iter().map(Arc::as_ref), &query, budget)?;
            let sides = platform_sides(pass.platform, &query);
            stopping(&sides)?;
            add(&mut asks, sides.into_iter().flat_map(|e| e.asks).collect());
        }
    }
    if asks.is_empty() { Ok(()) } else { Err(asked(asks)) }
}

/// An agent's attributes come from its object only; what a caller says of them is refused, not ignored.
fn own_attributes(pass: &Pass<'_>) -> Result<(), Decision> {
    if pass.agent.is_none() || pass.input.request.subject.properties.is_empty() {
        return Ok(());
    }
    Err(bad_request(crate::policy::QueryError {
        field: "subject.properties".into(),
        message: "an agent's attributes come from its Agent object only".into(),
    }))
}

/// Who is asked about: an agent that acts for somebody, without and with them.
fn subjects<'p>(pass: &'p Pass<'_>) -> Vec<Subject<'p>> {
    let subject = &pass.input.request.subject;
    let Some(agent) = pass.agent else {
        return vec![Subject::Other { type_: &subject.type_, id: &subject.id, properties: &subject.properties }];
    };
    let alone = Subject::Agent { facts: &agent.facts, delegation: None };
    match &pass.delegation {
        None => vec![alone],
        Some(delegation) => {
            let facts = pass.restricted.as_ref().unwrap_or(&agent.facts);
            vec![alone, Subject::Agent { facts, delegation: Some(delegation) }]
        }
    }
}

fn query<'p>(pass: &'p Pass<'_>, subject: Subject<'p>, tool: Option<&'p Tool>) -> Query<'p> {
    let request = pass.input.request;
    Query {
        subject,
        action: &request.action.name,
        resource: Resource {
            type_: &request.resource.type_,
            id: &request.resource.id,
            properties: &request.resource.properties,
        },
        caller: pass.input.caller.kind,
        tenant: pass.input.tenant,
        arguments: &pass.arguments,
        // A session that is not the agent's own is a claim, and counts for nothing.
        session: request.session.as_deref().filter(|_| pass.input.session == SessionState::Live),
        risk: 0,
        granted: false,
        hour: pass.hour(),
        tool,
    }
}

/// What gates 3, 8 and 9 make of a question that was made up: for proofs, which show no call that these gates have not decided.
/// `queries` is the same question without the delegator and, where there is one, with it. The policies are the determining ones.
pub(crate) fn weigh(
    platform: &[Arc<CompiledPackage>],
    package: &CompiledPackage,
    queries: &[Query<'_>],
) -> (Outcome, Vec<Arc<PolicyRef>>) {
    let (mut permits, mut asks) = (Vec::new(), Vec::new());
    for query in queries {
        let resource = &query.resource;
        if resource.type_ == "tool" && package.tool(resource.id).is_none() {
            return (Outcome::Deny, Vec::new());
        }
        match evaluate(platform, package, query, MAX_PATTERN_COST) {
            Ok(found) => {
                add(&mut permits, found.permits);
                add(&mut asks, found.asks);
            }
            Err(decision) => return (decision.outcome, decision.policies),
        }
    }
    match (queries.is_empty(), asks.is_empty()) {
        (true, _) => (Outcome::Refused, Vec::new()),
        (_, true) => (Outcome::Allow, permits),
        (_, false) => (Outcome::ApprovalRequired, asks),
    }
}

/// What one pair of evaluations leaves: permits that count, and asks.
struct Found {
    permits: Vec<Arc<PolicyRef>>,
    asks: Vec<Arc<PolicyRef>>,
}

fn evaluate(
    platform: &[Arc<CompiledPackage>],
    package: &CompiledPackage,
    query: &Query<'_>,
    budget: u64,
) -> Result<Found, Decision> {
    affordable(platform.iter().map(Arc::as_ref).chain([package]), query, budget)?;
    // The tenant's side first: it alone can say that the question makes no sense.
    let tenant = package.evaluate(query).map_err(bad_request)?;
    let mut sides = platform_sides(platform, query);
    let granted: Vec<_> = sides.iter().flat_map(|e| &e.permits).filter(|p| p.grants_tenants).cloned().collect();
    sides.push(tenant);
    stopping(&sides)?;
    let asks = sides.iter().flat_map(|e| e.asks.iter().cloned()).collect();
    let mut permits = sides.pop().map(|tenant| tenant.permits).unwrap_or_default();
    permits.extend(granted);
    if permits.is_empty() {
        return Err(deny("no_permit", "No policy permits this."));
    }
    Ok(Found { permits, asks })
}

/// Of every question: where patterns are many, an argument need not be long.
fn affordable<'p>(
    mut packages: impl Iterator<Item = &'p CompiledPackage>,
    query: &Query<'_>,
    budget: u64,
) -> Result<(), Decision> {
    if packages.any(|p| p.pattern_cost(query) > budget) {
        return Err(deny(TOO_COSTLY, "The arguments are too long for the patterns that would read them."));
    }
    Ok(())
}

fn platform_sides(platform: &[Arc<CompiledPackage>], query: &Query<'_>) -> Vec<Evaluation> {
    let evaluated = platform.iter().map(|p| {
        let mut found = p.evaluate(query).unwrap_or_else(|e| Evaluation {
            // What the platform can't evaluate may be something that it forbids.
            errors: vec![PolicyError { policy: format!("platform/{}", p.package()), message: e.to_string() }],
            ..Evaluation::default()
        });
        // Gateways and the tenant's readers hear of it, and Cedar's words quote conditions. Who may see those asks why.
        found.errors.iter_mut().for_each(|error| error.message = UNSAID.to_owned());
        found
    });
    // Room for the tenant's.
    let mut sides = Vec::with_capacity(platform.len() + 1);
    sides.extend(evaluated);
    sides
}

/// What no permit and no approval lifts: forbids, errors, and what was missing or too large.
fn stopping(sides: &[Evaluation]) -> Result<(), Decision> {
    let forbids: Vec<_> = sides.iter().flat_map(|e| e.forbids.iter().cloned()).collect();
    let errors: Box<[_]> = sides.iter().flat_map(|e| e.errors.iter().cloned()).collect();
    if !forbids.is_empty() {
        return Err(Decision {
            reason: forbids.iter().find_map(|p| p.reason.clone()).unwrap_or_else(|| "A policy forbids this.".into()),
            policies: forbids,
            errors,
            ..deny("denied_by_policy", "")
        });
    }
    if !errors.is_empty() {
        return Err(Decision {
            errors,
            ..deny("evaluation_error", "A policy could not be evaluated, and it may have forbidden this.")
        });
    }
    let missing: Vec<&str> = sides.iter().flat_map(|e| e.attributes_missing.iter().map(String::as_str)).collect();
    if !missing.is_empty() {
        return Err(deny("attributes_missing", format!("A policy needs to know {}.", missing.join(", "))));
    }
    let too_large: Vec<&str> = sides.iter().flat_map(|e| e.arguments_too_large.iter().map(String::as_str)).collect();
    if !too_large.is_empty() {
        return Err(deny(
            "argument_too_large",
            format!("A policy reads {}, which is over 64 KiB.", too_large.join(", ")),
        ));
    }
    Ok(())
}

/// Adds what is not there yet, in its order. A package may have ten thousand permits that match: not by comparing each with each.
fn add(to: &mut Vec<Arc<PolicyRef>>, found: Vec<Arc<PolicyRef>>) {
    if to.is_empty() && found.len() < 2 {
        to.extend(found);
        return;
    }
    let mut known: HashSet<&str> = to.iter().map(|p| p.id.as_str()).collect();
    let new: Vec<bool> = found.iter().map(|p| known.insert(&p.id)).collect();
    to.extend(found.into_iter().zip(new).filter_map(|(policy, new)| new.then_some(policy)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(n: usize) -> Arc<PolicyRef> {
        Arc::new(serde_json::from_value(serde_json::json!({"id": format!("tenant/p/{n}"), "text_hash": ""})).unwrap())
    }

    #[test]
    fn many_policies_are_each_named_once_in_their_order() {
        let mut all = Vec::new();
        add(&mut all, vec![policy(7)]);
        add(&mut all, vec![policy(3), policy(7), policy(3), policy(5)]);
        assert_eq!(all.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["tenant/p/7", "tenant/p/3", "tenant/p/5"]);
        // Each compared with each these would take many minutes.
        let many: Vec<_> = (0..300_000).map(policy).collect();
        add(&mut all, many.clone());
        add(&mut all, many);
        assert_eq!(all.len(), 300_000);
    }
}
