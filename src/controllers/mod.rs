//! One reconciler a kind: observe, ask `lifecycle`, apply, write status.
//!
//! They write status by one full server-side apply, only where it differs, and never write `spec`, except to make the empty
//! `TenantRollout/default`.

mod agent;
pub mod arrival;
pub mod ca;
pub mod certificates;
pub mod keys;
pub mod leadership;
mod policy_package;
mod policy_replay;
mod policy_signer;
pub mod preflight;
pub mod proofs;
pub mod replay_runs;
mod tenant_profile;
pub mod tenant_rollout;
pub mod verdict;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store as Reader};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{GROUP, MANAGER, VERSION};
use crate::policy::SigningMode;
use crate::source::compile::Compiler;
use crate::source::index::Faults;
use crate::source::kubernetes::{CALL, Change, Guarded, Objects, call};
use crate::store::{Store, StoreError};

/// Objects of a kind that are reconciled at the same time.
const CONCURRENCY: u16 = 4;
/// For how long triggers of one object are gathered.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// Time for one pass.
const PASS: Duration = Duration::from_secs(60);

/// What every reconciler is given.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is there.
    pub objects: Objects,
    /// What is recorded.
    pub store: Arc<dyn Store>,
    /// Runs of replays.
    pub replays: Arc<dyn crate::store::Replays>,
    /// Carries them out while this replica leads.
    pub runner: Arc<replay_runs::ReplayRunner>,
    /// Packages by digest, those that are not in force any more too.
    pub past: Arc<dyn crate::source::past::PastPackages>,
    /// Compiles packages.
    pub compiler: Arc<Compiler>,
    /// Why packages in force can't be loaded.
    pub faults: Arc<Faults>,
    /// Writes Events.
    pub recorder: Recorder,
    /// The operator's namespace.
    pub namespace: String,
    /// UID of the installation.
    pub installation: String,
    /// Whether unsigned packages are refused from the start.
    pub mode: SigningMode,
    /// Digest of the declared platform package.
    pub declared: Option<String>,
    /// The CA that tenants are given.
    pub authority: Arc<certificates::Published>,
    /// The set that decides now: package tests run under its platform packages.
    pub snapshot: Arc<arc_swap::ArcSwap<crate::gate::Snapshot>>,
    /// Results of package tests.
    pub tests: crate::source::judge::TestResults,
    /// Namespaces with packages whose author may still be about to apply the rollout.
    pub quiet: tenant_rollout::Quiet,
    /// What rollouts need besides.
    pub rollout: tenant_rollout::Rollout,
    /// Issuers besides the cluster's own.
    pub issuers: Vec<crate::server::issuers::Issuer>,
    /// Whether this replica reconciles: no pass takes a step without it.
    pub leadership: leadership::Leadership,
    /// Passes that failed, for `/metrics`.
    pub failures: AtomicU64,
}

/// A pass that was not finished. It is tried again with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] crate::source::kubernetes::SourceError),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// Something that should be readable is not.
    #[error("{0} can't be written as JSON: {1}")]
    Json(&'static str, serde_json::Error),
    /// A pass took too long.
    #[error("the pass took longer than {0:?}")]
    TimedOut(Duration),
}

impl ReconcileError {
    /// Somebody wrote the object between our reading and our writing: what they wrote is on its way here.
    fn is_conflict(&self) -> bool {
        matches!(self, ReconcileError::Api(e) if e.status().is_some_and(|s| s.is_conflict()))
    }
}

impl Context {
    /// Api of a kind in a namespace.
    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// An Event on `object`. It tells people; nothing depends on it.
    async fn event<K>(&self, object: &K, warning: bool, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        tracing::info!(kind = %K::kind(&()), namespace = object.namespace().as_deref(), name = %object.name_any(), reason, note, "event");
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            // Events of the same action are counted as one, with the words of the first.
            action: format!("Reconcile-{}", crate::policy::short(&crate::policy::sha256_text(note.as_bytes()))),
            secondary: None,
        };
        let result = tokio::time::timeout(CALL, self.recorder.publish(&event, &object.object_ref(&()))).await;
        if let Ok(Err(error)) = result {
            tracing::warn!(%error, reason, "an Event could not be written");
        }
    }
}

