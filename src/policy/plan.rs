//! What a question needs, looked up once: candidates, and the entities that they can reach. Checks repeat: the same agent calls
//! the same tool. Arguments, context and attributes that come with a call are never part of it.

use std::collections::{HashMap, hash_map::RandomState};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, PoisonError, RwLock};

use cedar_policy_core::ast::{Effect, Entity, EntityUID, EntityUIDEntry};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;

use super::catalogue;
use super::compiled::CompiledPackage;
use super::facts::Resolved;
use super::index::Place;
use super::query::{AgentFacts, DelegationFacts, Query, QueryError, Subject};
use crate::api::Tool;

/// Plans of one generation; there are two, so at most twice as many are kept.
const GENERATION: usize = 2048;
/// Plans with more candidates are made anew: evaluating them costs more than finding them.
const MAX_KEPT_CANDIDATES: usize = 256;
/// Plans of a resource in more groups are made anew: a name of 126 labels brings as many entities, and an agent may ask about any name.
const MAX_KEPT_ANCESTORS: usize = 16;
/// Questions with longer names are not kept, so that names can't fill the memory.
const MAX_KEPT_NAME: usize = 1024;

/// Candidates and entities of a question.
pub(super) struct Plan {
    key: Option<Key>,
    pub principal: EntityUIDEntry,
    pub action: EntityUIDEntry,
    pub resource: EntityUIDEntry,
    pub candidates: Vec<u32>,
    pub entities: Entities,
    /// Whether a candidate can reach the call's arguments.
    pub arguments: bool,
    /// Elements of all candidates' patterns.
    pub pattern: u64,
    /// Paths of attributes that a candidate forbid mentions and the caller left out.
    pub missing: Vec<String>,
}

/// Everything that a plan depends on.
struct Key {
    subject: SubjectKey,
    tenant: String,
    action: String,
    resource: (String, String),
    tool: Option<Tool>,
}

enum SubjectKey {
    Agent(AgentFacts, Option<DelegationFacts>),
    Other(String, String),
}

impl Key {
    /// None: the question is not to be kept.
    fn of(q: &Query<'_>) -> Option<Key> {
        let subject = match &q.subject {
            Subject::Agent { facts, delegation } => SubjectKey::Agent((*facts).clone(), delegation.cloned()),
            Subject::Other { type_, id, properties } if properties.is_empty() => {
                SubjectKey::Other((*type_).to_owned(), (*id).to_owned())
            }
            Subject::Other { .. } => return None,
        };
        let id_length = match &q.subject {
            Subject::Agent { .. } => 0,
            Subject::Other { id, type_, .. } => id.len() + type_.len(),
        };
        let length = id_length + q.resource.id.len() + q.resource.type_.len() + q.action.len();
        (q.resource.properties.is_empty() && length <= MAX_KEPT_NAME).then(|| Key {
            subject,
            tenant: q.tenant.to_owned(),
            action: q.action.to_owned(),
            resource: (q.resource.type_.to_owned(), q.resource.id.to_owned()),
            tool: q.tool.cloned(),
        })
    }

    /// Whether the plan answers this question. Compares everything: the hash only finds it.
    fn is_for(&self, q: &Query<'_>) -> bool {
        let subject = match (&self.subject, &q.subject) {
            (SubjectKey::Agent(facts, delegation), Subject::Agent { facts: asked, delegation: by }) => {
                facts == *asked && delegation.as_ref() == *by
            }
            (SubjectKey::Other(ty, id), Subject::Other { type_, id: asked, properties }) => {
                ty == type_ && id == asked && properties.is_empty()
            }
            _ => false,
        };
        subject
            && self.action == q.action
            && self.resource.1 == q.resource.id
            && self.resource.0 == q.resource.type_
            && q.resource.properties.is_empty()
            && self.tenant == q.tenant
            && self.tool.as_ref() == q.tool
    }
}

/// A bounded cache in two generations: when the young one is full it becomes the old one, and what the old one held is gone
/// unless it was asked for since. An agent that asks about ever new names evicts others' plans at worst, never answers.
#[derive(Default)]
pub(super) struct PlanCache {
    hasher: RandomState,
    generations: RwLock<[HashMap<u64, Arc<Plan>>; 2]>,
}

impl PlanCache {
    fn hash(&self, q: &Query<'_>) -> u64 {
        let subject = match &q.subject {
            Subject::Agent { facts, delegation } => (facts.name.as_str(), "", delegation.is_some()),
            Subject::Other { type_, id, .. } => (*id, *type_, false),
        };
        self.hasher.hash_one(Parts(subject, q.action, q.resource.type_, q.resource.id, q.tenant))
    }

