//! The cluster's side of what people ask for by HTTP: the TenantRollout of a tenant, read and written for them. A folder has none.
//!
//! Whoever calls has found out before that the person may: what is written here is written by Remit's ServiceAccount.

use jiff::Timestamp;

use crate::api::{HumanAction, PackageSelector, PolicyPackageSpec, RevisionStatus, TenantRollout};
use crate::lifecycle::evidence::Window;
use crate::policy::Refusal;
use crate::store::{RolloutRecord, StoreError};

use super::authn::BoxFuture;

/// Why something was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no TenantRollout, and there should be one.
    #[error("the tenant has no TenantRollout")]
    Missing,
    /// There is no room for another entry.
    #[error("{0}")]
    Full(String),
    /// The API server refused it, in its words.
    #[error("{0}")]
    Refused(String),
    /// The API server gave no answer, or others were faster every time.
    #[error("{0}")]
    Unavailable(String),
}

/// TenantRollouts, and the packages of their history.
pub trait RolloutControl: Send + Sync {
    /// `TenantRollout/default` as the API server has it now.
    fn rollout<'a>(&'a self, tenant: &'a str) -> BoxFuture<'a, Result<Option<TenantRollout>, ControlError>>;
    /// Sets `spec.package`, by manager `remit-http`. Makes the rollout where it is missing.
    fn select<'a>(
        &'a self,
        tenant: &'a str,
        package: &'a PackageSelector,
    ) -> BoxFuture<'a, Result<TenantRollout, ControlError>>;
    /// Appends an entry to `status.actions`.
    fn append<'a>(&'a self, tenant: &'a str, action: &'a HumanAction) -> BoxFuture<'a, Result<(), ControlError>>;
    /// The bytes of a revision, checked against what was recorded of them; Err: why they can't be used.
    fn package(&self, tenant: &str, revision: &RevisionStatus) -> Result<PolicyPackageSpec, String>;
    /// Why a package of the history could not come into force now: it does not compile under today's schema, or its tests fail under the
    /// platform's packages of today. None: nothing stands in the way.
    fn obstacle<'a>(
        &'a self,
        spec: &'a PolicyPackageSpec,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Option<Refusal>, StoreError>>;
    /// What the records say of both arms, as `store::Arms` has it.
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> BoxFuture<'a, Result<Window, StoreError>>;
    /// The newest steps of the tenant's rollouts, as `store::Rollouts` has them.
    fn records<'a>(&'a self, tenant_uid: &'a str) -> BoxFuture<'a, Result<Vec<RolloutRecord>, StoreError>>;
}
