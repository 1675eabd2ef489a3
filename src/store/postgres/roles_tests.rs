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
    // Not for ever. Transactions of other databases of the server keep the mark back as well: those of other tests.
    let mut mark = mark;
    for left in (0..600).rev() {
        let (rows, next) = store.changed_sessions(Some(&mark)).await.unwrap();
        if rows.is_empty() {
            break;
        }
        assert!(left > 0, "{rows:?}");
        mark = next;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Whoever calls a function of ours, it means by a name what its author meant.
#[tokio::test]
async fn every_function_has_a_path_of_its_own() {
    let url = fresh_database().await;
    PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), "w")).await.unwrap();
    let functions: Vec<(String, Option<Vec<String>>)> = sqlx::query_as(
        "SELECT oid::regprocedure::text, proconfig FROM pg_proc WHERE pronamespace = current_schema()::regnamespace ORDER BY 1",
    )
    .fetch_all(&mut connect(&url).await)
    .await
    .unwrap();
    assert!(functions.len() >= 10, "{functions:?}");
    for (function, settings) in functions {
        let path = vec!["search_path=pg_catalog, public, pg_temp".to_owned()];
        assert_eq!(settings, Some(path), "{function}: its migration gives it no path, see 0010");
    }
}

/// One record, and a login of the operator.
async fn one_record() -> (String, String) {
    let url = fresh_database().await;
    let login = fresh_login(&url).await;
    let mut owner = Owner::connect(&url.parse().unwrap()).await.unwrap();
    owner.grant(&login, &Login::Operator).await.unwrap();
    sqlx::query("INSERT INTO records (writer, seq, hash, body) VALUES ('w', 1, sha256(''), 'true')")
        .execute(&mut connect(&url).await)
        .await
        .unwrap();
    let as_login = with_login(&url, &login);
    (url, as_login)
}

async fn the_record_is_as_it_was(url: &str) {
    let bodies: Vec<String> =
        sqlx::query_scalar("SELECT body FROM records").fetch_all(&mut connect(url).await).await.unwrap();
    assert_eq!(bodies, ["true"]);
}

/// What brings a package into force: a trigger of the owner's writes its history.
const INTO_FORCE: &str = "INSERT INTO public.policy_texts VALUES ('v', 's', 'permit (principal, action, resource);');
    INSERT INTO public.package_policies VALUES ('v', 'd', 'p', 's');
    INSERT INTO public.in_force (tenant_uid, revision, tenant, package, version, digest, first_verified)
        VALUES ('v', 1, 't', 'x', '1.0.0', 'd', 1)";

