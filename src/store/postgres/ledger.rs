//! What is in force, high-water marks, signers seen, bytes that ended a parser.

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool, PgRow};

use super::decisions::{clean, cleaned};
use super::history;
use crate::store::values::{time, version};
use crate::store::{Arrival, InForceRow, QUARANTINE_AFTER, StoreError};

pub(super) async fn put_in_force(pool: &PgPool, row: &InForceRow, arrival: &Arrival) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    put_in_force_by(&mut tx, row, arrival).await?;
    Ok(tx.commit().await?)
}

/// The same in a transaction that is open already.
pub(super) async fn put_in_force_by(
    tx: &mut PgConnection,
    row: &InForceRow,
    arrival: &Arrival,
) -> Result<(), StoreError> {
    let new = version("version of the package", &row.version)?;
    // Two leaders for a moment must not both find that nothing is there.
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('remit in force '::text || $1, 0::bigint))")
        .bind(clean(&row.tenant_uid))
        .execute(&mut *tx)
        .await?;
    let sql = "SELECT * FROM in_force WHERE tenant_uid = $1 AND revision = $2";
    let known = sqlx::query(sql).bind(clean(&row.tenant_uid)).bind(row.revision).fetch_optional(&mut *tx).await?;
    if let Some(known) = known {
        let known = in_force_row(&known)?;
        if (&known.package, &known.digest) == (&row.package, &row.digest) {
            return Ok(());
        }
        return Err(StoreError::Invalid {
            field: "revision",
            why: format!(
                "{} of {} is already {} {} {}",
                row.revision, row.tenant, known.package, known.version, known.digest
            ),
        });
    }
    history::put_policies(tx, row, &arrival.policies).await?;
    sqlx::query(
        "INSERT INTO in_force (tenant_uid, revision, tenant, package, version, digest, key_fingerprint, first_verified, at, author, \
         applied_by, rolled_back_by, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
         coalesce((SELECT username FROM applied WHERE tenant = $1 AND digest = $6), $11), $12, $13)",
    )
    .bind(clean(&row.tenant_uid))
    .bind(row.revision)
    .bind(clean(&row.tenant))
    .bind(clean(&row.package))
    .bind(clean(&row.version))
    .bind(clean(&row.digest))
    .bind(cleaned(row.key_fingerprint.as_deref()))
    .bind(row.first_verified.as_microsecond())
    .bind(arrival.at.as_microsecond())
    .bind(cleaned(arrival.author.as_deref()))
    .bind(cleaned(arrival.applied_by.as_deref()))
    .bind(cleaned(arrival.rollback.as_ref().map(|r| r.by.as_str())))
    .bind(cleaned(arrival.rollback.as_ref().map(|r| r.reason.as_str())))
    .execute(&mut *tx)
    .await?;
    let sql = "SELECT version FROM high_water WHERE tenant_uid = $1 AND package = $2";
    let mark: Option<String> =
        sqlx::query_scalar(sql).bind(clean(&row.tenant_uid)).bind(clean(&row.package)).fetch_optional(&mut *tx).await?;
    // Compared as versions: as text, 1.10.0 would be below 1.9.0. A rollback leaves the mark where it is.
    if mark.map(|mark| version("high-water mark", &mark)).transpose()?.is_none_or(|mark| new > mark) {
        sqlx::query(
            "INSERT INTO high_water (tenant_uid, package, version, digest) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant_uid, package) DO UPDATE SET version = excluded.version, digest = excluded.digest",
        )
        .bind(clean(&row.tenant_uid))
        .bind(clean(&row.package))
        .bind(clean(&row.version))
        .bind(clean(&row.digest))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

pub(super) async fn in_force(pool: &PgPool, tenant_uid: &str) -> Result<Vec<InForceRow>, StoreError> {
    let sql = "SELECT * FROM in_force WHERE tenant_uid = $1 ORDER BY revision DESC";
    sqlx::query(sql).bind(clean(tenant_uid)).fetch_all(pool).await?.iter().map(in_force_row).collect()
}

fn in_force_row(row: &PgRow) -> Result<InForceRow, StoreError> {
    Ok(InForceRow {
        tenant_uid: row.try_get("tenant_uid")?,
        tenant: row.try_get("tenant")?,
        package: row.try_get("package")?,
        version: row.try_get("version")?,
        digest: row.try_get("digest")?,
        key_fingerprint: row.try_get("key_fingerprint")?,
        first_verified: time("first verification of a package", row.try_get("first_verified")?)?,
        revision: row.try_get("revision")?,
    })
}

pub(super) async fn high_water(
    pool: &PgPool,
    tenant_uid: &str,
    package: &str,
) -> Result<Option<(String, String)>, StoreError> {
    let sql = "SELECT version, digest FROM high_water WHERE tenant_uid = $1 AND package = $2";
    Ok(sqlx::query_as(sql).bind(clean(tenant_uid)).bind(clean(package)).fetch_optional(pool).await?)
}

pub(super) async fn signer_seen(pool: &PgPool, tenant_uid: &str) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM signer_seen WHERE tenant_uid = $1)";
    Ok(sqlx::query_scalar(sql).bind(clean(tenant_uid)).fetch_one(pool).await?)
}

pub(super) async fn remember_signer(pool: &PgPool, tenant_uid: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO signer_seen (tenant_uid) VALUES ($1) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(clean(tenant_uid)).execute(pool).await?;
    Ok(())
}

pub(super) async fn compromised_keys(pool: &PgPool, tenant_uid: &str) -> Result<BTreeSet<String>, StoreError> {
    let sql = "SELECT fingerprint FROM compromised_keys WHERE tenant_uid = $1";
    let keys: Vec<String> = sqlx::query_scalar(sql).bind(tenant_uid).fetch_all(pool).await?;
    Ok(keys.into_iter().collect())
}

pub(super) async fn remember_compromised(
    pool: &PgPool,
    tenant_uid: &str,
    fingerprints: &[String],
) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO compromised_keys (tenant_uid, fingerprint) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(tenant_uid).bind(fingerprints).execute(pool).await?;
    Ok(())
}

/// Over all processes: bytes that end one replica after the other are quarantined by the second death, whoever died.
pub(super) async fn quarantined(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT digest FROM parsing GROUP BY digest HAVING pg_catalog.sum(deaths) >= $1::numeric ORDER BY digest";
    Ok(sqlx::query_scalar(sql).bind(QUARANTINE_AFTER).fetch_all(pool).await?)
}

pub(super) async fn parse_begins(pool: &PgPool, writer: &str, digest: &str) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO parsing (writer, digest) VALUES ($1, $2) ON CONFLICT (writer, digest) DO UPDATE SET open = true";
    sqlx::query(sql).bind(clean(writer)).bind(clean(digest)).execute(pool).await?;
    Ok(())
}

pub(super) async fn parse_ended(pool: &PgPool, writer: &str, digest: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM parsing WHERE writer = $1 AND digest = $2")
        .bind(clean(writer))
        .bind(clean(digest))
        .execute(pool)
        .await?;
    Ok(())
}
