//! What a package could say of a call whose arguments nobody knows yet: for each candidate policy, whether it never, perhaps or
//! always matches.

use std::sync::Arc;

use cedar_policy_core::ast::{Context, Effect, EntityUIDEntry, Request};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use super::compiled::{CompiledPackage, Rule};
use super::query::{PolicyRef, Query, QueryError};
use super::unknown::{Outcomes, Split, Unknown, carries_call, text};

/// Members of `context` that differ from call to call, and from one hour to the next.
const CHANGING: [&str; 5] = ["arguments", "numbers", "risk", "granted", "hour"];

/// What kind of policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `permit`.
    Permit,
    /// `forbid` that nothing lifts.
    Forbid,
    /// `forbid` that an approval lifts.
    Ask,
}

impl Kind {
    pub(super) fn of(rule: &Rule) -> Kind {
        match rule.effect {
            Effect::Permit => Kind::Permit,
            Effect::Forbid if rule.asks => Kind::Ask,
            Effect::Forbid => Kind::Forbid,
        }
    }

    /// As answers write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Permit => "permit",
            Kind::Forbid => "forbid",
            Kind::Ask => "ask",
        }
    }
}

/// One candidate policy.
#[derive(Clone, Debug)]
pub struct PolicyProspect {
    /// The policy.
    pub policy: Arc<PolicyRef>,
    /// Its kind.
    pub kind: Kind,
    /// What it can come to.
    pub outcomes: Outcomes,
    /// Source of the conditions that are not known, where there are several outcomes.
    pub conditions: Vec<String>,
}

/// What one side could say.
#[derive(Clone, Debug, Default)]
pub struct Prospect {
    /// Candidate policies.
    pub policies: Vec<PolicyProspect>,
    /// Attributes that a candidate forbid mentions and that the question leaves out: such a call is denied.
    pub attributes_missing: Vec<String>,
}

impl CompiledPackage {
    /// What the candidates of a question can come to. Arguments, risk, grants and the hour of `q` are not looked at, and its session
    /// only where it names one.
    pub fn prospect(&self, q: &Query<'_>) -> Result<Prospect, QueryError> {
        let plan = self.plan(q)?;
        let mut found = Prospect { attributes_missing: plan.missing.clone(), ..Prospect::default() };
        let context = Context::Value(Arc::new(self.context(q)));
        let request =
            Request::new_unchecked(plan.principal.clone(), plan.action.clone(), plan.resource.clone(), Some(context));
        let evaluator = Evaluator::new(request, &plan.entities, Extensions::all_available());
        let mut unknown = Unknown { context: CHANGING.to_vec(), ..Unknown::default() };
        if q.session.is_none() {
            unknown.context.push("session");
        }
        let split = Split { evaluator: &evaluator, unknown: &unknown };
        // The call itself as principal or resource is nothing that Remit asks about; should a package find a way, nothing is known.
        let odd = [&plan.principal, &plan.resource].into_iter().any(|entry| match entry {
            EntityUIDEntry::Known { euid, .. } => carries_call(euid.entity_type()),
            EntityUIDEntry::Unknown { .. } => true,
        });
        for rule in plan.candidates.iter().filter_map(|n| self.rules.get(*n as usize)) {
            let mut open = Vec::new();
            let outcomes = if odd { Outcomes::ANY } else { split.outcomes(&rule.condition, &mut open) };
            let certain = [Outcomes::HOLDS, Outcomes::FAILS, Outcomes::ERRS].contains(&outcomes);
            found.policies.push(PolicyProspect {
                policy: rule.reference.clone(),
                kind: Kind::of(rule),
                outcomes,
                conditions: if certain { Vec::new() } else { open.into_iter().map(text).collect() },
            });
        }
        Ok(found)
    }
}
