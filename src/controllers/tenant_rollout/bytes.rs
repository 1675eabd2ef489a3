//! The bytes of packages, as ControllerRevisions that the rollout owns: of what is in force, on its way or in the history.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::pass::Pass;
use super::{Context, ReconcileError, by_remit};
use crate::api::{GROUP, MANAGER, PolicyPackageSpec, RevisionStatus, TenantRollout, TenantRolloutStatus, VERSION};
use crate::lifecycle::rollout::revision_name;
use crate::source::index::find_bytes;
use crate::source::kubernetes::call;
use crate::source::recorded::{BYTES_LABEL, PackageBytes, check};

impl Pass<'_> {
    pub(super) async fn keep(
        &self,
        spec: &PolicyPackageSpec,
        digest: &str,
        key: Option<String>,
    ) -> Result<(), ReconcileError> {
        keep_bytes(self.ctx, &self.tenant.name, spec, digest, key, Some(owner(self.rollout)), 1).await
    }

    /// Makes the ControllerRevision of what is in force, or on its way, anew where somebody deleted it, or where its owner is a rollout that is gone
    /// (the garbage collector is about to take it).
    pub(super) async fn heal(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        for revision in status.stable.iter().chain(&status.candidate) {
            self.heal_one(revision).await?;
        }
        Ok(())
    }

    async fn heal_one(&self, stable: &RevisionStatus) -> Result<(), ReconcileError> {
        let name = stable.controller_revision.clone().unwrap_or_else(|| revision_name(&stable.digest));
        let there = self.ctx.objects.revisions.get(&ObjectRef::new(&name).within(&self.tenant.name));
        let uid = self.rollout.uid().unwrap_or_default();
        if there.is_some_and(|r| r.owner_references().iter().any(|o| o.uid == uid)) {
            return Ok(());
        }
        let Ok(bytes) = find_bytes(&self.ctx.objects, &self.tenant.name, stable, &self.tenant.signers) else {
            return Ok(());
        };
        if check(&bytes, stable, &self.tenant.name, &self.ctx.installation, &self.tenant.signers).is_ok() {
            self.keep(&bytes.spec, &stable.digest, bytes.public_key).await?;
        }
        Ok(())
    }

    /// Deletes bytes that no revision in the history refers to. Only what this rollout owns.
    pub(super) async fn prune(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        let entries = status.history.iter().map(|h| &h.revision).chain(&status.stable).chain(&status.candidate);
        let wanted: BTreeSet<String> = entries.map(|r| revision_name(&r.digest)).collect();
        let uid = self.rollout.uid().unwrap_or_default();
        let api = self.ctx.api::<ControllerRevision>(&self.tenant.name);
        let all = self.ctx.objects.revisions.state_filter(|r| {
            r.namespace().as_deref() == Some(&self.tenant.name)
                && !wanted.contains(&r.name_any())
                && r.owner_references().iter().any(|o| o.uid == uid)
        });
        for old in all {
            let preconditions = Preconditions { uid: old.uid(), resource_version: old.resource_version() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match call("controllerrevisions", api.delete(&old.name_any(), &params)).await {
                Ok(_) => {
                    tracing::info!(tenant = %self.tenant.name, name = %old.name_any(), "package bytes beyond the history limit deleted")
                }
                Err(error) if error.status().is_some_and(|s| s.is_not_found() || s.is_conflict()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn owner(rollout: &TenantRollout) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: TenantRollout::kind(&()).into_owned(),
        name: rollout.name_any(),
        uid: rollout.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// Keeps a package's bytes as a ControllerRevision. One of the same name with other bytes (the same content, signed anew) is replaced.
pub async fn keep_bytes(
    ctx: &Context,
    namespace: &str,
    spec: &PolicyPackageSpec,
    digest: &str,
    public_key: Option<String>,
    owner: Option<OwnerReference>,
    revision: i64,
) -> Result<(), ReconcileError> {
    let name = revision_name(digest);
    let bytes = PackageBytes { spec: spec.clone(), public_key };
    let data = serde_json::to_value(&bytes).map_err(|e| ReconcileError::Json("ControllerRevision.data", e))?;
    let api = ctx.api::<ControllerRevision>(namespace);
    let known = ctx.objects.revisions.get(&ObjectRef::new(&name).within(namespace));
    let (same_data, same_owner) = known.as_ref().map_or((false, false), |k| {
        let owned = owner.as_ref().is_none_or(|o| k.owner_references().iter().any(|r| r.uid == o.uid));
        (k.data.0 == data, owned)
    });
    if same_data && same_owner {
        return Ok(());
    }
    let mut kept =
        ControllerRevision { data: RawExtension(data), revision: Some(revision), ..ControllerRevision::default() };
    kept.metadata.name = Some(name.clone());
    kept.metadata.owner_references = owner.clone().map(|o| vec![o]);
    kept.labels_mut().insert(BYTES_LABEL.into(), "true".into());
    kept.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
    match call("controllerrevisions", api.create(&by_remit(), &kept)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {}
        Err(error) => return Err(error.into()),
    }
    let there = call("controllerrevisions", api.get_opt(&name)).await?;
    let right = |k: &ControllerRevision| {
        let owned = owner.as_ref().is_none_or(|o| k.owner_references().iter().any(|r| r.uid == o.uid));
        k.data == kept.data && owned && k.metadata.deletion_timestamp.is_none()
    };
    if there.as_ref().is_some_and(right) {
        return Ok(());
    }
    // `data` can't be changed, and the garbage collector takes what belongs to a rollout that is gone.
    tracing::info!(%namespace, %name, "package bytes are written anew: signed by another key, or owned by a rollout that is gone");
    if let Some(old) = there {
        let preconditions = Some(Preconditions { uid: old.uid(), resource_version: None });
        match call("controllerrevisions", api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }))
            .await
        {
            Err(error) if !error.status().is_some_and(|s| s.is_not_found() || s.is_conflict()) => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    call("controllerrevisions", api.create(&by_remit(), &kept)).await?;
    Ok(())
}
