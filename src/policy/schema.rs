//! The core schema, and what a package's own schema may add to it.
//!
//! A package adds types and actions. It never redefines a core name, in any namespace, and never makes its actions members of
//! core ones: Cedar allows the latter, and then a permit for `call_tool` would cover whatever the tenant likes.

use std::sync::LazyLock;

use cedar_policy_core::ast::{Eid, EntityType, EntityUID};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::json_schema::Fragment;
use cedar_policy_core::validator::types::{Attributes, Type};
use cedar_policy_core::validator::{RawName, ValidatorSchema, ValidatorSchemaFragment};
use miette::Diagnostic;

use super::query::Side;
use super::refusal::{Refusal, RefusalCode};
use super::scan;

/// Name of the schema in messages.
pub const SCHEMA_FILE: &str = "schema.cedarschema";
const CORE: &str = include_str!("core.cedarschema");
const TENANT: &str = include_str!("tenant.cedarschema");
const PLATFORM: &str = include_str!("platform.cedarschema");

/// Core actions, evaluated as themselves on both sides.
pub const CORE_ACTIONS: [&str; 4] = ["call_tool", "network_access", "issue_credential", "request_grant"];
/// What the platform sees of a tenant's own action.
pub const TENANT_ACTION: &str = "tenant_action";

/// Names that no package declares, in any namespace.
const RESERVED_TYPES: [&str; 17] = [
    "Agent",
    "AgentType",
    "Team",
    "User",
    "Group",
    "Service",
    "Tool",
    "ToolGroup",
    "Domain",
    "Arguments",
    "Numbers",
    "Action",
    "TenantSubject",
    "TenantResource",
    "CallContext",
    "GrantContext",
    "TenantContext",
];

/// Core types whose entities a package may list: the others are Remit's own facts.
const LISTABLE_TYPES: [&str; 3] = ["User", "Group", "Service"];

/// An error of the package's schema, with its place.
struct SchemaText<'a>(&'a str);

impl SchemaText<'_> {
    fn refusal(&self, code: RefusalCode, error: &dyn Diagnostic) -> Refusal {
        let at = first_label(error).map_or_else(|| SCHEMA_FILE.to_owned(), |o| scan::place(SCHEMA_FILE, self.0, o));
        Refusal::new(code, format!("{at}: {}", one_line(&error.to_string())))
    }
}

/// Byte offset of an error's first label.
pub fn first_label(error: &dyn Diagnostic) -> Option<usize> {
    error.labels()?.map(|l| l.offset()).min()
}

/// Cedar's messages can span lines; conditions can't.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A name that is a constant of this program.
#[expect(clippy::expect_used, reason = "constants, and the tests build every one")]
fn root_type(name: &str) -> EntityType {
    name.parse().expect("a core type name")
}

/// Core entity types, parsed once: uids are built from these, never by formatting.
pub struct CoreTypes {
    pub agent: EntityType,
    pub agent_type: EntityType,
    pub team: EntityType,
    pub user: EntityType,
    pub service: EntityType,
    pub tool: EntityType,
    pub tool_group: EntityType,
    pub domain: EntityType,
    pub arguments: EntityType,
    pub numbers: EntityType,
    pub tenant_subject: EntityType,
    pub tenant_resource: EntityType,
    pub action: EntityType,
}

/// The one set of core entity types.
pub static TYPES: LazyLock<CoreTypes> = LazyLock::new(|| CoreTypes {
    agent: root_type("Agent"),
    agent_type: root_type("AgentType"),
    team: root_type("Team"),
    user: root_type("User"),
    service: root_type("Service"),
    tool: root_type("Tool"),
    tool_group: root_type("ToolGroup"),
    domain: root_type("Domain"),
    arguments: root_type("Arguments"),
    numbers: root_type("Numbers"),
    tenant_subject: root_type("TenantSubject"),
    tenant_resource: root_type("TenantResource"),
    action: root_type("Action"),
});

