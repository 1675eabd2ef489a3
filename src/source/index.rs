//! Keeps the snapshot right: takes what changed from the watches, loads what is in force, swaps the whole set.
//!
//! It serves only what is recorded as in force and what proved right at this load. It must never serve bytes that it could not
//! check, and never pick a package by itself: that is the rollout's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::compile::Compiler;
use super::kubernetes::{Change, Listeners, Objects, Pulse, tell};
use super::recorded::{LoadError, PackageBytes, check, read};
use super::routing::Routing;
use super::snapshot::{TenantInput, TenantState, assemble, identities, tenant};
use crate::api::{Agent, EffectiveProfile, PolicyPackageSpec, RevisionStatus, RevokedReason};
use crate::gate::{Canary, Snapshot};
use crate::lifecycle::rollout::revision_name;
use crate::policy::{CompiledPackage, Side, Signer, base_platform, digest};

/// For how long changes are gathered before the set is built anew.
const COALESCE: Duration = Duration::from_millis(1);
/// When a load that failed for a passing reason is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Why the packages of a namespace can't be loaded here, for its rollout to say: the one in force, and the candidate.
/// And the epoch of the status that is acted by.
#[derive(Default)]
pub struct Faults(Mutex<HashMap<String, Fault>>, Mutex<HashMap<String, i64>>);

/// Why what can't be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fault {
    in_force: Option<String>,
    candidate: Option<String>,
}

impl Faults {
    /// Why the package in force can't be loaded, if it can't.
    pub fn get(&self, namespace: &str) -> Option<String> {
        self.of(namespace).in_force
    }

    /// Why the candidate can't be loaded, if it can't. Its sessions are denied here meanwhile.
    pub fn candidate(&self, namespace: &str) -> Option<String> {
        self.of(namespace).candidate
    }

    /// The epoch that this replica acts by; 0: by none. A status of a lower one it does not follow.
    pub fn epoch_in_use(&self, namespace: &str) -> i64 {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).copied().unwrap_or_default()
    }

    fn acts_by(&self, namespace: &str, epoch: i64) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.into(), epoch);
    }

    fn acts_by_none(&self, namespace: &str) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }

    fn of(&self, namespace: &str) -> Fault {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned().unwrap_or_default()
    }

    /// Sets them; says what they were.
    fn set(&self, namespace: &str, fault: Fault) -> Fault {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before =
            if fault == Fault::default() { all.remove(namespace) } else { all.insert(namespace.into(), fault) };
        before.unwrap_or_default()
    }
}

/// Every PolicySigner that can be read. One that can't verifies nothing, and covers nothing.
pub fn signers(objects: &Objects) -> Vec<Signer> {
    let mut signers: Vec<Signer> =
        objects.signers.state().iter().filter_map(|s| Signer::try_from(s.0.as_ref().ok()?).ok()).collect();
    signers.sort_by(|a, b| a.name.cmp(&b.name));
    signers
}

/// Fingerprints of keys that any signer declares compromised.
pub fn compromised(signers: &[Signer]) -> BTreeSet<String> {
    let revoked = signers.iter().filter(|s| s.revoked == Some(RevokedReason::Compromised));
    revoked.map(|s| s.key.fingerprint().to_owned()).collect()
}

/// A package that is loaded for a tenant, and as what.
#[derive(Clone)]
struct Loaded {
    uid: String,
    digest: String,
    key: Option<String>,
    package: Arc<CompiledPackage>,
}

/// What the index is built over.
pub struct Sources {
    /// What is there.
    pub objects: Objects,
    /// Compiles packages.
    pub compiler: Arc<Compiler>,
    /// The operator's namespace.
    pub namespace: String,
    /// UID of the installation.
    pub installation: String,
    /// The declared platform package: name and digest.
    pub declared: Option<(String, String)>,
    /// Key by which sessions are shared out between packages.
    pub arms_key: [u8; 32],
}

/// Builds snapshots.
pub struct Index {
    from: Sources,
    snapshot: Arc<ArcSwap<Snapshot>>,
    faults: Arc<Faults>,
    listeners: Listeners,
    pulse: Arc<Pulse>,
    ready: watch::Sender<bool>,
    tenants: BTreeMap<String, TenantState>,
    /// By namespace: what is in force, and the candidate.
    loaded: HashMap<String, Vec<Loaded>>,
    /// By namespace: what of its rollout's status is acted by.
    routing: HashMap<String, Routing>,
    platform: Option<Arc<CompiledPackage>>,
    platform_fault: Option<String>,
    generation: u64,
}

