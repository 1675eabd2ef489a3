//! What verification says of a PolicyPackage now: the one way by which a package may come into force.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use super::{Context, ReconcileError};
use crate::api::PolicyPackageSpec;
use crate::package::run_tests;
use crate::policy::{
    CompiledPackage, Refusal, RefusalCode, Side, Signer, Verified, VerifyContext, base_platform, digest,
    signature_needed, verify_first,
};
use crate::source::index::signers;
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

/// What verification says of a package.
pub struct Verdict {
    /// Digest that Remit computed.
    pub digest: String,
    /// Size, shape, signer and signature.
    pub signed: Result<Verified, Refusal>,
    /// Parsing and schema; None: not looked at, because of the signature.
    pub compiled: Option<Result<Arc<CompiledPackage>, Refusal>>,
    /// A test that fails.
    pub test: Option<Refusal>,
    /// Why the tenant's history keeps it out.
    pub history: Option<Refusal>,
}

impl Verdict {
    /// Fingerprint of the key (None: unsigned), or the first reason why the package may not come into force.
    pub fn overall(&self) -> Result<Option<String>, Refusal> {
        let verified = self.signed.as_ref().map_err(Clone::clone)?;
        if let Some(Err(refusal)) = &self.compiled {
            return Err(refusal.clone());
        }
        match self.test.as_ref().or(self.history.as_ref()) {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(verified.key_fingerprint.clone()),
        }
    }
}

/// Results of package tests, by package and platform: a test's outcome depends on nothing else.
#[derive(Default)]
pub struct TestResults(Mutex<HashMap<(String, String), Option<Refusal>>>);

/// Looks at a package: signature first, then its bytes, then its tests, then the tenant's history.
pub async fn judge(ctx: &Context, tenant: &TenantFacts, spec: &PolicyPackageSpec) -> Result<Verdict, ReconcileError> {
    let mark = ctx.store.high_water(&tenant.uid, &spec.package).await?;
    // A mark that can't be read is no mark that is missing: nothing is judged without it.
    let unreadable = |e: semver::Error| StoreError::Corrupt { what: "high-water mark", why: e.to_string() };
    let read = |(version, digest): (String, String)| semver::Version::parse(&version).map(|v| (v, digest));
    let high_water = mark.map(read).transpose().map_err(unreadable)?;
    let mut verify = VerifyContext {
        tenant: &tenant.name,
        is_platform: tenant.is_platform,
        installation: &ctx.installation,
        signers: &tenant.signers,
        signature_needed: tenant.signature_needed,
        now: jiff::Timestamp::now(),
        high_water,
    };
    let (mut signed, mut history) = (verify_first(spec, &verify), None);
    if let Err(refusal) = &signed
        && matches!(refusal.code, RefusalCode::Downgrade | RefusalCode::VersionReused)
    {
        history = Some(refusal.clone());
        verify.high_water = None;
        signed = verify_first(spec, &verify);
    }
    let mut verdict = Verdict { digest: digest(spec), signed, compiled: None, test: None, history };
    // Nothing parses bytes that nobody answers for.
    if verdict.signed.is_err() {
        return Ok(verdict);
    }
    let side = if tenant.is_platform { Side::Platform } else { Side::Tenant };
    let compiled = ctx.compiler.compile(spec, &verdict.digest, side).await?;
    let compiled = compiled.map_err(|refusals| {
        let unknown = || Refusal::new(RefusalCode::Malformed, "the package does not compile");
        refusals.first().cloned().unwrap_or_else(unknown)
    });
    if let Ok(package) = &compiled {
        verdict.test = failing_test(ctx, spec, package).await;
    }
    verdict.compiled = Some(compiled);
    Ok(verdict)
}

async fn failing_test(ctx: &Context, spec: &PolicyPackageSpec, package: &Arc<CompiledPackage>) -> Option<Refusal> {
    if spec.tests.is_empty() {
        return None;
    }
    let platform = match &ctx.snapshot.load().platform {
        Some(Ok(packages)) => packages.clone(),
        _ => vec![base_platform()],
    };
    let under = platform.iter().map(|p| p.digest()).collect::<Vec<_>>().join(" ");
    let key = (package.digest().to_owned(), under);
    let known = |r: &TestResults| r.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(result) = known(&ctx.tests) {
        return result;
    }
    let (tests, package) = (spec.clone(), package.clone());
    let run = tokio::task::spawn_blocking(move || run_tests(&tests, &package, &platform));
    let result = match run.await {
        // A verdict for want of time is none to remember: the next pass tries again.
        Ok(report) if report.cut_short => return report.refusal(),
        Ok(report) => report.refusal(),
        Err(error) => {
            tracing::error!(%error, "running the tests of a package failed");
            Some(Refusal::new(RefusalCode::TestFailed, "the tests could not be run: see the operator's log"))
        }
    };
    let mut results = ctx.tests.0.lock().unwrap_or_else(PoisonError::into_inner);
    // A platform change makes every old result useless; they are few and small until then.
    if results.len() > 4096 {
        results.clear();
    }
    results.insert(key, result.clone());
    result
}