/// Writes `status`, if it differs from `old`: one full server-side apply. With `guarded`, only over the version that was read.
async fn apply_status<K, S>(
    api: &Api<K>,
    object: &K,
    old: Option<&S>,
    status: &S,
    guarded: bool,
) -> Result<bool, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + serde::de::DeserializeOwned,
    S: Serialize,
{
    let json_of = |s: &S| serde_json::to_value(s).map_err(|e| ReconcileError::Json("status", e));
    let mut next = json_of(status)?;
    let mut before = old.map(json_of).transpose()?;
    // Entries of people in the action list are theirs: they are never part of what Remit applies.
    for value in [Some(&mut next), before.as_mut()].into_iter().flatten() {
        if let Value::Object(map) = value {
            map.remove("actions");
        }
    }
    if before.as_ref() == Some(&next) {
        return Ok(false);
    }
    let name = object.name_any();
    let mut metadata = json!({"name": name});
    if guarded && let Some(version) = object.resource_version() {
        metadata["resourceVersion"] = version.into();
    }
    let body = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": K::kind(&()),
        "metadata": metadata,
        "status": next,
    });
    let params = PatchParams::apply(MANAGER).force();
    let applied = call("status", api.patch_status(&name, &params, &Patch::Apply(body))).await?;
    remove_leftovers(api, &applied, &next).await?;
    Ok(true)
}

/// An apply leaves what another manager wrote (a status that was restored from a backup, say). Here only Remit's word counts.
async fn remove_leftovers<K>(api: &Api<K>, applied: &K, wanted: &Value) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + serde::de::DeserializeOwned,
{
    let applied_json = serde_json::to_value(applied).map_err(|e| ReconcileError::Json("object", e))?;
    let Some(there) = applied_json.get("status").and_then(Value::as_object) else { return Ok(()) };
    let foreign = |key: &&String| *key != "actions" && wanted.get(*key).is_none();
    let nulls: serde_json::Map<String, Value> =
        there.keys().filter(foreign).map(|k| (k.clone(), Value::Null)).collect();
    if nulls.is_empty() {
        return Ok(());
    }
    let body = json!({"metadata": {"resourceVersion": applied.resource_version()}, "status": nulls});
    let name = applied.name_any();
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    call("status", api.patch_status(&name, &params, &Patch::Merge(body))).await?;
    tracing::info!(kind = %K::kind(&()), namespace = applied.namespace(), %name, "status fields of another writer are removed");
    Ok(())
}

/// Queues of what has to be looked at, by kind.
struct Queues {
    agents: UnboundedSender<ObjectRef<agent::Object>>,
    packages: UnboundedSender<ObjectRef<policy_package::Object>>,
    signers: UnboundedSender<ObjectRef<policy_signer::Object>>,
    namespaces: UnboundedSender<ObjectRef<tenant_rollout::Object>>,
    profiles: UnboundedSender<ObjectRef<tenant_profile::Object>>,
    replays: UnboundedSender<ObjectRef<policy_replay::Object>>,
}

/// Starts every controller. They end, after the pass that is under way, when `stop` says so.
pub fn start(ctx: Arc<Context>, changes: UnboundedReceiver<Change>, stop: watch::Receiver<bool>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let o = &ctx.objects;
    let queues = Queues {
        agents: control("agent", &mut tasks, &ctx, o.agents.clone(), agent::reconcile),
        packages: control("policypackage", &mut tasks, &ctx, o.packages.clone(), policy_package::reconcile),
        signers: control("policysigner", &mut tasks, &ctx, o.signers.clone(), policy_signer::reconcile),
        namespaces: control("tenantrollout", &mut tasks, &ctx, o.namespaces.clone(), tenant_rollout::reconcile),
        profiles: control("tenantprofile", &mut tasks, &ctx, o.profiles.clone(), tenant_profile::reconcile),
        replays: control("policyreplay", &mut tasks, &ctx, o.replays.clone(), policy_replay::reconcile),
    };
    tasks.spawn(route(ctx.clone(), queues, changes, stop));
    tasks
}

fn control<K, F>(
    name: &'static str,
    tasks: &mut JoinSet<()>,
    ctx: &Arc<Context>,
    store: Reader<K>,
    mut reconcile: impl FnMut(Arc<K>, Arc<Context>) -> F + Send + 'static,
) -> UnboundedSender<ObjectRef<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let (sender, queue) = unbounded::<ObjectRef<K>>();
    let config = controller::Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY);
    let tries: Arc<std::sync::Mutex<HashMap<String, u32>>> = Arc::default();
    let (ctx, key) = (ctx.clone(), |o: &K| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any()));
    let succeeded = tries.clone();
    let reconciler = move |object: Arc<K>, ctx: Arc<Context>| {
        let leadership = ctx.leadership.clone();
        let (pass, tries, key) = (reconcile(object.clone(), ctx), succeeded.clone(), key(&object));
        Box::pin(async move {
            let timed = async { tokio::time::timeout(PASS, pass).await.unwrap_or(Err(ReconcileError::TimedOut(PASS))) };
            // Whoever leads next looks at everything.
            let Some(done) = leadership.guard(timed).await else { return Ok(Action::await_change()) };
            if done.is_ok() {
                tries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&key);
            }
            done
        })
    };
    let error_policy = move |object: Arc<K>, error: &ReconcileError, ctx: Arc<Context>| {
        if error.is_conflict() {
            return Action::requeue(Duration::from_millis(20));
        }
        ctx.failures.fetch_add(1, Ordering::Relaxed);
        let mut tries = tries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let n = tries.entry(key(&object)).or_default();
        *n = (*n + 1).min(10);
        tracing::warn!(controller = name, object = %key(&object), %error, "a pass failed and is tried again");
        Action::requeue(Duration::from_millis(100 << *n))
    };
    tasks.spawn(async move {
        let queue = queue.map(Ok::<_, Infallible>);
        applier(reconciler, error_policy, ctx, store, queue, config).for_each(|_| async {}).await;
        tracing::debug!(controller = name, "stopped");
    });
    sender
}

