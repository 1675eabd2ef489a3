//! The index over objects that tests put there: what a rollout's status makes of the snapshot.

use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::api::{
    PolicyPackage, Sensitivity, SourceFile, TenantRollout, TenantRolloutSpec, TenantRolloutStatus, Tier, Tool,
};
use crate::gate::Tenant;
use crate::store::{SqliteOptions, SqliteStore};

const KEY: [u8; 32] = [5; 32];

fn spec(version: &str) -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "base".into(),
        version: version.into(),
        tools: vec![Tool {
            name: "git/log".into(),
            tier: Tier::Read,
            sensitivity: Sensitivity::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        }],
        policies: vec![SourceFile {
            name: "main.cedar".into(),
            text: "@id(\"all\") permit(principal, action, resource);".into(),
        }],
        ..PolicyPackageSpec::default()
    }
}

fn revision(version: &str, number: i64) -> RevisionStatus {
    RevisionStatus {
        tenant_uid: "uid-acme".into(),
        package: "base".into(),
        version: version.into(),
        digest: digest(&spec(version)),
        revision: number,
        ..RevisionStatus::default()
    }
}

fn status(epoch: i64, candidate: Option<RevisionStatus>, percent: Option<i64>) -> TenantRolloutStatus {
    TenantRolloutStatus {
        epoch,
        stable: Some(revision("1.0.0", 1)),
        candidate,
        percent,
        shadow_percent: percent.map(|_| 30),
        ..TenantRolloutStatus::default()
    }
}

/// An index under way, and what feeds it.
struct World {
    packages: Writer<DeserializeGuard<PolicyPackage>>,
    rollouts: Writer<DeserializeGuard<TenantRollout>>,
    changes: UnboundedSender<Change>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    faults: Arc<Faults>,
    store: Arc<SqliteStore>,
    _dir: tempfile::TempDir,
}

fn synced<K>() -> (reflector::Store<K>, Writer<K>)
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    (store, writer)
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        let (namespaces, mut namespace) = synced();
        let mut acme = Namespace::default();
        (acme.metadata.name, acme.metadata.uid) = (Some("acme".into()), Some("uid-acme".into()));
        namespace.apply_watcher_event(&Event::Apply(acme));
        let (packages, package) = synced();
        let (rollouts, rollout) = synced();
        let objects = Objects {
            namespaces,
            agents: synced().0,
            packages,
            signers: synced().0,
            rollouts,
            profiles: synced().0,
            replays: synced().0,
            revisions: synced().0,
        };
        let from = Sources {
            objects,
            compiler: Arc::new(Compiler::new(store.clone())),
            namespace: "remit-system".into(),
            installation: "here".into(),
            declared: None,
            arms_key: KEY,
        };
        let (snapshot, faults): (Arc<ArcSwap<Snapshot>>, Arc<Faults>) = Default::default();
        let (ready, mut readiness) = watch::channel(false);
        let (changes, to_index) = unbounded_channel();
        let pulse = Arc::new(Pulse::new(|| {}));
        let index = Index::new(from, snapshot.clone(), faults.clone(), vec![], pulse, ready);
        tokio::spawn(index.run(to_index));
        let mut world = Self { packages: package, rollouts: rollout, changes, snapshot, faults, store, _dir: dir };
        world.package("1.0.0");
        world.package("2.0.0");
        readiness.wait_for(|ready| *ready).await.unwrap();
        world
    }

    fn package(&mut self, version: &str) {
        let mut package = PolicyPackage::new(&format!("base-{version}"), spec(version));
        package.metadata.namespace = Some("acme".into());
        self.packages.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(package))));
        self.changes.send(Change::Package("acme".into(), String::new())).unwrap();
    }

    /// Writes the status, and waits until the index has looked at it.
    async fn says(&mut self, status: TenantRolloutStatus) -> Arc<Tenant> {
        let mut rollout = TenantRollout::new("default", TenantRolloutSpec::default());
        (rollout.metadata.namespace, rollout.metadata.uid) = (Some("acme".into()), Some("uid-rollout".into()));
        rollout.status = Some(status);
        self.rollouts.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(rollout))));
        self.changes.send(Change::Rollout("acme".into())).unwrap();
        self.looked().await
    }

    async fn looked(&self) -> Arc<Tenant> {
        let before = self.snapshot.load().generation;
        // Two swaps: the one that may be under way, and the next.
        for n in 1..=2 {
            self.changes.send(Change::Rollout("acme".into())).unwrap();
            while self.snapshot.load().generation < before + n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.snapshot.load().tenants["acme"].clone()
    }
}

