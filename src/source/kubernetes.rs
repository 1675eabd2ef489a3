//! Watches: one a kind, for ever, with backoff. Each keeps a store that reconcilers and the index read, and says what changed.
//!
//! An object that can't be read (`DeserializeGuard`) is kept as such and stops nothing. A watch never ends the process.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::{ClusterResourceScope, DeserializeGuard, NamespaceResourceScope};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use rand_core::{OsRng, RngCore};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use super::recorded::BYTES_LABEL;
use crate::api::{
    Agent, DEFAULT_NAME, MANAGER, PolicyPackage, PolicyReplay, PolicySigner, TenantProfile, TenantRollout,
};

/// Name of the object whose changes show that the feed lives.
pub const HEARTBEAT: &str = "remit-heartbeat";
/// How often it is changed.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// Time for one call of the API server.
pub const CALL: Duration = Duration::from_secs(10);

/// An object that may be unreadable.
pub type Guarded<K> = DeserializeGuard<K>;

/// What is there, by kind, as the watches last saw it.
#[derive(Clone)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Store<Namespace>,
    /// Agents.
    pub agents: Store<Guarded<Agent>>,
    /// PolicyPackages.
    pub packages: Store<Guarded<PolicyPackage>>,
    /// PolicySigners.
    pub signers: Store<Guarded<PolicySigner>>,
    /// TenantRollouts.
    pub rollouts: Store<Guarded<TenantRollout>>,
    /// TenantProfiles.
    pub profiles: Store<Guarded<TenantProfile>>,
    /// PolicyReplays.
    pub replays: Store<Guarded<PolicyReplay>>,
    /// ControllerRevisions that keep package bytes.
    pub revisions: Store<ControllerRevision>,
}

impl Objects {
    /// The readable Agents of a namespace that are not being deleted.
    pub fn agents_of(&self, namespace: &str) -> Vec<Arc<Guarded<Agent>>> {
        in_namespace(&self.agents, namespace)
    }

    /// The readable PolicyPackages of a namespace that are not being deleted.
    pub fn packages_of(&self, namespace: &str) -> Vec<Arc<Guarded<PolicyPackage>>> {
        in_namespace(&self.packages, namespace)
    }

    /// The rollout of a namespace.
    pub fn rollout_of(&self, namespace: &str) -> Option<Arc<Guarded<TenantRollout>>> {
        self.rollouts.get(&ObjectRef::new(DEFAULT_NAME).within(namespace)).filter(|r| r.0.is_ok())
    }

    /// The profile of a namespace.
    pub fn profile_of(&self, namespace: &str) -> Option<Arc<Guarded<TenantProfile>>> {
        self.profiles
            .get(&ObjectRef::new(DEFAULT_NAME).within(namespace))
            .filter(|p| p.0.is_ok() && p.meta().deletion_timestamp.is_none())
    }
}

fn in_namespace<K>(store: &Store<Guarded<K>>, namespace: &str) -> Vec<Arc<Guarded<K>>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|o| {
        o.meta().namespace.as_deref() == Some(namespace) && o.meta().deletion_timestamp.is_none() && o.0.is_ok()
    })
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Anything: a watch was listed anew.
    Everything,
    /// A Namespace.
    Namespace(String),
    /// An Agent (namespace, name).
    Agent(String, String),
    /// A PolicyPackage (namespace, name).
    Package(String, String),
    /// A PolicySigner.
    Signer(String),
    /// The TenantRollout of a namespace.
    Rollout(String),
    /// The TenantProfile of a namespace.
    Profile(String),
    /// A PolicyReplay (namespace, name).
    Replay(String, String),
    /// A ControllerRevision of a namespace.
    Revision(String),
    /// The index loaded, or failed to load, what is in force in a namespace.
    Loaded(String),
}

/// Whom to tell.
pub type Listeners = Vec<UnboundedSender<Change>>;

/// Tells every listener that still listens.
pub fn tell(listeners: &Listeners, change: &Change) {
    for listener in listeners {
        let _ = listener.send(change.clone());
    }
}

/// Whether the feed lives: a heartbeat counts while the first set is complete and no watch is failing.
pub struct Pulse {
    complete: AtomicBool,
    failing: AtomicU32,
    alive: Box<dyn Fn() + Send + Sync>,
}

