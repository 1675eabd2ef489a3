//! Whether what a package says of a question depends on argument values that nobody kept.

use std::sync::Arc;

use cedar_policy_core::ast::{Context, Request};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use super::arguments::MAX_TEXT;
use super::compiled::{CompiledPackage, Rule};
use super::evaluate::argument_entities;
use super::plan;
use super::query::Query;
use super::unknown::{Outcomes, Split, Unknown};

impl CompiledPackage {
    /// Whether a candidate policy comes to something that only the values under `hidden` (flattened keys) settle. `long`: such a value
    /// may be over 64 KiB, and then every policy that names it denies. False for a question that [`CompiledPackage::evaluate`]
    /// refuses: it does so whatever the values are.
    pub fn depends_on(&self, q: &Query<'_>, hidden: &[String], long: bool, budget: u64) -> bool {
        let Ok(plan) = self.plan(q) else { return false };
        let rules = || plan.candidates.iter().filter_map(|n| self.rules.get(*n as usize));
        if hidden.is_empty() || !rules().any(|r| names(r, hidden)) {
            return false;
        }
        // What a text that nobody kept would cost is not known, but for its bound.
        if long || plan.pattern.saturating_mul(MAX_TEXT as u64) > budget {
            return true;
        }
        let Ok(entities) = plan::add(plan.entities.clone(), argument_entities(q.arguments).into_iter()) else {
            return true;
        };
        let context = Context::Value(Arc::new(self.context(q)));
        let request =
            Request::new_unchecked(plan.principal.clone(), plan.action.clone(), plan.resource.clone(), Some(context));
        let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
        let unknown = Unknown { context: Vec::new(), hidden: hidden.to_vec() };
        let split = Split { evaluator: &evaluator, unknown: &unknown };
        let certain = [Outcomes::HOLDS, Outcomes::FAILS, Outcomes::ERRS];
        rules().filter(|r| names(r, hidden)).any(|r| !certain.contains(&split.outcomes(&r.condition, &mut Vec::new())))
    }
}

/// Whether a policy names one of these keys, or what stands below it, or computes keys.
fn names(rule: &Rule, hidden: &[String]) -> bool {
    let covered = |tag: &str| {
        hidden.iter().any(|h| tag.strip_prefix(h.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    rule.reads.any_tag || rule.reads.tags.iter().any(|tag| covered(tag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::support::{compile, spec};
    use crate::policy::{AgentFacts, Arguments, CallerKind, Resource, Side, Subject};

    #[test]
    fn only_a_policy_that_comes_to_read_the_value_depends_on_it() {
        for (condition, expected) in [
            ("context.arguments.hasTag(\"password\")", true),
            ("context.arguments.hasTag(\"password.old\")", true),
            ("context.arguments.hasTag(\"branch\")", false),
            ("principal.trust >= 3 && context.arguments.hasTag(\"password\")", false),
            ("principal.trust >= 1 && context.arguments.hasTag(\"password\")", true),
            ("context.arguments.hasTag(principal.type)", true),
        ] {
            let text = format!(
                "@id(\"p\") permit(principal, action == Action::\"call_tool\", resource) when {{ {condition} }};"
            );
            let package = compile(&spec(&text), Side::Tenant);
            let tool = package.tools().next().unwrap().clone();
            let facts = AgentFacts {
                tenant: "acme".into(),
                name: "coder".into(),
                uid: "u".into(),
                type_: "t".into(),
                teams: vec![],
                trust: 2,
                suspended: false,
                attributes: Default::default(),
            };
            let none = serde_json::Map::new();
            let arguments = Arguments::default();
            let query = Query {
                subject: Subject::Agent { facts: &facts, delegation: None },
                action: "call_tool",
                resource: Resource { type_: "tool", id: &tool.name, properties: &none },
                caller: CallerKind::Agent,
                tenant: "acme",
                arguments: &arguments,
                session: None,
                risk: 0,
                granted: false,
                hour: 1,
                tool: Some(&tool),
            };
            let hidden = ["password".to_owned()];
            assert_eq!(package.depends_on(&query, &hidden, false, u64::MAX), expected, "{condition}");
            assert!(!package.depends_on(&query, &[], false, u64::MAX));
            let named = condition != "context.arguments.hasTag(\"branch\")";
            assert_eq!(package.depends_on(&query, &hidden, true, u64::MAX), named, "long: {condition}");
        }
    }
}