    fn get(&self, hash: u64, q: &Query<'_>) -> Option<Arc<Plan>> {
        let generations = self.generations.read().unwrap_or_else(PoisonError::into_inner);
        let found =
            generations.iter().find_map(|g| g.get(&hash)).filter(|p| p.key.as_ref().is_some_and(|k| k.is_for(q)));
        let young = generations[0].contains_key(&hash);
        let found = found.cloned();
        drop(generations);
        if let (Some(plan), false) = (&found, young) {
            self.insert(hash, plan.clone());
        }
        found
    }

    fn insert(&self, hash: u64, plan: Arc<Plan>) {
        let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        if generations[0].len() >= GENERATION {
            let full = std::mem::take(&mut generations[0]);
            generations[1] = full;
        }
        generations[0].insert(hash, plan);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.generations.read().unwrap().iter().map(HashMap::len).sum()
    }
}

#[derive(Hash)]
struct Parts<'a>((&'a str, &'a str, bool), &'a str, &'a str, &'a str, &'a str);

impl CompiledPackage {
    /// The plan of a question, from the cache or made now.
    pub(super) fn plan(&self, q: &Query<'_>) -> Result<Arc<Plan>, QueryError> {
        let hash = self.plans.hash(q);
        if let Some(plan) = self.plans.get(hash, q) {
            // A plan says nothing of what comes with the call; sizes are checked where that is built.
            super::facts::session_limit(q)?;
            return Ok(plan);
        }
        let resolved = self.resolve(q)?;
        let mut plan = self.make(&resolved)?;
        let few = resolved.resource_ancestors.len() <= MAX_KEPT_ANCESTORS;
        if few && plan.candidates.len() <= MAX_KEPT_CANDIDATES {
            plan.key = Key::of(q);
        }
        let plan = Arc::new(plan);
        if plan.key.is_some() {
            self.plans.insert(hash, plan.clone());
        }
        Ok(plan)
    }

    fn make(&self, resolved: &Resolved<'_>) -> Result<Plan, QueryError> {
        let candidates = self.index.candidates(
            Place { uid: &resolved.principal, ancestors: &resolved.principal_ancestors },
            Place { uid: &resolved.action.uid, ancestors: &resolved.action.ancestors },
            Place { uid: &resolved.resource, ancestors: &resolved.resource_ancestors },
        );
        let rules = || candidates.iter().filter_map(|n| self.rules.get(*n as usize));
        let literals = rules().flat_map(|r| r.reads.literals.iter());
        let entities = if candidates.is_empty() { Entities::new() } else { self.reachable(resolved, literals)? };
        let forbids =
            |name: &str| rules().any(|r| r.effect == Effect::Forbid && r.reads.attributes.iter().any(|a| a == name));
        Ok(Plan {
            key: None,
            principal: EntityUIDEntry::Known { euid: resolved.principal.clone(), loc: None },
            action: EntityUIDEntry::Known { euid: resolved.action.uid.clone(), loc: None },
            resource: EntityUIDEntry::Known { euid: resolved.resource.clone(), loc: None },
            entities,
            arguments: rules().any(|r| r.reads.arguments),
            pattern: rules().fold(0, |sum: u64, r| sum.saturating_add(r.reads.pattern)),
            missing: resolved.left_out.iter().filter(|(name, _)| forbids(name)).map(|(_, path)| path.clone()).collect(),
            candidates,
        })
    }

    /// Principal, resource, delegators, the action, what candidates name, and transitively all that these refer to: no policy
    /// can reach another entity, so evaluating over these is evaluating over all.
    fn reachable<'a>(
        &self,
        resolved: &Resolved<'_>,
        literals: impl Iterator<Item = &'a EntityUID>,
    ) -> Result<Entities, QueryError> {
        let mut found: HashMap<EntityUID, Arc<Entity>> = HashMap::new();
        let mut next: Vec<EntityUID> = literals.cloned().collect();
        next.extend([
            resolved.principal.as_ref().clone(),
            resolved.action.uid.as_ref().clone(),
            resolved.resource.as_ref().clone(),
        ]);
        for entity in &resolved.entities {
            next.extend(catalogue::references(entity));
            found.insert(entity.uid().clone(), entity.clone());
        }
        while let Some(uid) = next.pop() {
            if let Some(entity) = self.entities.get(&uid).filter(|_| !found.contains_key(&uid)) {
                next.extend(catalogue::references(entity));
                found.insert(uid, entity.clone());
            }
        }
        closed(found.into_values())
    }
}

/// Entities whose ancestors are already transitively closed.
pub(super) fn closed(entities: impl Iterator<Item = Arc<Entity>>) -> Result<Entities, QueryError> {
    add(Entities::new(), entities)
}

/// Adds entities that nobody else names.
pub(super) fn add(to: Entities, entities: impl Iterator<Item = Arc<Entity>>) -> Result<Entities, QueryError> {
    to.add_entities(
        entities,
        None::<&NoEntitiesSchema>,
        TCComputation::AssumeAlreadyComputed,
        Extensions::all_available(),
    )
    .map_err(|e| QueryError { field: "resource".to_owned(), message: e.to_string() })
}