impl Index {
    /// An index that swaps `snapshot`, and tells `listeners` of namespaces whose loading went another way than before.
    pub fn new(
        from: Sources,
        snapshot: Arc<ArcSwap<Snapshot>>,
        faults: Arc<Faults>,
        listeners: Listeners,
        pulse: Arc<Pulse>,
        ready: watch::Sender<bool>,
    ) -> Self {
        Self {
            from,
            snapshot,
            faults,
            listeners,
            pulse,
            ready,
            tenants: BTreeMap::new(),
            loaded: HashMap::new(),
            routing: HashMap::new(),
            platform: None,
            platform_fault: None,
            generation: 0,
        }
    }

    /// Follows the changes until there are no more.
    pub async fn run(mut self, mut changes: UnboundedReceiver<Change>) {
        if let Err(error) = self.synced().await {
            tracing::error!(%error, "the watches ended before they were synced");
            return;
        }
        let mut again = self.rebuild(Dirty { all: true, ..Dirty::default() }).await;
        self.pulse.complete();
        let _ = self.ready.send(true);
        tracing::info!(tenants = self.tenants.len(), "the first snapshot is built");
        loop {
            let mut dirty = Dirty::default();
            let first = if again.is_empty() {
                changes.recv().await
            } else {
                tokio::select! {
                    change = changes.recv() => change,
                    () = tokio::time::sleep(AGAIN) => {
                        dirty.namespaces.append(&mut again);
                        Some(Change::Loaded(String::new()))
                    }
                }
            };
            let Some(first) = first else { return };
            dirty.add(first, &self.from.namespace);
            tokio::time::sleep(COALESCE).await;
            while let Ok(change) = changes.try_recv() {
                dirty.add(change, &self.from.namespace);
            }
            let mut failed = self.rebuild(dirty).await;
            again.append(&mut failed);
        }
    }

    async fn synced(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        let o = &self.from.objects;
        o.namespaces.wait_until_ready().await?;
        o.agents.wait_until_ready().await?;
        o.packages.wait_until_ready().await?;
        o.signers.wait_until_ready().await?;
        o.rollouts.wait_until_ready().await?;
        o.profiles.wait_until_ready().await?;
        o.replays.wait_until_ready().await?;
        o.revisions.wait_until_ready().await
    }

    /// Builds what is dirty and swaps. Gives the namespaces to try again.
    async fn rebuild(&mut self, dirty: Dirty) -> BTreeSet<String> {
        let objects = self.from.objects.clone();
        let signers = signers(&objects);
        let compromised = compromised(&signers);
        let platform = self.platform(&signers).await;
        let names: BTreeSet<String> = if dirty.all {
            let known = self.tenants.keys().cloned();
            objects.namespaces.state().iter().map(|n| n.name_any()).chain(known).collect()
        } else {
            dirty.namespaces
        };
        let mut again = BTreeSet::new();
        for name in names {
            let (fault, passing) = match objects.namespaces.get(&ObjectRef::new(&name)) {
                Some(namespace) => self.tenant(&namespace, &signers, &compromised).await,
                None => {
                    self.drop_tenant(&name);
                    (Fault::default(), false)
                }
            };
            if passing {
                again.insert(name.clone());
            }
            let before = self.faults.set(&name, fault.clone());
            if before == fault {
                continue;
            }
            match &fault.in_force {
                Some(why) if before.in_force != fault.in_force => {
                    tracing::error!(tenant = %name, %why, "what is in force can't be loaded: everything is denied");
                }
                None if before.in_force.is_some() => tracing::info!(tenant = %name, "what is in force is loaded again"),
                _ => {}
            }
            match &fault.candidate {
                Some(why) if before.candidate != fault.candidate => {
                    tracing::error!(tenant = %name, %why, "the candidate can't be loaded: its sessions are denied");
                }
                None if before.candidate.is_some() => {
                    tracing::info!(tenant = %name, "the candidate can be loaded, or is gone")
                }
                _ => {}
            }
            tell(&self.listeners, &Change::Loaded(name));
        }
        self.generation += 1;
        self.snapshot.store(Arc::new(assemble(self.generation, Some(platform), &self.tenants)));
        if dirty.all {
            self.forget();
        }
        again
    }

    fn drop_tenant(&mut self, name: &str) {
        self.tenants.remove(name);
        self.loaded.remove(name);
        self.routing.remove(name);
        self.faults.acts_by_none(name);
    }

