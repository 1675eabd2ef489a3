//! The history of policies in PostgreSQL: its rows are the triggers' (see the migration); here is what they start from, and reading.

use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Postgres, QueryBuilder, Row};

use super::PostgresStore;
use super::decisions::{clean, cleaned};
use crate::policy::PolicyText;
use crate::store::values::{signed, time, unsigned};
use crate::store::{Change, History, InForceRow, MAX_VERSIONS, PolicyVersion, StoreError, StoreFuture};

/// Notes of who applied what that are kept for a namespace: each is of use only until its package comes into force.
const APPLIED_KEPT: i64 = 1000;
/// Rows of one INSERT.
const ROWS: usize = 200;

async fn note_applied(
    pool: &PgPool,
    tenant_uid: &str,
    digest: &str,
    username: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    // The column has its name from when it held the namespace's.
    let sql = "INSERT INTO applied (tenant, digest, username, time) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (tenant, digest) DO UPDATE SET username = excluded.username, time = excluded.time";
    let insert =
        sqlx::query(sql).bind(clean(tenant_uid)).bind(clean(digest)).bind(clean(username)).bind(at.as_microsecond());
    insert.execute(pool).await?;
    let sql = "DELETE FROM applied WHERE tenant = $1 AND digest IN \
               (SELECT digest FROM applied WHERE tenant = $1 ORDER BY time DESC, digest OFFSET $2)";
    sqlx::query(sql).bind(clean(tenant_uid)).bind(APPLIED_KEPT).execute(pool).await?;
    Ok(())
}

/// What the trigger compares: the policies of the package, before its row of `in_force`.
pub(super) async fn put_policies(
    conn: &mut PgConnection,
    row: &InForceRow,
    policies: &[PolicyText],
) -> Result<(), StoreError> {
    for chunk in policies.chunks(ROWS) {
        let mut texts: QueryBuilder<Postgres> =
            QueryBuilder::new("INSERT INTO policy_texts (tenant_uid, sha256, text) ");
        texts.push_values(chunk, |mut b, p| {
            b.push_bind(clean(&row.tenant_uid)).push_bind(clean(&p.sha256)).push_bind(clean(&p.text));
        });
        texts.push(" ON CONFLICT DO NOTHING").build().persistent(false).execute(&mut *conn).await?;
        let mut names: QueryBuilder<Postgres> =
            QueryBuilder::new("INSERT INTO package_policies (tenant_uid, digest, policy, sha256) ");
        names.push_values(chunk, |mut b, p| {
            b.push_bind(clean(&row.tenant_uid))
                .push_bind(clean(&row.digest))
                .push_bind(clean(&p.id))
                .push_bind(clean(&p.sha256));
        });
        names.push(" ON CONFLICT DO NOTHING").build().persistent(false).execute(&mut *conn).await?;
    }
    Ok(())
}

fn version_row(row: &PgRow) -> Result<PolicyVersion, StoreError> {
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

async fn policies(pool: &PgPool, tenant_uid: &str, package: Option<&str>) -> Result<Vec<PolicyVersion>, StoreError> {
    let sql = "SELECT *, NULL::text AS text FROM policy_heads WHERE tenant_uid = $1 AND package = coalesce($2, package) \
               ORDER BY package, policy";
    let rows = sqlx::query(sql).bind(clean(tenant_uid)).bind(cleaned(package)).fetch_all(pool).await?;
    rows.iter().map(version_row).collect()
}

async fn versions(
    pool: &PgPool,
    (tenant_uid, package, policy): (&str, &str, &str),
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<PolicyVersion>, StoreError> {
    if !(1..=MAX_VERSIONS).contains(&limit) {
        let why = format!("must be a number from 1 to {MAX_VERSIONS}");
        return Err(StoreError::Invalid { field: "limit", why });
    }
    let sql = "SELECT *, NULL::text AS text FROM policy_versions \
               WHERE tenant_uid = $1 AND package = $2 AND policy = $3 AND version < $4 ORDER BY version DESC LIMIT $5";
    let query = sqlx::query(sql).bind(clean(tenant_uid)).bind(clean(package)).bind(clean(policy));
    let before = before.map_or(Ok(i64::MAX), |v| signed("version", v))?;
    let rows = query.bind(before).bind(i64::from(limit)).fetch_all(pool).await?;
    rows.iter().map(version_row).collect()
}

async fn version(
    pool: &PgPool,
    (tenant_uid, package, policy): (&str, &str, &str),
    version: u64,
) -> Result<Option<PolicyVersion>, StoreError> {
    let Ok(version) = i64::try_from(version) else { return Ok(None) };
    let sql = "SELECT v.*, t.text AS text FROM policy_versions AS v LEFT JOIN policy_texts AS t \
               ON t.tenant_uid = v.tenant_uid AND t.sha256 = v.sha256 \
               WHERE v.tenant_uid = $1 AND v.package = $2 AND v.policy = $3 AND v.version = $4";
    let query = sqlx::query(sql).bind(clean(tenant_uid)).bind(clean(package)).bind(clean(policy)).bind(version);
    query.fetch_optional(pool).await?.as_ref().map(version_row).transpose()
}

impl History for PostgresStore {
    fn note_applied<'a>(
        &'a self,
        tenant: &'a str,
        digest: &'a str,
        username: &'a str,
        at: Timestamp,
    ) -> StoreFuture<'a, ()> {
        self.call(note_applied(self.pool(), tenant, digest, username, at))
    }

    fn policies<'a>(&'a self, tenant_uid: &'a str, package: Option<&'a str>) -> StoreFuture<'a, Vec<PolicyVersion>> {
        self.call(policies(self.pool(), tenant_uid, package))
    }

    fn versions<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        before: Option<u64>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<PolicyVersion>> {
        self.call(versions(self.pool(), (tenant_uid, package, policy), before, limit))
    }

    fn version<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        number: u64,
    ) -> StoreFuture<'a, Option<PolicyVersion>> {
        self.call(version(self.pool(), (tenant_uid, package, policy), number))
    }
}
