//! A replica's store against the contract, and what is its own: shipping exactly once whatever dies, a PostgreSQL that is away, full, put
//! back or not the right one, and several replicas at once.

use std::path::Path;
use std::process::{Command, Stdio};

use ed25519_dalek::SigningKey;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::*;
use crate::gate::{CallOutcome, Outcome};
use crate::store::contract::{self, commit, verify};
use crate::store::contract_arms;
use crate::store::testing::postgres::{Server, connect, fresh_database, fresh_database_on};
use crate::store::testing::record;
use crate::store::{PostgresOptions, SqliteOptions, Synchronous};

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

async fn open_with(dir: &Path, url: &str, cap: u64, options: ShippingOptions) -> Arc<ReplicatedStore> {
    let sqlite = SqliteOptions {
        synchronous: Synchronous::Normal,
        signing_key: Some(key()),
        cap: Some(cap),
        ..SqliteOptions::default()
    };
    let journal = SqliteStore::open(dir, sqlite).await.unwrap();
    let postgres =
        PostgresOptions { signing_key: Some(key()), ..PostgresOptions::new(url.parse().unwrap(), journal.writer()) };
    ReplicatedStore::start(journal, PostgresStore::lazy(postgres), options)
}

async fn open(dir: &Path, url: &str) -> Arc<ReplicatedStore> {
    // Windows of these tests count what has just been recorded.
    open_with(dir, url, 1 << 30, ShippingOptions { window_waits: Duration::from_secs(60), ..Default::default() }).await
}

async fn fresh() -> (tempfile::TempDir, String, Arc<ReplicatedStore>) {
    let (dir, url) = (tempfile::tempdir().unwrap(), fresh_database().await);
    let store = open(dir.path(), &url).await;
    // The records of these tests are of the future.
    store.postgres.prepare().await.unwrap();
    let mut conn = connect(&url).await;
    sqlx::query("UPDATE settings SET retention_floor_seconds = -10000000000").execute(&mut conn).await.unwrap();
    (dir, url, store)
}

/// Ends the store as a dying process does: what was not sent is not sent.
async fn die(store: Arc<ReplicatedStore>) {
    let task = store.task.lock().await.take().unwrap();
    task.shipper.abort();
    let _ = task.shipper.await;
    store.journal.close().await;
    store.postgres.close().await;
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1800 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not after 90 s");
}

/// Everything that was committed is in PostgreSQL, once, in order, as it was written.
async fn all_is_there_once(store: &ReplicatedStore, url: &str, records: u64) {
    eventually("shipped", async || store.shipping.shipped() >= records).await;
    let mut conn = connect(url).await;
    let counts =
        sqlx::query("SELECT count(*), count(DISTINCT (writer, seq)), count(DISTINCT id), max(seq) FROM records");
    let row = counts.fetch_one(&mut conn).await.unwrap();
    let n = i64::try_from(records).unwrap();
    let found: Vec<i64> = (0..4).map(|i| row.get(i)).collect();
    assert_eq!(found, [n, n, n, n]);
    let report = verify(store, Some(&key().verifying_key())).await;
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!(report.to_seq, Some(records));
}

#[tokio::test]
async fn appends_are_gap_free_in_order_and_chained() {
    contract::appends_are_gap_free_in_order_and_chained(fresh().await.2).await;
}

#[tokio::test]
async fn decisions_are_filtered_and_paged() {
    contract::decisions_are_filtered_and_paged(&*fresh().await.2).await;
}

#[tokio::test]
async fn equal_times_are_paged_without_loss() {
    contract::equal_times_are_paged_without_loss(&*fresh().await.2).await;
}

#[tokio::test]
async fn pages_end_by_bytes() {
    let (_dir, _url, store) = fresh().await;
    contract::commit_large(&*store, 20).await;
    eventually("shipped", async || store.shipping().shipped() == 20).await;
    contract::pages_end_by_bytes(&*store, 20).await;
}

#[tokio::test]
async fn sessions_end_once() {
    contract::sessions_end_once(&*fresh().await.2).await;
}

#[tokio::test]
async fn what_became_of_a_call_is_said_once() {
    contract::what_became_of_a_call_is_said_once(&*fresh().await.2).await;
}

#[tokio::test]
async fn the_high_water_mark_compares_versions() {
    contract::the_high_water_mark_compares_versions(&*fresh().await.2).await;
}

#[tokio::test]
async fn a_signer_stays_seen() {
    contract::a_signer_stays_seen(&*fresh().await.2).await;
}

