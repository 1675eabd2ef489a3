//! Whether the installed definition of TenantRollout has every field that this binary reads and writes. One that is older drops what it
//! does not know, without a word: a budget in Git would be none in the cluster.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{Api, Client, CustomResourceExt};

use crate::api::{TenantRollout, VERSION, crds};
use crate::source::kubernetes::{SourceError, call};

/// For how long a look holds.
const HOLDS: Duration = Duration::from_secs(10);
/// Fields that a message names.
const NAMED: usize = 3;

/// The installed definition, as it was seen last.
#[derive(Default)]
pub struct Definition(Mutex<Option<(Instant, Option<String>)>>);

impl Definition {
    /// The fields that it lacks, in words; None: it has them all. `fresh`: as it is now.
    pub async fn gap(&self, client: &Client, fresh: bool) -> Result<Option<String>, SourceError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, gap)) = known.clone().filter(|_| !fresh)
            && at.elapsed() < HOLDS
        {
            return Ok(gap);
        }
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        let served = match call("customresourcedefinitions", api.get(TenantRollout::crd_name())).await {
            Ok(served) => served,
            // An API server that is away starts nothing and takes nothing back.
            Err(error) => match known.filter(|_| !fresh) {
                Some((_, gap)) => return Ok(gap),
                None => return Err(error),
            },
        };
        let gap = lacks(&served);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gap) = gap.as_ref().filter(|g| last.as_ref().and_then(|l| l.1.as_ref()) != Some(*g)) {
            tracing::error!(lacks = %gap, "the installed definition of TenantRollout is older than this operator: no rollout starts");
        }
        *last = Some((Instant::now(), gap.clone()));
        Ok(gap)
    }
}

/// What a definition lacks, in words.
fn lacks(served: &CustomResourceDefinition) -> Option<String> {
    let ours = crds().into_iter().find(|c| c.spec.names.kind == served.spec.names.kind)?;
    let root = |crd: &CustomResourceDefinition| {
        let version = crd.spec.versions.iter().find(|v| v.name == VERSION)?;
        version.schema.as_ref()?.open_api_v3_schema.clone()
    };
    let (Some(ours), served) = (root(&ours), root(served)) else { return None };
    let mut missing = Vec::new();
    walk("", &ours, served.as_ref(), &mut missing);
    let more = missing.len().saturating_sub(NAMED);
    missing.truncate(NAMED);
    let mut text = missing.join(", ");
    if more > 0 {
        text = format!("{text} and {more} more fields");
    }
    (!text.is_empty()).then_some(text)
}

fn walk(path: &str, ours: &JSONSchemaProps, served: Option<&JSONSchemaProps>, missing: &mut Vec<String>) {
    let Some(served) = served else { return missing.push(path.to_owned()) };
    // It keeps what it does not know.
    if served.x_kubernetes_preserve_unknown_fields == Some(true) {
        return;
    }
    for (name, field) in ours.properties.iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(&path, field, served.properties.as_ref().and_then(|p| p.get(name)), missing);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &ours.items {
        let served = match &served.items {
            Some(JSONSchemaPropsOrArray::Schema(item)) => Some(&**item),
            _ => None,
        };
        walk(&format!("{path}[]"), item, served, missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> CustomResourceDefinition {
        crds().into_iter().find(|c| c.spec.names.kind == "TenantRollout").unwrap()
    }

    fn properties<'a>(schema: &'a mut JSONSchemaProps, path: &[&str]) -> &'a mut JSONSchemaProps {
        path.iter().fold(schema, |s, name| s.properties.as_mut().unwrap().get_mut(*name).unwrap())
    }

    #[test]
    fn what_is_dropped_is_named() {
        let mut crd = installed();
        assert_eq!(lacks(&crd), None);
        let root = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        properties(root, &["spec", "budgets"]).properties.as_mut().unwrap().remove("criticalDrift");
        assert_eq!(lacks(&crd).as_deref(), Some("spec.budgets.criticalDrift"));
        let root = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        properties(root, &["spec"]).properties.as_mut().unwrap().remove("stages");
        for field in ["candidate", "epoch", "percent"] {
            properties(root, &["status"]).properties.as_mut().unwrap().remove(field);
        }
        let words = lacks(&crd).unwrap();
        assert_eq!(words, "spec.budgets.criticalDrift, spec.stages, status.candidate and 2 more fields");
        let root = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        root.properties.as_mut().unwrap().clear();
        assert_eq!(lacks(&crd).as_deref(), Some("spec, status"));
    }
}
