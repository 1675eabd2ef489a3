//! The kinds of calls that there are: action, type of who acts, type of what is acted on; and for tools, which of them the packages
//! tell apart.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy_core::ast::{EntityType, EntityUID};

use super::rewrite::ToolFacts;
use crate::policy::portrait::{ActionPortrait, MappedPortrait};
use crate::policy::{CompiledPackage, TYPES};

/// One kind of call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    /// Action as callers name it.
    pub action: String,
    pub action_uid: EntityUID,
    pub principal: EntityType,
    pub resource: EntityType,
    /// AuthZEN types.
    pub subject_type: String,
    pub resource_type: String,
}

impl Environment {
    /// Whether an agent acts.
    pub fn has_agent(&self) -> bool {
        self.principal == TYPES.agent
    }

    /// Whether a tool is acted on.
    pub fn has_tool(&self) -> bool {
        self.resource == TYPES.tool
    }

    /// In words.
    pub fn words(&self) -> String {
        format!("{} by {} on {}", self.action, self.subject_type, self.resource_type)
    }
}

/// What a package can be asked about.
pub(super) struct Askable {
    pub actions: BTreeMap<String, ActionPortrait>,
    pub subjects: Vec<MappedPortrait>,
    pub resources: Vec<MappedPortrait>,
}

impl Askable {
    pub fn of(package: &CompiledPackage) -> Self {
        Self {
            actions: package.action_portraits(),
            subjects: package.mapped_subjects(),
            resources: package.mapped_resources(),
        }
    }

    fn subject(&self, ty: &EntityType) -> Vec<String> {
        match ty {
            ty if *ty == TYPES.agent => vec!["agent".into()],
            ty if *ty == TYPES.user => vec!["user".into()],
            ty if *ty == TYPES.service => vec!["service".into()],
            ty => self.subjects.iter().filter(|m| m.ty == *ty).map(|m| m.name.clone()).collect(),
        }
    }

    fn resource(&self, ty: &EntityType) -> Vec<String> {
        match ty {
            ty if *ty == TYPES.tool => vec!["tool".into()],
            ty if *ty == TYPES.domain => vec!["domain".into()],
            ty if *ty == TYPES.user => vec!["user".into()],
            ty if *ty == TYPES.service => vec!["service".into()],
            ty => self.resources.iter().filter(|m| m.ty == *ty).map(|m| m.name.clone()).collect(),
        }
    }

    /// What the package says of who acts, where that is a type of its own.
    pub fn mapped_subject(&self, environment: &Environment) -> Option<&MappedPortrait> {
        self.subjects.iter().find(|m| m.ty == environment.principal && m.name == environment.subject_type)
    }

    /// The same of what is acted on.
    pub fn mapped_resource(&self, environment: &Environment) -> Option<&MappedPortrait> {
        self.resources.iter().find(|m| m.ty == environment.resource && m.name == environment.resource_type)
    }

    /// Whether calls of this kind reach the package's policies.
    pub fn takes(&self, environment: &Environment) -> bool {
        self.actions.get(&environment.action).is_some_and(|action| {
            action.uid == environment.action_uid
                && action.principals.contains(&environment.principal)
                && action.resources.contains(&environment.resource)
        }) && self.subject(&environment.principal).contains(&environment.subject_type)
            && self.resource(&environment.resource).contains(&environment.resource_type)
    }

    /// Every kind of call.
    fn environments(&self) -> Vec<Environment> {
        let mut found = Vec::new();
        for action in self.actions.values() {
            for principal in &action.principals {
                for resource in &action.resources {
                    for subject_type in self.subject(principal) {
                        for resource_type in self.resource(resource) {
                            found.push(Environment {
                                action: action.name.clone(),
                                action_uid: action.uid.clone(),
                                principal: principal.clone(),
                                resource: resource.clone(),
                                subject_type: subject_type.clone(),
                                resource_type,
                            });
                        }
                    }
                }
            }
        }
        found
    }
}

/// Every kind of call that one of the two packages takes, in a fixed order.
pub(super) fn environments(baseline: &Askable, candidate: &Askable) -> Vec<Environment> {
    let mut all = baseline.environments();
    for environment in candidate.environments() {
        if !all.contains(&environment) {
            all.push(environment);
        }
    }
    all.sort_by_key(|e| (e.action.clone(), e.subject_type.clone(), e.resource_type.clone()));
    all
}

/// Tools that no policy of either side can tell apart. The first stands for all.
#[derive(Clone, Debug)]
pub(super) struct ToolClass {
    pub names: Vec<String>,
}

/// Sorts the tools of both packages into classes.
pub(super) fn tool_classes(
    baseline: &CompiledPackage,
    candidate: &CompiledPackage,
    platform: &[std::sync::Arc<CompiledPackage>],
) -> Vec<ToolClass> {
    let everybody: Vec<&CompiledPackage> = platform.iter().map(AsRef::as_ref).chain([baseline, candidate]).collect();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    let mut server = false;
    for rule in everybody.iter().flat_map(|p| p.rule_portraits()) {
        named.extend(
            rule.literals
                .iter()
                .filter(|id| *id.entity_type() == TYPES.tool)
                .map(|id| <_ as AsRef<str>>::as_ref(id.eid())),
        );
        // The name of a tool is a text only to the platform, where a tenant's own action is on it.
        server |= rule.reads("server") || rule.reads("name");
    }
    let names: BTreeSet<&str> = baseline.tools().chain(candidate.tools()).map(|t| t.name.as_str()).collect();
    let mut classes: BTreeMap<Vec<Option<ToolFacts>>, ToolClass> = BTreeMap::new();
    for name in names {
        let facts = |package: &CompiledPackage| {
            package.tool(name).map(|t| {
                let mut facts = ToolFacts::listed(t);
                if !server && !named.contains(name) {
                    facts.name.clear();
                }
                facts
            })
        };
        let key = everybody.iter().map(|p| facts(p)).collect();
        classes.entry(key).or_insert_with(|| ToolClass { names: Vec::new() }).names.push(name.to_owned());
    }
    let mut classes: Vec<ToolClass> = classes.into_values().collect();
    classes.sort_by(|a, b| a.names.cmp(&b.names));
    classes
}
