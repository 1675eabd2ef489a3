//! From a question to Cedar's entities: who asks, on what, for whom, and what may be believed of it.
//!
//! Uids are built from parts. Of an agent only Remit's own facts count; of an entity that the package lists, only the package's
//! values; of others, what the mapping marks, and from whom.

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, PartialValue, Value};
use cedar_policy_core::entities::SchemaType;
use cedar_policy_core::entities::conformance::typecheck_value_against_schematype;
use cedar_policy_core::entities::json::ValueParser;
use cedar_policy_core::entities::json::err::JsonDeserializationErrorContext;
use cedar_policy_core::evaluator::RestrictedEvaluator;
use cedar_policy_core::extensions::Extensions;
use serde_json::Map;
use smol_str::SmolStr;

use super::arguments::MAX_TEXT;
use super::catalogue::{self, bare, entity};
use super::compiled::{Action, CompiledPackage, Mapped};
use super::domain;
use super::query::{AgentFacts, CallerKind, DelegationFacts, Query, QueryError, Side, Subject};
use super::schema::{CORE_ACTIONS, TENANT_ACTION, TYPES, uid};
use crate::api::AttributeSource;

/// A question, as entities. Nothing in it depends on arguments or context.
pub(super) struct Resolved<'a> {
    pub principal: Arc<EntityUID>,
    pub principal_ancestors: Vec<EntityUID>,
    pub action: &'a Action,
    pub resource: Arc<EntityUID>,
    pub resource_ancestors: Vec<EntityUID>,
    /// What the package does not list itself.
    pub entities: Vec<Arc<Entity>>,
    /// Attributes that could have come with the call and did not: name in Cedar, path in the request.
    pub left_out: Vec<(SmolStr, String)>,
}

fn error(field: impl Into<String>, message: impl Into<String>) -> QueryError {
    QueryError { field: field.into(), message: message.into() }
}

/// One entity of the question, with what was said of it.
struct Asked {
    uid: EntityUID,
    ancestors: Vec<EntityUID>,
    entity: Option<Entity>,
    left_out: Vec<(SmolStr, String)>,
}

impl Asked {
    fn built(entity: Entity) -> Asked {
        let ancestors = entity.ancestors().cloned().collect();
        Asked { uid: entity.uid().clone(), ancestors, entity: Some(entity), left_out: Vec::new() }
    }

    fn listed(entity: &Entity) -> Asked {
        Asked {
            uid: entity.uid().clone(),
            ancestors: entity.ancestors().cloned().collect(),
            entity: None,
            left_out: Vec::new(),
        }
    }
}

impl CompiledPackage {
    /// Resolves a question, or says which field of it is wrong.
    pub(super) fn resolve<'a>(&'a self, q: &Query<'_>) -> Result<Resolved<'a>, QueryError> {
        limits(q)?;
        if q.action == "request_grant" {
            return Err(error("action.name", "a grant is asked for as such, not by a check"));
        }
        // To the platform, everything that is not a core action is the tenant's own.
        let own = self.side == Side::Platform && !CORE_ACTIONS.contains(&q.action);
        let name = if own { TENANT_ACTION } else { q.action };
        let action = self
            .actions
            .get(name)
            .filter(|a| !a.principals.is_empty() && !a.resources.is_empty())
            .ok_or_else(|| error("action.name", format!("the package knows no action {:?}", q.action)))?;
        let mut entities = Vec::new();
        let principal = self.principal(q, own, &mut entities)?;
        let resource = self.resource(q, own)?;
        if !action.principals.contains(principal.uid.entity_type()) {
            let message = format!("{:?} is not an action of {}", q.action, principal.uid.entity_type());
            return Err(error("subject.type", message));
        }
        if !action.resources.contains(resource.uid.entity_type()) {
            let message = format!("{:?} is not an action on {}", q.action, resource.uid.entity_type());
            return Err(error("resource.type", message));
        }
        let mut left_out = principal.left_out;
        left_out.extend(resource.left_out);
        entities.extend(principal.entity.into_iter().chain(resource.entity).map(Arc::new));
        self.complete(&mut entities);
        Ok(Resolved {
            principal: Arc::new(principal.uid),
            principal_ancestors: principal.ancestors,
            action,
            resource: Arc::new(resource.uid),
            resource_ancestors: resource.ancestors,
            entities,
            left_out,
        })
    }

    /// Adds, bare, what the entities of the question mention and nobody lists.
    fn complete(&self, entities: &mut Vec<Arc<Entity>>) {
        let mut known: HashSet<EntityUID> = entities.iter().map(|e| e.uid().clone()).collect();
        let mentioned: Vec<EntityUID> = entities.iter().flat_map(|e| catalogue::references(e)).collect();
        for uid in mentioned {
            if !self.entities.contains_key(&uid) && known.insert(uid.clone()) {
                entities.push(Arc::new(bare(&uid)));
            }
        }
    }

