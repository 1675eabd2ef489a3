//! Why policies said what they said: where they stand, what their conditions read, and, of permits that did not match, the first
//! part that failed.
//!
//! Explains from the facts that it is given and from nothing else: a value that nobody kept is said to be not kept, never guessed.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{
    BinaryOp, Context, Entity, EntityUID, EntityUIDEntry, Expr, ExprKind, Literal, Policy, Request, SlotEnv, Value,
    ValueKind, Var,
};
use cedar_policy_core::entities::{Dereference, Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::parser::Loc;
use serde::{Deserialize, Serialize};

use super::compiled::{CompiledPackage, Rule};
use super::evaluate::{argument_entities, words};
use super::prospect::Kind;
use super::query::{PolicyRef, Query, QueryError};
use super::scan;
use super::unknown::{Outcomes, Split, Unknown, children, text};

/// A value is shown up to this many characters.
const MAX_VALUE: usize = 200;
/// Values of one policy or condition.
const MAX_FACTS: usize = 32;
/// Groups of an entity that are named.
const MAX_GROUPS: usize = 12;

/// A place in a package's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// File of the package.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The whole line.
    pub text: String,
    /// How many characters from `column` on are meant; what goes on in later lines is not counted.
    pub width: usize,
}

/// What a condition read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// As the policy writes it, such as `principal.trust`.
    pub path: String,
    /// Its value, in Cedar's text; None where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why there is none: `not kept` in the record, or `not there` when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A part of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The scope's `principal`.
    Principal,
    /// The scope's `action`.
    Action,
    /// The scope's `resource`.
    Resource,
    /// A condition of `when` or `unless`.
    Condition,
}

/// The first part that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which.
    pub part: Part,
    /// Its text.
    pub text: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// `false`, `error`, or `not known` where it depends on a value that nobody kept.
    pub result: String,
    /// Cedar's words for the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
}

/// A policy that decided.
#[derive(Clone, Debug)]
pub struct PolicyWhy {
    /// The policy.
    pub policy: Arc<PolicyRef>,
    /// Its kind.
    pub kind: Kind,
    /// Where it stands.
    pub source: Option<Source>,
    /// Its text, annotations included.
    pub text: String,
    /// What its conditions read.
    pub facts: Vec<Fact>,
    /// The part that does not hold with these facts, as that of a policy that erred.
    pub failed: Option<Failed>,
}

/// A permit that did not match.
#[derive(Clone, Debug)]
pub struct NearPermit {
    /// The policy.
    pub policy: Arc<PolicyRef>,
    /// Where it stands.
    pub source: Option<Source>,
    /// Parts of the scope that hold, of three.
    pub scope: usize,
    /// Conditions that hold before the first that does not, and how many there are.
    pub conditions: (usize, usize),
    /// What failed first.
    pub failed: Failed,
}

/// Everything of one question that policies can meet.
struct World {
    entities: Entities,
    request: Request,
    unknown: Unknown,
}

impl CompiledPackage {
    fn world(&self, q: &Query<'_>, hidden: &[String]) -> Result<World, QueryError> {
        let resolved = self.resolve(q)?;
        let mut all: HashMap<EntityUID, Entity> =
            self.entities.iter().map(|(id, e)| (id.clone(), e.as_ref().clone())).collect();
        for entity in resolved.entities.iter().cloned().chain(argument_entities(q.arguments)) {
            all.insert(entity.uid().clone(), entity.as_ref().clone());
        }
        let entities = Entities::from_entities(
            all.into_values(),
            None::<&NoEntitiesSchema>,
            TCComputation::ComputeNow,
            Extensions::all_available(),
        )
        .map_err(|e| QueryError { field: "resource".to_owned(), message: e.to_string() })?;
        let entry = |euid: &Arc<EntityUID>| EntityUIDEntry::Known { euid: euid.clone(), loc: None };
        let request = Request::new_unchecked(
            entry(&resolved.principal),
            entry(&resolved.action.uid),
            entry(&resolved.resource),
            Some(Context::Value(Arc::new(self.context(q)))),
        );
        Ok(World { entities, request, unknown: Unknown { context: Vec::new(), hidden: hidden.to_vec() } })
    }

