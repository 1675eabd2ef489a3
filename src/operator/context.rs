//! What the admission webhook knows of the cluster: the watches' stores, never a call. Packages are parsed as everywhere: with the
//! intent noted first, and never again once they ended a parser.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::runtime::Handle;

use crate::api::{PolicyPackageSpec, TenantProfileSpec};
use crate::controllers::Context;
use crate::policy::{Refusal, RefusalCode, VerifyContext, digest, signature_needed};
use crate::server::admission::AdmissionContext;
use crate::source::index::signers;
use crate::store::{Store, StoreError};

/// Admission over the same objects that the controllers see.
pub struct Admission {
    ctx: Arc<Context>,
    runtime: Handle,
}

impl Admission {
    /// Over these. Called within the runtime.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, runtime: Handle::current() }
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
        let store = self.ctx.store.clone();
        noted(&self.runtime, store.as_ref(), &digest(spec), || crate::package::prove(spec, &verify))
    }

    fn applied(&self, spec: &PolicyPackageSpec, tenant: &str, username: &str) {
        let digest = digest(spec);
        let namespace = self.ctx.objects.namespaces.get(&ObjectRef::new(tenant));
        let Some(uid) = namespace.and_then(|n| n.uid()) else {
            tracing::warn!(tenant, "who applied a package could not be noted: its namespace is not known yet");
            return;
        };
        let noted = self.ctx.store.note_applied(&uid, &digest, username, jiff::Timestamp::now());
        if let Err(error) = self.runtime.block_on(noted) {
            tracing::warn!(%error, tenant, "who applied a package could not be noted: its history names the field manager");
        }
    }

    fn platform_tenant(&self) -> &str {
        &self.ctx.namespace
    }

    fn platform_profile(&self) -> Option<TenantProfileSpec> {
        let profile = self.ctx.objects.profile_of(&self.ctx.namespace)?;
        profile.0.as_ref().ok().map(|p| p.spec.clone())
    }
}

/// What the bytes prove wrong, and what else stands in the way.
type Proved = (Vec<Refusal>, Vec<Refusal>);

/// Runs what parses the bytes of `digest` between the two notes of it. Called off the runtime's threads.
fn noted(runtime: &Handle, store: &dyn Store, digest: &str, parse: impl FnOnce() -> Proved) -> Proved {
    let refuse = |why: String| (vec![Refusal::new(RefusalCode::Quarantined, why)], Vec::new());
    let begun: Result<bool, StoreError> = runtime.block_on(async {
        if store.quarantined().await?.iter().any(|d| d == digest) {
            return Ok(false);
        }
        store.parse_begins(digest).await.map(|()| true)
    });
    match begun {
        Ok(true) => {}
        Ok(false) => return refuse(format!("{digest} ended a parser before: it is not tried again")),
        Err(error) => {
            tracing::error!(%error, "an admission review could not be noted");
            return refuse("it can't be checked now: try again".into());
        }
    }
    let found = parse();
    if let Err(error) = runtime.block_on(store.parse_ended(digest)) {
        tracing::error!(%error, "the end of an admission review could not be noted");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SqliteOptions, SqliteStore};

    #[test]
    fn a_review_is_noted_and_what_ended_parsers_is_not_parsed() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let open = || runtime.block_on(SqliteStore::open(dir.path(), SqliteOptions::default())).unwrap();
        let store = open();
        for _ in 0..2 {
            let (refused, _) = noted(runtime.handle(), store.as_ref(), "sha256:good", Default::default);
            assert!(refused.is_empty());
        }
        runtime.block_on(store.close());
        runtime.block_on(async {
            let file = dir.path().join("remit.db");
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
            let mut conn = sqlx::ConnectOptions::connect(&options).await.unwrap();
            let sql = "INSERT INTO parsing (digest, open, deaths) VALUES ('sha256:bomb', 0, 2)";
            sqlx::query(sql).execute(&mut conn).await.unwrap();
            sqlx::Connection::close(conn).await.unwrap();
        });
        let store = open();
        let (refused, _) = noted(runtime.handle(), store.as_ref(), "sha256:bomb", || panic!("it is parsed"));
        assert_eq!(refused[0].code, RefusalCode::Quarantined);
        assert!(noted(runtime.handle(), store.as_ref(), "sha256:good", Default::default).0.is_empty());
        runtime.block_on(store.close());
    }
}
