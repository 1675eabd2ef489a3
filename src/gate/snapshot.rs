//! The set that one check sees: immutable, swapped as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use super::arm::{Arm, Unit, arm};
use crate::api::{DelegationMode, Delegator, EffectiveProfile, SessionMode};
use crate::policy::{AgentFacts, CompiledPackage};

/// Everything that decides, at one instant.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counted up with each swap.
    pub generation: u64,
    /// The platform's packages, base first; Err: why a declared one can't be loaded, and every check is 503.
    pub platform: Option<Result<Vec<Arc<CompiledPackage>>, String>>,
    /// By namespace.
    pub tenants: HashMap<String, Arc<Tenant>>,
    /// Username, or for other issuers' identities [`federated_key`], to (tenant, agent). An identity claimed twice belongs to the elder Agent only for display: it maps to Conflict.
    pub identities: HashMap<String, IdentityOwner>,
}

/// Key of an identity that another issuer than the cluster's vouches for. It counts in one tenant only, so that no tenant's claim
/// can reach another's; and with a control character in it, it is no Kubernetes user's name (those are refused).
pub fn federated_key(tenant: &str, username: &str) -> String {
    format!("{tenant}\0{username}")
}

/// To whom an authenticated username belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityOwner {
    /// One agent.
    Agent { tenant: String, name: String },
    /// Claimed by several Agents: refused at check.
    Conflict,
}

/// One tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Namespace.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Agents by name.
    pub agents: HashMap<String, Arc<AgentEntry>>,
    /// The package in force; None: nothing is in force, everything is denied `no_package`.
    pub package: Option<Arc<CompiledPackage>>,
    /// The package on its way, while a rollout is in one of its stages.
    pub canary: Option<Arc<Canary>>,
    /// Settings in force.
    pub profile: EffectiveProfile,
}

impl Tenant {
    /// The arm of a unit, and the package that decides for it.
    pub fn decides(&self, unit: Unit<'_>) -> (Arm, Option<&Arc<CompiledPackage>>) {
        let arm = self.canary.as_ref().map_or(Arm::Stable, |canary| arm(&self.uid, canary, unit));
        (arm, self.package_of(arm))
    }

    /// The package of an arm.
    pub fn package_of(&self, arm: Arm) -> Option<&Arc<CompiledPackage>> {
        match (arm, &self.canary) {
            (Arm::Canary, Some(canary)) => canary.package.as_ref(),
            _ => self.package.as_ref(),
        }
    }
}

/// The package on its way, and for whom it decides.
#[derive(Clone, Debug)]
pub struct Canary {
    /// The candidate. None: this replica can't load it. Its sessions are denied, as if nothing were in force: answered under the other
    /// package here, they would be answered under two.
    pub package: Option<Arc<CompiledPackage>>,
    /// Number of the revision: a new one shuffles the sessions anew.
    pub revision: i64,
    /// Sessions that it decides for, of 100.
    pub percent: u8,
    /// Sessions whose calls are evaluated under the other arm too, of 100.
    pub shadow_percent: u8,
    /// Key by which sessions are shared out, the same on every replica; no agent can compute its arm.
    pub key: [u8; 32],
}

/// One agent of a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentEntry {
    /// What policies see.
    pub facts: AgentFacts,
    /// Whether a call must name a session.
    pub session: SessionMode,
    /// Whether it acts for somebody.
    pub delegation: DelegationMode,
    /// The one delegator that it always acts for.
    pub fixed_delegator: Option<Delegator>,
}