impl Pulse {
    /// Calls `alive` at each sign of life.
    pub fn new(alive: impl Fn() + Send + Sync + 'static) -> Self {
        Self { complete: AtomicBool::new(false), failing: AtomicU32::new(0), alive: Box::new(alive) }
    }

    /// The first set is complete: from now on there are signs of life, and this is the first.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Release);
        self.beat();
    }

    fn beat(&self) {
        if self.complete.load(Ordering::Acquire) && self.failing.load(Ordering::Relaxed) == 0 {
            (self.alive)();
        }
    }
}

/// Doubling from 100 ms to 10 s, with jitter, for ever.
#[derive(Default)]
struct Retry {
    tries: u32,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let ceiling = 100u64.saturating_mul(1 << self.tries.min(7)).min(10_000);
        self.tries = self.tries.saturating_add(1);
        Some(Duration::from_millis(ceiling / 2 + u64::from(OsRng.next_u32()) % (ceiling / 2)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.tries = 0;
    }
}

/// The API server can't be used as it is; the message says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kind is not there.
    #[error("the CustomResourceDefinition {0}.remit.dev is missing: install the chart (charts/remit), or its crds/")]
    NoDefinition(String),
    /// The rights are not there.
    #[error("{who} may not list {what}: install the chart's ClusterRole, or bind it to {who}")]
    Forbidden { who: String, what: String },
    /// Something else.
    #[error("the API server can't be used: {what}: {source}")]
    Api { what: String, source: Box<kube::Error> },
    /// No answer.
    #[error("the API server did not answer within {0:?}: {1}")]
    TimedOut(Duration, String),
}

/// A call with a time limit: the client has none of its own.
pub async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, SourceError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(SourceError::Api { what: what.into(), source: Box::new(source) }),
        Err(_) => Err(SourceError::TimedOut(CALL, what.into())),
    }
}

impl SourceError {
    /// The API server's own answer, where it gave one.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            SourceError::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Asks once for every kind, so that what is missing is named at start instead of retried in silence.
pub async fn probe(client: &Client, who: &str) -> Result<(), SourceError> {
    probe_kind::<Agent>(client, who).await?;
    probe_kind::<PolicyPackage>(client, who).await?;
    probe_kind::<PolicySigner>(client, who).await?;
    probe_kind::<TenantRollout>(client, who).await?;
    probe_kind::<TenantProfile>(client, who).await?;
    probe_kind::<PolicyReplay>(client, who).await?;
    probe_kind::<ControllerRevision>(client, who).await?;
    probe_kind::<Namespace>(client, who).await
}

async fn probe_kind<K>(client: &Client, who: &str) -> Result<(), SourceError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<DeserializeGuard<kube::core::PartialObjectMeta<K>>> = Api::all(client.clone());
    let plural = K::plural(&());
    let what = format!("{plural}.{}", K::group(&()));
    let what = what.trim_end_matches('.').to_owned();
    let Err(error) = call(&what, api.list_metadata(&ListParams::default().limit(1))).await else { return Ok(()) };
    Err(match error.status() {
        Some(s) if s.is_not_found() && K::group(&()) == crate::api::GROUP => {
            SourceError::NoDefinition(plural.into_owned())
        }
        Some(s) if s.is_forbidden() => SourceError::Forbidden { who: who.into(), what },
        _ => error,
    })
}

/// Whether the API server sends the initial list through the watch (on by default from 1.34 on).
pub async fn streams_lists(client: &Client) -> bool {
    let minor = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match call("/version", client.apiserver_version()).await {
        Ok(info) => info.major == "1" && minor(&info.minor).is_some_and(|m| m >= 34),
        Err(_) => false,
    }
}

