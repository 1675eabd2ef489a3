//! Could some call of this tool by this agent be allowed? The same gates and the same two evaluations as a check, with everything
//! that only a call brings left open.
//!
//! Sound in one direction: whatever `check` allows, or would allow once humans agree, `could_allow` does not call impossible. It
//! decides nothing, and nothing is recorded.

use super::decision::{CheckInput, Decision, Outcome, SessionState, TOO_COSTLY};
use super::pass::{Pass, deny};
use super::subject::bad_request;
use super::{delegation, observe, platform, policy, stops, subject};
use crate::policy::{CompiledPackage, Kind, Outcomes, PolicyProspect, Prospect, Query, QueryError};

/// Policies of one answer that name the conditions on which it depends.
const MAX_DEPENDS: usize = 16;
/// Pattern bytes times text bytes that take about a microsecond.
const COST_OF_A_MICROSECOND: u64 = 1 << 10;

/// How far something is settled before the call is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Could {
    /// Under no circumstances.
    No,
    /// It depends on the call.
    Maybe,
    /// Whatever the call. Limits of size and cost apart.
    Always,
}

impl Could {
    /// As answers write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Could::No => "no",
            Could::Maybe => "maybe",
            Could::Always => "always",
        }
    }
}

/// What could become of calls.
#[derive(Clone, Debug)]
pub struct Prospects {
    /// Whether one could be allowed, with an approval where policies ask for one.
    pub allowed: Could,
    /// Whether an approval would be needed.
    pub approval: Could,
    /// Why not, where nothing could be allowed: the deny that every call would meet.
    pub stopped: Option<Decision>,
    /// Policies that depend on the call, and on what of it.
    pub depends: Vec<Depends>,
    /// Whether a policy of the platform would ask for an approval: observing does not lift that.
    asked_by_platform: Could,
    /// What finding it out took, about microseconds.
    pub work: u64,
}

/// A policy that depends on the call.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Depends {
    /// Its id.
    pub policy: String,
    /// `permit`, `forbid` or `ask`.
    pub effect: String,
    /// Source of the conditions that read what is not known; none of the platform's policies, whose texts are not a tenant's business.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
}

impl Prospects {
    /// Nothing stands in the way, as long as nothing was looked at.
    fn everything() -> Self {
        Self {
            allowed: Could::Always,
            approval: Could::No,
            stopped: None,
            depends: Vec::new(),
            asked_by_platform: Could::No,
            work: 1,
        }
    }

    fn none(stopped: Decision, work: u64) -> Self {
        Self { allowed: Could::No, stopped: Some(stopped), work, ..Self::everything() }
    }
}

/// Asks all of it with arguments, risk, grants and the hour left open, and the session too where the question names none.
/// Err: the question itself is wrong, or is not the caller's to ask.
pub fn could_allow(input: &CheckInput<'_>) -> Result<Prospects, Decision> {
    let mut input = *input;
    // An agent that must name a session can open one.
    if input.session == SessionState::NotNamed && input.request.subject.type_ == "agent" {
        input.session = SessionState::Live;
    }
    let mut pass = Pass::new(&input);
    let mut all = Prospects::everything();
    let gates = [platform::gate, subject::gate, delegation::gate, stops::gate];
    let end = gates.iter().find_map(|gate| gate(&mut pass).err()).or_else(|| {
        let platform = pass.platform;
        policy::each(&pass, |package, query| weigh(platform, package, query, input.pattern_budget, &mut all)).err()
    });
    let observes = pass.tenant.is_some_and(|t| t.profile.observes(input.now).is_some());
    match end {
        None if observes => Ok(Prospects { approval: all.asked_by_platform, ..all }),
        None => Ok(all),
        Some(decision) if decision.outcome == Outcome::Refused => Err(decision),
        // While the tenant observes, only what the platform certainly stops is impossible.
        Some(decision) if observes && observe::liftable(&pass, &decision) && !by_platform(&decision) => {
            match stops::gate(&mut pass) {
                Err(stop) => Ok(Prospects::none(stop, all.work)),
                Ok(()) => {
                    // How far the platform's own asks are settled was perhaps not reached.
                    let asks = pass.platform.iter().any(|p| p.asks());
                    let approval = if asks { Could::Maybe } else { Could::No };
                    Ok(Prospects { allowed: Could::Maybe, approval, work: all.work, ..Prospects::everything() })
                }
            }
        }
        Some(decision) => Ok(Prospects::none(decision, all.work)),
    }
}

