//! Which policies a request can concern at all, by their scope: action and its groups, resource and principal by `==`, `in`,
//! `is`, `is in`, or unconstrained. Cedar scans every policy at about a microsecond each; Remit hands it only these.
//!
//! The index never decides. A candidate too many costs time; a candidate too few would change answers, and the property test
//! against the full scan is there to find it.

use std::collections::HashMap;

use cedar_policy_core::ast::{
    ActionConstraint, EntityReference, EntityType, EntityUID, Policy, PrincipalOrResourceConstraint,
};

/// One side of a scope, as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Any,
    Eq(EntityUID),
    In(EntityUID),
    Is(EntityType),
    IsIn(EntityType, EntityUID),
}

impl Scope {
    fn of(constraint: &PrincipalOrResourceConstraint) -> Scope {
        let literal = |reference: &EntityReference| match reference {
            EntityReference::EUID(uid) => Some(uid.as_ref().clone()),
            // Templates are refused before; a slot that got here is looked at by every request.
            EntityReference::Slot(_) => None,
        };
        match constraint {
            PrincipalOrResourceConstraint::Any => Scope::Any,
            PrincipalOrResourceConstraint::Eq(r) => literal(r).map_or(Scope::Any, Scope::Eq),
            PrincipalOrResourceConstraint::In(r) => literal(r).map_or(Scope::Any, Scope::In),
            PrincipalOrResourceConstraint::Is(ty) => Scope::Is(ty.as_ref().clone()),
            PrincipalOrResourceConstraint::IsIn(ty, r) => {
                literal(r).map_or_else(|| Scope::Is(ty.as_ref().clone()), |uid| Scope::IsIn(ty.as_ref().clone(), uid))
            }
        }
    }

    /// Every key under which a policy for this entity can stand. `in` is reflexive.
    fn keys<'a>(uid: &'a EntityUID, ancestors: &'a [EntityUID]) -> Vec<Scope> {
        let ty = uid.entity_type();
        let mut keys = vec![Scope::Any, Scope::Eq(uid.clone()), Scope::Is(ty.clone())];
        for group in std::iter::once(uid).chain(ancestors) {
            keys.push(Scope::In(group.clone()));
            keys.push(Scope::IsIn(ty.clone(), group.clone()));
        }
        keys
    }

    fn is_selective(&self) -> bool {
        !matches!(self, Scope::Any | Scope::Is(_))
    }
}

type ByPrincipal = HashMap<Scope, Vec<u32>>;
type ByResource = HashMap<Scope, ByPrincipal>;

/// The action side of a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ActionScope {
    Any,
    Eq(EntityUID),
    In(EntityUID),
}

/// Policies by scope. Numbers are positions in the package's list of policies.
#[derive(Debug, Default)]
pub struct Index {
    actions: HashMap<ActionScope, ByResource>,
    /// Policies without a principal or resource of their own, by action.
    broad: HashMap<ActionScope, usize>,
}

/// An entity with its ancestors, as the index asks for it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub uid: &'a EntityUID,
    pub ancestors: &'a [EntityUID],
}

impl Index {
    /// Adds a policy under its number.
    pub fn add(&mut self, number: u32, policy: &Policy) {
        let actions: Vec<ActionScope> = match policy.action_constraint() {
            ActionConstraint::Any => vec![ActionScope::Any],
            ActionConstraint::Eq(uid) => vec![ActionScope::Eq(uid.as_ref().clone())],
            ActionConstraint::In(uids) => uids.iter().map(|u| ActionScope::In(u.as_ref().clone())).collect(),
        };
        let principal = Scope::of(policy.principal_constraint().as_inner());
        let resource = Scope::of(policy.resource_constraint().as_inner());
        for action in actions {
            if !principal.is_selective() && !resource.is_selective() {
                *self.broad.entry(action.clone()).or_default() += 1;
            }
            let by_resource = self.actions.entry(action).or_default();
            by_resource.entry(resource.clone()).or_default().entry(principal.clone()).or_default().push(number);
        }
    }

    /// Numbers of the policies that can concern the request, ascending.
    pub fn candidates(&self, principal: Place<'_>, action: Place<'_>, resource: Place<'_>) -> Vec<u32> {
        let mut found = Vec::new();
        let principals = Scope::keys(principal.uid, principal.ancestors);
        let resources = Scope::keys(resource.uid, resource.ancestors);
        let groups = std::iter::once(action.uid).chain(action.ancestors).map(|u| ActionScope::In(u.clone()));
        let actions = [ActionScope::Any, ActionScope::Eq(action.uid.clone())].into_iter().chain(groups);
        for action in actions {
            let Some(by_resource) = self.actions.get(&action) else { continue };
            for by_principal in resources.iter().filter_map(|r| by_resource.get(r)) {
                found.extend(principals.iter().filter_map(|p| by_principal.get(p)).flatten());
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The most policies with neither a principal nor a resource of their own that one action meets.
    pub fn broadest(&self) -> usize {
        let every = self.broad.get(&ActionScope::Any).copied().unwrap_or(0);
        let one = self.broad.iter().filter(|(action, _)| **action != ActionScope::Any).map(|(_, n)| *n).max();
        every + one.unwrap_or(0)
    }
}
