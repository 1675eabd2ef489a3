//! Sessions, as all replicas share them. What has ended stays ended, whoever writes later.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::decisions::clean;
use crate::store::values::time;
use crate::store::{SessionRow, StoreError};

/// Rows of one statement.
const ROWS: usize = 1000;

pub(super) async fn live(pool: &PgPool) -> Result<Vec<SessionRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM sessions WHERE ended IS NULL ORDER BY id").fetch_all(pool).await?;
    rows.iter().map(session_row).collect()
}

pub(super) async fn get(pool: &PgPool, id: &str) -> Result<Option<SessionRow>, StoreError> {
    if id.contains('\0') {
        return Ok(None);
    }
    let row = sqlx::query("SELECT * FROM sessions WHERE id = $1").bind(id).fetch_optional(pool).await?;
    row.as_ref().map(session_row).transpose()
}

pub(super) async fn save(pool: &PgPool, rows: &[SessionRow]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    // In one order everywhere, so that two replicas never wait for each other.
    let mut rows: Vec<&SessionRow> = rows.iter().collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    let mut tx = pool.begin().await?;
    for chunk in rows.chunks(ROWS) {
        let text =
            |of: fn(&SessionRow) -> &str| chunk.iter().map(|s| clean(of(s)).into_owned()).collect::<Vec<String>>();
        let number =
            |of: fn(&SessionRow) -> Timestamp| chunk.iter().map(|s| of(s).as_microsecond()).collect::<Vec<_>>();
        let ended: Vec<_> = chunk.iter().map(|s| s.ended.as_ref().map(|(at, _)| at.as_microsecond())).collect();
        let why: Vec<_> = chunk.iter().map(|s| s.ended.as_ref().map(|(_, why)| clean(why).into_owned())).collect();
        // To whom a session belongs never changes, and what has ended stays ended. What changes nothing is no change.
        sqlx::query(
            "INSERT INTO sessions AS s (id, tenant, tenant_uid, agent, agent_uid, started, last_seen, ended, ended_why) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], \
             $8::bigint[], $9::text[]) \
             ON CONFLICT (id) DO UPDATE SET last_seen = greatest(s.last_seen, excluded.last_seen), \
             ended = coalesce(s.ended, excluded.ended), ended_why = coalesce(s.ended_why, excluded.ended_why) \
             WHERE s.last_seen < excluded.last_seen OR (s.ended IS NULL AND excluded.ended IS NOT NULL)",
        )
        .bind(text(|s| &s.id))
        .bind(text(|s| &s.tenant))
        .bind(text(|s| &s.tenant_uid))
        .bind(text(|s| &s.agent))
        .bind(text(|s| &s.agent_uid))
        .bind(number(|s| s.started))
        .bind(number(|s| s.last_seen))
        .bind(ended)
        .bind(why)
        .execute(&mut *tx)
        .await?;
    }
    Ok(tx.commit().await?)
}

/// Silent is what the row itself says at this instant: a heartbeat that another replica has kept counts.
pub(super) async fn end_silent(
    pool: &PgPool,
    silent: &[(SessionRow, Timestamp)],
    now: Timestamp,
) -> Result<Vec<SessionRow>, StoreError> {
    let mut now_are = Vec::with_capacity(silent.len());
    let mut silent: Vec<_> = silent.iter().collect();
    silent.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    for chunk in silent.chunks(ROWS) {
        let ids: Vec<String> = chunk.iter().map(|(row, _)| clean(&row.id).into_owned()).collect();
        let cutoffs: Vec<i64> = chunk.iter().map(|(_, cutoff)| cutoff.as_microsecond()).collect();
        sqlx::query(
            "UPDATE sessions s SET ended = $3, ended_why = 'expired' FROM unnest($1::text[], $2::bigint[]) AS t (id, cutoff) \
             WHERE s.id = t.id AND s.ended IS NULL AND s.last_seen <= t.cutoff",
        )
        .bind(&ids)
        .bind(cutoffs)
        .bind(now.as_microsecond())
        .execute(pool)
        .await?;
        let rows = sqlx::query("SELECT * FROM sessions WHERE id = ANY ($1)").bind(&ids).fetch_all(pool).await?;
        for row in &rows {
            now_are.push(session_row(row)?);
        }
    }
    Ok(now_are)
}

/// By transaction: everything that was not committed when the last mark was taken is asked for again, however long it took. The
/// hour bounds it where a dump was loaded into another server, whose transactions are counted anew.
pub(super) async fn changed(pool: &PgPool, since: Option<&str>) -> Result<(Vec<SessionRow>, String), StoreError> {
    let mut tx = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
    let mark: String = sqlx::query_scalar("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text")
        .fetch_one(&mut *tx)
        .await?;
    let rows = match since {
        Some(since) => {
            let sql = "SELECT * FROM sessions WHERE changed >= $1::text::xid8 AND changed_at > pg_catalog.now() - interval '1 hour'";
            sqlx::query(sql).bind(since).fetch_all(&mut *tx).await?
        }
        None => sqlx::query("SELECT * FROM sessions WHERE ended IS NULL").fetch_all(&mut *tx).await?,
    };
    tx.commit().await?;
    Ok((rows.iter().map(session_row).collect::<Result<_, _>>()?, mark))
}

fn session_row(row: &PgRow) -> Result<SessionRow, StoreError> {
    let ended: Option<i64> = row.try_get("ended")?;
    let why: Option<String> = row.try_get("ended_why")?;
    Ok(SessionRow {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        tenant_uid: row.try_get("tenant_uid")?,
        agent: row.try_get("agent")?,
        agent_uid: row.try_get("agent_uid")?,
        started: time("start of a session", row.try_get("started")?)?,
        last_seen: time("last sign of life of a session", row.try_get("last_seen")?)?,
        ended: match (ended, why) {
            (Some(at), Some(why)) => Some((time("end of a session", at)?, why)),
            _ => None,
        },
    })
}
