//! The operator process: puts the rooms together, starts them, and stops them in order.

mod anchors;
mod context;
mod metrics;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Config, ResourceExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::cli::operator::Operator;
use crate::controllers::certificates::{self, AuthorityError, Keeper, Published};
use crate::controllers::keys::{self, KeysError};
use crate::controllers::preflight::NoEvidence;
use crate::controllers::{self, Context};
use crate::gate::{Snapshot, arms_key};
use crate::policy::PublicKey;
use crate::server::issuers::{self, Issuer, Issuers, IssuersError};
use crate::server::tls::{Limits, ServingCertificate, TlsError, serve};
use crate::server::{
    Authenticator, Freshness, KubeReviews, Metrics, ReviewedAccess, ReviewedTokens, Server, Sessions, Settings, Shadow,
    SystemClock, admission, health_router, retain, router,
};
use crate::source::compile::Compiler;
use crate::source::index::{Faults, Index, Sources};
use crate::source::kubernetes::{self, Objects, Pulse, SourceError, call};
use crate::source::past::KeptObjects;
use crate::store::{SqliteOptions, SqliteStore, Store, StoreError};

/// Time for the controllers' passes under way at stop.
const LAST_PASSES: Duration = Duration::from_secs(10);

/// Why the operator can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// There is no cluster.
    #[error("no Kubernetes: neither a ServiceAccount of a pod nor KUBECONFIG can be used: {0}")]
    Config(String),
    /// The cluster can't be used as it is.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The operator's keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The operator's certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The journal.
    #[error("--data-dir {dir}: {source}")]
    Store { dir: String, source: StoreError },
    /// Issuers.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// The cluster's tokens are for the API server to judge: it knows which are revoked.
    #[error("--issuers: {0} is this cluster's own issuer, whose tokens need no configuration")]
    OwnIssuer(String),
    /// An address.
    #[error("{flag} {address}: {source}")]
    Listen { flag: &'static str, address: String, source: std::io::Error },
    /// Signals.
    #[error("signals can't be waited for: {0}")]
    Signal(std::io::Error),
    /// The thread of the shadow evaluations.
    #[error("the thread that compares the packages of rollouts can't be started: {0}")]
    Thread(std::io::Error),
    /// Something that should run for ever ended.
    #[error("{0} ended: see the log")]
    Ended(&'static str),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Operator) -> Result<(), OperatorError> {
    // Another library may have set one before; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listeners = Listeners::bind(&args).await?;
    let issuers = args.issuers.as_deref().map(issuers::read).transpose()?.unwrap_or_default();
    let config = Config::infer().await.map_err(|e| OperatorError::Config(e.to_string()))?;
    let client = Client::try_from(config).map_err(|e| OperatorError::Config(e.to_string()))?;
    let who = format!("ServiceAccount {}/{}", args.namespace, args.service_account);
    kubernetes::probe(&client, &who).await?;
    let installation = match &args.installation {
        Some(name) => name.clone(),
        None => uid_of(&client, "kube-system").await?,
    };
    let keys = keys::ensure(&client, &args.namespace).await?;
    let names = names(&args);
    let now = Timestamp::now();
    let authority = certificates::ensure(&client, &args.namespace, now).await?;
    let leaf = authority.leaf(&names, now, args.certificate_life).map_err(AuthorityError::from)?;
    let certificate = ServingCertificate::new(leaf.certificate.as_bytes(), leaf.key.as_bytes())?;

    let public_key = PublicKey::from_key(keys.installation.verifying_key())
        .map_err(|_| KeysError::Malformed { namespace: args.namespace.clone(), field: "installation.key" })?;
    let sink = anchors::ConfigMapSink::new(client.clone(), &args.namespace, public_key.to_pem().to_owned());
    let options =
        SqliteOptions { signing_key: Some(keys.installation), sinks: vec![Arc::new(sink)], ..SqliteOptions::default() };
    let sqlite = SqliteStore::open(&args.data_dir, options).await;
    let store_error = |source| OperatorError::Store { dir: args.data_dir.display().to_string(), source };
    let sqlite = sqlite.map_err(store_error)?;
    let store: Arc<dyn Store> = sqlite.clone();
    let sessions = Arc::new(Sessions::load(store.as_ref()).await.map_err(store_error)?);

    let (stop, stopped) = watch::channel(false);
    let snapshot: Arc<ArcSwap<Snapshot>> = Arc::default();
    let freshness = Arc::new(Freshness::new(Instant::now()));
    let compiler = Arc::new(Compiler::new(store.clone()));
    let faults = Arc::new(Faults::default());
    let arms_key = arms_key(&keys.redaction);
    let feed = Feed::start(&args, &client, &installation, &compiler, &snapshot, &faults, &freshness, arms_key).await;
    let past = Arc::new(KeptObjects { objects: feed.objects.clone(), compiler: compiler.clone() });

    let reporter = Reporter { controller: "remit".into(), instance: std::env::var("POD_NAME").ok() };
    let published = Arc::new(Published::new(authority.bundle.clone()));
    let ctx = Arc::new(Context {
        client: client.clone(),
        objects: feed.objects.clone(),
        store: store.clone(),
        compiler,
        faults,
        recorder: Recorder::new(client.clone(), reporter),
        namespace: args.namespace.clone(),
        installation: installation.clone(),
        mode: args.signatures,
        declared: args.platform_package.as_ref().map(|(_, digest)| digest.clone()),
        authority: published.clone(),
        snapshot: snapshot.clone(),
        tests: crate::source::judge::TestResults::default(),
        quiet: controllers::tenant_rollout::Quiet::default(),
        rollout: controllers::tenant_rollout::Rollout::new(sqlite.clone(), sqlite.clone(), Arc::new(NoEvidence)),
        issuers: issuers.clone(),
        failures: AtomicU64::new(0),
    });
    let registry = metrics::registry(&sqlite, &ctx);
    let metrics = Arc::new(Metrics::new(registry));
    let clock = Arc::new(SystemClock);
    let reviews = KubeReviews::new(client.clone());
    let own = reviews.issuer().await;
    let reviews = Arc::new(reviews);
    let reviewed = ReviewedTokens::new(reviews.clone(), own.clone(), clock.clone(), metrics.clone());
    let authenticator = authenticator(issuers, own, Arc::new(reviewed), &metrics)?;
    let shadow = Shadow::start(sqlite.clone(), metrics.clone(), keys.redaction.to_vec());
    let shadow = Arc::new(shadow.map_err(OperatorError::Thread)?);
    let state = Arc::new(Server {
        snapshot: snapshot.clone(),
        freshness,
        journal: sqlite.clone(),
        store: store.clone(),
        authenticator,
        authorizer: Arc::new(ReviewedAccess::new(reviews, clock.clone(), metrics.clone())),
        sessions: sessions.clone(),
        metrics: metrics.clone(),
        clock,
        redaction_key: keys.redaction.to_vec(),
        settings: Settings {
            max_staleness: args.max_staleness,
            operator_namespace: args.namespace.clone(),
            ..Settings::default()
        },
        gate: crate::gate::check,
        lanes: crate::server::Lanes::default(),
        past,
        shadow: shadow.clone(),
    });
    let tls = certificate.config()?;
    let admission = context::Admission::new(ctx.clone());
    let mut servers = JoinSet::new();
    let limits = Limits::default();
    servers.spawn(serve(
        listeners.checks,
        Some(tls.clone()),
        router(state.clone()),
        limits,
        metrics.clone(),
        stopped.clone(),
    ));
    let webhook = admission::router(Arc::new(admission));
    servers.spawn(serve(listeners.webhook, Some(tls), webhook, limits, metrics.clone(), stopped.clone()));
    servers.spawn(serve(listeners.metrics, None, health_router(state.clone()), limits, metrics, stopped.clone()));

    let keeper = Keeper {
        client,
        namespace: args.namespace.clone(),
        names,
        leaf_life: args.certificate_life,
        serve: Box::new(move |leaf| {
            certificate.replace(leaf.certificate.as_bytes(), leaf.key.as_bytes()).map_err(|e| e.to_string())
        }),
        replace_at: leaf.replace_at,
        published,
    };
    let keeper = tokio::spawn(keeper.run(stopped.clone()));
    let sweeper = tokio::spawn(sessions.run(state, stopped.clone()));
    let retention = tokio::spawn(retain(store, snapshot, args.namespace.clone(), stopped.clone()));
    let mut ready = feed.ready;
    let mut index = feed.index;
    let mut controllers = JoinSet::new();
    let mut changes = Some(feed.changes);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), namespace = %args.namespace, %installation, listen = %args.listen,
        webhook = %args.webhook_listen, metrics = %args.metrics_listen, "the operator has started",
    );
    let ended = loop {
        let (mut term, mut int) = (wait_for(SignalKind::terminate())?, wait_for(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => break None,
            _ = int.recv() => break None,
            _ = &mut index => break Some("the index"),
            Some(_) = controllers.join_next() => break Some("a controller"),
            Some(_) = servers.join_next() => break Some("a server"),
            Ok(_) = ready.wait_for(|r| *r), if changes.is_some() => {
                if let Some(changes) = changes.take() {
                    controllers = controllers::start(ctx.clone(), changes, stopped.clone());
                }
            }
        }
    };
    tracing::info!("stopping: requests under way finish, then the journal is closed");
    let _ = stop.send(true);
    while servers.join_next().await.is_some() {}
    let passes = async { while controllers.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_PASSES, passes).await.is_err() {
        tracing::warn!("a reconcile pass was still under way");
    }
    for task in [keeper, sweeper, retention] {
        let _ = tokio::time::timeout(LAST_PASSES, task).await;
    }
    shadow.close().await;
    sqlite.close().await;
    tracing::info!("stopped");
    match ended {
        None => Ok(()),
        Some(what) => Err(OperatorError::Ended(what)),
    }
}

