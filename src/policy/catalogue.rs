//! What a package knows besides its policies: tools, entities, and the mapping of AuthZEN types.

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, Literal, PartialValue, Value, ValueKind};
use cedar_policy_core::entities::{EntityJsonParser, EntityTypeDescription as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, EntityTypeDescription, ValidatorSchema};
use smol_str::SmolStr;

use super::compiled::Mapped;
use super::refusal::{Refusal, RefusalCode};
use super::schema::{self, TYPES, uid};
use super::{arguments, scan};
use crate::api::{MappedType, PolicyPackageSpec, Sensitivity, Tool};

/// Name of the entities in messages.
pub const ENTITIES_FILE: &str = "entities.json";
const MAX_ENTITIES_BYTES: usize = 1024 * 1024;
const MAX_ENTITIES: usize = 10_000;
/// Pairs of entity and ancestor, all counted.
const MAX_ANCESTRY: usize = 500_000;
const MAX_TOOLS: usize = 4096;
const MAX_TOOL_GROUPS: usize = 32;

/// AuthZEN types that no mapping may take.
pub const BUILT_IN: [&str; 5] = ["agent", "user", "service", "tool", "domain"];

fn refuse(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal::new(code, message)
}

/// The tools of a package, by name.
pub fn tools(spec: &PolicyPackageSpec, refusals: &mut Vec<Refusal>) -> HashMap<String, Tool> {
    if spec.tools.len() > MAX_TOOLS {
        let message = format!("tools: {}; a package names at most {MAX_TOOLS}", spec.tools.len());
        refusals.push(refuse(RefusalCode::TooLarge, message));
        return HashMap::new();
    }
    let mut tools = HashMap::with_capacity(spec.tools.len());
    for (index, tool) in spec.tools.iter().enumerate() {
        let parts: Vec<&str> = tool.name.split('/').collect();
        let graphic = tool.name.bytes().all(|b| b.is_ascii_graphic());
        if parts.len() != 2 || parts.iter().any(|p| p.is_empty()) || !graphic || tool.name.len() > 256 {
            let message =
                format!("tools[{index}].name: {:?}: a tool is named `server/name`, in printable ASCII", tool.name);
            refusals.push(refuse(RefusalCode::Malformed, message));
        }
        if tool.groups.len() > MAX_TOOL_GROUPS {
            let message = format!("tools[{index}].groups: {:?} is in more than {MAX_TOOL_GROUPS} groups", tool.name);
            refusals.push(refuse(RefusalCode::TooLarge, message));
        }
        for group in &tool.groups {
            if matches!(group.as_str(), "read" | "write" | "admin") {
                let message =
                    format!("tools[{index}].groups: {group:?} is the group of a tier; set `tier` of {:?}", tool.name);
                refusals.push(refuse(RefusalCode::ReservedName, message));
            } else if group.is_empty() || group.len() > 128 {
                let message = format!("tools[{index}].groups: a group of {:?} has 1 to 128 bytes", tool.name);
                refusals.push(refuse(RefusalCode::Malformed, message));
            }
        }
        if tools.insert(tool.name.clone(), tool.clone()).is_some() {
            refusals.push(refuse(
                RefusalCode::DuplicateId,
                format!("tools[{index}].name: {:?} is there already", tool.name),
            ));
        }
    }
    tools
}

/// A tool as policies see it. Its tier is always one of its groups.
pub fn tool_entity(tool: &Tool, groups: &[String]) -> Entity {
    let server = tool.name.split_once('/').map_or(tool.name.as_str(), |(server, _)| server);
    let tier = tool.tier.as_str();
    let parents = std::iter::once(tier).chain(groups.iter().map(String::as_str)).map(|g| uid(&TYPES.tool_group, g));
    entity(
        uid(&TYPES.tool, &tool.name),
        [
            ("server", Value::from(server)),
            ("tier", Value::from(tier)),
            ("sensitive", Value::from(tool.sensitivity == Sensitivity::Sensitive)),
        ],
        parents.collect(),
    )
}

