//! What the arms of a rollout did. Reads go to the readers' pool, in one transaction; writes are jobs of the one writer.

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::Window;
use crate::store::arms::{Arms, Counted, ShadowRow, WORST, compared, rank};
use crate::store::{StoreError, StoreFuture};

use super::SqliteStore;
use super::ledger::Write;

/// Rows of one INSERT.
const ROWS: usize = 64;
/// Which records are counted: exactly this namespace UID and revision.
const COUNTED: &str = "FROM records WHERE rollout_uid = ? AND revision = ? AND time >= ?";

impl Arms for SqliteStore {
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        drift_since: Timestamp,
    ) -> StoreFuture<'a, Window> {
        Box::pin(window(&self.readers, tenant_uid, revision, rates_since, drift_since))
    }

    fn save_shadows<'a>(&'a self, rows: &'a [ShadowRow]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if !rows.is_empty() {
                self.write(Write::Shadows(rows.to_vec())).await?;
            }
            Ok(())
        })
    }
}

async fn window(
    pool: &SqlitePool,
    uid: &str,
    revision: i64,
    rates_since: Timestamp,
    drift_since: Timestamp,
) -> Result<Window, StoreError> {
    let (rates, drift) = (rates_since.as_microsecond(), drift_since.as_microsecond());
    let mut tx = pool.begin().await?;
    let mut counted = Counted::default();
    let sql = format!(
        "SELECT arm, subject, count(*), sum(result IN ('deny', 'error')), sum(result = 'error'), max(time) {COUNTED} \
         GROUP BY arm, subject ORDER BY arm, subject"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(uid).bind(revision).bind(rates).fetch_all(&mut *tx).await?;
    for row in rows {
        let counts = [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
        counted.decisions(row.try_get(0)?, row.try_get(1)?, counts, row.try_get(5)?)?;
    }
    for (arm, subject) in counted.erring() {
        let sql =
            format!("SELECT id {COUNTED} AND arm = ? AND subject = ? AND result = 'error' ORDER BY time DESC LIMIT 1");
        let example = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(uid).bind(revision).bind(rates);
        let example = example.bind(arm.as_str()).bind(subject.clone()).fetch_optional(&mut *tx).await?;
        counted.error(arm, &subject, example);
    }
    let sql = "SELECT agent, sum(compared) FROM shadow_counts WHERE rollout_uid = ? AND revision = ? AND time >= ? GROUP BY agent";
    for row in sqlx::query(sql).bind(uid).bind(revision).bind(drift).fetch_all(&mut *tx).await? {
        counted.compared(row.try_get(0)?, row.try_get(1)?)?;
    }
    let sql = "SELECT agent, rank, cause, count(*) FROM shadows WHERE rollout_uid = ? AND revision = ? AND time >= ? \
               GROUP BY agent, rank, cause";
    for row in sqlx::query(sql).bind(uid).bind(revision).bind(drift).fetch_all(&mut *tx).await? {
        counted.drift(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)?;
    }
    let sql = "SELECT decision, rank, cause, sentence, candidate_policies FROM shadows \
               WHERE rollout_uid = ? AND revision = ? AND time >= ? ORDER BY rank DESC, time DESC, decision LIMIT ?";
    let worst = sqlx::query(sql).bind(uid).bind(revision).bind(drift).bind(WORST);
    for row in worst.fetch_all(&mut *tx).await? {
        counted.example(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)?;
    }
    tx.rollback().await?;
    Ok(counted.window())
}

/// Keeps shadow evaluations; says how many.
pub(super) async fn save(conn: &mut SqliteConnection, rows: Vec<ShadowRow>) -> Result<u64, StoreError> {
    let json = |policies: &[String]| {
        serde_json::to_string(policies).map_err(|e| StoreError::Corrupt { what: "policies", why: e.to_string() })
    };
    let differing: Vec<&ShadowRow> = rows.iter().filter(|row| row.severity != Severity::None).collect();
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
    for ((tenant, uid, revision, agent), (calls, newest)) in compared(&rows) {
        let sql = "INSERT INTO shadow_counts (tenant, rollout_uid, revision, time, agent, compared) VALUES (?, ?, ?, ?, ?, ?)";
        let insert = sqlx::query(sql).bind(tenant.to_owned()).bind(uid.to_owned()).bind(revision).bind(newest);
        insert.bind(agent.to_owned()).bind(calls).execute(&mut *conn).await?;
    }
    Ok(rows.len() as u64)
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