/// Builds a uid from its parts.
pub fn uid(ty: &EntityType, id: &str) -> EntityUID {
    EntityUID::from_components(ty.clone(), Eid::new(id), None)
}

/// Whether a type is a core one, so that no mapping may name it.
pub fn is_core(ty: &EntityType) -> bool {
    ty.name().is_unqualified() && RESERVED_TYPES.contains(&ty.to_string().as_str())
}

/// Whether a package's entities.json may hold entities of the type.
pub fn is_listable(ty: &EntityType) -> bool {
    !ty.is_action() && (!is_core(ty) || LISTABLE_TYPES.contains(&ty.to_string().as_str()))
}

fn core_text(side: Side) -> String {
    format!("{CORE}\n{}", if side == Side::Platform { PLATFORM } else { TENANT })
}

/// The tenant's core schema with `free` further truth values in every context: what a proof leaves open.
pub fn tenant_text(free: &[String]) -> String {
    let open: String = free.iter().map(|name| format!("{name}: Bool,\n  ")).collect();
    core_text(Side::Tenant).replace("risk: Long,", &format!("{open}risk: Long,"))
}

#[expect(clippy::expect_used, reason = "compiled-in texts, and the tests build both")]
fn core_fragment(side: Side) -> Fragment<RawName> {
    static TEXTS: LazyLock<[Fragment<RawName>; 2]> = LazyLock::new(|| {
        [Side::Platform, Side::Tenant].map(|side| {
            let (fragment, _) =
                Fragment::from_cedarschema_str(&core_text(side), Extensions::all_available()).expect("core schema");
            fragment
        })
    });
    TEXTS[usize::from(side == Side::Tenant)].clone()
}

/// The schema of one side with what the package adds. Call on a large stack, after [`scan::schema`].
pub fn build(side: Side, own: Option<&str>, declared: &[scan::Declaration]) -> Result<ValidatorSchema, Vec<Refusal>> {
    let extensions = Extensions::all_available();
    let mut fragments = vec![core_fragment(side)];
    if let Some(text) = own {
        let reserved = reserved_declarations(text, declared);
        if !reserved.is_empty() {
            return Err(reserved);
        }
        let source = SchemaText(text);
        let (fragment, _) = Fragment::from_cedarschema_str(text, extensions)
            .map_err(|e| vec![source.refusal(RefusalCode::SchemaSyntax, &e)])?;
        let memberships = core_memberships(text, &fragment);
        if !memberships.is_empty() {
            return Err(memberships);
        }
        fragments.push(fragment);
    }
    let source = SchemaText(own.unwrap_or_default());
    let resolved = fragments
        .into_iter()
        .map(ValidatorSchemaFragment::from_schema_fragment)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| vec![source.refusal(RefusalCode::SchemaViolation, &e)])?;
    let schema = ValidatorSchema::from_schema_fragments(resolved, extensions)
        .map_err(|e| vec![source.refusal(RefusalCode::SchemaViolation, &e)])?;
    let contexts = own_contexts(&schema);
    if contexts.is_empty() { Ok(schema) } else { Err(contexts) }
}

fn reserved_declarations(text: &str, declared: &[scan::Declaration]) -> Vec<Refusal> {
    let reserved = |d: &&scan::Declaration| match d.what {
        "action" => CORE_ACTIONS.contains(&d.name.as_str()) || d.name == TENANT_ACTION,
        _ => RESERVED_TYPES.contains(&d.name.as_str()),
    };
    declared
        .iter()
        .filter(reserved)
        .map(|d| {
            let at = scan::place(SCHEMA_FILE, text, d.offset);
            Refusal::new(
                RefusalCode::ReservedName,
                format!("{at}: `{}` is Remit's own {}; choose another name", d.name, d.what),
            )
        })
        .collect()
}

