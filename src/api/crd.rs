//! The CustomResourceDefinitions as they are installed: what the derive macros make of the types, and what those can't say.
//!
//! This is the only place to take a definition from: `Kind::crd()` alone lacks the rules over the whole object and the defaults of status.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;

use super::conditions::never_observed;
use super::{Agent, PolicyPackage, PolicyReplay, PolicySigner, TenantProfile, TenantRollout};
use super::{agent, policy_package, policy_replay, tenant_profile, tenant_rollout};

/// A CEL rule over the whole object, with the message a user reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// CEL; `self` is the object, `oldSelf` the one it replaces.
    pub(super) rule: &'static str,
    /// What is wrong and what would be right.
    pub(super) message: &'static str,
}

/// Every CustomResourceDefinition of Remit, by kind.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        finish(Agent::crd(), agent::RULES),
        finish(PolicyPackage::crd(), policy_package::RULES),
        finish(PolicyReplay::crd(), policy_replay::RULES),
        finish(PolicySigner::crd(), &[]),
        finish(TenantProfile::crd(), tenant_profile::RULES),
        with_stage_rules(finish(TenantRollout::crd(), tenant_rollout::RULES)),
    ]
}

/// The rules over `spec.stages`, of which there is one a place.
fn with_stage_rules(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
    for root in schemas {
        let spec = root.properties.as_mut().and_then(|p| p.get_mut("spec")?.properties.as_mut());
        if let Some(stages) = spec.and_then(|p| p.get_mut("stages")) {
            stages.x_kubernetes_validations = Some(tenant_rollout::stage_rules());
        }
    }
    crd
}

fn finish(mut crd: CustomResourceDefinition, rules: &[Rule]) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else { continue };
        refuse_null(root);
        unwrap_lines(root);
        if !rules.is_empty() {
            root.x_kubernetes_validations = Some(
                rules
                    .iter()
                    .map(|r| ValidationRule {
                        rule: r.rule.split_whitespace().collect::<Vec<_>>().join(" "),
                        message: Some(r.message.into()),
                        ..ValidationRule::default()
                    })
                    .collect(),
            );
        }
        let Some(properties) = root.properties.as_mut() else { continue };
        if let Some(spec) = properties.get_mut("spec") {
            // `kubectl explain KIND` shows the root's description; kube's own is about generated code.
            root.description = spec.description.replace("What a user asks for.".into());
        }
        if let Some(status) = properties.get_mut("status") {
            drop_defaults(status);
            status.description = Some("What Remit found out. Only Remit writes it.".into());
            // On the object and on the field: kstatus (kubectl wait, Flux, Argo CD) reads -1 as "in progress", also before the first visit.
            let never = never_observed();
            status.default = Some(JSON(serde_json::json!({ "observedGeneration": never })));
            if let Some(field) = status.properties.as_mut().and_then(|p| p.get_mut("observedGeneration")) {
                field.default = Some(JSON(never.into()));
            }
        }
    }
    crd
}

/// No field takes null: kept, it would make CEL's `has()` true of something that is not there.
fn refuse_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    each_child(schema, refuse_null);
}

/// Descriptions in paragraphs: the line breaks of the source would stand in the middle of `kubectl explain`'s.
fn unwrap_lines(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        *description = description.split("\n\n").map(|p| p.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    each_child(schema, unwrap_lines);
}

/// A default in status would be read as something that Remit has found out.
fn drop_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    each_child(schema, drop_defaults);
}

fn each_child(schema: &mut JSONSchemaProps, visit: fn(&mut JSONSchemaProps)) {
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(visit);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => visit(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(visit),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        visit(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(kind: &str) -> JSONSchemaProps {
        let crd = crds().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
        crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap()
    }

    fn walk(path: &str, schema: &JSONSchemaProps, found: &mut dyn FnMut(&str, &JSONSchemaProps)) {
        found(path, schema);
        for (name, child) in schema.properties.iter().flatten() {
            walk(&format!("{path}.{name}"), child, found);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            walk(&format!("{path}[]"), item, found);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
            walk(&format!("{path}{{}}"), value, found);
        }
    }

    #[test]
    fn package_spec_has_texts_only_and_no_defaults() {
        let root = schema("PolicyPackage");
        let spec = &root.properties.as_ref().unwrap()["spec"];
        let mut texts = 0;
        walk("spec", spec, &mut |path, s| {
            assert!(s.default.is_none(), "{path} has a default: the API server would change what was signed");
            let type_ = s.type_.as_deref();
            assert!(matches!(type_, Some("string" | "object" | "array")), "{path} is {type_:?}");
            texts += usize::from(type_ == Some("string"));
        });
        assert!(texts > 20, "the walk saw {texts} texts");
    }

    #[test]
    fn every_list_and_text_of_a_spec_is_bounded_and_described() {
        for crd in crds() {
            let kind = crd.spec.names.kind;
            let root = schema(&kind);
            walk(&kind, &root.properties.as_ref().unwrap()["spec"], &mut |path, s| {
                match s.type_.as_deref() {
                    Some("array") => assert!(s.max_items.is_some(), "{path} has no maxItems"),
                    Some("string") if s.enum_.is_none() && s.format.is_none() => {
                        assert!(
                            s.max_length.is_some() || s.pattern.as_deref().is_some_and(|p| p.contains("{64}")),
                            "{path} is unbounded"
                        );
                    }
                    _ => {}
                }
                if !path.ends_with(']') && !path.ends_with('}') {
                    assert!(s.description.as_ref().is_some_and(|d| d.len() > 4), "{path} has no description");
                }
            });
        }
    }

    #[test]
    fn status_says_never_observed_and_nothing_else_by_default() {
        for crd in crds() {
            let kind = crd.spec.names.kind;
            let root = schema(&kind);
            let status = &root.properties.as_ref().unwrap()["status"];
            assert_eq!(status.default, Some(JSON(serde_json::json!({"observedGeneration": -1}))), "{kind}");
            let mut defaults = Vec::new();
            walk("status", status, &mut |path, s| {
                if s.default.is_some() {
                    defaults.push(path.to_owned());
                }
            });
            assert_eq!(defaults, ["status", "status.observedGeneration"], "{kind}");
        }
    }
}