fn loaded(package: Option<&Arc<CompiledPackage>>) -> String {
    package.map_or(String::new(), |p| p.version().to_string())
}

#[tokio::test]
async fn stages_promotion_and_rollback_are_followed() {
    let mut w = World::new().await;
    let queued = w.says(status(1, Some(revision("2.0.0", 2)), None)).await;
    assert!(queued.canary.is_none(), "before stage one nobody is answered by it");
    assert_eq!(loaded(queued.package.as_ref()), "1.0.0");

    let first = w.says(status(2, Some(revision("2.0.0", 2)), Some(5))).await;
    let canary = first.canary.as_ref().unwrap();
    assert_eq!((canary.percent, canary.shadow_percent, canary.revision, canary.key), (5, 30, 2, KEY));
    assert_eq!((loaded(first.package.as_ref()), loaded(canary.package.as_ref())), ("1.0.0".into(), "2.0.0".into()));

    let late = w.says(status(1, None, None)).await;
    assert!(Arc::ptr_eq(&late, &first), "what is older than what is acted by is not acted by");

    let promoted = TenantRolloutStatus { stable: Some(revision("2.0.0", 2)), ..status(3, None, None) };
    let promoted = w.says(promoted).await;
    assert!(promoted.canary.is_none());
    assert!(Arc::ptr_eq(promoted.package.as_ref().unwrap(), canary.package.as_ref().unwrap()), "not compiled again");

    let again = w.says(status(4, Some(revision("2.0.0", 3)), Some(25))).await;
    assert_eq!(loaded(again.package.as_ref()), "1.0.0");
    let back = w.says(status(5, None, None)).await;
    assert!(back.canary.is_none());
    let undone = w.says(status(4, Some(revision("2.0.0", 3)), Some(25))).await;
    assert!(undone.canary.is_none(), "a rollback is not undone by an old read");
    w.store.close().await;
}

#[tokio::test]
async fn a_forged_candidate_answers_nobody() {
    let mut w = World::new().await;
    let of = |uid: &str| RevisionStatus { tenant_uid: uid.into(), ..revision("2.0.0", 2) };
    let foreign = w.says(status(1, Some(of("uid-of-another-namespace")), Some(100))).await;
    assert!(foreign.canary.is_none(), "a fact of another namespace is none");
    assert_eq!(loaded(foreign.package.as_ref()), "1.0.0");
    assert_eq!(w.faults.candidate("acme"), None);

    // A digest that no bytes have, and bytes whose signature is not what the status says.
    let no_bytes = RevisionStatus { digest: digest(&spec("3.0.0")), ..revision("2.0.0", 2) };
    let no_key = RevisionStatus { key_fingerprint: Some("sha256:made-up".into()), ..revision("2.0.0", 2) };
    for (epoch, forged) in [(2, no_bytes), (3, no_key)] {
        let tenant = w.says(status(epoch, Some(forged), Some(100))).await;
        assert!(
            tenant.canary.as_ref().unwrap().package.is_none(),
            "its sessions are denied, not answered by anything else"
        );
        assert_eq!(loaded(tenant.package.as_ref()), "1.0.0");
        assert!(w.faults.candidate("acme").is_some(), "and the leader hears of it");
        assert_eq!(w.faults.get("acme"), None, "which is not the fault of what is in force");
    }
    for (epoch, percent) in [(4, -5), (5, 101), (6, 300)] {
        let tenant = w.says(status(epoch, Some(revision("2.0.0", 2)), Some(percent))).await;
        assert!(tenant.canary.is_none(), "{percent} % is no share");
    }
    w.store.close().await;
}

#[tokio::test]
async fn bytes_that_come_late_are_loaded_when_they_come() {
    let mut w = World::new().await;
    let without = w.says(status(1, Some(revision("3.0.0", 2)), Some(5))).await;
    assert!(without.canary.as_ref().unwrap().package.is_none());
    let why = w.faults.candidate("acme").unwrap();
    assert!(why.contains("is missing"), "{why}");
    w.package("3.0.0");
    let with = w.looked().await;
    assert_eq!(loaded(with.canary.as_ref().unwrap().package.as_ref()), "3.0.0");
    assert_eq!(w.faults.candidate("acme"), None);
    assert!(Arc::ptr_eq(with.package.as_ref().unwrap(), without.package.as_ref().unwrap()), "what is in force stays");
    w.store.close().await;
}
