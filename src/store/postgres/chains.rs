//! The chains of all writers: reading them out for verification, and retention with its signed tombstones.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Deserialize;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::decisions::fits;
use crate::api::Envelope;
use crate::store::chain::{Columns, Hash, hex};
use crate::store::filter::PAGE_BYTES;
use crate::store::values::{envelope, json, signed, unsigned};
use crate::store::{AuditRow, RolloutColumns, StoreError, Tombstone, filter, statement};

/// Attempts at a tombstone that another replica's got ahead of.
const TRIES: u32 = 3;

/// The columns that SQLite has not, from a record's bytes.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct More {
    /// UID of the namespace.
    #[serde(default)]
    pub tenant_uid: String,
    /// What it would be if it were enforced.
    #[serde(default)]
    would_be: Option<WouldBe>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct WouldBe {
    #[serde(default)]
    outcome: String,
}

impl More {
    pub fn derive(body: &str) -> Self {
        serde_json::from_str(body).unwrap_or_default()
    }

    pub fn would_be(&self) -> Option<&str> {
        self.would_be.as_ref().map(|w| w.outcome.as_str())
    }
}

/// A record's columns as PostgreSQL holds them.
pub(super) fn fitting(c: &Columns) -> Columns {
    let option = |text: &Option<String>| text.as_deref().map(|t| fits(t).into_owned());
    Columns {
        id: fits(&c.id).into_owned(),
        time: c.time,
        tenant: fits(&c.tenant).into_owned(),
        agent: fits(&c.agent).into_owned(),
        delegator: option(&c.delegator),
        session: option(&c.session),
        action: fits(&c.action).into_owned(),
        outcome: fits(&c.outcome).into_owned(),
        rollout: c.rollout.as_ref().map(|r| RolloutColumns {
            tenant_uid: fits(&r.tenant_uid).into_owned(),
            revision: r.revision,
            arm: fits(&r.arm).into_owned(),
            subject: fits(&r.subject).into_owned(),
            result: r.result.clone(),
            latency: r.latency,
        }),
    }
}

/// Everybody with a chain: the manifest, and who is in none but has rows.
pub(super) async fn writers(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    let sql = "WITH RECURSIVE names (name) AS (
                 (SELECT writer FROM records ORDER BY writer LIMIT 1)
                 UNION ALL
                 SELECT (SELECT r.writer FROM records r WHERE r.writer > names.name ORDER BY r.writer LIMIT 1)
                 FROM names WHERE names.name IS NOT NULL
               ) SELECT name FROM names WHERE name IS NOT NULL UNION SELECT id FROM writers ORDER BY 1";
    Ok(sqlx::query_scalar(sql).fetch_all(pool).await?)
}

pub(super) async fn rows(pool: &PgPool, writer: &str, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
    let limit = filter::audit_limit(limit)?;
    let sql = "SELECT r.* FROM (SELECT seq, row_number() OVER page AS n, sum(coalesce(size, 0)) OVER page AS total FROM \
               (SELECT seq, octet_length(body) AS size FROM records WHERE writer = $1 AND seq > $2 ORDER BY seq LIMIT $3) AS found \
               WINDOW page AS (ORDER BY seq)) AS taken \
               JOIN records AS r ON r.writer = $1 AND r.seq = taken.seq WHERE taken.n = 1 OR taken.total <= $4 ORDER BY taken.n";
    let query = sqlx::query(sql).bind(fits(writer)).bind(signed("after", after)?).bind(limit).bind(PAGE_BYTES);
    query.fetch(pool).map(|row| audit_row(&row?)).try_collect().await
}

/// Reads a row as it is: what is wrong with it is for the verification to say.
fn audit_row(row: &PgRow) -> Result<AuditRow, StoreError> {
    let id: Option<String> = row.try_get("id")?;
    let text = |name| row.try_get::<Option<String>, _>(name);
    let body = text("body")?;
    let mut columns = match id {
        Some(id) => Some(Columns {
            id,
            time: row.try_get::<Option<i64>, _>("time")?.unwrap_or_default(),
            tenant: text("tenant")?.unwrap_or_default(),
            agent: text("agent")?.unwrap_or_default(),
            delegator: text("delegator")?,
            session: text("session")?,
            action: text("action")?.unwrap_or_default(),
            outcome: text("outcome")?.unwrap_or_default(),
            rollout: rollout(row)?,
        }),
        None => None,
    };
    if let (Some(body), Some(stored)) = (&body, &columns) {
        let more = More::derive(body);
        let found = (text("tenant_uid")?.unwrap_or_default(), text("would_be")?);
        let hidden = fits(&more.tenant_uid) != found.0 || more.would_be().map(fits).as_deref() != found.1.as_deref();
        match Columns::derive(body.as_bytes()) {
            // The columns that only this database has would hide it from a listing as well.
            _ if hidden => columns = None,
            Ok(derived) if fitting(&derived) == *stored => columns = Some(derived),
            _ => {}
        }
    }
    Ok(AuditRow {
        seq: unsigned("seq", row.try_get("seq")?)?,
        hash: hex(row.try_get("hash")?),
        body,
        columns,
        body_hash: row.try_get::<Option<&[u8]>, _>("body_hash")?.map(hex),
        tombstone: row.try_get::<Option<i64>, _>("tombstone")?.map(|n| unsigned("tombstone", n)).transpose()?,
    })
}

