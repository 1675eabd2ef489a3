//! TenantRollouts as the HTTP surface reads and writes them for people.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::api::{
    DEFAULT_NAME, HumanAction, PackageSelector, PolicyPackageSpec, RevisionStatus, TenantRollout, TenantRolloutSpec,
    append_action,
};
use crate::controllers::Context;
use crate::controllers::verdict::obstacle;
use crate::lifecycle::evidence::Window;
use crate::policy::Refusal;
use crate::server::{BoxFuture, ControlError, RolloutControl};
use crate::source::index::{find_bytes, signers};
use crate::source::kubernetes::{SourceError, call};
use crate::source::recorded::check;
use crate::store::{RolloutRecord, StoreError};

/// How long a caller waits for tests.
const PATIENCE: Duration = Duration::from_secs(12);
/// Field manager of what people ask for by HTTP.
const HTTP_MANAGER: &str = "remit-http";
/// How often an entry is appended anew because somebody was faster.
const TRIES: usize = 10;
/// Steps of the record that are looked at for one rollout.
const STEPS: u32 = 1000;

/// Over the same objects that the controllers see.
pub struct Control(pub Arc<Context>);

impl Control {
    fn api(&self, tenant: &str) -> Api<TenantRollout> {
        Api::namespaced(self.0.client.clone(), tenant)
    }

    async fn get(&self, tenant: &str) -> Result<Option<TenantRollout>, ControlError> {
        call("tenantrollouts", self.api(tenant).get_opt(DEFAULT_NAME)).await.map_err(told)
    }

    async fn set(&self, tenant: &str, package: &PackageSelector) -> Result<TenantRollout, ControlError> {
        let api = self.api(tenant);
        if self.get(tenant).await?.is_none() {
            let spec = TenantRolloutSpec { package: Some(package.clone()), ..TenantRolloutSpec::default() };
            let params = PostParams { field_manager: Some(HTTP_MANAGER.into()), ..PostParams::default() };
            match call("tenantrollouts", api.create(&params, &TenantRollout::new(DEFAULT_NAME, spec))).await {
                Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {}
                made => return made.map_err(told),
            }
        }
        // Null takes away what stood there before: a digest excludes a name.
        let body = json!({"spec": {"package": {
            "name": package.name, "version": package.version, "digest": package.digest,
        }}});
        let params = PatchParams { field_manager: Some(HTTP_MANAGER.into()), ..PatchParams::default() };
        call("tenantrollouts", api.patch(DEFAULT_NAME, &params, &Patch::Merge(body))).await.map_err(told)
    }

    async fn add(&self, tenant: &str, action: &HumanAction) -> Result<(), ControlError> {
        let params = PatchParams { field_manager: Some(HTTP_MANAGER.into()), ..PatchParams::default() };
        let mut error = ControlError::Missing;
        for _ in 0..TRIES {
            let rollout = self.get(tenant).await?.ok_or(ControlError::Missing)?;
            let patch = append_action(&rollout, action).map_err(ControlError::Full)?;
            let (api, patch) = (self.api(tenant), Patch::Merge(patch));
            match call("tenantrollouts/status", api.patch_status(DEFAULT_NAME, &params, &patch)).await {
                Ok(_) => return Ok(()),
                Err(e) if e.status().is_some_and(|s| s.is_conflict()) => {
                    error = ControlError::Unavailable(e.to_string())
                }
                Err(e) => return Err(told(e)),
            }
        }
        Err(error)
    }
}

/// What the API server refuses it says to the person; what goes wrong on the way is not theirs to read.
fn told(error: SourceError) -> ControlError {
    match error.status() {
        Some(status) if status.code < 500 && status.code != 429 => ControlError::Refused(status.message.clone()),
        _ => ControlError::Unavailable(error.to_string()),
    }
}

impl RolloutControl for Control {
    fn rollout<'a>(&'a self, tenant: &'a str) -> BoxFuture<'a, Result<Option<TenantRollout>, ControlError>> {
        Box::pin(self.get(tenant))
    }

    fn select<'a>(
        &'a self,
        tenant: &'a str,
        package: &'a PackageSelector,
    ) -> BoxFuture<'a, Result<TenantRollout, ControlError>> {
        Box::pin(self.set(tenant, package))
    }

    fn append<'a>(&'a self, tenant: &'a str, action: &'a HumanAction) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(self.add(tenant, action))
    }

    fn package(&self, tenant: &str, revision: &RevisionStatus) -> Result<PolicyPackageSpec, String> {
        let signers = signers(&self.0.objects);
        let bytes = find_bytes(&self.0.objects, tenant, revision, &signers).map_err(|e| e.to_string())?;
        check(&bytes, revision, tenant, &self.0.installation, &signers).map_err(|e| e.to_string())?;
        Ok(bytes.spec)
    }

    fn obstacle<'a>(
        &'a self,
        spec: &'a PolicyPackageSpec,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Option<Refusal>, StoreError>> {
        Box::pin(obstacle(&self.0, spec, digest, PATIENCE))
    }

    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> BoxFuture<'a, Result<Window, StoreError>> {
        self.0.rollout.arms.window(tenant_uid, revision, rates_since, enough)
    }

    fn records<'a>(&'a self, tenant_uid: &'a str) -> BoxFuture<'a, Result<Vec<RolloutRecord>, StoreError>> {
        self.0.rollout.store.rollout_records(tenant_uid, STEPS)
    }
}