    fn principal(&self, q: &Query<'_>, own: bool, entities: &mut Vec<Arc<Entity>>) -> Result<Asked, QueryError> {
        match &q.subject {
            Subject::Agent { facts, delegation } => {
                let delegation = *delegation;
                for link in delegation.iter().flat_map(|d| &d.chain) {
                    if link.tenant != facts.tenant {
                        return Err(error("context.on_behalf_of", "a delegating agent is of the same tenant"));
                    }
                    entities.push(Arc::new(self.agent(link, None)));
                }
                // An agent in its own chain would stand twice; the principal is the one that counts.
                entities.retain(|e| *e.uid() != self.agent_uid(facts));
                Ok(Asked::built(self.agent(facts, delegation)))
            }
            Subject::Other { type_, id, .. } if own => Ok(Asked::built(entity(
                uid(&TYPES.tenant_subject, &format!("{}/{type_}/{id}", q.tenant)),
                [("name", Value::from(*id)), ("type", Value::from(*type_))],
                HashSet::new(),
            ))),
            Subject::Other { type_, id, properties } => {
                let built_in = match *type_ {
                    "user" => Some(&TYPES.user),
                    "service" => Some(&TYPES.service),
                    "agent" | "tool" | "domain" => return Err(error("subject.type", "this type is no such subject")),
                    _ => None,
                };
                if let Some(ty) = built_in {
                    no_properties("subject", properties)?;
                    return Ok(self.plain(uid(ty, id)));
                }
                let mapped = self.subjects.get(*type_);
                let mapped = mapped
                    .ok_or_else(|| error("subject.type", format!("the package maps no subject type {type_:?}")))?;
                self.mapped("subject", mapped, id, properties, q.caller)
            }
        }
    }

    fn resource(&self, q: &Query<'_>, own: bool) -> Result<Asked, QueryError> {
        let r = &q.resource;
        if own {
            let tier = q.tool.filter(|t| r.type_ == "tool" && t.name == r.id).map(|t| t.tier.as_str());
            let attributes = [Some(("name", r.id)), Some(("type", r.type_)), tier.map(|t| ("tier", t))];
            let attributes = attributes
                .into_iter()
                .flatten()
                .map(|(n, v)| (SmolStr::new_static(n), PartialValue::from(Value::from(v))));
            let id = uid(&TYPES.tenant_resource, &format!("{}/{}/{}", q.tenant, r.type_, r.id));
            return Ok(Asked::built(Entity::new_with_attr_partial_value(
                id,
                attributes,
                HashSet::new(),
                HashSet::new(),
                [],
            )));
        }
        match r.type_ {
            "tool" => self.tool_resource(q),
            "domain" => {
                no_properties("resource", r.properties)?;
                let name = domain::parse(r.id).map_err(|e| error("resource.id", e))?;
                let parents: HashSet<EntityUID> = name.parents().map(|p| uid(&TYPES.domain, p)).collect();
                Ok(Asked::built(entity(uid(&TYPES.domain, name.name()), [], parents)))
            }
            "user" | "service" => {
                no_properties("resource", r.properties)?;
                let ty = if r.type_ == "user" { &TYPES.user } else { &TYPES.service };
                Ok(self.plain(uid(ty, r.id)))
            }
            "agent" => Err(error("resource.type", "agents are subjects, not resources")),
            other => {
                let mapped = self.resources.get(other);
                let mapped = mapped
                    .ok_or_else(|| error("resource.type", format!("the package maps no resource type {other:?}")))?;
                self.mapped("resource", mapped, r.id, r.properties, q.caller)
            }
        }
    }

    /// A tool is what a package says it is. The platform's own list comes first; else it takes the tier, and only the tier, from
    /// the tenant's: a tenant's tool groups must not become the platform's.
    fn tool_resource(&self, q: &Query<'_>) -> Result<Asked, QueryError> {
        let id = uid(&TYPES.tool, q.resource.id);
        let given = q.tool.filter(|t| self.side == Side::Platform && t.name == q.resource.id);
        let asked = match (self.tools.get(q.resource.id), given) {
            (Some(_), _) => self.entities.get(&id).map(|e| Asked::listed(e)),
            (None, Some(tool)) => Some(Asked::built(catalogue::tool_entity(tool, &[]))),
            (None, None) => None,
        };
        let asked =
            asked.ok_or_else(|| error("resource.id", format!("the package knows no tool {:?}", q.resource.id)))?;
        // What the tenant's evaluation has checked need not fit the platform's own list.
        if self.side == Side::Tenant {
            let known = self.entities.get(&id);
            for (name, value) in q.resource.properties {
                let same = known.and_then(|e| e.get(name)).is_some_and(|k| same_scalar(k, value));
                if known.is_none_or(|e| e.get(name).is_none()) {
                    return Err(error(format!("resource.properties.{name}"), "tools have no such property"));
                }
                if !same {
                    let message = "this differs from the package, which alone says it; leave it out";
                    return Err(error(format!("resource.properties.{name}"), message));
                }
            }
        }
        Ok(asked)
    }

