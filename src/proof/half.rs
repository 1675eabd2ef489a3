//! One side of a comparison for one kind of call: every policy that could matter, the platform's and the tenant's, as the solver gets
//! them; and what may be assumed of every call.
//!
//! A policy that can't be put to the solver is left open: whether it matches, and whether it errs, are two truth values that nobody
//! knows, the same two on both sides only where the policy and all that it can look at are the same.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{RequestEnv, Schema};
use cedar_policy_core::ast::{self, Effect, EntityUID, Expr, ExprKind, Literal, Policy, PolicyID, PolicySet, Var};
use cedar_policy_core::validator::typecheck::{PolicyCheck, Typechecker};
use cedar_policy_core::validator::types::{RequestEnv as TypedEnv, Type};
use cedar_policy_core::validator::{ValidationMode, ValidatorSchema};
use cedar_policy_symcc::{CompiledPolicy, CompiledPolicySet};
use smol_str::SmolStr;

use super::environment::Environment;
use super::rewrite::{Typed, Unsupported, World, join};
use crate::policy::{Ask, CompiledPackage, TYPES, portrait};

/// Pairs of network names are related to each other up to this many names.
const MAX_RELATED: usize = 40;

/// What a policy does where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Permit,
    Forbid,
    Ask,
    /// A permit of the platform that is none for tenants: it counts only where it errs.
    Idle,
}

/// One policy that may matter.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// `(platform|tenant)/package/id`.
    pub id: String,
    pub kind: Kind,
    /// What it asks of humans, where it asks.
    pub ask: Option<Ask>,
    pub expr: Result<Expr, Unsupported>,
    /// Equal only where the policy has the same value for every call.
    pub key: String,
}

/// One policy after the type checker.
pub(super) struct TypedRule {
    id: String,
    kind: Kind,
    ask: Option<Ask>,
    typed: Result<Typed, Unsupported>,
    text: String,
}

/// Type-checks every policy of a package in one kind of call. `None` for a kind of call that the package does not know.
pub(super) fn typed_rules(
    package: &CompiledPackage,
    schema: &ValidatorSchema,
    principal: &ast::EntityType,
    action: &EntityUID,
    resource: &ast::EntityType,
) -> Option<Vec<TypedRule>> {
    let context = schema.context_type(action)?;
    let checker = Typechecker::new(schema, ValidationMode::Strict);
    let rules = package.rule_portraits().map(|rule| {
        let kind = match (rule.effect, rule.asks) {
            (Effect::Permit, _) if package.side() == crate::policy::Side::Tenant || rule.reference.grants_tenants => {
                Kind::Permit
            }
            (Effect::Permit, _) => Kind::Idle,
            (Effect::Forbid, true) => Kind::Ask,
            (Effect::Forbid, false) => Kind::Forbid,
        };
        let env = TypedEnv::DeclaredAction {
            principal,
            action,
            resource,
            context,
            principal_slot: None,
            resource_slot: None,
        };
        let policy = Policy::from_when_clause(rule.effect, rule.condition.clone(), rule.id.clone(), None);
        let typed = match checker.typecheck_by_single_request_env(policy.template(), &env) {
            PolicyCheck::Success(typed) => Ok(typed),
            PolicyCheck::Irrelevant(errors, typed) if errors.is_empty() => Ok(typed),
            PolicyCheck::Irrelevant(..) | PolicyCheck::Fail(_) => {
                Err(Unsupported("it does not pass the type check for this kind of call".into()))
            }
        };
        let ask = rule.reference.ask.clone().filter(|_| kind == Kind::Ask);
        TypedRule { id: rule.reference.id.clone(), kind, ask, typed, text: rule.condition.to_string() }
    });
    Some(rules.collect())
}

/// Adds the policies of one package. `facts`: everything that a policy left open may look at, as text.
pub(super) fn add_rules(to: &mut Vec<Rule>, rules: &[TypedRule], world: &World<'_>, facts: &str) {
    for rule in rules {
        let expr = rule.typed.as_ref().map_err(Clone::clone).and_then(|typed| world.rewrite(typed));
        let key = match &expr {
            Ok(expr) => match expr.expr_kind() {
                ExprKind::Lit(Literal::Bool(false)) => continue,
                _ => expr.to_string(),
            },
            Err(_) => format!("?{facts}?{}", rule.text),
        };
        to.push(Rule { id: rule.id.clone(), kind: rule.kind, ask: rule.ask.clone(), expr, key });
    }
}

