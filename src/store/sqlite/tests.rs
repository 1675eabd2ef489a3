//! SQLite against the contract, and what is its own: locks, restarts, kill -9, a full disk, tampering with the file.

use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::store::audit::Report;
use crate::store::contract::{self, commit, verify};
use crate::store::testing::record;
use crate::store::{Anchor, FileSink, statement};
use crate::store::{contract_arms, contract_history, contract_replays};

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

async fn open(dir: &Path) -> Arc<SqliteStore> {
    let options =
        SqliteOptions { signing_key: Some(key()), anchor_every: Duration::from_secs(3600), ..Default::default() };
    SqliteStore::open(dir, options).await.unwrap()
}

async fn fresh() -> (tempfile::TempDir, Arc<SqliteStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    (dir, store)
}

#[tokio::test]
async fn appends_are_gap_free_in_order_and_chained() {
    let (_dir, store) = fresh().await;
    contract::appends_are_gap_free_in_order_and_chained(store).await;
}

#[tokio::test]
async fn decisions_are_filtered_and_paged() {
    contract::decisions_are_filtered_and_paged(&*fresh().await.1).await;
}

#[tokio::test]
async fn equal_times_are_paged_without_loss() {
    contract::equal_times_are_paged_without_loss(&*fresh().await.1).await;
}

#[tokio::test]
async fn pages_end_by_bytes() {
    let (_dir, store) = fresh().await;
    contract::commit_large(&*store, 20).await;
    contract::pages_end_by_bytes(&*store, 20).await;
}

#[tokio::test]
async fn texts_with_nul_hold_up_nothing() {
    crate::store::contract_rollouts::texts_with_nul_hold_up_nothing(&*fresh().await.1).await;
}

#[tokio::test]
async fn sessions_end_once() {
    contract::sessions_end_once(&*fresh().await.1).await;
}

#[tokio::test]
async fn only_what_the_store_has_not_seen_is_expired() {
    contract::only_what_the_store_has_not_seen_is_expired(&*fresh().await.1).await;
}

#[tokio::test]
async fn what_became_of_a_call_is_said_once() {
    contract::what_became_of_a_call_is_said_once(&*fresh().await.1).await;
}

#[tokio::test]
async fn the_high_water_mark_compares_versions() {
    contract::the_high_water_mark_compares_versions(&*fresh().await.1).await;
}

#[tokio::test]
async fn run_id_overwrite() {
    contract_replays::run_id_overwrite(&*fresh().await.1).await;
}

#[tokio::test]
async fn run_of_another_tenant() {
    contract_replays::run_of_another_tenant(&*fresh().await.1).await;
}

#[tokio::test]
async fn open_runs_of_one_tenant_are_few_and_hide_nobodys() {
    contract_replays::open_runs_of_one_tenant_are_few_and_hide_nobodys(&*fresh().await.1).await;
}

#[tokio::test]
async fn runs_go_on_where_they_stopped() {
    contract_replays::runs_go_on_where_they_stopped(&*fresh().await.1).await;
}

#[tokio::test]
async fn selections_are_read_in_one_order() {
    let (_dir, store) = fresh().await;
    for record in contract_replays::disordered() {
        store.append(record).unwrap().await.unwrap();
    }
    contract_replays::selections_are_read_in_one_order(&*store).await;
}

#[tokio::test]
async fn every_text_has_its_versions() {
    contract_history::every_text_has_its_versions(&*fresh().await.1).await;
}

#[tokio::test]
async fn writers_at_once_leave_no_gap() {
    let (_dir, store) = fresh().await;
    contract_history::writers_at_once_leave_no_gap(&[store]).await;
}

