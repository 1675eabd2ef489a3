//! Where the certificate authority lives and who is told of it: Secret `remit-ca`, the webhook's `caBundle`, ConfigMap `remit-ca` in
//! the tenants' namespaces.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;

use super::ca::{AUTHORITY_LIFE, Authority, CertificateError, Leaf};
use super::leadership::Leadership;
use crate::api::MANAGER;
use crate::source::kubernetes::{SourceError, call};

/// Name of the Secret, and of the ConfigMap in tenant namespaces.
pub const CA: &str = "remit-ca";
/// Name of the ValidatingWebhookConfiguration.
pub const WEBHOOK: &str = "remit";
/// How often everything is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// After this long a tenant's ConfigMap is written again, whatever became of it.
const REPUBLISH: Duration = Duration::from_secs(60);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const BUNDLE: &str = "ca.crt";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] SourceError),
    /// The certificates.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Somebody else wrote the Secret.
    #[error("Secret {namespace}/remit-ca: {field} is missing or not PEM; delete the Secret to have it made anew")]
    Malformed { namespace: String, field: &'static str },
}

/// Reads the authority, makes it where there is none, renews it early. Two operators that race end with the same one.
pub async fn ensure(client: &Client, namespace: &str, now: Timestamp) -> Result<Authority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        let secret = call("Secret remit-ca", api.get_opt(CA)).await?;
        let Some(mut secret) = secret else {
            let authority = Authority::new(now, AUTHORITY_LIFE, "")?;
            let mut secret = Secret { type_: Some("kubernetes.io/tls".into()), ..Secret::default() };
            secret.metadata.name = Some(CA.into());
            secret.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
            secret.data = Some(data(&authority));
            match call("Secret remit-ca", api.create(&PostParams::default(), &secret)).await {
                Ok(_) => return Ok(authority),
                Err(error) if error.status().is_some_and(|s| s.is_already_exists()) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        let authority = read(&secret, namespace)?;
        if authority.renew_at()? > now {
            return Ok(authority);
        }
        let next = Authority::new(now, AUTHORITY_LIFE, &authority.bundle)?;
        secret.data = Some(data(&next));
        // Replaced with its resourceVersion: whoever comes second reads what the first made.
        match call("Secret remit-ca", api.replace(CA, &PostParams::default(), &secret)).await {
            Ok(_) => {
                tracing::info!("the certificate authority is renewed; its predecessor stays trusted until it expires");
                return Ok(next);
            }
            Err(error) if error.status().is_some_and(|s| s.is_conflict()) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

fn data(authority: &Authority) -> BTreeMap<String, ByteString> {
    let entry = |name: &str, text: &str| (name.to_owned(), ByteString(text.as_bytes().to_vec()));
    BTreeMap::from([
        entry(CERTIFICATE, &authority.certificate),
        entry(KEY, &authority.key),
        entry(BUNDLE, &authority.bundle),
    ])
}

fn read(secret: &Secret, namespace: &str) -> Result<Authority, AuthorityError> {
    let text = |field: &'static str| {
        let bytes = secret.data.as_ref().and_then(|d| d.get(field));
        let malformed = || AuthorityError::Malformed { namespace: namespace.into(), field };
        bytes
            .and_then(|b| String::from_utf8(b.0.clone()).ok())
            .filter(|t| t.contains("-----BEGIN"))
            .ok_or_else(malformed)
    };
    let certificate = text(CERTIFICATE)?;
    // A CA that an administrator brought has no bundle of ours.
    let bundle = text(BUNDLE).unwrap_or_else(|_| certificate.clone());
    Ok(Authority { key: text(KEY)?, certificate, bundle })
}

/// The bundle that everybody is told of, and who has been told.
pub struct Published {
    bundle: ArcSwap<String>,
    told: Mutex<HashMap<String, Told>>,
}

/// When a namespace was told of which bundle.
#[derive(Clone)]
struct Told {
    at: Instant,
    uid: String,
    bundle: Arc<String>,
}

impl Published {
    /// Tells of this bundle.
    pub fn new(bundle: String) -> Self {
        Self { bundle: ArcSwap::from_pointee(bundle), told: Mutex::default() }
    }

    /// Keeps ConfigMap `remit-ca` right in a tenant's namespace. Cheap where it was written lately.
    pub async fn publish(&self, client: &Client, namespace: &str, uid: &str) -> Result<(), SourceError> {
        let bundle = self.bundle.load_full();
        let lock = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = lock().get(namespace).cloned();
        if told.is_some_and(|t| t.at.elapsed() < REPUBLISH && t.uid == uid && t.bundle == bundle) {
            return Ok(());
        }
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CA, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
            "data": {BUNDLE: &*bundle},
        });
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        call("ConfigMap remit-ca", api.patch(CA, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body))).await?;
        lock().insert(namespace.into(), Told { at: Instant::now(), uid: uid.into(), bundle });
        Ok(())
    }

    /// Tenants that have been told before, to be told again.
    fn tenants(&self) -> Vec<(String, String)> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().map(|(namespace, t)| (namespace.clone(), t.uid.clone())).collect()
    }

    fn forget(&self, namespace: &str) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }
}

