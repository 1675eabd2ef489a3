//! What the history is told of a package that comes into force: its policies' texts, who wrote it and who applied it.
//!
//! A text that can't be found must not keep a package from coming into force, nor one that is compromised from leaving it: the history
//! then says less, and the log says so.

use jiff::Timestamp;
use kube::ResourceExt;

use super::Context;
use crate::api::PolicyPackageSpec;
use crate::lifecycle::rollout::revision;
use crate::policy::{digest, peek_statement, texts};
use crate::source::index::find_bytes;
use crate::store::{Arrival, InForceRow, Rollback};

/// For the row that is about to be put in force. `spec`: its bytes, where they were verified in this pass; else they are looked for.
pub fn arrival(
    ctx: &Context,
    row: &InForceRow,
    spec: Option<&PolicyPackageSpec>,
    rollback: Option<Rollback>,
    at: Timestamp,
) -> Arrival {
    let mut arrival = Arrival { rollback, ..Arrival::empty(at) };
    if row.digest.is_empty() {
        return arrival;
    }
    let found = match spec {
        Some(_) => None,
        None => {
            find_bytes(&ctx.objects, &row.tenant, &revision(row), &[]).ok().filter(|b| digest(&b.spec) == row.digest)
        }
    };
    let Some(spec) = spec.or(found.as_ref().map(|b| &b.spec)) else {
        tracing::error!(tenant = %row.tenant, digest = %row.digest, "the history of policies lacks a package whose bytes are gone");
        return arrival;
    };
    match texts(spec) {
        Ok(policies) => arrival.policies = policies,
        Err(refusal) => {
            tracing::error!(tenant = %row.tenant, digest = %row.digest, %refusal, "the history of policies lacks a package");
        }
    }
    // Of bytes that were looked for only the digest is known to be right, which does not cover the signature.
    let signed = found.is_none() && row.key_fingerprint.is_some();
    let statement = spec.signature.as_ref().filter(|_| signed).and_then(|s| peek_statement(s).ok());
    arrival.author = statement.and_then(|s| s.author).or_else(|| spec.author.clone());
    arrival.applied_by = applied_by(ctx, &row.tenant, &row.digest);
    arrival
}

/// Field manager that wrote the spec of the package of this digest.
fn applied_by(ctx: &Context, tenant: &str, wanted: &str) -> Option<String> {
    let packages = ctx.objects.packages_of(tenant);
    let package = packages.iter().filter_map(|p| p.0.as_ref().ok()).find(|p| digest(&p.spec) == wanted)?;
    let mut managers = package.managed_fields().iter().filter(|m| m.subresource.is_none());
    managers.next_back().and_then(|m| m.manager.clone()).map(|manager| format!("field manager {manager}"))
}
