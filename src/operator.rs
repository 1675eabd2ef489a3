//! The operator process: puts the rooms together, starts them, and stops them in order.
//!
//! Every replica serves, from its own watches and its own journal; who holds the Lease reconciles besides. Losing it must never end
//! the serving.

mod anchors;
mod context;
mod control;
mod election;
mod feed;
mod leading;
mod listeners;
mod metrics;
pub mod options;
mod serving;
mod storage;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Config, ResourceExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use self::election::{Election, Tally};
use self::feed::Feed;
use self::leading::Leading;
use self::listeners::{Listeners, names};
use self::options::Options;
use self::storage::Storage;
use crate::controllers::certificates::{self, AuthorityError, Keeper, Published};
use crate::controllers::keys::{self, KeysError};
use crate::controllers::leadership::leadership;
use crate::controllers::preflight::Evidence;
use crate::controllers::proofs::Proofs;
use crate::controllers::replay_runs::ReplayRunner;
use crate::controllers::{self, Context};
use crate::gate::{Snapshot, arms_key};
use crate::lifecycle::election::Terms;
use crate::policy::PublicKey;
use crate::server::issuers::{self, Issuer, Issuers, IssuersError};
use crate::server::tls::{ServingCertificate, TlsError};
use crate::server::{
    Authenticator, Freshness, KubeReviews, Metrics, ReviewedAccess, ReviewedTokens, Server, Sessions, Settings, Shadow,
    SystemClock,
};
use crate::source::compile::Compiler;
use crate::source::index::Faults;
use crate::source::kubernetes::{self, SourceError, Watching, call};
use crate::source::past::KeptObjects;
use crate::store::{Replays, Store, StoreError};

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
    /// PostgreSQL.
    #[error("{0}")]
    Postgres(String),
    /// Its own program, which proves in a process of its own.
    #[error("this program does not know where it is: {0}")]
    Program(std::io::Error),
    /// Issuers.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// The cluster's tokens are for the API server to judge: it knows which are revoked.
    #[error("--issuers: {0} is this cluster's own issuer, whose tokens need no configuration")]
    OwnIssuer(String),
    /// An address.
    #[error("{flag} {address}: {source}")]
    Listen { flag: &'static str, address: String, source: std::io::Error },
    /// The times of the election.
    #[error("{0}")]
    Terms(String),
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
pub async fn run(args: Options) -> Result<(), OperatorError> {
    // Another library may have set one before; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let terms = terms(&args)?;
    let listeners = Listeners::bind(&args).await?;
    let issuers = args.issuers.as_deref().map(issuers::read).transpose()?.unwrap_or_default();
    let config = Config::infer().await.map_err(|e| OperatorError::Config(e.to_string()))?;
    let watching =
        Watching::new(&config, args.relist_seconds).await.map_err(|e| OperatorError::Config(e.to_string()))?;
    let client = watching.client.clone();
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
    let storage = Storage::open(&args, keys.installation, Arc::new(sink)).await?;
    let store: Arc<dyn Store> = storage.store.clone();
    let replays: Arc<dyn Replays> = storage.replays.clone();
    let sessions = Sessions::load(store.as_ref()).await;
    let sessions = sessions
        .map_err(|source| OperatorError::Store { dir: args.data_dir.display().to_string(), source })
        .map(Arc::new)?;

    let snapshot: Arc<ArcSwap<Snapshot>> = Arc::default();
    let freshness = Arc::new(Freshness::new(Instant::now()));
    let compiler = Arc::new(Compiler::new(store.clone()));
    let faults = Arc::new(Faults::default());
    let arms_key = arms_key(&keys.redaction);
    let into =
        feed::Into { compiler: &compiler, snapshot: &snapshot, faults: &faults, freshness: &freshness, arms_key };
    let mut feed = Feed::start(&args, &watching, &installation, into);
    let past = Arc::new(KeptObjects { objects: feed.objects.clone(), compiler: compiler.clone() });
    let runner = ReplayRunner::new(replays.clone(), past.clone(), Some(feed.objects.clone()), args.namespace.clone());
    let runner = Arc::new(runner);

    let proofs = Proofs::of_operator(feed.objects.clone(), args.namespace.clone()).map_err(OperatorError::Program)?;
    let preflight = Arc::new(Evidence::new(runner.clone(), proofs));

    let (office, leadership) = leadership();
    let tally = Arc::new(Tally::default());
    let election = Election::new(client.clone(), &args.namespace, identity(), terms, office, tally.clone());
    let reporter = Reporter { controller: "remit".into(), instance: std::env::var("POD_NAME").ok() };
    let published = Arc::new(Published::new(authority.bundle.clone()));
    let ctx = Arc::new(Context {
        client: client.clone(),
        objects: feed.objects.clone(),
        store: store.clone(),
        replays: replays.clone(),
        runner,
        past: past.clone(),
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
        rollout: controllers::tenant_rollout::Rollout::new(storage.rollouts.clone(), storage.arms.clone(), preflight),
        issuers: issuers.clone(),
        leadership: leadership.clone(),
        failures: AtomicU64::new(0),
    });
    let registry = metrics::registry(&storage, &ctx, &tally, &feed.pulse);
    let metrics = Arc::new(Metrics::new(registry));
    let clock = Arc::new(SystemClock);
    let reviews = KubeReviews::new(client.clone());
    let own = reviews.issuer().await;
    let reviews = Arc::new(reviews);
    let reviewed = ReviewedTokens::new(reviews.clone(), own.clone(), clock.clone(), metrics.clone());
    let authenticator = authenticator(issuers, own, Arc::new(reviewed), &metrics)?;
    let shadow = Shadow::start(storage.arms.clone(), metrics.clone(), keys.redaction.to_vec());
    let shadow = Arc::new(shadow.map_err(OperatorError::Thread)?);
    let state = Arc::new(Server {
        snapshot: snapshot.clone(),
        freshness,
        journal: storage.journal.clone(),
        store: store.clone(),
        replays,
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
        control: Some(Arc::new(control::Control(ctx.clone()))),
    });
    let mut servers = serving::start(listeners, &certificate, &state, &ctx)?;

    let (stop, stopped) = watch::channel(false);
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
        leadership: leadership.clone(),
    };
    let keeper = tokio::spawn(keeper.run(stopped.clone()));
    let sweeper = tokio::spawn(sessions.run(state, stopped.clone()));
    let leading = Leading { ctx, changes: feed.changes.clone(), grace: terms.grace() };
    let mut reconciling = leading.start(election, feed.ready.clone());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), namespace = %args.namespace, %installation, listen = %args.listen,
        webhook = %args.webhook_listen, metrics = %args.metrics_listen, "the operator has started",
    );
    let (mut term, mut int) = (wait_for(SignalKind::terminate())?, wait_for(SignalKind::interrupt())?);
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        _ = &mut feed.index => Some("the index"),
        _ = reconciling.ended() => Some("a controller"),
        _ = servers.ended() => Some("a server"),
    };
    tracing::info!("stopping: another replica may lead, requests under way finish, then the journal is closed");
    servers.leave();
    // The lease goes at once, so that nobody waits for a leader while this replica still answers.
    let reconciling = tokio::spawn(reconciling.stop(LAST_PASSES));
    if ended.is_none() {
        drain(args.drain_seconds, &mut term, &mut int).await;
    }
    servers.stop().await;
    let _ = stop.send(true);
    within("the controllers", LAST_PASSES * 2, reconciling).await;
    within("the certificates", LAST_PASSES, keeper).await;
    within("the sessions", LAST_PASSES, sweeper).await;
    shadow.close().await;
    storage.close().await;
    tracing::info!("stopped");
    match ended {
        None => Ok(()),
        Some(what) => Err(OperatorError::Ended(what)),
    }
}