    /// Every policy, in the order of files and text, with where it stands.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<PolicyRef>, Option<Source>)> {
        self.rules.iter().map(|rule| {
            let source = self.set.get(&rule.id).and_then(|p| p.loc().and_then(|l| head(rule, l)));
            (&rule.reference, source)
        })
    }

    /// Explains the policies with these ids, in their order; ids that this package does not have are left out. `hidden` are the keys
    /// of arguments that `q` lacks because nobody kept them.
    pub fn explain(&self, q: &Query<'_>, hidden: &[String], ids: &[&str]) -> Result<Vec<PolicyWhy>, QueryError> {
        let world = self.world(q, hidden)?;
        let reader = Reader::new(&world);
        let rules = ids.iter().filter_map(|id| self.rules.iter().find(|r| r.reference.id == *id));
        Ok(rules
            .filter_map(|rule| {
                let policy = self.set.get(&rule.id)?;
                let mut facts = Vec::new();
                if let Some(condition) = policy.non_scope_constraints() {
                    reader.facts(condition, &mut facts);
                }
                Some(PolicyWhy {
                    policy: rule.reference.clone(),
                    kind: Kind::of(rule),
                    source: policy.loc().and_then(|l| head(rule, l)),
                    text: policy.loc().and_then(Loc::snippet).unwrap_or_default().to_owned(),
                    facts,
                    failed: reader.examine(rule, policy).failed,
                })
            })
            .collect())
    }

    /// The permits that came nearest, the nearest first: whose scope holds in more parts, then with fewer conditions left after the
    /// first that fails. Those for other actions only where there are no others. And whether any permit matched.
    pub fn nearest_permits(
        &self,
        q: &Query<'_>,
        hidden: &[String],
        most: usize,
    ) -> Result<(Vec<NearPermit>, bool), QueryError> {
        let world = self.world(q, hidden)?;
        let reader = Reader::new(&world);
        let mut matched = false;
        let mut near: Vec<(bool, NearPermit)> = Vec::new();
        for rule in self.rules.iter().filter(|r| Kind::of(r) == Kind::Permit) {
            let Some(policy) = self.set.get(&rule.id) else { continue };
            let found = reader.examine(rule, policy);
            let Some(failed) = found.failed else {
                matched = true;
                continue;
            };
            let permit = NearPermit {
                policy: rule.reference.clone(),
                source: policy.loc().and_then(|l| head(rule, l)),
                scope: found.scope,
                conditions: found.conditions,
                failed,
            };
            near.push((found.action, permit));
        }
        if near.iter().any(|(action, p)| *action && p.scope >= 2) {
            near.retain(|(action, p)| *action && p.scope >= 2);
        }
        near.sort_by_key(|(action, p)| rank(*action, p));
        near.truncate(most);
        Ok((near.into_iter().map(|(_, p)| p).collect(), matched))
    }
}

/// Least first: parts of the scope that fail, conditions that are left, and, of as many, those of which more held.
fn rank(action: bool, p: &NearPermit) -> (usize, bool, usize, usize) {
    let (held, all) = p.conditions;
    (3 - p.scope, !action, all - held, usize::MAX - held)
}

/// Where a policy's head begins, after its annotations.
fn head(rule: &Rule, loc: &Loc) -> Option<Source> {
    let text = loc.snippet()?;
    let scope = scan::scope(text)?;
    // `permit(` or `forbid (` stands before the principal; both have six letters.
    let before = text[..scope[0].start].trim_end().strip_suffix('(')?.trim_end();
    let begin = before.len().checked_sub("permit".len())?;
    Some(place(rule, &loc.src, loc.start() + begin, loc.end()))
}

/// A place from one byte offset to another.
fn place(rule: &Rule, src: &str, start: usize, end: usize) -> Source {
    let (line, column) = scan::position(src, start);
    let whole = src.lines().nth(line - 1).unwrap_or_default();
    let here = whole.chars().count().saturating_sub(column - 1);
    let width = src.get(start..end).map_or(0, |t| t.lines().next().unwrap_or_default().trim_end().chars().count());
    Source { file: rule.file.to_string(), line, column, text: whole.to_owned(), width: width.clamp(1, here.max(1)) }
}

fn source(rule: &Rule, e: &Expr) -> Option<Source> {
    e.source_loc().map(|l| place(rule, &l.src, l.start(), l.end()))
}

/// What became of one policy.
struct Examined {
    /// Whether the action of the scope holds.
    action: bool,
    scope: usize,
    conditions: (usize, usize),
    failed: Option<Failed>,
}

/// Reads conditions over one world.
struct Reader<'a> {
    evaluator: Evaluator<'a>,
    world: &'a World,
}

impl<'a> Reader<'a> {
    fn new(world: &'a World) -> Self {
        let evaluator = Evaluator::new(world.request.clone(), &world.entities, Extensions::all_available());
        Self { evaluator, world }
    }

    fn outcomes(&self, e: &Expr) -> Outcomes {
        Split { evaluator: &self.evaluator, unknown: &self.world.unknown }.outcomes(e, &mut Vec::new())
    }

    fn examine(&self, rule: &Rule, policy: &Policy) -> Examined {
        let scope = [
            (Part::Principal, policy.principal_constraint().as_expr(), Var::Principal),
            (Part::Action, policy.action_constraint().as_expr(), Var::Action),
            (Part::Resource, policy.resource_constraint().as_expr(), Var::Resource),
        ];
        let holds: Vec<bool> = scope.iter().map(|(_, e, _)| self.outcomes(e) == Outcomes::HOLDS).collect();
        let mut conjuncts = Vec::new();
        if let Some(condition) = policy.non_scope_constraints() {
            split(condition, &mut conjuncts);
        }
        // Conditions of what is out of scope were not looked at when it was decided, and cost nothing now.
        let in_scope = holds.iter().all(|h| *h);
        let first = conjuncts.iter().position(|e| !in_scope || self.outcomes(e) != Outcomes::HOLDS);
        let failed = match holds.iter().position(|h| !h) {
            Some(n) => Some(self.out_of_scope(rule, policy, n, &scope[n])),
            None => first.map(|n| self.failed(rule, conjuncts[n])),
        };
        Examined {
            action: holds[1],
            scope: holds.iter().filter(|h| **h).count(),
            conditions: (first.unwrap_or(conjuncts.len()), conjuncts.len()),
            failed,
        }
    }