    /// One tenant; why its packages can't be loaded, and whether that may pass by itself.
    async fn tenant(
        &mut self,
        namespace: &Namespace,
        signers: &[Signer],
        compromised: &BTreeSet<String>,
    ) -> (Fault, bool) {
        let name = namespace.name_any();
        let uid = namespace.uid().unwrap_or_default();
        let objects = &self.from.objects;
        let agents = objects.agents_of(&name);
        let agents: Vec<&Agent> = agents.iter().filter_map(|a| a.0.as_ref().ok()).collect();
        let rollout = objects.rollout_of(&name);
        let profile = objects.profile_of(&name);
        if agents.is_empty() && rollout.is_none() && profile.is_none() && objects.packages_of(&name).is_empty() {
            self.drop_tenant(&name);
            return (Fault::default(), false);
        }
        let floor = objects.profile_of(&self.from.namespace);
        let spec = |p: &'_ Option<Arc<super::kubernetes::Guarded<crate::api::TenantProfile>>>| {
            p.as_ref().and_then(|p| p.0.as_ref().ok()).map(crate::api::TenantProfile::counted)
        };
        let profile = EffectiveProfile::of(spec(&floor).as_ref(), spec(&profile).as_ref());
        let routing = match rollout.as_ref().and_then(|r| r.0.as_ref().ok()) {
            Some(rollout) => Routing::of(rollout, self.routing.get(&name)),
            None => Routing::default(),
        };
        self.faults.acts_by(&name, routing.epoch());
        self.routing.insert(name.clone(), routing.clone());
        let bad = |s: &RevisionStatus| s.key_fingerprint.as_ref().is_some_and(|k| compromised.contains(k));
        // A re-created namespace inherits nothing: a fact with another UID is none.
        let recorded = routing.stable.filter(|s| s.tenant_uid == uid).filter(|s| !bad(s));
        let candidate = routing.candidate.filter(|c| c.revision.tenant_uid == uid);
        let state = self.tenants.get(&name);
        let mine = identities(&name, &agents);
        let mine = match state {
            Some(s) if *s.identities == mine => s.identities.clone(),
            _ => Arc::new(mine),
        };
        let mut used = Vec::new();
        let mut passing = false;
        let mut fault = Fault::default();
        let package = match recorded {
            None => None,
            Some(recorded) => match self.load(&name, &recorded, signers).await {
                Ok(loaded) => {
                    tracing::debug!(tenant = %name, digest = loaded.digest, "in force");
                    used.push(loaded.clone());
                    Some(loaded.package)
                }
                Err(error) => {
                    passing |= matches!(error, LoadError::Unavailable(_));
                    fault.in_force = Some(error.to_string());
                    None
                }
            },
        };
        let mut canary = None;
        if let Some(candidate) = candidate {
            // Also before stage one, so that it is at hand when that begins.
            let loaded = match bad(&candidate.revision) {
                true => Err(LoadError::Unavailable("the key of its signature is compromised".into())),
                false => self.load(&name, &candidate.revision, signers).await,
            };
            let package = match loaded {
                Ok(loaded) => {
                    used.push(loaded.clone());
                    Some(loaded.package)
                }
                Err(error) => {
                    passing |= matches!(error, LoadError::Unavailable(_));
                    fault.candidate = Some(error.to_string());
                    None
                }
            };
            canary = candidate.share.map(|(percent, shadow_percent)| Canary {
                package,
                revision: candidate.revision.revision,
                percent,
                shadow_percent,
                key: self.from.arms_key,
            });
        }
        // What neither decides any more is let go of.
        self.loaded.insert(name.clone(), used);
        let previous = self.tenants.get(&name).map(|s| &s.tenant);
        let input = TenantInput { name: &name, uid: &uid, agents: &agents, package, canary, profile };
        let tenant = tenant(input, previous);
        self.tenants.insert(name, TenantState { tenant, identities: mine });
        (fault, passing)
    }

    /// Loads what is recorded, or gives what was loaded before: it proved right then, and bytes don't change.
    async fn load(&self, namespace: &str, recorded: &RevisionStatus, signers: &[Signer]) -> Result<Loaded, LoadError> {
        let same = |l: &&Loaded| {
            l.uid == recorded.tenant_uid && l.digest == recorded.digest && l.key == recorded.key_fingerprint
        };
        if let Some(loaded) = self.loaded.get(namespace).and_then(|all| all.iter().find(same)) {
            return Ok(loaded.clone());
        }
        let bytes = find_bytes(&self.from.objects, namespace, recorded, signers)?;
        check(&bytes, recorded, namespace, &self.from.installation, signers)?;
        let package = self.compile(&bytes.spec, &recorded.digest, Side::Tenant).await?;
        Ok(Loaded {
            uid: recorded.tenant_uid.clone(),
            digest: recorded.digest.clone(),
            key: recorded.key_fingerprint.clone(),
            package,
        })
    }

    async fn compile(
        &self,
        spec: &PolicyPackageSpec,
        digest: &str,
        side: Side,
    ) -> Result<Arc<CompiledPackage>, LoadError> {
        match self.from.compiler.compile(spec, digest, side).await {
            Ok(Ok(package)) => Ok(package),
            Ok(Err(refusals)) => Err(match refusals.first() {
                Some(first) => LoadError::Refused(first.clone()),
                None => LoadError::Unavailable("it does not compile".into()),
            }),
            Err(error) => Err(LoadError::Unavailable(format!("the store is not available: {error}"))),
        }
    }

    /// The platform's side. A declared package that can't be loaded makes every check 503, never a tenant-only answer.
    async fn platform(&mut self, signers: &[Signer]) -> Result<Vec<Arc<CompiledPackage>>, String> {
        let base = base_platform();
        let Some((name, declared)) = self.from.declared.clone() else { return Ok(vec![base]) };
        let loaded = self.load_platform(&name, &declared, signers).await;
        let fault = loaded.as_ref().err().map(ToString::to_string);
        if let Some(why) = fault.as_ref().filter(|_| fault != self.platform_fault) {
            tracing::error!(package = %name, digest = %declared, %why, "the platform package can't be loaded: every check is refused");
        }
        self.platform_fault = fault;
        loaded.map(|package| vec![base, package]).map_err(|why| format!("platform package {name}@{declared}: {why}"))
    }

    async fn load_platform(
        &mut self,
        name: &str,
        declared: &str,
        signers: &[Signer],
    ) -> Result<Arc<CompiledPackage>, LoadError> {
        let namespace = self.from.namespace.clone();
        // Its integrity is the digest that the chart declares; a signature is checked besides where there is one.
        let mut recorded = RevisionStatus { digest: declared.to_owned(), ..RevisionStatus::default() };
        recorded.controller_revision = Some(revision_name(declared));
        let bytes = find_bytes(&self.from.objects, &namespace, &recorded, signers)?;
        recorded.key_fingerprint =
            bytes.spec.signature.as_ref().and_then(|s| s.signatures.first()).map(|s| s.keyid.clone());
        check(&bytes, &recorded, &namespace, &self.from.installation, signers)?;
        if let Some(package) = self.platform.as_ref().filter(|p| p.digest() == declared) {
            return Ok(package.clone());
        }
        let package = self.compile(&bytes.spec, declared, Side::Platform).await?;
        if package.package() != name {
            return Err(LoadError::Unavailable(format!("the package of this digest is named {:?}", package.package())));
        }
        self.platform = Some(package.clone());
        Ok(package)
    }

    /// Lets go of compiled packages that nothing refers to any more.
    fn forget(&self) {
        let packages = self.from.objects.packages.state();
        let wanted: HashSet<String> =
            packages.iter().filter_map(|p| p.0.as_ref().ok()).map(|p| digest(&p.spec)).collect();
        self.from.compiler.forget_but(&wanted);
    }
}