/// The configured issuers in front of the cluster's own tokens.
fn authenticator(
    configured: Vec<Issuer>,
    own: Option<String>,
    reviewed: Arc<dyn Authenticator>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Authenticator>, OperatorError> {
    if let Some(own) = own.filter(|own| configured.iter().any(|issuer| issuer.issuer.as_ref() == Some(own))) {
        return Err(OperatorError::OwnIssuer(own));
    }
    Ok(Issuers::in_front_of(reviewed, configured, Arc::new(SystemClock), metrics.clone())?)
}

fn wait_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, OperatorError> {
    signal(kind).map_err(OperatorError::Signal)
}

/// Names of the serving certificate.
fn names(args: &Operator) -> Vec<String> {
    let mut names: Vec<String> = vec!["localhost".into(), "127.0.0.1".into()];
    for service in ["remit", "remit-webhook"] {
        let namespace = &args.namespace;
        names.push(format!("{service}.{namespace}"));
        names.push(format!("{service}.{namespace}.svc"));
        names.push(format!("{service}.{namespace}.svc.cluster.local"));
    }
    names.extend(args.dns_names.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()));
    names.sort();
    names.dedup();
    names
}

async fn uid_of(client: &Client, namespace: &str) -> Result<String, SourceError> {
    let api: Api<Namespace> = Api::all(client.clone());
    Ok(call("namespaces", api.get(namespace)).await?.uid().unwrap_or_default())
}