/// Takes what changed to whom it concerns.
async fn route(ctx: Arc<Context>, to: Queues, mut changes: UnboundedReceiver<Change>, mut stop: watch::Receiver<bool>) {
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        // Dropping the queues ends the controllers after the passes that are under way.
        let Some(change) = change else { return };
        to.route(&ctx, change);
    }
}

impl Queues {
    fn route(&self, ctx: &Context, change: Change) {
        let o = &ctx.objects;
        match change {
            Change::Everything => {
                send_all(&self.agents, &o.agents);
                send_all(&self.packages, &o.packages);
                send_all(&self.signers, &o.signers);
                send_all(&self.namespaces, &o.namespaces);
                send_all(&self.profiles, &o.profiles);
                send_all(&self.replays, &o.replays);
            }
            Change::Namespace(n) => {
                for package in o.packages_of(&n) {
                    self.package(&n, &package.name_any());
                }
                self.namespace(&n);
            }
            Change::Agent(n, name) => {
                // Whoever claims an account that this one claims, or claimed: its neighbours.
                for agent in o.agents_of(&n) {
                    let _ = self.agents.unbounded_send(ObjectRef::from_obj(&*agent));
                }
                let _ = self.agents.unbounded_send(ObjectRef::new(&name).within(&n));
                self.namespace(&n);
            }
            Change::Package(n, name) => {
                self.package(&n, &name);
                self.namespace(&n);
                send_all(&self.signers, &o.signers);
            }
            Change::Signer(_) => {
                send_all(&self.signers, &o.signers);
                send_all(&self.namespaces, &o.namespaces);
                send_all(&self.packages, &o.packages);
            }
            Change::Rollout(n) => {
                self.namespace(&n);
                for package in o.packages_of(&n) {
                    self.package(&n, &package.name_any());
                }
            }
            Change::Revision(n) | Change::Loaded(n) => self.namespace(&n),
            Change::Replay(n, name) => {
                let _ = self.replays.unbounded_send(ObjectRef::new(&name).within(&n));
            }
            Change::Profile(n) if n == ctx.namespace => send_all(&self.profiles, &o.profiles),
            Change::Profile(n) => {
                let _ = self.profiles.unbounded_send(ObjectRef::new(crate::api::DEFAULT_NAME).within(&n));
            }
        }
    }

    fn namespace(&self, namespace: &str) {
        let _ = self.namespaces.unbounded_send(ObjectRef::new(namespace));
    }

    fn package(&self, namespace: &str, name: &str) {
        let _ = self.packages.unbounded_send(ObjectRef::new(name).within(namespace));
    }
}

fn send_all<K>(to: &UnboundedSender<ObjectRef<K>>, store: &Reader<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    for object in store.state() {
        let _ = to.unbounded_send(ObjectRef::from_obj(&*object));
    }
}

/// An object that the schema let through and Remit can't read: it waits for a change and stops nobody else.
fn unreadable<K: Resource<DynamicType = ()>>(object: &Guarded<K>) -> Action {
    if let Err(invalid) = &object.0 {
        let (namespace, name) = (object.namespace(), object.name_any());
        tracing::error!(kind = %K::kind(&()), ?namespace, %name, error = %invalid.error, "an object can't be read and is ignored");
    }
    Action::await_change()
}

/// Waits for a change, or until the nearest of these instants.
fn until(now: jiff::Timestamp, instants: impl IntoIterator<Item = jiff::Timestamp>) -> Action {
    let next = instants.into_iter().filter(|t| *t > now).min();
    match next.and_then(|t| Duration::try_from(t.duration_since(now)).ok()) {
        // A second later, so that the instant has surely passed.
        Some(wait) => Action::requeue(wait.min(Duration::from_secs(86_400)) + Duration::from_secs(1)),
        None => Action::await_change(),
    }
}

/// Names in a message, in order, few of them.
fn list(names: &BTreeSet<String>) -> String {
    let mut out = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        out.push_str(", …");
    }
    out
}