/// Starts every watch. They run until the process ends. The listeners are told of each change after the stores have it.
pub fn watch(client: &Client, namespace: &str, streaming: bool, pulse: &Arc<Pulse>, to: &Arc<Listeners>) -> Objects {
    let w = Watches { client: client.clone(), streaming, pulse: pulse.clone(), to: to.clone() };
    let heartbeat = w.config().fields(&format!("metadata.name={HEARTBEAT}"));
    let beats = pulse.clone();
    let _ = w.start(Api::<ConfigMap>::namespaced(client.clone(), namespace), heartbeat, move |_| {
        beats.beat();
        None
    });
    tokio::spawn(beat(client.clone(), namespace.to_owned()));
    Objects {
        namespaces: w.all(|o: &Namespace| Change::Namespace(o.name_any())),
        agents: w.all_namespaced(|o: &Guarded<Agent>| Change::Agent(o.namespace().unwrap_or_default(), o.name_any())),
        packages: w.all_namespaced(|o: &Guarded<PolicyPackage>| {
            Change::Package(o.namespace().unwrap_or_default(), o.name_any())
        }),
        signers: w.all(|o: &Guarded<PolicySigner>| Change::Signer(o.name_any())),
        rollouts: w.all_namespaced(|o: &Guarded<TenantRollout>| Change::Rollout(o.namespace().unwrap_or_default())),
        profiles: w.all_namespaced(|o: &Guarded<TenantProfile>| Change::Profile(o.namespace().unwrap_or_default())),
        replays: w.all_namespaced(|o: &Guarded<PolicyReplay>| {
            Change::Replay(o.namespace().unwrap_or_default(), o.name_any())
        }),
        revisions: w.start(
            Api::all(client.clone()),
            w.config().labels(&format!("{BYTES_LABEL}=true")),
            |o: &ControllerRevision| Some(Change::Revision(o.namespace().unwrap_or_default())),
        ),
    }
}

struct Watches {
    client: Client,
    streaming: bool,
    pulse: Arc<Pulse>,
    to: Arc<Listeners>,
}

impl Watches {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default();
        if self.streaming { config.streaming_lists() } else { config }
    }

    fn all<K>(&self, change: impl Fn(&K) -> Change + Send + 'static) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.start(Api::all(self.client.clone()), self.config(), move |o| Some(change(o)))
    }

    fn all_namespaced<K>(&self, change: impl Fn(&K) -> Change + Send + 'static) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.start(Api::all(self.client.clone()), self.config(), move |o| Some(change(o)))
    }

    fn start<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        change: impl Fn(&K) -> Option<Change> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (reader, writer) = reflector::store();
        let (pulse, to) = (self.pulse.clone(), self.to.clone());
        tokio::spawn(follow(api, config, writer, change, pulse, to));
        reader
    }
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut writer: Writer<K>,
    change: impl Fn(&K) -> Option<Change> + Send,
    pulse: Arc<Pulse>,
    to: Arc<Listeners>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut failing = false;
    let mut stream = std::pin::pin!(watcher(api, config).backoff(Retry::default()));
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                // 410 and the like are how a watch goes on; only what lasts makes the feed stale.
                if !failing {
                    pulse.failing.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(kind = %K::kind(&()), %error, "a watch failed and is tried again");
                }
                failing = true;
                continue;
            }
        };
        let event = event.modify(|o| o.managed_fields_mut().clear());
        if failing && !matches!(event, Event::Init) {
            failing = false;
            pulse.failing.fetch_sub(1, Ordering::Relaxed);
            tracing::info!(kind = %K::kind(&()), "the watch goes on");
        }
        let news = match &event {
            Event::Apply(o) | Event::Delete(o) => change(o),
            // What a new list leaves out has vanished without a word.
            Event::InitDone => Some(Change::Everything),
            Event::InitApply(o) => {
                let _ = change(o);
                None
            }
            Event::Init => None,
        };
        writer.apply_watcher_event(&event);
        if let Some(news) = news {
            tell(&to, &news);
        }
    }
    tracing::error!(kind = %K::kind(&()), "a watch ended");
}

/// Changes the heartbeat object, for ever. A failure is no news here: the freshness tells.
async fn beat(client: Client, namespace: String) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let params = PatchParams::apply("remit-heartbeat").force();
    let mut ticks = tokio::time::interval(HEARTBEAT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": HEARTBEAT, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
            "data": {"at": jiff::Timestamp::now().to_string()},
        });
        if let Err(error) = call("the heartbeat", api.patch(HEARTBEAT, &params, &Patch::Apply(body))).await {
            tracing::debug!(%error, "the heartbeat could not be written");
        }
    }
}
