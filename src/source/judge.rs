//! The one way by which a package may come into force, in a cluster and in a folder: signature, bytes, tests, history.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::compile::Compiler;
use crate::api::PolicyPackageSpec;
use crate::package::{Verdict, run_tests};
use crate::policy::{CompiledPackage, Refusal, RefusalCode, Side, VerifyContext};
use crate::store::StoreError;

/// Results of package tests, by package and platform: a test's outcome depends on nothing else.
#[derive(Default)]
pub struct TestResults(Mutex<HashMap<(String, String), Option<Refusal>>>);

/// Looks at a package: signature first, then its bytes, then its tests, then the tenant's history. `platform`: the platform's
/// packages, base first. Errors only where the store can't be used: it is worth trying again.
pub async fn judge(
    compiler: &Compiler,
    results: &TestResults,
    spec: &PolicyPackageSpec,
    verify: &VerifyContext<'_>,
    platform: Vec<Arc<CompiledPackage>>,
) -> Result<Verdict, StoreError> {
    let mut verdict = Verdict::of_bytes(spec, verify);
    // Nothing parses bytes that nobody answers for.
    if verdict.signed.is_err() {
        return Ok(verdict);
    }
    let side = if verify.is_platform { Side::Platform } else { Side::Tenant };
    let compiled = compiler.compile(spec, &verdict.digest, side).await?;
    let compiled = compiled.map_err(|refusals| {
        let unknown = || Refusal::new(RefusalCode::Malformed, "the package does not compile");
        refusals.first().cloned().unwrap_or_else(unknown)
    });
    if let Ok(package) = &compiled {
        verdict.test = failing_test(results, spec, package, platform).await;
    }
    verdict.compiled = Some(compiled);
    Ok(verdict)
}

/// Runs the tests of a compiled package under these platform packages; the refusal, where one fails.
pub async fn failing_test(
    results: &TestResults,
    spec: &PolicyPackageSpec,
    package: &Arc<CompiledPackage>,
    platform: Vec<Arc<CompiledPackage>>,
) -> Option<Refusal> {
    if spec.tests.is_empty() {
        return None;
    }
    let under = platform.iter().map(|p| p.digest()).collect::<Vec<_>>().join(" ");
    let key = (package.digest().to_owned(), under);
    let known = |r: &TestResults| r.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(result) = known(results) {
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
            Some(Refusal::new(RefusalCode::TestFailed, "the tests could not be run: see Remit's log"))
        }
    };
    let mut results = results.0.lock().unwrap_or_else(PoisonError::into_inner);
    // A platform change makes every old result useless; they are few and small until then.
    if results.len() > 4096 {
        results.clear();
    }
    results.insert(key, result.clone());
    result
}