/// The open ports. They are taken before anything else, so that a second operator stops before it touches anything.
struct Listeners {
    checks: TcpListener,
    webhook: TcpListener,
    metrics: TcpListener,
}

impl Listeners {
    async fn bind(args: &Operator) -> Result<Self, OperatorError> {
        let bind = async |flag: &'static str, address: std::net::SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.map_err(|source| OperatorError::Listen { flag, address: address.to_string(), source })
        };
        Ok(Self {
            checks: bind("--listen", args.listen).await?,
            webhook: bind("--webhook-listen", args.webhook_listen).await?,
            metrics: bind("--metrics-listen", args.metrics_listen).await?,
        })
    }
}

/// The watches and the index over them.
struct Feed {
    objects: Objects,
    changes: mpsc::UnboundedReceiver<kubernetes::Change>,
    ready: watch::Receiver<bool>,
    index: JoinHandle<()>,
}

impl Feed {
    #[allow(clippy::too_many_arguments)]
    async fn start(
        args: &Operator,
        client: &Client,
        installation: &str,
        compiler: &Arc<Compiler>,
        snapshot: &Arc<ArcSwap<Snapshot>>,
        faults: &Arc<Faults>,
        freshness: &Arc<Freshness>,
        arms_key: [u8; 32],
    ) -> Self {
        let (to_index, for_index) = mpsc::unbounded_channel();
        let (to_controllers, changes) = mpsc::unbounded_channel();
        let pulse = {
            let freshness = freshness.clone();
            Arc::new(Pulse::new(move || freshness.alive(Instant::now())))
        };
        // The index first: a reconciler that reads what it says should find it said.
        let all = Arc::new(vec![to_index, to_controllers.clone()]);
        let streaming = kubernetes::streams_lists(client).await;
        let objects = kubernetes::watch(client, &args.namespace, streaming, &pulse, &all);
        let sources = Sources {
            objects: objects.clone(),
            compiler: compiler.clone(),
            namespace: args.namespace.clone(),
            installation: installation.to_owned(),
            declared: args.platform_package.clone(),
            arms_key,
        };
        let (ready, readiness) = watch::channel(false);
        let index = Index::new(sources, snapshot.clone(), faults.clone(), vec![to_controllers], pulse, ready);
        Self { objects, changes, ready: readiness, index: tokio::spawn(index.run(for_index)) }
    }
}
