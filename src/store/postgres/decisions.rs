//! Finding decisions of all writers again, newest first, and what became of their calls.

use std::borrow::Cow;

use futures::TryStreamExt as _;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{Postgres, QueryBuilder, Row};

use crate::store::chain::hex;
use crate::store::filter::PAGE_BYTES;
use crate::store::values::{signed, time, unsigned};
use crate::store::{CallReport, DecisionFilter, Page, StoreError, StoredDecision, filter};

/// Most bytes of a column: an index can't hold more.
const LONGEST: usize = 512;

/// A column's text as PostgreSQL can hold and index it: without NUL, and not longer than an index entry may be. What is compared with
/// a column goes the same way.
pub(super) fn fits(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST && !text.contains('\0') {
        return text.into();
    }
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or_default().replace('\0', "\u{2400}").into()
}

/// A text as PostgreSQL can hold it: without NUL. What refuses such a text stands before; one that has slipped in must not hold up what
/// is to be kept with it.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{2400}").into() } else { text.into() }
}

/// The same of a text that may be missing.
pub(super) fn cleaned(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.map(clean)
}

pub(super) async fn list(
    pool: &PgPool,
    tenant: &str,
    filter: &DecisionFilter,
) -> Result<Page<StoredDecision>, StoreError> {
    let limit = filter.page_size()?;
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new(
        "SELECT r.writer, r.seq, r.hash, r.body, r.time, taken.found FROM (SELECT writer, seq, row_number() OVER page AS n, \
         sum(size) OVER page AS total, count(*) OVER () AS found FROM (SELECT time, writer, seq, octet_length(body) AS size \
         FROM records WHERE tenant = ",
    );
    query.push_bind(fits(tenant).into_owned());
    let texts = [
        ("agent", &filter.agent),
        ("session", &filter.session),
        ("action", &filter.action),
        ("outcome", &filter.outcome),
        ("tenant_uid", &filter.tenant_uid),
        ("would_be", &filter.would_be),
    ];
    for (column, value) in texts {
        if let Some(value) = value {
            query.push(" AND ").push(column).push(" = ").push_bind(fits(value).into_owned());
        }
    }
    if let Some(name) = &filter.delegator {
        let names = [name.clone(), format!("user:{name}"), format!("agent:{name}")].map(|n| fits(&n).into_owned());
        query.push(" AND delegator = ANY (").push_bind(names.to_vec()).push(")");
    }
    if let Some(since) = filter.since {
        query.push(" AND time >= ").push_bind(since.as_microsecond());
    }
    if let Some(until) = filter.until {
        query.push(" AND time < ").push_bind(until.as_microsecond());
    }
    if let Some(page) = &filter.page {
        let (time, seq, writer) = read_page(page)?;
        query.push(" AND time <= ").push_bind(time);
        query.push(" AND (time, writer, seq) < (").push_bind(time).push(", ").push_bind(writer);
        query.push(", ").push_bind(seq).push(")");
    }
    query.push(" ORDER BY time DESC, writer DESC, seq DESC LIMIT ");
    query.push_bind(limit + 1);
    query.push(
        ") AS found WINDOW page AS (ORDER BY time DESC, writer DESC, seq DESC)) AS taken \
         JOIN records AS r ON r.writer = taken.writer AND r.seq = taken.seq WHERE taken.n <= ",
    );
    query
        .push_bind(limit)
        .push(" AND (taken.n = 1 OR taken.total <= ")
        .push_bind(PAGE_BYTES)
        .push(") ORDER BY taken.n");
    let mut rows = query.build().persistent(false).fetch(pool);
    let mut page = Page { items: Vec::new(), next: None };
    while let Some(row) = rows.try_next().await? {
        page.items.push(stored(&row)?);
        let (found, time, seq): (i64, i64, i64) = (row.try_get("found")?, row.try_get("time")?, row.try_get("seq")?);
        let more = u64::try_from(found).is_ok_and(|found| found > page.items.len() as u64);
        page.next = match more {
            true => Some(format!("{time}.{seq}.{}", row.try_get::<&str, _>("writer")?)),
            false => None,
        };
    }
    Ok(page)
}

/// Place of the last row of a page: time, seq and writer.
fn read_page(page: &str) -> Result<(i64, i64, String), StoreError> {
    let mut parts = page.splitn(3, '.');
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
    let place = (number(parts.next()), number(parts.next()), parts.next());
    match place {
        (Some(time), Some(seq), Some(writer)) if writer.len() <= 64 && !writer.contains('\0') => {
            Ok((time, seq, writer.to_owned()))
        }
        _ => Err(filter::bad_page()),
    }
}

pub(super) async fn get(pool: &PgPool, tenant: &str, id: &str) -> Result<Option<StoredDecision>, StoreError> {
    let row = sqlx::query("SELECT seq, hash, body FROM records WHERE id = $1 AND tenant = $2 LIMIT 1")
        .bind(fits(id))
        .bind(fits(tenant))
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(StoredDecision { call: call(pool, id).await?, ..stored(&row)? }))
}

fn stored(row: &PgRow) -> Result<StoredDecision, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let body: &str = row.try_get("body")?;
    let record = serde_json::from_str(body)
        .map_err(|e| StoreError::Corrupt { what: "decision", why: format!("record {seq}: {e}") })?;
    Ok(StoredDecision { seq: unsigned("seq", seq)?, hash: hex(row.try_get("hash")?), record, call: None })
}

/// What was reported of a decision's call.
pub(super) async fn call(pool: &PgPool, id: &str) -> Result<Option<CallReport>, StoreError> {
    let sql = "SELECT outcome, duration_ms, time FROM outcomes WHERE decision = $1";
    let Some(row) = sqlx::query(sql).bind(fits(id)).fetch_optional(pool).await? else { return Ok(None) };
    let outcome: String = row.try_get(0)?;
    let corrupt = |e: serde_json::Error| StoreError::Corrupt { what: "outcome of a call", why: e.to_string() };
    let duration: Option<i64> = row.try_get(1)?;
    Ok(Some(CallReport {
        outcome: serde_json::from_value(outcome.into()).map_err(corrupt)?,
        duration_ms: duration.map(|ms| unsigned("duration", ms)).transpose()?,
        time: time("time of a report", row.try_get(2)?)?,
    }))
}

pub(super) async fn report(pool: &PgPool, decision: &str, report: &CallReport) -> Result<bool, StoreError> {
    let sql =
        "INSERT INTO outcomes (decision, outcome, duration_ms, time) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let duration = report.duration_ms.map(|ms| signed("duration", ms)).transpose()?;
    let insert = sqlx::query(sql).bind(fits(decision)).bind(report.outcome.as_str()).bind(duration);
    insert.bind(report.time.as_microsecond()).execute(pool).await?;
    let kept = call(pool, decision).await?;
    Ok(kept.is_some_and(|k| (k.outcome, k.duration_ms) == (report.outcome, report.duration_ms)))
}

/// Names of all tenants with records. Steps from name to name through the index: DISTINCT would read all of it.
pub(super) async fn tenants(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    let names = sqlx::query_scalar(
        "WITH RECURSIVE names (name) AS (
           (SELECT tenant FROM records WHERE tenant IS NOT NULL ORDER BY tenant LIMIT 1)
           UNION ALL
           SELECT (SELECT r.tenant FROM records r WHERE r.tenant > names.name ORDER BY r.tenant LIMIT 1)
           FROM names WHERE names.name IS NOT NULL
         ) SELECT name FROM names WHERE name IS NOT NULL",
    );
    Ok(names.fetch_all(pool).await?)
}
