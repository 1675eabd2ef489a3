//! Rollouts in SQLite: reads by the readers' pool, a step by the one writer, in its transaction.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::SqliteStore;
use super::ledger::{Write, put_in_force, time};
use crate::store::{
    Arrival, RolloutCommit, RolloutFailure, RolloutRecord, RolloutState, Rollouts, StoreError, StoreFuture,
    rollout_json, rollout_of_json,
};

/// Takes a step; 0: somebody else took one first.
pub(super) async fn commit(
    conn: &mut SqliteConnection,
    step: RolloutCommit,
    arrivals: Vec<Arrival>,
) -> Result<u64, StoreError> {
    if step.in_force.len() != arrivals.len() {
        let why = format!("{} for {} rows", arrivals.len(), step.in_force.len());
        return Err(StoreError::Invalid { field: "arrivals", why });
    }
    let sql = "SELECT version FROM rollout_state WHERE tenant_uid = ?";
    let version: Option<i64> = sqlx::query_scalar(sql).bind(&step.tenant_uid).fetch_optional(&mut *conn).await?;
    if version.unwrap_or(0) != step.expected {
        return Ok(0);
    }
    sqlx::query(
        "INSERT INTO rollout_state (tenant_uid, tenant, version, state) VALUES (?, ?, ?, ?) \
         ON CONFLICT (tenant_uid) DO UPDATE SET version = excluded.version, state = excluded.state",
    )
    .bind(&step.tenant_uid)
    .bind(&step.tenant)
    .bind(step.expected + 1)
    .bind(rollout_json("state of a rollout", &step.state)?)
    .execute(&mut *conn)
    .await?;
    for (row, arrival) in step.in_force.into_iter().zip(arrivals) {
        put_in_force(&mut *conn, row, arrival).await?;
    }
    for failure in &step.failures {
        // The first cause stays: what came later changed nothing.
        sqlx::query(
            "INSERT INTO rollout_failures (tenant_uid, spec_hash, digest, cause, message, at) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&step.tenant_uid)
        .bind(&failure.spec_hash)
        .bind(&failure.digest)
        .bind(&failure.cause)
        .bind(&failure.message)
        .bind(failure.at.as_microsecond())
        .execute(&mut *conn)
        .await?;
    }
    for record in &step.records {
        sqlx::query(
            "INSERT INTO rollout_records (tenant_uid, number, tenant, revision, at, body) \
             SELECT ?1, coalesce(max(number), 0) + 1, ?2, ?3, ?4, ?5 FROM rollout_records WHERE tenant_uid = ?1",
        )
        .bind(&step.tenant_uid)
        .bind(&step.tenant)
        .bind(record.revision)
        .bind(record.at.as_microsecond())
        .bind(rollout_json("record of a rollout", record)?)
        .execute(&mut *conn)
        .await?;
    }
    Ok(1)
}

async fn state(pool: &SqlitePool, tenant_uid: &str) -> Result<Option<RolloutState>, StoreError> {
    let sql = "SELECT version, state FROM rollout_state WHERE tenant_uid = ?";
    let row: Option<(i64, String)> = sqlx::query_as(sql).bind(tenant_uid).fetch_optional(pool).await?;
    let Some((version, state)) = row else { return Ok(None) };
    Ok(Some(RolloutState { version, state: rollout_of_json("state of a rollout", &state)? }))
}

async fn failures(pool: &SqlitePool, tenant_uid: &str, spec_hash: &str) -> Result<Vec<RolloutFailure>, StoreError> {
    let sql = "SELECT * FROM rollout_failures WHERE tenant_uid = ? AND spec_hash = ? ORDER BY at, digest";
    let rows = sqlx::query(sql).bind(tenant_uid).bind(spec_hash).fetch_all(pool).await?;
    let failure = |row: &sqlx::sqlite::SqliteRow| {
        Ok(RolloutFailure {
            spec_hash: row.try_get("spec_hash")?,
            digest: row.try_get("digest")?,
            cause: row.try_get("cause")?,
            message: row.try_get("message")?,
            at: time("time of a failed rollout", row.try_get("at")?)?,
        })
    };
    rows.iter().map(failure).collect()
}

async fn records(pool: &SqlitePool, tenant_uid: &str, limit: u32) -> Result<Vec<RolloutRecord>, StoreError> {
    let sql = "SELECT body FROM rollout_records WHERE tenant_uid = ? ORDER BY number DESC LIMIT ?";
    let bodies: Vec<String> =
        sqlx::query_scalar(sql).bind(tenant_uid).bind(limit.clamp(1, 1000)).fetch_all(pool).await?;
    bodies.iter().map(|body| rollout_of_json("record of a rollout", body)).collect()
}

impl Rollouts for SqliteStore {
    fn rollout_state<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Option<RolloutState>> {
        Box::pin(state(&self.readers, tenant_uid))
    }

    fn commit_rollout<'a>(&'a self, step: &'a RolloutCommit, arrivals: &'a [Arrival]) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let step = Box::new((step.clone(), arrivals.to_vec()));
            Ok(self.write(Write::Rollout(step)).await? == 1)
        })
    }

    fn rollout_failures<'a>(&'a self, tenant_uid: &'a str, spec_hash: &'a str) -> StoreFuture<'a, Vec<RolloutFailure>> {
        Box::pin(failures(&self.readers, tenant_uid, spec_hash))
    }

    fn rollout_records<'a>(&'a self, tenant_uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<RolloutRecord>> {
        Box::pin(records(&self.readers, tenant_uid, limit))
    }
}
