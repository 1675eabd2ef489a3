//! What a journal's shipping asks of PostgreSQL: where it stands, and rows after that, in one transaction.
//!
//! The mark is the last row that is there, read under a lock of this writer's: what was sent and not acknowledged is there or it is
//! not, and is never sent twice. A second row of the same number is refused by the primary key.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::chains::{More, fitting};
use super::decisions::fits;
use crate::store::chain::Hash;
use crate::store::values::{signed, unsigned};
use crate::store::{CallReport, Columns, Numbered, Outgoing, RolloutColumns, StoreError};

/// The last row of this writer, under a lock that lives as long as the transaction.
pub(in crate::store) async fn mark(conn: &mut PgConnection, writer: &str) -> Result<Option<(u64, Hash)>, StoreError> {
    // A statement of its own: what follows must see what the holder of the lock before has committed.
    sqlx::query(
        "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('remit chain '::text || $1, 0::bigint))",
    )
    .bind(writer)
    .execute(&mut *conn)
    .await?;
    let sql = "SELECT seq, hash FROM records WHERE writer = $1 ORDER BY seq DESC LIMIT 1";
    let Some(row) = sqlx::query(sql).bind(writer).fetch_optional(conn).await? else { return Ok(None) };
    let hash = Hash::try_from(row.try_get::<&[u8], _>(1)?)
        .map_err(|e| StoreError::Corrupt { what: "hash of the last record", why: e.to_string() })?;
    Ok(Some((unsigned("seq", row.try_get(0)?)?, hash)))
}

