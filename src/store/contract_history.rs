//! What every history must do, as functions over the trait.

use std::sync::Arc;

use jiff::Timestamp;

use super::contract::arrival;
use super::{Arrival, Change, InForceRow, PolicyVersion, Rollback, Store, StoreError};

fn row(tenant: &str, revision: i64, package: &str, digest: &str) -> InForceRow {
    InForceRow {
        tenant_uid: format!("uid-{tenant}"),
        tenant: tenant.into(),
        package: package.into(),
        version: if digest.is_empty() { "0.0.0".into() } else { format!("1.{revision}.0") },
        digest: digest.into(),
        key_fingerprint: Some("sha256:k".into()),
        first_verified: Timestamp::from_second(revision).unwrap(),
        revision,
    }
}

fn back(policies: &[(&str, &str)]) -> Arrival {
    let rollback = Some(Rollback { by: "alice".into(), reason: "it broke the build".into() });
    Arrival { rollback, ..arrival(policies) }
}

async fn all<S: Store>(store: &S, tenant: &str, package: &str, policy: &str) -> Vec<PolicyVersion> {
    store.versions(&format!("uid-{tenant}"), package, policy, None, 1000).await.unwrap()
}

/// Version, change, whether it is gone, and the revision, newest first.
fn short(versions: &[PolicyVersion]) -> Vec<(u64, Change, bool, i64)> {
    versions.iter().map(|v| (v.version, v.change, v.deleted, v.revision)).collect()
}

