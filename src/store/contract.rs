//! What every journal and store must do, as functions over the traits: run against both databases.

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;

use super::audit::{self, AuditStatements, Report};
use super::filter::PAGE_BYTES;
use super::testing::record;
use super::{
    Arrival, CallReport, DecisionFilter, InForceRow, Journal, Page, Replays, SessionRow, Store, StoreError,
    StoredDecision,
};
use crate::api::ReplaySelection;
use crate::gate::{CallOutcome, Outcome};
use crate::policy::PolicyText;

/// Appends one record and waits.
pub async fn commit<S: Journal>(store: &S, tenant: &str, n: u64) -> u64 {
    store.append(record(tenant, n)).unwrap().await.unwrap().seq
}

/// Verifies the whole chain.
pub async fn verify<S: Store>(store: &S, key: Option<&VerifyingKey>) -> Report {
    let writer = store.audit_writer();
    let said = AuditStatements {
        anchors: store.audit_anchors(&writer).await.unwrap(),
        tombstones: store.audit_tombstones(&writer).await.unwrap(),
        writer,
        begins_after: None,
    };
    let writer = said.writer.clone();
    let mut verifier = audit::Verifier::new(&said, key);
    let mut after = 0;
    loop {
        let rows = store.audit_rows(&writer, after, 7).await.unwrap();
        let Some(last) = rows.last() else { return verifier.finish() };
        after = last.seq;
        rows.iter().for_each(|row| verifier.row(row));
    }
}

fn ids(page: &Page<StoredDecision>) -> Vec<u64> {
    page.items.iter().map(|d| u64::from_str_radix(&d.record.id[24..], 16).unwrap()).collect()
}

async fn list<S: Store>(store: &S, filter: DecisionFilter) -> Vec<u64> {
    ids(&store.decisions("acme", &filter).await.unwrap())
}

pub async fn appends_are_gap_free_in_order_and_chained<S: Journal + Store + 'static>(store: Arc<S>) {
    // More than one INSERT takes, from several tenants, without waiting in between; every other future is dropped.
    let mut waiting = Vec::new();
    for n in 1..=150 {
        let appended = store.append(record(["acme", "beta", "gamma"][n as usize % 3], n)).unwrap();
        if n % 2 == 0 {
            waiting.push((n, appended));
        }
    }
    for (n, appended) in waiting {
        assert_eq!(appended.await.unwrap().seq, n, "the order of append is the order of the chain");
    }
    // And from many tasks at once.
    let tasks: Vec<_> = (151..=250)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { commit(&*store, "acme", n).await })
        })
        .collect();
    let mut seqs = Vec::new();
    for task in tasks {
        seqs.push(task.await.unwrap());
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (151..=250).collect::<Vec<_>>());
    let report = verify(&*store, None).await;
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!((report.records, report.to_seq), (250, Some(250)));
}