/// An entity without tags, from its parts.
pub fn entity<const N: usize>(
    uid: EntityUID,
    attributes: [(&'static str, Value); N],
    parents: HashSet<EntityUID>,
) -> Entity {
    let attributes = attributes.map(|(name, value)| (SmolStr::new_static(name), PartialValue::from(value)));
    Entity::new_with_attr_partial_value(uid, attributes, HashSet::new(), parents, [])
}

/// An entity of which nothing is known but that it is there.
pub fn bare(uid: &EntityUID) -> Entity {
    Entity::with_uid(uid.clone())
}

/// Every entity that an entity mentions: in attributes, tags and ancestors.
pub fn references(entity: &Entity) -> Vec<EntityUID> {
    let values = entity.attrs().map(|(_, v)| v).chain(entity.tags().map(|(_, v)| v));
    let mut found: Vec<EntityUID> = entity.ancestors().cloned().collect();
    for value in values {
        if let PartialValue::Value(value) = value {
            found.extend(value.all_literal_uids());
        }
    }
    found
}

/// The longest text among an entity's id, attributes and tags.
pub fn longest_text(entity: &Entity) -> usize {
    fn longest(value: &Value) -> usize {
        match value.value_kind() {
            ValueKind::Lit(Literal::String(text)) => text.len(),
            ValueKind::Set(set) => set.iter().map(longest).max().unwrap_or(0),
            ValueKind::Record(members) => members.values().map(longest).max().unwrap_or(0),
            ValueKind::Lit(_) | ValueKind::ExtensionValue(_) => 0,
        }
    }
    let values = entity.attrs().chain(entity.tags()).map(|(_, v)| match v {
        PartialValue::Value(value) => longest(value),
        PartialValue::Residual(_) => 0,
    });
    values.max().unwrap_or(0)
}

/// What is checked of entities.json before Cedar reads it: nesting, size, and how many ancestors it makes.
pub fn scan(text: &str) -> Result<(), Refusal> {
    scan::json(ENTITIES_FILE, text, MAX_ENTITIES_BYTES)?;
    let listed: Vec<serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| refuse(RefusalCode::Malformed, format!("{ENTITIES_FILE}:{}:{}: {e}", e.line(), e.column())))?;
    if listed.len() > MAX_ENTITIES {
        let message = format!("{ENTITIES_FILE}: {} entities; at most {MAX_ENTITIES} are read", listed.len());
        return Err(refuse(RefusalCode::TooLarge, message));
    }
    ancestry(&listed)
}

/// Cedar computes the ancestors of every entity; a long chain would make that more than memory holds.
fn ancestry(listed: &[serde_json::Value]) -> Result<(), Refusal> {
    fn name(index: usize, value: Option<&serde_json::Value>) -> Result<(&str, &str), Refusal> {
        let message = || format!("{ENTITIES_FILE}: entity {index}: uid and parents are written {{\"type\", \"id\"}}");
        value.and_then(uid_parts).ok_or_else(|| refuse(RefusalCode::Malformed, message()))
    }
    let mut parents: HashMap<(&str, &str), HashSet<(&str, &str)>> = HashMap::new();
    for (index, one) in listed.iter().enumerate() {
        // The same entity may stand there twice: what is said of it adds up.
        let of = parents.entry(name(index, one.get("uid"))?).or_default();
        for parent in one.get("parents").and_then(|p| p.as_array()).into_iter().flatten() {
            of.insert(name(index, Some(parent))?);
        }
    }
    let mut total = 0;
    for start in parents.keys() {
        let mut seen: HashSet<&(&str, &str)> = HashSet::new();
        let mut next = vec![start];
        while let Some(one) = next.pop() {
            for parent in parents.get(one).into_iter().flatten() {
                if seen.insert(parent) {
                    total += 1;
                    next.push(parent);
                }
            }
            if total > MAX_ANCESTRY {
                let message = format!(
                    "{ENTITIES_FILE}: over {MAX_ANCESTRY} pairs of entity and ancestor; make the groups flatter"
                );
                return Err(refuse(RefusalCode::TooCostly, message));
            }
        }
    }
    Ok(())
}

/// Type and id, as Cedar finds them, whatever stands beside them and in whatever order: two ways to write one entity must not make
/// it two.
fn uid_parts(value: &serde_json::Value) -> Option<(&str, &str)> {
    let text = |v: &serde_json::Value, key: &str| v.get(key).is_some_and(serde_json::Value::is_string);
    let value = value.get("__entity").filter(|v| text(v, "type") && text(v, "id")).unwrap_or(value);
    Some((value.get("type")?.as_str()?, value.get("id")?.as_str()?))
}

/// The listed entities, checked against the schema, with their ancestors.
pub fn entities(spec: &PolicyPackageSpec, schema: &ValidatorSchema, refusals: &mut Vec<Refusal>) -> Vec<Entity> {
    let Some(text) = &spec.entities else { return Vec::new() };
    let before = refusals.len();
    let listed: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    for (index, one) in listed.iter().enumerate() {
        let own = one.get("uid").map(|u| u.get("__entity").unwrap_or(u));
        let Some(ty) = own.and_then(|u| u.get("type")).and_then(|t| t.as_str()) else { continue };
        if ty.parse::<EntityType>().is_ok_and(|ty| !schema::is_listable(&ty)) {
            let id = own.and_then(|u| u.get("id")).and_then(|i| i.as_str()).unwrap_or_default();
            let at = text
                .find(&format!("\"{ty}\""))
                .map_or_else(|| ENTITIES_FILE.to_owned(), |o| scan::place(ENTITIES_FILE, text, o));
            refusals.push(refuse(
                RefusalCode::ReservedName,
                format!("{at}: entity {index}, {ty}::{id:?}: only Remit says what is true of {ty}; list User, Group, Service or types of your own"),
            ));
        }
    }
    if refusals.len() > before {
        return Vec::new();
    }
    let core = CoreSchema::new(schema);
    let parser = EntityJsonParser::new(Some(&core), Extensions::all_available(), TCComputation::ComputeNow);
    let parsed = match parser.from_json_str(text) {
        Ok(parsed) => parsed,
        Err(e) => {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), |s| format!("{e}: {s}"));
            refusals
                .push(refuse(RefusalCode::SchemaViolation, format!("{ENTITIES_FILE}: {}", schema::one_line(&cause))));
            return Vec::new();
        }
    };
    let mut listed: Vec<Entity> = parsed.iter().filter(|e| !e.uid().entity_type().is_action()).cloned().collect();
    listed.sort_by(|a, b| a.uid().cmp(b.uid()));
    for entity in &listed {
        let mut values = entity.attrs().chain(entity.tags());
        if !schema::is_listable(entity.uid().entity_type())
            || values.any(|(_, v)| matches!(v, PartialValue::Residual(_)))
        {
            refusals
                .push(refuse(RefusalCode::ReservedName, format!("{ENTITIES_FILE}: {} can't be listed", entity.uid())));
        }
        if longest_text(entity) > arguments::MAX_TEXT {
            let message = format!("{ENTITIES_FILE}: {}: texts are at most {} bytes", entity.uid(), arguments::MAX_TEXT);
            refusals.push(refuse(RefusalCode::TooLarge, message));
        }
    }
    listed
}