pub async fn every_text_has_its_versions<S: Store>(store: &S) {
    let put = async |row: InForceRow, arrival: Arrival| store.put_in_force(&row, &arrival).await.unwrap();
    store.note_applied("uid-acme", "d1", "carol", Timestamp::from_second(1).unwrap()).await.unwrap();
    store.note_applied("uid-acme", "d1", "bob", Timestamp::from_second(2).unwrap()).await.unwrap();
    // Of a namespace of the same name that is gone: nothing of it is said of this one's.
    store.note_applied("uid-before", "d2", "mallory", Timestamp::from_second(1).unwrap()).await.unwrap();
    store.note_applied("acme", "d2", "mallory", Timestamp::from_second(1).unwrap()).await.unwrap();
    let first = Arrival {
        author: Some("Ann".into()),
        applied_by: Some("field manager kubectl".into()),
        ..arrival(&[("a", "a1"), ("b", "b1")])
    };
    put(row("acme", 1, "base", "d1"), first.clone()).await;
    put(row("acme", 1, "base", "d1"), first).await;
    put(row("acme", 2, "base", "d2"), arrival(&[("a", "a2"), ("b", "b1"), ("c", "c1")])).await;
    put(row("acme", 3, "base", "d3"), arrival(&[("a", "a2"), ("c", "c1")])).await;
    put(row("acme", 4, "base", "d1"), back(&[("a", "a1"), ("b", "b1")])).await;
    put(row("acme", 5, "base", "d5"), arrival(&[("a", "a1"), ("b", "b1"), ("c", "c1")])).await;
    assert_eq!(
        short(&all(store, "acme", "base", "a").await),
        [(3, Change::Rollback, false, 4), (2, Change::Update, false, 2), (1, Change::Create, false, 1)]
    );
    assert_eq!(
        short(&all(store, "acme", "base", "b").await),
        [(3, Change::Rollback, false, 4), (2, Change::Delete, true, 3), (1, Change::Create, false, 1)],
        "unchanged text has no version"
    );
    assert_eq!(
        short(&all(store, "acme", "base", "c").await),
        [(3, Change::Create, false, 5), (2, Change::Rollback, true, 4), (1, Change::Create, false, 2)]
    );

    let uid = "uid-acme";
    let one = store.version(uid, "base", "a", 1).await.unwrap().unwrap();
    assert_eq!((one.text.as_deref(), one.author.as_deref()), (Some("a1"), Some("Ann")));
    assert_eq!(one.applied_by.as_deref(), Some("bob"), "who applied it last, as the API server said");
    assert_eq!((one.before.as_str(), one.after.as_str(), one.package_version.as_str()), ("", "d1", "1.1.0"));
    assert_eq!(one.time, Timestamp::from_second(9).unwrap());
    let rolled = store.version(uid, "base", "a", 3).await.unwrap().unwrap();
    assert_eq!((rolled.before.as_str(), rolled.after.as_str()), ("d3", "d1"), "with before and after");
    assert_eq!(rolled.rolled_back_by.as_deref(), Some("alice"));
    assert_eq!(rolled.reason.as_deref(), Some("it broke the build"));
    assert_eq!(rolled.sha256, one.sha256);
    assert_eq!(store.version(uid, "base", "b", 2).await.unwrap().unwrap().text, None);
    assert_eq!(store.version(uid, "base", "a", 4).await.unwrap(), None);
    assert_eq!(store.version(uid, "base", "a", u64::MAX).await.unwrap(), None);

    let page = store.versions(uid, "base", "a", Some(3), 1).await.unwrap();
    assert_eq!(page.iter().map(|v| v.version).collect::<Vec<_>>(), [2]);
    assert!(store.versions(uid, "base", "nobody", None, 5).await.unwrap().is_empty());
    let error = store.versions(uid, "base", "a", None, 0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "limit", .. }), "{error}");

    // A package of another name has other policies; nothing in force deletes them; another tenant has none of it.
    put(row("acme", 6, "other", "d6"), arrival(&[("a", "a1")])).await;
    put(row("acme", 7, "", ""), arrival(&[])).await;
    assert_eq!(short(&all(store, "acme", "base", "a").await)[0], (4, Change::Delete, true, 6));
    assert_eq!(
        short(&all(store, "acme", "other", "a").await),
        [(2, Change::Delete, true, 7), (1, Change::Create, false, 6)]
    );
    let heads = store.policies(uid, None).await.unwrap();
    let names = |heads: &[PolicyVersion]| {
        heads.iter().map(|v| format!("{}/{} {}", v.package, v.policy, v.version)).collect::<Vec<_>>()
    };
    assert_eq!(names(&heads), ["base/a 4", "base/b 4", "base/c 4", "other/a 2"]);
    assert_eq!(names(&store.policies(uid, Some("other")).await.unwrap()), ["other/a 2"]);
    assert!(store.policies("uid-beta", None).await.unwrap().is_empty());
    assert!(all(store, "beta", "base", "a").await.is_empty());
    assert_eq!(store.version("uid-beta", "base", "a", 1).await.unwrap(), None);
}

/// Many revisions of one tenant at once, through several stores of the same database.
pub async fn writers_at_once_leave_no_gap<S: Store + 'static>(stores: &[Arc<S>]) {
    let tasks: Vec<_> = (1..=40_i64)
        .map(|n| {
            let store = stores[usize::try_from(n).unwrap() % stores.len()].clone();
            tokio::spawn(async move {
                let (digest, text) = (format!("d{n}"), format!("text {n}"));
                let arrival = arrival(&[("a", &text), (&format!("only-{n}"), "x")]);
                store.put_in_force(&row("acme", n, "base", &digest), &arrival).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let versions = all(&*stores[0], "acme", "base", "a").await;
    assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), (1..=40).rev().collect::<Vec<_>>());
    assert_eq!(versions[39].change, Change::Create);
    assert!(versions[..39].iter().all(|v| v.change == Change::Update));
    // Whatever their order was: all but the newest were created and deleted.
    let heads = stores[0].policies("uid-acme", Some("base")).await.unwrap();
    let alive: Vec<_> = heads.iter().filter(|h| !h.deleted).map(|h| (h.policy.as_str(), h.revision)).collect();
    let newest = versions[0].revision;
    assert_eq!(alive, [("a", newest), (format!("only-{newest}").as_str(), newest)]);
    assert!(heads.iter().filter(|h| h.deleted).all(|h| h.version == 2));
}