    /// A user or service: what the package lists of it, or its bare name.
    fn plain(&self, id: EntityUID) -> Asked {
        match self.entities.get(&id) {
            Some(known) => Asked::listed(known),
            None => Asked::built(bare(&id)),
        }
    }

    fn mapped(
        &self,
        side: &str,
        mapped: &Mapped,
        id: &str,
        properties: &Map<String, serde_json::Value>,
        caller: CallerKind,
    ) -> Result<Asked, QueryError> {
        if mapped.choices.as_ref().is_some_and(|c| !c.iter().any(|c| c == id)) {
            return Err(error(format!("{side}.id"), format!("{} has no entity {id:?}", mapped.ty)));
        }
        let id = uid(&mapped.ty, id);
        // An entity that is only mentioned somewhere is no more known than one that is not.
        let known = self.entities.get(&id).filter(|e| self.listed.contains(e.uid()));
        let mut attributes = Vec::with_capacity(properties.len());
        for (name, value) in properties {
            let field = || format!("{side}.properties.{name}");
            let Some((ty, source)) = mapped.attributes.get(name) else {
                return Err(error(field(), format!("{} has no attribute {name:?}", mapped.ty)));
            };
            let parsed = parse(&id, name, value, ty).map_err(|e| error(field(), e))?;
            if let Some(known) = known {
                let same = known.get(name).is_some_and(|k| matches!(k, PartialValue::Value(k) if *k == parsed));
                if !same {
                    return Err(error(
                        field(),
                        "this differs from the package's entities, which alone say it; leave it out",
                    ));
                }
                continue;
            }
            match (source, caller) {
                (None, _) => {
                    return Err(error(
                        field(),
                        "this comes from the package's entities only; the mapping marks no source",
                    ));
                }
                (Some(AttributeSource::Caller), CallerKind::Agent) => {
                    return Err(error(field(), "this comes from an enforcement point, not from the agent itself"));
                }
                (Some(_), _) => attributes.push((SmolStr::new(name), PartialValue::from(parsed))),
            }
        }
        if let Some(known) = known {
            return Ok(Asked::listed(known));
        }
        let left_out = mapped
            .attributes
            .iter()
            .filter(|(name, (_, source))| source.is_some() && !properties.contains_key(*name))
            .map(|(name, _)| (SmolStr::new(name), format!("{side}.properties.{name}")))
            .collect();
        let entity = Entity::new_with_attr_partial_value(id, attributes, HashSet::new(), HashSet::new(), []);
        Ok(Asked { left_out, ..Asked::built(entity) })
    }

    fn agent_uid(&self, facts: &AgentFacts) -> EntityUID {
        match self.side {
            Side::Tenant => uid(&TYPES.agent, &facts.name),
            Side::Platform => uid(&TYPES.agent, &format!("{}/{}", facts.tenant, facts.name)),
        }
    }

    /// An agent from Remit's facts. Tenant names hold no `/`, so `tenant/name` is nobody else's.
    fn agent(&self, facts: &AgentFacts, delegation: Option<&DelegationFacts>) -> Entity {
        let team = |name: &String| match self.side {
            Side::Tenant => uid(&TYPES.team, name),
            Side::Platform => uid(&TYPES.team, &format!("{}/{name}", facts.tenant)),
        };
        let mut parents: HashSet<EntityUID> = facts.teams.iter().map(team).collect();
        if !facts.type_.is_empty() {
            parents.insert(uid(&TYPES.agent_type, &facts.type_));
        }
        let chain = delegation.iter().flat_map(|d| &d.chain).map(|a| Value::from(self.agent_uid(a)));
        let user =
            delegation.and_then(|d| d.user.as_deref()).map(|u| ("delegated_by", Value::from(uid(&TYPES.user, u))));
        let attributes = [
            ("trust", Value::from(facts.trust)),
            ("type", Value::from(facts.type_.as_str())),
            ("suspended", Value::from(facts.suspended)),
            ("delegation_chain", Value::set(chain, None)),
        ];
        Entity::new_with_attr_partial_value(
            self.agent_uid(facts),
            attributes
                .into_iter()
                .chain(user)
                .map(|(name, value)| (SmolStr::new_static(name), PartialValue::from(value))),
            HashSet::new(),
            parents,
            facts.attributes.iter().map(|(k, v)| (SmolStr::new(k), PartialValue::from(Value::from(v.as_str())))),
        )
    }
}

