//! The history of policies in SQLite: its rows are the triggers' (see the migration); here is what they start from, and reading.

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::SqliteStore;
use super::ledger::{Write, signed, time, unsigned};
use crate::policy::PolicyText;
use crate::store::{Change, History, InForceRow, MAX_VERSIONS, PolicyVersion, StoreError, StoreFuture};

/// Notes of who applied what that are kept for a namespace: each is of use only until its package comes into force.
const APPLIED_KEPT: i64 = 1000;
/// Rows of one INSERT.
const ROWS: usize = 200;

pub(super) async fn note_applied(
    conn: &mut SqliteConnection,
    tenant_uid: &str,
    digest: &str,
    username: &str,
    at: Timestamp,
) -> Result<u64, StoreError> {
    // The column has its name from when it held the namespace's.
    let sql = "INSERT INTO applied (tenant, digest, username, time) VALUES (?, ?, ?, ?) \
               ON CONFLICT (tenant, digest) DO UPDATE SET username = excluded.username, time = excluded.time";
    let insert = sqlx::query(sql).bind(tenant_uid).bind(digest).bind(username).bind(at.as_microsecond());
    insert.execute(&mut *conn).await?;
    let sql = "DELETE FROM applied WHERE tenant = ?1 AND digest IN \
               (SELECT digest FROM applied WHERE tenant = ?1 ORDER BY time DESC, digest LIMIT -1 OFFSET ?2)";
    sqlx::query(sql).bind(tenant_uid).bind(APPLIED_KEPT).execute(conn).await?;
    Ok(1)
}

/// What the trigger compares: the policies of the package, before its row of `in_force`.
pub(super) async fn put_policies(
    conn: &mut SqliteConnection,
    row: &InForceRow,
    policies: &[PolicyText],
) -> Result<(), StoreError> {
    for chunk in policies.chunks(ROWS) {
        let mut texts: QueryBuilder<Sqlite> = QueryBuilder::new("INSERT INTO policy_texts (tenant_uid, sha256, text) ");
        texts.push_values(chunk, |mut b, p| {
            b.push_bind(&row.tenant_uid).push_bind(&p.sha256).push_bind(&p.text);
        });
        texts.push(" ON CONFLICT DO NOTHING").build().persistent(false).execute(&mut *conn).await?;
        let mut names: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO package_policies (tenant_uid, digest, policy, sha256) ");
        names.push_values(chunk, |mut b, p| {
            b.push_bind(&row.tenant_uid).push_bind(&row.digest).push_bind(&p.id).push_bind(&p.sha256);
        });
        names.push(" ON CONFLICT DO NOTHING").build().persistent(false).execute(&mut *conn).await?;
    }
    Ok(())
}

fn version_row(row: &SqliteRow) -> Result<PolicyVersion, StoreError> {
    let sha256: Option<String> = row.try_get("sha256")?;
    let change: String = row.try_get("change")?;
    Ok(PolicyVersion {
        package: row.try_get("package")?,
        policy: row.try_get("policy")?,
        version: unsigned("version of a policy", row.try_get("version")?)?,
        time: time("time of a policy's version", row.try_get("time")?)?,
        change: change.parse::<Change>()?,
        deleted: sha256.is_none(),
        sha256,
        text: row.try_get("text")?,
        revision: row.try_get("revision")?,
        package_version: row.try_get("package_version")?,
        after: row.try_get("digest")?,
        before: row.try_get("former")?,
        key_fingerprint: row.try_get("key_fingerprint")?,
        author: row.try_get("author")?,
        applied_by: row.try_get("applied_by")?,
        rolled_back_by: row.try_get("rolled_back_by")?,
        reason: row.try_get("reason")?,
    })
}

async fn policies(
    pool: &SqlitePool,
    tenant_uid: &str,
    package: Option<&str>,
) -> Result<Vec<PolicyVersion>, StoreError> {
    let sql = "SELECT *, NULL AS text FROM policy_heads WHERE tenant_uid = ?1 AND package = coalesce(?2, package) \
               ORDER BY package, policy";
    let rows = sqlx::query(sql).bind(tenant_uid).bind(package).fetch_all(pool).await?;
    rows.iter().map(version_row).collect()
}

async fn versions(
    pool: &SqlitePool,
    (tenant_uid, package, policy): (&str, &str, &str),
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<PolicyVersion>, StoreError> {
    if !(1..=MAX_VERSIONS).contains(&limit) {
        let why = format!("must be a number from 1 to {MAX_VERSIONS}");
        return Err(StoreError::Invalid { field: "limit", why });
    }
    let sql = "SELECT *, NULL AS text FROM policy_versions WHERE tenant_uid = ? AND package = ? AND policy = ? AND version < ? \
               ORDER BY version DESC LIMIT ?";
    let query = sqlx::query(sql).bind(tenant_uid).bind(package).bind(policy);
    let before = before.map_or(Ok(i64::MAX), |v| signed("version", v))?;
    let rows = query.bind(before).bind(i64::from(limit)).fetch_all(pool).await?;
    rows.iter().map(version_row).collect()
}

async fn version(
    pool: &SqlitePool,
    (tenant_uid, package, policy): (&str, &str, &str),
    version: u64,
) -> Result<Option<PolicyVersion>, StoreError> {
    let Ok(version) = i64::try_from(version) else { return Ok(None) };
    let sql = "SELECT v.*, t.text AS text FROM policy_versions AS v LEFT JOIN policy_texts AS t \
               ON t.tenant_uid = v.tenant_uid AND t.sha256 = v.sha256 \
               WHERE v.tenant_uid = ? AND v.package = ? AND v.policy = ? AND v.version = ?";
    let query = sqlx::query(sql).bind(tenant_uid).bind(package).bind(policy).bind(version);
    query.fetch_optional(pool).await?.as_ref().map(version_row).transpose()
}

impl History for SqliteStore {
    fn note_applied<'a>(
        &'a self,
        tenant: &'a str,
        digest: &'a str,
        username: &'a str,
        at: Timestamp,
    ) -> StoreFuture<'a, ()> {
        let (tenant, digest, username) = (tenant.to_owned(), digest.to_owned(), username.to_owned());
        Box::pin(async move { self.write(Write::Applied { tenant, digest, username, at }).await.map(drop) })
    }

    fn policies<'a>(&'a self, tenant_uid: &'a str, package: Option<&'a str>) -> StoreFuture<'a, Vec<PolicyVersion>> {
        Box::pin(policies(&self.readers, tenant_uid, package))
    }

    fn versions<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        before: Option<u64>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<PolicyVersion>> {
        Box::pin(versions(&self.readers, (tenant_uid, package, policy), before, limit))
    }

    fn version<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        number: u64,
    ) -> StoreFuture<'a, Option<PolicyVersion>> {
        Box::pin(version(&self.readers, (tenant_uid, package, policy), number))
    }
}
