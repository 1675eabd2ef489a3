//! What the arms of a rollout did, on whatever replica. Shadow evaluations come here directly, each from the replica that answered, and
//! are never sent twice: what is not known to be kept is lost, and counted as that.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgPool;

use super::PostgresStore;
use super::decisions::fits;
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::Window;
use crate::store::arms::{Arms, Counted, ShadowRow, WORST, compared, rank};
use crate::store::{StoreError, StoreFuture};

impl Arms for PostgresStore {
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        drift_since: Timestamp,
    ) -> StoreFuture<'a, Window> {
        self.call(window(&self.pool, tenant_uid, revision, rates_since, drift_since))
    }

    fn save_shadows<'a>(&'a self, rows: &'a [ShadowRow]) -> StoreFuture<'a, ()> {
        self.call(save(&self.pool, rows))
    }
}

async fn window(
    pool: &PgPool,
    uid: &str,
    revision: i64,
    rates_since: Timestamp,
    drift_since: Timestamp,
) -> Result<Window, StoreError> {
    let (rates, drift) = (rates_since.as_microsecond(), drift_since.as_microsecond());
    let mut tx = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
    let mut counted = Counted::default();
    let sql = "SELECT arm, subject, count(*), count(*) FILTER (WHERE result IN ('deny', 'error')), \
               count(*) FILTER (WHERE result = 'error'), max(time) \
               FROM records WHERE tenant_uid = $1 AND revision = $2 AND time >= $3 GROUP BY arm, subject ORDER BY arm, subject";
    for row in sqlx::query(sql).bind(fits(uid)).bind(revision).bind(rates).fetch_all(&mut *tx).await? {
        let counts = [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
        counted.decisions(row.try_get(0)?, row.try_get(1)?, counts, row.try_get(5)?)?;
    }
    for (arm, subject) in counted.erring() {
        let sql = "SELECT id FROM records WHERE tenant_uid = $1 AND revision = $2 AND time >= $3 AND arm = $4 AND subject = $5 \
                   AND result = 'error' ORDER BY time DESC LIMIT 1";
        let example = sqlx::query_scalar(sql).bind(fits(uid)).bind(revision).bind(rates).bind(arm.as_str());
        let example = example.bind(&subject).fetch_optional(&mut *tx).await?;
        counted.error(arm, &subject, example);
    }
    let sql = "SELECT agent, sum(compared)::bigint FROM shadow_counts WHERE tenant_uid = $1 AND revision = $2 AND time >= $3 \
               GROUP BY agent";
    for row in sqlx::query(sql).bind(fits(uid)).bind(revision).bind(drift).fetch_all(&mut *tx).await? {
        counted.compared(row.try_get(0)?, row.try_get(1)?)?;
    }
    let sql = "SELECT agent, rank, cause, count(*) FROM shadows WHERE tenant_uid = $1 AND revision = $2 AND time >= $3 \
               GROUP BY agent, rank, cause";
    for row in sqlx::query(sql).bind(fits(uid)).bind(revision).bind(drift).fetch_all(&mut *tx).await? {
        counted.drift(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)?;
    }
    let sql = "SELECT decision, rank, cause, sentence, candidate_policies FROM shadows \
               WHERE tenant_uid = $1 AND revision = $2 AND time >= $3 ORDER BY rank DESC, time DESC, decision LIMIT $4";
    let worst = sqlx::query(sql).bind(fits(uid)).bind(revision).bind(drift).bind(WORST);
    for row in worst.fetch_all(&mut *tx).await? {
        counted.example(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

async fn save(pool: &PgPool, rows: &[ShadowRow]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let json = |policies: &[String]| {
        // NUL can't stand in a text; JSON writes it as an escape.
        serde_json::to_string(policies).map_err(|e| StoreError::Corrupt { what: "policies", why: e.to_string() })
    };
    let differing: Vec<&ShadowRow> = rows.iter().filter(|row| row.severity != Severity::None).collect();
    let texts = |of: fn(&ShadowRow) -> &str| -> Vec<String> {
        differing.iter().map(|row| fits(of(row)).into_owned()).collect()
    };
    let numbers = |of: fn(&ShadowRow) -> i64| -> Vec<i64> { differing.iter().map(|row| of(row)).collect() };
    let policies = |of: fn(&ShadowRow) -> &[String]| -> Result<Vec<String>, StoreError> {
        differing.iter().map(|row| json(of(row))).collect()
    };
    let mut tx = pool.begin().await?;
    if !differing.is_empty() {
        sqlx::query(
            "INSERT INTO shadows (decision, tenant, tenant_uid, revision, time, agent, answered, rank, cause, sentence, \
             stable_policies, candidate_policies) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], \
             $5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::text[]) \
             ON CONFLICT DO NOTHING",
        )
        .bind(texts(|row| &row.decision))
        .bind(texts(|row| &row.tenant))
        .bind(texts(|row| &row.tenant_uid))
        .bind(numbers(|row| row.revision))
        .bind(numbers(|row| row.time.as_microsecond()))
        .bind(texts(|row| &row.agent))
        .bind(texts(|row| row.answered.as_str()))
        .bind(numbers(|row| rank(row.severity)))
        .bind(texts(|row| row.cause.map_or("", |c| c.as_str())))
        .bind(differing.iter().map(|row| row.sentence.replace('\0', "\u{2400}")).collect::<Vec<_>>())
        .bind(policies(|row| &row.stable_policies)?)
        .bind(policies(|row| &row.candidate_policies)?)
        .execute(&mut *tx)
        .await?;
    }
    for ((tenant, uid, revision, agent), (calls, newest)) in compared(rows) {
        let sql = "INSERT INTO shadow_counts (tenant, tenant_uid, revision, time, agent, compared) VALUES ($1, $2, $3, $4, $5, $6)";
        let insert = sqlx::query(sql).bind(fits(tenant)).bind(fits(uid)).bind(revision).bind(newest);
        insert.bind(fits(agent)).bind(calls).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}
