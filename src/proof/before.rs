//! What decides before any policy is asked and is none: which values of an enumerated type a package knows, which attributes it takes
//! and from whom, and which a call must bring because a forbid reads them.
//!
//! The solver hears nothing of it, and two sides with the same policies can differ in it. So values are compared as tools are, class by
//! class; everything else that differs leaves a kind of call open.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{EntityType, Expr, Var};
use cedar_policy_core::validator::ValidatorSchema;

use super::environment::{Askable, Environment};
use super::rewrite::join;
use crate::policy::portrait::MappedPortrait;
use crate::policy::{CompiledPackage, uid};

/// More values in a class are not told to the solver.
const MAX_VALUES: usize = 512;
/// Values that a sentence names.
const MAX_NAMED: usize = 4;

/// One package, as far as it decides before its policies do.
pub(super) struct Side<'a> {
    pub askable: &'a Askable,
    pub package: &'a CompiledPackage,
    pub schema: &'a ValidatorSchema,
    /// What it lists, as text.
    pub entities: Option<&'a str>,
}

/// Calls whose enumerated values both sides take, or only one of them.
#[derive(Clone)]
pub(super) struct ValueClass {
    /// What holds of these calls.
    pub given: Vec<Expr>,
    /// Whether each side takes them at all; the other refuses them before any policy is asked.
    pub taken: [bool; 2],
    /// What the candidate has more or less, for people.
    pub words: Vec<String>,
}

/// Sorts the calls of an environment by the values that the two sides know. Err: there are too many to tell them apart.
pub(super) fn value_classes(sides: [&Askable; 2], environment: &Environment) -> Result<Vec<ValueClass>, String> {
    let mut classes = vec![ValueClass { given: Vec::new(), taken: [true, true], words: Vec::new() }];
    let mapped = [
        (Var::Principal, sides.map(|s| s.mapped_subject(environment))),
        (Var::Resource, sides.map(|s| s.mapped_resource(environment))),
    ];
    for (var, sides) in mapped {
        let [Some(baseline), Some(candidate)] = sides else { continue };
        let (Some(old), Some(new)) = (&baseline.choices, &candidate.choices) else { continue };
        let (old, new): (BTreeSet<&str>, BTreeSet<&str>) =
            (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
        if old == new {
            continue;
        }
        let ty = &baseline.ty;
        let parts = [
            (&old & &new, [true, true], ""),
            (&new - &old, [false, true], "now"),
            (&old - &new, [true, false], "no more"),
        ];
        let mut next = Vec::new();
        for (values, taken, since) in parts.into_iter().filter(|(values, ..)| !values.is_empty()) {
            if values.len() > MAX_VALUES {
                return Err(format!("over {MAX_VALUES} values of {ty} on one side or both, and not the same"));
            }
            let words = (!since.is_empty()).then(|| format!("{ty} has {} {since}", named(&values)));
            let one_of = values.iter().map(|value| Expr::is_eq(Expr::var(var), Expr::val(uid(ty, value)))).collect();
            let one_of = join(one_of, Expr::or, false);
            next.extend(classes.iter().cloned().map(|class| ValueClass {
                given: class.given.into_iter().chain([one_of.clone()]).collect(),
                taken: [class.taken[0] && taken[0], class.taken[1] && taken[1]],
                words: class.words.into_iter().chain(words.clone()).collect(),
            }));
        }
        classes = next;
    }
    Ok(classes)
}

fn named(values: &BTreeSet<&str>) -> String {
    let shown: Vec<String> = values.iter().take(MAX_NAMED).map(|v| super::call::quoted(v)).collect();
    match values.len().saturating_sub(MAX_NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Why the same policies may say something else of a call of this kind. Nothing where one side takes no such call.
pub(super) fn differences(sides: [&Side<'_>; 2], environment: &Environment) -> Vec<String> {
    let mut found = Vec::new();
    let [old, new] = sides;
    if !sides.iter().all(|s| s.askable.takes(environment)) {
        return found;
    }
    let (action, words) = (&environment.action, environment.words());
    if old.schema.context_type(&environment.action_uid) != new.schema.context_type(&environment.action_uid) {
        found.push(format!("the two schemas give {action} another context"));
    }
    let mapped = |side: &Side<'_>| -> Vec<MappedPortrait> {
        let both = [side.askable.mapped_subject(environment), side.askable.mapped_resource(environment)];
        both.into_iter().flatten().cloned().collect()
    };
    let (before, after) = (mapped(old), mapped(new));
    for m in &before {
        if declaration(old.schema, &m.ty) != declaration(new.schema, &m.ty) {
            found.push(format!("the two schemas declare `{}` otherwise", m.ty));
        }
    }
    let sources = |all: &[MappedPortrait]| all.iter().map(|m| (m.name.clone(), m.sources.clone())).collect::<Vec<_>>();
    if sources(&before) != sources(&after) {
        found.push(format!("the two mappings take other attributes, or from others, in {words}"));
    }
    let demanded = |side: &Side<'_>, mapped: &[MappedPortrait]| -> BTreeSet<_> {
        let from_outside = mapped.iter().flat_map(|m| &m.sources).filter(|(_, source)| source.is_some());
        let names: BTreeSet<&str> = from_outside.map(|(name, _)| name.as_str()).collect();
        side.askable.actions.get(action).map(|action| side.package.demanded(action, &names)).unwrap_or_default()
    };
    let (before, after) = (demanded(old, &before), demanded(new, &after));
    let attributes: BTreeSet<String> = before.union(&after).map(|d| format!("`{}`", d.attribute)).collect();
    let attributes = attributes.into_iter().collect::<Vec<_>>().join(", ");
    if before != after {
        found.push(format!(
            "{words} is denied where it leaves out {attributes} and a forbid reads it: other forbids do"
        ));
    } else if !before.is_empty() && old.entities != new.entities {
        found.push(format!(
            "{words} must bring {attributes} of what the package does not list, and the two list otherwise"
        ));
    }
    found
}

/// What a schema says of a type, its values apart: None where it is enumerated.
fn declaration<'a>(schema: &'a ValidatorSchema, ty: &EntityType) -> Option<impl PartialEq + 'a> {
    use cedar_policy_core::validator::ValidatorEntityTypeKind::Enum;
    let declared = schema.get_entity_type(ty).filter(|t| !matches!(t.kind, Enum(_)))?;
    Some((declared.attributes(), declared.tag_type()))
}