/// Goes on answering until those who send calls have heard that this replica is not ready; a second signal ends the wait.
async fn drain(time: Duration, term: &mut Signal, int: &mut Signal) {
    if time.is_zero() {
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

async fn within<T>(what: &'static str, time: Duration, task: JoinHandle<T>) {
    match tokio::time::timeout(time, task).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!(what, error = %said(&error), "did not end well"),
        Err(_) => tracing::warn!(what, "did not end in time"),
    }
}

fn said(error: &JoinError) -> &'static str {
    if error.is_panic() { "it panicked" } else { "it was cancelled" }
}

/// Who this process is in the election: another one after each start.
fn identity() -> String {
    let name = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    format!("{}_{}", name.as_deref().unwrap_or("remit"), uuid::Uuid::now_v7())
}

fn terms(args: &Options) -> Result<Terms, OperatorError> {
    let terms = Terms { lease: args.lease_seconds, renew: args.lease_renew_seconds, retry: args.lease_retry_seconds };
    terms.check().map_err(OperatorError::Terms)?;
    Ok(terms)
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

fn wait_for(kind: SignalKind) -> Result<Signal, OperatorError> {
    signal(kind).map_err(OperatorError::Signal)
}

async fn uid_of(client: &Client, namespace: &str) -> Result<String, SourceError> {
    let api: Api<Namespace> = Api::all(client.clone());
    Ok(call("namespaces", api.get(namespace)).await?.uid().unwrap_or_default())
}
