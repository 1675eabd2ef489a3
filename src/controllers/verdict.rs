//! What verification says of a PolicyPackage of the cluster now: what the cluster knows of its tenant, put to the one judge.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use super::{Context, ReconcileError};
use crate::api::{PolicyPackageSpec, RevokedReason};
use crate::policy::{CompiledPackage, Refusal, Signer, VerifyContext, base_platform, signature_needed};
use crate::source::index::{compromised, signers};
use crate::source::judge::{self, Said};
use crate::store::StoreError;

/// What is known of a tenant before any of its packages is looked at.
pub struct TenantFacts {
    /// Namespace.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether it is the operator's own.
    pub is_platform: bool,
    /// Every PolicySigner that can be read; one whose key was ever compromised here is so still, whatever its object says.
    pub signers: Vec<Signer>,
    /// Fingerprints that are declared compromised, or were when this namespace was looked at: also of signers that are gone.
    pub compromised: BTreeSet<String>,
    /// Whether a new package must be signed.
    pub signature_needed: bool,
}

impl TenantFacts {
    /// Reads them, and remembers for ever that a signer covers the tenant.
    pub async fn read(ctx: &Context, namespace: &Namespace) -> Result<Self, ReconcileError> {
        let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
        let is_platform = name == ctx.namespace;
        let mut signers = signers(&ctx.objects);
        let compromised = compromised_here(ctx, &uid, &mut signers).await?;
        let mut seen = ctx.store.signer_seen(&uid).await?;
        if !seen && signers.iter().any(|s| s.covers(&name, is_platform)) {
            ctx.store.remember_signer(&uid).await?;
            seen = true;
        }
        let signature_needed = signature_needed(ctx.mode, &name, is_platform, &signers, seen);
        Ok(Self { name, uid, is_platform, signers, compromised, signature_needed })
    }
}

/// Remembers for ever which keys are compromised, so that nobody makes one good again by deleting its PolicySigner.
async fn compromised_here(
    ctx: &Context,
    tenant_uid: &str,
    signers: &mut [Signer],
) -> Result<BTreeSet<String>, ReconcileError> {
    let mut all = ctx.store.compromised_keys(tenant_uid).await?;
    let new: Vec<String> = compromised(signers).difference(&all).cloned().collect();
    if !new.is_empty() {
        ctx.store.remember_compromised(tenant_uid, &new).await?;
        all.extend(new);
    }
    for signer in signers.iter_mut().filter(|s| all.contains(s.key.fingerprint())) {
        signer.revoked = Some(RevokedReason::Compromised);
    }
    Ok(all)
}

/// Why a package of the history could not come into force now: it does not compile under today's schema, or its tests fail under the
/// platform's packages of today. None: nothing stands in the way.
pub async fn obstacle(
    ctx: &Context,
    spec: &PolicyPackageSpec,
    digest: &str,
    patience: Duration,
) -> Result<Option<Refusal>, StoreError> {
    judge::obstacle(&ctx.compiler, &ctx.tests, spec, digest, platform(ctx), patience).await
}

/// The platform's packages of today, base first.
fn platform(ctx: &Context) -> Vec<Arc<CompiledPackage>> {
    match &ctx.snapshot.load().platform {
        Some(Ok(packages)) => packages.clone(),
        _ => vec![base_platform()],
    }
}

/// Looks at a package: signature first, then its bytes, then its tests, then the tenant's history. What takes longer than `patience` goes
/// on in the background.
pub async fn judge(
    ctx: &Context,
    tenant: &TenantFacts,
    spec: &PolicyPackageSpec,
    patience: Duration,
) -> Result<Said, ReconcileError> {
    let mark = ctx.store.high_water(&tenant.uid, &spec.package).await?;
    // A mark that can't be read is no mark that is missing: nothing is judged without it.
    let unreadable = |e: semver::Error| StoreError::Corrupt { what: "high-water mark", why: e.to_string() };
    let read = |(version, digest): (String, String)| semver::Version::parse(&version).map(|v| (v, digest));
    let high_water = mark.map(read).transpose().map_err(unreadable)?;
    let verify = VerifyContext {
        tenant: &tenant.name,
        is_platform: tenant.is_platform,
        installation: &ctx.installation,
        signers: &tenant.signers,
        signature_needed: tenant.signature_needed,
        now: jiff::Timestamp::now(),
        high_water,
    };
    Ok(judge::judge(&ctx.compiler, &ctx.tests, spec, &verify, platform(ctx), patience).await?)
}