/// Declarations as Cedar itself read them, in case the scan saw fewer, and actions within core actions.
fn core_memberships(text: &str, fragment: &Fragment<RawName>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let reserved = |name: &str| {
        Refusal::new(RefusalCode::ReservedName, format!("{SCHEMA_FILE}: `{name}` is Remit's own name; choose another"))
    };
    for definition in fragment.0.values() {
        let types = definition.entity_types.keys().map(ToString::to_string);
        let commons = definition.common_types.keys().map(ToString::to_string);
        refusals.extend(types.chain(commons).filter(|n| RESERVED_TYPES.contains(&n.as_str())).map(|n| reserved(&n)));
        for (name, action) in &definition.actions {
            if CORE_ACTIONS.contains(&name.as_str()) || name == TENANT_ACTION {
                refusals.push(reserved(name));
            }
            let parents = action.member_of.iter().flatten();
            for parent in parents.filter(|p| CORE_ACTIONS.contains(&p.id.as_str()) || p.id == TENANT_ACTION) {
                let at = text.find(&format!("in {}", parent.id)).or_else(|| text.find(parent.id.as_str()));
                let at = at.map_or_else(|| SCHEMA_FILE.to_owned(), |o| scan::place(SCHEMA_FILE, text, o));
                refusals.push(Refusal::new(
                    RefusalCode::ReservedName,
                    format!("{at}: action `{name}` can't be a member of `{}`: core actions have no members", parent.id),
                ));
            }
        }
    }
    refusals
}

/// A package's action gets the context that Remit has, so it can ask for nothing else and under no other type.
fn own_contexts(schema: &ValidatorSchema) -> Vec<Refusal> {
    let core = context_attributes(schema, &uid(&TYPES.action, "call_tool"));
    let mut refusals = Vec::new();
    let mut actions: Vec<_> = schema.actions().filter(|a| !is_core_action(a)).collect();
    actions.sort();
    for action in actions {
        let Some(attributes) = context_attributes(schema, action) else { continue };
        let mut names: Vec<_> = attributes.iter().collect();
        names.sort_by_key(|(name, _)| name.to_owned());
        for (name, attribute) in names {
            let given = core.and_then(|c| c.get_attr(name));
            let problem = match given {
                None => "Remit knows no such value; use `context: CallContext`".to_owned(),
                Some(g) if g.attr_type != attribute.attr_type => format!("Remit gives it as `{}`", g.attr_type),
                Some(g) if attribute.is_required && !g.is_required => {
                    "it is not always there; make it optional".to_owned()
                }
                Some(_) => continue,
            };
            refusals.push(Refusal::new(
                RefusalCode::SchemaViolation,
                format!("{SCHEMA_FILE}: action {action}: context attribute `{name}`: {problem}"),
            ));
        }
    }
    refusals
}

/// Whether a uid is one of Remit's own actions.
pub fn is_core_action(action: &EntityUID) -> bool {
    let id: &str = action.eid().as_ref();
    *action.entity_type() == TYPES.action && (CORE_ACTIONS.contains(&id) || id == TENANT_ACTION)
}

fn context_attributes<'a>(schema: &'a ValidatorSchema, action: &EntityUID) -> Option<&'a Attributes> {
    match schema.context_type(action)? {
        Type::Record { attrs, .. } => Some(attrs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_build() {
        for side in [Side::Platform, Side::Tenant] {
            let schema = build(side, None, &[]).unwrap();
            for name in CORE_ACTIONS {
                assert!(schema.context_type(&uid(&TYPES.action, name)).is_some(), "{name}");
            }
            assert_eq!(schema.context_type(&uid(&TYPES.action, TENANT_ACTION)).is_some(), side == Side::Platform);
        }
    }

    #[test]
    fn reserved_types_are_exactly_the_core_ones() {
        let schema = build(Side::Platform, None, &[]).unwrap();
        for ty in schema.entity_type_names() {
            assert!(is_core(ty), "{ty}");
        }
    }
}
