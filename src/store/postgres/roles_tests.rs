//! Rights as PostgreSQL enforces them, tried as each kind of login; and changed sessions, however late they commit.

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use sqlx::postgres::PgConnection;

use super::{Login, OPERATOR, Owner};
use crate::gate::CallOutcome;
use crate::store::testing::postgres::{connect, fresh_database, fresh_login, with_login};
use crate::store::testing::record;
use crate::store::{
    CallReport, PostgresOptions, PostgresStore, ReplicatedStore, SqliteOptions, SqliteStore, Store, contract,
};

fn grants(table: &str) -> bool {
    OPERATOR.iter().any(|(name, _)| *name == table)
}

/// Every table holds everybody back who is not the operator, also its owner, and its rights are given somewhere.
#[tokio::test]
async fn every_table_has_forced_row_level_security() {
    let url = fresh_database().await;
    PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), "w")).await.unwrap();
    let mut conn = connect(&url).await;
    let tables: Vec<(String, bool)> = sqlx::query_as(
        "SELECT relname::text, relrowsecurity AND relforcerowsecurity FROM pg_class \
         WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname <> '_sqlx_migrations' ORDER BY 1",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(tables.len() > 10);
    for (table, forced) in tables {
        assert!(forced, "{table}: SELECT remit_guard('{table}') is missing in its migration");
        assert!(table == "logins" || grants(&table), "{table}: OPERATOR does not name it");
    }
}

async fn refused(conn: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query(sql).execute(conn).await.expect_err(sql).to_string()
}

#[tokio::test]
async fn a_login_of_the_operator_adds_records_and_never_changes_one() {
    let url = fresh_database().await;
    let login = fresh_login(&url).await;
    let mut owner = Owner::connect(&url.parse().unwrap()).await.unwrap();
    owner.grant(&login, &Login::Operator).await.unwrap();
    let as_login = with_login(&url, &login);
    // The whole of a replica's work, as this login.
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::from_bytes(&[7; 32]);
    let sqlite = SqliteOptions { signing_key: Some(key.clone()), cap: Some(1 << 30), ..SqliteOptions::default() };
    let journal = SqliteStore::open(dir.path(), sqlite).await.unwrap();
    let options = PostgresOptions {
        signing_key: Some(key.clone()),
        ..PostgresOptions::new(as_login.parse().unwrap(), journal.writer())
    };
    let store = PostgresStore::open(options).await.unwrap();
    assert!(!store.owns_records().await.unwrap());
    let replica = ReplicatedStore::start(journal, store, Default::default());
    contract::sessions_end_once(&*replica).await;
    contract::the_high_water_mark_compares_versions(&*replica).await;
    contract::a_signer_stays_seen(&*replica).await;
    contract::decisions_are_filtered_and_paged(&*replica).await;
    let report = contract::verify(&*replica, Some(&key.verifying_key())).await;
    assert!(report.ok && report.records == 21, "{:?}", report.findings);

    let mut conn = connect(&as_login).await;
    for sql in [
        "UPDATE records SET body = 'x'",
        "DELETE FROM records",
        "TRUNCATE records",
        "UPDATE tombstones SET rows = 0",
        "DELETE FROM anchors",
        "DELETE FROM writers",
        "INSERT INTO logins VALUES (current_user, 'other')",
        "UPDATE settings SET retention_floor_seconds = 0",
        "ALTER TABLE records DISABLE ROW LEVEL SECURITY",
        "DELETE FROM policy_versions",
    ] {
        let why = refused(&mut conn, sql).await;
        assert!(why.contains("permission denied") || why.contains("must be owner"), "{sql}: {why}");
    }
    // Not even by retention, before the owner's time: these records are of the future.
    let far = Timestamp::from_second(4_000_000_000).unwrap();
    let error = replica.retain("acme", far, 10).await.unwrap_err().to_string();
    assert!(error.contains("retention_floor_seconds"), "{error}");
    // Nobody's temporary tables come before the owner's.
    sqlx::raw_sql("CREATE TEMP TABLE settings (one boolean, retention_floor_seconds bigint); INSERT INTO settings VALUES (true, -99999999999)")
        .execute(&mut conn)
        .await
        .unwrap();
    let sql = "SELECT remit_retain('w', 1, 'acme', 9000000000000000, '{}', '{}', '')";
    assert!(refused(&mut conn, sql).await.contains("retention_floor_seconds"));
    owner.revoke(&login).await.unwrap();
    assert!(refused(&mut connect(&as_login).await, "SELECT 1 FROM records").await.contains("permission denied"));
    replica.close().await;
}