pub async fn decisions_are_filtered_and_paged<S: Journal + Store>(store: &S) {
    for n in 1..=20 {
        let mut r = record("acme", n);
        r.agent = if n % 2 == 0 { "coder".into() } else { "writer".into() };
        r.outcome = if n % 5 == 0 { Outcome::Deny } else { Outcome::Allow };
        r.delegated_from = (n == 7).then(|| "user:alice".into());
        r.request.session = (n == 8).then(|| "s-8".into());
        r.request.action.name = if n == 9 { "network_access".into() } else { "call_tool".into() };
        store.append(r).unwrap().await.unwrap();
    }
    commit(store, "beta", 21).await;
    let filter = DecisionFilter::default;
    assert_eq!(list(store, filter()).await, (1..=20).rev().collect::<Vec<_>>(), "newest first, this tenant only");
    let text = |s: &str| Some(s.to_owned());
    assert_eq!(list(store, DecisionFilter { agent: text("writer"), outcome: text("deny"), ..filter() }).await, [15, 5]);
    assert_eq!(list(store, DecisionFilter { delegator: text("alice"), ..filter() }).await, [7]);
    assert_eq!(list(store, DecisionFilter { delegator: text("user:alice"), ..filter() }).await, [7]);
    assert_eq!(list(store, DecisionFilter { delegator: text("bob"), ..filter() }).await, [0; 0]);
    assert_eq!(list(store, DecisionFilter { session: text("s-8"), ..filter() }).await, [8]);
    assert_eq!(list(store, DecisionFilter { action: text("network_access"), ..filter() }).await, [9]);
    let (since, until) = (Some(record("acme", 10).time), Some(record("acme", 13).time));
    assert_eq!(
        list(store, DecisionFilter { since, until, ..filter() }).await,
        [12, 11, 10],
        "since is in, until is not"
    );

    assert_eq!(list(store, DecisionFilter { tenant_uid: text("uid-acme"), ..filter() }).await.len(), 20);
    assert_eq!(list(store, DecisionFilter { tenant_uid: text("re-created"), ..filter() }).await, [0; 0]);

    let mut pages = Vec::new();
    let mut next = None;
    loop {
        let filter = DecisionFilter { limit: Some(6), page: next, agent: text("coder"), ..filter() };
        let page = store.decisions("acme", &filter).await.unwrap();
        pages.push(ids(&page));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![20, 18, 16, 14, 12, 10], vec![8, 6, 4, 2]]);
    let exact = store.decisions("acme", &DecisionFilter { limit: Some(20), ..filter() }).await.unwrap();
    assert!(exact.next.is_none(), "no empty page after the last");

    for (field, wrong) in [
        ("limit", DecisionFilter { limit: Some(0), ..filter() }),
        ("limit", DecisionFilter { limit: Some(1001), ..filter() }),
        ("outcome", DecisionFilter { outcome: text("Allow"), ..filter() }),
        ("page", DecisionFilter { page: text("1'; --"), ..filter() }),
    ] {
        let error = store.decisions("acme", &wrong).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { field: f, .. } if f == field), "{error}");
    }

    let one = store.decision("acme", &record("acme", 3).id).await.unwrap().unwrap();
    assert_eq!((one.seq, one.record.agent.as_str()), (3, "writer"));
    assert!(store.decision("beta", &record("acme", 3).id).await.unwrap().is_none(), "another tenant's is not there");
    assert!(store.decision("acme", "nothing").await.unwrap().is_none());
}

/// Records of one instant are paged by their place in the chain.
pub async fn equal_times_are_paged_without_loss<S: Journal + Store>(store: &S) {
    for n in 1..=5 {
        let mut r = record("acme", n);
        r.time = Timestamp::UNIX_EPOCH;
        store.append(r).unwrap().await.unwrap();
    }
    let first = DecisionFilter { limit: Some(3), ..Default::default() };
    let page = store.decisions("acme", &first).await.unwrap();
    assert_eq!(ids(&page), [5, 4, 3]);
    assert_eq!(list(store, DecisionFilter { page: page.next, ..first }).await, [2, 1]);
}

pub async fn what_became_of_a_call_is_said_once<S: Journal + Store>(store: &S) {
    commit(store, "acme", 1).await;
    let id = record("acme", 1).id;
    let at = |second| Timestamp::from_second(second).unwrap();
    let first = CallReport { outcome: CallOutcome::ToolError, duration_ms: Some(12), time: at(1) };
    assert_eq!(store.decision("acme", &id).await.unwrap().unwrap().call, None);
    assert!(store.report_call(&id, &first).await.unwrap());
    assert!(store.report_call(&id, &CallReport { time: at(2), ..first.clone() }).await.unwrap(), "said again");
    let other = CallReport { outcome: CallOutcome::Success, ..first.clone() };
    assert!(!store.report_call(&id, &other).await.unwrap());
    assert_eq!(store.decision("acme", &id).await.unwrap().unwrap().call, Some(first));
    store.retain("acme", at(4_000_000_000), 10).await.unwrap();
    assert!(store.report_call(&id, &other).await.unwrap(), "what was said went with its record");
}

fn session(id: &str, at: i64) -> SessionRow {
    SessionRow {
        id: id.into(),
        tenant: "acme".into(),
        tenant_uid: "u".into(),
        agent: "coder".into(),
        agent_uid: "a".into(),
        started: Timestamp::from_second(1000).unwrap(),
        last_seen: Timestamp::from_second(at).unwrap(),
        ended: None,
    }
}

pub async fn sessions_end_once<S: Store>(store: &S) {
    let (a, b) = (session("a", 1000), session("b", 1000));
    store.save_sessions(&[a.clone(), b.clone()]).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), [a.clone(), b.clone()]);
    let seen = session("a", 1010);
    let ended = SessionRow { ended: Some((Timestamp::from_second(1020).unwrap(), "ended".into())), ..b.clone() };
    store.save_sessions(&[seen.clone(), ended]).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), std::slice::from_ref(&seen));
    // A write that comes late neither revives a session nor moves it back, nor gives it to another agent.
    store.save_sessions(&[SessionRow { agent: "thief".into(), ..a }, b]).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), std::slice::from_ref(&seen));
    assert_eq!(store.session("a").await.unwrap(), Some(seen));
    assert_eq!(store.session("b").await.unwrap().unwrap().ended.unwrap().1, "ended");
    assert_eq!(store.session("nothing").await.unwrap(), None);
}