/// None only where none of the columns is there.
fn rollout(row: &PgRow) -> Result<Option<RolloutColumns>, StoreError> {
    let text = |name| row.try_get::<Option<String>, _>(name);
    let (arm, subject, result) = (text("arm")?, text("subject")?, text("result")?);
    let (revision, latency): (Option<i64>, Option<i64>) = (row.try_get("revision")?, row.try_get("latency")?);
    if arm.is_none() && subject.is_none() && result.is_none() && revision.or(latency).is_none() {
        return Ok(None);
    }
    Ok(Some(RolloutColumns {
        tenant_uid: text("tenant_uid")?.unwrap_or_default(),
        revision: revision.unwrap_or_default(),
        arm: arm.unwrap_or_default(),
        subject: subject.unwrap_or_default(),
        result: result.unwrap_or_default(),
        latency: latency.unwrap_or_default(),
    }))
}

pub(super) async fn anchors(pool: &PgPool, writer: &str) -> Result<Vec<Envelope>, StoreError> {
    let sql = "SELECT envelope FROM anchors WHERE writer = $1 ORDER BY number";
    let texts: Vec<String> = sqlx::query_scalar(sql).bind(fits(writer)).fetch_all(pool).await?;
    texts.iter().map(|text| envelope("anchor", text)).collect()
}

pub(super) async fn tombstones(pool: &PgPool, writer: &str) -> Result<Vec<Envelope>, StoreError> {
    let sql = "SELECT envelope FROM tombstones WHERE writer = $1 ORDER BY number";
    let texts: Vec<String> = sqlx::query_scalar(sql).bind(fits(writer)).fetch_all(pool).await?;
    texts.iter().map(|text| envelope("tombstone", text)).collect()
}

/// Takes the content of a tenant's oldest records away, of each writer under a tombstone of its chain.
pub(super) async fn retain(
    pool: &PgPool,
    key: Option<&SigningKey>,
    tenant: &str,
    before: Timestamp,
    batch: u32,
) -> Result<u64, StoreError> {
    let batch = filter::retain_batch(batch)?;
    let sql = "SELECT writer, seq, pg_catalog.sha256(pg_catalog.convert_to(body, 'UTF8'::name)) FROM records WHERE tenant = $1 AND time < $2 \
               ORDER BY time, writer, seq LIMIT $3";
    let found = sqlx::query(sql).bind(fits(tenant)).bind(before.as_microsecond()).bind(batch).fetch_all(pool).await?;
    let mut chains: BTreeMap<String, Vec<(u64, Hash)>> = BTreeMap::new();
    for row in &found {
        let hash = Hash::try_from(row.try_get::<&[u8], _>(2)?)
            .map_err(|e| StoreError::Corrupt { what: "hash of a body", why: e.to_string() })?;
        chains.entry(row.try_get(0)?).or_default().push((unsigned("seq", row.try_get(1)?)?, hash));
    }
    if chains.is_empty() {
        return Ok(0);
    }
    let Some(key) = key else { return Err(StoreError::Closed("retention needs the installation's key".into())) };
    let mut done = 0;
    for (writer, mut rows) in chains {
        rows.sort_unstable();
        let mut tries = 0;
        loop {
            tries += 1;
            match bury(pool, key, tenant, before, &writer, &rows).await {
                Ok(taken) => break done += taken,
                // Another replica was first; it may have taken the same rows.
                Err(StoreError::Database(sqlx::Error::Database(e))) if e.code().as_deref() == Some("40001") => {
                    if tries == TRIES {
                        return Err(StoreError::Closed(format!("another replica's retention was faster: {e}")));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    let sql = "SELECT remit_forget_shadows($1, $2)";
    sqlx::query(sql).bind(fits(tenant)).bind(before.as_microsecond()).execute(pool).await?;
    Ok(done)
}

/// One tombstone. The function in the database computes the hashes again and changes nothing unless all of them agree.
async fn bury(
    pool: &PgPool,
    key: &SigningKey,
    tenant: &str,
    before: Timestamp,
    writer: &str,
    rows: &[(u64, Hash)],
) -> Result<u64, StoreError> {
    let next: i64 = sqlx::query_scalar(
        "SELECT coalesce(pg_catalog.max(number), 0::bigint) + 1::bigint FROM tombstones WHERE writer = $1",
    )
    .bind(writer)
    .fetch_one(pool)
    .await?;
    let number = unsigned("number of the tombstone", next)?;
    let tombstone = Tombstone::of_retention(writer, number, tenant.to_owned(), before, Timestamp::now(), rows);
    let signed_one =
        statement::sign(&tombstone, key).map_err(|e| StoreError::Corrupt { what: "tombstone", why: e.to_string() })?;
    let seqs = rows.iter().map(|(seq, _)| signed("seq", *seq)).collect::<Result<Vec<i64>, _>>()?;
    let hashes: Vec<Vec<u8>> = rows.iter().map(|(_, hash)| hash.to_vec()).collect();
    let done: i64 = sqlx::query_scalar("SELECT remit_retain($1, $2, $3, $4, $5, $6, $7)")
        .bind(writer)
        .bind(next)
        .bind(fits(tenant))
        .bind(before.as_microsecond())
        .bind(seqs)
        .bind(hashes)
        .bind(json("tombstone", &signed_one)?)
        .fetch_one(pool)
        .await?;
    sqlx::query("SELECT remit_thin_anchors($1)").bind(writer).execute(pool).await?;
    unsigned("count of rows", done)
}