/// Takes a new leaf into service; Err: why it can't, and the old one goes on.
pub type Serve = Box<dyn Fn(&Leaf) -> Result<(), String> + Send + Sync>;

/// What keeps certificates right while the operator runs.
pub struct Keeper {
    /// The API server.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// Names of the leaf.
    pub names: Vec<String>,
    /// Life of a leaf.
    pub leaf_life: Duration,
    /// Takes a new leaf into service.
    pub serve: Serve,
    /// When the leaf should be replaced.
    pub replace_at: Timestamp,
    /// Who is told of the bundle.
    pub published: Arc<Published>,
    /// Only the leader tells others; each replica looks after its own leaf.
    pub leadership: Leadership,
}

impl Keeper {
    /// Looks at everything every few seconds, until `stop`. An error is logged and tried again; the old leaf goes on.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leads = self.leadership.watch();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // Who begins to lead tells everybody at once.
                Ok(()) = leads.changed() => {}
                _ = stop.wait_for(|s| *s) => return,
            }
            let now = Timestamp::now();
            if let Err(error) = self.look(now).await {
                tracing::warn!(%error, "certificates could not be looked after");
            }
        }
    }

    async fn look(&mut self, now: Timestamp) -> Result<(), AuthorityError> {
        let authority = ensure(&self.client, &self.namespace, now).await?;
        let before = self.published.bundle.load_full();
        if *before != authority.bundle {
            self.published.bundle.store(Arc::new(authority.bundle.clone()));
            // Another authority (the Secret was made anew) must not go on with the old one's leaf. A renewed one vouches for its
            // predecessor: the leaf stays good, and those who learn of the new one later than this replica still trust it.
            if !authority.vouches_for(&before) {
                self.replace_at = now;
            }
        }
        if self.replace_at <= now {
            let leaf = authority.leaf(&self.names, now, self.leaf_life)?;
            (self.serve)(&leaf).map_err(|why| CertificateError::Read { what: "the new leaf", why })?;
            self.replace_at = leaf.replace_at;
            tracing::info!(next = %leaf.replace_at, "the serving certificate is replaced");
        }
        if !self.leadership.holds() {
            return Ok(());
        }
        patch_webhook(&self.client, &authority.bundle).await?;
        for (namespace, uid) in self.published.tenants() {
            if let Err(error) = self.published.publish(&self.client, &namespace, &uid).await {
                tracing::debug!(%namespace, %error, "the CA could not be published");
                self.published.forget(&namespace);
            }
        }
        Ok(())
    }
}

/// Puts the bundle into the webhook's configuration where it is not there. Without the configuration there is nothing to do.
pub async fn patch_webhook(client: &Client, bundle: &str) -> Result<(), SourceError> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let Some(configuration) = call("ValidatingWebhookConfiguration remit", api.get_opt(WEBHOOK)).await? else {
        tracing::debug!("there is no ValidatingWebhookConfiguration remit");
        return Ok(());
    };
    let want = ByteString(bundle.as_bytes().to_vec());
    let webhooks = configuration.webhooks.unwrap_or_default();
    let mut operations = Vec::new();
    for (i, webhook) in webhooks.iter().enumerate() {
        if webhook.client_config.ca_bundle.as_ref() != Some(&want) {
            // Guarded by the name at this place: the list may have changed since.
            operations.push(json!({"op": "test", "path": format!("/webhooks/{i}/name"), "value": webhook.name}));
            operations
                .push(json!({"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": want}));
        }
    }
    if operations.is_empty() {
        return Ok(());
    }
    let patch = serde_json::from_value(json!(operations)).map(Patch::<()>::Json);
    let patch = patch
        .map_err(|e| SourceError::Api { what: "caBundle".into(), source: Box::new(kube::Error::SerdeError(e)) })?;
    call("ValidatingWebhookConfiguration remit", api.patch(WEBHOOK, &PatchParams::default(), &patch)).await?;
    tracing::info!("the webhook's caBundle is set");
    Ok(())
}