/// A heartbeat that another replica has kept counts: silence is what the store says, at one instant.
pub async fn only_what_the_store_has_not_seen_is_expired<S: Store>(store: &S) {
    let at = |second| Timestamp::from_second(second).unwrap();
    let (silent, seen, ended) = (session("silent", 1000), session("seen", 1000), session("ended", 1000));
    store.save_sessions(&[silent.clone(), seen.clone(), ended.clone()]).await.unwrap();
    let end = SessionRow { ended: Some((at(1010), "ended".into())), ..ended.clone() };
    store.save_sessions(&[session("seen", 1500), end.clone()]).await.unwrap();
    let asked = [(silent.clone(), at(1000)), (seen, at(1000)), (ended, at(1000))];
    let mut now_are = store.end_silent(&asked, at(1900)).await.unwrap();
    now_are.sort_by(|a, b| a.id.cmp(&b.id));
    let expired = SessionRow { ended: Some((at(1900), "expired".into())), ..silent };
    assert_eq!(now_are, [end, session("seen", 1500), expired]);
    assert_eq!(store.live_sessions().await.unwrap(), [session("seen", 1500)]);
}

/// What comes into force with policies of these ids and texts.
pub fn arrival(policies: &[(&str, &str)]) -> Arrival {
    let texts = policies.iter().map(|(id, text)| PolicyText {
        id: (*id).into(),
        text: (*text).into(),
        sha256: crate::policy::sha256_text(text.as_bytes()).split_off("sha256:".len()),
    });
    Arrival { policies: texts.collect(), ..Arrival::empty(Timestamp::from_second(9).unwrap()) }
}

fn in_force(revision: i64, version: &str, digest: &str) -> InForceRow {
    InForceRow {
        tenant_uid: "u".into(),
        tenant: "acme".into(),
        package: "base".into(),
        version: version.into(),
        digest: digest.into(),
        key_fingerprint: (revision % 2 == 0).then(|| "sha256:k".into()),
        first_verified: Timestamp::from_second(revision).unwrap(),
        revision,
    }
}

pub async fn the_high_water_mark_compares_versions<S: Store>(store: &S) {
    assert_eq!(store.high_water("u", "base").await.unwrap(), None);
    store.put_in_force(&in_force(1, "1.9.0", "d1"), &arrival(&[])).await.unwrap();
    store.put_in_force(&in_force(2, "1.10.0", "d2"), &arrival(&[])).await.unwrap();
    let mark = Some(("1.10.0".to_owned(), "d2".to_owned()));
    assert_eq!(store.high_water("u", "base").await.unwrap(), mark);
    store.put_in_force(&in_force(3, "1.9.0", "d1"), &arrival(&[])).await.unwrap();
    assert_eq!(store.high_water("u", "base").await.unwrap(), mark, "a rollback leaves it");
    store.put_in_force(&in_force(4, "1.10.0-rc.1", "d3"), &arrival(&[])).await.unwrap();
    assert_eq!(store.high_water("u", "base").await.unwrap(), mark, "a pre-release is below its release");
    let revisions = store.in_force("u").await.unwrap();
    assert_eq!(revisions.iter().map(|r| r.revision).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert_eq!(revisions[2], in_force(2, "1.10.0", "d2"));
    assert!(store.in_force("other").await.unwrap().is_empty(), "another namespace inherits nothing");
    assert_eq!(store.high_water("other", "base").await.unwrap(), None);

    store.put_in_force(&in_force(4, "1.10.0-rc.1", "d3"), &arrival(&[])).await.unwrap();
    let error = store.put_in_force(&in_force(4, "9.0.0", "d9"), &arrival(&[])).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "revision", .. }), "{error}");
    let error = store.put_in_force(&in_force(5, "one", "d9"), &arrival(&[])).await.unwrap_err();
    assert!(error.to_string().contains("`one`"), "{error}");
    assert_eq!(store.in_force("u").await.unwrap().len(), 4, "half of it was not kept");
    assert_eq!(store.high_water("u", "base").await.unwrap(), mark);
}

