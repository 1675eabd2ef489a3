//! What verification says of a package: the one order in which it is looked at, wherever it came from.
//!
//! Bytes and signature first; nothing parses bytes that nobody answers for. Then compilation, then the package's own tests, then the
//! tenant's history.

use std::sync::Arc;

use crate::api::PolicyPackageSpec;
use crate::policy::{CompiledPackage, Refusal, Verified, VerifyContext, check_high_water, digest, verify_bytes};

/// What verification says of a package.
#[derive(Clone, Debug)]
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
    /// What the bytes say without being parsed. Where `signed` is a refusal, nothing goes on to parse them.
    pub fn of_bytes(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>) -> Self {
        let signed = verify_bytes(spec, ctx);
        let history = match &signed {
            Ok(verified) => check_high_water(spec, &verified.digest, ctx.high_water.as_ref()).err(),
            Err(_) => None,
        };
        Self { digest: digest(spec), signed, compiled: None, test: None, history }
    }

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
