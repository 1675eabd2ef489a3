//! Policy: two evaluations, never one merged set, each with and without the delegator.
//!
//! Deny if any side has a matching `forbid` that can't be lifted, or any evaluation error. A permit must come from the
//! tenant, or from a platform policy marked `@grants_tenants`. With a delegator, all of this must hold with and without it.

use std::sync::Arc;

use super::decision::{Decision, TOO_COSTLY};
use super::pass::{Pass, deny};
use super::subject::bad_request;
use crate::policy::{CompiledPackage, Evaluation, PolicyError, PolicyRef, Query, Resource, Subject};

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    let (mut permits, mut asks) = (Vec::new(), Vec::new());
    each(pass, |package, query| {
        let found = evaluate(pass.platform, package, query, pass.input.pattern_budget)?;
        for p in found.permits {
            add(&mut permits, p);
        }
        for p in found.asks {
            add(&mut asks, p);
        }
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
    let request = pass.input.request;
    let resource =
        Resource { type_: &request.resource.type_, id: &request.resource.id, properties: &request.resource.properties };
    let subjects = match pass.agent {
        None => vec![Subject::Other {
            type_: &request.subject.type_,
            id: &request.subject.id,
            properties: &request.subject.properties,
        }],
        Some(agent) => {
            let alone = Subject::Agent { facts: &agent.facts, delegation: None };
            match &pass.delegation {
                None => vec![alone],
                Some(delegation) => {
                    let facts = pass.restricted.as_ref().unwrap_or(&agent.facts);
                    vec![alone, Subject::Agent { facts, delegation: Some(delegation) }]
                }
            }
        }
    };
    // An agent's attributes come from its object only; what a caller says of them is refused, not ignored.
    if pass.agent.is_some() && !request.subject.properties.is_empty() {
        return Err(bad_request(crate::policy::QueryError {
            field: "subject.properties".into(),
            message: "an agent's attributes come from its Agent object only".into(),
        }));
    }
    for subject in subjects {
        let query = Query {
            subject,
            action: &request.action.name,
            resource: resource.clone(),
            caller: pass.input.caller.kind,
            tenant: pass.input.tenant,
            arguments: &pass.arguments,
            session: request.session.as_deref(),
            risk: 0,
            granted: false,
            hour: pass.hour(),
            tool: if resource.type_ == "tool" { package.tool(resource.id) } else { None },
        };
        ask(package, &query)?;
    }
    Ok(())
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
    // Of every question: where patterns are many, an argument need not be long.
    if platform.iter().map(Arc::as_ref).chain([package]).any(|p| p.pattern_cost(query) > budget) {
        return Err(deny(TOO_COSTLY, "The arguments are too long for the patterns that would read them."));
    }
    // The tenant's side first: it alone can say that the question makes no sense.
    let tenant = package.evaluate(query).map_err(bad_request)?;
    let mut sides: Vec<Evaluation> = Vec::with_capacity(platform.len() + 1);
    for p in platform {
        sides.push(p.evaluate(query).unwrap_or_else(|e| Evaluation {
            // What the platform can't evaluate may be something that it forbids.
            errors: vec![PolicyError { policy: format!("platform/{}", p.package()), message: e.to_string() }],
            ..Evaluation::default()
        }));
    }
    let granted: Vec<_> = sides.iter().flat_map(|e| &e.permits).filter(|p| p.grants_tenants).cloned().collect();
    sides.push(tenant);

    let forbids: Vec<_> = sides.iter().flat_map(|e| e.forbids.iter().cloned()).collect();
    let errors: Vec<_> = sides.iter().flat_map(|e| e.errors.iter().cloned()).collect();
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
    let asks = sides.iter().flat_map(|e| e.asks.iter().cloned()).collect();
    let mut permits = sides.pop().map(|tenant| tenant.permits).unwrap_or_default();
    permits.extend(granted);
    if permits.is_empty() {
        return Err(deny("no_permit", "No policy permits this."));
    }
    Ok(Found { permits, asks })
}

fn add(to: &mut Vec<Arc<PolicyRef>>, policy: Arc<PolicyRef>) {
    if !to.iter().any(|p| p.id == policy.id) {
        to.push(policy);
    }
}