#[tokio::test]
async fn a_reader_sees_its_tenant_and_gets_nothing_of_another() {
    let url = fresh_database().await;
    let (acme, beta) = (fresh_login(&url).await, fresh_login(&url).await);
    let mut owner = Owner::connect(&url.parse().unwrap()).await.unwrap();
    for (login, uid) in [(&acme, "uid-acme"), (&beta, "uid-beta")] {
        owner.grant(login, &Login::Reader { tenant_uid: uid.into() }).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteOptions { cap: Some(1 << 30), ..Default::default() };
    let journal = SqliteStore::open(dir.path(), sqlite).await.unwrap();
    let store = PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), journal.writer())).await.unwrap();
    let replica = ReplicatedStore::start(journal, store, Default::default());
    for n in 1..=5 {
        contract::commit(&*replica, if n == 5 { "beta" } else { "acme" }, n).await;
        let report =
            CallReport { outcome: CallOutcome::Success, duration_ms: None, time: Timestamp::from_second(1).unwrap() };
        replica.report_call(&record("x", n).id, &report).await.unwrap();
    }
    contract::sessions_end_once(&*replica).await;
    replica.close().await;
    for (login, tenant, count) in [(&acme, "acme", 4), (&beta, "beta", 1)] {
        let mut conn = connect(&with_login(&url, login)).await;
        let seen: Vec<String> = sqlx::query_scalar("SELECT tenant FROM records").fetch_all(&mut conn).await.unwrap();
        assert_eq!(seen, vec![tenant.to_owned(); count]);
        let outcomes: i64 = sqlx::query_scalar("SELECT count(*) FROM outcomes").fetch_one(&mut conn).await.unwrap();
        assert_eq!(outcomes, count as i64);
        let other = "SELECT count(*) FROM records WHERE tenant_uid <> (SELECT tenant_uid FROM logins)";
        assert_eq!(sqlx::query_scalar::<_, i64>(other).fetch_one(&mut conn).await.unwrap(), 0);
        let sessions: i64 = sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(&mut conn).await.unwrap();
        assert_eq!(sessions, 0, "they are of namespace `u`");
        for sql in [
            "INSERT INTO records (writer, seq, hash) VALUES ('x', 1, '')",
            "UPDATE records SET body = ''",
            "DELETE FROM records",
            "SELECT 1 FROM anchors",
            "SELECT 1 FROM signer_seen",
            "INSERT INTO logins VALUES (current_user, '*')",
            "SELECT remit_retain('w', 1, 'acme', 1, '{}', '{}', '')",
        ] {
            let why = refused(&mut conn, sql).await;
            assert!(why.contains("permission denied"), "{sql}: {why}");
        }
    }
    for (login, of, why) in [
        ("postgres", Login::Operator, "superuser"),
        ("nobody_there", Login::Operator, "no role"),
        (acme.as_str(), Login::Reader { tenant_uid: "*".into() }, "UID of a namespace"),
    ] {
        let error = owner.grant(login, &of).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// Whoever may not make tables is told who has to, and changes nothing.
#[tokio::test]
async fn a_login_that_may_not_make_tables_says_who_has_to() {
    let url = fresh_database().await;
    let login = fresh_login(&url).await;
    let options = PostgresOptions::new(with_login(&url, &login).parse().unwrap(), "w");
    let Err(error) = PostgresStore::open(options).await else { panic!("opened") };
    assert!(error.to_string().contains("remit postgres migrate"), "{error}");
}

/// A replica hears of what another one opened, prolonged and ended, each change at least once, also of one that commits late.
#[tokio::test]
async fn changed_sessions_are_given_however_late_they_commit() {
    let url = fresh_database().await;
    let store = PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), "w")).await.unwrap();
    let (none, mark) = store.changed_sessions(None).await.unwrap();
    assert!(none.is_empty());
    let mut late = connect(&url).await;
    let insert = "INSERT INTO sessions (id, tenant, tenant_uid, agent, agent_uid, started, last_seen) VALUES ($1, 't', 'u', 'a', 'b', 1, 1)";
    sqlx::query("BEGIN").execute(&mut late).await.unwrap();
    sqlx::query(insert).bind("late").execute(&mut late).await.unwrap();
    sqlx::query(insert).bind("early").execute(&mut connect(&url).await).await.unwrap();
    let (rows, mark) = store.changed_sessions(Some(&mark)).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["early"]);
    sqlx::query("COMMIT").execute(&mut late).await.unwrap();
    let (rows, mark) = store.changed_sessions(Some(&mark)).await.unwrap();
    assert!(rows.iter().any(|r| r.id == "late"), "it began before the mark and committed after it");
    let (rows, _) = store.changed_sessions(Some(&mark)).await.unwrap();
    assert!(rows.is_empty(), "{rows:?}");
}
