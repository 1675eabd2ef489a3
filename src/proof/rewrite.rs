//! One policy in one environment as the solver gets it: an expression over what is unknown of a call, with everything that the package
//! alone says put in.
//!
//! The solver does not see entities. So what tools, groups and listed entities are is decided here: a tool is a constant, `in` over
//! listed entities is the list of its members. Every step keeps the value of the policy, and whether it errs, for every call. Where
//! that can't be done the answer is [`Unsupported`], never a guess.

use std::collections::BTreeMap;

use cedar_policy_core::ast::{BinaryOp, EntityType, EntityUID, Expr, ExprKind, Literal, UnaryOp, Var};
use cedar_policy_core::validator::types::{EntityKind, Type};

use crate::api::{Sensitivity, Tool};
use crate::policy::portrait::{self, ActionPortrait};
use crate::policy::{CompiledPackage, Side, TYPES, uid};

/// An `in` that would be a longer list of members is left open.
const MAX_MEMBERS: usize = 512;

/// An expression as the type checker leaves it.
pub(super) type Typed = Expr<Option<Type>>;

/// Why a policy can't be put to the solver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsupported(pub String);

fn unsupported<T>(why: impl Into<String>) -> Result<T, Unsupported> {
    Err(Unsupported(why.into()))
}

/// A tool as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ToolFacts {
    pub name: String,
    pub tier: &'static str,
    pub sensitive: bool,
    /// With the group of its tier, sorted.
    pub groups: Vec<String>,
}

impl ToolFacts {
    /// As the package that lists it sees it.
    pub fn listed(tool: &Tool) -> Self {
        let mut groups = tool.groups.clone();
        groups.push(tool.tier.as_str().to_owned());
        groups.sort();
        groups.dedup();
        Self { groups, ..Self::given(tool) }
    }

    /// As the platform sees a tool that only the tenant lists: its tier, not its groups.
    pub fn given(tool: &Tool) -> Self {
        Self {
            name: tool.name.clone(),
            tier: tool.tier.as_str(),
            sensitive: tool.sensitivity == Sensitivity::Sensitive,
            groups: vec![tool.tier.as_str().to_owned()],
        }
    }

    /// As a package's side sees the tool that is asked about.
    pub fn of(package: &CompiledPackage, tool: &Tool) -> Self {
        match package.tool(&tool.name) {
            Some(own) => Self::listed(own),
            None => Self::given(tool),
        }
    }

    fn server(&self) -> &str {
        self.name.split_once('/').map_or(self.name.as_str(), |(server, _)| server)
    }
}

/// The members of every listed group, by type.
#[derive(Debug, Default)]
pub(super) struct Listing {
    members: BTreeMap<(EntityUID, EntityType), Vec<EntityUID>>,
}

impl Listing {
    pub fn of(package: &CompiledPackage) -> Self {
        let mut members: BTreeMap<(EntityUID, EntityType), Vec<EntityUID>> = BTreeMap::new();
        for entity in package.listed_entities() {
            for group in entity.ancestors() {
                let key = (group.clone(), entity.uid().entity_type().clone());
                members.entry(key).or_default().push(entity.uid().clone());
            }
        }
        members.values_mut().for_each(|all| all.sort());
        Self { members }
    }

    fn members(&self, group: &EntityUID, ty: &EntityType) -> &[EntityUID] {
        self.members.get(&(group.clone(), ty.clone())).map_or(&[], Vec::as_slice)
    }
}

/// What one side knows when one policy is asked about one kind of call.
pub(super) struct World<'a> {
    pub package: &'a CompiledPackage,
    pub listing: &'a Listing,
    /// Namespace: the platform names agents and teams by it.
    pub tenant: &'a str,
    /// The action as this side sees it.
    pub action: &'a ActionPortrait,
    /// Name of the action that the call names.
    pub called: &'a str,
    /// The tool that is called, as this side sees it.
    pub tool: Option<&'a ToolFacts>,
}

/// The single entity type of an expression.
fn entity_type(e: &Typed) -> Option<&EntityType> {
    match e.data() {
        Some(Type::Entity(EntityKind::Entity(lub))) => lub.get_single_entity(),
        _ => None,
    }
}