/// Whoever has the file, also without Remit.
#[tokio::test]
async fn the_database_itself_keeps_the_history() {
    let (dir, store) = fresh().await;
    contract_history::every_text_has_its_versions(&*store).await;
    store.close().await;
    let options =
        SqliteConnectOptions::new().filename(dir.path().join(DATABASE_FILE)).busy_timeout(Duration::from_secs(30));
    let mut conn = options.connect().await.unwrap();
    let kept = "SELECT count(*) FROM policy_versions";
    let before: i64 = sqlx::query_scalar(kept).fetch_one(&mut conn).await.unwrap();
    for sql in [
        "DELETE FROM policy_versions WHERE version = 2",
        "UPDATE policy_versions SET rolled_back_by = 'mallory'",
        "INSERT INTO policy_versions SELECT tenant_uid, package, policy, version + 2, time, change, sha256, digest, package_version, \
         former, key_fingerprint, author, applied_by, rolled_back_by, reason, revision FROM policy_heads",
        "DELETE FROM policy_texts",
    ] {
        assert!(sqlx::query(sql).execute(&mut conn).await.is_err(), "{sql}");
    }
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut conn).await.unwrap(), before);
    // Two writers at once that know nothing of each other.
    let writers: Vec<_> = (0..2_i64)
        .map(|writer| {
            let options = options.clone();
            tokio::spawn(async move {
                let mut conn = options.connect().await.unwrap();
                for n in 0..30 {
                    let revision = 100 + 2 * n + writer;
                    let sql = format!(
                        "BEGIN IMMEDIATE; INSERT INTO policy_texts VALUES ('uid-acme', 's{revision}', 't'); \
                         INSERT INTO package_policies VALUES ('uid-acme', 'x{revision}', 'a', 's{revision}'); \
                         INSERT INTO in_force (tenant_uid, revision, tenant, package, version, digest, first_verified) \
                         VALUES ('uid-acme', {revision}, 'acme', 'base', '1.0.0', 'x{revision}', 0); COMMIT"
                    );
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let sql = "SELECT version FROM policy_versions WHERE package = 'base' AND policy = 'a' ORDER BY version";
    let versions: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&mut conn).await.unwrap();
    assert_eq!(versions, (1..=64).collect::<Vec<_>>());
}

#[tokio::test]
async fn steps_of_rollouts_are_whole_and_in_order() {
    crate::store::contract_rollouts::steps_are_whole_and_in_order(&*fresh().await.1).await;
}

#[tokio::test]
async fn a_signer_stays_seen() {
    contract::a_signer_stays_seen(&*fresh().await.1).await;
}

#[tokio::test]
async fn compromised_keys_stay_known() {
    contract::compromised_keys_stay_known(&*fresh().await.1).await;
}

#[tokio::test]
async fn retention_leaves_a_tombstone() {
    let (_dir, store) = fresh().await;
    contract::retention_leaves_a_tombstone(&*store, &key().verifying_key()).await;
}

#[tokio::test]
async fn arms_are_counted_by_agent() {
    contract_arms::arms_are_counted_by_agent(&*fresh().await.1).await;
}

#[tokio::test]
async fn what_was_observed_counts_as_what_it_would_be() {
    contract_arms::what_was_observed_counts_as_what_it_would_be(&*fresh().await.1).await;
}

#[tokio::test]
async fn shadows_are_counted_and_the_worst_named() {
    contract_arms::shadows_are_counted_and_the_worst_named(&*fresh().await.1).await;
}

#[tokio::test]
async fn what_was_not_compared_is_in_the_window() {
    contract_arms::what_was_not_compared_is_in_the_window(&*fresh().await.1).await;
}

#[tokio::test]
async fn very_many_subjects_are_few_in_a_window() {
    contract_arms::very_many_subjects_are_few_in_a_window(&*fresh().await.1).await;
}

#[tokio::test]
async fn a_stage_counts_its_own_decisions() {
    contract_arms::a_stage_counts_its_own_decisions(&*fresh().await.1).await;
}

#[tokio::test]
async fn shadows_go_with_their_records() {
    contract_arms::shadows_go_with_their_records(&*fresh().await.1).await;
}

#[tokio::test]
async fn the_chain_goes_on_after_a_restart() {
    let (dir, store) = fresh().await;
    commit(&*store, "acme", 1).await;
    let writer = store.writer().to_owned();
    store.close().await;
    assert!(matches!(store.append(record("acme", 2)), Err(StoreError::Closed(_))));
    let store = open(dir.path()).await;
    assert_eq!(store.writer(), writer);
    assert_eq!(commit(&*store, "acme", 2).await, 2);
    let report = verify(&*store, Some(&key().verifying_key())).await;
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!((report.anchored_seq, report.not_anchored), (Some(1), 1), "the stop anchored record 1");
}

#[tokio::test]
async fn a_second_operator_on_the_same_volume_is_refused() {
    let (dir, store) = fresh().await;
    let Err(error) = SqliteStore::open(dir.path(), SqliteOptions::default()).await else { panic!("opened twice") };
    let text = error.to_string();
    assert!(matches!(error, StoreError::Locked { .. }), "{text}");
    assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
    store.close().await;
    open(dir.path()).await;
}

#[tokio::test]
async fn anchors_go_to_the_sink_while_records_come_in_and_at_stop() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("anchor.json");
    let options = SqliteOptions {
        signing_key: Some(key()),
        sinks: vec![Arc::new(FileSink::new(&file))],
        anchor_every: Duration::from_millis(20),
        ..Default::default()
    };
    let store = SqliteStore::open(dir.path().join("data"), options).await.unwrap();
    let read = || {
        let envelope = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        Some(statement::open::<Anchor>(&envelope, Some(&key().verifying_key())).unwrap())
    };
    commit(&*store, "acme", 1).await;
    let mut rounds = 0;
    while read().is_none_or(|anchor| anchor.seq < 1) {
        rounds += 1;
        assert!(rounds < 500, "no anchor came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    commit(&*store, "acme", 2).await;
    store.close().await;
    let last = read().unwrap();
    assert_eq!((last.seq, last.records, last.writer.as_str()), (2, 2, store.writer()));
}

#[tokio::test]
async fn bytes_that_end_two_processes_are_quarantined_and_a_good_stop_is_none() {
    let (dir, store) = fresh().await;
    store.parse_begins("good").await.unwrap();
    store.parse_ended("good").await.unwrap();
    store.parse_begins("unlucky").await.unwrap();
    store.close().await;
    for _ in 0..2 {
        let store = open(dir.path()).await;
        assert!(store.quarantined().await.unwrap().is_empty());
        store.parse_begins("bomb").await.unwrap();
        die(store).await;
    }
    let store = open(dir.path()).await;
    assert_eq!(store.quarantined().await.unwrap(), ["bomb"]);
}

/// Ends the store as a dying process does: nothing is noted, only the lock goes.
async fn die(store: Arc<SqliteStore>) {
    let tasks = store.tasks.lock().await.take().unwrap();
    tasks.anchors.abort();
    tasks.checkpointer.abort();
    store.queue.close();
    tasks.writer.await.unwrap();
}

/// A full disk: every append that waits fails, later ones succeed once there is room, and the chain has no gap.
#[tokio::test]
async fn a_full_disk_fails_appends_and_heals() {
    let (dir, store) = fresh().await;
    commit(&*store, "acme", 1).await;
    store.close().await;
    let db = dir.path().join(DATABASE_FILE);
    // SQLite's own limit of pages is kept per connection, so the trigger stands in for the disk.
    let mut conn = SqliteConnectOptions::new().filename(&db).connect().await.unwrap();
    sqlx::raw_sql(
        "CREATE TRIGGER full BEFORE INSERT ON records WHEN NEW.agent = 'full' \
         BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    sqlx::Connection::close(conn).await.unwrap();
    let store = open(dir.path()).await;
    let mut failing = record("acme", 2);
    failing.agent = "full".into();
    // A job of the same transaction fails with it.
    let (append, signer) = (store.append(failing).unwrap(), store.remember_signer("u"));
    let (append, signer) = tokio::join!(append, signer);
    assert!(matches!(append, Err(StoreError::Closed(why)) if why.contains("disk is full")));
    drop(signer);
    assert_eq!(commit(&*store, "acme", 3).await, 2, "the number that failed is used again");
    store.remember_signer("u").await.unwrap();
    let report = verify(&*store, Some(&key().verifying_key())).await;
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!(report.to_seq, Some(2));
    assert_eq!(store.counters().healthy.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_job_that_fails_takes_no_record_with_it() {
    let (_dir, store) = fresh().await;
    let bad = InForceRow {
        tenant_uid: "u".into(),
        tenant: "acme".into(),
        package: "p".into(),
        version: "not a version".into(),
        digest: "d".into(),
        key_fingerprint: None,
        first_verified: Timestamp::UNIX_EPOCH,
        revision: 1,
    };
    let nothing = contract::arrival(&[]);
    let (appended, job) = (store.append(record("acme", 1)).unwrap(), store.put_in_force(&bad, &nothing));
    let (appended, job) = tokio::join!(appended, job);
    assert_eq!(appended.unwrap().seq, 1);
    assert!(job.is_err());
    assert!(verify(&*store, None).await.ok);
}

/// A database that was put back must not wipe out the witness of what it lost.
#[tokio::test]
async fn an_anchor_that_the_chain_does_not_contain_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("anchor.json"));
    let open = || {
        let sinks: Vec<Arc<dyn AnchorSink>> = vec![Arc::new(FileSink::new(&file))];
        SqliteStore::open(&data, SqliteOptions { signing_key: Some(key()), sinks, ..Default::default() })
    };
    let store = open().await.unwrap();
    commit(&*store, "acme", 1).await;
    store.close().await;
    let backup = std::fs::read(data.join(DATABASE_FILE)).unwrap();
    let store = open().await.unwrap();
    commit(&*store, "acme", 2).await;
    store.close().await;
    let witness = std::fs::read(&file).unwrap();
    std::fs::write(data.join(DATABASE_FILE), backup).unwrap();
    for n in 3..5 {
        // Shorter than what was anchored, then of the same length with other records.
        let store = open().await.unwrap();
        commit(&*store, "acme", n).await;
        store.close().await;
        assert_eq!(store.counters().anchors_disagree.load(Ordering::Relaxed), 1);
        assert_eq!(std::fs::read(&file).unwrap(), witness);
    }
    std::fs::remove_file(&file).unwrap();
    let store = open().await.unwrap();
    store.close().await;
    assert!(file.exists(), "it goes on once a person took the witness away");
}

/// Changes the file as somebody would who can write it, and says what verification finds.
async fn tampered(sql: &'static str) -> Report {
    let (dir, store) = fresh().await;
    for n in 1..=6 {
        commit(&*store, "acme", n).await;
    }
    store.close().await;
    let mut conn = SqliteConnectOptions::new().filename(dir.path().join(DATABASE_FILE)).connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    sqlx::Connection::close(conn).await.unwrap();
    let store = open(dir.path()).await;
    verify(&*store, Some(&key().verifying_key())).await
}

#[tokio::test]
async fn tampering_with_the_file_is_found() {
    assert!(tampered("SELECT 1").await.ok);
    for (sql, seq) in [
        ("UPDATE records SET body = replace(body, 'git/status', 'git/push') WHERE seq = 4", 4),
        ("UPDATE records SET agent = 'other' WHERE seq = 2", 2),
        ("UPDATE records SET tenant = NULL WHERE seq = 2", 2),
        ("DELETE FROM records WHERE seq = 3", 3),
        ("DELETE FROM records WHERE seq > 4", 5),
        ("DELETE FROM records WHERE seq = 1", 1),
        (
            "UPDATE records SET seq = 99 WHERE seq = 2; UPDATE records SET seq = 2 WHERE seq = 3; UPDATE records SET seq = 3 WHERE seq = 99",
            2,
        ),
        ("UPDATE records SET body = NULL, id = NULL, body_hash = zeroblob(32) WHERE seq = 5", 5),
        ("UPDATE writer SET id = 'x'", 1),
    ] {
        let report = tampered(sql).await;
        assert!(report.findings.iter().any(|f| f.seq == Some(seq)), "{sql}: {:?}", report.findings);
    }
}

/// Takes SQLite's write lock beside the store, so that no commit can end.
async fn write_lock(dir: &Path) -> SqliteConnection {
    let connect = SqliteConnectOptions::new().filename(dir.join(DATABASE_FILE)).busy_timeout(Duration::from_secs(10));
    let mut conn = connect.connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.unwrap();
    conn
}

#[tokio::test]
async fn nothing_is_answered_before_its_commit() {
    let (dir, store) = fresh().await;
    let mut conn = write_lock(dir.path()).await;
    let mut one = store.append(record("acme", 1)).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), &mut one).await;
    assert!(early.is_err(), "answered without a commit: {early:?}");
    sqlx::query("ROLLBACK").execute(&mut conn).await.unwrap();
    assert_eq!(one.await.unwrap().seq, 1);
}

/// Prints the id of each record once its commit is known, until it is killed. Run by the next test only.
#[tokio::test]
async fn child_that_appends_until_killed() {
    let Ok(dir) = std::env::var("REMIT_TEST_KILL_DIR") else { return };
    let store = open(Path::new(&dir)).await;
    let last = store.counters().head_seq.load(Ordering::Relaxed);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let record = record("acme", last + 1_000_000 + task * 10_000_000 + n);
                    let id = record.id.clone();
                    store.append(record).unwrap().await.unwrap();
                    // One write, so that a kill leaves no half line that looks whole.
                    std::io::stdout().write_all(format!("committed {id}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn kill_9_loses_no_commit_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::sqlite::tests::child_that_appends_until_killed", "--nocapture"])
            .env("REMIT_TEST_KILL_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        tokio::time::sleep(Duration::from_millis(700 + round * 150)).await;
        if round > 0 {
            // Keeps commits from ending while the child dies: whatever it had answered early would be lost.
            let mut conn = write_lock(dir.path()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            sqlx::query("ROLLBACK").execute(&mut conn).await.unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let text = reader.join().unwrap();
        let seen: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("committed ")).filter(|id| id.len() == 36).collect();
        assert!(!seen.is_empty(), "the child appended nothing: {text}");
        let store = open(dir.path()).await;
        for id in seen {
            assert!(store.decision("acme", id).await.unwrap().is_some(), "{id} was answered and is lost");
        }
        let report = verify(&*store, Some(&key().verifying_key())).await;
        assert!(report.ok, "{:?}", report.findings);
        store.close().await;
    }
}

#[tokio::test]
async fn the_wal_is_copied_back_and_stays_small_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints { bytes: 64 * 1024, every: Duration::from_millis(5), pages: 64 };
    let store = SqliteStore::open_with(dir.path(), SqliteOptions::default(), checkpoints).await.unwrap();
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |m| m.len());
    let mut large = record("acme", 1);
    large.reason = "x".repeat(4000);
    for _ in 0..600 {
        let waiting: Vec<_> = (0..4).map(|_| store.append(large.clone()).unwrap()).collect();
        for appended in waiting {
            appended.await.unwrap();
        }
    }
    // 2,400 records of at least a page; the file of a WAL never shrinks while it is open, so this is its peak.
    let wal = size("remit.db-wal");
    assert!(wal < 6_000_000, "the WAL grew to {wal} bytes");
    assert!(size("remit.db") > 5_000_000, "the checkpointer copied {} bytes", size("remit.db"));
    store.close().await;
    assert_eq!(size("remit.db-wal"), 0, "the stop leaves one file");
}

/// A power cut leaves what was synced. Nothing else is offered for shipping, and no answer waits for a sync.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_on_the_disk_is_offered_for_shipping() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { synchronous: Synchronous::Normal, cap: Some(1 << 30), ..Default::default() };
    let store = SqliteStore::open(dir.path(), options).await.unwrap();
    let offered = async || store.outgoing(0, 100, 1 << 20).await.unwrap().len();
    for n in 1..=5 {
        commit(&*store, "acme", n).await;
    }
    assert_eq!(offered().await, 0, "nobody has synced");
    *store.durable.injected.lock().unwrap() = Some(Box::new(|| Err(std::io::Error::other("EIO"))));
    let error = store.make_durable().await.unwrap_err().to_string();
    assert!(error.contains("EIO"), "{error}");
    assert_eq!(offered().await, 0);
    // A sync that takes long, with a commit in between, which is answered at once.
    let (goes_on, waits) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel::<()>();
    *store.durable.injected.lock().unwrap() = Some(Box::new(move || {
        began.send(()).unwrap();
        waits.recv().unwrap();
        Ok(())
    }));
    let syncing = tokio::spawn({
        let store = store.clone();
        async move { store.make_durable().await.unwrap() }
    });
    tokio::task::spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
    assert_eq!(commit(&*store, "acme", 6).await, 6);
    assert_eq!(offered().await, 0);
    goes_on.send(()).unwrap();
    assert_eq!((syncing.await.unwrap(), offered().await), (5, 5));
    *store.durable.injected.lock().unwrap() = None;
    assert_eq!((store.make_durable().await.unwrap(), offered().await), (6, 6));
    store.close().await;
    // Who was before may have been killed: again nobody has synced.
    let options = SqliteOptions { synchronous: Synchronous::Normal, ..Default::default() };
    let store = SqliteStore::open(dir.path(), options).await.unwrap();
    assert_eq!(store.outgoing(0, 100, 1 << 20).await.unwrap().len(), 0);
    store.close().await;
}