    fn out_of_scope(&self, rule: &Rule, policy: &Policy, n: usize, (part, e, var): &(Part, Expr, Var)) -> Failed {
        let spans = policy.loc().and_then(|l| Some((l, scan::scope(l.snippet()?)?)));
        let source = spans.map(|(l, spans)| {
            let span = &spans[n];
            place(rule, &l.src, l.start() + span.start, l.start() + span.end)
        });
        let mut facts = Vec::new();
        self.entity_fact(&var.to_string(), &Expr::var(*var), &mut facts);
        Failed { part: *part, text: text(e), source, result: "false".into(), error: None, facts }
    }

    fn failed(&self, rule: &Rule, e: &Expr) -> Failed {
        let outcomes = self.outcomes(e);
        let (result, error) = match outcomes {
            Outcomes::FAILS => ("false", None),
            Outcomes::ERRS => ("error", self.evaluator.interpret(e, &SlotEnv::new()).err().map(|e| words(&e))),
            _ => ("not known", None),
        };
        let mut facts = Vec::new();
        self.facts(e, &mut facts);
        Failed { part: Part::Condition, text: text(e), source: source(rule, e), result: result.into(), error, facts }
    }

    /// What an expression reads: the longest chains of members that begin at a variable.
    fn facts(&self, e: &Expr, into: &mut Vec<Fact>) {
        if into.len() >= MAX_FACTS {
            return;
        }
        match e.expr_kind() {
            ExprKind::BinaryApp { op: BinaryOp::In, arg1, arg2 } if is_chain(arg1) => {
                self.entity_fact(&text(arg1), arg1, into);
                self.facts(arg2, into);
            }
            _ if is_chain(e) => self.fact(text(e), e, into),
            _ => children(e).into_iter().flatten().for_each(|child| self.facts(child, into)),
        }
    }

    fn fact(&self, path: String, e: &Expr, into: &mut Vec<Fact>) {
        if into.iter().any(|f| f.path == path) {
            return;
        }
        let (value, missing) = if self.world.unknown.reads(e) {
            (None, Some("not kept"))
        } else {
            match self.evaluator.interpret(e, &SlotEnv::new()) {
                Ok(value) => (Some(show(&value)), None),
                Err(_) => (None, Some("not there")),
            }
        };
        into.push(Fact { path, value, missing: missing.map(str::to_owned) });
    }

    /// An entity with the groups that it is in.
    fn entity_fact(&self, path: &str, e: &Expr, into: &mut Vec<Fact>) {
        self.fact(path.to_owned(), e, into);
        let Ok(value) = self.evaluator.interpret(e, &SlotEnv::new()) else { return };
        let ValueKind::Lit(Literal::EntityUID(uid)) = value.value_kind() else { return };
        let Dereference::Data(entity) = self.world.entities.entity(uid) else { return };
        let mut groups: Vec<String> = entity.ancestors().map(ToString::to_string).collect();
        groups.sort_unstable();
        let path = format!("{path} in");
        if !groups.is_empty() && into.iter().all(|f| f.path != path) {
            let more = groups.len().saturating_sub(MAX_GROUPS);
            groups.truncate(MAX_GROUPS);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            into.push(Fact { path, value: Some(format!("[{}{more}]", groups.join(", "))), missing: None });
        }
    }
}

/// The conditions of a policy: what `&&` joins, in its order.
fn split<'e>(e: &'e Expr, into: &mut Vec<&'e Expr>) {
    match e.expr_kind() {
        ExprKind::And { left, right } => {
            split(left, into);
            split(right, into);
        }
        _ => into.push(e),
    }
}

/// Whether an expression only walks from a variable to a member of it, or asks whether there is one.
fn is_chain(e: &Expr) -> bool {
    match e.expr_kind() {
        ExprKind::Var(_) => true,
        ExprKind::GetAttr { expr, .. } | ExprKind::HasAttr { expr, .. } | ExprKind::ExtHasAttr { expr, .. } => {
            is_chain(expr)
        }
        ExprKind::BinaryApp { op: BinaryOp::GetTag | BinaryOp::HasTag, arg1, arg2 } => {
            is_chain(arg1) && matches!(arg2.expr_kind(), ExprKind::Lit(_))
        }
        _ => false,
    }
}

/// A value in Cedar's text, shortened.
fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod unit;
