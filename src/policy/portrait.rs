//! What a proof sees of a compiled package: rules, listed entities, actions, mapped types and the schema.
//!
//! Only reads. What a proof concludes from it is its own affair; nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy_core::ast::{ActionConstraint, Effect, Entity, EntityType, EntityUID, Expr, PolicyID};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::json_schema::{EntityTypeKind, Fragment, NamespaceDefinition};
use cedar_policy_core::validator::{RawName, ValidatorSchema, ValidatorSchemaFragment};

use super::compiled::{CompiledPackage, Mapped};
use super::query::{PolicyRef, Side};
pub(crate) use super::schema::TENANT_ACTION;
use super::schema::{CORE_ACTIONS, TYPES};
use super::{scan, schema};
use crate::api::AttributeSource;

/// One policy.
pub(crate) struct RulePortrait<'a> {
    /// `@id`.
    pub id: &'a PolicyID,
    pub reference: &'a Arc<PolicyRef>,
    pub effect: Effect,
    pub asks: bool,
    /// Scope and conditions as one expression.
    pub condition: &'a Expr,
    /// Entities that stand in it.
    pub literals: &'a [EntityUID],
    /// Whether it reads an attribute of this name.
    attributes: &'a [smol_str::SmolStr],
}

impl RulePortrait<'_> {
    /// Whether it reads an attribute of this name, of anything.
    pub fn reads(&self, attribute: &str) -> bool {
        self.attributes.iter().any(|a| a == attribute)
    }
}

/// One action that a check can ask about.
#[derive(Clone)]
pub(crate) struct ActionPortrait {
    /// As callers name it.
    pub name: String,
    pub uid: EntityUID,
    pub ancestors: Vec<EntityUID>,
    pub principals: Vec<EntityType>,
    pub resources: Vec<EntityType>,
}

/// One type that callers may name, besides Remit's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MappedPortrait {
    /// AuthZEN type.
    pub name: String,
    pub ty: EntityType,
    /// Ids of an enumerated type.
    pub choices: Option<Vec<String>>,
    /// Every attribute of the schema, and from whom it may come with a call.
    pub sources: BTreeMap<String, Option<AttributeSource>>,
}

/// An attribute that calls must bring: a forbid reads it, whatever that says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Demanded {
    pub attribute: String,
    /// Of whose calls, as the forbid's scope names them.
    principal: String,
    /// On what.
    resource: String,
}

impl CompiledPackage {
    /// Every policy.
    pub(crate) fn rule_portraits(&self) -> impl Iterator<Item = RulePortrait<'_>> {
        self.rules.iter().map(|rule| RulePortrait {
            id: &rule.id,
            reference: &rule.reference,
            effect: rule.effect,
            asks: rule.asks,
            condition: &rule.condition,
            literals: &rule.reads.literals,
            attributes: &rule.reads.attributes,
        })
    }

    /// What entities.json lists, with all ancestors.
    pub(crate) fn listed_entities(&self) -> impl Iterator<Item = &Entity> {
        self.listed.iter().filter_map(|uid| self.entities.get(uid)).map(Arc::as_ref)
    }

    /// Actions by name. `request_grant` is asked for as such, never by a check.
    pub(crate) fn action_portraits(&self) -> BTreeMap<String, ActionPortrait> {
        let checked = self.actions.iter().filter(|(name, _)| *name != "request_grant");
        checked
            .map(|(name, action)| {
                let portrait = ActionPortrait {
                    name: name.clone(),
                    uid: action.uid.as_ref().clone(),
                    ancestors: action.ancestors.clone(),
                    principals: action.principals.clone(),
                    resources: action.resources.clone(),
                };
                (name.clone(), portrait)
            })
            .collect()
    }

    /// Which of these attributes forbids of an action read. The gates deny a call that could bring one and leaves it out, before it is
    /// known whether the forbid matches.
    pub(crate) fn demanded(&self, action: &ActionPortrait, names: &BTreeSet<&str>) -> BTreeSet<Demanded> {
        let mut found = BTreeSet::new();
        for rule in self.rules.iter().filter(|r| r.effect == Effect::Forbid) {
            let Some(policy) = self.set.get(&rule.id) else { continue };
            let is_of = |uid: &EntityUID| *uid == action.uid || action.ancestors.contains(uid);
            let concerns = match policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::Eq(uid) => is_of(uid),
                ActionConstraint::In(uids) => uids.iter().any(|uid| is_of(uid)),
            };
            let read = rule.reads.attributes.iter().filter(|a| concerns && names.contains(a.as_str()));
            found.extend(read.map(|attribute| Demanded {
                attribute: attribute.to_string(),
                principal: policy.principal_constraint().as_expr().to_string(),
                resource: policy.resource_constraint().as_expr().to_string(),
            }));
        }
        found
    }

    /// Mapped types of subjects, sorted.
    pub(crate) fn mapped_subjects(&self) -> Vec<MappedPortrait> {
        mapped(&self.subjects)
    }

    /// Mapped types of resources, sorted.
    pub(crate) fn mapped_resources(&self) -> Vec<MappedPortrait> {
        mapped(&self.resources)
    }
}

