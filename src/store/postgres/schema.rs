//! The schema that the tables are in: nobody but their owner makes anything there. A function or an operator of somebody else's could be
//! taken for the one that is meant, and would run with the rights of whoever asks: of the owner's, where a function of ours asks.
//!
//! Until all of it is seen to, nothing outside the catalogue is looked for.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::within;
use crate::store::StoreError;

/// Whether everybody may make something there.
const ANYBODY: &str = "SELECT EXISTS (SELECT 1 FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a \
                       WHERE n.oid = to_regnamespace($1) AND a.grantee = 0 AND a.privilege_type = 'CREATE')";

/// Who else may, though they could not become its owner or the tables'.
const OTHERS: &str = "SELECT r.rolname::text FROM pg_roles r, pg_namespace n \
                      WHERE n.oid = to_regnamespace($1) AND has_schema_privilege(r.oid, n.oid, 'CREATE') \
                      AND NOT pg_has_role(r.oid, n.nspowner, 'MEMBER') AND NOT pg_has_role(r.oid, current_user, 'MEMBER') ORDER BY 1";

/// What such roles have made there that could be taken for ours.
const FOREIGN: &str = "SELECT made.what || ' of ' || r.rolname FROM pg_namespace n \
                       CROSS JOIN LATERAL ( \
                         SELECT 'function ' || p.oid::regprocedure AS what, p.proowner AS owner FROM pg_proc p WHERE p.pronamespace = n.oid \
                         UNION ALL SELECT 'operator ' || o.oid::regoperator, o.oprowner FROM pg_operator o WHERE o.oprnamespace = n.oid \
                         UNION ALL SELECT 'table ' || c.relname, c.relowner FROM pg_class c \
                           WHERE c.relnamespace = n.oid AND c.relname = '_sqlx_migrations' \
                       ) made JOIN pg_roles r ON r.oid = made.owner \
                       WHERE n.oid = to_regnamespace($1) \
                       AND NOT pg_has_role(r.oid, n.nspowner, 'MEMBER') AND NOT pg_has_role(r.oid, current_user, 'MEMBER') ORDER BY 1";

/// Takes the right to make something in the schema from everybody, refuses one where others still may or have, and looks for names there
/// and in the catalogue only from then on.
pub(super) async fn hold(conn: &mut PgConnection) -> Result<(), StoreError> {
    let sql = "SELECT pg_catalog.quote_ident(pg_catalog.current_schema()::pg_catalog.text)";
    let schema: Option<String> = within(sqlx::query_scalar(sql).fetch_one(&mut *conn)).await?;
    let Some(schema) = schema else {
        return Err(refused("the search path of this login names no schema to make tables in".into()));
    };
    within(sqlx::query("SET search_path = pg_catalog, pg_temp").execute(&mut *conn)).await?;
    if anybody(conn, &schema).await? {
        // Who may not is only warned by some versions. What counts is what is so afterwards.
        let revoke = AssertSqlSafe(format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"));
        let _ = within(sqlx::query(revoke).execute(&mut *conn)).await;
        if anybody(conn, &schema).await? {
            return Err(refused(format!(
                "everybody may make functions in schema {schema}, and so run them with the rights of the tables' owner; this login may \
                 not change that. As the schema's owner: REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC; GRANT CREATE ON SCHEMA {schema} \
                 TO the role that owns the tables"
            )));
        }
    }
    let others: Vec<String> = within(sqlx::query_scalar(OTHERS).bind(&schema).fetch_all(&mut *conn)).await?;
    if !others.is_empty() {
        return Err(refused(format!(
            "{} may make functions in schema {schema}, and so run them with the rights of the tables' owner: REVOKE CREATE ON SCHEMA \
             {schema} FROM them, or give Remit a schema or database of its own",
            others.join(", ")
        )));
    }
    let foreign: Vec<String> = within(sqlx::query_scalar(FOREIGN).bind(&schema).fetch_all(&mut *conn)).await?;
    if !foreign.is_empty() {
        return Err(refused(format!(
            "schema {schema} has what others made and what could be taken for Remit's: {}. Drop it; if it is Remit's, run this as the \
             role that owns it",
            foreign.join(", ")
        )));
    }
    within(sqlx::query(AssertSqlSafe(format!("SET search_path = {schema}, pg_temp"))).execute(&mut *conn)).await?;
    Ok(())
}

async fn anybody(conn: &mut PgConnection, schema: &str) -> Result<bool, StoreError> {
    within(sqlx::query_scalar(ANYBODY).bind(schema).fetch_one(conn)).await
}

fn refused(why: String) -> StoreError {
    StoreError::Invalid { field: "--postgres-url", why }
}
