//! Anchors as ConfigMaps of the operator's namespace: whoever can change the database can't change these.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::api::{Envelope, MANAGER};
use crate::source::kubernetes::call;
use crate::store::{AnchorSink, StoreError, StoreFuture};

/// Keeps the newest anchor of each writer in ConfigMap `remit-anchor-<writer>`.
pub struct ConfigMapSink {
    api: Api<ConfigMap>,
    public_key: String,
}

impl ConfigMapSink {
    /// In this namespace, with the installation's public key (PEM) beside each anchor: who has only the database and its
    /// server can't give an auditor another one.
    pub fn new(client: Client, namespace: &str, public_key: String) -> Self {
        Self { api: Api::namespaced(client, namespace), public_key }
    }
}

impl AnchorSink for ConfigMapSink {
    fn latest<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Option<Envelope>> {
        Box::pin(async move {
            let map = call("an anchor", self.api.get_opt(&name(writer))).await;
            let map = map.map_err(|e| StoreError::Closed(e.to_string()))?;
            let text = map.and_then(|map| map.data).and_then(|mut data| data.remove(KEY));
            Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
        })
    }

    fn publish<'a>(&'a self, writer: &'a str, anchor: &'a Envelope) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let text = serde_json::to_string(anchor)
                .map_err(|e| StoreError::Corrupt { what: "anchor", why: e.to_string() })?;
            let name = name(writer);
            let body = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER, "remit.dev/anchor": "true"}},
                "data": {KEY: text, "key.pem": self.public_key},
            });
            let params = PatchParams::apply(MANAGER).force();
            let done = call("an anchor", self.api.patch(&name, &params, &Patch::Apply(body))).await;
            done.map(drop).map_err(|e| StoreError::Closed(e.to_string()))
        })
    }
}

/// Key of the ConfigMap's data.
const KEY: &str = "anchor";

fn name(writer: &str) -> String {
    format!("remit-anchor-{}", writer.to_ascii_lowercase())
}