#[tokio::test]
async fn compromised_keys_stay_known() {
    contract::compromised_keys_stay_known(&*fresh().await.2).await;
}

#[tokio::test]
async fn retention_leaves_a_tombstone() {
    contract::retention_leaves_a_tombstone(&*fresh().await.2, &key().verifying_key()).await;
}

#[tokio::test]
async fn arms_are_counted_by_agent() {
    contract_arms::arms_are_counted_by_agent(&*fresh().await.2).await;
}

#[tokio::test]
async fn what_was_observed_counts_as_what_it_would_be() {
    contract_arms::what_was_observed_counts_as_what_it_would_be(&*fresh().await.2).await;
}

#[tokio::test]
async fn shadows_are_counted_and_the_worst_named() {
    contract_arms::shadows_are_counted_and_the_worst_named(&*fresh().await.2).await;
}

#[tokio::test]
async fn what_was_not_compared_is_in_the_window() {
    contract_arms::what_was_not_compared_is_in_the_window(&*fresh().await.2).await;
}

#[tokio::test]
async fn very_many_subjects_are_few_in_a_window() {
    contract_arms::very_many_subjects_are_few_in_a_window(&*fresh().await.2).await;
}

#[tokio::test]
async fn a_stage_counts_its_own_decisions() {
    contract_arms::a_stage_counts_its_own_decisions(&*fresh().await.2).await;
}

#[tokio::test]
async fn shadows_go_with_their_records() {
    contract_arms::shadows_go_with_their_records(&*fresh().await.2).await;
}

/// What texts PostgreSQL can't hold or index must not stop the shipping of what comes after.
#[tokio::test]
async fn any_text_can_be_shipped_found_and_verified() {
    let (_dir, url, store) = fresh().await;
    let mut odd = record("acme", 1);
    odd.request.action.name = "a\0b".into();
    odd.request.session = Some("\u{1F600}".repeat(3000));
    odd.agent = "\0".into();
    odd.reason = "\0\u{1}\\u0000".into();
    store.append(odd.clone()).unwrap().await.unwrap();
    commit(&*store, "acme", 2).await;
    all_is_there_once(&store, &url, 2).await;
    for filter in [
        DecisionFilter { action: Some("a\0b".into()), ..DecisionFilter::default() },
        DecisionFilter { session: odd.request.session.clone(), ..DecisionFilter::default() },
    ] {
        let found = store.decisions("acme", &filter).await.unwrap();
        assert_eq!(found.items.len(), 1);
        assert_eq!(found.items[0].record.reason, odd.reason);
    }
}

/// Whoever can change PostgreSQL can change it; verification says so, also of the columns that only PostgreSQL has.
#[tokio::test]
async fn tampering_with_postgresql_is_found() {
    let (_dir, url, store) = fresh().await;
    for n in 1..=6 {
        commit(&*store, "acme", n).await;
    }
    all_is_there_once(&store, &url, 6).await;
    let mut conn = connect(&url).await;
    for (sql, seq) in [
        ("UPDATE records SET body = replace(body, 'git/status', 'git/push') WHERE seq = 4", 4),
        ("UPDATE records SET tenant_uid = 'other' WHERE seq = 2", 2),
        ("UPDATE records SET would_be = 'deny' WHERE seq = 2", 2),
        ("UPDATE records SET agent = 'other' WHERE seq = 2", 2),
        ("DELETE FROM records WHERE seq = 3", 3),
    ] {
        sqlx::raw_sql("BEGIN; CREATE TEMP TABLE was AS SELECT * FROM records; COMMIT")
            .execute(&mut conn)
            .await
            .unwrap();
        sqlx::query(sql).execute(&mut conn).await.unwrap();
        let report = verify(&*store, None).await;
        assert!(report.findings.iter().any(|f| f.seq == Some(seq)), "{sql}: {:?}", report.findings);
        sqlx::raw_sql("DELETE FROM records; INSERT INTO records SELECT * FROM was; DROP TABLE was")
            .execute(&mut conn)
            .await
            .unwrap();
    }
    assert!(verify(&*store, None).await.ok);
}

/// Appends so many records and ships them, until it is killed by the fault point of its environment. Run by the next tests only.
#[tokio::test]
async fn child_that_ships_until_killed() {
    let Ok(dir) = std::env::var("REMIT_TEST_SHIP_DIR") else { return };
    let url = std::env::var("REMIT_TEST_SHIP_URL").unwrap();
    let store = open(Path::new(&dir), &url).await;
    let from = store.journal.head_seq();
    for n in from + 1..=from + 40 {
        commit(&*store, "acme", n).await;
        if n % 10 == 0 {
            store.shipping.reaches(n, Duration::from_secs(60)).await;
        }
    }
    store.close().await;
}

