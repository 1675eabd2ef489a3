//! What the arms of a rollout did. Reads go to the readers' pool, in one transaction; writes are jobs of the one writer.

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::gate::Arm;
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::Window;
use crate::store::arms::{AGENTS, Arms, Counted, READABLE, SUMS, ShadowBatch, ShadowRow, WORST, counts, newest, rank};
use crate::store::{StoreError, StoreFuture};

use super::SqliteStore;
use super::ledger::Write;

/// Rows of one INSERT.
const ROWS: usize = 64;
/// Which records of an arm are counted: exactly of this namespace UID and revision.
const COUNTED: &str = "FROM records WHERE rollout_uid = ?1 AND revision = ?2 AND arm = ?3 AND time >= ?4";

impl Arms for SqliteStore {
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        Box::pin(window(&self.readers, tenant_uid, revision, rates_since, enough))
    }

    fn stage<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        Box::pin(stage(&self.readers, tenant_uid, revision, since, enough))
    }

    fn save_shadows<'a>(&'a self, batch: &'a ShadowBatch) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if !(batch.rows.is_empty() && batch.dropped.is_empty()) {
                self.write(Write::Shadows(Box::new(batch.clone()))).await?;
            }
            Ok(())
        })
    }
}

/// Counts the newest records of both arms.
async fn arms(
    conn: &mut SqliteConnection,
    counted: &mut Counted,
    uid: &str,
    revision: i64,
    since: i64,
    rows: i64,
) -> Result<(), StoreError> {
    for arm in [Arm::Stable, Arm::Canary] {
        let sql = format!(
            "SELECT subject, count(*), sum(result IN ('deny', 'error')), sum(result = 'error'), sum(latency), max(time) \
             FROM (SELECT subject, result, latency, time {COUNTED} ORDER BY time DESC LIMIT ?5) GROUP BY subject"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(uid).bind(revision).bind(arm.as_str());
        for row in query.bind(since).bind(rows).fetch_all(&mut *conn).await? {
            let counts = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
            counted.decisions(arm, row.try_get(0)?, counts, row.try_get(5)?)?;
        }
        counted.arm_ended(arm);
    }
    Ok(())
}

async fn stage(
    pool: &SqlitePool,
    uid: &str,
    revision: i64,
    since: Timestamp,
    enough: u64,
) -> Result<Window, StoreError> {
    let (since, rows) = (since.as_microsecond(), newest(enough));
    let mut tx = pool.begin().await?;
    let mut counted = Counted::default();
    arms(&mut tx, &mut counted, uid, revision, since, rows).await?;
    let sql = "SELECT agent, sum(compared) FROM (SELECT agent, compared FROM shadow_counts \
               WHERE rollout_uid = ? AND revision = ? AND time >= ? AND compared > 0 ORDER BY time DESC LIMIT ?) GROUP BY agent";
    for row in sqlx::query(sql).bind(uid).bind(revision).bind(since).bind(rows).fetch_all(&mut *tx).await? {
        counted.compared(row.try_get(0)?, row.try_get(1)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

async fn window(
    pool: &SqlitePool,
    uid: &str,
    revision: i64,
    rates_since: Timestamp,
    enough: u64,
) -> Result<Window, StoreError> {
    let rates = rates_since.as_microsecond();
    let mut tx = pool.begin().await?;
    let mut counted = Counted::default();
    arms(&mut tx, &mut counted, uid, revision, rates, newest(enough)).await?;
    for (arm, subject) in counted.erring() {
        let sql = format!(
            "SELECT id, CASE WHEN length(body) <= ?6 THEN body END {COUNTED} AND subject = ?5 AND result = 'error' \
             ORDER BY time DESC LIMIT 1"
        );
        let example = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(uid).bind(revision).bind(arm.as_str()).bind(rates);
        let example = example.bind(subject.clone()).bind(READABLE).fetch_optional(&mut *tx).await?;
        if let Some(row) = example {
            counted.error(arm, &subject, row.try_get(0)?, row.try_get(1)?);
        }
    }
    // The ones with the most calls, and after them the sum over all.
    let agents = "SELECT * FROM shadow_totals WHERE rollout_uid = ? AND revision = ? AND agent <> '' ORDER BY compared DESC, agent DESC LIMIT ?";
    let all = "SELECT * FROM shadow_totals WHERE rollout_uid = ? AND revision = ? AND agent = '' LIMIT ?";
    for sql in [agents, all] {
        for row in sqlx::query(sql).bind(uid).bind(revision).bind(AGENTS as i64).fetch_all(&mut *tx).await? {
            let sums = SUMS.map(|name| row.try_get::<i64, _>(name));
            let [a, b, c, d, e, f, g, h, i] = sums;
            counted.drift(row.try_get("agent")?, [a?, b?, c?, d?, e?, f?, g?, h?, i?], row.try_get("dropped")?)?;
        }
    }
    let sql = "SELECT decision, rank, cause, sentence, candidate_policies FROM shadows \
               WHERE rollout_uid = ? AND revision = ? ORDER BY rank DESC, time DESC, decision LIMIT ?";
    for row in sqlx::query(sql).bind(uid).bind(revision).bind(WORST).fetch_all(&mut *tx).await? {
        counted.example(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

/// Keeps shadow evaluations; says how many.
pub(super) async fn save(conn: &mut SqliteConnection, batch: ShadowBatch) -> Result<u64, StoreError> {
    let json = |policies: &[String]| {
        serde_json::to_string(policies).map_err(|e| StoreError::Corrupt { what: "policies", why: e.to_string() })
    };
    let differing: Vec<&ShadowRow> = batch.rows.iter().filter(|row| row.severity != Severity::None).collect();
    for chunk in differing.chunks(ROWS) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO shadows (decision, tenant, rollout_uid, revision, time, agent, answered, rank, cause, sentence, \
             stable_policies, candidate_policies) ",
        );
        let policies: Vec<(String, String)> = chunk
            .iter()
            .map(|row| Ok((json(&row.stable_policies)?, json(&row.candidate_policies)?)))
            .collect::<Result<_, StoreError>>()?;
        query.push_values(chunk.iter().zip(policies), |mut b, (row, (stable, candidate))| {
            b.push_bind(row.decision.clone())
                .push_bind(row.tenant.clone())
                .push_bind(row.tenant_uid.clone())
                .push_bind(row.revision)
                .push_bind(row.time.as_microsecond())
                .push_bind(row.agent.clone())
                .push_bind(row.answered.as_str())
                .push_bind(rank(row.severity))
                .push_bind(row.cause.map_or("", |c| c.as_str()))
                .push_bind(row.sentence.clone())
                .push_bind(stable)
                .push_bind(candidate);
        });
        query.push(" ON CONFLICT DO NOTHING").build().persistent(false).execute(&mut *conn).await?;
    }
    for ((tenant, uid, revision, agent), count) in counts(&batch) {
        let sql = "INSERT INTO shadow_counts (tenant, rollout_uid, revision, time, agent, compared, errors, dropped, batch) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
        let insert = sqlx::query(sql).bind(tenant.to_owned()).bind(uid.to_owned()).bind(revision).bind(count.newest);
        let insert = insert.bind(agent.to_owned()).bind(count.compared).bind(count.errors).bind(count.dropped);
        insert.bind(batch.id.clone()).execute(&mut *conn).await?;
    }
    Ok(batch.rows.len() as u64)
}

/// Takes away what is as old as the records that go.
pub(super) async fn retain(conn: &mut SqliteConnection, tenant: &str, before: Timestamp) -> Result<(), StoreError> {
    for sql in
        ["DELETE FROM shadows WHERE tenant = ? AND time < ?", "DELETE FROM shadow_counts WHERE tenant = ? AND time < ?"]
    {
        sqlx::query(sql).bind(tenant.to_owned()).bind(before.as_microsecond()).execute(&mut *conn).await?;
    }
    Ok(())
}
