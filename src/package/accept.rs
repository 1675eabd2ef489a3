//! The whole way of a package into force, and the part of it that admission can prove.
//!
//! Order: size, tenant, signer, digest, signature; then scan and compile; then tests; then the tenant's history.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Verdict;
use super::testing::{TestReport, run_tests, run_tests_while};
use crate::api::PolicyPackageSpec;
use crate::policy::{
    CompiledPackage, Refusal, Side, Verified, VerifyContext, base_platform, check_high_water, digest, examine,
};

/// How long admission runs tests: the API server waits 5 s for the whole answer.
const ADMISSION_TEST_TIME: Duration = Duration::from_secs(2);

/// A package that may come into force.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Digest and who signed.
    pub verified: Verified,
    /// Ready to be asked.
    pub compiled: Arc<CompiledPackage>,
    /// How its tests went: all passed.
    pub tests: TestReport,
}

/// Everything that a package has to pass before it comes into force, in its order. `platform`: the platform's packages, base first.
pub fn accept(
    spec: &PolicyPackageSpec,
    ctx: &VerifyContext<'_>,
    platform: &[Arc<CompiledPackage>],
) -> Result<Accepted, Vec<Refusal>> {
    let Verdict { signed, history, .. } = Verdict::of_bytes(spec, ctx);
    let verified = signed.map_err(|refusal| vec![refusal])?;
    let compiled = CompiledPackage::compile(spec, &verified.digest, side(ctx))?;
    let tests = run_tests(spec, &compiled, platform);
    if !tests.passed() {
        return Err(tests.refusals());
    }
    match history {
        Some(refusal) => Err(vec![refusal]),
        None => Ok(Accepted { verified, compiled, tests }),
    }
}

/// What admission says: (refusals that the bytes prove, warnings about all that depends on other objects). Nothing is hidden
/// behind an earlier warning: an unknown signer does not excuse a wrong digest or a syntax error.
pub fn prove(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>) -> (Vec<Refusal>, Vec<Refusal>) {
    let mut found = Vec::new();
    examine(spec, ctx, &mut found);
    // What is proven wrong already is not parsed.
    if !found.iter().any(|refusal| refusal.code.provable()) {
        let digest = digest(spec);
        match CompiledPackage::compile(spec, &digest, side(ctx)) {
            Err(refusals) => found.extend(refusals),
            Ok(compiled) => {
                let start = Instant::now();
                let go_on = || start.elapsed() < ADMISSION_TEST_TIME;
                found.extend(run_tests_while(spec, &compiled, &[base_platform()], go_on).refusals());
            }
        }
        found.extend(check_high_water(spec, &digest, ctx.high_water.as_ref()).err());
    }
    found.into_iter().partition(|refusal| refusal.code.provable())
}

/// The operator's own namespace holds platform packages.
fn side(ctx: &VerifyContext<'_>) -> Side {
    if ctx.is_platform { Side::Platform } else { Side::Tenant }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
