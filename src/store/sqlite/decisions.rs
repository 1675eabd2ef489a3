//! Finding decisions again, and reading the chain out for verification. Only reads.

use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::ledger::{signed, time, unsigned};
use crate::store::chain::{Columns, Hash, body_hash, hex};
use crate::store::filter::{self, PAGE_BYTES};
use crate::store::{AuditRow, CallReport, DecisionFilter, Page, RolloutColumns, StoreError, StoredDecision};

pub(super) async fn list(
    pool: &SqlitePool,
    tenant: &str,
    filter: &DecisionFilter,
) -> Result<Page<StoredDecision>, StoreError> {
    let limit = filter.page_size()?;
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "SELECT r.seq, r.hash, r.body, r.time, taken.found FROM (SELECT seq, row_number() OVER page AS n, sum(size) OVER page AS total, \
         count(*) OVER () AS found FROM (SELECT time, seq, octet_length(body) AS size FROM records WHERE tenant = ",
    );
    query.push_bind(tenant.to_owned());
    let texts = [
        ("agent", &filter.agent),
        ("session", &filter.session),
        ("action", &filter.action),
        ("outcome", &filter.outcome),
    ];
    for (column, value) in texts {
        if let Some(value) = value {
            query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
        }
    }
    if let Some(uid) = &filter.tenant_uid {
        // No column of its own: it is another one only for what a deleted namespace left.
        query.push(" AND json_extract(body, '$.tenant_uid') = ").push_bind(uid.clone());
    }
    if let Some(outcome) = &filter.would_be {
        // Only an allow is observed, so that the index is of use.
        query.push(" AND outcome = 'allow' AND json_extract(body, '$.would_be.outcome') = ").push_bind(outcome.clone());
    }
    if let Some(name) = &filter.delegator {
        query.push(" AND delegator IN (").push_bind(name.clone());
        query.push(", ").push_bind(format!("user:{name}"));
        query.push(", ").push_bind(format!("agent:{name}")).push(")");
    }
    if let Some(since) = filter.since {
        query.push(" AND time >= ").push_bind(since.as_microsecond());
    }
    if let Some(until) = filter.until {
        query.push(" AND time < ").push_bind(until.as_microsecond());
    }
    if let Some(page) = &filter.page {
        let (time, seq) = read_page(page)?;
        query.push(" AND time <= ").push_bind(time);
        query.push(" AND (time, seq) < (").push_bind(time).push(", ").push_bind(seq).push(")");
    }
    query.push(" ORDER BY time DESC, seq DESC LIMIT ").push_bind(limit + 1);
    query.push(
        ") WINDOW page AS (ORDER BY time DESC, seq DESC)) AS taken CROSS JOIN records AS r ON r.seq = taken.seq WHERE taken.n <= ",
    );
    query
        .push_bind(limit)
        .push(" AND (taken.n = 1 OR taken.total <= ")
        .push_bind(PAGE_BYTES)
        .push(") ORDER BY taken.n");
    let mut rows = query.build().fetch(pool);
    let mut page = Page { items: Vec::new(), next: None };
    while let Some(row) = rows.try_next().await? {
        page.items.push(stored(&row)?);
        let (found, time, seq): (i64, i64, i64) = (row.try_get("found")?, row.try_get("time")?, row.try_get("seq")?);
        let more = u64::try_from(found).is_ok_and(|found| found > page.items.len() as u64);
        page.next = more.then(|| format!("{time}.{seq}"));
    }
    Ok(page)
}

/// Place of the last row of a page: time and seq.
fn read_page(page: &str) -> Result<(i64, i64), StoreError> {
    page.split_once('.')
        .and_then(|(time, seq)| Some((time.parse().ok()?, seq.parse().ok()?)))
        .ok_or_else(filter::bad_page)
}

pub(super) async fn get(pool: &SqlitePool, tenant: &str, id: &str) -> Result<Option<StoredDecision>, StoreError> {
    let row = sqlx::query("SELECT seq, hash, body FROM records WHERE id = ? AND tenant = ? LIMIT 1")
        .bind(id)
        .bind(tenant)
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(StoredDecision { call: call(pool, id).await?, ..stored(&row)? }))
}

/// Reports of calls, as many as asked for.
pub(super) async fn calls(pool: &SqlitePool, limit: u32) -> Result<Vec<(String, CallReport)>, StoreError> {
    let sql = "SELECT outcome, duration_ms, time, decision FROM outcomes LIMIT ?";
    let rows = sqlx::query(sql).bind(i64::from(limit)).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get(3)?, report(row)?))).collect()
}

/// What was reported of a decision's call.
pub(super) async fn call(pool: &SqlitePool, id: &str) -> Result<Option<CallReport>, StoreError> {
    let sql = "SELECT outcome, duration_ms, time FROM outcomes WHERE decision = ?";
    let row = sqlx::query(sql).bind(id).fetch_optional(pool).await?;
    row.as_ref().map(report).transpose()
}