/// The bytes of a digest: its ControllerRevision, or a PolicyPackage of the namespace with that digest.
pub fn find_bytes(
    objects: &Objects,
    namespace: &str,
    recorded: &RevisionStatus,
    signers: &[Signer],
) -> Result<PackageBytes, LoadError> {
    let name = recorded.controller_revision.clone().unwrap_or_else(|| revision_name(&recorded.digest));
    let kept = objects.revisions.get(&ObjectRef::new(&name).within(namespace)).map(|r| read(&r));
    if let Some(Ok(bytes)) = kept {
        return Ok(bytes);
    }
    let spec = objects
        .packages_of(namespace)
        .iter()
        .filter_map(|p| p.0.as_ref().ok())
        .find(|p| digest(&p.spec) == recorded.digest)
        .map(|p| p.spec.clone());
    match (spec, kept) {
        (Some(spec), _) => {
            let keyid = spec.signature.as_ref().and_then(|s| s.signatures.first()).map(|s| s.keyid.as_str());
            let key = recorded.key_fingerprint.as_deref().or(keyid);
            let known = signers.iter().find(|s| Some(s.key.fingerprint()) == key);
            Ok(PackageBytes { spec, public_key: known.map(|s| s.key.to_pem().to_owned()) })
        }
        (None, Some(Err(error))) => Err(error),
        (None, _) => Err(LoadError::Missing { name, digest: recorded.digest.clone() }),
    }
}

/// What has to be built anew.
#[derive(Default)]
struct Dirty {
    all: bool,
    namespaces: BTreeSet<String>,
}

impl Dirty {
    fn add(&mut self, change: Change, platform: &str) {
        match change {
            Change::Everything | Change::Signer(_) => self.all = true,
            Change::Profile(n) if n == platform => self.all = true,
            Change::Loaded(_) | Change::Replay(..) => {}
            Change::Agent(n, _) | Change::Package(n, _) => drop(self.namespaces.insert(n)),
            Change::Namespace(n) | Change::Rollout(n) | Change::Profile(n) | Change::Revision(n) => {
                self.namespaces.insert(n);
            }
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod unit;