/// Enters the writer into the manifest; true where it was new.
pub(in crate::store) async fn enter(conn: &mut PgConnection, writer: &str) -> Result<bool, StoreError> {
    let sql = "INSERT INTO writers (id, created) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let done = sqlx::query(sql).bind(writer).bind(Timestamp::now().as_microsecond()).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

/// Adds rows of a chain. No `ON CONFLICT`: a row that is there already means that two send.
pub(in crate::store) async fn add(conn: &mut PgConnection, writer: &str, rows: &[Outgoing]) -> Result<(), StoreError> {
    let more: Vec<More> = rows.iter().map(|r| r.row.body.as_deref().map(More::derive).unwrap_or_default()).collect();
    let columns: Vec<_> = rows.iter().map(|r| r.row.columns.as_ref().map(fitting)).collect();
    let text = |of: fn(&Columns) -> Option<&str>| -> Vec<Option<String>> {
        columns.iter().map(|c| c.as_ref().and_then(of).map(str::to_owned)).collect()
    };
    let whole = |i: usize, value: Option<&str>| {
        columns.get(i).is_some_and(Option::is_some).then(|| value.map(|v| fits(v).into_owned())).flatten()
    };
    let seqs = rows.iter().map(|r| signed("seq", r.row.seq)).collect::<Result<Vec<_>, _>>()?;
    let tombstones = rows
        .iter()
        .map(|r| r.row.tombstone.map(|n| signed("tombstone", n)).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    sqlx::query(
        "INSERT INTO records (writer, seq, id, time, tenant, tenant_uid, agent, delegator, session, action, outcome, would_be, \
         hash, body_hash, tombstone, body, revision, arm, subject, result, latency) \
         SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], \
         $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bytea[], $15::bigint[], $16::text[], \
         $17::bigint[], $18::text[], $19::text[], $20::text[], $21::bigint[])",
    )
    .bind(writer)
    .bind(seqs)
    .bind(text(|c| Some(&c.id)))
    .bind(columns.iter().map(|c| c.as_ref().map(|c| c.time)).collect::<Vec<_>>())
    .bind(text(|c| Some(&c.tenant)))
    .bind(more.iter().enumerate().map(|(i, m)| whole(i, Some(&m.tenant_uid))).collect::<Vec<_>>())
    .bind(text(|c| Some(&c.agent)))
    .bind(text(|c| c.delegator.as_deref()))
    .bind(text(|c| c.session.as_deref()))
    .bind(text(|c| Some(&c.action)))
    .bind(text(|c| Some(&c.outcome)))
    .bind(more.iter().enumerate().map(|(i, m)| whole(i, m.would_be())).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.hash.to_vec()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.row.body.is_none().then(|| r.body_hash.to_vec())).collect::<Vec<_>>())
    .bind(tombstones)
    .bind(rows.iter().map(|r| r.row.body.clone()).collect::<Vec<_>>())
    .bind(columns.iter().map(|c| rollout(c).map(|r| r.revision)).collect::<Vec<_>>())
    .bind(columns.iter().map(|c| rollout(c).map(|r| r.arm.clone())).collect::<Vec<_>>())
    .bind(columns.iter().map(|c| rollout(c).map(|r| r.subject.clone())).collect::<Vec<_>>())
    .bind(columns.iter().map(|c| rollout(c).map(|r| r.result.clone())).collect::<Vec<_>>())
    .bind(columns.iter().map(|c| rollout(c).map(|r| r.latency)).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

fn rollout(columns: &Option<Columns>) -> Option<&RolloutColumns> {
    columns.as_ref()?.rollout.as_ref()
}

/// Keeps reports of calls; of two about one call the one that came first.
pub(in crate::store) async fn add_reports(
    conn: &mut PgConnection,
    reports: &[(String, CallReport)],
) -> Result<(), StoreError> {
    let durations = reports.iter().map(|(_, r)| r.duration_ms.map(|ms| signed("duration", ms)).transpose());
    sqlx::query(
        "INSERT INTO outcomes (decision, outcome, duration_ms, time) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) ON CONFLICT DO NOTHING",
    )
    .bind(reports.iter().map(|(id, _)| fits(id).into_owned()).collect::<Vec<_>>())
    .bind(reports.iter().map(|(_, r)| r.outcome.as_str().to_owned()).collect::<Vec<_>>())
    .bind(durations.collect::<Result<Vec<_>, _>>()?)
    .bind(reports.iter().map(|(_, r)| r.time.as_microsecond()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// Number of the writer's last anchor.
pub(in crate::store) async fn last_anchor(conn: &mut PgConnection, writer: &str) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(pg_catalog.max(number), 0::bigint) FROM anchors WHERE writer = $1";
    Ok(sqlx::query_scalar(sql).bind(writer).fetch_one(conn).await?)
}

/// Adds anchors.
pub(in crate::store) async fn add_anchors(
    conn: &mut PgConnection,
    writer: &str,
    anchors: &[Numbered],
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO anchors (writer, number, seq, envelope) SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::text[])",
    )
    .bind(writer)
    .bind(anchors.iter().map(|(number, ..)| *number).collect::<Vec<_>>())
    .bind(anchors.iter().map(|(_, seq, _)| *seq).collect::<Vec<_>>())
    .bind(anchors.iter().map(|(.., envelope)| envelope.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds tombstones of the time before shipping, where they are missing; false where another one has a number.
pub(in crate::store) async fn add_tombstones(
    conn: &mut PgConnection,
    writer: &str,
    tombstones: &[Numbered],
) -> Result<bool, StoreError> {
    for (number, rows, envelope) in tombstones {
        let sql =
            "INSERT INTO tombstones (writer, number, rows, envelope) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        sqlx::query(sql).bind(writer).bind(number).bind(rows).bind(envelope).execute(&mut *conn).await?;
        let sql = "SELECT envelope = $3 FROM tombstones WHERE writer = $1 AND number = $2";
        let same: bool = sqlx::query_scalar(sql).bind(writer).bind(number).bind(envelope).fetch_one(&mut *conn).await?;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says which bytes ended a parser of this writer's process, and takes back what it no longer says.
pub(in crate::store) async fn say_deaths(
    conn: &mut PgConnection,
    writer: &str,
    deaths: &[(String, i64)],
) -> Result<(), StoreError> {
    let digests: Vec<String> = deaths.iter().map(|(digest, _)| digest.clone()).collect();
    sqlx::query("DELETE FROM parsing WHERE writer = $1 AND NOT digest = ANY ($2)")
        .bind(writer)
        .bind(&digests)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO parsing (writer, digest, deaths, open) SELECT $1, d, n, false FROM unnest($2::text[], $3::bigint[]) AS t (d, n) \
         ON CONFLICT (writer, digest) DO UPDATE SET deaths = excluded.deaths WHERE parsing.deaths <> excluded.deaths",
    )
    .bind(writer)
    .bind(digests)
    .bind(deaths.iter().map(|(_, n)| *n).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}
