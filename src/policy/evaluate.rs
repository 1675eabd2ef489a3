//! One question to one side: which permits and forbids match, which policies errored, what was missing.
//!
//! Sets, never a decision: gate 8 puts both sides together. Nothing is skipped: an erroring policy may have been a forbid.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{
    Context, Effect, Entity, EntityUID, Expr, Literal, PartialValue, Policy, Request, SlotEnv, Value, ValueKind,
};
use cedar_policy_core::authorizer::{AuthorizationError, Authorizer};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::evaluator::{EvaluationError, Evaluator};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use super::compiled::{CompiledPackage, Rule};
use super::plan;
use super::query::{Arguments, Evaluation, PolicyError, Query, QueryError, Side};
use super::schema::{CORE_ACTIONS, TYPES, uid};

/// Id of the entities that carry the call's arguments.
pub(super) const CALL: &str = "call";
/// Costs below this are not looked at more closely: under a millisecond.
const CHEAP: u64 = 1 << 20;

impl CompiledPackage {
    /// Evaluates the candidates of a question. Err: the question itself is wrong. A tool that neither the package nor (on the
    /// platform's side) the question knows is such an error: gate 3 answers `unknown_tool` before it asks.
    pub fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, QueryError> {
        let plan = self.plan(q)?;
        let mut found = Evaluation { attributes_missing: plan.missing.clone(), ..Evaluation::default() };
        if plan.candidates.is_empty() {
            return Ok(found);
        }
        let rules = || plan.candidates.iter().filter_map(|n| self.rules.get(*n as usize));
        found.arguments_too_large = too_large(q.arguments, rules());
        let with_arguments;
        let entities = if plan.arguments {
            with_arguments = plan::add(plan.entities.clone(), argument_entities(q.arguments).into_iter())?;
            &with_arguments
        } else {
            &plan.entities
        };
        let context = Context::Value(Arc::new(self.context(q)));
        let request =
            Request::new_unchecked(plan.principal.clone(), plan.action.clone(), plan.resource.clone(), Some(context));
        let evaluator = Evaluator::new(request, entities, Extensions::all_available());
        let slots = SlotEnv::new();
        for rule in rules() {
            match evaluator.interpret(&rule.condition, &slots) {
                Ok(value) if is_true(&value) => found.matched(rule),
                Ok(_) => {}
                Err(e) => found.errors.push(PolicyError { policy: rule.reference.id.clone(), message: words(&e) }),
            }
        }
        Ok(found)
    }

    /// The slow, obviously right twin: Cedar's own authorizer over every policy and every entity, nothing looked up and nothing
    /// kept. For tests and the bench.
    pub fn evaluate_full_scan(&self, q: &Query<'_>) -> Result<Evaluation, QueryError> {
        let resolved = self.resolve(q)?;
        let mut all: HashMap<EntityUID, Entity> =
            self.entities.iter().map(|(id, e)| (id.clone(), e.as_ref().clone())).collect();
        for entity in resolved.entities.iter().cloned().chain(argument_entities(q.arguments)) {
            all.insert(entity.uid().clone(), entity.as_ref().clone());
        }
        let extensions = Extensions::all_available();
        let entities = Entities::from_entities(
            all.into_values(),
            None::<&NoEntitiesSchema>,
            TCComputation::ComputeNow,
            extensions,
        )
        .map_err(|e| QueryError { field: "resource".to_owned(), message: e.to_string() })?;
        let entry =
            |uid: &Arc<EntityUID>| cedar_policy_core::ast::EntityUIDEntry::Known { euid: uid.clone(), loc: None };
        let request = Request::new_unchecked(
            entry(&resolved.principal),
            entry(&resolved.action.uid),
            entry(&resolved.resource),
            Some(Context::Value(Arc::new(self.context(q)))),
        );
        let response = Authorizer::new().is_authorized_core(request.clone(), &self.set, &entities);
        let errors: HashMap<_, _> = response
            .errors
            .iter()
            .map(|AuthorizationError::PolicyEvaluationError { id, error }| (id, words(error)))
            .collect();
        let evaluator = Evaluator::new(request, &entities, extensions);
        let in_scope: Vec<&Rule> =
            self.rules.iter().filter(|r| self.set.get(&r.id).is_some_and(|p| scope_holds(&evaluator, p))).collect();
        let forbidding: HashSet<&str> = in_scope
            .iter()
            .filter(|r| r.effect == Effect::Forbid)
            .flat_map(|r| r.reads.attributes.iter().map(SmolStr::as_str))
            .collect();
        let missing = resolved.left_out.iter().filter(|(name, _)| forbidding.contains(name.as_str()));
        let mut found = Evaluation {
            attributes_missing: missing.map(|(_, path)| path.clone()).collect(),
            arguments_too_large: too_large(q.arguments, in_scope.iter().copied()),
            ..Evaluation::default()
        };
        for rule in &self.rules {
            if response.satisfied_permits.contains_key(&rule.id) || response.satisfied_forbids.contains_key(&rule.id) {
                found.matched(rule);
            }
            if let Some(message) = errors.get(&rule.id) {
                found.errors.push(PolicyError { policy: rule.reference.id.clone(), message: message.clone() });
            }
        }
        Ok(found)
    }