fn child(dir: &Path, url: &str, variable: &str, point: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::replicated::tests::child_that_ships_until_killed", "--nocapture"])
        .env("REMIT_TEST_SHIP_DIR", dir)
        .env("REMIT_TEST_SHIP_URL", url)
        .env(variable, point)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The replica dies after it has sent rows, before or after PostgreSQL has committed them, again and again.
#[tokio::test]
async fn a_replica_killed_while_it_ships_ships_exactly_once() {
    let (dir, url) = (tempfile::tempdir().unwrap(), fresh_database().await);
    for point in ["shipping.rows_sent:2", "shipping.committed:2", "shipping.rows_sent:3", "shipping.committed:1"] {
        let mut child = child(dir.path(), &url, "REMIT_FAULT", point);
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(!status.success(), "{point}: it was not killed");
    }
    let store = open(dir.path(), &url).await;
    let head = store.journal.head_seq();
    assert!(head > 20, "{head}");
    all_is_there_once(&store, &url, head).await;
    commit(&*store, "acme", head + 1).await;
    all_is_there_once(&store, &url, head + 1).await;
}

/// PostgreSQL crashes with rows in it that were sent and not committed, while the replica waits.
#[tokio::test]
async fn a_postgresql_that_crashes_in_between_has_all_of_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = tokio::task::spawn_blocking(Server::start_new).await.unwrap();
    let url = fresh_database_on(&server.url()).await;
    for point in ["shipping.rows_sent:2", "shipping.committed:2"] {
        let mut child = child(dir.path(), &url, "REMIT_PAUSE", point);
        let stopped = format!("/proc/{}/stat", child.id());
        eventually("the child stands at the fault point", async || {
            std::fs::read_to_string(&stopped)
                .is_ok_and(|stat| stat.rsplit(')').next().unwrap_or_default().starts_with(" T"))
        })
        .await;
        server = tokio::task::spawn_blocking(move || {
            server.stop();
            server.start();
            server
        })
        .await
        .unwrap();
        Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "{point}: {status}");
    }
    let store = open(dir.path(), &url).await;
    all_is_there_once(&store, &url, 80).await;
}

/// PostgreSQL is away under load: every answer is given, nothing is lost, the order is kept; what the replica answered can be read.
#[tokio::test]
async fn a_postgresql_that_is_away_stops_no_check_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = tokio::task::spawn_blocking(Server::start_new).await.unwrap();
    let url = fresh_database_on(&server.url()).await;
    let store = open(dir.path(), &url).await;
    for n in 1..=20 {
        commit(&*store, "acme", n).await;
    }
    eventually("shipped", async || store.shipping.shipped() == 20).await;
    server.stop();
    for n in 21..=1500 {
        assert_eq!(commit(&*store, "acme", n).await, n);
    }
    eventually("noticed", async || !store.shipping.reachable.load(Ordering::Relaxed)).await;
    assert!(store.shipping.lag(1500) > Duration::ZERO);
    let id = record("acme", 1400).id;
    assert_eq!(store.decision("acme", &id).await.unwrap().unwrap().seq, 1400);
    let report = CallReport { outcome: CallOutcome::Success, duration_ms: Some(3), time: Timestamp::UNIX_EPOCH };
    assert!(store.report_call(&id, &report).await.unwrap());
    assert!(store.decisions("acme", &DecisionFilter::default()).await.is_err(), "a listing of all replicas needs it");
    server.start();
    all_is_there_once(&store, &url, 1500).await;
    eventually("the report has arrived", async || {
        store.decision("acme", &id).await.is_ok_and(|d| d.unwrap().call.as_ref() == Some(&report))
    })
    .await;
    assert_eq!(store.shipping.lag(1500), Duration::ZERO);
    assert_eq!(store.shipping.total.load(Ordering::Relaxed), 1500);
    store.close().await;
}

