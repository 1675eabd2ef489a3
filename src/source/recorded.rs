//! The bytes of what is in force, as a ControllerRevision keeps them. Pure.
//!
//! They are not trusted for lying there: every load checks digest and signature against what was recorded.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde::{Deserialize, Serialize};

use crate::api::{PolicyPackageSpec, RevisionStatus};
use crate::policy::{PublicKey, Refusal, Signer, verify_recorded};

/// Label of ControllerRevisions that keep package bytes.
pub const BYTES_LABEL: &str = "remit.dev/package-bytes";

/// `ControllerRevision.data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackageBytes {
    /// The whole spec, with its signature.
    pub spec: PolicyPackageSpec,
    /// Key of the signature, PEM: it certifies itself by the recorded fingerprint. None where the package is unsigned.
    pub public_key: Option<String>,
}

/// Why what is in force can't be loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// Neither a ControllerRevision nor a PolicyPackage has the bytes.
    #[error("ControllerRevision {name} is missing, and no PolicyPackage has digest {digest}")]
    Missing { name: String, digest: String },
    /// The ControllerRevision is not what Remit writes.
    #[error("ControllerRevision {name}: data: {why}")]
    Malformed { name: String, why: String },
    /// The bytes are not those that were recorded, or their key is compromised.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not tried to the end; it will be tried again.
    #[error("{0}")]
    Unavailable(String),
}

/// Reads `data` of a ControllerRevision.
pub fn read(revision: &ControllerRevision) -> Result<PackageBytes, LoadError> {
    let name = || revision.metadata.name.clone().unwrap_or_default();
    let RawExtension(data) = &revision.data;
    PackageBytes::deserialize(data).map_err(|e| LoadError::Malformed { name: name(), why: e.to_string() })
}

/// Checks bytes against what was recorded of them.
pub fn check(
    bytes: &PackageBytes,
    recorded: &RevisionStatus,
    tenant: &str,
    installation: &str,
    signers: &[Signer],
) -> Result<(), LoadError> {
    let key = bytes.public_key.as_deref().and_then(|pem| PublicKey::from_pem(pem).ok());
    let fingerprint = recorded.key_fingerprint.as_deref();
    verify_recorded(&bytes.spec, key.as_ref(), &recorded.digest, fingerprint, tenant, installation, signers)?;
    Ok(())
}