    /// Upper bound of what `like` can cost this question: bytes of the longest text that can meet a pattern, times the length of
    /// the patterns that it can meet. Cheap to ask, so ask it of every question: an argument need not be long where the patterns
    /// are many. 0 for a question that [`CompiledPackage::evaluate`] refuses.
    pub fn pattern_cost(&self, q: &Query<'_>) -> u64 {
        if self.pattern == 0 {
            return 0;
        }
        let argument = q.arguments.strings.values().map(String::len).max().unwrap_or(0);
        let longest = self.longest_text.max(argument).max(super::facts::longest_text(q)) as u64;
        let bound = self.pattern.saturating_mul(longest);
        if bound <= CHEAP {
            return bound;
        }
        self.plan(q).map_or(0, |plan| plan.pattern.saturating_mul(longest))
    }

    pub(super) fn context(&self, q: &Query<'_>) -> BTreeMap<SmolStr, Value> {
        let mut context = BTreeMap::from([
            (SmolStr::new_static("risk"), Value::from(q.risk)),
            (SmolStr::new_static("granted"), Value::from(q.granted)),
            (SmolStr::new_static("arguments"), Value::from(uid(&TYPES.arguments, CALL))),
            (SmolStr::new_static("numbers"), Value::from(uid(&TYPES.numbers, CALL))),
            (SmolStr::new_static("hour"), Value::from(q.hour)),
        ]);
        if let Some(session) = q.session {
            context.insert(SmolStr::new_static("session"), Value::from(session));
        }
        if self.side == Side::Platform {
            context.insert(SmolStr::new_static("tenant"), Value::from(q.tenant));
            if !CORE_ACTIONS.contains(&q.action) {
                context.insert(SmolStr::new_static("action"), Value::from(q.action));
            }
        }
        context
    }
}

impl Evaluation {
    fn matched(&mut self, rule: &Rule) {
        let into = match rule.effect {
            Effect::Permit => &mut self.permits,
            Effect::Forbid if rule.asks => &mut self.asks,
            Effect::Forbid => &mut self.forbids,
        };
        into.push(rule.reference.clone());
    }
}

fn is_true(value: &Value) -> bool {
    matches!(value.value_kind(), ValueKind::Lit(Literal::Bool(true)))
}

/// Whether the scope of a policy holds, by Cedar's own reading of it.
fn scope_holds(evaluator: &Evaluator<'_>, policy: &Policy) -> bool {
    let scope = [
        policy.principal_constraint().as_expr(),
        policy.action_constraint().as_expr(),
        policy.resource_constraint().as_expr(),
    ];
    let holds = |e: &Expr| evaluator.interpret(e, &SlotEnv::new()).is_ok_and(|v| is_true(&v));
    scope.iter().all(holds)
}

/// Replaced arguments that one of the policies reads, by a literal key or a computed one.
fn too_large<'a>(arguments: &Arguments, rules: impl Iterator<Item = &'a Rule> + Clone) -> Vec<String> {
    let read = |key: &&String| rules.clone().any(|r| r.reads.any_tag || r.reads.tags.iter().any(|t| t == key.as_str()));
    arguments.replaced.iter().filter(read).cloned().collect()
}

/// Whether an entity carries the arguments of the call that is asked about.
pub(super) fn is_of_call(id: &EntityUID) -> bool {
    super::unknown::carries_call(id.entity_type()) && <_ as AsRef<str>>::as_ref(id.eid()) == CALL
}

pub(super) fn argument_entities(arguments: &Arguments) -> [Arc<Entity>; 2] {
    let tagged = |id: EntityUID, tags: Vec<(SmolStr, PartialValue)>| {
        Arc::new(Entity::new_with_attr_partial_value(id, [], HashSet::new(), HashSet::new(), tags))
    };
    let strings = arguments.strings.iter().map(|(k, v)| (SmolStr::new(k), PartialValue::from(Value::from(v.as_str()))));
    let numbers = arguments.numbers.iter().map(|(k, v)| (SmolStr::new(k), PartialValue::from(Value::from(*v))));
    [tagged(uid(&TYPES.arguments, CALL), strings.collect()), tagged(uid(&TYPES.numbers, CALL), numbers.collect())]
}

/// Cedar's words, without values: a record may have to keep an argument secret.
pub(super) fn words(error: &EvaluationError) -> String {
    match error {
        EvaluationError::IntegerOverflow(_) => "integer overflow".to_owned(),
        EvaluationError::FailedExtensionFunctionExecution(_) => {
            "an extension function failed on its argument".to_owned()
        }
        other => super::schema::one_line(&other.to_string()),
    }
}