#[tokio::test]
async fn at_the_cap_allows_are_refused_until_postgresql_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = tokio::task::spawn_blocking(Server::start_new).await.unwrap();
    let url = fresh_database_on(&server.url()).await;
    server.stop();
    let store = open_with(dir.path(), &url, 100_000, ShippingOptions::default()).await;
    let mut n = 0;
    let refused = loop {
        n += 1;
        match store.append(record("acme", n)) {
            Ok(appended) => drop(appended.await.unwrap()),
            Err(error) => break error,
        }
        assert!(n < 1000);
    };
    assert!(matches!(&refused, StoreError::Behind(why) if why.contains("--journal-cap-bytes")), "{refused}");
    let mut deny = record("acme", n);
    deny.outcome = Outcome::Deny;
    store.append(deny).unwrap().await.unwrap();
    // A restart does not forget what waits.
    die(store).await;
    let store = open_with(dir.path(), &url, 100_000, ShippingOptions::default()).await;
    assert!(matches!(store.append(record("acme", n + 1)), Err(StoreError::Behind(_))));
    server.start();
    eventually("allows are answered again", async || match store.append(record("acme", n + 1)) {
        Ok(appended) => appended.await.is_ok(),
        Err(_) => false,
    })
    .await;
    all_is_there_once(&store, &url, n + 1).await;
    assert_eq!(store.journal.backlog().bytes(), 0);
}

/// A PostgreSQL that was put back from a backup gets again what it has lost, as long as the journal has it.
#[tokio::test]
async fn a_postgresql_put_back_from_a_backup_gets_again_what_it_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = tokio::task::spawn_blocking(Server::start_new).await.unwrap();
    let url = fresh_database_on(&server.url()).await;
    let store = open(dir.path(), &url).await;
    for n in 1..=30 {
        commit(&*store, "acme", n).await;
    }
    all_is_there_once(&store, &url, 30).await;
    let backup = server.back_up();
    for n in 31..=60 {
        commit(&*store, "acme", n).await;
    }
    all_is_there_once(&store, &url, 60).await;
    server.restore(&backup);
    commit(&*store, "acme", 61).await;
    all_is_there_once(&store, &url, 61).await;
    // Once the journal has let go of them, nobody may go on as if nothing were missing.
    let old = server.back_up();
    for n in 62..=80 {
        commit(&*store, "acme", n).await;
    }
    all_is_there_once(&store, &url, 80).await;
    store.close().await;
    let store = open_with(
        dir.path(),
        &url,
        1 << 30,
        ShippingOptions { keep: Duration::ZERO, keep_bytes: 0, ..Default::default() },
    )
    .await;
    eventually("the journal is empty", async || store.journal.begins_after().await.unwrap() == 80).await;
    commit(&*store, "acme", 81).await;
    server.restore(&old);
    eventually("the hole is noticed", async || store.shipping.diverged.load(Ordering::Relaxed)).await;
    let Err(refused) = store.append(record("acme", 82)) else { panic!("allowed") };
    assert!(refused.to_string().contains("older than what the journal keeps"), "{refused}");
}

/// What was shipped is taken away; the chain goes on over a restart, and what is left can be verified.
#[tokio::test]
async fn the_chain_goes_on_where_everything_was_taken_away() {
    let (dir, url) = (tempfile::tempdir().unwrap(), fresh_database().await);
    let at_once = ShippingOptions { keep: Duration::ZERO, keep_bytes: 0, ..Default::default() };
    let store = open_with(dir.path(), &url, 1 << 30, at_once).await;
    for n in 1..=50 {
        commit(&*store, "acme", n).await;
    }
    eventually("taken away", async || store.journal.begins_after().await.unwrap() == 50).await;
    store.close().await;
    let store = open(dir.path(), &url).await;
    for n in 51..=60 {
        assert_eq!(commit(&*store, "acme", n).await, n);
    }
    all_is_there_once(&store, &url, 60).await;
    let mut chain = crate::store::ChainReader::open(dir.path().join(crate::store::DATABASE_FILE)).await.unwrap();
    let said = chain.statements().await.unwrap();
    assert_eq!(said.begins_after.unwrap().0, 50);
    let rows = chain.rows(0, 100).await.unwrap();
    let report = crate::store::audit::verify(rows, &said, Some(&key().verifying_key()));
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!((report.begins_after, report.records, report.to_seq), (Some(50), 10, Some(60)));
    store.close().await;
}

