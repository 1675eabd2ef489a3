//! What verification says of a PolicyPackage of the cluster now: what the cluster knows of its tenant, put to the one judge.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use super::{Context, ReconcileError};
use crate::api::PolicyPackageSpec;
use crate::policy::{Signer, VerifyContext, base_platform, signature_needed};
use crate::source::index::signers;
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
    /// Every PolicySigner that can be read.
    pub signers: Vec<Signer>,
    /// Whether a new package must be signed.
    pub signature_needed: bool,
}

impl TenantFacts {
    /// Reads them, and remembers for ever that a signer covers the tenant.
    pub async fn read(ctx: &Context, namespace: &Namespace) -> Result<Self, ReconcileError> {
        let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
        let is_platform = name == ctx.namespace;
        let signers = signers(&ctx.objects);
        let mut seen = ctx.store.signer_seen(&uid).await?;
        if !seen && signers.iter().any(|s| s.covers(&name, is_platform)) {
            ctx.store.remember_signer(&uid).await?;
            seen = true;
        }
        let signature_needed = signature_needed(ctx.mode, &name, is_platform, &signers, seen);
        Ok(Self { name, uid, is_platform, signers, signature_needed })
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
    let platform = match &ctx.snapshot.load().platform {
        Some(Ok(packages)) => packages.clone(),
        _ => vec![base_platform()],
    };
    Ok(judge::judge(&ctx.compiler, &ctx.tests, spec, &verify, platform, patience).await?)
}
