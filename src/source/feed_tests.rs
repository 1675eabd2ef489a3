//! What comes into force of a folder, and what does not.

use super::*;
use crate::api::SourceFile;
use crate::store::{SqliteOptions, SqliteStore};

struct World {
    feed: Feed,
    snapshot: Arc<ArcSwap<Snapshot>>,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
    let whose = Whose { dir: dir.path().into(), tenant: "acme".into(), uid: "u".into() };
    let snapshot: Arc<ArcSwap<Snapshot>> = Arc::default();
    World { feed: Feed::new(whose, Compiler::new(store), snapshot.clone()), snapshot, _dir: dir }
}

fn package_of(version: &str, policy: &str) -> (String, crate::api::PolicyPackageSpec) {
    let spec = crate::api::PolicyPackageSpec {
        package: "tools".into(),
        version: version.into(),
        policies: vec![SourceFile { name: "a.cedar".into(), text: policy.into() }],
        ..Default::default()
    };
    (format!("folder-{version}"), spec)
}

const GOOD: &str = "@id(\"a\") permit(principal, action, resource);";
const OTHER: &str = "@id(\"b\") permit(principal, action, resource);";
const BROKEN: &str = "this is not Cedar";

fn set(packages: &[(&str, &str)], trust: i64) -> Directory {
    let spec = crate::api::AgentSpec { trust_level: trust, ..Default::default() };
    Directory {
        agents: vec![Agent::new("coder", spec)],
        packages: packages.iter().map(|(version, policy)| package_of(version, policy)).collect(),
        ..Directory::default()
    }
}

impl World {
    /// Version in force and the agent's trust, as one check sees them.
    fn seen(&self) -> (Option<String>, i64) {
        let snapshot = self.snapshot.load();
        let tenant = &snapshot.tenants["acme"];
        (tenant.package.as_ref().map(|p| p.version().to_string()), tenant.agents["coder"].facts.trust)
    }
}

fn v(version: &str) -> Option<String> {
    Some(version.to_owned())
}