/// Bytes of the longest text of the question that a policy can read, arguments apart.
pub(super) fn longest_text(q: &Query<'_>) -> usize {
    let properties = q.resource.properties.values().chain(subject_properties(q).into_iter().flat_map(Map::values));
    let agent = agent(q).into_iter().flat_map(|f| f.attributes.values().chain([&f.type_]).map(String::len));
    let names = match &q.subject {
        Subject::Agent { .. } => 0,
        Subject::Other { type_, id, .. } => type_.len().max(id.len()),
    };
    let own = [q.session.map_or(0, str::len), q.resource.id.len(), q.resource.type_.len(), q.action.len(), names];
    properties.map(longest_in_json).chain(agent).chain(own).max().unwrap_or(0)
}

fn agent<'a>(q: &Query<'a>) -> Option<&'a AgentFacts> {
    match &q.subject {
        Subject::Agent { facts, .. } => Some(facts),
        Subject::Other { .. } => None,
    }
}

fn subject_properties<'a>(q: &Query<'a>) -> Option<&'a Map<String, serde_json::Value>> {
    match &q.subject {
        Subject::Agent { .. } => None,
        Subject::Other { properties, .. } => Some(properties),
    }
}

/// A session's name comes with every call, also where the rest was looked up before.
pub(super) fn session_limit(q: &Query<'_>) -> Result<(), QueryError> {
    match q.session {
        Some(text) if text.is_empty() || text.len() > MAX_TEXT => {
            Err(error("context.session", format!("1 to {MAX_TEXT} bytes")))
        }
        _ => Ok(()),
    }
}

/// Texts that reach Cedar are bounded; arguments are when they are flattened.
fn limits(q: &Query<'_>) -> Result<(), QueryError> {
    let subject = match &q.subject {
        Subject::Agent { facts, .. } => &facts.name,
        Subject::Other { id, .. } => *id,
    };
    session_limit(q)?;
    for (field, text) in [("subject.id", subject), ("resource.id", q.resource.id)] {
        if text.is_empty() || text.len() > MAX_TEXT {
            return Err(error(field, format!("1 to {MAX_TEXT} bytes")));
        }
    }
    let named = [("resource", Some(q.resource.properties)), ("subject", subject_properties(q))];
    for (side, properties) in named {
        for (name, value) in properties.into_iter().flatten() {
            if longest_in_json(value) > MAX_TEXT {
                return Err(error(format!("{side}.properties.{name}"), format!("texts are at most {MAX_TEXT} bytes")));
            }
        }
    }
    Ok(())
}

/// The longest text in a JSON value. Bodies nest at most 64 deep.
fn longest_in_json(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(elements) => elements.iter().map(longest_in_json).max().unwrap_or(0),
        serde_json::Value::Object(members) => {
            members.iter().map(|(k, v)| k.len().max(longest_in_json(v))).max().unwrap_or(0)
        }
        _ => 0,
    }
}

fn no_properties(side: &str, properties: &Map<String, serde_json::Value>) -> Result<(), QueryError> {
    match properties.keys().next() {
        Some(name) => Err(error(format!("{side}.properties.{name}"), "entities of this type have no properties")),
        None => Ok(()),
    }
}

fn same_scalar(known: &PartialValue, given: &serde_json::Value) -> bool {
    let given = match given {
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Bool(b) => Value::from(*b),
        _ => return false,
    };
    matches!(known, PartialValue::Value(known) if *known == given)
}

/// Reads a JSON value as the schema's type.
fn parse(uid: &EntityUID, name: &str, value: &serde_json::Value, ty: &SchemaType) -> Result<Value, String> {
    let extensions = Extensions::all_available();
    let context = || JsonDeserializationErrorContext::EntityAttribute { uid: uid.clone(), attr: name.into() };
    let wrong = |_| format!("expected a value of type {ty}");
    let expression = ValueParser::new(extensions)
        .val_into_restricted_expr(value.clone(), Some(ty), &context)
        .map_err(|e| wrong(e.to_string()))?;
    // `interpret` fails on an unknown, which Cedar's JSON can express: a residual would be no value at all.
    let parsed =
        RestrictedEvaluator::new(extensions).interpret(expression.as_borrowed()).map_err(|e| wrong(e.to_string()))?;
    let partial = PartialValue::from(parsed.clone());
    typecheck_value_against_schematype(&partial, ty, extensions).map_err(|e| wrong(e.to_string()))?;
    Ok(parsed)
}
