//! What is there, by kind, as the watches of `follow` last saw it; and calls of the API server with a time limit.
//!
//! An object that can't be read (`DeserializeGuard`) is kept as such and stops nothing.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams};
use kube::core::{ClusterResourceScope, DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;

pub use super::follow::Pulse;
use super::follow::{Follow, Known, jittered};
use super::heartbeat::{self, HEARTBEAT};
use super::recorded::BYTES_LABEL;
use crate::api::{Agent, DEFAULT_NAME, PolicyPackage, PolicyReplay, PolicySigner, TenantProfile, TenantRollout};

/// Time for one call of the API server.
pub const CALL: Duration = Duration::from_secs(10);

/// How long one watch lasts before the API server ends it and the next goes on where it stood, seconds. kube's watcher gives up on one
/// that has been silent for 5 s longer: a connection that died without a word is noticed after so long at the latest.
const WATCH: u32 = 30;
/// No answer for so long, not even a byte: the connection is dead.
const SILENCE: Duration = Duration::from_secs(40);
/// How often everything is looked at again.
const RESYNC: Duration = Duration::from_secs(600);

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
async fn streams_lists(client: &Client) -> bool {
    let minor = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match call("/version", client.apiserver_version()).await {
        Ok(info) => info.major == "1" && minor(&info.minor).is_some_and(|m| m >= 34),
        Err(_) => false,
    }
}

/// How to watch.
#[derive(Clone)]
pub struct Watching {
    /// For calls.
    pub client: Client,
    /// For watches: one that gives up on a silent connection.
    pub watcher: Client,
    /// Whether the initial list comes through the watch.
    pub streaming: bool,
    /// After about this long each kind is listed anew, though nothing seems wrong.
    pub relist: Duration,
}

impl Watching {
    /// For this cluster.
    pub async fn new(config: &Config, relist: Duration) -> Result<Self, kube::Error> {
        let client = Client::try_from(config.clone())?;
        let mut patient = config.clone();
        patient.connect_timeout = Some(CALL);
        patient.read_timeout = Some(SILENCE);
        patient.reset_reader_on_write = true;
        let streaming = streams_lists(&client).await;
        Ok(Self { watcher: Client::try_from(patient)?, client, streaming, relist })
    }
}

/// Starts every watch. They run until the process ends. The listeners are told of each change after the stores have it.
pub fn watch(with: &Watching, namespace: &str, pulse: &Arc<Pulse>, to: &Arc<Listeners>) -> Objects {
    let w = Watches { with: with.clone(), pulse: pulse.clone(), to: to.clone() };
    let heartbeat = w.config().fields(&format!("metadata.name={HEARTBEAT}"));
    let beats = pulse.clone();
    let _ = w.start(Api::<ConfigMap>::namespaced(with.watcher.clone(), namespace), heartbeat, move |_| {
        beats.beat();
        None
    });
    tokio::spawn(heartbeat::beat(with.client.clone(), namespace.to_owned(), pulse.clone()));
    tokio::spawn(resync(to.clone()));
    let client = &with.watcher;
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

/// Has everything looked at once in a while, though nothing seems to have changed.
async fn resync(to: Arc<Listeners>) {
    loop {
        tokio::time::sleep(jittered(RESYNC)).await;
        tell(&to, &Change::Everything);
    }
}

struct Watches {
    with: Watching,
    pulse: Arc<Pulse>,
    to: Arc<Listeners>,
}

impl Watches {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default().timeout(WATCH);
        if self.with.streaming { config.streaming_lists() } else { config }
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
        self.start(Api::all(self.with.watcher.clone()), self.config(), move |o| Some(change(o)))
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
        self.start(Api::all(self.with.watcher.clone()), self.config(), move |o| Some(change(o)))
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
        let watch = Follow {
            api,
            config,
            relist: self.with.relist,
            known: Known::new(reader.clone(), writer),
            change,
            pulse: self.pulse.clone(),
            to: self.to.clone(),
        };
        tokio::spawn(watch.run());
        reader
    }
}