/// PostgreSQL has another record of the same number: somebody has changed one of the two, and no allow goes on top of that.
#[tokio::test]
async fn a_chain_that_is_another_stops_allows_until_it_is_put_right() {
    let (dir, url, store) = fresh().await;
    for n in 1..=5 {
        commit(&*store, "acme", n).await;
    }
    all_is_there_once(&store, &url, 5).await;
    let mut conn = connect(&url).await;
    sqlx::query("UPDATE records SET hash = sha256(hash) WHERE seq = 5").execute(&mut conn).await.unwrap();
    die(store).await;
    let store = open(dir.path(), &url).await;
    eventually("noticed", async || store.shipping.diverged.load(Ordering::Relaxed)).await;
    let Err(refused) = store.append(record("acme", 6)) else { panic!("allowed") };
    assert!(refused.to_string().contains("PostgreSQL's record 5 is another one"), "{refused}");
    let mut deny = record("acme", 6);
    deny.outcome = Outcome::Deny;
    assert_eq!(store.append(deny).unwrap().await.unwrap().seq, 6);
    sqlx::query("DELETE FROM records WHERE seq = 5").execute(&mut conn).await.unwrap();
    eventually("allows are answered again", async || store.append(record("acme", 7)).is_ok()).await;
    all_is_there_once(&store, &url, 7).await;
}

/// A copied data directory makes two writers of one chain: one of them stops.
#[tokio::test]
async fn two_processes_with_one_chain_are_found() {
    let (dir, url, store) = fresh().await;
    commit(&*store, "acme", 1).await;
    all_is_there_once(&store, &url, 1).await;
    store.close().await;
    let copy = tempfile::tempdir().unwrap();
    let file = crate::store::DATABASE_FILE;
    std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    let (one, other) = (open(dir.path(), &url).await, open(copy.path(), &url).await);
    commit(&*one, "acme", 2).await;
    eventually("shipped", async || one.shipping.shipped() == 2).await;
    // It may have noticed already.
    let appended = other.append(record("acme", 3));
    drop(appended);
    eventually("noticed", async || other.shipping.diverged.load(Ordering::Relaxed)).await;
    assert!(matches!(other.append(record("acme", 4)), Err(StoreError::Behind(_))));
    commit(&*one, "acme", 5).await;
}

/// Listings go over all writers, newest first, without loss where records are of one instant; each chain is verified by itself.
#[tokio::test]
async fn several_replicas_are_listed_as_one_and_verified_one_by_one() {
    let (_dir, url, one) = fresh().await;
    let dir = tempfile::tempdir().unwrap();
    let other = open(dir.path(), &url).await;
    for n in 1..=20 {
        let store = if n % 2 == 0 { &one } else { &other };
        let mut r = record("acme", n);
        if n > 10 {
            r.time = Timestamp::from_second(1_900_000_000).unwrap();
        }
        store.append(r).unwrap().await.unwrap();
    }
    one.own_is_there().await;
    other.own_is_there().await;
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let filter = DecisionFilter { limit: Some(3), page: page.take(), ..DecisionFilter::default() };
        let got = one.decisions("acme", &filter).await.unwrap();
        found.extend(got.items.iter().map(|d| (d.record.time, d.record.id.clone())));
        page = got.next;
        if page.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), 20);
    assert!(found.windows(2).all(|pair| pair[0].0 >= pair[1].0), "newest first");
    let ids: std::collections::BTreeSet<_> = found.iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 20);
    let mut writers = vec![one.audit_writer(), other.audit_writer()];
    writers.sort();
    assert_eq!(one.audit_writers().await.unwrap(), writers);
    for store in [&one, &other] {
        let report = verify(&**store, Some(&key().verifying_key())).await;
        assert!(report.ok, "{:?}", report.findings);
        assert_eq!(report.records, 10);
    }
    let rows = one.audit_rows(&other.audit_writer(), 0, 100).await.unwrap();
    assert_eq!(rows.len(), 10, "one replica shows the chain of another");
    assert_eq!(one.retain("acme", Timestamp::from_second(1_950_000_000).unwrap(), 100).await.unwrap(), 20);
    for store in [&one, &other] {
        let report = verify(&**store, Some(&key().verifying_key())).await;
        assert!(report.ok && report.taken_away == 10, "{:?}", report.findings);
    }
}

/// Bytes that ended parsers of two replicas, once each, are quarantined on both.
#[tokio::test]
async fn bytes_that_end_one_replica_after_the_other_are_quarantined_on_all() {
    let url = fresh_database().await;
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        let store = open(dir.path(), &url).await;
        store.parse_begins("bomb").await.unwrap();
        let task = store.task.lock().await.take().unwrap();
        task.shipper.abort();
        drop(store);
        // The lock goes with the writer's last work.
        eventually("closed", async || crate::store::DirectoryLock::take(dir.path()).is_ok()).await;
    }
    let (one, other) = (open(a.path(), &url).await, open(b.path(), &url).await);
    for store in [one, other] {
        eventually("quarantined", async || store.quarantined().await.unwrap() == ["bomb"]).await;
    }
}

