//! The bytes of packages, as ControllerRevisions: of what is in force, on its way or in the history.
//!
//! They belong to the namespace, not to the rollout: whoever deletes that loses neither what is in force nor what could be gone back to.
//! Only Remit deletes them, beyond the history limit, and the namespace's own end.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use serde_json::json;

use super::pass::Pass;
use super::{Context, ReconcileError, by_remit};
use crate::api::{MANAGER, PolicyPackageSpec, RevisionStatus, TenantRolloutStatus};
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
        keep_bytes(self.ctx, &self.tenant.name, spec, digest, key, 1).await
    }

    /// Makes the ControllerRevision of what is in force, or on its way, anew where somebody deleted it. What former releases kept as a part
    /// of the rollout is made free of it: with its rollout the garbage collector would take it.
    pub(super) async fn heal(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        for revision in status.stable.iter().chain(&status.candidate) {
            self.heal_one(revision).await?;
        }
        let owned =
            self.ctx.objects.revisions.state_filter(|r| {
                r.namespace().as_deref() == Some(&self.tenant.name) && !r.owner_references().is_empty()
            });
        for revision in owned {
            self.free(&revision).await;
        }
        Ok(())
    }

    async fn heal_one(&self, revision: &RevisionStatus) -> Result<(), ReconcileError> {
        let name = revision.controller_revision.clone().unwrap_or_else(|| revision_name(&revision.digest));
        if self.ctx.objects.revisions.get(&ObjectRef::new(&name).within(&self.tenant.name)).is_some() {
            return Ok(());
        }
        let Ok(bytes) = find_bytes(&self.ctx.objects, &self.tenant.name, revision, &self.tenant.signers) else {
            return Ok(());
        };
        if check(&bytes, revision, &self.tenant.name, &self.ctx.installation, &self.tenant.signers).is_ok() {
            self.keep(&bytes.spec, &revision.digest, bytes.public_key).await?;
        }
        Ok(())
    }

    /// Takes the owner from kept bytes. That it did not work is for the next pass: nothing waits for it.
    async fn free(&self, revision: &ControllerRevision) {
        let api = self.ctx.api::<ControllerRevision>(&self.tenant.name);
        let patch = json!({"metadata": {"ownerReferences": null, "uid": revision.uid()}});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let name = revision.name_any();
        match call("controllerrevisions", api.patch(&name, &params, &Patch::Merge(patch))).await {
            Ok(_) => tracing::info!(tenant = %self.tenant.name, %name, "package bytes belong to no rollout any more"),
            Err(error) => {
                tracing::warn!(tenant = %self.tenant.name, %name, %error, "package bytes still belong to their rollout")
            }
        }
    }

    /// Deletes bytes that no revision in the history refers to. Where no history is known nothing is deleted.
    pub(super) async fn prune(&self, status: &TenantRolloutStatus) -> Result<(), ReconcileError> {
        let entries = status.history.iter().map(|h| &h.revision).chain(&status.stable).chain(&status.candidate);
        let wanted: BTreeSet<String> = entries.map(|r| revision_name(&r.digest)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let api = self.ctx.api::<ControllerRevision>(&self.tenant.name);
        let all = self.ctx.objects.revisions.state_filter(|r| {
            r.namespace().as_deref() == Some(&self.tenant.name)
                && !wanted.contains(&r.name_any())
                && r.labels().get(BYTES_LABEL).is_some_and(|v| v == "true")
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

/// Keeps a package's bytes as a ControllerRevision. One of the same name with other bytes (the same content, signed anew) is replaced.
pub async fn keep_bytes(
    ctx: &Context,
    namespace: &str,
    spec: &PolicyPackageSpec,
    digest: &str,
    public_key: Option<String>,
    revision: i64,
) -> Result<(), ReconcileError> {
    let name = revision_name(digest);
    let bytes = PackageBytes { spec: spec.clone(), public_key };
    let data = serde_json::to_value(&bytes).map_err(|e| ReconcileError::Json("ControllerRevision.data", e))?;
    let api = ctx.api::<ControllerRevision>(namespace);
    let known = ctx.objects.revisions.get(&ObjectRef::new(&name).within(namespace));
    if known.is_some_and(|k| k.data.0 == data && k.metadata.deletion_timestamp.is_none()) {
        return Ok(());
    }
    let mut kept =
        ControllerRevision { data: RawExtension(data), revision: Some(revision), ..ControllerRevision::default() };
    kept.metadata.name = Some(name.clone());
    kept.labels_mut().insert(BYTES_LABEL.into(), "true".into());
    kept.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
    match call("controllerrevisions", api.create(&by_remit(), &kept)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {}
        Err(error) => return Err(error.into()),
    }
    let there = call("controllerrevisions", api.get_opt(&name)).await?;
    let right = |k: &ControllerRevision| k.data == kept.data && k.metadata.deletion_timestamp.is_none();
    if there.as_ref().is_some_and(right) {
        return Ok(());
    }
    // `data` can't be changed.
    tracing::info!(%namespace, %name, "package bytes are written anew: signed by another key, or about to be deleted");
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
