//! The tables of this version: makes them where the login may, else says who has to.

use sqlx::migrate::{Migrate as _, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row, SqlSafeStr};

use super::{schema, within};
use crate::store::StoreError;

/// Table of the migrations that were applied.
const TABLE: &str = "_sqlx_migrations";

/// The migrations, compiled in.
fn migrator() -> Migrator {
    let of = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(vec![
        of(1, "init", include_str!("../../../migrations/postgres/0001_init.sql")),
        of(4, "history", include_str!("../../../migrations/postgres/0004_history.sql")),
        of(5, "rollouts", include_str!("../../../migrations/postgres/0005_rollouts.sql")),
        of(6, "arms", include_str!("../../../migrations/postgres/0006_arms.sql")),
        of(7, "replays", include_str!("../../../migrations/postgres/0007_replays.sql")),
        of(8, "bounded", include_str!("../../../migrations/postgres/0008_bounded.sql")),
        of(9, "compromised", include_str!("../../../migrations/postgres/0009_compromised.sql")),
        of(10, "paths", include_str!("../../../migrations/postgres/0010_paths.sql")),
    ]);
    // A replica of the version before may start while a newer one is rolled out: migrations only add.
    migrator.set_ignore_missing(true);
    migrator
}

/// Checks that every migration of this version was applied, and applies what is missing where the login may make tables here.
pub(super) async fn prepare(conn: &mut PgConnection) -> Result<(), StoreError> {
    let migrator = migrator();
    let (applied, may) = within(state(conn)).await?;
    let missing: Vec<_> = migrator.iter().filter(|m| !applied.contains(&m.version)).map(|m| m.version).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !may {
        return Err(StoreError::Invalid {
            field: "--postgres-url",
            why: format!(
                "the database lacks migrations {missing:?} of this version of Remit, and this login may not make tables there: run \
                 `remit postgres migrate` as the role that owns them"
            ),
        });
    }
    migrate(conn).await
}

/// Applies what is missing. One process at a time: the others wait. From then on the connection finds names in the tables' schema only.
pub(super) async fn migrate(conn: &mut PgConnection) -> Result<(), StoreError> {
    schema::hold(conn).await?;
    // Another replica may be at it for longer than a call may take.
    conn.execute("SET statement_timeout = '300s'; SET lock_timeout = '300s'").await?;
    let migrated = migrator().run_direct(None, conn, false).await;
    if migrated.is_err() {
        let _ = conn.unlock().await;
    }
    migrated.map_err(|e| StoreError::Database(sqlx::Error::Migrate(Box::new(e))))?;
    conn.execute("RESET statement_timeout; RESET lock_timeout").await?;
    Ok(())
}

/// The migrations that were applied, and whether this login may apply more.
async fn state(conn: &mut PgConnection) -> Result<(Vec<i64>, bool), StoreError> {
    let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL AS there, \
               coalesce(pg_catalog.has_schema_privilege(pg_catalog.current_schema()::text, 'CREATE'::text), false) AS may, \
               coalesce((SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE'::text) FROM pg_catalog.pg_class c \
                         WHERE c.oid = pg_catalog.to_regclass($1)), true) AS owns";
    let row = sqlx::query(sql).bind(TABLE).fetch_one(&mut *conn).await?;
    let may = row.try_get::<bool, _>("may")? && row.try_get::<bool, _>("owns")?;
    if !row.try_get::<bool, _>("there")? {
        return Ok((Vec::new(), may));
    }
    let applied = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(conn).await?;
    Ok((applied, may))
}