/// Rows can be read, and none can be added: shipping is behind, and PostgreSQL answers.
async fn shipping_stands(url: &str) -> PgConnection {
    let mut lock = connect(url).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE records IN EXCLUSIVE MODE").execute(&mut lock).await.unwrap();
    lock
}

/// What this replica has just recorded is in its replay: it may be the only critical decision that there is.
#[tokio::test]
async fn late_records() {
    let (_dir, url, store) = fresh().await;
    contract::commit(&*store, "acme", 1).await;
    eventually("shipped", async || store.shipping().shipped() == 1).await;
    let mut lock = shipping_stands(&url).await;
    contract::commit(&*store, "acme", 2).await;
    let reads = tokio::spawn({
        let store = store.clone();
        async move {
            let (all, total) = (ReplaySelection::default(), store.selected("acme", &ReplaySelection::default()).await);
            (total.unwrap().total, store.replay_page("acme", &all, &[], None, 10).await.unwrap().len())
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    sqlx::query("COMMIT").execute(&mut lock).await.unwrap();
    assert_eq!(reads.await.unwrap(), (2, 2));
}

/// A flood of large records holds shipping up; a bad candidate ends at the aim nevertheless: whoever weighs it waits once, and briefly.
#[tokio::test]
async fn a_window_waits_once_and_briefly() {
    let (dir, url) = (tempfile::tempdir().unwrap(), fresh_database().await);
    let options = ShippingOptions { window_waits: Duration::from_secs(1), ..Default::default() };
    let store = open_with(dir.path(), &url, 1 << 30, options).await;
    contract::commit(&*store, "acme", 1).await;
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    eventually("shipped", async || store.shipping().shipped() == 1).await;
    let _lock = shipping_stands(&url).await;
    contract::commit(&*store, "acme", 2).await;
    let begun = Instant::now();
    for _ in 0..6 {
        store.window("uid-acme", 1, now, 20).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "six looks waited for {:?}", begun.elapsed());
    die(store).await;
}

/// While the disk takes nothing, answers are given and nothing is shipped. The power goes: the journal is what was synced last, and goes on
/// from there.
#[tokio::test]
async fn a_power_cut_leaves_no_other_chain() {
    let (dir, url, store) = fresh().await;
    let synced = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for file in ["remit.db", "remit.db-wal"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    let (from, to) = (dir.path().to_owned(), synced.path().to_owned());
    store.journal.inject(Some(Box::new(move || {
        copy(&from, &to);
        Ok(())
    })));
    for n in 1..=20 {
        commit(&*store, "acme", n).await;
    }
    eventually("shipped", async || store.shipping().shipped() == 20).await;
    store.journal.inject(Some(Box::new(|| Err(std::io::Error::other("EIO")))));
    for n in 21..=25 {
        commit(&*store, "acme", n).await;
    }
    eventually("tried", async || store.shipping().failures.load(Ordering::Relaxed) > 0).await;
    assert_eq!(store.shipping().shipped(), 20);
    die(store).await;
    let after = tempfile::tempdir().unwrap();
    copy(synced.path(), after.path());
    let store = open(after.path(), &url).await;
    for n in 26..=30 {
        commit(&*store, "acme", n).await;
    }
    eventually("shipped", async || store.shipping().shipped() >= 25).await;
    assert!(!store.shipping().diverged.load(Ordering::Relaxed));
    all_is_there_once(&store, &url, store.journal.head_seq()).await;
    store.close().await;
}

/// What PostgreSQL does not take in time arrives in smaller parts.
#[tokio::test]
async fn a_batch_that_takes_too_long_is_halved() {
    let (_dir, url, store) = fresh().await;
    sqlx::raw_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM added) > 10 THEN
                RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014';
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER slow AFTER INSERT ON records REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    )
    .execute(&mut connect(&url).await)
    .await
    .unwrap();
    let waiting: Vec<_> = (1..=100).map(|n| store.append(record("acme", n)).unwrap()).collect();
    futures::future::try_join_all(waiting).await.unwrap();
    eventually("shipped", async || store.shipping().shipped() == 100).await;
    all_is_there_once(&store, &url, 100).await;
    store.close().await;
}
