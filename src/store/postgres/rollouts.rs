//! Rollouts in PostgreSQL. A step is one transaction that locks the rollout's row: of two leaders for a moment one takes it.

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::decisions::clean;
use super::{PostgresStore, ledger};
use crate::store::values::time;
use crate::store::{
    Arrival, ReplicatedStore, RolloutCommit, RolloutFailure, RolloutRecord, RolloutState, Rollouts, StoreError,
    StoreFuture, rollout_json, rollout_of_json,
};

async fn commit(pool: &PgPool, step: &RolloutCommit, arrivals: &[Arrival]) -> Result<bool, StoreError> {
    if step.in_force.len() != arrivals.len() {
        let why = format!("{} for {} rows", arrivals.len(), step.in_force.len());
        return Err(StoreError::Invalid { field: "arrivals", why });
    }
    let state = rollout_json("state of a rollout", &step.state)?;
    let mut tx = pool.begin().await?;
    let taken = match step.expected {
        0 => {
            let sql = "INSERT INTO rollout_state (tenant_uid, tenant, version, state) VALUES ($1, $2, 1, $3) ON CONFLICT DO NOTHING";
            sqlx::query(sql)
                .bind(clean(&step.tenant_uid))
                .bind(clean(&step.tenant))
                .bind(&state)
                .execute(&mut *tx)
                .await?
        }
        expected => {
            let sql = "UPDATE rollout_state SET version = version + 1::bigint, state = $3 WHERE tenant_uid = $1 AND version = $2";
            sqlx::query(sql).bind(clean(&step.tenant_uid)).bind(expected).bind(&state).execute(&mut *tx).await?
        }
    };
    if taken.rows_affected() == 0 {
        return Ok(false);
    }
    for (row, arrival) in step.in_force.iter().zip(arrivals) {
        ledger::put_in_force_by(&mut tx, row, arrival).await?;
    }
    for failure in &step.failures {
        // The first cause stays: what came later changed nothing.
        sqlx::query(
            "INSERT INTO rollout_failures (tenant_uid, spec_hash, digest, cause, message, at) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT DO NOTHING",
        )
        .bind(clean(&step.tenant_uid))
        .bind(clean(&failure.spec_hash))
        .bind(clean(&failure.digest))
        .bind(clean(&failure.cause))
        .bind(clean(&failure.message))
        .bind(failure.at.as_microsecond())
        .execute(&mut *tx)
        .await?;
    }
    for record in &step.records {
        sqlx::query(
            "INSERT INTO rollout_records (tenant_uid, number, tenant, revision, at, body) \
             SELECT $1, coalesce(pg_catalog.max(number), 0::bigint) + 1::bigint, $2, $3, $4, $5 FROM rollout_records WHERE tenant_uid = $1",
        )
        .bind(clean(&step.tenant_uid))
        .bind(clean(&step.tenant))
        .bind(record.revision)
        .bind(record.at.as_microsecond())
        .bind(rollout_json("record of a rollout", record)?)
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn state(pool: &PgPool, tenant_uid: &str) -> Result<Option<RolloutState>, StoreError> {
    let sql = "SELECT version, state FROM rollout_state WHERE tenant_uid = $1";
    let row: Option<(i64, String)> = sqlx::query_as(sql).bind(clean(tenant_uid)).fetch_optional(pool).await?;
    let Some((version, state)) = row else { return Ok(None) };
    Ok(Some(RolloutState { version, state: rollout_of_json("state of a rollout", &state)? }))
}

async fn failures(pool: &PgPool, tenant_uid: &str, spec_hash: &str) -> Result<Vec<RolloutFailure>, StoreError> {
    let sql = "SELECT * FROM rollout_failures WHERE tenant_uid = $1 AND spec_hash = $2 ORDER BY at, digest";
    let rows = sqlx::query(sql).bind(clean(tenant_uid)).bind(clean(spec_hash)).fetch_all(pool).await?;
    let failure = |row: &PgRow| {
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

async fn records(pool: &PgPool, tenant_uid: &str, limit: u32) -> Result<Vec<RolloutRecord>, StoreError> {
    let sql = "SELECT body FROM rollout_records WHERE tenant_uid = $1 ORDER BY number DESC LIMIT $2";
    let limit = i64::from(limit.clamp(1, 1000));
    let bodies: Vec<String> = sqlx::query_scalar(sql).bind(clean(tenant_uid)).bind(limit).fetch_all(pool).await?;
    bodies.iter().map(|body| rollout_of_json("record of a rollout", body)).collect()
}

impl Rollouts for PostgresStore {
    fn rollout_state<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Option<RolloutState>> {
        self.call(state(self.pool(), tenant_uid))
    }

    fn commit_rollout<'a>(&'a self, step: &'a RolloutCommit, arrivals: &'a [Arrival]) -> StoreFuture<'a, bool> {
        self.call(commit(self.pool(), step, arrivals))
    }

    fn rollout_failures<'a>(&'a self, tenant_uid: &'a str, spec_hash: &'a str) -> StoreFuture<'a, Vec<RolloutFailure>> {
        self.call(failures(self.pool(), tenant_uid, spec_hash))
    }

    fn rollout_records<'a>(&'a self, tenant_uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<RolloutRecord>> {
        self.call(records(self.pool(), tenant_uid, limit))
    }
}

impl Rollouts for ReplicatedStore {
    fn rollout_state<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Option<RolloutState>> {
        self.postgres().rollout_state(tenant_uid)
    }

    fn commit_rollout<'a>(&'a self, step: &'a RolloutCommit, arrivals: &'a [Arrival]) -> StoreFuture<'a, bool> {
        self.postgres().commit_rollout(step, arrivals)
    }

    fn rollout_failures<'a>(&'a self, tenant_uid: &'a str, spec_hash: &'a str) -> StoreFuture<'a, Vec<RolloutFailure>> {
        self.postgres().rollout_failures(tenant_uid, spec_hash)
    }

    fn rollout_records<'a>(&'a self, tenant_uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<RolloutRecord>> {
        self.postgres().rollout_records(tenant_uid, limit)
    }
}
