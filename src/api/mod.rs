//! The custom resources of group `remit.dev`, version `v1alpha1`: types, schemas, printer columns and CEL rules.
//!
//! Nothing here does I/O or decides anything; every other room may use these types.

#![allow(clippy::duplicated_attributes, reason = "kube's printer columns repeat type_ and json_path by design")]

mod action;
mod agent;
mod conditions;
mod crd;
mod invariant;
mod policy_package;
mod policy_replay;
mod policy_signer;
mod tenant_profile;
mod tenant_rollout;

pub use action::*;
pub use agent::*;
pub use conditions::*;
pub use crd::crds;
pub use invariant::*;
pub use policy_package::*;
pub use policy_replay::*;
pub use policy_signer::*;
pub use tenant_profile::*;
pub use tenant_rollout::*;

/// API group of every kind.
pub const GROUP: &str = "remit.dev";
/// API version of every kind.
pub const VERSION: &str = "v1alpha1";
/// Field manager of everything the reconcilers write.
pub const MANAGER: &str = "remit";
/// Name of the one TenantRollout and the one TenantProfile of a namespace.
pub const DEFAULT_NAME: &str = "default";