type Mappings = (HashMap<String, Mapped>, HashMap<String, Mapped>);

/// Subject and resource types that the package maps.
pub fn mapping(spec: &PolicyPackageSpec, schema: &ValidatorSchema, refusals: &mut Vec<Refusal>) -> Mappings {
    let Some(mapping) = &spec.mapping else { return Mappings::default() };
    (
        mapped(&mapping.subjects, "mapping.subjects", schema, refusals),
        mapped(&mapping.resources, "mapping.resources", schema, refusals),
    )
}

fn mapped(
    types: &[MappedType],
    field: &str,
    schema: &ValidatorSchema,
    refusals: &mut Vec<Refusal>,
) -> HashMap<String, Mapped> {
    let mut found = HashMap::new();
    for (index, one) in types.iter().enumerate() {
        let at = format!("{field}[{index}]");
        if BUILT_IN.contains(&one.type_.as_str()) {
            refusals.push(refuse(
                RefusalCode::ReservedName,
                format!("{at}.type: {:?} is built in and can't be mapped", one.type_),
            ));
            continue;
        }
        if one.type_.is_empty() || one.type_.len() > 128 {
            refusals.push(refuse(RefusalCode::Malformed, format!("{at}.type: 1 to 128 bytes")));
        }
        let ty: EntityType = match one.entity.parse() {
            Ok(ty) => ty,
            Err(_) => {
                let message = format!("{at}.entity: {:?} is not the name of an entity type", one.entity);
                refusals.push(refuse(RefusalCode::Malformed, message));
                continue;
            }
        };
        if schema::is_core(&ty) || ty.is_action() {
            let message = format!("{at}.entity: `{ty}` is Remit's own type; map one of your schema");
            refusals.push(refuse(RefusalCode::ReservedName, message));
            continue;
        }
        let Some(description) = EntityTypeDescription::new(schema, &ty) else {
            let message = format!("{at}.entity: the schema has no entity type `{ty}`");
            refusals.push(refuse(RefusalCode::SchemaViolation, message));
            continue;
        };
        let mut attributes: BTreeMap<String, _> = BTreeMap::new();
        let declared = schema.get_entity_type(&ty).map(|t| t.attributes().keys().cloned().collect::<Vec<_>>());
        for name in declared.unwrap_or_default() {
            if let Some(expected) = description.attr_type(&name) {
                attributes.insert(name.to_string(), (expected, None));
            }
        }
        for (number, attribute) in one.attributes.iter().enumerate() {
            match attributes.get_mut(&attribute.name) {
                Some((_, source @ None)) => *source = Some(attribute.from),
                Some(_) => {
                    let message = format!("{at}.attributes[{number}].name: {:?} is there already", attribute.name);
                    refusals.push(refuse(RefusalCode::DuplicateId, message));
                }
                None => {
                    let message =
                        format!("{at}.attributes[{number}].name: `{ty}` has no attribute {:?}", attribute.name);
                    refusals.push(refuse(RefusalCode::SchemaViolation, message));
                }
            }
        }
        let choices =
            description.enum_entity_eids().map(|ids| ids.iter().map(|i| AsRef::<str>::as_ref(i).to_owned()).collect());
        if found.insert(one.type_.clone(), Mapped { ty, attributes, choices }).is_some() {
            refusals.push(refuse(RefusalCode::DuplicateId, format!("{at}.type: {:?} is mapped already", one.type_)));
        }
    }
    found
}