/// What both sides of a comparison say to one kind of call.
#[derive(Clone, Debug, Default)]
pub(super) struct Half {
    pub rules: Vec<Rule>,
}

impl Half {
    /// What it does, whatever the policies are called: equal only where both sides decide every call alike, and ask the same of people.
    pub fn signature(&self) -> BTreeSet<(Kind, &str, Option<&Ask>)> {
        self.rules.iter().map(|r| (r.kind, r.key.as_str(), r.ask.as_ref())).collect()
    }

    pub fn permits(&self) -> bool {
        self.rules.iter().any(|r| r.kind == Kind::Permit)
    }

    pub fn asks(&self) -> bool {
        self.rules.iter().any(|r| r.kind == Kind::Ask)
    }

    /// Policies that are left open, with the reason.
    pub fn open(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().filter_map(|r| r.expr.as_ref().err().map(|why| (r.id.as_str(), why.0.as_str())))
    }
}

/// One kind of call, as the solver gets it.
pub(super) struct Symbols {
    schema: Schema,
    request: RequestEnv,
    /// What holds of every call.
    assumption: Expr,
    /// Policies that are left open, by key.
    free: BTreeMap<String, usize>,
    /// The call's arguments as numbers that policies name.
    number_keys: BTreeSet<SmolStr>,
    has_agent: bool,
}

fn matches_name(n: usize) -> String {
    format!("remit_m{n}")
}

fn errs_name(n: usize) -> String {
    format!("remit_e{n}")
}

fn context(name: impl Into<SmolStr>) -> Expr {
    Expr::get_attr(Expr::var(Var::Context), name.into())
}

fn principal(name: &'static str) -> Expr {
    Expr::get_attr(Expr::var(Var::Principal), SmolStr::new_static(name))
}

fn between(e: Expr, low: i64, high: i64) -> Expr {
    Expr::and(Expr::lesseq(Expr::val(low), e.clone()), Expr::lesseq(e, Expr::val(high)))
}

fn implies(a: Expr, b: Expr) -> Expr {
    Expr::or(Expr::not(a), b)
}

impl Symbols {
    /// The symbols that are enough for all these halves. Err: the two packages' schemas contradict each other.
    pub fn new(environment: &Environment, own_schemas: [Option<&str>; 2], halves: &[&Half]) -> Result<Self, String> {
        let mut free = BTreeMap::new();
        for rule in halves.iter().flat_map(|h| &h.rules).filter(|r| r.expr.is_err()) {
            let next = free.len();
            free.entry(rule.key.clone()).or_insert(next);
        }
        let names: Vec<String> = (0..free.len()).flat_map(|n| [matches_name(n), errs_name(n)]).collect();
        // A schema of one's own is needed only where it is spoken of.
        let schema = match portrait::joint_schema(own_schemas, &names) {
            Ok(schema) => schema,
            Err(error) if portrait::is_core_action(&environment.action) => {
                portrait::joint_schema([None, None], &names).map_err(|_| error)?
            }
            Err(error) => return Err(error),
        };
        let given: BTreeSet<SmolStr> = match schema.context_type(&environment.action_uid) {
            Some(Type::Record { attrs, .. }) => attrs.iter().map(|(name, _)| name.clone()).collect(),
            _ => return Err(format!("the schemas know no action {}", environment.action)),
        };
        if names.iter().any(|n| !given.contains(n.as_str())) {
            return Err(format!(
                "action {} has a context of its own, and a policy has to be left open",
                environment.action
            ));
        }
        let exprs: Vec<Expr> =
            halves.iter().flat_map(|h| &h.rules).filter_map(|r| r.expr.as_ref().ok().cloned()).collect();
        let mentioned = Mentioned::of(&exprs);
        let assumption = assumption(environment, &given, &mentioned);
        Ok(Self {
            request: RequestEnv::new(
                environment.principal.clone().into(),
                environment.action_uid.clone().into(),
                environment.resource.clone().into(),
            ),
            schema: Schema::from(schema),
            assumption,
            free,
            number_keys: mentioned.number_keys,
            has_agent: environment.has_agent(),
        })
    }