pub async fn a_signer_stays_seen<S: Store>(store: &S) {
    assert!(!store.signer_seen("u").await.unwrap());
    store.remember_signer("u").await.unwrap();
    store.remember_signer("u").await.unwrap();
    assert!(store.signer_seen("u").await.unwrap());
    assert!(!store.signer_seen("v").await.unwrap());
}

pub async fn retention_leaves_a_tombstone<S: Journal + Store>(store: &S, key: &VerifyingKey) {
    for n in 1..=12 {
        commit(store, if n % 3 == 0 { "beta" } else { "acme" }, n).await;
    }
    assert_eq!(store.recorded_tenants().await.unwrap(), ["acme", "beta"]);
    let before = record("acme", 9).time;
    let taken = [3, 3, 0].map(|expected| (expected, store.retain("acme", before, 3)));
    for (expected, batch) in taken {
        assert_eq!(batch.await.unwrap(), expected, "1, 2, 4, 5, 7 and 8 in batches of three");
    }
    assert_eq!(list(store, DecisionFilter::default()).await, [11, 10]);
    assert!(store.decision("acme", &record("acme", 2).id).await.unwrap().is_none());
    assert_eq!(ids(&store.decisions("beta", &DecisionFilter::default()).await.unwrap()), [12, 9, 6, 3]);
    commit(store, "acme", 13).await;
    let report = verify(store, Some(key)).await;
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!((report.records, report.taken_away, report.tombstones.len()), (13, 6, 2));
    assert_eq!((report.tombstones[0].tenant.as_str(), report.tombstones[0].before), ("acme", before));
    assert_eq!(store.retain("beta", record("beta", 13).time, 100).await.unwrap(), 4);
    assert_eq!(store.recorded_tenants().await.unwrap(), ["acme"], "of beta nothing is left");
    assert!(matches!(store.retain("acme", before, 0).await, Err(StoreError::Invalid { field: "batch", .. })));
}

/// Records of a megabyte each, as one agent may send them with each call.
pub async fn commit_large<S: Journal>(store: &S, records: u64) {
    for n in 1..=records {
        let mut large = record("acme", n);
        large.request.arguments.insert("text".into(), "x".repeat(1 << 20).into());
        store.append(large).unwrap().await.unwrap();
    }
}

/// Where so many of these are: no page of any reading grows by that beyond its bound, and all of it is read in the end.
pub async fn pages_end_by_bytes<S: Store + Replays>(store: &S, records: u64) {
    let ends = |bytes: usize, rows: usize| {
        assert!(bytes <= PAGE_BYTES as usize && rows > 1, "{rows} rows of {bytes} bytes");
        rows as u64
    };
    let (mut read, mut after) = (0, None);
    loop {
        let rows = store.replay_page("acme", &ReplaySelection::default(), &[], after.as_ref(), 1000).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = Some(last.place.clone());
        read += ends(rows.iter().map(|r| r.body.len()).sum(), rows.len());
    }
    assert_eq!(read, records);
    let (mut read, mut filter) = (0, DecisionFilter { limit: Some(1000), ..Default::default() });
    loop {
        let page = store.decisions("acme", &filter).await.unwrap();
        let bytes = page.items.iter().map(|d| serde_json::to_string(&d.record).unwrap().len()).sum();
        read += ends(bytes, page.items.len());
        filter.page = page.next;
        if filter.page.is_none() {
            break;
        }
    }
    assert_eq!(read, records);
    let (mut read, mut after, writer) = (0, 0, store.audit_writer());
    loop {
        let rows = store.audit_rows(&writer, after, 10_000).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = last.seq;
        read += ends(rows.iter().map(|r| r.body.as_ref().unwrap().len()).sum(), rows.len());
    }
    assert_eq!(read, records);
}

/// Compromised keys are remembered by namespace, also after nothing declares them any more.
pub async fn compromised_keys_stay_known<S: Store>(store: &S) {
    let keys = |all: &[&str]| all.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
    assert!(store.compromised_keys("u").await.unwrap().is_empty());
    store.remember_compromised("u", &keys(&["b", "a"])).await.unwrap();
    store.remember_compromised("u", &keys(&["a", "c"])).await.unwrap();
    store.remember_compromised("u", &[]).await.unwrap();
    assert_eq!(store.compromised_keys("u").await.unwrap().into_iter().collect::<Vec<_>>(), keys(&["a", "b", "c"]));
    assert!(store.compromised_keys("v").await.unwrap().is_empty());
}
