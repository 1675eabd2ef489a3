//! What the admission webhook knows of the cluster: the watches' stores, never a call.

use std::sync::Arc;

use crate::api::{PolicyPackageSpec, TenantProfileSpec};
use crate::controllers::Context;
use crate::policy::{Refusal, VerifyContext, signature_needed};
use crate::server::admission::AdmissionContext;
use crate::source::index::signers;

/// Admission over the same objects that the controllers see.
pub struct Admission {
    ctx: Arc<Context>,
}

impl Admission {
    /// Over these.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }
}

impl AdmissionContext for Admission {
    fn prove(&self, spec: &PolicyPackageSpec, tenant: &str) -> (Vec<Refusal>, Vec<Refusal>) {
        let signers = signers(&self.ctx.objects);
        let is_platform = tenant == self.ctx.namespace;
        // The store knows more (signers that are gone, the high-water mark after a rollback). Here it is about warnings only.
        let rollout = self.ctx.objects.rollout_of(tenant);
        let stable = rollout.as_ref().and_then(|r| r.0.as_ref().ok()?.status.as_ref()?.stable.as_ref());
        let high_water = stable
            .filter(|s| s.package == spec.package)
            .and_then(|s| Some((semver::Version::parse(&s.version).ok()?, s.digest.clone())));
        let verify = VerifyContext {
            tenant,
            is_platform,
            installation: &self.ctx.installation,
            signers: &signers,
            signature_needed: signature_needed(self.ctx.mode, tenant, is_platform, &signers, false),
            now: jiff::Timestamp::now(),
            high_water,
        };
        crate::package::prove(spec, &verify)
    }

    fn platform_tenant(&self) -> &str {
        &self.ctx.namespace
    }

    fn platform_profile(&self) -> Option<TenantProfileSpec> {
        let profile = self.ctx.objects.profile_of(&self.ctx.namespace)?;
        profile.0.as_ref().ok().map(|p| p.spec.clone())
    }
}