/// Whether a policy of the platform is what decided.
fn by_platform(decision: &Decision) -> bool {
    decision.policies.iter().any(|p| p.id.starts_with("platform/"))
}

/// One pair of evaluations, with or without the delegator: the call must pass each.
fn weigh(
    platform: &[std::sync::Arc<CompiledPackage>],
    package: &CompiledPackage,
    query: &Query<'_>,
    budget: u64,
    all: &mut Prospects,
) -> Result<(), Decision> {
    // With arguments it costs no less.
    for p in platform.iter().map(AsRef::as_ref).chain([package]) {
        let cost = p.pattern_cost(query);
        if cost > budget {
            return Err(deny(TOO_COSTLY, "The facts alone are too long for the patterns that would read them."));
        }
        all.work += cost / COST_OF_A_MICROSECOND;
    }
    let tenant = package.prospect(query).map_err(bad_request)?;
    let mut sides: Vec<Prospect> = Vec::with_capacity(platform.len() + 1);
    for p in platform {
        sides.push(p.prospect(query).map_err(platform_error)?);
    }
    let platforms = sides.len();
    sides.push(tenant);
    all.work += sides.iter().map(|s| s.policies.len() as u64).sum::<u64>();

    let policies = || sides.iter().flat_map(|s| &s.policies);
    let forbids = || policies().filter(|p| p.kind == Kind::Forbid);
    if let Some(forbid) = forbids().find(|p| p.outcomes == Outcomes::HOLDS) {
        let reason = forbid.policy.reason.clone().unwrap_or_else(|| "A policy forbids this.".into());
        return Err(Decision { policies: vec![forbid.policy.clone()], ..deny("denied_by_policy", reason) });
    }
    if policies().any(|p| !p.outcomes.holds && !p.outcomes.fails) || forbids().any(|p| !p.outcomes.fails) {
        return Err(deny("evaluation_error", "A policy can't be evaluated, and it may forbid this."));
    }
    let missing: Vec<&str> = sides.iter().flat_map(|s| s.attributes_missing.iter().map(String::as_str)).collect();
    if !missing.is_empty() {
        return Err(deny("attributes_missing", format!("A policy needs to know {}.", missing.join(", "))));
    }
    let counts = |(side, p): &(usize, &PolicyProspect)| {
        p.kind == Kind::Permit && p.outcomes.holds && (*side == platforms || p.policy.grants_tenants)
    };
    let numbered = || sides.iter().enumerate().flat_map(|(n, s)| s.policies.iter().map(move |p| (n, p)));
    let permits: Vec<_> = numbered().filter(counts).collect();
    if permits.is_empty() {
        return Err(deny("no_permit", "No policy permits this."));
    }
    let settled = permits.iter().any(|(_, p)| p.outcomes == Outcomes::HOLDS)
        && forbids().all(|p| p.outcomes == Outcomes::FAILS)
        && policies().all(|p| !p.outcomes.errs);
    if !settled {
        all.allowed = Could::Maybe;
    }
    for (side, ask) in numbered().filter(|(_, p)| p.kind == Kind::Ask && p.outcomes.holds) {
        let needed = if ask.outcomes.fails { Could::Maybe } else { Could::Always };
        all.approval = all.approval.max(needed);
        if side != platforms {
            all.asked_by_platform = all.asked_by_platform.max(needed);
        }
    }
    for (side, p) in numbered() {
        let relevant = p.kind != Kind::Permit || counts(&(side, p));
        let depends = Depends {
            policy: p.policy.id.clone(),
            effect: p.kind.as_str().to_owned(),
            conditions: if side == platforms { p.conditions.clone() } else { Vec::new() },
        };
        if relevant && !p.conditions.is_empty() && all.depends.len() < MAX_DEPENDS && !all.depends.contains(&depends) {
            all.depends.push(depends);
        }
    }
    Ok(())
}

/// What the platform can't evaluate may be something that it forbids.
fn platform_error(error: QueryError) -> Decision {
    deny("evaluation_error", format!("The platform's policies can't be asked about this: {error}"))
}