fn report(row: &SqliteRow) -> Result<CallReport, StoreError> {
    let outcome: String = row.try_get(0)?;
    let corrupt = |e: serde_json::Error| StoreError::Corrupt { what: "outcome of a call", why: e.to_string() };
    let duration: Option<i64> = row.try_get(1)?;
    Ok(CallReport {
        outcome: serde_json::from_value(outcome.into()).map_err(corrupt)?,
        duration_ms: duration.map(|ms| unsigned("duration", ms)).transpose()?,
        time: time("time of a report", row.try_get(2)?)?,
    })
}

fn stored(row: &SqliteRow) -> Result<StoredDecision, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let body: &str = row.try_get("body")?;
    let record = serde_json::from_str(body)
        .map_err(|e| StoreError::Corrupt { what: "decision", why: format!("record {seq}: {e}") })?;
    Ok(StoredDecision { seq: unsigned("seq", seq)?, hash: hex(row.try_get("hash")?), record, call: None })
}

pub(super) async fn audit_rows(
    conn: &mut SqliteConnection,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let limit = filter::audit_limit(limit)?;
    let sql = "SELECT r.* FROM (SELECT seq, row_number() OVER page AS n, sum(coalesce(size, 0)) OVER page AS total FROM \
               (SELECT seq, octet_length(body) AS size FROM records WHERE seq > ? ORDER BY seq LIMIT ?) WINDOW page AS (ORDER BY seq)) \
               AS taken CROSS JOIN records AS r ON r.seq = taken.seq WHERE taken.n = 1 OR taken.total <= ? ORDER BY taken.n";
    let rows = sqlx::query(sql).bind(signed("after", after)?).bind(limit).bind(PAGE_BYTES).fetch(conn);
    rows.map(|row| audit_row(&row?)).try_collect().await
}

/// Reads a row as it is: what is wrong with it is for the verification to say.
pub(super) fn audit_row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    let id: Option<String> = row.try_get("id")?;
    let columns = match id {
        Some(id) => Some(Columns {
            id,
            time: row.try_get::<Option<i64>, _>("time")?.unwrap_or_default(),
            tenant: row.try_get::<Option<String>, _>("tenant")?.unwrap_or_default(),
            agent: row.try_get::<Option<String>, _>("agent")?.unwrap_or_default(),
            delegator: row.try_get("delegator")?,
            session: row.try_get("session")?,
            action: row.try_get::<Option<String>, _>("action")?.unwrap_or_default(),
            outcome: row.try_get::<Option<String>, _>("outcome")?.unwrap_or_default(),
            rollout: rollout(row)?,
        }),
        None => None,
    };
    Ok(AuditRow {
        seq: unsigned("seq", row.try_get("seq")?)?,
        hash: hex(row.try_get("hash")?),
        body: row.try_get("body")?,
        columns,
        body_hash: row.try_get::<Option<&[u8]>, _>("body_hash")?.map(hex),
        tombstone: row.try_get::<Option<i64>, _>("tombstone")?.map(|n| unsigned("tombstone", n)).transpose()?,
    })
}

/// None only where none of the columns is there.
fn rollout(row: &SqliteRow) -> Result<Option<RolloutColumns>, StoreError> {
    let (uid, arm): (Option<String>, Option<String>) = (row.try_get("rollout_uid")?, row.try_get("arm")?);
    let (subject, result): (Option<String>, Option<String>) = (row.try_get("subject")?, row.try_get("result")?);
    let (revision, latency): (Option<i64>, Option<i64>) = (row.try_get("revision")?, row.try_get("latency")?);
    if uid.is_none() && arm.is_none() && subject.is_none() && result.is_none() && revision.or(latency).is_none() {
        return Ok(None);
    }
    Ok(Some(RolloutColumns {
        tenant_uid: uid.unwrap_or_default(),
        revision: revision.unwrap_or_default(),
        arm: arm.unwrap_or_default(),
        subject: subject.unwrap_or_default(),
        result: result.unwrap_or_default(),
        latency: latency.unwrap_or_default(),
    }))
}

/// Names of all tenants with records. Steps from name to name through the index: DISTINCT would read all of it.
pub(super) async fn tenants(pool: &SqlitePool) -> Result<Vec<String>, StoreError> {
    let names = sqlx::query_scalar(
        "WITH RECURSIVE names (name) AS (
           SELECT min(tenant) FROM records WHERE tenant IS NOT NULL
           UNION ALL
           SELECT (SELECT min(tenant) FROM records WHERE tenant > names.name) FROM names WHERE names.name IS NOT NULL
         ) SELECT name FROM names WHERE name IS NOT NULL",
    );
    Ok(names.fetch_all(pool).await?)
}

/// The oldest records of a tenant that are older than `before`, with the hashes of their bodies.
pub(super) async fn retirable(
    pool: &SqlitePool,
    tenant: &str,
    before: jiff::Timestamp,
    batch: u32,
) -> Result<Vec<(u64, Hash)>, StoreError> {
    let batch = filter::retain_batch(batch)?;
    let sql = "SELECT seq, body FROM records WHERE tenant = ? AND time < ? ORDER BY time, seq LIMIT ?";
    let rows = sqlx::query(sql).bind(tenant).bind(before.as_microsecond()).bind(batch).fetch(pool);
    rows.map(|row| {
        let row = row?;
        let body: &str = row.try_get(1)?;
        Ok((unsigned("seq", row.try_get(0)?)?, body_hash(body.as_bytes())))
    })
    .try_collect()
    .await
}
