//! The installation's keys, in Secret `remit-keys` of the operator's namespace: made once, read at start, never logged.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use rand_core::{OsRng, RngCore};

use crate::api::MANAGER;
use crate::source::kubernetes::{SourceError, call};

/// Name of the Secret.
pub const KEYS: &str = "remit-keys";
const INSTALLATION: &str = "installation.key";
const REDACTION: &str = "redaction.key";

/// The keys.
pub struct Keys {
    /// Signs anchors and tombstones.
    pub installation: SigningKey,
    /// Keys the digests that stand for `@sensitive` values in records.
    pub redaction: [u8; 32],
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] SourceError),
    /// Somebody else wrote it.
    #[error("Secret {namespace}/remit-keys: {field} is not a key of 32 bytes")]
    Malformed { namespace: String, field: &'static str },
}

/// Reads the keys, or makes them. Two operators that start at the same time end with the same ones.
pub async fn ensure(client: &Client, namespace: &str) -> Result<Keys, KeysError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = call("Secret remit-keys", api.get_opt(KEYS)).await? {
        return read(&secret, namespace);
    }
    let random = || {
        let mut bytes = [0u8; 32];
        OsRng.fill_bytes(&mut bytes);
        ByteString(bytes.to_vec())
    };
    let mut secret = Secret {
        data: Some(BTreeMap::from([(INSTALLATION.into(), random()), (REDACTION.into(), random())])),
        type_: Some("remit.dev/keys".into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(KEYS.into());
    secret.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
    match call("Secret remit-keys", api.create(&PostParams::default(), &secret)).await {
        Ok(secret) => read(&secret, namespace),
        Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => {
            read(&call("Secret remit-keys", api.get(KEYS)).await?, namespace)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(secret: &Secret, namespace: &str) -> Result<Keys, KeysError> {
    let key = |field: &'static str| -> Result<[u8; 32], KeysError> {
        let bytes = secret.data.as_ref().and_then(|d| d.get(field)).map(|b| b.0.as_slice());
        let malformed = || KeysError::Malformed { namespace: namespace.into(), field };
        bytes.and_then(|b| b.try_into().ok()).ok_or_else(malformed)
    };
    Ok(Keys { installation: SigningKey::from_bytes(&key(INSTALLATION)?), redaction: key(REDACTION)? })
}
