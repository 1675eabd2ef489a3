//! What the arms of a rollout did, on whatever replica. Shadow evaluations come here directly, each from the replica that answered, and
//! are never sent twice: what is not known to be kept is lost, and counted as that.

use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Row};

use super::PostgresStore;
use super::decisions::fits;
use crate::gate::Arm;
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::Window;
use crate::store::arms::{
    AGENTS, Arms, Count, Counted, READABLE, SUMS, ShadowBatch, ShadowRow, WORST, counts, newest, rank,
};
use crate::store::{StoreError, StoreFuture};

/// Which records of an arm are counted: exactly of this namespace UID and revision.
const COUNTED: &str = "FROM records WHERE tenant_uid = $1 AND revision = $2 AND arm = $3 AND time >= $4";

impl Arms for PostgresStore {
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        self.call(window(&self.pool, tenant_uid, revision, rates_since, enough))
    }

    fn stage<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        self.call(stage(&self.pool, tenant_uid, revision, since, enough))
    }

    fn save_shadows<'a>(&'a self, batch: &'a ShadowBatch) -> StoreFuture<'a, ()> {
        self.call(save(&self.pool, batch))
    }
}

/// Counts the newest records of both arms.
async fn arms(
    conn: &mut PgConnection,
    counted: &mut Counted,
    uid: &str,
    revision: i64,
    since: i64,
    rows: i64,
) -> Result<(), StoreError> {
    for arm in [Arm::Stable, Arm::Canary] {
        let sql = format!(
            "SELECT subject, count(*), count(*) FILTER (WHERE result IN ('deny', 'error')), count(*) FILTER (WHERE result = 'error'), \
             sum(latency)::bigint, max(time) FROM (SELECT subject, result, latency, time {COUNTED} ORDER BY time DESC LIMIT $5) AS newest \
             GROUP BY subject"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(fits(uid)).bind(revision).bind(arm.as_str());
        for row in query.bind(since).bind(rows).fetch_all(&mut *conn).await? {
            let counts = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
            counted.decisions(arm, row.try_get(0)?, counts, row.try_get(5)?)?;
        }
        counted.arm_ended(arm);
    }
    Ok(())
}

async fn stage(pool: &PgPool, uid: &str, revision: i64, since: Timestamp, enough: u64) -> Result<Window, StoreError> {
    let (since, rows) = (since.as_microsecond(), newest(enough));
    let mut tx = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
    let mut counted = Counted::default();
    arms(&mut tx, &mut counted, uid, revision, since, rows).await?;
    let sql = "SELECT agent, sum(compared)::bigint FROM (SELECT agent, compared FROM shadow_counts WHERE tenant_uid = $1 AND revision = $2 \
               AND time >= $3 AND compared > 0 ORDER BY time DESC LIMIT $4) AS newest GROUP BY agent";
    for row in sqlx::query(sql).bind(fits(uid)).bind(revision).bind(since).bind(rows).fetch_all(&mut *tx).await? {
        counted.compared(row.try_get(0)?, row.try_get(1)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

async fn window(
    pool: &PgPool,
    uid: &str,
    revision: i64,
    rates_since: Timestamp,
    enough: u64,
) -> Result<Window, StoreError> {
    let rates = rates_since.as_microsecond();
    let mut tx = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
    let mut counted = Counted::default();
    arms(&mut tx, &mut counted, uid, revision, rates, newest(enough)).await?;
    for (arm, subject) in counted.erring() {
        let sql = format!(
            "SELECT id, CASE WHEN octet_length(body) <= $6 THEN body END {COUNTED} AND subject = $5 AND result = 'error' \
             ORDER BY time DESC LIMIT 1"
        );
        let example = sqlx::query(AssertSqlSafe(sql)).bind(fits(uid)).bind(revision).bind(arm.as_str()).bind(rates);
        let example = example.bind(&subject).bind(READABLE).fetch_optional(&mut *tx).await?;
        if let Some(row) = example {
            counted.error(arm, &subject, row.try_get(0)?, row.try_get(1)?);
        }
    }
    // The ones with the most calls, and after them the sum over all.
    let agents = "SELECT * FROM shadow_totals WHERE tenant_uid = $1 AND revision = $2 AND agent <> '' \
                  ORDER BY compared DESC, agent DESC LIMIT $3";
    let all = "SELECT * FROM shadow_totals WHERE tenant_uid = $1 AND revision = $2 AND agent = '' LIMIT $3";
    for sql in [agents, all] {
        let query = sqlx::query(sql).bind(fits(uid)).bind(revision).bind(AGENTS as i64);
        for row in query.fetch_all(&mut *tx).await? {
            let [a, b, c, d, e, f, g, h, i] = SUMS.map(|name| row.try_get::<i64, _>(name));
            counted.drift(row.try_get("agent")?, [a?, b?, c?, d?, e?, f?, g?, h?, i?], row.try_get("dropped")?)?;
        }
    }
    let sql = "SELECT decision, rank, cause, sentence, candidate_policies FROM shadows \
               WHERE tenant_uid = $1 AND revision = $2 ORDER BY rank DESC, time DESC, decision LIMIT $3";
    for row in sqlx::query(sql).bind(fits(uid)).bind(revision).bind(WORST).fetch_all(&mut *tx).await? {
        counted.example(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

async fn save(pool: &PgPool, batch: &ShadowBatch) -> Result<(), StoreError> {
    if batch.rows.is_empty() && batch.dropped.is_empty() {
        return Ok(());
    }
    let json = |policies: &[String]| {
        // NUL can't stand in a text; JSON writes it as an escape.
        serde_json::to_string(policies).map_err(|e| StoreError::Corrupt { what: "policies", why: e.to_string() })
    };
    let differing: Vec<&ShadowRow> = batch.rows.iter().filter(|row| row.severity != Severity::None).collect();
    let texts = |of: fn(&ShadowRow) -> &str| -> Vec<String> {
        differing.iter().map(|row| fits(of(row)).into_owned()).collect()
    };
    let numbers = |of: fn(&ShadowRow) -> i64| -> Vec<i64> { differing.iter().map(|row| of(row)).collect() };
    let policies = |of: fn(&ShadowRow) -> &[String]| -> Result<Vec<String>, StoreError> {
        differing.iter().map(|row| json(of(row))).collect()
    };
    let mut tx = pool.begin().await?;
    // Their sums are locked in one order, by everybody: what differs is of those that are counted.
    let counted = counts(batch);
    let of: Vec<(&str, &str, i64, &str)> = counted.keys().copied().collect();
    let count: Vec<Count> = counted.values().copied().collect();
    sqlx::query(
        "INSERT INTO shadow_counts (tenant, tenant_uid, revision, agent, time, compared, errors, dropped, batch) \
         SELECT *, $9::text FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], \
         $8::bigint[]) ON CONFLICT DO NOTHING",
    )
    .bind(of.iter().map(|(tenant, ..)| fits(tenant).into_owned()).collect::<Vec<_>>())
    .bind(of.iter().map(|(_, uid, ..)| fits(uid).into_owned()).collect::<Vec<_>>())
    .bind(of.iter().map(|(.., revision, _)| *revision).collect::<Vec<_>>())
    .bind(of.iter().map(|(.., agent)| fits(agent).into_owned()).collect::<Vec<_>>())
    .bind(count.iter().map(|c| c.newest).collect::<Vec<_>>())
    .bind(count.iter().map(|c| c.compared).collect::<Vec<_>>())
    .bind(count.iter().map(|c| c.errors).collect::<Vec<_>>())
    .bind(count.iter().map(|c| c.dropped).collect::<Vec<_>>())
    .bind(&batch.id)
    .execute(&mut *tx)
    .await?;
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
    Ok(tx.commit().await?)
}