/// A temporary table of the name of one of ours, with a trigger: it would run with the owner's rights.
#[tokio::test]
async fn pg_temp_attack() {
    let (url, login) = one_record().await;
    let mut conn = connect(&login).await;
    let evil = "CREATE FUNCTION pg_temp.evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE public.records SET body = 'false';
            DELETE FROM public.records WHERE seq > 1;
            RETURN NULL;
        END $$;
        CREATE TEMP TABLE policy_versions (LIKE public.policy_versions);
        CREATE TEMP TABLE settings (LIKE public.settings);
        CREATE TEMP TABLE tombstones (LIKE public.tombstones);
        CREATE TEMP TABLE outcomes (LIKE public.outcomes);
        INSERT INTO pg_temp.settings VALUES (true, -99999999999);
        GRANT ALL ON pg_temp.policy_versions, pg_temp.settings, pg_temp.tombstones, pg_temp.outcomes TO PUBLIC;
        CREATE TRIGGER evil BEFORE INSERT ON pg_temp.policy_versions FOR EACH ROW EXECUTE FUNCTION pg_temp.evil();
        CREATE TRIGGER evil BEFORE INSERT ON pg_temp.tombstones FOR EACH ROW EXECUTE FUNCTION pg_temp.evil();";
    sqlx::raw_sql(evil).execute(&mut conn).await.unwrap();
    sqlx::raw_sql(INTO_FORCE).execute(&mut conn).await.unwrap();
    sqlx::query("SELECT public.remit_retain('w', 1, 't', 1, '{}', '{}', 'x')").execute(&mut conn).await.unwrap();
    the_record_is_as_it_was(&url).await;
    let mut owner = connect(&url).await;
    for (table, count) in [("policy_versions", 1), ("tombstones", 1)] {
        let sql = format!("SELECT count(*) FROM public.{table}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut owner).await.unwrap();
        assert_eq!(rows, count, "{table}: what was written went to the temporary table");
    }
}

/// Where somebody may make functions after all: one that fits a call better than the catalogue's is not called, neither by the owner's
/// functions nor by a replica.
#[tokio::test]
async fn shadowed_functions() {
    let (url, login) = one_record().await;
    let mut owner = connect(&url).await;
    sqlx::query("GRANT CREATE ON SCHEMA public TO PUBLIC").execute(&mut owner).await.unwrap();
    let anybody = fresh_login(&url).await;
    let evil = "CREATE FUNCTION public.evil() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            UPDATE public.records SET body = 'false'; RAISE EXCEPTION 'as %', current_user;
        END $$;
        CREATE FUNCTION public.hashtextextended(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT public.evil(); SELECT 1::bigint';
        CREATE FUNCTION public.cardinality(bigint[]) RETURNS int LANGUAGE sql AS 'SELECT public.evil(); SELECT 0';
        CREATE FUNCTION public.cardinality(bytea[]) RETURNS int LANGUAGE sql AS 'SELECT public.evil(); SELECT 0';
        CREATE FUNCTION public.convert_to(text, text) RETURNS bytea LANGUAGE sql AS 'SELECT public.evil(); SELECT ''''::bytea';
        CREATE FUNCTION public.minus(numeric, bigint) RETURNS numeric LANGUAGE sql AS 'SELECT public.evil(); SELECT 0::numeric';
        CREATE OPERATOR public.- (LEFTARG = numeric, RIGHTARG = bigint, FUNCTION = public.minus);";
    sqlx::raw_sql(evil).execute(&mut connect(&with_login(&url, &anybody)).await).await.unwrap();
    let mut conn = connect(&login).await;
    sqlx::raw_sql(INTO_FORCE).execute(&mut conn).await.unwrap();
    sqlx::query("SELECT remit_retain('w', 1, 't', 1, '{}', '{}', 'x')").execute(&mut conn).await.unwrap();
    sqlx::query("SELECT remit_forget_shadows('t', 1)").execute(&mut conn).await.unwrap();
    let key = Some(SigningKey::from_bytes(&[7; 32]));
    let store = PostgresOptions { signing_key: key, ..PostgresOptions::new(login.parse().unwrap(), "w") };
    let store = PostgresStore::open(store).await.unwrap();
    contract::the_high_water_mark_compares_versions(&*store).await;
    assert_eq!(store.retain("t", Timestamp::from_second(1).unwrap(), 10).await.unwrap(), 0);
    let mut tx = store.pool().begin().await.unwrap();
    super::super::intake::mark(&mut tx, "w").await.unwrap();
    drop(tx);
    the_record_is_as_it_was(&url).await;
}

/// The right to make functions is taken from everybody; where it can't be, or others have it or used it, no table is made.
#[tokio::test]
async fn nobody_but_the_owner_makes_anything_in_the_schema() {
    let url = fresh_database().await;
    let (owner, other) = (fresh_login(&url).await, fresh_login(&url).await);
    let mut admin = connect(&url).await;
    let run = async |admin: &mut PgConnection, sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(admin).await.unwrap();
    };
    let as_owner = with_login(&url, &owner);
    let migrate = async || match Owner::connect(&as_owner.parse().unwrap()).await {
        Ok(owner) => {
            owner.close().await;
            String::new()
        }
        Err(error) => error.to_string(),
    };
    // As PostgreSQL 14 has it.
    run(&mut admin, "ALTER SCHEMA public OWNER TO postgres; GRANT CREATE ON SCHEMA public TO PUBLIC".into()).await;
    let why = migrate().await;
    assert!(why.contains("REVOKE CREATE ON SCHEMA public FROM PUBLIC"), "{why}");
    run(&mut admin, format!("ALTER SCHEMA public OWNER TO {owner}; GRANT CREATE ON SCHEMA public TO {other}")).await;
    let why = migrate().await;
    assert!(why.contains(&other) && why.contains("may make functions"), "{why}");
    let shadow = "CREATE FUNCTION public.hashtextextended(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'";
    run(&mut connect(&with_login(&url, &other)).await, shadow.into()).await;
    run(&mut admin, format!("REVOKE CREATE ON SCHEMA public FROM {other}")).await;
    let why = migrate().await;
    assert!(why.contains(&format!("function public.hashtextextended(text,integer) of {other}")), "{why}");
    let there = "SELECT to_regclass('public.records') IS NOT NULL";
    assert!(!sqlx::query_scalar::<_, bool>(there).fetch_one(&mut admin).await.unwrap());
    run(&mut admin, "DROP FUNCTION public.hashtextextended(text, int); GRANT CREATE ON SCHEMA public TO PUBLIC".into())
        .await;
    assert_eq!(migrate().await, "");
    assert!(sqlx::query_scalar::<_, bool>(there).fetch_one(&mut admin).await.unwrap());
    let may = "SELECT has_schema_privilege($1, 'public', 'CREATE')";
    assert!(!sqlx::query_scalar::<_, bool>(may).bind(&other).fetch_one(&mut admin).await.unwrap());
}