    /// What one side lets through: alone, or with what a human may lift. Only calls for which all of `given` hold.
    pub fn set(&self, half: &Half, lifted: bool, given: &[Expr]) -> Result<CompiledPolicySet, String> {
        let mut set = PolicySet::new();
        let mut add = |effect: Effect, when: Expr| -> Result<(), String> {
            let id = PolicyID::from_string(format!("r{}", set.policies().count()));
            set.add(Policy::from_when_clause(effect, when, id, None)).map_err(|e| e.to_string())
        };
        for rule in &half.rules {
            let effect = match rule.kind {
                Kind::Permit => Some(Effect::Permit),
                Kind::Forbid => Some(Effect::Forbid),
                Kind::Ask => (!lifted).then_some(Effect::Forbid),
                Kind::Idle => None,
            };
            match &rule.expr {
                Ok(expr) => {
                    if let Some(effect) = effect {
                        add(effect, expr.clone())?;
                    }
                }
                Err(_) => {
                    let n = self.free.get(&rule.key).copied().unwrap_or_default();
                    if let Some(effect) = effect {
                        add(effect, context(matches_name(n)))?;
                    }
                    add(Effect::Forbid, context(errs_name(n)))?;
                }
            }
        }
        for given in std::iter::once(&self.assumption).chain(given) {
            add(Effect::Forbid, Expr::not(given.clone()))?;
        }
        CompiledPolicySet::compile(&set.into(), &self.request, &self.schema).map_err(|e| described(&e))
    }

    /// A policy that errs exactly where one of these does.
    pub fn errs(&self, exprs: &[&Expr]) -> Result<CompiledPolicy, String> {
        let each = exprs.iter().map(|e| Expr::or((*e).clone(), Expr::val(true))).collect();
        let all = Expr::and(self.assumption.clone(), join(each, Expr::and, true));
        let policy = Policy::from_when_clause(Effect::Permit, all, PolicyID::from_string("errs"), None);
        CompiledPolicy::compile(&policy.into(), &self.request, &self.schema).map_err(|e| described(&e))
    }

    /// One policy alone, as a permit.
    pub fn alone(&self, expr: &Expr) -> Result<CompiledPolicySet, String> {
        let rule =
            Rule { id: String::new(), kind: Kind::Permit, ask: None, expr: Ok(expr.clone()), key: String::new() };
        self.set(&Half { rules: vec![rule] }, false, &[])
    }

    /// Arguments that policies read as numbers.
    pub fn number_keys(&self) -> &BTreeSet<SmolStr> {
        &self.number_keys
    }

    /// Of which calls counter-examples are looked for, one after the other: a model of the first may be none that a person could make.
    pub fn simpler_calls(&self) -> Vec<Vec<Expr>> {
        let mut simple = Vec::new();
        if self.has_agent {
            simple.push(Expr::not(Expr::has_attr(Expr::var(Var::Principal), SmolStr::new_static("delegated_by"))));
            simple.push(Expr::is_empty(principal("delegation_chain")));
        }
        let without_numbers = self
            .number_keys
            .iter()
            .map(|key| Expr::not(Expr::has_tag(context("numbers"), Expr::val(key.as_str()))))
            .chain(simple.iter().cloned())
            .collect();
        vec![Vec::new(), simple, without_numbers]
    }
}