fn boolean(e: &Expr) -> Option<bool> {
    match e.expr_kind() {
        ExprKind::Lit(Literal::Bool(b)) => Some(*b),
        _ => None,
    }
}

fn literal_uid(e: &Expr) -> Option<&EntityUID> {
    match e.expr_kind() {
        ExprKind::Lit(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    }
}

fn literal(e: &Expr) -> Option<&Literal> {
    match e.expr_kind() {
        ExprKind::Lit(literal) => Some(literal),
        _ => None,
    }
}

fn is_var(e: &Expr, var: Var) -> bool {
    matches!(e.expr_kind(), ExprKind::Var(v) if *v == var)
}

/// Joins as a balanced tree: thousands of terms must not nest thousands deep.
pub(super) fn join(mut terms: Vec<Expr>, with: fn(Expr, Expr) -> Expr, none: bool) -> Expr {
    while terms.len() > 1 {
        let mut next = Vec::with_capacity(terms.len().div_ceil(2));
        let mut rest = terms.into_iter();
        while let Some(first) = rest.next() {
            next.push(match rest.next() {
                Some(second) => with(first, second),
                None => first,
            });
        }
        terms = next;
    }
    terms.pop().unwrap_or_else(|| Expr::val(none))
}

impl World<'_> {
    /// The policy's condition for this kind of call.
    pub fn rewrite(&self, e: &Typed) -> Result<Expr, Unsupported> {
        Ok(match e.expr_kind() {
            ExprKind::Lit(Literal::EntityUID(uid)) => Expr::val(self.named(uid)?),
            ExprKind::Lit(other) => Expr::val(other.clone()),
            ExprKind::Var(Var::Principal) if entity_type(e).is_some_and(|ty| *ty == TYPES.tenant_subject) => {
                return unsupported("it reads what the platform knows of a tenant's own subject");
            }
            ExprKind::Var(var) => self.var(*var)?,
            ExprKind::If { test_expr, then_expr, else_expr } => {
                let test = self.rewrite(test_expr)?;
                match boolean(&test) {
                    Some(true) => self.rewrite(then_expr)?,
                    Some(false) => self.rewrite(else_expr)?,
                    None => Expr::ite(test, self.rewrite(then_expr)?, self.rewrite(else_expr)?),
                }
            }
            ExprKind::And { left, right } => {
                let left = self.rewrite(left)?;
                match boolean(&left) {
                    Some(true) => self.rewrite(right)?,
                    Some(false) => left,
                    None => {
                        let right = self.rewrite(right)?;
                        if boolean(&right) == Some(true) { left } else { Expr::and(left, right) }
                    }
                }
            }
            ExprKind::Or { left, right } => {
                let left = self.rewrite(left)?;
                match boolean(&left) {
                    Some(false) => self.rewrite(right)?,
                    Some(true) => left,
                    None => {
                        let right = self.rewrite(right)?;
                        if boolean(&right) == Some(false) { left } else { Expr::or(left, right) }
                    }
                }
            }
            ExprKind::UnaryApp { op, arg } => {
                let arg = self.rewrite(arg)?;
                match (op, boolean(&arg)) {
                    (UnaryOp::Not, Some(b)) => Expr::val(!b),
                    _ => Expr::unary_app(*op, arg),
                }
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => self.binary(*op, arg1, arg2)?,
            ExprKind::ExtensionFunctionApp { fn_name, args } => {
                let args = args.iter().map(|a| self.rewrite(a)).collect::<Result<_, _>>()?;
                Expr::call_extension_fn(fn_name.clone(), args)
            }
            ExprKind::GetAttr { expr, attr } => self.attribute(expr, attr)?,
            ExprKind::HasAttr { expr, attr } => self.has_attribute(expr, attr)?,
            ExprKind::Like { expr, pattern } => {
                let expr = self.rewrite(expr)?;
                match literal(&expr) {
                    Some(Literal::String(text)) => Expr::val(pattern.wildcard_match(text)),
                    _ => Expr::like(expr, pattern.clone()),
                }
            }
            ExprKind::Is { expr, entity_type: expected } => match entity_type(expr) {
                // The operand can only be a variable, an attribute or a choice of these: evaluated for its errors.
                Some(found) if matches!(expr.expr_kind(), ExprKind::Var(_) | ExprKind::Lit(_)) => {
                    Expr::val(found == expected)
                }
                _ => Expr::is_entity_type(self.rewrite(expr)?, expected.clone()),
            },
            ExprKind::Set(items) => Expr::set(items.iter().map(|i| self.rewrite(i)).collect::<Result<Vec<_>, _>>()?),
            ExprKind::Record(members) => {
                let members = members
                    .iter()
                    .map(|(k, v)| Ok((k.clone(), self.rewrite(v)?)))
                    .collect::<Result<BTreeMap<_, _>, Unsupported>>()?;
                Expr::record_arc(members.into())
            }
            ExprKind::ExtHasAttr { .. } => return unsupported("it asks by `has` for an attribute of an attribute"),
            _ => return unsupported("it holds an expression that this version does not know"),
        })
    }

    /// An entity under the name that the tenant's side has for it. The platform's names of other tenants' agents and teams stay, and are
    /// nobody's here.
    fn named(&self, id: &EntityUID) -> Result<EntityUID, Unsupported> {
        let ty = id.entity_type();
        if self.package.side() == Side::Platform && (*ty == TYPES.agent || *ty == TYPES.team) {
            let text: &str = id.eid().as_ref();
            let own = text.strip_prefix(self.tenant).and_then(|rest| rest.strip_prefix('/'));
            return Ok(match own {
                Some(own) => uid(ty, own),
                None => id.clone(),
            });
        }
        Ok(id.clone())
    }

    /// Whether an agent or team is named that this tenant can't have.
    fn is_elsewhere(&self, id: &EntityUID) -> bool {
        let ty = id.entity_type();
        self.package.side() == Side::Platform
            && (*ty == TYPES.agent || *ty == TYPES.team)
            && <_ as AsRef<str>>::as_ref(id.eid()).strip_prefix(self.tenant).is_none_or(|rest| !rest.starts_with('/'))
    }

    fn var(&self, var: Var) -> Result<Expr, Unsupported> {
        Ok(match var {
            Var::Action => Expr::val(self.action.uid.clone()),
            Var::Resource => match self.tool {
                _ if self.abstracts() => {
                    return unsupported("it reads what the platform knows of a tenant's own resource");
                }
                Some(tool) => Expr::val(uid(&TYPES.tool, &tool.name)),
                None => Expr::var(Var::Resource),
            },
            Var::Principal => Expr::var(Var::Principal),
            Var::Context => return unsupported("it takes the context as a whole"),
        })
    }

    /// Whether the platform sees a tenant's own action here.
    fn abstracts(&self) -> bool {
        self.package.side() == Side::Platform && !portrait::is_core_action(self.called)
    }

    fn binary(&self, op: BinaryOp, arg1: &Typed, arg2: &Typed) -> Result<Expr, Unsupported> {
        if op == BinaryOp::In {
            return self.within(arg1, arg2);
        }
        if matches!(op, BinaryOp::GetTag | BinaryOp::HasTag) {
            let key = self.rewrite(arg2)?;
            let of = self.rewrite(arg1)?;
            let known = match entity_type(arg1) {
                Some(ty) if *ty == TYPES.agent => is_var(&of, Var::Principal),
                Some(ty) if *ty == TYPES.arguments || *ty == TYPES.numbers => {
                    matches!(of.expr_kind(), ExprKind::GetAttr { expr, .. } if is_var(expr, Var::Context))
                        || literal_uid(&of).is_some_and(portrait::is_of_call)
                }
                _ => false,
            };
            return if known {
                Ok(Expr::binary_app(op, of, key))
            } else {
                unsupported("it reads a tag of something else than the agent and the call's arguments")
            };
        }
        // Names of other tenants' agents and teams are equal to nothing here.
        let (left, right) = (self.rewrite(arg1)?, self.rewrite(arg2)?);
        if op == BinaryOp::Eq {
            if let (Some(a), Some(b)) = (literal(&left), literal(&right)) {
                return Ok(Expr::val(a == b));
            }
            let elsewhere = |e: &Expr, other: &Expr| {
                literal_uid(e).is_some_and(|id| self.is_still_elsewhere(id)) && is_var(other, Var::Principal)
            };
            if elsewhere(&left, &right) || elsewhere(&right, &left) {
                return Ok(Expr::val(false));
            }
        }
        if op == BinaryOp::Contains
            && let ExprKind::Set(items) = left.expr_kind()
            && let Some(wanted) = literal(&right)
            && let Some(items) = items.iter().map(literal).collect::<Option<Vec<_>>>()
        {
            return Ok(Expr::val(items.contains(&wanted)));
        }
        Ok(Expr::binary_app(op, left, right))
    }

    /// After [`World::named`]: the platform's name of another tenant's agent holds a `/`, and no agent's own name does.
    fn is_still_elsewhere(&self, id: &EntityUID) -> bool {
        self.package.side() == Side::Platform
            && <_ as AsRef<str>>::as_ref(id.eid()).contains('/')
            && *id.entity_type() == TYPES.agent
    }

    fn within(&self, arg1: &Typed, arg2: &Typed) -> Result<Expr, Unsupported> {
        let left = self.rewrite(arg1)?;
        let Some(ty) = entity_type(arg1) else { return unsupported("it asks by `in` for one of several types") };
        let groups = match arg2.expr_kind() {
            ExprKind::Set(items) => items.iter().map(|i| self.group(i)).collect::<Result<Vec<_>, _>>()?,
            _ => vec![self.group(arg2)?],
        };
        if ty.is_action() {
            let Some(action) = literal_uid(&left) else { return unsupported("it asks by `in` for a computed action") };
            let known = *action == self.action.uid;
            if !known {
                return unsupported("it asks by `in` for another action than the one that is called");
            }
            let holds = groups.iter().any(|g| g.id == *action || self.action.ancestors.contains(&g.id));
            return Ok(Expr::val(holds));
        }
        if *ty == TYPES.tool {
            let Some(tool) = literal_uid(&left) else { return unsupported("it asks by `in` for a computed tool") };
            let facts = self.facts(tool);
            let in_group = |g: &EntityUID| {
                *g == *tool
                    || *g.entity_type() == TYPES.tool_group
                        && facts
                            .as_ref()
                            .is_some_and(|f| f.groups.iter().any(|name| name == <_ as AsRef<str>>::as_ref(g.eid())))
            };
            return Ok(Expr::val(groups.iter().any(|g| in_group(&g.id))));
        }
        if *ty == TYPES.agent {
            if !is_var(&left, Var::Principal) {
                return unsupported("it asks by `in` for another agent than the one that calls");
            }
            let terms = groups
                .into_iter()
                .filter(|g| !g.elsewhere)
                .map(|g| {
                    let ty = g.id.entity_type().clone();
                    let group = Expr::val(g.id);
                    let principal = Expr::var(Var::Principal);
                    if ty == TYPES.agent { Expr::is_eq(principal, group) } else { Expr::is_in(principal, group) }
                })
                .collect();
            return Ok(join(terms, Expr::or, false));
        }
        if *ty == TYPES.domain {
            if !is_var(&left, Var::Resource) {
                return unsupported("it asks by `in` for another destination than the one that is called");
            }
            let terms = groups.into_iter().map(|g| Expr::is_in(Expr::var(Var::Resource), Expr::val(g.id))).collect();
            return Ok(join(terms, Expr::or, false));
        }
        // Nobody but the package's list says in which groups an entity of these types is.
        if portrait::is_listed_type(ty) {
            let mut members: Vec<EntityUID> = Vec::new();
            for g in groups {
                members.extend(self.listing.members(&g.id, ty).iter().cloned());
                if g.id.entity_type() == ty {
                    members.push(g.id);
                }
            }
            members.sort();
            members.dedup();
            if let Some(id) = literal_uid(&left) {
                return Ok(Expr::val(members.contains(id)));
            }
            if members.len() > MAX_MEMBERS {
                return unsupported(format!("a group that it names has over {MAX_MEMBERS} members"));
            }
            if members.is_empty() && !matches!(left.expr_kind(), ExprKind::Var(_)) {
                // Evaluated for its errors.
                return Ok(Expr::and(Expr::noteq(left.clone(), left), Expr::val(false)));
            }
            let terms = members.into_iter().map(|id| Expr::is_eq(left.clone(), Expr::val(id))).collect();
            return Ok(join(terms, Expr::or, false));
        }
        // Agent types, teams, tool groups and arguments are in nothing but themselves.
        match literal_uid(&left) {
            Some(id) => Ok(Expr::val(groups.iter().any(|g| g.id == *id))),
            None => unsupported(format!("it asks by `in` for a computed {ty}")),
        }
    }

    fn group(&self, e: &Typed) -> Result<Group, Unsupported> {
        match e.expr_kind() {
            ExprKind::Lit(Literal::EntityUID(id)) => {
                Ok(Group { elsewhere: self.is_elsewhere(id), id: self.named(id)? })
            }
            _ => match literal_uid(&self.rewrite(e)?) {
                Some(id) => Ok(Group { elsewhere: false, id: id.clone() }),
                None => unsupported("it asks by `in` for a computed group"),
            },
        }
    }

    /// What is known of a tool that a policy names; None: nothing but its name.
    fn facts(&self, tool: &EntityUID) -> Option<ToolFacts> {
        let name: &str = tool.eid().as_ref();
        match self.tool {
            Some(called) if called.name == name => Some(called.clone()),
            _ => self.package.tool(name).map(ToolFacts::listed),
        }
    }

    fn attribute(&self, of: &Typed, attr: &smol_str::SmolStr) -> Result<Expr, Unsupported> {
        if let ExprKind::Var(Var::Context) = of.expr_kind() {
            return Ok(match attr.as_str() {
                "tenant" if self.package.side() == Side::Platform => Expr::val(self.tenant),
                "action" if self.package.side() == Side::Platform => Expr::val(self.called),
                _ => Expr::get_attr(Expr::var(Var::Context), attr.clone()),
            });
        }
        let Some(ty) = entity_type(of) else { return Ok(Expr::get_attr(self.rewrite(of)?, attr.clone())) };
        if *ty == TYPES.agent && matches!(of.expr_kind(), ExprKind::Var(Var::Principal)) {
            return Ok(Expr::get_attr(Expr::var(Var::Principal), attr.clone()));
        }
        if *ty == TYPES.tool {
            let of = self.rewrite(of)?;
            let facts = literal_uid(&of).and_then(|tool| self.facts(tool));
            return match (facts, attr.as_str()) {
                (Some(facts), "server") => Ok(Expr::val(facts.server())),
                (Some(facts), "tier") => Ok(Expr::val(facts.tier)),
                (Some(facts), "sensitive") => Ok(Expr::val(facts.sensitive)),
                _ => unsupported("it reads an attribute of a tool that may not be there"),
            };
        }
        if *ty == TYPES.tenant_resource
            && matches!(of.expr_kind(), ExprKind::Var(Var::Resource))
            && let Some(tool) = self.tool
        {
            match attr.as_str() {
                "name" => return Ok(Expr::val(tool.name.as_str())),
                "type" => return Ok(Expr::val("tool")),
                "tier" => return Ok(Expr::val(tool.tier)),
                _ => {}
            }
        }
        unsupported(format!("it reads `{attr}` of {ty}, which may not be there"))
    }

    fn has_attribute(&self, of: &Typed, attr: &smol_str::SmolStr) -> Result<Expr, Unsupported> {
        if let ExprKind::Var(Var::Context) = of.expr_kind() {
            let platform = self.package.side() == Side::Platform;
            return Ok(match attr.as_str() {
                "tenant" if platform => Expr::val(true),
                "action" if platform => Expr::val(self.abstracts()),
                _ => Expr::has_attr(Expr::var(Var::Context), attr.clone()),
            });
        }
        let Some(ty) = entity_type(of) else { return Ok(Expr::has_attr(self.rewrite(of)?, attr.clone())) };
        if *ty == TYPES.agent && matches!(of.expr_kind(), ExprKind::Var(Var::Principal)) {
            return Ok(Expr::has_attr(Expr::var(Var::Principal), attr.clone()));
        }
        if *ty == TYPES.tool {
            let of = self.rewrite(of)?;
            if literal_uid(&of).and_then(|tool| self.facts(tool)).is_some() {
                return Ok(Expr::val(matches!(attr.as_str(), "server" | "tier" | "sensitive")));
            }
        }
        unsupported(format!("it asks whether {ty} has `{attr}`"))
    }
}

/// A group on the right of `in`.
struct Group {
    id: EntityUID,
    /// Of another tenant: nobody here is in it.
    elsewhere: bool,
}