fn mapped(types: &std::collections::HashMap<String, Mapped>) -> Vec<MappedPortrait> {
    let mut all: Vec<_> = types
        .iter()
        .map(|(name, m)| MappedPortrait {
            name: name.clone(),
            ty: m.ty.clone(),
            choices: m.choices.clone(),
            sources: m.attributes.iter().map(|(name, (_, source))| (name.clone(), *source)).collect(),
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Whether an action is one of Remit's own, evaluated as itself on both sides.
pub(crate) fn is_core_action(name: &str) -> bool {
    CORE_ACTIONS.contains(&name)
}

/// Whether entities of this type are what entities.json alone says of them.
pub(crate) fn is_listed_type(ty: &EntityType) -> bool {
    schema::is_listable(ty)
}

/// The groups that are above a network name.
pub(crate) fn domain_parents(name: &str) -> Option<Vec<String>> {
    let domain = super::domain::parse(name).ok().filter(|d| d.name() == name)?;
    Some(domain.parents().map(str::to_owned).collect())
}

/// Whether an entity carries the arguments of the call that is asked about.
pub(crate) fn is_of_call(uid: &EntityUID) -> bool {
    super::evaluate::is_of_call(uid)
}

/// The entities that carry a call's arguments: texts, and numbers.
pub(crate) fn call_entities() -> (EntityUID, EntityUID) {
    (schema::uid(&TYPES.arguments, super::evaluate::CALL), schema::uid(&TYPES.numbers, super::evaluate::CALL))
}

/// The schema that a package was compiled with. Call on a large stack.
pub(crate) fn schema_of(side: Side, own: Option<&str>) -> Result<ValidatorSchema, String> {
    let declared = own.map(|text| scan::schema(schema::SCHEMA_FILE, text)).transpose().map_err(|e| e.to_string())?;
    schema::build(side, own, &declared.unwrap_or_default())
        .map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// One tenant's schema that holds what both packages declare, with `free` further truth values in the context. Err: the two declare
/// something of one name otherwise. Call on a large stack, with schemas that compiled.
pub(crate) fn joint_schema(own: [Option<&str>; 2], free: &[String]) -> Result<ValidatorSchema, String> {
    let extensions = Extensions::all_available();
    let parse = |text: &str| -> Result<Fragment<RawName>, String> {
        Fragment::from_cedarschema_str(text, extensions).map(|(f, _)| f).map_err(|e| e.to_string())
    };
    let mut core = parse(&schema::tenant_text(free))?;
    for text in own.into_iter().flatten() {
        for (namespace, definition) in parse(text)?.0 {
            match core.0.get_mut(&namespace) {
                Some(there) => merge(there, definition)?,
                None => {
                    core.0.insert(namespace, definition);
                }
            }
        }
    }
    let fragment = ValidatorSchemaFragment::from_schema_fragment(core).map_err(|e| e.to_string())?;
    ValidatorSchema::from_schema_fragments([fragment], extensions).map_err(|e| e.to_string())
}

fn merge(into: &mut NamespaceDefinition<RawName>, from: NamespaceDefinition<RawName>) -> Result<(), String> {
    let differs = |name: String| format!("the two schemas declare `{name}` otherwise");
    for (name, ty) in from.common_types {
        match into.common_types.get(&name) {
            Some(there) if *there != ty => return Err(differs(name.to_string())),
            _ => into.common_types.insert(name, ty),
        };
    }
    for (name, ty) in from.entity_types {
        if let (Some(EntityTypeKind::Enum { choices: there }), EntityTypeKind::Enum { choices }) =
            (into.entity_types.get_mut(&name).map(|ty| &mut ty.kind), &ty.kind)
        {
            // Which values a side takes is asked apart: here there are those of both.
            let further: Vec<_> = choices.iter().filter(|c| !there.contains(c)).cloned().collect();
            there.extend(further);
            continue;
        }
        match into.entity_types.get(&name) {
            Some(there) if *there != ty => return Err(differs(name.to_string())),
            _ => into.entity_types.insert(name, ty),
        };
    }
    for (name, action) in from.actions {
        match into.actions.get(&name) {
            Some(there) if *there != action => return Err(differs(name.to_string())),
            _ => into.actions.insert(name, action),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_declare_alike_is_joined_and_what_differs_is_said() {
        let (a, b) = ("entity Doc { open: Bool };", "entity Doc { open: Bool }; entity Folder;");
        assert!(joint_schema([None, None], &["free_0".into()]).is_ok());
        let joint = joint_schema([Some(a), Some(b)], &[]).unwrap();
        assert!(joint.entity_type_names().any(|t| t.to_string() == "Folder"));
        let error = joint_schema([Some(a), Some("entity Doc { open: Long };")], &[]).unwrap_err();
        assert!(error.contains("`Doc`"), "{error}");
        let (a, b) = ("entity Env enum [\"dev\"];", "entity Env enum [\"prod\", \"dev\"];");
        assert!(joint_schema([Some(a), Some(b)], &[]).is_ok(), "the values of both");
        assert!(joint_schema([Some(a), Some("entity Env;")], &[]).unwrap_err().contains("`Env`"));
    }
}