/// symcc's words, with what the type checker says.
fn described(error: &cedar_policy_symcc::err::Error) -> String {
    match error {
        cedar_policy_symcc::err::Error::PolicyNotWellTyped { errs } => {
            let why = errs.first().map(ToString::to_string).unwrap_or_default();
            format!("{error}: {}", why.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// What the policies of both sides name.
#[derive(Debug, Default)]
struct Mentioned {
    agent_types: BTreeSet<EntityUID>,
    domains: BTreeSet<String>,
    number_keys: BTreeSet<SmolStr>,
}

impl Mentioned {
    fn of(exprs: &[Expr]) -> Self {
        let mut found = Self::default();
        for e in exprs.iter().flat_map(|e| e.subexpressions()) {
            match e.expr_kind() {
                ExprKind::Lit(Literal::EntityUID(id)) if *id.entity_type() == TYPES.agent_type => {
                    found.agent_types.insert(id.as_ref().clone());
                }
                ExprKind::Lit(Literal::EntityUID(id)) if *id.entity_type() == TYPES.domain => {
                    found.domains.insert(<_ as AsRef<str>>::as_ref(id.eid()).to_owned());
                }
                ExprKind::BinaryApp { op: ast::BinaryOp::HasTag | ast::BinaryOp::GetTag, arg1, arg2 } => {
                    let numbers = matches!(arg1.expr_kind(), ExprKind::GetAttr { attr, .. } if attr == "numbers");
                    if let (true, ExprKind::Lit(Literal::String(key))) = (numbers, arg2.expr_kind()) {
                        found.number_keys.insert(key.clone());
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// What Remit makes true of every call that gets to the policies. Each of these is enforced by a gate or by how facts are built; what is
/// not certain is not here.
fn assumption(environment: &Environment, given: &BTreeSet<SmolStr>, mentioned: &Mentioned) -> Expr {
    let mut all = Vec::new();
    let mut bounded = |name: &'static str, low, high| {
        if given.contains(name) {
            all.push(between(context(name), low, high));
        }
    };
    bounded("risk", 0, 100);
    bounded("hour", 0, 23);
    let (texts, numbers) = portrait::call_entities();
    for (name, id) in [("arguments", texts), ("numbers", numbers)] {
        if given.contains(name) {
            all.push(Expr::is_eq(context(name), Expr::val(id)));
        }
    }
    if given.contains("arguments") && given.contains("numbers") {
        for key in &mentioned.number_keys {
            let has = |of: &'static str| Expr::has_tag(context(of), Expr::val(key.as_str()));
            all.push(implies(has("numbers"), has("arguments")));
        }
    }
    // Nobody and nothing has an empty name.
    let named = |var: Var, ty: &ast::EntityType| Expr::noteq(Expr::var(var), Expr::val(crate::policy::uid(ty, "")));
    all.push(named(Var::Principal, &environment.principal));
    if !environment.has_tool() {
        all.push(named(Var::Resource, &environment.resource));
    }
    if environment.has_agent() {
        let user = Expr::val(crate::policy::uid(&TYPES.user, ""));
        let has_user = Expr::has_attr(Expr::var(Var::Principal), SmolStr::new_static("delegated_by"));
        all.push(Expr::not(Expr::and(has_user, Expr::is_eq(principal("delegated_by"), user))));
        let nobody = Expr::val(crate::policy::uid(&TYPES.agent, ""));
        all.push(Expr::not(Expr::contains(principal("delegation_chain"), nobody)));
        all.push(between(principal("trust"), 0, 4));
        // Gate 4 stops it before.
        all.push(Expr::not(principal("suspended")));
        for id in &mentioned.agent_types {
            let name: &str = id.eid().as_ref();
            let within = Expr::is_in(Expr::var(Var::Principal), Expr::val(id.clone()));
            all.push(if name.is_empty() {
                Expr::not(within)
            } else {
                Expr::is_eq(within, Expr::is_eq(principal("type"), Expr::val(name)))
            });
        }
    }
    if environment.resource == TYPES.domain && mentioned.domains.len() <= MAX_RELATED {
        let domain = |name: &str| Expr::val(crate::policy::uid(&TYPES.domain, name));
        let within = |name: &str| Expr::is_in(Expr::var(Var::Resource), domain(name));
        for a in &mentioned.domains {
            let parents = portrait::domain_parents(a).unwrap_or_default();
            for b in mentioned.domains.iter().filter(|b| *b != a) {
                if parents.contains(b) {
                    all.push(implies(within(a), within(b)));
                } else if portrait::domain_parents(b).is_none_or(|above| !above.contains(a)) {
                    // Neither is above the other: nothing is in both.
                    all.push(Expr::not(Expr::and(within(a), within(b))));
                } else {
                    // Above it: the name itself is not below.
                    all.push(implies(Expr::is_eq(Expr::var(Var::Resource), domain(a)), Expr::not(within(b))));
                }
            }
        }
    }
    join(all, Expr::and, true)
}