#[tokio::test]
async fn the_highest_good_version_is_in_force_and_an_edit_needs_no_new_version() {
    let mut w = world().await;
    assert_eq!(w.feed.take(set(&[("1.9.0", GOOD), ("1.10.0", GOOD)], 1)).await.unwrap(), None);
    assert_eq!(w.seen(), (v("1.10.0"), 1));
    let before = w.snapshot.load().tenants["acme"].package.as_ref().unwrap().digest().to_owned();
    w.feed.take(set(&[("1.10.0", OTHER)], 2)).await.unwrap();
    assert_eq!(w.seen(), (v("1.10.0"), 2));
    assert_eq!(w.snapshot.load().generation, 2, "package and agent in one swap: nobody saw half of it");
    assert_ne!(w.snapshot.load().tenants["acme"].package.as_ref().unwrap().digest(), before);
    // Down again: the folder is the truth, it has no history.
    w.feed.take(set(&[("1.0.0", GOOD)], 2)).await.unwrap();
    assert_eq!(w.seen(), (v("1.0.0"), 2));
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_set_as_a_whole() {
    let mut w = world().await;
    w.feed.take(set(&[("1.0.0", GOOD)], 1)).await.unwrap();
    let error = w.feed.take(set(&[("1.0.0", BROKEN)], 4)).await.unwrap_err().to_string();
    assert!(error.contains("folder-1.0.0: tools 1.0.0 is refused") && error.contains("a.cedar"), "{error}");
    assert_eq!(w.seen(), (v("1.0.0"), 1), "neither the package nor the agent");
    assert_eq!(w.snapshot.load().generation, 1);
    // An older package that lies beside does not come into force by it either.
    w.feed.take(set(&[("1.0.0", GOOD), ("2.0.0", GOOD)], 1)).await.unwrap();
    w.feed.take(set(&[("1.0.0", GOOD), ("2.0.0", BROKEN)], 4)).await.unwrap_err();
    assert_eq!(w.seen(), (v("2.0.0"), 1));
}

#[tokio::test]
async fn a_new_broken_version_beside_what_is_in_force_is_said_and_changes_nothing_else() {
    let mut w = world().await;
    let said = w.feed.take(set(&[("1.0.0", GOOD), ("2.0.0", BROKEN)], 1)).await.unwrap();
    assert!(said.unwrap().contains("folder-2.0.0"));
    assert_eq!(w.seen(), (v("1.0.0"), 1));
    w.feed.take(set(&[("1.0.0", GOOD), ("2.0.0", BROKEN)], 3)).await.unwrap().unwrap();
    assert_eq!(w.seen(), (v("1.0.0"), 3));
}

#[tokio::test]
async fn failing_tests_keep_a_package_out() {
    let mut w = world().await;
    let mut failing = set(&[("1.0.0", GOOD)], 1);
    failing.packages[0].1.tests.push(SourceFile {
        name: "tests/a.yaml".into(),
        text: "- {name: x, agent: coder, call: {tool: no/tool}, expect: {decision: allow}}\n".into(),
    });
    let error = w.feed.take(failing).await.unwrap_err().to_string();
    assert!(error.contains("TestFailed") && error.contains("tests/a.yaml:1:"), "{error}");
    assert!(w.snapshot.load().tenants.is_empty());
}

#[tokio::test]
async fn the_rollout_of_the_folder_chooses_as_in_the_cluster() {
    let mut w = world().await;
    let with = |selector: crate::api::PackageSelector, paused| {
        let spec = TenantRolloutSpec { package: Some(selector), paused, ..Default::default() };
        let rollout = Some(crate::api::TenantRollout::new("default", spec));
        Directory { rollout, ..set(&[("1.0.0", GOOD), ("2.0.0", GOOD)], 1) }
    };
    let range = |r: &str| crate::api::PackageSelector { version: Some(r.into()), ..Default::default() };
    w.feed.take(with(range("<2"), false)).await.unwrap();
    assert_eq!(w.seen().0, v("1.0.0"));
    w.feed.take(with(range("*"), true)).await.unwrap();
    assert_eq!(w.seen().0, v("1.0.0"), "while it is paused, what is in force stays");
    let digest = crate::policy::digest(&package_of("2.0.0", GOOD).1);
    let exact = crate::api::PackageSelector { digest: Some(digest), ..Default::default() };
    w.feed.take(with(exact, false)).await.unwrap();
    assert_eq!(w.seen().0, v("2.0.0"));
    assert!(w.feed.take(with(range(">=3"), false)).await.unwrap_err().to_string().contains("matches"));
    let mut two = set(&[("1.0.0", GOOD), ("2.0.0", GOOD)], 1);
    two.packages[0].1.package = "another".into();
    assert!(w.feed.take(two).await.unwrap_err().to_string().contains("several packages"));
}

#[tokio::test]
async fn a_folder_with_a_signer_takes_no_unsigned_package_and_another_tenant_is_refused() {
    let mut w = world().await;
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
    let public_key = crate::policy::PublicKey::from_key(key).unwrap().to_pem().to_owned();
    let spec = crate::api::PolicySignerSpec { public_key, tenants: vec!["acme".into()], ..Default::default() };
    let signers = vec![crate::api::PolicySigner::new("s", spec)];
    let error = w.feed.take(Directory { signers, ..set(&[("1.0.0", GOOD)], 1) }).await.unwrap_err().to_string();
    assert!(error.contains("Unsigned"), "{error}");
    let other = Directory { namespace: Some("other".into()), ..set(&[("1.0.0", GOOD)], 1) };
    assert!(w.feed.take(other).await.unwrap_err().to_string().contains("metadata.namespace"));
}

#[test]
fn two_saves_without_a_quiet_look_between_them_are_one_change() {
    let seen = |n: i128| vec![(PathBuf::from("a"), Some([n; 4]))];
    let mut look = Look::new(seen(0));
    assert!(!look.again(seen(0)));
    assert!(!look.again(seen(1)), "the first save: wait");
    assert!(!look.again(seen(2)), "the second: wait again");
    assert!(look.again(seen(2)), "nobody has written since");
    look.took(seen(2));
    assert!(!look.again(seen(2)));
    assert!(!look.again(seen(3)));
    assert!(!look.again(seen(2)), "taken back");
    assert!(!look.again(seen(3)));
}

#[test]
fn a_folder_that_is_written_to_while_it_is_read_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("package.yaml"), "package: a\nversion: 1.0.0\n").unwrap();
    let (seen, set) = read_still(dir.path()).unwrap();
    assert_eq!(set.unwrap().packages.len(), 1);
    assert_eq!(seen, fingerprint(dir.path()));
}
