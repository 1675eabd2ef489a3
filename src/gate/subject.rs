//! Who acts, on what: the names are resolved to objects that Remit knows, and the arguments are flattened.

use super::arm::Unit;
use super::decision::{Decision, SessionState};
use super::pass::{Pass, deny, refuse};
use crate::api::{SessionMode, Tool};
use crate::policy::{Arguments, CallerKind, CompiledPackage};

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    let input = pass.input;
    let (request, caller) = (input.request, input.caller);

    // An agent asks only for itself, in its own tenant, whatever else its identity may do.
    if caller.kind == CallerKind::Agent {
        let own = caller.agent.as_ref().is_some_and(|(tenant, name)| {
            tenant == input.tenant && request.subject.type_ == "agent" && *name == request.subject.id
        });
        if !own {
            return Err(refuse(403, "not_your_identity", "An agent asks only for itself, in its own tenant."));
        }
    }

    let tenant = input
        .snapshot
        .tenants
        .get(input.tenant)
        .ok_or_else(|| refuse(404, "unknown_tenant", format!("Remit knows no tenant {:?}.", input.tenant)))?;
    pass.tenant = Some(tenant);
    let (arm, decides) = match pass.under {
        Some(arm) => (arm, tenant.package_of(arm)),
        None => tenant.decides(Unit::of(request, input.session)),
    };
    (pass.arm, pass.package) = (arm, decides.map(AsRef::as_ref));
    pass.arguments = Arguments::flatten(&request.arguments).map_err(bad_request)?;

    if request.subject.type_ == "agent" {
        let agent = tenant.agents.get(&request.subject.id).ok_or_else(|| {
            deny("unknown_agent", format!("Tenant {:?} has no Agent {:?}.", tenant.name, request.subject.id))
        })?;
        pass.agent = Some(agent);
        match input.session {
            SessionState::Unknown => {
                return Err(deny("session_unknown", "The session is not a live session of this agent."));
            }
            SessionState::NotNamed if agent.session == SessionMode::Required => {
                return Err(deny("session_required", "This agent must name a session: open one with POST /sessions."));
            }
            SessionState::NotNamed | SessionState::Live => {}
        }
    } else if input.session != SessionState::NotNamed {
        return Err(refuse(400, "invalid_request", "context.session: only agents have sessions."));
    }

    // Who could not be told, or named a session that is none, counts on neither side.
    pass.revision = tenant.canary.as_ref().map(|canary| canary.revision);

    if request.resource.type_ != "tool" {
        return package(pass).map(|_| ());
    }
    tool(pass).map(|_| ())
}

fn package<'a>(pass: &Pass<'a>) -> Result<&'a CompiledPackage, Decision> {
    pass.package
        .ok_or_else(|| deny("no_package", format!("No policy package is in force in tenant {:?}.", pass.input.tenant)))
}

/// The tool that is asked about, as the tenant's package lists it.
pub(super) fn tool<'a>(pass: &Pass<'a>) -> Result<&'a Tool, Decision> {
    let request = pass.input.request;
    let package = package(pass)?;
    let tool = package.tool(&request.resource.id).ok_or_else(|| {
        // Not which package: an agent must not learn under which one it is answered.
        deny("unknown_tool", format!("The policy package lists no tool {:?}.", request.resource.id))
    })?;
    // Only an enforcement point that sees the tool's server can say what the tool is now; where it says so, it must be what was reviewed.
    if let (Some(seen), Some(pinned)) = (&request.schema_digest, &tool.schema_digest)
        && seen != pinned
    {
        let reason = format!("Tool {:?} is not what was reviewed: its description or schema has changed.", tool.name);
        return Err(deny("tool_changed", reason));
    }
    Ok(tool)
}

/// A question that can't be put to the policies.
pub(super) fn bad_request(error: crate::policy::QueryError) -> Decision {
    refuse(400, "invalid_request", error.to_string())
}
