//! Remit for one folder, without a cluster: the same server, gates, policies and store as the operator's, over files.
//!
//! One process leads a folder at a time: it holds the store's lock, and serves the others through the socket. Only where objects come
//! from, and who may ask, differs from a cluster.

mod access;
mod metrics;
mod reload;
pub mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::access::{LocalRights, LocalTokens};
use self::metrics::FolderNumbers;
use self::reload::Said;
use self::state::{State, StateError};
use crate::controllers::replay_runs::ReplayRunner;
use crate::gate::Snapshot;
use crate::server::issuers::{Issuer, Issuers, IssuersError};
use crate::server::tls::{Limits, serve};
use crate::server::{
    Authenticator, Freshness, JournalNumbers, Lanes, Metrics, Server, Sessions, Settings, Shadow, SystemClock,
    note_router, retain, router,
};
use crate::source::compile::Compiler;
use crate::source::feed::{Feed, FeedError, Whose, read_first};
use crate::source::past::KeptFiles;
use crate::store::{DirectoryLock, SqliteOptions, SqliteStore, Store, StoreError};
use crate::transport::reachable;

/// Tenant of a folder whose objects name no namespace.
const DEFAULT_TENANT: &str = "default";
/// Requests under way at stop.
const DRAIN: Duration = Duration::from_secs(2);
/// Stack of the runtime's threads: Cedar's evaluator recurses.
const STACK: usize = 8 * 1024 * 1024;

/// Why a folder can't be led.
#[derive(Debug, thiserror::Error)]
pub enum LaptopError {
    /// `DIR/.remit`.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal. `Locked`: another process leads.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Issuers.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// What lies in the folder.
    #[error("{0}")]
    Folder(#[from] FeedError),
    /// The socket.
    #[error("{path}: {source}")]
    Socket {
        /// Where it should be.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
}

/// How to lead a folder.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder.
    pub dir: PathBuf,
    /// Name of the tenant; the namespace that the objects name, else `default`, where it is None.
    pub tenant: Option<String>,
    /// Issuers whose tokens are taken besides the folder's own.
    pub issuers: Vec<Issuer>,
}

/// A folder that this process leads.
pub struct Laptop {
    router: Router,
    sqlite: Arc<SqliteStore>,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// A runtime on which a folder can be led: evaluation needs more stack than a thread has.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_stack_size(STACK).build()
}

impl Laptop {
    /// Takes the folder's lock, reads the folder and serves its socket. Nothing is left behind where it fails.
    pub async fn lead(options: &Options, state: &State) -> Result<Self, LaptopError> {
        let (snapshot, said): (Arc<ArcSwap<Snapshot>>, Arc<Said>) = Default::default();
        // The lock first: what belongs to the folder is made and read by one process only.
        let lock = DirectoryLock::take(state.root())?;
        let secrets = state.secrets()?;
        let (taken, set) = read_first(&options.dir).await?;
        let signing_key = Some(secrets.installation);
        let sqlite = SqliteStore::open_locked(lock, SqliteOptions { signing_key, ..SqliteOptions::default() }).await?;
        let store: Arc<dyn Store> = sqlite.clone();
        let tenant = options.tenant.clone().or_else(|| set.namespace.clone());
        let tenant = tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned());
        state.note_tenant(&tenant)?;
        // The journal's own id: a folder whose records were taken away is another tenant.
        let whose = Whose { dir: options.dir.clone(), tenant: tenant.clone(), uid: sqlite.writer().to_owned() };
        let mut feed = Feed::new(whose, Compiler::new(store.clone()), snapshot.clone());
        let first = feed.take(set).await;
        if let Err(error) = first {
            sqlite.close().await;
            return Err(error.into());
        }
        said.note(&feed, &first);

        let mut registry = Registry::default();
        registry.register_collector(Box::new(JournalNumbers(sqlite.clone())));
        registry.register_collector(Box::new(FolderNumbers(said.clone())));
        let sessions = Arc::new(Sessions::load(store.as_ref()).await?);
        let freshness = Arc::new(Freshness::new(Instant::now()));
        freshness.alive(Instant::now());
        let metrics = Arc::new(Metrics::new(registry));
        let local: Arc<dyn Authenticator> = Arc::new(LocalTokens::new(&secrets.token, &secrets.admin_token));
        let clock = Arc::new(SystemClock);
        let authenticator = match Issuers::in_front_of(local, options.issuers.clone(), clock, metrics.clone()) {
            Ok(authenticator) => authenticator,
            Err(error) => {
                sqlite.close().await;
                return Err(error.into());
            }
        };
        let past = Arc::new(KeptFiles { dir: options.dir.clone(), compiler: Compiler::new(store.clone()) });
        let runner = Arc::new(ReplayRunner::new(sqlite.clone(), past.clone(), None, tenant.clone()));
        let server = Arc::new(Server {
            snapshot: snapshot.clone(),
            freshness,
            journal: sqlite.clone(),
            store: store.clone(),
            replays: sqlite.clone(),
            authenticator,
            authorizer: Arc::new(LocalRights { tenant: tenant.clone() }),
            sessions: sessions.clone(),
            metrics,
            clock: Arc::new(SystemClock),
            redaction_key: secrets.redaction.to_vec(),
            settings: Settings {
                // Files don't go silent.
                max_staleness: Duration::MAX,
                operator_namespace: tenant.clone(),
                only_tenant: Some(tenant.clone()),
                ..Settings::default()
            },
            gate: crate::gate::check,
            lanes: Lanes::default(),
            past,
            // A folder has one package at a time.
            shadow: Arc::new(Shadow::off()),
            control: None,
        });
        let note = said.clone();
        let router = router(server.clone()).merge(note_router(server.clone(), Arc::new(move || note.fault())));

        let socket = state.socket();
        let listener = match bind(&socket) {
            Ok(listener) => listener,
            Err(source) => {
                sqlite.close().await;
                return Err(LaptopError::Socket { path: socket.display().to_string(), source });
            }
        };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let limits = Limits { per_address: Limits::default().connections, drain: DRAIN, ..Limits::default() };
        tasks.spawn(serve(listener, None, router.clone(), limits, server.metrics.clone(), stopped.clone()));
        tasks.spawn(reload::follow(feed, taken, said, stopped.clone()));
        tasks.spawn(sessions.run(server, stopped.clone()));
        tasks.spawn(runner.run(stopped.clone()));
        tasks.spawn(retain(store, snapshot, tenant, stopped));
        Ok(Self { router, sqlite, socket, stop, tasks: tokio::sync::Mutex::new(tasks) })
    }

    /// Every route, for calls in this process.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Lets the requests under way finish, closes the journal, and lets go of the folder.
    pub async fn stop(&self) {
        let _ = self.stop.send(true);
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        // Still under the lock: from here on it may be another's.
        let _ = std::fs::remove_file(&self.socket);
        self.sqlite.close().await;
    }
}

/// Binds the socket of a folder whose lock this process holds: whatever lies there was left behind.
fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (short, _held) = reachable(socket)?;
    let listener = UnixListener::bind(short)?;
    // The folder is closed to others already; the socket is too.
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}
